"""The authors' language-model checkpoints, against a forward pass written from their format."""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from resval_lens.models.authors_language_model import load_authors_language_model

LAYERS, D, HEADS, MLP, VOCABULARY, POSITIONS = 3, 16, 4, 24, 11, 20


def drawn_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return 0.4 * torch.randn(shape, generator=generator)

    state = {"wte.weight": draw(VOCABULARY, D), "wpe.weight": draw(POSITIONS, D)}
    for i in range(LAYERS):
        for norm in ("ln1", "ln2"):
            state |= {f"blocks.{i}.{norm}.weight": draw(D) + 1, f"blocks.{i}.{norm}.bias": draw(D)}
        state |= {
            f"blocks.{i}.attn.c_attn.weight": draw(D, 3 * D),
            f"blocks.{i}.attn.c_attn.bias": draw(3 * D),
            f"blocks.{i}.attn.c_proj.weight": draw(D, D),
            f"blocks.{i}.attn.c_proj.bias": draw(D),
            f"blocks.{i}.ffn.c_fc.weight": draw(D, MLP),
            f"blocks.{i}.ffn.c_fc.bias": draw(MLP),
            f"blocks.{i}.ffn.c_proj.weight": draw(MLP, D),
            f"blocks.{i}.ffn.c_proj.bias": draw(D),
        }
    return {**state, "ln.weight": draw(D) + 1, "ln.bias": draw(D), "fc.weight": state["wte.weight"]}


def write(path: Path, state: Any, prefix: str = "") -> Path:
    state = {prefix + name: x for name, x in state.items()}
    torch.save({"updates": 3, "state_dict": state, "optimizer": {"lr": 0.1}}, path)
    return path


def forward(state: dict[str, Tensor], tokens: list[int], passes: bool) -> np.ndarray:
    """The network in NumPy, one token and one head at a time; values passed on or not."""
    p = {name: x.double().numpy() for name, x in state.items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
        return x * p[f"{name}.weight"] + p[f"{name}.bias"]

    x = [p["wte.weight"][token] + p["wpe.weight"][i] for i, token in enumerate(tokens)]
    before: list[np.ndarray] | None = None
    for layer in range(LAYERS):
        at = f"blocks.{layer}"
        qkv = [
            norm(row, f"{at}.ln1") @ p[f"{at}.attn.c_attn.weight"] + p[f"{at}.attn.c_attn.bias"]
            for row in x
        ]
        q, k, own = ([row[i * D : (i + 1) * D] for row in qkv] for i in range(3))
        v = (
            own
            if before is None or not passes
            else [a + b for a, b in zip(own, before, strict=True)]
        )
        before = own
        out = []
        for i in range(len(tokens)):
            z = np.zeros(D)
            for head in range(HEADS):
                part = slice(head * D // HEADS, (head + 1) * D // HEADS)
                scores = np.array([q[i][part] @ k[j][part] for j in range(i + 1)])  # not divided
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                z[part] = sum(w * v[j][part] for j, w in enumerate(weights))
            out.append(z @ p[f"{at}.attn.c_proj.weight"] + p[f"{at}.attn.c_proj.bias"])
        x = [a + b for a, b in zip(x, out, strict=True)]
        for i, row in enumerate(x):
            pre = norm(row, f"{at}.ln2") @ p[f"{at}.ffn.c_fc.weight"] + p[f"{at}.ffn.c_fc.bias"]
            gelu = np.array([0.5 * u * (1 + math.erf(u / math.sqrt(2))) for u in pre])
            x[i] = row + gelu @ p[f"{at}.ffn.c_proj.weight"] + p[f"{at}.ffn.c_proj.bias"]
    return np.array([norm(row, "ln") @ p["fc.weight"].T for row in x])


@pytest.mark.parametrize("streams", ["", "v"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_logits_are_those_of_the_format(tmp_path: Path, streams: str, prefix: str) -> None:
    state, tokens = drawn_state(), [3, 1, 4, 1, 5, 9]
    model = load_authors_language_model(write(tmp_path / "x.pt", state, prefix), streams, n_heads=4)
    with torch.no_grad():
        logits = model(torch.tensor([tokens]))[0].double().numpy()
    np.testing.assert_allclose(logits, forward(state, tokens, streams == "v"), atol=2e-4)


def test_positions_can_be_left_behind(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pt", drawn_state())
    whole = load_authors_language_model(path, "v", n_heads=4)
    part = load_authors_language_model(path, "v", n_heads=4, n_ctx=6)
    assert (whole.cfg.n_ctx, part.cfg.n_ctx) == (POSITIONS, 6)
    tokens = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(part(tokens), whole(tokens))


def test_nothing_else_is_unpickled(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "harm",))

    for content in (pickle.dumps(Harmful()), b"", b"half a file"):
        (tmp_path / "x.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.pt is not a checkpoint of tensors"):
            load_authors_language_model(tmp_path / "x.pt")
    torch.save({"state_dict": {"wte.weight": Harmful()}}, tmp_path / "y.pt")
    with pytest.raises(ValueError, match=r"y\.pt is not a checkpoint of tensors"):
        load_authors_language_model(tmp_path / "y.pt")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("wte.weight"), "lacks wte.weight"),
        (lambda s: s.pop("blocks.1.attn.c_proj.bias"), r"lacks blocks\.1\.attn\.c_proj\.bias"),
        (
            lambda s: s.update({"ln.weight": torch.zeros(3)}),
            r"ln\.weight must be \[16\]; got \[3\]",
        ),
        (lambda s: s.update({"ln.bias": torch.zeros(16).int()}), r"ln\.bias must hold floats"),
        (lambda s: s.update({"fc.weight": torch.zeros(11, 16)}), "must be wte.weight"),
        (lambda s: s.update({"more.weight": torch.zeros(3)}), r"has the unknown more\.weight"),
        (lambda s: s.update({"blocks.7.ln1.weight": torch.zeros(16)}), "expected blocks 0, 1"),
    ],
)
def test_what_is_not_such_a_checkpoint_is_named(tmp_path: Path, change: Any, message: str) -> None:
    state = drawn_state()
    change(state)
    with pytest.raises(ValueError, match=rf"x\.pt.*{message}"):
        load_authors_language_model(write(tmp_path / "x.pt", state), n_heads=4)


def test_heads_that_do_not_divide_the_width_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="n_heads=5 must divide the width 16"):
        load_authors_language_model(write(tmp_path / "x.pt", drawn_state()), n_heads=5)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no\.pt is missing"):
        load_authors_language_model(tmp_path / "no.pt")
