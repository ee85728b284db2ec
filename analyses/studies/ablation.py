"""What each edit of the links does to a task: all links, each layer's, each alone.

An edit is one of :data:`~resval_lens.analyses.studies.ablations.ABLATIONS`, or ``scale c``: the
link carries c times what it would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from rich.table import Table
from torch import Tensor
from transformer_lens.utilities import LocallyOverridenDefaults

from resval_lens.analyses.results.result import FLAT, Result
from resval_lens.analyses.results.tables import WIDE
from resval_lens.analyses.studies.ablations import ABLATIONS
from resval_lens.analyses.studies.story_loss import StoryLoss, story_loss
from resval_lens.analyses.tasks.problem import Example, Facts, undone
from resval_lens.hooks import Link, link_groups, links, scale
from resval_lens.hooks.ablate import Edit
from resval_lens.hooks.answers import answer_logits
from resval_lens.hooks.groups import Groups, alike
from resval_lens.hooks.link_runs import LinkRuns
from resval_lens.hooks.links import Numbers
from resval_lens.hooks.prompts import MAX_TOKENS, Metric, PromptPairs, ready
from resval_lens.notes import Note
from resval_lens.runtime import evaluating
from resval_lens.transformer import ResValTransformer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class AblationRow:
    """Mean measures with one group of links (:func:`groups`) edited; how many links it has."""

    links: str
    n_links: int
    edit: str
    measures: Mapping[str, float]


@dataclass(frozen=True)
class AblationStudy(Result):
    """What each edit of the links does to a task.

    Attributes:
        prompts, others: how many.
        mean_prompts: how many prompts have others of their group: means are of these alone.
        measures: their names, the metric first.
        edits: what an edited link does.
        scales: factors c of further edits.
        links: how many are edited.
        story_loss: on stories, with each group of links cut.
        clean, corrupted: measures of the unedited runs.
        rows: of each group of links and edit.
    """

    prompts: int
    others: int
    mean_prompts: int
    measures: list[str]
    edits: Mapping[str, str]
    scales: list[float]
    links: int
    story_loss: StoryLoss | None
    clean: Mapping[str, float]
    corrupted: Mapping[str, float]
    rows: list[AblationRow]

    @property
    def metric(self) -> str:
        """The first measure."""
        return self.measures[0]

    @property
    def names(self) -> list[str]:
        """Groups of links."""
        return list(dict.fromkeys(row.links for row in self.rows))

    @property
    def edited(self) -> list[str]:
        """Edits, and scalings."""
        return list(dict.fromkeys(row.edit for row in self.rows))

    def cells(self, measure: str) -> dict[tuple[str, str], float]:
        """A measure by group of links and edit."""
        return {(row.links, row.edit): row.measures[measure] for row in self.rows}

    def tables(self) -> list[Table]:
        """Each measure by links and edit, and the loss on stories."""
        return [self._table(), *(self.story_loss.tables() if self.story_loss else [])]

    def _table(self, most: int = 32) -> Table:
        """The metric has every group's row, the other measures all links' and whole layers'."""
        unedited = ", ".join(
            f"{name} {self.clean[name]:z.3f} ({self.corrupted[name]:z.3f})"
            for name in self.measures
        )
        table = Table(
            title=f"{self.prompts} prompts, links edited; unedited (and corrupted):\n{unedited}",
            **WIDE,
        )
        table.add_column("links", no_wrap=True)
        for edit in self.edited:
            table.add_column(edit, justify="right")
        names, clean, of = self.names, self.clean[self.metric], self.cells(self.metric)
        ranked = sorted(names, key=lambda n: -max(abs(of[n, e] - clean) for e in self.edited))
        shown = set(ranked[:most])
        for number, measure in enumerate(self.measures):
            if number:
                table.add_section()
            table.add_row(f"[bold]{measure}[/bold]")
            cells = self.cells(measure)
            for name in names:
                if name in shown and (not number or ".h" not in name or len(names) == 1):
                    table.add_row(f"  {name}", *(f"{cells[name, e]:z.3f}" for e in self.edited))
        lines = [f"{name}: a link {meaning}" for name, meaning in self.edits.items()]
        if len(names) > 1 and any("." in name for name in names):
            lines.append("every link alone, in every measure: in the JSON")
        table.caption = ";\n".join(lines)
        return table


