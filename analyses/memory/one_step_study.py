"""What one gradient step a matrix writes, and what it recalls: absolute beside relative positions.

Coefficients come from steps so small that the closed form is exact to first order, recall from
large ones; both by autograd through a model of orthonormal vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table
from torch import Generator

from resval_lens.analyses import tables
from resval_lens.analyses.figures import STYLE
from resval_lens.memory.config import Positions, memory_config
from resval_lens.memory.model import MemoryTransformer
from resval_lens.memory.one_step import (
    answers,
    leading_previous,
    one_step,
    orthonormal,
    predicted_steps,
)
from resval_lens.memory.one_step_task import RecallBatch, RecallTask

MODELS: dict[str, tuple[Positions, str]] = {
    "absolute": ("absolute", ""),
    "absolute, values": ("absolute", "v"),
    "relative": ("relative", ""),
    "relative, values": ("relative", "v"),
}
KEPT = {"memories": "memories", "whole": "all"}
STRENGTHS = (0.01, 10.0, 100.0)
_SMALL = 1e-6
_SHADES = {"absolute": "#E69F00", "relative": "#0072B2"}


def one_step_study(
    *,
    d_vocab: int = 16,
    length: int = 16,
    shortest: int | None = None,
    multiples: Sequence[int] = (1, 2, 8),
    each: int = 64,
    strengths: tuple[float, float, float] = STRENGTHS,
    seed: int = 0,
) -> dict[str, Any]:
    """Coefficients and recall of :func:`~resval_lens.memory.one_step.one_step`, four models.

    Args:
        shortest, length: of the sequences that steps are taken on; one length by default.
        multiples: lengths of fresh sequences to recall in, in units of ``length``.
        each: sequences that steps are taken on, for every place of the output; 8 times as many
            for the coefficients.
        strengths: mean answers, in nats, that the large steps give W_O², W_K² (both as the closed
            form predicts) and the previous-token memories of W_K¹ (as measured).

    Returns:
        ``settings``, ``leading`` (by position: the leading term of the absolute coefficient), and
        for each of ``models`` its ``coefficients`` for unit rates (measured and closed form) and
        its recall after large steps, of which only the ``memories`` or the ``whole`` are kept.

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
        d = _dimensions(d_vocab, max(multiples) * length, positions, streams)
        models[name] = {
            "positions": positions,
            "streams": streams,
            "coefficients": _coefficients(task, many, positions, streams, wide),
            "recall": {
                kept: _recall(
                    task, batch, tests, _model(d_vocab, max(multiples) * length, positions,
                                               streams, d), strengths, kept == "memories",
                )
                for kept in KEPT
            },
        }  # fmt: skip
    return {
        "settings": {
            "d_vocab": d_vocab,
            "length": length,
            "shortest": task.shortest,
            "multiples": list(multiples),
            "each": each,
            "sequences": len(batch.tokens),
            "strengths": list(strengths),
            "seed": seed,
        },
        "leading": leading_previous(task).tolist(),
        "models": models,
    }


def _coefficients(
    task: RecallTask, batch: RecallBatch, positions: Positions, streams: str, d: int
) -> dict[str, Any]:
    model = _model(task.d_vocab, task.length, positions, streams, d)
    found = one_step(model, batch, (_SMALL, 1.0, 1.0), only_memories=True).coefficients
    predicted = predicted_steps(
        task, d, relative=positions == "relative", value_norm=_value_norm(streams)
    )
    units = {"W_O2": _SMALL, "W_K2": _SMALL, "W_K1": _SMALL**2}
    return {
        "d_model": d,
        "measured": {name: (found[name] / unit).tolist() for name, unit in units.items()},
        "closed_form": {name: c.tolist() for name, c in predicted.items()},
    }


def _recall(
    task: RecallTask,
    batch: RecallBatch,
    tests: Sequence[RecallBatch],
    model: MemoryTransformer,
    strengths: tuple[float, float, float],
    only_memories: bool,
) -> dict[str, Any]:
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
            {
                "length": test.tokens.shape[1],
                "sequences": len(right),
                "all": float(right.double().mean()),
                "trained": float(right[trained].double().mean()),
                "beyond": None if trained.all() else float(right[~trained].double().mean()),
            }
        )
    return {
        "d_model": d,
        "rates": [eta1, eta2, eta3],
        "losses": list(done.losses[:3]),
        "accuracy": accuracy,
    }


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


def draw(study: dict[str, Any]) -> Figure:
    """W_K¹'s coefficients against the position, with their closed forms; the matrices as maps."""
    settings, models = study["settings"], study["models"]
    v = settings["d_vocab"]
    with plt.rc_context(STYLE):
        figure, panels = plt.subplot_mosaic(
            [["t", "t", "W_O2", "W_K2"], ["t", "t", "absolute", "relative"]],
            figsize=(12, 5.6), layout="constrained",
        )  # fmt: skip
        _against_position(panels["t"], study)
        absolute, relative = (models[name]["coefficients"] for name in ("absolute", "relative"))
        maps = {
            "W_O2": (absolute["measured"]["W_O2"], "W_O²", "token read", "token said"),
            "W_K2": (absolute["measured"]["W_K2"], "W_K²", "query token", "token before the key"),
            "absolute": (absolute["measured"]["W_K1"], "W_K¹, absolute", "query at t", "key at s"),
            "relative": (
                relative["measured"]["W_K1"], "W_K¹, relative", "query token", "key i places back",
            ),
        }  # fmt: skip
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
            f"One gradient step each on W_O², W_K², W_K¹, from zero ({v} tokens, "
            f"{_lengths(settings)} positions; blue > 0 > red)",
            x=0.01, ha="left", fontsize=11,
        )  # fmt: skip
    return figure


