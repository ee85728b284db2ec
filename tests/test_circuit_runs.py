"""Runs with corrupted edges, beside a model that is run edge by edge from the definition."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from resval_lens.analyses.circuits import running
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.circuits.methods import EAP, METHODS
from resval_lens.analyses.circuits.running import EdgeRuns
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.hooks.answers import answer_logits
from resval_lens.hooks.groups import alike
from resval_lens.hooks.prompts import PromptPairs, logit_difference, probability
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
    "tables": ("k(source=tokens) v(source=tokens, mix=pair, own=0, carried=0.8)", {}),
    "gated tables": (
        "v(source=tokens, mix=added_gate, layers=(0, 2), channels=3, scale=3)",
        {"n_key_value_heads": 2},
    ),
    "added gate": ("v(mix=added_gate)", {}),
    "mixed residuals": ("v", {"residual_mixing": "all"}),
    "mixed, attention only": ("", {"residual_mixing": "embedding", "attn_only": True}),
    "like nanochat": (
        "v(source=tokens, mix=added_gate, layers=(1,), channels=5)",
        {
            "residual_mixing": ((0,), (0, 1), (0, 2), (2, 3)),
            "embedding_norm": True,
            "smear_channels": 6,
        },
    ),
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


@each_variant
def test_circuits_branch_off_another_one_in_the_first_layer_that_differs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(name)
    pairs, graph = tiny_pairs(model), Graph.of(model)
    trunk = some_circuits(graph, 4)[1]
    flipped = torch.randperm(len(graph), generator=torch.Generator().manual_seed(2))[:20].tolist()
    near = torch.stack([trunk, *(trunk ^ (torch.arange(len(graph)) == edge) for edge in flipped)])
    wanted = EdgeRuns(model, pairs, graph).values(near)
    layers: list[tuple[int, int]] = []
    made = running.CircuitRun.__init__

    def counted(self: Any, *given: Any) -> None:
        layers.append((given[-1], len(given[3])))
        made(self, *given)

    monkeypatch.setattr(running.CircuitRun, "__init__", counted)
    found = EdgeRuns(model, pairs, graph).values(near, near=trunk)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    begin = [graph.first_layer(row != trunk) for row in near]
    (first, one), *others = layers  # the trunk itself, whole
    assert (first, one) == (graph.first_layer(~trunk), 1)
    assert sum(layer * circuits for layer, circuits in others) >= sum(begin)


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


def test_scores_in_few_bits_are_summed_in_float32_whatever_the_parts() -> None:
    """Each prompt twice over: as many, the same score, near that of float32."""
    model = tiny_model("v")
    clean, corrupted = tiny_tokens(8, seed=2).repeat(16, 1), tiny_tokens(8, seed=3).repeat(16, 1)
    labels = tiny_tokens(8, 2, seed=4).repeat(16, 1)
    pairs = PromptPairs(clean, corrupted, logit_difference, labels)
    methods = [name for name, how in METHODS.items() if isinstance(how, EAP)]
    wanted = {method: score_edges(model, pairs, method).values for method in methods}
    values = EdgeRuns(model, pairs).clean_values
    model.to(torch.bfloat16)
    for method, whole in wanted.items():
        parts = [score_edges(model, pairs, method, max_tokens=n).values for n in (896, 56, 14)]
        assert all(part.dtype == torch.float32 for part in parts)
        size = whole.abs().max()
        for part in parts[1:]:
            assert (part - parts[0]).abs().max() < 1e-4 * size
        assert (parts[0] - whole).abs().max() < 0.05 * size
    runs = EdgeRuns(model, pairs)
    assert runs.clean_values.dtype == torch.float32
    torch.testing.assert_close(runs.clean_values, values, rtol=0.1, atol=0.1)
    model.to(torch.float64)
    assert score_edges(model, pairs.rows(slice(0, 2)), "eap").values.dtype == torch.float64


def grouped_pairs() -> PromptPairs:
    """Two templates of unequal length: rows 0, 2 and 4 have 7 tokens, 1 and 3 have 5."""
    clean, corrupted = tiny_tokens(5, seed=2), tiny_tokens(5, seed=3)
    last, groups = torch.tensor([6, 4, 6, 4, 6]), torch.tensor([8, 3, 8, 3, 8])
    labels = tiny_tokens(5, 2, seed=4)
    return PromptPairs(clean, corrupted, logit_difference, labels, last, groups=groups)


def test_means_are_over_prompts_in_which_a_position_means_the_same() -> None:
    """Every edge corrupted: the logits read the mean, over its group, of the last residual."""
    model, pairs = model_of("values"), grouped_pairs()
    with torch.no_grad():
        _, cache = model.run_with_cache(pairs.corrupted)
        residual = cache["blocks.2.hook_resid_post"]
        means = torch.stack(
            [residual[[j for j in range(5) if j % 2 == i % 2], end].mean(0)
             for i, end in enumerate(pairs.answers.tolist())]
        )  # fmt: skip
        wanted = pairs.measure(model.unembed(model.ln_final(means[:, None]))[:, 0])[0]
    for max_tokens in (7, 1000):
        runs = EdgeRuns(model, pairs, ablation="mean", max_tokens=max_tokens)
        torch.testing.assert_close(runs.corrupted_values, wanted)
        assert "(2 groups of 2 to 3)" in runs.measured_by.ablation
    kept = some_circuits(runs.graph, 3)
    alone = [
        EdgeRuns(model, pairs.rows(rows), ablation="mean", groups="all").values(kept)
        for rows in ([0, 2, 4], [1, 3])
    ]
    torch.testing.assert_close(runs.values(kept)[:, [0, 2, 4, 1, 3]], torch.cat(alone, 1))


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        (None, "give groups=, a number for each prompt"),
        ("all", "prompts 0 and 1 are of one group, and answer at their tokens 6 and 4"),
        ("some", "groups must be numbers or 'all'; got 'some'"),
        (torch.zeros(4, dtype=torch.long), r"a number for each of the 5 prompts; got \[4\]"),
    ],
    ids=["none", "unequal", "word", "count"],
)
def test_means_over_what_does_not_mean_the_same_are_refused(
    groups: Any, says: str, unchecked_annotations: None
) -> None:
    pairs = grouped_pairs()
    pairs = PromptPairs(pairs.clean, pairs.corrupted, logit_difference, pairs.labels, pairs.last)
    with pytest.raises(ValueError, match=says):
        EdgeRuns(model_of("values"), pairs, ablation="mean", groups=groups)
    with pytest.raises(ValueError, match=says):
        alike(pairs, groups)
    with pytest.raises(ValueError, match="groups are for ablation='mean'"):
        EdgeRuns(model_of("values"), pairs, groups="all")


@pytest.mark.parametrize("ablation", ["resample", "mean"])
def test_the_same_runs_serve_every_metric(ablation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("values")
    pairs = grouped_pairs()
    kept = some_circuits(Graph.of(model), 4)
    metrics = {"difference": logit_difference, "P": probability}
    runs = EdgeRuns(model, pairs, ablation=ablation, max_tokens=40)
    starts: list[Any] = []
    made = running.CircuitRun.__init__

    def counted(self: Any, *given: Any) -> None:
        starts.append(given)
        made(self, *given)

    monkeypatch.setattr(running.CircuitRun, "__init__", counted)
    found = runs.by_metrics(kept, metrics)
    together = len(starts)
    for name, metric in metrics.items():
        alone = EdgeRuns(model, replace(pairs, metric=metric), ablation=ablation, max_tokens=40)
        starts.clear()
        torch.testing.assert_close(found[name], alone.values(kept))
        assert len(starts) == together
