"""Training language models: the same numbers as a loop written out, however it is interrupted."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resval_lens import ResValTransformer
from resval_lens.io.files import read_tensors
from resval_lens.tasks.text import RowOrder
from resval_lens.training.lm import train_lm
from resval_lens.training.lm_run import LMRun
from resval_lens.training.run_folder import (
    read_metrics,
    read_record,
    snapshot_paths,
    trained_model,
    write_snapshot,
)
from resval_lens.training.schedule import learning_rate
from tests import crashing
from tests.crashing import PROCESSES
from tests.lm_runs import CONFIG, DROPOUT, RUN, Noise
from tests.runs import stop_before


def weights(folder: Path) -> dict[str, Tensor]:
    return read_tensors(folder / "model" / "model.safetensors", "model")[0]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if name != "tokens_per_second"}
        for line in read_metrics(folder)
    ]


def assert_same_outcome(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(x, second[name]) for name, x in first.items())
    assert metrics(one) == metrics(other)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``DROPOUT``, trained without interruption."""
    folder = tmp_path_factory.mktemp("straight")
    train_lm(DROPOUT, Noise(), folder)
    return folder


# The numbers


def adamw(
    parameters: dict[str, Tensor], run: LMRun, gradients: Any, steps: int
) -> dict[str, np.ndarray]:
    """AdamW with decoupled decay and clipping, in NumPy's 64 bits, from its definition."""
    x = {name: p.detach().double().numpy().copy() for name, p in parameters.items()}
    m = {name: np.zeros_like(value) for name, value in x.items()}
    v = {name: np.zeros_like(value) for name, value in x.items()}
    b1, b2 = run.betas
    for t in range(1, steps + 1):
        g = gradients(x, t)
        norm = math.sqrt(sum(float((value**2).sum()) for value in g.values()))
        shrink = 1.0 if run.clip is None else min(1.0, run.clip / (norm + 1e-6))
        rate = run.learning_rate(t)
        for name in x:
            step = shrink * g[name]
            decay = run.weight_decay if "W_" in name else 0.0
            m[name] = b1 * m[name] + (1 - b1) * step
            v[name] = b2 * v[name] + (1 - b2) * step**2
            adapted = m[name] / (1 - b1**t) / (np.sqrt(v[name] / (1 - b2**t)) + run.eps)
            x[name] = (1 - rate * decay) * x[name] - rate * adapted
    return x


@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_run_is_adamw_on_the_mean_loss_over_targets(tmp_path: Path, clip: float | None) -> None:
    run = replace(RUN, steps=4, clip=clip, warmup=2, eps=1e-4)  # eps: b_K's gradient is only noise
    model = run.initial_model().double()
    model.cfg.dtype = torch.float64
    parameters = dict(model.named_parameters())
    order = RowOrder(len(Noise()), run.batch, run.seed)

    def gradients(x: dict[str, np.ndarray], t: int) -> dict[str, np.ndarray]:
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(torch.from_numpy(x[name]))
        model.zero_grad()
        losses = []
        for row in order.rows(t):
            tokens, targets = Noise().batch(np.array([row]))
            log_p = model(tokens)[0].log_softmax(-1)
            losses += [-log_p[i, y] for i, y in enumerate(targets[0].tolist()) if y >= 0]
        (torch.stack(losses).sum() / len(losses)).backward()
        return {name: p.grad.numpy().copy() for name, p in parameters.items()}

    start = {name: p.detach().clone() for name, p in parameters.items()}
    expected = adamw(start, run, gradients, 4)
    trained = train_lm(run, Noise(), tmp_path)
    assert trained is not None
    for name, p in trained.named_parameters():
        np.testing.assert_allclose(p.detach().numpy(), expected[name], atol=2e-6, err_msg=name)


