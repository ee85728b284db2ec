"""The two-layer in-context classifier and its task in plain PyTorch, as one would write it by hand.

Only the last token is read out, so layer 2 asks for it alone: one query, all keys and values, and
the MLP on one token.

Source: arXiv 2412.15113 section 3.2, Reddy 2024 arXiv 2312.03002; settings of the public code.
"""

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

K, L, N = 512, 32, 8  # classes, labels, object-label pairs
B, P_B, P_C, N_FRESH = 2, 0.5, 0.5, 128  # copies, share bursty, share fresh, fresh classes
EPS, D, N_POSITIONS = 0.1, 85, 65  # object noise, content dims, position dims
D_MODEL = N_POSITIONS + D
BATCH, LR, DECAY = 128, 0.01, 1e-6


class Tables(NamedTuple):
    """The vectors of the task, fixed for a run."""

    mu_class: Tensor  # [K, D]
    mu_label: Tensor  # [L, D]


def make_tables(generator: torch.Generator) -> Tables:
    """Class means and label vectors, N(0, 1/D)."""
    return Tables(_normal(generator, K, D) / D**0.5, _normal(generator, L, D) / D**0.5)


def make_batch(generator: torch.Generator, tables: Tables, batch: int) -> tuple[Tensor, Tensor]:
    """Sequences [batch, 2N+1, D_MODEL] and their labels [batch].

    Class c has label c mod L, the fresh classes, numbered from K on, too. All sequences of a batch
    share its fresh classes.
    """
    fresh = _uniform(generator, batch) < P_C
    bursty = fresh | (_uniform(generator, batch) < P_B)

    # Bursty: N/B distinct labels, for each a class that has it, B copies, shuffled.
    labels = _uniform(generator, batch, L).topk(N // B).indices  # [batch, N/B]
    n_per_label = torch.where(fresh, N_FRESH // L, K // L)[:, None]
    classes = labels + L * (_uniform(generator, batch, N // B) * n_per_label).long()
    order = _uniform(generator, batch, N).argsort()
    context = classes.repeat(1, B).gather(1, order)  # [batch, N]
    query = classes.gather(1, _integers(generator, N // B, batch, 1))  # [batch, 1]
    drawn = torch.cat([context, query], 1) + K * fresh[:, None]

    independent = _integers(generator, K, batch, N + 1)
    classes = torch.where(bursty[:, None], drawn, independent)  # [batch, N+1]

    means = torch.cat([tables.mu_class, _normal(generator, N_FRESH, D) / D**0.5])
    noise = _normal(generator, batch, N + 1, D) / D**0.5
    shift = _integers(generator, N_POSITIONS - 2 * N, batch, 1)
    x = torch.zeros(batch, 2 * N + 1, D_MODEL)
    x.scatter_(2, (shift + torch.arange(2 * N + 1))[..., None], 1.0)
    x[:, 0::2, N_POSITIONS:] = (means[classes] + EPS * noise) / (1 + EPS**2) ** 0.5
    x[:, 1::2, N_POSITIONS:] = tables.mu_label[classes[:, :-1] % L]
    return x, classes[:, -1] % L


def init(generator: torch.Generator) -> list[Tensor]:
    """q1, k1, v1, q2, k2, v2, w1, b1, w2, b2, w3, b3, readout, matrices [out, in]."""
    params = [_normal(generator, D_MODEL, D_MODEL) / D**0.5 for _ in range(6)]
    for _ in range(3):
        params.append(_normal(generator, D_MODEL, D_MODEL) * (2 / D_MODEL) ** 0.5)
        params.append(_normal(generator, 1) * (1 / D_MODEL) ** 0.5)
    params.append(_normal(generator, L, D_MODEL) / D_MODEL**0.5)
    return [param.requires_grad_() for param in params]


def logits(params: list[Tensor], x: Tensor, stream: str) -> Tensor:
    """Logits [batch, L] of the last token of x [batch, position, D_MODEL].

    stream: any combination of "q", "k" and "v"; layer 2 adds layer 1's tensor of each.
    """
    q1, k1, v1, q2, k2, v2, w1, b1, w2, b2, w3, b3, readout = params

    q, k, v = x @ q1.T, x @ k1.T, x @ v1.T  # [batch, position, D_MODEL]
    later = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)  # [query, key]
    pattern = torch.softmax(q @ k.transpose(1, 2) + later, -1)  # not scaled by 1/sqrt(d)
    x = x + pattern @ v

    last = x[:, -1:]  # [batch, 1, D_MODEL]
    q_last = last @ q2.T + (q[:, -1:] if "q" in stream else 0)
    k = x @ k2.T + (k if "k" in stream else 0)
    v = x @ v2.T + (v if "v" in stream else 0)
    pattern = torch.softmax(q_last @ k.transpose(1, 2), -1)  # [batch, 1, key]
    x = (last + pattern @ v)[:, 0]  # [batch, D_MODEL]

    for w, b in ((w1, b1), (w2, b2), (w3, b3)):
        x = torch.relu(x @ w.T + b)
    return x @ readout.T


def losses(steps: int, stream: str, seed: int) -> Iterator[Tensor]:
    """Train, yielding the loss of each step: SGD, each weight times (1 - DECAY) a step."""
    generator = torch.Generator().manual_seed(seed)
    tables, params = make_tables(generator), init(generator)
    optimizer = torch.optim.SGD(params, lr=LR, weight_decay=DECAY / LR)
    for _ in range(steps):
        x, y = make_batch(generator, tables, BATCH)
        loss = F.cross_entropy(logits(params, x, stream), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.detach()


def train(steps: int, stream: str, seed: int) -> float:
    """Seconds per step, batch generation included, after one warm-up step."""
    run = losses(steps + 1, stream, seed)
    next(run)
    start = time.perf_counter()
    for _ in run:
        pass
    return (time.perf_counter() - start) / steps


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator)


def _integers(generator: torch.Generator, high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape, generator=generator)
