"""Interventions on hook points: links and how to edit them."""

from resval_lens.hooks.ablate import (
    cut_links,
    edit_links,
    freeze,
    link_activations,
    link_hooks,
    mean,
    scale,
    scale_links,
    zero,
)
from resval_lens.hooks.links import Link, links

__all__ = [
    "Link",
    "cut_links",
    "edit_links",
    "freeze",
    "link_activations",
    "link_hooks",
    "links",
    "mean",
    "scale",
    "scale_links",
    "zero",
]
