"""Editing links: cut them, scale them, replace them by a mean or by another run's.

    with cut_links(model, layers=[1]):
        logits = model(inputs)

Every edit comes as a list of hooks for ``run_with_hooks`` (:func:`link_hooks`) and as a context
manager that always restores (:func:`edit_links`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from resval_lens.hooks.answers import right_padding
from resval_lens.hooks.links import LinkLike, Numbers, links, whole_links, whole_numbers
from resval_lens.hooks.padding import (
    Mask,
    first_own,
    moved,
    own_tokens,
    refuse_padding_around,
    refuse_unmasked,
)
from resval_lens.hooks.prompts import MAX_TOKENS, check_model, prompts_within, wide
from resval_lens.transformer import ResValTransformer

Heads = Float[Tensor, "batch pos head d_head"]
Edit = Callable[[Heads, str], Tensor]
"""What to put in a link's place, from what arrives there and its hook point's name; anything that
broadcasts to [batch, pos, head, d_head]."""


def zero() -> Edit:
    """The link carries nothing."""
    return lambda link, name: torch.zeros_like(link)


def scale(factor: float) -> Edit:
    """The link carries ``factor`` times what it would: 1 changes nothing, 0 cuts."""
    if not torch.isfinite(torch.tensor(float(factor))):
        raise ValueError(f"factor must be a finite number; got {factor!r}")
    return lambda link, name: factor * link


def mean(
    reference: Mapping[str, Tensor], per_position: bool = True, mask: Mask | None = None
) -> Edit:
    """The link carries its mean over a reference run (:func:`link_activations`).

    Args:
        per_position: a mean for each position; otherwise one over all positions. A position should
            mean the same in every row.
        mask: True at the reference's own tokens, [row, pos]; what padding carries is left out.
    """
    axes = (0,) if per_position else (0, 1)
    means = {name: _mean(x, axes, mask) for name, x in reference.items()}
    return lambda link, name: _known(means, name)


def _mean(x: Heads, axes: tuple[int, ...], mask: Mask | None) -> Tensor:
    if mask is None:
        return x.mean(axes, keepdim=True)
    own = own_tokens(mask, x)[..., None, None].to(x.device)
    kept = wide(x) * own
    totals, counts = kept.sum(axes, keepdim=True), own.sum(axes, keepdim=True)
    overall = kept.sum((0, 1), keepdim=True) / own.sum()
    return torch.where(counts > 0, totals / counts.clamp(min=1), overall).to(x.dtype)


def freeze(reference: Mapping[str, Tensor]) -> Edit:
    """The link carries what it does in another run (:func:`link_activations`)."""
    return lambda link, name: _known(reference, name)


def resample(reference: Mapping[str, Tensor], rows: Int[Tensor, " batch"]) -> Edit:
    """The link of row i carries what it does in row ``rows[i]`` of another run.

        reference = link_activations(model, others)
        rows = torch.randint(len(others), (len(inputs),), generator=generator)

    Every link takes from the same rows: together they carry what belongs together. On corrupted
    prompts with ``rows = arange`` it is :func:`freeze`: each prompt takes from its own.

    Args:
        reference: from :func:`link_activations`, of any number of rows.
        rows: which of them each row of the edited run takes from.

    Raises:
        ValueError: a row that the reference run does not have.
    """
    count = min((len(x) for x in reference.values()), default=0)
    beyond = rows[(rows < 0) | (rows >= count)]
    if len(beyond):
        raise ValueError(f"rows: {beyond[0].item()} is beyond the reference run's {count} rows")
    return lambda link, name: _known(reference, name)[rows.to(link.device)]


def _known(reference: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in reference:
        raise ValueError(f"the reference run holds no {name}; record it with link_activations")
    return reference[name]


@torch.no_grad()
def link_activations(
    model: ResValTransformer,
    inputs: Any,
    selected: Iterable[LinkLike] | None = None,
    mask: Mask | None = None,
) -> dict[str, Tensor]:
    """What each link carries on ``inputs``: hook point name to [batch, pos, head, d_head].

    Args:
        inputs: tokens, text, or a classifier's vectors.
        mask: of tokens that are padded, True at a row's own, as a tokenizer's ``attention_mask``:
            there each row carries what it does alone. Positions are those of ``inputs``.

    Raises:
        ValueError: rows that look padded on the left without a mask, or a mask that does not fit.
    """
    check_model(model)
    names = _heads(model, selected)
    back = None
    if mask is not None:
        mask = own_tokens(mask, inputs)
        refuse_padding_around(model, mask)
        back = first_own(mask)
        inputs = moved(inputs, back)
    elif isinstance(inputs, Tensor) and not inputs.is_floating_point():
        refuse_unmasked(model, inputs, "inputs")
    _, cache = model.run_with_cache(
        inputs, names_filter=lambda name: name in names, **right_padding(model)
    )
    return {name: x if back is None else moved(x, -back) for name, x in cache.items()}


@torch.no_grad()
def mean_link_activations(
    model: ResValTransformer,
    inputs: Tensor,
    selected: Iterable[LinkLike] | None = None,
    last: Int[Tensor, " row"] | None = None,
    mask: Mask | None = None,
    max_tokens: int = MAX_TOKENS,
) -> dict[str, Float[Tensor, "1 pos head d_head"]]:
    """What each link carries at each position, averaged over the rows that have it.

    :func:`link_activations`, then the mean, of any number of rows; for :func:`freeze`. A position
    that none of them has gets the mean over all positions. A position should mean the same in every
    row: take rows of one template.

    Args:
        inputs: rows, padded on the right where they have a ``last`` position.
        mask: of rows that are padded on either side, True at their own tokens.
        max_tokens: rows × positions of one model call, one row at least.
    """
    length = inputs.shape[1]
    last = torch.full((len(inputs),), length - 1) if last is None else last.cpu()
    own = torch.arange(length) <= last[:, None]  # [row, pos]
    own = own if mask is None else own_tokens(mask, inputs).cpu()
    size = prompts_within(max_tokens, length)
    masks: Sequence[Any] = [None] * len(inputs) if mask is None else own.split(size)
    sums: dict[str, Tensor] = {}
    for rows, reached, masked in zip(inputs.split(size), own.split(size), masks, strict=False):
        for name, x in link_activations(model, rows, selected, masked).items():
            part = (wide(x) * reached[..., None, None].to(x.device)).sum(0)
            sums[name] = sums[name] + part if name in sums else part
    counts, means = own.sum(0), {}
    for name, total in sums.items():
        n = counts.to(total)[:, None, None]
        found = torch.where(n > 0, total / n.clamp(min=1), total.sum(0) / n.sum())[None]
        means[name] = found.to(model.cfg.dtype)
    return means


def link_hooks(
    model: ResValTransformer,
    edit: Edit,
    selected: Iterable[LinkLike] | None = None,
    positions: Numbers | None = None,
) -> list[Any]:
    """Hooks that apply ``edit`` to the selected links, for ``model.run_with_hooks(fwd_hooks=...)``.

    Args:
        selected: links or their names: from :func:`~resval_lens.hooks.links.links`, or a circuit's
            (``Circuit.links``), whose parts of one link must all be there; all links by default.
        positions: token positions to edit; all by default, negative ones count from the end. With
            a key-value cache, positions of the tokens that this call is given.

    Raises:
        ValueError: a link that the model does not have; when run: a position beyond the prompt,
            or a replacement of another shape.
    """
    several = list(positions) if isinstance(positions, Iterable) else positions
    chosen = [] if several == [] else whole_numbers(several, "positions")
    return [
        (name, partial(_apply, edit, which, chosen))
        for name, which in _heads(model, selected).items()
    ]


def _heads(model: ResValTransformer, selected: Iterable[LinkLike] | None) -> dict[str, list[int]]:
    """The selected links' heads by hook point."""
    chosen = links(model) if selected is None else whole_links(model.cfg, selected)
    heads: dict[str, list[int]] = {}
    for link in chosen:
        heads.setdefault(link.hook_name, []).append(link.head)
    return heads


