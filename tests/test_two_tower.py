"""The joined model: its loss against numpy, and what it shares with any Keras model."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers, ops
from scipy.special import logsumexp

from recsys_helpers.layers import EmbeddingTable, ItemFeatures, l2_normalize
from recsys_helpers.sampled_softmax import InBatchSampler, PopularitySampler, UniformSampler
from recsys_helpers.towers import (
    DSSMItemTower,
    DSSMUserTower,
    FMItemTower,
    FMUserTower,
    ItemEmbeddingTower,
    SelfAttentiveUserTower,
    YouTubeDNNUserTower,
)
from recsys_helpers.two_tower import TwoTower

TENSORFLOW = keras.backend.backend() == "tensorflow"
NUM_ITEMS, LENGTH, DIM, MOMENTS = 24, 6, 16, 3
PROFILE = {"user_id": 61, "gender": 3, "age": 8, "occupation": 5}
SIZES = {**PROFILE, "history": NUM_ITEMS + 1, "search": 5, "history_length": LENGTH}
COUNTS = np.arange(NUM_ITEMS + 1) % 9  # of targets; items 9 and 18 never were one
KINDS = ["fm", "dssm", "youtubednn", "self_attentive"]
SAMPLERS = {
    "full": None,
    "uniform": UniformSampler(NUM_ITEMS, 8),
    "popularity": PopularitySampler(COUNTS, 50),
    "in batch": InBatchSampler(COUNTS),
}


def ring(rows=256, positions=MOMENTS, seed=0):
    """Everybody walks the same ring of items: after item i comes item i + 1."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, NUM_ITEMS, rows)
    walk = (first[:, None] + np.arange(LENGTH + positions)) % NUM_ITEMS + 1
    inputs = {name: rng.integers(0, size, rows) for name, size in PROFILE.items()}
    inputs |= {"history": walk[:, :-1], "search": rng.integers(0, 5, (rows, positions, 3))}
    inputs = {name: value.astype("int32") for name, value in inputs.items()}
    inputs["search"] = inputs["search"].astype("int8")  # as samples have it
    inputs["example_age"] = rng.uniform(0, 9, (rows, positions)).astype("float32")
    targets = walk[:, -positions:].astype("int32")
    targets[: rows // 8, : positions - 1] = 0
    return inputs, targets


def towers(kind, sizes=SIZES, user=None, item=None, dropout=0.0):
    keras.utils.set_random_seed(1)
    user, item = {"dropout": dropout, **(user or {})}, item or {}
    if kind in ("fm", "dssm"):
        ids = np.arange(NUM_ITEMS + 1)
        features = ItemFeatures({"genres": ids[:, None] % 5, "year": ids % 3})
    if kind == "fm":
        return FMUserTower(sizes, DIM, **user), FMItemTower(features, DIM, **item)
    user |= {"hidden": (32,)}
    if kind == "dssm":
        item = DSSMItemTower(features, DIM, hidden=(32,), **item)
        return DSSMUserTower(sizes, DIM, **user), item
    kind = {"youtubednn": YouTubeDNNUserTower, "self_attentive": SelfAttentiveUserTower}[kind]
    user = kind(sizes, DIM, example_age_scale=4.0, **user)
    return user, ItemEmbeddingTower(NUM_ITEMS, DIM, **item)


def make(kind, optimizer=None, eager=False, temperature=None, towers_=None, **kwargs):
    """A compiled model; eager ones aren't traced, which is what takes time in a short test."""
    temperature = temperature or (1.0 if kind == "fm" else 0.1)
    model = TwoTower(
        *(towers_ or towers(kind)), num_items=NUM_ITEMS, temperature=temperature, **kwargs
    )
    model.compile(optimizer or keras.optimizers.Adam(0.01), run_eagerly=eager and TENSORFLOW)
    return model


@cache
def pair():
    """Two towers that are never trained, so that models of all sorts can be made around them."""
    return towers("youtubednn", user={"hidden": ()})


def still(**kwargs):
    """A model whose `fit` computes losses and changes nothing."""
    return make("youtubednn", keras.optimizers.SGD(0.0), True, towers_=pair(), **kwargs)


def tensors(arrays):
    return keras.tree.map_structure(ops.convert_to_tensor, arrays)


def number(scalar):
    return float(ops.convert_to_numpy(scalar))


def first_rows(inputs, rows):
    return {name: value[:rows] for name, value in inputs.items()}


# The loss


def losses_of(model, inputs, targets, ids=None, log_count=None):
    """Each target's loss [n, T] by a loop, 0 where there is none; `ids` are the negatives."""
    ids = np.arange(1, NUM_ITEMS + 1) if ids is None else ids
    log_count = np.zeros(len(ids)) if log_count is None else log_count
    users = ops.convert_to_numpy(model(tensors(inputs))).astype("float64") / model.temperature
    items = np.r_[np.zeros((1, users.shape[2])), model.item_vectors()]
    losses = np.zeros(targets.shape)
    for row, moment in zip(*np.nonzero(targets), strict=True):
        target, user = targets[row, moment], users[row, moment]
        known = inputs["history"].shape[1] - (targets.shape[1] - 1 - moment)
        seen = inputs["history"][row, :known] if model.exclude_seen else []
        negative = ~np.isin(ids, [0, target, *seen]) & (log_count > -np.inf)
        logits = items[ids[negative]] @ user - log_count[negative]
        losses[row, moment] = logsumexp([items[target] @ user, *logits]) - items[target] @ user
    return losses


@pytest.mark.parametrize("log_q_correction", [True, False])
@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("name", ["full", "popularity", "in batch"])
def test_the_loss_is_the_formula(name, exclude_seen, log_q_correction):
    inputs, targets = ring(rows=16)
    targets[-1, -1] = inputs["history"][-1, -1]  # watched again: a target is never left out
    sampler = SAMPLERS[name]
    model = still(
        sampler=sampler, exclude_seen=exclude_seen, log_q_correction=log_q_correction, seed=4
    )
    ids = log_count = None
    if name == "popularity":
        ids = ops.convert_to_numpy(sampler.sample(keras.random.SeedGenerator(4))[0])
        log_count = np.log(50 * COUNTS[ids] ** 0.75 / (COUNTS**0.75).sum())
    if name == "in batch":
        ids = targets.ravel()
        with np.errstate(divide="ignore"):
            log_count = np.log((np.count_nonzero(ids) - 1) * COUNTS[ids] / COUNTS.sum())
    expected = losses_of(model, inputs, targets, ids, log_count if log_q_correction else None)
    weight = np.random.default_rng(0).uniform(0, 2, targets.shape).astype("float32")
    y, x = tensors(targets), tensors(inputs)
    for sample_weight, times in ((None, 1), (weight, weight), (weight[:, 0], weight[:, :1])):
        model.seed_generator.state.assign([4, 0])  # as it started, so it draws the same
        model.reset_metrics()
        given = None if sample_weight is None else tensors(sample_weight)
        returned = number(model.compute_loss(x, y, model(x), given, training=True))
        assert returned == pytest.approx((times * expected).sum() / targets.size, rel=1e-4)
        reported = (times * expected)[targets > 0].mean()
        assert number(model.loss_mean.result()) == pytest.approx(reported, rel=1e-4)


class Told(ItemEmbeddingTower):
    """An item tower that keeps what it is told of training, once for each call."""

    def call(self, item_ids, training=None):
        self.told.append(training)
        return super().call(item_ids)


@pytest.mark.parametrize(("name", "calls"), [("full", 1), ("popularity", 2), ("in batch", 2)])
def test_the_item_tower_is_told_of_training_whatever_it_encodes(name, calls):
    """Targets, negatives and the catalogue: dropout of one of them alone would act nowhere else."""
    inputs, targets = ring(rows=8)
    item = Told(NUM_ITEMS, DIM)
    item.told = []
    model = make("youtubednn", None, True, None, (pair()[0], item), sampler=SAMPLERS[name])
    model.user_vectors(inputs)  # makes the weights
    for run, training, expected in ((model.fit, True, calls), (model.evaluate, False, 1)):
        item.told.clear()
        run(inputs, targets, batch_size=8, verbose=0)
        assert item.told == [training] * expected


def test_the_models_seed_is_that_of_its_draws():
    inputs, targets = map(tensors, ring(rows=8))

    def loss(seed):
        model = still(sampler=SAMPLERS["uniform"], seed=seed)
        return [number(model.compute_loss(inputs, targets, model(inputs))) for _ in range(2)]

    assert loss(1) == loss(1) and loss(1) != loss(2) and len(set(loss(1))) == 2


def test_the_last_vectors_count_if_a_tower_returns_more():
    inputs, targets = ring(rows=8)
    model = still()
    expected = losses_of(model, inputs, targets)[:, -2:].mean()
    x, y = tensors(inputs), tensors(targets[:, -2:])
    assert number(model.compute_loss(x, y, model(x))) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="3 targets a row.*2 vectors"):
        model.compute_loss(x, tensors(targets), model(x)[:, :2])


