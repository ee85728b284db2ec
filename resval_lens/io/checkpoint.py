"""Saving and loading models: safetensors, a readable config, and where the weights came from.

A saved model is a folder:

    config.json         the class's name, every field of its configuration, and SHA-256 of the rest
    model.safetensors   the parameters, by TransformerLens's names
    provenance.json     command, versions, git commit, seed, metrics
    tokenizer.json      a language model's tokenizer; tokenizer_config.json its special tokens

All of it is read as data: nothing in a folder is run, and no name in it is looked up elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from resval_lens.io.files import (
    DATA,
    check_finite,
    check_seal,
    check_small,
    digest,
    first_line,
    note,
    read_json,
    read_tensors,
    write_bytes,
    write_json,
    write_sealed,
    write_tensors,
)
from resval_lens.io.provenance import provenance
from resval_lens.io.tokenizers import end_of_text, load_tokenizer

FORMAT = "resval-lens/1"
CONFIG_KEYS = ("format", "model_class", "config", "sha256")
SPECIAL_TOKENS = (
    "bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"
)  # fmt: skip
TOKENIZER_SETTINGS: dict[str, tuple[Any, ...]] = {
    "padding_side": ("left", "right"),
    "truncation_side": ("left", "right"),
    "clean_up_tokenization_spaces": (False, True),
    "split_special_tokens": (False, True),
}
"""What a tokenizer does beside its tokenizer.json, and the values there are."""
CHAT = "chat_template"
SHIPPED_MODELS = {
    f"stories-small-{name}": DATA / "lm" / folder / "model"
    for name, folder in (
        ("classic", "stories-small-classic-seed0"),
        ("values", "stories-small-v-raw-seed0"),
    )
}
"""Language models that ship with the package, by name: a pair of one seed."""
FILES = (
    "config.json", "model.safetensors", "provenance.json", "tokenizer.json", "tokenizer_config.json"
)  # fmt: skip


HUB_FILES = (
    "*.json", "*.safetensors", "tokenizer.model", "merges.txt", "vocab.txt", "model_[0-9]*.pt",
    "tokenizer.pkl",
)  # fmt: skip
NOT_OURS = ("*/*", "consolidated*")  # copies of the weights in other formats


def save_model(
    folder: str | Path,
    model_class: str,
    config: str,
    parameters: Mapping[str, Tensor],
    record: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    tokenizer: Mapping[str, str] | None = None,
) -> None:
    """Saves a model into ``folder``, whole or not at all.

    Args:
        model_class: the class's name, by which it is known when it is loaded.
        config: the configuration as JSON.
        record: provenance to keep beside the weights; this process's by default.
        overwrite: replace a model that is already there.
        tokenizer: the tokenizer's files, by name (:func:`tokenizer_files`).

    Raises:
        ValueError: the folder holds something, and it is not a saved model or ``overwrite`` is
            off; a parameter that is not finite.
    """
    folder = Path(folder)
    check_finite(parameters, folder)
    if folder.exists():
        _check_replaceable(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        new.chmod(0o755)
        write_tensors(new / "model.safetensors", parameters)
        write_json(new / "provenance.json", dict(record or provenance()))
        for name, content in (tokenizer or {}).items():
            write_bytes(new / name, content.encode())
        write_sealed(
            new / "config.json",
            {
                "format": FORMAT,
                "model_class": model_class,
                "config": json.loads(config),
                "sha256": {path.name: digest(path) for path in sorted(new.iterdir())},
            },
        )
        if folder.exists():
            old = new.with_name(f"{new.name}.old")
            folder.rename(old)
            try:
                new.rename(folder)
            except BaseException:
                old.rename(folder)
                raise
            if old.is_symlink():  # what it leads to is not this model's
                old.unlink()
            else:
                shutil.rmtree(old)
        else:
            new.rename(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _check_replaceable(folder: Path, overwrite: bool) -> None:
    """Raises ValueError unless ``folder`` is empty, or nothing but a model to overwrite."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    try:
        read_config(folder)
    except (ValueError, OSError):
        raise ValueError(f"{folder} exists and is not a saved model; nothing was written") from None
    others = sorted({path.name for path in folder.iterdir()} - set(FILES))
    if others:
        raise ValueError(
            f"{folder} holds {others[0]} beside a saved model; nothing was written, so that it is "
            "not lost"
        )
    if not overwrite:
        raise ValueError(f"{folder} holds a saved model; pass overwrite=True to replace it")


