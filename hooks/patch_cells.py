"""How patched runs are computed: resumed where they first differ, many cells in one batch.

A run that takes one activation from another run is the unpatched run in every earlier layer and,
under causal attention, at every earlier position. So a cell that first differs at layer l and
position p is resumed there, from the unpatched run's residual stream, with its keys and values of
the positions before p. Cells of later layers join the batch at their layer:

    rows = cells × prompts, positions p.. of [row, pos, d_model]
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry
from transformer_lens.hook_points import HookPoint

from resval_lens.hooks.answers import layer_device, read_out, right_padding
from resval_lens.norm import is_watched
from resval_lens.transformer import ResValTransformer

Cells = Int[Tensor, "cell 3"]
"""Each cell's layer, the row of its positions and the row of its heads (``Site``)."""

Carried = dict[str, tuple[Tensor, ...]]
"""What travels between layers, with rows and positions as the runs at hand have them."""

FEW_TOKENS = 2048
"""Cells of several first positions share a batch of up to so many tokens: smaller ones cost more
in calls than resuming each at its own position saves."""

MOST_LOGITS = 2**24
"""Logits that are held at once."""

# What these hold at a position reaches other positions in later layers alone.
LOCAL = frozenset(
    (
        *("q", "q_local", "q_link", "q_input", "rot_q", "attn_scores", "pattern", "z", "result"),
        *("attn_out", "resid_mid", "mlp_in", "pre", "post", "mlp_out", "resid_post"),
    )
)


@dataclass(frozen=True)
class Site:
    """What cells are cells of.

    Attributes:
        names: the hook point in each layer that has one.
        axis: its axis of positions.
        is_local: whether a position's activation reaches other positions in later layers alone.
        positions: positions that a cell may take, in rows: [row, prompt or 1, pos].
        heads: heads that a cell may take, in rows: [row, head]; None where the site has no heads.
    """

    names: dict[int, str]
    axis: int
    is_local: bool
    positions: Bool[Tensor, "row prompt pos"]
    heads: Bool[Tensor, "row head"] | None

    def mask(self, cells: Cells, start: int, end: int) -> Bool[Tensor, "cell prompt ..."]:
        """Where the cells take the other run's activation, of positions start..end."""
        where = self.positions[cells[:, 1], :, start:end]  # [cell, prompt or 1, pos]
        if self.heads is None:
            return where[..., None]
        heads = self.heads[cells[:, 2]]  # [cell, head]
        if self.axis == 2:  # attention scores and patterns: [.., head, query, key]
            return where[:, :, None, :, None] & heads[:, None, :, None, None]
        return where[..., None, None] & heads[:, None, None, :, None]


class KeysValues(TransformerLensKeyValueCacheEntry):
    """Keys and values of earlier positions, shared by all rows of the same prompt."""

    def append(self, new_keys: Tensor, new_values: Tensor) -> tuple[Tensor, Tensor]:
        self.whole = _joined(self.past_keys, new_keys), _joined(self.past_values, new_values)
        return self.whole


class KeysValuesAlone(KeysValues):
    """Ends the layer's run as soon as its keys and values are there."""

    def append(self, new_keys: Tensor, new_values: Tensor) -> tuple[Tensor, Tensor]:
        super().append(new_keys, new_values)
        raise Reached


class Reached(Exception):
    """A layer's keys and values are computed, and nothing more was wanted."""


def _joined(past: Tensor, new: Tensor) -> Tensor:
    if past.shape[1] == 0:
        return new
    repeats = len(new) // len(past)
    past = past.expand(repeats, *past.shape)
    return torch.cat([past, new.unflatten(0, (repeats, -1))], dim=2).flatten(0, 1)


