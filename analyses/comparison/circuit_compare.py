"""Circuits of classic beside residual-value models: same task, same seeds, causal numbers only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from resval_lens.analyses.circuits.metrics import FAITHFUL, metric_matrix
from resval_lens.analyses.circuits.study import Prompts, StudiedCircuit, circuit_study
from resval_lens.analyses.comparison.circuit_findings import (
    SIGNALS,
    IOIHeads,
    MetricMatrix,
    OverSeeds,
    TaskCircuit,
    links_corrupted,
    over_seeds,
    sentences,
    what_links_carry,
)
from resval_lens.analyses.results.result import Result, plain
from resval_lens.analyses.studies.ioi import check_one_tokenizer
from resval_lens.analyses.studies.link_signals import link_signals
from resval_lens.analyses.studies.roles import head_roles
from resval_lens.analyses.tasks.pairs import (
    ICL_METRICS,
    NAMING,
    draw_ioi,
    icl_pairs,
    ioi_metrics,
    ioi_pairs,
)
from resval_lens.hooks.groups import alike
from resval_lens.io.checkpoint import SHIPPED_MODELS
from resval_lens.notes import Note
from resval_lens.streams import architecture, architectures_of
from resval_lens.tasks.icl import ICLBatch
from resval_lens.tasks.icl_corruptions import Exchanged
from resval_lens.tasks.ioi import IOIPrompt
from resval_lens.tasks.ioi_corruptions import Kind
from resval_lens.training.icl_run import ICLRun, Worlds
from resval_lens.training.lm_run import LMRun
from resval_lens.training.recorded import RecordedRun, load_runs
from resval_lens.transformer import ResValTransformer

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

IOI_CORRUPTIONS: tuple[Kind, ...] = ("random-S2", "ABC")
ICL_CORRUPTIONS: tuple[Exchanged, ...] = ("labels", "objects")


@dataclass(frozen=True)
class ComparedModel:
    """A language model that is compared: its name, its training seed if it is known.

    Attributes:
        architecture: ``classic``, ``values``, ...; by default that of the model alone.
        general: whether it was trained on other text than generated stories, and is given general
            prompts.
    """

    name: str
    seed: int | None
    model: ResValTransformer
    architecture: str = ""
    general: bool = False

    def __post_init__(self) -> None:
        if not self.architecture:
            object.__setattr__(self, "architecture", architecture(self.model.cfg.streams))

    def prompts(self, count: int, seed: int) -> list[IOIPrompt]:
        """Indirect objects: stories of unseen names, frames and objects, or general prompts."""
        which: Literal["unseen", "general"] = "general" if self.general else "unseen"
        return draw_ioi(self.model.tokenizer, count, seed, which).prompts


def check_counts(**counts: int) -> None:
    """Raises ValueError for a count below 1, by its name."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be 1 or more; got {count}")


def check_sizes(runs: Sequence[RecordedRun[ICLRun]], sequences: int, prompts: int = 1) -> None:
    """Raises ValueError for sequences of which no test set has twice as many, or no prompts."""
    most = min(each.run.test_size for each in runs) // 2
    if not 1 <= sequences <= most:
        raise ValueError(
            f"circuit sequences must lie between 1 and {most}, half of a test set; got {sequences}"
        )
    check_counts(prompts=prompts)


def classifier_circuits(
    runs: Sequence[RecordedRun[ICLRun]],
    sequences: int = 256,
    note: Note = lambda text: None,
    worlds: Worlds | None = None,
) -> list[TaskCircuit]:
    """Circuits of two-layer classifiers on fresh classes (IC), for both kinds of corrupted prompts.

    Args:
        runs: with trained models, each on test sequences of its own world.
        sequences: by which edges are scored; circuits are evaluated on as many others.
        note: called with what is being done.
        worlds: where worlds are drawn.

    Raises:
        ValueError: a run without a model; sizes that :func:`check_sizes` refuses.
    """
    check_sizes(runs, sequences)
    worlds = worlds or Worlds()
    circuits = []
    for recorded in runs:
        run = recorded.run
        note(f"{run.folder_name}: test sequences")
        world, tests = worlds.of(run)
        batch = ICLBatch(*(x[: 2 * sequences] for x in tests["ic"]))
        model = recorded.model()
        for what in ICL_CORRUPTIONS:
            first, second = icl_pairs(world, batch, what).split(sequences)
            about = _about(note, f"{run.folder_name}, other {what}")
            study = circuit_study(model, first, second, exact=True, metrics=ICL_METRICS, note=about)
            task = f"IC ({what})"
            circuits.append(TaskCircuit(task, "margin", run.name, run.seed, run.folder_name, study))
    return circuits


