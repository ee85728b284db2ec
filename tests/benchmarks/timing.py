"""Peers that take turns in one process, and their ratios.

Drift of the machine's speed meets all of them; a ratio is the median over rounds of (this one's
time / the first one's time of that round). Time is that of the processor, with one thread: what
else runs on the machine hardly counts.
"""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from rich import box
from rich.console import Console
from rich.table import Table

Step = Callable[[], object]
Seconds = dict[str, list[float]]
"""Of each peer, by round."""


def clock() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def timed(peers: Mapping[str, Step], rounds: int, repeats: int = 1, warm: bool = True) -> Seconds:
    """Seconds per call.

    Args:
        warm: call each once before; without where they have been called.
    """
    for step in peers.values() if warm else ():
        step()
    seconds: Seconds = {name: [] for name in peers}
    for _ in range(rounds):
        for name, step in peers.items():
            start = clock()
            for _ in range(repeats):
                step()
            seconds[name].append((clock() - start) / repeats)
    return seconds


def show(title: str, seconds: Mapping[str, list[float]]) -> None:
    """A table, each one's time beside the first one's."""
    first = next(iter(seconds))
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    unit, scale = ("s", 1.0) if statistics.median(seconds[first]) >= 0.5 else ("ms", 1e3)
    for column in (f"median {unit}", f"ratio to {first}", "range of the ratio"):
        table.add_column(column, justify="right")
    for name, own in seconds.items():
        ratios = [a / b for a, b in zip(own, seconds[first], strict=True)]
        table.add_row(
            name,
            f"{statistics.median(own) * scale:.2f}",
            f"{statistics.median(ratios):.3f}",
            f"{min(ratios):.2f} – {max(ratios):.2f}",
        )
    Console().print(table)


def spread(seconds: Mapping[str, list[float]]) -> str:
    """The first one's time / the second one's: the median, the smallest and the largest."""
    theirs, ours = seconds.values()
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    return f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
