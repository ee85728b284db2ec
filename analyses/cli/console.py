"""Two consoles: results on stdout, progress and errors on stderr."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

out = Console()
err = Console(stderr=True, soft_wrap=True)


class Lines:
    """What is being done, in lines of their own, for a stderr that is no terminal.

    The first is written at once, a later one where something has changed since: after ``EVERY``
    seconds, and later on after a tenth of the time so far, up to ``AT_MOST``.
    """

    EVERY, AT_MOST = 3.0, 60.0

    def __init__(self, tell: Callable[[], str] | None = None) -> None:
        """
        Args:
            tell: what there is to say; by default what was last handed to :meth:`say`.
        """
        self._latest, self._shown = "", ""
        self._tell = tell or (lambda: self._latest)
        self._lock, self._over = threading.Lock(), threading.Event()
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._keep_telling, daemon=True)

    def say(self, text: str) -> None:
        """What is being done now."""
        first, self._latest = not self._latest, text
        if first:
            self._write()

    def __enter__(self) -> Lines:
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._over.set()
        self._thread.join()

    def _keep_telling(self) -> None:
        while not self._over.wait(min(max(self.EVERY, 0.1 * self._elapsed()), self.AT_MOST)):
            self._write()

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _write(self) -> None:
        with self._lock:
            text = self._tell()
            if text and text != self._shown:
                self._shown = text
                err.print(f"{self._elapsed():.0f} s: {text}", highlight=False, markup=False)


class _BarsAsLines(Progress):
    """Progress without bars: how far each task is, in lines."""

    def start(self) -> None:
        self._lines = Lines(self._state)
        self._lines.__enter__()

    def stop(self) -> None:
        self._lines.__exit__(None, None, None)
        self._lines._write()

    def _state(self) -> str:
        shown = []
        for task in self.tasks:
            if task.visible and task.completed:
                total = "" if task.total is None else f" of {task.total:,.0f}"
                note = f" ({task.fields['note']})" if task.fields.get("note") else ""
                shown.append(f"{task.description}: {task.completed:,.0f}{total}{note}")
        return "; ".join(shown)


def progress_bars(quiet: bool = False) -> Progress:
    """Bars with steps done and time left, on stderr; where it is narrow the bars give way.

    Where stderr is no terminal they are lines (:class:`Lines`).
    """
    if not quiet and not err.is_terminal:
        return _BarsAsLines(console=err, disable=True)
    whole = Column(no_wrap=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(table_column=whole),
        TimeRemainingColumn(compact=True, table_column=whole),
        TextColumn("left"),
        TextColumn("{task.fields[note]}"),
        console=err,
        disable=quiet,
    )


@contextmanager
def told_to_stop() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets; the first asks, a second one interrupts."""
    told = threading.Event()
    before = {}

    def ask(number: int, frame: Any) -> None:
        if told.is_set():
            raise KeyboardInterrupt
        told.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, ask)
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
