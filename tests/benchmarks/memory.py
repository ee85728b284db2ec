"""Peak memory at real size, of each peer in a process of its own, beyond the loaded model."""

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from tests.benchmarks import real_circuits, real_patching
from tests.benchmarks.real_size import Setting
from tests.benchmarks.timing import Step

MEASURED: dict[str, Callable[[Setting], dict[str, Step]]] = {
    "eap": real_circuits.eap,
    "eap-ig": real_circuits.eap_ig,
    "one-circuit": real_circuits.one_circuit,
    "patching": real_patching.by_head,
    "runs": real_circuits.model_runs,
}


def resident(field: str) -> int:
    """Bytes of this process by the kernel: VmRSS now, VmHWM at most since :func:`forget`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise ValueError(f"the kernel tells no {field}")


def forget() -> None:
    """The most so far is what there is now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak(step: Step) -> int:
    """The most bytes that a call adds to this process."""
    gc.collect()
    forget()
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


def show_all(folder: Path | None) -> None:
    table = Table(
        title="Peak memory beyond the loaded model", title_justify="left", box=box.SIMPLE_HEAD
    )
    for column, justify in (("", "left"), ("MB", "right"), ("ratio", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for name in MEASURED:
        found = [_in_own_process(name, number, folder) for number in range(2)]
        for who, size in found:
            table.add_row(f"{name}: {who}", f"{size / 1e6:.0f}", f"{size / found[0][1]:.2f}")
    Console().print(table)


def _in_own_process(name: str, number: int, folder: Path | None) -> tuple[str, int]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.memory", name, str(number)]
    command += [] if folder is None else [str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    who, size = json.loads(done.stdout.splitlines()[-1])
    return who, size


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.memory", description=__doc__)
    parser.add_argument("name", choices=MEASURED)
    parser.add_argument("number", type=int)
    parser.add_argument("folder", type=Path, nargs="?")
    given = parser.parse_args()
    torch.set_num_threads(1)
    peers = MEASURED[given.name](Setting(given.folder))
    who, step = list(peers.items())[given.number]
    print(json.dumps([who, peak(step)]))


if __name__ == "__main__":
    main()
