"""Models of others: every architecture that is converted, folders, GGUF files, nanoGPT."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import huggingface_hub
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from resval_lens import ResValTransformer
from resval_lens.host import STOCK
from resval_lens.io import files
from resval_lens.io.formats import FORMATS, format_of
from resval_lens.io.formats.format import Converted
from resval_lens.io.formats.hugging_face import HuggingFaceFolder
from resval_lens.io.formats.settings import ARCHITECTURES
from resval_lens.io.tokenizers import train_bpe
from resval_lens.lens.weights import surviving_steps
from resval_lens.load import load_model

VOCABULARY = 300
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 0,
}  # fmt: skip
GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
UNGROUPED = {**SHAPE, "num_key_value_heads": 4}
WINDOW = {"head_dim": 16, "sliding_window": 8}
DEEP = {"num_hidden_layers": 7}  # one layer in six, or four, attends everywhere
SETTINGS: dict[str, dict[str, Any]] = {
    "BloomForCausalLM": {**GPT, "hidden_size": 32},
    "GPT2LMHeadModel": GPT,
    "GPTJForCausalLM": {**GPT, "rotary_dim": 4},
    "GPTNeoForCausalLM": {
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "num_heads": 4,
        "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64,
        "window_size": 8,
    },
    "GPTNeoXForCausalLM": {**UNGROUPED, "rotary_pct": 0.5},
    "Gemma2ForCausalLM": {**SHAPE, **WINDOW, "query_pre_attn_scalar": 24},
    "Gemma3ForCausalLM": {**SHAPE, **WINDOW, **DEEP, "query_pre_attn_scalar": 24},
    "GemmaForCausalLM": {**SHAPE, "head_dim": 16},
    "GptOssForCausalLM": {**SHAPE, "head_dim": 8, "sliding_window": 8, "num_local_experts": 4},
    "MixtralForCausalLM": {**SHAPE, "num_local_experts": 4},
    "OPTForCausalLM": {
        "vocab_size": VOCABULARY, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 32,
    },
    "Olmo2ForCausalLM": UNGROUPED,
    "Olmo3ForCausalLM": {**UNGROUPED, **DEEP, "sliding_window": 8},
    "OlmoForCausalLM": UNGROUPED,
    "OlmoeForCausalLM": {**UNGROUPED, "num_experts": 4, "num_experts_per_tok": 2},
    "PhiForCausalLM": {**UNGROUPED, "partial_rotary_factor": 0.5},
    "Qwen3ForCausalLM": {**SHAPE, "head_dim": 16},
}  # fmt: skip


EXPERTS = ("GptOssForCausalLM", "MixtralForCausalLM", "OlmoeForCausalLM")
RUN = [name for name in ARCHITECTURES if STOCK or name not in EXPERTS]
"""Architectures that are run on this TransformerLens."""


def random_model(architecture: str = "LlamaForCausalLM", **settings: Any) -> Any:
    """A model of transformers with random weights, norms and biases among them."""
    made = getattr(transformers, architecture)
    torch.manual_seed(0)
    model = made(made.config_class(**{**SETTINGS.get(architecture, SHAPE), **settings})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tokens() -> torch.Tensor:
    return torch.randint(VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(1))


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    backend = train_bpe(["Mary and John went to the store. "] * 5, 280, 1)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", **special)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_model().save_pretrained(tmp_path / "llama")
    tokenizer().save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def assert_same(model: ResValTransformer, original: Any, atol: float = 2e-5) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model(tokens()), original(tokens()).logits, atol=atol, rtol=0)


# Objects of transformers


WINDOWED = ("Gemma2", "Gemma3", "Mistral", "Mixtral", "GptOss", "Olmo3", "Phi3", "Qwen2", "Qwen3")


@pytest.mark.parametrize("window", [8, 20])
@pytest.mark.parametrize("family", WINDOWED)
def test_windows_longer_than_what_is_checked_are_kept(family: str, window: int) -> None:
    if f"{family}ForCausalLM" not in RUN:
        pytest.skip("TransformerLens 4 runs no mixtures of experts")
    settings: dict[str, Any] = {"sliding_window": window}
    if family.startswith("Qwen"):
        settings |= {"use_sliding_window": True, "max_window_layers": 1}
    original = random_model(f"{family}ForCausalLM", **settings)
    model = ResValTransformer.from_hf(original)
    ids = torch.randint(VOCABULARY, (1, 60), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), original(ids).logits, atol=5e-5, rtol=0)


@pytest.mark.parametrize("architecture", ["MistralForCausalLM", "Qwen3ForCausalLM"])
def test_the_context_is_the_models_own(architecture: str) -> None:
    assert ResValTransformer.from_hf(random_model(architecture)).cfg.n_ctx == 64
    wide = random_model(architecture, max_position_embeddings=4096)
    assert ResValTransformer.from_hf(wide).cfg.n_ctx == 4096


@pytest.mark.parametrize("architecture", ["MistralForCausalLM", "LlamaForCausalLM"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaled_rotations_are_refused_by_their_name(architecture: str, dtype: torch.dtype) -> None:
    """Numbers of few tokens would not show them, least of all in half precision."""
    rotary = {"rope_type": "linear", "factor": 1.002, "rope_theta": 1e4}
    original = random_model(architecture, rope_parameters=rotary).to(dtype)
    with pytest.raises(ValueError, match=r"a rotation scaled by 'linear' cannot be converted for"):
        ResValTransformer.from_hf(original)


def test_llama_3_rotations_are_kept() -> None:
    rotary = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip
    original = random_model(rope_parameters=rotary)
    assert_same(ResValTransformer.from_hf(original), original)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_may_be_widened(half: torch.dtype) -> None:
    original = random_model().to(half)
    model = ResValTransformer.from_hf(original, dtype=torch.float32)
    assert model.cfg.dtype == torch.float32
    wanted = random_model()
    with torch.no_grad():
        for parameter in wanted.parameters():
            parameter.copy_(parameter.to(half))
    assert_same(model, wanted)


@pytest.mark.parametrize("architecture", RUN)
def test_every_architecture_keeps_its_logits(architecture: str) -> None:
    original = random_model(architecture)
    before = {name: x.clone() for name, x in original.state_dict().items()}
    model = ResValTransformer.from_hf(original)
    assert_same(model, original)
    assert all(torch.equal(x, before[name]) for name, x in original.state_dict().items())
    own = {x.data_ptr() for x in model.parameters()}
    assert not own & {x.data_ptr() for x in original.parameters()}


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("LlamaForCausalLM", {"attention_bias": True}),
        ("GPT2LMHeadModel", {"n_inner": 48}),
        ("GPT2LMHeadModel", {"scale_attn_by_inverse_layer_idx": True}),
        ("GPTNeoXForCausalLM", {"use_parallel_residual": False}),
        ("Phi3ForCausalLM", {"partial_rotary_factor": 0.5}),
    ],
)
def test_what_settings_say_is_kept(architecture: str, settings: dict[str, Any]) -> None:
    original = random_model(architecture, **settings)
    assert_same(ResValTransformer.from_hf(original), original)


def test_the_head_size_is_the_models_own() -> None:
    original = random_model(head_dim=16)  # TransformerLens takes d_model / n_heads
    model = ResValTransformer.from_hf(original)
    assert (model.cfg.d_head, model.cfg.attn_scale) == (16, 4.0)
    assert_same(model, original)


def test_streams_are_grafted_and_none_is_the_default() -> None:
    original = random_model()
    assert ResValTransformer.from_hf(original).cfg.streams == ()
    grafted = ResValTransformer.from_hf(original, streams="v(mix=head, carried=0)")
    assert [stream.of for stream in grafted.cfg.streams] == ["v"]
    assert_same(grafted, original)
    carrying = ResValTransformer.from_hf(original, streams="v")
    classic = ResValTransformer.from_hf(original)
    assert not torch.allclose(carrying(tokens()), classic(tokens()))


def test_dtype_and_mode_are_those_of_the_model_or_as_asked() -> None:
    original = random_model().double().train()
    model = ResValTransformer.from_hf(original)
    assert model.cfg.dtype == torch.float64
    assert not model.training
    assert original.training
    assert_same(model, original.eval(), atol=1e-5)
    half = ResValTransformer.from_hf(random_model(), dtype=torch.bfloat16)
    assert {x.dtype for x in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (torch.nn.Linear(2, 2), "expected a model of transformers; got Linear"),
        (
            transformers.BertModel(
                transformers.BertConfig(
                    vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                    intermediate_size=8,
                )
            ),
            "the architecture BertModel cannot be converted; these can: ApertusForCausalLM",
        ),
        (
            random_model("LlamaForCausalLM", mlp_bias=True),
            r"LlamaForCausalLM: converted by TransformerLens it computes something else: logits "
            r"differ from the original's by up to \S+ of their standard deviation",
        ),
        (
            random_model("LlamaForCausalLM", rope_parameters={
                "rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}),
            "a rotation scaled by 'linear' cannot be converted for LlamaForCausalLM",
        ),
        (
            random_model("LlamaForCausalLM").model,
            "the architecture LlamaModel cannot be converted",
        ),
        (
            random_model("OPTForCausalLM", do_layer_norm_before=False),
            "OPTForCausalLM: converted by TransformerLens it computes something else",
        ),
        (
            random_model("PhiForCausalLM", qk_layernorm=True),
            r"PhiForCausalLM: TransformerLens cannot convert it \(",
        ),
        (
            random_model("GPT2LMHeadModel", activation_function="quick_gelu"),
            r"cannot convert it \(it has no activation 'quick_gelu'; solu, ",
        ),
    ],
    ids=["no model", "an encoder", "biases that are left out", "another rotation", "no head",
         "norms behind layers", "a norm of heads", "another activation"],
)  # fmt: skip
def test_what_cannot_be_converted_exactly_is_refused(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResValTransformer.from_hf(model)


def test_a_prompt_starts_as_the_tokenizer_starts_it() -> None:
    plain = ResValTransformer.from_hf(random_model(), tokenizer(bos_token="<|endoftext|>"))
    assert plain.cfg.default_prepend_bos is False
    assert plain.to_tokens("Mary")[0].tolist() == plain.tokenizer("Mary")["input_ids"]
    leading = tokenizer(bos_token="<|endoftext|>")
    leading.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    llama = ResValTransformer.from_hf(random_model(), leading)
    assert llama.cfg.default_prepend_bos is True
    assert llama.to_tokens("Mary")[0].tolist() == [0, *plain.to_tokens("Mary")[0].tolist()]


def test_several_prompts_are_padded_though_the_tokenizer_pads_none() -> None:
    own = tokenizer()
    assert own.pad_token is None
    model = ResValTransformer.from_hf(random_model(), own)
    assert model.to_tokens(["Mary", "Mary and John"]).shape[0] == 2
    assert own.pad_token is None, "the tokenizer that was given has changed"


# Folders


def test_a_hugging_face_folder_is_loaded_by_its_name(folder: Path) -> None:
    loaded = load_model(str(folder), streams="v(mix=head, carried=0)").model
    assert_same(loaded, random_model())
    assert loaded.to_tokens("Mary").tolist() == [tokenizer()("Mary")["input_ids"]]
    loaded.save_pretrained(folder.parent / "saved")
    again = load_model(str(folder.parent / "saved")).model
    assert torch.equal(again(tokens()), loaded(tokens()))
    assert again.to_tokens("Mary and").tolist() == loaded.to_tokens("Mary and").tolist()


@pytest.mark.parametrize("name", ["llama-of-hers", "gemma-tuned", "bert", "meta-llama"])
def test_what_a_folder_is_called_decides_nothing(name: str, tmp_path: Path) -> None:
    original = random_model("Qwen2ForCausalLM")
    original.save_pretrained(tmp_path / name)
    assert_same(load_model(tmp_path / name).model, original)


def test_shards_are_read_together(tmp_path: Path) -> None:
    original = random_model()
    original.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert_same(load_model(tmp_path / "sharded").model, original)


def test_weights_may_be_processed(folder: Path) -> None:
    folded = load_model(folder, fold=True).model
    assert folded.cfg.normalization_type == "RMSPre"
    plain = load_model(folder).model
    with torch.no_grad():
        found, wanted = (model(tokens()).log_softmax(-1) for model in (folded, plain))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["Olmo2", "Olmo3", "Gemma2", "Gemma3", "Qwen3", "Phi"])
def test_folding_leaves_out_what_would_change_the_model(family: str, tmp_path: Path) -> None:
    """Norms behind layers are not folded; logits under a soft cap are not centred."""
    capped = {"final_logit_softcapping": 2.0} if family == "Gemma2" else {}
    random_model(f"{family}ForCausalLM", **capped).save_pretrained(tmp_path / "model")
    folded, plain = (load_model(tmp_path / "model", fold=fold).model for fold in (True, False))
    with torch.no_grad():
        found, wanted = (model(tokens()).log_softmax(-1) for model in (folded, plain))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    for step, message in (("fold_ln", "norms stand behind"), ("center_unembed", "a soft cap")):
        if not surviving_steps(plain.cfg)[step]:
            others = dict.fromkeys(("fold_ln", "center_unembed"), False)
            with pytest.raises(ValueError, match=f"{step}=True: {message}"):
                plain.process_weights_(**{**others, step: True})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("model.layers.1.mlp.up_proj.weight"), "mlp.up_proj.weight is missing"),
        (lambda x: x.update(extra=torch.zeros(2)), "extra is unexpected"),
        (
            lambda x: x.update({"model.norm.weight": torch.ones(3)}),
            "model.norm.weight is mismatched",
        ),
    ],
    ids=["missing", "unexpected", "another shape"],
)
def test_weights_that_are_not_the_models_are_named(
    change: Callable[[dict[str, torch.Tensor]], object], message: str, folder: Path
) -> None:
    """transformers draws what is missing at random, with a word that is easily overheard."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        load_model(folder)
    assert "\n" not in str(raised.value)


