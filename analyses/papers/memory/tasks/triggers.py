"""Sequences of bigrams with triggers, whose next token only the context tells.

    z_1 ~ π_u,   z_{t+1} = output(z_t) if z_t is a trigger, else z_{t+1} ~ π_b(· | z_t)

Each sequence draws an output for each of its triggers. What follows a trigger is therefore unknown
at its first occurrence and certain from the second on: an induction head's task (Bietti et al.
2023, arXiv 2306.00802, section 3; arXiv 2412.11459).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from resval_lens.analyses.papers.memory.tasks.bigrams import Bigrams, tiny_shakespeare
from resval_lens.checks import check_whole, is_number

Triggers = Literal["fixed", "drawn"]
NeverOutput = Literal["none", "itself", "likeliest"]

_SHIPPED = "tiny-shakespeare"
# The furthest that a uniform number may come to 1: float64 still tells its sum with a row's number
# from the next row's, up to 2¹⁵ rows. Bigrams have at most 10,000.
_BELOW_ONE = 1 - 2**-38


class TriggerBatch(NamedTuple):
    """Sequences and everything known about them.

    Attributes:
        inputs: z_1 .. z_T.
        targets: z_2 .. z_{T+1}, the next tokens.
        occurrence: how often the trigger at a position has been there in its sequence, with this
            time (1, 2, ...); 0 where the token is no trigger.
        triggers: the triggers of each sequence, token ids.
        outputs: what follows each of them.
    """

    inputs: Int[Tensor, "batch pos"]
    targets: Int[Tensor, "batch pos"]
    occurrence: Int[Tensor, "batch pos"]
    triggers: Int[Tensor, "batch trigger"]
    outputs: Int[Tensor, "batch trigger"]

    @property
    def in_context(self) -> Bool[Tensor, "batch pos"]:
        """Where the context tells the next token: a trigger that was there before."""
        return self.occurrence >= 2


@dataclass(frozen=True)
class TriggerTask:
    """What a sequence looks like. The defaults are the training data of arXiv 2412.11459.

    Attributes:
        bigrams: π_u and π_b.
        length: T, input tokens; a sequence has T + 1.
        n_triggers: K, triggers of a sequence; 0 leaves plain bigrams.
        triggers: "fixed": the K most frequent of the candidates, in every sequence. "drawn": each
            sequence draws K of them one after the other ~ π_u, without replacement.
        candidates: token ids that can be triggers; None is all.
        output_range: (lo, hi); outputs are uniform over the token ids from ⌊lo·V⌋ to below ⌊hi·V⌋.
            For outputs never seen in training: (0, .75) there and (.75, 1) in the test.
        never_output: a token that is never a trigger's output, though it is in the range: "itself";
            or "likeliest", the token that most often follows it (of equals, the lowest id), so that
            context and bigrams contradict each other; or "none".

    Raises:
        ValueError: an impossible setting, named with its value.
    """

    bigrams: Bigrams
    length: int = 128
    n_triggers: int = 5
    triggers: Triggers = "fixed"
    candidates: tuple[int, ...] | None = None
    output_range: tuple[float, float] = (0.0, 1.0)
    never_output: NeverOutput = "none"

    def __post_init__(self) -> None:
        if not isinstance(self.bigrams, Bigrams):
            raise ValueError(f"bigrams must be Bigrams; got {type(self.bigrams).__name__}")
        v = self.bigrams.d_vocab
        for name, least in (("length", 1), ("n_triggers", 0)):
            check_whole(name, getattr(self, name), least)
        for name, words in (("triggers", Triggers), ("never_output", NeverOutput)):
            if getattr(self, name) not in get_args(words):
                expected = ", ".join(map(repr, get_args(words)))
                raise ValueError(f"{name} must be one of {expected}; got {getattr(self, name)!r}")
        if self.candidates is not None:
            if not isinstance(self.candidates, tuple | list | range):
                raise ValueError(
                    "candidates must be token ids in a tuple, or None; "
                    f"got {type(self.candidates).__name__}"
                )
            object.__setattr__(self, "candidates", tuple(self.candidates))
            for token in self.candidates:
                check_whole("candidates: a token id", token, 0)
                if token >= v:
                    raise ValueError(f"candidates: token id {token} must be below {v}, the tokens")
            if len(set(self.candidates)) < len(self.candidates):
                raise ValueError(f"candidates must be distinct; got {self.candidates}")
        able = len(self._able)
        if self.n_triggers > able:
            raise ValueError(
                f"n_triggers={self.n_triggers} must be at most {able}, the candidates"
                f"{' that ever occur' if self.triggers == 'drawn' else ''}"
            )
        if not _is_range(self.output_range):
            raise ValueError(
                f"output_range must be (lo, hi) with 0 <= lo < hi <= 1; got {self.output_range!r}"
            )
        object.__setattr__(self, "output_range", tuple(self.output_range))
        least = 1 if self.never_output == "none" else 2
        if len(self.output_tokens) < least:
            raise ValueError(
                f"output_range={self.output_range} holds {len(self.output_tokens)} of {v} tokens; "
                f"expected at least {least} with never_output={self.never_output!r}"
            )

    @property
    def output_tokens(self) -> range:
        """Token ids that outputs are drawn from."""
        # Rounded, as .29 · 100 is not quite 29 in binary.
        first, end = (math.floor(round(x * self.bigrams.d_vocab, 9)) for x in self.output_range)
        return range(first, end)

    @property
    def trigger_tokens(self) -> tuple[int, ...]:
        """Token ids that can be triggers: K if "fixed", else all candidates that ever occur."""
        if self.triggers == "drawn":
            return self._able if self.n_triggers else ()
        order = self.bigrams.most_frequent(self.bigrams.d_vocab).tolist()
        able = set(self._able)
        return tuple(token for token in order if token in able)[: self.n_triggers]

    @cached_property
    def _able(self) -> tuple[int, ...]:
        every = range(self.bigrams.d_vocab) if self.candidates is None else self.candidates
        if self.triggers == "fixed":
            return tuple(every)
        occurs = (self.bigrams.unigram_counts > 0).tolist()
        return tuple(token for token in every if occurs[token])

    def batch(self, size: int, generator: Generator, length: int | None = None) -> TriggerBatch:
        """``size`` sequences of ``length`` input tokens (by default the task's).

        On the CPU, as ``generator`` must be.

        Raises:
            ValueError: a size or length below 1.
        """
        check_whole("size", size, 1)
        length = self.length if length is None else length
        check_whole("length", length, 1)
        v, first, rows = self.bigrams.d_vocab, *self._cumulative
        triggers = self._draw_triggers(size, generator)
        outputs = self._draw_outputs(triggers, generator)
        output_of = torch.full((size, v), -1).scatter_(1, triggers, outputs).flatten()
        start = torch.arange(0, size * v, v)  # of each sequence's part of output_of
        uniform = torch.rand(length + 1, size, generator=generator, dtype=torch.float64)
        uniform.clamp_(max=_BELOW_ONE)
        z = torch.empty(length + 1, size, dtype=torch.int64)
        z[0] = torch.searchsorted(first, uniform[0], right=True)
        for t in range(length):
            drawn = torch.searchsorted(rows, z[t] + uniform[t + 1], right=True).sub_(z[t], alpha=v)
            given = output_of.take(start + z[t])
            torch.where(given < 0, drawn, given, out=z[t + 1])
        tokens = z.T.contiguous()
        inputs, targets = tokens[:, :-1].clone(), tokens[:, 1:].clone()
        return TriggerBatch(inputs, targets, occurrences(inputs, triggers), triggers, outputs)

    @cached_property
    def _cumulative(self) -> tuple[Tensor, Tensor]:
        """Σ_{v' ≤ v} π_u(v') [V], and u + Σ_{v' ≤ v} π_b(v' | u), all rows in one ascending [V·V].

        One search in the latter draws ~ π_b(· | u) for every sequence of a batch. Divided by its
        end, a row ends at exactly 1, so that no token of probability 0 is ever drawn.
        """
        first = self.bigrams.unigram.cumsum(0)
        rows = self.bigrams.conditional.cumsum(1)
        rows = rows / rows[:, -1:] + torch.arange(self.bigrams.d_vocab)[:, None]
        return first / first[-1], rows.flatten()

    def _draw_triggers(self, size: int, generator: Generator) -> Tensor:
        if self.triggers == "fixed" or not self.n_triggers:
            return torch.tensor(self.trigger_tokens, dtype=torch.int64).repeat(size, 1)
        weights = torch.zeros(self.bigrams.d_vocab, dtype=torch.float64)
        able = list(self._able)
        weights[able] = self.bigrams.unigram[able]
        return torch.multinomial(weights.expand(size, -1), self.n_triggers, generator=generator)

    def _draw_outputs(self, triggers: Tensor, generator: Generator) -> Tensor:
        never = self._never(triggers)
        uniform = torch.rand(triggers.shape, generator=generator, dtype=torch.float64)
        choices = self._n_outputs(triggers)
        drawn = self.output_tokens.start + (uniform * choices).long().minimum(choices - 1)
        # Ids from the one that is never an output on move up by one, into its place.
        return drawn + ((choices < len(self.output_tokens)) & (drawn >= never))

    def _never(self, tokens: Tensor) -> Tensor:
        """The token that is no output of each; −1 is none."""
        if self.never_output == "itself":
            return tokens
        if self.never_output == "likeliest":
            return self._likeliest[tokens]
        return torch.full_like(tokens, -1)

    @cached_property
    def _likeliest(self) -> Tensor:
        """What most often follows each token, [V]."""
        return self.bigrams.conditional.argmax(1)

    def _n_outputs(self, tokens: Tensor) -> Tensor:
        """How many outputs each could have."""
        possible, never = self.output_tokens, self._never(tokens)
        return len(possible) - ((never >= possible.start) & (never < possible.stop)).long()

    def to_dict(self) -> dict[str, Any]:
        """All settings for JSON; the shipped bigrams by their name, others in full."""
        shipped = self.bigrams == tiny_shakespeare()
        settings = {f.name: getattr(self, f.name) for f in fields(self)}
        return settings | {
            "bigrams": _SHIPPED if shipped else self.bigrams.to_dict(),
            "candidates": None if self.candidates is None else list(self.candidates),
            "output_range": list(self.output_range),
        }

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Self:
        """What :meth:`to_dict` gave; settings that are not there have their defaults.

        Raises:
            ValueError: a setting that there is not, no bigrams, or an impossible setting.
        """
        if not isinstance(settings, dict):
            raise ValueError(f"settings must be a dict; got {type(settings).__name__}")
        known = [f.name for f in fields(cls)]
        for name in settings:
            if name not in known:
                raise ValueError(f"{name!r} is not a setting; expected {', '.join(known)}")
        bigrams = settings.get("bigrams")
        if isinstance(bigrams, str) and bigrams != _SHIPPED:
            raise ValueError(f"bigrams must be {_SHIPPED!r} or written in full; got {bigrams!r}")
        made = tiny_shakespeare() if bigrams == _SHIPPED else Bigrams.from_dict(bigrams or {})
        return cls(**settings | {"bigrams": made})


def occurrences(
    tokens: Int[Tensor, "batch pos"], triggers: Int[Tensor, "batch trigger"]
) -> Int[Tensor, "batch pos"]:
    """How often the token at each position has been there, with this time, if it is one of the
    sequence's ``triggers``; else 0."""
    counts = torch.zeros_like(tokens)
    for trigger in triggers.unbind(1):
        here = tokens == trigger[:, None]
        counts += here.cumsum(1) * here
    return counts


def optimal_loss(task: TriggerTask, batch: TriggerBatch) -> Float[Tensor, "batch pos"]:
    """The loss, in nats, of the best predictor that knows the bigrams and the triggers, float64.

        −log π_b(z_{t+1} | z_t)   where z_t is no trigger
        log R                     at a trigger's first occurrence; R: the outputs it could have
        0                         from its second occurrence on

    Exact with fixed triggers: what came before a trigger's first occurrence says nothing about its
    output, so no model does better on average. With drawn triggers, which a model must also find
    out, a bound from below.
    """
    bigram = -task.bigrams.log_conditional(0.0)[batch.inputs, batch.targets]
    first = task._n_outputs(batch.inputs).double().log()
    loss = torch.where(batch.occurrence == 1, first, bigram)
    return loss.masked_fill(batch.in_context, 0.0)


def _is_range(given: Any) -> bool:
    if not isinstance(given, tuple | list) or len(given) != 2:
        return False
    numbers = all(is_number(x) for x in given)
    return numbers and 0 <= given[0] < given[1] <= 1
