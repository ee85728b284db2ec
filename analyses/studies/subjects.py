"""A model by name with its task: indirect objects, or classifying in context."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from resval_lens.analyses.studies.circuit_tasks import (
    ICL_METRICS,
    draw_ioi,
    icl_pairs,
    ioi_metrics,
    ioi_pairs,
)
from resval_lens.hooks.prompts import Metric, PromptPairs, logit_difference, margin, probability
from resval_lens.io.checkpoint import SHIPPED_MODELS, read_config
from resval_lens.io.conversion import TRANSFORMER_LENS_NAMES
from resval_lens.models.classifier import ICLClassifier
from resval_lens.streams import shorthand
from resval_lens.tasks.icl import ICLBatch
from resval_lens.tasks.icl_corruptions import Exchanged
from resval_lens.tasks.ioi import IOIPrompt
from resval_lens.tasks.ioi_corruptions import Kind, positions
from resval_lens.tasks.leading import AUTO, NamedToken, leading_token, named_token
from resval_lens.training.icl_run import ICLRun, draw_world
from resval_lens.training.recorded import RecordedRun, load_run, load_runs
from resval_lens.training.run_folder import read_record, trained_model
from resval_lens.transformer import ResValTransformer

INDIRECT_OBJECTS = "indirect objects"
IN_CONTEXT = "classifying in context"
KINDS: dict[str, tuple[str, ...]] = {INDIRECT_OBJECTS: get_args(Kind),
                                     IN_CONTEXT: get_args(Exchanged)}  # fmt: skip
"""The kinds of corrupted prompts of each task."""
DEFAULT_KINDS = {INDIRECT_OBJECTS: "random-S2", IN_CONTEXT: "labels"}


def io_is_likelier(
    logits: Float[Tensor, "prompt d_vocab"], labels: Int[Tensor, "prompt 2"]
) -> Bool[Tensor, " prompt"]:
    """Whether P(IO) > P(S), with labels (IO, S)."""
    return logit_difference(logits, labels) > 0


def is_right(
    logits: Float[Tensor, "prompt label"], labels: Int[Tensor, "prompt some"]
) -> Bool[Tensor, " prompt"]:
    """Whether the first label's logit is the largest of all."""
    return logits.argmax(-1) == labels[:, 0]


MEASURES: dict[str, dict[str, Metric]] = {
    INDIRECT_OBJECTS: {
        "logit difference": logit_difference,
        "P(IO)": probability,
        "accuracy": io_is_likelier,
    },
    IN_CONTEXT: {"margin": margin, "accuracy": is_right},
}
"""What is measured in each task; the first is its prompts' metric, if no other is asked for."""
METRICS: dict[str, dict[str, str]] = {
    INDIRECT_OBJECTS: {
        "logit-difference": "IO − S",
        "log-probability": "log P(IO)",
        "names": "IO − other names",
        "probability": "P(IO)",
    },
    IN_CONTEXT: {
        "margin": "margin",
        "log-probability": "log P(right)",
        "probability": "P(right)",
    },
}
"""Metrics that circuits are chosen by, as they are asked for and as they are called
(:func:`~resval_lens.analyses.studies.circuit_tasks.ioi_metrics`)."""


@dataclass(frozen=True)
class Facts:
    """What every report says of a model on its task (:class:`ModelOnTask`).

    Attributes:
        streams: as :func:`~resval_lens.streams.shorthand` writes them.
        corruption: how corrupted prompts differ.
        prompts: how many.
        metric: its name.
    """

    model: str
    streams: str
    task: str
    corruption: str
    seed: int
    prompts: int
    metric: str
    leading_token: NamedToken | None
    names_left_out: tuple[str, ...]


@dataclass(frozen=True)
class Example:
    """A prompt and its corrupted prompt, as text."""

    clean: str
    corrupted: str


