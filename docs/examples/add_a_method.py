# ruff: noqa: E402  # sections of pages import what they need
"""A scoring method of one's own, beside exact scores."""

# --8<-- [start:method]
from resval_lens.analyses.circuits.methods import METHODS, Method


class Trapezoid(Method):
    """EAP, its gradient averaged over the clean and the corrupted run."""

    name = "eap-trapezoid"
    what = "difference × mean gradient of the clean and the corrupted run"
    cost = "4 forward, 2 backward"

    def scores(self, at):
        from resval_lens.analyses.circuits.eap import gradient_scores

        back = at._replace(pairs=at.pairs.flipped())
        return (gradient_scores(at) - gradient_scores(back)) / 2


METHODS[Trapezoid.name] = Trapezoid()
# --8<-- [end:method]

# --8<-- [start:check]
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.analyses.circuits.study import agreement
from resval_lens.analyses.tasks.problem import pose

problem = pose("stories-small-values", 16)
exact = score_edges(problem.model, problem.pairs, "exact")
for method in ("eap", "eap-trapezoid", "eap-ig"):
    scores = score_edges(problem.model, problem.pairs, method)
    print(method, agreement(scores, exact).correlation)
# --8<-- [end:check]

del METHODS[Trapezoid.name]
