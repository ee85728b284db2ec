"""Outputs that training never had: what is asked, and what constructed models must answer."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator

from resval_lens.analyses.cli.memory import HELD_OUT_VARIANTS, held_out_command
from resval_lens.analyses.papers.memory.held_out import (
    Both,
    HeldOut,
    HeldOutModel,
    Measured,
    constructed_studies,
    held_out_over_seeds,
    held_out_study,
    held_out_tests,
    measured_on,
    output_recall,
)
from resval_lens.analyses.papers.memory.tasks.bigrams import Bigrams
from resval_lens.analyses.papers.memory.tasks.triggers import TriggerTask
from resval_lens.analyses.papers.memory.training import MemoryRun, train_memory
from resval_lens.analyses.results.seeds import Spread
from resval_lens.training.recorded import load_runs
from tests.test_memory_knowledge import assert_fits, some_bigrams

TASK = TriggerTask(some_bigrams(8), length=14, n_triggers=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ordinary run, and one with a value stream that never saw the last outputs."""
    folder = tmp_path_factory.mktemp("runs")
    held_out = replace(TASK, output_range=(0.0, 0.75))
    for name, streams, task in (
        ("relative", "", TASK),
        ("relative-values-held-out", "v", held_out),
    ):
        run = MemoryRun(
            name, "relative", streams, 0, task,
            d_model=32, n_ctx=40, steps=4, batch=16, snapshot_every=4, test_size=8,
        )  # fmt: skip
        train_memory(run, folder / run.folder_name)
    return folder


def test_outputs_are_among_the_first_three_quarters_or_the_rest():
    tests = held_out_tests(TASK, 30, Generator().manual_seed(0))
    assert sorted(set(tests.seen[1].outputs.flatten().tolist())) == list(range(6))
    assert sorted(set(tests.held_out[1].outputs.flatten().tolist())) == [6, 7]
    for task, batch in (tests.seen, tests.held_out):
        assert batch.inputs.shape == (30, 14)
        assert task.trigger_tokens == TASK.trigger_tokens


def test_an_output_that_no_memory_holds_is_never_copied():
    """To the last position: an exact model answers as the closed form does."""
    every, first = constructed_studies(TASK, 40, Generator().manual_seed(1))
    for row in (every, first):
        assert row.tests.seen.accuracy == row.predicted.seen
        assert row.tests.held_out.accuracy == row.predicted.held_out
    assert every.recall == Both(seen=1.0, held_out=1.0)
    assert first.recall == Both(seen=1.0, held_out=0.0)
    # In sequences this short that begin with a trigger, it seems to follow itself.
    assert every.tests.held_out.accuracy > 0.5
    assert first.tests.held_out.accuracy < 0.1
    right = every.tests.held_out
    assert right.says_seen <= 1 - right.accuracy + 1e-9
    assert first.tests.seen.accuracy > 0.5


def test_constructed_models_are_asked_about_triggers_that_both_know():
    """Though the most frequent tokens are among the last."""
    plain = some_bigrams(8)
    unigram = torch.tensor([0.1, 0.1, 0.04, 0.03, 0.02, 0.01, 0.3, 0.4], dtype=torch.float64)
    bigrams = Bigrams.from_probabilities(plain.tokens, unigram, plain.conditional)
    task = TriggerTask(bigrams, length=14, n_triggers=2)
    assert task.trigger_tokens == (7, 6)
    every, first = constructed_studies(task, 40, Generator().manual_seed(1))
    for row in (every, first):
        assert row.tests.seen.accuracy == 1.0


def test_what_is_measured_is_counted_by_hand(runs):
    model = load_runs(MemoryRun, runs)[1].model()
    task, batch = held_out_tests(TASK, 6, Generator().manual_seed(2)).held_out
    found = measured_on(model, task, batch)
    with torch.no_grad():
        logits, cache = model.run_with_cache(batch.inputs)
    beta = cache["pattern", 1][:, 0]
    hits, losses, says_seen, target = [], [], [], []
    for b in range(6):
        for t in range(14):
            if not batch.in_context[b, t]:
                continue
            answer, right = int(logits[b, t].argmax()), int(batch.targets[b, t])
            hits.append(answer == right)
            says_seen.append(answer < 6)
            losses.append(-float(logits[b, t].double().log_softmax(-1)[right]))
            target.append(
                sum(
                    float(beta[b, t, s])
                    for s in range(1, t + 1)
                    if batch.inputs[b, s - 1] == batch.inputs[b, t]
                )
            )
    assert found.accuracy == pytest.approx(np.mean(hits))
    assert found.in_context == pytest.approx(np.mean(losses), abs=1e-5)
    assert found.says_seen == pytest.approx(np.mean(says_seen))
    assert found.target == pytest.approx(np.mean(target), abs=1e-6)


def test_recall_of_the_output_memory_is_an_argmax_over_tokens(runs):
    model = load_runs(MemoryRun, runs)[1].model()
    weights = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    hits = []
    for k in range(8):
        w = weights["embed.W_E"][k]
        value = w @ weights["blocks.1.attn.W_V"][0] + w @ weights["blocks.0.attn.W_V"][0]
        said = value @ weights["blocks.1.attn.W_O"][0] @ weights["unembed.W_U"]
        hits.append(int(said.argmax()) == k)
    assert output_recall(model, TASK) == Both(np.mean(hits[:6]), np.mean(hits[6:]))


