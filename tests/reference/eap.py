"""Edge attribution patching and circuits' runs as published, on a stock HookedTransformer.

After the public code of EAP-IG (hannamw/EAP-IG, MIT): hooks on every head's result and on its split
inputs, a dense table [batch, pos, writer, d_model] of differences; backward hooks that multiply
them with each reader's gradient, or forward hooks that add those of dropped edges to its input.
Here the metric is summed over prompts and the scores divided by their number once.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from resval_lens.host import HookedTransformer

Metric = Callable[[Tensor], Tensor]


class DenseTable:
    """A model with MLPs, one after its layer's attention; with grouped queries, keys and values
    are read once for each query head.

    Attributes:
        writers, readers: names, in the order of the tables [writer, reader].
    """

    def __init__(self, model: HookedTransformer) -> None:
        self.model, cfg = model, model.cfg
        model.set_use_attn_result(True)
        model.set_use_split_qkv_input(True)
        model.set_use_hook_mlp_in(True)
        if cfg.n_key_value_heads is not None:
            model.set_ungroup_grouped_query_attention(True)
        self.copies = cfg.n_heads // (cfg.n_key_value_heads or cfg.n_heads)
        self.writers, self.readers = ["input"], list[str]()
        self.writing = {"blocks.0.hook_resid_pre": slice(0, 1)}
        self.reading: dict[str, tuple[slice, int]] = {}  # its columns, how many write before it
        self.nodes: dict[str, slice] = {}  # what a reader's hook is the input of
        for layer in range(cfg.n_layers):
            before = len(self.writers)
            heads = slice(before, before + cfg.n_heads)
            for port in "qkv":
                names = [f"a{layer}.h{head}<{port}>" for head in range(cfg.n_heads)]
                self._reads(f"blocks.{layer}.hook_{port}_input", names, before, heads)
            self.writing[f"blocks.{layer}.attn.hook_result"] = heads
            self.writers += [f"a{layer}.h{head}" for head in range(cfg.n_heads)]
            mlp = slice(heads.stop, heads.stop + 1)
            self._reads(f"blocks.{layer}.hook_mlp_in", [f"m{layer}"], heads.stop, mlp)
            self.writing[f"blocks.{layer}.hook_mlp_out"] = mlp
            self.writers.append(f"m{layer}")
        last = f"blocks.{cfg.n_layers - 1}.hook_resid_post"
        self._reads(last, ["logits"], len(self.writers), slice(0, 0))
        self._number = {reader: i for i, reader in enumerate(self.readers)}
        self._writer = {writer: i for i, writer in enumerate(self.writers)}

    def _reads(self, hook: str, names: list[str], before: int, node: slice) -> None:
        self.reading[hook] = slice(len(self.readers), len(self.readers) + len(names)), before
        self.nodes[hook] = node
        self.readers += names

    def columns(self, edge: str) -> tuple[int, list[int]]:
        """Where an edge is in a table; one into a key-value head once for each query head."""
        writer, reader = edge.split("->")
        names = [reader]
        if reader.endswith(("k>", "v>")):
            layer, head = reader[1:-3].split(".h")
            first = self.copies * int(head)
            names = [f"a{layer}.h{first + i}{reader[-3:]}" for i in range(self.copies)]
        return self._writer[writer], [self._number[name] for name in names]

    def edges(self) -> list[str]:
        """Every edge's name, those into a key-value head once."""
        found = []
        for columns, before in self.reading.values():
            names = self.readers[columns]
            if names[0].endswith(("k>", "v>")):
                names = [
                    name.replace(f".h{head}<", f".h{head // self.copies}<")
                    for head, name in enumerate(names)
                    if head % self.copies == 0
                ]
            found += [f"{writer}->{name}" for name in names for writer in self.writers[:before]]
        return found

    def _recorded(self, table: Tensor, sign: float) -> list[tuple[str, Any]]:
        def add(x: Tensor, hook: Any) -> None:
            many = x if x.ndim == 4 else x[:, :, None]
            table[:, :, self.writing[hook.name]] += sign * many.detach()

        return [(name, add) for name in self.writing]

    def _table(self, tokens: Tensor) -> Tensor:
        cfg = self.model.cfg
        return torch.zeros(*tokens.shape, len(self.writers), cfg.d_model, dtype=cfg.dtype)

    def scores(self, clean: Tensor, corrupted: Tensor, metric: Metric, steps: int = 1) -> Tensor:
        """[writer, reader], 0 where there is no edge; ``steps`` above 1 is EAP-IG (inputs)."""
        model, difference = self.model, self._table(clean)
        scores = torch.zeros(len(self.writers), len(self.readers), dtype=difference.dtype)

        def multiply(gradient: Tensor, hook: Any) -> None:
            many = gradient if gradient.ndim == 4 else gradient[:, :, None]
            columns, before = self.reading[hook.name]
            found = torch.einsum("bpwd,bphd->wh", difference[:, :, :before], many)
            scores[:before, columns] += found

        with torch.no_grad():
            with model.hooks(fwd_hooks=self._recorded(difference, 1.0)):
                model(corrupted)
            start = difference[:, :, 0].clone()
            with model.hooks(fwd_hooks=self._recorded(difference, -1.0)):
                model(clean)
            way = -difference[:, :, 0]
        backward = [(name, multiply) for name in self.reading]
        for k in range(1, steps + 1):

            def put_in(x: Tensor, hook: Any, between: Tensor = start + k / steps * way) -> Tensor:
                return between.clone().requires_grad_()

            with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", put_in)], bwd_hooks=backward):
                metric(model(clean)).backward()
        return scores / steps / len(clean)

    @torch.no_grad()
    def logits(self, clean: Tensor, corrupted: Tensor, kept: Tensor) -> Tensor:
        """Of the clean prompts, edges that are not ``kept`` [writer, reader] being corrupted."""
        model, difference = self.model, self._table(clean)
        dropped = (~kept).to(model.cfg.dtype)

        def corrupt(x: Tensor, hook: Any) -> Tensor:
            columns, before = self.reading[hook.name]
            where = dropped[:before, columns]
            if x.ndim == 3:
                where = where[:, 0]
            return x + torch.einsum("bpwd,w...->bp...d", difference[:, :, :before], where)

        hooks = []
        for name, (columns, before) in self.reading.items():
            read = name.endswith("resid_post") or kept[self.nodes[name]].any()
            if read and not kept[:before, columns].all():
                hooks.append((name, corrupt))
        with model.hooks(fwd_hooks=self._recorded(difference, 1.0)):
            model(corrupted)
        with model.hooks(fwd_hooks=[*self._recorded(difference, -1.0), *hooks]):
            return model(clean)

    def named(self, table: Tensor) -> dict[str, float]:
        """{"a0.h1->m1": score, ...}; what is read once for each query head is summed."""
        found = {}
        for edge in self.edges():
            writer, columns = self.columns(edge)
            found[edge] = table[writer, columns].sum().item()
        return found

    def kept(self, edges: Mapping[str, bool]) -> Tensor:
        """A circuit as a table of booleans."""
        table = torch.zeros(len(self.writers), len(self.readers), dtype=torch.bool)
        for edge, is_kept in edges.items():
            writer, columns = self.columns(edge)
            table[writer, columns] = is_kept
        return table


def eap_scores(
    model: HookedTransformer, clean: Tensor, corrupted: Tensor, metric: Metric, steps: int = 1
) -> dict[str, float]:
    """{"a0.h1->m1": score, ...}; ``steps`` above 1 is EAP-IG (inputs)."""
    table = DenseTable(model)
    return table.named(table.scores(clean, corrupted, metric, steps))
