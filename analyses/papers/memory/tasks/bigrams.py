"""Unigrams and bigrams: which tokens there are, how often each is and what follows it.

    π_u(v)      = how often v is / all tokens
    π_b(v | u)  = how often v follows u / how often anything follows u

The base of the sequences with triggers of arXiv 2412.11459 and of Bietti et al. 2023 (arXiv
2306.00802), which take them from the characters of Tiny Shakespeare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from resval_lens.io.files import DATA, read_bytes, read_json, write_json

By = Literal["characters", "words"]

_SHIPPED = DATA / "bigrams"
MOST_TOKENS = 10_000  # counts are dense: 8·V² bytes, .8 GB here
_WHAT = "unigram and bigram counts"


@dataclass(frozen=True, eq=False)
class Bigrams:
    """Tokens with their unigram and bigram counts; equal if all of these are.

    Attributes:
        tokens: V distinct texts; a token's id is its place among them.
        counts: [V, V]; counts[u, v] is how often v follows u.
        unigram_counts: how often each token is, [V].

    Counts are int64, or float64 where the bigrams were given as probabilities
    (:meth:`from_probabilities`).

    Raises:
        ValueError: no tokens, more than 10,000, one of them twice, counts of another shape or type,
            below 0 or not finite, or no token that is ever there.
    """

    tokens: tuple[str, ...]
    counts: Shaped[Tensor, "token token"] = field(repr=False)
    unigram_counts: Shaped[Tensor, " token"] = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(self.tokens))
        if not self.tokens:
            raise ValueError("tokens must hold at least one token; got none")
        _check_size(len(self.tokens))
        seen: set[str] = set()
        for token in self.tokens:
            if not isinstance(token, str) or token in seen:
                wrong = "is given twice" if isinstance(token, str) else "is not a text"
                raise ValueError(f"tokens must be distinct texts; {token!r} {wrong}")
            seen.add(token)
        v = len(self.tokens)
        for name, shape in (("counts", (v, v)), ("unigram_counts", (v,))):
            x = getattr(self, name)
            if not isinstance(x, Tensor) or tuple(x.shape) != shape:
                got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
                raise ValueError(f"{name} must be a tensor of shape {list(shape)}; got {got}")
            if x.dtype not in (torch.int64, torch.float64):
                raise ValueError(f"{name} must be int64 or float64; got {x.dtype}")
            wrong_numbers = x[~(x.isfinite() & (x >= 0))]
            if wrong_numbers.numel():
                raise ValueError(
                    f"{name} must be finite numbers from 0 up; got {wrong_numbers[0].item()}"
                )
        if not self.unigram_counts.any():
            raise ValueError("unigram_counts must not all be 0")

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Bigrams)
            and self.tokens == other.tokens
            and _same(self.counts, other.counts)
            and _same(self.unigram_counts, other.unigram_counts)
        )

    def __hash__(self) -> int:
        return hash((self.tokens, tuple(self.unigram_counts.tolist())))

    @classmethod
    def count(cls, text: str, by: By = "characters") -> Self:
        """The bigrams of a text; tokens are sorted.

        Args:
            by: "characters", or "words": what stands between white space.

        Raises:
            ValueError: a text without tokens or with more than 10,000 different ones, or another
                ``by``.
        """
        if by not in get_args(By):
            raise ValueError(f"by must be 'characters' or 'words'; got {by!r}")
        units: Sequence[str] = text if by == "characters" else text.split()
        tokens = sorted(set(units))
        if not 0 < len(tokens) <= MOST_TOKENS:
            raise ValueError(
                f"text must have 1 to {MOST_TOKENS:,} different {by}; got {len(tokens):,}"
            )
        v, index = len(tokens), {token: i for i, token in enumerate(tokens)}
        ids = torch.tensor([index[unit] for unit in units])
        counts = torch.bincount(ids[:-1] * v + ids[1:], minlength=v * v).view(v, v)
        return cls(tuple(tokens), counts, torch.bincount(ids, minlength=v))

    @classmethod
    def count_file(cls, path: str | Path, by: By = "characters") -> Self:
        """The bigrams of a text file (UTF-8; any line end is read as one newline).

        Raises:
            ValueError: as :meth:`count`; a file that is missing or not UTF-8. The line names it.
        """
        try:
            text = read_bytes(Path(path), "a text file in UTF-8").decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not a text file in UTF-8 ({error})") from None
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        try:
            return cls.count(text, by)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_probabilities(
        cls,
        tokens: Sequence[str],
        unigram: Float[Tensor, " token"],
        conditional: Float[Tensor, "token token"],
    ) -> Self:
        """Bigrams with the given π_u [V] and π_b [V, V] (conditional[u, v] = π_b(v | u)).

        Raises:
            ValueError: a distribution that is no tensor or does not sum to 1 (within 1e-6), or as
                the class.
        """
        for name, given in (("unigram", unigram), ("conditional", conditional)):
            if not isinstance(given, Tensor):
                raise ValueError(f"{name} must be a tensor; got {type(given).__name__}")
        made = cls(tuple(tokens), conditional.double(), unigram.double())
        for name, rows in (("unigram", made.unigram_counts[None]), ("conditional", made.counts)):
            sums = rows.sum(1)
            off = ((sums - 1).abs() > 1e-6).nonzero()
            if len(off):
                i = int(off[0])
                which = f" of {made.tokens[i]!r}" if name == "conditional" else ""
                raise ValueError(f"{name}{which} must sum to 1; got {float(sums[i]):.6g}")
        return made

    @property
    def d_vocab(self) -> int:
        """V."""
        return len(self.tokens)

    @property
    def n_bigrams(self) -> int:
        """Distinct bigrams: pairs u, v such that v ever follows u."""
        return int(self.counts.count_nonzero())

    @property
    def unigram(self) -> Float[Tensor, " token"]:
        """π_u, [V], float64."""
        counts = self.unigram_counts.double()
        return counts / counts.sum()

    @property
    def conditional(self) -> Float[Tensor, "token token"]:
        """π_b, [V, V], float64: [u, v] is π_b(v | u); each row sums to 1.

        Where nothing ever follows u (the last token of a text, if it is there only once), the row
        is π_u.
        """
        counts = self.counts.double()
        followed = counts.sum(1, keepdim=True)
        rows = counts / followed.where(followed > 0, 1.0)
        return rows.where(followed > 0, self.unigram)

    def log_conditional(self, floor: float) -> Float[Tensor, "token token"]:
        """log max(π_b(v | u), floor) at [u, v], in nats, float64.

        Args:
            floor: a probability; 0 leaves −∞ where v never follows u.

        Raises:
            ValueError: a floor outside 0 to 1.
        """
        if not 0 <= floor <= 1:
            raise ValueError(f"floor must be a probability, from 0 to 1; got {floor!r}")
        return self.conditional.clamp_min(floor).log()

    @property
    def entropy(self) -> float:
        """−Σ_v π_u(v) log π_u(v), in nats."""
        return float(-torch.xlogy(self.unigram, self.unigram).sum())

    @property
    def conditional_entropy(self) -> float:
        """−Σ_u π_u(u) Σ_v π_b(v | u) log π_b(v | u), in nats."""
        rows = self.conditional
        return float(-(self.unigram @ torch.xlogy(rows, rows).sum(1)))

    def most_frequent(self, k: int) -> Int[Tensor, " k"]:
        """Ids of the k most frequent tokens, the commonest first; of equals, the lower id first.

        Raises:
            ValueError: k is no whole number from 0 to V.
        """
        if not isinstance(k, int) or isinstance(k, bool) or not 0 <= k <= self.d_vocab:
            raise ValueError(f"k must be from 0 to {self.d_vocab}, the tokens; got {k!r}")
        return self.unigram_counts.argsort(descending=True, stable=True)[:k]

    def to_dict(self) -> dict[str, Any]:
        """All of it for JSON: ``tokens``, ``unigram_counts`` and ``counts`` as {u: {v: count}},
        without zeros."""
        u, v = self.counts.nonzero(as_tuple=True)
        rows: dict[str, dict[str, float]] = {}
        for i, j, count in zip(u.tolist(), v.tolist(), self.counts[u, v].tolist(), strict=True):
            rows.setdefault(self.tokens[i], {})[self.tokens[j]] = count
        return {
            "tokens": list(self.tokens),
            "unigram_counts": self.unigram_counts.tolist(),
            "counts": rows,
        }

    @classmethod
    def from_dict(cls, content: Any) -> Self:
        """What :meth:`to_dict` gave.

        Raises:
            ValueError: something else, or as the class.
        """
        keys = ["tokens", "unigram_counts", "counts"]
        if not isinstance(content, Mapping) or sorted(content) != sorted(keys):
            got = list(content) if isinstance(content, Mapping) else type(content).__name__
            raise ValueError(f"{_WHAT} must have the keys {keys}; got {got}")
        tokens, unigram, rows = (content[key] for key in keys)
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise ValueError("tokens must be a list of texts")
        _check_size(len(tokens))
        if not isinstance(unigram, list):
            raise ValueError(f"unigram_counts must be a list; got {type(unigram).__name__}")
        if not isinstance(rows, Mapping):
            raise ValueError(f"counts must be {{u: {{v: count}}}}; got {type(rows).__name__}")
        index = {token: i for i, token in enumerate(tokens)}
        places: list[tuple[int, int]] = []
        numbers: list[Any] = []
        for u, row in rows.items():
            if not isinstance(row, Mapping):
                raise ValueError(f"counts of {u!r} must be {{v: count}}; got {type(row).__name__}")
            for token in (u, *row):
                if token not in index:
                    raise ValueError(f"counts: {token!r} is not among the tokens")
            places += [(index[u], index[v]) for v in row]
            numbers += row.values()
        found = _numbers("counts", numbers)
        counts = torch.zeros(len(tokens), len(tokens), dtype=found.dtype)
        if places:
            counts[tuple(torch.tensor(places).T)] = found
        return cls(tuple(tokens), counts, _numbers("unigram_counts", unigram))

    def save(self, path: str | Path) -> None:
        """Writes :meth:`to_dict` to ``path`` as JSON, whole or not at all."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """What :meth:`save` wrote.

        Raises:
            ValueError: the file is missing or holds something else; the line names it.
        """
        content = read_json(Path(path), _WHAT)
        try:
            return cls.from_dict(content)
        except ValueError as error:
            raise ValueError(f"{path} is not {_WHAT}: {error}") from None


def tiny_shakespeare() -> Bigrams:
    """The characters of Tiny Shakespeare (1,115,394 of them), in sorted order.

    65 tokens, 1,403 distinct bigrams; entropy 3.313 nats, conditional entropy 2.453 nats. The base
    distribution of arXiv 2412.11459 and 2306.00802.
    """
    return Bigrams.load(_SHIPPED / "tiny-shakespeare.json")


def _check_size(v: int) -> None:
    if v > MOST_TOKENS:
        raise ValueError(f"tokens must be at most {MOST_TOKENS:,}, as counts are dense; got {v:,}")


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.equal(b)


def _numbers(name: str, values: list[Any]) -> Tensor:
    """int64 if all of them are whole, else float64."""
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < 2**63:  # NaN is neither
            raise ValueError(f"{name} must be finite numbers from 0 up; got {value!r}")
    whole = all(isinstance(value, int) for value in values)
    return torch.tensor(values, dtype=torch.int64 if whole else torch.float64)
