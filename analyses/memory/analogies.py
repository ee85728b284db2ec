"""Capitals and countries: what was learned in training against what the context says.

    Oslo Norway Athens Vietnam Hanoi Vietnam Athens ...

The simplified transformers of arXiv 2412.11459 on pairs of words, its second vocabulary (232
words). In each sequence another country than its own follows some capitals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from resval_lens.analyses.memory.construction import run_heads
from resval_lens.analyses.memory.curves import over_seeds
from resval_lens.analyses.memory.knowledge import check_comparable, check_seed
from resval_lens.memory.model import MemoryTransformer
from resval_lens.presets import MEMORY_VARIANTS, memory_variant
from resval_lens.recorded_memory import RecordedMemoryRun
from resval_lens.tasks.analogies import Pair, analogy_task
from resval_lens.tasks.bigrams import Bigrams
from resval_lens.tasks.triggers import TriggerTask
from resval_lens.training.memory import batch_logits
from resval_lens.training.memory_run import MemoryRun
from resval_lens.training.run_folder import read_metrics

TIMES = tuple(range(7))
"""How often the context says something about the capital that is asked."""

OVERRIDE = 2
"""Mentions after which it is asked, capital by capital, whom the model believes."""

_FOLDS = 4  # a quarter of the capitals at a time is made unknown


@dataclass(frozen=True, eq=False)
class AnalogyPrompts:
    """Prompts C1 K1 A B ... C2 K2 A B, C3 K3 A: what does the model say after A?

    Attributes:
        tokens: each A B, and the last A, comes after another capital and its own country.
        query: A, a capital.
        own: its country.
        said: B, the country that the context gives it.
    """

    tokens: Int[Tensor, "prompt pos"]
    query: Int[Tensor, " prompt"]
    own: Int[Tensor, " prompt"]
    said: Int[Tensor, " prompt"]


def capitals_task(
    pairs: Sequence[Pair],
    n_triggers: int = 5,
    length: int = 128,
    leak: float = 0.0,
    zipf: float = 1.0,
) -> TriggerTask:
    """``analogy_task`` with capitals of which the k-th is ∝ k^−zipf as frequent as the first.

        π_b(capital k | country) = k^−zipf / Σ_j j^−zipf,  π_u = half of it; countries' as theirs

    With zipf = 0, capitals are equally frequent, and one of 116 comes back in 128 tokens too
    rarely for an induction head to form soon.

    Raises:
        ValueError: as ``analogy_task``; a zipf below 0 or not finite.
    """
    if not 0 <= zipf < float("inf"):
        raise ValueError(f"zipf must be a finite number from 0 up; got {zipf!r}")
    task = analogy_task(pairs, n_triggers, length, leak)
    n, conditional = len(pairs), task.bigrams.conditional
    weights = torch.arange(1, n + 1, dtype=torch.float64) ** -zipf
    weights /= weights.sum()
    conditional[n:, :n] = weights
    unigram = torch.cat([weights, weights @ conditional[:n, n:]]) / 2
    bigrams = Bigrams.from_probabilities(task.bigrams.tokens, unigram, conditional)
    return replace(task, bigrams=bigrams)


def own_countries(task: TriggerTask) -> Int[Tensor, " capital"]:
    """The country of each capital, the token that most often follows it.

    Raises:
        ValueError: the task is none of :func:`capitals_task`.
    """
    n = 0 if task.candidates is None else len(task.candidates)
    if not n or task.candidates != tuple(range(n)) or task.never_output != "likeliest":
        raise ValueError("task must be of capitals and countries: its triggers are the capitals")
    return task.bigrams.conditional[:n].argmax(1)


def analogy_prompts(
    task: TriggerTask,
    times: int,
    generator: Generator,
    *,
    right: bool = False,
    each: int = 2,
    queries: Sequence[int] | None = None,
) -> AnalogyPrompts:
    """``each`` prompts of every query, in which B follows A ``times`` times.

    B is uniform among the countries but A's own, or, ``right``, A's own. The other capitals are
    uniform among those that are no queries (where every capital is one: but A) and whose country
    is neither A's nor B.

    Args:
        queries: capitals that are asked; None is all.

    Raises:
        ValueError: times below 0, each below 1, no capital left to stand between.
    """
    if times < 0 or each < 1:
        raise ValueError(f"times must be 0 or more and each 1 or more; got {times} and {each}")
    owns = own_countries(task)
    n, v = len(owns), task.bigrams.d_vocab
    asked = torch.arange(n) if queries is None else torch.tensor(list(queries))
    query = asked.repeat(each)
    own = owns[query]
    wrong = torch.zeros(len(query), v, dtype=torch.float64)
    wrong[:, n:] = 1
    wrong.scatter_(1, own[:, None], 0)
    said = own if right else torch.multinomial(wrong, 1, generator=generator)[:, 0]

    others = torch.ones(len(query), n, dtype=torch.float64)
    if queries is not None:
        others[:, asked] = 0
    others[(owns[None] == own[:, None]) | (owns[None] == said[:, None])] = 0
    if not (others.sum(1) > 0).all():
        raise ValueError(
            f"of {n} capitals none is left to stand between; at least 3 with other countries, and "
            "one that is no query, are needed"
        )
    between = torch.multinomial(others, times + 1, replacement=True, generator=generator)
    block = torch.stack([between, owns[between], query[:, None].expand_as(between)], 2)
    answers = said[:, None, None].expand(-1, times + 1, 1)
    tokens = torch.cat([block, answers], 2).flatten(1)[:, :-1]
    return AnalogyPrompts(tokens, query, own, said)


@torch.no_grad()
def answer_summary(model: MemoryTransformer, prompts: AnalogyPrompts) -> dict[str, float]:
    """What the model says after A, means over prompts.

    own, said                its country, the context's: share that have the largest logit
    p_own, p_said            their probabilities
    margin                   logit of the context's less that of its own (nats)
    context_wins             share in which that is above 0
    """
    last = batch_logits(model, prompts.tokens)[:, -1].double()
    rows, top, p = torch.arange(len(last)), last.argmax(-1), last.softmax(-1)
    margin = last[rows, prompts.said] - last[rows, prompts.own]
    found = {
        "own": top == prompts.own,
        "said": top == prompts.said,
        "p_own": p[rows, prompts.own],
        "p_said": p[rows, prompts.said],
        "margin": margin,
        "context_wins": margin > 0,
    }
    return {name: float(x.double().mean()) for name, x in found.items()}


@torch.no_grad()
def attention_to_said(model: MemoryTransformer, prompts: AnalogyPrompts) -> dict[str, float]:
    """Where the heads look: ``previous``, from each B to the A before it; ``target``, from the last
    A to all B. Means; prompts that say something at least once."""
    alpha, beta, _ = run_heads(model, prompts.tokens)
    places = torch.arange(3, prompts.tokens.shape[1] - 1, 4)  # of B
    return {
        "previous": float(alpha[:, places, places - 1].double().mean()),
        "target": float(beta[:, -1, places].sum(-1).double().mean()),
    }


@torch.no_grad()
def with_unknown(
    model: MemoryTransformer, tokens: Sequence[int], generator: Generator
) -> MemoryTransformer:
    """A copy that has never seen ``tokens``: their embeddings are drawn anew."""
    copy = deepcopy(model)
    W_E, chosen = copy.embed.W_E, list(tokens)
    drawn = torch.randn(len(chosen), W_E.shape[1], generator=generator)
    W_E[chosen] = drawn.to(W_E) * copy.cfg.embed_std
    return copy


@torch.no_grad()
def by_capital(
    model: MemoryTransformer, task: TriggerTask, generator: Generator, each: int = 8
) -> list[dict[str, Any]]:
    """What the model knows of each capital, means over ``each`` prompts.

    p_own, top1  P(own country | capital) without context about it; whether that is the largest
    overridden   whether another country has the largest logit that was said ``OVERRIDE`` times
    frequency    share of this capital among all
    frequent     whether it is among the most frequent, which make up half of all occurrences
    """
    n = len(own_countries(task))
    found = {}
    prompts = analogy_prompts(task, 0, generator, each=each)
    last = batch_logits(model, prompts.tokens)[:, -1].double()
    found["p_own"] = last.softmax(-1)[torch.arange(len(last)), prompts.own]
    found["top1"] = last.argmax(-1) == prompts.own
    prompts = analogy_prompts(task, OVERRIDE, generator, each=each)
    last = batch_logits(model, prompts.tokens)[:, -1]
    found["overridden"] = last.argmax(-1) == prompts.said
    means = {name: x.double().view(each, n).mean(0).tolist() for name, x in found.items()}
    frequency = task.bigrams.unigram[:n] / task.bigrams.unigram[:n].sum()
    order = frequency.argsort(descending=True, stable=True)
    before = torch.zeros_like(frequency)
    before[order] = frequency[order].cumsum(0) - frequency[order]
    return [
        {
            "capital": task.bigrams.tokens[i],
            "frequency": float(frequency[i]),
            "frequent": bool(before[i] < 0.5 - 1e-9),
            **{name: values[i] for name, values in means.items()},
        }
        for i in order.tolist()
    ]


def by_rank(capitals: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Means of ``p_own`` and ``overridden`` over the capitals of ranks 1, 2, 3–4, 5–8, ..."""
    groups: list[dict[str, float]] = []
    first = 1
    while first <= len(capitals):
        last = min(max(1, 2 * (first - 1)), len(capitals))
        own = [
            {name: row[name] for name in ("p_own", "overridden")}
            for row in capitals[first - 1 : last]
        ]
        groups.append({"first": first, "last": last, **_mean_of(own)})
        first = last + 1
    return groups


