"""Roles of heads in indirect object identification, and what links carry."""

from functools import partial
from typing import Any

import pytest
import torch

from resval_lens.analyses.attribution.logits import attribute
from resval_lens.analyses.studies import roles as ioi_roles
from resval_lens.analyses.studies.link_signals import link_signals
from resval_lens.analyses.studies.roles import (
    ROLES,
    WEIGHTS,
    HeadMeasures,
    _direct_effects,
    _judge,
    head_roles,
)
from resval_lens.analyses.tasks.pairs import ioi_pairs
from resval_lens.hooks.path_patching import path_patch
from resval_lens.tasks.ioi_corruptions import positions
from resval_lens.tasks.stories import ioi_prompts
from resval_lens.transformer import ResValTransformer

PROMPTS = ioi_prompts(12, 0, "unseen", "unseen", "unseen")


@pytest.fixture(scope="module")
def values() -> ResValTransformer:
    return ResValTransformer.from_pretrained("stories-small-values")


def measures(**changes: Any) -> HeadMeasures:
    """A layer of two heads that do nothing, but for ``changes``: of head 1, or by name both's."""
    nothing = torch.zeros(1, 2)
    fields: dict[str, Any] = {
        "total": nothing.clone(), "p_io": nothing.clone(), "direct": nothing.clone(),
        "direct_on_io": nothing.clone(), "direct_on_s": nothing.clone(),
        "copies": nothing.clone() + 1,
        "direct_along_links": nothing.clone(), "direct_when_movers_are_out": nothing.clone(),
        "into_queries": nothing.clone(), "attention": {name: nothing.clone() for name in WEIGHTS},
        "even": {name: 0.2 if name == "S1+1→S1" else 0.05 for name in WEIGHTS},
    }  # fmt: skip
    for name, value in changes.items():
        target = fields["attention"] if name in WEIGHTS else fields
        target[name][0, 1] = value
    return HeadMeasures(**fields)


@pytest.mark.parametrize(
    ("changes", "roles"),
    [
        ({}, set()),
        ({"direct": 0.3, "end→IO": 0.5}, {"name mover"}),
        ({"direct": 0.3, "end→IO": 0.3, "end→S1": 0.4}, set()),
        ({"direct": 0.02, "end→IO": 0.5}, set()),
        ({"direct": 0.3, "end→IO": 0.5, "copies": 0.4}, set()),
        (
            {"direct_on_io": 0.3, "direct_on_s": 0.1, "end→IO": 0.3, "end→S1": 0.3},
            {"mover of both"},
        ),
        ({"direct_on_io": 0.3, "direct_on_s": 0.01, "end→IO": 0.3, "end→S1": 0.3}, set()),
        ({"direct_on_io": 0.3, "direct_on_s": 0.3, "end→IO": 0.3, "end→S1": 0.1}, set()),
        ({"direct": -0.3, "end→IO": 0.5}, {"negative"}),
        ({"total": -0.3, "end→S2": 0.5}, {"subject mover"}),
        ({"total": -0.3, "end→S2": 0.5, "end→IO": 0.6}, set()),
        ({"direct": 0.3, "end→S2": 0.5}, {"subject suppressor"}),
        ({"direct_when_movers_are_out": 0.3}, {"backup"}),
        ({"direct_when_movers_are_out": 0.3, "direct": 0.2, "end→IO": 0.9}, {"name mover"}),
        ({"into_queries": -0.3, "end→S2": 0.5}, {"S-inhibition"}),
        ({"into_queries": 0.3, "end→S2": 0.5}, set()),
        ({"S2→S1+1": 0.5}, {"induction"}),
        ({"S2→S1": 0.5}, {"duplicate token"}),
        ({"S1+1→S1": 0.5}, {"previous token"}),
        ({"S1+1→S1": 0.35}, set()),  # even attention over the first five positions gives 0.2
    ],
    ids=str,
)
def test_a_head_has_the_roles_whose_criteria_it_meets(
    changes: dict[str, float], roles: set[str]
) -> None:
    found = _judge(measures(**changes), attention=0.2, share=0.05)
    assert set(found) == set(ROLES)
    assert {role for role, heads in found.items() if heads} == roles
    assert all(heads in ([], [(0, 1)]) for heads in found.values())


