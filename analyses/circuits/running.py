"""Runs in which some edges carry what they carry in the corrupted run: exact, nothing linearised.

A reader whose edge from writer w is corrupted reads its input less what w writes now, plus what w
writes on the corrupted prompt; a corrupted link brings what it brings there. Everything else is
computed: what an edge that is kept carries follows from what happened before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from resval_lens.analyses.circuits.graph import Graph, Reader, Receiver, graph_of
from resval_lens.analyses.circuits.recording import (
    Parts,
    inputs_per_head,
    link_hooks,
    record,
    writing_hooks,
)
from resval_lens.hooks.prompts import (
    PromptPairs,
    read_out,
    ready,
    refuse_hooks,
    resumed_logits,
)
from resval_lens.runtime import evaluating
from resval_lens.transformer import ResValTransformer

MAX_TOKENS = 8_192
MOST_NUMBERS = 2**27
"""Numbers that are held at once of what writers write."""

Ablation = Literal["resample", "mean"]


class EdgeRuns:
    """Prompts, ready to be run with any edges corrupted.

    Attributes:
        clean, corrupted: mean metric of the two runs.
    """

    def __init__(
        self,
        model: ResValTransformer,
        pairs: PromptPairs,
        graph: Graph | None = None,
        max_tokens: int = MAX_TOKENS,
        ablation: Ablation = "resample",
        groups: Int[Tensor, " prompt"] | None = None,
    ) -> None:
        """Runs the prompts and their twins once.

        Args:
            max_tokens: so many positions are run together, of several circuits; one circuit runs
                all prompts.
            ablation: what a corrupted edge carries: what it does on the prompt's twin (resample),
                or the mean of that over twins, position by position (mean).
            groups: the group of each prompt, such as its template; the mean is over the twins of
                one group. By default all are one.

        Raises:
            ValueError: hooks on the model, another model's graph, prompts that the model cannot
                read, an unknown ablation, groups without means, ``max_tokens`` below 1.
        """
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be 1 or more; got {max_tokens!r}")
        if ablation not in get_args(Ablation):
            raise ValueError(f"ablation must be 'resample' or 'mean'; got {ablation!r}")
        if groups is not None and (ablation != "mean" or groups.shape != (len(pairs),)):
            raise ValueError(
                f"groups are one of each of the {len(pairs)} prompts, for ablation='mean'; got "
                f"{list(groups.shape)} and {ablation!r}"
            )
        refuse_hooks(model)
        pairs = ready(model, pairs)
        self.model, self.pairs, self.max_tokens = model, pairs, max_tokens
        self.graph, self.ablation = graph_of(model, graph), ablation
        self._known: dict[bytes, Tensor] = {}  # values of circuits by a digest of their edges
        with evaluating(model):
            self.clean_run, self.corrupted_run = (
                record(model, self.graph, inputs, pairs.answers)
                for inputs in (pairs.clean, pairs.corrupted)
            )
        self.clean_values = pairs.measure(self.clean_run.logits)[0]
        self.corrupted_values = pairs.measure(self.corrupted_run.logits)[0]
        if ablation == "mean":
            self._take_means(torch.zeros(len(pairs)).long() if groups is None else groups)
            self.corrupted_values = self.values(torch.zeros(1, len(self.graph)).bool())[0]
        self.clean, self.corrupted = (
            values.mean().item() for values in (self.clean_values, self.corrupted_values)
        )

    @property
    def circuits_run(self) -> int:
        """How many circuits have been run, each once."""
        return len(self._known)

    @property
    def measured_by(self) -> dict[str, str]:
        """What is to be named beside every number: ablation, granularity, data set."""
        how = {"resample": "resample from the corrupted twin", "mean": "mean over corrupted twins"}
        return {"ablation": how[self.ablation], "granularity": "edges", "data": self.pairs.name}

    def _take_means(self, groups: Int[Tensor, " prompt"]) -> None:
        """What edges carry on the twins, averaged over each group."""

        def means(x: Tensor) -> Tensor:  # [writer or slot, prompt, ...]
            averaged = x.clone()
            for group in groups.unique():
                own = groups == group
                averaged[:, own] = x[:, own].mean(1, keepdim=True)
            return averaged

        run = self.corrupted_run
        links = {name: means(x) for name, x in run.links.items()}
        self.corrupted_run = replace(run, writers=means(run.writers), links=links)

    @torch.no_grad()
    def values(
        self,
        kept: Bool[Tensor, "circuit edge"],
        progress: Callable[[int], None] = lambda done: None,
    ) -> Float[Tensor, "circuit prompt"]:
        """The metric of each prompt, for each set of edges that are kept.

        Only layers from the first corrupted edge on are run, and no set is run twice.

        Args:
            progress: called with how many sets are done.

        Raises:
            ValueError: another number of edges, no booleans, hooks that came on the model since.
        """
        if kept.dtype != torch.bool or kept.ndim != 2 or kept.shape[1] != len(self.graph):
            raise ValueError(
                f"kept must be booleans [circuit, {len(self.graph)}]; got {kept.dtype} "
                f"{list(kept.shape)}"
            )
        refuse_hooks(self.model)
        keys = [blake2b(row.numpy().tobytes(), digest_size=16).digest() for row in kept.cpu()]
        news = {key: row for row, key in enumerate(keys) if key not in self._known}
        known = len(kept) - len(news)
        if known:
            progress(known)
        if news:
            found = self._run(kept[list(news.values())], lambda done: progress(known + done))
            self._known.update(zip(news, found, strict=True))
        if not keys:
            return self.clean_values.new_empty(0, len(self.pairs))
        return torch.stack([self._known[key] for key in keys])

    def _run(
        self, kept: Bool[Tensor, "circuit edge"], progress: Callable[[int], None]
    ) -> Float[Tensor, "circuit prompt"]:
        kept = kept.to(self.pairs.clean.device)
        first = torch.tensor([self._first_layer(circuit) for circuit in kept])
        found = self.clean_values.new_empty(len(kept), len(self.pairs))
        tokens = len(self.pairs) * self.pairs.length
        at_once = min(self.max_tokens // tokens, MOST_NUMBERS // self.clean_run.writers.numel())
        at_once = max(1, at_once)
        done = 0
        with evaluating(self.model), inputs_per_head(self.model):
            for layer in first.unique().tolist():
                for part in (first == layer).nonzero()[:, 0].split(at_once):
                    run = _Run(self, kept[part], layer)
                    found[part] = self.pairs.measure(run.logits())
                    done += len(part)
                    progress(done)
        return found

    def means(
        self,
        kept: Bool[Tensor, "circuit edge"],
        progress: Callable[[int], None] = lambda done: None,
    ) -> Float[Tensor, " circuit"]:
        """:meth:`values`, averaged over prompts."""
        return self.values(kept, progress).mean(1)

    def _first_layer(self, kept: Bool[Tensor, " edge"]) -> int:
        """The first layer that reads a corrupted edge; n_layers if only the logits do."""
        for group in sorted(self.graph.groups, key=_depth):
            if not kept[group.edges].all():
                return _depth(group)
        return self.graph.cfg.n_layers


def _depth(group: Reader | Receiver) -> int:
    is_last = isinstance(group, Reader) and group.port == "logits"
    return group.layer + is_last


class _Run:
    """One forward pass of several circuits, stacked in the batch: rows are (circuit, prompt)."""

    def __init__(self, runs: EdgeRuns, kept: Bool[Tensor, "circuit edge"], layer: int) -> None:
        self.runs, self.graph, self.kept, self.layer = runs, runs.graph, kept, layer
        self.changed = {
            group.hook: group for group in self.graph.groups if not kept[:, group.edges].all()
        }
        clean, corrupted = runs.clean_run.writers, runs.corrupted_run.writers
        self.written = 1 + layer * ((len(clean) - 1) // self.graph.cfg.n_layers)
        # What each writer writes now, less what it writes in the corrupted run.
        self.difference = clean.new_empty(len(kept), len(clean), *clean.shape[1:])
        self.difference[:, : self.written] = (clean - corrupted)[: self.written]

    def logits(self) -> Float[Tensor, "row d_vocab"]:
        model, clean, n_layers = self.runs.model, self.runs.clean_run, self.graph.cfg.n_layers
        answers = self.runs.pairs.answers.repeat(len(self.kept))
        residual = self._rows(clean.residual[self.layer])
        if self.layer == n_layers:
            return read_out(model, self._without(self.graph.readers[-1], residual), answers)
        handed = {name: self._rows(x) for name, x in clean.handed.items()}
        carried = model.carried_before(self.layer, handed)
        hooks: list[Any] = writing_hooks(model, self._wrote)
        hooks += link_hooks(model, self.graph, handed, self._arrived)
        hooks += [
            (name, partial(self._read, group))
            for name, group in self.changed.items()
            if isinstance(group, Reader)
        ]
        with model.hooks(fwd_hooks=hooks):
            return resumed_logits(model, residual, self.layer, carried, answers)

    def _rows(self, x: Tensor) -> Tensor:
        """The same for every circuit."""
        return x.expand(len(self.kept), *x.shape).flatten(0, 1)

    def _wrote(self, layer: int, outputs: list[Tensor]) -> None:
        for output in outputs:
            corrupted = self.runs.corrupted_run.writers[self.written]
            self.difference[:, self.written] = output.unflatten(0, (len(self.kept), -1)) - corrupted
            self.written += 1

    def _read(self, reader: Reader, x: Tensor, hook: HookPoint) -> Tensor:
        return self._without(reader, x)

    def _without(self, reader: Reader, x: Tensor) -> Tensor:
        """``x`` with the corrupted edges' part exchanged."""
        heads = len(reader.names)
        dropped = ~self.kept[:, reader.edges].unflatten(1, (heads, reader.writers))
        removed = torch.einsum(
            "chw,cwbpd->cbphd", dropped.to(x.dtype), self.difference[:, : reader.writers]
        )
        removed = removed.flatten(0, 1)  # [row, pos, head, d_model]
        return x - (removed if x.ndim == 4 else removed[:, :, 0])

    def _arrived(
        self, receiver: Receiver, link: Tensor, parts: Callable[[], Parts]
    ) -> Tensor | None:
        if receiver.hook not in self.changed:
            return None
        corrupted = self.runs.corrupted_run.links[receiver.hook]
        dropped = ~self.kept[:, receiver.edges].unflatten(1, (len(receiver.slots), receiver.heads))
        now = parts().unflatten(1, (len(self.kept), -1))  # [slot, circuit, prompt, pos, head, d]
        difference = now - corrupted[:, None]
        removed = torch.einsum("csh,scbphd->cbphd", dropped.to(link.dtype), difference)
        return link - removed.flatten(0, 1)
