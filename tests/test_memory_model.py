"""The simplified transformer computes what its formulas say, trains what it should, and saves."""

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resval_lens.analyses.papers.memory.model import MemoryConfig, MemoryTransformer, memory_config
from resval_lens.analyses.papers.memory.model.model import (
    MemoryAttention,
    key_distances,
    rotated,
    sinusoids,
)
from resval_lens.host import HookedTransformer, HookedTransformerConfig
from resval_lens.models.presets import ENCODINGS
from resval_lens.streams import AttentionStream
from resval_lens.transformer import ResValTransformer
from tests.reference.memory import logits_of, turned

TOKENS = torch.tensor([[3, 0, 3, 6, 1, 1, 5], [2, 2, 4, 0, 6, 3, 2]])


def model_of(
    positions: Any = "relative", streams: Any = "", seed: int = 0, **settings: Any
) -> MemoryTransformer:
    """A small model in double precision, every trained matrix drawn large enough to matter."""
    sizes = {"d_model": 8, "n_ctx": 9, "dtype": torch.float64, "initial_std": 2.0}
    cfg = memory_config(7, positions, streams, **{**sizes, **settings})
    return MemoryTransformer(cfg, generator=torch.Generator().manual_seed(seed))


def arrays(model: MemoryTransformer) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy() for name, p in model.named_parameters()}


def by_hand(model: MemoryTransformer, tokens: Tensor) -> Tensor:
    cfg = model.cfg
    mixes = {stream.of: (stream.own, stream.carried) for stream in cfg.streams}
    return torch.from_numpy(
        logits_of(
            arrays(model),
            tokens.tolist(),
            cfg.positions,
            cfg.position_layers,
            cfg.n_layers,
            cfg.alibi_slope,
            mixes,
        )
    )


# Against loops


@pytest.mark.parametrize(
    ("n_layers", "layers"), [(1, (0,)), (2, (0,)), (2, (0, 1)), (3, (0, 1, 2))], ids=str
)
@pytest.mark.parametrize("streams", ["", "v", "qkv"])
@pytest.mark.parametrize("kind", ENCODINGS)
def test_logits_are_those_of_the_formulas(
    kind: str, streams: str, n_layers: int, layers: tuple[int, ...]
) -> None:
    model = model_of(kind, streams, n_layers=n_layers, position_layers=layers, alibi_slope=0.3)
    torch.testing.assert_close(model(TOKENS), by_hand(model, TOKENS), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ENCODINGS)
