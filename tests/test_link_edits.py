"""Editing links is what it says, touches what was selected, and leaves nothing behind."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from resval_lens.hooks import (
    Link,
    cut_links,
    edit_links,
    freeze,
    link_activations,
    link_hooks,
    links,
    mean,
    scale,
    scale_links,
    zero,
)
from resval_lens.transformer import ResValTransformer
from tests.helpers import tiny_model, tiny_tokens

TOKENS = tiny_tokens()
OTHERS = tiny_tokens(batch=5, seed=9)


def name_of(stream: str, layer: int) -> str:
    return f"blocks.{layer}.attn.hook_{stream}_link"


def by_plain_hooks(
    model: ResValTransformer, edits: dict[str, Callable[[Tensor], Tensor]], tokens: Tensor = TOKENS
) -> Tensor:
    """Logits with each named hook point's activation replaced by a function of it."""

    def replaced(activation: Tensor, hook: HookPoint) -> Tensor:
        return edits[str(hook.name)](activation)

    return model.run_with_hooks(tokens, fwd_hooks=[(name, replaced) for name in edits])


# Replacing what a link carries


def test_link_activations_are_what_arrives_at_each_link() -> None:
    model = tiny_model("qv", n_key_value_heads=2)
    found = link_activations(model, TOKENS)
    _, cache = model.run_with_cache(TOKENS)
    assert found.keys() == {name_of(s, layer) for s in "qv" for layer in (1, 2)}
    assert {found[name].shape for name in found if "_v_" in name} == {(2, 7, 2, 4)}
    for name, link in found.items():
        stream, layer = name.split("hook_")[1][0], int(name.split(".")[1])
        torch.testing.assert_close(link, cache[stream, layer - 1])  # of the layer before, in full
        assert not link.requires_grad


def test_link_activations_of_some_links_are_theirs_alone() -> None:
    model = tiny_model("qv")
    chosen = links(model, of="v", layers=[2], heads=[0])
    assert link_activations(model, TOKENS, chosen).keys() == {name_of("v", 2)}
    assert link_activations(model, TOKENS, ()) == {}


@pytest.mark.parametrize("per_position", [True, False])
@pytest.mark.parametrize("streams", ["q", "k", "v"])
def test_mean_ablation_is_a_mean_taken_by_hand(streams: str, per_position: bool) -> None:
    model = tiny_model(streams)
    reference = link_activations(model, OTHERS)
    edits = {}
    for name, link in reference.items():
        rows = link.numpy()  # [batch, pos, head, d_head]
        means = np.stack([sum(rows[:, i]) / 5 for i in range(7)])
        if not per_position:
            means = np.stack([sum(means) / 7] * 7)
        edits[name] = lambda link, means=means: torch.from_numpy(means).expand_as(link)
    with edit_links(model, mean(reference, per_position)):
        ablated = model(TOKENS)
    assert not ablated.allclose(model(TOKENS), atol=1e-3)
    torch.testing.assert_close(ablated, by_plain_hooks(model, edits), rtol=1e-5, atol=1e-5)


def test_a_mean_over_all_positions_fits_a_prompt_of_any_length() -> None:
    model = tiny_model("v")
    reference = link_activations(model, OTHERS)
    with edit_links(model, mean(reference, per_position=False)):
        assert model(TOKENS[:, :3]).isfinite().all()
    with (
        edit_links(model, mean(reference)),
        pytest.raises(ValueError, match=r"is \[2, 3, 4, 4\]; its replacement is \[1, 7, 4, 4\]"),
    ):
        model(TOKENS[:, :3])


def test_a_mean_in_half_precision_is_not_lost_in_its_sum() -> None:
    reference = {"x": torch.full((400, 300, 1, 1), 5, dtype=torch.float16)}  # 600,000 in all
    own = torch.ones(400, 300).bool()
    own[:, -1] = False  # this column gets the mean over all
    for per_position in (True, False):
        found = mean(reference, per_position, own)(reference["x"], "x")
        assert found.dtype == torch.float16
        assert bool((found == 5).all())


