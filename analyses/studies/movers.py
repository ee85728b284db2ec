"""Which heads and MLPs move the answer of a task, which move these, and does it hold?

From the logits back, one set of edges after the other (path patching between nodes, as Hanna et al.
2023, arXiv 2305.00586), a node is

    into logits   the edge from it to the logits
    into these    the edges from it to all nodes into the logits (queries, keys, values, MLPs)
    into those    the edges from it to all nodes into these

where corrupting those edges alone lowers the mean metric by a share s of its gap (clean −
corrupted) or more; ``against`` where that of the first raises it by as much. An edge that is
corrupted carries what it does on the corrupted prompt; all that comes after is computed. Of a large
model the senders that are tried are those whose EAP-IG scores, summed over these edges, are
largest.

All of it is then tested on other prompts (:mod:`~resval_lens.analyses.studies.knockouts`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from resval_lens.analyses.circuits.circuit import Circuit
from resval_lens.analyses.circuits.evaluation import Ends, check_gap
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.circuits.running import Ablation, EdgeRuns
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.analyses.results.result import FLAT, Result
from resval_lens.analyses.studies.knockouts import (
    Knockouts,
    Nodes,
    Others,
    Sent,
    is_head,
    knock_out,
)
from resval_lens.analyses.tasks.problem import Facts, Problem
from resval_lens.hooks.answers import answer_logits, right_padding
from resval_lens.hooks.prompts import MAX_TOKENS, PromptPairs, wide
from resval_lens.notes import Note
from resval_lens.runtime import evaluating

if TYPE_CHECKING:
    from rich.table import Table

LEVELS = ("into logits", "into these", "into those")
AGAINST = "against"
ROLES = tuple(f"{kind} {what}" for what in (*LEVELS, AGAINST) for kind in ("head", "MLP"))
SHARE = 0.03
TRIED = 64
DRAWS = 3
PUBLISHED: Mapping[str, Mapping[str, Nodes]] = {
    "greater than": {
        "head into logits": ("9.1",),
        "MLP into logits": ("8", "9", "10", "11"),
        "head into these": ("5.5", "6.1", "6.9", "7.10", "8.11", "9.1"),
        "head into those": ("0.1", "0.3", "0.5"),
        "MLP into those": ("0", "1", "2", "3"),
    }
}
"""Nodes of GPT-2 small by a task's title and role, layer.head or layer: Hanna et al. 2023."""


@dataclass(frozen=True)
class Mover:
    """A node, and what corrupting its edges does.

    Attributes:
        effect: on the metric, as a share of the gap.
        attends: a head's mean attention from the last position to those at which clean and
            corrupted prompts differ; None of an MLP.
    """

    node: str
    effect: float
    attends: float | None


@dataclass(frozen=True)
class Levels:
    """How movers were found.

    Attributes:
        share: the least effect, s.
        tried: how many senders were tried for each level, of how many.
        metric: on the prompts by which they were found.
        even: what even attention would have to the positions that differ.
    """

    share: float
    tried: Mapping[str, tuple[int, int]]
    metric: Ends
    even: float


@dataclass(frozen=True)
class MoverStudy(Result):
    """What moves the answer, and the tests of it on other prompts.

    Attributes:
        facts: of the model and the prompts by which nodes have their roles.
        movers: every role of ``ROLES`` with its nodes, the strongest first.
        held_out: how many other prompts there are.
        ability: every measure and metric of the task on these and on their corrupted prompts.
        knockouts: by ablation, on these.
    """

    facts: Facts = field(metadata=FLAT)
    levels: Levels
    movers: Mapping[str, tuple[Mover, ...]]
    held_out: int
    ability: Mapping[str, Ends]
    knockouts: Mapping[str, Knockouts]

    def tables(self) -> list[Table]:
        """Nodes by role, roles knocked out, edges between levels, and the circuit of all."""
        from resval_lens.analyses.studies.mover_tables import mover_tables

        return mover_tables(self)

    def sentences(self) -> list[str]:
        """Whether the model does the task, what moves it, which roles it needs."""
        from resval_lens.analyses.studies.mover_tables import mover_sentences

        return mover_sentences(self)


