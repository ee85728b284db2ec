"""What one gradient step a matrix writes, and what it recalls: absolute beside relative positions.

Coefficients come from steps so small that the closed form is exact to first order, recall from
large ones; both by autograd through a model of orthonormal vectors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table
from torch import Generator

from resval_lens.analyses.drawing.figures import STYLE, plt
from resval_lens.analyses.papers.memory.model.config import memory_config
from resval_lens.analyses.papers.memory.model.model import MemoryTransformer
from resval_lens.analyses.papers.memory.model.one_step import (
    answers,
    leading_previous,
    one_step,
    orthonormal,
    predicted_steps,
)
from resval_lens.analyses.papers.memory.model.one_step_task import RecallBatch, RecallTask
from resval_lens.analyses.results.result import Result
from resval_lens.analyses.results.tables import STYLE as TABLE_STYLE
from resval_lens.models.presets import Positions

Name = Literal["absolute", "absolute, values", "relative", "relative, values"]
Plain = Literal["absolute", "relative"]
MODELS: dict[Name, tuple[Plain, str]] = {
    "absolute": ("absolute", ""),
    "absolute, values": ("absolute", "v"),
    "relative": ("relative", ""),
    "relative, values": ("relative", "v"),
}
STRENGTHS = (0.01, 10.0, 100.0)
_SMALL = 1e-6
_SHADES: dict[Name, str] = {"absolute": "#E69F00", "relative": "#0072B2"}


@dataclass(frozen=True)
class Settings:
    """What was trained on: ``sequences`` of ``shortest`` to ``length`` tokens, ``each`` a place.

    Attributes:
        multiples: lengths of fresh sequences to recall in, in units of ``length``.
        strengths: mean answers (nats) that large steps give W_O², W_K² and W_K¹.
    """

    d_vocab: int
    length: int
    shortest: int
    multiples: tuple[int, ...]
    each: int
    sequences: int
    strengths: tuple[float, float, float]
    seed: int

    @property
    def lengths(self) -> str:
        """Of the sequences that steps are taken on."""
        short, long = self.shortest, self.length
        return str(long) if short == long else f"{short} to {long}"


@dataclass(frozen=True)
class Matrices:
    """Coefficients of what a step writes into each matrix, for a rate of 1."""

    W_O2: list[list[float]]
    W_K2: list[list[float]]
    W_K1: list[list[float]]


@dataclass(frozen=True)
class Coefficients:
    """Of small steps, in a model of ``d_model`` dimensions, beside their closed form."""

    d_model: int
    measured: Matrices
    closed_form: Matrices


@dataclass(frozen=True)
class Accuracy:
    """In fresh sequences of one length; for outputs at ``trained`` positions, and ``beyond``."""

    length: int
    sequences: int
    all: float
    trained: float
    beyond: float | None


@dataclass(frozen=True)
class Recalled:
    """After large steps with these rates; losses are those before each step."""

    d_model: int
    rates: tuple[float, float, float]
    losses: list[float]
    accuracy: list[Accuracy]


@dataclass(frozen=True)
class Recall:
    """With only the memories of each step kept, or the whole of it."""

    memories: Recalled
    whole: Recalled


@dataclass(frozen=True)
class Written:
    """A model: what small steps write into it, what it recalls after large ones."""

    positions: Plain
    streams: str
    coefficients: Coefficients
    recall: Recall

    def strengths(self) -> list[float]:
        """Mean measured coefficient of each matrix's memories."""
        c = self.coefficients.measured
        diagonals = [[row[i] for i, row in enumerate(each)] for each in (c.W_O2, c.W_K2)]
        if self.positions == "relative":
            diagonals.append(c.W_K1[1])
        else:
            diagonals.append([row[t + 1] for t, row in enumerate(c.W_K1[:-2])])
        return [sum(diagonal) / len(diagonal) for diagonal in diagonals]


