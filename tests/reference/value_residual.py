"""Other projects' models with value residuals, from their formulas, one plain pass each.

A state is what their ``state_dict`` holds, by its names; weights of a Linear are [out, in]. Nothing
is shared with the conversions: no module, no hook, float64 unless the state is of another dtype.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def root_norm(x: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def layer_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    return root_norm(x - x.mean(-1, keepdim=True), eps)


def rotated(
    x: Tensor, dims: int, base: float, pairs: bool, sign: int = 1, half: bool = False
) -> Tensor:
    """x [batch, pos, head, d]: position p turns the i-th pair of dimensions by p · base^(−2i/dims).

    Args:
        pairs: a pair is (2i, 2i + 1); else (i, i + dims/2).
        half: cosines and sines are rounded to bfloat16.
    """
    y = x.clone()
    for i in range(dims // 2):
        a, b = (2 * i, 2 * i + 1) if pairs else (i, i + dims // 2)
        angle = sign * torch.arange(x.shape[1], dtype=x.dtype) * float(base) ** (-2 * i / dims)
        cos, sin = angle.cos(), angle.sin()
        if half:
            cos, sin = cos.bfloat16(), sin.bfloat16()
        cos, sin = cos.to(x.dtype)[:, None], sin.to(x.dtype)[:, None]
        y[..., a] = x[..., a] * cos - x[..., b] * sin
        y[..., b] = x[..., a] * sin + x[..., b] * cos
    return y


def attended(
    q: Tensor, k: Tensor, v: Tensor, scale: float, reads: Callable[[int], int], window: int = 10**9
) -> Tensor:
    """[batch, pos, head · d]: causal; query head h reads key-value head ``reads(h)``."""
    length, outs = q.shape[1], []
    back = torch.arange(length)[:, None] - torch.arange(length)
    hidden = (back < 0) | (back >= window)
    for head in range(q.shape[2]):
        of = reads(head)
        scores = torch.einsum("bqd,bkd->bqk", q[:, :, head], k[:, :, of]) * scale
        pattern = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        outs.append(torch.einsum("bqk,bkd->bqd", pattern, v[:, :, of]))
    return torch.cat(outs, -1)


def heads_of(x: Tensor, weight: Tensor, bias: Tensor | None, d_head: int) -> Tensor:
    y = x @ weight.T
    y = y if bias is None else y + bias
    return y.view(*y.shape[:2], -1, d_head)


def x_transformers(
    state: State, tokens: Tensor, *, depth: int, d_head: int, rotary: int = 0, root: bool = False,
    activation: Callable[[Tensor], Tensor] = torch.nn.functional.gelu, glu: bool = False,
    value_residual: bool = True, l2: bool = False, learned_scale: bool = False,
    qk_root: bool = False,
) -> Tensor:  # fmt: skip
    """Logits of a TransformerWrapper with a Decoder (x-transformers 2.31)."""

    def norm(x: Tensor, name: str) -> Tensor:
        if root:
            return x / x.norm(dim=-1, keepdim=True) * x.shape[-1] ** 0.5 * (state[f"{name}.g"] + 1)
        return layer_norm(x) * (state[f"{name}.gamma"] + 1)

    x = state["token_emb.emb.weight"][tokens]
    if "pos_emb.emb.weight" in state:
        x = x + state["pos_emb.emb.weight"][: tokens.shape[1]] * x.shape[-1] ** -0.5
    first = None
    for layer in range(depth):
        name = f"attn_layers.layers.{2 * layer}"
        read = norm(x, f"{name}.0.0")
        name = f"{name}.1"
        q, k, v = (
            heads_of(read, state[f"{name}.to_{each}.weight"], None, d_head) for each in "qkv"
        )
        own = v
        if first is not None and value_residual:
            mix: Any = 0.5
            if f"{name}.to_value_residual_mix.0.weight" in state:
                weight, bias = (
                    state[f"{name}.to_value_residual_mix.0.{x}"] for x in ("weight", "bias")
                )
                mix = (read @ weight.T + bias).sigmoid()[..., None]
            v = mix * own + (1 - mix) * first
        first = own if first is None else first
        scale = d_head**-0.5
        if l2:
            q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
            scale = d_head**-0.5 if learned_scale else 10
            if learned_scale:
                q = q * state[f"{name}.qk_norm_q_scale"][:, 0]
                k = k * state[f"{name}.qk_norm_k_scale"][:, 0]
        if qk_root:
            q = root_norm(q, 0) * (state[f"{name}.q_rmsnorm.gamma"][:, 0] + 1)
            k = root_norm(k, 0) * (state[f"{name}.k_rmsnorm.gamma"][:, 0] + 1)
        q, k = rotated(q, rotary, 1e4, pairs=True), rotated(k, rotary, 1e4, pairs=True)
        groups = k.shape[2]
        z = attended(q, k, v, scale, lambda head, groups=groups: head % groups)
        x = x + z @ state[f"{name}.to_out.weight"].T
        name = f"attn_layers.layers.{2 * layer + 1}"
        read, name = norm(x, f"{name}.0.0"), f"{name}.1.ff"
        inner = f"{name}.0.{'proj' if glu else '0'}"
        hidden = read @ state[f"{inner}.weight"].T + state.get(f"{inner}.bias", 0)
        if glu:
            up, gate = hidden.chunk(2, -1)
            hidden = up * activation(gate)
        else:
            hidden = activation(hidden)
        x = x + hidden @ state[f"{name}.2.weight"].T + state.get(f"{name}.2.bias", 0)
    return norm(x, "attn_layers.final_norm") @ state["to_logits.weight"].T


def modded_nanogpt(state: State, tokens: Tensor, heads: int, softcap: float = 30.0) -> Tensor:
    """Logits of modded-nanogpt's records of 2024-11-06 and, with skip_weights, 2024-11-10."""
    eps = float(torch.finfo(torch.float32).eps)
    x0 = root_norm(state["transformer.wte.weight"][tokens], eps)
    depth = sum(name.endswith(".lambdas") for name in state)
    encoder = depth // 2 if "skip_weights" in state else depth
    x, first, kept = x0, None, []
    for layer in range(depth):
        name = f"transformer.h.{layer}"
        if layer >= encoder:
            x = x + state["skip_weights"][layer - encoder] * kept.pop()
        lambdas = state[f"{name}.lambdas"]
        x = lambdas[0] * x + lambdas[1] * x0
        read, d_head = root_norm(x, eps), x.shape[-1] // heads
        q, k, v = (
            heads_of(read, state[f"{name}.attn.c_{each}.weight"], None, d_head) for each in "qkv"
        )
        first = v if first is None else first
        share = state[f"{name}.attn.lamb"]
        v = (1 - share) * v + share * first
        q, k = (
            rotated(root_norm(each, eps), d_head, 1e4, pairs=False, sign=-1, half=True)
            for each in (q, k)
        )
        z = attended(q, k, v, d_head**-0.5, lambda head: head)
        x = x + z @ state[f"{name}.attn.c_proj.weight"].T
        hidden = (root_norm(x, eps) @ state[f"{name}.mlp.c_fc.weight"].T).relu() ** 2
        x = x + hidden @ state[f"{name}.mlp.c_proj.weight"].T
        if layer < encoder:
            kept.append(x)
    logits = root_norm(x, eps) @ state["lm_head.weight"].T
    return softcap * (logits / softcap).tanh() if softcap else logits


