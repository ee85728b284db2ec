"""Probes of the memories, against loops over vectors and against models with known answers."""

from typing import Any

import numpy as np
import pytest
import torch

from resval_lens.analyses.papers.memory.model.config import memory_config
from resval_lens.analyses.papers.memory.model.construct import construct
from resval_lens.analyses.papers.memory.model.model import MemoryTransformer
from resval_lens.analyses.papers.memory.model.probes import (
    attention_recall,
    followers,
    memory_recall,
    own_and_link_values,
    recall,
)
from resval_lens.analyses.papers.memory.tasks.triggers import TriggerTask
from resval_lens.streams import AttentionStream
from tests.small_memory import small_bigrams

BIGRAMS = small_bigrams(6)
LENGTH = 12


def model_of(positions: str = "relative", streams: Any = "", **settings: Any) -> MemoryTransformer:
    cfg = memory_config(
        6, positions, streams, **{"d_model": 80, "n_ctx": 16, "dtype": torch.float64, **settings}
    )  # type: ignore[arg-type]
    return MemoryTransformer(cfg, generator=torch.Generator().manual_seed(2))


def written(positions: str, streams: Any = "", **settings: Any) -> MemoryTransformer:
    log_bigrams = BIGRAMS.log_conditional(1e-6)
    return construct(model_of(positions, streams), log_bigrams, exact=True, **settings)


# Recall


def test_recall_is_an_argmax_over_all_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    u, W, v = (torch.randn(5, 5, generator=generator) for _ in range(3))
    scores = [[float(u[i].numpy() @ W.numpy() @ v[j].numpy()) for j in range(5)] for i in range(5)]
    assert recall(u, W, v).tolist() == [int(np.argmax(row)) == i for i, row in enumerate(scores)]


def looped(model: MemoryTransformer, length: int, triggers: list[int]) -> dict[str, float]:
    """The probes, pair by pair in numpy."""
    p = {name: x.detach().numpy() for name, x in model.named_parameters()}
    E, U, F = p["embed.W_E"], p["unembed.W_U"], p["feed_forward.W_F"]
    K1, K2 = p["blocks.0.attn.W_K"][0], p["blocks.1.attn.W_K"][0]
    V1, O1 = p["blocks.0.attn.W_V"][0], p["blocks.0.attn.W_O"][0]
    V2, O2 = p["blocks.1.attn.W_V"][0], p["blocks.1.attn.W_O"][0]
    found = {}
    if "pos_embed.W_pos" in p:
        P = p["pos_embed.W_pos"][:length]
        hits = [
            int(np.argmax([P[s] @ K1 @ P[t] for s in range(length)])) == t - 1
            for t in range(1, length)
        ]
    else:
        R = p["blocks.0.attn.W_R"]
        hits = [int(np.argmax([R[i] @ K1 @ e for i in range(length)])) == 1 for e in E]
    found["W_K1"] = np.mean(hits)
    found["W_K2"] = np.mean(
        [int(np.argmax([e @ V1 @ O1 @ K2 @ E[k] for e in E])) == k for k in triggers]
    )
    mix = model.blocks[1].attn.mix("v")
    own, link = (1.0, 0.0) if mix is None else mix.fixed
    values = [own * e @ V2 + link * e @ V1 for e in E]
    for name, written in (("W_O2", O2), ("W_O2_read", O2 @ (np.eye(len(F)) + F))):
        found[name] = np.mean(
            [
                int(np.argmax([x @ written @ U[:, v] for v in range(6)])) == k
                for k, x in enumerate(values)
            ]
        )
    for name, residual in (("W_F_kl", 0), ("global_kl", 1)):
        gaps = []
        for token, e in enumerate(E):
            if token not in triggers:
                said = (residual * e + e @ F) @ U
                log_said = said - np.log(np.exp(said).sum())
                pi = BIGRAMS.conditional[token].numpy()
                pairs = zip(pi, log_said, strict=True)
                gaps.append(sum(q * (np.log(q) - x) for q, x in pairs if q))
        found[name] = np.mean(gaps)
    return found


@pytest.mark.parametrize("streams", ["", "v", AttentionStream("v", mix="pair", own=0.3, carried=2)])
@pytest.mark.parametrize("positions", ["absolute", "relative", "sinusoidal"])
def test_probes_are_their_loops(positions: str, streams: Any) -> None:
    model = model_of(positions, streams, d_model=8)  # too narrow to recall everything
    assert not all(x in (0, 1) for x in looped(model, LENGTH, [1, 4]).values())
    found = memory_recall(model, BIGRAMS, LENGTH, [1, 4])
    for name, value in looped(model, LENGTH, [1, 4]).items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize("streams", ["", "v"])
@pytest.mark.parametrize("positions", ["absolute", "relative"])
def test_a_constructed_model_recalls_everything(positions: str, streams: str) -> None:
    found = memory_recall(written(positions, streams), BIGRAMS, LENGTH)
    assert [found[x] for x in ("W_K1", "W_K2", "W_O2", "W_O2_read")] == [1, 1, 1, 1]
    # A floor of 1e-6 under unseen bigrams is all that its feed-forward has wrong.
    assert found["global_kl"] == pytest.approx(0, abs=1e-4)


