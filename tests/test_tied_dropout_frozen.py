"""What language models need beside streams: tied embeddings, dropout, parameters left alone."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from resval_lens import ResValConfig, ResValTransformer
from resval_lens.models.language_models import language_model_config, preset
from tests.helpers import gradients, randomise, tiny_config, tiny_model, tiny_tokens

# Tied embeddings


def tied_and_stock(streams: str = "") -> tuple[ResValTransformer, ResValTransformer]:
    """A tied model, and an untied one with the same weights."""
    tied = tiny_model(streams, tied_embedding=True)
    stock = tiny_model(streams)
    stock.load_state_dict(
        {**tied.state_dict(), "unembed.W_U": tied.embed.W_E.T, "unembed.b_U": torch.zeros(13)}
    )
    return tied, stock


def test_a_tied_model_reads_out_with_its_embedding() -> None:
    tied, untied = tied_and_stock("v")
    torch.testing.assert_close(tied(tiny_tokens()), untied(tiny_tokens()))
    assert torch.equal(tied.W_U, tied.W_E.T)
    assert "unembed.W_U" not in dict(tied.named_parameters())
    assert "unembed.W_U" not in tied.state_dict()


def test_gradients_of_both_uses_add_up() -> None:
    tied, untied = tied_and_stock()
    for model in (tied, untied):
        model(tiny_tokens(), return_type="loss").backward()
    ours, theirs = gradients(tied), gradients(untied)
    both = theirs["embed.W_E"] + theirs["unembed.W_U"].T
    torch.testing.assert_close(ours["embed.W_E"], both)


@torch.no_grad()
def test_a_copy_of_a_tied_model_is_tied_to_its_own_embedding() -> None:
    model = tiny_model(tied_embedding=True)
    copied = copy.deepcopy(model)
    before = model(tiny_tokens())
    copied.embed.W_E.mul_(2)
    assert torch.equal(model(tiny_tokens()), before)
    assert torch.equal(copied.W_U, copied.W_E.T)


def test_a_tied_model_comes_back_from_its_folder(tmp_path: Path) -> None:
    model = tiny_model("v", tied_embedding=True)
    model.save_pretrained(tmp_path / "model")
    loaded = ResValTransformer.from_pretrained(tmp_path / "model")
    assert loaded.cfg.tied_embedding
    assert torch.equal(loaded(tiny_tokens()), model(tiny_tokens()))


@pytest.mark.parametrize("streams", ["", "v"])
def test_weight_processing_unties_and_keeps_the_answer(streams: str) -> None:
    model = tiny_model(streams, tied_embedding=True)
    before = model(tiny_tokens()).log_softmax(-1)
    model.process_weights_()
    assert not model.cfg.tied_embedding
    torch.testing.assert_close(model(tiny_tokens()).log_softmax(-1), before, atol=1e-5, rtol=1e-4)
    _, cache = model.run_with_cache(tiny_tokens())
    assert cache["unembed.hook_out"].shape == (2, 7, 13)


def test_streams_come_and_go_on_a_tied_model() -> None:
    model = tiny_model("v", tied_embedding=True)
    classic = model.with_streams("")
    assert classic.cfg.tied_embedding
    assert torch.equal(classic.with_streams("v")(tiny_tokens()), model(tiny_tokens()))
    again = ResValTransformer.from_hooked(model, "v")
    assert torch.equal(again(tiny_tokens()), model(tiny_tokens()))


def test_another_output_vocabulary_cannot_be_tied() -> None:
    with pytest.raises(ValueError, match=r"tied_embedding=True: d_vocab_out=7 must equal"):
        tiny_config(tied_embedding=True, d_vocab_out=7)


# Dropout


def test_without_training_there_is_no_dropout() -> None:
    model = tiny_model("v", dropout=0.5).eval()
    assert torch.equal(model(tiny_tokens()), tiny_model("v")(tiny_tokens()))


def test_dropout_zeroes_a_share_and_scales_the_rest() -> None:
    """Each of its four places by itself: the others' share of zeros would hide it."""
    model = tiny_model(dropout=0.4, n_ctx=200, d_vocab=13)
    tokens = tiny_tokens(8, 200)
    dropped: dict[str, float] = {}
    for use_fused in (True, False):
        model.cfg.use_fused = use_fused
        _, cache = model.run_with_cache(tokens)
        model.eval()
        _, clean = model.run_with_cache(tokens)
        model.train()
        embedded = clean["hook_embed"] + clean["hook_pos_embed"]
        assert_dropped(cache["blocks.0.hook_resid_pre"], embedded, 0.4)
        for name in ("attn_out", "mlp_out"):
            dropped[name] = float((cache[f"blocks.0.hook_{name}"] == 0).double().mean())
    assert dropped == pytest.approx({"attn_out": 0.4, "mlp_out": 0.4}, abs=0.02)


