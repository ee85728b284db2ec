"""``make bench``: speed as ratios against peers, measured in turn in one process.

Each table's peers take turns, round by round, so that drift of the machine's speed meets all of
them; a ratio is the median over rounds of (this one's time / the first one's time of that round).
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.table import Table
from transformer_lens import HookedTransformer, HookedTransformerConfig

from resval_lens import ICLClassifier, ResValConfig, ResValTransformer, classifier_config
from resval_lens.analyses.papers.memory.model import MemoryTransformer, fast_logits, memory_config
from resval_lens.analyses.papers.memory.tasks.bigrams import tiny_shakespeare
from resval_lens.analyses.papers.memory.tasks.triggers import TriggerTask
from resval_lens.models.answer import answer
from resval_lens.models.language_models import preset
from resval_lens.runtime import keep_freed_memory
from resval_lens.tasks.icl import ICLTask, ICLWorld
from tests.benchmarks import edges, patching, plain_gpt, plain_icl

Step = Callable[[], object]


def timed(peers: dict[str, Step], rounds: int, repeats: int) -> dict[str, list[float]]:
    """Seconds per call, a list over rounds for each peer."""
    for step in peers.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(rounds):
        for name, step in peers.items():
            start = time.perf_counter()
            for _ in range(repeats):
                step()
            seconds[name].append((time.perf_counter() - start) / repeats)
    return seconds


def show(title: str, seconds: dict[str, list[float]]) -> None:
    first = next(iter(seconds))
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for column in ("median ms", f"ratio to {first}", "range of the ratio"):
        table.add_column(column, justify="right")
    for name, own in seconds.items():
        ratios = [a / b for a, b in zip(own, seconds[first], strict=True)]
        table.add_row(
            name,
            f"{statistics.median(own) * 1e3:.2f}",
            f"{statistics.median(ratios):.3f}",
            f"{min(ratios):.2f} – {max(ratios):.2f}",
        )
    Console().print(table)


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


def language_model_peers(vocabulary: int, dropout: bool, rows: int = 8) -> dict[str, Step]:
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
    if not dropout:
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
    tokens = torch.randint(vocabulary, (rows, 257), generator=torch.Generator().manual_seed(0))
    x, y = tokens[:, :-1], tokens[:, 1:]

    def loss(model: Any) -> torch.Tensor:
        if isinstance(model, plain_gpt.GPT):
            return model(x, y)
        if isinstance(model, ResValTransformer):
            return model(x, targets=y) / y.numel()
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten())

    def step(model: Any) -> Step:
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3, fused=True)

        def run() -> None:
            loss(model).backward()
            optimizer.step()
            optimizer.zero_grad()

        return run

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


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vocabulary", type=int, default=50_257)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    print(f"threads: {options.threads}\n")
    title = "Two-layer classifier: one training step, its batch of 128 included"
    show(title, timed(classifier_peers(), options.rounds, repeats=40))
    generator = torch.Generator().manual_seed(0)
    world, tables = ICLWorld(ICLTask(), generator), plain_icl.make_tables(generator)
    peers: dict[str, Step] = {
        "plain torch": lambda: plain_icl.make_batch(generator, tables, 128),
        "resval-lens": lambda: world.batch(128, generator),
    }
    show("The batch alone", timed(peers, options.rounds, repeats=200))
    for positions in ("absolute", "relative"):
        title = (
            f"Simplified transformer, {positions} positions, values: one step of 64 × 128 tokens"
        )
        show(title, timed(memory_peers(positions), options.rounds, repeats=3))
    title = f"tinystories-8m: one training step of 8 × 256 tokens, vocabulary {options.vocabulary}"
    for dropout in (False, True):
        peers = language_model_peers(options.vocabulary, dropout)
        with_it = "with" if dropout else "without"
        show(f"{title}, {with_it} dropout", timed(peers, options.rounds, repeats=1))
    print("Patching: TransformerLens's seconds for the same cells / ours")
    for corrupted, what in (("corrupted", "one name differs"), ("other", "all differ")):
        for name, found in patching.ratios(options.rounds, corrupted).items():
            print(f"  {name}, {what}: {spread(found)}", flush=True)
    print("Edge scores (EAP-IG): seconds of a dense table of writers / ours")
    print(f"  {spread(edges.ratios(options.rounds))}")


def spread(ratios: list[float]) -> str:
    """The median, and the smallest and the largest."""
    return f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"


if __name__ == "__main__":
    main()
