"""What the links of a trained graft are worth: cut layer by layer, and in a task's circuit.

A link's size is no measure of its worth: what it brings may be read by nobody (arXiv 2606.13168 on
routing mass). So each layer's learned numbers are put back to where they began (``carried`` 0: the
link cut), beside their size and the size of what they bring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from resval_lens.analyses.circuits.circuit import Circuit
from resval_lens.analyses.circuits.evaluation import counting, faithfulness
from resval_lens.analyses.circuits.running import EdgeRuns
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.analyses.results.result import Result
from resval_lens.hooks.answers import answer_logits
from resval_lens.hooks.prompts import PromptPairs
from resval_lens.lens.hook_names import source_point
from resval_lens.mixing import StreamMix
from resval_lens.notes import Note
from resval_lens.runtime import evaluating
from resval_lens.streams import TABLE
from resval_lens.training.lm import Rows
from resval_lens.transformer import ResValTransformer


@dataclass(frozen=True)
class Cut:
    """One layer's learned numbers put back to where they began.

    Attributes:
        size: mean |w − start| over the layer's learned numbers.
        brought: mean over tokens and heads of ‖change of v‖ / ‖v‖ that they make in the layer.
        costs: what each row's loss rises by (nats a token).
    """

    stream: str
    layer: int
    size: float
    brought: float
    costs: tuple[float, ...]

    @property
    def cost(self) -> float:
        """The mean over rows."""
        return float(np.mean(self.costs))


@dataclass(frozen=True)
class AtSize:
    """The ``edges`` of the largest scores: links among them, and what the circuit of them keeps.

    Attributes:
        links: how many of them are links.
        before: how many of them were among as many before the graft was trained.
        faithfulness, without_links: of the circuit, and of it less its links; None where the
            metric's gap vanishes.
    """

    edges: int
    links: int
    before: int
    faithfulness: float | None
    without_links: float | None


@dataclass(frozen=True)
class TaskCircuit:
    """A task's circuit with the trained graft, beside that of the same prompts before.

    Attributes:
        metric_before, metric_after, metric_cut: of the model before, after, and after with every
            learned number put back.
        edges, links: of the graph.
        link_share: Σ|score| of links over that of all edges.
        rank: Spearman's correlation of the scores of edges that are no links, before and after.
        strongest_links: the largest scores of links, by edge.
        links_corrupted: faithfulness of the whole model with every link as on corrupted prompts.
    """

    task: str
    metric: str
    prompts: int
    seed: int
    metric_before: float
    metric_after: float
    metric_cut: float
    edges: int
    links: int
    link_share: float
    rank: float
    strongest_links: tuple[tuple[str, float], ...]
    links_corrupted: float | None
    sizes: tuple[AtSize, ...]


@dataclass(frozen=True)
class GraftLinks(Result):
    """What was measured of one trained graft.

    Attributes:
        rows, length: of the held-out text on which layers were cut.
    """

    name: str
    seed: int
    weights: str
    rows: int
    length: int
    cuts: tuple[Cut, ...]
    circuit: TaskCircuit | None


@torch.no_grad()
def cut_layers(
    model: ResValTransformer, start: ResValTransformer, rows: Rows, count: int, note: Note
) -> tuple[Cut, ...]:
    """Each layer's learned numbers put back to those of ``start``, on the first ``count`` rows.

    A row is run again from the layer that is cut: what comes before is as it was.

    Args:
        model, start: the graft as it ended and as it began.
    """
    cut: dict[tuple[str, int], tuple[list[float], list[float]]] = {
        (stream.of, layer): ([], [])
        for stream in model.cfg.streams
        for layer in range(model.cfg.n_layers)
        if stream.receives(layer)
    }
    points = {f"blocks.{layer}.hook_resid_pre" for _, layer in cut}
    points |= {f"blocks.{layer}.attn.hook_{of}" for of, layer in cut}
    points |= {
        source_point(stream, j)
        for stream in model.cfg.streams
        for layer in range(model.cfg.n_layers)
        for j in stream.sources(layer)
        if j != TABLE
    }
    with evaluating(model):
        for number in range(count):
            note(f"layers cut: row {number + 1} of {count}")
            tokens, targets = (x.to(model.cfg.device) for x in rows.batch(np.array([number])))
            counted, cache = int((targets >= 0).sum()), dict[str, Tensor]()
            with model.hooks(fwd_hooks=[(point, _keeping(cache)) for point in points]):
                whole = float(model(tokens, targets=targets))
            for (of, layer), (costs, brought) in cut.items():
                point, again = f"blocks.{layer}.attn.hook_{of}", dict[str, Tensor]()
                with (
                    _put_back(_mix(model, of, layer), _mix(start, of, layer)),
                    model.hooks(fwd_hooks=[(point, _keeping(again))]),
                ):
                    loss = model(
                        cache[f"blocks.{layer}.hook_resid_pre"], start_at_layer=layer,
                        tokens=tokens, carried=model.carried_before(layer, cache), targets=targets,
                    )  # fmt: skip
                change = (cache[point] - again[point]).norm(dim=-1) / cache[point].norm(dim=-1)
                brought.append(float(change.mean()))
                costs.append((float(loss) - whole) / counted)
    return tuple(
        Cut(of, layer, _size(_mix(model, of, layer), _mix(start, of, layer)),
            float(np.mean(brought)), tuple(costs))
        for (of, layer), (costs, brought) in cut.items()
    )  # fmt: skip


def _keeping(cache: dict[str, Tensor]) -> Callable[[Tensor, HookPoint], None]:
    def keep(x: Tensor, hook: HookPoint) -> None:
        assert hook.name is not None
        cache[hook.name] = x

    return keep


def _mix(model: ResValTransformer, of: str, layer: int) -> StreamMix:
    mix = model.blocks[layer].attn.mix(of)
    assert mix is not None
    return mix


@contextmanager
def _put_back(mix: StreamMix, start: StreamMix) -> Iterator[None]:
    held = [parameter.detach().clone() for parameter in mix.parameters()]
    try:
        with torch.no_grad():
            for own, began in zip(mix.parameters(), start.parameters(), strict=True):
                own.copy_(began)
        yield
    finally:
        with torch.no_grad():
            for own, before in zip(mix.parameters(), held, strict=True):
                own.copy_(before)


def _size(mix: StreamMix, start: StreamMix) -> float:
    pairs = zip(mix.parameters(), start.parameters(), strict=True)
    return float(torch.cat([(own - began).flatten() for own, began in pairs]).abs().mean())


def task_circuit(
    model: ResValTransformer,
    start: ResValTransformer,
    scored: PromptPairs,
    others: PromptPairs,
    *,
    task: str,
    metric: str,
    seed: int,
    sizes: Sequence[int],
    note: Note = lambda text: None,
) -> TaskCircuit:
    """The circuit with the trained graft beside that with the graft as it began.

    Edges are scored by EAP-IG on ``scored``; circuits are run on ``others``.

    Raises:
        ValueError: a model without streams, or what scoring refuses.
    """
    note("scoring edges before the graft")
    before = score_edges(start, scored, progress=counting(note, "edges before the graft"))
    note("scoring edges with the graft")
    after = score_edges(model, scored, progress=counting(note, "edges with the graft"))
    graph = after.graph
    is_link = torch.tensor([edge.is_link for edge in graph.edges])
    values = after.values.cpu()
    earlier = torch.tensor([before.values[before.graph.number[str(edge)]] if str(edge)
                            in before.graph.number else 0.0 for edge in graph.edges])  # fmt: skip
    order = values.abs().argsort(descending=True, stable=True)
    order_before = earlier.abs().argsort(descending=True, stable=True)
    runs = EdgeRuns(model, others, graph)
    circuits, told = [Circuit.whole(graph).without_links()], []
    for size in sizes:
        chosen = Circuit.of(graph, order[:size].tolist())
        circuits += [chosen, chosen.without_links()]
        first = set(order[:size].tolist())
        told.append((size, int(is_link[order[:size]].sum()),
                     len(first & set(order_before[:size].tolist()))))  # fmt: skip
    found = [each.value for each in faithfulness(runs, circuits, counting(note, "circuits"))]
    with ExitStack() as stack:
        for stream in model.cfg.streams:
            for layer in range(model.cfg.n_layers):
                if stream.receives(layer):
                    both = (_mix(each, stream.of, layer) for each in (model, start))
                    stack.enter_context(_put_back(*both))
        cut = _mean(model, others)
    links = [(str(graph.edges[i]), float(values[i])) for i in order.tolist() if is_link[i]]
    plain = ~is_link
    return TaskCircuit(
        task=task,
        metric=metric,
        prompts=len(scored),
        seed=seed,
        metric_before=_mean(start, others),
        metric_after=runs.clean,
        metric_cut=cut,
        edges=len(graph),
        links=int(is_link.sum()),
        link_share=float(values[is_link].abs().sum() / values.abs().sum()),
        rank=float(scipy.stats.spearmanr(values[plain], earlier[plain]).statistic),
        strongest_links=tuple(links[:10]),
        links_corrupted=found[0],
        sizes=tuple(
            AtSize(size, count, kept, found[1 + 2 * i], found[2 + 2 * i])
            for i, (size, count, kept) in enumerate(told)
        ),
    )


@torch.no_grad()
def _mean(model: ResValTransformer, pairs: PromptPairs) -> float:
    with evaluating(model):
        logits = answer_logits(model, pairs.clean, pairs.answers)
    return float(pairs.measure(logits).mean())
