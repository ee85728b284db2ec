"""What the training of a graft is: streams on a model that is there and stays as it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

from resval_lens.checks import check_above_zero, check_whole, is_number
from resval_lens.streams import AttentionStream, parse_streams
from resval_lens.training.run import Line, Run
from resval_lens.training.run_folder import content_sha256
from resval_lens.training.schedule import learning_rate
from resval_lens.training.settings import check_name
from resval_lens.transformer import ResValTransformer

Precision = Literal["fp32", "bf16"]
LOSSES, LEARNED, PARAMETERS = "held_out_losses", "learned", "parameters"
"""In a line of metrics: the mean loss (nats a token) of each held-out row; what streams learned;
how many numbers the whole graft learns."""
LINKS = "links.json"
"""What was measured of a graft's links, in its run's folder."""


@dataclass(frozen=True)
class GraftRun(Run[ResValTransformer]):
    """The training of one graft; equal runs give equal numbers (on one kind of machine).

    Attributes:
        name: of the variant, for people and folders.
        model: for people, the model that carries the graft.
        weights: its :func:`weights_sha256`. They stay as they are; a run does not copy them.
        data, held_out_data: fingerprints (checksums) of the tokens to train on and to measure on.
        streams: whose learned weights are trained, from where their mix starts them.
        low_rank: r > 0 trains an update A·B of rank r of each layer's W_V and W_O along.
        seed: draws the rows of each step, and the first factors A.
        steps, batch, length: ``batch`` rows of ``length`` tokens a step.
        lr, low_rank_lr: peak rates of Adam (β = .9, .95; no decay) for the streams' weights and for
            A and B. A tenth of the steps warms up, then a cosine falls to 0.
        held_out: rows of other text whose loss is measured before and after.
        precision: of a step's matrix products. Held-out text is run in the model's own.
        snapshot_every: steps between snapshots.
        text: for people, what the tokens are made of.

    Raises:
        ValueError: a setting that cannot be, named with its value; nothing to learn.
    """

    kind: ClassVar[str] = "graft"
    shipped: ClassVar[str] = "graft"
    beside: ClassVar[tuple[str, ...]] = (LINKS,)

    name: str
    model: str
    weights: str
    data: str
    held_out_data: str
    streams: Any  # kept in full, a tuple of AttentionStream
    low_rank: int = 0
    seed: int = 0
    steps: int = 80
    batch: int = 8
    length: int = 256
    lr: float = 0.02
    low_rank_lr: float = 1e-3
    held_out: int = 64
    precision: Precision = "fp32"
    snapshot_every: int = 5
    text: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "streams", parse_streams(self.streams))
        check_name(self.name)
        least = {"low_rank": 0, "seed": 0, "steps": 1, "batch": 1, "length": 2, "held_out": 2}
        for name, lowest in {**least, "snapshot_every": 1}.items():
            check_whole(name, getattr(self, name), lowest)
        for name in ("lr", "low_rank_lr"):
            check_above_zero(name, getattr(self, name))
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"precision must be one of {get_args(Precision)}; got {self.precision!r}"
            )
        if not self.low_rank and not any(stream.is_learned for stream in self.streams):
            raise ValueError(
                "there is nothing to learn: choose streams with a mix that learns, like "
                "'v(mix=head, carried=0)', or a low rank above 0"
            )

    @property
    def rank(self) -> tuple[int, str, int]:
        """By low rank, name and seed."""
        return self.low_rank, self.name, self.seed

    def learning_rate(self, step: int, peak: float) -> float:
        """Of ``step``, counted from 1."""
        return learning_rate(
            step, peak=peak, steps=self.steps, schedule="cosine", warmup=self.steps // 10,
            cooldown=0,
        )  # fmt: skip

    def is_evaluation(self, line: Line) -> bool:
        """Whether held-out text was run."""
        return LOSSES in line

    def check_line(self, line: Line) -> None:
        """Raises ValueError for an evaluation without a loss of each held-out row."""
        losses = line[LOSSES]
        if not isinstance(losses, list) or not all(is_number(loss) for loss in losses):
            raise ValueError("the losses on held-out text")

    def load_model(self, folder: Path) -> ResValTransformer:
        """The model with its graft, where it was saved whole."""
        return ResValTransformer.from_pretrained(folder)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"streams": [stream.to_dict() for stream in self.streams]}

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Self:
        streams = tuple(AttentionStream.from_dict(stream) for stream in settings["streams"])
        return cls(**settings | {"streams": streams})


def weights_sha256(model: ResValTransformer) -> str:
    """SHA-256 of a model's weights without those of its streams, by which a run knows it again."""
    return content_sha256(
        {name: p for name, p in model.named_parameters() if ".mixes." not in name}, {}
    )
