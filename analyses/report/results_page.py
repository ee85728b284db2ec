"""The recorded runs in tables of Markdown, ours beside the published: the results page.

Everything is computed from the runs that ship and from the JSON that lies beside the page when the
page is built; no number on it is written by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from resval_lens.analyses.comparison.circuit_findings import MetricMatrix, OverSeeds
from resval_lens.analyses.comparison.icl_emergence import (
    NO_GAIN_CONTROL,
    PUBLISHED,
    TABLES,
    paper_runs,
)
from resval_lens.analyses.comparison.icl_emergence import emergence as emergence_study
from resval_lens.analyses.comparison.link_controls import first_of, link_controls
from resval_lens.analyses.comparison.link_in_training import LinkInTraining
from resval_lens.analyses.papers.amicl.accuracy import PUBLISHED_COUNTS, figure_7
from resval_lens.analyses.papers.memory.comparable import shown
from resval_lens.analyses.papers.memory.curves import (
    MEASURES,
    ONE_LAYER,
    TWO_LAYERS,
    Measure,
    curve_study,
)
from resval_lens.analyses.papers.memory.training import MemoryRun
from resval_lens.analyses.report import pretrained
from resval_lens.analyses.report.findings import FINDINGS, finding, recorded_orders
from resval_lens.analyses.report.gain import gain_section
from resval_lens.analyses.report.grafts import graft_section
from resval_lens.analyses.report.language_models import (
    four_cells,
    language_models,
    loss_matched,
    published_table_2,
    real_text,
    sizes,
)
from resval_lens.analyses.report.link_over_seeds import link_over_seeds_section
from resval_lens.analyses.report.markdown import (
    as_markdown,
    bullets,
    made,
    markdown_table,
)
from resval_lens.analyses.report.selections import selections
from resval_lens.analyses.report.ways import ways
from resval_lens.analyses.results.seeds import spread
from resval_lens.io.files import read_json
from resval_lens.runtime import one_thread
from resval_lens.training.graft_run import GraftRun
from resval_lens.training.icl_run import ICLRun, draw_world
from resval_lens.training.lm_run import LMRun
from resval_lens.training.recorded import SHIPPED, RecordedRun, load_runs

FOLLOWED: tuple[Measure, ...] = ("W_F", "W_K2", "W_O2", "W_K1", "accuracy")
"""Measures of :mod:`~resval_lens.analyses.papers.memory.curves` that the page has."""


def section(name: str, folder: Path) -> str:
    """One part of the page as Markdown; ``folder`` holds the studies' JSON.

    Raises:
        ValueError: there is no part of that name.
    """
    sections: dict[str, Callable[[], str]] = {
        **{table: lambda t=above: emergence(t) for table, above in TABLES.items()},  # type: ignore[misc]
        **{each: lambda name=each: finding(name, folder) for each in FINDINGS},  # type: ignore[misc]
        "gain-or-stream": gain_section,
        "further-variants": further_variants,
        "final-accuracy": lambda: final_accuracy(load_runs(ICLRun)),
        "papers-text": papers_text,
        "link-in-training": lambda: link_in_training(
            read_json(folder / "link-in-training.json", "a study")
        ),
        "link-controls": link_controls_table,
        "link-over-seeds": link_over_seeds_section,
        "language-models": language_models,
        "loss-matched": loss_matched,
        "real-text": real_text,
        "sizes": sizes,
        "published-table-2": published_table_2,
        "four-cells": four_cells,
        "circuits": lambda: circuits(read_json(folder / "circuits.json", "a study")),
        "selections": lambda: selections(read_json(folder / "selections.json", "a study")),
        **{each: lambda name=each: pretrained.part(name, folder) for each in pretrained.STUDIES},  # type: ignore[misc]
        "four-ways": lambda: ways(read_json(folder / "four-ways.json", "a study")),
        "circuits-by-metric": lambda: circuits_by_metric(
            read_json(folder / "circuits-by-metric.json", "a study")
        ),
        "memory": memory,
        "amicl": amicl,
        "grafts": graft_section,
        "provenance-graft": lambda: provenance_table(load_runs(GraftRun)),
        "provenance-icl": lambda: provenance_table(load_runs(ICLRun)),
        "provenance-lm": lambda: provenance_table(load_runs(LMRun)),
        "provenance-nanochat": lambda: provenance_table(load_runs(LMRun, SHIPPED / "nanochat")),
        "provenance-memory": lambda: provenance_table(load_runs(MemoryRun)),
    }
    if name not in sections:
        raise ValueError(f"the results page has no part {name!r}; it has {', '.join(sections)}")
    with one_thread():
        return sections[name]()


def emergence(threshold: float) -> str:
    """Tables 1, 5 and 6 of arXiv 2412.15113: the first snapshot above ``threshold``, and t-tests.

    Ours beside the published, mean ± population sd over seeds, in snapshots of 500 steps.
    """
    study = emergence_study(paper_runs(load_runs(ICLRun)), threshold)
    theirs = PUBLISHED[threshold]["ic"]
    said = (
        f"Values pass {threshold:g} on IC after {study.saving('ic', 'values'):.0%} fewer steps "
        f"than classic; published: {1 - theirs['values'][0] / theirs['classic'][0]:.0%}. "
        f"{NO_GAIN_CONTROL}"
    )
    return "\n\n".join([said, *as_markdown([study.table(), study.test_table(("classic",))])])


def further_variants() -> str:
    """What the paper leaves open, at .95: gradient blocked, several streams, an even mix."""
    study = emergence_study(load_runs(ICLRun), 0.95)
    own = tuple(row for row in study.rows if row.published is None)
    return "\n\n".join(as_markdown([replace(study, rows=own).table()]))


def final_accuracy(runs: Sequence[RecordedRun[ICLRun]]) -> str:
    """Accuracies of every variant of two-layer runs at its last step, mean ± sd over seeds."""
    tasks = ("test", "ic", "ic2", "iw")
    rows = []
    for name in dict.fromkeys(recorded.run.name for recorded in runs):
        own = [recorded for recorded in runs if recorded.run.name == name]
        cells = []
        for task in tasks:
            cells.append(_spread([each.metrics[-1][task]["accuracy"] for each in own], ".3f"))
        steps = ", ".join(sorted({f"{each.run.steps:,}" for each in own}))
        rows.append([name, str(len(own)), steps, *cells])
    return markdown_table(["stream", "seeds", "steps", "Test", "IC", "IC2", "IW"], rows)


def papers_text() -> str:
    """Classifiers by the paper's text: whether IC passes .95, and where they end."""
    runs = load_runs(ICLRun, SHIPPED / "icl-paper")
    said = bullets(emergence_study(runs, 0.95).sentences())
    return f"{said}\n\n{final_accuracy(runs)}\n{provenance_table(runs)}"


