"""Induction heads on sequences longer than they were trained on (arXiv 2412.11459, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from rich.table import Table
from torch import Generator

from resval_lens.analyses.drawing.figures import STYLE, logarithmic, plt
from resval_lens.analyses.papers.memory.comparable import (
    COLOURS,
    OfRuns,
    by_variant,
    narrow_table,
    over_seeds,
    shown,
)
from resval_lens.analyses.papers.memory.model.probes import mean
from resval_lens.analyses.papers.memory.positions import (
    AttentionMap,
    attention_by_position,
    binned,
    fitted_tau1,
    position_bins,
    predicted_previous,
)
from resval_lens.analyses.papers.memory.tasks.triggers import TriggerBatch
from resval_lens.analyses.papers.memory.training import MemoryRun, scores
from resval_lens.analyses.results.result import FLAT, OPTIONAL
from resval_lens.analyses.results.seeds import Spread
from resval_lens.models.presets import Positions
from resval_lens.notes import Note
from resval_lens.training.recorded import RecordedRun

Number = TypeVar("Number")

LENGTHS = (128, 256, 1_024, 2_048)


@dataclass(frozen=True)
class Scores(Generic[Number]):
    """What a model does on sequences of one length: of one seed a number, of several a Spread.

    Attributes:
        accuracy, in_context: accuracy and loss (nats) where the context tells.
        loss, excess: mean loss, and by how much it is above the best predictor's (nats).
        previous_mass: layer 0's mean attention to t − 1.
        target_mass: layer 1's to what followed, where the context tells.
    """

    accuracy: Number
    loss: Number
    excess: Number
    in_context: Number
    previous_mass: Number
    target_mass: Number


@dataclass(frozen=True)
class AtLength(Generic[Number]):
    """``scores`` at one length; ``count`` positions, of one seed, have an accuracy."""

    length: int
    scores: Scores[Number] = field(metadata=FLAT)
    count: int | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Bin:
    """Means over the positions ``first`` to ``last``, and over how many of all sequences.

    Attributes:
        previous_mass, predicted: layer 0's attention to t − 1, and a constructed head's.
    """

    first: int
    last: int
    accuracy: float | None
    accuracy_count: int
    excess: float | None
    excess_count: int
    target_mass: float | None
    target_mass_count: int
    previous_mass: float | None
    predicted: float | None


@dataclass(frozen=True)
class MeasuredModel:
    """A run's model; ``tau1``: the strength of its previous-token head."""

    variant: str
    seed: int
    positions: Positions
    streams: list[str]
    tau1: float
    lengths: list[AtLength[float | None]]
    bins: list[Bin]


@dataclass(frozen=True)
class VariantLengths:
    """A variant's numbers over seeds."""

    lengths: list[AtLength[Spread]]
    tau1: Spread


