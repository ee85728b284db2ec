"""Through the layers: what each begins with, reads and passes on."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformer_lens import ActivationCache
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import USE_DEFAULT_VALUE, LocallyOverridenDefaults

from resval_lens.attention import STATES, TOKENS, Carried
from resval_lens.config import ResValConfig
from resval_lens.io.loading import Loading
from resval_lens.lens.hook_names import check_unweighted, source_point
from resval_lens.lens.norm import unshared
from resval_lens.residual import ResidualMix, Smear, kept_before, rms_normed, written_weights


class Layers(Loading):
    """How a residual stream, and what travels beside it, goes through a ResValTransformer."""

    cfg: ResValConfig

    def add_readers(self) -> None:
        """Adds what reads earlier states, and what makes the first one, as ``cfg`` has it."""
        cfg = self.cfg
        if cfg.residual_mixing:
            self.hook_resid_embed = HookPoint()  # [batch, pos, d_model]
            self.resid_mix = ResidualMix(cfg.residual_mixing, cfg.n_layers, cfg.dtype)
            self.hook_resid_final = HookPoint()  # [batch, pos, d_model]
        if cfg.smear_channels:
            self.smear = Smear(cfg.smear_channels, cfg.dtype)

    def run_blocks(
        self,
        residual: Float[Tensor, "batch pos d_model"],
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        carried: Carried | None = None,
        *,
        shortformer_pos_embed: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_kv_cache: Any = None,
        checkpoint_blocks: bool = False,
        mixed: bool = False,
    ) -> tuple[Float[Tensor, "batch pos d_model"], Carried]:
        """The residual stream after layers start..stop, and what they and those before pass on.

        With residual mixing both streams are states (:mod:`resval_lens.residual`); after the last
        layer, what the readout reads of them.

        Args:
            mixed: ``residual`` is what the first of these layers reads, not the state before it.
        """
        layers = range(self.cfg.n_layers)[start_at_layer:stop_at_layer]
        self._check_carried(layers, residual, carried, mixed)
        streams: Carried = carried or {}
        if self.cfg.residual_mixing and layers.start == 0 and not mixed:
            residual = self.hook_resid_embed(unshared(residual, self.hook_resid_embed))
        for layer in layers:
            whole, device = self.blocks[layer], self.blocks[layer].device
            if shortformer_pos_embed is not None:
                shortformer_pos_embed = shortformer_pos_embed.to(device)
            if attention_mask is not None:
                attention_mask = attention_mask.to(device)
            block = partial(
                whole,
                past_kv_cache_entry=None if past_kv_cache is None else past_kv_cache[layer],
                shortformer_pos_embed=shortformer_pos_embed,
                attention_mask=attention_mask,
            )
            # A graph would hold the weights of all layers that were fetched.
            if checkpoint_blocks or (whole.waiting is not None and torch.is_grad_enabled()):
                block = partial(checkpoint, block, use_reentrant=False)
            first = mixed and layer == layers.start
            residual, streams = block(residual.to(device), carried=streams, mixed=first)
        if self.cfg.residual_mixing and layers.stop == self.cfg.n_layers and len(layers):
            numbers = kept_before(self.cfg.residual_mixing, layers.stop)
            states = dict(zip(numbers, streams.get(STATES, ()), strict=True))
            read = self.resid_mix({**states, layers.stop: residual})
            return self.hook_resid_final(read), {}
        return residual, streams

    def input_to_embed(self, input: Any, *args: Any, **options: Any) -> Any:
        """HookedTransformer.input_to_embed, then the embeddings' norm and smear, where they are."""
        embedded = super().input_to_embed(input, *args, **options)
        past_kv_cache = options.get("past_kv_cache")
        residual, tokens, shortformer_pos_embed, attention_mask = embedded
        if self.cfg.embedding_norm:
            residual = rms_normed(residual, self.cfg.eps)
        if self.cfg.smear_channels:
            own = None if attention_mask is None else attention_mask[:, -residual.shape[1] :]
            before = getattr(past_kv_cache, "last_embedding", None)
            if past_kv_cache is not None and not past_kv_cache.frozen:
                # Of each row's last token: new ones are no padding.
                past_kv_cache.last_embedding = residual[:, -1:]
            residual = self.smear(residual, before, own)
        return residual, tokens, shortformer_pos_embed, attention_mask

    def begun(
        self, input: Any, **options: Any
    ) -> tuple[Float[Tensor, "batch pos d_model"], Carried]:
        """The state before block 0, and what is carried to it.

        Args:
            options: of :meth:`forward`, such as ``padding_side``.
        """
        if not (self.cfg.residual_mixing or self.cfg.looks_up):
            return self(input, stop_at_layer=0, **options), {}
        with LocallyOverridenDefaults(
            self, prepend_bos=USE_DEFAULT_VALUE, padding_side=options.get("padding_side")
        ):
            residual, tokens, *_ = self.input_to_embed(input)
        return residual, {TOKENS: (tokens,)} if self.cfg.looks_up else {}

    @torch.no_grad()
    def written_weights(self) -> Float[Tensor, "reader written"]:
        """With which weight each block, and the readout, reads what was written before it: the
        embeddings (0), block j − 1 (j). All 1 without residual mixing.
        """
        readers = self.cfg.n_layers + 1
        if not self.cfg.residual_mixing:
            return torch.ones(readers, readers, dtype=self.cfg.dtype).tril()
        weights = torch.zeros(readers, readers, dtype=torch.float64)
        for reader, holder in enumerate([*self.blocks, self]):
            with nullcontext() if holder is self else holder.fetched():
                mix = holder.resid_mix
                weights[reader, list(mix.states)] = mix.weights.double().cpu()
        return written_weights(weights)

    def accumulated_bias(self, *args: Any, **options: Any) -> Float[Tensor, " d_model"]:
        """HookedTransformer.accumulated_bias; refused with residual mixing."""
        check_unweighted(self.cfg)
        return super().accumulated_bias(*args, **options)

    def carried_before(self, layer: int, cache: ActivationCache | dict[str, Tensor]) -> Carried:
        """What the layers before ``layer`` pass on, read from a cache of a full run; with residual
        mixing, the states that later readers read. What is looked up by the tokens is not among it.

        >>> # logits = model(cache["resid_pre", 2], start_at_layer=2,
        >>> #                carried=model.carried_before(2, cache))
        """
        layer = range(self.cfg.n_layers)[layer]
        carried: Carried = {}
        for stream in self.cfg.streams:
            if stream.source != "tokens":
                wanted = {"previous": [layer - 1], "first": [0], "all": range(layer)}
                sources = wanted[stream.source] if layer > 0 else []
                carried[stream.of] = tuple(cache[source_point(stream, j)] for j in sources)
        if self.cfg.residual_mixing:
            later = kept_before(self.cfg.residual_mixing, layer + 1)
            points = ["hook_resid_embed", *(f"blocks.{j}.hook_resid_post" for j in range(layer))]
            carried[STATES] = tuple(cache[points[state]] for state in later)
        return carried

    def _check_carried(
        self, layers: range, residual: Tensor, carried: Carried | None, mixed: bool
    ) -> None:
        if len(layers) == 0:
            return
        for tokens in (carried or {}).get(TOKENS, ()):
            if tokens.shape != residual.shape[:2]:
                raise ValueError(
                    f"tokens must be {list(residual.shape[:2])}, as the residual stream is; got "
                    f"{list(tokens.shape)}"
                )
        first, there = layers[0], carried or {}
        remedy = f"pass carried=model.carried_before({first}, cache)"
        if mixed and self.cfg.residual_mixing:
            numbers = kept_before(self.cfg.residual_mixing, first + 1)
            if len(numbers) != len(there.get(STATES, ())):
                raise ValueError(
                    f"start_at_layer={first}: later layers read the states {numbers} of the "
                    f"residual stream, too: {remedy}"
                )
        for stream in self.cfg.streams:
            for layer in layers:
                if stream.source == "tokens":
                    if stream.receives(layer) and TOKENS not in there:
                        raise ValueError(
                            f"start_at_layer={first}: layer {layer} looks up its {stream.of} by "
                            "the tokens: pass tokens="
                        )
                    continue
                missing = [source for source in stream.sources(layer) if source < first]
                if missing and stream.of not in there:
                    raise ValueError(
                        f"start_at_layer={first} skips layer {missing[0]}, whose {stream.of} "
                        f"layer {layer} receives: {remedy}"
                    )
