"""Bridges of TransformerLens: a model of transformers under the names of its parts."""

from __future__ import annotations

import copy
import warnings
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformer_lens.supported_models import MODEL_ALIASES

from resval_lens.host import HookedTransformerConfig
from resval_lens.io.files import first_line
from resval_lens.io.formats.format import Converted, with_padding
from resval_lens.io.formats.settings import check_architecture, hooked_config, native_config

_NATIVE = "TransformerLensNative"
"""The architecture of bridges that TransformerLens builds from a configuration of its own."""
_OF_OLDER_FILES = ("NeelNanda/", "ArthurConmy/", "Baidicoot/")
"""Whose models on the hub are no models of transformers."""
_NORMS = ("ln1", "ln1_post", "ln2", "ln2_post", "attn.q_norm", "attn.k_norm")
_OF_HEADS = ("W_Q", "W_K", "W_V", "b_Q", "b_K", "b_V")
_GROUPED = ("W_K", "W_V", "b_K", "b_V")
_OF_AN_MLP = ("W_in", "W_gate", "W_out", "b_in", "b_out")


def converted_from_bridge(bridge: Any) -> Converted:
    """A bridge's decoder in TransformerLens's terms; tensors may be views of its own.

    Settings are those of the model of transformers inside, the weights those that the bridge runs
    with. Prompts start as they do in the bridge.

    Raises:
        ValueError: no bridge; its weights are processed; an architecture that cannot be converted.
    """
    if not isinstance(bridge, TransformerBridge):
        raise ValueError(f"expected a TransformerBridge; got {type(bridge).__name__}")
    if bridge._weights_processed:
        raise ValueError(
            "this TransformerBridge's weights are processed, which streams do not survive: convert "
            "it before enable_compatibility_mode(), or pass no_processing=True there"
        )
    cfg = bridge.cfg
    source = f"this TransformerBridge of {cfg.model_name}"
    if cfg.architecture != _NATIVE:
        check_architecture(bridge.original_model.config, str(cfg.architecture), source)
    parameter = next(bridge.original_model.parameters())
    if parameter.is_meta:
        raise ValueError(f"{source} was loaded without its weights, or keeps them elsewhere")
    config, state = _taken(
        bridge, source, dtype=parameter.dtype, device=str(parameter.device),
        default_prepend_bos=cfg.default_prepend_bos,
    )  # fmt: skip

    def reference(tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        was = bridge.training
        try:
            logits: Tensor = bridge.eval()(tokens.to(parameter.device))
        finally:
            bridge.train(was)
        return logits

    tokenizer = with_padding(bridge.tokenizer)
    return Converted(source, config, state, tokenizer, reference, parameter.dtype)


def in_the_terms_of_a_bridge(
    model: Any, source: str, **settings: Any
) -> tuple[HookedTransformerConfig, dict[str, Tensor]]:
    """Settings and parameters of a causal language model of transformers, which stays as it is.

    Args:
        source: what it is, for messages.
        settings: device, dtype, default_prepend_bos.

    Raises:
        ValueError: an architecture that cannot be converted.
    """
    architecture = type(model).__name__
    check_architecture(model.config, architecture, source)
    # A bridge puts its own parts into the model: into a second one, of the same tensors.
    tensors = chain(model.parameters(), model.buffers())
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bridge = build_bridge_from_module(twin, architecture, hf_config=twin.config)
    except Exception as error:  # settings that TransformerLens does not expect fail in many ways
        raise _not_converted(source, error) from None
    return _taken(bridge, source, **settings)


def named_bridge(name: str, **options: Any) -> TransformerBridge:
    """A TransformerBridge by a name that TransformerLens knows, downloaded or cached.

    Args:
        options: device, tokenizer, dtype and what else ``boot_transformers`` takes.

    Raises:
        ValueError: it cannot be loaded.
    """
    named = (official for official, aliases in MODEL_ALIASES.items() if name in aliases)
    official = next(named, name)
    boot: Any = TransformerBridge.boot_transformers
    if official.startswith(_OF_OLDER_FILES):
        boot = getattr(TransformerBridge, "boot_tl_legacy", boot)
    try:
        found: TransformerBridge = boot(official, **options)
        return found
    except Exception as error:  # the hub and files from it fail in many ways
        raise ValueError(f"{name}: TransformerLens cannot load it ({first_line(error)})") from None


def _taken(
    bridge: Any, source: str, **settings: Any
) -> tuple[HookedTransformerConfig, dict[str, Tensor]]:
    architecture = str(bridge.cfg.architecture)
    try:
        if architecture == _NATIVE:
            cfg = native_config(bridge.cfg, **settings)
        else:
            cfg = hooked_config(bridge.original_model.config, architecture, **settings)
        with torch.no_grad():
            return cfg, _state(bridge, cfg)
    except Exception as error:
        raise _not_converted(source, error) from None


def _not_converted(source: str, error: Exception) -> ValueError:
    return ValueError(f"{source}: TransformerLens cannot convert it ({first_line(error)})")


def _state(bridge: Any, cfg: HookedTransformerConfig) -> dict[str, Tensor]:
    """A bridge's parameters by HookedTransformer's names; biases that it lacks are left out."""
    gemma = str(cfg.original_architecture).startswith("Gemma")
    W_E, W_U = bridge.embed.W_E, bridge.unembed.W_U
    state = {
        "embed.W_E": W_E * torch.tensor(cfg.d_model**0.5, dtype=W_E.dtype) if gemma else W_E,
        "unembed.W_U": W_U,
        **_norm(bridge.ln_final, "ln_final", cfg),
    }
    if (b_U := getattr(bridge.unembed, "b_U", None)) is not None:
        state["unembed.b_U"] = b_U
    if cfg.positional_embedding_type == "standard":
        state["pos_embed.W_pos"] = bridge.pos_embed.W_pos[-cfg.n_ctx :]  # OPT's begin at row 2
    if cfg.post_embedding_ln:
        state |= _norm(bridge.embed_ln, "embed.ln", cfg)
    for layer, block in enumerate(bridge.blocks):
        state |= {f"blocks.{layer}.{name}": x for name, x in _block(block, cfg).items()}
    return state


def _block(block: Any, cfg: HookedTransformerConfig) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name in _OF_HEADS:
        if (x := getattr(block.attn, name, None)) is not None:
            grouped = cfg.n_key_value_heads is not None and name in _GROUPED
            state[f"attn._{name}" if grouped else f"attn.{name}"] = x
    state["attn.W_O"] = block.attn.W_O
    if (b_O := getattr(block.attn, "b_O", None)) is not None:
        state["attn.b_O"] = b_O
    if cfg.use_attention_sinks:
        state["attn.sinks"] = block.attn.original_component.sinks
    for name, norm in _norms(block, cfg).items():
        state |= _norm(norm, name, cfg)
    if cfg.attn_only:
        return state
    mlp = _mlp(block.mlp) if cfg.num_experts is None else _experts(block.mlp, cfg)
    return state | {f"mlp.{name}": x for name, x in mlp.items()}


def _norms(block: Any, cfg: HookedTransformerConfig) -> dict[str, Any]:
    norms = {name: _part(block, name) for name in _NORMS}
    if norms["ln1"] is None:  # TransformerLens 4 says that OLMo 2's stand behind layers
        norms |= {"ln1": norms.pop("ln1_post"), "ln2": norms.pop("ln2_post")}
    if norms["ln2"] is None and not cfg.attn_only:  # one norm for attention and MLP
        norms["ln2"] = norms["ln1"]
    return {name: norm for name, norm in norms.items() if norm is not None}


def _part(block: Any, name: str) -> Any:
    """A block's part of that name, which not every architecture has."""
    for each in name.split("."):
        block = block._modules.get(each)
        if block is None:
            return None
    return block


def _norm(norm: Any, name: str, cfg: HookedTransformerConfig) -> dict[str, Tensor]:
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if cfg.normalization_type not in ("LN", "RMS"):  # nothing learned
        return {}
    if weight is None:  # OLMo's norms have no gain
        weight = torch.ones(cfg.d_model, dtype=cfg.dtype, device=cfg.device)
    if str(cfg.original_architecture).startswith("Gemma"):  # (1 + w) x / rms(x)
        weight = weight.float() + 1
    return {f"{name}.w": weight} | ({} if bias is None else {f"{name}.b": bias})


def _mlp(mlp: Any) -> dict[str, Tensor]:
    state = {name: x for name in _OF_AN_MLP if (x := getattr(mlp, name, None)) is not None}
    act = getattr(mlp.original_component, "act_fn", None)
    learned = {name: getattr(act, name, None) for name in ("alpha_p", "alpha_n", "beta")}
    return state | {f"act_fn.{name}": x for name, x in learned.items() if isinstance(x, Tensor)}


def _experts(mlp: Any, cfg: HookedTransformerConfig) -> dict[str, Tensor]:
    """A mixture of experts; transformers keeps each projection's experts in one tensor."""
    there = mlp.original_component
    experts = there.experts
    router = there.router if hasattr(there, "router") else there.gate
    state = {"W_gate.weight": router.weight}
    if cfg.original_architecture == "GptOssForCausalLM":  # gate and up in turn, [expert, in, out]
        both, down = experts.gate_up_proj, experts.down_proj
        parts = {"W_gate": both[..., ::2].mT, "W_in": both[..., 1::2].mT, "W_out": down.mT}
        both, down = experts.gate_up_proj_bias, experts.down_proj_bias
        biases = {"W_gate": both[..., ::2], "W_in": both[..., 1::2], "W_out": down}
        state["W_gate.bias"] = router.bias
    else:  # gate above up, [expert, out, in]
        gate, up = experts.gate_up_proj.chunk(2, dim=1)
        parts, biases = {"W_gate": gate, "W_in": up, "W_out": experts.down_proj}, {}
    for kind, stacked in (("weight", parts), ("bias", biases)):
        for name, x in stacked.items():
            state |= {f"experts.{i}.{name}.{kind}": each for i, each in enumerate(x)}
    return state
