"""Every way to change a model's precision leaves it whole: weights, buffers, configuration."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from resval_lens.lens.generation import stream_tokens
from resval_lens.models.classifier import ICLClassifier
from resval_lens.streams import AttentionStream
from resval_lens.transformer import ResValTransformer
from tests.classifiers import model_of as classifier_of
from tests.classifiers import tokens as classifier_tokens
from tests.helpers import tiny_model, tiny_tokens

WAYS: dict[str, tuple[Callable[[Any], Any], torch.dtype]] = {
    "to(dtype)": (lambda m: m.to(torch.bfloat16), torch.bfloat16),
    "to(dtype=)": (lambda m: m.to(dtype=torch.float16), torch.float16),
    "to(device, dtype)": (lambda m: m.to("cpu", torch.bfloat16), torch.bfloat16),
    "to(torch.device, dtype=)": (
        lambda m: m.to(torch.device("cpu"), dtype=torch.float64),
        torch.float64,
    ),
    "to(a tensor)": (lambda m: m.to(torch.zeros(1, dtype=torch.float16)), torch.float16),
    "to(dtype, quietly)": (lambda m: m.to(torch.float16, False), torch.float16),
    "half": (lambda m: m.half(), torch.float16),
    "bfloat16": (lambda m: m.bfloat16(), torch.bfloat16),
    "double": (lambda m: m.double(), torch.float64),
    "type": (lambda m: m.type(torch.float64), torch.float64),
    "there and back": (lambda m: m.half().float(), torch.float32),
}
each_way = pytest.mark.parametrize(("cast", "dtype"), WAYS.values(), ids=WAYS)
MODELS: dict[str, dict[str, Any]] = {
    "standard": {"streams": "qkv"},
    "rotary, grouped": {"streams": "v", "positional_embedding_type": "rotary",
                        "n_key_value_heads": 2},
    "rms, qk-norm": {"streams": "v", "normalization_type": "RMS", "use_qk_norm": True},
    "alibi": {"streams": "v", "positional_embedding_type": "alibi"},
    "gate, tied": {"streams": AttentionStream("v", mix="gate"), "tied_embedding": True},
    "unfused": {"streams": "v", "use_fused": False},
}  # fmt: skip


@torch.no_grad()
def greedy(model: ResValTransformer, cached: bool) -> Tensor:
    return model.generate(
        tiny_tokens(batch=1), max_new_tokens=4, do_sample=False, stop_at_eos=False,
        use_past_kv_cache=cached, verbose=False,
    )  # fmt: skip


@torch.no_grad()
@each_way
@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
def test_a_cast_model_is_the_model_within_rounding(
    settings: dict[str, Any], cast: Any, dtype: torch.dtype
) -> None:
    model = tiny_model(**settings).eval()
    before, loss = model(tiny_tokens()), model(tiny_tokens(), return_type="loss")
    own = model.cfg
    changed = cast(copy.deepcopy(model))
    assert changed.cfg.dtype == dtype
    assert all(block.cfg.dtype == dtype for block in changed.blocks)
    assert {x.dtype for x in changed.parameters()} == {dtype}
    assert own.dtype == torch.float32
    tolerance = {torch.bfloat16: 0.15, torch.float16: 0.03}.get(dtype, 5e-3)
    logits, cache = changed.run_with_cache(tiny_tokens())
    for found in (logits, changed(tiny_tokens())):
        assert found.dtype == dtype
        assert (found.float() - before).abs().max() < tolerance * before.abs().max()
    assert abs(changed(tiny_tokens(), return_type="loss").float() - loss) < tolerance * loss
    assert cache["v_link", 1].dtype == cache["v", 1].dtype == dtype
    changed(tiny_tokens(), targets=tiny_tokens()).item()
    assert greedy(changed, True).shape == greedy(changed, False).shape == (1, 11)
    assert len(list(stream_tokens(changed, tiny_tokens(batch=1), 3))) == 3


@torch.no_grad()
@each_way
def test_a_cast_is_the_cast_of_every_weight(cast: Any, dtype: torch.dtype) -> None:
    model = tiny_model("v")
    changed = cast(copy.deepcopy(model)).state_dict()
    for name, x in model.state_dict().items():
        expected = x.half().float() if cast is WAYS["there and back"][0] else x
        assert changed[name].equal(expected.to(dtype) if x.is_floating_point() else x), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_gradients_flow_in_every_precision(dtype: torch.dtype) -> None:
    model = tiny_model("v").to("cpu", dtype, print_details=False)
    model(tiny_tokens(), return_type="loss").backward()
    assert all(x.grad is not None and x.grad.dtype == dtype for x in model.parameters())


def test_a_classifier_is_cast_too() -> None:
    model = classifier_of("v").double()
    assert isinstance(model, ICLClassifier)
    assert model.cfg.dtype == torch.float64
    x = classifier_tokens()
    expected = classifier_of("v")(x)
    torch.testing.assert_close(model(x.double()).float(), expected, atol=1e-4, rtol=1e-4)


def test_a_move_says_where_it_went(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model("v")
    assert model.to("cpu") is model
    assert model.to(torch.device("meta"), print_details=False).cfg.device == "meta"
    assert "Moving model to device:  cpu" in capsys.readouterr().out
