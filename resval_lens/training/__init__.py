"""Training: what a run is, one run, many at once."""

from resval_lens.training.icl import train_icl
from resval_lens.training.icl_run import ICLRun, draw_world
from resval_lens.training.many import train_many
from resval_lens.training.memory import train_memory
from resval_lens.training.memory_run import MemoryRun, draw_tests

__all__ = [
    "ICLRun",
    "MemoryRun",
    "draw_tests",
    "draw_world",
    "train_icl",
    "train_many",
    "train_memory",
]
