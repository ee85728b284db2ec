"""ResValTransformer: a HookedTransformer with residual attention streams."""

from __future__ import annotations

import copy
import tempfile
import warnings
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformer_lens import ActivationCache, HookedTransformer, HookedTransformerConfig
from transformer_lens.HookedTransformer import Output
from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES
from transformer_lens.utilities import (
    LocallyOverridenDefaults,
    TypedModuleList,
    apply_softcap,
    get_device_for_block_index,
)

from resval_lens.attention import Carried
from resval_lens.block import ResValBlock
from resval_lens.caching import StreamCaching
from resval_lens.checkpoint import (
    fetch,
    load_parameters,
    present_device,
    push,
    read_config,
    read_tokenizer,
    save_model,
)
from resval_lens.config import ResValConfig
from resval_lens.norm import fused
from resval_lens.streams import AttentionStream, StreamsLike
from resval_lens.unembed import FusedUnembed, TiedUnembed
from resval_lens.weights import check_processing, fold_value_biases_through_streams

TRANSFORMER_LENS_NAMES = frozenset(OFFICIAL_MODEL_NAMES).union(*MODEL_ALIASES.values())


class ResValTransformer(StreamCaching):
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
    blocks: TypedModuleList[ResValBlock]  # type: ignore[assignment]
    config_class: type[ResValConfig] = ResValConfig

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
        self.blocks = TypedModuleList(ResValBlock(cfg, layer) for layer in range(n_layers))
        if hasattr(self, "ln_final"):
            self.ln_final = fused(self.ln_final, cfg)
        self.unembed = (
            TiedUnembed(cfg, self.embed)  # type: ignore[assignment]
            if cfg.tied_embedding
            else FusedUnembed(cfg)
        )
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
    ) -> Any:
        """HookedTransformer.forward, with streams between the blocks.

        Args:
            carried: with ``start_at_layer`` above 0, what the layers before it hand on; see
                :meth:`carried_before`.
            checkpoint_blocks: recompute each block in the backward pass instead of keeping its
                activations (``torch.utils.checkpoint``). Hooks then run twice.

        Raises:
            ValueError: ``start_at_layer`` skips a layer that a later one receives from, and
                ``carried`` is not given; an unknown ``return_type``.
        """
        check_return_type(return_type)
        with LocallyOverridenDefaults(self, prepend_bos=prepend_bos, padding_side=padding_side):
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
            if self.training and self.cfg.dropout and start_at_layer is None:
                residual = F.dropout(residual, self.cfg.dropout)
            residual = self.run_blocks(
                residual,
                start_at_layer,
                stop_at_layer,
                carried,
                shortformer_pos_embed=shortformer_pos_embed,
                attention_mask=attention_mask,
                past_kv_cache=past_kv_cache,
                checkpoint_blocks=checkpoint_blocks,
            )
            if stop_at_layer is not None:
                return residual
            if self.cfg.normalization_type is not None:
                residual = self.ln_final(residual)  # [batch, pos, d_model]
            if return_type is None:
                return None
            logits = apply_softcap(self.unembed(residual), self.cfg.output_logits_soft_cap)
            if return_type == "logits":
                return logits
            if tokens is None:
                raise ValueError(f"return_type={return_type!r} with start_at_layer needs `tokens`")
            loss = self.loss_fn(logits, tokens, attention_mask, per_token=loss_per_token)
            return loss if return_type == "loss" else Output(logits, loss)

    def run_blocks(
        self,
        residual: Float[Tensor, "batch pos d_model"],
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        carried: Carried | None = None,
        *,
        shortformer_pos_embed: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_kv_cache: Any = None,
        checkpoint_blocks: bool = False,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after layers start..stop, the attention streams beside it."""
        layers = range(self.cfg.n_layers)[start_at_layer:stop_at_layer]
        self._check_carried(layers, carried)
        streams: Carried = carried or {}
        for layer in layers:
            device = get_device_for_block_index(layer, self.cfg)
            if shortformer_pos_embed is not None:
                shortformer_pos_embed = shortformer_pos_embed.to(device)
            block = partial(
                self.blocks[layer],
                past_kv_cache_entry=None if past_kv_cache is None else past_kv_cache[layer],
                shortformer_pos_embed=shortformer_pos_embed,
                attention_mask=attention_mask,
            )
            if checkpoint_blocks:
                block = partial(checkpoint, block, use_reentrant=False)
            residual, streams = block(residual.to(device), carried=streams)
        return residual

    def _check_carried(self, layers: range, carried: Carried | None) -> None:
        if len(layers) == 0 or layers[0] == 0:
            return
        for stream in self.cfg.streams:
            for layer in layers:
                missing = [source for source in stream.sources(layer) if source < layers[0]]
                if missing and stream.of not in (carried or {}):
                    raise ValueError(
                        f"start_at_layer={layers[0]} skips layer {missing[0]}, whose {stream.of} "
                        f"layer {layer} receives: pass carried=model.carried_before({layers[0]}, "
                        "cache)"
                    )

    def carried_before(self, layer: int, cache: ActivationCache | dict[str, Tensor]) -> Carried:
        """What the layers before ``layer`` hand on, read from a cache of a full run.

        >>> # logits = model(cache["resid_pre", 2], start_at_layer=2,
        >>> #                carried=model.carried_before(2, cache))
        """
        layer = range(self.cfg.n_layers)[layer]
        carried: Carried = {}
        for stream in self.cfg.streams:
            wanted = {"previous": [layer - 1], "first": [0], "all": range(layer)}[stream.source]
            names = []
            for source in wanted if layer > 0 else []:
                own = stream.carry == "raw" and stream.receives(source)
                names.append(f"blocks.{source}.attn.hook_{stream.of}{'_local' if own else ''}")
            carried[stream.of] = tuple(cache[name] for name in names)
        return carried

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
        """
        whole = tokens is None and attention_mask is None and embed.shape[1] == pos_offset + 1
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

        Value biases are folded with what the links carry of them (:mod:`resval_lens.weights`).

        Raises:
            ValueError: a processing step that streams do not survive, with the reason.
        """
        check_processing(self.cfg, fold_ln, fold_value_biases, refactor_factored_attn_matrices)
        if isinstance(self.unembed, TiedUnembed):  # what follows changes W_U and W_E differently
            self.unembed, self.cfg.tied_embedding = self.unembed.untied(), False
            self.setup()
            state_dict = {
                **state_dict,
                "unembed.W_U": state_dict["embed.W_E"].T.clone(),
                "unembed.b_U": self.unembed.b_U.detach().clone(),
            }
        carries_values = any(stream.of == "v" for stream in self.cfg.streams)
        super().load_and_process_state_dict(
            state_dict,
            fold_ln=fold_ln,
            center_writing_weights=center_writing_weights,
            center_unembed=center_unembed,
            fold_value_biases=fold_value_biases and not carries_values,
            refactor_factored_attn_matrices=refactor_factored_attn_matrices,
        )
        self.cfg.folded_value_biases |= fold_value_biases
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
        cls, model: HookedTransformer, streams: StreamsLike = "", *, share_weights: bool = False
    ) -> Self:
        """A ResValTransformer with the weights of any HookedTransformer, a pretrained one too.

        With ``streams=""`` the result computes exactly what ``model`` computes; with streams, what
        those weights do when values (queries, keys) flow. Learned mixing comes along from a model
        with the same stream (whichever layers receive it) and starts afresh otherwise. Load
        pretrained models with ``from_pretrained_no_processing`` before grafting a stream:
        processed weights have lost their value biases, so the link could not carry them.

        Args:
            share_weights: use the same parameter tensors instead of copies.
        """
        config = ResValConfig.from_hooked(model.cfg, streams)
        config.init_weights = False
        new = cls(config, tokenizer=model.tokenizer)
        new.cfg.init_weights = model.cfg.init_weights
        return new._take_weights(model, share_weights)

    def with_streams(self, streams: StreamsLike, *, share_weights: bool = False) -> Self:
        """The same weights, run with other streams: ``with_streams("")`` cuts, ``"v"`` grafts.

        Args:
            share_weights: use the same parameter tensors instead of copies.

        Raises:
            ValueError: the value stream would change, and value biases were folded into the
                output: what the link carried of them could be neither removed nor brought.
        """
        config = self.cfg.with_streams(streams)
        if self.cfg.folded_value_biases:
            before, after = (
                [stream for stream in cfg.streams if stream.of == "v"] for cfg in (self.cfg, config)
            )
            if before != after:
                raise ValueError(
                    f"with_streams({streams!r}): this model's value biases are folded into its "
                    "output (process_weights_); change streams before, or pass "
                    "fold_value_biases=False there"
                )
        config.init_weights = False
        new = type(self)(config, tokenizer=self.tokenizer)
        new.cfg.init_weights = self.cfg.init_weights
        return new._take_weights(self, share_weights)

    def _take_weights(self, model: HookedTransformer, share: bool) -> Self:
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

    def save_pretrained(
        self, folder: str | Path, *, record: dict[str, Any] | None = None, overwrite: bool = False
    ) -> None:
        """Saves into ``folder``: safetensors, config.json, provenance.json; all or nothing.

        Args:
            record: provenance to keep beside the weights (command, versions, seed, metrics); this
                process's by default.

        Raises:
            ValueError: the folder holds something else, or a model and ``overwrite`` is off.
        """
        save_model(
            folder,
            type(self).__name__,
            self.cfg.to_json(),
            dict(self.named_parameters()),
            record,
            overwrite,
        )

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        name: str | Path,
        *,
        streams: StreamsLike = None,
        tokenizer: Any = None,
        device: str | None = None,
        **options: Any,
    ) -> Self:
        """A saved model, from a folder or the Hugging Face hub; or a model TransformerLens knows.

        ``ResValTransformer.from_pretrained("gpt2", streams="v")`` loads TransformerLens's "gpt2"
        without weight processing and converts it (:meth:`from_hooked`).

        Args:
            name: a folder that :meth:`save_pretrained` wrote, a hub id of such a folder, or a
                TransformerLens model name.
            streams: run the weights with these streams instead of those they were saved with.
            tokenizer: for the loaded model; by default the one that was saved with it.
            device: where to run; by default the device it was saved on if there is one here.
            options: for ``huggingface_hub.snapshot_download`` (revision, token, ...), or for
                ``HookedTransformer.from_pretrained_no_processing``.

        Raises:
            ValueError: files that are missing, damaged, of another shape or class, by name.
        """
        is_folder = Path(name).is_dir()
        if is_folder and options:
            raise ValueError(
                f"{next(iter(options))}= is for models from the hub; {name} is a folder"
            )
        if not is_folder and str(name) in TRANSFORMER_LENS_NAMES:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="HookedTransformer is deprecated")
                stock = HookedTransformer.from_pretrained_no_processing(
                    str(name), device=device, tokenizer=tokenizer, **options
                )
            return cls.from_hooked(stock, streams)
        folder = Path(name) if is_folder else fetch(str(name), **options)
        model_class, config = read_config(folder)
        if model_class != cls.__name__:
            raise ValueError(
                f"{folder} holds a {model_class}; load it with that class, not {cls.__name__}"
            )
        try:
            cfg = cls.config_class.from_json(config)
            cfg.device = device or present_device(str(cfg.device))
            wanted, cfg.init_weights = cfg.init_weights, False
            model = cls(cfg, tokenizer=read_tokenizer(folder) if tokenizer is None else tokenizer)
        except (TypeError, ValueError, AssertionError) as error:
            raise ValueError(f"{folder / 'config.json'}: {error}") from None
        load_parameters(dict(model.named_parameters()), folder / "model.safetensors")
        model.cfg.init_weights = wanted
        model.eval()  # no dropout, where there is any
        return model if streams is None else model.with_streams(streams, share_weights=True)

    def push_to_hub(self, repo_id: str, *, record: dict[str, Any] | None = None, **hub: Any) -> str:
        """Saves to a temporary folder and uploads it to the Hugging Face hub; the commit's address.

        Args:
            hub: token, private, commit_message, ...
        """
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "model"
            self.save_pretrained(folder, record=record)
            return push(folder, repo_id, **hub)


def check_return_type(return_type: str | None) -> None:
    """Raises ValueError unless ``return_type`` is None, "logits", "loss" or "both"."""
    if return_type not in (None, "logits", "loss", "both"):
        raise ValueError(
            f"return_type must be None, 'logits', 'loss' or 'both'; got {return_type!r}"
        )


def _mixed_like(stream: AttentionStream) -> AttentionStream:
    return replace(stream, layers=None, detach=False)
