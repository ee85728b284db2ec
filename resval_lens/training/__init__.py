"""Training: what a run is, one run, many at once."""

from resval_lens.training.icl import train_icl
from resval_lens.training.icl_run import ICLRun, draw_world
from resval_lens.training.many import train_many

__all__ = [
    "ICLRun",
    "draw_world",
    "train_icl",
    "train_many",
]
