"""How cost grows with layers and with prompts: the curves of docs/how-to/cost.md.

    python -m tests.benchmarks.growth docs    # cost.json and cost.svg; a quarter of an hour

Random models of SmolLM2-135M's width, random prompts of 20 tokens, one thread, time of the
processor. Beside each time, what :func:`~resval_lens.analyses.circuits.cost.circuit_cost` said of
it before.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from resval_lens import ResValTransformer
from resval_lens.analyses.circuits.cost import circuit_cost
from resval_lens.analyses.circuits.running import EdgeRuns
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.analyses.drawing.figures import STYLE, logarithmic, save
from resval_lens.hooks import patch
from resval_lens.hooks.prompts import PromptPairs, logit_difference
from resval_lens.io.provenance import provenance
from resval_lens.models.language_models import language_model_config
from resval_lens.runtime import keep_freed_memory
from tests.benchmarks.gpu.analyses import SIZES
from tests.benchmarks.timing import clock

LENGTH = 20
LAYERS, PROMPTS = (5, 10, 20, 30), (8, 64, 256)
WORK = ("EAP", "EAP-IG, 5 steps", "a circuit", "a head patched")


def measure(layers: int, prompts: int) -> dict[str, float]:
    """Seconds of each kind of work, and those that were planned."""
    settings: dict[str, Any] = {**SIZES["135M"], "n_layers": layers, "device": "cpu"}
    cfg = language_model_config("llama-1b", "", **settings)
    model = ResValTransformer(cfg)
    drawn = torch.Generator().manual_seed(0)
    clean, corrupted = torch.randint(cfg.d_vocab, (2, prompts, LENGTH), generator=drawn)
    labels = torch.randint(cfg.d_vocab, (prompts, 2), generator=drawn)
    pairs = PromptPairs(clean, corrupted, logit_difference, labels)
    planned = {}
    for method, name in (("eap", "EAP"), ("eap-ig", "EAP-IG, 5 steps")):
        steps = circuit_cost(cfg, prompts, LENGTH, method).steps
        planned |= {name: steps[0].seconds, "a circuit": steps[1].seconds / steps[1].runs}
    found = {
        "EAP": seconds(lambda: score_edges(model, pairs, "eap")),
        "EAP-IG, 5 steps": seconds(lambda: score_edges(model, pairs, "eap-ig")),
    }
    runs = EdgeRuns(model, pairs)
    some = torch.rand(2, len(runs.graph), generator=drawn) < 0.05
    runs.values(some[:1])
    found["a circuit"] = seconds(lambda: runs.values(some[1:]))
    cells = [layers // 2]
    found["a head patched"] = (
        seconds(lambda: patch(model, pairs, "z", by=("layer", "head"), layers=cells)) / cfg.n_heads
    )
    return {**found, **{f"{name}, planned": value for name, value in planned.items()}}


def seconds(work: Callable[[], object]) -> float:
    start = clock()
    work()
    return clock() - start


def figure(rows: list[Mapping[str, float]]) -> Figure:
    """Seconds by layers on 64 prompts, and by prompts at 30 layers."""
    with plt.rc_context(STYLE):
        drawn, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
        for ax, by, other, at in (
            (axes[0], "layers", "prompts", 64),
            (axes[1], "prompts", "layers", max(LAYERS)),
        ):
            own = [row for row in rows if row[other] == at]
            for number, name in enumerate(WORK):
                x, colour = [row[by] for row in own], f"C{number}"
                ax.plot(x, [row[name] for row in own], "o-", color=colour, label=name)
                planned = [row.get(f"{name}, planned") for row in own]
                if None not in planned:
                    ax.plot(x, planned, ":", color=colour, alpha=0.6)
            ax.set(xlabel=f"{by}, with {at} {other}")
            logarithmic(ax, "x", at=x)
            logarithmic(ax, "y")
        axes[0].set_ylabel("seconds of one core")
        axes[0].legend(loc="upper left")
        return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    keep_freed_memory()
    rows: list[Mapping[str, float]] = []
    for layers in LAYERS:
        for prompts in PROMPTS:
            if layers == max(LAYERS) or prompts < max(PROMPTS):
                rows.append({"layers": layers, "prompts": prompts, **measure(layers, prompts)})
                print(rows[-1], flush=True)
    document = {"d_model": SIZES["135M"]["d_model"], "tokens": LENGTH, "rows": rows}
    text = json.dumps({**document, "provenance": provenance()}, indent=2)
    (folder / "cost.json").write_text(text + "\n")
    save(figure(rows), folder / "cost.svg")


if __name__ == "__main__":
    main()
