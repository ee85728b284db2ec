"""What rounding may do: small models in a precision, beside the same weights in float32."""

import copy
import math
from typing import Any

import pytest
import torch

from resval_lens import AttentionStream, ResValTransformer
from tests.helpers import tiny_model, tiny_tokens

LAYERS = 4
MODELS: dict[str, dict[str, Any]] = {
    "classic": {},
    "values": {"streams": "v"},
    "Llama, values": {
        "streams": AttentionStream("v", carry="raw"), "n_key_value_heads": 2, "gated_mlp": True,
        "act_fn": "silu", "normalization_type": "RMS", "positional_embedding_type": "rotary",
    },
    "all, keys": {"streams": [{"of": "k", "source": "all"}]},
}  # fmt: skip
TOKENS = tiny_tokens()

# A result of a type with p bits is off by at most 2^-p of itself: 2^-24 in float32, 2^-11 in
# float16, 2^-8 in bfloat16. In 16 bits about ten results a layer are rounded one after the other
# (two norms, a projection, scores, pattern, z, output, the MLP's two products, a sum), two more
# for embedding and logits; their errors are independent, so that they add up as the root of their
# number; twice that is allowed. In float32 the sums inside a product matter, too, which a device
# adds in another order: a root of d_model = 16 more each, and one after the other without
# cancelling. TensorFloat32, whose products are off by 2^-11, is beyond it.
ROUNDINGS = 10 * LAYERS + 2
ROUNDED = {
    torch.float32: 2**-24 * ROUNDINGS * 4 * 4,
    torch.float16: 2**-11 * math.sqrt(ROUNDINGS) * 2,
    torch.bfloat16: 2**-8 * math.sqrt(ROUNDINGS) * 2,
}
BACKWARD = math.sqrt(3)
"""A backward run has two products for each that a forward run has."""
each_precision = pytest.mark.parametrize("dtype", ROUNDED, ids=lambda dtype: str(dtype)[6:])
each_model = pytest.mark.parametrize("name", MODELS)


def two_of(
    name: str, dtype: torch.dtype, device: str = "cpu"
) -> tuple[ResValTransformer, ResValTransformer]:
    """The model on the device in ``dtype``, and on the CPU in float32, with equal weights."""
    model = tiny_model(**{"n_layers": LAYERS, **MODELS[name]}).to(dtype).eval()
    reference = copy.deepcopy(model).float()
    return model.to(device, print_details=False), reference


def assert_close(
    found: Any, wanted: Any, dtype: torch.dtype, scale: float = 0.0, times: float = 1.0
) -> None:
    """‖found − wanted‖ / ‖wanted‖ is within rounding, or ``times`` that.

    Args:
        scale: of what is rounded, where ``wanted`` is a small difference of it.
    """
    assert found.isfinite().all()
    assert found.shape == wanted.shape
    wanted = wanted.detach()
    size = max(wanted.norm().item(), scale * math.sqrt(wanted.numel()))
    off = (found.detach().float().cpu() - wanted).norm().item() / size
    rounded = ROUNDED[dtype] * times
    assert off <= rounded, f"off by {off:.2g}, {rounded:.2g} is rounding"
