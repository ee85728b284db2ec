"""AMICL and its trials, against NumPy loops."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Generator, Tensor

from resval_lens.analyses.papers.amicl.model import (
    AMICL,
    READINGS,
    SEPARATIONS,
    SIMILARITIES,
    AMICLConfig,
    PairTask,
    Trials,
    exact,
    fit_value_map,
    nearest,
)
from tests.reference import amicl as reference

RARE = 1e-4  # a statistic this improbable is a mistake, not chance; the seeds are fixed
HOOKS = {
    "hook_embed": (3, 8, 5),
    "hook_q": (3, 1, 5),
    "hook_k": (3, 8, 5),
    "hook_v": (3, 8, 5),
    "hook_attn_scores": (3, 1, 8),
    "hook_pattern": (3, 1, 8),
    "hook_out": (3, 1, 5),
}


def seeded(seed: int) -> Generator:
    return torch.Generator().manual_seed(seed)


def tokens(batch: int = 3, length: int = 8, d: int = 5, seed: int = 0) -> Tensor:
    x = torch.randn(batch, length, d, generator=seeded(seed), dtype=torch.float64)
    x[:, -1] = 0
    return x


# The memory


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("separation", SEPARATIONS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(("a", "reach", "temperature"), [(2.0, 1, 1.0), (0.7, 3, 0.25)])
def test_the_memory_is_the_loop(similarity, separation, reading, a, reach, temperature):
    x, last_key = tokens(), torch.randn(3, 5, generator=seeded(1), dtype=torch.float64)
    cfg = AMICLConfig(a, similarity, separation, temperature, reading, reach=reach)
    given = last_key if reading == "notebook" else None
    output, cache = AMICL(cfg).run_with_cache(x, last_key=given)
    every, all_cache = AMICL(cfg).run_with_cache(x, queries="all", last_key=given)
    for i in range(3):
        for query in (*range(8), None):
            expected = reference.recall(
                x[i].numpy(),
                a=a,
                similarity=similarity,
                separation=separation,
                last_key=last_key[i].numpy() if reading == "notebook" else np.zeros(5),
                sign=1 if reading == "notebook" else -1,
                temperature=temperature,
                reach=reach,
                query=query,
            )
            at, found = (0, cache) if query is None else (query, all_cache)
            for name, hook in (
                ("query", "hook_q"),
                ("scores", "hook_attn_scores"),
                ("pattern", "hook_pattern"),
                ("output", "hook_out"),
            ):
                np.testing.assert_allclose(found[hook][i, at], expected[name], atol=1e-10)
            np.testing.assert_allclose(found["hook_k"][i], expected["keys"], atol=1e-10)
        np.testing.assert_allclose(output[i], expected["output"], atol=1e-10)
    torch.testing.assert_close(every[:, -1], output, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("distances", ["negated", "raw"])
@pytest.mark.parametrize("similarity", ["manhattan", "euclidean"])
def test_either_reading_runs_with_either_sign_of_distances(similarity, distances, reading):
    cfg = AMICLConfig(
        similarity=similarity, separation="identity", reading=reading, distances=distances
    )
    scores = AMICL(cfg).run_with_cache(tokens(), generator=seeded(0))[1]["hook_attn_scores"]
    assert ((scores <= 0) if distances == "negated" else (scores >= 0)).all()


def test_argmax_takes_the_first_of_equals():
    x = torch.zeros(2, 6, 3)
    assert (AMICL().run_with_cache(x)[1]["hook_pattern"][:, 0, 0] == 1).all()


def test_the_correlation_with_a_constant_vector_is_0():
    x = tokens()
    x[0, 2:4] = 0.1  # a constant key, not 0
    x[1, 6] = 0  # the query of sequence 1 is 0, and every correlation
    cfg = AMICLConfig(similarity="pearson", separation="identity")
    scores = AMICL(cfg).run_with_cache(x)[1]["hook_attn_scores"][:, 0]
    assert scores.isfinite().all()
    assert scores[0, 3] == 0
    assert (scores[1] == 0).all()
    assert (scores[:, -1] == 0).all()
    assert (scores[2, :-1].abs() > 1e-6).all()


def test_the_notebooks_last_key_is_drawn_from_the_generator_alone():
    model = AMICL(AMICLConfig(reading="notebook", separation="softmax"))
    x = torch.zeros(4_000, 4, 9)
    before = torch.random.get_rng_state()
    keys = [model.run_with_cache(x, generator=seeded(s))[1]["hook_k"][:, -1] for s in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(keys[0], keys[1])
    assert not torch.equal(keys[0], keys[2])
    assert stats.kstest(keys[0].flatten().double() * 3, "norm").pvalue > RARE


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_point_is_cached_and_can_be_patched(name):
    model = AMICL(AMICLConfig(separation="softmax"))
    x, other = tokens(), tokens(seed=9)
    assert set(model.hook_dict) == set(HOOKS)
    clean, cache = model.run_with_cache(x)
    assert cache[name].shape == HOOKS[name]
    corrupted = model(other)
    # What comes after a hook point follows from it and from what else is read there.
    hooks = [(name, lambda value, hook: cache[name])]
    if name != "hook_v":
        hooks.append(("hook_v", lambda value, hook: cache["hook_v"]))
    if name in ("hook_q", "hook_k", "hook_v"):
        hooks += [
            (rest, lambda value, hook, rest=rest: cache[rest]) for rest in ("hook_q", "hook_k")
        ]
    patched = model.run_with_hooks(other, fwd_hooks=hooks)
    torch.testing.assert_close(patched, clean, rtol=0, atol=1e-12)
    assert not torch.allclose(corrupted, clean)
    torch.testing.assert_close(model(other), corrupted)


def test_hetero_association_reads_values_through_the_map():
    x, W = tokens(), torch.randn(5, 7, generator=seeded(3), dtype=torch.float64)
    plain, mapped = AMICL(), AMICL(value_map=W)
    torch.testing.assert_close(mapped(x), plain(x) @ W)
    assert mapped.run_with_cache(x)[1]["hook_v"].shape == (3, 8, 7)
    mapped(x).sum().backward()
    assert mapped.W_V.grad is not None
    assert list(plain.parameters()) == []


def test_gradients_reach_the_tokens():
    for similarity in SIMILARITIES:
        x = tokens().requires_grad_()
        AMICL(AMICLConfig(similarity=similarity, separation="softmax"))(x).sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_output_has_the_type_of_the_input(dtype):
    trials = PairTask(d=8).draw(2, seeded(0), dtype)
    for separation in SEPARATIONS:
        model = AMICL(AMICLConfig(separation=separation, reading="notebook"))
        assert model(trials.inputs, generator=seeded(0)).dtype == dtype


def test_a_value_map_is_ridge_regression():
    rng = np.random.default_rng(0)
    R, T = rng.normal(size=(30, 4)), rng.normal(size=(30, 3))
    for ridge in (0.0, 0.5):
        W = fit_value_map(torch.tensor(R), torch.tensor(T), ridge).numpy()
        # Ridge regression is least squares with √(λn)·I below the data.
        below = np.sqrt(ridge * 30) * np.eye(4)
        expected = np.linalg.lstsq(np.vstack([R, below]), np.vstack([T, np.zeros((4, 3))]))[0]
        np.testing.assert_allclose(W, expected, atol=1e-10)


# Trials


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 6),
    gap=st.integers(0, 3),
    distractors=st.integers(0, 2),
    families=st.integers(1, 9),
    noise=st.sampled_from([0.0, 0.1, 1.0]),
    cue=st.sampled_from([0.0, 0.4, 1.0]),
    seed=st.integers(0, 1000),
)
def test_a_trial_is_what_it_says(m, gap, distractors, families, noise, cue, seed):
    family, step = distractors + 1, 2 + gap
    m *= family
    task = PairTask(d=6, length=step * (m + 1), classes=families * family, noise=noise, gap=gap,
                    distractors=distractors, cue=cue)  # fmt: skip
    trials = task.draw(4, seeded(seed), torch.float64)
    assert trials.inputs.shape == (4, task.length, 6)
    assert trials.classes.shape == (4, m)
    assert trials.classes.max() < task.classes
    for i, x in enumerate(trials.inputs):
        classes = trials.classes[i].tolist()
        for pair, c in enumerate(classes):
            assert torch.equal(x[step * pair + step - 1], trials.labels[i, pair])
            for other, c2 in enumerate(classes):
                same = torch.equal(trials.labels[i, pair], trials.labels[i, other])
                assert same == (c == c2)
                if noise == 0 and c == c2:
                    assert torch.equal(x[step * pair], x[step * other])
        asked = int(trials.query[i])
        if noise == 0:
            assert torch.equal(x[step * m], x[step * asked])
        if cue == 0:
            assert (x[-1] == 0).all()
        elif cue == 1:
            assert torch.equal(x[-1], trials.targets[i])
        # Whole families, each member as often as the others.
        counted = np.bincount(classes, minlength=task.classes).reshape(-1, family)
        assert (counted == counted[:, :1]).all()


@pytest.mark.parametrize(("classes", "length"), [(40, 20), (5, 40)])
@pytest.mark.parametrize("reading", READINGS)
def test_vectors_that_occur_are_distributed_as_if_all_were_drawn(reading, classes, length):
    """Both ways of drawing: fewer classes than pairs, and more."""
    d, noise, n = 12, 0.5, 4_000
    task = PairTask(d=d, length=length, classes=classes, noise=noise, reading=reading)
    trials = task.draw(n, seeded(5), torch.float64)
    objects, last = trials.inputs[:, :-2:2], trials.inputs[:, -2]
    variance = noise**2 / (1 if reading == "paper" else d)
    assert stats.kstest((trials.labels[:, 0] * d**0.5).flatten(), "norm").pvalue > RARE
    square = (1 + variance) / (1 + noise**2)
    own = objects[torch.arange(n), trials.query]
    assert stats.kstest((last * (d / square) ** 0.5).flatten(), "norm").pvalue > RARE
    # Two instances of a class differ by noise alone, and are independent of everything else.
    apart = ((last - own) * (d / (2 * variance / (1 + noise**2))) ** 0.5).flatten()
    assert stats.kstest(apart, "norm").pvalue > RARE
    for first, second in ((own, trials.targets), (own[1:], own[:-1]), (last, trials.labels[:, 0])):
        assert abs(float((first * second).sum(-1).mean())) < 5 / (n * d) ** 0.5
    seen = torch.bincount(trials.classes.flatten())
    assert len(seen) == classes - (reading == "notebook")
    assert stats.chisquare(seen.numpy()).pvalue > RARE
    asked = torch.bincount(trials.query, minlength=task.n_pairs)
    assert stats.chisquare(asked.numpy()).pvalue > RARE


def test_distractors_look_alike_as_far_as_asked_and_a_dim_label_is_as_dim_as_asked():
    task = PairTask(d=50, distractors=2, likeness=0.8, noise=0.0, classes=300, cue=0.3)
    trials = task.draw(3_000, seeded(2), torch.float64)
    objects = trials.inputs[:, :-2:2]
    family = trials.classes // 3
    alike = (family[:, :1] == family[:, 1:]) & (trials.classes[:, :1] != trials.classes[:, 1:])
    inner = (objects[:, :1] * objects[:, 1:]).sum(-1)
    assert float(inner[alike].mean()) == pytest.approx(0.8, abs=0.01)
    strange = family[:, :1] != family[:, 1:]
    assert abs(float(inner[strange].mean())) < 0.01
    assert float(objects.square().sum(-1).mean()) == pytest.approx(1, abs=0.01)
    last, label = trials.inputs[:, -1], trials.targets
    assert float((last * label).sum(-1).mean()) == pytest.approx(0.3, abs=0.01)
    assert float(last.square().sum(-1).mean()) == pytest.approx(1, abs=0.01)
    assert stats.kstest(((last - 0.3 * label) / (0.91 / 50) ** 0.5).flatten(), "norm").pvalue > RARE


def test_fillers_are_new_everywhere():
    x = PairTask(gap=2, length=12, d=200).draw(50, seeded(0), torch.float64).inputs
    fillers = x.view(50, 3, 4, 200)[:, :, 1:3].reshape(-1, 200)
    inner = fillers @ fillers.T
    assert float(inner.diagonal().mean()) == pytest.approx(1, abs=0.05)
    assert float((inner - inner.diag().diag()).abs().max()) < 0.5


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize(("a", "similarity"), [(1.0, "dot"), (1.25, "dot"), (1.5, "pearson")])
def test_accuracy_is_that_of_the_loop(a, similarity, reading):
    """Trials and memory together, against the loop that draws every class's vectors."""
    n = 1_500
    setting = {"d": 30, "length": 12, "classes": 20, "noise": 0.3, "reading": reading}
    rng = np.random.default_rng(0)
    theirs = reference.accuracy(rng, n, a=a, similarity=similarity, **setting)
    task = PairTask(**setting)
    trials = task.draw(n, seeded(1))
    model = AMICL(AMICLConfig(a=a, similarity=similarity, reading=reading))
    ours = int(exact(model(trials.inputs, generator=seeded(2)), trials).sum())
    table = [[ours, n - ours], [round(theirs * n), n - round(theirs * n)]]
    assert stats.chi2_contingency(table).pvalue > RARE
    assert 0 < ours < n


