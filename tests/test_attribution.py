"""Attribution: the parts are what is lost when they are taken away, and nothing is left over."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from resval_lens.analyses.attribution.logits import (
    Attribution,
    attribute,
    logit_lens,
    part_name,
)
from resval_lens.analyses.attribution.values import value_parts, z_parts
from resval_lens.hooks import cut_links
from resval_lens.lens.hook_names import ResValCache
from resval_lens.mixes import MIXES
from resval_lens.models.classifier import ICLClassifier
from resval_lens.streams import AttentionStream
from resval_lens.transformer import ResValTransformer
from tests.classifiers import model_of
from tests.classifiers import tokens as continuous_tokens
from tests.helpers import ARCHITECTURES, tiny_model, tiny_tokens
from tests.mixes import each_mix, sources_of, stream_of

STREAMS: dict[str, Any] = {
    "none": "",
    "queries": "q",
    "sum": "v",
    "raw": AttentionStream("v", carry="raw"),
    "first": AttentionStream("v", source="first"),
    "all": AttentionStream("v", source="all", carry="raw", mix="scalar", own=0.8),
    "all sum": AttentionStream("v", source="all", mix="head", carried=0.4),
    "pair": AttentionStream("v", mix="pair", own=0.5, carried=0.25),
    "svformer": AttentionStream("v", source="first", mix="pair", own=0, carried=1),
    "convex": AttentionStream("v", mix="convex", carried=0.3),
    "learned pair": AttentionStream("v", source="all", mix="learned_pair"),
    "gate": AttentionStream("v", mix="gate"),
    "matrix": AttentionStream("v", mix="matrix", carried=0.6),
    "matrix raw": AttentionStream("v", source="all", carry="raw", mix="matrix"),
    "layers": AttentionStream("v", layers=(2,)),
    "all three": "qkv",
}
SETTINGS: dict[str, dict[str, Any]] = {
    name: ARCHITECTURES[name]
    for name in ("mha", "gqa", "gqa-ungrouped", "rotary-gqa", "alibi", "shortformer", "attn-only",
                 "split-qkv", "split-qkv-gqa", "attn-in", "attn-result", "parallel-mlp",
                 "gated-mlp", "local")
} | {
    "tied": {"tied_embedding": True},
    "final rms": {"final_rms": True},
    "dropout": {"dropout": 0.2},
}  # fmt: skip
NORMS = ["LN", "LNPre", "RMS", "RMSPre", None]
TOKENS = tiny_tokens(batch=3)
LABELS = torch.tensor([[1, 5], [12, 0], [3, 7]])
LAST = torch.tensor([6, 2, 4])

each_stream = pytest.mark.parametrize("streams", STREAMS.values(), ids=STREAMS.keys())
each_setting = pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS.keys())


def double(streams: Any = "v", **changes: Any) -> ResValTransformer:
    return tiny_model(streams, dtype=torch.float64, **changes)


def own_point(model: ResValTransformer, layer: int) -> str:
    """Where a layer's own values stand."""
    local = f"blocks.{layer}.attn.hook_v_local"
    return local if local in model.hook_dict else f"blocks.{layer}.attn.hook_v"


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def without_values_of(model: ResValTransformer, source: int, clean: ResValCache) -> ResValCache:
    """A run in which layer ``source`` makes no values, but all read and attend as in ``clean``."""
    frozen = ("hook_resid_pre", "hook_pattern")
    hooks: list[Any] = [
        (name, lambda x, hook: clean[hook.name]) for name in clean if name.endswith(frozen)
    ]
    hooks.append((own_point(model, source), lambda x, hook: torch.zeros_like(x)))
    with model.hooks(fwd_hooks=hooks):
        _, cache = model.run_with_cache(TOKENS)
    return cache


