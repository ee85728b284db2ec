"""Does training make up for a link that is removed? Some more steps from a snapshot, without it.

The run's own data and learning rate, and the next batches as it would have drawn them: with nothing
removed the model becomes what the run itself made of it, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from resval_lens.analyses.comparison.icl import Accuracies, accuracies
from resval_lens.analyses.comparison.link_controls import CUT, DOUBLED, OWN_FACTORS, has_links
from resval_lens.config import ResValConfig
from resval_lens.models.classifier import ICLClassifier
from resval_lens.runtime import gradients_on, one_thread
from resval_lens.streams import AttentionStream, Streams
from resval_lens.tasks.icl import ICLBatch, ICLWorld
from resval_lens.training.icl import trainee
from resval_lens.training.icl_run import ICLRun, initial_model, model_config
from resval_lens.training.run_folder import load_snapshot

KEPT, HALVED = "as it was", "own × ½"


@dataclass(frozen=True)
class Recovery:
    """Accuracies after ``steps`` more steps, by what was removed and task.

    ``as it was`` has nothing removed: what these steps do in any case.
    """

    steps: int
    after: Mapping[str, Accuracies]


def own_alone(model: ICLClassifier, factor: float) -> Streams:
    """Streams with which layer 1 has ``factor`` times its own part, and nothing arrives.

    Of a model without streams its values.

    Raises:
        ValueError: the own part's weight is a gate's.
    """
    own = {"v": 1.0} if not model.cfg.streams else {}
    for stream in model.cfg.streams:
        mix = model.blocks[1].attn.mix(stream.of)
        if mix is None or stream.how.is_gated:
            raise ValueError(
                f"mix={stream.mix!r}: without its link a gated stream has no own weight to go on "
                "with; leave the recovery out (--recover 0)"
            )
        weight = mix.weights()[0]
        own[stream.of] = float(weight.detach()) if isinstance(weight, Tensor) else weight
    return tuple(
        AttentionStream(of, mix="pair", own=factor * weight, carried=0.0)  # type: ignore[arg-type]
        for of, weight in own.items()
    )


def removals(cfg: ResValConfig) -> dict[str, float | None]:
    """What is removed, by name: the factor of the own part that is left alone; None: nothing."""
    if has_links(cfg):
        return {KEPT: None, CUT: 1.0, DOUBLED: 2.0}
    return {KEPT: None, HALVED: OWN_FACTORS[HALVED]}


@one_thread()
@gradients_on()
def trained_on(
    run: ICLRun, snapshot: Path, steps: int, world: ICLWorld, alone: float | None = None
) -> ICLClassifier:
    """The model of a snapshot after so many more steps of ``run``.

    Args:
        world: of the run (:func:`~resval_lens.training.icl_run.draw_world`).
        alone: what the own part is multiplied with, without any link; None removes nothing.

    Raises:
        ValueError: a damaged snapshot, a gated stream.
    """
    model, generator = initial_model(run), run.generators()["batches"]
    _, state = load_snapshot(snapshot, dict(model.named_parameters()))
    generator.set_state(state)
    if alone is not None:
        model = model.with_streams(own_alone(model, alone))
    going_on = trainee(run, model, generator, world, {})
    for _ in range(steps):
        going_on.step()
    return model


def recovery(
    run: ICLRun,
    snapshot: Path,
    steps: int,
    world: ICLWorld,
    tests: dict[str, ICLBatch],
) -> Recovery:
    """Accuracies after ``steps`` more steps, for each of :func:`removals`.

    Raises:
        ValueError: as :func:`trained_on`; steps below 1.
    """
    if steps < 1:
        raise ValueError(f"steps of a recovery must be 1 or more; got {steps}")
    after = {
        name: accuracies(trained_on(run, snapshot, steps, world, alone), tests)
        for name, alone in removals(model_config(run)).items()
    }
    return Recovery(steps, after)
