"""Induction heads as associative memories (arXiv 2412.11459): model, construction, probes."""

from resval_lens.analyses.papers.memory.model.config import MemoryConfig, memory_config
from resval_lens.analyses.papers.memory.model.construct import construct
from resval_lens.analyses.papers.memory.model.fast import can_run_fast, fast_logits
from resval_lens.analyses.papers.memory.model.model import MemoryTransformer
from resval_lens.analyses.papers.memory.model.predictions import (
    Prediction,
    predict,
    previous_token_attention,
)

__all__ = [
    "MemoryConfig",
    "MemoryTransformer",
    "Prediction",
    "can_run_fast",
    "construct",
    "fast_logits",
    "memory_config",
    "predict",
    "previous_token_attention",
]
