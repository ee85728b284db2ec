"""Looking into a classifier: hook points of the readout, parts of a run, other streams, saving."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resval_lens.models.classifier import ICLClassifier
from resval_lens.transformer import ResValTransformer
from tests.classifiers import (
    MIXES,
    model_of,
    tokens,
    weights_of,
)

# Hook points


POINTS = [
    "hook_embed",
    "readout.hook_in",
    *(f"readout.layers.{i}.hook_{point}" for i in range(3) for point in ("pre", "post")),
    "readout.hook_logits",
]


Cached = tuple[ICLClassifier, Tensor, Tensor, Any]


def but_patterns(name: str) -> bool:
    """Looking at scores or pattern takes a layer off the fused kernel, which rounds otherwise."""
    return not name.endswith(("hook_attn_scores", "hook_pattern"))


@pytest.fixture(scope="module")
def cached() -> Cached:
    """A values model, tokens, its logits and its cache."""
    model, x = model_of("v"), tokens()
    return model, x, *model.run_with_cache(x, names_filter=but_patterns)


def test_the_points_of_a_token_model_that_a_classifier_lacks_are_gone(
    cached: Cached,
) -> None:
    model, _, _, cache = cached
    points = {name for name in model.hook_dict if not name.startswith("blocks.")}
    assert points == set(POINTS)
    assert points <= set(cache)


def test_the_readouts_points_hold_what_they_are_called(
    cached: Cached,
) -> None:
    model, x, logits, cache = cached
    assert cache["hook_embed"].equal(x)
    assert cache["readout.hook_in"].equal(cache["resid_post", 1][:, -1])
    before = cache["readout.hook_in"]
    for i, layer in enumerate(model.readout.layers):
        pre, post = (cache[f"readout.layers.{i}.hook_{point}"] for point in ("pre", "post"))
        torch.testing.assert_close(pre, (before @ layer.W + layer.b).detach())
        assert post.equal(pre.clamp(min=0))
        before = post
    assert cache["readout.hook_logits"].equal(logits)


@pytest.mark.parametrize("name", POINTS)
def test_a_point_fires_once_and_its_edit_counts(cached: Cached, name: str) -> None:
    model, x, logits, cache = cached
    seen = []

    def shift(activation: Tensor, hook: Any) -> Tensor:
        seen.append(activation.clone())
        return activation + 1.0

    edited = model.run_with_hooks(x, fwd_hooks=[(name, shift)])
    assert [value.equal(cache[name]) for value in seen] == [True]
    assert not edited.equal(logits)


def test_silencing_the_last_relu_layer_leaves_no_logit(
    cached: Cached,
) -> None:
    model, x, _, _ = cached
    hooks = [("readout.layers.2.hook_post", lambda activation, hook: 0 * activation)]
    assert model.run_with_hooks(x, fwd_hooks=hooks).eq(0).all()


def test_patching_the_last_token_patches_the_answer(
    cached: Cached,
) -> None:
    model, x, _, _ = cached
    other, cache = model.run_with_cache(tokens(seed=1), names_filter=but_patterns)
    hooks = [("readout.hook_in", lambda activation, hook: cache["readout.hook_in"])]
    assert model.run_with_hooks(x, fwd_hooks=hooks).equal(other)


@pytest.mark.parametrize("name", POINTS)
def test_gradients_at_a_point_are_autograds(name: str) -> None:
    model, x = model_of("v"), tokens().requires_grad_()
    kept: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any) -> None:
        kept["point"] = activation

    with model.hooks(fwd_hooks=[(name, keep)]):
        (expected,) = torch.autograd.grad(model(x).square().sum(), kept["point"])
    cache, forward_hooks, backward_hooks = model.get_caching_hooks(name, incl_bwd=True)
    with model.hooks(forward_hooks, backward_hooks):
        model(x).square().sum().backward()
    torch.testing.assert_close(cache[f"{name}_grad"], expected)


@pytest.mark.parametrize(
    ("positions", "index"), [(-1, [16]), ((2, 5), [2, 3, 4]), ([0, 3], [0, 3])]
)
def test_slicing_positions_leaves_the_readouts_points_whole(
    cached: Cached, positions: Any, index: list[int]
) -> None:
    model, x, _, cache = cached
    _, sliced = model.run_with_cache(x, names_filter=but_patterns, pos_slice=positions)
    for name in POINTS[1:]:
        assert sliced[name].equal(cache[name])
    assert sliced["hook_embed"].equal(x[:, index])
    assert sliced["v_link", 1].equal(cache["v_link", 1][:, index])


# Part of a run, other streams, saving


def test_a_run_can_start_at_layer_1(cached: Cached) -> None:
    model, _, logits, cache = cached
    carried = model.carried_before(1, cache)
    assert model(cache["resid_pre", 1], start_at_layer=1, carried=carried).equal(logits)


def test_a_run_that_skips_the_links_source_asks_for_it(
    cached: Cached,
) -> None:
    model, _, _, cache = cached
    with pytest.raises(ValueError, match=r"start_at_layer=1 skips layer 0, whose v layer 1"):
        model(cache["resid_pre", 1], start_at_layer=1)


def test_looking_at_the_patterns_changes_the_rounding_only(cached: Cached) -> None:
    model, x, logits, _ = cached
    torch.testing.assert_close(model.run_with_cache(x)[0], logits, rtol=1e-5, atol=1e-5)


def test_a_run_can_stop_at_layer_1(cached: Cached) -> None:
    model, x, _, cache = cached
    assert model(x, stop_at_layer=1).equal(cache["resid_pre", 1])


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize(("trained_with", "run_with"), [("", "v"), ("v", ""), ("q", "kv")])
def test_weights_can_run_as_the_other_architecture(
    trained_with: str, run_with: str, share: bool
) -> None:
    model, x = model_of(trained_with), tokens()
    expected = model_of(run_with)(x)  # the same seed, so the same weights
    assert not model(x).equal(expected)
    other = model.with_streams(run_with, share_weights=share)
    assert other(x).equal(expected)
    assert other.with_streams(trained_with)(x).equal(model(x))


@pytest.mark.parametrize("share", [False, True])
def test_the_other_architecture_shares_weights_only_if_asked(share: bool) -> None:
    model = model_of("")
    other = weights_of(model.with_streams("v", share_weights=share))
    for name, parameter in model.named_parameters():
        assert (parameter.data_ptr() == other[name].data_ptr()) == share
        assert parameter.requires_grad == other[name].requires_grad


@pytest.mark.parametrize("spec", ["reference", "paper"])
@pytest.mark.parametrize("streams", ["", MIXES["qkv"], MIXES["scalar"], MIXES["detached"]])
def test_a_saved_model_loads_as_it_was(tmp_path: Path, streams: Any, spec: Any) -> None:
    model, x = model_of(streams, spec, seed=3), tokens()
    model.save_pretrained(tmp_path / "model")
    loaded = ICLClassifier.from_pretrained(tmp_path / "model")
    assert loaded(x).equal(model(x))
    assert loaded.cfg == model.cfg
    frozen = [name for name, p in loaded.named_parameters() if not p.requires_grad]
    assert frozen == [name for name, p in model.named_parameters() if not p.requires_grad]


def test_a_saved_model_can_load_with_other_streams(tmp_path: Path) -> None:
    model, x = model_of("v"), tokens()
    model.save_pretrained(tmp_path / "model")
    cut = ICLClassifier.from_pretrained(tmp_path / "model", streams="")
    assert cut(x).equal(model.with_streams("")(x))


def test_a_classifier_does_not_load_as_another_class(tmp_path: Path) -> None:
    model_of("v").save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="holds a ICLClassifier; load it with that class"):
        ResValTransformer.from_pretrained(tmp_path / "model")
