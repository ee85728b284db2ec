"""Interventions on hook points: edit links, patch activations and paths."""

from resval_lens.hooks.ablate import (
    cut_links,
    edit_links,
    freeze,
    link_activations,
    link_hooks,
    mean,
    mean_link_activations,
    resample,
    scale,
    scale_links,
    zero,
)
from resval_lens.hooks.links import Link, link_groups, links
from resval_lens.hooks.names import known_hook_name, known_hook_names
from resval_lens.hooks.patching import PatchResult, patch, patch_by_metrics
from resval_lens.hooks.path_patching import PathEffects, path_patch, path_patch_each
from resval_lens.hooks.prompts import (
    PromptPairs,
    against,
    log_probability,
    logit_difference,
    margin,
    negative_kl,
    probability,
)

__all__ = [
    "Link",
    "PatchResult",
    "PathEffects",
    "PromptPairs",
    "against",
    "cut_links",
    "edit_links",
    "freeze",
    "known_hook_name",
    "known_hook_names",
    "link_activations",
    "link_groups",
    "link_hooks",
    "links",
    "log_probability",
    "logit_difference",
    "margin",
    "mean",
    "mean_link_activations",
    "negative_kl",
    "patch",
    "patch_by_metrics",
    "path_patch",
    "path_patch_each",
    "probability",
    "resample",
    "scale",
    "scale_links",
    "zero",
]
