"""A transformer run edge by edge: every node is asked for by name and asks for what it reads.

Written for tests, from the definition: an edge carries ``(1 − c) · current + c · corrupted``, with
a share c of its own. Plain numpy; softmax attention, GELU MLPs, layer norms or none, value (query,
key) streams of every source, raw or summed, with fixed weights, a head-mixing matrix or an added
sigmoid gate; residual mixing, normalised and smeared embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy import ndarray as Array
from scipy.special import erf, expit, softmax

from resval_lens.transformer import ResValTransformer


class EdgeLoop:
    """One prompt; ``corrupted`` is the loop of its corrupted prompt, or None if no edge is
    corrupted.
    """

    def __init__(
        self,
        model: ResValTransformer,
        tokens: Array,
        corrupted: EdgeLoop | None = None,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        self.cfg = model.cfg
        self.weights = {k: v.detach().double().numpy() for k, v in model.state_dict().items()}
        self.tokens, self.corrupted, self.shares = tokens, corrupted, shares or {}
        self.known: dict[tuple[str, ...], Array] = {}

    def get(self, what: str, *name: Any) -> Array:
        key = (what, *map(str, name))
        if key not in self.known:
            self.known[key] = getattr(self, f"_{what}")(*name)
        return self.known[key]

    def logits(self) -> Array:
        x = self._norm(self.get("read", "logits", self.cfg.n_layers), "ln_final")
        return x[-1] @ self.weights["unembed.W_U"] + self.weights["unembed.b_U"]

    def _mixed(self, edge: str, what: str, *name: Any) -> Array:
        """What an edge carries."""
        share, now = self.shares.get(edge, 0.0), self.get(what, *name)
        if share == 0:
            return now
        assert self.corrupted is not None
        return (1 - share) * now + share * self.corrupted.get(what, *name)

    # What writers write

    def _input(self) -> Array:
        positions = self.weights["pos_embed.W_pos"][: len(self.tokens)]
        x = self.weights["embed.W_E"][self.tokens] + positions
        if self.cfg.embedding_norm:
            x = x / np.sqrt((x**2).mean(-1, keepdims=True) + self.cfg.eps)
        if self.cfg.smear_channels:
            smeared = x.copy()
            for t in range(1, len(x)):
                gate = expit(x[t, : self.cfg.smear_channels] @ self.weights["smear.weight"])
                smeared[t] += self.weights["smear.scale"] * gate * x[t - 1]
            x = smeared
        return x

    def _head(self, layer: int, head: int) -> Array:
        """Without b_O."""
        kv = head // (self.cfg.n_heads // self._heads("v"))
        q, k = self.get("total", "q", layer, head), self.get("total", "k", layer, kv)
        scores = q @ k.T / self.cfg.attn_scale
        scores[np.triu_indices(len(q), 1)] = -np.inf
        z = softmax(scores, axis=-1) @ self.get("total", "v", layer, kv)
        return z @ self.weights[f"blocks.{layer}.attn.W_O"][head]

    def _mlp(self, layer: int) -> Array:
        x = self._norm(self.get("read", f"m{layer}", layer), f"blocks.{layer}.ln2")
        at = f"blocks.{layer}.mlp"
        pre = x @ self.weights[f"{at}.W_in"] + self.weights[f"{at}.b_in"]
        post = pre * (1 + erf(pre / np.sqrt(2))) / 2
        return post @ self.weights[f"{at}.W_out"] + self.weights[f"{at}.b_out"]

    # What readers read

    def _read(self, reader: str, layer: int) -> Array:
        """Everything written before ``reader``, along the edges into it."""
        x = self._before(reader, layer)
        return x + self._of_heads(reader, layer) if reader == f"m{layer}" else x

    def _before(self, reader: str, layer: int) -> Array:
        """What block ``layer`` (or the readout) reads, of what the edges into ``reader`` carry."""
        if not self.cfg.residual_mixing:
            return self._state(reader, layer)
        at = f"blocks.{layer}." if layer < self.cfg.n_layers else ""
        weights = self.weights[f"{at}resid_mix.weights"]
        states = self.cfg.residual_mixing[layer]
        return sum(w * self._state(reader, j) for w, j in zip(weights, states, strict=True))

    def _state(self, reader: str, number: int) -> Array:
        if number == 0:
            return self._mixed(f"input->{reader}", "input").copy()
        block = number - 1
        x = self._before(reader, block) + self._of_heads(reader, block)
        if not self.cfg.attn_only:
            x = x + self._mixed(f"m{block}->{reader}", "mlp", block)
        return x

    def _of_heads(self, reader: str, layer: int) -> Array:
        return sum(
            (
                self._mixed(f"a{layer}.h{head}->{reader}", "head", layer, head)
                for head in range(self.cfg.n_heads)
            ),
            start=self.weights[f"blocks.{layer}.attn.b_O"],
        )

    def _local(self, of: str, layer: int, head: int) -> Array:
        x = self._norm(self.get("read", f"a{layer}.h{head}<{of}>", layer), f"blocks.{layer}.ln1")
        at, name = f"blocks.{layer}.attn", of.upper()
        grouped = "_" if of != "q" and self.cfg.n_key_value_heads else ""
        weight = self.weights[f"{at}.{grouped}W_{name}"][head]
        return x @ weight + self.weights[f"{at}.{grouped}b_{name}"][head]

    def _total(self, of: str, layer: int, head: int) -> Array:
        local = self.get("local", of, layer, head)
        stream = next((s for s in self.cfg.streams if s.of == of), None)
        if stream is None or not stream.receives(layer):
            return local
        total = stream.own * local
        for index, source in enumerate(stream.sources(layer)):
            for other in range(self._heads(of)):
                if stream.mix != "matrix" and other != head:
                    continue
                sender = f"a{source}" if source >= 0 else "t"
                edge = f"{sender}.h{other}<{of}>->a{layer}.h{head}<{of}>"
                total = total + self._mixed(edge, "along", of, source, other, layer, head, index)
        return total

    def _along(self, of: str, source: int, other: int, layer: int, head: int, index: int) -> Array:
        """What the link from ``source`` brings."""
        stream = next(s for s in self.cfg.streams if s.of == of)
        weight = stream.carried
        if stream.mix == "matrix":
            weight = self.weights[f"blocks.{layer}.attn.mixes.{of}.carried"][index, head, other]
        mix = f"blocks.{layer}.attn.mixes.{of}"
        if stream.mix == "added_gate":
            reader = f"a{layer}.h{head}<{of}>"
            x = self._norm(self.get("read", reader, layer), f"blocks.{layer}.ln1")
            pre = x[:, : stream.channels] @ self.weights[f"{mix}.gate_weight"][head]
            weight = stream.scale * expit(pre)[:, None]
        if source < 0:
            return weight * self.weights[f"{mix}.table"][self.tokens, other]
        what = "local" if stream.carry == "raw" else "total"
        return weight * self.get(what, of, source, other)

    def _heads(self, of: str) -> int:
        return self.cfg.n_heads if of == "q" else self.cfg.n_key_value_heads or self.cfg.n_heads

    def _norm(self, x: Array, name: str) -> Array:
        if self.cfg.normalization_type is None:
            return x
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self.cfg.eps)
        return scaled * self.weights[f"{name}.w"] + self.weights[f"{name}.b"]