def test_nearest_is_the_nearest_label_of_the_context():
    task = PairTask(d=7, classes=4, length=16)
    trials = task.draw(300, seeded(0), torch.float64)
    output = torch.randn(300, 7, generator=seeded(1), dtype=torch.float64) * 0.3
    M = torch.randn(7, 3, generator=seeded(2), dtype=torch.float64)
    for by in ("euclidean", "cosine"):
        for candidates, out in ((trials.labels, output), (trials.labels @ M, output @ M)):
            found = nearest(out, trials, by, candidates)
            for i in range(300):
                o, labels = out[i].numpy(), candidates[i].numpy()
                if by == "euclidean":
                    far = np.linalg.norm(labels - o, axis=1)
                else:
                    far = -labels @ o / np.linalg.norm(labels, axis=1)
                best = int(far.argmin())
                right = trials.classes[i, best] == trials.classes[i, trials.query[i]]
                assert bool(found[i]) == bool(right)
    assert 0 < int(nearest(output, trials).sum()) < 300
    assert nearest(trials.targets, trials).all()


def test_nothing_recalled_is_right_by_no_angle():
    trials = PairTask(d=7, classes=2, length=8).draw(60, seeded(0), torch.float64)
    nothing = torch.zeros(60, 7, dtype=torch.float64)
    assert not nearest(nothing, trials, "cosine").any()
    shortest = trials.labels.norm(dim=-1).argmin(1)
    assert nearest(nothing, trials).equal(trials.right[torch.arange(60), shortest])
    some = trials.targets * (torch.arange(60) % 2)[:, None]
    assert nearest(some, trials, "cosine").equal(torch.arange(60) % 2 == 1)


