# ruff: noqa: E402  # sections of pages import what they need
"""A model before and after it was fine-tuned; "adapter" is a folder that peft wrote."""

# --8<-- [start:load]
from resval_lens.load import load_model

tuned = load_model("adapter").model  # W + (α / r) B A, merged; the base is where it says
base = load_model("base").model
# --8<-- [end:load]

# --8<-- [start:weights]
moved = (tuned.W_V - base.W_V).norm(dim=(-2, -1)) / base.W_V.norm(dim=(-2, -1))
print(moved)  # [layer, head]; 0: untouched
# --8<-- [end:weights]

# --8<-- [start:effect]
import torch

tokens = torch.arange(20)[None]
with torch.no_grad():
    before, was = base.run_with_cache(tokens)
    after = tuned(tokens)
    for layer in range(base.cfg.n_layers):
        name = f"blocks.{layer}.attn.hook_z"
        with tuned.hooks([(name, lambda z, hook: was[hook.name])]):  # the base's heads
            left = (tuned(tokens) - before).norm() / (after - before).norm()
        print(f"layer {layer}: {left:.2f} of the change is left")
# --8<-- [end:effect]
