"""The two-layer classifier's answer, computed as cheaply as algebra allows.

Only the last token's answer is wanted, and matrix products associate. So no key or value is made
for any token, in either layer; with attention patterns A (layer 1) and a (layer 2, last token):

    scores of layer 1     (x W_Q)(x W_K)ᵀ     = x (W_Q W_Kᵀ) xᵀ
    a key meets a query   (x_j W_K) · q       = x_j · (q W_Kᵀ)
    a weighted value      Σ_j a_j (x_j W_V)   = (Σ_j a_j x_j) W_V
    layer 2's input       x1 = x + c W_V W_O,  c = A x,   is needed only inside such products

One [tokens, d] × [d, d] product is left of the usual five (queries, keys and values of layer 1,
keys and values of layer 2), forward and backward. Same function, same gradients, no hooks: for
training and for large evaluations. :class:`~resval_lens.models.classifier.ICLClassifier` is the one
to look into.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from resval_lens.lens.norm import any_watched
from resval_lens.models.classifier import ICLClassifier


def has_two_plain_layers(model: ICLClassifier) -> bool:
    """Whether its layers are two of attention as the formulas above have it, without hooks."""
    cfg = model.cfg
    return (
        cfg.attn_only
        and cfg.normalization_type is None
        and cfg.attention_dir == "causal"
        and cfg.attn_scores_soft_cap <= 0
        and cfg.clip_qkv is None
        and not cfg.use_local_attn
        and not cfg.use_qk_norm
        and not cfg.use_attention_sinks
        and cfg.n_layers == 2
        and cfg.n_key_value_heads is None
        and not any_watched(model)
    )


def can_answer_fast(model: ICLClassifier) -> bool:
    """Whether :func:`answer` is this model's: two plain layers, one head, no gate, no hooks."""
    gated = any(stream.how.is_gated for stream in model.cfg.streams)
    return has_two_plain_layers(model) and model.cfg.n_heads == 1 and not gated


def answer(
    model: ICLClassifier, x: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch label"]:
    """``model(x)`` for a model of :func:`can_answer_fast`, without its hooks.

    Biases of the attention layers are zero in this architecture and left out.
    """
    second = model.blocks[1].attn
    c, W_OV = _first_layer(model, x)
    last = x[:, -1]
    last1 = last + c[:, -1] @ W_OV
    query = _mixed(model, "q", last1, _source(model, "q", last))  # [batch, d_head]
    own, link = _weights(model, "k")
    towards = query @ (own * second.W_K[0]).T  # meets x1, so x and, through W_OV, c
    scores = _dot(x, towards) + _dot(c, towards @ W_OV.T)
    if link is not None:
        towards = query @ (link * _source_weight(model, "k")).T
        scores = scores + _dot(_source(model, "k", x), towards)
    pattern = (scores / second.attn_scale).softmax(-1)  # [batch, pos]

    seen = (pattern[:, None] @ x)[:, 0]  # [batch, d_model]
    seen1 = seen + (pattern[..., None] * c).sum(1) @ W_OV
    x_v = _source(model, "v", x)
    seen_v = seen if x_v is x else (pattern[:, None] @ x_v)[:, 0]
    z = _mixed(model, "v", seen1, seen_v)
    return model.readout(last1 + _project(z, model, 1))


@torch.no_grad()
def edited_answers(
    model: ICLClassifier,
    x: Float[Tensor, "batch pos d_model"],
    factors: Float[Tensor, " edit"],
    constants: Mapping[str, Float[Tensor, "edit pos d_head"]] | None = None,
) -> Float[Tensor, "edit batch label"]:
    """:func:`answer` with every link edited, for several edits at once.

        link of edit e = factor_e · link + constant_e

    Layer 1 is run once for all of them, and every token is read once.

    Args:
        factors: 1 changes nothing, 0 cuts.
        constants: by stream, what is added at each position; nothing by default.
    """
    constants = constants or {}
    second, edits = model.blocks[1].attn, len(factors)
    factor = factors.to(x)[:, None, None]
    c, W_OV = _first_layer(model, x)
    last = x[:, -1]
    last1 = last + c[:, -1] @ W_OV
    own, link = _parts(model, "q", last1, last)  # [batch, d_head]
    query = own + factor * link if link is not None else own.expand(edits, *own.shape)
    if "q" in constants:
        query = query + constants["q"][:, -1:]

    def meets(tokens: Tensor, towards: Float[Tensor, "edit batch d_model"]) -> Tensor:
        return torch.einsum("bpd,ebd->ebp", tokens, towards)

    own_weight, link_weight = _weights(model, "k")
    towards = query @ (own_weight * second.W_K[0]).T
    scores = meets(x, towards) + meets(c, towards @ W_OV.T)
    if link_weight is not None:
        scores = scores + meets(x, factor * (query @ (link_weight * _source_weight(model, "k")).T))
    if "k" in constants:
        scores = scores + query @ constants["k"].mT
    pattern = (scores / second.attn_scale).softmax(-1)  # [edit, batch, pos]

    seen = torch.einsum("ebp,bpd->ebd", pattern, x)
    seen1 = seen + torch.einsum("ebp,bpd->ebd", pattern, c) @ W_OV
    own, link = _parts(model, "v", seen1, seen)
    z = own if link is None else own + factor * link
    if "v" in constants:
        z = z + pattern @ constants["v"]
    return model.readout((last1 + _project(z, model, 1)).flatten(0, 1)).unflatten(0, (edits, -1))


def _first_layer(
    model: ICLClassifier, x: Float[Tensor, "batch pos d_model"]
) -> tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "d_model d_model"]]:
    """c and W_OV, of which layer 1 makes x1 = x + c W_OV."""
    first = model.blocks[0].attn
    causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
    scores = (x @ (first.W_Q[0] @ first.W_K[0].T)) @ x.mT / first.attn_scale
    c = scores.masked_fill(~causal, -torch.inf).softmax(-1) @ x
    return c, _project(first.W_V[0], model, 0)


