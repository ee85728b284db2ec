"""nanochat's checkpoints of every version, against its formulas in plain PyTorch."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.utils import filter_repo_objects
from torch import Tensor

from resval_lens import ResValConfig, ResValTransformer
from resval_lens.io import files
from resval_lens.load import load_config, load_model
from tests.reference.nanochat import (
    VERSIONS,
    State,
    configuration,
    logits,
    norm,
    random_state,
    value_embedded,
)

NEWEST = "2026-03-14"
AMBIGUOUS = ("2026-01-16", "2026-03-03")


def settings_of(day: str) -> dict[str, float]:
    return {"softcap": VERSIONS[day].softcap} if day in AMBIGUOUS else {}


def save(folder: Path, state: State, config: dict[str, Any], step: int = 123) -> Path:
    """As nanochat saves: embeddings in bfloat16, compiled models with a prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {
        f"_orig_mod.{name}": x.bfloat16() if "wte" in name or "value_embeds" in name else x
        for name, x in state.items()
    }
    torch.save(kept, folder / f"model_{step:06d}.pt")
    meta = {"step": step, "model_config": config, "user_config": {"depth": config["n_layer"]}}
    (folder / f"meta_{step:06d}.json").write_text(json.dumps(meta))
    return folder


def drawn(day: str, **changes: Any) -> tuple[State, dict[str, Any]]:
    """A random model of that version; what is kept in bfloat16 is of bfloat16 already."""
    config = configuration(VERSIONS[day], **changes)
    state = random_state(VERSIONS[day], config)
    for name, x in state.items():
        if "wte" in name or "value_embeds" in name:
            state[name] = x.bfloat16().float()
    return state, config


def ids(config: dict[str, Any], length: int = 300) -> Tensor:
    chance = torch.Generator().manual_seed(1)
    return torch.randint(config["vocab_size"], (2, length), generator=chance)


def assert_same(model: ResValTransformer, wanted: Tensor, tokens: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), wanted, atol=2e-5, rtol=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "base_checkpoints" / "d5", *drawn(NEWEST))


# What it computes


@pytest.mark.parametrize("day", list(VERSIONS))
@pytest.mark.parametrize(
    "changes", [{}, {"n_kv_head": 4, "n_layer": 4}, {"n_kv_head": 1}], ids=["gqa", "mha", "mqa"]
)
def test_every_version_keeps_its_logits(day: str, changes: dict[str, int], tmp_path: Path) -> None:
    state, config = drawn(day, **changes)
    save(tmp_path, state, config)
    wanted = logits(state, config, VERSIONS[day], ids(config))
    model = load_model(tmp_path, settings=settings_of(day)).model
    assert_same(model, wanted, ids(config))
    assert_same(model, wanted[:, :20], ids(config)[:, :20])


@pytest.mark.parametrize("pattern", ["L", "S", "SL", "sssl"])
@pytest.mark.parametrize("context", [128, 320, 512])
def test_windows_are_the_versions_own(pattern: str, context: int, tmp_path: Path) -> None:
    for day in ("2026-01-11", "2026-03-09", NEWEST):
        state, config = drawn(day, window_pattern=pattern, sequence_len=context)
        save(tmp_path / day, state, config)
        tokens = ids(config, context)
        wanted = logits(state, config, VERSIONS[day], tokens)
        model = load_model(tmp_path / day).model
        assert_same(model, wanted, tokens)
        assert model.cfg.n_ctx == context


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_few_layers_keep_what_is_taken_out_again(layers: int, tmp_path: Path) -> None:
    """The layer in the middle is the last one in a model of one or two."""
    state, config = drawn(NEWEST, n_layer=layers)
    save(tmp_path, state, config)
    assert_same(
        load_model(tmp_path).model,
        logits(state, config, VERSIONS[NEWEST], ids(config)),
        ids(config),
    )


def test_every_part_of_it_matters(tmp_path: Path) -> None:
    """Else a test of logits would pass without it."""
    state, config = drawn(NEWEST)
    plain = logits(state, config, VERSIONS[NEWEST], ids(config))
    for name in state:
        other = {**state, name: state[name].roll(1, 0) if len(state[name]) > 1 else 2 * state[name]}
        moved = logits(other, config, VERSIONS[NEWEST], ids(config))
        assert float((moved - plain).abs().max()) > 0.01, name


