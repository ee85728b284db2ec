"""Rotary positions: q and k turned by their position (arXiv 2104.09864), scaled as models do."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.utilities import get_offset_position_ids

from resval_lens.host.config import HookedTransformerConfig

Table = Float[Tensor, "pos rotary_dim"]
Heads = Float[Tensor, "batch _ _ d_head"]  # positions, heads; or key-value heads


class Rotary(nn.Module):
    """The rotation of an attention layer; its tables grow with the longest text."""

    ROTARY_INITIAL_CACHE_SIZE = 2048

    cfg: HookedTransformerConfig
    attn_type: str
    rotary_sin: Tensor
    rotary_cos: Tensor

    def add_rotary_tables(self) -> None:
        """Adds the buffers rotary_sin and rotary_cos [pos, rotary_dim]."""
        rows = min(self.cfg.n_ctx, self.ROTARY_INITIAL_CACHE_SIZE)
        sin, cos = self._tables(rows)
        self.register_buffer("rotary_sin", sin)
        self.register_buffer("rotary_cos", cos)

    def _tables(self, rows: int) -> tuple[Table, Table]:
        dim, local = self.cfg.rotary_dim, self.cfg.rotary_base_local
        assert dim is not None  # of a rotary configuration
        base = self.cfg.rotary_base if local is None or self.attn_type != "local" else local
        return self.calculate_sin_cos_rotary(dim, rows, base=base, dtype=self.cfg.dtype)

    def calculate_sin_cos_rotary(
        self, rotary_dim: int, n_ctx: int, base: float = 10_000, dtype: torch.dtype = torch.float32
    ) -> tuple[Table, Table]:
        """sin and cos of pos / wave, where wave_i = base^(2i/d), scaled by the configuration.

        Each wave stands twice: beside itself if adjacent pairs are turned, else half a head away.
        """
        cfg = self.cfg
        precise = torch.float64 if dtype == torch.float64 else torch.float32
        yarn = cfg.use_yarn_rope and not (cfg.yarn_global_attn_only and self.attn_type == "local")
        if cfg.use_NTK_by_parts_rope:
            waves = 1 / _ntk_by_parts(cfg, rotary_dim, base)
        elif yarn:
            waves = 1.0 / _yarn(cfg, rotary_dim, base, precise)
        else:
            waves = base ** (torch.arange(rotary_dim // 2, dtype=precise) / (rotary_dim / 2))
            if cfg.rotary_scaling_factor != 1.0 and self.attn_type != "local":
                waves = waves * cfg.rotary_scaling_factor
        waves = waves.repeat_interleave(2) if cfg.rotary_adjacent_pairs else waves.repeat(2)
        angles = torch.arange(n_ctx, dtype=precise)[:, None] / waves
        sin, cos = angles.sin().to(dtype), angles.cos().to(dtype)
        if yarn and cfg.yarn_attention_factor != 1.0:
            sin, cos = sin * cfg.yarn_attention_factor, cos * cfg.yarn_attention_factor
        return sin, cos

    def rotate_every_two(
        self, x: Float[Tensor, "*any rotary_dim"]
    ) -> Float[Tensor, "*any rotary_dim"]:
        """(a, b) -> (−b, a), of adjacent pairs or of pairs half a head apart."""
        turned = x.clone()
        if self.cfg.rotary_adjacent_pairs:
            turned[..., ::2], turned[..., 1::2] = -x[..., 1::2], x[..., ::2]
        else:
            half = x.shape[-1] // 2
            turned[..., :half], turned[..., half:] = -x[..., half:], x[..., :half]
        return turned

    def apply_rotary(
        self,
        x: Heads,
        past_kv_pos_offset: int = 0,
        attention_mask: Int[Tensor, "_ all_pos"] | None = None,
    ) -> Heads:
        """x with its first ``rotary_dim`` dimensions turned.

        Args:
            past_kv_pos_offset: the position of ``x[:, 0]``.
            attention_mask: 0 at padding, which has no position.
        """
        x = x.to(self.rotary_sin.device)
        end = past_kv_pos_offset + x.shape[1]
        rows = len(self.rotary_cos)
        if end > rows:
            self._extend_rotary_embeddings(min(self.cfg.n_ctx, max(end, 2 * rows)))
        turning, kept = x[..., : self.cfg.rotary_dim], x[..., self.cfg.rotary_dim :]
        if attention_mask is None:
            cos = self.rotary_cos[None, past_kv_pos_offset:end, None, :]
            sin = self.rotary_sin[None, past_kv_pos_offset:end, None, :]
        else:
            places = get_offset_position_ids(past_kv_pos_offset, attention_mask)
            places = places.to(self.rotary_cos.device)
            cos, sin = self.rotary_cos[places, None, :], self.rotary_sin[places, None, :]
        turned = turning * cos + self.rotate_every_two(turning) * sin
        return torch.cat([turned, kept], dim=-1)

    def _extend_rotary_embeddings(self, new_size: int) -> None:
        sin, cos = self._tables(new_size)
        self.rotary_sin = sin.to(self.rotary_sin.device)
        self.rotary_cos = cos.to(self.rotary_cos.device)


def _ntk_by_parts(
    cfg: HookedTransformerConfig, dim: int, base: float
) -> Float[Tensor, " half_dim"]:
    """Frequencies of Llama 3.1: long waves slower by a factor, short ones as they were, and a ramp
    between them (arXiv 2309.00071, section 3.2; as transformers has it).
    """
    speeds = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim))
    low, high = cfg.NTK_by_parts_low_freq_factor, cfg.NTK_by_parts_high_freq_factor
    length, factor = cfg.NTK_original_ctx_len, cfg.NTK_by_parts_factor
    waves = 2 * math.pi / speeds
    scaled = torch.where(waves > length / low, speeds / factor, speeds)
    ramp = (length / waves - low) / (high - low)
    smooth = (1 - ramp) * scaled / factor + ramp * scaled
    between = ~(waves < length / high) * ~(waves > length / low)
    return torch.where(between, smooth, scaled)


def _yarn(
    cfg: HookedTransformerConfig, dim: int, base: float, dtype: torch.dtype
) -> Float[Tensor, " half_dim"]:
    """Frequencies of YaRN (arXiv 2309.00071): slower by a factor where a wave turns less often than
    beta_slow in the original context, as they were where more often than beta_fast.
    """
    speeds = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=dtype) / dim))
    length = cfg.yarn_original_max_position_embeddings

    def dimension_of(turns: float) -> float:
        return (dim * math.log(length / (turns * 2 * math.pi))) / (2 * math.log(base))

    low, high = dimension_of(cfg.yarn_beta_fast), dimension_of(cfg.yarn_beta_slow)
    if cfg.yarn_truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    end = float(high) + 0.001 if low == high else float(high)
    ramp = torch.clamp((torch.arange(dim // 2, dtype=dtype) - low) / (end - low), 0, 1)
    return speeds / cfg.yarn_factor * ramp + speeds * (1 - ramp)
