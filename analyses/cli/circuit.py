"""``resval-lens circuit`` and ``resval-lens attribute``."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from resval_lens.analyses.circuits.methods import METHODS
from resval_lens.analyses.circuits.selection import SELECTIONS, selection_of
from resval_lens.analyses.cli.completion import one_of
from resval_lens.analyses.cli.loading import load_options
from resval_lens.analyses.cli.options import (
    Chat,
    CorruptedBy,
    Device,
    DType,
    Fold,
    General,
    Json,
    LanguageModel,
    MaybeSeed,
    MaybeStreams,
    MetricName,
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
    writable,
)
from resval_lens.analyses.cli.reporting import report
from resval_lens.numbers import numbers

MethodName = Annotated[
    str,
    typer.Option(
        help=f"How edges are scored: {', '.join(METHODS)}.", autocompletion=one_of(*METHODS)
    ),
]
AVERAGING = {name: method.steps for name, method in METHODS.items() if method.steps}
IGSteps = Annotated[
    int | None,
    typer.Option(
        help=f"Runs that {' or '.join(AVERAGING)} averages over.",
        show_default=", ".join(map(str, AVERAGING.values())),
    ),
]
Minimality = Annotated[
    int, typer.Option(help="Edges to leave out one by one; drawn if there are more.")
]
Completeness = Annotated[
    int, typer.Option(help="Heads and MLPs to knock out one by one; drawn if there are more.")
]
DROPPING = [name for name, method in METHODS.items() if method.by_threshold]


def circuit_command(
    model: Model = "stories-small-values",
    method: MethodName = "eap-ig",
    ig_steps: IGSteps = None,
    select: Annotated[
        str,
        typer.Option(
            help=f"How scores choose edges: {', '.join(SELECTIONS)}.",
            autocompletion=one_of(*SELECTIONS),
        ),
    ] = "top",
    bootstrap: Annotated[
        int,
        typer.Option(
            help="Resamples of the prompts; edges whose scores change sign over them come last.",
            show_default="0: none",
        ),
    ] = 0,
    min_faithfulness: Annotated[
        float, typer.Option(help="Faithfulness that the circuit must have.")
    ] = 0.85,
    edges: Annotated[
        int | None,
        typer.Option(
            help="Number of edges of the circuit.",
            show_default="the fewest that are faithful enough",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Take the edges with at least this score (unit of the metric); "
            f"{' or '.join(DROPPING)} needs it and drops edges by it.",
            show_default="the fewest that are faithful enough",
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            help="Numbers of edges, like 10,100,1000, for faithfulness by size.",
            show_default="shares of all edges",
        ),
    ] = None,
    size_on_scored: Annotated[
        bool,
        typer.Option(
            "--size-on-scored",
            help="Choose the size on the scored prompts, too, so that held-out prompts choose "
            "nothing.",
        ),
    ] = False,
    minimality: Minimality = 256,
    completeness: Completeness = 64,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="Also score edges exactly, and show how far scores agree."),
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(
            help="File for all scores and the circuit, in the JSON of EAP-IG and MIB.",
            show_default="none is written",
        ),
    ] = None,
    import_: Annotated[
        Path | None,
        typer.Option(
            "--import",
            help="Such a file: use its scores, and evaluate its circuit unless --edges or "
            "--threshold choose another.",
            show_default="edges are scored",
        ),
    ] = None,
    metric: MetricName = None,
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
    """Find the circuit of a task: the fewest edges, links included, that do the model's work.

    Edges are scored on the prompts. The circuit's size is chosen, and the circuit is evaluated, on
    as many held-out prompts, with every other edge resampled from the corrupted prompts. In a model
    of more than 512 edges not every size is tried: sizes grow by half, then close in. The JSON
    lists the sizes tried.

    The command also measures what the circuit keeps of the task's other metrics, with other edges
    resampled or at means over corrupted prompts that are aligned with theirs. A difference of two
    logits is the same whether a model would say the two or anything else.

    Open circuit.html, in the output folder, in a browser to explore the circuit.

    Under torchrun, the processes divide the prompts; the first prints and writes.

    Example: `resval-lens circuit values --method exact`

    Example: `resval-lens circuit stories-small-classic --import found-elsewhere.json`
    """
    from resval_lens.analyses.circuits.graph import Graph
    from resval_lens.analyses.circuits.graph_file import ReadGraph, read_graph
    from resval_lens.analyses.circuits.study import circuit_study
    from resval_lens.analyses.report.circuit_page import circuit_page
    from resval_lens.analyses.studies.circuit import CircuitReport
    from resval_lens.analyses.tasks import Asked
    from resval_lens.analyses.tasks.problem import pose_two
    from resval_lens.hooks.processes import several_processes
    from resval_lens.runtime import one_thread

    if not 0 < min_faithfulness <= 1:
        raise ValueError(f"min_faithfulness must be above 0 and at most 1; got {min_faithfulness}")
    selection_of(select)
    counts = {"minimality": minimality, "completeness": completeness, "bootstrap": bootstrap}
    for name, count in counts.items():
        if count < 0:
            raise ValueError(f"{name} must be 0 or more; got {count}")
    wanted = None if sizes is None else numbers(sizes, "sizes")
    with ExitStack() as entered:
        process = entered.enter_context(several_processes(device))
        quiet = quiet or not process.is_first
        note = entered.enter_context(notes(quiet))
        entered.enter_context(one_thread())
        note("prompts")
        asked = Asked(seed, corruption, general, prepend, several_tokens, chat)
        how = load_options(streams, process.device, dtype, fold, setting)
        scored, held_out = pose_two(model, prompts, asked, task, how)
        tell_left_out(scored.left_out, quiet)
        if metric is not None:
            scored, held_out = scored.by(metric), held_out.by(metric)
        writable(to)
        had = ReadGraph(None, None)
        if export is not None or import_ is not None:  # their edges are those of each head
            scored.model.set_ungroup_grouped_query_attention(True)
        if export is not None:
            writable(export.parent)
        if import_ is not None:
            had = read_graph(import_, Graph.of(scored.model))
        if had.scores is not None and (method, ig_steps) != ("eap-ig", None):
            raise ValueError(f"{import_} has scores: leave out --method and --ig-steps")
        study = circuit_study(
            scored.model,
            scored.pairs,
            held_out.pairs,
            method=method,
            steps=ig_steps,
            select=select,
            bootstrap=bootstrap,
            min_faithfulness=min_faithfulness,
            edges=edges,
            threshold=threshold,
            sizes=wanted,
            size_on_scored=size_on_scored,
            exact=exact,
            most_edges=minimality,
            most_nodes=completeness,
            seed=seed or 0,
            metrics=held_out.metrics,
            scores=had.scores,
            given=had.circuit if edges is None and threshold is None else None,
            export=export if process.is_first else None,
            note=note,
        )
    if not process.is_first:
        return
    found = CircuitReport(
        scored.facts(),
        scored.general,
        scored.example(),
        scored.metric,
        study,
        None if import_ is None else str(import_),
    )
    pages = {to / "circuit.html": partial(circuit_page, found)} if study.circuit.edges else {}
    report(found, to, "circuit", as_json=as_json, pages=pages)


def attribute_command(
    model: LanguageModel = Path("stories-small-values"),
    prompts: Prompts = 64,
    seed: MaybeSeed = None,
    task: TaskName = None,
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
    """Show what writes the answer: exact shares of the logit difference, links apart.

    A head's share is split by the layer that its values come from. Each part has a score of how far
    its weights copy tokens. The logit lens is added.

    Example: `resval-lens attribute stories-small-classic`
    """
    from resval_lens.analyses.studies.attribution import attribution_study
    from resval_lens.analyses.tasks import Asked
    from resval_lens.analyses.tasks.problem import pose
    from resval_lens.runtime import one_thread

    with notes(quiet) as note, one_thread():
        note("prompts")
        asked = Asked(seed, None, general, prepend, several_tokens, chat)
        how = load_options(streams, device, dtype, fold, setting)
        chosen = pose(str(model), prompts, asked, task, how)
        tell_left_out(chosen.left_out, quiet)
        writable(to)
        study = attribution_study(chosen, chosen.general, note)
    report(study, to, "attribute", as_json=as_json)
