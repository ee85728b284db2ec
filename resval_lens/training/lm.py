"""Training language models on accelerate: one process or many, resumable to the bit.

Every step draws its rows from (seed, step) and its dropout from (seed, step, process), so a
snapshot needs weights and optimiser alone: a run that was killed goes on as one that was not.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from jaxtyping import Int
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from resval_lens.io.checkpoint import save_model
from resval_lens.runtime import gradients_on
from resval_lens.tasks.text.order import RowOrder
from resval_lens.training.lm_run import LMRun
from resval_lens.training.lm_state import WINDOW, full_state, restore_state
from resval_lens.training.run_folder import (
    append_metrics,
    check_not_done,
    cut_metrics,
    locked,
    record_end,
    record_start,
    snapshot_paths,
    write_snapshot,
)
from resval_lens.transformer import ResValTransformer

Metrics = dict[str, Any]
Progress = Callable[[int, Metrics | None], None]
"""Called on the main process with the step reached, and with its metrics where there are some."""
Evaluate = Callable[[ResValTransformer, int], Metrics]
"""What to measure along the way: model and step to metrics. Runs on every process."""


@runtime_checkable
class Rows(Protocol):
    """Text in rows; see :mod:`resval_lens.tasks.text.rows`."""

    def __len__(self) -> int: ...
    def batch(
        self, indices: np.ndarray
    ) -> tuple[Int[Tensor, "row pos"], Int[Tensor, "row pos"]]: ...


@gradients_on()
def train_lm(
    run: LMRun,
    rows: Rows,
    folder: Path,
    *,
    evaluate: Evaluate = lambda model, step: {},
    progress: Progress = lambda step, metrics: None,
    should_stop: Callable[[], bool] = lambda: False,
    accelerator: Accelerator | None = None,
    shard: bool = False,
    keep_snapshots: int | None = 2,
    tokenizer_json: str | None = None,
) -> ResValTransformer | None:
    """Trains ``run`` on ``rows`` in ``folder``, from its newest snapshot if there is one.

    Args:
        should_stop: asked after each step; where it says so (on any process), a snapshot is
            written and training ends.
        accelerator: of the caller (trackers, several processes); by default one that fits
            ``run.precision``.
        shard: spread the model over the processes (FSDP2) instead of copying it to each (DDP).
        keep_snapshots: the newest so many stay; None: all.
        tokenizer_json: saved beside the model.

    Returns:
        The trained model (on this process), or None if it was stopped before the end.

    Raises:
        ValueError: the folder holds a different run, or its files are damaged; too few rows.
        RuntimeError: another process trains there; the loss is not finite; the disk is full.
    """
    accelerator = accelerator or make_accelerator(run)
    trainer = _Trainer(run, rows, folder, accelerator, shard)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) if accelerator.is_main_process else nullcontext():
        start: Metrics = {}
        if accelerator.is_main_process:
            check_not_done(folder, run.last_step)
            # The schedule of a constant rate does not know how long the run is.
            longer = run.schedule == "constant" and not run.cooldown
            start = record_start(
                folder, run.to_dict(), ("steps", "until") if longer else ("until",)
            )
        accelerator.wait_for_everyone()
        done = trainer.restore()
        if accelerator.is_main_process and done != run.last_step:  # not the model of its end
            shutil.rmtree(folder / "model", ignore_errors=True)

        def line(step: int, metrics: Metrics) -> None:
            if accelerator.is_main_process:
                append_metrics(folder, {"step": step, **metrics})
                accelerator.log(_flat(metrics), step=step)
                progress(step, {"step": step, **metrics})

        if done is None:
            line(0, trainer.evaluated(evaluate, 0))
            done = 0
        trainer.started = time.perf_counter()
        for step in range(done + 1, run.last_step + 1):
            trainer.step(step)
            last = step == run.last_step
            metrics: Metrics = {}
            if step % run.log_every == 0 or step % run.evaluate_every == 0 or last:
                metrics = trainer.end_window(step)
            if step % run.evaluate_every == 0 or last:
                metrics |= trainer.evaluated(evaluate, step)
                trainer.begin_window()
            if metrics:
                line(step, metrics)
            elif accelerator.is_main_process:
                progress(step, None)
            stopping = not last and trainer.anyone(should_stop())
            if step % run.snapshot_every == 0 or last or stopping:
                trainer.snapshot(step, keep_snapshots)
            if stopping:
                return None
        model = trainer.unwrapped
        state, _ = full_state(trainer.model, None)
        if accelerator.is_main_process:
            config = model.cfg.to_json()
            record = {**start, "run": run.to_dict()}
            name = ResValTransformer.__name__  # sharding changes the class
            tokenizer = {"tokenizer.json": tokenizer_json} if tokenizer_json else None
            save_model(
                folder / "model", name, config, state, record, overwrite=True, tokenizer=tokenizer
            )
            record_end(folder)
        accelerator.wait_for_everyone()
        return model.eval()


def make_accelerator(run: LMRun, **options: Any) -> Accelerator:
    """An Accelerator for ``run.precision``; ``options`` go to it."""
    precision = {"fp32": "no"}.get(run.precision, run.precision)
    # accelerate keeps one precision for the life of a process; the runs of one may differ.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    options = {"cpu": not torch.accelerator.is_available()} | options
    return Accelerator(mixed_precision=precision, **options)


class _Trainer:
    """What one process holds while it trains."""

    def __init__(
        self, run: LMRun, rows: Rows, folder: Path, accelerator: Accelerator, shard: bool
    ) -> None:
        self.run, self.rows, self.folder, self.accelerator = run, rows, folder, accelerator
        self.order = RowOrder(len(rows), run.batch, run.seed)
        self.unwrapped: Any = run.initial_model(accelerator.device).train()
        self.unwrapped.cfg.device = str(accelerator.device)
        if shard:
            _shard(self.unwrapped, accelerator, run.precision)
        decayed: list[Tensor] = []
        others: list[Tensor] = []
        for name, parameter in self.unwrapped.named_parameters():
            if parameter.requires_grad:
                (decayed if "W_" in name else others).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": run.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=run.lr, betas=run.betas, eps=run.eps, fused=True,
        )  # fmt: skip
        self.model: Any = torch.compile(self.unwrapped) if run.compile else self.unwrapped
        if not shard:
            self.model = accelerator.prepare_model(self.model, device_placement=False)
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        self.sharded = shard
        self.norm: Any = None

    def restore(self) -> int | None:
        """Puts all back as the newest snapshot has it; the steps it had done, None without one."""
        paths = snapshot_paths(self.folder)
        done = None
        self.begin_window()
        if paths:
            done, window = restore_state(paths[-1], self.model, self.optimizer.optimizer)
            if self.accelerator.is_main_process:  # the others' share is in its
                self.loss += window[0].to(self.loss)
            self.steps = int(window[1])
        if self.accelerator.is_main_process:
            cut_metrics(self.folder, done)
        return done

    def step(self, step: int) -> None:
        """One step of the optimiser on the whole batch of ``step``."""
        run, accelerator = self.run, self.accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        for group in self.optimizer.param_groups:
            group["lr"] = run.learning_rate(step)
        seed = np.random.SeedSequence((run.seed, step, rank)).generate_state(1, np.uint64)[0]
        torch.manual_seed(int(seed >> np.uint64(1)))  # dropout
        tokens, targets = self.rows.batch(self.order.rows(step, rank, world))
        tokens, targets = tokens.to(accelerator.device), targets.to(accelerator.device)
        count = accelerator.reduce((targets >= 0).sum(), "sum")
        size = run.micro_batch or len(tokens)
        parts = list(zip(tokens.split(size), targets.split(size), strict=True))
        for i, (x, y) in enumerate(parts):
            last = i == len(parts) - 1
            with nullcontext() if last else self._no_sync():
                with accelerator.autocast():
                    loss = self.model(x, checkpoint_blocks=run.checkpoint_blocks, targets=y)
                # The mean over all processes' targets; averaging gradients divides by `world`.
                accelerator.backward(loss * (world / count))
            self.loss += loss.detach() / count
        if run.clip is not None:
            self.norm = accelerator.clip_grad_norm_(self.model.parameters(), run.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        self.tokens += run.batch * tokens.shape[1]

    @contextmanager
    def _no_sync(self) -> Iterator[None]:
        """Gradients stay on this process."""
        if not self.sharded:
            with self.accelerator.no_sync(self.model):
                yield
            return
        self.unwrapped.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.unwrapped.set_requires_gradient_sync(True)

    def begin_window(self) -> None:
        """Starts counting loss, tokens and time afresh."""
        self.loss = torch.zeros((), device=self.accelerator.device)
        self.norm = None
        self.steps = self.tokens = 0
        self.started = time.perf_counter()

    def end_window(self, step: int) -> Metrics:
        """Metrics since the window began."""
        mean = float(self.accelerator.reduce(self.loss, "sum")) / self.steps
        if not np.isfinite(mean):
            what = f"the loss is {mean} at step {step}"
            raise RuntimeError(f"{self.folder}: {what}; {_intact(self.folder)}")
        metrics = {"train_loss": mean, "lr": self.run.learning_rate(step)}
        if self.norm is not None:
            norm = self.norm.full_tensor() if self.sharded else self.norm
            metrics["grad_norm"] = float(norm)
        metrics["tokens"] = step * self.run.batch * self.unwrapped.cfg.n_ctx
        seconds = time.perf_counter() - self.started
        metrics["tokens_per_second"] = round(self.tokens / seconds, 1)
        self.begin_window()
        return metrics

    def evaluated(self, evaluate: Evaluate, step: int) -> Metrics:
        """What ``evaluate`` measures, in evaluation mode."""
        self.unwrapped.eval()
        if self.sharded:  # TransformerLens's generate calls forward past the hook that gathers
            self.unwrapped.unshard()
        try:
            with torch.no_grad(), self.accelerator.autocast():
                return evaluate(self.unwrapped, step)
        finally:
            if self.sharded:
                self.unwrapped.reshard()
            self.unwrapped.train()

    def anyone(self, flag: bool) -> bool:
        """Whether ``flag`` holds on any process."""
        if self.accelerator.num_processes == 1:
            return flag
        flags = torch.tensor(int(flag), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flags, "sum"))

    def snapshot(self, step: int, keep: int | None) -> None:
        """Writes all that is needed to go on from ``step``; never over a damaged state."""
        weights, optimizer = full_state(self.model, self.optimizer.optimizer)
        loss = self.accelerator.reduce(self.loss, "sum")  # of a window that goes on after a stop
        window = torch.tensor([float(loss), float(self.steps)], dtype=torch.float64)
        if not self.accelerator.is_main_process:
            self.accelerator.wait_for_everyone()
            return
        try:
            write_snapshot(self.folder, step, weights | optimizer | {WINDOW: window}, keep)
        except OSError as error:
            raise RuntimeError(f"{error}; {_intact(self.folder)}") from error
        self.accelerator.wait_for_everyone()


def _shard(model: ResValTransformer, accelerator: Accelerator, precision: str) -> None:
    """Spreads parameters, gradients and optimiser over the processes (FSDP2), block by block."""
    if accelerator.num_processes == 1:
        raise ValueError("shard=True needs several processes; start them with accelerate launch")
    # What a block passes on is a view of its values; nothing here writes into it.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    options: dict[str, Any] = {
        "mesh": init_device_mesh(accelerator.device.type, (accelerator.num_processes,)),
        "mp_policy": MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32),
    }
    for block in model.blocks:
        fully_shard(block, **options)
    fully_shard(model, **options)


def _intact(folder: Path) -> str:
    kept = snapshot_paths(folder)
    if not kept:
        return "there is no snapshot yet"
    return f"the snapshot of step {int(kept[-1].stem)} is intact"


def _flat(metrics: Metrics, prefix: str = "") -> dict[str, float]:
    """Nested numbers as one dict, for trackers: {"ioi": {"accuracy": 1}} to {"ioi/accuracy": 1}."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            flat[prefix + name] = value
    return flat
