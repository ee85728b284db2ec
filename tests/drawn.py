"""Small inputs of figures and displays, and what is drawn of them, read back from the SVG."""

import json
import re
import zlib
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from resval_lens.analyses.circuits.circuit import Circuit
from resval_lens.analyses.circuits.curve import Curve
from resval_lens.analyses.circuits.evaluation import (
    CircuitMetric,
    EdgesTried,
    Ends,
    EvaluatedCircuit,
    Measured,
    NodesTried,
    RandomCircuits,
)
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.circuits.running import MeasuredBy
from resval_lens.analyses.circuits.scores import EdgeScores
from resval_lens.analyses.circuits.search import Tried
from resval_lens.analyses.circuits.study import CircuitStudy, Prompts, StudiedCircuit
from resval_lens.analyses.comparison.icl import LinkStudy
from resval_lens.analyses.display.svg import svg
from resval_lens.analyses.studies.ablation import Ablation, AblationRow, AblationStudy
from resval_lens.analyses.studies.ablations import ABLATIONS
from resval_lens.analyses.studies.patching import Patching
from resval_lens.analyses.tasks.problem import Facts
from resval_lens.hooks.patching import PatchResult
from resval_lens.training import ICLRun
from resval_lens.training.recorded import RecordedRun
from tests.helpers import tiny_config

TASKS = ("test", "ic", "ic2", "iw")
NASTY = ["<b>", "a&b", 'say "x"', "</script><b>", "<!--", "it's", "$$", "$\\frac$"]
"""Tokens that mean something to HTML, JavaScript or matplotlib."""
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
Marks = dict[str, ElementTree.Element]


def patch_result(
    sizes: dict[str, int], direction: str = "denoise", names: Sequence[str] = (), seed: int = 0
) -> PatchResult:
    """A patching of these axes, whose cells recover from −0.8 to 1.2 of a gap from −1.5 to 2.5."""
    shape = tuple(sizes.values())
    shares = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 0.8
    values = -1.5 + 4 * shares
    axes: dict[str, list[Any]] = {name: list(range(size)) for name, size in sizes.items()}
    if names:
        axes["position"] = list(names)
    return PatchResult(values, values[..., None], -1.5, 2.5, axes, "v_link", direction)


def found(sizes: dict[str, int], **changes: Any) -> Patching:
    """What ``patch`` reports."""
    result = patch_result(sizes, **changes)
    return Patching(
        facts=facts("m"), site=result.site, direction=result.direction, axes=result.axes,
        base=result.base, source=result.source, recovered=(result.values + 1.5) / 4, example=None,
    )  # fmt: skip


def facts(model: str) -> Facts:
    """Of a model on indirect objects."""
    return Facts(model, "v", "indirect objects", "random-S2", 0, 4, "logit difference", None, ())


def graph(n_key_value_heads: int | None = None) -> Graph:
    """Two layers of four heads whose values flow."""
    changes = {} if n_key_value_heads is None else {"n_key_value_heads": n_key_value_heads}
    return Graph(tiny_config(streams="v", n_layers=2, **changes))


MEASURED_BY = MeasuredBy("resample from the corrupted prompt", "edges", "some prompts")
CIRCUIT = ("input->a0.h0<v>", "input->m0", "a0.h0<v>->a1.h0<v>", "a1.h0->logits", "m0->a1.h1<q>")


def scored_circuit(of: Graph | None = None) -> tuple[Circuit, EdgeScores]:
    """Five edges, one of them a link, and a score for every edge of the graph."""
    of = of or graph()
    scores = torch.linspace(-1.2345, 2.3456, len(of))
    return Circuit.of(of, CIRCUIT), EdgeScores(of, scores, "eap-ig", 5, 3)


def kind_of_edge(edge: str) -> str:
    """What a picture says of an edge besides its weight."""
    port = {"q": "query", "k": "key", "v": "value"}.get(edge[-2], "")
    if ">->" in edge:
        return f"{port} link"
    return f"{port}, residual stream" if edge.endswith(">") else "residual stream"


def evaluated_circuit(of: Graph | None = None) -> EvaluatedCircuit:
    """The same as ``evaluate`` gives it."""
    circuit, _ = scored_circuit(of)
    return EvaluatedCircuit(
        **vars(circuit.named()),
        metric=CircuitMetric(0.9, 1.0, 0.0),
        prompts=4,
        status="valid",
        reason=None,
        faithfulness=0.9,
        faithfulness_without_links=0.1,
        random=RandomCircuits(10, 0.0, 0.0),
        minimality={edge: 0.5 - 0.777 * i for i, edge in enumerate(circuit.edges)},
        completeness=(),
        measured=Measured(EdgesTried(5, 5), NodesTried(0, 6)),
        measured_by=MEASURED_BY,
    )


def circuit_study(sizes: Sequence[int], faithfulness: Sequence[float]) -> CircuitStudy:
    """A study of that circuit with this curve."""
    curve = Curve(
        tuple(size / 2000 for size in sizes), tuple(sizes), tuple(faithfulness), 0.5, 0.5, None,
        MEASURED_BY,
    )  # fmt: skip
    return CircuitStudy(
        "eap", None, Prompts(4, 4), Ends(1.0, 0.0), (), curve, 0.85, Tried(5),
        StudiedCircuit(**vars(evaluated_circuit()), path_length=3.0), {}, None, 1,
    )  # fmt: skip


