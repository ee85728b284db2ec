"""Runs in which some edges carry what they carry in the corrupted run: exact, nothing linearised.

A reader whose edge from writer w is corrupted reads its input less what w writes now, plus what w
writes on the corrupted prompt; a corrupted link brings what it brings there. Everything else is
computed: what an edge that is kept carries follows from what happened before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from resval_lens.analyses.circuits.circuit_run import CircuitRun, Part, Trunk
from resval_lens.analyses.circuits.graph import Graph, graph_of
from resval_lens.analyses.circuits.recording import Recorder, Recording, inputs_per_head, record
from resval_lens.hooks.answers import layer_device
from resval_lens.hooks.groups import Groups, alike
from resval_lens.hooks.processes import dividing, summed
from resval_lens.hooks.prompts import (
    MAX_TOKENS,
    Metric,
    PromptPairs,
    prompts_within,
    ready,
    refuse_hooks,
    wide,
)
from resval_lens.hooks.runs import Run
from resval_lens.runtime import evaluating
from resval_lens.transformer import ResValTransformer

MOST_NUMBERS = 2**27
"""Numbers that are held at once of what writers write and readers read (half a gigabyte)."""

MOST_HELD = 2**29
"""Numbers of recorded prompts that are held between runs (two gigabytes). Each time that circuits
are run, a prompt beyond them takes two forward runs more."""

Ablation = Literal["resample", "mean"]


def most_numbers(device: torch.device) -> int:
    """``MOST_NUMBERS``; on a GPU as many as a quarter of its free memory holds, if that is more."""
    if device.type != "cuda":
        return MOST_NUMBERS
    return max(MOST_NUMBERS, torch.cuda.mem_get_info(device)[0] // 16)


def numbers_of_prompt(graph: Graph, length: int) -> int:
    """Held of a prompt while it is run: what is written in two runs, twice the difference that a
    run is at, and what a layer's readers read."""
    return (4 * len(graph.writers) + 6 * graph.most_readers) * graph.cfg.d_model * length


