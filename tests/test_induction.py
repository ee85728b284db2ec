"""The induction study of a language model."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from resval_lens import ResValTransformer
from resval_lens.analyses.attribution.heads import (
    head_scores,
    icl_score,
    repeated_loss,
    repeated_tokens,
    token_losses,
)
from resval_lens.analyses.studies.induction import (
    InductionStudy,
    TopHead,
    even_scores,
    induction_study,
    losses_by_edit,
    top_heads,
)
from resval_lens.hooks import Link, cut_links, link_activations, link_groups
from resval_lens.streams import AttentionStream
from tests.helpers import tiny_model, tiny_tokens

ROWS = {"n": 6, "length": 5, "bos": 0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# A language model


@pytest.fixture(scope="module")
def study() -> InductionStudy:
    text = tiny_tokens(4)
    return induction_study(tiny_model("qv"), **ROWS, seed=3, text=text, top=2, max_tokens=50)


def test_the_study_holds_the_scores_and_losses(study: InductionStudy) -> None:
    model = tiny_model("qv")
    rows = repeated_tokens(model, seeded(3), **ROWS)
    scores, loss = head_scores(model, rows), repeated_loss(model, rows)
    for found, expected in zip(study.scores, scores, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(study.loss.by_token.second, loss.second, rtol=1e-5)
    assert study.loss.first == pytest.approx(np.mean(loss.first.numpy()), rel=1e-5)
    assert study.loss.second == pytest.approx(np.mean(loss.second.numpy()), rel=1e-5)
    assert study.loss.uniform == math.log(12)
    assert study.icl is not None
    wanted = icl_score(model, tiny_tokens(4))
    assert vars(study.icl) == pytest.approx(vars(wanted), rel=1e-5)
    assert InductionStudy.from_dict(study.to_dict()) == study
    about = study.streams, study.rows, study.length, study.seed, study.bos
    assert about == ("qv", 6, 5, 3, 0)
    assert json.loads(json.dumps(study.to_dict())) == study.to_dict()


def test_every_link_is_edited_alone_and_together(study: InductionStudy) -> None:
    alone = [f"{s}{layer}.h{head}" for s in "qv" for layer in (1, 2) for head in range(4)]
    names = ["all", "q1", "q2", "v1", "v2", *alone]
    assert [(row.links, row.ablation) for row in study.edits] == [
        (name, ablation) for name in names for ablation in ("zero", "mean")
    ]
    for row in study.edits:
        assert row.rise == pytest.approx(row.second - study.loss.second, abs=1e-9)
    assert len({round(row.second, 6) for row in study.edits}) == len(study.edits)


def test_a_cut_is_another_architecture(study: InductionStudy) -> None:
    model = tiny_model("qv")
    rows = repeated_tokens(model, seeded(3), **ROWS)
    others: dict[str, Any] = {
        "all": "",
        "q1": (AttentionStream("q", layers=(2,)), AttentionStream("v")),
        "v2": (AttentionStream("q"), AttentionStream("v", layers=(1,))),
    }
    zero = {row.links: row for row in study.edits if row.ablation == "zero"}
    for name, streams in others.items():
        loss = repeated_loss(model.with_streams(streams), rows)
        assert zero[name].first == pytest.approx(loss.first.mean().item(), rel=1e-6)
        assert zero[name].second == pytest.approx(loss.second.mean().item(), rel=1e-6)
    with cut_links(model, of="v", layers=[2], heads=[3]):
        loss = repeated_loss(model, rows)
    assert zero["v2.h3"].second == pytest.approx(loss.second.mean().item(), rel=1e-6)


def test_a_mean_is_that_of_other_rows_at_each_position() -> None:
    model = tiny_model("v")
    rows, reference = (repeated_tokens(model, seeded(s), **ROWS) for s in (1, 2))
    arriving = link_activations(model, reference.tokens)
    by_hand = arriving["blocks.2.attn.hook_v_link"].double().mean(0)

    def put(link: torch.Tensor, hook: Any) -> torch.Tensor:
        edited = link.clone()
        for position in range(11):
            edited[:, position, 1] = by_hand[position, 1].float()
        return edited

    with model.hooks(fwd_hooks=[("blocks.2.attn.hook_v_link", put)]):
        expected = repeated_loss(model, rows).second.mean().item()
    edits = losses_by_edit(model, rows, reference, repeated_loss(model, rows), 4)
    found = {(row.links, row.ablation): row for row in edits}
    assert found["v2.h1", "mean"].second == pytest.approx(expected, rel=1e-6)
    assert found["v2.h1", "mean"].second != found["v2.h1", "zero"].second


def test_rows_of_another_length_are_no_reference() -> None:
    model = tiny_model("v")
    rows = repeated_tokens(model, seeded(), 2, 5)
    with pytest.raises(ValueError, match="reference has rows of 8 tokens, not 10"):
        losses_by_edit(
            model, rows, repeated_tokens(model, seeded(), 2, 4), repeated_loss(model, rows)
        )


def test_the_reference_is_not_the_rows_themselves(study: InductionStudy) -> None:
    model, generator = tiny_model("qv"), seeded(3)
    rows, other = (repeated_tokens(model, generator, **ROWS) for _ in range(2))
    assert not rows.tokens.equal(other.tokens)
    expected = losses_by_edit(model, rows, other, repeated_loss(model, rows))[1]
    assert study.edits[1].second == pytest.approx(expected.second, rel=1e-5)


def test_groups_are_all_of_a_layer_and_each() -> None:
    groups = link_groups(tiny_model("v", n_key_value_heads=2))
    every = [Link("v", layer, head) for layer in (1, 2) for head in (0, 1)]
    assert groups == {
        "all": every, "v1": every[:2], "v2": every[2:],
        "v1.h0": every[:1], "v1.h1": every[1:2], "v2.h0": every[2:3], "v2.h1": every[3:],
    }  # fmt: skip


def test_a_classic_model_has_no_links_to_edit_and_nothing_else_changes() -> None:
    found = induction_study(tiny_model(), **ROWS)
    assert found.edits == []
    assert found.icl is None
    assert found.streams == ""


def test_the_best_heads_come_first() -> None:
    scores = torch.tensor([[0.1, 0.5, 0.2], [0.3, 0.5, 0.0]])
    assert [(x.layer, x.head) for x in top_heads(scores, 4)] == [
        (0, 1),
        (1, 1),
        (1, 0),
        (0, 2),
    ]
    assert top_heads(scores, 1) == [TopHead(0, 1, 0.5)]
    assert len(top_heads(scores, 9)) == 6
    with pytest.raises(ValueError, match="top must be 1 or more; got 0"):
        induction_study(tiny_model(), top=0)


@pytest.mark.parametrize("bos", [None, 0], ids=["alone", "led"])
def test_attention_spread_evenly_scores_what_the_study_says(bos: int | None) -> None:
    model = tiny_model()
    rows = repeated_tokens(model, seeded(), 3, 5, bos)
    even = lambda scores, hook: torch.where(scores.isneginf(), scores, 0.0)  # noqa: E731
    names = [f"blocks.{layer}.attn.hook_attn_scores" for layer in range(3)]
    with model.hooks(fwd_hooks=[(name, even) for name in names]):
        found = head_scores(model, rows)
    for scores, expected in zip(found, even_scores(rows), strict=True):
        assert scores.flatten().tolist() == pytest.approx([expected] * 12, rel=1e-5)


def test_progress_names_every_edit(study: InductionStudy) -> None:
    said: list[str] = []
    induction_study(tiny_model("v"), **ROWS, note=said.append)
    assert said[0] == "head scores on 6 rows of 5 tokens, twice"
    assert said[1:3] == ["all: zero", "all: mean"]
    assert len(said) == 1 + 2 * (1 + 2 + 8)


@pytest.mark.parametrize("name", ["stories-small-classic", "stories-small-values"])
def test_the_shipped_models_do_not_copy_random_tokens(name: str) -> None:
    """They learned stories; random tokens are nothing they know, and no head matches prefixes."""
    model = ResValTransformer.from_pretrained(name)
    rows = repeated_tokens(model, seeded(), 8, bos=model.tokenizer.eos_token_id)
    assert rows.length == 50
    loss, even = repeated_loss(model, rows), even_scores(rows)
    assert loss.second.mean().item() > math.log(2047)
    assert head_scores(model, rows).prefix_matching.max().item() < 2 * even.prefix_matching
    assert token_losses(model, rows.tokens).shape == (8, 100)