@pytest.mark.parametrize("size", [1, 4, 5])
def test_a_batch_in_parts_is_the_batch(tmp_path: Path, size: int) -> None:
    run = replace(RUN, eps=1e-4)
    whole = train_lm(run, Noise(), tmp_path / "whole")
    parts = train_lm(replace(run, micro_batch=size), Noise(), tmp_path / "parts")
    assert whole is not None
    assert parts is not None
    other = dict(parts.named_parameters())
    for name, p in whole.named_parameters():
        torch.testing.assert_close(other[name], p, atol=1e-5, rtol=1e-5)


def test_recomputed_blocks_give_the_same_weights(tmp_path: Path) -> None:
    train_lm(RUN, Noise(), tmp_path / "kept")
    train_lm(replace(RUN, checkpoint_blocks=True), Noise(), tmp_path / "again")
    first, second = weights(tmp_path / "kept"), weights(tmp_path / "again")
    for name, x in first.items():
        torch.testing.assert_close(second[name], x, atol=1e-6, rtol=1e-6)


def test_brain_floats_train_nearly_the_same(tmp_path: Path) -> None:
    train_lm(RUN, Noise(), tmp_path / "full")
    train_lm(replace(RUN, precision="bf16"), Noise(), tmp_path / "half")
    full, half = (metrics(tmp_path / name)[-1]["train_loss"] for name in ("full", "half"))
    assert full != half
    assert half == pytest.approx(full, rel=0.02)
    assert {x.dtype for x in weights(tmp_path / "half").values()} == {torch.float32}


def test_metrics_are_means_since_the_line_before(tmp_path: Path) -> None:
    train_lm(replace(RUN, log_every=1), Noise(), tmp_path / "each")
    train_lm(RUN, Noise(), tmp_path / "third")
    each = [line["train_loss"] for line in metrics(tmp_path / "each")[1:]]
    third = [line["train_loss"] for line in metrics(tmp_path / "third")[1:]]
    assert third == pytest.approx(np.reshape(each, (4, 3)).mean(1), rel=1e-6)


def test_evaluation_sees_the_model_without_dropout(tmp_path: Path) -> None:
    seen = []

    def evaluate(model: ResValTransformer, step: int) -> dict[str, Any]:
        assert not model.training
        assert not torch.is_grad_enabled()
        seen.append(step)
        tokens, _ = Noise().batch(np.arange(3))
        return {"same": float((model(tokens) - model(tokens)).abs().max())}

    train_lm(DROPOUT, Noise(), tmp_path, evaluate=evaluate)
    assert seen == [0, 6, 12]
    lines = [line for line in metrics(tmp_path) if "same" in line]
    assert [(line["step"], line["same"]) for line in lines] == [(0, 0), (6, 0), (12, 0)]


def test_one_seed_gives_both_architectures_the_same_rows_and_weights() -> None:
    classic = replace(RUN, model=CONFIG.with_streams("").to_json()).initial_model()
    values = RUN.initial_model()
    others = dict(values.named_parameters())
    assert all(torch.equal(p, others[name]) for name, p in classic.named_parameters())


# Interruption


@pytest.mark.parametrize("stops", [[1], [4], [5], [12], [2, 3, 1], [7, 2]], ids=str)
def test_a_stopped_run_ends_as_one_that_was_not(
    tmp_path: Path, straight: Path, stops: list[int]
) -> None:
    for step in stops:
        train_lm(DROPOUT, Noise(), tmp_path, should_stop=stop_before(step))
    assert train_lm(DROPOUT, Noise(), tmp_path) is not None
    assert_same_outcome(tmp_path, straight)