def _dot(
    x: Float[Tensor, "batch pos d"], y: Float[Tensor, "batch d"]
) -> Float[Tensor, "batch pos"]:
    # Written out: the backward pass of a batched product with one column is slow.
    return (x * y[:, None]).sum(-1)


def _mixed(model: ICLClassifier, name: str, x1: Tensor, x: Tensor) -> Tensor:
    """a · x1 W_2 + b · x W_1 of one projection."""
    own, link = _parts(model, name, x1, x)
    return own if link is None else own + link


def _parts(model: ICLClassifier, name: str, x1: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """a · x1 W_2 and b · x W_1 of one projection; None where there is no link."""
    own, link = _weights(model, name)
    local = own * (x1 @ getattr(model.blocks[1].attn, f"W_{name.upper()}")[0])
    return local, None if link is None else link * (x @ _source_weight(model, name))


def _source_weight(model: ICLClassifier, name: str) -> Tensor:
    """Layer 1's weight as the link sees it."""
    weight = getattr(model.blocks[0].attn, f"W_{name.upper()}")[0]
    return weight.detach() if _is_detached(model, name) else weight


def _source(model: ICLClassifier, name: str, x: Tensor) -> Tensor:
    """Layer 1's input as the link sees it."""
    return x.detach() if _is_detached(model, name) else x


def _is_detached(model: ICLClassifier, name: str) -> bool:
    mix = model.blocks[1].attn.mix(name)
    return mix is not None and mix.stream.detach


def _weights(model: ICLClassifier, name: str) -> tuple[float | Tensor, float | Tensor | None]:
    """(a, b) of the link into layer 2; b is None where there is none."""
    mix = model.blocks[1].attn.mix(name)
    if mix is None:
        return 1.0, None
    own, (link,) = mix.weights()
    return _number(own), _number(link)


def _number(weight: float | Tensor) -> float | Tensor:
    return weight.flatten()[0] if isinstance(weight, Tensor) else weight  # there is one head


def _project(z: Tensor, model: ICLClassifier, layer: int) -> Tensor:
    # Without a learned output projection W_O is the identity.
    return z @ model.blocks[layer].attn.W_O[0] if model.cfg.output_projection else z
