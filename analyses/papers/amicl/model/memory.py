"""AMICL as a hooked module: an associative memory that answers in one layer.

    k_i = q_i = (a·x_{i−1} + x_i) / (a + 1),  v_i = x_i
    output = Σ_j SEPARATION(SIMILARITY(K, q))_j · v_j

Source: arXiv 2412.15113, section 2.2 (similarity, separation and projection are those of Millidge
et al. 2022, arXiv 2202.04557).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from resval_lens.checks import check_floats, check_whole, is_number
from resval_lens.lens.norm import unshared

Similarity = Literal["dot", "pearson", "manhattan", "euclidean"]
Separation = Literal["identity", "softmax", "argmax"]
Reading = Literal["paper", "notebook"]
Distances = Literal["negated", "raw"]

SIMILARITIES: tuple[Similarity, ...] = get_args(Similarity)
SEPARATIONS: tuple[Separation, ...] = get_args(Separation)
READINGS: tuple[Reading, ...] = get_args(Reading)


@dataclass(frozen=True)
class AMICLConfig:
    """One memory. The defaults are the paper's choice.

    Attributes:
        a: weight of the previous token in keys and queries; any number but −1.
        similarity: ``dot`` Σ_d k_d q_d; ``pearson`` the correlation of k and q over dimensions, 0
            where one of them is constant; ``manhattan`` −Σ_d |k_d − q_d|; ``euclidean`` −‖k − q‖.
        separation: ``identity``; ``softmax`` of similarity/temperature over the keys; ``argmax``,
            one-hot at the most similar key, the first of several.
        temperature: of ``softmax``, above 0.
        reading: what the last key is. ``paper`` (its text): k_s = 0. ``notebook`` (the authors'
            code): k_s ~ N(0, 1/d), drawn fresh for each sequence.
        distances: the sign of ``manhattan`` and ``euclidean``: ``negated``, as above, or ``raw``,
            so that what is far counts as similar. By default what the reading does: the paper
            calls them similarities, the notebook takes raw distances.
        reach: how many tokens back the previous token lies; x_{i−reach} in place of x_{i−1}.

    Raises:
        ValueError: an impossible setting, named with its value.
    """

    a: float = 2.0
    similarity: Similarity = "dot"
    separation: Separation = "argmax"
    temperature: float = 1.0
    reading: Reading = "paper"
    distances: Distances | None = None
    reach: int = 1

    def __post_init__(self) -> None:
        if not is_number(self.a) or not math.isfinite(self.a) or self.a == -1:
            raise ValueError(f"a must be a finite number other than -1; got {self.a!r}")
        if not is_number(self.temperature) or not 0 < self.temperature < math.inf:
            raise ValueError(
                f"temperature must be a finite number above 0; got {self.temperature!r}"
            )
        for name, known in (
            ("similarity", SIMILARITIES),
            ("separation", SEPARATIONS),
            ("reading", READINGS),
            ("distances", (None, *get_args(Distances))),
        ):
            if getattr(self, name) not in known:
                expected = ", ".join(str(each) for each in known)
                raise ValueError(f"{name} must be one of {expected}; got {getattr(self, name)!r}")
        check_whole("reach", self.reach, 1)

    @property
    def sign(self) -> int:
        """−1 where distances are negated, else 1."""
        distances = self.distances or ("negated" if self.reading == "paper" else "raw")
        return -1 if distances == "negated" else 1

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON."""
        return asdict(self)