@dataclass(frozen=True)
class OneStepStudy(Result):
    """Four models; ``leading``: the leading term of the absolute coefficient, by position."""

    settings: Settings
    leading: list[float]
    models: Mapping[Name, Written]

    def tables(self) -> list[Table]:
        """Strength of what is written, relative to the classic model's, and recall by length."""
        own = self.settings
        grid = Table(
            title="One gradient step a matrix: coefficients, and recall after large steps\n"
            f"({own.d_vocab} tokens, trained on {own.lengths} positions)",
            caption="coefficients: of small steps, in units of the classic model's with the same\n"
            "positions; recall: accuracy in fresh sequences by length, chance "
            f"{1 / own.d_vocab:.3f}, with\nonly the memories of each step kept, or all of it",
            **TABLE_STYLE,
        )
        grid.add_column("positions, stream", no_wrap=True)
        for name in ("W_O²", "W_K²", "W_K¹"):
            grid.add_column(name, justify="right", no_wrap=True)
        grid.add_column("kept", no_wrap=True)
        for multiple in own.multiples:
            grid.add_column(f"{own.length * multiple:,}", justify="right", no_wrap=True)
        for name, found in self.models.items():
            base = self.models[found.positions].strengths()
            ratios = (f"{a / b:.2f}" for a, b in zip(found.strengths(), base, strict=True))
            for of, kept, recalled in (
                ((name, *ratios), "memories", found.recall.memories),
                (("",) * 4, "all", found.recall.whole),
            ):
                grid.add_row(*of, kept, *(f"{line.all:.3f}" for line in recalled.accuracy))
        return [grid]

    def figures(self) -> dict[str, Figure]:
        """W_K¹'s coefficients by position, with their closed forms; the matrices as maps."""
        return {"memory-one-step.png": _draw(self)}

    def sentences(self) -> list[str]:
        """What was found."""
        length = self.settings.length
        absolute = self.models["absolute"].coefficients.measured.W_K1
        by_position = [absolute[t - 1][t] for t in range(1, length)]
        late = by_position[length - 3] / by_position[0]  # the last but one: none ends in an output
        relative = self.models["relative"].coefficients.measured.W_K1[1]
        spread = (max(relative) - min(relative)) / (sum(relative) / len(relative))
        said = [
            f"Absolute positions: W_K¹'s coefficient falls with the position, at {length - 1} to "
            f"{late:.0%} of what it is at 2; no gradient reaches those beyond {length}. Relative: "
            f"one coefficient for every position, over tokens within {spread:.0%}."
        ]
        plain: tuple[Plain, ...] = ("relative", "absolute")
        for positions in plain:
            lines = self.models[positions].recall.memories.accuracy
            at = ", ".join(f"{line.all:.3f} at {line.length}" for line in lines)
            said.append(
                f"After three large steps, memories only, {positions} positions recall {at}."
            )
        pairs: tuple[tuple[Name, Name], ...] = (
            ("absolute", "absolute, values"), ("relative", "relative, values"),
        )  # fmt: skip
        for without, with_values in pairs:
            both = (self.models[name].strengths() for name in (without, with_values))
            ratios = ", ".join(f"{b / a:.2f}" for a, b in zip(*both, strict=True))
            said.append(
                f"A value stream multiplies what is written into W_O², W_K², W_K¹ by {ratios} "
                f"({without})."
            )
        return said


def one_step_study(
    *,
    d_vocab: int = 16,
    length: int = 16,
    shortest: int | None = None,
    multiples: Sequence[int] = (1, 2, 8),
    each: int = 64,
    strengths: tuple[float, float, float] = STRENGTHS,
    seed: int = 0,
) -> OneStepStudy:
    """Coefficients and recall after one step each, four models.

    The step: :func:`~resval_lens.analyses.papers.memory.model.one_step.one_step`.

    Args:
        shortest, length: of the sequences that steps are taken on; one length by default.
        multiples: lengths of fresh sequences to recall in, in units of ``length``.
        each: sequences that steps are taken on, for every place of the output; 8 times as many
            for the coefficients.
        strengths: mean answers, in nats, that the large steps give W_O², W_K² (both as the closed
            form predicts) and the previous-token memories of W_K¹ (as measured).

    Raises:
        ValueError: an impossible task; multiples below 1; strengths that are not three numbers
            above 0; a task whose steps write the opposite of an induction head.
    """
    if not multiples or min(multiples) < 1:
        raise ValueError(f"multiples must be whole numbers from 1 up; got {tuple(multiples)}")
    if len(strengths) != 3 or not min(strengths) > 0:
        raise ValueError(f"strengths must be three numbers above 0; got {strengths}")
    task = RecallTask(d_vocab, length, length if shortest is None else shortest)
    unit = predicted_steps(task, 1)
    for name in ("W_O2", "W_K2"):
        if not float(unit[name][0, 0]) > 0:
            raise ValueError(
                f"d_vocab={d_vocab}, shortest={task.shortest}: the step on {name} writes the "
                "opposite of an induction head's memory; take more tokens or longer sequences"
            )
    batch = task.batch(each, Generator().manual_seed(seed))
    # Coefficients are compared with expectations; the narrow model makes many sequences cheap.
    many = task.batch(8 * each, Generator().manual_seed(seed))
    tests = [
        RecallTask(d_vocab, m * length, m * length).batch(2, Generator().manual_seed(seed + 1))
        for m in multiples
    ]
    models = {}
    wide = _dimensions(d_vocab, length, "absolute", "v")  # one for all, so that numbers compare
    for name, (positions, streams) in MODELS.items():
        n_ctx = max(multiples) * length
        d = _dimensions(d_vocab, n_ctx, positions, streams)
        memories, whole = (
            _recall(
                task, batch, tests, _model(d_vocab, n_ctx, positions, streams, d), strengths, kept
            )
            for kept in (True, False)
        )
        models[name] = Written(
            positions,
            streams,
            _coefficients(task, many, positions, streams, wide),
            Recall(memories, whole),
        )
    settings = Settings(
        d_vocab, length, task.shortest, tuple(multiples), each, len(batch.tokens), strengths, seed
    )
    return OneStepStudy(settings, leading_previous(task).tolist(), models)


