"""Head scores, repeated loss and the in-context learning score, against plain loops."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformer_lens import head_detector
from transformer_lens.head_detector import compute_head_attention_similarity_score, detect_head

from resval_lens import ResValTransformer
from resval_lens.analyses.attribution.heads import (
    RepeatedTokens,
    candidates,
    head_scores,
    icl_score,
    link_means,
    repeated_loss,
    repeated_tokens,
    token_losses,
)
from resval_lens.hooks import cut_links, edit_links
from resval_lens.models.classifier import ICLClassifier, classifier_config
from tests.helpers import adding_hooks, stock_model, tiny_model, tiny_tokens

SETTINGS: dict[str, dict[str, Any]] = {
    "classic": {},
    "values": {"streams": "v"},
    "grouped": {"streams": "qkv", "n_key_value_heads": 2},
    "rotary": {"streams": "v", "positional_embedding_type": "rotary"},
}
settings = pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
SCORES = ("previous", "duplicate", "prefix_matching")
leading = pytest.mark.parametrize("bos", [None, 0], ids=["alone", "led"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def repeated(bos: int | None = None, length: int = 5, n: int = 6, seed: int = 0) -> RepeatedTokens:
    return repeated_tokens(tiny_model(), seeded(seed), n, length, bos)


def patterns(model: ResValTransformer, tokens: Tensor) -> list[np.ndarray]:
    """[head, query, key] of each layer, of one row."""
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens[None])
    return [cache["pattern", layer][0].numpy() for layer in range(model.cfg.n_layers)]


# Tokens


@leading
def test_rows_are_random_tokens_twice(bos: int | None) -> None:
    rows = repeated(bos, n=200)
    start = 0 if bos is None else 1
    assert rows.start == start
    assert rows.tokens.shape == (200, 10 + start)
    for row in rows.tokens.tolist():
        assert row[:start] == [0] * start
        assert row[start : start + 5] == row[start + 5 :]
        assert len(set(row[start:])) == 5
    counts = np.bincount(rows.tokens[:, -5:].flatten(), minlength=13)
    assert (counts > 0).tolist() == [bos is None] + [True] * 12
    drawn = counts[counts > 0]
    assert np.abs(drawn - 1_000 / len(drawn)).max() < 5 * (1_000 / len(drawn)) ** 0.5


def test_the_same_generator_state_gives_the_same_rows() -> None:
    assert repeated(seed=1).tokens.equal(repeated(seed=1).tokens)
    assert not repeated(seed=1).tokens.equal(repeated(seed=2).tokens)
    generator = seeded(1)
    one, other = (repeated_tokens(tiny_model(), generator, 6, 5).tokens for _ in range(2))
    assert not one.equal(other)


def test_the_length_fits_the_context_by_default() -> None:
    assert repeated_tokens(tiny_model(), seeded()).length == 6
    assert repeated_tokens(tiny_model(), seeded(), bos=0).length == 5
    roomy = tiny_model(n_ctx=200, d_vocab=70)
    assert repeated_tokens(roomy, seeded(), n=2).length == 50


def test_special_tokens_are_not_drawn_nor_those_no_tokenizer_makes() -> None:
    model = ResValTransformer.from_pretrained("stories-small-values")
    assert candidates(model) == list(range(1, 2048))
    assert candidates(model, bos=7) == [t for t in range(1, 2048) if t != 7]
    assert candidates(model, among=[9, 3, 3]) == [3, 9]
    assert candidates(tiny_model()) == list(range(13))
    rows = repeated_tokens(model, seeded(), 3, 4, bos=0, among=range(10, 15))
    assert set(rows.tokens[:, 1:].flatten().tolist()) <= set(range(10, 15))
    model.cfg.d_vocab = 2050
    assert candidates(model)[-1] == 2047


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 0}, "n must be 1 or more; got 0"),
        (
            {"length": 1},
            "length must lie between 2 and 6, which n_ctx=12 has room for twice; got 1",
        ),
        ({"length": 7}, "length must lie between 2 and 6, .*; got 7"),
        ({"length": 6, "bos": 0}, "length must lie between 2 and 5, .*; got 6"),
        ({"bos": 13}, "bos=13 is not in the vocabulary of 13 tokens"),
        ({"length": 5, "among": [1, 2, 3, 4]}, "4 tokens to draw from are too few for length=5"),
    ],
    ids=str,
)
def test_rows_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        repeated_tokens(tiny_model(), seeded(), **wrong)


@pytest.mark.parametrize(
    ("rows", "length", "message"),
    [
        ([[1, 2, 3, 1, 2, 4]], 3, "each row must hold a sequence of 3 twice over"),
        ([[1, 2, 1, 1, 2, 1]], 3, "a sequence must have each of its tokens once"),
        ([[1, 2, 3, 1]], 3, r"rows of 6 or 7 for length=3; got \[1, 4\]"),
        ([[1, 1]], 1, "length must be 2 or more; got 1"),
    ],
    ids=str,
)
def test_rows_of_another_form_are_refused(rows: Any, length: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RepeatedTokens(torch.tensor(rows), length)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ICLClassifier(classifier_config("v"), generator=seeded()), "a classifier reads vectors"),
        (
            tiny_model(attention_dir="bidirectional"),
            "needs causal attention; the model's is 'bidir",
        ),
    ],
    ids=["classifier", "bidirectional"],
)
def test_a_model_of_another_kind_is_refused(model: ResValTransformer, message: str) -> None:
    for use in (
        lambda: repeated_tokens(model, seeded()),
        lambda: head_scores(model, repeated()),
        lambda: repeated_loss(model, repeated()),
        lambda: icl_score(model, tiny_tokens()),
        lambda: link_means(model, tiny_tokens()),
    ):
        with pytest.raises(ValueError, match=message):
            use()


@pytest.mark.parametrize(
    "use", [head_scores, repeated_loss], ids=["scores", "loss"]
)  # fmt: skip
def test_a_chunk_below_one_and_rows_beyond_the_context_are_refused(use: Any) -> None:
    with pytest.raises(ValueError, match="max_tokens must be 1 or more; got 0"):
        use(tiny_model(), repeated(), max_tokens=0)
    with pytest.raises(ValueError, match="rows of 10 tokens do not fit n_ctx=8"):
        use(tiny_model(n_ctx=8), repeated())


# Scores


@settings
@leading
def test_scores_are_those_of_a_plain_loop(bos: int | None, changes: dict[str, Any]) -> None:
    model, rows = tiny_model(**changes), repeated(bos)
    sums = np.zeros((3, 3, 4))
    for row in rows.tokens:
        tokens = row.tolist()
        for layer, pattern in enumerate(patterns(model, row)):
            for head in range(4):
                weights: list[list[float]] = [[], [], []]
                for query in range(1, len(tokens)):
                    weights[0].append(pattern[head, query, query - 1])
                    # Of an earlier occurrence (BOS and first ones have none).
                    if tokens[query] in tokens[:query]:
                        earlier = tokens.index(tokens[query])
                        weights[1].append(pattern[head, query, earlier])
                        weights[2].append(pattern[head, query, earlier + 1])
                assert len(weights[1]) == 5
                sums[:, layer, head] += [np.mean(x) for x in weights]
    found = head_scores(model, rows, max_tokens=4 * rows.tokens.shape[1])
    for name, ours, expected in zip(SCORES, found, sums / len(rows.tokens), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-6, err_msg=name)
    assert len({round(x, 4) for x in torch.stack(list(found)).flatten().tolist()}) > 30


@leading
def test_scores_are_the_shares_of_the_head_detectors_patterns(bos: int | None) -> None:
    """Its score is the share of all attention; ours the mean of the tokens that have such a key."""
    model, rows = tiny_model("v"), repeated(bos, n=1)
    tokens, width = rows.tokens, rows.tokens.shape[1]
    for name, ours, queries in zip(
        ("previous_token", "duplicate_token", "induction"),
        head_scores(model, rows),
        (width - 1, rows.length, rows.length),
        strict=True,
    ):
        wanted = getattr(head_detector, f"get_{name}_head_detection_pattern")(tokens)
        for layer, pattern in enumerate(patterns(model, tokens[0])):
            for head in range(4):
                theirs = compute_head_attention_similarity_score(
                    torch.tensor(pattern[head]), wanted,
                    exclude_bos=False, exclude_current_token=False, error_measure="mul",
                )  # fmt: skip
                assert ours[layer, head].item() == pytest.approx(theirs * width / queries, abs=1e-6)


def test_scores_agree_with_detect_head_on_text() -> None:
    model = ResValTransformer.from_pretrained("stories-small-values")
    text = " Mary Tom Ben Lily Sam" * 2
    rows = RepeatedTokens(model.to_tokens(text), 5)
    with torch.no_grad():
        theirs = [
            detect_head(model, text, f"{name}_head")  # type: ignore[arg-type]
            for name in ("previous_token", "duplicate_token", "induction")
        ]
    for ours, their, queries in zip(head_scores(model, rows), theirs, (10, 5, 5), strict=True):
        torch.testing.assert_close(ours, their * 11 / queries, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("score", range(3), ids=SCORES)
@leading
def test_a_head_that_does_one_thing_alone_has_that_score(bos: int | None, score: int) -> None:
    """A pattern put in by hand; the second layer's heads attend to themselves."""
    rows = repeated(bos)
    width, start = rows.tokens.shape[1], rows.start
    by_hand = torch.eye(width)
    for query in range(1, width):
        key = (query - 1, query - 5, query - 4)[score]
        if score == 0 or query >= start + 5:
            by_hand[query] = torch.eye(width)[key]
    model = tiny_model()
    hook = ("blocks.1.attn.hook_pattern", lambda pattern, hook: by_hand.expand_as(pattern))
    with model.hooks(fwd_hooks=[hook]):
        found = head_scores(model, rows)
    expected = [0.0] * 3
    expected[score] = 1.0
    assert [x[1].tolist() for x in found] == [[value] * 4 for value in expected]
    assert max(x[2].max().item() for x in found) < 1


