"""The configuration: TransformerLens's own fields, streams beside them, and no side effects."""

import copy
import dataclasses
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from resval_lens.config import ResValConfig
from resval_lens.host import HookedTransformerConfig
from resval_lens.streams import AttentionStream, parse_streams
from resval_lens.transformer import ResValTransformer
from tests.helpers import SETTINGS, tiny_config


def global_generators() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


@pytest.mark.parametrize(
    "make",
    [
        lambda config: config.with_streams("v"),
        lambda config: ResValConfig.from_hooked(config, "v"),
        lambda config: ResValConfig.from_json(config.to_json()),
        lambda config: copy.deepcopy(config),
        lambda config: ResValTransformer(config.with_streams("v")).with_streams("q"),
    ],
    ids=["with_streams", "from_hooked", "from_json", "deepcopy", "model.with_streams"],
)
@pytest.mark.usefixtures("unchecked_annotations")  # beartype draws from `random`
def test_making_a_config_from_a_config_does_not_reseed(make: Callable[..., Any]) -> None:
    config = tiny_config(seed=5, init_weights=False)
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    before = global_generators()
    changed = make(config)
    assert global_generators() == before
    assert getattr(changed, "cfg", changed).seed == 5


def test_a_seed_reseeds_when_a_config_is_written_out_as_in_transformer_lens() -> None:
    tiny_config(seed=5)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))


def test_with_streams_leaves_the_original_alone() -> None:
    config = tiny_config(streams="q", attn_types=["global"] * 3)
    changed = config.with_streams("v")
    changed.attn_types.append("local")
    assert config.streams == parse_streams("q")
    assert config.attn_types == ["global"] * 3
    assert dataclasses.replace(changed, streams="q", attn_types=["global"] * 3) == config


@pytest.mark.parametrize("streams", ["qv", [{"of": "v"}], AttentionStream("v", source="all")])
def test_streams_are_kept_in_full_however_they_were_written(streams: Any) -> None:
    assert tiny_config(streams=streams).streams == parse_streams(streams)


def test_from_hooked_keeps_every_field() -> None:
    stock = HookedTransformerConfig(**SETTINGS, n_key_value_heads=2, dtype=torch.float64)
    config = ResValConfig.from_hooked(stock, "v")
    assert {name: getattr(config, name) for name in stock.to_dict()} == stock.to_dict()
    assert config.streams == parse_streams("v")


@pytest.mark.parametrize("from_", [ResValConfig.from_dict, lambda d: ResValConfig(**d)])
def test_an_unknown_field_is_refused(from_: Callable[..., Any]) -> None:
    with pytest.raises((ValueError, TypeError), match="n_layer'"):
        from_({**SETTINGS, "n_layer": 3})


def test_from_dict_names_the_class_and_the_unknown_field() -> None:
    with pytest.raises(ValueError, match="ResValConfig has no field 'n_layer'"):
        ResValConfig.from_dict({**SETTINGS, "n_layer": 3})


def test_from_json_names_the_unknown_field() -> None:
    text = json.dumps({**json.loads(tiny_config().to_json()), "stream": "v"})
    with pytest.raises(ValueError, match="ResValConfig has no field 'stream'"):
        ResValConfig.from_json(text)


@pytest.mark.parametrize("text", ["[]", "3", '"v"', "null"])
def test_json_that_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a ResValConfig is a JSON object"):
        ResValConfig.from_json(text)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_survive_json(dtype: torch.dtype) -> None:
    assert ResValConfig.from_json(tiny_config(dtype=dtype).to_json()).dtype is dtype


@pytest.mark.parametrize("dtype", ["float23", "torch.nn", "", None, 32])
def test_a_bad_dtype_is_refused(dtype: Any) -> None:
    text = json.dumps({**json.loads(tiny_config().to_json()), "dtype": dtype})
    with pytest.raises(ValueError, match="dtype must name a torch dtype"):
        ResValConfig.from_json(text)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"streams": "qkv", "use_fused": False},
        {"n_key_value_heads": 2, "positional_embedding_type": "rotary"},
        {"use_local_attn": True, "window_size": 3, "attn_types": ["global", "local", "local"]},
        {"streams": AttentionStream("v", mix="gate", carried=0.25, layers=(2,), detach=True)},
    ],
)
def test_json_makes_an_equal_config(changes: dict[str, Any]) -> None:
    config = tiny_config(**changes)
    assert ResValConfig.from_json(config.to_json()) == config


def test_to_dict_is_a_copy() -> None:
    config = tiny_config()
    config.to_dict()["n_layers"] = 99
    assert config.n_layers == 3


def test_a_dict_makes_the_same_model_as_its_config() -> None:
    model = ResValTransformer({**SETTINGS, "streams": "v"})
    assert model.cfg == tiny_config(streams="v")
    assert isinstance(model.cfg, ResValConfig)


def test_a_stock_config_makes_a_classic_model() -> None:
    model = ResValTransformer(HookedTransformerConfig(**SETTINGS))
    assert model.cfg == tiny_config()
    assert model.cfg.streams == ()


def test_building_a_model_leaves_its_config_alone() -> None:
    config = tiny_config(streams="v")
    before = copy.deepcopy(config)
    ResValTransformer(config)
    assert config == before


def test_deepcopy_and_replace_keep_the_streams() -> None:
    config = tiny_config(streams=AttentionStream("v", source="first", mix="scalar"))
    assert copy.deepcopy(config) == config
    wider = dataclasses.replace(config, d_model=24)
    assert (wider.d_model, wider.streams) == (24, config.streams)


def test_quantised_weights_and_streams_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="load_in_4bit=True"):
        tiny_config(streams="v", load_in_4bit=True)


def test_repr_is_readable_and_complete() -> None:
    config = tiny_config(streams="v")
    text = repr(config)
    assert text.startswith("ResValConfig(")
    assert ResValConfig.from_json(text.removeprefix("ResValConfig(").removesuffix(")")) == config
