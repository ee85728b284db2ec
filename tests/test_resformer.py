"""ResFormer, SVFormer and SATFormer folders, by formula."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from resval_lens.hooks import links
from resval_lens.io.formats import format_of
from resval_lens.io.formats.hugging_face import HuggingFaceFolder
from resval_lens.io.formats.resformer import ResFormer
from resval_lens.load import load_model
from tests.elsewhere import assert_as_any_model, drawn, ids
from tests.reference.value_residual import FLA, LLAMA, llama_with_first_values
from tests.test_formats import random_model, tokenizer

D_VOCAB, WIDTH, HEADS, DEPTH, INNER = 300, 32, 4, 4, 48
HALF = "v(source=first, mix=pair, own=0.5, carried=0.5)"


def shapes_of(names: tuple[str, str, str, str], groups: int = HEADS) -> dict[str, tuple[int, ...]]:
    embedding, norm1, attention, norm2 = names
    shapes: dict[str, tuple[int, ...]] = {
        f"{embedding}.weight": (D_VOCAB, WIDTH),
        "lm_head.weight": (D_VOCAB, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    d_head = WIDTH // HEADS
    for layer in range(DEPTH):
        name = f"model.layers.{layer}"
        shapes[f"{name}.{norm1}.weight"] = shapes[f"{name}.{norm2}.weight"] = (WIDTH,)
        for each, heads in (("q", HEADS), ("k", groups), ("v", groups)):
            shapes[f"{name}.{attention}.{each}_proj.weight"] = (heads * d_head, WIDTH)
        shapes[f"{name}.{attention}.o_proj.weight"] = (WIDTH, WIDTH)
        for each in ("gate", "up"):
            shapes[f"{name}.mlp.{each}_proj.weight"] = (INNER, WIDTH)
        shapes[f"{name}.mlp.down_proj.weight"] = (WIDTH, INNER)
    return shapes


def write(folder: Path, config: dict[str, Any], state: dict[str, Tensor]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: x.float() for name, x in state.items()}, folder / "model.safetensors")
    return folder


def llama_config(groups: int = HEADS, **changes: Any) -> dict[str, Any]:
    """As train.py of the authors' code has it saved: a Llama's, whatever the values do."""
    config = transformers.LlamaConfig(
        vocab_size=D_VOCAB, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=DEPTH,
        num_attention_heads=HEADS, num_key_value_heads=groups, max_position_embeddings=64,
        rms_norm_eps=1e-5, bos_token_id=0, eos_token_id=0, architectures=["LlamaForCausalLM"],
        **changes,
    )  # fmt: skip
    return json.loads(config.to_json_string(use_diff=False))


def svformer(groups: int = HEADS) -> dict[str, Tensor]:
    state = drawn(shapes_of(LLAMA, groups))
    for layer in range(1, DEPTH):
        del state[f"model.layers.{layer}.self_attn.v_proj.weight"]
    return state


def assert_logits(folder: Path, wanted: Tensor, **options: Any) -> Any:
    model = load_model(folder, **options).model
    with torch.no_grad():
        found = model(ids(D_VOCAB))
    torch.testing.assert_close(found, wanted.float(), atol=2e-5 * float(wanted.std()), rtol=0)
    return model


# SVFormer, and ResFormer of the same authors


@pytest.mark.parametrize("groups", [HEADS, 2])
def test_svformer_is_told_by_its_weights(groups: int, tmp_path: Path) -> None:
    state = svformer(groups)
    wanted = llama_with_first_values(
        state, ids(D_VOCAB), HEADS, lambda layer, own, first, x: first, names=LLAMA, eps=1e-5
    )
    folder = write(tmp_path / "sv", llama_config(groups), state)
    model = assert_logits(folder, wanted)
    (stream,) = model.cfg.streams
    assert (stream.source, stream.own, stream.carried) == ("first", 0, 1)
    assert_as_any_model(model, ids(D_VOCAB), tmp_path / "saved")


def test_resformer_with_the_weights_of_llama_is_what_is_asked_for(tmp_path: Path) -> None:
    state = drawn(shapes_of(LLAMA))
    folder = write(tmp_path / "res", llama_config(), state)
    wanted = llama_with_first_values(
        state, ids(D_VOCAB), HEADS, lambda layer, own, first, x: (own + first) / 2, names=LLAMA,
        eps=1e-5,
    )  # fmt: skip
    assert_as_any_model(assert_logits(folder, wanted, streams=HALF), ids(D_VOCAB), tmp_path / "s")
    plain = llama_with_first_values(
        state, ids(D_VOCAB), HEADS, lambda layer, own, first, x: own, names=LLAMA, eps=1e-5
    )
    assert assert_logits(folder, plain).cfg.streams == ()


def test_an_ordinary_llama_is_left_to_transformers(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path / "llama")
    assert isinstance(format_of(tmp_path / "llama"), HuggingFaceFolder)
    one = random_model(num_hidden_layers=1)
    one.save_pretrained(tmp_path / "one")
    assert isinstance(format_of(tmp_path / "one"), HuggingFaceFolder)
    random_model("Qwen2ForCausalLM").save_pretrained(tmp_path / "qwen")
    assert isinstance(format_of(tmp_path / "qwen"), HuggingFaceFolder)


def test_parts_of_svformer_are_read_together(tmp_path: Path) -> None:
    state = svformer()
    folder = write(tmp_path / "sv", llama_config(), state)
    (folder / "model.safetensors").unlink()
    for part in range(2):
        half = {name: x.float() for at, (name, x) in enumerate(state.items()) if at % 2 == part}
        save_file(half, folder / f"model-0000{part + 1}-of-00002.safetensors")
    assert isinstance(format_of(folder), ResFormer)
    assert load_model(folder).model.cfg.n_layers == DEPTH


# ResFormer and SATFormer of arXiv 2605.03953


def fla_config(kind: str, groups: int | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "model_type": kind, "architectures": [f"{kind}ForCausalLM"], "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH, "num_heads": HEADS, "num_kv_heads": groups, "qkv_bias": False,
        "qk_norm": False, "window_size": None, "rope_theta": 10000.0,
        "max_position_embeddings": 64, "hidden_ratio": 4, "intermediate_size": INNER,
        "hidden_act": "swish", "norm_eps": 1e-6, "tie_word_embeddings": False,
        "vocab_size": D_VOCAB, "use_value_residual": True, **changes,
    }  # fmt: skip


def mixing(layer: int, name: str) -> str:
    return f"model.layers.{layer}.attn.value_residual_mixing.{name}"


def with_qk_norms(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Norms of queries and keys, of so small a projection that what they add to squares counts."""
    for layer in range(DEPTH):
        name = f"model.layers.{layer}.attn"
        for each in ("q", "k"):
            state[f"{name}.{each}_proj.weight"] = state[f"{name}.{each}_proj.weight"] / 100
            state[f"{name}.{each}_norm.weight"] = 1 + torch.arange(8, dtype=torch.float64) / 10
    return state


