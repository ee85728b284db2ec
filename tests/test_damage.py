"""Damage to what was written: each is refused by the file's name, or changes nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from resval_lens.analyses.papers.memory.model.model import MemoryTransformer
from resval_lens.analyses.papers.memory.training import MemoryRun, train_memory
from resval_lens.models.classifier import ICLClassifier
from resval_lens.training.icl import train_icl
from resval_lens.training.icl_run import ICLRun
from resval_lens.training.lm import train_lm
from resval_lens.training.lm_run import LMRun
from resval_lens.training.recorded import load_run
from resval_lens.transformer import ResValTransformer
from tests import lm_runs
from tests.memory_runs import tiny_run
from tests.runs import CHECK, RUN, stop_before

MEMORY = tiny_run("relative-values", steps=6)


def evaluate(model: ResValTransformer, step: int) -> dict[str, Any]:
    return {"valid_loss": float(model.W_E.sum())}


def train(kind: str, folder: Path, stop: bool = False) -> None:
    if kind == "icl":
        train_icl(RUN, folder, should_stop=stop_before(25) if stop else lambda: False)
    elif kind == "memory":
        train_memory(MEMORY, folder, should_stop=stop_before(4) if stop else lambda: False)
    else:
        asked = iter(range(1, 100))
        train_lm(lm_runs.RUN, lm_runs.Noise(), folder, evaluate=evaluate,
                 should_stop=lambda: stop and next(asked) == 7)  # fmt: skip


READERS: dict[str, tuple[Any, Any]] = {
    "icl": (ICLRun, ICLClassifier),
    "lm": (LMRun, ResValTransformer),
    "memory": (MemoryRun, MemoryTransformer),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Of each kind the folder of a run that has ended, and of one that was stopped."""
    made = {}
    for kind in READERS:
        ended, stopped = (tmp_path_factory.mktemp(f"{kind}-{state}") for state in "es")
        train(kind, ended)
        train(kind, stopped, stop=True)
        made[kind] = (ended, stopped)
    return made


PASSING = {"seconds_per_step", "tokens_per_second", CHECK}


def seen(kind: str, folder: Path) -> Any:
    """Whatever is read of a run: settings, metrics without times, and the trained weights."""
    recorded = load_run(folder, READERS[kind][0])
    metrics = [{k: v for k, v in line.items() if k not in PASSING} for line in recorded.metrics]
    weights = None
    if (folder / "model").exists():
        model = recorded.model()
        weights = {name: x.numpy().tobytes() for name, x in model.state_dict().items()}
        weights["config"] = model.cfg.to_json()
    return json.dumps([recorded.run.to_dict(), metrics]), weights


# What may happen to a file


def flip(path: Path, draw: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    content[draw.integers(len(content))] ^= 1 << int(draw.integers(8))
    path.write_bytes(content)


def truncate(path: Path, draw: np.random.Generator) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.integers(len(content))])


def of_lines(change: Callable[[list[bytes], np.random.Generator], Any]) -> Any:
    def damage(path: Path, draw: np.random.Generator) -> None:
        lines = path.read_bytes().splitlines(keepends=True)
        change(lines, draw)
        path.write_bytes(b"".join(lines))

    return damage


def swap(lines: list[bytes], draw: np.random.Generator) -> None:
    i, j = draw.integers(len(lines), size=2)
    lines[i], lines[j] = lines[j], lines[i]


def twice(lines: list[bytes], draw: np.random.Generator) -> None:
    lines.insert(int(draw.integers(len(lines))), lines[draw.integers(len(lines))])


def exchange(path: Path, draw: np.random.Generator) -> None:
    """Two tensors of one shape and kind change places."""
    tensors = load_file(path)
    alike = [(a, b) for a in tensors for b in tensors
             if a < b and tensors[a].shape == tensors[b].shape and not tensors[a].equal(tensors[b])
             and tensors[a].dtype == tensors[b].dtype]  # fmt: skip
    a, b = alike[draw.integers(len(alike))]
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors[a], tensors[b] = tensors[b].clone(), tensors[a].clone()
    save_file(tensors, path, metadata)


def edit_metadata(path: Path, draw: np.random.Generator) -> None:
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    key = sorted(metadata)[draw.integers(len(metadata))]
    values = ("x", "\uff11\uff12", "-1", "", "999999", "00")
    metadata[key] = values[draw.integers(len(values))]
    save_file(tensors, path, metadata)


TEXT = {
    "a bit": flip,
    "the end": truncate,
    "a line gone": of_lines(lambda lines, draw: lines.pop(draw.integers(len(lines)))),
    "a line twice": of_lines(twice),
    "lines exchanged": of_lines(swap),
    "the last line gone": of_lines(lambda lines, draw: lines.pop()),
}
TENSORS = {"a bit": flip, "the end": truncate, "exchanged": exchange, "metadata": edit_metadata}


def mutations(folder: Path, draw: np.random.Generator, count: int) -> list[tuple[Path, str, Any]]:
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    files = [file for file in files if file.name != "lock"]
    found = []
    for file in files:
        kinds = TENSORS if file.suffix == ".safetensors" else TEXT
        found += [(file, name, change) for name, change in kinds.items() for _ in range(count)]
    return found


def refusals(
    kind: str,
    run: Path,
    expected: Any,
    tmp_path: Path,
    seed: int,
    count: int,
    ending: Callable[[str, Path], Any] = lambda kind, folder: None,
) -> int:
    """How many mutations of ``run`` are refused in one line that names it.

    After ``ending`` all others must read as ``expected``.
    """
    draw, refused = np.random.default_rng(seed), 0
    for number, (file, name, change) in enumerate(mutations(run, draw, count)):
        folder = tmp_path / str(number)
        shutil.copytree(run, folder)
        change(folder / file, draw)
        try:
            ending(kind, folder)
            assert seen(kind, folder) == expected, (file, name)
        except ValueError as error:
            assert str(folder) in str(error), (file, name)  # noqa: PT017
            assert "\n" not in str(error), (file, name)  # noqa: PT017
            refused += 1
    return refused


@pytest.mark.parametrize("kind", READERS)
def test_damage_to_a_run_that_has_ended_is_refused_or_changes_nothing(
    kind: str, runs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    whole, _ = runs[kind]
    assert refusals(kind, whole, seen(kind, whole), tmp_path, seed=1, count=4) > 60


@pytest.mark.parametrize("kind", READERS)
def test_a_run_that_goes_on_from_damage_is_refused_or_ends_as_without(
    kind: str, runs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    ended, stopped = runs[kind]
    expected = seen(kind, ended)
    assert refusals(kind, stopped, expected, tmp_path, seed=2, count=3, ending=train) > 15


def test_weights_of_another_model_are_refused(
    runs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """Whole files change places: each fits its own checksum, but not what lies beside it."""
    ended, stopped = runs["icl"]
    shutil.copytree(ended, tmp_path / "run")
    other = next((stopped / "snapshots").iterdir())
    shutil.copy(other, tmp_path / "run" / "snapshots" / "00000030.safetensors")
    with pytest.raises(ValueError, match="00000030"):
        train_icl(RUN, tmp_path / "run")
