"""How patched runs are computed: resumed where they first differ, many cells in one batch.

A run that takes one activation from another run is the unpatched run in every earlier layer and,
under causal attention, at every earlier position. So a cell that first differs at layer l and
position p is resumed there, from the unpatched run's residual stream, with its keys and values of
the positions before p. Cells of later layers join the batch at their layer:

    rows = cells × prompts, positions p.. of [row, pos, d_model]
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from resval_lens.hooks.runs import KeysValues, Run, State, embedded, joined, resumed
from resval_lens.lens.norm import any_watched
from resval_lens.transformer import ResValTransformer

Cells = Int[Tensor, "cell 3"]
"""Each cell's layer, the row of its positions and the row of its heads (``Site``)."""

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


class KeysValuesAlone(KeysValues):
    """Ends the layer's run as soon as its keys and values are there."""

    def append(self, new_keys: Tensor, new_values: Tensor) -> tuple[Tensor, Tensor]:
        super().append(new_keys, new_values)
        raise Reached


class Reached(Exception):
    """A layer's keys and values are computed, and nothing more was wanted."""


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
        is_free = not any_watched(model)
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
        self.base = Run(model, base, with_keys=self.resumes)
        self.base_logits = self.source_logits = self.base.logits(answers)
        if self.start < self.length:  # otherwise the same run
            self._run_source(source)

    def _run_source(self, inputs: Tensor) -> None:
        state = embedded(self.model, inputs).part(self.start)
        self.source, hooks, _ = self.model.get_caching_hooks(list(self.site.names.values()))
        with self.model.hooks(fwd_hooks=hooks):
            for _ in range(self.model.cfg.n_layers):
                state = self._run(state)
        whole = torch.cat([self.base.states[-1].residual[:, : self.start], state.residual], 1)
        self.source_logits = self.model.read_out(whole, self.answers)

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
        span = self._span(cells)
        running: list[State] = []
        for layer in range(int(cells[0, 0]), self.model.cfg.n_layers):
            entering = cells[cells[:, 0] == layer]
            running = [self._after(rows) for rows in running]
            if len(entering):
                running.append(self._entered(layer, entering, *span))
            running = [joined(running)]
        (rows,) = running
        prompts = len(self.answers)
        answers = self.answers - rows.first
        size = max(1, MOST_LOGITS // (prompts * self.base_logits.shape[1]))
        for part in rows.residual.split(size * prompts):
            repeats = len(part) // prompts
            logits = self.model.read_out(part, answers.clamp(min=0))
            # Answered before anything is patched.
            early = (answers < 0).repeat(repeats)[:, None].to(logits.device)
            yield torch.where(early, self.base_logits.repeat(repeats, 1), logits)

    def _entered(self, layer: int, cells: Cells, first: int, end: int) -> State:
        """The runs of ``cells`` after their own layer, which differ from base at first..end."""
        before, later = self.base.states[layer : layer + 2]
        if not self.site.is_local or end == self.length:
            return self._after(before.part(first).repeated(len(cells)), cells)
        if self._is_last(layer):
            return later.part(self.length - 1).repeated(len(cells))
        rows = before.part(first, end).repeated(len(cells))
        changed = self._run(rows, cells, KeysValues(*self.base.past(rows)))
        return joined([changed, later.part(end).repeated(len(cells))], axis=1)

    def _after(self, rows: State, cells: Cells | None = None) -> State:
        """Rows after their layer: all positions, or the answer alone if it is all that is read."""
        answer = self.length - 1
        if not self._is_last(rows.layer) or rows.first == answer:
            return self._run(rows, cells)
        entry = KeysValuesAlone(*self.base.past(rows))
        with suppress(Reached):
            self._run(rows.part(rows.first, answer), cells, entry)
        return self._run(rows.part(answer), cells, KeysValues(*entry.whole))

    def _is_last(self, layer: int) -> bool:
        """Whether this layer's output is needed at one position alone."""
        return self.has_one_answer and layer == self.model.cfg.n_layers - 1

    def _run(
        self, rows: State, cells: Cells | None = None, entry: KeysValues | None = None
    ) -> State:
        """Rows after their layer, its site patched where ``cells`` say so."""
        if entry is None and rows.first:
            entry = KeysValues(*self.base.past(rows))
        if cells is None:
            return resumed(self.model, rows, rows.layer + 1, entry)
        patch = partial(self._patch, cells, rows.end)
        with self.model.hooks(fwd_hooks=[(self.site.names[rows.layer], patch)]):
            return resumed(self.model, rows, rows.layer + 1, entry)

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
