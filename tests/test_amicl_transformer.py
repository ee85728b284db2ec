"""AMICL as a transformer: equal to the memory, by way of the link; and what it takes without."""

import io
import json
import re
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from resval_lens.analyses.drawing.figures import save
from resval_lens.analyses.papers.amicl import bridge as transformer
from resval_lens.analyses.papers.amicl import counting
from resval_lens.analyses.papers.amicl.bridge import TransformerStudy
from resval_lens.analyses.papers.amicl.model.memory import AMICL, AMICLConfig
from resval_lens.analyses.papers.amicl.model.transformer import (
    RecallConfig,
    RecallTransformer,
    best_classic,
    recall_transformer,
)
from resval_lens.analyses.papers.amicl.model.trials import PairTask
from resval_lens.hooks import cut_links, edit_links, freeze, link_activations, links, scale_links
from resval_lens.streams import AttentionStream
from tests.reference import amicl as reference

LENGTH, D = 8, 5


@torch.no_grad()
def attention(model: RecallTransformer, x: Float[Tensor, "batch s d"]) -> Float[Tensor, "batch s"]:
    """β, layer 1's attention of the last token in AMICL's order: tokens 1..s−1, then BOS.

    The weight of the query token on itself is zero and left out; BOS stands in its place.

    Raises:
        ValueError: as :meth:`RecallTransformer.embed_trial`.
    """
    name = "blocks.1.attn.hook_pattern"
    _, cache = model.run_with_cache(model.embed_trial(x), names_filter=name)
    return cache[name][:, 0, -1, :-1].roll(-1, dims=-1)


def tokens(
    batch: int = 4, length: int = LENGTH, d: int = D, seed: int = 0, dtype: Any = torch.float64
) -> Tensor:
    """Trials of any tokens, the last one masked."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, length, d, generator=generator, dtype=torch.float64)
    x[:, -1] = 0
    return x.to(dtype)


def model_of(a: float = 2.0, temperature: float = 0.3, **settings: Any) -> RecallTransformer:
    settings = {"dtype": torch.float64, **settings}
    return recall_transformer(LENGTH, D, a, temperature, **settings)


def expected(x: Tensor, a: float, temperature: float | None) -> tuple[np.ndarray, np.ndarray]:
    """The reference's outputs [batch, d] and weights [batch, s]."""
    each = [recalled(trial, a, temperature) for trial in x.double().numpy()]
    return np.array([e["output"] for e in each]), np.array([e["pattern"] for e in each])


def recalled(x: np.ndarray, a: float, temperature: float | None) -> dict[str, np.ndarray]:
    """Of one trial; softmax, or argmax for a temperature of None."""
    separation = "argmax" if temperature is None else "softmax"
    return reference.recall(
        x,
        a=a,
        similarity="dot",
        separation=separation,
        last_key=np.zeros(x.shape[1]),
        temperature=temperature or 1.0,
    )


# Equality with the memory


@pytest.mark.parametrize("temperature", [0.01, 0.3, 1.0, 50.0])
@pytest.mark.parametrize("a", [-0.5, 0.0, 0.5, 1.0, 2.0, 6.0])
def test_it_recalls_and_attends_as_the_memory_does(a: float, temperature: float) -> None:
    x, model = tokens(), model_of(a, temperature)
    output, weights = expected(x, a, temperature)
    np.testing.assert_allclose(model.recall(x).numpy(), output, rtol=0, atol=1e-12)
    np.testing.assert_allclose(attention(model, x).numpy(), weights, rtol=0, atol=1e-12)


