"""Each prompt's own scores beside the prompt alone, and resampled prompts beside plain loops."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resval_lens.analyses.circuits.bootstrap import AT_ONCE, Bootstrap
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.circuits.methods import METHODS
from resval_lens.analyses.circuits.scores import EdgeScores, score_edges
from resval_lens.hooks.prompts import PromptPairs
from tests.helpers import tiny_config, tiny_model
from tests.test_circuit_runs import tiny_pairs

OWN = [name for name, how in METHODS.items() if how.has_prompts]


@pytest.mark.parametrize("method", OWN)
@pytest.mark.parametrize("max_tokens", [7, 14, 1000], ids=["one", "two", "all"])
@pytest.mark.parametrize(
    ("streams", "changes"),
    [("", {}), ("qv", {"n_key_value_heads": 2}), ("v", {"attn_only": True})],
    ids=["classic", "grouped", "attention"],
)
def test_each_prompts_scores_are_those_of_the_prompt_alone(
    method: str, max_tokens: int, streams: str, changes: dict[str, Any]
) -> None:
    model = tiny_model(streams, dtype=torch.float64, n_layers=2, **changes)
    pairs = tiny_pairs(model)
    found = score_edges(model, pairs, method, by_prompt=True, max_tokens=max_tokens)
    assert found.by_prompt is not None
    assert found.by_prompt.shape == (len(pairs), len(found.graph))
    for row, own in enumerate(found.by_prompt):
        alone = score_edges(model, pairs.rows([row]), method).values
        torch.testing.assert_close(own, alone, rtol=1e-9, atol=1e-12)
    assert not torch.equal(found.by_prompt[0], found.by_prompt[1])
    plain = score_edges(model, pairs, method)
    assert plain.by_prompt is None
    torch.testing.assert_close(found.values, plain.values, rtol=1e-9, atol=1e-12)


def test_padded_prompts_have_their_own_scores() -> None:
    model = tiny_model("v", dtype=torch.float64)
    pairs = tiny_pairs(model)
    shorter = PromptPairs(pairs.clean[:, 1:], pairs.corrupted[:, 1:], pairs.metric, pairs.labels)
    mask = torch.ones_like(pairs.clean, dtype=torch.bool)
    mask[:, 0] = False
    padded = PromptPairs(pairs.clean, pairs.corrupted, pairs.metric, pairs.labels, mask=mask)
    wanted, found = (
        score_edges(model, each, "eap", by_prompt=True).by_prompt for each in (shorter, padded)
    )
    torch.testing.assert_close(found, wanted)


def test_weights_are_the_means_over_drawn_prompts() -> None:
    how = Bootstrap(resamples=50, seed=3)
    values = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = how.weights(7) @ values
    drawn = torch.randint(7, (50, 7), generator=torch.Generator().manual_seed(3)).tolist()
    wanted = [np.mean([values[prompt].numpy() for prompt in one], 0) for one in drawn]
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert how.weights(7).equal(Bootstrap(50, seed=3).weights(7))
    assert not how.weights(7).equal(Bootstrap(50, seed=4).weights(7))


def test_an_interval_holds_as_many_resamples_as_its_level_says() -> None:
    values = torch.arange(1001, dtype=torch.float64)[:, None] * torch.tensor([1.0, -2.0])
    found = Bootstrap(1001, level=0.9).interval(values)
    torch.testing.assert_close(found, torch.tensor([[50.0, -1900.0], [950.0, -100.0]]).double())


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 12), st.integers(0, 1000), st.sampled_from([0.5, 0.9, 0.95]), st.integers(1, 300)
)
def test_stable_edges_are_those_whose_resampled_means_keep_their_sign(
    prompts: int, seed: int, level: float, resamples: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(prompts, 9, generator=generator, dtype=torch.float64)
    scores += torch.linspace(-1.5, 1.5, 9)
    scores[:, 4] = 0
    how = Bootstrap(resamples, seed, level)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(prompts, (resamples, prompts), generator=generator)
    for edge, found in enumerate(how.stable(scores).tolist()):
        means = [scores[rows, edge].mean().item() for rows in drawn]
        share = max(sum(mean > 0 for mean in means), sum(mean < 0 for mean in means)) / resamples
        assert found == (share >= (1 + level) / 2 - 1e-12)
    assert not how.stable(scores)[4]


def test_many_edges_are_resampled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randn(6, 101, generator=torch.Generator().manual_seed(0)) + 0.5
    how = Bootstrap(200)
    whole = how.stable(scores)
    assert 0 < whole.sum() < 101
    assert AT_ONCE > 200 * 101
    monkeypatch.setattr("resval_lens.analyses.circuits.bootstrap.AT_ONCE", 200 * 30)
    assert how.stable(scores).equal(whole)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.01, 1.0, 100.0]))
def test_edges_that_are_not_stable_come_last_in_their_order(seed: int, scale: float) -> None:
    graph = Graph(tiny_config(streams="v"))
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(8, len(graph), generator=generator) * scale + 0.5
    scores = EdgeScores(graph, own.mean(0), "eap", None, 8, own)
    how = Bootstrap(100)
    kept = how.stable(own)
    found, told = how.stable_first(scores)
    assert (told.edges, told.of) == (int(kept.sum()), len(graph))
    assert found.values[kept].equal(scores.values[kept])
    assert found.values.sign().equal(scores.values.sign())
    if kept.all() or not kept.any():
        assert found is scores
        return
    assert found.values[~kept].abs().max() < found.values[kept].abs().min()
    before, after = (each.values[~kept].abs().argsort() for each in (scores, found))
    assert before.equal(after)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Bootstrap(0), "resamples must be a whole number from 1 up; got 0"),
        (lambda: Bootstrap(level=1.0), "level must lie between 0 and 1; got 1.0"),
        (lambda: Bootstrap().stable(torch.ones(1, 3)), "the bootstrap needs 2 prompts or more"),
        (
            lambda: Bootstrap().stable_first(
                EdgeScores(Graph(tiny_config()), torch.ones(3), "eap", None, 3)
            ),
            "the bootstrap needs each prompt's own scores: score_edges(..., by_prompt=True)",
        ),
        (
            lambda: score_edges(
                tiny_model(), tiny_pairs(tiny_model()), "acdc", threshold=0.1, by_prompt=True
            ),
            "by_prompt: there are no scores by prompt with the method acdc",
        ),
    ],
)
def test_what_cannot_be_resampled_is_refused(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        call()
