"""The configuration of a transformer with residual attention streams."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch

from resval_lens.config_checks import check_fields
from resval_lens.host import HookedTransformerConfig
from resval_lens.io.files import parse_json
from resval_lens.residual import Mixing, parse_mixing
from resval_lens.streams import Streams, StreamsLike, parse_streams


@dataclass
class ResValConfig(HookedTransformerConfig):
    """A HookedTransformerConfig with residual attention streams.

    Attributes:
        streams: which of q, k, v flow from layer to layer: ``"v"``, ``"qk"``, ``""`` (classic), or
            :class:`~resval_lens.streams.AttentionStream` objects. Kept in full, as a tuple.
        use_fused: let a layer use PyTorch's fused kernels while nothing looks inside them:
            attention (``hook_attn_scores``, ``hook_pattern``) and normalisation (``hook_scale``,
            ``hook_normalized``); and gated MLPs and the unembedding do without copies of their
            weights. Turn it off for second derivatives of attention, which that
            kernel lacks, or for the last bit of TransformerLens's own numbers.
        dropout: in training mode, the share of zeros in the embedding, in each attention pattern
            (after ``hook_pattern``) and in what attention and MLP add to the residual stream
            (before ``hook_attn_out`` and ``hook_mlp_out``).
        tied_embedding: W_U is W_E transposed, one parameter for both. Weight processing unties.
        frozen: shell patterns of parameters that are not trained, like ``("unembed.b_U",)``:
            TransformerLens gives every layer biases, and architectures without them keep these
            at zero.
        residual_mixing: each block, and the readout, reads a learned weighted sum of earlier states
            of the residual stream instead of the last one (:mod:`resval_lens.residual`):
            ``"embedding"`` (the last and the embeddings), ``"all"``, or for each reader the states
            that it reads. Kept in full, as tuples.
        embedding_norm: the embeddings are normalised, x / √(mean(x²) + eps), before block 0.
        smear_channels: each embedding receives a share of the one before it, behind a gate of its
            first so many channels (:class:`~resval_lens.residual.Smear`); None: none does.
        qk_norm_after_rotation: with ``use_qk_norm``, normalise queries and keys after their
            rotation, not before.
        qk_norm_per_head: with ``use_qk_norm``, a gain for each head instead of one for all.
        rotary_dtype: round the rotation's sines and cosines to this dtype.
        gated_mlp_biases: with ``gated_mlp``, (x W_in + b_in) ∘ act(x W_gate + b_gate).
        folded_value_biases: weight processing has moved the value biases into the output's; the
            value stream can no longer be changed.
        refactored_heads: weight processing has given each head a basis of its own; no stream can
            be added.

    Everything else is TransformerLens's own, with its own defaults. ``seed`` re-seeds the global
    generators when a config is made, as it does in TransformerLens.

    Raises:
        ValueError: unknown or contradictory settings, named with their value.
    """

    streams: Any = ()
    use_fused: bool = True
    dropout: float = 0.0
    tied_embedding: bool = False
    frozen: tuple[str, ...] = ()
    residual_mixing: Any = ()
    embedding_norm: bool = False
    smear_channels: int | None = None
    qk_norm_after_rotation: bool = False
    qk_norm_per_head: bool = False
    rotary_dtype: torch.dtype | None = None
    gated_mlp_biases: bool = False
    folded_value_biases: bool = False
    refactored_heads: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        self.streams: Streams = parse_streams(self.streams, self.n_layers)
        try:
            super().__post_init__()
        except AssertionError as error:
            raise ValueError(str(error)) from None
        if self.n_heads % (self.n_key_value_heads or 1):
            raise ValueError(
                f"n_key_value_heads={self.n_key_value_heads} must divide n_heads={self.n_heads}"
            )
        if self.use_local_attn and len(self.attn_types or ()) < self.n_layers:
            raise ValueError(
                f"attn_types={self.attn_types} must have one for each of {self.n_layers} layers"
            )
        self._check_streams()
        if self.tied_embedding and self.d_vocab_out != self.d_vocab:
            raise ValueError(
                f"tied_embedding=True: d_vocab_out={self.d_vocab_out} must equal "
                f"d_vocab={self.d_vocab}"
            )
        self._check_readers()
        patterns = self.frozen if isinstance(self.frozen, list | tuple) else (None,)
        if not all(isinstance(pattern, str) for pattern in patterns):
            raise ValueError(f"frozen must be a tuple of patterns; got {self.frozen!r}")
        self.frozen = tuple(patterns)

    def _check_streams(self) -> None:
        if self.streams and self.load_in_4bit:
            raise ValueError("load_in_4bit=True: streams need the projections' unquantised weights")
        for stream in self.streams:
            if stream.channels is not None and stream.channels > self.d_model:
                raise ValueError(
                    f"AttentionStream.channels={stream.channels} of an input of "
                    f"d_model={self.d_model}"
                )

    def _check_readers(self) -> None:
        """What has to go together with the fields of the models that read earlier states."""
        self.residual_mixing: Mixing = parse_mixing(self.residual_mixing, self.n_layers)
        rotary = self.positional_embedding_type == "rotary"
        scaled = self.use_NTK_by_parts_rope or self.use_yarn_rope or self.rotary_scaling_factor != 1
        needs = {
            "qk_norm_after_rotation": (self.use_qk_norm and rotary, "use_qk_norm and rotary"),
            "qk_norm_per_head": (self.use_qk_norm, "use_qk_norm"),
            "rotary_dtype": (rotary and not scaled, "positional_embedding_type='rotary', unscaled"),
            "gated_mlp_biases": (self.gated_mlp and not self.attn_only, "gated_mlp"),
        }
        for name, (met, need) in needs.items():
            if getattr(self, name) and not met:
                raise ValueError(f"{name}={getattr(self, name)} needs {need}")
        if (self.smear_channels or 0) > self.d_model:
            raise ValueError(f"smear_channels={self.smear_channels} of d_model={self.d_model}")

    @property
    def looks_up(self) -> bool:
        """Whether some layer has a table that is looked up by the token."""
        return any(stream.source == "tokens" for stream in self.streams)

    @property
    def input_point(self) -> str:
        """The hook point of the embeddings as the residual stream begins with them."""
        return "hook_resid_embed" if self.residual_mixing else "blocks.0.hook_resid_pre"

    @property
    def final_point(self) -> str:
        """The hook point of the residual stream that the readout reads."""
        last = f"blocks.{self.n_layers - 1}.hook_resid_post"
        return "hook_resid_final" if self.residual_mixing else last

    def n_heads_of(self, projection: str) -> int:
        """Heads of q, k or v as hook points have them: key-value heads of k and v, if grouped."""
        if projection == "q" or self.ungroup_grouped_query_attention:
            return self.n_heads
        return self.n_key_value_heads or self.n_heads

    def with_streams(self, streams: StreamsLike) -> Self:
        """A copy with other streams. Does not re-seed the global generators."""
        changed = copy.deepcopy(self)
        changed.streams = parse_streams(streams, self.n_layers)
        changed._check_streams()
        return changed

    def to_dict(self) -> dict[str, Any]:
        """Every field by name; a copy, so that editing it leaves the config alone."""
        return dict(self.__dict__)

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> Self:
        known = [field.name for field in fields(cls) if field.init]
        for name in config_dict:
            if name not in known:
                raise ValueError(f"{cls.__name__} has no field {name!r}")
        return cls(**config_dict)

    @classmethod
    def from_hooked(cls, cfg: HookedTransformerConfig, streams: StreamsLike = None) -> Self:
        """The same transformer with these streams; None: with its own, or classic.

        Does not re-seed the global generators.
        """
        settings = {f.name: getattr(cfg, f.name) for f in fields(cls) if hasattr(cfg, f.name)}
        if streams is not None:
            settings["streams"] = streams
        seed = settings.pop("seed")
        config = cls(**copy.deepcopy(settings))
        config.seed = seed
        return config

    def to_json(self) -> str:
        """JSON text from which :meth:`from_json` makes an equal config."""
        settings = self.to_dict() | {"streams": [s.to_dict() for s in self.streams]}
        return json.dumps(settings, indent=2, default=_plain)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of :meth:`to_json`; unknown fields raise ValueError.

        ``trust_remote_code`` is off whatever the text says: a file is not asked whom to trust.
        """
        settings = parse_json(text)
        if not isinstance(settings, dict):
            raise ValueError(f"a {cls.__name__} is a JSON object; got {text[:40]!r}")
        for name in ("dtype", "rotary_dtype"):
            if name in settings and not (name == "rotary_dtype" and settings[name] is None):
                dtype = getattr(torch, str(settings[name]).removeprefix("torch."), None)
                if not isinstance(dtype, torch.dtype):
                    raise ValueError(f"{name} must name a torch dtype; got {settings[name]!r}")
                settings[name] = dtype
        settings["trust_remote_code"] = False
        seed = settings.pop("seed", None)
        config = cls.from_dict(settings)
        config.seed = seed  # recorded, without re-seeding the global generators
        check_fields(config)
        return config

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.to_json()})"


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    raise TypeError(f"cannot write {type(value).__name__} {value!r} as JSON")
