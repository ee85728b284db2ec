# ruff: noqa: E402  # sections of pages import what they need
"""Patching, path patching, edge scores, a circuit and attribution of a language model."""

# --8<-- [start:all]
# --8<-- [start:pairs]
from resval_lens import ResValTransformer
from resval_lens.analyses.tasks.pairs import ioi_pairs
from resval_lens.tasks.stories import ioi_prompts

model = ResValTransformer.from_pretrained("stories-small-values")
prompts = ioi_prompts(32, seed=0, names="unseen")
pairs = ioi_pairs(model, prompts, "random-S2")  # clean ones beside their corrupted prompts
# --8<-- [end:pairs]

from resval_lens.hooks import patch, path_patch_each

# --8<-- [start:patch]
heads = patch(model, pairs, "z", by=("layer", "head"))  # clean into the corrupted run
print(heads.recovered())  # 0: as without, 1: as the clean run
senders = ["a1.h2", "v1.h2", "m1"]  # a head, the link into it, an MLP
paths = path_patch_each(model, pairs, senders, "logits", links="through")
print(paths.effect.mean(1))  # each straight to the logits
# --8<-- [end:patch]

# --8<-- [start:circuit]
from resval_lens.analyses.circuits.evaluation import faithfulness
from resval_lens.analyses.circuits.running import EdgeRuns
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.analyses.circuits.search import smallest

scores = score_edges(model, pairs, "eap-ig")
print(scores.top(5), scores["a0.h2<v>->a1.h2<v>"])
runs = EdgeRuns(model, pairs)
circuit = smallest(runs, scores.values, 0.85).circuit
print(circuit.edges, faithfulness(runs, [circuit, circuit.without_links()]))
# --8<-- [end:circuit]

# --8<-- [start:show]
from resval_lens.analyses.display import show_circuit

show_circuit(circuit, scores, "indirect objects", roles={"a1.h2": "mover"}).save("circuit.html")
# --8<-- [end:show]

# --8<-- [start:attribute]
from resval_lens.analyses.attribution.logits import attribute

shares = attribute(model, pairs.clean, pairs.labels, pairs.last)
print(shares["a1.h2"].mean())  # of the head's own values
print(shares["a1.h2 from 0"].mean())  # of layer 0's, along the link
# --8<-- [end:attribute]
# --8<-- [end:all]

# --8<-- [start:found]
import torch

from resval_lens.analyses.circuits.baselines import connected_circuits
from resval_lens.analyses.circuits.evaluation import evaluate

generator = torch.Generator().manual_seed(0)
found = evaluate(runs, circuit, generator=generator)
print(found.faithfulness, found.minimality)
same_size = connected_circuits(runs.graph, len(circuit), 10, generator)
print([each.value for each in faithfulness(runs, same_size)])
# --8<-- [end:found]

# --8<-- [start:file]
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.circuits.graph_file import read_graph, write_graph

write_graph("graph.json", scores, circuit)
again = read_graph("graph.json", Graph.of(model))
print(again.scores.top(5), again.circuit.edges)
# --8<-- [end:file]
