# ruff: noqa: E402  # sections of pages import what they need
"""Links cut, scaled, mean-ablated, resampled, frozen."""

# --8<-- [start:model]
import torch

from resval_lens import ResValTransformer
from resval_lens.analyses.tasks.pairs import ioi_pairs
from resval_lens.hooks import (
    cut_links,
    edit_links,
    freeze,
    link_activations,
    link_hooks,
    links,
    mean,
    resample,
    scale_links,
)
from resval_lens.tasks.stories import ioi_prompts

model = ResValTransformer.from_pretrained("stories-small-values")
pairs = ioi_pairs(model, ioi_prompts(32, seed=0, names="unseen"), "random-S2")


def difference() -> float:
    """Mean logit difference on the clean prompts."""
    logits = model(pairs.clean)[torch.arange(len(pairs)), pairs.answers]
    return pairs.metric(logits, pairs.labels).mean().item()


# --8<-- [end:model]

# --8<-- [start:select]
print("as trained", difference())
for layer in (1, 2, 3):
    with cut_links(model, layers=layer):
        print(f"V{layer - 1} → V{layer} cut", difference())
with cut_links(model, layers=1, heads=[2]):  # one link
    print("v1.h2 cut", difference())
with scale_links(model, 0.5):  # every link, half of it
    print("halved", difference())
# --8<-- [end:select]

# --8<-- [start:edits]
others = ioi_pairs(model, ioi_prompts(64, seed=1, names="unseen"), "random-S2")
length = pairs.clean.shape[1]
reference = link_activations(model, others.clean[:, :length])  # on other prompts
generator = torch.Generator().manual_seed(0)
rows = torch.randint(len(others), (len(pairs),), generator=generator)
corrupted = link_activations(model, pairs.corrupted)  # on each corrupted prompt
for name, edit in {
    "mean": mean(reference, per_position=False),
    "resampled": resample(reference, rows),
    "from the corrupted prompt": freeze(corrupted),
}.items():
    with edit_links(model, edit, layers=1):
        print(name, difference())
# --8<-- [end:edits]

# --8<-- [start:hooks]
chosen = links(model, of="v", layers=1)
hooks = link_hooks(model, freeze(corrupted), chosen, positions=[-1])
logits = model.run_with_hooks(pairs.clean, fwd_hooks=hooks)
# --8<-- [end:hooks]

# --8<-- [start:study]
from resval_lens.analyses.studies.ablation import ablation_study
from resval_lens.hooks import logit_difference, probability

others = ioi_pairs(model, ioi_prompts(64, seed=1, names="unseen"), "random-S2")
both = ioi_pairs(model, ioi_prompts(64, seed=0, names="unseen"), "random-S2")
first, second = both.split(32)
measures = {"logit difference": logit_difference, "P(IO)": probability}
study = ablation_study(model, first, second, measures)
for row in study.rows:
    print(row)
# --8<-- [end:study]
