"""One process of several that divide prompts: ``torchrun ... -m tests.dividing FILE``."""

import sys

import torch
from torch import Tensor

from resval_lens.analyses.circuits.running import EdgeRuns
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.hooks import PromptPairs, logit_difference
from resval_lens.hooks.processes import several_processes
from resval_lens.transformer import ResValTransformer
from tests.helpers import tiny_model, tiny_tokens
from tests.two_devices import kept

COUNTS = (5, 1)
"""Prompts; of one the second process has none."""


def model() -> ResValTransformer:
    return tiny_model("v", n_layers=3, n_key_value_heads=2).eval()


def measured(of: ResValTransformer) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for count in COUNTS:
        pairs = PromptPairs(
            tiny_tokens(count), tiny_tokens(count, seed=5), logit_difference,
            tiny_tokens(count, 2, seed=6),
        )  # fmt: skip
        for method in ("eap", "eap-ig", "exact"):
            found[f"{method} {count}"] = score_edges(of, pairs, method).values
        by_prompt = score_edges(of, pairs, "eap", by_prompt=True).by_prompt
        assert by_prompt is not None
        found[f"by prompt {count}"] = by_prompt
        for how in ({}, {"ablation": "mean", "groups": "all"}, {"max_tokens": 7}):
            runs = EdgeRuns(of, pairs, **how)
            found[f"{how} {count}"] = runs.values(kept(of))
            found[f"corrupted {how} {count}"] = runs.corrupted_values
            found[f"clean {how} {count}"] = runs.clean_values
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    with several_processes("cpu") as process:
        torch.save(measured(model()), f"{sys.argv[1]}.{process.number}")
