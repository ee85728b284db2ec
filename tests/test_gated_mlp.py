"""A gated MLP is TransformerLens's, without copies of its weights."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import gradients, tiny_model, tiny_tokens

GATED: dict[str, Any] = {"gated_mlp": True, "act_fn": "silu", "dtype": torch.float64}


class Copies(TorchDispatchMode):
    """Counts the copies of tensors of some shapes."""

    def __init__(self, *shapes: torch.Size) -> None:
        super().__init__()
        self.shapes, self.count = set(shapes), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("clone", "copy_", "_to_copy") and args[0].shape in self.shapes:
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("fused", [True, False])
def test_a_training_step_copies_no_matrix_of_a_gated_mlp(fused: bool) -> None:
    model = tiny_model(**GATED, use_fused=fused)
    w_in = model.blocks[0].mlp.W_in
    with Copies(w_in.shape, w_in.T.shape) as copies:
        model(tiny_tokens(), return_type="loss").backward()
    assert (copies.count == 0) == fused  # each matrix at least once in TransformerLens's way


def test_logits_and_gradients_are_those_of_the_way_with_copies() -> None:
    ours, theirs = tiny_model(**GATED), tiny_model(**GATED, use_fused=False)
    for model in (ours, theirs):
        model(tiny_tokens(), return_type="loss").backward()
    torch.testing.assert_close(ours(tiny_tokens()), theirs(tiny_tokens()))
    torch.testing.assert_close(gradients(ours), gradients(theirs))


def test_an_activation_with_a_norm_stays_theirs() -> None:
    settings = GATED | {"act_fn": "solu_ln"}
    ours, theirs = tiny_model(**settings), tiny_model(**settings, use_fused=False)
    torch.testing.assert_close(ours(tiny_tokens()), theirs(tiny_tokens()))
