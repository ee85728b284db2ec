"""Looking into a simplified transformer: hook points, interventions, circuits, generation."""

import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from resval_lens.analyses.attribution.heads import head_scores, repeated_tokens, token_losses
from resval_lens.analyses.attribution.logits import attribute, logit_lens
from resval_lens.analyses.attribution.weights import (
    composition_scores,
    copying_scores,
    ov_circuit,
    own_token_scores,
)
from resval_lens.analyses.circuits.running import EdgeRuns
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.analyses.papers.memory.model import MemoryTransformer
from resval_lens.hooks import PromptPairs, cut_links, edit_links, patch, path_patch, zero
from resval_lens.hooks.answers import answer_logits
from resval_lens.hooks.prompts import logit_difference
from resval_lens.lens.generation import stream_tokens
from resval_lens.models.presets import ENCODINGS
from tests.test_memory_model import TOKENS, model_of

OTHER = torch.tensor([[3, 5, 3, 6, 1, 1, 5], [2, 2, 4, 0, 1, 3, 2]])
LABELS = torch.tensor([[0, 4], [6, 1]])
SCORES = "blocks.0.attn.hook_position_scores"


def pairs_of(last: Tensor | None = None) -> PromptPairs:
    return PromptPairs(TOKENS, OTHER, logit_difference, LABELS, last)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def differences(logits: Tensor) -> Tensor:
    return logit_difference(logits[:, -1], LABELS)


# Hook points


@pytest.mark.parametrize("kind", ENCODINGS)
def test_every_hook_point_fires(kind: str) -> None:
    model = model_of(kind, "v")
    model.set_use_split_qkv_input(True)
    model.set_use_attn_result(True)
    logits, cache = model.run_with_cache(TOKENS)
    # TransformerLens makes these in blocks without an MLP, too.
    unused = {
        name for name in model.hook_dict if name.endswith(("hook_attn_in", "mlp_in", "mlp_out"))
    }
    assert set(cache) == set(model.hook_dict) - unused
    assert {name for name in model.hook_dict if "position_scores" in name} == (
        {SCORES} if kind in ("relative", "alibi") else set()
    )
    assert ("hook_pos_embed" in cache) == model.cfg.in_the_stream
    close(logits, model_of(kind, "v")(TOKENS))


@pytest.mark.parametrize("kind", ["relative", "alibi"])
def test_scores_are_content_and_position(kind: str) -> None:
    model = model_of(kind, "v", alibi_slope=0.3)
    _, cache = model.run_with_cache(TOKENS)
    content = cache["q", 0][:, :, 0] @ cache["k", 0][:, :, 0].mT / model.cfg.d_head**0.5
    total = content + cache[SCORES][:, 0]
    past = torch.ones(7, 7).tril().bool()
    close(cache["attn_scores", 0][:, 0][:, past], total[:, past])
    pattern = total.masked_fill(~past, -torch.inf).softmax(-1)
    close(cache["pattern", 0][:, 0], pattern)
    if kind == "alibi":
        assert cache[SCORES][0, 0, 5, 3].item() == pytest.approx(-0.6, rel=1e-14)


@pytest.mark.parametrize("kind", ["relative", "alibi"])
def test_without_position_scores_layer_0_compares_content_alone(kind: str) -> None:
    model = model_of(kind, "v")
    base = model_of(kind, "v", position_layers=())
    with torch.no_grad():
        theirs = dict(model.named_parameters())
        for name, parameter in base.named_parameters():
            parameter.copy_(theirs[name])
    silent = model.run_with_hooks(TOKENS, fwd_hooks=[(SCORES, lambda x, hook: 0 * x)])
    close(silent, base(TOKENS))
    assert not torch.allclose(silent, model(TOKENS))