@dataclass(frozen=True)
class Ablation(Result):
    """An :class:`AblationStudy` with the facts of its model and prompts."""

    facts: Facts = field(metadata=FLAT)
    general: bool
    study: AblationStudy = field(metadata=FLAT)
    example: Example | None

    def tables(self) -> list[Table]:
        """The study's, the first under what the prompts are."""
        first, *rest = self.study.tables()
        first.title = f"{self.facts.task_and_corruption};\n{first.title}"
        return [first, *rest]

    def sentences(self) -> list[str]:
        """What the first edit of all links does to the metric, and of which link it does most."""
        study, metric = self.study, self.facts.metric
        group, edit = study.names[0], study.edited[0]
        cells, clean = study.cells(study.metric), study.clean[study.metric]
        which = f"{group} links" if group in ("all", "chosen") else group
        said = undone(metric, clean, study.corrupted[study.metric])
        said.append(
            f"{metric[:1].upper()}{metric[1:]} is {clean:z.3f}, and {cells[group, edit]:z.3f} with "
            f"{which} edited ({edit})."
        )
        single = [name for name in study.names if ".h" in name]
        if len(single) > 1:
            most = max(single, key=lambda name: abs(cells[name, edit] - clean))
            said.append(
                f"Of the {len(single)} links edited alone, {most} changes it most: to "
                f"{cells[most, edit]:z.3f}."
            )
        return said

    def figures(self) -> dict[str, Figure]:
        """The metric with each group of links edited."""
        from resval_lens.analyses.studies.intervention_figures import ablated

        return {"ablate.png": ablated(self.study, self.facts.model, self.facts.task_and_corruption)}


@torch.no_grad()
def ablation_study(
    model: ResValTransformer,
    pairs: PromptPairs,
    others: PromptPairs,
    measures: Mapping[str, Metric],
    *,
    edits: Sequence[str] | None = None,
    scales: Sequence[float] = (),
    of: str | None = None,
    layers: Numbers | None = None,
    heads: Numbers | None = None,
    alone: bool = True,
    max_tokens: int = MAX_TOKENS,
    text: Int[Tensor, "row pos"] | None = None,
    note: Note = lambda text: None,
) -> AblationStudy:
    """Mean measures on the clean prompts with links edited.

    Args:
        others: prompts whose clean runs give the means: a prompt's mean is over those of its group
            (``PromptPairs.groups``; prompts that have none are all one, if all are of one length).
        measures: of the answers' logits and the prompts' labels, by name.
        edits: some of ``ABLATIONS``; all of them by default.
        scales: factors c of further edits.
        of, layers, heads: the links: see :func:`~resval_lens.hooks.links.links`.
        alone: edit each link alone, too, besides all and each layer's.
        max_tokens: rows × positions of one model call, one prompt at least.
        text: rows of stories, on which the loss with each group of links cut stands beside.
        note: called with what is being done.

    Raises:
        ValueError: a model without links, links that are not there, no edit or an unknown one,
            a factor that is not finite, or (for what takes from others) no prompt that has others
            of its group.
    """
    edits = tuple(ABLATIONS) if edits is None else edits
    for name in edits:
        if name not in ABLATIONS:
            raise ValueError(f"edits must be among {', '.join(ABLATIONS)}; got {name!r}")
    if not edits and not scales:
        raise ValueError(f"there is no edit; name one of {', '.join(ABLATIONS)} or a scale")
    chosen = links(model, of, layers, heads)
    pairs = ready(model, pairs)
    named = groups(model, chosen, alone)
    of_others = [name for name in edits if ABLATIONS[name].of_others]
    own = [name for name in edits if not ABLATIONS[name].of_others]
    scaled = {f"scale {c:g}": scale(c) for c in scales}
    if "zero" in edits:
        scaled.pop("scale 0", None)
    measured: dict[tuple[str, str], list[dict[str, Tensor]]] = {}

    def measure(edit: str, change: Edit, runs: LinkRuns) -> None:
        for name, group in named.items():
            logits = runs.clean if edit == "scale 1" else runs.edited(change, group)
            measured.setdefault((name, edit), []).append(_measured(logits, runs.pairs, measures))

    mean_prompts = 0
    # Every token counts, even where a tokenizer pads on the left.
    with evaluating(model), LocallyOverridenDefaults(model, padding_side="right"):
        for some in pairs.within(max_tokens):
            runs = LinkRuns(model, some)
            part = runs.pairs  # as wide as their longest
            clean = _measured(runs.clean, part, measures)
            corrupted = answer_logits(model, part.corrupted, part.answers)
            measured.setdefault(("no links", "clean"), []).append(clean)
            measured.setdefault(("no links", "corrupted"), []).append(
                _measured(corrupted, part, measures)
            )
            made = {name: ABLATIONS[name].edit(model, chosen, part, max_tokens) for name in own}
            for edit, change in {**made, **scaled}.items():
                note(f"links: {edit}")
                measure(edit, change, runs)
        if of_others:
            for group, same in _by_group(pairs, ready(model, others), of_others):
                mean_prompts += len(group)
                for edit in of_others:
                    note(f"links: {edit}")
                    change = ABLATIONS[edit].edit(model, chosen, same, max_tokens)
                    for part in group.within(max_tokens):
                        measure(edit, change, LinkRuns(model, part))
    if "zero" in edits:
        measured |= {(name, "scale 0"): measured[name, "zero"] for name in named}
    losses = None
    if text is not None:
        note("loss on stories, links cut")
        losses = story_loss(model, text, named)
    means = {
        key: {name: torch.cat([x[name] for x in parts]).mean().item() for name in measures}
        for key, parts in measured.items()
    }
    return AblationStudy(
        prompts=len(pairs),
        others=len(others),
        mean_prompts=mean_prompts,
        measures=list(measures),
        edits={name: ABLATIONS[name].meaning for name in edits},
        scales=list(scales),
        links=len(chosen),
        story_loss=losses,
        clean=means["no links", "clean"],
        corrupted=means["no links", "corrupted"],
        rows=[
            AblationRow(name, len(group), edit, means[name, edit])
            for name, group in named.items()
            for edit in (*edits, *(f"scale {c:g}" for c in scales))
        ],
    )


