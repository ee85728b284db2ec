"""Models with random weights that are drawn where they are to run."""

import warnings
from typing import Any

import torch
from torch import nn

from resval_lens import AttentionStream, ResValConfig, ResValTransformer
from resval_lens.host import HookedTransformer
from tests.benchmarks.edges import stock_config
from tests.benchmarks.plain_gpt import GPT, GPTConfig
from tests.benchmarks.plain_llama import Llama, LlamaConfig


def ours(cfg: ResValConfig) -> ResValTransformer:
    """On ``cfg.device``, without a detour by the CPU: there, a billion numbers take a minute."""
    with torch.device(str(cfg.device)):
        return ResValTransformer(cfg, move_to_device=False)


def stock(cfg: ResValConfig) -> HookedTransformer:
    """TransformerLens's own of the same sizes, which has no streams."""
    with warnings.catch_warnings(), torch.device(str(cfg.device)):
        warnings.simplefilter("ignore", DeprecationWarning)
        return HookedTransformer(stock_config(cfg), move_to_device=False)


def plain_peer(cfg: ResValConfig) -> nn.Module:
    """The hand-written GPT or Llama of the same sizes and stream; tokens and targets in, loss out.

    Raises:
        ValueError: neither of the two has this configuration.
    """
    if any(stream != AttentionStream("v", carry="raw") for stream in cfg.streams):
        raise ValueError(f"the plain models add the layer before's own values; got {cfg.streams}")
    sizes: dict[str, Any] = {
        "n_layer": cfg.n_layers, "n_head": cfg.n_heads, "d_model": cfg.d_model,
        "n_ctx": cfg.n_ctx, "vocab": cfg.d_vocab, "stream": "v" if cfg.streams else "",
    }  # fmt: skip
    with torch.device(str(cfg.device)):
        if cfg.gated_mlp:
            return Llama(
                LlamaConfig(
                    n_kv_head=cfg.n_key_value_heads or cfg.n_heads, d_mlp=cfg.d_mlp or 0,
                    rotary_base=float(cfg.rotary_base), eps=cfg.eps, **sizes,
                )
            )  # fmt: skip
        return GPT(GPTConfig(tied=cfg.tied_embedding, dropout=cfg.dropout, **sizes))
