"""Training: the arithmetic of a step, what a run is, and what it writes down."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from resval_lens.io.files import read_tensors
from resval_lens.models.classifier import ICLClassifier
from resval_lens.models.presets import ICL_VARIANTS, PART_OF_GAIN
from resval_lens.streams import AttentionStream
from resval_lens.tasks.icl import ICLTask
from resval_lens.training.icl import evaluate, train_icl
from resval_lens.training.icl_run import ICLRun, draw_world, initial_model
from resval_lens.training.run_folder import read_metrics
from tests.runs import (
    RUN,
    metrics,
    snapshots,
    steps,
)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``RUN``, trained without interruption."""
    folder = tmp_path_factory.mktemp("straight")
    train_icl(RUN, folder)
    return folder


# What a step does


def by_hand(run: ICLRun) -> tuple[ICLClassifier, list[float]]:
    """SGD written out: each weight times 1 − decay, less lr times its gradient."""
    world, _ = draw_world(run)
    model, generator, losses = initial_model(run), run.generators()["batches"], []
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for _ in range(run.steps):
        batch = world.batch(run.batch, generator)
        loss = F.cross_entropy(model(batch.inputs), batch.targets)
        with torch.no_grad():
            gradients = torch.autograd.grad(loss, list(trained.values()))
            for (name, p), gradient in zip(trained.items(), gradients, strict=True):
                rate = run.lr * (run.v_rate if name == "blocks.1.attn.W_V" else 1)
                p.copy_((1 - run.decay) * p - rate * gradient)
        losses.append(loss.item())
    return model, losses


