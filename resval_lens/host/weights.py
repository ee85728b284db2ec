"""A hooked transformer's weights as a whole: drawn, processed, stacked over layers."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import FactoredMatrix
from transformer_lens.utilities import (
    calc_fan_in_and_fan_out,
    composition_scores,
    init_kaiming_normal_,
    init_kaiming_uniform_,
    init_xavier_normal_,
    init_xavier_uniform_,
)
from transformer_lens.weight_processing import ProcessWeights

from resval_lens.host.norms import LayerNormPre, RMSNormPre, final_norm
from resval_lens.host.tokens import Tokenized

NEEDED = ("W_Q", "W_K", "W_V", "W_O", "_W_K", "_W_V", "W_in", "W_gate", "W_out")
"""Matrices that no processing can do without."""


def _stacked(part: str, name: str) -> property:
    def get(self: Weights) -> Tensor:
        return torch.stack([getattr(getattr(block, part), name) for block in self.blocks])

    get.__doc__ = f"``{name}`` of every layer's {part}, [layer, ...]."
    return property(get)


class Weights(Tokenized):
    """Parameters whose names begin with W_ are drawn; biases begin at 0, gains at 1."""

    embed: Any
    pos_embed: Any
    blocks: Any
    ln_final: nn.Module
    unembed: Any

    W_Q, W_K, W_V, W_O = (_stacked("attn", name) for name in ("W_Q", "W_K", "W_V", "W_O"))
    b_Q, b_K, b_V, b_O = (_stacked("attn", name) for name in ("b_Q", "b_K", "b_V", "b_O"))
    W_in, W_out = _stacked("mlp", "W_in"), _stacked("mlp", "W_out")
    b_in, b_out = _stacked("mlp", "b_in"), _stacked("mlp", "b_out")
    W_gate = _stacked("mlp", "W_gate")

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """The embedding."""
        return self.embed.W_E

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        """The positions' embedding, of models that have one."""
        return self.pos_embed.W_pos

    @property
    def W_E_pos(self) -> Float[Tensor, "d_vocab_and_n_ctx d_model"]:
        """The tokens' and the positions' embeddings, one after the other."""
        return torch.cat([self.W_E, self.W_pos])

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:  # type: ignore[override]
        """The unembedding."""
        return self.unembed.W_U

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        """The unembedding's bias."""
        return self.unembed.b_U

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_Kᵀ of every head [layer, head, d_model, d_model], factored."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O of every head [layer, head, d_model, d_model], factored."""
        return FactoredMatrix(self.W_V, self.W_O)

    @property
    def n_params_total(self) -> int:
        """How many numbers all parameters hold; ``cfg.n_params`` counts attention and MLPs."""
        return sum(parameter.numel() for parameter in self.parameters())

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """What the output biases of the layers before ``layer`` add up to; with ``mlp_input`` of
        this layer's attention, too.
        """
        total = torch.zeros(self.cfg.d_model, device=self.cfg.device)
        for block in self.blocks[:layer]:
            total += block.attn.b_O
            if include_mlp_biases:
                total += block.mlp.b_out
        if mlp_input:
            total += self.blocks[layer].attn.b_O
        return total

    def all_composition_scores(self, mode: str) -> Float[Tensor, "layer head later head"]:
        """How much each head's output reaches each later head's Q, K or V (``mode``), by weights.

        ‖A B‖ / (‖A‖ ‖B‖), Elhage et al. (2021); 0 for a head that is not later.
        """
        right = {"Q": self.QK, "K": self.QK.T, "V": self.OV}
        if mode not in right:
            raise ValueError(f"mode must be one of ['Q', 'K', 'V'] not {mode}")
        scores = composition_scores(self.OV, right[mode], broadcast_dims=True)
        layers = torch.arange(self.cfg.n_layers, device=scores.device)
        later = layers[:, None, None, None] < layers[None, None, :, None]
        return torch.where(later, scores, torch.zeros_like(scores))

    def init_weights(self) -> None:
        """Draws the matrices as ``cfg.init_mode`` says, after ``cfg.seed`` if there is one.

        "gpt2": N(0, initializer_range²). The modes of Xavier and Kaiming take ``initializer_range``
        for their gain; "muP": N(0, 1) of embeddings, N(0, 1/fan_in) of the rest.
        """
        cfg = self.cfg
        if cfg.seed is not None:
            torch.manual_seed(cfg.seed)
        spread = cfg.initializer_range
        kaiming: dict[str, Any] = {"gain": spread, "nonlinearity": "relu", "mode": "fan_in"}
        draw: dict[str, Any] = {
            "gpt2": lambda x, _: nn.init.normal_(x, std=spread),
            "xavier_uniform": lambda x, _: init_xavier_uniform_(x, gain=spread),
            "xavier_normal": lambda x, _: init_xavier_normal_(x, gain=spread),
            "kaiming_uniform": lambda x, _: init_kaiming_uniform_(x, **kaiming),
            "kaiming_normal": lambda x, _: init_kaiming_normal_(x, **kaiming),
            "muP": lambda x, embeds: nn.init.normal_(
                x, std=1.0 if embeds else 1 / calc_fan_in_and_fan_out(x)[0] ** 0.5
            ),
        }
        for name, parameter in self.named_parameters():
            if "W_" in name:
                draw[cfg.init_mode](parameter, "embed" in name)

    def load_and_process_state_dict(
        self,
        state_dict: dict[str, Tensor],
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        fold_value_biases: bool = True,
        refactor_factored_attn_matrices: bool = False,
    ) -> None:
        """Loads weights with norms' gains folded into the layers behind them, what is written to
        the residual stream centred, and so on: TransformerLens's ``ProcessWeights``.

        Raises:
            ValueError: a matrix is missing.
        """
        own = self.state_dict()
        missing = set(own) - set(state_dict)
        if absent := sorted(x for x in missing if x.rpartition(".")[2] in NEEDED):
            raise ValueError(f"the weights lack {absent[0]}")
        state_dict = {**state_dict, **{name: own[name] for name in missing}}
        folds = any(name.endswith((".ln1.w", ".ln2.w", "ln_final.w")) for name in state_dict)
        if fold_ln and folds:
            self._without_gains()
        state_dict = ProcessWeights.process_weights(
            state_dict,
            self.cfg,
            fold_ln=fold_ln and folds,
            center_writing_weights=center_writing_weights,
            center_unembed=center_unembed,
            fold_value_biases=fold_value_biases,
            refactor_factored_attn_matrices=refactor_factored_attn_matrices,
        )
        self.load_state_dict(state_dict, strict=False)
        if fold_ln and folds:
            self.setup()

    def _without_gains(self) -> None:
        """Norms without gain and bias in place of each norm that a layer stands behind."""
        cfg, was = self.cfg, self.cfg.normalization_type
        if was not in ("LN", "RMS"):
            return
        plain = {"LN": LayerNormPre, "RMS": RMSNormPre}[was]
        cfg.normalization_type = f"{was}Pre"
        self.ln_final = final_norm(cfg)
        for block in self.blocks:
            block.ln1, block.ln2 = plain(cfg), plain(cfg)
            if cfg.is_layer_norm_activation():
                block.mlp.ln = LayerNormPre(cfg)

    def process_weights_(self, **steps: bool) -> None:
        """:meth:`load_and_process_state_dict` of this model's own weights."""
        self.load_and_process_state_dict(self.state_dict(), **steps)
