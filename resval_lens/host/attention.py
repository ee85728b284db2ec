"""Attention with a hook point on every step, for heads of their own or grouped keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens import FactoredMatrix
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import apply_softcap
from transformer_lens.utilities.attention import complex_attn_linear, simple_attn_linear

from resval_lens.host.config import HookedTransformerConfig
from resval_lens.host.norms import RMSNorm
from resval_lens.host.rotary import Heads, Rotary

Scores = Float[Tensor, "batch head query_pos key_pos"]

NORMED_WHOLE = ("OlmoeForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM")
"""Architectures that normalise queries and keys over all heads together."""


class AbstractAttention(Rotary):
    """z = softmax(q kᵀ / scale + mask) v for each head; the output is Σ_h z_h W_O,h + b_O.

    Parameters: W_Q [head, d_model, d_head], W_O [head, d_head, d_model], b_Q [head, d_head],
    b_O [d_model]; keys and values are the derived classes'.
    """

    W_K: Any
    W_V: Any
    b_K: Any
    b_V: Any
    alibi: Tensor | None
    IGNORE: Tensor

    def __init__(
        self, cfg: HookedTransformerConfig, attn_type: str = "global", layer_id: int | None = None
    ) -> None:
        """
        Args:
            attn_type: "global", or "local": only the last ``cfg.window_size`` keys.

        Raises:
            ValueError: another type; a local layer without a window.
        """
        super().__init__()
        self.cfg, self.attn_type, self.layer_id = cfg, attn_type, layer_id
        if attn_type not in ("global", "local"):
            raise ValueError(f"attention must be 'global' or 'local'; got {attn_type!r}")
        if attn_type == "local" and not isinstance(cfg.window_size, int):
            raise ValueError(f"local attention needs window_size; got {cfg.window_size!r}")
        heads, width, d_head = cfg.n_heads, cfg.d_model, cfg.d_head
        self.W_Q = nn.Parameter(torch.empty(heads, width, d_head, dtype=cfg.dtype))
        self.W_O = nn.Parameter(torch.empty(heads, d_head, width, dtype=cfg.dtype))
        self.b_Q = nn.Parameter(torch.zeros(heads, d_head, dtype=cfg.dtype))
        self.b_O = nn.Parameter(torch.zeros(width, dtype=cfg.dtype))
        self.q_norm: nn.Module | None = None
        self.k_norm: nn.Module | None = None
        if cfg.use_qk_norm:
            self.q_norm, self.k_norm = RMSNorm(cfg, d_head), RMSNorm(cfg, d_head)
        elif cfg.original_architecture in NORMED_WHOLE:
            self.q_norm = RMSNorm(cfg, width)
            grouped = cfg.n_key_value_heads
            self.k_norm = RMSNorm(cfg, width if grouped is None else d_head * grouped)
        # Both are in state dicts; the mask itself is made for each run.
        self.register_buffer("mask", torch.empty((0, 0), dtype=torch.bool))
        self.register_buffer("IGNORE", torch.tensor(-torch.inf))
        self.attn_scale = cfg.attn_scale if cfg.use_attn_scale else 1.0
        if cfg.scale_attn_by_inverse_layer_idx:
            assert layer_id is not None
            self.attn_scale *= layer_id + 1
        if cfg.use_attention_sinks:
            self.sinks = nn.Parameter(torch.zeros(heads, dtype=cfg.dtype))
        self.hook_k = HookPoint()  # [batch, pos, head, d_head]
        self.hook_q = HookPoint()  # [batch, pos, head, d_head]
        self.hook_v = HookPoint()  # [batch, pos, head, d_head]
        self.hook_z = HookPoint()  # [batch, pos, head, d_head]
        self.hook_attn_scores = HookPoint()  # [batch, head, query_pos, key_pos]
        self.hook_pattern = HookPoint()  # [batch, head, query_pos, key_pos]
        self.hook_result = HookPoint()  # [batch, pos, head, d_model]
        if cfg.positional_embedding_type == "shortformer":
            self.hook_attn_input = HookPoint()  # [batch, pos, d_model]
        elif cfg.positional_embedding_type == "rotary":
            self.hook_rot_k = HookPoint()  # [batch, pos, head, d_head]
            self.hook_rot_q = HookPoint()  # [batch, pos, head, d_head]
            self.add_rotary_tables()
        elif cfg.positional_embedding_type == "alibi":
            self.alibi = None

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O of each head [head, d_model, d_model], factored."""
        return FactoredMatrix(self.W_V, self.W_O)

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_Kᵀ of each head [head, d_model, d_model], factored."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    def forward(
        self,
        query_input: Tensor,
        key_input: Tensor,
        value_input: Tensor,
        past_kv_cache_entry: Any = None,
        attention_mask: Int[Tensor, "_ all_pos"] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """What the layer adds to the residual stream.

        Args:
            query_input, key_input, value_input: [batch, pos, d_model], or with a head axis before
                the last (``use_split_qkv_input``, ``use_attn_in``).
            past_kv_cache_entry: this layer's keys and values so far; new ones are appended.
            attention_mask: 0 at padding.
        """
        cfg = self.cfg
        q, k, v = self.calculate_qkv_matrices(query_input, key_input, value_input)
        if cfg.original_architecture in NORMED_WHOLE:
            assert self.q_norm is not None
            assert self.k_norm is not None
            q = self.q_norm(q.flatten(2)).view_as(q)
            k = self.k_norm(k.flatten(2)).view_as(k)
        if cfg.clip_qkv is not None:
            q, k, v = (x.clamp(min=-cfg.clip_qkv, max=cfg.clip_qkv) for x in (q, k, v))
        before = 0
        if past_kv_cache_entry is not None:
            before = past_kv_cache_entry.past_keys.size(1)
            k, v = past_kv_cache_entry.append(k, v)
        if cfg.positional_embedding_type == "rotary":  # the cache holds keys before their rotation
            q = self.hook_rot_q(self.apply_rotary(q, before, attention_mask))
            k = self.hook_rot_k(self.apply_rotary(k, 0, attention_mask))
        scores = self.calculate_attention_scores(q, k)
        if cfg.positional_embedding_type == "alibi":
            scores += self._alibi(scores.shape[-2], scores.shape[-1], scores.device)
        if cfg.attention_dir == "causal":
            scores = self.apply_causal_mask(scores, before, attention_mask)
        scores = self.hook_attn_scores(scores)
        sinks = cfg.use_attention_sinks
        pattern = self._beside_sinks(scores) if sinks else F.softmax(scores, dim=-1)
        pattern = torch.where(torch.isnan(pattern), torch.zeros_like(pattern), pattern)
        pattern = self.hook_pattern(pattern).to(v.device, v.dtype)
        return self._written(self.calculate_z_scores(v, pattern))

    def calculate_qkv_matrices(
        self, query_input: Tensor, key_input: Tensor, value_input: Tensor
    ) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values, normalised per head where the configuration says so."""
        W_K, b_K, W_V, b_V = self._key_value_parameters()
        split = self.cfg.use_split_qkv_input or self.cfg.use_attn_in
        project = complex_attn_linear if split else simple_attn_linear
        q = self.hook_q(project(query_input, self.W_Q, self.b_Q))
        k = self.hook_k(project(key_input, W_K, b_K))
        v = self.hook_v(project(value_input, W_V, b_V))
        if self.cfg.use_qk_norm:
            q, k = self._apply_qk_norm(q, self.q_norm), self._apply_qk_norm(k, self.k_norm)
        return q, k, v

    def _key_value_parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.W_K, self.b_K, self.W_V, self.b_V

    def _apply_qk_norm(self, x: Heads, norm_module: Any) -> Heads:
        return norm_module(x.reshape(-1, x.shape[-1])).reshape(x.shape)

    def calculate_attention_scores(self, q: Heads, k: Heads) -> Scores:
        """q kᵀ / scale, softly capped where the configuration says so."""
        scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / self.attn_scale
        return apply_softcap(scores, self.cfg.attn_scores_soft_cap)

    def calculate_z_scores(self, v: Heads, pattern: Scores) -> Heads:
        """Values mixed by the pattern."""
        return self.hook_z((pattern @ v.transpose(1, 2)).transpose(1, 2))

    def _alibi(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """−slope_h · (query − key) of the last queries (arXiv 2108.12409), slope_h = 2^(−8h/n)."""
        if self.alibi is None or keys > self.alibi.size(-1):
            heads, places = self.cfg.n_heads, torch.arange(keys, device=device)
            start = 2 ** (-8 / heads)
            slopes = start * start ** torch.arange(heads, device=device)
            distances = (places[None] - places[:, None]).clamp(max=0).to(torch.float32)
            self.alibi = slopes[:, None, None] * distances[None]
        return self.alibi[:, -queries:, :keys]

    def apply_causal_mask(
        self,
        attn_scores: Scores,
        past_kv_pos_offset: int = 0,
        attention_mask: Int[Tensor, "_ all_pos"] | None = None,
    ) -> Scores:
        """−∞ at keys that are still ahead, padding or beyond the window."""
        queries, keys = attn_scores.shape[-2:]
        device = attn_scores.device if attention_mask is None else attention_mask.device
        seen = self._make_causal_mask(queries, keys, past_kv_pos_offset, device)
        if attention_mask is not None:
            seen = seen & attention_mask[:, None, None].bool()
        return torch.where(seen, attn_scores.to(device), self.IGNORE.to(device))

    def _make_causal_mask(
        self, query_ctx_length: int, key_ctx_length: int, past: int, device: torch.device
    ) -> Bool[Tensor, "1 1 query_pos key_pos"]:
        queries = torch.arange(past, past + query_ctx_length, device=device)[:, None]
        keys = torch.arange(key_ctx_length, device=device)[None]
        seen = keys <= queries
        if self.attn_type == "local":
            assert self.cfg.window_size is not None
            seen = seen & (keys > queries - self.cfg.window_size)
        return seen[None, None]

    def _beside_sinks(self, scores: Scores) -> Scores:
        """The pattern when a learned score of each head takes its share of it (gpt-oss)."""
        sinks = self.sinks[None, :, None, None].expand(*scores.shape[:3], 1).to(scores.dtype)
        beside = torch.cat([scores, sinks], dim=-1)
        beside = beside - beside.max(dim=-1, keepdim=True).values
        return F.softmax(beside, dim=-1)[..., :-1]

    def _written(self, z: Heads) -> Float[Tensor, "batch pos d_model"]:
        if self.cfg.use_attn_result:
            result = self.hook_result((z.to(self.W_O.dtype)[..., None] * self.W_O).sum(-2))
            return result.sum(2) + self.b_O
        w = self.W_O.flatten(0, 1).T.contiguous()  # [d_model, head * d_head]
        return F.linear(z.to(w.dtype).flatten(2), w, self.b_O)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Of tables whose length is another here and there, this layer's stay."""
        state = dict(state_dict)
        for name in ("mask", "rotary_sin", "rotary_cos"):
            own, saved = getattr(self, name, None), state.get(prefix + name)
            if own is not None and saved is not None and own.shape != saved.shape:
                state[prefix + name] = own
        super()._load_from_state_dict(state, prefix, *args, **kwargs)


