"""Activation patching: what a run's answer becomes when it takes one activation from another run.

    found = patch(model, pairs, "z", by=("layer", "head"))
    found.values        # mean metric of the corrupted run with one head's z from the clean run
    found.recovered()   # 0: as corrupted, 1: as clean

Each such run is a cell. Cells are computed many at a time, each from where it first differs from
the unpatched run (:mod:`~resval_lens.hooks.patch_cells`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from resval_lens.hooks.answers import answer_logits
from resval_lens.hooks.links import Numbers, among, whole_numbers
from resval_lens.hooks.padding import first_own, moved
from resval_lens.hooks.patch_cells import LOCAL, PatchedRuns, Site
from resval_lens.hooks.prompts import MAX_TOKENS, Metric, PromptPairs, ready, vanishes
from resval_lens.lens.hook_names import full_hook_name
from resval_lens.runtime import evaluating
from resval_lens.transformer import ResValTransformer

DIRECTIONS = ("denoise", "noise")
AXES = ("layer", "position", "head")
Positions = Numbers | Mapping[str, Int[Tensor, " prompt"]]
"""Numbers, the same in each prompt, or names, each with a position of its own in every prompt."""
Measured = tuple[Float[Tensor, "cell prompt"], Float[Tensor, " prompt"], Float[Tensor, " prompt"]]
"""By one metric: of each cell, of the run that is patched, of the other run."""


@dataclass(frozen=True)
class PatchResult:
    """The metric of each patched run.

    Attributes:
        values: mean over the prompts, an axis for each of ``axes``, in that order.
        per_prompt: the metric of each prompt, prompts on the last axis.
        base: mean metric of the run that is patched, before any patch.
        source: mean metric of the run that activations are taken from.
        axes: the labels along each axis: numbers of layers, positions and heads, or the names of
            positions.
        site, direction: as asked for.
    """

    values: Float[Tensor, "..."]
    per_prompt: Float[Tensor, "... prompt"]
    base: float
    source: float
    axes: dict[str, list[Any]]
    site: str
    direction: str

    def recovered(self) -> Float[Tensor, "..."]:
        """(value − base) / (source − base): 0 as without a patch, 1 as in the other run.

        Raises:
            ValueError: the two runs have the same metric.
        """
        gap = self.source - self.base
        if vanishes(self.source, self.base):
            raise ValueError(
                f"there is no gap to recover: the metric is {self.base:g} in the run that is "
                f"patched and {self.source:g} in the other; corrupted prompts must change what "
                "the model answers"
            )
        return (self.values - self.base) / gap


@torch.no_grad()
def patch(
    model: ResValTransformer,
    pairs: PromptPairs,
    site: str,
    *,
    layers: Numbers | None = None,
    positions: Positions | None = None,
    heads: Numbers | None = None,
    by: Sequence[str] | None = None,
    direction: str = "denoise",
    max_tokens: int = MAX_TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> PatchResult:
    """The metric of every run that takes one cell of ``site`` from the other run.

    ``denoise``: the corrupted run takes from the clean one. ``noise``: the clean run takes from the
    corrupted one. The model runs in evaluation mode. Hooks that are on it stay on; they see rows of
    cells × prompts, whole.

    Args:
        site: a hook point of the blocks, in TransformerLens's shorthand (``"resid_pre"``, ``"z"``,
            ``"pattern"``) or the streams' (``"v_link"``, ``"v_local"``), or one layer's in full.
            The position of scores and patterns is the query's; k and v have key-value heads.
        layers: by default all that have the site.
        positions: columns of the prompts as given, by default each, padding included (where a
            patch changes nothing).
        heads: by default all of the site's.
        by: what a cell has one of: layer, position, head; by default all that the site has. What
            is left out is patched together, all that is chosen of it; layer may be left out where
            one is chosen.
        max_tokens: rows × positions of one model call; prompts beyond it are taken in parts, one
            at least.
        progress: called with the cells done and those there are; where ``max_tokens`` makes it
            take the prompts in parts, cells count once for each part.

    Raises:
        ValueError: a site, layer, position, head, axis or direction that is not there; what
            :func:`~resval_lens.hooks.prompts.ready` refuses.
    """
    how = (layers, positions, heads, by, direction, max_tokens, progress)
    return _patch(model, pairs, site, None, *how)[""]


@torch.no_grad()
def patch_by_metrics(
    model: ResValTransformer,
    pairs: PromptPairs,
    site: str,
    metrics: Mapping[str, Metric],
    *,
    layers: Numbers | None = None,
    positions: Positions | None = None,
    heads: Numbers | None = None,
    by: Sequence[str] | None = None,
    direction: str = "denoise",
    max_tokens: int = MAX_TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, PatchResult]:
    """:func:`patch` by several metrics, by name, for all of which the same runs serve."""
    how = (layers, positions, heads, by, direction, max_tokens, progress)
    return _patch(model, pairs, site, metrics, *how)


def _patch(
    model: ResValTransformer,
    pairs: PromptPairs,
    site: str,
    metrics: Mapping[str, Metric] | None,
    layers: Numbers | None,
    positions: Positions | None,
    heads: Numbers | None,
    by: Sequence[str] | None,
    direction: str,
    max_tokens: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, PatchResult]:
    given, pairs = pairs, ready(model, pairs)
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be 'denoise' or 'noise'; got {direction!r}")
    metrics = {"": pairs.metric} if metrics is None else metrics
    if not metrics:
        raise ValueError("metrics: there is none")
    parts = pairs.within(max_tokens)
    names = _hook_points(model, site, layers)
    # `clean` is what is patched
    parts = parts if direction == "noise" else [part.flipped() for part in parts]
    with evaluating(model):
        where = _positions(given, positions)
        wanted, labels, kept = _wanted(model, parts[0], site, names, where, heads, by)
        sizes = [len(labels[axis]) if axis in kept else 1 for axis in AXES if axis in labels]
        grid = torch.cartesian_prod(*(torch.arange(n) for n in [*sizes, 1][:3]))
        cells = torch.stack([torch.tensor(labels["layer"])[grid[:, 0]], grid[:, 1], grid[:, 2]], 1)
        results: list[list[Measured]] = []
        for number, part in enumerate(parts):
            rows = slice(number * len(parts[0]), number * len(parts[0]) + len(part))
            results.append(
                _patched(
                    model,
                    [replace(part, metric=metric) for metric in metrics.values()],
                    replace(wanted, positions=wanted.positions[:, rows]),
                    cells,
                    max_tokens,
                    None if progress is None else _counted(progress, number, len(parts)),
                )
            )
    kept_sizes = [len(labels[axis]) for axis in AXES if axis in kept]
    in_order = [axis for axis in AXES if axis in kept]
    found = {}
    for name, parts_of_it in zip(metrics, zip(*results, strict=True), strict=True):
        per_prompt, base, source = (torch.cat(x, -1) for x in zip(*parts_of_it, strict=True))
        per_prompt = per_prompt.reshape(*kept_sizes, len(pairs))
        per_prompt = per_prompt.permute(*(in_order.index(axis) for axis in kept), -1)
        found[name] = PatchResult(
            values=per_prompt.mean(-1),
            per_prompt=per_prompt,
            base=base.mean().item(),
            source=source.mean().item(),
            axes={axis: labels[axis] for axis in kept},
            site=site,
            direction=direction,
        )
    return found


def _counted(
    progress: Callable[[int, int], None], number: int, parts: int
) -> Callable[[int, int], None]:
    return lambda done, cells: progress(number * cells + done, parts * cells)


def _patched(
    model: ResValTransformer,
    measures: Sequence[PromptPairs],
    site: Site,
    cells: Int[Tensor, "cell 3"],
    max_tokens: int,
    progress: Callable[[int, int], None] | None,
) -> list[Measured]:
    """By each metric (``measures`` are the same prompts): that of each cell, of the clean prompts
    and of those they take activations from.
    """
    pairs = measures[0]
    runs = PatchedRuns(model, pairs.clean, pairs.corrupted, pairs.answers, site)
    ends = [[m.measure(x)[0] for x in (runs.base_logits, runs.source_logits)] for m in measures]
    found = [base.repeat(len(cells), 1) for base, _ in ends]
    batches = list(runs.batches(cells, max_tokens))
    done = len(cells) - sum(map(len, batches))  # these are base
    if progress is not None and done:
        progress(done, len(cells))
    for which in batches:
        measured = [[m.measure(logits) for m in measures] for logits in runs.logits(cells[which])]
        for own, values in zip(found, zip(*measured, strict=True), strict=True):
            own[which] = torch.cat(values)
        done += len(which)
        if progress is not None:
            progress(done, len(cells))
    return [(own, base, source) for own, (base, source) in zip(found, ends, strict=True)]


def _hook_points(model: ResValTransformer, site: str, layers: Numbers | None) -> dict[int, str]:
    """The site's hook point in each chosen layer."""
    in_full = re.match(r"blocks\.(\d+)\.", site)
    named = {i: full_hook_name(site, i) for i in range(model.cfg.n_layers)}
    if in_full:
        named = {int(in_full[1]): site}
    found = {
        layer: name
        for layer, name in named.items()
        if name in model.hook_dict
        and name.startswith(f"blocks.{layer}.")
        and model.position_axis(name) is not None
    }
    if not found:
        raise ValueError(f"site={site!r}: {_why_missing(model, site)}")
    chosen = whole_numbers(layers, "layers")
    if chosen is None:
        return found
    wanted = among(chosen, model.cfg.n_layers, "layers")
    for layer in wanted:
        if layer not in found:
            raise ValueError(f"layers: layer {layer} has no {site}; layers {list(found)} do")
    return {layer: found[layer] for layer in wanted}


