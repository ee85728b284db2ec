"""Positional encodings with and without a value stream: what learns sooner, what stands on what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from resval_lens.analyses.drawing.figures import STYLE, plt
from resval_lens.analyses.papers.memory.comparable import (
    OfRuns,
    by_variant,
    narrow_table,
    shown,
)
from resval_lens.analyses.papers.memory.edits import (
    EDITS,
    Edit,
    Edited,
    FourCells,
    ablated,
    four_cells,
)
from resval_lens.analyses.papers.memory.training import MemoryRun, draw_tests
from resval_lens.analyses.results.emergence import first_above, saved
from resval_lens.analyses.results.result import FLAT, Result
from resval_lens.analyses.results.seeds import Spread, TTests, corrected, present, spread, t_tests
from resval_lens.analyses.results.tables import optional, p_cell, p_told
from resval_lens.models.presets import Positions
from resval_lens.notes import Note
from resval_lens.training.recorded import RecordedRun

THRESHOLDS = (0.5, 0.9, 0.95)
VALUES = "-values"
"""What a variant's name ends in, if it is another's with a value stream."""

REASON = (
    "The reason is in the equations: in layer 1 a value stream adds x_s W_V¹, layer 0's values of "
    "the same position s, to the values and nothing to the keys. It carries the token z_s, never "
    "z_{s−1}; only layer 0's head can tell layer 1's keys what came before."
)
REPLACES, BARELY = 0.9, 0.1


@dataclass(frozen=True)
class Measures(Result):
    """A variant's runs, over seeds.

    Attributes:
        steps: the first, of the snapshots, whose in-context accuracy exceeds each threshold.
        accuracy, accuracy_longer: in context, at the trained length and at twice that; these and
            the following of the last snapshot.
        excess: loss above the best predictor's (nats).
        previous, target: attention to t − 1, and to what followed.
    """

    steps: Mapping[float, Spread]
    accuracy: Spread
    accuracy_longer: Spread
    excess: Spread
    previous: Spread
    target: Spread

    def to_dict(self) -> dict[str, Any]:
        """By the names that people read."""
        return {name: vars(found) for name, found in self.named().items()}

    def named(self) -> dict[str, Spread]:
        """Every measure by its name."""
        return {
            **{f"step: accuracy > {threshold:g}": found for threshold, found in self.steps.items()},
            "accuracy": self.accuracy,
            "accuracy, twice the length": self.accuracy_longer,
            "excess": self.excess,
            "attention to t − 1": self.previous,
            "attention to the target": self.target,
        }


@dataclass(frozen=True)
class Encoding:
    """A variant."""

    positions: Positions
    streams: list[str]
    n_layers: int
    seeds: list[int]
    measures: Measures


@dataclass(frozen=True)
class Pair:
    """One measure of an encoding with a value stream against without.

    Attributes:
        seeds: that both have, of which the following are.
        difference: mean, with − without; None where a seed has no number.
        saved: the share of steps that the stream saves.
        tests: t < 0: values are earlier, or lower.
    """

    encoding: str
    measure: str
    seeds: list[int]
    difference: float | None
    saved: float | None
    tests: TTests = field(metadata=FLAT)


@dataclass(frozen=True)
class EncodingStudy(OfRuns):
    """Steps, final numbers, and what edits of the trained models cost, by encoding."""

    run: MemoryRun
    thresholds: tuple[float, ...]
    variants: Mapping[str, Encoding]
    pairs: list[Pair]
    ablations: list[Edited]
    cells: list[FourCells]

    @property
    def encodings(self) -> list[str]:
        """Variants, each once with or without a value stream."""
        return list(dict.fromkeys(name.removesuffix(VALUES) for name in self.variants))

    def tables(self) -> list[Table]:
        """Steps and final accuracy, the tests, the edits, the four cells."""
        above = (f"> {x:g}" for x in self.thresholds)
        table = narrow_table(
            "First step above an in-context accuracy; numbers at the end",
            ["variant", *above, "accuracy", "2 × length", "t − 1"],
        )
        tables = [table]
        for name, own in self.variants.items():
            found = own.measures
            steps = (shown(found.steps[x], ".0f", True) for x in self.thresholds)
            ends = (found.accuracy, found.accuracy_longer, found.previous)
            each_end = (shown(x, tight=True) for x in ends)
            table.add_row(f"{name} ({len(own.seeds)})", *steps, *each_end)
        if self.pairs:
            table = narrow_table(
                "With a value stream against without, by seed",
                ["encoding", "measure", "seeds", "difference", "saved", "paired t", "p"], 2,
            )  # fmt: skip
            for row in self.pairs:
                if row.measure.startswith(("step", "accuracy")):
                    table.add_row(
                        row.encoding, row.measure, str(len(row.seeds)),
                        optional(row.difference, "+z.0f" if row.saved is not None else "+z.3f"),
                        optional(row.saved, ".0%"), optional(row.tests.t_paired, ".2f"),
                        p_cell(row.tests.p_paired),
                    )  # fmt: skip
            tables.append(table)
        if self.ablations:
            table = narrow_table(
                "In-context accuracy of the trained model, edited",
                ["variant", "seed", "as trained", "link cut", "silenced", "both", "uniform"],
                caption="(silenced: layer 0's head adds nothing to the residual stream;\n"
                "both: and the link is cut; uniform: layer 0 attends to all alike)",
            )
            for entry in self.ablations:
                cells = (optional(entry.accuracy.get(edit), ".3f") for edit in EDITS)
                table.add_row(entry.variant, str(entry.seed), *cells)
            tables.append(table)
        if self.cells:
            table = narrow_table(
                "The same weights, run without → with a stream",
                ["encoding", "seed", "trained without", "trained with"],
            )
            for each in self.cells:
                cell = [optional(accuracy, ".3f") for accuracy in each.cells.values()]
                pairs = (" → ".join(cell[:2]), " → ".join(cell[2:]))
                table.add_row(each.variant, str(each.seed), *pairs)
            tables.append(table)
        return tables

    def figures(self) -> dict[str, Figure]:
        """Steps to .9 and final accuracy with and without values; edits of trained models."""
        return {"memory-encodings.png": _draw(self)}

    def sentences(self) -> list[str]:
        """Does the value stream speed up, or replace, the previous-token head?"""
        length = self.run.task.length
        ends = ", ".join(
            f"{name} {shown(own.measures.accuracy)} → {shown(own.measures.accuracy_longer)}"
            for name, own in self.variants.items()
        )
        said = [f"In-context accuracy at {length} → {2 * length} tokens after training: {ends}."]
        for row in self.pairs:
            if row.measure == "step: accuracy > 0.9":
                said.append(self._step_sentence(row))
        edits = self._edits_over_seeds()
        both = [name for name in edits if name + VALUES in edits]
        said += [_silenced_sentence(name, edits[name], edits[name + VALUES]) for name in both]
        for name, own in edits.items():
            if "link cut" in own:
                said.append(
                    f"{name}: cutting the link takes in-context accuracy from "
                    f"{shown(own['as trained'])} to {shown(own['link cut'])}, silencing layer 0's "
                    f"head to {shown(own['layer 0 silenced'])}, uniform attention in layer 0 to "
                    f"{shown(own['layer 0 uniform'])}."
                )
        for entry in self.cells:
            said.append(
                f"{entry.variant}, seed {entry.seed}: grafting the stream onto the model trained "
                f"without takes it from {entry.cells['trained without, run without']:.3f} to "
                f"{entry.cells['trained without, run with']:.3f}."
            )
        if both:
            said.append(REASON)
        if not self.ablations:
            said.append("None of these runs has a trained model: nothing could be edited.")
        return said

    def _step_sentence(self, row: Pair) -> str:
        names = row.encoding, row.encoding + VALUES
        by_seed = [self.variants[name].measures.steps[0.9].by_seed for name in names]
        both = [seed for seed in by_seed[0] if seed in by_seed[1]]
        steps = (spread({seed: own[seed] for seed in both}) for own in by_seed)
        first, second = (
            "never" if each.mean is None else f"at step {shown(each, '.0f')}" for each in steps
        )
        text = (
            f"{row.encoding} ({len(both)} seed{'s' * (len(both) != 1)} of both): in-context "
            f"accuracy passes .9 {first} without and {second} with a value stream"
        )
        if row.saved is not None:
            text += f" ({abs(row.saved):.0%} {'fewer' if row.saved >= 0 else 'more'}"
            if row.tests.p_paired is not None:
                text += (
                    f"; paired by seed t = {row.tests.t_paired:.1f}, {p_told(row.tests.p_paired)}, "
                    f"corrected by Holm {p_told(row.tests.p_paired_holm)}"
                )
            text += ")"
        return text + "."

    def _edits_over_seeds(self) -> dict[str, dict[Edit, Spread]]:
        """Accuracy over seeds by variant and edit; all models of a variant have the same edits."""
        grouped: dict[str, dict[int, Mapping[Edit, float | None]]] = {}
        for entry in self.ablations:
            grouped.setdefault(entry.variant, {})[entry.seed] = entry.accuracy
        return {
            name: {
                edit: spread({seed: accuracy[edit] for seed, accuracy in own.items()})
                for edit in next(iter(own.values()))
            }
            for name, own in grouped.items()
        }


def encoding_study(
    runs: Sequence[RecordedRun[MemoryRun]], note: Note = lambda text: None
) -> EncodingStudy:
    """Every encoding with and without values: training, and edits of every run with a model.

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
    variants = {
        name: Encoding(
            own[0].run.positions,
            [stream.of for stream in own[0].run.streams],
            own[0].run.n_layers,
            [recorded.run.seed for recorded in own],
            _measures(own),
        )
        for name, own in grouped.items()
    }
    ablations, cells = [], []
    for name, own in grouped.items():
        for recorded in own:
            if not recorded.has_model:
                continue
            run = recorded.run
            note(f"{run.folder_name}: edits")
            model, batch = recorded.model(), draw_tests(run)["trained"]
            found = ablated(model, run.task, batch)
            ablations.append(Edited(name, run.seed, run.test_size, found))
            for other in grouped.get(name + VALUES, []):
                if other.run.seed == run.seed and other.has_model:
                    four = four_cells(model, other.model(), run.task, batch)
                    cells.append(FourCells(name, run.seed, run.test_size, four))
    return EncodingStudy(runs[0].run, THRESHOLDS, variants, _pairs(variants), ablations, cells)


