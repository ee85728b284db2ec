"""The links, cut at every snapshot of a run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from resval_lens.analyses.link_in_training import link_in_training
from resval_lens.hooks import cut_links
from resval_lens.recorded import RecordedRun
from resval_lens.training import draw_world, train_icl
from tests.runs import RUN


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three snapshots, all kept; fast enough to change what the model answers."""
    folder = tmp_path_factory.mktemp("kept")
    train_icl(replace(RUN, lr=0.2, steps=20), folder, keep_snapshots=True)
    return folder


def test_every_snapshot_is_measured_with_and_without_its_links(kept: Path) -> None:
    recorded = RecordedRun.load(kept)
    study = link_in_training(recorded, sequences=100)
    _, tests = draw_world(recorded.run)
    assert [line["step"] for line in study["snapshots"]] == [0, 10, 20]
    for line, (step, model), metrics in zip(
        study["snapshots"], recorded.snapshots(), recorded.metrics, strict=True
    ):
        assert step == metrics["step"]
        for task, batch in tests.items():
            inputs, targets = batch.inputs[:100], batch.targets[:100]
            with torch.no_grad():
                trained = (model(inputs).argmax(-1) == targets).double().mean()
                with cut_links(model):
                    cut = (model(inputs).argmax(-1) == targets).double().mean()
            assert line["trained"][task] == pytest.approx(float(trained), abs=1e-12)
            assert line["cut"][task] == pytest.approx(float(cut), abs=1e-12)
    assert study["snapshots"][-1]["trained"] != study["snapshots"][-1]["cut"]
    json.dumps(study, allow_nan=False)


def test_the_last_snapshot_is_the_trained_model(kept: Path) -> None:
    recorded = RecordedRun.load(kept)
    *_, (_, last) = recorded.snapshots()
    expected = dict(recorded.model().named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in last.named_parameters())


def test_a_run_without_kept_snapshots_is_refused(tmp_path: Path) -> None:
    train_icl(replace(RUN, steps=10), tmp_path)
    with pytest.raises(ValueError, match=r"holds 1 snapshots; train it with --keep-snapshots"):
        link_in_training(RecordedRun.load(tmp_path), sequences=10)


def test_a_run_without_links_is_refused(tmp_path: Path) -> None:
    train_icl(replace(RUN, name="classic", streams="", steps=10), tmp_path)
    with pytest.raises(ValueError, match="run without streams: it has no links to cut"):
        link_in_training(RecordedRun.load(tmp_path))


def test_no_sequences_are_refused(kept: Path) -> None:
    with pytest.raises(ValueError, match="sequences must be 1 or more; got 0"):
        link_in_training(RecordedRun.load(kept), sequences=0)
