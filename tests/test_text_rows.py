"""Rows against a plain reading of their definitions."""

import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from resval_lens.tasks.text import NO_TARGET, PackedRows, StoryRows
from tests.text_files import stream

END = 0
documents = st.lists(st.lists(st.integers(1, 999), max_size=9), min_size=1, max_size=12)


def packed_reference(texts: list[list[int]], n_ctx: int) -> list[list[int]]:
    tokens = [token for text in texts for token in (*text, END)]
    return [tokens[i : i + n_ctx] for i in range(0, len(tokens) - n_ctx + 1, n_ctx)]


def story_reference(text: list[int], n_ctx: int) -> tuple[list[int], list[int]]:
    """The row of a document, and what to predict after each of its tokens."""
    story = [*text, END][:n_ctx]
    tokens = story + [END] * (n_ctx - len(story))
    targets = story[1:] + [NO_TARGET] * (n_ctx - len(story) + 1)
    return tokens, targets


def numbers(*indices: int) -> np.ndarray:
    return np.array(indices, np.int64)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(texts=documents, n_ctx=st.integers(2, 7), data=st.data())
def test_packed_rows_cut_the_stream(texts: list[list[int]], n_ctx: int, data: Any) -> None:
    expected = packed_reference(texts, n_ctx)
    if not expected:
        return
    rows = PackedRows(stream(texts), n_ctx)
    assert len(rows) == len(expected)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=5))
    tokens, targets = rows.batch(numbers(*chosen))
    assert tokens.tolist() == [expected[i] for i in chosen]
    assert targets.tolist() == [[*expected[i][1:], NO_TARGET] for i in chosen]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(texts=documents, n_ctx=st.integers(2, 7), data=st.data())
def test_story_rows_hold_one_document_each(texts: list[list[int]], n_ctx: int, data: Any) -> None:
    rows = StoryRows(stream(texts), n_ctx)
    assert len(rows) == len(texts)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=5))
    tokens, targets = rows.batch(numbers(*chosen))
    expected = [story_reference(texts[i], n_ctx) for i in chosen]
    assert tokens.tolist() == [row for row, _ in expected]
    assert targets.tolist() == [row for _, row in expected]


def test_a_short_story_is_padded_and_its_end_of_text_predicted() -> None:
    tokens, targets = StoryRows(stream([[5, 6]]), 5).batch(numbers(0))
    assert tokens.tolist() == [[5, 6, 0, 0, 0]]
    assert targets.tolist() == [[6, 0, -100, -100, -100]]


def test_a_long_story_is_cut_and_its_end_of_text_not_predicted() -> None:
    tokens, targets = StoryRows(stream([[9], [5, 6, 7]]), 3).batch(numbers(1))
    assert tokens.tolist() == [[5, 6, 7]]
    assert targets.tolist() == [[6, 7, -100]]


def test_packed_rows_go_on_through_the_end_of_a_document() -> None:
    tokens, targets = PackedRows(stream([[5, 6], [7, 8, 9]]), 3).batch(numbers(1, 0))
    assert tokens.tolist() == [[7, 8, 9], [5, 6, 0]]
    assert targets.tolist() == [[8, 9, -100], [6, 0, -100]]


@pytest.mark.parametrize("kind", [PackedRows, StoryRows])
def test_tensors_are_whole_numbers_of_their_own_memory(kind: type) -> None:
    files = stream([[5, 6, 7], [8, 999]])
    tokens, targets = kind(files, 3).batch(numbers(0, 1))
    assert tokens.dtype == targets.dtype == torch.int64
    tokens.zero_()
    assert files.tokens.tolist() == [5, 6, 7, 0, 8, 999, 0]
    assert targets[0].tolist() == [6, 7, -100]


def test_padding_does_not_change_the_loss() -> None:
    logits = torch.randn(1, 8, 10, generator=torch.Generator().manual_seed(0))
    short, long = (StoryRows(stream([[5, 6]], d_vocab=10), n) for n in (3, 8))
    losses = [
        F.cross_entropy(logits[0, : rows.n_ctx], rows.batch(numbers(0))[1][0])
        for rows in (short, long)
    ]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("kind", [PackedRows, StoryRows])
def test_what_is_not_there_is_refused(kind: type) -> None:
    with pytest.raises(ValueError, match="n_ctx must be at least 2, for one prediction; got 1"):
        kind(stream([[5, 6]]), 1)
    rows = kind(stream([[5], [6], [7]]), 2)
    for wrong in (-1, 3):
        message = re.escape(f"there are rows 0 to 2; got {wrong}")
        with pytest.raises(ValueError, match=message):
            rows.batch(numbers(0, wrong))


def test_a_stream_shorter_than_a_row_is_refused() -> None:
    assert len(PackedRows(stream([[5, 6]]), 3)) == 1
    with pytest.raises(ValueError, match="memory has 3 tokens, no row of n_ctx=4"):
        PackedRows(stream([[5, 6]]), 4)