def test_a_run_that_ends_early_has_the_schedule_of_the_whole_and_can_go_on(
    tmp_path: Path, straight: Path
) -> None:
    early = replace(DROPOUT, until=6)  # where it is evaluated
    train_lm(early, Noise(), tmp_path)
    assert metrics(tmp_path) == [line for line in metrics(straight) if line["step"] <= 6]
    recorded = read_record(tmp_path)
    assert recorded["run"]["until"] == LMRun.from_dict(recorded["run"]).last_step == 6
    assert trained_model(tmp_path).is_dir()
    with pytest.raises(ValueError, match=r"steps=4: the run in .* has done 6 already"):
        train_lm(replace(DROPOUT, until=4), Noise(), tmp_path)
    train_lm(DROPOUT, Noise(), tmp_path, should_stop=lambda: True)
    with pytest.raises(ValueError, match="model is missing"):  # it was not that of the last step
        trained_model(tmp_path)
    train_lm(DROPOUT, Noise(), tmp_path)
    assert_same_outcome(tmp_path, straight)


@pytest.mark.parametrize(("until", "message"), [
    (0, "until must be a whole number from 1 up; got 0"),
    (13, "until=13 is after the last of steps=12"),
])  # fmt: skip
def test_an_end_that_cannot_be_is_refused(until: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RUN, until=until)


def train_and_die(run: LMRun, folder: Path, dies_at: int | None) -> None:
    torch.set_num_threads(1)
    if dies_at is not None:
        crashing.die_before_change(dies_at, folder)
    train_lm(run, Noise(), folder)


def test_a_run_killed_at_any_change_of_a_file_ends_as_one_that_was_not(
    tmp_path: Path, straight: Path
) -> None:
    for change in range(1, 1000):
        folder = tmp_path / str(change)
        codes = []
        for dies_at in (change, None):
            process = PROCESSES.Process(target=train_and_die, args=(DROPOUT, folder, dies_at))
            process.start()
            process.join()
            codes.append(process.exitcode)
        assert codes[1] == 0
        assert_same_outcome(folder, straight)
        if codes[0] == 0:
            break
        assert codes[0] == crashing.DIED
    assert change > 15


def test_a_loss_that_is_not_finite_spares_the_last_snapshot(tmp_path: Path) -> None:
    train_lm(replace(RUN, schedule="constant", steps=4), Noise(), tmp_path)
    tensors, _ = read_tensors(snapshot_paths(tmp_path)[-1], "snapshot")
    tensors["embed.W_E"][:] = 3e38  # finite, but not its square
    write_snapshot(tmp_path, 4, tensors)
    with pytest.raises(RuntimeError, match=r"the loss is nan at step 6; the snapshot of step 4 is"):
        train_lm(replace(RUN, schedule="constant", steps=8), Noise(), tmp_path)
    assert [int(path.stem) for path in snapshot_paths(tmp_path)] == [4]


def test_a_full_disk_spares_the_last_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resval_lens.io.files as files

    save = files.save_file

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        if "00000008" in path.name:
            path.write_bytes(b"half")
            raise files.SafetensorError("No space left on device")
        save(tensors, path, metadata)

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(RuntimeError, match=r"No space left .*; the snapshot of step 4 is intact"):
        train_lm(RUN, Noise(), tmp_path)
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["00000004.safetensors"]
    monkeypatch.undo()
    assert train_lm(RUN, Noise(), tmp_path) is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lr": 0.5}, "lr=0.01, not 0.5"),
        ({"steps": 20}, "steps=12, not 20"),  # a cosine knows its end
        ({"data": "other"}, "data='noise', not 'other'"),
        ({"model": CONFIG.with_streams("").to_json()}, "model="),
    ],
)
def test_a_folder_of_another_run_is_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    train_lm(RUN, Noise(), tmp_path, should_stop=stop_before(2))
    with pytest.raises(ValueError, match=f"holds a run with {said}"):
        train_lm(replace(RUN, **change), Noise(), tmp_path)


def test_a_snapshot_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    train_lm(RUN, Noise(), tmp_path, should_stop=stop_before(2))
    path = snapshot_paths(tmp_path)[-1]
    tensors, _ = read_tensors(path, "snapshot")
    for name, said in [("optimizer.embed.W_E.exp_avg", "lacks optimizer"), ("window", "window")]:
        write_snapshot(tmp_path, 2, {k: x for k, x in tensors.items() if k != name})
        with pytest.raises(ValueError, match=rf"{path.name}.*{said}"):
            train_lm(RUN, Noise(), tmp_path)


