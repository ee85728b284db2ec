"""Shares, lenses and weight circuits where values and states skip layers, found in other ways."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from resval_lens.analyses.attribution.logits import attribute, logit_lens
from resval_lens.analyses.attribution.values import value_parts, z_parts
from resval_lens.analyses.attribution.weights import (
    Path,
    composition_scores,
    copying_scores,
    ov_circuit,
    own_token_scores,
)
from resval_lens.analyses.studies.attribution import (
    AttributionStudy,
    HeadShares,
    attribution_table,
)
from resval_lens.streams import TABLE
from resval_lens.transformer import ResValTransformer
from tests.drawn import facts
from tests.helpers import tiny_model, tiny_tokens
from tests.skipping import MODELS, skipping_model

TOKENS, LABELS = tiny_tokens(2, 8), torch.tensor([[1, 2], [3, 4]])


def difference(logits: Tensor) -> Tensor:
    at = logits[:, -1].gather(1, LABELS)
    return at[:, 0] - at[:, 1]


class Held:
    """Runs in which every layer writes what it did, but for one part; the final scale stays."""

    def __init__(self, model: ResValTransformer) -> None:
        self.model = model
        self.logits, self.cache = model.run_with_cache(TOKENS)
        ends = ("hook_attn_out", "hook_mlp_out", "ln_final.hook_scale")
        held = {name: x for name, x in self.cache.items() if name.endswith(ends)}
        self.held = held | {model.cfg.input_point: self.cache[model.cfg.input_point]}

    def share(self, name: str, part: Tensor) -> Tensor:
        """What the difference has of ``part`` of what is written at ``name``."""
        values = {**self.held, name: self.held[name] - part}
        hooks: Any = [(at, lambda x, hook: values[hook.name]) for at in values]
        return difference(self.logits) - difference(
            self.model.run_with_hooks(TOKENS, fwd_hooks=hooks)
        )

    def unlinked(self, layer: int) -> Tensor:
        """A layer's z where nothing arrives along links, attention as it was."""
        at = f"blocks.{layer}.attn.hook_"
        found: list[Tensor] = []
        hooks: Any = [
            (f"{at}v_link", lambda x, hook: torch.zeros_like(x)),
            (f"{at}pattern", lambda x, hook: self.cache[hook.name]),
            (f"{at}z", lambda x, hook: found.append(x)),
        ]
        self.model.run_with_hooks(TOKENS, fwd_hooks=hooks)
        return found[0]


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_share_is_what_leaving_the_part_out_of_the_readouts_input_takes(name: str) -> None:
    model = skipping_model(name).eval()
    held, found = Held(model), attribute(model, TOKENS, LABELS, max_tokens=8)
    torch.testing.assert_close(found.total, difference(held.logits))
    torch.testing.assert_close(found.values.sum(1), found.total)
    embedded = held.share(model.cfg.input_point, held.held[model.cfg.input_point])
    torch.testing.assert_close(
        embedded, found["embed"] + (found["pos_embed"] if "pos_embed" in found.components else 0)
    )
    for layer in (0, 1, 3):
        out, mlp = f"blocks.{layer}.hook_attn_out", f"blocks.{layer}.hook_mlp_out"
        torch.testing.assert_close(held.share(mlp, held.held[mlp]), found[f"m{layer}"])
        bias = model.b_O[layer].expand_as(held.held[out])
        torch.testing.assert_close(held.share(out, bias), found[f"b_O {layer}"])
        z = held.cache["z", layer][:, :, 1] @ model.W_O[layer, 1]
        linked = [each for each in found.components if each.startswith(f"a{layer}.h1")]
        whole = torch.stack([found[each] for each in linked]).sum(0)
        torch.testing.assert_close(held.share(out, z), whole)
        table = f"a{layer}.h1 from t"
        if table in found.components:
            own = held.unlinked(layer)[:, :, 1] @ model.W_O[layer, 1]
            torch.testing.assert_close(held.share(out, z - own), found[table])
            torch.testing.assert_close(found.heads[:, layer, TABLE, 1], found[table])
    assert found.values.abs().min(0).values.max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_lens_is_a_run_in_which_later_layers_write_nothing(name: str) -> None:
    model = skipping_model(name).eval()
    _, cache = model.run_with_cache(TOKENS)
    found = logit_lens(model, TOKENS, LABELS, max_tokens=8)
    ends = ("hook_attn_out", "hook_mlp_out")
    for point in range(model.cfg.n_layers + 1):

        def kept(x: Tensor, hook: Any, before: int = point) -> Tensor:
            return cache[hook.name] * (hook.layer() < before)

        hooks = [(at, kept) for at in cache if at.endswith(ends)]
        logits = model.run_with_hooks(TOKENS, fwd_hooks=hooks)
        torch.testing.assert_close(found.logit_difference[point], difference(logits))