class PatchedRuns:
    """Runs on ``base`` prompts that take cells of ``site`` from the run on ``source`` prompts.

    Hooks that are on the model stay on. What they do to other positions is not known, so that runs
    are then of whole prompts.
    """

    def __init__(
        self,
        model: ResValTransformer,
        base: Tensor,
        source: Tensor,
        answers: Int[Tensor, " prompt"],
        site: Site,
    ) -> None:
        self.model, self.site, self.answers = model, site, answers
        is_free = not any(is_watched(point) for point in model.hook_dict.values())
        self.resumes = model.cfg.attention_dir == "causal" and is_free
        self.start = 0
        if self.resumes:  # before `start` the runs are the same; after the answers is nothing
            differing = (base != source).flatten(2).any(-1) if base.ndim == 3 else base != source
            length = int(answers.max()) + 1
            base, source = base[:, :length], source[:, :length]
            columns = differing[:, :length].any(0).nonzero()
            self.start = int(columns[0]) if len(columns) else length
        self.length = base.shape[1]
        taken = site.positions[:, :, self.start : self.length].any(1)  # [row, pos]
        self.windows = [
            (self.start + where[0], self.start + where[-1] + 1) if where else (self.length,) * 2
            for where in (row.nonzero()[:, 0].tolist() for row in taken)
        ]
        # Then the last layer's output is needed at one position alone.
        self.has_one_answer = self.resumes and bool((answers == self.length - 1).all())
        self._run_base(base)
        self.base_logits = read_out(model, self.residual[-1], answers)
        self._run_source(source)

    def _run_base(self, inputs: Tensor) -> None:
        model = self.model
        self.offsets = None  # shortformer's position embeddings
        if model.cfg.positional_embedding_type == "shortformer":
            self.offsets = model.W_pos[None, : self.length]
        carried: Carried = {}
        residual = self._embedded(inputs)
        nothing = residual.new_empty(len(residual), 0, 1, 1)
        self.residual: list[Tensor] = [residual]  # before each layer, and after the last
        self.carried: list[Carried] = [carried]
        self.keys_values: list[tuple[Tensor, Tensor]] = []
        for layer in range(model.cfg.n_layers):
            entry = KeysValues(nothing, nothing) if self.resumes else None
            residual, carried = self._block(layer, residual, carried, 0, entry)
            self.residual.append(residual)
            self.carried.append(carried)
            if entry is not None:
                self.keys_values.append(entry.whole)

    def _run_source(self, inputs: Tensor) -> None:
        if self.start == self.length:  # the same run
            self.source_logits = self.base_logits
            return
        first = self.start if self.resumes else 0
        carried: Carried = {}
        residual = self._embedded(inputs)[:, first:]
        self.source, hooks, _ = self.model.get_caching_hooks(list(self.site.names.values()))
        with self.model.hooks(fwd_hooks=hooks):
            for layer in range(self.model.cfg.n_layers):
                entry = self._before(layer, first) if first else None
                residual, carried = self._block(layer, residual, carried, first, entry)
        whole = torch.cat([self.residual[-1][:, :first], residual], 1)
        self.source_logits = read_out(self.model, whole, self.answers)

    def _embedded(self, inputs: Tensor) -> Tensor:
        return self.model(inputs, stop_at_layer=0, **right_padding(self.model))

    def batches(self, cells: Cells, max_tokens: int) -> Iterator[Int[Tensor, " some"]]:
        """Which cells to compute together, by layer; those that cannot differ from base in none.

        A batch has at most ``max_tokens`` = cells × prompts × positions, or one cell.
        """
        waiting = cells.new_empty(0)
        for row in sorted(cells[:, 1].unique().tolist(), key=self.windows.__getitem__):
            if self.windows[row][0] == self.length:
                continue
            own = (cells[:, 1] == row).nonzero()[:, 0]
            together = torch.cat([waiting, own])
            if len(waiting) and self._tokens(cells[together]) > min(FEW_TOKENS, max_tokens):
                yield from self._split(cells, waiting, max_tokens)
                together = own
            waiting = together
        if len(waiting):
            yield from self._split(cells, waiting, max_tokens)

    def _split(
        self, cells: Cells, which: Int[Tensor, " some"], max_tokens: int
    ) -> tuple[Tensor, ...]:
        size = max(1, max_tokens * len(which) // self._tokens(cells[which]))
        return which[cells[which, 0].argsort(stable=True)].split(size)

    def _tokens(self, cells: Cells) -> int:
        return len(cells) * len(self.answers) * (self.length - self._span(cells)[0])

    def _span(self, cells: Cells) -> tuple[int, int]:
        """First and last + 1 of the positions at which these cells can differ from base."""
        if not self.resumes:
            return 0, self.length
        windows = [self.windows[row] for row in cells[:, 1].unique().tolist()]
        return min(first for first, _ in windows), max(end for _, end in windows)

    def logits(self, cells: Cells) -> Iterator[Float[Tensor, "row d_vocab"]]:
        """Answer logits of the patched runs, cell after cell with its prompts, in some parts.

        Args:
            cells: by layer, as :meth:`batches` gives them.
        """
        first, end = self._span(cells)
        last = self.model.cfg.n_layers - 1
        running: list[tuple[Tensor, Carried]] = []
        for layer in range(int(cells[0, 0]), last + 1):
            entering = cells[cells[:, 0] == layer]
            running = [self._resume(layer, *rows, first) for rows in running]
            if len(entering):
                running.append(self._enter(layer, entering, first, end))
            running = [_stacked(running)]
        residual = running[0][0]
        prompts = len(self.answers)
        answers = self.answers - (self.length - residual.shape[1])
        size = max(1, MOST_LOGITS // (prompts * self.base_logits.shape[1]))
        for part in residual.split(size * prompts):
            repeats = len(part) // prompts
            logits = read_out(self.model, part, answers.clamp(min=0).repeat(repeats))
            # Answered before anything is patched.
            early = (answers < 0).repeat(repeats)[:, None].to(logits.device)
            yield torch.where(early, self.base_logits.repeat(repeats, 1), logits)

    def _enter(self, layer: int, cells: Cells, first: int, end: int) -> tuple[Tensor, Carried]:
        """The runs of ``cells`` after their own layer, at positions first.."""
        if not self.site.is_local or end == self.length:
            return self._resume(layer, *self._repeated(layer, cells, first, self.length), first,
                                cells)  # fmt: skip
        residual, carried = self._repeated(layer + 1, cells, first, self.length)
        if layer == self.model.cfg.n_layers - 1 and self.has_one_answer:
            return residual[:, -1:], _positions(carried, slice(-1, None))
        before = self._repeated(layer, cells, first, end)
        entry = self._before(layer, first)
        new_residual, new_carried = self._block(layer, *before, first, entry, cells)
        residual[:, : end - first] = new_residual
        for name, tensors in new_carried.items():
            for whole, part in zip(carried[name], tensors, strict=True):
                whole[:, : end - first] = part
        return residual, carried

    def _resume(
        self,
        layer: int,
        residual: Tensor,
        carried: Carried,
        first: int,
        cells: Cells | None = None,
    ) -> tuple[Tensor, Carried]:
        """Rows after ``layer``, from rows before it; all positions from ``first`` on."""
        is_last = layer == self.model.cfg.n_layers - 1
        answer = self.length - 1
        if not (is_last and self.has_one_answer and first < answer):
            entry = self._before(layer, first) if first else None
            return self._block(layer, residual, carried, first, entry, cells)
        entry = KeysValuesAlone(*self._before(layer, first).whole)
        try:
            before = _positions(carried, slice(None, -1))
            self._block(layer, residual[:, :-1], before, first, entry, cells)
        except Reached:
            pass
        own = _positions(carried, slice(-1, None))
        return self._block(layer, residual[:, -1:], own, answer, KeysValues(*entry.whole), cells)

    def _block(
        self,
        layer: int,
        residual: Tensor,
        carried: Carried,
        first: int,
        entry: KeysValues | None = None,
        cells: Cells | None = None,
    ) -> tuple[Tensor, Carried]:
        """One block at positions ``first`` and on, its site patched where ``cells`` say so."""
        end = first + residual.shape[1]
        hooks: Any = nullcontext()
        if cells is not None:
            patch = partial(self._patch, cells, end)
            hooks = self.model.hooks(fwd_hooks=[(self.site.names[layer], patch)])
        device = layer_device(self.model, layer)
        offsets = None if self.offsets is None else self.offsets[:, first:end].to(device)
        with hooks:
            return self.model.blocks[layer](
                residual.to(device),
                carried=carried,
                past_kv_cache_entry=entry,
                shortformer_pos_embed=offsets,
            )

    def _patch(self, cells: Cells, end: int, activation: Tensor, hook: HookPoint) -> Tensor:
        # With a cache a hook sees the newest positions, or (rotated keys) all of them.
        axis = self.site.axis
        start = end - activation.shape[axis]
        other = self.source[str(hook.name)]
        skipped = self.length - other.shape[axis]
        other = other.narrow(axis, start - skipped, end - start)
        if axis == 2:
            other = other[..., :end]
        rows = activation.unflatten(0, (len(cells), -1))
        mask = self.site.mask(cells, start, end).to(rows.device)
        patched = torch.where(mask, other, rows)
        return patched.flatten(0, 1)

    def _before(self, layer: int, first: int) -> KeysValues:
        keys, values = self.keys_values[layer]
        entry = KeysValues(keys[:, :first], values[:, :first])
        entry.whole = entry.past_keys, entry.past_values
        return entry

    def _repeated(self, layer: int, cells: Cells, first: int, end: int) -> tuple[Tensor, Carried]:
        """The base run before ``layer`` at positions first..end, once for each cell."""

        def repeated(x: Tensor) -> Tensor:
            return x[:, first:end].repeat(len(cells), *[1] * (x.ndim - 1))

        carried = self.carried[layer]
        return repeated(self.residual[layer]), {
            name: tuple(map(repeated, tensors)) for name, tensors in carried.items()
        }


def _positions(carried: Carried, which: slice) -> Carried:
    return {name: tuple(x[:, which] for x in tensors) for name, tensors in carried.items()}


def _stacked(several: list[tuple[Tensor, Carried]]) -> tuple[Tensor, Carried]:
    if len(several) == 1:
        return several[0]
    residuals, carried = zip(*several, strict=True)
    return torch.cat(residuals), {
        name: tuple(map(torch.cat, zip(*(streams[name] for streams in carried), strict=True)))
        for name in carried[0]
    }
