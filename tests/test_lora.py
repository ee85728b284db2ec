"""Adapters of peft, merged: W + s B A by numpy, and peft's own merge where it is installed."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from resval_lens.io.formats import format_of
from resval_lens.io.formats.lora import LoRAFolder
from resval_lens.load import load_model
from tests.test_formats import assert_same, random_model, tokenizer, tokens

needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")
MODULES = {
    "LlamaForCausalLM": ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"),
    "GPT2LMHeadModel": ("attn.c_attn", "mlp.c_proj"),
}
LAYERS = {"LlamaForCausalLM": "model.layers", "GPT2LMHeadModel": "transformer.h"}
PATTERNS = {"alpha_pattern": {"q_proj": 3, "model.layers.1.mlp.down_proj": 5}}


def adapter(
    folder: Path, architecture: str = "LlamaForCausalLM", **settings: Any
) -> tuple[Path, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """A model and its adapter, of ranks 2 and 3, as peft writes them; A and B of each module."""
    base, path = folder / "base", folder / "adapter"
    model = random_model(architecture)
    model.save_pretrained(base)
    tokenizer().save_pretrained(base)
    draw = np.random.default_rng(0)
    found = {}
    for layer in range(2):
        for number, name in enumerate(MODULES[architecture]):
            module = f"{LAYERS[architecture]}.{layer}.{name}"
            shape = model.get_submodule(module).weight.shape
            out, into = shape if architecture == "LlamaForCausalLM" else shape[::-1]
            rank = 2 + number % 2
            found[module] = (draw.normal(size=(rank, into)), draw.normal(size=(out, rank)))
    path.mkdir()
    weights = {
        f"base_model.model.{module}.lora_{name}.weight": torch.tensor(x, dtype=torch.float32)
        for module, both in found.items()
        for name, x in zip("AB", both, strict=True)
    }
    save_file(weights, path / "adapter_model.safetensors")
    content = {
        "peft_type": "LORA", "base_model_name_or_path": str(base), "r": 2, "lora_alpha": 4,
        "bias": "none", "use_rslora": False, "init_lora_weights": True, "loftq_config": {},
        "target_modules": [name.split(".")[-1] for name in MODULES[architecture]],
        "fan_in_fan_out": architecture == "GPT2LMHeadModel", "lora_dropout": 0.1,
        "modules_to_save": None, "use_dora": False, "peft_version": "0.21.2", **settings,
    }  # fmt: skip
    (path / "adapter_config.json").write_text(json.dumps(content))
    return path, found


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("LlamaForCausalLM", {}),
        ("LlamaForCausalLM", {"use_rslora": True}),
        ("LlamaForCausalLM", PATTERNS),
        ("GPT2LMHeadModel", {}),
    ],
    ids=["plain", "rslora", "alpha_pattern", "gpt2"],
)
def test_an_adapter_is_added_to_its_model(
    architecture: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    path, found = adapter(tmp_path, architecture, **settings)
    wanted = random_model(architecture)
    for module, (a, b) in found.items():
        alpha = 4.0
        if settings == PATTERNS and module.endswith("q_proj"):
            alpha = 3
        if settings == PATTERNS and module == "model.layers.1.mlp.down_proj":
            alpha = 5
        scale = alpha / (np.sqrt(len(a)) if "use_rslora" in settings else len(a))
        change = scale * np.einsum("or,ri->oi", b, a)
        weight = wanted.get_submodule(module).weight.data
        weight += torch.tensor(change if architecture == "LlamaForCausalLM" else change.T)
    loaded = load_model(path).model
    assert_same(loaded, wanted, atol=1e-4)
    with torch.no_grad():
        before = load_model(tmp_path / "base").model(tokens())
        assert (loaded(tokens()) - before).abs().max() > 0.1
    assert loaded.to_tokens("Mary").tolist() == [tokenizer()("Mary")["input_ids"]]
    assert isinstance(format_of(path), LoRAFolder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora=True is not merged here; peft's merge_and_unload"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is not merged here"),
        ({"trainable_token_indices": [1]}, r"trainable_token_indices=\[1\] is not merged here"),
        ({"of_next_year": {"a": 1}}, r"of_next_year=\{'a': 1\} is not merged here"),
        ({"peft_type": "IA3"}, "peft_type='IA3' is not merged here"),
        ({"bias": "all"}, "bias='all' is not merged here"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not merged here"),
        ({"alpha_pattern": {"(a*)*b": 1}}, r"alpha_pattern=\{'\(a\*\)\*b': 1\} is not merged"),
        ({"lora_alpha": "4"}, "lora_alpha of .* must be a number; got '4'"),
        ({"base_model_name_or_path": None}, "names no model: base_model_name_or_path=None"),
        ({"base_model_name_or_path": "an/other"}, "adapts 'an/other', which is not on this"),
        ({"base_model_name_or_path": "adapter"}, "which is not a Hugging Face folder"),
    ],
)
def test_what_is_not_merged_is_refused_by_its_name(
    settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, _ = adapter(tmp_path, **settings)
    with pytest.raises(ValueError, match=message) as raised:
        load_model(path)
    assert "\n" not in str(raised.value)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({FIRST.replace("lora_A", "lora_magnitude"): (1,)}, "lora_magnitude.* has no place here"),
        ({FIRST: (2, 31)}, r"q_proj.lora_A.weight must have shape \[2, 32\]; got \[2, 31\]"),
        ({FIRST: None}, r"its weights have .*q_proj.lora_B.weight, which has no place here"),
        ({FIRST.replace("q_proj", "x_proj"): (2, 32)}, "x_proj, which its model has not"),
        ({FIRST.replace("self_attn.q_proj", "input_layernorm"): (2, 32)},
         "has as LlamaRMSNorm, no projection"),
    ],
)  # fmt: skip
def test_weights_that_are_not_of_the_model_are_named(
    changed: dict[str, tuple[int, ...] | None], message: str, tmp_path: Path
) -> None:
    path, _ = adapter(tmp_path)
    weights = load_file(path / "adapter_model.safetensors")
    for name, shape in changed.items():
        weights.pop(name, None)
        if shape is not None:
            weights[name] = torch.ones(shape)
    save_file(weights, path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=message):
        load_model(path)


def test_a_pickled_adapter_is_not_read(tmp_path: Path) -> None:
    path, _ = adapter(tmp_path)
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    with pytest.raises(ValueError, match="pickles could run code, and are not read"):
        load_model(path)


def test_a_projection_that_is_the_embedding_is_refused(tmp_path: Path) -> None:
    path, _ = adapter(tmp_path, "GPT2LMHeadModel")
    module = "base_model.model.lm_head.lora_"
    weights = {f"{module}A.weight": torch.ones(2, 32), f"{module}B.weight": torch.ones(300, 2)}
    save_file(weights, path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="adapts lm_head, whose weight is the embedding's"):
        load_model(path)


@needs_peft
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("LlamaForCausalLM", {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"down_proj": 3}}),
        ("LlamaForCausalLM", {"use_rslora": True, "layers_to_transform": [1]}),
        ("GPT2LMHeadModel", {"fan_in_fan_out": True}),
    ],
    ids=["patterns", "rslora", "gpt2"],
)
def test_an_adapter_is_what_peft_computes(
    architecture: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    base = random_model(architecture)
    base.save_pretrained(tmp_path / "base")
    base.config._name_or_path = str(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    names = [name.split(".")[-1] for name in MODULES[architecture]]
    adapted = get_peft_model(base, LoraConfig(r=4, lora_alpha=6, target_modules=names, **settings))
    with torch.no_grad():
        for name, x in adapted.named_parameters():
            if "lora_" in name:
                x.normal_(0, 0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    assert_same(load_model(tmp_path / "adapter").model, adapted.eval(), atol=1e-4)
