"""The induction head written down beside its closed form (arXiv 2412.11459, sections 3 and 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table
from torch import Generator

from resval_lens.analyses.drawing.figures import STYLE, logarithmic, plt
from resval_lens.analyses.papers.memory.asked import (
    FLOOR,
    FlipPoint,
    flip_point,
    global_knowledge,
    margins,
)
from resval_lens.analyses.papers.memory.comparable import COLOURS, check_seed, narrow_table
from resval_lens.analyses.papers.memory.construction import (
    Deviations,
    Heads,
    Strengths,
    constructed_model,
    deviations,
    heads_summary,
    run_heads,
)
from resval_lens.analyses.papers.memory.model.predictions import predict, previous_token_attention
from resval_lens.analyses.papers.memory.tasks.bigrams import Bigrams, tiny_shakespeare
from resval_lens.analyses.papers.memory.tasks.knowledge_prompts import knowledge_prompts
from resval_lens.analyses.papers.memory.tasks.triggers import TriggerTask
from resval_lens.analyses.results.result import FLAT, Result, plain
from resval_lens.models.presets import Positions
from resval_lens.notes import Note

KINDS: tuple[tuple[Positions, str], ...] = (
    ("absolute", ""),
    ("relative", ""),
    ("absolute", "v"),
    ("relative", "v"),
)
"""Positions and streams that are constructed."""

WIDTHS = (128, 256, 512, 1024, 2048)
"""d_model of the models of random vectors."""

THRESHOLDS = ((2, 1), (3, 1), (3, 2))
"""Counts (n1, n2) at which the flip of the winner is measured."""

SHORT = {"absolute": "APE", "relative": "RPE"}


@dataclass(frozen=True)
class Threshold:
    """The global gap against B1 at which B2 wins, n1 times B1 against n2 times B2 in the context.

    Attributes:
        predicted: τ3 (n1 − n2)/(n1 + n2).
        found: where the winner flips.
        context: what the context adds to the margin, mean.
        gap, wins: share of prompts that B1 wins, by the middles of bins of the gap.
    """

    predicted: float
    found: FlipPoint = field(metadata=FLAT)
    context: float
    gap: list[float]
    wins: list[float | None]


@dataclass(frozen=True)
class Thresholds:
    """By counts "n1:n2", of the exact model and of the widest of random vectors."""

    exact: Mapping[str, Threshold]
    random: Mapping[str, Threshold]


@dataclass(frozen=True)
class Constructed:
    """A constructed model, how far it is from the closed form, and what it computes."""

    exact: bool
    d_model: int
    deviation: Deviations
    heads: Heads = field(metadata=FLAT)


@dataclass(frozen=True)
class Kind:
    """Positions and streams: the closed form, an exact model and those of random vectors."""

    positions: Positions
    streams: str
    predicted: Heads
    constructed: list[Constructed]

    @property
    def exact(self) -> Constructed:
        """The model with dual vectors."""
        return next(run for run in self.constructed if run.exact)

    @property
    def random(self) -> list[Constructed]:
        """The models of random vectors, the narrowest first."""
        found = (run for run in self.constructed if not run.exact)
        return sorted(found, key=lambda run: run.d_model)


@dataclass(frozen=True)
class ClosedForm:
    """Attention to t − 1 from t = 2, 3, ... of a head that knows t, and of one that does not."""

    on: list[float]
    off: list[float]


@dataclass(frozen=True)
class PredictionRow:
    """What is predicted, of the exact model, of the widest of random vectors."""

    prediction: str
    unit: str
    predicted: float | None
    exact: float | None
    random: float | None


@dataclass(frozen=True)
class Construction(Result):
    """Constructed models beside the closed form, on sequences of twice the trained length."""

    seed: int
    strengths: Strengths
    trained_length: int
    length: int
    sequences: int
    floor: float
    widths: list[int]
    closed_form: ClosedForm
    kinds: list[Kind]
    thresholds: Thresholds

    def to_dict(self) -> dict[str, Any]:
        """The fields, and the predictions."""
        return {**super().to_dict(), "predictions": plain(self.predictions())}

    @property
    def without_streams(self) -> list[Kind]:
        """Absolute and relative positions."""
        return [kind for kind in self.kinds if not kind.streams]

    def predictions(self) -> list[PredictionRow]:
        """Every prediction beside the exact model and the widest of random vectors."""
        trained, rows = self.trained_length, []
        for kind in self.without_streams:
            short = SHORT[kind.positions]
            closed, exact, widest = kind.predicted, kind.exact.heads, kind.random[-1].heads
            for t in (trained, trained + 1, self.length):
                on = kind.positions == "relative" or t <= trained
                form = self.closed_form.on if on else self.closed_form.off
                rows.append(
                    PredictionRow(
                        f"{short}: attention at t − 1, t = {t}", "attention",
                        form[t - 2], exact.attention[t - 2], widest.attention[t - 2],
                    )
                )  # fmt: skip
            measures: tuple[tuple[str, str, Callable[[Heads], float | None]], ...] = (
                ("attention on what followed", "attention", lambda own: own.target),
                (f"in-context accuracy, t ≤ {trained}", "accuracy", lambda own: own.accuracy),
                (f"in-context accuracy, t > {trained}", "accuracy", lambda own: own.accuracy_later),
            )  # fmt: skip
            rows += [
                PredictionRow(f"{short}: {what}", unit, of(closed), of(exact), of(widest))
                for what, unit, of in measures
            ]
        for counts, row in self.thresholds.exact.items():
            name = f"{counts.replace(':', ' B1, ')} B2: gap at which B2 wins"
            other = self.thresholds.random[counts].found.at
            rows.append(PredictionRow(name, "nats", row.predicted, row.found.at, other))
        return rows

    def tables(self) -> list[Table]:
        """Each prediction; deviations and accuracy by width, of a stream only the ends."""
        rows = narrow_table(
            "Constructed induction heads",
            ["prediction", "predicted", "exact", f"d = {max(self.widths):,}"],
        )
        previous = None
        for row in self.predictions():
            group = row.prediction[:3]
            if previous not in (None, group) and not (group[0].isdigit() and previous[0].isdigit()):
                rows.add_section()
            previous = group
            numbers = (row.predicted, row.exact, row.random)
            rows.add_row(row.prediction, *(_number(x, row.unit) for x in numbers))
        off = narrow_table(
            "Mean deviation from the closed form",
            ["positions", "d", "α", "β", "logits (nats)", "accuracy"],
        )
        for kind in self.kinds:
            name = SHORT[kind.positions] + (", values" if kind.streams else "")
            every = kind.constructed
            for i, run in enumerate([every[0], every[-1]] if kind.streams else every):
                far = run.deviation
                off.add_row(
                    "" if i else name,
                    f"{run.d_model:,}{', exact' if run.exact else ''}",
                    *(_short(each.mean) for each in (far.alpha, far.beta, far.logits)),
                    _number(run.heads.accuracy, "accuracy"),
                )
            off.add_section()
        return [rows, off]

    def figures(self) -> dict[str, Figure]:
        """Attention to the previous token; deviations by width; the winner by the gap."""
        return {"memory-construction.png": _draw(self)}

    def sentences(self) -> list[str]:
        """What the construction showed."""
        exact = [kind.exact.deviation for kind in self.kinds]
        alpha, beta, logits = (
            max(each.largest for each in parts)
            for parts in zip(*((far.alpha, far.beta, far.logits) for far in exact), strict=True)
        )
        widest, narrowest = max(self.widths), min(self.widths)
        said = [
            "With dual vectors the models equal the closed form to rounding: the largest "
            f"deviations are {alpha:.0e} (α), {beta:.0e} (β) and {logits:.0e} nats."
        ]
        for kind in self.without_streams:
            by_width = {run.d_model: run for run in kind.random}
            ends = [by_width[width] for width in dict.fromkeys((narrowest, widest))]
            at = f"from d = {narrowest} to {widest}" if len(ends) > 1 else f"at d = {widest}"
            text = (
                f"Random vectors, {kind.positions} positions: {at} the logits' mean deviation "
                + _from_to([f"{run.deviation.logits.mean:.2g}" for run in ends])
                + " nats"
            )
            if kind.predicted.accuracy is not None:
                accuracies = [_number(run.heads.accuracy, "accuracy") for run in ends]
                text += (
                    f", in-context accuracy {_from_to(accuracies)} (closed form: "
                    f"{_number(kind.predicted.accuracy, 'accuracy')})"
                )
            said.append(text + ".")
        row = self.thresholds.exact["2:1"]
        if row.found.at is not None:
            said.append(
                "After two B1 and one B2 the winner flips at a global gap of "
                f"{row.found.at:.3f} nats; τ3/3 is {row.predicted:.3f}."
            )
        return said


def _short(value: float) -> str:
    return f"{value:.0e}" if value < 1e-4 else f"{value:.2g}"


def _from_to(numbers: Sequence[str]) -> str:
    return f"goes from {numbers[0]} to {numbers[1]}" if len(numbers) > 1 else f"is {numbers[0]}"


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if unit == "attention" else f"{value:.3f}"


def thresholds(
    d_vocab: int, generator: Generator, strengths: Strengths, d_model: int | None, n: int = 1_000
) -> dict[str, Threshold]:
    """:class:`Threshold` of each of the counts, "n1:n2".

    The model's global knowledge is made up: log π_b(v|u) ~ N(0, (τ3/3)²), normalised and
    floored, so that gaps are of the size of what the context says.
    """
    tau3 = strengths.tau3
    drawn = torch.randn(d_vocab, d_vocab, generator=generator, dtype=torch.float64) * tau3 / 3
    made_up = drawn.softmax(-1)
    every = torch.full((d_vocab,), 1 / d_vocab, dtype=torch.float64)
    bigrams = Bigrams.from_probabilities([str(i) for i in range(d_vocab)], every, made_up)
    longest = max(3 * sum(counts) + 2 for counts in THRESHOLDS)
    model = constructed_model(
        global_knowledge(bigrams), generator, n_ctx=longest, d_model=d_model, strengths=strengths
    )
    found = {}
    for n1, n2 in THRESHOLDS:
        prompts = knowledge_prompts(bigrams, n1, n2, n, generator)
        against, margin = -prompts.global_margin(bigrams, FLOOR), margins(model, prompts)
        edges = torch.arange(-4, 25, dtype=torch.float64) * tau3 / 20
        bins = torch.bucketize(against, edges)
        inside = [(bins == i).nonzero().flatten() for i in range(1, len(edges))]
        found[f"{n1}:{n2}"] = Threshold(
            tau3 * prompts.context_margin,
            flip_point(against, margin > 0),
            context=float((margin + against).mean()),
            gap=[float(a + b) / 2 for a, b in pairwise(edges)],
            wins=[float((margin[i] > 0).double().mean()) if len(i) else None for i in inside],
        )
    return found


@torch.no_grad()
def construction_study(
    seed: int = 0,
    widths: Sequence[int] = WIDTHS,
    strengths: Strengths | None = None,
    *,
    bigrams: Bigrams | None = None,
    trained: int = 128,
    sequences: int = 6,
    note: Note = lambda text: None,
) -> Construction:
    """Constructed models beside the closed form, on sequences of twice the trained length.

    Args:
        widths: d_model of the models with random vectors; beside them an exact one of each kind.
        trained: T, the positions that an absolute previous-token head knows.
        sequences: of Tiny Shakespeare's bigrams with triggers (or of ``bigrams``).

    Raises:
        ValueError: no widths or one below 1, fewer than 2 trained positions, no sequences, or a
            seed below 0 or too large.
    """
    check_seed(seed)
    if not widths or min(widths) < 1:
        raise ValueError(f"widths must be numbers above 0; got {list(widths)}")
    if trained < 2:
        raise ValueError(f"trained must be 2 positions or more; got {trained}")
    if sequences < 1:
        raise ValueError(f"sequences must be 1 or more; got {sequences}")
    taus, bigrams = strengths or Strengths(), bigrams or tiny_shakespeare()
    generator = Generator().manual_seed(seed)
    task = TriggerTask(bigrams, length=trained)
    batch = task.batch(sequences, generator, 2 * trained)
    logs = global_knowledge(bigrams)
    kinds = []
    for positions, streams in KINDS:
        prediction = predict(
            batch.inputs, logs, **asdict(taus),
            trained_length=trained, relative=positions == "relative",
        )  # fmt: skip
        predicted = (prediction.previous, prediction.induction, prediction.logits)
        runs = []
        for d_model in (None, *widths):
            note(f"{positions}{', values' if streams else ''}: d_model = {d_model or 'exact'}")
            model = constructed_model(
                logs, generator, positions, streams,
                n_ctx=2 * trained, d_model=d_model, strengths=taus, trained_length=trained,
            )  # fmt: skip
            measured = run_heads(model, batch.inputs)
            far = deviations(prediction, *measured)
            heads = heads_summary(batch, trained, *measured)
            runs.append(Constructed(d_model is None, model.cfg.d_model, far, heads))
        kinds.append(Kind(positions, streams, heads_summary(batch, trained, *predicted), runs))

    def flips(name: str, width: int | None) -> dict[str, Threshold]:
        note(f"thresholds: {name}")
        return thresholds(bigrams.d_vocab, generator, taus, width)

    places = range(2, 2 * trained + 1)
    return Construction(
        seed,
        taus,
        trained,
        2 * trained,
        sequences,
        FLOOR,
        list(widths),
        ClosedForm(
            [previous_token_attention(t, taus.tau1) for t in places], [1 / t for t in places]
        ),
        kinds,
        Thresholds(exact=flips("exact", None), random=flips("random", max(widths))),
    )


def _draw(study: Construction) -> Figure:
    with plt.rc_context(STYLE):
        figure, row = plt.subplots(1, 3, figsize=(13, 3.9), layout="constrained")
        _attention(row[0], study)
        _deviations(row[1], study)
        _winner(row[2], study)
    return figure


def _attention(axes: Axes, study: Construction) -> None:
    trained = study.trained_length
    places = np.arange(2, study.length + 1)
    for kind in study.without_streams:
        colour = COLOURS[kind.positions]
        exact, widest = kind.exact.heads, kind.random[-1]
        short = SHORT[kind.positions]
        axes.plot(places, widest.heads.attention, color=colour, lw=0.8, alpha=0.5,
                  label=f"{short}, d = {widest.d_model:,}")  # fmt: skip
        axes.plot(places, exact.attention, color=colour, lw=2.2, label=f"{short}, exact")
    on, off = np.array(study.closed_form.on), np.array(study.closed_form.off)
    axes.plot(places, on, color="black", lw=1, ls=":", label="closed form")
    later = places > trained
    axes.plot(places[later], off[later], color="black", lw=1, ls=":")
    axes.axvline(trained, color="#999999", lw=0.8)
    axes.text(trained, 0.12, " trained to here", fontsize=8, color="#666666")
    logarithmic(axes, "y")
    axes.set(xlabel="position t", ylabel="attention at t − 1", title="Previous-token head")
    axes.legend(fontsize=8, loc="center left")


def _deviations(axes: Axes, study: Construction) -> None:
    for kind in study.without_streams:
        widths = [run.d_model for run in kind.random]
        far = [run.deviation for run in kind.random]
        for label, marker, means in (
            ("α", "o", [each.alpha.mean for each in far]),
            ("β", "s", [each.beta.mean for each in far]),
            ("logits (nats)", "^", [each.logits.mean for each in far]),
        ):
            axes.plot(widths, means, color=COLOURS[kind.positions], marker=marker, ms=4, lw=1.2,
                      label=f"{label}, {kind.positions}")  # fmt: skip
    guide = np.array([min(study.widths), max(study.widths)], dtype=float)
    axes.plot(guide, 0.2 * guide**-0.5, color="black", lw=1, ls=":", label="∝ 1/√d")
    logarithmic(axes, "x", at=study.widths)
    logarithmic(axes, "y")
    axes.set(xlabel="d_model", title="Mean deviation from the closed form")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _winner(axes: Axes, study: Construction) -> None:
    flips = study.thresholds
    colours = dict(zip(flips.exact, ("#0072B2", "#D55E00", "#009E73"), strict=False))
    for kind, style, width, rows in (
        ("exact", "-", 1.6, flips.exact),
        ("random", "--", 1, flips.random),
    ):
        for counts, row in rows.items():
            axes.plot(row.gap, [np.nan if w is None else w for w in row.wins], style,
                      color=colours[counts], lw=width, label=f"{counts}, {kind}")  # fmt: skip
    for counts, row in flips.exact.items():
        axes.axvline(row.predicted, color=colours[counts], lw=0.8, ls=":")
    axes.set(
        xlabel="global knowledge for B2 (nats)", ylabel="share of prompts that B1 wins",
        title="n1 : n2 in the context", ylim=(-0.03, 1.03),
    )  # fmt: skip
    axes.legend(fontsize=8)
