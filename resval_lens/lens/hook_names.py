"""Names of the stream's hook points, short and full."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.utilities import get_act_name

from resval_lens.config import ResValConfig
from resval_lens.streams import AttentionStream

# How HookedTransformer spells out the shorthand ("v_link", 2): without the attention layer.
_SHORTENED = re.compile(r"(blocks\.\d+\.)(hook_[qkv]_(?:local|link|table))")

_OF_A_LINK = re.compile(r"^blocks\.(\d+)\.attn\.hook_([qkv])_(?:local|link|table)$")


def full_hook_name(name: str, layer: int | None = None) -> str:
    """The full name of a hook point from TransformerLens's shorthand, stream points included.

    >>> full_hook_name("v_link", 2)
    'blocks.2.attn.hook_v_link'
    >>> full_hook_name("resid_pre", 1)
    'blocks.1.hook_resid_pre'
    """
    return full(get_act_name(name, layer))


def full(name: str) -> str:
    """The full name of a hook point from how HookedTransformer spells it; others as they are."""
    return _SHORTENED.sub(r"\1attn.\2", name)


def short_hook_names(cfg: ResValConfig) -> dict[str, str]:
    """HookedTransformer's spelling of each stream point, and the full name it stands for."""
    points = [
        (layer, f"hook_{stream.of}_{part}")
        for stream in cfg.streams
        for layer in range(cfg.n_layers)
        if stream.receives(layer)
        for part in ("local", "link", *(["table"] if stream.source == "tokens" else []))
    ]
    return {f"blocks.{i}.{point}": f"blocks.{i}.attn.{point}" for i, point in points}


def source_point(stream: AttentionStream, layer: int) -> str:
    """The hook point that holds what ``layer`` passes on along ``stream``: own or total."""
    own = stream.carry == "raw" and stream.receives(layer)
    return f"blocks.{layer}.attn.hook_{stream.of}{'_local' if own else ''}"


def check_unweighted(cfg: Any) -> None:
    """Refuses what TransformerLens says of a residual stream that is a plain sum.

    Raises:
        ValueError: residual mixing.
    """
    if cfg.residual_mixing:
        raise ValueError(
            "residual_mixing: what is read is a weighted sum of what was written, and this has no "
            "weights; attribute and logit_lens of resval_lens.analyses.attribution.logits have, "
            "and model.written_weights()"
        )


class ResValCache(ActivationCache):
    """TransformerLens's cache; ``cache["v_link", 2]`` and ``cache["v_local", -1]`` work, too."""

    def __getitem__(self, key: Any) -> Tensor:
        name = None
        if isinstance(key, str):
            name = full(key)
        elif isinstance(key, tuple) and len(key) == 2:
            layer = key[1]
            if isinstance(layer, int) and layer < 0:
                layer += self.model.cfg.n_layers
            name = full_hook_name(key[0], layer)
        if name in self.cache_dict:
            return self.cache_dict[name]
        if point := _OF_A_LINK.search(name or ""):
            cfg: Any = self.model.cfg
            layer, of = int(point[1]), point[2]
            linked = [
                i
                for stream in cfg.streams
                for i in range(cfg.n_layers)
                if stream.of == of and stream.receives(i)
            ]
            if layer not in linked:
                have = f"{of} links into layers {linked} only" if linked else f"no {of} links"
                raise KeyError(f"{name}: this model has {have}")
        return super().__getitem__(key)

    def accumulated_resid(self, *args: Any, **kwargs: Any) -> Any:
        """See ActivationCache; refused with residual mixing."""
        check_unweighted(self.model.cfg)
        return super().accumulated_resid(*args, **kwargs)

    def decompose_resid(self, *args: Any, **kwargs: Any) -> Any:
        """See ActivationCache; refused with residual mixing, normalised or smeared embeddings."""
        self._check_embedding()
        return super().decompose_resid(*args, **kwargs)

    def get_full_resid_decomposition(self, *args: Any, **kwargs: Any) -> Any:
        """See ActivationCache; refused with residual mixing, normalised or smeared embeddings."""
        self._check_embedding()
        return super().get_full_resid_decomposition(*args, **kwargs)

    def stack_head_results(self, *args: Any, **kwargs: Any) -> Any:
        """See ActivationCache; refused with residual mixing."""
        check_unweighted(self.model.cfg)
        return super().stack_head_results(*args, **kwargs)

    def stack_neuron_results(self, *args: Any, **kwargs: Any) -> Any:
        """See ActivationCache; refused with residual mixing."""
        check_unweighted(self.model.cfg)
        return super().stack_neuron_results(*args, **kwargs)

    def _check_embedding(self) -> None:
        cfg: Any = self.model.cfg
        check_unweighted(cfg)
        if cfg.embedding_norm or cfg.smear_channels:
            raise ValueError(
                "the embeddings are normalised or smeared before block 0, and this decomposition "
                "holds them as they were; take accumulated_resid, or attribute of "
                "resval_lens.analyses.attribution.logits"
            )

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> ResValCache:
        """Some examples of the batch; see ActivationCache."""
        sliced = super().apply_slice_to_batch_dim(batch_slice)
        return ResValCache(sliced.cache_dict, self.model, has_batch_dim=sliced.has_batch_dim)
