"""What a hook gets at a stream's points is a tensor of its own: edits in place, and gradients.

The edits of TransformerLens's demos write into the activation they are given. They must do what
the same edit of a copy does; and the gradient of the activation is what a finite difference says.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformer_lens.hook_points import HookPoint

from resval_lens.analyses.papers.amicl.model import AMICL, AMICLConfig
from resval_lens.mixes import MIXES
from resval_lens.streams import AttentionStream
from resval_lens.transformer import ResValTransformer
from tests.classifiers import in_double
from tests.classifiers import model_of as classifier_of
from tests.classifiers import tokens as classifier_tokens
from tests.helpers import gradients, randomise, tiny_config, tiny_tokens
from tests.mixes import settings_of, sources_of
from tests.test_memory_model import TOKENS as MEMORY_TOKENS
from tests.test_memory_model import model_of as memory_of

TOKENS = tiny_tokens(length=4)
VARIANTS: dict[str, dict[str, Any]] = {
    "add": {},
    "add, raw": {"carry": "raw"},
    "first": {"source": "first"},
    "all": {"source": "all"},
    "all, raw": {"source": "all", "carry": "raw"},
    "first alone": {"source": "first", "mix": "pair", "own": 0, "carried": 1},
    "none of it": {"mix": "pair", "own": 1, "carried": 0},
    "half": {"carried": 0.5},
    **{f"mix={mix}": {**settings_of(mix), "source": sources_of(mix)[-1]} for mix in MIXES},
    "some layers": {"layers": (2,)},
    "detached": {"detach": True},
    "detached, first": {"detach": True, "source": "first"},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "fused": {},
    "unfused": {"use_fused": False},
    "rotary, grouped": {"positional_embedding_type": "rotary", "n_key_value_heads": 2},
    "ungrouped": {"n_key_value_heads": 2, "ungroup_grouped_query_attention": True},
    "qk-norm": {"use_qk_norm": True},
    "split": {"use_split_qkv_input": True},
}
CASES = [("v", mix, "fused") for mix in VARIANTS] + [("qkv", "first", kind) for kind in SETTINGS]
each_case = pytest.mark.parametrize(("of", "mix", "settings"), CASES)


def model_of(of: str, mix: str, settings: str) -> ResValTransformer:
    streams = [AttentionStream(letter, **VARIANTS[mix]) for letter in of]  # type: ignore[arg-type]
    cfg = tiny_config(streams=streams, dtype=torch.float64, n_layers=3, **SETTINGS[settings])
    return randomise(ResValTransformer(cfg))


def points_of(model: ResValTransformer) -> list[str]:
    """What streams add or touch: q, k, v, their parts, the rotated ones, and z."""
    touched = ("hook_q", "hook_k", "hook_v", "hook_rot", "hook_z")
    return [name for name in model.hook_dict if any(f".attn.{point}" in name for point in touched)]


def direction(x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(x.shape, generator=generator, dtype=x.dtype)


def in_place(x: Tensor, hook: HookPoint) -> Tensor:
    x[:, 1:] = 0
    return x


def on_a_copy(x: Tensor, hook: HookPoint) -> Tensor:
    return in_place(x.clone(), hook)


Run = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]


def run(model: Any, inputs: Tensor, name: str, edit: Any) -> Run:
    """The output, every other activation, and every weight's gradient with an edit at ``name``."""
    model.zero_grad()
    kept: dict[str, Tensor] = {}

    def elsewhere(point: str) -> bool:
        return point != name and "scores" not in point and "pattern" not in point

    def keep(x: Tensor, hook: HookPoint) -> None:
        kept[str(hook.name)] = x.detach()  # as TransformerLens caches

    with model.hooks(fwd_hooks=[(elsewhere, keep), (name, edit)]):
        out = model(inputs)
    if out.requires_grad:
        (out * direction(out)).sum().backward()
    return out.detach(), kept, gradients(model)


def check_edits(model: Any, inputs: Tensor, points: list[str]) -> None:
    for name in points:
        given = inputs.clone()
        edited, expected = run(model, given, name, in_place), run(model, inputs, name, on_a_copy)
        assert given.equal(inputs), name
        assert edited[0].equal(expected[0]), name
        for found, right in zip(edited[1:], expected[1:], strict=True):
            assert list(found) == list(right), name
            wrong = [where for where in found if not found[where].equal(right[where])]
            assert not wrong, (name, wrong)


