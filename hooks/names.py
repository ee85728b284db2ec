"""Names of hook points, checked against a model before anything runs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from resval_lens.lens.hook_names import full_hook_name
from resval_lens.streams import shorthand
from resval_lens.transformer import ResValTransformer

LAYER = re.compile(r"blocks\.(\d+)\.")
STREAM_POINT = re.compile(r"blocks\.(\d+)\.attn\.hook_([qkv])_(local|link|table)")


def known_hook_name(model: ResValTransformer, name: str, layer: int | None = None) -> str:
    """The full name of a hook point of ``model``, from TransformerLens's shorthand or a full name.

        known_hook_name(model, "v_link", 2)          # "blocks.2.attn.hook_v_link"
        known_hook_name(model, "blocks.2.attn.hook_v_link")

    Args:
        layer: for the shorthand; negative numbers count from the end.

    Raises:
        ValueError: the model has no such hook point: because it has no such layer or stream, or the
            layer does not receive; otherwise near names are suggested.
    """
    n_layers = model.cfg.n_layers
    if layer is not None and not -n_layers <= layer < n_layers:
        raise ValueError(
            f"no hook point {name!r} in layer {layer}: it is not among 0 to {n_layers - 1}"
        )
    found = full_hook_name(name, None if layer is None else layer % n_layers)
    if found in model.hook_dict:
        return found
    raise ValueError(f"no hook point {found!r}{_reason(model, found)}")


def known_hook_names(model: ResValTransformer, names: Iterable[str]) -> list[str]:
    """:func:`known_hook_name` of each."""
    return [known_hook_name(model, name) for name in names]


def _reason(model: ResValTransformer, name: str) -> str:
    cfg, in_layer, point = model.cfg, LAYER.match(name), STREAM_POINT.fullmatch(name)
    if in_layer and int(in_layer[1]) >= cfg.n_layers:
        return f": layer {in_layer[1]} is not among 0 to {cfg.n_layers - 1}"
    if point:
        layer, of, part = int(point[1]), point[2], point[3]
        streams = {stream.of: stream for stream in cfg.streams}
        if of not in streams:
            having = f"its configuration has streams={shorthand(cfg.streams)!r}"
            return f": this model has no {of} {part}: {having}"
        receiving = [i for i in range(cfg.n_layers) if streams[of].receives(i)]
        return f": layer {layer} receives no {of}; layers {receiving} do"
    near = difflib.get_close_matches(name, model.hook_dict, n=4)
    return f"; near: {', '.join(near)}" if near else "; model.hook_dict has all of this model's"
