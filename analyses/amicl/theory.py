"""What AMICL's dot product with argmax should do, in closed form.

With r = ‖o_q‖², everything times (a+1)²/a: the key of the right label (r·a/(1+v) on average)
competes with the key of the last object itself (r), which holds that very token, and with chance.
Here v = E‖ε·η‖² is the variance of an object's noise (:attr:`PairTask.noise_variance`).
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from resval_lens.amicl import PairTask


def margin(a: float, task: PairTask) -> float:
    """E[k_right·q] − E[k_{s−1}·q] = a·(a − (1+v)) / ((a+1)²·(1+ε²)): right label against itself.

    Of the dot product, for an a above 0.
    """
    return a * (a - threshold(task)) / ((a + 1) ** 2 * (1 + task.noise**2))


def threshold(task: PairTask) -> float:
    """The a at which :func:`margin` is 0: 1 + v, 1 + ε² in the paper's reading."""
    return 1 + task.noise_variance


def share_of_first(task: PairTask) -> float:
    """P(the first pair of the context is of the class that is asked for) = 1/m + (1 − 1/m)/F.

    F classes are drawn from. The first token's key is x₁/(a+1) alone, for index 0 wraps to the
    masked token: an object without another before it. Its correlation with the query is that of
    two instances of one object, which no label's key reaches; so this is how often Pearson's
    correlation with argmax fails however large the margin. As often is the last pair of the
    context of that class.
    """
    return 1 / task.n_pairs + (1 - 1 / task.n_pairs) / task.n_families


def predicted(a: float, task: PairTask) -> float:
    """P(right), dot product with argmax and a reach of gap + 1, to first order in 1/d.

    Given o_q, all scores but for the signal are normal: with x·o_q ~ N(0, r/d) for whatever is
    independent of it, and r ~ χ²_d/d·E‖o‖². They are taken as independent, but where the right
    label stands before the last object and is part of its key. k further instances of the right
    class, k ~ Binomial(m − 1, 1/F), are right answers, too. Integrated numerically.

    Raises:
        ValueError: a task with distractors or a cue, or an a that is not above 0.
    """
    if task.distractors or task.cue:
        raise ValueError(
            f"distractors={task.distractors}, cue={task.cue:g}: expected a task without"
        )
    if not 0 < a < np.inf:
        raise ValueError(f"a must be a finite number above 0; got {a!r}")
    d, m = task.d, task.n_pairs
    shared = 1 / (1 + task.noise**2)  # E o·o' of two instances
    length = (1 + task.noise_variance) * shared  # E‖o‖²
    slope = shared / length
    # [k, r, z]: further instances, squared length of the last object, place of the best right score
    further = np.arange(m)
    chance = stats.binom.pmf(further, m - 1, 1 / task.n_families)
    further, chance = further[chance > 1e-7], chance[chance > 1e-7]
    quantiles = (np.arange(40) + 0.5) / 40
    r = (length * stats.chi2.ppf(quantiles, d) / d)[:, None]
    z = np.linspace(-8, 8, 401)
    unit = np.sqrt(r / d)
    apart = length - shared * slope  # variance of o' that is not along o_q, times d
    x = a * slope * r + z * unit * np.sqrt(a**2 * apart + 1)
    below = stats.norm.cdf
    itself = below((x - r) / (a * unit))
    if not task.gap:  # l·o_q given x: a share of what x is above its mean
        part = 1 / (a**2 * apart + 1)
        spread = np.maximum(unit * np.sqrt(1 - part), 1e-12)
        same = below((x - r - a * part * (x - a * slope * r)) / (a * spread))
        itself += share_of_first(task) * (same - itself)
    earlier = below((x - slope * r) / (unit * np.sqrt(a**2 + apart)))
    other = below(x / (unit * np.sqrt(a**2 + 1)))
    last = below(x / (unit * (a + 1))) if task.reading == "notebook" else x > 0
    k = further[:, None, None]
    others = np.maximum(task.length - 2 - 2 * (1 + k), 0)
    best = (1 + k) * stats.norm.pdf(z) * below(z) ** k
    inside = best * itself * earlier ** (1 + k) * other**others * last
    by_k = np.trapezoid(inside, z, axis=-1).mean(-1)
    return float(chance @ by_k)
