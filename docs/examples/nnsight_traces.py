"""A model with links under nnsight: read, edit, patch, gradients."""

# --8<-- [start:read]
from nnsight import NNsight

from resval_lens.load import load_model

model = load_model("stories-small-values").model
traced = NNsight(model)  # the same model, not a copy
clean = model.to_tokens("When Tom and Mary went to the park, Tom gave a ball to")
corrupted = model.to_tokens("When Tom and Mary went to the park, Mary gave a ball to")
mary, tom = model.to_single_token(" Mary"), model.to_single_token(" Tom")

attn = traced.blocks[1].attn
with traced.trace(clean):
    local = attn.hook_v_local.output.save()  # in this order: as the model computes them
    link = attn.hook_v_link.output.save()
    total = attn.hook_v.output.save()
    whole = traced.output[0, -1].save()
assert total.equal(local + link)
# --8<-- [end:read]

# --8<-- [start:cut]
with traced.trace(clean):
    attn.hook_v_link.output[:, :, 2] = 0  # the link into head 2: v1.h2
    cut = traced.output[0, -1].save()
# --8<-- [end:cut]

# --8<-- [start:patch]
with traced.trace(corrupted):
    attn.hook_v_link.output = link  # the clean run's
    patched = traced.output[0, -1].save()
# --8<-- [end:patch]

# --8<-- [start:gradient]
with traced.trace(clean):
    value = attn.hook_v_link.output
    logits = traced.output[0, -1]
    difference = logits[mary] - logits[tom]
    with difference.backward():
        gradient = value.grad.save()
print(gradient.pow(2).sum((0, 1, 3)).sqrt())  # of each head's link
# --8<-- [end:gradient]
for name, at in (("as it is", whole), ("v1.h2 cut", cut), ("patched", patched)):
    print(name, (at[mary] - at[tom]).item())