def test_freezing_is_patching_from_another_run_by_hand() -> None:
    model, other = tiny_model("kv"), tiny_tokens(seed=5)
    reference = link_activations(model, other)
    patches = {name: lambda link, patch=patch: patch for name, patch in reference.items()}
    with edit_links(model, freeze(reference)):
        frozen = model(TOKENS)
    assert not frozen.equal(model(TOKENS))
    assert frozen.equal(by_plain_hooks(model, patches))


def test_freezing_to_the_same_run_changes_nothing() -> None:
    model = tiny_model("qkv")
    with edit_links(model, freeze(link_activations(model, TOKENS))):
        assert model(TOKENS).equal(model(TOKENS))
        inside = model(TOKENS)
    assert inside.equal(model(TOKENS))


def test_freezing_some_links_needs_them_alone() -> None:
    model = tiny_model("kv")
    reference = link_activations(model, tiny_tokens(seed=5), links(model, of="v", layers=[2]))
    with edit_links(model, freeze(reference), of="v", layers=[2]):
        assert not model(TOKENS).equal(model.with_streams("kv")(TOKENS))
    with (
        edit_links(model, freeze(reference)),
        pytest.raises(ValueError, match=r"the reference run holds no blocks\.1\.attn\.hook_k_link"),
    ):
        model(TOKENS)


@pytest.mark.parametrize("shape", [(2, 6, 4, 4), (3, 7, 4, 4), (2, 7, 4, 3), (9, 2, 7, 4, 4)])
def test_a_replacement_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    model = tiny_model("v")
    message = r"blocks\.1\.attn\.hook_v_link is \[2, 7, 4, 4\]; its replacement is \["
    with (
        edit_links(model, lambda link, name: torch.zeros(shape)),
        pytest.raises(ValueError, match=message + ", ".join(map(str, shape))),
    ):
        model(TOKENS)


@pytest.mark.parametrize("shape", [(), (4,), (4, 1), (7, 1, 1), (2, 1, 1, 1)])
def test_a_replacement_may_be_anything_that_broadcasts(shape: tuple[int, ...]) -> None:
    model, value = tiny_model("v"), torch.full(shape, 0.5)
    halves = {name_of("v", layer): lambda link: torch.full_like(link, 0.5) for layer in (1, 2)}
    with edit_links(model, lambda link, name: value):
        assert model(TOKENS).equal(by_plain_hooks(model, halves))


# Some heads, some positions


@pytest.mark.parametrize(
    ("heads", "positions"),
    [
        (None, [1]),
        (None, [-1]),
        (None, [2, -2, 2]),
        ([1], None),
        ([0, 3], None),
        ([1, 2], [0, 4, 6]),
        ([-1], range(2, 5)),
        (None, []),
    ],
    ids=str,
)
@pytest.mark.parametrize("streams", ["q", "k", "v"])
def test_an_edit_touches_the_selected_heads_and_positions_only(
    streams: str, heads: Sequence[int] | None, positions: Any
) -> None:
    model = tiny_model(streams)

    def by_hand(link: Tensor) -> Tensor:
        edited = link.clone()
        for position in range(7) if positions is None else positions:
            for head in range(4) if heads is None else heads:
                edited[:, position, head] = -3 * link[:, position, head]
        return edited

    expected = by_plain_hooks(model, {name_of(streams, layer): by_hand for layer in (1, 2)})
    with scale_links(model, -3, heads=heads, positions=positions):
        assert model(TOKENS).equal(expected)
    assert expected.equal(model(TOKENS)) == (positions == [])


def test_a_selection_may_be_any_iterable_even_one_that_is_used_up() -> None:
    model = tiny_model("qv")
    with cut_links(model, layers=[1, 2], heads=[0], positions=[1, 3]):
        expected = model(TOKENS)
    with cut_links(model, layers=iter([1, 2]), heads=iter([0]), positions=iter([1, 3])):
        assert model(TOKENS).equal(expected)
        assert model(TOKENS).equal(expected)


def test_a_later_token_does_not_feel_an_edit_that_earlier_ones_do() -> None:
    model = tiny_model("v")
    before = model(TOKENS)
    with cut_links(model, positions=[4]):
        after = model(TOKENS)
    changed = (after != before).any(-1).any(0)
    assert changed.tolist() == [False] * 4 + [True] * 3


