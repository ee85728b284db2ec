"""Models larger than one device: each layer's weights where there is room, for analyses alone.

    model = ResValTransformer.from_pretrained("folder", device_map="auto")
    model = ResValTransformer.from_pretrained("folder", device_map={1: "cuda:1", 2: "disk"})

A layer stays on a device and runs there; or it waits, in the CPU's memory or in the model's file,
and is fetched to the model's device (``cfg.device``) for each of its runs. What is not a layer, the
embeddings, the last norm and the unembedding, stays on the model's device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import get_max_memory
from safetensors import safe_open
from torch import Tensor, nn

from resval_lens.io.checkpoint import fitting, present_device
from resval_lens.io.files import bytes_of

if TYPE_CHECKING:
    from resval_lens.transformer import ResValTransformer

DISK = "disk"
DeviceMap = str | Mapping[int, str]
"""Each layer's place: a device, ``"cpu"`` or ``"disk"``; ``"auto"``: whichever has room."""


class Waiting:
    """A layer's weights, on the device only within :meth:`fetched`.

    Attributes:
        device: where the layer runs.
    """

    def __init__(
        self, block: nn.Module, device: torch.device, weights: Mapping[str, Tensor]
    ) -> None:
        """
        Args:
            weights: by name within the block.
        """
        self.device, self._weights, self._users = device, weights, 0
        self._away = {name: x.detach().to("meta") for name, x in block.named_parameters()}
        self._owners = {
            name: block.get_submodule(name.rpartition(".")[0])._parameters for name in self._away
        }
        self._put(self._away)
        for module in block.modules():
            for name, x in module._buffers.items():
                module._buffers[name] = None if x is None else x.to(device)

    @contextmanager
    def fetched(self) -> Iterator[None]:
        """With the weights there; may be nested."""
        if not self._users:
            self._put({name: self._weights[name].to(self.device) for name in self._away})
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._put(self._away)

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameters in self._owners.items():
            parameters[name.rpartition(".")[2]] = nn.Parameter(weights[name], requires_grad=False)


class InFile(Mapping[str, Tensor]):
    """A layer's weights in a safetensors file, read when they are asked for."""

    def __init__(self, path: Path, prefix: str, dtypes: Mapping[str, torch.dtype]) -> None:
        """
        Args:
            dtypes: that they are wanted in, by name after ``prefix``.
        """
        self._path, self._prefix, self._dtypes = path, prefix, dtypes

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._path, framework="pt") as file:
            return file.get_tensor(self._prefix + name).to(self._dtypes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._dtypes)

    def __len__(self) -> int:
        return len(self._dtypes)


@dataclass(frozen=True)
class Placing:
    """Where a model's weights go.

    Attributes:
        device: the model's.
        device_map: of its layers; see the module.
        max_memory: bytes, or a text like ``"20GiB"``, by number of GPU and ``"cpu"``; by default
            nine tenths of what is free.
    """

    device: str
    device_map: DeviceMap
    max_memory: Mapping[int | str, int | str] | None = None

    def apply(self, model: ResValTransformer, file: Path | None = None) -> None:
        """Puts the weights there; they need no gradient from then on.

        Args:
            file: of safetensors, from which parameters are read that are on "meta"; without one,
                all are in memory.

        Raises:
            ValueError: another map, a layer or device that is not there, too little room for what
                is no layer, a layer on disk without a file; what
                :func:`~resval_lens.io.checkpoint.fitting` refuses.
        """
        _place(model, self.places(model), torch.device(self.device), file)

    def places(self, model: ResValTransformer) -> list[str]:
        """Where each layer's weights go."""
        layers = range(model.cfg.n_layers)
        if isinstance(self.device_map, Mapping):
            for layer, where in self.device_map.items():
                if layer not in layers:
                    raise ValueError(f"device_map: layer {layer!r} is not among 0 to {layers[-1]}")
                if where != DISK and present_device(str(where)) != str(where):
                    raise ValueError(f"device_map[{layer}]: the device {where!r} is not available")
            return [str(self.device_map.get(layer, self.device)) for layer in layers]
        if self.device_map != "auto":
            raise ValueError(
                "device_map must be 'auto' or name layers' places, like {0: 'cuda:0', 1: 'disk'}; "
                f"got {self.device_map!r}"
            )
        return _where_there_is_room(model, torch.device(self.device), self.max_memory)


