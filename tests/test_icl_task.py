"""The in-context classification task: every statement of its docstring, counted on batches."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Generator, Tensor

from resval_lens.tasks.icl import ICLBatch, ICLTask, ICLWorld

TASK = ICLTask()
SIZE = 6000
RARE = 1e-4  # a statistic this improbable is a mistake, not chance; the seeds are fixed


def seeded(seed: int) -> Generator:
    return torch.Generator().manual_seed(seed)


def draw(task: ICLTask, size: int = SIZE, seed: int = 2) -> ICLBatch:
    return ICLWorld(TASK, seeded(1)).batch(size, seeded(seed), task)


def assert_share(mask: Tensor, p: float) -> None:
    assert stats.binomtest(int(mask.sum()), mask.numel(), p).pvalue > RARE


def assert_uniform(values: Tensor, count: int) -> None:
    seen = torch.bincount(values.flatten(), minlength=count)
    assert len(seen) == count
    assert (seen > 0).all() or values.numel() < 15 * count  # e⁻¹⁵ that a value is left out
    assert stats.chisquare(seen.numpy()).pvalue > RARE


def assert_normal(values: Tensor, variance: float) -> None:
    """Mean 0, the variance given, no skew and a normal's tails, each within 5 standard errors."""
    z = values.double().flatten() / variance**0.5
    spread = torch.tensor([1.0, 2.0, 15.0, 96.0]).double() / len(z)  # of the mean of z, z², z³, z⁴
    moments = torch.stack([(z**power).mean() for power in (1, 2, 3, 4)])
    expected = torch.tensor([0.0, 1.0, 0.0, 3.0]).double()
    assert ((moments - expected).abs() < 5 * spread.sqrt()).all()


def content_of(batch: ICLBatch) -> tuple[Tensor, Tensor]:
    """Objects [batch, pair + query, D] and label vectors [batch, pair, D] of the tokens."""
    content = batch.inputs[..., TASK.n_positions :]
    return content[:, 0::2], content[:, 1::2]


@pytest.fixture(scope="module")
def world() -> ICLWorld:
    return ICLWorld(TASK, seeded(1))


@pytest.fixture(scope="module")
def batch() -> ICLBatch:
    return draw(TASK)


@pytest.fixture(scope="module")
def loose(batch: ICLBatch) -> tuple[Tensor, Tensor]:
    """Contexts and queries of the sequences that are not bursty."""
    return batch.context[~batch.bursty], batch.query[~batch.bursty]


# Shapes and positions


def test_a_batch_has_the_shapes_it_says(batch: ICLBatch) -> None:
    assert batch.inputs.shape == (SIZE, 2 * 8 + 1, 65 + 85)
    assert batch.inputs.dtype == torch.float32
    assert batch.context.shape == batch.context_labels.shape == (SIZE, 8)
    for name in ("targets", "query", "bursty", "fresh", "shift"):
        assert getattr(batch, name).shape == (SIZE,)


def test_sizes_follow_from_the_settings() -> None:
    task = ICLTask(n_pairs=6, burstiness=3, n_max=10, content=7)
    assert (task.n_distinct, task.n_tokens, task.n_positions, task.d_input) == (2, 13, 21, 28)


def test_token_t_has_the_one_hot_position_shift_plus_t(batch: ICLBatch) -> None:
    where = batch.shift[:, None] + torch.arange(17)
    assert batch.inputs[..., :65].equal(F.one_hot(where, 65).float())


def test_the_shift_is_uniform_over_every_place_with_room(batch: ICLBatch) -> None:
    assert (int(batch.shift.min()), int(batch.shift.max())) == (0, 48)
    assert_uniform(batch.shift, 49)


def test_a_sequence_that_fills_all_positions_starts_at_the_first() -> None:
    full = draw(replace(TASK, n_pairs=32), 20)
    assert full.shift.eq(0).all()
    assert full.inputs[..., :65].equal(torch.eye(65).expand(20, 65, 65))


# Which sequences are bursty, which are fresh


