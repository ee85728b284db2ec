"""How-tos for users of other tools: their code runs, and what they say of it is so."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from resval_lens.hooks import PromptPairs, cut_links, logit_difference, patch
from resval_lens.load import load_model
from tests.examples import DOCS, EXAMPLES, page, run_example
from tests.pretrained import SMOLLM2, needs_pretrained
from tests.test_lora import adapter
from tests.test_processes import torchrun


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


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


def test_edges_scored_by_two_processes(capsys: pytest.CaptureFixture[str]) -> None:
    """The file as the page starts it finds, and prints once, what one process does."""
    run_example("several_gpus")
    alone, divided = capsys.readouterr().out, torchrun(EXAMPLES / "several_gpus.py")
    (names, wanted), (found_names, found) = (
        zip(*(line.rsplit(" ", 1) for line in out.splitlines()), strict=True)
        for out in (alone, divided)
    )
    assert len(names) == 5
    assert found_names == names
    assert [float(x) for x in found] == pytest.approx([float(x) for x in wanted], abs=2e-3)


@needs("nnsight")
@pytest.mark.filterwarnings("ignore")
def test_links_in_traces_of_nnsight(capsys: pytest.CaptureFixture[str]) -> None:
    """Cut, patch and gradient are those of this package's own hooks; the numbers are the page's."""
    example = run_example("nnsight_traces")
    model = load_model("stories-small-values").model
    clean, corrupted = example["clean"], example["corrupted"]
    labels = torch.tensor([[example["mary"], example["tom"]]])
    pairs = PromptPairs(
        clean, corrupted, logit_difference, labels, mask=torch.ones_like(clean)
    )  # fmt: skip

    def difference(logits: torch.Tensor) -> torch.Tensor:
        return logits[example["mary"]] - logits[example["tom"]]

    with torch.no_grad():
        whole = model(clean)[0, -1]
        base = difference(model(corrupted)[0, -1])
        with cut_links(model, ["v1.h2"]):
            cut = model(clean)[0, -1]
    found = patch(model, pairs, "v_link", layers=[1], by=())
    close = {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(example["whole"].detach(), whole, **close)
    torch.testing.assert_close(example["cut"].detach(), cut, **close)
    assert difference(example["patched"]).item() == pytest.approx(found.values.item(), abs=1e-4)
    seen = {}
    hook = ("blocks.1.attn.hook_v_link", lambda x, hook: seen.update(link=x.clone()))
    with model.hooks(bwd_hooks=[hook]):
        difference(model(clean)[0, -1]).backward()
    torch.testing.assert_close(example["gradient"], seen["link"], **close)
    said = page("how-to/nnsight")
    numbers = (difference(whole), base, difference(cut), difference(example["patched"]))
    one, two, three, four = (f"{x.item():.1f}".replace("-", "−") for x in numbers)
    assert f"is {one} on the clean prompt and {two} on the corrupted one" in said
    assert f"With `v1.h2` cut it is {three}:" in said
    assert f"in the corrupted run it is {four}," in said


@needs("sae_lens")
@pytest.mark.filterwarnings("ignore")
def test_an_autoencoder_on_a_link() -> None:
    """In 60 of its 400 steps; what is spliced in is what the hook point gives on."""
    example = run_example(
        "sae", steps=("400 * 2_048", "60 * 2_048"), stories=("n_stories=2_000", "n_stories=400"),
        rows=("arange(32)", "arange(8)"),
    )  # fmt: skip
    whole, spliced, averaged, cut = (
        example[name] for name in ("whole", "spliced", "averaged", "cut")
    )
    assert whole <= spliced < whole + 0.2 * (min(averaged, cut) - whole)
    assert 0 < example["lost"] < 0.5
    model, x = example["model"], example["x"]
    with torch.no_grad(), model.hooks([(example["site"], example["splice"])]):
        _, cache = model.run_with_cache(example["tokens"])
        total = cache["v_local", 1] + example["sae"](x).view_as(cache["v_local", 1])
    torch.testing.assert_close(cache["v", 1], total, atol=1e-4, rtol=1e-4)
