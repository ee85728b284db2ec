"""The order of rows: every row once an epoch, the same from any step and for any processes."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resval_lens.tasks.text import RowOrder


@st.composite
def orders(draw: st.DrawFn) -> RowOrder:
    n_rows = draw(st.integers(1, 40))
    return RowOrder(n_rows, draw(st.integers(1, n_rows)), draw(st.integers(0, 2**70)))


def copy(order: RowOrder) -> RowOrder:
    return RowOrder(order.n_rows, order.batch, order.seed)


def first_steps(order: RowOrder, rows: int) -> np.ndarray:
    steps = -(-rows // order.batch)
    return np.concatenate([order.rows(step) for step in range(steps)])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(order=orders())
def test_every_row_comes_once_in_each_epoch(order: RowOrder) -> None:
    rows = first_steps(order, 4 * order.n_rows)
    for epoch in range(4):
        part = rows[epoch * order.n_rows : (epoch + 1) * order.n_rows]
        assert sorted(part.tolist()) == list(range(order.n_rows))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(order=orders(), steps=st.lists(st.integers(0, 200), min_size=1, max_size=8))
def test_a_step_is_the_same_whatever_came_before(order: RowOrder, steps: list[int]) -> None:
    for step in steps:
        assert order.rows(step).tolist() == copy(order).rows(step).tolist()
        assert len(order._epochs) <= 2


@settings(max_examples=100, deadline=None, derandomize=True)
@given(order=orders(), step=st.integers(0, 10**12), data=st.data())
def test_the_parts_of_all_processes_are_the_batch(order: RowOrder, step: int, data: Any) -> None:
    divisors = [n for n in range(1, order.batch + 1) if order.batch % n == 0]
    world = data.draw(st.sampled_from(divisors))
    parts = [copy(order).rows(step, rank, world) for rank in range(world)]
    assert {len(part) for part in parts} == {order.batch // world}
    assert np.concatenate(parts).tolist() == order.rows(step).tolist()


def test_a_batch_goes_on_through_the_end_of_an_epoch() -> None:
    order = RowOrder(n_rows=5, batch=3, seed=1)
    ends, begins = RowOrder(5, 5, 1).rows(0), RowOrder(5, 5, 1).rows(1)
    assert order.rows(1).tolist() == [*ends[3:], begins[0]]


def test_epochs_and_seeds_differ() -> None:
    epochs = [RowOrder(1000, 1000, seed).rows(step) for seed in (0, 1) for step in (0, 1)]
    for i, one in enumerate(epochs):
        assert (one == np.arange(1000)).sum() < 10
        assert all((one == other).sum() < 10 for other in epochs[:i])


def test_a_row_is_as_likely_anywhere() -> None:
    where = np.zeros((4, 4))
    order = RowOrder(4, 4, seed=0)
    for epoch in range(4000):
        where[np.arange(4), order.rows(epoch)] += 1
    assert np.abs(where - 1000).max() < 5 * (4000 * 0.25 * 0.75) ** 0.5


def test_the_order_is_the_one_that_was_always_drawn() -> None:
    """Runs go on with another version of numpy, too, only while this holds."""
    order = RowOrder(n_rows=10, batch=4, seed=7)
    assert order.rows(0).tolist() == [8, 0, 7, 1]
    assert order.rows(2).tolist() == [5, 9, 9, 0]


def test_what_is_handed_out_may_be_changed() -> None:
    order = RowOrder(10, 4, 7)
    order.rows(0)[:] = -1
    assert order.rows(0).tolist() == RowOrder(10, 4, 7).rows(0).tolist()


@pytest.mark.parametrize(
    ("n_rows", "batch", "seed", "message"),
    [
        (0, 1, 0, "n_rows must be at least 1; got 0"),
        (10, 0, 0, "batch must lie between 1 and n_rows=10; got 0"),
        (10, 11, 0, "batch must lie between 1 and n_rows=10; got 11"),
        (10, 5, -1, "seed must be a whole number from 0 up; got -1"),
    ],
)
def test_an_impossible_order_is_refused(n_rows: int, batch: int, seed: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RowOrder(n_rows, batch, seed)


@pytest.mark.parametrize(
    ("step", "rank", "world", "message"),
    [
        (-1, 0, 1, "step must be at least 0; got -1"),
        (0, 0, 5, "batch=8 must be divisible by 5 processes"),
        (0, 0, 16, "batch=8 must be divisible by 16 processes"),
        (0, 2, 2, "rank must lie between 0 and world - 1; got 2 of 2"),
        (0, -1, 2, "rank must lie between 0 and world - 1; got -1 of 2"),
        (0, 0, 0, "rank must lie between 0 and world - 1; got 0 of 0"),
    ],
)
def test_an_impossible_part_is_refused(step: int, rank: int, world: int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        RowOrder(100, 8, 0).rows(step, rank, world)
