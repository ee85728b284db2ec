"""The published way of edge scores and circuits: EAP-IG's own code, or the reference after it."""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from resval_lens.hooks.prompts import PromptPairs
from tests.reference.eap import DenseTable


class Published(Protocol):
    """Edges' scores, as tables of ``table``, and a circuit's metric."""

    name: str
    table: DenseTable

    def eap(self) -> Tensor: ...

    def eap_ig(self, steps: int) -> Tensor: ...

    def eap_ig_up_to_clean(self, steps: int) -> Tensor:
        """Averaged over inputs k / steps of the way to the clean ones, k = 1..steps."""

    def metric(self, kept: Tensor) -> float: ...


@dataclass
class Reference:
    """This project's code after the published one."""

    table: DenseTable
    pairs: PromptPairs
    name: str = "dense table"

    def eap(self) -> Tensor:
        return self.eap_ig(1)

    def eap_ig(self, steps: int) -> Tensor:
        pairs = self.pairs
        return self.table.scores(pairs.clean, pairs.corrupted, self._sum, steps)

    eap_ig_up_to_clean = eap_ig

    def metric(self, kept: Tensor) -> float:
        pairs = self.pairs
        logits = self.table.logits(pairs.clean, pairs.corrupted, kept)
        return self._sum(logits).item() / len(pairs)

    def _sum(self, logits: Tensor) -> Tensor:
        return self.pairs.metric(logits[:, -1], self.pairs.labels).sum()


class Library:
    """EAP-IG's package ``eap``, which is given tokens instead of text."""

    name = "EAP-IG"

    def __init__(self, folder: Path, table: DenseTable, pairs: PromptPairs) -> None:
        """
        Args:
            folder: holds ``eap``.
            table: of the model that is measured, set up for its hooks.
        """
        self.table, self.pairs = table, pairs
        sys.path.insert(0, str(folder))
        self._eap = {
            name: importlib.import_module(f"eap.{name}")
            for name in ("utils", "graph", "attribute", "evaluate")
        }
        for module in self._eap.values():
            module.__dict__["tokenize_plus"] = _given_tokens
        self.graph = self._eap["graph"].Graph.from_model(table.model)
        self.prompts = [(pairs.clean, pairs.corrupted, pairs.labels)]

    def eap(self) -> Tensor:
        return self._attribute("EAP")

    def eap_ig(self, steps: int) -> Tensor:
        return self._attribute("EAP-IG-inputs", ig_steps=steps)

    def eap_ig_up_to_clean(self, steps: int) -> Tensor:
        # Its own are k = 0..steps − 1.
        return self.eap_ig(steps) + (self.eap() - self.eap_ig(1)) / steps

    def _attribute(self, method: str, **settings: Any) -> Tensor:
        with OnDeviceOf(self.table.model):
            self._eap["attribute"].attribute(
                self.table.model,
                self.graph,
                self.prompts,
                self._sum,
                method,
                quiet=True,
                **settings,
            )
        scores: Tensor = self.graph.scores.clone()
        return scores

    def metric(self, kept: Tensor) -> float:
        self.graph.in_graph[:] = kept & self.graph.real_edge_mask
        with OnDeviceOf(self.table.model):
            found = self._eap["evaluate"].evaluate_graph(
                self.table.model, self.graph, self.prompts, self._sum, quiet=True
            )
        return found.sum().item() / len(self.pairs)

    def _sum(self, logits: Tensor, clean: Any, lengths: Any, labels: Tensor) -> Tensor:
        return self.pairs.metric(logits[:, -1], labels).sum()


class OnDeviceOf(TorchFunctionMode):
    """Tensors that are asked for on "cuda" are on the model's device."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.device = model.cfg.device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("device") == "cuda":
            kwargs = kwargs | {"device": self.device}
        return func(*args, **kwargs)


def _given_tokens(model: Any, rows: Tensor, max_length: int | None = None) -> tuple[Any, ...]:
    """As its ``tokenize_plus``: tokens, mask, lengths, positions."""
    mask = torch.ones_like(rows)
    return rows, mask, mask.sum(1), rows.shape[1]
