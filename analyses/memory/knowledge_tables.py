"""Tables and sentences on constructed models and on what models know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from resval_lens.analyses.memory.curves import shown
from resval_lens.analyses.memory.knowledge import ANY_TOKEN
from resval_lens.analyses.tables import STYLE


def _table(title: str, columns: Sequence[str], words: int = 1, caption: str = "") -> Table:
    """Where 80 characters are too few, names of models fold; numbers lose no digit."""
    # One space between two columns, as seven of them stand side by side.
    table = Table(title=title, caption=caption or None, padding=0, **STYLE)
    for i, name in enumerate(columns):
        table.add_column(
            name, justify="left" if i < words else "right", no_wrap=i > 0, overflow="fold"
        )
    return table


def construction_table(study: dict[str, Any]) -> Table:
    """Each prediction beside the exact model and the widest one of random vectors."""
    table = _table(
        "Constructed induction heads",
        ["prediction", "predicted", "exact", f"d = {max(study['widths']):,}"],
    )
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
    table = _table(
        "Mean deviation from the closed form",
        ["positions", "d", "α", "β", "logits (nats)", "accuracy"],
    )
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
        ends = [by_width[width] for width in dict.fromkeys((narrowest, widest))]
        at = f"from d = {narrowest} to {widest}" if len(ends) > 1 else f"at d = {widest}"
        text = (
            f"Random vectors, {kind['positions']} positions: {at} the logits' mean deviation "
            + _from_to([f"{run['deviation']['logits']['mean']:.2g}" for run in ends])
            + " nats"
        )
        if kind["predicted"]["accuracy"] is not None:
            accuracies = [_number(run["accuracy"], "accuracy") for run in ends]
            text += (
                f", in-context accuracy {_from_to(accuracies)} (closed form: "
                f"{_number(kind['predicted']['accuracy'], 'accuracy')})"
            )
        said.append(text + ".")
    row = study["thresholds"]["exact"]["2:1"]
    if row["at"] is not None:
        said.append(
            f"After two B1 and one B2 the winner flips at a global gap of {row['at']:.3f} nats; "
            f"τ3/3 is {row['predicted']:.3f}."
        )
    return said


def knowledge_tables(study: dict[str, Any]) -> list[Table]:
    """Fit and threshold of every model and group of A's, means over seeds.

    The threshold is measured, and computed from the fit, in the same seeds: those that have both.
    """
    fits = _table(
        "Margin = w · global gap + τ3 · (n1 − n2)/(n1 + n2)",
        ["model", "A", "seeds", "w", "τ3", "R²", "majority"], 2,
        "(majority: prompts in which what the context has more often wins)",
    )  # fmt: skip
    flips = _table(
        "Gap at which the winner flips after two B1 and one B2 (nats)",
        ["model", "A", "seeds", "measured", "τ3/3w"], 2,
        "(n/N): in n of N seeds; empty: no w above 0 by two standard errors",
    )  # fmt: skip
    previous = None
    for row in study["over_seeds"]:
        name = "" if row["name"] == previous else row["name"]
        of = [name, row["group"], str(len(row["seeds"]))]
        both, alone = row["paired"], row["fitted_flip"]
        measured, fitted = (shown(both[key], ".1f", True) for key in ("flip", "fitted_flip"))
        if both["flip"]["mean"] is None:
            never = alone["mean"] is not None
            measured, fitted = ("never", shown(alone, ".1f", True)) if never else ("", "")
        for table in (fits, flips):
            if previous is not None and name:
                table.add_section()
        fits.add_row(
            *of,
            shown(row["weight"], ".2f", True),
            shown(row["tau3"], ".1f", True),
            _tight(row["r2"]),
            shown(row["majority"], ".2f", True),
        )
        flips.add_row(*of, measured, fitted)
        previous = row["name"]
    return [fits, flips]


def knowledge_sentences(study: dict[str, Any]) -> list[str]:
    """What competes with what, in words with numbers."""
    said = []
    for row in study["over_seeds"]:
        where = "" if row["group"] == ANY_TOKEN else f" after {_where(row['group'])}"
        text = (
            f"{row['name']}{where}{_seeds(row)}: the context weighs {shown(row['tau3'], '.1f')} "
            f"nats, global knowledge {shown(row['weight'], '.2f')} of its own; what the context "
            f"has more often wins in {shown(row['majority'], '.0%')} of prompts"
        )
        flip, fitted = (row["paired"][key] for key in ("flip", "fitted_flip"))
        if flip["mean"] is not None:
            there = sum(gap is not None for gap in flip["by_seed"].values())
            every = len(flip["by_seed"])
            some = "" if there == every else f" in {there} of {every} seeds"
            text += (
                f", and after two B1 and one B2 the winner flips{some} at a gap of "
                f"{_of_those(flip)} nats (τ3/3w = {_of_those(fitted)})"
            )
        said.append(text + ".")
    return said


def held_out_table(study: dict[str, Any]) -> Table:
    """Seen beside held-out outputs: accuracy, loss, recall of W_O²."""
    names = {"seen": "seen", "held_out": "held out"}
    table = _table(
        "Outputs seen in training, and held out",
        ["model", "outputs", "seeds", "accuracy", "loss", "W_O²", "says seen"], 2,
        "(accuracy and loss (nats) in context; W_O²: recall of those tokens; says seen: answers "
        f"among the first {study['split']:.0%} of tokens. Constructed models are tested on "
        "triggers of their own, which are among those tokens: both models know them)",
    )  # fmt: skip
    for row in study["over_seeds"]:
        for test, outputs in names.items():
            first = test == "seen"
            table.add_row(
                row["name"] if first else "",
                outputs,
                str(len(row["seeds"])) if first else "",
                *(_tight(row[test][key]) for key in ("accuracy", "in_context", "recall")),
                _tight(row[test]["says_seen"]),
            )
        table.add_section()
    return table


def held_out_sentences(study: dict[str, Any]) -> list[str]:
    """What becomes of outputs that training never had."""
    said = []
    for row in study["over_seeds"]:
        seen, held = (row[test]["accuracy"] for test in ("seen", "held_out"))
        if seen["mean"] is None or held["mean"] is None:
            continue
        change = "keeps" if held["mean"] > 0.9 * seen["mean"] else "falls from"
        ends = f"{shown(seen, '.2f')}{', now' if change == 'keeps' else ' to'} {shown(held, '.2f')}"
        attention = row["held_out"]["target"]
        looks = ""
        if attention["mean"] is not None:
            looks = f"; {shown(attention, '.0%')} of its attention is on the place"
        recalled = ", ".join(shown(row[test]["recall"], ".2f") for test in ("seen", "held_out"))
        said.append(
            f"{row['name']}{_seeds(row)}: in-context accuracy {change} {ends} on held-out "
            f"outputs{looks} (recall of W_O²: {recalled})."
        )
    return said


def analogies_tables(study: dict[str, Any]) -> list[Table]:
    """Recall without context; where the context overrides it; unknown capitals; longer sequences.

    Overridden: the share of prompts in which a country has the largest logit that was said twice;
    of all capitals, of those that make up half of all occurrences, of the rest; and of new ones
    that training never had, after the most mentions.
    """
    last, lengths = study["times"][-1], {row["length"] for row in study["models"]}
    T = f"{lengths.pop():,}" if len(lengths) == 1 else "T"
    known = _table(
        f"{study['pairs']} capitals: recalled, and overridden by the context",
        ["model", "seeds", "recall", "P(own)", "all", "often", "rare"],
        caption="(all, often, rare: capitals of which the context is believed after saying "
        "another country twice; often are those that make up half of all occurrences)",
    )
    new = _table(
        "New capitals; in-context accuracy by position",
        ["model", "seeds", "new", f"t ≤ {T}", f"t > {T}"],
        caption=f"(new: capitals that training never had, of which the context is believed after "
        f"saying a country {last} times)",
    )
    for row in study["over_seeds"]:
        of = [row["name"], str(len(row["seeds"]))]
        own = ("all_top1", "all_p_own", "all_overridden", "frequent_overridden", "rare_overridden")
        known.add_row(*of, *(_tight(row[key]) for key in own))
        others = (f"unknown_{last}_said", "trained", "beyond")
        new.add_row(*of, *(_tight(row[key]) for key in others))
    return [known, new]


def analogies_sentences(study: dict[str, Any]) -> list[str]:
    """Recall, override, unknown capitals and length, in words with numbers."""
    said, last = [], study["times"][-1]
    for row in study["over_seeds"]:
        name = f"{row['name']}{_seeds(row)}"
        once, often = (shown(row[f"wrong_{k}_said"], ".0%") for k in (1, last))
        text = (
            f"{name}: {shown(row['all_top1'], '.0%')} of countries are recalled without context; "
            f"when the context says another one, it is believed in {once} of prompts after one "
            f"mention and {often} after {last}"
        )
        frequent, rare = (row[f"{group}_overridden"] for group in ("frequent", "rare"))
        if frequent["mean"] is not None and rare["mean"] is not None:
            text += (
                f" (two mentions: {shown(frequent, '.0%')} of frequent capitals, "
                f"{shown(rare, '.0%')} of rare ones)"
            )
        said.append(
            f"{text}; of capitals it never met in {shown(row[f'unknown_{last}_said'], '.0%')}."
        )
        before, beyond = row["trained"], row["beyond"]
        if before["mean"] is not None and beyond["mean"] is not None:
            said.append(
                f"{name}: in-context accuracy is {shown(before, '.2f')} within the trained length "
                f"and {shown(beyond, '.2f')} beyond."
            )
    return said


def _short(value: float) -> str:
    return f"{value:.0e}" if value < 1e-4 else f"{value:.2g}"


def _from_to(numbers: Sequence[str]) -> str:
    return f"goes from {numbers[0]} to {numbers[1]}" if len(numbers) > 1 else f"is {numbers[0]}"


def _where(group: str) -> str:
    return {"triggers": "triggers", "others": "other tokens"}.get(group, group)


def _seeds(row: Mapping[str, Any]) -> str:
    return f" ({len(row['seeds'])} seeds)" if len(row["seeds"]) > 1 else ""


def _tight(spread: Mapping[str, Any]) -> str:
    return "" if spread["mean"] is None else shown(spread, ".2f", tight=True)


def _of_those(spread: Mapping[str, Any]) -> str:
    """Of the seeds that have a number, which the sentence has counted."""
    there = {seed: number for seed, number in spread["by_seed"].items() if number is not None}
    return shown({**spread, "by_seed": there}, ".1f")


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if unit == "attention" else f"{value:.3f}"
