"""Edge scores and circuits at real size beside the published way, with which they agree."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resval_lens.analyses.circuits.circuit import Circuit
from resval_lens.analyses.circuits.curve import FRACTIONS, curve
from resval_lens.analyses.circuits.evaluation import faithfulness
from resval_lens.analyses.circuits.running import EdgeRuns
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.hooks.answers import answer_logits
from tests.benchmarks.real_size import ROUNDS, Setting, agree
from tests.benchmarks.timing import Step, show, timed

EDGES, STEPS = 400, 5


def eap(at: Setting) -> dict[str, Step]:
    return {
        f"{at.published.name}, EAP": at.published.eap,
        "ours": lambda: score_edges(at.model, at.pairs, "eap"),
    }


def eap_ig(at: Setting) -> dict[str, Step]:
    return {
        f"{at.published.name}, EAP-IG of {STEPS} steps": partial(at.published.eap_ig, STEPS),
        "ours": lambda: score_edges(at.model, at.pairs, "eap-ig", steps=STEPS),
    }


def model_runs(at: Setting) -> dict[str, Step]:
    """What EAP cannot do without: a corrupted run, a clean one with its backward run."""

    def runs() -> None:
        model, pairs = at.model, at.pairs
        inputs: list[Tensor] = []

        def put_in(x: Tensor, hook: Any) -> Tensor:
            inputs.append(x.detach().requires_grad_())
            return inputs[0]

        with torch.no_grad():
            answer_logits(model, pairs.corrupted, pairs.answers)
        with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", put_in)]):
            metric = pairs.measure(answer_logits(model, pairs.clean, pairs.answers)).sum()
            torch.autograd.grad(metric, inputs)

    return {"two forwards, one backward": runs, "EAP": eap(at)["ours"]}


def one_circuit(at: Setting) -> dict[str, Step]:
    circuit, kept = circuits_of(at, [EDGES])[0]
    return {
        f"{at.published.name}, evaluate_graph of {EDGES} edges": lambda: at.published.metric(kept),
        "ours: EdgeRuns, faithfulness": lambda: faithfulness(
            EdgeRuns(at.model, at.pairs), [circuit]
        ),
    }


def circuit_curve(at: Setting) -> dict[str, Step]:
    scores = score_edges(at.model, at.pairs, "eap")
    sizes = [max(1, round(share * len(scores.graph))) for share in FRACTIONS]
    tables = [kept for _, kept in circuits_of(at, sizes)]
    return {
        f"{at.published.name}, evaluate_graph of {len(sizes)} sizes": lambda: [
            at.published.metric(kept) for kept in tables
        ],
        "ours: EdgeRuns, curve": lambda: curve(EdgeRuns(at.model, at.pairs), scores.values),
    }


def circuits_of(at: Setting, sizes: list[int]) -> list[tuple[Circuit, Tensor]]:
    """The edges of the highest |EAP score|, as ours and as tables."""
    scores = score_edges(at.model, at.pairs, "eap")
    order = scores.values.abs().argsort(descending=True, stable=True).tolist()
    names, found = list(map(str, scores.graph.edges)), []
    for size in sizes:
        kept = at.published.table.kept(dict.fromkeys((names[i] for i in order[:size]), True))
        found.append((Circuit.of(scores.graph, order[:size]), kept))
    return found


def edge_scores(folder: Path | None) -> None:
    at = Setting(folder)
    numbers = at.published.table
    for peers, theirs, method in (
        (eap(at), at.published.eap(), "eap"),
        (eap_ig(at), at.published.eap_ig_up_to_clean(STEPS), "eap-ig"),
    ):
        named = numbers.named(theirs)
        ours = score_edges(at.model, at.pairs, method)
        agree(ours.values, torch.tensor([named[str(edge)] for edge in ours.graph.edges]))
        show(f"{at.title}: the score of every edge", timed(peers, ROUNDS, warm=False))
    show(f"{at.title}: what EAP adds to the model's runs", timed(model_runs(at), ROUNDS))


def circuits(folder: Path | None) -> None:
    at = Setting(folder)
    runs = EdgeRuns(at.model, at.pairs)
    for circuit, kept in circuits_of(at, [EDGES, 20 * EDGES]):
        found = faithfulness(runs, [circuit])[0].metric
        agree(torch.tensor(found), torch.tensor(at.published.metric(kept)))
    show(f"{at.title}: one circuit", timed(one_circuit(at), ROUNDS))
    show(f"{at.title}: circuits of 10 sizes", timed(circuit_curve(at), 2, warm=False))