@pytest.mark.parametrize("position", [7, -8])
def test_a_position_beyond_the_prompt_is_refused(position: int) -> None:
    model = tiny_model("v")
    with (
        cut_links(model, positions=[0, position]),
        pytest.raises(ValueError, match=f"positions: {position} is beyond the prompt's 7 tokens"),
    ):
        model(TOKENS)


def test_an_edit_sees_the_link_and_its_name_and_leaves_the_activation_alone() -> None:
    model, seen = tiny_model("v"), []

    def look(link: Tensor, name: str) -> Tensor:
        seen.append((name, link))
        return torch.zeros_like(link)

    with edit_links(model, look, heads=[0]):
        model(TOKENS)
    assert [name for name, _ in seen] == [name_of("v", 1), name_of("v", 2)]
    assert all(link.ne(0).all() for _, link in seen)


# Hooks and their end


@pytest.mark.parametrize("edit", [zero(), scale(0.3)])
def test_a_list_of_hooks_does_what_the_context_does(edit: Any) -> None:
    model = tiny_model("qv")
    hooks = link_hooks(model, edit, links(model, of="v", heads=[1, 2]), positions=[3])
    with edit_links(model, edit, of="v", heads=[1, 2], positions=[3]):
        inside = model(TOKENS)
    assert model.run_with_hooks(TOKENS, fwd_hooks=hooks).equal(inside)


def test_an_edit_of_no_links_changes_nothing() -> None:
    model = tiny_model("v")
    assert link_hooks(model, zero(), ()) == []
    with model.hooks(fwd_hooks=link_hooks(model, zero(), ())):
        assert model(TOKENS).equal(tiny_model("v")(TOKENS))


def hooks_left(model: ResValTransformer) -> list[str]:
    points = model.hook_dict.items()
    return [name for name, point in points if point.fwd_hooks or point._forward_hooks]


@pytest.fixture
def watched() -> Iterator[tuple[ResValTransformer, list[float]]]:
    """A model with a hook of its user's own, and what that hook has seen."""
    model, seen = tiny_model("v"), []
    model.add_hook("blocks.1.hook_resid_post", lambda x, hook: seen.append(float(x.detach().sum())))
    yield model, seen
    assert hooks_left(model) == ["blocks.1.hook_resid_post"]
    model(TOKENS)
    assert seen[-1] == seen[0]


def test_after_an_edit_the_model_and_its_users_hooks_are_as_before(
    watched: tuple[ResValTransformer, list[float]],
) -> None:
    model, seen = watched
    before = model(TOKENS)
    with cut_links(model) as edited:
        assert edited is model
        assert not model(TOKENS).equal(before)
        assert len(hooks_left(model)) == 3
    assert model(TOKENS).equal(before)
    assert seen[1] != seen[0]


def test_after_an_exception_the_model_is_as_before(
    watched: tuple[ResValTransformer, list[float]],
) -> None:
    model, _ = watched
    before = model(TOKENS)
    with pytest.raises(ValueError, match="return_type must be"), cut_links(model):
        model(TOKENS, return_type="probabilities")  # said after the last layer
    assert model(TOKENS).equal(before)


def test_after_an_exception_in_the_edit_itself_the_model_is_as_before(
    watched: tuple[ResValTransformer, list[float]],
) -> None:
    model, _ = watched
    before = model(TOKENS)
    with pytest.raises(ValueError, match="holds no"), edit_links(model, freeze({})):
        model(TOKENS)
    assert model(TOKENS).equal(before)


def test_a_selection_that_is_refused_leaves_the_model_as_before(
    watched: tuple[ResValTransformer, list[float]],
) -> None:
    model, _ = watched
    model(TOKENS)
    with pytest.raises(ValueError, match="heads: 9"), cut_links(model, heads=[9]):
        pass


def test_edits_nest_and_end_one_by_one() -> None:
    model = tiny_model("qv")
    with cut_links(model, of="q"):
        outer = model(TOKENS)
        with cut_links(model, of="v"):
            assert model(TOKENS).equal(model.with_streams("")(TOKENS))
        assert model(TOKENS).equal(outer)
    assert hooks_left(model) == []


