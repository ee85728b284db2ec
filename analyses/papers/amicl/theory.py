"""What AMICL's dot product with argmax should do, in closed form.

With r = ‖o_q‖², everything times (a+1)²/a: the key of the right label (r·a/(1+v) on average)
competes with the key of the last object itself (r), which holds that very token, and with chance.
Here v = E‖ε·η‖² is the variance of an object's noise (:attr:`PairTask.noise_variance`).
"""

from __future__ import annotations

import numpy as np
import scipy
from jaxtyping import Int

from resval_lens.analyses.papers.amicl.model import PairTask
from resval_lens.checks import check_above_zero


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
    two instances of one object, and a label's key does not reach it while objects have little
    noise and a is moderate (ε = .1: a up to about 8); so this is how often Pearson's correlation
    with argmax then fails, however large the margin. Noise lowers the first key's correlation and
    a large a raises the label's, and fewer of these trials fail. As often is the last pair of the
    context of that class.

    Raises:
        ValueError: a task with distractors, a cue or a gap (which takes a reach above 1).
    """
    _check_plain(task)
    if task.gap:
        raise ValueError(f"gap={task.gap}: expected a task without, for a reach of 1")
    return 1 / task.n_pairs + (1 - 1 / task.n_pairs) / task.n_families


def predicted(a: float, task: PairTask) -> float:
    """P(right), dot product with argmax and a reach of gap + 1.

    Given o_q, all scores but for the signal are normal: with x·o_q ~ N(0, r/d) for whatever is
    independent of it, and r ~ χ²_d/d·E‖o‖². k further instances of the right class,
    k ~ Binomial(m − 1, 1/F), are right answers, too. They share the object's mean and the label, so
    that the best of these n = 1 + k scores is

        common + own,   Var(common) = r/d·(1 + a²(apart − own)),   own: the largest of n normals

    taken as normal with that sum's mean and variance. Integrated numerically over it.

    Approximate are: that normal; the other scores as independent of it and of each other, but
    where the right label stands before the last object and is part of its key, or no token before
    the first. So competitors that repeat count as different ones: with few classes (F well below
    m) it is too low, at K = 3, ε = .1, a = 1.3 .90 where .95 are right, and more so with noise.
    With F above m it is within .02 of what is measured.

    Raises:
        ValueError: a task with distractors or a cue, or an a that is not above 0.
    """
    _check_plain(task)
    check_above_zero("a", a)
    d, m = task.d, task.n_pairs
    length, slope, apart = _instances(task)
    # [k, r, z]: further instances, squared length of the last object, place of the best right score
    further = np.arange(m)
    chance = scipy.stats.binom.pmf(further, m - 1, 1 / task.n_families)
    further, chance = further[chance > 1e-7], chance[chance > 1e-7]
    n = (1 + further)[:, None, None]
    quantiles = (np.arange(40) + 0.5) / 40
    r = (length * scipy.stats.chi2.ppf(quantiles, d) / d)[:, None]
    z = np.linspace(-8, 8, 401)
    unit = np.sqrt(r / d)
    above, sd = (x[:, None, None] for x in _best_right(a, task, 1 + further))
    middle = a * slope * r + unit * above
    x = middle + z * unit * sd
    below = scipy.stats.norm.cdf
    itself = below((x - r) / (a * unit))
    earlier = below((x - slope * r) / (unit * np.sqrt(a**2 + apart)))
    instances = earlier**n  # the objects of the right class in the context
    if not task.gap:
        # l·o_q given x: a share of what x is above its mean
        part = 1 / sd**2
        spread = np.maximum(unit * np.sqrt(1 - part), 1e-12)
        # Without noise both are equal at a = 1; argmax takes the first of equals, the label.
        same = below((x - r - a * part * (x - middle) + 1e-9) / (a * spread))
        itself = itself + n / m * (same - itself)
        alone = below((x - slope * r) / (unit * np.sqrt(max(apart, 1e-24))))
        instances = (1 - n / m) * instances + n / m * alone * earlier ** (n - 1)
    other = below(x / (unit * np.sqrt(a**2 + 1)))
    last = below(x / (unit * (a + 1))) if task.reading == "notebook" else x > 0
    others = np.maximum(task.length - 2 - 2 * n, 0)
    inside = scipy.stats.norm.pdf(z) * itself * instances * other**others * last
    by_k = np.trapezoid(inside, z, axis=-1).mean(-1)
    return float(chance @ by_k)


def _instances(task: PairTask) -> tuple[float, float, float]:
    """Of instances o, o' of a class: E‖o‖²; E[o'·o | o]/‖o‖²; d·Var(o'·o | o)/‖o‖²."""
    shared = 1 / (1 + task.noise**2)  # E o·o'
    length = (1 + task.noise_variance) * shared
    return length, shared / length, length - shared**2 / length


def _best_right(
    a: float, task: PairTask, sizes: Int[np.ndarray, " n"]
) -> tuple[np.ndarray, np.ndarray]:
    """Of the best of so many right scores: mean above a·slope·r, and sd; both over √(r/d)."""
    *_, apart = _instances(task)
    noise = task.noise_variance / (1 + task.noise**2)  # what of `apart` is an instance's own
    mean, variance = _largest(sizes)
    return a * np.sqrt(noise) * mean, np.sqrt(1 + a**2 * (apart - noise + noise * variance))


def _largest(sizes: Int[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the largest of so many standard normals."""
    z, n = np.linspace(-9, 9, 2001), sizes[:, None]
    density = n * scipy.stats.norm.pdf(z) * scipy.stats.norm.cdf(z) ** (n - 1)
    mean = np.trapezoid(density * z, z, axis=1)
    return mean, np.trapezoid(density * z**2, z, axis=1) - mean**2


def _check_plain(task: PairTask) -> None:
    if task.distractors or task.cue:
        raise ValueError(
            f"distractors={task.distractors}, cue={task.cue:g}: expected a task without"
        )
