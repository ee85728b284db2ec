"""Training steps of the presets beside hand-written models: tokens/s, utilisation, memory.

    utilisation = FLOPs a token (resval_lens.training.plan) · tokens/s / PEAK

of the model's own arithmetic: what is computed twice, or for normalisation and the optimiser, is
not counted.
"""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from resval_lens import ResValConfig, ResValTransformer
from resval_lens.models.language_models import language_model_config
from resval_lens.training.plan import flops_per_token
from tests.benchmarks.gpu.models import ours, plain_peer
from tests.benchmarks.gpu.record import Record, Turn, measured, wait_for_turn

PEAK = 989e12
"""Dense bf16 FLOP/s of an H100 or H200 by the datasheet; ``matrix_product`` is what is reached."""
# Rows of a step. The plan has 67 GB for llama-1b's two of 4,096 tokens, without recomputation.
ROWS = {"tinystories-8m": 64, "llama-1b": 2}
SPECS = {"tinystories-8m": "paper"}  # its scores are divided by √d_head, as the plain GPT's
SMALL: dict[str, dict[str, Any]] = {
    "tinystories-8m": {"n_layers": 2, "d_model": 32, "n_heads": 4, "d_head": 8, "d_mlp": 128,
                       "n_ctx": 16, "d_vocab": 64},
    "llama-1b": {"n_layers": 2, "d_model": 32, "n_heads": 4, "d_head": 8, "n_key_value_heads": 2,
                 "d_mlp": 64, "n_ctx": 16, "d_vocab": 64, "rotary_dim": 8},
}  # fmt: skip
LEAST_SECONDS = {False: 5.0, True: 20.0}  # compiled or not: with less left, none is begun


def main() -> None:
    turn = wait_for_turn()
    name, how = turn.more
    record = Record("training", turn, peak_flops=PEAK, precision="bf16 autocast, fp32 weights")
    if "matrix_product" not in record.results:
        record.attempt("matrix_product", lambda: matrix_product(turn))
    quick = turn.small and how == "compiled"
    for streams in ("v",) if quick else ("", "v"):
        for peer in (False, True):
            label = f"{name}, {'values' if streams else 'classic'}, {'plain' if peer else 'ours'}"
            record.attempt(
                f"{label}, {how}",
                lambda streams=streams, peer=peer: step_of(turn, name, streams, peer, how),
                0.0 if turn.small else LEAST_SECONDS[how == "compiled"],
            )
    sys.exit(record.failed)


def config(turn: Turn, name: str, streams: str) -> ResValConfig:
    return language_model_config(
        name, streams, SPECS.get(name, "reference"), "raw" if streams else None,
        device=str(turn.device), **SMALL[name] if turn.small else {},
    )  # fmt: skip


def step_of(turn: Turn, name: str, streams: str, peer: bool, how: str) -> dict[str, Any]:
    """One training step: forward, backward, AdamW; of random tokens."""
    cfg, device, rows = config(turn, name, streams), turn.device, ROWS[name]
    torch.manual_seed(0)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model: Any = (plain_peer(cfg) if peer else ours(cfg)).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), fused=True)
    tokens = torch.randint(cfg.d_vocab, (rows, cfg.n_ctx + 1), device=device)
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    run = model
    if how == "compiled":
        run = torch.compile(model, backend="eager" if turn.small else "inductor")
    losses: list[Tensor] = []

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = mean_loss(run, model, x, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())

    timing = measured(step, turn, most_seconds=4.0)
    tokens_per_second = rows * cfg.n_ctx / timing["seconds"]
    flops = flops_per_token(cfg).total
    found = torch.stack(losses).tolist()
    if not all(0 < loss < float("inf") for loss in found):
        raise RuntimeError(f"the loss is not finite: {found}")
    compiled = torch._dynamo.utils.counters
    return {
        **timing,
        "rows": rows,
        "n_ctx": cfg.n_ctx,
        "parameters": sum(p.numel() for p in trained),
        "tokens_per_second": tokens_per_second,
        "flops_per_token": flops,
        "utilisation": flops * tokens_per_second / PEAK if device.type == "cuda" else None,
        "losses": [found[0], found[-1]],
        "graphs": compiled["stats"].get("unique_graphs", 0),
        "graph_breaks": sum(compiled["graph_break"].values()),
    }


def mean_loss(run: Any, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """``run`` is the model, or the model compiled."""
    if isinstance(model, ResValTransformer):
        return run(x, targets=y) / y.numel()
    return run(x, y)


def matrix_product(turn: Turn) -> dict[str, Any]:
    """bf16 products of square random matrices: what of ``PEAK`` this machine reaches."""
    size = 64 if turn.small else 8192
    a, b = (torch.randn(size, size, device=turn.device).bfloat16() for _ in range(2))
    timing = measured(lambda: a @ b, turn, most_seconds=1.0)
    return {**timing, "size": size, "flops_per_second": 2 * size**3 / timing["seconds"]}


if __name__ == "__main__":
    main()
