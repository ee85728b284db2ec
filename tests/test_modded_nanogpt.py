"""Checkpoints of modded-nanogpt's records of November 2024, by formula."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resval_lens import ResValTransformer
from resval_lens.load import load_model
from tests.elsewhere import assert_as_any_model, drawn, ids
from tests.reference.value_residual import modded_nanogpt
from tests.test_formats import Payload, tokenizer

D_VOCAB, WIDTH, HEADS = 80, 64, 4


def state_of(skips: bool = True, depth: int = 6, width: int = WIDTH) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (D_VOCAB, width),
        "lm_head.weight": (D_VOCAB, width),
    }
    for layer in range(depth):
        name = f"transformer.h.{layer}"
        for each in ("c_q", "c_k", "c_v", "c_proj"):
            shapes[f"{name}.attn.{each}.weight"] = (width, width)
        shapes[f"{name}.attn.lamb"] = ()
        shapes[f"{name}.lambdas"] = (2,)
        shapes[f"{name}.mlp.c_fc.weight"] = (4 * width, width)
        shapes[f"{name}.mlp.c_proj.weight"] = (width, 4 * width)
    if skips:
        shapes["skip_weights"] = (depth - depth // 2,)
    state = drawn(shapes)
    for name in state:
        if name.endswith("lambdas"):
            state[name] += torch.tensor([1.0, 0.2])
        if name.endswith("lamb"):
            state[name] += 0.5
    state["lm_head.weight"] *= 20  # so that the cap counts
    return state


def write(file: Path, state: Any, wrapper: str = "_orig_mod.") -> Path:
    """As train_gpt2.py saves: the compiled model's names, in two precisions."""
    if isinstance(state, dict):
        state = {f"{wrapper}{name}": x.float() for name, x in state.items()}
    file.parent.mkdir(exist_ok=True)
    torch.save({"step": 3000, "code": "import os", "model": state, "optimizers": [{}]}, file)
    return file


@pytest.mark.parametrize("depth", [2, 6])
@pytest.mark.parametrize("skips", [True, False])
def test_logits_are_those_of_the_formulas(skips: bool, depth: int, tmp_path: Path) -> None:
    state = state_of(skips, depth)
    wanted = modded_nanogpt(state, ids(D_VOCAB), HEADS)
    file = write(tmp_path / "logs" / "state_step003000.pt", state)
    for path in (file, file.parent):
        model = load_model(path, settings={"heads": HEADS}).model
        with torch.no_grad():
            found = model(ids(D_VOCAB))
        torch.testing.assert_close(found, wanted.float(), atol=2e-5 * float(wanted.std()), rtol=0)
    assert found.abs().max() < 30
    assert wanted.abs().max() > 20
    double = load_model(file, settings={"heads": HEADS}, dtype=torch.float64).model
    with torch.no_grad():
        torch.testing.assert_close(double(ids(D_VOCAB)), wanted, atol=1e-5, rtol=0)


def test_it_is_as_any_model(tmp_path: Path) -> None:
    state = state_of()
    state["lm_head.weight"] /= 20
    file = write(tmp_path / "logs" / "state_step003000.pt", state, wrapper="")
    model = load_model(file, settings={"heads": HEADS}).model
    assert_as_any_model(model, ids(D_VOCAB), tmp_path / "saved")


def test_heads_are_of_128_numbers_unless_it_is_said(tmp_path: Path) -> None:
    file = write(tmp_path / "logs" / "state_step000000.pt", state_of(depth=2, width=256))
    assert load_model(file).model.cfg.n_heads == 2
    assert load_model(file, settings={"heads": 4}).model.cfg.n_heads == 4


def test_the_soft_cap_may_be_another(tmp_path: Path) -> None:
    state = state_of(depth=2)
    file = write(tmp_path / "logs" / "state_step000000.pt", state)
    for cap in (15, 0):
        model = load_model(file, settings={"heads": HEADS, "softcap": cap}).model
        wanted = modded_nanogpt(state, ids(D_VOCAB), HEADS, softcap=cap)
        with torch.no_grad():
            torch.testing.assert_close(model(ids(D_VOCAB)), wanted.float(), atol=1e-4, rtol=0)


