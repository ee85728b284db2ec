"""What ``resval-lens attention`` says: where each head of a model attends on one text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.markup import escape as markup
from rich.table import Table

from resval_lens.analyses.attribution.sources import MEASURE, Attention, before, strength
from resval_lens.analyses.drawing.figures import legible
from resval_lens.analyses.results.result import OPTIONAL, Result
from resval_lens.analyses.results.tables import WIDE, table
from resval_lens.hooks.links import Numbers, among, head_name, whole_numbers

MOST = 12
"""Heads of the table."""


@dataclass(frozen=True)
class AttendingHead:
    """Where a head attends.

    Attributes:
        head: its name.
        strength: the mean over queries of its largest weight on one token before.
        query, key: positions of the largest of these weights, ``weight``.
        first: mean weight on the first token, over the queries after it.
        own, link: mean over queries of Σ_k A[q, k] ‖value_k W_O‖, of the layer's own values and of
            its link's; None for a model without a value stream.
    """

    head: str
    strength: float
    query: int
    key: int
    weight: float
    first: float
    own: float | None = field(default=None, metadata=OPTIONAL)
    link: float | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class AttentionOnText(Result):
    """Heads on one text, the strongest first.

    Attributes:
        model: its name.
        streams: as :func:`~resval_lens.streams.shorthand` writes them.
        tokens: of the text, the leading token among them.
        heads: all of them, or those that were chosen.
    """

    model: str
    streams: str
    tokens: list[str]
    heads: list[AttendingHead]

    @classmethod
    def of(
        cls,
        model: str,
        streams: str,
        tokens: Sequence[str],
        found: Attention,
        layers: Numbers | None = None,
        heads: Numbers | None = None,
    ) -> AttentionOnText:
        """What there is to say of a run.

        Args:
            layers, heads: to speak of; by default all.

        Raises:
            ValueError: a layer or head that is not there.
        """
        n_layers, n_heads = found.patterns.shape[:2]
        places = [
            (layer, head)
            for layer in among(whole_numbers(layers, "layers"), n_layers, "layers")
            for head in among(whole_numbers(heads, "heads"), n_heads, "heads")
        ]
        strong = strength(found.patterns)
        places.sort(key=lambda place: -strong[place].item())
        rows = [_head(found, place, strong[place].item()) for place in places]
        return cls(model, streams, list(tokens), rows)

    def tables(self) -> list[Table]:
        """The strongest heads."""
        links = any(row.link is not None for row in self.heads)
        rows = [
            [
                row.head, f"{row.strength:.3f}", self._token(row.query), self._token(row.key),
                f"{row.weight:.3f}", f"{row.first:.3f}",
                *([f"{row.own:.3g}", f"{row.link:.3g}"] if links else []),
            ]
            for row in self.heads[:MOST]
        ]  # fmt: skip
        left = f"; {len(self.heads) - MOST} more in the JSON" if len(self.heads) > MOST else ""
        numbers = ["strength", "query", "key", "weight", "first token"]
        norms = (
            "; own, link: norms of what is written of own values and of the link's, mean over "
            "queries"
        )
        return [
            table(
                f"{markup(self.model)}: where heads attend, {len(self.tokens)} tokens",
                ["head"],
                [*numbers, "own", "link"] if links else numbers,
                rows,
                f"(strength: {MEASURE}; query, key: where it is largest"
                f"{norms if links else ''}{left})",
                WIDE,
            )
        ]

    def _token(self, at: int) -> str:
        return markup(f"{at} {legible(self.tokens[at].strip())}")


def _head(found: Attention, place: tuple[int, int], strong: float) -> AttendingHead:
    pattern = found.patterns[place]
    query, key = divmod(int(before(pattern).argmax()), len(pattern))
    norms = found.norms
    own = None if norms is None else (pattern @ norms.own[place]).mean().item()
    link = None if norms is None else (pattern @ norms.link[place]).mean().item()
    return AttendingHead(
        head_name(*place),
        strong,
        query,
        key,
        pattern[query, key].item(),
        pattern[1:, 0].mean().item() if len(pattern) > 1 else 1.0,
        own,
        link,
    )