def test_an_edit_outlasts_a_cached_run_inside_it() -> None:
    model = tiny_model("v")
    with cut_links(model):
        cut = model(TOKENS)
        _, cache = model.run_with_cache(TOKENS)
        assert cache["v_link", 1].eq(0).all()
        assert model(TOKENS).equal(cut)


def nothing(x: Tensor, hook: Any) -> None:
    pass


def in_a_nested_edit(model: ResValTransformer) -> None:
    with scale_links(model, 3, layers=[1]):
        model.reset_hooks(including_permanent=True)


def in_a_context(model: ResValTransformer) -> None:
    with model.hooks(fwd_hooks=[(name_of("v", 1), nothing)], clear_contexts=True):
        model(TOKENS)


RESETS: dict[str, Callable[[ResValTransformer], Any]] = {
    "reset_hooks": lambda model: model.reset_hooks(),
    "permanent ones": lambda model: model.reset_hooks(including_permanent=True),
    "of a level": lambda model: model.reset_hooks(level=model.context_level),
    "remove_all_hook_fns": lambda model: model.remove_all_hook_fns(including_permanent=True),
    "each point's": lambda model: [
        point.remove_hooks("both", including_permanent=True) for point in model.hook_points()
    ],
    "run_with_hooks": lambda model: model.run_with_hooks(
        TOKENS, fwd_hooks=[(name_of("v", 1), nothing)], clear_contexts=True
    ),
    "run_with_cache": lambda model: model.run_with_cache(TOKENS, clear_contexts=True),
    "a context": in_a_context,
    "a nested edit": in_a_nested_edit,
}


@pytest.mark.parametrize("reset", RESETS.values(), ids=RESETS)
def test_an_edit_holds_to_its_end_whoever_resets_hooks_inside(reset: Any) -> None:
    model = tiny_model("v")
    before = model(TOKENS)
    with cut_links(model):
        cut = model(TOKENS)
        reset(model)
        assert model(TOKENS).equal(cut)
        copied = copy.deepcopy(model)
        assert copied(TOKENS).equal(cut)
    for ended in (model, copied):
        assert ended(TOKENS).equal(before)
    assert hooks_left(model) == []


def test_edits_that_end_in_the_order_in_which_they_began() -> None:
    model = tiny_model("qv")
    first, second = cut_links(model, of="q"), cut_links(model, of="v")
    with first:
        second.__enter__()
    assert model(TOKENS).equal(model.with_streams("q")(TOKENS))
    second.__exit__(None, None, None)
    assert model(TOKENS).equal(tiny_model("qv")(TOKENS))


def test_gradients_flow_through_an_edit_as_through_the_other_architecture() -> None:
    model = tiny_model("v")
    classic = model.with_streams("")
    with cut_links(model):
        model(TOKENS, return_type="loss").backward()
    classic(TOKENS, return_type="loss").backward()
    for (name, ours), theirs in zip(model.named_parameters(), classic.parameters(), strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


@pytest.mark.parametrize(
    ("use", "says"),
    [
        (lambda model: link_hooks(model, zero(), [Link("v", 9, 0)]), "no link v9.h0"),
        (lambda model: link_activations(model, tiny_tokens(), [Link("q", 1, 0)]), "no link q1.h0"),
        (lambda model: link_hooks(model, zero(), positions=[1.5]), "1.5 is not a whole number"),
        (lambda model: links(model, of=""), "of='' names no stream"),
    ],
    ids=["layer", "stream", "half", "no streams"],
)
def test_selections_of_what_is_not_there_are_refused(
    use: Callable[[ResValTransformer], Any], says: str, unchecked_annotations: None
) -> None:
    with pytest.raises(ValueError, match=says):
        use(tiny_model("v"))


def test_one_position_is_a_number() -> None:
    model, tokens = tiny_model("v"), tiny_tokens()
    one = model.run_with_hooks(tokens, fwd_hooks=link_hooks(model, zero(), positions=3))
    several = model.run_with_hooks(tokens, fwd_hooks=link_hooks(model, zero(), positions=[3]))
    assert one.equal(several)
