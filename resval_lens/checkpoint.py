"""Saving and loading models: safetensors, a readable config, and where the weights came from.

A saved model is a folder:

    config.json         the class's name and every field of its configuration
    model.safetensors   the parameters, by TransformerLens's names
    provenance.json     command, versions, git commit, seed, metrics
    tokenizer.json      a language model's tokenizer, if it has one of its own
"""

from __future__ import annotations

import json
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

from resval_lens.files import read_json, read_tensors, write_bytes, write_json, write_tensors
from resval_lens.provenance import provenance
from resval_lens.tasks.text.vocabulary import end_of_text, load_tokenizer

FORMAT = "resval-lens/1"
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
SHIPPED_MODELS = {
    f"stories-small-{name}": Path(__file__).parent / "data" / "lm" / folder / "model"
    for name, folder in (
        ("classic", "stories-small-classic-seed0"),
        ("values", "stories-small-v-raw-seed0"),
    )
}
"""Language models that ship with the package, by name: a pair of one seed."""
FILES = (
    "config.json", "model.safetensors", "provenance.json", "tokenizer.json", "tokenizer_config.json"
)  # fmt: skip


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
            off.
    """
    folder = Path(folder)
    if folder.exists():
        _check_replaceable(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        new.chmod(0o755)
        write_json(
            new / "config.json",
            {"format": FORMAT, "model_class": model_class, "config": json.loads(config)},
        )
        write_tensors(new / "model.safetensors", parameters)
        write_json(new / "provenance.json", dict(record or provenance()))
        for name, content in (tokenizer or {}).items():
            write_bytes(new / name, content.encode())
        if folder.exists():
            old = new.with_name(f"{new.name}.old")
            folder.rename(old)
            try:
                new.rename(folder)
            except BaseException:
                old.rename(folder)
                raise
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
    path = folder / "config.json"
    content = read_json(path, f"the configuration of a saved model ({FORMAT})")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path}: expected format {FORMAT!r}; got {found!r}")
    return str(content.get("model_class")), json.dumps(content.get("config"))


def present_device(saved: str) -> str:
    """``saved`` if this machine has such a device, else ``"cpu"``."""
    kind = saved.partition(":")[0]
    backend: Any = getattr(torch, kind, None)  # torch.cuda, torch.mps, torch.xpu
    available = kind == "cpu" or (hasattr(backend, "is_available") and backend.is_available())
    return saved if available else "cpu"


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast | None:
    """The tokenizer of a saved model, or None if it has none of its own.

    Raises:
        ValueError: a damaged file, or a tokenizer without an end of text.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    tokenizer = load_tokenizer(path)
    special: dict[str, str] = {}
    if (folder / "tokenizer_config.json").is_file():
        content = read_json(folder / "tokenizer_config.json", "a tokenizer's special tokens")
        special = {name: str(content[name]) for name in SPECIAL_TOKENS if content.get(name)}
    if "eos_token" not in special:
        special["eos_token"] = str(tokenizer.id_to_token(end_of_text(tokenizer)))
    for name in ("bos_token", "pad_token"):  # as TransformerLens sets them
        special.setdefault(name, special["eos_token"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, name_or_path=str(folder), **special)


def tokenizer_files(tokenizer: Any) -> dict[str, str]:
    """What :func:`read_tokenizer` reads back, by file name; nothing without a fast tokenizer."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return {}
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["padding"] = content["truncation"] = None  # settings of the moment
    if not (content["post_processor"] or {}).get("special_tokens", True):
        content["post_processor"] = None  # transformers puts one that adds nothing
    special = {name: str(getattr(tokenizer, name)) for name in SPECIAL_TOKENS
               if getattr(tokenizer, name) is not None}  # fmt: skip
    return {
        "tokenizer.json": Tokenizer.from_str(json.dumps(content)).to_str(),
        "tokenizer_config.json": json.dumps(special, indent=2) + "\n",
    }


def load_parameters(parameters: Mapping[str, Tensor], path: Path) -> None:
    """Loads ``path`` into ``parameters``; every one must be there with its shape, no other.

    Raises:
        ValueError: what is missing, unknown or of another shape or dtype, with the file's name.
    """
    tensors, _ = read_tensors(path, "a saved model's parameters")
    check_parameters(parameters, tensors, path)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def check_parameters(
    wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], path: str | Path
) -> None:
    """Raises ValueError unless ``found`` has the names, shapes and kinds of ``wanted``."""
    missing = sorted(set(wanted) - set(found))
    unknown = sorted(set(found) - set(wanted))
    if missing or unknown:
        parts = [f"lacks {missing[0]}"] if missing else []
        parts += [f"has the unknown {unknown[0]}"] if unknown else []
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

    Only ``FILES`` are fetched. ``hub`` goes to ``huggingface_hub.snapshot_download``
    (revision, token, cache_dir, ...).

    Args:
        known: names that may have been meant.

    Raises:
        ValueError: there is no such model, or the hub does not answer.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, allow_patterns=list(FILES), **hub))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        if constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE is set: it was not asked, and its cache has no such model"
        near = get_close_matches(repo_id, known, n=3, cutoff=0.8)
        meant = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(
            f"no model {repo_id!r}: {meant}It is no folder here, no model that ships or that "
            f"TransformerLens knows, and not to be had from the Hugging Face hub ({reason})"
        ) from error


def push(folder: Path, repo_id: str, **hub: Any) -> str:
    """Uploads a saved model to the Hugging Face hub; the address of the commit."""
    from huggingface_hub import HfApi

    api = HfApi(token=hub.pop("token", None))
    api.create_repo(repo_id, exist_ok=True, private=hub.pop("private", None))
    return str(api.upload_folder(repo_id=repo_id, folder_path=folder, **hub))
