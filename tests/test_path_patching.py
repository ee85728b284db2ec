"""Path patching is Algorithm 1, written out; closed forms and identities that it must meet."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from resval_lens.hooks import Link, cut_links, edit_links, freeze, link_activations, links
from resval_lens.hooks.path_patching import path_patch, path_patch_each
from resval_lens.hooks.prompts import PromptPairs, logit_difference, margin
from resval_lens.host import HookedTransformer
from resval_lens.mixes import MIXES, Matrix
from resval_lens.models.classifier import ICLClassifier, classifier_config
from resval_lens.streams import AttentionStream, StreamsLike
from resval_lens.transformer import ResValTransformer
from tests.helpers import stock_model, tiny_model, tiny_tokens
from tests.reference.path_patching import Algorithm1, replaced

DOUBLE: dict[str, Any] = {"n_layers": 4, "dtype": torch.float64, "use_hook_mlp_in": True}
LABELS = torch.tensor([[1, 2], [5, 3], [0, 12]])
PAIRS = PromptPairs(tiny_tokens(3), tiny_tokens(3, seed=5), logit_difference, LABELS)


def expected(
    reference: Algorithm1, senders: Sequence[str], receivers: list[str], links: str = "frozen"
) -> Tensor:
    return logit_difference(reference.logits(senders, receivers, links)[:, -1], LABELS)


def writers(model: HookedTransformer, below: int) -> list[str]:
    """Everything that writes to the residual stream before a layer."""
    heads = [f"a{i}.h{h}" for i in range(below) for h in range(model.cfg.n_heads)]
    return ["input", *heads, *([] if model.cfg.attn_only else [f"m{i}" for i in range(below)])]


CLASSIC: dict[str, dict[str, Any]] = {
    "heads": {},
    "grouped": {"n_key_value_heads": 2},
    "ungrouped": {"n_key_value_heads": 2, "ungroup_grouped_query_attention": True},
    "rotary": {"positional_embedding_type": "rotary"},
    "shortformer": {"positional_embedding_type": "shortformer"},
    "parallel": {"parallel_attn_mlp": True},
    "qk-norm": {"use_qk_norm": True},
    "results": {"use_attn_result": True},
    "two norms": {"use_normalization_before_and_after": True, "normalization_type": "RMS"},
    "bidirectional": {"attention_dir": "bidirectional"},
    "no norm": {"normalization_type": None},
}


@pytest.mark.parametrize("settings", CLASSIC.values(), ids=CLASSIC)
@torch.no_grad()
def test_a_classic_model_is_patched_as_algorithm_1_says_of_the_stock_model(
    settings: dict[str, Any],
) -> None:
    model, stock = tiny_model("", **DOUBLE, **settings), stock_model(**DOUBLE, **settings)
    reference = Algorithm1(stock, PAIRS.clean, PAIRS.corrupted)
    senders = ["input", "a0.h3", "a1.h0", "m0", "m1"]
    for receivers in (["logits"], ["a2.h1<q>", "a3.h0<q>", "a3.h1<v>", "a3.h0<k>"], ["m2", "m3"]):
        found = path_patch_each(model, PAIRS, senders, receivers)
        assert found.effect.abs().max(1).values.min() > 1e-4
        for i in (1, 4):
            alone = expected(reference, [senders[i]], receivers)
            torch.testing.assert_close(found.patched[i], alone)
        together = path_patch(model, PAIRS, senders, receivers).patched
        torch.testing.assert_close(together, expected(reference, senders, receivers))


STREAMS: dict[str, tuple[StreamsLike, dict[str, Any]]] = {
    "values": ("v", {}),
    "values raw": (AttentionStream("v", carry="raw"), {}),
    "values first": (AttentionStream("v", source="first"), {}),
    "values all": (AttentionStream("v", source="all"), {}),
    "gate": (AttentionStream("v", mix="gate"), {}),
    "matrix": (AttentionStream("v", mix="matrix"), {}),
    "three": ("qkv", {"n_key_value_heads": 2}),
    "three raw": ([AttentionStream(s, carry="raw") for s in "qkv"], {"use_qk_norm": True}),
    "three ungrouped": (
        "qkv", {"n_key_value_heads": 2, "ungroup_grouped_query_attention": True},
    ),
}  # fmt: skip
RECEIVERS = [["logits"], ["a3.h0<v>"], ["a3.h1<q>", "a3.h0<k>", "m3"], ["v3.h0"]]


@pytest.mark.parametrize("mode", ["frozen", "through"])
@pytest.mark.parametrize(("streams", "settings"), STREAMS.values(), ids=STREAMS)
@torch.no_grad()
def test_a_stream_model_is_patched_as_algorithm_1_says(
    streams: StreamsLike, settings: dict[str, Any], mode: Any
) -> None:
    model = tiny_model(streams, **DOUBLE, **settings)
    reference = Algorithm1(model, PAIRS.clean, PAIRS.corrupted)
    stream = model.cfg.streams[-1]
    for receivers in RECEIVERS[:3] if stream.source == "first" else RECEIVERS:
        senders = ["v1.h0", "a0.h1", "v1.h1", "m0"]
        if len(model.cfg.streams) == 3:
            senders += ["q1.h0", "k1.h1"]
        if receivers != ["v3.h0"] or stream.carry == "sum":
            senders.append("v2.h0")
        found = path_patch_each(model, PAIRS, senders, receivers, mode)
        assert found.effect.abs().max() > 1e-4
        for i in (0, len(senders) - 1):
            alone = expected(reference, [senders[i]], receivers, mode)
            torch.testing.assert_close(found.patched[i], alone)
        together = path_patch(model, PAIRS, senders, receivers, mode).patched
        torch.testing.assert_close(together, expected(reference, senders, receivers, mode))


# What must hold whatever the implementation


def metric(model: ResValTransformer, tokens: Tensor, hooks: Sequence[Any] = ()) -> Tensor:
    logits = model.run_with_hooks(tokens, fwd_hooks=list(hooks))[:, -1]
    return logit_difference(logits, LABELS)


@torch.no_grad()
def test_without_norms_and_mlps_a_heads_direct_effect_is_its_change_times_the_weights() -> None:
    model = tiny_model("v", **DOUBLE, attn_only=True, normalization_type=None)
    _, a = model.run_with_cache(PAIRS.corrupted)
    _, b = model.run_with_cache(PAIRS.clean)
    found = path_patch_each(model, PAIRS, ["a0.h0", "a1.h3", "a3.h2"], "logits")
    for effect, (layer, head) in zip(found.effect, [(0, 0), (1, 3), (3, 2)], strict=True):
        change = (a["z", layer] - b["z", layer])[:, -1, head]
        logits = change @ model.W_O[layer, head] @ model.W_U
        torch.testing.assert_close(effect, logit_difference(logits, LABELS))


@torch.no_grad()
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_without_norms_and_mlps_a_value_links_direct_effect_goes_through_its_heads_pattern(
    kv_heads: int,
) -> None:
    model = tiny_model(
        "v", **DOUBLE, attn_only=True, normalization_type=None, n_key_value_heads=kv_heads
    )
    _, a = model.run_with_cache(PAIRS.corrupted)
    _, b = model.run_with_cache(PAIRS.clean)
    found = path_patch_each(model, PAIRS, [Link("v", 1, 1), Link("v", 3, 0)], "logits")
    for effect, (layer, kv_head) in zip(found.effect, [(1, 1), (3, 0)], strict=True):
        change = (a["v_link", layer] - b["v_link", layer])[:, :, kv_head]
        logits = torch.zeros(3, 13, dtype=torch.float64)
        for head in range(4):
            if head // (4 // kv_heads) == kv_head:
                read = torch.einsum("bk,bkd->bd", b["pattern", layer][:, head, -1], change)
                logits += read @ model.W_O[layer, head] @ model.W_U
        torch.testing.assert_close(effect, logit_difference(logits, LABELS))


@torch.no_grad()
def test_without_norms_and_mlps_direct_effects_add_up_to_the_whole() -> None:
    model = tiny_model("qkv", **DOUBLE, attn_only=True, normalization_type=None)
    found = path_patch_each(model, PAIRS, writers(model, 4), "logits")
    whole = metric(model, PAIRS.corrupted) - metric(model, PAIRS.clean)
    torch.testing.assert_close(found.effect.sum(0), whole)


@pytest.mark.parametrize("mode", ["frozen", "through"])
@pytest.mark.parametrize("streams", ["", "qkv"])
@torch.no_grad()
def test_every_writer_into_the_logits_is_the_corrupted_run(streams: str, mode: Any) -> None:
    model = tiny_model(streams, **DOUBLE)
    found = path_patch(model, PAIRS, writers(model, 4), "logits", mode)
    torch.testing.assert_close(found.patched, metric(model, PAIRS.corrupted))
    torch.testing.assert_close(found.clean, metric(model, PAIRS.clean))


@pytest.mark.parametrize("carry", ["raw", "sum"])
@pytest.mark.parametrize("layer", [1, 2])
@torch.no_grad()
def test_every_writer_into_a_layer_with_links_let_through_is_that_layers_corrupted_q_k_and_v(
    layer: int, carry: Any
) -> None:
    model = tiny_model([AttentionStream(s, carry=carry) for s in "qkv"], **DOUBLE)
    _, a = model.run_with_cache(PAIRS.corrupted)
    names = [f"blocks.{layer}.attn.hook_{s}" for s in "qkv"]
    corrupted = metric(model, PAIRS.clean, replaced({name: [(None, a[name])] for name in names}))
    receivers = [f"a{layer}.h{head}<{s}>" for s in "qkv" for head in range(4)]
    found = path_patch(model, PAIRS, writers(model, layer), receivers, "through")
    torch.testing.assert_close(found.patched, corrupted)
    frozen = path_patch(model, PAIRS, writers(model, layer), receivers, "frozen")
    assert not frozen.patched.allclose(corrupted)


@pytest.mark.parametrize("streams", ["q", "k", "v"])
@torch.no_grad()
def test_a_last_link_into_the_logits_is_that_link_from_the_corrupted_run(streams: str) -> None:
    model = tiny_model(streams, **DOUBLE)
    reference = link_activations(model, PAIRS.corrupted)
    found = path_patch_each(model, PAIRS, links(model, layers=[-1]), "logits")
    for head, values in enumerate(found.patched):
        with edit_links(model, freeze(reference), layers=[-1], heads=[head]):
            torch.testing.assert_close(values, metric(model, PAIRS.clean))
    assert found.senders == tuple(f"{streams}3.h{head}" for head in range(4))


@torch.no_grad()
def test_a_head_that_sends_does_not_mind_a_link_into_it_that_sends_too() -> None:
    model = tiny_model("v", **DOUBLE)
    alone = path_patch(model, PAIRS, "a2.h1", ["m2"])
    torch.testing.assert_close(
        path_patch(model, PAIRS, ["v2.h1", "a2.h1"], "m2").patched, alone.patched
    )


@torch.no_grad()
def test_links_let_through_matter_where_values_change_on_their_way() -> None:
    model = tiny_model("v", **DOUBLE)
    frozen, through = (
        path_patch_each(model, PAIRS, ["a0.h0", "v1.h0", "m1"], "a3.h0<v>", mode)  # type: ignore[arg-type]
        for mode in ("frozen", "through")
    )
    assert not torch.isclose(frozen.patched, through.patched).any()
    torch.testing.assert_close(frozen.clean, through.clean)


@torch.no_grad()
def test_equal_corrupted_prompts_have_no_effect() -> None:
    model = tiny_model("v", **DOUBLE)
    same = PromptPairs(PAIRS.clean, PAIRS.clean, logit_difference, LABELS)
    for receivers in (["logits"], ["a3.h0<v>", "m2"]):
        found = path_patch_each(model, same, ["a0.h0", "v1.h0", "m1"], receivers, "through")
        torch.testing.assert_close(found.effect, torch.zeros(3, 3, dtype=torch.float64))


@torch.no_grad()
def test_under_an_edit_of_the_links_the_edited_model_is_patched() -> None:
    model = tiny_model("v", **DOUBLE)
    arguments = (PAIRS, ["a0.h0", "m1"], ["a3.h0<v>"], "through")
    classic = path_patch_each(model.with_streams(""), *arguments).patched  # type: ignore[arg-type]
    with cut_links(model):
        torch.testing.assert_close(path_patch_each(model, *arguments).patched, classic)  # type: ignore[arg-type]


# In parts, padded, and for a classifier


@pytest.mark.parametrize("max_tokens", [7, 14, 45])
@torch.no_grad()
def test_parts_of_prompts_and_senders_change_nothing(max_tokens: int) -> None:
    model = tiny_model("v", **DOUBLE)
    senders = ["m2", "a0.h1", "v1.h0", "a0.h0", "v2.h3", "input"]
    found = path_patch_each(model, PAIRS, senders, ["a3.h0<v>", "m3"], "through", max_tokens)
    assert found.senders == tuple(senders)
    for sender, values in zip(senders, found.patched, strict=True):
        alone = path_patch(model, PAIRS, sender, ["a3.h0<v>", "m3"], "through").patched
        torch.testing.assert_close(values, alone)


@torch.no_grad()
def test_prompts_padded_on_the_right_answer_at_their_own_ends() -> None:
    model = tiny_model("v", **DOUBLE)
    padded = PromptPairs(
        PAIRS.clean, PAIRS.corrupted, logit_difference, LABELS, torch.tensor([6, 4, 2])
    )
    found = path_patch_each(model, padded, ["a0.h1", "v2.h0"], ["a3.h0<q>", "a3.h0<v>"])
    for prompt, last in enumerate([6, 4, 2]):
        short = PromptPairs(
            PAIRS.clean[prompt : prompt + 1, : last + 1],
            PAIRS.corrupted[prompt : prompt + 1, : last + 1],
            logit_difference,
            LABELS[prompt : prompt + 1],
        )
        alone = path_patch_each(model, short, found.senders, found.receivers)
        torch.testing.assert_close(found.patched[:, prompt], alone.patched[:, 0])


@torch.no_grad()
def test_a_classifiers_last_head_and_link_into_its_readout_are_patched_by_hand() -> None:
    model = ICLClassifier(classifier_config("v"), generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 3, 17, 150, generator=torch.Generator().manual_seed(1)) / 85**0.5
    labels = torch.tensor([[0, 3], [4, 2], [7, 9]])
    pairs = PromptPairs(x[0], x[1], margin, labels)
    _, a = model.run_with_cache(x[1])
    found = path_patch_each(model, pairs, ["a1.h0", "v1.h0"], "logits")
    for values, name in zip(found.patched, ["z", "v_link"], strict=True):
        place = f"blocks.1.attn.hook_{name}"
        logits = model.run_with_hooks(x[0], fwd_hooks=replaced({place: [(0, a[place])]}))
        torch.testing.assert_close(values, margin(logits, labels))


# The model is left as it was; what cannot be is refused


def test_an_interrupt_leaves_no_hooks_and_the_model_in_its_mode() -> None:
    model = tiny_model("v", n_layers=4)
    model.train()
    calls = []

    def interrupted(logits: Tensor, labels: Tensor) -> Tensor:
        calls.append(logits.requires_grad)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return logit_difference(logits, labels)

    pairs = PromptPairs(PAIRS.clean, PAIRS.corrupted, interrupted, LABELS)
    with pytest.raises(KeyboardInterrupt):
        path_patch(model, pairs, "a0.h0", "a3.h0<q>")

    def stop(activation: Tensor, hook: Any) -> None:
        if len(activation) > 3:
            raise KeyboardInterrupt

    model.add_hook("blocks.3.attn.hook_q", stop)
    with pytest.raises(KeyboardInterrupt):
        path_patch_each(model, PAIRS, ["a0.h0", "a0.h1"], "a3.h0<q>")
    hooked = [name for name, point in model.hook_dict.items() if point._forward_hooks]
    assert hooked == ["blocks.3.attn.hook_q"]
    assert all(module.training for module in model.modules())
    assert calls == [False, False]


def test_a_model_in_training_mode_is_patched_without_dropout() -> None:
    model = tiny_model("v", dropout=0.5)
    evaluated = path_patch(model.eval(), PAIRS, "v1.h0", "logits").patched
    assert path_patch(model.train(), PAIRS, "v1.h0", "logits").patched.equal(evaluated)


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"senders": "a0"}, r"senders: 'a0' is not a name like a2\.h1 \(a head\), m2"),
        ({"senders": "a0.h1<q>"}, "senders: 'a0.h1<q>' is not a name like"),
        ({"senders": "logits"}, "senders: 'logits' is not a name like"),
        ({"senders": []}, "senders: the selection is empty; name one or more"),
        ({"senders": "a3.h0"}, "senders: a3.h0: layer 3 is not among 0 to 2"),
        ({"senders": "m3"}, "senders: m3: layer 3 is not among 0 to 2"),
        ({"senders": "a0.h4"}, "senders: a0.h4: head 4 is not among 0 to 3"),
        ({"senders": "v0.h0"}, r"senders: v0.h0: layers: layer 0 receives no v; layers \[1, 2\]"),
        ({"senders": "q1.h0"}, "senders: q1.h0: of='q': this model has links of v only"),
        ({"senders": Link("v", 1, 2)}, "senders: v1.h2: heads: 2 is not among 0 to 1"),
        (
            {"receivers": "a2.h0"},
            r"receivers: 'a2.h0' is not a name like a2\.h1<q>, <k> or <v>, m2",
        ),
        ({"receivers": "input"}, "receivers: 'input' is not a name like"),
        ({"receivers": "a2.h2<v>"}, "receivers: a2.h2<v>: head 2 is not among 0 to 1"),
        ({"receivers": ["logits", "m2"]}, "receivers: 'logits' is all that the metric reads"),
        ({"senders": "a2.h0"}, "senders: nothing flows from a2.h0 into a2.h0<q>"),
        ({"senders": "m2"}, "senders: nothing flows from m2 into a2.h0<q>"),
        ({"senders": "v2.h0"}, "senders: nothing flows from v2.h0 into a2.h0<q>"),
        ({"senders": ["a1.h0", "a2.h1"]}, "senders: nothing flows from a2.h1 into a2.h0<q>"),
        ({"senders": "m1", "receivers": ["m1"]}, "senders: nothing flows from m1 into m1"),
        ({"senders": "m1", "receivers": ["a2.h0<v>", "a1.h0<v>"]},
         "receivers: nothing flows into a1.h0<v> from m1"),
        ({"senders": "a1.h0", "receivers": "v2.h0"}, "nothing flows from a1.h0 into v2.h0"),
        ({"senders": "v1.h0", "receivers": "v2.h1"}, "nothing flows from v1.h0 into v2.h1"),
        ({"links": "free"}, "links must be 'frozen' or 'through'; got 'free'"),
        ({"max_tokens": 0}, "max_tokens must be 1 or more; got 0"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_patched_is_refused(changes: dict[str, Any], message: str) -> None:
    model = tiny_model("v", n_key_value_heads=2)
    arguments = {"senders": "a0.h0", "receivers": "a2.h0<q>", **changes}
    with pytest.raises(ValueError, match=message):
        path_patch_each(model, PAIRS, **arguments)


def test_a_model_without_mlps_or_links_says_so() -> None:
    with pytest.raises(ValueError, match="senders: m0: this model has no MLPs"):
        path_patch(tiny_model("", attn_only=True), PAIRS, "m0", "logits")
    with pytest.raises(ValueError, match=r"receivers: v2\.h0: this model has no links"):
        path_patch(tiny_model(""), PAIRS, "a0.h0", "v2.h0")


@pytest.mark.parametrize(
    ("stream", "sender", "receiver", "flows"),
    [
        (AttentionStream("v"), "v1.h0", "a1.h0<v>", True),  # a part of what this head has
        (AttentionStream("v"), "v1.h1", "a1.h0<v>", False),
        (AttentionStream("v"), "v1.h0", "a1.h0<k>", False),
        (AttentionStream("v"), "v1.h0", "v2.h0", True),  # passed on
        (AttentionStream("v"), "v1.h1", "v2.h0", False),
        (AttentionStream("v", mix="matrix"), "v1.h1", "v2.h0", True),
        (AttentionStream("v", carry="raw"), "v1.h0", "v2.h0", False),
        (AttentionStream("v"), "m0", "v2.h0", True),  # layer 1 reads it and hands it on
        (AttentionStream("v"), "m1", "v2.h0", False),
        (AttentionStream("v", source="first"), "m0", "v2.h0", False),
    ],
    ids=str,
)
@torch.no_grad()
def test_a_path_is_refused_where_nothing_flows(
    stream: AttentionStream, sender: str, receiver: str, flows: bool
) -> None:
    model = tiny_model(stream, **DOUBLE)
    if stream.how.crosses_heads:
        model.blocks[2].attn.mixes["v"].carried.fill_(1.0)  # every head reads every head
    if flows:
        assert path_patch(model, PAIRS, sender, receiver).effect.abs().max() > 1e-6
    else:
        with pytest.raises(ValueError, match=f"nothing flows from {sender} into {receiver}"):
            path_patch(model, PAIRS, sender, receiver)


def test_a_path_crosses_heads_where_a_mix_of_ones_own_does(monkeypatch: pytest.MonkeyPatch) -> None:
    class Every(Matrix):
        name = "every"

    monkeypatch.setitem(MIXES, "every", Every())
    stream = AttentionStream("v", mix="every")
    test_a_path_is_refused_where_nothing_flows(stream, "v1.h1", "v2.h0", True)


def test_a_parallel_mlp_does_not_read_its_own_layers_heads() -> None:
    with pytest.raises(ValueError, match=r"nothing flows from a1\.h0 into m1"):
        path_patch(tiny_model("", parallel_attn_mlp=True), PAIRS, "a1.h0", "m1")