class Attention(AbstractAttention):
    """Every head has keys and values of its own."""

    def __init__(
        self, cfg: HookedTransformerConfig, attn_type: str = "global", layer_id: int | None = None
    ) -> None:
        super().__init__(cfg, attn_type, layer_id)
        shape = (cfg.n_heads, cfg.d_model, cfg.d_head)
        self.W_K = nn.Parameter(torch.empty(shape, dtype=cfg.dtype))
        self.W_V = nn.Parameter(torch.empty(shape, dtype=cfg.dtype))
        self.b_K = nn.Parameter(torch.zeros(cfg.n_heads, cfg.d_head, dtype=cfg.dtype))
        self.b_V = nn.Parameter(torch.zeros(cfg.n_heads, cfg.d_head, dtype=cfg.dtype))


def _repeated(name: str) -> property:
    """The parameter ``name`` once for every query head that reads a key-value head."""

    def get(self: GroupedQueryAttention) -> Tensor:
        return getattr(self, name).repeat_interleave(self.repeat_kv_heads, dim=0)

    return property(get)


class GroupedQueryAttention(AbstractAttention):
    """Groups of heads share keys and values (arXiv 2305.13245).

    Its parameters are _W_K, _W_V, _b_K, _b_V, one for each key-value head; without the underscore
    they are repeated for each query head.
    """

    W_K, W_V = _repeated("_W_K"), _repeated("_W_V")
    b_K, b_V = _repeated("_b_K"), _repeated("_b_V")

    def __init__(
        self, cfg: HookedTransformerConfig, attn_type: str = "global", layer_id: int | None = None
    ) -> None:
        super().__init__(cfg, attn_type, layer_id)
        heads = cfg.n_key_value_heads
        assert heads is not None
        self.repeat_kv_heads = cfg.n_heads // heads
        shape = (heads, cfg.d_model, cfg.d_head)
        self._W_K = nn.Parameter(torch.empty(shape, dtype=cfg.dtype))
        self._W_V = nn.Parameter(torch.empty(shape, dtype=cfg.dtype))
        self._b_K = nn.Parameter(torch.zeros(heads, cfg.d_head, dtype=cfg.dtype))
        self._b_V = nn.Parameter(torch.zeros(heads, cfg.d_head, dtype=cfg.dtype))

    def _key_value_parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self.cfg.ungroup_grouped_query_attention:
            return self.W_K, self.b_K, self.W_V, self.b_V
        return self._W_K, self._b_K, self._W_V, self._b_V

    def calculate_attention_scores(self, q: Heads, k: Heads) -> Scores:
        """Scores of every query head, of keys that may be grouped."""
        if not self.cfg.ungroup_grouped_query_attention:
            k = k.repeat_interleave(self.repeat_kv_heads, dim=2)
        return super().calculate_attention_scores(q, k)

    def calculate_z_scores(self, v: Heads, pattern: Scores) -> Heads:
        """Values, which may be grouped, mixed by the pattern of every query head."""
        if not self.cfg.ungroup_grouped_query_attention:
            v = v.repeat_interleave(self.repeat_kv_heads, dim=2)
        return super().calculate_z_scores(v, pattern)
