"""Longer sequences than those of training, and the ``memory lengths`` command."""

import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator
from typer.testing import CliRunner

from resval_lens.analyses.cli.memory import lengths_command
from resval_lens.analyses.papers.memory.lengths import (
    LengthStudy,
    attention_maps,
    largest,
    length_study,
)
from resval_lens.analyses.papers.memory.model.predictions import predict
from resval_lens.analyses.papers.memory.positions import (
    attention_by_position,
    attention_map,
    binned,
    fitted_tau1,
    position_bins,
    predicted_previous,
)
from resval_lens.analyses.papers.memory.tasks.triggers import optimal_loss
from resval_lens.analyses.papers.memory.training import MemoryRun
from resval_lens.training.recorded import load_run
from tests.memory_runs import FLOOR, TASK, constructed, exact_model, made_up, tiny_run, trained

app = typer.Typer()
app.command("curves")(lambda: None)  # typer drops the name of an only command
app.command("lengths")(lengths_command)


# Positions in bins


@given(st.integers(2, 5000), st.integers(1, 300))
def test_bins_cover_every_position_once_and_end_at_the_trained_length(
    longest: int, trained_length: int
) -> None:
    bins = position_bins(longest, trained_length)
    assert [t for first, last in bins for t in range(first, last + 1)] == [*range(1, longest + 1)]
    assert trained_length > longest or trained_length in [last for _, last in bins]
    # Log-spaced: no bin's end is more than √2 times the last one's, but for rounding.
    ends = [last for _, last in bins]
    assert all(b <= math.sqrt(2) * a + 1 for a, b in itertools.pairwise(ends))


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_binned_in_loops(seed: int, lengths: list[int]) -> None:
    rng = np.random.default_rng(seed)
    lengths = [*lengths, 9]
    values = [rng.normal(size=(3, n)) for n in lengths]
    counted = [rng.random((3, n)) < 0.4 for n in lengths]
    bins = [(1, 1), (2, 4), (5, 9)]
    expected = []
    for first, last in bins:
        there = [
            x[row, t - 1]
            for x, mask in zip(values, counted, strict=True)
            for row in range(3)
            for t in range(first, last + 1)
            if t <= x.shape[1] and mask[row, t - 1]
        ]
        expected.append((sum(there) / len(there) if there else None, len(there)))
    found = binned([*map(torch.from_numpy, values)], [*map(torch.from_numpy, counted)], bins)
    assert [count for _, count in found] == [count for _, count in expected]
    for (mean, _), (right, _) in zip(found, expected, strict=True):
        assert mean == (None if right is None else pytest.approx(right, abs=1e-12))


# The constructed head


@pytest.mark.parametrize("tau1", [-1.3, 0.0, 2.2, 6.0, 11.5])
def test_the_fit_recovers_the_strength(tau1: float) -> None:
    masses = [math.exp(tau1) / (math.exp(tau1) + t - 1) for t in range(2, 40)]
    assert fitted_tau1(torch.tensor(masses, dtype=torch.float64)) == pytest.approx(tau1, abs=1e-5)


def test_predictions_beyond_the_trained_length() -> None:
    inside = math.exp(3) / (math.exp(3) + 9)
    for positions in ("absolute", "sinusoidal", "relative"):
        assert predicted_previous(10, 3.0, positions, 10) == pytest.approx(inside)
    assert predicted_previous(11, 3.0, "absolute", 10) == pytest.approx(1 / 11)
    assert predicted_previous(11, 3.0, "relative", 10) == pytest.approx(
        math.exp(3) / (math.exp(3) + 10)
    )
    assert predicted_previous(5, 3.0, "rotary", 10) is None


