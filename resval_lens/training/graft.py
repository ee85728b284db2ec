"""Training a graft: streams' learned weights on a model whose own weights stay as they are.

    loss = mean cross-entropy of the next token of model(W + Δ, m)

    m    the learned weights of the streams' mixes
    Δ    A·B, of rank r, for each layer's W_V and W_O (``low_rank=r``); B begins at 0

With streams that begin at ``carried=0`` the model before the first step computes what it did
without them. Updates as in LoRA (arXiv 2106.09685) with a scale of 1; folded, W + A·B is a weight
like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.func import functional_call

from resval_lens.io.placing import refuse_waiting
from resval_lens.runtime import evaluating
from resval_lens.training.graft_run import LEARNED, LOSSES, PARAMETERS, GraftRun, weights_sha256
from resval_lens.training.lm import Rows
from resval_lens.training.loop import Progress, Trainee, train_in_folder
from resval_lens.training.recorded import RecordedRun
from resval_lens.training.run_folder import read_snapshot, snapshot_paths
from resval_lens.training.settings import seeded_generators
from resval_lens.transformer import ResValTransformer


class Learned:
    """What a graft learns on a model: its streams' weights and low-rank updates.

    Attributes:
        model: with the graft's streams in place of those that ``base`` may have; its weights are
            those of ``base``, shared.
        mixes: the streams' parameters by name; they are the model's.
        weights: its other parameters, cut off from the gradient.
        factors: A [read, r] and B [r, written] of each updated weight, by its name. What W_V reads
            is d_model wide, what W_O reads head · d_head.
    """

    def __init__(self, base: ResValTransformer, run: GraftRun, generator: Generator) -> None:
        refuse_waiting(base, "training a graft")
        plain = ResValTransformer.from_hooked(base, "", share_weights=True)  # learned again
        self.model = ResValTransformer.from_hooked(plain, run.streams, share_weights=True).eval()
        self.model.tokenizer = base.tokenizer
        self.mixes: dict[str, nn.Parameter] = {}
        self.weights: dict[str, Tensor] = {}
        self.factors: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if ".mixes." in name:
                self.mixes[name] = parameter
                continue
            self.weights[name] = parameter.detach()
            if run.low_rank and name.endswith(("attn.W_V", "attn._W_V", "attn.W_O")):
                self.factors[name] = _factors(name, parameter, run.low_rank, generator)

    def parameters(self) -> dict[str, nn.Parameter]:
        """All that is learned, by name."""
        found = dict(self.mixes)
        for name, (a, b) in self.factors.items():
            found |= {f"{name}.A": a, f"{name}.B": b}
        return found

    def updated(self) -> dict[str, Tensor]:
        """W + A·B of each updated weight, by its name."""
        return {
            name: self.weights[name] + _update(name, self.weights[name], *pair)
            for name, pair in self.factors.items()
        }

    def loss(self, tokens: Tensor, targets: Tensor) -> Float[Tensor, ""]:
        """Σ cross-entropy (nats) of ``targets``, those of −100 left out."""
        weights = self.weights | self.updated()
        found: Tensor = functional_call(self.model, weights, (tokens,), {"targets": targets})
        return found

    @torch.no_grad()
    def folded(self) -> ResValTransformer:
        """The model with the updates in its weights; the model it was made of keeps its own."""
        for name, weight in self.updated().items():
            module, _, last = name.rpartition(".")
            setattr(self.model.get_submodule(module), last, nn.Parameter(weight))
        self.factors = {}
        return self.model


def _factors(
    name: str, weight: Tensor, rank: int, generator: Generator
) -> tuple[nn.Parameter, nn.Parameter]:
    heads, rows, columns = weight.shape
    read, written = (heads * rows, columns) if name.endswith("W_O") else (rows, heads * columns)
    a = torch.randn(read, rank, generator=generator) / read**0.5
    return nn.Parameter(a.to(weight.detach())), nn.Parameter(
        torch.zeros(rank, written).to(weight.detach())
    )


def _update(name: str, weight: Tensor, a: Tensor, b: Tensor) -> Float[Tensor, "head row column"]:
    if name.endswith("W_O"):
        return (a @ b).unflatten(0, weight.shape[:2])
    return (a @ b).unflatten(1, (weight.shape[0], -1)).transpose(0, 1)


@dataclass(frozen=True)
class _GraftTrainee(Trainee[ResValTransformer]):
    run: GraftRun
    learned: Learned
    held_out: Rows
    keep_model: bool

    def state(self) -> dict[str, Tensor]:
        """What is learned, and Adam's moments of it."""
        state: dict[str, Tensor] = {}
        for name, parameter in self.learned.parameters().items():
            kept = self.optimizer.state[parameter]
            kept.setdefault("step", torch.zeros(()))
            for moment in ("exp_avg", "exp_avg_sq"):
                kept.setdefault(moment, torch.zeros_like(parameter))
            state[name] = parameter
            state |= {f"adam.{name}.{key}": kept[key] for key in kept}
        return state

    def step(self, number: int = 1) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self.run.learning_rate(number, group["peak"])
        return super().step(number)

    def metrics(self, step: int) -> dict[str, Any]:
        mixes = self.learned.mixes.items()
        found: dict[str, Any] = {
            LEARNED: {name: x.tolist() for name, x in mixes if not name.endswith(".table")}
        }
        if step in (0, self.run.steps):
            found[PARAMETERS] = sum(x.numel() for x in self.learned.parameters().values())
            found[LOSSES] = row_losses(self.learned, self.held_out, self.run.held_out)
        return found

    def save(self, folder: Path, record: dict[str, Any]) -> None:
        model = self.learned.folded()
        if self.keep_model:
            model.save_pretrained(folder, record=record, overwrite=True)


