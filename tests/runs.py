"""A small training run, and what its folder holds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resval_lens.io.files import read_tensors
from resval_lens.training.icl_run import ICLRun
from resval_lens.training.run_folder import CHECK

RUN = ICLRun("values", "v", seed=3, steps=30, batch=16, snapshot_every=10, test_size=50)


def stop_before(step: int) -> Callable[[], bool]:
    """A ``should_stop`` that lets the first ``step - 1`` steps of a start happen."""
    asked = iter(range(1, step + 1))
    return lambda: next(asked) == step


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    passing = ("seconds_per_step", CHECK)  # a time, and a checksum of it
    return [{k: v for k, v in json.loads(x).items() if k not in passing} for x in lines]


def steps(folder: Path) -> list[int]:
    return [line["step"] for line in metrics(folder)]


def snapshots(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in (folder / "snapshots").glob("*.safetensors"))


def assert_same_outcome(folder: Path, other: Path) -> None:
    """The same weights to the bit, the same generator and the same metrics, line by line."""
    assert metrics(folder) == metrics(other)
    assert weights(folder) == weights(other)
    assert newest(folder).name == newest(other).name
    (ours, _), (theirs, _) = (read_tensors(newest(x), "snapshot") for x in (folder, other))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


def newest(folder: Path) -> Path:
    return sorted((folder / "snapshots").glob("*.safetensors"))[-1]
