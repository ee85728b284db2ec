"""What one gradient step writes into each matrix of an induction head, starting from zero.

From W_O² = W_K² = W_K¹ = 0 one step each, in this order, on sequences whose last token is a trigger
seen before (:class:`~resval_lens.analyses.papers.memory.model.one_step_task.RecallTask`). A
gradient is a sum of outer
products of embeddings: an associative memory, read here as its coefficients.

    W_O² = Σ c[v, v'] v(w_E(v'))ᵀ w_U(v)     W_K² = Σ c[k, k'] (Φ w_E(k))ᵀ w_E(k')
    W_K¹ = Σ c[s, t] p_sᵀ p_t   (absolute)   W_K¹ = Σ c[i, k] r_{−i}ᵀ w_E(k)   (relative)

Row vectors; Φ = W_V¹ W_O¹; v(·) is layer 1's value of a token, with what a value stream brings.
Source: arXiv 2306.00802, section 5 (absolute positions); arXiv 2412.11459, section 4.1 (relative).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from resval_lens.analyses.papers.memory.model.association import (
    check_induction_model,
    duals,
    value_weights,
)
from resval_lens.analyses.papers.memory.model.model import MemoryAttention, MemoryTransformer
from resval_lens.analyses.papers.memory.model.one_step_task import RecallBatch, RecallTask

Matrix = Literal["W_O2", "W_K2", "W_K1"]
"""The matrices, in the order in which steps are taken."""

Rates = tuple[float, float, float]


@dataclass(frozen=True)
class OneStep:
    """What three single steps wrote.

    Attributes:
        losses: mean −log p(o) before each step and after the last, in nats.
        gradients: ∂L/∂W of each matrix at its step.
        coefficients: of −η ∂L/∂W as an associative memory: W_O2 [v, v'] and W_K2 [k, k'], of
            d_vocab × d_vocab; W_K1 [s, t] of n_ctx × n_ctx (absolute) or [i, k] of n_ctx × d_vocab
            (relative).
    """

    losses: tuple[float, float, float, float]
    gradients: dict[str, Float[Tensor, "d d"]]
    coefficients: dict[str, Float[Tensor, "_ _"]]


def one_step(
    model: MemoryTransformer,
    batch: RecallBatch,
    rates: Rates = (1.0, 1.0, 1.0),
    *,
    log_bigrams: Float[Tensor, "d_vocab d_vocab"] | None = None,
    only_memories: bool = False,
    exact: bool = False,
    chunk: int = 256,
) -> OneStep:
    """Writes W ← −η ∂L/∂W into W_O², then W_K², then W_K¹ of ``model``, each zero before its step.

    L = −Σ_b weight_b log p(targets_b | z_1 .. z_T), gradients by autograd through the whole model.

    Args:
        rates: η of W_O², W_K² and W_K¹.
        log_bigrams: log π_b(v|u) at [u, v], in nats: global knowledge, written into W_F first as
            Σ log π_b(v|u) w_E'(u)ᵀ w_U'(v). Without it W_F = 0.
        only_memories: of each step keep only the associations of the module's docstring. What a
            whole gradient also writes, such as W_O²'s answer to Φ w_E(k), later steps build on.
        exact: take coefficients by dual vectors, as :func:`coefficients` does.
        chunk: sequences that are run at a time.

    Raises:
        ValueError: a model of other than two layers, of positions that no memory of this kind
            holds, with streams of queries or keys or learned mixing; a frozen matrix;
            log-probabilities that are not finite; rates that are not three finite numbers; too few
            dimensions for ``exact``.
    """
    if len(rates) != 3 or not all(math.isfinite(rate) for rate in rates):
        raise ValueError(f"rates must be three finite numbers; got {rates}")
    if log_bigrams is not None and not log_bigrams.isfinite().all():
        raise ValueError("log_bigrams must be finite; give unseen bigrams a smallest probability")
    names = get_args(Matrix)
    memories = {name: _memory(model, name, exact) for name in names}
    for name in names:
        if not _matrix(model, name).requires_grad:
            raise ValueError(f"{name} is frozen, and a step is to be taken on it")
    with torch.no_grad():
        for name in names:
            _matrix(model, name).zero_()
        W_F = model.feed_forward.W_F.zero_()
        if log_bigrams is not None:
            knows, says = memories["W_K2"].written_duals, memories["W_O2"].written_duals
            W_F.copy_(knows.T @ log_bigrams.to(W_F) @ says)
    losses, gradients, written = [], {}, {}
    for name, rate in zip(names, rates, strict=True):
        W, memory = _matrix(model, name), memories[name]
        loss, gradients[name] = _loss_and_gradient(model, batch, W, chunk)
        losses.append(loss)
        step = -rate * gradients[name]
        found = memory.read_duals @ step @ memory.written_duals.T
        with torch.no_grad():
            W[0] = memory.read.T @ found @ memory.written if only_memories else step
        written[name] = found.T if name == "W_O2" else found
    losses.append(_loss_and_gradient(model, batch, None, chunk)[0])
    before_o2, before_k2, before_k1, after = losses
    return OneStep((before_o2, before_k2, before_k1, after), gradients, written)


@torch.inference_mode(False)
def _loss_and_gradient(
    model: MemoryTransformer, batch: RecallBatch, W: Tensor | None, chunk: int
) -> tuple[float, Tensor]:
    """L and ∂L/∂W [d, d]; an empty tensor without ``W``."""
    total, gradient = 0.0, torch.zeros(0)
    for rows in torch.arange(len(batch.tokens)).split(chunk):
        tokens, last = batch.tokens[rows], batch.last[rows]
        with torch.set_grad_enabled(W is not None):
            logits = model(tokens)[torch.arange(len(rows)), last]
            losses = cross_entropy(logits, batch.targets[rows], reduction="none")
            loss = (batch.weights[rows].to(losses) * losses).sum()
        total += float(loss.detach())
        if W is not None:
            (part,) = torch.autograd.grad(loss, W)
            gradient = part[0] if not gradient.numel() else gradient + part[0]
    return total, gradient


@torch.no_grad()
def coefficients(
    model: MemoryTransformer, name: Matrix, *, exact: bool = False
) -> Float[Tensor, "_ _"]:
    """c[i, j] = u_i' W v_j'ᵀ: how much of each association u_iᵀ v_j is in a model's matrix.

    The associations are those of the module's docstring, W_O²'s with indices exchanged: [v, v'] is
    what is said, then what is read. Dividing by squared lengths alone, u' = u/|u|², leaves
    crosstalk of order 1/√d_model.

    Args:
        exact: u' are duals among all vectors that the matrix can meet, so that no others count.

    Raises:
        ValueError: a name other than W_O2, W_K2 and W_K1, a model that :func:`one_step` refuses,
            too few dimensions for ``exact``.
    """
    memory = _memory(model, name, exact)
    found = memory.read_duals @ _matrix(model, name)[0] @ memory.written_duals.T
    return found.T if name == "W_O2" else found


@torch.no_grad()
def answers(model: MemoryTransformer, name: Matrix) -> Float[Tensor, "_ _"]:
    """u_i W v_jᵀ (W_K: divided by √d_model): what a matrix adds to a logit or score, in nats.

    Of an exact :func:`~resval_lens.analyses.papers.memory.model.construct.construct` τ at its
    associations, else 0; shape and indices as in :func:`coefficients`.

    Raises:
        ValueError: as :func:`coefficients`.
    """
    memory = _memory(model, name, exact=False)
    found = memory.read @ _matrix(model, name)[0] @ memory.written.T
    return found.T if name == "W_O2" else found / float(model.blocks[0].attn.attn_scale)


@torch.no_grad()
def orthonormal(model: MemoryTransformer, generator: Generator | None = None) -> MemoryTransformer:
    """Redraws what is frozen so that all vectors are orthonormal: memories without crosstalk.

    Token and position embeddings, Φ of each, their values, what a value stream adds to these, and
    W_U's columns: the limit of many dimensions, in few. The model itself is returned.

    Args:
        generator: draws two rotations, of residual stream and head; without it all vectors lie on
            axes, where products of different ones are 0 without rounding.

    Raises:
        ValueError: positions other than absolute and relative, a model that :func:`one_step`
            refuses, fewer dimensions than vectors.
    """
    cfg = model.cfg
    check_induction_model(model)
    if cfg.positions == "sinusoidal":
        raise ValueError("positions='sinusoidal' are not drawn; expected absolute or relative")
    first, second = model.blocks[0].attn, model.blocks[1].attn
    n = cfg.d_vocab + (cfg.n_ctx if cfg.in_the_stream else 0)
    linked = 2 * n if cfg.streams else 0  # where in head space layer 0's values begin
    needed = max(2 * n + cfg.d_vocab, linked + n, cfg.d_vocab + cfg.n_ctx)
    if needed > cfg.d_model:
        raise ValueError(f"orthonormal vectors need {needed} dimensions; d_model={cfg.d_model}")

    def turned() -> Tensor:
        if generator is None:
            return torch.eye(cfg.d_model).to(model.embed.W_E)
        square = torch.randn(cfg.d_model, cfg.d_model, generator=generator, dtype=torch.float64)
        return torch.linalg.qr(square).Q.to(model.embed.W_E)

    residual, head = turned(), turned()
    model.embed.W_E.copy_(residual[: cfg.d_vocab])
    if cfg.in_the_stream:
        model.pos_embed.W_pos.copy_(residual[cfg.d_vocab : n])
    else:
        assert isinstance(first, MemoryAttention)
        first.W_R.copy_(residual[cfg.d_vocab : cfg.d_vocab + cfg.n_ctx])  # in keys only
    first.W_V[0] = residual[:n].T @ head[linked : linked + n]
    first.W_O[0] = head[linked : linked + n].T @ residual[n : 2 * n]
    second.W_V[0] = residual[: 2 * n].T @ head[: 2 * n]
    model.unembed.W_U.copy_(residual[2 * n : 2 * n + cfg.d_vocab].T)
    return model


def predicted_steps(
    task: RecallTask,
    d_model: int,
    rates: Rates = (1.0, 1.0, 1.0),
    *,
    relative: bool = False,
    value_norm: float = 1.0,
) -> dict[str, Float[Tensor, "_ _"]]:
    """Coefficients that ``one_step(..., only_memories=True)`` writes into an orthonormal model.

    With E over (T, t_o), ρ = 1/(V − 1), f = (1 + (T − 3) ρ)/T the mean share of o in a sequence;
    of position s: o_s = P(z_s = o): 1 at t_o, 0 at t_o − 1 and T, ρ elsewhere, and n_s how many
    of z_1 .. z_s are q:

        W_O²  η1 A (1[v = v'] − 1/V),               A = ((V − 4) E[1/T] + 1/V) / (V − 1)²
        W_K²  κ (1[k = k'] − 1/V),    κ = η2 η1 n A B/√d,  B = E[Σ_s (o_s − f) n_s/s / T] / (V − 1)
        W_K¹  η3 η1 n A κ/d · E[1[r ≤ s ≤ T] (o_s − f) (1[z_r = q] − n_s/s) / (s T)]   at [r, s]
        W_K¹  the sum over s of the former at [s − i, s], divided by V, at [i, k]        relative

    n is ``value_norm``, |v(w_E)|². Why: at W_O² = 0 every p is 1/V and attention uniform, so the
    step is E[mean_s v(z_s) ⊗ (w_U(o) − mean w_U)], where o is in the sequence once more often than
    any other token but q. Then value s answers η1 n A to z_s, and more attention to s raises the
    correct logit by g_s = η1 n A (1[z_s = o] − f)/T on average over β = 1/T; key s holds n_s/s of
    Φ w_E(q). W_K¹ moves that share: its softmax at 1/s gives (1[z_r = q] − n_s/s)/s. Averages over
    fillers leave o_s. Exact to first order in η1 and η2 (p and β uniform in every step); exactly
    linear in η3. :func:`leading_previous` is W_K¹ without what is smaller by 1/T or ρ.

    κ > 0 needs enough tokens and positions: in "q o q" the last key holds more of q than o's does,
    so sequences of three write the opposite of an induction head.

    Returns:
        W_O2 [d_vocab, d_vocab], W_K2 [d_vocab, d_vocab] and W_K1, [length, length] for absolute
        positions and [length, d_vocab] for relative ones; float64.
    """
    V, L, (eta1, eta2, eta3) = task.d_vocab, task.length, rates
    rho = 1 / (V - 1)
    inverse_length = found = 0.0
    pairs = torch.zeros(L, L, dtype=torch.float64)  # [r, s]
    for T, t_o, probability in task.places:
        place = torch.arange(1, T + 1, dtype=torch.float64)
        is_q = ((place == t_o - 1) | (place == T)).double()
        is_o = torch.where(place == t_o, 1.0, rho * (1 - is_q))
        gain = (is_o - (1 + (T - 3) * rho) / T) / T
        held = is_q.cumsum(0) / place  # n_s/s
        inverse_length += probability / T
        found += probability * float((gain * held).sum())
        moved = (is_q[:, None] - held) / place * gain
        pairs[:T, :T] += probability * moved.triu()
    said = eta1 * ((V - 4) * inverse_length + 1 / V) / (V - 1) ** 2
    kept = eta2 * said * value_norm * found / (V - 1) / math.sqrt(d_model)
    pairs *= eta3 * said * value_norm * kept / d_model
    centred = torch.eye(V, dtype=torch.float64) - 1 / V
    if relative:
        by_distance = torch.stack([pairs.diagonal(i).sum() for i in range(L)])
        pairs = by_distance[:, None].expand(L, V) / V
    return {"W_O2": said * centred, "W_K2": kept * centred, "W_K1": pairs}


def leading_previous(task: RecallTask) -> Float[Tensor, " pos"]:
    """E[1[t_o = t]/T] · (1/t)(1 − 1/t), W_K¹'s coefficient of p_{t−1}ᵀ p_t to leading order.

    At index t − 1, in units of η3 η1 n A κ/d (:func:`predicted_steps`). For sequences of one length
    it is proportional to P(t_o = t) (1/t)(1 − 1/t) (arXiv 2412.11459, section 4.1). Its sum over t,
    divided by V, is the leading term of the relative coefficient of r_{−1}ᵀ w_E(k), the same for
    every k and at every t.
    """
    leading = torch.zeros(task.length, dtype=torch.float64)
    for T, t_o, probability in task.places:
        leading[t_o - 1] += probability / T * (1 - 1 / t_o) / t_o
    return leading


class _Memory(NamedTuple):
    """Vectors of W = Σ c_ij read_iᵀ written_j, and the duals that find c."""

    read: Tensor
    written: Tensor
    read_duals: Tensor
    written_duals: Tensor


@torch.no_grad()
def _memory(model: MemoryTransformer, name: str, exact: bool) -> _Memory:
    check_induction_model(model)
    if name not in get_args(Matrix):
        raise ValueError(f"name must be one of {', '.join(get_args(Matrix))}; got {name!r}")
    cfg, W_E = model.cfg, model.embed.W_E
    first, second = model.blocks[0].attn, model.blocks[1].attn
    V, tokens = cfg.d_vocab, slice(cfg.d_vocab)
    stream = torch.cat([W_E, model.pos_embed.W_pos]) if cfg.in_the_stream else W_E
    echoes = stream @ first.W_V[0] @ first.W_O[0]
    if name == "W_K1":
        if cfg.in_the_stream:
            p = slice(V, None)
            return _of(stream, p, stream, p, exact)
        assert isinstance(first, MemoryAttention)
        return _of(torch.cat([W_E, first.W_R]), slice(V, None), W_E, tokens, exact)
    middle = torch.cat([stream, echoes])  # all that enters layer 1
    if name == "W_K2":
        return _of(middle, slice(len(stream), len(stream) + V), middle, tokens, exact)
    own, link = value_weights(second)
    values = own * middle @ second.W_V[0]
    values[: len(stream)] += link * stream @ first.W_V[0]
    arriving = torch.cat([middle, model.unembed.W_U.T])
    return _of(values, tokens, arriving, slice(len(middle), None), exact)


def _of(read: Tensor, i: slice, written: Tensor, j: slice, exact: bool) -> _Memory:
    return _Memory(read[i], written[j], duals(read, exact)[i], duals(written, exact)[j])


def _matrix(model: MemoryTransformer, name: str) -> Tensor:
    if name == "W_O2":
        return model.blocks[1].attn.W_O
    return model.blocks[0 if name == "W_K1" else 1].attn.W_K
