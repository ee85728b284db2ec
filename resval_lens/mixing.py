"""The mixing weights of a stream: total = own · local + Σ_j carried_j · passed_j."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from resval_lens.mixes import Sizes, Start, Weight, Weights
from resval_lens.streams import AttentionStream

Heads = Float[Tensor, "batch pos head d_head"]
Gate = Float[Tensor, "batch pos head 1"]


class StreamMix(nn.Module):
    """Own and carried weights of one stream in one receiving layer: what its mix learns.

    Which parameters there are, and the weights that they make, is the mix's to say: see
    :mod:`~resval_lens.mixes`.
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Tensor:
            """Whatever the mix learns."""

    def __init__(self, stream: AttentionStream, sizes: Sizes, dtype: torch.dtype) -> None:
        super().__init__()
        assert stream.own is not None
        assert stream.carried is not None
        self.stream = stream
        self.sizes = sizes
        self.fixed = stream.own, stream.carried
        starts = stream.how.parameters(stream, sizes)
        if stream.source == "tokens":
            starts["table"] = Start((sizes.d_vocab, sizes.heads, sizes.d_head), 0.0)
        for name, start in starts.items():
            held = torch.full(start.shape, start.value, dtype=dtype)
            if start.diagonal:
                rows, columns = (torch.arange(n) for n in start.shape[-2:])
                held *= rows[:, None] % start.shape[-1] == columns
            self.register_parameter(name, nn.Parameter(held))

    def forward(
        self, local: Heads, passed: tuple[Heads, ...], x: Float[Tensor, "batch pos *head d_model"]
    ) -> tuple[Heads, Heads]:
        """(own · local, Σ_j carried_j · passed_j) for the attention input ``x``."""
        gate = self.gate(x, local.shape[2])
        parts = self.parts(passed, gate)
        return self.own_part(local, gate), sum(parts[1:], start=parts[0])

    def weights(self, gate: Gate | None = None) -> Weights:
        """own, and carried_j of each source layer j; a gated mix needs its ``gate``."""
        return self.stream.how.weights(self, gate)

    def own_part(self, local: Heads, gate: Gate | None = None) -> Heads:
        """own · local; a gated mix needs its ``gate``."""
        return self._weighted(self.weights(gate)[0], local)

    def parts(self, passed: tuple[Heads, ...], gate: Gate | None = None) -> list[Heads]:
        """carried_j · passed_j of each source layer j: linear in ``passed``, without bias."""
        pairs = zip(self.weights(gate)[1], passed, strict=True)
        return [self._weighted(weight, x) for weight, x in pairs]

    def gate(self, x: Float[Tensor, "batch pos *head d_model"], heads: int) -> Gate | None:
        """The gate of the attention input ``x``; None unless the mix is gated."""
        return self.stream.how.gate(self, x, heads)

    def looked_up(self, tokens: Int[Tensor, "batch pos"], heads: int) -> Heads:
        """The rows of the table of these tokens."""
        rows = nn.functional.embedding(tokens, self.table.flatten(1))
        values = rows.unflatten(-1, self.table.shape[1:])
        return values.repeat_interleave(heads // self.sizes.heads, dim=2)

    def read(
        self,
        x: Float[Tensor, "batch pos *head channel"],
        weight: Float[Tensor, "own_head channel"],
        bias: Float[Tensor, " own_head"] | None,
        heads: int,
    ) -> Float[Tensor, "batch pos head"]:
        """x·w_h [+ c_h] for each head h."""
        if x.ndim == 3:
            return self._per_head(nn.functional.linear(x, weight, bias), heads)
        # Each head has an input of its own (use_split_qkv_input, use_attn_in).
        repeated = self._per_head(weight.T, heads).T
        read = (x * repeated).sum(-1)
        return read if bias is None else read + self._per_head(bias, heads)

    def _weighted(self, weight: Weight, x: Heads) -> Heads:
        if not isinstance(weight, Tensor):
            return x if weight == 1 else weight * x
        if weight.ndim == 1:
            return self._per_head(weight, x.shape[2])[:, None] * x
        if weight.ndim == 2:
            return torch.einsum("bphd,gh->bpgd", x, self._head_matrix(weight, x.shape[2]))
        return weight * x

    # Under cfg.ungroup_grouped_query_attention the projections arrive with one copy of each
    # key-value head per query head: the weights repeat in the same order.
    def _per_head(self, weight: Tensor, heads: int) -> Tensor:
        return weight.repeat_interleave(heads // self.sizes.heads, dim=-1)

    def _head_matrix(self, matrix: Tensor, heads: int) -> Tensor:
        repeats = heads // self.sizes.heads
        return torch.kron(matrix, torch.eye(repeats, dtype=matrix.dtype, device=matrix.device))
