"""``--device``: everything that a command makes goes where its model is."""

import json
import os
import subprocess
import sys

import pytest
from torch.utils import backend_registration

from resval_lens.analyses.circuits.methods import METHODS

COMMANDS = [
    "generate stories-small-values Once --max-new-tokens 4",
    "eval ioi --prompts 2",
    "patch values --prompts 4 --site v_link",
    "ablate --prompts 2",
    "circuit values --prompts 8 --method eap",
    "attribute --prompts 2",
    "induction stories-small-values --rows 2 --length 6",
]


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch cannot be given a device in Python",
)
def test_commands_run_on_another_device() -> None:
    """On one that refuses the CPU's tensors. In a process of its own: torch keeps the device."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.other_device", *COMMANDS],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    differences = json.loads(done.stdout)
    assert list(differences) == COMMANDS
    assert max(differences.values()) < 1e-5, differences


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch cannot be given a device in Python",
)
def test_analyses_run_on_a_model_that_is_spread_over_two_devices() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.two_devices"],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    differences = json.loads(done.stdout)
    assert len(differences) == 3 * (11 + len(METHODS))
    assert max(differences.values()) < 1e-5, differences
