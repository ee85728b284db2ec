"""Pictures of constructed models and of what models know. Every number is in the JSON beside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resval_lens.analyses.figures import STYLE, plt
from resval_lens.analyses.memory.knowledge import ANY_TOKEN
from resval_lens.analyses.memory.run_figures import POSITIONS
from resval_lens.numbers import number

GROUPS = {"triggers": "#0072B2", "others": "#D55E00", ANY_TOKEN: "#555555"}


def shade(name: str) -> str:
    """The colour of a variant's positions; black for another name."""
    return next((c for start, c in POSITIONS.items() if name.startswith(start)), "#000000")


def dashes(name: str) -> str:
    """Dashed with a value stream."""
    return "--" if "values" in name else "-"


def construction(study: dict[str, Any]) -> Figure:
    """Attention to the previous token by position; deviations by width; the winner by the gap."""
    with plt.rc_context(STYLE):
        figure, row = plt.subplots(1, 3, figsize=(13, 3.9), layout="constrained")
        _attention(row[0], study)
        _deviations(row[1], study)
        _winner(row[2], study)
    return figure


def _attention(axes: Axes, study: dict[str, Any]) -> None:
    trained = study["trained_length"]
    places = np.arange(2, study["length"] + 1)
    for kind in study["kinds"]:
        if kind["streams"]:
            continue
        colour = POSITIONS[kind["positions"]]
        exact = next(run for run in kind["constructed"] if run["exact"])
        widest = max(kind["constructed"], key=lambda run: (not run["exact"], run["d_model"]))
        short = {"absolute": "APE", "relative": "RPE"}[kind["positions"]]
        axes.plot(places, widest["attention"], color=colour, lw=0.8, alpha=0.5,
                  label=f"{short}, d = {widest['d_model']:,}")  # fmt: skip
        axes.plot(places, exact["attention"], color=colour, lw=2.2, label=f"{short}, exact")
    on, off = (np.array(study["closed_form"][name]) for name in ("on", "off"))
    axes.plot(places, on, color="black", lw=1, ls=":", label="closed form")
    later = places > trained
    axes.plot(places[later], off[later], color="black", lw=1, ls=":")
    axes.axvline(trained, color="#999999", lw=0.8)
    axes.text(trained, 0.12, " trained to here", fontsize=8, color="#666666")
    axes.set_yscale("log")
    axes.set(xlabel="position t", ylabel="attention at t − 1", title="Previous-token head")
    axes.legend(fontsize=8, loc="center left")


def _deviations(axes: Axes, study: dict[str, Any]) -> None:
    names = {"alpha": ("α", "o"), "beta": ("β", "s"), "logits": ("logits (nats)", "^")}
    for kind in study["kinds"]:
        if kind["streams"]:
            continue
        runs = sorted(
            (run for run in kind["constructed"] if not run["exact"]), key=lambda r: r["d_model"]
        )
        widths = [run["d_model"] for run in runs]
        for name, (label, marker) in names.items():
            means = [run["deviation"][name]["mean"] for run in runs]
            colour = POSITIONS[kind["positions"]]
            axes.plot(widths, means, color=colour, marker=marker, ms=4, lw=1.2,
                      label=f"{label}, {kind['positions']}")  # fmt: skip
    guide = np.array([min(study["widths"]), max(study["widths"])], dtype=float)
    axes.plot(guide, 0.2 * guide**-0.5, color="black", lw=1, ls=":", label="∝ 1/√d")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set(xlabel="d_model", title="Mean deviation from the closed form")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _winner(axes: Axes, study: dict[str, Any]) -> None:
    flips = study["thresholds"]
    colours = dict(zip(flips["exact"], ("#0072B2", "#D55E00", "#009E73"), strict=False))
    for kind, style in (("exact", "-"), ("random", "--")):
        for counts, row in flips[kind].items():
            axes.plot(row["gap"], [np.nan if w is None else w for w in row["wins"]], style,
                      color=colours[counts], lw=1.6 if kind == "exact" else 1,
                      label=f"{counts}, {kind}")  # fmt: skip
    for counts, row in flips["exact"].items():
        axes.axvline(row["predicted"], color=colours[counts], lw=0.8, ls=":")
    axes.set(
        xlabel="global knowledge for B2 (nats)", ylabel="share of prompts that B1 wins",
        title="n1 : n2 in the context", ylim=(-0.03, 1.03),
    )  # fmt: skip
    axes.legend(fontsize=8)


