"""AMICL as a two-layer attention model with a value stream, its weights set by hand.

    x¹_i = x_i + a·x_{i−1}                       layer 0: a previous-token head
    k_i = q_i = x¹_i / (a + 1)                   layer 1: matches what layer 0 mixed
    V1_i = 0 + V0_i = x_i                        layer 1 has no values; layer 0's come by the link
    output = Σ_i softmax_i(⟨k_i, q_s⟩ / T) x_i

arXiv 2412.15113, sections 2.2 and 3.1, Figure 2: the same function of AMICL's tokens x_1..x_s
(dot product, softmax with temperature T, k_s = 0; x_s = 0 is what is asked for). The residual
stream, laid out in slots:

    [ content (d) | position (s + 1) | flag (1) | output (d) ]       + [ previous (d) ]

The first token is a beginning-of-sequence token (BOS) without content. Its key and its value in
layer 1 are zero, so it stands for AMICL's last token, whose key and value are zero, too, and which
here does not attend to itself.

Layer 0 adds to the content slot, so the residual stream of a token holds a mixture. The value
stream keeps x_i beside it. Without the stream there are three ways, none of them needed with it:

* read the mixture as well as a linear map can (:func:`best_classic`);
* let a linear readout take off what the query token holds itself, a·x_{s−1}, which is nearly what
  was mixed in (:func:`best_classic` with ``labels``);
* give layer 0 a slot of its own (``separate_slot=True``): exact. So the stream buys room, not
  power, and room at the context's tokens only: the query token has no content of its own, and
  this classic model could put its answer there, in no more dimensions than the stream's model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from resval_lens.checks import check_whole, is_number
from resval_lens.config import ResValConfig
from resval_lens.lens.norm import unshared
from resval_lens.streams import StreamsLike
from resval_lens.transformer import ResValTransformer

# Entries of W_Q and ∓W_K: the query token's score of itself is −10¹⁸/T, whatever its content.
SELF_SCORE = 1e9


@dataclass
class RecallConfig(ResValConfig):
    """AMICL as a transformer; make one with :func:`recall_transformer`.

    Attributes:
        length: s, AMICL's tokens; the model reads s + 1, BOS first.
        content: d, their dimensions.
        a: the weight of the previous token.
        sharpness: τ, what layer 0's head scores the previous token above all others.
        separate_slot: layer 0 writes to a slot of its own instead of the content's.

    ``attn_scale`` is AMICL's temperature, by which scores are divided.
    """

    length: int = 20
    content: int = 100
    a: float = 2.0
    sharpness: float = 1000.0
    separate_slot: bool = False

    @property
    def slots(self) -> dict[str, slice]:
        """Where the parts of the residual stream are."""
        return _slots(self.length, self.content, self.separate_slot)


def recall_transformer(
    length: int,
    d: int,
    a: float = 2.0,
    temperature: float = 1.0,
    streams: StreamsLike = "v",
    *,
    separate_slot: bool = False,
    sharpness: float = 1000.0,
    dtype: torch.dtype = torch.float32,
) -> RecallTransformer:
    """A model that computes AMICL's recall; the module's docstring has the construction.

    Args:
        length: s, AMICL's tokens.
        d: their dimensions.
        a: the weight of the previous token.
        temperature: T; the smaller, the nearer to argmax.
        streams: ``"v"``, or another stream of values alone; with ``""`` layer 1 has no values
            unless ``separate_slot``. Layer 0's queries and keys are of positions, so streams of
            these would make another function.
        separate_slot: layer 0 writes to d further dimensions. Without a value stream, layer 1 then
            reads its values from the content slot, which is pure: the classic control.
        sharpness: τ of layer 0's head. Token i attends to the one before it with
            e^τ / (e^τ + i), exactly 1 in floating point at the default; see below for other τ.
        dtype: float32 or float64.

    At the default τ nothing is approximated beyond rounding: e^{−1000} is zero in either dtype,
    and so is the query token's weight on itself. A smaller τ mixes i·e^{−τ} of the other tokens
    into what layer 0 hands the keys.

    Raises:
        ValueError: a number out of range, by name; a stream of queries or keys.
    """
    check_whole("length", length, 2)
    check_whole("d", d, 1)
    if not is_number(a) or not math.isfinite(a) or a == -1:
        raise ValueError(f"a must be a finite number other than -1; got {a!r}")
    if not is_number(temperature) or not 1e-12 <= temperature <= 1e12:
        raise ValueError(f"temperature must lie between 1e-12 and 1e12; got {temperature!r}")
    if not is_number(sharpness) or not 0 < sharpness <= 1e6:
        raise ValueError(f"sharpness must lie above 0 and be at most 1e6; got {sharpness!r}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64; got {dtype}")
    return RecallTransformer(
        RecallConfig(
            n_layers=2,
            d_model=_slots(length, d, separate_slot)["all"].stop,
            n_ctx=length + 1,
            n_heads=1,
            d_head=max(length, d) + 1,
            d_vocab=d,
            attn_only=True,
            normalization_type=None,
            attn_scale=float(temperature),
            dtype=dtype,
            device="cpu",
            streams=streams,
            length=length,
            content=d,
            a=float(a),
            sharpness=float(sharpness),
            separate_slot=separate_slot,
        )
    )


class RecallTransformer(ResValTransformer):
    """AMICL's recall, by hand-set weights; hooks, cache and streams as in any ResValTransformer.

    Its input is a batch of continuous tokens (:meth:`embed_trial`); its logits at each position
    are the d numbers of the output slot. Layer 1's ``hook_k`` holds AMICL's keys in its first d
    dimensions, ``hook_q`` its last query, ``hook_v`` its values.

    >>> model = recall_transformer(length=4, d=3, temperature=0.01, dtype=torch.float64)
    >>> x = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]]], dtype=torch.float64)
    >>> model.recall(x).round(decimals=4)  # 1 0 0 was followed by 0 1 0
    tensor([[0., 1., 0.]], dtype=torch.float64)
    """

    cfg: RecallConfig
    config_class = RecallConfig
    kind = "a recall transformer"
    # Tokens arrive as vectors with their positions in them.
    without = ("embed", "pos_embed", "hook_pos_embed")

    @torch.inference_mode(False)
    def __init__(self, cfg: RecallConfig, tokenizer: None = None) -> None:
        """Builds the model and sets its weights.

        Raises:
            ValueError: a stream of queries or keys.
        """
        positions = [stream.of for stream in cfg.streams if stream.of != "v"]
        if positions:
            raise ValueError(
                "streams must carry values alone: layer 0's queries and keys are of positions, "
                f"and recall would be another function; got a stream of {', '.join(positions)}"
            )
        super().__init__(cfg)

    def move_model_modules_to_device(self) -> None:
        """The whole model to ``cfg.device``."""
        nn.Module.to(self, self.cfg.device)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Sets every weight as the module's docstring says."""
        cfg, slots = self.cfg, self.cfg.slots
        d, content, output = cfg.content, slots["content"], slots["output"]
        written = slots["previous" if cfg.separate_slot else "content"]
        identity = torch.eye(d, dtype=cfg.dtype)
        for name, parameter in self.named_parameters():
            if ".mixes." not in name:
                parameter.zero_()

        first, second = (block.attn for block in self.blocks)
        index = torch.arange(cfg.length + 1)
        position = slots["position"].start + index
        first.W_K[0, position, index] = 1
        first.W_Q[0, position[1:], index[:-1]] = cfg.sharpness * cfg.attn_scale
        first.W_V[0, content, :d] = identity
        first.W_O[0, :d, written] = cfg.a * identity

        for weight, own in ((second.W_Q, SELF_SCORE), (second.W_K, -SELF_SCORE)):
            weight[0, content, :d] = identity / (cfg.a + 1)
            weight[0, written, :d] = identity / (cfg.a + 1)
            weight[0, slots["flag"], d] = own
        if cfg.separate_slot and not _carries_values(cfg):
            second.W_V[0, content, :d] = identity
        second.W_O[0, :d, output] = identity
        self.unembed.W_U[output] = identity

    def embed_trial(self, x: Float[Tensor, "batch s d"]) -> Float[Tensor, "batch s+1 d_model"]:
        """The model's input: BOS, then the tokens, in the slots of the module's docstring.

        Args:
            x: AMICL's tokens; the last one is what is asked for, and zero.

        Raises:
            ValueError: another shape or dtype than the model's, a last token that is not zero, NaN
                or infinity.
        """
        cfg, slots = self.cfg, self.cfg.slots
        wanted = (cfg.length, cfg.content)
        if x.ndim != 3 or tuple(x.shape[1:]) != wanted or len(x) == 0:
            raise ValueError(
                f"x must have shape [batch, {wanted[0]}, {wanted[1]}]; got {list(x.shape)}"
            )
        if x.dtype != cfg.dtype:
            raise ValueError(f"x must be {cfg.dtype}; got {x.dtype}")
        if not x.isfinite().all():
            raise ValueError("x holds NaN or infinity; every token must be finite")
        if x[:, -1].any():
            raise ValueError("x must end in a masked token, all zeros; got another last token")
        embedded = x.new_zeros(len(x), cfg.length + 1, cfg.d_model)
        embedded[:, 1:, slots["content"]] = x
        embedded[:, :, slots["position"]] = torch.eye(cfg.length + 1, dtype=x.dtype).to(x.device)
        embedded[:, -1, slots["flag"]] = 1
        return embedded

    def forward(  # type: ignore[override]
        self,
        input: Float[Tensor, "batch pos d_model"],
        return_type: str | None = "logits",
        *,
        start_at_layer: int | None = None,
        **options: Any,
    ) -> Any:
        """The output slot at each position, [batch, pos, d]; ``options`` as in ResValTransformer.

        Raises:
            ValueError: an input of another width or dtype, a ``return_type`` other than
                ``"logits"`` or None.
        """
        if return_type not in ("logits", None):
            raise ValueError(
                f"return_type must be 'logits' or None: recall has no loss; got {return_type!r}"
            )
        if input.ndim != 3 or input.shape[-1] != self.cfg.d_model or input.dtype != self.cfg.dtype:
            raise ValueError(
                f"input must be {self.cfg.dtype} [batch, pos, {self.cfg.d_model}], from "
                f"embed_trial; got {input.dtype} {list(input.shape)}"
            )
        residual = input
        if start_at_layer is None:
            residual = self.hook_embed(unshared(input, self.hook_embed))
        return super().forward(residual, return_type, start_at_layer=start_at_layer or 0, **options)

    @torch.no_grad()
    def recall(self, x: Float[Tensor, "batch s d"]) -> Float[Tensor, "batch d"]:
        """Σ_j β_j x_j for AMICL's tokens ``x``: the output slot of the last token.

        Raises:
            ValueError: as :meth:`embed_trial`.
        """
        return self(self.embed_trial(x))[:, -1]

    def load_and_process_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Refused: there are no norms, embeddings or biases to fold.

        Raises:
            ValueError: always.
        """
        raise ValueError("a recall transformer has no weights to process: no norms, no biases")

    @classmethod
    def from_hooked(cls, *args: Any, **kwargs: Any) -> Self:
        """Refused: no other model is a recall transformer.

        Raises:
            ValueError: always, naming :func:`recall_transformer`.
        """
        raise ValueError("a recall transformer is made by recall_transformer(length, d, ...)")

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Raises TypeError: this model recalls a vector and generates nothing."""
        raise TypeError("RecallTransformer recalls a vector; it has no tokens to generate")

    generate_stream = generate


