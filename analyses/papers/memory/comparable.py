"""Recorded runs side by side: which may be compared, and their numbers over seeds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, TypeVar

from rich.table import Table

from resval_lens.analyses.papers.memory.training import MemoryRun
from resval_lens.analyses.results.result import Result
from resval_lens.analyses.results.seeds import Spread, spread
from resval_lens.analyses.results.tables import STYLE
from resval_lens.models.presets import ENCODINGS
from resval_lens.training.recorded import RecordedRun

Row = TypeVar("Row")

LARGEST_SEED = 2**32 - 1

# Okabe and Ito's colours; an encoding has one in every figure.
COLOURS: dict[str, str] = dict(
    zip(ENCODINGS, ("#D55E00", "#0072B2", "#E69F00", "#009E73", "#CC79A7"), strict=True)
)

_VARIED = ("name", "seed", "positions", "streams", "n_layers")  # what makes a variant or a seed


class OfRuns(Result):
    """A study of runs; of the settings of ``run``, the first, its document has the common ones."""

    run: MemoryRun

    def to_dict(self) -> dict[str, Any]:
        """The fields; of ``run`` the settings that make no variant."""
        settings = _settings(self.run)
        kept = {name: x for name, x in settings.items() if name not in _VARIED}
        kept.pop("task.output_range")
        return {**super().to_dict(), "run": kept}


def by_variant(
    runs: Sequence[RecordedRun[MemoryRun]], task_may_differ: Collection[str] = ("output_range",)
) -> dict[str, list[RecordedRun[MemoryRun]]]:
    """Runs by variant, of which means over seeds, set beside another's, say something.

    Runs of one variant agree in all but the seed; of two variants in all but positions, streams,
    layers and the fields of the task in ``task_may_differ``.

    Raises:
        ValueError: two runs of one variant and seed; runs that differ in more, named with the
            setting.
    """
    grouped: dict[str, list[RecordedRun[MemoryRun]]] = {}
    free = (*_VARIED, *(f"task.{name}" for name in task_may_differ))
    for recorded in runs:
        own = grouped.setdefault(recorded.run.name, [])
        for other in own:
            if other.run.seed == recorded.run.seed:
                raise ValueError(
                    f"{other.folder} and {recorded.folder} are the same variant and seed; keep one"
                )
        own.append(recorded)
        for its, may_differ in ((own[0], ("seed",)), (runs[0], free)):
            theirs = _settings(its.run)
            for setting, value in _settings(recorded.run).items():
                if setting not in may_differ and value != theirs[setting]:
                    differs = f"{setting}={value!r}, {its.folder} {theirs[setting]!r}"
                    if isinstance(value, dict | list):  # bigrams are long
                        differs = f"other {setting} than {its.folder}"
                    raise ValueError(
                        f"{recorded.folder} has {differs}; runs that are compared must agree in it"
                    )
    return grouped


def _settings(run: MemoryRun) -> dict[str, Any]:
    settings = run.to_dict()
    task = settings.pop("task")
    return settings | {f"task.{name}": value for name, value in task.items()}


def check_seed(seed: int) -> None:
    """Checks a seed that prompts, sequences or vectors are drawn from.

    Raises:
        ValueError: it is below 0 or above ``LARGEST_SEED``.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed must be a whole number from 0 to {LARGEST_SEED}; got {seed}")


def over_seeds(rows: Mapping[int, Row], of: Callable[[Row], Any]) -> Any:
    """What ``of`` reads from the row of each seed, a :class:`Spread` in each number's place.

    It reads a number, None, a dataclass of what it reads, or a list; alike in all rows.
    """
    parts = [of(row) for row in rows.values()]
    if is_dataclass(parts[0]) and not isinstance(parts[0], type):
        return type(parts[0])(*_each(rows, [list(vars(part).values()) for part in parts]))
    if isinstance(parts[0], list):
        return _each(rows, parts)
    return spread(dict(zip(rows, parts, strict=True)))


def _each(seeds: Iterable[int], parts: Sequence[list[Any]]) -> list[Any]:
    columns = (dict(zip(seeds, column, strict=True)) for column in zip(*parts, strict=True))
    return [over_seeds(column, lambda part: part) for column in columns]


def shown(found: Spread, form: str = ".3f", tight: bool = False) -> str:
    """Mean ± sd, of one seed the number alone; "none" of none.

    Where some seeds have no number it says how many have. ``tight`` is for tables.
    """
    if found.mean is None or found.sd is None:
        return "none"
    there, every = len(found.there), len(found.by_seed)
    parts = [format(x, form) for x in (found.mean, found.sd)[: min(there, 2)]]
    if tight:  # a table has no room for zeros
        text = "±".join(part.removeprefix("0") if "." in part else part for part in parts)
        return text if there == every else f"{text} ({there}/{every})"
    text = " ± ".join(parts)
    return text if there == every else f"{text} ({there} of {every} seeds)"


def narrow_table(title: str, columns: Sequence[str], words: int = 1, caption: str = "") -> Table:
    """A table whose first ``words`` columns are words and the others numbers.

    Eight columns fit into 80 characters with one space, the box's own, between two of them. Where
    it is too narrow, names fold; numbers lose no digit.
    """
    table = Table(title=title, caption=caption or None, padding=0, **STYLE)
    for i, name in enumerate(columns):
        justify: Any = "left" if i < words else "right"
        table.add_column(name, justify=justify, no_wrap=i > 0, overflow="fold")
    return table


def tight(found: Spread) -> str:
    """Mean ± sd to two decimals, for tables; "" of none."""
    return "" if found.mean is None else shown(found, ".2f", tight=True)


def named(name: str, seeds: Sequence[int], where: str = "") -> str:
    """A variant, and how many seeds it has if they are several."""
    return f"{name}{where}" + (f" ({len(seeds)} seeds)" if len(seeds) > 1 else "")