def test_what_roles_are_judged_by_is_measured(values: ResValTransformer) -> None:
    model = values
    tokenizer: Any = model.tokenizer
    found = head_roles(model, PROMPTS)
    assert [each.head for each in found.roles["subject mover"]] == ["a1.h2"]
    head = found.roles["subject mover"][0]
    pairs = ioi_pairs(model, PROMPTS, "ABC", 0)
    where = positions(PROMPTS, tokenizer, tokenizer.eos_token_id)
    with torch.no_grad():
        logits, cache = model.run_with_cache(pairs.clean, padding_side="right")
        _, corrupted = model.run_with_cache(pairs.corrupted, padding_side="right")

        def noise(z: torch.Tensor, hook: Any) -> torch.Tensor:
            z[:, :, 2] = corrupted["z", 1][:, :, 2]
            return z

        noised = model.run_with_hooks(
            pairs.clean, padding_side="right", fwd_hooks=[("blocks.1.attn.hook_z", noise)]
        )
        corrupted = model(pairs.corrupted, padding_side="right")
    metric = {
        name: sum(
            (out[i, end, io] - out[i, end, s]).item() / len(PROMPTS)
            for i, (end, (io, s)) in enumerate(
                zip(where["end"].tolist(), pairs.labels.tolist(), strict=True)
            )
        )
        for name, out in (("clean", logits), ("noised", noised), ("corrupted", corrupted))
    }
    assert found.logit_difference.clean == pytest.approx(metric["clean"], rel=1e-4)
    gap = metric["clean"] - metric["corrupted"]
    total = (metric["noised"] - metric["clean"]) / gap
    assert head.total == pytest.approx(total, rel=1e-3)
    for name, (query, key) in WEIGHTS.items():
        weights = [
            cache["pattern", 1][i, 2, where[query][i], where[key][i]].item() for i in range(12)
        ]
        assert head.attention[name] == pytest.approx(sum(weights) / 12, abs=1e-5)
    shares = attribute(model, pairs.clean, pairs.labels, pairs.last)
    along = shares["a1.h2 from 0"].mean().item()
    own = shares["a1.h2"].mean().item()
    assert head.direct_along_links == pytest.approx(along / metric["clean"], rel=1e-3)
    assert head.direct == pytest.approx((along + own) / metric["clean"], rel=1e-3)


def test_the_mover_of_both_names_is_found_and_needed(values: ResValTransformer) -> None:
    """By plain hooks: it looks at both names, writes for both, and without it neither is named."""
    tokenizer: Any = values.tokenizer
    found = head_roles(values, PROMPTS)
    (head,) = found.roles["mover of both"]
    assert head.head == "a1.h1"
    pairs = ioi_pairs(values, PROMPTS, "ABC", 0)
    where = positions(PROMPTS, tokenizer, tokenizer.eos_token_id)
    rows = torch.arange(len(PROMPTS))
    with torch.no_grad():
        _, corrupted = values.run_with_cache(pairs.corrupted, padding_side="right")

        def noise(z: torch.Tensor, hook: Any) -> torch.Tensor:
            z[:, :, 1] = corrupted["z", 1][:, :, 1]
            return z

        hooks: list[Any] = [("blocks.1.attn.hook_z", noise)]
        noised = values.run_with_hooks(pairs.clean, padding_side="right", fwd_hooks=hooks)
        clean, cache = values.run_with_cache(pairs.clean, padding_side="right")
    p = [
        out[rows, pairs.answers].softmax(-1)[rows, pairs.labels[:, 0]].mean().item()
        for out in (clean, noised)
    ]
    assert (found.p_io.clean, head.p_io) == pytest.approx(tuple(p), rel=1e-3)
    assert p[0] > 0.9
    assert p[1] < 0.1
    # What it writes for each name, by the weights; of pre-LN models the final scale is a number.
    final = values.ln_final
    written = (cache["z", 1][rows, pairs.answers, 1] @ values.blocks[1].attn.W_O[1]).double()
    scale = cache["ln_final.hook_scale"][rows, pairs.answers].double()
    weight = (final.w if hasattr(final, "w") else torch.ones(values.cfg.d_model)).double()
    centred = (written - written.mean(-1, keepdim=True)) / scale * weight
    logits = centred @ values.unembed.W_U.double()
    told = clean[rows, pairs.answers].double()
    absent = {name: pairs.corrupted[rows, where[name]] for name in ("IO", "S1")}
    io, subject = pairs.labels.unbind(1)
    whole = (told[rows, io] - told[rows, absent["IO"]]).mean()
    for own, name, token in ((head.direct_on_io, "IO", io), (head.direct_on_s, "S1", subject)):
        share = (logits[rows, token] - logits[rows, absent[name]]).mean() / whole
        assert own == pytest.approx(share.item(), rel=1e-3)
        assert own > 0.05