@pytest.mark.parametrize(
    ("p_bursty", "p_fresh"), [(0.5, 0.5), (0.2, 0.7), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)]
)
def test_shares_of_bursty_and_fresh_sequences(p_bursty: float, p_fresh: float) -> None:
    drawn = draw(replace(TASK, p_bursty=p_bursty, p_fresh=p_fresh))
    assert_share(drawn.fresh, p_fresh)
    assert drawn.bursty[drawn.fresh].all()
    if p_fresh < 1:
        assert_share(drawn.bursty[~drawn.fresh], p_bursty)


@pytest.mark.parametrize(("n_pairs", "burstiness"), [(8, 2), (8, 1), (8, 8), (6, 3), (32, 1)])
def test_a_bursty_context_holds_distinct_labels_in_equal_copies(
    n_pairs: int, burstiness: int
) -> None:
    drawn = draw(replace(TASK, n_pairs=n_pairs, burstiness=burstiness, p_bursty=1.0), 500)
    for context, query in zip(drawn.context.tolist(), drawn.query.tolist(), strict=True):
        assert {context.count(c) for c in context} == {burstiness}
        assert len({c % 32 for c in context}) == n_pairs // burstiness
        assert query in context


def test_copies_stand_in_any_order(batch: ICLBatch) -> None:
    bursty = batch.context[batch.bursty]
    partner = (bursty[:, 1:] == bursty[:, :1]).int().argmax(1)  # of the first object, 1..7
    assert_uniform(partner, 7)


def test_the_query_of_a_bursty_context_is_any_of_its_classes(batch: ICLBatch) -> None:
    at_query = batch.context[batch.bursty] == batch.query[batch.bursty][:, None]
    first = at_query.int().argmax(1)  # the first of 2 copies stands at i with probability (7-i)/28
    seen = torch.bincount(first, minlength=8)[:7]
    expected = torch.arange(7, 0, -1) / 28 * len(first)
    assert stats.chisquare(seen.numpy(), expected.double().numpy()).pvalue > RARE


def test_every_class_is_as_likely_in_a_bursty_context(batch: ICLBatch) -> None:
    known = batch.bursty & ~batch.fresh
    assert len(batch.context[known].unique()) == 512
    assert_uniform(batch.query[known], 512)
    assert_uniform(batch.query[batch.fresh] - 512, 128)


def test_a_loose_context_is_drawn_without_regard_to_the_query(
    loose: tuple[Tensor, Tensor],
) -> None:
    context, query = loose
    assert_share((context == query[:, None]).any(1), 1 - (1 - 1 / 512) ** 8)
    assert_share(context[:, 0] == context[:, 5], 1 / 512)
    assert_uniform(context, 512)
    assert_uniform(query, 512)


# Classes, vectors and labels


def test_vectors_of_objects_and_labels_are_normal_with_variance_one_over_d(
    world: ICLWorld,
) -> None:
    assert world.objects.shape == (512, 85)
    assert world.labels.shape == (32, 85)
    assert_normal(world.objects, 1 / 85)
    assert_normal(world.labels, 1 / 85)


def test_fresh_classes_are_numbered_after_the_known_ones(batch: ICLBatch) -> None:
    classes = torch.cat([batch.context, batch.query[:, None]], 1)
    assert (classes[batch.fresh] >= 512).all()
    assert (classes[batch.fresh] < 512 + 128).all()
    assert (classes[~batch.fresh] < 512).all()


def test_the_label_of_class_c_is_c_mod_l(batch: ICLBatch) -> None:
    assert batch.context_labels.equal(batch.context % 32)
    assert batch.targets.equal(batch.query % 32)


def test_label_tokens_are_the_worlds_label_vectors_without_noise(
    world: ICLWorld, batch: ICLBatch
) -> None:
    _, labels = content_of(batch)
    assert labels.equal(world.labels[batch.context_labels])