def check_parts_against_removal(model: ResValTransformer) -> None:
    _, cache = model.run_with_cache(TOKENS)
    values, zs = value_parts(model, cache), z_parts(model, cache)
    layers = range(model.cfg.n_layers)
    for source in layers:
        removed = without_values_of(model, source, cache)
        for layer in layers:
            for parts, point in ((values, "hook_v"), (zs, "hook_z")):
                name = f"blocks.{layer}.attn.{point}"
                lost = cache[name] - removed[name]
                close(parts[layer].get(source, torch.zeros_like(lost)), lost)
    for layer in layers:
        close(torch.stack([*values[layer].values()]).sum(0), cache["v", layer])
        close(torch.stack([*zs[layer].values()]).sum(0), cache["z", layer])
        assert next(iter(values[layer])) == layer


# The values and what heads make of them


@each_stream
def test_a_part_is_what_is_lost_without_its_layers_values(streams: Any) -> None:
    check_parts_against_removal(double(streams))


@each_setting
def test_parts_are_right_in_every_architecture(changes: dict[str, Any]) -> None:
    check_parts_against_removal(double(**changes).eval())


@pytest.mark.parametrize("architecture", ["gqa", "gqa-ungrouped", "split-qkv-gqa", "attn-in"])
@each_mix
def test_parts_are_right_where_heads_are_mixed_and_grouped(mix: Any, architecture: str) -> None:
    model = double(stream_of(mix), **ARCHITECTURES[architecture])
    check_parts_against_removal(model)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    st.sampled_from([(mix, source) for mix in MIXES for source in sources_of(mix)]),
    st.sampled_from(["raw", "sum"]),
    st.none() | st.sets(st.integers(1, 3), min_size=1).map(tuple),
)
def test_parts_of_any_stream(which: tuple[str, str], carry: Any, layers: Any) -> None:
    mix, source = which
    stream = stream_of(mix, source=source, carry=carry, layers=layers)
    check_parts_against_removal(double(stream, n_layers=4, n_heads=2, d_model=8))


def test_raw_values_come_from_one_layer_back_and_summed_ones_from_all() -> None:
    sources = {}
    for carry in ("raw", "sum"):
        model = tiny_model(AttentionStream("v", carry=carry), n_layers=4)
        _, cache = model.run_with_cache(TOKENS)
        sources[carry] = [list(parts) for parts in value_parts(model, cache)]
    assert sources["raw"] == [[0], [1, 0], [2, 1], [3, 2]]
    assert sources["sum"] == [[0], [1, 0], [2, 0, 1], [3, 0, 1, 2]]


def test_parts_of_a_classifier_are_what_its_readout_reads() -> None:
    model, x = model_of("v"), continuous_tokens(4)
    _, cache = model.run_with_cache(x)
    written = x[:, -1].clone()
    for layer, parts in enumerate(z_parts(model, cache, torch.full((4,), x.shape[1] - 1))):
        for z in parts.values():
            written += torch.einsum("bhd,hdm->bm", z[:, 0], model.blocks[layer].attn.W_O)
    torch.testing.assert_close(written, cache["readout.hook_in"])


# A logit difference in parts


