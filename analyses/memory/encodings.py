"""Positional encodings with and without a value stream: what learns sooner, what stands on what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from resval_lens.analyses.emergence import holm_of_both, two_t_tests
from resval_lens.analyses.memory.curves import (
    by_variant,
    first_step,
    over_seeds,
    settings_of,
    shown,
)
from resval_lens.hooks import cut_links
from resval_lens.hooks.ablate import held_hooks
from resval_lens.memory.model import MemoryTransformer
from resval_lens.recorded_memory import RecordedMemoryRun
from resval_lens.tasks.triggers import TriggerBatch, TriggerTask
from resval_lens.training.memory import evaluate
from resval_lens.training.memory_run import draw_tests

Note = Callable[[str], None]

THRESHOLDS = (0.5, 0.9, 0.95)
VALUES = "-values"
"""What a variant's name ends in, if it is another's with a value stream."""

FINAL: dict[str, tuple[str, str]] = {
    "accuracy": ("trained", "accuracy"),
    "accuracy, twice the length": ("longer", "accuracy"),
    "excess": ("trained", "excess"),
    "attention to t − 1": ("attention", "previous_mass"),
    "attention to the target": ("attention", "target_mass"),
}
"""What is read from a run's last snapshot."""

REASON = (
    "The reason is in the equations: in layer 1 a value stream adds x_s W_V¹, layer 0's values of "
    "the same position s, to the values and nothing to the keys. It carries the token z_s, never "
    "z_{s−1}; only layer 0's head can tell layer 1's keys what came before."
)
REPLACES, BARELY = 0.9, 0.1

EDITS = ("as trained", "link cut", "layer 0 silenced", "both", "layer 0 uniform")


def encoding_study(
    runs: Sequence[RecordedMemoryRun], note: Note = lambda text: None
) -> dict[str, Any]:
    """Steps, final numbers, and what edits of the trained models cost, by encoding, as JSON.

    A run's step is that of its first snapshot whose in-context accuracy, on sequences of the
    trained length, exceeds a threshold. ``pairs`` compare each encoding with its values variant:
    over the seeds that both have ``difference``, with − without, and ``saved``, the share of steps
    that the stream saves; and t-tests (:func:`~resval_lens.analyses.emergence.two_t_tests`; t < 0:
    values are earlier, or lower), each also corrected for being so many
    (:func:`~resval_lens.analyses.emergence.holm`). ``ablations`` are :func:`ablated` of every run
    with a model, ``cells`` :func:`four_cells` of every encoding and seed that has both models;
    ``found`` says it in words.

    Args:
        runs: that differ in variant and seed only.
        note: called with what is being done.

    Raises:
        ValueError: a run that has not ended, or runs that cannot be compared.
    """
    for recorded in runs:
        if not recorded.done:
            raise ValueError(f"{recorded.folder} has not reached step {recorded.run.steps}")
    grouped = by_variant(runs)
    variants: dict[str, Any] = {}
    for name, own in grouped.items():
        measures = {
            step_of(threshold): over_seeds(
                {recorded.run.seed: _first(recorded, threshold) for recorded in own}
            )
            for threshold in THRESHOLDS
        }
        for measure, (group, key) in FINAL.items():
            ends = {recorded.run.seed: recorded.metrics[-1][group][key] for recorded in own}
            measures[measure] = over_seeds(ends)
        variants[name] = {
            "positions": own[0].run.positions,
            "streams": [stream.of for stream in own[0].run.streams],
            "n_layers": own[0].run.n_layers,
            "seeds": [recorded.run.seed for recorded in own],
            "measures": measures,
        }
    ablations: list[dict[str, Any]] = []
    cells: list[dict[str, Any]] = []
    for name, own in grouped.items():
        for recorded in own:
            if not recorded.has_model:
                continue
            run = recorded.run
            note(f"{run.folder_name}: edits")
            model, batch = recorded.model(), draw_tests(run)["trained"]
            entry = {"variant": name, "seed": run.seed, "sequences": run.test_size}
            ablations.append(entry | {"accuracy": ablated(model, run.task, batch)})
            for other in grouped.get(name + VALUES, []):
                if other.run.seed == run.seed and other.has_model:
                    found = four_cells(model, other.model(), run.task, batch)
                    cells.append({**entry, "cells": found})
    data: dict[str, Any] = {
        "run": settings_of(runs),
        "thresholds": THRESHOLDS,
        "variants": variants,
        "pairs": _pairs(variants),
        "ablations": ablations,
        "cells": cells,
    }
    return {**data, "found": encoding_sentences(data)}


