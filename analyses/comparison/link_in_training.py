"""When in training a model depends on its links: each snapshot, with them, without, and controlled.

Where a cut costs accuracy, so may any edit as large; the controls of
:mod:`~resval_lens.analyses.comparison.link_controls` stand beside it. A run without links has only
its own values to edit: it is what the others stand beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from resval_lens.analyses.comparison.icl import edited_logits
from resval_lens.analyses.comparison.link_controls import first_of, has_links, link_controls
from resval_lens.analyses.comparison.link_moments import Moment, moment, moments_of
from resval_lens.analyses.comparison.link_recovery import own_alone, recovery
from resval_lens.analyses.results.result import Result, restored
from resval_lens.analyses.results.tables import table
from resval_lens.notes import Note
from resval_lens.tasks.icl import MEANING, TASKS
from resval_lens.training.icl import score
from resval_lens.training.icl_run import (
    ICLRun,
    draw_world,
    initial_model,
    kept_models,
    model_config,
)
from resval_lens.training.recorded import RecordedRun
from resval_lens.training.run_folder import snapshot_paths

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table


@dataclass(frozen=True)
class LinkSnapshot:
    """Accuracies on each task at one snapshot: as trained, every link cut, under each control."""

    step: int
    trained: Mapping[str, float]
    cut: Mapping[str, float]
    controls: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class LinkInTraining(Result):
    """Accuracies at each kept snapshot of a run.

    Attributes:
        starts: the provenance of each start of the run.
        sequences: of each test set; ``control_sequences`` of these under controls
            (:func:`~resval_lens.analyses.comparison.link_controls.link_controls`).
        moments: more of what the link does, at chosen snapshots; empty in older documents.
    """

    run: ICLRun
    starts: Sequence[Mapping[str, Any]]
    sequences: int
    control_sequences: int
    snapshots: tuple[LinkSnapshot, ...]
    moments: tuple[Moment, ...] = ()

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> LinkInTraining:
        """What :meth:`to_dict` wrote, with controls or without; other entries are passed over."""
        return cls(
            ICLRun.from_dict(document["run"]),
            document["starts"],
            document["sequences"],
            document.get("control_sequences", 0),
            tuple(LinkSnapshot(**each) for each in document["snapshots"]),
            restored(tuple[Moment, ...], document.get("moments", [])),
        )

    def to_dict(self) -> dict[str, Any]:
        """The run's streams as it writes them itself."""
        return super().to_dict() | {"run": self.run.to_dict()}

    def tables(self) -> tuple[Table, ...]:
        """As trained → with the links cut; IC under each control; each moment's."""
        shown, names = self._shown(), self.snapshots[0].controls
        return (
            table(
                f"{self.run.name}, seed {self.run.seed}: as trained → links cut",
                (),
                ("step", *TASKS.values()),
                (
                    [str(each.step)]
                    + [f"{each.trained[task]:.3f} → {each.cut[task]:.3f}" for task in TASKS]
                    for each in shown
                ),
            ),
            table(
                f"IC, beside other edits (first {self.control_sequences:,})",
                (),
                ("step", *names),
                (
                    [str(each.step), *(f"{each.controls[name]['ic']:.3f}" for name in names)]
                    for each in shown
                ),
            ),
            *(each for moment in self.moments for each in moment.tables()),
        )

    def _shown(self, most: int = 16) -> Sequence[LinkSnapshot]:
        """At most so many snapshots, evenly, with the last."""
        every = -(-len(self.snapshots) // most)
        return self.snapshots[(len(self.snapshots) - 1) % every :: every]

    def figures(self) -> dict[str, Figure]:
        """Accuracy in training as trained (solid) and with the links cut (dashed)."""
        from resval_lens.analyses.drawing.figures import STYLE, colour, plt
        from resval_lens.analyses.drawing.marks import points
        from resval_lens.numbers import number

        with plt.rc_context(STYLE):
            figure, row = plt.subplots(
                1, len(TASKS), figsize=(3.1 * len(TASKS), 3.2), sharey=True, layout="constrained"
            )
            shade = colour(self.run.name)
            steps = [each.step for each in self.snapshots]
            for axes, task in zip(row, TASKS, strict=True):
                trained = [each.trained[task] for each in self.snapshots]
                cut = [each.cut[task] for each in self.snapshots]
                axes.plot(steps, trained, color=shade, lw=2, label="as trained")
                axes.plot(steps, cut, color=shade, lw=2, ls="--", label="links cut")
                for y, how in ((trained, "as trained"), (cut, "links cut")):
                    texts = [
                        f"step {at:,}, {how}: {TASKS[task]} {number(value)}"
                        for at, value in zip(steps, y, strict=True)
                    ]
                    points(axes, steps, y, texts, shade)
                axes.fill_between(steps, trained, cut, color=shade, alpha=0.12, lw=0)
                axes.set(title=f"{TASKS[task]}: {MEANING[task]}", xlabel="step", ylim=(0, 1.02))
                axes.margins(x=0)
            row[0].set_ylabel("accuracy")
            row[0].legend(loc="lower right")
        return {"link-in-training.png": figure}


def link_in_training(
    recorded: RecordedRun[ICLRun],
    sequences: int = 2_000,
    control_sequences: int = 500,
    moment_sequences: int = 3_000,
    recover: int = 200,
    every: int = 1,
    note: Note = lambda text: None,
) -> LinkInTraining:
    """Accuracy on each task at each kept snapshot, as trained, with every link cut, controlled.

    Args:
        recorded: a run whose snapshots were kept (``--keep-snapshots``).
        sequences: of each test set.
        control_sequences: of these, for the controls.
        moment_sequences: of each test set, at chosen snapshots.
        recover: steps that each of these trains on, with and without its links; 0: none.
        every: measure every n-th snapshot, counted from the last; chosen ones in any case.
        note: called with what is being done.

    Raises:
        ValueError: fewer than two snapshots, ``sequences`` below 1, others below 2, ``recover``
            below 0, or with gated streams above 0, ``every`` below 1.
    """
    run = recorded.run
    for name, number, least in (
        ("sequences", sequences, 1), ("control_sequences", control_sequences, 2),
        ("moment_sequences", moment_sequences, 2), ("recover", recover, 0),
        ("every", every, 1),
    ):  # fmt: skip
        if number < least:
            raise ValueError(f"{name} must be {least} or more; got {number}")
    if recover:
        own_alone(initial_model(run), 1.0)  # refuses what cannot go on, before minutes of work
    paths = {int(path.stem): path for path in snapshot_paths(recorded.folder)}
    if len(paths) < 2:
        raise ValueError(
            f"{recorded.folder} holds {len(paths)} snapshots; train it with --keep-snapshots"
        )
    chosen = moments_of(recorded, list(paths))
    world, whole = draw_world(run)
    tests, some = first_of(whole, sequences), first_of(whole, control_sequences)
    more = first_of(whole, moment_sequences)
    measured = {*list(paths)[::-1][::every], *chosen.values()}
    factors = torch.tensor([1.0, 0.0] if has_links(model_config(run)) else [1.0])
    snapshots, moments = [], []
    for step, model in kept_models(run, recorded.folder):
        if step not in measured:
            continue
        note(f"{run.folder_name}: step {step}")
        trained: dict[str, float] = {}
        cut: dict[str, float] = {}
        for task, batch in tests.items():
            found = [
                score(logits, batch.targets)["accuracy"]
                for logits in edited_logits(model, batch.inputs, factors)
            ]
            trained[task], cut[task] = found[0], found[-1]
        controls = link_controls(model, some, run.seed)
        snapshots.append(LinkSnapshot(step, trained, cut, controls))
        for name in (name for name, at in chosen.items() if at == step):
            note(f"{run.folder_name}: {name}, step {step}")
            at_moment = moment(name, step, model, more, run.seed)
            if recover:
                after = recovery(run, paths[step], recover, world, more)
                at_moment = replace(at_moment, recovery=after)
            moments.append(at_moment)
    return LinkInTraining(
        run,
        recorded.starts,
        len(tests["test"].targets),
        len(some["test"].targets),
        tuple(snapshots),
        tuple(moments),
    )