def test_the_feed_forward_has_hook_points() -> None:
    model = model_of("relative", "v")
    logits, cache = model.run_with_cache(TOKENS)
    assert cache["feed_forward.hook_in"].equal(cache["resid_post", 1])
    close(cache["feed_forward.hook_out"], cache["resid_post", 1] @ model.feed_forward.W_F.detach())
    silent = model.run_with_hooks(
        TOKENS, fwd_hooks=[("feed_forward.hook_out", lambda x, hook: 0 * x)]
    )
    close(silent, cache["resid_post", 1] @ model.unembed.W_U.detach())
    with torch.no_grad():
        model.feed_forward.W_F.zero_()
    close(silent, model(TOKENS))
    assert not torch.allclose(silent, logits)


def test_positions_are_sliced_where_they_are() -> None:
    model = model_of("relative", "v")
    _, cache = model.run_with_cache(TOKENS)
    _, sliced = model.run_with_cache(TOKENS, pos_slice=(2, 4))
    assert sliced[SCORES].equal(cache[SCORES][:, :, 2:4])
    assert sliced["feed_forward.hook_out"].equal(cache["feed_forward.hook_out"][:, 2:4])


@pytest.mark.parametrize("kind", ENCODINGS)
def test_parts_of_a_run(kind: str) -> None:
    model = model_of(kind, "v")
    logits, cache = model.run_with_cache(TOKENS)
    carried = model.carried_before(1, cache)
    close(model(cache["resid_pre", 1], start_at_layer=1, carried=carried), logits)
    close(model(TOKENS, stop_at_layer=1), cache["resid_pre", 1])
    close(model(TOKENS, stop_at_layer=2), cache["resid_post", 1])  # without W_F
    loss = model(TOKENS, return_type="loss")
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].ravel()
    )
    close(loss, expected)
    close(model(TOKENS[:, :-1], targets=TOKENS[:, 1:]), 12 * expected)
    close(model(TOKENS, checkpoint_blocks=True), logits)


# Interventions


@pytest.mark.parametrize("kind", ENCODINGS)
def test_links_can_be_cut(kind: str) -> None:
    model = model_of(kind, "v")
    plain = model.with_streams("")(TOKENS)
    with cut_links(model):
        close(model(TOKENS), plain)
    with edit_links(model, zero()):
        close(model(TOKENS), plain)
    assert not torch.allclose(model(TOKENS), plain)


@pytest.mark.parametrize("kind", ENCODINGS)
def test_answers_are_the_models(kind: str) -> None:
    """Through the door that every intervention takes, W_F included."""
    model = model_of(kind, "v")
    answers = torch.tensor([6, 3])
    close(answer_logits(model, TOKENS, answers), model(TOKENS)[torch.arange(2), answers])


def patched_by_hand(model: MemoryTransformer, name: str, position: int) -> Tensor:
    """The corrupted run with one position of one hook point from the clean run."""
    _, clean = model.run_with_cache(TOKENS)
    axis = 2 if name.endswith(("pattern", "scores")) else 1

    def take(x: Tensor, hook: Any) -> Tensor:
        x = x.clone()
        x.select(axis, position).copy_(clean[name].select(axis, position))
        return x

    return differences(model.run_with_hooks(OTHER, fwd_hooks=[(name, take)]))


@pytest.mark.parametrize("kind", ENCODINGS)
@pytest.mark.parametrize("site", ["resid_pre", "z", "v_link", "pattern", "q", "v"])
def test_patching_is_patching_by_hand(kind: str, site: str) -> None:
    model = model_of(kind, "v")
    found = patch(model, pairs_of(), site, layers=1, by=("position",))
    assert found.base == pytest.approx(differences(model(OTHER)).mean().item(), rel=1e-9)
    assert found.source == pytest.approx(differences(model(TOKENS)).mean().item(), rel=1e-9)
    attn = "" if site == "resid_pre" else "attn."
    for position in range(7):
        close(
            found.per_prompt[position],
            patched_by_hand(model, f"blocks.1.{attn}hook_{site}", position),
        )


