# ruff: noqa: E402  # sections of pages import what they need
"""Patching with prompts of a chat, of unequal length, padded on the left."""

# --8<-- [start:pairs]
from resval_lens.hooks import PromptPairs, logit_difference
from resval_lens.hooks.texts import answer_tokens
from resval_lens.load import load_model

model = load_model("HuggingFaceTB/SmolLM2-135M-Instruct").model
short, long = "What is the capital of {}?", "Please tell me: what is the capital of {}?"
clean = [short.format("France"), long.format("Italy")]
corrupted = [short.format("England"), long.format("France")]


def rows(questions):
    chats = [[{"role": "user", "content": each}] for each in questions]
    return model.tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True,
        tokenizer_kwargs={"padding_side": "left"},
    )  # fmt: skip


own, others = rows(clean), rows(corrupted)
assert own.attention_mask.equal(others.attention_mask)  # each pair is of one length
answers = [("Paris", "London"), ("Rome", "Paris")]  # right on the clean prompt, on the corrupted
labels = answer_tokens(model, ["\n", "\n"], answers)  # as they follow the template's last token
pairs = PromptPairs(
    own.input_ids, others.input_ids, logit_difference, labels, mask=own.attention_mask
)
# --8<-- [end:pairs]

# --8<-- [start:patch]
from resval_lens.hooks import patch

end = {str(i): pairs.answers + 1 + i for i in range(-12, 0)}  # "-1" is the last token
found = patch(
    model, pairs, "resid_pre", layers=[0, 10, 20, 25], positions=end, by=("layer", "position")
)
names = [model.tokenizer.decode(pairs.clean[0, i]) for i in range(-12, 0)]
for name, shares in zip(names, found.recovered().T.tolist(), strict=True):
    print(f"{name!r:12}", *(f"{share:6.2f}" for share in shares))
# --8<-- [end:patch]