def knowledge(study: dict[str, Any]) -> Figure:
    """Measured against expected margins, and who wins by counts, of one model a column."""
    shown = _first_seeds(study["subjects"])
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            3, len(shown), figsize=(2.7 * len(shown) + 0.8, 8), squeeze=False,
            layout="constrained",
        )  # fmt: skip
        image = None
        for column, subject in zip(grid.T, shown, strict=True):
            _scatter(column[0], subject)
            groups = list(subject["groups"])
            for axes, name in zip(column[1:], (*groups, "", "")[:2], strict=True):
                if name:
                    image = _winners(axes, subject["groups"][name], name)
                else:
                    axes.set_visible(False)
        grid[0, 0].set_ylabel("measured ξ(B1) − ξ(B2)")
        grid[1, 0].set_ylabel("n1, times B1")
        if image is not None:
            figure.colorbar(image, ax=grid[1:], shrink=0.6, label="share of prompts that B1 wins")
    return figure


def _first_seeds(subjects: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    first: dict[str, dict[str, Any]] = {}
    for subject in subjects:
        first.setdefault(subject["name"], subject)
    return list(first.values())


def _scatter(axes: Axes, subject: dict[str, Any]) -> None:
    notes = []
    for name, group in subject["groups"].items():
        points = np.array([point for cell in group["cells"] for point in cell["points"]])
        axes.scatter(
            points[:, 0], points[:, 1], s=5, alpha=0.5, lw=0, color=GROUPS[name], label=name
        )
        fit = group["fit"]
        weight, strength = number(fit["weight"], "z.2f"), number(fit["tau3"], "z.1f")
        notes.append(f"{name}: w = {weight}, τ3 = {strength}")
    low, high = axes.get_xlim()
    axes.plot([low, high], [low, high], color="black", lw=0.8, ls=":")
    seed = f", seed {subject['seed']}"
    axes.set(xlabel="expected (nats)")
    axes.set_title(f"{subject['name']}{seed}\n" + "\n".join(notes), fontsize=9)
    axes.legend(fontsize=8, markerscale=2.5, loc="upper left", handletextpad=0.1)


def _winners(axes: Axes, group: dict[str, Any], name: str) -> Any:
    most = max(cell["n1"] for cell in group["cells"])
    wins = np.full((most, most), np.nan)
    for cell in group["cells"]:
        wins[cell["n1"] - 1, cell["n2"] - 1] = cell["wins"]
    image = axes.imshow(wins, origin="lower", cmap="PuOr_r", vmin=0, vmax=1)
    for (i, j), share in np.ndenumerate(wins):
        dark = abs(share - 0.5) > 0.3
        axes.text(j, i, f"{share:.2f}".lstrip("0"), ha="center", va="center", fontsize=7,
                  color="white" if dark else "black")  # fmt: skip
    axes.set_xticks(range(most), [str(n + 1) for n in range(most)])
    axes.set_yticks(range(most), [str(n + 1) for n in range(most)])
    axes.set_title(f"A: {name}", fontsize=9)
    axes.set_xlabel("n2, times B2")
    return image


def held_out(study: dict[str, Any]) -> Figure:
    """In-context accuracy and recall of W_O² for seen and held-out outputs, bars of means."""
    rows = study["over_seeds"]
    colours = {"seen": "#0072B2", "held_out": "#E69F00"}
    with plt.rc_context(STYLE):
        figure, both = plt.subplots(
            1, 2, figsize=(11, 0.42 * len(rows) + 1.5), sharey=True, layout="constrained"
        )
        titles = {"accuracy": "In-context accuracy", "recall": "Recall of W_O²"}
        for axes, (quantity, title) in zip(both, titles.items(), strict=True):
            for shift, (test, colour) in zip((-0.2, 0.2), colours.items(), strict=True):
                means = [row[test][quantity]["mean"] or 0 for row in rows]
                errors = [row[test][quantity]["sd"] or 0 for row in rows]
                places = np.arange(len(rows)) + shift
                label = "outputs " + ("seen in training" if test == "seen" else "held out")
                drawn = axes.barh(places, means, 0.38, xerr=errors, color=colour, label=label,
                                  error_kw={"lw": 1})  # fmt: skip
                axes.bar_label(drawn, [f"{x:.2f}" for x in means], fontsize=8, padding=3)
            axes.set(title=title, xlim=(0, 1.12))
        both[0].set_yticks(range(len(rows)), [row["name"] for row in rows])
        both[0].invert_yaxis()
        both[1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def analogies(study: dict[str, Any]) -> Figure:
    """Recall by capital; who wins as the context repeats itself; unknown capitals; longer ones."""
    rows, times = _first_seeds(study["models"]), study["times"]
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
        for row in rows:
            colour, style = shade(row["name"]), dashes(row["name"])
            ranks = [(each["first"] + each["last"]) / 2 for each in row["by_rank"]]
            for quantity, marker, width in (("p_own", "x", 1), ("overridden", "o", 1.8)):
                values = [each[quantity] for each in row["by_rank"]]
                label = row["name"] if quantity == "overridden" else None
                look = {"color": colour, "lw": width, "marker": marker, "ms": 4}
                grid[0, 0].plot(ranks, values, style, label=label, **look)
            for axes, kind in ((grid[0, 1], "wrong"), (grid[1, 0], "unknown")):
                said = [each["said"] for each in row[kind]]
                axes.plot(times, said, style, color=colour, lw=1.8, marker="o", ms=4)
                own = [each["own"] for each in row[kind]]
                axes.plot(times, own, style, color=colour, lw=1, marker="x", ms=4, alpha=0.6)
        grid[0, 0].set_xscale("log")
        grid[0, 0].xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        grid[0, 0].set(
            xlabel="capitals, the most frequent first", ylabel="share, or probability",
            title="○ believes what was said twice   × recalls its own unsaid", ylim=(-0.03, 1.03),
        )  # fmt: skip
        grid[0, 0].legend(fontsize=8)
        for axes, title in (
            (grid[0, 1], "The context says another country"),
            (grid[1, 0], "The same, of unknown capitals"),
        ):
            axes.set(
                xlabel="times that the context says it", ylabel="share of answers",
                title=title, ylim=(-0.03, 1.03),
            )  # fmt: skip
        grid[0, 1].plot([], [], "o-", color="#555555", label="what the context says")
        grid[0, 1].plot([], [], "x-", color="#555555", alpha=0.6, label="its own country")
        grid[0, 1].legend(fontsize=8)
        _halves(grid[1, 1], rows)
    return figure


def _halves(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    length = rows[0]["length"]
    labels = [f"t ≤ {length}", f"t > {length}"]
    for i, row in enumerate(rows):
        heights = [row["longer"][part] or 0 for part in ("trained", "beyond")]
        places = np.arange(2) + (i - (len(rows) - 1) / 2) * 0.8 / len(rows)
        drawn = axes.bar(
            places, heights, 0.74 / len(rows), color=shade(row["name"]), label=row["name"],
            alpha=0.55 if "values" in row["name"] else 1,
        )  # fmt: skip
        axes.bar_label(drawn, [f"{h:.2f}" for h in heights], fontsize=8, padding=1)
    axes.set_xticks(range(2), labels)
    axes.set(
        ylabel="in-context accuracy", ylim=(0, 1.08),
        title=f"Sequences of {2 * length}, trained on {length}",
    )  # fmt: skip
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