def test_parts_have_their_places(folder: Path) -> None:
    state, config = drawn(NEWEST)
    model, tokens = load_model(folder).model, ids(config, 20)
    _, cache = model.run_with_cache(tokens)
    (stream,) = model.cfg.streams
    assert stream.layers == (0, 2, 4) == tuple(value_embedded(config))
    x = cache["blocks.2.ln1.hook_normalized"]
    gate = 3 * torch.sigmoid(x[..., :12] @ state["transformer.h.2.attn.ve_gate.weight"].T)
    table = state["value_embeds.2.weight"][tokens].unflatten(-1, (2, 8))
    own = (x @ state["transformer.h.2.attn.c_v.weight"].T).unflatten(-1, (2, 8))
    v = cache["blocks.2.attn.hook_v"]
    torch.testing.assert_close(v, own + gate[..., None] * table, atol=1e-5, rtol=0)
    smeared = cache["hook_resid_embed"]
    torch.testing.assert_close(
        smeared[:, 0], norm(state["transformer.wte.weight"][tokens[:, 0]]), atol=1e-5, rtol=0
    )
    own, first = state["resid_lambdas"][2], state["x0_lambdas"][2]
    torch.testing.assert_close(
        cache["blocks.2.hook_resid_pre"],
        own * cache["blocks.1.hook_resid_post"] + first * smeared, atol=1e-5, rtol=0,
    )  # fmt: skip
    torch.testing.assert_close(
        cache["hook_resid_final"],
        cache["blocks.4.hook_resid_post"]
        - state["backout_lambda"] * cache["blocks.2.hook_resid_post"], atol=1e-5, rtol=0,
    )  # fmt: skip


@pytest.mark.parametrize("day", ["2025-10-13", NEWEST])
def test_generation_with_a_cache_is_generation_without(day: str, tmp_path: Path) -> None:
    state, config = drawn(day)
    model = load_model(save(tmp_path, state, config)).model
    prompt = ids(config, 140)[:1]
    how = {"max_new_tokens": 12, "do_sample": False, "verbose": False, "stop_at_eos": False}
    cached, anew = (model.generate(prompt, use_past_kv_cache=use, **how) for use in (True, False))
    assert torch.equal(cached, anew)
    for length in range(140, 152):
        best = logits(state, config, VERSIONS[day], cached[:, :length])[0, -1].argmax()
        assert cached[0, length] == best


@pytest.mark.parametrize("day", list(VERSIONS))
def test_it_is_saved_and_loaded_again(day: str, tmp_path: Path) -> None:
    state, config = drawn(day)
    model = load_model(save(tmp_path / "d5", state, config), settings=settings_of(day)).model
    model.save_pretrained(tmp_path / "saved")
    again = load_model(tmp_path / "saved").model
    assert again.cfg.to_dict() == model.cfg.to_dict()
    assert_same(again, logits(state, config, VERSIONS[day], ids(config)), ids(config))


def test_half_precision_is_near(folder: Path) -> None:
    state, config = drawn(NEWEST)
    model = load_model(folder, dtype=torch.bfloat16).model
    assert {x.dtype for x in model.parameters()} == {torch.bfloat16}
    wanted = logits(state, config, VERSIONS[NEWEST], ids(config))
    with torch.no_grad():
        assert float((model(ids(config)).float() - wanted).std() / wanted.std()) < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_epsilon_is_that_of_torch(dtype: torch.dtype, folder: Path) -> None:
    """nanochat calls rms_norm without one; of a tiny vector it is all that is seen."""
    eps = load_model(folder, dtype=dtype).model.cfg.eps
    tiny = torch.full((4,), 1e-6 if dtype == torch.float64 else 1e-3, dtype=dtype)
    wanted = F.rms_norm(tiny, (4,)).double()
    found = tiny.double() / (tiny.double().pow(2).mean() + eps).sqrt()
    torch.testing.assert_close(found, wanted, rtol=2**-8, atol=0)


# What the files leave open


def test_a_softcap_is_asked_for_where_it_is_not_known(tmp_path: Path) -> None:
    state, config = drawn("2026-03-03")
    save(tmp_path, state, config)
    with pytest.raises(ValueError, match=r"model_000123\.pt does not say its soft cap") as raised:
        load_model(tmp_path)
    assert "15" in str(raised.value)
    assert "20" in str(raised.value)
    assert "\n" not in str(raised.value)
    for softcap in (15, 20):
        assert (
            load_config(tmp_path, settings={"softcap": softcap}).output_logits_soft_cap == softcap
        )
    with pytest.raises(ValueError, match=r"softcap must be 15 or 20, by its weights; got 30$"):
        load_model(tmp_path, settings={"softcap": 30})