@dataclass(frozen=True)
class ModelOnTask:
    """A model, its task, and prompts beside their corrupted prompts.

    Attributes:
        name: as the model was asked for.
        task: a key of ``MEASURES``.
        kind: of the corrupted prompts.
        seed: that drew the prompts; of a classifier, that of its training run.
        prompts: indirect objects as text; empty for a classifier.
        lead: the token before each prompt, if there is one.
        left_out: names that prompts do without, as the tokenizer has no one token for them.
        asked: the name of the metric that was asked for, if any (:meth:`by`).
    """

    name: str
    model: ResValTransformer
    task: str
    kind: str
    seed: int
    pairs: PromptPairs
    prompts: tuple[IOIPrompt, ...] = ()
    lead: int | None = None
    left_out: tuple[str, ...] = ()
    asked: str = ""

    @property
    def measures(self) -> Mapping[str, Metric]:
        """What is measured, by name."""
        return MEASURES[self.task]

    @property
    def metric(self) -> str:
        """The name of the prompts' metric."""
        return self.asked or next(iter(self.measures))

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Metrics that circuits are chosen and evaluated by, by name."""
        return ioi_metrics(self.model) if self.prompts else ICL_METRICS

    def by(self, metric: str) -> ModelOnTask:
        """The same by another of ``METRICS``.

        Raises:
            ValueError: this task has no such metric.
        """
        names = METRICS[self.task]
        if metric not in names:
            raise ValueError(
                f"metric: {self.task} is measured by {', '.join(names)}; got {metric!r}"
            )
        name = names[metric]
        return replace(self, pairs=replace(self.pairs, metric=self.metrics[name]), asked=name)

    def facts(self) -> Facts:
        """What every report says of it."""
        return Facts(
            self.name,
            shorthand(self.model.cfg.streams),
            self.task,
            self.kind,
            self.seed,
            len(self.pairs),
            self.metric,
            named_token(self.model, self.lead),
            self.left_out,
        )

    def rows(self, which: slice | Int[Tensor, " some"]) -> ModelOnTask:
        """On some of the prompts."""
        chosen = range(len(self.pairs))[which] if isinstance(which, slice) else which.tolist()
        texts = tuple(self.prompts[i] for i in chosen) if self.prompts else ()
        return replace(self, pairs=self.pairs.rows(which), prompts=texts)

    def of_one_length(self) -> ModelOnTask:
        """On the prompts of the commonest length, without padding."""
        last = self.pairs.answers.tolist()
        commonest = Counter(last).most_common(1)[0][0]
        found = self.rows(torch.tensor([i for i, each in enumerate(last) if each == commonest]))
        pairs, end = found.pairs, commonest + 1
        unpadded = replace(
            pairs,
            clean=pairs.clean[:, :end],
            corrupted=pairs.corrupted[:, :end],
            last=None,
            mask=None,
        )
        return replace(found, pairs=unpadded)

    def named_positions(self) -> dict[str, Int[Tensor, " prompt"]]:
        """Where each prompt names its people and ends: IO, S1, S1+1, S2, end; none in a classifier.

        Raises:
            ValueError: a name that is not one token.
        """
        if not self.prompts:
            return {}
        tokenizer: Any = self.model.tokenizer
        return positions(self.prompts, tokenizer, self.lead)

    def tokens(self) -> list[str]:
        """The first prompt's tokens; of a classifier, o (object), l (label) and q (query)."""
        length = self.pairs.length
        if not self.prompts:
            return [*("ol"[i % 2] for i in range(length - 1)), "q"]
        tokenizer: Any = self.model.tokenizer
        return [tokenizer.decode([token]) for token in self.pairs.clean[0].tolist()]

    def example(self) -> Example | None:
        """The first prompt and its corrupted prompt; None for a classifier."""
        if not self.prompts:
            return None
        tokenizer: Any = self.model.tokenizer
        start, end = int(self.lead is not None), int(self.pairs.answers[0]) + 1
        return Example(
            *(
                tokenizer.decode(rows[0, start:end].tolist())
                for rows in (self.pairs.clean, self.pairs.corrupted)
            )
        )


def shipped_classifiers() -> dict[str, RecordedRun[ICLRun]]:
    """The first run of each variant that ships with a trained model, by the variant's name."""
    found: dict[str, RecordedRun[ICLRun]] = {}
    for recorded in load_runs(ICLRun):
        if recorded.has_model:
            found.setdefault(recorded.run.name, recorded)
    return found


def is_classifier_run(folder: Path) -> bool:
    """Whether ``folder`` holds a training run of a two-layer classifier."""
    return (folder / "run.json").is_file() and "task" in read_record(folder)["run"]


def find_model(
    name: str, device: str | None = None
) -> tuple[ResValTransformer, RecordedRun[ICLRun] | None]:
    """A model by name, and the training run of a classifier.

    Args:
        name: of a model that ships: a language model (``SHIPPED_MODELS``) or a classifier
            (:func:`shipped_classifiers`); one that TransformerLens knows, or of the Hugging Face
            hub (user/name); the folder of a saved language model, or of a training run.
        device: where it runs; by default the device it was saved on if there is one here.

    Raises:
        ValueError: none of these (near names are suggested), or a classifier's model without its
            run, which its test sequences are drawn by.
    """
    folder = Path(name)
    if is_classifier_run(folder):
        recorded = load_run(folder, ICLRun)
        return _classifier(recorded, device), recorded
    if (folder / "run.json").is_file():  # of a language model
        folder = trained_model(folder)
    if folder.is_dir() and (folder / "config.json").is_file():
        if _is_classifier(folder):
            if not is_classifier_run(folder.parent):
                raise ValueError(
                    f"{name} is a classifier without its training run, which draws the sequences "
                    "it is tested on; give the run's folder"
                )
            return find_model(str(folder.parent), device)
        return ResValTransformer.from_pretrained(folder, device=device), None
    if name in SHIPPED_MODELS or name in TRANSFORMER_LENS_NAMES or "/" in name:
        return ResValTransformer.from_pretrained(name, device=device), None
    classifiers = shipped_classifiers()
    if name in classifiers:
        return _classifier(classifiers[name], device), classifiers[name]
    if folder.is_dir():
        raise ValueError(f"{name} holds no saved model; expected its config.json")
    known = [*SHIPPED_MODELS, *classifiers]
    near = get_close_matches(name, [*known, *TRANSFORMER_LENS_NAMES], n=1)
    meant = f"; did you mean {near[0]!r}? There are" if near else "; there are"
    raise ValueError(
        f"no model {name!r}{meant} {', '.join(known)}, the names that TransformerLens knows, like "
        "gpt2, or a folder"
    )