@pytest.mark.parametrize("last", [None, 2])
def test_resformer_learns_two_numbers_a_layer(last: int | None, tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {
        **shapes_of(FLA),
        "model.lambda_manager.lambda_scale": (),
        "model.lambda_manager.lambda_logits": (DEPTH - 1,),
    }
    receiving = range(1 if last is None else DEPTH - last, DEPTH)
    state = drawn(shapes | {mixing(layer, "lambda2"): () for layer in receiving})
    state["model.lambda_manager.lambda_scale"] += DEPTH
    shares = state["model.lambda_manager.lambda_logits"].softmax(0)
    shares = shares * state["model.lambda_manager.lambda_scale"]

    def mixed(layer: int, own: Tensor | None, first: Tensor, x: Tensor) -> Tensor:
        assert own is not None
        if layer not in receiving:
            return own
        return shares[layer - 1] * first + state[mixing(layer, "lambda2")] * own

    state = with_qk_norms(state)
    wanted = llama_with_first_values(state, ids(D_VOCAB), HEADS, mixed, names=FLA)
    config = fla_config("ResFormer", qk_norm=True, value_residual_last_k=last)
    model = assert_logits(write(tmp_path / "res", config, state), wanted)
    assert {link.layer for link in links(model)} == set(receiving)
    assert_as_any_model(model, ids(D_VOCAB), tmp_path / "saved")


@pytest.mark.parametrize(
    ("gate", "groups", "changes"),
    [
        ("relu", None, {}),
        ("relu", 2, {"qk_norm": True, "tie_word_embeddings": True}),
        ("sigmoid", None, {"value_residual_proj_bias": True, "value_residual_last_k": 2}),
        ("relu", None, {"qkv_bias": True, "window_size": 5, "rope_theta": 500.0}),
    ],
)
def test_satformer_gates_the_first_values(
    gate: str, groups: int | None, changes: dict[str, Any], tmp_path: Path
) -> None:
    shapes = shapes_of(FLA, groups or HEADS)
    first_reader = DEPTH - 2 if "value_residual_last_k" in changes else 1
    for layer in range(first_reader, DEPTH):
        shapes[mixing(layer, "alpha_proj.weight")] = (groups or HEADS, WIDTH)
        if "value_residual_proj_bias" in changes:
            shapes[mixing(layer, "alpha_proj.bias")] = (groups or HEADS,)
    if "qkv_bias" in changes:
        shapes |= {
            name.replace("weight", "bias"): shape[:1]
            for name, shape in shapes.items()
            if any(f"{each}_proj.weight" in name for each in "qkv") and "attn" in name
        }
    if "tie_word_embeddings" in changes:
        del shapes["lm_head.weight"]
    state = drawn(shapes)
    if "qk_norm" in changes:
        state = with_qk_norms(state)

    def mixed(layer: int, own: Tensor | None, first: Tensor, x: Tensor) -> Tensor:
        assert own is not None
        if layer < first_reader:
            return own
        alpha = x @ state[mixing(layer, "alpha_proj.weight")].T
        alpha = alpha + state.get(mixing(layer, "alpha_proj.bias"), 0)
        return own + getattr(alpha, gate)()[..., None] * first

    wanted = llama_with_first_values(
        state, ids(D_VOCAB), HEADS, mixed, names=FLA, base=changes.get("rope_theta", 1e4),
        window=changes.get("window_size", 10**9),
    )  # fmt: skip
    config = fla_config("SATFormer", groups, value_residual_gate=gate, **changes)
    model = assert_logits(write(tmp_path / "sat", config, state), wanted)
    assert_as_any_model(model, ids(D_VOCAB), tmp_path / "saved")


def test_without_a_value_residual_there_is_no_stream(tmp_path: Path) -> None:
    state = drawn(shapes_of(FLA))
    folder = write(tmp_path / "sat", fla_config("SATFormer", use_value_residual=False), state)
    wanted = llama_with_first_values(
        state, ids(D_VOCAB), HEADS, lambda layer, own, first, x: own, names=FLA
    )
    assert assert_logits(folder, wanted).cfg.streams == ()


def test_the_tokenizer_beside_it_is_its_own(tmp_path: Path) -> None:
    own = tokenizer()
    folder = write(tmp_path / "sat", fla_config("SATFormer"), drawn(shapes_of(FLA)))
    own.save_pretrained(folder)
    model = load_model(folder).model
    assert model.to_tokens("Mary").tolist() == [own("Mary")["input_ids"]]
    folder = write(
        tmp_path / "small", fla_config("SATFormer", vocab_size=20), drawn(shapes_of(FLA))
    )
    own.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"its tokenizer has \d+ tokens, and the model 20$"):
        load_model(folder)


