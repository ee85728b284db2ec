"""Edges where values and states skip layers, and edits of tables' links, by plain hooks."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.hooks import cut_links, edit_links, freeze, link_activations, links, scale
from resval_lens.hooks.prompts import PromptPairs, logit_difference
from resval_lens.transformer import ResValTransformer
from tests.helpers import tiny_tokens
from tests.skipping import MODELS, skipping_model

CLEAN, CORRUPTED = tiny_tokens(2, 6, seed=2), tiny_tokens(2, 6, seed=3)
PAIRS = PromptPairs(CLEAN, CORRUPTED, logit_difference, torch.tensor([[1, 2], [3, 4]]))


def read_weight(model: ResValTransformer, reader: int, written: int) -> float:
    """With which weight a block (or the readout) reads the embeddings (0) or block ``written`` − 1,
    by the definition of the states.
    """
    if not model.cfg.residual_mixing:
        return 1.0
    holder: Any = model if reader == model.cfg.n_layers else model.blocks[reader]

    def in_state(state: int) -> float:
        if state == 0:
            return float(written == 0)
        return read_weight(model, state - 1, written) + (written == state)

    pairs = zip(model.cfg.residual_mixing[reader], holder.resid_mix.weights.tolist(), strict=True)
    return sum(weight * in_state(state) for state, weight in pairs)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_weights_of_what_was_written_follow_from_the_states(name: str) -> None:
    model = skipping_model(name)
    found = model.written_weights()
    for reader in range(5):
        for written in range(5):
            wanted = read_weight(model, reader, written) if written <= reader else 0.0
            assert found[reader, written].item() == pytest.approx(wanted, abs=1e-12)


def scores_by_hand(model: ResValTransformer, edges: list[str], steps: int) -> Tensor:
    """Σ (x_corrupted − x_clean) · ∂metric/∂x, averaged over runs whose embeddings and tables' rows
    lie between those of the corrupted and the clean prompts, with one share for each edge.
    """
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    with torch.no_grad():
        clean, corrupted = (model.run_with_cache(x)[1].cache_dict for x in (CLEAN, CORRUPTED))
    W_O = model.W_O.detach()
    change = {name: corrupted[name] - x for name, x in clean.items()}

    def written(node: str) -> tuple[int, Tensor]:
        if node == "input":
            return 0, change[model.cfg.input_point]
        layer, head = (int(x) for x in re.findall(r"\d+", f"{node}.0")[:2])
        if node.startswith("m"):
            return layer + 1, change[f"blocks.{layer}.hook_mlp_out"]
        return layer + 1, change[f"blocks.{layer}.attn.hook_z"][:, :, head] @ W_O[layer, head]

    at: dict[str, list[tuple[int, int | None, Tensor]]] = {}
    for number, edge in enumerate(edges):
        source, target = edge.split("->")
        numbers = [int(x) for x in re.findall(r"\d+", target)]
        if source.endswith(">"):
            name = f"blocks.{numbers[0]}.attn.hook_{target[-2]}_link"
            at.setdefault(name, []).append((number, numbers[1], change[name][:, :, numbers[1]]))
            continue
        block, x = written(source)
        if target == "logits":
            weight = read_weight(model, model.cfg.n_layers, block)
            at.setdefault(model.cfg.final_point, []).append((number, None, weight * x))
        elif target.startswith("m"):
            own = block == numbers[0] + 1
            weight = 1.0 if own else read_weight(model, numbers[0], block)
            at.setdefault(f"blocks.{numbers[0]}.hook_mlp_in", []).append((number, None, weight * x))
        else:
            name = f"blocks.{numbers[0]}.hook_{target[-2]}_input"
            weight = read_weight(model, numbers[0], block)
            at.setdefault(name, []).append((number, numbers[1], weight * x))
    total = torch.zeros(len(edges), dtype=torch.float64)
    for step in range(1, steps + 1):
        shares = torch.zeros(len(edges), dtype=torch.float64, requires_grad=True)

        def put_in(x: Tensor, hook: Any, part: float = step / steps) -> Tensor:
            return torch.lerp(corrupted[hook.name], clean[hook.name], part)

        def add(x: Tensor, hook: Any, shares: Tensor = shares) -> Tensor:
            x = x.clone()
            for number, head, much in at[hook.name]:
                if head is None:
                    x = x + shares[number] * much
                else:
                    x[:, :, head] += shares[number] * much
            return x

        hooks: list[Any] = [
            (point, put_in)
            for point in clean
            if point == model.cfg.input_point or point.endswith("_table")
        ]
        hooks += [(point, add) for point in at]
        logits = model.run_with_hooks(CLEAN, fwd_hooks=hooks)[:, -1]
        logit_difference(logits, PAIRS.labels).sum().backward()
        assert shares.grad is not None
        total += shares.grad
    return total / steps / len(CLEAN)


@pytest.mark.parametrize(("method", "steps"), [("eap", None), ("eap-ig", 3)])
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_gradients_along_the_way_of_embeddings_and_tables(
    name: str, method: str, steps: int | None
) -> None:
    model = skipping_model(name).eval()
    found = score_edges(model, PAIRS, method, **({} if steps is None else {"steps": steps}))
    edges = [str(edge) for edge in Graph.of(model).edges]
    wanted = scores_by_hand(model, edges, steps or 1)
    torch.testing.assert_close(found.values, wanted, rtol=1e-7, atol=1e-9)
    tables = [number for number, edge in enumerate(edges) if edge.startswith("t.")]
    assert not tables or wanted[tables].abs().min() > 1e-9


def answers(model: ResValTransformer, hooks: Any = ()) -> Tensor:
    return model.run_with_hooks(CLEAN, fwd_hooks=list(hooks))


@pytest.mark.parametrize("name", ["nanochat", "all tables", "tables alone"])
@torch.no_grad()
def test_links_of_tables_are_cut_scaled_and_frozen(name: str) -> None:
    model = skipping_model(name).eval()
    layer, head = (2, 1)
    point = f"blocks.{layer}.attn.hook_v_link"

    def edited(change: Any) -> Tensor:
        def put(x: Tensor, hook: Any) -> Tensor:
            x = x.clone()
            x[:, :, head] = change(x[:, :, head])
            return x

        return answers(model, [(point, put)])

    wholes = [str(link) for link in links(model, of="v", layers=[layer], heads=[head])]
    assert wholes == [f"v{layer}.h{head}"]
    other = link_activations(model, CORRUPTED)
    wanted = [
        edited(torch.zeros_like),
        edited(lambda x: -0.5 * x),
        edited(lambda x: other[point][:, :, head]),
    ]
    for chosen in (wholes, [f"t.h{head}<v>->a{layer}.h{head}<v>"]):
        for edit, own in zip((scale(0), scale(-0.5), freeze(other)), wanted, strict=True):
            with edit_links(model, edit, chosen):
                torch.testing.assert_close(answers(model), own)
    with cut_links(model):
        cut = answers(model)
    if name == "nanochat":
        torch.testing.assert_close(cut, model.with_streams("")(CLEAN))
    assert not cut.allclose(answers(model), atol=1e-2)


@pytest.mark.parametrize("window", [1, 3, 6, 20])
@torch.no_grad()
def test_a_window_on_the_fused_path_is_that_of_scores_and_pattern(window: int) -> None:
    """Of every length around it, and with keys and values of earlier tokens."""
    model = skipping_model("nanochat", window_size=window, n_ctx=16).eval()
    tokens = tiny_tokens(2, 12)
    for length in (1, 2, 3, 4, 6, 7, 12):
        fused = model(tokens[:, :length])
        model.cfg.use_fused = False
        explicit, cache = model.run_with_cache(tokens[:, :length])
        model.cfg.use_fused = True
        torch.testing.assert_close(fused, explicit)
        pattern = cache["pattern", 0]  # a local layer: [prompt, head, query, key]
        query, key = torch.arange(length)[:, None], torch.arange(length)
        seen = (key <= query) & (key > query - window)
        assert ((pattern > 0) == seen).all()
    assert ((cache["pattern", 1] > 0) == (key <= query)).all()  # a global one
