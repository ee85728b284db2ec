"""Any two models on one task, side by side: every study of the toolkit, at once.

    task = pose_alike(("stories-small-classic", "stories-small-values"), 64, Asked(seed=0))
    compare_two(task).differences

Models may differ in size, streams and tokenizer. Where all read the same prompts, their measures
are compared prompt by prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from resval_lens.analyses.attribution.logits import attribute
from resval_lens.analyses.circuits.study import CircuitStudy, circuit_study
from resval_lens.analyses.comparison.lm_compare import PATCHED
from resval_lens.analyses.comparison.two_models_report import (
    Attributed,
    ComparedModels,
    Difference,
    ModelFound,
    Size,
)
from resval_lens.analyses.results.seeds import TTests, corrected, t_tests
from resval_lens.analyses.studies.ablation import AblationStudy, ablation_study
from resval_lens.analyses.studies.attribution import HeadShares
from resval_lens.analyses.studies.patching import Patching
from resval_lens.analyses.tasks import TASKS, Asked, Task, find_task
from resval_lens.analyses.tasks.problem import Problem
from resval_lens.hooks.answers import answer_logits
from resval_lens.hooks.patching import patch
from resval_lens.hooks.prompts import MAX_TOKENS, Metric, ready
from resval_lens.io.formats import format_of
from resval_lens.io.formats.format import NO_SETTINGS, Settings
from resval_lens.load import Loaded, load_model
from resval_lens.notes import Note
from resval_lens.runtime import evaluating

METHOD = "eap"
EDITS = ("zero", "resample")
SCALES = (-1.0, 0.5, 2.0)
TOP = 10
"""Heads' parts that attribution names."""
Two = tuple[Problem, Problem]


@dataclass(frozen=True)
class OneTask:
    """Models on one task.

    Attributes:
        scored, held_out: each model's prompts, and as many others.
        unlike: why the models do not read the same prompts; empty if they do.
    """

    scored: Two
    held_out: Two
    unlike: str

    def by(self, metric: str) -> OneTask:
        """The same by another of the task's metrics.

        Raises:
            ValueError: the task has no such metric.
        """
        first, second = ((a.by(metric), b.by(metric)) for a, b in (self.scored, self.held_out))
        return replace(self, scored=first, held_out=second)


def pose_alike(
    names: Sequence[str],
    prompts: int,
    asked: Asked,
    task: str | Path | Task | None = None,
    device: str | None = None,
    settings: Settings = NO_SETTINGS,
) -> OneTask:
    """Two models by name, on ``prompts`` prompts of a task and on as many others.

    They are given the same texts, of words that are one token with both tokenizers; where there
    are too few of those, each model is given texts of its own.

    Args:
        task: as :func:`~resval_lens.analyses.tasks.problem.pose` has it; by default the first that
            both can read.
        settings: what models' files leave open; of models in files, to those whose format takes it.

    Raises:
        ValueError: another number of models than two; models that no task is for, or not this one;
            what drawing its prompts refuses, by the model.
    """
    if len(names) != 2:
        raise ValueError(f"compare takes two models, or none; got {', '.join(names)}")
    chosen = None if task is None else find_task(task)
    taken = [_taken(name, settings) for name in names]
    for name in settings:
        if not any(name in own for own in taken):
            raise ValueError(f"neither of {' and '.join(names)} takes a setting {name!r}")
    loaded = [
        load_model(name, device=device, settings=own)
        for name, own in zip(names, taken, strict=True)
    ]
    kinds = {each.name: ("vectors", "tokens")[each.model.reads_tokens] for each in loaded}
    read = ", ".join(f"{name} reads {kind}" for name, kind in kinds.items())
    if len(set(kinds.values())) > 1:
        raise ValueError(f"no task is for both models: {read}")
    reads_tokens = loaded[0].model.reads_tokens
    if chosen is None:
        chosen = next(each for each in TASKS.values() if each.reads_tokens == reads_tokens)
    if chosen.reads_tokens != reads_tokens:
        wanted = ("vectors", "tokens")[chosen.reads_tokens]
        raise ValueError(f"task {chosen.name}: its prompts are {wanted}; {read}")
    tokenizers = tuple(each.model.tokenizer for each in loaded if each.model.tokenizer)
    try:
        return _one_task(loaded, chosen, 2 * prompts, replace(asked, tokenizers=tokenizers))
    except ValueError as error:
        found = _one_task(loaded, chosen, 2 * prompts, asked)
        return replace(found, unlike=found.unlike and str(error))


