"""Streams neither arrive on weights that cannot carry them nor vanish on the way to other classes.

What is right is always the unprocessed weights with that stream.
"""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from resval_lens.config import ResValConfig
from resval_lens.host import (
    Attention,
    GroupedQueryAttention,
    HookedTransformer,
    HookedTransformerConfig,
    TransformerBlock,
)
from resval_lens.transformer import ResValTransformer
from tests.helpers import SETTINGS, needs_stock, stock_model, tiny_model, tiny_tokens

GPT_NEO = {"original_architecture": "GPTNeoForCausalLM"}
FOLDED = "value biases are folded into its output"


def log_probs(model: HookedTransformer) -> Tensor:
    with torch.no_grad():
        return model(tiny_tokens()).log_softmax(-1)


def process(model: HookedTransformer, *steps: str) -> HookedTransformer:
    """``model`` with these steps of the stock processing, of all that there are."""
    names = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases",
             "refactor_factored_attn_matrices")  # fmt: skip
    HookedTransformer.load_and_process_state_dict(
        model, model.state_dict(), **{name: name in steps for name in names}
    )
    return model


def without_biases(model: HookedTransformer, *names: str) -> HookedTransformer:
    for block in model.blocks:
        for name in names:
            stored = f"_{name}" if hasattr(block.attn, f"_{name}") else name
            getattr(block.attn, stored).data.zero_()
    return model


LOST: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]] = {
    # changes of the model, biases that it lacks, processing
    "all": ({}, (), ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")),
    "fold alone": ({}, (), ("fold_value_biases",)),
    "grouped": ({"n_key_value_heads": 2}, (), ("fold_value_biases",)),
    "no output bias of its own": ({}, ("b_O",), ("fold_value_biases",)),
    "biases of a norm": (GPT_NEO, ("b_V",), ("fold_ln", "fold_value_biases")),
    "refactored": ({}, (), ("refactor_factored_attn_matrices",)),
}


@pytest.mark.parametrize("streams", ["v", [{"of": "v", "source": "first"}, {"of": "q"}]])
@pytest.mark.parametrize(("changes", "lacking", "steps"), LOST.values(), ids=LOST)
def test_weights_that_lost_their_value_biases_are_refused(
    changes: dict[str, Any], lacking: tuple[str, ...], steps: tuple[str, ...], streams: Any
) -> None:
    model = process(without_biases(stock_model(**changes), *lacking), *steps)
    right = ResValTransformer.from_hooked(
        without_biases(stock_model(**changes), *lacking), streams, unprocessed=True
    )
    with pytest.raises(ValueError, match=rf"{FOLDED}.*from_pretrained_no_processing.*unprocessed"):
        ResValTransformer.from_hooked(model, streams)
    wrong = ResValTransformer.from_hooked(model, streams, unprocessed=True)
    assert (log_probs(wrong) - log_probs(right)).abs().max() > 0.1  # so the refusal has a reason


@pytest.mark.parametrize("streams", ["q", "qk", "v"])
def test_heads_in_bases_of_their_own_are_refused(streams: str) -> None:
    plain = without_biases(stock_model(), "b_V", "b_O", "b_Q", "b_K")
    right = ResValTransformer.from_hooked(plain, streams)
    model = process(copy.deepcopy(plain), "refactor_factored_attn_matrices")
    with pytest.raises(ValueError, match=r"heads are refactored.*from_pretrained_no_processing"):
        ResValTransformer.from_hooked(model, streams)
    wrong = ResValTransformer.from_hooked(model, streams, unprocessed=True)
    assert (log_probs(wrong) - log_probs(right)).abs().max() > 0.1


KEPT: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]] = {
    "unprocessed": ({}, (), ()),
    "norms and centring": ({}, (), ("fold_ln", "center_writing_weights", "center_unembed")),
    "no biases": ({"normalization_type": "RMS"}, ("b_V", "b_O"), ("fold_ln", "fold_value_biases")),
    "fresh": ({"normalization_type": "LN"}, ("b_V", "b_O"), ("center_writing_weights",)),
    "value biases alone": ({}, ("b_O",), ()),
    "GPT-Neo": (GPT_NEO, ("b_V",), ("center_writing_weights", "fold_value_biases")),
}


@pytest.mark.parametrize(("changes", "lacking", "steps"), KEPT.values(), ids=KEPT)
def test_weights_that_lost_nothing_carry_the_stream(
    changes: dict[str, Any], lacking: tuple[str, ...], steps: tuple[str, ...]
) -> None:
    right = ResValTransformer.from_hooked(
        without_biases(stock_model(**changes), *lacking), "v", unprocessed=True
    )
    model = process(without_biases(stock_model(**changes), *lacking), *steps)
    grafted = ResValTransformer.from_hooked(model, "v")
    assert not grafted.cfg.folded_value_biases
    torch.testing.assert_close(log_probs(grafted), log_probs(right), atol=1e-4, rtol=0)