class AMICL(HookedRootModule):
    """The memory; hooks, cache and patching as in any TransformerLens model.

    Tokens x [batch, pos, d] in, what is recalled [batch, d_out] out. With s tokens,

        q_i = (a·x_{i−1} + x_i) / (a + 1)      token 0 is token s: indices wrap
        k_i = q_i for i < s, k_s as the reading says
        v_i = x_i, or x_i W_V
        out = Σ_j pattern_j · v_j              of the last query, or of all

    Hook points, with one query or as many as tokens: ``hook_embed`` [batch, pos, d], ``hook_q``
    [batch, query, d], ``hook_k`` [batch, pos, d], ``hook_v`` [batch, pos, d_out],
    ``hook_attn_scores`` (the similarity) and ``hook_pattern`` (the separation)
    [batch, query, pos], ``hook_out`` [batch, query, d_out].

    Args:
        value_map: W_V [d, d_out] for hetero-association, a parameter named ``W_V``; without it
            values are the tokens themselves (auto-association).

    Raises:
        ValueError: a ``value_map`` that is no matrix of floating-point numbers.

    >>> AMICL()(torch.zeros(4, 20, 100)).shape
    torch.Size([4, 100])
    """

    def __init__(
        self, cfg: AMICLConfig | None = None, value_map: Float[Tensor, "d d_out"] | None = None
    ) -> None:
        if value_map is not None:
            check_floats("value_map", value_map, "d d_out")
        super().__init__()
        self.cfg = cfg or AMICLConfig()
        self.W_V = None if value_map is None else nn.Parameter(value_map.detach().clone())
        self.hook_embed = HookPoint()
        self.hook_q = HookPoint()
        self.hook_k = HookPoint()
        self.hook_v = HookPoint()
        self.hook_attn_scores = HookPoint()
        self.hook_pattern = HookPoint()
        self.hook_out = HookPoint()
        self.setup()

    def forward(
        self,
        x: Float[Tensor, "batch pos d"],
        queries: Literal["last", "all"] = "last",
        last_key: Float[Tensor, "*batch d"] | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, "batch *query d_out"]:
        """What is recalled for the last token, or for every one.

        Args:
            last_key: k_s, in place of what the reading says; one for all sequences or one each,
                of x's dtype.
            generator: draws the last keys of the reading ``notebook``.

        Raises:
            ValueError: an x of another shape or not of floating-point numbers; too few tokens for
                the reach; a value map or a ``last_key`` of another d or dtype than x; ``queries``
                unknown; no ``last_key`` or ``generator`` where the last key is drawn.
        """
        self._check(x, last_key)
        length = x.shape[1]
        if length <= self.cfg.reach:
            raise ValueError(
                f"x has {length} tokens; reach={self.cfg.reach} needs at least {self.cfg.reach + 1}"
            )
        if queries not in ("last", "all"):
            raise ValueError(f"queries must be 'last' or 'all'; got {queries!r}")
        x = self.hook_embed(unshared(x, self.hook_embed))
        mixed = self._mixed(x)
        last = self._last_key(x, last_key, generator)
        q = self.hook_q(unshared(mixed if queries == "all" else mixed[:, -1:], self.hook_q))
        k = self.hook_k(torch.cat([mixed[:, :-1], last[:, None]], dim=1))
        v = self.hook_v(unshared(x, self.hook_v) if self.W_V is None else x @ self.W_V)
        scores = self.hook_attn_scores(self._similarity(k, q))
        pattern = self.hook_pattern(unshared(self._separation(scores), self.hook_pattern))
        out = self.hook_out(pattern @ v)
        return out if queries == "all" else out[:, 0]

    def _check(self, x: Any, last_key: Any) -> None:
        check_floats("x", x, "batch pos d")
        batch, _, d = x.shape
        if self.W_V is not None and (len(self.W_V) != d or self.W_V.dtype != x.dtype):
            raise ValueError(
                f"value_map is {self.W_V.dtype} {list(self.W_V.shape)}; x, {x.dtype} with d={d}, "
                f"needs {x.dtype} [{d}, d_out]"
            )
        if last_key is None:
            return
        one_each = isinstance(last_key, Tensor) and last_key.ndim == 2
        check_floats("last_key", last_key, "batch d" if one_each else "d", x.dtype)
        if last_key.shape[-1] != d or (one_each and len(last_key) != batch):
            raise ValueError(
                f"last_key must be [{d}] or [{batch}, {d}]; got {list(last_key.shape)}"
            )

    def _mixed(self, x: Tensor) -> Tensor:
        return torch.lerp(x, x.roll(self.cfg.reach, dims=1), self.cfg.a / (self.cfg.a + 1))

    def _last_key(self, x: Tensor, given: Tensor | None, generator: Generator | None) -> Tensor:
        batch, _, d = x.shape
        if given is not None:
            return given.to(x.device).expand(batch, d)
        if self.cfg.reading == "paper":
            return x.new_zeros(batch, d)
        if generator is None:
            raise ValueError(
                "reading='notebook' draws its last key: expected a generator or a last_key"
            )
        drawn = torch.randn(
            batch, d, generator=generator, dtype=x.dtype, device=generator.device
        ).mul_(d**-0.5)
        return drawn.to(x.device)

    def _similarity(self, k: Tensor, q: Tensor) -> Tensor:
        """[batch, query, pos]"""
        match self.cfg.similarity:
            case "dot":
                return q @ k.mT
            case "pearson":
                return _correlation(q, k)
            case "manhattan":
                return self.cfg.sign * torch.cdist(q, k, p=1)
            case "euclidean":
                exact = "donot_use_mm_for_euclid_dist"
                return self.cfg.sign * torch.cdist(q, k, p=2, compute_mode=exact)

    def _separation(self, scores: Tensor) -> Tensor:
        match self.cfg.separation:
            case "identity":
                return scores
            case "softmax":
                return (scores / self.cfg.temperature).softmax(-1)
            case "argmax":
                return F.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype)


