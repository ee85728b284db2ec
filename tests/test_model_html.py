"""A model as a notebook shows it: what the table prints is what the model computes."""

import re
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resval_lens.lens.model_html import model_html
from resval_lens.mixes import MIXES
from resval_lens.streams import AttentionStream
from resval_lens.transformer import ResValTransformer
from tests.helpers import tiny_model, tiny_tokens
from tests.mixes import sources_of

SMALL = {"attn_only": True, "d_model": 8, "n_ctx": 6, "use_fused": True}


@st.composite
def streams(draw: Any, of: str, n_layers: int) -> AttentionStream:
    """Any stream that a model of so many layers can have."""
    mix = draw(st.sampled_from(list(MIXES)))
    source = draw(st.sampled_from(sources_of(mix)))
    weight = st.sampled_from((-1.5, 0.25, 1.0, 0.123456))
    numbers = {"own": draw(weight), "carried": draw(weight)}
    try:
        AttentionStream(of, mix=mix, **numbers)
    except ValueError:  # not for this mix
        numbers = {"carried": draw(st.sampled_from((0.1, 0.625)))}
    if "bias" in MIXES[mix].further:
        numbers["bias"] = True
    some = st.lists(st.integers(1, n_layers - 1), min_size=1, unique=True).map(tuple)
    return AttentionStream(
        of, source=source, carry=draw(st.sampled_from(("sum", "raw"))), mix=mix,
        layers=draw(st.none() | some), detach=source != "tokens" and draw(st.booleans()), **numbers,
    )  # fmt: skip


@st.composite
def settings_of_models(draw: Any) -> dict[str, Any]:
    """Streams of some of q, k and v, on heads or key-value heads, in two to four layers."""
    n_layers = draw(st.integers(2, 4))
    several = draw(st.sets(st.sampled_from("qkv"), min_size=1))
    grouped = draw(st.sampled_from((
        {}, {"n_key_value_heads": 2},
        {"n_key_value_heads": 2, "ungroup_grouped_query_attention": True},
    )))  # fmt: skip
    drawn = tuple(draw(streams(of, n_layers)) for of in sorted(several))
    return {"streams": drawn, "n_layers": n_layers, **SMALL, **grouped}


def text_of(element: ElementTree.Element) -> str:
    return "".join(element.itertext())


def rows_of(model: ResValTransformer) -> list[list[str]]:
    """The table's cells as text: layer, what attention uses, what arrives, the hook point."""
    root = ElementTree.fromstring(model_html(model))
    head, body = root.find("table/thead"), root.find("table/tbody")
    assert [text_of(cell) for cell in head.iter("th")] == [
        "layer", "attention uses", "what arrives", "hook point of the link"
    ]  # fmt: skip
    assert {cell.get("scope") for cell in head.iter("th")} == {"col"}
    assert all(row[0].get("scope") == "row" for row in body)
    return [[text_of(cell) for cell in row] for row in body]


@settings(max_examples=60, deadline=None)
@given(chosen=settings_of_models())
def test_the_printed_equation_is_what_the_model_computes(chosen: dict[str, Any]) -> None:
    """total = own · local + link and link = Σ weight · passed, read off the page, in a real run."""
    model = tiny_model(**chosen)
    rows = rows_of(model)
    hooks = [row[3].split(" [")[0] for row in rows]
    assert sorted(hooks) == sorted(name for name in model.hook_dict if name.endswith("_link"))
    _, cache = model.run_with_cache(tiny_tokens(length=5))
    for (layer, used, arriving, hook), name in zip(rows, hooks, strict=True):
        of = re.fullmatch(rf"blocks\.{layer}\.attn\.hook_([qkv])_link", name)[1]
        stream = next(each for each in model.cfg.streams if each.of == of)
        equation = rf"{of} = (.*){of}_local \+ {of}_link( \(no gradient through the link\))?"
        own_text, blocked = re.fullmatch(equation, used).groups()
        assert bool(blocked) == stream.detach
        link, local, total = (cache[name.replace("_link", end)] for end in ("_link", "_local", ""))
        assert re.search(r"\[(.*)\]$", hook)[1] == (f"batch, pos, {link.shape[2]}, {link.shape[3]}")
        mixes = [p for p, _ in model.named_parameters() if p.startswith(f"blocks.{layer}.attn.mix")]
        learned = any(f".mixes.{of}." in parameter for parameter in mixes)
        assert arriving.endswith(" (learned)") == learned
        point = r"blocks\.\d+\.attn\.hook_[qkv](?:_local|_table)?"
        parts = re.findall(rf"(?:^| \+ )(.*?)({point})(?= \+ | \(learned\)|$)", arriving)
        assert len(parts) == len(stream.sources(int(layer)))
        passed = [cache[point] for _, point in parts]
        if stream.how.is_gated:
            own_share = "(1 − g) · " if stream.mix == "gate" else ""
            assert (own_text, parts[0][0]) == (own_share, "g (per token and head) · ")
            assert_gated(total, local, passed[0], stream)
            continue
        close(total, [weighted(own_text, local), link])
        if stream.how.crosses_heads:
            n = model.cfg.n_key_value_heads if of != "q" and model.cfg.n_key_value_heads else 4
            assert [text for text, _ in parts] == [f"[{n} × {n} heads] "] * len(parts)
        else:
            close(link, [weighted(text, x) for (text, _), x in zip(parts, passed, strict=True)])


