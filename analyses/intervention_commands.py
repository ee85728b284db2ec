"""``resval-lens patch`` and ``resval-lens ablate``."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resval_lens.analyses.console import out, progress_bars
from resval_lens.analyses.options import Quiet, notes, numbers, writable

if TYPE_CHECKING:
    from resval_lens.analyses.subjects import ModelOnTask
    from resval_lens.hooks.patching import Positions

Model = Annotated[
    str,
    typer.Argument(
        help="stories-small-classic, stories-small-values; a classifier: classic, queries, keys, "
        "values; or the folder of a saved language model or of a training run."
    ),
]
Prompts = Annotated[int, typer.Option(help="Prompts, or test sequences of a classifier.")]
Seed = Annotated[int | None, typer.Option(help="Draws indirect-object prompts; 0 by default.")]
Twins = Annotated[
    str | None,
    typer.Option(
        help="Corrupted twins: giver, abc, position, token, token+position, random, "
        "random+position; of a classifier: labels or objects. The first by default."
    ),
]
General = Annotated[
    bool, typer.Option("--general", help="General prompts, not those of the stories.")
]
Out = Annotated[Path, typer.Option("--out", help="Folder for JSON and PNG.")]


def patch_command(
    model: Model = "stories-small-values",
    site: Annotated[
        str, typer.Option(help="Hook point of the blocks: z, resid_pre, v_link, pattern, ...")
    ] = "z",
    by: Annotated[
        str | None,
        typer.Option(
            help="What one cell has one of: layer, position, head, comma-separated; by default "
            "layer and head, or layer and position where there is one head or none."
        ),
    ] = None,
    direction: Annotated[
        str,
        typer.Option(help="denoise (corrupted run takes from clean) or noise (the other way)."),
    ] = "denoise",
    positions: Annotated[
        str | None,
        typer.Option(
            help="IO, S1, S1+1, S2, end, comma-separated; or numbers like 0,-1 or 0-3, or all: of "
            "the prompts of one length."
        ),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Like 0,2,-1 or 1-3.")] = None,
    heads: Annotated[str | None, typer.Option(help="Like 0,2,-1 or 1-3.")] = None,
    prompts: Prompts = 64,
    seed: Seed = None,
    twins: Twins = None,
    general: General = False,
    to: Out = Path("out"),
    quiet: Quiet = False,
) -> None:
    """Activation patching: which layers, heads and positions carry the answer?

    One run takes one activation from the other: how much of the gap between the clean prompts and
    their corrupted twins does it recover? Links are sites like any other: v_link, v_local.

    Example: `resval-lens patch --site v_link --by layer,position`
    """
    from resval_lens.analyses import figures
    from resval_lens.analyses.intervention_figures import patched
    from resval_lens.analyses.intervention_tables import patch_table
    from resval_lens.analyses.subjects import model_on_task
    from resval_lens.files import write_json
    from resval_lens.hooks.patching import AXES, patch
    from resval_lens.provenance import provenance
    from resval_lens.runtime import one_thread

    axes = None if by is None else tuple(name.strip() for name in by.split(","))
    for name in axes or ():
        if name not in AXES:
            raise ValueError(f"by must name some of {', '.join(AXES)}; got {name!r}")
    chosen_layers, chosen_heads = indices(layers, "layers"), indices(heads, "heads")
    with one_thread():
        chosen = model_on_task(model, prompts, seed, twins, general)
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
        recovered = result.recovered()
    found = {
        **chosen.facts(),
        "drawn": prompts,
        "general": general,
        "site": site,
        "direction": direction,
        "axes": result.axes,
        "patched_positions": labels,
        "patched_heads": "all" if chosen_heads is None else chosen_heads,
        "base": result.base,
        "source": result.source,
        "values": result.values.tolist(),
        "recovered": recovered.tolist(),
        "tokens": chosen.tokens() if isinstance(where, list) else None,
        "example": chosen.example(),
        "provenance": provenance(),
    }
    write_json(to / "patch.json", found)
    out.print(patch_table(found))
    if len(chosen.pairs) < prompts:
        out.print(
            f"Positions by number: {len(chosen.pairs)} of {prompts} prompts have "
            f"{chosen.pairs.length} tokens, the commonest length.",
            highlight=False,
        )
    path = figures.save(patched(found), to / "patch.png")
    out.print(f"{path}\n{to / 'patch.json'}", highlight=False)


def ablate_command(
    model: Model = "stories-small-values",
    edits: Annotated[
        str, typer.Option(help="Some of zero, mean, resample, comma-separated.")
    ] = "zero,mean,resample",
    factors: Annotated[
        str | None, typer.Option("--scale", help="Also scale links by these, like 0.5,2,-1.")
    ] = None,
    of: Annotated[str | None, typer.Option(help="Streams: letters of q, k, v; all.")] = None,
    layers: Annotated[str | None, typer.Option(help="Receiving layers, like 1,3 or 1-3.")] = None,
    heads: Annotated[str | None, typer.Option(help="Like 0,2,-1 or 0-3.")] = None,
    prompts: Prompts = 100,
    seed: Seed = None,
    twins: Twins = None,
    general: General = False,
    to: Out = Path("out"),
    quiet: Quiet = False,
) -> None:
    """Edit the links: what does the task lose without them?

    All links together, each layer's, and each alone are cut (zero), replaced by their mean at that
    position over as many other prompts (mean), or by what they carry on the corrupted twin
    (resample).

    Example: `resval-lens ablate values --scale -1,0.5,2`
    """
    from resval_lens.analyses import figures
    from resval_lens.analyses.ablation_study import ablation_study
    from resval_lens.analyses.intervention_figures import ablated
    from resval_lens.analyses.intervention_tables import ablation_table
    from resval_lens.analyses.subjects import on_two_sets
    from resval_lens.files import write_json
    from resval_lens.provenance import provenance
    from resval_lens.runtime import one_thread

    chosen_layers, chosen_heads = indices(layers, "layers"), indices(heads, "heads")
    scales, wanted = _factors(factors), [name.strip() for name in edits.split(",") if name.strip()]
    with notes(quiet) as note, one_thread():
        note("prompts")
        chosen, others = on_two_sets(model, prompts, seed, twins, general)
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
            note=note,
        )
    found = {**chosen.facts(), "general": general, **study, "example": chosen.example()}
    write_json(to / "ablate.json", {**found, "provenance": provenance()})
    out.print(ablation_table(found))
    path = figures.save(ablated(found), to / "ablate.png")
    out.print(f"{path}\n{to / 'ablate.json'}", highlight=False)


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


def _has_heads(chosen: ModelOnTask, site: str) -> bool:
    """Whether a layer's activation at ``site`` has more heads than one; no if there is no such."""
    from resval_lens.hook_names import full_hook_name

    model = chosen.model
    names = [full_hook_name(site, layer) for layer in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(
        chosen.pairs.clean[:1], names_filter=[name for name in names if name in model.hook_dict]
    )
    shapes: list[Any] = [x.shape for x in cache.values()]
    return bool(shapes) and len(shapes[0]) == 4 and model.cfg.n_heads > 1


def _positions(
    chosen: ModelOnTask, text: str | None, has_axis: bool
) -> tuple[ModelOnTask, Positions | None, Any]:
    """The prompts that ``text`` is meant for, the positions that it names, and these as JSON."""
    named = chosen.named_positions()
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
