"""The two-layer classifier against NumPy loops, against plain torch, and by its cheap algebra."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from resval_lens.answer import answer, can_answer_fast
from resval_lens.authors import load_authors_classifier
from resval_lens.classifier import ClassifierConfig, ICLClassifier, classifier_config
from resval_lens.presets import ICL_VARIANTS, icl_variant
from resval_lens.streams import AttentionStream
from resval_lens.tasks.icl import ICLTask, ICLWorld
from resval_lens.training.icl import ICLRun, initial_model
from resval_lens.transformer import ResValTransformer
from tests.benchmarks import plain_icl
from tests.reference.classifier_numpy import forward, random_params

STREAMS = ["", "q", "k", "v", "qkv"]
MIXES = {
    "": "",
    "q": "q",
    "k": "k",
    "v": "v",
    "qk": "qk",
    "qv": "qv",
    "qkv": "qkv",
    "detached": (AttentionStream("q", detach=True), AttentionStream("v", detach=True)),
    "detached k": AttentionStream("k", detach=True, mix="scalar"),
    "half": AttentionStream("v", mix="pair", own=0.5, carried=0.25),
    "tripled": tuple(AttentionStream(s, carried=3.0) for s in "qkv"),
    "scalar": tuple(AttentionStream(s, mix="scalar", own=0.8, carried=0.6) for s in "qkv"),
    "convex": tuple(AttentionStream(s, mix="convex", carried=0.3) for s in "qkv"),
    "learned_pair": tuple(AttentionStream(s, mix="learned_pair") for s in "qkv"),
    "head": tuple(AttentionStream(s, mix="head", own=0.7, carried=0.4) for s in "qkv"),
    "matrix": tuple(AttentionStream(s, mix="matrix", carried=0.4) for s in "qkv"),
    "first": AttentionStream("v", source="first", carry="raw"),
    "all": AttentionStream("k", source="all", mix="scalar"),
}


def tokens(batch: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return ICLWorld(ICLTask(), generator).batch(batch, generator).inputs


def model_of(streams: Any = "", spec: Any = "reference", seed: int = 0) -> ICLClassifier:
    """A classifier whose mixing weights, too, are no round numbers."""
    generator = torch.Generator().manual_seed(seed)
    model = ICLClassifier(classifier_config(streams, spec), generator=generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".mixes." in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def in_double(model: ICLClassifier) -> ICLClassifier:
    return model.to(torch.float64, print_details=False)


def arrays(seed: int = 0, **sizes: int) -> list[np.ndarray]:
    """13 arrays of the authors' file, in numbers that float32 has, too."""
    params = random_params(np.random.default_rng(seed), **sizes)
    return [param.astype(np.float32) for param in params]


def save_arrays(folder: Path, params: list[np.ndarray]) -> Path:
    path = folder / "trained.npz"
    np.savez(path, *params)
    return path


# Against the references


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_arrays(tmp_path_factory.mktemp("authors"), arrays())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-11)])
@pytest.mark.parametrize("streams", STREAMS)
def test_logits_and_patterns_are_those_of_the_numpy_loops(
    saved: Path, streams: str, dtype: torch.dtype, tolerance: float
) -> None:
    model = load_authors_classifier(saved, streams).to(dtype, print_details=False)
    x = tokens()
    logits, cache = model.run_with_cache(x.to(dtype))
    expected = forward(arrays(), x.numpy(), streams)
    assert abs(logits.detach().numpy() - expected["logits"]).max() < tolerance
    for layer, name in enumerate(("A1", "A2")):
        pattern = cache["pattern", layer][:, 0].numpy()
        assert abs(pattern - expected[name]).max() < tolerance


@pytest.mark.parametrize("streams", STREAMS)
def test_every_activation_is_that_of_the_numpy_loops(saved: Path, streams: str) -> None:
    model = in_double(load_authors_classifier(saved, streams))
    x = tokens()
    _, cache = model.run_with_cache(x.double())
    expected = forward(arrays(), x.numpy(), streams)
    ours = {f"{s}{layer + 1}_total": cache[s, layer][:, :, 0] for s in "qkv" for layer in (1,)}
    ours |= {f"{s}2": cache[f"{s}_local", 1][:, :, 0] for s in streams}
    ours |= {f"{s}1": cache[f"{s}_link", 1][:, :, 0] for s in streams}
    ours |= {"x1": cache["resid_post", 0], "x2": cache["resid_post", 1]}
    ours |= {f"m{i + 1}": cache[f"readout.layers.{i}.hook_post"] for i in range(3)}
    for name, activation in ours.items():
        assert abs(activation.numpy() - expected[name]).max() < 1e-10, name