def _apply(
    edit: Edit, heads: list[int], positions: list[int] | None, link: Tensor, hook: HookPoint
) -> Tensor:
    replacement = edit(link, str(hook.name))
    try:
        replacement = replacement.expand_as(link)
    except RuntimeError:
        raise ValueError(
            f"{hook.name} is {list(link.shape)}; its replacement is {list(replacement.shape)}"
        ) from None
    length = link.shape[1]
    for position in positions or ():
        if not -length <= position < length:
            raise ValueError(f"positions: {position} is beyond the prompt's {length} tokens")
    where = list(range(length)) if positions is None else positions
    edited = link.clone()
    rows, columns = torch.tensor(where, dtype=torch.long)[:, None], torch.tensor(heads)
    edited[:, rows, columns] = replacement[:, rows, columns]
    return edited


@contextmanager
def edit_links(
    model: ResValTransformer,
    edit: Edit,
    selected: Iterable[LinkLike] | None = None,
    *,
    of: str | None = None,
    layers: Numbers | None = None,
    heads: Numbers | None = None,
    positions: Numbers | None = None,
) -> Iterator[ResValTransformer]:
    """The model with some links edited; as it was afterwards, whatever happens inside.

    ``model.reset_hooks()`` inside, in any form, removes others' hooks; the edit holds to the end.

        with edit_links(model, zero(), ["v1.h2", "v1.h3"]):      # as layers=1, heads=[2, 3]

    Args:
        selected: as in :func:`link_hooks`; or else
        of, layers, heads: as in :func:`~resval_lens.hooks.links.links`.

    Raises:
        ValueError: both, or as :func:`link_hooks`.
    """
    if selected is None:
        selected = links(model, of, layers, heads)
    elif (of, layers, heads) != (None, None, None):
        raise ValueError(
            f"links are selected twice: by name, and by of={of!r}, layers={layers!r}, "
            f"heads={heads!r}"
        )
    hooks = link_hooks(model, edit, selected, positions)
    with held_hooks(model, hooks):
        yield model