def check_sum(model: ResValTransformer, tolerance: float) -> Attribution:
    found = attribute(model, TOKENS, LABELS, LAST)
    logits = model.eval()(TOKENS)[torch.arange(3), LAST]
    wanted = logits.gather(1, LABELS[:, :1]) - logits.gather(1, LABELS[:, 1:])
    torch.testing.assert_close(found.total, wanted[:, 0].detach(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.values.sum(1), found.total, rtol=tolerance, atol=tolerance)
    return found


@each_stream
def test_the_parts_sum_to_the_logit_difference(streams: Any) -> None:
    check_sum(double(streams), 1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("streams", ["none", "all sum", "gate"])
def test_the_parts_sum_under_every_norm(streams: str, norm: str | None) -> None:
    check_sum(double(STREAMS[streams], normalization_type=norm), 1e-9)


@each_setting
def test_the_parts_sum_in_every_architecture(changes: dict[str, Any]) -> None:
    check_sum(double("qv", **changes), 1e-9)


@pytest.mark.parametrize("fold_value_biases", [True, False])
@pytest.mark.parametrize("norm", ["LN", "RMS", None])
@pytest.mark.parametrize("streams", ["none", "sum", "all sum"])
def test_the_parts_sum_after_weight_processing(
    streams: str, norm: str | None, fold_value_biases: bool
) -> None:
    model = double(STREAMS[streams], normalization_type=norm)
    before = attribute(model, TOKENS, LABELS, LAST)
    model.process_weights_(fold_value_biases=fold_value_biases)
    after = check_sum(model, 1e-8)
    torch.testing.assert_close(after.total, before.total, rtol=1e-3, atol=1e-3)  # in float32
    assert "ln_final.b" not in after.components  # folded


@pytest.mark.parametrize("norm", NORMS)
def test_in_single_precision_they_sum_to_one_part_in_ten_thousand(norm: str | None) -> None:
    check_sum(tiny_model("v", normalization_type=norm), 1e-4)


def test_in_half_precision_they_sum_as_far_as_it_goes() -> None:
    found = attribute(tiny_model("v", dtype=torch.bfloat16), TOKENS, LABELS, LAST)
    assert found.values.dtype == torch.float32
    torch.testing.assert_close(found.values.sum(1), found.total, rtol=0.05, atol=0.3)


@torch.no_grad()
def lost_without(model: ResValTransformer, written: Tensor) -> Tensor:
    """The change of the logit difference, the norm's scale frozen, without a component's output."""
    _, clean = model.run_with_cache(TOKENS)
    hooks: list[Any] = [
        (f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", lambda x, hook: x - written)
    ]
    if model.cfg.normalization_type is not None:
        hooks.append(("ln_final.hook_scale", lambda x, hook: clean[hook.name]))
    differences = []
    for run in ([], hooks):
        logits = model.run_with_hooks(TOKENS, fwd_hooks=run)[torch.arange(3), LAST]
        differences.append(logits[torch.arange(3), LABELS[:, 0]])
        differences[-1] = differences[-1] - logits[torch.arange(3), LABELS[:, 1]]
    return differences[0] - differences[1]


@pytest.mark.parametrize(
    ("streams", "norm"), [*(("all sum", norm) for norm in NORMS), ("raw", "LN"), ("gate", "RMS")]
)
def test_a_share_is_the_change_of_the_logit_difference_without_it(
    streams: str, norm: str | None
) -> None:
    model = double(STREAMS[streams], normalization_type=norm)
    found = attribute(model, TOKENS, LABELS, LAST)
    _, cache = model.run_with_cache(TOKENS)
    removed = [without_values_of(model, source, cache) for source in range(3)]
    outputs = {"embed": cache["hook_embed"], "pos_embed": cache["hook_pos_embed"]}
    for layer in range(3):
        outputs[f"m{layer}"] = cache["mlp_out", layer]
        outputs[f"b_O {layer}"] = model.blocks[layer].attn.b_O.detach().expand(3, 7, -1)
        for source in range(layer + 1):
            lost = (cache["z", layer] - removed[source]["z", layer]).numpy()
            for head in range(4):
                w = model.blocks[layer].attn.W_O[head].detach().numpy()
                part = torch.from_numpy(lost[:, :, head] @ w)
                component = part_name(layer, head, source)
                if component in found.components:
                    outputs[component] = part
                else:
                    assert part.abs().max() < 1e-12
    biases = {"b_U"} | ({"ln_final.b"} if norm == "LN" else set())
    assert set(outputs) | biases == set(found.components)
    for component, output in outputs.items():
        close(found[component], lost_without(model, output))
    w_u = model.unembed.W_U.detach()
    b_u = model.unembed.b_U.detach()
    close(found["b_U"], b_u[LABELS[:, 0]] - b_u[LABELS[:, 1]])
    if norm == "LN":
        difference = w_u[:, LABELS[:, 0]] - w_u[:, LABELS[:, 1]]
        close(found["ln_final.b"], model.ln_final.b.detach() @ difference)


@pytest.mark.parametrize("carry", ["raw", "sum"])
def test_cutting_a_link_takes_away_what_the_attribution_says(carry: Any) -> None:
    model = double(
        AttentionStream("v", carry=carry), attn_only=True, normalization_type=None, n_layers=3
    )
    found = attribute(model, TOKENS, LABELS)
    for head in range(4):
        with torch.no_grad(), cut_links(model, layers=[2], heads=[head]):
            # Patterns are frozen by themselves: nothing reads what the last layer writes.
            logits = model(TOKENS)[:, -1]
        after = logits[torch.arange(3), LABELS[:, 0]] - logits[torch.arange(3), LABELS[:, 1]]
        close(found.total - after, found.heads[:, 2, :2, head].sum(1))


@torch.no_grad()
def test_cutting_a_middle_link_with_frozen_patterns_changes_logits_as_the_parts_say() -> None:
    """Without norms and MLPs all that follows is linear: the change is a difference of parts."""
    model = double("v", attn_only=True, normalization_type=None)
    _, clean = model.run_with_cache(TOKENS)
    frozen: list[Any] = [
        (name, lambda x, hook: clean[hook.name])
        for name in clean
        if name.endswith(("hook_resid_pre", "hook_pattern"))
    ]
    with model.hooks(fwd_hooks=frozen), cut_links(model, layers=[1]):
        _, cut = model.run_with_cache(TOKENS)
    found = attribute(model, TOKENS, LABELS)
    u = model.unembed.W_U[:, LABELS[:, 0]] - model.unembed.W_U[:, LABELS[:, 1]]
    for layer in (1, 2):  # layer 2 loses what came from layer 0 by way of layer 1
        lost = (clean["z", layer] - cut["z", layer])[:, -1]
        lost = torch.einsum("bhd,hdm,mb->bh", lost, model.blocks[layer].attn.W_O, u)
        close(found.heads[:, layer, 0], lost)


# What comes out, and what is refused


def test_of_several_wrong_labels_each_prompts_likeliest_counts() -> None:
    model, several = double("v"), torch.tensor([[1, 5, 2, 2], [12, 0, 4, 7], [3, 7, 8, 1]])
    logits = model(TOKENS)[torch.arange(3), LAST]
    for row in range(3):
        best = max(several[row, 1:].tolist(), key=lambda token: logits[row, token].item())
        two = torch.tensor([[several[row, 0].item(), best]])
        one = slice(row, row + 1)
        found = attribute(model, TOKENS[one], several[one], LAST[one])
        wanted = attribute(model, TOKENS[one], two, LAST[one])
        close(found.values, wanted.values)
        close(found.total, (logits[row, several[row, 0]] - logits[row, best])[None])
    lens = logit_lens(model, TOKENS, several, LAST)
    close(lens.logit_difference[-1], attribute(model, TOKENS, several, LAST).total)


def test_components_are_named_in_the_order_of_the_model() -> None:
    model = tiny_model("v", n_layers=3, n_heads=1, d_head=16)
    assert attribute(model, TOKENS, LABELS).components == (
        "embed", "pos_embed", "a0.h0", "b_O 0", "m0", "a1.h0", "a1.h0 from 0", "b_O 1", "m1",
        "a2.h0", "a2.h0 from 0", "a2.h0 from 1", "b_O 2", "m2", "ln_final.b", "b_U",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"positional_embedding_type": "rotary"}, {"pos_embed"}),
        ({"attn_only": True}, {"m0", "m1", "m2"}),
        ({"normalization_type": "RMS"}, {"ln_final.b"}),
    ],
    ids=["rotary", "attention only", "RMS"],
)
def test_what_a_model_lacks_is_no_component(changes: dict[str, Any], missing: set[str]) -> None:
    everything = set(attribute(tiny_model("v"), TOKENS, LABELS).components)
    assert everything - set(attribute(tiny_model("v", **changes), TOKENS, LABELS).components) == (
        missing
    )