def weight_of(text: str) -> float:
    """``"0.5 · "`` is 0.5, nothing is 1."""
    return float(text.removesuffix(" · ").replace("−", "-")) if text else 1.0


def weighted(text: str, x: Tensor) -> Tensor:
    """What a source passes on times what is printed before it."""
    per_head = re.fullmatch(r"\((.*); per head\) · ", text)
    if per_head is None:
        return weight_of(text) * x
    weights = torch.tensor([weight_of(part) for part in per_head[1].split(", ")])
    return weights.repeat_interleave(x.shape[2] // len(weights))[:, None] * x


def close(found: Tensor, parts: list[Tensor]) -> None:
    """Equal to the sum of ``parts``, whose weights are printed in three digits."""
    error = (found - sum(parts)).abs()
    assert (error <= 6e-3 * sum(part.abs() for part in parts) + 1e-5).all()


def assert_gated(total: Tensor, local: Tensor, passed: Tensor, stream: AttentionStream) -> None:
    """total = local + g · (passed, or passed − local), one g for each token and head in its range:
    0 to 1, or the scale.
    """
    shares = stream.mix == "gate"
    apart = passed - local if shares else passed
    g = ((total - local) * apart).sum(-1, keepdim=True) / apart.square().sum(-1, keepdim=True)
    torch.testing.assert_close(total, local + g * apart, atol=1e-4, rtol=1e-4)
    assert ((g > 0) & (g < (1 if shares else 2))).all()


def test_fixed_weights_are_printed_as_they_are_set_and_ones_are_not() -> None:
    half = AttentionStream("v", mix="pair", own=0.5, carried=0.25)
    assert [row[1:3] for row in rows_of(tiny_model(half, n_layers=2))] == [
        ["v = 0.5 · v_local + v_link", "0.25 · blocks.0.attn.hook_v"]
    ]
    plain = tiny_model(AttentionStream("v", source="all", carry="raw"), n_layers=3)
    assert [row[1:] for row in rows_of(plain)] == [
        ["v = v_local + v_link", "blocks.0.attn.hook_v",
         "blocks.1.attn.hook_v_link [batch, pos, 4, 4]"],
        ["v = v_local + v_link", "blocks.0.attn.hook_v + blocks.1.attn.hook_v_local",
         "blocks.2.attn.hook_v_link [batch, pos, 4, 4]"],
    ]  # fmt: skip


def test_the_local_hook_holds_the_projection_before_its_weight() -> None:
    model = tiny_model(AttentionStream("v", mix="pair", own=0.5, carried=0.25), n_layers=2,
                       normalization_type=None)  # fmt: skip
    _, cache = model.run_with_cache(tiny_tokens())
    attn, x = model.blocks[1].attn, cache["resid_pre", 1]
    local = torch.einsum("bpd,hdk->bphk", x, attn.W_V) + attn.b_V
    torch.testing.assert_close(cache["v_local", 1], local)
    torch.testing.assert_close(cache["v", 1], 0.5 * local + 0.25 * cache["v", 0])
    assert "v = 0.5 · v_local + v_link" in rows_of(model)[0][1]


def test_learned_weights_are_those_of_now() -> None:
    model = tiny_model(AttentionStream("v", mix="learned_pair"), n_layers=2)
    mix = model.blocks[1].attn.mix("v")
    with torch.no_grad():
        mix.own.fill_(0.12345)
        mix.carried.fill_(-2.0)
    assert rows_of(model)[0][1:3] == [
        "v = 0.123 · v_local + v_link",
        "−2 · blocks.0.attn.hook_v (learned)",
    ]
    with torch.no_grad():
        mix.carried.fill_(1.0)
    assert rows_of(model)[0][2].startswith("1 · "), "a learned 1 is a weight like others"


@pytest.mark.parametrize(
    ("streams", "changes", "words"),
    [
        ("v", {}, ["3 layers × 4 heads of 4", "d_model 16", "d_mlp 64", "values", "float32"]),
        ("", {"attn_only": True}, ["attention only", "classic", 'No links: streams="".']),
        ("qv", {"dtype": torch.float64}, ["qv", "float64"]),
    ],
    ids=["values", "classic", "two in double"],
)
def test_the_heading_says_the_size(streams: str, changes: dict[str, Any], words: list[str]) -> None:
    model = tiny_model(streams, **changes)
    html = model._repr_html_()
    assert html == model_html(model)
    root = ElementTree.fromstring(html)
    assert root.find("strong").text == "ResValTransformer"
    heading = "".join([root.find("strong").text, root.find("strong").tail])
    for word in words:
        assert word in heading
    count = sum(x.numel() for x in model.state_dict().values() if x.is_floating_point())
    buffers = sum(x.numel() for _, x in model.named_buffers() if x.is_floating_point())
    assert f" {count - buffers:,} parameters" in heading
    assert (root.find("table") is None) == (streams == "")
    assert not re.search(r"<script|<style|\bid=|https?:", html)
