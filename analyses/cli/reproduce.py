"""``resval-lens reproduce``: every result of the registry, from records or trained now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resval_lens.analyses.cli.amicl import check_trials
from resval_lens.analyses.cli.completion import one_of
from resval_lens.analyses.cli.icl import train_icl_runs
from resval_lens.analyses.cli.options import (
    Json,
    MaybeSeed,
    MaybeTrials,
    Out,
    Quiet,
    notes,
    only_for,
    only_with_train,
    writable,
)
from resval_lens.analyses.cli.reporting import report
from resval_lens.analyses.cli.reproducible import REPRODUCIBLE, Asked, Reproducible
from resval_lens.analyses.cli.runs import Corpus, QueueModel
from resval_lens.analyses.cli.training_options import (
    MaybeJobs,
    MaybeSeeds,
    MaybeSteps,
    Runs,
    Train,
)
from resval_lens.numbers import numbers

if TYPE_CHECKING:
    from resval_lens.analyses.experiments.experiment import Experiment, PlannedRun

MEASURED = ", ".join(name for name, each in REPRODUCIBLE.items() if not each.experiments)


def reproduce_command(
    what: Annotated[
        str,
        typer.Argument(
            help="; ".join(f"{name}: {each.about}" for name, each in REPRODUCIBLE.items()) + ".",
            autocompletion=one_of(*REPRODUCIBLE),
        ),
    ],
    runs: Runs = None,
    train: Train = False,
    seeds: MaybeSeeds = None,
    steps: MaybeSteps = None,
    jobs: MaybeJobs = None,
    corpus: Corpus = None,
    model: QueueModel = None,
    trials: MaybeTrials = None,
    seed: MaybeSeed = None,
    to: Out = Path("out"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print the tables and draw the figures of a result, beside the papers' where they have it.

    It reads the shipped records, in seconds, or the records in --runs. --train trains the
    experiments that the result needs (from experiments.toml, with its seeds and steps unless you
    give others) into --runs, by default runs/reproduce, and resumes there when stopped. A
    classifier takes 8 minutes of a core, a language model 14. The figures of AMICL need no
    training: they are measured now, on the CPU, in two readings, the paper's text and the authors'
    notebook. Figure 7 has 104 values of a, each with its own --trials. --trials and --seed are for
    AMICL; the options of runs are for all other results.

    Example: `resval-lens reproduce gain-or-stream`
    """
    from resval_lens.runtime import one_thread

    if what not in REPRODUCIBLE:
        raise ValueError(f"{what!r} is not among {', '.join(REPRODUCIBLE)}")
    result = REPRODUCIBLE[what]
    folders: Sequence[Path] = ()
    wanted = None if seeds is None else numbers(seeds)
    if result.experiments:
        only_for(MEASURED, trials=trials, seed=seed)
        if not train:
            only_with_train(steps=steps, jobs=jobs, corpus=corpus, model=model)
    else:
        only_for(
            "what is trained", runs=runs, train=train, seeds=seeds, steps=steps, jobs=jobs,
            corpus=corpus, model=model,
        )  # fmt: skip
        check_trials(1_000 if trials is None else trials, seed or 0)
    writable(to)
    if train:
        folders = train_all(
            result, what, runs, wanted, steps, jobs, {"corpus": corpus, "model": model}, quiet
        )
    elif result.experiments:
        folders = recorded(result, what, runs)
    with notes(quiet) as note, one_thread():
        asked = Asked(folders, wanted, 1_000 if trials is None else trials, seed or 0, note)
        found = result.study(asked)
    report(found, to, what, as_json=as_json)


def recorded(result: Reproducible, what: str, runs: Path | None) -> list[Path]:
    """The folders that hold the records of a result.

    Raises:
        ValueError: there are none of its first experiment.
    """
    from resval_lens.training.recorded import SHIPPED

    experiments = _experiments(result)
    first = experiments[0]
    root = SHIPPED if runs is None else runs
    places = list(dict.fromkeys(run.into for each in experiments for run in each.runs))
    folders = [root / place for place in places if any((root / place).glob("*/run.json"))]
    if runs is not None:
        own = [runs] if any(runs.glob("*/run.json")) or not folders else []
        return [*own, *folders]
    names = {_name(run) for run in first.runs}
    there = {_name(path) for folder in folders for path in folder.iterdir()}
    if not names & there:
        raise ValueError(
            f"there is no record yet of the experiment {first.name!r} ({first.about}); "
            f"`resval-lens reproduce {what} --train` trains its {len(first.runs)} runs, "
            f"`resval-lens runs all` those of every experiment"
        )
    return folders


