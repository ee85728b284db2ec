"""A model as a notebook shows it: its size, and what each layer receives along its links."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from torch import Tensor

from resval_lens.lens.hook_names import source_point
from resval_lens.mixing import StreamMix
from resval_lens.numbers import number
from resval_lens.streams import TABLE, AttentionStream, architecture

if TYPE_CHECKING:
    from resval_lens.transformer import ResValTransformer

_CELL = "text-align: left; padding: .15em 1em .15em 0; vertical-align: top"


def model_html(model: ResValTransformer) -> str:
    """A heading and a table with a row for each link point: what arrives, whence, how weighted.

    Weights are those of now: of learned mixes, the trained ones.
    """
    cfg = model.cfg
    parameters = sum(parameter.numel() for parameter in model.parameters())
    parts = [
        f"{_count(cfg.n_layers, 'layer')} × {_count(cfg.n_heads, 'head')} of {cfg.d_head}",
        f"d_model {cfg.d_model}",
        "attention only" if cfg.attn_only else f"d_mlp {cfg.d_mlp}",
        f"{parameters:,} parameters",
        str(cfg.dtype).removeprefix("torch."),
    ]
    heading = (
        f"<strong>{escape(type(model).__name__)}</strong>, "
        f"{escape(architecture(cfg.streams))}: {', '.join(parts)}"
    )
    if not cfg.streams:
        return f'<div class="rv">{heading}. No links: streams="".</div>'
    head = "".join(
        f'<th scope="col" style="{_CELL}">{name}</th>'
        for name in ("layer", "attention uses", "what arrives", "hook point of the link")
    )
    rows = "".join(
        _row(model, stream, layer)
        for layer in range(cfg.n_layers)
        for stream in cfg.streams
        if stream.receives(layer)
    )
    return (
        f'<div class="rv" style="overflow-x: auto">{heading}'
        '<table style="border-collapse: collapse; margin: .4em 0">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _row(model: ResValTransformer, stream: AttentionStream, layer: int) -> str:
    mix = model.blocks[layer].attn.mix(stream.of)
    of, heads = stream.of, model.cfg.n_heads_of(stream.of)
    sources = stream.sources(layer)
    assert mix is not None  # it receives
    own, carried = _weights(mix)
    used = f"{of} = {own}{of}_local + {of}_link"
    if stream.detach:
        used += " (no gradient through the link)"
    parts = " + ".join(
        f"{weight}<code>{escape(_source_point(stream, source, layer))}</code>"
        for weight, source in zip(carried, sources, strict=True)
    )
    hook = f"blocks.{layer}.attn.hook_{of}_link"
    cells = (
        used,
        parts + (" (learned)" if stream.is_learned else ""),
        f"<code>{hook}</code> [batch, pos, {heads}, {model.cfg.d_head}]",
    )
    return (
        f'<tr><th scope="row" style="{_CELL}">{layer}</th>'
        + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells)
        + "</tr>"
    )


def _source_point(stream: AttentionStream, source: int, layer: int) -> str:
    if source == TABLE:
        return f"blocks.{layer}.attn.hook_{stream.of}_table"
    return source_point(stream, source)


def _weights(mix: StreamMix) -> tuple[str, list[str]]:
    """The weights of the own part and of what each source passes on, as factors."""
    if mix.stream.how.is_gated:
        how, several = mix.stream.how, mix.sizes.sources
        share = "" if how.a == "1" else f"({how.a}) · "
        return share, [f"{how.b} (per token and head) · "] * several
    own, carried = mix.weights()
    return _times(own), [_times(weight) for weight in carried]


def _times(weight: float | Tensor) -> str:
    """A weight as a factor, nothing for a fixed 1."""
    if not isinstance(weight, Tensor):
        return "" if weight == 1 else f"{number(weight, 'g')} · "
    if weight.ndim == 2:
        return f"[{' × '.join(map(str, weight.shape))} heads] "
    several = ", ".join(number(w, ".3g") for w in weight.flatten().tolist())
    return f"({several}; per head) · " if weight.ndim else f"{several} · "
