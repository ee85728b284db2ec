"""Capitals and countries: the task, the prompts, and what a constructed model must answer."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from resval_lens.analyses.cli.memory import analogies_command
from resval_lens.analyses.papers.memory.analogies import (
    TIMES,
    Longer,
    OfGroup,
    Recalled,
    analogies_over_seeds,
    analogies_study,
    by_rank,
    check_variants,
    longer,
)
from resval_lens.analyses.papers.memory.capitals import (
    Capital,
    analogy_prompts,
    answer_summary,
    attention_to_said,
    by_capital,
    capitals_task,
    own_countries,
    with_unknown,
)
from resval_lens.analyses.papers.memory.construction import Strengths, constructed_model
from resval_lens.analyses.papers.memory.model.model import MemoryTransformer
from resval_lens.analyses.papers.memory.tasks.analogies import Pair, analogy_task, generated_pairs
from resval_lens.analyses.papers.memory.tasks.triggers import TriggerTask
from resval_lens.analyses.papers.memory.training import MemoryRun, finished_run, train_memory
from resval_lens.training.recorded import load_runs
from resval_lens.training.run import TrainableRun
from resval_lens.training.run_folder import record_start
from tests.test_memory_knowledge import assert_fits, some_bigrams

PAIRS = generated_pairs(6, 0)
TASK = capitals_task(PAIRS, n_triggers=2, length=16)


def oracle(tau3: float, tau2: float = 40.0) -> MemoryTransformer:
    """An exact induction head that knows every country: a gap of log 1000 nats."""
    return constructed_model(
        TASK.bigrams.log_conditional(1e-3), Generator().manual_seed(0),
        n_ctx=32, strengths=Strengths(40.0, tau2, tau3),
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, streams in (("relative", ""), ("relative-values", "v")):
        run = MemoryRun(
            name, "relative", streams, 0, TASK,
            d_model=24, n_ctx=40, steps=3, batch=8, snapshot_every=3, test_size=8,
        )  # fmt: skip
        train_memory(run, folder / run.folder_name)
    return folder


def test_capitals_are_as_frequent_as_zipf_says():
    pairs = [Pair("A", "x"), Pair("B", "y"), Pair("C", "x")]
    bigrams = capitals_task(pairs, n_triggers=1, zipf=2.0).bigrams
    weights = np.array([1, 1 / 4, 1 / 9])
    weights /= weights.sum()
    assert bigrams.tokens == ("A", "B", "C", "x", "y")
    assert bigrams.conditional[3].numpy() == pytest.approx([*weights, 0, 0])
    assert bigrams.conditional[4].numpy() == pytest.approx([*weights, 0, 0])
    assert bigrams.conditional[:3, 3:].tolist() == [[1, 0], [0, 1], [1, 0]]
    countries = [weights[0] + weights[2], weights[1]]
    assert bigrams.unigram.numpy() == pytest.approx([*(weights / 2), *(np.array(countries) / 2)])
    # Stationary: a sequence is as likely to be anywhere after a step.
    step = bigrams.unigram @ bigrams.conditional
    assert step.numpy() == pytest.approx(bigrams.unigram.numpy())


def test_without_zipf_it_is_the_task_of_equal_capitals():
    ours, plain = capitals_task(PAIRS, 2, 16, 0.1, zipf=0.0), analogy_task(PAIRS, 2, 16, 0.1)
    assert torch.allclose(ours.bigrams.conditional, plain.bigrams.conditional)
    assert torch.allclose(ours.bigrams.unigram, plain.bigrams.unigram)
    assert (ours.candidates, ours.output_tokens) == (plain.candidates, plain.output_tokens)
    with pytest.raises(ValueError, match="zipf must be a finite number from 0 up; got -1"):
        capitals_task(PAIRS, zipf=-1)


def test_own_countries_are_those_of_the_pairs():
    names = TASK.bigrams.tokens
    assert [names[i] for i in own_countries(TASK)] == [pair.second for pair in PAIRS]
    with pytest.raises(ValueError, match="task must be of capitals and countries"):
        own_countries(TriggerTask(some_bigrams()))


@settings(max_examples=25)
@given(st.integers(0, 3), st.booleans(), st.booleans(), st.integers(0, 2**20))
def test_prompts_say_what_they_should(times, right, some, seed):
    queries = [1, 4] if some else None
    prompts = analogy_prompts(
        TASK, times, Generator().manual_seed(seed), right=right, each=3, queries=queries
    )
    own = own_countries(TASK).tolist()
    assert prompts.tokens.shape == ((2 if some else 6) * 3, 4 * times + 3)
    for i, tokens in enumerate(prompts.tokens.tolist()):
        query, said = int(prompts.query[i]), int(prompts.said[i])
        assert int(prompts.own[i]) == own[query]
        assert (said == own[query]) == right
        assert said >= 6
        for block in range(times + 1):
            capital, country, asked = tokens[4 * block : 4 * block + 3]
            assert asked == query
            assert country == own[capital]
            assert country not in (own[query], said)
            assert not some or capital not in (1, 4)
            if block < times:
                assert tokens[4 * block + 3] == said
    assert prompts.query.bincount().unique().tolist() in ([3], [0, 3])


@pytest.mark.parametrize(("tau3", "believed"), [(5.0, 0.0), (9.0, 1.0)])
def test_the_context_is_believed_where_it_weighs_more_than_knowledge(tau3, believed):
    """However often it says it: all that ever followed A is B. The gap is log 1000 = 6.9."""
    model = oracle(tau3)
    for times in (1, 4):
        prompts = analogy_prompts(TASK, times, Generator().manual_seed(times))
        found = answer_summary(model, prompts)
        assert found.margin == pytest.approx(tau3 - np.log(1_000), abs=1e-6)
        assert found.context_wins == found.said == believed
        assert found.own == 1 - believed
    unsaid = answer_summary(model, analogy_prompts(TASK, 0, Generator().manual_seed(0)))
    # Nothing matches A: attention is even over three tokens, of which none is B or its own.
    assert unsaid.margin == pytest.approx(-np.log(1_000), abs=1e-6)
    assert unsaid.own == 1


def test_answers_are_counted_by_hand(runs):
    model = load_runs(MemoryRun, runs)[0].model()
    prompts = analogy_prompts(TASK, 2, Generator().manual_seed(0))
    with torch.no_grad():
        last = model(prompts.tokens)[:, -1].double().numpy()
    p = np.exp(last) / np.exp(last).sum(1, keepdims=True)
    own, said = prompts.own.tolist(), prompts.said.tolist()
    rows = range(len(own))
    expected = {
        "own": np.mean([last[i].argmax() == own[i] for i in rows]),
        "said": np.mean([last[i].argmax() == said[i] for i in rows]),
        "p_own": np.mean([p[i, own[i]] for i in rows]),
        "p_said": np.mean([p[i, said[i]] for i in rows]),
        "margin": np.mean([last[i, said[i]] - last[i, own[i]] for i in rows]),
        "context_wins": np.mean([last[i, said[i]] > last[i, own[i]] for i in rows]),
    }
    assert vars(answer_summary(model, prompts)) == pytest.approx(expected, abs=1e-5)


def test_an_unknown_capital_is_drawn_anew_and_finds_no_place():
    model = oracle(9.0, tau2=6.0)
    before = model.embed.W_E.clone()
    stranger = with_unknown(model, [1, 4], Generator().manual_seed(7))
    assert torch.equal(model.embed.W_E, before)
    changed = (before != stranger.embed.W_E).any(1).nonzero().flatten().tolist()
    assert changed == [1, 4]
    std = float(stranger.embed.W_E[[1, 4]].std())
    assert std == pytest.approx(model.cfg.embed_std, rel=0.25)
    prompts = analogy_prompts(TASK, 2, Generator().manual_seed(0), queries=[1, 4])
    known, unknown = (attention_to_said(m, prompts) for m in (model, stranger))
    assert known.previous == pytest.approx(1, abs=1e-6)
    match = 2 * np.exp(6.0)
    assert known.target == pytest.approx(match / (match + 9))
    # B is known, and looks back. A is not; as far as it is like known tokens, it is like itself.
    assert unknown.previous == pytest.approx(1, abs=1e-3)
    assert unknown.target < known.target - 0.2


def test_attention_is_from_b_to_a_and_from_a_to_b(runs):
    model = load_runs(MemoryRun, runs)[0].model()
    prompts = analogy_prompts(TASK, 2, Generator().manual_seed(0))
    _, cache = model.run_with_cache(prompts.tokens)
    first, last = cache["pattern", 0][:, 0], cache["pattern", 1][:, 0]
    found = attention_to_said(model, prompts)
    previous = [float(row[t, t - 1]) for row in first for t in (3, 7)]
    target = [float(row[10, 3] + row[10, 7]) for row in last]
    assert found.previous == pytest.approx(np.mean(previous), abs=1e-6)
    assert found.target == pytest.approx(np.mean(target), abs=1e-6)


def test_capitals_are_told_apart_by_frequency():
    """Of six, ∝ 1/k: the first has 41% and the second 20%, more than half together."""
    model = oracle(9.0)
    rows = by_capital(model, TASK, Generator().manual_seed(0), each=2)
    assert [row.capital for row in rows] == [pair.first for pair in PAIRS]
    assert [row.frequent for row in rows] == [True, True, False, False, False, False]
    harmonic = sum(1 / k for k in range(1, 7))
    assert [row.frequency for row in rows] == pytest.approx([1 / k / harmonic for k in range(1, 7)])
    assert all(row.top1 == row.overridden == 1 for row in rows)
    # Attention is even over three tokens; each says itself with 9/3 nats.
    others = (3 * np.exp(3.0) + (12 - 1 - 3)) * 1e-3
    assert rows[0].p_own == pytest.approx(1 / (1 + others))


def test_ranks_double_from_group_to_group():
    rows = [Capital(str(i), 0.0, False, float(i), 0.0, float(-i)) for i in range(1, 8)]
    found = by_rank(rows)
    assert [(row.first, row.last) for row in found] == [(1, 1), (2, 2), (3, 4), (5, 7)]
    assert [row.p_own for row in found] == [1, 2, 3.5, 6]
    assert [row.overridden for row in found] == [-1, -2, -3.5, -6]


def test_longer_sequences_are_measured_by_halves(runs):
    model = load_runs(MemoryRun, runs)[0].model()
    found = longer(model, TASK, 12, Generator().manual_seed(3))
    batch = TASK.batch(12, Generator().manual_seed(3), 32)
    with torch.no_grad():
        top = model(batch.inputs).argmax(-1)
    for name, places in (("trained", range(16)), ("beyond", range(16, 32))):
        hits = [int(top[b, t]) == int(batch.targets[b, t])
                for b in range(12) for t in places if batch.in_context[b, t]]  # fmt: skip
        assert vars(found)[name] == pytest.approx(np.mean(hits))


def test_a_study_has_every_measure_of_every_model(runs):
    study = analogies_study(load_runs(MemoryRun, runs), 4)
    assert [row.name for row in study.models] == ["relative", "relative-values"]
    assert study.pairs == 6
    for row in study.models:
        for answers in (row.wrong, row.right, row.unknown):
            assert len(answers) == len(TIMES)
        recall = row.recall
        assert recall["frequent"].capitals + recall["rare"].capitals == 6
        mean = np.mean([each.p_own for each in row.by_capital])
        assert recall["all"].means.p_own == pytest.approx(mean)
    again = analogies_study(load_runs(MemoryRun, runs), 4)
    assert json.dumps(again.to_dict()) == json.dumps(study.to_dict())
    for row, values in zip(study.models, study.over_seeds, strict=True):
        (mean,) = values.wrong[2].said.by_seed.values()
        assert mean == values.wrong[2].said.mean == row.wrong[2].said
        assert values.recall["all"].top1.mean == row.recall["all"].means.top1
        assert values.to_dict()["wrong_2_said"] == {"by_seed": {"0": mean}, "mean": mean, "sd": 0.0}


def test_seeds_are_averaged(runs):
    row = analogies_study(load_runs(MemoryRun, runs), 4).models[0]
    wrong = list(row.wrong)
    wrong[1] = replace(wrong[1], own=wrong[1].own + 2)
    other = replace(row, seed=1, wrong=wrong)
    (mean,) = analogies_over_seeds([row, other])
    assert mean.seeds == [0, 1]
    assert mean.wrong[1].own.mean == pytest.approx(row.wrong[1].own + 1)
    assert mean.wrong[1].own.sd == pytest.approx(1)


def test_tables_of_three_seeds_fit_in_80_columns(runs):
    study = analogies_study(load_runs(MemoryRun, runs), 4)
    row = study.models[0]
    names = ("absolute", "relative-values", "sinusoidal-values")
    rows = []
    for name in names:
        for seed in range(3):
            means = Recalled(0.9 + seed / 30, seed / 2, seed / 4)
            recall = {group: OfGroup(means, own.capitals) for group, own in row.recall.items()}
            halves = Longer(1.0, None if seed == 1 else 0.25)
            rows.append(replace(row, name=name, seed=seed, recall=recall, longer=halves))
    study = replace(study, models=rows, over_seeds=analogies_over_seeds(rows))
    text = assert_fits(study.tables(), names)
    assert text.count(" .93±.03 ") == text.count(".25±.00 (2/3)") == 3
    assert "t > 16" in text
    said = study.sentences()
    assert said[0].startswith("absolute (3 seeds): 50% ± 41% of countries are recalled without")
    assert said[1] == (
        "absolute (3 seeds): in-context accuracy is 1.00 ± 0.00 within the trained length and "
        "0.25 ± 0.00 (2 of 3 seeds) beyond."
    )


def test_only_a_finished_run_that_is_just_what_is_planned_is_read(runs, tmp_path):
    (recorded, _) = load_runs(MemoryRun, runs)
    run = recorded.run
    found = finished_run(runs, run)
    assert found is not None
    assert found.run == run
    for other in ({"steps": 5}, {"lr": 0.05}, {"batch": 16}, {"seed": 1}, {"name": "absolute"}):
        assert finished_run(runs, replace(run, **other)) is None
    assert finished_run(tmp_path, run) is None
    with pytest.raises(ValueError, match=r"on another task \(other bigrams\); choose another"):
        finished_run(runs, replace(run, task=capitals_task(PAIRS, 2, 16, zipf=0.5)))
    folder = tmp_path / run.folder_name
    folder.mkdir()
    record_start(folder, run.to_dict())
    assert finished_run(tmp_path, run) is None  # stopped before its first metrics
    lines = (runs / run.folder_name / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(lines)
    assert finished_run(tmp_path, run) is None  # before its first snapshot; no model


def test_runs_of_several_settings_are_not_averaged(runs):
    first, second = load_runs(MemoryRun, runs)
    other = replace(second, run=replace(second.run, lr=0.05))
    with pytest.raises(ValueError, match=r"relative-values-seed0 has lr=0.05"):
        analogies_study([first, other])


@pytest.mark.parametrize("name", ["relative-drawn", "absolute-held-out"])
def test_variants_with_a_task_of_their_own_are_refused(name, tmp_path):
    check_variants(["absolute", "one-layer"])
    with pytest.raises(ValueError, match=f"variants: {name} has a task of its own; choose among"):
        analogies_command(**SMALL | {"variants": f"relative, {name}"}, runs=tmp_path, to=tmp_path)
    with pytest.raises(ValueError, match="no variant 'none'; there are absolute"):
        check_variants(["none"])


SMALL: dict[str, Any] = {
    "variants": "relative", "length": 16, "n_triggers": 2, "sequences": 4,
    "d_model": 24, "batch": 4, "steps": 2, "quiet": True,
}  # fmt: skip


def train_here(planned: Sequence[TrainableRun[Any]], folder: Path, *_: Any) -> None:
    for run in planned:
        assert isinstance(run, MemoryRun)
        train_memory(run, folder / run.folder_name)


BARS = "resval_lens.analyses.cli.training_bars.train_with_bars"


def test_the_command_reads_finished_runs_and_trains_others(tmp_path, capsys, monkeypatch):
    some = SMALL | {"pairs": 6, "runs": tmp_path / "runs", "to": tmp_path}
    monkeypatch.setattr(BARS, train_here)
    analogies_command(**some)

    def never(*_: Any) -> None:
        raise AssertionError("there is nothing to train")

    monkeypatch.setattr(BARS, never)
    analogies_command(**some)
    study = json.loads((tmp_path / "memory-analogies.json").read_text())
    assert study["source"] == "generated"
    assert [row["steps"] for row in study["models"]] == [2]
    assert (tmp_path / "memory-analogies.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "relative: " in printed
    assert "…" not in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if "/" not in line)

    asked = []

    def noted(planned: Sequence[TrainableRun[Any]], folder: Path, *_: Any) -> None:
        asked.extend(run.folder_name for run in planned)
        train_here(planned, folder)

    monkeypatch.setattr(BARS, noted)
    analogies_command(**some | {"variants": "relative, relative-values"})
    assert asked == ["relative-values-seed0"]
    analogies_command(**some | {"steps": 4})  # goes on
    study = json.loads((tmp_path / "memory-analogies.json").read_text())
    assert [(row["name"], row["steps"]) for row in study["models"]] == [("relative", 4)]
    with pytest.raises(ValueError, match=r"holds a run with lr=0.2, not 0.05; choose another"):
        analogies_command(**some | {"steps": 4, "lr": 0.05})
    with pytest.raises(ValueError, match="relative-seed0 holds a run on another task"):
        analogies_command(**some | {"steps": 4, "zipf": 0.0})
    capsys.readouterr()


def test_the_command_trains_on_the_pairs_of_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(BARS, train_here)
    path = tmp_path / "words.txt"
    lines = [f"{a.first} {a.second} {b.first} {b.second}" for a, b in pairwise(PAIRS)]
    path.write_text("\n".join([": capital-world", *lines, ": other", lines[0]]) + "\n")
    analogies_command(path, **SMALL, runs=tmp_path / "runs", to=tmp_path / "out")
    (recorded,) = load_runs(MemoryRun, tmp_path / "runs")
    assert recorded.run.task.to_dict() == TASK.to_dict()
    assert (recorded.run.lr, recorded.run.batch, recorded.run.n_ctx) == (0.2, 4, 512)
    study = json.loads((tmp_path / "out" / "memory-analogies.json").read_text())
    assert study["source"] == "words.txt"
    with pytest.raises(ValueError, match="section 'none' is not there"):
        analogies_command(path, section="none", **SMALL, runs=tmp_path / "runs", to=tmp_path)
    capsys.readouterr()


def test_options_that_would_do_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^--section family is for --analogies: add "):
        analogies_command(section="family", runs=tmp_path, to=tmp_path)
    with pytest.raises(ValueError, match=r"^--pairs 50 is for made-up capitals: leave out "):
        analogies_command(tmp_path / "words.txt", pairs=50, runs=tmp_path, to=tmp_path)
    for seed in (-1, 99999999999999999999):
        with pytest.raises(ValueError, match=f"^seed must be a whole number .* got {seed}$"):
            analogies_command(seed=seed, runs=tmp_path, to=tmp_path)
    with pytest.raises(ValueError, match="sequences must be 1 or more; got 0"):
        analogies_command(sequences=0, runs=tmp_path, to=tmp_path)
    assert not list(tmp_path.iterdir())


def test_prompts_that_cannot_be_are_refused():
    generator = Generator().manual_seed(0)
    with pytest.raises(ValueError, match="times must be 0 or more and each 1 or more; got -1 and"):
        analogy_prompts(TASK, -1, generator)
    with pytest.raises(ValueError, match="of 6 capitals none is left to stand between"):
        analogy_prompts(TASK, 1, generator, queries=range(6))
    with pytest.raises(ValueError, match="runs must hold at least one run"):
        analogies_study([])
