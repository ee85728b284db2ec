"""AMICL's figures, combinations and sweep, and the commands that make them."""

import json
import math
import re
import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from typer.testing import CliRunner

from resval_lens.analyses.cli.app import app
from resval_lens.analyses.papers.amicl.accuracy import PUBLISHED_COUNTS, figure_7, figure_8
from resval_lens.analyses.papers.amicl.bridge import transformer_study
from resval_lens.analyses.papers.amicl.combinations import combinations, figure_6
from resval_lens.analyses.papers.amicl.counting import SWEEP, batches, count, generators, share
from resval_lens.analyses.papers.amicl.model import AMICL, AMICLConfig, PairTask, Trials, exact
from resval_lens.analyses.papers.amicl.sweep import SweepTask, sweep, tasks
from resval_lens.analyses.papers.amicl.theory import (
    _best_right,
    _largest,
    margin,
    predicted,
    share_of_first,
    threshold,
)
from tests.reference import amicl as reference

PAPER, NOTEBOOK = SWEEP, PairTask(classes=50, reading="notebook")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def within(right: int, n: int, p: float, sds: float = 4) -> bool:
    return abs(right - n * p) <= sds * math.sqrt(n * p * (1 - p)) + 0.5


def right_of(task: PairTask, a: float, n: int, similarity: str = "dot", seed: int = 0) -> int:
    model = AMICL(AMICLConfig(a=a, similarity=similarity, reading=task.reading))
    return count([model], task, n, seeded(seed))[0]


# Published numbers


@pytest.mark.parametrize("a", PUBLISHED_COUNTS)
def test_the_notebooks_counts_come_out(a):
    """Ours of 4,000, theirs of 1,000 in each run: no more apart than chance would have them."""
    n, theirs = 4_000, set(PUBLISHED_COUNTS[a])
    ours, runs = right_of(NOTEBOOK, a, n), len(theirs)
    p = (ours + sum(theirs)) / (n + 1_000 * runs)
    sd = math.sqrt(p * (1 - p) * (1 / n + 1 / (1_000 * runs)))
    assert abs(ours / n - sum(theirs) / (1_000 * runs)) <= 4 * sd


def test_figure_7_says_what_the_paper_says():
    result = figure_7(seed=1, trials=200, points=9)
    assert result.a == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]
    for reading in ("paper", "notebook"):
        entry = result.readings[reading]
        late = [point.share for point in entry.dot[6:]]
        assert min(late) > 0.96  # "practically perfect" from 1.5
        assert entry.dot[8].right == 200
        assert all(point.right == 0 for point in entry.dot[:3])
        pearson = sum(point.right for point in entry.pearson[6:])
        assert within(pearson, 600, entry.pearson_limit)
        # What Pearson gets wrong goes to the first token.
        last, first = entry.pearson[8], entry.pearson_to_first
        assert within(first.right, 200, 1 - entry.pearson_limit)
        assert last.trials == first.trials == 200
        assert last.right + first.right <= 200


@pytest.mark.parametrize("i", [0, 1], ids=["paper", "notebook"])
def test_what_pearson_gets_right_and_what_goes_to_the_first_token_are_of_the_same_trials(i):
    reading = ("paper", "notebook")[i]
    entry = figure_7(seed=1, trials=300, points=3).readings[reading]
    generator = generators(2 + i, 6)[-1]  # of the last of 0, 1, 1.25, 1.5, 1.75 and 2
    trials = replace(PAPER, reading=reading).draw(300, generator)
    outputs = [
        AMICL(AMICLConfig(similarity=similarity, reading=reading))(
            trials.inputs, generator=generator
        )
        for similarity in ("dot", "pearson")
    ]
    assert entry.dot[-1].right == int(exact(outputs[0], trials).sum())
    assert entry.pearson[-1].right == int(exact(outputs[1], trials).sum())
    to_first = (outputs[1] == trials.inputs[:, 0]).all(1)
    assert entry.pearson_to_first.right == int(to_first.sum()) > 10


