"""A device that is not the CPU, where there is no other: its tensors lie on the CPU, wrapped.

Like a GPU it refuses operations on its own and the CPU's tensors together (indices and single
numbers apart), and like Apple's it has no float64. ``python -m tests.other_device`` runs commands
on it and on the CPU and prints how far their results differ, as JSON: the largest difference of two
numbers, in parts of the larger (of 1, if they are smaller).
"""

import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

NAME = "other"
COPIES = ("aten._to_copy.default", "aten.copy_.default")


class Other(torch.Tensor):
    """A tensor on the device; ``raw`` is where it lies."""

    raw: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> "Other":
        if raw.dtype == torch.float64:
            raise RuntimeError("the other device has no float64")
        made: Any = torch.Tensor._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(),
            dtype=raw.dtype, device=torch.device(NAME, 0),
        )  # fmt: skip
        made.raw = raw
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copy: torch.Tensor = Other(self.raw.clone())
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        memo[id(self)] = copy
        return copy

    def tolist(self) -> Any:
        return self.raw.detach().tolist()

    def numpy(self, **settings: Any) -> Any:
        raise TypeError("a tensor of the other device is no array; .cpu() comes first")

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):  # type: ignore[override]
        return run(function, args, kwargs or {})


class OnOther(TorchDispatchMode):
    """Where this holds, tensors can be made on the device and moved there."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[override]
        return run(function, args, kwargs or {})


def run(function: Any, args: Any, kwargs: Any) -> Any:
    """An operation, on what is wrapped."""
    tensors: list[torch.Tensor] = []
    tree_map(lambda x: tensors.append(x) if isinstance(x, torch.Tensor) else None, (args, kwargs))
    name, theirs = str(function), any(isinstance(x, Other) for x in tensors)
    indexing = name.startswith("aten.index") and isinstance(args[0], Other)
    if theirs and name not in COPIES and not indexing:
        for x in tensors:
            if not isinstance(x, Other) and x.ndim:
                raise RuntimeError(f"{name}: {list(x.shape)} of the CPU beside the other device's")
    if kwargs.get("device") is not None:
        theirs = torch.device(kwargs["device"]).type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu")}
    raw_args, raw_kwargs = tree_map(lambda x: x.raw if isinstance(x, Other) else x, (args, kwargs))
    found = function(*raw_args, **raw_kwargs)
    if function._schema.name.endswith("_"):  # in place
        return args[0]
    return tree_map(
        lambda x: Other(x) if theirs and type(x) is torch.Tensor else x, kwargs.get("out", found)
    )


def there() -> None:
    """Makes the device known to torch, in this process for good."""

    class Backend(backend_registration._DummyBackendModule):
        def _is_in_bad_fork(self) -> bool:
            return False

        def manual_seed_all(self, seed: int) -> None:
            pass

    backend_registration._setup_privateuseone_for_python_backend(NAME, Backend())


def worst(one: Any, other: Any) -> float:
    """The largest difference of two reports' numbers; infinite where they say different things."""
    if isinstance(one, dict) and isinstance(other, dict) and list(one) == list(other):
        told = [k for k in one if k not in ("provenance", "found")]
        return max([0.0, *(worst(one[k], other[k]) for k in told)])
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max([0.0, *map(worst, one, other)])
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) / max(abs(one), abs(other), 1.0)
    return 0.0 if one == other else float("inf")


def compared(lines: list[str]) -> Iterator[tuple[str, float]]:
    """Each command, and how far its report on the device differs from the CPU's."""
    from typer.testing import CliRunner

    from resval_lens.analyses.cli.app import app

    for line in lines:
        reports = []
        for device in ("cpu", NAME):
            arguments = [*shlex.split(line), "--quiet", "--json", "--device", device]
            if not line.startswith("generate"):
                arguments += ["--out", tempfile.mkdtemp()]
            with OnOther():
                done = CliRunner().invoke(app, arguments, catch_exceptions=False)
            reports.append(json.loads(done.stdout))
        yield line, worst(*reports)


if __name__ == "__main__":
    torch.set_num_threads(1)
    there()
    print(json.dumps(dict(compared(sys.argv[1:]))))
