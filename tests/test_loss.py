"""The training loss: never the whole logits where the vocabulary is large, always their loss."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from resval_lens import ResValTransformer
from resval_lens.lens import unembed as module
from tests.helpers import tiny_config

VOCABULARY = 300


def model(**changes: Any) -> ResValTransformer:
    made = ResValTransformer(tiny_config(d_vocab=VOCABULARY, n_ctx=12, streams="v", **changes))
    if not made.cfg.tied_embedding:
        torch.nn.init.normal_(made.unembed.b_U, generator=torch.Generator().manual_seed(0))
    return made


def text() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCABULARY, (40, 12), generator=generator)
    targets = torch.randint(VOCABULARY, (40, 12), generator=generator)
    targets[torch.rand(40, 12, generator=generator) < 0.3] = -100
    targets[7] = -100
    return tokens, targets


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "own unembedding": {},
    "tied": {"tied_embedding": True},
    "no norm": {"normalization_type": None},
}


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("parts", [False, True])
def test_loss_and_gradients_are_those_of_the_logits(
    architecture: str, parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch, parts)
    ours, theirs = model(**ARCHITECTURES[architecture]), model(**ARCHITECTURES[architecture])
    tokens, targets = text()
    loss = ours(tokens, targets=targets)
    loss.backward()
    assert bool(calls) == parts

    logits = theirs(tokens)
    probabilities = logits.detach().double().softmax(-1).numpy()
    rows, columns = np.nonzero(targets.numpy() >= 0)
    wanted = targets.numpy()[rows, columns]
    expected = -np.log(probabilities[rows, columns, wanted]).sum()
    assert loss.item() == pytest.approx(expected, rel=1e-5)

    F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").backward()
    for (name, own), (_, other) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        torch.testing.assert_close(own.grad, other.grad, atol=1e-4, rtol=1e-4, msg=name)


def counted(monkeypatch: pytest.MonkeyPatch, parts: bool) -> list[int]:
    """Rows of each call of the library's loss in parts, which small vocabularies only see here."""
    calls: list[int] = []
    plain = F.linear_cross_entropy

    def counting(*arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(options["options"].batch_chunk_size)
        return plain(*arguments, **options)

    monkeypatch.setattr(F, "linear_cross_entropy", counting)
    if parts:
        monkeypatch.setattr(module, "PART", 2**15)
    return calls


def test_parts_hold_at_most_so_many_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch, True)
    model()(text()[0], targets=text()[1])
    assert calls == [64]
    assert calls[0] * VOCABULARY <= 2**15


@pytest.mark.parametrize(
    ("changes", "watched"),
    [({}, True), ({"output_logits_soft_cap": 2.0}, False), ({"use_fused": False}, False)],
)
def test_what_parts_cannot_do_is_done_whole(
    changes: dict[str, Any], watched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch, True)
    lm = model(**changes)
    tokens, targets = text()
    seen: list[torch.Tensor] = []
    hooks = [("unembed.hook_out", lambda x, hook: seen.append(x))] if watched else []
    with lm.hooks(fwd_hooks=hooks):
        loss = lm(tokens, targets=targets)
    expected = F.cross_entropy(lm(tokens).flatten(0, 1), targets.flatten(), reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert calls == []
    assert len(seen) == watched


def test_an_edit_before_the_unembedding_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch, True)
    lm = model()
    tokens, targets = text()
    with lm.hooks(fwd_hooks=[("unembed.hook_in", lambda x, hook: x * 0)]):
        loss = lm(tokens, targets=targets)
    log_p = lm.unembed.b_U.log_softmax(-1)
    assert loss.item() == pytest.approx(-log_p[targets[targets >= 0]].sum().item(), rel=1e-5)
    assert calls


def test_nothing_to_predict_costs_nothing() -> None:
    tokens, targets = text()
    assert model()(tokens, targets=torch.full_like(targets, -100)).item() == 0