def test_pearson_fails_where_the_first_pair_is_of_the_class_and_nowhere_else():
    trials = PAPER.draw(3_000, seeded(3))
    output = AMICL(AMICLConfig(similarity="pearson"))(trials.inputs)
    first = trials.right[:, 0]
    right = exact(output, trials)
    assert float(right[first].float().mean()) < 0.01
    assert float(right[~first].float().mean()) > 0.999
    assert within(int(first.sum()), 3_000, share_of_first(PAPER))


def test_figure_8_does_not_depend_on_length_and_needs_dimensions():
    result = figure_8(seed=0, trials=60, lengths=(10, 1000), dimensions=(10, 50, 1000))
    for entry in result.readings.values():
        assert min(point.found.right for point in entry.length) >= 58
        d = [point.found.share for point in entry.d]
        assert d[0] < 0.9 < d[1] <= d[2] == 1
        assert [point.value for point in entry.d] == [10, 50, 1000]


def test_figure_6_shows_every_combination_and_argmax_on_the_label():
    result = figure_6(seed=0, trials=100)
    for reading, entry in result.readings.items():
        assert len(entry.combinations) == 12
        for each in entry.combinations:
            pattern = np.array(each.pattern)
            assert pattern.shape == (20, 20)
            if each.separation == "argmax":
                assert (pattern.sum(1) == 1).all()
                label = 2 * entry.classes.index(entry.classes[-1]) + 1
                if (each.similarity, reading) == ("dot", "paper"):
                    assert pattern[-1, label] == 1
                    assert each.weight > 0.99
            elif each.separation == "softmax":
                np.testing.assert_allclose(pattern.sum(1), 1, atol=1e-3)


@pytest.mark.parametrize("held", [1, 2, 1_000])
def test_the_weight_on_the_label_is_its_share_of_the_pattern(held, monkeypatch):
    """One trial a time, label by label; however many are held at a time."""
    monkeypatch.setattr("resval_lens.analyses.papers.amicl.counting.FLOATS", held * 100 * 20)
    (entry,) = (figure_6(seed=4, trials=3).readings["paper"],)
    generator = seeded(4)
    PairTask().draw(1, generator)
    torch.randn(100, generator=generator)
    parts = batches(PairTask(), 3, generator)
    trials = Trials(*(torch.cat(x) for x in zip(*parts, strict=True)))
    model = AMICL(AMICLConfig(separation="identity"))
    pattern = model.run_with_cache(trials.inputs)[1]["hook_pattern"][:, 0]
    shares = []
    for p, classes, query in zip(pattern, trials.classes, trials.query, strict=True):
        on = sum(abs(float(p[2 * i + 1])) for i, c in enumerate(classes) if c == classes[query])
        shares.append(on / sum(abs(float(x)) for x in p))
    assert entry.combinations[0].weight == pytest.approx(np.mean(shares), rel=1e-5)


def test_figure_6_holds_few_trials_at_a_time(monkeypatch):
    monkeypatch.setattr("resval_lens.analyses.papers.amicl.counting.FLOATS", 2 * 100 * 20)
    draw, alive, most = PairTask.draw, [], [0]

    def drawn(*given):
        alive[:] = [each for each in alive if each() is not None]
        trials = draw(*given)
        alive.append(weakref.ref(trials.inputs))
        most[0] = max(most[0], len(alive))
        return trials

    monkeypatch.setattr(PairTask, "draw", drawn)
    figure_6(trials=12)
    assert most[0] <= 4  # of both readings the one that is shown, a part and the next


def test_softmax_recalls_as_the_loop_does_at_any_temperature():
    task, found = PairTask(d=20, length=10, classes=9), {}
    for temperature in (1.0, 0.05):
        result = combinations(seed=3, trials=60, task=task, temperature=temperature)
        assert result.temperature == temperature
        trials = task.draw(60, generators(3, 2)[0])
        right = {"euclidean": 0, "cosine": 0}
        for x, labels, hit in zip(trials.inputs, trials.labels, trials.right, strict=True):
            output = reference.recall(
                x.double().numpy(),
                a=2.0,
                similarity="dot",
                separation="softmax",
                last_key=np.zeros(20),
                temperature=temperature,
            )["output"]
            vectors = labels.double().numpy()
            by = {
                "euclidean": np.linalg.norm(vectors - output, axis=1),
                "cosine": -vectors @ output / np.linalg.norm(vectors, axis=1),
            }
            for name, far in by.items():
                right[name] += bool(hit[far.argmin()])
        row = next(r for r in result.rows if r.separation == "softmax")
        assert (row.reading, row.similarity) == ("paper", "dot")
        assert {name: row.right[name].right for name in right} == right
        found[temperature] = right
    assert found[1.0] != found[0.05]


