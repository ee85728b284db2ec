"""AMICL beside its transformer: what both attend to, what is recalled with and without the stream.

Every number in the picture and the table is in the study's data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table
from torch import Generator, Tensor

from resval_lens.analyses.drawing.figures import COLOURS, STYLE, plt
from resval_lens.analyses.papers.amicl.counting import batches
from resval_lens.analyses.papers.amicl.model.memory import AMICL, AMICLConfig
from resval_lens.analyses.papers.amicl.model.transformer import best_classic, recall_transformer
from resval_lens.analyses.papers.amicl.model.trials import PairTask, Trials, nearest
from resval_lens.analyses.results.result import FLAT, OPTIONAL, Result
from resval_lens.analyses.results.tables import STYLE as TABLE_STYLE
from resval_lens.hooks import cut_links
from resval_lens.notes import Note

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)
"""Values of a."""
Model = Literal["amicl", "values", "cut", "classic", "classic_readout", "classic_slot"]


class Look(NamedTuple):
    """How a model is named in the picture, its colour, and the head of its column if it has one."""

    label: str
    shade: str
    head: str = ""


MODELS: dict[Model, Look] = {
    "amicl": Look("AMICL", "#000000", "AMICL"),
    "values": Look("value stream", COLOURS["values"], "value\nstream"),
    "cut": Look("link cut", COLOURS["values-detached"], "link\ncut"),
    "classic": Look("classic, best values", COLOURS["classic"], "classic"),
    "classic_readout": Look(
        "classic, best values and readout", COLOURS["queries"], "with\nreadout"
    ),
    "classic_slot": Look("classic, a slot more", COLOURS["keys"]),
}
FITTED: tuple[Model, ...] = ("classic", "classic_readout")
"""Whose error is of interest."""
Recall = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Measures:
    """How well a model recalls.

    Attributes:
        nearest, cosine: share of trials in which the output is nearest to the right one of the
            context's labels, by distance and by angle. Nothing recalled, the zero vector, is
            nearest to the shortest, and by angle wrong.
        error: Σ‖output − label‖² / Σ‖label‖² over trials.
        difference: the largest |output − AMICL's output| of any entry.
        expected_error: what ``error`` would be if attention were all on the right label and the
            fit the population's: a²/(1 + a²), and for the readout a²(1 − ρ²)/(1 + a²(1 − ρ²)),
            where ρ is the correlation of two instances of an object.
    """

    nearest: float
    cosine: float
    error: float
    difference: float
    expected_error: float | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class AtWeight:
    """Every model of ``MODELS`` at one a."""

    a: float
    models: Mapping[Model, Measures] = field(metadata=FLAT)


@dataclass(frozen=True)
class Attended:
    """What the last token of one trial attends to: AMICL's, and layer 1's with BOS before."""

    a: float
    temperature: float
    tokens: list[str]
    right: list[bool]
    amicl: list[float]
    model: list[float]


@dataclass(frozen=True)
class TransformerStudy(Result):
    """AMICL (dot product, softmax) beside five transformers, over weights a.

    Attributes:
        chance: how often a label of the context that knows nothing of the query is right: the mean
            over trials of 1/(its distinct labels).
    """

    seed: int
    task: PairTask
    temperature: float
    trials: int
    fit_trials: int
    chance: float
    attention: Attended
    rows: list[AtWeight]

    def figures(self) -> dict[str, Figure]:
        """Attention of one trial, accuracy over a, error over a."""
        return {"amicl-transformer.png": _draw(self)}

    def tables(self) -> list[Table]:
        """Share of trials with the right label nearest, and relative squared errors, over a."""
        found = Table(
            title=f"Share of {self.trials:,} trials with the right label nearest; relative errors",
            **TABLE_STYLE,
        )
        nearest = {name: look.head for name, look in MODELS.items() if look.head}
        for head in ("a", *nearest.values(), "error,\nclassic", "error,\nreadout"):
            found.add_column(head, justify="right")
        for row in self.rows:
            numbers = [row.models[name].nearest for name in nearest]
            numbers += [row.models[name].error for name in FITTED]
            found.add_row(f"{row.a:g}", *(f"{x:.3f}" for x in numbers))
        stream, slot = (
            max(row.models[name].difference for row in self.rows)
            for name in ("values", "classic_slot")
        )
        found.caption = (
            f"T = {self.temperature:g}, s = {self.task.length}, d = {self.task.d}. Largest "
            f"difference from AMICL's output: {stream:.0e} (value stream), {slot:.0e} (classic, a "
            "slot more). Link cut: the output is 0, whatever is asked for, and the shortest label "
            f"the nearest (chance {self.chance:.3f}); nothing is recalled."
        )
        return [found]


@torch.no_grad()
def transformer_study(
    trials: int = 1000,
    seed: int = 0,
    note: Note = lambda text: None,
    *,
    task: PairTask | None = None,
    temperature: float = 0.02,
    weights: Sequence[float] = WEIGHTS,
    shown: tuple[float, float] = (2.0, 0.2),
    fit_trials: int = 2000,
) -> TransformerStudy:
    """Recall of AMICL (dot product, softmax) and of five transformers, over weights a.

    ``values``: :func:`~resval_lens.analyses.papers.amicl.model.transformer.recall_transformer`.
    ``cut``: the same with its link cut. ``classic``, ``classic_readout``: without a stream, layer
    2's values (and the readout) fitted on other trials, by
    :func:`~resval_lens.analyses.papers.amicl.model.transformer.best_classic`. ``classic_slot``:
    without a stream, layer 0 in a slot of its own. float64.

    Args:
        trials: to measure on, for each a the same.
        note: called with what is being done.
        task: the pairs; the paper's by default.
        temperature: T of ``rows``.
        weights: the values of a.
        shown: a and T of ``attention``: what the last token of one trial attends to.
        fit_trials: to fit on; twice the task's d or more.

    Raises:
        ValueError: ``trials`` below 1, no ``weights``; and as ``recall_transformer`` and
            ``best_classic``.
    """
    if trials < 1:
        raise ValueError(f"trials must be 1 or more; got {trials}")
    if not weights:
        raise ValueError("weights must hold one value of a or more; got none")
    task = task or PairTask()
    generator = Generator().manual_seed(seed)
    fitted = task.draw(fit_trials, generator, torch.float64)
    from_here = generator.get_state()

    def tested() -> Iterator[Trials]:  # the same for every a, few of them held at a time
        generator.set_state(from_here)
        return batches(task, trials, generator, torch.float64)

    rows = []
    for a in weights:
        note(f"a = {a:g}")
        rows.append(_row(a, temperature, fitted, tested(), task))
    chance = sum(_chances(drawn) for drawn in tested()) / trials
    attention = _attention(*shown, next(tested()))
    return TransformerStudy(seed, task, temperature, trials, fit_trials, chance, attention, rows)


def _row(
    a: float, temperature: float, fitted: Trials, tested: Iterable[Trials], task: PairTask
) -> AtWeight:
    length, d = task.length, task.d
    settings: dict[str, Any] = {"a": a, "temperature": temperature, "dtype": torch.float64}
    model = recall_transformer(length, d, **settings)
    slot = recall_transformer(length, d, **settings, streams="", separate_slot=True)
    memory = AMICL(AMICLConfig(a=a, separation="softmax", temperature=temperature))
    readout = best_classic(model, fitted.inputs, fitted.targets)
    classic = readout.with_streams("")
    classic.unembed.W_U.copy_(model.unembed.W_U)
    recalls: dict[Model, Recall] = {
        "amicl": memory,
        "values": model.recall,
        "classic": classic.recall,
        "classic_readout": readout.recall,
        "classic_slot": slot.recall,
    }
    sums = {name: _Sums() for name in MODELS}
    for drawn in tested:
        outputs = {name: _in_parts(recall, drawn.inputs) for name, recall in recalls.items()}
        with cut_links(model):
            outputs["cut"] = _in_parts(model.recall, drawn.inputs)
        for name, so_far in sums.items():
            so_far.add(outputs[name], outputs["amicl"], drawn)
    unlike = 1 - (1 + task.noise_variance) ** -2  # 1 − ρ²
    expected: dict[Model, float] = {
        "classic": a**2 / (1 + a**2),
        "classic_readout": a**2 * unlike / (1 + a**2 * unlike),
    }
    found = {name: so_far.measures(expected.get(name)) for name, so_far in sums.items()}
    return AtWeight(a, found)


def _in_parts(recall: Recall, x: Tensor) -> Tensor:
    return torch.cat([recall(part) for part in x.split(256)])


@dataclass
class _Sums:
    """What a model's measures are made of, over trials that come in parts."""

    n: int = 0
    nearest: int = 0
    cosine: int = 0
    wrong: float = 0.0
    square: float = 0.0
    difference: float = 0.0

    def add(self, output: Tensor, memory: Tensor, trials: Trials) -> None:
        """Takes in a part."""
        self.n += len(output)
        self.nearest += int(nearest(output, trials).sum())
        self.cosine += int(nearest(output, trials, "cosine").sum())
        self.wrong += float((output - trials.targets).square().sum())
        self.square += float(trials.targets.square().sum())
        self.difference = max(self.difference, float((output - memory).abs().max()))

    def measures(self, expected_error: float | None) -> Measures:
        """Shares, the relative error and the largest difference."""
        return Measures(
            self.nearest / self.n, self.cosine / self.n, self.wrong / self.square,
            self.difference, expected_error,
        )  # fmt: skip