def test_the_heads_view_holds_the_heads_components_and_zeros() -> None:
    found = attribute(tiny_model(AttentionStream("v", carry="raw")), TOKENS, LABELS)
    seen = np.zeros((3, 3, 3, 4))
    for layer, source, head in np.ndindex(3, 3, 4):
        name = part_name(layer, head, source)
        if source in (layer, layer - 1):
            seen[:, layer, source, head] = found[name].numpy()
        else:
            assert name not in found.components
    np.testing.assert_array_equal(found.heads.numpy(), seen)


def test_means_are_over_prompts_and_the_largest_comes_first() -> None:
    found = attribute(tiny_model("v"), TOKENS, LABELS)
    means = found.means()
    assert set(means) == set(found.components)
    assert means["m1"] == pytest.approx(sum(found["m1"].tolist()) / 3)
    sizes = [abs(value) for value in means.values()]
    assert sizes == sorted(sizes, reverse=True)
    with pytest.raises(ValueError, match=r"no component 'm9'; there are embed, pos_embed, a0\.h0"):
        found["m9"]


def test_chunks_and_padding_change_nothing() -> None:
    model = double("v")
    whole, one_by_one = (attribute(model, TOKENS, LABELS, LAST, max_tokens=n) for n in (4096, 1))
    close(one_by_one.values, whole.values)
    close(one_by_one.heads, whole.heads)
    for prompt, last in enumerate(LAST.tolist()):
        alone = attribute(
            model, TOKENS[prompt : prompt + 1, : last + 1], LABELS[prompt : prompt + 1]
        )
        close(alone.values[0], whole.values[prompt])