def test_absolute_positions_are_recalled_as_far_as_they_were_written() -> None:
    model = written("absolute", trained_length=6)
    found = memory_recall(model, BIGRAMS, LENGTH)
    # Of positions 1..11, 1..5 were written; where nothing was, any position may come out on top.
    assert found["W_K1"] is not None
    assert 5 / 11 <= found["W_K1"] < 9 / 11


def test_tokens_that_were_not_written_are_not_recalled() -> None:
    found = memory_recall(written("relative", known=[0, 1, 2]), BIGRAMS, LENGTH)
    assert found["W_O2"] == pytest.approx(0.5, abs=0.2)
    assert memory_recall(written("relative", known=[0, 1, 2]), BIGRAMS, LENGTH, [0, 2])["W_K2"] == 1


def test_early_positions_are_those_below_64() -> None:
    cfg = memory_config(6, "absolute", d_model=300, n_ctx=100, dtype=torch.float64)
    model = MemoryTransformer(cfg, generator=torch.Generator().manual_seed(2))
    construct(model, BIGRAMS.log_conditional(1e-6), trained_length=64, exact=True)
    found = memory_recall(model, BIGRAMS, 100)
    assert found["W_K1_near"] == 1
    assert found["W_K1_far"] is not None
    assert found["W_K1_far"] < 0.1
    assert found["W_K1"] == pytest.approx((63 + 36 * found["W_K1_far"]) / 99)


@pytest.mark.parametrize("positions", ["rotary", "alibi"])
def test_encodings_without_position_vectors_have_no_previous_memory(positions: str) -> None:
    found = memory_recall(model_of(positions), BIGRAMS, LENGTH)
    assert found["W_K1"] is found["W_K1_near"] is found["W_K1_far"] is None
    assert found["W_K2"] is not None


def test_one_layer_has_no_key_for_what_went_before() -> None:
    found = memory_recall(model_of(n_layers=1), BIGRAMS, LENGTH)
    assert found["W_K2"] is None
    assert found["W_O2"] is not None


def test_a_value_stream_is_part_of_the_value() -> None:
    plain, streamed = model_of(), model_of(streams="v")
    E = plain.embed.W_E
    expected = E @ plain.blocks[1].attn.W_V[0] + E @ plain.blocks[0].attn.W_V[0]
    torch.testing.assert_close(own_and_link_values(streamed), expected)


def test_learned_mixing_has_no_one_value() -> None:
    model = model_of(streams=AttentionStream("v", mix="scalar"))
    found = memory_recall(model, BIGRAMS, LENGTH)
    assert found["W_O2"] is found["W_O2_read"] is None
    assert found["W_K2"] is not None
    with pytest.raises(ValueError, match="has learned weights; memories need constant ones"):
        own_and_link_values(model)


# Attention


def test_followers_come_right_after_the_same_token() -> None:
    tokens = torch.tensor([[3, 1, 3, 3, 1]])
    found = [(t, s) for t in range(5) for s in range(1, t + 1) if tokens[0, s - 1] == tokens[0, t]]
    assert followers(tokens)[0].nonzero().tolist() == [list(pair) for pair in found]


@pytest.mark.parametrize("positions", ["absolute", "relative"])
def test_a_constructed_model_looks_where_it_should(positions: str) -> None:
    task = TriggerTask(BIGRAMS, length=LENGTH, n_triggers=2)
    batch = task.batch(50, torch.Generator().manual_seed(1))
    model = model_of(positions)
    construct(model, BIGRAMS.log_conditional(1e-6), 30.0, 30.0, 10.0, exact=True)
    found = attention_recall(model, batch)
    assert found["previous"] == 1
    assert found["previous_mass"] == pytest.approx(1, abs=1e-9)
    # All but where the first token, which attends to itself, is the trigger: a spurious match.
    elsewhere = batch.inputs[:, :1] != batch.inputs
    wanted = batch.in_context
    assert found["target"] >= float((elsewhere & wanted).sum() / wanted.sum())  # type: ignore[operator]
    assert found["target_mass"] > 0.8  # type: ignore[operator]


def test_attention_is_counted_position_by_position() -> None:
    task = TriggerTask(BIGRAMS, length=LENGTH, n_triggers=2)
    batch = task.batch(20, torch.Generator().manual_seed(1))
    model = model_of("relative", "v")
    _, cache = model.run_with_cache(batch.inputs)
    first, last = (cache["pattern", layer][:, 0].detach().numpy() for layer in (0, 1))
    previous, previous_mass, target, target_mass = [], [], [], []
    z = batch.inputs.tolist()
    for i in range(20):
        for t in range(LENGTH):
            if t:
                previous.append(int(first[i, t].argmax()) == t - 1)
                previous_mass.append(first[i, t, t - 1])
            if int(batch.occurrence[i, t]) >= 2:
                places = [s for s in range(1, t + 1) if z[i][s - 1] == z[i][t]]
                target.append(int(last[i, t].argmax()) in places)
                target_mass.append(sum(last[i, t, s] for s in places))
    expected = [float(np.mean(x)) for x in (previous, previous_mass, target, target_mass)]
    assert list(attention_recall(model, batch).values()) == pytest.approx(expected)
    assert 0 < expected[2] < 1


def test_one_layer_has_no_target() -> None:
    batch = TriggerTask(BIGRAMS, LENGTH, 2).batch(3, torch.Generator().manual_seed(1))
    found = attention_recall(model_of(n_layers=1), batch)
    assert (found["target"], found["target_mass"]) == (None, None)
