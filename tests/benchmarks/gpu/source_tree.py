"""The package as it is imported where it is installed, laid out by links."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def lay_out(folder: Path, wheels: Path | None) -> dict[str, str]:
    """The environment in which ``resval_lens`` is this source tree, with ``hooks``, ``analyses``.

    Args:
        folder: empty; holds the links, and what is in the wheels.
        wheels: a folder of wheels that this Python lacks; None: it lacks none.

    Raises:
        ValueError: there is no wheel, or pip refuses one.
    """
    package, site = folder / "resval_lens", folder / "site"
    package.mkdir()
    parts = [path for path in (ROOT / "resval_lens").iterdir() if path.name != "__pycache__"]
    for path in (*parts, ROOT / "hooks", ROOT / "analyses"):
        (package / path.name).symlink_to(path)
    if wheels is not None:
        found = sorted(str(path) for path in wheels.glob("*.whl"))
        if not found:
            raise ValueError(f"--wheels {wheels} holds no .whl file")
        options = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade"]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", *options]
        if subprocess.run([*pip, "--target", str(site), *found]).returncode:
            raise ValueError(f"--wheels {wheels}: pip refuses them, see above")
    search = [str(folder), str(site), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in search if path),
        "PYTHONSAFEPATH": "1",  # or the folder that this runs in would come first
        "PYTHONUNBUFFERED": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
