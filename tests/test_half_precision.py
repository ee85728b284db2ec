"""Models of 16 bits: what is measured of them is what it is in float32, within rounding.

The CPU's share of ``tests.test_gpu``, and what sums, differences and gradients do in 16 bits.
"""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from resval_lens import ResValTransformer
from resval_lens.analyses.attribution.heads import head_scores, repeated_loss, repeated_tokens
from resval_lens.analyses.circuits.gradients import Enlarged
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.analyses.studies import roles
from resval_lens.hooks import PromptPairs, logit_difference
from resval_lens.hooks.answers import answer_logits
from resval_lens.tasks.stories import ioi_prompts
from tests.helpers import tiny_model, tiny_tokens
from tests.rounding import TOKENS, assert_close, each_model, two_of
from tests.two_devices import ANALYSES, PAIRS

each_half = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:]
)


@each_half
@each_model
def test_runs_and_caches(name: str, dtype: torch.dtype) -> None:
    model, reference = two_of(name, dtype)
    with torch.no_grad():
        assert_close(
            model(TOKENS, return_type="loss"), reference(TOKENS, return_type="loss"), dtype
        )
        logits, found = model.run_with_cache(TOKENS)
        wanted_logits, wanted = reference.run_with_cache(TOKENS)
    assert_close(logits, wanted_logits, dtype)
    for point, x in wanted.items():
        if x.isfinite().all():  # scores of later positions are −∞
            assert_close(found[point], x, dtype, scale=1.0)


@each_half
@pytest.mark.parametrize(
    ("name", "analysis"),
    [
        *(("Llama, values", analysis) for analysis in ANALYSES),
        *(("classic", analysis) for analysis in ("patch z", "eap-ig", "runs", "attribute")),
    ],
)
def test_an_analysis(name: str, analysis: str, dtype: torch.dtype) -> None:
    """Of metrics that are differences of logits: what is rounded are the logits."""
    model, reference = two_of(name, dtype)
    with torch.no_grad():
        scale = reference(TOKENS).std().item()
    assert_close(ANALYSES[analysis](model), ANALYSES[analysis](reference), dtype, scale)


@each_half
def test_attention_to_what_came_before_and_what_it_is_worth(dtype: torch.dtype) -> None:
    model, reference = two_of("Llama, values", dtype)
    repeated = repeated_tokens(model, torch.Generator().manual_seed(0), 8, 5)
    for found, wanted in zip(head_scores(model, repeated), head_scores(reference, repeated),
                             strict=True):  # fmt: skip
        assert_close(found, wanted, dtype)
    losses = zip(repeated_loss(model, repeated), repeated_loss(reference, repeated), strict=True)
    for found, wanted in losses:
        assert_close(found, wanted, dtype)


