"""Induction heads on sequences longer than they were trained on (arXiv 2412.11459, section 4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy.optimize import minimize_scalar
from torch import Generator, Tensor

from resval_lens.analyses.memory.curves import by_variant, over_seeds, settings_of, shown
from resval_lens.memory.config import IN_THE_STREAM
from resval_lens.memory.model import MemoryTransformer
from resval_lens.memory.predictions import previous_token_attention
from resval_lens.memory.probes import followers
from resval_lens.recorded_memory import RecordedMemoryRun
from resval_lens.tasks.triggers import TriggerBatch, TriggerTask, optimal_loss
from resval_lens.training.memory import batch_logits

Note = Callable[[str], None]

LENGTHS = (128, 256, 1_024, 2_048)
CHUNK = 2**22
"""Attention weights that are looked at, at once: one sequence of 2,048 tokens."""


def length_study(
    runs: Sequence[RecordedMemoryRun],
    lengths: Sequence[int] = LENGTHS,
    tokens: int = 2**16,
    attention: int = 8,
    seed: int = 0,
    note: Note = lambda text: None,
) -> dict[str, Any]:
    """Accuracy, loss and attention of trained models at several lengths, as JSON.

    The models are causal: what one does at a position does not depend on how long the sequence is.
    So numbers by position pool the test sequences of every length that reach it. Positions are
    counted from 1; the bins of them double every second time.

    Args:
        runs: with trained models, which differ in variant and seed only.
        lengths: those beyond a model's ``n_ctx`` are skipped.
        tokens: test tokens of each length (one sequence at least).
        attention: sequences of the longest length on which attention is measured.
        seed: draws the sequences, the same for every model (held-out outputs aside).
        note: called with what is being done.

    Returns:
        ``models``: each with ``lengths`` and ``bins``, and ``tau1``, the strength of its
        previous-token head; ``over_seeds`` by variant and length; ``found``, in words.

    Raises:
        ValueError: no run has a model; lengths or numbers below what makes sense, or runs that
            cannot be compared.
    """
    chosen = [recorded for recorded in runs if recorded.has_model]
    if not chosen:
        raise ValueError("none of these runs has a trained model; train to the end first")
    by_variant(chosen)
    for name, value in {"tokens": tokens, "attention": attention}.items():
        if value < 1:
            raise ValueError(f"{name} must be 1 or more; got {value}")
    if not lengths or min(lengths) < 2:
        raise ValueError(f"lengths must be numbers of tokens from 2 up; got {list(lengths)}")
    first = chosen[0].run
    fitting = sorted({length for length in lengths if length <= first.n_ctx})
    if not fitting:
        raise ValueError(f"lengths: the models have n_ctx={first.n_ctx}; got {list(lengths)}")
    bins = position_bins(fitting[-1], first.task.length)
    models = []
    for recorded in chosen:
        run = recorded.run
        note(f"{run.folder_name}: {', '.join(f'{length:,}' for length in fitting)} tokens")
        generator = Generator().manual_seed(seed)
        batches = [run.task.batch(max(1, tokens // n), generator, n) for n in fitting]
        looked_at = run.task.batch(attention, generator, fitting[-1])
        models.append(
            {
                "variant": run.name,
                "seed": run.seed,
                "positions": run.positions,
                "streams": [stream.of for stream in run.streams],
                **_measured(recorded.model(), run.task, batches, looked_at, bins),
            }
        )
    data: dict[str, Any] = {
        "run": settings_of(chosen),
        "trained_length": first.task.length,
        "lengths": fitting,
        "skipped": sorted(set(lengths) - set(fitting)),
        "sequences": [max(1, tokens // length) for length in fitting],
        "attention_sequences": attention,
        "seed": seed,
        "models": models,
        "over_seeds": _over_seeds(models),
    }
    return {**data, "found": length_sentences(data)}


def position_bins(longest: int, trained: int) -> list[tuple[int, int]]:
    """(first, last) positions of bins whose ends are near 2^(k/2), ``trained`` and ``longest``.

    >>> position_bins(8, 5)
    [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (7, 8)]
    """
    ends = {round(2 ** (k / 2)) for k in range(2 * longest.bit_length())} | {trained, longest}
    kept = sorted(end for end in ends if end <= longest)
    return [(before + 1, end) for before, end in zip([0, *kept[:-1]], kept, strict=True)]


def binned(
    values: Sequence[Float[Tensor, "_ _"]],
    counted: Sequence[Bool[Tensor, "_ _"]],
    bins: Sequence[tuple[int, int]],
) -> list[tuple[float | None, int]]:
    """Mean and count of the values that count, of all batches together, in each bin of positions.

    Args:
        values, counted: [row, pos] of each batch, of any length.
    """
    longest = bins[-1][1]
    sums, counts = np.zeros(longest), np.zeros(longest, dtype=np.int64)
    for x, there in zip(values, counted, strict=True):
        sums[: x.shape[1]] += (x.double() * there).sum(0).numpy()
        counts[: x.shape[1]] += there.sum(0).numpy()
    found = []
    for first, last in bins:
        count = int(counts[first - 1 : last].sum())
        found.append((float(sums[first - 1 : last].sum() / count) if count else None, count))
    return found


@torch.no_grad()
def attention_by_position(
    model: MemoryTransformer, batch: TriggerBatch
) -> dict[str, Float[Tensor, "row pos"]]:
    """Where the two heads look from each position, in double precision.

        previous_mass   layer 0's attention to t − 1; NaN at the first position
        target_mass     the last layer's attention, all together, to what followed earlier
                        occurrences of z_t

    A few sequences at a time: a pattern has length² numbers.
    """
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    found: dict[str, list[Tensor]] = {"previous_mass": [], "target_mass": []}
    rows = max(1, CHUNK // batch.inputs.shape[1] ** 2)
    for inputs in batch.inputs.split(rows):

        def previous(pattern: Tensor, hook: Any) -> None:
            looked = pattern[:, 0].diagonal(-1, 1, 2).double()
            found["previous_mass"].append(F.pad(looked, (1, 0), value=math.nan))

        def target(pattern: Tensor, hook: Any, inputs: Tensor = inputs) -> None:
            after = followers(inputs)
            found["target_mass"].append((pattern[:, 0] * after).sum(-1, dtype=torch.float64))

        hooks: Any = [(names[0], previous), (names[-1], target)]
        model.run_with_hooks(inputs, return_type=None, fwd_hooks=hooks)
    return {name: torch.cat(parts) for name, parts in found.items()}


def fitted_tau1(masses: Float[Tensor, " pos"]) -> float:
    """τ1 of the constructed head nearest to a measured one, by least squares.

        min over τ1 of Σ_t (α_t − e^τ1 / (e^τ1 + t − 1))²

    Args:
        masses: α_t, mean attention to t − 1 from positions t = 2, 3, ..., in that order.
    """
    alpha = np.asarray(masses, dtype=np.float64)
    others = np.arange(1, len(alpha) + 1)  # t − 1

    def misfit(tau1: float) -> float:
        return float(np.square(alpha - 1 / (1 + others * np.exp(-tau1))).sum())

    # Far from its minimum the misfit is flat: a grid says where to look.
    start = min(np.arange(-10.0, 30.0), key=misfit)
    best = minimize_scalar(misfit, bounds=(start - 1, start + 1), method="bounded",
                           options={"xatol": 1e-9})  # fmt: skip
    return float(best.x)


def predicted_previous(t: int, tau1: float, positions: str, trained: int) -> float | None:
    """The constructed head's attention from position t ≥ 2 to t − 1; None where there is none.

    Absolute positions are unknown beyond the ``trained`` ones, where attention is uniform, 1/t;
    relative ones are the same at any length. Rotary positions and ALiBi have no such construction.
    """
    if positions in ("rotary", "alibi"):
        return None
    off = positions in IN_THE_STREAM and t > trained
    return previous_token_attention(t, 0.0 if off else tau1)


def attention_map(model: MemoryTransformer, task: TriggerTask, length: int, seed: int) -> Any:
    """Both layers' attention on one sequence, row t up to position t, to four decimals, as JSON."""
    batch = task.batch(1, Generator().manual_seed(seed), length)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(batch.inputs, names_filter=names, return_type=None)
    layers = [
        [[round(x, 4) for x in row[: t + 1]] for t, row in enumerate(cache[name][0, 0].tolist())]
        for name in names
    ]
    text = [task.bigrams.tokens[token] for token in batch.inputs[0].tolist()]
    return {"trained_length": task.length, "seed": seed, "tokens": text, "layers": layers}


