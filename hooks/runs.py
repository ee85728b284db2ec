"""Runs that are kept where they can be resumed: what patching, path patching and exact edges share.

    run = Run(model, tokens)
    rows = run.states[2].repeated(8)                     # before layer 2, [copy × row, pos, ...]
    with model.hooks(fwd_hooks=edits):
        logits = model.read_out(resumed(model, rows).residual, answers)

A run that is edited from layer l on is the unedited one before it. So the unedited run is made
once, its rows before layer l are repeated for each edited run, and the layers from l on are run
again. Under causal attention a run may also begin at a later position: its layers then read keys
and values of the positions before from the unedited run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry

from resval_lens.attention import Carried
from resval_lens.hooks.answers import right_padding
from resval_lens.transformer import ResValTransformer


@dataclass(frozen=True)
class State:
    """Rows before a layer, or after the last: all that the layers from there on need.

    Attributes:
        layer: the next to be run.
        residual: the residual stream.
        carried: what the layers before pass on, by stream.
        first: the position of the first column.
    """

    layer: int
    residual: Float[Tensor, "row pos d_model"]
    carried: Carried
    first: int = 0

    @property
    def end(self) -> int:
        """The position after the last column."""
        return self.first + self.residual.shape[1]

    def each(self, change: Callable[[Tensor], Tensor]) -> State:
        """With every tensor, [row, pos, ...], changed."""
        carried = {name: tuple(map(change, several)) for name, several in self.carried.items()}
        return replace(self, residual=change(self.residual), carried=carried)

    def repeated(self, copies: int) -> State:
        """All rows, over and over: [copy × row, pos, ...], in memory of their own."""
        return self.each(lambda x: x.repeat(copies, *[1] * (x.ndim - 1)))

    def part(self, first: int, end: int | None = None) -> State:
        """Positions first..end alone."""
        where = slice(first - self.first, None if end is None else end - self.first)
        return replace(self.each(lambda x: x[:, where]), first=first)


def joined(states: Sequence[State], axis: int = 0) -> State:
    """States of one layer one below the other, or (``axis=1``) one position after the other."""
    if len(states) == 1:
        return states[0]
    each = [state.carried for state in states]
    carried = {
        name: tuple(torch.cat(xs, axis) for xs in zip(*(own[name] for own in each), strict=True))
        for name in each[0]
    }
    residual = torch.cat([state.residual for state in states], axis)
    return replace(states[0], residual=residual, carried=carried)


def numbers_of(states: Sequence[State]) -> int:
    """How many numbers states hold, each once."""
    held = [state.residual for state in states]
    held += [x for state in states for several in state.carried.values() for x in several]
    return sum(x.numel() for x in {id(x): x for x in held}.values())


class KeysValues(TransformerLensKeyValueCacheEntry):
    """Keys and values of earlier positions, shared by all rows of the same prompt."""

    def append(self, new_keys: Tensor, new_values: Tensor) -> tuple[Tensor, Tensor]:
        """Those of all positions, each row's after its prompt's; kept as ``whole``."""
        self.whole = _joined(self.past_keys, new_keys), _joined(self.past_values, new_values)
        return self.whole


def _joined(past: Tensor, new: Tensor) -> Tensor:
    if past.shape[1] == 0:
        return new
    repeats = len(new) // len(past)
    past = past.expand(repeats, *past.shape)
    return torch.cat([past, new.unflatten(0, (repeats, -1))], dim=2).flatten(0, 1)


class Run:
    """One run, kept before each layer and after the last; without gradients.

    Hooks that are on the model count. Whether it can be resumed under them is for the caller to
    know: what it kept has been through them.

    Attributes:
        states: before layer 0, 1, .., and after the last.
        keys_values: of each layer, [row, pos, head, d_head] each, if they were asked for.
    """

    @torch.no_grad()
    def __init__(self, model: ResValTransformer, inputs: Tensor, with_keys: bool = False) -> None:
        """
        Args:
            inputs: tokens, each row beginning at position 0, or a classifier's vectors.
            with_keys: keep keys and values, so that it can be resumed at a later position.
        """
        self.model = model
        self.states = [embedded(model, inputs)]
        self.keys_values: list[tuple[Tensor, Tensor]] = []
        nothing = self.states[0].residual.new_empty(len(inputs), 0, 1, 1)
        for layer in range(model.cfg.n_layers):
            entry = KeysValues(nothing, nothing) if with_keys else None
            self.states.append(resumed(model, self.states[-1], layer + 1, entry))
            if entry is not None:
                self.keys_values.append(entry.whole)

    @torch.no_grad()
    def logits(self, answers: Int[Tensor, " row"]) -> Float[Tensor, "row d_vocab"]:
        """Logits at each row's answer position."""
        return self.model.read_out(self.states[-1].residual, answers)

    def past(self, state: State) -> tuple[Tensor, Tensor]:
        """This run's keys and values in the state's layer, of the positions before it."""
        keys, values = self.keys_values[state.layer]
        return keys[:, : state.first], values[:, : state.first]


def embedded(model: ResValTransformer, inputs: Tensor) -> State:
    """Rows before layer 0."""
    return State(0, *model.begun(inputs, **right_padding(model)))


def resumed(
    model: ResValTransformer,
    state: State,
    stop: int | None = None,
    entry: KeysValues | None = None,
) -> State:
    """The state before layer ``stop``, or after the last.

    Args:
        entry: keys and values of the positions before it, if this is one layer's run.
    """
    added = None  # what a shortformer adds in every layer to what queries and keys are made of
    if model.cfg.positional_embedding_type == "shortformer":
        added = model.W_pos[None, state.first : state.end].to(state.residual.device)
    residual, carried = model.run_blocks(
        state.residual,
        state.layer,
        stop,
        state.carried,
        shortformer_pos_embed=added,
        past_kv_cache=None if entry is None else {state.layer: entry},
    )
    layer = model.cfg.n_layers if stop is None else stop
    return replace(state, layer=layer, residual=residual, carried=carried)
