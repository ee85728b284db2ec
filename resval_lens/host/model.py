"""The whole transformer: tokens -> embeddings -> blocks -> norm -> unembedding -> logits."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens import ActivationCache
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import (
    USE_DEFAULT_VALUE,
    LocallyOverridenDefaults,
    TypedModuleList,
    apply_softcap,
    get_attention_mask,
    lm_cross_entropy_loss,
    move_to_and_update_config,
)

from resval_lens.host.components import Embed, PosEmbed, TransformerBlock, Unembed
from resval_lens.host.config import HookedTransformerConfig
from resval_lens.host.norms import final_norm
from resval_lens.host.weights import Weights

Residual = Float[Tensor, "batch pos d_model"]

SWITCHED = {
    "attn.hook_result": "use_attn_result",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "mlp_in": "use_hook_mlp_in",
    "attn_in": "use_attn_in",
}
"""Hook points that are passed only under a setting, by how their names end."""


class Output(NamedTuple):
    """Logits [batch, pos, d_vocab] and the loss."""

    logits: Tensor
    loss: Tensor


class HookedTransformer(Weights):
    """A decoder with a hook point on every activation, as TransformerLens 3.9 had it.

    Names of modules, parameters and hook points, and every number, are 3.9's.
    """

    def __init__(
        self,
        cfg: HookedTransformerConfig | dict[str, Any],
        tokenizer: Any = None,
        move_to_device: bool = True,
        default_padding_side: str | None = None,
    ) -> None:
        """
        Args:
            tokenizer: of transformers; by default the one that ``cfg.tokenizer_name`` names.
            move_to_device: to ``cfg.device``.

        Raises:
            ValueError: neither a vocabulary nor a tokenizer.
        """
        super().__init__()
        self.cfg = cfg = HookedTransformerConfig(**cfg) if isinstance(cfg, dict) else cfg
        self.tokenizer = None
        tokenizer = self.named_tokenizer() if tokenizer is None else tokenizer
        if tokenizer is not None:
            self.set_tokenizer(tokenizer, default_padding_side=default_padding_side)
        elif cfg.d_vocab == -1:
            raise ValueError("Must provide a tokenizer if d_vocab is not provided")
        self.embed = Embed(cfg)
        self.hook_embed = HookPoint()  # [batch, pos, d_model]
        if cfg.positional_embedding_type != "rotary":
            self.pos_embed = PosEmbed(cfg)
            self.hook_pos_embed = HookPoint()  # [batch, pos, d_model]
        if cfg.use_hook_tokens:
            self.hook_tokens = HookPoint()  # [batch, pos]
        self.blocks = TypedModuleList(TransformerBlock(cfg, i) for i in range(cfg.n_layers))
        if cfg.normalization_type is not None:
            self.ln_final = final_norm(cfg)
        self.unembed = Unembed(cfg)
        if cfg.init_weights:
            self.init_weights()
        if move_to_device:
            self.move_model_modules_to_device()
        self.setup()

    def forward(
        self,
        input: str | list[str] | Tensor,
        return_type: str | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: Any = USE_DEFAULT_VALUE,
        start_at_layer: int | None = None,
        tokens: Int[Tensor, "batch pos"] | None = None,
        shortformer_pos_embed: Float[Tensor, "_ pos d_model"] | None = None,
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: Any = None,
    ) -> Any:
        """Logits, the next tokens' cross-entropy ("loss"), "both", or nothing (None).

        Args:
            input: text, tokens [batch, pos]; with ``start_at_layer`` the residual stream there.
            loss_per_token: [batch, pos − 1] instead of the mean.
            tokens: for the loss, with ``start_at_layer``.
            attention_mask: 0 at padding; made where the tokenizer pads on the left.
            stop_at_layer: return the residual stream before this layer.
            past_kv_cache: keys and values of earlier tokens; those of these are appended.
        """
        with LocallyOverridenDefaults(self, prepend_bos=prepend_bos, padding_side=padding_side):
            if start_at_layer is None:
                input, tokens, shortformer_pos_embed, attention_mask = self.input_to_embed(
                    input, prepend_bos, padding_side, attention_mask, past_kv_cache
                )
            assert isinstance(input, Tensor)
            residual = input
            for layer in range(self.cfg.n_layers)[start_at_layer:stop_at_layer]:
                residual = self.blocks[layer](
                    residual,
                    past_kv_cache_entry=None if past_kv_cache is None else past_kv_cache[layer],
                    shortformer_pos_embed=shortformer_pos_embed,
                    attention_mask=attention_mask,
                )
            if stop_at_layer is not None:
                return residual
            if self.cfg.normalization_type is not None:
                residual = self.ln_final(residual)
            if return_type is None:
                return None
            logits = apply_softcap(self.unembed(residual), self.cfg.output_logits_soft_cap)
            if return_type == "logits":
                return logits
            assert tokens is not None, "tokens must be given for the loss"
            loss = self.loss_fn(logits, tokens, attention_mask, per_token=loss_per_token)
            return loss if return_type == "loss" else Output(logits, loss)

    def input_to_embed(
        self,
        input: str | list[str] | Int[Tensor, "*batch pos"],
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: Any = USE_DEFAULT_VALUE,
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        past_kv_cache: Any = None,
    ) -> tuple[Residual, Int[Tensor, "batch pos"], Residual | None, Tensor | None]:
        """The first residual stream, the tokens, positions for shortformers, the attention mask.

        A mask is needed where padding stands on the left or a cache holds some; it covers the
        cached positions, too.

        Raises:
            ValueError: a mask is needed and there is no tokenizer to make it.
        """
        if isinstance(input, Tensor):
            tokens = input if input.ndim == 2 else input[None]
        else:
            tokens = self.to_tokens(input, prepend_bos=prepend_bos, padding_side=padding_side)
        tokens = tokens.to(self.cfg.device)
        on_the_left = self.tokenizer is not None and self.tokenizer.padding_side == "left"
        if on_the_left or attention_mask is not None or past_kv_cache is not None:
            if attention_mask is None:
                if self.tokenizer is None:
                    raise ValueError("Cannot compute attention mask without a tokenizer.")
                if prepend_bos is USE_DEFAULT_VALUE:
                    prepend_bos = self.cfg.default_prepend_bos
                attention_mask = get_attention_mask(self.tokenizer, tokens, bool(prepend_bos))
            assert attention_mask.shape == tokens.shape, (
                f"Attention mask shape {attention_mask.shape} does not match tokens shape "
                f"{tokens.shape}"
            )
            attention_mask = attention_mask.to(self.cfg.device)
            if past_kv_cache is not None:
                attention_mask = past_kv_cache.append_attention_mask(attention_mask)
        before = self.get_pos_offset(past_kv_cache, len(tokens))
        if self.cfg.use_hook_tokens:
            tokens = self.hook_tokens(tokens)
        embed = self.hook_embed(self.embed(tokens))
        residual, shortformer = self.get_residual(
            embed, before, prepend_bos, attention_mask, tokens, return_shortformer_pos_embed=True
        )
        return residual, tokens, shortformer, attention_mask

    def get_pos_offset(self, past_kv_cache: Any, batch_size: int) -> int:
        """How many positions are in the cache."""
        if past_kv_cache is None:
            return 0
        rows, before, heads, d_head = past_kv_cache[0].past_keys.shape
        cfg = self.cfg
        wanted = (batch_size, cfg.n_key_value_heads or cfg.n_heads, cfg.d_head)
        assert (rows, heads, d_head) == wanted, "this cache is of another model or batch"
        return before

    def get_residual(
        self,
        embed: Residual,
        pos_offset: int,
        prepend_bos: Any = USE_DEFAULT_VALUE,
        attention_mask: Tensor | None = None,
        tokens: Tensor | None = None,
        return_shortformer_pos_embed: bool = True,
        device: Any = None,
    ) -> Any:
        """Embeddings with their positions added; of shortformers beside them.

        Args:
            pos_offset: the position of ``embed[:, 0]``.
            tokens: any of this shape, from which positions are counted.
        """
        residual, shortformer = embed, None
        kind = self.cfg.positional_embedding_type
        if kind in ("standard", "shortformer"):
            counted = torch.ones(embed.shape[:2], dtype=torch.int32, device=embed.device)
            tokens = counted if tokens is None else tokens
            positions = self.hook_pos_embed(self.pos_embed(tokens, pos_offset, attention_mask))
            if kind == "standard":
                residual = embed + positions
            else:
                shortformer = positions
        return (residual, shortformer) if return_shortformer_pos_embed else residual

    def loss_fn(
        self,
        logits: Float[Tensor, "batch pos d_vocab"],
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        per_token: bool = False,
    ) -> Tensor:
        """Cross-entropy of each next token, in nats; the mean, or with ``per_token`` each."""
        tokens = tokens.to(logits.device)
        return lm_cross_entropy_loss(logits, tokens, attention_mask, per_token)

    def run_with_cache(
        self,
        *model_args: Any,
        return_cache_object: bool = True,
        remove_batch_dim: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """What the model returns, and every activation: an ActivationCache, or a dict."""
        out, cache = super().run_with_cache(
            *model_args, remove_batch_dim=remove_batch_dim, **kwargs
        )
        if not return_cache_object:
            return out, cache
        return out, ActivationCache(cache, self, has_batch_dim=not remove_batch_dim)

    def check_hooks_to_add(
        self, hook_point: HookPoint, hook_point_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Raises AssertionError for a hook point that the settings keep from being passed."""
        for ending, setting in SWITCHED.items():
            if hook_point_name.endswith(ending):
                on = getattr(self.cfg, setting)
                assert on, f"Cannot add hook {hook_point_name} if {setting} is False"

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Whether each head's output is computed and passes ``hook_result``."""
        self.cfg.use_attn_result = use_attn_result

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        """Whether what q, k and v of each head read passes hook points of its own."""
        self.cfg.use_split_qkv_input = use_split_qkv_input

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        """Whether what MLPs read passes ``hook_mlp_in``."""
        assert not self.cfg.attn_only, "Can't use hook_mlp_in with attn_only model"
        self.cfg.use_hook_mlp_in = use_hook_mlp_in

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        """Whether what each head reads passes ``hook_attn_in``."""
        assert self.cfg.n_key_value_heads is None, (
            "Can't use attn_in with GroupedQueryAttention, please use split_qkv_input instead"
        )
        self.cfg.use_attn_in = use_attn_in

    def set_ungroup_grouped_query_attention(self, ungroup_grouped_query_attention: bool) -> None:
        """Whether grouped keys and values are repeated for each head before their hook points."""
        self.cfg.ungroup_grouped_query_attention = ungroup_grouped_query_attention

    def to(self, device_or_dtype: Any, print_details: bool = True) -> Self:  # type: ignore[override]
        """As torch.nn.Module.to; ``cfg`` follows."""
        return move_to_and_update_config(self, device_or_dtype, print_details)

    def cuda(self, device: int | torch.device | None = None) -> Self:
        """To a GPU; ``cfg.device`` follows."""
        return self.to(f"cuda:{device}" if isinstance(device, int) else device or "cuda")

    def cpu(self) -> Self:
        """To the CPU; ``cfg.device`` follows."""
        return self.to(torch.device("cpu"))

    def move_model_modules_to_device(self) -> None:
        """To ``cfg.device``."""
        nn.Module.to(self, self.cfg.device)