@torch.no_grad()
def _measured(
    model: MemoryTransformer,
    task: TriggerTask,
    batches: Sequence[TriggerBatch],
    looked_at: TriggerBatch,
    bins: Sequence[tuple[int, int]],
) -> dict[str, Any]:
    """Accuracy, loss and attention at the length of each batch and in each bin of positions."""
    attention = attention_by_position(model, looked_at)
    known_there, lengths = looked_at.in_context, []
    hits, excesses = [], []
    for batch in batches:
        logits = batch_logits(model, batch.inputs)
        losses = F.cross_entropy(logits.mT.double(), batch.targets, reduction="none")
        hits.append((logits.argmax(-1) == batch.targets).double())
        excesses.append(losses - optimal_loss(task, batch))
        n, known = batch.inputs.shape[1], batch.in_context
        lengths.append(
            {
                "length": n,
                "accuracy": _mean(hits[-1][known]),
                "count": int(known.sum()),
                "loss": _mean(losses),
                "excess": _mean(excesses[-1]),
                "in_context": _mean(losses[known]),
                "previous_mass": _mean(attention["previous_mass"][:, 1:n]),
                "target_mass": _mean(attention["target_mass"][:, :n][known_there[:, :n]]),
            }
        )
    by_position = attention["previous_mass"].mean(0)  # position t at t − 1
    tau1 = fitted_tau1(by_position[1 : task.length])
    positions = model.cfg.positions
    there = [torch.ones_like(x, dtype=torch.bool) for x in excesses]
    accuracy = binned(hits, [batch.in_context for batch in batches], bins)
    excess = binned(excesses, there, bins)
    target = binned([attention["target_mass"]], [known_there], bins)
    rows = []
    for (first, last), *measured in zip(bins, accuracy, excess, target, strict=True):
        row: dict[str, Any] = {"first": first, "last": last}
        names = ("accuracy", "excess", "target_mass")
        for name, (mean, count) in zip(names, measured, strict=True):
            row |= {name: mean, f"{name}_count": count}
        places = [t for t in range(first, last + 1) if t > 1]
        constructed = [predicted_previous(t, tau1, positions, task.length) for t in places]
        row["previous_mass"] = _mean(by_position[[t - 1 for t in places]])
        row["predicted"] = _mean_of(constructed)
        rows.append(row)
    return {"tau1": tau1, "lengths": lengths, "bins": rows}


