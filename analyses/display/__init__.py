"""Rich displays: pictures for notebooks and pages, self-contained and offline."""

from resval_lens.analyses.display.display import Display, show_figure
from resval_lens.analyses.display.show import (
    show_attention,
    show_circuit,
    show_link_ablation,
    show_patching,
)

__all__ = [
    "Display",
    "show_attention",
    "show_circuit",
    "show_figure",
    "show_link_ablation",
    "show_patching",
]
