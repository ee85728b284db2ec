"""The links, cut at every snapshot of a run."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from resval_lens.analyses.cli.app import app
from resval_lens.analyses.comparison.link_controls import (
    CONTROLS,
    OWN_FACTORS,
    first_of,
    link_controls,
)
from resval_lens.analyses.comparison.link_in_training import LinkInTraining, link_in_training
from resval_lens.hooks import cut_links
from resval_lens.models.classifier import ICLClassifier
from resval_lens.streams import AttentionStream
from resval_lens.tasks.icl import ICLBatch
from resval_lens.training import draw_world, train_icl
from resval_lens.training.icl_run import ICLRun, kept_models
from resval_lens.training.recorded import load_run, load_runs
from tests.runs import RUN


@pytest.fixture(scope="module", params=["v", AttentionStream("v", mix="convex", carried=0.7)])
def kept(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A run of three snapshots, all kept; fast enough to change what the model answers."""
    folder = tmp_path_factory.mktemp("kept")
    train_icl(replace(RUN, streams=request.param, lr=0.2, steps=20), folder, keep_snapshots=True)
    return folder


def test_every_snapshot_is_measured_with_and_without_its_links(kept: Path) -> None:
    recorded = load_run(kept, ICLRun)
    study = link_in_training(recorded, sequences=100, recover=1)
    _, tests = draw_world(recorded.run)
    assert [line.step for line in study.snapshots] == [0, 10, 20]
    for line, (step, model), metrics in zip(
        study.snapshots, kept_models(recorded.run, recorded.folder), recorded.metrics, strict=True
    ):
        assert step == metrics["step"]
        for task, batch in tests.items():
            inputs, targets = batch.inputs[:100], batch.targets[:100]
            with torch.no_grad():
                trained = (model(inputs).argmax(-1) == targets).double().mean()
                with cut_links(model):
                    cut = (model(inputs).argmax(-1) == targets).double().mean()
            assert line.trained[task] == pytest.approx(float(trained), abs=1e-12)
            assert line.cut[task] == pytest.approx(float(cut), abs=1e-12)
        some = first_of(tests, 100)
        assert line.controls == link_controls(model, some, recorded.run.seed)
    assert study.snapshots[-1].trained != study.snapshots[-1].cut
    document = json.loads(json.dumps(study.to_dict(), allow_nan=False))
    assert LinkInTraining.from_dict(document) == study


def test_the_command_writes_the_study(kept: Path, tmp_path: Path) -> None:
    asked = [
        "link-in-training",
        str(kept),
        "--sequences",
        "30",
        "--recover",
        "2",
        "--quiet",
        "--out",
        str(tmp_path),
    ]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "link-in-training.json").read_text())
    study = link_in_training(load_run(kept, ICLRun), sequences=30, recover=2)
    assert LinkInTraining.from_dict(written) == study
    assert (tmp_path / "link-in-training.png").is_file()
    assert "as trained → links cut" in done.stdout


def accuracy_with(model: ICLClassifier, batch: ICLBatch, name: str, other: torch.Tensor) -> float:
    """With ``other`` in place of what a hook point of layer 1's attention holds."""
    hook = [(f"blocks.1.attn.hook_{name}", lambda x, hook: other)]
    answers = model.run_with_hooks(batch.inputs, fwd_hooks=hook).argmax(-1)
    return float((answers == batch.targets).double().mean())


@pytest.mark.parametrize("name", ["values", "queries"])
def test_each_control_is_the_model_with_other_weights_or_links(name: str) -> None:
    """Own parts by their projection, links by hand, sequence by sequence where they differ."""
    (recorded,) = (r for r in load_runs(ICLRun) if r.run.folder_name == f"{name}-seed0")
    model, of = recorded.model(), name[0]
    _, tests = draw_world(recorded.run)
    tests = {"ic": ICLBatch(*(x[:60] for x in tests["ic"]))}
    found = link_controls(model, tests, seed=3)
    inputs, targets = tests["ic"].inputs, tests["ic"].targets
    assert tuple(found) == CONTROLS

    def accuracy(run: ICLClassifier) -> float:
        with torch.no_grad():
            return float((run(inputs).argmax(-1) == targets).double().mean())

    def scaled(factor: float) -> ICLClassifier:
        changed = copy.deepcopy(model)
        with torch.no_grad():
            getattr(changed.blocks[1].attn, f"W_{of.upper()}").mul_(factor)
        return changed

    expected = {"as trained": accuracy(model), "own cut": accuracy(scaled(0))}
    for key, factor in (("links cut", 1), ("own × √2, links cut", 2**0.5),
                        ("own × 2, links cut", 2)):  # fmt: skip
        expected[key] = accuracy(scaled(factor).with_streams("", share_weights=True))
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs)
        link = cache[f"{of}_link", 1]
        order = torch.randperm(60, generator=torch.Generator().manual_seed(3)).tolist()
        for key in ("link at its mean", "link resampled"):
            other = link.mean(0, keepdim=True).expand_as(link).clone()
            if key == "link resampled":
                for place, row in enumerate(order):
                    other[row] = link[order[place - 1]]
            expected[key] = accuracy_with(model, tests["ic"], f"{of}_link", other)
        total, own = cache[of, 1], cache[f"{of}_local", 1]
        for key, left in (("links cut, norm kept", own), ("own cut, norm kept", link)):
            sizes = [(x.double() ** 2).sum(-1, keepdim=True).sqrt() for x in (total, left)]
            kept = (left * sizes[0] / sizes[1]).float()
            assert torch.allclose((kept**2).sum(-1), (total**2).sum(-1), rtol=1e-4)
            expected[key] = accuracy_with(model, tests["ic"], of, kept)
    assert {key: row["ic"] for key, row in found.items()} == pytest.approx(expected, abs=1e-9)
    assert len(set(expected.values())) > 3


