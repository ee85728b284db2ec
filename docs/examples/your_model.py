# ruff: noqa: E402  # sections of pages import what they need
"""A model of one's own, by name and from memory."""

from tempfile import mkdtemp

from transformers import LlamaConfig, LlamaForCausalLM

shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512}  # fmt: skip
llama = LlamaForCausalLM(LlamaConfig(**shape))
folder = mkdtemp()
llama.save_pretrained(folder)

# --8<-- [start:name]
from resval_lens.load import load_model

model = load_model(folder).model  # a path or a name
grafted = load_model(folder, streams="v(mix=head, carried=0)").model
folded = load_model(folder, fold=True).model  # TransformerLens's weight processing
# --8<-- [end:name]

# --8<-- [start:object]
from resval_lens import ResValTransformer

model = ResValTransformer.from_hf(llama, tokenizer=None, streams="v")
model.save_pretrained(mkdtemp())  # and from_pretrained(folder) loads it, tokenizer and all
again = ResValTransformer.from_hooked(model)  # of any HookedTransformer or TransformerBridge
# --8<-- [end:object]
print(model.cfg.n_key_value_heads, grafted.cfg.streams, folded.cfg.normalization_type)
