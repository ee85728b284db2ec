"""Corrupted prompts of in-context sequences."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resval_lens.tasks.icl import ICLTask, ICLWorld
from resval_lens.tasks.icl_corruptions import exchanged

bursts = st.sampled_from([1, 2, 4])
kinds = st.sampled_from(["ic", "ic2"])


def world_of(burstiness: int = 4) -> ICLWorld:
    task = ICLTask(n_classes=64, n_labels=16, n_fresh=32, burstiness=burstiness)
    return ICLWorld(task, torch.Generator().manual_seed(0))


def drawn(burstiness: int, name: str, seed: int) -> tuple[ICLWorld, Any]:
    world = world_of(burstiness)
    batch = world.batch(4, torch.Generator().manual_seed(seed), world.task.tests()[name])
    return world, batch


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), bursts, kinds)
def test_labels_take_each_others_places_and_nothing_else_changes(
    seed: int, burstiness: int, name: str
) -> None:
    world, batch = drawn(burstiness, name, seed)
    corrupted = exchanged(world, batch, "labels")
    start = world.task.n_positions
    assert corrupted.clean.equal(batch.inputs)
    assert corrupted.corrupted[:, 0::2].equal(batch.inputs[:, 0::2])
    assert corrupted.corrupted[..., :start].equal(batch.inputs[..., :start])
    for row in range(4):
        mapped: dict[int, int] = {}
        for pair, label in enumerate(batch.context_labels[row].tolist()):
            distances = (world.labels - corrupted.corrupted[row, 2 * pair + 1, start:]).norm(dim=1)
            assert distances.min() == 0
            assert mapped.setdefault(label, distances.argmin().item()) == distances.argmin().item()
        assert all(old != new for old, new in mapped.items())
        assert set(mapped) == set(mapped.values()) == set(corrupted.labels[row].tolist())
        assert corrupted.labels[row, 0] == batch.targets[row]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), bursts, kinds)
def test_objects_take_each_others_places_and_nothing_else_changes(
    seed: int, burstiness: int, name: str
) -> None:
    world, batch = drawn(burstiness, name, seed)
    corrupted = exchanged(world, batch, "objects")
    start = world.task.n_positions
    assert corrupted.corrupted[:, 1::2].equal(batch.inputs[:, 1::2])
    assert corrupted.corrupted[:, -1].equal(batch.inputs[:, -1])
    assert corrupted.corrupted[..., :start].equal(batch.inputs[..., :start])
    for row in range(4):
        objects = batch.inputs[row, 0:-1:2, start:]
        labels = batch.context_labels[row].tolist()
        came_from = []
        mapped: dict[int, int] = {}
        for pair, label in enumerate(labels):
            distances = (objects - corrupted.corrupted[row, 2 * pair, start:]).norm(dim=1)
            assert distances.min() == 0
            came_from.append(distances.argmin().item())
            old = labels[came_from[-1]]
            assert mapped.setdefault(old, label) == label != old
        assert sorted(came_from) == list(range(len(labels)))


def test_what_cannot_be_exchanged_is_refused(unchecked_annotations: None) -> None:
    world = world_of()
    loose = world.batch(8, torch.Generator().manual_seed(0), world.task.tests()["iw"])
    with pytest.raises(ValueError, match=r"sequence 0 must hold two or more labels equally often"):
        exchanged(world, loose)
    bursty = world.batch(8, torch.Generator().manual_seed(0), world.task.tests()["ic"])
    one = bursty._replace(context_labels=bursty.targets[:, None].expand(-1, 8))
    with pytest.raises(ValueError, match=r"sequence 0 must hold two or more labels"):
        exchanged(world, one)
    with pytest.raises(ValueError, match=r"what must be 'labels' or 'objects'; got 'names'"):
        exchanged(world, bursty, "names")  # type: ignore[arg-type]