def fresh_means(seed: int) -> dict[int, Tensor]:
    """The object vector of each fresh class in one batch, seen without noise."""
    drawn = draw(replace(TASK, p_fresh=1.0, noise=0.0), 200, seed)
    objects, _ = content_of(drawn)
    classes = torch.cat([drawn.context, drawn.query[:, None]], 1)
    return {int(c): objects[classes == c] for c in classes.unique()}


def test_a_fresh_class_is_one_vector_throughout_its_batch() -> None:
    for instances in fresh_means(3).values():
        assert instances.eq(instances[0]).all()


def test_fresh_vectors_differ_from_every_known_class(world: ICLWorld) -> None:
    fresh = torch.stack([instances[0] for instances in fresh_means(3).values()])
    assert len(fresh) == 128
    assert torch.cdist(fresh, world.objects).min() > 0.5  # two independent ones: √2 ± 0.1
    assert_normal(fresh, 1 / 85)


def test_fresh_vectors_are_drawn_anew_for_each_batch() -> None:
    one, other = (torch.stack([x[0] for x in fresh_means(seed).values()]) for seed in (3, 4))
    assert torch.cdist(one, other).min() > 0.5


@pytest.mark.parametrize("noise", [0.1, 0.75])
def test_an_object_is_its_class_vector_with_noise_at_constant_variance(
    world: ICLWorld, noise: float
) -> None:
    drawn = draw(replace(TASK, p_fresh=0.0, noise=noise))
    objects, _ = content_of(drawn)
    means = world.objects[torch.cat([drawn.context, drawn.query[:, None]], 1)]
    residual = objects - means / (1 + noise**2) ** 0.5
    assert_normal(residual, noise**2 / 85 / (1 + noise**2))
    overlap = (residual * means).sum(-1)  # Σ_d η_d μ_d / 85: no noise along the class vector
    assert stats.ttest_1samp(overlap.flatten().numpy(), 0).pvalue > RARE


def test_noise_is_redrawn_for_each_instance(world: ICLWorld) -> None:
    drawn = draw(replace(TASK, p_fresh=0.0, burstiness=8, p_bursty=1.0, noise=0.5), 1000)
    objects, _ = content_of(drawn)  # nine instances of one class
    noise = objects - world.objects[drawn.query][:, None] / 1.25**0.5
    products = (noise[:, 0] * noise[:, -1]).sum(-1)
    assert stats.ttest_1samp(products.numpy(), 0).pvalue > RARE
    assert (noise[:, :-1] != noise[:, 1:]).any(-1).all()


def test_without_noise_an_object_is_its_class_vector(world: ICLWorld) -> None:
    drawn = draw(replace(TASK, p_fresh=0.0, noise=0.0), 50)
    objects, _ = content_of(drawn)
    assert objects[:, -1].equal(world.objects[drawn.query])


@pytest.mark.parametrize("shift", [1, 31, 33, -1])
def test_a_label_shift_moves_the_labels_of_known_classes_only(world: ICLWorld, shift: int) -> None:
    drawn = draw(replace(TASK, label_shift=shift), 500)
    moved = torch.where(drawn.fresh, 0, shift)
    assert drawn.targets.equal((drawn.query + moved) % 32)
    assert drawn.context_labels.equal((drawn.context + moved[:, None]) % 32)
    assert content_of(drawn)[1].equal(world.labels[drawn.context_labels])


# The four test distributions


def test_test_is_the_training_distribution() -> None:
    task = replace(TASK, n_pairs=4, noise=0.3)
    assert task.tests()["test"] == task


def test_ic_asks_for_fresh_classes_only() -> None:
    drawn = draw(TASK.tests()["ic"], 1000)
    assert drawn.fresh.all()
    assert (drawn.context == drawn.query[:, None]).sum(1).eq(2).all()
    assert drawn.targets.equal(drawn.query % 32)


def test_ic2_asks_for_known_classes_with_other_labels() -> None:
    drawn = draw(TASK.tests()["ic2"], 1000)
    assert not drawn.fresh.any()
    assert (drawn.context == drawn.query[:, None]).sum(1).eq(2).all()
    assert drawn.targets.equal((drawn.query + 1) % 32)
    assert drawn.context_labels.equal((drawn.context + 1) % 32)


