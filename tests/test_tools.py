"""TransformerLens's own tools on models with streams: patching, logit lens, attribution."""

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens import patching
from transformer_lens.tools.analysis import attribution_patching, direct_logit_attribution

from resval_lens.hooks import PromptPairs, cut_links, logit_difference, patch
from resval_lens.host import STOCK
from resval_lens.transformer import ResValTransformer
from tests.helpers import tiny_model, tiny_tokens
from tests.skipping import skipping_model

CLEAN, CORRUPTED = tiny_tokens(1, 7), tiny_tokens(1, 7, seed=3)
PAIRS = PromptPairs(CLEAN, CORRUPTED, logit_difference, torch.tensor([[1, 2]]))
GROUPED = {"n_key_value_heads": 2, "positional_embedding_type": "rotary"}
each_model = pytest.mark.parametrize(
    ("streams", "settings"), [("v", {}), ("qkv", GROUPED)], ids=["values", "grouped"]
)
MIXED = "residual_mixing: what is read is a weighted sum of what was written"


def difference(logits: Tensor) -> Tensor:
    return logits[0, -1, 1] - logits[0, -1, 2]


def logit_lens() -> Any:
    """TransformerLens 4's."""
    if find_spec("transformer_lens.tools.analysis.logit_lens") is None:
        pytest.skip("TransformerLens 3.9 has no logit_lens")
    from transformer_lens.tools.analysis import logit_lens

    return logit_lens


@each_model
@torch.no_grad()
def test_patching_gives_what_ours_gives(streams: str, settings: dict[str, Any]) -> None:
    model = tiny_model(streams, **settings).eval()
    cache = model.run_with_cache(CLEAN)[1]
    tools = {
        ("resid_pre", "position"): patching.get_act_patch_resid_pre,
        ("z", "head"): patching.get_act_patch_attn_head_out_all_pos,
        ("v", "head"): patching.get_act_patch_attn_head_v_all_pos,
    }
    for (point, axis), tool in tools.items():
        found = tool(model, CORRUPTED, cache, difference)
        wanted = patch(model, PAIRS, point, by=("layer", axis)).values
        assert wanted.std() > 0.01
        torch.testing.assert_close(found, wanted.to(found.dtype), atol=1e-6, rtol=0)


@pytest.mark.skipif(STOCK, reason="TransformerLens 3.9 patches in train mode, too")
def test_patching_refuses_to_run_in_train_mode() -> None:
    model = tiny_model("v").eval()
    cache = model.run_with_cache(CLEAN)[1]
    with pytest.raises(ValueError, match="evaluation mode"):
        patching.get_act_patch_resid_pre(model.train(), CORRUPTED, cache, difference)


@each_model
@torch.no_grad()
def test_the_logit_lens_reads_each_state(streams: str, settings: dict[str, Any]) -> None:
    lens = logit_lens()
    model = tiny_model(streams, **settings).eval()
    logits, cache = model.run_with_cache(CLEAN)
    states = [cache["resid_pre", layer] for layer in range(3)] + [cache["resid_post", 2]]
    wanted = torch.stack([model.unembed(model.ln_final(state)) for state in states])
    torch.testing.assert_close(wanted[-1], logits)
    for found in (lens(model, CLEAN, positions=None), cache.logit_lens(positions=None)):
        torch.testing.assert_close(found.readout.values, wanted, atol=5e-6, rtol=0)
    with cut_links(model):
        without = lens(model, CLEAN, positions=None).readout.values
        torch.testing.assert_close(without[-1], model(CLEAN), atol=5e-6, rtol=0)
    assert (without - wanted).abs().max() > 0.01


@each_model
def test_nodes_are_attributed_through_the_links(streams: str, settings: dict[str, Any]) -> None:
    """Σ (clean − corrupted) · gradient at each head's output and MLP's, by plain hooks."""
    model = tiny_model(streams, **settings).eval()
    config = attribution_patching.EdgeAttributionConfig(granularity="node")
    found = attribution_patching.attribution_patch(model, CLEAN, CORRUPTED, difference, config)
    with torch.no_grad():
        clean = model.run_with_cache(CLEAN)[1]
    seen: dict[str, Tensor] = {}

    def keep(x: Tensor, hook: Any) -> None:
        x.retain_grad()
        seen[hook.name] = x

    names = [f"blocks.{i}.{at}" for i in range(3) for at in ("attn.hook_z", "hook_mlp_out")]
    logits = model.run_with_hooks(CORRUPTED, fwd_hooks=[(name, keep) for name in names])
    difference(logits).backward()
    wanted: dict[tuple[Any, ...], float] = {}
    for name, x in seen.items():
        assert x.grad is not None
        effect = ((clean[name] - x) * x.grad).sum(-1)[0].detach()  # [pos, head] or [pos]
        layer = int(name.split(".")[1])
        for position, at in enumerate(effect):
            heads = at.tolist() if at.dim() else {None: at.item()}
            several = enumerate(heads) if isinstance(heads, list) else heads.items()
            for head, value in several:
                wanted[layer, position, head] = value
    scores = {(node.layer, node.position, node.head): score
              for node, score in found.node_scores.items() if node.layer is not None}  # fmt: skip
    assert scores.keys() == wanted.keys()
    assert scores == pytest.approx(wanted, abs=1e-5)
    assert max(map(abs, wanted.values())) > 0.1


@each_model
@torch.no_grad()
def test_parts_of_a_logit_sum_to_it(streams: str, settings: dict[str, Any]) -> None:
    model = tiny_model(streams, **settings, normalization_type="LNPre").eval()
    found = direct_logit_attribution(model, CLEAN, 1)
    wanted = model(CLEAN)[:, -1, 1] - model.b_U[1]
    torch.testing.assert_close(found.attribution.sum(0), wanted, atol=1e-5, rtol=0)


# What refuses says so


def test_mixed_residual_streams_are_refused() -> None:
    model = skipping_model("nanochat").eval()
    with pytest.raises(ValueError, match=MIXED):
        direct_logit_attribution(model, tiny_tokens(2, 7), 1)
    with pytest.raises(ValueError, match=r"logit_lens requires single-stream .*ResValBlock"):
        logit_lens()(model, tiny_tokens(2, 7))


@each_model
def test_edges_are_left_to_ours(streams: str, settings: dict[str, Any]) -> None:
    """TransformerLens knows no links: it would miss these edges."""
    model = tiny_model(streams, **settings).eval()
    try:
        config = attribution_patching.EdgeAttributionConfig(granularity="edge")
    except (ValueError, NotImplementedError):
        pytest.skip("this TransformerLens attributes to nodes alone")
    with pytest.raises(ValueError, match=r"hook_q_input|n_key_value_heads=2"):
        attribution_patching.attribution_patch(model, CLEAN, CORRUPTED, difference, config)


@torch.no_grad()
def test_a_model_satisfies_the_protocol() -> None:
    protocol = pytest.importorskip(
        "transformer_lens.model_protocol", reason="TransformerLens 3.9 has no protocol of models"
    )
    model: ResValTransformer = tiny_model("v")
    assert isinstance(model, protocol.TransformerLensModel)
    assert isinstance(model, protocol.TransformerLensModelWithWeights)
    assert isinstance(model, protocol.TrainableTransformerLensModel)