def _about(note: Note, what: str) -> Note:
    return lambda text: note(f"{what}: {text}")


def ioi_circuits(
    models: Sequence[ComparedModel],
    prompts: int = 64,
    seed: int = 0,
    exact: bool = False,
    note: Note = lambda text: None,
) -> list[TaskCircuit]:
    """Circuits of language models on indirect objects of stories, for both kinds of corrupted
    prompts.

    Edges are scored, and circuits chosen, by log P(IO); for what they keep of other metrics, and
    for circuits chosen by those, see :func:`ioi_matrices`.

    Args:
        prompts: unseen ones by which edges are scored; circuits are evaluated on as many others.
        seed: draws the prompts.
        exact: report how far the scores agree with exact ones.
        note: called with what is being done.
    """
    circuits = []
    for each in models:
        drawn = each.prompts(2 * prompts, seed)
        for kind in IOI_CORRUPTIONS:
            pairs = ioi_pairs(each.model, drawn, kind, seed)
            pairs = replace(pairs, metric=ioi_metrics(each.model)[NAMING])
            first, second = pairs.split(prompts)
            about = _about(note, f"{each.name}, corrupted by {kind}")
            with naming(each.name):
                study = circuit_study(each.model, first, second, exact=exact, note=about)
            task = f"IOI ({kind})"
            circuits.append(
                TaskCircuit(task, NAMING, each.architecture, each.seed, each.name, study)
            )
    return circuits


def ioi_matrices(
    models: Sequence[ComparedModel],
    prompts: int = 64,
    seed: int = 0,
    found_already: Sequence[TaskCircuit] = (),
    note: Note = lambda text: None,
) -> list[MetricMatrix]:
    """A circuit by each metric of indirect objects, evaluated by all, of each model.

    In the corrupted prompts (ABC) all three names are others, so that a circuit must move the
    names, too, not only say which of two is meant.

    Args:
        found_already: of :func:`ioi_circuits` with these prompts and seed; their circuits are not
            searched for again.
    """
    known = {
        each.name: {each.metric: each.study.circuit.edges}
        for each in found_already
        if each.task == "IOI (ABC)"
    }
    matrices = []
    for each in models:
        drawn = each.prompts(2 * prompts, seed)
        first, second = ioi_pairs(each.model, drawn, "ABC", seed).split(prompts)
        asked = each.model, first, second, ioi_metrics(each.model)
        with naming(each.name):
            chosen = metric_matrix(
                *asked, known=known.get(each.name, {}), note=_about(note, each.name)
            )
        counts = Prompts(len(first), len(second))
        groups = len(alike(second).unique())
        matrices.append(
            MetricMatrix(each.name, each.architecture, each.seed, "ABC", counts, groups, chosen)
        )
    return matrices


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Says of which model a ValueError is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def ioi_heads(
    models: Sequence[ComparedModel],
    prompts: int = 64,
    seed: int = 0,
    note: Note = lambda text: None,
) -> list[IOIHeads]:
    """Each language model's heads by role, and what its links carry of the subject."""
    heads = []
    for each in models:
        drawn = each.prompts(prompts, seed)
        note(f"{each.name}: roles of heads")
        with naming(each.name):
            roles, signals = head_roles(each.model, drawn, seed=seed), None
        if each.model.cfg.streams:
            note(f"{each.name}: what its links carry")
            signals = link_signals(each.model, drawn, SIGNALS, seed)
        heads.append(IOIHeads(each.architecture, each.seed, each.name, roles, signals))
    return heads


def compared_models(folder: Path | None = None) -> list[ComparedModel]:
    """The models of a folder's finished runs, or the pair that ships.

    Of runs on generated stories and on other text, those on stories.

    Raises:
        ValueError: the folder holds no finished run.
    """
    if folder is None:
        return [
            ComparedModel(name, 0, ResValTransformer.from_pretrained(name))
            for name in SHIPPED_MODELS
        ]
    several = load_runs(LMRun, folder)
    done = [each for each in several if each.done]
    if not done:
        raise ValueError(f"{folder} holds no finished run")
    of_stories = [each for each in done if "unseen" in each.evaluations[-1].get("ioi", {})]
    runs = of_stories or done
    kinds = architectures_of([each.run.config.streams for each in runs])
    return [
        ComparedModel(
            each.run.folder_name, each.run.seed, each.model(), kind, general=not of_stories
        )
        for kind, each in zip(kinds, runs, strict=True)
    ]