@pytest.mark.parametrize("streams", STREAMS)
def test_logits_are_those_of_plain_torch(saved: Path, streams: str) -> None:
    x = tokens()
    params = [torch.from_numpy(param) for param in arrays()]
    expected = plain_icl.logits(params, x, streams)
    torch.testing.assert_close(
        load_authors_classifier(saved, streams)(x), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("streams", ["", "q", "k", "qk"])
def test_the_papers_text_is_the_numpy_loops_with_scaled_queries_and_wider_values(
    streams: str,
) -> None:
    model = in_double(model_of(streams, "paper"))
    x = tokens()
    logits, cache = model.run_with_cache(x.double())
    expected = forward(reference_params_of(model), x.numpy(), streams)
    assert abs(logits.detach().numpy() - expected["logits"]).max() < 1e-11
    assert abs(cache["pattern", 1][:, 0].numpy() - expected["A2"]).max() < 1e-11


def test_the_papers_value_stream_flows_before_the_output_projection() -> None:
    model = in_double(model_of("v", "paper"))
    x = tokens()
    first, second = (block.attn for block in model.blocks)
    layers = forward(reference_params_of(model), x.numpy())
    x1, pattern = layers["x1"], layers["A2"][:, -1:]  # of the last token
    values = x1 @ plain(second.W_V[0]) + x.double().numpy() @ plain(first.W_V[0])
    hidden = x1[:, -1] + (pattern @ values)[:, 0] @ plain(second.W_O[0])
    for layer in model.readout.layers:
        hidden = np.maximum(hidden @ plain(layer.W) + plain(layer.b), 0)
    logits = hidden @ plain(model.readout.W_U)
    assert abs(plain(model(x.double())) - logits).max() < 1e-11


def plain(x: Tensor) -> np.ndarray:
    return x.detach().numpy()


def reference_params_of(model: ICLClassifier) -> list[np.ndarray]:
    """13 arrays with the model's scaling in the queries and its output projection in the values."""
    params = []
    for block in model.blocks:
        attn = block.attn
        query, key = attn.W_Q[0] / attn.attn_scale, attn.W_K[0]
        params += [plain(w).T for w in (query, key, attn.W_V[0] @ attn.W_O[0])]
    for layer in model.readout.layers:
        params += [plain(layer.W).T, plain(layer.b)]
    return [*params, plain(model.readout.W_U).T]


# The two specifications


def test_the_reference_specification_has_the_codes_dimensions() -> None:
    model = model_of("")
    attn = model.blocks[0].attn
    assert (model.cfg.d_head, model.cfg.d_readout, model.cfg.n_layers) == (150, 150, 2)
    assert attn.attn_scale == 1
    assert attn.W_O[0].equal(torch.eye(150))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == 6 * 150**2 + 3 * (150**2 + 1) + 150 * 32


def test_the_papers_specification_has_the_texts_dimensions() -> None:
    model = model_of("", "paper")
    assert (model.cfg.d_head, model.cfg.d_readout) == (128, 128)
    assert model.blocks[1].attn.attn_scale == pytest.approx(128**0.5)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == 2 * 4 * 150 * 128 + (150 + 128 + 128) * 128 + 3 + 128 * 32


@pytest.mark.parametrize("spec", ["reference", "paper"])
def test_attention_has_no_biases(spec: Any) -> None:
    for block in model_of("qkv", spec).blocks:
        for name in ("b_Q", "b_K", "b_V", "b_O"):
            bias = getattr(block.attn, name)
            assert not bias.requires_grad
            assert bias.eq(0).all()


def test_the_tasks_sizes_are_the_models() -> None:
    task = ICLTask(n_classes=40, n_labels=5, n_fresh=10, n_pairs=4, content=11, n_max=6)
    model = ICLClassifier(classifier_config("v", "reference", task))
    assert model(torch.zeros(3, task.n_tokens, task.d_input)).shape == (3, 5)
    assert model.cfg.d_model == model.cfg.d_head == 13 + 11


@pytest.mark.usefixtures("unchecked_annotations")
def test_an_unknown_specification_is_refused() -> None:
    with pytest.raises(ValueError, match="spec must be 'reference' or 'paper'; got 'code'"):
        classifier_config("v", "code")  # type: ignore[arg-type]


def test_a_model_configured_in_double_precision_is_double_throughout() -> None:
    cfg = classifier_config("v")
    cfg.dtype = torch.float64
    model = ICLClassifier(cfg)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert model(tokens().double()).dtype == torch.float64


def test_a_model_made_double_takes_double_tokens() -> None:
    assert model_of("v").double()(tokens().double()).dtype == torch.float64


# Initial weights


@pytest.mark.parametrize("spec", ["reference", "paper"])
def test_initial_weights_are_normal_with_the_documented_variances(spec: Any) -> None:
    model = model_of("", spec)
    width = model.cfg.d_readout
    projections = ["W_Q", "W_K", "W_V"] + (["W_O"] if spec == "paper" else [])
    groups = [(getattr(b.attn, name), 1 / 85) for b in model.blocks for name in projections]
    groups += [(layer.W, 2 / width) for layer in model.readout.layers]
    groups += [(model.readout.W_U, 1 / width)]
    for weights, variance in groups:
        z = plain(weights).ravel() / variance**0.5
        assert stats.kstest(z, "norm").pvalue > 1e-4


def test_readout_biases_are_normal_with_variance_one_over_width() -> None:
    model, generator, biases = model_of(""), torch.Generator().manual_seed(3), []
    for _ in range(100):
        model.init_weights(generator)
        biases += [layer.b.item() for layer in model.readout.layers]
    assert stats.kstest(np.array(biases) * 150**0.5, "norm").pvalue > 1e-4


def test_no_two_weight_matrices_are_drawn_alike() -> None:
    model = model_of("", "paper")
    corners = [p.flatten()[0].item() for p in model.parameters() if p.requires_grad]
    assert len(set(corners)) == len(corners)


def test_the_generator_decides_the_weights() -> None:
    one, same, other = (weights_of(model_of("v", seed=seed)) for seed in (4, 4, 5))
    assert all(one[name].equal(same[name]) for name in one)
    assert not one["readout.W_U"].equal(other["readout.W_U"])


def test_building_a_model_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    model_of("v")
    ICLClassifier(classifier_config("v"))
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("spec", ["reference", "paper"])
def test_variants_of_one_seed_share_their_initial_weights(spec: Any) -> None:
    models = {
        name: weights_of(initial_model(ICLRun(name, streams, seed=7, spec=spec)))
        for name, streams in ICL_VARIANTS.items()
    }
    classic = models["classic"]
    for weights in models.values():
        assert classic.keys() <= weights.keys()
        assert all(weights[name].equal(classic[name]) for name in classic)


def weights_of(model: ICLClassifier) -> dict[str, Tensor]:
    return dict(model.named_parameters())


def test_a_variant_is_known_by_name() -> None:
    assert [stream.of for stream in icl_variant("queries-values")] == ["q", "v"]
    with pytest.raises(ValueError, match="no variant 'valeus'; there are classic, queries"):
        icl_variant("valeus")


# The cheap answer


@pytest.mark.parametrize("spec", ["reference", "paper"])
@pytest.mark.parametrize("streams", MIXES.values(), ids=MIXES.keys())
def test_answer_gives_the_models_logits(streams: Any, spec: Any) -> None:
    model, x = model_of(streams, spec), tokens()
    assert can_answer_fast(model)
    torch.testing.assert_close(answer(model, x), model(x), rtol=1e-5, atol=1e-4)
    in_double(model)
    x = x.double()
    torch.testing.assert_close(answer(model, x), model(x), rtol=1e-10, atol=1e-11)


def gradients(
    logits_of: Callable[[ICLClassifier, Tensor], Tensor], model: ICLClassifier, x: Tensor
) -> dict[str, Tensor]:
    """Of a loss: every trained parameter's, by name, and the tokens' as "x"."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    F.cross_entropy(logits_of(model, x), torch.arange(len(x))).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return {**{name: grad.clone() for name, grad in found.items()}, "x": x.grad}


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))


@pytest.mark.parametrize("spec", ["reference", "paper"])
@pytest.mark.parametrize("streams", MIXES.values(), ids=MIXES.keys())
def test_answer_gives_the_models_gradients(streams: Any, spec: Any) -> None:
    model, x = in_double(model_of(streams, spec)), tokens().double()
    expected = gradients(ICLClassifier.__call__, model, x)
    found = gradients(answer, model, x)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys() == trained | {"x"}
    for name in trained:
        assert relative_error(found[name], expected[name]) < 1e-9, name


@pytest.mark.parametrize("streams", MIXES.values(), ids=MIXES.keys())
def test_answer_gives_the_models_gradients_of_the_tokens(streams: Any) -> None:
    model, x = in_double(model_of(streams)), tokens().double()
    expected = gradients(ICLClassifier.__call__, model, x)["x"]
    assert relative_error(gradients(answer, model, x)["x"], expected) < 1e-9


@pytest.mark.parametrize("length", [1, 2, 17])
def test_answer_takes_sequences_of_any_length(length: int) -> None:
    model, x = in_double(model_of("qkv")), tokens().double()[:, :length]
    torch.testing.assert_close(answer(model, x), model(x), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    "cfg",
    [
        classifier_config(AttentionStream("v", mix="gate")),
        classifier_config((AttentionStream("q"), AttentionStream("k", mix="gate"))),
    ],
)
def test_answer_does_not_know_gates(cfg: ClassifierConfig) -> None:
    assert not can_answer_fast(ICLClassifier(cfg))


SMALL: dict[str, Any] = {
    "d_model": 24,
    "n_ctx": 17,
    "d_vocab": 32,
    "attn_only": True,
    "normalization_type": None,
    "d_readout": 24,
    "output_projection": True,
    "device": "cpu",
}


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_layers": 3, "n_heads": 1, "d_head": 24},
        {"n_layers": 1, "n_heads": 1, "d_head": 24},
        {"n_layers": 2, "n_heads": 2, "d_head": 12},
    ],
    ids=str,
)
def test_answer_knows_two_layers_of_one_head_only(sizes: dict[str, int]) -> None:
    cfg = ClassifierConfig(**SMALL, **sizes)
    assert not can_answer_fast(ICLClassifier(cfg))


@pytest.mark.parametrize(
    "other",
    [
        {"attn_only": False, "d_mlp": 32, "act_fn": "relu"},
        {"normalization_type": "LN"},
        {"attention_dir": "bidirectional"},
        {"attn_scores_soft_cap": 2.0},
        {"use_local_attn": True, "window_size": 3, "attn_types": ["local", "local"]},
    ],
    ids=lambda other: next(iter(other)),
)
def test_answer_does_not_claim_a_model_that_it_would_answer_otherwise(
    other: dict[str, Any],
) -> None:
    cfg = ClassifierConfig(**{**SMALL, "n_layers": 2, "n_heads": 1, "d_head": 24, **other})
    assert not can_answer_fast(ICLClassifier(cfg))


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


# What comes out, and what is refused


def test_what_is_returned_is_what_was_asked_for() -> None:
    model, x, targets = model_of("v"), tokens(), torch.arange(6)
    logits = model(x)
    loss = F.cross_entropy(logits, targets)
    assert model(x, "logits").equal(logits)
    assert model(x, return_type=None) is None
    assert model(x, "loss", targets=targets).equal(loss)
    both = model(x, "both", targets=targets)
    assert both[0].equal(logits)
    assert both[1].equal(loss)


def with_value(value: float) -> Tensor:
    x = tokens()
    x[3, 4, 5] = value
    return x


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4, 17, 149), "input must have shape [batch, pos, 150]; got [4, 17, 149]"),
        (torch.zeros(17, 150), "input must have shape [batch, pos, 150]; got [17, 150]"),
        (torch.zeros(1, 4, 17, 150), "must have shape [batch, pos, 150]; got [1, 4, 17, 150]"),
        (torch.zeros(0, 17, 150), "input must have shape [batch, pos, 150]; got [0, 17, 150]"),
        (torch.zeros(4, 0, 150), "input must have shape [batch, pos, 150]; got [4, 0, 150]"),
        (torch.zeros(4, 17, 150).double(), "input must be torch.float32; got torch.float64"),
        (torch.zeros(4, 17, 150).long(), "input must be torch.float32; got torch.int64"),
        (with_value(torch.nan), "input holds NaN or infinity; every token must be finite"),
        (with_value(-torch.inf), "input holds NaN or infinity; every token must be finite"),
    ],
)
def test_tokens_that_cannot_be_are_refused(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        model_of("v")(x)


@pytest.mark.parametrize("return_type", ["loss", "both"])
def test_a_loss_needs_targets(return_type: str) -> None:
    with pytest.raises(ValueError, match=f"return_type='{return_type}' needs `targets`"):
        model_of("v")(tokens(), return_type)


def test_an_unknown_return_type_is_refused() -> None:
    with pytest.raises(ValueError, match=r"return_type must be None, .*; got 'probabilities'"):
        model_of("v")(tokens(), "probabilities")


@pytest.mark.parametrize("name", ["generate", "generate_stream"])
def test_a_classifier_generates_nothing(name: str) -> None:
    with pytest.raises(TypeError, match="ICLClassifier is a classifier"):
        getattr(model_of("v"), name)(tokens())


# The authors' files


def test_a_file_with_another_number_of_labels_loads(tmp_path: Path) -> None:
    params = arrays(labels=16)
    x = tokens()
    logits = in_double(load_authors_classifier(save_arrays(tmp_path, params), "v"))(x.double())
    assert abs(plain(logits) - forward(params, x.numpy(), "v")["logits"]).max() < 1e-11


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_bias_may_be_a_number_however_it_is_wrapped(tmp_path: Path, shape: Any) -> None:
    params = [x.reshape(shape) if x.size == 1 else x for x in arrays()]
    loaded = load_authors_classifier(save_arrays(tmp_path, params))
    biases = [layer.b.item() for layer in loaded.readout.layers]
    assert biases == [params[i].item() for i in (7, 9, 11)]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.npz is missing; expected the authors'"):
        load_authors_classifier(tmp_path / "nothing.npz")


def assert_refused(path: Path, message: str = "expected an .npz file with arr_0 to arr_12") -> None:
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: {message}"):
        load_authors_classifier(path)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "trained.npz", tmp_path / "trace"
    path.write_bytes(pickle.dumps(Payload(trace)))
    assert_refused(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes())  # it would have run
    assert trace.exists()


@pytest.mark.parametrize("place", [0, 7, 12, 13])
def test_a_pickle_inside_an_array_is_refused_and_not_run(tmp_path: Path, place: int) -> None:
    trace = tmp_path / "trace"
    params = arrays()
    params[place : place + 1] = [np.array([Payload(trace)], dtype=object)]
    assert_refused(save_arrays(tmp_path, params))
    assert not trace.exists()


@pytest.mark.parametrize("kept", [0, 1, 12])
def test_a_file_of_fewer_arrays_is_refused(tmp_path: Path, kept: int) -> None:
    assert_refused(save_arrays(tmp_path, arrays()[:kept]))


def test_a_file_of_more_arrays_is_refused_with_their_number(tmp_path: Path) -> None:
    path = save_arrays(tmp_path, [*arrays(), np.zeros(1)])
    assert_refused(path, r"expected an \.npz file with arr_0 to arr_12; it holds 14 arrays")


def test_named_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "trained.npz", **{f"w{i}": x for i, x in enumerate(arrays())})
    assert_refused(tmp_path / "trained.npz")


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "trained.npy", arrays()[0])
    assert_refused(tmp_path / "trained.npy")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not an archive", b"\x93NUMPY\x01\x00"])
def test_bytes_that_are_no_archive_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "trained.npz").write_bytes(content)
    assert_refused(tmp_path / "trained.npz")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_damaged_archive_is_refused(tmp_path: Path, save: Any, share: float) -> None:
    path = tmp_path / "trained.npz"
    save(path, *arrays())
    content = bytearray(path.read_bytes())
    start = int(share * len(content))
    content[start : start + 50] = bytes(50)
    path.write_bytes(content)
    assert_refused(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_half_an_archive_is_refused(tmp_path: Path, share: float) -> None:
    path = save_arrays(tmp_path, arrays())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert_refused(path)


@pytest.mark.parametrize(
    ("place", "array", "message"),
    [
        (0, np.zeros((150, 149)), r"q1 \(arr_0\) must hold floats of shape \[150, 150\]; got "
         r"float64 \[150, 149\]"),
        (5, np.zeros((128, 150)), r"v2 \(arr_5\) must hold floats of shape \[150, 150\]"),
        (6, np.zeros(150), r"w1 \(arr_6\) must hold floats of shape \[150, 150\]; got "
         r"float64 \[150\]"),
        (7, np.zeros(150), r"b1 \(arr_7\) must hold floats of shape \[1\]; got float64 \[150\]"),
        (10, np.zeros((150, 150), int), r"w3 \(arr_10\) must hold floats .* got int64"),
        (2, np.full((150, 150), "x"), r"v1 \(arr_2\) must hold floats .* got <U1"),
        (12, np.zeros(32), r"readout \(arr_12\) must have shape \[labels, d > 65\]; got \[32\]"),
        (12, np.zeros((32, 65)), r"readout \(arr_12\) must have .* got \[32, 65\]"),
        (12, np.zeros((0, 150)), r"readout \(arr_12\) must have .* got \[0, 150\]"),
        (12, np.zeros((32, 128)), r"q1 \(arr_0\) must hold floats of shape \[128, 128\]"),
    ],
)  # fmt: skip
def test_an_array_of_another_shape_or_kind_is_named(
    tmp_path: Path, place: int, array: np.ndarray, message: str
) -> None:
    params = arrays()
    params[place] = array
    assert_refused(save_arrays(tmp_path, params), message)
