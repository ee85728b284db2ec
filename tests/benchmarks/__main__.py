"""``make bench``: speed as ratios against peers, measured in turn in one process.

One thread; time is the processor's. The tables named real-… are of SmolLM2-135M (``make
pretrained``), or without it of a random model of its shape.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from resval_lens.runtime import keep_freed_memory
from tests.benchmarks import (
    edges,
    memory,
    patching,
    real_circuits,
    real_heads,
    real_patching,
    training,
)
from tests.benchmarks.timing import show, spread, timed


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=7, help="of the small tables")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vocabulary", type=int, default=50_257)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=TABLES, help=", ".join(TABLES))
    parser.add_argument(
        "--eap-ig", type=Path, metavar="FOLDER",
        help="folder that holds the package eap of github.com/hannamw/EAP-IG, to be measured "
        "instead of this project's code after it",
    )  # fmt: skip
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    print(f"threads: {options.threads}\n")
    for name in options.only or [name for name in TABLES if name not in ON_REQUEST]:
        TABLES[name](options)


def classifier(options: argparse.Namespace) -> None:
    title = "Two-layer classifier: one training step, its batch of 128 included"
    show(title, timed(training.classifier_peers(), options.rounds, repeats=40))
    show("The batch alone", timed(training.batch_peers(), options.rounds, repeats=200))


def associative_memory(options: argparse.Namespace) -> None:
    for positions in ("absolute", "relative"):
        title = (
            f"Simplified transformer, {positions} positions, values: one step of 64 × 128 tokens"
        )
        show(title, timed(training.memory_peers(positions), options.rounds, repeats=3))


def language_model(options: argparse.Namespace) -> None:
    for dropout in (False, True):
        peers = training.language_model_peers(options.vocabulary, dropout)
        show(_training_title(options, dropout), timed(peers, options.rounds))


def _training_title(options: argparse.Namespace, dropout: bool) -> str:
    title = f"tinystories-8m: one training step of 8 × 256 tokens, vocabulary {options.vocabulary}"
    return f"{title}, {'with' if dropout else 'without'} dropout"


def llama(options: argparse.Namespace) -> None:
    title = "llama-1b, two of its blocks: one training step of 256 tokens, vocabulary 1,024"
    show(title, timed(training.llama_peers(), min(options.rounds, 3)))


def compiled(options: argparse.Namespace) -> None:
    peers = training.language_model_peers(options.vocabulary, dropout=False, compiled=True)
    show(f"{_training_title(options, False)}, compiled", timed(peers, options.rounds))
    title = "llama-1b, two of its blocks: one training step of 256 tokens, compiled"
    show(title, timed(training.llama_peers(compiled=True), min(options.rounds, 3)))


def small_patching(options: argparse.Namespace) -> None:
    print("Patching, stories-small-values: TransformerLens's seconds for the same cells / ours")
    for corrupted, what in (("corrupted", "one name differs"), ("other", "all differ")):
        for name, found in patching.peers(options.rounds, corrupted).items():
            print(f"  {name}, {what}: {spread(found)}", flush=True)


def small_edges(options: argparse.Namespace) -> None:
    print("Edge scores (EAP-IG), stories-small-classic: seconds of a dense table of writers / ours")
    print(f"  {spread(edges.peers(options.rounds))}\n")


def real(measure: Callable[[Path | None], None]) -> Callable[[argparse.Namespace], None]:
    return lambda options: measure(options.eap_ig)


TABLES: dict[str, Callable[[argparse.Namespace], None]] = {
    "classifier": classifier,
    "associative-memory": associative_memory,
    "language-model": language_model,
    "llama": llama,
    "compiled": compiled,
    "patching": small_patching,
    "edges": small_edges,
    "real-edges": real(real_circuits.edge_scores),
    "real-circuits": real(real_circuits.circuits),
    "real-patching": lambda options: real_patching.patched(),
    "real-heads": lambda options: real_heads.heads(),
    "real-memory": real(memory.show_all),
}
ON_REQUEST = ("compiled",)
"""Minutes of compiling."""


if __name__ == "__main__":
    main()
