"""Decoders of x-transformers: folders and states by formula, wrappers where it is installed."""

import json
import re
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from resval_lens import ResValTransformer
from resval_lens.hooks import cut_links
from resval_lens.load import load_model
from tests.elsewhere import assert_as_any_model, drawn, ids
from tests.reference.value_residual import x_transformers
from tests.test_formats import tokenizer

D_VOCAB, N_CTX, WIDTH, D_HEAD, HEADS, DEPTH = 50, 16, 32, 8, 4, 3
needs_package = pytest.mark.skipif(
    find_spec("x_transformers") is None, reason="x-transformers is not installed"
)


def keywords(**layers: Any) -> dict[str, Any]:
    """Those of TransformerWrapper for the states of :func:`state_of`."""
    given = {"dim": WIDTH, "depth": DEPTH, "heads": HEADS, "attn_dim_head": D_HEAD}
    return {
        "num_tokens": D_VOCAB,
        "max_seq_len": N_CTX,
        "attn_layers": {**given, "add_value_residual": True, **layers},
    }


def state_of(
    *, groups: int = HEADS, learned: bool = True, rotary: int = 0, gain: str = "gamma",
    glu: bool = False, scales: str = "", bias: bool = True,
) -> dict[str, Tensor]:  # fmt: skip
    """A random state_dict of a TransformerWrapper."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_emb.emb.weight": (D_VOCAB, WIDTH),
        "to_logits.weight": (D_VOCAB, WIDTH),
        f"attn_layers.final_norm.{gain}": (WIDTH,),
    }
    if not rotary:
        shapes["pos_emb.emb.weight"] = (N_CTX, WIDTH)
    for layer in range(DEPTH):
        name, behind = f"attn_layers.layers.{2 * layer}", f"attn_layers.layers.{2 * layer + 1}"
        shapes[f"{name}.0.0.{gain}"] = shapes[f"{behind}.0.0.{gain}"] = (WIDTH,)
        shapes[f"{name}.1.to_q.weight"] = (HEADS * D_HEAD, WIDTH)
        shapes[f"{name}.1.to_k.weight"] = shapes[f"{name}.1.to_v.weight"] = (groups * D_HEAD, WIDTH)
        shapes[f"{name}.1.to_out.weight"] = (WIDTH, HEADS * D_HEAD)
        if learned and layer > 0:
            shapes[f"{name}.1.to_value_residual_mix.0.weight"] = (HEADS, WIDTH)
            shapes[f"{name}.1.to_value_residual_mix.0.bias"] = (HEADS,)
        for side, number in (("q", HEADS), ("k", groups)):
            if scales:
                shapes[f"{name}.1.{scales.format(side)}"] = (number, 1, D_HEAD)
        inner, into = 3 * WIDTH, f"{behind}.1.ff.0.{'proj' if glu else '0'}"
        shapes[f"{into}.weight"] = (inner * (1 + glu), WIDTH)
        shapes[f"{behind}.1.ff.2.weight"] = (WIDTH, inner)
        if bias or glu:
            shapes[f"{into}.bias"] = (inner * (1 + glu),)
        if bias:
            shapes[f"{behind}.1.ff.2.bias"] = (WIDTH,)
    state = drawn(shapes)
    if rotary:
        state["attn_layers.rotary_pos_emb.inv_freq"] = 1e4 ** -(torch.arange(0, rotary, 2) / rotary)
    return state


FIXED = {"learned_value_residual_mix": False}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # the state, its keywords, what the reference is told
    "learned": ({}, {}, {}),
    "half and half": ({"learned": False}, FIXED, {}),
    "without": ({"learned": False}, {"add_value_residual": False}, {"value_residual": False}),
    "rotary": (
        {"rotary": 4}, {"rotary_pos_emb": True, "rotary_emb_dim": 4}, {"rotary": 4}
    ),
    "root": ({"gain": "g"}, {"use_rmsnorm": True}, {"root": True}),
    "grouped": ({"groups": 2, "learned": False}, {"attn_kv_heads": 2, **FIXED}, {}),
    "one key": ({"groups": 1, "learned": False}, {"attn_one_kv_head": True, **FIXED}, {}),
    "swish": ({}, {"ff_swish": True}, {"activation": F.silu}),
    "squares": ({}, {"ff_relu_squared": True}, {"activation": lambda x: x.relu() ** 2}),
    "no biases": ({"bias": False}, {"ff_no_bias": True}, {}),
    "gated": ({"glu": True}, {"ff_glu": True}, {"glu": True}),
    "gated, no biases": (
        {"glu": True, "bias": False},
        {"ff_glu": True, "ff_no_bias": True, "ff_swish": True},
        {"glu": True, "activation": F.silu},
    ),
    "length 1": ({}, {"attn_qk_norm": True}, {"l2": True}),
    "length 1, by head": (
        {"groups": 2, "learned": False, "scales": "qk_norm_{}_scale"},
        {"attn_kv_heads": 2, "attn_qk_norm": True, "attn_qk_norm_dim_scale": True, **FIXED},
        {"l2": True, "learned_scale": True},
    ),
    "root, by head": (
        {"scales": "{}_rmsnorm.gamma", "gain": "g", "rotary": 4},
        {"attn_qk_rmsnorm": True, "use_rmsnorm": True, "rotary_pos_emb": True},
        {"qk_root": True, "root": True, "rotary": 4},
    ),
}  # fmt: skip


def made(variant: str) -> tuple[dict[str, Tensor], dict[str, Any], Tensor]:
    """A state, its keywords, and the logits of :func:`ids` by formula."""
    of, given, told = VARIANTS[variant]
    state = state_of(**of)
    wanted = x_transformers(state, ids(D_VOCAB), depth=DEPTH, d_head=D_HEAD, **told)
    return state, keywords(**given), wanted


def write(folder: Path, state: dict[str, Tensor], given: Any, pickled: bool = False) -> Path:
    folder.mkdir()
    (folder / "x_transformers.json").write_text(json.dumps(given))
    if pickled:
        torch.save(state, folder / "model.pt")
    else:
        save_file(state, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_formulas(variant: str, tmp_path: Path) -> None:
    state, given, wanted = made(variant)
    model = ResValTransformer.from_x_transformers(state, given)
    assert model.cfg.dtype == torch.float64
    with torch.no_grad():
        torch.testing.assert_close(model(ids(D_VOCAB)), wanted, atol=1e-9, rtol=0)
    single = load_model(write(tmp_path / "theirs", state, given)).model
    assert single.cfg.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(
            single(ids(D_VOCAB)), wanted.float(), atol=2e-5 * float(wanted.std()), rtol=0
        )


@pytest.mark.parametrize("variant", ["learned", "grouped", "root, by head", "gated"])
def test_it_is_as_any_model(variant: str, tmp_path: Path) -> None:
    state, given, _ = made(variant)
    model = load_model(write(tmp_path / "theirs", state, given, pickled=True)).model
    assert_as_any_model(model, ids(D_VOCAB), tmp_path / "saved")


def test_the_gate_weighs_what_is_carried() -> None:
    """Theirs weighs the own values: at a huge bias nothing is carried, and cuts change nothing."""
    state, given, _ = made("learned")
    for name in state:
        if name.endswith("to_value_residual_mix.0.bias"):
            state[name] += 100
    model = ResValTransformer.from_x_transformers(state, given)
    with torch.no_grad(), cut_links(model):
        cut = model(ids(D_VOCAB))
    with torch.no_grad():
        torch.testing.assert_close(cut, model(ids(D_VOCAB)))


def test_streams_and_precision_may_be_asked_for(tmp_path: Path) -> None:
    state, given, _ = made("learned")
    folder = write(tmp_path / "theirs", state, given)
    assert load_model(folder, streams="").model.cfg.streams == ()
    half = load_model(folder, dtype=torch.bfloat16).model
    assert {x.dtype for x in half.parameters()} == {torch.bfloat16}
    plain = ResValTransformer.from_x_transformers(state, given, streams="", dtype=torch.float32)
    assert plain.cfg.streams == ()
    assert plain.cfg.dtype == torch.float32


def test_a_tokenizer_beside_the_weights_is_its_own(tmp_path: Path) -> None:
    own = tokenizer()
    state, given, _ = made("half and half")
    for name in ("token_emb.emb.weight", "to_logits.weight"):
        state[name] = state[name].repeat(6, 1)
    folder = write(tmp_path / "theirs", state, {**given, "num_tokens": 6 * D_VOCAB})
    own.save_pretrained(folder)
    loaded = load_model(folder).model
    assert loaded.to_tokens("Mary").tolist() == [own("Mary")["input_ids"]]
    small, given, _ = made("half and half")
    for name, x in small.items():
        state[name] = x
    with pytest.raises(ValueError, match=r"its tokenizer has \d+ tokens, and the model 50$"):
        ResValTransformer.from_x_transformers(small, given, own)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "expected the keywords of a TransformerWrapper, under 'attn_layers'"),
        ({"num_tokens": 3}, "expected the keywords of a TransformerWrapper, under 'attn_layers'"),
        (keywords(sandwich_norm=True), "sandwich_norm=True of x-transformers has no counterpart"),
        (keywords(attn_pre_talking_heads=True), "attn_pre_talking_heads=True of x-transformers"),
        (keywords(cross_attend=True), "cross_attend=True of x-transformers has no counterpart"),
        (keywords(pre_norm=False), "pre_norm=False of x-transformers has no counterpart here"),
        (keywords(attn_max_attend_past=4), "attn_max_attend_past=4 of x-transformers has no"),
        ({**keywords(), "num_memory_tokens": 2}, "num_memory_tokens=2 of x-transformers has no"),
        ({**keywords(), "emb_dim": 64}, "emb_dim=64 of x-transformers has no counterpart here"),
        (keywords(sandwich=False), "the keyword 'sandwich' of Decoder is unknown here"),
        ({**keywords(), "dim": 8}, "the keyword 'dim' of TransformerWrapper is unknown here"),
        (keywords(heads=3), r"to_q\.weight must have shape \[24, 32\]; got \[32, 32\]"),
        (keywords(heads=0), "heads must be a whole number from 1 up; got 0"),
        (keywords(depth=True), "depth must be a whole number from 1 up; got True"),
        (keywords(depth=None), "depth must be a whole number from 1 up; got None"),
        (keywords(depth=2), r"its weights have attn_layers\.layers\.4\.0\.0\.gamma, which has no"),
        (keywords(depth=4), r"its weights lack attn_layers\.layers\.6\.0\.0\.gamma"),
        (keywords(attn_kv_heads=3), "attn_kv_heads=3 must divide heads=4"),
        (keywords(attn_kv_heads=2), "learned_value_residual_mix=True with attn_kv_heads=2 of 4"),
        (keywords(use_rmsnorm=1), "use_rmsnorm must be true or false; got 1"),
        (keywords(use_rmsnorm=True), r"its weights lack attn_layers\.final_norm\.g$"),
        (keywords(use_rmsnorm=True, use_scalenorm=True), "use_rmsnorm contradicts use_scalenorm"),
        (keywords(add_value_residual=False), r"to_value_residual_mix\.0\.bias, which has no place"),
        (
            keywords(learned_value_residual_mix=False),
            "learned_value_residual_mix=False, but its weights have a to_value_residual_mix",
        ),
        (keywords(rotary_pos_emb=True), r"its weights have pos_emb\.emb\.weight, which has no"),
        (keywords(rotary_pos_emb=True, rotary_emb_dim=5), "rotary_emb_dim must be an even number"),
        (
            keywords(rotary_pos_emb=True, disable_abs_pos_emb=False),
            "positions are added or rotated, not both",
        ),
        (keywords(rotary_interpolation_factor=2.0), "rotary_interpolation_factor=2.0 of"),
        ({**keywords(), "tie_embedding": True}, "tie_embedding=True needs tie_embedding_scale"),
        ({**keywords(), "num_tokens": 49}, r"token_emb\.emb\.weight must have shape \[49, 32\]"),
        (keywords(attn_qk_norm=True, attn_qk_norm_scale=0), "attn_qk_norm_scale must be a finite"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_refused_by_its_name(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        ResValTransformer.from_x_transformers(state_of(), given)
    assert "\n" not in str(raised.value)


def test_keywords_without_effect_are_taken() -> None:
    given = keywords(verbose=False, attn_dropout=0.1, attn_flash=True, sandwich_norm=False)
    assert ResValTransformer.from_x_transformers(state_of(), given).cfg.n_layers == DEPTH


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "x_transformers.json").write_text("{"), "not JSON"),
        (lambda folder: _cut(folder / "model.safetensors"), "expected a complete safetensors file"),
        (lambda folder: (folder / "model.safetensors").unlink(), "is missing; expected the state"),
        (lambda folder: _pickled(folder, {"a": print}), "is not the state_dict of a Transformer"),
        (lambda folder: _pickled(folder, [1]), "expected a state_dict, tensors by name"),
        (
            lambda folder: _pickled(folder, {**state_of(), "x": torch.tensor(float("nan"))}),
            "x holds NaN or infinite numbers",
        ),
    ],
    ids=["keywords", "truncated", "no weights", "code", "no state", "not finite"],
)
def test_damage_is_one_line(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "theirs", state_of(), keywords())
    damage(folder)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        load_model(folder)
    assert "\n" not in str(raised.value)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:5000])


def _pickled(folder: Path, saved: Any) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(saved, folder / "model.pt")


# Wrappers


def wrapper_of(wrapper: dict[str, Any], **layers: Any) -> Any:
    """A TransformerWrapper with random weights."""
    with warnings.catch_warnings():  # it uses what torch has deprecated
        warnings.simplefilter("ignore")
        from x_transformers import Decoder, TransformerWrapper

        given = keywords(**layers)
        torch.manual_seed(0)
        made = TransformerWrapper(
            **{**given, "attn_layers": Decoder(**given["attn_layers"], verbose=False), **wrapper}
        )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.2)
    return made.eval()


WRAPPERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{name: ({}, given) for name, (_, given, _) in VARIANTS.items()},
    "scale norm": ({}, {"use_scalenorm": True}),
    "no gains": ({}, {"use_simple_rmsnorm": True}),
    "gains in full": ({}, {"norm_add_unit_offset": False}),
    "another base": ({}, {"rotary_pos_emb": True, "rotary_base_rescale_factor": 3.0}),
    "attention alone": ({}, {"only_attn": True}),
    "no positions": ({"use_abs_pos_emb": False}, {}),
    "one head": ({}, {"heads": 1, "attn_dim_head": WIDTH}),
    "tied": ({"tie_embedding": True}, {}),
    "other outputs": ({"logits_dim": 7}, {}),
    "fused attention": ({}, {"attn_flash": True}),
}


@needs_package
@pytest.mark.parametrize("variant", WRAPPERS)
def test_a_wrapper_keeps_its_logits(variant: str) -> None:
    of_wrapper, given = WRAPPERS[variant]
    wrapper = wrapper_of(of_wrapper, **given)
    model = ResValTransformer.from_x_transformers(wrapper)
    with torch.no_grad():
        wanted = wrapper(ids(D_VOCAB))
        torch.testing.assert_close(model(ids(D_VOCAB)), wanted, atol=2e-5, rtol=0)
    assert bool(model.cfg.streams) == given.get("add_value_residual", True)
    stated = ResValTransformer.from_x_transformers(
        wrapper.state_dict(),
        {**keywords(**given), **of_wrapper, "tie_embedding_scale": WIDTH**-0.5},
    )
    with torch.no_grad():
        torch.testing.assert_close(stated(ids(D_VOCAB)), wanted, atol=2e-5, rtol=0)


@needs_package
@pytest.mark.parametrize(
    ("wrapper", "layers", "message"),
    [
        ({}, {"sandwich_norm": True}, "sandwich_norm=True of x-transformers has no counterpart"),
        ({}, {"pre_norm": False}, "pre_norm=False of x-transformers has no counterpart here"),
        ({}, {"macaron": True}, "a Scale of x-transformers has no counterpart here"),
        ({}, {"attn_pre_talking_heads": True}, "a Conv2d of x-transformers has no counterpart"),
        ({"num_memory_tokens": 2}, {}, "num_memory_tokens=2 of x-transformers has no counterpart"),
        ({"post_emb_norm": True}, {}, r"its weights have post_emb_norm\.gamma, which has no place"),
        ({}, {"attn_max_attend_past": 40}, "max_attend_past=40 of x-transformers has no"),
        ({}, {"attn_sparse_topk": 40}, "sparse_topk=40 of x-transformers has no counterpart here"),
        ({}, {"attn_softclamp_logits": True}, "softclamp_logits=True of x-transformers has no"),
        ({}, {"attn_sigmoid": True}, "logits differ from the original's by up to"),
        ({}, {"shift_tokens": 1}, "a ShiftTokens of x-transformers has no counterpart here"),
        ({}, {"alibi_pos_bias": True}, "rel_pos=AlibiPositionalBias of x-transformers has no"),
        ({}, {"rotary_xpos": True}, r"its weights have attn_layers\.rotary_pos_emb\.scale"),
        ({}, {"rotary_pos_emb": True, "rotary_interpolation_factor": 2.0}, "interpolation_fac"),
        ({}, {"custom_layers": ("a", "a", "f")}, "layers in another order than a, f, a, f"),
        ({}, {"pre_norm_has_final_norm": False}, "pre_norm_has_final_norm=False of x-tr"),
        ({"return_only_embed": True}, {}, "return_only_embed=True of x-transformers has no"),
    ],
)  # fmt: skip
def test_a_wrapper_of_other_parts_is_refused_by_their_name(
    wrapper: dict[str, Any], layers: dict[str, Any], message: str
) -> None:
    if "custom_layers" in layers:
        layers = {**layers, "depth": None}
    with pytest.raises(ValueError, match=message) as raised:
        ResValTransformer.from_x_transformers(wrapper_of(wrapper, **layers))
    assert "\n" not in str(raised.value)


@needs_package
def test_what_is_no_wrapper_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a TransformerWrapper of x-transformers; got"):
        ResValTransformer.from_x_transformers(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="a state_dict of x-transformers needs the keywords"):
        ResValTransformer.from_x_transformers(state_of())
    with pytest.raises(ValueError, match="keywords= is for a state_dict"):
        ResValTransformer.from_x_transformers(wrapper_of({}), keywords())


@needs_package
def test_training_wrappers_of_wrappers_and_whole_folders_are_taken(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from x_transformers import AutoregressiveWrapper
    wrapper = wrapper_of({}, rotary_pos_emb=True)
    outer = AutoregressiveWrapper(wrapper).train()
    model = ResValTransformer.from_x_transformers(outer)
    assert outer.training
    assert wrapper.training
    folder = write(tmp_path / "outer", outer.state_dict(), keywords(rotary_pos_emb=True))
    with torch.no_grad():
        wanted = wrapper.eval()(ids(D_VOCAB))
        for each in (model, load_model(folder).model):
            torch.testing.assert_close(each(ids(D_VOCAB)), wanted, atol=2e-5, rtol=0)
