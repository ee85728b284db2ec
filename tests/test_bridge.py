"""Bridges of TransformerLens: decoders out of them, by name, and against its older conversion."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module

from resval_lens import ResValTransformer
from resval_lens.hooks import cut_links
from resval_lens.host import STOCK, HookedTransformer
from resval_lens.io.formats.bridge import in_the_terms_of_a_bridge
from resval_lens.io.formats.settings import ARCHITECTURES, hooked_config
from tests.test_formats import EXPERTS, RUN, random_model, tokenizer, tokens

CLOSE = {"atol": 2e-6, "rtol": 0}


def modest_model(architecture: str, **settings: Any) -> Any:
    """A model with random weights as small as training starts with; biases and norms, too."""
    model = random_model(architecture, **settings)
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.05, generator=drawn)
    return model


def bridged(model: Any, text: Any = None) -> TransformerBridge:
    return build_bridge_from_module(
        model, type(model).__name__, hf_config=model.config, tokenizer=text
    )


@pytest.mark.parametrize("architecture", RUN)
def test_a_bridge_becomes_a_model_with_its_logits(architecture: str) -> None:
    original = modest_model(architecture)
    with torch.no_grad():
        wanted = original(tokens()).logits
        bridge = bridged(original)
        model = ResValTransformer.from_bridge(bridge)
        assert model.cfg.streams == ()
        torch.testing.assert_close(model(tokens()), wanted, **CLOSE)
        torch.testing.assert_close(bridge(tokens()), wanted, atol=2e-5, rtol=0)  # as it was
    own = {x.data_ptr() for x in model.parameters()}
    assert not own & {x.data_ptr() for x in bridge.parameters()}


def test_a_bridge_gets_a_stream_whose_links_can_be_cut() -> None:
    bridge = bridged(modest_model("Qwen3ForCausalLM"))
    classic = ResValTransformer.from_bridge(bridge)
    with torch.no_grad():
        grafted = ResValTransformer.from_bridge(bridge, streams="v(mix=head, carried=0)")
        assert torch.equal(grafted(tokens()), classic(tokens()))
        carrying = ResValTransformer.from_hooked(bridge, "v")
        assert (carrying(tokens()) - classic(tokens())).abs().max() > 1e-3
        with cut_links(carrying):
            assert torch.equal(carrying(tokens()), classic(tokens()))


def test_prompts_start_as_they_do_in_the_bridge(tmp_path: Path) -> None:
    tokenizer(bos_token="<|endoftext|>", pad_token="<|endoftext|>").save_pretrained(tmp_path)
    text = transformers.AutoTokenizer.from_pretrained(tmp_path)  # one that has a name
    bridge = bridged(modest_model("LlamaForCausalLM"), text)
    for prepend in (True, False):
        bridge.cfg.default_prepend_bos = prepend
        model = ResValTransformer.from_bridge(bridge)
        assert model.to_tokens("Mary and").tolist() == bridge.to_tokens("Mary and").tolist()


def test_the_weights_are_those_that_the_bridge_runs_with() -> None:
    """A bridge of GPT-2 has its queries, keys and values apart from the model's joint matrix."""
    bridge = bridged(modest_model("GPT2LMHeadModel"))
    with torch.no_grad():
        bridge.blocks[1].attn.v.weight.mul_(3.0)
        model = ResValTransformer.from_bridge(bridge)
        torch.testing.assert_close(model(tokens()), bridge(tokens()), **CLOSE)


NATIVE = [
    {},
    {"normalization_type": "LNPre", "output_logits_soft_cap": 3.0},
    {"normalization_type": None},
    {"attn_only": True},
    {"n_key_value_heads": 2, "positional_embedding_type": "rotary", "gated_mlp": True,
     "normalization_type": "RMS", "final_rms": True, "act_fn": "silu"},
]  # fmt: skip