def test_a_task_that_one_reading_cannot_draw_is_refused_before_any_trial(monkeypatch):
    monkeypatch.setattr(PairTask, "draw", lambda *given: pytest.fail("drawn"))
    for study in (combinations, figure_6, figure_7, figure_8):
        with pytest.raises(ValueError, match="classes=1 leaves none to draw"):
            study(task=PairTask(classes=1))


def test_all_combinations_in_both_readings():
    result = combinations(trials=300)
    rows = {(r.reading, r.similarity, r.separation): r.right for r in result.rows}
    assert len(rows) == 24
    for reading in ("paper", "notebook"):
        assert rows[reading, "dot", "argmax"]["exact"].right == 300
        assert 0.8 < rows[reading, "pearson", "argmax"]["exact"].share < 0.95
        for similarity in ("dot", "pearson"):
            assert rows[reading, similarity, "identity"]["cosine"].share > 0.98
    for similarity in ("manhattan", "euclidean"):
        assert rows["paper", similarity, "argmax"]["exact"].share > 0.88
        assert rows["notebook", similarity, "argmax"]["exact"].share < 0.02


# Theory


@pytest.mark.parametrize(
    "task",
    [
        PAPER,
        NOTEBOOK,
        PairTask(noise=0.0, d=40),
        PairTask(noise=0.7),
        PairTask(noise=1.0, classes=8),
        PairTask(gap=2, length=40),
        PairTask(d=20, length=60),
        PairTask(d=30, length=200, classes=50),
        PairTask(length=4),
    ],
    ids=str,
)
def test_accuracy_is_what_theory_predicts(task):
    values, n = (1.0, 1.3, 2.0, 2.5), 5_000
    models = [AMICL(AMICLConfig(a=a, reading=task.reading, reach=task.gap + 1)) for a in values]
    for a, right in zip(values, count(models, task, n, seeded(0)), strict=True):
        assert right / n == pytest.approx(predicted(a, task), abs=0.02)


def test_theory_is_too_low_where_competitors_repeat():
    """The limit that its docstring gives."""
    task = PairTask(classes=3)
    assert predicted(1.3, task) == pytest.approx(0.898, abs=0.001)
    assert right_of(task, 1.3, 5_000) / 5_000 == pytest.approx(0.948, abs=0.01)


@pytest.mark.parametrize("reading", ["paper", "notebook"])
def test_the_best_of_several_right_scores_is_that_of_vectors(reading):
    """Objects and labels drawn in full: o' = (μ + εη)/√(1 + ε²), all of one class and label."""
    d, a, eps, n, draws = 12, 3.0, 1.2, 5, 60_000
    rng = np.random.default_rng(0)
    sd = d**-0.5 if reading == "paper" else 1 / d
    mean, label = rng.standard_normal((2, draws, d)) * d**-0.5
    objects = mean + eps * sd * rng.standard_normal((n + 1, draws, d))
    *others, asked = objects / (1 + eps**2) ** 0.5
    best = np.max([(o * asked).sum(1) for o in others], axis=0) * a + (label * asked).sum(1)
    square = (asked**2).sum(1)
    slope = d**-1 / (d**-1 + eps**2 * sd**2)
    found = (best - a * slope * square) / np.sqrt(square / d)
    task = PairTask(d=d, noise=eps, reading=reading)
    (above,), (spread,) = _best_right(a, task, np.array([n]))
    assert found.mean() == pytest.approx(above, abs=0.04)
    assert found.std() == pytest.approx(spread, abs=0.03)


