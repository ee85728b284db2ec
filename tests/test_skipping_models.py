"""Models in which values and states skip layers: resumed, generated from, saved, processed, cut."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

from resval_lens.lens.generation import stream_tokens
from resval_lens.models.classifier import ICLClassifier, classifier_config
from resval_lens.transformer import ResValTransformer
from tests.helpers import gradients, tiny_model, tiny_tokens
from tests.skipping import MODELS, skipping_model
from tests.test_leading import word_tokenizer

TOKENS = tiny_tokens(2, 9)
each_model = pytest.mark.parametrize("name", MODELS)


@each_model
@torch.no_grad()
def test_a_run_stops_at_what_a_layer_reads_and_goes_on_from_there(name: str) -> None:
    model = skipping_model(name).eval()
    logits, cache = model.run_with_cache(TOKENS)
    for layer in (0, 2, 3, -1):
        read = cache["resid_pre", layer]
        torch.testing.assert_close(model(TOKENS, stop_at_layer=layer), read)
        rest = {"carried": model.carried_before(layer, cache), "tokens": TOKENS}
        resumed = model(read, start_at_layer=layer, **rest)
        torch.testing.assert_close(resumed, logits)
        final = model(read, start_at_layer=layer, stop_at_layer=4, **rest)
        torch.testing.assert_close(final, cache[model.cfg.final_point])
        loss = model(read, start_at_layer=layer, return_type="loss", **rest)
        torch.testing.assert_close(loss, model(TOKENS, return_type="loss"))
    torch.testing.assert_close(model(cache[model.cfg.final_point], start_at_layer=4), logits)
    part = model(cache["resid_pre", 1], start_at_layer=1, stop_at_layer=3, tokens=TOKENS,
                 carried=model.carried_before(1, cache))  # fmt: skip
    torch.testing.assert_close(part, cache["resid_pre", 3])


def test_what_a_resumed_run_lacks_is_named(unchecked_annotations: None) -> None:
    model = skipping_model("nanochat")
    _, cache = model.run_with_cache(TOKENS)
    read, carried = cache["resid_pre", 2], model.carried_before(2, cache)
    for given, says in (
        ({"tokens": TOKENS}, r"start_at_layer=2: later layers read the states \(0, 1, 2\)"),
        ({"tokens": TOKENS, "carried": model.carried_before(3, cache)}, r"states \(0, 1, 2\)"),
        ({"carried": carried}, "layer 2 looks up its v by the tokens: pass tokens="),
        ({"tokens": TOKENS[:, :5], "carried": carried}, r"tokens must be \[2, 9\]; got \[2, 5\]"),
    ):
        says = says.replace(r"\[2, 9\];", r"\[2, 9\], as the residual stream is;")
        with pytest.raises(ValueError, match=says):
            model(read, start_at_layer=2, **given)
    with pytest.raises(RuntimeError, match=r"block 1 .* run it with `carried=`"):
        model.blocks[1](read)


def continued(model: ResValTransformer, tokens: Tensor, n: int) -> Tensor:
    """By the whole run again for each token."""
    for _ in range(n):
        tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)], 1)
    return tokens


@each_model
@torch.no_grad()
def test_tokens_are_generated_as_by_whole_runs(name: str) -> None:
    model = skipping_model(name).eval()
    start = TOKENS[:, :4]
    wanted = continued(model, start, 7)
    settings: dict[str, Any] = {"max_new_tokens": 7, "do_sample": False, "verbose": False}
    for cached in (True, False):
        found = model.generate(start, use_past_kv_cache=cached, stop_at_eos=False, **settings)
        assert found.equal(wanted)
    drawn = list(stream_tokens(model, start, 7, temperature=0))
    assert torch.stack(drawn, 1).equal(wanted[:, 4:])
    end = int(wanted[0, 5])
    found = model.generate(start, eos_token_id=end, **settings)
    for row, whole in zip(found, wanted, strict=True):
        stops = (whole[4:] == end).nonzero()
        length = 4 + int(stops[0]) + 1 if len(stops) else len(whole)
        assert row[:length].equal(whole[:length][: len(row)])
        assert (row[length:] == end).all()


@each_model
@torch.no_grad()
def test_texts_of_unequal_length_are_continued_as_each_alone(name: str) -> None:
    tokenizer = word_tokenizer(set())
    size = len(tokenizer)
    model = skipping_model(name, d_vocab=size, d_vocab_out=size, n_ctx=16).eval()
    model.set_tokenizer(tokenizer)
    words = ["Aaron", "Adam", "After", "Alan", "Alex"]
    assert len(tokenizer(" ".join(words), add_special_tokens=False).input_ids) == len(words)
    texts = [" ".join(words[:1]), " ".join(words), " ".join(words[2:4])]
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "verbose": False}
    for cached in (True, False):
        settings |= {"stop_at_eos": False, "use_past_kv_cache": cached, "return_type": "tokens"}
        together = model.generate(texts, **settings)
        for text, row in zip(texts, together, strict=True):
            wanted = continued(model, model.to_tokens(text), 5)[0]
            assert row[-len(wanted) :].equal(wanted)


@each_model
@torch.no_grad()
def test_padding_before_a_prompt_is_nobodys_neighbour(name: str) -> None:
    """In one call, and in two that share keys and values."""
    model = skipping_model(name).eval()
    alone = model(TOKENS[:1, 2:])
    mask = torch.ones_like(TOKENS)
    mask[0, :2] = 0
    padded = TOKENS.clone()
    padded[0, :2] = 7
    torch.testing.assert_close(model(padded, attention_mask=mask)[:1, 2:], alone)
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", 2)
    parts = [
        model(padded[:, part], past_kv_cache=cache, attention_mask=mask[:, part])
        for part in (slice(0, 5), slice(5, 6), slice(6, 9))
    ]
    torch.testing.assert_close(torch.cat(parts, 1)[:1, 2:], alone)
    torch.testing.assert_close(torch.cat(parts, 1)[1:], model(TOKENS[1:]))


@each_model
@torch.no_grad()
def test_a_saved_model_is_the_same_and_its_layers_may_wait_on_disk(
    name: str, tmp_path: Path
) -> None:
    model = skipping_model(name).eval()
    logits, cache = model.run_with_cache(TOKENS)
    model.save_pretrained(tmp_path / "model")
    again = ResValTransformer.from_pretrained(tmp_path / "model")
    assert again.cfg.residual_mixing == model.cfg.residual_mixing
    assert again.cfg.streams == model.cfg.streams
    torch.testing.assert_close(again(TOKENS), logits)
    waiting = ResValTransformer.from_pretrained(
        tmp_path / "model", device="cpu", device_map={1: "disk", 3: "disk"}
    )
    assert waiting.waits
    torch.testing.assert_close(waiting(TOKENS), logits)
    torch.testing.assert_close(waiting.written_weights(), model.written_weights())
    torch.testing.assert_close(waiting(TOKENS, stop_at_layer=3), cache["resid_pre", 3])


@each_model
def test_recomputed_blocks_give_the_same_gradients(name: str) -> None:
    model = skipping_model(name)
    found = []
    for recomputed in (False, True):
        model.zero_grad()
        model(TOKENS, return_type="loss", checkpoint_blocks=recomputed).backward()
        found.append(gradients(model))
    assert found[0].keys() == dict(model.named_parameters()).keys()
    for parameter, gradient in found[0].items():
        torch.testing.assert_close(found[1][parameter], gradient)
        unused = ("b_K", "W_V", "b_V") if name == "tables alone" else ("b_K",)
        assert gradient.any() or parameter.endswith(unused), parameter


@each_model
@torch.no_grad()
def test_other_ways_through_a_model_compute_the_same(name: str) -> None:
    model = skipping_model(name).eval()
    logits = model(TOKENS)
    for switch in ("use_split_qkv_input", "ungroup_grouped_query_attention"):
        if name != "nanochat" and switch.startswith("ungroup"):
            continue
        setting = getattr(model, f"set_{switch}")
        setting(True)
        torch.testing.assert_close(model(TOKENS), logits)
        setting(False)
    model.cfg.use_fused = False
    torch.testing.assert_close(model(TOKENS), logits)
    rounded = copy.deepcopy(model).to(torch.bfloat16, print_details=False)
    assert rounded(TOKENS).dtype == torch.bfloat16
    assert (rounded(TOKENS).double() - logits).std() < 0.1 * logits.std()


STEPS = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases",
         "refactor_factored_attn_matrices")  # fmt: skip
PROCESSED: dict[str, tuple[Any, dict[str, Any], set[str]]] = {
    **{name: (*each, set()) for name, each in MODELS.items()},
    "biased gate": ("v(source=tokens)", {"gated_mlp": True, "gated_mlp_biases": True}, set()),
    "mixed states": ("v(source=tokens, mix=matrix)", {"residual_mixing": "all"}, set()),
    "final RMS norm": ("v", {"final_rms": True}, {"fold_ln"}),
    "RMS norms": ("v", {"final_rms": True, "normalization_type": "RMS"}, set()),
    "soft cap": ("", {"residual_mixing": "all", "output_logits_soft_cap": 3.0}, {"center_unembed"}),
    "gated MLP": ("", {"gated_mlp": True}, {"fold_ln"}),
    "gate without a bias": ("v(source=tokens, mix=added_gate)", {}, {"fold_ln"}),
    "gate of keys": ("k(mix=added_gate, bias=True, channels=5)", {}, set()),
    "shares": ("v(source=tokens, mix=gate)", {}, {"fold_value_biases"}),
}
PROCESSED["previous values"][2].add("fold_value_biases")
PROCESSED["smeared"][2].add("center_writing_weights")


@pytest.mark.parametrize("name", PROCESSED)
@torch.no_grad()
def test_processing_changes_no_probability_or_is_refused(name: str) -> None:
    streams, settings, refused = PROCESSED[name]
    refused = refused | ({"refactor_factored_attn_matrices"} if streams else set())
    for step in STEPS:
        model = tiny_model(streams, **{**settings, "dtype": torch.float64})
        before = model(TOKENS).log_softmax(-1)
        if step in refused:
            with pytest.raises(ValueError, match=f"{step}=True: "):
                model.process_weights_(**{each: each == step for each in STEPS})
        elif step != STEPS[-1] or settings.get("positional_embedding_type") != "rotary":
            model.process_weights_(**{each: each == step for each in STEPS})
            after = model(TOKENS).log_softmax(-1)
            torch.testing.assert_close(after, before, rtol=1e-4, atol=2e-5)
    model = tiny_model(streams, **{**settings, "dtype": torch.float64})
    model.process_weights_(**{step: step not in refused for step in STEPS[:-1]})
    after = model(TOKENS).log_softmax(-1)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_streams_come_and_go() -> None:
    classic = tiny_model("", dtype=torch.float64)
    for tables in ("v(source=tokens)", "qv(source=tokens, mix=added_gate, act=relu)"):
        grafted = classic.with_streams(tables.replace("qv", "v"))
        assert grafted(TOKENS).equal(classic(TOKENS))
        grafted.blocks[1].attn.mix("v").table += 0.5  # type: ignore[union-attr]
        assert not grafted(TOKENS).allclose(classic(TOKENS))
        assert grafted.with_streams("")(TOKENS).equal(classic(TOKENS))
        fewer = grafted.with_streams(f"{tables[:-1]}, layers=(1,))".replace("qv", "v"))
        assert fewer(TOKENS).equal(grafted(TOKENS))
    mixed = skipping_model("nanochat")
    assert mixed.with_streams("").cfg.residual_mixing == mixed.cfg.residual_mixing
    for make in (classic.with_streams, classic.cfg.with_streams):
        with pytest.raises(ValueError, match=r"channels=99 of an input of d_model=16"):
            make("v(mix=added_gate, channels=99)")


def test_who_reads_vectors_has_no_tokens_to_look_up() -> None:
    says = "a classifier reads vectors: it has no tokens to look up"
    with pytest.raises(ValueError, match=says):
        ICLClassifier(classifier_config(streams="v(source=tokens)"))
    with pytest.raises(ValueError, match=says):
        ICLClassifier(classifier_config()).with_streams("v(source=tokens)")


@torch.no_grad()
def test_sums_without_weights_are_refused() -> None:
    mixed, smeared = skipping_model("nanochat"), skipping_model("smeared")
    _, cache = mixed.run_with_cache(TOKENS)
    _, own = smeared.run_with_cache(TOKENS)
    for what in ("accumulated_resid", "decompose_resid", "get_full_resid_decomposition",
                 "stack_head_results", "stack_neuron_results"):  # fmt: skip
        with pytest.raises(ValueError, match="residual_mixing: what is read is a weighted sum"):
            getattr(cache, what)(layer=-1)
        if what.endswith("decomposition") or what.startswith("decompose"):
            with pytest.raises(ValueError, match="embeddings are normalised or smeared"):
                getattr(own, what)(layer=-1)
    with pytest.raises(ValueError, match="residual_mixing"):
        mixed.accumulated_bias(2)
    biases = smeared.b_O[0] + smeared.b_out[0]
    torch.testing.assert_close(smeared.accumulated_bias(1), biases.float())
    last = own.accumulated_resid(layer=-1, incl_mid=False)[-1]
    torch.testing.assert_close(last, own["resid_post", -1])