def gated(**changes: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    shapes = shapes_of(FLA)
    for layer in range(1, DEPTH):
        shapes[mixing(layer, "alpha_proj.weight")] = (HEADS, WIDTH)
    return fla_config("SATFormer", **changes), drawn(shapes)


def _without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.pop(name)


@pytest.mark.parametrize(
    ("changes", "change", "message"),
    [
        ({"value_residual_gate": "softmax"}, None, "value_residual_gate='softmax' has no counter"),
        ({"hidden_act": "gelu"}, None, "hidden_act='gelu' cannot be converted"),
        ({"num_heads": 5}, None, "num_heads=5 must divide hidden_size=32"),
        ({"num_heads": "4"}, None, "num_heads must be a whole number from 1 up; got '4'"),
        ({"hidden_size": None}, None, "hidden_size must be a whole number from 1 up; got None"),
        ({"norm_eps": "small"}, None, "norm_eps must be a finite number above 0; got 'small'"),
        ({"num_hidden_layers": 3}, None, "num_hidden_layers=3, but its weights are of 4"),
        ({"num_hidden_layers": 5}, None, "num_hidden_layers=5, but its weights are of 4"),
        ({"vocab_size": 299}, None, "model.embeddings.weight must have shape [299, 32]; got [300"),
        ({}, _without("lm_head.weight"), "its weights lack lm_head.weight"),
        ({}, _without("model.layers.2.attn.v_proj.weight"), "lack model.layers.2.attn.v_proj"),
        ({}, lambda state: state.update(extra=torch.zeros(2)), "have extra, which has no place"),
        ({"model_type": "ResFormer"}, None, "its weights lack model.lambda_manager.lambda_scale"),
    ],
)
def test_what_cannot_be_converted_is_named(
    changes: dict[str, Any],
    change: Callable[[dict[str, Tensor]], object] | None,
    message: str,
    tmp_path: Path,
) -> None:
    config, state = gated(**changes)
    if change is not None:
        change(state)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        load_model(write(tmp_path / "sat", config, state))
    assert "\n" not in str(raised.value)


def test_biases_that_svformer_does_not_have_are_refused(tmp_path: Path) -> None:
    state = svformer()
    state["model.layers.0.self_attn.q_proj.bias"] = torch.ones(WIDTH)
    with pytest.raises(ValueError, match=r"q_proj\.bias, which has no place here"):
        load_model(write(tmp_path / "sv", llama_config(), state))


def test_damage_is_one_line(tmp_path: Path) -> None:
    config, state = gated()
    folder = write(tmp_path / "sat", config, state)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match="expected a complete safetensors file") as raised:
        load_model(folder)
    assert "\n" not in str(raised.value)
    file.unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds no weights as safetensors; others are pickles"):
        load_model(folder)