def test_the_given_tokenizer_decides_how_prompts_start(folder: Path) -> None:
    leading = tokenizer(bos_token="<|endoftext|>")
    leading.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    model = ResValTransformer.from_pretrained(folder, tokenizer=leading)
    assert model.to_tokens("Mary")[0, 0] == 0
    assert model.to_tokens(["Mary", "Mary and John"]).shape[0] == 2
    leading.save_pretrained(folder)
    plain = ResValTransformer.from_pretrained(folder, tokenizer=tokenizer())
    assert plain.to_tokens("Mary")[0].tolist() == tokenizer()("Mary")["input_ids"]


def test_a_tokenizer_that_cannot_be_read_is_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "tokenizer.json").write_text("{")
    assert load_model(folder).model.tokenizer is None
    assert "the model is loaded without a tokenizer: pass tokenizer=" in caplog.text


def test_copies_in_other_formats_are_not_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    count = sum(x.numel() for x in random_model().parameters())
    monkeypatch.setattr(files, "memory", lambda: 8 * count + 100_000)
    assert load_model(folder).model.cfg.n_layers == 3


def test_a_dtype_may_be_asked_for(folder: Path) -> None:
    model = load_model(folder, dtype=torch.bfloat16).model
    assert {x.dtype for x in model.parameters()} == {torch.bfloat16}
    assert load_model("stories-small-classic", dtype=torch.float64).model.cfg.dtype == torch.float64


