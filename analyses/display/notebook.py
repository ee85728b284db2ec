"""Which output of a notebook holds CircuitsVis: one, and it again whenever its cell runs again.

Outputs of a notebook lie on one page (Jupyter, VS Code), where those without find it, whatever
their order. Not so where each output is a page of its own (Colab): there each has it. Where it is
missing after all, say since its cell was deleted, images stand in its place.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from resval_lens.analyses.display.page import circuitsvis_script


@dataclass
class _Holder:
    cell: str | None = None
    run: str | None = None


_holder = _Holder()


def bundle_here() -> str:
    """CircuitsVis as a ``<script>`` if the output that is now written has to hold it, else ""."""
    shell = _shell()
    if shell is None or "google.colab" in sys.modules:
        return circuitsvis_script()
    cell, run = _running(shell)
    if _holder.cell is None:
        if cell is not None:
            _holder.cell, _holder.run = cell, run
        return circuitsvis_script()
    if cell == _holder.cell and run != _holder.run:
        _holder.run = run
        return circuitsvis_script()
    return ""


def _shell() -> Any:
    """The kernel's shell; None outside of notebooks."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell if hasattr(shell, "parent_header") else None


def _running(shell: Any) -> tuple[str | None, str | None]:
    """The cell that runs, by its id or else its source, and this run of it.

    The cell is None where something else runs, like a slider's callback: its output is not kept.
    """
    request = shell.parent_header or {}
    code = request.get("content", {}).get("code")
    cell = request.get("metadata", {}).get("cellId", code)
    return cell, request.get("header", {}).get("msg_id")
