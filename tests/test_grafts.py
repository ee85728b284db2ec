"""Training a graft: only the stream's weights and the low-rank updates move, as autograd says."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from resval_lens import ResValTransformer
from resval_lens.training.graft import Learned, grafted, row_losses, train_graft
from resval_lens.training.graft_run import GraftRun, weights_sha256
from resval_lens.training.recorded import export_run, load_run, load_runs
from resval_lens.training.run_folder import read_metrics, read_snapshot, snapshot_paths
from resval_lens.training.settings import seeded_generators
from tests.helpers import tiny_model
from tests.lm_runs import Noise

LINK = "v(mix=head, carried=0)"
UNCHANGED = {
    "link": LINK,
    "first layer": "v(source=first, mix=head, carried=0)",
    "next head": "v(mix=next_head, carried=0)",
    "gain": "v(mix=head_gain)",
    "queries": "q(mix=head, carried=0)",
    "raw": "v(carry=raw, mix=head, carried=0)",
    "gate": "v(mix=learned_pair, own=1, carried=0)",
}
GROUPED: dict[str, Any] = {"d_vocab": 20, "n_key_value_heads": 2, "n_layers": 4}


def base_model(**changes: Any) -> ResValTransformer:
    return tiny_model("", **{**GROUPED, **changes})


def graft_run(base: ResValTransformer, **changes: Any) -> GraftRun:
    settings: dict[str, Any] = {
        "streams": LINK, "seed": 3, "steps": 6, "batch": 5, "length": 12, "held_out": 4, "lr": 0.05,
        "low_rank_lr": 0.02, "snapshot_every": 2,
    }  # fmt: skip
    return GraftRun(
        "graft", "tiny", weights_sha256(base), "noise", "other noise", **{**settings, **changes}
    )


def learned(base: ResValTransformer, run: GraftRun) -> Learned:
    return Learned(base, run, seeded_generators(run.seed, ("batches", "factors"))["factors"])


@pytest.mark.parametrize("streams", UNCHANGED.values(), ids=UNCHANGED)
@pytest.mark.parametrize("low_rank", [0, 2])
@pytest.mark.parametrize("changes", [{}, {"n_key_value_heads": None}], ids=["grouped", "plain"])
def test_before_the_first_step_the_model_is_what_it_was(
    streams: str, low_rank: int, changes: dict[str, Any]
) -> None:
    base = base_model(**changes)
    run = graft_run(base, streams=streams, low_rank=low_rank)
    tokens = torch.randint(20, (3, 9))
    with torch.no_grad():
        assert torch.equal(learned(base, run).folded()(tokens), base(tokens))


@pytest.mark.parametrize("low_rank", [0, 2])
@pytest.mark.parametrize("streams", UNCHANGED.values(), ids=UNCHANGED)
def test_only_what_is_learned_moves(streams: str, low_rank: int, tmp_path: Path) -> None:
    base = base_model()
    before = {name: x.clone() for name, x in base.named_parameters()}
    trained = train_graft(
        graft_run(base, streams=streams, low_rank=low_rank), base, Noise(), Noise(), tmp_path
    )
    assert trained is not None
    for name, x in base.named_parameters():
        assert torch.equal(x, before[name]), name
        assert x.requires_grad, name
        assert x.grad is None, name
    for name, x in trained.named_parameters():
        moved = ".mixes." not in name and not torch.equal(x, before[name])
        assert moved == (bool(low_rank) and ("W_V" in name or "W_O" in name)), name
    fresh = ResValTransformer.from_hooked(base, streams)
    starts = {name: x for name, x in fresh.named_parameters() if ".mixes." in name}
    assert starts
    for name, x in starts.items():
        assert not torch.equal(x, trained.get_parameter(name)), name


def rows_of_steps(run: GraftRun) -> Iterator[tuple[Tensor, Tensor]]:
    """What each step trains on: rows drawn from the seed, one step after the other."""
    drawn = seeded_generators(run.seed, ("batches", "factors"))["batches"]
    for _ in range(run.steps):
        yield Noise().batch(torch.randint(40, (run.batch,), generator=drawn).numpy())


@pytest.mark.parametrize("low_rank", [0, 2])
def test_a_step_is_adams_on_the_gradient_of_a_plain_loop(low_rank: int, tmp_path: Path) -> None:
    """Weights written out, a mean over all targets, Adam's formula by hand, the rate by hand."""
    base = base_model(dtype=torch.float64)
    run = graft_run(base, low_rank=low_rank, steps=3, snapshot_every=1)
    trained = train_graft(run, base, Noise(), Noise(), tmp_path)
    assert trained is not None
    start = learned(base, run)
    values = {name: x.detach().clone() for name, x in start.parameters().items()}
    first = {name: torch.zeros_like(x) for name, x in values.items()}
    second = {name: torch.zeros_like(x) for name, x in values.items()}
    plain = copy.deepcopy(start.model)
    for step, (tokens, targets) in enumerate(rows_of_steps(run), 1):
        leaves = {name: x.clone().requires_grad_() for name, x in values.items()}
        replaced = {name: x for name, x in leaves.items() if ".mixes." in name}
        for name, weight in base.named_parameters():
            if f"{name}.A" in leaves:
                product = leaves[f"{name}.A"] @ leaves[f"{name}.B"]
                heads = range(len(weight))
                width = product.shape[1] // len(weight)
                height = product.shape[0] // len(weight)
                parts = [
                    product[h * height : (h + 1) * height]
                    if name.endswith("W_O")
                    else product[:, h * width : (h + 1) * width]
                    for h in heads
                ]
                replaced[name] = weight.detach() + torch.stack(parts)
        logits = torch.func.functional_call(plain, replaced, (tokens,))
        loss, count = torch.zeros((), dtype=torch.float64), 0
        for row, wanted in zip(logits, targets, strict=True):
            for position, target in zip(row, wanted.tolist(), strict=True):
                if target >= 0:
                    loss = loss - position.log_softmax(-1)[target]
                    count += 1
        (loss / count).backward()
        share = 0.5 * (1 + np.cos(np.pi * step / run.steps))  # no warm-up: a tenth of 3 steps is 0
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            first[name] = 0.9 * first[name] + 0.1 * leaf.grad
            second[name] = 0.95 * second[name] + 0.05 * leaf.grad**2
            mean, square = first[name] / (1 - 0.9**step), second[name] / (1 - 0.95**step)
            peak = run.lr if ".mixes." in name else run.low_rank_lr
            values[name] = values[name] - peak * share * mean / (square.sqrt() + 1e-8)
    found = read_snapshot(snapshot_paths(tmp_path)[-1])[1]
    for name, value in values.items():
        torch.testing.assert_close(found[name], value, atol=1e-9, rtol=1e-7, msg=name)


