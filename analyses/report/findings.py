"""What value links do: of every study that answers it, the sentences that do, from records."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from itertools import zip_longest
from pathlib import Path

from resval_lens.analyses.comparison.ways import Ways
from resval_lens.analyses.papers.memory.orders import MemoryOrders, memory_orders
from resval_lens.analyses.papers.memory.training import MemoryRun
from resval_lens.analyses.report import pretrained
from resval_lens.analyses.report.gain import recorded_gain
from resval_lens.analyses.report.grafts import recorded_grafts
from resval_lens.analyses.report.language_models import (
    recorded_language_models,
    recorded_real_text,
    recorded_sizes,
)
from resval_lens.analyses.report.link_over_seeds import recorded_link
from resval_lens.io.files import read_json
from resval_lens.training.recorded import load_runs


@cache
def recorded_orders() -> MemoryOrders:
    """The study of the order of learning, of the runs that ship."""
    return memory_orders(load_runs(MemoryRun))


FINDINGS: dict[str, Callable[[Path], list[str]]] = {
    "finding-emergence": lambda folder: _of_gain("To"),
    "finding-gain": lambda folder: _of_gain("Of") + _of_gain("From") + _of_gain("Compared"),
    "finding-rates": lambda folder: _at_other_rates(),
    "finding-link": lambda folder: _of_link(
        "cutting the link takes", "is still missing", "for all", "more steps"
    ),
    "finding-degrees": lambda folder: _of_degrees(),
    "finding-language-models": lambda folder: _of_language_models(against_streams=False),
    "finding-sizes": lambda folder: recorded_sizes().sentences(),
    "finding-real-text": lambda folder: recorded_real_text().sentences(),
    "finding-sources": lambda folder: _of_language_models(against_streams=True),
    "finding-ways": lambda folder: Ways.from_dict(
        read_json(folder / "four-ways.json", "a study")
    ).sentences(),
    "finding-roles": lambda folder: pretrained.sentences("roles", folder),
    "finding-naming-circuit": lambda folder: pretrained.sentences("naming-circuit", folder),
    "finding-movers": lambda folder: pretrained.sentences("movers", folder),
    "finding-repeats": lambda folder: pretrained.sentences("repeats", folder),
    "finding-grafts": lambda folder: _grafts(),
    "finding-memories": lambda folder: recorded_orders().sentences(),
}
"""By the name of a part of the page; ``folder`` holds the studies' JSON."""


AT_ONCE = {
    "finding-emergence": 3, "finding-gain": 4, "finding-rates": 4, "finding-link": 10,
    "finding-degrees": 5, "finding-language-models": 5, "finding-roles": 3, "finding-grafts": 8,
    "finding-sizes": 3, "finding-real-text": 4, "finding-memories": 5, "finding-naming-circuit": 3,
    "finding-movers": 3, "finding-repeats": 4, "finding-sources": 2,
}  # fmt: skip
"""How many sentences are read at once; by default one. The others unfold."""


def finding(name: str, folder: Path) -> str:
    """Its first sentences as a list in Markdown, and the others folded below."""
    said = [
        re.sub(r"(?<!\w)-(?=\d)", "−", text).replace("[", "\\[").replace(">", "&gt;")
        for text in FINDINGS[name](folder)
    ]
    first = AT_ONCE.get(name, 1)
    shown, folded = ([f"- {text}" for text in part] for part in (said[:first], said[first:]))
    if folded:
        shown += ["", '??? note "The other sentences"', "", *(f"    {text}" for text in folded)]
    return "\n".join(shown)


def _of_gain(*beginnings: str) -> list[str]:
    """What begins so of the answers on IC, at the published learning rate: the first."""
    return [x for x in recorded_gain().rates[0].sentences() if x.startswith(beginnings)]


def _at_other_rates() -> list[str]:
    """What stream and gain save at other learning rates, level by level."""
    of_rates = (
        [f"Learning rate {rate.lr:g}: {x}" for x in rate.sentences() if x.startswith(("To", "Of"))]
        for rate in recorded_gain().rates[1:]
    )
    return [each for same in zip_longest(*of_rates) for each in same if each]


def _of_degrees() -> list[str]:
    """The link by degrees, and beside it a model without any, whose own values are scaled."""
    link, classic = (_of_link(words) for words in ("Scaling the link down", "In classic"))
    first = [link[0], classic[0], *_of_link("lose about the same size")]
    return first + [each for each in _of_link("caling") if each not in first]


def _of_language_models(against_streams: bool) -> list[str]:
    """What compares kinds of links with the paper's streams directly, or all else."""
    said = recorded_language_models().sentences()
    return [x for x in said if ("directly against v-" in x) == against_streams]


def _grafts() -> list[str]:
    """Variants beside the link; and links on top of other updates, beside these updates alone."""
    link, *others = recorded_grafts().sentences()
    on_top = (
        text
        for alone, with_links in (("gain", "both"), ("rank-1", "link-rank-1"))
        for text in recorded_grafts(alone).sentences()
        if text.startswith(f"{with_links} (")
    )
    return [link, *on_top, *others]


def _of_link(*words: str) -> list[str]:
    """What has one of the words of the sentences over seeds."""
    return [each for each in recorded_link().sentences() if any(word in each for word in words)]
