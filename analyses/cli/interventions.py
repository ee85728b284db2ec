"""``resval-lens patch`` and ``resval-lens ablate``."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resval_lens.analyses.cli import completion
from resval_lens.analyses.cli.completion import of_task, one_of, some_of
from resval_lens.analyses.cli.console import progress_bars
from resval_lens.analyses.cli.loading import load_options
from resval_lens.analyses.cli.options import (
    Chat,
    CorruptedBy,
    Device,
    DType,
    Fold,
    General,
    Heads,
    Json,
    Layers,
    MaybeSeed,
    MaybeStreams,
    Model,
    Out,
    Prepend,
    Prompts,
    Quiet,
    Setting,
    SeveralTokens,
    TaskName,
    notes,
    tell_left_out,
    words,
    writable,
)
from resval_lens.analyses.cli.reporting import report
from resval_lens.analyses.studies.ablations import ABLATIONS
from resval_lens.analyses.tasks import TASKS
from resval_lens.numbers import numbers

if TYPE_CHECKING:
    from resval_lens.analyses.tasks.problem import Problem
    from resval_lens.hooks.patching import Positions


def patch_command(
    model: Model = "stories-small-values",
    site: Annotated[
        str,
        typer.Option(
            help="Hook point of the blocks: z, resid_pre, v_link, pattern, ...",
            autocompletion=one_of(*completion.SITES),
        ),
    ] = "z",
    by: Annotated[
        str | None,
        typer.Option(
            help="Axes of the cells: layer, position, head, comma-separated.",
            show_default="layer,head, or layer,position where there is one head or none",
            autocompletion=some_of(*completion.AXES),
        ),
    ] = None,
    direction: Annotated[
        str,
        typer.Option(
            help="denoise (clean activations into the corrupted run) or noise (the reverse).",
            autocompletion=one_of(*completion.DIRECTIONS),
        ),
    ] = "denoise",
    positions: Annotated[
        str | None,
        typer.Option(
            help="; ".join(
                f"of {task.name} {', '.join(task.positions)}"
                for task in TASKS.values()
                if task.positions
            )
            + ", comma-separated; or numbers like 0,-1 or 0-3, or all: of prompts of one length.",
            show_default="all named positions, or all",
            autocompletion=of_task(lambda task: (*task.positions, "all"), some_of),
        ),
    ] = None,
    layers: Layers = None,
    heads: Heads = None,
    prompts: Prompts = 64,
    seed: MaybeSeed = None,
    task: TaskName = None,
    corruption: CorruptedBy = None,
    general: General = None,
    several_tokens: SeveralTokens = False,
    chat: Chat = False,
    prepend: Prepend = "auto",
    streams: MaybeStreams = None,
    dtype: DType = None,
    fold: Fold = False,
    setting: Setting = None,
    device: Device = "cpu",
    to: Out = Path("out"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Patch activations: which layers, heads and positions carry the answer?

    One run takes one activation from the other. How much of the gap between clean and corrupted
    prompts does this recover? Links are sites like any other: v_link, v_local.

    Example: `resval-lens patch --site v_link --by layer,position`
    """
    from resval_lens.analyses.studies.patching import Patching
    from resval_lens.analyses.tasks import Asked
    from resval_lens.analyses.tasks.problem import pose
    from resval_lens.hooks.patching import AXES, patch
    from resval_lens.runtime import one_thread

    axes = None if by is None else tuple(words(by))
    for name in axes or ():
        if name not in AXES:
            raise ValueError(f"by must name some of {', '.join(AXES)}; got {name!r}")
    chosen_layers, chosen_heads = indices(layers, "layers"), indices(heads, "heads")
    with one_thread():
        asked = Asked(seed, corruption, general, prepend, several_tokens, chat)
        how = load_options(streams, device, dtype, fold, setting)
        chosen = pose(model, prompts, asked, task, how)
        tell_left_out(chosen.left_out, quiet)
        if axes is None:
            axes = ("layer", "head") if _has_heads(chosen, site) else ("layer", "position")
        chosen, where, labels = _positions(chosen, positions, "position" in axes)
        writable(to)
        with progress_bars(quiet) as bars:
            bar = bars.add_task(f"{site} by {', '.join(axes)}", total=None, note="")
            result = patch(
                chosen.model,
                chosen.pairs,
                site,
                layers=chosen_layers,
                positions=where,
                heads=chosen_heads,
                by=axes,
                direction=direction,
                progress=lambda done, total: bars.update(bar, completed=done, total=total),
            )
        found = replace(
            Patching.of(chosen, result),
            drawn=prompts,
            general=chosen.general,
            patched_positions=labels,
            patched_heads="all" if chosen_heads is None else chosen_heads,
            values=result.values,
            tokens=chosen.tokens() if isinstance(where, list) else None,
        )
    report(found, to, "patch", as_json=as_json)