@pytest.mark.parametrize("streams", ["", AttentionStream("v", mix="pair", own=1.5, carried=0)])
def test_without_links_the_own_values_are_edited(streams: Any) -> None:
    (recorded,) = (r for r in load_runs(ICLRun) if r.run.folder_name == "classic-seed0")
    model = recorded.model().with_streams(streams)
    _, tests = draw_world(recorded.run)
    tests = {"ic": ICLBatch(*(x[:80] for x in tests["ic"]))}
    found = link_controls(model, tests)
    factors = {"as trained": 1.0, "own cut": 0.0, "own × ½": 0.5, "own × √½": 0.5**0.5,
               "own × √2": 2**0.5, "own × 2": 2.0}  # fmt: skip
    assert list(found) == list(factors)
    for name, factor in factors.items():
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.blocks[1].attn.W_V.mul_(factor)
            right = changed(tests["ic"].inputs).argmax(-1) == tests["ic"].targets
        assert found[name]["ic"] == pytest.approx(float(right.double().mean()), abs=1e-9)
    assert len({own["ic"] for own in found.values()}) > 3


def test_one_sequence_and_models_with_hooks_are_refused() -> None:
    (recorded,) = (r for r in load_runs(ICLRun) if r.run.folder_name == "values-seed0")
    model, (_, tests) = recorded.model(), draw_world(recorded.run)
    with pytest.raises(ValueError, match="test has 1 sequences; expected 2 or more"):
        link_controls(model, first_of(tests, 1))
    with cut_links(model), pytest.raises(ValueError, match="two plain attention layers without"):
        link_controls(model, first_of(tests, 5))


def test_the_last_snapshot_is_the_trained_model(kept: Path) -> None:
    recorded = load_run(kept, ICLRun)
    *_, (_, last) = kept_models(recorded.run, recorded.folder)
    expected = dict(recorded.model().named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in last.named_parameters())


def test_a_run_without_kept_snapshots_is_refused(tmp_path: Path) -> None:
    train_icl(replace(RUN, steps=10), tmp_path)
    with pytest.raises(ValueError, match=r"holds 1 snapshots; train it with --keep-snapshots"):
        link_in_training(load_run(tmp_path, ICLRun), sequences=10)


def test_a_run_without_links_has_its_own_values_edited(tmp_path: Path) -> None:
    train_icl(replace(RUN, name="classic", streams="", steps=20), tmp_path, keep_snapshots=True)
    study = link_in_training(load_run(tmp_path, ICLRun), 50, 50, 50, recover=1)
    for line in study.snapshots:
        assert line.trained == line.cut == line.controls["as trained"]
        assert list(line.controls) == list(OWN_FACTORS)
    thinned = link_in_training(load_run(tmp_path, ICLRun), 50, 50, 50, recover=0, every=2)
    assert thinned.snapshots == study.snapshots[::2]
    (last,) = study.moments
    assert last.norms["link"] == 0
    assert list(last.grading) == ["own"]
    assert last.recovery is not None
    assert list(last.recovery.after) == ["as it was", "own × ½"]
    assert last.before("own × ½") == last.edits["own × ½"]
    assert last.before("as it was") == last.edits["as trained"]
    assert LinkInTraining.from_dict(json.loads(json.dumps(study.to_dict()))) == study


@pytest.mark.parametrize(
    ("number", "said"),
    [
        ({"sequences": 0}, "sequences must be 1 or more; got 0"),
        ({"moment_sequences": 1}, "moment_sequences must be 2 or more; got 1"),
        ({"recover": -1}, "recover must be 0 or more; got -1"),
    ],
)
def test_numbers_that_cannot_be_are_refused(kept: Path, number: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        link_in_training(load_run(kept, ICLRun), **number)
