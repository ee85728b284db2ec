"""Text token by token, from Python and from the command line."""

from pathlib import Path

import pytest
import torch

from resval_lens import ResValTransformer
from resval_lens.analyses.cli.generate import generate_command
from resval_lens.host import HookedTransformer, HookedTransformerConfig
from resval_lens.io.tokenizers import fingerprint
from resval_lens.lens.generation import stream_tokens
from resval_lens.tasks import stories
from tests.helpers import SETTINGS, needs_stock, tiny_config
from tests.test_cli import run
from tests.test_harness import model

PROMPT = torch.tensor([[1, 2, 3], [4, 4, 0]])


@pytest.mark.parametrize("streams", ["", "v", "qkv"])
def test_the_likeliest_tokens_are_those_of_whole_forward_passes(streams: str) -> None:
    lm = ResValTransformer(tiny_config(streams=streams))
    tokens = PROMPT
    for new in stream_tokens(lm, PROMPT, 9, temperature=0):
        assert torch.equal(new, lm(tokens)[:, -1].argmax(-1))
        tokens = torch.cat((tokens, new[:, None]), 1)
    assert tokens.shape == (2, 12)


@needs_stock
def test_draws_are_those_of_transformer_lens() -> None:
    lm = HookedTransformer(HookedTransformerConfig(**SETTINGS))
    torch.manual_seed(3)
    drawn = torch.stack(list(stream_tokens(lm, PROMPT, 6, temperature=0.7, top_k=4)), 1)
    torch.manual_seed(3)
    expected = lm.generate(
        PROMPT, 6, temperature=0.7, top_k=4, stop_at_eos=False, verbose=False,
        use_past_kv_cache=False,
    )  # fmt: skip
    assert torch.equal(torch.cat((PROMPT, drawn), 1), expected)


def test_drawing_among_few_draws_only_those() -> None:
    lm = ResValTransformer(tiny_config())
    (best,) = stream_tokens(lm, PROMPT, 1, temperature=0)
    for setting in ({"top_k": 1}, {"top_p": 1e-6}):
        (drawn,) = stream_tokens(lm, PROMPT, 1, temperature=3, **setting)
        assert torch.equal(drawn, best)


@pytest.mark.parametrize(
    ("prompt", "count", "settings", "message"),
    [
        (PROMPT[:, :0], 1, {}, "at least one token"),
        (PROMPT[0], 1, {}, r"as \[row, pos\]; got \[3\]"),
        (PROMPT, 0, {}, "max_new_tokens must be 1 or more; got 0"),
        (PROMPT, 1, {"temperature": 1e-39}, "temperature must be 0 or .* got 1e-39"),
        (PROMPT, 10, {}, "3 tokens and 10 new ones do not fit n_ctx=12"),
        (PROMPT, 1, {"temperature": -1}, "temperature must be .* got -1"),
        (PROMPT, 1, {"temperature": float("nan")}, "temperature must be .* got nan"),
        (PROMPT, 1, {"top_k": 0}, "top_k must be 1 or more; got 0"),
        (PROMPT, 1, {"top_p": 1.5}, "top_p must be .* got 1.5"),
        (PROMPT, 1, {"top_p": 0.5, "top_k": 2}, "without top_k"),
    ],
)
def test_bad_settings_are_refused(
    unchecked_annotations: None, prompt, count, settings, message
) -> None:
    lm = ResValTransformer(tiny_config())
    with pytest.raises(ValueError, match=message):
        stream_tokens(lm, prompt, count, **settings)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    model().save_pretrained(folder)
    return folder


def test_a_saved_model_keeps_its_tokenizer_as_it_was(saved: Path, tmp_path: Path) -> None:
    loaded = ResValTransformer.from_pretrained(saved)
    loaded.to_tokens(["Tom", "Once upon a time"])  # sets padding
    loaded.save_pretrained(tmp_path / "again")
    again = stories.load_tokenizer().from_file(str(tmp_path / "again" / "tokenizer.json"))
    assert fingerprint(again) == fingerprint(stories.load_tokenizer())


def test_the_command_writes_what_python_writes(saved: Path) -> None:
    done = run(
        "generate",
        str(saved),
        "Tom and Amy",
        "--max-new-tokens",
        "9",
        "--seed",
        "5",
        "--top-k",
        "20",
    )
    assert done.returncode == 0, done.stderr
    lm = ResValTransformer.from_pretrained(saved)
    words = lm.tokenizer
    torch.manual_seed(5)
    prompt = torch.tensor([[0, *words.encode("Tom and Amy")]])
    drawn = [int(token) for token in stream_tokens(lm, prompt, 9, top_k=20)]
    drawn = drawn[: drawn.index(0)] if 0 in drawn else drawn
    assert done.stdout.rstrip("\n") == "Tom and Amy" + words.decode(drawn).rstrip(
        "\N{REPLACEMENT CHARACTER}"
    )


def test_the_command_runs_weights_with_other_streams(saved: Path, capsys) -> None:
    texts = set()
    for streams in (None, "", "q"):
        generate_command(saved, "Tom", temperature=0, streams=streams)
        texts.add(capsys.readouterr().out)
    assert len(texts) == 3
    assert all(text.startswith("Tom") for text in texts)


def test_several_texts_are_drawn_apart(saved: Path, capsys) -> None:
    generate_command(saved, texts=2, max_new_tokens=8)
    first, second = capsys.readouterr().out.rstrip("\n").split("\n\n", 1)
    assert first != second
    generate_command(saved, max_new_tokens=8, seed=1)
    assert capsys.readouterr().out.rstrip("\n") == second


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ("Tom", {"texts": 0}, "texts must be 1 or more; got 0"),
        ("Tom", {"max_new_tokens": 99}, "2 tokens and 99 new ones do not fit n_ctx=24"),
        ("Tom " * 40, {}, r"the prompt has \d+ tokens; n_ctx=24"),
        ("Tom", {"streams": "x"}, "'x'"),
    ],
)
def test_the_command_refuses_before_it_writes(
    saved: Path, capsys, prompt: str, settings: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate_command(saved, prompt, **settings)
    assert capsys.readouterr().out == ""