def ablate_command(
    model: Model = "stories-small-values",
    edits: Annotated[
        str,
        typer.Option(
            help="; ".join(f"{each.name}: a link {each.meaning}" for each in ABLATIONS.values())
            + ". Comma-separated.",
            autocompletion=some_of(*ABLATIONS),
        ),
    ] = ",".join(ABLATIONS),
    factors: Annotated[
        str | None,
        typer.Option(
            "--scale", help="Also scale links by these, like 0.5,2,-1.", show_default="none"
        ),
    ] = None,
    of: Annotated[
        str | None,
        typer.Option(
            help="Links of these streams, letters of q, k, v.",
            show_default="all",
            autocompletion=one_of(*completion.STREAMS),
        ),
    ] = None,
    layers: Layers = None,
    heads: Heads = None,
    prompts: Prompts = 100,
    seed: MaybeSeed = None,
    task: TaskName = None,
    corruption: CorruptedBy = None,
    general: General = None,
    several_tokens: SeveralTokens = False,
    chat: Chat = False,
    prepend: Prepend = "auto",
    streams: MaybeStreams = None,
    dtype: DType = None,
    fold: Fold = False,
    setting: Setting = None,
    device: Device = "cpu",
    to: Out = Path("out"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Edit the links: what does the task lose without them?

    It edits all links together, those of each receiving layer, and each link alone. A link carries
    something else (--edits; means are over as many other prompts) or a multiple of its value
    (--scale). For prompts of the stories it adds the loss on validation stories: a cut may harm all
    text, not only the task.

    Example: `resval-lens ablate values --scale -1,0.5,2`
    """
    from resval_lens.analyses.studies.ablation import Ablation, ablation_study
    from resval_lens.analyses.studies.story_loss import story_rows
    from resval_lens.analyses.tasks import Asked
    from resval_lens.analyses.tasks.problem import pose_two
    from resval_lens.runtime import one_thread

    chosen_layers, chosen_heads = indices(layers, "layers"), indices(heads, "heads")
    scales, wanted = _factors(factors), words(edits)
    with notes(quiet) as note, one_thread():
        note("prompts")
        asked = Asked(seed, corruption, general, prepend, several_tokens, chat)
        how = load_options(streams, device, dtype, fold, setting)
        chosen, others = pose_two(model, prompts, asked, task, how)
        tell_left_out(chosen.left_out, quiet)
        writable(to)
        study = ablation_study(
            chosen.model,
            chosen.pairs,
            others.pairs,
            chosen.measures,
            edits=wanted,
            scales=scales,
            of=of,
            layers=chosen_layers,
            heads=chosen_heads,
            text=story_rows(chosen.model) if chosen.of_stories else None,
            note=note,
        )
    found = Ablation(chosen.facts(), chosen.general, study, chosen.example())
    report(found, to, "ablate", as_json=as_json)


def indices(text: str | None, name: str) -> list[int] | None:
    """Whole numbers, negative ones too, from ``"0,2,-1"`` or ``"0-3"``; None stays None.

    Raises:
        ValueError: anything else, or none.
    """
    return None if text is None else numbers(text, name, negative=True)


def _factors(text: str | None) -> list[float]:
    try:
        found = [float(part) for part in (text or "").split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"scale must be numbers like 0.5,2,-1; got {text!r}") from None
    for factor in found:
        if not math.isfinite(factor):
            raise ValueError(f"scale must be finite numbers; got {factor}")
    return found


def _has_heads(chosen: Problem, site: str) -> bool:
    """Whether a layer's activation at ``site`` has more heads than one; no if there is no such."""
    from resval_lens.lens.hook_names import full_hook_name

    model = chosen.model
    names = [full_hook_name(site, layer) for layer in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(
        chosen.pairs.clean[:1], names_filter=[name for name in names if name in model.hook_dict]
    )
    shapes: list[Any] = [x.shape for x in cache.values()]
    return bool(shapes) and len(shapes[0]) == 4 and model.cfg.n_heads > 1


def _positions(
    chosen: Problem, text: str | None, has_axis: bool
) -> tuple[Problem, Positions | None, Any]:
    """The prompts that ``text`` is meant for, the positions that it names, and these as JSON."""
    named = chosen.named_positions
    if text is None:
        if not has_axis:
            return chosen, None, "all"
        text = ",".join(named) or "all"
    words = [word.strip() for word in text.split(",") if word.strip()]
    if words != ["all"] and re.search("[A-Za-z]", text):
        for word in words:
            if word not in named:
                known = (
                    f"among {', '.join(named)}, or numbers alone"
                    if named
                    else f"numbers 0 to {chosen.pairs.length - 1} for a classifier"
                )
                raise ValueError(f"positions must be {known}; got {word!r}")
        return chosen, {word: named[word] for word in words}, words
    chosen = chosen.of_one_length()
    every = list(range(chosen.pairs.length))
    where = every if words == ["all"] else indices(text, "positions")
    return chosen, where, where
