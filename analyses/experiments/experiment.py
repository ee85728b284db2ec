"""Experiments: training runs in order of importance, each a command, read from a file."""

from __future__ import annotations

import shlex
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from resval_lens.analyses.papers.memory.training import MemoryRun
from resval_lens.numbers import numbers
from resval_lens.training.graft_run import GraftRun
from resval_lens.training.icl_run import ICLRun
from resval_lens.training.lm_run import LMRun
from resval_lens.training.recorded import RecordedRun, Run, load_run
from resval_lens.training.settings import check_name
from resval_lens.transformer import ResValTransformer

QUEUE = Path(__file__).with_name("experiments.toml")
"""The runs that the package's findings need."""
KINDS: dict[str, type[Run[ResValTransformer]]] = {
    "icl": ICLRun, "lm": LMRun, "memory": MemoryRun, "graft": GraftRun,
}  # fmt: skip
"""What each ``train`` command trains."""
GIVEN = {"corpus": "a folder with train.txt and valid.txt", "model": "a language model"}
"""What a user has and commands name in braces."""


@dataclass(frozen=True)
class PlannedRun:
    """One training run of an experiment.

    Attributes:
        experiment: its name.
        command: arguments of resval-lens, which train this run alone; what it needs and was
            not given (:data:`GIVEN`) stands in braces.
        into: the folder, of runs and of records, that the run's own folder is in.
        folder_name: the run's own.
        weights: whether its record has the trained model.
        study: a command on the finished run, whose JSON document stands beside the record.
    """

    experiment: str
    command: tuple[str, ...]
    into: str
    folder_name: str
    weights: bool = False
    study: tuple[str, ...] = ()

    @property
    def needs(self) -> list[str]:
        """What of :data:`GIVEN` it lacks."""
        parts = (*self.command, *self.study)
        return [name for name in GIVEN if any(f"{{{name}}}" in part for part in parts)]

    def load(self, folder: Path) -> RecordedRun[Run[ResValTransformer]]:
        """The run that ``folder`` holds.

        Raises:
            ValueError: none that can be read.
        """
        return load_run(folder, KINDS[self.command[1]])


@dataclass(frozen=True)
class Experiment:
    """Runs that answer one question.

    Attributes:
        name: of the experiment.
        about: the question.
        runs: seed by seed, so that those of a seed can be compared as soon as they are done.
    """

    name: str
    about: str
    runs: tuple[PlannedRun, ...]


def read_experiments(
    path: Path = QUEUE,
    given: Mapping[str, Path | None] = MappingProxyType({}),
    seeds: Sequence[int] | None = None,
) -> list[Experiment]:
    """The experiments of a TOML file, a table ``[[experiment]]`` each, in its order.

        name, about   what it is called and what it asks
        command       of resval-lens: ``train icl``, ``lm``, ``memory`` or ``graft`` and options;
                      ``{name}`` and ``{seed}`` stand for a run's, ``{options}`` for its own
                      further options, ``{corpus}`` and ``{model}`` for what the user has
        names         of the runs: a list, or a table of names to options
        seeds         like "0-3"
        into          the folder of its runs, by default the experiment's name
        weights       true: records have trained models, too
        study         a command on ``{run}``, the folder of a finished run, whose JSON is recorded;
                      ``{corpus}`` and ``{model}`` as in ``command``

    Args:
        given: what ``{corpus}`` and ``{model}`` stand for, by name.
        seeds: of every run, in place of the file's.

    Raises:
        ValueError: a file that cannot be read, a field that is missing, unknown or of another kind,
            or a run that stands twice.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a list of experiments in TOML ({error})") from None
    listed = tables.get("experiment")
    if set(tables) != {"experiment"} or not isinstance(listed, list):
        raise ValueError(f"{path}: expected tables [[experiment]] and nothing else")
    found = [
        _experiment(path, number, table, given, seeds) for number, table in enumerate(listed, 1)
    ]
    counts = Counter((run.into, run.folder_name) for run in planned(found))
    for (into, name), count in counts.items():
        if count > 1:
            raise ValueError(f"{path}: {name} into {into!r} occurs {count} times")
    return found


def planned(experiments: Sequence[Experiment]) -> list[PlannedRun]:
    """Every run of the experiments, in order."""
    return [run for experiment in experiments for run in experiment.runs]


_FIELDS: dict[str, tuple[type, ...]] = {
    "name": (str,), "about": (str,), "command": (str,), "names": (list, dict), "seeds": (str,),
    "into": (str,), "weights": (bool,), "study": (str,),
}  # fmt: skip
_REQUIRED = ("name", "about", "command", "names", "seeds")


def _experiment(
    path: Path,
    number: int,
    table: Any,
    given: Mapping[str, Path | None],
    seeds: Sequence[int] | None,
) -> Experiment:
    where = f"{path}: experiment {number}"
    if not isinstance(table, dict):
        raise ValueError(f"{where}: expected a table; got {table!r}")
    for field in [*_REQUIRED, *table]:
        if field not in _FIELDS:
            raise ValueError(f"{where} has no field {field!r}; fields are {', '.join(_FIELDS)}")
        if not isinstance(table.get(field), _FIELDS[field]):
            kinds = " or ".join(kind.__name__ for kind in _FIELDS[field])
            raise ValueError(f"{where}: {field} must be a {kinds}; got {table.get(field)!r}")
    names = table["names"]
    if isinstance(names, list):
        names = dict.fromkeys(names, "")
    into = str(table.get("into", table["name"]))
    try:
        check_name(into)
        return Experiment(
            table["name"],
            table["about"],
            tuple(
                PlannedRun(
                    table["name"],
                    _filled(table["command"], name, options, seed, given),
                    into,
                    f"{name}-seed{seed}",
                    table.get("weights", False),
                    tuple(
                        _replaced(part, _given(given))
                        for part in shlex.split(table.get("study", ""))
                    ),
                )
                for seed in (numbers(table["seeds"]) if seeds is None else seeds)
                for name, options in names.items()
            ),
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _filled(
    command: str, name: Any, options: Any, seed: int, given: Mapping[str, Path | None]
) -> tuple[str, ...]:
    """The arguments of a run's command."""
    check_name(name)
    if not isinstance(options, str):
        raise ValueError(f"options of {name} must be a str; got {options!r}")
    parts = shlex.split(command)
    if len(parts) < 2 or parts[0] != "train" or parts[1] not in KINDS:
        raise ValueError(f"command must begin with train {'|'.join(KINDS)}; got {command!r}")
    for field in ("{name}", "{seed}"):
        if field not in command:
            raise ValueError(f"command must have {field}; got {command!r}")
    stands_for = {"{name}": name, "{seed}": str(seed), **_given(given)}
    return tuple(
        _replaced(each, stands_for)
        for part in parts
        for each in (shlex.split(options) if part == "{options}" else [part])
    )


def _given(given: Mapping[str, Path | None]) -> dict[str, str]:
    """What stands for each name in braces."""
    return {f"{{{each}}}": str(path) for each, path in given.items() if path is not None}


def _replaced(part: str, stands_for: Mapping[str, str]) -> str:
    for field, value in stands_for.items():
        part = part.replace(field, value)
    return part
