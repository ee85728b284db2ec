"""How-tos for users of other tools: their code runs, and what they say of it is so."""

import re
from pathlib import Path

import pytest
import torch

from resval_lens.hooks import PromptPairs, patch
from tests.examples import DOCS, page, run_example
from tests.pretrained import SMOLLM2, needs_pretrained
from tests.test_lora import adapter


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def pretrained(test):
    for mark in needs_pretrained:
        test = mark(test)
    return test


@pretrained
def test_patching_a_chat(capsys: pytest.CaptureFixture[str]) -> None:
    """Rows padded on the left give what each prompt gives alone; the numbers are the page's."""
    name = '"HuggingFaceTB/SmolLM2-135M-Instruct"'
    example = run_example("chat", model=(name, repr(str(SMOLLM2))))
    pairs, model = example["pairs"], example["model"]
    lengths = pairs.mask.sum(1).tolist()
    assert len(set(lengths)) == 2
    assert pairs.mask[:, -1].all()
    for i, length in enumerate(lengths):
        row = slice(i, i + 1)
        clean, corrupted = (x[row, -length:] for x in (pairs.clean, pairs.corrupted))
        alone = PromptPairs(
            clean, corrupted, pairs.metric, pairs.labels[row], mask=torch.ones_like(clean)
        )
        wanted = patch(
            model, alone, "resid_pre", layers=[0, 10, 20, 25],
            positions=list(range(length - 12, length)), by=("layer", "position"),
        )  # fmt: skip
        found = example["found"].per_prompt[..., i]
        torch.testing.assert_close(found, wanted.per_prompt[..., 0], atol=2e-4, rtol=0)
    text = (DOCS / "how-to" / "chat.md").read_text().replace("-0.00", " 0.00")
    told = capsys.readouterr().out.replace("-0.00", " 0.00").splitlines()
    for token in ("' of'", "' France'", "'?'"):
        assert next(line for line in told if line.startswith(token)) in text
    short = lengths.index(min(lengths))
    with torch.no_grad():
        masked = model(pairs.clean, attention_mask=pairs.mask, padding_side="left")
        blind, right = (
            pairs.measure(logits[:, -1])[0, short] for logits in (model(pairs.clean), masked)
        )
    assert f"is {blind:.1f} instead of {right:.1f}" in page("how-to/chat")


def test_a_model_before_and_after_fine_tuning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, changes = adapter(tmp_path)
    example = run_example("fine_tuned")
    assert {name.split(".")[-1] for name in changes} == {"q_proj", "v_proj", "down_proj"}
    assert (example["moved"][:2] > 0).all()
    assert (example["moved"][2] == 0).all()  # no adapter there
    left = [float(x) for x in re.findall(r": ([\d.]+) of the change", capsys.readouterr().out)]
    assert len(left) == 3
    assert max(left) > 0.1