def _chances(trials: Trials) -> float:
    """Σ over trials of 1/(distinct classes of the context)."""
    same = trials.classes[:, :, None] == trials.classes[:, None, :]
    return float((1 / (1 / same.sum(-1).double()).sum(-1)).sum())


def _attention(a: float, temperature: float, trials: Trials) -> Attended:
    x = trials.inputs[:1]
    length, d = x.shape[1:]
    memory = AMICL(AMICLConfig(a=a, separation="softmax", temperature=temperature))
    model = recall_transformer(length, d, a, temperature, dtype=x.dtype)
    _, seen = memory.run_with_cache(x)
    _, cache = model.run_with_cache(model.embed_trial(x))
    classes = trials.classes[0].tolist()
    number = {c: str(i + 1) for i, c in enumerate(dict.fromkeys(classes))}
    asked = classes[int(trials.query[0])]
    step = length // (len(classes) + 1)
    parts = ["o", *"·" * (step - 2), "l"]
    tokens = [f"{part}{number[c]}" for c in classes for part in parts]
    tokens += [f"{part}{number[asked]}" for part in parts[:-1]] + ["?"]
    right = [token == f"l{number[asked]}" for token in tokens]
    own, model_s = seen["hook_pattern"][0, -1], cache["pattern", 1][0, 0, -1]
    return Attended(a, temperature, tokens, right, own.tolist(), model_s.tolist())


