"""Table 2 of arXiv 2412.15113: what models of ours say to its sentences, beside the published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from resval_lens.analyses.results.result import Result
from resval_lens.analyses.results.seeds import mean_and_sd
from resval_lens.analyses.results.tables import STYLE, in_sections, table
from resval_lens.analyses.studies.ioi import ioi_per_prompt
from resval_lens.host import HookedTransformer
from resval_lens.tasks.ioi import PAPER_SENTENCES, SCRIPT_SENTENCES, encode, paper_prompts

# arXiv 2412.15113, Table 2: P(IO) ("correct") and P(S) ("incorrect") in %, (mean, sd) over three
# seeds, of the four sentences. The sd is the sample's (ddof = 1): the public script
# (small-LM/IOI_task.py) takes torch.std, and three numbers from 0 up with the mean 1.54 cannot have
# a population sd above 1.54·√2 = 2.18. The script also never switches dropout off, and runs the
# classic checkpoints through the value-passing network (see ioi_cells.four_cells).
PUBLISHED_TABLE_2: dict[str, dict[str, tuple[tuple[float, float], ...]]] = {
    "classic": {
        "p_io": ((11.73, 15.62), (11.88, 9.09), (3.83, 6.09), (1.54, 2.31)),
        "p_subject": ((6.93, 5.70), (7.99, 9.52), (0.51, 0.66), (4.86, 8.35)),
    },
    "values": {
        "p_io": ((42.89, 10.58), (43.44, 14.45), (49.24, 9.89), (28.56, 5.92)),
        "p_subject": ((5.68, 3.76), (6.8, 10.40), (0.03, 0.03), (0.18, 0.15)),
    },
}


@dataclass(frozen=True)
class OverSeeds:
    """A number over the models of one architecture, of a seed each.

    Attributes:
        sd: the population's standard deviation (ddof = 0).
        sd_sample: the sample's (ddof = 1), as published; None for a single seed.
    """

    mean: float
    sd: float
    sd_sample: float | None
    per_seed: list[float]


@dataclass(frozen=True)
class MeanAndSd:
    """A published number, with the sample's standard deviation."""

    mean: float
    sd_sample: float


@dataclass(frozen=True)
class Published:
    """What the paper has of one sentence, in %."""

    p_io: MeanAndSd
    p_subject: MeanAndSd


@dataclass(frozen=True)
class PaperRow:
    """One sentence, said by the models of one architecture.

    Attributes:
        sentence: its number, from 1.
        seeds: how many models.
        published: of "classic" and "values", on the paper's sentences or its script's.
    """

    architecture: str
    sentence: int
    text: str
    seeds: int
    p_io: OverSeeds
    p_subject: OverSeeds
    published: Published | None


@dataclass(frozen=True)
class Unsaid:
    """A sentence that the tokenizer cannot say, and why."""

    sentence: int
    text: str
    why: str


@dataclass(frozen=True)
class PaperTable(Result):
    """:func:`paper_table`; ``texts`` are the sentences."""

    unit: str
    texts: tuple[str, ...]
    unsaid: list[Unsaid]
    rows: list[PaperRow]

    def to_dict(self) -> dict[str, Any]:
        """The fields, with ``texts`` as ``sentences``."""
        return {
            "sentences" if name == "texts" else name: own for name, own in super().to_dict().items()
        }

    def tables(self) -> list[Table]:
        """Ours beside the published.

        Deviations are those of the sample (ddof = 1), as published; the data have the population's,
        too. A single seed has none.
        """
        rows = [
            (
                f"{row.architecture} ({row.seeds})",
                str(row.sentence),
                _spread(row.p_io),
                _spread(row.published.p_io if row.published else None),
                _spread(row.p_subject),
                _spread(row.published.p_subject if row.published else None),
            )
            for row in self.rows
        ]
        title = (
            f"Next-token probability in {self.unit}, either person as the subject\n"
            "(mean ± sample sd over seeds)"
        )
        caption = (
            "published: models of 8 million parameters trained on TinyStories, whatever these are; "
            "sentences by number, their text is in the JSON"
        )
        columns = ("#", "P(IO)", "published", "P(S)", "published")
        style = STYLE | {"pad_edge": False}
        return [table(title, ("model",), columns, in_sections(rows), caption, style)]


def _spread(of: OverSeeds | MeanAndSd | None) -> str:
    if of is None:
        return ""
    return f"{of.mean:.2f}" + ("" if of.sd_sample is None else f" ± {of.sd_sample:.2f}")


def paper_table(
    models: Mapping[str, Sequence[HookedTransformer]],
    tokenizer: Any,
    sentences: Sequence[str] = PAPER_SENTENCES,
    prepend: int | None = None,
) -> PaperTable:
    """Table 2 of arXiv 2412.15113 for models of ours: P(IO) and P(S) in %.

    For a model, a sentence's probabilities are the means over its two prompts (either person
    gives).

    Args:
        models: architecture to models, one for each seed.
        prepend: a token before every prompt; the paper's had none.

    Raises:
        ValueError: an architecture without models; no sentence that the tokenizer can say; what
            :func:`encode`, :func:`~resval_lens.tasks.ioi.paper_prompts` and
            :func:`ioi_per_prompt` refuse.
    """
    said, unsaid, reasons = [], [], []
    for number, pair in enumerate(paper_prompts(sentences)):
        try:
            encode(pair, tokenizer, prepend)
        except ValueError as error:  # a name of several tokens
            unsaid.append(Unsaid(number + 1, sentences[number], str(error)))
            reasons.append(error)
        else:
            said.append((number, pair))
    if reasons and not said:
        raise reasons[0]
    batch = encode([prompt for _, pair in said for prompt in pair], tokenizer, prepend)
    rows = []
    for architecture, seeds in models.items():
        if not seeds:
            raise ValueError(f"{architecture!r} has no models")
        scores = [ioi_per_prompt(model, batch) for model in seeds]
        for place, (number, _) in enumerate(said):
            both = slice(2 * place, 2 * place + 2)
            text = sentences[number]
            rows.append(
                PaperRow(
                    architecture,
                    number + 1,
                    text,
                    len(seeds),
                    p_io=_over_seeds([score.p_io[both] for score in scores]),
                    p_subject=_over_seeds([score.p_subject[both] for score in scores]),
                    published=_published(architecture, number, text),
                )
            )
    return PaperTable("%", tuple(sentences), unsaid, rows)


def _over_seeds(pairs: Sequence[Float[Tensor, " 2"]]) -> OverSeeds:
    values = [100 * float(pair.double().mean()) for pair in pairs]
    mean, sd = mean_and_sd(values)
    return OverSeeds(
        mean=mean,
        sd=sd,
        sd_sample=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        per_seed=values,
    )


def _published(architecture: str, number: int, sentence: str) -> Published | None:
    known = (table[number] for table in (PAPER_SENTENCES, SCRIPT_SENTENCES) if number < len(table))
    if architecture not in PUBLISHED_TABLE_2 or sentence not in known:
        return None
    numbers = PUBLISHED_TABLE_2[architecture]
    return Published(*(MeanAndSd(*numbers[name][number]) for name in ("p_io", "p_subject")))
