"""Encodings with and without a value stream, edited models, and ``memory encodings``."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from scipy import stats
from torch import Generator
from typer.testing import CliRunner

from resval_lens.analyses.cli.memory import encodings_command
from resval_lens.analyses.papers.memory.edits import (
    EDITS,
    ablated,
    edited,
    four_cells,
    uniform_attention,
)
from resval_lens.analyses.papers.memory.encodings import (
    REASON,
    EncodingStudy,
    _silenced_sentence,
    encoding_study,
)
from resval_lens.analyses.papers.memory.model.model import MemoryTransformer
from resval_lens.analyses.papers.memory.tasks.triggers import TriggerTask
from resval_lens.analyses.papers.memory.training import initial_memory
from resval_lens.analyses.results.seeds import spread
from tests.memory_runs import (
    BIGRAMS,
    FLOOR,
    STEPS,
    TASK,
    constructed,
    exact_model,
    made_up,
    tiny_run,
    trained,
)

app = typer.Typer()
app.command("curves")(lambda: None)  # typer drops the name of an only command
app.command("encodings")(encodings_command)

# Edits


def logits_in_numpy(model: MemoryTransformer, tokens: list[int], edit: str) -> np.ndarray:
    """A two-layer model with absolute positions, one position after the other, edited."""
    W = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    streams, d = bool(model.cfg.streams), model.cfg.d_model
    x = [W["embed.W_E"][z] + W["pos_embed.W_pos"][t] for t, z in enumerate(tokens)]
    handed: list[np.ndarray] = []
    for layer in (0, 1):
        W_K, W_V, W_O = (W[f"blocks.{layer}.attn.W_{name}"][0] for name in "KVO")
        values = [vector @ W_V for vector in x]
        if layer and streams and edit not in ("link cut", "both"):
            values = [own + link for own, link in zip(values, handed, strict=True)]
        handed, after = values, []
        for t in range(len(tokens)):
            scores = np.array([x[t] @ (x[s] @ W_K) / np.sqrt(d) for s in range(t + 1)])
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            if layer == 0 and edit == "layer 0 uniform":
                weights = np.full(t + 1, 1 / (t + 1))
            z = sum(weight * values[s] for s, weight in enumerate(weights))
            silent = layer == 0 and edit in ("layer 0 silenced", "both")
            after.append(x[t] if silent else x[t] + z @ W_O)
        x = after
    return np.stack([(v + v @ W["feed_forward.W_F"]) @ W["unembed.W_U"] for v in x])


@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_against_numpy(edit: str) -> None:
    model = initial_memory(tiny_run("absolute-values"))
    batch = TASK.batch(4, Generator().manual_seed(2))
    with edited(model, edit), torch.no_grad():
        logits = model(batch.inputs)
    expected = np.stack([logits_in_numpy(model, row, edit) for row in batch.inputs.tolist()])
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-3, atol=1e-3)


def test_accuracy_counts_in_context_positions_of_the_edited_model() -> None:
    model = initial_memory(tiny_run("absolute-values"))
    batch = TASK.batch(12, Generator().manual_seed(2))
    found = ablated(model, TASK, batch)
    assert list(found) == list(EDITS)
    for edit, accuracy in found.items():
        hits = [
            float(logits_in_numpy(model, row, edit)[t].argmax() == batch.targets[i, t])
            for i, row in enumerate(batch.inputs.tolist())
            for t in range(len(row))
            if batch.occurrence[i, t] >= 2
        ]
        assert accuracy == pytest.approx(np.mean(hits)), edit


@pytest.mark.parametrize("name", ["relative", "absolute", "relative-values"])
def test_a_constructed_head_without_layer_0_counts_tokens(name: str) -> None:
    """Its keys tell layer 1 nothing, so that it attends uniformly; the link changes nothing."""
    model = exact_model(tiny_run(name, d_model=96, n_ctx=30))
    batch = TASK.batch(40, Generator().manual_seed(4))
    with edited(model, "layer 0 silenced"), torch.no_grad():
        logits = model(batch.inputs).numpy()
    pi = np.maximum(BIGRAMS.conditional.numpy(), FLOOR)
    for row, tokens in enumerate(batch.inputs.tolist()):
        for t, query in enumerate(tokens):
            shares = np.bincount(tokens[: t + 1], minlength=len(pi)) / (t + 1)
            expected = np.log(pi[query]) + 30 * shares
            np.testing.assert_allclose(logits[row, t], expected, atol=2e-2)
    found = ablated(model, TASK, batch)
    assert found["as trained"] > 0.97
    assert found["layer 0 silenced"] < 0.85
    assert ("link cut" in found) == name.endswith("values")


def test_edits_leave_the_model_as_it_was() -> None:
    model = initial_memory(tiny_run("relative-values"))
    batch = TASK.batch(3, Generator().manual_seed(2))
    with torch.no_grad():
        before = model(batch.inputs)
        ablated(model, TASK, batch)
        assert torch.equal(model(batch.inputs), before)


def test_uniform_attention_is_one_over_t() -> None:
    pattern = uniform_attention(torch.rand(2, 1, 5, 5))
    for t in range(5):
        for s in range(5):
            expected = 1 / (t + 1) if s <= t else 0
            assert pattern[:, 0, t, s].numpy() == pytest.approx(expected)


def test_four_cells_cut_and_graft() -> None:
    without, with_values = (
        exact_model(tiny_run(name, d_model=96, n_ctx=30))
        for name in ("relative", "relative-values")
    )
    batch = TASK.batch(50, Generator().manual_seed(4))
    cells = four_cells(without, with_values, TASK, batch)
    edits = ablated(with_values, TASK, batch)
    assert cells["trained with, run with"] == edits["as trained"]
    assert cells["trained with, run without"] == edits["link cut"]
    plain = ablated(without, TASK, batch)
    assert cells["trained without, run without"] == plain["as trained"]
    grafted = ablated(without.with_streams("v"), TASK, batch)
    assert cells["trained without, run with"] == grafted["as trained"]


def test_what_is_refused() -> None:
    model = initial_memory(tiny_run("relative"))
    with pytest.raises(ValueError, match=r"edit must be one of as trained, .* got 'cut'"):
        edited(model, "cut")
    with pytest.raises(ValueError, match="no links"):
        edited(model, "link cut")
    once = TriggerTask(BIGRAMS, length=1, n_triggers=2)
    with pytest.raises(ValueError, match="no trigger occurs twice"):
        ablated(model, once, once.batch(3, Generator().manual_seed(0)))
    run = made_up("relative", 0)
    run.metrics.pop()
    with pytest.raises(ValueError, match="has not reached step 40"):
        encoding_study([run])


# The study


def curve(first_above_half: int, first_above_ninety: int, end: float) -> list[float]:
    """Accuracy at steps 0, 10, ..., 40."""
    values = []
    for step in range(0, 50, 10):
        above = 0.6 if step >= first_above_half else 0.1
        values.append(0.92 if step >= first_above_ninety else above)
    return [*values[:-1], end]


@pytest.fixture(scope="module")
def study() -> EncodingStudy:
    without = [(20, 30, 0.93), (20, 40, 0.99), (30, 40, 0.96)]
    with_values = [(10, 10, 0.94), (10, 30, 0.97), (20, 30, 0.95)]
    runs = [
        made_up(name, seed, accuracy=curve(*numbers))
        for name, several in (("relative", without), ("relative-values", with_values))
        for seed, numbers in enumerate(several)
    ]
    runs.append(made_up("rotary", 0, accuracy=curve(20, 30, 0.93)))
    runs.append(made_up("rotary-values", 0, accuracy=[0.1] * 5))
    return encoding_study(runs)


def test_steps_savings_and_tests_by_hand(study: EncodingStudy) -> None:
    measures = study.variants["relative"].measures.named()
    assert measures["step: accuracy > 0.9"].by_seed == {0: 30, 1: 40, 2: 40}
    assert measures["step: accuracy > 0.9"].sd == pytest.approx(np.std([30, 40, 40]))
    assert measures["step: accuracy > 0.95"].by_seed == {0: None, 1: 40, 2: 40}
    assert measures["accuracy"].mean == pytest.approx((0.93 + 0.99 + 0.96) / 3)
    rows = {(row.encoding, row.measure): row for row in study.pairs}
    row = rows["relative", "step: accuracy > 0.9"]
    assert row.difference == pytest.approx(-40 / 3)
    assert row.saved == pytest.approx(1 - 70 / 110)
    expected = stats.ttest_rel([10, 30, 30], [30, 40, 40])
    assert (row.tests.t_paired, row.tests.p_paired) == pytest.approx(tuple(expected))
    row = rows["relative", "step: accuracy > 0.95"]  # seed 0 never got there: no test
    assert (row.tests.t, row.tests.p_paired, row.seeds) == (None, None, [1])
    row = rows["rotary", "step: accuracy > 0.9"]
    assert (row.difference, row.saved, row.seeds) == (None, None, [])
    assert rows["rotary", "accuracy"].difference == pytest.approx(0.1 - 0.93)


def test_what_is_said_follows_from_the_numbers(study: EncodingStudy) -> None:
    said = "\n".join(study.sentences())
    assert "passes .9 at step 37 ± 5 without and at step 23 ± 9 with a value stream" in said
    assert "(36% fewer; paired by seed t = -4.0, p = .057, corrected by Holm p = " in said
    assert "in-context accuracy passes .9 at step 30 without and never with" in said
    assert "None of these runs has a trained model" in said
    assert REASON not in said


def test_the_study_edits_every_model(tmp_path: Path) -> None:
    runs = [constructed(tmp_path, name) for name in ("relative", "relative-values")]
    study = encoding_study(runs)
    plain, values = (entry.accuracy for entry in study.ablations)
    assert plain.keys() == {"as trained", "layer 0 silenced", "layer 0 uniform"}
    assert values.keys() == set(EDITS)
    assert study.cells[0].cells["trained with, run with"] == values["as trained"]
    said = "\n".join(study.sentences())
    floor = max(values["both"], plain["layer 0 silenced"])
    stand_in = (values["layer 0 silenced"] - floor) / (values["as trained"] - floor)
    assert stand_in < 0.1
    assert "the link does not stand in for the previous-token head" in said
    assert study.sentences()[-1] == REASON


@pytest.mark.parametrize(
    ("plain", "silenced", "both", "verdict"),
    [
        (0.10, 0.55, 0.10, "makes up for 53% of the previous-token head"),
        (0.10, 0.55, 0.55, "does not stand in for the previous-token head"),  # it adds nothing
        (0.50, 0.55, 0.10, "makes up for 11% of the previous-token head"),  # nor here much
        (0.10, 0.94, 0.10, "stands in for the previous-token head"),
    ],
)
def test_what_the_link_does_is_told_by_two_controls(
    plain: float, silenced: float, both: float, verdict: str
) -> None:
    plain_ = {"as trained": 0.95, "layer 0 silenced": plain}
    values = {"as trained": 0.95, "layer 0 silenced": silenced, "both": both}
    spreads = [{edit: spread({0: x}) for edit, x in own.items()} for own in (plain_, values)]
    assert _silenced_sentence("relative", *spreads).endswith(f"the link {verdict}.")


def test_only_shared_seeds_are_compared() -> None:
    runs = [made_up("relative", i, accuracy=_reaching(x)) for i, x in enumerate((20, 10, 40))]
    runs += [made_up("relative-values", 1, accuracy=_reaching(10))]
    (said,) = (x for x in encoding_study(runs).sentences() if "passes .9" in x)
    assert "(1 seed of both): in-context accuracy passes .9 at step 10 without and at" in said
    assert "(0% fewer)" in said


def _reaching(step: int) -> list[float | None]:
    return [0.0 if x < step else 1.0 for x in STEPS]


def test_the_figure_has_a_bar_for_each_number(study: EncodingStudy) -> None:
    steps, accuracy = study.figures()["memory-encodings.png"].axes
    assert [patch.get_height() for patch in steps.patches] == pytest.approx([110 / 3, 70 / 3, 30])
    assert "never" in [text.get_text() for text in steps.texts]
    assert len(accuracy.patches) == 8  # four variants at two lengths


# The command


def test_the_command(tmp_path: Path) -> None:
    names = ("relative", "relative-values", "one-layer")
    trained(tmp_path / "runs", *(tiny_run(name) for name in names))
    arguments = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path), "--quiet"]
    result = CliRunner().invoke(app, ["encodings", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    assert max(map(len, result.stdout.replace(str(tmp_path), "").splitlines())) <= 80
    report = json.loads((tmp_path / "memory-encodings.json").read_text())
    assert list(report["variants"]) == list(names)
    assert len(report["ablations"]) == 3
    assert (tmp_path / "memory-encodings.png").read_bytes().startswith(b"\x89PNG")
    printed = re.sub(r"\s+", "", result.stdout)
    for sentence in report["found"]:
        assert re.sub(r"\s+", "", sentence) in printed
