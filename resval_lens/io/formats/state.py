"""A state_dict of others: read without unpickling, taken apart by name until nothing is left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from resval_lens.io.files import check_finite, check_plain, check_room, first_line, read_tensors

WRAPPERS = ("_orig_mod.", "module.")
"""What torch.compile and DDP put before names."""


def read_torch(file: Path, expected: str) -> Any:
    """What torch.save wrote to ``file``; tensors and plain values alone, mapped and not copied.

    Raises:
        ValueError: no plain file, larger than this machine's memory, or not what is ``expected``.
    """
    check_plain(file, expected)
    check_room(file.stat().st_size, str(file))
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a file of anything fails in many ways
        raise ValueError(f"{file} is not {expected}: {first_line(error)}") from None


def read_safetensors(files: list[Path], expected: str) -> dict[str, Tensor]:
    """The tensors of a model's safetensors files.

    Raises:
        ValueError: a file that is damaged, or all of them larger than this machine's memory.
    """
    for file in files:
        check_plain(file, expected)
    check_room(sum(file.stat().st_size for file in files), str(files[0].parent))
    return {name: x for file in files for name, x in read_tensors(file, expected)[0].items()}


class State:
    """Tensors by name, taken one by one in ``dtype``; what is left over is refused.

    Args:
        tensors: a state_dict; names may be a wrapper's (torch.compile, DDP).
        source: what it is of, for messages.

    Raises:
        ValueError: no state_dict; an entry that is NaN or infinite.
    """

    def __init__(self, tensors: Any, source: str, dtype: torch.dtype) -> None:
        if not isinstance(tensors, Mapping) or not all(
            isinstance(name, str) and _is_plain(x) for name, x in tensors.items()
        ):
            raise ValueError(f"{source}: expected a state_dict, tensors by name")
        self._left = {_bare(name): x.detach() for name, x in tensors.items()}
        self.source, self.dtype = source, dtype
        check_finite(self._left, source)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def __iter__(self) -> Any:
        return iter(sorted(self._left))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor.

        Raises:
            ValueError: there is none of that name.
        """
        if name not in self._left:
            raise ValueError(f"{self.source}: its weights lack {name}")
        return tuple(self._left[name].shape)

    def matrix(self, name: str) -> tuple[int, int]:
        """The shape of a matrix, [out, in] of a Linear.

        Raises:
            ValueError: there is none of that name.
        """
        shape = self.shape(name)
        if len(shape) != 2:
            raise ValueError(f"{self.source}: {name} must be a matrix; got {list(shape)}")
        return shape[0], shape[1]

    def take(self, name: str, *shape: int) -> Shaped[Tensor, "..."]:
        """A tensor of a shape, in ``dtype``.

        Raises:
            ValueError: it is missing, of another shape, or holds numbers too large for ``dtype``.
        """
        found = self.shape(name)
        if found != shape:
            raise ValueError(
                f"{self.source}: {name} must have shape {list(shape)}; got {list(found)}"
            )
        x = self._left.pop(name).to(self.dtype)
        if not bool(x.isfinite().all()):
            raise ValueError(f"{self.source}: {name} holds numbers too large for {self.dtype}")
        return x

    def done(self) -> None:
        """Raises ValueError if a tensor is left over: it would have been ignored."""
        for name in self:
            raise ValueError(f"{self.source}: its weights have {name}, which has no place here")


def _is_plain(x: Any) -> bool:
    plain = isinstance(x, Tensor) and x.layout is torch.strided
    return plain and not x.is_quantized and not x.is_complex()


def _bare(name: str) -> str:
    for prefix in WRAPPERS * 2:
        name = name.removeprefix(prefix)
    return name


def heads_in(
    weight: Shaped[Tensor, "rows d_model"], heads: int
) -> Shaped[Tensor, "head d_model d_head"]:
    """A projection to heads, of torch.nn.Linear, as TransformerLens has it: W_Q, W_K, W_V."""
    return weight.unflatten(0, (heads, -1)).transpose(1, 2)


def heads_out(
    weight: Shaped[Tensor, "d_model columns"], heads: int
) -> Shaped[Tensor, "head d_head d_model"]:
    """The projection from heads, of torch.nn.Linear, as TransformerLens has it: W_O."""
    return weight.T.unflatten(0, (heads, -1))
