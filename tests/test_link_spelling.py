"""One spelling of a link, and the ways between links, circuits' edges and parts of heads."""

from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from resval_lens.analyses.attribution.logits import attribute
from resval_lens.analyses.attribution.values import links_of_part, value_parts
from resval_lens.analyses.attribution.weights import ov_paths
from resval_lens.analyses.circuits.circuit import Circuit
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.circuits.running import EdgeRuns
from resval_lens.hooks import (
    Link,
    PromptPairs,
    cut_links,
    edit_links,
    freeze,
    link_activations,
    links,
    logit_difference,
    path_patch,
    scale_links,
    zero,
)
from resval_lens.hooks.ablate import link_hooks
from resval_lens.hooks.links import links_between, parts_of
from resval_lens.streams import AttentionStream
from resval_lens.transformer import ResValTransformer
from tests.helpers import tiny_model, tiny_tokens

STREAMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "values": ("v", {}),
    "raw": (AttentionStream("v", carry="raw"), {}),
    "all three, grouped": ("qkv", {"n_key_value_heads": 2}),
    "first": (AttentionStream("v", source="first", mix="pair", own=0.5, carried=0.7), {}),
    "gate": (AttentionStream("v", mix="gate"), {}),
    "some layers": (AttentionStream("v", layers=(1, 3)), {}),
    "all": (AttentionStream("v", source="all"), {}),
    "all raw": (AttentionStream("v", source="all", carry="raw"), {}),
    "matrix": (AttentionStream("v", mix="matrix"), {}),
    "matrix raw": (AttentionStream("k", source="all", carry="raw", mix="matrix"), {}),
}
each = pytest.mark.parametrize("name", STREAMS)
ALIGNED = ["values", "raw", "all three, grouped", "first", "gate", "some layers"]


def model_of(name: str, **changes: Any) -> ResValTransformer:
    streams, settings = STREAMS[name]
    model = tiny_model(streams, n_layers=4, dtype=torch.float64, **settings | changes)
    generator = torch.Generator().manual_seed(3)
    for key, weight in model.named_parameters():
        if key.endswith(("carried", "gate_weight")):
            weight.data = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return model


def tiny_pairs() -> PromptPairs:
    labels = torch.tensor([[1, 2], [3, 4], [5, 0]])
    return PromptPairs(tiny_tokens(3, seed=2), tiny_tokens(3, seed=3), logit_difference, labels)


def every_part(model: ResValTransformer) -> list[str]:
    """Names of the parts of links, by hand."""
    found = []
    for stream in model.cfg.streams:
        heads = range(model.cfg.n_heads_of(stream.of))
        for layer in range(1, 4):
            if stream.layers is not None and layer not in stream.layers:
                continue
            source = {"previous": [layer - 1], "first": [0], "all": list(range(layer))}
            for earlier in source[stream.source]:
                found += [
                    f"a{earlier}.h{g}<{stream.of}>->a{layer}.h{h}<{stream.of}>"
                    for h in heads
                    for g in (heads if stream.mix == "matrix" else [h])
                ]
    return found


# How a link is written


@each
def test_the_parts_of_a_models_links_are_the_link_edges_of_its_graph(name: str) -> None:
    model = model_of(name)
    graph, expected = Graph.of(model), every_part(model)
    parts = [part for link in links(model) for part in parts_of(model.cfg, link)]
    assert sorted(map(str, parts)) == sorted(expected)
    assert sorted(str(edge) for edge in graph.edges if edge.is_link) == sorted(expected)
    assert [edge.link for edge in graph.edges if not edge.is_link] == [None] * graph.n_residual
    for link in links(model):
        assert Link.parse(str(link)) == link == link.whole
        edges = graph.edges_of(link)
        assert {str(edge) for edge in edges} == {str(p) for p in parts if p.whole == link}
        assert graph.edges_of(str(link)) == edges
        for edge in edges:
            part = Link.parse(str(edge))
            assert edge.link == part
            assert str(part) == str(edge)
            assert (part.whole, part.hook_name) == (link, link.hook_name)
            assert graph.edges_of(part) == graph.edges_of(str(part)) == (edge,)
            assert parts_of(model.cfg, part) == (part,)


def test_a_part_is_written_from_its_source_to_what_it_enters() -> None:
    part = Link.parse("a0.h12<k>->a10.h3<k>")
    assert part == Link("k", 10, 3, source=(0, 12))
    assert part.whole == Link.parse("k10.h3")


@pytest.mark.parametrize(
    "name", ["", "v1", "x1.h2", "a1.h2", "a0.h1<v>->a1.h1<k>", "a0.h1->a1.h1<v>", "v1.h2 from 0"]
)
def test_what_names_no_link_is_refused(name: str) -> None:
    model = tiny_model("v")
    for use in (
        lambda: Link.parse(name),
        lambda: Graph.of(model).edges_of(name),
        lambda: cut_links(model, [name]).__enter__(),
    ):
        with pytest.raises(ValueError, match=r"is not the name of a link: write v1\.h2"):
            use()


