"""Activation patching at real size beside TransformerLens's and plain hooks.

Of the cells that ours patches a loop runs some, each as dear as any other; seconds are a cell's.
"""

import contextlib
import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformer_lens import patching as stock

from resval_lens.hooks.patching import patch
from resval_lens.hooks.prompts import PromptPairs, logit_difference
from tests.benchmarks.real_size import ROUNDS, Setting, agree, plain
from tests.benchmarks.timing import show, timed

LAYERS_PATCHED = 4


def some_layers(at: Setting) -> list[int]:
    n = at.model.cfg.n_layers
    return [int(n * (i + 0.5) / LAYERS_PATCHED) for i in range(LAYERS_PATCHED)]


def by_position(at: Setting) -> dict[str, Callable[[], Any]]:
    cells = [(i, j) for i in some_layers(at) for j in range(at.pairs.length)]
    theirs = partial(
        stocks, plain(at.stock), at, "resid_pre", stock.layer_pos_patch_setter, cells[::4]
    )
    ours = partial(patch, at.model, at.pairs, "resid_pre", layers=some_layers(at))
    return {f"TransformerLens, {len(cells[::4])} cells": theirs, f"ours, {len(cells)} cells": ours}


def by_head(at: Setting) -> dict[str, Callable[[], Any]]:
    cells = [(i, j) for i in some_layers(at) for j in range(at.model.cfg.n_heads)]
    theirs = partial(
        stocks, plain(at.stock), at, "z", stock.layer_head_vector_patch_setter, cells[::3]
    )
    ours = partial(patch, at.model, at.pairs, "z", layers=some_layers(at), by=("layer", "head"))
    return {f"TransformerLens, {len(cells[::3])} cells": theirs, f"ours, {len(cells)} cells": ours}


def links_by_head(at: Setting) -> dict[str, Callable[[], Any]]:
    """Of a model with links, :func:`linked`."""
    heads = at.model.cfg.n_heads_of("v")
    cells = [(i, j) for i in some_layers(at) for j in range(heads)]
    hooked = [(f"blocks.{i}.attn.hook_v_link", j) for i, j in cells]
    theirs = partial(in_a_loop, at.model, at.pairs, hooked[::2])
    ours = partial(
        patch, at.model, at.pairs, "v_link", layers=some_layers(at), by=("layer", "head")
    )
    return {f"plain hooks, {len(hooked[::2])} cells": theirs, f"ours, {len(cells)} cells": ours}


def patched() -> None:
    for at, what, every, peers in (
        (Setting(), "resid_pre by layer × position", 4, by_position),
        (Setting(), "z by layer × head", 3, by_head),
        (Setting(streams="v"), "v_link by layer × head", 2, links_by_head),
    ):
        theirs, ours = peers(at).values()
        agree(ours().values.flatten()[::every], theirs().flatten())
        seconds = timed(peers(at), ROUNDS, warm=False)
        one_cell = {name: [x / int(name.split()[-2]) for x in own] for name, own in seconds.items()}
        show(f"{at.title}: {what}, one cell", one_cell)


def stocks(
    model: Any, at: Setting, site: str, setter: Any, cells: Sequence[tuple[int, int]]
) -> Tensor:
    """TransformerLens's own."""
    frame = pd.DataFrame(cells, columns=["layer", "pos" if site == "resid_pre" else "head"])
    with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
        found: Tensor = stock.generic_activation_patch(
            model, at.pairs.corrupted, at.clean_cache, at.metric, setter, site,
            index_df=frame,
        )  # fmt: skip
    return found


@torch.no_grad()
def in_a_loop(model: Any, pairs: PromptPairs, cells: list[tuple[str, int]]) -> Tensor:
    """The corrupted run's mean metric with one head at a time from the clean run."""
    names = {name for name, _ in cells}
    _, cache = model.run_with_cache(pairs.clean, names_filter=lambda name: name in names)
    found = []
    for name, head in cells:

        def put(x: Tensor, hook: Any, head: int = head) -> Tensor:
            x[:, :, head] = cache[hook.name][:, :, head]
            return x

        logits = model.run_with_hooks(pairs.corrupted, fwd_hooks=[(name, put)])
        found.append(logit_difference(logits[:, -1], pairs.labels).mean())
    return torch.stack(found)
