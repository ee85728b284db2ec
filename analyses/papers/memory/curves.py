"""When in training each memory of an induction head is there (arXiv 2412.11459, 2306.00802)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from resval_lens.analyses.drawing.figures import STYLE, plt
from resval_lens.analyses.papers.memory.comparable import (
    OfRuns,
    by_variant,
    narrow_table,
    shown,
)
from resval_lens.analyses.papers.memory.tasks.triggers import TriggerTask
from resval_lens.analyses.papers.memory.training import MemoryRun
from resval_lens.analyses.results.emergence import first_above
from resval_lens.analyses.results.seeds import Spread, spread
from resval_lens.analyses.results.tables import optional
from resval_lens.models.presets import Positions
from resval_lens.training.recorded import RecordedRun

Measure = Literal[
    "W_O2", "W_O2_alone", "W_K2", "W_K1", "W_K1_near", "W_K1_far", "W_F", "W_F_alone",
    "previous", "target", "accuracy",
]  # fmt: skip


class Followed(NamedTuple):
    """What is followed: where it lies in a snapshot's metrics, and its names.

    Attributes:
        head: of its column, if tables have one.
        look: colour and line, if it is drawn.
    """

    group: str
    key: str
    label: str
    head: str = ""
    look: tuple[str, str] | None = None


MEASURES: dict[Measure, Followed] = {
    "W_O2": Followed("recall", "W_O2_read", "W_O² via W_F", "W_O²\nvia W_F", ("#D55E00", "-")),
    "W_O2_alone": Followed("recall", "W_O2", "W_O²"),
    "W_K2": Followed("recall", "W_K2", "W_K²", "W_K²", ("#0072B2", "-")),
    "W_K1": Followed("recall", "W_K1", "W_K¹", "W_K¹", ("#009E73", "-")),
    "W_K1_near": Followed("recall", "W_K1_near", "W_K¹ (t < 64)", look=("#009E73", "--")),
    "W_K1_far": Followed("recall", "W_K1_far", "W_K¹ (t ≥ 64)", look=("#009E73", ":")),
    "W_F": Followed("recall", "global_kl", "W_F", "W_F", ("#E69F00", "-")),
    "W_F_alone": Followed("recall", "W_F_kl", "W_F alone"),
    "previous": Followed("attention", "previous", "layer 0 looks at t − 1", "t − 1"),
    "target": Followed("attention", "target", "layer 1 looks at the target", "target"),
    "accuracy": Followed(
        "trained", "accuracy", "in-context accuracy", "accuracy", ("#222222", "-")
    ),
}
"""The divergence of W_F becomes a share.

The readout hears W_O² via W_F, and W_F beside the token itself; "alone" are the matrices
without, as the papers probe them.
"""

HEADS = {name: own.head for name, own in MEASURES.items() if own.head}
"""What tables have."""
DRAWN = {name: own.look for name, own in MEASURES.items() if own.look}
ONE_LAYER, TWO_LAYERS = 0.55, 0.99
"""In-context accuracies that arXiv 2306.00802 reports, about."""

PUBLISHED: tuple[tuple[Measure, Measure], ...] = (
    ("W_O2_alone", "W_K2"), ("W_O2", "W_K2"), ("W_O2", "W_K1"), ("W_K2", "W_K1"),
)  # fmt: skip
"""Memories of which arXiv 2306.00802 reports that the first is learned before the second.