def test_ic2_differs_from_a_training_distribution_that_is_itself_shifted() -> None:
    assert replace(TASK, label_shift=3).tests()["ic2"].label_shift == 4


def test_iw_asks_for_what_the_context_does_not_tell() -> None:
    drawn = draw(TASK.tests()["iw"])
    assert not drawn.fresh.any()
    assert not drawn.bursty.any()
    assert drawn.targets.equal(drawn.query % 32)
    assert_share((drawn.context == drawn.query[:, None]).any(1), 1 - (1 - 1 / 512) ** 8)


def test_a_task_that_is_never_bursty_has_no_ic_test() -> None:
    task = ICLTask(burstiness=0, p_bursty=0.0, p_fresh=0.0)
    with pytest.raises(ValueError, match="burstiness=0 needs p_bursty=0"):
        task.tests()


# Randomness


def test_the_same_seed_gives_the_same_world_and_batch() -> None:
    one, other = (ICLWorld(TASK, seeded(5)) for _ in range(2))
    assert one.objects.equal(other.objects)
    assert one.labels.equal(other.labels)
    pairs = zip(one.batch(40, seeded(6)), other.batch(40, seeded(6)), strict=True)
    assert all(x.equal(y) for x, y in pairs)


def test_another_seed_gives_another_world_and_batch(world: ICLWorld) -> None:
    assert not world.objects.equal(ICLWorld(TASK, seeded(5)).objects)
    assert not world.batch(40, seeded(6)).query.equal(world.batch(40, seeded(7)).query)


def test_successive_batches_differ(world: ICLWorld) -> None:
    generator = seeded(6)
    assert not world.batch(40, generator).query.equal(world.batch(40, generator).query)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    draw(TASK, 10)
    assert torch.get_rng_state().equal(before)


def test_a_worlds_own_task_is_the_default(world: ICLWorld) -> None:
    given, own = world.batch(30, seeded(8), TASK), world.batch(30, seeded(8))
    assert given.inputs.equal(own.inputs)


# What is refused


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_classes": 500}, "n_classes=500 must be a multiple of n_labels=32"),
        ({"n_fresh": 100}, "n_fresh=100 must be a multiple of n_labels=32"),
        ({"n_pairs": 9}, "n_pairs=9 must be divisible by burstiness=2"),
        ({"burstiness": 3}, "n_pairs=8 must be divisible by burstiness=3"),
        ({"n_labels": 2}, "n_pairs/burstiness=4 distinct labels are more than n_labels=2"),
        ({"n_pairs": 34}, "n_pairs=34 must be at most n_max=32"),
        ({"p_bursty": 1.1}, "p_bursty must lie between 0 and 1; got 1.1"),
        ({"p_bursty": -0.1}, "p_bursty must lie between 0 and 1; got -0.1"),
        ({"p_fresh": 2}, "p_fresh must lie between 0 and 1; got 2"),
        ({"p_fresh": float("nan")}, "p_fresh must lie between 0 and 1; got nan"),
        ({"burstiness": 0}, "burstiness=0 needs p_bursty=0 and p_fresh=0"),
        ({"burstiness": 0, "p_bursty": 0.0}, "got p_bursty=0.0, p_fresh=0.5"),
        ({"burstiness": 0, "p_fresh": 0.0}, "got p_bursty=0.5, p_fresh=0.0"),
        ({"burstiness": -1}, "burstiness must be .*; got -1"),
        ({"burstiness": 2.0}, "burstiness must be .*; got 2.0"),
        ({"burstiness": 0.5}, "burstiness must be .*; got 0.5"),
        ({"label_shift": 0.5}, "label_shift must be .*; got 0.5"),
        ({"noise": float("nan")}, "noise must be a finite number from 0 up; got nan"),
        ({"noise": float("inf")}, "noise must be a finite number from 0 up; got inf"),
        ({"noise": -0.1}, "noise must be a finite number from 0 up; got -0.1"),
        ({"n_classes": 0}, "n_classes must be a whole number from 1 up; got 0"),
        ({"n_labels": -32}, "n_labels must be a whole number from 1 up; got -32"),
        ({"n_pairs": 0}, "n_pairs must be a whole number from 1 up; got 0"),
        ({"n_pairs": 8.0}, "n_pairs must be a whole number from 1 up; got 8.0"),
        ({"content": 0}, "content must be a whole number from 1 up; got 0"),
        ({"n_max": "32"}, "n_max must be a whole number from 1 up; got '32'"),
        ({"n_fresh": 0}, "n_fresh must be a whole number from 1 up; got 0"),
    ],
)
def test_an_impossible_setting_is_named_with_its_value(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ICLTask(**wrong)


@pytest.mark.parametrize("size", [0, -3])
def test_an_empty_batch_is_refused(world: ICLWorld, size: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1 sequence; got size={size}"):
        world.batch(size, seeded(0))


@pytest.mark.parametrize(
    ("field", "value", "own"),
    [("n_classes", 1024, 512), ("n_labels", 16, 32), ("content", 80, 85), ("n_max", 30, 32)],
)
def test_a_task_of_other_vectors_is_refused(
    world: ICLWorld, field: str, value: int, own: int
) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"{field}={value} differs from the world's {own}")
    ):
        world.batch(5, seeded(0), replace(TASK, **{field: value}))


