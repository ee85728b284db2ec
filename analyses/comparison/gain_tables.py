"""Gain or stream, as people see it: tables, sentences and the figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resval_lens.analyses.comparison.gain import (
    CLASSIC,
    GAIN_ALONE,
    LEVELS,
    PUBLISHED_RATE,
    STREAM,
    VARIANTS,
    Against,
    AtRate,
    GainOrStream,
)
from resval_lens.analyses.comparison.icl_emergence import IN_CONTEXT, PUBLISHED
from resval_lens.analyses.results.emergence import Share
from resval_lens.analyses.results.tables import NARROW, in_sections, optional, table
from resval_lens.tasks.icl import TASKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

SHADES = dict(zip(LEVELS, ("#9ECAE1", "#4292C6", "#084594"), strict=True))
"""Of the levels, the highest darkest."""


def rate_tables(rate: AtRate) -> list[Table]:
    """Steps and savings; tests against classic and against values; parts of the saving."""
    rows = [
        (
            where(row.task, row.level),
            row.variant,
            f"{len(row.first.there)} of {len(row.first.by_seed)}"
            if row.never
            else str(len(row.first.by_seed)),
            "never" if row.first.mean is None else f"{row.first.mean:.1f} ± {row.first.sd:.1f}",
            *told_saving(rate.compared(row.task, row.level, row.variant, CLASSIC)),
        )
        for row in rate.reached
    ]
    steps = table(
        f"Learning rate {rate.lr:g}: first snapshot (of 500 steps) above a level",
        ("", "variant"), ("seeds", "snapshot", "saved %", "bootstrap"), in_sections(rows),
        "mean ± population sd of the seeds that get there; saved: of classic's\n"
        "steps, on the seeds of both, 95% intervals by t and resampled", NARROW,
    )  # fmt: skip
    parts = [
        (
            where(each.task, each.level),
            each.variant,
            each.ours.told(),
            each.published.told() if each.published else "",
        )
        for each in rate.shares
    ]
    shares = table(
        "What is saved, in % of what the value stream saves", ("", "variant"),
        ("here", "as published"), in_sections(parts),
        "95% intervals by t, paired by seed;\nthe published saving counts as known", NARROW,
    )  # fmt: skip
    tested = (_tests(rate, second) for second in (CLASSIC, STREAM))
    return [steps, *(each for each in (*tested, shares) if each.row_count)]


def _tests(rate: AtRate, second: str) -> Table:
    rows = []
    for each in rate.against:
        if each.second == second and each.tests.p is not None:
            t, _, p, t_paired, _, p_paired = each.tests.in_order
            single, paired = ((t, p, each.effect.g), (t_paired, p_paired, each.effect.g_paired))
            cells = (
                optional(x, f)
                for x, f in zip((*single, *paired), (".1f", ".2g", ".1f") * 2, strict=True)
            )
            rows.append((where(each.task, each.level), each.first, *cells))
    return table(
        f"t-tests against {second} (t < 0: sooner than {second})", ("", "variant"),
        ("t", "p", "g", "paired\nt", "paired\np", "paired\ng"), in_sections(rows),
        "p: by Holm, for all tests of this study; g: Hedges', whose intervals\n"
        "are in the JSON; of runs that never get there, no test", NARROW,
    )  # fmt: skip


def where(task: str, level: float) -> str:
    """A task and a level, like ``IC .95``."""
    return f"{TASKS[task]} {level:g}".replace(" 0.", " .")


def told_saving(found: Against | None) -> tuple[str, str]:
    """A saving in percent with its interval, and the bootstrap's; or the most that it may be."""
    if found is None:
        return "", ""
    if found.at_most is not None:
        return f"≤ {100 * found.at_most:.0f}", ""
    resampled = found.saving.bootstrap
    return found.saving.told(), resampled.times(100).told(".0f") if resampled else ""


def percent(share: Share) -> str:
    """A share with its interval, like ``19% [12, 25]``."""
    number, *interval = share.told().split(" ", 1)
    return " ".join([f"{number}%", *interval])


