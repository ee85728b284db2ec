"""Outputs that were never outputs in training (arXiv 2412.11459, experiments).

Trained with outputs among the first 75% of the tokens, tested with outputs among the rest: the
heads may find the place, but W_O² says v only if Σ_v w_U(v) (v(w_E(v)))ᵀ has a term for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Generic, TypeVar

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.table import Table
from torch import Generator

from resval_lens.analyses.drawing.figures import STYLE, plt
from resval_lens.analyses.papers.memory.asked import global_knowledge
from resval_lens.analyses.papers.memory.comparable import (
    by_variant,
    check_seed,
    named,
    narrow_table,
    over_seeds,
    shown,
    tight,
)
from resval_lens.analyses.papers.memory.construction import Strengths, constructed_model
from resval_lens.analyses.papers.memory.model.model import MemoryTransformer
from resval_lens.analyses.papers.memory.model.predictions import predict
from resval_lens.analyses.papers.memory.model.probes import (
    attention_recall,
    mean,
    own_and_link_values,
    recall,
)
from resval_lens.analyses.papers.memory.tasks.triggers import TriggerBatch, TriggerTask
from resval_lens.analyses.papers.memory.training import MemoryRun, batch_logits, evaluate
from resval_lens.analyses.results.result import FLAT, OPTIONAL, Result
from resval_lens.analyses.results.seeds import Spread
from resval_lens.notes import Note
from resval_lens.training.recorded import RecordedRun

Number = TypeVar("Number")
Kind = TypeVar("Kind")

SPLIT = 0.75
"""Outputs are among this share of the tokens in training, and among the rest in the test."""

SEEN, HELD_OUT = (0.0, SPLIT), (SPLIT, 1.0)
"""Output ranges of the two tests."""


@dataclass(frozen=True)
class Both(Generic[Kind]):
    """Of outputs seen in training, and of those held out."""

    seen: Kind
    held_out: Kind


Tests = Both[tuple[TriggerTask, TriggerBatch]]


@dataclass(frozen=True)
class Measured(Generic[Number]):
    """What a model does on a test: of one seed a number, of several a Spread.

    Attributes:
        accuracy, in_context: as :func:`~resval_lens.analyses.papers.memory.training.evaluate`.
        says_seen: share of in-context positions where the answer is one of the first 75%.
        target: attention of the last head on what followed the trigger before, mean.
    """

    accuracy: Number
    in_context: Number
    says_seen: Number
    target: Number


@dataclass(frozen=True)
class HeldOutModel:
    """A model on both tests.

    Attributes:
        output_range: that it was trained on; None of constructed ones.
        recall: of W_O², see :func:`output_recall`.
        predicted: of a constructed model, the accuracy of
            :func:`~resval_lens.analyses.papers.memory.model.predictions.predict`.
    """

    name: str
    seed: int
    output_range: tuple[float, float] | None
    tests: Both[Measured[float | None]]
    recall: Both[float]
    predicted: Both[float | None] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class OutputsOverSeeds:
    """A test over seeds, and the recall of its tokens."""

    measured: Measured[Spread] = field(metadata=FLAT)
    recall: Spread


@dataclass(frozen=True)
class NameOverSeeds:
    """The models of one name."""

    name: str
    seeds: list[int]
    tests: Both[OutputsOverSeeds] = field(metadata=FLAT)


@dataclass(frozen=True)
class HeldOut(Result):
    """Each model on outputs among the first ``split`` of the tokens and among the rest."""

    seed: int
    split: float
    sequences: int
    models: list[HeldOutModel]
    over_seeds: list[NameOverSeeds]

    def tables(self) -> list[Table]:
        """Seen beside held-out outputs: accuracy, loss, recall of W_O²."""
        table = narrow_table(
            "Outputs seen in training, and held out",
            ["model", "outputs", "seeds", "accuracy", "loss", "W_O²", "says seen"], 2,
            "(accuracy and loss (nats) in context; W_O²: recall of those tokens; says seen: "
            f"answers among the first {self.split:.0%} of tokens. Constructed models are tested on "
            "triggers of their own, which are among those tokens: both models know them)",
        )  # fmt: skip
        for row in self.over_seeds:
            for of, test in (
                ((row.name, "seen", str(len(row.seeds))), row.tests.seen),
                (("", "held out", ""), row.tests.held_out),
            ):
                own = test.measured
                cells = (own.accuracy, own.in_context, test.recall, own.says_seen)
                table.add_row(*of, *map(tight, cells))
            table.add_section()
        return [table]

    def figures(self) -> dict[str, Figure]:
        """In-context accuracy and recall of W_O² for seen and held-out outputs, bars of means."""
        rows = self.over_seeds
        titles = ("In-context accuracy", "Recall of W_O²")
        kinds = (
            (-0.2, "#0072B2", "outputs seen in training", [row.tests.seen for row in rows]),
            (0.2, "#E69F00", "outputs held out", [row.tests.held_out for row in rows]),
        )
        with plt.rc_context(STYLE):
            figure, both = plt.subplots(
                1, 2, figsize=(11, 0.42 * len(rows) + 1.5), sharey=True, layout="constrained"
            )
            for i, (axes, title) in enumerate(zip(both, titles, strict=True)):
                for shift, colour, label, tests in kinds:
                    found = [test.recall if i else test.measured.accuracy for test in tests]
                    means = [each.mean or 0 for each in found]
                    drawn = axes.barh(
                        np.arange(len(rows)) + shift, means, 0.38,
                        xerr=[each.sd or 0 for each in found], color=colour, label=label,
                        error_kw={"lw": 1},
                    )  # fmt: skip
                    axes.bar_label(drawn, [f"{x:.2f}" for x in means], fontsize=8, padding=3)
                axes.set(title=title, xlim=(0, 1.12))
            both[0].set_yticks(range(len(rows)), [row.name for row in rows])
            both[0].invert_yaxis()
            both[1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return {"memory-held-out.png": figure}

    def sentences(self) -> list[str]:
        """What becomes of outputs that training never had."""
        said = []
        for row in self.over_seeds:
            tests = row.tests.seen, row.tests.held_out
            seen, held = (test.measured.accuracy for test in tests)
            if seen.mean is None or held.mean is None:
                continue
            keeps = held.mean > 0.9 * seen.mean
            ends = f"{shown(seen, '.2f')}{', now' if keeps else ' to'} {shown(held, '.2f')}"
            attention, looks = tests[1].measured.target, ""
            if attention.mean is not None:
                looks = f"; {shown(attention, '.0%')} of its attention is on the place"
            recalled = ", ".join(shown(test.recall, ".2f") for test in tests)
            said.append(
                f"{named(row.name, row.seeds)}: in-context accuracy "
                f"{'keeps' if keeps else 'falls from'} {ends} on held-out "
                f"outputs{looks} (recall of W_O²: {recalled})."
            )
        return said


def held_out_tests(task: TriggerTask, sequences: int, generator: Generator) -> Tests:
    """Sequences of ``task`` with outputs among the first 75% of the tokens, and among the rest."""

    def test(among: tuple[float, float]) -> tuple[TriggerTask, TriggerBatch]:
        own = replace(task, output_range=among)
        return own, own.batch(sequences, generator)

    return Both(seen=test(SEEN), held_out=test(HELD_OUT))


def measured_on(
    model: MemoryTransformer, task: TriggerTask, batch: TriggerBatch
) -> Measured[float | None]:
    """In-context accuracy and loss (nats), and what stands behind them."""
    scores = evaluate(model, task, batch)
    seen = replace(task, output_range=SEEN).output_tokens
    answers = batch_logits(model, batch.inputs).argmax(-1)[batch.in_context]
    return Measured(
        scores["accuracy"],
        scores["in_context"],
        mean((answers >= seen.start) & (answers < seen.stop)),
        attention_recall(model, TriggerBatch(*(x[:32] for x in batch)))["target_mass"],
    )


@torch.no_grad()
def output_recall(model: MemoryTransformer, task: TriggerTask) -> Both[float]:
    """Recall of W_O² for tokens that were outputs and for those held out.

    The share of tokens k for which, of all v, w_U(k) is what v(w_E(k)) W_O² is most like.
    """
    hits = recall(own_and_link_values(model), model.blocks[-1].attn.W_O[0], model.unembed.W_U.T)
    seen, held = (replace(task, output_range=among).output_tokens for among in (SEEN, HELD_OUT))
    return Both(float(hits[list(seen)].double().mean()), float(hits[list(held)].double().mean()))


def model_study(
    model: MemoryTransformer,
    tests: Tests,
    name: str,
    seed: int,
    output_range: tuple[float, float] | None = None,
    predicted: Both[float | None] | None = None,
) -> HeldOutModel:
    """:func:`measured_on` both tests, and :func:`output_recall`."""
    both = Both(measured_on(model, *tests.seen), measured_on(model, *tests.held_out))
    found = output_recall(model, tests.seen[0])
    return HeldOutModel(name, seed, output_range, both, found, predicted)


def constructed_studies(
    task: TriggerTask,
    sequences: int,
    generator: Generator,
    d_model: int | None = None,
    seed: int = 0,
) -> list[HeldOutModel]:
    """Constructed relative models that know all tokens, and only the first 75%; with predictions.

    Their triggers are among the tokens that both know.
    """
    first = replace(task, output_range=SEEN).output_tokens
    own = replace(task, candidates=tuple(first))
    tests = held_out_tests(own, sequences, generator)
    logs, rows = global_knowledge(task.bigrams), []
    for name, known in {
        "constructed": range(task.bigrams.d_vocab), "constructed, 75% known": first
    }.items():  # fmt: skip
        model = constructed_model(logs, generator, n_ctx=task.length, d_model=d_model, known=known)

        def accuracy(batch: TriggerBatch, known: range = known) -> float | None:
            logits = predict(batch.inputs, logs, **asdict(Strengths()), known=known).logits
            return mean((logits.argmax(-1) == batch.targets)[batch.in_context])

        predicted = Both(accuracy(tests.seen[1]), accuracy(tests.held_out[1]))
        rows.append(model_study(model, tests, name, seed, predicted=predicted))
    return rows


def held_out_study(
    runs: Sequence[RecordedRun[MemoryRun]],
    sequences: int = 128,
    seed: int = 0,
    note: Note = lambda text: None,
) -> HeldOut:
    """Each run on outputs among the first 75% of the tokens and among the rest.

    Args:
        runs: with their models, of one task but for its outputs: both those that were trained on
            the first outputs only and ordinary ones, the control. All see the same sequences.

    Raises:
        ValueError: no runs, runs that cannot be compared (as ``by_variant``), no sequences,
            a seed below 0 or too large, or a model that was not kept.
    """
    check_seed(seed)
    if not runs:
        raise ValueError("runs must hold at least one run")
    by_variant(runs)
    task = replace(runs[0].run.task, output_range=(0.0, 1.0))
    if sequences < 1:
        raise ValueError(f"sequences must be 1 or more; got {sequences}")
    generator = Generator().manual_seed(seed)
    tests = held_out_tests(task, sequences, generator)
    rows = []
    for recorded in runs:
        run = recorded.run
        note(run.folder_name)
        rows.append(model_study(recorded.model(), tests, run.name, run.seed, run.task.output_range))
    note("constructed models")
    rows += constructed_studies(task, sequences, generator, seed=seed)
    return HeldOut(seed, SPLIT, sequences, rows, held_out_over_seeds(rows))


def held_out_over_seeds(rows: Sequence[HeldOutModel]) -> list[NameOverSeeds]:
    """Every number over the seeds of a name."""
    found = []
    for name in dict.fromkeys(row.name for row in rows):
        own = {row.seed: row for row in rows if row.name == name}
        tests: Both[Measured[Spread]] = over_seeds(own, lambda row: row.tests)
        recalled: Both[Spread] = over_seeds(own, lambda row: row.recall)
        both = Both(
            OutputsOverSeeds(tests.seen, recalled.seen),
            OutputsOverSeeds(tests.held_out, recalled.held_out),
        )
        found.append(NameOverSeeds(name, list(own), both))
    return found