def _taken(name: str, settings: Settings) -> Settings:
    """The settings that are for a model, where its format is known before it is fetched."""
    found = format_of(Path(name)) if Path(name).exists() else None
    if found is None:
        return {} if Path(name).exists() or "/" not in name else settings
    return {each: value for each, value in settings.items() if each in found.settings}


def _one_task(loaded: Sequence[Loaded], task: Task, count: int, asked: Asked) -> OneTask:
    drawn = []
    for each in loaded:
        try:
            drawn.append(task.draw(each, count, asked))
        except ValueError as error:
            told = str(error)
            raise ValueError(told if each.name in told else f"{each.name}: {told}") from None
    first, second = drawn
    if first.general != second.general:
        return _one_task(loaded, task, count, replace(asked, general=True))
    half = min(len(first.pairs), len(second.pairs)) // 2  # a file may hold fewer
    if not half:
        raise ValueError(f"{task.name} holds one prompt; two sets of prompts are needed")
    scored, held_out = (
        (first.rows(some), second.rows(some)) for some in (slice(0, half), slice(half, None))
    )
    unlike = "" if _same(first, second) else "their prompts are not the same texts"
    return OneTask(scored, held_out, unlike)


def _same(first: Problem, second: Problem) -> bool:
    """Whether both read the same texts, or tokens or vectors where there are no texts."""
    if first.prompts or second.prompts:
        return first.prompts == second.prompts
    one, other = first.pairs.clean, second.pairs.clean
    same_tokens = not first.model.reads_tokens or _vocabulary(first) == _vocabulary(second)
    return same_tokens and one.shape == other.shape and torch.equal(one, other)


def _vocabulary(problem: Problem) -> object:
    tokenizer = problem.model.tokenizer
    return None if tokenizer is None else tokenizer.get_vocab()


def compare_two(task: OneTask, note: Note = lambda text: None) -> ComparedModels:
    """Two models on one task, by every study.

    Of each: measures on clean and corrupted prompts; every link cut, resampled and scaled, all
    together and each layer's; one head's z, or the residual stream before one layer at one
    position, taken from the clean run; the circuit by ``METHOD``, chosen and evaluated on the
    other prompts; direct logit attribution, against the strongest wrong answer.

    A part that a model does not have, or that it cannot be asked, is left out with the reason.

    Args:
        note: called with what is being done.
    """
    pairs = zip(task.scored, task.held_out, strict=True)
    first, second = (_found(scored, others, note) for scored, others in pairs)
    one, other = (_per_prompt(each) for each in task.scored)
    return ComparedModels(task.unlike, (first, second), _differences(one, other, not task.unlike))


