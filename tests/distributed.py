"""One process of several, for tests: ``torchrun ... -m tests.distributed FOLDER ddp|fsdp``."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from resval_lens.training.lm import train_lm
from tests.lm_runs import RUN, Noise


def main(folder: str, kind: str) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    stops = iter(range(10**6))

    def stop() -> bool:  # the first start ends after three steps, on the word of one process
        return kind.endswith("stop") and next(stops) == 2 and accelerator.process_index == 1

    train_lm(
        RUN,
        Noise(),
        Path(folder),
        accelerator=accelerator,
        should_stop=stop,
        shard=kind.startswith("fsdp"),
    )
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
