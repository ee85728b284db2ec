"""The simplified transformer of arXiv 2412.11459, whose weights are associative memories.

tokens -> embedding + p_t -> attention -> attention -> + W_F -> readout
    -> logits [batch, pos, d_vocab]
"""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any, Self, cast

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from transformer_lens.hook_points import HookPoint

from resval_lens.analyses.papers.memory.model.config import MemoryConfig
from resval_lens.attention import ResValAttention
from resval_lens.block import ResValBlock
from resval_lens.config import ResValConfig
from resval_lens.lens.norm import unshared
from resval_lens.transformer import ResValTransformer

ROTARY_BASE = 10_000.0


class MemoryAttention(ResValAttention):
    """One head: score(s, t) = q_t · k_s / √d + what the positions s and t add.

    Relative positions have embeddings ``W_R`` [n_ctx, d_model], row i for r_{−i}, the key i
    positions back. ``hook_position_scores`` [batch, head, query_pos, key_pos] holds what they add:
    q_t · (r_{s−t} W_K) / √d; with ALiBi −slope · (t − s). Of keys that are still ahead it holds
    anything: the causal mask follows. Rotary positions turn q and k instead and add nothing.
    """

    cfg: MemoryConfig

    def __init__(self, cfg: MemoryConfig, attn_type: str, layer_id: int) -> None:
        super().__init__(cfg, attn_type, layer_id)
        self.positions = cfg.positions if layer_id in cfg.position_layers else None
        if self.positions == "relative":
            self.W_R = nn.Parameter(torch.empty(cfg.n_ctx, cfg.d_model, dtype=cfg.dtype))
        if self.positions in ("relative", "alibi"):
            self.hook_position_scores = HookPoint()  # [batch, head, query_pos, key_pos]
        if not cfg.in_the_stream:
            # TransformerLens adds this table to the scores; ours are added where hooks see them.
            del self.alibi
            nothing = torch.zeros(1, 1, 1, dtype=cfg.dtype).expand(1, cfg.n_ctx, cfg.n_ctx)
            self.register_buffer("alibi", nothing, persistent=False)

    def calculate_attention_scores(
        self,
        q: Float[Tensor, "batch query_pos head d_head"],
        k: Float[Tensor, "batch key_pos head d_head"],
    ) -> Float[Tensor, "batch head query_pos key_pos"]:
        """Content and position scores of every query and key, before the causal mask.

        Raises:
            ValueError: more keys than ``n_ctx``, of which a cache may remember some.
        """
        if k.shape[1] > self.cfg.n_ctx:
            raise ValueError(f"{k.shape[1]} positions are more than n_ctx={self.cfg.n_ctx}")
        before = k.shape[1] - q.shape[1]  # keys that a cache remembers
        if self.positions == "rotary":
            q, k = rotated(q, before), rotated(k, 0)
        scores = super().calculate_attention_scores(q, k)
        distances = key_distances(q.shape[1], k.shape[1], q.device)
        if self.positions == "relative":
            added = self._relative_scores(q, distances)
        elif self.positions == "alibi":
            added = (-self.cfg.alibi_slope * distances.to(scores.dtype)).expand_as(scores)
        else:
            return scores
        return scores + self.hook_position_scores(unshared(added, self.hook_position_scores))

    def _relative_scores(self, q: Tensor, distances: Tensor) -> Tensor:
        keys = self.W_R[: distances.shape[1]] @ self.W_K[0]  # row i: r_{−i} W_K
        by_distance = torch.einsum("bthd,id->bhti", q, keys) / self.attn_scale
        return by_distance.gather(3, distances.clamp(min=0).expand_as(by_distance))


def key_distances(
    queries: int, keys: int, device: torch.device | str | None = None
) -> Int[Tensor, "query_pos key_pos"]:
    """t − s of the last ``queries`` positions t and all ``keys`` s."""
    places = torch.arange(keys, device=device)
    return places[keys - queries :, None] - places


def rotated(
    x: Float[Tensor, "batch pos head d_head"], first: int
) -> Float[Tensor, "batch pos head d_head"]:
    """x with dimensions (i, i + d/2) of position t turned by t · 10000^(−2i/d) (arXiv 2104.09864).

    Args:
        first: the position of ``x[:, 0]``.
    """
    half = x.shape[-1] // 2
    places = torch.arange(first, first + x.shape[1], dtype=torch.float64, device=x.device)
    speeds = ROTARY_BASE ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
    angles = (places[:, None] * speeds)[None, :, None]  # [1, pos, 1, d_head / 2]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class MemoryBlock(ResValBlock):
    """A block of one :class:`MemoryAttention`."""

    def __init__(self, cfg: ResValConfig, block_index: int) -> None:
        super().__init__(cfg, block_index)
        kind = cast("Any", self.attn.attn_type)
        self.attn = MemoryAttention(cast("MemoryConfig", cfg), kind, block_index)