@torch.no_grad()
def row_losses(learned: Learned, rows: Rows, count: int) -> list[float]:
    """The mean cross-entropy (nats a token) of each of the first ``count`` rows."""
    device, found = learned.model.cfg.device, []
    with evaluating(learned.model):
        for number in range(count):
            tokens, targets = (x.to(device) for x in rows.batch(np.array([number])))
            loss = learned.loss(tokens, targets)
            found.append(float(loss) / int((targets >= 0).sum()))
    return found


def train_graft(
    run: GraftRun,
    base: ResValTransformer,
    rows: Rows,
    held_out: Rows,
    folder: Path,
    *,
    progress: Progress = lambda step, metrics: None,
    should_stop: Callable[[], bool] = lambda: False,
    keep_snapshots: bool = False,
    keep_model: bool = False,
) -> ResValTransformer | None:
    """Trains ``run`` in ``folder``, from its newest snapshot if there is one.

    A snapshot holds what is learned and Adam's moments. ``base`` keeps its weights; the result
    shares those that are not updated.

    Args:
        rows, held_out: of ``run.length`` tokens.
        keep_model: save the whole model, too, updates folded.

    Returns:
        ``base`` with the trained graft, or None if ``should_stop`` said so before the end.

    Raises:
        ValueError: ``base`` has other weights than the run; fewer rows than a step takes, or than
            are to be held out; what :func:`~resval_lens.training.loop.train_in_folder` refuses.
        RuntimeError: another process is training there, or the loss is NaN; some layers of
            ``base`` are not in memory.
    """
    check_base(run, base)
    for what, given, needed in (
        ("training", rows, run.batch),
        ("held-out", held_out, run.held_out),
    ):
        if len(given) < needed:
            raise ValueError(
                f"the {what} text has {len(given)} rows of {run.length} tokens; {needed} are needed"
            )

    def make() -> Trainee[ResValTransformer]:
        generators = seeded_generators(run.seed, ("batches", "factors"))
        learned, drawn = Learned(base, run, generators["factors"]), generators["batches"]
        device = torch.device(str(base.cfg.device))
        groups = [
            {"params": [*learned.mixes.values()], "lr": run.lr, "peak": run.lr},
            {
                "params": [x for pair in learned.factors.values() for x in pair],
                "lr": run.low_rank_lr, "peak": run.low_rank_lr,
            },
        ]  # fmt: skip
        adam = torch.optim.Adam([group for group in groups if group["params"]], betas=(0.9, 0.95))

        def loss() -> Tensor:
            chosen = torch.randint(len(rows), (run.batch,), generator=drawn).numpy()
            tokens, targets = (x.to(device) for x in rows.batch(chosen))
            with torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bf16"):
                return learned.loss(tokens, targets) / (targets >= 0).sum()

        def nothing() -> dict[str, Any]:
            return {}

        return _GraftTrainee(
            learned.model, drawn, adam, loss, nothing, run, learned, held_out, keep_model
        )

    return train_in_folder(
        folder, run, make, progress, should_stop, keep_snapshots, may_differ=("model", "text")
    )


def check_base(run: GraftRun, base: ResValTransformer) -> None:
    """Raises ValueError unless ``base`` has the weights that ``run`` is a graft on."""
    found = weights_sha256(base)
    if found != run.weights:
        raise ValueError(
            f"this is a graft on {run.model} (SHA-256 of its weights {run.weights[:12]}); the "
            f"model given has other weights ({found[:12]})"
        )


def grafted(
    recorded: RecordedRun[GraftRun], base: ResValTransformer, trained: bool = True
) -> ResValTransformer:
    """``base`` with the graft of a run, updates folded; weights that it leaves alone are shared.

    Args:
        trained: as it ended; else as it began.

    Raises:
        ValueError: ``base`` has other weights; the run has not ended; its files are damaged.
    """
    run = recorded.run
    check_base(run, base)
    learned = Learned(base, run, seeded_generators(run.seed, ("batches", "factors"))["factors"])
    if not trained:
        return learned.folded()
    if not recorded.done:
        raise ValueError(f"{recorded.folder} has not reached step {run.steps}")
    paths = snapshot_paths(recorded.folder)
    if paths:
        numbers = read_snapshot(paths[-1])[1]
    else:  # a record that ships has what streams learned, and no more
        numbers = {p: torch.tensor(x) for p, x in recorded.metrics[-1][LEARNED].items()}
    with torch.no_grad():
        for name, parameter in learned.parameters().items():
            if name not in numbers or numbers[name].shape != parameter.shape:
                raise ValueError(f"{recorded.folder} does not hold {name}, which the graft learned")
            parameter.copy_(numbers[name])
    return learned.folded()