def read_config(folder: Path) -> tuple[str, str]:
    """(class name, configuration as JSON text) of a saved model.

    Raises:
        ValueError: no readable config.json of this format.
    """
    content = _config(folder)
    try:
        return str(content.get("model_class")), json.dumps(content.get("config"))
    except RecursionError:
        raise ValueError(f"{folder / 'config.json'}: nested too deeply") from None


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    content = read_json(path, f"the configuration of a saved model ({FORMAT})")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path}: expected format {FORMAT!r}; got {found!r}")
    return check_seal(path, content, CONFIG_KEYS)


def check_files(folder: Path) -> None:
    """Raises ValueError, naming it, for a file that is not as the saved model's config.json says.

    A file that an older version wrote without checksums is taken as it is.
    """
    known = _config(folder).get("sha256", {})
    if not isinstance(known, dict) or not set(known) <= set(FILES):
        raise ValueError(f"{folder / 'config.json'} is damaged: expected a SHA-256 of each file")
    for name, expected in known.items():
        if name.endswith(".json"):  # a sparse file of any size would be read for ever
            check_small(folder / name, "a file of a saved model")
        if digest(folder / name) != expected:
            raise ValueError(f"{folder / name} is damaged: its SHA-256 is not {expected}")


def present_device(saved: str) -> str:
    """``saved`` if this machine has such a device, else ``"cpu"``."""
    kind, _, number = saved.partition(":")
    backend: Any = getattr(torch, kind) if kind in ("cuda", "mps", "xpu") else None
    if backend is None or not backend.is_available():
        return "cpu"
    return saved if not number or number in map(str, range(backend.device_count())) else kind


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast | None:
    """The tokenizer of a saved model as it was saved, or None if it has none.

    Without a tokenizer_config.json its end of text is BOS, EOS and padding, as TransformerLens has
    it. Nothing but the two files is read, and nothing is added to the vocabulary.

    Raises:
        ValueError: a damaged file, or a tokenizer without an end of text.
    """
    path = folder / "tokenizer.json"
    if not os.path.lexists(path):
        return None
    backend = load_tokenizer(path)
    backend.no_padding()
    backend.no_truncation()
    path = folder / "tokenizer_config.json"
    special: dict[str, str] = {}
    settings: dict[str, Any] = {}
    if os.path.lexists(path):
        content = read_json(path, "a tokenizer's special tokens")
        if not isinstance(content, dict):
            raise ValueError(f"{path} is not a tokenizer's special tokens: no JSON object")
        special = {name: content[name] for name in SPECIAL_TOKENS if content.get(name) is not None}
        settings = {name: content[name] for name in TOKENIZER_SETTINGS if name in content}
        if content.get(CHAT) is not None:
            special[CHAT] = content[CHAT]
        for name, value in (special | settings).items():
            among = TOKENIZER_SETTINGS.get(name)
            if not (isinstance(value, str) if among is None else value in among):
                raise ValueError(f"{path}: {name} must be {among or 'a text'}; got {value!r}")
    else:
        end = str(backend.id_to_token(end_of_text(backend)))
        special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), end)
    # A name here, or special tokens, would let transformers look elsewhere, or add tokens.
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **settings)
    tokenizer.name_or_path = str(folder)
    for name, token in special.items():
        setattr(tokenizer, name, token)
    return tokenizer


