"""In-context against global knowledge, by counts (arXiv 2412.11459, section 4, Proposition 3).

    ξ_B1 − ξ_B2 = w [log π_b(B1|A) − log π_b(B2|A)] + τ3 (n1 − n2)/(n1 + n2)

after prompts in which B1 followed A n1 times and B2 n2 times. A constructed induction head has
w = 1 and its own τ3; of a trained one both are fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from resval_lens.analyses.memory.curves import over_seeds
from resval_lens.memory.model import MemoryTransformer
from resval_lens.recorded_memory import RecordedMemoryRun
from resval_lens.tasks.bigrams import Bigrams
from resval_lens.tasks.knowledge_prompts import KnowledgePrompts, knowledge_prompts
from resval_lens.training.memory import batch_logits

FLOOR = 1e-3
"""What counts as the probability of a bigram that is rarer."""

MOST = 5
"""Counts go from 1 to this."""

ANY_TOKEN = "any token"
"""The group of A's that leaves no token out."""

LARGEST_SEED = 2**32 - 1

_POINTS = 8  # of each cell, kept for the scatter
_VARIED = ("name", "seed", "positions", "streams", "n_layers")  # what makes a variant or a seed


@dataclass(frozen=True, eq=False)
class Subject:
    """A model that is asked.

    Attributes:
        name: "constructed" or a variant.
        seed: of its training; of a constructed model the one that drew its vectors.
        groups: token ids that A is drawn from, by name; None is all.
        no_fillers: tokens that are never the filler: fixed triggers.
        tau3: where it is known.
    """

    name: str
    model: MemoryTransformer
    bigrams: Bigrams
    groups: dict[str, Sequence[int] | None]
    seed: int = 0
    no_fillers: Sequence[int] = ()
    tau3: float | None = None


def trained_subject(recorded: RecordedMemoryRun) -> Subject:
    """A recorded run's model; its A's are triggers, and apart from them tokens that never were.

    Where each sequence draws its triggers among all tokens, A is any token.

    Raises:
        ValueError: its model was not kept.
    """
    task = recorded.run.task
    triggers = task.trigger_tokens
    rest = [u for u in range(task.bigrams.d_vocab) if u not in set(triggers)]
    groups: dict[str, Sequence[int] | None] = {"triggers": triggers, "others": rest}
    groups = {name: ids for name, ids in groups.items() if ids}
    if task.triggers == "drawn" and task.candidates is None:
        groups = {ANY_TOKEN: None}
    return Subject(
        recorded.run.name,
        recorded.model(),
        task.bigrams,
        groups,
        recorded.run.seed,
        triggers if task.triggers == "fixed" else (),
    )


def trained_subjects(runs: Sequence[RecordedMemoryRun]) -> list[Subject]:
    """:func:`trained_subject` of each of runs that can be compared.

    Raises:
        ValueError: as :func:`check_comparable`; a model that was not kept.
    """
    check_comparable(runs)
    return [trained_subject(recorded) for recorded in runs]


def check_comparable(
    runs: Sequence[RecordedMemoryRun],
    task_may_differ: Collection[str] = ("triggers", "output_range"),
) -> None:
    """Checks that means over the seeds of a variant, set beside another's, say something.

    Runs of one variant agree in all but the seed; of two variants in all but positions, streams,
    layers and the fields of the task in ``task_may_differ``.

    Raises:
        ValueError: two runs of one variant and seed; runs that differ in more, named with the
            setting.
    """
    twins: dict[tuple[str, int], RecordedMemoryRun] = {}
    first: dict[str, RecordedMemoryRun] = {}
    free = (*_VARIED, *(f"task.{name}" for name in task_may_differ))
    for recorded in runs:
        name, seed = recorded.run.name, recorded.run.seed
        twin = twins.setdefault((name, seed), recorded)
        if twin is not recorded:
            raise ValueError(
                f"{twin.folder} and {recorded.folder} are the same variant and seed; keep one"
            )
        other = first.setdefault(name, recorded)
        for its, may_differ in ((other, ("seed",)), (runs[0], free)):
            theirs = _settings(its)
            for setting, value in _settings(recorded).items():
                if setting not in may_differ and value != theirs[setting]:
                    differs = f"{setting}={value!r}, {its.folder} {theirs[setting]!r}"
                    if isinstance(value, dict | list):  # bigrams are long
                        differs = f"other {setting} than {its.folder}"
                    raise ValueError(
                        f"{recorded.folder} has {differs}; runs that are compared must agree in it"
                    )


def _settings(recorded: RecordedMemoryRun) -> dict[str, Any]:
    settings = recorded.run.to_dict()
    task = settings.pop("task")
    return settings | {f"task.{name}": value for name, value in task.items()}


