"""Real size: SmolLM2-135M, or without it a random model of its shape, and four prompts.

Prompts are IOI's, of one length (random tokens without SmolLM2).
"""

import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resval_lens import ResValTransformer
from resval_lens.analyses.tasks.problem import pose
from resval_lens.hooks.prompts import PromptPairs, logit_difference
from resval_lens.host import HookedTransformer
from resval_lens.models.language_models import language_model_config
from tests.benchmarks.edges import as_stock
from tests.benchmarks.gpu.analyses import SIZES
from tests.benchmarks.published import Library, Published, Reference
from tests.pretrained import SMOLLM2
from tests.reference.eap import DenseTable

PROMPTS, LENGTH = 4, 19
ROUNDS = 3


class Setting:
    """A model, its prompts, and what peers need of them; each is made when it is asked for."""

    def __init__(self, eap_ig: Path | None = None, streams: str = "") -> None:
        """
        Args:
            eap_ig: folder of EAP-IG's package, to be measured instead of the code after it.
            streams: of a random model.
        """
        self.eap_ig = eap_ig
        self.texts: tuple[Any, ...] = ()
        if not streams and (SMOLLM2 / "config.json").is_file():
            self.name = "SmolLM2-135M"
            problem = pose(str(SMOLLM2), 32, task="ioi").of_one_length().rows(slice(0, PROMPTS))
            self.model, self.pairs, self.texts = problem.model, problem.pairs, problem.prompts
        else:
            self.name = "a random model of SmolLM2-135M's shape"
            cfg = language_model_config("llama-1b", streams, **SIZES["135M"], device="cpu")
            self.model, self.pairs = ResValTransformer(cfg), random_pairs(cfg.d_vocab)
        self.title = f"{self.name}, {PROMPTS} × {self.pairs.length} tokens"

    @cached_property
    def stock(self) -> HookedTransformer:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return as_stock(self.model)

    @cached_property
    def published(self) -> Published:
        table = DenseTable(self.stock)
        if self.eap_ig is None:
            return Reference(table, self.pairs)
        return Library(self.eap_ig, table, self.pairs)

    @cached_property
    def clean_cache(self) -> Any:
        with torch.no_grad():
            return self.stock.run_with_cache(self.pairs.clean)[1]

    def metric(self, logits: Tensor) -> Tensor:
        """Mean over prompts, as TransformerLens's functions take it."""
        return logit_difference(logits[:, -1], self.pairs.labels).mean()


def random_pairs(vocabulary: int) -> PromptPairs:
    """Random tokens; two in the last third differ, as where a name is another."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(vocabulary, (PROMPTS, LENGTH), generator=generator)
    corrupted = clean.clone()
    differing = slice(2 * LENGTH // 3, 2 * LENGTH // 3 + 2)
    corrupted[:, differing] = torch.randint(vocabulary, (PROMPTS, 2), generator=generator)
    labels = torch.randint(vocabulary, (PROMPTS, 2), generator=generator)
    return PromptPairs(clean, corrupted, logit_difference, labels)


def agree(ours: Tensor, theirs: Tensor) -> None:
    """To a thousandth of the largest."""
    torch.testing.assert_close(
        ours.float(), theirs.float(), rtol=1e-3, atol=1e-3 * theirs.abs().max().item()
    )


def plain(model: HookedTransformer) -> HookedTransformer:
    """Without the hook points that edges need."""
    model.set_use_attn_result(False)
    model.set_use_split_qkv_input(False)
    model.set_use_hook_mlp_in(False)
    return model
