"""Every marginal statistic of the task's batches is that of a generator written as a NumPy loop."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from resval_lens.tasks.icl import ICLTask, ICLWorld
from tests.reference.icl_task_numpy import sequence

TASK = ICLTask()
RARE = 1e-4  # a difference this improbable is a mistake, not chance; the seeds are fixed


REFERENCE_NAMES = {
    "K": "n_classes",
    "L": "n_labels",
    "N": "n_pairs",
    "B": "burstiness",
    "p_B": "p_bursty",
    "p_C": "p_fresh",
    "eps": "noise",
    "D": "content",
    "N_max": "n_max",
    "label_shift": "label_shift",
    "n_fresh": "n_fresh",
}
STATISTICS = {
    "shift": lambda s: s["shift"] // 7,
    "right label": lambda s: s["target"],
    "label of the first pair": lambda s: s["context_labels"][0],
    "label of the last pair": lambda s: s["context_labels"][-1],
    "tier of the query's class": lambda s: s["tier"],
    "kind of sequence": lambda s: 2 * s["bursty"] + s["fresh"],
    "classes in the context": lambda s: len(set(s["context_classes"])),
    "labels in the context": lambda s: len(set(s["context_labels"])),
    "copies of the query's class": lambda s: s["context_classes"].count(s["query_class"]),
    "right labels in the context": lambda s: s["context_labels"].count(s["target"]),
    "first place of the query's class": lambda s: [*s["context_classes"], s["query_class"]].index(
        s["query_class"]
    ),
    "neighbours of one class": lambda s: sum(x == y for x, y in pairwise(s["context_classes"])),
    "order of the last two labels": lambda s: s["context_labels"][-2] < s["context_labels"][-1],
}


def reference_sequences(task: ICLTask, world: ICLWorld, count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(9)
    sizes = {name: getattr(task, field) for name, field in REFERENCE_NAMES.items()}
    vectors = {
        "mu_class": world.objects.double().numpy(),
        "mu_label": world.labels.double().numpy(),
        "fresh_mu_class": rng.standard_normal((128, 85)) / 85**0.5,
    }
    drawn = [sequence(rng, **sizes, **vectors) for _ in range(count)]
    for s in drawn:
        s["tier"] = s["query_class"] // task.n_labels
        s["context_classes"] = s["context_classes"].tolist()
        s["context_labels"] = s["context_labels"].tolist()
    return drawn


def our_sequences(task: ICLTask, world: ICLWorld, count: int) -> list[dict[str, Any]]:
    drawn = world.batch(count, torch.Generator().manual_seed(10), task)
    tiers = (drawn.query - task.n_classes * drawn.fresh) // task.n_labels
    return [
        {"inputs": drawn.inputs[i].double().numpy(), "target": int(drawn.targets[i]),
         "context_classes": drawn.context[i].tolist(),
         "context_labels": drawn.context_labels[i].tolist(), "query_class": int(drawn.query[i]),
         "bursty": bool(drawn.bursty[i]), "fresh": bool(drawn.fresh[i]),
         "shift": int(drawn.shift[i]), "tier": int(tiers[i])}
        for i in range(count)
    ]  # fmt: skip


Sequences = tuple[list[dict[str, Any]], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def world() -> ICLWorld:
    return ICLWorld(TASK, torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=["test", "ic", "ic2", "iw"])
def both(request: pytest.FixtureRequest, world: ICLWorld) -> Sequences:
    """2000 sequences of a test distribution from this package and 2000 from the reference."""
    task = TASK.tests()[request.param]
    return our_sequences(task, world, 2000), reference_sequences(task, world, 2000)


@pytest.mark.parametrize("name", STATISTICS)
def test_a_statistic_is_distributed_as_in_the_reference(both: Sequences, name: str) -> None:
    ours, theirs = ([int(STATISTICS[name](s)) for s in drawn] for drawn in both)
    values = sorted({*ours, *theirs})
    table = [[drawn.count(value) for value in values] for drawn in (ours, theirs)]
    assert stats.chi2_contingency(table).pvalue > RARE


@pytest.mark.parametrize(("token", "kind"), [(0, "object"), (1, "label"), (-1, "query")])
def test_tokens_are_as_long_as_in_the_reference(both: Sequences, token: int, kind: str) -> None:
    ours, theirs = ([(s["inputs"][token] ** 2).sum() for s in drawn] for drawn in both)
    assert stats.ks_2samp(ours, theirs).pvalue > RARE


def test_tokens_of_one_class_are_as_near_as_in_the_reference(both: Sequences) -> None:
    def cosines(drawn: list[dict[str, Any]]) -> list[float]:
        found = []
        for s in drawn:
            if s["query_class"] in s["context_classes"]:
                match = s["inputs"][2 * s["context_classes"].index(s["query_class"]), 65:]
                query = s["inputs"][-1, 65:]
                found.append(match @ query / np.linalg.norm(match) / np.linalg.norm(query))
        return found

    assert stats.ks_2samp(*map(cosines, both)).pvalue > RARE
