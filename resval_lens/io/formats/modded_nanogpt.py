"""Checkpoints of modded-nanogpt's records of November 2024: state_step*.pt.

https://github.com/KellerJordan/modded-nanogpt, from 2024-11-06 (values of the first layer, the
embedding beside the residual stream) over 2024-11-10 (skips from the first half of the layers to
the second) to 2024-11-24, with n layers, E = n // 2, x_j what comes out after j layers, and x_0 the
normalised embedding:

    layer l reads   λ_l0 · (x_l + w_i · x_{E−i}) + λ_l1 · x_0      i = l − E; w only where l >= E
    V_l             (1 − λ_l) · own + λ_l · V_0        λ_0 mixes V_0 with itself: left out
    logits          30 · tanh(W norm(x_n) / 30)

Norms have no gain. Queries and keys are normalised, then rotated by −θ with tables of bfloat16:
here the halves of each head's columns of W_Q and W_K have changed places. Weights are not of one
precision in the file, and the records compute in bfloat16, whose rounding is theirs alone.

From 2024-11-19 a token sees its own document alone, from the last token 50256 on, and no more than
1,024 tokens back (1,792 from 2024-11-24): the same for one document within the context.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from resval_lens.config import ResValConfig
from resval_lens.io.formats.format import (
    NO_SETTINGS,
    Converted,
    Format,
    Settings,
    check_vocabulary,
    leads_with_bos,
    with_padding,
)
from resval_lens.io.formats.state import State, heads_in, heads_out, read_torch
from resval_lens.streams import AttentionStream

EXPECTED = "a checkpoint of modded-nanogpt's train_gpt2.py (step, model)"
D_HEAD = 128
N_CTX = 1024
"""The length of texts up to 2024-11-10, and the least window since."""
LATER = ("value_embeds", "vte", "embed.weight", "attn.qkv_w", "attn_scale")
"""In names of weights from December 2024 on."""


class ModdedNanoGPT(Format):
    """A checkpoint of a record of November 2024. It has no tokenizer: it is GPT-2's."""

    name = "a checkpoint of modded-nanogpt (state_step*.pt)"
    settings: ClassVar[Mapping[str, str]] = {
        "heads": f"how many heads a layer has; by default heads of {D_HEAD} numbers, as in the "
        "records",
        "softcap": "of the logits, 30 by default; 0 for none",
    }

    def holds(self, path: Path) -> bool:
        return bool(_files(path))

    def read(
        self,
        path: Path,
        dtype: torch.dtype,
        device: str,
        tokenizer: Any = None,
        settings: Settings = NO_SETTINGS,
    ) -> Converted:
        file, *others = _files(path)
        if others:
            raise ValueError(f"{path} holds several checkpoints; name one, like {others[-1]}")
        saved = read_torch(file, EXPECTED)
        if not isinstance(saved, dict) or not isinstance(saved.get("model"), dict):
            raise ValueError(f"{file} is not {EXPECTED}: it has no 'model'")
        state = State(saved["model"], str(file), dtype)
        cfg = _config(state, dtype, device, settings)
        cfg.default_prepend_bos = leads_with_bos(tokenizer)
        check_vocabulary(tokenizer, cfg.d_vocab, str(file))
        weights = _weights(state, cfg)
        state.done()
        return Converted(str(file), cfg, weights, with_padding(tokenizer))


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.glob("state_step*.pt") if file.is_file())
    is_one = path.name.startswith("state_step") and path.suffix == ".pt"
    return [path] if is_one and path.is_file() else []


def _config(state: State, dtype: torch.dtype, device: str, settings: Settings) -> ResValConfig:
    source = state.source
    later = next((name for name in state for part in LATER if part in name), None)
    if later is not None:
        raise ValueError(
            f"{source}: its weights have {later}, of a record of December 2024 or later; those of "
            "November 2024 are converted"
        )
    n_layers = len({name.split(".h.")[1].split(".")[0] for name in state if ".h." in name})
    if n_layers == 0 or "transformer.h.0.attn.c_q.weight" not in state:
        raise ValueError(f"{source} is not {EXPECTED}: its weights have no transformer.h.0.attn")
    for name in ("transformer.h.0.attn.lamb", "transformer.h.0.lambdas"):
        if name not in state:
            raise ValueError(
                f"{source}: its weights lack {name}: records before 2024-11-06 have no value "
                "residual, or one that their files do not tell of"
            )
    d_vocab, width = state.matrix("transformer.wte.weight")
    heads = settings.get("heads")
    if heads is None:
        if width % D_HEAD:
            raise ValueError(
                f"{source} does not say how many heads it has, and d_model={width} is not a "
                f"multiple of {D_HEAD}: give the setting 'heads'"
            )
        heads = width // D_HEAD
    if heads != int(heads) or heads < 1 or width % int(heads) or width // int(heads) % 2:
        raise ValueError(
            f"{source}: heads={heads:g} must divide d_model={width} into heads of even size"
        )
    softcap = settings.get("softcap", 30.0)
    if not 0 <= softcap < float("inf"):
        raise ValueError(f"{source}: softcap must be a finite number from 0 up; got {softcap!r}")
    d_head = width // int(heads)
    return ResValConfig(
        n_layers=n_layers,
        n_heads=int(heads),
        d_model=width,
        d_head=d_head,
        d_mlp=state.matrix("transformer.h.0.mlp.c_fc.weight")[0],
        n_ctx=N_CTX,
        d_vocab=d_vocab,
        act_fn="relu2",
        normalization_type="RMS",
        eps=float(torch.finfo(torch.float32).eps),
        positional_embedding_type="rotary",
        rotary_dim=d_head,
        rotary_dtype=torch.bfloat16,
        use_qk_norm=True,
        embedding_norm=True,
        residual_mixing=_readers(n_layers, "skip_weights" in state, source),
        output_logits_soft_cap=float(softcap) or -1.0,
        streams=AttentionStream("v", source="first", mix="convex"),
        init_weights=False,
        dtype=dtype,
        device=device,
        original_architecture="modded-nanogpt",
    )  # fmt: skip


