"""Which memory passes first, by triggers and level; counts of records: test_recorded_memory.py."""

from dataclasses import replace

import pytest

from resval_lens.analyses.papers.memory.curves import Count
from resval_lens.analyses.papers.memory.orders import memory_orders
from tests.memory_runs import made_up

NEVER = [0.0, 0.0, 0.0, 0.0, 0.0]
HALF = [0.0, 0.6, 0.6, 0.6, 0.6]  # above .5 at once, never above .9
LATE = [0.0, 0.0, 0.0, 0.95, 0.95]


def test_the_order_can_turn_with_the_level() -> None:
    runs = [made_up("absolute", seed, W_O2_read=HALF, W_K2=LATE, W_K1=NEVER) for seed in range(2)]
    study = memory_orders(runs, levels=(0.5, 0.9))
    first = next(row for row in study.rows if (row.first, row.second) == ("W_O2", "W_K2"))
    assert first.counts == {0.5: Count(2, 0, 2), 0.9: Count(0, 0, 2)}
    assert first.told().endswith(
        "W_O² via W_F and W_K²: W_O² via W_F first in all 2 above 0.5; W_K² first in all 2 above "
        "0.9."
    )


def test_the_papers_probe_of_the_output_memory_is_counted_beside_what_the_readout_hears() -> None:
    runs = [made_up("absolute", seed, W_O2=LATE, W_O2_read=HALF, W_K2=HALF) for seed in range(3)]
    study = memory_orders(runs, levels=(0.5, 0.9))
    found = {(row.first, row.second): row.counts for row in study.rows if row.variant == "all"}
    assert found["W_O2_alone", "W_K2"] == {0.5: Count(0, 0, 3), 0.9: Count(3, 0, 3)}
    assert found["W_O2", "W_K2"] == {0.5: Count(0, 3, 3), 0.9: Count(0, 0, 0)}


def test_outcomes_and_cells() -> None:
    told = {Count(3, 1, 9): "B first more often", Count(2, 1, 5): "none is first more often",
            Count(0, 0, 0): "neither passes", Count(4, 0, 4): "A first in all 4"}  # fmt: skip
    assert {count: count.outcome("A", "B") for count in told} == told
    assert [count.told() for count in told] == ["3+1/9", "2+1/5", "none", "4/4"]


def test_runs_of_other_triggers_are_counted_apart_and_one_layer_is_left_out() -> None:
    drawn = made_up("relative-drawn", 0, W_O2_read=LATE, W_K2=HALF)
    fixed = made_up("absolute", 0, W_O2_read=HALF, W_K2=LATE)
    alone = replace(fixed, run=replace(fixed.run, name="one-layer", n_layers=1))
    study = memory_orders([fixed, drawn, alone], levels=(0.5,))
    found = [(row.triggers, row.variant, row.runs) for row in study.rows[:4]]
    assert found == [
        ("fixed triggers", "all", 1), ("fixed triggers", "absolute", 1),
        ("drawn triggers", "all", 1), ("drawn triggers", "relative-drawn", 1),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="two-layer runs; got none"):
        memory_orders([alone])
