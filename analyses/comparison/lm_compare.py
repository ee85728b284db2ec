"""Classic beside residual-value language models on indirect objects: patched, ablated, looked at.

Measured live on the models given, on unseen names, frames and objects of the generated stories, or
on general prompts where they were trained on other text;
the corrupted prompts have another subject.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.table import Table

from resval_lens.analyses.comparison.circuit_compare import ComparedModel, check_counts
from resval_lens.analyses.comparison.ioi_cells import FourCells, cells_table, four_cells
from resval_lens.analyses.comparison.lm_emergence import LMEmergence, lm_emergence
from resval_lens.analyses.results.result import FLAT, Result
from resval_lens.analyses.studies.ablation import AblationStudy, ablation_study
from resval_lens.analyses.studies.ioi import IOIScores, ioi_scores
from resval_lens.analyses.studies.patching import Patching
from resval_lens.analyses.studies.story_loss import story_rows
from resval_lens.analyses.tasks import TASKS, Asked
from resval_lens.analyses.tasks.problem import Facts, Problem
from resval_lens.hooks.answers import right_padding
from resval_lens.hooks.patching import patch
from resval_lens.load import Loaded
from resval_lens.notes import Note
from resval_lens.runtime import evaluating
from resval_lens.tasks.ioi import IOIBatch, encode
from resval_lens.tasks.leading import leading_token
from resval_lens.training.lm_run import LMRun
from resval_lens.training.recorded import RecordedRun

SCALES = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
GRAFTED = " + link"
CORRUPTION = "random-S2"
PATCHED = {"resid_pre": ("layer", "position"), "z": ("layer", "head")}
"""Sites, and what one cell of their heat maps has one of; of links, a layer and a position."""


@dataclass(frozen=True)
class ModelScores:
    """A model on indirect objects."""

    architecture: str
    seed: int | None
    scores: IOIScores = field(metadata=FLAT)


@dataclass(frozen=True)
class ModelAblation(Result):
    """A model's :class:`~resval_lens.analyses.studies.ablation.AblationStudy`, with scalings."""

    facts: Facts = field(metadata=FLAT)
    study: AblationStudy = field(metadata=FLAT)


@dataclass(frozen=True)
class PairOfModels(Result):
    """The four cells of a classic model and one with streams, by name."""

    classic: str
    stream: str
    architecture: str
    seed: int | None
    found: FourCells = field(metadata=FLAT)


@dataclass(frozen=True)
class Patterns:
    """Attention of each head (layer.head) on one prompt, [head][query][key]."""

    heads: list[str]
    patterns: list[list[list[float]]]


@dataclass(frozen=True)
class AttentionOnPrompt:
    """Patterns by model on a prompt of these ``tokens``; None without models."""

    tokens: list[str] | None
    models: Mapping[str, Patterns]


@dataclass(frozen=True)
class ComparedLanguageModels(Result):
    """Language models on indirect objects.

    Attributes:
        prompts, seed, corruption: how many in each set, what drew them, what differs in the
        corrupted. scores: of each model.
        patched: of the first model of each architecture, every cell of ``PATCHED`` and its links.
        attention: of these models.
        links: of each model with streams, and of the first classic one with the first one's
            streams grafted on.
        four_cells: of each classic model and each with streams of its seed and size.
    """

    prompts: int
    seed: int
    corruption: str
    scores: Mapping[str, ModelScores]
    patched: list[Patching]
    attention: AttentionOnPrompt
    links: Mapping[str, ModelAblation]
    four_cells: list[PairOfModels]

    def to_dict(self) -> dict[str, Any]:
        """The fields, and what was ``found``."""
        return {**super().to_dict(), "found": self.sentences()}

    def sentences(self) -> list[str]:
        """What cutting links does, of every model with links of its own or grafted on."""
        return [said for name, each in self.links.items() for said in _links_cut(name, each.study)]

    def cells(self) -> dict[str, list[FourCells]]:
        """The four cells by architecture with streams."""
        found: dict[str, list[FourCells]] = {}
        for pair in self.four_cells:
            found.setdefault(pair.architecture, []).append(pair.found)
        return found

    def cells_table(self, kind: str) -> Table:
        """The four cells of one architecture."""
        return cells_table(self.cells()[kind], f"Language models, classic and {kind}")

    def tables(self) -> list[Table]:
        """The four cells of each."""
        return [self.cells_table(kind) for kind in self.cells()]


def _links_cut(name: str, study: AblationStudy) -> Iterator[str]:
    """The metric as it is and with links cut, whole layers' and all; the loss on stories."""
    metric, losses = study.metric, study.story_loss
    yield f"{name}: {metric} is {study.clean[metric]:.2f}."
    for (links, edit), value in study.cells(metric).items():
        if edit == "zero" and "." not in links:
            cut = f"with {_called(links)} cut"
            yield f"{name}: {metric} is {value:.2f} {cut}."
            if losses:
                yield f"{name}: loss on stories is {losses.cut[links]:.2f} nats {cut}."
    if losses:
        yield f"{name}: loss on stories is {losses.clean:.2f} nats with every link whole."
        for layer, loss in losses.own_cut.items():
            yield f"{name}: loss on stories is {loss:.2f} nats with {layer}'s own values cut."


def _called(links: str) -> str:
    return "all links" if links == "all" else f"the links {links} (into layer {links[1:]})"