@pytest.mark.parametrize("low_rank", [0, 2])
def test_a_killed_run_ends_in_the_same_bits(low_rank: int, tmp_path: Path) -> None:
    base = base_model()
    run = graft_run(base, low_rank=low_rank, steps=9)
    whole = train_graft(run, base, Noise(), Noise(), tmp_path / "whole")
    asked = iter([False] * 5 + [True])  # killed after step 5: goes on from the snapshot of step 4
    stopped = train_graft(
        run, base, Noise(), Noise(), tmp_path / "killed", should_stop=lambda: next(asked)
    )
    assert stopped is None
    assert [int(path.stem) for path in snapshot_paths(tmp_path / "killed")] == [4]
    resumed = train_graft(run, base, Noise(), Noise(), tmp_path / "killed")
    assert whole is not None
    assert resumed is not None
    for (name, x), y in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(x, y), name
    lines = [read_metrics(tmp_path / name) for name in ("whole", "killed")]
    for each in lines:
        for line in each:
            line.pop("seconds_per_step")
    assert lines[0] == lines[1]


def test_updates_folded_are_the_unfolded_model(tmp_path: Path) -> None:
    base = base_model(dtype=torch.float64)
    run = graft_run(base, low_rank=3)
    trained = train_graft(run, base, Noise(), Noise(), tmp_path, keep_model=True)
    unfolded = learned(base, run)
    numbers = read_snapshot(snapshot_paths(tmp_path)[-1])[1]
    with torch.no_grad():
        for name, parameter in unfolded.parameters().items():
            parameter.copy_(numbers[name])
    rows = np.arange(7)
    tokens, targets = Noise().batch(rows)
    recorded = load_run(tmp_path, GraftRun)
    saved = recorded.model()
    assert trained is not None
    with torch.no_grad():
        loss = unfolded.loss(tokens, targets)
        for model in (trained, grafted(recorded, base), saved):
            torch.testing.assert_close(model(tokens, targets=targets), loss, atol=0, rtol=1e-12)
    assert (loss - base(tokens, targets=targets)).abs() > 1e-3  # so there is something to fold


