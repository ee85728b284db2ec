"""``python -m tests.benchmarks.gpu --minutes 8 --out DIR``: everything that needs a GPU, in a box.

Needs a Python with PyTorch (CUDA), and the wheels that it lacks in a folder; nothing is installed.
In turn: tests of the device, training steps, analyses, a small training. Each step is a process of
its own that writes each result at once and is ended when its time is up, whatever it does.
See docs/gpu.md.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.gpu.source_tree import ROOT, lay_out
from tests.benchmarks.gpu.summary import summary

HERE = "tests.benchmarks.gpu"
GRACE = 5.0
CLOSING = 3.0
# In the order in which they have the device: name, share of the minutes at whose end they are
# ended (who is done earlier leaves the time to those after), and each process's module and words.
TURNS: tuple[tuple[str, float, tuple[tuple[str, ...], ...]], ...] = (
    ("tests", 0.20, (("device_tests",),)),
    ("tinystories-8m, eager", 0.27, (("training", "tinystories-8m", "eager"),)),
    ("llama-1b, eager", 0.36, (("training", "llama-1b", "eager"),)),
    ("tinystories-8m, compiled", 0.52, (("training", "tinystories-8m", "compiled"),)),
    ("llama-1b, compiled", 0.72, (("training", "llama-1b", "compiled"),)),
    ("analyses", 0.82, (("analyses",),)),
    ("language models", 1.0, (("language_model", "classic"), ("language_model", "values"))),
)


@dataclass(frozen=True)
class Step:
    """Processes that wait for their turn, and when it ends (of ``time.time()``)."""

    name: str
    ends: float
    processes: Sequence["subprocess.Popen[str]"]

    def take_turn(self) -> str:
        """Runs them to their end or to the turn's; how it went."""
        for process in self.processes:
            try:
                assert process.stdin is not None
                process.stdin.write(f"{self.ends}\n")
                process.stdin.close()
            except BrokenPipeError:  # it has ended: its exit code says so
                pass
        codes = []
        for process in self.processes:
            try:
                codes.append(process.wait(max(0.0, self.ends - time.time())))
            except subprocess.TimeoutExpired:
                codes.append(None)
        for process in self.processes:
            end(process)
        if any(code is None for code in codes):
            return "stopped: its time was up"
        return "done" if not any(codes) else f"failed: exit codes {codes}"


def start(command: Sequence[str], environment: dict[str, str]) -> "subprocess.Popen[str]":
    """In a session of its own, so that all that it starts can be ended with it."""
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, text=True, start_new_session=True
    )


def end(process: "subprocess.Popen[str]") -> None:
    """Ends what is left of a process and of all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE if number == signal.SIGTERM else None)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def main() -> int:
    started = time.time()
    parser = argparse.ArgumentParser(prog=f"python -m {HERE}", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the records")
    parser.add_argument("--minutes", type=float, default=8.0, help="all there is (default 8)")
    parser.add_argument("--wheels", type=Path, help="folder of the wheels that are not installed")
    parser.add_argument("--text", type=Path, help="documents to mix with the stories")
    parser.add_argument("--commit", help="of this tree, where it is copied without .git")
    parser.add_argument("--dry-run", action="store_true", help="all of it in small on the CPU")
    given = parser.parse_args()
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        parser.error(f"--out {given.out} is not empty")
    if given.text is not None and not given.text.exists():
        parser.error(f"--text {given.text} is not there")
    until = started + 60 * given.minutes - CLOSING
    steps: list[Step] = []
    how: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            environment = lay_out(Path(folder), given.wheels)
        except ValueError as error:
            parser.error(str(error))
        if given.commit:
            environment["RESVAL_COMMIT"] = given.commit
        if given.dry_run:  # on two busy cores, more threads than these wait for one another
            environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        options = ["--out", str(out), *(["--small"] if given.dry_run else [])]
        try:
            for name, share, modules in TURNS:
                processes = []
                for module, *words in modules:
                    if module == "language_model" and given.text is not None:
                        words.append(str(given.text.resolve()))
                    command = [sys.executable, "-m", f"{HERE}.{module}", *options, *words]
                    processes.append(start(command, environment))
                steps.append(Step(name, started + share * (until - started), processes))
            for step in steps:
                print(f"{time.time() - started:5.0f} s  {step.name}", flush=True)
                how[step.name] = step.take_turn()
                print(f"{time.time() - started:5.0f} s  {step.name}: {how[step.name]}", flush=True)
                (out / "summary.md").write_text(summary(out, how))
        finally:
            for step in steps:
                for process in step.processes:
                    end(process)
            for partial in out.glob("*.partial"):  # of one that was ended while it wrote
                partial.unlink()
    print(summary(out, how))
    return int(any(said.startswith("failed") for said in how.values()))


if __name__ == "__main__":
    sys.exit(main())