def _by_group(
    pairs: PromptPairs, others: PromptPairs, edits: Sequence[str]
) -> list[tuple[PromptPairs, PromptPairs]]:
    """Prompts of a group beside the others of that group, cut to their length."""
    known: Groups | None = "all" if pairs.groups is None and others.groups is None else None
    of_pairs, of_others = alike(pairs, known), alike(others, known)
    grouped = []
    for group in of_pairs[torch.isin(of_pairs, of_others)].unique():
        own, same = (
            each.rows((numbers == group).nonzero()[:, 0].to(each.clean.device))
            for each, numbers in ((pairs, of_pairs), (others, of_others))
        )
        end, other_end = int(own.answers[0]) + 1, int(same.answers[0]) + 1
        if end != other_end:
            raise ValueError(
                f"others: prompts of one group have {other_end} tokens up to the answer there, and "
                f"{end} here: a position does not mean the same in them"
            )
        grouped.append((_cut(own, end), _cut(same, end)))
    if not grouped:
        raise ValueError(
            f"{edits[0]}: none of the {len(others)} other prompts is of a group of these "
            f"{len(pairs)}; take more prompts, or leave out the edit {edits[0]!r}"
        )
    return grouped


def _cut(pairs: PromptPairs, end: int) -> PromptPairs:
    clean, corrupted = pairs.clean[:, :end], pairs.corrupted[:, :end]
    mask = None if pairs.mask is None else pairs.mask[:, :end]
    return replace(pairs, clean=clean, corrupted=corrupted, mask=mask)


def groups(
    model: ResValTransformer, chosen: Sequence[Link], alone: bool = True
) -> dict[str, list[Link]]:
    """Links by name: ``all`` (or ``chosen``, if it is not all), whole layers' (``v1``), each
    ``alone``.

    Groups of the same links are one, by its last name.
    """
    every = link_groups(model)
    whole = "all" if set(chosen) == set(every["all"]) else "chosen"
    named = {whole: list(chosen)}
    named |= {
        name: group
        for name, group in every.items()
        if name != "all" and set(group) <= set(chosen) and (alone or "." not in name)
    }
    by_links = {frozenset(group): name for name, group in named.items()}
    return {name: named[name] for name in by_links.values()}


def _measured(
    logits: Tensor, part: PromptPairs, measures: Mapping[str, Metric]
) -> dict[str, Tensor]:
    return {
        name: replace(part, metric=measure).measure(logits)[0].cpu().double()
        for name, measure in measures.items()
    }
