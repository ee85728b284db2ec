"""Which of the strongest edges are drawn: those that ``Circuit.pruned`` keeps."""

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resval_lens.analyses.circuits.circuit import Circuit, top_n
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.circuits.ways import least_sizes
from resval_lens.streams import AttentionStream
from tests.helpers import tiny_config

MODELS: dict[str, dict[str, Any]] = {
    "classic": {"streams": ""},
    "values": {"streams": "v"},
    "own values": {"streams": (AttentionStream("v", carry="raw"),)},
    "all": {"streams": "qkv", "attn_only": False},
    "grouped": {"streams": "v", "n_key_value_heads": 2},
    "gate": {"streams": (AttentionStream("v", mix="gate", source="first"),)},
    "tables": {
        "streams": (AttentionStream("v", source="tokens", mix="pair", own=1.0, carried=1.0),)
    },
    "matrix": {"streams": (AttentionStream("v", source="all", mix="matrix"),)},
}


@cache
def graph(name: str) -> Graph:
    return Graph(tiny_config(**{"n_layers": 3, **MODELS[name]}))


@pytest.mark.parametrize("name", MODELS)
@given(seed=st.integers(0, 2**20), size=st.integers(2, 16))
@settings(max_examples=4, derandomize=True, deadline=None)
def test_the_strongest_that_are_kept_are_those_of_pruned(name: str, seed: int, size: int) -> None:
    of = graph(name)
    generator = torch.Generator().manual_seed(seed)
    # Most scores are 0 but for few writers and readers: else nothing of so few edges connects.
    scores = torch.randn(len(of), generator=generator).round(decimals=1)
    near = [edge.source in ("input", "a0.h0", "a0.h0<v>", "t.h0<v>", "a1.h0<v>", "a1.h0")
            or edge.target == "logits" for edge in of.edges]  # fmt: skip
    scores *= torch.tensor(near).float() * 0.9 + 0.1
    whole = top_n(of, scores, size)
    weights = {edge: scores[of.number[edge]].item() for edge in whole.edges}
    least = least_sizes(whole.named(), weights)
    assert set(least) == set(whole.edges)
    for n in range(1, size, 2):
        kept = [edge for edge in whole.edges if least[edge] <= n]
        order = sorted(whole.edges, key=lambda edge: -abs(weights[edge]))
        assert kept == Circuit.of(of, order[:n]).pruned().edges, n


CASES = {
    "classic": ("input->a0.h0<v>", "a0.h0->a1.h0<q>", "a1.h0->logits", "m0->logits"),
    "values": ("a1.h0<v>->a2.h0<v>", "a2.h0->logits", "a0.h0<v>->a1.h0<v>", "input->a0.h0<v>"),
    "own values": ("a1.h0<v>->a2.h0<v>", "a2.h0->logits", "a0.h0<v>->a1.h0<v>", "input->a0.h0<v>"),
    "grouped": ("a1.h1->logits", "input->a1.h0<v>", "input->a1.h1<q>"),
    "gate": ("a0.h0<v>->a1.h0<v>", "a1.h0->logits", "input->a1.h0<v>", "input->logits"),
    "tables": ("t.h0<v>->a1.h0<v>", "a1.h0->logits", "input->logits"),
}
"""What tells streams apart: own values alone are handed on, a gate reads the input, too, a table is
looked up by it, a key-value head is several heads'."""


@pytest.mark.parametrize("name", CASES)
def test_streams_lead_on_as_they_do_in_the_graph(name: str) -> None:
    of, order = graph(name), [edge for edge in CASES[name] if edge in graph(name).number]
    weights = {edge: 1 / (1 + place) for place, edge in enumerate([*order, "input->a2.h1<q>"])}
    least = least_sizes(Circuit.of(of, weights).named(), weights)
    for n in range(1, len(order) + 1):
        kept = {edge for edge in order if least[edge] <= n}
        assert kept == set(Circuit.of(of, order[:n]).pruned().edges), n


def test_edges_without_a_weight_come_last_and_all_are_there_at_the_end() -> None:
    of = graph("values")
    edges = ["input->a0.h0<v>", "a0.h0->logits", "a0.h1->a1.h1<q>", "input->logits"]
    named = Circuit.of(of, edges).named()
    assert least_sizes(named, {"a0.h0->logits": 2.0, "input->a0.h0<v>": -1.0}) == {
        "input->a0.h0<v>": 2, "a0.h0->logits": 2, "a0.h1->a1.h1<q>": 4, "input->logits": 4
    }  # fmt: skip