def answers(rate: AtRate, task: str, level: float) -> list[str]:
    """What one level on one task says, a sentence each; of the variants that are there."""
    said = []
    stream = rate.compared(task, level, STREAM, CLASSIC)
    if stream is not None and stream.saving.share is not None:
        said.append(
            f"The value stream passes {level:g} on {TASKS[task]} in {percent(stream.saving)} fewer "
            f"steps than classic ({stream.saving.seeds} seeds; "
            f"{_tested(rate, task, level, STREAM, CLASSIC) or 'too few for a test'})."
        )
    for variant in GAIN_ALONE:
        share = rate.share(task, level, variant)
        alone = rate.compared(task, level, variant, CLASSIC)
        if share is not None and alone is not None and share.ours.share is not None:
            published = (
                f", {percent(share.published)} of what it saves in the paper"
                if share.published
                else ""
            )
            said.append(
                f"Larger values without any link ({variant}) save {percent(alone.saving)}: "
                f"{percent(share.ours)} of what the stream saves here{published} "
                f"({share.ours.seeds} seeds)."
            )
    for first, second in (
        *((STREAM, variant) for variant in GAIN_ALONE),
        ("values-norm-matched", CLASSIC),
        ("values-norm-matched", STREAM),
        ("values-detached", STREAM),
    ):
        rows = [rate.row(task, level, variant) for variant in (first, second)]
        means = [row.first.mean for row in rows if row is not None and not row.never]
        tested = _tested(rate, task, level, first, second)
        if len(means) == 2 and tested:
            said.append(
                f"{first} passes {level:g} at snapshot {means[0]:.1f}, {second} at {means[1]:.1f} "
                f"({tested})."
            )
    for row in rate.reached:
        if (row.task, row.level) == (task, level) and row.never:
            said.append(
                f"{row.never} of {len(row.first.by_seed)} runs of {row.variant} do not pass "
                f"{level:g} by step {rate.steps:,}, so it has no test."
            )
    return said


def _tested(rate: AtRate, task: str, level: float, first: str, second: str) -> str:
    """Effect sizes and p of two variants; nothing where there is no test."""
    found, sign = rate.compared(task, level, first, second), 1
    if found is None:
        found, sign = rate.compared(task, level, second, first), -1
    if found is None or found.tests.p_holm is None:
        return ""
    said = []
    effect, tests = found.effect, found.tests
    for words, g, p in (
        ("", effect.g, tests.p_holm),
        ("paired ", effect.g_paired, tests.p_paired_holm),
    ):
        size = "" if g is None else f"{words}g = {sign * g:.1f}, "
        said += [] if p is None else [f"{size}{'' if size else words}p = {p:.2g} by Holm"]
    return "; ".join(said).replace("= -", "= −")


def gain_figure(study: GainOrStream) -> Figure:
    """Of each learning rate and task: what each variant saves to each level, with intervals."""
    from resval_lens.analyses.drawing.figures import STYLE as DRAWN
    from resval_lens.analyses.drawing.figures import plt

    with plt.rc_context(DRAWN):
        figure, grid = plt.subplots(
            len(study.rates), 2, figsize=(10, 3.4 * len(study.rates)), sharey="row",
            squeeze=False, layout="constrained",
        )  # fmt: skip
        for rate, row in zip(study.rates, grid, strict=True):
            for task, axes in zip(IN_CONTEXT, row, strict=True):
                _draw(axes, rate, task)
        grid[0, 0].legend(loc="upper left", title="accuracy above")
    return figure


def _draw(axes: Axes, rate: AtRate, task: str) -> None:
    from resval_lens.analyses.drawing.marks import tip

    names = [
        name for name in VARIANTS
        if any(each.first == name and each.second == CLASSIC for each in rate.against)
    ]  # fmt: skip
    axes.axvline(0, color="#999999", lw=0.8)
    for at, level in zip((0.22, 0, -0.22), LEVELS, strict=True):
        label: str | None = f"{level:g}"
        for place, name in enumerate(names):
            found = rate.compared(task, level, name, CLASSIC)
            if found is not None and found.at_most is not None:
                (most,) = axes.plot(100 * found.at_most, place + at, "<", color=SHADES[level], ms=6)
                tip(most, f"{name}, {where(task, level)}: some never; ≤ {100 * found.at_most:.0f}%")
            if found is None or found.at_most is not None or found.saving.share is None:
                continue
            x, y, ends = 100 * found.saving.share, place + at, found.saving.interval
            if ends is not None and ends.low is not None and ends.high is not None:
                axes.plot([100 * ends.low, 100 * ends.high], [y, y], color=SHADES[level], lw=2)
            (dot,) = axes.plot(x, y, "o", color=SHADES[level], ms=6, label=label)
            tip(dot, f"{name}, {where(task, level)}: saves {percent(found.saving)}")
            label = None
            if name == STREAM and rate.lr == PUBLISHED_RATE:
                theirs = PUBLISHED[level][task]
                saved = 100 * (1 - theirs[STREAM][0] / theirs[CLASSIC][0])
                (ring,) = axes.plot(saved, y, "D", mfc="none", color=SHADES[level], ms=6)
                tip(ring, f"{name}, {where(task, level)}: published {saved:.0f}%")
    axes.set_yticks(range(len(names)), names)
    signs = "◇ published, " if rate.lr == PUBLISHED_RATE else ""
    axes.set(
        title=f"{TASKS[task]}, learning rate {rate.lr:g}",
        xlabel=f"steps saved against classic, % ({signs}◁ at most)",
        ylim=(-0.5, len(names) - 0.5),
    )  # fmt: skip