def test_losses_are_those_of_each_row(tmp_path: Path) -> None:
    base = base_model()
    train_graft(graft_run(base), base, Noise(), Noise(), tmp_path)
    recorded = load_run(tmp_path, GraftRun)
    assert [line["step"] for line in recorded.evaluations] == [0, 6]
    assert [line["step"] for line in recorded.metrics] == [0, 2, 4, 6]
    assert recorded.evaluations[-1]["parameters"] == 3 * 2  # layers 1 to 3, two key-value heads
    models = [base, grafted(recorded, base)]
    for line, model in zip(recorded.evaluations, models, strict=True):
        for number, loss in enumerate(line["held_out_losses"]):
            tokens, targets = Noise().batch(np.array([number]))
            with torch.no_grad():
                expected = F.cross_entropy(model(tokens)[0], targets[0], ignore_index=-100)
            assert loss == pytest.approx(float(expected), abs=1e-6)


def test_a_record_alone_gives_the_graft_again(tmp_path: Path) -> None:
    base = base_model()
    trained = train_graft(graft_run(base), base, Noise(), Noise(), tmp_path / "run")
    folder = export_run(load_run(tmp_path / "run", GraftRun), tmp_path / "shipped")
    assert {path.name for path in folder.iterdir()} == {"run.json", "metrics.jsonl"}
    (recorded,) = load_runs(GraftRun, tmp_path / "shipped")
    again = grafted(recorded, base)
    assert trained is not None
    for (name, x), y in zip(trained.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=0, msg=name)


def test_two_precisions_take_nearly_the_same_step(tmp_path: Path) -> None:
    base = base_model()
    found = [
        train_graft(
            graft_run(base, precision=each, steps=2), base, Noise(), Noise(), tmp_path / each
        )
        for each in ("fp32", "bf16")
    ]
    for (name, x), y in zip(found[0].named_parameters(), found[1].parameters(), strict=True):
        assert torch.allclose(x, y, atol=0.03), name


# Bad input


def test_another_models_weights_are_refused(tmp_path: Path) -> None:
    base, other = base_model(), base_model()
    run = graft_run(base)
    with torch.no_grad():
        other.blocks[0].attn.W_Q[0, 0, 0] += 1
    with pytest.raises(ValueError, match=r"this is a graft on tiny .*the model given has other"):
        train_graft(run, other, Noise(), Noise(), tmp_path)
    assert weights_sha256(base) == weights_sha256(ResValTransformer.from_hooked(base, "v"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"streams": "v"}, "nothing to learn: choose streams with a mix that learns"),
        ({"streams": ""}, "nothing to learn"),
        ({"low_rank": -1}, "low_rank must be a whole number from 0 up; got -1"),
        ({"length": 1}, "length must be a whole number from 2 up; got 1"),
        ({"lr": 0}, "lr must be a finite number above 0; got 0"),
        ({"precision": "fp16"}, "precision must be one of .*got 'fp16'"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        graft_run(base_model(), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": 41}, "the held-out text has 40 rows of 12 tokens; 41 are needed"),
        ({"batch": 41}, "the training text has 40 rows of 12 tokens; 41 are needed"),
    ],
)
def test_too_little_text_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    base = base_model()
    with pytest.raises(ValueError, match=message):
        train_graft(graft_run(base, **changes), base, Noise(), Noise(), tmp_path)


def test_a_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    base = base_model()
    run = graft_run(base)
    train_graft(run, base, Noise(), Noise(), tmp_path)
    with pytest.raises(ValueError, match="holds a run with steps=6, not 8"):
        train_graft(replace(run, steps=8), base, Noise(), Noise(), tmp_path)


def test_a_run_that_has_not_ended_is_no_graft(tmp_path: Path) -> None:
    base = base_model()
    asked = iter([False] * 3 + [True])
    train_graft(graft_run(base), base, Noise(), Noise(), tmp_path, should_stop=lambda: next(asked))
    with pytest.raises(ValueError, match="has not reached step 6"):
        grafted(load_run(tmp_path, GraftRun), base)
    tokens = torch.randint(20, (2, 5))
    with torch.no_grad():
        began = grafted(load_run(tmp_path, GraftRun), base, trained=False)(tokens)
        assert torch.equal(began, base(tokens))


def test_losses_need_no_more_than_one_row_at_a_time() -> None:
    base = base_model()
    run = graft_run(base)
    assert len(row_losses(learned(base, run), Noise(), 3)) == 3
