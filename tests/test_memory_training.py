"""Training of the simplified transformers: a step's arithmetic, resuming, what is written down."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from resval_lens.analyses.papers.memory.model.model import MemoryTransformer
from resval_lens.analyses.papers.memory.tasks.triggers import TriggerTask, optimal_loss
from resval_lens.analyses.papers.memory.training import (
    MemoryRun,
    draw_tests,
    evaluate,
    initial_memory,
    train_memory,
)
from resval_lens.models.presets import MEMORY_VARIANTS, memory_variant
from resval_lens.streams import AttentionStream
from resval_lens.training.recorded import (
    export_run,
    load_run,
    load_runs,
    write_record,
)
from tests.runs import assert_same_outcome, metrics, snapshots, steps, stop_before
from tests.small_memory import SMALL_RUN, SMALL_TASK, small_bigrams


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``SMALL_RUN``, trained without interruption."""
    folder = tmp_path_factory.mktemp("straight")
    train_memory(SMALL_RUN, folder)
    return folder


# What a step does


def by_hand(run: MemoryRun) -> tuple[MemoryTransformer, list[float]]:
    """Momentum written out, on the hooked model: m ← μ m + g, p ← p − lr m."""
    model, generator, losses = initial_memory(run), run.generators()["batches"], []
    trained = [p for p in model.parameters() if p.requires_grad]
    moved = [torch.zeros_like(p) for p in trained]
    for _ in range(run.steps):
        batch = run.task.batch(run.batch, generator)
        logits = model(batch.inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
        with torch.no_grad():
            gradients = torch.autograd.grad(loss, trained)
            for p, m, gradient in zip(trained, moved, gradients, strict=True):
                m.mul_(run.momentum).add_(gradient)
                p -= run.lr * m
        losses.append(loss.item())
    return model, losses


VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"positions": name, "streams": ""} for name in ("absolute", "relative")},
    **{name: {"positions": name} for name in ("sinusoidal", "rotary", "alibi")},
    "queries": {"streams": "q"},  # which the fast logits leave to the hooked model
    "detached": {"streams": AttentionStream("v", detach=True)},
    "one layer": {"streams": "", "n_layers": 1},
    "no momentum": {"momentum": 0.0},
    "drawn": {"task": replace(SMALL_TASK, triggers="drawn")},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_training_is_sgd_with_momentum(tmp_path: Path, variant: dict[str, Any]) -> None:
    run = replace(SMALL_RUN, **{"lr": 0.02, **variant})  # rounding grows with the steps' length
    trained = train_memory(run, tmp_path)
    expected, losses = by_hand(run)
    assert trained is not None
    for (name, ours), theirs in zip(trained.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-5, msg=name)
    means = [sum(losses[i : i + 10]) / 10 for i in (0, 10, 20)]
    assert [line["train_loss"] for line in metrics(tmp_path)[1:]] == pytest.approx(means, rel=1e-5)


def test_what_is_trained_moves_and_what_is_not_stays(tmp_path: Path) -> None:
    trained, before = train_memory(SMALL_RUN, tmp_path), initial_memory(SMALL_RUN)
    assert trained is not None
    for (name, new), old in zip(trained.named_parameters(), before.parameters(), strict=True):
        assert new.equal(old) != new.requires_grad, name


def test_training_finds_the_outputs_in_context(tmp_path: Path) -> None:
    """Against the best model without context: log(outputs) nats at a trigger."""
    task = TriggerTask(small_bigrams(), length=16, n_triggers=2)
    run = MemoryRun(
        "relative", seed=1, task=task, d_model=32, n_ctx=32, steps=300, batch=64,
        snapshot_every=300, test_size=200,
    )  # fmt: skip
    train_memory(run, tmp_path)
    last = metrics(tmp_path)[-1]
    assert last["trained"]["in_context"] < 0.6 * math.log(7)
    assert last["trained"]["accuracy"] > 0.7
    assert last["attention"]["target_mass"] > 2 * metrics(tmp_path)[0]["attention"]["target_mass"]


# What is measured


