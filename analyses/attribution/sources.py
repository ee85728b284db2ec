"""What heads attend to, and what stands there for them to write: own values, and the link's.

    z_q = Σ_k A[q, k] v_k        out_q = Σ_k A[q, k] v_k W_O        v_k = own_k + link_k

so A[q, k] ‖own_k W_O‖ and A[q, k] ‖link_k W_O‖ are the norms of what a head writes at q from source
position k, of the layer's own values and of those that its link brings (the norm-based analysis of
attention of arXiv 2004.10102, links told apart). The two norms do not sum to that of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from resval_lens.analyses.attribution.values import Cache, value_parts
from resval_lens.hooks.prompts import check_model, wide
from resval_lens.runtime import evaluating
from resval_lens.transformer import ResValTransformer

READ = ("hook_resid_pre", "hook_v", "hook_v_local", "hook_v_table", "hook_pattern")
"""How the names of the hook points end that are read."""

MEASURE = "mean over queries of the largest weight on one earlier token, the first token aside"
"""What :func:`strength` is."""


@dataclass(frozen=True)
class SourceNorms:
    """‖value W_O‖ of each head at each source position: what a weight of 1 there writes.

    Attributes:
        own: of the layer's own values, [layer, head, key]; of one layer's heads [head, key].
        link: of all that arrives along the value stream, 0 in a layer that receives nothing.
    """

    own: Float[Tensor, "*layer head key"]
    link: Float[Tensor, "*layer head key"]


@dataclass(frozen=True)
class Attention:
    """One prompt's attention.

    Attributes:
        patterns: weights of every head; rows (queries) sum to 1.
        norms: of the values at each position; None for a model without a value stream, or one
            whose values are no sum of parts (``clip_qkv``).
    """

    patterns: Float[Tensor, "layer head query key"]
    norms: SourceNorms | None


@torch.no_grad()
def attention(model: ResValTransformer, prompt: Tensor) -> Attention:
    """Runs one prompt, without padding, and keeps what its heads attend to.

    Args:
        prompt: tokens [1, pos], or a classifier's vectors [1, pos, d_model].

    Raises:
        ValueError: several prompts; hooks that edit values on the way.
    """
    check_model(model)
    if len(prompt) != 1:
        raise ValueError(f"prompt must be one prompt, [1, pos]; got {list(prompt.shape)}")
    with evaluating(model):
        _, cache = model.run_with_cache(
            prompt, stop_at_layer=model.cfg.n_layers, names_filter=lambda name: name.endswith(READ)
        )
        patterns = [
            wide(cache[f"blocks.{layer}.attn.hook_pattern"][0]).cpu()
            for layer in range(model.cfg.n_layers)
        ]
        flows = any(stream.of == "v" for stream in model.cfg.streams)
        norms = source_norms(model, cache) if flows and model.cfg.clip_qkv is None else None
    return Attention(torch.stack(patterns), norms)


def source_norms(model: ResValTransformer, cache: Cache) -> SourceNorms:
    """:class:`SourceNorms` of a run of one prompt.

    Raises:
        ValueError: values that are clipped, or that in this run were edited on the way.
    """
    own: list[Tensor] = []
    link: list[Tensor] = []
    for layer, parts in enumerate(value_parts(model, cache)):
        with model.blocks[layer].fetched():
            W_O = wide(model.blocks[layer].attn.W_O)  # [head, d_head, d_model]
        mine = wide(parts[layer])
        arriving = sum((wide(parts[source]) for source in parts if source != layer), 0 * mine)
        for found, values in ((own, mine), (link, arriving)):
            heads = values[0].repeat_interleave(len(W_O) // values.shape[2], dim=1)
            written = torch.einsum("khd,hdm->hkm", heads, W_O.to(heads.device))
            found.append(written.norm(dim=-1).cpu())
    return SourceNorms(torch.stack(own), torch.stack(link))


def before(patterns: Float[Tensor, "*head query key"]) -> Float[Tensor, "*head query key"]:
    """The weights on tokens before a query's own, the first left out: 0 elsewhere."""
    kept = patterns.tril(-1)
    kept[..., 0] = 0
    return kept


def strength(patterns: Float[Tensor, "*head query key"]) -> Float[Tensor, "*head"]:
    """How far a head looks at single tokens before its own: mean over i ≥ 2 of max_{0<j<i} A[i, j].

    The first token, on which heads rest, and a query's own are left out; 0 for fewer than three
    tokens.
    """
    if patterns.shape[-1] < 3:
        return patterns.new_zeros(patterns.shape[:-2])
    return before(patterns)[..., 2:, :].amax(-1).mean(-1)