def _is_classifier(folder: Path) -> bool:
    try:
        return read_config(folder)[0] == "ICLClassifier"
    except ValueError:  # what it is says whoever loads it
        return False


def _classifier(recorded: RecordedRun, device: str | None) -> ResValTransformer:
    return ICLClassifier.from_pretrained(trained_model(recorded.folder), device=device)


def model_on_task(
    name: str,
    prompts: int,
    seed: int | None = None,
    kind: str | None = None,
    general: bool = False,
    device: str | None = None,
    prepend: str = AUTO,
) -> ModelOnTask:
    """The model of that name (:func:`find_model`) on prompts of its task.

    A language model names indirect objects, in stories whose names, frames and objects never met in
    training text; a classifier answers the IC test set (fresh classes) of its own run.

    Args:
        prompts: how many.
        seed: draws indirect objects, and new names of corrupted prompts; by default 0.
        kind: of corrupted prompts: ``KINDS``.
        general: prompts of :func:`~resval_lens.tasks.ioi.generate_prompts` instead of stories.
        device: where the model runs (:func:`find_model`); the prompts go there, too.
        prepend: what leads each prompt (:func:`~resval_lens.tasks.leading.leading_token`).

    Raises:
        ValueError: an unknown model; a kind, seed or prompts that the task does not have; prompts
            that the tokenizer or the context do not fit.
    """
    _check_count(prompts)
    model, recorded = find_model(name, device)
    task = INDIRECT_OBJECTS if recorded is None else IN_CONTEXT
    kind = DEFAULT_KINDS[task] if kind is None else kind
    if kind not in KINDS[task]:
        raise ValueError(
            f"corruption: {name}, on {task}, has {', '.join(KINDS[task])}; got {kind!r}"
        )
    if recorded is None:
        return on_indirect_objects(name, model, prompts, seed or 0, kind, general, prepend)
    for given, option in (
        (seed is not None, "--seed"),
        (general, "--general"),
        (prepend != AUTO, "--prepend"),
    ):
        if given:
            raise ValueError(
                f"{option} is for indirect objects; {name} is a classifier, whose sequences are "
                "the test set of its training run"
            )
    world, tests = draw_world(recorded.run)
    batch = tests["ic"]
    if prompts > len(batch.targets):
        raise ValueError(
            f"the test set of {name} has {len(batch.targets):,} sequences; {prompts:,} are needed"
        )
    first = ICLBatch(*(x[:prompts].clone() for x in batch))  # lets go of the others
    pairs = icl_pairs(world, first, kind)  # type: ignore[arg-type]
    pairs = pairs.to(model.cfg.device)
    return ModelOnTask(name, model, task, kind, recorded.run.seed, pairs)


def on_two_sets(name: str, prompts: int, *asked: Any) -> tuple[ModelOnTask, ModelOnTask]:
    """:func:`model_on_task` on ``prompts`` prompts, and on as many others."""
    _check_count(prompts)
    both = model_on_task(name, 2 * prompts, *asked)
    return both.rows(slice(0, prompts)), both.rows(slice(prompts, None))


def _check_count(prompts: int) -> None:
    if prompts < 1:
        raise ValueError(f"prompts must be 1 or more; got {prompts}")


def on_indirect_objects(
    name: str,
    model: ResValTransformer,
    count: int,
    seed: int,
    kind: str,
    general: bool = False,
    prepend: str = AUTO,
) -> ModelOnTask:
    """A language model on ``count`` prompts, unseen ones of the stories, or ``general`` ones.

    Raises:
        ValueError: no tokenizer; prompts that it or the context cannot hold.
    """
    if model.tokenizer is None:
        raise ValueError(f"{name}: this model has no tokenizer to put a prompt into its tokens")
    lead = leading_token(model, prepend)
    try:
        drawn, left_out = draw_ioi(model.tokenizer, count, seed, "general" if general else "unseen")
        pairs = ioi_pairs(model, drawn, kind, seed, prepend=prepend)  # type: ignore[arg-type]
    except ValueError as error:
        which = "general prompts" if general else "stories' prompts"
        hint = "" if general else "; --general has others"
        raise ValueError(f"{name} on {which}: {error}{hint}") from None
    if pairs.length > model.cfg.n_ctx:
        raise ValueError(
            f"{name} has a context of {model.cfg.n_ctx} tokens; these prompts need {pairs.length}"
        )
    pairs = pairs.to(model.cfg.device)
    return ModelOnTask(
        name, model, INDIRECT_OBJECTS, kind, seed, pairs, tuple(drawn), lead, tuple(left_out)
    )