def test_a_pickle_is_named_and_not_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"holds no weights as safetensors; others are pickles"):
        load_model(folder)


def test_an_encoder_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]})
    )
    with pytest.raises(ValueError, match="the architecture BertForMaskedLM cannot be converted"):
        load_model(tmp_path)


def test_code_in_a_folder_is_not_run(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "hers", "auto_map": {"AutoConfig": "hers.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "hers.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Config: pass\n")
    with pytest.raises(ValueError, match="transformers cannot read it") as raised:
        load_model(folder)
    assert "\n" not in str(raised.value)
    assert not (folder / "ran").exists()


def test_a_model_larger_than_memory_is_refused_by_its_headers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = sum(x.numel() for x in random_model().parameters())
    monkeypatch.setattr(files, "memory", lambda: 8 * count - 1)
    message = rf"converting {count:,} weights in float32 takes {8 * count:,} bytes; this machine"
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_damage_is_one_line(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=re.escape(str(path))) as raised:
        load_model(folder)
    assert "\n" not in str(raised.value)


def test_a_folder_of_nothing_says_what_could_be_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="holds no model that can be loaded") as raised:
        load_model(tmp_path)
    assert all(each.name in str(raised.value) for each in FORMATS)


def test_a_hub_model_of_transformers_is_fetched_and_converted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = create_autospec(huggingface_hub.snapshot_download, return_value=str(folder))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model = load_model("someone/a-llama").model
    assert download.call_args.args == ("someone/a-llama",)
    assert_same(model, random_model())


# GGUF


def as_gguf(model: Any, path: Path) -> None:
    """A GGUF file of a Llama, written tensor by tensor with the gguf package."""
    gguf = pytest.importorskip("gguf")
    config, vocabulary = model.config, tokenizer().backend_tokenizer
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    content = json.loads(vocabulary.to_str())["model"]
    names = sorted(content["vocab"], key=content["vocab"].get)
    names += [f"<unused{i}>" for i in range(VOCABULARY - len(names))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(names)
    writer.add_token_types([1] * len(names))
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair)
                             for pair in content["merges"]])  # fmt: skip
    writer.add_eos_token_id(0)
    names_there = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm", "model.layers.": "blk.",
    }  # fmt: skip
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        array = weight.numpy()
        for part, count in heads.items():
            if part in name:  # llama.cpp rotates neighbouring pairs
                array = array.reshape(count, 2, -1, array.shape[-1]).swapaxes(1, 2)
                array = array.reshape(weight.shape)
        for theirs, ours in names_there.items():
            name = name.replace(theirs, ours)
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("as_folder", [False, True], ids=["file", "folder"])
def test_a_gguf_file_keeps_its_logits(as_folder: bool, tmp_path: Path) -> None:
    original = random_model()
    as_gguf(original, tmp_path / "model.gguf")
    loaded = load_model(tmp_path if as_folder else tmp_path / "model.gguf").model
    assert_same(loaded, original)
    assert loaded.to_string(loaded.to_tokens("Mary and John")[0]) == "Mary and John"