@pytest.mark.parametrize("settings", NATIVE, ids=str)
def test_a_bridge_of_transformer_lens_itself_is_taken(settings: dict[str, Any]) -> None:
    shape = {"d_model": 16, "d_head": 4, "n_layers": 3, "n_ctx": 20, "d_vocab": 300, "seed": 0}
    cfg = TransformerBridgeConfig(**{**shape, "act_fn": "gelu", "n_heads": 4, "d_mlp": 40}
                                  | settings)  # fmt: skip
    torch.manual_seed(0)
    before = torch.get_rng_state()
    bridge = TransformerBridge.boot_native(cfg)
    with torch.no_grad():
        model = ResValTransformer.from_bridge(bridge)
        torch.testing.assert_close(model(tokens()), bridge(tokens()), **CLOSE)
    assert torch.equal(torch.get_rng_state(), before)


# By name


@pytest.mark.parametrize("steps", [{}, {"fold_ln": True, "fold_value_biases": True}], ids=str)
def test_transformer_lens_4_loads_names_as_bridges(
    steps: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def boot(name: str, **options: Any) -> TransformerBridge:
        asked.append((name, options))
        return bridged(modest_model("GPT2LMHeadModel"))

    monkeypatch.delattr(HookedTransformer, "from_pretrained_no_processing", raising=False)
    monkeypatch.setattr(TransformerBridge, "boot_transformers", boot)
    model = ResValTransformer.from_pretrained("gpt2-small", streams="v", device="cpu", **steps)
    assert asked == [("gpt2", {"device": "cpu", "tokenizer": None})]
    wanted = ResValTransformer.from_hf(modest_model("GPT2LMHeadModel"), streams="v")
    with torch.no_grad():
        found, wanted = (each(tokens()).log_softmax(-1) for each in (model, wanted))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert (model.cfg.normalization_type == "LNPre") == bool(steps)


def test_transformer_lens_4_loads_its_own_older_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(HookedTransformer, "from_pretrained_no_processing", raising=False)

    def boot(name: str, **options: Any) -> TransformerBridge:
        assert name == "NeelNanda/Attn_Only_2L512W_C4_Code"
        raise OSError("no network\nhere")

    monkeypatch.setattr(TransformerBridge, "boot_tl_legacy", boot, raising=False)
    message = r"^attn-only-2l: TransformerLens cannot load it \(no network\)$"
    with pytest.raises(ValueError, match=message):
        ResValTransformer.from_pretrained("attn-only-2l")


# What is refused


def processed(**steps: bool) -> TransformerBridge:
    bridge = bridged(modest_model("GPT2LMHeadModel"))
    bridge.enable_compatibility_mode(disable_warnings=True, **steps)
    return bridge


def encoder() -> TransformerBridge:
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8,
    )  # fmt: skip
    return bridged(transformers.BertForMaskedLM(config))


def with_a_scaled_rotation() -> TransformerBridge:
    rotary = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    return bridged(random_model("LlamaForCausalLM", rope_parameters=rotary))


def of_its_own_with_a_scaled_rotation() -> TransformerBridge:
    cfg = TransformerBridgeConfig(
        d_model=8, d_head=4, n_layers=1, n_ctx=8, d_vocab=9, act_fn="gelu", n_heads=2, d_mlp=8,
        positional_embedding_type="rotary",
    )  # fmt: skip
    cfg.rope_scaling = {"rope_type": "linear", "factor": 2.0}
    return TransformerBridge.boot_native(cfg)


def of_another_architecture() -> TransformerBridge:
    config = transformers.StableLmConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=8, max_position_embeddings=16,
    )  # fmt: skip
    return bridged(transformers.StableLmForCausalLM(config))


