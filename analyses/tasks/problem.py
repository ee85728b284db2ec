"""A problem: a model on a task's prompts, beside their corrupted prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from resval_lens.analyses.tasks import TASKS, find_task
from resval_lens.analyses.tasks.task import DRAWN, Asked, Prompt, Task
from resval_lens.checks import check_whole
from resval_lens.hooks.prompts import Metric, PromptPairs
from resval_lens.io.provenance import within
from resval_lens.load import AS_SAVED, LoadOptions
from resval_lens.streams import shorthand
from resval_lens.tasks.leading import NamedToken, named_token
from resval_lens.transformer import ResValTransformer


@dataclass(frozen=True)
class Facts:
    """What every report says of a :class:`Problem`.

    Attributes:
        model: its name; of a path that lies elsewhere the last part.
        streams: as :func:`~resval_lens.streams.shorthand` writes them.
        corruption: how corrupted prompts differ.
        prompts: how many.
        metric: its name.
        words_left_out: that prompts do without, as the tokenizer has no one token for them.
        dtype: that the model computes in.
        folded: whether its weights are processed: norms or value biases folded.
    """

    model: str
    streams: str
    task: str
    corruption: str
    seed: int
    prompts: int
    metric: str
    leading_token: NamedToken | None
    words_left_out: tuple[str, ...]
    dtype: str = "float32"
    folded: bool = False

    @property
    def task_and_corruption(self) -> str:
        """For titles: "indirect objects, random-S2 corrupted"."""
        kind = self.corruption
        how = f"corrupted {kind}" if kind.startswith("as ") else f"{kind} corrupted"
        return f"{self.task}, {how}"


@dataclass(frozen=True)
class Example:
    """A prompt and its corrupted prompt, as text."""

    clean: str
    corrupted: str


def undone(metric: str, clean: float, corrupted: float) -> list[str]:
    """Says so if a metric is no larger on prompts than on their corrupted prompts."""
    if clean > corrupted:
        return []
    return [
        f"The {metric} is no larger on the prompts ({clean:z.3g}) than on the corrupted prompts "
        f"({corrupted:z.3g}): this model does not do the task, and shares of that gap mean little."
    ]


@dataclass(frozen=True)
class Problem:
    """A model, its task, and prompts beside their corrupted prompts.

    Attributes:
        name: as the model was asked for.
        corruption: how corrupted prompts differ.
        seed: that drew the prompts; of a classifier, that of its training run.
        named_positions: where each prompt has what the task's ``positions`` name.
        prompts: as their task made them, where they are text.
        lead: the token before each prompt, if there is one.
        left_out: words that prompts do without, as the tokenizer has no one token for them.
        asked: the name of the metric that was asked for, if any (:meth:`by`).
        of_stories: whether prompts are like the generated stories.
    """

    name: str
    model: ResValTransformer
    task: Task
    corruption: str
    seed: int
    pairs: PromptPairs
    named_positions: Mapping[str, Int[Tensor, " prompt"]] = field(default_factory=dict)
    prompts: tuple[Prompt, ...] = ()
    lead: int | None = None
    left_out: tuple[str, ...] = ()
    asked: str = ""
    of_stories: bool = False

    @property
    def measures(self) -> Mapping[str, Metric]:
        """What is measured, by name."""
        return self.task.measures(self.model)

    @property
    def metric(self) -> str:
        """The name of the prompts' metric."""
        return self.asked or next(iter(self.measures))

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Metrics that circuits are chosen and evaluated by, by name."""
        return self.task.metric_functions(self.model)

    @property
    def general(self) -> bool:
        """Whether prompts are general ones, of a task that has those of the stories, too."""
        return self.task.has_general and not self.of_stories

    def by(self, metric: str) -> Problem:
        """The same by another of the task's ``metrics``.

        Raises:
            ValueError: the task has no such metric.
        """
        names = self.task.metrics
        if metric not in names:
            raise ValueError(
                f"metric: {self.task.title} is measured by {', '.join(names)}; got {metric!r}"
            )
        name = names[metric]
        return replace(self, pairs=replace(self.pairs, metric=self.metrics[name]), asked=name)

    def facts(self) -> Facts:
        """What every report says of it."""
        cfg = self.model.cfg
        return Facts(
            within(self.name),
            shorthand(cfg.streams),
            self.task.title,
            self.corruption,
            self.seed,
            len(self.pairs),
            self.metric,
            named_token(self.model, self.lead),
            self.left_out,
            str(cfg.dtype).removeprefix("torch."),
            cfg.folded_value_biases or str(cfg.normalization_type).endswith("Pre"),
        )

    def rows(self, which: slice | Int[Tensor, " some"]) -> Problem:
        """On some of the prompts."""
        chosen = range(len(self.pairs))[which] if isinstance(which, slice) else which.tolist()
        texts = tuple(self.prompts[i] for i in chosen) if self.prompts else ()
        where = {name: each[which] for name, each in self.named_positions.items()}
        return replace(self, pairs=self.pairs.rows(which), named_positions=where, prompts=texts)

    def of_one_length(self) -> Problem:
        """On the prompts of the commonest length, without padding."""
        last = self.pairs.answers.tolist()
        commonest = Counter(last).most_common(1)[0][0]
        alike = self.rows(torch.tensor([i for i, each in enumerate(last) if each == commonest]))
        pairs, end = alike.pairs, commonest + 1
        unpadded = replace(
            pairs,
            clean=pairs.clean[:, :end],
            corrupted=pairs.corrupted[:, :end],
            last=None,
            mask=None,
        )
        return replace(alike, pairs=unpadded)

    def tokens(self) -> list[str]:
        """The first prompt's tokens; of a classifier, o (object), l (label) and q (query)."""
        return self.task.tokens(self)

    def example(self) -> Example | None:
        """The first prompt and its corrupted prompt; None if they are no text."""
        return self.task.example(self)


