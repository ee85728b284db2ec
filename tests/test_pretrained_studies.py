"""Studies of a real pretrained model, a handful of cells each held to plain hooks."""

from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from resval_lens.analyses.attribution.heads import RepeatedTokens, head_scores
from resval_lens.analyses.attribution.logits import attribute, logit_lens
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.analyses.display import show_attention
from resval_lens.analyses.studies.attribution import answers_within
from resval_lens.analyses.tasks import TASKS
from resval_lens.analyses.tasks.problem import Problem
from resval_lens.hooks import patch, path_patch_each
from resval_lens.load import Loaded
from tests.drawn import heads_shown
from tests.pretrained import needs_pretrained, smollm2

pytestmark = needs_pretrained
MOVER, SUPPRESSOR, INHIBITION = (23, 0), (23, 3), (20, 0)


@cache
def asked(task: str) -> Problem:
    """Up to four prompts of one length."""
    drawn = TASKS[task].draw(Loaded("SmolLM2", smollm2()), 4)
    return drawn.of_one_length()


@torch.no_grad()
def kept(tokens: Tensor, *points: str) -> dict[str, Tensor]:
    """What stands at hook points whose names end so; the logits of the last position."""
    found: dict[str, Tensor] = {}

    def keep(x: Tensor, hook: Any) -> None:
        found[hook.name] = x.clone()

    hooks = [(lambda name: name.endswith(points), keep)]
    found["logits"] = smollm2().run_with_hooks(tokens, fwd_hooks=hooks)[:, -1]
    return found


@torch.no_grad()
def put(tokens: Tensor, *edits: tuple[str, int | slice, int | slice, Tensor]) -> Tensor:
    """Logits of the last position with x[:, position, head or dimension] taken from elsewhere."""

    def edit(x: Tensor, hook: Any, at: Any, which: Any, new: Tensor) -> Tensor:
        x[:, at, which] = new[:, at, which]
        return x

    hooks = [(name, partial(edit, at=at, which=which, new=new)) for name, at, which, new in edits]
    return smollm2().run_with_hooks(tokens, fwd_hooks=hooks)[:, -1]


def difference(logits: Tensor, labels: Tensor) -> Tensor:
    chosen = logits.gather(1, labels)
    return chosen[:, 0] - chosen[:, 1:].amax(1)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(("task", "cells"), [("ioi", [SUPPRESSOR, INHIBITION, (0, 8)]),
                                             ("docstring", [(23, 8)])])  # fmt: skip
def test_a_patched_head(task: str, cells: list[tuple[int, int]]) -> None:
    pairs = asked(task).pairs
    clean = kept(pairs.clean, "attn.hook_z")
    for layer, head in cells:
        found = patch(smollm2(), pairs, "z", layers=layer, heads=head, by=("layer", "head"))
        name = f"blocks.{layer}.attn.hook_z"
        wanted = put(pairs.corrupted, (name, slice(None), head, clean[name]))
        close(found.per_prompt[0, 0], difference(wanted, pairs.labels))
        close(torch.tensor(found.source), difference(clean["logits"], pairs.labels).mean())


@pytest.mark.parametrize(("task", "place"), [("capitals", "country"), ("ioi", "S2")])
def test_a_patched_position(task: str, place: str) -> None:
    problem = asked(task)
    pairs, where = problem.pairs, problem.named_positions[place]
    name = "blocks.10.hook_resid_pre"
    clean = kept(pairs.clean, name)[name]
    found = patch(smollm2(), pairs, "resid_pre", layers=10, positions={place: where})

    def edit(x: Tensor, hook: Any) -> Tensor:
        for row, at in enumerate(where.tolist()):
            x[row, at] = clean[row, at]
        return x

    with torch.no_grad():
        wanted = smollm2().run_with_hooks(pairs.corrupted, fwd_hooks=[(name, edit)])[:, -1]
    close(found.per_prompt[0, 0], difference(wanted, pairs.labels))


@pytest.mark.parametrize("task", ["ioi", "agreement", "docstring"])
def test_shares_of_heads_and_mlps(task: str) -> None:
    model, pairs = smollm2(), asked(task).pairs
    clean = kept(pairs.clean, "attn.hook_z", "28.hook_mlp_out", "ln_final.hook_scale")
    found = attribute(model, pairs.clean, pairs.labels)
    best = clean["logits"].gather(1, pairs.labels[:, 1:]).argmax(1, keepdim=True)
    wrong = pairs.labels[:, 1:].gather(1, best)[:, 0]
    direction = (model.W_U[:, pairs.labels[:, 0]] - model.W_U[:, wrong]).T
    direction = direction * model.ln_final.w / clean["ln_final.hook_scale"][:, -1]
    for layer, head in (MOVER, SUPPRESSOR, INHIBITION, (29, 8)):
        written = clean[f"blocks.{layer}.attn.hook_z"][:, -1, head] @ model.W_O[layer, head]
        close(found[f"a{layer}.h{head}"], (written * direction).sum(-1))
    close(found["m28"], (clean["blocks.28.hook_mlp_out"][:, -1] * direction).sum(-1))
    close(found.total, difference(clean["logits"], pairs.labels))


def test_the_lens_after_a_layer() -> None:
    model, pairs = smollm2(), asked("capitals").pairs
    after = kept(pairs.clean, "20.hook_resid_post")["blocks.20.hook_resid_post"][:, -1]
    scale = (after.pow(2).mean(-1, keepdim=True) + model.cfg.eps).sqrt()
    logits = (after / scale * model.ln_final.w) @ model.W_U
    found = logit_lens(model, pairs.clean, pairs.labels)
    close(found.logit_difference[21], difference(logits, pairs.labels))
    chances = logits.softmax(-1).gather(1, pairs.labels[:, :1])[:, 0]
    close(found.probability[21], chances)


