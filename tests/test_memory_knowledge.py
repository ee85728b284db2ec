"""What a context adds to what is known: fits, thresholds and winners, against plain arithmetic."""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table
from torch import Generator

from resval_lens.analyses.cli.memory import KNOWLEDGE_VARIANTS, knowledge_command
from resval_lens.analyses.papers.memory.analogies import shade
from resval_lens.analyses.papers.memory.asked import (
    FLOOR,
    AskedModel,
    constructed_models,
    flip_point,
    global_knowledge,
    least_squares,
    margins,
    trained_model,
    trained_models,
)
from resval_lens.analyses.papers.memory.comparable import COLOURS, by_variant
from resval_lens.analyses.papers.memory.construction import Strengths, constructed_model
from resval_lens.analyses.papers.memory.knowledge import (
    Fit,
    Flip,
    Group,
    Knowledge,
    ModelKnowledge,
    group_study,
    knowledge_over_seeds,
    knowledge_study,
)
from resval_lens.analyses.papers.memory.tasks.bigrams import Bigrams
from resval_lens.analyses.papers.memory.tasks.knowledge_prompts import knowledge_prompts
from resval_lens.analyses.papers.memory.tasks.triggers import TriggerTask
from resval_lens.analyses.papers.memory.training import MemoryRun, train_memory
from resval_lens.analyses.results.seeds import Spread
from resval_lens.training.recorded import RecordedRun, load_runs


def some_bigrams(d_vocab: int = 9, seed: int = 0) -> Bigrams:
    drawn = torch.randn(d_vocab + 1, d_vocab, generator=Generator().manual_seed(seed)).double()
    rows = (drawn * 1.5).softmax(-1)
    return Bigrams.from_probabilities([chr(97 + i) for i in range(d_vocab)], rows[0], rows[1:])


def printed(table: Table, width: int = 80) -> str:
    """As a terminal shows it."""
    file = io.StringIO()
    Console(width=width, file=file).print(table)
    return file.getvalue()


def assert_fits(tables: Sequence[Table], names: Sequence[str]) -> str:
    """Whole in 80 columns: every name, no line longer or broken, nothing left out."""
    text = ""
    for table in tables:
        shown = printed(table)
        assert "…" not in shown
        assert all(len(line) <= 80 for line in shown.splitlines())
        assert len(shown.splitlines()) == len(printed(table, 200).splitlines())
        for name in names:
            assert f" {name} " in shown
        text += shown
    return text