# Several processes


def distributed(folder: Path, kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
         "--master-port", str(20_000 + os.getpid() % 20_000), "-m", "tests.distributed",
         str(folder), kind],
        capture_output=True, text=True, timeout=120, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_end_as_one(tmp_path: Path, kind: str) -> None:
    alone = train_lm(RUN, Noise(), tmp_path / "one")
    assert alone is not None
    distributed(tmp_path / kind, f"{kind}-stop")  # one of the two is told to stop
    assert not (tmp_path / kind / "model").exists()
    distributed(tmp_path / kind, kind)
    together = ResValTransformer.from_pretrained(tmp_path / kind / "model")
    tokens, _ = Noise().batch(np.arange(10))
    torch.testing.assert_close(together(tokens), alone(tokens), atol=2e-5, rtol=1e-5)
    for one, both in zip(metrics(tmp_path / "one"), metrics(tmp_path / kind), strict=True):
        assert both == pytest.approx(one, rel=1e-5)


# Learning rates and settings


@settings(deadline=None)
@given(
    steps=st.integers(1, 60),
    warmup=st.integers(0, 20),
    cooldown=st.integers(0, 20),
    schedule=st.sampled_from(["constant", "cosine", "wsd"]),
)
def test_learning_rates_lie_between_0_and_the_peak(
    steps: int, warmup: int, cooldown: int, schedule: Any
) -> None:
    if warmup + cooldown > steps:
        return
    rates = [
        learning_rate(step, peak=2.0, steps=steps, schedule=schedule, warmup=warmup,
                      cooldown=cooldown)
        for step in range(1, steps + 1)
    ]  # fmt: skip
    assert all(0 <= rate <= 2 for rate in rates)
    assert rates[:warmup] == pytest.approx([2 * (i + 1) / warmup for i in range(warmup)])
    assert all(a >= b for a, b in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    if cooldown:
        assert rates[-1] == 0
    if schedule == "cosine" and steps > warmup:
        assert rates[-1] == pytest.approx(0, abs=1e-12)
    if schedule != "cosine":
        assert rates[warmup : steps - cooldown] == [2.0] * (steps - cooldown - warmup)


def test_a_cosine_is_half_way_down_in_the_middle() -> None:
    rate = learning_rate(15, peak=1.0, steps=20, schedule="cosine", warmup=10, cooldown=0)
    assert rate == pytest.approx(0.5)


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0), ("batch", 1.5), ("micro_batch", 0), ("seed", -1), ("warmup", -1),
        ("lr", 0.0), ("lr", float("nan")), ("eps", 0.0), ("weight_decay", -1.0), ("clip", 0.0),
        ("betas", (0.9,)), ("betas", (0.9, 1.0)), ("rows", "both"), ("precision", "fp8"),
        ("schedule", "linear"), ("warmup", 13),
    ],
)  # fmt: skip
def test_an_impossible_run_is_named_with_its_value(field: str, value: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"^{field}(=| must).*{value if field != 'betas' else ''}"
    ):
        replace(RUN, **{field: value})


def test_a_run_is_the_same_after_json() -> None:
    assert LMRun.from_dict(json.loads(json.dumps(DROPOUT.to_dict()))) == DROPOUT


def test_unused_parameters_stay_as_they_were(tmp_path: Path) -> None:
    config = CONFIG.with_streams("v")
    config.frozen = ("*.b_*",)
    run = replace(RUN, model=config.to_json(), weight_decay=0.5)
    model = train_lm(run, Noise(), tmp_path)
    assert model is not None
    for name, p in model.named_parameters():
        assert torch.equal(p, dict(run.initial_model().named_parameters())[name]) == (".b_" in name)
