"""Tables and sentences on constructed models and on what models know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from resval_lens.analyses.tables import STYLE


def construction_table(study: dict[str, Any]) -> Table:
    """Each prediction beside the exact model and the widest one of random vectors."""
    table = Table(title="Constructed induction heads", **STYLE)
    table.add_column("prediction")
    for name in ("predicted", "exact", f"d = {max(study['widths']):,}"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for row in study["predictions"]:
        group = row["prediction"][:3]
        if previous not in (None, group) and not (group[0].isdigit() and previous[0].isdigit()):
            table.add_section()
        previous = group
        table.add_row(
            row["prediction"],
            *(_number(row[key], row["unit"]) for key in ("predicted", "exact", "random")),
        )
    return table


def deviations_table(study: dict[str, Any]) -> Table:
    """Mean deviations from the closed form, and in-context accuracy, by width.

    With a value stream only of the exact and the widest model.
    """
    table = Table(title="Mean deviation from the closed form", **STYLE)
    table.add_column("positions", no_wrap=True)
    for name in ("d", "α", "β", "logits (nats)", "accuracy"):
        table.add_column(name, justify="right", no_wrap=True)
    for kind in study["kinds"]:
        short = {"absolute": "APE", "relative": "RPE"}[kind["positions"]]
        name = short + (", values" if kind["streams"] else "")
        every = kind["constructed"]
        for i, run in enumerate([every[0], every[-1]] if kind["streams"] else every):
            shown = (_short(run["deviation"][key]["mean"]) for key in ("alpha", "beta", "logits"))
            width = f"{run['d_model']:,}{', exact' if run['exact'] else ''}"
            table.add_row("" if i else name, width, *shown, _number(run["accuracy"], "accuracy"))
        table.add_section()
    return table


def construction_sentences(study: dict[str, Any]) -> list[str]:
    """What the construction showed, in words with numbers."""
    exact = [run for kind in study["kinds"] for run in kind["constructed"] if run["exact"]]
    worst = {
        name: max(run["deviation"][name]["largest"] for run in exact)
        for name in ("alpha", "beta", "logits")
    }
    widest, narrowest = max(study["widths"]), min(study["widths"])
    plain = [kind for kind in study["kinds"] if not kind["streams"]]
    said = [
        "With dual vectors the models equal the closed form to rounding: the largest deviations "
        f"are {worst['alpha']:.0e} (α), {worst['beta']:.0e} (β) and {worst['logits']:.0e} nats."
    ]
    for kind in plain:
        by_width = {run["d_model"]: run for run in kind["constructed"] if not run["exact"]}
        one, other = by_width[narrowest], by_width[widest]
        logits = [run["deviation"]["logits"]["mean"] for run in (one, other)]
        said.append(
            f"Random vectors, {kind['positions']} positions: from d = {narrowest} to {widest} the "
            f"logits' mean deviation goes from {logits[0]:.2g} to {logits[1]:.2g} nats, in-context "
            f"accuracy from {_number(one['accuracy'], 'accuracy')} to "
            f"{_number(other['accuracy'], 'accuracy')} (closed form: "
            f"{_number(kind['predicted']['accuracy'], 'accuracy')})."
        )
    row = study["thresholds"]["exact"]["2:1"]
    if row["at"] is not None:
        said.append(
            f"After two B1 and one B2 the winner flips at a global gap of {row['at']:.3f} nats; "
            f"τ3/3 is {row['predicted']:.3f}."
        )
    return said


def knowledge_table(study: dict[str, Any]) -> Table:
    """Fit and threshold of every model and group of A's, means over seeds."""
    table = Table(title="Margin = w · global gap + τ3 · (n1 − n2)/(n1 + n2)", **STYLE)
    table.add_column("model")
    table.add_column("A")
    for name in ("w", "τ3", "R²", "flip", "τ3/3w", "majority"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for row in study["over_seeds"]:
        if previous not in (None, row["name"]):
            table.add_section()
        table.add_row(
            "" if row["name"] == previous else f"{row['name']}{_seeds(row['seeds'])}",
            row["group"],
            _mean(row["weight"], 2, row),
            _mean(row["tau3"], 1, row),
            _mean(row["r2"], 2, row),
            "" if row["fitted_flip"]["mean"] is None else _mean(row["flip"], 1, row, "never"),
            _mean(row["fitted_flip"], 1, row),
            _mean(row["majority"], 2, row),
        )
        previous = row["name"]
    return table


def knowledge_sentences(study: dict[str, Any]) -> list[str]:
    """What competes with what, in words with numbers."""
    said = []
    for row in study["over_seeds"]:
        where = "" if row["group"] == "all" else f" after {_where(row['group'])}"
        weight, tau3 = row["weight"]["mean"], row["tau3"]["mean"]
        if weight is None or tau3 is None:
            continue
        text = (
            f"{row['name']}{where}: the context weighs {tau3:.1f} nats, global knowledge "
            f"{weight:.2f} of its own; what the context has more often wins in "
            f"{row['majority']['mean']:.0%} of prompts"
        )
        if row["flip"]["mean"] is not None and row["fitted_flip"]["mean"] is not None:
            text += (
                f", and after two B1 and one B2 the winner flips at a gap of "
                f"{row['flip']['mean']:.1f} nats (τ3/3w = {row['fitted_flip']['mean']:.1f})"
            )
        said.append(text + ".")
    return said


def held_out_table(study: dict[str, Any]) -> Table:
    """Seen beside held-out outputs: accuracy, loss, recall of W_O²."""
    table = Table(title="Outputs seen in training | held out", **STYLE)
    table.add_column("model", no_wrap=True)
    for name in ("accuracy", "loss in context", "recall of W_O²", "says seen"):
        table.add_column(name, justify="right")
    for row in study["over_seeds"]:
        cells = []
        for quantity, digits in (("accuracy", 2), ("in_context", 2), ("recall", 2)):
            pair = (_mean(row[test][quantity], digits, row) for test in ("seen", "held_out"))
            cells.append(" | ".join(pair))
        table.add_row(
            f"{row['name']}{_seeds(row['seeds'])}",
            *cells,
            _mean(row["held_out"]["says_seen"], 2, row),
        )
    return table


def held_out_sentences(study: dict[str, Any]) -> list[str]:
    """What becomes of outputs that training never had."""
    said = []
    for row in study["over_seeds"]:
        seen, held = (row[test]["accuracy"]["mean"] for test in ("seen", "held_out"))
        if seen is None or held is None:
            continue
        change = "keeps" if held > 0.9 * seen else "falls from"
        text = f"{seen:.2f}, now {held:.2f}" if change == "keeps" else f"{seen:.2f} to {held:.2f}"
        attention = row["held_out"]["target"]["mean"]
        looks = "" if attention is None else f"; {attention:.0%} of its attention is on the place"
        said.append(
            f"{row['name']}: in-context accuracy {change} {text} on held-out outputs{looks} "
            f"(recall of W_O²: {row['seen']['recall']['mean']:.2f}, "
            f"{row['held_out']['recall']['mean']:.2f})."
        )
    return said


def analogies_table(study: dict[str, Any]) -> Table:
    """Recall without context; where the context overrides it; unknown capitals; longer sequences.

    Overridden: the share of prompts in which a country has the largest logit that was said twice;
    of all capitals, of those that make up half of all occurrences, of the rest; and of new ones
    that training never had, after the most mentions.
    """
    table = Table(
        title=f"{study['pairs']} capitals: recall, overridden by context, in-context accuracy",
        **STYLE,
    )
    table.add_column("model")
    for name in ("recall", "P(own)", "all", "often", "rare", "new", "≤ T", "> T"):
        table.add_column(name, justify="right")
    last = study["times"][-1]
    for row in study["over_seeds"]:
        table.add_row(
            f"{row['name']}{_seeds(row['seeds'])}",
            _mean(row["all_top1"], 2, row),
            _mean(row["all_p_own"], 2, row),
            *(_mean(row[f"{group}_overridden"], 2, row) for group in ("all", "frequent", "rare")),
            _mean(row[f"unknown_{last}_said"], 2, row),
            _mean(row["trained"], 2, row),
            _mean(row["beyond"], 2, row),
        )
    return table


def analogies_sentences(study: dict[str, Any]) -> list[str]:
    """Recall, override, unknown capitals and length, in words with numbers."""
    said, last = [], study["times"][-1]
    for row in study["over_seeds"]:
        once, often = (row[f"wrong_{k}_said"]["mean"] for k in (1, last))
        text = (
            f"{row['name']}: {row['all_top1']['mean']:.0%} of countries are recalled without "
            f"context; when the context says another one, it is believed in {once:.0%} of prompts "
            f"after one mention and {often:.0%} after {last}"
        )
        frequent, rare = (row[f"{group}_overridden"]["mean"] for group in ("frequent", "rare"))
        if frequent is not None and rare is not None:
            text += f" (two mentions: {frequent:.0%} of frequent capitals, {rare:.0%} of rare ones)"
        said.append(
            f"{text}; of capitals it never met in {row[f'unknown_{last}_said']['mean']:.0%}."
        )
        before, beyond = row["trained"]["mean"], row["beyond"]["mean"]
        if before is not None and beyond is not None:
            said.append(
                f"{row['name']}: in-context accuracy is {before:.2f} within the trained length and "
                f"{beyond:.2f} beyond."
            )
    return said


def _short(value: float) -> str:
    return f"{value:.0e}" if value < 1e-4 else f"{value:.2g}"


def _where(group: str) -> str:
    return {"triggers": "triggers", "others": "other tokens"}.get(group, group)


def _seeds(seeds: Sequence[int | None]) -> str:
    return f" ({len(seeds)})" if len(seeds) > 1 else ""


def _mean(number: dict[str, Any], digits: int, row: dict[str, Any], none: str = "") -> str:
    if number["mean"] is None:
        return none
    shown = f"{number['mean']:.{digits}f}"
    return shown + (f" ± {number['sd']:.{digits}f}" if len(row["seeds"]) > 1 else "")


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if unit == "attention" else f"{value:.3f}"
