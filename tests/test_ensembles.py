"""Several models as one, and a student of theirs."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy.special import log_softmax, softmax

from recsys_helpers.ensembles import Distilled, sum_of
from recsys_helpers.index import AnnoyIndex, ExactIndex
from recsys_helpers.layers import EmbeddingTable, ItemFeatures, Tower
from recsys_helpers.sampled_softmax import UniformSampler
from recsys_helpers.towers import (
    DSSMUserTower,
    FMItemTower,
    FMUserTower,
    ItemEmbeddingTower,
    SelfAttentiveUserTower,
    SumItemTower,
    SumUserTower,
    YouTubeDNNUserTower,
)
from recsys_helpers.two_tower import TwoTower

TENSORFLOW = keras.backend.backend() == "tensorflow"
NUM_ITEMS, LENGTH, MOMENTS, ROWS = 20, 6, 3, 12
SIZES = {"user_id": 31, "age": 8, "history": NUM_ITEMS + 1, "search": 5, "history_length": LENGTH}
WEIGHTS = (0.5, 0.2, 0.3)
rng = np.random.default_rng(0)
HISTORY = rng.integers(1, NUM_ITEMS + 1, (ROWS, LENGTH + MOMENTS - 1)).astype("int32")
HISTORY[0, :5] = 0
INPUTS = {
    "user_id": rng.integers(1, 31, ROWS).astype("int32"),
    "age": rng.integers(1, 8, ROWS).astype("int32"),
    "history": HISTORY,
    "search": rng.integers(0, 5, (ROWS, MOMENTS, 3)).astype("int32"),
    "example_age": rng.uniform(0, 9, (ROWS, MOMENTS)).astype("float32"),
}
TARGETS = rng.integers(1, NUM_ITEMS + 1, (ROWS, MOMENTS)).astype("int32")
TARGETS[3, :2] = 0
TARGETS[4, 2] = HISTORY[4, -1]  # watched again: seen, and a target none the less
CODES = ItemFeatures({"year": np.arange(NUM_ITEMS + 1) % 4})


def with_random_weights(model, seed=0):
    """Called once, and no start hides a part of it."""
    model.user_vectors(INPUTS), model.item_vectors()
    weights = np.random.default_rng(seed)
    for weight in model.trainable_variables:
        weight.assign(weights.normal(0, 0.4, weight.shape))
    return model


def members():
    """An FM, a network and one with attention: of other sizes, lengths and temperatures."""
    table = EmbeddingTable(NUM_ITEMS + 1, 8)  # which two towers share
    pairs = (
        (FMUserTower(SIZES, 6, dropout=0.3), FMItemTower(CODES, 6), 1.0),
        (YouTubeDNNUserTower(SIZES, 4, hidden=(9,)), ItemEmbeddingTower(NUM_ITEMS, 4), 0.2),
        (
            SelfAttentiveUserTower(SIZES, 8, hidden=(9,), reach=LENGTH, item_table=table),
            ItemEmbeddingTower(NUM_ITEMS, 8, item_table=table),
            0.1,
        ),
    )
    return [
        with_random_weights(TwoTower(user, item, NUM_ITEMS, temperature=temperature), seed)
        for seed, (user, item, temperature) in enumerate(pairs)
    ]


@pytest.fixture(scope="module")
def models():
    return members()


def tensors():
    return {name: ops.convert_to_tensor(value) for name, value in INPUTS.items()}


def logits(model):
    """Of all users and items after the last moment, in float64."""
    users, items = model.user_vectors(INPUTS), model.item_vectors()
    return users.astype(float) @ items.T.astype(float) / model.temperature


# ------------------------------------------------------------------------------ the sum


def test_its_logits_are_the_weighted_sum_of_the_models(models):
    together = sum_of(models, WEIGHTS)
    expected = sum(w * logits(model) for w, model in zip(WEIGHTS, models, strict=True))
    np.testing.assert_allclose(logits(together), expected, rtol=1e-5, atol=1e-5)
    assert together.user_vectors(INPUTS).shape == (ROWS, 7 + 4 + 8)
    even = sum_of(models)
    expected = sum(logits(model) for model in models) / 3
    np.testing.assert_allclose(logits(even), expected, rtol=1e-5, atol=1e-5)
    assert np.abs(logits(even) - logits(together)).max() > 0.1  # weights matter
    # At every moment, and without what is only for training.
    moments = ops.convert_to_numpy(together(tensors()))
    assert moments.shape == (ROWS, MOMENTS, 19)
    np.testing.assert_allclose(moments[:, -1], together.user_vectors(INPUTS), rtol=1e-5)


def test_weights_scale_the_users_only(models):
    """So items needn't be indexed again for other weights."""
    one, other = sum_of(models, WEIGHTS), sum_of(models, (1.0, 0.0, -2.0))
    np.testing.assert_array_equal(one.item_vectors(), other.item_vectors())
    assert np.abs(one.user_vectors(INPUTS) - other.user_vectors(INPUTS)).max() > 0.1