def test_a_scaled_rotation_that_transformers_does_not_read_is_refused(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    written = gguf.GGUFWriter.add_tensor
    try:
        gguf.GGUFWriter.add_tensor = lambda self, name, x: (
            written(self, name, x),
            name == "output_norm.weight"
            and written(self, "rope_freqs.weight", np.ones(4, np.float32)),
        )
        as_gguf(random_model(), tmp_path / "model.gguf")
    finally:
        gguf.GGUFWriter.add_tensor = written
    with pytest.raises(ValueError, match=r"its rotation is scaled \(rope_freqs\.weight\)"):
        load_model(tmp_path / "model.gguf")


def test_what_is_no_gguf_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ValueError, match=r"model\.gguf: transformers cannot read it") as raised:
        load_model(tmp_path / "model.gguf")
    assert "\n" not in str(raised.value)


# nanoGPT


def nanogpt_checkpoint(path: Path, bias: bool) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return 0.2 * torch.randn(*shape, generator=chance)

    width = 32
    state = {"transformer.wte.weight": drawn(VOCABULARY, width),
             "transformer.wpe.weight": drawn(64, width)}  # fmt: skip
    shapes = {"ln_1": (width,), "attn.c_attn": (3 * width, width), "attn.c_proj": (width, width),
              "ln_2": (width,), "mlp.c_fc": (4 * width, width),
              "mlp.c_proj": (width, 4 * width)}  # fmt: skip
    for layer in range(2):
        for name, shape in shapes.items():
            state[f"transformer.h.{layer}.{name}.weight"] = drawn(*shape)
            if bias:
                state[f"transformer.h.{layer}.{name}.bias"] = drawn(shape[0])
    state["transformer.ln_f.weight"] = drawn(width)
    if bias:
        state["transformer.ln_f.bias"] = drawn(width)
    state["lm_head.weight"] = state["transformer.wte.weight"]
    arguments = {"n_layer": 2, "n_head": 4, "n_embd": width, "block_size": 64, "bias": bias,
                 "vocab_size": VOCABULARY, "dropout": 0.0}  # fmt: skip
    prefixed = {f"_orig_mod.{name}": x for name, x in state.items()}
    torch.save({"model": prefixed, "model_args": arguments, "iter_num": 10}, path)
    return state


