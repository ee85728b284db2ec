"""Training simplified transformers: what a run is, and one run."""

from resval_lens.analyses.papers.memory.training.loop import train_memory
from resval_lens.analyses.papers.memory.training.run import MemoryRun, draw_tests

__all__ = ["MemoryRun", "draw_tests", "train_memory"]
