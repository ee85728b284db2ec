"""Tables of circuits, heads and links of several models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from resval_lens.analyses.comparison.circuit_findings import IOIHeads, MetricMatrix, OverSeeds
from resval_lens.analyses.results.tables import NARROW as STYLE
from resval_lens.analyses.studies.roles import Head

# Measures of resval_lens.analyses.comparison.circuit_findings.MEASURES: heading and form.
COMPARED = {
    "edges": ("edges", "{:.3g}"),
    "faithfulness": ("f", "{:.2f}"),
    "path length": ("path", "{:.1f}"),
    "links in it": ("links", "{:.2g}"),
    "share through links": ("by\nlinks", "{:.0%}"),
    "model, links corrupted": ("f,\ncorr.", "{:.2f}"),
    "CPR": ("CPR", "{:.2f}"),
    "CMD": ("CMD", "{:.2f}"),
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


def compared_table(rows: Sequence[OverSeeds], least: float) -> Table:
    """Circuits by task and architecture."""
    table = Table(
        title=f"Circuits: the fewest highest-scored edges with a faithfulness f of {least:g}\n"
        "by the metric named (what is not in the circuit is resampled from the corrupted prompts)",
        **STYLE,
    )
    table.add_column("model", no_wrap=True)
    for heading, _ in COMPARED.values():
        table.add_column(heading, justify="right", no_wrap=True)
    previous = None
    for row in sorted(rows, key=lambda row: row.task):
        if row.task != previous:
            if previous is not None:
                table.add_section()
            table.add_row(f"[bold]{row.task}[/bold], {row.metric}")
            previous = row.task
        cells, deviations = [], []
        for name, (_, form) in COMPARED.items():
            measure = row.measures.get(name)
            cells.append("" if measure is None else form.format(measure.mean))
            deviations.append("" if measure is None else form.format(measure.sd))
        table.add_row(f"  {row.architecture}", *cells)
        if len(row.seeds) > 1:
            table.add_row(f"  ± sd, {len(row.seeds)} seeds", *deviations, style="dim")
    table.caption = (
        "path: mean edges from input to logits; by links: share of f lost without the "
        "circuit's links; f, corr.: of the whole model with every link corrupted"
    )
    return table


def matrix_table(matrices: Sequence[MetricMatrix]) -> Table:
    """Circuits by every metric, evaluated by every metric."""
    names = [circuit.by for circuit in matrices[0].circuits]
    table = Table(
        title="Circuits of indirect objects by each metric (ABC prompts): what they keep\n"
        "(f: others resampled|at the mean of the corrupted prompts aligned with theirs)",
        **STYLE | {"padding": 0},  # -0.31|-0.25 four times is wide
    )
    table.add_column("chosen by", no_wrap=True)
    for heading in ("edges", *names, "P(IO) is"):
        table.add_column(heading.replace("other names", "others"), justify="right")
    for number, matrix in enumerate(matrices):
        if number:
            table.add_section()
        clean = matrix.circuits[0].measured["P(IO)"].clean
        table.add_row(
            f"[bold]{escape(_title(matrix))}[/bold]", *[""] * (1 + len(names)), f"{clean:.3f}"
        )
        for circuit in matrix.circuits:
            table.add_row(
                f"  {circuit.by.replace('other names', 'others')}",
                f"{circuit.n_edges} ({len(circuit.links)})",
                *(circuit.measured[name].told("|", "z.2f") for name in names),
                f"{circuit.measured['P(IO)'].resample.circuit:.3f}",
            )
    table.caption = (
        "edges (links among them); others: all other names; P(IO) is: of the whole model, of each "
        "circuit with all else resampled. IO − S does not see whether either is named."
    )
    return table


def roles_table(heads: Sequence[IOIHeads]) -> Table:
    """Heads by role with the numbers they are judged by."""
    criteria = heads[0].roles.criteria
    table = Table(
        title="Heads by role in naming the indirect object\n"
        f"(attention ≥ {criteria.attention:g}, shares ≥ {criteria.share:g})",
        **STYLE,
    )
    for name in ("role", "head"):
        table.add_column(name, no_wrap=True)
    for heading in NUMBERS:
        table.add_column(heading, justify="right", no_wrap=True)
    for number, each in enumerate(heads):
        if number:
            table.add_section()
        table.add_row(f"[bold]{_title(each)}[/bold]", "", "", f"{each.roles.p_io.clean:.2f}")
        for role, found in each.roles.roles.items():
            for head in found:
                cells = (f"{of(head):+z.2f}" for of in NUMBERS.values())
                table.add_row(f"  {role}", head.head, *cells)
                role = ""
    table.caption = (
        "noise: effect on IO − S of its z from the corrupted prompt, in parts of the gap; P(IO): "
        "of the model, and with the head noised; on IO, on S: what it writes for each name against "
        "the corrupted prompt's in its place, in parts of IO's; to IO, S1, S2: attention from the "
        "end (more in the JSON)"
    )
    return table


def signals_table(heads: Sequence[IOIHeads]) -> Table:
    """What links carry of who gave: layers' links, and the single ones that matter."""
    found = [(each, each.signals) for each in heads if each.signals is not None]
    table = Table(
        title="Links frozen to a corrupted prompt:\nchange of the logit difference "
        "(−200%: inverted)",
        **STYLE,
    )
    table.add_column("links", no_wrap=True)
    for kind, (token, position) in found[0][1].signals.items():
        table.add_column(f"{kind}\ntoken {token},\nposition {position}", justify="right")
    for number, (each, signals) in enumerate(found):
        if number:
            table.add_section()
        table.add_row(f"[bold]{_title(each)}[/bold]")
        for links, effects in signals.effects.items():
            if ".h" in links and max(map(abs, effects.values())) < 0.05:
                continue
            table.add_row(f"  {links}", *(f"{effects[kind]:+z.0%}" for kind in signals.signals))
    return table


def _title(entry: IOIHeads | MetricMatrix) -> str:
    seed = "" if entry.seed is None else f", seed {entry.seed}"
    return f"{entry.architecture}{seed}"