def _skipped(layer: int, n_layers: int) -> int | None:
    """The state that layer ``layer`` gets from the first half of the layers."""
    half = n_layers // 2
    return None if layer < half else half - (layer - half)


def _readers(n_layers: int, skips: bool, source: str) -> tuple[tuple[int, ...], ...]:
    if skips and n_layers % 2:
        raise ValueError(
            f"{source}: skip_weights in {n_layers} layers, whose halves are not the same number"
        )
    readers = []
    for layer in range(n_layers):
        states = {0, layer}
        if skips and (from_ := _skipped(layer, n_layers)) is not None:
            states.add(from_)
        readers.append(tuple(sorted(states)))
    return (*readers, (n_layers,))


def _mixing(
    layer: int, states: tuple[int, ...], lambdas: Tensor, skips: Tensor | None, n_layers: int
) -> Tensor:
    """The weights of the states that a layer reads, in their order."""
    weights = dict.fromkeys(states, lambdas.new_zeros(()))
    weights[layer] = weights[layer] + lambdas[0]
    from_ = _skipped(layer, n_layers)
    if skips is not None and from_ is not None:
        weights[from_] = weights[from_] + lambdas[0] * skips[layer - n_layers // 2]
    weights[0] = weights[0] + lambdas[1]
    return torch.stack([weights[each] for each in states])


def _weights(state: State, cfg: ResValConfig) -> dict[str, Tensor]:
    n_layers, width, heads = cfg.n_layers, cfg.d_model, cfg.n_heads
    inner, _ = state.matrix("transformer.h.0.mlp.c_fc.weight")
    ones = torch.ones(width, dtype=cfg.dtype)
    head = torch.ones(cfg.d_head, dtype=cfg.dtype)
    weights = {
        "embed.W_E": state.take("transformer.wte.weight", cfg.d_vocab, width),
        "unembed.W_U": state.take("lm_head.weight", cfg.d_vocab, width).T,
        "ln_final.w": ones,
        "resid_mix.weights": torch.ones(1, dtype=cfg.dtype),
    }
    skips = None
    if "skip_weights" in state:
        skips = state.take("skip_weights", n_layers - n_layers // 2)
    for layer in range(n_layers):
        theirs, ours = f"transformer.h.{layer}", f"blocks.{layer}"
        q, k, v = (state.take(f"{theirs}.attn.c_{each}.weight", width, width) for each in "qkv")
        out = state.take(f"{theirs}.attn.c_proj.weight", width, width)
        lambdas = state.take(f"{theirs}.lambdas", 2)
        weights |= {
            f"{ours}.ln1.w": ones,
            f"{ours}.ln2.w": ones,
            f"{ours}.attn.q_norm.w": head,
            f"{ours}.attn.k_norm.w": head,
            f"{ours}.attn.W_Q": heads_in(q, heads).roll(cfg.d_head // 2, -1),
            f"{ours}.attn.W_K": heads_in(k, heads).roll(cfg.d_head // 2, -1),
            f"{ours}.attn.W_V": heads_in(v, heads),
            f"{ours}.attn.W_O": heads_out(out, heads),
            f"{ours}.mlp.W_in": state.take(f"{theirs}.mlp.c_fc.weight", inner, width).T,
            f"{ours}.mlp.W_out": state.take(f"{theirs}.mlp.c_proj.weight", width, inner).T,
            f"{ours}.resid_mix.weights": _mixing(
                layer, cfg.residual_mixing[layer], lambdas, skips, n_layers
            ),
        }
        carried = state.take(f"{theirs}.attn.lamb")
        if layer > 0:
            weights[f"{ours}.attn.mixes.v.carried"] = carried[None]
    return weights