def mover_study(
    scored: Problem,
    held_out: Problem,
    *,
    share: float = SHARE,
    tried: int = TRIED,
    draws: int = DRAWS,
    note: Note = lambda text: None,
) -> MoverStudy:
    """Movers by the ``scored`` prompts, tested on the ``held_out`` ones.

    Args:
        share: the least effect, in parts of the gap.
        tried: senders that are tried for each level, at most.
        draws: of other nodes.

    Raises:
        ValueError: ``share`` that does not lie between 0 and 1, ``tried`` or ``draws`` below 1, a
            model that does not do the task (its metric is no larger on the prompts than on the
            corrupted ones), no node has a role, what running edges refuses.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1; got {share!r}")
    for name, count in (("tried", tried), ("draws", draws)):
        if count < 1:
            raise ValueError(f"{name} must be 1 or more; got {count}")
    levels, movers = _movers(scored, share, tried, note)
    by_role = {role: tuple(each.node for each in found) for role, found in movers.items() if found}
    inside = tuple(dict.fromkeys(node for several in by_role.values() for node in several))
    among = Graph.of(scored.model).writers[1:]
    others = Others(among, inside, torch.Generator().manual_seed(scored.seed))
    drawn = {
        role: [others.draw(nodes) for _ in range(draws)]
        for role, nodes in {**by_role, "": inside}.items()
    }
    sent: list[Sent] = []
    receivers: Nodes = ("logits",)
    for what in LEVELS:
        senders = _of_level(by_role, what)
        if senders:
            random = tuple(others.draw(senders) for _ in range(draws))
            sent.append(Sent(senders, receivers, random))
        receivers = senders
    knockouts = {
        ablation: knock_out(held_out, ablation, among, by_role, drawn, sent, note)
        for ablation in get_args(Ablation)
    }
    return MoverStudy(
        scored.facts(), levels, movers, len(held_out.pairs), _ability(held_out), knockouts
    )


def _of_level(by_role: Mapping[str, Nodes], what: str) -> Nodes:
    return tuple(node for kind in ("head", "MLP") for node in by_role.get(f"{kind} {what}", ()))


def _movers(
    scored: Problem, share: float, tried: int, note: Note
) -> tuple[Levels, dict[str, tuple[Mover, ...]]]:
    runs = EdgeRuns(scored.model, scored.pairs)
    check_gap(runs)
    gap = runs.clean - runs.corrupted
    if gap < 0:
        raise ValueError(
            f"the {scored.metric} is {runs.clean:.3g} on the prompts and {runs.corrupted:.3g} on "
            "the corrupted prompts: this model does not do the task, and nothing moves its answer"
        )
    note(f"scoring {len(runs.graph):,} edges")
    scores = score_edges(scored.model, scored.pairs, "eap-ig", graph=runs.graph).values
    effects: dict[str, dict[str, float]] = {}
    counts: dict[str, tuple[int, int]] = {}
    receivers: Nodes = ("logits",)
    for what in LEVELS:
        edges = _edges_by_sender(runs.graph, receivers)
        chosen = sorted(edges, key=lambda node: -abs(float(scores[edges[node]].sum())))[:tried]
        counts[what] = len(chosen), len(edges)
        note(f"{what}: {len(chosen)} nodes")
        found = _effects(runs, [edges[node] for node in chosen])
        shares = dict(zip(chosen, (found / gap).tolist(), strict=True))
        effects[what] = {node: x for node, x in shares.items() if x <= -share}
        if what == LEVELS[0]:
            effects[AGAINST] = {node: x for node, x in shares.items() if x >= share}
        receivers = tuple(effects[what])
    if not any(effects.values()):
        raise ValueError(f"no node changes the {scored.metric} by {share:g} of its gap or more")
    attends, even = _attention(scored)
    movers: dict[str, tuple[Mover, ...]] = {}
    for role in ROLES:
        kind, _, what = role.partition(" ")
        own = [node for node in effects[what] if is_head(node) == (kind == "head")]
        own.sort(key=lambda node: -abs(effects[what][node]))
        movers[role] = tuple(Mover(n, effects[what][n], attends.get(n)) for n in own)
    return Levels(share, counts, Ends(runs.clean, runs.corrupted), even), movers


def _edges_by_sender(graph: Graph, receivers: Iterable[str]) -> dict[str, list[int]]:
    """Numbers of the edges from each head and MLP alone into any of the receivers."""
    reading = set(receivers)
    found: dict[str, list[int]] = {}
    for number, edge in enumerate(graph.edges):
        (sender, *more) = graph.heads_of(edge.source)
        if more or sender not in graph.writers[1:]:
            continue
        if reading.intersection(graph.heads_of(edge.target)):
            found.setdefault(sender, []).append(number)
    return found


def _effects(runs: EdgeRuns, several: Sequence[Sequence[int]]) -> Float[Tensor, " set"]:
    """What corrupting each set of edges does to the mean metric."""
    whole = Circuit.whole(runs.graph)
    if not several:
        return torch.zeros(0)
    kept = torch.stack([whole.without(edges).kept for edges in several])
    return runs.means(kept).cpu() - runs.clean


@torch.no_grad()
def _attention(problem: Problem) -> tuple[dict[str, float], float]:
    """Each head's mean attention from the end to what differs in corrupted prompts; and even."""
    model, pairs = problem.model, problem.pairs
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    summed = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, dtype=torch.float64)
    with evaluating(model):
        for part in pairs.within(MAX_TOKENS):
            _, cache = model.run_with_cache(
                part.clean, names_filter=names, return_type=None, **right_padding(model)
            )
            differs, rows = _differs(part), torch.arange(len(part))
            for layer, name in enumerate(names):
                weights = wide(cache[name][rows, :, part.answers])  # [prompt, head, key]
                summed[layer] += (weights * differs[:, None]).sum((0, 2)).cpu()
    even = (_differs(pairs).sum(1) / (pairs.answers + 1)).mean().item()
    means = summed / len(pairs)
    return {
        f"a{layer}.h{head}": means[layer, head].item()
        for layer in range(model.cfg.n_layers)
        for head in range(model.cfg.n_heads)
    }, even


def _differs(pairs: PromptPairs) -> Bool[Tensor, "prompt pos"]:
    found = pairs.clean != pairs.corrupted
    return found if found.ndim == 2 else found.any(-1)  # vectors


@torch.no_grad()
def _ability(problem: Problem) -> dict[str, Ends]:
    """Means of every measure and metric of the task."""
    model, pairs = problem.model, problem.pairs
    with evaluating(model):
        both = [
            answer_logits(model, rows, pairs.answers) for rows in (pairs.clean, pairs.corrupted)
        ]
    functions = {**problem.metrics, **problem.task.measures(model)}
    return {
        name: Ends(*(wide(metric(logits, pairs.labels).float()).mean().item() for logits in both))
        for name, metric in functions.items()
    }