class LinearFeedForward(nn.Module):
    """What the linear feed-forward adds: x W_F; a key-value memory for global knowledge."""

    def __init__(self, cfg: MemoryConfig) -> None:
        super().__init__()
        self.W_F = nn.Parameter(torch.empty(cfg.d_model, cfg.d_model, dtype=cfg.dtype))
        self.hook_in = HookPoint()  # [batch, pos, d_model]
        self.hook_out = HookPoint()  # [batch, pos, d_model]

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """x W_F"""
        return self.hook_out(self.hook_in(unshared(x, self.hook_in)) @ self.W_F)


class MemoryTransformer(ResValTransformer):
    """The simplified transformer; hooks, cache and streams as in any ResValTransformer.

    With x_t = w_E(z_t) (+ p_t), row vectors, every sum over s ≤ t and W_Q = 1:

        x¹_t = x_t + Σ_s softmax_s(x_t (x_s W_K¹)ᵀ / √d) x_s W_V¹ W_O¹         layer 0
        x²_t = x¹_t + Σ_s softmax_s(x¹_t (x¹_s W_K²)ᵀ / √d) x¹_s W_V² W_O²    layer 1
        logits_t = (x²_t + x²_t W_F) W_U

    Relative positions add r_{s−t} to x_s in the key of layer 0 (of ``position_layers``). Hook
    points beside the blocks' own: ``feed_forward.hook_in``, ``feed_forward.hook_out``, and
    ``blocks.{i}.attn.hook_position_scores`` where relative or ALiBi positions act.

    A run that stops at layer ``n_layers`` gives x², the residual stream without what W_F adds.

    >>> model = MemoryTransformer(memory_config(5, d_model=8, n_ctx=6),
    ...                           generator=torch.Generator().manual_seed(0))
    >>> model(torch.tensor([[0, 3, 1]])).shape
    torch.Size([1, 3, 5])
    """

    cfg: MemoryConfig
    config_class = MemoryConfig
    kind = "a simplified transformer"
    block_class = MemoryBlock

    @torch.inference_mode(False)
    def __init__(
        self, cfg: MemoryConfig, tokenizer: Any = None, *, generator: Generator | None = None
    ) -> None:
        """Builds the model; ``generator`` draws the weights (one seeded with 0 if not given)."""
        wanted = cfg.init_weights
        cfg.init_weights = False
        try:
            super().__init__(cfg, tokenizer, move_to_device=False)
        finally:
            cfg.init_weights = wanted
        self.cfg.init_weights = wanted
        self.feed_forward = LinearFeedForward(self.cfg)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not any(fnmatch(name, kept) for kept in self.cfg.frozen))
        if wanted:
            self.init_weights(generator)
        self.move_model_modules_to_device()
        self.setup()

    def move_model_modules_to_device(self) -> None:
        """Moves everything to ``cfg.device``."""
        nn.Module.to(self, self.cfg.device)

    @torch.no_grad()
    def init_weights(self, generator: Generator | None = None) -> None:
        """Draws every weight: embeddings N(0, embed_std²), matrices N(0, 1/d_model), W_Q = 1.

        What is trained has entries N(0, initial_std²/d_model). A value matrix and W_U keep the
        length of a vector on average, so that a token with |w_E| = 1 is read as 1.
        """
        generator = generator or Generator().manual_seed(0)
        cfg, scale = self.cfg, self.cfg.d_model**-0.5

        def normal(parameter: Tensor, std: float) -> None:
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.copy_(drawn * std)

        normal(self.embed.W_E, cfg.embed_std)
        if cfg.positions == "absolute":
            normal(self.pos_embed.W_pos, cfg.embed_std)
        elif cfg.positions == "sinusoidal":
            waves = sinusoids(cfg.n_ctx, cfg.d_model) * cfg.embed_std
            self.pos_embed.W_pos.copy_(waves)
        normal(self.unembed.W_U, scale)
        self.unembed.b_U.zero_()
        for block in self.blocks:
            attn = cast("MemoryAttention", block.attn)
            if attn.positions == "relative":
                normal(attn.W_R, cfg.embed_std)
            attn.W_Q.copy_(torch.eye(cfg.d_model))
            for weight in (attn.W_V, attn.W_O, attn.W_K):
                normal(weight, scale * (cfg.initial_std if weight.requires_grad else 1))
        normal(self.feed_forward.W_F, scale * cfg.initial_std)

    @property
    def without(self) -> tuple[str, ...]:  # type: ignore[override]
        """Positions that are not added to embeddings have no part of their own."""
        return () if self.cfg.in_the_stream else ("pos_embed", "hook_pos_embed")

    def readout_parts(
        self, residual: Float[Tensor, "batch pos d_model"]
    ) -> dict[str, Float[Tensor, "batch pos d_model"]]:
        """What W_F adds."""
        return {"feed_forward": self.feed_forward(residual)}

    def unembed_input(
        self, residual: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """What the unembedding reads: the residual stream with what W_F adds to it."""
        return residual + self.feed_forward(residual)

    def input_to_embed(self, input: Any, *args: Any, **options: Any) -> Any:
        """HookedTransformer.input_to_embed, of tokens that :meth:`check_tokens` accepts."""
        if isinstance(input, Tensor):
            cache = options.get("past_kv_cache")
            self.check_tokens(input, 0 if cache is None else cache[0].past_keys.shape[1])
        return super().input_to_embed(input, *args, **options)

    def get_residual(self, embed: Tensor, *args: Any, **options: Any) -> Any:
        """HookedTransformer.get_residual, of at most ``n_ctx`` positions (also in generation).

        Raises:
            ValueError: more positions.
        """
        if embed.shape[1] > self.cfg.n_ctx:
            raise ValueError(f"{embed.shape[1]} positions are more than n_ctx={self.cfg.n_ctx}")
        return super().get_residual(embed, *args, **options)

    def check_tokens(self, tokens: Int[Tensor, "*batch pos"], before: int = 0) -> None:
        """Refuses what the model cannot read.

        Args:
            before: positions that are already in a cache.

        Raises:
            ValueError: no whole numbers [batch, pos] (or [pos]) of the vocabulary, none at all, or
                more positions than ``n_ctx``.
        """
        cfg = self.cfg
        is_whole = not tokens.is_floating_point() and tokens.dtype != torch.bool
        if tokens.ndim not in (1, 2) or 0 in tokens.shape or not is_whole:
            raise ValueError(
                "tokens must be whole numbers of shape [batch, pos]; got "
                f"{tokens.dtype} {list(tokens.shape)}"
            )
        if before + tokens.shape[-1] > cfg.n_ctx:
            raise ValueError(
                f"tokens has {before + tokens.shape[-1]} positions; the model has n_ctx={cfg.n_ctx}"
            )
        outside = tokens[(tokens < 0) | (tokens >= cfg.d_vocab)]
        if len(outside):
            raise ValueError(
                f"tokens has {outside[0].item()}; the vocabulary has tokens 0 to {cfg.d_vocab - 1}"
            )

    @property
    def compares_inputs(self) -> bool:
        """Whether every W_Q is the identity and every bias 0: q_t = x_t, k_s = x_s W_K."""
        biases = [self.unembed.b_U]
        for block in self.blocks:
            attn = block.attn
            biases += [attn.b_Q, attn.b_K, attn.b_V, attn.b_O]
            identity = torch.eye(self.cfg.d_model, dtype=attn.W_Q.dtype, device=attn.W_Q.device)
            if not torch.equal(attn.W_Q[0], identity):
                return False
        return not any(bias.any() for bias in biases)

    def position_axis(self, name: str) -> int | None:
        """As in ResValTransformer; position scores have heads before positions, as scores do."""
        return 2 if name.endswith("hook_position_scores") else super().position_axis(name)

    def load_and_process_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Refused: there are no norms or biases to fold.

        Raises:
            ValueError: always.
        """
        raise ValueError("a MemoryTransformer has no weights to process: no norms, no biases")

    @classmethod
    def from_hooked(cls, *args: Any, **kwargs: Any) -> Self:
        """Refused: no other model is a simplified transformer.

        Raises:
            ValueError: always, naming :meth:`with_streams`.
        """
        raise ValueError(
            "a MemoryTransformer is made by MemoryTransformer(memory_config(...)); with_streams "
            "runs the weights of one with other streams"
        )


def sinusoids(n_ctx: int, d_model: int) -> Float[Tensor, "n_ctx d_model"]:
    """sin(t / 10000^(2i/d)) in dimension 2i, cos of the same in 2i + 1 (arXiv 1706.03762)."""
    places = torch.arange(n_ctx, dtype=torch.float64)[:, None]
    speeds = 10_000 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    waves = torch.empty(n_ctx, d_model, dtype=torch.float64)
    waves[:, 0::2] = (places * speeds).sin()
    waves[:, 1::2] = (places * speeds).cos()[:, : d_model // 2]
    return waves
