"""In-context against global knowledge, by counts (arXiv 2412.11459, section 4, Proposition 3).

    ξ_B1 − ξ_B2 = w [log π_b(B1|A) − log π_b(B2|A)] + τ3 (n1 − n2)/(n1 + n2)

after prompts in which B1 followed A n1 times and B2 n2 times. A constructed induction head has
w = 1 and its own τ3; of a trained one both are fitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table
from torch import Generator

from resval_lens.analyses.drawing.figures import STYLE, plt
from resval_lens.analyses.papers.memory.asked import (
    ANY_TOKEN,
    FLOOR,
    MOST,
    AskedModel,
    FlipPoint,
    flip_point,
    least_squares,
    margins,
)
from resval_lens.analyses.papers.memory.comparable import (
    check_seed,
    named,
    narrow_table,
    shown,
    tight,
)
from resval_lens.analyses.papers.memory.tasks.knowledge_prompts import knowledge_prompts
from resval_lens.analyses.results.result import Result
from resval_lens.analyses.results.seeds import Spread, spread
from resval_lens.notes import Note
from resval_lens.numbers import number

_POINTS = 8  # of each cell, kept for the scatter


@dataclass(frozen=True)
class Fit:
    """w, τ3, their standard errors, and R²."""

    weight: float
    weight_error: float
    tau3: float
    tau3_error: float
    r2: float | None


@dataclass(frozen=True)
class Flip(FlipPoint):
    """Of (2, 1); ``fitted`` is τ3/3w, where w is above 0 by two standard errors."""

    fitted: float | None


@dataclass(frozen=True)
class Counts:
    """Prompts in which B1 came n1 times and B2 n2 times: shares that B1 wins, mean margins (nats).

    Attributes:
        gap: of global knowledge.
        points: expected and measured margin of some prompts.
    """

    n1: int
    n2: int
    wins: float
    expected_wins: float
    margin: float
    expected: float
    gap: float
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Group:
    """A model that is asked after A's of one group.

    Attributes:
        majority: share of prompts with n1 ≠ n2 that the more frequent wins.
        off_expected: mean |margin − expected| (nats).
    """

    fit: Fit
    flip: Flip
    majority: float
    off_expected: float
    cells: list[Counts]


@dataclass(frozen=True)
class ModelKnowledge:
    """What one model knows, by the group of A; ``tau3`` where it is known."""

    name: str
    seed: int
    tau3: float | None
    groups: Mapping[str, Group]


@dataclass(frozen=True)
class Paired:
    """Measured and fitted, of the seeds that have both: only there the two can be compared."""

    flip: Spread
    fitted_flip: Spread


@dataclass(frozen=True)
class GroupOverSeeds:
    """The numbers of a name and group over seeds."""

    name: str
    group: str
    seeds: list[int]
    paired: Paired
    weight: Spread
    tau3: Spread
    r2: Spread
    majority: Spread
    flip: Spread
    fitted_flip: Spread


@dataclass(frozen=True)
class Knowledge(Result):
    """Who wins by counts, of every model and group; ``floor``: the probability of rare bigrams."""

    seed: int
    prompts: int
    floor: float
    subjects: list[ModelKnowledge]
    over_seeds: list[GroupOverSeeds]

    def tables(self) -> list[Table]:
        """Fit and threshold of every model and group of A's, means over seeds.

        The threshold is measured, and computed from the fit, in the same seeds: those that have
        both.
        """
        fits = narrow_table(
            "Margin = w · global gap + τ3 · (n1 − n2)/(n1 + n2)",
            ["model", "A", "seeds", "w", "τ3", "R²", "majority"], 2,
            "(majority: prompts in which what the context has more often wins)",
        )  # fmt: skip
        flips = narrow_table(
            "Gap at which the winner flips after two B1 and one B2 (nats)",
            ["model", "A", "seeds", "measured", "τ3/3w"], 2,
            "(n/N): in n of N seeds; empty: no w above 0 by two standard errors",
        )  # fmt: skip
        previous = None
        for row in self.over_seeds:
            name = "" if row.name == previous else row.name
            of = [name, row.group, str(len(row.seeds))]
            both, alone = row.paired, row.fitted_flip
            measured, fitted = (shown(x, ".1f", True) for x in (both.flip, both.fitted_flip))
            if both.flip.mean is None:
                never = alone.mean is not None
                measured, fitted = ("never", shown(alone, ".1f", True)) if never else ("", "")
            for table in (fits, flips):
                if previous is not None and name:
                    table.add_section()
            fits.add_row(
                *of,
                shown(row.weight, ".2f", True),
                shown(row.tau3, ".1f", True),
                tight(row.r2),
                shown(row.majority, ".2f", True),
            )
            flips.add_row(*of, measured, fitted)
            previous = row.name
        return [fits, flips]

    def figures(self) -> dict[str, Figure]:
        """Measured against expected margins, and who wins by counts, of one model a column."""
        return {"memory-knowledge.png": _draw(self)}

    def sentences(self) -> list[str]:
        """What competes with what."""
        said = []
        for row in self.over_seeds:
            group = "other tokens" if row.group == "others" else row.group
            where = "" if row.group == ANY_TOKEN else f" after {group}"
            text = (
                f"{named(row.name, row.seeds, where)}: the context weighs "
                f"{shown(row.tau3, '.1f')} nats, global knowledge {shown(row.weight, '.2f')} of "
                f"its own; what the context has more often wins in {shown(row.majority, '.0%')} of "
                "prompts"
            )
            flip, fitted = row.paired.flip, row.paired.fitted_flip
            if flip.mean is not None:
                there, every = len(flip.there), len(flip.by_seed)
                some = "" if there == every else f" in {there} of {every} seeds"
                text += (
                    f", and after two B1 and one B2 the winner flips{some} at a gap of "
                    f"{_of_those(flip)} nats (τ3/3w = {_of_those(fitted)})"
                )
            said.append(text + ".")
        return said


def _of_those(found: Spread) -> str:
    """Of the seeds that have a number, which the sentence has counted."""
    there = {seed: number for seed, number in found.by_seed.items() if number is not None}
    return shown(replace(found, by_seed=there), ".1f")


def group_study(
    asked: AskedModel, queries: Sequence[int] | None, prompts: int, generator: Generator
) -> Group:
    """Who wins by counts, the fit of w and τ3, and the gap at which (2, 1) flips.

    Raises:
        ValueError: as ``knowledge_prompts``.
    """
    counts: list[tuple[int, int]] = [
        (n1, n2) for n1 in range(1, MOST + 1) for n2 in range(1, MOST + 1)
    ]
    cells, gaps, shares, measured = [], [], [], []
    for n1, n2 in counts:
        drawn = knowledge_prompts(
            asked.bigrams, n1, n2, prompts, generator,
            shuffled=True, queries=queries, triggers=asked.no_fillers,
        )  # fmt: skip
        gap = drawn.global_margin(asked.bigrams, FLOOR)
        margin = margins(asked.model, drawn)
        gaps.append(gap)
        shares.append(torch.full_like(gap, drawn.context_margin))
        measured.append(margin)
    two_one = counts.index((2, 1))
    flipped = flip_point(-gaps[two_one], measured[two_one] > 0)
    gap, share, margin = torch.cat(gaps), torch.cat(shares), torch.cat(measured)
    fitted, errors, r2 = least_squares(torch.stack([gap, share], 1), margin)
    (weight, tau3), (weight_error, tau3_error) = fitted.tolist(), errors.tolist()
    expected = weight * gap + tau3 * share
    if asked.tau3 is not None:
        expected = gap + asked.tau3 * share
    for i, (n1, n2) in enumerate(counts):
        rows = slice(i * prompts, (i + 1) * prompts)
        few = slice(i * prompts, i * prompts + min(_POINTS, prompts))
        points = zip(expected[few].tolist(), margin[few].tolist(), strict=True)
        cells.append(
            Counts(
                n1,
                n2,
                wins=float((margin[rows] > 0).double().mean()),
                expected_wins=float((expected[rows] > 0).double().mean()),
                margin=float(margin[rows].mean()),
                expected=float(expected[rows].mean()),
                gap=float(gap[rows].mean()),
                points=[(round(x, 4), round(y, 4)) for x, y in points],
            )
        )
    decided = share != 0
    flips_at = tau3 / (3 * weight) if weight > 2 * weight_error else None
    return Group(
        Fit(weight, weight_error, tau3, tau3_error, r2),
        Flip(flipped.at, flipped.errors, flips_at),
        majority=float(((margin > 0) == (share > 0))[decided].double().mean()),
        off_expected=float((margin - expected).abs().mean()),
        cells=cells,
    )


def knowledge_study(
    models: Sequence[AskedModel], prompts: int = 200, seed: int = 0, note: Note = lambda text: None
) -> Knowledge:
    """:func:`group_study` of every model and group, and means over seeds.

    Args:
        prompts: for each (n1, n2). Models of one vocabulary see the same in a group if A and
            the fillers are drawn among the same tokens: runs with fixed triggers do, and so do
            constructed models and runs with drawn triggers, in which A and fillers are any.

    Raises:
        ValueError: fewer than 2 prompts, a seed below 0 or above ``LARGEST_SEED``, or prompts that
            a model is too short for.
    """
    check_seed(seed)
    if prompts < 2:
        raise ValueError(f"prompts must be 2 or more; got {prompts}")
    known = []
    for asked in models:
        of_groups = {}
        for place, (group, queries) in enumerate(asked.groups.items()):
            note(f"{asked.name}: {group}")
            generator = Generator().manual_seed(1_000 * seed + place)
            of_groups[group] = group_study(asked, queries, prompts, generator)
        known.append(ModelKnowledge(asked.name, asked.seed, asked.tau3, of_groups))
    return Knowledge(seed, prompts, FLOOR, known, knowledge_over_seeds(known))


def knowledge_over_seeds(known: Sequence[ModelKnowledge]) -> list[GroupOverSeeds]:
    """Each number of :class:`Group` over the seeds of a name and group."""
    rows = []
    for name in dict.fromkeys(each.name for each in known):
        own = [each for each in known if each.name == name]
        for group in own[0].groups:
            by_seed = {each.seed: each.groups[group] for each in own if group in each.groups}
            flip = {seed: each.flip.at for seed, each in by_seed.items()}
            fitted = {seed: each.flip.fitted for seed, each in by_seed.items()}
            whole = {s: flip[s] is not None and fitted[s] is not None for s in by_seed}
            paired = (
                spread({seed: x if whole[seed] else None for seed, x in numbers.items()})
                for numbers in (flip, fitted)
            )
            rows.append(
                GroupOverSeeds(
                    name,
                    group,
                    list(by_seed),
                    Paired(*paired),
                    weight=spread({seed: each.fit.weight for seed, each in by_seed.items()}),
                    tau3=spread({seed: each.fit.tau3 for seed, each in by_seed.items()}),
                    r2=spread({seed: each.fit.r2 for seed, each in by_seed.items()}),
                    majority=spread({seed: each.majority for seed, each in by_seed.items()}),
                    flip=spread(flip),
                    fitted_flip=spread(fitted),
                )
            )
    return rows


GROUPS = {"triggers": "#0072B2", "others": "#D55E00", ANY_TOKEN: "#555555"}


def _draw(study: Knowledge) -> Figure:
    first: dict[str, ModelKnowledge] = {}
    for each in study.subjects:
        first.setdefault(each.name, each)
    columns = list(first.values())
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            3, len(columns), figsize=(2.7 * len(columns) + 0.8, 8), squeeze=False,
            layout="constrained",
        )  # fmt: skip
        image = None
        for column, one in zip(grid.T, columns, strict=True):
            _scatter(column[0], one)
            groups = list(one.groups)
            for axes, name in zip(column[1:], (*groups, "", "")[:2], strict=True):
                if name:
                    image = _winners(axes, one.groups[name], name)
                else:
                    axes.set_visible(False)
        grid[0, 0].set_ylabel("measured ξ(B1) − ξ(B2)")
        grid[1, 0].set_ylabel("n1, times B1")
        if image is not None:
            figure.colorbar(image, ax=grid[1:], shrink=0.6, label="share of prompts that B1 wins")
    return figure


def _scatter(axes: Axes, one: ModelKnowledge) -> None:
    notes = []
    for name, group in one.groups.items():
        points = np.array([point for cell in group.cells for point in cell.points])
        axes.scatter(
            points[:, 0], points[:, 1], s=5, alpha=0.5, lw=0, color=GROUPS[name], label=name
        )
        fit = group.fit
        weight, strength = number(fit.weight, "z.2f"), number(fit.tau3, "z.1f")
        notes.append(f"{name}: w = {weight}, τ3 = {strength}")
    low, high = axes.get_xlim()
    axes.plot([low, high], [low, high], color="black", lw=0.8, ls=":")
    seed = f", seed {one.seed}"
    axes.set(xlabel="expected (nats)")
    axes.set_title(f"{one.name}{seed}\n" + "\n".join(notes), fontsize=9)
    axes.legend(fontsize=8, markerscale=2.5, loc="upper left", handletextpad=0.1)


def _winners(axes: Axes, group: Group, name: str) -> Any:
    most = max(cell.n1 for cell in group.cells)
    wins = np.full((most, most), np.nan)
    for cell in group.cells:
        wins[cell.n1 - 1, cell.n2 - 1] = cell.wins
    image = axes.imshow(wins, origin="lower", cmap="PuOr_r", vmin=0, vmax=1)
    for (i, j), share in np.ndenumerate(wins):
        dark = abs(share - 0.5) > 0.3
        axes.text(j, i, f"{share:.2f}".lstrip("0"), ha="center", va="center", fontsize=7,
                  color="white" if dark else "black")  # fmt: skip
    axes.set_xticks(range(most), [str(n + 1) for n in range(most)])
    axes.set_yticks(range(most), [str(n + 1) for n in range(most)])
    axes.set_title(f"A: {name}", fontsize=9)
    axes.set_xlabel("n2, times B2")
    return image
