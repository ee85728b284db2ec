"""Padded prompts, on either side: every number is that of each prompt run alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resval_lens.analyses.attribution.logits import attribute, logit_lens
from resval_lens.analyses.attribution.weights import own_token_scores
from resval_lens.analyses.circuits.methods import METHODS
from resval_lens.analyses.circuits.running import EdgeRuns
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.analyses.studies.ablation import ablation_study
from resval_lens.hooks import (
    PromptPairs,
    edit_links,
    freeze,
    link_activations,
    links,
    logit_difference,
    mean,
    mean_link_activations,
    patch,
    path_patch,
    scale,
)
from resval_lens.hooks.link_runs import LinkRuns
from resval_lens.hooks.prompts import ready
from resval_lens.transformer import ResValTransformer
from tests.helpers import tiny_model
from tests.methods import settings_of

LABELS = torch.tensor([[1, 2], [3, 4], [5, 0]])
LENGTHS = (3, 6, 4)
PAD = 7  # a token like any other: only the mask tells
POSITIONS = ("standard", "rotary", "alibi", "shortformer")
EXACT: dict[str, Any] = {"dtype": torch.float64, "act_fn": "gelu"}


def model_of(positions: str = "standard") -> ResValTransformer:
    return tiny_model("v", positional_embedding_type=positions, **EXACT)


def texts(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 13, (n,), generator=generator) for n in lengths]


def padded(rows: list[Tensor], before: list[int], width: int) -> tuple[Tensor, Tensor]:
    """Rows of ``width``, each with so many pads before it, and their mask."""
    tokens, mask = torch.full((len(rows), width), PAD), torch.zeros(len(rows), width).bool()
    for i, (row, skip) in enumerate(zip(rows, before, strict=True)):
        tokens[i, skip : skip + len(row)] = row
        mask[i, skip : skip + len(row)] = True
    return tokens, mask


SIDES: dict[str, Callable[[int, int], int]] = {
    "left": lambda length, width: width - length,
    "right": lambda length, width: 0,
    "both": lambda length, width: (width - length) // 2,
}
each_side = pytest.mark.parametrize("side", SIDES)


def pairs_of(side: str, width: int = 8) -> tuple[PromptPairs, list[PromptPairs], list[int]]:
    """Three padded prompts, each alone, and where each begins."""
    clean, corrupted = texts(), texts(seed=1)
    before = [SIDES[side](len(row), width) for row in clean]
    (tokens, mask), (others, _) = (padded(rows, before, width) for rows in (clean, corrupted))
    alone = [
        PromptPairs(a[None], b[None], logit_difference, LABELS[i : i + 1])
        for i, (a, b) in enumerate(zip(clean, corrupted, strict=True))
    ]
    return PromptPairs(tokens, others, logit_difference, LABELS, mask=mask), alone, before


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


@each_side
@pytest.mark.parametrize("positions", POSITIONS)
def test_patches_are_those_of_each_prompt_alone(side: str, positions: str) -> None:
    model = model_of(positions)
    pairs, alone, before = pairs_of(side)
    for site in ("z", "v_link"):
        whole = patch(model, pairs, site, by=("layer", "head"))
        found = patch(model, pairs, site, by=("layer", "position"), max_tokens=9)
        assert found.axes["position"] == list(range(8))  # columns as given
        for i, (one, start) in enumerate(zip(alone, before, strict=True)):
            wanted = patch(model, one, site, by=("layer", "head"))
            close(whole.per_prompt[..., i], wanted.per_prompt[..., 0])
            wanted = patch(model, one, site, by=("layer", "position"))
            own = slice(start, start + one.length)
            close(found.per_prompt[:, own, i], wanted.per_prompt[..., 0])
            padding = torch.ones(8).bool()
            padding[own] = False
            base = torch.full_like(found.per_prompt[:, padding, i], wanted.base)
            close(found.per_prompt[:, padding, i], base)


@each_side
def test_named_positions_are_columns_as_given(side: str) -> None:
    model = model_of()
    pairs, alone, before = pairs_of(side)
    names = {"second": torch.tensor(before) + 1, "end": pairs.answers}
    found = patch(model, pairs, "z", by=("layer", "position"), positions=names)
    for i, one in enumerate(alone):
        wanted = patch(model, one, "z", by=("layer", "position"), positions=[1, one.length - 1])
        close(found.per_prompt[..., i], wanted.per_prompt[..., 0])
    at = torch.tensor([7, 7, 7]) if side != "left" else torch.tensor([0, 0, 0])
    with pytest.raises(ValueError, match=r"positions\['x'\]: \d is padding in prompt 0"):
        patch(model, pairs, "z", positions={"x": at})


@each_side
@pytest.mark.parametrize("positions", POSITIONS)
def test_paths_and_edges_are_those_of_each_prompt_alone(side: str, positions: str) -> None:
    model = model_of(positions)
    pairs, alone, _ = pairs_of(side)
    found = path_patch(model, pairs, ["a0.h1", "v1.h0"], "a2.h2<v>")
    wanted = [path_patch(model, one, ["a0.h1", "v1.h0"], "a2.h2<v>") for one in alone]
    close(found.patched, torch.cat([each.patched for each in wanted]))
    runs = EdgeRuns(model, pairs, max_tokens=9)
    kept = torch.rand(3, len(runs.graph), generator=torch.Generator().manual_seed(0)) < 0.6
    close(runs.values(kept), torch.cat([EdgeRuns(model, one).values(kept) for one in alone], 1))
    for method in METHODS:
        how = settings_of(method)
        scores = [score_edges(model, each, method, **how).values for each in (pairs, *alone)]
        close(scores[0], sum(scores[1:]) / 3)  # type: ignore[arg-type]


@each_side
def test_attribution_and_lens_are_those_of_each_prompt_alone(side: str) -> None:
    model = model_of()
    pairs, alone, _ = pairs_of(side)
    found = attribute(model, pairs.clean, LABELS, mask=pairs.mask)
    wanted = [attribute(model, one.clean, one.labels) for one in alone]
    close(found.values, torch.cat([each.values for each in wanted]))
    close(found.heads, torch.cat([each.heads for each in wanted]))
    lens = logit_lens(model, pairs.clean, LABELS, mask=pairs.mask)
    lenses = [logit_lens(model, one.clean, one.labels) for one in alone]
    close(lens.logit_difference, torch.cat([each.logit_difference for each in lenses], 1))
    close(lens.probability, torch.cat([each.probability for each in lenses], 1))
    scores = own_token_scores(model, pairs.clean, pairs.answers, mask=pairs.mask)
    each_alone = [own_token_scores(model, one.clean) for one in alone]
    assert scores == own_token_scores(model, pairs.clean, mask=pairs.mask)
    beyond = pairs.answers.clone()
    beyond[0] = 7 if side != "left" else 0
    with pytest.raises(ValueError, match=r"positions: \d is padding in prompt 0"):
        own_token_scores(model, pairs.clean, beyond, mask=pairs.mask)
    for path, score in scores.items():
        assert score == pytest.approx(sum(one[path] for one in each_alone) / 3)


@each_side
def test_links_carry_what_they_carry_in_each_prompt_alone(side: str) -> None:
    model = model_of("rotary")
    pairs, alone, before = pairs_of(side)
    assert pairs.mask is not None
    found = link_activations(model, pairs.clean, mask=pairs.mask)
    wanted = [link_activations(model, one.clean) for one in alone]
    for name, x in found.items():
        for i, (one, start) in enumerate(zip(alone, before, strict=True)):
            close(x[i, start : start + one.length], wanted[i][name][0])
    how: dict[str, Any] = {"attention_mask": pairs.mask.int(), "padding_side": "left"}
    with torch.no_grad():
        plain = model(pairs.clean, **how)
        with edit_links(model, freeze(found)):  # each link carries what it does anyway
            frozen = model(pairs.clean, **how)
        for i, (one, start) in enumerate(zip(alone, before, strict=True)):
            own = slice(start, start + one.length)
            close(plain[i, own], model(one.clean)[0])
            close(frozen[i, own], plain[i, own])
    over_all, edits = (
        mean_link_activations(model, pairs.clean, mask=pairs.mask),
        mean(found, mask=pairs.mask),
    )
    for name, x in over_all.items():
        for column in range(8):
            rows = [
                wanted[i][name][0, column - start]
                for i, (one, start) in enumerate(zip(alone, before, strict=True))
                if 0 <= column - start < one.length
            ]
            every = [x for each in wanted for x in each[name][0]]
            expected = torch.stack(rows or every).mean(0)
            close(x[0, column], expected)
            close(edits(found[name], name)[0, column], expected)


@each_side
def test_runs_with_links_edited_are_those_of_each_prompt_alone(side: str) -> None:
    model = model_of("rotary")
    pairs, alone, _ = pairs_of(side)
    runs, some = LinkRuns(model, pairs), links(model, layers=1)
    close(runs.clean, torch.cat([LinkRuns(model, one).clean for one in alone]))
    wanted = [LinkRuns(model, one).edited(scale(2), some) for one in alone]
    close(runs.edited(scale(2), some), torch.cat(wanted))


@each_side
@pytest.mark.parametrize("max_tokens", [1, 12, 99])
def test_ablated_links_are_those_of_each_prompt_alone(side: str, max_tokens: int) -> None:
    model = model_of("rotary")
    pairs, alone, _ = pairs_of(side)
    pairs = replace(pairs, groups=torch.arange(3))
    edits: dict[str, Any] = {"scales": (2.0,)}
    measures = {"d": logit_difference}
    found = ablation_study(model, pairs, pairs, measures, max_tokens=max_tokens, **edits)
    each = [ablation_study(model, one, one, measures, **edits) for one in alone]
    for name in ("clean", "corrupted"):
        assert getattr(found, name)["d"] == pytest.approx(
            sum(getattr(one, name)["d"] for one in each) / 3
        )
    for i, row in enumerate(found.rows):
        wanted = sum(one.rows[i].measures["d"] for one in each) / 3
        assert row.measures["d"] == pytest.approx(wanted), (row.links, row.edit)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_padding_is_as_alone(data: st.DataObject) -> None:
    model = model_of()
    lengths = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    width = data.draw(st.integers(max(lengths), 12))
    before = [data.draw(st.integers(0, width - n)) for n in lengths]
    rows = texts(tuple(lengths), data.draw(st.integers(0, 9)))
    tokens, mask = padded(rows, before, width)
    last = None
    if data.draw(st.booleans()):
        own = [data.draw(st.integers(0, n - 1)) for n in lengths]
        last = torch.tensor(before) + torch.tensor(own)
    ends = [n - 1 for n in lengths] if last is None else (last - torch.tensor(before)).tolist()
    labels = LABELS[[0] * len(rows)]
    pairs = PromptPairs(tokens, tokens.flip(0)[:], logit_difference, labels, last, mask=mask)
    aligned = ready(model, pairs)
    assert aligned.length == max(lengths)
    with torch.no_grad():
        logits = model(aligned.clean)
        for i, (row, end) in enumerate(zip(rows, ends, strict=True)):
            assert aligned.clean[i, : len(row)].equal(row)
            close(logits[i, aligned.answers[i]], model(row[None])[0, end])


def test_what_mask_and_last_contradict_is_refused() -> None:
    pairs, _, _ = pairs_of("left")
    fields = (pairs.clean, pairs.corrupted, logit_difference, LABELS)
    broken = pairs.mask.clone()  # type: ignore[union-attr]
    broken[1, 4] = False
    empty = pairs.mask.clone()  # type: ignore[union-attr]
    empty[2] = False
    for settings_, says in (
        (
            {"last": torch.tensor([7, 1, 7]), "mask": pairs.mask},
            "last: row 1 would be answered at 1",
        ),
        ({"mask": broken}, "mask: row 1 has padding between its own tokens"),
        ({"mask": empty}, "mask: row 2 has no token of its own"),
        ({"mask": torch.ones(3, 7).bool()}, r"mask must be booleans .* \[3, 8\]"),
        ({"mask": torch.full((3, 8), 2)}, "mask must hold 0 and 1; got 2 to 2"),
    ):
        with pytest.raises(ValueError, match=says):
            PromptPairs(*fields, **settings_)  # type: ignore[arg-type]
    as_numbers = PromptPairs(*fields, mask=pairs.mask.long())  # type: ignore[union-attr]
    assert as_numbers.answers.equal(pairs.answers)


def test_a_model_that_looks_ahead_refuses_padding() -> None:
    model = tiny_model("v", attention_dir="bidirectional")
    pairs, _, _ = pairs_of("left")
    last = torch.tensor([7, 3, 7])
    fields = (pairs.clean, pairs.corrupted, logit_difference, LABELS, last)
    for row, each in ((0, pairs), (1, PromptPairs(*fields))):
        with pytest.raises(ValueError, match=rf"row {row} is padded, and .* 'bidirectional'"):
            patch(model, each, "z")
    with pytest.raises(ValueError, match="row 0 is padded"):
        link_activations(model, pairs.clean, mask=pairs.mask)
    whole = PromptPairs(*fields, mask=torch.ones(3, 8).bool())
    assert patch(model, whole, "z").per_prompt.isfinite().all()


def test_rows_that_look_padded_are_not_guessed_at() -> None:
    model = ResValTransformer.from_pretrained("stories-small-values")
    some = ["Tom ran to", "Once there was a small dog. Tom ran to"]
    labels = torch.tensor([[5, 6], [5, 6]])
    for side, says in (("left", r"row 0 begins with \d+ × '<\|endoftext\|>'"),
                       ("right", r"row 0 ends with '<\|endoftext\|>'")):  # fmt: skip
        tokens = model.to_tokens(some, padding_side=side)
        pairs = PromptPairs(tokens, tokens, logit_difference, labels)
        with pytest.raises(ValueError, match=says):
            patch(model, pairs, "z")
        told = PromptPairs(tokens, tokens, logit_difference, labels, mask=torch.ones_like(tokens))
        assert ready(model, told).clean.equal(tokens)
    tokens = model.to_tokens(some, padding_side="left")
    last = PromptPairs(tokens, tokens, logit_difference, labels, torch.full((2,), 10))
    for use in (
        lambda: EdgeRuns(model, last),
        lambda: link_activations(model, tokens),
        lambda: mean_link_activations(model, tokens),
        lambda: attribute(model, tokens, labels),
        lambda: logit_lens(model, tokens, labels),
        lambda: own_token_scores(model, tokens),
    ):
        with pytest.raises(ValueError, match="row 0 begins with"):
            use()
    one = model.to_tokens(some[0])  # end of text leads once: a prompt's own
    assert ready(model, PromptPairs(one, one, logit_difference, labels[:1])).length == one.shape[1]
