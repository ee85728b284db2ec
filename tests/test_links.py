"""Links: which there are, and that cutting and scaling them is another architecture."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from resval_lens.hooks import (
    Link,
    cut_links,
    edit_links,
    link_activations,
    link_hooks,
    links,
    scale,
    scale_links,
    zero,
)
from resval_lens.models.classifier import ICLClassifier, classifier_config
from resval_lens.streams import AttentionStream, StreamsLike
from resval_lens.transformer import ResValTransformer
from tests.helpers import tiny_model, tiny_tokens

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "heads": {},
    "two layers": {"n_layers": 2},
    "grouped": {"n_key_value_heads": 2},
    "ungrouped": {"n_key_value_heads": 2, "ungroup_grouped_query_attention": True},
    "rotary": {"positional_embedding_type": "rotary"},
    "split": {"use_split_qkv_input": True},
    "unfused": {"use_fused": False},
}
TOKENS = tiny_tokens()


def classifier(streams: StreamsLike) -> ICLClassifier:
    return ICLClassifier(classifier_config(streams), generator=torch.Generator().manual_seed(0))


def continuous_tokens() -> Tensor:
    return torch.randn(3, 17, 150, generator=torch.Generator().manual_seed(1)) / 85**0.5


# Which links there are


def test_a_model_has_a_link_for_every_stream_receiving_layer_and_head() -> None:
    expected = [Link(s, layer, head) for s in "qv" for layer in (1, 2) for head in range(4)]
    assert links(tiny_model("qv")) == tuple(expected)


def test_only_receiving_layers_have_links() -> None:
    model = tiny_model((AttentionStream("q", layers=(2,)), AttentionStream("v", layers=(1,))))
    assert {(link.stream, link.layer) for link in links(model)} == {("q", 2), ("v", 1)}


def test_keys_and_values_of_grouped_queries_have_a_link_for_each_key_value_head() -> None:
    model = tiny_model("qkv", n_key_value_heads=2)
    heads = {s: {link.head for link in links(model, of=s)} for s in "qkv"}
    assert heads == {"q": {0, 1, 2, 3}, "k": {0, 1}, "v": {0, 1}}


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({"of": "v"}, [("v", layer, head) for layer in (1, 2) for head in range(4)]),
        ({"of": "v", "layers": [2]}, [("v", 2, head) for head in range(4)]),
        ({"of": "v", "layers": [-1], "heads": [-1]}, [("v", 2, 3)]),
        ({"layers": [1], "heads": [0]}, [("q", 1, 0), ("v", 1, 0)]),
        ({"of": "q", "layers": range(1, 3), "heads": (1,)}, [("q", 1, 1), ("q", 2, 1)]),
        ({"of": "v", "layers": [2, -1, 2], "heads": [3, -1]}, [("v", 2, 3)]),
        ({"of": "v", "layers": {2}, "heads": [2, 0]}, [("v", 2, 0), ("v", 2, 2)]),
        ({"of": "vq", "layers": [1], "heads": [0]}, [("q", 1, 0), ("v", 1, 0)]),
        ({"of": "vv", "layers": [1], "heads": [0]}, [("v", 1, 0)]),
        ({"of": "v", "layers": 2, "heads": -1}, [("v", 2, 3)]),
        ({"of": "v", "layers": np.int64(2), "heads": np.arange(2)}, [("v", 2, 0), ("v", 2, 1)]),
    ],
    ids=str,
)
def test_a_selection_names_links_by_stream_layer_and_head(
    selection: dict[str, Any], expected: list[tuple[str, int, int]]
) -> None:
    assert links(tiny_model("qv"), **selection) == tuple(Link(*link) for link in expected)


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"of": "k"}, "of='k': this model has links of q, v only"),
        ({"of": "qz"}, "of='qz': this model has links of q, v only"),
        ({"layers": [0]}, r"layers: layer 0 receives no q; layers \[1, 2\] do"),
        ({"layers": [-3]}, r"layers: layer 0 receives no q; layers \[1, 2\] do"),
        ({"layers": [3]}, "layers: 3 is not among 0 to 2"),
        ({"layers": [1, -4]}, "layers: -4 is not among 0 to 2"),
        ({"layers": [1.0]}, r"layers: 1\.0 is not a whole number"),
        ({"layers": []}, "layers: the selection is empty; name one or more, or None for all"),
        ({"heads": ()}, "heads: the selection is empty"),
        ({"heads": [4]}, "heads: 4 is not among 0 to 3"),
        ({"heads": ["0"]}, "heads: '0' is not a whole number"),
    ],
    ids=str,
)
def test_a_link_that_is_not_there_is_refused(selection: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        links(tiny_model("qv"), **selection)


def test_a_head_beyond_the_key_value_heads_has_no_value_link() -> None:
    with pytest.raises(ValueError, match="heads: 2 is not among 0 to 1"):
        links(tiny_model("v", n_key_value_heads=2), heads=[2])


@pytest.mark.parametrize(
    "use",
    [
        links,
        lambda model: link_activations(model, TOKENS),
        lambda model: link_hooks(model, zero()),
        lambda model: cut_links(model).__enter__(),
    ],
)
def test_a_classic_model_has_no_links(use: Callable[[ResValTransformer], Any]) -> None:
    with pytest.raises(ValueError, match="has no links; --streams v"):
        use(tiny_model(""))


def test_a_link_is_written_shortly_and_knows_its_hook_point() -> None:
    link = Link("v", 2, 3)
    assert str(link) == "v2.h3"
    assert link.hook_name == "blocks.2.attn.hook_v_link"
    assert link.hook_name in tiny_model("v").hook_dict


# Cutting and scaling are other architectures


@pytest.mark.parametrize("settings", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
@pytest.mark.parametrize("streams", ["q", "k", "v", "qkv"])
def test_cutting_every_link_is_the_classic_architecture(
    streams: str, settings: dict[str, Any]
) -> None:
    model = tiny_model(streams, **settings)
    classic = model.with_streams("")(TOKENS)
    assert not model(TOKENS).equal(classic)
    with cut_links(model):
        assert model(TOKENS).equal(classic)


@pytest.mark.parametrize("streams", ["q", "k", "v", "qkv"])
def test_cutting_every_link_of_a_classifier_is_the_classic_classifier(streams: str) -> None:
    model, x = classifier(streams), continuous_tokens()
    classic = model.with_streams("")(x)
    assert not model(x).equal(classic)
    with cut_links(model):
        assert model(x).equal(classic)


def test_cutting_one_stream_of_three_leaves_the_others() -> None:
    model = tiny_model("qkv")
    with cut_links(model, of="q"):
        assert model(TOKENS).equal(model.with_streams("kv")(TOKENS))


def test_cutting_one_layers_links_is_a_stream_that_leaves_it_out() -> None:
    model = tiny_model("v")
    with cut_links(model, layers=[1]):
        cut = model(TOKENS)
    assert cut.equal(model.with_streams(AttentionStream("v", layers=(2,)))(TOKENS))


@pytest.mark.parametrize("settings", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
@pytest.mark.parametrize("carry", ["raw", "sum"])
@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.5, 2])
def test_scaling_links_is_carrying_with_that_weight(
    factor: float, carry: Any, settings: dict[str, Any]
) -> None:
    streams = [AttentionStream(s, carry=carry) for s in "qkv"]
    scaled = [AttentionStream(s, carry=carry, carried=factor) for s in "qkv"]
    model = tiny_model(streams, **settings)
    with scale_links(model, factor):
        assert model(TOKENS).equal(model.with_streams(scaled)(TOKENS))


def test_scaling_by_one_changes_nothing() -> None:
    model = tiny_model("qkv")
    before = model(TOKENS)
    with edit_links(model, scale(1)):
        assert model(TOKENS).equal(before)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_factor_that_is_no_number_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match=f"factor must be a finite number; got {factor}"):
        scale(factor)
