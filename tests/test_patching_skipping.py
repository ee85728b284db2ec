"""Patching where values and states skip layers is whole runs of each prompt, with plain hooks."""

from typing import Any

import pytest
import torch
from torch import Tensor

from resval_lens.hooks import patch, path_patch, path_patch_each
from resval_lens.hooks.links import links
from resval_lens.hooks.patching import patch_by_metrics
from resval_lens.hooks.prompts import PromptPairs, logit_difference, probability
from resval_lens.lens.hook_names import full_hook_name
from resval_lens.transformer import ResValTransformer
from tests.reference.path_patching import Algorithm1
from tests.skipping import MODELS, skipping_model

LENGTHS, WIDTH = (9, 6, 8), 10
LABELS = torch.tensor([[1, 2], [3, 4], [5, 0]])
SITES = {
    "nanochat": ["resid_pre", "resid_post", "mlp_out", "z", "q", "k", "v", "rot_q", "v_link",
                 "v_local", "v_table", "pattern", "attn_out", "resid_mid"],
    "all tables": ["resid_pre", "q_table", "k_link", "v", "z", "rot_k"],
    "tables alone": ["resid_pre", "v_table", "v_link", "v", "pattern"],
    "previous values": ["resid_pre", "resid_post", "v_link", "v_local", "z"],
    "smeared": ["resid_pre", "z"],
}  # fmt: skip


SIDES = ["left", "both", "left", "right", "left"]


def texts(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 13, (n,), generator=generator) for n in LENGTHS]


CLEAN, CORRUPTED = texts(0), texts(1)
for clean, corrupted in zip(CLEAN, CORRUPTED, strict=True):
    corrupted[:2] = clean[:2]


def pairs(side: str) -> PromptPairs:
    """Rows of unequal length with padding that only the mask tells from tokens."""
    before = {"left": [WIDTH - n for n in LENGTHS], "right": [0, 0, 0], "both": [1, 2, 0]}[side]
    rows, mask = torch.full((2, 3, WIDTH), 7), torch.zeros(3, WIDTH).bool()
    for i, (n, skip) in enumerate(zip(LENGTHS, before, strict=True)):
        mask[i, skip : skip + n] = True
        for tokens, own in zip(rows, (CLEAN, CORRUPTED), strict=True):
            tokens[i, skip : skip + n] = own[i]
    return PromptPairs(*rows, logit_difference, LABELS, mask=mask)


@torch.no_grad()
def alone(
    model: ResValTransformer, row: int, name: str, columns: list[int], heads: list[int] | None
) -> Tensor:
    """Answer logits of one corrupted prompt with a hook that takes cells of the clean run."""
    other = model.run_with_cache(CLEAN[row][None])[1].cache_dict[name]

    def put(x: Tensor, hook: Any) -> Tensor:
        x = x.clone()
        for column in columns:
            if name.endswith("pattern"):
                x[:, heads, column] = other[:, heads, column]
            elif heads is None:
                x[:, column] = other[:, column]
            else:
                x[:, column, heads] = other[:, column, heads]
        return x

    return model.run_with_hooks(CORRUPTED[row][None], fwd_hooks=[(name, put)])[0, -1]


@pytest.mark.parametrize(("name", "side"), list(zip(MODELS, SIDES, strict=True)))
def test_every_site_is_whole_runs_of_each_prompt_alone(name: str, side: str) -> None:
    model, given = skipping_model(name), pairs(side)
    assert given.mask is not None
    first = given.mask.int().argmax(1).tolist()
    metrics = {"difference": logit_difference, "P": probability}
    moved = 0.0
    for site in SITES[name]:
        has_heads = not site.startswith(("resid", "mlp", "attn_out"))
        cells: Any = {"positions": [4, 6], **({"heads": [-1]} if has_heads else {})}
        found = patch_by_metrics(model, given, site, metrics, **cells, max_tokens=200)
        layers = found["P"].axes["layer"]
        heads = found["P"].axes.get("head")
        for layer, row, column in ((0, 0, 0), (-1, 1, 0), (-1, 2, 1)):
            point = full_hook_name(site, layers[layer])
            where = [cells["positions"][column] - first[row]]
            logits = alone(model, row, point, where, heads)[None]
            for which, metric in metrics.items():
                wanted = metric(logits, LABELS[row][None])[0]
                own = found[which].per_prompt[layer, column].flatten()[row]
                torch.testing.assert_close(own, wanted, rtol=1e-9, atol=1e-10)
            moved = max(moved, float((own - found["P"].base).abs()))
        whole = patch(model, given, site, by=["layer"], layers=[-1]).per_prompt[0]
        heads = None if heads is None else list(range(heads[0] + 1))
        for row in (0, 1):
            every = list(range(LENGTHS[row]))
            logits = alone(model, row, full_hook_name(site, layers[-1]), every, heads)[None]
            wanted = logit_difference(logits, LABELS[row][None])[0]
            torch.testing.assert_close(whole[row], wanted, rtol=1e-9, atol=1e-10)
    assert moved > 1e-3


def senders_of(model: ResValTransformer) -> list[str]:
    into = links(model, layers=[2], heads=[1]) if model.cfg.streams else ()
    return ["input", "a1.h3", "m0", "a2.h0", *map(str, into)]


RECEIVERS = [["logits"], ["a3.h0<v>"], ["a3.h1<q>", "a3.h0<k>", "m3"]]


@pytest.mark.parametrize("mode", ["frozen", "through"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_paths_are_algorithm_1_of_whole_runs(name: str, mode: Any) -> None:
    model = skipping_model(name, use_hook_mlp_in=True)
    clean, corrupted = (torch.stack([row[:6] for row in own]) for own in (CLEAN, CORRUPTED))
    given = PromptPairs(clean, corrupted, logit_difference, LABELS)
    reference = Algorithm1(model, clean, corrupted)
    senders = senders_of(model)
    for receivers in RECEIVERS + ([["v3.h1"]] if "gate" in str(model.cfg.streams) else []):
        found = path_patch_each(model, given, senders, receivers, mode)
        if name != "tables alone" or receivers[0] != "a3.h0<v>":  # own values count for nothing
            assert found.effect.abs().max() > 1e-6
        for i, sender in enumerate(senders):
            wanted = logit_difference(reference.logits([sender], receivers, mode)[:, -1], LABELS)
            torch.testing.assert_close(found.patched[i], wanted, rtol=1e-9, atol=1e-10)
        together = path_patch(model, given, senders, receivers, mode).patched
        wanted = logit_difference(reference.logits(senders, receivers, mode)[:, -1], LABELS)
        torch.testing.assert_close(together, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_paths_of_padded_prompts_are_those_of_each_prompt_alone(side: str) -> None:
    model = skipping_model("nanochat")
    senders, receivers = ["input", "a0.h1", "v2.h0"], ["a3.h1<v>", "m3"]
    found = path_patch_each(model, pairs(side), senders, receivers, "through", max_tokens=40)
    for row in range(3):
        own = PromptPairs(
            CLEAN[row][None], CORRUPTED[row][None], logit_difference, LABELS[row][None]
        )
        wanted = path_patch_each(model, own, senders, receivers, "through")
        torch.testing.assert_close(found.patched[:, row], wanted.patched[:, 0])
        torch.testing.assert_close(found.clean[row], wanted.clean[0])
