"""When in training the attention of in-context classifiers forms, by Reddy's measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from resval_lens.analyses.results.emergence import first_above
from resval_lens.analyses.results.result import FLAT, Result
from resval_lens.analyses.results.seeds import Spread, TTests, corrected, spread, t_tests
from resval_lens.analyses.results.tables import WIDE, in_groups, p_cell, table
from resval_lens.training.icl_run import ICLRun
from resval_lens.training.recorded import RecordedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

MEASURES = ("ila1", "ila1_labels", "tla2", "tila2", "induction_strength", "cla")
"""What is recorded of attention in training: :mod:`resval_lens.training.icl_measures`."""
TITLES = {
    "ila1_labels": "layer 0: label to its object",
    "tla2": "layer 1: query to labels",
    "tila2": "layer 1: query to right labels",
    "induction_strength": "layer 1: right label minus wrong",
    "cla": "answers that are in context",
}
"""Measures that are drawn, and what they are."""
SHORT = {
    "ila1_labels": "label → object (0)",
    "tla2": "query → labels (1)",
    "tila2": "query → right (1)",
    "induction_strength": "right − wrong (1)",
    "cla": "answers in context",
}
"""What they are called in the table."""


@dataclass(frozen=True)
class Curves:
    """One measure at each step, by seed, with the mean and population sd over them."""

    by_seed: Mapping[int, Sequence[float]]
    mean: Sequence[float]
    sd: Sequence[float]


@dataclass(frozen=True)
class VariantCurves:
    """The measures of one variant's runs, at the steps that all of them recorded."""

    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    measures: Mapping[str, Curves]


@dataclass(frozen=True)
class Rise:
    """The first recorded steps at which the runs of a variant have come a share of a way.

    Attributes:
        bar: ``own``: from the run's first value to its last; ``baseline``: from the first to the
            last value of the baseline's mean.
        level: of bar ``baseline``, one for all.
        steps: None of a run that never got there; one that ends no higher than it began has not.
        tests: against the baseline.
    """

    measure: str
    variant: str
    bar: str
    level: float | None
    steps: Spread = field(metadata=FLAT)
    tests: TTests = field(metadata=FLAT)


@dataclass(frozen=True)
class AttentionInTraining(Result):
    """Reddy's attention measures in training, and when each rises.

    Attributes:
        rises: of each measure, bar and variant; tests corrected for being so many. Bar
            ``baseline`` is left out where no run is the baseline's, or its mean does not rise.
    """

    share: float
    baseline: str
    variants: Mapping[str, VariantCurves]
    rises: tuple[Rise, ...]

    def tables(self) -> tuple[Table]:
        """When the measures rise."""
        rises = {(rise.measure, rise.variant, rise.bar): rise for rise in self.rises}
        rows = []
        for measure, title in SHORT.items():
            for variant in self.variants:
                cells = []
                for bar in ("own", "baseline"):
                    rise = rises.get((measure, variant, bar))
                    told, p = (
                        (rise.steps.told(",.0f"), rise.tests.p_paired_holm) if rise else ("", None)
                    )
                    cells += [told, p_cell(p)]
                rows.append([title, variant, *cells])
        return (
            table(
                f"Step at which a measure has come {self.share:.0%} of its way "
                "(mean ± sd over seeds)",
                ("variant",),
                ("its own way", "p", f"{self.baseline}'s way", "p"),
                in_groups(rows),
                f"own way: from a run's first value to its last; {self.baseline}'s: from its\n"
                f"first mean value to its last; p: t-tests against {self.baseline}, paired by\n"
                "seed, corrected by Holm for the tests of this table;\n"
                "(1), (2): mean attention of that layer",
                WIDE,
            ),
        )

    def figures(self) -> dict[str, Figure]:
        """One line a seed (light), one a variant (dark: the mean); dotted: the baseline's level."""
        from resval_lens.analyses.drawing.figures import STYLE, colour, plt

        levels = {rise.measure: rise.level for rise in self.rises if rise.level is not None}
        with plt.rc_context(STYLE):
            figure, grid = plt.subplots(2, 3, figsize=(11, 6.2), layout="constrained", sharex=True)
            panels = dict(zip(TITLES, grid.flat, strict=False))
            for measure, axes in panels.items():
                for variant, found in self.variants.items():
                    curves, shade = found.measures[measure], colour(variant)
                    for values in curves.by_seed.values():
                        axes.plot(found.steps, values, color=shade, alpha=0.25, lw=0.8)
                    dashes = "--" if variant == "keys" else "-"  # it lies on classic
                    axes.plot(found.steps, curves.mean, dashes, color=shade, lw=2, label=variant)
                if measure in levels:
                    axes.axhline(levels[measure], color="#999999", lw=0.8, ls=":")
                axes.set(title=TITLES[measure], ylim=(0, None))
                axes.margins(x=0)
                axes.xaxis.set_major_formatter("{x:,.0f}")
            for axes in (*grid[1, :2], grid[0, 2]):
                axes.set_xlabel("step")
                axes.tick_params(labelbottom=True)
            for axes in grid[:, 0]:
                axes.set_ylabel("mean attention weight")
            panels["cla"].set_ylabel("share of answers")
            blank = grid[1, 2]
            blank.axis("off")
            handles, labels = panels["cla"].get_legend_handles_labels()
            blank.legend(handles, labels, loc="center left")
        return {"induction.png": figure}


