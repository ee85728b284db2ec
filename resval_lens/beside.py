"""A function at work in a process of its own, beside this one."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Generic, Self, TypeVar

from resval_lens.notes import Note
from resval_lens.runtime import die_with

T = TypeVar("T")


class Beside(Generic[T]):
    """Calls ``function(*args, note)`` in another process, from now on.

    It ends with the ``with`` block, with this process, and when either of the two fails; Ctrl-C
    reaches this process alone.

        with Beside(measure, runs, told=print) as other:
            own = measure_the_rest(other.poll)
            both = own, other.result()
    """

    def __init__(self, function: Callable[..., T], *args: Any, told: Note) -> None:
        """
        Args:
            function: of a module, so that the other process finds it; like ``args`` and the result
                it is pickled.
            told: called, in this process, with what the other one notes.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, end = context.Pipe(duplex=False)
        self._told, self._found = told, []
        about = end, os.getpid(), function, args
        self._process = context.Process(target=_work, args=about, daemon=True)
        # While it starts the other process inherits the blocked signal, which what starts the
        # tracker would unblock; then it ignores it.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        except BaseException:  # Ctrl-C while it was blocked, too
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            self.__exit__()
            raise
        finally:
            end.close()

    _found: list[T]

    def poll(self) -> None:
        """Hands on what the other process has noted so far.

        Raises:
            Exception: what it raised; RuntimeError if it is gone.
        """
        while not self._found and self._pipe.poll():
            self._receive()

    def result(self) -> T:
        """What the function returned, once it has; raises as :meth:`poll`."""
        while not self._found:
            self._receive()
        return self._found[0]

    def _receive(self) -> None:
        try:
            kind, content, trace = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(
                f"a process at work beside this one ended early, with exit code "
                f"{self._process.exitcode}"
            ) from None
        if kind == "note":
            self._told(content)
        elif kind == "result":
            self._found.append(content)
        else:
            raise content from RuntimeError(trace)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.pid is not None:
            self._process.terminate()
            self._process.join()
        self._pipe.close()


def _work(end: Connection, parent: int, function: Callable[..., Any], args: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=die_with, args=(parent,), daemon=True).start()
    try:
        found = function(*args, lambda text: end.send(("note", text, "")))
    except BrokenPipeError:  # nobody waits for it any more
        os._exit(1)
    except Exception as error:
        end.send(("error", _sendable(error), traceback.format_exc()))
    else:
        end.send(("result", found, ""))


def _sendable(error: Exception) -> Exception:
    """The error as it is, or, if it does not come whole through a pipe, what it says."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
