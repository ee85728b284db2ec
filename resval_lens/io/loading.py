"""Models on disk and from elsewhere: saved, loaded, converted from other formats."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from accelerate import init_empty_weights
from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

from resval_lens.config import ResValConfig
from resval_lens.host import HookedTransformer
from resval_lens.io.checkpoint import (
    FILES,
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
from resval_lens.io.conversion import ONE_BY_ONE, WeightConversion
from resval_lens.io.files import bytes_of, check_room, first_line, note, tensor_shapes
from resval_lens.io.formats import FORMATS, format_of
from resval_lens.io.formats.bridge import named_bridge
from resval_lens.io.formats.format import Settings
from resval_lens.io.placing import DeviceMap, Placing, refuse_waiting
from resval_lens.streams import StreamsLike, parse_streams, shorthand

if TYPE_CHECKING:
    from resval_lens.transformer import ResValTransformer

PROCESSING = (
    "fold_ln",
    "center_writing_weights",
    "center_unembed",
    "fold_value_biases",
    "refactor_factored_attn_matrices",
)
TRANSFORMER_LENS_NAMES = frozenset(OFFICIAL_MODEL_NAMES).union(*MODEL_ALIASES.values())


def is_saved_model(path: Path) -> bool:
    """Whether a folder is meant as what ``save_pretrained`` writes, damaged or not."""
    return format_of(path) is None and any((path / name).is_file() for name in FILES)


def _refuse_settings(name: str | Path, settings: Settings | None) -> None:
    for each in settings or {}:
        raise ValueError(f"{name} takes no setting {each!r}: its own say everything")


class Loading(WeightConversion):
    """How a ResValTransformer is saved and loaded."""

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
        refuse_waiting(self, "save_pretrained")
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
        dtype: torch.dtype | None = None,
        device_map: DeviceMap | None = None,
        max_memory: Mapping[int | str, int | str] | None = None,
        settings: Settings | None = None,
        **options: Any,
    ) -> Self:
        """A model from a folder, a file, the Hugging Face hub, or one that TransformerLens knows.

        Nothing is processed (folded, centred) unless it is asked for. What transformers or
        TransformerLens convert has no streams of its own, models with a value residual have theirs;
        ``streams="v(mix=head, carried=0)"`` grafts one that carries nothing until it is trained or
        set.

        Args:
            name: a folder that :meth:`save_pretrained` wrote; a model in one of
                :data:`~resval_lens.io.formats.FORMATS` (a Hugging Face folder, a .gguf file, a
                checkpoint of nanoGPT or nanochat), of which nothing is fetched, run or unpickled;
                the hub id of a folder; a name of TransformerLens; one of
                :data:`~resval_lens.io.checkpoint.SHIPPED_MODELS` ("stories-small-classic",
                "stories-small-values").
            streams: run the weights with these streams instead of those they were saved with.
            tokenizer: for the loaded model; by default its own.
            device: where to run; by default the device it was saved on if there is one here, else
                the CPU.
            dtype: to compute in; by default as it was saved by :meth:`save_pretrained`, and
                float32 of any other.
            device_map: for a model larger than its device, analysed and not trained: where each
                layer's weights are, by its number, a device, ``"cpu"`` or ``"disk"``, the rest on
                ``device`` (by default the first GPU); ``"auto"``: the layers in turn on the
                device, on further GPUs, in the CPU's memory, in the model's file. From there they
                are fetched for each run (:mod:`~resval_lens.io.placing`).
            max_memory: with ``device_map="auto"``, bytes, or ``"20GiB"``, by number of GPU and
                ``"cpu"``; by default nine tenths of what is free.
            settings: what a model's files in another format leave open, by name
                (:attr:`~resval_lens.io.formats.Format.settings`).
            options: for ``huggingface_hub.snapshot_download`` (revision, token, ...), or for
                ``HookedTransformer.from_pretrained_no_processing`` (TransformerLens 4:
                ``TransformerBridge.boot_transformers``); processing that it is asked for
                (``fold_ln=True``, ...) is :meth:`process_weights_`, after the conversion.

        Raises:
            ValueError: files that are missing, damaged, of another shape or class, by name; an
                architecture that cannot be converted, or whose logits are not the original's; a
                setting that a model does not take, or needs; a model larger than memory; a
                processing step that streams do not survive; a ``device_map`` that cannot be.
        """
        known = (*SHIPPED_MODELS, *TRANSFORMER_LENS_NAMES)
        path = Path(name)
        if not path.exists():
            path = SHIPPED_MODELS.get(str(name), path)
        if path.exists() and options:
            raise ValueError(
                f"{next(iter(options))}= is for models from the hub; {path} is on this machine"
            )
        if max_memory is not None and device_map != "auto":
            raise ValueError(f"max_memory is for device_map='auto'; got {device_map!r}")
        if device_map is not None:
            first = "cuda:0" if torch.cuda.is_available() else "cpu"
            placing = Placing(present_device(device or first), device_map, max_memory)
            return cls._placed(name, path, streams, tokenizer, dtype, placing, settings, options)
        if not path.exists() and str(name) in TRANSFORMER_LENS_NAMES:
            _refuse_settings(name, settings)
            options |= {} if dtype is None else {"dtype": dtype}
            return cls._from_transformer_lens(str(name), streams, tokenizer, device, options)
        if not path.exists():
            path = fetch(str(name), known, **options)
        if is_saved_model(path):
            _refuse_settings(path, settings)
            model = cls._from_folder(path, tokenizer, device)
            model = model if dtype is None else model.to(dtype, print_details=False)
            return model if streams is None else model.with_streams(streams, share_weights=True)
        found = format_of(path)
        if found is None:
            kinds = "; ".join(each.name for each in FORMATS)
            raise ValueError(
                f"{path} holds no model that can be loaded; expected a folder that save_pretrained "
                "wrote (of a HookedTransformer: ResValTransformer.from_hooked(model).save_"
                f"pretrained(folder)), or {kinds}"
            )
        where = present_device("cpu" if device is None else device)
        found.check_settings(path, settings or {})
        return cls._from_converted(
            found.read(path, dtype or torch.float32, where, tokenizer, settings or {}), streams
        )

    @classmethod
    def _from_transformer_lens(
        cls,
        name: str,
        streams: StreamsLike,
        tokenizer: Any,
        device: str | None,
        options: dict[str, Any],
    ) -> Self:
        steps = {step: options.pop(step, False) for step in PROCESSING}
        if hasattr(HookedTransformer, "from_pretrained_no_processing"):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="HookedTransformer is deprecated")
                stock = HookedTransformer.from_pretrained_no_processing(
                    name, device=device, tokenizer=tokenizer, **options
                )
            model = cls.from_hooked(stock, streams, unprocessed=True, share_weights=True)
        else:  # TransformerLens 4
            bridge = named_bridge(name, device=device, tokenizer=tokenizer, **options)
            model = cls.from_bridge(bridge, streams=streams)
        if any(steps.values()):  # through the streams, or refused
            model.process_weights_(**steps)
        return model

    @classmethod
    def _placed(
        cls,
        name: str | Path,
        path: Path,
        streams: StreamsLike,
        tokenizer: Any,
        dtype: torch.dtype | None,
        where: Placing,
        settings: Settings | None,
        options: dict[str, Any],
    ) -> Self:
        """:meth:`from_pretrained` with a ``device_map``."""
        kind = cast("type[ResValTransformer]", cls)
        if "embed" in kind.without:
            raise ValueError(f"device_map is for language models; {kind.kind} fits on one device")
        if not path.exists() and str(name) not in TRANSFORMER_LENS_NAMES:
            path = fetch(str(name), (*SHIPPED_MODELS, *TRANSFORMER_LENS_NAMES), **options)
            options = {}
        if not is_saved_model(path):
            source = path if path.exists() else name
            model = cls.from_pretrained(
                source, streams=streams, tokenizer=tokenizer, device="cpu", dtype=dtype,
                settings=settings, **options,
            )  # fmt: skip
            where.apply(cast("ResValTransformer", model))
            return model
        _refuse_settings(path, settings)
        if streams is not None:
            raise ValueError(
                f"streams={shorthand(parse_streams(streams))!r} with a device_map: load the model "
                "with them and without it, save_pretrained it, and load that folder"
            )
        return cls._from_folder(path, tokenizer, where.device, dtype, where)

    @classmethod
    def _from_folder(
        cls,
        folder: Path,
        tokenizer: Any,
        device: str | None,
        dtype: torch.dtype | None = None,
        where: Placing | None = None,
    ) -> Self:
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
            raise ValueError(f"{folder / 'config.json'}: {first_line(error)}") from None
        cls.check_size(cfg, weights, folder / "config.json")
        check_files(folder)  # now that the weights are known to be no larger than they should be
        try:
            if where is None:
                model = cls(cfg, tokenizer=tokenizer)
            else:
                cfg.dtype = dtype or cfg.dtype
                with init_empty_weights(include_buffers=False):
                    model = cls(cfg, tokenizer, move_to_device=False)
        except Exception as error:
            raise ValueError(f"{folder / 'config.json'}: {first_line(error)}") from None
        if tokenizer is None:
            model._use_tokenizer(read_tokenizer(folder))
            if model.tokenizer is None and elsewhere is not None:
                note(
                    f"{folder} names its tokenizer, {elsewhere!r}, and holds none; it was not "
                    "looked for: pass tokenizer="
                )
        if where is None:
            load_parameters(dict(model.named_parameters()), weights)
        else:
            where.apply(cast("ResValTransformer", model), weights)
        model.cfg.init_weights = wanted
        model.eval()  # no dropout, where there is any
        return model

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
            for name in ONE_BY_ONE:
                if (getattr(cfg, name, None) or 0) > len(found):
                    raise ValueError(f"{name}={getattr(cfg, name)}, for {len(found)} parameters")
            model = cls._without_memory(cfg)
        except Exception as error:
            raise ValueError(f"{source}: {first_line(error)}") from None
        check_parameters(dict(model.named_parameters()), found, weights)
        tables = f"{source}: what a model of n_ctx={cfg.n_ctx} keeps in tables"
        check_room(bytes_of(model.buffers()), tables)

    def push_to_hub(self, repo_id: str, *, record: dict[str, Any] | None = None, **hub: Any) -> str:
        """Saves to a temporary folder and uploads it to the Hugging Face hub; the commit's address.

        Args:
            hub: token, private, commit_message, ...
        """
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "model"
            self.save_pretrained(folder, record=record)
            return push(folder, repo_id, **hub)
