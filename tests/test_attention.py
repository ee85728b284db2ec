"""Attention on one text: norms of own and link values, the command, and what it says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from resval_lens.analyses.attribution.sources import Attention, SourceNorms, attention
from resval_lens.analyses.cli.app import app
from resval_lens.analyses.studies.attention import AttentionOnText
from resval_lens.load import load_model
from tests.classifiers import tokens as continuous_tokens
from tests.drawn import heads_shown, patterns
from tests.helpers import stock_model, tiny_model, tiny_tokens
from tests.skipping import skipping_model

PROMPT = tiny_tokens(batch=1)
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "values": ("v", {}),
    "raw": ("v(carry=raw)", {}),
    "gqa": ("v", {"n_key_value_heads": 2}),
    "pair": ("v(source=first, mix=pair, own=0.5, carried=0.5)", {}),
    "bidirectional": ("v", {"attention_dir": "bidirectional"}),
}


def loop(model: Any, prompt: torch.Tensor) -> dict[str, np.ndarray]:
    """‖value W_O‖ of what arrives at ``hook_v_link`` and of the rest, a head and key at a time."""
    with torch.no_grad():
        _, cache = model.run_with_cache(prompt)
    cfg = model.cfg
    found = {"own": np.zeros((cfg.n_layers, cfg.n_heads, prompt.shape[1]))}
    found["link"] = np.zeros_like(found["own"])
    for layer, block in enumerate(model.blocks):
        at = f"blocks.{layer}.attn.hook_v"
        values = cache[at][0].double().numpy()
        link = cache[f"{at}_link"][0].double().numpy() if f"{at}_link" in cache else 0 * values
        W_O = block.attn.W_O.detach().double().numpy()
        for head in range(cfg.n_heads):
            reads = head * values.shape[1] // cfg.n_heads
            for key in range(prompt.shape[1]):
                for name, part in (("own", values - link), ("link", link)):
                    written = part[key, reads] @ W_O[head]
                    found[name][layer, head, key] = np.sqrt((written**2).sum())
    return found


@pytest.mark.parametrize("name", [*MODELS, "gated tables"])
def test_norms_are_those_of_a_loop(name):
    if name in MODELS:
        streams, changes = MODELS[name]
        model = tiny_model(streams, **changes)
    else:
        model = skipping_model("nanochat")
    found, wanted = attention(model, PROMPT), loop(model, PROMPT)
    assert found.norms is not None
    for part, norms in wanted.items():
        assert np.allclose(getattr(found.norms, part), norms, atol=1e-5), part
    assert wanted["link"].max() > 0.01
    with torch.no_grad():
        _, cache = model.run_with_cache(PROMPT)
    for layer, weights in enumerate(found.patterns):
        assert torch.allclose(weights, cache["pattern", layer][0], atol=1e-6)


def test_a_classifier_and_a_model_without_a_value_stream():
    from resval_lens.load import shipped_classifiers

    assert attention(tiny_model("qk"), PROMPT).norms is None
    classifier = load_model(next(iter(shipped_classifiers()))).model
    assert attention(classifier, continuous_tokens(1)).patterns.shape[0] == 2


@pytest.mark.usefixtures("unchecked_annotations")
def test_what_is_no_prompt_is_refused():
    with pytest.raises(ValueError, match=r"prompt must be one prompt, \[1, pos\]; got \[2, 7\]"):
        attention(tiny_model("v"), tiny_tokens(batch=2))


def test_rows_say_the_strongest_heads_and_their_largest_weight():
    weights = torch.stack([patterns(2, 6, seed) for seed in range(3)])
    norms = SourceNorms(torch.rand(3, 2, 6), torch.rand(3, 2, 6))
    tokens = list("abcdef")
    study = AttentionOnText.of("m", "v", tokens, Attention(weights, norms))
    assert len(study.heads) == 6
    strengths = [row.strength for row in study.heads]
    assert strengths == sorted(strengths, reverse=True)
    for row in study.heads:
        layer, head = int(row.head[1]), int(row.head[4])
        own = weights[layer, head].numpy()
        places = [(own[q, k], q, k) for q in range(6) for k in range(1, q)]
        assert (row.weight, row.query, row.key) == max(places)
        assert row.first == pytest.approx(own[1:, 0].mean())
        for part in ("own", "link"):
            sizes = getattr(norms, part)[layer, head].numpy()
            sums = [sum(own[q, k] * sizes[k] for k in range(6)) for q in range(6)]
            assert getattr(row, part) == pytest.approx(np.mean(sums), rel=1e-5)
    chosen = AttentionOnText.of("m", "", tokens, Attention(weights, None), layers=[2], heads=1)
    assert [(row.head, row.link) for row in chosen.heads] == [("a2.h1", None)]
    assert "link" not in chosen.to_dict()["heads"][0]
    one = AttentionOnText.of("m", "", ["a"], Attention(torch.ones(1, 1, 1, 1), None))
    assert one.heads[0].first == 1


# --- the command --------------------------------------------------------------------------------


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["attention", *arguments], catch_exceptions=False)


def test_a_text_becomes_a_page_of_all_heads(tmp_path: Path):
    text = "Once upon a time there was a cat."
    done = run("stories-small-values", "--text", text, "--out", str(tmp_path), "--quiet")
    assert done.exit_code == 0
    assert {"attention.html", "attention.json", "attention.csv"} == {
        path.name for path in tmp_path.iterdir()
    }
    data = json.loads((tmp_path / "attention.json").read_text())
    page = (tmp_path / "attention.html").read_text()
    (shown,) = heads_shown(page)
    assert shown["tokens"] == data["tokens"]
    assert "".join(data["tokens"]).replace(" ", "").endswith(text.replace(" ", ""))
    assert shown["names"] == [row["head"] for row in data["heads"]]
    assert "window.CircuitsVis ??=" not in page
    model = load_model("stories-small-values").model
    assert len(shown["names"]) == model.cfg.n_layers * model.cfg.n_heads
    ids = [model.tokenizer.bos_token_id, *model.tokenizer.encode(text, add_special_tokens=False)]
    found = attention(model, torch.tensor([ids[-len(data["tokens"]) :]]))
    for head, weights in zip(shown["names"], shown["weights"], strict=True):
        layer, number = int(head[1]), int(head[4])
        assert np.abs(weights - found.patterns[layer, number].numpy()).max() < 1e-4


def test_a_file_a_length_and_a_choice_of_heads(tmp_path: Path):
    story, page = tmp_path / "story.txt", tmp_path / "some.html"
    story.write_text("Once upon a time there was a little cat who was very sad.\n")
    done = run("--text", str(story), "--length", "6", "--layers", "1-2", "--heads", "0,-1",
               "--out", str(page))  # fmt: skip
    assert "the first 6 of 1" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some.html", "story.txt"]
    (shown,) = heads_shown(page.read_text())
    assert len(shown["tokens"]) == 6
    assert sorted(shown["names"]) == ["a1.h0", "a1.h3", "a2.h0", "a2.h3"]


def test_without_a_text_the_first_prompt_of_a_task(tmp_path: Path):
    done = run("--task", "ioi", "--json", "--quiet", "--out", str(tmp_path))
    assert json.loads(done.stdout)["tokens"][-1] == " to"
    done = run("values", "--json", "--quiet", "--out", str(tmp_path))
    assert json.loads(done.stdout)["tokens"][-1] == "q"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("--text", ""), "--text '' has no tokens"),
        (("--text", "missing.txt"), "missing.txt is missing"),
        (("--text", "a", "--length", "0"), "length must be from 1 to n_ctx="),
        (("--text", "a", "--task", "ioi"), "--task ioi is for prompts of a task: leave --text out"),
        (("--length", "5"), "--length 5 is for --text"),
        (("values", "--text", "a"), "this model has no tokenizer"),
        (("--text", "a", "--layers", "9"), "layers: 9 is not among"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_line(line, said, tmp_path):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as refused:
        run(*line, "--out", str(tmp_path / "x"), "--quiet")
    assert said in str(refused.value)


def test_a_stock_model_is_no_model_of_ours():
    with pytest.raises(Exception, match="ResValTransformer"):
        attention(stock_model(), PROMPT)  # type: ignore[arg-type]