def test_a_softcap_that_is_known_may_be_said(folder: Path) -> None:
    assert load_model(folder, settings={"softcap": 15}).model.cfg.output_logits_soft_cap == 15
    with pytest.raises(ValueError, match=r"softcap must be 15, by its weights; got 20$"):
        load_model(folder, settings={"softcap": 20})


def test_the_last_step_is_taken_or_the_one_that_is_asked_for(tmp_path: Path) -> None:
    early, config = drawn(NEWEST)
    late = {name: 0.5 * x for name, x in early.items()}
    save(tmp_path, early, config, step=900)
    save(tmp_path, late, config, step=1_234_567)
    (tmp_path / "optim_000900_rank0.pt").touch()
    (tmp_path / "model_backup.pt").touch()
    tokens = ids(config, 10)
    for state, source, settings in (
        (late, tmp_path, {}),
        (early, tmp_path, {"step": 900}),
        (early, tmp_path / "model_000900.pt", {}),
    ):
        model = load_model(source, settings=settings).model
        assert_same(model, logits(state, config, VERSIONS[NEWEST], tokens), tokens)
    with pytest.raises(ValueError, match=r"holds no step 1234568; it holds 900, 1234567$"):
        load_model(tmp_path, settings={"step": 1_234_568})


# Bad files