def compare_language_models(
    models: Sequence[ComparedModel],
    prompts: int = 64,
    seed: int = 0,
    note: Note = lambda text: None,
) -> ComparedLanguageModels:
    """What ``resval-lens compare`` says of language models beside their circuits.

    Args:
        models: classic ones and ones with streams.
        prompts: in each set; links are mean-ablated by as many others.
        seed: draws prompts and corrupted prompts.
        note: called with what is being done.

    Raises:
        ValueError: prompts below 1.
    """
    check_counts(prompts=prompts)
    first = {each.architecture: each for each in reversed(models)}
    chosen = [each for each in models if first[each.architecture] is each]
    scores = {}
    for each in models:
        note(f"{each.name}: indirect objects")
        found = ioi_scores(each.model, _encoded(each, prompts, seed))
        scores[each.name] = ModelScores(each.architecture, each.seed, found)
    patched = [
        _patched(_problem(each, prompts, seed), site, note)
        for each in chosen
        for site in [*PATCHED, *(f"{stream.of}_link" for stream in each.model.cfg.streams)]
    ]
    attention = _attention(chosen, seed)
    links = {each.name: _link_study(each, prompts, seed, note) for each in _with_links(models)}
    pairs = []
    for classic in models:
        for other in models:
            if classic.model.cfg.streams or not other.model.cfg.streams:
                continue
            if classic.seed == other.seed and _size(classic) == _size(other):
                note(f"four cells: {classic.name} and {other.name}")
                cells = four_cells(classic.model, other.model, _encoded(classic, prompts, seed))
                names = classic.name, other.name, other.architecture
                pairs.append(PairOfModels(*names, classic.seed, cells))
    return ComparedLanguageModels(
        prompts, seed, CORRUPTION, scores, patched, attention, links, pairs
    )


def _encoded(each: ComparedModel, prompts: int, seed: int) -> IOIBatch:
    return encode(each.prompts(prompts, seed), each.model.tokenizer, leading_token(each.model))


@dataclass(frozen=True)
class NotCompared:
    """Why runs are not compared."""

    reason: str


def emergence(runs: Sequence[RecordedRun[LMRun]]) -> LMEmergence | NotCompared:
    """:func:`~resval_lens.analyses.comparison.lm_emergence.lm_emergence`, or why there is none."""
    try:
        return lm_emergence(runs)
    except ValueError as error:
        return NotCompared(str(error))


def _with_links(models: Sequence[ComparedModel]) -> list[ComparedModel]:
    """Those with streams, and the first classic model with the first of these streams grafted."""
    streams = [each for each in models if each.model.cfg.streams]
    classic = next((each for each in models if not each.model.cfg.streams), None)
    if classic is None or not streams or _size(classic) != _size(streams[0]):
        return streams
    grafted = classic.model.with_streams(streams[0].model.cfg.streams, share_weights=True)
    return [*streams, replace(classic, name=classic.name + GRAFTED, model=grafted)]


def _size(each: ComparedModel) -> tuple[Any, ...]:
    cfg = each.model.cfg
    return cfg.n_layers, cfg.n_heads, cfg.n_key_value_heads, cfg.d_model, cfg.d_head, cfg.d_mlp


def _problem(each: ComparedModel, prompts: int, seed: int) -> Problem:
    return TASKS["ioi"].draw(
        Loaded(each.name, each.model), prompts, Asked(seed, CORRUPTION, each.general)
    )


def _patched(chosen: Problem, site: str, note: Note) -> Patching:
    note(f"{chosen.name}: patching {site}")
    by = PATCHED.get(site, ("layer", "position"))
    where = chosen.named_positions if "position" in by else None
    result = patch(chosen.model, chosen.pairs, site, positions=where, by=by)
    return Patching.of(chosen, result)


def _link_study(each: ComparedModel, prompts: int, seed: int, note: Note) -> ModelAblation:
    both = _problem(each, 2 * prompts, seed)
    chosen, others = both.rows(slice(0, prompts)), both.rows(slice(prompts, None))
    study = ablation_study(
        chosen.model,
        chosen.pairs,
        others.pairs,
        chosen.measures,
        scales=SCALES,
        text=None if each.general else story_rows(chosen.model),
        note=lambda text: note(f"{each.name}: {text}"),
    )
    return ModelAblation(chosen.facts(), study)


@torch.no_grad()
def _attention(models: Sequence[ComparedModel], seed: int) -> AttentionOnPrompt:
    """Every head's pattern on the first prompt."""
    tokens, shown = None, {}
    for each in models:
        chosen = _problem(each, 1, seed)
        end = int(chosen.pairs.answers[0]) + 1
        layers = range(each.model.cfg.n_layers)
        names = [f"blocks.{layer}.attn.hook_pattern" for layer in layers]
        with evaluating(each.model):
            _, cache = each.model.run_with_cache(
                chosen.pairs.clean, names_filter=names, **right_padding(each.model)
            )
        patterns = torch.cat([cache[name][0, :, :end, :end] for name in names])
        tokens = chosen.tokens()[:end]
        heads = [f"{layer}.{head}" for layer in layers for head in range(each.model.cfg.n_heads)]
        rounded = [[[round(x, 4) for x in row] for row in head] for head in patterns.tolist()]
        shown[each.name] = Patterns(heads, rounded)
    return AttentionOnPrompt(tokens, shown)
