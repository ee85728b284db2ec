"""What the training run of a language model is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import torch

from resval_lens.checks import check_whole, is_number
from resval_lens.config import ResValConfig
from resval_lens.streams import Streams, architecture
from resval_lens.training.run import Line, Run
from resval_lens.training.schedule import Schedule, learning_rate
from resval_lens.training.settings import check_name
from resval_lens.transformer import ResValTransformer

RowKind = Literal["packed", "story"]
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class LMRun(Run[ResValTransformer]):
    """What is trained, on what, and how; equal runs give equal weights (on one kind of machine).

    Attributes:
        name: for people and folders: ``"stories-small-values"``, ...
        model: the configuration, as ``ResValConfig.to_json`` writes it.
        data: fingerprint of the training tokens (their checksum), so that a run goes on with the
            text it began with.
        text: for people, what the tokens are made of, where it is not generated: of files the names
            and checksums.
        seed: draws initial weights, the order of rows, and dropout.
        rows: ``packed`` (the text cut in rows of n_ctx tokens) or ``story`` (a document a row,
            cut or padded; padding does not count in the loss).
        steps: what the schedule is laid out for.
        until: stop after this step, the schedule's being what it is; None: after the last.
        batch: rows a step, over all processes and accumulated parts.
        micro_batch: rows that one process takes at a time; None: its whole share.
        lr, betas, eps, weight_decay: AdamW. Decay only touches matrices, not biases or norms.
        clip: largest norm of the gradient; None: no clipping.
        schedule, warmup, cooldown: see :func:`~resval_lens.training.schedule.learning_rate`.
        precision: of the forward and backward pass; weights and optimiser stay in 32 bits.
        checkpoint_blocks: recompute each block in the backward pass.
        compile: train through ``torch.compile``.
        log_every, evaluate_every, snapshot_every: steps between lines of metrics, evaluations
            and snapshots to go on from.

    Raises:
        ValueError: a setting that cannot be, named with its value.
    """

    kind: ClassVar[str] = "language model"
    shipped: ClassVar[str] = "lm"

    name: str
    model: str
    data: str
    seed: int = 0
    rows: RowKind = "packed"
    steps: int = 1_000
    batch: int = 32
    micro_batch: int | None = None
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = 1.0
    schedule: Schedule = "constant"
    warmup: int = 0
    cooldown: int = 0
    precision: Precision = "fp32"
    checkpoint_blocks: bool = False
    compile: bool = False
    log_every: int = 20
    evaluate_every: int = 500
    snapshot_every: int = 500
    until: int | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        object.__setattr__(self, "betas", tuple(self.betas))
        whole = ["steps", "batch", "log_every", "evaluate_every", "snapshot_every"]
        whole += [name for name in ("micro_batch", "until") if getattr(self, name) is not None]
        for name in whole:
            check_whole(name, getattr(self, name), 1)
        for name in ("seed", "warmup", "cooldown"):
            check_whole(name, getattr(self, name), 0)
        for name, least in (("lr", False), ("eps", False), ("weight_decay", True)):
            value = getattr(self, name)
            if not (value >= 0 if least else value > 0) or value == float("inf"):
                bound = "from 0 up" if least else "above 0"
                raise ValueError(f"{name} must be a finite number {bound}; got {value!r}")
        if self.until is not None and self.until > self.steps:
            raise ValueError(f"until={self.until} is after the last of steps={self.steps}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers from 0 to below 1; got {self.betas!r}")
        if self.clip is not None and not 0 < self.clip < float("inf"):
            raise ValueError(f"clip must be a finite number above 0, or None; got {self.clip!r}")
        for name, known in (("rows", RowKind), ("precision", Precision)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f"{name} must be one of {get_args(known)}; got {getattr(self, name)!r}"
                )
        self.learning_rate(1)

    @property
    def config(self) -> ResValConfig:
        """The model's configuration."""
        return ResValConfig.from_json(self.model)

    @property
    def streams(self) -> Streams:
        """The model's streams."""
        return self.config.streams

    @property
    def last_step(self) -> int:
        """The step after which training ends."""
        return self.steps if self.until is None else self.until

    @property
    def rank(self) -> tuple[bool, str, int]:
        """Classic first, then by name and seed."""
        return architecture(self.streams) != "classic", self.name, self.seed

    def is_evaluation(self, line: Line) -> bool:
        """Whether the line has the loss on validation text."""
        return "valid_loss" in line

    def check_line(self, line: Line) -> None:
        """Raises ValueError for an evaluation without a number as its loss."""
        if not is_number(line["valid_loss"]):
            raise ValueError("the loss on validation text")

    def load_model(self, folder: Path) -> ResValTransformer:
        """A saved language model."""
        return ResValTransformer.from_pretrained(folder)

    def learning_rate(self, step: int) -> float:
        """Of ``step``, counted from 1."""
        return learning_rate(
            step,
            peak=self.lr,
            steps=self.steps,
            schedule=self.schedule,
            warmup=self.warmup,
            cooldown=self.cooldown,
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"betas": list(self.betas)}

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Self:
        run = cls(**settings)
        run.config  # noqa: B018  # readable, too
        return run

    def initial_model(self, device: str | torch.device = "cpu") -> ResValTransformer:
        """The model before its first step; leaves the global generators as they were.

        It has no tokenizer, whatever name its configuration has: that may come from a file.
        """
        config = self.config
        config.device, config.tokenizer_name = str(device), None
        ResValTransformer.check_memory(config)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return ResValTransformer(config)
