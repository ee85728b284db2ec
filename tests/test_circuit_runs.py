"""Runs with corrupted edges, beside a model that is run edge by edge from the definition."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.circuits.running import EdgeRuns
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.hooks.answers import answer_logits
from resval_lens.hooks.prompts import PromptPairs, logit_difference
from resval_lens.streams import AttentionStream
from resval_lens.transformer import ResValTransformer
from tests.helpers import ARCHITECTURES, tiny_model, tiny_tokens
from tests.reference.edge_loop import EdgeLoop

EXACT: dict[str, Any] = {"dtype": torch.float64, "act_fn": "gelu"}
VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "classic": ("", {}),
    "values": ("v", {}),
    "values raw": (AttentionStream("v", carry="raw"), {}),
    "all three": ("qkv", {}),
    "from the first": (AttentionStream("v", source="first", mix="pair", own=0.5, carried=0.7), {}),
    "from all": (AttentionStream("v", source="all", carry="raw", carried=0.6), {}),
    "from all, summed": (AttentionStream("k", source="all"), {}),
    "heads mixed": (AttentionStream("v", mix="matrix"), {}),
    "some layers": (AttentionStream("v", source="all", layers=(2,)), {}),
    "grouped": ("kv", {"n_key_value_heads": 2}),
    "attention only": ("v", {"attn_only": True, "normalization_type": None}),
}
each_variant = pytest.mark.parametrize("name", VARIANTS)


def model_of(name: str) -> ResValTransformer:
    streams, changes = VARIANTS[name]
    return tiny_model(streams, **EXACT, **changes)


def tiny_pairs(model: ResValTransformer, n: int = 3) -> PromptPairs:
    clean, corrupted = tiny_tokens(n, seed=2), tiny_tokens(n, seed=3)
    labels = torch.tensor([[1, 2], [3, 4], [5, 0]])[:n]
    return PromptPairs(clean, corrupted, logit_difference, labels)


def some_circuits(graph: Graph, n: int, seed: int = 0) -> Tensor:
    """Sets of edges of every density."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(n, len(graph), generator=generator)
    return drawn < torch.linspace(0.05, 0.95, n)[:, None]


def loop_metric(model: ResValTransformer, pairs: PromptPairs, shares: dict[str, float]) -> Any:
    """The mean metric with every edge carrying its share of the corrupted run."""
    found = []
    prompts = zip(pairs.clean.numpy(), pairs.corrupted.numpy(), pairs.labels.tolist(), strict=True)
    for clean, corrupted, (first, second) in prompts:
        loop = EdgeLoop(model, clean, EdgeLoop(model, corrupted), shares)
        logits = loop.logits()
        found.append(logits[first] - logits[second])
    return np.mean(found)


@each_variant
def test_a_run_with_corrupted_edges_is_the_edge_by_edge_run(name: str) -> None:
    model = model_of(name)
    pairs, graph = tiny_pairs(model), Graph.of(model)
    kept = some_circuits(graph, 6)
    ours = EdgeRuns(model, pairs, graph).means(kept)
    for row, value in zip(kept.tolist(), ours.tolist(), strict=True):
        dropped = {
            str(edge): 1.0 for edge, stays in zip(graph.edges, row, strict=True) if not stays
        }
        assert value == pytest.approx(loop_metric(model, pairs, dropped), rel=1e-9, abs=1e-10)


@each_variant
def test_eap_is_the_derivative_of_the_metric_in_each_edges_corrupted_share(name: str) -> None:
    model = model_of(name)
    pairs, graph = tiny_pairs(model, 2), Graph.of(model)
    scores = score_edges(model, pairs, "eap").values
    generator = torch.Generator().manual_seed(1)
    residual = torch.randperm(graph.n_residual, generator=generator)[:12].tolist()
    step = 1e-5
    for number in [*residual, *range(graph.n_residual, len(graph))]:
        edge = str(graph.edges[number])
        above, below = (loop_metric(model, pairs, {edge: share}) for share in (step, -step))
        assert scores[number].item() == pytest.approx((above - below) / (2 * step), abs=1e-7)


@each_variant
def test_exact_scores_corrupt_one_edge_at_a_time(name: str) -> None:
    model = model_of(name)
    pairs, graph = tiny_pairs(model, 2), Graph.of(model)
    scores = score_edges(model, pairs, "exact", max_tokens=1).values
    clean = loop_metric(model, pairs, {})
    generator = torch.Generator().manual_seed(4)
    residual = torch.randperm(graph.n_residual, generator=generator)[:12].tolist()
    for number in [*residual, *range(graph.n_residual, len(graph))]:
        alone = loop_metric(model, pairs, {str(graph.edges[number]): 1.0})
        assert scores[number].item() == pytest.approx(alone - clean, rel=1e-7, abs=1e-10)


STREAMS: dict[str, Any] = {
    "classic": "",
    "qv": "qv",
    "gate": AttentionStream("v", mix="gate"),
    "detached": AttentionStream("v", detach=True),
}


@pytest.mark.parametrize("architecture", [n for n in ARCHITECTURES if n != "attn-in"])
@pytest.mark.parametrize("streams", STREAMS)
def test_every_architecture_is_clean_with_all_edges_and_corrupted_with_none(
    architecture: str, streams: str
) -> None:
    model = tiny_model(STREAMS[streams], **ARCHITECTURES[architecture])
    pairs = tiny_pairs(model)
    runs = EdgeRuns(model, pairs)
    n = len(runs.graph)
    both = torch.stack([torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)])
    with torch.no_grad():
        wanted = [
            pairs.measure(answer_logits(model, tokens, pairs.answers))[0]
            for tokens in (pairs.clean, pairs.corrupted)
        ]
    torch.testing.assert_close(runs.values(both), torch.stack(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", [n for n in ARCHITECTURES if n != "attn-in"])
def test_eap_scores_of_a_small_difference_are_exact_scores(architecture: str) -> None:
    """Where clean and corrupted hardly differ, patching is linear."""
    model = tiny_model("v", **ARCHITECTURES[architecture], dtype=torch.float64)
    model.embed.W_E.data[1] = model.embed.W_E.data[0] + 1e-6 * model.embed.W_E.data[1]
    clean = tiny_tokens(3)
    clean[:, 1::2] = 0
    corrupted = torch.where(clean == 0, 1, clean)
    pairs = PromptPairs(clean, corrupted, logit_difference, tiny_pairs(model).labels)
    eap, exact = (score_edges(model, pairs, method).values for method in ("eap", "exact"))
    assert exact.abs().max() > 1e-7
    torch.testing.assert_close(eap, exact, rtol=1e-3, atol=1e-11)
