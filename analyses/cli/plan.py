"""``resval-lens plan``: what something costs, before it starts."""

from __future__ import annotations

from typing import Annotated

import typer

from resval_lens.analyses.cli.circuit import Completeness, IGSteps, MethodName, Minimality
from resval_lens.analyses.cli.loading import load_options
from resval_lens.analyses.cli.options import (
    Device,
    DType,
    Json,
    Length,
    MaybeOut,
    Model,
    Prompts,
    Quiet,
    Setting,
    Streams,
    notes,
    writable,
)
from resval_lens.analyses.cli.reporting import report
from resval_lens.analyses.cli.training_options import (
    CheckpointBlocks,
    MicroBatch,
    Preset,
    Spec,
)

plan_app = typer.Typer(
    no_args_is_help=True, help="Show the time and memory of a command before you start it."
)


@plan_app.command("circuit")
def plan_circuit_command(
    model: Model,
    prompts: Prompts = 64,
    length: Length = 20,
    method: MethodName = "eap-ig",
    ig_steps: IGSteps = None,
    minimality: Minimality = 256,
    completeness: Completeness = 64,
    dtype: DType = None,
    setting: Setting = None,
    device: Device = "cpu",
    to: MaybeOut = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what `circuit` will cost: runs, time and memory, from two layers measured here.

    It needs no weights: a folder with the config.json of a saved or Hugging Face model is enough.
    It does not plan methods that run the model for every edge (exact, acdc).

    Example: `resval-lens plan circuit stories-small-values`
    """
    from resval_lens.analyses.circuits.cost import circuit_cost
    from resval_lens.load import load_config
    from resval_lens.runtime import one_thread

    if device == "auto":
        raise ValueError("plans are for one device: cpu, cuda, cuda:1, mps; got 'auto'")
    with notes(quiet) as note, one_thread():
        how = load_options(None, device, dtype, False, setting)
        cfg = load_config(model, how.dtype, how.settings)
        cfg.device = device
        if to is not None:
            writable(to)
        note("two layers of this width at work")
        found = circuit_cost(cfg, prompts, length, method, ig_steps, minimality, completeness)
    report(found, to, "plan", as_json=as_json)


@plan_app.command("training")
def plan_training_command(
    preset: Preset,
    gpus: Annotated[int, typer.Option(help="Devices to train on.")] = 1,
    streams: Streams = "",
    spec: Spec = "reference",
    micro_batch: MicroBatch = 1,
    checkpoint_blocks: CheckpointBlocks = None,
    teraflops: Annotated[float, typer.Option(help="Peak TFLOP/s of a device (H100 bf16).")] = 989.0,
    utilisation: Annotated[
        float, typer.Option(help="Share of the peak that training reaches.")
    ] = 0.4,
    to: MaybeOut = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what a preset costs: parameters, FLOPs a token, memory per device, tokens and days.

    The numbers are computed from the architecture; nothing is run on any device.

    Example: `resval-lens plan training llama-1b --gpus 8 --streams v`
    """
    from resval_lens.analyses.cli.plan_tables import plan_tables
    from resval_lens.models.language_models import language_model_config
    from resval_lens.models.language_models import preset as find_preset
    from resval_lens.training.plan import plan

    chosen = find_preset(preset, spec).training
    recompute = chosen.get("checkpoint_blocks", False)
    found = plan(
        language_model_config(preset, streams, spec),
        steps=chosen["steps"], batch=chosen["batch"], processes=gpus, micro_batch=micro_batch,
        checkpoint_blocks=recompute if checkpoint_blocks is None else checkpoint_blocks,
        teraflops=teraflops, utilisation=utilisation,
    )  # fmt: skip
    if to is not None:
        writable(to)
    shown = plan_tables(preset, gpus, found)
    report(found.to_dict(), to, "plan", as_json=as_json, tables=shown)
