"""The two halves of ``compare``: the same in one process and in two, and nothing done twice."""

import json
from collections import Counter
from typing import Any

import pytest
import torch

from resval_lens.analyses.comparison.circuit_compare import compared_models
from resval_lens.analyses.comparison.compare_parts import Sizes, compare_all
from resval_lens.analyses.comparison.icl_emergence import paper_runs
from resval_lens.analyses.results.result import plain
from resval_lens.models import answer
from resval_lens.training import icl_run
from resval_lens.training.icl_run import ICLRun, Worlds
from resval_lens.training.recorded import load_runs

FEW = Sizes(sequences=60, link_sequences=20, circuit_sequences=8, prompts=4, seed=0)


class Alone:
    """``compare_all`` in one process: what it gave, what it noted, what was computed how often."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.layers: Counter[Any] = Counter()
        self.worlds: list[ICLRun] = []
        first_layer, draw_world = answer._first_layer, icl_run.draw_world

        def counted_layer(model: Any, x: torch.Tensor) -> Any:
            weights = tuple(block.attn.W_V.sum().item() for block in model.blocks)
            self.layers[weights, x.sum().item(), x.shape] += 1
            return first_layer(model, x)

        def counted_world(run: ICLRun) -> Any:
            self.worlds.append(run)
            return draw_world(run)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(answer, "_first_layer", counted_layer)
            patched.setattr(icl_run, "draw_world", counted_world)
            self.found = compare_all(
                paper_runs(load_runs(ICLRun)), compared_models(), FEW, 1, self.notes.append
            )


@pytest.fixture(scope="module")
def alone() -> Alone:
    return Alone()


def test_no_world_is_drawn_twice_and_no_sequence_read_twice_by_one_model(alone: Alone) -> None:
    assert len(alone.worlds) == 1
    # Four models, four test sets in two parts: the edited sequences, the others.
    assert len(alone.layers) == 4 * 4 * 2
    assert set(alone.layers.values()) == {1}


def test_two_processes_find_what_one_finds_to_the_bit(alone: Alone) -> None:
    notes: list[str] = []
    found = compare_all(paper_runs(load_runs(ICLRun)), compared_models(), FEW, 2, notes.append)
    assert json.dumps(plain(found)) == json.dumps(plain(alone.found))
    said, by_one = "\n".join(notes), "\n".join(alone.notes)
    for half, where in (("classifiers", by_one), ("classifiers and circuits", said)):
        assert f"{half} 1 of" in where
        assert "language models 1 of" in where
    assert any("classifiers" in text and "language models" in text for text in notes)


@pytest.mark.parametrize(("half", "steps"), [("classifiers", 3), ("language models", 5)])
def test_each_half_says_how_many_of_how_many(alone: Alone, half: str, steps: int) -> None:
    said = [text.removeprefix(half) for text in alone.notes if text.startswith(half)]
    counts = list(dict.fromkeys(text.split(":")[0] for text in said))
    assert counts == [f" {step} of {steps}" for step in range(1, steps + 1)]


def test_a_worlds_test_sets_are_drawn_again_for_another_seed() -> None:
    worlds, runs = Worlds(), [ICLRun("classic", test_size=3, seed=seed) for seed in (0, 1, 0)]
    drawn = [worlds.of(run)[1]["ic"].inputs for run in runs]
    assert not drawn[0].equal(drawn[1])
    for run, inputs in zip(runs, drawn, strict=True):
        assert inputs.equal(icl_run.draw_world(run)[1]["ic"].inputs)
