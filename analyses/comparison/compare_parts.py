"""``resval-lens compare``: its two halves, classifiers and language models, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from resval_lens.analyses.comparison.circuit_compare import (
    ComparedCircuits,
    ComparedModel,
    classifier_circuits,
    ioi_circuits,
    ioi_heads,
    ioi_matrices,
)
from resval_lens.analyses.comparison.circuit_findings import IOIHeads, MetricMatrix, TaskCircuit
from resval_lens.analyses.comparison.icl_compare import ComparedClassifiers, compare
from resval_lens.analyses.comparison.icl_emergence import Emergence
from resval_lens.analyses.comparison.lm_compare import (
    ComparedLanguageModels,
    NotCompared,
    compare_language_models,
)
from resval_lens.analyses.comparison.lm_emergence import LMEmergence
from resval_lens.analyses.results.result import FLAT, Result
from resval_lens.beside import Beside
from resval_lens.notes import Note
from resval_lens.runtime import one_thread
from resval_lens.training.icl_run import ICLRun, Worlds
from resval_lens.training.recorded import RecordedRun

if TYPE_CHECKING:
    from rich.table import Table

Step = Callable[..., Any]
Circuits = tuple[list[TaskCircuit], list[MetricMatrix]]


@dataclass(frozen=True)
class Sizes:
    """On how much is measured: see ``resval-lens compare --help``."""

    sequences: int
    link_sequences: int
    circuit_sequences: int
    prompts: int
    seed: int


class Compared(NamedTuple):
    """What was measured; circuits of both."""

    classifiers: ComparedClassifiers
    language_models: ComparedLanguageModels
    circuits: ComparedCircuits


@dataclass(frozen=True)
class Comparison(Result):
    """What was measured, and what recorded runs say of training.

    Attributes:
        emergence: of in-context learning in classifiers.
        lm_emergence: of language models; in the document their ``emergence``.
        settings: on how much was measured.
    """

    classifiers: ComparedClassifiers = field(metadata=FLAT)
    emergence: Emergence
    language_models: ComparedLanguageModels
    lm_emergence: LMEmergence | NotCompared
    circuits: ComparedCircuits
    settings: Mapping[str, int | list[int]]

    def to_dict(self) -> dict[str, Any]:
        """The document."""
        found = super().to_dict()
        found["language_models"]["emergence"] = found.pop("lm_emergence")
        return found

    def headlines(self) -> list[str]:
        """What matters most: how much sooner, and what the link does in language models."""
        return [*self.emergence.sooner()[:1], *self.circuits.headlines()]

    def sentences(self) -> list[str]:
        """The headlines; then what else of training, classifiers, circuits and language models."""
        every = [
            *self.emergence.sentences(),
            *self.classifiers.sentences(),
            *self.circuits.sentences(),
            *self.language_models.sentences(),
        ]
        first = self.headlines()
        return [*first, *(each for each in every if each not in first)]

    def tables(self) -> list[Table | str]:
        """The same."""
        return [
            *self.classifiers.tables(),
            self.emergence.table(),
            *self.circuits.tables(),
            *self.language_models.tables(),
        ]


def compare_all(
    runs: Sequence[RecordedRun[ICLRun]],
    models: Sequence[ComparedModel],
    sizes: Sizes,
    jobs: int = 1,
    note: Note = lambda text: None,
) -> Compared:
    """Everything that is measured live; the same to the bit whatever ``jobs``.

    Args:
        runs: of classifiers.
        models: language models.
        jobs: processes; with more than one, classifiers have one of their own, which also finds
            the circuits of half the language models.
        note: called with how far each half is.
    """
    said: dict[str, str] = {}
    matrices: list[MetricMatrix] = []

    def telling(half: str) -> Note:
        def tell(text: str) -> None:
            said[half] = text
            note(" | ".join(f"{half} {text}" for half, text in sorted(said.items())))

        return tell

    for_models = telling("language models")
    if jobs > 1 and models:
        half = len(models) // 2
        told = telling("classifiers and circuits" if half else "classifiers")
        with Beside(_classifiers, runs, models[:half], sizes, told=told) as other:

            def tell(text: str) -> None:
                other.poll()
                for_models(text)

            language, of_rest, heads = _language_models(models, models[half:], sizes, tell)
            classifiers, circuits, of_models = other.result()
    else:
        classifiers, circuits, of_models = _classifiers(runs, [], sizes, telling("classifiers"))
        said.clear()
        language, of_rest, heads = _language_models(models, models, sizes, for_models)
    for own, by_metric in (*of_models, *of_rest):
        circuits += own
        matrices += by_metric
    compared = ComparedCircuits(tuple(circuits), tuple(matrices), tuple(heads))
    return Compared(classifiers, language, compared)


@one_thread()
def _classifiers(
    runs: Sequence[RecordedRun[ICLRun]], models: Sequence[ComparedModel], sizes: Sizes, note: Note
) -> tuple[ComparedClassifiers, list[TaskCircuit], list[Circuits]]:
    worlds = Worlds()
    chosen = [each for each in runs if each.has_model and each.run.name in ("classic", "values")]
    steps: list[Step] = [
        partial(compare, runs, sizes.sequences, sizes.link_sequences, worlds=worlds),
        *(
            partial(classifier_circuits, [each], sizes.circuit_sequences, worlds=worlds)
            for each in chosen
        ),
        *(partial(_circuits, [each], sizes.prompts, sizes.seed) for each in models),
    ]
    found, *rest = _in_steps(steps, note)
    return found, list(chain(*rest[: len(chosen)])), rest[len(chosen) :]


@one_thread()
def _language_models(
    models: Sequence[ComparedModel],
    with_circuits: Sequence[ComparedModel],
    sizes: Sizes,
    note: Note,
) -> tuple[ComparedLanguageModels, list[Circuits], list[IOIHeads]]:
    asked = sizes.prompts, sizes.seed
    steps: list[Step] = [partial(compare_language_models, models, *asked)]
    for study, several in ((_circuits, with_circuits), (ioi_heads, models)):
        steps += [partial(study, [each], *asked) for each in several]
    found, *rest = _in_steps(steps, note)
    count = len(with_circuits)
    return found, rest[:count], list(chain(*rest[count:]))


def _circuits(models: Sequence[ComparedModel], prompts: int, seed: int, note: Note) -> Circuits:
    """Circuits, and those by each metric, which need not be searched for twice."""
    circuits = ioi_circuits(models, prompts, seed, note=note)
    return circuits, ioi_matrices(models, prompts, seed, circuits, note)


def _in_steps(steps: Sequence[Step], note: Note) -> list[Any]:
    """Does one after the other, and says how many of how many are under way."""
    found = []
    for number, step in enumerate(steps, 1):

        def tell(text: str, number: int = number) -> None:
            note(f"{number} of {len(steps)}: {text}")

        found.append(step(note=tell))
    return found
