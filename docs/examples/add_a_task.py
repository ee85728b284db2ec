# ruff: noqa: E402  # sections of pages import what they need
"""A task of one's own: prompts, corrupted prompts and a metric, and a task to train on."""

# --8<-- [start:pairs]
import torch

from resval_lens import ResValTransformer
from resval_lens.hooks import PromptPairs, logit_difference, patch

model = ResValTransformer.from_pretrained("stories-small-values")
names = [("Tom", "Mary"), ("Anna", "Ben"), ("Jack", "Lucy"), ("Emma", "Paul")]
frame = "When {} and {} went to the park, {} gave a ball to"
pairs = PromptPairs.from_text(
    model,
    [frame.format(a, b, a) for a, b in names],
    [frame.format(a, b, b) for a, b in names],  # the other gives
    [(f" {b}", f" {a}") for a, b in names],
    logit_difference,
    name="who receives",
)
print(patch(model, pairs, "z", by=("layer", "head")).recovered())
# --8<-- [end:pairs]

# --8<-- [start:pose]
from resval_lens.analyses.tasks import Asked
from resval_lens.analyses.tasks.problem import pose

problem = pose("stories-small-values", 8, Asked(seed=0, corruption="ABC"), task="ioi")
print(problem.example(), problem.by("log-probability").metric, problem.named_positions["IO"])
# --8<-- [end:pose]

# --8<-- [start:task]
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Int
from torch import Generator, Tensor

from resval_lens import ResValConfig


class Batch(NamedTuple):
    """Sequences and the answers at their last position."""

    inputs: Int[Tensor, "batch pos"]
    targets: Int[Tensor, " batch"]


@dataclass(frozen=True)
class Recall:
    """Key-value pairs and a key: the answer is its value.

    Keys are 0 to n − 1, values n to 2n − 1.

    Raises:
        ValueError: more pairs than there are keys.
    """

    n: int = 16
    pairs: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.pairs <= self.n:
            raise ValueError(
                f"pairs must lie between 1 and n={self.n}; got {self.pairs!r}"
            )  # fmt: skip

    def batch(self, size: int, generator: Generator) -> Batch:
        """``size`` sequences of 2·pairs + 1 tokens."""
        keys = torch.rand(size, self.n, generator=generator).argsort(1)[:, : self.pairs]
        values = torch.randint(self.n, (size, self.pairs), generator=generator) + self.n
        asked = torch.randint(self.pairs, (size, 1), generator=generator)
        context = torch.stack([keys, values], 2).flatten(1)
        inputs = torch.cat([context, keys.gather(1, asked)], 1)
        return Batch(inputs, values.gather(1, asked)[:, 0])


# --8<-- [end:task]

# --8<-- [start:train]
task, generator = Recall(), Generator().manual_seed(0)
config = ResValConfig(
    n_layers=2, d_model=64, n_heads=4, d_head=16, d_vocab=2 * task.n,
    n_ctx=2 * task.pairs + 1, attn_only=True, normalization_type=None, seed=0,
    streams="v",
)  # fmt: skip
mine = ResValTransformer(config)
optimizer = torch.optim.AdamW(mine.parameters(), lr=3e-3)
for _ in range(2_000):
    batch = task.batch(64, generator)
    loss = torch.nn.functional.cross_entropy(mine(batch.inputs)[:, -1], batch.targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
test = task.batch(1_000, generator)
answers = mine(test.inputs)[:, -1].argmax(-1)
print(loss.item(), (answers == test.targets).float().mean().item())
# --8<-- [end:train]