def test_what_was_folded_is_remembered() -> None:
    stock = process(stock_model(), "fold_value_biases")
    ours = ResValTransformer.from_hooked(stock)
    torch.testing.assert_close(log_probs(ours), log_probs(stock), atol=1e-4, rtol=0)
    for model in (
        ours,
        ResValTransformer.from_hooked(stock, "qk"),
        pickle.loads(pickle.dumps(ours)),
    ):
        with pytest.raises(ValueError, match=FOLDED):
            model.with_streams("v")
        with pytest.raises(ValueError, match=FOLDED):
            ResValTransformer.from_hooked(model, "v")
    allowed = ResValTransformer.from_hooked(stock, unprocessed=True)
    assert allowed.with_streams("v").cfg.streams


def test_a_refactored_classic_model_takes_no_stream() -> None:
    model = tiny_model()
    model.process_weights_(fold_value_biases=False, refactor_factored_attn_matrices=True)
    for streams in ("q", "v"):
        with pytest.raises(ValueError, match=r"heads are refactored|value biases are folded"):
            model.with_streams(streams)
    assert torch.equal(log_probs(model.with_streams("")), log_probs(model))


STEPS = [
    {"fold_ln": True},
    {"center_unembed": True, "center_writing_weights": True},
    {"fold_value_biases": True},
    {"fold_ln": True, "fold_value_biases": True},
]


def loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, *, device: Any, tokenizer: Any, **options: Any) -> HookedTransformer:
        assert not any(options.values()), options  # TransformerLens processes nothing
        return stock_model()

    monkeypatch.setattr(HookedTransformer, "from_pretrained_no_processing", load)


@needs_stock
@pytest.mark.parametrize("steps", STEPS, ids=str)
@pytest.mark.parametrize("streams", [None, "v", "qkv"])
def test_a_pretrained_model_is_processed_after_its_stream_came(
    streams: Any, steps: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads(monkeypatch)
    model = ResValTransformer.from_pretrained("gpt2", streams=streams, **steps)
    right = ResValTransformer.from_hooked(stock_model(), streams or "")
    torch.testing.assert_close(log_probs(model), log_probs(right), atol=1e-4, rtol=0)
    assert model.cfg.folded_value_biases == steps.get("fold_value_biases", False)
    assert (model.cfg.normalization_type == "LNPre") == steps.get("fold_ln", False)


@needs_stock
def test_a_pretrained_model_is_not_refactored_around_a_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads(monkeypatch)
    with pytest.raises(ValueError, match="refactor_factored_attn_matrices=True: streams carry"):
        ResValTransformer.from_pretrained("gpt2", streams="v", refactor_factored_attn_matrices=True)


# Streams that would vanish


class Derived(HookedTransformer):
    """As other libraries derive theirs, HookedSAETransformer for one."""


MAKERS: dict[str, Callable[[ResValConfig], Any]] = {
    "HookedTransformer": HookedTransformer,
    "a class derived from it": Derived,
    "a block": lambda cfg: TransformerBlock(cfg, 0),
    "an attention layer": lambda cfg: Attention(cfg, "global", 0),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("kv_heads", [None, 2])
def test_stock_classes_refuse_a_configuration_with_streams(make: Any, kv_heads: Any) -> None:
    cfg = tiny_model("qv", n_key_value_heads=kv_heads).cfg
    with pytest.raises(ValueError, match="Attention would drop the streams 'qv'"):
        make(cfg)
    make(cfg.with_streams(""))
    assert cfg.streams


def test_a_plain_dictionary_of_the_configuration_is_refused_too() -> None:
    with pytest.raises(TypeError, match="streams"):
        HookedTransformer(tiny_model("v").cfg.to_dict())


def test_stock_models_are_built_as_ever() -> None:
    assert isinstance(stock_model(n_key_value_heads=2).blocks[0].attn, GroupedQueryAttention)
    assert HookedTransformer(HookedTransformerConfig(**SETTINGS)).cfg.n_layers == 3


@pytest.mark.parametrize("share", [False, True])
def test_converting_a_model_with_streams_keeps_them(share: bool) -> None:
    for model in (tiny_model("v"), tiny_model([{"of": "v", "mix": "head"}])):
        again = ResValTransformer.from_hooked(model, share_weights=share)
        assert again.cfg == model.cfg
        assert torch.equal(log_probs(again), log_probs(model))
    assert ResValConfig.from_hooked(model.cfg) == model.cfg
    cut = ResValTransformer.from_hooked(model, "")
    assert torch.equal(log_probs(cut), log_probs(model.with_streams("")))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_keep_their_streams(copied: Any) -> None:
    model = tiny_model("v")
    again = copied(model)
    assert again.cfg.streams == model.cfg.streams
    assert torch.equal(log_probs(again), log_probs(model))
    assert torch.equal(log_probs(again.with_streams("")), log_probs(model.with_streams("")))
