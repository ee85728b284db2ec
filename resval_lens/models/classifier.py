"""The two-layer classifier of arXiv 2412.15113, section 3.2, as a hooked transformer.

tokens [batch, pos, d_model] -> attention -> attention -> last token
    -> three ReLU layers -> readout -> logits [batch, label]
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import TypedModuleList

from resval_lens.attention import Carried
from resval_lens.config import ResValConfig
from resval_lens.lens.norm import unshared
from resval_lens.streams import StreamsLike
from resval_lens.tasks.icl import ICLTask
from resval_lens.transformer import ResValTransformer, check_return_type

Spec = Literal["reference", "paper"]


@dataclass
class ClassifierConfig(ResValConfig):
    """A two-layer classifier; make one with :func:`classifier_config`.

    Attributes:
        n_labels: L, logits of the readout.
        d_readout: width of the ReLU layers.
        n_readout_layers: ReLU layers between the last token and the readout.
        content: D, which sets the scale of the initial attention weights, N(0, 1/D).
        output_projection: whether W_O is learned; if not it is the identity, so that values are
            added straight to the residual stream.
    """

    n_labels: int = 32
    d_readout: int = 150
    n_readout_layers: int = 3
    content: int = 85
    output_projection: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_key_value_heads is not None:
            raise ValueError(
                f"n_key_value_heads={self.n_key_value_heads}: every head of a classifier has keys "
                "and values of its own; expected None"
            )


def classifier_config(
    streams: StreamsLike = "", spec: Spec = "reference", task: ICLTask | None = None
) -> ClassifierConfig:
    """The two-layer classifier for ``task``, in one of two specifications.

    ``reference``: the authors' code. q, k and v of the token's dimension (150), scores not scaled,
    no output projection, readout width 150. ``paper``: the text. q, k and v of 128 dimensions,
    scores divided by √128, hence a learned output projection 128 → 150; readout width 128.

    Raises:
        ValueError: an unknown ``spec``.
    """
    task = task or ICLTask()
    if spec not in ("reference", "paper"):
        raise ValueError(f"spec must be 'reference' or 'paper'; got {spec!r}")
    width = task.d_input if spec == "reference" else 128
    return ClassifierConfig(
        n_layers=2,
        d_model=task.d_input,
        n_ctx=2 * task.n_max + 1,
        n_heads=1,
        d_head=width,
        d_vocab=task.n_labels,
        attn_only=True,
        normalization_type=None,
        use_attn_scale=spec == "paper",
        device="cpu",
        streams=streams,
        n_labels=task.n_labels,
        d_readout=width,
        content=task.content,
        output_projection=spec == "paper",
    )


class ReluLayer(nn.Module):
    """relu(x W + b), with one scalar bias for the whole layer."""

    def __init__(self, d_in: int, d_out: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(d_in, d_out, dtype=dtype))
        self.b = nn.Parameter(torch.zeros(1, dtype=dtype))
        self.hook_pre = HookPoint()  # [batch, d_readout]
        self.hook_post = HookPoint()  # [batch, d_readout]

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"]:
        return self.hook_post(F.relu(self.hook_pre(x @ self.W + self.b)))


class Readout(nn.Module):
    """The last token's way to the logits: ReLU layers without residual, then a linear map."""

    def __init__(self, cfg: ClassifierConfig) -> None:
        super().__init__()
        widths = [cfg.d_model] + [cfg.d_readout] * cfg.n_readout_layers
        self.layers: TypedModuleList[ReluLayer] = TypedModuleList(
            ReluLayer(*shape, cfg.dtype) for shape in pairwise(widths)
        )
        self.W_U = nn.Parameter(torch.empty(cfg.d_readout, cfg.n_labels, dtype=cfg.dtype))
        self.hook_in = HookPoint()  # [batch, d_model]
        self.hook_logits = HookPoint()  # [batch, label]

    def forward(self, last: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch label"]:
        x = self.hook_in(unshared(last, self.hook_in))
        for layer in self.layers:
            x = layer(x)
        return self.hook_logits(x @ self.W_U)


class ICLClassifier(ResValTransformer):
    """The two-layer classifier; hooks, cache and streams as in any ResValTransformer.

    Its input is a batch of continuous tokens instead of token ids; it answers for the last one.
    Hook points beside the blocks' own: ``hook_embed`` (the input), ``readout.hook_in`` (the last
    token), ``readout.layers.{i}.hook_pre`` and ``hook_post``, ``readout.hook_logits``.

    >>> model = ICLClassifier(classifier_config("v"), generator=torch.Generator().manual_seed(0))
    >>> model(torch.zeros(4, 17, 150)).shape
    torch.Size([4, 32])
    """

    cfg: ClassifierConfig
    config_class = ClassifierConfig
    kind = "a classifier"
    # Tokens arrive as vectors with their positions in them, and answers leave by the readout.
    without = ("embed", "pos_embed", "hook_pos_embed", "unembed")

    @torch.inference_mode(False)
    def __init__(
        self, cfg: ClassifierConfig, tokenizer: None = None, *, generator: Generator | None = None
    ) -> None:
        """Builds the model; ``generator`` draws the weights (one seeded with 0 if not given)."""
        wanted = cfg.init_weights
        cfg.init_weights = False
        try:
            super().__init__(cfg, move_to_device=False)
        finally:
            cfg.init_weights = wanted
        self.cfg.init_weights = wanted
        self.readout = Readout(cfg)
        if not cfg.output_projection:
            for block in self.blocks:
                block.attn.W_O.requires_grad_(False)
                block.attn.W_O.data[:] = torch.eye(cfg.d_head)
        for block in self.blocks:
            for bias in ("b_Q", "b_K", "b_V", "b_O"):
                getattr(block.attn, bias).requires_grad_(False)
        if wanted:
            self.init_weights(generator)
        self.move_model_modules_to_device()
        self.setup()

    def move_model_modules_to_device(self) -> None:
        nn.Module.to(self, self.cfg.device)

    def init_weights(self, generator: Generator | None = None) -> None:
        """Attention N(0, 1/D); ReLU layers N(0, 2/width), bias N(0, 1/width); W_U N(0, 1/width)."""
        generator = generator or Generator().manual_seed(0)

        def normal(parameter: Tensor, variance: float) -> None:
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.data.copy_(drawn * variance**0.5)

        width = self.cfg.d_readout
        for block in self.blocks:
            names = (
                ("W_Q", "W_K", "W_V", "W_O")
                if self.cfg.output_projection
                else ("W_Q", "W_K", "W_V")
            )
            for name in names:
                normal(getattr(block.attn, name), 1 / self.cfg.content)
        for layer in self.readout.layers:
            normal(layer.W, 2 / width)
            normal(layer.b, 1 / width)
        normal(self.readout.W_U, 1 / width)

    def forward(  # type: ignore[override]
        self,
        input: Float[Tensor, "batch pos d_model"],
        return_type: str | None = "logits",
        *,
        targets: Int[Tensor, " batch"] | None = None,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        carried: Carried | None = None,
        checkpoint_blocks: bool = False,
    ) -> Any:
        """Logits of the last token's label, or their cross-entropy loss against ``targets``.

        Args:
            return_type: ``"logits"``, ``"loss"``, ``"both"`` (a pair) or None.
            start_at_layer, stop_at_layer, carried, checkpoint_blocks: as in ResValTransformer.

        Raises:
            ValueError: an input of another shape or dtype, NaN or infinity in it, missing targets.
        """
        check_return_type(return_type)
        self._check(input)
        residual = input
        if start_at_layer is None:
            residual = self.hook_embed(unshared(input, self.hook_embed))
        residual, _ = self.run_blocks(
            residual, start_at_layer, stop_at_layer, carried, checkpoint_blocks=checkpoint_blocks
        )
        if stop_at_layer is not None:
            return residual
        logits = self.readout(residual[:, -1])
        if return_type is None:
            return None
        if return_type == "logits":
            return logits
        if targets is None:
            raise ValueError(f"return_type={return_type!r} needs `targets`")
        if targets.shape != logits.shape[:1] or targets.is_floating_point():
            raise ValueError(
                f"targets must be whole numbers of shape [{len(logits)}]; "
                f"got {targets.dtype} {list(targets.shape)}"
            )
        loss = F.cross_entropy(logits, targets)
        return loss if return_type == "loss" else (logits, loss)

    def read_out(
        self,
        residual: Float[Tensor, "row pos d_model"],
        answers: Int[Tensor, " prompt"],
        capped: bool = True,
    ) -> Float[Tensor, "row label"]:
        """Logits of each row's label: the answer is the last position's; they have no cap."""
        return self.readout(residual[:, -1])

    @property
    def n_outputs(self) -> int:
        """Labels."""
        return self.cfg.n_labels

    def load_and_process_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Refused: there are no norms, embeddings or biases to fold.

        Raises:
            ValueError: always.
        """
        raise ValueError("a classifier has no weights to process: no norms, embedding or biases")

    @classmethod
    def from_hooked(cls, *args: Any, **kwargs: Any) -> Self:
        """Refused: no other model is a classifier.

        Raises:
            ValueError: always, naming :meth:`with_streams`.
        """
        raise ValueError(
            "a classifier is made by ICLClassifier(classifier_config(...)); with_streams runs the "
            "weights of one with other streams"
        )

    def _check(self, input: Tensor) -> None:
        if input.ndim != 3 or input.shape[-1] != self.cfg.d_model or 0 in input.shape:
            raise ValueError(
                f"input must have shape [batch, pos, {self.cfg.d_model}]; got {list(input.shape)}"
            )
        dtype = self.readout.W_U.dtype
        if input.dtype != dtype:
            raise ValueError(f"input must be {dtype}; got {input.dtype}")
        if not input.isfinite().all():
            raise ValueError("input holds NaN or infinity; every token must be finite")

    def position_axis(self, name: str) -> int | None:
        """As in ResValTransformer; the readout works on the last token and has no positions."""
        return None if name.startswith("readout.") else super().position_axis(name)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Raises: a classifier answers for its last token and generates nothing."""
        raise TypeError("ICLClassifier is a classifier; it has no tokens to generate")

    generate_stream = generate