@torch.no_grad()
def longer(
    model: MemoryTransformer, task: TriggerTask, sequences: int, generator: Generator
) -> dict[str, float | None]:
    """In-context accuracy on sequences of twice the trained length: in its halves."""
    batch = task.batch(sequences, generator, 2 * task.length)
    hits = batch_logits(model, batch.inputs).argmax(-1) == batch.targets
    known = batch.in_context
    found = {}
    for name, part in {
        "trained": slice(0, task.length),
        "beyond": slice(task.length, None),
    }.items():
        own = hits[:, part][known[:, part]]
        found[name] = float(own.double().mean()) if len(own) else None
    return found


def model_answers(
    model: MemoryTransformer, task: TriggerTask, seed: int, sequences: int
) -> dict[str, Any]:
    """All that is measured of one model; each kind of prompt from a generator of its own."""

    def fresh(place: int) -> Generator:
        return Generator().manual_seed(1_000 * seed + place)

    n = len(own_countries(task))
    folds = [list(range(first, n, _FOLDS)) for first in range(min(_FOLDS, n))]
    unknown: list[dict[str, float]] = []
    looks: dict[str, list[dict[str, float]]] = {"known": [], "unknown": []}
    generator, strangers = fresh(3), fresh(4)
    for times in TIMES:
        rows = []
        for fold in folds:
            prompts = analogy_prompts(task, times, generator, queries=fold)
            stranger = with_unknown(model, fold, strangers)
            rows.append(answer_summary(stranger, prompts))
            if times == 3:
                looks["known"].append(attention_to_said(model, prompts))
                looks["unknown"].append(attention_to_said(stranger, prompts))
        unknown.append(_mean_of(rows))
    capitals = by_capital(model, task, fresh(0))
    quantities = ("p_own", "top1", "overridden")
    groups = {
        "all": capitals,
        "frequent": [row for row in capitals if row["frequent"]],
        "rare": [row for row in capitals if not row["frequent"]],
    }
    return {
        "by_capital": capitals,
        "by_rank": by_rank(capitals),
        "recall": {
            group: _mean_of([{name: row[name] for name in quantities} for row in rows])
            | {"capitals": len(rows)}
            for group, rows in groups.items()
            if rows
        },
        "wrong": [answer_summary(model, analogy_prompts(task, k, fresh(1))) for k in TIMES],
        "right": [
            answer_summary(model, analogy_prompts(task, k, fresh(2), right=True)) for k in TIMES
        ],
        "unknown": unknown,
        "attention": {name: _mean_of(rows) for name, rows in looks.items()},
        "longer": longer(model, task, sequences, fresh(5)),
    }


