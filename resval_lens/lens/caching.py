"""Caching that knows the stream's hook points."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import Slice

from resval_lens.config import ResValConfig
from resval_lens.host import HookedTransformer
from resval_lens.lens.hook_names import ResValCache, full, short_hook_names


class StreamCaching(HookedTransformer):
    """HookedTransformer's caching, with short names and position slices right for stream points."""

    cfg: ResValConfig

    def setup(self) -> None:
        super().setup()
        # HookedTransformer's shorthand knows stock names only: it reads ("v_link", 2) as
        # blocks.2.hook_v_link. The same hook point answers to that name.
        for alias, name in short_hook_names(self.cfg).items():
            self.mod_dict[alias] = self.mod_dict[name]

    def run_with_cache(
        self, *model_args: Any, return_cache_object: bool = True, **kwargs: Any
    ) -> tuple[Any, Any]:
        """HookedTransformer.run_with_cache; the cache knows ``cache["v_link", 2]``, too."""
        if not return_cache_object:
            return super().run_with_cache(*model_args, return_cache_object=False, **kwargs)
        out, cache = super().run_with_cache(*model_args, **kwargs)
        return out, ResValCache(cache.cache_dict, self, has_batch_dim=cache.has_batch_dim)

    def get_caching_hooks(
        self,
        names_filter: Any = None,
        incl_bwd: bool = False,
        device: Any = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        pos_slice: Any = None,
    ) -> tuple[dict[str, Tensor], list[Any], list[Any]]:
        """HookedTransformer's caching hooks, with positions sliced on the right axis.

        HookedTransformer tells the axis from a list of names: it would slice the link points, the
        rotated q and k, and what it splits by head, along heads.
        """
        if isinstance(names_filter, str):
            names_filter = full(names_filter)
        elif isinstance(names_filter, list):
            names_filter = [full(name) for name in names_filter]
        cache, forward, backward = super().get_caching_hooks(
            names_filter, incl_bwd, device, remove_batch_dim, cache, pos_slice
        )
        positions = Slice.unwrap(pos_slice)
        if positions.mode == "identity":
            return cache, forward, backward

        def save(tensor: Tensor, hook: HookPoint, suffix: str) -> None:
            kept = tensor.detach().to(device)
            axis = self.position_axis(str(hook.name))
            if remove_batch_dim:
                kept, axis = kept[0], None if axis is None else axis - 1
            if axis is not None:
                kept = positions.apply(kept, dim=axis)
            cache[f"{hook.name}{suffix}"] = kept

        return (
            cache,
            [(name, partial(save, suffix="")) for name, _ in forward],
            [(name, partial(save, suffix="_grad")) for name, _ in backward],
        )

    def position_axis(self, name: str) -> int | None:
        """The axis of (query) positions in a hook point's activation; None if it has none."""
        if ".q_norm." in name or ".k_norm." in name:  # batch, positions and heads in one axis
            return None
        return 2 if name.endswith(("hook_attn_scores", "hook_pattern")) else 1
