"""AMICL's numbers in the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from resval_lens.analyses.tables import STYLE

JUDGES = {
    "exact": "the label, to the last bit",
    "euclidean": "the right label of the context is the nearest, by distance",
    "cosine": "the right label of the context is the nearest, by angle",
}


def _shown(point: dict[str, Any]) -> str:
    share, low, high = (_digits(x) for x in (point["share"], *point["interval"]))
    return f"{share} [{low}, {high}]"


def _digits(x: float) -> str:
    return f"{x:.3f}".removeprefix("0")


def _table(title: str, columns: list[str], words: int = 1) -> Table:
    table = Table(title=title, pad_edge=False, collapse_padding=True, **STYLE)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i < words else "right", no_wrap=True)
    return table


def figure_6_table(result: dict[str, Any]) -> Table:
    """How much of the last query's attention is on the right label."""
    table = _table(
        f"Figure 6, a = {result['a']:g}, T = {result['temperature']:g}: attention on the right "
        "label "
        f"(share, {result['trials']:,} trials)",
        ["similarity", "separation", *result["readings"], "published"],
        words=2,
    )
    for row, *others in zip(
        *(entry["combinations"] for entry in result["readings"].values()), strict=True
    ):
        clean = row["similarity"] in ("dot", "pearson") and row["separation"] == "argmax"
        table.add_row(
            row["similarity"],
            row["separation"],
            *(f"{each['weight']:.3f}" for each in (row, *others)),
            "among the cleanest" if clean else "",
            end_section=row["separation"] == "argmax",
        )
    return table


def figure_7_tables(result: dict[str, Any]) -> list[Table]:
    """Right trials against a, ours beside the published; one table a similarity."""
    published = {point["a"]: point for point in result["published"]["dot"]}
    some = [0.0, *(min(result["a"], key=lambda x: abs(x - a)) for a in (0.5, 0.75)), *published]
    tables = []
    for similarity, name in (("dot", "dot product"), ("pearson", "Pearson's correlation")):
        dot = similarity == "dot"
        extra = ["theory\n(paper)"] if dot else []
        table = _table(
            f"Figure 7: {name}, argmax; of {result['trials']:,} trials (95%)",
            ["a", *extra, *result["readings"], "published"],
            words=0,
        )
        for a in dict.fromkeys(some):
            i = result["a"].index(a)
            ours = [_shown(entry[similarity][i]) for entry in result["readings"].values()]
            theirs = ""
            if dot and a in published:
                low, high = (right / published[a]["trials"] for right in published[a]["right"])
                theirs = _digits(low) if low == high else f"{_digits(low)}–{_digits(high)}"
            elif not dot and a >= 1.5:
                theirs = f"~{result['published']['pearson_saturates_at']:.0%}"
            theory = [_digits(result["readings"]["paper"]["predicted"][i])] if dot else []
            table.add_row(f"{a:.3g}", *theory, *ours, theirs)
        tables.append(table)
    return tables


def figure_7_sentence(result: dict[str, Any]) -> str:
    """Why Pearson's correlation stays below 1."""
    entry = result["readings"]["paper"]
    last, first = entry["pearson"][-1], entry["pearson_to_first"]
    return (
        f"Pearson's correlation with argmax at a = {result['a'][-1]:g}, paper: of "
        f"{last['trials']:,} trials {last['right']:,} are right and {first['right']:,} go to the "
        "first token, whose key (index 0 wraps to the masked token) is that object alone. The "
        f"first pair is of the right class with probability {1 - entry['pearson_limit']:.3f}."
    )


def figure_8_tables(result: dict[str, Any]) -> list[Table]:
    """Right trials against length and dimensions, beside what is published."""
    tables = []
    for field, name in (("length", "s, tokens"), ("d", "d, dimensions")):
        table = _table(
            f"Figure 8: a = {result['a']:g}, dot product, argmax (95% interval)\n"
            f"published: {result['published'][field]}",
            [name, "theory\n(paper)", *result["readings"]],
            words=0,
        )
        for row, *others in zip(
            *(entry[field] for entry in result["readings"].values()), strict=True
        ):
            cells = [_shown(each) for each in (row, *others)]
            table.add_row(str(row["value"]), _digits(row["predicted"]), *cells)
        tables.append(table)
    return tables


def combinations_table(result: dict[str, Any]) -> Table:
    """All combinations; argmax must hit the label exactly, the others come nearest to it."""
    table = _table(
        f"AMICL, a = {result['a']:g}, T = {result['temperature']:g}: right of "
        f"{result['trials']:,} trials (95% interval)",
        ["reading", "similarity", "separation", "by distance", "by angle"],
        words=3,
    )
    for row in result["rows"]:
        exact = row.get("exact")
        table.add_row(
            row["reading"],
            row["similarity"],
            row["separation"],
            _shown(exact or row["euclidean"]),
            "(exactly)" if exact else _shown(row["cosine"]),
            end_section=row["separation"] == "argmax",
        )
    return table


def sweep_table(result: dict[str, Any]) -> Table:
    """Each task at a few a, its best a and the range of a that is as good."""
    some = [min(result["a"], key=lambda x: abs(x - a)) for a in (1, 2, 8)]
    some = list(dict.fromkeys(some))
    table = _table(
        f"{memory_name(result['memory'])}\n"
        f"Right of {result['trials']:,} trials; the best a, and those not significantly worse",
        ["task", *(f"a = {a:.3g}" for a in some), "best", "best a", "as good"],
    )
    group = None
    for row in result["tasks"]:
        if group not in (None, row["group"]):
            table.add_section()
        group = row["group"]
        at = {a: point["share"] for a, point in zip(result["a"], row["curve"], strict=True)}
        low, high = row["as_good"]
        end = "" if high == result["a"][-1] else f" to {high:.3g}"
        table.add_row(
            row["name"],
            *(f"{at[a]:.3f}" for a in some),
            f"{at[row['best']]:.3f}",
            f"{row['best']:.3g}",
            f"{low:.3g}" if low == high else f"{'' if end else '≥ '}{low:.3g}{end}",
        )
    table.caption = judged(result)
    return table


def memory_name(memory: dict[str, Any]) -> str:
    """Similarity, separation and reading of a memory; T where it counts."""
    hot = f", T = {memory['temperature']:g}" if memory["separation"] == "softmax" else ""
    return f"{memory['similarity']}, {memory['separation']}{hot}, {memory['reading']}"


def judged(result: dict[str, Any]) -> str:
    """What counts as right in a sweep, task by task where they differ."""
    names: dict[str, list[str]] = {}
    for row in result["tasks"]:
        names.setdefault(row["judge"], []).append(row["name"])
    common = max(names, key=lambda judge: len(names[judge]))
    said = [f"Right: {JUDGES[common]}"]
    said += [f"{', '.join(n)}: {JUDGES[j]}" for j, n in names.items() if j != common]
    return "; ".join(said) + "."
