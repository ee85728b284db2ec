"""Every field of a configuration refuses what it cannot be, by its name, in one line."""

import json
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from beartype import BeartypeConf
from beartype.door import is_bearable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformer_lens.utilities import SUPPORTED_ACTIVATIONS

from resval_lens.analyses.papers.memory.model import memory_config
from resval_lens.config import ResValConfig
from resval_lens.models.classifier import classifier_config
from tests.helpers import SETTINGS, tiny_config, tiny_model, tiny_tokens

pytestmark = [
    pytest.mark.usefixtures("unchecked_annotations"),
    pytest.mark.filterwarnings("ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning"),
]

WHOLE = {"plain": tiny_config(), "classifier": classifier_config("v"), "memory": memory_config(7)}
OF_ANY_TYPE = [None, True, 7, -7, 0.5, float("nan"), float("inf"), "some text", b"bytes", [1],
               ["x", 2], {"a": 1}, (1, 2), torch.zeros(2), object(), np.zeros(2)]  # fmt: skip
FIELDS = [
    (kind, name)
    for kind, cfg in WHOLE.items()
    for name, hint in get_type_hints(type(cfg)).items()
    if hint is not Any  # streams have tests of their own
    and (kind == "plain" or name not in get_type_hints(ResValConfig))
]


def fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` is of the type, as beartype reads it; a bool is no number."""
    if isinstance(value, bool):
        return is_bearable(value, hint) and "bool" in str(hint)
    if isinstance(value, float) and not np.isfinite(value):
        return False
    as_written = tuple(value) if isinstance(value, list) and "tuple" in str(hint) else value
    return is_bearable(as_written, hint, conf=BeartypeConf(is_pep484_tower=True))


def check_refused(make: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}\b") as refusal:
        make()
    assert "\n" not in str(refusal.value)
    assert "function" not in str(refusal.value)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_a_value_of_another_type_is_refused_by_name(kind: str, name: str) -> None:
    cfg = WHOLE[kind]
    cls, hint = type(cfg), get_type_hints(type(cfg))[name]
    tried = 0
    for value in OF_ANY_TYPE:
        if fits(value, hint):
            continue
        changed = {**cfg.to_dict(), name: value}
        check_refused(lambda changed=changed: cls(**changed), name, value)
        check_refused(lambda changed=changed: cls.from_dict(changed), name, value)
        tried += 1
    assert tried >= 8


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
UNTRIED = {"seed", "device", "streams", "n_devices", "n_params"}  # what this machine has; derived


@settings(max_examples=300, deadline=None, suppress_health_check=[*HealthCheck])
@given(name=st.sampled_from(sorted(set(WHOLE["plain"].to_dict()) - UNTRIED)), value=JSON)
def test_any_json_is_accepted_or_one_line(name: str, value: Any) -> None:
    text = json.dumps({**json.loads(tiny_config().to_json()), name: value})
    try:
        cfg = ResValConfig.from_json(text)
    except ValueError as error:
        said = str(error)
        named = name in said or "is not a finite number" in said  # Infinity, which JSON has not
        assert (named, "\n" in said) == (True, False), said
    else:
        assert ResValConfig.from_json(cfg.to_json()) == cfg


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attention_dir", [1]), ("attention_dir", "both"), ("clip_qkv", {"a": 1}),
        ("clip_qkv", 0.0), ("d_head", -1), ("d_head", 0), ("n_layers", -1), ("n_ctx", 0),
        ("n_heads", 0), ("d_mlp", 0), ("d_vocab", 0), ("d_vocab_out", -2), ("act_fn", "tanh"),
        ("act_fn", None), ("normalization_type", "layer"), ("positional_embedding_type", "rope"),
        ("init_mode", "zeros"), ("eps", -1e-5), ("rotary_base", 0), ("rotary_dim", 0),
        ("dropout", 1), ("dropout", "0.1"), ("dtype", "float32"), ("seed", -1), ("seed", 2**32),
        ("attn_scale", 0.0), ("n_key_value_heads", 3), ("n_key_value_heads", 0),
        ("window_size", 0), ("attn_types", ["global", "near"]), ("frozen", "*"), ("frozen", [1]),
        ("frozen", 3), ("use_fused", 1), ("n_devices", 0),
    ],
    ids=str,
)  # fmt: skip
def test_an_impossible_value_is_refused_by_name(name: str, value: Any) -> None:
    check_refused(lambda: tiny_config(**{name: value}), name, value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_local_attn": True}, "window_size"),
        ({"use_local_attn": True, "window_size": 3}, "attn_types"),
        ({"use_local_attn": True, "window_size": 3, "attn_types": ["local"]}, "attn_types"),
        ({"num_experts": 2}, "experts_per_token"),
        ({"d_model": 10, "n_heads": -1}, "d_model"),
    ],
)
def test_settings_that_need_one_another_are_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        tiny_config(**changes)


def test_a_wrong_activation_lists_the_right_ones() -> None:
    with pytest.raises(ValueError, match=", ".join(SUPPORTED_ACTIVATIONS)):
        tiny_config(act_fn="sigmoid")


def test_numbers_of_numpy_and_devices_of_torch_are_taken() -> None:
    changes = {"d_model": np.int64(16), "eps": np.float32(0.5), "use_fused": np.bool_(False)}
    cfg = tiny_config(**changes, device=torch.device("cpu"), rotary_base=10**4, dropout=0)
    assert (type(cfg.d_model), type(cfg.eps), cfg.use_fused) == (int, float, False)
    assert cfg.device == "cpu"
    assert ResValConfig.from_json(cfg.to_json()) == cfg


def test_what_transformer_lens_finds_out_may_be_left_to_it() -> None:
    cfg = ResValConfig(**{**SETTINGS, "n_heads": -1, "d_vocab_out": -1, "attn_scale": -1.0})
    assert (cfg.n_heads, cfg.d_vocab_out, cfg.attn_scale) == (4, 13, 2.0)
    assert tiny_config(attn_only=True, act_fn=None).act_fn is None
    assert tiny_model(n_layers=0)(tiny_tokens()).shape == (2, 7, 13)
