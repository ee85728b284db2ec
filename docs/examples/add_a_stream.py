# ruff: noqa: E402  # sections of pages import what they need
"""Stream variants that are settings, and a check of any variant against its formula."""

# --8<-- [start:settings]
import torch

from resval_lens import AttentionStream, ResValConfig, ResValTransformer

resformer = AttentionStream(of="v", source="first", mix="pair", own=0.5, carried=0.5)
late = AttentionStream(of="v", mix="scalar", layers=(2, 3))  # learned; the last two
weighted = AttentionStream(of="v", source="all", mix="head")  # learned for each head
shape = {
    "n_layers": 4, "d_model": 64, "n_heads": 4, "d_head": 16, "d_vocab": 100,
    "n_ctx": 32, "act_fn": "gelu",
}  # fmt: skip
models = {
    str(stream): ResValTransformer(ResValConfig(**shape, streams=stream))
    for stream in (resformer, late, weighted)
}
# --8<-- [end:settings]

# --8<-- [start:check]
model = models[str(resformer)]
tokens = torch.randint(100, (2, 32), generator=torch.Generator().manual_seed(0))
_, cache = model.run_with_cache(tokens)
for layer in range(1, 4):
    attention = model.blocks[layer].attn
    x = cache["normalized", layer, "ln1"]
    local = torch.einsum("bpd,hde->bphe", x, attention.W_V) + attention.b_V
    torch.testing.assert_close(cache["v", layer], 0.5 * local + 0.5 * cache["v", 0])
# --8<-- [end:check]

# --8<-- [start:mix]
import math

from resval_lens.mixes import MIXES, Scalar, Start


class Tanh(Scalar):
    """b = tanh λ, λ learned, one per layer."""

    name = "tanh"
    b = "tanh λ"
    where = "λ learned, one per layer"
    default = (1.0, 0.5)

    def settle(self, stream):
        settled = super().settle(stream)
        if not -1 < settled["carried"] < 1:
            raise ValueError(
                "AttentionStream.carried must lie strictly between -1 and 1 for "
                f"mix={self.name!r}; got {settled['carried']!r}"
            )
        return settled

    def parameters(self, stream, sizes):
        return {"carried": Start((sizes.sources,), math.atanh(stream.carried))}

    def weights(self, at, gate=None):
        return at.fixed[0], tuple(at.carried.tanh())


MIXES["tanh"] = Tanh()
# --8<-- [end:mix]

bounded = ResValTransformer(ResValConfig(**shape, streams="v(mix=tanh)"))
_, cache = bounded.run_with_cache(tokens)
torch.testing.assert_close(cache["v", 1], cache["v_local", 1] + 0.5 * cache["v", 0])
del MIXES["tanh"]