def nanogpt_logits(state: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """nanoGPT's model.py, written out."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
        return F.layer_norm(x, weight.shape, weight, bias, 1e-5)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    x = state["transformer.wte.weight"][ids] + state["transformer.wpe.weight"][: ids.shape[1]]
    for layer in range(2):
        h = f"transformer.h.{layer}"
        split = linear(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn").split(32, dim=2)
        q, k, v = (each.unflatten(2, (4, 8)).transpose(1, 2) for each in split)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + linear(z, f"{h}.attn.c_proj")
        x = x + linear(F.gelu(linear(norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc")), f"{h}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ state["lm_head.weight"].T


@pytest.mark.parametrize("bias", [False, True])
def test_a_nanogpt_checkpoint_keeps_its_logits(bias: bool, tmp_path: Path) -> None:
    state = nanogpt_checkpoint(tmp_path / "ckpt.pt", bias)
    wanted = nanogpt_logits(state, tokens())
    for source in (tmp_path, tmp_path / "ckpt.pt"):
        model = load_model(source, streams="v(mix=head, carried=0)").model
        with torch.no_grad():
            torch.testing.assert_close(model(tokens()), wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("change", [{"n_layer": 1}, {"n_head": 0}, {"block_size": 32}])
def test_settings_that_are_not_the_weights_are_refused(
    change: dict[str, int], tmp_path: Path
) -> None:
    nanogpt_checkpoint(tmp_path / "ckpt.pt", bias=False)
    saved = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    saved["model_args"] |= change
    torch.save(saved, tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match=r"ckpt\.pt") as raised:
        load_model(tmp_path)
    assert "\n" not in str(raised.value)


class Payload:
    """Pickled, it runs a program."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_a_checkpoint_that_runs_code_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {}, "model_args": Payload(tmp_path / "ran")}, tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match=r"ckpt\.pt is not a checkpoint of nanoGPT") as raised:
        load_model(tmp_path)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "ran").exists()


