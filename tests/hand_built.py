"""A model whose circuit is known, because it was built by hand."""

import torch

from resval_lens.hooks.prompts import PromptPairs, logit_difference
from resval_lens.transformer import ResValTransformer
from tests.helpers import tiny_config

LINKED_CIRCUIT = {"input->a0.h1<v>", "a0.h1<v>->a1.h1<v>", "a1.h1->logits"}


def linked_model() -> ResValTransformer:
    """Two attention-only layers that say which token they saw, by way of one link.

    Layer 0's head 1 reads a token into its values and writes nothing; layer 1's head 1 computes no
    values of its own, receives those, and writes them out as logits. All attention is uniform.
    """
    model = ResValTransformer(
        tiny_config(streams="v", n_layers=2, attn_only=True, normalization_type=None,
                    d_model=32, d_head=16, d_vocab=13)
    )  # fmt: skip
    for parameter in model.parameters():
        parameter.data.zero_()
    d_vocab, (first, second) = model.cfg.d_vocab, (block.attn for block in model.blocks)
    model.embed.W_E.data[:, :d_vocab] = torch.eye(d_vocab)
    first.W_V.data[1, :d_vocab, :d_vocab] = torch.eye(d_vocab)
    second.W_O.data[1, :d_vocab, d_vocab : 2 * d_vocab] = torch.eye(d_vocab)
    model.unembed.W_U.data[d_vocab : 2 * d_vocab] = torch.eye(d_vocab)
    return model


def linked_pairs() -> PromptPairs:
    """Prompts in which token 3 stands once; in their corrupted prompts token 5 stands there."""
    clean = torch.tensor([[1, 3, 2, 4], [3, 6, 1, 2], [7, 8, 1, 3]])
    corrupted = torch.where(clean == 3, 5, clean)
    return PromptPairs(clean, corrupted, logit_difference, torch.tensor([[3, 5]] * 3))
