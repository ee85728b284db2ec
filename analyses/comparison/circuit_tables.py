"""Tables of circuits, heads and links of several models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from resval_lens.analyses.comparison.circuit_findings import IOIHeads, MetricMatrix, OverSeeds
from resval_lens.analyses.results.tables import NARROW as STYLE
from resval_lens.analyses.results.tables import Row, table
from resval_lens.analyses.studies.roles import Head

# Measures of resval_lens.analyses.comparison.circuit_findings.MEASURES: heading and form.
COMPARED = {
    "edges": ("edges", ".3g"),
    "faithfulness": ("f", "z.2f"),
    "path length": ("path", "z.1f"),
    "links in it": ("links", ".2g"),
    "share through links": ("by\nlinks", ".0%"),
    "model, links corrupted": ("f,\ncorr.", "z.2f"),
    "CPR": ("CPR", "z.2f"),
    "CMD": ("CMD", "z.2f"),
}
NUMBERS: Mapping[str, Callable[[Head], float]] = {
    "noise": lambda head: head.total,
    "P(IO)": lambda head: head.p_io,
    "on IO": lambda head: head.direct_on_io,
    "on S": lambda head: head.direct_on_s,
    "to IO": lambda head: head.attention["end→IO"],
    "to S1": lambda head: head.attention["end→S1"],
    "to S2": lambda head: head.attention["end→S2"],
}


def compared_table(rows: Sequence[OverSeeds], min_faithfulness: float) -> Table:
    """Circuits by task and architecture."""
    lines: list[Row] = []
    task = None
    for row in sorted(rows, key=lambda row: row.task):
        if row.task != task:
            task = row.task
            lines += [None, [f"[bold]{task}[/bold], {row.metric}"]]
        found = [(row.measures.get(name), form) for name, (_, form) in COMPARED.items()]
        means = ("" if of is None else f"{of.mean:{form}}" for of, form in found)
        lines.append([f"  {row.architecture}", *means])
        if len(row.seeds) > 1:
            deviations = ("" if of is None else f"{of.sd:{form}}" for of, form in found)
            lines.append([f"  ± sd, {len(row.seeds)} seeds", *deviations])
    return table(
        f"Circuits: the fewest highest-scored edges with a faithfulness f of {min_faithfulness:g}\n"
        "by the metric named (what is not in the circuit is resampled from the corrupted prompts)",
        ("model",),
        [heading for heading, _ in COMPARED.values()],
        lines,
        "path: mean edges from input to logits; by links: share of f lost without the "
        "circuit's links; f, corr.: of the whole model with every link corrupted",
        STYLE,
    )


def matrix_table(matrices: Sequence[MetricMatrix]) -> Table:
    """Circuits by every metric, evaluated by every metric."""
    names = [circuit.by for circuit in matrices[0].circuits]
    rows: list[Row] = []
    for matrix in matrices:
        clean = f"{matrix.circuits[0].measured['P(IO)'].clean:z.3f}"
        blank = [""] * (1 + len(names))
        rows += [None, [f"[bold]{escape(_title(matrix))}[/bold]", *blank, clean]]
        rows += [
            [
                f"  {_short(circuit.by)}",
                f"{circuit.n_edges} ({len(circuit.links)})",
                *(circuit.measured[name].told("|", "z.2f") for name in names),
                f"{circuit.measured['P(IO)'].resample.circuit:z.3f}",
            ]
            for circuit in matrix.circuits
        ]
    return table(
        "Circuits of indirect objects by each metric (ABC prompts): what they keep\n"
        "(f: others resampled|at the mean of the corrupted prompts aligned with theirs)",
        ("chosen by",),
        ("edges", *map(_short, names), "P(IO) is"),
        rows,
        "edges (links among them); others: all other names; P(IO) is: of the whole model, of each "
        "circuit with all else resampled. The logit difference does not see whether either is "
        "named.",
        STYLE | {"padding": 0},  # -0.31|-0.25 four times is wide
    )


def _short(metric: str) -> str:
    return metric.replace("other names", "others")


def roles_table(heads: Sequence[IOIHeads]) -> Table:
    """Heads by role with the numbers they are judged by."""
    criteria = heads[0].roles.criteria
    rows: list[Row] = []
    for each in heads:
        rows += [None, [f"[bold]{_title(each)}[/bold]", "", "", f"{each.roles.p_io.clean:z.2f}"]]
        for role, found in each.roles.roles.items():
            for head in found:
                numbers = (f"{of(head):+z.2f}" for of in NUMBERS.values())
                rows.append([f"  {role}" if head is found[0] else "", head.head, *numbers])
    return table(
        "Heads by role in naming the indirect object\n"
        f"(attention ≥ {criteria.attention:g}, shares ≥ {criteria.share:g})",
        ("role", "head"),
        NUMBERS,
        rows,
        "noise: effect on the logit difference of its z from the corrupted prompt, in parts of the "
        "gap; P(IO): of the model, and with the head noised; on IO, on S: what it writes for each "
        "name against the corrupted prompt's in its place, in parts of IO's; to IO, S1, S2: "
        "attention from the end (more in the JSON)",
        STYLE,
    )


def signals_table(heads: Sequence[IOIHeads]) -> Table:
    """What links carry of the subject: layers' links, and the single ones that matter."""
    found = [(each, each.signals) for each in heads if each.signals is not None]
    kinds = found[0][1].signals
    rows: list[Row] = []
    for each, signals in found:
        rows += [None, [f"[bold]{_title(each)}[/bold]"]]
        rows += [
            [f"  {links}", *(f"{effects[kind]:+z.0%}" for kind in kinds)]
            for links, effects in signals.effects.items()
            if ".h" not in links or max(map(abs, effects.values())) >= 0.05
        ]
    return table(
        "Links frozen to a corrupted prompt:\nchange of the logit difference (−200%: inverted)",
        ("links",),
        [f"{kind}\ntoken {token},\nposition {at}" for kind, (token, at) in kinds.items()],
        rows,
        style=STYLE,
    )


def _title(entry: IOIHeads | MetricMatrix) -> str:
    seed = "" if entry.seed is None else f", seed {entry.seed}"
    return f"{entry.architecture}{seed}"
