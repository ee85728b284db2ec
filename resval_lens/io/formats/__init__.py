"""Formats in which others save models: one entry each."""

from pathlib import Path

from resval_lens.io.formats.format import Converted, Format
from resval_lens.io.formats.hugging_face import GGUF, HuggingFaceFolder
from resval_lens.io.formats.lora import LoRAFolder
from resval_lens.io.formats.modded_nanogpt import ModdedNanoGPT
from resval_lens.io.formats.nanochat import Nanochat
from resval_lens.io.formats.nanogpt import NanoGPT
from resval_lens.io.formats.resformer import ResFormer
from resval_lens.io.formats.x_transformers import XTransformers

FORMATS: tuple[Format, ...] = (
    LoRAFolder(), ResFormer(), HuggingFaceFolder(), GGUF(), NanoGPT(), ModdedNanoGPT(),
    XTransformers(), Nanochat(),
)  # fmt: skip
"""Every format, in the order in which a path is held to them."""

__all__ = ["FORMATS", "Converted", "Format", "format_of"]


def format_of(path: Path) -> Format | None:
    """The format of a file or folder, if it is one of ``FORMATS``."""
    return next((each for each in FORMATS if each.holds(path)), None)
