"""Classifying in context: the label of a class that only the sequence tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from resval_lens.analyses.tasks.task import DRAWN, Asked, Task

if TYPE_CHECKING:
    from resval_lens.analyses.tasks.problem import Example, Problem
    from resval_lens.hooks.prompts import Metric
    from resval_lens.load import Loaded
    from resval_lens.transformer import ResValTransformer


class InContext(Task):
    """Naming the right label; labels are the right one, then the wrong ones of the context.

    Prompts are the test set with fresh classes (IC) of the classifier's own training run;
    corrupted ones are those of :mod:`resval_lens.tasks.icl_corruptions`.
    """

    name = "icl"
    title = "classifying in context"
    reads_tokens = False
    corruptions = ("labels", "objects")
    metrics: Mapping[str, str] = {
        "margin": "margin",
        "log-probability": "log P(right)",
        "probability": "P(right)",
    }

    def measures(self, model: ResValTransformer) -> Mapping[str, Metric]:
        from resval_lens.analyses.tasks.pairs import is_right
        from resval_lens.hooks.prompts import margin

        return {"margin": margin, "accuracy": is_right}

    def metric_functions(self, model: ResValTransformer) -> Mapping[str, Metric]:
        from resval_lens.analyses.tasks.pairs import ICL_METRICS

        return ICL_METRICS

    def draw(self, loaded: Loaded, count: int, asked: Asked = DRAWN) -> Problem:
        from resval_lens.analyses.tasks.pairs import icl_pairs
        from resval_lens.analyses.tasks.problem import Problem
        from resval_lens.tasks.icl import ICLBatch
        from resval_lens.training.icl_run import draw_world

        name, model, recorded = loaded.name, loaded.model, loaded.run
        kind = self.corruption(loaded, asked)
        if recorded is None:
            raise ValueError(
                f"{name} is not a classifier with its training run, which draws the sequences of "
                f"{self.title}"
            )
        for given, option in (
            (asked.seed is not None, "--seed"),
            (asked.prepend != "auto", "--prepend"),
            (asked.several_tokens, "--several-tokens"),
        ):
            if given:
                raise ValueError(
                    f"{option} is for prompts of text; {name} is a classifier, whose sequences "
                    "are the test set of its training run"
                )
        world, tests = draw_world(recorded.run)
        batch = tests["ic"]
        if count > len(batch.targets):
            raise ValueError(
                f"the test set of {name} has {len(batch.targets):,} sequences; {count:,} are needed"
            )
        first = ICLBatch(*(x[:count].clone() for x in batch))  # lets go of the others
        pairs = icl_pairs(world, first, kind).to(model.cfg.device)  # type: ignore[arg-type]
        clean, corrupted = (x.to(model.cfg.dtype) for x in (pairs.clean, pairs.corrupted))
        pairs = replace(pairs, clean=clean, corrupted=corrupted)
        return Problem(name, model, self, kind, recorded.run.seed, pairs)

    def tokens(self, problem: Problem) -> list[str]:
        return [*("ol"[i % 2] for i in range(problem.pairs.length - 1)), "q"]

    def example(self, problem: Problem) -> Example | None:
        return None
