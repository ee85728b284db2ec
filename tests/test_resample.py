"""Resample ablation: each row's links carry what they do in one row of another run."""

import pytest
import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from resval_lens.hooks import edit_links, freeze, link_activations, resample
from tests.helpers import tiny_model, tiny_tokens

TOKENS = tiny_tokens()
OTHERS = tiny_tokens(batch=5, seed=9)


@pytest.mark.parametrize("rows", [[0, 1], [3, 3], [4, 0]], ids=str)
@pytest.mark.parametrize("streams", ["q", "kv"])
def test_every_link_of_a_row_is_patched_from_one_run_of_another_prompt(
    streams: str, rows: list[int]
) -> None:
    model = tiny_model(streams)
    expected = []
    for token_row, row in zip(TOKENS, rows, strict=True):  # one prompt at a time, by plain hooks
        _, cache = model.run_with_cache(OTHERS[row : row + 1])

        def replaced(link: Tensor, hook: HookPoint, cache: dict[str, Tensor] = cache) -> Tensor:
            return cache[str(hook.name)]

        hooks = [(lambda name: name.endswith("_link"), replaced)]
        expected.append(model.run_with_hooks(token_row[None], fwd_hooks=hooks))
    with edit_links(model, resample(link_activations(model, OTHERS), torch.tensor(rows))):
        torch.testing.assert_close(model(TOKENS), torch.cat(expected))


def test_each_row_from_its_own_corrupted_prompt_is_freezing() -> None:
    model = tiny_model("qv")
    reference = link_activations(model, tiny_tokens(seed=5))
    with edit_links(model, resample(reference, torch.arange(2)), heads=[1], positions=[2, 3]):
        resampled = model(TOKENS)
    with edit_links(model, freeze(reference), heads=[1], positions=[2, 3]):
        assert model(TOKENS).equal(resampled)
    assert not model(TOKENS).equal(resampled)


@pytest.mark.parametrize("row", [5, -1])
def test_a_row_that_the_reference_does_not_have_is_refused(row: int) -> None:
    reference = link_activations(tiny_model("v"), OTHERS)
    with pytest.raises(ValueError, match=f"rows: {row} is beyond the reference run's 5 rows"):
        resample(reference, torch.tensor([0, row]))


def test_rows_for_another_batch_are_refused_when_run() -> None:
    model = tiny_model("v")
    edit = resample(link_activations(model, OTHERS), torch.tensor([0, 1, 2]))
    with (
        edit_links(model, edit),
        pytest.raises(ValueError, match=r"hook_v_link is \[2, 7, 4, 4\]; its replacement is \[3,"),
    ):
        model(TOKENS)