@dataclass(frozen=True)
class LengthStudy(OfRuns):
    """Accuracy, loss and attention of trained models at several lengths.

    Attributes:
        skipped: lengths beyond the models' context.
        sequences: of each length.
        attention_sequences: of the longest, on which attention is measured.
    """

    run: MemoryRun
    trained_length: int
    lengths: list[int]
    skipped: list[int]
    sequences: list[int]
    attention_sequences: int
    seed: int
    models: list[MeasuredModel]
    over_seeds: Mapping[str, VariantLengths]

    def tables(self) -> list[Table]:
        """Accuracy, loss and attention at each length, by variant."""
        measures: dict[str, Callable[[Scores[Spread]], Spread]] = {
            "In-context accuracy": lambda row: row.accuracy,
            "Loss above the best predictor's (nats)": lambda row: row.excess,
            "Layer 0's attention to t − 1": lambda row: row.previous_mass,
            "Layer 1's attention to the target": lambda row: row.target_mass,
        }
        tables = []
        for title, of in measures.items():
            table = narrow_table(
                f"{title}, by length (trained: {self.trained_length})",
                ["variant", *(f"{length:,}" for length in self.lengths)],
            )
            for name, own in self.over_seeds.items():
                found = [of(row.scores) for row in own.lengths]
                cells = (shown(each, tight=True) for each in found)
                table.add_row(f"{name} ({len(found[0].by_seed)})", *cells)
            tables.append(table)
        return tables

    def figures(self) -> dict[str, Figure]:
        """Accuracy and both heads' attention against the position."""
        return {"memory-lengths.png": _draw(self)}

    def sentences(self) -> list[str]:
        """Which models keep their accuracy, and where their heads look."""
        trained, lengths = self.trained_length, self.lengths
        said = []
        if self.skipped:
            skipped = ", ".join(f"{length:,}" for length in self.skipped)
            said.append(f"Skipped lengths, beyond the models' context: {skipped}.")
        base = max((i for i, n in enumerate(lengths) if n <= trained), default=0)
        for name, own in self.over_seeds.items():
            accuracies = [row.scores.accuracy for row in own.lengths]
            start, end = accuracies[base].mean, accuracies[-1].mean
            if not start or end is None or base == len(lengths) - 1:
                continue
            each = ", ".join(
                f"{shown(x)} at {n:,}" for n, x in zip(lengths, accuracies, strict=True) if x.mean
            )
            said.append(
                f"{name}, trained on {trained} tokens, keeps {end / start:.0%} of its in-context "
                f"accuracy at {lengths[-1]:,}: {each}."
            )
        for name in self.over_seeds:
            said += self._attention_sentence(name)
        for name, own in self.over_seeds.items():
            other = self.over_seeds.get(f"{name}-values")
            if other:
                longest, beside = (x.lengths[-1].scores.accuracy for x in (own, other))
                said.append(
                    f"At {lengths[-1]:,} tokens {name} has {shown(longest)} without a value stream "
                    f"and {shown(beside)} with it."
                )
        return said

    def _attention_sentence(self, name: str) -> list[str]:
        """Attention to t − 1 in the last trained and the last bin, measured and predicted."""
        trained = self.trained_length
        own = [model.bins for model in self.models if model.variant == name]
        inside = [rows[max(i for i, row in enumerate(rows) if row.last <= trained)] for rows in own]
        last = [rows[-1] for rows in own]
        if last[0].last <= trained:
            return []

        def told(numbers: list[float | None]) -> str:
            whole = _mean_of(numbers)
            return "none" if whole is None else f"{whole:.3f}"

        text = (
            f"{name}: layer 0's attention to t − 1 is {told([x.previous_mass for x in inside])} at "
            f"positions {inside[0].first:,} to {inside[0].last:,} and "
            f"{told([x.previous_mass for x in last])} at {last[0].first:,} to {last[0].last:,}"
        )
        if last[0].predicted is None:
            return [text + "."]
        tau1 = shown(self.over_seeds[name].tau1, ".2f")
        return [
            f"{text}; the construction with τ1 = {tau1}, fitted to trained positions, says "
            f"{told([x.predicted for x in inside])} and {told([x.predicted for x in last])}."
        ]


