"""Runs the notebooks in notebooks/ and keeps what they show (`make notebooks`).

    python -m tests.notebooks [NAME ...]

Outputs are the same each time and bring no path of this machine. A picture is kept as HTML, with a
small image inside for where no script runs; CircuitsVis, of 1.3 MB, as that image alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
SECONDS = 120
MOST_HTML = 400_000
INSTALL = """\
# Outside this repository (in Colab, say) this cell installs the package first.
from importlib.util import find_spec

if find_spec("resval_lens") is None:
    source = input("resval-lens, as a folder, wheel or git+https address: ")
    %pip install --quiet {source}"""
"""The first cell with code of every notebook."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "http_proxy": "http://127.0.0.1:9",
           "https_proxy": "http://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}  # fmt: skip


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def executed(
    name: str, scratch: Path, environment: Mapping[str, str] = os.environ, seconds: int = SECONDS
) -> nbformat.NotebookNode:
    """The notebook from the first cell to the last, offline, on one thread.

    Args:
        scratch: for what it and its kernel write.
        seconds: for a cell.
    """
    notebook = read(name)
    client = NotebookClient(
        notebook, timeout=seconds, kernel_name="python3", record_timing=False,
        coalesce_streams=True, resources={"metadata": {"path": str(NOTEBOOKS)}},
    )  # fmt: skip
    client.execute(env=dict(environment) | OFFLINE | {
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(scratch),
        "IPYTHONDIR": str(scratch / "ipython"),
        "MPLCONFIGDIR": str(scratch / "matplotlib"),
    })  # fmt: skip
    return notebook


def kept(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook as it is committed."""
    for number, cell in enumerate(code(notebook), start=1):
        cell.execution_count = number
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number
            if "data" in output:
                data = output.data
                if len(data.get("text/html", "")) > MOST_HTML and "image/png" in data:
                    del data["text/html"]
                if "text/html" in data:  # it has the image inside
                    data.pop("image/png", None)
    for field in set(notebook.metadata) - {"kernelspec", "language_info"}:
        del notebook.metadata[field]
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def main(names: list[str]) -> None:
    for name in names or sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")):
        with TemporaryDirectory() as scratch:
            notebook = kept(executed(name, Path(scratch), seconds=1_200))
        (NOTEBOOKS / f"{name}.ipynb").write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
        print(name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
