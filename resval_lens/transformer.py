"""ResValTransformer: a HookedTransformer with residual attention streams."""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext
from fnmatch import fnmatch
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.utilities import (
    LocallyOverridenDefaults,
    TypedModuleList,
    apply_softcap,
)

from resval_lens.attention import TOKENS, Carried
from resval_lens.block import ResValBlock
from resval_lens.config import ResValConfig
from resval_lens.host import STOCK, HookedTransformerConfig, Output
from resval_lens.io.placing import refuse_waiting
from resval_lens.io.tokenizers import spelled
from resval_lens.layers import Layers
from resval_lens.lens.generation import generated
from resval_lens.lens.model_html import model_html
from resval_lens.lens.norm import fused
from resval_lens.lens.unembed import FusedUnembed, TiedUnembed, loss_sum, wide, wide_logits


class ResValTransformer(Layers):
    """A HookedTransformer whose attention layers may receive earlier layers' q, k or v.

    Everything a HookedTransformer does works: hooks, cache, loss, generation, weight properties.
    A classic configuration (``streams=""``) computes exactly what HookedTransformer computes.

    >>> cfg = ResValConfig(n_layers=2, d_model=8, d_head=4, n_ctx=6, d_vocab=5, attn_only=True,
    ...                    device="cpu", seed=0, streams="v")
    >>> model = ResValTransformer(cfg)
    >>> logits, cache = model.run_with_cache(torch.tensor([[0, 3, 1]]))
    >>> bool((cache["v_local", 1] + cache["v_link", 1] == cache["v", 1]).all())
    True
    """

    cfg: ResValConfig
    block_class: type[ResValBlock] = ResValBlock
    kind: ClassVar[str] = "a language model"
    """What it is, in messages."""
    without: ClassVar[tuple[str, ...]] = ()
    """What HookedTransformer has and this model has not: attributes, which are not kept."""

    @torch.inference_mode(False)  # parameters that were made inside it could never be trained
    def __init__(
        self,
        cfg: ResValConfig | HookedTransformerConfig | dict[str, Any],
        tokenizer: Any = None,
        move_to_device: bool = True,
        default_padding_side: Any = None,
    ) -> None:
        """Builds the model; the arguments are HookedTransformer's.

        A plain HookedTransformerConfig gives a classic model. The same seed gives the same weights
        as HookedTransformer, whatever the streams.
        """
        if isinstance(cfg, dict):
            cfg = ResValConfig.from_dict(cfg)
        elif not isinstance(cfg, ResValConfig):
            cfg = ResValConfig.from_hooked(cfg)
        cfg = copy.copy(cfg)
        # Everything but the blocks is HookedTransformer's own: it builds none, we build ours.
        n_layers, init_weights = cfg.n_layers, cfg.init_weights
        cfg.n_layers, cfg.init_weights = 0, False
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="HookedTransformer is deprecated")
            super().__init__(
                cfg,
                tokenizer,
                move_to_device=False,
                default_padding_side=default_padding_side,
            )
        cfg.n_layers, cfg.init_weights = n_layers, init_weights
        if not self.reads_tokens and (cfg.looks_up or cfg.smear_channels or cfg.embedding_norm):
            raise ValueError(
                f"{self.kind} reads vectors: it has no tokens to look up (source='tokens'), and "
                "no embeddings to normalise or smear"
            )
        self.blocks = TypedModuleList(self.block_class(cfg, layer) for layer in range(n_layers))
        if hasattr(self, "ln_final"):
            self.ln_final = fused(self.ln_final, cfg)
        self.unembed = (
            TiedUnembed(cfg, self.embed)  # type: ignore[assignment]
            if cfg.tied_embedding
            else FusedUnembed(cfg)
        )
        self.add_readers()
        for name in self.without:
            delattr(self, name)
        if init_weights:
            self.init_weights()
        for name, parameter in self.named_parameters():
            if any(fnmatch(name, pattern) for pattern in cfg.frozen):
                parameter.requires_grad_(False)
        if move_to_device:
            self.move_model_modules_to_device()
        self.setup()

    def forward(
        self,
        input: Any,
        return_type: str | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: Any = None,
        padding_side: Any = None,
        start_at_layer: int | None = None,
        tokens: Tensor | None = None,
        shortformer_pos_embed: Tensor | None = None,
        attention_mask: Tensor | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: Any = None,
        carried: Carried | None = None,
        checkpoint_blocks: bool = False,
        targets: Int[Tensor, "batch pos"] | None = None,
    ) -> Any:
        """HookedTransformer.forward, with streams between the blocks.

        Args:
            targets: what each position should predict, −100 where nothing. Then the sum of their
                cross-entropies in nats is returned, whatever ``return_type``. It may have no
                second derivative; see :func:`~resval_lens.lens.unembed.loss_sum`.
            carried: with ``start_at_layer`` above 0, what the layers before it pass on; see
                :meth:`carried_before`.
            tokens: with ``start_at_layer``, the token ids, where layers look them up.
            checkpoint_blocks: recompute each block in the backward pass instead of keeping its
                activations (``torch.utils.checkpoint``). Hooks then run twice.

        Raises:
            ValueError: ``start_at_layer`` skips a layer that a later one receives from, and
                ``carried`` is not given; an unknown ``return_type``; more tokens than ``n_ctx``
                (cached ones count, padding does not).
        """
        check_return_type(return_type)
        overridden: Any = nullcontext()
        if prepend_bos is not None or padding_side is not None:  # it breaks a compiled graph in two
            overridden = LocallyOverridenDefaults(
                self, prepend_bos=prepend_bos, padding_side=padding_side
            )
        with overridden:
            if start_at_layer is None:
                residual, tokens, shortformer_pos_embed, attention_mask = self.input_to_embed(
                    input,
                    prepend_bos=prepend_bos,
                    padding_side=padding_side,
                    attention_mask=attention_mask,
                    past_kv_cache=past_kv_cache,
                )
            else:
                residual = input
                if self.cfg.positional_embedding_type == "rotary":  # others have their positions
                    before = 0 if past_kv_cache is None else past_kv_cache[0].past_keys.shape[1]
                    self._check_length(before + residual.shape[1], attention_mask)
            if self.training and self.cfg.dropout and start_at_layer is None:
                residual = F.dropout(residual, self.cfg.dropout)
            if self.cfg.looks_up and tokens is not None:
                carried = {**(carried or {}), TOKENS: (tokens,)}
            residual, streams = self.run_blocks(
                residual,
                start_at_layer,
                stop_at_layer,
                carried,
                shortformer_pos_embed=shortformer_pos_embed,
                attention_mask=attention_mask,
                past_kv_cache=past_kv_cache,
                checkpoint_blocks=checkpoint_blocks,
                mixed=start_at_layer is not None,
            )
            if stop_at_layer is not None:
                layers = range(self.cfg.n_layers)[start_at_layer:stop_at_layer]
                if layers.stop < self.cfg.n_layers and (layers or start_at_layer is None):
                    block = self.blocks[layers.stop]
                    with block.fetched():
                        residual, _ = block.entered(residual, streams)
                return residual
            residual = self.unembed_input(residual.to(self.unembed.W_U.device))
            if targets is not None:
                return loss_sum(cast("FusedUnembed", self.unembed), residual, targets)
            if return_type is None:
                return None
            logits = apply_softcap(self.unembed(residual), self.cfg.output_logits_soft_cap)
            if return_type == "logits":
                return logits
            if tokens is None:
                raise ValueError(f"return_type={return_type!r} with start_at_layer needs `tokens`")
            if attention_mask is not None:
                attention_mask = attention_mask.to(logits.device)
            loss = self.loss_fn(logits, tokens, attention_mask, per_token=loss_per_token)
            return loss if return_type == "loss" else Output(logits, loss)

    def unembed_input(
        self, residual: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """What the unembedding reads of the residual stream after the last layer."""
        return residual if self.cfg.normalization_type is None else self.ln_final(residual)

    def readout_parts(
        self, residual: Float[Tensor, "batch pos d_model"]
    ) -> dict[str, Float[Tensor, "batch pos d_model"]]:
        """What is added to the residual stream after the last layer, linear in it, by name."""
        return {}

    def read_out(
        self,
        residual: Float[Tensor, "row pos d_model"],
        answers: Int[Tensor, " prompt"],
        capped: bool = True,
    ) -> Float[Tensor, "row output"]:
        """Logits at each row's answer position, from the residual stream after the last layer.

        In float32 at least: a model of 16 bits is rounded, the differences of its logits are not.

        Args:
            residual: its rows are the prompts, over and over.
            capped: by the soft cap, if the model has one.
        """
        residual = residual.to(self.unembed.W_U.device)
        rows = torch.arange(len(residual), device=residual.device)
        answers = answers.to(residual.device).repeat(len(residual) // len(answers))
        last = residual[rows, answers][:, None]  # [row, 1, d_model]
        logits = wide_logits(cast("FusedUnembed", self.unembed), self.unembed_input(last))
        cap = self.cfg.output_logits_soft_cap if capped else -1.0
        return apply_softcap(logits, cap)[:, 0]

    def loss_fn(
        self,
        logits: Float[Tensor, "batch pos d_vocab"],
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        per_token: bool = False,
    ) -> Any:
        """HookedTransformer.loss_fn in float32 at least: in float16 a sum ends at 65,504 nats."""
        return super().loss_fn(wide(logits), tokens, attention_mask, per_token)

    @property
    def waits(self) -> bool:
        """Whether some layers' weights are elsewhere while they do not run."""
        return any(block.waiting is not None for block in self.blocks)

    @property
    def reads_tokens(self) -> bool:
        """Whether its input is token ids; if not, vectors with their positions in them."""
        return "embed" not in self.without

    @property
    def answers_last(self) -> bool:
        """Whether it answers at the last position alone, by a readout that is no unembedding."""
        return "unembed" in self.without

    @property
    def n_outputs(self) -> int:
        """How many logits an answer has."""
        return self.cfg.d_vocab_out

    def to(self, *args: Any, print_details: bool = True, **kwargs: Any) -> Self:
        """As torch.nn.Module.to, in all its forms; ``cfg.device`` and ``cfg.dtype`` follow.

        ``print_details``, as HookedTransformer.to has it, may also be the second argument.
        """
        if len(args) > 1 and isinstance(args[1], bool):
            print_details, args = args[1], args[:1]
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        refuse_waiting(self, "moving or casting a model")
        if device is not None:
            super().to(str(device), print_details)
        if dtype is not None:
            super().to(dtype, print_details)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Behind ``half()``, ``bfloat16()``, ``float()``, ``double()``, ``type()`` and ``to()``."""
        refuse_waiting(self, "moving or casting a model")
        super()._apply(fn, recurse)
        self.cfg.dtype = next(x.dtype for x in self.parameters() if x.is_floating_point())
        return self

    def _check_length(self, length: int, attention_mask: Tensor | None) -> None:
        cfg = self.cfg
        rescaled = cfg.use_dynamic_ntk_rope and not self.training
        endless = cfg.positional_embedding_type == "alibi" or rescaled
        if length <= cfg.n_ctx or endless:
            return
        if attention_mask is not None:  # padding has no position
            length = int(attention_mask.sum(-1).max())
        if length > cfg.n_ctx:
            raise ValueError(f"{length} tokens do not fit the context, n_ctx={cfg.n_ctx}")

    def to_single_token(self, string: str) -> int:
        """The number of the one token that ``string`` is.

        Raises:
            ValueError: it is several tokens, or none, with this tokenizer.
        """
        tokens = self.to_tokens(string, prepend_bos=False)[0]
        if len(tokens) != 1:
            parts = spelled(self.tokenizer, tokens.tolist())
            raise ValueError(
                f"{string!r} is {len(tokens)} tokens with this tokenizer ({parts}); expected one"
            )
        return int(tokens[0])

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """HookedTransformer.generate, or :func:`~resval_lens.lens.generation.generated`: of models
        that need the token ids in every call, and where TransformerLens has no such method (4).
        """
        cfg = self.cfg
        by_ids = cfg.looks_up or cfg.residual_mixing or cfg.embedding_norm or cfg.smear_channels
        if by_ids or not STOCK:
            return generated(self, *args, **kwargs)
        return super().generate(*args, **kwargs)

    def _repr_html_(self) -> str:
        return model_html(self)

    def get_residual(
        self,
        embed: Tensor,
        pos_offset: int,
        prepend_bos: Any = None,
        attention_mask: Tensor | None = None,
        tokens: Tensor | None = None,
        return_shortformer_pos_embed: bool = True,
        device: Any = None,
    ) -> Any:
        """HookedTransformer.get_residual, right for cached generation without a tokenizer.

        ``generate`` hands over the embeddings of *all* positions, with the cache's length as the
        offset: counted from there, the newest position would be twice as far as it is.

        Raises:
            ValueError: more positions than ``n_ctx``, of a model that has no further ones.
        """
        whole = tokens is None and attention_mask is None and embed.shape[1] == pos_offset + 1
        self._check_length(embed.shape[1] + (0 if whole else pos_offset), attention_mask)
        residual, shortformer = super().get_residual(
            embed,
            0 if whole else pos_offset,
            prepend_bos,
            attention_mask,
            tokens,
            return_shortformer_pos_embed=True,
            device=device,
        )
        if shortformer is not None and whole:
            shortformer = shortformer[:, pos_offset:]
        return (residual, shortformer) if return_shortformer_pos_embed else residual


def check_return_type(return_type: str | None) -> None:
    """Raises ValueError unless ``return_type`` is None, "logits", "loss" or "both"."""
    if return_type not in (None, "logits", "loss", "both"):
        raise ValueError(
            f"return_type must be None, 'logits', 'loss' or 'both'; got {return_type!r}"
        )
