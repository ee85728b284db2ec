"""A small vocabulary of triggers, and a run on it that takes a second."""

import torch

from resval_lens.analyses.papers.memory.tasks.bigrams import Bigrams
from resval_lens.analyses.papers.memory.tasks.triggers import TriggerTask
from resval_lens.analyses.papers.memory.training import MemoryRun


def small_bigrams(d_vocab: int = 7, seed: int = 0) -> Bigrams:
    """Random counts, a fifth of them zero."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 40, (d_vocab, d_vocab), generator=generator)
    counts[torch.rand(d_vocab, d_vocab, generator=generator) < 0.2] = 0
    counts[:, 0] += 1
    tokens = tuple("abcdefghijklmnopqrstuvwxyz"[:d_vocab])
    return Bigrams(tokens, counts, counts.sum(0) + 1)


SMALL_TASK = TriggerTask(small_bigrams(), length=10, n_triggers=2)
SMALL_RUN = MemoryRun(
    "values", streams="v", seed=3, task=SMALL_TASK, d_model=16, n_ctx=24, steps=30, batch=8,
    snapshot_every=10, test_size=20,
)  # fmt: skip