def check_models(models: Sequence[ComparedModel], prompts: int, seed: int) -> None:
    """Raises ValueError, before any work, for models that cannot be compared on such prompts.

    They must have one tokenizer, and the prompts their corrupted prompts.
    """
    check_one_tokenizer({each.name: each.model for each in models})
    drawn = models[0].prompts(2 * prompts, seed)
    for some in (drawn, drawn[:prompts]):
        for kind in IOI_CORRUPTIONS:
            try:
                ioi_pairs(models[0].model, some, kind, seed)
            except ValueError as error:
                raise ValueError(f"prompts={prompts} are too few: {error}") from None


@dataclass(frozen=True)
class ComparedCircuits(Result):
    """Circuits on both tasks, roles of heads and what links carry, side by side.

    Attributes:
        circuits: each task's and model's (:func:`classifier_circuits`, :func:`ioi_circuits`).
        matrices: of :func:`ioi_matrices`.
        heads: of :func:`ioi_heads`.
    """

    circuits: tuple[TaskCircuit, ...]
    matrices: tuple[MetricMatrix, ...]
    heads: tuple[IOIHeads, ...]

    @property
    def over_seeds(self) -> tuple[OverSeeds, ...]:
        """The circuits' measures over seeds."""
        return over_seeds(self.circuits)

    @property
    def drawn(self) -> dict[str, StudiedCircuit]:
        """The first seed's circuits of indirect objects, by title."""
        first = {(each.task, each.architecture): each for each in reversed(self.circuits)}
        return {
            f"{kind}: {task}": first[task, kind].study.circuit
            for task, kind in sorted(first)
            if task.startswith("IOI")
        }

    def to_dict(self) -> dict[str, Any]:
        """The JSON document, with what follows from its parts."""
        return {
            "min_faithfulness": FAITHFUL,
            "found": self.sentences(),
            "over_seeds": plain(self.over_seeds),
            **super().to_dict(),
            "drawn": [
                {"title": title, "circuit": circuit.to_dict()}
                for title, circuit in self.drawn.items()
            ],
        }

    def sentences(self) -> list[str]:
        """What the value link does, from what corrupting and cutting it does."""
        return sentences(self.circuits, self.heads, self.matrices)

    @property
    def linked(self) -> list[OverSeeds]:
        """What models with links do on indirect objects with every link corrupted."""
        return [
            row for row in self.over_seeds
            if row.task.startswith("IOI") and "model, links corrupted" in row.measures
        ]  # fmt: skip

    @property
    def with_links(self) -> list[IOIHeads]:
        """Models of the first architecture that has links."""
        several = [each for each in self.heads if each.signals is not None]
        return [each for each in several if each.architecture == several[0].architecture]

    def kept(self) -> list[str]:
        """Of indirect objects: what is left without links."""
        return [links_corrupted(self.linked[-1])] if self.linked else []

    def carried(self) -> list[str]:
        """Of indirect objects: what links carry."""
        return what_links_carry(self.with_links)[1:2] if self.with_links else []

    def headlines(self) -> list[str]:
        """What is left without links, and what links carry."""
        return [*self.kept(), *self.carried()]

    def circuit_tables(self) -> list[Table]:
        """Measures over seeds; of language models also circuits by every metric."""
        from resval_lens.analyses.comparison.circuit_tables import compared_table, matrix_table

        matrices = [matrix_table(self.matrices)] if self.matrices else []
        return [compared_table(self.over_seeds, FAITHFUL), *matrices]

    def head_tables(self) -> list[Table]:
        """Of language models: heads by role, and what links carry if there are any."""
        from resval_lens.analyses.comparison.circuit_tables import roles_table, signals_table

        roles = [roles_table(self.heads)] if self.heads else []
        linked = any(each.signals for each in self.heads)
        return [*roles, *([signals_table(self.heads)] if linked else [])]

    def tables(self) -> list[Table | str]:
        """Those of circuits and of heads."""
        return [*self.circuit_tables(), *self.head_tables()]

    def figures(self) -> dict[str, Figure]:
        """The first seed's circuits, and faithfulness by size of all."""
        from resval_lens.analyses.comparison.figures import faithfulness
        from resval_lens.analyses.studies.circuit_figures import circuits

        return {
            "circuits.png": circuits(self.drawn),
            "faithfulness.png": faithfulness(self.circuits),
        }
