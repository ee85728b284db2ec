"""Tables of what training costs, in the terminal."""

from __future__ import annotations

from rich.table import Table

from resval_lens.analyses.results.tables import STYLE
from resval_lens.training.plan import Plan

FORMULAS = {
    "matrices": "6 · weights that multiply",
    "scores": "6 · layers · h·d_head · (n_ctx + 1)",
    "streams": "3 · numbers that are added",
    "total": "",
}
HELD = {
    "weights": "4·N",
    "gradients": "4·N",
    "AdamW": "8·N",
    "gathered": "2 blocks and the embeddings",
    "activations": "what autograd keeps, counted on shapes",
    "total": "",
}


def plan_tables(name: str, gpus: int, found: Plan) -> list[Table]:
    """Of :func:`~resval_lens.training.plan.plan`: parameters, FLOPs, memory, the whole run."""
    parameters = Table(title=f"{name}: trained parameters, N", **STYLE)
    parameters.add_column("")
    parameters.add_column("", justify="right")
    for part, count in found.parameters.to_dict().items():
        parameters.add_row(part, f"{count:,}")
    flops = Table(title="FLOPs a token, forward and backward", **STYLE)
    flops.add_column("")
    flops.add_column("millions", justify="right")
    flops.add_column("formula")
    for part, count in found.flops_per_token.to_dict().items():
        flops.add_row(part, f"{count / 1e6:,.3f}", FORMULAS[part])
    memory = Table(title=f"GB on each of {gpus} devices (32-bit numbers)", **STYLE)
    memory.add_column("")
    memory.add_column("copied (DDP)", justify="right")
    memory.add_column("spread (FSDP2)", justify="right")
    memory.add_column("formula, spread: over the devices")
    kinds = zip(*(found.memory[kind].to_dict().items() for kind in ("ddp", "fsdp")), strict=True)
    for (part, copied), (_, spread) in kinds:
        memory.add_row(part, f"{copied / 1e9:,.2f}", f"{spread / 1e9:,.2f}", HELD[part])
    run = Table(title="The run", **STYLE)
    run.add_column("")
    run.add_column("", justify="right")
    run.add_row("tokens", f"{found.tokens / 1e9:,.2f} billion")
    run.add_row("days", f"{found.days:,.2f}")
    return [parameters, flops, memory, run]
