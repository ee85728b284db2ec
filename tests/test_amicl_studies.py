"""AMICL's figures, combinations and sweep, and the commands that make them."""

import json
import math
import re
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from typer.testing import CliRunner

from resval_lens.amicl import AMICL, AMICLConfig, PairTask, exact
from resval_lens.analyses.amicl.recall import (
    PUBLISHED_COUNTS,
    SWEEP,
    combinations,
    count,
    figure_6,
    figure_7,
    figure_8,
    generators,
    share,
)
from resval_lens.analyses.amicl.sweep import SweepTask, sentences, sweep, tasks
from resval_lens.analyses.amicl.theory import margin, predicted, share_of_first, threshold
from resval_lens.analyses.amicl.transformer_figure import transformer_study
from resval_lens.analyses.cli import app

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
    n, theirs = 4_000, PUBLISHED_COUNTS[a]
    ours, runs = right_of(NOTEBOOK, a, n), len(theirs)
    p = (ours + sum(theirs)) / (n + 1_000 * runs)
    sd = math.sqrt(p * (1 - p) * (1 / n + 1 / (1_000 * runs)))
    assert abs(ours / n - sum(theirs) / (1_000 * runs)) <= 4 * sd


def test_figure_7_says_what_the_paper_says():
    result = figure_7(seed=1, trials=200, points=9)
    assert result["a"] == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]
    for reading in ("paper", "notebook"):
        entry = result["readings"][reading]
        late = [point["share"] for point in entry["dot"][6:]]
        assert min(late) > 0.96  # "practically perfect" from 1.5
        assert entry["dot"][8]["right"] == 200
        assert all(point["right"] == 0 for point in entry["dot"][:3])
        pearson = sum(point["right"] for point in entry["pearson"][6:])
        assert within(pearson, 600, entry["pearson_limit"])
        # What Pearson gets wrong goes to the first token.
        last, first = entry["pearson"][8], entry["pearson_to_first"]
        assert within(first["right"], 200, 1 - entry["pearson_limit"])
        assert last["trials"] == first["trials"] == 200


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
    for entry in result["readings"].values():
        assert min(point["right"] for point in entry["length"]) >= 58
        d = [point["share"] for point in entry["d"]]
        assert d[0] < 0.9 < d[1] <= d[2] == 1
        assert [point["value"] for point in entry["d"]] == [10, 50, 1000]


def test_figure_6_shows_every_combination_and_argmax_on_the_label():
    result = figure_6(seed=0, trials=100)
    for reading, entry in result["readings"].items():
        assert len(entry["combinations"]) == 12
        for each in entry["combinations"]:
            pattern = np.array(each["pattern"])
            assert pattern.shape == (20, 20)
            if each["separation"] == "argmax":
                assert (pattern.sum(1) == 1).all()
                label = 2 * entry["classes"].index(entry["classes"][-1]) + 1
                if (each["similarity"], reading) == ("dot", "paper"):
                    assert pattern[-1, label] == 1
                    assert each["weight"] > 0.99
            elif each["separation"] == "softmax":
                np.testing.assert_allclose(pattern.sum(1), 1, atol=1e-3)


def test_the_weight_on_the_label_is_its_share_of_the_pattern():
    """One trial a time, label by label."""
    (entry,) = (figure_6(seed=4, trials=3)["readings"]["paper"],)
    generator = seeded(4)
    PairTask().draw(1, generator)
    torch.randn(100, generator=generator)
    trials = PairTask().draw(3, generator)
    model = AMICL(AMICLConfig(separation="identity"))
    pattern = model.run_with_cache(trials.inputs)[1]["hook_pattern"][:, 0]
    shares = []
    for p, classes, query in zip(pattern, trials.classes, trials.query, strict=True):
        on = sum(abs(float(p[2 * i + 1])) for i, c in enumerate(classes) if c == classes[query])
        shares.append(on / sum(abs(float(x)) for x in p))
    assert entry["combinations"][0]["weight"] == pytest.approx(np.mean(shares), rel=1e-5)


def test_all_combinations_in_both_readings():
    result = combinations(trials=300)
    rows = {(r["reading"], r["similarity"], r["separation"]): r for r in result["rows"]}
    assert len(rows) == 24
    for reading in ("paper", "notebook"):
        assert rows[reading, "dot", "argmax"]["exact"]["right"] == 300
        assert 0.8 < rows[reading, "pearson", "argmax"]["exact"]["share"] < 0.95
        for similarity in ("dot", "pearson"):
            assert rows[reading, similarity, "identity"]["cosine"]["share"] > 0.98
    for similarity in ("manhattan", "euclidean"):
        assert rows["paper", similarity, "argmax"]["exact"]["share"] > 0.88
        assert rows["notebook", similarity, "argmax"]["exact"]["share"] < 0.02


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
    ],
    ids=str,
)
def test_accuracy_is_what_theory_predicts(task):
    for a in (1.0, 1.3, 2.5):
        model = AMICL(AMICLConfig(a=a, reading=task.reading, reach=task.gap + 1))
        ours = count([model], task, 2_000, seeded(0))[0] / 2_000
        assert ours == pytest.approx(predicted(a, task), abs=0.045)


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
        assert share(right, n)["interval"] == pytest.approx([middle - half, middle + half])