@given(
    a=st.floats(-0.5, 8),
    temperature=st.floats(-3, 3).map(lambda exponent: 10**exponent),
    length=st.integers(2, 12),
    d=st.integers(1, 12),
    seed=st.integers(0, 2**20),
    separate_slot=st.booleans(),
)
@example(a=2.0, temperature=1.0, length=2, d=1, seed=0, separate_slot=False)
@settings(max_examples=60, deadline=None)
def test_equal_for_any_size_weight_and_temperature(
    a: float, temperature: float, length: int, d: int, seed: int, separate_slot: bool
) -> None:
    x = tokens(2, length, d, seed)
    streams = "" if separate_slot else "v"
    model = recall_transformer(
        length, d, a, temperature, streams, separate_slot=separate_slot, dtype=torch.float64
    )
    output, weights = expected(x, a, temperature)
    np.testing.assert_allclose(attention(model, x).numpy(), weights, rtol=0, atol=1e-10)
    np.testing.assert_allclose(model.recall(x).numpy(), output, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
@pytest.mark.parametrize("temperature", [1e-12, 1e-9])
def test_at_low_temperature_it_is_argmax(temperature: float, dtype: torch.dtype) -> None:
    x = tokens(dtype=dtype)
    output, weights = expected(x, 2.0, None)
    model = model_of(2.0, temperature, dtype=dtype)
    assert attention(model, x).numpy().tolist() == weights.tolist()
    assert model.recall(x).double().numpy().tolist() == output.tolist()


def test_in_single_precision_it_is_equal_to_rounding() -> None:
    x = tokens(dtype=torch.float32)
    output, weights = expected(x, 2.0, 0.3)
    model = recall_transformer(LENGTH, D, temperature=0.3)
    assert model.recall(x).dtype == torch.float32
    np.testing.assert_allclose(model.recall(x).numpy(), output, rtol=0, atol=1e-5)
    np.testing.assert_allclose(attention(model, x).numpy(), weights, rtol=0, atol=1e-5)


@pytest.mark.parametrize("separation", ["softmax", "argmax"])
def test_it_equals_the_hooked_memory(separation: Any) -> None:
    trials = PairTask(d=D, length=LENGTH).draw(6, torch.Generator().manual_seed(1), torch.float64)
    temperature = 0.1 if separation == "softmax" else 1e-12
    memory = AMICL(AMICLConfig(a=2.0, separation=separation, temperature=temperature))
    output, cache = memory.run_with_cache(trials.inputs)
    model = model_of(2.0, temperature)
    torch.testing.assert_close(model.recall(trials.inputs), output, rtol=0, atol=1e-12)
    pattern = cache["hook_pattern"][:, 0]
    torch.testing.assert_close(attention(model, trials.inputs), pattern, rtol=0, atol=1e-12)


# How


def test_layer_2_has_amicls_keys_query_and_values() -> None:
    x, model = tokens(), model_of()
    memory = AMICL(AMICLConfig(a=2.0))
    _, seen = memory.run_with_cache(x)
    _, cache = model.run_with_cache(model.embed_trial(x))
    close = {"rtol": 0, "atol": 1e-14}
    keys = cache["k", 1][:, :, 0, :D]
    torch.testing.assert_close(keys[:, 1:-1], seen["hook_k"][:, :-1], **close)
    assert not keys[:, 0].any()  # BOS: AMICL's k_s
    torch.testing.assert_close(cache["q", 1][:, -1, 0, :D], seen["hook_q"][:, 0], **close)
    assert cache["v", 1][:, 1:, 0, :D].equal(seen["hook_v"])


def test_the_residual_stream_holds_the_mixture_and_the_link_the_pure_tokens() -> None:
    x, model = tokens(), model_of()
    _, cache = model.run_with_cache(model.embed_trial(x))
    previous = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
    assert cache["resid_pre", 1][:, 1:, :D].equal(x + 2 * previous)
    assert not cache["v_local", 1].any()
    assert cache["v_link", 1][:, 1:, 0, :D].equal(x)
    assert not cache["v_link", 1][:, 0].any()


def test_the_query_token_leaves_itself_out_exactly() -> None:
    x, model = 100 * tokens(), model_of(temperature=0.001)
    _, cache = model.run_with_cache(model.embed_trial(x))
    last = cache["pattern", 1][:, 0, -1]
    assert not last[:, -1].any()
    assert attention(model, x)[:, -1].equal(last[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
@pytest.mark.parametrize("temperature", [1e-12, 1.0, 1e12])
def test_the_first_layers_head_looks_at_the_previous_token_alone(
    temperature: float, dtype: torch.dtype
) -> None:
    model = model_of(temperature=temperature, dtype=dtype)
    _, cache = model.run_with_cache(model.embed_trial(tokens(dtype=dtype)))
    previous = torch.zeros(LENGTH + 1, LENGTH + 1, dtype=dtype)
    previous[0, 0] = 1
    previous[torch.arange(1, LENGTH + 1), torch.arange(LENGTH)] = 1
    assert all(pattern.equal(previous) for pattern in cache["pattern", 0][:, 0])


def test_a_blunter_head_mixes_in_what_the_formula_says() -> None:
    """Token i, BOS being 0, gives each of i tokens e^−τ of the weight of the one before it."""
    tau = 3.0
    model = model_of(temperature=7.0, sharpness=tau)
    _, cache = model.run_with_cache(model.embed_trial(tokens()))
    for i in range(1, LENGTH + 1):
        row = np.full(i + 1, 1 / (np.exp(tau) + i))
        row[i - 1] *= np.exp(tau)
        np.testing.assert_allclose(cache["pattern", 0][0, 0, i, : i + 1].numpy(), row, atol=1e-14)


# By way of the link


def test_with_the_link_cut_nothing_is_recalled() -> None:
    x, model = tokens(), model_of()
    with cut_links(model):
        assert not model.recall(x).any()
    assert not model.with_streams("").recall(x).any()
    assert not model_of(streams="").recall(x).any()
    np.testing.assert_allclose(model.recall(x), expected(x, 2.0, 0.3)[0], rtol=0, atol=1e-12)


def test_cutting_the_link_changes_no_attention() -> None:
    x, model = tokens(), model_of()
    with cut_links(model):
        cut = attention(model, x)
    assert cut.equal(attention(model, x))


def test_half_a_link_recalls_half() -> None:
    x, model = tokens(), model_of()
    with scale_links(model, 0.5):
        half = model.recall(x)
    torch.testing.assert_close(half, model.recall(x) / 2, rtol=0, atol=1e-15)
    grafted = model.with_streams(AttentionStream("v", carried=0.5))
    assert grafted.recall(x).equal(half)


def test_another_trials_link_is_recalled_by_this_trials_attention() -> None:
    x, model = tokens(seed=0), model_of()
    others = tokens(seed=1)
    with edit_links(model, freeze(link_activations(model, model.embed_trial(others)))):
        recalled = model.recall(x)
    _, weights = expected(x, 2.0, 0.3)
    direct = np.einsum("bs,bsd->bd", weights, others.numpy())
    np.testing.assert_allclose(recalled.numpy(), direct, rtol=0, atol=1e-12)
    assert [str(link) for link in links(model)] == ["v1.h0"]


# Without a stream


def test_a_classic_model_recalls_with_a_slot_for_its_first_layer() -> None:
    x = tokens()
    model, classic = model_of(), model_of(streams="", separate_slot=True)
    assert classic.cfg.d_model == model.cfg.d_model + D
    torch.testing.assert_close(classic.recall(x), model.recall(x), rtol=0, atol=1e-13)
    torch.testing.assert_close(attention(classic, x), attention(model, x), rtol=0, atol=1e-13)
    streamed = model_of(separate_slot=True)
    torch.testing.assert_close(streamed.recall(x), model.recall(x), rtol=0, atol=1e-13)
    assert not streamed.with_streams("").recall(x).any()  # its values are the stream's


def test_a_classic_model_needs_no_more_room_if_it_answers_in_the_empty_content() -> None:
    """The output slot of the classic control is spare: the last token's content is masked."""
    x, classic = tokens(), model_of(streams="", separate_slot=True)
    wanted, slots = classic.recall(x), classic.cfg.slots
    with torch.no_grad():
        for parameter in (classic.blocks[1].attn.W_O[0].T, classic.unembed.W_U):
            parameter[slots["content"]] = parameter[slots["output"]]
            parameter[slots["output"]] = 0
    torch.testing.assert_close(classic.recall(x), wanted, rtol=0, atol=1e-13)
    _, cache = classic.run_with_cache(classic.embed_trial(x))
    assert not cache["resid_post", 1][..., slots["output"]].any()
    assert classic.cfg.d_model - D == model_of().cfg.d_model


def test_the_best_values_are_the_least_squares_map() -> None:
    x, model = tokens(50), model_of(1.5)
    before = {name: p.clone() for name, p in model.named_parameters()}
    classic = best_classic(model, x)
    fitted = classic.blocks[1].attn.W_V[0, :D, :D].detach().numpy()
    np.testing.assert_allclose(fitted, reference.value_map(x.numpy(), 1.5), rtol=0, atol=1e-12)
    assert classic.cfg.streams == ()
    assert all(p.equal(before[name]) for name, p in model.named_parameters())

    fresh = tokens(seed=9)
    _, weights = expected(fresh, 1.5, 0.3)
    previous = np.roll(fresh.numpy(), 1, axis=1)
    read = np.einsum("bs,bsd->bd", weights[:, :-1], (fresh.numpy() + 1.5 * previous)[:, :-1])
    np.testing.assert_allclose(classic.recall(fresh).numpy(), read @ fitted, rtol=0, atol=1e-12)


def test_the_best_readout_is_the_least_squares_map_of_both_slots() -> None:
    x, model = tokens(60), model_of(1.5)
    labels = tokens(60, seed=3)[:, 0]
    classic = best_classic(model, x, labels)
    z = best_classic(model, x).recall(x).numpy()
    last = np.concatenate([1.5 * x[:, -2].numpy(), z], axis=1)
    direct = np.linalg.lstsq(last, labels.numpy(), rcond=None)[0]
    np.testing.assert_allclose(classic.recall(x).numpy(), last @ direct, rtol=0, atol=1e-10)


PAIRS = PairTask(d=12, length=12, noise=0.4)


@pytest.mark.parametrize("a", [1.5, 3.0])
def test_the_errors_without_a_stream_are_those_of_gaussian_tokens(a: float) -> None:
    """Trials of one pair, with all of layer 1's attention put on its label.

    Values: W = I/(1 + a²), error a²/(1 + a²). With the readout, ρ = 1/(1 + ε²) the correlation of
    two instances of the object: a²(1 − ρ²)/(1 + a²(1 − ρ²)).
    """
    d, eps, n = 6, 0.4, 20_000
    generator = torch.Generator().manual_seed(2)
    normal = torch.randn(4, n, d, generator=generator, dtype=torch.float64) / d**0.5
    mean, label, first, second = normal
    noisy = [(mean + eps * eta) / (1 + eps**2) ** 0.5 for eta in (first, second)]
    x = torch.stack([noisy[0], label, noisy[1], torch.zeros_like(label)], dim=1)
    model = recall_transformer(4, d, a, 1e-12, dtype=torch.float64)
    only = torch.zeros(n, 1, 5, 5, dtype=torch.float64)
    only[..., 2] = 1  # BOS, object, label

    def error(classic: RecallTransformer) -> float:
        with torch.no_grad():
            logits = classic.run_with_hooks(
                classic.embed_trial(x),
                fwd_hooks=[("blocks.1.attn.hook_pattern", lambda pattern, hook: only)],
            )
        return float((logits[:, -1] - label).square().sum() / label.square().sum())

    # Tokens that are independent of the one before them; here every second one is.
    independent = torch.randn(n, 4, d, generator=generator, dtype=torch.float64)
    independent[:, -1] = 0
    classic = best_classic(model, independent)
    identity = torch.eye(d, dtype=torch.float64) / (1 + a**2)
    torch.testing.assert_close(
        classic.blocks[1].attn.W_V[0, :d, :d].detach(), identity, rtol=0, atol=0.01
    )
    assert error(classic) == pytest.approx(a**2 / (1 + a**2), abs=0.01)

    slots = model.cfg.slots
    rho = 1 / (1 + eps**2)
    best = 1 / (1 + a**2 * (1 - rho**2))
    with torch.no_grad():  # the readout in closed form: undo the map, take off ρ·c, shrink
        classic.unembed.W_U[slots["output"]] = (1 + a**2) * best * torch.eye(d).double()
        classic.unembed.W_U[slots["content"]] = -rho * best * torch.eye(d).double()
    wanted = a**2 * (1 - rho**2) * best
    assert error(classic) == pytest.approx(wanted, abs=0.03)


@pytest.mark.usefixtures("unchecked_annotations")
def test_best_classic_says_what_it_cannot_fit() -> None:
    x, model = tokens(20), model_of()
    with pytest.raises(ValueError, match="model has separate_slot=True"):
        best_classic(model_of(streams="", separate_slot=True), x)
    short = recall_transformer(4, D, dtype=torch.float64)
    with pytest.raises(ValueError, match="x has 2 tokens with a predecessor; a map of d=5"):
        best_classic(short, tokens(1, 4))
    with pytest.raises(ValueError, match=r"x has 9 trials; .* needs 10"):
        best_classic(model, x[:9], x[:9, 0])
    with pytest.raises(ValueError, match=r"labels must be \[20, 5\]; got \[19, 5\]"):
        best_classic(model, x, x[:19, 0])


# As any other model


def test_weights_go_out_and_come_in_again(tmp_path: Path) -> None:
    x, model = tokens(), model_of(a=1.25, temperature=0.07)
    model.save_pretrained(tmp_path / "model")
    loaded = RecallTransformer.from_pretrained(tmp_path / "model")
    assert isinstance(loaded.cfg, RecallConfig)
    assert (loaded.cfg.a, loaded.cfg.attn_scale, loaded.cfg.length) == (1.25, 0.07, LENGTH)
    assert loaded.recall(x).equal(model.recall(x))
    assert model.with_streams("").with_streams("v").recall(x).equal(model.recall(x))


def test_making_one_reads_no_global_generator() -> None:
    before = torch.get_rng_state()
    model_of()
    assert torch.get_rng_state().equal(before)


def test_a_run_can_stop_and_go_on() -> None:
    model = model_of()
    embedded = model.embed_trial(tokens())
    logits, cache = model.run_with_cache(embedded)
    assert cache["hook_embed"].equal(embedded)
    resumed = model(cache["resid_pre", 1], start_at_layer=1, carried=model.carried_before(1, cache))
    torch.testing.assert_close(resumed, logits, rtol=0, atol=1e-13)
    assert model(embedded, stop_at_layer=1).equal(cache["resid_post", 0])
    assert model(embedded, return_type=None) is None
    assert logits.shape == (4, LENGTH + 1, D)


def test_what_a_recall_transformer_does_not_do() -> None:
    model = model_of()
    with pytest.raises(ValueError, match="return_type must be 'logits' or None"):
        model(model.embed_trial(tokens()), return_type="loss")
    with pytest.raises(ValueError, match="no weights to process"):
        model.process_weights_()
    with pytest.raises(ValueError, match="made by recall_transformer"):
        RecallTransformer.from_hooked(model)
    with pytest.raises(TypeError, match="no tokens to generate"):
        model.generate()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"length": 1}, "length must be a whole number from 2 up; got 1"),
        ({"d": 0}, "d must be a whole number from 1 up; got 0"),
        ({"a": -1.0}, "a must be a finite number other than -1; got -1.0"),
        ({"a": float("nan")}, "a must be a finite number other than -1; got nan"),
        ({"temperature": 0.0}, "temperature must lie between 1e-12 and 1e12; got 0.0"),
        ({"temperature": float("inf")}, "temperature must lie between 1e-12 and 1e12; got inf"),
        ({"sharpness": 0.0}, "sharpness must lie above 0 and be at most 1e6; got 0.0"),
        ({"dtype": torch.float16}, "dtype must be torch.float32 or torch.float64; got torch.fl"),
        ({"streams": "x"}, "streams='x' has 'x'"),
        ({"length": 4.5}, "length must be a whole number from 2 up; got 4.5"),
        ({"d": True}, "d must be a whole number from 1 up; got True"),
        ({"a": "2"}, "a must be a finite number other than -1; got '2'"),
        ({"temperature": None}, "temperature must lie between 1e-12 and 1e12; got None"),
        ({"sharpness": "9"}, "sharpness must lie above 0 and be at most 1e6; got '9'"),
        ({"streams": "k"}, "streams must carry values alone: layer 0's queries and keys are of"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("unchecked_annotations")
def test_an_impossible_model_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        recall_transformer(**{"length": 4, "d": 3, **settings})


@pytest.mark.parametrize("streams", ["q", "k", "kv", "qv", "qkv"])
def test_streams_of_positions_are_refused_wherever_they_come_from(streams: str) -> None:
    for make in (lambda: model_of(streams=streams), lambda: model_of().with_streams(streams)):
        with pytest.raises(ValueError, match="streams must carry values alone") as caught:
            make()
        assert str(caught.value).endswith(f"a stream of {', '.join(streams.replace('v', ''))}")


@pytest.mark.usefixtures("unchecked_annotations")
def test_tokens_that_do_not_fit_are_refused() -> None:
    model, x = model_of(), tokens()
    for wrong, said in [
        (x[:, 1:], r"x must have shape \[batch, 8, 5\]; got \[4, 7, 5\]"),
        (x[0], r"x must have shape \[batch, 8, 5\]; got \[8, 5\]"),
        (x[:0], r"x must have shape \[batch, 8, 5\]; got \[0, 8, 5\]"),
        (x.float(), r"x must be torch.float64; got torch.float32"),
        (x / 0, r"x holds NaN or infinity"),
        (x + 1, r"x must end in a masked token, all zeros"),
    ]:
        with pytest.raises(ValueError, match=said):
            model.embed_trial(wrong)
    with pytest.raises(ValueError, match=r"input must be torch.float64 \[batch, pos, 20\], from"):
        model(x)


# The study


@pytest.fixture(scope="module")
def study() -> TransformerStudy:
    said: list[str] = []
    found = transformer.transformer_study(
        40, 3, said.append, task=PAIRS, weights=(0.5, 2.0, 4.0), fit_trials=600
    )
    assert said == ["a = 0.5", "a = 2", "a = 4"]
    return found


def test_the_study_finds_the_model_equal_to_the_memory(study: TransformerStudy) -> None:
    for row in study.rows:
        for name in ("values", "classic_slot"):
            assert row.models[name].difference < 1e-12
            assert row.models[name].nearest == row.models["amicl"].nearest
        assert row.models["cut"].error == 1
        assert row.models["cut"].cosine == 0


@pytest.mark.parametrize("held", [7, 1000])
def test_a_study_holds_few_trials_at_a_time_and_all_count(
    held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against measures of all trials, drawn fresh in the same parts."""
    monkeypatch.setattr(counting, "FLOATS", held * PAIRS.d * PAIRS.length)
    drawn, alive = PairTask.draw, []
    most = [0]

    def draw(*given: Any) -> Any:
        alive[:] = [each for each in alive if each() is not None]
        trials = drawn(*given)
        alive.append(weakref.ref(trials.inputs))
        most[0] = max(most[0], len(alive))
        return trials

    monkeypatch.setattr(PairTask, "draw", draw)
    found = transformer.transformer_study(40, 3, task=PAIRS, weights=(2.0, 4.0), fit_trials=600)
    assert most[0] <= 3  # those to fit on, a part, and the next
    generator = torch.Generator().manual_seed(3)
    drawn(PAIRS, 600, generator, torch.float64)
    parts = list(counting.batches(PAIRS, 40, generator, torch.float64))
    assert len(parts) == -(-40 // held)
    inputs, labels, targets = (
        torch.cat(x) for x in zip(*((p.inputs, p.labels, p.targets) for p in parts), strict=True)
    )
    right = torch.cat([p.right for p in parts])
    chance = [1 / len(set(row)) for p in parts for row in p.classes.tolist()]
    assert found.chance == pytest.approx(np.mean(chance), abs=1e-12)
    for row in found.rows:
        output = expected(inputs, row.a, 0.02)[0]
        far = np.linalg.norm(labels.numpy() - output[:, None], axis=-1)
        assert row.models["amicl"].nearest == float(right[range(40), far.argmin(1)].double().mean())
        wrong = ((output - targets.numpy()) ** 2).sum() / (targets.numpy() ** 2).sum()
        assert row.models["amicl"].error == pytest.approx(wrong, rel=1e-9)
        shortest = labels.norm(dim=-1).argmin(1)
        assert row.models["cut"].nearest == float(right[range(40), shortest].double().mean())


def test_the_study_measures_what_it_says(study: TransformerStudy) -> None:
    generator = torch.Generator().manual_seed(3)
    PAIRS.draw(600, generator, torch.float64)
    trials = PAIRS.draw(40, generator, torch.float64)
    row = next(row for row in study.rows if row.a == 2)
    right, wrong, total = 0, 0.0, 0.0
    for x, labels, classes, q in zip(
        trials.inputs.numpy(), trials.labels.numpy(), trials.classes, trials.query, strict=True
    ):
        output = recalled(x, 2.0, 0.02)["output"]
        best = np.argmin([np.linalg.norm(output - label) for label in labels])
        right += int(classes[best] == classes[q])
        wrong += float(((output - labels[q]) ** 2).sum())
        total += float((labels[q] ** 2).sum())
    assert row.models["amicl"].nearest == pytest.approx(right / 40)
    assert row.models["amicl"].error == pytest.approx(wrong / total, abs=1e-10)
    assert row.models["classic"].expected_error == pytest.approx(0.8)
    rho = 1 / 1.16
    unlike = 4 * (1 - rho**2)
    assert row.models["classic_readout"].expected_error == pytest.approx(unlike / (1 + unlike))


def test_values_read_from_shared_space_get_worse_as_matching_gets_better(
    study: TransformerStudy,
) -> None:
    two, four = study.rows[1:]
    assert four.models["amicl"].nearest >= two.models["amicl"].nearest
    assert (
        four.models["classic"].nearest < two.models["classic"].nearest < two.models["amicl"].nearest
    )
    assert two.models["classic_readout"].error < two.models["classic"].error


def test_the_study_shows_one_trials_attention(study: TransformerStudy) -> None:
    shown = study.attention
    assert len(shown.tokens) == len(shown.right) == len(shown.amicl) == 12
    assert shown.tokens[:2] == ["o1", "l1"]
    assert shown.tokens[-1] == "?"
    bos, *seen, own = shown.model
    assert own == 0
    np.testing.assert_allclose([*seen, bos], shown.amicl, rtol=0, atol=1e-12)
    asked = shown.tokens[-2][1:]
    marked = {t for t, right in zip(shown.tokens, shown.right, strict=True) if right}
    assert marked == {f"l{asked}"}


def test_the_study_is_data_a_picture_and_a_table(study: TransformerStudy, tmp_path: Path) -> None:
    assert json.loads(json.dumps(study.to_dict())) == study.to_dict()
    figure = study.figures()["amicl-transformer.png"]
    assert len(figure.axes) == 4
    assert save(figure, tmp_path / "figure.png").stat().st_size > 10_000
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(*study.tables())
    text = console.export_text()
    assert f"{study.rows[1].models['classic'].nearest:.3f}" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "…\n" not in text
    assert f"(chance {study.chance:.3f}); nothing is" in " ".join(text.split())
    assert "d = 12" in text


def test_a_study_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="trials must be 1 or more; got 0"):
        transformer.transformer_study(0)
    with pytest.raises(ValueError, match="weights must hold one value of a or more"):
        transformer.transformer_study(1, weights=())