def check_seed(seed: int) -> None:
    """Checks a seed that prompts, sequences or vectors are drawn from.

    Raises:
        ValueError: it is below 0 or above ``LARGEST_SEED``.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed must be a whole number from 0 to {LARGEST_SEED}; got {seed}")


def global_knowledge(bigrams: Bigrams) -> Float[Tensor, "d_vocab d_vocab"]:
    """log max(π_b(v|u), FLOOR) at [u, v] (nats, float64), less each row's mean.

    What all tokens have in common changes no probability, but a memory of random vectors would
    hear it from every vector that is like some key.
    """
    logs = bigrams.log_conditional(FLOOR)
    return logs - logs.mean(1, keepdim=True)


def margins(model: MemoryTransformer, prompts: KnowledgePrompts) -> Float[Tensor, " prompt"]:
    """ξ_B1 − ξ_B2 after each prompt, in nats, float64."""
    last = batch_logits(model, prompts.tokens)[:, -1].double()
    rows = torch.arange(len(last))
    return last[rows, prompts.first] - last[rows, prompts.second]


def least_squares(
    x: Float[Tensor, "n k"], y: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"], float | None]:
    """b = argmin |y − x b|², its standard errors, and R².

        se_i = √(σ² (xᵀx)⁻¹_ii),  σ² = |y − x b|²/(n − k),  R² = 1 − |y − x b|²/|y − ȳ|²

    Without an intercept, unless x has one. R² is None where y does not vary.

    Raises:
        ValueError: no more rows than columns, or columns that depend on one another.
    """
    n, k = x.shape
    if n <= k or int(torch.linalg.matrix_rank(x)) < k:
        raise ValueError(f"x must have more rows than columns, independent ones; got [{n}, {k}]")
    inverse = torch.linalg.inv(x.T @ x)
    b = inverse @ (x.T @ y)
    left = (y - x @ b).square().sum()
    errors = (left / (n - k) * inverse.diagonal()).sqrt()
    varies = (y - y.mean()).square().sum()
    return b, errors, float(1 - left / varies) if varies > 0 else None


def flip_point(against: Float[Tensor, " n"], wins: Bool[Tensor, " n"]) -> dict[str, float | None]:
    """The gap g at which the winner flips: ``wins = against < g`` is wrong least often.

    ``at`` is the middle between the two gaps that enclose g, of several equally good g their mean;
    ``errors`` is the share of prompts that it gets wrong. ``at`` is None where a g beyond all gaps
    does best: nothing flips.
    """
    order = against.argsort()
    gaps, won = against[order], wins[order].long()
    lost_before = torch.cat([won.new_zeros(1), (1 - won).cumsum(0)])
    wrong = lost_before + won.sum() - torch.cat([won.new_zeros(1), won.cumsum(0)])
    # A cut stands between two different gaps, or beyond all of them.
    possible = torch.ones_like(wrong, dtype=torch.bool)
    possible[1:-1] = gaps[1:] > gaps[:-1]
    least = wrong[possible].min()
    best = (possible & (wrong == least)).nonzero().flatten()
    share = float(least) / len(gaps)
    if best[0] == 0 or best[-1] == len(gaps):
        return {"at": None, "errors": share}
    return {"at": float(((gaps[best - 1] + gaps[best]) / 2).mean()), "errors": share}


def group_study(
    subject: Subject, queries: Sequence[int] | None, prompts: int, generator: Generator
) -> dict[str, Any]:
    """Who wins by counts, the fit of w and τ3, and the gap at which (2, 1) flips.

    Returns:
        ``fit`` (w, τ3, standard errors, R²), ``flip`` (as :func:`flip_point`, for (2, 1), beside
        ``fitted``, τ3/3w, where w is above 0 by two standard errors), ``majority`` (share of
        prompts with n1 ≠ n2 that the more frequent wins), and one row of ``cells`` for each
        (n1, n2), with some of its prompts in ``points``.

    Raises:
        ValueError: as ``knowledge_prompts``.
    """
    asked: list[tuple[int, int]] = [
        (n1, n2) for n1 in range(1, MOST + 1) for n2 in range(1, MOST + 1)
    ]
    cells, gaps, shares, measured = [], [], [], []
    flip: dict[str, Any] = {}
    for n1, n2 in asked:
        drawn = knowledge_prompts(
            subject.bigrams, n1, n2, prompts, generator,
            shuffled=True, queries=queries, triggers=subject.no_fillers,
        )  # fmt: skip
        gap = drawn.global_margin(subject.bigrams, FLOOR)
        margin = margins(subject.model, drawn)
        if (n1, n2) == (2, 1):
            flip = flip_point(-gap, margin > 0)
        gaps.append(gap)
        shares.append(torch.full_like(gap, drawn.context_margin))
        measured.append(margin)
    gap, share, margin = torch.cat(gaps), torch.cat(shares), torch.cat(measured)
    fitted, errors, r2 = least_squares(torch.stack([gap, share], 1), margin)
    (weight, tau3), (weight_error, tau3_error) = fitted.tolist(), errors.tolist()
    expected = weight * gap + tau3 * share
    if subject.tau3 is not None:
        expected = gap + subject.tau3 * share
    for i, (n1, n2) in enumerate(asked):
        rows = slice(i * prompts, (i + 1) * prompts)
        few = slice(i * prompts, i * prompts + min(_POINTS, prompts))
        cells.append(
            {
                "n1": n1,
                "n2": n2,
                "wins": float((margin[rows] > 0).double().mean()),
                "expected_wins": float((expected[rows] > 0).double().mean()),
                "margin": float(margin[rows].mean()),
                "expected": float(expected[rows].mean()),
                "gap": float(gap[rows].mean()),
                "points": [
                    [round(x, 4), round(y, 4)]
                    for x, y in zip(expected[few].tolist(), margin[few].tolist(), strict=True)
                ],
            }
        )
    decided = share != 0
    flips_at = tau3 / (3 * weight) if weight > 2 * weight_error else None
    return {
        "fit": {"weight": weight, "weight_error": weight_error, "tau3": tau3,
                "tau3_error": tau3_error, "r2": r2},
        "flip": {**flip, "fitted": flips_at},
        "majority": float(((margin > 0) == (share > 0))[decided].double().mean()),
        "off_expected": float((margin - expected).abs().mean()),
        "cells": cells,
    }  # fmt: skip


def knowledge_study(
    subjects: Sequence[Subject],
    prompts: int = 200,
    seed: int = 0,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """:func:`group_study` of every subject and group, and means over seeds.

    Args:
        prompts: for each (n1, n2). Subjects of one vocabulary see the same in a group if A and
            the fillers are drawn among the same tokens: runs with fixed triggers do, and so do
            constructed models and runs with drawn triggers, in which A and fillers are any.

    Returns:
        ``subjects``: each one's groups; ``over_seeds``: :func:`knowledge_over_seeds`.

    Raises:
        ValueError: fewer than 2 prompts, a seed below 0 or above ``LARGEST_SEED``, or prompts that
            a model is too short for.
    """
    check_seed(seed)
    if prompts < 2:
        raise ValueError(f"prompts must be 2 or more; got {prompts}")
    studied = []
    for subject in subjects:
        found = {}
        for place, (group, queries) in enumerate(subject.groups.items()):
            note(f"{subject.name}: {group}")
            generator = Generator().manual_seed(1_000 * seed + place)
            found[group] = group_study(subject, queries, prompts, generator)
        studied.append(
            {"name": subject.name, "seed": subject.seed, "tau3": subject.tau3, "groups": found}
        )
    return {
        "seed": seed,
        "prompts": prompts,
        "floor": FLOOR,
        "subjects": studied,
        "over_seeds": knowledge_over_seeds(studied),
    }


def knowledge_over_seeds(studied: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each number of :func:`group_study` over the seeds of a name and group, as ``over_seeds``.

    ``paired`` has ``flip`` and ``fitted_flip`` of the seeds that have both: only of those can one
    be held against the other.
    """
    rows = []
    for name in dict.fromkeys(each["name"] for each in studied):
        own = [each for each in studied if each["name"] == name]
        for group in own[0]["groups"]:
            found = {each["seed"]: each["groups"][group] for each in own if group in each["groups"]}
            flips: dict[int, dict[str, float | None]] = {
                seed: {"flip": g["flip"]["at"], "fitted_flip": g["flip"]["fitted"]}
                for seed, g in found.items()
            }
            values: dict[str, dict[int, float | None]] = {
                "weight": {seed: g["fit"]["weight"] for seed, g in found.items()},
                "tau3": {seed: g["fit"]["tau3"] for seed, g in found.items()},
                "r2": {seed: g["fit"]["r2"] for seed, g in found.items()},
                "majority": {seed: g["majority"] for seed, g in found.items()},
            }
            paired = {}
            for key in ("flip", "fitted_flip"):
                values[key] = {seed: flip[key] for seed, flip in flips.items()}
                both = {seed: None if None in f.values() else f[key] for seed, f in flips.items()}
                paired[key] = over_seeds(both)
            rows.append(
                {"name": name, "group": group, "seeds": list(found), "paired": paired}
                | {key: over_seeds(numbers) for key, numbers in values.items()}
            )
    return rows
