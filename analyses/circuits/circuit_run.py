"""A forward pass of some circuits that branches off a run whose first layers they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from resval_lens.analyses.circuits.graph import Graph, Reader, Receiver
from resval_lens.analyses.circuits.recording import (
    Parts,
    Recording,
    arriving_hooks,
    writing_hooks,
)
from resval_lens.hooks.prompts import PromptPairs
from resval_lens.hooks.runs import State, numbers_of, resumed
from resval_lens.transformer import ResValTransformer


@dataclass(frozen=True)
class Trunk:
    """A run of some prompts that others branch off: the clean one, or a circuit's.

    Attributes:
        states: before each layer, and after the last.
        difference: what each writer writes, less what it writes in the corrupted run.
    """

    states: Sequence[State]
    difference: Sequence[Float[Tensor, "row pos d_model"]]

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return numbers_of(self.states) + sum(x.numel() for x in self.difference)


@dataclass(frozen=True)
class Part:
    """Some prompts, their clean run, and what corrupted edges carry."""

    pairs: PromptPairs
    clean: Trunk
    corrupted: Recording

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        of = self.corrupted
        recorded = [*of.writers, *of.links.values(), *of.read.values()]
        return self.clean.numbers + sum(x.numel() for x in recorded)


class CircuitRun:
    """Several circuits, stacked in the batch: rows are (circuit, prompt)."""

    def __init__(
        self,
        model: ResValTransformer,
        graph: Graph,
        part: Part,
        kept: Bool[Tensor, "circuit edge"],
        trunk: Trunk,
        layer: int,
    ) -> None:
        """
        Args:
            trunk: a run that is each circuit's own up to ``layer``.
        """
        self.model, self.graph, self.part = model, graph, part
        self.kept, self.from_, self.layer = kept, trunk, layer
        self.changed = {
            group.hook: group for group in graph.groups if not kept[:, group.edges].all()
        }
        self.written = graph.written_before(layer)
        self.rows = trunk.states[layer].repeated(len(kept))
        # What each writer writes now, less what it writes in the corrupted run; where its readers
        # are, which moves on with the layers.
        shape = len(kept), len(trunk.difference), *trunk.difference[0].shape
        self.difference = self.rows.residual.new_empty(shape)
        for number in range(self.written):
            self.difference[:, number] = trunk.difference[number].to(self.difference.device)
        self._waiting: dict[str, Tensor] = {}
        self.written_weights = model.written_weights()

    def trunk(self) -> Trunk:
        """The run of the one circuit that there is, kept before each layer."""
        states = [*self.from_.states[: self.layer], *self._run(keep=True)]
        return Trunk(states, self.difference[0].unbind())

    def logits(self) -> Float[Tensor, "row d_vocab"]:
        """At each row's answer."""
        (state,) = self._run()
        last = self.graph.readers[-1]
        residual = state.residual
        if last.hook in self.changed:
            residual = self._read(last, residual)
        return self.model.read_out(residual, self.part.pairs.answers)

    def _run(self, keep: bool = False) -> list[State]:
        """The state after the last layer; with ``keep``, each one before it, too."""
        hooks: list[Any] = writing_hooks(self.model, self._wrote)
        hooks += arriving_hooks(self.model, self.graph, self._arrived)
        hooks += [
            (name, partial(self._read, group))
            for name, group in self.changed.items()
            if isinstance(group, Reader) and group.port != "logits"
        ]
        states = [self.rows]
        with self.model.hooks(fwd_hooks=hooks):
            for layer in range(self.layer, self.graph.cfg.n_layers):
                after = resumed(self.model, states[-1], layer + 1)
                states = [*states, after] if keep else [after]
        return states

    def _wrote(self, layer: int, outputs: Float[Tensor, "writer row pos d_model"]) -> None:
        self.difference = self.difference.to(outputs.device)
        for output in outputs:
            torch.sub(
                output.unflatten(0, (len(self.kept), -1)),
                self.part.corrupted.writers[self.written],
                out=self.difference[:, self.written],
            )
            self.written += 1

    def _read(self, reader: Reader, x: Tensor, hook: HookPoint | None = None) -> Tensor:
        """``x`` with the corrupted edges' part exchanged."""
        if reader.hook not in self._waiting:
            self._exchange(reader, x)
        found = self._waiting.pop(reader.hook)  # [circuit, prompt, pos, head, d_model]
        found = found.flatten(0, 1)
        return found if x.ndim == 4 else found[:, :, 0]

    def _exchange(self, reader: Reader, x: Tensor) -> None:
        """Inputs of this reader, and of those beside it that read the same writers.

        A head reads the residual stream less what is corrupted of it now, or what is read in the
        corrupted run and what it keeps: whichever takes fewer writers. With residual mixing a
        writer counts with the reader's weight of it.
        """
        readers = [
            group
            for group in self.changed.values()
            if isinstance(group, Reader)
            and (group.reads, group.writers) == (reader.reads, reader.writers)
        ]
        kept = torch.cat(
            [self.kept[:, each.edges].unflatten(1, (-1, each.writers)) for each in readers], 1
        )  # [circuit, head, writer]
        of_kept, of_dropped = (some.flatten(0, 1).any(0).nonzero()[:, 0] for some in (kept, ~kept))
        self.difference = self.difference.to(x.device)
        if len(of_kept) < len(of_dropped):
            start, chosen, writers = self.part.corrupted.read[reader.reads], kept, of_kept
            start = start.to(x.device)[None, :, :, None]
        else:
            start, chosen, writers = x.unflatten(0, (len(kept), -1)), ~kept, of_dropped
            start = start if x.ndim == 4 else start[..., None, :]
            start = start[:, :, :, :1]
        sign = 1 if chosen is kept else -1
        difference = self.difference[:, : reader.writers]
        if len(writers) < reader.writers:
            difference = difference[:, writers.to(x.device)]
        weights = sign * chosen[:, :, writers].to(x)
        read = self.graph.weights(self.written_weights, reader)
        if read is not None:
            weights *= read[writers].to(x)
        exchanged = torch.einsum("chw,cwbpd->cbphd", weights, difference) + start
        heads = [len(each.names) for each in readers]
        names = [each.hook for each in readers]
        self._waiting.update(zip(names, exchanged.split(heads, 3), strict=True))

    def _arrived(
        self, receiver: Receiver, link: Tensor, parts: Callable[[], Parts]
    ) -> Tensor | None:
        if receiver.hook not in self.changed:
            return None
        corrupted = self.part.corrupted.links[receiver.hook]
        dropped = ~self.kept[:, receiver.edges].unflatten(1, (len(receiver.slots), receiver.heads))
        now = parts().unflatten(1, (len(self.kept), -1))  # [slot, circuit, prompt, pos, head, d]
        difference = now - corrupted[:, None]
        removed = torch.einsum("csh,scbphd->cbphd", dropped.to(link), difference)
        return link - removed.flatten(0, 1)