def _measures(runs: Sequence[RecordedRun[MemoryRun]]) -> Measures:
    def last(group: str, key: str) -> Spread:
        return spread({each.run.seed: each.metrics[-1][group][key] for each in runs})

    curves = {
        each.run.seed: [(line["step"], line["trained"]["accuracy"]) for line in each.metrics]
        for each in runs
    }
    return Measures(
        {
            x: spread({seed: first_above(curve, x) for seed, curve in curves.items()})
            for x in THRESHOLDS
        },
        accuracy=last("trained", "accuracy"),
        accuracy_longer=last("longer", "accuracy"),
        excess=last("trained", "excess"),
        previous=last("attention", "previous_mass"),
        target=last("attention", "target_mass"),
    )


def _pairs(variants: Mapping[str, Encoding]) -> list[Pair]:
    """Every measure of each encoding with and without values, by seed."""
    rows = []
    for name in variants:
        if name + VALUES not in variants:
            continue
        with_, without = (variants[each].measures.named() for each in (name + VALUES, name))
        for measure in without:
            spreads = with_[measure], without[measure]
            one, other = (
                {seed: x for seed, x in each.by_seed.items() if x is not None} for each in spreads
            )
            shared = [seed for seed in one if seed in other]
            # A seed that never got there would be missing from a mean: no comparison then.
            whole = all(None not in each.by_seed.values() for each in spreads)
            difference = share = None
            if shared and whole:
                total, base = (sum(each[seed] for seed in shared) for each in (one, other))
                difference = (total - base) / len(shared)
                share = saved(one, other) if measure.startswith("step") else None
            tests = t_tests(*(each.by_seed for each in spreads))
            rows.append(Pair(name, measure, shared, difference, share, tests))
    tests_of = corrected({(row.encoding, row.measure): row.tests for row in rows})
    return [replace(row, tests=tests_of[row.encoding, row.measure]) for row in rows]


