"""A model whose later layers lie on another device: nothing meets across.

The other device is PyTorch's "meta": it has no numbers, and refuses the CPU's tensors as GPUs do.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from resval_lens.hooks import (
    cut_links,
    edit_links,
    freeze,
    link_activations,
    links,
    mean,
    resample,
    scale_links,
)
from resval_lens.hooks.ablate import mean_link_activations
from resval_lens.streams import AttentionStream
from resval_lens.transformer import ResValTransformer
from tests.helpers import tiny_model, tiny_tokens

STREAMS: dict[str, Any] = {
    "v": "v",
    "all": [{"of": of, "source": "all"} for of in "qkv"],
    "first, head": AttentionStream("v", source="first", mix="head"),
    "gate, raw": AttentionStream("k", mix="gate", carry="raw"),
}
each_stream = pytest.mark.parametrize("streams", STREAMS.values(), ids=STREAMS)
TOKENS = tiny_tokens()


@pytest.fixture(params=[{}, {"positional_embedding_type": "rotary"}, {"use_fused": False}], ids=str)
def split(request: pytest.FixtureRequest) -> Any:
    """Makes a model of four layers, the last two elsewhere."""

    def make(streams: Any) -> ResValTransformer:
        model = tiny_model(streams, n_layers=4, **request.param).eval()
        for part in (*model.blocks[2:], model.ln_final, model.unembed):
            part.to("meta")
        return model

    return make


@each_stream
def test_a_model_runs_and_is_cached_where_its_layers_are(split: Any, streams: Any) -> None:
    model = split(streams)
    logits, cache = model.run_with_cache(TOKENS)
    assert logits.device.type == "meta"
    for name, x in cache.items():
        if name.startswith("blocks."):
            assert x.device.type == ("cpu" if name[7] in "01" else "meta"), name
    assert model(TOKENS, return_type="loss").shape == ()
    assert model(TOKENS, targets=TOKENS).shape == ()
    ones = torch.ones_like(TOKENS)
    assert model(TOKENS, attention_mask=ones).shape == (2, 7, 13)
    carried = model.carried_before(3, cache)
    resumed = model(cache["resid_pre", 3], start_at_layer=3, carried=carried)
    assert resumed.shape == logits.shape


@each_stream
def test_links_are_edited_where_they_are(split: Any, streams: Any) -> None:
    model = split(streams)
    recorded = link_activations(model, TOKENS)
    assert {x.device.type for x in recorded.values()} == {"cpu", "meta"}
    with cut_links(model, positions=[0, -1]):
        model(TOKENS)
    with scale_links(model, 0.5, heads=[0]):
        model(TOKENS)
    means = mean_link_activations(model, TOKENS, last=torch.tensor([3, 6]))
    on_cpu: dict[str, Tensor] = {name: torch.zeros(x.shape) for name, x in recorded.items()}
    rows = torch.tensor([1, 0])
    for reference in (recorded, on_cpu):
        for edit in (freeze(reference), mean(reference), resample(reference, rows)):
            with edit_links(model, edit, of=links(model)[0].stream, layers=[1, 3]):
                model(TOKENS)
    with edit_links(model, freeze(means)):
        model(TOKENS)