@pytest.mark.parametrize("positions", ["absolute", "relative"])
def test_attention_of_an_exact_model_is_the_closed_form(positions: str) -> None:
    run = tiny_run(positions, d_model=96, n_ctx=30)
    model = exact_model(run, tau1=2.5)
    batch = TASK.batch(5, Generator().manual_seed(1), 30)
    found = attention_by_position(model, batch)
    assert found["previous_mass"][:, 0].isnan().all()
    for t in range(2, 31):  # the model says it to the float32 crosstalk of its pseudo-inverses
        on = positions == "relative" or t <= TASK.length
        expected = math.exp(2.5) / (math.exp(2.5) + t - 1) if on else 1 / t
        assert found["previous_mass"][:, t - 1].numpy() == pytest.approx(expected, abs=2e-3)
    predicted = predict(
        batch.inputs, TASK.bigrams.log_conditional(FLOOR), 2.5, 30.0, 30.0,
        trained_length=TASK.length, relative=positions == "relative",
    )  # fmt: skip
    tokens = batch.inputs.tolist()
    for row in range(5):
        for t in range(30):
            right = sum(
                float(predicted.induction[row, t, s])
                for s in range(1, t + 1)
                if tokens[row][s - 1] == tokens[row][t]
            )
            assert float(found["target_mass"][row, t]) == pytest.approx(right, abs=2e-2)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = TASK.batch(5, Generator().manual_seed(1), 20)
    model = exact_model(tiny_run("relative", d_model=96, n_ctx=30))
    whole = attention_by_position(model, batch)
    monkeypatch.setattr("resval_lens.analyses.papers.memory.positions.CHUNK", 2 * 20**2)
    parts = attention_by_position(model, batch)
    for name, x in whole.items():
        torch.testing.assert_close(parts[name], x, equal_nan=True)


def test_a_map_is_the_pattern_up_to_the_diagonal() -> None:
    run = tiny_run("relative", d_model=96, n_ctx=30)
    entry = attention_map(exact_model(run, 2.5), TASK, 24, seed=3)
    tokens = TASK.batch(1, Generator().manual_seed(3), 24).inputs
    assert "".join(entry.tokens) == "".join(TASK.bigrams.tokens[i] for i in tokens[0])
    predicted = predict(tokens, TASK.bigrams.log_conditional(FLOOR), 2.5, 30.0, 30.0)
    for rows, pattern in zip(entry.layers, (predicted.previous, predicted.induction), strict=True):
        for t, row in enumerate(rows):
            assert row == pytest.approx(pattern[0, t, : t + 1].tolist(), abs=2e-2)
    image = attention_maps({"relative": entry}).axes[0].get_images()[0]
    assert np.isnan(image.get_array().filled(np.nan)[0, 1])  # ahead is blank
    assert image.get_array()[3, 2] == entry.layers[0][3][2]


# The study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> LengthStudy:
    folder = tmp_path_factory.mktemp("constructed")
    runs = [constructed(folder, name) for name in ("absolute", "relative", "relative-values")]
    return length_study(runs, (12, 24, 30, 31), tokens=1200, attention=6, seed=5)


def test_relative_positions_keep_and_absolute_ones_forget(study: LengthStudy) -> None:
    assert (study.lengths, study.skipped) == ([12, 24, 30], [31])
    assert study.sequences == [100, 50, 40]
    absolute, relative, values = study.models
    for model in (relative, values):
        assert [row.scores.accuracy for row in model.lengths] == pytest.approx([1, 1, 1], abs=0.03)
        assert model.tau1 == pytest.approx(6, abs=0.05)
    assert absolute.lengths[0].scores.accuracy > 0.97
    beyond = [row.accuracy for row in absolute.bins if row.first > 12]
    # Its head is off at positions beyond, but pairs at trained positions are remembered.
    assert all(accuracy < 1 for accuracy in beyond)
    last = absolute.bins[-1]
    assert last.previous_mass == pytest.approx(last.predicted, abs=2e-3)
    assert last.predicted == pytest.approx(
        np.mean([1 / t for t in range(last.first, last.last + 1)])
    )
    assert relative.bins[-1].previous_mass > 0.9