def _why_missing(model: ResValTransformer, site: str) -> str:
    cfg = model.cfg
    stream = re.fullmatch(r"([qkv])_(link|local)", site)
    if stream and not cfg.streams:
        return "this model has no links: its configuration has streams=''"
    if stream:
        return f"this model has links of {', '.join(s.of for s in cfg.streams)} only"
    for setting in ("attn_only", "parallel_attn_mlp"):
        if site in ("resid_mid", "mlp_in", "mlp_out") and getattr(cfg, setting):
            return f"no layer of this model has it: its configuration has {setting}=True"
    parts = [name.partition(".")[2].partition(".")[2] for name in model.hook_dict]
    short = {re.sub(r"(attn|mlp)\.", "", part).removeprefix("hook_") for part in parts}
    known = sorted(name for name in short if name and "." not in name)
    near = get_close_matches(site.removeprefix("hook_"), known, cutoff=0.4)
    return f"the blocks have no such hook point; near it are {', '.join(near or known)}"


def _wanted(
    model: ResValTransformer,
    pairs: PromptPairs,
    site: str,
    names: dict[int, str],
    positions: tuple[list[Any], Bool[Tensor, "label prompt pos"]],
    heads: Numbers | None,
    by: Sequence[str] | None,
) -> tuple[Site, dict[str, list[Any]], list[str]]:
    """The site, the labels along each axis that it has, and the axes that are kept."""
    first = next(iter(names.values()))
    cache, hooks, _ = model.get_caching_hooks(list(names.values()))
    with model.hooks(fwd_hooks=hooks):
        answer_logits(model, pairs.clean[:1], pairs.answers[:1])
    if first not in cache:
        raise ValueError(f"site={site!r}: the model's configuration leaves {first} unused")
    shape, axis = cache[first].shape, model.position_axis(first)
    assert axis is not None
    labels: dict[str, list[Any]] = {"layer": list(names)}
    labels["position"], where = positions
    which = None
    if len(shape) == 4:
        count = shape[1 if axis == 2 else 2]
        labels["head"] = among(whole_numbers(heads, "heads"), count, "heads")
        which = torch.eye(count, dtype=torch.bool)[labels["head"]]
    elif heads is not None:
        raise ValueError(f"heads={heads!r}: {site} has no heads")
    kept = list(labels) if by is None else list(by)
    for name in kept:
        if name not in labels or kept.count(name) > 1:
            raise ValueError(f"by={by!r}: a cell of {site} has one each of {', '.join(labels)}")
    if "layer" not in kept and len(names) > 1:
        raise ValueError(f"by={by!r} without 'layer' needs one layer; got layers {list(names)}")
    if "position" not in kept:
        where = where.any(0, keepdim=True)
    if which is not None and "head" not in kept:
        which = which.any(0, keepdim=True)
    device = cache[first].device
    is_local = first.rpartition("hook_")[2] in LOCAL
    return (
        Site(names, axis, is_local, where.to(device), None if which is None else which.to(device)),
        labels,
        kept,
    )