def _coefficients(
    task: RecallTask, batch: RecallBatch, positions: Positions, streams: str, d: int
) -> Coefficients:
    model = _model(task.d_vocab, task.length, positions, streams, d)
    found = one_step(model, batch, (_SMALL, 1.0, 1.0), only_memories=True).coefficients
    predicted = predicted_steps(
        task, d, relative=positions == "relative", value_norm=_value_norm(streams)
    )
    units = (("W_O2", _SMALL), ("W_K2", _SMALL), ("W_K1", _SMALL**2))
    return Coefficients(
        d,
        Matrices(*((found[name] / unit).tolist() for name, unit in units)),
        Matrices(*(predicted[name].tolist() for name, _ in units)),
    )


def _recall(
    task: RecallTask,
    batch: RecallBatch,
    tests: Sequence[RecallBatch],
    model: MemoryTransformer,
    strengths: tuple[float, float, float],
    only_memories: bool,
) -> Recalled:
    """Accuracy after steps of these strengths, by length; for t_o up to ``length``, and beyond."""
    d, relative = model.cfg.d_model, model.cfg.positions == "relative"
    norm = _value_norm(model.cfg.streams)
    unit = predicted_steps(task, d, relative=relative, value_norm=norm)
    eta1 = strengths[0] / (norm * float(unit["W_O2"][0, 0]))
    eta2 = strengths[1] * math.sqrt(d) / (eta1 * float(unit["W_K2"][0, 0]))
    done = one_step(model, batch, (eta1, eta2, 1.0), only_memories=only_memories)
    said = answers(model, "W_K1")
    previous = said[1] if relative else said.diagonal(1)[: task.length - 2]
    if not float(previous.mean()):
        raise ValueError(
            f"each={len(batch.tokens) // max(1, len(task.places))}: on so few sequences the step "
            "on W_K1 writes nothing; take more"
        )
    # The last step is linear in its rate, which is therefore chosen when it is known.
    eta3 = strengths[2] / abs(float(previous.mean()))
    with torch.no_grad():
        model.blocks[0].attn.W_K.mul_(eta3)
    accuracy = []
    for test in tests:
        right = torch.cat([
            model(tokens)[:, -1].argmax(-1) for tokens in test.tokens.split(32)
        ]) == test.targets  # fmt: skip
        trained = test.output_at < task.length
        accuracy.append(
            Accuracy(
                test.tokens.shape[1],
                len(right),
                all=float(right.double().mean()),
                trained=float(right[trained].double().mean()),
                beyond=None if trained.all() else float(right[~trained].double().mean()),
            )
        )
    return Recalled(d, (eta1, eta2, eta3), list(done.losses[:3]), accuracy)


def _value_norm(streams: object) -> float:
    return 2.0 if streams else 1.0


def _dimensions(d_vocab: int, n_ctx: int, positions: Positions, streams: str) -> int:
    n = d_vocab + (n_ctx if positions == "absolute" else 0)
    return max(2 * n + d_vocab, 3 * n if streams else 0, d_vocab + n_ctx)


