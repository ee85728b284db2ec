"""Weight processing that stays right when values flow from layer to layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

from resval_lens.attention import StreamAttention
from resval_lens.config import ResValConfig
from resval_lens.host import (
    AbstractAttention,
    GroupedQueryAttention,
    HookedTransformer,
    HookedTransformerConfig,
)
from resval_lens.streams import TABLE, AttentionStream, Streams, shorthand


def check_processing(
    cfg: ResValConfig,
    fold_ln: bool,
    fold_value_biases: bool,
    refactor: bool,
    center_unembed: bool = False,
    center_writing_weights: bool = False,
) -> None:
    """Refuses the steps that are wrong for this model.

    Raises:
        ValueError: ``refactor_factored_attn_matrices`` with any stream (each head's factors get a
            basis of their own, and what a layer passes on would arrive in another's basis); folding
            value biases that pass a gate (which makes them depend on the token), or where attention
            weights do not sum to one or values are clipped; folding norms behind a layer, with
            biases before a gate (of a stream, of an MLP) that has none, or layer norms before a
            final RMS norm; centring logits that are capped, or embeddings that are normalised or
            smeared.
    """
    streams = cfg.streams
    if refactor and streams:
        raise ValueError(
            "refactor_factored_attn_matrices=True: streams carry activations between layers in "
            "each head's own basis, which refactoring changes layer by layer"
        )
    if fold_ln and (unfolded := unfoldable(cfg)):
        raise ValueError(
            f"fold_ln=True: the gate of the {unfolded} stream has no bias, which would take over "
            "what the norms' biases bring it; pass fold_ln=False"
        )
    unlike = (
        "use_attention_sinks=True" if cfg.use_attention_sinks
        else "" if cfg.clip_qkv is None
        else f"clip_qkv={cfg.clip_qkv}"
    )  # fmt: skip
    if unlike and fold_value_biases:
        raise ValueError(
            f"fold_value_biases=True: under {unlike} a value bias is not a constant of the output; "
            "pass fold_value_biases=False"
        )
    embedded = (
        "embedding_norm=True" if cfg.embedding_norm else f"smear_channels={cfg.smear_channels}"
    )
    if center_writing_weights and (cfg.embedding_norm or cfg.smear_channels):
        raise ValueError(
            f"center_writing_weights=True: under {embedded} the embedding is not a sum of "
            "what is written; pass center_writing_weights=False"
        )
    for step, asked in (("fold_ln", fold_ln), ("center_unembed", center_unembed)):
        if asked and not surviving_steps(cfg)[step]:
            why = (
                "a soft cap bends the logits of this model" if step == "center_unembed"
                else "this model's gated MLPs have no bias before the gate, which a norm's bias "
                "would become" if _biased_norm_before_gate(cfg)
                else "it would centre the unembedding, and the norm before that does not centre"
                if _rms_after_layer_norms(cfg)
                else "norms stand behind each layer of this model"
            )  # fmt: skip
            raise ValueError(f"{step}=True: {why}; pass {step}=False")
    if fold_value_biases and any(s.of == "v" and _gates_biases(s) for s in streams):
        raise ValueError(
            "fold_value_biases=True: behind a gate the arriving value bias depends on the token; "
            "pass fold_value_biases=False"
        )


def unfoldable(cfg: ResValConfig) -> str:
    """The stream whose gate cannot take over the norms' biases, having none; "" if all can."""
    gates = (s.of for s in cfg.streams if s.how.is_gated and s.bias is False)
    return next(gates, "") if cfg.normalization_type == "LN" else ""


def _gates_biases(stream: AttentionStream) -> bool:
    """Whether a bias of the projection passes a gate; what tables hold has none."""
    return stream.how.is_gated and not (stream.source == "tokens" and stream.how.own_is_fixed)


def fold_norms_into_gates(state: Mapping[str, Tensor], cfg: ResValConfig) -> dict[str, Tensor]:
    """``state`` with gates that read ln1 without its gain and bias, as after ``fold_ln``.

    w_h ∘ gain,  c_h + w_h · bias        of the channels that the gate reads
    """
    folded = dict(state)
    for stream in cfg.streams:
        for layer in range(cfg.n_layers):
            at = f"blocks.{layer}."
            mix = f"{at}attn.mixes.{stream.of}."
            if f"{mix}gate_weight" not in state or f"{at}ln1.w" not in state:
                continue
            weight = state[f"{mix}gate_weight"]
            channels = weight.shape[1]
            folded[f"{mix}gate_weight"] = weight * state[f"{at}ln1.w"][:channels]
            if f"{at}ln1.b" in state and f"{mix}gate_bias" in state:
                shift = weight @ state[f"{at}ln1.b"][:channels]
                folded[f"{mix}gate_bias"] = state[f"{mix}gate_bias"] + shift
    return folded


def surviving_steps(cfg: HookedTransformerConfig) -> dict[str, bool]:
    """Which of ``fold_ln`` and ``center_unembed`` leave what a model computes as it is.

    A norm behind a layer scales what the layer adds, and no weight after it; a gated MLP adds its
    bias behind the gate, unless ``gated_mlp_biases``; a shift of all logits is lost in the softmax,
    but not under a soft cap. TransformerLens folds all norms as ``normalization_type`` has them,
    a final RMS norm behind layer norms, too.
    """
    return {
        "fold_ln": cfg.original_architecture not in POST_NORM_ARCHITECTURES
        and not _biased_norm_before_gate(cfg)
        and not _rms_after_layer_norms(cfg),
        "center_unembed": cfg.output_logits_soft_cap <= 0,
    }


def _biased_norm_before_gate(cfg: HookedTransformerConfig) -> bool:
    is_gated = cfg.gated_mlp and not cfg.attn_only and not getattr(cfg, "gated_mlp_biases", False)
    return is_gated and cfg.normalization_type == "LN"


def _rms_after_layer_norms(cfg: HookedTransformerConfig) -> bool:
    return cfg.final_rms and cfg.normalization_type == "LN"


def processing_of(model: HookedTransformer) -> dict[str, bool]:
    """What weight processing did that a new stream does not survive, by ResValConfig's fields.

    A configuration without these fields does not say: then what the weights show. Folded value
    biases are all 0 beside output biases that are not; refactored heads have an orthonormal W_O
    and orthogonal columns in W_V.
    """
    cfg, layers = model.cfg, [block.attn for block in model.blocks]
    if isinstance(cfg, ResValConfig):
        return {name: getattr(cfg, name) for name in ("folded_value_biases", "refactored_heads")}
    folded = any(attn.b_O.any() for attn in layers) and not any(
        _value_bias(attn).any() for attn in layers
    )
    unfolded_norm = not str(cfg.normalization_type).endswith("Pre")
    if cfg.original_architecture == "GPTNeoForCausalLM" and unfolded_norm:
        folded = False  # output biases beside no value biases, unless a folded norm gave it some
    refactored = cfg.positional_embedding_type != "rotary" and all(
        _is_diagonal(attn.W_O @ attn.W_O.mT, ones=True) and _is_diagonal(attn.W_V.mT @ attn.W_V)
        for attn in layers
    )
    return {"folded_value_biases": folded, "refactored_heads": bool(layers) and refactored}


def _is_diagonal(x: Float[Tensor, "head row column"], ones: bool = False) -> bool:
    diagonal = x.diagonal(dim1=-2, dim2=-1)
    wanted = torch.diag_embed(torch.ones_like(diagonal) if ones else diagonal)
    return bool((x - wanted).abs().max() <= 1e-3 * diagonal.abs().max())


def check_graft(
    before: Streams, after: Streams, processed: Mapping[str, bool], remedy: str
) -> None:
    """Refuses streams that processed weights can no longer carry.

    Args:
        processed: from :func:`processing_of`.
        remedy: ends the message.

    Raises:
        ValueError: another value stream, after value biases were folded into the output: what the
            link brought of them could be neither removed nor brought; any other stream, after
            each head got a basis of its own.
    """
    was, will = ([stream for stream in s if stream.of == "v"] for s in (before, after))
    if processed["folded_value_biases"] and was != will:
        raise ValueError(
            f"streams={shorthand(after)!r}: this model's value biases are folded into its output "
            f"(every b_V is 0, b_O is not), so a link cannot carry them; {remedy}"
        )
    if processed["refactored_heads"] and before != after and after:
        raise ValueError(
            f"streams={shorthand(after)!r}: this model's heads are refactored, each layer's in a "
            f"basis of its own, so a link cannot carry from one to the next; {remedy}"
        )


@torch.no_grad()
def fold_value_biases_through_streams(streams: Streams, layers: Sequence[StreamAttention]) -> None:
    """Moves every value bias into output biases, in place, along the value stream too.

        β_l = a · b_V,l + Σ_j b_j · passed bias of j          b_O,l += Σ_h β_l,h W_O,l,h

    Attention weights sum to one over keys and the stream is linear, so a bias reaches the output
    of its own layer, and of every layer its values flow to, as a constant. Tables have no biases.
    """
    stream = next(stream for stream in streams if stream.of == "v")
    passed: list[Tensor] = []
    for layer, attn in enumerate(layers):
        local = total = _value_bias(attn)[None, None]  # [1, 1, head, d_head]
        sources = stream.sources(layer)
        if sources:
            mix = attn.mix("v")
            assert mix is not None
            arriving = tuple(passed[j] for j in sources if j != TABLE)
            # Nothing comes of a table, whatever its gate.
            if arriving:
                total = sum(mix(local, arriving, local))
            else:
                total = mix.own_part(local, torch.ones_like(local[..., :1]))
        passed.append(local.clone() if stream.carry == "raw" else total.clone())
        per_head = total[0, 0].repeat_interleave(attn.cfg.n_heads // total.shape[2], dim=0)
        attn.b_O.add_(torch.einsum("hd,hdm->m", per_head, attn.W_O))
    for attn in layers:
        _value_bias(attn).zero_()


def _value_bias(attn: AbstractAttention) -> Tensor:
    """The stored bias, one for each key-value head."""
    return attn._b_V if isinstance(attn, GroupedQueryAttention) else attn.b_V
