"""``max_tokens``: no model call has more rows × positions, whatever the number of prompts."""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from resval_lens.analyses.attribution.logits import attribute, logit_lens
from resval_lens.analyses.circuits import running
from resval_lens.analyses.circuits.methods import METHODS
from resval_lens.analyses.circuits.running import EdgeRuns
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.analyses.studies.ablation import ablation_study
from resval_lens.hooks import (
    PromptPairs,
    logit_difference,
    mean_link_activations,
    patch,
    path_patch_each,
)
from resval_lens.transformer import ResValTransformer
from tests.helpers import tiny_model, tiny_tokens
from tests.methods import settings_of

MOST = 21  # three prompts of seven tokens


def scores(model: ResValTransformer, pairs: PromptPairs, method: str) -> Tensor:
    return score_edges(model, pairs, method, **settings_of(method), max_tokens=MOST).values


USES: dict[str, Callable[[ResValTransformer, PromptPairs], Any]] = {
    "patch": lambda m, p: patch(m, p, "z", by=("layer", "head"), max_tokens=MOST).per_prompt,
    "patch positions": lambda m, p: patch(m, p, "v_link", max_tokens=MOST).per_prompt,
    "path_patch": lambda m, p: (
        path_patch_each(m, p, ["a0.h0", "a1.h2", "m0"], "a2.h1<v>", max_tokens=MOST).patched
    ),
    **{name: partial(scores, method=name) for name in METHODS},
    "runs": lambda m, p: EdgeRuns(m, p, max_tokens=MOST).values(some_kept(m)),
    "means": lambda m, p: EdgeRuns(m, p, max_tokens=MOST, ablation="mean", groups="all").values(
        some_kept(m)
    ),
    "attribute": lambda m, p: attribute(m, p.clean, p.labels, max_tokens=MOST).values,
    "lens": lambda m, p: logit_lens(m, p.clean, p.labels, max_tokens=MOST).probability,
    "links": lambda m, p: mean_link_activations(m, p.clean, max_tokens=MOST)[
        "blocks.1.attn.hook_v_link"
    ],
    "ablation": lambda m, p: ablation_study(
        m, p, p.flipped(), {"d": logit_difference}, max_tokens=MOST
    ).clean["d"],
}


def some_kept(model: ResValTransformer) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(5, len(running.Graph.of(model)), generator=generator) < 0.7


def pairs_of(n: int) -> PromptPairs:
    clean, corrupted = tiny_tokens(n, seed=2), tiny_tokens(n, seed=3)
    return PromptPairs(clean, corrupted, logit_difference, tiny_tokens(n, 2, seed=4))


@contextmanager
def largest_call(model: ResValTransformer) -> Iterator[list[int]]:
    """The most rows × positions that any block is run on."""
    most = [0]

    def count(block: Any, args: tuple[Any, ...]) -> None:
        most[0] = max(most[0], args[0].shape[0] * args[0].shape[1])

    handles = [block.register_forward_pre_hook(count) for block in model.blocks]
    try:
        yield most
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("use", USES)
def test_no_call_is_larger_and_nothing_else_changes(
    use: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pairs = tiny_model("v", dtype=torch.float64), pairs_of(11)
    with largest_call(model) as most:
        found = USES[use](model, pairs)
    assert MOST - 7 < most[0] <= MOST
    monkeypatch.setitem(globals(), "MOST", 10_000)
    whole = USES[use](model, pairs)
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(whole))


@pytest.mark.parametrize("ablation", ["resample", "mean"])
def test_what_is_held_of_runs_does_not_grow_with_the_prompts(
    ablation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit is recorded again, with the same results."""
    model, pairs = tiny_model("v", dtype=torch.float64), pairs_of(12)
    groups = "all" if ablation == "mean" else None
    how: dict[str, Any] = {"max_tokens": MOST, "ablation": ablation, "groups": groups}
    whole = EdgeRuns(model, pairs, **how)
    assert len(whole._held) == len(whole.parts) == 4
    own = max(part.numbers for part in whole._held.values())
    for most in ("MOST_NUMBERS", "MOST_HELD"):
        monkeypatch.setattr(running, most, 2 * own)
    few = EdgeRuns(model, pairs, **how)
    kept = some_kept(model)
    torch.testing.assert_close(few.values(kept), whole.values(kept))
    torch.testing.assert_close(few.corrupted_values, whole.corrupted_values)
    assert sum(part.numbers for part in few._held.values()) <= 2 * own


def test_what_was_recorded_goes_without_the_garbage_collector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, pairs = tiny_model("v"), pairs_of(6)
    recorders: list[weakref.ref[Any]] = []
    made = running.Recorder.__init__

    def counted(self: Any, *given: Any) -> None:
        made(self, *given)
        recorders.append(weakref.ref(self))

    monkeypatch.setattr(running.Recorder, "__init__", counted)
    gc.disable()
    try:
        EdgeRuns(model, pairs, max_tokens=MOST).values(some_kept(model))
        assert len(recorders) == 4
        assert not any(recorder() for recorder in recorders)
    finally:
        gc.enable()


def test_one_prompt_is_run_however_small_the_budget() -> None:
    model, pairs = tiny_model("v"), pairs_of(2)
    with largest_call(model) as most:
        patch(model, pairs, "z", by=("layer",), max_tokens=1)
        path_patch_each(model, pairs, "a0.h0", "logits", max_tokens=1)
        score_edges(model, pairs, max_tokens=1)
    assert most[0] == 7