# Any valid task


@st.composite
def tasks(draw: st.DrawFn) -> ICLTask:
    labels = draw(st.integers(1, 6))
    burstiness = draw(st.integers(0, 3))
    pairs = draw(st.integers(1, 5))
    if burstiness:
        pairs = burstiness * min(pairs, labels)
    share = st.floats(0, 1) if burstiness else st.just(0.0)
    return ICLTask(
        n_classes=labels * draw(st.integers(1, 4)),
        n_labels=labels,
        n_pairs=pairs,
        burstiness=burstiness,
        p_bursty=draw(share),
        p_fresh=draw(share),
        label_shift=draw(st.integers(-7, 7)),
        noise=draw(st.floats(0, 3)),
        content=draw(st.integers(1, 5)),
        n_max=pairs + draw(st.integers(0, 3)),
        n_fresh=labels * draw(st.integers(1, 3)),
    )


@settings(max_examples=80, deadline=None, derandomize=True)
@given(task=tasks(), size=st.integers(1, 20), seed=st.integers(0, 2**32))
def test_any_valid_task_makes_valid_batches(task: ICLTask, size: int, seed: int) -> None:
    world = ICLWorld(task, seeded(seed))
    drawn = world.batch(size, seeded(seed))
    positions = torch.arange(task.n_tokens) + drawn.shift[:, None]
    content = drawn.inputs[..., task.n_positions :]
    assert drawn.inputs.isfinite().all()
    assert drawn.inputs.shape == (size, 2 * task.n_pairs + 1, task.d_input)
    assert drawn.inputs[..., : task.n_positions].equal(
        F.one_hot(positions, task.n_positions).float()
    )
    assert content[:, 1::2].equal(world.labels[drawn.context_labels])
    for i in range(size):
        assert_valid(task, ICLBatch(*(field[i] for field in drawn)))


def assert_valid(task: ICLTask, one: ICLBatch) -> None:
    """What must hold of a single sequence, whatever was drawn."""
    context, query = one.context.tolist(), int(one.query)
    first = task.n_classes if one.fresh else 0
    count = task.n_fresh if one.fresh else task.n_classes
    assert all(first <= c < first + count for c in [*context, query])
    shift = 0 if one.fresh else task.label_shift
    assert one.context_labels.tolist() == [(c + shift) % task.n_labels for c in context]
    assert int(one.targets) == (query + shift) % task.n_labels
    if one.bursty:
        assert {context.count(c) for c in context} == {task.burstiness}
        assert len({c % task.n_labels for c in context}) == task.n_pairs // task.burstiness
        assert query in context
    else:
        assert not one.fresh
