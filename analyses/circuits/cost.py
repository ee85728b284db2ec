"""What finding a circuit will cost: time and memory, before a weight is loaded.

Two layers of the model's width, with random weights, are scored and run for a few seconds on the
device; what was measured is led to the model's layers and prompts:

    layers         time of a layer × layers
    edges          2 · edges · d_model · tokens multiplications and additions: they grow with the
                   square of the layers, and their speed is measured apart

How many runs there are follows from the study itself (:func:`circuit_study`).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from resval_lens.analyses.circuits.curve import FRACTIONS
from resval_lens.analyses.circuits.eap import numbers_per_token
from resval_lens.analyses.circuits.evaluation import MOST_EDGES, MOST_NODES
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.circuits.methods import EAP, method_of
from resval_lens.analyses.circuits.running import (
    MOST_HELD,
    EdgeRuns,
    most_numbers,
    numbers_of_prompt,
    prompts_at_once,
)
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.analyses.circuits.search import EVERY, most_runs
from resval_lens.analyses.results.result import Result
from resval_lens.config import ResValConfig
from resval_lens.hooks.prompts import MAX_TOKENS, PromptPairs, logit_difference, prompts_within
from resval_lens.training.plan import on_meta
from resval_lens.transformer import ResValTransformer

if TYPE_CHECKING:
    from rich.table import Table

PROBED_LAYERS = 2
PROBED_WORDS = 256
"""The vocabulary of the layers that are measured; a whole one's logits are counted apart."""


@dataclass(frozen=True)
class Speed:
    """What was measured, in seconds or operations a second.

    Attributes:
        scoring: EAP of ``PROBED_LAYERS`` layers on one call's prompts.
        step: each further step of EAP-IG.
        run: an exact run of a circuit on one call's prompts, from the first layer on.
        dots: operations a second of differences · gradients.
        sums: of the sums that readers read.
    """

    scoring: float
    step: float
    run: float
    dots: float
    sums: float


@dataclass(frozen=True)
class Step:
    """One step of the study: how many runs of all prompts at most, and how many seconds."""

    what: str
    runs: int
    seconds: float


@dataclass(frozen=True)
class CircuitCost(Result):
    """What :func:`circuit_study` costs.

    Attributes:
        prompts, length: how many prompts, of how many tokens each.
        at_once: prompts in one call of the model, while scoring and while running circuits.
        weights, scoring, running: bytes of the weights, and held beside them, at most.
        steps: what is done, in order; ``seconds`` of all together.
    """

    layers: int
    d_model: int
    edges: int
    prompts: int
    length: int
    at_once: tuple[int, int]
    weights: int
    scoring: int
    running: int
    steps: tuple[Step, ...]
    device: str
    dtype: str

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return sum(step.seconds for step in self.steps)

    def tables(self) -> list[Table | str]:
        """The steps, and the memory."""
        from resval_lens.analyses.results.tables import table

        time_ = table(
            f"A circuit among {self.edges:,} edges: {self.prompts} prompts of {self.length} tokens",
            ["step"],
            ["runs, at most", "about"],
            [
                *([step.what, f"{step.runs:,}", duration(step.seconds)] for step in self.steps),
                None,
                ["all", "", duration(self.seconds)],
            ],
            f"measured on {PROBED_LAYERS} layers of this width, {self.dtype} on {self.device}",
        )
        rows = (
            ("weights", self.weights),
            (f"scoring, {self.at_once[0]} prompts at once", self.scoring),
            (f"circuits, {self.at_once[1]} prompts at once", self.running),
        )
        memory = table(
            "Memory", ["what is held"], ["GB"], [[what, f"{x / 1e9:,.3f}"] for what, x in rows]
        )
        return [time_, memory]

    def sentences(self) -> list[str]:
        """The dearest step, and what makes it cheaper."""
        dearest = max(self.steps, key=lambda step: step.seconds)
        cheaper = {
            MINIMALITY: "--minimality tries fewer edges",
            COMPLETENESS: "--completeness knocks out fewer heads",
            SEARCH: "--edges takes a size instead of searching for one",
        }
        advice = cheaper.get(dearest.what, "fewer --prompts, or --method eap, cost less")
        return [f"Most time goes into {dearest.what.split(' (')[0]}: {advice}."]


SEARCH = "the smallest circuit"
MINIMALITY = "minimality (each edge of the circuit left out)"
COMPLETENESS = "completeness (heads and MLPs knocked out)"