def _silenced_sentence(
    name: str, without: Mapping[Edit, Spread], with_: Mapping[Edit, Spread]
) -> str:
    """What is left without layer 0's head, with the link and without: does it stand in?"""
    trained, silenced, both, alone = (
        each.mean if each.mean is not None else 0.0
        for each in (
            with_["as trained"], with_["layer 0 silenced"], with_["both"],
            without["layer 0 silenced"],
        )
    )  # fmt: skip
    # More than the same weights have with nothing of layer 0 left, where values are lost, too, and
    # more than weights have that were trained without a link.
    floor = max(both, alone)
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


WITHOUT, WITH = "#555555", "#0072B2"
SHADES = ("#555555", "#56B4E9", "#D55E00", "#E69F00", "#009E73")


def _draw(study: EncodingStudy) -> Figure:
    edited = study.ablations
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(12.4, 7.4 if edited else 3.8), layout="constrained")
        halves: Any = figure.subfigures(2, 1, hspace=0.05) if edited else [figure]
        steps, accuracy = halves[0].subplots(1, 2)
        _step_bars(steps, study)
        _accuracy_bars(accuracy, study)
        kinds = {label: shade for _, _, shade, label in _bars(study)}
        patches = [plt.Rectangle((0, 0), 1, 1, color=kinds[label], label=label) for label in kinds]
        halves[0].legend(handles=patches, loc="outside lower center", ncols=len(patches))
        if edited:
            _edit_bars(halves[1].subplots(), edited)
            halves[1].legend(loc="outside lower center", ncols=len(EDITS))
    return figure