def test_edits_count_and_chunks_do_not() -> None:
    model, rows = tiny_model("v"), repeated(n=7)
    whole = head_scores(model, rows, max_tokens=7 * rows.tokens.shape[1])
    for one, other in zip(
        whole, head_scores(model, rows, max_tokens=2 * rows.tokens.shape[1]), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    with cut_links(model):
        cut = head_scores(model, rows)
    classic = head_scores(model.with_streams(""), rows)
    for one, other in zip(cut, classic, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    assert not torch.allclose(cut.previous, whole.previous, atol=1e-3)


# Loss


@pytest.mark.parametrize("streams", ["", "v"], ids=["classic", "values"])
@leading
def test_losses_are_those_of_a_stock_model_token_by_token(bos: int | None, streams: str) -> None:
    model, rows = tiny_model(streams), repeated(bos)
    stock, hooks = stock_model(), adding_hooks("v") if streams else []
    first, second = np.zeros(4), np.zeros(4)
    for row in rows.tokens:
        with torch.no_grad():
            logits = stock.run_with_hooks(row[None], fwd_hooks=hooks)[0].double().numpy()
        for number in range(1, 5):
            for sums, offset in ((first, 0), (second, 5)):
                at = rows.start + offset + number
                told = logits[at - 1]
                surprise = np.log(np.exp(told).sum()) - told[row[at].item()]
                sums[number - 1] += surprise / len(rows.tokens)
    found = repeated_loss(model, rows, max_tokens=4 * rows.tokens.shape[1])
    np.testing.assert_allclose(found.first, first, rtol=1e-5)
    np.testing.assert_allclose(found.second, second, rtol=1e-5)


def test_losses_are_the_models_own() -> None:
    model, tokens = tiny_model("v"), tiny_tokens(5)
    with torch.no_grad():
        own = model(tokens, return_type="loss", loss_per_token=True)
    torch.testing.assert_close(token_losses(model, tokens, max_tokens=2 * tokens.shape[1]), own)


def test_a_model_that_copies_loses_nothing_the_second_time() -> None:
    rows = repeated(n=3)
    model = tiny_model()

    def copy(logits: Tensor, hook: Any) -> Tensor:
        told = torch.zeros_like(logits)
        for position in range(5, 10):  # the token after this one's first occurrence
            told[range(3), position, rows.tokens[:, position - 4]] = 50
        return told

    with model.hooks(fwd_hooks=[("unembed.hook_out", copy)]):
        found = repeated_loss(model, rows)
    torch.testing.assert_close(found.first, torch.full((4,), np.log(13)), check_dtype=False)
    assert found.second.max().item() < 1e-9


@pytest.mark.parametrize("changes", list(SETTINGS.values())[1:], ids=list(SETTINGS)[1:])
def test_mean_ablation_puts_the_mean_at_each_position(changes: dict[str, Any]) -> None:
    model, tokens = tiny_model(**changes), tiny_tokens(6)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    edit = link_means(model, tokens, max_tokens=4 * tokens.shape[1])
    for layer in (1, 2):
        expected = cache["v_link", layer].double().mean(0, keepdim=True).float()
        name = f"blocks.{layer}.attn.hook_v_link"
        torch.testing.assert_close(edit(cache["v_link", layer], name), expected)
    with torch.no_grad(), edit_links(model, edit, layers=[2]):
        _, edited = model.run_with_cache(tiny_tokens(2, seed=5))
    expected = cache["v_link", 2].mean(0).expand(2, -1, -1, -1)
    torch.testing.assert_close(edited["v_link", 2], expected)


@pytest.mark.parametrize(("length", "early", "late"), [(512, 50, 500), (128, 12, 125), (12, 1, 11)])
def test_the_icl_score_is_late_minus_early(length: int, early: int, late: int) -> None:
    model = tiny_model(n_ctx=512)
    tokens = tiny_tokens(3, length)
    found = icl_score(model, tokens, max_tokens=2 * tokens.shape[1])
    losses = []
    for at in (early, late):
        with torch.no_grad():
            told = model(tokens)[:, at - 1].double().log_softmax(-1)
        losses.append(-told[range(3), tokens[:, at]].mean().item())
    assert (found.early, found.late) == (early, late)
    assert (found.early_loss, found.late_loss) == pytest.approx(losses, rel=1e-5)
    assert found.score == pytest.approx(losses[1] - losses[0], abs=1e-5)


def test_the_icl_score_of_chosen_tokens() -> None:
    model, tokens = tiny_model("v"), tiny_tokens(5)
    losses = token_losses(model, tokens).mean(0)
    found = icl_score(model, tokens, early=2, late=6)
    assert found.score == pytest.approx((losses[5] - losses[1]).item(), abs=1e-6)
    for early, late in ((0, 6), (3, 3), (2, 7), (5, 2)):
        with pytest.raises(ValueError, match=rf"tokens 1 to 6 of a row, .* early={early}, late"):
            icl_score(model, tokens, early, late)


# Manners


@pytest.mark.parametrize(
    "use",
    [
        lambda model: head_scores(model, repeated()).previous,
        lambda model: repeated_loss(model, repeated()).second,
        lambda model: token_losses(model, tiny_tokens()),
        lambda model: link_means(model, tiny_tokens())(torch.zeros(1), "blocks.1.attn.hook_v_link"),
    ],
    ids=["scores", "loss", "tokens", "means"],
)
def test_dropout_is_off_no_gradient_is_kept_and_the_mode_stays(use: Any) -> None:
    dropping, steady = tiny_model("v", dropout=0.5), tiny_model("v")
    dropping.train()
    found = use(dropping)
    assert dropping.training
    assert not found.requires_grad
    torch.testing.assert_close(found, use(steady))


def test_a_tokenizer_that_pads_on_the_left_changes_nothing() -> None:
    model = ResValTransformer.from_pretrained("stories-small-values")
    rows = RepeatedTokens(torch.tensor([[0, 0, 40, 50, 0, 40, 50]]), 3)  # 0 is its padding, too
    model.tokenizer.padding_side = "right"
    with torch.no_grad():
        losses, cache = model.run_with_cache(
            rows.tokens, return_type="loss", loss_per_token=True, padding_side="right"
        )
    link = "blocks.1.attn.hook_v_link"
    for side in ("right", "left"):
        model.tokenizer.padding_side = side
        torch.testing.assert_close(token_losses(model, rows.tokens), losses)
        torch.testing.assert_close(link_means(model, rows.tokens)(losses, link), cache[link])
        previous = cache["pattern", 2].diagonal(-1, 2, 3).mean(-1)[0]
        torch.testing.assert_close(head_scores(model, rows).previous[2], previous)
        assert model.tokenizer.padding_side == side


def test_low_precision_logits_are_normalised_in_single_precision() -> None:
    model, tokens = tiny_model("v", dtype=torch.bfloat16), tiny_tokens()
    with torch.no_grad():
        told = model(tokens)[:, :-1].float().log_softmax(-1)
    expected = -told.gather(-1, tokens[:, 1:, None])[..., 0]
    torch.testing.assert_close(token_losses(model, tokens), expected)
