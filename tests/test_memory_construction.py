"""Constructed induction heads beside their closed form."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Generator

from resval_lens.analyses.cli.memory import construction_command
from resval_lens.analyses.papers.memory.asked import global_knowledge
from resval_lens.analyses.papers.memory.construction import (
    Deviation,
    Strengths,
    constructed_model,
    deviations,
    exact_width,
    heads_summary,
    run_heads,
)
from resval_lens.analyses.papers.memory.construction_study import (
    KINDS,
    Construction,
    construction_study,
    thresholds,
)
from resval_lens.analyses.papers.memory.model.predictions import predict
from resval_lens.analyses.papers.memory.tasks.triggers import TriggerTask
from tests.test_memory_knowledge import assert_fits, some_bigrams


@pytest.fixture(scope="module")
def study() -> Construction:
    return construction_study(
        1, (48, 192), Strengths(6.0, 9.0, 7.0), bigrams=some_bigrams(), trained=8, sequences=5
    )


@pytest.mark.parametrize(("positions", "streams"), KINDS)
def test_an_exact_model_is_its_prediction(positions, streams):
    bigrams, generator = some_bigrams(), Generator().manual_seed(2)
    tokens = TriggerTask(bigrams, length=14, n_triggers=2).batch(3, generator).inputs
    logs = global_knowledge(bigrams)
    model = constructed_model(
        logs, generator, positions, streams,
        n_ctx=14, strengths=Strengths(5.0, 8.0, 4.0), trained_length=9,
    )  # fmt: skip
    prediction = predict(
        tokens, logs, 5.0, 8.0, 4.0, trained_length=9, relative=positions == "relative"
    )
    for found in vars(deviations(prediction, *run_heads(model, tokens))).values():
        assert found.largest < 1e-9


def test_deviations_are_of_the_keys_that_a_query_may_see():
    bigrams, generator = some_bigrams(), Generator().manual_seed(0)
    tokens = TriggerTask(bigrams, length=6, n_triggers=2).batch(2, generator).inputs
    prediction = predict(tokens, global_knowledge(bigrams))
    alpha, beta = (torch.rand(2, 6, 6, generator=generator) for _ in range(2))
    logits = torch.rand(2, 6, 9, generator=generator)
    found = deviations(prediction, alpha, beta, logits)
    for off, x, y in (
        (found.alpha, alpha, prediction.previous), (found.beta, beta, prediction.induction),
    ):  # fmt: skip
        gaps = [abs(float(x[b, t, s]) - float(y[b, t, s]))
                for b in range(2) for t in range(6) for s in range(t + 1)]  # fmt: skip
        assert off == Deviation(pytest.approx(max(gaps)), pytest.approx(np.mean(gaps)))
    gaps = (logits.double() - prediction.logits).abs().numpy()
    assert found.logits.mean == pytest.approx(gaps.mean())


def test_what_is_compared_is_counted_by_hand():
    bigrams, generator = some_bigrams(), Generator().manual_seed(5)
    batch = TriggerTask(bigrams, length=10, n_triggers=3).batch(6, generator)
    alpha, beta = (torch.rand(6, 10, 10, generator=generator) for _ in range(2))
    logits = torch.rand(6, 10, 9, generator=generator)
    found = heads_summary(batch, 7, alpha, beta, logits)
    z = batch.inputs.tolist()
    for t in range(1, 10):
        mean = np.mean([float(alpha[b, t, t - 1]) for b in range(6)])
        assert found.attention[t - 1] == pytest.approx(mean, abs=1e-6)
    on_target, early, late = [], [], []
    for b in range(6):
        for t in range(10):
            if not batch.in_context[b, t]:
                continue
            hits = int(logits[b, t].argmax()) == int(batch.targets[b, t])
            (early if t < 7 else late).append(hits)
            on_target.append(
                sum(float(beta[b, t, s]) for s in range(1, t + 1) if z[b][s - 1] == z[b][t])
            )
    assert found.target == pytest.approx(np.mean(on_target), abs=1e-6)
    assert found.accuracy == pytest.approx(np.mean(early))
    assert found.accuracy_later == pytest.approx(np.mean(late))


def test_attention_falls_to_even_beyond_the_trained_length_of_an_absolute_head(study):
    by_kind = {kind.positions: kind.constructed[0] for kind in study.kinds if not kind.streams}
    assert all(run.exact for run in by_kind.values())
    for t in range(2, 17):
        on = math.exp(6) / (math.exp(6) + t - 1)
        assert by_kind["relative"].heads.attention[t - 2] == pytest.approx(on)
        expected = on if t <= 8 else 1 / t
        assert by_kind["absolute"].heads.attention[t - 2] == pytest.approx(expected)
        assert study.closed_form.on[t - 2] == pytest.approx(on)


def test_random_vectors_come_nearer_with_more_dimensions(study):
    for kind in study.kinds:
        exact, few, many = kind.constructed
        assert (few.d_model, many.d_model) == (48, 192)
        for name in ("alpha", "beta", "logits"):
            assert vars(exact.deviation)[name].largest < 1e-9
            assert vars(many.deviation)[name].mean < vars(few.deviation)[name].mean


def test_the_winner_flips_where_the_context_says_it_does():
    found = thresholds(12, Generator().manual_seed(0), Strengths(20.0, 20.0, 6.0), None, 400)
    expected = {"2:1": 2.0, "3:1": 3.0, "3:2": 1.2}
    assert list(found) == list(expected)
    for counts, gap in expected.items():
        row = found[counts]
        assert row.predicted == pytest.approx(gap)
        assert row.context == pytest.approx(gap, abs=1e-4)
        assert row.found.at == pytest.approx(gap, abs=0.25)
        assert row.found.errors == 0
        for middle, share in zip(row.gap, row.wins, strict=True):
            if share is not None and abs(middle - gap) > 0.15 + 1e-9:  # half a bin
                assert share == (middle < gap)


def test_one_row_a_prediction(study):
    rows = {row.prediction: row for row in study.predictions()}
    assert len(rows) == len(study.predictions()) == 2 * 6 + 3
    assert rows["APE: attention at t − 1, t = 9"].predicted == pytest.approx(1 / 9)
    assert rows["RPE: attention at t − 1, t = 9"].exact == pytest.approx(1 / (1 + 8 * math.exp(-6)))
    assert rows["2 B1, 1 B2: gap at which B2 wins"].predicted == pytest.approx(7 / 3)
    for name, row in rows.items():
        if "accuracy" in name or "attention" in name:
            assert row.exact == pytest.approx(row.predicted, abs=1e-9)


@pytest.mark.parametrize(("positions", "needed"), [("absolute", 95), ("relative", 29)])
def test_an_exact_width_has_a_quarter_to_spare(positions, needed):
    """Absolute: 2 (9 + 34) + 9 vectors arrive; relative: 3 · 9, and 9 + 20 that keys tell apart."""
    n_ctx = {"absolute": 34, "relative": 20}[positions]
    width = exact_width(9, n_ctx, positions)
    assert width % 8 == 0
    assert needed * 1.25 <= width < needed * 1.25 + 8


def test_the_command_writes_table_figure_and_numbers(tmp_path, capsys):
    construction_command("32,64", length=5, sequences=2, to=tmp_path, quiet=True)
    study = json.loads((tmp_path / "memory-construction.json").read_text())
    assert study["trained_length"] == 5
    assert [run["d_model"] for run in study["kinds"][1]["constructed"][1:]] == [32, 64]
    assert (tmp_path / "memory-construction.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "APE: attention at t − 1, t = 6" in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if "/" not in line)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"widths": ()}, "widths must be numbers above 0"),
        ({"trained": 1}, "trained must be 2 positions or more; got 1"),
        ({"sequences": 0}, "sequences must be 1 or more; got 0"),
        ({"seed": -1}, "seed must be a whole number from 0 to 4294967295; got -1"),
        ({"seed": 99999999999999999999}, "seed must be .*; got 99999999999999999999"),
    ],
    ids=["widths", "trained", "sequences", "seed below 0", "huge seed"],
)
def test_impossible_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        construction_study(**{"bigrams": some_bigrams(), "trained": 4, **settings})


@pytest.mark.parametrize(
    ("strength", "said"),
    [
        ({"tau1": -1_000.0}, "tau1 must be a finite number from −500 to 500; got -1000.0"),
        ({"tau2": math.inf}, "tau2 must be a finite number from −500 to 500; got inf"),
        ({"tau2": math.nan}, "tau2 must be a finite number from −500 to 500; got nan"),
        ({"tau3": 501.0}, "tau3 must be a finite number from −500 to 500; got 501.0"),
        ({"tau3": 0.0}, "tau3 must be above 0; got 0.0"),
        ({"tau3": -2.0}, "tau3 must be above 0; got -2.0"),
    ],
    ids=["tau1", "infinite", "nan", "large tau3", "tau3 of 0", "negative tau3"],
)
def test_impossible_strengths_are_refused(strength, said, tmp_path):
    for asked in (lambda: Strengths(**strength),
                  lambda: construction_command(**strength, to=tmp_path / "out")):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{said}$"):
            asked()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tau1", [-500.0, 500.0])
def test_the_strongest_heads_have_predictions(tau1):
    small = {"bigrams": some_bigrams(), "trained": 3, "sequences": 2}
    study = construction_study(0, (16,), Strengths(tau1, 0.0, 0.5), **small)
    on = study.closed_form.on
    assert on == [float(tau1 > 0)] * 5 if tau1 > 0 else max(on) < 1e-200


def test_sentences_leave_out_what_there_is_none_of(study):
    said = study.sentences()
    assert "absolute positions: from d = 48 to 192 the logits' mean deviation goes from" in said[1]
    assert "nats, in-context accuracy goes from" in said[1]
    kinds = [
        replace(
            kind,
            predicted=replace(kind.predicted, accuracy=None),
            constructed=[
                replace(run, heads=replace(run.heads, accuracy=None))
                for run in kind.constructed[:2]
            ],
        )
        for kind in study.kinds
    ]
    one = replace(study, widths=[48], kinds=kinds)
    found = one.sentences()
    deviation = one.kinds[0].constructed[1].deviation.logits.mean
    assert found[1] == (
        "Random vectors, absolute positions: at d = 48 the logits' mean deviation is "
        f"{deviation:.2g} nats."
    )
    assert len(found) == len(said)


def test_tables_fit_in_80_columns(study):
    kinds = [
        replace(kind, constructed=[replace(run, d_model=2048) for run in kind.constructed])
        for kind in study.kinds
    ]
    tables = replace(study, widths=[48, 2048], kinds=kinds).tables()
    assert_fits(tables[:1], ["APE: attention at t − 1, t = 9", "2 B1, 1 B2: gap at which B2 wins"])
    assert "2,048, exact" in assert_fits(tables[1:], ["RPE, values"])