def length_study(
    runs: Sequence[RecordedRun[MemoryRun]],
    lengths: Sequence[int] = LENGTHS,
    tokens: int = 2**16,
    attention: int = 8,
    seed: int = 0,
    note: Note = lambda text: None,
) -> LengthStudy:
    """Accuracy, loss and attention of trained models at several lengths.

    The models are causal: what one does at a position does not depend on how long the sequence is.
    So numbers by position pool the test sequences of every length that reach it. Positions are
    counted from 1; the bins of them double every second time.

    Args:
        runs: with trained models, which differ in variant and seed only.
        lengths: those beyond a model's ``n_ctx`` are skipped.
        tokens: test tokens of each length (one sequence at least).
        attention: sequences of the longest length on which attention is measured.
        seed: draws the sequences, the same for every model (held-out outputs aside).
        note: called with what is being done.

    Raises:
        ValueError: no run has a model; lengths or numbers below what makes sense, or runs that
            cannot be compared.
    """
    chosen = [recorded for recorded in runs if recorded.has_model]
    if not chosen:
        raise ValueError("none of these runs has a trained model; train to the end first")
    by_variant(chosen)
    for name, value in {"tokens": tokens, "attention": attention}.items():
        if value < 1:
            raise ValueError(f"{name} must be 1 or more; got {value}")
    if not lengths or min(lengths) < 2:
        raise ValueError(f"lengths must be numbers of tokens from 2 up; got {list(lengths)}")
    first = chosen[0].run
    fitting = sorted({length for length in lengths if length <= first.n_ctx})
    if not fitting:
        raise ValueError(f"lengths: the models have n_ctx={first.n_ctx}; got {list(lengths)}")
    bins = position_bins(fitting[-1], first.task.length)
    models = []
    for recorded in chosen:
        run = recorded.run
        note(f"{run.folder_name}: {', '.join(f'{length:,}' for length in fitting)} tokens")
        generator = Generator().manual_seed(seed)
        batches = [run.task.batch(max(1, tokens // n), generator, n) for n in fitting]
        looked_at = run.task.batch(attention, generator, fitting[-1])
        models.append(_measured(recorded, batches, looked_at, bins))
    return LengthStudy(
        first,
        first.task.length,
        fitting,
        sorted(set(lengths) - set(fitting)),
        [max(1, tokens // length) for length in fitting],
        attention,
        seed,
        models,
        _over_seeds(models),
    )


@torch.no_grad()
def _measured(
    recorded: RecordedRun,
    batches: Sequence[TriggerBatch],
    looked_at: TriggerBatch,
    bins: Sequence[tuple[int, int]],
) -> MeasuredModel:
    """Accuracy, loss and attention at the length of each batch and in each bin of positions."""
    run, task, model = recorded.run, recorded.run.task, recorded.model()
    attention = attention_by_position(model, looked_at)
    known_there, lengths = looked_at.in_context, []
    hits, excesses = [], []
    for batch in batches:
        right, losses, excess = scores(model, task, batch)
        hits.append(right.double())
        excesses.append(excess)
        n, known = batch.inputs.shape[1], batch.in_context
        found = Scores[float | None](
            accuracy=mean(right[known]),
            loss=mean(losses),
            excess=mean(excess),
            in_context=mean(losses[known]),
            previous_mass=mean(attention["previous_mass"][:, 1:n]),
            target_mass=mean(attention["target_mass"][:, :n][known_there[:, :n]]),
        )
        lengths.append(AtLength(n, found, int(known.sum())))
    by_position = attention["previous_mass"].mean(0)  # position t at t − 1
    tau1 = fitted_tau1(by_position[1 : task.length])
    there = [torch.ones_like(x, dtype=torch.bool) for x in excesses]
    accuracy = binned(hits, [batch.in_context for batch in batches], bins)
    above_best = binned(excesses, there, bins)
    target = binned([attention["target_mass"]], [known_there], bins)
    rows = []
    for (first, last), *measured in zip(bins, accuracy, above_best, target, strict=True):
        places = [t for t in range(first, last + 1) if t > 1]
        constructed = [predicted_previous(t, tau1, run.positions, task.length) for t in places]
        previous = mean(by_position[[t - 1 for t in places]])
        (right_share, n_right), (above, n_above), (looked, n_looked) = measured
        rows.append(
            Bin(first, last, right_share, n_right, above, n_above, looked, n_looked, previous,
                _mean_of(constructed))
        )  # fmt: skip
    streams = [stream.of for stream in run.streams]
    return MeasuredModel(run.name, run.seed, run.positions, streams, tau1, lengths, rows)


def _mean_of(numbers: Sequence[float | None]) -> float | None:
    there = [number for number in numbers if number is not None]
    return float(np.mean(there)) if there and len(there) == len(numbers) else None


def _over_seeds(models: Sequence[MeasuredModel]) -> dict[str, VariantLengths]:
    """Each variant's numbers at each length over seeds, and τ1."""
    found = {}
    for variant in dict.fromkeys(model.variant for model in models):
        own = {model.seed: model for model in models if model.variant == variant}
        scores = over_seeds(own, lambda model: [row.scores for row in model.lengths])
        lengths = [row.length for row in next(iter(own.values())).lengths]
        rows = [AtLength[Spread](n, each) for n, each in zip(lengths, scores, strict=True)]
        found[variant] = VariantLengths(rows, over_seeds(own, lambda model: model.tau1))
    return found


FEWEST = 10
"""Positions of which a mean is drawn."""
CELLS = 64
"""Rows and columns of an attention map, of which each shows the largest weight that it stands for:
a diagonal one position wide would not be seen."""


def _draw(study: LengthStudy) -> Figure:
    panels: dict[str, Callable[[Bin], float | None]] = {
        "In-context accuracy": lambda row: row.accuracy if row.accuracy_count >= FEWEST else None,
        "Layer 0: attention to t − 1": lambda row: row.previous_mass,
        "Layer 1: attention to the target": (
            lambda row: row.target_mass if row.target_mass_count >= FEWEST else None
        ),
    }
    with plt.rc_context(STYLE):
        figure, row = plt.subplots(1, 3, figsize=(12.4, 3.9), layout="constrained")
        for axes, (title, of) in zip(row, panels.items(), strict=True):
            for name in study.over_seeds:
                own = [model for model in study.models if model.variant == name]
                shade = COLOURS.get(own[0].positions, "#000000")
                style = "--" if own[0].streams else "-"
                axes.plot(*_by_bin(own, of), color=shade, ls=style, lw=1.8, label=name)
                if axes is row[1] and own[0].bins[-1].predicted is not None:
                    places, means = _by_bin(own, lambda row: row.predicted)
                    axes.plot(places, means, color=shade, ls=style, lw=0.9, alpha=0.6)
            axes.axvline(study.trained_length, color="#999999", lw=0.8, ls=":")
            axes.set(title=title, xlabel="position t", ylim=(-0.02, 1.04))
            logarithmic(axes, "x")
        row[0].set_ylabel("mean")
        row[1].plot([], [], color="#555555", lw=0.9, label="thin: as constructed")
        handles, labels = row[1].get_legend_handles_labels()
        handles.append(plt.Line2D([], [], color="#999999", lw=0.8, ls=":"))
        labels.append(f"trained to {study.trained_length}")
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6))
    return figure


def _by_bin(
    models: Sequence[MeasuredModel], of: Callable[[Bin], float | None]
) -> tuple[list[float], list[float]]:
    """The middle of each bin and the mean over models that have a number."""
    places, means = [], []
    for rows in zip(*(model.bins for model in models), strict=True):
        numbers = [number for number in map(of, rows) if number is not None]
        if numbers:
            places.append((rows[0].first * rows[0].last) ** 0.5)
            means.append(float(np.mean(numbers)))
    return places, means


def attention_maps(maps: Mapping[str, AttentionMap]) -> Figure:
    """Both layers' attention on one sequence, a column a model; lines mark the trained length."""
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            2, len(maps), figsize=(4.2 * len(maps) + 0.6, 7.8), squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for column, (name, entry) in zip(grid.T, maps.items(), strict=True):
            for layer, axes in enumerate(column):
                if layer >= len(entry.layers):
                    axes.axis("off")
                    continue
                triangle = entry.layers[layer]
                pattern = np.full((len(triangle), len(triangle)), np.nan)
                for t, weights in enumerate(triangle):
                    pattern[t, : t + 1] = weights
                pattern = largest(pattern, max(1, len(triangle) // CELLS))
                ends = (0.5, len(triangle) + 0.5)  # positions are counted from 1
                image = axes.imshow(
                    pattern, cmap="viridis", norm=PowerNorm(0.5, 0, 1),
                    extent=(*ends, *ends[::-1]), interpolation="nearest",
                )  # fmt: skip
                for draw in (axes.axvline, axes.axhline):
                    draw(entry.trained_length + 0.5, color="#999999", lw=0.8, ls=":")
                axes.set_title(f"{name}, layer {layer}")
        for axes in grid[:, 0]:
            axes.set_ylabel("from position t")
        for axes in grid[1]:
            axes.set_xlabel("to position s")
        side = max(1, len(entry.layers[0]) // CELLS)
        of = f", the largest of {side} × {side} weights" if side > 1 else ""
        figure.colorbar(image, ax=grid, shrink=0.6, label=f"attention{of} (dotted: trained length)")
    return figure


def largest(
    x: Float[np.ndarray, "rows columns"], side: int
) -> Float[np.ndarray, "fewer_rows fewer_columns"]:
    """The largest number of each ``side`` × ``side`` block, NaN where there is none."""
    rows, columns = (-(-n // side) * side for n in x.shape)
    padded = np.full((rows, columns), -np.inf)
    padded[: x.shape[0], : x.shape[1]] = np.where(np.isnan(x), -np.inf, x)
    found = padded.reshape(rows // side, side, columns // side, side).max((1, 3))
    return np.where(np.isinf(found), np.nan, found)
