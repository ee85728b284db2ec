"""The links, cut at every snapshot of a run."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from resval_lens.analyses.cli.app import app
from resval_lens.analyses.comparison.link_controls import CONTROLS, first_of, link_controls
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
    study = link_in_training(recorded, sequences=100)
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
    asked = ["link-in-training", str(kept), "--sequences", "30", "--quiet", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "link-in-training.json").read_text())
    study = link_in_training(load_run(kept, ICLRun), sequences=30)
    assert LinkInTraining.from_dict(written) == study
    assert (tmp_path / "link-in-training.png").is_file()
    assert "as trained → links cut" in done.stdout


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
            hook = [(f"blocks.1.attn.hook_{of}_link", lambda x, hook, other=other: other)]
            answers = model.run_with_hooks(inputs, fwd_hooks=hook).argmax(-1)
            expected[key] = float((answers == targets).double().mean())
    assert {key: row["ic"] for key, row in found.items()} == pytest.approx(expected, abs=1e-9)
    assert len(set(expected.values())) > 3


def test_without_links_or_others_nothing_is_controlled() -> None:
    runs = {r.run.folder_name: r for r in load_runs(ICLRun) if r.has_model}
    _, tests = draw_world(runs["classic-seed0"].run)
    with pytest.raises(ValueError, match="has no links"):
        link_controls(runs["classic-seed0"].model(), first_of(tests, 10))
    with pytest.raises(ValueError, match="test has 1 sequences; expected 2 or more"):
        link_controls(runs["values-seed0"].model(), first_of(tests, 1))


def test_the_last_snapshot_is_the_trained_model(kept: Path) -> None:
    recorded = load_run(kept, ICLRun)
    *_, (_, last) = kept_models(recorded.run, recorded.folder)
    expected = dict(recorded.model().named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in last.named_parameters())


def test_a_run_without_kept_snapshots_is_refused(tmp_path: Path) -> None:
    train_icl(replace(RUN, steps=10), tmp_path)
    with pytest.raises(ValueError, match=r"holds 1 snapshots; train it with --keep-snapshots"):
        link_in_training(load_run(tmp_path, ICLRun), sequences=10)


def test_a_run_without_links_is_refused(tmp_path: Path) -> None:
    train_icl(replace(RUN, name="classic", streams="", steps=10), tmp_path)
    with pytest.raises(ValueError, match="run without streams: it has no links to cut"):
        link_in_training(load_run(tmp_path, ICLRun))


def test_no_sequences_are_refused(kept: Path) -> None:
    with pytest.raises(ValueError, match="sequences must be 1 or more; got 0"):
        link_in_training(load_run(kept, ICLRun), sequences=0)
