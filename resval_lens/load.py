"""Any model by name."""

from __future__ import annotations

from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path

import torch

from resval_lens.config import ResValConfig
from resval_lens.io.checkpoint import SHIPPED_MODELS, read_config
from resval_lens.io.formats import format_of
from resval_lens.io.formats.format import Settings
from resval_lens.io.formats.hugging_face import HuggingFaceFolder
from resval_lens.io.loading import TRANSFORMER_LENS_NAMES, is_saved_model
from resval_lens.io.placing import DeviceMap
from resval_lens.lens.weights import surviving_steps
from resval_lens.models.classifier import ICLClassifier
from resval_lens.streams import StreamsLike
from resval_lens.training.icl_run import ICLRun
from resval_lens.training.recorded import RecordedRun, load_run, load_runs
from resval_lens.training.run_folder import read_record, trained_model
from resval_lens.transformer import ResValTransformer


@dataclass(frozen=True)
class Loaded:
    """A model, the name it was asked for by, and a classifier's training run."""

    name: str
    model: ResValTransformer
    run: RecordedRun[ICLRun] | None = None


@dataclass(frozen=True)
class LoadOptions:
    """What :func:`load_model` takes beside a model's name."""

    streams: StreamsLike = None
    device: str | None = None
    dtype: torch.dtype | None = None
    fold: bool = False
    device_map: DeviceMap | None = None
    settings: Settings | None = None

    def load(self, name: str | Path) -> Loaded:
        """The model of that name."""
        return load_model(name, **{each.name: getattr(self, each.name) for each in fields(self)})


AS_SAVED = LoadOptions()
"""Weights as they were saved."""


def shipped_classifiers() -> dict[str, RecordedRun[ICLRun]]:
    """The first run of each variant that ships with a trained model, by the variant's name."""
    found: dict[str, RecordedRun[ICLRun]] = {}
    for recorded in load_runs(ICLRun):
        if recorded.has_model:
            found.setdefault(recorded.run.name, recorded)
    return found


def is_classifier_run(folder: Path) -> bool:
    """Whether ``folder`` holds a training run of a two-layer classifier."""
    return (folder / "run.json").is_file() and "task" in read_record(folder)["run"]


def load_model(
    name: str | Path,
    *,
    streams: StreamsLike = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    fold: bool = False,
    device_map: DeviceMap | None = None,
    settings: Settings | None = None,
) -> Loaded:
    """A model by name, and the training run of a classifier.

    Args:
        name: of a model that ships: a language model (``SHIPPED_MODELS``) or a classifier
            (:func:`shipped_classifiers`); the folder of a saved model or of a training run; a
            model in another format (:data:`~resval_lens.io.formats.FORMATS`); a name that
            TransformerLens knows, or of the Hugging Face hub (user/name).
        streams: run the weights with these streams instead of those they were saved with.
        device: where it runs; by default the device it was saved on if there is one here; "auto":
            as ``device_map="auto"``.
        dtype: to compute in (:meth:`~resval_lens.ResValTransformer.from_pretrained`).
        fold: process the weights as TransformerLens does by default (fold norms, centre what is
            written to the residual stream and the logits, fold value biases), right through the
            streams; without the steps that would change what the model computes: folding norms
            that stand behind a layer (OLMo 2), centring logits under a soft cap (Gemma 2).
        device_map: of a language model that is larger than its device, "auto" or by layer
            (:meth:`~resval_lens.ResValTransformer.from_pretrained`).
        settings: what the files of another format leave open, by name
            (:attr:`~resval_lens.io.formats.Format.settings`).

    Raises:
        ValueError: none of these (near names are suggested); what ``from_pretrained`` refuses; a
            classifier's model without its run, which its test sequences are drawn by; ``fold``
            where streams do not survive it.
    """
    name, path = str(name), Path(name)
    if device == "auto":
        device, device_map = None, "auto"

    def loaded(model: ResValTransformer, run: RecordedRun[ICLRun] | None = None) -> Loaded:
        if fold:
            model.process_weights_(**surviving_steps(model.cfg))
        return Loaded(name, model, run)

    def language_model(source: str | Path) -> Loaded:
        return loaded(
            ResValTransformer.from_pretrained(
                source, streams=streams, device=device, dtype=dtype, device_map=device_map,
                settings=settings,
            )
        )  # fmt: skip

    def classifier(recorded: RecordedRun[ICLRun]) -> Loaded:
        source = trained_model(recorded.folder)
        model = ICLClassifier.from_pretrained(
            source, streams=streams, device=device, dtype=dtype, device_map=device_map,
            settings=settings,
        )  # fmt: skip
        return loaded(model, recorded)

    if is_classifier_run(path):
        return classifier(load_run(path, ICLRun))
    if (path / "run.json").is_file():  # of a language model
        path = trained_model(path)
    if is_saved_model(path):
        if not _is_classifier(path):
            return language_model(path)
        if not is_classifier_run(path.parent):
            raise ValueError(
                f"{name} is a classifier without its training run, which draws the sequences "
                "it is tested on; give the run's folder"
            )
        return classifier(load_run(path.parent, ICLRun))
    if not path.exists() and (path.is_absolute() or name[:1] in (".", "~") or name.count("/") > 1):
        raise ValueError(f"no model {name!r}: there is no such folder or file")
    if path.exists() or name in SHIPPED_MODELS or name in TRANSFORMER_LENS_NAMES or "/" in name:
        return language_model(path if path.exists() else name)
    classifiers = shipped_classifiers()
    if name in classifiers:
        return classifier(classifiers[name])
    known = [*SHIPPED_MODELS, *classifiers]
    here = [each.name for each in Path().iterdir() if each.is_dir()]
    near = get_close_matches(name, [*known, *TRANSFORMER_LENS_NAMES, *here], n=1)
    meant = f"; did you mean {near[0]!r}? There are" if near else "; there are"
    raise ValueError(
        f"no model {name!r}{meant} {', '.join(known)}, the names that TransformerLens knows, like "
        "gpt2, and folders; here is no folder of that name"
    )


def load_config(
    name: str | Path, dtype: torch.dtype | None = None, settings: Settings | None = None
) -> ResValConfig:
    """A model's configuration; of a folder its config.json is enough.

    Whether prompts begin with the beginning of text is left to the tokenizer, which is not read.

    Args:
        name: as in :func:`load_model`; models that are in no folder are loaded to see.
        dtype: to compute in.
        settings: as in :func:`load_model`.

    Raises:
        ValueError: what :func:`load_model` refuses.
    """
    path = Path(name)
    found = format_of(path) if path.exists() and not settings else None
    if isinstance(found, HuggingFaceFolder):
        return ResValConfig.from_hooked(found.config(path, dtype or torch.float32))
    if is_saved_model(path) and not settings:
        cfg = ResValConfig.from_json(read_config(path)[1])
        cfg.dtype = dtype or cfg.dtype
        return cfg
    return load_model(name, dtype=dtype, settings=settings).model.cfg


def _is_classifier(folder: Path) -> bool:
    try:
        return read_config(folder)[0] == "ICLClassifier"
    except ValueError:  # what it is says whoever loads it
        return False