def test_equal_scores_go_to_the_label():
    """Without noise, at a = 1, the last object's key can be the label's; rounding set aside."""
    task = PairTask(noise=0.0, d=40)
    trials = task.draw(10_000, seeded(1), torch.float64)
    cfg = AMICLConfig(a=1.0)
    scores = AMICL(cfg).run_with_cache(trials.inputs)[1]["hook_attn_scores"][:, 0]
    best = scores >= scores.amax(1, keepdim=True) - 1e-12
    share_right = float((best[:, 1:-1:2] & trials.right).any(1).double().mean())
    assert share_right == pytest.approx(predicted(1.0, task), abs=0.012)
    assert predicted(1.0, task) == pytest.approx(predicted(1 + 1e-6, task), abs=1e-3)


def test_the_largest_of_normals_has_the_moments_of_its_closed_form():
    mean, variance = _largest(np.array([1, 2, 3]))
    pi = math.pi
    assert mean == pytest.approx([0, pi**-0.5, 1.5 * pi**-0.5], abs=1e-9)
    third = 1 + (math.sqrt(3) - 4.5) / (2 * pi)
    assert variance == pytest.approx([1, 1 - 1 / pi, third], abs=1e-9)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (PairTask(distractors=2, classes=9), "distractors=2, cue=0: expected a task without"),
        (PairTask(cue=0.5), "distractors=0, cue=0.5: expected a task without"),
    ],
    ids=["distractors", "cue"],
)
def test_tasks_that_theory_does_not_cover_are_refused(task, message):
    for call in (share_of_first, lambda given: predicted(1.0, given)):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(task)


def test_a_gap_takes_a_reach_with_which_the_first_key_wraps_to_a_filler():
    with pytest.raises(ValueError, match="gap=3: expected a task without, for a reach of 1"):
        share_of_first(PairTask(gap=3))


def test_a_large_a_and_noise_bring_pearson_above_the_share_of_first():
    limit = 1 - share_of_first(PAPER)
    assert within(right_of(PAPER, 8.0, 2_000, "pearson"), 2_000, limit)
    assert right_of(PAPER, 32.0, 4_000, "pearson") / 4_000 > limit + 0.01
    noisy = replace(PAPER, noise=1.0)
    assert right_of(noisy, 8.0, 2_000, "pearson") / 2_000 > limit + 0.03


def test_the_margin_is_the_mean_gap_of_scores():
    for task in (PairTask(noise=0.8, classes=1_000), PairTask(noise=0.8, reading="notebook")):
        trials = task.draw(5_000, seeded(0))
        for a in (0.5, 1.7, 4.0):
            cfg = AMICLConfig(a=a, separation="identity")
            scores = AMICL(cfg).run_with_cache(trials.inputs)[1]["hook_attn_scores"][:, 0]
            # Where the label of the last pair but one is not the right one: its own term is 0.
            apart = ~trials.right[:, -1]
            label = scores[torch.arange(5_000), 2 * trials.query + 1]
            gap = (label - scores[:, -2])[apart]
            assert float(gap.mean()) == pytest.approx(margin(a, task), abs=0.005)
        assert margin(threshold(task), task) == 0
    assert threshold(PairTask(noise=1.0)) == 2
    assert threshold(PairTask(noise=1.0, reading="notebook")) == 1.01


def test_the_interval_is_wilsons():
    for right, n in ((0, 10), (7, 10), (994, 1000), (10, 10)):
        p, z = right / n, stats.norm.ppf(0.975)
        middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
        assert share(right, n).interval == pytest.approx([middle - half, middle + half])


def test_points_of_a_curve_are_drawn_independently():
    first = [torch.rand(3, generator=g).tolist() for g in generators(0, 50)]
    assert len({tuple(x) for x in first}) == 50
    assert first == [torch.rand(3, generator=g).tolist() for g in generators(0, 50)]


# The sweep