def _against_position(axes: Axes, study: dict[str, Any]) -> None:
    models, length = study["models"], study["settings"]["length"]
    shown = 2 * length
    unit = max(models["absolute"]["coefficients"]["closed_form"]["W_K1"][t - 1][t]
               for t in range(1, length))  # fmt: skip
    for name, shade in _SHADES.items():
        found = models[name]["coefficients"]
        for source in ("closed_form", "measured"):
            c = found[source]["W_K1"]
            places = range(2, (shown if source == "closed_form" else length) + 1)
            if name == "absolute":
                line = [c[t - 2][t - 1] / unit if t <= length else 0.0 for t in places]
            else:
                line = [sum(c[1]) / len(c[1]) / unit] * len(places)
            if source == "measured":
                axes.plot(places, line, "o", color=shade, ms=4.5, label=f"{name}: measured")
            else:
                axes.plot(places, line, "-", color=shade, lw=1.5, label=f"{name}: closed form")
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


def _leading_line(study: dict[str, Any], unit: float) -> list[float]:
    """The leading term at t = 2 .. length with the closed form's own factor, nothing fitted."""
    found = study["models"]["absolute"]["coefficients"]
    centred = 1 - 1 / study["settings"]["d_vocab"]
    said, kept = (found["closed_form"][name][0][0] / centred for name in ("W_O2", "W_K2"))
    return [said * kept / found["d_model"] * x / unit for x in study["leading"][1:]]


def table(study: dict[str, Any]) -> Table:
    """Strength of what is written, relative to the absolute classic model, and recall by length."""
    settings, models = study["settings"], study["models"]
    lengths = [settings["length"] * m for m in settings["multiples"]]
    grid = Table(
        title="One gradient step a matrix: coefficients, and recall after large steps\n"
        f"({settings['d_vocab']} tokens, trained on {_lengths(settings)} positions)",
        caption="coefficients: of small steps, in units of the classic model's with the same\n"
        "positions; recall: accuracy in fresh sequences by length, chance "
        f"{1 / settings['d_vocab']:.3f}, with\nonly the memories of each step kept, or all of it",
        **tables.STYLE,
    )
    grid.add_column("positions, stream", no_wrap=True)
    for name in ("W_O²", "W_K²", "W_K¹"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("kept", no_wrap=True)
    for n in lengths:
        grid.add_column(f"{n:,}", justify="right", no_wrap=True)
    for name, found in models.items():
        written = _strengths(found)
        base = _strengths(models[found["positions"]])
        for kept, label in KEPT.items():
            cells = [f"{a / b:.2f}" for a, b in zip(written, base, strict=True)]
            grid.add_row(
                *([name, *cells] if kept == "memories" else [""] * 4),
                label,
                *(f"{line['all']:.3f}" for line in found["recall"][kept]["accuracy"]),
            )
    return grid


def sentences(study: dict[str, Any]) -> list[str]:
    """What the study found, in words with its numbers."""
    settings, models = study["settings"], study["models"]
    length = settings["length"]
    absolute = models["absolute"]["coefficients"]["measured"]["W_K1"]
    by_position = [absolute[t - 1][t] for t in range(1, length)]
    late = by_position[length - 3] / by_position[0]  # the last but one: none ends in an output
    relative = models["relative"]["coefficients"]["measured"]["W_K1"][1]
    spread = (max(relative) - min(relative)) / (sum(relative) / len(relative))
    said = [
        f"Absolute positions: W_K¹'s coefficient falls with the position, at {length - 1} to "
        f"{late:.0%} of what it is at 2; no gradient reaches those beyond {length}. Relative: one "
        "coefficient for "
        f"every position, over tokens within {spread:.0%}."
    ]
    for name in ("relative", "absolute"):
        lines = models[name]["recall"]["memories"]["accuracy"]
        at = ", ".join(f"{line['all']:.3f} at {line['length']}" for line in lines)
        said.append(f"After three large steps, memories only, {name} positions recall {at}.")
    for positions in ("absolute", "relative"):
        base = _strengths(models[positions])
        own = _strengths(models[f"{positions}, values"])
        ratios = ", ".join(f"{b / a:.2f}" for a, b in zip(base, own, strict=True))
        said.append(
            f"A value stream multiplies what is written into W_O², W_K², W_K¹ by {ratios} "
            f"({positions})."
        )
    return said


def _strengths(found: dict[str, Any]) -> list[float]:
    """Mean measured coefficient of each matrix's memories."""
    c = found["coefficients"]["measured"]
    diagonals = [[row[i] for i, row in enumerate(c[name])] for name in ("W_O2", "W_K2")]
    if found["positions"] == "relative":
        diagonals.append(c["W_K1"][1])
    else:
        diagonals.append([row[t + 1] for t, row in enumerate(c["W_K1"][:-2])])
    return [sum(diagonal) / len(diagonal) for diagonal in diagonals]


def _lengths(settings: dict[str, Any]) -> str:
    shortest, longest = settings["shortest"], settings["length"]
    return str(longest) if shortest == longest else f"{shortest} to {longest}"
