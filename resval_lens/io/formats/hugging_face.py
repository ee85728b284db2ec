"""Models of transformers: objects, folders (safetensors), GGUF files."""

from __future__ import annotations

import copy
import warnings
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.loading_from_pretrained import get_pretrained_state_dict

from resval_lens.io.files import check_plain, check_room, first_line, read_json, tensor_shapes
from resval_lens.io.formats.format import Converted, Format
from resval_lens.io.formats.settings import check_architecture, hooked_config

_REFUSALS = (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError, AttributeError)


def converted_from_hf(
    model: Any,
    tokenizer: Any = None,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    source: str | None = None,
) -> Converted:
    """A causal language model of transformers in TransformerLens's terms; no weight is copied.

    Prompts start with the tokenizer's beginning of text where it puts one there itself.

    Args:
        tokenizer: of the model.
        dtype: to compute in; by default the model's.
        device: to compute on; by default the model's.
        source: what it is, for messages.

    Raises:
        ValueError: no model of transformers, or of an architecture that cannot be converted.
    """
    source = source or type(model).__name__
    if not hasattr(model, "config") or not hasattr(model, "get_input_embeddings"):
        raise ValueError(f"expected a model of transformers; got {type(model).__name__}")
    parameter = next(model.parameters())
    if not getattr(model.config, "architectures", None):  # made from a configuration
        model.config.architectures = [type(model).__name__]
    cfg = hooked_config(
        model.config,
        source,
        dtype=dtype or parameter.dtype,
        device=device or str(parameter.device),
        default_prepend_bos=_leads_with_bos(tokenizer),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = get_pretrained_state_dict("gpt2", cfg, model)  # the name decides nothing here

    def reference(tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        was = model.training
        try:
            logits: Tensor = model.eval()(tokens.to(parameter.device), use_cache=False).logits
        finally:
            model.train(was)
        return logits

    return Converted(source, cfg, state, _with_padding(tokenizer), reference)


class HuggingFaceFolder(Format):
    """A folder that transformers' ``save_pretrained`` wrote."""

    name = "a Hugging Face folder (config.json, *.safetensors)"

    def holds(self, path: Path) -> bool:
        if not (path / "config.json").is_file():
            return False
        try:
            content = read_json(path / "config.json", "a model's configuration")
        except ValueError:  # what is wrong with it says whoever reads it
            return False
        return isinstance(content, dict) and "model_type" in content and "format" not in content

    def read(self, path: Path, dtype: torch.dtype, device: str) -> Converted:
        from transformers import AutoConfig

        config = _or_refused(path, AutoConfig.from_pretrained, path, trust_remote_code=False)
        check_architecture(config, str(path))
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise ValueError(
                f"{path} holds no weights as safetensors; others are pickles, which could run "
                "code, and are not read: in transformers, model.save_pretrained writes safetensors"
            )
        numbers = sum(x.numel() for file in files for x in tensor_shapes(file, "weights").values())
        _check_room(numbers, dtype, path)
        return _read(path, path, dtype, device, use_safetensors=True)


class GGUF(Format):
    """A file of llama.cpp; its weights are unpacked to ``dtype``."""

    name = "a .gguf file, or a folder with one"

    def holds(self, path: Path) -> bool:
        return _gguf(path) is not None

    def read(self, path: Path, dtype: torch.dtype, device: str) -> Converted:
        file = _gguf(path)
        assert file is not None
        check_plain(file, "a GGUF file")
        try:
            from gguf import GGUFReader
        except ImportError:
            raise ValueError(f"{file}: reading GGUF files needs gguf: pip install gguf") from None
        content = _or_refused(file, GGUFReader, file)
        _check_room(sum(int(tensor.n_elements) for tensor in content.tensors), dtype, file)
        return _read(file, file.parent, dtype, device, gguf_file=file.name)


def _gguf(path: Path) -> Path | None:
    if path.suffix == ".gguf":
        return path if path.is_file() else None
    found = sorted(path.glob("*.gguf")) if path.is_dir() else []
    return found[0] if len(found) == 1 else None


def _read(path: Path, folder: Path, dtype: torch.dtype, device: str, **options: Any) -> Converted:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options |= {"local_files_only": True, "trust_remote_code": False}
    model = _or_refused(path, AutoModelForCausalLM.from_pretrained, folder, dtype=dtype, **options)
    options.pop("use_safetensors", None)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except _REFUSALS:  # a model without one
        tokenizer = None
    return converted_from_hf(model.to(device), tokenizer, source=str(path))


def _or_refused(path: Path, read: Any, *given: Any, **options: Any) -> Any:
    try:  # bars and reports go to stderr there; what matters is raised
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            return read(*given, **options)
    except _REFUSALS as error:
        raise ValueError(f"{path}: transformers cannot read it ({first_line(error)})") from None


def _check_room(numbers: int, dtype: torch.dtype, path: Path) -> None:
    """Raises ValueError if the original and its conversion are larger than memory together."""
    shown = str(dtype).removeprefix("torch.")
    check_room(2 * numbers * dtype.itemsize, f"{path}: converting {numbers:,} weights in {shown}")


def _leads_with_bos(tokenizer: Any) -> bool:
    if tokenizer is None or tokenizer.bos_token_id is None:
        return False
    return bool(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])


def _with_padding(tokenizer: Any) -> Any:
    """The tokenizer; without a padding token, a copy that pads with its end of text."""
    if tokenizer is None or tokenizer.pad_token is not None or tokenizer.eos_token is None:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