def test_the_best_a_depends_on_the_task():
    values = (0.0, 1.0, 1.4, 2.0, 4.0, 16.0)
    chosen = [each for each in tasks((0.1, 1.0)) if "8 look" not in each.name]
    result = sweep(chosen, values, trials=400)
    rows = {row.of.name: row for row in result.tasks}
    assert rows["pairs, ε = 0.1"].as_good[0] <= 2
    assert rows["pairs, ε = 1"].as_good[0] > 2
    assert rows["gap of 4, reach 5"].curve[3].share > 0.98
    assert max(point.share for point in rows["gap of 4, reach 1"].curve) < 0.1
    assert rows["2 look-alikes (ρ = .9)"].best > 2
    assert rows["3 labels, of 9 pairs"].best == 0
    assert rows["3 labels, of 39 pairs"].best in (1.4, 2.0)
    assert rows["learned value map"].curve[3].share > 0.95
    assert rows["learned value map"].predicted is None
    said = result.sentences()
    assert said[0].startswith("No a is as good as the best on every task")
    assert any(each.startswith("Not counted: gap of 4, reach 1 (at most") for each in said)


def test_as_good_is_what_a_paired_test_does_not_tell_apart():
    """Against the binomial tail of the discordant trials, drawn fresh from the same seed."""
    task = PairTask(classes=450, distractors=2, likeness=1.0, cue=0.2)
    values = [0.5, 1.4, 2.0, 2.4, 2.8, 16.0]
    row = sweep([SweepTask("x", "shared object", task)], values, seed=3, trials=300).tasks[0]
    (generator,) = generators(3, 1)
    trials = task.draw(300, generator)
    hits = [exact(AMICL(AMICLConfig(a=a))(trials.inputs), trials).numpy() for a in values]
    assert [point.right for point in row.curve] == [int(h.sum()) for h in hits]
    best = int(np.argmax([h.sum() for h in hits]))
    assert row.best == values[best]
    good, disputed = [], []
    for a, h in zip(values, hits, strict=True):
        wins, losses = int((hits[best] & ~h).sum()), int((h & ~hits[best]).sum())
        disputed.append(min(wins, losses))
        tail = sum(math.comb(wins + losses, k) for k in range(min(wins, losses) + 1))
        if min(1.0, 2 * tail / 2 ** (wins + losses)) >= 0.05:
            good.append(a)
    assert row.as_good_values == good
    assert row.as_good == (good[0], good[-1])
    assert 1 < len(good) < len(values)
    assert max(disputed) > 5


def test_a_map_learned_from_examples_recalls_what_was_never_seen():
    chosen = [SweepTask("map", "hetero", PairTask(d=30, noise=0.0), learned=True)]
    row = sweep(chosen, [0.3, 3.0], trials=200).tasks[0]
    assert row.curve[1].share > 0.9
    assert row.curve[0].share < 0.3  # it was taught with what it recalled wrongly


# Commands


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


@pytest.mark.parametrize(
    ("arguments", "name", "words"),
    [
        (
            "reproduce figure-6 --trials 20",
            "figure-6",
            ["among the cleanest", "T = 1", "manhattan"],
        ),
        ("reproduce figure-7 --trials 5 --seed 3", "figure-7", [".321–.342", "~85%", "(paper)"]),
        (
            "amicl combinations --trials 30 --a 1.5 --temperature 0.25",
            "amicl-combinations",
            ["euclidean", "exactly", "a = 1.5, T = 0.25"],
        ),
        (
            "amicl sweep --trials 20",
            "amicl-sweep",
            ["dot, argmax, paper", "≥", "best a", "last bit; learned value map: the right label"],
        ),
        (
            "amicl sweep --trials 5 --similarity pearson --separation softmax --reading notebook "
            "--temperature 0.5",
            "amicl-sweep",
            ["pairs, ε = 1", "pearson, softmax, T = 0.5, notebook"],
        ),
    ],
)
def test_commands_print_and_write_what_they_found(arguments, name, words, tmp_path):
    said = invoke(*arguments.split(), "--out", str(tmp_path), "--quiet")
    for word in words:
        assert word in said
    assert max(len(line) for line in said.splitlines() if str(tmp_path) not in line) <= 80
    assert "…" not in said
    report = json.loads((tmp_path / f"{name}.json").read_text())
    assert report["seed"] == (3 if "--seed" in arguments else 0)
    assert report["provenance"]["versions"]["torch"]
    if name != "amicl-combinations":
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) in said
    if name == "amicl-sweep":
        assert len(report["tasks"]) == 13
        assert report["found"]
    if "--temperature" in arguments:
        temperature = float(arguments.split("--temperature ")[1])
        assert report.get("memory", report)["temperature"] == temperature