def _found(scored: Problem, others: Problem, note: Note) -> ModelFound:
    name, model = scored.name, scored.model

    def about(text: str) -> None:
        note(f"{name}: {text}")

    about("measures")
    measured = {key: values.mean().item() for key, values in _per_prompt(scored).items()}
    left_out: dict[str, str] = {}
    links: AblationStudy | None = None
    circuit: CircuitStudy | None = None
    attributed: Attributed | None = None
    patched: list[Patching] = []
    if model.cfg.streams:
        links = ablation_study(
            model, scored.pairs, others.pairs, _measures(scored), edits=EDITS, scales=SCALES,
            alone=False, note=about,
        )  # fmt: skip
    else:
        left_out["links"] = "it has none"
    try:
        for site, by in PATCHED.items():
            about(f"patching {site}")
            where = (scored.named_positions or None) if "position" in by else None
            result = patch(model, scored.pairs, site, positions=where, by=by)
            patched.append(Patching.of(scored, result))
    except ValueError as error:
        left_out["patching"] = str(error)
    try:
        circuit = circuit_study(
            model, scored.pairs, others.pairs, method=METHOD, most_edges=0, most_nodes=0, note=about
        )
    except ValueError as error:
        left_out["circuit"] = str(error)
    about("attribution")
    try:
        attributed = _attributed(scored)
    except ValueError as error:
        left_out["attribution"] = str(error)
    cfg = model.cfg
    return ModelFound(
        facts=scored.facts(),
        size=Size(
            cfg.n_layers, cfg.n_heads, cfg.d_model, sum(p.numel() for p in model.parameters())
        ),
        clean={measure: x for (measure, which), x in measured.items() if which == "clean"},
        corrupted={measure: x for (measure, which), x in measured.items() if which != "clean"},
        links=links,
        patched=tuple(patched),
        circuit=circuit,
        attribution=attributed,
        left_out=left_out,
    )


def _measures(problem: Problem) -> Mapping[str, Metric]:
    """The task's measures, the metric that was asked for first."""
    return {problem.metric: problem.pairs.metric, **problem.measures}


@torch.no_grad()
def _per_prompt(problem: Problem) -> dict[tuple[str, str], Float[Tensor, " prompt"]]:
    """Each measure of each prompt, by its name and ``clean`` or ``corrupted``."""
    model = problem.model
    found: dict[tuple[str, str], list[Tensor]] = {}
    with evaluating(model):
        for part in ready(model, problem.pairs).within(MAX_TOKENS):
            for which, tokens in (("clean", part.clean), ("corrupted", part.corrupted)):
                logits = answer_logits(model, tokens, part.answers)
                for name, measure in _measures(problem).items():
                    values = replace(part, metric=measure).measure(logits)[0]
                    found.setdefault((name, which), []).append(values.cpu().double())
    return {key: torch.cat(parts) for key, parts in found.items()}


def _attributed(problem: Problem) -> Attributed:
    """Shares of logit(answer) − logit(the wrong answer that is likeliest in the clean run)."""
    model, pairs = problem.model, problem.pairs
    if not model.reads_tokens:
        raise ValueError("a classifier's logits are not a sum of what its heads write")
    if pairs.labels.shape[1] < 2:
        raise ValueError(f"{problem.task.title} has no wrong answers to compare with")
    labels = []
    with torch.no_grad(), evaluating(model):
        for part in ready(model, pairs).within(MAX_TOKENS):
            wrong = part.labels[:, 1:]
            logits = answer_logits(model, part.clean, part.answers)
            strongest = wrong.gather(1, logits.gather(1, wrong.to(logits.device)).argmax(1, True))
            labels.append(torch.cat([part.labels[:, :1], strongest], 1))
    shares = attribute(model, pairs.clean, torch.cat(labels), pairs.last, pairs.mask)
    heads = shares.heads.mean(0)  # [layer, source, head]
    own = heads.diagonal().sum().item()
    top = [(name, share) for name, share in shares.means().items() if name.startswith("a")]
    return Attributed(
        shares.total.mean().item(), HeadShares(own, heads.sum().item() - own), dict(top[:TOP])
    )


def _differences(
    first: Mapping[tuple[str, str], Tensor],
    second: Mapping[tuple[str, str], Tensor],
    same: bool,
) -> tuple[Difference, ...]:
    """Second minus first, tested pair by pair where prompts are the ``same``."""
    tests: dict[tuple[str, str], TTests] = {}
    for key in first:
        one, other = (dict(enumerate(each[key].tolist())) for each in (first, second))
        tests[key] = t_tests(other, one)
        if not same:
            tests[key] = replace(tests[key], t_paired=None, p_paired=None)
    return tuple(
        Difference(*key, (second[key].mean() - first[key].mean()).item(), found)
        for key, found in corrected(tests).items()
    )