def test_evaluate_is_of_the_whole_catalogue_whatever_the_batch():
    inputs, targets = ring(rows=20)
    targets[:9, :2] = 0
    for sampler in (None, SAMPLERS["in batch"]):
        model = still(sampler=sampler)
        expected = losses_of(model, inputs, targets)[targets > 0].mean()
        for batch_size in (3, 20):
            loss = model.evaluate(inputs, targets, batch_size, 0)
            assert loss == pytest.approx(expected, rel=1e-5)


def test_losses_of_layers_count():
    user, item = towers("youtubednn", user={"hidden": ()})
    user.network.layers[0].kernel_regularizer = keras.regularizers.L2(0.01)
    model = make("youtubednn", keras.optimizers.SGD(0.0), eager=True, towers_=(user, item))
    inputs, targets = ring(rows=16)
    model.user_vectors(inputs)
    own = 0.01 * (ops.convert_to_numpy(user.network.layers[0].kernel) ** 2).sum()
    expected = losses_of(model, inputs, targets)
    history = model.fit(inputs, targets, batch_size=16, verbose=0).history
    assert history["loss"][0] == pytest.approx(expected[targets > 0].mean() + own, rel=1e-5)
    x, y = tensors(inputs), tensors(targets)
    loss = number(model.compute_loss(x, y, model(x)))
    assert loss == pytest.approx(expected.sum() / expected.size + own, rel=1e-5)