def recorded_as(name: str, seed: int = 0, **settings: object) -> RecordedRun[MemoryRun]:
    run = MemoryRun(
        name, "relative", (), seed,
        **{"task": TriggerTask(some_bigrams(), length=12, n_triggers=2), "n_ctx": 64, **settings},
    )  # fmt: skip
    return RecordedRun(run, [], [], Path(f"runs/{run.folder_name}"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of a relative model and one absolute model with values, hardly trained."""
    folder = tmp_path_factory.mktemp("runs")
    task = TriggerTask(some_bigrams(), length=12, n_triggers=2)
    for name, positions, streams, seed in (
        ("relative", "relative", "", 0),
        ("relative", "relative", "", 1),
        ("absolute-values", "absolute", "v", 0),
    ):
        run = MemoryRun(
            name, positions, streams, seed, task,
            d_model=32, n_ctx=64, steps=3, batch=8, snapshot_every=3, test_size=8,
        )  # fmt: skip
        train_memory(run, folder / run.folder_name)
    return folder


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=1, max_size=12),
)
def test_the_flip_point_is_the_cut_that_is_wrong_least_often(drawn):
    against = torch.tensor([float(gap) for gap, _ in drawn])
    wins = torch.tensor([won for _, won in drawn])
    found = flip_point(against, wins)
    values = sorted({gap for gap, _ in drawn})
    cuts = [values[0] - 1.0, *((a + b) / 2 for a, b in pairwise(values)),
            values[-1] + 1.0]  # fmt: skip
    wrong = [sum(won != (gap < cut) for gap, won in drawn) for cut in cuts]
    best = [cut for cut, n in zip(cuts, wrong, strict=True) if n == min(wrong)]
    assert found.errors == pytest.approx(min(wrong) / len(drawn))
    if best[0] == cuts[0] or best[-1] == cuts[-1]:
        assert found.at is None
    else:
        assert found.at == pytest.approx(np.mean(best), abs=1e-6)


def test_least_squares_is_numpys_with_textbook_errors():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(40, 2))
    y = x @ np.array([1.5, -4.0]) + rng.normal(size=40)
    b, errors, r2 = least_squares(torch.tensor(x), torch.tensor(y))
    expected, residual, _, _ = np.linalg.lstsq(x, y, rcond=None)
    assert b.numpy() == pytest.approx(expected, abs=1e-12)
    for i in range(2):
        # The part of a column that the other one does not explain.
        other = x[:, 1 - i]
        own = x[:, i] - other * (other @ x[:, i]) / (other @ other)
        assert float(errors[i]) == pytest.approx(math.sqrt(residual[0] / 38 / (own @ own)))
    assert r2 == pytest.approx(1 - residual[0] / ((y - y.mean()) ** 2).sum())
    assert least_squares(torch.tensor(x), torch.full((40,), 0.0, dtype=torch.float64))[2] is None


def test_least_squares_needs_independent_columns():
    x = torch.ones(5, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"independent ones; got \[5, 2\]"):
        least_squares(x, x[:, 0])


def test_global_knowledge_is_centred_and_gaps_are_of_floored_logs():
    bigrams = some_bigrams()
    conditional = bigrams.conditional.clone()
    conditional[2] = 0
    conditional[2, :3] = torch.tensor([0.9995, 0.0003, 0.0002])
    bigrams = Bigrams.from_probabilities(bigrams.tokens, bigrams.unigram, conditional)
    logs = global_knowledge(bigrams)
    assert float(logs.sum(1).abs().max()) < 1e-12
    prompts = knowledge_prompts(bigrams, 2, 1, 30, Generator().manual_seed(0), answers="any")
    for gap, a, b1, b2 in zip(
        prompts.global_margin(bigrams, FLOOR), prompts.query, prompts.first, prompts.second,
        strict=True,
    ):  # fmt: skip
        p1, p2 = (max(float(conditional[a, b]), FLOOR) for b in (b1, b2))
        assert float(gap) == pytest.approx(math.log(p1 / p2), abs=1e-9)


@pytest.mark.parametrize("counts", [(2, 1), (1, 3), (4, 4)])
def test_a_sharp_constructed_head_adds_tau3_times_the_difference_of_shares(counts):
    bigrams = some_bigrams()
    model = constructed_model(
        global_knowledge(bigrams), Generator().manual_seed(0),
        n_ctx=40, strengths=Strengths(40.0, 40.0, 6.0),
    )  # fmt: skip
    prompts = knowledge_prompts(bigrams, *counts, 25, Generator().manual_seed(1), shuffled=True)
    n1, n2 = counts
    gaps = prompts.global_margin(bigrams, FLOOR).tolist()
    expected = [gap + 6.0 * (n1 - n2) / (n1 + n2) for gap in gaps]
    assert margins(model, prompts).numpy() == pytest.approx(expected, abs=1e-8)


def test_a_constructed_model_has_its_weights_back_and_flips_at_a_third_of_tau3():
    """Of 9 tokens made up so that gaps are of the size of τ3/3."""
    bigrams = some_bigrams(seed=4)
    model = constructed_model(
        global_knowledge(bigrams), Generator().manual_seed(0),
        n_ctx=40, strengths=Strengths(30.0, 30.0, 6.0),
    )  # fmt: skip
    asked = AskedModel("constructed", model, bigrams, {"all": None}, tau3=6.0)
    found = group_study(asked, None, 60, Generator().manual_seed(0))
    assert found.fit.weight == pytest.approx(1, abs=1e-6)
    assert found.fit.tau3 == pytest.approx(6, abs=1e-5)
    assert found.fit.r2 == pytest.approx(1, abs=1e-9)
    assert found.fit.tau3_error < 1e-6
    assert found.flip.fitted == pytest.approx(2, abs=1e-5)
    assert found.flip.at == pytest.approx(2, abs=0.3)
    assert found.flip.errors == 0
    assert found.off_expected < 1e-5
    assert len(found.cells) == 25
    for cell in found.cells:
        assert cell.wins == cell.expected_wins
        assert cell.margin == pytest.approx(
            cell.gap + 6 * (cell.n1 - cell.n2) / (cell.n1 + cell.n2), abs=1e-5
        )
        assert len(cell.points) == 8
    shares = [c.wins if c.n1 > c.n2 else 1 - c.wins
              for c in found.cells if c.n1 != c.n2]  # fmt: skip
    assert found.majority == pytest.approx(np.mean(shares))


def test_a_is_a_trigger_or_none_and_triggers_are_no_fillers(runs):
    recorded = load_runs(MemoryRun, runs)[0]
    asked = trained_model(recorded)
    fixed = recorded.run.task.trigger_tokens
    assert asked.groups["triggers"] == fixed
    assert sorted([*asked.groups["others"], *fixed]) == list(range(9))
    assert asked.no_fillers == fixed


def test_drawn_triggers_may_be_fillers(tmp_path):
    task = TriggerTask(some_bigrams(), length=12, n_triggers=2, triggers="drawn")
    run = MemoryRun("relative", task=task, d_model=16, n_ctx=40, steps=1, batch=2,
                    snapshot_every=1, test_size=2)  # fmt: skip
    train_memory(run, tmp_path / run.folder_name)
    asked = trained_model(load_runs(MemoryRun, tmp_path)[0])
    assert asked.groups == {"any token": None}
    assert not asked.no_fillers
    # The same prompts as a constructed model, and others than of fixed triggers.
    constructed = constructed_models(task.bigrams, d_model=32)[0]
    fixed = replace(asked, name="fixed", groups={"triggers": [0, 1]}, no_fillers=[0, 1])
    study = knowledge_study([asked, constructed, fixed], prompts=4)
    gaps = [
        [cell.gap for cell in next(iter(each.groups.values())).cells] for each in study.subjects
    ]
    assert gaps[0] == gaps[1] != gaps[2]
    assert [row.group for row in study.over_seeds] == ["any token", "any token", "triggers"]


def test_among_candidates_drawn_triggers_are_a_group(tmp_path):
    task = TriggerTask(some_bigrams(), 12, 2, "drawn", candidates=(0, 3, 4, 5))
    run = MemoryRun("relative", task=task, d_model=16, n_ctx=40, steps=1, batch=2,
                    snapshot_every=1, test_size=2)  # fmt: skip
    train_memory(run, tmp_path / run.folder_name)
    asked = trained_model(load_runs(MemoryRun, tmp_path)[0])
    assert asked.groups == {"triggers": (0, 3, 4, 5), "others": [1, 2, 6, 7, 8]}


def one_of(
    name: str, seed: int, tau3: float, flip: float | None, fitted: float | None
) -> ModelKnowledge:
    fit = Fit(1 - seed / 10, 0.0, tau3, 0.0, None)
    found = Group(fit, Flip(flip, 0.0, fitted), majority=0.5, off_expected=0.0, cells=[])
    return ModelKnowledge(name, seed, None, {"any token": found})


def study_of(known: list[ModelKnowledge]) -> Knowledge:
    return Knowledge(0, 2, FLOOR, known, knowledge_over_seeds(known))


def test_means_and_deviations_over_seeds_are_numpys():
    rows = knowledge_over_seeds(
        [
            one_of("a", 0, 3.0, 1.0, 1.1),
            one_of("b", 0, 9.0, 3.0, 3.0),
            one_of("a", 1, 6.0, 2.0, 2.3),
        ]
    )
    assert [(row.name, row.seeds) for row in rows] == [("a", [0, 1]), ("b", [0])]
    assert rows[0].tau3 == Spread({0: 3.0, 1: 6.0}, mean=4.5, sd=1.5)
    assert rows[0].flip.mean == pytest.approx(1.5)
    assert rows[0].fitted_flip.sd == pytest.approx(np.std([1.1, 2.3]))
    assert rows[0].r2 == Spread({0: None, 1: None}, mean=None, sd=None)


def test_thresholds_are_compared_in_the_seeds_that_have_both():
    some = [
        one_of("some", 0, 9.0, 12.34, 7.0), one_of("some", 1, 9.0, None, 9.0),
        one_of("some", 2, 9.0, 20.0, None),
    ]  # fmt: skip
    never = [one_of("never", seed, 9.0, None, 6.0 + seed) for seed in range(3)]
    flat = [one_of("flat", seed, 9.0, 5.0, None) for seed in range(3)]
    study = study_of([*some, *never, *flat])
    paired = study.over_seeds[0].paired
    assert paired.flip == Spread({0: 12.34, 1: None, 2: None}, mean=12.34, sd=0)
    assert paired.fitted_flip.by_seed == {0: 7.0, 1: None, 2: None}
    fits, flips = (printed(table).splitlines() for table in study.tables())
    cells = {line.split()[0]: line.split()[1:] for line in flips if line.split()[1:2] == ["any"]}
    assert cells["some"] == ["any", "token", "3", "12.3", "(1/3)", "7.0", "(1/3)"]
    assert cells["never"] == ["any", "token", "3", "never", "7.0±.8"]
    assert cells["flat"] == ["any", "token", "3"]
    assert any(line.split()[:5] == ["some", "any", "token", "3", ".90±.08"] for line in fits)
    said = study.sentences()
    assert said[0] == (
        "some (3 seeds): the context weighs 9.0 ± 0.0 nats, global knowledge 0.90 ± 0.08 of its "
        "own; what the context has more often wins in 50% ± 0% of prompts, and after two B1 and "
        "one B2 the winner flips in 1 of 3 seeds at a gap of 12.3 nats (τ3/3w = 7.0)."
    )
    assert "flips" not in said[1] + said[2]


def test_tables_of_three_seeds_fit_in_80_columns():
    names = ("constructed, d = 1,024", *KNOWLEDGE_VARIANTS)
    known = []
    for name in names:
        for seed in range(3):
            one = one_of(name, seed, 20.0 - 12.3 * seed, None, 10.25 * (seed + 1))
            found = one.groups["any token"]
            fit = replace(found.fit, weight=-0.2 - 0.1 * seed, r2=seed / 2)
            flip = replace(found.flip, at=None if seed == 1 else 99.9 - seed)
            found = replace(found, fit=fit, flip=flip)
            groups = {"any token": found, "triggers": found, "others": found}
            known.append(replace(one, groups=groups))
    tables = study_of(known).tables()
    text = assert_fits(tables, names)
    assert "98.9±1.0 (2/3)" in text
    assert " 7.7±10.0 " in text
    assert text.count(" -0.30±.08 ") == 3 * len(names)


def test_runs_that_differ_in_more_than_variant_and_seed_are_refused():
    task = recorded_as("a").run.task
    drawn, other = replace(task, triggers="drawn"), replace(task, bigrams=some_bigrams(9, 1))
    free = ("triggers", "output_range")
    by_variant([recorded_as("a"), recorded_as("a", 1), recorded_as("b", task=drawn)], free)
    by_variant([recorded_as("a"), recorded_as("b", n_layers=1)], free)
    first = recorded_as("a")
    for twin, said in (
        (
            recorded_as("b", lr=0.05),
            "b-seed0 has lr=0.05, runs/a-seed0 0.1; runs that are compared",
        ),
        (recorded_as("a", 1, steps=5), "a-seed1 has steps=5, runs/a-seed0 1000"),
        (
            recorded_as("a", 1, task=drawn),
            "a-seed1 has task.triggers='drawn', runs/a-seed0 'fixed'",
        ),
        (recorded_as("a", 1, n_layers=1), "a-seed1 has n_layers=1, runs/a-seed0 2"),
        (recorded_as("b", task=replace(task, length=9)), "b-seed0 has task.length=9, "),
        (recorded_as("b", task=other), "b-seed0 has other task.bigrams than runs/a-seed0; runs"),
        (recorded_as("a"), "a-seed0 and runs/a-seed0 are the same variant and seed; keep one"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            trained_models([first, twin])
        assert len(str(error.value)) < 400
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"b-seed0 has task.triggers='drawn'"):
        by_variant([first, recorded_as("b", task=drawn)], task_may_differ=())


def test_the_variants_are_with_and_without_values_and_with_drawn_triggers(
    runs, tmp_path, capsys, monkeypatch
):
    assert KNOWLEDGE_VARIANTS == [
        "absolute", "relative", "absolute-values", "relative-values",
        "absolute-drawn", "relative-drawn", "relative-values-drawn",
    ]  # fmt: skip
    monkeypatch.setattr(
        "resval_lens.analyses.papers.memory.asked.constructed_models",
        lambda bigrams, tau3, seed: constructed_models(bigrams, tau3, seed, d_model=32),
    )
    some = {"runs": runs, "to": tmp_path, "quiet": True}
    knowledge_command("absolute-values", prompts=2, **some)
    study = json.loads((tmp_path / "memory-knowledge.json").read_text())
    assert [each["name"] for each in study["subjects"]][2:] == ["absolute-values"]
    with pytest.raises(ValueError, match="there is no run of 'absolute'; there are relative"):
        knowledge_command("relative, absolute", **some)
    capsys.readouterr()


@pytest.mark.parametrize("seed", [-1, 99999999999999999999])
def test_seeds_that_cannot_be_are_refused_before_any_work(seed, tmp_path):
    with pytest.raises(ValueError, match=f"^seed must be a whole number from 0 to .*; got {seed}$"):
        knowledge_command(runs=tmp_path / "none", seed=seed, to=tmp_path)
    for asked in (lambda: knowledge_study([], seed=seed),
                  lambda: constructed_models(some_bigrams(), seed=seed)):  # fmt: skip
        with pytest.raises(ValueError, match="seed must be a whole number"):
            asked()


def test_an_encoding_has_one_colour_in_all_figures():
    for name, colour in COLOURS.items():
        assert shade(f"{name}-values") == colour
    assert shade("mine") == "#000000"


def test_the_command_reports_every_model_and_group(runs, tmp_path, capsys):
    knowledge_command(runs=runs, prompts=4, to=tmp_path, quiet=True)
    study = json.loads((tmp_path / "memory-knowledge.json").read_text())
    assert [(s["name"], s["seed"]) for s in study["subjects"]] == [
        ("constructed, exact", 0), ("constructed, d = 1,024", 0),
        ("relative", 0), ("relative", 1), ("absolute-values", 0),
    ]  # fmt: skip
    relative = next(row for row in study["over_seeds"] if row["name"] == "relative")
    taus = [s["groups"]["triggers"]["fit"]["tau3"] for s in study["subjects"][2:4]]
    assert relative["tau3"]["mean"] == pytest.approx(np.mean(taus))
    assert relative["tau3"]["sd"] == pytest.approx(np.std(taus))
    assert (tmp_path / "memory-knowledge.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "triggers" in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if "/" not in line)
    assert study["found"][0].startswith("constructed, exact: the context weighs 10.0 nats")
    assert {"command", "versions"} <= set(study["provenance"])


def test_runs_without_models_and_too_few_prompts_are_refused(runs, tmp_path):
    for recorded in load_runs(MemoryRun, runs):
        target = tmp_path / recorded.folder.name
        target.mkdir()
        for name in ("run.json", "metrics.jsonl"):
            (target / name).write_bytes((recorded.folder / name).read_bytes())
    with pytest.raises(ValueError, match=r"none of relative-seed0, .* holds a trained model"):
        knowledge_command(runs=tmp_path, to=tmp_path / "out", quiet=True)
    for asked in (lambda: knowledge_study([], prompts=1),
                  lambda: knowledge_command(runs=runs, prompts=1, to=tmp_path)):  # fmt: skip
        with pytest.raises(ValueError, match="prompts must be 2 or more; got 1"):
            asked()


def test_constructed_subjects_answer_prompts_of_all_counts():
    exact, random = constructed_models(some_bigrams(), tau3=4.0, d_model=64)
    assert exact.model.cfg.n_ctx == random.model.cfg.n_ctx == 32
    assert exact.model.cfg.dtype == torch.float64
    assert random.model.cfg.d_model == 64
    assert exact.tau3 == random.tau3 == 4.0