@pytest.mark.parametrize("grouped", [False, True], ids=["ungrouped", "grouped"])
@pytest.mark.parametrize("name", ["nanochat", "all tables", "tables alone"])
@torch.no_grad()
def test_values_are_their_own_part_and_the_weighted_rows_of_their_table(
    name: str, grouped: bool
) -> None:
    model = skipping_model(name, n_key_value_heads=2 if grouped else None).eval()
    _, cache = model.run_with_cache(TOKENS)
    weights = {k: v.numpy() for k, v in model.state_dict().items()}
    (stream,) = [stream for stream in model.cfg.streams if stream.of == "v"]
    parts, zs = value_parts(model, cache), z_parts(model, cache)
    for layer in range(4):
        assert set(parts[layer]) == ({layer, TABLE} if stream.receives(layer) else {layer})
        total = torch.stack(list(zs[layer].values())).sum(0)
        torch.testing.assert_close(total, cache["z", layer])
        if not stream.receives(layer):
            continue
        mix = f"blocks.{layer}.attn.mixes.v."
        rows = weights[f"{mix}table"][TOKENS.numpy()]  # [prompt, pos, head, d_head]
        gate: Any = stream.carried
        if stream.mix == "added_gate":
            x = cache["resid_pre", layer].numpy()
            x = x / np.sqrt((x**2).mean(-1, keepdims=True) + model.cfg.eps)
            x = x * weights[f"blocks.{layer}.ln1.w"]
            read = x[..., : stream.channels] @ weights[f"{mix}gate_weight"].T
            gate = (stream.scale or 1) / (1 + np.exp(-read))[..., None]
        torch.testing.assert_close(parts[layer][TABLE], torch.from_numpy(gate * rows))


def paths_by_hand(model: ResValTransformer) -> dict[Path, np.ndarray]:
    """What every head reads its values by, [d_model or d_vocab, d_head], along each path."""
    cfg = model.cfg
    weights = {k: v.numpy() for k, v in model.state_dict().items()}
    (stream,) = cfg.streams
    kept = "_W_V" if cfg.n_key_value_heads else "W_V"
    group = cfg.n_heads // (cfg.n_key_value_heads or cfg.n_heads)
    found = {}
    for layer in range(cfg.n_layers):
        own = weights[f"blocks.{layer}.attn.{kept}"]
        for head in range(cfg.n_heads):
            kv = head // group
            a = stream.own if stream.receives(layer) else 1
            found[Path(layer, layer, head, kv)] = a * own[kv]
            if stream.receives(layer):
                table = weights[f"blocks.{layer}.attn.mixes.v.table"]
                carried = weights.get(f"blocks.{layer}.attn.mixes.v.carried", stream.carried)
                for other in range(table.shape[1]) if stream.mix == "matrix" else [kv]:
                    w = carried[0, kv, other] if stream.mix == "matrix" else carried
                    found[Path(TABLE, layer, head, other)] = w * table[:, other]
    return found


@pytest.mark.parametrize("d_vocab", [13, 29], ids=["few tokens", "many tokens"])
@pytest.mark.parametrize(
    ("mix", "kv_heads"), [("mix=pair, own=0.5, carried=-0.7", 2), ("mix=matrix", None)]
)
@torch.no_grad()
def test_circuits_of_tables_are_dense_products(mix: str, kv_heads: Any, d_vocab: int) -> None:
    model = tiny_model(
        f"v(source=tokens, layers=(0, 2), {mix})", dtype=torch.float64, n_key_value_heads=kv_heads,
        d_vocab=d_vocab, d_vocab_out=d_vocab,
    ).eval()  # fmt: skip
    read = paths_by_hand(model)
    W_O, W_E, W_U = (x.numpy() for x in (model.W_O, model.W_E, model.W_U))
    ov = {path: matrix @ W_O[path.layer, path.head] for path, matrix in read.items()}
    for path in list(ov)[::3]:
        own = ov_circuit(model, path.layer, path.head, path.source, path.source_head)
        np.testing.assert_allclose(own.AB.numpy(), ov[path], atol=1e-12)
    copied = copying_scores(model)
    assert copied.keys() == ov.keys()
    for path, matrix in ov.items():
        between = matrix @ W_U if path.source == TABLE else W_E @ matrix @ W_U
        values = np.linalg.eigvals(between)
        assert copied[path] == pytest.approx(values.sum().real / np.abs(values).sum(), abs=1e-6)

    tokens, named = torch.arange(d_vocab)[:, None].expand(-1, 2), own_token_scores
    scores = named(model, tokens, top=3, which=[path for path in ov if path.source == TABLE])
    for path, score in scores.items():
        x = ov[path] - ov[path].mean(1, keepdims=True)
        x = x / np.sqrt((x**2).mean(1, keepdims=True) + model.cfg.eps)
        x = x * model.ln_final.w.numpy() + model.ln_final.b.numpy()
        best = (-(x @ W_U + model.b_U.numpy())).argsort(1)[:, :3]
        assert score == pytest.approx(np.mean([i in row for i, row in enumerate(best)]))

    W_Q, W_K = model.W_Q.numpy(), model.W_K.numpy()
    for mode in ("V", "K"):
        found = composition_scores(model, mode)
        for i, writer in enumerate(found.writers[::4]):
            for j, reader in enumerate(found.readers):
                own = (
                    ov[reader]
                    if mode == "V"
                    else (W_K[reader.layer, reader.head] @ W_Q[reader.layer, reader.head].T)
                )
                wanted = 0.0
                if writer.layer < reader.source:
                    norms = np.linalg.norm(ov[writer]) * np.linalg.norm(own)
                    wanted = np.linalg.norm(ov[writer] @ own) / norms
                assert found.scores[4 * i, j].item() == pytest.approx(wanted, abs=1e-9)


def test_a_report_says_what_comes_from_tables() -> None:
    for name, says in (("a0.h1 from t", True), ("a1.h1 from 0", False)):
        shares = {name: 1.0}
        study = AttributionStudy(
            facts("m"), False, 1.0, shares, shares, HeadShares(0.0, 1.0), {}, (), None
        )
        caption = str(attribution_table(study).caption)
        assert ("a2.h1 from t: its layer's table's" in caption) == says
