"""The folder of a training run: what it holds, and going on from it to the bit.

    run.json                     what is trained, and the provenance of each start
    metrics.jsonl                one line a snapshot
    snapshots/STEP.safetensors   weights and the generator's state: the point to go on from
    model/                       the trained model, when the run has ended

A run that was killed goes on from its newest snapshot and ends with the same weights, to the bit,
as one that was not. Metrics lines after that snapshot are made again.

Damage is seen: each line of metrics ends with a checksum of all lines up to it, a snapshot holds
one of its content and that of the last line before it, and run.json its own and, when the run has
ended, those of the last line and of the model.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from resval_lens.io.checkpoint import fitting
from resval_lens.io.files import (
    check_finite,
    check_plain,
    check_seal,
    digest,
    note,
    note_unsealed,
    parse_json,
    read_bytes,
    read_json,
    read_metadata,
    read_tensors,
    write_bytes,
    write_sealed,
    write_tensors,
)
from resval_lens.io.provenance import provenance

RECORD = "the record of a training run"
METRICS = "the metrics of a training run"
SNAPSHOT = "a training snapshot"
CHECK = "sha256"  # of all lines up to this one, in a line of metrics


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from training in ``folder``.

    Raises:
        ValueError: something in the folder is a link, or another thing than it should be: training
            would write or delete elsewhere, or wait for ever.
        RuntimeError: one already does.
    """
    for name in ("lock", "run.json", "metrics.jsonl", "snapshots", "model"):
        path = folder / name
        if path.is_symlink():
            raise ValueError(f"{path} is a link; a run is trained in a folder of its own")
        if path.exists() and name not in ("snapshots", "model"):
            check_plain(path, "a file of a training run")
            if path.stat().st_nlink > 1:
                raise ValueError(f"{path} is another file, too (a hard link); copy it, to train")
    with (folder / "lock").open("a") as file:  # "w" would empty it, were it a link's other end
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RuntimeError(f"{folder} is being trained by another process") from None
        yield


def read_record(folder: Path) -> dict[str, Any]:
    """``run.json``: what is trained (``run``) and the provenance of each start (``starts``).

    When the run has ended, ``metrics`` is the checksum of its last line of metrics, and ``model``
    that of the trained model's config.json, which has those of its other files.

    Raises:
        ValueError: it is missing or damaged.
    """
    path = folder / "run.json"
    record = read_json(path, RECORD)
    kinds = {"run": dict, "starts": list}
    for name, kind in kinds.items():
        if not isinstance(record, dict) or not isinstance(record.get(name), kind):
            raise ValueError(f"{path} is not {RECORD}: it has no {name!r}")
    return check_seal(path, record, (*kinds, "metrics", "model"))


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
    for name in ("metrics", "model"):
        record.pop(name, None)
    write_sealed(folder / "run.json", record)
    return dict(record["starts"][-1])


def record_end(folder: Path) -> None:
    """Writes down that the run in ``folder`` has ended, with which metrics and model, if kept."""
    ended, config = {"metrics": _last_check(folder)}, folder / "model" / "config.json"
    if config.is_file():
        ended["model"] = digest(config)
    write_sealed(folder / "run.json", {**read_record(folder), **ended})


def trained_model(folder: Path) -> Path:
    """The folder of the trained model of the run in ``folder``.

    Raises:
        ValueError: there is none, or it is not the one that the run ended with.
    """
    model = folder / "model"
    if not model.is_dir():  # its name could be one of the hub
        raise ValueError(f"{model} is missing: the run has not ended, or its model was not kept")
    known = read_record(folder).get("model")
    if known is not None and known != digest(model / "config.json"):
        raise ValueError(f"{model / 'config.json'} is not of the model that this run ended with")
    return model


def check_not_done(folder: Path, steps: int) -> None:
    """Raises ValueError if the run in ``folder`` has done more than ``steps`` steps."""
    paths = snapshot_paths(folder)
    if paths and int(paths[-1].stem) > steps:
        done = int(paths[-1].stem)
        raise ValueError(f"steps={steps}: the run in {folder} has done {done} already")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run, a dict a snapshot, oldest first; empty before the first.

    Raises:
        ValueError: a line is damaged, or lines are missing, twice or in another order.
    """
    path = folder / "metrics.jsonl"
    snapshot = _newest_end(folder)
    lines = list(_lines(path, _content(path).splitlines()))
    checks = {"": "", **{check: check for _, check in lines}}
    if snapshot is not None and snapshot[1] not in checks:
        raise ValueError(f"{path} is damaged: it lacks lines up to {snapshot[0]}")
    if (folder / "run.json").exists():
        end = read_record(folder).get("metrics")
        if end is not None and end != next(reversed(checks)):
            raise ValueError(f"{path} is damaged: its last line is not the one the run ended with")
    return [metrics for metrics, _ in lines]


def has_metrics(folder: Path) -> bool:
    """Whether the run has reached its first snapshot; its metrics are not read."""
    path = folder / "metrics.jsonl"
    return path.exists() and path.stat().st_size > 0


def append_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Adds a line of metrics, which must name its ``step``."""
    line = json.dumps({**metrics, CHECK: chained(_last_check(folder), metrics)})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def chained(before: str, metrics: dict[str, Any]) -> str:
    """The checksum of a line and, through the checksum ``before`` it, of all earlier ones."""
    return hashlib.sha256((before + json.dumps(metrics)).encode()).hexdigest()[:16]


