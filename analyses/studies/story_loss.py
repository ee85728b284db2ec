"""Loss on stories beside every link cut: what a link is for, besides the task at hand.

A cut that ruins one task may ruin all text. So the loss of a held set of generated stories stands
beside it, and that of cutting layers' own queries, keys or values instead of what arrives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from rich.table import Table
from torch import Tensor

from resval_lens.analyses.results.result import Result
from resval_lens.analyses.results.tables import WIDE
from resval_lens.hooks import Link, link_hooks, zero
from resval_lens.hooks.answers import right_padding
from resval_lens.runtime import evaluating
from resval_lens.tasks.ioi import token_ids
from resval_lens.tasks.stories import stories
from resval_lens.transformer import ResValTransformer

ROWS = 16
SEED = 1
"""Of the stories that language models are validated on."""
MOST_CONTEXT = 256


def story_rows(model: ResValTransformer, rows: int = ROWS) -> Int[Tensor, "row pos"]:
    """:func:`text_rows` of validation stories.

    Raises:
        ValueError: a model without a tokenizer, or rows below 1.
    """
    return text_rows(model, stories(SEED), rows)


def text_rows(
    model: ResValTransformer, texts: Iterable[str], rows: int = ROWS, most: int = MOST_CONTEXT
) -> Int[Tensor, "row pos"]:
    """Texts as training packs them: an end of text before each, cut at the context.

    Args:
        most: tokens of a row, where the context is not shorter.

    Raises:
        ValueError: a model without a tokenizer, rows below 1, or texts that do not fill them.
    """
    if rows < 1:
        raise ValueError(f"rows must be 1 or more; got {rows}")
    tokenizer: Any = model.tokenizer
    if tokenizer is None:
        raise ValueError("this model has no tokenizer; a text cannot be tokenised")
    length = min(model.cfg.n_ctx, most)
    stream: list[int] = []
    for text in texts:
        stream += [tokenizer.eos_token_id, *token_ids(tokenizer, text)]
        if len(stream) >= rows * length:
            return torch.tensor(stream[: rows * length]).view(rows, length).to(model.cfg.device)
    raise ValueError(f"{rows} rows of {length} tokens are needed; the text has {len(stream):,}")


@dataclass(frozen=True)
class StoryLoss(Result):
    """Mean losses on stories, in nats a token.

    Attributes:
        rows, tokens: of the stories; ``seed`` drew them.
        cut: with each group of links cut, by its name.
        own_cut: by stream and layer (``v1``), with that layer's own part at 0 and its link as it
            was.
    """

    rows: int
    tokens: int
    seed: int
    clean: float
    cut: Mapping[str, float]
    own_cut: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The fields; ``own_cut`` in two words."""
        return {name.replace("_", " "): own for name, own in super().to_dict().items()}

    def tables(self) -> list[Table]:
        """Links cut, and layers' own parts."""
        table = Table(
            title=f"Loss on {self.rows} × {self.tokens} tokens of validation stories: "
            f"{self.clean:.3f} nats",
            **WIDE,
        )
        table.add_column("cut", no_wrap=True)
        table.add_column("loss", justify="right")
        for kind, losses in (("links", self.cut), ("own", self.own_cut)):
            for name, loss in losses.items():
                table.add_row(f"{kind}: {name}", f"{loss:.3f}")
        table.caption = "own: a layer's own values (queries, keys) at 0, its link as it was"
        return [table]


@torch.no_grad()
def story_loss(
    model: ResValTransformer, tokens: Int[Tensor, "row pos"], groups: Mapping[str, Sequence[Link]]
) -> StoryLoss:
    """Mean loss (nats a token) with each group of links cut, and layers' own parts."""

    def loss(hooks: list[Any]) -> float:
        with model.hooks(fwd_hooks=hooks):
            return float(model(tokens, return_type="loss", **right_padding(model)))

    every = sorted({(link.stream, link.layer) for links in groups.values() for link in links})
    with evaluating(model):
        return StoryLoss(
            rows=len(tokens),
            tokens=tokens.shape[1],
            seed=SEED,
            clean=loss([]),
            cut={
                name: loss(link_hooks(model, zero(), list(links))) for name, links in groups.items()
            },
            own_cut={
                f"{of}{layer}": loss(
                    [(f"blocks.{layer}.attn.hook_{of}_local", lambda x, hook: torch.zeros_like(x))]
                )
                for of, layer in every
            },
        )