def test_a_model_in_training_is_attributed_without_dropout_and_left_in_training() -> None:
    model = tiny_model("v", dropout=0.5).train()
    found = attribute(model, TOKENS, LABELS)
    assert model.training
    assert found.total.equal(attribute(model.eval(), TOKENS, LABELS).total)


def scaled(name: str) -> Callable[[ResValTransformer], Any]:
    def hook(x: Tensor, hook: HookPoint) -> Tensor:
        return 2 * x

    return lambda model: model.hooks(fwd_hooks=[(name, hook)])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (cut_links, r"the values of layer 1 are not what flows there: this run was edited"),
        (scaled("blocks.2.attn.hook_v"), r"the values of layer 2 are not what flows there"),
        (scaled("blocks.1.hook_resid_pre"), r"prompt 0: the parts sum to .*a hook edits what"),
    ],
    ids=["links", "values", "residual"],
)
def test_an_edited_run_is_refused(edit: Any, message: str) -> None:
    model = tiny_model("v")
    with edit(model), pytest.raises(ValueError, match=message):
        attribute(model, TOKENS, LABELS)


def test_an_edit_of_what_a_component_writes_is_attributed_as_edited() -> None:
    model = tiny_model("v")
    before = attribute(model, TOKENS, LABELS)
    with scaled("blocks.2.hook_mlp_out")(model):
        after = attribute(model, TOKENS, LABELS)
    assert not torch.allclose(after["m2"], before["m2"])


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"use_normalization_before_and_after": True, "normalization_type": "RMS"},
            "this model normalises what attention",
        ),
        ({"clip_qkv": 1.0}, r"clip_qkv=1\.0: clipped values are not a sum of parts"),
    ],
    ids=str,
)
def test_a_readout_without_parts_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attribute(tiny_model("v", **changes), TOKENS, LABELS)


def test_of_capped_logits_the_shares_are_those_before_the_cap() -> None:
    model = tiny_model("v", output_logits_soft_cap=2.0, dtype=torch.float64)
    found = attribute(model, TOKENS, LABELS)
    with torch.no_grad():
        logits = 2 * torch.atanh(model(TOKENS)[:, -1] / 2)
    first, second = logits.gather(1, LABELS).unbind(1)
    torch.testing.assert_close(found.values.sum(1), first - second)
    torch.testing.assert_close(found.total, first - second)


