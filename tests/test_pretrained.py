"""A real pretrained model: SmolLM2-135M-Instruct, 30 layers of 9 heads with 3 key-value heads."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from resval_lens import ResValTransformer
from resval_lens.analyses.tasks import TASKS, Asked
from resval_lens.load import Loaded
from tests.pretrained import GGUF, needs_pretrained, smollm2

pytestmark = needs_pretrained

PROMPT = "When Mary and John went to the store, John gave a drink to"


@pytest.fixture(scope="module")
def original() -> AutoModelForCausalLM:
    return AutoModelForCausalLM.from_pretrained(GGUF.parent, gguf_file=GGUF.name).eval()


def test_logits_are_those_of_transformers(original: AutoModelForCausalLM) -> None:
    tokenizer = AutoTokenizer.from_pretrained(GGUF.parent, gguf_file=GGUF.name)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    model = smollm2()
    assert torch.equal(model.to_tokens(PROMPT), ids)
    with torch.no_grad():
        wanted, found = original(ids).logits, model(ids)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_it_knows_who_receives() -> None:
    model = smollm2()
    with torch.no_grad():
        chances = model(PROMPT)[0, -1].softmax(-1)
    assert chances[model.to_single_token(" Mary")] == pytest.approx(0.923, abs=0.002)


def test_it_replies_in_a_chat() -> None:
    """Its tokenizer's template came along from GGUF into our folder."""
    asked = Asked(chat=True, several_tokens=True)
    problem = TASKS["capitals"].draw(Loaded("smollm2", smollm2()), 4, asked)
    example = problem.example()
    assert example is not None
    assert example.clean.endswith("<|im_end|>\n<|im_start|>assistant\n")
    with torch.no_grad():
        logits = smollm2()(problem.pairs.clean)
    assert torch.isfinite(logits).all()


def test_a_grafted_stream_that_carries_nothing_changes_nothing() -> None:
    model = smollm2()
    grafted = model.with_streams("v(mix=head, carried=0)", share_weights=True)
    assert isinstance(grafted, ResValTransformer)
    with torch.no_grad():
        assert torch.equal(grafted(PROMPT), model(PROMPT))