def _name(run: PlannedRun | Path) -> str:
    """Of a run, without its seed."""
    folder = run.name if isinstance(run, Path) else run.folder_name
    return folder.rpartition("-seed")[0]


def _experiments(
    result: Reproducible,
    given: Mapping[str, Path | None] = MappingProxyType({}),
    seeds: Sequence[int] | None = None,
) -> list[Experiment]:
    """Those that a result needs, in its order."""
    from resval_lens.analyses.experiments.experiment import read_experiments

    by_name = {each.name: each for each in read_experiments(given=given, seeds=seeds)}
    return [by_name[name] for name in result.experiments]


def train_all(
    result: Reproducible,
    what: str,
    runs: Path | None,
    seeds: Sequence[int] | None,
    steps: int | None,
    jobs: int | None,
    given: Mapping[str, Path | None],
    quiet: bool,
) -> list[Path]:
    """Trains the experiments of a result; the folders of their records.

    Classifiers are trained ``jobs`` at a time, all else one by one at the lowest priority.

    Raises:
        ValueError: what training refuses; what the user must give and did not; jobs that are not
            needed; a folder with runs of other lengths.
        RuntimeError: a run failed.
    """
    from resval_lens.analyses.cli.console import err
    from resval_lens.analyses.experiments.experiment import GIVEN, planned
    from resval_lens.analyses.experiments.queue import Folders, work

    experiments = [_of_steps(each, steps) for each in _experiments(result, given, seeds)]
    every = planned(experiments)
    for name in (name for run in every for name in run.needs):
        raise ValueError(f"{what} needs --{name}, {GIVEN[name]}")
    if not any(run.command[1] == "icl" for run in every):
        only_for("classifiers", jobs=jobs)
    root = runs or Path("runs/reproduce")
    folders = Folders(root, root / "records", shipped=None)
    for experiment in experiments:
        if experiment.runs[0].command[1] == "icl":
            _train_classifiers(experiment.runs, root, jobs or 0, quiet)

    def note(text: str) -> None:
        if not quiet:
            err.print(text, highlight=False, markup=False)

    failed = work(experiments, folders, quiet=quiet, note=note)
    if failed:
        raise RuntimeError(f"{len(failed)} runs failed: {', '.join(failed)}")
    for run in every:
        options = _options(run.command)
        expected, folder = options.get("until") or options["steps"], folders.record(run)
        if folder is not None and run.load(folder).run.last_step != expected:
            raise ValueError(f"{folder} does not have {expected} steps; train into other --runs")
    return list(dict.fromkeys(folders.records / run.into for run in every))


def _of_steps(experiment: Experiment, steps: int | None) -> Experiment:
    """The experiment with runs that end after so many steps."""

    def longer(run: PlannedRun) -> Iterator[str]:
        yield from run.command
        yield from () if steps is None else (
            "--until" if "--until" in run.command else "--steps", str(steps)
        )  # fmt: skip

    runs = tuple(replace(run, command=tuple(longer(run))) for run in experiment.runs)
    return replace(experiment, runs=runs)


def _train_classifiers(runs: Sequence[PlannedRun], root: Path, jobs: int, quiet: bool) -> None:
    """Several at a time, which one command can only within an experiment."""
    given = _options(runs[0].command)
    names = list(dict.fromkeys(_name(run) for run in runs))
    seeds = list(dict.fromkeys(int(run.folder_name.rpartition("-seed")[2]) for run in runs))
    train_icl_runs(
        names, seeds, given["steps"], given["spec"], jobs, root / runs[0].into,
        given["keep_snapshots"], quiet, given["lr"],
    )  # fmt: skip


def _options(command: Sequence[str]) -> dict[str, Any]:
    """A command's options, those that are not given by their defaults."""
    from resval_lens.analyses.cli.app import app

    parser: Any = typer.main.get_command(app)
    arguments = list(command)
    while hasattr(parser, "commands"):
        parser = parser.commands[arguments.pop(0)]
    found: dict[str, Any] = parser.make_context("", arguments).params
    return found