REFUSED: dict[str, tuple[Any, str]] = {
    "processed": (processed, r"weights are processed.*before enable_compatibility_mode\(\), or"),
    "an encoder": (encoder, "the architecture BertForMaskedLM cannot be converted; these can: Ap"),
    "another": (of_another_architecture, "the architecture StableLmForCausalLM cannot be conve"),
    "a rotation": (with_a_scaled_rotation, "a rotation scaled by 'linear' cannot be converted"),
    "its own rotation": (of_its_own_with_a_scaled_rotation, "its rotation is scaled: rope_scali"),
    "no bridge": (lambda: random_model(), "expected a TransformerBridge; got LlamaForCausalLM"),
    "no weights": (
        lambda: bridged(random_model().to("meta")),
        "was loaded without its weights, or keeps them elsewhere",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_one_line(case: str) -> None:
    made, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as raised:
        ResValTransformer.from_bridge(made())
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(STOCK, reason="TransformerLens 3.9 runs mixtures of experts")
@pytest.mark.parametrize("architecture", EXPERTS)
def test_transformer_lens_4_runs_no_mixtures_of_experts(architecture: str) -> None:
    message = r"cannot convert it \(num_experts=4 is not run on TransformerLens 4; install trans"
    with pytest.raises(ValueError, match=message):
        ResValTransformer.from_hf(random_model(architecture))


def test_weights_of_a_bridge_are_copied() -> None:
    bridge = bridged(modest_model("LlamaForCausalLM"))
    with pytest.raises(ValueError, match="share_weights=True: weights of a TransformerBridge"):
        ResValTransformer.from_hooked(bridge, share_weights=True)


def test_compatibility_mode_without_processing_changes_no_weights() -> None:
    model = ResValTransformer.from_bridge(processed(no_processing=True))
    with torch.no_grad():
        wanted = modest_model("GPT2LMHeadModel")(tokens()).logits
        torch.testing.assert_close(model(tokens()), wanted, **CLOSE)


# TransformerLens 3.9's own conversion


def older() -> Any:
    """Its module of conversions."""
    reason = "TransformerLens 4 converts to no HookedTransformer"
    return pytest.importorskip("transformer_lens.loading_from_pretrained", reason=reason)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_are_those_of_the_older_conversion(architecture: str) -> None:
    convert = older().get_pretrained_state_dict
    model = random_model(architecture)
    settings = {"dtype": torch.float32, "device": "cpu", "default_prepend_bos": False}
    cfg, found = in_the_terms_of_a_bridge(model, "hers", **settings)
    if architecture in ("Olmo3ForCausalLM", "OlmoeForCausalLM"):  # as if grouped there
        cfg = replace(cfg, n_key_value_heads=cfg.n_heads)
    wanted = convert("gpt2", cfg, model)
    plain = {name.replace("._", "."): x for name, x in found.items()}
    for name, x in wanted.items():
        same = plain.pop(name.replace("._", "."), None)
        if same is None:
            assert name.endswith("IGNORE") or not x.any(), name
        else:
            assert torch.equal(same, x), name
    assert not any(bool(x.any()) for x in plain.values()), sorted(plain)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_settings_are_those_that_were_derived_before(architecture: str, tmp_path: Path) -> None:
    """Of architectures whose settings TransformerLens 3.9 takes from a configuration."""
    derive = older().get_pretrained_model_config
    by_name = ("Gemma", "OlmoFor", "Olmo2", "PhiFor")
    if architecture.startswith(by_name):
        pytest.skip("TransformerLens has its settings by the names of published models")
    config = random_model(architecture).config
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text()) | {"architectures": [architecture]}
    path.write_text(json.dumps(settings | {"n_ctx": settings.get("n_positions")}))
    options = {"dtype": torch.float32, "device": "cpu", "default_prepend_bos": False}
    wanted, found = derive(str(tmp_path), **options), hooked_config(config, architecture, **options)
    unread = {"model_name", "tokenizer_name", "tokenizer_prepends_bos", "trust_remote_code",
              "initializer_range", "init_weights", "tie_word_embeddings", "n_ctx", "final_rms",
              "quantization_method"}  # fmt: skip
    if wanted.n_key_value_heads == wanted.n_heads:
        wanted.n_key_value_heads = None
    if "local" not in (wanted.attn_types or []):
        wanted.attn_types = None
    for each in fields(wanted):
        if each.name not in unread:
            assert getattr(found, each.name) == getattr(wanted, each.name), each.name