def _draw(study: TransformerStudy) -> Figure:
    with plt.rc_context(STYLE):
        figure, axes = plt.subplot_mosaic(
            [["amicl", "accuracy", "error"], ["model", "accuracy", "error"]],
            figsize=(13.5, 4.6), width_ratios=(1.5, 1, 1), layout="constrained",
        )  # fmt: skip
        shown = study.attention
        _weights(axes["amicl"], shown.amicl, shown.tokens, shown.right)
        at = f"a = {shown.a:g}, T = {shown.temperature:g}"
        axes["amicl"].set_title(f"AMICL: attention of the last token ({at})")
        _weights(axes["model"], shown.model, ["BOS", *shown.tokens], [False, *shown.right])
        axes["model"].set_title("the model: layer 1's attention of the last token")
        axes["model"].set_xlabel("o object, l label, ? asked for; blue: the right label")

        a = [row.a for row in study.rows]
        for name, (label, *_) in MODELS.items():
            found = [row.models[name] for row in study.rows]
            axes["accuracy"].plot(a, [x.nearest for x in found], label=label, **_line(name))
            axes["error"].plot(a, [x.error for x in found], label=label, **_line(name))
        for name in FITTED:
            expected: Any = [row.models[name].expected_error for row in study.rows]
            axes["error"].plot(a, expected, ":", color=MODELS[name].shade, lw=1.2)
        axes["accuracy"].plot(
            a, [row.models["classic"].cosine for row in study.rows], "--",
            color=MODELS["classic"].shade, lw=1.4, label="classic, best values; by angle",
        )  # fmt: skip
        axes["accuracy"].set(
            title=f"the right label is the nearest (T = {study.temperature:g})",
            ylim=(0, 1.04),
            ylabel="share of trials",
        )
        axes["error"].set(
            title="squared error / label's square", ylim=(-0.03, None), ylabel="relative error"
        )
        for panel in ("accuracy", "error"):
            axes[panel].set_xlabel("a, weight of the previous token")
        axes["error"].plot(
            [], [], ":", color="#777777", lw=1.2, label="expected, perfect attention"
        )
        handles = dict(
            pair
            for panel in ("accuracy", "error")
            for pair in zip(*reversed(axes[panel].get_legend_handles_labels()), strict=True)
        )
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=9
        )
    return figure


def _line(name: Model) -> dict[str, Any]:
    """AMICL as a broad grey line, what equals it on top."""
    if name == "amicl":
        return {"color": "#BBBBBB", "lw": 7, "solid_capstyle": "round"}
    if name == "classic_slot":
        return {"color": MODELS[name].shade, "lw": 0, "marker": "o", "ms": 5, "mfc": "white"}
    return {"color": MODELS[name].shade, "lw": 2}


def _weights(
    axes: Axes, weights: Sequence[float], tokens: Sequence[str], right: Sequence[bool]
) -> None:
    places = range(len(weights))
    shades = [COLOURS["values"] if is_right else "#999999" for is_right in right]
    axes.bar(places, weights, color=shades)
    axes.set_xticks(places, tokens, fontsize=7 if len(tokens) <= 24 else 4)
    axes.tick_params(axis="x", length=0)
    axes.set(ylim=(0, 1.02), ylabel="weight")
