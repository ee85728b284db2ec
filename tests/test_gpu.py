"""On a GPU everything is what it is on the CPU: ``pytest -m gpu``.

The reference is always this package in float32 on the CPU, with the weights that the device has:
those of a bfloat16 model are rounded first, and then widened. ``RESVAL_DEVICE=cpu`` compares the
CPU with the CPU, which says that the tests themselves work.
"""

import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resval_lens import ResValTransformer
from resval_lens.analyses.circuits.methods import METHODS
from resval_lens.hooks import cut_links, edit_links, freeze, link_activations, scale_links
from resval_lens.tasks.text import RowOrder
from resval_lens.training.lm import train_lm
from resval_lens.training.lm_run import LMRun
from resval_lens.training.run_folder import read_metrics, snapshot_paths
from tests.helpers import tiny_tokens
from tests.lm_runs import DROPOUT, RUN, Noise
from tests.rounding import (
    BACKWARD,
    MODELS,
    ROUNDED,
    TOKENS,
    assert_close,
    each_model,
    each_precision,
    two_of,
)
from tests.runs import stop_before
from tests.two_devices import ANALYSES

DEVICE = os.environ.get("RESVAL_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE.startswith("cuda") and not torch.cuda.is_available(),
        reason="no CUDA device (RESVAL_DEVICE=cpu runs these tests on the CPU)",
    ),
]


def two(name: str, dtype: torch.dtype) -> tuple[ResValTransformer, ResValTransformer]:
    """The model on the device in ``dtype``, and on the CPU in float32, with equal weights."""
    return two_of(name, dtype, DEVICE)


@each_precision
@each_model
def test_a_forward_run(name: str, dtype: torch.dtype) -> None:
    assert torch.get_float32_matmul_precision() == "highest"
    model, reference = two(name, dtype)
    with torch.no_grad():
        logits = model(TOKENS)
        assert logits.device.type == torch.device(DEVICE).type
        assert_close(logits, reference(TOKENS), dtype)
        assert_close(model(TOKENS, targets=TOKENS), reference(TOKENS, targets=TOKENS), dtype)


@each_precision
@each_model
def test_a_cache_and_a_run_that_goes_on_from_it(name: str, dtype: torch.dtype) -> None:
    model, reference = two(name, dtype)
    logits, found = model.run_with_cache(TOKENS)
    _, wanted = reference.run_with_cache(TOKENS)
    assert list(found) == list(wanted)
    for point, x in wanted.items():
        if x.isfinite().all():  # scores of later positions are −∞
            assert_close(found[point], x, dtype, scale=1.0)
    carried = model.carried_before(2, found)
    resumed = model(found["resid_pre", 2], start_at_layer=2, carried=carried)
    assert_close(resumed, logits.detach().float().cpu(), dtype)


@each_precision
@each_model
def test_gradients(name: str, dtype: torch.dtype) -> None:
    models = two(name, dtype)
    for model in models:
        model(TOKENS, targets=TOKENS).backward()
    wanted = {name: p.grad for name, p in models[1].named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in models[0].named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    flat = [torch.cat([x.flatten() for x in grads.values()]) for grads in (found, wanted)]
    assert_close(*flat, dtype, times=BACKWARD)


@each_model
def test_text_is_generated_as_on_the_cpu(name: str) -> None:
    models = two(name, torch.float32)
    for cached in (True, False):
        found, wanted = (
            model.generate(
                TOKENS[:, :3], max_new_tokens=6, do_sample=False, stop_at_eos=False, verbose=False,
                use_past_kv_cache=cached, return_type="tokens",
            )
            for model in models
        )  # fmt: skip
        assert torch.equal(found.cpu(), wanted)


@each_precision
@pytest.mark.parametrize("name", [name for name in MODELS if name != "classic"])
def test_edited_links(name: str, dtype: torch.dtype) -> None:
    other = tiny_tokens(seed=5)
    edits: dict[str, Callable[[ResValTransformer], Any]] = {
        "cut": cut_links,
        "scale": lambda m: scale_links(m, 0.5, heads=[0], positions=[0, -1]),
        "freeze": lambda m: edit_links(m, freeze(link_activations(m, other))),
    }
    for edit in edits.values():
        logits = []
        for model in two(name, dtype):
            with torch.no_grad(), edit(model):
                logits.append(model(TOKENS))
        assert_close(*logits, dtype)


@each_precision
@pytest.mark.parametrize("analysis", ANALYSES)
@pytest.mark.parametrize("name", ["values", "Llama, values"])
def test_an_analysis(name: str, analysis: str, dtype: torch.dtype) -> None:
    """Of metrics that are differences of logits: what is rounded are the logits."""
    model, reference = two(name, dtype)
    with torch.no_grad():
        scale = reference(TOKENS).std().item()
    context = nullcontext() if analysis in METHODS else torch.no_grad()
    with context:
        assert_close(ANALYSES[analysis](model), ANALYSES[analysis](reference), dtype, scale)


def losses_by_hand(run: LMRun) -> list[float]:
    """Mean loss of each step of a plain loop, in float32 on the CPU."""
    model, rows = run.initial_model().train(), Noise()
    parameters = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(
        parameters, run.lr, betas=run.betas, eps=run.eps, weight_decay=0.0, foreach=False
    )
    order, losses = RowOrder(len(rows), run.batch, run.seed), []
    for step in range(1, run.steps + 1):
        tokens, targets = rows.batch(order.rows(step))
        loss = model(tokens, targets=targets) / (targets >= 0).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, run.clip or math.inf)
        adamw.param_groups[0]["lr"] = run.learning_rate(step)
        adamw.step()
        adamw.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training(tmp_path: Path, precision: Any) -> None:
    """AdamW divides by a gradient's size: where that is nothing but rounding, so is the step."""
    run = replace(RUN, precision=precision, weight_decay=0.0, log_every=1, eps=1e-4)
    model = train_lm(run, Noise(), tmp_path)
    assert model is not None
    assert {p.device.type for p in model.parameters()} == {torch.device(DEVICE).type}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    found = [line["train_loss"] for line in read_metrics(tmp_path) if "train_loss" in line]
    tolerance = {"fp32": 1e-4, "bf16": ROUNDED[torch.bfloat16]}[precision]
    assert found == pytest.approx(losses_by_hand(run), rel=tolerance)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stopped_run_goes_on_with_its_dropout(tmp_path: Path, precision: Any) -> None:
    """Kernels may add in another order each time: equal within rounding, not to the bit."""
    run = replace(DROPOUT, precision=precision, eps=1e-4)
    whole = train_lm(run, Noise(), tmp_path / "whole")
    assert train_lm(run, Noise(), tmp_path / "parts", should_stop=stop_before(6)) is None
    assert int(snapshot_paths(tmp_path / "parts")[-1].stem) < run.steps
    parts = train_lm(run, Noise(), tmp_path / "parts")
    assert whole is not None
    assert parts is not None
    weights: list[Tensor] = [
        torch.cat([p.detach().flatten() for p in model.parameters()]) for model in (whole, parts)
    ]
    off = (weights[0] - weights[1]).norm() / weights[0].norm()
    assert off < {"fp32": 1e-4, "bf16": 2**-8}[precision]
    losses = [
        [line["train_loss"] for line in read_metrics(tmp_path / name) if "train_loss" in line]
        for name in ("whole", "parts")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
