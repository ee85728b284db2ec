"""Do the heads that roles name make the answer? On prompts by which they were not chosen.

Roles (:mod:`~resval_lens.analyses.studies.roles`) are given by measurements on some prompts. On
others, and by every metric of the task:

    knocked out   all heads of a role together
    path          what all heads of one role send into the queries, keys or values of another's, or
                  to the logits (path patching, MLPs recomputed); beside it as many heads without a
                  role
    circuit       every head without a role knocked out; MLPs stay

as :mod:`~resval_lens.analyses.studies.knockouts` says, with completeness and minimality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, get_args

import torch

from resval_lens.analyses.circuits.running import Ablation
from resval_lens.analyses.results.intervals import mean_interval
from resval_lens.analyses.results.result import FLAT, Result
from resval_lens.analyses.studies.knockouts import (
    Effect,
    Knockouts,
    Nodes,
    Others,
    knock_out,
    layer_of,
)
from resval_lens.analyses.studies.roles import ATTENTION, ROLES, SHARE, HeadRoles, head_roles
from resval_lens.analyses.tasks.problem import Facts, Problem
from resval_lens.hooks.links import head_name
from resval_lens.hooks.path_patching import path_patch
from resval_lens.notes import Note
from resval_lens.tasks.ioi import IOIPrompt
from resval_lens.tasks.leading import AUTO

if TYPE_CHECKING:
    from rich.table import Table

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
    cfg = model.cfg
    heads = [head_name(*place) for place in product(range(cfg.n_layers), range(cfg.n_heads))]
    by_role = {
        role: tuple(head.head for head in found.roles[role]) for role in ROLES if found.roles[role]
    }
    if not by_role:
        raise ValueError(f"no head of {scored.name} has a role on these prompts")
    generator = torch.Generator().manual_seed(scored.seed)
    inside = tuple(dict.fromkeys(head for several in by_role.values() for head in several))
    others = Others(heads, inside, generator)
    drawn = {
        role: [others.draw(several) for _ in range(draws)]
        for role, several in {**by_role, "": inside}.items()
    }
    knockouts = {
        ablation: knock_out(held_out, ablation, heads, by_role, drawn, note=note)
        for ablation in get_args(Ablation)
    }
    paths = []
    for senders, receivers, port in PATHS:
        note("paths from " + " and ".join(senders))
        path = _path(held_out, by_role, senders, receivers, port, others, draws)
        paths += [path] if path else []
    return RoleStudy(scored.facts(), found, len(held_out.pairs), knockouts, tuple(paths))


def _path(
    held_out: Problem,
    by_role: Mapping[str, Nodes],
    sending: Sequence[str],
    receiving: Sequence[str],
    port: str,
    others: Others,
    draws: int,
) -> PathEffect | None:
    """None where either side has no heads, or none of one comes before one of the other."""
    senders, readers = (
        tuple(dict.fromkeys(head for role in roles for head in by_role.get(role, ())))
        for roles in (sending, receiving)
    )
    if receiving:
        first = min(map(layer_of, senders), default=0)
        readers = tuple(head for head in readers if layer_of(head) > first)
        last = max(map(layer_of, readers), default=-1)
        senders = tuple(head for head in senders if layer_of(head) < last)
    if not senders or not (readers or not receiving):
        return None
    ends = [_read_by(held_out, head, port) for head in readers] or ["logits"]
    ends = list(dict.fromkeys(ends))
    found = path_patch(held_out.model, held_out.pairs, senders, ends)
    drawn = []
    for _ in range(draws):
        random = [head for head in others.draw(senders) if not readers or layer_of(head) < last]
        each = path_patch(held_out.model, held_out.pairs, random, ends)
        drawn.append(float(each.effect.double().mean()))
    effect = Effect(mean_interval(found.effect.double().cpu().numpy()), tuple(drawn))
    return PathEffect(senders, tuple(ends), effect)


def _read_by(held_out: Problem, head: str, port: str) -> str:
    """A head's queries, keys or values; those of its group where several share them."""
    cfg = held_out.model.cfg
    layer, number = head[1:].split(".h")
    return head_name(int(layer), int(number) // (cfg.n_heads // cfg.n_heads_of(port)), port)