def test_the_first_layers_share_does_nothing(tmp_path: Path) -> None:
    state = state_of()
    found = []
    for share in (0.1, 0.9):
        state["transformer.h.0.attn.lamb"] = torch.tensor(share)
        file = write(tmp_path / "logs" / "state_step000000.pt", state)
        with torch.no_grad():
            found.append(load_model(file, settings={"heads": HEADS}).model(ids(D_VOCAB)))
    assert torch.equal(*found)


def test_a_tokenizer_may_be_given(tmp_path: Path) -> None:
    file = write(tmp_path / "logs" / "state_step000000.pt", state_of(depth=2))
    with pytest.raises(ValueError, match=r"its tokenizer has \d+ tokens, and the model 80$"):
        ResValTransformer.from_pretrained(file, settings={"heads": HEADS}, tokenizer=tokenizer())


def _renamed(old: str, new: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.update({new: state.pop(old)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_renamed("skip_weights", "value_embeds.0.weight"), "have value_embeds.0.weight, of a rec"),
        (_renamed("skip_weights", "transformer.vte.weight"), "of a record of December 2024 or lat"),
        (_renamed("transformer.h.0.attn.lamb", "x"), "before 2024-11-06 have no value residual"),
        (_renamed("transformer.h.0.lambdas", "x"), "lack transformer.h.0.lambdas: records before"),
        (_renamed("transformer.h.3.attn.lamb", "x"), "lack transformer.h.3.attn.lamb"),
        (lambda state: state.update(x=torch.ones(1)), "its weights have x, which has no place"),
        (
            lambda state: state.update(skip_weights=torch.ones(2)),
            "skip_weights must have shape [3]; got [2]",
        ),
        (
            lambda state: state.update({"lm_head.weight": torch.ones(81, WIDTH)}),
            "lm_head.weight must have shape [80, 64]; got [81, 64]",
        ),
        (
            lambda state: state.update({"transformer.wte.weight": torch.ones(80)}),
            "transformer.wte.weight must be a matrix; got [80]",
        ),
        (
            lambda state: state["lm_head.weight"].fill_(float("inf")),
            "lm_head.weight holds NaN or infinite numbers",
        ),
        (lambda state: state.clear(), "its weights have no transformer.h.0.attn"),
    ],
)
def test_what_is_not_of_these_records_is_named(
    change: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path
) -> None:
    state = state_of()
    change(state)
    file = write(tmp_path / "logs" / "state_step000000.pt", state)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        load_model(file, settings={"heads": HEADS})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "d_model=64 is not a multiple of 128: give the setting 'heads'"),
        ({"heads": 3}, "heads=3 must divide d_model=64 into heads of even size"),
        ({"heads": 0}, "heads=0 must divide d_model=64"),
        ({"heads": 2.5}, "heads=2.5 must divide d_model=64"),
        ({"heads": 64}, "heads=64 must divide d_model=64 into heads of even size"),
        ({"heads": 4, "softcap": -1}, "softcap must be a finite number from 0 up; got -1"),
        ({"window": 4}, "takes no setting 'window'"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    settings: dict[str, float], message: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "logs" / "state_step000000.pt", state_of(depth=2))
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        load_model(file, settings=settings)
    assert "\n" not in str(raised.value)


def test_damage_is_one_line(tmp_path: Path) -> None:
    file = write(tmp_path / "logs" / "state_step000000.pt", state_of(depth=2))
    content = file.read_bytes()
    file.write_bytes(content[:5000])
    torch.save({"model": 3}, file.with_name("state_step000001.pt"))
    torch.save({"model": Payload(tmp_path / "ran")}, file.with_name("state_step000002.pt"))
    for step in range(3):
        with pytest.raises(ValueError, match="is not a checkpoint of modded-nanogpt") as raised:
            load_model(file.with_name(f"state_step00000{step}.pt"))
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match=r"several checkpoints; name one, like .*000002\.pt"):
        load_model(file.parent)


def test_halves_of_layers_are_the_same_number(tmp_path: Path) -> None:
    file = write(tmp_path / "logs" / "state_step000000.pt", state_of(depth=3))
    with pytest.raises(ValueError, match="skip_weights in 3 layers, whose halves are not"):
        load_model(file, settings={"heads": HEADS})
