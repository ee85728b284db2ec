"""Circuits as pictures that answer: the strongest edges by a slider, layers folded, a node alone.

``circuit.js`` draws them from JSON, ``circuit.css`` says how they look; where boxes stand is that
of the still picture (:mod:`resval_lens.analyses.drawing.circuit_layout`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from resval_lens.analyses.circuits.ways import least_sizes
from resval_lens.analyses.display.page import data, scrolled, words
from resval_lens.analyses.drawing.circuit_layout import ARCS, HEIGHT, MARGIN, ROW, layout
from resval_lens.analyses.drawing.words import clean
from resval_lens.analyses.studies.circuit_drawing import (
    INTO,
    PORTS,
    Drawing,
    Line,
    lines,
    role_colours,
)

AT_FIRST = 60
"""Of a circuit of more edges than this by a third, about so many are shown at first."""
HINT = (
    "Point at an edge or a box, or touch it, and it says what it is. Click a box to keep its edges "
    "alone; Esc, or Unpin, brings the others back. By keyboard: Tab, then arrow keys, Enter and "
    "Esc. A wide picture scrolls sideways."
)


def circuits_body(drawings: Sequence[Drawing], name: str) -> str:
    """Circuits as HTML, side by side, without style and script.

    Args:
        name: what a screen reader says of them, before their titles.
    """
    colours = role_colours(drawings)
    drawn = [lines(each) for each in drawings]
    pictures = "".join(
        _circuit(each, own, colours, name) for each, own in zip(drawings, drawn, strict=True)
    )
    return (
        f'<div class="rv-circuits">{_legend(drawings, drawn, colours)}<p class="rv-hint">{HINT}</p>'
        f'<div class="rv-beside">{pictures}</div></div>'
    )


def _circuit(drawing: Drawing, drawn: Sequence[Line], colours: Mapping[str, str], name: str) -> str:
    held = _held(drawing, drawn, colours)
    title = words(drawing.title)
    called = words(f"{name}: {drawing.title}" if drawing.title else name)
    total = held["total"]
    return (
        f'<div class="rv-circuit" role="group" aria-label="{called}" '
        f'style="--rv-width: {held["width"]:.0f}px">'
        + (f"<h4>{title}</h4>" if title else "")
        + '<div class="rv-controls"><label>Strongest edges <input type="range" min="1" '
        f'max="{total}" value="{held["start"]}"></label>'
        '<label><input type="checkbox"> Group by layer</label>'
        '<button type="button" hidden>Unpin</button><output aria-live="polite"></output></div>'
        + '<div class="rv-pinned-edges" hidden><h5></h5><ul></ul></div>'
        + scrolled(f'<svg class="rv-graph" role="group" aria-label="{called}"></svg>')
        + "<noscript>The picture needs JavaScript; one without is saved as .svg or .png."
        f"</noscript>{data(held)}</div>"
    )


def _held(drawing: Drawing, drawn: Sequence[Line], colours: Mapping[str, str]) -> dict[str, Any]:
    """What ``circuit.js`` reads."""
    least = least_sizes(drawing.circuit, drawing.weights)
    own, total = layout(drawing.circuit.nodes), len(drawing.circuit.edges)
    sizes = sorted(least.values())
    return {
        "nodes": [
            {
                "name": name,
                "x": box.x,
                "width": box.width,
                "row": box.row,
                "raised": box.raised,
                "head": box.row.isdecimal() and not box.raised,
                "end": name in ("input", "logits"),
                "roles": [clean(role) for role in drawing.roles.get(name, ())],
            }
            for name, box in own.boxes.items()
        ],
        "lines": [
            {
                "edge": line.edge,
                "source": line.source,
                "target": line.target,
                "port": line.port,
                "link": line.link,
                "hurts": line.hurts,
                "strength": round(line.strength, 4),
                "text": clean(line.text),
                "least": least[line.edge],
            }
            for line in drawn
        ],
        "rows": own.rows,
        "roles": {clean(role): shade for role, shade in colours.items()},
        "sizes": {"row": ROW, "box": HEIGHT, "margin": MARGIN, "arcs": ARCS},
        "gutter": own.gutter,
        "middle": sum(own.heads) / 2,
        "width": own.width,
        "total": total,
        "start": sizes[AT_FIRST - 1] if total > AT_FIRST * 4 / 3 else total,
    }


def _legend(
    drawings: Sequence[Drawing], drawn: Sequence[Sequence[Line]], colours: Mapping[str, str]
) -> str:
    """What is there of kinds of lines, of ends, and of roles."""
    every = [line for own in drawn for line in own]
    kinds = sorted({(line.link, line.hurts) for line in every})
    found = []
    for link, hurts in kinds:
        kind = f"{'link' if link else 'residual'}{'-against' * hurts}"
        end = "M28 1V13" if hurts else "M22 2L30 7L22 12"
        sample = (
            f'<path class="rv-edge rv-{kind}" stroke-width="2.5" d="M0 7H24"/>'
            f'<path class="rv-edge rv-{kind}" style="stroke-dasharray:none" stroke-width="2.5" '
            f'd="{end}"/>'
        )
        name = "link" if link else "residual stream"
        against = f", against the metric ({_sign(-drawings[0].helps)}, ends in a bar)" * hurts
        found.append((sample, f"{name}{against}"))
    found += [
        (f'<path class="rv-end-{port}" d="M8 2L22 7L8 12z"/>', INTO[port])
        for port in PORTS
        if any(line.port == port for line in every)
    ]
    found += [
        (
            f'<rect class="rv-role" x="2" y="1" width="24" height="12" rx="3" '
            f'style="fill:{shade};stroke:{shade}"/>',
            role,
        )
        for role, shade in colours.items()
    ]
    items = "".join(
        f'<li><svg viewBox="0 0 30 14" aria-hidden="true">{sample}</svg>{words(text)}</li>'
        for sample, text in found
    )
    return f'<ul class="rv-legend">{items}</ul>'


def _sign(sign: int) -> str:
    return "above 0" if sign > 0 else "below 0"