def prompts_at_once(graph: Graph, length: int, max_tokens: int, most: int) -> int:
    """How many prompts circuits are run on at once."""
    return min(prompts_within(max_tokens, length), max(1, most // numbers_of_prompt(graph, length)))


@dataclass(frozen=True)
class MeasuredBy:
    """What edges outside a circuit carry, what a circuit is made of, and the data set's name."""

    ablation: str
    granularity: str
    data: str


class EdgeRuns:
    """Prompts, ready to be run with any edges corrupted.

    Prompts are run in parts. What edges carry on a part is recorded once and held as long as all
    that is held stays within ``MOST_HELD``; a part beyond it is recorded again each time that it
    is run. So memory does not grow with the number of prompts.

    Attributes:
        clean, corrupted: mean metric of the two runs.
        clean_values, corrupted_values: of each prompt.
    """

    def __init__(
        self,
        model: ResValTransformer,
        pairs: PromptPairs,
        graph: Graph | None = None,
        max_tokens: int = MAX_TOKENS,
        ablation: Ablation = "resample",
        groups: Groups | None = None,
    ) -> None:
        """Runs the prompts and the corrupted prompts once.

        Args:
            max_tokens: rows × positions of one model call, of several prompts and circuits; one
                prompt at least; fewer where writers would write more than ``MOST_NUMBERS``.
            ablation: what a corrupted edge carries: what it does on the corrupted prompt
                (resample), or the mean of that over the corrupted prompts of a group, position by
                position (mean).
            groups: for means, a number for each prompt: in prompts of one number, such as a
                template's, a position means the same. "all": in all prompts. By default those of
                the pairs. The mean of a prompt that is alone in its group is its own: resampling.

        Raises:
            ValueError: hooks on the model, another model's graph, prompts that the model cannot
                read, an unknown ablation, groups without means, means without groups or of prompts
                of unequal length, ``max_tokens`` below 1.
        """
        if ablation not in get_args(Ablation):
            raise ValueError(f"ablation must be 'resample' or 'mean'; got {ablation!r}")
        if groups is not None and ablation != "mean":
            raise ValueError(f"groups are for ablation='mean'; got {ablation!r}")
        pairs = ready(model, pairs)
        refuse_hooks(model)
        self.model, self.pairs, self.max_tokens = model, pairs, max_tokens
        self.graph, self.ablation = graph_of(model, graph), ablation
        self._known: dict[bytes, Tensor] = {}  # values of circuits by a digest of their edges
        self.groups = alike(pairs, groups) if ablation == "mean" else None
        self.most = most_numbers(layer_device(model, -1))
        size = prompts_at_once(self.graph, pairs.length, max_tokens, self.most)
        self.process = dividing()
        size = min(size, -(-len(pairs) // self.process.of))
        several = [torch.arange(len(pairs))]
        if self.groups is not None:
            several = [(self.groups == g).nonzero()[:, 0] for g in self.groups.unique()]
        self.parts = [part for rows in several for part in rows.split(size)]
        self._held: dict[int, Part] = {}
        self._mean: tuple[int, Recording] | None = None
        dtype = torch.promote_types(model.cfg.dtype, torch.float32)
        found = torch.zeros(2, len(pairs), dtype=dtype, device=layer_device(model, -1))
        with torch.no_grad(), evaluating(model):
            for number in self._own_parts:
                part = self._part(number)
                residual = part.clean.states[-1].residual
                logits = model.read_out(residual, part.pairs.answers), part.corrupted.logits
                measured = torch.stack([part.pairs.measure(x)[0] for x in logits])
                found = found.to(measured)
                found[:, self.parts[number]] = measured
                del part  # before the next is recorded
        self.clean_values, self.corrupted_values = summed(found, self.process)
        if ablation == "mean":
            self.corrupted_values = self.values(torch.zeros(1, len(self.graph)).bool())[0]
        self.clean, self.corrupted = (
            values.mean().item() for values in (self.clean_values, self.corrupted_values)
        )

    @property
    def circuits_run(self) -> int:
        """How many circuits have been run, each once."""
        return len(self._known)

    @property
    def measured_by(self) -> MeasuredBy:
        """What is to be named beside every number."""
        how = "resample from the corrupted prompt"
        if self.groups is not None:
            sizes = self.groups.unique(return_counts=True)[1]
            how = f"mean over the corrupted prompts of a group ({_count(sizes)})"
        return MeasuredBy(how, "edges", self.pairs.name)

    def _part(self, number: int) -> Part:
        """Some of the prompts, and what edges carry on them."""
        if number in self._held:
            return self._held[number]
        rows = self.parts[number]
        pairs = self.pairs.rows(rows.to(self.pairs.clean.device))
        recorder = Recorder(self.model, self.graph)
        with self.model.hooks(fwd_hooks=recorder.writing):
            clean = Run(self.model, pairs.clean)
        corrupted = record(self.model, self.graph, pairs.corrupted, pairs.answers)
        if self.groups is not None:
            corrupted = self._mean_of(int(self.groups[rows[0]]), corrupted)
        written = recorder.writers
        for writer, other in enumerate(corrupted.writers):  # one by one: little is held twice
            written[writer] = written[writer] - other
        part = Part(pairs, Trunk(clean.states, written), corrupted)
        if part.numbers + sum(held.numbers for held in self._held.values()) <= max(
            MOST_HELD, self.most
        ):
            self._held[number] = part
        return part

    def _mean_of(self, group: int, of: Recording) -> Recording:
        """``of``, with what edges carry on the corrupted prompts of its group, averaged."""
        assert self.groups is not None
        if self._mean is None or self._mean[0] != group:
            rows = [part for part in self.parts if self.groups[part[0]] == group]
            sums: list[Tensor] = []
            for own in rows:
                pairs = self.pairs.rows(own.to(self.pairs.clean.device))
                run = (
                    of
                    if len(rows) == 1
                    else record(self.model, self.graph, pairs.corrupted, pairs.answers)
                )
                added = [wide(x).sum(0, keepdim=True) for x in (*run.writers, *run.read.values())]
                added += [wide(x).sum(1, keepdim=True) for x in run.links.values()]  # [slot, row..]
                sums = [a + b for a, b in zip(sums, added, strict=True)] if sums else added
            count = sum(map(len, rows))
            means = iter([(x / count).to(of.writers[0].dtype) for x in sums])
            writers = [next(means) for _ in of.writers]
            read, links = ({name: next(means) for name in had} for had in (of.read, of.links))
            self._mean = group, Recording(writers, links, read, of.logits)
        return replace(self._mean[1], logits=of.logits)

    @torch.no_grad()
    def values(
        self,
        kept: Bool[Tensor, "circuit edge"],
        progress: Callable[[int], None] = lambda done: None,
        near: Bool[Tensor, " edge"] | None = None,
    ) -> Float[Tensor, "circuit prompt"]:
        """The metric of each prompt, for each set of edges that are kept.

        Only layers from the first corrupted edge on are run, and no set is run twice.

        Args:
            progress: called with how many sets are done, all of their prompts or as many of them
                in part.
            near: a set that the others are near: they are run from the first layer on in which
                they differ from it.

        Raises:
            ValueError: another number of edges, no booleans, hooks that came on the model since.
        """
        self._check(kept)
        keys = [blake2b(row.numpy().tobytes(), digest_size=16).digest() for row in kept.cpu()]
        news = {key: row for row, key in enumerate(keys) if key not in self._known}
        known = len(kept) - len(news)
        if known:
            progress(known)
        if news:
            found = self.by_metrics(
                kept[list(news.values())],
                {"": self.pairs.metric},
                lambda done: progress(known + done),
                near,
            )
            self._known.update(zip(news, found[""], strict=True))
        if not keys:
            return self.clean_values.new_empty(0, len(self.pairs))
        return torch.stack([self._known[key] for key in keys])

    @torch.no_grad()
    def by_metrics(
        self,
        kept: Bool[Tensor, "circuit edge"],
        metrics: Mapping[str, Metric],
        progress: Callable[[int], None] = lambda done: None,
        near: Bool[Tensor, " edge"] | None = None,
    ) -> dict[str, Float[Tensor, "circuit prompt"]]:
        """:meth:`values` by other metrics, for each of which the same runs serve."""
        self._check(kept)
        shape = len(kept), len(self.pairs)
        found = {name: self.clean_values.new_zeros(shape) for name in metrics}
        for where, pairs, logits in self._answers(kept, progress, near):
            for name, metric in metrics.items():
                found[name][where] = replace(pairs, metric=metric).measure(logits)
        return {name: summed(values, self.process) for name, values in found.items()}

    @property
    def _own_parts(self) -> range:
        """The parts that this process runs."""
        return range(self.process.number, len(self.parts), self.process.of)

    def _check(self, kept: Tensor) -> None:
        if kept.dtype != torch.bool or kept.ndim != 2 or kept.shape[1] != len(self.graph):
            raise ValueError(
                f"kept must be booleans [circuit, {len(self.graph)}]; got {kept.dtype} "
                f"{list(kept.shape)}"
            )
        refuse_hooks(self.model)

    def _answers(
        self,
        kept: Bool[Tensor, "circuit edge"],
        progress: Callable[[int], None],
        near: Bool[Tensor, " edge"] | None,
    ) -> Iterator[tuple[tuple[Tensor, Tensor], PromptPairs, Tensor]]:
        """Logits of some circuits and prompts at a time, which they are, and those prompts."""
        kept = kept.cpu()
        bases = [torch.ones(len(self.graph), dtype=torch.bool)]
        if near is not None:
            bases.append(near.cpu())
        # Each circuit branches off the run that it shares most layers with.
        shared = torch.tensor(
            [[self.graph.first_layer(row != base) for base in bases] for row in kept]
        )
        layers, branch = shared.max(1)
        done, own = 0, sum(len(self.parts[number]) for number in self._own_parts)
        with evaluating(self.model), inputs_per_head(self.model):
            for number in self._own_parts:
                rows = self.parts[number]
                part = self._part(number)
                trunks = [part.clean]
                if near is not None and branch.any():
                    layer = self.graph.first_layer(~bases[1])
                    trunks.append(
                        CircuitRun(
                            self.model, self.graph, part, bases[1][None], part.clean, layer
                        ).trunk()
                    )
                size = self.max_tokens // (len(rows) * self.pairs.length)
                size = max(1, min(size, self.most // (2 * part.clean.numbers)))
                for which, layer in torch.stack([branch, layers], 1).unique(dim=0).tolist():
                    chosen = ((branch == which) & (layers == layer)).nonzero()[:, 0]
                    for some in chosen.split(size):
                        # Not bound to a name, which would hold the part while another is recorded.
                        logits = CircuitRun(
                            self.model, self.graph, part, kept[some], trunks[which], layer
                        ).logits()
                        yield (some[:, None], rows), part.pairs, logits
                        done += len(some) * len(rows)
                        progress(done // own)
                del part, trunks

    def means(
        self,
        kept: Bool[Tensor, "circuit edge"],
        progress: Callable[[int], None] = lambda done: None,
        near: Bool[Tensor, " edge"] | None = None,
    ) -> Float[Tensor, " circuit"]:
        """:meth:`values`, averaged over prompts."""
        return self.values(kept, progress, near).mean(1)


def _count(sizes: Int[Tensor, " group"]) -> str:
    alone = int((sizes == 1).sum())
    return f"{len(sizes)} groups of {sizes.min()} to {sizes.max()}" + (
        f"; {alone} prompts are alone in theirs, whose mean is their own" if alone else ""
    )