def test_figure_8_from_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr("resval_lens.analyses.papers.amicl.accuracy.LENGTHS", (10, 20))
    said = invoke("reproduce", "figure-8", "--trials", "2", "--out", str(tmp_path), "--quiet")
    assert "practically perfect from 50" in said
    assert (tmp_path / "figure-8.png").is_file()


def test_the_transformer_from_the_command(tmp_path, monkeypatch):
    small = partial(transformer_study, weights=(1.0, 2.0), fit_trials=300)
    monkeypatch.setattr("resval_lens.analyses.papers.amicl.bridge.transformer_study", small)
    said = invoke("amicl", "transformer", "--trials", "5", "--out", str(tmp_path), "--quiet")
    assert "Largest difference from AMICL's output" in said
    assert max(len(line) for line in said.splitlines() if str(tmp_path) not in line) <= 80
    report = json.loads((tmp_path / "amicl-transformer.json").read_text())
    assert report["seed"] == 0
    assert (tmp_path / "amicl-transformer.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("amicl transformer --trials 0", "trials must be 1 or more; got 0"),
        ("reproduce figure-7 --seeds 0", "--seeds 0 is for what is trained"),
        ("reproduce figure-6 --train", "--train is for what is trained"),
        ("reproduce figure-8 --jobs 2", "--jobs 2 is for what is trained"),
        ("reproduce figure-7 --trials 0", "trials must be 1 or more; got 0"),
        ("reproduce figure-7 --seed -1", "seed must be from 0 to 2^63 − 1; got -1"),
        *(
            (f"{command} --seed {2**63}", f"seed must be from 0 to 2^63 − 1; got {2**63}")
            for command in (
                "reproduce figure-6",
                "reproduce figure-8",
                "amicl combinations",
                "amicl sweep",
                "amicl transformer",
            )
        ),
        ("reproduce table-1 --seed 0", "--seed 0 is for figure-6, figure-7, figure-8"),
        ("reproduce table-1 --trials 0", "--trials 0 is for figure-6, figure-7, figure-8"),
        ("reproduce figure-7 --steps 0", "--steps 0 is for what is trained"),
        ("reproduce figure-7 --jobs 0", "--jobs 0 is for what is trained"),
        ("amicl combinations --classes 1", "classes=1 leaves none to draw"),
        ("amicl combinations --temperature 0", "temperature must be a finite number above 0"),
        ("amicl sweep --temperature -1", "temperature must be a finite number above 0; got -1"),
        ("reproduce table-1 --trials 5", "--trials 5 is for figure-6, figure-7, figure-8"),
        ("reproduce table-1 --seed 5", "--seed 5 is for figure-6, figure-7, figure-8"),
        ("amicl combinations --a -1", "a must be a finite number other than -1; got -1"),
        ("amicl combinations --length 5", "length must be a multiple of 2"),
        ("amicl sweep --similarity cosine", "similarity must be one of dot, pearson"),
        ("amicl sweep --trials 0", "trials must be 1 or more; got 0"),
    ],
)
def test_bad_input_is_refused_before_any_work(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        invoke(*arguments.split(), "--out", str(tmp_path))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["reproduce table-1", "compare"])
def test_training_for_no_steps_is_not_training_for_the_usual_ones(command, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "resval_lens.analyses.cli.training_bars.train_with_bars",
        lambda *given: pytest.fail("trained"),
    )
    with pytest.raises(ValueError, match="steps must be a whole number from 1 up; got 0"):
        invoke(*f"{command} --train --steps 0 --runs {tmp_path} --out {tmp_path}".split())


@pytest.mark.parametrize("command", [["combinations"], ["sweep"], ["transformer"]], ids=str)
def test_help_has_an_example(command):
    assert "Example" in invoke("amicl", *command, "--help")