def pose(
    name: str,
    prompts: int,
    asked: Asked = DRAWN,
    task: str | Path | Task | None = None,
    how: LoadOptions = AS_SAVED,
) -> Problem:
    """The model of that name (:func:`~resval_lens.load.load_model`) on prompts of a task.

    Args:
        prompts: how many.
        task: one of ``TASKS``, by name or itself, or a file (:func:`.find_task`); by default the
            first whose prompts the model can read.
        how: the model is loaded; the prompts go to its device.

    Raises:
        ValueError: an unknown model or task; a model that cannot read the task's prompts; what
            :meth:`~resval_lens.analyses.tasks.task.Task.draw` refuses.
    """
    check_whole("prompts", prompts, 1)
    chosen = None if task is None else find_task(task)
    loaded = how.load(name)
    reads_tokens = loaded.model.reads_tokens
    if chosen is None:
        chosen = next(each for each in TASKS.values() if each.reads_tokens == reads_tokens)
    if chosen.reads_tokens != reads_tokens:
        kinds = ("vectors", "tokens")
        raise ValueError(
            f"task {chosen.name}: its prompts are {kinds[chosen.reads_tokens]}; {name} reads "
            f"{kinds[reads_tokens]}"
        )
    return chosen.draw(loaded, prompts, asked)


def pose_two(
    name: str,
    prompts: int,
    asked: Asked = DRAWN,
    task: str | Path | Task | None = None,
    how: LoadOptions = AS_SAVED,
) -> tuple[Problem, Problem]:
    """:func:`pose` on ``prompts`` prompts, and on as many others."""
    check_whole("prompts", prompts, 1)
    both = pose(name, 2 * prompts, asked, task, how)
    half = len(both.pairs) // 2  # a file may hold fewer
    if not half:
        raise ValueError(f"{both.task.name} holds one prompt; two sets of prompts are needed")
    return both.rows(slice(0, half)), both.rows(slice(half, None))
