"""Layer 1 of a two-layer classifier, run with what its attention uses edited.

    total = own + link          queries, keys or values, [batch, pos, head, d_head]

Layer 0 is run once; each edit says what stands in the total's place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from resval_lens.models.answer import has_two_plain_layers
from resval_lens.models.classifier import ICLClassifier

Heads = Float[Tensor, "batch _ head d_head"]
Edit = Callable[[Heads, Heads], Tensor]
"""The total, from the own part and the link, which is 0 where there is none."""


@dataclass(frozen=True)
class LayerOne:
    """What layer 1 reads on some sequences, as far as the last token's answer needs it.

    Attributes:
        totals: of q (the last token's), k and v.
        links: what the streams bring, part of the totals.
        last: the last token before layer 1.
    """

    model: ICLClassifier
    totals: Mapping[str, Heads]
    links: Mapping[str, Heads]
    last: Float[Tensor, "batch d_model"]

    @property
    def edited(self) -> tuple[str, ...]:
        """The projections that edits are of: those of streams; of a model without any, values."""
        return tuple(self.links) or ("v",)

    @cached_property
    def parts(self) -> Mapping[str, tuple[Heads, Heads]]:
        """Own part and link of each projection that is edited."""
        found = {}
        for name in self.edited:
            total, link = self.totals[name], self.links.get(name)
            none = total.new_zeros(()).expand_as(total)
            found[name] = (total, none) if link is None else (total - link, link)
        return found

    @torch.no_grad()
    def logits(self, edit: Edit) -> Float[Tensor, "batch label"]:
        """The model's answers with every edited projection as ``edit`` makes it."""
        attn = self.model.blocks[1].attn
        edited = {name: edit(*parts) for name, parts in self.parts.items()}
        totals = {**self.totals, **edited}
        scores = torch.einsum("bhd,bphd->bhp", totals["q"][:, -1], totals["k"]) / attn.attn_scale
        z = torch.einsum("bhp,bphd->bhd", scores.softmax(-1), totals["v"])
        return self.model.readout(self.last + torch.einsum("bhd,hdm->bm", z, attn.W_O) + attn.b_O)


@torch.no_grad()
def layer_one(
    model: ICLClassifier, inputs: Float[Tensor, "batch pos d_model"], chunk: int = 500
) -> LayerOne:
    """Runs ``inputs`` up to layer 1.

    Raises:
        ValueError: a model whose layers do more than attend, or that has hooks.
    """
    if not has_two_plain_layers(model):
        raise ValueError(
            "layer 1 is run alone in a classifier of two plain attention layers without hooks; "
            "this model is another"
        )
    at = "blocks.1.attn.hook_"
    streams = [stream.of for stream in model.cfg.streams]
    names = ["blocks.1.hook_resid_pre", *(f"{at}{name}" for name in "qkv")]
    names += [f"{at}{name}_link" for name in streams]
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for part in inputs.split(chunk):
        _, cache = model.run_with_cache(part, names_filter=names)
        for name, kept in found.items():
            last_only = name == names[0] or name.startswith(f"{at}q")
            kept.append(cache[name][:, -1:] if last_only else cache[name])
    whole = {name: torch.cat(kept) for name, kept in found.items()}
    return LayerOne(
        model,
        {name: whole[f"{at}{name}"] for name in "qkv"},
        {name: whole[f"{at}{name}_link"] for name in streams},
        whole[names[0]][:, 0],
    )