@contextmanager
def held_hooks(model: ResValTransformer, hooks: Sequence[tuple[str, Any]]) -> Iterator[None]:
    """``model.hooks(fwd_hooks=hooks)``, out of reach of ``model.reset_hooks()``.

    They are PyTorch's hooks: TransformerLens resets those that it knows. A copy of the model that
    is made meanwhile has them, too, and they end there as they do here.
    """
    with ExitStack() as stack:
        held = [True]
        stack.callback(held.clear)
        for name, hook in hooks:

            def run(point: HookPoint, _: Any, x: Tensor, hook: Any = hook) -> Any:
                return hook(x, hook=point) if held else None

            stack.callback(model.hook_dict[name].register_forward_hook(run).remove)
        yield


def cut_links(
    model: ResValTransformer, selected: Iterable[LinkLike] | None = None, **selection: Any
) -> AbstractContextManager[ResValTransformer]:
    """The model with some links cut (set to zero), those that :func:`edit_links` edits.

    After ``process_weights_`` the value biases, and what the links brought of them, are part of the
    output biases: a cut removes the rest.
    """
    return edit_links(model, zero(), selected, **selection)


def scale_links(
    model: ResValTransformer,
    factor: float,
    selected: Iterable[LinkLike] | None = None,
    **selection: Any,
) -> AbstractContextManager[ResValTransformer]:
    """The model with some links scaled by ``factor``, those that :func:`edit_links` edits."""
    return edit_links(model, scale(factor), selected, **selection)
