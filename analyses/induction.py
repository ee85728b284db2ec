"""Induction: which heads copy from the context, and whether they need the links."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from resval_lens.analyses.emergence import holm_of_both, two_t_tests
from resval_lens.analyses.head_scores import (
    MAX_TOKENS,
    RepeatedLoss,
    RepeatedTokens,
    candidates,
    head_scores,
    icl_score,
    link_means,
    repeated_loss,
    repeated_tokens,
)
from resval_lens.hooks import link_groups, link_hooks, zero
from resval_lens.recorded import RecordedRun
from resval_lens.streams import shorthand
from resval_lens.transformer import ResValTransformer

MEASURES = ("ila1", "ila1_labels", "tla2", "tila2", "induction_strength", "cla")
"""What is recorded of attention in training: :mod:`resval_lens.tasks.icl_measures`."""


def induction_study(
    model: ResValTransformer,
    *,
    n: int = 50,
    length: int | None = None,
    seed: int = 0,
    bos: int | None = None,
    among: Sequence[int] | None = None,
    text: Int[Tensor, "row pos"] | None = None,
    top: int = 5,
    max_tokens: int = MAX_TOKENS,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Head scores, the loss of repeated tokens with every link as trained and edited, as JSON.

    - ``scores``: name to [layer][head] (:class:`~resval_lens.analyses.head_scores.HeadScores`);
      ``top``: the best heads of each; ``even``: what attention has that is spread evenly.
    - ``loss``: mean losses in nats where the tokens come ``first`` and again (``second``), also
      ``by_token``; ``uniform`` is the loss of guessing among the tokens that are drawn from.
    - ``edits``: the same of every link at once, of each layer's and of each alone, by ``ablation``:
      ``zero``, or ``mean`` (at each position, over ``n`` other rows of repeated tokens); with
      ``rise``, how much ``second`` is above that of the model as trained. Empty without links.
    - ``icl``: the in-context learning score on ``text``; None without.

    Args:
        n, length, bos, among: as for :func:`~resval_lens.analyses.head_scores.repeated_tokens`.
        text: rows of text without padding.
        top: heads to list of each score.
        max_tokens: rows × positions of one model call, one row at least.
        note: called with what is being done.

    Raises:
        ValueError: as ``repeated_tokens`` and ``icl_score``; ``top`` below 1.
    """
    if top < 1:
        raise ValueError(f"top must be 1 or more; got {top}")
    generator = torch.Generator().manual_seed(seed)
    repeated = repeated_tokens(model, generator, n, length, bos, among)
    note(f"head scores on {n} rows of {repeated.length} tokens, twice")
    scores = head_scores(model, repeated, max_tokens)._asdict()
    whole = repeated_loss(model, repeated, max_tokens)
    edits = []
    if model.cfg.streams:
        reference = repeated_tokens(model, generator, n, repeated.length, bos, among)
        edits = losses_by_edit(model, repeated, reference, max_tokens, note)
        for row in edits:
            row["rise"] = row["second"] - whole.second.mean().item()
    return {
        "streams": shorthand(model.cfg.streams),
        "rows": n,
        "length": repeated.length,
        "seed": seed,
        "bos": bos,
        "scores": {name: score.tolist() for name, score in scores.items()},
        "top": {name: top_heads(score, top) for name, score in scores.items()},
        "even": even_scores(repeated),
        "loss": {
            **_means(whole),
            "by_token": {half: loss.tolist() for half, loss in whole._asdict().items()},
            "uniform": math.log(len(candidates(model, bos, among))),
        },
        "edits": edits,
        "icl": None if text is None else icl_score(model, text, max_tokens=max_tokens)._asdict(),
    }


def even_scores(repeated: RepeatedTokens) -> dict[str, float]:
    """Head scores of attention that is spread evenly: at position i, 1/(i + 1) on each token."""
    weights = 1 / np.arange(1, repeated.tokens.shape[1] + 1)
    again = float(weights[-repeated.length :].mean())
    return {"previous": float(weights[1:].mean()), "duplicate": again, "prefix_matching": again}


def top_heads(scores: Float[Tensor, "layer head"], count: int) -> list[dict[str, Any]]:
    """The ``count`` heads of the highest score (all, if there are fewer), best first."""
    order = scores.flatten().argsort(descending=True, stable=True)[:count].tolist()
    places = [divmod(number, scores.shape[1]) for number in order]
    return [{"layer": i, "head": h, "score": scores[i, h].item()} for i, h in places]