def _positions(
    pairs: PromptPairs, positions: Positions | None
) -> tuple[list[Any], Bool[Tensor, "label prompt pos"]]:
    """The labels of the chosen positions, and where each is."""
    every = torch.eye(pairs.length, dtype=torch.bool)
    if not isinstance(positions, Mapping):
        chosen = among(whole_numbers(positions, "positions"), pairs.length, "positions")
        return chosen, _aligned(pairs, every[chosen][:, None].expand(-1, len(pairs), -1))
    if not positions:
        raise ValueError("positions: the selection is empty; name one or more, or None for all")
    for name, where in positions.items():
        if where.shape != (len(pairs),):
            raise ValueError(
                f"positions[{name!r}] must hold one for each of the {len(pairs)} prompts; got "
                f"{list(where.shape)}"
            )
        beyond = where[(where < 0) | (where >= pairs.length)]
        if len(beyond):
            raise ValueError(
                f"positions[{name!r}]: {beyond[0].item()} is not among 0 to {pairs.length - 1}"
            )
    at = [every[where.cpu()] for where in positions.values()]
    found = _aligned(pairs, torch.stack(at))
    for name, own in zip(positions, found.any(-1), strict=True):
        if not own.all():
            row = int((~own).int().argmax())
            raise ValueError(
                f"positions[{name!r}]: {positions[name][row].item()} is padding in prompt {row}"
            )
    return list(positions), found


def _aligned(
    pairs: PromptPairs, where: Bool[Tensor, "label prompt pos"]
) -> Bool[Tensor, "label prompt own"]:
    """Of columns of the rows as given, those of the aligned prompts; no padding among them."""
    if pairs.mask is None:
        return where
    mask = pairs.mask.cpu()
    found = torch.stack([moved(columns & mask, first_own(mask)) for columns in where])
    return found[..., : int(mask.sum(1).max())]