def test_means_over_seeds_are_of_each_test_and_recall():
    def one(seed: int, accuracy: float) -> HeldOutModel:
        tests = Both(*(Measured(accuracy + i, None, None, None) for i in range(2)))
        return HeldOutModel("a", seed, None, tests, Both(1.0, 0.0))

    (row,) = held_out_over_seeds([one(0, 0.0), one(1, 2.0)])
    assert row.seeds == [0, 1]
    assert row.tests.seen.measured.accuracy == Spread({0: 0.0, 1: 2.0}, mean=1.0, sd=1.0)
    assert row.tests.held_out.measured.accuracy.mean == 2.0
    assert row.tests.held_out.measured.in_context.mean is None
    assert row.tests.held_out.recall == Spread({0: 0.0, 1: 0.0}, mean=0.0, sd=0.0)


def test_the_table_of_three_seeds_fits_in_80_columns_and_says_what_is_tested():
    names = (*HELD_OUT_VARIANTS, "constructed, 75% known")
    rows = []
    for name in names:
        for seed in range(3):
            scores = Measured(seed / 2, 3 + seed / 3, 0.5 + seed / 9, seed / 4)
            late = replace(scores, accuracy=0.25 - seed / 8)
            rows.append(HeldOutModel(name, seed, None, Both(scores, late), Both(1.0, seed / 9)))
    over_seeds = held_out_over_seeds(rows[: 3 * len(HELD_OUT_VARIANTS)])
    over_seeds += held_out_over_seeds(rows[-3:-2])
    study = HeldOut(0, 0.75, 1, rows, over_seeds)
    text = assert_fits(study.tables(), names)
    assert ".12±.10" in text
    assert text.count(" 3.33±.27 ") == 2 * len(HELD_OUT_VARIANTS)
    assert "Constructed models are tested on triggers of their own" in " ".join(text.split())
    said = study.sentences()
    assert said[0] == (
        "absolute (3 seeds): in-context accuracy falls from 0.50 ± 0.41 to 0.12 ± 0.10 on "
        "held-out outputs; 25% ± 20% of its attention is on the place (recall of W_O²: "
        "1.00 ± 0.00, 0.11 ± 0.09)."
    )
    assert said[-1].startswith("constructed, 75% known: in-context accuracy")


def test_the_command_sets_runs_beside_constructed_models(runs, tmp_path, capsys):
    held_out_command(runs=runs, sequences=8, to=tmp_path, quiet=True)
    study = json.loads((tmp_path / "memory-held-out.json").read_text())
    assert [(row["name"], row["output_range"]) for row in study["models"]] == [
        ("relative", [0.0, 1.0]), ("relative-values-held-out", [0.0, 0.75]),
        ("constructed", None), ("constructed, 75% known", None),
    ]  # fmt: skip
    assert [row["seed"] for row in study["models"]] == [0] * 4
    assert (tmp_path / "memory-held-out.png").stat().st_size > 5_000
    printed = capsys.readouterr().out
    assert "constructed, 75% known: in-context accuracy falls from" in printed.replace("\n", " ")
    assert all(len(line) <= 80 for line in printed.splitlines() if "/" not in line)
    assert "…" not in printed
    held_out_command("relative", runs=runs, sequences=4, to=tmp_path, quiet=True)
    study = json.loads((tmp_path / "memory-held-out.json").read_text())
    assert [row["name"] for row in study["models"]][:2] == ["relative", "constructed"]
    with pytest.raises(ValueError, match="there is no run of 'absolute'"):
        held_out_command("relative,absolute", runs=runs, to=tmp_path, quiet=True)
    with pytest.raises(ValueError, match="sequences must be 1 or more; got 0"):
        held_out_command(runs=tmp_path / "none", sequences=0, to=tmp_path, quiet=True)
    capsys.readouterr()


def test_runs_must_be_of_one_task_and_sequences_there(runs, tmp_path):
    found = load_runs(MemoryRun, runs)
    other = MemoryRun(
        "absolute", "absolute", task=replace(TASK, length=9), d_model=16, n_ctx=20, steps=1,
        batch=2, snapshot_every=1, test_size=2,
    )  # fmt: skip
    train_memory(other, tmp_path / other.folder_name)
    with pytest.raises(ValueError, match=r"absolute-seed0 has d_model=16, .*-seed0 32; runs"):
        held_out_study([*found, *load_runs(MemoryRun, tmp_path)])
    for setting, value in {"triggers": "drawn", "n_triggers": 1, "candidates": (0, 1, 2)}.items():
        run = replace(found[0].run, name="mine", task=replace(TASK, **{setting: value}))
        said = f"other task.{setting}|task.{setting}="
        with pytest.raises(ValueError, match=f"has ({said}).*must agree in it"):
            held_out_study([found[0], replace(found[0], run=run)])
    with pytest.raises(ValueError, match="sequences must be 1 or more; got 0"):
        held_out_study(found, 0)
    with pytest.raises(ValueError, match="runs must hold at least one run"):
        held_out_study([])


@pytest.mark.parametrize("seed", [-1, 99999999999999999999])
def test_seeds_that_cannot_be_are_refused(seed, runs, tmp_path):
    for asked in (lambda: held_out_study(load_runs(MemoryRun, runs), seed=seed),
                  lambda: held_out_command(runs=tmp_path / "none", seed=seed)):  # fmt: skip
        with pytest.raises(ValueError, match=f"^seed must be a whole number from 0 .* got {seed}$"):
            asked()
