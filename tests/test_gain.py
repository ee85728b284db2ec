"""Gain or stream? The study on runs made by hand, against numbers worked out here."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from resval_lens.analyses.comparison.gain import (
    LEVELS,
    VARIANTS,
    Against,
    AtRate,
    GainOrStream,
    gain_or_stream,
)
from resval_lens.analyses.comparison.gain_tables import between
from resval_lens.analyses.comparison.icl_emergence import PUBLISHED
from resval_lens.analyses.results import intervals
from resval_lens.analyses.results.intervals import ratio_interval
from resval_lens.analyses.results.seeds import holm, spread
from resval_lens.analyses.results.tables import p_told
from resval_lens.models.presets import ICL_VARIANTS
from resval_lens.training.icl_run import ICLRun
from resval_lens.training.recorded import RecordedRun

LAST = 40
"""Snapshots of a run."""
CROSSED = {
    "classic": (30, 34, 28, 33),
    "own-half": (38, None, None, 39),
    "own-root-2": (25, 27, 24, 26, 20),
    "own-2": (20, 24, 19, 22),
    "values-norm-matched": (29, 34, 27, 31),
    "values": (22, 25, 19, 24),
}
"""By seed, the first snapshot above .95 on IC."""


def run(
    name: str, seed: int, at: int | None, lr: float = 0.01, last: int = LAST, **changes: object
) -> RecordedRun[ICLRun]:
    """One that passes .5, .9 and .95 on IC at snapshots at − 2, at − 1 and at, on IC2 one later."""

    def accuracy(snapshot: int, late: int) -> float:
        return 0.1 if at is None else {-2: 0.6, -1: 0.92}.get(snapshot - at - late, 0.99 * (
            snapshot - late >= at))  # fmt: skip

    lines = [
        {"step": 500 * i, "ic": {"accuracy": accuracy(i, 0)}, "ic2": {"accuracy": accuracy(i, 1)}}
        for i in range(last + 1)
    ]
    streams = ICL_VARIANTS[name]
    planned = ICLRun(name, streams, seed, steps=500 * last, lr=lr, **changes)  # type: ignore[arg-type]
    return RecordedRun(planned, [], lines, Path(f"{name}-seed{seed}"))


def runs(
    crossed: Mapping[str, Sequence[int | None]] = CROSSED, lr: float = 0.01
) -> list[RecordedRun[ICLRun]]:
    return [run(name, i, at, lr) for name, each in crossed.items() for i, at in enumerate(each)]


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "RESAMPLES", 199)
        yield


@pytest.fixture(scope="module")
def study() -> GainOrStream:
    return gain_or_stream(runs())


@pytest.fixture(scope="module")
def rate(study: GainOrStream) -> AtRate:
    (only,) = study.rates
    return only


def against(
    rate: AtRate, first: str, second: str, task: str = "ic", level: float = 0.95
) -> Against:
    found = rate.compared(task, level, first, second)
    assert found is not None
    return found


def test_steps_are_those_of_every_level_task_and_variant(rate: AtRate) -> None:
    for task, late in (("ic", 0), ("ic2", 1)):
        for level, early in ((0.5, 2), (0.9, 1), (0.95, 0)):
            for name, at in CROSSED.items():
                row = rate.row(task, level, name)
                assert row is not None
                expected = [None if x is None else x + late - early for x in at]
                assert list(row.first.by_seed.values()) == expected
    assert len(rate.reached) == 6 * len(CROSSED)
    assert (rate.lr, rate.steps) == (0.01, 500 * LAST)


def test_a_saving_is_that_of_the_shared_seeds(rate: AtRate) -> None:
    found = against(rate, "own-root-2", "classic").saving
    assert found.share == pytest.approx(1 - (25 + 27 + 24 + 26) / (30 + 34 + 28 + 33))
    assert found.seeds == 4
    base = np.array([30.0, 34, 28, 33])
    assert found.interval == ratio_interval(base - np.array([25.0, 27, 24, 26]), base)


def test_tests_are_scipys_and_corrected_over_the_whole_study(
    study: GainOrStream, rate: AtRate
) -> None:
    for first, second in (("own-root-2", "classic"), ("values-norm-matched", "values")):
        one, other = CROSSED[first], CROSSED[second]
        found = against(rate, first, second).tests
        assert (found.t, found.p) == pytest.approx(tuple(stats.ttest_ind(one, other)))
        paired = stats.ttest_rel(one[:4], other)
        assert (found.t_paired, found.p_paired) == pytest.approx(tuple(paired))
    every = [each.tests for each in rate.against]
    # Four variants with a test against classic and three against values, at six levels.
    assert study.tests == len([each for each in every if each.p is not None]) == 6 * 7
    assert [each.p_holm for each in every] == holm([each.p for each in every])
    assert [each.p_paired_holm for each in every] == holm([each.p_paired for each in every])


def test_an_effect_is_in_deviations(rate: AtRate) -> None:
    differences = np.subtract(CROSSED["values"], CROSSED["classic"])
    j = math.gamma(1.5) / math.sqrt(1.5) / math.gamma(1)
    found = against(rate, "values", "classic").effect
    assert found.g_paired == pytest.approx(j * differences.mean() / differences.std(ddof=1))
    assert found.interval_paired is not None


def test_the_share_of_the_streams_saving_that_gain_alone_gives(rate: AtRate) -> None:
    saved = {name: 125 - sum(at[:4]) for name, at in CROSSED.items() if None not in at}
    for name in ("own-root-2", "own-2", "values-norm-matched"):
        found = rate.share("ic", 0.95, name)
        assert found is not None
        assert found.ours.share == pytest.approx(saved[name] / saved["values"])
        assert found.published is not None
        theirs = 1 - 49 / 64.5
        assert found.published.share == pytest.approx(saved[name] / 125 / theirs)
        gained, most = (
            np.subtract(CROSSED["classic"], CROSSED[each][:4]).astype(float)
            for each in (name, "values")
        )
        assert found.ours.interval == ratio_interval(gained, most)
    assert rate.share("ic", 0.95, "own-half") is None
    other = rate.share("ic2", 0.5, "own-2")
    assert other is not None
    assert other.published is not None
    cells = PUBLISHED[0.5]["ic2"]
    theirs = 1 - cells["values"][0] / cells["classic"][0]
    assert other.published.share == pytest.approx(40 / (125 - 4) / theirs)


def test_runs_that_never_get_there_are_told(study: GainOrStream, rate: AtRate) -> None:
    row, found = rate.row("ic", 0.95, "own-half"), against(rate, "own-half", "classic")
    assert row is not None
    assert row.never == 2
    assert found.tests.p is None
    assert found.effect.g is None
    assert found.at_most == pytest.approx(1 - (38 + 40 + 40 + 39) / 125)
    assert against(rate, "own-2", "classic").at_most is None
    assert "2 of 4 runs of own-half do not pass 0.95 by step 20,000, so it has no test." in (
        study.sentences()
    )
    text = shown(study)
    assert re.search(r"own-half +2 of 4 +38\.5 ± 0\.5 +≤ -26 ", text)


def shown(study: GainOrStream) -> str:
    console = Console(width=80, record=True)
    for each in study.tables():
        console.print(each)
    return console.export_text()


def test_tables_fit_80_columns_and_hold_the_numbers(study: GainOrStream, rate: AtRate) -> None:
    text = shown(study)
    assert "…" not in text
    found = against(rate, "own-2", "classic")
    assert found.saving.interval is not None
    low, high = found.saving.interval.low, found.saving.interval.high
    assert low is not None
    assert high is not None
    line = next(line for line in text.partition("IC .95")[2].splitlines() if "own-2 " in line)
    cells = line.split()
    assert cells[1:5] == ["4", "21.2", "±", "1.9"]
    assert " ".join(cells[5:8]) == f"32 [{100 * low:.0f}, {100 * high:.0f}]"
    titles = [str(each.title) for each in study.tables()]
    assert ["Learning" in titles[0], "classic" in titles[1], "values" in titles[2]] == [True] * 3


def test_sentences_say_how_much_gain_gives(study: GainOrStream) -> None:
    said = " ".join(study.sentences())
    assert "To IC .95 the value stream takes 28% [" in said
    assert re.search(
        r"Of the stream’s saving to IC .95: own values × √2 without a link 66% \[[^]]+\], "
        r"own values × 2",
        said,
    )
    both = np.mean(CROSSED["values-norm-matched"]) - np.mean(CROSSED["classic"])
    assert f"a stream of constant norm {-both:.1f} snapshots sooner (not shown, p = " in said


def test_from_one_level_to_another(study: GainOrStream) -> None:
    """As made up, .95 is two snapshots after .5 in every run."""
    said = study.sentences()[-1]
    assert said.startswith("From IC .5 to .95, snapshots: classic 2.0 ± 0.0; the stream 2.0 ± 0.0")
    (late,) = gain_or_stream(runs({name: CROSSED[name] for name in ("classic", "values")})).rates
    reached = tuple(
        replace(row, first=spread({0: 40, 1: 44, 2: 38, 3: 46}))
        if (row.variant, row.task, row.level) == ("values", "ic", 0.95) else row
        for row in late.reached
    )  # fmt: skip
    (said,) = between(replace(late, reached=reached), "ic")
    taken = np.array([40, 44, 38, 46]) - np.array(CROSSED["values"][:4]) + 2
    p = stats.ttest_rel(taken, [2, 2, 2, 2]).pvalue
    told = f"the stream {taken.mean():.1f} ± {taken.std():.1f} (paired with classic, {p_told(p)})."
    assert said.endswith(told)
    assert between(replace(late, reached=late.reached[:3]), "ic") == []


def test_learning_rates_stand_apart_the_papers_first() -> None:
    """The same seeds at twice the rate, in half the steps; the published saving is of .01 alone."""
    fast = {name: tuple((x or 0) // 2 for x in at[:4]) for name, at in CROSSED.items()}
    del fast["own-half"], fast["own-root-2"], fast["values-norm-matched"]
    found = gain_or_stream([*runs(fast, 0.005), *runs()])
    assert [each.lr for each in found.rates] == [0.01, 0.005]
    slow, other = found.rates
    row = other.row("ic", 0.95, "classic")
    assert row is not None
    assert list(row.first.by_seed.values()) == [15, 17, 14, 16]
    assert (
        against(slow, "values", "classic").saving
        == against(gain_or_stream(runs()).rates[0], "values", "classic").saving
    )
    share = other.share("ic", 0.95, "own-2")
    assert share is not None
    assert share.published is None
    assert share.ours.share == pytest.approx((62 - (10 + 12 + 9 + 11)) / (62 - (11 + 12 + 9 + 12)))
    every = [each.tests.p for one in found.rates for each in one.against]
    corrected = [each.tests.p_holm for one in found.rates for each in one.against]
    assert corrected == holm(every)
    assert found.tests == 6 * (7 + 3)
    assert any(each.startswith("Learning rate 0.005: ") for each in found.sentences())
    figure = found.figures()["gain-or-stream.png"]
    assert len(figure.axes) == 4
    plt.close(figure)


def test_with_two_seeds_there_is_a_saving_and_no_interval() -> None:
    few = {name: CROSSED[name][:2] for name in ("classic", "values", "own-2")}
    (found,) = gain_or_stream(runs(few)).rates
    assert against(found, "values", "classic").saving.interval is None
    assert against(found, "values", "classic").effect.g is None
    assert against(found, "values", "classic").tests.p is not None


def test_without_classic_there_is_nothing_to_save() -> None:
    (found,) = gain_or_stream(runs({"own-2": (20, 21, 22)})).rates
    assert (found.against, found.shares) == ((), ())
    assert [each.title for each in GainOrStream((found,)).tables()]
    assert gain_or_stream(runs({"own-2": (20, 21, 22)})).sentences() == []


def test_unfinished_and_other_runs_are_left_out() -> None:
    begun = run("values", 9, 3, last=30)
    planned = ICLRun("values", "v", 9, steps=20_000)
    unfinished = RecordedRun(planned, [], begun.metrics, Path("begun"))
    found = gain_or_stream([*runs(), unfinished, run("keys", 0, 3)])
    assert found == gain_or_stream(runs())


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (
            [run("values", 0, 9, spec="paper")],
            r"values-seed0 has spec='paper', classic-seed0 'refer",
        ),
        ([run("values", 0, 9)], "values-seed0 and values-seed0 have the same variant, seed and"),
    ],
)
def test_runs_that_cannot_be_compared_are_named(
    further: list[RecordedRun[ICLRun]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        gain_or_stream([*runs(), *further])


def test_without_runs_there_is_no_study() -> None:
    with pytest.raises(ValueError, match="there is no finished run of classic, own-half, own-root"):
        gain_or_stream([run("keys", 0, 3)])


def test_the_study_is_read_back_from_its_document(study: GainOrStream) -> None:
    written = json.dumps(study.to_dict(), allow_nan=False)
    again = GainOrStream.from_dict(json.loads(written))
    assert json.loads(json.dumps(again.to_dict())) == json.loads(written)
    assert again.rates[0].compared("ic", 0.95, "values", "classic") == against(
        study.rates[0], "values", "classic"
    )


def test_a_figure_has_a_mark_for_every_saving(study: GainOrStream, rate: AtRate) -> None:
    figure = study.figures()["gain-or-stream.png"]
    tips = [line.get_gid() for axes in figure.axes for line in axes.lines if line.get_gid()]
    assert sum("published" in each for each in tips) == 6
    assert sum("some never" in each for each in tips) == 6
    assert sum(": saves" in each for each in tips) == 6 * 4
    plt.close(figure)


def test_every_variant_of_the_study_is_one_that_is_trained() -> None:
    assert set(VARIANTS) <= set(ICL_VARIANTS)
    assert set(LEVELS) == set(PUBLISHED)
