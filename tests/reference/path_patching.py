"""Path patching in whole runs with plain hooks, one patch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from resval_lens.host import HookedTransformer

Values = dict[str, list[tuple[int | None, Tensor]]]
"""At a hook point: for which head (None: for all), the activation to take it from."""


def replaced(values: Values) -> list[Any]:
    """Hooks that put values at [batch, pos, head], or everywhere where the head is None."""

    def put(activation: Tensor, hook: Any) -> Tensor:
        activation = activation.clone()
        for head, value in values[hook.name]:
            if head is None:
                activation[:] = value
            else:
                activation[:, :, head] = value[:, :, head]
        return activation

    return [(name, put) for name in values]


def place(node: str) -> tuple[str, int | None]:
    """Where a receiver or a link is: hook point and head. A receiving MLP at its very input."""
    if node.startswith("m"):
        return f"blocks.{node[1:]}.hook_mlp_in", None
    layer, head = node[1:].split(".h")
    if node.startswith("a"):
        return f"blocks.{layer}.attn.hook_{head[-2]}", int(head[:-3])
    return f"blocks.{layer}.attn.hook_{node[0]}_link", int(head)


class Algorithm1:
    """Runs A and B of a model with ``use_hook_mlp_in``; C and D of each path patch."""

    def __init__(self, model: HookedTransformer, clean: Tensor, corrupted: Tensor) -> None:
        self.model, self.clean = model, clean
        self.a = model.run_with_cache(corrupted)[1]
        self.b = model.run_with_cache(clean)[1]

    def logits(self, senders: Sequence[str], receivers: Sequence[str], links: str) -> Tensor:
        a, b = self.a, self.b
        held: Values = {}
        for name, value in b.items():
            if name.endswith("hook_z") or (links == "frozen" and name.endswith("_link")):
                held[name] = [(None, value)]
        sending_links = [sender for sender in senders if sender[0] in "qkv"]
        for sender in sending_links:
            name, head = place(sender)
            held.setdefault(name, []).append((head, a[name]))
            self.enter(sender, sending_links, held)
        for sender in senders:
            if sender == "input":
                name = getattr(self.model.cfg, "input_point", "blocks.0.hook_resid_pre")
                held[name] = [(None, a[name])]
            elif sender.startswith("m"):
                name = f"blocks.{sender[1:]}.hook_mlp_out"
                held[name] = [(None, a[name])]
            elif sender.startswith("a"):
                layer, number = sender[1:].split(".h")
                name = f"blocks.{layer}.attn.hook_z"
                held[name].append((int(number), a[name]))
        if receivers == ["logits"]:
            return self.model.run_with_hooks(self.clean, fwd_hooks=replaced(held))
        arrived: dict[str, Tensor] = {}

        def read(activation: Tensor, hook: Any) -> None:
            arrived[hook.name] = activation

        reading = [(place(receiver)[0], read) for receiver in receivers]
        self.model.run_with_hooks(self.clean, fwd_hooks=reading + replaced(held))
        patches: Values = {}
        for receiver in receivers:
            name, head = place(receiver)
            patches.setdefault(name, []).append((head, arrived[name]))
        return self.model.run_with_hooks(self.clean, fwd_hooks=replaced(patches))

    def enter(self, link: str, sending: Sequence[str], held: Values) -> None:
        """Holds a link's heads to what they give out on the clean prompts with the sending links
        of this layer."""
        cfg, layer = self.model.cfg, link[1:].split(".h")[0]
        edits: Values = {}
        for other in sending:
            if other[1:].split(".h")[0] == layer:
                name, head = place(other)
                edits.setdefault(name, []).append((head, self.a[name]))
        z = f"blocks.{layer}.attn.hook_z"
        given: dict[str, Tensor] = {}

        def read(activation: Tensor, hook: Any) -> None:
            given[hook.name] = activation

        self.model.run_with_hooks(self.clean, fwd_hooks=[*replaced(edits), (z, read)])
        grouped = link[0] != "q" and not cfg.ungroup_grouped_query_attention
        copies = cfg.n_heads // (cfg.n_key_value_heads or cfg.n_heads) if grouped else 1
        for query_head in range(cfg.n_heads):
            if query_head // copies == place(link)[1]:
                held[z].append((query_head, given[z]))