@pytest.mark.parametrize(
    "name",
    ["k1.h0", "v0.h0", "v3.h0", "v1.h4", "a0.h0<v>->a2.h0<v>", "a0.h0<v>->a1.h1<v>"],
)
def test_a_link_that_a_model_does_not_have_is_refused(name: str) -> None:
    model, link = tiny_model("v"), Link.parse(name)
    for use in (
        lambda: parts_of(model.cfg, name),
        lambda: Graph.of(model).edges_of(link),
        lambda: link_hooks(model, zero(), [link]),
    ):
        with pytest.raises(ValueError, match=f"this model has no link {name}"):
            use()


# From a circuit to edits of the model


@pytest.mark.parametrize("name", ALIGNED)
def test_freezing_a_circuits_links_to_the_corrupted_run_is_corrupting_its_edges(name: str) -> None:
    model, pairs = model_of(name), tiny_pairs()
    graph = Graph.of(model)
    runs = EdgeRuns(model, pairs, graph)
    drawn = torch.rand(3, len(graph), generator=torch.Generator().manual_seed(0)) < 0.4
    corrupted = freeze(link_activations(model, pairs.corrupted))
    for row in drawn:
        chosen = Circuit(graph, row).links
        assert 0 < len(chosen) < len(graph) - graph.n_residual
        others = Circuit.whole(graph).without(graph.number[str(link)] for link in chosen)
        with torch.no_grad(), edit_links(model, corrupted, chosen):
            found = pairs.measure(model(pairs.clean)[:, -1])[0]
        torch.testing.assert_close(found, runs.values(others.kept[None])[0])


def test_cutting_a_circuits_links_is_corrupting_them_by_zero() -> None:
    """A corrupted prompt in which nothing is written: all that its edges carry is zero."""
    model = model_of("all three, grouped", positional_embedding_type="rotary",
                     normalization_type="RMS")  # fmt: skip
    model.embed.W_E.data[0] = 0
    for key, bias in model.named_parameters():
        if "b_" in key:
            bias.data.zero_()
    pairs = tiny_pairs()
    pairs.corrupted.zero_()
    pairs.clean.clamp_(min=1)
    assert not any(x.any() for x in link_activations(model, pairs.corrupted).values())
    graph = Graph.of(model)
    circuit = Circuit.of(graph, ["a0.h1<v>->a1.h1<v>", "a2.h0<k>->a3.h0<k>", "input->m1"])
    assert list(map(str, circuit.links)) == [edge for edge in circuit.edges if "<" in edge]
    kept = Circuit.whole(graph).without(graph.number[str(link)] for link in circuit.links)
    expected = EdgeRuns(model, pairs, graph).values(kept.kept[None])[0]

    def without(head: int) -> Any:
        def cut(x: Tensor, hook: HookPoint) -> Tensor:
            return x.index_fill(2, torch.tensor([head]), 0)

        return cut

    by_hand = [("blocks.1.attn.hook_v_link", without(1)), ("blocks.3.attn.hook_k_link", without(0))]
    with torch.no_grad():
        plain = model.run_with_hooks(pairs.clean, fwd_hooks=by_hand)
        with cut_links(model, circuit.links):
            found = model(pairs.clean)
        with scale_links(model, 0.0, ["v1.h1", "k3.h0"]):
            named = model(pairs.clean)
        unedited = model(pairs.clean)
    assert found.equal(plain)
    assert named.equal(plain)
    assert not found.equal(unedited)
    torch.testing.assert_close(pairs.measure(found[:, -1])[0], expected)


@pytest.mark.parametrize("name", ["all", "all raw", "matrix", "matrix raw"])
def test_all_parts_of_a_link_are_the_link_and_some_are_refused(name: str) -> None:
    model = model_of(name)
    link = links(model)[-1]
    parts = parts_of(model.cfg, link)
    with torch.no_grad():
        with cut_links(model, parts):
            together = model(tiny_tokens())
        with cut_links(model, [link]):
            assert together.equal(model(tiny_tokens()))
    message = f"{parts[1]} is a part of {link}, .* select {link}, or {parts[0]},.* too"
    with pytest.raises(ValueError, match=message):
        link_hooks(model, zero(), parts[1:])


def test_links_are_selected_by_name_or_by_what_they_are() -> None:
    model = tiny_model("v")
    with (
        pytest.raises(ValueError, match=r"selected twice: by name, and by of=None, layers=\[1\]"),
        cut_links(model, ["v1.h1"], layers=[1]),
    ):
        pass


def test_a_path_is_patched_from_a_link_by_the_name_of_its_edge() -> None:
    model, pairs = model_of("values"), tiny_pairs()
    by_edge = path_patch(model, pairs, "a0.h1<v>->a1.h1<v>", "logits")
    assert by_edge.effect.equal(path_patch(model, pairs, "v1.h1", "logits").effect)
    with pytest.raises(ValueError, match=r"senders: a0\.h1<v>->a1\.h1<v>: .* part of v1\.h1"):
        path_patch(model_of("matrix"), pairs, "a0.h1<v>->a1.h1<v>", "logits")


