"""CPR, CMD and their intervals beside plain loops over resampled prompts."""

import json

import numpy as np
import pytest
import torch

from resval_lens.analyses.circuits.bootstrap import Bootstrap
from resval_lens.analyses.circuits.curve import curve
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.circuits.running import EdgeRuns
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.analyses.circuits.selection import (
    COMPARED,
    SELECTIONS,
    Optimum,
    Ratio,
    Top,
    compared,
)
from resval_lens.analyses.studies.selections import SelectionStudy, selection_study
from resval_lens.analyses.tasks.problem import Problem, pose_two

FRACTIONS = (0.01, 0.05, 0.2, 1.0)
RULES = {"top": Top(), "optimum": Optimum()}
HOW = Bootstrap(40, seed=2)


@pytest.fixture(scope="module")
def problems() -> tuple[Problem, Problem]:
    return pose_two("stories-small-values", 6)


@pytest.fixture(scope="module")
def study(problems: tuple[Problem, Problem]) -> SelectionStudy:
    return selection_study(*problems, ("eap",), RULES, FRACTIONS, HOW)


def test_numbers_of_all_prompts_are_those_of_a_curve(
    problems: tuple[Problem, Problem], study: SelectionStudy
) -> None:
    scored, others = problems
    graph = Graph.of(scored.model)
    runs = EdgeRuns(scored.model, others.pairs, graph)
    plain = score_edges(scored.model, scored.pairs, "eap", graph=graph, by_prompt=True)
    stable, told = HOW.stable_first(plain)
    assert study.stable == {"eap": told}
    assert 0 < told.edges < told.of
    assert len(study.curves) == 4
    for each in study.curves:
        scores = stable if each.bootstrapped else plain
        wanted = curve(runs, scores.values, each.select, FRACTIONS)
        found = [f.value for f in each.faithfulness]
        assert found == pytest.approx(wanted.faithfulness, abs=1e-5)
        assert each.cpr.value == pytest.approx(wanted.cpr, abs=1e-5)
        assert each.cmd.value == pytest.approx(wanted.cmd, abs=1e-5)
        circuits = [
            SELECTIONS[each.select].choose(graph, scores.values, size).circuit.pruned()
            for size in wanted.sizes
        ]
        assert each.n_edges == tuple(len(circuit) for circuit in circuits)
        assert each.gaps == wanted.gaps
    assert study.sizes == wanted.sizes


def test_intervals_are_those_of_a_loop_over_resamples(
    problems: tuple[Problem, Problem], study: SelectionStudy
) -> None:
    scored, others = problems
    graph = Graph.of(scored.model)
    runs = EdgeRuns(scored.model, others.pairs, graph)
    scores = score_edges(scored.model, scored.pairs, "eap", graph=graph)
    prompts = len(others.pairs)
    drawn = torch.randint(
        prompts, (HOW.resamples, prompts), generator=torch.Generator().manual_seed(2)
    )
    found: dict[str, list[tuple[list[float], float, float]]] = {}
    for name, rule in RULES.items():
        kept = [rule.choose(graph, scores.values, size).circuit.kept for size in study.sizes]
        values = runs.values(torch.stack(kept)).double()
        found[name] = []
        for rows in drawn:
            low, high = (
                each.double()[rows].mean().item()
                for each in (runs.corrupted_values, runs.clean_values)
            )
            f = [(each[rows].mean().item() - low) / (high - low) for each in values]
            cpr = cmd = 0.0
            for i in range(len(f) - 1):
                width = FRACTIONS[i + 1] - FRACTIONS[i]
                cpr += width * (f[i] + f[i + 1]) / 2
                cmd += width * (abs(1 - f[i]) + abs(1 - f[i + 1])) / 2
            found[name].append((f, cpr, cmd))
    for each in study.curves[:2]:
        samples = found[each.select]
        for area, column in ((each.cpr, 1), (each.cmd, 2)):
            ends = np.quantile([sample[column] for sample in samples], [0.025, 0.975])
            assert [area.low, area.high] == pytest.approx(ends, abs=1e-5)
        for size, f in enumerate(each.faithfulness):
            ends = np.quantile([sample[0][size] for sample in samples], [0.025, 0.975])
            assert [f.low, f.high] == pytest.approx(ends, abs=1e-5)
    first, second = study.curves[:2]
    assert first.cpr_difference is None
    assert second.cpr_difference is not None
    pairs = zip(found["optimum"], found["top"], strict=True)
    ends = np.quantile([ours[1] - theirs[1] for ours, theirs in pairs], [0.025, 0.975])
    assert [second.cpr_difference.low, second.cpr_difference.high] == pytest.approx(ends, abs=1e-5)
    assert second.cpr_difference.value == pytest.approx(second.cpr.value - first.cpr.value)


def test_a_study_is_written_and_read(study: SelectionStudy) -> None:
    document = json.loads(json.dumps(study.to_dict()))
    assert document["prompts"] == document["held_out"] == 6
    assert SelectionStudy.from_dict(document) == study
    assert len(study.tables()) == 1
    text = " ".join(study.sentences())
    assert f"eap: {study.stable['eap'].edges} of 491 scores keep their sign" in text


def test_no_circuit_is_run_twice(study: SelectionStudy) -> None:
    """Sixteen circuits; the whole model, chosen by each, is one."""
    assert study.runs <= 16 - 3


def test_all_selections_are_compared_with_so_much_time() -> None:
    rules = compared(7)
    assert set(SELECTIONS) < set(rules) == set(COMPARED)
    assert rules["ratio-50"] == Ratio(0.5)
    assert all(rule.seconds == 7 for rule in rules.values() if isinstance(rule, Optimum))


def test_no_selection_is_refused(problems: tuple[Problem, Problem]) -> None:
    with pytest.raises(ValueError, match="selections must name one or more; got none"):
        selection_study(*problems, selections={})