@each_half
def test_roles_of_heads(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of the logit difference, and mean attention, of a trained model."""
    measured: list[roles.HeadMeasures] = []
    judge = roles._judge

    def judged(of: roles.HeadMeasures, attention: float, share: float) -> Any:
        measured.append(of)
        return judge(of, attention, share)

    monkeypatch.setattr(roles, "_judge", judged)
    model = ResValTransformer.from_pretrained("stories-small-values", dtype=dtype)
    prompts = ioi_prompts(6, 0, "unseen", "unseen", "unseen")
    named = [
        {role: [head.head for head in heads] for role, heads in each.roles.items()}
        for each in (roles.head_roles(m, prompts) for m in (model, copy.deepcopy(model).float()))
    ]
    assert named[0] == named[1]
    found, wanted = measured[1], measured[-1]
    for name in ("total", "p_io", "direct", "direct_on_io", "direct_on_s", "into_queries"):
        assert_close(getattr(found, name), getattr(wanted, name), dtype, scale=1.0)
    for name in found.attention:
        assert_close(found.attention[name], wanted.attention[name], dtype, scale=1.0)


@each_half
def test_logits_of_answers_are_not_rounded(dtype: torch.dtype) -> None:
    """A large logit that all tokens share leaves their differences as they are."""
    model = tiny_model("v", normalization_type="RMS").to(dtype).eval()
    model.unembed.b_U.data += 1000
    residual = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    read = model.unembed_input(residual[:, -1:])[:, 0].double()
    wanted = read @ model.unembed.W_U.double() + model.unembed.b_U.double()
    for answers in (torch.full((3,), 6), torch.full((1,), 6)):
        torch.testing.assert_close(
            model.read_out(residual, answers), wanted.float(), rtol=1e-6, atol=2e-4
        )
    assert model(tiny_tokens()).dtype == dtype


def test_the_unembedding_in_parts_has_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resval_lens.lens.unembed.PART", 3 * 16)
    model = tiny_model("", tied_embedding=True).to(torch.bfloat16)
    residual = torch.randn(2, 3, 16).bfloat16().requires_grad_()
    read = model.unembed_input(residual[:, -1:])
    logits = model.read_out(residual, torch.tensor([2, 2]))
    weights = model.embed.W_E
    wanted = F.linear(read.float(), weights.float())[:, 0]
    torch.testing.assert_close(logits, wanted)
    found, expected = (
        torch.autograd.grad(x.pow(2).sum(), (residual, weights), retain_graph=True)
        for x in (logits, wanted)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2**-6, atol=2**-6)


def small(times: float) -> Any:
    return lambda logits, labels: logit_difference(logits, labels) * times


@pytest.mark.parametrize("method", ["eap", "eap-ig"])
def test_a_metric_with_a_small_gradient_keeps_its_bits(method: str) -> None:
    """As it is near a probability of 1. By a power of two it is the same to the bit."""
    model = tiny_model("v", n_layers=3).half().eval()
    found, wanted = (
        score_edges(
            model,
            PromptPairs(PAIRS.clean, PAIRS.corrupted, small(times), PAIRS.labels, PAIRS.last),
            method,
        ).values
        for times in (2.0**-30, 2.0)
    )
    assert wanted.abs().max() > 0.1
    assert (found * 2.0**31).equal(wanted)


def test_a_gradient_beyond_float16_is_refused() -> None:
    """Embeddings of 1e-4 before a norm: what reaches them back is ten thousand times larger."""
    model = tiny_model("", eps=1e-12, n_layers=1).half().eval()
    model.embed.W_E.data *= 1e-5
    model.pos_embed.W_pos.data *= 1e-5
    with pytest.raises(ValueError, match=r"too large for float16; score edges in bfloat16"):
        score_edges(model, PAIRS, "eap")


def test_a_loss_of_many_tokens_is_a_number() -> None:
    model = tiny_model("").half().eval()
    tokens = tiny_tokens(batch=4000, length=12)
    with torch.no_grad():
        loss = model(tokens, return_type="loss")
        wanted = copy.deepcopy(model).float()(tokens, return_type="loss")
    assert wanted * tokens[:, 1:].numel() > torch.finfo(torch.float16).max
    assert_close(loss, wanted, torch.float16)


@each_half
def test_answers_are_read_in_float32(dtype: torch.dtype) -> None:
    model = tiny_model("v").to(dtype).eval()
    logits = answer_logits(model, PAIRS.clean, PAIRS.last)
    assert logits.dtype == torch.float32
    assert torch.autograd.grad(logits.sum(), model.embed.W_E)[0].dtype == dtype


@pytest.mark.parametrize("size", [1e-40, 1e-20, 3.0, 1e30])
def test_a_gradient_of_any_size_comes_back_as_it_was(size: float) -> None:
    enlarged, logits = Enlarged(torch.float16), torch.tensor([1.0, 2.0], requires_grad=True)
    held = logits * 1  # what the model computes with
    enlarged.enter(held)
    (through,) = torch.autograd.grad((held * size).sum(), logits)
    assert 2.0**-20 < through.abs().max() <= 2.0**10
    torch.testing.assert_close(
        enlarged.read(through, "x"), torch.full((2,), size), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("size", [math.inf, math.nan])
def test_a_gradient_that_is_no_number_is_refused_by_name(size: float) -> None:
    enlarged, logits = Enlarged(torch.float16), torch.ones(2, requires_grad=True)
    held = logits * 1
    enlarged.enter(held)
    (through,) = torch.autograd.grad((held * size).sum(), logits)
    with pytest.raises(ValueError, match="gradient at x is too large for float16"):
        enlarged.read(through, "x")