def test_what_it_reads_is_what_any_of_its_towers_reads(models):
    tower = sum_of(models).user_tower
    assert set(tower.reads) == set(INPUTS) - {"example_age"} and len(tower.reads) == 4
    only = SumUserTower([models[1].user_tower], [1.0])
    assert set(only.reads) == {"age", "history", "search"}
    with pytest.raises(ValueError, match="missing are search"):
        sum_of(models).user_vectors({k: v for k, v in INPUTS.items() if k != "search"})


def test_saved_and_loaded_it_is_the_same(models, tmp_path):
    together = sum_of(models, WEIGHTS)
    together.save(tmp_path / "sum.keras")
    loaded = keras.models.load_model(tmp_path / "sum.keras")
    np.testing.assert_array_equal(loaded.user_vectors(INPUTS), together.user_vectors(INPUTS))
    np.testing.assert_array_equal(loaded.item_vectors(), together.item_vectors())
    assert loaded.user_tower.scales == pytest.approx([0.5, 1.0, 3.0])
    shared = loaded.user_tower.towers[2].history.items
    assert shared is loaded.item_tower.towers[2].items  # still one table


@pytest.mark.skipif(not TENSORFLOW, reason="the exported function is TensorFlow's")
def test_it_is_served_as_any_other(models, tmp_path):
    from recsys_helpers.served_tower import load_tower, served_tower

    together = sum_of(models[:2], WEIGHTS[:2])
    served_tower(together).save(tmp_path)
    now = {
        **INPUTS, "search": INPUTS["search"][:, -1:], "example_age": INPUTS["example_age"][:, -1:]
    }  # fmt: skip
    users = load_tower(tmp_path).user_vectors(now)
    np.testing.assert_allclose(users, together.user_vectors(INPUTS), rtol=1e-4, atol=1e-5)
    ids = np.arange(1, NUM_ITEMS + 1)
    best = np.argsort(-logits(together), axis=1)[:, :5]
    for kind in (ExactIndex, AnnoyIndex):
        index = kind(metric="dot").build(together.item_vectors(), ids)
        np.testing.assert_array_equal(index.query(users, 5)[0], best + 1)


class EveryMoment(Tower):
    """A tower of somebody's own: it says nothing of itself, and returns more moments than asked."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.table = EmbeddingTable(NUM_ITEMS + 1, 3, stddev=1.0)

    def call(self, inputs, training=False):
        return self.table(inputs["history"])


def test_a_tower_of_ones_own_may_say_nothing_and_return_more_moments(models):
    own = TwoTower(EveryMoment(), ItemEmbeddingTower(NUM_ITEMS, 3), NUM_ITEMS)
    own.user_vectors(INPUTS)
    together = sum_of([models[1], own], (1.0, 2.0))
    expected = logits(models[1]) + 2 * logits(own)
    np.testing.assert_allclose(logits(together), expected, rtol=1e-5, atol=1e-5)


def test_what_does_not_belong_together_is_refused(models):
    with pytest.raises(ValueError, match="one weight for each model, received 2 weights and 3"):
        sum_of(models, (0.5, 0.5))
    with pytest.raises(ValueError, match="received 0 weights and 0 models"):
        sum_of([])
    with pytest.raises(ValueError, match="one scale for each tower"):
        SumUserTower([models[0].user_tower], [1.0, 2.0])
    with pytest.raises(ValueError, match="one catalogue, received 2 towers of .19, 20. items"):
        SumItemTower([ItemEmbeddingTower(NUM_ITEMS, 4), ItemEmbeddingTower(19, 4)])
    with pytest.raises(ValueError, match="age has 8 codes for one and 9 for DSSMUserTower"):
        SumUserTower([models[0].user_tower, DSSMUserTower({**SIZES, "age": 9}, 4)], [1.0, 1.0])


# ------------------------------------------------------------------------------ the student


def student(teacher, share=0.4, softness=2.0, exclude_seen=True, **more):
    keras.utils.set_random_seed(3)
    tower = YouTubeDNNUserTower(SIZES, 5, hidden=(7,), dropout=0.0)
    model = Distilled(
        tower, ItemEmbeddingTower(NUM_ITEMS, 5), NUM_ITEMS, temperature=0.3, teacher=teacher,
        share=share, softness=softness, exclude_seen=exclude_seen, **more,
    )  # fmt: skip
    return with_random_weights(model, seed=9)


def loss_of(model, training=True):
    """The loss that `fit` sees, and its mean over the targets, which it reports."""
    inputs = tensors()
    model.loss_mean.reset_state()
    total = model.compute_loss(
        inputs, ops.convert_to_tensor(TARGETS), model(inputs), training=training
    )
    return float(total), float(model.loss_mean.result())


def by_hand(model, teacher, share, softness, exclude_seen=True):
    """Every target's cross-entropy to the mixed targets, written out."""
    inputs, losses = tensors(), []
    mine, its = (
        np.einsum("btd,nd->btn", ops.convert_to_numpy(m(inputs)), m.item_vectors()) / m.temperature
        for m in (model, teacher)
    )
    for row, moment in zip(*np.nonzero(TARGETS), strict=True):
        target, left = TARGETS[row, moment], np.ones(NUM_ITEMS, bool)
        watched = HISTORY[row, : LENGTH + moment]
        if exclude_seen:
            left[watched[watched > 0] - 1] = False
            left[target - 1] = True
        mix = share * softmax(its[row, moment, left] / softness)
        mix[np.flatnonzero(left) == target - 1] += 1 - share
        losses.append(-(mix * log_softmax(mine[row, moment, left])).sum())
    return np.array(losses)


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_the_loss_is_the_cross_entropy_to_the_mixed_targets(models, exclude_seen):
    teacher = sum_of(models, WEIGHTS)
    model = student(teacher, exclude_seen=exclude_seen)
    losses = by_hand(model, teacher, 0.4, 2.0, exclude_seen)
    total, mean = loss_of(model)
    assert mean == pytest.approx(losses.mean(), rel=1e-5)
    assert total == pytest.approx(losses.sum() / TARGETS.size, rel=1e-5)
    assert abs(losses.mean() - by_hand(model, teacher, 0.4, 1.0, exclude_seen).mean()) > 0.01
    # A teacher that is no sum, with a temperature of its own.
    model = student(models[2], exclude_seen=exclude_seen)
    losses = by_hand(model, models[2], 0.4, 2.0, exclude_seen)
    assert loss_of(model)[1] == pytest.approx(losses.mean(), rel=1e-5)


