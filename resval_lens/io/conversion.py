"""Weights in and out of a model: processed, converted, run with other streams, saved, loaded."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES
from transformer_lens.utilities import TypedModuleList

from resval_lens.block import ResValBlock
from resval_lens.config import ResValConfig
from resval_lens.io.checkpoint import (
    SHIPPED_MODELS,
    check_files,
    check_parameters,
    fetch,
    load_parameters,
    present_device,
    push,
    read_config,
    read_tokenizer,
    save_model,
    tokenizer_files,
)
from resval_lens.io.files import check_room, note, tensor_shapes
from resval_lens.lens.caching import StreamCaching
from resval_lens.lens.unembed import TiedUnembed
from resval_lens.lens.weights import (
    check_graft,
    check_processing,
    fold_value_biases_through_streams,
    processing_of,
)
from resval_lens.streams import AttentionStream, StreamsLike

PROCESSING = (
    "fold_ln",
    "center_writing_weights",
    "center_unembed",
    "fold_value_biases",
    "refactor_factored_attn_matrices",
)
_ONE_BY_ONE = ("n_layers", "n_readout_layers", "num_experts")  # of them modules are made
TRANSFORMER_LENS_NAMES = frozenset(OFFICIAL_MODEL_NAMES).union(*MODEL_ALIASES.values())


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
        model: HookedTransformer,
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
            streams: as in ResValConfig; None: those of ``model``, a HookedTransformer has none.
            share_weights: use the same parameter tensors instead of copies.
            unprocessed: value biases were never folded and heads never refactored, though the
                weights look so (:func:`~resval_lens.lens.weights.processing_of`).

        Raises:
            ValueError: streams that processed weights can no longer carry.
        """
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

        One that has a BOS is made anew by its name there, to add it; without a name it stays as it
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
        self,
        folder: str | Path,
        *,
        record: dict[str, Any] | None = None,
        overwrite: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Saves into ``folder``: safetensors, config.json, provenance.json; all or nothing.

        A language model's (fast) tokenizer is saved along, and checksums, so that damage is seen.

        Args:
            record: provenance to keep beside the weights (command, versions, seed, metrics); this
                process's by default.
            dtype: store the weights rounded to this precision; they load as ``cfg.dtype``.

        Raises:
            ValueError: the folder holds something else, or a model and ``overwrite`` is off; a
                weight that is not finite, or that ``dtype`` cannot hold.
        """
        parameters = {name: x.to(dtype or x.dtype) for name, x in self.named_parameters()}
        for name, x in self.named_parameters():
            if parameters[name].isfinite().sum() != x.isfinite().sum():
                raise ValueError(f"{name} has weights too large for {dtype}")
        save_model(
            folder,
            type(self).__name__,
            self.cfg.to_json(),
            parameters,
            record,
            overwrite,
            tokenizer=tokenizer_files(self.tokenizer),
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
            name: a folder that :meth:`save_pretrained` wrote, a hub id of such a folder, a
                TransformerLens model name, or one of
                :data:`resval_lens.io.checkpoint.SHIPPED_MODELS` ("stories-small-classic",
                "stories-small-values").
            streams: run the weights with these streams instead of those they were saved with.
            tokenizer: for the loaded model; by default the one that was saved with it.
            device: where to run; by default the device it was saved on if there is one here.
            options: for ``huggingface_hub.snapshot_download`` (revision, token, ...), or for
                ``HookedTransformer.from_pretrained_no_processing``; processing that it is asked
                for (``fold_ln=True``, ...) is :meth:`process_weights_`, after the conversion.

        Raises:
            ValueError: files that are missing, damaged, of another shape or class, by name; a
                processing step that streams do not survive.
        """
        name = name if Path(name).is_dir() else SHIPPED_MODELS.get(str(name), name)
        is_folder = Path(name).is_dir()
        if is_folder and options:
            raise ValueError(
                f"{next(iter(options))}= is for models from the hub; {name} is a folder"
            )
        if not is_folder and str(name) in TRANSFORMER_LENS_NAMES:
            steps = {step: options.pop(step, False) for step in PROCESSING}
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="HookedTransformer is deprecated")
                stock = HookedTransformer.from_pretrained_no_processing(
                    str(name), device=device, tokenizer=tokenizer, **options
                )
            model = cls.from_hooked(stock, streams, unprocessed=True)
            if any(steps.values()):  # through the streams, or refused
                model.process_weights_(**steps)
            return model
        known = (*SHIPPED_MODELS, *TRANSFORMER_LENS_NAMES)
        folder = Path(name) if is_folder else fetch(str(name), known, **options)
        model_class, config = read_config(folder)
        if model_class != cls.__name__:
            raise ValueError(
                f"{folder} holds a {model_class}; load it with that class, not {cls.__name__}"
            )
        weights = folder / "model.safetensors"
        try:
            cfg = cls.config_class.from_json(config)
            cfg.device = device or present_device(str(cfg.device))
            wanted, cfg.init_weights = cfg.init_weights, False
            elsewhere, cfg.tokenizer_name = cfg.tokenizer_name, None
        except Exception as error:  # a stranger's settings fail in many ways
            raise ValueError(f"{folder / 'config.json'}: {_first_line(error)}") from None
        cls.check_size(cfg, weights, folder / "config.json")
        check_files(folder)  # now that the weights are known to be no larger than they should be
        try:
            model = cls(cfg, tokenizer=tokenizer)
        except Exception as error:
            raise ValueError(f"{folder / 'config.json'}: {_first_line(error)}") from None
        if tokenizer is None:
            model._use_tokenizer(read_tokenizer(folder))
            if model.tokenizer is None and elsewhere is not None:
                note(
                    f"{folder} names its tokenizer, {elsewhere!r}, and holds none; it was not "
                    "looked for: pass tokenizer="
                )
        load_parameters(dict(model.named_parameters()), weights)
        model.cfg.init_weights = wanted
        model.eval()  # no dropout, where there is any
        return model if streams is None else model.with_streams(streams, share_weights=True)

    @classmethod
    def check_size(
        cls, cfg: ResValConfig, weights: Path, source: Path, beside: Collection[str] = ()
    ) -> None:
        """Raises ValueError where ``weights`` is not of the model of ``cfg``; takes no memory.

        Args:
            source: the file that ``cfg`` is from, to name it.
            beside: what ``weights`` may hold beside the parameters.
        """
        found = tensor_shapes(weights, "a saved model's parameters")
        found = {name: x for name, x in found.items() if name not in beside}
        try:
            for name in _ONE_BY_ONE:
                if (getattr(cfg, name, None) or 0) > len(found):
                    raise ValueError(f"{name}={getattr(cfg, name)}, for {len(found)} parameters")
            model = cls._without_memory(cfg)
        except Exception as error:
            raise ValueError(f"{source}: {_first_line(error)}") from None
        check_parameters(dict(model.named_parameters()), found, weights)
        tables = f"{source}: what a model of n_ctx={cfg.n_ctx} keeps in tables"
        check_room(_bytes_of(model.buffers()), tables)

    @classmethod
    def check_memory(cls, cfg: ResValConfig) -> None:
        """Raises ValueError for a model that is larger than this machine's memory."""
        for name in _ONE_BY_ONE:
            number = getattr(cfg, name, None) or 0
            check_room(number * 2**14, f"a model of {name}={number}")  # modules, however narrow
        model = cls._without_memory(cfg)
        size = _bytes_of([*model.parameters(), *model.buffers()])
        check_room(size, f"a model of d_model={cfg.d_model}, n_ctx={cfg.n_ctx}")

    @classmethod
    def _without_memory(cls, cfg: ResValConfig) -> Self:
        shapes = copy.copy(cfg)
        shapes.device, shapes.init_weights = "meta", False
        with torch.device("meta"):
            return cls(shapes)

    def push_to_hub(self, repo_id: str, *, record: dict[str, Any] | None = None, **hub: Any) -> str:
        """Saves to a temporary folder and uploads it to the Hugging Face hub; the commit's address.

        Args:
            hub: token, private, commit_message, ...
        """
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "model"
            self.save_pretrained(folder, record=record)
            return push(folder, repo_id, **hub)


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _mixed_like(stream: AttentionStream) -> AttentionStream:
    return replace(stream, layers=None, detach=False)