@each_case
def test_an_edit_in_place_is_the_edit_of_a_copy(of: str, mix: str, settings: str) -> None:
    model = model_of(of, mix, settings)
    points = points_of(model)
    assert sum("_link" in name for name in points) == len(of) * (1 if mix == "some layers" else 2)
    check_edits(model, TOKENS, points)


def test_an_edit_in_place_of_a_run_that_goes_on_leaves_the_cache_alone() -> None:
    model = model_of("v", "all", "fused")
    cache = model.run_with_cache(TOKENS)[1]
    before = {name: x.clone() for name, x in cache.items()}
    carried = model.carried_before(1, cache)
    with model.hooks(fwd_hooks=[(lambda name: name.endswith("_link"), in_place)]), torch.no_grad():
        model(cache["resid_pre", 1].clone(), start_at_layer=1, carried=carried)
    assert all(x.equal(before[name]) for name, x in cache.items())


@pytest.mark.parametrize("streams", ["v", AttentionStream("v", source="first")])
def test_edits_in_place_of_a_classifier(streams: Any) -> None:
    model = in_double(classifier_of(streams))
    points = [name for name in model.hook_dict if "link" in name or not name.startswith("blocks")]
    points = [name for name in points if not name.endswith("hook_post")]  # ReLU needs its result
    check_edits(model, classifier_tokens(2).double(), points)


@pytest.mark.parametrize("kind", ["relative", "alibi"])
def test_edits_in_place_of_a_simplified_transformer(kind: str) -> None:
    model = memory_of(kind, "v")
    points = [*points_of(model), "feed_forward.hook_in", "feed_forward.hook_out"]
    check_edits(model, MEMORY_TOKENS, [*points, "blocks.0.attn.hook_position_scores"])


