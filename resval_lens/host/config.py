"""The settings of a hooked transformer: every field of TransformerLens 3.9, by its name."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from transformer_lens.utilities import SUPPORTED_ACTIVATIONS, get_device, warn_if_mps

NOT_RUN = ("num_experts", "load_in_4bit", "n_devices", "use_logn_attn", "use_dynamic_ntk_rope")
"""Fields that must be as they are by default: what they ask for is not here."""


@dataclass
class HookedTransformerConfig:
    """What TransformerLens 3.9 documents under this name, in its order and with its defaults.

    Fields of models that are not run here are among them, so that configurations go from one
    version to the other; :data:`NOT_RUN` is refused. ``seed`` re-seeds the global generators of
    torch, NumPy and Python.

    Raises:
        ValueError: a setting that is missing, contradicts another or is not run here.
    """

    d_model: int
    d_head: int
    n_layers: int
    n_ctx: int
    n_heads: int = -1  # d_model // d_head
    d_mlp: int | None = None  # 4 · d_model
    d_vocab: int = -1  # of the tokenizer
    device: str | None = None
    use_attn_result: bool = False
    use_split_qkv_input: bool = False
    default_prepend_bos: bool = True
    positional_embedding_type: str = "standard"
    n_key_value_heads: int | None = None
    attn_only: bool = False
    gated_mlp: bool = False
    uses_rms_norm: bool = False
    eps: float = 1e-5
    layer_norm_folding: bool = False
    act_fn: str = "relu"
    normalization_type: str | None = "LN"
    num_experts: int | None = None
    experts_per_token: int | None = None
    final_rms: bool = False
    dtype: torch.dtype = torch.float32
    model_name: str = "custom"
    use_attn_scale: bool = True
    attn_scale: float = -1.0  # √d_head
    use_hook_mlp_in: bool = False
    use_attn_in: bool = False
    use_qk_norm: bool = False
    clip_qkv: float | None = None
    use_logn_attn: bool = False
    train_seq_length: int | None = None
    use_dynamic_ntk_rope: bool = False
    use_local_attn: bool = False
    ungroup_grouped_query_attention: bool = False
    original_architecture: str | None = None
    from_checkpoint: bool = False
    checkpoint_index: int | None = None
    checkpoint_label_type: str | None = None
    checkpoint_value: int | None = None
    tokenizer_name: str | None = None
    window_size: int | None = None
    attn_types: list | None = None
    init_mode: str = "gpt2"
    n_devices: int = 1
    attention_dir: str = "causal"
    seed: int | None = None
    initializer_range: float = -1.0  # 0.8 / √d_model in the mode of GPT-2, else 1
    init_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    d_vocab_out: int = -1  # d_vocab
    parallel_attn_mlp: bool = False
    rotary_dim: int | None = None  # d_head
    n_params: int | None = None
    use_hook_tokens: bool = False
    tokenizer_prepends_bos: bool | None = None
    post_embedding_ln: bool = False
    rotary_base: float | int = 10000
    rotary_base_local: float | int | None = None
    rotary_scaling_factor: float = 1.0
    trust_remote_code: bool = False
    rotary_adjacent_pairs: bool = False
    load_in_4bit: bool = False
    quantization_method: str | None = None
    relative_attention_max_distance: int | None = None
    relative_attention_num_buckets: int | None = None
    decoder_start_token_id: int | None = None
    tie_word_embeddings: bool = False
    use_normalization_before_and_after: bool = False
    attn_scores_soft_cap: float = -1.0
    output_logits_soft_cap: float = -1.0
    use_NTK_by_parts_rope: bool = False
    NTK_by_parts_low_freq_factor: float = 1.0
    NTK_by_parts_high_freq_factor: float = 4.0
    NTK_by_parts_factor: float = 8.0
    NTK_original_ctx_len: int = 8192
    use_yarn_rope: bool = False
    yarn_factor: float = 1.0
    yarn_attention_factor: float = 1.0
    yarn_beta_fast: float = 32.0
    yarn_beta_slow: float = 1.0
    yarn_original_max_position_embeddings: int = 4096
    yarn_truncate: bool = True
    yarn_global_attn_only: bool = False
    use_attention_sinks: bool = False
    norm_topk_prob: bool = False

    def __post_init__(self) -> None:
        if self.n_heads == -1:
            if self.d_model % self.d_head:
                raise ValueError(
                    f"d_model ({self.d_model}) must be divisible by d_head ({self.d_head})"
                )
            self.n_heads = self.d_model // self.d_head
        if self.d_mlp is None:
            self.d_mlp = 4 * self.d_model
        if self.seed is not None:
            torch.manual_seed(self.seed)
            random.seed(self.seed)
            np.random.seed(self.seed)  # noqa: NPY002  # the generator that others read
        self._check()
        if self.initializer_range < 0:
            of_gpt2 = self.init_mode == "gpt2"
            self.initializer_range = 0.8 / math.sqrt(self.d_model) if of_gpt2 else 1.0
        if self.d_vocab_out == -1:
            self.d_vocab_out = self.d_vocab
        if self.positional_embedding_type == "rotary" and self.rotary_dim is None:
            self.rotary_dim = self.d_head
        self.n_params = self.n_layers * self.d_model * self.d_head * self.n_heads * 4
        if not self.attn_only:
            self.n_params += self.n_layers * self.d_model * self.d_mlp * (2 + self.gated_mlp)
        if self.device is None:
            self.device = get_device()
        else:
            warn_if_mps(self.device)
        if self.use_attn_scale and self.attn_scale == -1.0:
            self.attn_scale = math.sqrt(self.d_head)

    def _check(self) -> None:
        if self.use_local_attn:
            for name in ("window_size", "attn_types"):
                if getattr(self, name) is None:
                    raise ValueError(f"{name} must be specified for local attention")
        if not self.attn_only and self.act_fn not in SUPPORTED_ACTIVATIONS:
            known = ", ".join(SUPPORTED_ACTIVATIONS)
            raise ValueError(f"act_fn={self.act_fn!r} must be one of {known}")
        for name, other in (
            ("num_experts", "experts_per_token"), ("experts_per_token", "num_experts")
        ):  # fmt: skip
            if getattr(self, name) is not None and getattr(self, other) is None:
                raise ValueError(f"{other} must be set if {name} is set")
        for name in NOT_RUN:
            if getattr(self, name) != getattr(HookedTransformerConfig, name):
                raise ValueError(
                    f"{name}={getattr(self, name)} is not run on TransformerLens 4; install "
                    "transformer-lens<4"
                )
        if self.default_prepend_bos not in (True, False):
            raise ValueError(
                f"default_prepend_bos must be True or False; got {self.default_prepend_bos!r}"
            )

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> Self:
        """The configuration with these fields."""
        return cls(**config_dict)

    def to_dict(self) -> dict[str, Any]:
        """Every field by name."""
        return dict(self.__dict__)

    def is_layer_norm_activation(self) -> bool:
        """Whether the activation function ends in a layer norm, as SoLU's does."""
        return self.act_fn is not None and self.act_fn.endswith("_ln")
