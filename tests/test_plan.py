"""What training costs: formulas against models that are counted, memory against memory."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from resval_lens import AttentionStream, ResValTransformer
from resval_lens.models.language_models import PRESETS, language_model_config, resized
from resval_lens.training.plan import (
    flops_per_token,
    kept_for_backward,
    memory,
    on_meta,
    plan,
    size,
)

SMALL: dict[str, dict[str, Any]] = {
    "stories-small": {"d_vocab": 90},
    "tinystories-8m": {"n_layers": 2, "d_vocab": 90, "dropout": 0.0},
    "llama-1b": {"n_layers": 2, "d_model": 64, "n_heads": 4, "d_head": 16, "n_key_value_heads": 2,
                 "d_mlp": 256, "n_ctx": 64, "d_vocab": 90, "rotary_dim": 16},
}  # fmt: skip
STREAMS = ["", "v", (AttentionStream("v", mix="matrix", source="all"),)]


@pytest.mark.parametrize(("name", "spec"), PRESETS)
@pytest.mark.parametrize("streams", STREAMS, ids=["classic", "v", "matrix"])
def test_parameters_are_those_of_the_model(name: str, spec: str, streams: Any) -> None:
    cfg = language_model_config(name, streams, spec)
    model = on_meta(cfg)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert size(cfg).total == trained


def test_the_small_language_model_has_one_and_a_half_billion_parameters() -> None:
    """16 layers of 60.8 million, an embedding and an unembedding of 268 million each."""
    found = size(language_model_config("llama-1b", "v"))
    assert found.attention == 16 * (2 * 2048 * 2048 + 2 * 2048 * 512)
    assert found.mlp == 16 * 3 * 2048 * 8192
    assert found.total == 1_510_017_024


@pytest.mark.parametrize("name", SMALL)
def test_flops_are_those_that_torch_counts(name: str) -> None:
    """Of one sequence; torch counts the whole square of scores."""
    cfg = language_model_config(name, "v", **SMALL[name], use_fused=False)
    model, tokens = ResValTransformer(cfg), torch.zeros((1, cfg.n_ctx), dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    counted = counter.get_flop_counts()["Global"]
    scores = sum(n for op, n in counted.items() if "bmm" in str(op))
    matrices = sum(counted.values()) - scores
    formula = flops_per_token(cfg)
    assert matrices / cfg.n_ctx == pytest.approx(formula.matrices, rel=1e-9)
    causal_share = (cfg.n_ctx + 1) / (2 * cfg.n_ctx)
    assert scores * causal_share / cfg.n_ctx == pytest.approx(formula.scores, rel=1e-9)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("checkpoint_blocks", [False, True])
def test_activations_are_what_a_real_step_keeps(name: str, checkpoint_blocks: bool) -> None:
    cfg = language_model_config(name, "v", **SMALL[name])
    model = ResValTransformer(cfg)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    tokens = torch.zeros((3, cfg.n_ctx), dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        logits = model(tokens, checkpoint_blocks=checkpoint_blocks)
        F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    total = sum(x.untyped_storage().nbytes() for x in kept.values())
    assert kept_for_backward(cfg, 3, checkpoint_blocks) == total


@pytest.mark.parametrize(
    ("name", "d_model"),
    [
        ("stories-small", 64),
        ("stories-small", 256),
        ("tinystories-8m", 512),
        ("llama-1b", 1024),
    ],
)
def test_another_width_keeps_the_width_of_heads_and_the_proportions(
    name: str, d_model: int
) -> None:
    before = language_model_config(name)
    after = language_model_config(name, **resized(PRESETS[name, "reference"].model, d_model))
    assert (after.d_model, after.d_head) == (d_model, before.d_head)
    assert after.n_heads * after.d_head == d_model
    assert after.d_mlp * before.d_model == before.d_mlp * d_model
    if before.n_key_value_heads is not None:
        assert after.n_key_value_heads is not None
        groups = before.n_heads // before.n_key_value_heads
        assert after.n_heads == groups * after.n_key_value_heads
    # The variance of a sum over d_model inputs of one size stays: d_model · σ².
    assert after.d_model * after.initializer_range**2 == pytest.approx(
        before.d_model * before.initializer_range**2
    )
    assert (
        resized(PRESETS[name, "reference"].model, before.d_model).items()
        <= {**PRESETS[name, "reference"].model}.items()
    )


@pytest.mark.parametrize(("name", "d_model", "unit"), [
    ("stories-small", 48, 32), ("stories-small", 0, 32), ("stories-small", -32, 32),
    ("llama-1b", 64, 256),
])  # fmt: skip
def test_a_width_that_heads_do_not_fill_is_named(name: str, d_model: int, unit: int) -> None:
    with pytest.raises(ValueError, match=f"d_model must be a multiple of {unit}.*; got {d_model}"):
        resized(PRESETS[name, "reference"].model, d_model)


def test_spreading_divides_what_a_model_holds() -> None:
    cfg = language_model_config("llama-1b", "v")
    parts = memory(cfg, 8, 1, True)
    copied, spread = parts["ddp"], parts["fsdp"]
    assert spread.weights == copied.weights / 8
    assert spread.gradients == copied.gradients / 8
    assert spread.AdamW == copied.AdamW / 8
    assert copied.total > 16 * size(cfg).total
    assert memory(cfg, 8, 2, True)["ddp"].activations == pytest.approx(
        2 * copied.activations, rel=0.03
    )


def test_days_to_the_papers_budget() -> None:
    cfg = language_model_config("llama-1b", "v")
    found = plan(cfg, steps=40_000, batch=512, processes=8, teraflops=1000, utilisation=0.5)
    assert found.tokens == 40_000 * 512 * 4096  # 84 billion
    seconds = found.tokens * found.flops_per_token.total / (8 * 1e15 * 0.5)
    assert found.days == pytest.approx(seconds / 86_400)


@pytest.mark.parametrize(
    ("name", "value"),
    [("processes", 0), ("micro_batch", 0), ("teraflops", 0.0), ("utilisation", 1.5)],
)
def test_impossible_numbers_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} must .* got {value}"):
        plan(language_model_config("stories-small"), steps=1, batch=1, **{name: value})
