"""Indirect objects: who is given something, in a sentence where two are named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from resval_lens.analyses.tasks.task import DRAWN, Asked, Task

if TYPE_CHECKING:
    from resval_lens.analyses.tasks.problem import Problem
    from resval_lens.hooks.prompts import Metric
    from resval_lens.load import Loaded
    from resval_lens.transformer import ResValTransformer


class IndirectObjects(Task):
    """Naming the indirect object: Wang et al. 2022 (arXiv 2211.00593).

    Labels are (IO, S). Prompts are stories whose names, frames and objects never met in training
    text, or the general ones of :func:`~resval_lens.tasks.ioi.generate_prompts`. Corrupted prompts
    are those of :mod:`resval_lens.tasks.ioi_corruptions`.
    """

    name = "ioi"
    title = "indirect objects"
    reads_tokens = True
    corruptions = (
        "random-S2", "ABC", "position", "token", "token+position", "random", "random+position",
    )  # fmt: skip
    metrics: Mapping[str, str] = {
        "logit-difference": "logit difference",
        "log-probability": "log P(IO)",
        "names": "IO − other names",
        "probability": "P(IO)",
    }
    positions = ("IO", "S1", "S1+1", "S2", "end")
    has_general = True

    def measures(self, model: ResValTransformer) -> Mapping[str, Metric]:
        from resval_lens.analyses.tasks.pairs import io_is_likelier
        from resval_lens.hooks.prompts import logit_difference, probability

        return {
            "logit difference": logit_difference,
            "P(IO)": probability,
            "accuracy": io_is_likelier,
        }

    def metric_functions(self, model: ResValTransformer) -> Mapping[str, Metric]:
        from resval_lens.analyses.tasks.pairs import ioi_metrics

        return ioi_metrics(model)

    def draw(self, loaded: Loaded, count: int, asked: Asked = DRAWN) -> Problem:
        from resval_lens.analyses.tasks.pairs import draw_ioi, pairs_and_positions
        from resval_lens.analyses.tasks.posing import tokenizer_of
        from resval_lens.analyses.tasks.problem import Problem
        from resval_lens.tasks.leading import leading_token

        name, model = loaded.name, loaded.model
        kind, seed = self.corruption(loaded, asked), asked.seed or 0
        converted = model.cfg.original_architecture is not None
        general = converted if asked.general is None else asked.general
        tokenizer_of(loaded)
        lead = leading_token(model, asked.prepend)
        which: Any = "general" if general else "unseen"
        try:
            drawn, left_out = draw_ioi(model.tokenizer, count, seed, which, asked.tokenizers)
            pairs, where = pairs_and_positions(model.tokenizer, drawn, lead, kind, seed)  # type: ignore[arg-type]
        except ValueError as error:
            which = "general prompts" if general else "stories' prompts"
            hint = "" if general else "; --general has others"
            raise ValueError(f"{name} on {which}: {error}{hint}") from None
        if pairs.length > model.cfg.n_ctx:
            raise ValueError(
                f"{name} has a context of {model.cfg.n_ctx} tokens; these prompts need "
                f"{pairs.length}"
            )
        pairs = pairs.to(model.cfg.device)
        return Problem(
            name, model, self, kind, seed, pairs, where, tuple(drawn), lead, tuple(left_out),
            of_stories=not general,
        )  # fmt: skip