def _model(
    d_vocab: int, n_ctx: int, positions: Positions, streams: str, d: int
) -> MemoryTransformer:
    cfg = memory_config(
        d_vocab, positions, streams, d_model=d, n_ctx=n_ctx, dtype=torch.float64, initial_std=0.0
    )
    return orthonormal(MemoryTransformer(cfg))


def _draw(study: OneStepStudy) -> Figure:
    models = study.models
    with plt.rc_context(STYLE):
        figure, panels = plt.subplot_mosaic(
            [["t", "t", "W_O2", "W_K2"], ["t", "t", "absolute", "relative"]],
            figsize=(12, 5.6), layout="constrained",
        )  # fmt: skip
        _against_position(panels["t"], study)
        absolute, relative = (
            models["absolute"].coefficients.measured, models["relative"].coefficients.measured,
        )  # fmt: skip
        maps = {
            "W_O2": (absolute.W_O2, "W_O²", "token read", "token said"),
            "W_K2": (absolute.W_K2, "W_K²", "query token", "token before the key"),
            "absolute": (absolute.W_K1, "W_K¹, absolute", "query at t", "key at s"),
            "relative": (relative.W_K1, "W_K¹, relative", "query token", "key i places back"),
        }
        for name, (values, title, across, down) in maps.items():
            axes = panels[name]
            largest = max(abs(x) for row in values for x in row)
            first = 1 if name == "absolute" else 0
            rows, columns = len(values), len(values[0])
            axes.imshow(
                values, cmap="RdBu", vmin=-largest, vmax=largest,
                extent=(first - 0.5, first + columns - 0.5, first + rows - 0.5, first - 0.5),
            )  # fmt: skip
            axes.set(title=title, xlabel=across, ylabel=down)
            axes.tick_params(length=0, labelsize=8)
        figure.suptitle(
            "One gradient step each on W_O², W_K², W_K¹, from zero "
            f"({study.settings.d_vocab} tokens, {study.settings.lengths} positions; "
            "blue > 0 > red)",
            x=0.01, ha="left", fontsize=11,
        )  # fmt: skip
    return figure


def _against_position(axes: Axes, study: OneStepStudy) -> None:
    models, length = study.models, study.settings.length
    shown = 2 * length
    unit = max(models["absolute"].coefficients.closed_form.W_K1[t - 1][t] for t in range(1, length))
    for name, shade in _SHADES.items():
        found = models[name].coefficients

        def line(c: list[list[float]], places: range, name: str = name) -> list[float]:
            if name == "absolute":
                return [c[t - 2][t - 1] / unit if t <= length else 0.0 for t in places]
            return [sum(c[1]) / len(c[1]) / unit] * len(places)

        far, near = range(2, shown + 1), range(2, length + 1)
        closed, measured = line(found.closed_form.W_K1, far), line(found.measured.W_K1, near)
        axes.plot(far, closed, "-", color=shade, lw=1.5, label=f"{name}: closed form")
        axes.plot(near, measured, "o", color=shade, ms=4.5, label=f"{name}: measured")
    axes.plot(
        range(2, length + 1), _leading_line(study, unit), "--", color="#555555", lw=1.2,
        label="absolute: its leading term,\n∝ E[1(t is the output)/T] · (1/t)(1 − 1/t)",
    )  # fmt: skip
    axes.axvline(length + 0.5, color="#999999", lw=0.8, ls=":")
    axes.annotate("longer than any\nsequence in training", (length + 0.5, 0.6), xytext=(6, 0),
                  textcoords="offset points", fontsize=9, color="#555555")  # fmt: skip
    axes.set(
        title="W_K¹: how strongly position t looks one back", xlabel="position t",
        ylabel="coefficient (largest absolute one = 1)", xlim=(1, shown + 0.5),
    )  # fmt: skip
    axes.legend(fontsize=9)


def _leading_line(study: OneStepStudy, unit: float) -> list[float]:
    """The leading term at t = 2 .. length with the closed form's own factor, nothing fitted."""
    found = study.models["absolute"].coefficients
    centred = 1 - 1 / study.settings.d_vocab
    said, kept = found.closed_form.W_O2[0][0] / centred, found.closed_form.W_K2[0][0] / centred
    return [said * kept / found.d_model * x / unit for x in study.leading[1:]]
