"""What ``resval-lens reproduce`` reproduces: the registry.

Its names are known without torch, so that help and completion come at once: a study is imported
when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from resval_lens.notes import Note

if TYPE_CHECKING:
    from resval_lens.analyses.results.result import Result
    from resval_lens.training.icl_run import ICLRun
    from resval_lens.training.recorded import RecordedRun, Run

    R = TypeVar("R", bound=Run[Any])


@dataclass(frozen=True)
class Asked:
    """What a study is made from.

    Attributes:
        folders: whose own folders are runs, or records of runs.
        seeds: of the runs; None: all there are.
        trials, seed: of what is measured now.
        note: called with what is being done.
    """

    folders: Sequence[Path]
    seeds: Collection[int] | None
    trials: int
    seed: int
    note: Note

    def runs(self, kind: type[R]) -> list[RecordedRun[R]]:
        """The runs of a kind in all folders.

        Raises:
            ValueError: there are none of these seeds.
        """
        from resval_lens.training.recorded import load_runs

        found = [each for folder in self.folders for each in load_runs(kind, folder)]
        chosen = [each for each in found if self.seeds is None or each.run.seed in self.seeds]
        if not chosen:
            where = ", ".join(map(str, self.folders))
            raise ValueError(f"{where} holds no run of seeds {list(self.seeds or [])}")
        return chosen

    def classifiers(self, *variants: str) -> list[RecordedRun[ICLRun]]:
        """The two-layer classifiers of some variants, by default of all."""
        from resval_lens.training.icl_run import ICLRun

        return [each for each in self.runs(ICLRun) if not variants or each.run.name in variants]


@dataclass(frozen=True)
class Reproducible:
    """One result by name.

    Attributes:
        about: what it says.
        study: makes it.
        experiments: of ``experiments.toml`` that train what it needs; of the first there must be
            records. Without any it is measured, not trained.
    """

    about: str
    study: Callable[[Asked], Result]
    experiments: tuple[str, ...] = ()


def _emergence(level: float, *variants: str) -> Callable[[Asked], Result]:
    """When variants pass a level on IC and IC2; by default the paper's four."""

    def study(asked: Asked) -> Result:
        from resval_lens.analyses.comparison.icl_emergence import emergence
        from resval_lens.models.presets import PAPER_VARIANTS

        return emergence(asked.classifiers(*(variants or PAPER_VARIANTS)), level)

    return study


def _further_variants(asked: Asked) -> Result:
    from resval_lens.analyses.comparison.icl_emergence import emergence

    return emergence(asked.classifiers(), 0.95)


def _figure_3(asked: Asked) -> Result:
    from resval_lens.analyses.comparison.icl_curves import icl_curves
    from resval_lens.models.presets import PAPER_VARIANTS

    return icl_curves(asked.classifiers(*PAPER_VARIANTS))


def _gain_or_stream(asked: Asked) -> Result:
    from resval_lens.analyses.comparison.gain import gain_or_stream

    return gain_or_stream(asked.classifiers())


def _language_models(asked: Asked) -> Result:
    from resval_lens.analyses.comparison.lm_emergence import lm_emergence
    from resval_lens.training.lm_run import LMRun

    return lm_emergence(asked.runs(LMRun))


def _link_over_seeds(asked: Asked) -> Result:
    from resval_lens.analyses.comparison.link_over_seeds import link_over_seeds, link_studies

    return link_over_seeds(link_studies(asked.folders, asked.seeds, asked.note))


def _scaling(asked: Asked) -> Result:
    from resval_lens.analyses.comparison.lm_scaling import lm_scaling
    from resval_lens.training.lm_run import LMRun

    return lm_scaling(asked.runs(LMRun))


def _grafts(asked: Asked) -> Result:
    from resval_lens.analyses.comparison.grafts import grafts
    from resval_lens.analyses.report.grafts import AGAINST
    from resval_lens.training.graft_run import GraftRun

    return grafts(asked.runs(GraftRun), AGAINST)


def _memory_order(asked: Asked) -> Result:
    from resval_lens.analyses.papers.memory.orders import memory_orders
    from resval_lens.analyses.papers.memory.training import MemoryRun

    return memory_orders(asked.runs(MemoryRun))


def _amicl(module: str, name: str) -> Callable[[Asked], Result]:
    """A figure of AMICL, counted now."""

    def study(asked: Asked) -> Result:
        from importlib import import_module

        drawn = getattr(import_module(f"resval_lens.analyses.papers.amicl.{module}"), name)
        found: Result = drawn(asked.seed, asked.trials, note=asked.note)
        return found

    return study


REPRODUCIBLE: dict[str, Reproducible] = {
    "table-1": Reproducible(
        "when classifiers pass .95 on IC and IC2, ours beside the published; t-tests",
        _emergence(0.95), ("tables",),
    ),
    "table-5": Reproducible("the same above .5", _emergence(0.5), ("tables",)),
    "table-6": Reproducible("the same above .9", _emergence(0.9), ("tables",)),
    "figure-3": Reproducible("accuracy and loss in training", _figure_3, ("tables",)),
    "further-variants": Reproducible(
        "gradient blocked in the link, several streams, an even mix, larger values",
        _further_variants, ("further variants", "tables", "gain"),
    ),
    "gain-or-stream": Reproducible(
        "the saving of larger values without any link, as a share of the value stream's",
        _gain_or_stream,
        ("gain", "tables", "further variants", "half the learning rate", "twice the learning rate",
         "four times the learning rate"),
    ),
    "papers-text": Reproducible(
        "table-1 by the paper's text instead of its code", _emergence(0.95), ("paper's text",)
    ),
    "no-own-values": Reproducible(
        "layer 1 without its own W_V, beside classic, values and norm-matched values",
        _emergence(0.95, "classic", "values", "values-norm-matched", "values-no-own"),
        ("no values of its own", "tables", "gain"),
    ),
    "language-models": Reproducible(
        "steps to each level of loss and of naming indirect objects, and naming at equal loss",
        _language_models, ("stories", "stories, gain or stream"),
    ),
    "link-over-seeds": Reproducible(
        "the link cut, scaled by degrees and left out of further training, while learning in "
        "context emerges and after",
        _link_over_seeds, ("link in training", "snapshots without a link"),
    ),
    "scaling": Reproducible(
        "a language model's steps that the value stream saves, by depth and width",
        _scaling, ("scaling", "stories"),
    ),
    "real-text": Reproducible(
        "the same on real stories, and losses where text repeats", _scaling, ("real text",)
    ),
    "grafts": Reproducible(
        "the saving of value links grafted on a trained model, beside as many other parameters",
        _grafts, ("grafts", "grafts with low-rank updates"),
    ),
    "memory-order": Reproducible(
        "which memory of an induction head (arXiv 2412.11459) is learned first, at six levels",
        _memory_order, ("simplified transformers",),
    ),
    "figure-6": Reproducible(
        "AMICL, every combination of similarity and separation", _amicl("combinations", "figure_6")
    ),
    "figure-7": Reproducible("AMICL over a, beside the published", _amicl("accuracy", "figure_7")),
    "figure-8": Reproducible("AMICL over length and dimensions", _amicl("accuracy", "figure_8")),
}  # fmt: skip
"""Every result by name, in the order in which help has them."""