def test_numbers_at_a_length_in_loops(tmp_path: Path) -> None:
    folder = trained(tmp_path, tiny_run("rotary", steps=2))
    recorded = load_run(folder / "rotary-seed0", MemoryRun)
    study = length_study([recorded], (6, 15), tokens=90, attention=3, seed=7)
    generator, model = Generator().manual_seed(7), recorded.model()
    batches = [TASK.batch(15, generator, 6), TASK.batch(6, generator, 15)]
    at: dict[int, list[float]] = {t: [] for t in range(1, 16)}
    for batch, row in zip(batches, study.models[0].lengths, strict=True):
        hits, losses, excesses = [], [], []
        with torch.no_grad():
            logits = model(batch.inputs).double().numpy()
        best = optimal_loss(TASK, batch).numpy()
        for i, tokens in enumerate(batch.inputs.tolist()):
            for t in range(len(tokens)):
                right = int(batch.targets[i, t])
                loss = -logits[i, t, right] + math.log(sum(map(math.exp, logits[i, t])))
                losses.append(loss)
                excesses.append(loss - best[i, t])
                if batch.occurrence[i, t] >= 2:
                    hits.append(float(max(range(6), key=lambda v: logits[i, t, v]) == right))
                    at[t + 1].append(hits[-1])
        assert row.count == len(hits)
        assert row.scores.accuracy == pytest.approx(np.mean(hits))
        assert row.scores.loss == pytest.approx(np.mean(losses), abs=1e-5)
        assert row.scores.excess == pytest.approx(np.mean(excesses), abs=1e-5)
    for row in study.models[0].bins:
        there = [x for t in range(row.first, row.last + 1) for x in at[t]]
        assert row.accuracy_count == len(there)
        assert row.accuracy == (pytest.approx(np.mean(there)) if there else None)
        assert row.predicted is None


def test_what_is_said_follows_from_the_numbers(study: LengthStudy) -> None:
    said = "\n".join(study.sentences())
    rows = study.over_seeds["absolute"].lengths
    share = rows[-1].scores.accuracy.mean / rows[0].scores.accuracy.mean
    assert f"absolute, trained on 12 tokens, keeps {share:.0%} of its in-context" in said
    assert "Skipped lengths, beyond the models' context: 31." in said
    assert "the construction with τ1 = 6.0" in said
    assert "relative has 1.000 without a value stream and 1.000 with it" in said


def test_the_figure_draws_the_bins(study: LengthStudy) -> None:
    axes = study.figures()["memory-lengths.png"].axes[0]
    line = next(line for line in axes.get_lines() if line.get_label() == "absolute")
    drawn = [row.accuracy for row in study.models[0].bins if row.accuracy is not None]
    assert list(line.get_ydata()) == drawn


def test_what_is_refused(tmp_path: Path) -> None:
    one = constructed(tmp_path, "relative")
    for match, wrong in {
        "lengths must be numbers of tokens from 2 up": {"lengths": (1, 12)},
        r"lengths: the models have n_ctx=30; got \[64\]": {"lengths": (64,)},
        "tokens must be 1 or more; got 0": {"tokens": 0},
        "attention must be 1 or more; got 0": {"attention": 0},
    }.items():
        with pytest.raises(ValueError, match=match):
            length_study([one], **{"lengths": (12,), **wrong})
    with pytest.raises(ValueError, match="none of these runs has a trained model"):
        length_study([made_up("relative", 0)])
    with pytest.raises(ValueError, match="the same variant and seed"):
        length_study([one, replace(one)])


# The command


def test_the_command(tmp_path: Path) -> None:
    for name in ("absolute", "relative", "relative-values"):
        constructed(tmp_path / "runs", name)
    folders = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path), "--quiet"]
    sizes = ["--lengths", "12,24", "--tokens", "300", "--attention", "2"]
    result = CliRunner().invoke(app, ["lengths", *folders, *sizes], catch_exceptions=False)
    assert result.exit_code == 0
    assert max(map(len, result.stdout.replace(str(tmp_path), "").splitlines())) <= 80
    report = json.loads((tmp_path / "memory-lengths.json").read_text())
    assert [model["variant"] for model in report["models"]] == [
        "absolute", "relative", "relative-values",
    ]  # fmt: skip
    maps = json.loads((tmp_path / "memory-attention.json").read_text())["maps"]
    assert list(maps) == ["absolute", "relative"]
    assert len(maps["relative"]["layers"][1]) == 24
    for name in ("memory-lengths.png", "memory-attention.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    printed = re.sub(r"\s+", "", result.stdout)
    for sentence in report["found"]:
        assert re.sub(r"\s+", "", sentence) in printed
    with pytest.raises(ValueError, match=r"seed must be a whole number from 0 to \d+; got -1"):
        CliRunner().invoke(app, ["lengths", *folders, "--seed", "-1"], catch_exceptions=False)


def test_each_cell_of_a_map_is_the_largest_it_stands_for() -> None:
    x = np.array([[1.0, np.nan, np.nan], [2.0, 5.0, np.nan], [3.0, 0.0, 4.0]])
    np.testing.assert_array_equal(largest(x, 2), [[5, np.nan], [3, 4]])
    np.testing.assert_array_equal(largest(x, 1), x)