def losses_by_edit(
    model: ResValTransformer,
    repeated: RepeatedTokens,
    reference: RepeatedTokens,
    max_tokens: int = MAX_TOKENS,
    note: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Mean losses of repeated tokens (nats) with links ablated: all, each layer's, each alone.

    Args:
        reference: rows whose mean, position by position, takes a link's place.

    Raises:
        ValueError: a model without links; rows of another length in ``reference``; ``max_tokens``
            below 1.
    """
    if reference.tokens.shape[1] != repeated.tokens.shape[1]:
        raise ValueError(
            f"reference has rows of {reference.tokens.shape[1]} tokens, not "
            f"{repeated.tokens.shape[1]}"
        )
    ablations = {"zero": zero(), "mean": link_means(model, reference.tokens, max_tokens)}
    rows = []
    for name, selected in link_groups(model).items():
        for ablation, edit in ablations.items():
            note(f"{name}: {ablation}")
            with model.hooks(fwd_hooks=link_hooks(model, edit, selected)):
                loss = repeated_loss(model, repeated, max_tokens)
            rows.append({"links": name, "ablation": ablation, **_means(loss)})
    return rows


def _means(loss: RepeatedLoss) -> dict[str, float]:
    return {half: values.mean().item() for half, values in loss._asdict().items()}


def measures_over_training(
    runs: Sequence[RecordedRun], share: float = 0.5, baseline: str = "classic"
) -> dict[str, Any]:
    """Reddy's attention measures in training, and when each rises, as JSON.

    ``variants`` hold ``seeds``, ``steps`` (those that every seed has) and for each measure the
    curves ``by_seed``, their ``mean`` and ``sd`` (the population's) at each step.

    ``rises`` hold, for each measure, variant and ``bar``, the first recorded steps ``by_seed`` at
    which a run has come ``share`` of a way (None: never), their ``mean`` and ``sd`` over the seeds
    that have one, and t-tests against the baseline (:func:`~resval_lens.analyses.emergence.
    two_t_tests`), each also corrected for being so many. The way is

    - bar ``own``: from the run's first value to its last;
    - bar ``baseline``: from the first to the last value of the baseline's mean: one ``level`` for
      all. It is left out where no run is the baseline's.

    A run that ends no higher than it began has not risen. A share of the final value alone would
    not do: attention that is spread evenly reaches labels, too, so that some measures pass half of
    it before training.

    Raises:
        ValueError: no runs, ``share`` not between 0 and 1, a run that did not record the measures,
            or two of one variant and seed.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1; got {share}")
    if not runs:
        raise ValueError("there are no runs to measure")
    by_variant: dict[str, dict[int, RecordedRun]] = {}
    for recorded in runs:
        own = by_variant.setdefault(recorded.run.name, {})
        if own.setdefault(recorded.run.seed, recorded) is not recorded:
            raise ValueError(
                f"{recorded.folder} and {own[recorded.run.seed].folder} have the same variant and "
                "seed; compare one"
            )
        for line in recorded.metrics:
            lacking = [name for name in MEASURES if name not in line.get("attention", {})]
            if lacking:
                raise ValueError(
                    f"{recorded.folder}: step {line['step']} lacks the attention measure "
                    f"{lacking[0]!r}"
                )
    variants = {name: _curves(list(own.values())) for name, own in by_variant.items()}
    rises = []
    for measure in MEASURES:
        curve = variants[baseline]["measures"][measure]["mean"] if baseline in variants else ()
        common = _level(curve, share)
        for bar, level in (("own", None), ("baseline", common)):
            if bar == "baseline" and level is None:
                continue
            found = {
                name: {seed: _risen(each, measure, share, level) for seed, each in own.items()}
                for name, own in by_variant.items()
            }
            for name, steps in found.items():
                row = {"measure": measure, "variant": name, "bar": bar, "level": level}
                rises.append({**row, **_summary(steps, found.get(baseline, {}))})
    both = zip(rises, holm_of_both(rises), strict=True)
    rises = [row | corrected for row, corrected in both]
    return {"share": share, "baseline": baseline, "variants": variants, "rises": rises}


def _curves(runs: Sequence[RecordedRun]) -> dict[str, Any]:
    """The measures of one variant's runs, at the steps that all of them recorded."""
    found = [{line["step"]: line["attention"] for line in each.metrics} for each in runs]
    steps = [step for step in found[0] if all(step in lines for lines in found)]
    measures = {}
    for name in MEASURES:
        values = np.array([[lines[step][name] for step in steps] for lines in found])
        by_seed = {str(each.run.seed): row.tolist() for each, row in zip(runs, values, strict=True)}
        measures[name] = {
            "by_seed": by_seed, "mean": values.mean(0).tolist(), "sd": values.std(0).tolist()
        }  # fmt: skip
    return {"seeds": [each.run.seed for each in runs], "steps": steps, "measures": measures}


def _level(values: Sequence[float], share: float) -> float | None:
    """``share`` of the way from the first to the last value; None if it does not lead up."""
    if not values or values[-1] <= values[0]:
        return None
    return values[0] + share * (values[-1] - values[0])


def _risen(recorded: RecordedRun, measure: str, share: float, level: float | None) -> int | None:
    """The first step beyond ``level``; by default, ``share`` of the way to the last value."""
    values = {line["step"]: line["attention"][measure] for line in recorded.metrics}
    bar = _level(list(values.values()), share) if level is None else level
    beyond = (step for step, value in values.items() if bar is not None and value > bar)
    return next(beyond, None)


def _summary(steps: Mapping[int, int | None], base: Mapping[int, int | None]) -> dict[str, Any]:
    reached = [step for step in steps.values() if step is not None]
    numbers = [
        {seed: float(step) for seed, step in each.items() if step is not None}
        for each in (steps, base)
    ]
    # Of runs that never got there a test of the others would say too little or too much.
    whole = steps is not base and len(numbers[0]) + len(numbers[1]) == len(steps) + len(base)
    return {
        "by_seed": {str(seed): step for seed, step in steps.items()},
        "mean": float(np.mean(reached)) if reached else None,
        "sd": float(np.std(reached)) if reached else None,
        **two_t_tests(*(numbers if whole else ({}, {}))),
    }
