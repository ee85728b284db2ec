"""What heads do, at real size, beside plain hooks in a loop."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from resval_lens.analyses.attribution.heads import head_scores, repeated_tokens
from resval_lens.analyses.attribution.logits import attribute
from resval_lens.analyses.studies.roles import head_roles
from resval_lens.hooks.prompts import logit_difference, probability
from resval_lens.tasks.ioi import IOIPrompt
from tests.benchmarks.real_size import ROUNDS, Setting, agree, plain
from tests.benchmarks.timing import Step, show, timed
from tests.reference.path_patching import Algorithm1

EVERY = 9
"""Of heads that are alike, a loop runs every ninth."""


def heads() -> None:
    at = Setting()
    answers = at.pairs.answers

    def attributed() -> Tensor:
        return attribute(at.model, at.pairs.clean, at.pairs.labels, answers).heads.sum(2)

    agree(attributed(), head_by_head(at))
    peers: dict[str, Step] = {"plain hooks": partial(head_by_head, at), "ours": attributed}
    show(f"{at.title}: direct attribution", timed(peers, ROUNDS))
    repeated = repeated_tokens(at.model, torch.Generator().manual_seed(0), n=4, length=25)

    def scored() -> Tensor:
        return torch.stack(list(head_scores(at.model, repeated)))

    agree(scored(), scored_head_by_head(at, repeated.tokens, repeated.start, repeated.length))
    peers = {
        "plain hooks": lambda: scored_head_by_head(
            at, repeated.tokens, repeated.start, repeated.length
        ),
        "ours": scored,
    }
    show(f"{at.name}: induction scores of 4 × 50 tokens", timed(peers, ROUNDS))
    if at.texts:
        roles(at)


@torch.no_grad()
def head_by_head(at: Setting) -> Tensor:
    """Direct logit attribution [prompt, layer, head], each head by a hook of its own."""
    model, (first, second) = plain(at.stock), at.pairs.labels.unbind(1)
    z: dict[tuple[int, int], Tensor] = {}
    scale: list[Tensor] = []

    def keep(x: Tensor, hook: Any, layer: int, head: int) -> None:
        z[layer, head] = x[:, -1, head]

    hooks: list[Any] = [
        (f"blocks.{layer}.attn.hook_z", partial(keep, layer=layer, head=head))
        for layer in range(model.cfg.n_layers)
        for head in range(model.cfg.n_heads)
    ]
    hooks.append(("ln_final.hook_scale", lambda x, hook: scale.append(x[:, -1])))
    model.run_with_hooks(at.pairs.clean, fwd_hooks=hooks)
    direction = (model.W_U.T[first] - model.W_U.T[second]) * model.ln_final.w / scale[0]
    found = [
        (z[layer, head] @ model.blocks[layer].attn.W_O[head] * direction).sum(-1)
        for layer, head in z
    ]
    return torch.stack(found, 1).unflatten(1, (model.cfg.n_layers, model.cfg.n_heads))


@torch.no_grad()
def scored_head_by_head(at: Setting, tokens: Tensor, start: int, length: int) -> Tensor:
    """Previous token, duplicate token and prefix matching, [score, layer, head]."""
    model = plain(at.stock)
    found = torch.zeros(3, model.cfg.n_layers, model.cfg.n_heads)

    def score(pattern: Tensor, hook: Any, head: int) -> None:
        own = pattern[:, head]  # [row, query, key]
        again = own[:, start + length :]
        diagonals = (
            own.diagonal(-1, 1, 2),
            again.diagonal(start, 1, 2),
            again.diagonal(start + 1, 1, 2),
        )
        found[:, hook.layer(), head] = torch.stack([x.mean() for x in diagonals])

    hooks = [
        (f"blocks.{layer}.attn.hook_pattern", partial(score, head=head))
        for layer in range(model.cfg.n_layers)
        for head in range(model.cfg.n_heads)
    ]
    model.run_with_hooks(tokens, fwd_hooks=hooks)
    return found


def roles(at: Setting) -> None:
    """All that head_roles measures, beside its noising and its path patching alone in a loop."""
    texts: list[IOIPrompt] = list(at.texts)
    found = head_roles(at.model, texts)
    readers = [f"{head.head}<q>" for role in ("name mover", "subject suppressor")
               for head in found.roles[role]]  # fmt: skip
    last = max((int(name[1:].partition(".")[0]) for name in readers), default=0)
    every = [(layer, head) for layer in range(at.model.cfg.n_layers)
             for head in range(at.model.cfg.n_heads)]  # fmt: skip
    model, pairs = plain(at.stock), at.pairs

    @torch.no_grad()
    def noised() -> None:
        _, cache = model.run_with_cache(
            pairs.corrupted, names_filter=lambda x: x.endswith("hook_z")
        )
        for layer, head in every[::EVERY]:

            def put(z: Tensor, hook: Any, head: int = head) -> Tensor:
                z[:, :, head] = cache[hook.name][:, :, head]
                return z

            hooks = [(f"blocks.{layer}.attn.hook_z", put)]
            logits = model.run_with_hooks(pairs.clean, fwd_hooks=hooks)[:, -1]
            logit_difference(logits, pairs.labels).mean()
            probability(logits, pairs.labels).mean()

    @torch.no_grad()
    def path_patched() -> None:
        way = Algorithm1(model, pairs.clean, pairs.corrupted)
        for layer, head in every[: last * at.model.cfg.n_heads : EVERY]:
            way.logits([f"a{layer}.h{head}"], readers, "frozen")

    peers: dict[str, Step] = {"noised": noised, "ours": lambda: head_roles(at.model, texts)}
    if last:
        peers["path patched"] = path_patched
    seconds = timed(peers, 1, warm=False)
    name = f"plain hooks: noising{', path patching' if last else ''} (every {EVERY}th head)"
    theirs = [
        EVERY * sum(x) for x in zip(*(v for k, v in seconds.items() if k != "ours"), strict=True)
    ]
    show(f"{at.title}: head roles", {name: theirs, "ours": seconds["ours"]})