def _where_there_is_room(
    model: ResValTransformer,
    device: torch.device,
    max_memory: Mapping[int | str, int | str] | None,
) -> list[str]:
    """On the model's device, then on the next ones, then in the CPU's memory, then on disk."""
    sizes = [bytes_of(block.parameters()) for block in model.blocks]
    free: dict[Any, int] = get_max_memory(None if max_memory is None else dict(max_memory))
    share = 10 if max_memory is not None else 9
    room = {
        f"cuda:{name}" if isinstance(name, int) else str(name): size * share // 10
        for name, size in free.items()
    }
    own = str(device) if device.index is not None or device.type == "cpu" else f"{device}:0"
    # Beside what is no layer, one layer that is fetched must have room.
    kept = bytes_of(model.parameters()) - sum(sizes) + max(sizes)
    left = room.get(own, 0) - kept
    if left < 0:
        raise ValueError(
            f"device {own} has room for {room.get(own, 0):,} bytes; embeddings, unembedding and "
            f"one layer take {kept:,}"
        )
    after = sorted((name for name in room if name != own), key=lambda name: name == "cpu")
    order = {own: left, **{name: room[name] for name in after}}
    places, names = [], iter(order)
    here = next(names)
    for size in sizes:
        while here != DISK and order[here] < size:
            here = next(names, DISK)
        if here != DISK:
            order[here] -= size
        places.append(here)
    return places


def _place(
    model: ResValTransformer, places: Sequence[str], device: torch.device, file: Path | None
) -> None:
    if file is None and DISK in places:
        raise ValueError(
            f"layer {places.index(DISK)} would be on disk: weights wait in the file of a saved "
            "model alone; save_pretrained(folder) once, and load that folder"
        )
    model.cfg.device = str(device)
    model.requires_grad_(False)
    for name, module in model.named_children():
        if name != "blocks":
            _read(module, f"{name}.", device, file)
    for layer, (block, where) in enumerate(zip(model.blocks, places, strict=True)):
        prefix = f"blocks.{layer}."
        if where == DISK:
            assert file is not None
            dtypes = {name: x.dtype for name, x in block.named_parameters()}
            weights: Mapping[str, Tensor] = InFile(file, prefix, dtypes)
            for name, x in block.named_parameters():
                fitting({name: x}, {name: weights[name]}, file)
        else:
            _read(block, prefix, torch.device(where), file)
            weights = dict(block.named_parameters())
        if where == DISK or (where == "cpu" and device.type != "cpu"):
            block.waiting = Waiting(block, device, weights)


def _read(module: nn.Module, prefix: str, device: torch.device, file: Path | None) -> None:
    """The module on the device, with its weights from ``file``, if there is one."""
    if file is not None:
        for part, owner in module.named_modules(prefix=prefix.rstrip(".")):
            for leaf, x in owner._parameters.items():
                if x is None:
                    continue
                name = f"{part}.{leaf}"
                with safe_open(file, framework="pt") as opened:
                    read = fitting({name: x}, {name: opened.get_tensor(name)}, file)[name]
                    owner._parameters[leaf] = nn.Parameter(
                        read.to(device, copy=True), requires_grad=False
                    )
    module.to(device)


def refuse_waiting(model: nn.Module, what: str) -> None:
    """Raises ValueError if some of the model's weights wait elsewhere while it does not run."""
    if getattr(model, "waits", False):
        raise ValueError(
            f"{what} needs all weights at once; some layers of this model are elsewhere "
            "(device_map): load it without"
        )