def _correlation(q: Tensor, k: Tensor) -> Tensor:
    """[batch, query, pos]; 0 where all entries of a vector are equal."""
    # What rounding leaves of a constant vector must not count, nor its length be divided by.
    flat = [x.amax(-1) == x.amin(-1) for x in (q, k)]
    centred = [x - x.mean(-1, keepdim=True) for x in (q, k)]
    lengths = [x.norm(dim=-1).masked_fill(y, 1.0) for x, y in zip(centred, flat, strict=True)]
    products = centred[0] @ centred[1].mT / (lengths[0][..., None] * lengths[1][..., None, :])
    return products.masked_fill(flat[0][..., None] | flat[1][..., None, :], 0.0)


def fit_value_map(
    recalled: Float[Tensor, "example d"],
    targets: Float[Tensor, "example d_out"],
    ridge: float = 1e-3,
) -> Float[Tensor, "d d_out"]:
    """W_V = (RᵀR + λ·n·I)⁻¹ RᵀT: the linear map from what is recalled to what should be.

    Ridge regression on n examples, R what a memory without value map recalled and T the targets;
    with λ = ``ridge`` relative to an example. The values of hetero-association (Millidge et al.
    2022), learned from examples.

    Raises:
        ValueError: no matrices of floating-point numbers of one dtype; no examples, or numbers of
            them that differ; a ``ridge`` that is not a finite number from 0 up; without a ridge, a
            rank of R below d, with which W_V is not determined.
    """
    check_floats("recalled", recalled, "example d")
    check_floats("targets", targets, "example d_out", recalled.dtype)
    if len(recalled) != len(targets):
        raise ValueError(
            f"recalled holds {len(recalled)} examples and targets {len(targets)}; "
            "expected as many of each"
        )
    if not len(recalled):
        raise ValueError("recalled holds 0 examples; expected at least 1")
    if not is_number(ridge) or not 0 <= ridge < math.inf:
        raise ValueError(f"ridge must be a finite number from 0 up; got {ridge!r}")
    d = recalled.shape[1]
    if not ridge and (rank := int(torch.linalg.matrix_rank(recalled))) < d:
        raise ValueError(f"recalled has rank {rank}, below d={d}: ridge must be above 0; got 0")
    gram = recalled.T @ recalled
    gram.diagonal().add_(ridge * len(recalled))
    return torch.linalg.solve(gram, recalled.T @ targets)
