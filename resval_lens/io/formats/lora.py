"""LoRA adapters of peft, merged into the model of transformers that they were trained on.

    W' = W + s · B A      A [r, in], B [out, r]; s = α / r, or α / r^½ where ``use_rslora``

W is a projection's weight, [out, in]; of a Conv1D (GPT-2) it is [in, out], and (B A)ᵀ is added.
Which modules are adapted, and with which r, say the adapter's weights; α is ``lora_alpha``, or the
module's in ``alpha_pattern``. Products are taken in float32 and rounded once, in the sum.

Source: arXiv 2106.09685, rsLoRA arXiv 2312.03732; files as https://github.com/huggingface/peft
writes them. What else a configuration of it asks for (DoRA, modules that were saved whole, biases,
starts that change W) is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resval_lens.checks import is_number
from resval_lens.io.files import read_json
from resval_lens.io.formats.format import NO_SETTINGS, Converted, Format, Settings
from resval_lens.io.formats.hugging_face import (
    HuggingFaceFolder,
    converted_from_hf,
    folder_tokenizer,
)
from resval_lens.io.formats.state import State, read_safetensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
STARTS = (True, False, "gaussian")
"""``init_lora_weights`` that leave W as it was."""
_READ = {
    "alpha_pattern", "base_model_name_or_path", "lora_alpha", "peft_type", "rank_pattern", "r",
    "revision", "use_rslora",
}  # fmt: skip
_WITHOUT_EFFECT = {
    "auto_mapping", "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern",
    "layers_to_transform", "lora_dropout", "megatron_core", "peft_version", "qalora_group_size",
    "target_modules", "task_type",
}  # fmt: skip


class LoRAFolder(Format):
    """A folder with an adapter of peft; its model is where ``base_model_name_or_path`` says."""

    name = f"a LoRA adapter of peft ({CONFIG}, {WEIGHTS})"

    def holds(self, path: Path) -> bool:
        return (path / CONFIG).is_file()

    def read(
        self,
        path: Path,
        dtype: torch.dtype,
        device: str,
        tokenizer: Any = None,
        settings: Settings = NO_SETTINGS,
    ) -> Converted:
        content = _config(path)
        if not (path / WEIGHTS).is_file():
            raise ValueError(f"{path} holds no {WEIGHTS}; pickles could run code, and are not read")
        tensors = read_safetensors([path / WEIGHTS], "an adapter's weights")
        state = State(
            {name.removeprefix(PREFIX): x for name, x in tensors.items()}, str(path), torch.float32
        )
        base = _base(path, content)
        model = HuggingFaceFolder().model(base, dtype)
        merge(model, state, content)
        if tokenizer is None:
            tokenizer = folder_tokenizer(path) or folder_tokenizer(base)
        return converted_from_hf(model.to(device), tokenizer, source=str(path))


@torch.no_grad()
def merge(model: Any, state: State, content: Mapping[str, Any]) -> None:
    """Adds an adapter to the weights of a model of transformers, in place.

    Args:
        state: A and B of each module, by its name in the model: ``….lora_A.weight``.
        content: the adapter's configuration.

    Raises:
        ValueError: weights that are not of this model or not of LoRA, by name; a module whose
            weight is the embedding's, too.
    """
    embedding = model.get_input_embeddings().weight
    modules = dict(model.named_modules())
    adapted = [name for name in state if name.endswith(".lora_A.weight")]
    if not adapted:
        raise ValueError(f"{state.source} adapts nothing: its weights have no lora_A")
    for name in adapted:
        module = name.removesuffix(".lora_A.weight")
        weight, transposed = _projection(modules, module, state.source)
        if weight is embedding:
            raise ValueError(f"{state.source} adapts {module}, whose weight is the embedding's")
        wide, narrow = weight.T.shape if transposed else weight.shape
        rank = state.matrix(name)[0]
        a, b = state.take(name, rank, narrow), state.take(f"{module}.lora_B.weight", wide, rank)
        change = b @ a * _scale(content, module, rank, state.source)
        change = (change.T if transposed else change).to(weight.device)
        weight.copy_(weight.float() + change)
    state.done()


def _projection(modules: Mapping[str, Any], module: str, source: str) -> tuple[Tensor, bool]:
    """A module's weight, and whether it is [in, out]."""
    from transformers.pytorch_utils import Conv1D

    found = modules.get(module)
    if not isinstance(found, torch.nn.Linear | Conv1D):
        there = "has not" if found is None else f"has as {type(found).__name__}, no projection"
        raise ValueError(f"{source} adapts {module}, which its model {there}")
    return found.weight, isinstance(found, Conv1D)


def _scale(content: Mapping[str, Any], module: str, rank: int, source: str) -> float:
    patterns = content.get("alpha_pattern") or {}
    named = (key for key in patterns if module == key or module.endswith(f".{key}"))
    key = next(named, None)
    alpha: Any = content.get("lora_alpha") if key is None else patterns[key]
    if not is_number(alpha) or not abs(alpha) < float("inf"):
        raise ValueError(f"{source}: lora_alpha of {module} must be a number; got {alpha!r}")
    return float(alpha / (rank**0.5 if content.get("use_rslora") else rank))


def _config(path: Path) -> dict[str, Any]:
    """The configuration of an adapter that can be merged."""
    content = read_json(path / CONFIG, "an adapter's configuration")
    if not isinstance(content, dict):
        raise ValueError(f"{path / CONFIG} is not an adapter's configuration: no object")

    def refused(name: str) -> ValueError:
        return ValueError(
            f"{path}: {name}={content.get(name)!r} is not merged here; peft's merge_and_unload() "
            "gives a model whose save_pretrained folder can be loaded"
        )

    if content.get("peft_type") != "LORA":
        raise refused("peft_type")
    if content.get("bias", "none") != "none":
        raise refused("bias")
    if content.get("init_lora_weights", True) not in STARTS:
        raise refused("init_lora_weights")
    passed = {*_READ, *_WITHOUT_EFFECT, "bias", "init_lora_weights"}
    for name in sorted(set(content) - passed):
        if content[name]:
            raise refused(name)
    for key in (patterns := content.get("alpha_pattern") or {}):
        if not isinstance(patterns, dict) or not re.fullmatch(r"[\w.]+", key):
            raise refused("alpha_pattern")
    return content


def _base(path: Path, content: Mapping[str, Any]) -> Path:
    """The folder of the adapter's model: as it is named, or in the cache of the hub."""
    from huggingface_hub import snapshot_download

    name = content.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{path / CONFIG} names no model: base_model_name_or_path={name!r}")
    base = Path(name)
    if not base.exists():
        try:
            revision = content.get("revision")
            base = Path(snapshot_download(name, revision=revision, local_files_only=True))
        except Exception:  # no id of the hub, or not in its cache
            raise ValueError(
                f"{path} adapts {name!r}, which is not on this machine: write where it is as "
                f"base_model_name_or_path in {path / CONFIG}"
            ) from None
    if not HuggingFaceFolder().holds(base) or (base / CONFIG).is_file():
        raise ValueError(
            f"{path} adapts {base}, which is not {HuggingFaceFolder.name} without an adapter"
        )
    return base