W_O² as it is probed there, and as the readout hears it.
"""

_SHARES: tuple[Measure, ...] = ("W_F", "W_F_alone")


@dataclass(frozen=True)
class VariantCurves:
    """Every measure of a variant's runs.

    Attributes:
        ended: whether all runs are at their end.
        steps: of the snapshots, by seed.
        curves: by measure and seed.
        first: the first step at which it passes.
        final: the last value.
        order: measures by their mean first step, equal ones together.
    """

    positions: Positions
    n_layers: int
    ended: bool
    steps: Mapping[int, list[int]]
    curves: Mapping[Measure, Mapping[int, list[float | None]]]
    first: Mapping[Measure, Spread]
    final: Mapping[Measure, Spread]
    order: list[list[Measure]]

    def told_order(self) -> str:
        """Measures in their order with the steps, and those that pass later, or never."""
        ranked = [
            " and ".join(MEASURES[name].label for name in group)
            + f" (step {shown(self.first[group[0]], '.0f')})"
            for group in self.order
        ]
        late = [
            f"{MEASURES[name].label} ({shown(self.final[name])} at the end)"
            for name in HEADS
            if name in self.first and not any(name in group for group in self.order)
        ]
        never = "not in every seed: " if len(self.steps) > 1 else "not yet: "
        parts = [", then ".join(ranked)] if ranked else []
        return "; ".join(parts + ([never + ", ".join(late)] if late else []))

    def passed(self, name: Measure) -> str:
        """From which step on it is there."""
        first = self.first[name]
        return "never" if first.mean is None else f"from step {shown(first, '.0f')} on"


@dataclass(frozen=True)
class CurveStudy(OfRuns):
    """Curves of every measure, the first step at which each passes, and the order, by variant.

    Attributes:
        level: above it a measure passes; recall and attention are shares, see
            :mod:`resval_lens.analyses.papers.memory.model.probes`.
        known: the same for W_F, the share of the bigrams that it tells,

                1 − KL / (log V − H),    H: mean entropy of π_b(·|u) over KL's tokens

            0 where it answers uniformly, 1 where it knows them all.
    """

    level: float
    known: float
    run: MemoryRun
    variants: Mapping[str, VariantCurves]

    def tables(self) -> list[Table]:
        """When each measure passes, and where it ends, by variant."""
        first, final = (
            narrow_table(title, ["variant", *HEADS.values()])
            for title in (
                f"First step above {self.level:g} (W_F: {self.known:.0%} of bigrams)",
                "At the last step",
            )
        )
        for name, own in self.variants.items():
            named = f"{name} ({len(own.steps)})"
            there = [own.first.get(measure) for measure in HEADS]
            first.add_row(named, *("" if x is None else shown(x, ".0f", True) for x in there))
            there = [own.final.get(measure) for measure in HEADS]  # no room for deviations
            final.add_row(named, *("" if x is None else optional(x.mean, ".2f") for x in there))
        final.caption = (
            "(variant (seeds), means; recall of the memories; what W_F tells\n"
            "of the bigrams; share of positions that look at t − 1, at the\n"
            "target; in-context accuracy)"
        )
        return [first, final]

    def figures(self) -> dict[str, Figure]:
        """Recall of each memory and in-context accuracy against the step, a panel a variant."""
        return {"memory-curves.png": _draw(self)}

    def sentences(self) -> list[str]:
        """The order of learning of each variant, and what is known about it beside the found."""
        said = [
            f"Steps are of snapshots, one in {self.run.snapshot_every}. A memory is there above "
            f"{self.level:g} recall, W_F above {self.known:.0%} of what the bigrams tell."
        ]
        for name, own in self.variants.items():
            said.append(f"{name}{'' if own.ended else ' (still in training)'}: {own.told_order()}.")
        told = self.told_order()
        if told:
            said.append(
                f"Known is that W_O² comes first and W_K² is easier than W_K¹. Here {told}."
            )
        for name, own in self.variants.items():
            if "W_K1_far" in own.first:
                near, far = own.final["W_K1_near"], own.final["W_K1_far"]
                said.append(
                    f"{name}: at the end W_K¹ recalls {shown(near)} of the positions below 64 and "
                    f"{shown(far)} of the later ones (above {self.level:g}: "
                    f"{own.passed('W_K1_near')}, {own.passed('W_K1_far')})."
                )
        ends = {n: own for n, own in self.variants.items() if "accuracy" in own.final}
        said += [
            f"{name}, a single layer, ends at {shown(own.final['accuracy'])} in-context accuracy "
            f"(published: about {ONE_LAYER:.2f}; two layers about {TWO_LAYERS:.2f})."
            for name, own in ends.items()
            if own.n_layers == 1
        ]
        each = ", ".join(
            f"{name} {shown(own.final['accuracy'])}"
            for name, own in ends.items()
            if own.n_layers == 2
        )
        if each:
            said.append(f"In-context accuracy of two layers at the last step: {each}.")
        return said

    def told_order(self) -> str:
        """In how many of the two-layer runs one memory passes before another; "" if none passes."""
        two = [own for own in self.variants.values() if own.n_layers == 2]
        counts = [
            (f"{MEASURES[a].label} before {MEASURES[b].label}", before(two, a, b))
            for a, b in PUBLISHED
        ]
        return ", ".join(
            f"{what} in {count.earlier} of {count.runs} runs"
            + (f" ({count.together} at the same snapshot)" if count.together else "")
            for what, count in counts
            if count.runs
        )


def curve_study(
    runs: Sequence[RecordedRun[MemoryRun]], level: float = 0.9, known: float = 0.5
) -> CurveStudy:
    """Curves of every measure of the runs, which differ in variant and seed only.

    A measure passes at the first snapshot where it exceeds ``level``, W_F where it exceeds
    ``known``. Of a run that has not ended there is what it has.

    Raises:
        ValueError: a level that is not between 0 and 1, or runs that cannot be compared.
    """
    for name, value in {"level": level, "known": known}.items():
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie between 0 and 1; got {value!r}")
    variants = {}
    for name, own in by_variant(runs).items():
        curves = {
            measure: {recorded.run.seed: _curve(recorded, measure) for recorded in own}
            for measure in MEASURES
        }
        steps = {recorded.run.seed: [line["step"] for line in recorded.metrics] for recorded in own}
        first = {
            measure: {
                seed: first_above(
                    zip(steps[seed], curve, strict=True),
                    known if measure in _SHARES else level,
                )
                for seed, curve in by_seed.items()
            }
            for measure, by_seed in curves.items()
            if any(x is not None for curve in by_seed.values() for x in curve)
        }
        variants[name] = VariantCurves(
            own[0].run.positions,
            own[0].run.n_layers,
            all(recorded.done for recorded in own),
            steps,
            {measure: curves[measure] for measure in first},
            {measure: spread(numbers) for measure, numbers in first.items()},
            {
                measure: spread({seed: curve[-1] for seed, curve in curves[measure].items()})
                for measure in first
            },
            order({measure: first[measure] for measure in HEADS if measure in first}),
        )
    return CurveStudy(level, known, runs[0].run, variants)


def order(first: Mapping[Measure, Mapping[int, int | None]]) -> list[list[Measure]]:
    """Names by their mean step over seeds, equal ones together; without those a seed never saw."""
    means = {
        name: float(np.mean([step for step in by_seed.values() if step is not None]))
        for name, by_seed in first.items()
        if None not in by_seed.values()
    }
    return [[n for n in means if means[n] == mean] for mean in sorted(set(means.values()))]


def bigram_information(task: TriggerTask) -> float:
    """log V − mean H(π_b(·|u)) over tokens u that occur and are no fixed triggers, in nats."""
    bigrams = task.bigrams
    counted = bigrams.unigram_counts > 0
    counted[list(task.trigger_tokens if task.triggers == "fixed" else ())] = False
    pi = bigrams.conditional[counted]
    entropy = -torch.special.xlogy(pi, pi).sum(1)
    return float(np.log(bigrams.d_vocab) - entropy.mean())


def _curve(recorded: RecordedRun, measure: Measure) -> list[float | None]:
    own = MEASURES[measure]
    values: list[float | None] = [line[own.group].get(own.key) for line in recorded.metrics]
    if measure in _SHARES:
        whole = bigram_information(recorded.run.task)
        return [None if kl is None else 1 - kl / whole for kl in values]
    return values


class Count(NamedTuple):
    """Runs in which one memory passes a level before another.

    Attributes:
        earlier: it passes first, or alone.
        together: both pass at one snapshot.
        runs: in which at least one passes.
    """

    earlier: int
    together: int
    runs: int

    @property
    def later(self) -> int:
        """Runs in which the other passes first, or alone."""
        return self.runs - self.earlier - self.together

    def told(self) -> str:
        """As a + b / c: earlier, at one snapshot, of all."""
        same = f"+{self.together}" if self.together else ""
        return f"{self.earlier}{same}/{self.runs}" if self.runs else "none"

    def outcome(self, first: str, second: str) -> str:
        """Which of the two passes first in more runs, by its name."""
        if not self.runs:
            return "neither passes"
        if self.earlier == self.later:
            return "none is first more often"
        name, most = (first, self.earlier) if self.earlier > self.later else (second, self.later)
        return f"{name} first " + (f"in all {most}" if most == self.runs else "more often")


def before(variants: Sequence[VariantCurves], a: Measure, b: Measure) -> Count:
    """In how many runs ``a`` passes before ``b``; a memory that never passes is late."""
    pairs = [
        (first, variant.first[b].by_seed[seed])
        for variant in variants
        if a in variant.first and b in variant.first
        for seed, first in variant.first[a].by_seed.items()
    ]
    some = [(one, other) for one, other in pairs if one is not None or other is not None]
    earlier = sum(one is not None and (other is None or one < other) for one, other in some)
    return Count(earlier, sum(one == other for one, other in some), len(some))


COLUMNS = 5


def _draw(study: CurveStudy) -> Figure:
    variants = study.variants
    rows = -(-len(variants) // COLUMNS)
    columns = -(-len(variants) // rows)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            rows, columns, figsize=(2.6 * columns + 0.4, 2.5 * rows + 0.7), sharex=True,
            sharey=True, squeeze=False, layout="constrained",
        )  # fmt: skip
        for axes in grid.flat[len(variants) :]:
            axes.axis("off")
        for axes, (name, own) in zip(grid.flat, variants.items(), strict=False):
            _curve_panel(axes, own)
            axes.axhline(study.level, color="#999999", lw=0.8, ls=":")
            axes.set(title=name, ylim=(-0.03, 1.05))
            axes.tick_params(labelbottom=True)
            axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.margins(x=0)
        for axes in grid[:, 0]:
            axes.set_ylabel("recall, accuracy")
        for i in range(max(0, len(variants) - columns), len(variants)):
            grid.flat[i].set_xlabel("step")
        there = {measure for own in variants.values() for measure in own.curves}
        there -= set() if "W_K1_far" in there else {"W_K1_near"}
        handles = [
            plt.Line2D([], [], color=shade, ls=style, lw=2, label=_label(measure))
            for measure, (shade, style) in DRAWN.items()
            if measure in there
        ]
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=min(len(handles), 4 if columns < 4 else 7),
        )
    return figure


def _label(measure: Measure) -> str:
    return "W_F (share of the bigrams)" if measure == "W_F" else MEASURES[measure].label


def _curve_panel(axes: Axes, own: VariantCurves) -> None:
    for measure, (shade, style) in DRAWN.items():
        if measure not in own.curves or (
            measure == "W_K1_near" and "W_K1_far" not in own.curves  # all are near
        ):
            continue
        by_seed = own.curves[measure]
        shortest = min(map(len, by_seed.values()))
        lines = np.array([line[:shortest] for line in by_seed.values()], dtype=float)
        steps = next(iter(own.steps.values()))[:shortest]
        if len(lines) > 1:
            axes.plot(steps, lines.T, color=shade, ls=style, lw=0.7, alpha=0.35)
        axes.plot(steps, lines.mean(0), color=shade, ls=style, lw=1.8)
