"""Attention layers that receive and pass on streams, and use the fused kernel when they may.

``StreamAttention`` is mixed into TransformerLens's own two attention classes. It overrides two
seams: ``calculate_qkv_matrices``, where local, link and total projections are made (before any
normalisation of q and k, rotation, or the key-value cache, which therefore stores totals), and
``forward``, which takes the fused path when nothing looks at the scores or the pattern.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, cast

import einops
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities.attention import complex_attn_linear, simple_attn_linear

from resval_lens.config import ResValConfig
from resval_lens.host import (
    AbstractAttention,
    Attention,
    GroupedQueryAttention,
    RMSNorm,
)
from resval_lens.lens.norm import is_watched, unshared
from resval_lens.mixes import Sizes
from resval_lens.mixing import StreamMix
from resval_lens.streams import AttentionStream, shorthand

Heads = Float[Tensor, "batch pos _ d_head"]  # heads, or key-value heads
Carried = dict[str, tuple[Tensor, ...]]
"""What travels between layers, each tensor [batch, pos, ...]: per projection, the tensors a later
layer may receive, oldest first: the last layer's (source previous), layer 0's (first), or every
earlier layer's (all). Under ``TOKENS`` the token ids, where layers have tables; under ``STATES``
the states of the residual stream that later readers read (:mod:`resval_lens.residual`)."""
TOKENS, STATES = "tokens", "states"

# einops keeps a table of the types it has met. If parameters are first met under torch.compile, the
# model is compiled a second time at its second call.
einops.rearrange(nn.Parameter(torch.empty(1)), "a -> a")

OLMO_QK_NORM = ("OlmoeForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM")


@dataclass
class Delivery:
    """One call's streams: what arrives in a layer and what it passes on."""

    arriving: Carried
    leaving: Carried = field(default_factory=dict)