def test_exact_means_to_the_last_bit():
    trials = PairTask(d=7).draw(20, seeded(0))
    assert exact(trials.targets, trials).all()
    off = trials.targets.clone()
    off[:, 3] = torch.nextafter(off[:, 3], torch.tensor(9.0))
    assert not exact(off, trials).any()


def test_a_seed_gives_the_same_trials_and_global_state_stays_alone():
    task = PairTask(distractors=2, classes=9, gap=1, length=30, cue=0.5)
    before = torch.random.get_rng_state()
    first, second, other = (task.draw(3, seeded(s)) for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert not torch.equal(first.inputs, other.inputs)
    assert isinstance(first, Trials)


# Bad input


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": -1}, "a must be a finite number other than -1; got -1"),
        ({"a": float("nan")}, "a must be a finite number other than -1; got nan"),
        ({"temperature": 0}, "temperature must be a finite number above 0; got 0"),
        ({"similarity": "cosine"}, "similarity must be one of dot, pearson, manhattan, euclidean;"),
        ({"separation": "max"}, "separation must be one of identity, softmax, argmax; got 'max'"),
        ({"reading": "code"}, "reading must be one of paper, notebook; got 'code'"),
        ({"distances": "both"}, "distances must be one of None, negated, raw; got 'both'"),
        ({"reach": 0}, "reach must be a whole number from 1 up; got 0"),
        ({"reach": True}, "reach must be a whole number from 1 up; got True"),
        ({"reach": 1.5}, "reach must be a whole number from 1 up; got 1.5"),
        ({"a": "2"}, "a must be a finite number other than -1; got '2'"),
        ({"a": None}, "a must be a finite number other than -1; got None"),
        ({"a": True}, "a must be a finite number other than -1; got True"),
        ({"temperature": "1"}, "temperature must be a finite number above 0; got '1'"),
    ],
)
def test_a_wrong_setting_of_the_memory_is_named(
    given: dict[str, Any], message: str, unchecked_annotations
):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        AMICLConfig(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"d": 0}, "d must be a whole number from 1 up; got 0"),
        ({"gap": -1}, "gap must be a whole number from 0 up; got -1"),
        ({"noise": -0.1}, "noise must be a finite number from 0 up; got -0.1"),
        ({"likeness": 1.5}, "likeness must lie between 0 and 1; got 1.5"),
        ({"cue": -1}, "cue must lie between 0 and 1; got -1"),
        ({"reading": "code"}, "reading must be one of paper, notebook; got 'code'"),
        ({"length": 7}, "length must be a multiple of 2, the tokens of a pair, from 4 up; got 7"),
        ({"length": 2}, "length must be a multiple of 2, the tokens of a pair, from 4 up; got 2"),
        ({"gap": 1}, "length must be a multiple of 3, the tokens of a pair, from 6 up; got 20"),
        (
            {"distractors": 1},
            "distractors=1 needs a multiple of 2 pairs before the last; length=20",
        ),
        ({"distractors": 2}, "classes=512 must be a multiple of 3, a class and its 2 distractors"),
        ({"classes": 1, "reading": "notebook"}, "classes=1 leaves none to draw"),
        ({"d": True}, "d must be a whole number from 1 up; got True"),
        ({"classes": 2.0}, "classes must be a whole number from 1 up; got 2.0"),
        ({"noise": "0.1"}, "noise must be a finite number from 0 up; got '0.1'"),
        ({"cue": None}, "cue must lie between 0 and 1; got None"),
        ({"cue": True}, "cue must lie between 0 and 1; got True"),
        ({"likeness": 0.9}, "likeness=0.9 is of distractors; expected distractors from 1 up"),
    ],
)
def test_a_wrong_setting_of_the_task_is_named(
    given: dict[str, Any], message: str, unchecked_annotations
):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        PairTask(**given)
    assert "\n" not in str(caught.value)