def _judge_all(judge: Any, measured: HeadMeasures, *least: float) -> Any:
    every = [(layer, head) for layer in range(4) for head in range(4)]
    return judge(measured, *least) | {"previous token": every}


def test_path_patching_into_queries_is_what_s_inhibition_is_judged_by(
    values: ResValTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judged so that every head has one role, all are reported."""
    monkeypatch.setattr(ioi_roles, "_judge", partial(_judge_all, ioi_roles._judge))
    found = head_roles(values, PROMPTS)
    readers = {
        each.head for role in ("name mover", "subject suppressor") for each in found.roles[role]
    }
    pairs = ioi_pairs(values, PROMPTS, "ABC", 0)
    gap = found.logit_difference.clean - found.logit_difference.corrupted
    largest = 0.0
    for each in found.roles["previous token"]:
        later = [f"{head}<q>" for head in sorted(readers) if head[1] > each.head[1]]
        wanted = 0.0
        if later:
            wanted = path_patch(values, pairs, each.head, later).effect.mean().item() / gap
        assert each.into_queries == pytest.approx(wanted, rel=1e-3, abs=1e-6)
        largest = max(largest, abs(wanted))
    assert largest > 1e-4


def test_direct_effects_are_attributions(values: ResValTransformer) -> None:
    pairs = ioi_pairs(values, PROMPTS)
    with torch.no_grad():
        ours = _direct_effects(values, pairs, [])
    wanted = attribute(values, pairs.clean, pairs.labels, pairs.last).heads.mean(0).sum(1)
    torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-4)


def test_links_frozen_to_a_corrupted_prompt_carry_what_it_carries(
    values: ResValTransformer,
) -> None:
    found = link_signals(values, PROMPTS, kinds=("token", "position"))
    assert set(found.effects) == {
        "all", "v1", "v2", "v3", *(f"v{i}.h{head}" for i in (1, 2, 3) for head in range(4))
    }  # fmt: skip
    for kind in ("token", "position"):
        pairs = ioi_pairs(values, PROMPTS, kind, 0)
        with torch.no_grad():
            _, corrupted = values.run_with_cache(pairs.corrupted, padding_side="right")

            def put(link: torch.Tensor, hook: Any, corrupted: Any = corrupted) -> torch.Tensor:
                link[:, :, 2] = corrupted["v_link", 1][:, :, 2]
                return link

            hooks: list[Any] = [("blocks.1.attn.hook_v_link", put)]
            logits = values.run_with_hooks(pairs.clean, padding_side="right", fwd_hooks=hooks)
            plain = values(pairs.clean, padding_side="right")
        rows = torch.arange(len(PROMPTS))
        metric, clean = (
            pairs.measure(out[rows, pairs.answers]).mean().item() for out in (logits, plain)
        )
        assert found.effects["v1.h2"][kind] == pytest.approx(metric / clean - 1, abs=1e-4)
    assert found.effects["v1.h2"]["token"] < -1.5
    assert abs(found.effects["v1.h2"]["position"]) < 0.05


def test_a_classic_model_carries_nothing() -> None:
    model = ResValTransformer.from_pretrained("stories-small-classic")
    with pytest.raises(ValueError, match="this model has no links"):
        link_signals(model, PROMPTS)
    assert [h.head for h in head_roles(model, PROMPTS).roles["subject mover"]] == ["a0.h1"]


def test_a_model_that_does_not_know_the_task_has_no_roles(values: ResValTransformer) -> None:
    untrained = values.with_streams("v")
    for parameter in untrained.parameters():
        torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="no head has a role"):
        head_roles(untrained, PROMPTS)
    with pytest.raises(ValueError, match="share must lie between 0 and 1; got 0"):
        head_roles(values, PROMPTS, share=0)