def attention_in_training(
    runs: Sequence[RecordedRun[ICLRun]], share: float = 0.5, baseline: str = "classic"
) -> AttentionInTraining:
    """Reddy's measures in training, and when a run has come ``share`` of the way.

    A share of the final value alone would not do: attention that is spread evenly reaches labels,
    too, so that some measures pass half of it before training.

    Raises:
        ValueError: no runs, ``share`` not between 0 and 1, a run that did not record the measures,
            or two of one variant and seed.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1; got {share}")
    if not runs:
        raise ValueError("there are no runs to measure")
    by_variant: dict[str, dict[int, RecordedRun[ICLRun]]] = {}
    for recorded in runs:
        own = by_variant.setdefault(recorded.run.name, {})
        if own.setdefault(recorded.run.seed, recorded) is not recorded:
            raise ValueError(
                f"{recorded.folder} and {own[recorded.run.seed].folder} have the same variant and "
                "seed; compare one"
            )
        for line in recorded.metrics:
            lacking = [name for name in MEASURES if name not in line.get("attention", {})]
            if lacking:
                raise ValueError(
                    f"{recorded.folder}: step {line['step']} lacks the attention measure "
                    f"{lacking[0]!r}"
                )
    variants = {name: _curves(list(own.values())) for name, own in by_variant.items()}
    steps: dict[tuple[str, str, str, float | None], Spread] = {}
    for measure in MEASURES:
        curve = variants[baseline].measures[measure].mean if baseline in variants else ()
        common = _level(curve, share)
        for bar, level in (("own", None), ("baseline", common)):
            if bar == "baseline" and level is None:
                continue
            for name, own in by_variant.items():
                found = {seed: _risen(each, measure, share, level) for seed, each in own.items()}
                steps[measure, name, bar, level] = spread(found)
    tests = {}
    for (measure, name, bar, level), of in steps.items():
        base = None if name == baseline else steps.get((measure, baseline, bar, level))
        tests[measure, name, bar, level] = t_tests(of.by_seed, base.by_seed) if base else TTests()
    rises = (Rise(*key, steps[key], found) for key, found in corrected(tests).items())
    return AttentionInTraining(share, baseline, variants, tuple(rises))


def _curves(runs: Sequence[RecordedRun[ICLRun]]) -> VariantCurves:
    found = [{line["step"]: line["attention"] for line in each.metrics} for each in runs]
    seeds = tuple(each.run.seed for each in runs)
    steps = tuple(step for step in found[0] if all(step in lines for lines in found))
    measures = {}
    for name in MEASURES:
        values = np.array([[lines[step][name] for step in steps] for lines in found])
        by_seed = dict(zip(seeds, values.tolist(), strict=True))
        measures[name] = Curves(by_seed, values.mean(0).tolist(), values.std(0).tolist())
    return VariantCurves(seeds, steps, measures)


def _level(values: Sequence[float], share: float) -> float | None:
    """``share`` of the way from the first to the last value; None if it does not lead up."""
    if not values or values[-1] <= values[0]:
        return None
    return values[0] + share * (values[-1] - values[0])


def _risen(recorded: RecordedRun, measure: str, share: float, level: float | None) -> int | None:
    """The first step beyond ``level``; by default, ``share`` of the way to the last value."""
    curve = [(line["step"], line["attention"][measure]) for line in recorded.metrics]
    bar = _level([value for _, value in curve], share) if level is None else level
    return None if bar is None else first_above(curve, bar)
