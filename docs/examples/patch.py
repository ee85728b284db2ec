# ruff: noqa: E402  # sections of pages import what they need
"""Activation patching and path patching, links included."""

# --8<-- [start:sites]
from resval_lens import ResValTransformer
from resval_lens.analyses.tasks.pairs import ioi_pairs
from resval_lens.hooks import patch
from resval_lens.tasks.ioi_corruptions import positions
from resval_lens.tasks.leading import leading_token
from resval_lens.tasks.stories import ioi_prompts

model = ResValTransformer.from_pretrained("stories-small-values")
prompts = ioi_prompts(32, seed=0, names="unseen")
pairs = ioi_pairs(model, prompts, "random-S2")

links = patch(model, pairs, "v_link", by=("layer", "head"))  # what arrives
own = patch(model, pairs, "v_local", by=("layer", "head"))  # the layers' own
print(links.axes, links.recovered())
# --8<-- [end:sites]

# --8<-- [start:directions]
noised = patch(model, pairs, "v_link", by=("layer",), direction="noise")
print(noised.base, noised.values)  # clean; with each layer's links corrupted
# --8<-- [end:directions]

# --8<-- [start:positions]
where = positions(prompts, model.tokenizer, leading_token(model))  # IO, S1, S2, ..., end
by_name = patch(model, pairs, "resid_pre", positions=where, by=("layer", "position"))
print(by_name.axes["position"], by_name.recovered())
# --8<-- [end:positions]

# --8<-- [start:paths]
from resval_lens.hooks import path_patch

held = path_patch(model, pairs, ["input"], ["a1.h2<v>"], links="frozen")
through = path_patch(model, pairs, ["input"], ["a1.h2<v>"], links="through")
link = path_patch(model, pairs, ["v1.h2"], ["logits"])  # a link as the sender
for found in (held, through, link):
    print(found.effect.mean())
# --8<-- [end:paths]
