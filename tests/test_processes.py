"""Processes that divide prompts find what one process finds, and say it once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from resval_lens.analyses.cli.app import app
from resval_lens.hooks.processes import several_processes
from tests import dividing
from tests.other_device import worst

ROOT = Path(__file__).parent.parent


def torchrun(*arguments: str | Path) -> str:
    """Two processes of a file, or with ``-m`` of a module, and what they print."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
         "--master-port", str(20_000 + os.getpid() % 20_000), *map(str, arguments)],
        capture_output=True, text=True, timeout=400, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_processes_score_and_run_as_one(tmp_path: Path) -> None:
    torchrun("-m", "tests.dividing", str(tmp_path / "found"))
    wanted = dividing.measured(dividing.model())
    for number in (0, 1):
        found = torch.load(tmp_path / f"found.{number}", weights_only=True)
        assert found.keys() == wanted.keys()
        for name, x in wanted.items():
            torch.testing.assert_close(found[name], x, rtol=1e-5, atol=1e-6, msg=name)


def test_a_circuit_is_printed_and_written_once(tmp_path: Path) -> None:
    line = ["circuit", "values", "--prompts", "8", "--method", "eap", "--json"]
    out = torchrun("-m", "resval_lens.analyses", *line, "--out", str(tmp_path / "two"))
    alone = CliRunner().invoke(app, [*line, "--quiet", "--out", str(tmp_path / "one")])
    assert worst(json.loads(out), json.loads(alone.stdout)) < 1e-5
    names = [{path.name for path in (tmp_path / each).iterdir()} for each in ("one", "two")]
    assert names[0] == names[1]


@pytest.mark.parametrize("device", ["cuda:1", "auto"])
def test_each_of_several_takes_its_own_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="each of several processes takes a device"):  # noqa: SIM117
        with several_processes(device):
            pass


def test_one_process_divides_nothing() -> None:
    with several_processes("cpu") as process:
        assert process.is_first
        assert process.rows(3).tolist() == [0, 1, 2]
