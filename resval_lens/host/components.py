"""The parts of a hooked transformer: embeddings, MLPs, a block, the unembedding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.factories.activation_function_factory import ActivationFunctionFactory
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import get_offset_position_ids, repeat_along_head_dimension
from transformer_lens.utilities.addmm import batch_addmm
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

from resval_lens.host.attention import AbstractAttention, Attention, GroupedQueryAttention
from resval_lens.host.config import HookedTransformerConfig
from resval_lens.host.norms import LayerNorm, LayerNormPre, norm_after, norm_of

Residual = Float[Tensor, "batch pos d_model"]


class Embed(nn.Module):
    """W_E [d_vocab, d_model], looked up by the token."""

    def __init__(self, cfg: HookedTransformerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.W_E = nn.Parameter(torch.empty(cfg.d_vocab, cfg.d_model, dtype=cfg.dtype))
        if cfg.post_embedding_ln:
            self.ln = LayerNorm(cfg)

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Residual:
        rows = self.W_E[tokens, :]
        return self.ln(rows) if self.cfg.post_embedding_ln else rows


class PosEmbed(nn.Module):
    """W_pos [n_ctx, d_model], looked up by the position."""

    def __init__(self, cfg: HookedTransformerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.W_pos = nn.Parameter(torch.empty(cfg.n_ctx, cfg.d_model, dtype=cfg.dtype))

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        past_kv_pos_offset: int = 0,
        attention_mask: Int[Tensor, "_ all_pos"] | None = None,
    ) -> Residual:
        """The embeddings of the tokens' positions; 0 at padding, which has none.

        Args:
            past_kv_pos_offset: how many positions came before, in a cache.
            attention_mask: 0 at padding.
        """
        end = past_kv_pos_offset + tokens.shape[-1]
        if attention_mask is None:
            return self.W_pos[past_kv_pos_offset:end].repeat(len(tokens), 1, 1)
        places = get_offset_position_ids(past_kv_pos_offset, attention_mask)
        padding = ~attention_mask.bool()[:, past_kv_pos_offset:end, None]
        return torch.where(padding, 0, self.W_pos[places])


class Unembed(nn.Module):
    """logits = x W_U + b_U"""

    def __init__(self, cfg: HookedTransformerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.W_U = nn.Parameter(torch.empty(cfg.d_model, cfg.d_vocab_out, dtype=cfg.dtype))
        self.b_U = nn.Parameter(torch.zeros(cfg.d_vocab_out, dtype=cfg.dtype))
        self.hook_in = HookPoint()  # [batch, pos, d_model]
        self.hook_out = HookPoint()  # [batch, pos, d_vocab]

    def forward(self, x: Residual) -> Float[Tensor, "batch pos d_vocab"]:
        return self.hook_out(F.linear(self.hook_in(x), self.W_U.T.contiguous(), self.b_U))


class CanBeUsedAsMLP(nn.Module):
    """An MLP's parameters and activation function, which a layer norm may follow (SoLU)."""

    def __init__(self, cfg: HookedTransformerConfig) -> None:
        super().__init__()
        assert cfg.d_mlp is not None
        self.cfg, self.d_mlp = cfg, cfg.d_mlp
        picked: Any = cfg  # of which only the name of the function is read
        self.act_fn = ActivationFunctionFactory.pick_activation_function(picked)
        if cfg.is_layer_norm_activation():
            self.hook_mid = HookPoint()  # [batch, pos, d_mlp]
            biased = cfg.normalization_type == "LN"
            self.ln = LayerNorm(cfg, self.d_mlp) if biased else LayerNormPre(cfg)

    def _activated(self, pre: Tensor) -> Tensor:
        if not self.cfg.is_layer_norm_activation():
            return self.act_fn(pre)
        return self.ln(self.hook_mid(self.act_fn(pre)))


