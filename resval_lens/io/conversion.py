"""Weights of a model: processed, converted, run with other streams."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import TypedModuleList

from resval_lens.block import ResValBlock
from resval_lens.config import ResValConfig
from resval_lens.host import HookedTransformer
from resval_lens.io.files import bytes_of, check_room
from resval_lens.io.formats.bridge import converted_from_bridge
from resval_lens.io.formats.format import Converted
from resval_lens.io.formats.hugging_face import converted_from_hf
from resval_lens.io.formats.x_transformers import converted_from_x_transformers
from resval_lens.io.placing import refuse_waiting
from resval_lens.lens.caching import StreamCaching
from resval_lens.lens.unembed import TiedUnembed
from resval_lens.lens.weights import (
    check_graft,
    check_processing,
    fold_norms_into_gates,
    fold_value_biases_through_streams,
    processing_of,
)
from resval_lens.streams import AttentionStream, StreamsLike

ONE_BY_ONE = ("n_layers", "n_readout_layers", "num_experts")
"""Settings that say how many modules of a kind are made."""


class WeightConversion(StreamCaching):
    """What ResValTransformer does with its weights as a whole."""

    blocks: TypedModuleList[ResValBlock]  # type: ignore[assignment]
    config_class: type[ResValConfig] = ResValConfig

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """torch.nn.Module.load_state_dict.

        Raises:
            ValueError: names that a wrapper (DDP, torch.compile) has prefixed.
        """
        for name in state_dict:
            prefix = next((p for p in ("module.", "_orig_mod.") if name.startswith(p)), None)
            if prefix is not None:
                raise ValueError(
                    f"state_dict has {name!r}: it is of a wrapper, whose parameters start with "
                    f"{prefix!r}; take the state_dict of the model inside, or remove the prefix"
                )
        return super().load_state_dict(state_dict, strict, assign)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """torch.nn.Module.state_dict.

        Raises:
            ValueError: some weights are elsewhere (``device_map``).
        """
        refuse_waiting(self, "state_dict")
        return super().state_dict(*args, **kwargs)

    def load_and_process_state_dict(
        self,
        state_dict: dict[str, Tensor],
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        fold_value_biases: bool = True,
        refactor_factored_attn_matrices: bool = False,
    ) -> None:
        """HookedTransformer's weight processing, right through the streams or refused.

        Value biases are folded with what the links carry of them (:mod:`resval_lens.lens.weights`).

        Raises:
            ValueError: a processing step that streams do not survive, with the reason.
        """
        check_processing(
            self.cfg,
            fold_ln,
            fold_value_biases,
            refactor_factored_attn_matrices,
            center_unembed,
            center_writing_weights and str(self.cfg.normalization_type).startswith("LN"),
        )
        if isinstance(self.unembed, TiedUnembed):  # what follows changes W_U and W_E differently
            self.unembed, self.cfg.tied_embedding = self.unembed.untied(), False
            self.setup()
            state_dict = {
                **state_dict,
                "unembed.W_U": state_dict["embed.W_E"].T.clone(),
                "unembed.b_U": self.unembed.b_U.detach().clone(),
            }
        if fold_ln:
            state_dict = fold_norms_into_gates(state_dict, self.cfg)
        carries_values = any(stream.of == "v" for stream in self.cfg.streams)
        super().load_and_process_state_dict(
            state_dict,
            fold_ln=fold_ln,
            # TransformerLens leaves weights before a final RMS norm, but not their folded biases.
            center_writing_weights=center_writing_weights and not self.cfg.final_rms,
            center_unembed=center_unembed,
            fold_value_biases=fold_value_biases and not carries_values,
            refactor_factored_attn_matrices=refactor_factored_attn_matrices,
        )
        self.cfg.folded_value_biases |= fold_value_biases or refactor_factored_attn_matrices
        self.cfg.refactored_heads |= refactor_factored_attn_matrices
        if fold_value_biases and carries_values:
            fold_value_biases_through_streams(
                self.cfg.streams, [block.attn for block in self.blocks]
            )

    def process_weights_(
        self,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        refactor_factored_attn_matrices: bool = False,
        fold_value_biases: bool = True,
    ) -> None:
        """Processes this model's weights in place; see :meth:`load_and_process_state_dict`."""
        self.load_and_process_state_dict(
            self.state_dict(),
            fold_ln=fold_ln,
            center_writing_weights=center_writing_weights,
            center_unembed=center_unembed,
            fold_value_biases=fold_value_biases,
            refactor_factored_attn_matrices=refactor_factored_attn_matrices,
        )

    @classmethod
    def from_hooked(
        cls,
        model: HookedTransformer | TransformerBridge,
        streams: StreamsLike = None,
        *,
        share_weights: bool = False,
        unprocessed: bool = False,
    ) -> Self:
        """A ResValTransformer with the weights of any HookedTransformer, a pretrained one too.

        With the streams that ``model`` has, which is the default, the result computes exactly what
        ``model`` computes; with others, what those weights do when values (queries, keys) flow.
        Learned mixing comes along from a model with the same stream (whichever layers receive it)
        and starts afresh otherwise. Load pretrained models with ``from_pretrained_no_processing``
        before grafting a stream: ``from_pretrained`` takes their value biases away.

        Args:
            model: of a TransformerBridge, see :meth:`from_bridge`.
            streams: as in ResValConfig; None: those of ``model``, a HookedTransformer has none.
            share_weights: use the same parameter tensors instead of copies.
            unprocessed: value biases were never folded and heads never refactored, though the
                weights look so (:func:`~resval_lens.lens.weights.processing_of`).

        Raises:
            ValueError: streams that processed weights can no longer carry; what
                :meth:`from_bridge` refuses.
        """
        if isinstance(model, TransformerBridge):
            if share_weights:
                raise ValueError("share_weights=True: weights of a TransformerBridge are copied")
            return cls.from_bridge(model, streams=streams)
        config = ResValConfig.from_hooked(model.cfg, streams)
        if not unprocessed:
            processed = processing_of(model)
            before = getattr(model.cfg, "streams", ())
            remedy = (
                "load the model with from_pretrained_no_processing, or pass unprocessed=True if "
                "its weights were never processed"
            )
            check_graft(before, config.streams, processed, remedy)
            for name, value in processed.items():
                setattr(config, name, value)
        config.init_weights, config.tokenizer_name = False, None
        return cls(config)._take_over(model, share_weights)

    @classmethod
    def from_bridge(cls, bridge: Any, *, streams: StreamsLike = None) -> Self:
        """The decoder in a TransformerBridge, which stays as it is; its weights are copied.

        On a few tokens its logits are held to those of ``bridge``.

        Args:
            streams: as in ResValConfig; none by default.

        Raises:
            ValueError: an encoder, or another architecture that cannot be converted; weights that
                ``enable_compatibility_mode`` has processed; logits that are not the bridge's.
        """
        return cls._from_converted(converted_from_bridge(bridge), streams)

    @classmethod
    def from_hf(
        cls,
        model: Any,
        tokenizer: Any = None,
        *,
        streams: StreamsLike = None,
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """A causal language model of transformers, which stays as it is; its weights are copied.

        Settings and weights are TransformerLens's conversion, unprocessed. On a few tokens its
        logits are held to those of ``model``.

        Args:
            tokenizer: of transformers. Texts start with its beginning of text where it puts one
                there itself (``cfg.default_prepend_bos``).
            streams: as in ResValConfig; none by default.
            device: by default that of ``model``.
            dtype: by default that of ``model``.

        Raises:
            ValueError: an architecture that cannot be converted, or logits that are not the
                original's.
        """
        return cls._from_converted(converted_from_hf(model, tokenizer, dtype, device), streams)

    @classmethod
    def from_x_transformers(
        cls,
        model: Any,
        keywords: Mapping[str, Any] | None = None,
        tokenizer: Any = None,
        *,
        streams: StreamsLike = None,
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """A causal decoder of x-transformers, with its value residual; its weights are copied.

        Of a wrapper, logits of a few tokens are held to those of ``model``.

        Args:
            model: a TransformerWrapper, or an AutoregressiveWrapper of one; or a state_dict.
            keywords: with a state_dict, those that TransformerWrapper was made with; under
                ``"attn_layers"`` those of its Decoder
                (:mod:`~resval_lens.io.formats.x_transformers`).
            tokenizer: of transformers.
            streams: instead of its own.
            device: by default that of ``model``.
            dtype: by default that of ``model``.

        Raises:
            ValueError: a keyword or part that is unknown or has no counterpart here, by its name;
                weights that are not of these keywords; logits that are not the original's.
        """
        converted = converted_from_x_transformers(model, keywords, tokenizer, dtype, device)
        return cls._from_converted(converted, streams)

    @classmethod
    def _from_converted(cls, converted: Converted, streams: StreamsLike) -> Self:
        cfg = cls.config_class.from_hooked(converted.cfg)
        cfg.init_weights = False
        cls.check_memory(cfg)
        model = cls(cfg)
        model._use_tokenizer(converted.tokenizer)
        parameters = dict(model.named_parameters())
        known = {**parameters, **dict(model.named_buffers())}
        there = {name: x for name, x in converted.state.items() if name in known}
        for name, x in there.items():
            if x.shape != known[name].shape and x.numel() > 1:
                raise ValueError(
                    f"{converted.source}: {name} must have shape {list(known[name].shape)}; "
                    f"got {list(x.shape)}"
                )
        for name in converted.state:
            if name not in known and not name.endswith("IGNORE") and converted.state[name].any():
                raise ValueError(f"{converted.source}: its conversion has the unknown {name}")
        missing = model.load_state_dict(there, strict=False).missing_keys
        with torch.no_grad():
            for each in set(missing) & set(parameters):
                unread = each == "pos_embed.W_pos" and cfg.positional_embedding_type == "alibi"
                if not unread and not each.rpartition(".")[2].startswith(("b", "_b")):
                    raise ValueError(f"{converted.source}: its conversion lacks {each}")
                parameters[each].zero_()  # an architecture without this bias
        model.eval()
        converted.check(model)
        return model if streams is None else model.with_streams(streams, share_weights=True)

    def with_streams(self, streams: StreamsLike, *, share_weights: bool = False) -> Self:
        """The same weights, run with other streams: ``with_streams("")`` cuts, ``"v"`` grafts.

        Args:
            share_weights: use the same parameter tensors instead of copies.

        Raises:
            ValueError: streams that processed weights can no longer carry: another value stream
                after value biases were folded into the output, any other after heads were
                refactored.
        """
        config = self.cfg.with_streams(streams)
        check_graft(
            self.cfg.streams, config.streams, processing_of(self), "change streams before "
            "process_weights_, or pass fold_value_biases=False there"
        )  # fmt: skip
        config.init_weights, config.tokenizer_name = False, None
        return type(self)(config)._take_over(self, share_weights)

    def _take_over(self, model: HookedTransformer, share: bool) -> Self:
        """Weights, tokenizer, and whether it trains or evaluates."""
        self.cfg.init_weights = model.cfg.init_weights
        self.cfg.tokenizer_name = model.cfg.tokenizer_name
        self._use_tokenizer(model.tokenizer)
        return self._take_weights(model, share).train(model.training)

    def set_tokenizer(self, tokenizer: Any, default_padding_side: Any = None) -> None:
        """HookedTransformer's, for tokenizers without a name, too.

        One that has a BOS is made again by its name there, to add it; without a name it stays as it
        is.
        """
        given = tokenizer.init_kwargs
        if not given.get("name_or_path"):
            tokenizer.init_kwargs = {**given, "name_or_path": "", "add_bos_token": True}
        try:
            super().set_tokenizer(tokenizer, default_padding_side)
        finally:
            tokenizer.init_kwargs = given

    def _use_tokenizer(self, tokenizer: Any) -> None:
        """As ``set_tokenizer``, which makes a new one by its name, and that may lead nowhere."""
        if tokenizer is not None:
            self.tokenizer = tokenizer
            self.cfg.tokenizer_prepends_bos = len(tokenizer.encode("")) > 0

    def _take_weights(self, model: HookedTransformer, share: bool) -> Self:
        refuse_waiting(model, "taking over weights")
        state = model.state_dict() if not share else dict(model.named_parameters())
        mixing = {name for name in self.state_dict() if ".mixes." in name}
        # Learned mixing goes along with its stream, whoever receives it and with what gradient.
        known = {_mixed_like(stream) for stream in getattr(model.cfg, "streams", ())}
        kept = [stream.of for stream in self.cfg.streams if _mixed_like(stream) in known]
        state = {
            name: tensor
            for name, tensor in state.items()
            if ".mixes." not in name
            or (name in mixing and any(f".mixes.{of}." in name for of in kept))
        }
        report = self.load_state_dict(state, strict=False, assign=share)
        buffers = {name for name, _ in self.named_buffers()} if share else set()
        missing = set(report.missing_keys) - mixing - buffers
        if missing or report.unexpected_keys:
            raise ValueError(
                f"these weights do not fit: missing {sorted(missing)}, unexpected "
                f"{sorted(report.unexpected_keys)}"
            )
        return self

    @classmethod
    def check_memory(cls, cfg: ResValConfig) -> None:
        """Raises ValueError for a model that is larger than this machine's memory."""
        for name in ONE_BY_ONE:
            number = getattr(cfg, name, None) or 0
            check_room(number * 2**14, f"a model of {name}={number}")  # modules, however narrow
        model = cls._without_memory(cfg)
        size = bytes_of([*model.parameters(), *model.buffers()])
        check_room(size, f"a model of d_model={cfg.d_model}, n_ctx={cfg.n_ctx}")

    @classmethod
    def _without_memory(cls, cfg: ResValConfig) -> Self:
        shapes = copy.copy(cfg)
        shapes.device, shapes.init_weights = "meta", False
        with torch.device("meta"):
            return cls(shapes)


def _mixed_like(stream: AttentionStream) -> AttentionStream:
    return replace(stream, layers=None, detach=False)