def test_the_last_metrics_are_those_of_the_saved_model(straight: Path) -> None:
    model = MemoryTransformer.from_pretrained(straight / "model")
    for name, batch in draw_tests(SMALL_RUN).items():
        line = metrics(straight)[-1][name]
        logits = model(batch.inputs).detach().double().numpy()
        losses, known_losses, hits, excess = [], [], [], []
        best = optimal_loss(SMALL_TASK, batch)
        for row in range(len(logits)):
            for t in range(logits.shape[1]):
                target = int(batch.targets[row, t])
                x = logits[row, t]
                loss = float(np.log(np.exp(x - x.max()).sum()) + x.max() - x[target])
                losses.append(loss)
                excess.append(loss - float(best[row, t]))
                if int(batch.occurrence[row, t]) >= 2:
                    known_losses.append(loss)
                    hits.append(int(x.argmax()) == target)
        assert line["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
        assert line["excess"] == pytest.approx(np.mean(excess), rel=1e-5)
        assert line["in_context"] == pytest.approx(np.mean(known_losses), rel=1e-5)
        assert line["accuracy"] == np.mean(hits)


def test_tests_are_of_the_trained_length_and_of_twice_that() -> None:
    shapes = {name: tuple(batch.inputs.shape) for name, batch in draw_tests(SMALL_RUN).items()}
    assert shapes == {"trained": (20, 10), "longer": (20, 20)}


def test_without_triggers_nothing_is_in_context() -> None:
    task = replace(SMALL_TASK, n_triggers=0)
    run = replace(SMALL_RUN, task=task)
    found = evaluate(initial_memory(run), task, draw_tests(run)["trained"])
    assert (found["accuracy"], found["in_context"]) == (None, None)


@pytest.mark.parametrize("positions", ["absolute", "relative"])
def test_a_run_without_triggers_is_followed_by_its_loss(tmp_path: Path, positions: Any) -> None:
    run = replace(SMALL_RUN, positions=positions, steps=2, task=replace(SMALL_TASK, n_triggers=0))
    told: list[str] = []
    train_memory(
        run, tmp_path, lambda step, line: told.append(run.headline(line)) if line else None
    )
    assert told[0] == f"loss {metrics(tmp_path)[0]['trained']['loss']:.3f}"
    assert SMALL_RUN.headline({"trained": {"accuracy": 0.25}}) == "in context 0.250"


def test_a_stream_of_learned_mixing_trains_and_is_recorded(tmp_path: Path) -> None:
    run = replace(SMALL_RUN, streams=AttentionStream("v", mix="scalar"), steps=2)
    train_memory(run, tmp_path / run.folder_name)
    (recorded,) = load_runs(MemoryRun, tmp_path)
    assert recorded.metrics[-1]["recall"]["W_O2"] is None


def test_weights_that_are_no_numbers_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the last step before a snapshot is of the weights before its update."""
    train_memory(replace(SMALL_RUN, steps=10), tmp_path)
    step = torch.optim.SGD.step

    def overflows(self: torch.optim.SGD, closure: None = None) -> None:
        step(self)
        if overflows.left == 0:
            with torch.no_grad():
                self.param_groups[0]["params"][0][0, 0, 0] = math.inf
        overflows.left -= 1

    overflows.left = 9  # type: ignore[attr-defined]
    monkeypatch.setattr(torch.optim.SGD, "step", overflows)
    with pytest.raises(RuntimeError, match="a weight is not a number after step 20"):
        train_memory(SMALL_RUN, tmp_path)
    assert (steps(tmp_path), snapshots(tmp_path)) == ([0, 10], [10])


# Interruption


@pytest.mark.parametrize("stops", [[1], [10], [11], [17], [14, 4, 9]], ids=str)
def test_a_stopped_run_ends_as_one_that_was_not(
    tmp_path: Path, straight: Path, stops: list[int]
) -> None:
    """Momentum included: without it the weights after the stop would differ."""
    for step in stops:
        assert train_memory(SMALL_RUN, tmp_path, should_stop=stop_before(step)) is None
    assert train_memory(SMALL_RUN, tmp_path) is not None
    assert_same_outcome(tmp_path, straight)


def test_snapshots_are_kept_if_asked_for(tmp_path: Path, straight: Path) -> None:
    assert (steps(straight), snapshots(straight)) == ([0, 10, 20, 30], [30])
    train_memory(replace(SMALL_RUN, steps=20), tmp_path, keep_snapshots=True)
    assert snapshots(tmp_path) == [0, 10, 20]


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    train_memory(replace(SMALL_RUN, steps=1), tmp_path)
    with pytest.raises(ValueError, match=r"holds a run with lr=0\.1, not 0\.2"):
        train_memory(replace(SMALL_RUN, lr=0.2), tmp_path)


def test_training_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    train_memory(replace(SMALL_RUN, steps=2), tmp_path)
    assert torch.get_rng_state().equal(before)


# What a run is


@pytest.mark.parametrize("name", MEMORY_VARIANTS)
def test_a_run_survives_json(name: str) -> None:
    own = memory_variant(name)
    task = replace(SMALL_TASK, **own.pop("task", {}))
    run = replace(SMALL_RUN, **{"streams": "", **own}, name=name, task=task)
    assert MemoryRun.from_dict(json.loads(json.dumps(run.to_dict()))) == run


def test_the_default_task_is_recorded_by_its_name() -> None:
    assert MemoryRun("x").to_dict()["task"]["bigrams"] == "tiny-shakespeare"


def test_variants_of_one_seed_share_tests_batches_and_what_is_frozen() -> None:
    one, other = SMALL_RUN, replace(SMALL_RUN, streams="")
    for name, batch in draw_tests(one).items():
        assert batch.inputs.equal(draw_tests(other)[name].inputs)
    generators = [run.generators()["batches"].get_state() for run in (one, other)]
    assert generators[0].equal(generators[1])
    models = [dict(initial_memory(run).named_parameters()) for run in (one, other)]
    assert all(models[0][name].equal(x) for name, x in models[1].items())


def test_another_seed_changes_tests_and_weights() -> None:
    one, other = SMALL_RUN, replace(SMALL_RUN, seed=4)
    tests = [draw_tests(run)["trained"].inputs for run in (one, other)]
    assert not tests[0].equal(tests[1])
    assert not initial_memory(one).embed.W_E.equal(initial_memory(other).embed.W_E)


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch", -1),
        ("snapshot_every", 1.5),
        ("test_size", 0),
        ("seed", -1),
        ("lr", 0.0),
        ("lr", math.inf),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("momentum", math.nan),
        ("n_layers", 3),
        ("d_model", 0),
        ("positions", "learned"),
    ],
)
def test_an_impossible_run_is_named_with_its_value(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be .*got {re.escape(repr(value))}"):
        replace(SMALL_RUN, **{field: value})


def test_positions_must_hold_twice_the_trained_length() -> None:
    with pytest.raises(ValueError, match="n_ctx=19 must hold twice the trained length, 10"):
        replace(SMALL_RUN, n_ctx=19)


def test_an_unknown_variant_is_named() -> None:
    with pytest.raises(ValueError, match="no variant 'shaw'; there are absolute, relative"):
        memory_variant("shaw")


# Recorded runs


def test_a_run_is_exported_as_it_ships(tmp_path: Path, straight: Path) -> None:
    source, target = tmp_path / "runs", tmp_path / "shipped"
    for seed in (0, 1):
        train_memory(replace(SMALL_RUN, seed=seed), source / f"values-seed{seed}")
    for recorded in load_runs(MemoryRun, source):
        export_run(recorded, target, with_model=recorded.run.seed == 1)
    runs = load_runs(MemoryRun, target)
    assert [(r.run.seed, r.done, r.has_model) for r in runs] == [(0, True, False), (1, True, True)]
    assert runs[1].run == replace(SMALL_RUN, seed=1)
    trained = load_runs(MemoryRun, source)[1]
    assert runs[1].metrics[-1]["trained"]["loss"] == pytest.approx(
        trained.metrics[-1]["trained"]["loss"], abs=1e-6
    )
    for name, weight in runs[1].model().named_parameters():
        assert weight.equal(dict(trained.model().named_parameters())[name].half().float())


@pytest.mark.parametrize("name", ["trained", "longer", "recall", "attention"])
def test_metrics_without_a_part_are_refused(tmp_path: Path, straight: Path, name: str) -> None:
    recorded = load_run(straight, MemoryRun)
    del recorded.metrics[1][name]
    write_record(tmp_path, recorded.run.to_dict(), recorded.starts, recorded.metrics)
    with pytest.raises(ValueError, match=f"step 10 lacks '{name}'"):
        load_run(tmp_path, MemoryRun)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no training runs"):
        load_runs(MemoryRun, tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text('{"run": {"streams": []}, "starts": []}')
    with pytest.raises(ValueError, match="holds no training runs"):  # it has only begun
        load_runs(MemoryRun, tmp_path)
    (tmp_path / "a" / "metrics.jsonl").write_text('{"step": 0}\n')
    with pytest.raises(ValueError, match="no run of a simplified transformer"):
        load_runs(MemoryRun, tmp_path)


def test_an_unfinished_run_is_not_exported(tmp_path: Path) -> None:
    source = tmp_path / "runs"
    train_memory(SMALL_RUN, source / "values-seed3", should_stop=stop_before(15))
    with pytest.raises(ValueError, match="has not reached step 30"):
        export_run(load_runs(MemoryRun, source)[0], tmp_path / "out")
