"""Models made, and trainings started, where gradients are switched off; weights of wrappers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.analyses.papers.amicl.model.transformer import recall_transformer
from resval_lens.analyses.papers.memory.model import MemoryTransformer, memory_config
from resval_lens.analyses.papers.memory.training import train_memory
from resval_lens.hooks import PromptPairs, logit_difference
from resval_lens.host import AbstractAttention
from resval_lens.models.classifier import ICLClassifier, classifier_config
from resval_lens.training import train_icl
from resval_lens.training.lm import train_lm
from resval_lens.transformer import ResValTransformer
from tests import lm_runs
from tests.helpers import randomise, tiny_config, tiny_model, tiny_tokens
from tests.memory_runs import tiny_run
from tests.runs import RUN


@contextmanager
def switched_off() -> Iterator[None]:
    """As a notebook's first cell does."""
    torch.set_grad_enabled(False)
    try:
        yield
    finally:
        torch.set_grad_enabled(True)


each_way = pytest.mark.parametrize("off", [switched_off, torch.no_grad, torch.inference_mode])
TRAININGS: dict[str, Callable[[Path], Any]] = {
    "icl": lambda folder: train_icl(RUN, folder),
    "memory": lambda folder: train_memory(tiny_run(steps=4), folder),
    "lm": lambda folder: train_lm(lm_runs.RUN, lm_runs.Noise(), folder),
}


@each_way
@pytest.mark.parametrize("train", TRAININGS.values(), ids=TRAININGS)
def test_training_needs_no_switch(train: Any, off: Any, tmp_path: Path) -> None:
    expected = train(tmp_path / "on")
    with off():
        found = train(tmp_path / "off")
        assert not torch.is_grad_enabled()
    for x, y in zip(found.parameters(), expected.parameters(), strict=True):
        assert x.equal(y)
        assert not x.is_inference()


MAKERS: dict[str, Callable[[], Any]] = {
    "model": lambda: ResValTransformer(tiny_config(streams="v", tied_embedding=True)),
    "other streams": lambda: tiny_model("v").with_streams("q"),
    "classifier": lambda: ICLClassifier(classifier_config("v")),
    "memory": lambda: MemoryTransformer(memory_config(7, "relative", "v", d_model=8, n_ctx=9)),
    "recall": lambda: recall_transformer(4, 6),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_model_made_in_inference_mode_is_like_any(make: Any) -> None:
    expected = make().state_dict()
    with torch.inference_mode():
        model = make()
    assert all(x.equal(expected[name]) for name, x in model.state_dict().items())
    assert not any(x.is_inference() for x in [*model.parameters(), *model.buffers()])


def test_edges_of_a_model_made_in_inference_mode_are_scored() -> None:
    pairs = PromptPairs(tiny_tokens(), tiny_tokens(seed=3), logit_difference, tiny_tokens()[:, :2])
    with torch.inference_mode():
        model = randomise(ResValTransformer(tiny_config(streams="v")))
        found = score_edges(model, pairs, "eap")
    assert found.values.equal(score_edges(tiny_model("v"), pairs, "eap").values)


def test_training_after_a_long_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AbstractAttention, "ROTARY_INITIAL_CACHE_SIZE", 4)
    model = tiny_model("v", positional_embedding_type="rotary")
    model.generate(tiny_tokens(batch=1), max_new_tokens=3, stop_at_eos=False, verbose=False)
    model(tiny_tokens(), return_type="loss").backward()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (lambda model: nn.ModuleDict({"module": model}), "module."),
        (lambda model: nn.ModuleDict({"_orig_mod": model}), "_orig_mod."),
        (lambda model: nn.ModuleDict({"module": nn.ModuleDict({"_orig_mod": model})}), "module."),
    ],
)
def test_weights_of_a_wrapper_are_refused_by_what_it_put_before_their_names(
    wrap: Any, prefix: str, strict: bool
) -> None:
    model = tiny_model("v")
    with pytest.raises(ValueError, match=f"^state_dict has '{prefix}.* remove the prefix$"):
        model.load_state_dict(wrap(tiny_model("v")).state_dict(), strict)
    model.load_state_dict(tiny_model("v").state_dict(), strict)
