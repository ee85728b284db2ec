"""Training steps beside plain PyTorch models with the same kernels."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from resval_lens import ICLClassifier, ResValConfig, ResValTransformer, classifier_config
from resval_lens.analyses.papers.memory.model import MemoryTransformer, fast_logits, memory_config
from resval_lens.analyses.papers.memory.tasks.bigrams import tiny_shakespeare
from resval_lens.analyses.papers.memory.tasks.triggers import TriggerTask
from resval_lens.host import HookedTransformer, HookedTransformerConfig
from resval_lens.models.answer import answer
from resval_lens.models.language_models import language_model_config, preset
from resval_lens.tasks.icl import ICLTask, ICLWorld
from tests.benchmarks import plain_gpt, plain_icl, plain_llama
from tests.benchmarks.gpu.models import plain_peer
from tests.benchmarks.timing import Step


def classifier_peers() -> dict[str, Step]:
    """One SGD step with its batch: a hand-written torch loop and ours."""

    def plain(stream: str) -> Step:
        losses = plain_icl.losses(10**9, stream, seed=0)
        return lambda: next(losses)

    def ours(streams: str) -> Step:
        generator = torch.Generator().manual_seed(0)
        world = ICLWorld(ICLTask(), generator)
        model = ICLClassifier(classifier_config(streams), generator=generator)
        parameters = [p for p in model.parameters() if p.requires_grad]
        sgd = torch.optim.SGD(parameters, lr=0.01, weight_decay=1e-4, foreach=True)

        def step() -> None:
            batch = world.batch(128, generator)
            loss = F.cross_entropy(answer(model, batch.inputs), batch.targets)
            sgd.zero_grad()
            loss.backward()
            sgd.step()

        return step

    return {
        "plain torch loop, classic": plain(""),
        "plain torch loop, values": plain("v"),
        "resval-lens, classic": ours(""),
        "resval-lens, values": ours("v"),
    }


def batch_peers() -> dict[str, Step]:
    """The classifier's batch alone."""
    generator = torch.Generator().manual_seed(0)
    world, tables = ICLWorld(ICLTask(), generator), plain_icl.make_tables(generator)
    return {
        "plain torch": lambda: plain_icl.make_batch(generator, tables, 128),
        "resval-lens": lambda: world.batch(128, generator),
    }


def language_model_peers(
    vocabulary: int, dropout: bool, rows: int = 8, compiled: bool = False
) -> dict[str, Step]:
    """One training step of the preset tinystories-8m: forward, backward, AdamW.

    HookedTransformer, which has no dropout, is among the peers without; nor has it a tied
    embedding, so that it updates one more matrix. The plain GPT has both, as ours.
    """
    settings = dict(preset("tinystories-8m", "paper").model, d_vocab=vocabulary, device="cpu")
    own = {name: settings.pop(name) for name in ("dropout", "tied_embedding")}
    if not dropout:
        own["dropout"] = 0.0
    plain = plain_gpt.GPTConfig(vocab=vocabulary, dropout=own["dropout"], tied=True)
    models: dict[str, Any] = {}
    if not dropout and not compiled:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            stock = HookedTransformer(HookedTransformerConfig(**settings))
        models["stock HookedTransformer"] = stock
    models |= {
        "plain GPT with SDPA": plain_gpt.GPT(plain),
        "plain GPT with SDPA, values": plain_gpt.GPT(replace(plain, stream="v")),
        "ResValTransformer, classic": ResValTransformer(ResValConfig(**settings, **own)),
        "ResValTransformer, values": ResValTransformer(
            ResValConfig(**settings, **own, streams="v")
        ),
    }
    return _steps(models, vocabulary, rows, 256, compiled)


def llama_peers(
    layers: int = 2, vocabulary: int = 1024, tokens: int = 256, compiled: bool = False
) -> dict[str, Step]:
    """One training step of blocks of the preset llama-1b at their real width.

    A small vocabulary, so that it is the blocks that are measured.
    """
    models: dict[str, Any] = {}
    for streams, kind in (("", "classic"), ("v", "values")):
        cfg = language_model_config(
            "llama-1b", streams, "reference", "raw" if streams else None, n_layers=layers,
            d_vocab=vocabulary, n_ctx=tokens, device="cpu",
        )  # fmt: skip
        models[f"plain Llama with SDPA, {kind}"] = plain_peer(cfg)
        models[f"ResValTransformer, {kind}"] = ResValTransformer(cfg)
    return _steps(models, vocabulary, 1, tokens, compiled)


def _steps(
    models: Mapping[str, Any], vocabulary: int, rows: int, length: int, compiled: bool
) -> dict[str, Step]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (rows, length + 1), generator=generator)
    x, y = tokens[:, :-1], tokens[:, 1:]

    def loss(model: Any, run: Any) -> torch.Tensor:
        if isinstance(model, plain_gpt.GPT | plain_llama.Llama):
            return run(x, y)
        if isinstance(model, ResValTransformer):
            return run(x, targets=y) / y.numel()
        return F.cross_entropy(run(x).flatten(0, 1), y.flatten())

    def step(model: Any) -> Step:
        trained = [p for p in model.train().parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
        run = torch.compile(model) if compiled else model

        def one() -> None:
            loss(model, run).backward()
            optimizer.step()
            optimizer.zero_grad()

        return one

    return {name: step(model) for name, model in models.items()}


def memory_peers(positions: Any, batch: int = 64) -> dict[str, Step]:
    """One SGD step of a simplified transformer: the hooked model, and its logits as trained."""
    task = TriggerTask(tiny_shakespeare())

    def step(fast: bool) -> Step:
        generator = torch.Generator().manual_seed(0)
        config = memory_config(task.bigrams.d_vocab, positions, "v", n_ctx=256)
        model = MemoryTransformer(config, generator=generator)
        parameters = [p for p in model.parameters() if p.requires_grad]
        sgd = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, foreach=True)
        logits_of = partial(fast_logits, model) if fast else model

        def run() -> None:
            drawn = task.batch(batch, generator)
            logits = logits_of(drawn.inputs)
            loss = F.cross_entropy(logits.flatten(0, 1), drawn.targets.flatten())
            sgd.zero_grad()
            loss.backward()
            sgd.step()

        return run

    return {"hooked model": step(False), "fast_logits": step(True)}
