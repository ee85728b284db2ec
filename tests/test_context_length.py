"""More tokens than the context holds are one line that says so, however they come."""

from typing import Any

import pytest
import torch
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

from tests.helpers import SETTINGS, stock_model, tiny_model, tiny_tokens

N_CTX = SETTINGS["n_ctx"]
BOUNDED: dict[str, dict[str, Any]] = {
    "standard": {},
    "rotary": {"positional_embedding_type": "rotary"},
    "rotary, unfused": {"positional_embedding_type": "rotary", "use_fused": False},
    "shortformer": {"positional_embedding_type": "shortformer"},
}
each_kind = pytest.mark.parametrize("changes", BOUNDED.values(), ids=BOUNDED)
too_long = pytest.raises(ValueError, match=rf"^{N_CTX + 1} tokens do not fit .*n_ctx={N_CTX}$")


@each_kind
def test_a_forward_pass_beyond_the_context(changes: dict[str, Any]) -> None:
    model = tiny_model("v", **changes)
    model(tiny_tokens(length=N_CTX))
    with too_long:
        model(tiny_tokens(length=N_CTX + 1))
    with too_long:
        model.run_with_cache(tiny_tokens(length=N_CTX + 1))
    with too_long:
        model(tiny_tokens(length=N_CTX + 1), attention_mask=torch.ones(2, N_CTX + 1).long())


@torch.no_grad()
@each_kind
@pytest.mark.parametrize("cached", [False, True])
def test_generation_beyond_the_context(changes: dict[str, Any], cached: bool) -> None:
    model = tiny_model("v", **changes)

    def generate(new: int) -> Any:
        return model.generate(
            tiny_tokens(batch=1), max_new_tokens=new, stop_at_eos=False, do_sample=False,
            use_past_kv_cache=cached, verbose=False,
        )  # fmt: skip

    fitting = N_CTX - 7 + 1  # the last one is not read again
    assert generate(fitting).shape == (1, N_CTX + 1)
    with too_long:
        generate(fitting + 1)


@torch.no_grad()
@each_kind
def test_cached_tokens_count(changes: dict[str, Any]) -> None:
    model = tiny_model("v", **changes)
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", 2)
    ones = torch.ones(2, 7).long()
    model(tiny_tokens(), past_kv_cache=cache, attention_mask=ones)
    with too_long:
        model(tiny_tokens(length=6), past_kv_cache=cache, attention_mask=ones[:, :6])


def test_a_resumed_run_of_a_rotary_model() -> None:
    model = tiny_model("v", **BOUNDED["rotary"])
    with too_long:
        model(torch.zeros(1, N_CTX + 1, SETTINGS["d_model"]), start_at_layer=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["standard", "rotary"])
def test_padding_has_no_position(kind: str) -> None:
    changes = BOUNDED[kind]
    mask = torch.ones(2, N_CTX + 3).long()
    mask[:, :3] = 0
    tokens = tiny_tokens(length=N_CTX + 3)
    model = tiny_model(**changes)
    padded = model(tokens, attention_mask=mask)[:, 3:]
    torch.testing.assert_close(padded, model(tokens[:, 3:]), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_positions_without_an_end_go_on() -> None:
    changes = {"positional_embedding_type": "alibi"}
    tokens = tiny_tokens(length=N_CTX + 3)
    expected = stock_model(**changes)(tokens)
    torch.testing.assert_close(tiny_model(**changes)(tokens), expected, atol=1e-4, rtol=1e-4)
