"""Gated MLPs: TransformerLens's numbers without its copies of the weights."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from resval_lens.lens.mlp import FusedGatedMLP
from tests.helpers import gradients, randomise, stock_model, tiny_config, tiny_model, tiny_tokens

GATED: dict[str, Any] = {"gated_mlp": True, "act_fn": "silu"}


class Copied(TorchDispatchMode):
    """Shapes of what is copied."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[override]
        if function is torch.ops.aten.clone.default:
            self.shapes.append(tuple(args[0].shape))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("d_type", [torch.float32, torch.float64])
def test_the_numbers_are_the_stock_models(d_type: torch.dtype) -> None:
    changes = {**GATED, "dtype": d_type}
    ours, stock = randomise(tiny_model(**changes)), randomise(stock_model(**changes))
    assert isinstance(ours.blocks[0].mlp, FusedGatedMLP)
    found: dict[str, dict[str, Tensor]] = {}
    for name, model in (("ours", ours), ("stock", stock)):
        loss = model(tiny_tokens(), return_type="loss")
        loss.backward()
        _, cache = model.run_with_cache(tiny_tokens())
        mlp = {k: v.detach() for k, v in cache.items() if ".mlp." in k}
        found[name] = {"loss": loss.detach(), **gradients(model), **mlp}
    assert {f"blocks.0.mlp.hook_{x}" for x in ("pre", "pre_linear", "post")} <= found["ours"].keys()
    torch.testing.assert_close(found["ours"], found["stock"])


def test_without_fusing_the_last_bit_is_the_stock_models() -> None:
    ours = randomise(tiny_model(use_fused=False, **GATED))(tiny_tokens())
    assert torch.equal(ours, randomise(stock_model(**GATED))(tiny_tokens()))


def test_no_matrix_is_copied() -> None:
    cfg = tiny_config(**GATED)
    assert cfg.d_mlp is not None
    matrices = {(cfg.d_model, cfg.d_mlp), (cfg.d_mlp, cfg.d_model)}
    for model, copies in ((tiny_model(**GATED), 0), (stock_model(**GATED), 3 * cfg.n_layers)):
        with Copied() as copied:
            model(tiny_tokens(), return_type="loss").backward()
        assert len([shape for shape in copied.shapes if shape in matrices]) == copies
