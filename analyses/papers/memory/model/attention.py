"""One attention head whose scores may depend on positions in the ways that MemoryConfig names."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from resval_lens.analyses.papers.memory.model.config import MemoryConfig
from resval_lens.attention import ResValAttention
from resval_lens.block import ResValBlock
from resval_lens.config import ResValConfig
from resval_lens.lens.norm import unshared

ROTARY_BASE = 10_000.0


class MemoryAttention(ResValAttention):
    """One head: score(s, t) = q_t · k_s / √d + what the positions s and t add.

    Relative positions have embeddings ``W_R`` [n_ctx, d_model], row i for r_{−i}, the key i
    positions back. ``hook_position_scores`` [batch, head, query_pos, key_pos] holds what they add:
    q_t · (r_{s−t} W_K) / √d; with ALiBi −slope · (t − s). Of keys that are still ahead it holds
    anything: the causal mask follows. Rotary positions turn q and k instead and add nothing.
    """

    cfg: MemoryConfig

    def __init__(self, cfg: MemoryConfig, attn_type: str, layer_id: int) -> None:
        super().__init__(cfg, attn_type, layer_id)
        self.positions = cfg.positions if layer_id in cfg.position_layers else None
        if self.positions == "relative":
            self.W_R = nn.Parameter(torch.empty(cfg.n_ctx, cfg.d_model, dtype=cfg.dtype))
        if self.positions in ("relative", "alibi"):
            self.hook_position_scores = HookPoint()  # [batch, head, query_pos, key_pos]
        if not cfg.in_the_stream:
            # TransformerLens adds this table to the scores; ours are added where hooks see them.
            del self.alibi
            nothing = torch.zeros(1, 1, 1, dtype=cfg.dtype).expand(1, cfg.n_ctx, cfg.n_ctx)
            self.register_buffer("alibi", nothing, persistent=False)

    def calculate_attention_scores(
        self,
        q: Float[Tensor, "batch query_pos head d_head"],
        k: Float[Tensor, "batch key_pos head d_head"],
    ) -> Float[Tensor, "batch head query_pos key_pos"]:
        """Content and position scores of every query and key, before the causal mask.

        Raises:
            ValueError: more keys than ``n_ctx``, of which a cache may remember some.
        """
        if k.shape[1] > self.cfg.n_ctx:
            raise ValueError(f"{k.shape[1]} positions are more than n_ctx={self.cfg.n_ctx}")
        before = k.shape[1] - q.shape[1]  # keys that a cache remembers
        if self.positions == "rotary":
            q, k = rotated(q, before), rotated(k, 0)
        scores = super().calculate_attention_scores(q, k)
        distances = key_distances(q.shape[1], k.shape[1], q.device)
        if self.positions == "relative":
            added = self._relative_scores(q, distances)
        elif self.positions == "alibi":
            added = (-self.cfg.alibi_slope * distances.to(scores.dtype)).expand_as(scores)
        else:
            return scores
        return scores + self.hook_position_scores(unshared(added, self.hook_position_scores))

    def _relative_scores(self, q: Tensor, distances: Tensor) -> Tensor:
        keys = self.W_R[: distances.shape[1]] @ self.W_K[0]  # row i: r_{−i} W_K
        by_distance = torch.einsum("bthd,id->bhti", q, keys) / self.attn_scale
        return by_distance.gather(3, distances.clamp(min=0).expand_as(by_distance))


def key_distances(
    queries: int, keys: int, device: torch.device | str | None = None
) -> Int[Tensor, "query_pos key_pos"]:
    """t − s of the last ``queries`` positions t and all ``keys`` s."""
    places = torch.arange(keys, device=device)
    return places[keys - queries :, None] - places


def rotated(
    x: Float[Tensor, "batch pos head d_head"], first: int
) -> Float[Tensor, "batch pos head d_head"]:
    """x with dimensions (i, i + d/2) of position t turned by t · 10000^(−2i/d) (arXiv 2104.09864).

    Args:
        first: the position of ``x[:, 0]``.
    """
    half = x.shape[-1] // 2
    places = torch.arange(first, first + x.shape[1], dtype=torch.float64, device=x.device)
    speeds = ROTARY_BASE ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
    angles = (places[:, None] * speeds)[None, :, None]  # [1, pos, 1, d_head / 2]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class MemoryBlock(ResValBlock):
    """A block of one :class:`MemoryAttention`."""

    def __init__(self, cfg: ResValConfig, block_index: int) -> None:
        super().__init__(cfg, block_index)
        kind = cast("Any", self.attn.attn_type)
        self.attn = MemoryAttention(cast("MemoryConfig", cfg), kind, block_index)
