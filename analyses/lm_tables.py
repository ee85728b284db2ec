"""Tables of language models in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from resval_lens.analyses.tables import NARROW, STYLE

FORMULAS = {
    "matrices": "6 · weights that multiply",
    "scores": "6 · layers · h·d_head · (n_ctx + 1)",
    "streams": "3 · numbers that are added",
    "total": "",
}
P_VALUES = {"p": "p", "p_paired": "pairs", "p_paired_holm": "Holm"}
"""Of a comparison's tests, what is shown."""
HELD = {
    "weights": "4·N",
    "gradients": "4·N",
    "AdamW": "8·N",
    "gathered": "2 blocks and the embeddings",
    "activations": "what autograd keeps, counted on shapes",
    "total": "",
}


def plan_tables(name: str, gpus: int, found: dict[str, Any]) -> list[Table]:
    """Of :func:`~resval_lens.training.plan.plan`: parameters, FLOPs, memory, the whole run."""
    parameters = Table(title=f"{name}: trained parameters, N", **STYLE)
    parameters.add_column("")
    parameters.add_column("", justify="right")
    for part, count in found["parameters"].items():
        parameters.add_row(part, f"{count:,}")
    flops = Table(title="FLOPs a token, forward and backward", **STYLE)
    flops.add_column("")
    flops.add_column("millions", justify="right")
    flops.add_column("formula")
    for part, count in found["flops_per_token"].items():
        flops.add_row(part, f"{count / 1e6:,.3f}", FORMULAS[part])
    memory = Table(title=f"GB on each of {gpus} devices (32-bit numbers)", **STYLE)
    memory.add_column("")
    memory.add_column("copied (DDP)", justify="right")
    memory.add_column("spread (FSDP2)", justify="right")
    memory.add_column("formula, spread: over the devices")
    for part, formula in HELD.items():
        copied, spread = (found["memory"][kind][part] / 1e9 for kind in ("ddp", "fsdp"))
        memory.add_row(part, f"{copied:,.2f}", f"{spread:,.2f}", formula)
    run = Table(title="The run", **STYLE)
    run.add_column("")
    run.add_column("", justify="right")
    run.add_row("tokens", f"{found['tokens'] / 1e9:,.2f} billion")
    run.add_row("days", f"{found['days']:,.2f}")
    return [parameters, flops, memory, run]


def study_table(study: dict[str, Any]) -> Table:
    """Of ``resval_lens.analyses.lm_emergence.lm_study``: mean ± sd, and the tests."""
    seeds = ", ".join(f"{name} {count}" for name, count in study["seeds"].items())
    return _compared(
        study,
        study,
        f"After {study['steps']:,} steps, evaluated every {study['evaluate_every']:,}\n"
        f"(seeds: {seeds})",
        "(mean ± population sd over seeds; loss in nats; accuracy: share of prompts with\n"
        "P(IO) > P(S); top-1: whose likeliest token is IO; p: t-test of independent runs;\n"
        "pairs: by seed; Holm: pairs, corrected for the tests of this table)",
    )


def matched_table(study: dict[str, Any]) -> Table:
    """The same at equal validation loss."""
    return _compared(
        study,
        study["matched"],
        "At equal validation loss\n(loss: that of the first evaluation above the threshold; "
        f"at {study['matched']['loss'] or 0:.3f}: where the\nloss falls to that, its mean at the "
        "first threshold of the last prompts)",
        "(Holm: pairs, corrected for the tests of this table)",
    )


def _compared(study: dict[str, Any], found: dict[str, Any], title: str, caption: str) -> Table:
    first, *others = study["architectures"]
    table = Table(title=title, caption=caption, **NARROW)
    for name in ("prompts", ""):
        table.add_column(name, no_wrap=True)
    for name in (first, *others):
        table.add_column(name, justify="right", no_wrap=True)
    for name in others:
        whose = f" ({name})" if len(others) > 1 else ""
        for heading in P_VALUES.values():
            table.add_column(heading + whose, justify="right")
    rows = {(row["prompts"], row["measure"], row["architecture"]): row for row in found["rows"]}
    tests = {(test["prompts"], test["measure"], test["first"]): test for test in found["tests"]}
    previous = None
    for prompts, measure in dict.fromkeys(
        (row["prompts"], row["measure"]) for row in found["rows"]
    ):
        cells = [_mean_and_sd(rows[prompts, measure, name]) for name in (first, *others)]
        for name in others:
            numbers = [tests[prompts, measure, name][key] for key in P_VALUES]
            cells += [_p(p) for p in numbers]
        if previous not in (None, prompts):
            table.add_section()
        table.add_row("" if previous == prompts else prompts, measure, *cells)
        previous = prompts
    return table


def _p(p: float | None) -> str:
    if p is None:
        return ""
    return "<.001" if p < 0.0005 else f"{p:.3f}".removeprefix("0")


def _mean_and_sd(row: Mapping[str, Any]) -> str:
    if row["mean"] is None:
        return "never"
    form = ",.0f" if row["measure"].startswith("step:") else ".3f"
    text = f"{row['mean']:{form}}"
    if len(row["by_seed"]) > 1:
        text += f" ± {row['sd']:{form}}"
    never = sum(number is None for number in row["by_seed"].values())
    return f"{text}\n({never} never)" if never else text
