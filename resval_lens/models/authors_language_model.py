"""Language-model checkpoints of the authors' public code (AMICL-and-residual-attention-streams)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resval_lens.config import ResValConfig
from resval_lens.io.files import check_finite, check_plain, first_line
from resval_lens.models.language_models import language_model_config
from resval_lens.streams import Carry, StreamsLike
from resval_lens.transformer import ResValTransformer

PARTS = {
    "ln1.weight": ["d"],
    "ln1.bias": ["d"],
    "ln2.weight": ["d"],
    "ln2.bias": ["d"],
    "attn.c_attn.weight": ["d", "3d"],
    "attn.c_attn.bias": ["3d"],
    "attn.c_proj.weight": ["d", "d"],
    "attn.c_proj.bias": ["d"],
    "ffn.c_fc.weight": ["d", "m"],
    "ffn.c_fc.bias": ["m"],
    "ffn.c_proj.weight": ["m", "d"],
    "ffn.c_proj.bias": ["d"],
}


def load_authors_language_model(
    path: str | Path,
    streams: StreamsLike = "",
    carry: Carry = "raw",
    n_heads: int = 16,
    n_ctx: int | None = None,
) -> ResValTransformer:
    """A checkpoint of the toy language model of arXiv 2412.15113, section 4.

    ``torch.save`` of ``{"updates", "state_dict", "optimizer"}``, in whose state_dict (names often
    begin with ``module.``) matrices stand as [in, out], q | k | v beside one another, and
    ``fc.weight`` is ``wte.weight``. Scores are not divided by √d_head. The file does not say
    whether it was trained with a stream: ``streams`` does, and what the authors' evaluation script
    does to every checkpoint is ``streams="v", carry="raw"``.

    Args:
        n_ctx: positions to keep of those in the file (2048); all by default.

    Raises:
        ValueError: not such a file, or tensors of other shapes, by name. Nothing but tensors and
            plain containers is unpickled.
    """
    path = Path(path)
    tensors = _read(path)
    d_vocab, d = _shape(path, tensors, "wte.weight", 2)
    positions, _ = _shape(path, tensors, "wpe.weight", 2)
    layers = sorted({int(m[1]) for name in tensors if (m := re.match(r"blocks\.(\d+)\.", name))})
    if not layers or layers != list(range(len(layers))):
        raise ValueError(f"{path}: expected blocks 0, 1, ...; got {layers}")
    if n_heads < 1 or d % n_heads:
        raise ValueError(f"n_heads={n_heads} must divide the width {d} of {path}")
    if n_ctx is not None and not 1 <= n_ctx <= positions:
        raise ValueError(f"n_ctx={n_ctx}: {path} has {positions} positions")
    mlp = _shape(path, tensors, "blocks.0.ffn.c_fc.weight", 2)[1]
    _check(path, tensors, len(layers), {"d": d, "3d": 3 * d, "m": mlp, "v": d_vocab,
                                        "p": positions})  # fmt: skip
    cfg = language_model_config(
        "tinystories-8m", streams, carry=carry, n_layers=len(layers), d_model=d, n_heads=n_heads,
        d_head=d // n_heads, d_mlp=mlp, d_vocab=d_vocab, n_ctx=n_ctx or positions, dropout=0.0,
        init_weights=False,
    )  # fmt: skip
    model = ResValTransformer(cfg)
    report = model.load_state_dict(_converted(tensors, cfg), strict=False)
    missing = [name for name in report.missing_keys if not name.endswith(("mask", "IGNORE"))]
    assert not report.unexpected_keys
    assert not [name for name in missing if ".mixes." not in name]
    return model.eval()


def _read(path: Path) -> dict[str, Tensor]:
    check_plain(path, "a checkpoint of the authors' language model")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage has many names here
        reason = first_line(error)
        raise ValueError(f"{path} is not a checkpoint of tensors ({reason})") from None
    state = saved.get("state_dict") if isinstance(saved, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(x, Tensor) for x in state.values()):
        raise ValueError(f"{path}: expected a dict with 'state_dict', names to tensors")
    return {str(name).removeprefix("module."): x for name, x in state.items()}


def _shape(path: Path, tensors: dict[str, Tensor], name: str, ndim: int) -> list[int]:
    if name not in tensors:
        raise ValueError(f"{path} lacks {name}")
    if tensors[name].ndim != ndim:
        raise ValueError(f"{path}: {name} must have {ndim} axes; got {list(tensors[name].shape)}")
    return list(tensors[name].shape)


def _check(path: Path, tensors: dict[str, Tensor], layers: int, sizes: dict[str, int]) -> None:
    wanted = {"wte.weight": ["v", "d"], "wpe.weight": ["p", "d"], "ln.weight": ["d"],
              "ln.bias": ["d"], "fc.weight": ["v", "d"]}  # fmt: skip
    for layer in range(layers):
        wanted |= {f"blocks.{layer}.{name}": shape for name, shape in PARTS.items()}
    for name, letters in wanted.items():
        shape = [sizes[letter] for letter in letters]
        if _shape(path, tensors, name, len(shape)) != shape:
            raise ValueError(f"{path}: {name} must be {shape}; got {list(tensors[name].shape)}")
        if not tensors[name].is_floating_point():
            raise ValueError(f"{path}: {name} must hold floats; got {tensors[name].dtype}")
        x = tensors[name]
        if x.layout != torch.strided or x.numel() * x.element_size() > x.untyped_storage().nbytes():
            raise ValueError(f"{path}: {name} claims more numbers than the file holds")
    check_finite({name: tensors[name] for name in wanted}, path)
    # Masks and position indices that modules keep are no weights.
    unknown = [n for n, x in tensors.items() if n not in wanted and x.is_floating_point()
               and not n.endswith((".mask", ".bias"))]  # fmt: skip
    if unknown:
        raise ValueError(f"{path} has the unknown {unknown[0]}")
    if not torch.equal(tensors["fc.weight"], tensors["wte.weight"]):
        raise ValueError(f"{path}: fc.weight must be wte.weight (tied); they differ")


def _converted(tensors: dict[str, Tensor], cfg: ResValConfig) -> dict[str, Tensor]:
    """By TransformerLens's names, heads apart."""
    h, e = cfg.n_heads, cfg.d_head
    state: dict[str, Any] = {
        "embed.W_E": tensors["wte.weight"],
        "pos_embed.W_pos": tensors["wpe.weight"][: cfg.n_ctx],
        "ln_final.w": tensors["ln.weight"],
        "ln_final.b": tensors["ln.bias"],
    }
    for layer in range(cfg.n_layers):
        theirs, ours = f"blocks.{layer}.", f"blocks.{layer}."
        weights = tensors[theirs + "attn.c_attn.weight"].chunk(3, dim=1)
        biases = tensors[theirs + "attn.c_attn.bias"].chunk(3)
        for letter, weight, bias in zip("QKV", weights, biases, strict=True):
            state[f"{ours}attn.W_{letter}"] = weight.unflatten(1, (h, e)).transpose(0, 1)
            state[f"{ours}attn.b_{letter}"] = bias.unflatten(0, (h, e))
        state |= {
            f"{ours}attn.W_O": tensors[theirs + "attn.c_proj.weight"].unflatten(0, (h, e)),
            f"{ours}attn.b_O": tensors[theirs + "attn.c_proj.bias"],
            f"{ours}mlp.W_in": tensors[theirs + "ffn.c_fc.weight"],
            f"{ours}mlp.b_in": tensors[theirs + "ffn.c_fc.bias"],
            f"{ours}mlp.W_out": tensors[theirs + "ffn.c_proj.weight"],
            f"{ours}mlp.b_out": tensors[theirs + "ffn.c_proj.bias"],
            f"{ours}ln1.w": tensors[theirs + "ln1.weight"],
            f"{ours}ln1.b": tensors[theirs + "ln1.bias"],
            f"{ours}ln2.w": tensors[theirs + "ln2.weight"],
            f"{ours}ln2.b": tensors[theirs + "ln2.bias"],
        }
    return state