def write_snapshot(
    folder: Path, step: int, tensors: Mapping[str, Tensor], keep: int | None = 1
) -> None:
    """Writes the snapshot of ``step`` to go on from.

    Args:
        keep: how many snapshots stay, this one included; None: all.
    """
    snapshots = folder / "snapshots"
    snapshots.mkdir(exist_ok=True)
    metadata = {"step": str(step), "metrics": _last_check(folder)}
    path = snapshots / f"{step:08d}.safetensors"
    write_tensors(path, tensors, {**metadata, "sha256": content_sha256(tensors, metadata)})
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
        ValueError: what was measured up to the newest snapshot is damaged.
    """
    path = folder / "metrics.jsonl"
    if done is None:
        if path.exists():
            write_bytes(path, b"")
        return
    content = _content(path).splitlines(keepends=True)
    whole = [line for line in content if line.endswith(b"\n")]
    snapshot = _newest_end(folder)
    kept, last = 0, ""
    try:
        for metrics, check in _lines(path, whole):
            if metrics["step"] > done:
                break
            kept, last = kept + 1, check
    except ValueError:
        if snapshot is None or snapshot[1] != last:  # else they are made again
            raise
    if snapshot is not None and snapshot[1] != last:
        raise ValueError(f"{path} is damaged: its lines up to step {done} do not fit {snapshot[0]}")
    if kept < len(content):
        write_bytes(path, b"".join(content[:kept]))


def snapshot_paths(folder: Path) -> list[Path]:
    """The snapshots that a run's folder holds, oldest first."""
    paths = (folder / "snapshots").glob("*.safetensors")
    return sorted(
        (path for path in paths if re.fullmatch("[0-9]{1,18}", path.stem)),
        key=lambda path: int(path.stem),
    )


def load_snapshot(path: Path, parameters: Mapping[str, Tensor]) -> tuple[int, Tensor]:
    """Loads a snapshot into ``parameters``; its step and its generator's state.

    Raises:
        ValueError: it is damaged or of another model.
    """
    step, tensors = read_snapshot(path)
    state = tensors.pop("generator", None)
    tensors = fitting(parameters, tensors, path)
    if state is None:
        raise ValueError(f"{path} is not {SNAPSHOT}: no generator state or step")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    return step, state


def read_snapshot(path: Path) -> tuple[int, dict[str, Tensor]]:
    """A snapshot's step and tensors.

    Raises:
        ValueError: it is damaged; a tensor holds NaN or infinite numbers.
    """
    tensors, metadata = read_tensors(path, SNAPSHOT)
    unknown = sorted(set(metadata) - {"format", "step", "metrics", "sha256"})
    if unknown:
        raise ValueError(f"{path} is damaged: its metadata have the unknown {unknown[0]!r}")
    step = metadata.get("step", "")
    if not re.fullmatch("[0-9]{1,18}", step):
        raise ValueError(f"{path} is not {SNAPSHOT}: no generator state or step")
    if int(step) != int(path.stem):
        raise ValueError(f"{path} is of step {step}, not of that in its name")
    if "sha256" not in metadata:
        note_unsealed(path)
    else:
        named = {name: text for name, text in metadata.items() if name in ("step", "metrics")}
        if metadata["sha256"] != content_sha256(tensors, named):
            raise ValueError(f"{path} is damaged: its checksum does not fit its content")
    check_finite(tensors, path)
    return int(step), tensors


def content_sha256(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of names, kinds, shapes and bytes of ``tensors``, and of ``metadata``."""
    found = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        x = tensors[name].detach().cpu().contiguous()
        found.update(json.dumps([name, str(x.dtype), list(x.shape)]).encode())
        found.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _newest_end(folder: Path) -> tuple[Path, str] | None:
    """The newest snapshot, and the checksum of the last line of metrics before it.

    None where there is no snapshot, or an older version's, which does not say.
    """
    while paths := snapshot_paths(folder):
        try:
            end = read_metadata(paths[-1], SNAPSHOT).get("metrics")
        except ValueError:
            if paths == snapshot_paths(folder):  # else training has just replaced it
                raise
        else:
            return None if end is None else (paths[-1], end)
    return None


def _content(path: Path) -> bytes:
    return read_bytes(path, METRICS) if path.exists() else b""


def _lines(path: Path, lines: list[bytes]) -> Iterator[tuple[dict[str, Any], str]]:
    """Metrics of each line without its checksum, and what that checksum must be.

    Raises:
        ValueError: a line is damaged, is no later than the one before, or does not fit its
            checksum.
    """
    check, step, checked = "", -1, False
    for number, line in enumerate(lines, 1):
        try:
            metrics = parse_json(line, finite=False)
            found = metrics.pop(CHECK, None)
            later = type(metrics["step"]) is int and metrics["step"] > step
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(
                f"{path}: line {number} is damaged; expected metrics as JSON"
            ) from None
        if not later:
            raise ValueError(
                f"{path}: line {number} is damaged; expected a step after {step}; got "
                f"{metrics['step']!r}"
            )
        check, step = chained(check, metrics), metrics["step"]
        if found != check if checked else found not in (check, None):
            raise ValueError(
                f"{path}: line {number} is damaged, or lines before it are: its checksum does not "
                "fit"
            )
        checked = found is not None
        yield metrics, check
    if lines and not checked:
        note(f"{path} has no checksums, as older versions wrote it: damage would not be seen")


def _last_check(folder: Path) -> str:
    """The checksum of the last line of metrics; empty where there is none."""
    path = folder / "metrics.jsonl"
    lines = _content(path).splitlines()
    try:
        last = parse_json(lines[-1], finite=False)[CHECK]
    except (IndexError, ValueError, KeyError, TypeError):
        return next((check for _, check in reversed(list(_lines(path, lines)))), "")
    return str(last)
