"""Weight circuits: paths multiplied out by hand, TransformerLens's scores, and live heads."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from resval_lens.analyses.attribution.values import z_parts
from resval_lens.analyses.attribution.weights import (
    Path,
    composition_scores,
    copying_scores,
    ov_circuit,
    ov_paths,
    own_token_scores,
    paths,
)
from resval_lens.lens.hook_names import ResValCache
from resval_lens.streams import AttentionStream
from resval_lens.transformer import ResValTransformer
from tests.classifiers import model_of
from tests.helpers import ARCHITECTURES, stock_model, tiny_model, tiny_tokens

TOKENS = tiny_tokens(batch=3)
STREAMS: dict[str, Any] = {
    "none": "",
    "sum": "v",
    "raw": AttentionStream("v", carry="raw"),
    "first": AttentionStream("v", source="first", carried=0.5),
    "all sum": AttentionStream("v", source="all", carried=0.5),
    "pair": AttentionStream("v", mix="pair", own=0.5, carried=0.25),
    "pair raw": AttentionStream("v", mix="pair", carry="raw", own=0.5, carried=0.25),
    "svformer": AttentionStream("v", source="first", mix="pair", own=0, carried=1),
    "scalar": AttentionStream("v", source="all", mix="scalar", own=0.8),
    "convex": AttentionStream("v", mix="convex", carried=0.3),
    "learned pair": AttentionStream("v", source="all", mix="learned_pair"),
    "head": AttentionStream("v", source="all", mix="head", carried=0.4),
    "matrix": AttentionStream("v", mix="matrix", carried=0.6),
    "matrix all raw": AttentionStream("v", source="all", carry="raw", mix="matrix", own=0.7),
    "layers": AttentionStream("v", layers=(2,)),
}
each_stream = pytest.mark.parametrize("streams", STREAMS.values(), ids=STREAMS.keys())
SIZES = {"mha": {}, "gqa": ARCHITECTURES["gqa"], "ungrouped": ARCHITECTURES["gqa-ungrouped"]}
each_size = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())


def carried_by_hand(
    model: ResValTransformer, layer: int, which: int, heads: int, of: str
) -> np.ndarray:
    """Weight of the link into ``layer`` from its source number ``which``: [reader, source head]."""
    stream = next(stream for stream in model.cfg.streams if stream.of == of)
    mixing = {
        name.split(".")[-1]: parameter.detach().numpy()
        for name, parameter in model.named_parameters()
        if name.startswith(f"blocks.{layer}.attn.mixes.{of}.")
    }
    if "carried" not in mixing:
        return np.eye(heads) * stream.carried
    weight = mixing["carried"][which]
    if stream.mix == "matrix":
        return weight
    return np.diag(np.broadcast_to(weight, heads))


def own_by_hand(model: ResValTransformer, layer: int, of: str) -> float:
    stream = next(stream for stream in model.cfg.streams if stream.of == of)
    mixing = dict(model.named_parameters())
    prefix = f"blocks.{layer}.attn.mixes.{of}."
    if stream.mix == "learned_pair":
        return mixing[f"{prefix}own"].item()
    if stream.mix == "convex":
        return 1 - mixing[f"{prefix}carried"].item()
    assert stream.own is not None
    return stream.own


def chains(model: ResValTransformer, of: str, source: int, layer: int, heads: int) -> np.ndarray:
    """Σ over all ways from ``source`` to ``layer`` of the product of weights, way by way."""
    stream = next((stream for stream in model.cfg.streams if stream.of == of), None)
    if stream is None or not stream.receives(layer):
        return np.eye(heads) * (source == layer)
    if source == layer:
        return np.eye(heads) * own_by_hand(model, layer, of)
    total = np.zeros((heads, heads))
    for which, before in enumerate(stream.sources(layer)):
        if stream.carry == "raw":
            passed = np.eye(heads) * (before == source)
        else:
            passed = chains(model, of, source, before, heads)
        total += carried_by_hand(model, layer, which, heads, of) @ passed
    return total


# Paths and their weights


@each_size
@each_stream
def test_a_path_weighs_what_its_chains_of_links_do(streams: Any, sizes: dict[str, Any]) -> None:
    model = tiny_model(streams, **sizes, dtype=torch.float64)
    heads = sizes.get("n_key_value_heads", 4)
    found = paths(model)
    for source, layer, head, source_head in np.ndindex(3, 3, 4, heads):
        weight = chains(model, "v", source, layer, heads)[head * heads // 4, source_head]
        path = Path(source, layer, head, source_head)
        assert found.get(path, 0) == pytest.approx(weight), path


@pytest.mark.parametrize("of", ["q", "k"])
def test_queries_and_keys_have_paths_too(of: Any) -> None:
    stream = AttentionStream(of, source="all", mix="head")
    model = tiny_model(stream, n_key_value_heads=2, dtype=torch.float64)
    heads = 4 if of == "q" else 2
    found = paths(model, of)
    assert len(found) == (1 + 2 + 3) * 4
    assert len(paths(model, "v")) == 3 * 4
    for path, weight in found.items():
        reader = path.head * heads // 4
        assert path.source_head == reader
        by_hand = chains(model, of, path.source, path.layer, heads)[reader, reader]
        assert weight == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("streams", "expected"),
    [
        ("none", {(0, 0), (1, 1), (2, 2)}),
        ("raw", {(0, 0), (1, 1), (0, 1), (2, 2), (1, 2)}),
        ("sum", {(0, 0), (1, 1), (0, 1), (2, 2), (1, 2), (0, 2)}),
        ("first", {(0, 0), (1, 1), (0, 1), (2, 2), (0, 2)}),
        ("layers", {(0, 0), (1, 1), (2, 2), (1, 2)}),
    ],
)
def test_which_paths_there_are(streams: str, expected: set[tuple[int, int]]) -> None:
    found = ov_paths(tiny_model(STREAMS[streams]))
    assert {(path.source, path.layer) for path in found} == expected
    assert len(found) == 4 * len(expected)


def test_a_matrix_connects_every_head_with_every_head() -> None:
    found = ov_paths(tiny_model(STREAMS["matrix"], n_layers=2))
    assert len(found) == 4 + 4 + 16
    assert str(found[0]) == "a0.h0"
    assert str(found[-1]) == "a1.h3 from 0"
    assert found[-1] == Path(0, 1, 3, 3)


# OV circuits


@each_size
@each_stream
@torch.no_grad()
def test_ov_circuits_are_what_heads_do_to_what_layers_read(
    streams: Any, sizes: dict[str, Any]
) -> None:
    """On a live model without norms and value biases: z parts times W_O, from the circuits."""
    model = tiny_model(streams, **sizes, dtype=torch.float64, normalization_type=None)
    for name, parameter in model.named_parameters():
        if name.endswith("b_V"):
            parameter.zero_()
    _, cache = model.run_with_cache(TOKENS)
    found = ov_paths(model)
    for layer, parts in enumerate(z_parts(model, cache)):
        for source, z in parts.items():
            for head in range(4):
                output = z[:, :, head] @ model.blocks[layer].attn.W_O[head]
                heads = [p.source_head for p in found if p[:3] == (source, layer, head)]
                circuits = [ov_circuit(model, layer, head, source, other).AB for other in heads]
                attended = cache["pattern", layer][:, head] @ cache["resid_pre", source]
                torch.testing.assert_close(sum(attended @ ov for ov in circuits), output)


def test_a_classic_models_circuits_are_transformer_lenses() -> None:
    model, stock = tiny_model("", n_key_value_heads=2), stock_model(n_key_value_heads=2)
    for layer in range(3):
        for head in range(4):
            expected = stock.blocks[layer].attn.OV[head].AB
            torch.testing.assert_close(ov_circuit(model, layer, head).AB, expected.detach())


@pytest.mark.parametrize(
    ("streams", "arguments", "message"),
    [
        ("raw", (2, 1, 0), r"a2\.h1 from 0: no values flow that way; head 1 .* layers \[1, 2\]"),
        ("sum", (1, 1, 2), r"a1\.h1 from 2: no values flow that way; head 1 .* layers \[0, 1\]"),
        ("sum", (1, 4), r"a1\.h4: no values flow that way; there is no head 4 of layer 1"),
        ("sum", (2, 1, 1, 0), r"source_head=0: a2\.h1 from 1 reads heads \[1\]"),
        ("matrix", (1, 2, 0), r"a1\.h2 from 0: every head reads .* name a source_head, 0 to 3"),
        ("matrix", (1, 2, 0, 4), r"source_head=4: a1\.h2 from 0 reads heads \[0, 1, 2, 3\]"),
    ],
    ids=str,
)
def test_a_circuit_that_is_not_there_is_refused(
    streams: str, arguments: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ov_circuit(tiny_model(STREAMS[streams]), *arguments)


@pytest.mark.parametrize(
    "use",
    [
        ov_paths,
        copying_scores,
        lambda model: ov_circuit(model, 1, 0),
        lambda model: composition_scores(model, "V"),
        lambda model: own_token_scores(model, TOKENS),
    ],
    ids=["ov_paths", "copying_scores", "ov_circuit", "composition_scores", "own_token_scores"],
)
def test_a_gate_has_no_weight_of_its_own(use: Any) -> None:
    with pytest.raises(ValueError, match="the gate of the v stream depends on the token"):
        use(tiny_model(AttentionStream("v", mix="gate")))


def test_circuits_behind_an_added_gate_are_those_of_a_gate_that_is_one() -> None:
    gated = tiny_model("v(source=tokens, mix=added_gate)", dtype=torch.float64)
    open_ = gated.with_streams("v(source=tokens)")
    for ours, theirs in zip(gated.blocks, open_.blocks, strict=True):
        theirs.attn.mixes["v"].table.data.copy_(ours.attn.mixes["v"].table)
    assert copying_scores(gated) == pytest.approx(copying_scores(open_))
    both = (composition_scores(model, "V").scores for model in (gated, open_))
    torch.testing.assert_close(*both)


# Copying


def plain(x: Tensor) -> np.ndarray:
    return x.detach().numpy()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("streams", ["none", "pair", "matrix"])
def test_copying_is_the_eigenvalues_share_of_the_whole_circuit(streams: str, tied: bool) -> None:
    model = tiny_model(STREAMS[streams], dtype=torch.float64, tied_embedding=tied)
    found = copying_scores(model)
    assert set(found) == set(ov_paths(model))
    for path, score in found.items():
        weight = chains(model, "v", path.source, path.layer, 4)[path.head, path.source_head]
        w_v = plain(model.blocks[path.source].attn.W_V[path.source_head])
        w_o = plain(model.blocks[path.layer].attn.W_O[path.head])
        whole = plain(model.embed.W_E) @ (weight * w_v) @ w_o @ plain(model.unembed.W_U)
        eigenvalues = np.linalg.eigvals(whole)  # d_vocab of them, all but d_head of them 0
        expected = eigenvalues.sum().real / np.abs(eigenvalues).sum()
        assert score == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
def test_a_link_that_copies_and_one_that_anticopies() -> None:
    model = tiny_model(
        AttentionStream("v", mix="pair", own=1, carried=-1), n_layers=2, n_heads=1, d_head=16
    )
    tied = model.embed.W_E.T
    model.unembed.W_U.copy_(tied)
    for block in model.blocks:
        block.attn.W_V.copy_(torch.eye(16)[None])
        block.attn.W_O.copy_(torch.eye(16)[None])
    scores = {str(path): score for path, score in copying_scores(model).items()}
    assert scores == pytest.approx({"a0.h0": 1, "a1.h0": 1, "a1.h0 from 0": -1})


def test_a_path_that_carries_nothing_has_no_copying_score() -> None:
    scores = {str(path): s for path, s in copying_scores(tiny_model(STREAMS["svformer"])).items()}
    assert np.isnan(scores["a1.h0"])
    assert abs(scores["a1.h0 from 0"]) <= 1


def own_token_by_hand(
    model: ResValTransformer,
    cache: ResValCache,
    path: Path,
    weight: float,
    positions: list[int],
    top: int,
) -> float:
    ends_early = path.source == 0 or model.cfg.attn_only
    before = cache["hook_embed"] if ends_early else cache["resid_post", 0]
    ln1, hits = model.blocks[path.source].ln1, []
    for prompt, position in enumerate(positions):
        x = plain(before)[prompt, position]
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * plain(ln1.w)
        w_v = plain(model.blocks[path.source].attn.W_V[path.source_head])
        y = weight * x @ w_v @ plain(model.blocks[path.layer].attn.W_O[path.head])
        y = (y - y.mean()) / np.sqrt(y.var() + 1e-5)
        y = y * plain(model.ln_final.w) + plain(model.ln_final.b)
        logits = y @ plain(model.unembed.W_U) + plain(model.unembed.b_U)
        hits.append(int(TOKENS[prompt, position]) in np.argsort(-logits)[:top])
    return float(np.mean(hits))


@pytest.mark.parametrize("attn_only", [False, True])
@pytest.mark.parametrize("streams", ["none", "pair", "matrix"])
def test_own_token_scores_are_logits_by_hand(streams: str, attn_only: bool) -> None:
    model = tiny_model(STREAMS[streams], dtype=torch.float64, attn_only=attn_only)
    weights, positions = paths(model), [6, 0, 3]
    found = own_token_scores(model, TOKENS, torch.tensor(positions), top=4)
    assert set(found) == set(weights)
    assert len(set(found.values())) > 2
    _, cache = model.run_with_cache(TOKENS)
    for path, score in found.items():
        expected = own_token_by_hand(model, cache, path, weights[path], positions, 4)
        assert score == pytest.approx(expected), path


def test_own_tokens_are_the_last_ones_by_default_and_all_among_the_whole_vocabulary() -> None:
    model = tiny_model("v")
    last = own_token_scores(model, TOKENS, torch.full((3,), 6))
    assert own_token_scores(model, TOKENS) == last
    assert set(own_token_scores(model, TOKENS, top=13).values()) == {1.0}


def test_a_path_of_weight_zero_copies_nothing() -> None:
    scores = own_token_scores(tiny_model(STREAMS["svformer"]), TOKENS, top=13)
    assert {str(path) for path, score in scores.items() if score == 0} == {
        f"a{layer}.h{head}" for layer in (1, 2) for head in range(4)
    }


def test_own_token_scores_survive_folding_the_norms() -> None:
    model = tiny_model("v", dtype=torch.float64)
    before = own_token_scores(model, TOKENS, top=3)
    model.process_weights_(fold_value_biases=False, center_writing_weights=False)
    assert own_token_scores(model, TOKENS, top=3) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"positions": torch.tensor([0, 1])},
            r"one of 0 to 6 for each of the 3 prompts; got \[0, 1",
        ),
        ({"positions": torch.tensor([0, 1, 7])}, "positions must be one of 0 to 6"),
        ({"positions": torch.tensor([0, -1, 2])}, "positions must be one of 0 to 6"),
        ({"top": 0}, "top must lie between 1 and 13; got 0"),
        ({"top": 14}, "top must lie between 1 and 13; got 14"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("unchecked_annotations")
def test_tokens_that_are_not_there_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        own_token_scores(tiny_model("v"), TOKENS, **arguments)


@pytest.mark.parametrize("use", [copying_scores, lambda model: own_token_scores(model, TOKENS)])
def test_a_model_that_does_not_answer_in_its_own_tokens_is_refused(use: Any) -> None:
    with pytest.raises(ValueError, match="a classifier has no embedding"):
        use(model_of("v"))
    with pytest.raises(ValueError, match="d_vocab_out=5 differs from d_vocab=13"):
        use(tiny_model("v", d_vocab_out=5))


# Composition


@pytest.mark.parametrize("mode", ["Q", "K", "V"])
@each_size
def test_a_classic_models_scores_are_transformer_lenses(mode: Any, sizes: dict[str, Any]) -> None:
    found = composition_scores(tiny_model("", **sizes), mode)
    with torch.no_grad():
        expected = stock_model(**sizes).all_composition_scores(mode)
    assert [str(path) for path in found.writers] == [
        f"a{i}.h{j}" for i in range(3) for j in range(4)
    ]
    assert found.readers == found.writers or sizes
    torch.testing.assert_close(found.scores.reshape(3, 4, 3, 4), expected)
    assert (expected > 0).sum() == 3 * 16


@pytest.mark.parametrize("mode", ["Q", "K", "V"])
@pytest.mark.parametrize("n_key_value_heads", [None, 2])
def test_scores_along_links_are_norms_of_products(mode: Any, n_key_value_heads: Any) -> None:
    model = tiny_model("qkv", n_key_value_heads=n_key_value_heads, dtype=torch.float64)
    found = composition_scores(model, mode)
    attn = [block.attn for block in model.blocks]

    def ov(path: Path) -> np.ndarray:
        return plain(attn[path.source].W_V[path.head]) @ plain(attn[path.layer].W_O[path.head])

    def reading(path: Path) -> np.ndarray:
        source, layer, head = path[:3]
        if mode == "V":
            return ov(path)
        if mode == "Q":
            return plain(attn[source].W_Q[head]) @ plain(attn[layer].W_K[head]).T
        return plain(attn[source].W_K[head]) @ plain(attn[layer].W_Q[head]).T

    assert len(found.readers) == len(found.writers) == 6 * 4
    for i, writer in enumerate(found.writers):
        for j, reader in enumerate(found.readers):
            a, b = ov(writer), reading(reader)
            norms = np.linalg.norm(a) * np.linalg.norm(b)
            expected = np.linalg.norm(a @ b) / norms if writer.layer < reader.source else 0
            assert found.scores[i, j].item() == pytest.approx(expected)


def test_a_writer_meets_a_link_only_before_the_links_source() -> None:
    found = composition_scores(tiny_model("v"), "V")
    scores = {
        (str(writer), str(reader)): found.scores[i, j].item()
        for i, writer in enumerate(found.writers)
        for j, reader in enumerate(found.readers)
    }
    assert scores["a0.h0", "a2.h1 from 1"] > 0  # layer 1's values, read after layer 0 wrote
    assert scores["a1.h0", "a2.h1 from 1"] == 0
    assert scores["a1.h0 from 0", "a2.h1"] > 0
    assert scores["a0.h0", "a2.h1 from 0"] == 0


@pytest.mark.usefixtures("unchecked_annotations")
def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="mode must be 'Q', 'K' or 'V'; got 'O'"):
        composition_scores(tiny_model("v"), "O")  # type: ignore[arg-type]