def test_logits_of_a_pair_mix(kind: str) -> None:
    model = model_of(kind, AttentionStream("v", mix="pair", own=0.5, carried=0.7))
    torch.testing.assert_close(model(TOKENS), by_hand(model, TOKENS), rtol=1e-10, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(ENCODINGS),
    d=st.sampled_from([2, 4, 6]),
    length=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_logits_of_any_size(kind: str, d: int, length: int, seed: int) -> None:
    model = model_of(kind, "v", seed, d_model=d, embed_std=0.7)
    tokens = torch.randint(0, 7, (1, length), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(model(tokens), by_hand(model, tokens), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ENCODINGS)
def test_the_last_position_and_one_alone_count(kind: str) -> None:
    model = model_of(kind, "v")
    assert model(TOKENS[0]).equal(model(TOKENS[:1]))
    torch.testing.assert_close(model(TOKENS[:, :4]), model(TOKENS)[:, :4], rtol=1e-10, atol=1e-10)


def test_single_precision_is_the_default() -> None:
    model = model_of("relative", "v")
    single = model_of("relative", "v", dtype=torch.float32)
    assert memory_config(7).dtype == torch.float32
    assert single(TOKENS).dtype == torch.float32
    torch.testing.assert_close(single(TOKENS).double(), model(TOKENS), rtol=1e-3, atol=1e-3)


def test_a_model_made_double_later_keeps_its_precision() -> None:
    single = model_of("alibi", "v", dtype=torch.float32, alibi_slope=0.3).double()
    torch.testing.assert_close(single(TOKENS), by_hand(single, TOKENS), rtol=1e-10, atol=1e-10)


# Against TransformerLens


def stock_twin(model: MemoryTransformer, **changes: Any) -> HookedTransformer:
    """A HookedTransformer with the same weights; W_F it does not have."""
    cfg = model.cfg
    stock = HookedTransformer(
        HookedTransformerConfig(
            n_layers=cfg.n_layers,
            d_model=cfg.d_model,
            d_head=cfg.d_model,
            n_heads=1,
            n_ctx=cfg.n_ctx,
            d_vocab=cfg.d_vocab,
            attn_only=True,
            normalization_type=None,
            dtype=cfg.dtype,
            device="cpu",
            **changes,
        )
    )
    theirs = dict(stock.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in theirs:
                theirs[name].copy_(parameter)
    ours = {name for name, _ in model.named_parameters()} - {"feed_forward.W_F"}
    unused = set() if cfg.in_the_stream else {"pos_embed.W_pos"}
    assert ours == set(theirs) - unused
    return stock


def without_feed_forward(model: MemoryTransformer) -> MemoryTransformer:
    with torch.no_grad():
        model.feed_forward.W_F.zero_()
    return model


@pytest.mark.parametrize("kind", ["absolute", "sinusoidal"])
def test_absolute_positions_are_transformer_lenss(kind: str) -> None:
    model = without_feed_forward(model_of(kind))
    stock = stock_twin(model)
    torch.testing.assert_close(model(TOKENS), stock(TOKENS), rtol=1e-11, atol=1e-11)
    ours, theirs = (each.run_with_cache(TOKENS)[1] for each in (model, stock))
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-11, atol=1e-11)


def test_alibi_is_transformer_lenss_with_its_single_heads_slope() -> None:
    """TransformerLens's one head has slope 2^(−8/1), in every layer."""
    model = model_of("alibi", alibi_slope=2.0**-8, position_layers=(0, 1))
    stock = stock_twin(without_feed_forward(model), positional_embedding_type="alibi")
    torch.testing.assert_close(model(TOKENS), stock(TOKENS), rtol=1e-11, atol=1e-11)
    other = without_feed_forward(model_of("alibi", alibi_slope=2.0**-7, position_layers=(0, 1)))
    assert (other(TOKENS) - stock(TOKENS)).abs().max() > 1e-4


@pytest.mark.parametrize("adjacent", [False, True])
def test_rotary_is_transformer_lenss(adjacent: bool) -> None:
    """In halves as it is; in adjacent pairs with the dimensions of q and k put in that order."""
    model = without_feed_forward(model_of("rotary", position_layers=(0, 1)))
    stock = stock_twin(
        model,
        positional_embedding_type="rotary",
        rotary_dim=model.cfg.d_model,
        rotary_adjacent_pairs=adjacent,
    )
    if adjacent:
        order = torch.arange(8).view(2, 4).T.flatten()  # 0, 4, 1, 5, ...
        with torch.no_grad():
            for block in stock.blocks:
                block.attn.W_Q.copy_(block.attn.W_Q[..., order])
                block.attn.W_K.copy_(block.attn.W_K[..., order])
    torch.testing.assert_close(model(TOKENS), stock(TOKENS), rtol=1e-10, atol=1e-10)


def test_one_relative_embedding_for_every_distance_tells_nothing() -> None:
    """It adds the same to every score of a query, and softmax drops that."""
    model = model_of("relative")
    base = model_of("relative", position_layers=())
    attn = model.blocks[0].attn
    assert isinstance(attn, MemoryAttention)
    with torch.no_grad():
        attn.W_R.copy_(attn.W_R[:1].expand_as(attn.W_R).clone())
        theirs = dict(model.named_parameters())
        for name, parameter in base.named_parameters():
            parameter.copy_(theirs[name])
    torch.testing.assert_close(model(TOKENS), base(TOKENS), rtol=1e-10, atol=1e-10)


# Positions


def test_rotation_keeps_lengths_and_tells_distances_alone() -> None:
    x = torch.randn(2, 6, 1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = rotated(x, 3)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    for t in range(6):
        expected = np.stack([turned(x[b, t, 0].numpy(), 3 + t) for b in range(2)])
        torch.testing.assert_close(y[:, t, 0], torch.from_numpy(expected))
    same = x[:1, :1].expand(1, 6, 1, 8)
    far = torch.einsum("bthd,bshd->ts", rotated(same, 0), rotated(same, 0))
    for distance in range(6):
        across = far.diagonal(-distance)
        torch.testing.assert_close(across, across[:1].expand_as(across))


def test_distances_count_from_the_newest_position() -> None:
    assert key_distances(3, 3).tolist() == [[0, -1, -2], [1, 0, -1], [2, 1, 0]]
    assert key_distances(1, 4).tolist() == [[3, 2, 1, 0]]


@pytest.mark.parametrize("d", [1, 4, 7])
def test_sinusoids(d: int) -> None:
    waves = sinusoids(5, d)
    for t in range(5):
        for i in range(d):
            angle = t / 10_000 ** ((i - i % 2) / d)
            expected = np.cos(angle) if i % 2 else np.sin(angle)
            assert waves[t, i].item() == pytest.approx(expected, abs=1e-12)


# Weights


def moments(x: Tensor) -> tuple[float, float]:
    return x.mean().item(), x.std().item()


def test_initial_weights() -> None:
    cfg = memory_config(400, "relative", d_model=256, n_ctx=300, embed_std=0.25, initial_std=0.5)
    model = MemoryTransformer(cfg, generator=torch.Generator().manual_seed(0))
    scale = 256**-0.5
    expected = {
        "embed.W_E": 0.25, "unembed.W_U": scale, "feed_forward.W_F": scale / 2,
        "blocks.0.attn.W_R": 0.25, "blocks.0.attn.W_K": scale / 2, "blocks.0.attn.W_V": scale,
        "blocks.0.attn.W_O": scale, "blocks.1.attn.W_K": scale / 2, "blocks.1.attn.W_V": scale,
        "blocks.1.attn.W_O": scale / 2,
    }  # fmt: skip
    found = dict(model.named_parameters())
    for name, std in expected.items():
        mean, sd = moments(found[name].detach())
        assert abs(mean) < 0.02 * std, name
        assert sd == pytest.approx(std, rel=0.01), name
    for layer in (0, 1):
        assert found[f"blocks.{layer}.attn.W_Q"][0].equal(torch.eye(256))
    assert not any(p.any() for name, p in found.items() if ".b_" in name)
    assert set(found) == set(expected) | {
        f"blocks.{layer}.attn.{name}" for layer in (0, 1) for name in ("W_Q", "b_Q", "b_K", "b_V",
                                                                       "b_O")
    } | {"unembed.b_U"}  # fmt: skip


@pytest.mark.parametrize(("kind", "share"), [("absolute", 1.0), ("sinusoidal", 0.5**0.5)])
def test_how_long_positions_in_the_stream_are(kind: Any, share: float) -> None:
    """Random ones as long as tokens, sines and cosines shorter by √2."""
    cfg = memory_config(300, kind, d_model=128, n_ctx=300, embed_std=0.5)
    model = MemoryTransformer(cfg)
    for table, wanted in ((model.embed.W_E, 1.0), (model.pos_embed.W_pos, share)):
        length = table.square().sum(1).mean().sqrt().item()
        assert length == pytest.approx(wanted * 0.5 * 128**0.5, rel=0.02)


def test_matrices_may_start_at_zero() -> None:
    model = model_of("absolute", "v", initial_std=0.0)
    zero = sorted(name for name, p in model.named_parameters() if p.requires_grad)
    assert zero == [
        "blocks.0.attn.W_K",
        "blocks.1.attn.W_K",
        "blocks.1.attn.W_O",
        "feed_forward.W_F",
    ]
    found = dict(model.named_parameters())
    assert not any(found[name].any() for name in zero)
    pattern = model.run_with_cache(TOKENS)[1]["pattern", 0][0, 0]
    torch.testing.assert_close(pattern[3, :4], torch.full((4,), 0.25, dtype=torch.float64))


@pytest.mark.parametrize("kind", ENCODINGS)
@pytest.mark.parametrize("n_layers", [1, 3])
def test_what_is_trained(kind: str, n_layers: int) -> None:
    model = model_of(kind, "qkv", n_layers=n_layers)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        *(f"blocks.{layer}.attn.W_K" for layer in range(n_layers)),
        f"blocks.{n_layers - 1}.attn.W_O",
        "feed_forward.W_F",
    }


def test_learned_mixing_is_trained_along() -> None:
    model = model_of("relative", AttentionStream("v", mix="scalar"))
    assert dict(model.named_parameters())["blocks.1.attn.mixes.v.carried"].requires_grad


def test_what_is_frozen_can_be_chosen() -> None:
    model = model_of("relative", frozen=("embed.*",))
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["embed.W_E"]


def test_the_generator_alone_decides_the_weights() -> None:
    torch.manual_seed(1)
    first = arrays(model_of("relative", seed=4))
    state = torch.random.get_rng_state()
    again = arrays(model_of("relative", "v", seed=4))
    assert torch.random.get_rng_state().equal(state)
    other = arrays(model_of("relative", seed=5))
    assert all((first[name] == again[name]).all() for name in first)
    assert not (first["embed.W_E"] == other["embed.W_E"]).all()
    default = arrays(MemoryTransformer(memory_config(7, d_model=8, n_ctx=9)))
    seeded = MemoryTransformer(
        memory_config(7, d_model=8, n_ctx=9), generator=torch.Generator().manual_seed(0)
    )
    assert all((default[name] == x).all() for name, x in arrays(seeded).items())


# Other streams, copies, saving


@pytest.mark.parametrize("share", [False, True])
def test_weights_run_with_other_streams(share: bool) -> None:
    model = model_of("relative", "v")
    assert not model.with_streams("")(TOKENS).equal(model(TOKENS))
    other = model.with_streams("", share_weights=share)
    assert other(TOKENS).equal(model_of("relative", "")(TOKENS))
    assert other.with_streams("v")(TOKENS).equal(model(TOKENS))
    assert (other.feed_forward.W_F.data_ptr() == model.feed_forward.W_F.data_ptr()) == share
    frozen = [name for name, p in other.named_parameters() if not p.requires_grad]
    assert frozen == [name for name, p in model.named_parameters() if not p.requires_grad]


@pytest.mark.parametrize("kind", ENCODINGS)
@pytest.mark.parametrize("streams", ["", AttentionStream("v", mix="pair", own=0.5, carried=0.7)])
def test_a_saved_model_loads_as_it_was(tmp_path: Path, kind: str, streams: Any) -> None:
    model = model_of(kind, streams, position_layers=(0, 1), alibi_slope=0.25, seed=3)
    model.save_pretrained(tmp_path / "model")
    loaded = MemoryTransformer.from_pretrained(tmp_path / "model")
    assert loaded(TOKENS).equal(model(TOKENS))
    assert loaded.cfg == model.cfg
    assert type(loaded.cfg) is MemoryConfig
    frozen = [name for name, p in loaded.named_parameters() if not p.requires_grad]
    assert frozen == [name for name, p in model.named_parameters() if not p.requires_grad]
    with pytest.raises(ValueError, match="holds a MemoryTransformer; load it with that class"):
        ResValTransformer.from_pretrained(tmp_path / "model")


def test_copies_and_state_dicts() -> None:
    model = model_of("relative", "v", seed=1)
    twin = copy.deepcopy(model)
    assert twin(TOKENS).equal(model(TOKENS))
    with torch.no_grad():
        twin.feed_forward.W_F.zero_()
    assert not twin(TOKENS).equal(model(TOKENS))
    other = model_of("relative", "v", seed=2)
    other.load_state_dict(model.state_dict())
    assert other(TOKENS).equal(model(TOKENS))


def test_settings_round_trip() -> None:
    cfg = memory_config(7, "alibi", "v", d_model=8, n_ctx=9, position_layers=(0, 1), alibi_slope=1)
    assert MemoryConfig.from_json(cfg.to_json()) == cfg
    assert MemoryConfig.from_dict(cfg.to_dict()) == cfg
    assert replace(cfg, positions="absolute").positional_embedding_type == "standard"
    assert [replace(cfg, positions=kind).in_the_stream for kind in ENCODINGS] == [
        True, False, True, False, False
    ]  # fmt: skip


# What cannot be


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"positions": "learned"}, "positions must be one of absolute, relative, sinusoidal, "
                                   "rotary, alibi; got 'learned'"),
        ({"embed_std": 0}, "embed_std must be a finite number above 0; got 0"),
        ({"embed_std": float("nan")}, "embed_std must be a finite number above 0; got nan"),
        ({"embed_std": "1"}, "embed_std must be a finite number above 0; got '1'"),
        ({"alibi_slope": -1.0}, "alibi_slope must be a finite number above 0; got -1.0"),
        ({"alibi_slope": float("inf")}, "alibi_slope must be a finite number above 0; got inf"),
        ({"initial_std": -0.5}, "initial_std must be a finite number from 0 up; got -0.5"),
        ({"initial_std": True}, "initial_std must be a finite number from 0 up; got True"),
        ({"position_layers": (0, 2)}, "position_layers=(0, 2) names layer 2; the model has layers "
                                      "0 to 1"),
        ({"position_layers": (-1,)}, "names layer -1"),
        ({"position_layers": 0}, "position_layers must be layer numbers, like (0,); got 0"),
        ({"positions": "rotary", "d_model": 7}, "rotary positions rotate pairs of dimensions; "
                                                "d_head=7"),
        ({"n_heads": 2}, "n_heads=2, d_head=8: there is one head a layer"),
        ({"d_head": 4}, "n_heads=1, d_head=4: there is one head a layer"),
        ({"n_key_value_heads": 1}, "n_key_value_heads=1: a simplified transformer has None"),
        ({"residual_mixing": "all"}, "(0, 1, 2)): a simplified transformer has ()"),
        ({"attn_only": False, "d_mlp": 4, "act_fn": "relu"}, "attn_only=False: a simplified "
                                                             "transformer has True"),
        ({"normalization_type": "LN"}, "normalization_type='LN': a simplified transformer has "
                                       "None"),
        ({"attention_dir": "bidirectional"}, "attention_dir='bidirectional'"),
        ({"attn_scores_soft_cap": 2.0}, "attn_scores_soft_cap=2.0"),
        ({"tied_embedding": True}, "tied_embedding=True"),
        ({"d_vocab_out": 3}, "d_vocab_out=3 must equal d_vocab=7"),
        ({"streams": "x"}, "streams='x' has 'x'"),
        ({"n_stairs": 3}, "MemoryConfig has no field 'n_stairs'"),
        ({"d_model": 0}, "d_model must be a whole number from 1 up; got 0"),
        ({"n_layers": 1.5}, "n_layers must be a whole number from 1 up; got 1.5"),
        ({"n_ctx": True}, "n_ctx must be a whole number from 1 up; got True"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
@pytest.mark.usefixtures("unchecked_annotations")
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        memory_config(7, **{"d_model": 8, "n_ctx": 9, **settings})


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize("kind", ENCODINGS)
def test_tokens_that_cannot_be_are_refused(kind: str) -> None:
    model = model_of(kind)
    for tokens, message in (
        (torch.tensor([[1, 7]]), "tokens has 7; the vocabulary has tokens 0 to 6"),
        (torch.tensor([[-1, 2]]), "tokens has -1; the vocabulary has tokens 0 to 6"),
        (torch.zeros(1, 10).long(), "tokens has 10 positions; the model has n_ctx=9"),
        (torch.zeros(1, 3), "tokens must be whole numbers of shape [batch, pos]; got torch.float"),
        (torch.zeros(1, 3).bool(), "tokens must be whole numbers of shape [batch, pos]; got torch"),
        (torch.zeros(1, 0).long(), "got torch.int64 [1, 0]"),
        (torch.zeros(1, 2, 3).long(), "got torch.int64 [1, 2, 3]"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            model(tokens)


def test_what_a_simplified_transformer_cannot_do_is_said() -> None:
    model = model_of()
    with pytest.raises(ValueError, match="a MemoryTransformer has no weights to process"):
        model.process_weights_()
    with pytest.raises(ValueError, match=r"made by MemoryTransformer\(memory_config\(...\)\)"):
        MemoryTransformer.from_hooked(model, "v")
