"""What a step measures, in a file that is whole after every result."""

import argparse
import gc
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from resval_lens.io.provenance import provenance


@dataclass(frozen=True)
class Turn:
    """A step's turn on the device.

    Attributes:
        out: folder of the records.
        small: sizes that a CPU does in seconds, on the CPU.
        ends: the time, of ``time.time()``, at which this process will be killed.
        more: further arguments of the step.
    """

    out: Path
    small: bool
    ends: float
    more: list[str]

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.small else "cuda")

    @property
    def seconds_left(self) -> float:
        return self.ends - time.time()


def wait_for_turn(prepare: Callable[[argparse.Namespace], None] = lambda given: None) -> Turn:
    """Returns when it is this step's turn, as a line of stdin says with the time that it ends at.

    Steps are started all at once and import and ``prepare`` while they wait: that takes long, and
    needs no GPU. Until then the device must not be touched.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("more", nargs="*")
    given = parser.parse_args()
    if given.small:
        torch.set_num_threads(1)
    prepare(given)
    line = sys.stdin.readline()
    if not line:  # what started this has ended
        sys.exit(1)
    return Turn(given.out, given.small, float(line), given.more)


class Record:
    """Results by name, in ``out/NAME.json`` with where they come from."""

    def __init__(self, name: str, turn: Turn, **settings: Any) -> None:
        """Goes on with the results that are there: of this step, by an earlier process."""
        self.path, self.turn = turn.out / f"{name}.json", turn
        told = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.settings = told.get("settings", {}) | settings
        self.results: dict[str, Any] = told.get("results", {})
        self.where = provenance(**machine(turn.device))
        self.failed = False
        self.write()

    def write(self) -> None:
        content = {"provenance": self.where, "settings": self.settings, "results": self.results}
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1))
        partial.replace(self.path)

    def add(self, name: str, results: Any) -> None:
        self.results[name] = results
        self.write()
        print(f"  {self.path.stem}: {name}", flush=True)

    def attempt(self, name: str, measure: Callable[[], Any], least_seconds: float = 0.0) -> None:
        """Adds what ``measure`` gives, or why there is nothing; the device is then empty again.

        Args:
            least_seconds: with fewer left, it is not begun.
        """
        if self.turn.seconds_left < least_seconds:
            self.add(name, {"skipped": f"{self.turn.seconds_left:.0f} s left"})
            return
        try:
            self.add(name, measure())
        except Exception as error:
            traceback.print_exc()
            self.add(name, {"error": f"{type(error).__name__}: {error}"[:500]})
            self.failed = True
        gc.collect()
        if self.turn.device.type == "cuda":
            torch.cuda.empty_cache()


def machine(device: torch.device) -> dict[str, Any]:
    """What a number depends on beside the code."""
    facts: dict[str, Any] = {"cores": os.cpu_count(), "device": str(device), "cuda": None}
    if os.environ.get("RESVAL_COMMIT"):  # a copy without .git
        facts["git_commit"] = os.environ["RESVAL_COMMIT"]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "device": properties.name,
            "device_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return facts


def measured(
    call: Callable[[], object], turn: Turn, most_seconds: float, most_rounds: int = 30
) -> dict[str, Any]:
    """Seconds of a call: of the first, alone (it compiles), and the median of later ones.

    On a GPU later ones are timed by events between them, without waiting for each: as they are
    where one follows the other. One or two calls in between are not counted, but say how many
    there is time for.

    Returns:
        ``first_seconds``; ``seconds`` (the median), ``fastest``, ``slowest``, ``rounds``; and
        ``peak_bytes``, the most that tensors took in these rounds (None on the CPU).
    """
    cuda = turn.device.type == "cuda"

    def wait() -> None:
        if cuda:
            torch.cuda.synchronize()

    def clocked(count: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(count):
            call()
        wait()
        return (time.perf_counter() - start) / count

    first = clocked(1)
    again = clocked(2 if first < 2 else 1)
    time_for = min(0.0 if turn.small else most_seconds, turn.seconds_left / 2)
    rounds = max(2, min(most_rounds, int(time_for / again)))
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
        events[0].record()
        for event in events[1:]:
            call()
            event.record()
        wait()
        seconds = [before.elapsed_time(after) / 1e3 for before, after in pairwise(events)]
    else:
        seconds = [clocked(1) for _ in range(rounds)]
    return {
        "first_seconds": first,
        "seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        "rounds": rounds,
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
    }
