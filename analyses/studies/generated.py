"""What ``resval-lens generate`` says in JSON."""

from __future__ import annotations

from dataclasses import dataclass

from resval_lens.analyses.results.result import Result
from resval_lens.tasks.leading import NamedToken


@dataclass(frozen=True)
class Written:
    """One text with the seed that drew it."""

    seed: int
    text: str


@dataclass(frozen=True)
class Generated(Result):
    """What a model wrote after a prompt."""

    model: str
    prompt: str
    leading_token: NamedToken | None
    texts: list[Written]