def test_position_scores_can_be_patched() -> None:
    model = model_of("relative", "v")
    found = patch(model, pairs_of(), SCORES, by=("position",))
    for position in range(7):
        close(found.per_prompt[position], patched_by_hand(model, SCORES, position))
    assert found.values.std() > 1e-6


def test_the_feed_forward_is_no_site_of_the_blocks() -> None:
    with pytest.raises(ValueError, match="the blocks have no such hook point"):
        patch(model_of(), pairs_of(), "feed_forward.hook_out")


@pytest.mark.parametrize("kind", ENCODINGS)
def test_paths_are_patched_by_hand(kind: str) -> None:
    """Layer 0's head to the logits alone: its output exchanged, layer 1's z held."""
    model = model_of(kind, "v")
    _, clean = model.run_with_cache(TOKENS)
    _, corrupted = model.run_with_cache(OTHER)
    z = {0: corrupted["z", 0], 1: clean["z", 1]}
    hooks = [(f"blocks.{layer}.attn.hook_z", lambda x, hook, z=z[layer]: z) for layer in (0, 1)]
    expected = differences(model.run_with_hooks(TOKENS, fwd_hooks=hooks))
    found = path_patch(model, pairs_of(), "a0.h0", "logits")
    close(found.patched, expected)
    close(found.clean, differences(model(TOKENS)))
    for sender, receiver in (("a0.h0", "a1.h0<k>"), ("input", "a1.h0<v>"), ("v1.h0", "a1.h0<v>")):
        effects = path_patch(model, pairs_of(), sender, receiver)
        assert effects.effect.abs().max() > 1e-6
    with pytest.raises(ValueError, match="this model has no MLPs"):
        path_patch(model, pairs_of(), "m0", "logits")


# Circuits


@pytest.mark.parametrize("kind", ENCODINGS)
def test_edges_are_scored_exactly(kind: str) -> None:
    model, pairs = model_of(kind, "v"), pairs_of()
    exact = score_edges(model, pairs, "exact")
    runs = EdgeRuns(model, pairs)
    assert runs.clean == pytest.approx(differences(model(TOKENS)).mean().item(), rel=1e-9)
    nothing = runs.means(torch.zeros(1, len(runs.graph), dtype=torch.bool))
    assert nothing.item() == pytest.approx(differences(model(OTHER)).mean().item(), rel=1e-8)
    # The last head's edge to the logits alone, by hand.
    _, corrupted = model.run_with_cache(OTHER)
    hook = ("blocks.1.attn.hook_z", lambda x, hook: corrupted["z", 1])
    expected = differences(model.run_with_hooks(TOKENS, fwd_hooks=[hook]))
    change = (expected - differences(model(TOKENS))).mean().item()
    assert exact["a1.h0->logits"] == pytest.approx(change, rel=1e-8)
    # Linear edges: to the logits, W_F included, an approximation is exact.
    approximate = score_edges(model, pairs, "eap")
    for edge in ("input->logits", "a0.h0->logits", "a1.h0->logits"):
        assert approximate[edge] == pytest.approx(exact[edge], rel=1e-8, abs=1e-10)
    assert abs(exact["a0.h0<v>->a1.h0<v>"]) > 1e-6
    assert approximate["a0.h0<v>->a1.h0<v>"] == pytest.approx(exact["a0.h0<v>->a1.h0<v>"], rel=1e-8)


@pytest.mark.parametrize("kind", ENCODINGS)
def test_attribution_knows_the_feed_forward(kind: str) -> None:
    model = model_of(kind, "v")
    found = attribute(model, TOKENS, LABELS)
    close(found.total, differences(model(TOKENS)))
    close(found.values.sum(1), found.total)
    _, cache = model.run_with_cache(TOKENS)
    W_U = model.unembed.W_U.detach()
    close(found["feed_forward"], differences(cache["feed_forward.hook_out"] @ W_U))
    close(found["embed"], differences(cache["hook_embed"] @ W_U))
    assert ("pos_embed" in found.components) == model.cfg.in_the_stream
    parts = [found[name] for name in ("a1.h0", "a1.h0 from 0")]
    close(sum(parts[1:], start=parts[0]), differences(cache["attn_out", 1] @ W_U))
    elsewhere = attribute(model, TOKENS, LABELS, torch.tensor([4, 2]))
    close(elsewhere.values.sum(1), logit_difference(model(TOKENS)[[0, 1], [4, 2]], LABELS))


