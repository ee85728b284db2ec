"""Value tables: looked up by the token, cut, and asked for their part of a logit."""

# --8<-- [start:tables]
import torch

from resval_lens import ResValConfig, ResValTransformer
from resval_lens.hooks import cut_links

cfg = ResValConfig(
    n_layers=4, d_model=64, n_heads=4, d_head=16, d_vocab=100, n_ctx=32, act_fn="gelu",
    streams="v(source=tokens, mix=added_gate, layers=(1,3))", residual_mixing="embedding",
)  # fmt: skip
model = ResValTransformer(cfg)
tokens = torch.randint(100, (2, 32), generator=torch.Generator().manual_seed(0))
logits, cache = model.run_with_cache(tokens)
table = model.blocks[3].attn.mixes["v"].table  # [100, 4, 16], 0 until it is trained
assert torch.equal(cache["v_table", 3], table[tokens])
with cut_links(model, ["v3.h2"]):  # head 2 of layer 3 without what the table holds
    without = model(tokens)
# --8<-- [end:tables]
torch.testing.assert_close(logits, without)