def duration(seconds: float) -> str:
    """``"40 s"``, ``"12 min"``, ``"3.5 h"``, ``"2.1 days"``; ``"< 1 s"``."""
    for unit, size, digits in (("days", 86_400, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 2 * size or (unit == "min" and seconds >= 90):
            return f"{seconds / size:,.{digits}f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "< 1 s"


def circuit_cost(
    cfg: ResValConfig,
    prompts: int = 64,
    length: int = 20,
    method: str = "eap-ig",
    steps: int | None = None,
    most_edges: int = MOST_EDGES,
    most_nodes: int = MOST_NODES,
    max_tokens: int = MAX_TOKENS,
    speed: Speed | None = None,
) -> CircuitCost:
    """What a circuit of a model of this configuration costs, on ``cfg.device`` in ``cfg.dtype``.

    Args:
        prompts: to score edges on, and as many to evaluate circuits on.
        length: tokens of a prompt.
        method, steps: as in :func:`~resval_lens.analyses.circuits.scores.score_edges`.
        most_edges, most_nodes: tried for minimality and completeness, as in ``circuit_study``.
        speed: what was measured before; by default it is measured now.

    Raises:
        ValueError: a model without a graph of edges, prompts or a length below 1, a method that
            averages over nothing and is given steps, or one that corrupts edge after edge: its runs
            are as many as there are edges.
    """
    if prompts < 1 or length < 1:
        raise ValueError(f"prompts and length must be 1 or more; got {prompts} and {length}")
    for name, count in (("minimality", most_edges), ("completeness", most_nodes)):
        if count < 0:
            raise ValueError(f"{name} must be 0 or more; got {count}")
    how = method_of(method)
    if not isinstance(how, EAP):
        raise ValueError(f"plans are for eap and eap-ig; {method} runs the model for every edge")
    steps, _ = how.settle(steps, None)
    graph, device = Graph(cfg), torch.device(str(cfg.device))
    per_token, most = numbers_per_token(graph), most_numbers(device)
    scored = min(prompts, prompts_within(min(max_tokens, max(1, most // per_token)), length))
    run = min(prompts, prompts_at_once(graph, length, max_tokens, most))
    speed = measured(cfg, length, scored, run) if speed is None else speed
    share = cfg.n_layers / PROBED_LAYERS
    work = 2 * len(graph) * cfg.d_model * length  # of all edges, on one prompt
    logits = 2 * cfg.d_model * cfg.d_vocab / speed.dots
    scoring = math.ceil(prompts / scored) * share * (speed.scoring + (steps - 1) * speed.step)
    scoring += prompts * (steps * work / speed.dots + (2 + 2 * steps) * logits)
    once = math.ceil(prompts / run) * share * speed.run + prompts * (work / speed.sums + logits)
    searched = len(graph) if len(graph) <= EVERY else most_runs(len(graph))
    without, nodes = min(most_edges, len(graph)), min(most_nodes, len(graph.writers))
    done = [
        Step(f"scoring edges by {method}", 1 + steps, scoring),
        Step("the model and its corrupted prompts", 2, 2 * once),
        Step("circuits by size", len(FRACTIONS), len(FRACTIONS) * once),
        Step(SEARCH, searched, searched * once),
        Step("random circuits, the circuit without its links", 31, 31 * once),
        # They branch off the circuit's run in the layer of what goes: half of the layers are left.
        Step(MINIMALITY, without, without * once / 2),
        Step(COMPLETENESS, 2 * nodes, 2 * nodes * once / 2),
        Step("what it keeps of other metrics", 6, 6 * once),
    ]
    bytes_ = torch.promote_types(cfg.dtype, torch.float32).itemsize
    held = (max(MOST_HELD, most) + 2 * most) * cfg.dtype.itemsize
    own = numbers_of_prompt(graph, length) * prompts * cfg.dtype.itemsize
    return CircuitCost(
        cfg.n_layers,
        cfg.d_model,
        len(graph),
        prompts,
        length,
        (scored, run),
        sum(x.numel() for x in on_meta(cfg).parameters()) * cfg.dtype.itemsize,
        per_token * length * scored * bytes_,
        min(held, own),
        tuple(done),
        str(device),
        str(cfg.dtype).removeprefix("torch."),
    )


def measured(cfg: ResValConfig, length: int, scored: int, run: int) -> Speed:
    """Two layers of that width at work, on so many prompts at once."""
    few = copy.deepcopy(cfg).with_streams("")
    few.n_layers, few.d_vocab, few.d_vocab_out = PROBED_LAYERS, PROBED_WORDS, PROBED_WORDS
    few.init_weights = True
    if few.attn_types:
        few.attn_types = [few.attn_types[i % cfg.n_layers] for i in range(PROBED_LAYERS)]
    with torch.random.fork_rng():
        model = ResValTransformer(few).eval()
    drawn = torch.Generator().manual_seed(0)

    def pairs(prompts: int) -> PromptPairs:
        clean, corrupted = torch.randint(PROBED_WORDS, (2, prompts, length), generator=drawn)
        labels = torch.randint(PROBED_WORDS, (prompts, 2), generator=drawn)
        return PromptPairs(clean, corrupted, logit_difference, labels).to(cfg.device)

    own, graph = pairs(scored), Graph.of(model)
    scoring = seconds(lambda: score_edges(model, own, "eap", max_tokens=scored * length))
    two = seconds(lambda: score_edges(model, own, "eap-ig", steps=2, max_tokens=scored * length))
    runs = EdgeRuns(model, pairs(run), graph, max_tokens=run * length)
    some = torch.rand(1, len(graph), generator=drawn) < 0.01
    # Not by `values`, which does not run a circuit twice.
    once = seconds(lambda: runs.by_metrics(some, {"": logit_difference}))
    readers = sum(len(reader.names) for reader in graph.readers if reader.layer == 0)
    whole = Graph(cfg)
    writers = max(1, len(whole.writers) // 2)
    numbers = cfg.d_model * length
    written = torch.ones(writers, run, numbers, device=cfg.device, dtype=torch.float32)
    rows = torch.ones(readers, run, numbers, device=cfg.device)
    weights = torch.ones(readers, writers, device=cfg.device)
    operations = 2 * readers * writers * run * numbers
    dots = seconds(lambda: torch.einsum("hbn,wbn->bhw", rows, written))
    sums = seconds(lambda: torch.einsum("hw,wbn->bhn", weights, written))
    return Speed(
        scoring, max(two - scoring, 0.1 * scoring), once, operations / dots, operations / sums
    )


def seconds(work: Callable[[], object], least: float = 0.2, most: int = 20) -> float:
    """Of one call, the fastest of a few after a first.

    With one thread on a CPU it is the processor's time, that of a core that does nothing else.
    """
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    clock = time.process_time if alone else time.perf_counter
    work()
    found: list[float] = []
    while len(found) < 2 or (sum(found) < least and len(found) < most):
        start = clock()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(clock() - start)
    return min(found)