@pytest.mark.usefixtures("unchecked_annotations")
def test_a_classifier_is_referred_to_the_parts_that_it_has() -> None:
    with pytest.raises(ValueError, match=r"a classifier's logits are not a sum .*; z_parts has"):
        attribute(model_of("v"), continuous_tokens(3), LABELS)


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize("use", [attribute, logit_lens])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"labels": LABELS[:, :1]},
            r"labels must be two or more for each prompt, .*\[prompt, label\]; got \[3, 1",
        ),
        ({"labels": LABELS[:2]}, "labels must be .*, for 3 prompts"),
        ({"labels": LABELS + 1}, "labels: 13 is not among 0 to 12"),
        ({"labels": -LABELS}, "labels: -1 is not among 0 to 12"),
        ({"last": LAST + 1}, "last: 7 is not among 0 to 6"),
        ({"max_tokens": 0}, "max_tokens must be 1 or more; got 0"),
        ({"tokens": TOKENS[0]}, r"tokens must be \[prompt, pos\]; got \[7\]"),
        ({"tokens": TOKENS.repeat(1, 2)}, "prompts of 14 tokens do not fit n_ctx=12"),
    ],
    ids=str,
)
def test_prompts_that_do_not_fit_are_refused(
    arguments: dict[str, Any], message: str, use: Any
) -> None:
    with pytest.raises(ValueError, match=message):
        use(tiny_model("v"), **{"tokens": TOKENS, "labels": LABELS, **arguments})


# The logit lens


@pytest.mark.parametrize("architecture", ["mha", "no-norm", "soft-capped"])
@torch.no_grad()
def test_the_lens_reads_out_a_model_that_ends_there(architecture: str) -> None:
    model = double("v", **ARCHITECTURES[architecture])
    found = logit_lens(model, TOKENS, LABELS, LAST, max_tokens=14)
    assert found.points == ("embed", "0", "1", "2")
    for point in range(4):
        # A model whose later layers write nothing says what the lens says.
        silent: list[Any] = [
            (f"blocks.{layer}.{name}", lambda x, hook: torch.zeros_like(x))
            for layer in range(point, 3)
            for name in ("hook_attn_out", "hook_mlp_out")
        ]
        logits = model.run_with_hooks(TOKENS, fwd_hooks=silent).numpy()
        for prompt, (last, (first, second)) in enumerate(
            zip(LAST.tolist(), LABELS.tolist(), strict=True)
        ):
            row = logits[prompt, last]
            odds = np.exp(row)
            assert found.logit_difference[point, prompt].item() == pytest.approx(
                row[first] - row[second]
            )
            assert found.probability[point, prompt].item() == pytest.approx(
                odds[first] / odds.sum()
            )
            assert found.rank[point, prompt].item() == sorted(-row).index(-row[first])


def test_the_lens_of_the_last_layer_is_the_attributions_total() -> None:
    model = double("v")
    lens = logit_lens(model, TOKENS, LABELS, LAST)
    close(lens.logit_difference[-1], attribute(model, TOKENS, LABELS, LAST).total)


@torch.no_grad()
def test_the_lens_of_a_classifier_is_its_readout_of_the_query() -> None:
    model, x = model_of("v"), continuous_tokens(3)
    assert isinstance(model, ICLClassifier)
    found = logit_lens(model, x, LABELS)
    before, after = model.readout(x[:, -1]), model(x)
    for point, logits in ((0, before), (-1, after)):
        p = logits.softmax(-1)[torch.arange(3), LABELS[:, 0]]
        torch.testing.assert_close(found.probability[point], p)
    with pytest.raises(ValueError, match="a classifier answers at the last position"):
        logit_lens(model, x, LABELS, LAST)
