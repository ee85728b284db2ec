"""The mixing weights of a stream: total = own · local + Σ_j carried_j · handed_j."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from resval_lens.streams import AttentionStream

Heads = Float[Tensor, "batch pos head d_head"]
Gate = Float[Tensor, "batch pos head 1"]


class StreamMix(nn.Module):
    """Own and carried weights of one stream in one receiving layer.

    Parameters exist only where the mix is learned; their names hold no ``W_``, which
    TransformerLens's initialisers look for, so that a stream never changes the weights that a seed
    gives. Shapes, with S source layers and H heads (key-value heads for k and v):

        scalar, learned_pair, convex   carried [S]
        head                           carried [S, H]
        matrix                         carried [S, H, H]    reader head, source head
        gate                           gate_weight [H, d_model], gate_bias [H]
        learned_pair                   own []
    """

    def __init__(
        self,
        stream: AttentionStream,
        n_sources: int,
        n_heads: int,
        d_model: int,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        assert stream.own is not None
        assert stream.carried is not None
        self.stream = stream
        self.n_heads = n_heads
        self.fixed = own, carried = stream.own, stream.carried
        shape = {
            "scalar": (n_sources,),
            "learned_pair": (n_sources,),
            "convex": (n_sources,),
            "head": (n_sources, n_heads),
        }.get(stream.mix)
        if shape is not None:
            self.carried = nn.Parameter(torch.full(shape, carried, dtype=dtype))
        elif stream.mix == "matrix":
            identity = torch.eye(n_heads, dtype=dtype).repeat(n_sources, 1, 1)
            self.carried = nn.Parameter(carried * identity)
        elif stream.mix == "gate":
            logit = math.log(carried / (1 - carried))
            self.gate_weight = nn.Parameter(torch.zeros(n_heads, d_model, dtype=dtype))
            self.gate_bias = nn.Parameter(torch.full((n_heads,), logit, dtype=dtype))
        if stream.mix == "learned_pair":
            self.own = nn.Parameter(torch.tensor(own, dtype=dtype))

    def forward(
        self, local: Heads, handed: tuple[Heads, ...], x: Float[Tensor, "batch pos *head d_model"]
    ) -> tuple[Heads, Heads]:
        """(own · local, Σ_j carried_j · handed_j) for the attention input ``x``."""
        gate = self.gate(x, local.shape[2])
        parts = self.parts(handed, gate)
        return self.own_part(local, gate), sum(parts[1:], start=parts[0])

    def own_part(self, local: Heads, gate: Gate | None = None) -> Heads:
        """own · local; a gated mix needs its ``gate``."""
        mix = self.stream.mix
        if mix == "gate":
            return (1 - _given(gate)) * local
        if mix == "learned_pair":
            return self.own * local
        if mix == "convex":
            return (1 - self.carried[0]) * local
        return local if self.fixed[0] == 1 else self.fixed[0] * local

    def parts(self, handed: tuple[Heads, ...], gate: Gate | None = None) -> list[Heads]:
        """carried_j · handed_j of each source layer j: linear in ``handed``, without bias."""
        mix = self.stream.mix
        if mix == "gate":
            return [_given(gate) * handed[0]]
        if not self.stream.is_learned:
            weight = self.fixed[1]
            return [x if weight == 1 else weight * x for x in handed]
        pairs = zip(self.carried, handed, strict=True)
        if mix == "head":
            return [self._per_head(weight, x.shape[2])[:, None] * x for weight, x in pairs]
        if mix == "matrix":
            return [
                torch.einsum("bphd,gh->bpgd", x, self._head_matrix(weight, x.shape[2]))
                for weight, x in pairs
            ]
        return [weight * x for weight, x in pairs]

    def gate(self, x: Float[Tensor, "batch pos *head d_model"], heads: int) -> Gate | None:
        """σ(x·w_h + c_h) for the attention input ``x``; None unless the mix is gated."""
        if self.stream.mix != "gate":
            return None
        if x.ndim == 3:
            logits = self._per_head(
                nn.functional.linear(x, self.gate_weight, self.gate_bias), heads
            )
        else:  # each head has an input of its own (use_split_qkv_input, use_attn_in)
            weight = self._per_head(self.gate_weight.T, heads).T
            logits = (x * weight).sum(-1) + self._per_head(self.gate_bias, heads)
        return torch.sigmoid(logits)[..., None]

    # Under cfg.ungroup_grouped_query_attention the projections arrive with one copy of each
    # key-value head per query head: the weights repeat in the same order.
    def _per_head(self, weight: Tensor, heads: int) -> Tensor:
        return weight.repeat_interleave(heads // self.n_heads, dim=-1)

    def _head_matrix(self, matrix: Tensor, heads: int) -> Tensor:
        repeats = heads // self.n_heads
        return torch.kron(matrix, torch.eye(repeats, dtype=matrix.dtype, device=matrix.device))


def _given(gate: Gate | None) -> Gate:
    if gate is None:
        raise ValueError("a gated mix needs its gate: StreamMix.gate of the attention input")
    return gate
