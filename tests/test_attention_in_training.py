"""Attention measures over recorded training runs."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from resval_lens.analyses.comparison.attention_in_training import (
    MEASURES,
    TITLES,
    AttentionInTraining,
    Rise,
    attention_in_training,
)
from resval_lens.analyses.drawing import figures
from resval_lens.analyses.results.seeds import TTests
from resval_lens.training.icl_run import ICLRun
from resval_lens.training.recorded import RecordedRun, load_runs


def run(
    name: str, seed: int, value: Callable[[int], float], steps: range = range(0, 5_000, 500)
) -> RecordedRun[ICLRun]:
    """A recorded run whose measures are all ``value(step)``."""
    metrics = [{"step": s, "attention": dict.fromkeys(MEASURES, value(s))} for s in steps]
    return RecordedRun(
        ICLRun(name, "", seed=seed, steps=5_000), [], metrics, Path(f"{name}-{seed}")
    )


def rises(study: AttentionInTraining) -> dict[tuple[str, str], Rise]:
    return {(rise.variant, rise.bar): rise for rise in study.rises if rise.measure == "tila2"}


def by_seed(study: AttentionInTraining) -> dict[tuple[str, str], Mapping[int, float | None]]:
    return {key: rise.steps.by_seed for key, rise in rises(study).items()}


def test_curves_have_mean_and_deviation_over_seeds_at_steps_that_all_have() -> None:
    runs = [
        run("classic", 0, lambda s: s / 1_000),
        run("classic", 1, lambda s: s / 500, range(0, 5_000, 1_000)),
    ]
    found = attention_in_training(runs).variants["classic"]
    assert (found.seeds, found.steps) == ((0, 1), (0, 1_000, 2_000, 3_000, 4_000))
    curves = found.measures["cla"]
    assert curves.by_seed == {0: [0, 1, 2, 3, 4], 1: [0, 2, 4, 6, 8]}
    assert curves.mean == [0, 1.5, 3, 4.5, 6]
    assert curves.sd == [0, 0.5, 1, 1.5, 2]


def test_a_run_has_risen_when_it_is_beyond_its_share_of_the_way() -> None:
    # From 1 to 2.8; half the way is 1.9, which the first passes after step 2,250.
    runs = [
        run("classic", 0, lambda s: 1 + s / 2_500),
        run("classic", 1, lambda s: 1 + (s > 600)),
        run("values", 0, lambda s: 1 + s / 1_250),
    ]
    found = rises(attention_in_training(runs))
    classic = found["classic", "own"].steps
    assert classic.by_seed == {0: 2_500, 1: 1_000}
    assert (classic.mean, classic.sd) == (1_750, 750)
    assert found["values", "own"].steps.by_seed == {0: 2_500}
    # The classic mean goes from 1 to 2.4; 1.7 is passed by the values run at 1,000.
    assert found["values", "baseline"].level == pytest.approx(1.7)
    assert found["values", "baseline"].steps.by_seed == {0: 1_000}
    assert found["classic", "baseline"].steps.by_seed == {0: 2_000, 1: 1_000}
    early = rises(attention_in_training(runs, share=0.1))
    assert early["classic", "own"].steps.by_seed == {0: 500, 1: 1_000}


def test_a_run_that_never_gets_there_has_no_step_and_no_test() -> None:
    runs = [
        run("classic", 0, float),
        run("classic", 1, lambda s: s + 0.1),
        run("values", 0, lambda s: min(s, 1_000)),
        run("values", 1, lambda s: min(s, 4_000)),
        run("values", 2, lambda s: 2 * s),  # two that got there are enough for a test
    ]
    found = rises(attention_in_training(runs))["values", "baseline"]
    assert found.steps.by_seed == {0: None, 1: 2_500, 2: 1_500}
    assert (found.steps.mean, found.steps.sd) == (2_000, 500)
    assert found.tests == TTests()  # all None


def test_a_value_on_the_bar_is_not_beyond_it() -> None:
    even = run("classic", 0, lambda s: s / 500, range(0, 4_500, 500))  # 0 to 8: half is 4
    assert by_seed(attention_in_training([even]))["classic", "own"] == {0: 2_500}


def test_a_run_that_falls_has_not_risen() -> None:
    data = attention_in_training(
        [run("classic", 0, lambda s: -s), run("values", 0, float), run("keys", 0, lambda s: 1.0)]
    )
    assert {bar for _, bar in rises(data)} == {"own"}  # no level that the baseline rises to
    found = {name: steps for (name, _), steps in by_seed(data).items()}
    assert found == {"classic": {0: None}, "values": {0: 2_500}, "keys": {0: None}}


def test_there_is_no_baseline_bar_without_its_runs() -> None:
    data = attention_in_training([run("values", 0, float)])
    assert {rise.bar for rise in data.rises} == {"own"}
    assert json.loads(json.dumps(data.to_dict())) == data.to_dict()


def test_runs_that_cannot_be_measured_are_refused() -> None:
    one, other = run("a", 0, float), run("a", 0, float)
    with pytest.raises(ValueError, match="there are no runs to measure"):
        attention_in_training([])
    with pytest.raises(ValueError, match=r"share must lie between 0 and 1; got 1\.0"):
        attention_in_training([one], share=1.0)
    with pytest.raises(ValueError, match="a-0 and a-0 have the same variant and seed"):
        attention_in_training([one, other])


@pytest.mark.parametrize("kept", [None, {"ila1": 0.5}], ids=["none", "one"])
def test_a_run_without_the_measures_is_refused(kept: dict[str, float] | None) -> None:
    good = run("values", 2, float)
    lacking = {"step": 9_000} | ({} if kept is None else {"attention": kept})
    with pytest.raises(ValueError, match="values-2: step 9000 lacks the attention measure 'ila1"):
        attention_in_training([replace(good, metrics=[*good.metrics, lacking])])


def test_the_recorded_runs_say_that_the_value_stream_forms_the_circuit_earlier() -> None:
    runs = [r for r in load_runs(ICLRun) if r.run.name in ("classic", "values")]
    data = attention_in_training(runs)
    found = {(rise.measure, rise.variant, rise.bar): rise for rise in data.rises}
    for measure in ("ila1_labels", "tila2", "induction_strength"):
        steps: dict[str, list[int]] = {}
        for recorded in runs:
            lines = [(line["step"], line["attention"][measure]) for line in recorded.metrics]
            half = (lines[0][1] + lines[-1][1]) / 2
            steps.setdefault(recorded.run.name, []).append(
                min(step for step, value in lines if value > half)
            )
        for name, reached in steps.items():
            row = found[measure, name, "own"].steps
            assert list(row.by_seed.values()) == reached
            assert (row.mean, row.sd) == (np.mean(reached), np.std(reached))
        values = found[measure, "values", "own"]
        expected = stats.ttest_rel(steps["values"], steps["classic"])
        assert (values.tests.t_paired, values.tests.p_paired) == pytest.approx(tuple(expected))
        assert values.steps.mean is not None
        assert values.steps.mean < 0.8 * np.mean(steps["classic"])
    assert found["tila2", "classic", "own"].tests.t is None


# The figure


def test_the_figure_draws_the_studys_numbers() -> None:
    runs = [r for r in load_runs(ICLRun) if r.run.name in ("classic", "values")]
    data = attention_in_training(runs)
    (figure,) = data.figures().values()
    drawn = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in drawn] == list(TITLES.values())
    for axes, measure in zip(drawn, TITLES, strict=True):
        dark = {str(line.get_label()): line for line in axes.lines if line.get_linewidth() == 2}
        assert list(dark) == ["classic", "values"]
        for name, line in dark.items():
            curve = data.variants[name]
            assert np.array_equal(line.get_xdata(), curve.steps)
            assert np.array_equal(line.get_ydata(), curve.measures[measure].mean)
            assert line.get_color() == figures.colour(name)
        assert len([line for line in axes.lines if line.get_alpha() == 0.25]) == len(runs)
        (level,) = {rise.level for rise in data.rises
                    if (rise.measure, rise.bar) == (measure, "baseline")}  # fmt: skip
        (dotted,) = [line for line in axes.lines if line.get_linestyle() == ":"]
        assert set(dotted.get_ydata()) == {level}
    figures.plt.close(figure)
