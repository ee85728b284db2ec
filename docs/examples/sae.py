# ruff: noqa: E402  # sections of pages import what they need
"""A sparse autoencoder at a link, by SAELens's trainer, and what its reconstruction loses."""

# --8<-- [start:activations]
from pathlib import Path

import numpy as np
import torch

from resval_lens.load import load_model
from resval_lens.training.lm_data import prepare

model = load_model("stories-small-values").model
site = "blocks.1.attn.hook_v_link"  # what arrives in layer 1
data = prepare("stories", Path("stories"), model.tokenizer.backend_tokenizer, n_stories=2_000)
rows, held_out = data.rows("packed", 128)


def activations(tokens):
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=site, stop_at_layer=2)
    return cache[site].flatten(2).flatten(0, 1)  # [token, head · d_head]


def batches(size=16):
    generator = np.random.default_rng(0)
    while True:
        tokens, _ = rows.batch(generator.integers(len(rows), size=size))
        yield activations(tokens)


# --8<-- [end:activations]

# --8<-- [start:train]
from sae_lens import SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig

torch.manual_seed(0)
width = model.cfg.n_heads * model.cfg.d_head
sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=width, d_sae=4 * width, k=16))
settings = SAETrainerConfig(
    total_training_samples=400 * 2_048, train_batch_size_samples=2_048, lr=1e-3, lr_end=1e-4
)
SAETrainer(settings, sae, batches()).fit()
# --8<-- [end:train]

# --8<-- [start:splice]
from resval_lens.hooks import cut_links

sae.eval()
tokens, _ = held_out.batch(np.arange(32))
x = activations(tokens)
with torch.no_grad():
    lost = (x - sae(x)).pow(2).sum() / (x - x.mean(0)).pow(2).sum()


def splice(link, hook):
    return sae(link.flatten(2)).view_as(link)


def constant(link, hook):
    return x.mean(0).view(link.shape[2:]).expand_as(link)


def loss():
    with torch.no_grad():
        return model(tokens, return_type="loss").item()


whole = loss()
with model.hooks([(site, splice)]):
    spliced = loss()
with cut_links(model, layers=[1]):
    cut = loss()
with model.hooks([(site, constant)]):
    averaged = loss()
print(f"{lost:.2f} of the variance is lost")
print(f"loss {whole:.3f}, spliced {spliced:.3f}, mean {averaged:.3f}, cut {cut:.3f}")
# --8<-- [end:splice]
