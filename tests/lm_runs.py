"""Small training runs of language models, on noise."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from resval_lens.models.language_models import language_model_config
from resval_lens.training.lm_run import LMRun

CONFIG = language_model_config(
    "stories-small",
    "v",
    n_layers=2,
    d_model=16,
    n_heads=2,
    d_head=8,
    d_mlp=32,
    n_ctx=12,
    d_vocab=20,
)
RUN = LMRun(
    "tiny", CONFIG.to_json(), "noise", seed=1, steps=12, batch=6, lr=0.01, warmup=3,
    schedule="cosine", weight_decay=0.1, log_every=3, evaluate_every=6, snapshot_every=4,
)  # fmt: skip
DROPOUT = replace(RUN, model=CONFIG.to_json().replace('"dropout": 0.0', '"dropout": 0.2'))


class Noise:
    """40 rows of 12 tokens; some targets are left out, more in some rows than in others."""

    def __len__(self) -> int:
        return 40

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        drawn = np.array([np.random.default_rng(int(i)).integers(20, size=13) for i in indices])
        tokens = torch.from_numpy(drawn)
        targets = tokens[:, 1:].clone()
        for row, number in enumerate(indices):
            targets[row, int(number) % 9 + 2 :] = -100
        return tokens[:, :-1], targets
