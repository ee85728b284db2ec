"""Roles tested on other prompts, against plain hooks on the heads' outputs."""

from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch

from resval_lens.analyses.results.intervals import mean_interval
from resval_lens.analyses.studies.role_study import RoleStudy, role_study
from resval_lens.analyses.tasks.problem import Problem, pose_two
from resval_lens.analyses.tasks.task import Asked

PROMPTS = 8


@pytest.fixture(scope="module")
def posed() -> tuple[Problem, Problem]:
    return pose_two("stories-small-classic", PROMPTS, Asked(corruption="ABC"), "ioi")


@pytest.fixture(scope="module")
def study(posed: tuple[Problem, Problem]) -> RoleStudy:
    return role_study(*posed, draws=2)


@torch.no_grad()
def knocked_out(problem: Problem, heads: set[str], ablation: str) -> dict[str, torch.Tensor]:
    """Every metric of each prompt with some heads' z replaced by plain hooks."""
    model, pairs = problem.model, problem.pairs
    _, corrupted = model.run_with_cache(pairs.corrupted)
    of_group = pairs.groups[:, None] == pairs.groups[None]

    def put(z: torch.Tensor, hook: object, layer: int) -> torch.Tensor:
        other = corrupted["z", layer]
        if ablation == "mean":
            rows = [other[own].mean(0) for own in of_group]
            other = torch.stack(rows)
        edited = z.clone()
        for head in range(model.cfg.n_heads):
            if f"a{layer}.h{head}" in heads:
                edited[:, :, head] = other[:, :, head]
        return edited

    hooks = [
        (f"blocks.{layer}.attn.hook_z", partial(put, layer=layer))
        for layer in range(model.cfg.n_layers)
    ]
    logits = model.run_with_hooks(pairs.clean, fwd_hooks=hooks)
    answered = logits[torch.arange(len(pairs)), pairs.answers]
    return {
        name: replace(pairs, metric=metric).measure(answered)
        for name, metric in problem.metrics.items()
    }


@pytest.mark.parametrize("ablation", ["resample", "mean"])
def test_roles_that_are_knocked_out_are_what_plain_hooks_give(
    posed: tuple[Problem, Problem], study: RoleStudy, ablation: str
) -> None:
    _, others = posed
    found = study.knockouts[ablation]
    assert found.roles
    model = others.model.cfg
    every = {
        f"a{layer}.h{head}" for layer, head in product(range(model.n_layers), range(model.n_heads))
    }
    inside = {head for role in found.roles for head in role.heads}
    clean = knocked_out(others, set(), ablation)
    circuit = knocked_out(others, every - inside, ablation)
    for role in found.roles:
        out = knocked_out(others, set(role.heads), ablation)
        both = knocked_out(others, every - inside | set(role.heads), ablation)
        for name, effect in role.effects.items():
            assert effect.change.value == pytest.approx(
                float((out[name] - clean[name]).mean()), abs=2e-4
            )
            assert role.incomplete[name] == pytest.approx(
                abs(float(both[name].mean() - out[name].mean())), abs=2e-4
            )
    for name, kept in found.circuit.items():
        assert kept.clean == pytest.approx(float(clean[name].mean()), abs=2e-4)
        assert kept.circuit == pytest.approx(float(circuit[name].mean()), abs=2e-4)
        share = (kept.circuit - kept.corrupted) / (kept.clean - kept.corrupted)
        assert kept.faithfulness == pytest.approx(share)
    for head, least in found.minimality.items():
        role = next(role for role in found.roles if head in role.heads)
        rest = set(role.heads) - {head}
        without = knocked_out(others, every - inside | rest, ablation)
        both = knocked_out(others, every - inside | set(role.heads), ablation)
        for name, value in least.items():
            assert value == pytest.approx(
                abs(float(both[name].mean() - without[name].mean())), abs=2e-4
            )


def test_other_heads_are_as_many_without_a_role_and_the_same_in_both_ablations(
    study: RoleStudy,
) -> None:
    for one, other in zip(*(study.knockouts[a].roles for a in ("resample", "mean")), strict=True):
        assert len(one.effects["P(IO)"].drawn) == 2
        assert one.heads == other.heads
    again = RoleStudy.from_dict(study.to_dict())
    assert again.knockouts == study.knockouts
    assert len(study.csv()) >= 3


def test_sentences_say_which_roles_are_needed(study: RoleStudy) -> None:
    there, costs, *by_metric = study.sentences()
    for role in study.knockouts["resample"].roles:
        change = role.effects["logit difference"].change.value
        assert f"{role.role} {change:+.2f}".replace(" -", " −") in costs
    every = [head.head for heads in study.roles.roles.values() for head in heads]
    assert all((f"{head} (" in costs) == (every.count(head) > 1) for head in every)
    assert there.startswith("Roles of heads: ")
    named = {role for role, heads in study.roles.roles.items() if heads}
    assert all(f"{role} ({len(study.roles.roles[role])})" in there for role in named)
    for metric, said in zip(study.knockouts["mean"].circuit, by_metric, strict=True):
        needed = [
            role.role
            for role, other in zip(*(each.roles for each in study.knockouts.values()), strict=True)
            if all(
                x.change.high < 0 and all(x.change.value < drawn for drawn in x.drawn)
                for x in (role.effects[metric], other.effects[metric])
            )
        ]
        assert (
            f"{metric}: needed both resampled and at means: {', '.join(needed) or 'no role'}."
            in said
        )


def test_what_cannot_be_studied_is_refused(posed: tuple[Problem, Problem]) -> None:
    with pytest.raises(ValueError, match="draws must be 1 or more; got 0"):
        role_study(*posed, draws=0)
    classifiers = pose_two("classic", 4)
    with pytest.raises(ValueError, match="roles are of indirect objects; these prompts are of"):
        role_study(*classifiers)


def test_an_interval_of_a_mean_is_that_of_resamples() -> None:
    values = np.random.default_rng(0).normal(2, 1, 40)
    found = mean_interval(values)
    drawn = np.random.default_rng(1).integers(0, 40, (20_000, 40))
    low, high = np.percentile(values[drawn].mean(1), [2.5, 97.5])
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == (pytest.approx(low, abs=0.03), pytest.approx(high, abs=0.03))
    same = mean_interval(np.full(5, 3.0))
    assert (same.value, same.low, same.high) == (3, 3, 3)
    with pytest.raises(ValueError, match="an interval needs one value or more"):
        mean_interval(np.array([]))
