"""Edges scored by several processes: ``torchrun --nproc-per-node 2 several_gpus.py``."""

# --8<-- [start:divide]
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.analyses.tasks.pairs import ioi_pairs
from resval_lens.hooks.processes import several_processes
from resval_lens.load import load_model
from resval_lens.tasks.stories import ioi_prompts

with several_processes("cpu") as own:  # "cuda": a GPU each
    model = load_model("stories-small-values", device=own.device).model
    pairs = ioi_pairs(model, ioi_prompts(8, seed=0, names="unseen"), "random-S2")
    scores = score_edges(model, pairs, "eap")  # each scores its prompts; all get the sum
    if own.is_first:
        for edge, score in scores.top(5):
            print(edge, f"{score:.3f}")
# --8<-- [end:divide]
