"""What eight small models compute, as numbers in a file, to compare versions of TransformerLens.

    python -m tests.oracle FILE             write it, in an environment with one of them
    python -m tests.oracle --compare A B    the largest difference of each kind between two files

Weights are drawn by NumPy from their names, so that neither initial values nor torch's generators
matter. Of a large tensor some entries are kept, at places drawn by its size.
"""

from __future__ import annotations

import math
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.hooks import PromptPairs, cut_links, logit_difference, patch
from resval_lens.lens.weights import surviving_steps
from resval_lens.streams import StreamsLike
from resval_lens.transformer import ResValTransformer
from tests.helpers import gradients, tiny_config, tiny_tokens
from tests.skipping import GATED_TABLES, NANOCHAT

SHIPPED = Path(__file__).parent / "data" / "oracle.safetensors"
"""What TransformerLens 3.9 computes."""
MOST = 64
"""Entries that are kept of a tensor."""
ROTARY = {"positional_embedding_type": "rotary", "normalization_type": "RMS"}
GATED = {"gated_mlp": True, "act_fn": "silu"}
CAPPED = {"attn_scores_soft_cap": 4.0, "output_logits_soft_cap": 6.0, "use_qk_norm": True}
WINDOWS = {"use_local_attn": True, "window_size": 3, "attn_types": ["local", "global", "local"]}
MODELS: dict[str, tuple[StreamsLike, dict[str, Any]]] = {
    "plain": ("", {}),
    "values": ("v", {}),
    "qkv": ("qkv", {"use_split_qkv_input": True}),
    "rotary": ("v(mix=head, carried=0.6)", {**ROTARY, **GATED, "n_key_value_heads": 2}),
    "gated": ("v(mix=gate, carry=raw)", {**GATED, "parallel_attn_mlp": True}),
    "attn-only": ("kv", {"attn_only": True, "tied_embedding": True}),
    "windows": ("v(source=first, mix=convex)", {**ROTARY, **CAPPED, **WINDOWS}),
    "tables": (GATED_TABLES, {**NANOCHAT, "dtype": torch.float32}),
}


def made(name: str) -> ResValTransformer:
    """One of ``MODELS``; norms' gains lie around 1, everything else around 0."""
    streams, settings = MODELS[name]
    model = ResValTransformer(tiny_config(streams=streams, **settings))
    with torch.no_grad():
        for at, parameter in model.named_parameters():
            drawn = np.random.default_rng(crc32(at.encode())).standard_normal(parameter.shape)
            gain = at.endswith(".w")
            parameter.copy_(torch.as_tensor(1 + 0.2 * drawn if gain else 0.4 * drawn))
    return model.eval()


def kept(x: Tensor) -> Tensor:
    """``x``, or some of its entries."""
    flat = x.detach().flatten()
    if len(flat) > MOST:
        chosen = np.random.default_rng(len(flat)).choice(len(flat), MOST, replace=False)
        flat = flat[torch.from_numpy(np.sort(chosen))]
    return flat.contiguous().clone()


def computed(model: ResValTransformer) -> dict[str, Tensor]:
    """By kind and name: activations, links, gradients, generation, patching, edge scores."""
    tokens = tiny_tokens(2, 7)
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
        found["logits"] = logits
        found |= {f"activations/{at}": x for at, x in cache.items()}
        if model.cfg.streams:
            with cut_links(model):
                found["cut links"] = model(tokens)
        found |= _generated(model, tokens)
    model(tokens, return_type="loss").backward()
    found |= {f"gradients/{at}": x for at, x in gradients(model).items()}
    model.zero_grad(set_to_none=True)
    labels = torch.tensor([[1, 2], [3, 4]])
    pairs = PromptPairs(tokens, tiny_tokens(2, 7, seed=3), logit_difference, labels)
    for point in ("z", "v", "resid_pre"):
        by = ("layer", "position") if point == "resid_pre" else ("layer", "head")
        found[f"patching/{point}"] = patch(model, pairs, point, by=by).values
    for method in ("eap", "eap-ig"):
        found[f"edges/{method}"] = score_edges(model, pairs, method).values
    model.process_weights_(**_steps(model))
    with torch.no_grad():
        found["processed"] = model(tokens)
    return {at: kept(x) for at, x in found.items()}


def _generated(model: ResValTransformer, tokens: Tensor) -> dict[str, Tensor]:
    """Tokens from ``generate``, and logits token by token with a key-value cache."""
    written = model.generate(
        tokens, max_new_tokens=4, do_sample=False, stop_at_eos=False, verbose=False
    )
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", len(tokens))
    parts = [
        model(part, past_kv_cache=cache, attention_mask=torch.ones_like(part))
        for part in (tokens[:, :3], *tokens[:, 3:].split(1, 1))
    ]
    return {"generated": written, "cached logits": torch.cat(parts, 1)}


def _steps(model: ResValTransformer) -> dict[str, bool]:
    """Steps of weight processing that the model survives."""
    cfg = model.cfg
    gated = any(stream.mix in ("gate", "added_gate") for stream in cfg.streams)
    steps = surviving_steps(cfg)
    return steps | {
        "fold_ln": steps["fold_ln"] and not gated,
        "fold_value_biases": not gated,
        "center_writing_weights": not cfg.embedding_norm,
    }


def dump(file: Path) -> None:
    """Writes what each of ``MODELS`` computes to ``file``, by the model's name and its kind."""
    found = {
        f"{name}/{at}": x for name in MODELS for at, x in computed(made(name)).items()
    }  # fmt: skip
    save_file(found, file, {name: version(name) for name in ("transformer-lens", "torch")})


def read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The numbers of a file, and the versions that it is of."""
    with safe_open(file, "pt") as content:
        names = content.keys()
        return {at: content.get_tensor(at) for at in names}, content.metadata()


def differences(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, float]:
    """The largest absolute difference of each kind, relative to the largest number of its tensor
    where that is above 1; infinite where one of the two lacks a tensor, or has another shape or
    numbers that are not finite.
    """
    found: dict[str, float] = {}
    for at in sorted(first | second):
        kind = at.split("/")[1]
        if at in first and at in second and first[at].shape == second[at].shape:
            one, other = first[at].double(), second[at].double()
            apart = float(torch.where(one == other, 0.0, (one - other).abs()).max())
            largest = float(torch.where(one.isfinite(), one.abs(), 0.0).max())  # scores are −∞, too
            apart /= max(largest, 1.0)
        else:
            apart = math.inf
        found[kind] = max(found.get(kind, 0.0), apart if math.isfinite(apart) else math.inf)
    return found


def main(arguments: list[str]) -> None:
    """The command line of this file."""
    if arguments[:1] == ["--compare"] and len(arguments) == 3:
        (first, one), (second, other) = (read(Path(each)) for each in arguments[1:])
        print(one, len(first), "tensors,", other, len(second))
        for kind, apart in differences(first, second).items():
            print(f"{kind:16} {apart:.3g}")
        for at in sorted(set(first) ^ set(second)):
            print("only in one:", at)
    elif len(arguments) == 1 and not arguments[0].startswith("-"):
        dump(Path(arguments[0]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