def llama_with_first_values(
    state: State,
    tokens: Tensor,
    heads: int,
    mixed: Callable[[int, Tensor | None, Tensor, Tensor], Tensor],
    *,
    names: tuple[str, str, str, str],
    eps: float = 1e-6,
    base: float = 1e4,
    window: int = 10**9,
) -> Tensor:
    """Logits of Llama whose layer l > 0 attends with ``mixed(l, own, first, what it reads)``.

    Args:
        names: of the embedding, the first norm, attention, and the second norm.
    """
    embedding, norm1, attention, norm2 = names
    x = state[f"{embedding}.weight"][tokens]
    depth = sum(name.endswith("q_proj.weight") for name in state)
    first = None
    for layer in range(depth):
        of, name = f"model.layers.{layer}.{attention}", f"model.layers.{layer}"
        read = root_norm(x, eps) * state[f"{name}.{norm1}.weight"]
        d_head = state[f"{of}.q_proj.weight"].shape[0] // heads
        q, k, v = (
            heads_of(
                read, state[f"{of}.{each}_proj.weight"], state.get(f"{of}.{each}_proj.bias"), d_head
            )
            if f"{of}.{each}_proj.weight" in state
            else None
            for each in "qkv"
        )
        assert q is not None
        assert k is not None
        if first is None:
            assert v is not None
            first = v
        else:
            v = mixed(layer, v, first, read)
        if f"{of}.q_norm.weight" in state:
            q = root_norm(q, 1e-5) * state[f"{of}.q_norm.weight"]
            k = root_norm(k, 1e-5) * state[f"{of}.k_norm.weight"]
        q, k = rotated(q, d_head, base, pairs=False), rotated(k, d_head, base, pairs=False)
        group = heads // k.shape[2]
        z = attended(q, k, v, d_head**-0.5, lambda head, group=group: head // group, window)
        x = x + z @ state[f"{of}.o_proj.weight"].T
        read = root_norm(x, eps) * state[f"{name}.{norm2}.weight"]
        gate, up = (read @ state[f"{name}.mlp.{each}_proj.weight"].T for each in ("gate", "up"))
        x = x + (gate * gate.sigmoid() * up) @ state[f"{name}.mlp.down_proj.weight"].T
    out = state.get("lm_head.weight", state[f"{embedding}.weight"])
    return (root_norm(x, eps) * state["model.norm.weight"]) @ out.T


LLAMA = ("model.embed_tokens", "input_layernorm", "self_attn", "post_attention_layernorm")
FLA = ("model.embeddings", "attn_norm", "attn", "mlp_norm")