# From a head's part to the links that it comes along


@each
def test_links_between_two_heads_are_the_edges_on_the_graphs_ways(name: str) -> None:
    model = model_of(name)
    graph = Graph.of(model)
    along = nx.DiGraph()  # links, and the step from what a layer computes to its total
    for source, target, data in graph.flow.edges(data=True):
        if target == f"{source}+" or ("edge" in data and graph.edges[data["edge"]].is_link):
            along.add_edge(source, target, **data)
    for stream in model.cfg.streams:
        heads, of = range(model.cfg.n_heads_of(stream.of)), stream.of
        for layer in range(4):
            for source in range(layer):
                for g in heads:
                    for h in heads:
                        ends = f"a{source}.h{g}<{of}>", f"a{layer}.h{h}<{of}>+"
                        ways = set()
                        if set(ends) <= set(along):
                            for way in nx.all_simple_edge_paths(along, *ends):
                                numbers = [along.edges[step].get("edge") for step in way]
                                ways |= {str(graph.edges[n]) for n in numbers if n is not None}
                        found = links_between(model.cfg, of, (source, g), (layer, h))
                        assert set(map(str, found)) == ways


@pytest.mark.parametrize("name", ["values", "raw", "first", "some layers"])
def test_without_its_links_a_part_is_gone_and_with_them_alone_it_is_there(name: str) -> None:
    """Layer 0's own values put in, all others' zero: what a later layer has is its part of 0."""
    model, tokens = model_of(name), tiny_tokens()
    _, cache = model.run_with_cache(tokens)
    parts = value_parts(model, cache)
    receiving = [layer for layer in range(1, 4) if len(parts[layer]) > 1]

    def only_first(x: Tensor, hook: HookPoint) -> Tensor:
        return torch.zeros_like(x)

    hooks: list[Any] = [(f"blocks.{i}.attn.hook_v_local", only_first) for i in receiving]
    hooks += [(f"blocks.{i}.attn.hook_v", only_first) for i in range(1, 4) if i not in receiving]
    looked = [f"blocks.{i}.attn.hook_v" for i in range(4)]

    def values(cut: list[Link]) -> list[Tensor]:
        with torch.no_grad(), model.hooks(fwd_hooks=hooks), cut_links(model, cut):
            cache = model.run_with_cache(tokens, names_filter=looked)[1]
        return [cache[name] for name in looked]

    for component in attribute(model, tokens, torch.tensor([[1, 2]] * len(tokens))).components:
        if not component.endswith(" from 0"):
            continue
        layer, head = int(component[1]), int(component[4])
        expected = parts[layer][0][:, :, head]
        along = list(links_of_part(model.cfg, component))
        assert along
        assert expected.abs().max() > 0
        for link in along:
            assert not values([link])[layer][:, :, head].any()
        others = [link for link in links(model) if link not in {part.whole for part in along}]
        torch.testing.assert_close(values(others)[layer][:, :, head], expected)
        assert not any(links_of_part(model.cfg, part) for part in ("a0.h0", f"a{layer}.h{head}"))


@pytest.mark.parametrize("name", ["values", "raw", "all", "matrix", "all three, grouped"])
def test_the_links_of_a_path_begin_and_end_where_it_does(name: str) -> None:
    model = model_of(name)
    group = model.cfg.n_heads // model.cfg.n_heads_of("v")
    for path in ov_paths(model):
        along = path.links(model)
        assert bool(along) == (path.source != path.layer)
        if along:
            assert (path.source, path.source_head) in {link.source for link in along}
            last = {(link.layer, link.head) for link in along if link.layer == path.layer}
            assert last == {(path.layer, path.head // group)}
            assert set(along) <= set(links_of_part(model.cfg, str(path)))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("m2", "'m2' does not name a part of a head, like a2.h1 or a2.h1 from 0"),
        ("a4.h0 from 0", "'a4.h0 from 0': this model has layers 0 to 3 of heads 0 to 3"),
        ("a1.h4", "this model has layers 0 to 3 of heads 0 to 3"),
    ],
)
def test_what_names_no_part_of_a_head_is_refused(part: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        links_of_part(model_of("values").cfg, part)


def test_parts_that_nothing_brings_have_no_links() -> None:
    assert links_of_part(model_of("raw").cfg, "a3.h0 from 1") == ()
    assert links_of_part(tiny_model("").cfg, "a2.h0 from 1") == ()
    assert list(map(str, links_of_part(model_of("values").cfg, "a3.h0 from 1"))) == [
        "a1.h0<v>->a2.h0<v>", "a2.h0<v>->a3.h0<v>",
    ]  # fmt: skip
