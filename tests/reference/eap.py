"""Edge attribution patching as published, on a stock HookedTransformer.

After the public code of EAP-IG (hannamw/EAP-IG, MIT): hooks on every head's result and on its split
inputs, a dense table [batch, pos, writer, d_model] of differences, backward hooks that multiply
them with each reader's gradient. Here the metric is summed over prompts and the scores divided by
their number once.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer

Metric = Callable[[Tensor], Tensor]


def eap_scores(
    model: HookedTransformer, clean: Tensor, corrupted: Tensor, metric: Metric, steps: int = 1
) -> dict[str, float]:
    """{"a0.h1->m1": score, ...} of a model with MLPs; ``steps`` above 1 is EAP-IG (inputs)."""
    cfg = model.cfg
    model.set_use_attn_result(True)
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    writers = ["input"]
    hooks = {"blocks.0.hook_resid_pre": slice(0, 1)}
    for layer in range(cfg.n_layers):
        start = len(writers)
        hooks[f"blocks.{layer}.attn.hook_result"] = slice(start, start + cfg.n_heads)
        writers += [f"a{layer}.h{head}" for head in range(cfg.n_heads)]
        hooks[f"blocks.{layer}.hook_mlp_out"] = slice(len(writers), len(writers) + 1)
        writers.append(f"m{layer}")
    difference = torch.zeros(*clean.shape, len(writers), cfg.d_model, dtype=cfg.dtype)
    inputs: dict[float, Tensor] = {}
    scores: dict[str, float] = {}

    def written(sign: float) -> list[tuple[str, Any]]:
        def add(x: Tensor, hook: Any) -> None:
            where = hooks[hook.name]
            many = x if x.ndim == 4 else x[:, :, None]
            difference[:, :, where] += sign * many.detach()
            if hook.name == "blocks.0.hook_resid_pre":
                inputs[sign] = x.detach()

        return [(name, add) for name in hooks]

    def reads(names: list[str], before: int) -> Callable[[Tensor, Any], None]:
        def score(gradient: Tensor, hook: Any) -> None:
            many = gradient if gradient.ndim == 4 else gradient[:, :, None]
            found = torch.einsum("bpwd,bphd->hw", difference[:, :, :before], many)
            for name, row in zip(names, found.tolist(), strict=True):
                for writer, value in zip(writers, row, strict=False):
                    edge = f"{writer}->{name}"
                    scores[edge] = scores.get(edge, 0.0) + value / steps / len(clean)

        return score

    backward: list[tuple[str, Any]] = []
    for layer in range(cfg.n_layers):
        before = 1 + layer * (cfg.n_heads + 1)
        for port in "qkv":
            names = [f"a{layer}.h{head}<{port}>" for head in range(cfg.n_heads)]
            backward.append((f"blocks.{layer}.hook_{port}_input", reads(names, before)))
        backward.append((f"blocks.{layer}.hook_mlp_in", reads([f"m{layer}"], before + cfg.n_heads)))
    last = f"blocks.{cfg.n_layers - 1}.hook_resid_post"
    backward.append((last, reads(["logits"], len(writers))))

    with torch.no_grad():
        with model.hooks(fwd_hooks=written(1.0)):
            model(corrupted)
        with model.hooks(fwd_hooks=written(-1.0)):
            model(clean)
    for k in range(1, steps + 1):
        between = inputs[1.0] + k / steps * (inputs[-1.0] - inputs[1.0])

        def put_in(x: Tensor, hook: Any, between: Tensor = between) -> Tensor:
            return between.clone().requires_grad_()

        with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", put_in)], bwd_hooks=backward):
            metric(model(clean)).backward()
    return scores