@torch.no_grad()
def best_classic(
    model: RecallTransformer,
    x: Float[Tensor, "batch s d"],
    labels: Float[Tensor, "batch d"] | None = None,
) -> RecallTransformer:
    """``model`` without streams, with the values it can best read from its residual stream.

        W_V² = argmin_W Σ_i ‖(x_i + a·x_{i−1}) W − x_i‖²

    over the tokens with a predecessor (least squares; of several solutions the smallest). For
    tokens drawn independently from N(0, I/d), W_V² = I/(1 + a²), and what it reads has a relative
    squared error of a²/(1 + a²). With ``labels``, the readout W_U is fitted, too: from both slots
    of the last token, its recall z and its own content c = a·x_{s−1}, to the label,

        W_U = argmin_{Z,C} Σ_trials ‖z Z + c C − label‖²

    If x_{s−1} is the object of the label's pair up to noise, c is nearly what was mixed into z.

    Args:
        model: one that shares the content slot; it stays as it is.
        x: trials to fit on.
        labels: what is right in each.

    Raises:
        ValueError: a model with a separate slot, which needs no fitting; too few tokens or trials
            for the map; labels of another shape; and as :meth:`RecallTransformer.embed_trial`.
    """
    cfg = model.cfg
    if cfg.separate_slot:
        raise ValueError("model has separate_slot=True: its content is pure; expected a shared one")
    content, output = cfg.slots["content"], cfg.slots["output"]
    n_tokens = len(x) * (cfg.length - 2)
    if n_tokens < cfg.content:
        raise ValueError(
            f"x has {n_tokens} tokens with a predecessor; a map of d={cfg.content} needs as many"
        )
    if labels is not None:
        if labels.shape != (len(x), cfg.content):
            raise ValueError(f"labels must be [{len(x)}, {cfg.content}]; got {list(labels.shape)}")
        if len(x) < 2 * cfg.content:
            raise ValueError(
                f"x has {len(x)} trials; a readout of two slots of d={cfg.content} needs "
                f"{2 * cfg.content}"
            )
    classic = model.with_streams("")
    first_layer = [classic(classic.embed_trial(part), stop_at_layer=1) for part in x.split(256)]
    mixed = torch.cat([resid[:, 2:-1, content].flatten(0, 1) for resid in first_layer])
    value_map = _least_squares(mixed, x[:, 1:-1].flatten(0, 1))
    classic.blocks[1].attn.W_V[0, content, : cfg.content] = value_map
    if labels is not None:
        ends = [classic(r, start_at_layer=1, stop_at_layer=2)[:, -1] for r in first_layer]
        last = torch.cat(ends)
        readout = _least_squares(torch.cat([last[:, output], last[:, content]], dim=1), labels)
        classic.unembed.W_U[output], classic.unembed.W_U[content] = readout.split(cfg.content)
    return classic


def _least_squares(
    inputs: Float[Tensor, "n d_in"], targets: Float[Tensor, "n d_out"]
) -> Float[Tensor, "d_in d_out"]:
    """The smallest W of least ‖inputs W − targets‖², by way of the Gram matrix."""
    x, y = inputs.double(), targets.double()
    return (torch.linalg.pinv(x.T @ x, hermitian=True) @ (x.T @ y)).to(inputs.dtype)


def _carries_values(cfg: ResValConfig) -> bool:
    return any(stream.of == "v" for stream in cfg.streams)


def _slots(length: int, d: int, separate_slot: bool) -> dict[str, slice]:
    """The slots in order, and ``all`` of them."""
    widths = {"content": d, "position": length + 1, "flag": 1, "output": d}
    if separate_slot:
        widths["previous"] = d
    slots, start = {}, 0
    for name, width in widths.items():
        slots[name] = slice(start, start + width)
        start += width
    return slots | {"all": slice(0, start)}
