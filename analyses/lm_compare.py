"""Classic beside residual-value language models on indirect objects: patched, ablated, looked at.

Measured live on the models given, on unseen names, frames and objects of the generated stories;
the twins differ in who gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from resval_lens.analyses.ablation_study import ablation_study
from resval_lens.analyses.circuit_compare import Studied, check_counts
from resval_lens.analyses.ioi import four_cells, ioi_scores
from resval_lens.analyses.lm_emergence import LMEmergence, lm_emergence
from resval_lens.analyses.result import plain
from resval_lens.analyses.story_loss import story_rows
from resval_lens.analyses.subjects import ModelOnTask, on_indirect_objects
from resval_lens.hooks.answers import right_padding
from resval_lens.hooks.patching import patch
from resval_lens.recorded_lm import RecordedLMRun
from resval_lens.runtime import evaluating
from resval_lens.tasks.ioi import encode
from resval_lens.tasks.leading import leading_token
from resval_lens.tasks.stories import ioi_prompts

Note = Callable[[str], None]

SCALES = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
GRAFTED = " + link"
PATCHED = {"resid_pre": ("layer", "position"), "z": ("layer", "head")}
"""Sites, and what one cell of their heat maps has one of; of links, a layer and a position."""


def compare_language_models(
    models: Sequence[Studied], prompts: int = 64, seed: int = 0, note: Note = lambda text: None
) -> dict[str, Any]:
    """What ``resval-lens compare`` says of language models beside their circuits, as JSON.

    Args:
        models: classic ones and ones with streams.
        prompts: in each set; links are mean-ablated by as many others.
        seed: draws prompts and twins.
        note: called with what is being done.

    Returns:
        ``scores``: of each model (:func:`~resval_lens.analyses.ioi.means`). ``links``: of each
        model with streams, and of the first classic one with the first one's streams grafted on,
        an :func:`~resval_lens.analyses.ablation_study.ablation_study` with scalings. ``patched``
        and ``attention``: of the first model of each architecture, every cell of ``PATCHED`` and
        of its links, and the patterns on one prompt. ``four_cells``: of each classic model and
        each with streams of its seed and size.

    Raises:
        ValueError: prompts below 1.
    """
    check_counts(prompts=prompts)
    drawn = ioi_prompts(prompts, seed, "unseen", "unseen", "unseen")
    first = {each.architecture: each for each in reversed(models)}
    chosen = [each for each in models if first[each.architecture] is each]
    found: dict[str, Any] = {"prompts": prompts, "seed": seed, "twins": "giver", "scores": {}}
    for each in models:
        note(f"{each.name}: indirect objects")
        batch = encode(drawn, each.model.tokenizer, leading_token(each.model))
        found["scores"][each.name] = {
            "architecture": each.architecture,
            "seed": each.seed,
            **ioi_scores(each.model, batch),
        }
    found["patched"] = [
        _patched(on_indirect_objects(each.name, each.model, prompts, seed, "giver"), site, note)
        for each in chosen
        for site in [*PATCHED, *(f"{stream.of}_link" for stream in each.model.cfg.streams)]
    ]
    found["attention"] = _attention(chosen, seed)
    found["links"] = {
        each.name: _link_study(each, prompts, seed, note) for each in _with_links(models)
    }
    found["four_cells"] = []
    for classic in models:
        for other in models:
            if classic.model.cfg.streams or not other.model.cfg.streams:
                continue
            if classic.seed == other.seed and _size(classic) == _size(other):
                note(f"four cells: {classic.name} and {other.name}")
                batch = encode(drawn, classic.model.tokenizer, leading_token(classic.model))
                cells = four_cells(classic.model, other.model, batch)
                found["four_cells"].append(
                    {
                        "classic": classic.name,
                        "stream": other.name,
                        "architecture": other.architecture,
                        "seed": classic.seed,
                        **cells,
                    }
                )
    found["found"] = sentences(found)
    return found


@dataclass(frozen=True)
class NotCompared:
    """Why runs are not compared."""

    reason: str


def emergence(runs: Sequence[RecordedLMRun]) -> LMEmergence | NotCompared:
    """:func:`~resval_lens.analyses.lm_emergence.lm_emergence`, or why there is none."""
    try:
        return lm_emergence(runs)
    except ValueError as error:
        return NotCompared(str(error))


def _with_links(models: Sequence[Studied]) -> list[Studied]:
    """Those with streams, and the first classic model with the first of these streams grafted."""
    streams = [each for each in models if each.model.cfg.streams]
    classic = next((each for each in models if not each.model.cfg.streams), None)
    if classic is None or not streams or _size(classic) != _size(streams[0]):
        return streams
    grafted = classic.model.with_streams(streams[0].model.cfg.streams, share_weights=True)
    return [*streams, replace(classic, name=classic.name + GRAFTED, model=grafted)]


def _size(each: Studied) -> tuple[Any, ...]:
    cfg = each.model.cfg
    return cfg.n_layers, cfg.n_heads, cfg.n_key_value_heads, cfg.d_model, cfg.d_head, cfg.d_mlp


def _patched(chosen: ModelOnTask, site: str, note: Note) -> dict[str, Any]:
    note(f"{chosen.name}: patching {site}")
    by = PATCHED.get(site, ("layer", "position"))
    where = chosen.named_positions() if "position" in by else None
    result = patch(chosen.model, chosen.pairs, site, positions=where, by=by)
    return {
        **plain(chosen.facts()),
        "site": site,
        "direction": result.direction,
        "axes": result.axes,
        "base": result.base,
        "source": result.source,
        "recovered": result.recovered().tolist(),
        "tokens": None,
        "example": plain(chosen.example()),
    }


def _link_study(each: Studied, prompts: int, seed: int, note: Note) -> dict[str, Any]:
    both = on_indirect_objects(each.name, each.model, 2 * prompts, seed, "giver")
    chosen, others = both.rows(slice(0, prompts)), both.rows(slice(prompts, None))
    study = ablation_study(
        chosen.model,
        chosen.pairs,
        others.pairs,
        chosen.measures,
        scales=SCALES,
        text=story_rows(chosen.model),
        note=lambda text: note(f"{each.name}: {text}"),
    )
    return {**plain(chosen.facts()), **study}


@torch.no_grad()
def _attention(models: Sequence[Studied], seed: int) -> dict[str, Any]:
    """Every head's pattern on the first prompt: {model: {"heads", "patterns"}}, and its tokens."""
    shown: dict[str, Any] = {"tokens": None, "models": {}}
    for each in models:
        chosen = on_indirect_objects(each.name, each.model, 1, seed, "giver")
        end = int(chosen.pairs.answers[0]) + 1
        layers = range(each.model.cfg.n_layers)
        names = [f"blocks.{layer}.attn.hook_pattern" for layer in layers]
        with evaluating(each.model):
            _, cache = each.model.run_with_cache(
                chosen.pairs.clean, names_filter=names, **right_padding(each.model)
            )
        patterns = torch.cat([cache[name][0, :, :end, :end] for name in names])
        shown["tokens"] = chosen.tokens()[:end]
        shown["models"][each.name] = {
            "heads": [
                f"{layer}.{head}" for layer in layers for head in range(each.model.cfg.n_heads)
            ],
            "patterns": [
                [[round(x, 4) for x in row] for row in head] for head in patterns.tolist()
            ],
        }
    return shown


def _called(links: str) -> str:
    return "all" if links == "all" else f"{links} (into layer {links[1:]})"


def sentences(found: dict[str, Any]) -> list[str]:
    """What cutting links does, in words, of every model with links of its own or grafted on."""
    said = []
    for name, study in found["links"].items():
        measure = study["measures"][0]
        cut = {
            row["links"]: row["measures"][measure]
            for row in study["rows"]
            if row["edit"] == "zero" and "." not in row["links"]
        }
        clean = study["clean"][measure]
        parts = ", ".join(f"{_called(links)} {value:.2f}" for links, value in cut.items())
        sentence = f"{name}: {measure} {clean:.2f}; with links cut, {parts}."
        losses = study.get("story_loss")
        if losses:
            beside = ", ".join(f"{_called(links)} {losses['cut'][links]:.2f}" for links in cut)
            own = ", ".join(f"{layer} {loss:.2f}" for layer, loss in losses["own cut"].items())
            sentence += (
                f" Loss on stories {losses['clean']:.2f} nats; with the same links cut, {beside}; "
                f"with layers' own values cut instead, {own}."
            )
        said.append(sentence)
    return said
