"""Capitals and countries: what was learned in training against what the context says.

The simplified transformers of arXiv 2412.11459 on pairs of words, its second vocabulary (232
words). In each sequence another country than its own follows some capitals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table
from torch import Generator

from resval_lens.analyses.drawing.figures import STYLE, logarithmic, plt
from resval_lens.analyses.papers.memory.capitals import (
    Answers,
    Capital,
    Looks,
    Number,
    analogy_prompts,
    answer_summary,
    attention_to_said,
    by_capital,
    own_countries,
    with_unknown,
)
from resval_lens.analyses.papers.memory.comparable import (
    COLOURS,
    by_variant,
    check_seed,
    named,
    narrow_table,
    over_seeds,
    shown,
    tight,
)
from resval_lens.analyses.papers.memory.model.model import MemoryTransformer
from resval_lens.analyses.papers.memory.model.probes import mean
from resval_lens.analyses.papers.memory.tasks.triggers import TriggerTask
from resval_lens.analyses.papers.memory.training import MemoryRun, batch_logits
from resval_lens.analyses.results.result import FLAT, OPTIONAL, Result, plain
from resval_lens.analyses.results.seeds import Spread
from resval_lens.models.presets import MEMORY_VARIANTS, memory_variant
from resval_lens.notes import Note
from resval_lens.training.recorded import RecordedRun

Group = Literal["all", "frequent", "rare"]
_GROUPS: tuple[Group, ...] = ("all", "frequent", "rare")
Row = TypeVar("Row")

TIMES = tuple(range(7))
"""How often the context says something about the capital that is asked."""

_FOLDS = 4  # a quarter of the capitals at a time is made unknown


@dataclass(frozen=True)
class Recalled(Generic[Number]):
    """Means over capitals of what :class:`Capital` has, or of several seeds a Spread."""

    p_own: Number
    top1: Number
    overridden: Number


@dataclass(frozen=True)
class OfGroup:
    """Means over the capitals of a group, and how many they are."""

    means: Recalled[float] = field(metadata=FLAT)
    capitals: int


@dataclass(frozen=True)
class Ranks:
    """Means over the capitals of ranks ``first`` to ``last``."""

    first: int
    last: int
    p_own: float
    overridden: float


@dataclass(frozen=True)
class Attention:
    """Where the heads look after three mentions, of capitals known and made unknown."""

    known: Looks
    unknown: Looks


@dataclass(frozen=True)
class Longer(Generic[Number]):
    """In-context accuracy in the halves of sequences of twice the trained length."""

    trained: Number
    beyond: Number


@dataclass(frozen=True)
class AnalogyModel:
    """All that is measured of a run's model.

    Attributes:
        recall: by group: all, the frequent ones that make up half of all occurrences, the rest.
        wrong, right, unknown: answers after each of ``TIMES`` mentions of another country, of its
            own, and of another one after a capital that training never had.
    """

    name: str
    seed: int
    steps: int
    length: int
    by_capital: list[Capital]
    by_rank: list[Ranks]
    recall: Mapping[Group, OfGroup]
    wrong: list[Answers[float]]
    right: list[Answers[float]]
    unknown: list[Answers[float]]
    attention: Attention
    longer: Longer[float | None]


@dataclass(frozen=True)
class AnswersOverSeeds(Result):
    """What tables show of the models of one name."""

    name: str
    seeds: list[int]
    recall: Mapping[Group, Recalled[Spread]]
    longer: Longer[Spread]
    wrong: list[Answers[Spread]]
    right: list[Answers[Spread]]
    unknown: list[Answers[Spread]]

    def to_dict(self) -> dict[str, Any]:
        """Every Spread by name, like ``all_top1`` or ``wrong_2_said``."""
        document: dict[str, Any] = {"name": self.name, "seeds": self.seeds}
        for group, means in self.recall.items():
            document |= {f"{group}_{name}": plain(x) for name, x in vars(means).items()}
        document |= plain(self.longer)
        for kind, rows in (("wrong", self.wrong), ("right", self.right), ("unknown", self.unknown)):
            for times, row in zip(TIMES, rows, strict=True):
                document |= {f"{kind}_{times}_{name}": plain(x) for name, x in vars(row).items()}
        return document


@dataclass(frozen=True)
class Analogies(Result):
    """Global recall, override by the context, unknown capitals and longer sequences.

    Attributes:
        source, zipf: where the capitals are from, and how frequent.
        times: mentions in the context.
    """

    source: str | None = field(metadata=OPTIONAL)
    zipf: float | None = field(metadata=OPTIONAL)
    seed: int
    pairs: int
    times: tuple[int, ...]
    sequences: int
    models: list[AnalogyModel]
    over_seeds: list[AnswersOverSeeds]

    def tables(self) -> list[Table]:
        """Recall without context; where the context overrides it; unknown; longer sequences.

        Overridden: the share of prompts in which a country has the largest logit that was said
        twice; of all capitals, of those that make up half of all occurrences, of the rest; and of
        new ones that training never had, after the most mentions.
        """
        last, lengths = self.times[-1], {row.length for row in self.models}
        T = f"{lengths.pop():,}" if len(lengths) == 1 else "T"
        known = narrow_table(
            f"{self.pairs} capitals: recalled, and overridden by the context",
            ["model", "seeds", "recall", "P(own)", "all", "often", "rare"],
            caption="(all, often, rare: capitals of which the context is believed after saying "
            "another country twice; often are those that make up half of all occurrences)",
        )
        new = narrow_table(
            "New capitals; in-context accuracy by position",
            ["model", "seeds", "new", f"t ≤ {T}", f"t > {T}"],
            caption="(new: capitals that training never had, of which the context is believed "
            f"after saying a country {last} times)",
        )
        for row in self.over_seeds:
            of, every = [row.name, str(len(row.seeds))], row.recall["all"]
            own = [every.top1, every.p_own, *(means.overridden for means in row.recall.values())]
            known.add_row(*of, *map(tight, own))
            new.add_row(
                *of, *map(tight, (row.unknown[-1].said, row.longer.trained, row.longer.beyond))
            )
        return [known, new]

    def figures(self) -> dict[str, Figure]:
        """Recall by capital; who wins as the context repeats itself; unknown ones; longer ones."""
        return {"memory-analogies.png": _draw(self)}

    def sentences(self) -> list[str]:
        """Recall, override, unknown capitals and length."""
        said, last = [], self.times[-1]
        for row in self.over_seeds:
            name = named(row.name, row.seeds)
            once, often = (shown(row.wrong[k].said, ".0%") for k in (1, last))
            text = (
                f"{name}: {shown(row.recall['all'].top1, '.0%')} of countries are recalled without "
                "context; when the context says another one, it is believed in "
                f"{once} of prompts after one mention and {often} after {last}"
            )
            frequent, rare = row.recall["frequent"].overridden, row.recall["rare"].overridden
            if frequent.mean is not None and rare.mean is not None:
                text += (
                    f" (two mentions: {shown(frequent, '.0%')} of frequent capitals, "
                    f"{shown(rare, '.0%')} of rare ones)"
                )
            unknown = shown(row.unknown[-1].said, ".0%")
            said.append(f"{text}; of capitals it never met in {unknown}.")
            before, beyond = row.longer.trained, row.longer.beyond
            if before.mean is not None and beyond.mean is not None:
                said.append(
                    f"{name}: in-context accuracy is {shown(before, '.2f')} within the trained "
                    f"length and {shown(beyond, '.2f')} beyond."
                )
        return said


def by_rank(capitals: Sequence[Capital]) -> list[Ranks]:
    """Means over the capitals of ranks 1, 2, 3–4, 5–8, ..."""
    groups: list[Ranks] = []
    first = 1
    while first <= len(capitals):
        last = min(max(1, 2 * (first - 1)), len(capitals))
        means = _means_of(capitals[first - 1 : last])
        groups.append(Ranks(first, last, means.p_own, means.overridden))
        first = last + 1
    return groups


@torch.no_grad()
def longer(
    model: MemoryTransformer, task: TriggerTask, sequences: int, generator: Generator
) -> Longer[float | None]:
    """In-context accuracy on sequences of twice the trained length: in its halves."""
    batch = task.batch(sequences, generator, 2 * task.length)
    hits = batch_logits(model, batch.inputs).argmax(-1) == batch.targets
    halves = (slice(0, task.length), slice(task.length, None))
    return Longer(*(mean(hits[:, half][batch.in_context[:, half]]) for half in halves))


def model_answers(recorded: RecordedRun, seed: int, sequences: int) -> AnalogyModel:
    """All that is measured of one model; each kind of prompt from a generator of its own."""
    run, task, model = recorded.run, recorded.run.task, recorded.model()

    def fresh(place: int) -> Generator:
        return Generator().manual_seed(1_000 * seed + place)

    n = len(own_countries(task))
    folds = [list(range(first, n, _FOLDS)) for first in range(min(_FOLDS, n))]
    unknown: list[Answers[float]] = []
    known_looks: list[Looks] = []
    unknown_looks: list[Looks] = []
    generator, strangers = fresh(3), fresh(4)
    for times in TIMES:
        rows = []
        for fold in folds:
            prompts = analogy_prompts(task, times, generator, queries=fold)
            stranger = with_unknown(model, fold, strangers)
            rows.append(answer_summary(stranger, prompts))
            if times == 3:
                known_looks.append(attention_to_said(model, prompts))
                unknown_looks.append(attention_to_said(stranger, prompts))
        unknown.append(_mean_of(rows))
    capitals = by_capital(model, task, fresh(0))
    groups: dict[Group, list[Capital]] = {
        "all": capitals,
        "frequent": [row for row in capitals if row.frequent],
        "rare": [row for row in capitals if not row.frequent],
    }
    return AnalogyModel(
        run.name,
        run.seed,
        run.steps,
        task.length,
        capitals,
        by_rank(capitals),
        {group: OfGroup(_means_of(rows), len(rows)) for group, rows in groups.items() if rows},
        wrong=[answer_summary(model, analogy_prompts(task, k, fresh(1))) for k in TIMES],
        right=[
            answer_summary(model, analogy_prompts(task, k, fresh(2), right=True)) for k in TIMES
        ],
        unknown=unknown,
        attention=Attention(_mean_of(known_looks), _mean_of(unknown_looks)),
        longer=longer(model, task, sequences, fresh(5)),
    )


def analogies_study(
    runs: Sequence[RecordedRun[MemoryRun]],
    sequences: int = 128,
    seed: int = 0,
    note: Note = lambda text: None,
    source: str | None = None,
    zipf: float | None = None,
) -> Analogies:
    """Global recall, override by the context, unknown capitals and longer sequences of each run.

    Raises:
        ValueError: no runs, runs that differ in more than variant and seed, no sequences, a seed
            below 0 or too large, another task than :func:`capitals_task`'s, a model that was not
            kept.
    """
    check_seed(seed)
    if not runs:
        raise ValueError("runs must hold at least one run")
    by_variant(runs, ())
    if sequences < 1:
        raise ValueError(f"sequences must be 1 or more; got {sequences}")
    rows = []
    for recorded in runs:
        note(recorded.run.folder_name)
        rows.append(model_answers(recorded, seed, sequences))
    pairs = len(own_countries(runs[0].run.task))
    means = analogies_over_seeds(rows)
    return Analogies(source, zipf, seed, pairs, TIMES, sequences, rows, means)


def analogies_over_seeds(rows: Sequence[AnalogyModel]) -> list[AnswersOverSeeds]:
    """What tables show over the seeds of a name."""
    found = []
    for name in dict.fromkeys(row.name for row in rows):
        own = {row.seed: row for row in rows if row.name == name}
        recall: dict[Group, Recalled[Spread]] = {
            group: over_seeds(own, partial(_of_group, group=group)) for group in _GROUPS
        }
        found.append(
            AnswersOverSeeds(
                name,
                list(own),
                recall,
                longer=over_seeds(own, lambda each: each.longer),
                wrong=over_seeds(own, lambda each: each.wrong),
                right=over_seeds(own, lambda each: each.right),
                unknown=over_seeds(own, lambda each: each.unknown),
            )
        )
    return found


def _of_group(model: AnalogyModel, group: Group) -> Recalled[Any]:
    own = model.recall.get(group)
    return Recalled(None, None, None) if own is None else own.means


def check_variants(names: Sequence[str]) -> None:
    """Checks that variants say nothing about the task: capitals have one of their own.

    Raises:
        ValueError: one does, or there is none of that name.
    """
    for name in names:
        if "task" in memory_variant(name):
            able = ", ".join(each for each, own in MEMORY_VARIANTS.items() if "task" not in own)
            raise ValueError(f"variants: {name} has a task of its own; choose among {able}")


def _means_of(capitals: Sequence[Capital]) -> Recalled[float]:
    return _mean_of([Recalled(row.p_own, row.top1, row.overridden) for row in capitals])


def _mean_of(rows: Sequence[Row]) -> Row:
    """Dataclasses of numbers, field by field."""
    columns = zip(*(vars(row).values() for row in rows), strict=True)
    return type(rows[0])(*(sum(column) / len(rows) for column in columns))


def shade(name: str) -> str:
    """The colour of a variant's positions; black for another name."""
    return next((c for start, c in COLOURS.items() if name.startswith(start)), "#000000")


