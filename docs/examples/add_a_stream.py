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
