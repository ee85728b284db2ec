"""Links by degrees, chosen snapshots, and training on after a link is removed."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from resval_lens.analyses.comparison.layer_one import layer_one
from resval_lens.analyses.comparison.link_controls import first_of
from resval_lens.analyses.comparison.link_grading import GRADED, GRADES, grading
from resval_lens.analyses.comparison.link_in_training import link_in_training
from resval_lens.analyses.comparison.link_moments import moments_of, norms
from resval_lens.analyses.comparison.link_recovery import recovery, trained_on
from resval_lens.models.classifier import ICLClassifier
from resval_lens.training import draw_world, train_icl
from resval_lens.training.icl_run import ICLRun, initial_model, kept_models
from resval_lens.training.recorded import RecordedRun, load_run, load_runs
from tests.runs import RUN


@pytest.fixture(scope="module", params=["v", "", "v(mix=pair, own=2, carried=0)"])
def kept(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    train_icl(replace(RUN, streams=request.param, lr=0.1, steps=20), folder, keep_snapshots=True)
    return folder


def snapshot(folder: Path, step: int) -> Path:
    return folder / "snapshots" / f"{step:08d}.safetensors"


def equal(model: ICLClassifier, other: ICLClassifier) -> bool:
    weights = dict(other.named_parameters())
    return all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_with_nothing_removed_training_goes_on_as_the_run_did(kept: Path) -> None:
    run = load_run(kept, ICLRun).run
    world, _ = draw_world(run)
    models = dict(kept_models(run, kept))
    for step in (0, 10):
        assert not equal(models[step], models[step + 10])
        assert equal(trained_on(run, snapshot(kept, step), 10, world), models[step + 10])


@pytest.mark.parametrize("factor", [1.0, 2.0, 0.5])
def test_without_links_it_is_plain_descent_on_the_next_batches(kept: Path, factor: float) -> None:
    """Written out: no trainer, no optimiser, the hooked model with its values scaled by a hook."""
    run = load_run(kept, ICLRun).run
    world, _ = draw_world(run)
    stored = load_file(snapshot(kept, 10))
    generator = torch.Generator()
    generator.set_state(stored["generator"])
    model = initial_model(run).with_streams("")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(stored[name])
    own = run.streams[0].own if run.streams else 1.0
    learned = [p for p in model.parameters() if p.requires_grad]
    scaled = [("blocks.1.attn.hook_v", lambda x, hook: factor * own * x)]
    for _ in range(3):
        batch = world.batch(run.batch, generator)
        logits = model.run_with_hooks(batch.inputs, fwd_hooks=scaled)
        gradients = torch.autograd.grad(F.cross_entropy(logits, batch.targets), learned)
        with torch.no_grad():
            for parameter, gradient in zip(learned, gradients, strict=True):
                parameter.mul_(1 - run.decay).sub_(run.lr * gradient)
    after = trained_on(run, snapshot(kept, 10), 3, world, factor)
    weights = dict(model.named_parameters())
    for name, parameter in after.named_parameters():
        assert torch.allclose(parameter, weights[name], atol=1e-6), name
    other = trained_on(run, snapshot(kept, 10), 3, world, 1.3 * factor)
    assert not torch.allclose(other.blocks[1].attn.W_V, weights["blocks.1.attn.W_V"], atol=1e-6)


def test_recovery_measures_what_was_trained_on(kept: Path) -> None:
    run = load_run(kept, ICLRun).run
    world, tests = draw_world(run)
    found = recovery(run, snapshot(kept, 10), 10, world, tests)
    links = run.streams and run.streams[0].carried != 0
    arms = {"as it was": None} | ({"links cut": 1.0, "own × 2, links cut": 2.0} if links else
                                  {"own × ½": 0.5})  # fmt: skip
    assert list(found.after) == list(arms)
    for name, alone in arms.items():
        model = trained_on(run, snapshot(kept, 10), 10, world, alone)
        for task, batch in tests.items():
            with torch.no_grad():
                right = (model(batch.inputs).argmax(-1) == batch.targets).double().mean()
            assert found.after[name][task] == pytest.approx(float(right), abs=1e-9)
    with pytest.raises(ValueError, match="must be 1 or more; got 0"):
        recovery(run, snapshot(kept, 10), 0, world, tests)


def test_a_gate_cannot_go_on_without_its_link(tmp_path: Path) -> None:
    run = replace(RUN, streams="v(mix=gate)", steps=10)
    train_icl(run, tmp_path, keep_snapshots=True)
    recorded = load_run(tmp_path, ICLRun)
    with pytest.raises(ValueError, match=r"mix='gate'.*--recover 0"):
        link_in_training(recorded, 20)
    study = link_in_training(recorded, 20, 20, 20, recover=0)
    assert [each.recovery for each in study.moments] == [None]


def test_each_degree_is_the_model_with_its_values_written_out() -> None:
    """With numpy on what hooks recorded, and a hook that puts it there."""
    (recorded,) = (r for r in load_runs(ICLRun) if r.run.folder_name == "values-seed0")
    model, (_, tests) = recorded.model(), draw_world(recorded.run)
    tests = {name: batch for name, batch in first_of(tests, 40).items() if name in ("ic", "iw")}
    layers = {name: layer_one(model, batch.inputs) for name, batch in tests.items()}
    found = grading(layers, tests, seed=5)
    assert tuple(found) == GRADED
    order = torch.randperm(model.cfg.d_head, generator=torch.Generator().manual_seed(5)).numpy()
    for task, batch in tests.items():
        with torch.no_grad():
            _, cache = model.run_with_cache(batch.inputs)
        own, link = (cache[f"v_{part}", 1].numpy().astype(float) for part in ("local", "link"))
        expected: dict[str, list[Any]] = {name: [] for name in GRADED}
        for c in GRADES:
            left = own + c * link
            size = np.linalg.norm(own + link, axis=-1) / np.linalg.norm(left, axis=-1)
            some = link.copy()
            some[..., order[round(c * len(order)) :]] = 0
            for name, total in zip(
                GRADED, (left, left * size[..., None], own + some, c * own + link), strict=True
            ):
                hook = [("blocks.1.attn.hook_v", lambda x, hook, t=total: torch.tensor(t).float())]
                with torch.no_grad():
                    answers = model.run_with_hooks(batch.inputs, fwd_hooks=hook).argmax(-1)
                expected[name].append(float((answers == batch.targets).double().mean()))
        for name in GRADED:
            assert found[name][task] == pytest.approx(expected[name], abs=1e-9), name
        size = {"own": own, "link": link, "total": own + link}
        assert norms(layers[task]) == pytest.approx(
            {name: np.linalg.norm(x, axis=-1).mean() for name, x in size.items()}, rel=1e-5
        )
    assert len(set(found["own"]["ic"])) > 4


def test_moments_are_the_first_kept_snapshots_above_levels() -> None:
    curve = {0: 0.1, 500: 0.6, 1000: 0.4, 1500: 0.96, 2000: 0.9}
    lines = [{"step": step, "ic": {"accuracy": ic}} for step, ic in curve.items()]
    recorded = RecordedRun(copy.copy(RUN), [], lines, Path())
    assert moments_of(recorded, [*curve]) == {"IC > .5": 500, "IC > .95": 1500, "last": 2000}
    assert moments_of(recorded, [0, 1000, 2000]) == {"IC > .5": 2000, "last": 2000}
    assert moments_of(recorded, [0, 1000]) == {"last": 1000}
