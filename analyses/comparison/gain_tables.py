"""Gain or stream, as people see it: tables, sentences and the figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resval_lens.analyses.comparison.gain import (
    CLASSIC,
    GAIN_ALONE,
    LEVELS,
    MIXED,
    PARTS,
    PUBLISHED_RATE,
    STREAM,
    VARIANTS,
    Against,
    AtRate,
    GainOrStream,
)
from resval_lens.analyses.comparison.icl_emergence import IN_CONTEXT, PUBLISHED
from resval_lens.analyses.results.seeds import SURE, BySeed, corrected, spread, t_tests
from resval_lens.analyses.results.tables import NARROW, in_sections, optional, p_cell, p_told, table
from resval_lens.tasks.icl import TASKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

MATCHED = "values-norm-matched"
CALLED = {
    CLASSIC: "classic", STREAM: "the stream", "own-root-2": "own values × √2 without a link",
    "own-2": "own values × 2 without a link", "size-root-2": "W_V √2 times as large at first",
    "rate-2": "W_V learning twice as fast", MATCHED: "a stream of constant norm",
    "values-detached": "a stream without its gradient",
    MIXED: "half own values and half the link's",
}  # fmt: skip
"""Variants in sentences."""
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
            own, effect = each.tests, each.effect
            rows.append(
                (
                    where(each.task, each.level), each.first,
                    optional(own.t, ".1f"), p_cell(own.p_holm), optional(effect.g, ".1f"),
                    optional(own.t_paired, ".1f"), p_cell(own.p_paired_holm),
                    optional(effect.g_paired, ".1f"),
                )
            )  # fmt: skip
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


def answers(rate: AtRate, task: str, level: float) -> list[str]:
    """What one level on one task says, a sentence each; of the variants that are there."""
    said = []
    stream = rate.compared(task, level, STREAM, CLASSIC)
    if stream is not None and stream.saving.share is not None:
        said.append(
            f"To {where(task, level)} the value stream takes {stream.saving.percent()} fewer steps "
            f"than classic ({stream.saving.seeds} seeds; {_tested(stream)})."
        )
    shares = (rate.share(task, level, name) for name in (*GAIN_ALONE, *PARTS, MATCHED))
    parts = [
        f"{CALLED[each.variant]} {each.ours.percent()}"
        for each in shares
        if each is not None and each.ours.share is not None
    ]
    if parts:
        said.append(f"Of the stream’s saving to {where(task, level)}: {', '.join(parts)}.")
    for second, firsts in (
        (STREAM, (*GAIN_ALONE, *PARTS, MATCHED, "values-detached")),
        (CLASSIC, (*PARTS, MATCHED, MIXED)),
    ):
        sides = [_beside(rate, rate.compared(task, level, first, second)) for first in firsts]
        if any(sides):
            said.append(
                f"Compared with {CALLED[second]}, to {where(task, level)}: "
                f"{'; '.join(side for side in sides if side)}."
            )
    for row in rate.reached:
        if (row.task, row.level) == (task, level) and row.never:
            said.append(
                f"{row.never} of {len(row.first.by_seed)} runs of {row.variant} do not pass "
                f"{level:g} by step {rate.steps:,}, so it has no test."
            )
    return said


def between(rate: AtRate, task: str, low: float = LEVELS[0], high: float = LEVELS[-1]) -> list[str]:
    """Snapshots from one level to a higher one: a saving to the higher holds that to the lower."""
    taken: dict[str, BySeed] = {}
    for name in (CLASSIC, STREAM, *GAIN_ALONE, MATCHED):
        rows = rate.row(task, low, name), rate.row(task, high, name)
        if None not in rows and not any(row.never for row in rows if row):
            first, second = (row.first.by_seed for row in rows if row)
            taken[name] = {x: second[x] - first[x] for x in first}  # type: ignore[operator]
    base = taken.pop(CLASSIC, None)
    if base is None or STREAM not in taken:
        return []
    tests = corrected({name: t_tests(own, base) for name, own in taken.items()})
    parts = (
        f"{CALLED[name]} {spread(own).told('.1f')} (paired with classic, "
        f"{p_told(tests[name].p_paired_holm)})"
        for name, own in taken.items()
    )
    return [
        f"From {where(task, low)} to {level_told(high)}, snapshots: classic "
        f"{spread(base).told('.1f')}; {'; '.join(parts)}."
    ]


def level_told(level: float) -> str:
    """Like ``.95``."""
    return f"{level:g}".removeprefix("0")


def _tested(found: Against) -> str:
    """Effect size and p of two variants, by Holm."""
    tests, size = found.tests, optional(found.effect.g, ".1f")
    if tests.p_holm is None:
        return "too few for a test"
    in_pairs = tests.p_paired_holm
    paired = "" if in_pairs is None else f", paired by seed {p_told(in_pairs)}"
    effect = f"g = {size}, ".replace("-", "−") if size else ""
    return f"{effect}{p_told(tests.p_holm)}{paired} by Holm"


def _beside(rate: AtRate, found: Against | None) -> str:
    """How much sooner or later one variant is than another, and whether that is shown."""
    if found is None or found.tests.p_holm is None:
        return ""
    rows = [rate.row(found.task, found.level, name) for name in (found.first, found.second)]
    first, second = (row.first.by_seed for row in rows if row is not None)
    apart = spread({x: first[x] - second[x] for x in first if x in second}).mean  # type: ignore[operator]
    assert apart is not None
    p = [x for x in (found.tests.p_holm, found.tests.p_paired_holm) if x is not None]
    shown = "" if min(p) < SURE else "not shown, "
    return (
        f"{CALLED[found.first]} {abs(apart):.1f} snapshots {'later' if apart > 0 else 'sooner'} "
        f"({shown}{', paired '.join(map(p_told, p))})"
    )


def gain_figure(study: GainOrStream) -> Figure:
    """Of each learning rate and task: what each variant saves to each level, with intervals."""
    from resval_lens.analyses.drawing.figures import STYLE as DRAWN
    from resval_lens.analyses.drawing.figures import plt

    high = [0.28 * len(_drawn(rate)) + 0.88 for rate in study.rates]
    with plt.rc_context(DRAWN):
        figure, grid = plt.subplots(
            len(study.rates), 2, figsize=(10, sum(high)), height_ratios=high, sharex="col",
            sharey="row", squeeze=False, layout="constrained",
        )  # fmt: skip
        for rate, row in zip(study.rates, grid, strict=True):
            for task, axes in zip(IN_CONTEXT, row, strict=True):
                _draw(axes, rate, task)
        for axes in grid[-1]:
            axes.set_xlabel("steps saved against classic, % (◇ published, ◁ at most)")
        grid[0, 0].legend(loc="upper left", title="accuracy above")
    return figure


def _drawn(rate: AtRate) -> list[str]:
    """Variants that are compared with classic."""
    against = {each.first for each in rate.against if each.second == CLASSIC}
    return [name for name in VARIANTS if name in against]


def _draw(axes: Axes, rate: AtRate, task: str) -> None:
    from resval_lens.analyses.drawing.marks import tip

    names = _drawn(rate)
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
            tip(dot, f"{name}, {where(task, level)}: saves {found.saving.percent()}")
            label = None
            if name == STREAM and rate.lr == PUBLISHED_RATE:
                theirs = PUBLISHED[level][task]
                saved = 100 * (1 - theirs[STREAM][0] / theirs[CLASSIC][0])
                (ring,) = axes.plot(saved, y, "D", mfc="none", color=SHADES[level], ms=6)
                tip(ring, f"{name}, {where(task, level)}: published {saved:.0f}%")
    axes.set_yticks(range(len(names)), names)
    axes.set(
        title=f"{TASKS[task]}, learning rate {rate.lr:g}",
        ylim=(-0.5, len(names) - 0.5),
    )  # fmt: skip
