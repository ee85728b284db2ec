# ruff: noqa: E402  # sections of pages import what they need
"""A task of one's own, in a file."""

import json
from pathlib import Path

names = [("Tom", "Mary"), ("Ben", "Anna"), ("Jack", "Lucy"), ("Paul", "Emma")]
frame = "When {} and {} went to the park, {} gave a ball to"
with Path("prompts.jsonl").open("w") as file:
    for a, b in names:
        clean, corrupted = frame.format(a, b, a), frame.format(a, b, b)
        start = clean.rindex(a)
        where = {"S2": [start, start + len(a)]}
        line = {"clean": clean, "corrupted": corrupted, "answer": f" {b}", "wrong": f" {a}"}
        file.write(json.dumps({**line, "positions": where}) + "\n")

# --8<-- [start:pose]
from resval_lens.analyses.tasks.problem import pose
from resval_lens.hooks import patch

model = "stories-small-values"  # or a folder, a .gguf file, user/name, gpt2
problem = pose(model, 4, task="prompts.jsonl")
where = problem.named_positions  # S2, end: of each prompt
found = patch(
    problem.model, problem.pairs, "resid_pre", by=("layer", "position"), positions=where
)  # fmt: skip
print(problem.by("log-probability").metric, found.recovered())  # [layer, position]
# --8<-- [end:pose]