def _mean(x: Tensor) -> float | None:
    return float(x.mean()) if x.numel() else None


def _mean_of(numbers: Sequence[float | None]) -> float | None:
    there = [number for number in numbers if number is not None]
    return float(np.mean(there)) if there and len(there) == len(numbers) else None


def _over_seeds(models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each variant's numbers at each length over seeds, and τ1."""
    found: dict[str, Any] = {}
    for variant in dict.fromkeys(model["variant"] for model in models):
        own = [model for model in models if model["variant"] == variant]
        rows = []
        for i, row in enumerate(own[0]["lengths"]):
            spreads = {
                name: over_seeds({model["seed"]: model["lengths"][i][name] for model in own})
                for name in row
                if name not in ("length", "count")
            }
            rows.append({"length": row["length"], **spreads})
        tau1 = over_seeds({model["seed"]: model["tau1"] for model in own})
        found[variant] = {"lengths": rows, "tau1": tau1}
    return found


def length_sentences(data: Mapping[str, Any]) -> list[str]:
    """Which models keep their accuracy, and where their heads look, in words."""
    trained, lengths = data["trained_length"], data["lengths"]
    said = []
    if data["skipped"]:
        skipped = ", ".join(f"{length:,}" for length in data["skipped"])
        said.append(f"Skipped lengths, beyond the models' context: {skipped}.")
    base = max((i for i, n in enumerate(lengths) if n <= trained), default=0)
    for name, study in data["over_seeds"].items():
        accuracies = [row["accuracy"] for row in study["lengths"]]
        start, end = accuracies[base]["mean"], accuracies[-1]["mean"]
        if not start or end is None or base == len(lengths) - 1:
            continue
        each = ", ".join(
            f"{shown(x)} at {n:,}" for n, x in zip(lengths, accuracies, strict=True) if x["mean"]
        )
        said.append(
            f"{name}, trained on {trained} tokens, keeps {end / start:.0%} of its in-context "
            f"accuracy at {lengths[-1]:,}: {each}."
        )
    for name in data["over_seeds"]:
        said += _attention_sentence(name, data)
    for name, study in data["over_seeds"].items():
        other = data["over_seeds"].get(f"{name}-values")
        if other:
            longest, beside = (each["lengths"][-1]["accuracy"] for each in (study, other))
            said.append(
                f"At {lengths[-1]:,} tokens {name} has {shown(longest)} without a value stream and "
                f"{shown(beside)} with it."
            )
    return said


def _attention_sentence(name: str, data: Mapping[str, Any]) -> list[str]:
    """Attention to t − 1 in the last trained and the last measured bin, measured and predicted."""
    trained = data["trained_length"]
    own = [model["bins"] for model in data["models"] if model["variant"] == name]
    inside = [rows[max(i for i, row in enumerate(rows) if row["last"] <= trained)] for rows in own]
    last = [rows[-1] for rows in own]
    if last[0]["last"] <= trained:
        return []

    def mean(rows: Sequence[Mapping[str, Any]], key: str) -> str:
        numbers = [row[key] for row in rows]
        return "none" if None in numbers else f"{np.mean(numbers):.3f}"

    text = (
        f"{name}: layer 0's attention to t − 1 is {mean(inside, 'previous_mass')} at positions "
        f"{inside[0]['first']:,} to {inside[0]['last']:,} and {mean(last, 'previous_mass')} at "
        f"{last[0]['first']:,} to {last[0]['last']:,}"
    )
    if last[0]["predicted"] is None:
        return [text + "."]
    tau1 = shown(data["over_seeds"][name]["tau1"], ".2f")
    return [
        f"{text}; the construction with τ1 = {tau1}, fitted to trained positions, says "
        f"{mean(inside, 'predicted')} and {mean(last, 'predicted')}."
    ]