def link_in_training(document: Mapping[str, Any], every: int = 3_000) -> str:
    """Accuracies as trained → with the links cut, every so many steps of one run."""
    study = LinkInTraining.from_dict(document)
    tasks = ("test", "ic", "ic2", "iw")
    rows = [
        [f"{each.step:,}"] + [f"{each.trained[task]:.3f} → {each.cut[task]:.3f}" for task in tasks]
        for each in study.snapshots
        if each.step % every == 0
    ]
    worst = max(study.snapshots, key=lambda each: each.trained["ic"] - each.cut["ic"])
    last = study.snapshots[-1]
    said = (
        f"{study.run.name}, seed {study.run.seed}, {study.sequences:,} sequences of each test. The "
        f"cut costs most at step {worst.step:,}: IC {worst.trained['ic']:.2f} → "
        f"{worst.cut['ic']:.2f}; at step {last.step:,} it is {last.trained['ic']:.2f} → "
        f"{last.cut['ic']:.2f}."
    )
    table = markdown_table(["step", "Test", "IC", "IC2", "IW"], rows, 0)
    return f"{said}\n\n{table}\n{made(document['provenance'])}"


def link_controls_table(sequences: int = 1_000) -> str:
    """The cut of each shipped model with a link beside changes of gain; seed 0, run now."""
    rows = []
    for recorded in load_runs(ICLRun):
        if recorded.has_model and recorded.run.streams:
            _, tests = draw_world(recorded.run)
            found = link_controls(recorded.model(), first_of(tests, sequences), recorded.run.seed)
            rows += [
                [recorded.run.name, name, *(f"{row[task]:.3f}" for task in ("ic", "ic2", "iw"))]
                for name, row in found.items()
            ]
    table = markdown_table(["stream", "edit", "IC", "IC2", "IW"], rows, 2)
    return f"One seed of each (0), {sequences:,} sequences of each test, run now.\n\n{table}"


def circuits(report: Mapping[str, Any]) -> str:
    """Circuits by task and architecture over seeds, and what was found, in words."""
    columns = {
        "edges": ".1f", "of": ".0f", "faithfulness": ".2f", "links in it": ".1f",
        "share through links": ".0%", "model, links corrupted": ".0%",
    }  # fmt: skip
    rows = []
    for row in map(OverSeeds.from_dict, report["over_seeds"]):
        measures = [(row.measures.get(name), form) for name, form in columns.items()]
        cells = ["" if x is None else _spread(x.by_seed, form) for x, form in measures]
        rows.append([row.task, row.metric, row.architecture, str(len(row.seeds)), *cells])
    table = markdown_table(["task", "metric", "model", "seeds", *columns], rows, 3)
    said = bullets(report["found"])
    return f"{table}\n{said}\n\n{made(report['provenance'])}"


