# ruff: noqa: E402  # sections of pages import what they need
"""What the value tables of a nanochat do."""

from resval_lens import ResValTransformer
from resval_lens.models.language_models import language_model_config

config = language_model_config(
    "stories-nanochat", "v(source=tokens, mix=added_gate, layers=(1,3,5), channels=32)", d_vocab=100
)
untrained = ResValTransformer(config)
for layer in (1, 3, 5):
    untrained.blocks[layer].attn.mixes["v"].table.data.normal_()
untrained.save_pretrained("d20")

# --8<-- [start:load]
import torch

from resval_lens.load import load_model

model = load_model("d20").model  # base_checkpoints/d20, or a name on the hub
tokens = torch.randint(model.cfg.d_vocab, (4, 64))  # or model.to_tokens(["...", ...])
# --8<-- [end:load]

# --8<-- [start:cut]
from resval_lens.hooks import cut_links

print(f"as it is: {model(tokens, return_type='loss').item():.3f} nats a token")
for layer in [layer for layer in range(model.cfg.n_layers) if model.blocks[layer].attn.mixes]:
    with cut_links(model, layers=layer):
        print(f"without the table of layer {layer}: {model(tokens, return_type='loss').item():.3f}")
# --8<-- [end:cut]

# --8<-- [start:gate]
_, cache = model.run_with_cache(tokens)
mix = model.blocks[3].attn.mixes["v"]
gate = mix.gate(model.blocks[3].ln1(cache["resid_pre", 3]), cache["v", 3].shape[2])
rows = cache["v_table", 3]  # what the table holds of each token, [batch, pos, head, d_head]
torch.testing.assert_close(gate * rows, cache["v_link", 3])
torch.testing.assert_close(cache["v_local", 3] + cache["v_link", 3], cache["v", 3])
print("how far the gate of each head is open:", gate.mean((0, 1)).flatten().tolist())
# --8<-- [end:gate]

# --8<-- [start:mixing]
weights = model.written_weights()  # [reader, what was written]: block 0, .., 5 and the readout
print("embeddings, as the readout reads them:", weights[-1, 0].item())
# --8<-- [end:mixing]
