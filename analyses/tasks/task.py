"""A task: how prompts, corrupted prompts, labels and metrics come about for a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from resval_lens.analyses.tasks.problem import Example, Problem
    from resval_lens.hooks.prompts import Metric
    from resval_lens.load import Loaded
    from resval_lens.transformer import ResValTransformer


class PromptWarning(UserWarning):
    """Prompts that may not be meant as they are."""


@runtime_checkable
class Prompt(Protocol):
    """A prompt as text, with whatever else its task knows of it."""

    @property
    def text(self) -> str:
        """Up to where the answer comes."""


@dataclass(frozen=True)
class Asked:
    """How a task's prompts are to be drawn; what is None is up to the task.

    Attributes:
        seed: draws prompts, and new names of corrupted prompts.
        corruption: how corrupted prompts differ: one of the task's ``corruptions``.
        general: general prompts (True) or those of the stories (False), of a task that has both;
            None: general ones for a model that was converted from elsewhere.
        prepend: what leads each prompt (:func:`~resval_lens.tasks.leading.leading_token`).
        several_tokens: take answers of several tokens, too, and compare them by the first token
            that differs; those before it are part of the prompt.
        chat: prompts are a user's messages in the tokenizer's chat template, which the model
            replies to; ``prepend`` is the template's.
        tokenizers: of other models that are asked the same: words that are not one token with
            each of them, too, are left out, so that all are given the same texts.
    """

    seed: int | None = None
    corruption: str | None = None
    general: bool | None = None
    prepend: str = "auto"
    several_tokens: bool = False
    chat: bool = False
    tokenizers: tuple[Any, ...] = ()


DRAWN = Asked()
"""As the task itself would have it."""


class Task(ABC):
    """A task that models are measured on.

    Methods import torch when they are called, so that help and completion come at once.

    Attributes:
        name: as it is asked for.
        title: as reports call it.
        reads_tokens: whether its prompts are tokens; else they are vectors.
        corruptions: how corrupted prompts may differ; the first, if nothing else is asked for.
        metrics: what circuits are chosen by, as it is asked for and as :meth:`metric_functions`
            calls it, in the same order.
        positions: names of positions in its prompts.
        has_general: whether it has general prompts besides those of the stories.
        has_chat: whether its prompts can be a user's messages.
    """

    name: str
    title: str
    reads_tokens: bool
    corruptions: tuple[str, ...]
    metrics: Mapping[str, str]
    positions: tuple[str, ...] = ()
    has_general: bool = False
    has_chat: bool = False

    @abstractmethod
    def measures(self, model: ResValTransformer) -> Mapping[str, Metric]:
        """What is measured, by name; the first is its prompts' metric, if no other is asked for."""

    @abstractmethod
    def metric_functions(self, model: ResValTransformer) -> Mapping[str, Metric]:
        """Metrics that circuits are evaluated by, by the names that ``metrics`` calls them."""

    @abstractmethod
    def draw(self, loaded: Loaded, count: int, asked: Asked = DRAWN) -> Problem:
        """The model on ``count`` prompts, on its device.

        Clean prompts are the same with each corruption, but for a text whose corrupted prompt would
        be of another length: it is left out, and another drawn instead. Where prompts differ in
        length, ``groups`` of the pairs say which share their positions: means over prompts are
        taken within them. The pairs' metric is the first of :meth:`measures`.

        Raises:
            ValueError: a model that cannot be asked this; what the task does not have; prompts
                that the tokenizer, the context or a test set do not have room for.
        """

    def tokens(self, problem: Problem) -> list[str]:
        """The first prompt's positions, for people: its tokens."""
        tokenizer: Any = problem.model.tokenizer
        tokens = problem.pairs.clean[0].tolist()
        return [str(x) if tokenizer is None else tokenizer.decode([x]) for x in tokens]

    def example(self, problem: Problem) -> Example | None:
        """The first prompt and its corrupted prompt as text; None if they are no text."""
        from resval_lens.analyses.tasks.problem import Example

        tokenizer: Any = problem.model.tokenizer
        if tokenizer is None:
            return None
        start, end = int(problem.lead is not None), int(problem.pairs.answers[0]) + 1
        both = problem.pairs.clean, problem.pairs.corrupted
        return Example(*(tokenizer.decode(rows[0, start:end].tolist()) for rows in both))

    def corruption(self, loaded: Loaded, asked: Asked) -> str:
        """The corruption that is asked for, or the first.

        Raises:
            ValueError: this task has no such, or no prompts of the kind of ``general`` or ``chat``
                that is asked for.
        """
        if asked.general is not None and not self.has_general:
            option, which = ("--general", "general") if asked.general else ("--stories", "stories'")
            raise ValueError(f"{option}: {loaded.name}, on {self.title}, has no {which} prompts")
        if asked.chat and not self.has_chat:
            raise ValueError(f"--chat: {loaded.name}, on {self.title}, has no chat prompts")
        kind = asked.corruption
        if kind is None:
            return self.corruptions[0]
        if kind not in self.corruptions:
            raise ValueError(
                f"corruption: {loaded.name}, on {self.title}, has {', '.join(self.corruptions)}; "
                f"got {kind!r}"
            )
        return kind