VARIANTS: dict[str, dict[str, Any]] = {
    "classic": {"streams": ""},
    "values": {"streams": "v"},
    "paper": {"streams": "qkv", "spec": "paper"},
    "detached": {"streams": AttentionStream("v", detach=True)},
    "learned": {"streams": AttentionStream("k", mix="learned_pair")},
    "gate": {"streams": AttentionStream("v", mix="gate")},
    "no decay": {"decay": 0.0},
    "fast values": {"v_rate": 3.0},
    "large values": {"v_size": 2.0},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_training_is_sgd_with_decay(tmp_path: Path, variant: dict[str, Any]) -> None:
    run = replace(RUN, **{"lr": 0.1, "decay": 1e-3, **variant})
    trained = train_icl(run, tmp_path)
    expected, losses = by_hand(run)
    assert trained is not None
    for (name, ours), theirs in zip(trained.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=name)
    means = [sum(losses[i : i + 10]) / 10 for i in (0, 10, 20)]
    assert [line["train_loss"] for line in metrics(tmp_path)[1:]] == pytest.approx(means, rel=1e-5)


def test_larger_values_are_a_larger_start_and_a_faster_rate(tmp_path: Path) -> None:
    """V₁ = g W X is a W that starts g times as large and learns g² times as fast."""
    shared = replace(RUN, lr=0.1, decay=1e-3, streams="")
    gain = train_icl(replace(shared, streams=ICL_VARIANTS["own-root-2"]), tmp_path / "gain")
    parts = {name: value for part in PART_OF_GAIN.values() for name, value in part.items()}
    apart = train_icl(replace(shared, **parts), tmp_path / "apart")  # type: ignore[arg-type]
    assert gain is not None
    assert apart is not None
    for (name, ours), theirs in zip(gain.named_parameters(), apart.parameters(), strict=True):
        factor = 2**0.5 if name == "blocks.1.attn.W_V" else 1
        torch.testing.assert_close(factor * ours, theirs, rtol=1e-4, atol=1e-5, msg=name)
    for part in PART_OF_GAIN.values():  # alone, neither is
        alone = train_icl(replace(shared, **part), tmp_path / next(iter(part)))  # type: ignore[arg-type]
        assert alone is not None
        assert not torch.allclose(alone.readout.W_U, apart.readout.W_U, rtol=1e-4, atol=1e-5)


def test_a_run_of_usual_values_is_written_as_before_they_were_a_setting() -> None:
    assert not {"v_size", "v_rate"} & set(RUN.to_dict())
    fast = replace(RUN, v_rate=2.0)
    assert ICLRun.from_dict(fast.to_dict()) == fast
    assert ICLRun.from_dict(RUN.to_dict()) == RUN


def test_what_is_trained_moves_and_what_is_not_stays(tmp_path: Path) -> None:
    run = replace(RUN, streams=AttentionStream("v", mix="scalar"))
    trained, before = train_icl(run, tmp_path), initial_model(run)
    assert trained is not None
    for (name, new), old in zip(trained.named_parameters(), before.parameters(), strict=True):
        assert new.equal(old) != new.requires_grad, name


def test_the_last_metrics_are_those_of_the_saved_model(straight: Path) -> None:
    model = ICLClassifier.from_pretrained(straight / "model")
    _, tests = draw_world(RUN)
    assert tests.keys() == {"test", "ic", "ic2", "iw"}
    for name, batch in tests.items():
        logits = model(batch.inputs)
        right = sum(
            int(row.argmax()) == int(y) for row, y in zip(logits, batch.targets, strict=True)
        )
        line = metrics(straight)[-1][name]
        assert line["accuracy"] == right / 50
        assert line["loss"] == pytest.approx(
            F.cross_entropy(logits, batch.targets).item(), rel=1e-5
        )


@pytest.mark.parametrize("mix", ["add", "gate"])
@pytest.mark.parametrize("chunk", [7, 50, 500])
def test_evaluation_does_not_depend_on_the_chunk(mix: Any, chunk: int) -> None:
    model = initial_model(replace(RUN, streams=AttentionStream("v", mix=mix)))
    _, tests = draw_world(RUN)
    whole = {name: model(batch.inputs).argmax(-1) for name, batch in tests.items()}
    for name, result in evaluate(model, tests, chunk).items():
        right = (whole[name] == tests[name].targets).float().mean().item()
        assert result["accuracy"] == pytest.approx(right)


def test_the_first_line_is_the_model_before_its_first_step(straight: Path) -> None:
    first = metrics(straight)[0]
    assert (first["step"], first["train_loss"]) == (0, None)
    _, tests = draw_world(RUN)
    assert first["ic"] == evaluate(initial_model(RUN), tests)["ic"]


# What a run is


def test_variants_of_one_seed_share_vectors_tests_and_batches() -> None:
    runs = [ICLRun(name, streams, seed=5, test_size=20) for name, streams in ICL_VARIANTS.items()]
    worlds = [draw_world(run) for run in runs]
    for run, (world, tests) in zip(runs, worlds, strict=True):
        assert world.objects.equal(worlds[0][0].objects)
        assert all(tests[name].inputs.equal(worlds[0][1][name].inputs) for name in tests)
        generators = run.generators()
        assert generators.keys() == {"world", "tests", "weights", "batches"}
        states = [generator.get_state() for generator in generators.values()]
        assert not any(states[0].equal(state) for state in states[1:])


def test_another_seed_changes_vectors_tests_weights_and_batches() -> None:
    runs = [replace(RUN, seed=seed) for seed in (0, 1)]
    (one, one_tests), (other, other_tests) = map(draw_world, runs)
    assert not one.objects.equal(other.objects)
    assert not one_tests["test"].targets.equal(other_tests["test"].targets)
    weights = [initial_model(run).readout.W_U for run in runs]
    assert not weights[0].equal(weights[1])


def test_training_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    train_icl(replace(RUN, steps=2), tmp_path)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_run_survives_json(variant: dict[str, Any]) -> None:
    run = replace(RUN, task=ICLTask(n_pairs=4, noise=0.2), **variant)
    assert ICLRun.from_dict(json.loads(json.dumps(run.to_dict()))) == run


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("steps", 1.5),
        ("batch", -1),
        ("snapshot_every", 0),
        ("test_size", 0),
        ("seed", -1),
        ("seed", "0"),
        ("lr", -0.1),
        ("lr", 0.0),
        ("decay", 1.0),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("decay", float("nan")),
        ("decay", -1e-6),
    ],
)
def test_an_impossible_run_is_named_with_its_value(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be .*got {re.escape(repr(value))}"):
        replace(RUN, **{field: value})


# Snapshots and progress


def test_a_snapshot_is_taken_at_every_interval_and_at_the_end(tmp_path: Path) -> None:
    train_icl(replace(RUN, steps=25), tmp_path, keep_snapshots=True)
    assert steps(tmp_path) == snapshots(tmp_path) == [0, 10, 20, 25]


def test_only_the_newest_snapshot_is_kept_unless_asked(straight: Path) -> None:
    assert steps(straight) == [0, 10, 20, 30]
    assert snapshots(straight) == [30]


def test_a_kept_snapshot_is_the_model_of_its_step(tmp_path: Path) -> None:
    train_icl(RUN, tmp_path / "long", keep_snapshots=True)
    train_icl(replace(RUN, steps=20), tmp_path / "short")
    kept, _ = read_tensors(tmp_path / "long" / "snapshots" / "00000020.safetensors", "snapshot")
    model = ICLClassifier.from_pretrained(tmp_path / "short" / "model")
    assert all(kept[name].equal(p) for name, p in model.named_parameters())


def test_progress_is_told_of_every_snapshot_and_of_every_20th_step(tmp_path: Path) -> None:
    told: list[tuple[int, Any]] = []
    run = replace(RUN, steps=70, snapshot_every=30)
    train_icl(run, tmp_path, progress=lambda step, line: told.append((step, line)))
    assert [step for step, _ in told] == [0, 20, 30, 40, 60, 70]
    assert [line for _, line in told if line is not None] == read_metrics(tmp_path)


def test_a_run_without_metrics_has_none(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
