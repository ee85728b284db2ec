"""The plain models that the benchmarks compare with are the models that they stand for."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resval_lens import ResValTransformer
from resval_lens.models.language_models import language_model_config
from tests.benchmarks.gpu.models import plain_peer
from tests.helpers import randomise

SMALL = {"n_layers": 3, "d_model": 32, "n_heads": 4, "d_head": 8, "d_mlp": 128, "n_ctx": 12,
         "d_vocab": 50}  # fmt: skip
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "tinystories-8m": ("paper", SMALL),
    "llama-1b": (
        "reference",
        {**SMALL, "n_key_value_heads": 2, "d_mlp": 96, "rotary_dim": 8},
    ),
}


def linear(layer: nn.Linear, weights: list[Tensor], biases: list[Tensor]) -> None:
    """One matrix [out, in] of several that are [..., in, out] or, of heads, [head, in, d_head]."""
    parts = [w.transpose(-1, -2).reshape(-1, layer.in_features) for w in weights]
    layer.weight.copy_(torch.cat(parts))
    if layer.bias is not None:
        layer.bias.copy_(torch.cat([b.flatten() for b in biases]))


@torch.no_grad()
def give_weights(peer: Any, model: ResValTransformer) -> None:
    """Our weights, in the plain model's layout."""
    peer.embed.weight.copy_(model.embed.W_E)
    gated = model.cfg.gated_mlp
    for theirs, own in zip(peer.blocks, model.blocks, strict=True):
        attn: Any = own.attn
        k, v = (attn._W_K, attn._W_V) if gated else (attn.W_K, attn.W_V)
        linear(theirs.attn.qkv, [attn.W_Q, k, v], [attn.b_Q, attn.b_K, attn.b_V])
        theirs.attn.out.weight.copy_(attn.W_O.flatten(0, 1).T)
        mlp: Any = own.mlp
        if gated:
            linear(theirs.w_gate, [mlp.W_gate], [])
            linear(theirs.w_in, [mlp.W_in], [])
            linear(theirs.w_out, [mlp.W_out], [])
            norms = ((theirs.norm_1, own.ln1), (theirs.norm_2, own.ln2))
        else:
            theirs.attn.out.bias.copy_(attn.b_O)
            linear(theirs.mlp[0], [mlp.W_in], [mlp.b_in])
            linear(theirs.mlp[2], [mlp.W_out], [mlp.b_out])
            norms = ((theirs.ln_1, own.ln1), (theirs.ln_2, own.ln2))
        for norm, ours in norms:
            copy_norm(norm, ours)
    if gated:
        copy_norm(peer.norm, model.ln_final)
        linear(peer.readout, [model.unembed.W_U], [])
    else:
        copy_norm(peer.ln_f, model.ln_final)
        peer.pos_embed.weight.copy_(model.pos_embed.W_pos)


def copy_norm(norm: Any, ours: Any) -> None:
    norm.weight.copy_(ours.w)
    if getattr(norm, "bias", None) is not None:
        norm.bias.copy_(ours.b)


@pytest.mark.parametrize("streams", ["", "v"], ids=["classic", "values"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_plain_peer_computes_our_logits_and_loss(name: str, streams: str) -> None:
    spec, sizes = PRESETS[name]
    cfg = language_model_config(name, streams, spec, "raw" if streams else None, **sizes)
    model = randomise(ResValTransformer(cfg)).eval()
    with torch.no_grad():
        for parameter_name, x in model.named_parameters():
            if not x.requires_grad:  # this family has no biases
                x.zero_()
                assert "b_" in parameter_name
    peer = plain_peer(cfg).eval()
    give_weights(peer, model)
    tokens = torch.randint(50, (2, 13), generator=torch.Generator().manual_seed(0))
    x, y = tokens[:, :-1], tokens[:, 1:]
    logits = peer.readout(peer.hidden(x))
    torch.testing.assert_close(logits, model(x), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(peer(x, y), model(x, targets=y) / y.numel())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(p.numel() for p in peer.parameters()) == trained