def test_points_of_a_curve_are_drawn_independently():
    first = [torch.rand(3, generator=g).tolist() for g in generators(0, 50)]
    assert len({tuple(x) for x in first}) == 50
    assert first == [torch.rand(3, generator=g).tolist() for g in generators(0, 50)]


# The sweep


def test_the_best_a_depends_on_the_task():
    values = (0.0, 1.0, 1.4, 2.0, 4.0, 16.0)
    chosen = [each for each in tasks((0.1, 1.0)) if "8 look" not in each.name]
    result = sweep(chosen, values, trials=400)
    rows = {row["name"]: row for row in result["tasks"]}
    assert rows["pairs, ε = 0.1"]["as_good"][0] <= 2
    assert rows["pairs, ε = 1"]["as_good"][0] > 2
    assert rows["gap of 4, reach 5"]["curve"][3]["share"] > 0.98
    assert max(point["share"] for point in rows["gap of 4, reach 1"]["curve"]) < 0.1
    assert rows["2 look-alikes (ρ = .9)"]["best"] > 2
    assert rows["3 labels, of 9 pairs"]["best"] == 0
    assert rows["3 labels, of 39 pairs"]["best"] in (1.4, 2.0)
    assert rows["learned value map"]["curve"][3]["share"] > 0.95
    assert rows["learned value map"]["predicted"] is None
    said = sentences(result)
    assert said[0].startswith("No a is best for every task")
    assert any("no a makes up for a reach" in each for each in said)
    assert any("object and label both count" in each for each in said)
    low = rows["pairs, ε = 1"]["as_good"][0]
    assert any(f"from {low:g} at ε = 1; below 1.01 and 2 the" in each for each in said)


def test_as_good_is_what_a_paired_test_does_not_tell_apart():
    """Against the binomial tail of the discordant trials, drawn anew from the same seed."""
    task = PairTask(classes=450, distractors=2, likeness=1.0, cue=0.2)
    values = [0.5, 1.4, 2.0, 2.4, 2.8, 16.0]
    row = sweep([SweepTask("x", "shared object", task)], values, seed=3, trials=300)["tasks"][0]
    (generator,) = generators(3, 1)
    trials = task.draw(300, generator)
    hits = [exact(AMICL(AMICLConfig(a=a))(trials.inputs), trials).numpy() for a in values]
    assert [point["right"] for point in row["curve"]] == [int(h.sum()) for h in hits]
    best = int(np.argmax([h.sum() for h in hits]))
    assert row["best"] == values[best]
    good, disputed = [], []
    for a, h in zip(values, hits, strict=True):
        wins, losses = int((hits[best] & ~h).sum()), int((h & ~hits[best]).sum())
        disputed.append(min(wins, losses))
        tail = sum(math.comb(wins + losses, k) for k in range(min(wins, losses) + 1))
        if min(1.0, 2 * tail / 2 ** (wins + losses)) >= 0.05:
            good.append(a)
    assert row["as_good_values"] == good
    assert row["as_good"] == [good[0], good[-1]]
    assert 1 < len(good) < len(values)
    assert max(disputed) > 5


def test_a_map_learned_from_examples_recalls_what_was_never_seen():
    chosen = [SweepTask("map", "hetero", PairTask(d=30, noise=0.0), learned=True)]
    row = sweep(chosen, [0.3, 3.0], trials=200)["tasks"][0]
    assert row["curve"][1]["share"] > 0.9
    assert row["curve"][0]["share"] < 0.3  # it was taught with what it recalled wrongly


# Commands


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


@pytest.mark.parametrize(
    ("arguments", "name", "words"),
    [
        ("reproduce figure-6 --trials 20", "figure-6", ["among the cleanest", "manhattan"]),
        ("reproduce figure-7 --trials 5 --seed 3", "figure-7", [".321–.342", "~85%", "theory"]),
        ("amicl combinations --trials 30 --a 1.5", "amicl-combinations", ["euclidean", "exactly"]),
        ("amicl sweep --trials 20", "amicl-sweep", ["learned value map", "≥", "best a"]),
        (
            "amicl sweep --trials 5 --similarity pearson --separation softmax --reading notebook",
            "amicl-sweep",
            ["pairs, ε = 1"],
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


def test_figure_8_from_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr("resval_lens.analyses.amicl.recall.LENGTHS", (10, 20))
    said = invoke("reproduce", "figure-8", "--trials", "2", "--out", str(tmp_path), "--quiet")
    assert "practically perfect from 50" in said
    assert (tmp_path / "figure-8.png").is_file()


def test_the_transformer_from_the_command(tmp_path, monkeypatch):
    small = partial(transformer_study, weights=(1.0, 2.0), fit_trials=300)
    monkeypatch.setattr("resval_lens.analyses.amicl.transformer_figure.transformer_study", small)
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
        ("reproduce figure-7 --seed -1", "seed must be 0 or more; got -1"),
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


@pytest.mark.parametrize("command", [["combinations"], ["sweep"], ["transformer"]], ids=str)
def test_help_has_an_example(command):
    assert "Example" in invoke("amicl", *command, "--help")
