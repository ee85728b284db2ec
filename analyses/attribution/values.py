"""Values, and what heads write of them, by the layer that they come from.

Layer l's values are a sum over the layers they come from, own part and links, and so is a head's
output, its attention pattern A held fixed:

    v_l = Σ_j part_{j→l}                 out_{l,h} = Σ_j A_{l,h} part_{j→l} W_O^{l,h}

part_{l→l} is a · local_l; part_{j→l} is what the links bring of local_j, straight or, with
``carry="sum"``, by way of the layers between. What a layer's table brings (``source="tokens"``) is
its part from ``TABLE``, written ``t``. Nothing is left over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import ActivationCache

from resval_lens.config import ResValConfig
from resval_lens.hooks.links import Link, head_name, links_between
from resval_lens.mixing import Gate
from resval_lens.streams import TABLE
from resval_lens.transformer import ResValTransformer

Heads = Float[Tensor, "batch pos _ d_head"]  # heads, or key-value heads
Cache = ActivationCache | Mapping[str, Tensor]


def part_name(layer: int, head: int, source: int) -> str:
    """``a2.h1`` for a head's own values, ``a2.h1 from 0`` for those of layer 0 along links,
    ``a2.h1 from t`` for those of its table.
    """
    name = head_name(layer, head)
    return name if source == layer else f"{name} from {'t' if source == TABLE else source}"


def links_of_part(
    cfg: ResValConfig, name: str, of: str = "v", source_head: int | None = None
) -> tuple[Link, ...]:
    """The parts of links along which ``a2.h1 from 0`` comes; none if nothing does, or it is own.

    Args:
        name: a head's component of :func:`~resval_lens.analyses.attribution.logits.attribute`, or
            ``str(path)`` of a path of :mod:`~resval_lens.analyses.attribution.weights`.
        of: the projection that it is a part of.
        source_head: the head of the source, where it is one of several (``mix="matrix"``).

    Raises:
        ValueError: a name of nothing of the kind, or of a layer or head that is not there.
    """
    found = re.fullmatch(r"a(\d+)\.h(\d+)(?: from (\d+|t))?", name)
    if found is None:
        raise ValueError(f"{name!r} does not name a part of a head, like a2.h1 or a2.h1 from 0")
    layer, head = int(found[1]), int(found[2])
    if layer >= cfg.n_layers or head >= cfg.n_heads:
        raise ValueError(
            f"{name!r}: this model has layers 0 to {cfg.n_layers - 1} of heads 0 to "
            f"{cfg.n_heads - 1}"
        )
    if found[3] is None:
        return ()
    reading = head // (cfg.n_heads // cfg.n_heads_of(of))
    source = TABLE if found[3] == "t" else int(found[3])
    return links_between(cfg, of, (source, source_head), (layer, reading))


def split_by_source(
    model: ResValTransformer,
    of: str,
    local: Sequence[Heads],
    gates: Sequence[Gate | None] | None = None,
    tables: Sequence[Heads | None] | None = None,
) -> list[dict[int, Heads]]:
    """What each layer's total has from each layer's local projection; their sum is the total.

    Args:
        of: the projection, q, k or v. Without a stream of it a layer has its own part alone.
        local: the local projections, one for each layer.
        gates: each layer's gate, for a gated mix.
        tables: what each layer looks up, for ``source="tokens"``.

    Returns:
        For each layer: source layer (or ``TABLE``) to part, the own part first.
    """
    stream = next((stream for stream in model.cfg.streams if stream.of == of), None)
    totals: list[dict[int, Heads]] = []
    passed: list[dict[int, Heads]] = []
    for layer, own in enumerate(local):
        mix = model.blocks[layer].attn.mix(of)
        parts = {layer: own}
        if stream is not None and mix is not None:
            gate = None if gates is None else gates[layer]
            if stream.source == "tokens":
                assert tables is not None
                arriving = [{TABLE: cast("Heads", tables[layer])}]
            else:
                arriving = [passed[j] for j in stream.sources(layer)]
            with model.blocks[layer].fetched():
                parts[layer] = mix.own_part(own, gate)
                for source in sorted(set().union(*arriving)):
                    alone = tuple(
                        by_source.get(source, torch.zeros_like(own)).to(own.device)
                        for by_source in arriving
                    )
                    first, *others = mix.parts(alone, gate)
                    parts[source] = sum(others, start=first)
        totals.append(parts)
        passed.append({layer: own} if stream and stream.carry == "raw" else parts)
    return totals


@torch.no_grad()
def value_parts(model: ResValTransformer, cache: Cache) -> list[dict[int, Heads]]:
    """part_{j→l} of every layer l: what its values have from layer j, j = l being its own.

    Value biases go with the layer they belong to; a gate is the run's.

    Args:
        cache: of a run, by full hook point names (``run_with_cache``).

    Returns:
        For each layer l: j to [batch, pos, head, d_head] (key-value heads), the own part first.
        Their sum is ``hook_v``.

    Raises:
        ValueError: values that are clipped, or that in this run were edited on the way.
    """
    if model.cfg.clip_qkv is not None:
        raise ValueError(f"clip_qkv={model.cfg.clip_qkv}: clipped values are not a sum of parts")
    local: list[Heads] = []
    gates: list[Gate | None] = []
    tables: list[Heads | None] = []
    for layer, block in enumerate(model.blocks):
        mix = block.attn.mix("v")
        ending = "hook_v" if mix is None else "hook_v_local"
        local.append(cache[f"blocks.{layer}.attn.{ending}"])
        looks_up = mix is not None and mix.stream.source == "tokens"
        tables.append(cache[f"blocks.{layer}.attn.hook_v_table"] if looks_up else None)
        gated = mix is not None and mix.stream.how.is_gated
        with block.fetched():
            x = block.ln1(cache[f"blocks.{layer}.hook_resid_pre"]) if gated else None
            gates.append(None if mix is None or x is None else mix.gate(x, local[-1].shape[2]))
    split = split_by_source(model, "v", local, gates, tables)
    for layer, parts in enumerate(split):
        total = cache[f"blocks.{layer}.attn.hook_v"]
        if not equal(torch.stack(list(parts.values())).sum(0), total, total.abs().max()):
            raise ValueError(
                f"the values of layer {layer} are not what flows there: this run was edited; run "
                "it without hooks, and with_streams(...) where links should be missing"
            )
    return split


@torch.no_grad()
def z_parts(
    model: ResValTransformer, cache: Cache, positions: Int[Tensor, " batch"] | None = None
) -> list[dict[int, Float[Tensor, "batch query head d_head"]]]:
    """A_{l,h} part_{j→l}: each head's z by the layer its values come from, as in ``hook_z``.

    Args:
        positions: one query position of each prompt; by default all of them.

    Returns:
        For each layer: source layer to [batch, query, head, d_head]; a head's output is that times
        its W_O. Raises what :func:`value_parts` raises.
    """
    found = []
    for layer, parts in enumerate(value_parts(model, cache)):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"]  # [batch, head, query, key]
        if positions is not None:
            rows = torch.arange(len(pattern))
            pattern = pattern[rows, :, positions.to(pattern.device)][:, :, None]
        by_source = {}
        for source, part in parts.items():
            per_head = part.repeat_interleave(model.cfg.n_heads // part.shape[2], dim=2)
            by_source[source] = torch.einsum("bhqk,bkhd->bqhd", pattern.to(part.dtype), per_head)
        found.append(by_source)
    return found


def equal(found: Tensor, wanted: Tensor, size: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Equal up to the rounding of numbers of that size."""
    eps = torch.finfo(dtype or wanted.dtype).eps
    return bool((found - wanted).abs().max() <= eps**0.5 * size + eps)