def _bars(study: EncodingStudy) -> list[tuple[float, str, str, str]]:
    """(place, variant, colour, label) of each bar."""
    bars = []
    for i, name in enumerate(study.encodings):
        for shift, variant, shade, label in (
            (-0.2, name, WITHOUT, "without"),
            (0.2, name + VALUES, WITH, "with a value stream"),
        ):
            if variant in study.variants:
                bars.append((i + shift, variant, shade, label))
    return bars


def _step_bars(axes: Axes, study: EncodingStudy) -> None:
    for place, variant, shade, _ in _bars(study):
        steps = study.variants[variant].measures.steps[0.9]
        if steps.mean is not None:
            axes.bar(place, steps.mean, 0.36, color=shade, alpha=0.8)
            axes.plot(
                [place] * len(steps.there), steps.there, "o", color="black", ms=3, mfc="white"
            )
        else:
            axes.text(place, 0, "never", rotation=90, ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(study.encodings)), study.encodings)
    axes.set(title="Steps to an in-context accuracy of .9 (dots: seeds)", ylabel="step")


def _accuracy_bars(axes: Axes, study: EncodingStudy) -> None:
    length = study.run.task.length
    for place, variant, shade, _ in _bars(study):
        measures = study.variants[variant].measures
        for shift, found, alpha in (
            (-0.09, measures.accuracy, 0.9),
            (0.09, measures.accuracy_longer, 0.45),
        ):
            if found.mean is not None:
                axes.bar(place + shift, found.mean, 0.17, color=shade, alpha=alpha,
                         yerr=found.sd or None, error_kw={"lw": 0.8})  # fmt: skip
    axes.set_xticks(range(len(study.encodings)), study.encodings)
    axes.set(title=f"In-context accuracy at {length} (dark) and {2 * length} tokens (light)",
             ylim=(0, 1.04), ylabel="accuracy")  # fmt: skip


def _edit_bars(axes: Axes, entries: Sequence[Edited]) -> None:
    variants = list(dict.fromkeys(entry.variant for entry in entries))
    width = 0.8 / len(EDITS)
    for i, (edit, shade) in enumerate(zip(EDITS, SHADES, strict=True)):
        places, heights = [], []
        for j, variant in enumerate(variants):
            numbers = present(e.accuracy.get(edit) for e in entries if e.variant == variant)
            if numbers:
                places.append(j + (i - (len(EDITS) - 1) / 2) * width)
                heights.append(float(np.mean(numbers)))
        axes.bar(places, heights, width * 0.92, color=shade, label=edit)
    names = [variant.replace(VALUES, "\n+ values") for variant in variants]
    axes.set_xticks(range(len(variants)), names)
    axes.set(title="In-context accuracy of the trained models, edited", ylim=(0, 1.04),
             ylabel="accuracy")  # fmt: skip