def test_without_a_share_and_in_evaluation_it_is_the_plain_loss(models):
    teacher, plain = sum_of(models, WEIGHTS), {}
    for share in (0.0, 0.4):
        model = student(teacher, share)
        alone = TwoTower(
            model.user_tower, model.item_tower, NUM_ITEMS, temperature=0.3, exclude_seen=True
        )
        plain[share] = loss_of(alone)
        assert loss_of(model, training=False) == plain[share]
    assert loss_of(student(teacher, 0.0)) == plain[0.0]
    assert abs(loss_of(model)[1] - plain[0.4][1]) > 0.01


def test_a_sampled_softmax_gets_the_same_change(models):
    """Only log Z is estimated; with all items sampled equally often it is nearly exact."""
    teacher, sampler = models[2], UniformSampler(NUM_ITEMS, 4000)
    sampled = loss_of(student(teacher, exclude_seen=False, sampler=sampler))[1]
    assert sampled == pytest.approx(loss_of(student(teacher, exclude_seen=False))[1], rel=0.03)


def test_the_teacher_is_not_trained_and_not_a_part_of_the_student(models, tmp_path):
    teacher = sum_of(models, WEIGHTS)
    before = [ops.convert_to_numpy(weight) for weight in teacher.weights]
    model = student(teacher, share=1.0)
    own = len(TwoTower(model.user_tower, model.item_tower, NUM_ITEMS).trainable_variables)
    assert len(model.trainable_variables) == own
    model.compile(keras.optimizers.SGD(0.5), run_eagerly=TENSORFLOW)
    kept = model.user_vectors(INPUTS)
    model.fit(INPUTS, TARGETS, batch_size=6, epochs=2, verbose=0)
    assert np.abs(model.user_vectors(INPUTS) - kept).max() > 1e-3
    for weight, old in zip(teacher.weights, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(weight), old)
    # Loaded, it ranks and measures, and says what it lacks for training.
    model.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(loaded.user_vectors(INPUTS), model.user_vectors(INPUTS))
    assert (loaded.share, loaded.softness) == (1.0, 2.0)
    assert loss_of(loaded, training=False) == pytest.approx(loss_of(model, training=False))
    with pytest.raises(ValueError, match="teacher is not saved"):
        loss_of(loaded)


def test_a_student_of_the_teacher_alone_learns_its_order(models):
    teacher = with_random_weights(sum_of(models, WEIGHTS), seed=5)
    model = student(teacher, share=1.0, softness=1.0)
    model.compile(keras.optimizers.Adam(0.1), run_eagerly=TENSORFLOW)

    def gap():
        return by_hand(model, teacher, 1.0, 1.0).mean()

    before = gap()
    wrong = np.where(TARGETS > 0, 1, 0).astype("int32")  # what was watched says nothing
    model.fit(INPUTS, wrong, batch_size=12, epochs=15, verbose=0)
    assert gap() < before - 0.3


def test_what_cannot_be_learned_from_is_refused(models):
    with pytest.raises(ValueError, match="share must be from 0 to 1 .* received 1.5 and 2.0"):
        student(models[0], share=1.5)
    with pytest.raises(ValueError, match="softness positive"):
        student(models[0], softness=0.0)
    other = TwoTower(EveryMoment(), ItemEmbeddingTower(19, 3), 19)
    with pytest.raises(ValueError, match="called once, of 20 items, received one of 19 that was"):
        student(other)
