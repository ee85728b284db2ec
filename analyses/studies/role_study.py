"""Do the heads that roles name make the answer? On prompts by which they were not chosen.

Roles (:mod:`~resval_lens.analyses.studies.roles`) are given by measurements on some prompts. On
others, and by every metric of the task:

    knocked out   all heads of a role together; beside them as many heads without a role, of the
                  same layers or the nearest ones that have any, drawn several times
    path          what all heads of one role send into the queries, keys or values of another's, or
                  to the logits (path patching); beside it as many heads without a role
    circuit       every head without a role knocked out (MLPs stay): faithfulness f; beside it as
                  many heads of the same layers
    complete      |m(C∖K) − m(M∖K)| of each role K: the circuit C without it, the model M without it
    minimal       |m(C∖(K ∪ v)) − m(C∖K)| of each head v, K being the other heads of its first role

as Wang et al. 2022 (arXiv 2211.00593, section 4 and appendix). A head that is knocked out writes
what it does on the corrupted prompt (resample), or the mean of that over corrupted prompts whose
names stand at the same positions (mean).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from resval_lens.analyses.circuits.circuit import Circuit
from resval_lens.analyses.circuits.evaluation import edges_out_of
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.circuits.running import Ablation, EdgeRuns
from resval_lens.analyses.results.intervals import Interval, mean_interval
from resval_lens.analyses.results.result import FLAT, Result
from resval_lens.analyses.studies.roles import ATTENTION, ROLES, SHARE, HeadRoles, head_roles
from resval_lens.analyses.tasks.problem import Facts, Problem
from resval_lens.hooks.links import head_name
from resval_lens.hooks.path_patching import path_patch
from resval_lens.notes import Note
from resval_lens.tasks.ioi import IOIPrompt
from resval_lens.tasks.leading import AUTO

if TYPE_CHECKING:
    from rich.table import Table

Heads = tuple[tuple[int, int], ...]
PUBLISHED = {
    "name mover": ("9.9", "10.0", "9.6"),
    "negative": ("10.7", "11.10"),
    "backup": ("9.0", "9.7", "10.1", "10.2", "10.6", "10.10", "11.2", "11.9"),
    "S-inhibition": ("7.3", "7.9", "8.6", "8.10"),
    "induction": ("5.5", "5.8", "5.9", "6.9"),
    "duplicate token": ("0.1", "0.10", "3.0"),
    "previous token": ("2.2", "4.11"),
}
"""Heads of GPT-2 small by role (Wang et al. 2022, figure 2), layer.head."""
PATHS: tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...] = (
    (("name mover", "mover of both"), (), "logits"),
    (("S-inhibition",), ("name mover", "mover of both", "subject suppressor"), "q"),
    (("induction", "duplicate token"), ("S-inhibition",), "v"),
    (("previous token",), ("induction",), "k"),
)
"""Paths that the circuit of Wang et al. runs along: roles that send, roles that receive, and as
what."""
DRAWS = 5


@dataclass(frozen=True)
class Effect:
    """The change of a mean metric, with its 95% interval over prompts.

    Attributes:
        drawn: the same change of other heads, for each draw.
    """

    change: Interval
    drawn: tuple[float, ...]


@dataclass(frozen=True)
class RoleEffect:
    """A role's heads knocked out: what that does to each metric, and how far the circuit agrees.

    Attributes:
        incomplete: |m(C∖K) − m(M∖K)| by metric.
    """

    role: str
    heads: tuple[str, ...]
    effects: Mapping[str, Effect]
    incomplete: Mapping[str, float]


@dataclass(frozen=True)
class HeadCircuit:
    """What all heads with a role keep of a metric, and as many others.

    Attributes:
        clean, corrupted, circuit: mean metrics of the model, on corrupted prompts, of the circuit.
        faithfulness: f, and ``drawn``, of each draw of other heads.
    """

    clean: float
    corrupted: float
    circuit: float
    faithfulness: float
    drawn: tuple[float, ...]


@dataclass(frozen=True)
class Knockouts:
    """Everything under one ablation.

    Attributes:
        circuit: by metric.
        minimality: by head and metric.
    """

    roles: tuple[RoleEffect, ...]
    circuit: Mapping[str, HeadCircuit]
    minimality: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class PathEffect:
    """What senders do to the receivers, and through them to the metric, in its own unit."""

    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    effect: Effect


@dataclass(frozen=True)
class RoleStudy(Result):
    """The roles, and the tests of them on other prompts.

    Attributes:
        facts: of the model and the prompts by which heads have their roles; its metric is that of
            paths.
        held_out: how many others they are tested on.
        knockouts: by ablation.
    """

    facts: Facts = field(metadata=FLAT)
    roles: HeadRoles
    held_out: int
    knockouts: Mapping[str, Knockouts]
    paths: tuple[PathEffect, ...]

    def tables(self) -> list[Table]:
        """Heads by role, roles knocked out, paths, and the circuit of all heads with a role."""
        from resval_lens.analyses.studies.role_tables import role_tables

        return role_tables(self)

    def sentences(self) -> list[str]:
        """Which roles there are, which of them prompts need, and how far they make a circuit."""
        from resval_lens.analyses.studies.role_tables import role_sentences

        return role_sentences(self)


def role_study(
    scored: Problem,
    held_out: Problem,
    *,
    attention: float = ATTENTION,
    share: float = SHARE,
    draws: int = DRAWS,
    prepend: str = AUTO,
    note: Note = lambda text: None,
) -> RoleStudy:
    """Roles by the ``scored`` prompts, tested on the ``held_out`` ones.

    Args:
        scored, held_out: indirect objects, corrupted by ABC.
        attention, share, prepend: as in :func:`~resval_lens.analyses.studies.roles.head_roles`.
        draws: of heads without a role.

    Raises:
        ValueError: what ``head_roles`` refuses, prompts of another task, ``draws`` below 1, or no
            head has a role.
    """
    if draws < 1:
        raise ValueError(f"draws must be 1 or more; got {draws}")
    model = scored.model
    named = [each for each in scored.prompts if isinstance(each, IOIPrompt)]
    if not named:
        raise ValueError(f"roles are of indirect objects; these prompts are of {scored.task.title}")
    found = head_roles(
        model, named, attention=attention, share=share, seed=scored.seed,
        prepend=prepend, note=note,
    )  # fmt: skip
    heads = product(range(model.cfg.n_layers), range(model.cfg.n_heads))
    places = {head_name(*place): place for place in heads}
    by_role = {
        role: tuple(places[head.head] for head in found.roles[role])
        for role in ROLES
        if found.roles[role]
    }
    if not by_role:
        raise ValueError(f"no head of {scored.name} has a role on these prompts")
    generator = torch.Generator().manual_seed(scored.seed)
    others = _Others(model.cfg.n_layers, model.cfg.n_heads, by_role.values(), generator)
    inside = tuple(dict.fromkeys(place for several in by_role.values() for place in several))
    drawn = {
        role: [others.draw(heads) for _ in range(draws)]
        for role, heads in {**by_role, "": inside}.items()
    }
    knockouts = {
        ablation: _knockouts(held_out, ablation, by_role, drawn, note)
        for ablation in get_args(Ablation)
    }
    paths = []
    for senders, receivers, port in PATHS:
        note("paths from " + " and ".join(senders))
        path = _path(held_out, by_role, senders, receivers, port, others, draws)
        paths += [path] if path else []
    return RoleStudy(scored.facts(), found, len(held_out.pairs), knockouts, tuple(paths))


class _Others:
    """Heads without a role."""

    def __init__(
        self, layers: int, heads: int, roles: Iterable[Heads], generator: Generator
    ) -> None:
        taken = {place for several in roles for place in several}
        self.free: Bool[Tensor, "layer head"] = torch.ones(layers, heads, dtype=torch.bool)
        for place in taken:
            self.free[place] = False
        self.generator = generator

    def draw(self, heads: Heads) -> Heads:
        """As many, each of the layer of one of ``heads`` or, where that has none left, the nearest.

        Fewer where there are no more.
        """
        free, drawn = self.free.clone(), []
        for layer, _ in heads:
            places = free.nonzero()
            if not len(places):
                break
            far = (places[:, 0] - layer).abs()
            near = places[far == far.min()]
            which = int(torch.randint(len(near), (), generator=self.generator))
            place = int(near[which, 0]), int(near[which, 1])
            free[place] = False
            drawn.append(place)
        return tuple(drawn)


def _names(heads: Iterable[tuple[int, int]]) -> tuple[str, ...]:
    return tuple(head_name(*place) for place in heads)


def _without(graph: Graph, heads: Iterable[tuple[int, int]], of: Circuit) -> Tensor:
    return of.without(edges_out_of(graph, _names(heads))).kept


def _knockouts(
    held_out: Problem,
    ablation: Ablation,
    by_role: Mapping[str, Heads],
    drawn: Mapping[str, Sequence[Heads]],
    note: Note,
) -> Knockouts:
    """``drawn``: other heads, of each role and ("") of the circuit of all."""
    runs = EdgeRuns(held_out.model, held_out.pairs, ablation=ablation)
    graph, metrics = runs.graph, held_out.metrics
    cfg = held_out.model.cfg
    inside = tuple(dict.fromkeys(place for several in by_role.values() for place in several))
    every = {(layer, head) for layer in range(cfg.n_layers) for head in range(cfg.n_heads)}
    model, nothing = Circuit.whole(graph), Circuit.of(graph, [])
    circuit = Circuit(graph, _without(graph, every.difference(inside), model))
    sets: dict[tuple[object, ...], Tensor] = {
        ("model",): model.kept, ("nothing",): nothing.kept, ("circuit",): circuit.kept
    }  # fmt: skip
    for i, heads in enumerate(drawn[""]):
        sets["drawn", i] = _without(graph, every.difference(heads), model)
    for role, heads in by_role.items():
        sets["model", role] = _without(graph, heads, model)
        sets["circuit", role] = _without(graph, heads, circuit)
        for i, random in enumerate(drawn[role]):
            sets["drawn", role, i] = _without(graph, random, model)
    first = {
        place: next(role for role, heads in by_role.items() if place in heads) for place in inside
    }
    for place, role in first.items():
        rest = [head for head in by_role[role] if head != place]
        sets["rest", place] = _without(graph, rest, circuit)
    total = len(sets)
    measured = runs.by_metrics(
        torch.stack(list(sets.values())), metrics,
        lambda done: note(f"roles knocked out, {ablation}: {done:,} of {total:,}"),
    )  # fmt: skip
    number, draws = {key: row for row, key in enumerate(sets)}, range(len(drawn[""]))
    values = {name: x.double().cpu().numpy() for name, x in measured.items()}

    def mean(name: str, *key: object) -> float:
        return float(values[name][number[key]].mean())

    def change(name: str, *key: object) -> Float[np.ndarray, " prompt"]:
        found: np.ndarray = values[name][number[key]] - values[name][number["model",]]
        return found

    def kept(name: str, *key: object) -> float:
        low, high = mean(name, "nothing"), mean(name, "model")
        return (mean(name, *key) - low) / (high - low)

    roles = tuple(
        RoleEffect(
            role,
            _names(heads),
            {
                name: Effect(
                    mean_interval(change(name, "model", role)),
                    tuple(float(change(name, "drawn", role, i).mean()) for i in draws),
                )
                for name in metrics
            },
            {
                name: abs(mean(name, "circuit", role) - mean(name, "model", role))
                for name in metrics
            },
        )
        for role, heads in by_role.items()
    )
    whole = {
        name: HeadCircuit(
            mean(name, "model"),
            mean(name, "nothing"),
            mean(name, "circuit"),
            kept(name, "circuit"),
            tuple(kept(name, "drawn", i) for i in draws),
        )
        for name in metrics
    }
    minimality = {
        head_name(*place): {
            name: abs(mean(name, "circuit", role) - mean(name, "rest", place)) for name in metrics
        }
        for place, role in first.items()
    }
    return Knockouts(roles, whole, minimality)


def _path(
    held_out: Problem,
    by_role: Mapping[str, Heads],
    sending: Sequence[str],
    receiving: Sequence[str],
    port: str,
    others: _Others,
    draws: int,
) -> PathEffect | None:
    """None where either side has no heads, or none of one comes before one of the other."""
    senders, readers = (
        tuple(dict.fromkeys(place for role in roles for place in by_role.get(role, ())))
        for roles in (sending, receiving)
    )
    if receiving:
        readers = tuple(to for to in readers if any(place[0] < to[0] for place in senders))
        last = max((layer for layer, _ in readers), default=-1)
        senders = tuple(place for place in senders if place[0] < last)
    if not senders or not (readers or not receiving):
        return None
    shared = held_out.model.cfg.n_heads // held_out.model.cfg.n_heads_of(port) if readers else 1
    ends = [head_name(layer, head // shared, port) for layer, head in readers] or ["logits"]
    ends = list(dict.fromkeys(ends))
    found = path_patch(held_out.model, held_out.pairs, _names(senders), ends)
    drawn = []
    for _ in range(draws):
        random = tuple(place for place in others.draw(senders) if not readers or place[0] < last)
        each = path_patch(held_out.model, held_out.pairs, _names(random), ends)
        drawn.append(float(each.effect.double().mean()))
    effect = Effect(mean_interval(found.effect.double().cpu().numpy()), tuple(drawn))
    return PathEffect(_names(senders), tuple(ends), effect)