# How it is done


def test_only_one_format_claims_a_path(folder: Path, tmp_path: Path) -> None:
    found = format_of(folder)
    assert isinstance(found, HuggingFaceFolder)
    assert format_of(tmp_path / "nowhere") is None
    assert sum(each.holds(folder) for each in FORMATS) == 1


def test_loading_takes_two_copies_of_the_weights(tmp_path: Path) -> None:
    """The most memory beyond what importing takes, in a process of its own."""
    wide = random_model(hidden_size=512, intermediate_size=2048, vocab_size=20_000)
    size = sum(x.numel() * x.element_size() for x in wide.parameters())
    wide.save_pretrained(tmp_path / "wide")
    random_model().save_pretrained(tmp_path / "small")
    script = (
        "import resource, sys, torch\n"
        "from resval_lens import ResValTransformer\n"
        "def most(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "ResValTransformer.from_pretrained(sys.argv[1]); before = most()\n"
        "ResValTransformer.from_pretrained(sys.argv[2]); print(most() - before)\n"
    )
    arguments = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        script,
        tmp_path / "small",
        tmp_path / "wide",
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2.25 * size


def test_a_check_sees_a_wrong_weight() -> None:
    model = ResValTransformer.from_hf(random_model())
    converted = Converted("hers", model.cfg, {}, None, lambda ids: model(ids))
    converted.check(model)
    other = ResValTransformer.from_hf(random_model())
    with torch.no_grad():
        other.blocks[2].mlp.W_out[0, 0] += 1.0
    with pytest.raises(ValueError, match="computes something else"):
        converted.check(other)
