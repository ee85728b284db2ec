"""Edge scores, exact runs and patching on random models, beside stock forward and backward runs."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from resval_lens import ResValConfig
from resval_lens.analyses.circuits.graph import graph_of
from resval_lens.analyses.circuits.running import EdgeRuns
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.hooks import PromptPairs, logit_difference, patch
from resval_lens.hooks.runs import Run, resumed
from resval_lens.models.language_models import language_model_config
from tests.benchmarks.gpu.models import ours, stock
from tests.benchmarks.gpu.record import Record, Turn, measured, wait_for_turn

PROMPTS, LENGTH, CIRCUITS = 8, 20, 4
SIZES: dict[str, dict[str, Any]] = {
    "135M": {"n_layers": 30, "d_model": 576, "n_heads": 9, "d_head": 64, "n_key_value_heads": 3,
             "d_mlp": 1536, "d_vocab": 49_152, "n_ctx": 2048},  # SmolLM-135M's
    "1B": {"n_ctx": 2048},  # llama-1b's
}  # fmt: skip
SMALL = {"n_layers": 2, "d_model": 32, "n_heads": 4, "d_head": 8, "n_key_value_heads": 2,
         "d_mlp": 64, "n_ctx": 32, "d_vocab": 64, "rotary_dim": 8}  # fmt: skip
EDGE_STEPS = 5


def main() -> None:
    turn = wait_for_turn()
    record = Record(
        "analyses", turn, prompts=PROMPTS, length=LENGTH, circuits=CIRCUITS, dtype="bfloat16",
        eap_ig_steps=EDGE_STEPS, streams="v",
    )  # fmt: skip
    for size in SIZES:
        record.attempt(f"{size}, stock", lambda size=size: stock_runs(turn, size), 4.0)
        calls: dict[str, Callable[[], object]] = {}

        def build(size: str = size, calls: dict[str, Any] = calls) -> dict[str, Any]:
            model = ours(config(turn, size))
            calls |= analyses(model, random_pairs(turn, size))
            parameters = sum(p.numel() for p in model.parameters())
            return {"parameters": parameters, "edges": len(graph_of(model, None))}

        record.attempt(f"{size}, ours", build, 4.0)
        for name in list(calls):
            record.attempt(
                f"{size}, {name}",
                lambda name=name, calls=calls: measured(calls[name], turn, 2.0, most_rounds=10),
                2.0,
            )
        calls.clear()  # and with them the model
    size = next(iter(SIZES))
    record.attempt(f"{size}, layers resumed, compiled", lambda: compiled(turn, size), 4.0)
    sys.exit(record.failed)


def config(turn: Turn, size: str) -> ResValConfig:
    sizes = SMALL if turn.small else SIZES[size]
    return language_model_config(
        "llama-1b", "v", device=str(turn.device), dtype=torch.bfloat16, **sizes
    )


def random_pairs(turn: Turn, size: str) -> PromptPairs:
    """Random tokens; the corrupted prompt has another one in the middle, and what follows."""
    vocabulary = config(turn, size).d_vocab
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(vocabulary, (PROMPTS, LENGTH), generator=generator)
    other = torch.randint(vocabulary, (PROMPTS, LENGTH), generator=generator)
    corrupted = torch.where(torch.arange(LENGTH) < LENGTH // 2, clean, other)
    labels = torch.randint(vocabulary, (PROMPTS, 2), generator=generator)
    return PromptPairs(clean, corrupted, logit_difference, labels).to(turn.device)


def analyses(model: Any, pairs: PromptPairs) -> dict[str, Callable[[], object]]:
    def exact_runs() -> Tensor:
        runs = EdgeRuns(model, pairs)
        drawn = torch.rand(CIRCUITS, len(runs.graph), generator=torch.Generator().manual_seed(0))
        return runs.values(drawn < 0.9)

    return {
        "patch resid_pre by layer × position": lambda: patch(model, pairs, "resid_pre"),
        "patch z by layer × head": lambda: patch(model, pairs, "z", by=("layer", "head")),
        "eap": lambda: score_edges(model, pairs, "eap"),
        "eap-ig": lambda: score_edges(model, pairs, "eap-ig", steps=EDGE_STEPS),
        f"exact runs of {CIRCUITS} circuits": exact_runs,
    }


def compiled(turn: Turn, size: str) -> dict[str, Any]:
    """What patching and exact runs do most, eager and compiled: without hooks, which a compiled
    function does not see."""
    model, pairs = ours(config(turn, size)), random_pairs(turn, size)
    state = Run(model, pairs.clean).states[1]

    @torch.no_grad()
    def layers() -> Tensor:
        return resumed(model, state).residual

    eager = measured(layers, turn, most_seconds=1.0, most_rounds=20)
    together = torch.compile(layers)
    together()
    return {
        "eager": eager,
        "compiled": measured(together, turn, most_seconds=1.0, most_rounds=20),
    }


def stock_runs(turn: Turn, size: str) -> dict[str, Any]:
    """Of the same prompts in one batch: a forward run, and one with its backward run."""
    model, pairs = stock(config(turn, size)), random_pairs(turn, size)

    def metric() -> Tensor:
        return pairs.measure(model(pairs.clean)[:, -1]).sum()

    def forward() -> None:
        with torch.no_grad():
            metric()

    def backward() -> None:
        metric().backward()
        model.zero_grad()

    return {
        "forward": measured(forward, turn, most_seconds=1.0, most_rounds=20),
        "forward and backward": measured(backward, turn, most_seconds=1.0, most_rounds=20),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


if __name__ == "__main__":
    main()