def assert_dropped(found: Tensor, clean: Tensor, share: float) -> None:
    assert float((found == 0).double().mean()) == pytest.approx(share, abs=0.02)
    kept = found != 0
    torch.testing.assert_close(found[kept], clean[kept] / (1 - share))


@pytest.mark.parametrize("explicit", [True, False])
def test_dropout_of_the_pattern_mixes_fewer_values(explicit: bool) -> None:
    """With values all one, z is the kept weights' sum over 1 − p: 1 on average, not always."""
    model = tiny_model(dropout=0.5, n_ctx=64).train()

    def ones(v: Tensor, hook: HookPoint) -> Tensor:
        return torch.ones_like(v)

    kept: list[Tensor] = []

    def keep(z: Tensor, hook: HookPoint) -> None:
        kept.append(z.detach())

    hooks = [("blocks.1.attn.hook_v", ones), ("blocks.1.attn.hook_z", keep)]
    if explicit:
        hooks.append(("blocks.1.attn.hook_pattern", lambda pattern, hook: None))
    torch.manual_seed(0)
    for _ in range(20):
        model.run_with_hooks(tiny_tokens(16, 64), fwd_hooks=hooks)
    z = torch.stack(kept)
    assert float(z.mean()) == pytest.approx(1, abs=0.02)
    assert float(z.std()) > 0.1
    model.eval()
    kept.clear()
    model.run_with_hooks(tiny_tokens(16, 64), fwd_hooks=hooks)
    torch.testing.assert_close(kept[0], torch.ones_like(kept[0]))


def test_a_model_is_loaded_without_dropout(tmp_path: Path) -> None:
    model = tiny_model(dropout=0.5)
    model.save_pretrained(tmp_path / "model")
    loaded = ResValTransformer.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded(tiny_tokens()), model.eval()(tiny_tokens()))


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_an_impossible_dropout_is_named(share: float) -> None:
    with pytest.raises(ValueError, match=rf"dropout must be a share .* got {share}"):
        tiny_config(dropout=share)


# Frozen parameters


def test_frozen_parameters_get_no_gradient() -> None:
    model = tiny_model("v", frozen=("*.b_*", "unembed.b_U"))
    model(tiny_tokens(), return_type="loss").backward()
    trained = set(gradients(model))
    names = {name for name, _ in model.named_parameters()}
    assert names - trained == {name for name in names if ".b_" in name}


def test_frozen_must_be_a_tuple() -> None:
    with pytest.raises(ValueError, match=r"frozen must be a tuple .* '\*\.b_\*'"):
        tiny_config(frozen="*.b_*")


def test_all_of_it_comes_back_from_json() -> None:
    config = tiny_config(streams="v", dropout=0.1, tied_embedding=True, frozen=("*.b_*",))
    again = ResValConfig.from_json(config.to_json())
    assert (again.dropout, again.tied_embedding, again.frozen) == (0.1, True, ("*.b_*",))


# Presets


def test_the_toy_model_is_the_papers() -> None:
    """19 million parameters with the embedding, of which 12.9 million are the embedding's."""
    model = ResValTransformer(language_model_config("tinystories-8m", "v", carry="raw"))
    count = sum(p.numel() for p in model.parameters())
    d, mlp, layers, vocabulary, n_ctx = 256, 1024, 8, 50_257, 256
    block = 4 * d * d + 4 * d + 2 * d * mlp + mlp + d + 4 * d
    assert count == vocabulary * d + n_ctx * d + layers * block + 2 * d == 19_249_920
    assert model.cfg.streams[0].carry == "raw"
    assert float(model.W_E.detach().std()) == pytest.approx(0.02, rel=0.01)
    assert float(model.blocks[0].attn.attn_scale) == 1
    paper = language_model_config("tinystories-8m", "v", "paper")
    assert paper.use_attn_scale


def test_gelu_is_exact_and_losses_are_torchs() -> None:
    config = language_model_config("tinystories-8m", n_layers=1, d_vocab=50, dropout=0.0)
    model = randomise(ResValTransformer(config))
    tokens = torch.randint(50, (2, 9))
    _, cache = model.run_with_cache(tokens)
    torch.testing.assert_close(cache["post", 0], F.gelu(cache["pre", 0], approximate="none"))


@pytest.mark.parametrize(
    ("name", "spec", "said"),
    [("gpt-5", "reference", "no preset 'gpt-5'; there are llama-1b, stories-nanochat, "),
     ("llama-1b", "paper", "has the specs reference; got 'paper'")],
)  # fmt: skip
def test_an_unknown_preset_is_named(name: str, spec: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        preset(name, spec)
