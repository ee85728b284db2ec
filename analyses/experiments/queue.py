"""Working through experiments, one run at a time, at the lowest priority; it goes on where it was.

What is done is known by its record, so that another machine goes on, too.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from resval_lens.analyses.experiments.experiment import Experiment, PlannedRun, planned
from resval_lens.analyses.results.result import Result
from resval_lens.io.files import write_bytes
from resval_lens.notes import Note
from resval_lens.training.recorded import SHIPPED, export_run
from resval_lens.training.run_folder import has_metrics, snapshot_paths

if TYPE_CHECKING:
    from rich.table import Table

LOWEST = 19
"""The niceness of what the queue runs."""


@dataclass(frozen=True)
class Folders:
    """Where the queue works.

    Attributes:
        runs: of training runs under way.
        records: that finished runs are copied to.
        shipped: records that count, too: those that ship with the package; None: none do.
    """

    runs: Path
    records: Path
    shipped: Path | None = SHIPPED

    def of(self, run: PlannedRun) -> Path:
        """The folder that ``run`` is trained in."""
        return self.runs / run.into / run.folder_name

    def record(self, run: PlannedRun) -> Path | None:
        """The folder of the finished run's record; None if it is not finished."""
        for parent in (self.records, *([self.shipped] if self.shipped else [])):
            folder = parent / run.into / run.folder_name
            studied = not run.study or (folder / _document(run)).exists()
            if studied and _ended(run, folder):
                return folder
        return None

    def step(self, run: PlannedRun) -> int | None:
        """The step of an unfinished run's newest snapshot; None before the first."""
        # By its name: it may be in training, its metrics a line ahead of what is to be read next.
        found = snapshot_paths(self.of(run))
        return int(found[-1].stem) if found else None


@dataclass(frozen=True)
class Standing:
    """How far an experiment is.

    Attributes:
        recorded: runs whose records are there.
        under_way: steps that runs which have begun have reached, by folder name.
        waiting: runs that need something which was not given, and what.
    """

    name: str
    about: str
    runs: int
    recorded: int
    under_way: dict[str, int]
    waiting: int
    needs: tuple[str, ...]


@dataclass(frozen=True)
class QueueStatus(Result):
    """How far the queue is.

    Attributes:
        following: the run that is next; None if there is none left.
    """

    experiments: tuple[Standing, ...]
    recorded: int
    runs: int
    following: str | None

    def tables(self) -> list[Table | str]:
        from rich import box
        from rich.table import Table

        table = Table(title="Experiments", title_justify="left", box=box.SIMPLE_HEAD)
        for column in ("", "experiment", "recorded", "of", "under way"):
            table.add_column(
                column, justify="right" if column in ("", "recorded", "of") else "left"
            )
        for number, one in enumerate(self.experiments, 1):
            now = [f"{name} at {step:,}" for name, step in one.under_way.items()]
            if one.waiting:
                now.append(f"{one.waiting} need " + " ".join(f"--{name}" for name in one.needs))
            table.add_row(str(number), one.name, str(one.recorded), str(one.runs), ", ".join(now))
        last = f"next: {self.following}" if self.following else "nothing is left to run"
        return [table, f"{self.recorded} of {self.runs} runs are recorded; {last}"]


def status(experiments: Sequence[Experiment], folders: Folders) -> QueueStatus:
    """How far each experiment is, and what is next."""
    standings, following = [], None
    for experiment in experiments:
        left = [run for run in experiment.runs if folders.record(run) is None]
        steps = {run.folder_name: folders.step(run) for run in left}
        standings.append(
            Standing(
                experiment.name, experiment.about, len(experiment.runs),
                len(experiment.runs) - len(left),
                {name: step for name, step in steps.items() if step is not None},
                sum(bool(run.needs) for run in left),
                tuple(dict.fromkeys(name for run in left for name in run.needs)),
            )
        )  # fmt: skip
        able = [run for run in left if not run.needs]
        following = following or (f"{experiment.name}, {able[0].folder_name}" if able else None)
    return QueueStatus(
        tuple(standings),
        sum(one.recorded for one in standings),
        sum(one.runs for one in standings),
        following,
    )


def work(
    experiments: Sequence[Experiment],
    folders: Folders,
    most: int | None = None,
    quiet: bool = False,
    note: Note = lambda text: None,
) -> list[str]:
    """Trains what is not recorded yet, run after run, and records it.

    Every run is a process of its own at the lowest priority, on one thread. Ctrl-C (or SIGTERM)
    stops it at a snapshot to go on from.

    Args:
        most: so many runs at most.
        quiet: no progress of the runs.
        note: called with what is being done.

    Returns:
        The names of the runs that failed, whose own error stands on stderr; the others go on.

    Raises:
        RuntimeError: another process works in ``folders.runs``.
        KeyboardInterrupt: stopped.
    """
    failed: list[str] = []
    runs = [run for run in planned(experiments) if not run.needs]
    with _alone(folders.runs) as lock:
        left = [run for run in runs if folders.record(run) is None][:most]
        for number, run in enumerate(left, 1):
            note(f"{run.experiment}: {run.folder_name}, {number} of {len(left)}")
            command = [*run.command, "--runs", str(folders.runs / run.into)]
            if not _ended(run, folders.of(run)) and _call(command, quiet, lock) != 0:
                failed.append(run.folder_name)
                continue
            record = export_run(run.load(folders.of(run)), folders.records / run.into, run.weights)
            if run.study:
                study = [part.replace("{run}", str(folders.of(run))) for part in run.study]
                study += ["--json", "--out", str(folders.runs / "studies" / run.folder_name)]
                if _call(study, quiet, lock, record / _document(run)) != 0:
                    failed.append(run.folder_name)
    return failed


def _document(run: PlannedRun) -> str:
    return f"{run.study[0]}.json"


def _ended(run: PlannedRun, folder: Path) -> bool:
    """Whether ``folder`` holds the run, trained to its last step."""
    if not (folder / "run.json").is_file() or not has_metrics(folder):
        return False
    try:
        return run.load(folder).done
    except ValueError:
        return False


def _call(command: Sequence[str], quiet: bool, lock: int, to: Path | None = None) -> int:
    """Runs a command of resval-lens at the lowest priority; its exit code.

    Its output goes nowhere, or into the file ``to`` when it has ended well.

    Raises:
        KeyboardInterrupt: it was stopped.
    """
    arguments = [sys.executable, "-m", "resval_lens.analyses", *command]
    child = subprocess.Popen(
        [*arguments, "--quiet"] if quiet else arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        pass_fds=(lock,),  # held by the run, even if this process is killed
        process_group=0,  # Ctrl-C reaches this process alone, and it stops the run
    )
    os.setpriority(os.PRIO_PROCESS, child.pid, LOWEST)
    stopped = False
    while True:
        try:
            output, _ = child.communicate()
            break
        except KeyboardInterrupt:
            stopped = True
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)  # a shell's background jobs ignore SIGINT
    if stopped or child.returncode == 130:
        raise KeyboardInterrupt
    if to is not None and child.returncode == 0:
        json.loads(output)
        write_bytes(to, output)
    return child.returncode


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Keeps other processes from working in ``folder``; SIGTERM becomes KeyboardInterrupt."""
    folder.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with (folder / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RuntimeError(f"another process works in {folder}") from None
            yield file.fileno()
    finally:
        signal.signal(signal.SIGTERM, before)
