"""A function beside this process: its result, its notes, its end."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from resval_lens.beside import Beside
from resval_lens.notes import Note


def doubled(numbers: list[int], note: Note) -> list[int]:
    for number in numbers:
        note(f"at {number}")
    return [2 * number for number in numbers]


def failing(note: Note) -> None:
    raise ValueError("seed=-1: expected 0 or more")


class Two(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def failing_in_two(note: Note) -> None:
    raise Two(3, 4)


def dying(note: Note) -> None:
    os._exit(7)


def waiting(file: Path, note: Note) -> None:
    note(str(os.getpid()))
    time.sleep(60)
    file.write_text("not stopped")


def test_the_result_and_every_note_arrive_in_order() -> None:
    told: list[str] = []
    many = list(range(5000))  # more than a pipe holds at once
    with Beside(doubled, many, told=told.append) as other:
        assert other.result() == [2 * number for number in many]
        assert other.result() == [2 * number for number in many]
    assert told == [f"at {number}" for number in many]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("polled", [False, True])
def test_an_error_is_raised_here_as_what_it_is(polled: bool) -> None:
    def wait() -> None:
        with Beside(failing, told=print) as other:
            while polled:
                other.poll()
            other.result()

    with pytest.raises(ValueError, match="seed=-1: expected 0 or more") as caught:
        wait()
    assert "in failing" in str(caught.value.__cause__)


def test_an_error_that_a_pipe_would_spoil_still_says_what_it_says() -> None:
    with (
        Beside(failing_in_two, told=print) as other,
        pytest.raises(RuntimeError, match="Two: 3 and 4") as caught,
    ):
        other.result()
    assert "in failing_in_two" in str(caught.value.__cause__)


def test_a_process_that_is_gone_is_said() -> None:
    with (
        Beside(dying, told=print) as other,
        pytest.raises(RuntimeError, match="ended early, with exit code 7"),
    ):
        other.result()


def test_it_ends_when_this_process_stops(tmp_path: Path) -> None:
    told: list[str] = []

    def stop() -> None:
        with Beside(waiting, tmp_path / "x", told=told.append) as other:
            while not told:
                other.poll()
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert multiprocessing.active_children() == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(told[0]), 0)
