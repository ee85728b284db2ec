"""Weight circuits along every path, links included: OV circuits, copying, composition.

A head's values come from its own layer and, along links, from earlier ones, so that head h of layer
l has an OV circuit for each source layer j (and, with ``mix="matrix"``, for each source head h'):

    OV_{j→l} = w W_V^{j,h'} W_O^{l,h}

w is the weight of the path: a for the own part, the carried weights' product along a chain of
links, summed where several chains lead from j to l. Along a table (``source="tokens"``, its source
is ``TABLE``) what is read is the token itself: w T^{l,h'} W_O^{l,h}, [d_vocab, d_model]. Without a
value stream there are the local circuits alone, TransformerLens's own. As there, norms are left
out: fold them first (``process_weights_``), or their weights are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import FactoredMatrix
from transformer_lens.utilities.matrix import composition_scores as composed

from resval_lens.analyses.attribution.values import links_of_part, part_name, split_by_source
from resval_lens.hooks.links import Link
from resval_lens.hooks.padding import (
    Mask,
    first_own,
    last_own,
    moved,
    own_tokens,
    refuse_padding_around,
    refuse_unmasked,
)
from resval_lens.host import GroupedQueryAttention
from resval_lens.runtime import evaluating
from resval_lens.streams import TABLE
from resval_lens.transformer import ResValTransformer

Mode = Literal["Q", "K", "V"]


class Path(NamedTuple):
    """How head ``head`` of layer ``layer`` comes by what layer ``source`` projects.

    ``source_head`` is the head (key-value head, for keys and values) whose projection it is: the
    head's own, but for ``mix="matrix"``. ``source == layer`` is the local path.
    """

    source: int
    layer: int
    head: int
    source_head: int

    def __str__(self) -> str:
        return part_name(self.layer, self.head, self.source)

    def links(self, model: ResValTransformer, of: str = "v") -> tuple[Link, ...]:
        """The parts of links that lie on it, of the stream ``of``; none on a local path."""
        return links_of_part(model.cfg, str(self), of, self.source_head)


@torch.no_grad()
def paths(model: ResValTransformer, of: str = "v") -> dict[Path, float]:
    """Every path of a projection, and its weight w; local ones first in each layer.

    A path that the mixing leaves out (``mix="matrix"``: its heads are not connected) is not there;
    one whose weight happens to be 0 is.

    Args:
        of: q, k or v.

    With ``mix="added_gate"`` each link's weight is that of a gate of 1: a path's circuit is then up
    to its gates, which differ by token and are never negative. Scores of copying and composition do
    not depend on such a factor.

    Raises:
        ValueError: a stream whose gate weighs the own projection, too: its weights depend on the
            token.
    """
    stream = next((stream for stream in model.cfg.streams if stream.of == of), None)
    gated = stream is not None and stream.how.is_gated
    if stream is not None and gated and not stream.how.own_is_fixed:
        raise ValueError(
            f"the gate of the {of} stream depends on the token: its links have no weight of their "
            "own, and no weight circuits"
        )
    cfg = model.cfg
    heads = cfg.n_heads if of == "q" else cfg.n_key_value_heads or cfg.n_heads
    # Row h' of the batch holds 1 at head h': what arrives at head g is the weight from h' to g.
    units = torch.eye(heads, dtype=cfg.dtype, device=model.blocks[0].device)
    local = [units[:, None, :, None]] * cfg.n_layers
    found = {}
    open_ = [torch.ones_like(local[0][..., :1])] * cfg.n_layers if gated else None
    for layer, parts in enumerate(split_by_source(model, of, local, open_, local)):
        for source, part in parts.items():
            weights = part[:, 0, :, 0].tolist()  # source head, reading head
            every = stream is not None and stream.how.crosses_heads and source != layer
            for head in range(cfg.n_heads):
                own = head // (cfg.n_heads // heads)
                for source_head in range(heads) if every else [own]:
                    path = Path(source, layer, head, source_head)
                    found[path] = weights[source_head][own]
    return found


def ov_paths(model: ResValTransformer) -> tuple[Path, ...]:
    """The paths that have an OV circuit: every head's own, and one for each layer it hears of.

    Raises:
        ValueError: as :func:`paths`.
    """
    return tuple(paths(model))


@torch.no_grad()
def ov_circuit(
    model: ResValTransformer,
    layer: int,
    head: int,
    source: int | None = None,
    source_head: int | None = None,
) -> FactoredMatrix:
    """w W_V^{source} W_O^{layer,head}, [d_model, d_model]: from what is read to what is written.

    Args:
        source: the layer the values come from; by default the head's own. ``TABLE``: the layer's
            table; then [d_vocab, d_model], from tokens.
        source_head: key-value head of the source; by default the head's own. Needed for the links
            of a stream whose mix crosses heads, like ``"matrix"``: every head reads every head.

    Raises:
        ValueError: a path that is not there, or not told from others; what :func:`paths` refuses.
    """
    source = layer if source is None else source
    weights = paths(model)
    there = [p for p in weights if p[:3] == (source, layer, head)]
    if not there:
        sources = sorted({p.source for p in weights if (p.layer, p.head) == (layer, head)})
        raise ValueError(
            f"{part_name(layer, head, source)}: no values flow that way; "
            + (f"head {head} of layer {layer} has those of layers {sources}" if sources
               else f"there is no head {head} of layer {layer}")
        )  # fmt: skip
    if source_head is None and len(there) > 1:
        (mix,) = (stream.mix for stream in model.cfg.streams if stream.of == "v")
        raise ValueError(
            f"{there[0]}: every head reads every head along mix={mix!r}; name a source_head, "
            f"0 to {len(there) - 1}"
        )
    chosen = [p for p in there if source_head in (None, p.source_head)]
    if not chosen:
        raise ValueError(
            f"source_head={source_head}: {there[0]} reads heads {[p.source_head for p in there]}"
        )
    return _ov(model, chosen, weights)[0]


class Composition(NamedTuple):
    """How strongly heads compose: scores [writer, reader] of the paths named beside them."""

    writers: tuple[Path, ...]
    readers: tuple[Path, ...]
    scores: Float[Tensor, "writer reader"]


@torch.no_grad()
def composition_scores(model: ResValTransformer, mode: Mode) -> Composition:
    """‖W_A W_B‖ / (‖W_A‖ ‖W_B‖), Frobenius norms: how much of a writer's output a reader can read.

    A is the OV circuit of any path. B is what reads: the OV circuit of any path (``"V"``), or the
    QK circuit with the query (``"Q"``) or key (``"K"``) coming along any path of its stream and the
    other side local:

        Q: W_Q^{source} W_K^{layer}ᵀ      K: W_K^{source} W_Q^{layer}ᵀ      V: OV_{source→layer}

    A path of B reads the residual stream before its source layer, so A composes with it if A's
    layer is earlier; 0 elsewhere. The weight of a path cancels out (one of weight 0 has no score:
    NaN). Without streams these are TransformerLens's ``all_composition_scores``.

    Raises:
        ValueError: another mode; a gated stream among those concerned.
    """
    if mode not in ("Q", "K", "V"):
        raise ValueError(f"mode must be 'Q', 'K' or 'V'; got {mode!r}")
    ov = paths(model)
    writers = tuple(ov)
    writing = _ov(model, writers, ov, like_projections=True)
    if mode == "V":
        readers, reading = writers, writing
    else:
        of, other = mode.lower(), "K" if mode == "Q" else "Q"
        weights = paths(model, of)
        readers = tuple(weights)
        near = _projections(model, of, readers, weights, like_projections=True)
        far = []
        for path in readers:
            with model.blocks[path.layer].fetched():
                far.append(getattr(model.blocks[path.layer].attn, f"W_{other}")[path.head])
        reading = FactoredMatrix(near, torch.stack(far).transpose(-2, -1))
    # One writer at a time: all pairs at once would hold a matrix for each.
    scores = torch.stack([composed(writing[i], reading) for i in range(len(writers))])
    earlier = [[writer.layer < reader.source for reader in readers] for writer in writers]
    mask = torch.tensor(earlier, device=scores.device)
    return Composition(writers, readers, scores.where(mask, torch.zeros_like(scores)))


@torch.no_grad()
def copying_scores(
    model: ResValTransformer, which: Sequence[Path] | None = None
) -> dict[Path, float]:
    """Σ λ / Σ |λ| over the eigenvalues of W_E OV W_U: 1 copies tokens, −1 lowers their logits.

    Real: eigenvalues come in conjugate pairs. NaN for a path of weight 0. What is
    added after the last layer (``readout_parts``, x W) is part of the readout: W_U is (1 + W) W_U.

    Args:
        which: paths of :func:`ov_paths`; by default all.

    Raises:
        ValueError: a classifier, or as many logits as there are not tokens; a gated value stream.
    """
    _check_tokens(model)
    weights = paths(model)
    which = tuple(weights) if which is None else which
    if not which:
        return {}
    W_U, W_E = model.unembed.W_U, model.embed.W_E
    one = torch.eye(len(W_U), dtype=W_U.dtype, device=W_U.device)
    for part in model.readout_parts(one[None]).values():  # their matrices
        W_U = W_U + part[0] @ W_U
    around = W_U @ W_E  # [d_model, d_model]
    scores: dict[Path, float] = {}
    for tables in (False, True):
        chosen = [path for path in which if (path.source == TABLE) == tables]
        if not chosen:
            continue
        # The eigenvalues other than 0 of W_E (V O) W_U are those of V (O W_U W_E); of a table T,
        # (T O) W_U and T (O W_U).
        circuit = _ov(model, chosen, weights)
        after = W_U if tables else around
        eigenvalues = FactoredMatrix(circuit.A, circuit.B @ after).eigenvalues  # [path, d_head]
        found = eigenvalues.sum(-1).real / eigenvalues.abs().sum(-1)
        scores |= dict(zip(chosen, found.tolist(), strict=True))
    return {path: scores[path] for path in which}


@torch.no_grad()
def own_token_scores(
    model: ResValTransformer,
    tokens: Int[Tensor, "prompt pos"],
    positions: Int[Tensor, " prompt"] | None = None,
    top: int = 5,
    which: Sequence[Path] | None = None,
    mask: Mask | None = None,
) -> dict[Path, float]:
    """The share of tokens that a head, attending to them alone, would name among its top ``top``.

        logits = ln_final(ln1(x) OV) W_U + b_U

    The copy score of Wang et al. (arXiv 2211.00593, section 3.1), for local and link paths. x is
    the residual stream after layer 0 at the token, where the model has MLPs and the path's source
    is a later layer, and its embedding otherwise. Biases of values, outputs and ln1 are left out:
    they say the same of every token. A path of weight 0 copies nothing. What is
    added after the last layer is part of the readout, as in :func:`copying_scores`.

    Args:
        tokens: prompts.
        positions: the token of each prompt that is looked at; by default the last of its own.
        top: how many of the largest logits count.
        which: paths of :func:`ov_paths`; by default all. Each takes a readout of every prompt.
        mask: of prompts that are padded on either side; True at their own tokens.

    Raises:
        ValueError: as :func:`copying_scores`; a position or ``top`` that is not there; rows that
            look padded without a mask.
    """
    _check_tokens(model)
    count, length = tokens.shape
    kept = torch.ones(count, length).bool() if mask is None else own_tokens(mask, tokens)
    at = last_own(kept) if positions is None else positions
    if at.shape != (count,) or bool(((at < 0) | (at >= length)).any()):
        raise ValueError(
            f"positions must be one of 0 to {length - 1} for each of the {count} prompts; got "
            f"{at.tolist()}"
        )
    if not 1 <= top <= model.cfg.d_vocab:
        raise ValueError(f"top must lie between 1 and {model.cfg.d_vocab}; got {top}")
    if mask is None:
        refuse_unmasked(model, tokens, "tokens")
    else:
        refuse_padding_around(model, kept)
        padding = ~kept[torch.arange(count, device=kept.device), at.to(kept.device)]
        if padding.any():
            row = int(padding.int().argmax())
            raise ValueError(f"positions: {at[row].item()} is padding in prompt {row}")
        first = first_own(kept)
        tokens, at = moved(tokens, first), at - first.to(at.device)
    with evaluating(model):
        _, cache = model.run_with_cache(
            tokens, stop_at_layer=1, padding_side="right",
            names_filter=["hook_embed", "blocks.0.hook_resid_post"],
        )  # fmt: skip
    rows, weights = torch.arange(count), paths(model)
    at = at.to(cache["hook_embed"].device)
    own = tokens.to(at.device)[rows, at]
    scores = {}
    for path in weights if which is None else which:
        weight = weights[path]
        if path.source == TABLE:
            circuit = _ov(model, [path], weights)
            written = (circuit.A[0][own] @ circuit.B[0])[:, None]
            scores[path] = _named(model, written, own, top) if weight else 0.0
            continue
        direct = path.source == 0 or model.cfg.attn_only
        x = cache["hook_embed" if direct else "blocks.0.hook_resid_post"][rows, at][:, None]
        ln1 = model.blocks[path.source].ln1
        with model.blocks[path.source].fetched():
            read = ln1(x) - ln1(torch.zeros_like(x))  # without its bias
        circuit = _ov(model, [path], weights)
        written = read @ circuit.A[0] @ circuit.B[0]  # [prompt, 1, d_model]
        scores[path] = _named(model, written, own, top) if weight else 0.0
    return scores


def _named(
    model: ResValTransformer,
    written: Float[Tensor, "prompt 1 d_model"],
    own: Int[Tensor, " prompt"],
    top: int,
) -> float:
    """The share of prompts whose own token is among the top ones of what is written."""
    best = model.unembed(model.unembed_input(written))[:, 0].topk(top).indices  # [prompt, top]
    return float((best == own[:, None]).any(-1).cpu().double().mean())


def _ov(
    model: ResValTransformer,
    which: Sequence[Path],
    weights: dict[Path, float],
    like_projections: bool = False,
) -> FactoredMatrix:
    """The OV circuits of some paths, [path, d_model, d_model]; as :func:`_projections`."""
    out = []
    for path in which:
        with model.blocks[path.layer].fetched():
            out.append(model.blocks[path.layer].attn.W_O[path.head])
    near = _projections(model, "v", which, weights, like_projections)
    return FactoredMatrix(near, torch.stack(out))


def _projections(
    model: ResValTransformer,
    of: str,
    which: Sequence[Path],
    weights: dict[Path, float],
    like_projections: bool = False,
) -> Float[Tensor, "path read d_head"]:
    """w W^{source} of some paths; w T of tables.

    Args:
        like_projections: of a table T [d_vocab, d_head] what has its norms and as many rows as
            W: R of T = Q R, with rows of 0. ‖T X‖ = ‖R X‖ for every X.
    """
    found = []
    for path in which:
        if path.source == TABLE:
            mix = model.blocks[path.layer].attn.mix(of)
            assert mix is not None
            with model.blocks[path.layer].fetched():
                table = mix.table[:, path.source_head].detach()
            if like_projections:
                table = torch.linalg.qr(table, mode="r").R
                table = F.pad(table, (0, 0, 0, model.cfg.d_model - len(table)))
            found.append(weights[path] * table)
            continue
        attn = model.blocks[path.source].attn
        stored = of != "q" and isinstance(attn, GroupedQueryAttention)  # one for each kv head
        with model.blocks[path.source].fetched():
            weight = getattr(attn, f"{'_' if stored else ''}W_{of.upper()}")
            found.append(weights[path] * weight[path.source_head])
    return torch.stack(found)


def _check_tokens(model: ResValTransformer) -> None:
    if not model.reads_tokens:
        raise ValueError(f"{model.kind} has no embedding or unembedding: no tokens that it copies")
    if model.cfg.d_vocab_out != model.cfg.d_vocab:
        raise ValueError(
            f"d_vocab_out={model.cfg.d_vocab_out} differs from d_vocab={model.cfg.d_vocab}: "
            "logits are not those of the tokens that went in"
        )