def ablation(scales: Sequence[float] = (), seed: int = 0) -> AblationStudy:
    """What ``ablation_study`` gives of a model of two layers of links."""
    drawn = np.random.default_rng(seed)
    edits = [*ABLATIONS, *(f"scale {c:g}" for c in scales)]
    rows = [
        AblationRow(links, 4, edit, {"logit difference": drawn.normal(), "p": drawn.random()})
        for links in ("all", "v1", "v2", "v1.0", "v2.3")
        for edit in edits
    ]
    return AblationStudy(
        prompts=4,
        others=4,
        mean_prompts=4,
        measures=["logit difference", "p"],
        edits={name: each.meaning for name, each in ABLATIONS.items()},
        scales=list(scales),
        links=8,
        story_loss=None,
        clean={"logit difference": 3.2, "p": 0.9},
        corrupted={"logit difference": -3.1, "p": 0.1},
        rows=rows,
    )


def named_ablation(model: str) -> Ablation:
    """The same in a report."""
    return Ablation(facts(model), False, ablation(), None)


def link_study(seed: int = 0) -> LinkStudy:
    """What ``link_study`` gives of one model."""
    drawn = np.random.default_rng(seed)
    factors = (-1.0, 0.0, 0.5, 1.0, 2.0)
    scale = {c: dict(zip(TASKS, drawn.random(4).tolist(), strict=True)) for c in factors}
    mean = dict(zip(TASKS, drawn.random(4).tolist(), strict=True))
    return LinkStudy([], 1, scale, mean, whole={}, cut={}, without={})


def patterns(heads: int = 4, length: int = 5, seed: int = 0) -> Tensor:
    """Causal attention, [head, query, key]."""
    scores = torch.randn(heads, length, length, generator=torch.Generator().manual_seed(seed))
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1)


def icl_runs() -> list[RecordedRun[ICLRun]]:
    """Two variants, two seeds each, that ended at different steps."""
    drawn = np.random.default_rng(0)

    def recorded(name: str, seed: int, snapshots: int) -> RecordedRun[ICLRun]:
        metrics = [
            {"step": 500 * i, **{t: {"accuracy": drawn.random(), "loss": drawn.random() * 3}
                                 for t in TASKS}}
            for i in range(1, snapshots + 1)
        ]  # fmt: skip
        streams = "v" if name == "values" else ""
        return RecordedRun(ICLRun(name, streams=streams, seed=seed), [], metrics, Path(name))

    return [recorded("classic", 0, 9), recorded("classic", 1, 7),
            recorded("values", 0, 6), recorded("values", 1, 90)]  # fmt: skip


def root_of(figure: Figure) -> ElementTree.Element:
    root = ElementTree.fromstring(svg(figure, "a figure", "x"))
    plt.close(figure)
    return root


def marks_of(root: ElementTree.Element) -> Marks:
    """Marks by what they say, in their order."""
    found = [e for e in root.iter() if e.get("class") == "rv-mark"]
    named = {e.attrib["aria-label"]: e for e in found}
    assert len(named) == len(found), "two marks say the same"
    return named


def said(figure: Figure) -> list[str]:
    return list(marks_of(root_of(figure)))


def corners(mark: ElementTree.Element) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a mark's first path, or of where its marker stands."""
    placed = next(mark.iter(f"{SVG}use"), None)
    if placed is not None:
        x, y = float(placed.attrib["x"]), float(placed.attrib["y"])
        return x, y, x, y
    path = next(mark.iter(f"{SVG}path")).attrib["d"]
    numbers = np.array(re.findall(r"-?\d+(?:\.\d+)?", path), dtype=float).reshape(-1, 2)
    (left, top), (right, bottom) = numbers.min(0), numbers.max(0)
    return left, top, right, bottom


def fill(mark: ElementTree.Element) -> str:
    return re.search(r"fill: (#\w+)", next(mark.iter(f"{SVG}path")).attrib["style"])[1]


def signed(x: float, digits: int = 3) -> str:
    """A number with so many digits, with a true minus sign and none before zeros."""
    text = f"{abs(x):.{digits}f}"
    return f"−{text}" if x < 0 and float(text) else text


def value(text: str) -> float:
    return float(text.rpartition(" ")[2].replace("\N{MINUS SIGN}", "-"))


def straight(pixels: list[float], values: list[float]) -> bool:
    """Whether ``pixels`` are a linear function of ``values``, one that is not constant."""
    slope, offset = np.polyfit(values, pixels, 1)
    off = np.abs(slope * np.array(values) + offset - pixels).max()
    return bool(abs(slope) > 1 and off < 0.01 * np.ptp(pixels))


def luminance(colour: str) -> float:
    """W3C's relative luminance of ``#rrggbb``."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def heads_shown(body: str) -> list[dict[str, Any]]:
    """What ``attention.js`` reads, its weights as [head, query, key], in the order of the page."""
    held = re.findall(r'class="rv-heads".*?<script type="application/json">(.*?)</script>', body)
    shown = [json.loads(each) for each in held]
    for data in shown:
        flat = np.frombuffer(zlib.decompress(b64decode(data["weights"])), "<u2") / 10_000
        n, count = len(data["tokens"]), len(data["names"])
        weights = np.zeros((count, n, n))
        where = np.tril_indices(n) if data["causal"] else np.indices((n, n)).reshape(2, -1)
        weights[:, where[0], where[1]] = flat.reshape(count, -1)
        data["weights"] = weights
    return shown