@pytest.mark.parametrize("separation", ["identity", "softmax"])
def test_edits_in_place_of_the_associative_memory(separation: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    for value_map in (None, torch.eye(3, dtype=torch.float64)):
        model = AMICL(AMICLConfig(separation=separation), value_map)
        for queries in ("last", "all"):
            model.forward = partial(AMICL.forward, model, queries=queries)  # type: ignore
            check_edits(model, x, list(model.hook_dict))


# Gradients


def check_gradients(
    model: Any, inputs: Tensor, points: list[str], measure: Callable[[Tensor], Tensor]
) -> None:
    """retain_grad, autograd.grad and the cached gradient of each point: its finite difference."""
    kept: dict[str, Tensor] = {}

    def keep(x: Tensor, hook: HookPoint) -> None:
        kept[str(hook.name)] = x if x.requires_grad else x.requires_grad_()

    with model.hooks(fwd_hooks=[(name, keep) for name in points]):
        asked = torch.autograd.grad(measure(model(inputs)), list(kept.values()))
        metric = measure(model(inputs))
    for x in kept.values():
        x.retain_grad()
    metric.backward()
    cached, forward, backward = model.get_caching_hooks(points, incl_bwd=True)
    with model.hooks(fwd_hooks=forward, bwd_hooks=backward):
        measure(model(inputs)).backward()
    for (name, x), gradient in zip(kept.items(), asked, strict=True):
        along = direction(x)

        def moved(step: float, name: str = name, along: Tensor = along) -> float:
            add = [(name, lambda x, hook: x + step * along)]  # noqa: B023
            with torch.no_grad(), model.hooks(fwd_hooks=add):
                return measure(model(inputs)).item()

        expected = (moved(1e-5) - moved(-1e-5)) / 2e-5
        assert x.grad is not None
        for found in (gradient, x.grad, cached.get(f"{name}_grad", gradient)):  # frozen: none
            assert (found * along).sum().item() == pytest.approx(expected, rel=1e-6, abs=1e-8), name


def weighted(logits: Tensor) -> Tensor:
    return (logits.log_softmax(-1) * direction(logits)).sum()


@pytest.mark.parametrize(
    ("of", "mix", "settings"), [case for case in CASES if "detached" not in case[1]]
)
def test_the_gradient_of_an_activation_is_its_finite_difference(
    of: str, mix: str, settings: str
) -> None:
    model = model_of(of, mix, settings)
    check_gradients(model, TOKENS, points_of(model), weighted)


def test_gradients_inside_the_small_models() -> None:
    model = memory_of("relative", "v")
    points = [*points_of(model), "feed_forward.hook_in", "blocks.0.attn.hook_position_scores"]
    check_gradients(model, MEMORY_TOKENS, points, weighted)
    classifier = in_double(classifier_of("v"))
    check_gradients(
        classifier, classifier_tokens(2).double(), ["readout.hook_in", "blocks.1.attn.hook_v_link"],
        weighted,
    )  # fmt: skip


def test_a_detached_link_can_be_asked_for_its_own_gradient() -> None:
    model, name = model_of("v", "detached, first", "fused"), "blocks.2.attn.hook_v_link"
    kept: list[Tensor] = []
    with model.hooks(fwd_hooks=[(name, lambda x, hook: kept.append(x.requires_grad_()))]):
        weighted(model(TOKENS)).backward()
    along = direction(kept[0])

    @torch.no_grad()
    def moved(step: float) -> float:
        add = [(name, lambda x, hook: x + step * along)]
        return weighted(model.run_with_hooks(TOKENS, fwd_hooks=add)).item()

    assert kept[0].grad is not None
    found = (kept[0].grad * along).sum().item()
    assert found == pytest.approx((moved(1e-5) - moved(-1e-5)) / 2e-5, rel=1e-6)


# What nobody looks at costs nothing.


class Kernels(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[override]
        self.counted[str(function)] += 1
        return function(*args, **(kwargs or {}))


@contextmanager
def no_hooks(model: nn.Module) -> Iterator[None]:
    yield


def link_hook(model: Any) -> Any:
    return model.hooks(fwd_hooks=[("blocks.1.attn.hook_v_link", lambda x, hook: None)])


@pytest.mark.parametrize("streams", ["v", AttentionStream("v", source="first")])
def test_a_link_that_nobody_watches_is_one_addition(streams: Any) -> None:
    def counted(model: Any, looking: Any) -> Counter[str]:
        with looking(model), Kernels() as kernels:
            model(TOKENS, return_type="loss").backward()
        return kernels.counted

    def build(streams: Any) -> ResValTransformer:
        return ResValTransformer(tiny_config(streams=streams, n_layers=3))

    classic, ours = counted(build(""), no_hooks), counted(build(streams), no_hooks)
    watched = counted(build(streams), link_hook)
    # Two links in the forward pass; in the backward one the gradients meet where values part.
    assert ours - classic == {"aten.add.Tensor": 4}
    assert classic - ours == {}
    assert watched - ours == {"aten.clone.default": 1}
    assert ours - watched == {}


# Those who look without TransformerLens.

INSIDE = ["blocks.1.attn.hook_pattern", "blocks.1.attn.hook_attn_scores", "blocks.1.ln1.hook_scale",
          "ln_final.hook_normalized", "blocks.1.attn.hook_v_link"]  # fmt: skip


@contextmanager
def by_a_forward_of_its_own(point: HookPoint, keep: Callable[[Tensor], None]) -> Iterator[None]:
    """As nnsight wraps a module."""

    def forward(x: Tensor) -> Tensor:
        keep(x)
        return x

    point.__dict__["forward"] = forward
    yield
    del point.__dict__["forward"]


@contextmanager
def by_a_hook(point: HookPoint, keep: Callable[[Tensor], None]) -> Iterator[None]:
    handle = point.register_forward_hook(lambda module, args, out: keep(out))
    yield
    handle.remove()


@contextmanager
def by_a_hook_on_everything(point: HookPoint, keep: Callable[[Tensor], None]) -> Iterator[None]:
    def look(module: nn.Module, args: Any, out: Any) -> None:
        if module is point:
            keep(out)

    handle = nn.modules.module.register_module_forward_hook(look)
    yield
    handle.remove()


@pytest.mark.parametrize("look", [by_a_forward_of_its_own, by_a_hook, by_a_hook_on_everything])
@pytest.mark.parametrize("name", INSIDE)
def test_whoever_looks_sees_what_is_cached(name: str, look: Any) -> None:
    model, seen = model_of("v", "first", "fused"), []
    with look(model.hook_dict[name], seen.append), torch.no_grad():
        model(TOKENS)
    assert seen
    torch.testing.assert_close(seen[-1], model.run_with_cache(TOKENS)[1][name])