class StreamAttention(AbstractAttention):
    """The stream half of an attention layer; see the module's docstring.

    Hook points, for each stream s of q, k, v that this layer receives, all
    [batch, pos, head, d_head] (key-value heads for k and v):

        hook_{s}_local   the layer's own projection
        hook_{s}_link    what arrives, after mixing
        hook_{s}         the total that attention uses: a · local + link
        hook_{s}_table   of a table (source "tokens"): its rows, before mixing
    """

    cfg: ResValConfig
    W_Q: nn.Parameter
    W_K: nn.Parameter
    W_V: nn.Parameter
    W_O: nn.Parameter
    b_K: nn.Parameter
    b_V: nn.Parameter

    def add_streams(self) -> None:
        """Adds the hook points and mixing weights of the streams in ``cfg``."""
        assert self.layer_id is not None
        self.delivery: Delivery | None = None
        self.mixes = nn.ModuleDict()
        for stream in self.cfg.streams:
            sources = stream.sources(self.layer_id)
            if not sources:
                continue
            heads = self.cfg.n_heads
            if stream.of != "q":
                heads = self.cfg.n_key_value_heads or heads
            cfg = self.cfg
            sizes = Sizes(len(sources), heads, cfg.d_model, cfg.d_head, cfg.d_vocab)
            self.mixes[stream.of] = StreamMix(stream, sizes, self.cfg.dtype)
            setattr(self, f"hook_{stream.of}_local", HookPoint())  # [batch, pos, head, d_head]
            setattr(self, f"hook_{stream.of}_link", HookPoint())  # [batch, pos, head, d_head]
            if stream.source == "tokens":
                setattr(self, f"hook_{stream.of}_table", HookPoint())  # [batch, pos, head, d_head]

    def mix(self, name: str) -> StreamMix | None:
        """The mixing of the stream ``name`` in this layer; None if the layer receives none."""
        if name not in self.mixes:
            return None
        mix = self.mixes[name]
        assert isinstance(mix, StreamMix)
        return mix

    def calculate_qkv_matrices(
        self, query_input: Tensor, key_input: Tensor, value_input: Tensor
    ) -> tuple[Heads, Heads, Heads]:
        """Totals of q, k and v: local projections plus what arrives along the streams."""
        if not self.cfg.streams and not self.cfg.qk_norm_after_rotation:
            return super().calculate_qkv_matrices(query_input, key_input, value_input)
        q = self._total("q", query_input, self.W_Q, self.b_Q)
        if isinstance(self, GroupedQueryAttention) and not self.cfg.ungroup_grouped_query_attention:
            k = self._total("k", key_input, self._W_K, self._b_K)
            v = self._total("v", value_input, self._W_V, self._b_V)
        else:
            k = self._total("k", key_input, self.W_K, self.b_K)
            v = self._total("v", value_input, self.W_V, self.b_V)
        if self.cfg.use_qk_norm and not self.cfg.qk_norm_after_rotation:
            q, k = self._normed(q, k)
        return q, k, v

    def _normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        assert self.q_norm is not None
        assert self.k_norm is not None
        return self._apply_qk_norm(q, self.q_norm), self._apply_qk_norm(k, self.k_norm)

    def _apply_qk_norm(self, x: Heads, norm_module: Any) -> Heads:
        if self.cfg.qk_norm_per_head:
            return norm_module(x)
        return super()._apply_qk_norm(x, norm_module)

    def calculate_attention_scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Scores of queries and keys; these are normalised first, if it is after their rotation."""
        if self.cfg.qk_norm_after_rotation:
            q, k = self._normed(q, k)
        return super().calculate_attention_scores(q, k)

    def calculate_sin_cos_rotary(
        self,
        rotary_dim: int,
        n_ctx: int,
        base: float = 10_000,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """TransformerLens's tables; with ``rotary_dtype``, those of models that round theirs.

        Their angles are pos · base^(−2i/d) in float32, TransformerLens's pos / base^(2i/d): one
        rounded number in a thousand would be another.
        """
        rounded = self.cfg.rotary_dtype
        if rounded is None:
            return super().calculate_sin_cos_rotary(rotary_dim, n_ctx, base, dtype)
        pairs = torch.arange(0, rotary_dim, 2, dtype=torch.float32)
        speed = 1 / base ** (pairs / rotary_dim)
        speed = speed.repeat_interleave(2) if self.cfg.rotary_adjacent_pairs else speed.repeat(2)
        angles = torch.arange(n_ctx, dtype=torch.float32)[:, None] * speed
        return angles.sin().to(rounded).to(dtype), angles.cos().to(rounded).to(dtype)

    def _total(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Heads:
        split = self.cfg.use_split_qkv_input or self.cfg.use_attn_in
        local = (complex_attn_linear if split else simple_attn_linear)(x, weight, bias)
        hook_total = getattr(self, f"hook_{name}")
        stream = next((stream for stream in self.cfg.streams if stream.of == name), None)
        if stream is None:
            return hook_total(local)
        mix = self.mix(name)
        if mix is None:  # a layer that only passes on: its local is its total
            total = local = hook_total(local)
        else:
            local = getattr(self, f"hook_{name}_local")(local)
            passed, hook_link = self._received(mix, local), getattr(self, f"hook_{name}_link")
            own, link = mix(local, passed, x)
            if link is passed[0]:  # at weight 1: the tensor that its source uses
                link = unshared(link, hook_link)
            total = hook_total(own + hook_link(link))
        if self.delivery is not None and stream.source != "tokens":
            self._pass_on(stream, local if stream.carry == "raw" else total)
        return total

    def _received(self, mix: StreamMix, local: Heads) -> tuple[Heads, ...]:
        name, looks_up = mix.stream.of, mix.stream.source == "tokens"
        arriving = None
        if self.delivery is not None:
            arriving = self.delivery.arriving.get(TOKENS if looks_up else name)
        if not arriving:
            raise RuntimeError(
                f"layer {self.layer_id} receives a residual {name} stream, and nothing arrived: "
                "run the block with `carried=`, as ResValTransformer.forward does"
            )
        if looks_up:
            rows = mix.looked_up(arriving[0].to(local.device), local.shape[2])
            return (getattr(self, f"hook_{name}_table")(rows),)
        count = len(mix.stream.sources(cast("int", self.layer_id)))
        shapes = [list(x.shape) for x in arriving]
        if shapes != [list(local.shape)] * count:
            raise ValueError(
                f"carried: layer {self.layer_id} receives {count} of {name}, each of shape "
                f"{list(local.shape)}; got {shapes}"
            )
        passed = tuple(x.to(local.device) for x in arriving)
        return tuple(x.detach() for x in passed) if mix.stream.detach else passed

    def _pass_on(self, stream: AttentionStream, passed: Heads) -> None:
        assert self.delivery is not None
        before = self.delivery.arriving.get(stream.of, ())
        after: tuple[Heads, ...]
        if stream.source == "previous":
            after = (passed,)
        elif stream.source == "first":
            after = before or (passed,)
        else:
            after = (*before, passed)
        self.delivery.leaving[stream.of] = after

    def forward(  # type: ignore[override]  # without what only encoders are given
        self,
        query_input: Tensor,
        key_input: Tensor,
        value_input: Tensor,
        past_kv_cache_entry: Any = None,
        attention_mask: Tensor | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The layer's output; equal numbers on both paths up to floating-point order."""
        dropout = self.cfg.dropout if self.training else 0.0
        alone = past_kv_cache_entry is None and attention_mask is None
        if not (alone and self._may_fuse()):
            attn_out = super().forward(
                query_input=query_input,
                key_input=key_input,
                value_input=value_input,
                past_kv_cache_entry=past_kv_cache_entry,
                attention_mask=attention_mask,
            )
            return F.dropout(attn_out, dropout) if dropout else attn_out
        q, k, v = self.calculate_qkv_matrices(query_input, key_input, value_input)
        if self.cfg.positional_embedding_type == "rotary":
            q = self.hook_rot_q(self.apply_rotary(q))
            k = self.hook_rot_k(self.apply_rotary(k))
        if self.cfg.qk_norm_after_rotation:
            q, k = self._normed(q, k)
        is_causal, mask = self.cfg.attention_dir == "causal", None
        if (
            is_causal
            and self.attn_type == "local"
            and q.shape[1] > cast("int", self.cfg.window_size)
        ):
            length = q.shape[1]
            mask, is_causal = self._make_causal_mask(length, length, 0, q.device), False
        z = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=is_causal,
            scale=1 / float(self.attn_scale),
            enable_gqa=k.shape[2] != q.shape[2],
        )
        # The kernel's backward pass reads its result: that is not for hooks to edit.
        z = self.hook_z(unshared(z.transpose(1, 2), self.hook_z))  # [batch, pos, head, d_head]
        w = self.W_O.flatten(0, 1).T  # [d_model, head * d_head]
        attn_out = F.linear(z.flatten(2), w, self.b_O)
        return F.dropout(attn_out, dropout) if dropout else attn_out

    def calculate_z_scores(self, v: Tensor, pattern: Tensor) -> Heads:
        """Values mixed by the pattern, some of whose weights are dropped in training mode."""
        if self.training and self.cfg.dropout:
            pattern = F.dropout(pattern, self.cfg.dropout)
        return super().calculate_z_scores(v, pattern)

    @torch.inference_mode(False)  # in which `generate` runs; training needs these tables, too
    def _extend_rotary_embeddings(self, new_size: int) -> None:
        super()._extend_rotary_embeddings(new_size)

    def _may_fuse(self) -> bool:
        cfg = self.cfg
        return (
            cfg.use_fused
            and not is_watched(self.hook_attn_scores)
            and not is_watched(self.hook_pattern)
            and cfg.positional_embedding_type in ("standard", "shortformer", "rotary")
            and not cfg.use_attn_result
            and not cfg.use_attention_sinks
            and cfg.attn_scores_soft_cap <= 0
            and cfg.clip_qkv is None
            and not cfg.use_logn_attn
            and not cfg.load_in_4bit
            and cfg.original_architecture not in OLMO_QK_NORM
        )


