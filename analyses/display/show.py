"""``show_attention``, ``show_patching``, ``show_circuit``, ``show_link_ablation``.

Each takes what an analysis returned and gives a :class:`~resval_lens.analyses.display.Display`:
a notebook shows it, ``save`` writes it as a page or an image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from jaxtyping import Float
from torch import Tensor

from resval_lens.analyses.attribution.sources import SourceNorms
from resval_lens.analyses.circuits.circuit import Circuit
from resval_lens.analyses.circuits.evaluation import EvaluatedCircuit
from resval_lens.analyses.circuits.scores import EdgeScores
from resval_lens.analyses.comparison import figures
from resval_lens.analyses.comparison.icl import LinkStudy
from resval_lens.analyses.display.attention import (
    attention_body,
    attention_figure,
    attention_image,
    circuitsvis_body,
)
from resval_lens.analyses.display.circuit import circuits_body
from resval_lens.analyses.display.display import Display, show_figure
from resval_lens.analyses.display.heads import (
    ShownHeads,
    is_named,
    named_heads,
    shown_heads,
)
from resval_lens.analyses.display.page import small
from resval_lens.analyses.drawing.figures import drawn
from resval_lens.analyses.studies import circuit_figures, intervention_figures
from resval_lens.analyses.studies.ablation import Ablation, AblationStudy
from resval_lens.analyses.studies.circuit_drawing import (
    Drawing,
    evaluated_drawings,
    scored_drawing,
)
from resval_lens.analyses.studies.patching import Patching
from resval_lens.analyses.studies.roles import HeadRoles
from resval_lens.hooks.links import Numbers
from resval_lens.hooks.patching import PatchResult

Patterns = Float[Tensor, "*head query key"]
Heads = Float[Tensor, "layer head"]
VIEWS = {"heads": attention_body, "circuitsvis": circuitsvis_body}
"""How attention is shown."""
MOST = 24
"""Heads of a whole model in CircuitsVis if nothing else is asked for: more are slow there."""


def show_attention(
    patterns: Patterns | Sequence[Patterns] | Mapping[str, Patterns | Sequence[Patterns]],
    tokens: Sequence[str],
    heads: Sequence[str] | Numbers | None = None,
    *,
    layers: Numbers | None = None,
    strength: Heads | Mapping[str, Heads] | None = None,
    norms: SourceNorms | Mapping[str, SourceNorms] | None = None,
    most: int | None = None,
    view: str = "heads",
) -> Display:
    """Attention patterns of one layer or of a whole model, or several side by side.

    All heads small, one large. Point at a token, or Tab to it, to see what it attends to and what
    attends to it, in every head; click or Enter keeps it. Heads are ordered and filtered there.

        show_attention({"classic": a["pattern", 1][0], "values": b["pattern", 1][0]}, tokens)
        show_attention([cache["pattern", layer][0] for layer in range(30)], tokens)

    Of a whole model, a list with the patterns of each layer, the strongest heads come first: those
    of the largest |strength|, or, if none is given, of the largest weights that queries put on one
    token before them, the first left out
    (:func:`~resval_lens.analyses.attribution.sources.strength`).

    Args:
        patterns: weights of each head, a list of such (from layer 0 on), or {title: either}. Rows
            (queries) sum to 1.
        tokens: what the positions hold.
        heads: of one layer's patterns their names, by default numbers; of a whole model the heads
            to choose from: names like ``"a12.h3"``, shown in this order, or numbers, in each layer.
        layers: of a whole model those to choose from.
        strength: of a whole model's heads, or {title: such}; for instance shares of a logit
            difference, ``attribute(...).heads.mean(0).sum(1)``.
        norms: of own and link values at source positions
            (:func:`~resval_lens.analyses.attribution.sources.attention`), or {title: such}: shown
            beside the weights.
        most: heads of a whole model to show; by default all (in CircuitsVis 24, or all that are
            named).
        view: ``"heads"``, or ``"circuitsvis"``: CircuitsVis's ``AttentionPatterns``, for a few
            heads (1.3 MB, on white, without ``norms``).

    Raises:
        ValueError: no pattern, or one that does not fit the tokens or the names of heads, or is not
            made of weights between 0 and 1; heads or layers that are not there; a choice among the
            heads of one layer; norms of another shape; another view.
    """
    given = dict(patterns) if isinstance(patterns, Mapping) else {"": patterns}
    if not given:
        raise ValueError("patterns is empty; expected one pattern or more")
    if most is not None and most < 1:
        raise ValueError(f"most must be 1 or more; got {most}")
    if view not in VIEWS:
        raise ValueError(f"view must be one of {', '.join(VIEWS)}; got {view!r}")
    chosen = most
    if view == "circuitsvis" and most is None and not is_named(heads):
        chosen = MOST
    shown: dict[str, ShownHeads] = {}
    for title, each in given.items():
        values = _norms(title, norms)
        if not isinstance(each, Tensor):
            by = strength.get(title) if isinstance(strength, Mapping) else strength
            whole = _stacked(title, each, len(tokens))
            _check_norms(title, values, whole.shape[:3])
            shown[title] = shown_heads(whole, heads, layers, by, chosen, values)
            continue
        for name, value in (("layers", layers), ("strength", strength), ("most", most)):
            if value is not None:
                raise ValueError(f"{name} is for a whole model, a list of its layers' patterns")
        checked = _checked(title, each, len(tokens))
        _check_norms(title, values, checked.shape[:2])
        shown[title] = named_heads(checked, _named(title, len(checked), heads), values)
    title = ", ".join(["Attention patterns", *filter(None, shown)])
    tokens = list(tokens)
    weights = {title: of.patterns for title, of in shown.items()}
    names = {title: of.names for title, of in shown.items()}

    return Display(
        title, VIEWS[view](shown, tokens),
        lambda kind: drawn(attention_figure(weights, tokens, names), kind),
        lambda: attention_image(weights, names),
    )  # fmt: skip


def show_patching(
    found: PatchResult | Patching, tokens: Sequence[str] | None = None, model: str = ""
) -> Display:
    """Heat maps of the share of the gap that each patched cell recovers; hover shows values.

    Args:
        found: of :func:`~resval_lens.hooks.patching.patch`, alone or in a report.
        tokens: of a prompt, where positions are numbers; with a ``PatchResult``.
        model: its name, for the title; with a ``PatchResult``.

    Raises:
        ValueError: there is no gap to recover, fewer tokens than positions, or tokens or a model
            beside a ``Patching``, which has its own.
    """
    if isinstance(found, Patching):
        if tokens is not None or model:
            raise ValueError("tokens and model are for a PatchResult; a Patching has its own")
        figure = found.figure()
    else:
        numbered = [at for at in found.axes.get("position", []) if isinstance(at, int)]
        if tokens is not None and numbered and max(numbered) >= len(tokens):
            raise ValueError(f"{len(tokens)} tokens for positions up to {max(numbered)}")
        figure = intervention_figures.patched(
            found.recovered().cpu().double().numpy(), found.axes, found.site, found.direction,
            tokens=tokens if numbered else None, model=model,
        )  # fmt: skip
    where = ", ".join(found.axes)
    return show_figure(
        figure, f"Activation patching of {found.site} by {where} ({found.direction})"
    )


def show_circuit(
    circuits: Circuit | EvaluatedCircuit | Mapping[str, EvaluatedCircuit],
    scores: EdgeScores | None = None,
    title: str = "",
    *,
    roles: HeadRoles | Mapping[str, str | Sequence[str]] | None = None,
) -> Display:
    """A circuit as a graph, the input below, the logits above, links dashed and in their colour.

    A slider leaves the strongest edges that lie on ways from the input to the logits; layers fold;
    a click keeps the edges of one head. Each edge says its weight: what the metric loses without
    it, or its score. ``save("x.html")`` writes it as a page; images show it still.

        show_circuit(circuit, scores, roles={"a1.h1": "mover of both"}).save("circuit.html")

    Args:
        circuits: one of :func:`~resval_lens.analyses.circuits.evaluation.evaluate`, or
            {title: such}, drawn side by side; or a plain circuit with ``scores``.
        scores: the weights of a plain circuit's edges; with those of each prompt
            (``by_prompt=True``) edges say their standard deviation, too.
        title: of a single one.
        roles: of heads and MLPs, which they are coloured by: {"a1.h2": role, or several}, or what
            :func:`~resval_lens.analyses.studies.roles.head_roles` found.

    Raises:
        ValueError: a plain circuit without scores, or of another graph than they; neither of
            these; scores beside an evaluated one; a circuit without edges; a role of what is no
            head or MLP.
    """
    told = _roles(roles)
    drawings: list[Drawing] = []
    if isinstance(circuits, Circuit):
        if scores is None:
            raise ValueError("a plain Circuit has no weights to show; give its scores")
        if scores.graph.edges != circuits.graph.edges:
            raise ValueError("these scores are of another graph than the circuit")
        drawings = [scored_drawing(title, circuits, scores, told)]
    elif scores is not None:
        raise ValueError("scores are for a plain Circuit; an evaluated one has its own weights")
    else:
        named = {title: circuits} if isinstance(circuits, EvaluatedCircuit) else circuits
        if isinstance(named, Mapping) and all(
            isinstance(each, EvaluatedCircuit) for each in named.values()
        ):
            drawings = evaluated_drawings(named, told)
    if not drawings:
        raise ValueError("circuits must be a Circuit, an evaluated one, or {title: evaluated one}")
    if not all(each.circuit.edges for each in drawings):
        raise ValueError("circuits: one has no edges; there is nothing to draw")
    titles = [each.title for each in drawings]
    name = ": ".join(filter(None, ["Circuit", ", ".join(filter(None, titles))]))
    figure = circuit_figures.side_by_side(drawings)
    plt.close(figure)
    return Display(
        name, circuits_body(drawings, "Circuit"), lambda kind: drawn(figure, kind),
        lambda: small(drawn(figure, "png", dpi=80)),
    )  # fmt: skip


def _roles(roles: HeadRoles | Mapping[str, str | Sequence[str]] | None) -> dict[str, list[str]]:
    given = roles.of_heads() if isinstance(roles, HeadRoles) else roles or {}
    for name in given:
        if not re.fullmatch(r"a\d+\.h\d+|m\d+", name):
            raise ValueError(f"roles: {name!r} is no head or MLP; expected names like a1.h2 or m1")
    return {
        name: [several] if isinstance(several, str) else list(several)
        for name, several in given.items()
    }


def show_link_ablation(study: AblationStudy | Ablation | Mapping[str, LinkStudy]) -> Display:
    """What a task loses when links are edited: bars, or curves over the factors c of scaling.

    Args:
        study: of :func:`~resval_lens.analyses.studies.ablation.ablation_study`; or of classifiers,
            by name, :func:`~resval_lens.analyses.comparison.icl.link_study`.

    Raises:
        ValueError: neither of these.
    """
    of = "", ""
    if isinstance(study, Ablation):
        of = study.facts.model, study.facts.task_and_corruption
        study = study.study
    if isinstance(study, AblationStudy):
        if len(study.scales) > 1:
            return show_figure(
                intervention_figures.ablation_curves(study, *of), "Links scaled by c"
            )
        return show_figure(intervention_figures.ablated(study, *of), "Links edited")
    if not study or not all(isinstance(each, LinkStudy) for each in study.values()):
        raise ValueError("study must be an ablation_study or {name: link_study}")
    return show_figure(figures.link_edits(study), f"Links scaled by c: {', '.join(study)}")


def _stacked(
    title: str, layers: Sequence[Tensor], length: int
) -> Float[Tensor, "layer head query key"]:
    if not layers:
        raise ValueError(f"{_called(title)} is an empty list; expected one pattern a layer")
    each = [_checked(title, weights, length) for weights in layers]
    for layer, weights in enumerate(each):
        if len(weights) != len(each[0]):
            raise ValueError(
                f"{_called(title)} has {len(each[0])} heads in layer 0 and {len(weights)} in "
                f"layer {layer}"
            )
    return torch.stack(each)


def _checked(title: str, weights: Tensor, length: int) -> Float[Tensor, "head query key"]:
    called, shape = _called(title), list(weights.shape)
    if weights.ndim == 2:
        weights = weights[None]
    if weights.ndim != 3 or weights.shape[1:] != (length, length) or not weights.numel():
        raise ValueError(
            f"{called} has shape {shape}; expected [head, {length}, {length}] for {length} tokens"
        )
    weights = weights.detach().float().cpu()
    if not bool(torch.isfinite(weights).all()) or weights.min() < 0 or weights.max() > 1.0001:
        raise ValueError(f"{called} is not attention: weights must lie between 0 and 1")
    return weights


def _norms(title: str, norms: SourceNorms | Mapping[str, SourceNorms] | None) -> SourceNorms | None:
    return norms.get(title) if isinstance(norms, Mapping) else norms


def _check_norms(title: str, norms: SourceNorms | None, shape: Sequence[int]) -> None:
    """Raises ValueError for norms of another shape than the patterns' without their keys."""
    for name, each in (vars(norms) if norms else {}).items():
        if each.shape != tuple(shape):
            raise ValueError(
                f"norms.{name} of {_called(title)} has shape {list(each.shape)}; expected "
                f"{list(shape)}"
            )


def _named(title: str, count: int, heads: Sequence[str] | Numbers | None) -> list[str]:
    """The names of one layer's heads."""
    if heads is None:
        return [str(i) for i in range(count)]
    if not isinstance(heads, Sequence) or not all(isinstance(head, str) for head in heads):
        raise ValueError(f"heads must be names of the {count} heads; got {heads!r}")
    if len(heads) != count:
        raise ValueError(f"{_called(title)} has {count} heads; got {len(heads)} names")
    return list(map(str, heads))


def _called(title: str) -> str:
    return f"pattern {title!r}" if title else "the pattern"
