"""The study of one gradient step a matrix: its data, its picture and its table."""

from __future__ import annotations

import io
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from resval_lens.analyses.cli.app import app
from resval_lens.analyses.papers.memory.model.one_step import leading_previous
from resval_lens.analyses.papers.memory.model.one_step_task import RecallTask
from resval_lens.analyses.papers.memory.one_step_study import one_step_study


@pytest.fixture(scope="module")
def study():
    return one_step_study(d_vocab=12, length=8, multiples=(1, 3), each=100, seed=3)


def test_the_study_is_data_and_agrees_with_the_closed_forms(study):
    assert json.loads(json.dumps(study.to_dict())) == study.to_dict()
    assert study.settings.shortest == 8
    for found in study.models.values():
        measured, closed = found.coefficients.measured, found.coefficients.closed_form
        for pair in ((measured.W_O2, closed.W_O2), (measured.W_K2, closed.W_K2)):
            a, b = (np.trace(np.array(x)) for x in pair)
            assert a / b == pytest.approx(1, abs=0.4)  # a draw against the expectation
        a, b = np.array(measured.W_K1), np.array(closed.W_K1)
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.9
        for kept in (found.recall.memories, found.recall.whole):
            lines = kept.accuracy
            assert [line.length for line in lines] == [8, 24]
            assert lines[0].beyond is None
            share = 7 / 22  # t_o up to 8, of 2 .. 23
            assert lines[1].all == pytest.approx(
                share * lines[1].trained + (1 - share) * lines[1].beyond
            )
    accuracy = {name: found.recall.memories.accuracy for name, found in study.models.items()}
    for name in ("relative", "relative, values"):
        assert min(line.all for line in accuracy[name]) > 0.8
    for name in ("absolute", "absolute, values"):
        assert accuracy[name][0].all > 0.7
        assert accuracy[name][1].beyond < 0.4
    classic, values = (
        study.models[name].coefficients.measured for name in ("absolute", "absolute, values")
    )
    ratio = np.trace(np.array(values.W_K1), 1) / np.trace(np.array(classic.W_K1), 1)
    assert ratio == pytest.approx(4, rel=1e-4)


def test_the_study_draws_what_it_found(study):
    figure = study.figures()["memory-one-step.png"]
    against, *maps = figure.axes
    lines = {line.get_label(): line for line in against.get_lines()}
    found = study.models["absolute"].coefficients
    closed = np.array([found.closed_form.W_K1[t - 2][t - 1] for t in range(2, 9)])
    drawn = lines["absolute: closed form"].get_ydata()
    np.testing.assert_allclose(drawn, [*closed / closed.max(), *[0.0] * 8], rtol=1e-12)
    measured = np.mean(study.models["relative"].coefficients.measured.W_K1[1])
    np.testing.assert_allclose(
        lines["relative: measured"].get_ydata(), measured / closed.max(), rtol=1e-12
    )
    task = RecallTask(12, 8, 8)
    leading = next(line for label, line in lines.items() if "leading" in label).get_ydata()
    form = leading_previous(task).numpy()[1:]
    np.testing.assert_allclose(leading / leading[0], form / form[0], rtol=1e-12)
    titles = ["W_O²", "W_K²", "W_K¹, absolute", "W_K¹, relative"]
    assert [axes.get_title(loc="left") for axes in maps] == titles
    plt.close(figure)


def test_the_study_fits_a_terminal(study):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(*study.tables())
    text = console.export_text()
    assert "relative, values" in text
    assert "…" not in text
    assert f"{study.models['relative'].recall.memories.accuracy[1].all:.3f}" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_sentences_say_what_the_study_found(study):
    said = study.sentences()
    written = study.models["absolute"].coefficients.measured.W_K1
    assert f"at 7 to {written[5][6] / written[0][1]:.0%} of what it is at 2" in said[0]
    lines = study.models["relative"].recall.memories.accuracy
    assert f"recall {lines[0].all:.3f} at 8, {lines[1].all:.3f} at 24" in said[1]
    assert "W_O², W_K², W_K¹ by 1.00, 2.00, 4.00 (absolute)" in said[3]


def test_the_command_writes_what_it_found(tmp_path):
    arguments = [
        "memory",
        "one-step",
        "--d-vocab",
        "12",
        "--length",
        "8",
        "--each",
        "8",
        "--quiet",
        "--out",
    ]
    done = CliRunner().invoke(app, [*arguments, str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "A value stream multiplies" in done.stdout
    report = json.loads((tmp_path / "memory-one-step.json").read_text())
    assert report["settings"]["d_vocab"] == 12
    assert report["provenance"]["versions"]["torch"]
    assert (tmp_path / "memory-one-step.png").read_bytes().startswith(b"\x89PNG")


def test_too_few_sequences_are_refused(monkeypatch):
    nothing = lambda model, name: torch.zeros(40, 40)  # noqa: E731
    monkeypatch.setattr("resval_lens.analyses.papers.memory.one_step_study.answers", nothing)
    with pytest.raises(ValueError, match="each=8: on so few sequences the step on W_K1 writes"):
        one_step_study(d_vocab=12, length=8, each=8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"multiples": ()}, r"multiples must be whole numbers from 1 up; got \(\)"),
        ({"strengths": (1.0, 0.0, 1.0)}, "strengths must be three numbers above 0"),
        (
            {"d_vocab": 4, "length": 5},
            "d_vocab=4, shortest=5: the step on W_K2 writes the opposite",
        ),
    ],
)
def test_the_study_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        one_step_study(**settings)