def analogies_study(
    runs: Sequence[RecordedMemoryRun],
    sequences: int = 128,
    seed: int = 0,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Global recall, override by the context, unknown capitals and longer sequences of each run.

    Raises:
        ValueError: no runs, runs that differ in more than variant and seed, no sequences, a seed
            below 0 or too large, another task than :func:`capitals_task`'s, a model that was not
            kept.
    """
    check_seed(seed)
    if not runs:
        raise ValueError("runs must hold at least one run")
    check_comparable(runs, task_may_differ=())
    if sequences < 1:
        raise ValueError(f"sequences must be 1 or more; got {sequences}")
    rows = []
    for recorded in runs:
        note(recorded.run.folder_name)
        run = recorded.run
        rows.append(
            {"name": run.name, "seed": run.seed, "steps": run.steps, "length": run.task.length}
            | model_answers(recorded.model(), run.task, seed, sequences)
        )
    pairs = len(own_countries(runs[0].run.task))
    return {
        "seed": seed,
        "pairs": pairs,
        "times": list(TIMES),
        "sequences": sequences,
        "models": rows,
        "over_seeds": analogies_over_seeds(rows),
    }


def analogies_over_seeds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What tables show over the seeds of a name, each as ``over_seeds``."""
    found = []
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        numbers: dict[str, list[float | None]] = {
            **{
                f"{group}_{quantity}": [row["recall"].get(group, {}).get(quantity) for row in own]
                for group in ("all", "frequent", "rare")
                for quantity in ("p_own", "top1", "overridden")
            },
            "trained": [row["longer"]["trained"] for row in own],
            "beyond": [row["longer"]["beyond"] for row in own],
        }
        for kind in ("wrong", "right", "unknown"):
            for times in TIMES:
                for quantity in ("own", "said", "p_own", "p_said", "context_wins", "margin"):
                    key = f"{kind}_{times}_{quantity}"
                    numbers[key] = [row[kind][times][quantity] for row in own]
        seeds = [row["seed"] for row in own]
        means = {
            key: over_seeds(dict(zip(seeds, values, strict=True)))
            for key, values in numbers.items()
        }
        found.append({"name": name, "seeds": seeds, **means})
    return found


def check_variants(names: Sequence[str]) -> None:
    """Checks that variants say nothing about the task: capitals have one of their own.

    Raises:
        ValueError: one does, or there is none of that name.
    """
    for name in names:
        if "task" in memory_variant(name):
            able = ", ".join(each for each, own in MEMORY_VARIANTS.items() if "task" not in own)
            raise ValueError(f"variants: {name} has a task of its own; choose among {able}")


def finished_run(folder: Path, planned: MemoryRun) -> RecordedMemoryRun | None:
    """The run under ``folder`` that is just what is planned, if it is done and has its model.

    Raises:
        ValueError: its place holds a run on another task, or its files are damaged.
    """
    path = folder / planned.folder_name
    if not (path / "run.json").exists() or not read_metrics(path):
        return None
    recorded = RecordedMemoryRun.load(path)
    task = recorded.run.task
    other = [f.name for f in fields(task) if getattr(task, f.name) != getattr(planned.task, f.name)]
    if other:
        raise ValueError(
            f"{path} holds a run on another task (other {', '.join(other)}); choose another folder "
            "of runs"
        )
    same = recorded.run == planned and recorded.done and recorded.has_model
    return recorded if same else None


def _mean_of(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
