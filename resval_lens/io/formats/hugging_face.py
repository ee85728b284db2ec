"""Models of transformers: objects, folders (safetensors), GGUF files."""

from __future__ import annotations

import warnings
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resval_lens.host import HookedTransformerConfig
from resval_lens.io.extras import needed
from resval_lens.io.files import (
    check_plain,
    check_room,
    first_line,
    note,
    read_json,
    tensor_shapes,
)
from resval_lens.io.formats.bridge import in_the_terms_of_a_bridge
from resval_lens.io.formats.format import (
    NO_SETTINGS,
    Converted,
    Format,
    Settings,
    leads_with_bos,
    with_padding,
)
from resval_lens.io.formats.settings import check_architecture, hooked_config
from resval_lens.io.tokenizers import load_tokenizer

_OF_A_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


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
    cfg, state = in_the_terms_of_a_bridge(
        model,
        source,
        dtype=dtype or parameter.dtype,
        device=device or str(parameter.device),
        default_prepend_bos=leads_with_bos(tokenizer),
    )

    def reference(tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        was = model.training
        try:
            logits: Tensor = model.eval()(tokens.to(parameter.device), use_cache=False).logits
        finally:
            model.train(was)
        return logits

    return Converted(source, cfg, state, with_padding(tokenizer), reference, parameter.dtype)


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

    def config(self, path: Path, dtype: torch.dtype) -> HookedTransformerConfig:
        """The settings of a folder's model, which may lack its weights."""
        found: HookedTransformerConfig = _or_refused(
            path, hooked_config, *self._config(path), dtype=dtype, device="cpu"
        )
        return found

    def _config(self, path: Path) -> tuple[Any, str]:
        """transformers' configuration, and the architecture: one that is converted."""
        from transformers import AutoConfig

        config = _or_refused(path, AutoConfig.from_pretrained, path, trust_remote_code=False)
        named = str((getattr(config, "architectures", None) or [type(config).__name__])[0])
        check_architecture(config, named, str(path))
        return config, named

    def read(
        self,
        path: Path,
        dtype: torch.dtype,
        device: str,
        tokenizer: Any = None,
        settings: Settings = NO_SETTINGS,
    ) -> Converted:
        return _converted(self.model(path, dtype), path, path, device, tokenizer)

    def model(self, path: Path, dtype: torch.dtype) -> Any:
        """The model of transformers in a folder, on the CPU.

        Raises:
            ValueError: as :meth:`read`.
        """
        self._config(path)
        files = weight_files(path)
        numbers = sum(x.numel() for file in files for x in tensor_shapes(file, "weights").values())
        _check_room(numbers, dtype, path)
        return _loaded(path, path, dtype, use_safetensors=True)


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a folder's model, one or several.

    Raises:
        ValueError: there are none.
    """
    parts = sorted(path.glob("model-*-of-*.safetensors"))  # beside other formats' copies
    files = [path / "model.safetensors"] if (path / "model.safetensors").exists() else parts
    if not files:
        raise ValueError(
            f"{path} holds no weights as safetensors; others are pickles, which could run "
            "code, and are not read: in transformers, model.save_pretrained writes safetensors"
        )
    return files


class GGUF(Format):
    """A file of llama.cpp; its weights are unpacked to ``dtype``."""

    name = "a .gguf file, or a folder with one"

    def holds(self, path: Path) -> bool:
        return _gguf(path) is not None

    def read(
        self,
        path: Path,
        dtype: torch.dtype,
        device: str,
        tokenizer: Any = None,
        settings: Settings = NO_SETTINGS,
    ) -> Converted:
        file = _gguf(path)
        assert file is not None
        check_plain(file, "a GGUF file")
        needed("gguf", "gguf", str(file))
        from gguf import GGUFReader

        content = _or_refused(file, GGUFReader, file)
        _check_room(sum(int(tensor.n_elements) for tensor in content.tensors), dtype, file)
        scaled = [t.name for t in content.tensors if t.name.startswith("rope_")]
        scaled += [name for name in content.fields if ".rope.scaling." in name]
        if scaled:
            raise ValueError(
                f"{file}: its rotation is scaled ({scaled[0]}), which transformers does not read "
                "from GGUF; load the model's Hugging Face folder"
            )
        gguf = {"gguf_file": file.name}
        model = _loaded(file, file.parent, dtype, **gguf)
        return _converted(model, file, file.parent, device, tokenizer, **gguf)


def _gguf(path: Path) -> Path | None:
    if path.suffix == ".gguf":
        return path if path.is_file() else None
    found = sorted(path.glob("*.gguf")) if path.is_dir() else []
    return found[0] if len(found) == 1 else None


_LOCAL = {"local_files_only": True, "trust_remote_code": False}


def _loaded(path: Path, folder: Path, dtype: torch.dtype, **options: Any) -> Any:
    """A model of transformers whose weights are all its own."""
    from transformers import AutoModelForCausalLM

    model, found = _or_refused(
        path, AutoModelForCausalLM.from_pretrained, folder, dtype=dtype,
        attn_implementation="eager", ignore_mismatched_sizes=True, output_loading_info=True,
        **_LOCAL, **options,
    )  # fmt: skip
    for kind in ("missing", "unexpected", "mismatched"):
        keys = found[f"{kind}_keys"]
        for key in sorted(key if isinstance(key, str) else key[0] for key in keys):
            raise ValueError(f"{path}: its weights are not its model's: {key} is {kind}")
    return model


def _converted(
    model: Any, path: Path, folder: Path, device: str, tokenizer: Any, **options: Any
) -> Converted:
    if tokenizer is None:
        tokenizer = _tokenizer(path, folder, **options)
    return converted_from_hf(model.to(device), tokenizer, source=str(path))


def folder_tokenizer(path: Path) -> Any:
    """A folder's tokenizer, read as data; None, with a word, where there is none that can be."""
    return _tokenizer(path, path)


def _tokenizer(path: Path, folder: Path, **options: Any) -> Any:
    """A model's tokenizer; None, with a word, where there is none that can be read."""
    from transformers import AutoTokenizer

    gguf = "gguf_file" in options
    if not gguf and not any((folder / name).exists() for name in _OF_A_TOKENIZER):
        return None
    try:
        if not gguf and (folder / "tokenizer.json").exists():
            load_tokenizer(folder / "tokenizer.json")  # its limits are for strangers' files
        return _or_refused(path, AutoTokenizer.from_pretrained, folder, **_LOCAL, **options)
    except ValueError as error:
        note(f"{error}; the model is loaded without a tokenizer: pass tokenizer=")
        return None


def _or_refused(path: Path, read: Any, *given: Any, **options: Any) -> Any:
    try:  # bars and reports go to stderr there; what matters is raised
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            return read(*given, **options)
    except Exception as error:  # a stranger's settings fail in many ways
        raise ValueError(f"{path}: transformers cannot read it ({first_line(error)})") from None


def _check_room(numbers: int, dtype: torch.dtype, path: Path) -> None:
    """Raises ValueError if the original and its conversion are larger than memory together."""
    shown = str(dtype).removeprefix("torch.")
    check_room(2 * numbers * dtype.itemsize, f"{path}: converting {numbers:,} weights in {shown}")
