"""What every model that was converted from elsewhere does."""

from pathlib import Path

import torch
from torch import Tensor
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

from resval_lens import ResValTransformer
from resval_lens.hooks import cut_links


def drawn(
    shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """A state of these shapes, norms' gains and mixing among them, none at its initial value."""
    generator = torch.Generator().manual_seed(0)

    def one(shape: tuple[int, ...]) -> Tensor:
        scale = 1.5 * shape[-1] ** -0.5 if len(shape) > 1 else 0.3
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    return {name: one(shape) for name, shape in shapes.items()}


def ids(vocabulary: int, length: int = 12) -> Tensor:
    return torch.randint(vocabulary, (2, length), generator=torch.Generator().manual_seed(1))


def assert_as_any_model(model: ResValTransformer, tokens: Tensor, folder: Path) -> None:
    """Saved and loaded it is the same; a key-value cache changes nothing; links can be cut."""
    with torch.no_grad():
        logits = model(tokens)
        model.save_pretrained(folder)
        again = ResValTransformer.from_pretrained(folder)
        assert torch.equal(again(tokens), logits)
        assert again.cfg == model.cfg
        cache = TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, len(tokens))
        parts = [
            model(part, past_kv_cache=cache, attention_mask=torch.ones_like(part))
            for part in (tokens[:, :5], *tokens[:, 5:].split(1, 1))
        ]
        torch.testing.assert_close(torch.cat(parts, 1), logits, atol=2e-5, rtol=0)
        with cut_links(model):
            cut = model(tokens)
        assert (cut - logits).abs().max() > 0.01
        assert torch.equal(model(tokens), logits)