def test_scores_of_induction_heads() -> None:
    model = smollm2()
    once = torch.arange(1_000, 1_000 + 24 * 37, 37).view(2, 12)
    tokens = torch.cat([once, once], 1)
    patterns = kept(tokens, "attn.hook_pattern")
    found = head_scores(model, RepeatedTokens(tokens, 12))
    for layer, head in ((18, 6), (17, 4), (16, 0), (14, 3), (0, 0)):
        weights = patterns[f"blocks.{layer}.attn.hook_pattern"][:, head]
        again = range(12, 24)
        before = torch.stack([weights[:, i, i - 1] for i in range(1, 24)])
        same = torch.stack([weights[:, i, i - 12] for i in again])
        after = torch.stack([weights[:, i, i - 11] for i in again])
        for score, wanted in zip(found, (before, same, after), strict=True):
            assert score[layer, head].item() == pytest.approx(wanted.mean().item(), abs=1e-4)
    assert found.prefix_matching[18, 6] > 0.5
    assert found.previous[16, 0] > 0.5
    assert found.duplicate[14, 3] > 0.5


def test_who_tells_the_suppressor_where_the_subject_is() -> None:
    pairs = asked("ioi").pairs
    clean, corrupted = (kept(each, "attn.hook_z") for each in (pairs.clean, pairs.corrupted))
    (sender, head), (layer, receiver) = INHIBITION, SUPPRESSOR
    every: list[Any] = [
        (name, slice(None), slice(None), z) for name, z in clean.items() if name != "logits"
    ]
    name, query = f"blocks.{sender}.attn.hook_z", f"blocks.{layer}.attn.hook_q"
    seen: dict[str, Tensor] = {}

    def keep(x: Tensor, hook: Any) -> None:
        seen[query] = x.clone()

    smollm2().add_hook(query, keep)
    try:
        put(pairs.clean, *every, (name, slice(None), head, corrupted[name]))
    finally:
        smollm2().reset_hooks()
    wanted = put(pairs.clean, (query, slice(None), receiver, seen[query]))
    found = path_patch_each(smollm2(), pairs, ["a20.h0"], ["a23.h3<q>"])
    close(found.patched[0], difference(wanted, pairs.labels))
    assert found.effect.mean() < -0.05


def test_estimated_effects_of_edges() -> None:
    model, pairs = smollm2(), asked("agreement").pairs
    clean, corrupted = (kept(each, "attn.hook_z", "27.hook_resid_pre", "28.hook_mlp_out")
                        for each in (pairs.clean, pairs.corrupted))  # fmt: skip
    query, last, grads = "blocks.27.attn.hook_q", "blocks.29.hook_resid_post", {}

    def keep(grad: Tensor, hook: Any) -> None:
        grads[hook.name] = grad.clone()

    with torch.enable_grad(), model.hooks(bwd_hooks=[(query, keep), (last, keep)]):
        difference(model(pairs.clean)[:, -1], pairs.labels).sum().backward()
    model.zero_grad()
    z = "blocks.26.attn.hook_z"
    change = (corrupted[z] - clean[z])[:, :, 0] @ model.W_O[26, 0]
    found = score_edges(model, pairs, "eap")
    close(torch.tensor(found["a26.h0->logits"]), (change * grads[last]).sum() / len(pairs.clean))
    m28 = corrupted["blocks.28.hook_mlp_out"] - clean["blocks.28.hook_mlp_out"]
    close(torch.tensor(found["m28->logits"]), (m28 * grads[last]).sum() / len(pairs.clean))
    read = clean["blocks.27.hook_resid_pre"].requires_grad_()
    with torch.enable_grad():
        scale = (read.pow(2).mean(-1, keepdim=True) + model.cfg.eps).sqrt()
        asks = (read / scale * model.blocks[27].ln1.w) @ model.W_Q[27, 8]
        (grad,) = torch.autograd.grad((asks * grads[query][:, :, 8]).sum(), read)
    close(torch.tensor(found["a26.h0->a27.h8<q>"]), (change * grad).sum() / len(pairs.clean))


@pytest.mark.parametrize("task", ["ioi", "docstring", "capitals"])
def test_where_the_answer_stands_in_the_prompt(task: str) -> None:
    problem = asked(task)
    found, pairs = answers_within(problem.pairs), problem.pairs
    if task == "capitals":
        assert found is None
        return
    assert found is not None
    place = problem.named_positions["IO" if task == "ioi" else "C def"]
    assert found.tolist() == place.tolist()
    assert pairs.clean.gather(1, found[:, None]).tolist() == pairs.labels[:, :1].tolist()


def test_attention_of_the_strongest_heads() -> None:
    problem = asked("ioi")
    pairs = problem.pairs
    patterns = kept(pairs.clean[:1], "attn.hook_pattern")
    whole = [patterns[f"blocks.{layer}.attn.hook_pattern"][0] for layer in range(30)]
    shares = attribute(smollm2(), pairs.clean, pairs.labels).heads.mean(0).sum(1)
    body = show_attention(whole, problem.tokens(), strength=shares, most=8).body
    assert "8 of 270 heads" in body
    (shown,) = heads_shown(body)
    assert shown["names"][0] in ("a23.h3", "a24.h4")
