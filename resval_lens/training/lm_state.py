"""Weights and optimiser as plain named tensors, however they are spread over processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from resval_lens.io.checkpoint import fitting
from resval_lens.training.run_folder import read_snapshot

OPTIONS = StateDictOptions(full_state_dict=True, cpu_offload=True)
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
PREFIX = "optimizer."
WINDOW = "window"  # loss summed, and steps, since the last line of metrics


def full_state(
    model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(parameters by name, optimiser state as ``optimizer.<parameter>.<moment>``), on the CPU.

    Under FSDP every process must call this; the main one gets the tensors, the others nothing.
    """
    names = {_clean(name) for name, _ in model.named_parameters()}
    state: dict[str, Any] = get_model_state_dict(model, options=OPTIONS)
    weights = {name: x for name, x in state.items() if name in names}
    if optimizer is None:
        return weights, {}
    moments: dict[str, Tensor] = {}
    spread: Any = get_optimizer_state_dict(model, optimizer, options=OPTIONS)
    for name, values in spread.get("state", {}).items():
        for key, value in values.items():
            moments[f"{PREFIX}{name}.{key}"] = torch.as_tensor(value)
    return weights, moments


def restore_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, Tensor]:
    """Loads a snapshot into model and optimiser; the step it was taken at, and its window.

    Raises:
        ValueError: it is damaged or of another model.
    """
    step, tensors = read_snapshot(path)
    window = tensors.pop(WINDOW, None)
    if window is None or window.shape != (2,):
        raise ValueError(f"{path} is not a training snapshot: it has no {WINDOW!r}")
    moments = {name: x for name, x in tensors.items() if name.startswith(PREFIX)}
    weights = {name: x for name, x in tensors.items() if name not in moments}
    wanted = {_clean(name): p for name, p in model.named_parameters()}
    weights = fitting(wanted, weights, path)
    trained = {name: p for name, p in wanted.items() if p.requires_grad}
    expected = {
        f"{PREFIX}{name}.{key}": p.new_empty(()) if key == "step" else p
        for name, p in trained.items()
        for key in MOMENTS
    }
    moments = fitting(expected, moments, path)
    set_model_state_dict(
        model, dict[str, Any](weights), options=StateDictOptions(full_state_dict=True, strict=False)
    )
    state: dict[str, Any] = {
        "state": {
            name: {key: moments[f"{PREFIX}{name}.{key}"] for key in MOMENTS} for name in trained
        },
        "param_groups": get_optimizer_state_dict(model, optimizer)["param_groups"],
    }
    set_optimizer_state_dict(
        model, optimizer, state, options=StateDictOptions(full_state_dict=True)
    )
    return step, window


def _clean(name: str) -> str:
    """Without what DDP and torch.compile put before a parameter's name."""
    return name.replace("_orig_mod.", "").removeprefix("module.")
