"""The folder of a training run: what it holds, and going on from it to the bit.

    run.json                     what is trained, and the provenance of each start
    metrics.jsonl                one line a snapshot
    snapshots/STEP.safetensors   weights and the generator's state: the point to go on from
    model/                       the trained model, when the run has ended

A run that was killed goes on from its newest snapshot and ends with the same weights, to the bit,
as one that was not. Metrics lines after that snapshot are made again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from resval_lens.checkpoint import check_parameters
from resval_lens.files import read_json, read_tensors, write_bytes, write_json, write_tensors
from resval_lens.provenance import provenance

RECORD = "the record of a training run"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from training in ``folder``.

    Raises:
        RuntimeError: one already does.
    """
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RuntimeError(f"{folder} is being trained by another process") from None
        yield


def read_record(folder: Path) -> dict[str, Any]:
    """``run.json``: what is trained (``run``) and the provenance of each start (``starts``).

    Raises:
        ValueError: it is missing or damaged.
    """
    path = folder / "run.json"
    record = read_json(path, RECORD)
    kinds = {"run": dict, "starts": list}
    for name, kind in kinds.items():
        if not isinstance(record, dict) or not isinstance(record.get(name), kind):
            raise ValueError(f"{path} is not {RECORD}: it has no {name!r}")
    return dict(record)


def record_start(
    folder: Path, run: dict[str, Any], may_differ: Collection[str] = ("steps",)
) -> dict[str, Any]:
    """Writes down that ``run`` starts, or goes on, in ``folder``; the provenance of this start.

    Args:
        may_differ: settings that may change between starts.

    Raises:
        ValueError: the folder holds another run, or its record is damaged.
    """
    record: dict[str, Any] = {"run": run, "starts": []}
    if (folder / "run.json").exists():
        record = read_record(folder)
        for name, value in run.items():
            if name not in may_differ and record["run"].get(name) != value:
                raise ValueError(
                    f"{folder / 'run.json'}: {folder} holds a run with "
                    f"{name}={record['run'].get(name)!r}, not {value!r}; choose another folder"
                )
        record["run"] = run
    record["starts"].append(provenance())
    write_json(folder / "run.json", record)
    return dict(record["starts"][-1])


def check_not_done(folder: Path, steps: int) -> None:
    """Raises ValueError if the run in ``folder`` has done more than ``steps`` steps."""
    paths = snapshot_paths(folder)
    if paths and paths[-1].stem.isdigit() and int(paths[-1].stem) > steps:
        done = int(paths[-1].stem)
        raise ValueError(f"steps={steps}: the run in {folder} has done {done} already")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run, a dict a snapshot, oldest first; empty before the first.

    Raises:
        ValueError: a line is damaged.
    """
    path = folder / "metrics.jsonl"
    content = path.read_bytes() if path.exists() else b""
    return [_metrics(path, number, line) for number, line in enumerate(content.splitlines(), 1)]


def has_metrics(folder: Path) -> bool:
    """Whether the run has reached its first snapshot; its metrics are not read."""
    path = folder / "metrics.jsonl"
    return path.exists() and path.stat().st_size > 0


def append_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Adds a line of metrics, which must name its ``step``."""
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics) + "\n")
        file.flush()
        os.fsync(file.fileno())


def write_snapshot(
    folder: Path, step: int, tensors: Mapping[str, Tensor], keep: int | None = 1
) -> None:
    """Writes the snapshot of ``step`` to go on from.

    Args:
        keep: how many snapshots stay, this one included; None: all.
    """
    snapshots = folder / "snapshots"
    snapshots.mkdir(exist_ok=True)
    write_tensors(snapshots / f"{step:08d}.safetensors", tensors, {"step": str(step)})
    if keep is not None:
        for path in snapshot_paths(folder)[:-keep]:
            path.unlink()


def restore(folder: Path, parameters: Mapping[str, Tensor], generator: Generator) -> int | None:
    """Puts parameters, generator and metrics where the newest snapshot left them.

    Returns:
        The steps it had done; None where there is no snapshot yet.

    Raises:
        ValueError: a file is damaged.
    """
    snapshots = snapshot_paths(folder)
    done = None
    if snapshots:
        done, state = load_snapshot(snapshots[-1], parameters)
        try:
            generator.set_state(state)
        except (TypeError, RuntimeError) as error:
            raise ValueError(
                f"{snapshots[-1]}: the generator's state is damaged ({error})"
            ) from None
    cut_metrics(folder, done)
    return done


def cut_metrics(folder: Path, done: int | None) -> None:
    """Drops what was measured after step ``done`` (None: all), a torn last line included.

    Raises:
        ValueError: a line before that is damaged.
    """
    path = folder / "metrics.jsonl"
    if path.exists():
        lines = path.read_bytes().splitlines(keepends=True)
        kept = []
        for number, line in enumerate(lines, 1):
            if done is None or not line.endswith(b"\n"):
                break
            if _metrics(path, number, line)["step"] > done:
                break
            kept.append(line)
        if len(kept) < len(lines):
            write_bytes(path, b"".join(kept))


def snapshot_paths(folder: Path) -> list[Path]:
    """The snapshots that a run's folder holds, oldest first."""
    return sorted((folder / "snapshots").glob("*.safetensors"))


def load_snapshot(path: Path, parameters: Mapping[str, Tensor]) -> tuple[int, Tensor]:
    """Loads a snapshot into ``parameters``; its step and its generator's state.

    Raises:
        ValueError: it is damaged or of another model.
    """
    tensors, metadata = read_tensors(path, "a training snapshot")
    state = tensors.pop("generator", None)
    check_parameters(parameters, tensors, path)
    if state is None or "step" not in metadata:
        raise ValueError(f"{path} is not a training snapshot: no generator state or step")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    return int(metadata["step"]), state


def _metrics(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        metrics = json.loads(line)
        metrics["step"]
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{path}: line {number} is damaged; expected metrics as JSON") from None
    return dict(metrics)
