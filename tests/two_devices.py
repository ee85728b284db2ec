"""A model whose later half lies on another device (``tests.other_device``), beside the same on one.

``python -m tests.two_devices`` prints how far the results of each analysis differ, as JSON.
"""

import copy
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from resval_lens.analyses.attribution.logits import attribute, logit_lens
from resval_lens.analyses.circuits.methods import METHODS
from resval_lens.analyses.circuits.running import EdgeRuns
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.hooks import (
    PromptPairs,
    cut_links,
    link_activations,
    logit_difference,
    patch,
    path_patch,
    path_patch_each,
)
from resval_lens.streams import AttentionStream
from resval_lens.transformer import ResValTransformer
from tests.helpers import tiny_model, tiny_tokens
from tests.methods import settings_of
from tests.other_device import NAME, OnOther, there

FIRST_ON_OTHER = 2
PAIRS = PromptPairs(
    tiny_tokens(3), tiny_tokens(3, seed=5), logit_difference, tiny_tokens(3, 2, seed=6),
    torch.tensor([6, 4, 5]),
)  # fmt: skip
Analysis = Callable[[ResValTransformer], Tensor]


def kept(model: ResValTransformer) -> Tensor:
    edges = len(EdgeRuns(model, PAIRS).graph)
    return torch.rand(4, edges, generator=torch.Generator().manual_seed(0)) < 0.6


def cut(model: ResValTransformer) -> Tensor:
    with torch.no_grad(), cut_links(model):
        return model(PAIRS.clean)


def runs(model: ResValTransformer, **how: Any) -> Tensor:
    return EdgeRuns(model, PAIRS, **how).values(kept(model))


def scores(model: ResValTransformer, method: str) -> Tensor:
    return score_edges(model, PAIRS, method, **settings_of(method)).values


ANALYSES: dict[str, Analysis] = {
    "cut_links": cut,
    "link_activations": lambda m: torch.stack(
        [x.cpu() for x in link_activations(m, PAIRS.clean).values()]
    ),
    "patch z": lambda m: patch(m, PAIRS, "z", by=("layer", "head")).per_prompt,
    "patch v_link": lambda m: patch(m, PAIRS, "v_link").per_prompt,
    "patch k": lambda m: patch(m, PAIRS, "k", by=("layer", "position")).per_prompt,
    "path_patch": lambda m: path_patch(m, PAIRS, "a0.h1", ["a3.h1<v>", "m1"]).patched,
    "path_patch_each": lambda m: path_patch_each(
        m, PAIRS, ["a0.h1", "v1.h0", "m2", "input"], ["a3.h1<q>", "v3.h0"], "through"
    ).patched,
    **{name: partial(scores, method=name) for name in METHODS},
    "runs": lambda m: runs(m, max_tokens=14),
    "mean runs": lambda m: runs(m, ablation="mean", groups=torch.tensor([0, 1, 2])),
    "attribute": lambda m: attribute(m, PAIRS.clean, PAIRS.labels, PAIRS.last).values,
    "logit_lens": lambda m: logit_lens(
        m, PAIRS.clean, PAIRS.labels, PAIRS.last
    ).logit_difference,
}  # fmt: skip


def spread(model: ResValTransformer) -> ResValTransformer:
    """The model with its later layers, norm and unembedding on the other device."""
    model = copy.deepcopy(model)
    for layer in range(FIRST_ON_OTHER, model.cfg.n_layers):
        model.blocks[layer].to(NAME)
    model.ln_final.to(NAME)
    model.unembed.to(NAME)
    return model


def differences() -> dict[str, float]:
    found = {}
    for stream in (AttentionStream("v"), AttentionStream("v", source="first"),
                   AttentionStream("v", source="all", carry="raw")):  # fmt: skip
        model = tiny_model(stream, n_layers=4, dtype=torch.float32)
        wanted = {name: analysis(model) for name, analysis in ANALYSES.items()}
        with OnOther():
            two = spread(model)
            for name, analysis in ANALYSES.items():
                gap = analysis(two).detach().cpu() - wanted[name].detach()
                found[f"{name}, {stream.source}"] = gap.abs().max().item()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    there()
    print(json.dumps(differences()))
