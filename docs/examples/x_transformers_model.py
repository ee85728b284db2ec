# ruff: noqa: E402  # sections of pages import what they need
"""A model of x-transformers, from memory and as a folder."""

from tempfile import mkdtemp

from x_transformers import Decoder, TransformerWrapper

layers = {"dim": 64, "depth": 3, "heads": 4, "attn_dim_head": 16, "add_value_residual": True}
shape = {"num_tokens": 512, "max_seq_len": 64}
wrapper = TransformerWrapper(**shape, attn_layers=Decoder(**layers))

# --8<-- [start:object]
from resval_lens import ResValTransformer

model = ResValTransformer.from_x_transformers(wrapper)
# --8<-- [end:object]

# --8<-- [start:folder]
import json
from pathlib import Path

from safetensors.torch import save_file

folder = Path(mkdtemp())
save_file(wrapper.state_dict(), folder / "model.safetensors")
(folder / "x_transformers.json").write_text(json.dumps({**shape, "attn_layers": layers}))
# --8<-- [end:folder]
print(model.cfg.streams, folder)