def _draw(study: Analogies) -> Figure:
    first: dict[str, AnalogyModel] = {}
    for each in study.models:
        first.setdefault(each.name, each)
    rows, times = list(first.values()), study.times
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
        for row in rows:
            colour, style = shade(row.name), "--" if "values" in row.name else "-"
            ranks = [(each.first + each.last) / 2 for each in row.by_rank]
            look: dict[str, Any] = {"color": colour, "ms": 4}
            p_own = [each.p_own for each in row.by_rank]
            grid[0, 0].plot(ranks, p_own, style, lw=1, marker="x", **look)
            overridden = [each.overridden for each in row.by_rank]
            grid[0, 0].plot(ranks, overridden, style, lw=1.8, marker="o", label=row.name, **look)
            for axes, answers in (
                (grid[0, 1], row.wrong), (grid[1, 0], row.unknown),
            ):  # fmt: skip
                said, own = [each.said for each in answers], [each.own for each in answers]
                axes.plot(times, said, style, lw=1.8, marker="o", **look)
                axes.plot(times, own, style, lw=1, marker="x", alpha=0.6, **look)
        logarithmic(grid[0, 0], "x")
        grid[0, 0].set(
            xlabel="capitals, the most frequent first", ylabel="share, or probability",
            title="○ believes what was said twice   × recalls its own unsaid", ylim=(-0.03, 1.03),
        )  # fmt: skip
        grid[0, 0].legend(fontsize=8)
        for axes, title in (
            (grid[0, 1], "The context says another country"),
            (grid[1, 0], "The same, of unknown capitals"),
        ):
            axes.set(
                xlabel="times that the context says it", ylabel="share of answers",
                title=title, ylim=(-0.03, 1.03),
            )  # fmt: skip
        grid[0, 1].plot([], [], "o-", color="#555555", label="what the context says")
        grid[0, 1].plot([], [], "x-", color="#555555", alpha=0.6, label="its own country")
        grid[0, 1].legend(fontsize=8)
        _halves(grid[1, 1], rows)
    return figure


def _halves(axes: Axes, rows: Sequence[AnalogyModel]) -> None:
    length = rows[0].length
    labels = [f"t ≤ {length}", f"t > {length}"]
    for i, row in enumerate(rows):
        heights = [row.longer.trained or 0, row.longer.beyond or 0]
        places = np.arange(2) + (i - (len(rows) - 1) / 2) * 0.8 / len(rows)
        drawn = axes.bar(
            places, heights, 0.74 / len(rows), color=shade(row.name), label=row.name,
            alpha=0.55 if "values" in row.name else 1,
        )  # fmt: skip
        axes.bar_label(drawn, [f"{h:.2f}" for h in heights], fontsize=8, padding=1)
    axes.set_xticks(range(2), labels)
    axes.set(
        ylabel="in-context accuracy", ylim=(0, 1.08),
        title=f"Sequences of {2 * length}, trained on {length}",
    )  # fmt: skip
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
