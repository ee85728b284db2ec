"""Normalisation: fused where nobody looks, the same numbers where somebody does."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers import gradients, stock_model, tiny_model, tiny_tokens

NORMS: dict[str, dict[str, Any]] = {
    "layer": {},
    "rms": {"normalization_type": "RMS"},
    "final rms": {"final_rms": True},
}


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    for name in ("layer_norm", "rms_norm"):
        kernel = getattr(F, name)

        def counted(*args: Any, kernel: Any = kernel) -> Tensor:
            calls.append(1)
            return kernel(*args)

        monkeypatch.setattr(F, name, counted)
    return calls


@pytest.mark.parametrize("changes", NORMS.values(), ids=NORMS)
def test_both_ways_have_the_same_loss_and_gradients(
    changes: dict[str, Any], fused_calls: list[int]
) -> None:
    """In double precision, where rounding hides nothing."""
    changes = {**changes, "dtype": torch.float64}
    found = {}
    for use_fused in (True, False):
        model = tiny_model("v", use_fused=use_fused, **changes)
        loss = model(tiny_tokens(), return_type="loss")
        loss.backward()
        found[use_fused] = {"loss": loss.detach(), **gradients(model)}
        assert len(fused_calls) == 13  # for q, k, v and the MLP of three layers, and the last
    torch.testing.assert_close(found[True], found[False], atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("changes", NORMS.values(), ids=NORMS)
def test_without_fusing_the_last_bit_is_the_stock_models(changes: dict[str, Any]) -> None:
    ours = tiny_model(use_fused=False, **changes)(tiny_tokens())
    assert torch.equal(ours, stock_model(**changes)(tiny_tokens()))


@pytest.mark.parametrize("name", ["hook_scale", "hook_normalized"])
def test_a_watched_norm_alone_goes_the_long_way(name: str, fused_calls: list[int]) -> None:
    seen: list[Tensor] = []
    hooks = [(f"blocks.1.ln2.{name}", lambda x, hook: seen.append(x))]
    tiny_model("v").run_with_hooks(tiny_tokens(), fwd_hooks=hooks)
    assert len(fused_calls) == 12
    assert len(seen) == 1


@torch.no_grad()
@pytest.mark.parametrize("name", ["hook_scale", "hook_normalized"])
def test_an_edit_inside_a_norm_reaches_the_logits(name: str) -> None:
    model = tiny_model("v")
    hooks = [(f"blocks.1.ln2.{name}", lambda x, hook: 2 * x)]
    edited = model.run_with_hooks(tiny_tokens(), fwd_hooks=hooks)
    assert (edited - model(tiny_tokens())).abs().max() > 1e-4
