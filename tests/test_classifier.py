"""The two-layer classifier against NumPy loops and plain torch; its sizes, weights and refusals."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from resval_lens.models.authors import load_authors_classifier
from resval_lens.models.classifier import ICLClassifier, classifier_config
from resval_lens.models.presets import ICL_VARIANTS, icl_variant
from resval_lens.tasks.icl import ICLTask
from resval_lens.training.icl_run import ICLRun, initial_model
from tests.benchmarks import plain_icl
from tests.classifiers import (
    arrays,
    in_double,
    model_of,
    plain,
    save_arrays,
    tokens,
    weights_of,
)
from tests.reference.classifier_numpy import forward

STREAMS = ["", "q", "k", "v", "qkv"]


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
    ours = {f"{s}2_total": cache[s, 1][:, :, 0] for s in "qkv"}
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
    for _ in range(300):
        model.init_weights(generator)
        biases += [layer.b.item() for layer in model.readout.layers]
    z = np.array(biases) * 150**0.5
    assert stats.kstest(z, "norm").pvalue > 1e-4
    assert abs(z.std() - 1) < 0.12  # five standard errors of 900 numbers


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


def test_a_variant_is_known_by_name() -> None:
    assert [stream.of for stream in icl_variant("queries-values")] == ["q", "v"]
    with pytest.raises(ValueError, match="no variant 'valeus'; there are classic, queries"):
        icl_variant("valeus")


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


@pytest.mark.usefixtures("unchecked_annotations")
def test_what_a_classifier_cannot_do_is_said() -> None:
    model = ICLClassifier(classifier_config("v"))
    with pytest.raises(ValueError, match="no weights to process"):
        model.process_weights_()
    with pytest.raises(ValueError, match="with_streams runs the weights of one"):
        ICLClassifier.from_hooked(model, "q")
    x = torch.zeros(2, 17, 150)
    for targets in (torch.zeros(3, dtype=torch.long), torch.zeros(2)):
        with pytest.raises(ValueError, match=r"targets must be whole numbers of shape \[2\]"):
            model(x, return_type="loss", targets=targets)


def test_grouped_heads_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"n_key_value_heads=1: .* expected None"):
        replace(classifier_config(), n_key_value_heads=1)