def test_wrong_calls_are_named(unchecked_annotations):
    trials = PairTask(d=4, length=4).draw(2, seeded(0))
    x, W = trials.inputs, torch.ones(4, 3)
    for call, message in [
        (lambda: AMICL(AMICLConfig(reach=4))(trials.inputs), "x has 4 tokens; reach=4 needs at le"),
        (lambda: AMICL()(trials.inputs, queries="first"), "queries must be 'last' or 'all'; got"),
        (lambda: AMICL(AMICLConfig(reading="notebook"))(trials.inputs), "expected a generator or"),
        (lambda: PairTask().draw(0, seeded(0)), "size must be a whole number from 1 up; got 0"),
        (lambda: PairTask().draw(2.5, seeded(0)), "size must be a whole number from 1 up; got 2.5"),
        (lambda: nearest(trials.targets, trials, "angle"), "by must be 'euclidean' or 'cosine'"),
        (lambda: fit_value_map(torch.ones(3, 2), torch.ones(2, 2)), "recalled holds 3 examples"),
        (lambda: fit_value_map(torch.ones(3, 2), torch.ones(3, 2), -1), "ridge must be a finite"),
        (lambda: fit_value_map(W, W, "1"), "ridge must be a finite number from 0 up; got '1'"),
        (lambda: fit_value_map(W[:0], W[:0]), "recalled holds 0 examples; expected at least 1"),
        (lambda: fit_value_map(W, W, 0.0), "recalled has rank 1, below d=3: ridge must be above"),
        (lambda: fit_value_map(W[:2], W[:2], 0.0), "recalled has rank 1, below d=3"),
        (lambda: fit_value_map(W, W.double()), "targets must be torch.float32 [example, d_out]"),
        (lambda: fit_value_map(W[0], W), "recalled must be floating-point numbers [example, d]; g"),
        (lambda: AMICL()(x[0]), "x must be floating-point numbers [batch, pos, d]; got torch.floa"),
        (
            lambda: AMICL()(x.long()),
            "x must be floating-point numbers [batch, pos, d]; got torch.i",
        ),
        (lambda: AMICL()([[1.0]]), "x must be floating-point numbers [batch, pos, d]; got list"),
        (lambda: AMICL(value_map=W[0]), "value_map must be floating-point numbers [d, d_out]; got"),
        (lambda: AMICL(value_map=W.long()), "value_map must be floating-point numbers [d, d_out]"),
        (lambda: AMICL(value_map=W[:3])(x), "value_map is torch.float32 [3, 3]; x, torch.float32"),
        (lambda: AMICL(value_map=W.double())(x), "value_map is torch.float64 [4, 3]; x, torch.fl"),
        (lambda: AMICL()(x, last_key=x[0]), "last_key must be [4] or [2, 4]; got [4, 4]"),
        (lambda: AMICL()(x, last_key=x[0, 0, :3]), "last_key must be [4] or [2, 4]; got [3]"),
        (lambda: AMICL()(x, last_key=x[0, 0].double()), "last_key must be torch.float32 [d]; got"),
        (lambda: AMICL()(x, last_key=0.0), "last_key must be torch.float32 [d]; got float"),
        (lambda: nearest(x[:, 0, :3], trials), "output must be [2, 4], as the candidates are; got"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            call()
        assert "\n" not in str(caught.value)