def test_the_logit_lens_reads_out_with_the_feed_forward() -> None:
    model = model_of("relative", "v")
    lens = logit_lens(model, TOKENS, LABELS)
    _, cache = model.run_with_cache(TOKENS)
    residuals = [cache["resid_pre", 0], cache["resid_pre", 1], cache["resid_post", 1]]
    for point, residual in enumerate(residuals):
        read = residual + residual @ model.feed_forward.W_F.detach()
        close(lens.logit_difference[point], differences(read @ model.unembed.W_U.detach()))


def test_copying_is_judged_with_the_feed_forward() -> None:
    model = model_of("relative", "v")
    W_E, W_U = model.embed.W_E.detach(), model.unembed.W_U.detach()
    readout = W_U + model.feed_forward.W_F.detach() @ W_U
    attns = [block.attn for block in model.blocks]
    for path, score in copying_scores(model).items():
        OV = attns[path.source].W_V[0].detach() @ attns[path.layer].W_O[0].detach()
        eigenvalues = torch.linalg.eigvals(W_E @ OV @ readout)
        expected = eigenvalues.sum().real / eigenvalues.abs().sum()
        assert score == pytest.approx(expected.item(), rel=1e-8)
        close(ov_circuit(model, path.layer, 0, path.source).AB, OV)
    named = own_token_scores(model, TOKENS, top=1)
    for path, score in named.items():
        OV = attns[path.source].W_V[0].detach() @ attns[path.layer].W_O[0].detach()
        best = (W_E[TOKENS[:, -1]] @ OV @ readout).argmax(-1)
        assert score == (best == TOKENS[:, -1]).double().mean().item()
    assert composition_scores(model, "K").scores.isfinite().all()


def test_scores_of_heads_and_losses() -> None:
    model = model_of("relative", "v")
    repeated = repeated_tokens(model, torch.Generator().manual_seed(0), n=3, length=4)
    found = head_scores(model, repeated)
    _, cache = model.run_with_cache(repeated.tokens)
    for layer in (0, 1):
        pattern = cache["pattern", layer][:, 0]
        previous = torch.stack([pattern[:, t, s] for s, t in pairwise(range(8))]).mean()
        assert found.previous[layer, 0].item() == pytest.approx(previous.item(), rel=1e-6)
    logits = model(TOKENS)[:, :-1].log_softmax(-1)
    close(token_losses(model, TOKENS), -logits.gather(2, TOKENS[:, 1:, None])[..., 0].detach())


# Generation


@pytest.mark.parametrize("streams", ["", "v"])
@pytest.mark.parametrize("kind", ENCODINGS)
def test_generation_with_a_cache_is_that_without(kind: str, streams: str) -> None:
    model = model_of(kind, streams, position_layers=(0, 1))
    tokens = TOKENS[:, :3]
    for new in stream_tokens(model, TOKENS[:, :3], 6, temperature=0):
        assert new.equal(model(tokens)[:, -1].argmax(-1))
        tokens = torch.cat([tokens, new[:, None]], 1)
    for cached in (True, False):
        generated = model.generate(
            TOKENS[:, :3], 6, do_sample=False, stop_at_eos=False, verbose=False,
            use_past_kv_cache=cached,
        )  # fmt: skip
        assert generated.equal(tokens)
    with pytest.raises(ValueError, match=re.escape("10 positions are more than n_ctx=9")):
        model.generate(tokens, 2, do_sample=False, stop_at_eos=False, verbose=False)
