"""A run that is kept and resumed is the run that is made again, whatever is asked of it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from resval_lens.hooks.runs import KeysValues, Run, State, embedded, joined, numbers_of, resumed
from resval_lens.transformer import ResValTransformer
from tests.classifiers import model_of
from tests.classifiers import tokens as continuous_tokens
from tests.helpers import ARCHITECTURES, tiny_model, tiny_tokens

TOKENS = tiny_tokens(3, 6)
ANSWERS = torch.tensor([5, 2, 0])
EXACT: dict[str, Any] = {"dtype": torch.float64}
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
CAUSAL = [name for name in ARCHITECTURES if name != "bidirectional"]


def residuals(model: ResValTransformer, tokens: Tensor) -> list[Tensor]:
    """The residual stream before each layer and after the last, as TransformerLens caches it."""
    _, cache = model.run_with_cache(tokens)
    last = model.cfg.n_layers - 1
    return [*(cache["resid_pre", i] for i in range(last + 1)), cache["resid_post", last]]


@each_architecture
@pytest.mark.parametrize("streams", ["", "qkv"])
def test_what_is_kept_is_what_the_model_has(architecture: str, streams: str) -> None:
    model = tiny_model(streams, **ARCHITECTURES[architecture], **EXACT)
    run = Run(model, TOKENS)
    for layer, (state, expected) in enumerate(
        zip(run.states, residuals(model, TOKENS), strict=True)
    ):
        assert (state.layer, state.first, state.end) == (layer, 0, 6)
        torch.testing.assert_close(state.residual, expected)
    logits = model(TOKENS)
    torch.testing.assert_close(run.logits(ANSWERS), logits[torch.arange(3), ANSWERS])
    assert not run.logits(ANSWERS).requires_grad


@each_architecture
@pytest.mark.parametrize("source", ["previous", "first", "all"])
def test_copies_that_are_resumed_under_an_edit_are_whole_runs_under_it(
    architecture: str, source: Any
) -> None:
    """Each copy of the rows is edited in its own way."""
    model = tiny_model(f"v(source={source})", **ARCHITECTURES[architecture], **EXACT)
    run = Run(model, TOKENS)
    for layer in range(3):
        name = f"blocks.{layer}.attn.hook_v"

        def scaled(v: Tensor, hook: Any) -> Tensor:
            return (v.unflatten(0, (2, 3)) * torch.tensor([0.5, 2.0]).view(2, 1, 1, 1, 1)).flatten(
                0, 1
            )

        with model.hooks(fwd_hooks=[(name, scaled)]):
            found = resumed(model, run.states[layer].repeated(2)).residual
            expected = residuals(model, TOKENS.repeat(2, 1))
        torch.testing.assert_close(found, expected[-1])
        with model.hooks(fwd_hooks=[(name, scaled)]):
            stopped = resumed(model, run.states[layer].repeated(2), layer + 1)
        assert stopped.layer == layer + 1
        torch.testing.assert_close(stopped.residual, expected[layer + 1])


def test_nothing_that_is_done_to_repeated_rows_reaches_the_run() -> None:
    run = Run(tiny_model("qv"), TOKENS)
    before = run.states[1].residual.clone(), run.states[1].carried["v"][0].clone()
    rows = run.states[1].repeated(1)
    rows.residual.zero_()
    rows.carried["v"][0].zero_()
    assert torch.equal(run.states[1].residual, before[0])
    assert torch.equal(run.states[1].carried["v"][0], before[1])


@pytest.mark.parametrize("architecture", CAUSAL)
@pytest.mark.parametrize("first", [0, 1, 4])
def test_other_rows_with_the_same_beginning_are_run_from_where_they_differ(
    architecture: str, first: int
) -> None:
    model = tiny_model("kv", **ARCHITECTURES[architecture], **EXACT)
    run = Run(model, TOKENS, with_keys=True)
    others = torch.cat([TOKENS.repeat(2, 1)[:, :first], tiny_tokens(6, 6 - first, seed=7)], 1)
    state = embedded(model, others).part(first)
    for expected in residuals(model, others)[1:]:
        state = resumed(model, state, state.layer + 1, KeysValues(*run.past(state)))
        torch.testing.assert_close(state.residual, expected[:, first:])
    assert (state.layer, state.first, state.end) == (3, first, 6)


def test_parts_are_put_together_again() -> None:
    state = Run(tiny_model("qv", n_layers=4), TOKENS).states[2]
    whole = joined([state.part(0, 2), state.part(2, 5).part(2, 4), state.part(4)], axis=1)
    twice = joined([state, state])
    for found, expected in ((whole, state), (twice, state.repeated(2))):
        assert torch.equal(found.residual, expected.residual)
        assert found.carried.keys() == {"q", "v"}
        for name, several in found.carried.items():
            assert all(map(torch.equal, several, expected.carried[name]))
    assert state.part(1, 4).part(2).end == 4


def test_a_classifier_is_kept_and_resumed_like_any_model() -> None:
    model, inputs = model_of("qkv"), continuous_tokens(4)
    run, answers = Run(model, inputs), torch.full((4,), 16)
    with torch.no_grad():
        expected = model(inputs)
        last = resumed(model, run.states[1]).residual
    torch.testing.assert_close(run.logits(answers), expected)
    torch.testing.assert_close(last, run.states[2].residual)


@pytest.mark.parametrize(("source", "passed"), [("previous", 3), ("first", 1), ("all", 3)])
def test_what_several_layers_receive_counts_once(source: str, passed: int) -> None:
    """Four residual streams [3, 6, 16]; what three layers pass on, [3, 6, 4 heads, 4] each."""
    run = Run(tiny_model(f"v(source={source})"), TOKENS)
    assert numbers_of(run.states) == (4 + passed) * 3 * 6 * 16


def test_a_state_of_no_streams_carries_nothing() -> None:
    state: State = Run(tiny_model(), TOKENS).states[-1]
    assert state.carried == {}
