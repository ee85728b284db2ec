"""Tables of circuits, heads and links in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from resval_lens.analyses.tables import NARROW as STYLE

# Measures of resval_lens.analyses.circuit_compare.MEASURES: heading and form.
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
NUMBERS = {
    "total": "noise", "p_io": "P(IO)", "direct_on_io": "on IO", "direct_on_s": "on S",
    "end→IO": "to IO", "end→S1": "to S1", "end→S2": "to S2",
}  # fmt: skip


def compared_table(rows: Sequence[Mapping[str, Any]], least: float) -> Table:
    """Circuits by task and architecture, of ``circuit_compare.over_seeds``."""
    table = Table(
        title=f"Circuits: the fewest highest-scored edges with a faithfulness f of {least:g}\n"
        "by the metric named (what is not in the circuit is resampled from the twins)",
        **STYLE,
    )
    table.add_column("model", no_wrap=True)
    for heading, _ in COMPARED.values():
        table.add_column(heading, justify="right", no_wrap=True)
    previous = None
    for row in sorted(rows, key=lambda row: row["task"]):
        if row["task"] != previous:
            if previous is not None:
                table.add_section()
            table.add_row(f"[bold]{row['task']}[/bold], {row['metric']}")
            previous = row["task"]
        several = len(row["seeds"]) > 1
        cells, deviations = [], []
        for name, (_, form) in COMPARED.items():
            measure = row["measures"].get(name)
            cells.append("" if measure is None else form.format(measure["mean"]))
            deviations.append("" if measure is None else form.format(measure["sd"]))
        table.add_row(f"  {row['architecture']}", *cells)
        if several:
            table.add_row(f"  ± sd, {len(row['seeds'])} seeds", *deviations, style="dim")
    table.caption = (
        "path: mean edges from input to logits; by links: share of f lost without the "
        "circuit's links; f, corr.: of the whole model with every link corrupted"
    )
    return table


def matrix_table(matrices: Sequence[Mapping[str, Any]]) -> Table:
    """Circuits by every metric, evaluated by every metric, of ``circuit_compare.ioi_matrices``."""
    names = [circuit["by"] for circuit in matrices[0]["circuits"]]
    table = Table(
        title="Circuits of indirect objects by each metric (abc twins): what they keep\n"
        "(f: others resampled|at the mean of the twins aligned with theirs)",
        **STYLE | {"padding": 0},  # -0.31|-0.25 four times is wide
    )
    table.add_column("chosen by", no_wrap=True)
    for heading in ("edges", *names, "P(IO) is"):
        table.add_column(heading.replace("other names", "others"), justify="right")
    for number, matrix in enumerate(matrices):
        if number:
            table.add_section()
        clean = matrix["circuits"][0]["measured"]["P(IO)"]["clean"]
        table.add_row(
            f"[bold]{escape(_title(matrix))}[/bold]", *[""] * (1 + len(names)), f"{clean:.3f}"
        )
        for circuit in matrix["circuits"]:
            own = circuit["measured"]
            kept = [
                "|".join(f"{own[name][how]['faithfulness']:z.2f}" for how in ("resample", "mean"))
                for name in names
            ]
            cells = (f"{circuit['n_edges']} ({len(circuit['links'])})", *kept)
            table.add_row(
                f"  {circuit['by'].replace('other names', 'others')}",
                *cells,
                f"{own['P(IO)']['resample']['circuit']:.3f}",
            )
    table.caption = (
        "edges (links among them); others: all other names; P(IO) is: of the whole model, of each "
        "circuit with all else resampled. IO − S does not see whether either is named."
    )
    return table


def measured_table(study: Mapping[str, Any]) -> Table:
    """What the circuit of one study keeps of every metric."""
    table = Table(title="The circuit by every metric", **STYLE)
    for name in ("metric", "edges outside it"):
        table.add_column(name, no_wrap=True)
    for name in ("clean", "corrupted", "circuit", "f"):
        table.add_column(name, justify="right")
    for metric, own in study["measured"].items():
        for how, label in (("resample", "as on the twins"), ("mean", "mean over twins")):
            numbers = (own["clean"], own[how]["corrupted"], own[how]["circuit"])
            f = own[how]["faithfulness"]
            table.add_row(
                metric, label, *(f"{x:z.3f}" for x in numbers), "" if f is None else f"{f:z.2f}"
            )
    return table


def circuit_table(study: Mapping[str, Any], most: int = 30) -> Table:
    """The edges of one circuit with what each is worth, largest first."""
    circuit = study["circuit"]
    worth = sorted(circuit["minimality"].items(), key=lambda item: -abs(item[1]))
    own = circuit["faithfulness"]
    table = Table(
        title=f"{circuit['n_edges']:,} of {circuit['n_edges_of_model']:,} edges: "
        f"faithfulness {own:.3f}\n"
        f"(random ones of this size: {circuit['random']['mean']:.3f})",
        **STYLE,
    )
    table.add_column("edge", no_wrap=True)
    table.add_column("lost without it", justify="right")
    links = set(circuit["links"])
    for edge, loss in worth[:most]:
        table.add_row(f"[bold]{edge}[/bold] (link)" if edge in links else edge, f"{loss:.3f}")
    said = []
    measured = circuit["measured"]["minimality"]
    if measured["edges"] < measured["of"]:
        said.append(f"of {measured['of']:,} edges {measured['edges']:,} were drawn and tried")
    if len(worth) > most:
        said.append(f"{len(worth) - most} more are in the JSON")
    if said:
        table.caption = f"({'; '.join(said)})"
    return table


def scores_table(study: Mapping[str, Any], most: int = 15) -> Table:
    """The strongest edges of all, in the circuit or not."""
    title = f"Strongest edges by {study['method']}\n(what corrupting one does to the metric)"
    table = Table(title=title, **STYLE)
    table.add_column("edge", no_wrap=True)
    table.add_column("score", justify="right")
    chosen = set(study["circuit"]["edges"])
    table.add_column("in the circuit")
    for line in study["strongest"][:most]:
        table.add_row(line["edge"], f"{line['score']:+.3f}", "yes" * (line["edge"] in chosen))
    return table


def roles_table(heads: Sequence[Mapping[str, Any]]) -> Table:
    """Heads by role with the numbers they are judged by, of ``circuit_compare.ioi_heads``."""
    criteria = heads[0]["roles"]["criteria"]
    table = Table(
        title="Heads by role in naming the indirect object\n"
        f"(attention ≥ {criteria['attention']:g}, shares ≥ {criteria['share']:g})",
        **STYLE,
    )
    for name in ("role", "head"):
        table.add_column(name, no_wrap=True)
    for heading in NUMBERS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for number, each in enumerate(heads):
        if number:
            table.add_section()
        p_io = each["roles"]["p_io"]
        table.add_row(f"[bold]{_title(each)}[/bold]", "", "", f"{p_io['clean']:.2f}")
        for role, found in each["roles"]["roles"].items():
            for head in found:
                cells = (f"{head[name]:+z.2f}" for name in NUMBERS)
                table.add_row(f"  {role}", head["head"], *cells)
                role = ""
    table.caption = (
        "noise: effect on IO − S of its z from the twin, in parts of the gap; P(IO): of the model, "
        "and with the head noised; on IO, on S: what it writes for each name against the twin's in "
        "its place, in parts of IO's; to IO, S1, S2: attention from the end (more in the JSON)"
    )
    return table


def signals_table(heads: Sequence[Mapping[str, Any]]) -> Table:
    """What links carry of who gave: layers' links, and the single ones that matter."""
    found = [each for each in heads if each["signals"]]
    kinds = list(found[0]["signals"]["signals"])
    table = Table(
        title="Links frozen to a twin: change of the logit difference\n(−200%: inverted)", **STYLE
    )
    table.add_column("links", no_wrap=True)
    for kind in kinds:
        token, position = found[0]["signals"]["signals"][kind]
        table.add_column(f"{kind}\ntoken {token},\nposition {position}", justify="right")
    for number, each in enumerate(found):
        if number:
            table.add_section()
        table.add_row(f"[bold]{_title(each)}[/bold]")
        for links, effects in each["signals"]["effects"].items():
            if ".h" in links and max(map(abs, effects.values())) < 0.05:
                continue
            table.add_row(f"  {links}", *(f"{effects[kind]:+z.0%}" for kind in kinds))
    return table


def _title(entry: Mapping[str, Any]) -> str:
    seed = "" if entry["seed"] is None else f", seed {entry['seed']}"
    return f"{entry['architecture']}{seed}"