def step_of(threshold: float) -> str:
    """The name of the measure "first step above ``threshold``"."""
    return f"step: accuracy > {threshold:g}"


def _first(recorded: RecordedMemoryRun, threshold: float) -> int | None:
    steps = [line["step"] for line in recorded.metrics]
    return first_step(steps, [line["trained"]["accuracy"] for line in recorded.metrics], threshold)


def _pairs(variants: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every measure of each encoding with and without values, by seed."""
    rows = []
    for name in variants:
        if name + VALUES not in variants:
            continue
        with_, without = (variants[each]["measures"] for each in (name + VALUES, name))
        for measure in without:
            one, other = (_numbers(each[measure]) for each in (with_, without))
            shared = [seed for seed in one if seed in other]
            # A seed that never got there would be missing from a mean: no comparison then.
            whole = all(None not in each[measure]["by_seed"].values() for each in (with_, without))
            difference = saved = None
            if shared and whole:
                total, base = (sum(each[seed] for seed in shared) for each in (one, other))
                difference = (total - base) / len(shared)
                if measure.startswith("step"):
                    saved = 1 - total / base
            tests = two_t_tests(one, other) if whole else two_t_tests({}, {})
            rows.append(
                {
                    "encoding": name,
                    "measure": measure,
                    "seeds": shared,
                    "difference": difference,
                    "saved": saved,
                    **tests,
                }
            )
    return [row | corrected for row, corrected in zip(rows, holm_of_both(rows), strict=True)]


def _numbers(spread: Mapping[str, Any]) -> dict[int, float]:
    return {int(seed): x for seed, x in spread["by_seed"].items() if x is not None}


def ablated(
    model: MemoryTransformer, task: TriggerTask, batch: TriggerBatch
) -> dict[str, float | None]:
    """In-context accuracy of ``model`` as trained and under each edit.

        link cut           every link carries nothing; only where there is one
        layer 0 silenced   what layer 0's head adds to the residual stream is 0, so that of what it
                           reads only the link, if any, carries anything on
        both               both of them; only where there is a link
        layer 0 uniform    layer 0 attends to all positions alike

    Raises:
        ValueError: ``batch`` holds no position whose next token the context tells.
    """
    if not batch.in_context.any():
        raise ValueError("batch: no trigger occurs twice in any of its sequences")
    found = {}
    for edit in EDITS:
        if edit in ("link cut", "both") and not model.cfg.streams:
            continue
        with edited(model, edit):
            found[edit] = evaluate(model, task, batch)["accuracy"]
    return found


def edited(model: MemoryTransformer, edit: str) -> AbstractContextManager[Any]:
    """The model under one of ``EDITS``; as it was afterwards.

    Raises:
        ValueError: no such edit; a link to be cut in a model that has none.
    """
    if edit not in EDITS:
        raise ValueError(f"edit must be one of {', '.join(EDITS)}; got {edit!r}")
    stack = ExitStack()
    hooks: list[Any] = []
    if edit in ("link cut", "both"):
        stack.enter_context(cut_links(model))
    if edit in ("layer 0 silenced", "both"):
        hooks = [("blocks.0.hook_attn_out", _zero)]
    elif edit == "layer 0 uniform":
        hooks = [("blocks.0.attn.hook_pattern", uniform_attention)]
    stack.enter_context(held_hooks(model, hooks))
    return stack


def _zero(x: Tensor, hook: Any) -> Tensor:
    return torch.zeros_like(x)


def uniform_attention(
    pattern: Float[Tensor, "batch head pos pos"], hook: Any = None
) -> Float[Tensor, "batch head pos pos"]:
    """1/t from position t (counted from 1) to each of the positions up to it; a hook function."""
    ones = torch.ones_like(pattern[0, 0]).tril()
    return (ones / ones.sum(1, keepdim=True)).expand_as(pattern)


def four_cells(
    without: MemoryTransformer,
    with_values: MemoryTransformer,
    task: TriggerTask,
    batch: TriggerBatch,
) -> dict[str, float | None]:
    """In-context accuracy of {trained without, with} × {run without, with} the value stream.

    The same weights, run as the other architecture: a link grafted on, or removed.
    """
    streams, cells = with_values.cfg.streams, {}
    for trained, model in (("without", without), ("with", with_values)):
        for run, run_with in (("without", ()), ("with", streams)):
            other = model.with_streams(run_with, share_weights=True)
            cells[f"trained {trained}, run {run}"] = evaluate(other, task, batch)["accuracy"]
    return cells


def encoding_sentences(data: Mapping[str, Any]) -> list[str]:
    """Does the value stream speed up, or replace, the previous-token head? In words."""
    said = [_final_sentence(data)]
    for row in data["pairs"]:
        if row["measure"] == step_of(0.9):
            said.append(_step_sentence(row, data["variants"]))
    edits = _edits_over_seeds(data["ablations"])
    for name, own in edits.items():
        if name + VALUES in edits:
            said.append(_silenced_sentence(name, own, edits[name + VALUES]))
    for name, own in edits.items():
        if "link cut" in own:
            said.append(
                f"{name}: cutting the link takes in-context accuracy from "
                f"{shown(own['as trained'])} to {shown(own['link cut'])}, silencing layer 0's head "
                f"to {shown(own['layer 0 silenced'])}, uniform attention in layer 0 to "
                f"{shown(own['layer 0 uniform'])}."
            )
    for entry in data["cells"]:
        cell = entry["cells"]
        said.append(
            f"{entry['variant']}, seed {entry['seed']}: grafting the stream onto the model trained "
            f"without takes it from {cell['trained without, run without']:.3f} to "
            f"{cell['trained without, run with']:.3f}."
        )
    if any(name + VALUES in edits for name in edits):
        said.append(REASON)
    if not data["ablations"]:
        said.append("None of these runs has a trained model: nothing could be edited.")
    return said


def _final_sentence(data: Mapping[str, Any]) -> str:
    each = ", ".join(
        f"{name} {shown(study['measures']['accuracy'])} → "
        f"{shown(study['measures']['accuracy, twice the length'])}"
        for name, study in data["variants"].items()
    )
    length = data["run"]["task.length"]
    return f"In-context accuracy at {length} → {2 * length} tokens after training: {each}."


def _step_sentence(row: Mapping[str, Any], variants: Mapping[str, Any]) -> str:
    name, measure = row["encoding"], row["measure"]
    by_seed = [variants[each]["measures"][measure]["by_seed"] for each in (name, name + VALUES)]
    both = [seed for seed in by_seed[0] if seed in by_seed[1]]
    spreads = [over_seeds({int(seed): own[seed] for seed in both}) for own in by_seed]
    first, second = (
        "never" if each["mean"] is None else f"at step {shown(each, '.0f')}" for each in spreads
    )
    seeds = f"{len(both)} seed{'s' * (len(both) != 1)}"
    text = (
        f"{name} ({seeds} of both): in-context accuracy passes .9 {first} without and {second} "
        "with a value stream"
    )
    if row["saved"] is not None:
        more = "fewer" if row["saved"] >= 0 else "more"
        text += f" ({abs(row['saved']):.0%} {more}"
        if row["p_paired"] is not None:
            text += (
                f"; paired by seed t = {row['t_paired']:.1f}, p = {row['p_paired']:.2g}, corrected "
                f"by Holm {row['p_paired_holm']:.2g}"
            )
        text += ")"
    return text + "."


def _edits_over_seeds(ablations: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Accuracy over seeds by variant and edit."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for entry in ablations:
        for edit, accuracy in entry["accuracy"].items():
            found.setdefault(entry["variant"], {}).setdefault(edit, {})[entry["seed"]] = accuracy
    return {
        name: {edit: over_seeds(by_seed) for edit, by_seed in own.items()}
        for name, own in found.items()
    }


def _silenced_sentence(name: str, without: Mapping[str, Any], with_: Mapping[str, Any]) -> str:
    """What is left without layer 0's head, with the link and without: does it stand in?"""
    trained, silenced = (with_[edit]["mean"] for edit in ("as trained", "layer 0 silenced"))
    # More than the same weights have with nothing of layer 0 left, where values are lost, too, and
    # more than weights have that were trained without a link.
    floor = max(with_["both"]["mean"], without["layer 0 silenced"]["mean"])
    gap = trained - floor
    share = (silenced - floor) / gap if gap > 0 else 0.0
    verdict = "does not stand in for the previous-token head"
    if share >= REPLACES:
        verdict = "stands in for the previous-token head"
    elif share > BARELY:
        verdict = f"makes up for {share:.0%} of the previous-token head"
    return (
        f"{name}: with layer 0's head silenced accuracy goes from {shown(without['as trained'])} "
        f"to {shown(without['layer 0 silenced'])} without a value stream, and from "
        f"{shown(with_['as trained'])} to {shown(with_['layer 0 silenced'])} with it, when only "
        f"the link carries layer 0 on ({shown(with_['both'])} with the link cut, too): the link "
        f"{verdict}."
    )
