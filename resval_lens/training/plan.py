"""What training a configuration costs: parameters, arithmetic, memory, days. Formulas, not runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from resval_lens.config import ResValConfig
from resval_lens.transformer import ResValTransformer

FLOAT = 4  # bytes of a 32-bit weight, gradient or moment


@dataclass(frozen=True)
class Parts:
    """Numbers of what something consists of."""

    @property
    def total(self) -> float:
        """Of all parts."""
        return sum(vars(self).values())

    def to_dict(self) -> dict[str, float]:
        """Every part by name, and the ``total``."""
        return {**vars(self), "total": self.total}


@dataclass(frozen=True)
class Size(Parts):
    """Parameters by where they stand, without those a configuration freezes.

    embedding    V·d, and n_ctx·d for learned positions
    attention    layers · (d·h·d_h + 2·d·h_kv·d_h + h·d_h·d), and its biases
    mlp          layers · (2 or, gated, 3)·d·d_mlp, and its biases
    norms        (2·layers + 1)·d, twice that for LayerNorm
    unembedding  d·V (0 if tied), and its bias
    mixing       of learned streams, their tables, residual mixing and norms of q and k
    """

    embedding: int
    attention: int
    mlp: int
    norms: int
    unembedding: int
    mixing: int


@dataclass(frozen=True)
class Flops(Parts):
    """Multiplications and additions of a training step for each token, by what they are for.

        matrices   6 · (weights that multiply: attention, MLP, unembedding)
        scores     6 · layers · h·d_h · (n_ctx + 1)     causal: half of the square
        streams    3 · Σ over streams of receiving layers · heads·d_h    (one addition, added)

    2 for a multiplication with its addition, times 3: forward, and backward to inputs and weights.
    """

    matrices: float
    scores: float
    streams: float


@dataclass(frozen=True)
class Memory(Parts):
    """Bytes on each device, by what they hold.

    weights, gradients   4·N each        AdamW   8·N        spread: divided by the processes
    gathered             FSDP2 only: two blocks' weights at once, and the embeddings'
    activations          what autograd keeps (:func:`kept_for_backward`), the gradient of the
                         logits, and with recomputation one block's activations more
    """

    weights: float
    gradients: float
    AdamW: float
    gathered: float
    activations: float


@dataclass(frozen=True)
class Plan:
    """Everything of a run's cost.

    Attributes:
        memory: copied to all devices (``ddp``), and spread over them (``fsdp``).
        tokens: of the whole run, which takes so many ``days``.
    """

    parameters: Size
    flops_per_token: Flops
    memory: Mapping[str, Memory]
    tokens: int
    days: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "parameters": self.parameters.to_dict(),
            "flops_per_token": self.flops_per_token.to_dict(),
            "memory": {kind: each.to_dict() for kind, each in self.memory.items()},
            "tokens": self.tokens,
            "days": self.days,
        }


_MIXING = (".mixes.", "resid_mix.", "smear.", ".q_norm.", ".k_norm.")


def on_meta(cfg: ResValConfig) -> ResValTransformer:
    """The model with shapes and no content: no memory is taken, whatever its size."""
    cfg = cfg.with_streams(cfg.streams)
    cfg.init_weights, cfg.device = False, "meta"
    with torch.device("meta"):
        return ResValTransformer(cfg, move_to_device=False)


def size(cfg: ResValConfig) -> Size:
    """Trained parameters by the formulas of :class:`Size`."""
    d, v, layers = cfg.d_model, cfg.d_vocab, cfg.n_layers
    q, kv = cfg.n_heads * cfg.d_head, (cfg.n_key_value_heads or cfg.n_heads) * cfg.d_head

    def bias(name: str, count: int) -> int:
        return 0 if any(fnmatch(name, pattern) for pattern in cfg.frozen) else count

    grouped = "" if cfg.n_key_value_heads is None else "_"
    attention = 2 * d * q + 2 * d * kv
    attention += bias("blocks.0.attn.b_Q", q) + bias(f"blocks.0.attn.{grouped}b_K", 2 * kv)
    attention += bias("blocks.0.attn.b_O", d)
    mlp = 0
    if not cfg.attn_only:
        assert cfg.d_mlp is not None
        mlp = (3 if cfg.gated_mlp else 2) * d * cfg.d_mlp
        mlp += bias("blocks.0.mlp.b_in", cfg.d_mlp) + bias("blocks.0.mlp.b_out", d)
    norms = (layers * (1 if cfg.attn_only else 2) + 1) * d
    kinds = {"LN": 2, "RMS": 1, "LNPre": 0, "RMSPre": 0, None: 0}
    positions = cfg.n_ctx * d if cfg.positional_embedding_type == "standard" else 0
    unembedding = 0 if cfg.tied_embedding else d * v + bias("unembed.b_U", v)
    mixing = sum(
        p.numel()
        for name, p in on_meta(cfg).named_parameters()
        if p.requires_grad and any(part in name for part in _MIXING)
    )
    return Size(v * d + positions, layers * attention, layers * mlp,
                norms * kinds[cfg.normalization_type], unembedding, mixing)  # fmt: skip


def flops_per_token(cfg: ResValConfig, n_ctx: int | None = None) -> Flops:
    """:class:`Flops` of a configuration, at its own context length by default."""
    n_ctx = n_ctx or cfg.n_ctx
    of_size = size(cfg)
    q, kv = cfg.n_heads * cfg.d_head, (cfg.n_key_value_heads or cfg.n_heads) * cfg.d_head
    weights = cfg.n_layers * (2 * cfg.d_model * q + 2 * cfg.d_model * kv)
    if of_size.mlp:
        assert cfg.d_mlp is not None
        weights += cfg.n_layers * (3 if cfg.gated_mlp else 2) * cfg.d_model * cfg.d_mlp
    weights += cfg.d_model * cfg.d_vocab
    streams = 0
    for stream in cfg.streams:
        receiving = sum(stream.receives(layer) for layer in range(cfg.n_layers))
        streams += receiving * (q if stream.of == "q" else kv)
    return Flops(6.0 * weights, 6.0 * cfg.n_layers * q * (n_ctx + 1), 3.0 * streams)


def kept_for_backward(cfg: ResValConfig, micro_batch: int, checkpoint_blocks: bool) -> int:
    """Bytes that autograd keeps from a forward pass and its loss, without the parameters.

    Counted on shapes alone (fake tensors), with 32-bit activations and logits held whole, as under
    autocast; no memory is taken.
    """
    cfg = cfg.with_streams(cfg.streams)
    cfg.init_weights, cfg.device = False, "cpu"
    storages: dict[int, tuple[int, Tensor]] = {}  # the tensors keep their storages' keys unique
    with FakeTensorMode():
        model = ResValTransformer(cfg, move_to_device=False).train()
        own = {p.untyped_storage()._cdata for p in model.parameters()}

        def keep(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            if storage._cdata not in own:
                storages[storage._cdata] = (storage.nbytes(), x)
            return x

        tokens = torch.zeros((micro_batch, cfg.n_ctx), dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            logits = model(tokens, checkpoint_blocks=checkpoint_blocks)
            F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    return sum(count for count, _ in storages.values())


def memory(
    cfg: ResValConfig, processes: int, micro_batch: int, checkpoint_blocks: bool
) -> dict[str, Memory]:
    """:class:`Memory` on each device, copied to all (``ddp``) and spread over them (``fsdp``)."""
    of_size = size(cfg)
    n = of_size.total
    activations = kept_for_backward(cfg, micro_batch, checkpoint_blocks)
    if checkpoint_blocks:
        whole = kept_for_backward(cfg, micro_batch, False)
        activations += (whole - activations) // cfg.n_layers
    activations += micro_batch * cfg.n_ctx * cfg.d_vocab * FLOAT
    per_block = (of_size.attention + of_size.mlp) / cfg.n_layers
    gathered = FLOAT * (2 * per_block + of_size.embedding + of_size.unembedding)

    def held(share: int, extra: float) -> Memory:
        copy = FLOAT * n / share
        return Memory(copy, copy, 2 * FLOAT * n / share, extra, float(activations))

    return {"ddp": held(1, 0.0), "fsdp": held(processes, gathered if processes > 1 else 0.0)}


def plan(
    cfg: ResValConfig,
    *,
    steps: int,
    batch: int,
    processes: int = 1,
    micro_batch: int = 1,
    checkpoint_blocks: bool = False,
    teraflops: float = 989.0,
    utilisation: float = 0.4,
) -> Plan:
    """Everything of a run's cost.

    Args:
        teraflops: of one device at its best; 989 is an H100's in bf16.
        utilisation: the share of that which training reaches (model FLOPs utilisation).

    Raises:
        ValueError: a number that cannot be, named with its value.
    """
    for name, value in (("processes", processes), ("micro_batch", micro_batch)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more; got {value!r}")
    if not teraflops > 0:
        raise ValueError(f"teraflops must be above 0; got {teraflops!r}")
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation must be a share above 0 and up to 1; got {utilisation!r}")
    of_size, flops = size(cfg), flops_per_token(cfg)
    tokens = steps * batch * cfg.n_ctx
    seconds = tokens * flops.total / (processes * teraflops * 1e12 * utilisation)
    held = memory(cfg, processes, micro_batch, checkpoint_blocks)
    return Plan(of_size, flops, held, tokens, seconds / 86_400)