def test_negatives_that_were_seen_have_no_gradient():
    inputs, targets = ring(rows=1, positions=1)
    sampler = UniformSampler(NUM_ITEMS, 400)  # 400 draws from 24 items: each is drawn
    optimizer = keras.optimizers.SGD(1.0)
    model = make("youtubednn", optimizer, eager=True, sampler=sampler, exclude_seen=True)
    table = model.item_tower.items.embeddings
    before = ops.convert_to_numpy(table).copy()
    model.fit(inputs, targets, verbose=0)
    moved = np.abs(ops.convert_to_numpy(table) - before).max(1) > 0
    expected = ~np.isin(np.arange(NUM_ITEMS + 1), [0, *inputs["history"][0]])
    np.testing.assert_array_equal(moved, expected)


# fit and evaluate, as in Keras

CALLS = {
    "keywords": lambda fit, x, y: fit(x=x, y=y, batch_size=16, epochs=3, verbose=0),
    "positions": lambda fit, x, y: fit(x, y, 16, 3, 0, None, 0.25),
    "weights": lambda fit, x, y: fit(x, y, 16, 3, 0, sample_weight=np.ones(len(y))),
    "nones": lambda fit, x, y: fit(
        x, y, 16, 3, 0, None, 0.0, None, True, None, None, 0, None, None, None
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_each_epoch_has_another_order_and_the_seed_repeats_it(call):
    """Negatives are the batch's own, so nothing but the order can change the loss."""
    inputs, targets = ring(rows=48)

    def losses(seed, call):
        model = still(sampler=SAMPLERS["in batch"])
        keras.utils.set_random_seed(seed)
        return call(model.fit, inputs, targets).history["loss"]

    found = losses(5, CALLS[call])
    assert len(set(found)) == 3
    if call == "keywords":
        assert losses(5, CALLS[call]) == found and not set(losses(6, CALLS[call])) & set(found)
        kept = losses(5, lambda fit, x, y: fit(x, y, 16, 3, 0, shuffle=False))
        assert len(set(np.round(kept, 5))) == 1


def test_weights_and_splits_are_as_in_keras():
    inputs, targets = ring(rows=50)
    model = still()
    loss, real = losses_of(model, inputs, targets), targets > 0
    rng = np.random.default_rng(0)
    first, last = np.s_[:37], np.s_[37:]  # of 50, with a quarter split off

    def mean(weight, rows=np.s_[:]):
        return (loss * np.broadcast_to(weight, loss.shape))[rows][real[rows]].mean()

    for weight in (rng.uniform(0, 2, 50), rng.uniform(0, 2, (50, MOMENTS)), None):
        of = 1 if weight is None else weight.reshape(50, -1)
        logs = model.fit(
            inputs, targets, 16, sample_weight=weight, validation_split=0.25, verbose=0
        ).history
        assert logs["loss"][0] == pytest.approx(mean(of, first), rel=1e-4)
        assert logs["val_loss"][0] == pytest.approx(mean(of, last), rel=1e-4)
        evaluated = model.evaluate(inputs, targets, sample_weight=weight, verbose=0)
        assert evaluated == pytest.approx(mean(of), rel=1e-4)
    validation = (inputs, targets, rng.uniform(0, 2, 50))
    logs = model.fit(inputs, targets, 16, validation_data=validation, verbose=0).history
    assert logs["loss"][0] == pytest.approx(mean(1), rel=1e-4)
    assert logs["val_loss"][0] == pytest.approx(mean(validation[2][:, None]), rel=1e-4)
    # Data given win over a share to be split off.
    logs = model.fit(
        inputs, targets, validation_split=0.5, validation_data=(inputs, targets), verbose=0
    ).history
    assert logs["loss"][0] == pytest.approx(mean(1), rel=1e-4)


def test_validation_has_the_batches_of_training_unless_others_are_asked_for():
    class Counter(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.train = self.test = 0

        def on_train_batch_end(self, batch, logs=None):
            self.train += 1

        def on_test_batch_end(self, batch, logs=None):
            self.test += 1

    inputs, targets = ring(rows=96)
    model, counter = still(), Counter()
    some = {"validation_data": (inputs, targets), "callbacks": [counter], "verbose": 0}
    for given, batches in (
        ({"batch_size": 48}, (2, 2)),
        ({"batch_size": 48, "validation_batch_size": 96}, (2, 1)),
        ({"batch_size": None}, (3, 3)),
        ({"batch_size": 48, "epochs": 3, "initial_epoch": 2}, (2, 2)),
    ):
        history = model.fit(inputs, targets, **given, **some).history
        assert (counter.train, counter.test) == batches and len(history["loss"]) == 1


@pytest.mark.skipif(not TENSORFLOW, reason="batches made by tf.data")
def test_batches_that_the_caller_makes_are_taken_as_they_are():
    import tensorflow as tf

    inputs, targets = ring(rows=20)
    model = still()
    weight = np.arange(20, dtype="float32")
    batches = tf.data.Dataset.from_tensor_slices((inputs, targets, weight)).batch(8)
    expected = (losses_of(model, inputs, targets) * weight[:, None])[targets > 0].mean()
    logs = model.fit(batches, shuffle=False, validation_data=batches, verbose=0).history
    assert logs["loss"][0] == pytest.approx(expected, rel=1e-4)
    assert logs["val_loss"][0] == pytest.approx(expected, rel=1e-4)
    assert model.evaluate(batches, verbose=0) == pytest.approx(expected, rel=1e-4)


@pytest.mark.skipif(not TENSORFLOW, reason="Keras's own batches elsewhere")
def test_batches_hold_each_row_once_and_nothing_tunes_them():
    from recsys_helpers.batches import shuffled_batches

    inputs, _ = ring(rows=150)
    rows = np.arange(150)[:, None]
    batches = shuffled_batches([inputs, rows, None], 64, shuffle=True)
    assert len(batches) == 3 and not batches.options().autotune.enabled
    found = []
    for x, y in batches:
        for name, value in x.items():
            np.testing.assert_array_equal(value, inputs[name][y[:, 0]])
        found.append(y[:, 0])
    assert [len(y) for y in found] == [64, 64, 22]
    assert sorted(np.concatenate(found)) == list(range(150))


# What is refused


@cache
def fitting():
    return still(sampler=SAMPLERS["uniform"]), *ring(rows=16)


def changed(array, place, value):
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize(
    "message, change",
    [
        ("equally many rows.*'targets': 5", lambda x, y: (x, y[:5])),
        ("equally many.*'gender': 9", lambda x, y: ({**x, "gender": x["gender"][:9]}, y)),
        ("equally many.*'sample_weight': 3", lambda x, y: (x, y, np.ones(3))),
        ("equally many", lambda x, y: (first_rows(x, 0), y[:0])),
        (r"int32 of shape \(16,\)", lambda x, y: (x, y[:, 0])),
        ("float64 of shape", lambda x, y: (x, y * 1.0)),
        (r"\[-1, -1, [0-9]+\] in row 0", lambda x, y: (x, y - 1)),
        (f"1 to {NUM_ITEMS}.* in row 7", lambda x, y: (x, changed(y, (7, 2), NUM_ITEMS + 1))),
        ("left of a row only.* in row 6", lambda x, y: (x, changed(y, (6, 2), 0))),
        ("left of a row only.* in row 6", lambda x, y: (x, changed(y, (6, 1), 0))),
        ("left of a row only.* in row 6", lambda x, y: (x, changed(y, 6, 0))),
        (r"\(16,\) or \(16, 3\), received \(16, 2\)", lambda x, y: (x, y, np.ones((16, 2)))),
        ("not negative, received -0.5", lambda x, y: (x, y, changed(np.ones(16), 3, -0.5))),
        ("finite .* received nan", lambda x, y: (x, y, changed(np.ones((16, 3)), (3, 1), np.nan))),
        ("finite .* received inf", lambda x, y: (x, y, changed(np.ones(16), 3, np.inf))),
        ("equally many.*'user_id': None", lambda x, y: ({k: v[0] for k, v in x.items()}, y[0])),
        ("equally many.*'targets': None", lambda x, y: (x, y[0, 0])),
        ("equally many.*'sample_weight': None", lambda x, y: (x, y, 0.5)),
        (
            "history must hold.* received 25 in row 4",
            lambda x, y: ({**x, "history": changed(x["history"], (4, 1), 25)}, y),
        ),
        ("age must hold", lambda x, y: ({**x, "age": changed(x["age"], 3, -1)}, y)),
        ("gender must hold integer", lambda x, y: ({**x, "gender": x["gender"] / 2}, y)),
        (
            r"search must be \[n, T, tokens\], received shape \(16, 3\)",
            lambda x, y: ({**x, "search": x["search"][:, 0]}, y),
        ),
        (
            "the same T of .* received {'example_age': 3, 'search': 6}",
            lambda x, y: ({**x, "search": np.repeat(x["search"], 2, axis=1)}, y),
        ),
        ("missing are search", lambda x, y: ({k: v for k, v in x.items() if k != "search"}, y)),
    ],
)
def test_arrays_that_do_not_fit_are_refused_in_words(message, change):
    model, inputs, targets = fitting()
    x, y, *weight = change(inputs, targets)
    weight = weight[0] if weight else None
    with pytest.raises(ValueError, match=message):
        model.fit(x, y, sample_weight=weight, verbose=0)
    with pytest.raises(ValueError, match=message):
        model.evaluate(x, y, sample_weight=weight, verbose=0)
    with pytest.raises(ValueError, match=message):
        model.fit(inputs, targets, validation_data=(x, y, weight), verbose=0)
    for on_batch in (model.train_on_batch, model.test_on_batch):
        with pytest.raises(ValueError, match=message):
            on_batch(x, y, weight)
    lengths = {len(v) if v.ndim else None for v in x.values()}
    if any(w in message for w in ("hold", "missing", "search")) or len(lengths) > 1:
        for vectors in (model.user_vectors, model.predict):
            with pytest.raises(ValueError, match=message):
                vectors(x)


def test_what_fit_cannot_do_is_refused():
    model, inputs, targets = fitting()
    with pytest.raises(ValueError, match="no classes"):
        model.fit(inputs, targets, class_weight={0: 1.0})
    for share in (0.99, -0.5, 1.5):
        with pytest.raises(ValueError, match=f"validation_split={share}"):
            model.fit(inputs, targets, validation_split=share)
    with pytest.raises(ValueError, match="expected targets"):
        model.compute_loss(tensors(inputs), None, model(tensors(inputs)))
    with pytest.raises(TypeError, match="unexpected keyword"):
        model.fit(inputs, targets, batches=3)
    with pytest.raises(ValueError, match=r"expected targets \[n, T\], .* received \(16,\)"):
        model.compute_loss(tensors(inputs), tensors(targets[:, 0]), model(tensors(inputs)))


@pytest.mark.parametrize("size", [0, -1, 2.5, 8.0, "8", True])
def test_sizes_of_batches_are_whole_numbers(size):
    model, inputs, targets = fitting()
    message = f"batch_size must be a whole number from 1, received {size!r}"
    for call in (
        lambda: model.fit(inputs, targets, batch_size=size, verbose=0),
        lambda: model.fit(inputs, targets, validation_batch_size=size, verbose=0),
        lambda: model.evaluate(inputs, targets, batch_size=size, verbose=0),
        lambda: model.user_vectors(inputs, batch_size=size),
        lambda: model.item_vectors(batch_size=size),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_lists_are_read_as_arrays():
    model, inputs, targets = fitting()
    lists = {name: values.tolist() for name, values in inputs.items()}
    np.testing.assert_array_equal(model.user_vectors(lists), model.user_vectors(inputs))
    model.fit(lists, targets.tolist(), batch_size=np.int64(8), verbose=0)
    loss = model.evaluate(inputs, targets, verbose=0)
    assert model.evaluate(lists, targets.tolist(), verbose=0) == pytest.approx(loss)
    model.reset_metrics()
    assert model.test_on_batch(lists, targets.tolist()) == pytest.approx(loss)
    model.train_on_batch(lists, targets.tolist(), [1.0] * 16)
    vectors = model.predict(lists, verbose=0)
    np.testing.assert_array_equal(vectors, model.predict(inputs, verbose=0))
    uneven = [row[i % 2 :] for i, row in enumerate(lists["history"])]
    for call in (model.user_vectors, model.predict, lambda x: model.fit(x, targets)):
        with pytest.raises(ValueError, match="history must have rows of one length, .* 0 on the"):
            call({**lists, "history": uneven})
    with pytest.raises(ValueError, match="targets must have rows of one length"):
        model.fit(inputs, [*targets[1:].tolist(), [1]])


def test_batches_of_one_target_have_no_negatives_in_them():
    inputs, targets = ring(rows=8)
    refused = "InBatchSampler: .*received {} rows of one target, in batches of {}. Make the batch"
    model = still(sampler=SAMPLERS["in batch"])
    with pytest.raises(ValueError, match=refused.format(8, 1)):
        model.fit(inputs, targets[:, -1:], batch_size=1, verbose=0)
    with pytest.raises(ValueError, match=refused.format(1, 32)):
        model.fit(first_rows(inputs, 1), targets[:1, -1:], verbose=0)
    model.fit(first_rows(inputs, 3), targets[:3, -1:], batch_size=2, verbose=0)  # the last is alone
    model.fit(first_rows(inputs, 1), targets[:1], batch_size=1, verbose=0)
    still(sampler=SAMPLERS["uniform"]).fit(inputs, targets[:, -1:], batch_size=1, verbose=0)


def test_another_loss_is_refused():
    model, *_ = fitting()
    for given in (
        {"loss": "mse"}, {"metrics": ["mae"]}, {"weighted_metrics": ["mae"]}, {"loss_weights": [2]},
        {"loss_weights": np.array([2.0])}, {"metrics": np.array(["mae", "mse"])},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(repr(given)) + ".*ValidationMetrics"):
            model.compile(**given)


def test_parts_of_other_catalogues_are_refused():
    user, item = pair()
    for temperature in (0, -1, np.nan):
        with pytest.raises(
            ValueError, match=f"temperature must be positive, received {temperature}"
        ):
            TwoTower(user, item, NUM_ITEMS, temperature=temperature)
    for message, parts in (
        ("expected 7 items everywhere, but the item tower has 24", (user, item, 7)),
        ("the sampler draws from 9", (user, item, NUM_ITEMS, UniformSampler(9, 4))),
        ("the user tower's history has 24", (user, ItemEmbeddingTower(7, DIM), 7)),
    ):
        with pytest.raises(ValueError, match=message):
            TwoTower(*parts)


class Pooled(layers.Layer):
    """One vector a row, [b, d]: not what a user tower returns."""

    def call(self, inputs):
        return ops.cast(inputs["history"], "float32")


def test_towers_whose_vectors_do_not_fit_are_refused():
    inputs, _ = ring(rows=4)
    narrow = [ItemEmbeddingTower(NUM_ITEMS, width) for width in (inputs["history"].shape[1], 1)]
    for towers_ in ((Pooled(), narrow[0]), (pair()[0], narrow[1])):
        model = TwoTower(*towers_, NUM_ITEMS)
        with pytest.raises(ValueError, match=r"\[batch, T, d\].*received \("):
            model.user_vectors(inputs)


# Vectors


def test_vectors_do_not_depend_on_the_batch():
    inputs, _ = ring(rows=10)
    model = make("dssm", towers_=towers("dssm", dropout=0.5))
    users, items = model.user_vectors(inputs), model.item_vectors()
    assert users.shape == (10, DIM) and items.shape == (NUM_ITEMS, DIM)
    np.testing.assert_allclose(model.user_vectors(inputs, batch_size=4), users, atol=1e-6)
    np.testing.assert_allclose(model.item_vectors(batch_size=5), items, atol=1e-6)
    x = tensors(inputs)
    dropped, kept = (ops.convert_to_numpy(model(x, training=t))[:, -1] for t in (True, False))
    assert np.abs(dropped - users).max() > 0.01 > np.abs(kept - users).max()
    last = model.predict(inputs, verbose=0)[:, -1]
    np.testing.assert_allclose(last, users, atol=1e-6)
    third = ops.convert_to_numpy(model.item_tower(tensors(np.array([3], "int32"))))
    np.testing.assert_allclose(items[2:3], third, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_have_no_vectors_of_the_same_length(kind):
    inputs, _ = ring(rows=1, positions=1)
    model = make(kind)
    nobody, nothing = model.user_vectors(first_rows(inputs, 0)), model.item_vectors([])
    assert nobody.shape == nothing.shape == (0, model.user_vectors(inputs).shape[1])


@pytest.mark.parametrize(
    ("ids", "received"),
    [
        ([1.7], r"float64 \(1,\)"),
        ([True, False], r"bool \(2,\)"),
        (["1"], r"<U1 \(1,\)"),
        ([[1, 2]], r"int64 \(1, 2\)"),
        (1, r"int64 \(\)"),
        ([2**32 + 1, 3], f"3 to {2**32 + 1}"),
        ([0, 4], "0 to 4"),
        ([-1], "-1 to -1"),
        ([999, 2], "2 to 999"),
    ],
)
def test_items_that_are_none_have_no_vectors(ids, received):
    message = rf"integers \[n\] from 1 to {NUM_ITEMS}, received {received}\."
    with pytest.raises(ValueError, match=message):
        still().item_vectors(ids)
    assert still().item_vectors(np.array([NUM_ITEMS, 1], "uint8")).shape == (2, DIM)


def test_fields_that_a_dataset_lacks_have_tables_of_one_row():
    """Tables are made by the first batch, without building the model before."""
    inputs, targets = ring(rows=16)
    sizes = {**SIZES, "occupation": 1, "search": 1}
    inputs |= {"occupation": inputs["occupation"] * 0, "search": inputs["search"] * 0}
    for kind in KINDS[-1:] if TENSORFLOW else KINDS:  # it was torch that could not
        model = make(kind, eager=True, towers_=towers(kind, sizes), exclude_seen=True)
        assert np.isfinite(model.fit(inputs, targets, verbose=0).history["loss"]).all()


POLICIES = {"mixed_float16": 1e-2, "mixed_bfloat16": 5e-2, "float64": 1e-4}
if keras.backend.backend() == "jax":
    del POLICIES["float64"]  # JAX has it only where all of a process is set to it


@pytest.mark.parametrize("kind", KINDS)
def test_precision_changes_the_loss_by_no_more_than_its_rounding(kind):
    """The loss after a step, of the sampled and of the full softmax."""
    inputs, targets = ring(rows=16)

    start = []  # numbers that are drawn in another precision are others

    def losses():
        negatives = PopularitySampler(np.r_[0, np.ones(NUM_ITEMS)], 8, alpha=0.5)
        sgd = keras.optimizers.SGD(0.1)  # a large scale may leave out the first steps
        sgd = keras.optimizers.LossScaleOptimizer(sgd, initial_scale=128.0)
        user = {"normalize": False} if kind == "youtubednn" else None
        pair_ = towers(kind, user=user, item=user)
        model = make(kind, sgd, True, temperature=1.0, sampler=negatives, towers_=pair_)
        model.user_vectors(inputs)
        start[:] = start or model.get_weights()
        model.set_weights(start)
        model.fit(inputs, targets, 16, shuffle=False, verbose=0)
        vectors = model.user_vectors(inputs), model.item_vectors()
        expected = "float64" if keras.config.dtype_policy().name == "float64" else "float32"
        assert {v.dtype.name for v in vectors} == {expected}
        return model.evaluate(inputs, targets, verbose=0)

    expected = losses()
    try:
        for policy, tolerance in POLICIES.items():
            keras.config.set_dtype_policy(policy)
            assert losses() == pytest.approx(expected, rel=tolerance), policy
    finally:
        keras.config.set_dtype_policy("float32")


# Training, files, and what another process makes of them


@keras.saving.register_keras_serializable("tests")
class GRUTower(layers.Layer):
    """A user tower with nothing but a constructor and `call`: the last state of a GRU."""

    def __init__(self, num_items, dim, **kwargs):
        super().__init__(**kwargs)
        self.num_items, self.dim = num_items, dim
        self.embedding = layers.Embedding(num_items + 1, dim)
        self.gru = layers.GRU(dim, return_sequences=True)

    def call(self, inputs):
        """Map `history` [b, steps] to vectors of all its moments, [b, steps, dim]."""
        return l2_normalize(self.gru(self.embedding(inputs["history"])))

    def get_config(self):
        return {**super().get_config(), "num_items": self.num_items, "dim": self.dim}


def hits(model):
    inputs, targets = ring(seed=1, positions=1)
    best = np.argmax(model.user_vectors(inputs) @ model.item_vectors().T, axis=1) + 1
    return np.mean(best == targets[:, 0])


@cache
def trained(kind):
    """A model that has learned what comes next; with what is most to be saved in one of them."""
    inputs, targets = ring()
    given, towers_ = {}, None
    if kind == "gru":
        towers_ = GRUTower(NUM_ITEMS, DIM), ItemEmbeddingTower(NUM_ITEMS, DIM)
    elif kind == "tied":
        table = EmbeddingTable(NUM_ITEMS + 1, DIM)
        towers_ = towers("youtubednn", user={"item_table": table}, item={"item_table": table})
    elif kind == "row-wise":
        from recsys_helpers.rowwise import RowAdam, RowEmbedding

        table = {"table": RowEmbedding}
        towers_ = towers("youtubednn", user=table, item=table)
        given = {
            "sampler": InBatchSampler(np.r_[0, np.ones(NUM_ITEMS)]),
            "optimizer": RowAdam(0.01),
        }
    else:
        towers_ = towers(kind, dropout=0.1)
    if kind == "dssm":
        sampler = PopularitySampler(np.r_[0, np.ones(NUM_ITEMS)], 12, alpha=0.5)
        given = {"sampler": sampler, "exclude_seen": True, "log_q_correction": False, "seed": 9}
    model = make(kind, towers_=towers_, **given)
    model.user_vectors(inputs)  # made for rows of several moments
    assert hits(model) < 0.4
    model.fit(inputs, targets, batch_size=64, epochs=12, shuffle=False, verbose=0)
    return model


SAVED = ["fm", "dssm", "self_attentive", "gru", "tied", *(["row-wise"] if TENSORFLOW else [])]


@pytest.mark.parametrize("kind", SAVED)
def test_learns_the_item_that_always_comes_next(kind):
    assert hits(trained(kind)) > 0.8


def test_windows_and_rows_go_through_one_model():
    rows, windows = ring(rows=64), ring(rows=64, positions=1)
    model = trained("tied")
    for inputs, targets in (windows, rows, windows):
        x = tensors(inputs)
        alone = number(model.compute_loss(x, tensors(targets), model(x), training=False))
        cells = np.count_nonzero(targets) / targets.size
        evaluated = model.evaluate(inputs, targets, verbose=0)
        assert alone == pytest.approx(evaluated * cells, rel=1e-4)
        model.fit(inputs, targets, batch_size=64, verbose=0)


def test_a_configuration_has_everything_that_a_model_was_made_with():
    given = {"exclude_seen": True, "log_q_correction": False, "seed": 3, "temperature": 0.3}
    model = make("youtubednn", towers_=pair(), sampler=SAMPLERS["uniform"], **given)
    model.user_vectors(ring(rows=2)[0])
    config = model.get_build_config()
    assert config["input_dtypes"]["search"] == "int8"
    twin = TwoTower.from_config(model.get_config())
    assert given == {name: getattr(twin, name) for name in given}
    assert twin.sampler.get_config() == model.sampler.get_config()
    twin.build_from_config(config)
    assert twin.get_build_config() == config and twin.built


def test_an_unbuilt_model_has_no_shapes_to_save_and_nothing_to_export(tmp_path, monkeypatch):
    model = TwoTower(*towers("fm"), NUM_ITEMS)
    assert model.get_build_config() is None
    with pytest.raises(ValueError, match="a model that was called once"):
        model.export(tmp_path / "served")
    model, inputs, _ = fitting()
    model.user_vectors(inputs)
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ValueError, match="KERAS_BACKEND=tensorflow.*, one and torch"):
        model.export(tmp_path / "served")


def short_training(name):
    """Losses and vectors of two epochs, the same on one device and on two."""
    inputs, targets = ring(rows=60)
    optimizer = keras.optimizers.SGD(0.5)
    pair_ = towers("youtubednn", user={"hidden": ()})
    given = {"sampler": SAMPLERS[name], "exclude_seen": True}
    model = make("youtubednn", optimizer, towers_=pair_, **given)
    losses = model.fit(inputs, targets, 32, 2, 0, shuffle=False).history["loss"]
    return {"loss": losses, "users": model.user_vectors(inputs), "items": model.item_vectors()}


@cache
def elsewhere(folder):
    """What `in_a_new_process.py` found in a folder in which everything was saved."""
    for name, (inputs, targets) in {"rows": ring(), "windows": ring(99, 1)}.items():
        np.savez(folder / f"{name}.npz", targets=targets, **inputs)
    for kind in SAVED:
        trained(kind).save(folder / f"{kind}.keras")
    trained("self_attentive").export(folder / "served", verbose=False)
    script = Path(__file__).with_name("in_a_new_process.py")
    command = [sys.executable, script, folder]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    with np.load(folder / "found.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    if not TENSORFLOW:
        pytest.skip("replicas and exported files are TensorFlow's")
    return elsewhere(tmp_path_factory.mktemp("saved"))


@pytest.mark.parametrize("kind", SAVED)
def test_a_saved_model_is_itself_in_a_new_process(kind, found):
    inputs, targets = ring()
    model = trained(kind)
    np.testing.assert_array_equal(found[f"{kind}/users"], model.user_vectors(inputs))
    np.testing.assert_array_equal(found[f"{kind}/items"], model.item_vectors())
    assert found[f"{kind}/weights"] == len(model.trainable_variables)
    if kind in ("tied", "row-wise"):  # the optimizer's state was saved, too
        model.fit(inputs, targets, batch_size=64, shuffle=False, verbose=0)
        users, items = model.user_vectors(inputs), model.item_vectors()
        np.testing.assert_allclose(found[f"{kind}/later users"], users, atol=1e-6)
        np.testing.assert_allclose(found[f"{kind}/later items"], items, atol=1e-6)
        assert np.abs(found[f"{kind}/items"] - items).max() > 1e-4


@pytest.mark.skipif(TENSORFLOW, reason="done in a new process there")
def test_a_saved_model_is_itself_on_every_backend(tmp_path):
    inputs, targets = ring()
    model = trained("tied")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for _ in range(2):
        np.testing.assert_array_equal(loaded.item_vectors(), model.item_vectors())
        np.testing.assert_array_equal(loaded.user_vectors(inputs), model.user_vectors(inputs))
        for each in (loaded, model):
            each.user_tower.drop.rate = 0.0  # states of seeds are not saved
            each.fit(inputs, targets, batch_size=64, shuffle=False, verbose=0)


def test_an_exported_model_is_served_by_tensorflow_alone(found):
    inputs, _ = ring(99, 1)  # trained on rows of several moments, served with one
    users = trained("self_attentive").user_vectors(inputs)
    for endpoint in ("serve", "user_vectors"):
        np.testing.assert_allclose(found[f"served/{endpoint}"], users, atol=1e-6)
    items = trained("self_attentive").item_vectors()
    np.testing.assert_allclose(found["served/item_vectors"], items, atol=1e-6)


@pytest.mark.parametrize("name", ["full", "popularity", "in batch"])
def test_two_replicas_train_as_one_device(name, found):
    for what, value in short_training(name).items():
        np.testing.assert_allclose(found[f"replicas, {name}/{what}"], value, atol=1e-5)


@pytest.mark.skipif(not TENSORFLOW, reason="TensorFlow writes and reads it")
def test_inputs_need_not_be_a_dict(tmp_path):
    """A tower that reads the history alone may be given nothing else."""

    class History(GRUTower):
        def call(self, history):
            return super().call({"history": history})

    inputs, targets = ring(rows=16)
    history = inputs["history"]
    pair_ = History(NUM_ITEMS, DIM), ItemEmbeddingTower(NUM_ITEMS, DIM)
    model = make("gru", eager=True, towers_=pair_, exclude_seen=True)
    model.fit(history, targets, verbose=0)
    # What was seen is left out as if the history had its name.
    last, moments = ops.reshape(model(tensors(history))[:, -MOMENTS:], (-1, DIM)), targets.ravel()
    losses = [
        ops.convert_to_numpy(model.target_losses(x, last, moments, MOMENTS, training=False))
        for x in (tensors(history), {"history": tensors(history)})
    ]
    np.testing.assert_array_equal(*losses)
    users = model.user_vectors(history, batch_size=5)
    assert users.shape == (16, DIM)
    model.export(tmp_path / "served", verbose=False)
    import tensorflow as tf

    served = tf.saved_model.load(tmp_path / "served")
    np.testing.assert_allclose(served.user_vectors(history), users, atol=1e-6)
