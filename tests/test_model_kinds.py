"""What a model says of itself: methods go by it, of whatever class the model is."""

from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from resval_lens.analyses.attribution.heads import token_losses
from resval_lens.analyses.attribution.logits import attribute
from resval_lens.analyses.attribution.weights import copying_scores
from resval_lens.analyses.papers.amicl.model.transformer import recall_transformer
from resval_lens.hooks.answers import answer_logits
from resval_lens.transformer import ResValTransformer
from tests.classifiers import model_of as classifier_of
from tests.helpers import randomise, tiny_config, tiny_tokens
from tests.test_memory_model import model_of as memory_of

TOKENS = tiny_tokens(batch=3)
LABELS = torch.tensor([[0, 1], [2, 3], [4, 5]])


class Doubling(ResValTransformer):
    """A model of one's own: the residual stream once more after the last layer."""

    kind = "a doubling model"

    def readout_parts(
        self, residual: Float[Tensor, "batch pos d_model"]
    ) -> dict[str, Float[Tensor, "batch pos d_model"]]:
        return {"again": residual}

    def unembed_input(
        self, residual: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        return 2 * residual


def doubling() -> Doubling:
    config = tiny_config(streams="v", normalization_type=None, dtype=torch.float64)
    return randomise(Doubling(config))


@pytest.mark.parametrize(
    ("made", "reads_tokens", "answers_last", "n_outputs"),
    [
        (doubling, True, False, 13),
        (lambda: memory_of("relative"), True, False, 7),
        (lambda: memory_of("absolute"), True, False, 7),
        (lambda: recall_transformer(4, 3), False, False, 3),
        (lambda: classifier_of("v"), False, True, 32),
    ],
    ids=["own", "memory", "memory with positions", "recall", "classifier"],
)
def test_a_model_is_as_it_says(
    made: Any, reads_tokens: bool, answers_last: bool, n_outputs: int
) -> None:
    model = made()
    assert (model.reads_tokens, model.answers_last) == (reads_tokens, answers_last)
    assert model.n_outputs == n_outputs
    assert not any(hasattr(model, name) for name in model.without)
    assert not any(name.split(".")[0] in model.without for name, _ in model.named_parameters())
    for name, hook in model.hook_dict.items():
        assert hook.name == name


def test_what_is_added_after_the_layers_is_a_component_of_its_own() -> None:
    model = doubling()
    found = attribute(model, TOKENS, LABELS)
    logits = model(TOKENS)[:, -1]
    torch.testing.assert_close(answer_logits(model, TOKENS, torch.full((3,), 6)), logits)
    wanted = logits.gather(1, LABELS) @ torch.tensor([1.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(found.values.sum(1), wanted)
    again = found.values[:, found.components.index("again")]
    biases = (model.unembed.b_U[LABELS] * torch.tensor([1, -1])).sum(1)
    torch.testing.assert_close(2 * again, wanted - biases)  # half of all but the bias


def test_what_is_added_after_the_layers_scales_no_copying_score_if_it_doubles() -> None:
    model = doubling()
    plain = ResValTransformer(model.cfg)
    plain.load_state_dict(model.state_dict())
    found, wanted = copying_scores(model), copying_scores(plain)
    assert found.keys() == wanted.keys()
    assert list(found.values()) == pytest.approx(list(wanted.values()))


def test_what_reads_vectors_is_refused_by_its_kind_where_tokens_are_needed() -> None:
    for model, kind in ((recall_transformer(4, 3), "a recall transformer"),
                        (classifier_of(), "a classifier")):  # fmt: skip
        with pytest.raises(ValueError, match=f"{kind} has no embedding or unembedding"):
            copying_scores(model)
        with pytest.raises(ValueError, match=f"{kind} reads vectors; this needs a language model"):
            token_losses(model, TOKENS)