def damaged(change: Callable[[State, dict[str, Any]], object], folder: Path) -> Path:
    state, config = drawn("2026-03-09")
    change(state, config)
    return save(folder, state, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, c: s.pop("lm_head.weight"), "its weights lack lm_head.weight"),
        (lambda s, c: s.pop("transformer.wte.weight"), "its weights lack transformer.wte.weight"),
        (lambda s, c: s.pop("x0_lambdas"), "its weights lack x0_lambdas"),
        (lambda s, c: s.pop("transformer.h.2.attn.ve_gate.weight"),
         "its weights lack transformer.h.2.attn.ve_gate.weight"),
        (lambda s, c: s.pop("value_embeds.2.weight"),
         "its weights have transformer.h.2.attn.ve_gate.weight, which has no place here"),
        (lambda s, c: s.update({"value_embeds.7.weight": torch.ones(64, 16)}),
         "its weights have value_embeds.7.weight, which has no place here"),
        (lambda s, c: s.update({"backout_lambda": torch.ones(1)}),
         "its weights have backout_lambda, which has no place here"),
        (lambda s, c: s.update({"smear_gate.weight": torch.ones(1, 24)}),
         "its weights lack smear_lambda"),
        (lambda s, c: s.update({"bigram_embed.weight": torch.ones(2, 2)}),
         "its weights have bigram_embed.weight, which has no place here"),
        (lambda s, c: s.update({"resid_lambdas": torch.ones(4)}),
         "resid_lambdas must have shape [5]; got [4]"),
        (lambda s, c: c.update(n_layer=4), "resid_lambdas must have shape [4]; got [5]"),
        (lambda s, c: c.update(n_layer=10**9), "its weights lack transformer.h.5.attn.c_q.weight"),
        (lambda s, c: c.update(n_head=0), "n_head must be a number from 1 up; got 0"),
        (lambda s, c: c.update(n_head=True), "n_head must be a number from 1 up; got True"),
        (lambda s, c: c.pop("n_embd"), "n_embd must be a number from 1 up; got None"),
        (lambda s, c: c.update(n_head=32),
         "n_embd=32, n_head=32, n_kv_head=2 make no heads of an even width in equal groups"),
        (lambda s, c: c.update(n_kv_head=3), "make no heads"),
        (lambda s, c: c.update(n_kv_head=4), "attn.c_k.weight must have shape [32, 32]; got [16"),
        (lambda s, c: c.update(vocab_size=70),
         "transformer.wte.weight must have shape [70, 32]; got [64, 32]"),
        (lambda s, c: c.update(window_pattern="SXL"),
         "window_pattern must be letters of S and L; got 'SXL'"),
        (lambda s, c: c.update(mtp_n=2), "model_config has 'mtp_n', which nanochat does not know"),
        (lambda s, c: s.update({f"transformer.h.{layer}.attn.ve_gate.weight": torch.ones(2, 16)
                                for layer in (0, 2, 4)}),
         "no version of nanochat is known that has gates of 16 channels and no smear"),
        (lambda s, c: s["lm_head.weight"].__setitem__((3, 4), torch.nan),
         "lm_head.weight holds NaN or infinite numbers"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_checkpoint_is_told_in_one_line(
    change: Callable[[State, dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        load_model(damaged(change, tmp_path))
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)


class Payload:
    """Pickled, it runs a program."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("kind", ["truncated", "another", "a list", "a program", "numbers"])
def test_other_files_are_no_checkpoints(kind: str, folder: Path) -> None:
    file = folder / "model_000123.pt"
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:5000])
    else:
        others = {"another": {"model": {}}, "a list": [torch.ones(1)],
                  "a program": {"a": Payload(folder / "ran")},
                  "numbers": {"transformer.wte.weight": torch.arange(3)}}  # fmt: skip
        torch.save(others[kind], file)
    with pytest.raises(ValueError, match=r"model_000123\.pt") as raised:
        load_model(folder)
    wanted = {"truncated": "is not a checkpoint of nanochat", "another": "expected a state_dict",
              "a list": "expected a state_dict", "a program": "is not a checkpoint of nanochat",
              "numbers": "transformer.wte.weight must be a matrix; got [3]"}  # fmt: skip
    assert wanted[kind] in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "meta_000123.json is missing; expected what a checkpoint of nanochat says"),
        ("{", "meta_000123.json is not what a checkpoint of nanochat says of itself"),
        ("[]", "meta_000123.json: expected model_config with sequence_len"),
        ('{"model_config": 3}', "meta_000123.json: expected model_config with sequence_len"),
    ],
)
def test_a_checkpoint_needs_what_it_says_of_itself(
    content: str | None, message: str, folder: Path
) -> None:
    meta = folder / "meta_000123.json"
    meta.unlink()
    if content is not None:
        meta.write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        load_model(folder)
    assert "\n" not in str(raised.value)


def test_a_checkpoint_larger_than_memory_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "memory", lambda: 50_000)
    with pytest.raises(ValueError, match=r"model_000123\.pt takes [\d,]+ bytes; this machine has"):
        load_model(folder)


def test_it_is_fetched_from_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download = create_autospec(huggingface_hub.snapshot_download, return_value=str(folder))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_model("someone/nanochat-d5").model.cfg.n_layers == 5
    there = ["README.md", "meta_000123.json", "model_000123.pt", "optim_000123_rank0.pt",
             "token_bytes.pt", "tokenizer.pkl"]  # fmt: skip
    asked = {
        name: download.call_args.kwargs[name] for name in ("allow_patterns", "ignore_patterns")
    }
    found = list(filter_repo_objects(there, **asked))
    assert found == ["meta_000123.json", "model_000123.pt", "tokenizer.pkl"]


# Rotations


@pytest.mark.parametrize("adjacent", [False, True])
def test_rounded_rotations_are_the_same_but_for_rounding(adjacent: bool) -> None:
    settings: dict[str, Any] = {
        "n_layers": 1, "d_model": 16, "d_head": 8, "n_ctx": 64, "d_vocab": 9, "act_fn": "relu",
        "positional_embedding_type": "rotary", "rotary_adjacent_pairs": adjacent,
    }  # fmt: skip
    plain = ResValTransformer(ResValConfig(**settings)).blocks[0].attn
    rounded = ResValTransformer(ResValConfig(**settings, rotary_dtype=torch.bfloat16))
    for name in ("rotary_sin", "rotary_cos"):
        table = getattr(rounded.blocks[0].attn, name)
        torch.testing.assert_close(table, getattr(plain, name), atol=2**-8, rtol=0)
        assert torch.equal(table, table.bfloat16().float())
        assert not torch.equal(table, getattr(plain, name))


@pytest.mark.parametrize(
    "scaled",
    [{"use_NTK_by_parts_rope": True}, {"use_yarn_rope": True}, {"rotary_scaling_factor": 8}],
)
def test_rounded_rotations_that_are_scaled_are_refused(scaled: dict[str, Any]) -> None:
    message = r"rotary_dtype=torch\.bfloat16 needs positional_embedding_type='rotary', unscaled"
    with pytest.raises(ValueError, match=message):
        ResValConfig(
            n_layers=1, d_model=16, d_head=8, n_ctx=64, d_vocab=9, act_fn="relu",
            positional_embedding_type="rotary", rotary_dtype=torch.bfloat16, **scaled,
        )  # fmt: skip