def circuits_by_metric(report: Mapping[str, Any]) -> str:
    """Circuits chosen by each metric, and what each keeps of all."""
    matrices = [MetricMatrix.from_dict(each) for each in report["matrices"]]
    rows = [
        [
            matrix.architecture,
            circuit.by,
            str(circuit.n_edges),
            str(len(circuit.links)),
            *(own.told(" / ", ".2f") for own in circuit.measured.values()),
            f"{circuit.measured['P(IO)'].resample.circuit:.3f} of "
            f"{circuit.measured['P(IO)'].clean:.3f}",
        ]
        for matrix in matrices
        for circuit in matrix.circuits
    ]
    names = [f"f, {name}" for name in matrices[0].circuits[0].measured]
    columns = ["model", "chosen by", "edges", "links", *names, "P(IO)"]
    table = markdown_table(columns, rows, 2)
    return (
        "f: all other edges resampled / at means. P(IO): resampled, and of the whole model.\n\n"
        f"{table}\n{made(report['provenance'])}"
    )


def memory() -> str:
    """Simplified transformers: when each memory is there, and accuracy at 128 and 256 tokens."""
    runs = plain_memory_runs()
    study = curve_study(runs)
    rows = []
    for name, variant in study.variants.items():
        own = [recorded for recorded in runs if recorded.run.name == name]
        first = variant.first
        cells = [
            shown(first[measure], ".0f") if measure in first and
            first[measure].mean is not None else "" for measure in FOLLOWED
        ]  # fmt: skip
        cells[-1] = cells[-1] or "never"
        for where in ("trained", "longer"):
            cells.append(_spread([each.metrics[-1][where]["accuracy"] for each in own], ".3f"))
        rows.append([name, str(len(own)), *cells])
    heads = [MEASURES[measure].label for measure in FOLLOWED]
    return (
        f"Steps of the first snapshot, of one in {study.run.snapshot_every}, above "
        f"{study.level:g} (W_F: above {study.known:.0%} of what the bigrams determine); "
        "empty where no seed passes. The last columns are in-context accuracies at the end. "
        f"Published, about: {TWO_LAYERS:g} for two layers, {ONE_LAYER:g} for one.\n\n"
        + markdown_table(["variant", "seeds", *heads, "128 tokens", "256 tokens"], rows)
        + "\n"
        + memory_order()
    )


def memory_order() -> str:
    """Which memory is learned first by triggers and level: a table and what it says."""
    study = recorded_orders()
    said = bullets(study.sentences())
    return "\n\n".join([*as_markdown(study.tables()), said])


def plain_memory_runs() -> list[RecordedRun[MemoryRun]]:
    """The shipped runs that differ in encoding, stream, layers and seed alone."""
    return [
        recorded
        for recorded in load_runs(MemoryRun)
        if not recorded.run.name.endswith(("drawn", "held-out"))
    ]


def amicl(trials: int = 1_000, points: int = 100, seed: int = 0) -> str:
    """Figure 7 at the values of a that have published counts; drawn and counted now.

    The numbers of ``resval-lens reproduce figure-7``, six seconds of one core.
    """
    data = figure_7(seed, trials, points)
    chosen = [data.a.index(a) for a in PUBLISHED_COUNTS]
    by_similarity = {
        "dot": {reading: curves.dot for reading, curves in data.readings.items()},
        "pearson": {reading: curves.pearson for reading, curves in data.readings.items()},
    }
    columns = {
        f"{similarity}, {reading}": [f"{counted[i].share:.3f}" for i in chosen]
        for similarity, readings in by_similarity.items()
        for reading, counted in readings.items()
    }
    columns["dot, published"] = [
        f"{low / 1000:.3f}" if low == high else f"{low / 1000:.3f} to {high / 1000:.3f}"
        for low, high in PUBLISHED_COUNTS.values()
    ]
    rows = zip((f"{a:g}" for a in PUBLISHED_COUNTS), *columns.values(), strict=True)
    return markdown_table(["a", *columns], rows, 0)


def provenance_table(runs: Sequence[Any]) -> str:
    """Commands, commits, versions and dates of recorded runs, those of one start together."""
    starts: dict[tuple[str, str], list[tuple[str, dict[str, Any]]]] = {}
    for recorded in runs:
        for start in recorded.starts:
            key = start["command"], start["git_commit"] or "unknown"
            starts.setdefault(key, []).append((recorded.folder.name, start))
    rows = []
    for (command, commit), own in starts.items():
        versions = own[0][1]["versions"]
        dates = sorted(start["created"][:10] for _, start in own)
        shown_dates = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
        rows.append(
            [
                f"`{command}`",
                str(len({name for name, _ in own})),
                f"`{commit[:7]}{'+' if commit.endswith('+') else ''}`",
                f"torch {versions['torch']}, transformer-lens {versions['transformer-lens']}",
                shown_dates,
            ]
        )
    return markdown_table(["command", "runs", "commit", "versions", "started"], rows, 5)


def _spread(numbers: Sequence[float | None], form: str) -> str:
    return spread(dict(enumerate(numbers))).told(form)
