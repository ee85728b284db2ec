"""What the sweep and Figure 7 say in words, and by what a sweep counts a trial as right."""

from typing import Any

import numpy as np
import pytest

from resval_lens.analyses.papers.amicl.accuracy import Curves, Figure7
from resval_lens.analyses.papers.amicl.counting import generators, share
from resval_lens.analyses.papers.amicl.model import AMICL, AMICLConfig, PairTask
from resval_lens.analyses.papers.amicl.sweep import Sweep, SweepTask, TaskCurve, sweep
from resval_lens.analyses.papers.amicl.theory import threshold

VALUES = [0.0, 1.0, 2.0, 4.0, 32.0]


def row(
    name: str,
    as_good: tuple[float, float],
    right: tuple[int, ...],
    group: str = "gap",
    task: PairTask | None = None,
    scattered: tuple[float, ...] = (),
) -> TaskCurve:
    """A task of a sweep with what was found; ``scattered`` are as good outside of the run, too."""
    task = task or PairTask()
    run = [a for a in VALUES if as_good[0] <= a <= as_good[1]]
    return TaskCurve(
        SweepTask(name, group, task),
        "exact",
        [share(n, 100) for n in right],
        VALUES[int(np.argmax(right))],
        as_good,
        sorted({*run, *scattered}),
        threshold=threshold(task) if group == "noise" else None,
    )


def said_of(*rows: TaskCurve) -> list[str]:
    return Sweep(0, AMICLConfig(), VALUES, 100, 0.05, list(rows)).sentences()


UP = row("up", (2, 32), (0, 20, 98, 100, 99))
PEAK = row("peak", (2, 2), (0, 40, 90, 60, 30))


def test_only_the_run_around_the_best_counts_as_good() -> None:
    apart = row("apart", (2, 2), (0, 40, 90, 60, 80), scattered=(32.0,))
    said = said_of(UP, apart)
    assert said[0] == "a = 2 is as good as the best on all 2 tasks."
    assert said[1] == (
        "On 1 of 2 tasks a = 32 is not significantly worse than the best (exact McNemar test, "
        "p ≥ 0.05, uncorrected, n = 100)."
    )


def test_no_a_is_said_to_be_best_where_none_is() -> None:
    low = row("low", (0, 1), (90, 91, 40, 30, 20))
    said = said_of(UP, PEAK, low, row("up again", (4, 32), (0, 0, 50, 90, 91)))
    assert said[0] == ("No a is as good as the best on every task: a = 4 is on 2 of 4, a = 2 on 2.")
    assert said[1].startswith("On 2 of 4 tasks a = 32 is not significantly worse")


def test_tasks_that_do_not_tell_one_a_from_another_are_named_and_not_counted() -> None:
    hopeless = row("hopeless", (4, 32), (0, 0, 0, 2, 3))  # of 9 labels one at random: 11%
    easy = row("easy", (0, 32), (96, 97, 98, 97, 96))
    said = said_of(UP, hopeless, easy)
    assert said[0] == "a = 4 is as good as the best on the one task, a = 2 on 1."
    assert said[1].startswith("On the one task a = 32 is not significantly worse")
    assert said[2:] == [
        "Not counted: hopeless (at most 3.0% right, fewer than a label of the context at random).",
        "Not counted: easy (all a are as good, 96.0% to 98.0% right).",
    ]
    assert said_of(easy) == [
        "No task tells one a from another.",
        "Not counted: easy (all a are as good, 96.0% to 98.0% right).",
    ]


@pytest.mark.parametrize(
    ("lowest", "begins"),
    [
        ((2.0, 2.0, 4.0), "Noisier objects need a larger a: from 2 at ε = 0, 2 at ε = 0.5, 4 at"),
        ((2.0, 2.0, 2.0), "As good as the best: from 2 at ε = 0, 2 at ε = 0.5, 2 at ε = 1."),
        ((2.0, 4.0, 2.0), "As good as the best: from 2 at ε = 0, 4 at ε = 0.5, 2 at ε = 1."),
    ],
    ids=str,
)
def test_noise_is_said_to_need_a_larger_a_only_where_it_does(
    lowest: tuple[float, ...], begins: str
) -> None:
    rows = [
        row(f"ε = {e:g}", (low, 32), (0, 0, 90, 95, 94), "noise", PairTask(noise=e))
        for e, low in zip((0.0, 0.5, 1.0), lowest, strict=True)
    ]
    (said,) = [each for each in said_of(*rows) if "at ε = 0" in each]
    assert said.startswith(begins)
    assert said.endswith(
        "above a = 1 at the least noise and 2 at the most, the object itself below."
    )


def test_shared_objects_are_given_their_numbers_and_no_cause() -> None:
    task = PairTask(distractors=2, classes=9, likeness=1.0, cue=0.2)
    shared = row("3 labels", (1, 2), (40, 60, 62, 50, 34), "shared object", task)
    assert said_of(UP, shared)[-1] == (
        "3 labels, the last label dimly seen: the best a is 2 (1 to 2), 62.0% right, against 40.0% "
        "at a = 0 and 34.0% at a = 32."
    )


@pytest.mark.parametrize(
    ("separation", "learned", "judge"),
    [
        ("argmax", False, "exact"),
        ("argmax", True, "euclidean"),
        ("softmax", False, "euclidean"),
        ("identity", False, "cosine"),
        ("identity", True, "cosine"),
    ],
)
def test_what_counts_as_right_is_recorded(separation: Any, learned: bool, judge: str) -> None:
    cfg = AMICLConfig(separation=separation, temperature=0.3)
    chosen = [SweepTask("x", "gap", PairTask(d=8, length=10), learned=learned)]
    result = sweep(chosen, [2.0], trials=30, cfg=cfg)
    assert result.tasks[0].judge == judge
    assert result.memory.temperature == 0.3
    assert result.tables()[0].caption == result.judged


def test_identity_is_judged_by_the_angle() -> None:
    """Against a loop over the same trials; by distance others would be right."""
    task = PairTask(d=10, length=12, noise=0.5)
    result = sweep([SweepTask("x", "gap", task)], [3.0], 5, 200, AMICLConfig(separation="identity"))
    trials = task.draw(200, generators(5, 1)[0])
    outputs = AMICL(AMICLConfig(a=3.0, separation="identity"))(trials.inputs).double().numpy()
    right = {"angle": 0, "distance": 0}
    for output, labels, hit in zip(
        outputs, trials.labels.double().numpy(), trials.right.numpy(), strict=True
    ):
        cosines = labels @ output / np.linalg.norm(labels, axis=1)
        right["angle"] += hit[cosines.argmax()]
        right["distance"] += hit[np.linalg.norm(labels - output, axis=1).argmin()]
    assert result.tasks[0].curve[0].right == right["angle"] != right["distance"]


def test_figure_7_says_how_many_of_the_same_trials_went_where() -> None:
    curves = Curves([], [share(0, 50), share(43, 50)], [], 0.871, share(7, 50))
    assert Figure7(0, PairTask(), 50, [0.0, 2.0], {"paper": curves}).sentences() == [
        "Pearson's correlation with argmax at a = 2, paper: of 50 trials 43 are right and 7 go to "
        "the first token, whose key (index 0 wraps to the masked token) is that object alone. The "
        "first pair is of the right class with probability 0.129."
    ]
