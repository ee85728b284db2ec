"""Activation patching is one forward pass for each cell, and gives what TransformerLens gives."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformer_lens import patching as stock
from transformer_lens.hook_points import HookPoint

from resval_lens.hooks import cut_links, edit_links, zero
from resval_lens.hooks.patch_cells import PatchedRuns
from resval_lens.hooks.patching import patch, patch_by_metrics
from resval_lens.hooks.prompts import PromptPairs, logit_difference, margin, probability
from resval_lens.lens.hook_names import full_hook_name
from resval_lens.streams import AttentionStream
from resval_lens.transformer import ResValTransformer
from tests.classifiers import model_of
from tests.classifiers import tokens as continuous_tokens
from tests.helpers import ARCHITECTURES, stock_model, tiny_model, tiny_tokens

LENGTH = 6


def pairs_of(prompts: int = 2, length: int = LENGTH, same: int = 1, **settings: Any) -> PromptPairs:
    """Random prompts and corrupted prompts that begin with ``same`` equal tokens."""
    clean, corrupted = tiny_tokens(prompts, length, seed=3), tiny_tokens(prompts, length, seed=4)
    corrupted[:, :same] = clean[:, :same]
    labels = tiny_tokens(prompts, 2, seed=5)
    return PromptPairs(clean, corrupted, logit_difference, labels, **settings)


def one_by_one(
    model: Any,
    pairs: PromptPairs,
    name: str,
    wheres: list[list[int] | Tensor],
    heads: list[list[int]] | None = None,
    direction: str = "denoise",
) -> Tensor:
    """[position, head, prompt] by one whole forward pass each, with a plain hook."""
    base, source = pairs.corrupted, pairs.clean
    if direction == "noise":
        base, source = source, base
    with torch.no_grad():
        _, cache = model.run_with_cache(source)
        other = cache.cache_dict[name]

        def metric(where: list[int] | Tensor, which: list[int] | None) -> Tensor:
            def replaced(activation: Tensor, hook: HookPoint) -> Tensor:
                patched = activation.clone()
                for row in range(len(activation)):
                    positions = [int(where[row])] if isinstance(where, Tensor) else where
                    for position, head in product(positions, which or [0]):
                        if which is None:
                            patched[row, position] = other[row, position]
                        elif name.endswith(("pattern", "scores")):
                            patched[row, head, position] = other[row, head, position]
                        else:
                            patched[row, position, head] = other[row, position, head]
                return patched

            logits = model.run_with_hooks(base, fwd_hooks=[(name, replaced)])
            if logits.ndim == 3:
                logits = logits[torch.arange(len(base)), pairs.answers]
            return pairs.metric(logits, pairs.labels)

        which: list[Any] = [None] if heads is None else heads
        found = [torch.stack([metric(where, heads) for heads in which]) for where in wheres]
    return torch.stack(found)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


STREAMS: dict[str, Any] = {
    "raw": tuple(AttentionStream(s, carry="raw", carried=0.7) for s in "qkv"),
    "all": tuple(AttentionStream(s, source="all", carried=0.3) for s in "qkv"),
    "first": tuple(AttentionStream(s, source="first") for s in "qkv"),
}


def n_heads(model: ResValTransformer, site: str) -> int | None:
    """As a configuration says."""
    if site.startswith(("resid", "mlp", "attn_out")):
        return None
    own = model.cfg.n_key_value_heads
    if site[0] in "kv" and own is not None and not model.cfg.ungroup_grouped_query_attention:
        return own
    return model.cfg.n_heads


def check(model: Any, pairs: PromptPairs, site: str, **settings: Any) -> None:
    """Some cells of the first and last layers, and all positions and heads, by whole passes."""
    named = {i: full_hook_name(site, i) for i in range(model.cfg.n_layers)}
    layers = [i for i in named if named[i] in model.hook_dict]
    layers = [layers[0], layers[-1]] if len(layers) > 1 else layers
    count = n_heads(model, site)
    heads = None if count is None else [0, count - 1] if count > 1 else [0]
    positions = [1, pairs.length - 1]
    found = patch(
        model, pairs, site, layers=layers, positions=positions, heads=heads, **settings
    ).per_prompt
    together = patch(model, pairs, site, by=["layer"], layers=layers, **settings).per_prompt
    direction = settings.get("direction", "denoise")
    for i, layer in enumerate(layers):
        single = None if heads is None else [[head] for head in heads]
        every = None if count is None else [list(range(count))]
        wheres: list[Any] = [[position] for position in positions]
        expected = one_by_one(model, pairs, named[layer], wheres, single, direction)
        close(found[i], expected[:, 0] if heads is None else expected)
        wheres = [list(range(pairs.length))]
        whole = one_by_one(model, pairs, named[layer], wheres, every, direction)
        close(together[i], whole[0, 0])


@pytest.mark.parametrize("settings", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_cells_are_whole_forward_passes_in_every_architecture(
    settings: dict[str, Any],
) -> None:
    streams = tuple(AttentionStream(s, carry="raw", carried=0.7) for s in "qv")
    model = tiny_model(streams, **settings)
    check(model, pairs_of(), "v_link", max_tokens=12, direction="noise")
    check(model, pairs_of(), "q")


@pytest.mark.parametrize("streams", ["", "v"], ids=["classic", "values"])
@pytest.mark.parametrize(
    "site", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z",
             "pattern", "attn_scores"],
)  # fmt: skip
def test_every_site_is_whole_forward_passes(site: str, streams: Any) -> None:
    check(tiny_model(streams), pairs_of(), site, max_tokens=12)


@pytest.mark.parametrize("site", [f"{s}_{part}" for s in "qkv" for part in ("link", "local")])
@pytest.mark.parametrize("streams", STREAMS.keys())
def test_links_are_sites(streams: str, site: str) -> None:
    check(tiny_model(STREAMS[streams]), pairs_of(), site, max_tokens=12)


@pytest.mark.parametrize("site", ["q", "q_link"])
def test_queries_of_one_position_are_passed_on(site: str) -> None:
    check(tiny_model("q", n_layers=4), pairs_of(), site, max_tokens=12)


def test_alibi_is_right_after_a_longer_prompt() -> None:
    model = tiny_model(positional_embedding_type="alibi")
    with torch.no_grad():
        model(tiny_tokens(length=12))
    check(model, pairs_of(), "v", max_tokens=12)


@pytest.mark.parametrize("max_tokens", [12, 16384])
def test_prompts_padded_on_the_right_are_answered_where_they_end(max_tokens: int) -> None:
    model, pairs = tiny_model("v"), pairs_of(last=torch.tensor([2, 4]))
    for site in ("resid_pre", "v_link", "z", "pattern"):
        check(model, pairs, site, max_tokens=max_tokens)


@pytest.mark.parametrize("site", ["resid_pre", "v_link", "z", "k", "pattern"])
def test_a_classifiers_cells_are_whole_forward_passes(site: str) -> None:
    clean, corrupted = continuous_tokens(2), continuous_tokens(2, seed=1)
    corrupted[:, :3] = clean[:, :3]
    labels = torch.tensor([[1, 2, 3], [4, 5, 6]])
    pairs = PromptPairs(clean, corrupted, margin, labels)
    check(model_of("v"), pairs, site)
    check(model_of("v"), pairs, site, max_tokens=17, direction="noise")


@settings(max_examples=8, deadline=None)
@given(
    same=st.integers(0, LENGTH),
    last=st.lists(st.integers(0, LENGTH - 1), min_size=3, max_size=3),
    max_tokens=st.integers(1, 200),
    site=st.sampled_from(["resid_pre", "v", "v_link", "z"]),
)
def test_cells_do_not_depend_on_how_they_are_batched(
    same: int, last: list[int], max_tokens: int, site: str
) -> None:
    pairs = pairs_of(3, same=same, last=torch.tensor(last))
    check(tiny_model("v", n_layers=2), pairs, site, max_tokens=max_tokens)


def test_named_positions_are_each_prompts_own() -> None:
    model, pairs = tiny_model("v"), pairs_of(3)
    positions = {"S2": torch.tensor([1, 4, 2]), "end": torch.tensor([5, 5, 3])}
    for site in ("resid_pre", "z", "v_link"):
        found = patch(model, pairs, site, layers=1, positions=positions, by=["position"])
        assert found.axes == {"position": ["S2", "end"]}
        heads = None if site == "resid_pre" else [list(range(4))]
        name = full_hook_name(site, 1)
        wheres: list[Any] = list(positions.values())
        close(found.per_prompt, one_by_one(model, pairs, name, wheres, heads)[:, 0])
        small = patch(
            model, pairs, site, layers=1, positions=positions, by=["position"], max_tokens=1
        )
        close(small.per_prompt, found.per_prompt)


STOCK: dict[str, tuple[str, list[str], Callable[..., Tensor]]] = {
    "resid_pre": ("resid_pre", ["layer", "position"], stock.get_act_patch_resid_pre),
    "z": ("z", ["layer", "position", "head"], stock.get_act_patch_attn_head_out_by_pos),
    "v": ("v", ["layer", "position", "head"], stock.get_act_patch_attn_head_v_by_pos),
    "pattern": (
        "pattern",
        ["layer", "head", "position"],
        stock.get_act_patch_attn_head_pattern_by_pos,
    ),
    "all z": ("z", ["layer", "head"], stock.get_act_patch_attn_head_out_all_pos),
    "all q": ("q", ["layer", "head"], stock.get_act_patch_attn_head_q_all_pos),
    "all patterns": ("pattern", ["layer", "head"], stock.get_act_patch_attn_head_pattern_all_pos),
}


@pytest.mark.parametrize(("site", "by", "function"), STOCK.values(), ids=STOCK.keys())
def test_a_classic_model_is_patched_as_transformer_lens_patches(
    site: str, by: list[str], function: Callable[..., Tensor], capfd: pytest.CaptureFixture[str]
) -> None:
    pairs = pairs_of(3, same=2)
    for peer in (stock_model().eval(), tiny_model().eval()):
        with torch.no_grad():
            _, cache = peer.run_with_cache(pairs.clean)
            expected = function(
                peer,
                pairs.corrupted,
                cache,
                lambda logits: logit_difference(logits[:, -1], pairs.labels).mean(),
            )
        found = patch(tiny_model(), pairs, site, by=by)
        close(found.values, expected)
        assert list(found.axes) == by


def test_the_runs_own_metrics_stand_beside_the_cells() -> None:
    model, pairs = tiny_model("v"), pairs_of(3)
    with torch.no_grad():
        clean, corrupted = (
            logit_difference(model(x)[:, -1], pairs.labels).mean().item()
            for x in (pairs.clean, pairs.corrupted)
        )
    found = patch(model, pairs, "resid_pre")
    assert (found.base, found.source) == pytest.approx((corrupted, clean), rel=1e-4)
    noised = patch(model, pairs, "resid_pre", direction="noise")
    assert (noised.base, noised.source) == pytest.approx((clean, corrupted), rel=1e-4)
    whole = patch(model, pairs, "resid_pre", layers=0, by=["layer"])
    close(whole.recovered(), torch.ones(1))
    close(found.recovered(), (found.values - corrupted) / (clean - corrupted))


def test_by_several_metrics_each_is_what_it_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = tiny_model("v"), pairs_of()
    metrics = {"difference": logit_difference, "P": probability}
    runs: list[int] = []
    whole = PatchedRuns.logits

    def counted(self: PatchedRuns, cells: Tensor) -> Any:
        runs.append(len(cells))
        return whole(self, cells)

    monkeypatch.setattr(PatchedRuns, "logits", counted)
    found = patch_by_metrics(model, pairs, "z", metrics, by=("layer", "head"))
    once = sum(runs)
    assert list(found) == list(metrics)
    for name, metric in metrics.items():
        alone = patch(model, replace(pairs, metric=metric), "z", by=("layer", "head"))
        torch.testing.assert_close(found[name].per_prompt, alone.per_prompt)
        assert (found[name].base, found[name].source) == (alone.base, alone.source)
    assert sum(runs) == 3 * once > 0
    with pytest.raises(ValueError, match="metrics: there is none"):
        patch_by_metrics(model, pairs, "z", {})


def test_corrupted_prompts_that_are_the_same_leave_no_gap() -> None:
    pairs = pairs_of(same=LENGTH)
    found = patch(tiny_model("v"), pairs, "v_link")
    assert (found.values == found.base).all()
    message = f"no gap to recover: the metric is {found.base:g} in the run that is patched and"
    with pytest.raises(ValueError, match=message):
        found.recovered()


def test_axes_come_in_the_order_asked_for() -> None:
    model, pairs = tiny_model("v"), pairs_of()
    usual = patch(model, pairs, "z", layers=[0, 2], positions=[1, 3, 5], heads=[0, 3])
    turned = patch(
        model, pairs, "z", layers=[0, 2], positions=[1, 3, 5], heads=[0, 3],
        by=("head", "layer", "position"),
    )  # fmt: skip
    assert turned.axes == {"head": [0, 3], "layer": [0, 2], "position": [1, 3, 5]}
    assert turned.values.equal(usual.values.permute(2, 0, 1))


def test_a_full_name_is_one_layers_site() -> None:
    model, pairs = tiny_model("v"), pairs_of()
    found = patch(model, pairs, "blocks.1.attn.hook_v_link", by=["position", "head"])
    close(found.values, patch(model, pairs, "v_link", layers=[1]).values[0])
    assert patch(model, pairs, "v_link").axes["layer"] == [1, 2]


def test_hooks_that_are_on_the_model_stay_on() -> None:
    model, pairs = tiny_model("v"), pairs_of()
    with cut_links(model):
        cut = patch(model, pairs, "z")
    close(cut.values, patch(model.with_streams(""), pairs, "z").values)
    assert not cut.values.allclose(patch(model, pairs, "z").values, atol=1e-3)


def test_hooks_that_know_positions_see_whole_prompts() -> None:
    model, pairs = tiny_model("v"), pairs_of(same=3)
    with edit_links(model, zero(), positions=[1, 4]):
        check(model, pairs, "z", max_tokens=12)
        check(model, pairs, "k")


def test_progress_ends_at_all_cells_and_an_interrupt_leaves_nothing_behind() -> None:
    model, pairs = tiny_model("v").train(), pairs_of(3)
    seen: list[tuple[int, int]] = []
    patch(model, pairs, "z", max_tokens=2 * LENGTH, progress=lambda *now: seen.append(now))
    assert seen[-1] == (144, 144)  # 3 layers × 6 positions × 4 heads, prompts in 2 parts
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})

    def interrupting(hooked: Tensor, labels: Tensor) -> Tensor:
        raise KeyboardInterrupt

    calls = {"left": 3}

    def later(logits: Tensor, labels: Tensor) -> Tensor:
        calls["left"] -= 1
        return interrupting(logits, labels) if calls["left"] < 0 else logits[:, 0]

    before = dict(vars(model.cfg))
    late = PromptPairs(pairs.clean, pairs.corrupted, later, pairs.labels)
    with pytest.raises(KeyboardInterrupt):
        patch(model, late, "z", max_tokens=2 * LENGTH)
    assert model.training
    assert vars(model.cfg) == before
    assert not any(point.fwd_hooks or point._forward_hooks for point in model.hook_dict.values())
    assert model.blocks[1].attn.delivery is None


def test_an_interrupt_inside_a_layer_leaves_no_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = tiny_model("v"), []

    def interrupted(self: Any, *args: Any, hook: HookPoint) -> Any:
        calls.append(args)
        raise KeyboardInterrupt

    monkeypatch.setattr(PatchedRuns, "_patch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        patch(model, pairs_of(), "z")
    assert calls
    assert not any(point.fwd_hooks or point._forward_hooks for point in model.hook_dict.values())
    assert model.context_level == 0


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "unknown": ({}, {"site": "resid_per"}, "site='resid_per': .* near it are resid_pre"),
    "link of a classic": ({}, {"site": "v_link"}, "has no links: its configuration has streams=''"),
    "other link": ({"streams": "v"}, {"site": "q_link"}, "this model has links of v only"),
    "attention only": ({"attn_only": True}, {"site": "resid_mid"}, "has attn_only=True"),
    "parallel": ({"parallel_attn_mlp": True}, {"site": "resid_mid"}, "has parallel_attn_mlp=True"),
    "unused": ({}, {"site": "result"}, "leaves blocks.0.attn.hook_result unused"),
    "first link": ({"streams": "v"}, {"site": "v_link", "layers": 0}, "layer 0 has no v_link"),
    "layer": ({}, {"site": "z", "layers": 3}, "layers: 3 is not among 0 to 2"),
    "position": ({}, {"site": "z", "positions": [6]}, "positions: 6 is not among 0 to 5"),
    "head": ({"n_key_value_heads": 2}, {"site": "v", "heads": 2}, "heads: 2 is not among 0 to 1"),
    "no heads": ({}, {"site": "resid_pre", "heads": 0}, "heads=0: resid_pre has no heads"),
    "by": ({}, {"site": "resid_pre", "by": ["head"]}, "has one each of layer, position"),
    "by twice": ({}, {"site": "z", "by": ["head", "head"]}, "one each of layer, position, head"),
    "layers": ({}, {"site": "z", "by": ["head"]}, r"needs one layer; got layers \[0, 1, 2\]"),
    "direction": ({}, {"site": "z", "direction": "up"}, "'denoise' or 'noise'; got 'up'"),
    "memory": ({}, {"site": "z", "max_tokens": 0}, "max_tokens must be 1 or more; got 0"),
    "no name": ({}, {"site": "z", "positions": {}}, "positions: the selection is empty"),
    "named": (
        {},
        {"site": "z", "positions": {"S": torch.tensor([1, 6])}},
        r"positions\['S'\]: 6 is not among 0 to 5",
    ),
}


@pytest.mark.parametrize(("model", "asked", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_there_is_refused(
    model: dict[str, Any], asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        patch(tiny_model(**model), pairs_of(), **asked)