def tokenizer_files(tokenizer: Any) -> dict[str, str]:
    """What :func:`read_tokenizer` reads back, by file name; nothing without a fast tokenizer."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        if tokenizer is not None:
            note(
                f"a {type(tokenizer).__name__} cannot be saved as tokenizer.json; pass tokenizer= "
                "to from_pretrained when the model is loaded"
            )
        return {}
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["padding"] = content["truncation"] = None  # settings of the moment
    if content["post_processor"] == _NOTHING_ADDED:
        content["post_processor"] = None
    settings = {name: str(getattr(tokenizer, name)) for name in SPECIAL_TOKENS
                if getattr(tokenizer, name) is not None}  # fmt: skip
    settings |= {name: getattr(tokenizer, name) for name in TOKENIZER_SETTINGS}
    if isinstance(tokenizer.chat_template, str):
        settings[CHAT] = tokenizer.chat_template
    return {
        "tokenizer.json": Tokenizer.from_str(json.dumps(content)).to_str(),
        "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
    }


def _sequence(name: str, type_id: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": type_id}}


_NOTHING_ADDED = {  # what transformers puts where there is no post-processor
    "type": "TemplateProcessing",
    "single": [_sequence("A", 0)],
    "pair": [_sequence("A", 0), _sequence("B", 1)],
    "special_tokens": {},
}


def load_parameters(parameters: Mapping[str, Tensor], path: Path) -> None:
    """Loads ``path`` into ``parameters``; every one must be there with its shape, no other.

    Raises:
        ValueError: what is missing, unknown, of another shape or dtype or not finite, with the
            file's name.
    """
    tensors, _ = read_tensors(path, "a saved model's parameters")
    tensors = fitting(parameters, tensors, path)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def fitting(
    wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], path: str | Path
) -> dict[str, Tensor]:
    """``found`` in the dtypes of ``wanted``.

    Raises:
        ValueError: other names or shapes; an entry that is not finite, or not in its new dtype.
    """
    check_parameters(wanted, found, path)
    check_finite(found, path)
    fitted = {name: x.to(wanted[name].dtype) for name, x in found.items()}
    for name, x in fitted.items():
        if x.dtype != found[name].dtype and not bool(x.isfinite().all()):
            raise ValueError(f"{path}: {name} holds numbers too large for {x.dtype}")
    return fitted


def check_parameters(
    wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], path: str | Path
) -> None:
    """Raises ValueError unless ``found`` has the names, shapes and kinds of ``wanted``."""
    missing = sorted(set(wanted) - set(found))
    unknown = sorted(set(found) - set(wanted))
    if missing or unknown:
        parts = [f"lacks {missing[0]}"] if missing else []
        parts += [f"has the unknown {unknown[0]!r}"] if unknown else []
        raise ValueError(
            f"{path}: {' and '.join(parts)} ({len(wanted)} parameters expected, {len(found)} found)"
        )
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            raise ValueError(
                f"{path}: {name} must have shape {list(tensor.shape)}; "
                f"got {list(found[name].shape)}"
            )
        if found[name].is_floating_point() != tensor.is_floating_point():
            raise ValueError(f"{path}: {name} must be {tensor.dtype}; got {found[name].dtype}")


def fetch(repo_id: str, known: Collection[str] = (), **hub: Any) -> Path:
    """The folder of a model on the Hugging Face hub, downloaded or cached.

    Only ``HUB_FILES`` are fetched: a model of ours, of transformers or of nanochat. ``hub`` goes to
    ``huggingface_hub.snapshot_download`` (revision, token, cache_dir, ...).

    Args:
        known: names that may have been meant.

    Raises:
        ValueError: there is no such model, or the hub does not answer.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                repo_id, allow_patterns=list(HUB_FILES), ignore_patterns=list(NOT_OURS), **hub
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        if constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE is set: it was not asked, and its cache has no such model"
        near = get_close_matches(repo_id, known, n=3, cutoff=0.8)
        meant = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(
            f"no model {repo_id!r}: {meant}It is not a folder here, not a shipped model, not "
            f"known to TransformerLens, and the Hugging Face hub does not give it ({reason})"
        ) from error


def push(folder: Path, repo_id: str, **hub: Any) -> str:
    """Uploads a saved model to the Hugging Face hub; the address of the commit."""
    from huggingface_hub import HfApi

    api = HfApi(token=hub.pop("token", None))
    api.create_repo(repo_id, exist_ok=True, private=hub.pop("private", None))
    return str(api.upload_folder(repo_id=repo_id, folder_path=folder, **hub))