class HeadNorm(RMSNorm):
    """x / √(mean(x²) + eps) · w_h, over d_head, with a gain of each head's own."""

    def __init__(self, cfg: ResValConfig, heads: int) -> None:
        super().__init__(cfg, cfg.d_head)
        self.w = nn.Parameter(torch.ones(heads, cfg.d_head, dtype=cfg.dtype))

    def forward(self, x: Heads) -> Heads:
        scale = self.hook_scale((x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt())
        gain = self.w.repeat_interleave(x.shape[2] // len(self.w), dim=0)  # copies of grouped keys
        return self.hook_normalized(x / scale) * gain


def norms_per_head(attention: StreamAttention) -> None:
    """Gives a layer norms of q and k with a gain for each head, where the configuration has them.

    When TransformerLens builds a layer, it makes one gain for all.
    """
    cfg = attention.cfg
    if cfg.qk_norm_per_head:
        attention.q_norm = HeadNorm(cfg, cfg.n_heads)
        attention.k_norm = HeadNorm(cfg, cfg.n_key_value_heads or cfg.n_heads)


class ResValAttention(StreamAttention, Attention):
    """Multi-head attention with streams."""

    def __init__(self, cfg: ResValConfig, attn_type: str, layer_id: int) -> None:
        super().__init__(cfg, attn_type, layer_id)
        norms_per_head(self)
        self.add_streams()


class ResValGroupedQueryAttention(StreamAttention, GroupedQueryAttention):
    """Grouped-query attention with streams; k and v flow on key-value heads."""

    def __init__(self, cfg: ResValConfig, attn_type: str, layer_id: int) -> None:
        super().__init__(cfg, attn_type, layer_id)
        norms_per_head(self)
        self.add_streams()


def _refusing_streams(init: Callable[..., None]) -> Callable[..., None]:
    @wraps(init)
    def checked(self: AbstractAttention, cfg: Any, *args: Any, **kwargs: Any) -> None:
        streams = getattr(cfg, "streams", ())
        if streams and not hasattr(self, "add_streams"):
            raise ValueError(
                f"{type(self).__name__} would drop the streams {shorthand(streams)!r} of this "
                "configuration: build the model with ResValTransformer, or a classic one with "
                "cfg.with_streams('')"
            )
        init(self, cfg, *args, **kwargs)

    return checked


# TransformerLens's classes, and those derived from them, take a ResValConfig for one of theirs and
# would build a classic model of it. They all build their attention layers here.
AbstractAttention.__init__ = _refusing_streams(AbstractAttention.__init__)  # type: ignore[method-assign]
