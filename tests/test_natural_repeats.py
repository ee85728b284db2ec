"""Induction in text against plain loops over its definition."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from resval_lens.analyses.attribution.natural import followers, natural_repeats, stood_before
from resval_lens.analyses.studies.induction import induction_study
from resval_lens.analyses.studies.story_loss import text_rows
from resval_lens.hooks import cut_links
from resval_lens.load import load_model
from tests.helpers import tiny_model


def followers_of(row: list[int], t: int) -> list[int]:
    """Places j + 1 before t whose token is next to t's, after a token that is t's."""
    if t + 1 == len(row):
        return []
    return [j + 1 for j in range(t - 1) if row[j] == row[t] and row[j + 1] == row[t + 1]]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(0, 3), min_size=9, max_size=9), min_size=1, max_size=3))
def test_followers_are_those_of_the_definition(rows: list[list[int]]) -> None:
    tokens = torch.tensor(rows)
    found, before = followers(tokens), stood_before(tokens)
    for number, row in enumerate(rows):
        for t in range(len(row)):
            assert found[number, t].nonzero()[:, 0].tolist() == followers_of(row, t)
            assert before[number, t].item() == (row[t] in row[: max(t - 1, 0)])


def test_scores_and_losses_are_those_of_plain_loops() -> None:
    model = tiny_model("v", n_layers=2, n_ctx=24)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(6, (3, 20), generator=generator)
    found = natural_repeats(model, tokens, max_tokens=20)
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
    scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    even: list[float] = []
    losses: dict[str, list[float]] = {"repeated": [], "misleading": [], "new": []}
    for number, row in enumerate(tokens.tolist()):
        for t in range(len(row) - 1):
            places = followers_of(row, t)
            loss = -F.log_softmax(logits[number, t], -1)[row[t + 1]].item()
            seen = row[t] in row[: max(t - 1, 0)]
            losses["repeated" if places else "misleading" if seen else "new"].append(loss)
            if places:
                even.append(len(places) / (t + 1))
                for layer in range(model.cfg.n_layers):
                    scores[layer] += cache["pattern", layer][number, :, t, places].sum(-1)
    assert torch.allclose(torch.tensor(found.scores), scores / len(even), atol=1e-6)
    assert found.even == pytest.approx(sum(even) / len(even))
    for kind, own in losses.items():
        assert getattr(found.positions, kind) == len(own)
        assert getattr(found.loss, kind) == pytest.approx(sum(own) / len(own), abs=1e-5)


def test_without_heads_is_what_a_plain_hook_gives() -> None:
    model = tiny_model("", n_layers=2, n_ctx=24)
    tokens = torch.randint(6, (3, 20), generator=torch.Generator().manual_seed(0))
    heads = [(0, 1), (1, 0), (1, 1)]
    found = natural_repeats(model, tokens, max_tokens=20, out=[heads, [(0, 0)]]).without
    assert found is not None
    assert [each.heads for each in found] == [("a0.h1", "a1.h0", "a1.h1"), ("a0.h0",)]
    with torch.no_grad():
        whole, cache = model.run_with_cache(tokens)

        def put(z: torch.Tensor, hook: object) -> torch.Tensor:
            layer = int(hook.name.split(".")[1])  # type: ignore[attr-defined]
            for other, head in heads:
                if other == layer:
                    z[:, :, head] = cache["z", layer][:, :, head].mean((0, 1))
            return z

        edited = model.run_with_hooks(
            tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", put) for layer in (0, 1)]
        )
    losses: dict[str, list[list[float]]] = {"repeated": [], "misleading": [], "new": []}
    rises: dict[str, list[list[float]]] = {kind: [[] for _ in tokens] for kind in losses}
    for number, row in enumerate(tokens.tolist()):
        for t in range(len(row) - 1):
            before, after = (
                -F.log_softmax(logits[number, t], -1)[row[t + 1]].item()
                for logits in (whole, edited)
            )
            kind = "misleading" if row[t] in row[: max(t - 1, 0)] else "new"
            kind = "repeated" if followers_of(row, t) else kind
            losses[kind].append([after])
            rises[kind][number].append(after - before)
    for kind, own in losses.items():
        assert getattr(found[0].loss, kind) == pytest.approx(np.mean(own), abs=1e-5)
        rows = [np.mean(values) for values in rises[kind] if values]
        assert found[0].rise[kind].value == pytest.approx(np.mean(rows), abs=1e-5)


def test_the_study_says_what_text_and_cut_links_cost() -> None:
    model = load_model("stories-small-values").model
    rows = text_rows(model, ["Tom saw Ann. Tom saw Ann. Tom saw Ann."] * 40, rows=2, most=64)
    study = induction_study(model, n=2, length=8, text=rows)
    assert study.natural is not None
    assert set(study.natural.loss_cut) == {"all", "v1", "v2", "v3"}
    with cut_links(model, layers=[1]):
        alone = natural_repeats(model, rows)
    assert alone.loss == study.natural.loss_cut["v1"]
    *_, text, heads = study.sentences()
    assert "In text, where a token and the next one occurred before" in text
    assert study.natural.without is not None
    best, *others = study.natural.without
    assert best.heads == tuple(map(str, study.top.prefix_matching))
    assert [len(each.heads) for each in others] == [5, 5, 5]
    assert not any(set(each.heads) & set(best.heads) for each in others)
    assert f"repeated ones {best.rise['repeated'].value:+.3f} [" in heads
    most = max(each.rise["repeated"].value for each in others)
    assert f"repeated ones at most {most:+.3f} (3 draws)" in heads
    assert any("links cut: v1" in text for text in study.csv())


def test_what_has_no_repeats_is_refused() -> None:
    model = tiny_model("", n_layers=1, n_ctx=24)
    with pytest.raises(ValueError, match="1 rows of 8 tokens hold no token that is followed by"):
        natural_repeats(model, torch.arange(8)[None])
    with pytest.raises(ValueError, match="16 rows of 128 tokens are needed; the text has"):
        text_rows(load_model("stories-small-values").model, ["Tom saw Ann."])