class MLP(CanBeUsedAsMLP):
    """act(x W_in + b_in) W_out + b_out"""

    def __init__(self, cfg: HookedTransformerConfig) -> None:
        super().__init__(cfg)
        self.W_in = nn.Parameter(torch.empty(cfg.d_model, self.d_mlp, dtype=cfg.dtype))
        self.b_in = nn.Parameter(torch.zeros(self.d_mlp, dtype=cfg.dtype))
        self.W_out = nn.Parameter(torch.empty(self.d_mlp, cfg.d_model, dtype=cfg.dtype))
        self.b_out = nn.Parameter(torch.zeros(cfg.d_model, dtype=cfg.dtype))
        self.hook_pre = HookPoint()  # [batch, pos, d_mlp]
        self.hook_post = HookPoint()  # [batch, pos, d_mlp]

    def forward(self, x: Residual) -> Residual:
        pre = self.hook_pre(batch_addmm(self.b_in, self.W_in, x))
        post = self.hook_post(self._activated(pre))
        return batch_addmm(self.b_out, self.W_out, post)


class GatedMLP(CanBeUsedAsMLP):
    """(act(x W_gate) ∘ x W_in + b_in) W_out + b_out"""

    def __init__(self, cfg: HookedTransformerConfig) -> None:
        super().__init__(cfg)
        shape = (cfg.d_model, self.d_mlp)
        self.W_in = nn.Parameter(torch.empty(shape, dtype=cfg.dtype))
        self.W_out = nn.Parameter(torch.empty(self.d_mlp, cfg.d_model, dtype=cfg.dtype))
        self.W_gate = nn.Parameter(torch.empty(shape, dtype=cfg.dtype))
        self.b_in = nn.Parameter(torch.zeros(self.d_mlp, dtype=cfg.dtype))
        self.b_out = nn.Parameter(torch.zeros(cfg.d_model, dtype=cfg.dtype))
        self.hook_pre = HookPoint()  # [batch, pos, d_mlp]: of the gate
        self.hook_pre_linear = HookPoint()  # [batch, pos, d_mlp]
        self.hook_post = HookPoint()  # [batch, pos, d_mlp]

    def forward(self, x: Residual) -> Residual:
        """As written above; with a layer norm in the activation the gate alone, as 3.9 has it."""
        x = x.to(self.W_gate.device)
        pre = self.hook_pre(F.linear(x, self.W_gate.T.contiguous()))
        post = self._activated(pre)
        if not self.cfg.is_layer_norm_activation():
            linear = self.hook_pre_linear(F.linear(x, self.W_in.T.contiguous()))
            post = post * linear + self.b_in
        return F.linear(self.hook_post(post), self.W_out.T.contiguous(), self.b_out)


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then + MLP(norm(·)); in parallel, or attention alone, if so set."""

    attn: AbstractAttention
    mlp: CanBeUsedAsMLP

    def __init__(self, cfg: HookedTransformerConfig, block_index: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.after = cfg.original_architecture in POST_NORM_ARCHITECTURES
        self.ln1 = norm_of(cfg)
        if cfg.use_normalization_before_and_after:
            self.ln1_post = norm_after(cfg)
        if not cfg.attn_only:
            self.ln2 = norm_of(cfg)
            if cfg.use_normalization_before_and_after:
                self.ln2_post = norm_after(cfg)
        kind = "global"
        if cfg.use_local_attn:
            assert cfg.attn_types is not None
            kind = cfg.attn_types[block_index]
        grouped = cfg.n_key_value_heads is not None
        self.attn = (GroupedQueryAttention if grouped else Attention)(cfg, kind, block_index)
        if not cfg.attn_only:
            self.mlp = GatedMLP(cfg) if cfg.gated_mlp else MLP(cfg)
        self.hook_attn_in = HookPoint()  # [batch, pos, head, d_model]
        self.hook_q_input = HookPoint()  # [batch, pos, head, d_model]
        self.hook_k_input = HookPoint()  # [batch, pos, head, d_model]
        self.hook_v_input = HookPoint()  # [batch, pos, head, d_model]
        self.hook_mlp_in = HookPoint()  # [batch, pos, d_model]
        self.hook_attn_out = HookPoint()  # [batch, pos, d_model]
        self.hook_mlp_out = HookPoint()  # [batch, pos, d_model]
        self.hook_resid_pre = HookPoint()  # [batch, pos, d_model]
        if not cfg.attn_only and not cfg.parallel_attn_mlp:
            self.hook_resid_mid = HookPoint()  # [batch, pos, d_model]
        self.hook_resid_post = HookPoint()  # [batch, pos, d_model]

    def forward(
        self,
        resid_pre: Residual,
        shortformer_pos_embed: Float[Tensor, "_ pos d_model"] | None = None,
        past_kv_cache_entry: Any = None,
        attention_mask: Int[Tensor, "_ all_pos"] | None = None,
    ) -> Residual:
        """The residual stream after this block.

        Args:
            shortformer_pos_embed: positions, which there are added to what q and k read alone.
        """
        cfg = self.cfg
        resid_pre = self.hook_resid_pre(resid_pre)
        q, k, v = self._attention_inputs(resid_pre)
        if not self.after:
            positions: Any = 0.0 if shortformer_pos_embed is None else shortformer_pos_embed
            if q.ndim == 4 and shortformer_pos_embed is not None:
                positions = repeat_along_head_dimension(positions, n_heads=cfg.n_heads)
            q, k, v = self.ln1(q) + positions, self.ln1(k) + positions, self.ln1(v)
        attn_out = self.attn(
            query_input=q,
            key_input=k,
            value_input=v,
            past_kv_cache_entry=past_kv_cache_entry,
            attention_mask=attention_mask,
        )
        if cfg.use_normalization_before_and_after:
            attn_out = self.ln1_post(attn_out)
        if self.after:
            attn_out = self.ln1(attn_out)
        attn_out = self.hook_attn_out(attn_out)
        if cfg.parallel_attn_mlp:
            mlp_out = self.apply_mlp(self._mlp_input(resid_pre))
            return self.hook_resid_post(resid_pre + attn_out + mlp_out)
        if cfg.attn_only:
            return self.hook_resid_post(resid_pre + attn_out)
        resid_mid = self.hook_resid_mid(resid_pre + attn_out)
        return self.hook_resid_post(resid_mid + self.apply_mlp(self._mlp_input(resid_mid)))

    def _attention_inputs(self, x: Residual) -> tuple[Tensor, Tensor, Tensor]:
        """What q, k and v read: the same, or a copy for each head, which hooks can edit apart."""
        cfg = self.cfg
        if cfg.use_split_qkv_input:
            heads = [cfg.n_heads] * 3
            if cfg.n_key_value_heads is not None and not cfg.ungroup_grouped_query_attention:
                heads[1:] = [cfg.n_key_value_heads] * 2
            several = [repeat_along_head_dimension(x, n_heads=n) for n in heads]
            q, k, v = several
            return self.hook_q_input(q), self.hook_k_input(k), self.hook_v_input(v)
        if cfg.use_attn_in:
            x = self.hook_attn_in(repeat_along_head_dimension(x, n_heads=cfg.n_heads))
        return x, x, x

    def _mlp_input(self, x: Residual) -> Residual:
        if self.cfg.use_hook_mlp_in:
            x = self.hook_mlp_in(x.clone())
        return x if self.after and not self.cfg.parallel_attn_mlp else self.ln2(x)

    def apply_mlp(self, normalized_resid: Residual) -> Residual:
        """What the MLP adds to the residual stream."""
        mlp_out = self.mlp(normalized_resid)
        if self.cfg.use_normalization_before_and_after:
            mlp_out = self.ln2_post(mlp_out)
        if self.after:
            mlp_out = self.ln2(mlp_out)
        return self.hook_mlp_out(mlp_out)
