"""The joined model behaves as any Keras model, and learns what can be learned by construction."""

import keras
import numpy as np
import pytest
from keras import ops

from recsys_helpers.sampled_softmax import InBatchSampler, PopularitySampler, UniformSampler
from recsys_helpers.towers import (
    DSSMItemTower,
    DSSMUserTower,
    EmbeddingTable,
    FMItemTower,
    FMUserTower,
    ItemEmbeddingTower,
    SelfAttentiveUserTower,
    YouTubeDNNUserTower,
)
from recsys_helpers.two_tower import TwoTower

NUM_ITEMS, LENGTH, DIM = 24, 6, 16
SIZES = {"user_id": 60, "gender": 3, "age": 8, "occupation": 5}


def chain(rows=768, seed=0):
    """Everybody walks the same ring of items: after item i comes item i + 1."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, NUM_ITEMS, rows)
    walk = (first[:, None] + np.arange(LENGTH + 1)) % NUM_ITEMS + 1
    inputs = {name: rng.integers(0, size, rows) for name, size in SIZES.items()}
    inputs |= {"history": walk[:, :-1], "search": rng.integers(0, 5, (rows, 3))}
    inputs = {name: value.astype("int32") for name, value in inputs.items()}
    inputs["example_age"] = rng.uniform(0, 9, rows).astype("float32")
    return inputs, walk[:, -1].astype("int32")


def make(name, **kwargs):
    features = {
        "genres": (np.arange(NUM_ITEMS + 1)[:, None] % 5).astype("int32"),
        "year": (np.arange(NUM_ITEMS + 1) % 3).astype("int32"),
    }
    if name == "fm":
        user, item = FMUserTower(SIZES, NUM_ITEMS, DIM), FMItemTower(features, DIM)
    elif name == "dssm":
        user = DSSMUserTower(SIZES, NUM_ITEMS, DIM, hidden=(32,))
        item = DSSMItemTower(features, DIM, hidden=(32,))
    else:
        user = YouTubeDNNUserTower(SIZES, NUM_ITEMS, 5, DIM, hidden=(32,))
        if name == "self_attentive":
            user = SelfAttentiveUserTower(SIZES, NUM_ITEMS, 5, DIM, hidden=(32,), reach=LENGTH)
        item = ItemEmbeddingTower(NUM_ITEMS, DIM)
    temperature = 1.0 if name == "fm" else 0.1
    model = TwoTower(user, item, NUM_ITEMS, **{"temperature": temperature, **kwargs})
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    return model


def share_of_hits(model, inputs, targets):
    best = np.argmax(model.user_vectors(inputs) @ model.item_vectors().T, axis=1) + 1
    return np.mean(best == targets)


@pytest.mark.parametrize("name", ["fm", "dssm", "youtubednn", "self_attentive"])
def test_learns_the_item_that_always_comes_next(name):
    keras.utils.set_random_seed(1)
    model = make(name)
    assert share_of_hits(model, *chain(seed=1)) < 0.4
    model.fit(*chain(), batch_size=64, epochs=12, verbose=0)
    assert share_of_hits(model, *chain(seed=1)) > 0.95


@pytest.mark.parametrize(
    "sampler, num_sampled",
    [
        (UniformSampler(NUM_ITEMS), 8),
        (PopularitySampler(np.r_[0, np.ones(NUM_ITEMS)], alpha=0.5), 8),
        (InBatchSampler(np.r_[0, np.ones(NUM_ITEMS)]), None),
    ],
)
def test_learns_from_sampled_negatives_too(sampler, num_sampled):
    keras.utils.set_random_seed(1)
    model = make("youtubednn", sampler=sampler, num_sampled=num_sampled)
    model.fit(*chain(), batch_size=64, epochs=12, verbose=0)
    assert share_of_hits(model, *chain(seed=1)) > 0.95


@pytest.mark.parametrize("name", ["fm", "dssm", "youtubednn", "self_attentive"])
def test_save_and_load_give_identical_vectors_and_go_on_training(name, tmp_path):
    inputs, targets = chain()
    model = make(name, sampler=UniformSampler(NUM_ITEMS), num_sampled=4, log_q_correction=False)
    model.fit(inputs, targets, batch_size=64, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.user_vectors(inputs), model.user_vectors(inputs))
    np.testing.assert_array_equal(loaded.item_vectors(), model.item_vectors())
    assert (loaded.num_sampled, loaded.log_q_correction) == (4, False)
    assert loaded.temperature == model.temperature
    assert loaded.optimizer.iterations == model.optimizer.iterations
    loaded.fit(inputs, targets, batch_size=64, verbose=0)


def test_the_same_seed_gives_the_same_vectors():
    def run():
        keras.utils.set_random_seed(7)
        model = make("dssm", sampler=UniformSampler(NUM_ITEMS), num_sampled=8)
        model.fit(*chain(), batch_size=64, epochs=2, verbose=0)
        return model.item_vectors()

    np.testing.assert_array_equal(run(), run())


def test_the_loss_that_fit_reports_is_the_cross_entropy_over_the_catalogue():
    inputs, targets = chain(rows=64)
    model = make("fm")
    reported = model.evaluate(inputs, targets, batch_size=64, verbose=0)
    logits = model.user_vectors(inputs).astype("float64") @ model.item_vectors().T
    log_partition = np.log(np.exp(logits).sum(1))
    expected = np.mean(log_partition - logits[np.arange(64), targets - 1])
    np.testing.assert_allclose(reported, expected, rtol=1e-5)


def test_sample_weights_weigh_the_examples():
    inputs, targets = chain(rows=64)
    model = make("fm")
    weights = np.r_[np.zeros(32), 2 * np.ones(32)].astype("float32")
    weighted = model.evaluate(inputs, targets, sample_weight=weights, batch_size=64, verbose=0)
    half = {name: value[32:] for name, value in inputs.items()}
    plain = model.evaluate(half, targets[32:], batch_size=64, verbose=0)
    np.testing.assert_allclose(weighted, plain, rtol=1e-5)


def test_early_stopping_works_as_for_any_keras_model():
    stop = keras.callbacks.EarlyStopping(monitor="loss", patience=0, min_delta=1e9)
    history = make("fm").fit(*chain(), batch_size=64, epochs=9, verbose=0, callbacks=[stop])
    assert len(history.history["loss"]) == 2


def test_a_temperature_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="temperature must be positive, received 0"):
        make("fm", temperature=0)


@pytest.mark.parametrize("optimizer", ["Adam", "Adagrad", "SGD"])
def test_repeated_ids_are_one_gradient(optimizer):
    """Five steps on a batch full of repeats equal five steps on the dense gradient."""
    rng = np.random.default_rng(0)
    ids, pull = rng.integers(0, 4, 256).astype("int32"), rng.normal(size=(256, 3))
    start = rng.normal(size=(4, 3)).astype("float32")

    def run(lookup, weights, owner):
        model_optimizer = getattr(keras.optimizers, optimizer)(0.1)
        tf = pytest.importorskip("tensorflow")
        if keras.backend.backend() != "tensorflow":
            pytest.skip("the stock layer's gradients are per occurrence on TensorFlow only")
        for _ in range(5):
            with tf.GradientTape() as tape:
                loss = ops.sum(lookup(ids) * ops.cast(pull, "float32"))
            gradient = tape.gradient(loss, owner)
            model_optimizer.apply([gradient], [weights])
        return ops.convert_to_numpy(weights)

    table = EmbeddingTable(4, 3)
    table.build(None)
    table.embeddings.assign(start)
    dense = keras.Variable(start)
    one_hot = ops.one_hot(ids, 4)
    np.testing.assert_allclose(
        run(table, table.embeddings, table.embeddings.value),
        run(lambda _: ops.matmul(one_hot, dense), dense, dense.value),
        atol=1e-5,
    )


@pytest.mark.parametrize("name", ["fm", "dssm", "youtubednn", "self_attentive"])
def test_user_vectors_of_one_moment_and_of_many_may_be_asked_for_in_turn(name):
    inputs, _ = chain(rows=10)
    model = make(name)
    once = model.user_vectors(inputs, batch_size=4)
    many = {
        **inputs,
        "example_age": np.zeros((10, 3), "float32"),
        "search": np.repeat(inputs["search"][:, None], 3, axis=1),
    }
    moments = model.user_vectors(many, batch_size=4)
    assert moments.shape == (10, 3, once.shape[1])
    np.testing.assert_allclose(moments[:, -1], once, atol=1e-5)
    np.testing.assert_allclose(model.user_vectors(inputs), once, atol=1e-6)


def cross_entropy_of_the_unseen(model, inputs, targets):
    """By a loop over examples, each with the items that its history doesn't hold."""
    scores = model.user_vectors(inputs) @ model.item_vectors().T / model.temperature
    losses = []
    for logits, target, history in zip(scores, targets, inputs["history"], strict=True):
        candidates = [i for i in range(1, NUM_ITEMS + 1) if i == target or i not in history]
        chosen = logits[np.array(candidates) - 1]
        losses.append(np.log(np.exp(chosen).sum()) - logits[target - 1])
    return np.mean(losses)


def test_without_what_was_seen_only_the_unseen_are_compared():
    inputs, targets = chain(rows=50)
    targets[:10] = inputs["history"][:10, -1]  # watched again; a target is never left out
    model = make("youtubednn", exclude_seen=True)
    expected = cross_entropy_of_the_unseen(model, inputs, targets)
    assert model.evaluate(inputs, targets, verbose=0) == pytest.approx(expected, rel=1e-5)
    plain = make("youtubednn")
    plain.user_vectors(inputs)  # creates the weights
    plain.set_weights(model.get_weights())
    assert plain.evaluate(inputs, targets, verbose=0) > expected + 0.01


def test_unseen_at_many_moments_is_unseen_at_each():
    inputs, _ = chain(rows=30)
    model = make("youtubednn", exclude_seen=True)
    moments = 3
    many = {
        **inputs,
        "example_age": np.repeat(inputs["example_age"][:, None], moments, axis=1),
        "search": np.repeat(inputs["search"][:, None], moments, axis=1),
    }
    targets = np.random.default_rng(1).integers(1, NUM_ITEMS + 1, (30, moments)).astype("int32")
    together = model.evaluate(many, targets, batch_size=30, verbose=0)
    alone = []
    for t in range(moments):
        history = np.zeros_like(inputs["history"])
        end = LENGTH - (moments - 1 - t)
        history[:, LENGTH - end :] = inputs["history"][:, :end]
        window = {**inputs, "history": history}
        alone.append(cross_entropy_of_the_unseen(model, window, targets[:, t]))
    assert together == pytest.approx(np.mean(alone), rel=1e-5)


@pytest.mark.parametrize("log_q_correction", [True, False])
def test_negatives_that_were_seen_have_no_gradient(log_q_correction):
    inputs, targets = chain(rows=1)
    sampler = UniformSampler(NUM_ITEMS)
    model = make(
        "youtubednn", sampler=sampler, num_sampled=400, exclude_seen=True,
        log_q_correction=log_q_correction,
    )  # fmt: skip
    model.compile(optimizer=keras.optimizers.SGD(1.0))
    model.build({name: value.shape for name, value in inputs.items()})
    before = np.asarray(model.item_tower.embedding.embeddings)
    model.fit(inputs, targets, verbose=0)  # 400 draws from 24 items: each is drawn
    moved = np.abs(np.asarray(model.item_tower.embedding.embeddings) - before).max(1) > 0
    expected = ~np.isin(np.arange(NUM_ITEMS + 1), [0, *inputs["history"][0]])
    np.testing.assert_array_equal(moved, expected)


def test_what_was_seen_is_no_negative_in_a_batch_either():
    inputs, targets = chain(rows=2)
    inputs["history"][:] = [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]]
    targets[:] = 13, 6  # the second row's target was seen by the first row, so that has no negative
    sampler = InBatchSampler(np.r_[0, np.ones(NUM_ITEMS)])
    model = make("youtubednn", sampler=sampler, exclude_seen=True, log_q_correction=False)
    users, items = model.user_vectors(inputs), model.item_vectors()
    positive, negative = users[1] @ items[5] / 0.1, users[1] @ items[12] / 0.1
    expected = (0 + np.logaddexp(positive, negative) - positive) / 2
    loss = model.compute_loss(inputs, ops.convert_to_tensor(targets), ops.convert_to_tensor(users))
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_without_what_was_seen_it_learns_is_weighted_and_saved_as_with_it(tmp_path):
    inputs, targets = chain()
    model = make("youtubednn", sampler=UniformSampler(NUM_ITEMS), num_sampled=12, exclude_seen=True)
    model.fit(inputs, targets, batch_size=64, epochs=4, verbose=0)
    assert share_of_hits(model, inputs, targets) > 0.9
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.exclude_seen
    np.testing.assert_array_equal(loaded.user_vectors(inputs), model.user_vectors(inputs))
    few = {name: value[:4] for name, value in inputs.items()}
    weighted, plain = (
        model.evaluate(few, targets[:4], sample_weight=np.full(4, w, "float32"), verbose=0)
        for w in (3, 1)
    )
    assert weighted == pytest.approx(3 * plain, rel=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a matter of TensorFlow's")
def test_batches_are_what_keras_would_have_made():
    from recsys_helpers.two_tower import _batches

    inputs, targets = chain(rows=150)
    plain = list(_batches(inputs, targets, 64, shuffle=False))
    assert [len(y) for _, y in plain] == [64, 64, 22]
    for name, array in inputs.items():
        np.testing.assert_array_equal(np.concatenate([x[name] for x, _ in plain]), array)

    keras.utils.set_random_seed(3)
    shuffled = _batches(inputs, np.arange(150), 64, shuffle=True)
    assert not shuffled.options().autotune.enabled
    epochs = [np.concatenate([y for _, y in shuffled]) for _ in range(2)]
    for x, y in shuffled:
        np.testing.assert_array_equal(x["history"], inputs["history"][y])  # rows stay together
    assert not np.array_equal(*epochs)  # another order in every epoch
    for order in epochs:
        assert sorted(order) == list(range(150)) and not np.array_equal(order, np.arange(150))
    keras.utils.set_random_seed(3)
    again = _batches(inputs, np.arange(150), 64, shuffle=True)
    np.testing.assert_array_equal(np.concatenate([y for _, y in again]), epochs[0])


def test_fit_takes_what_keras_takes():
    inputs, targets = chain(rows=150)
    model = make("youtubednn")
    log = model.fit(inputs, targets, 64, 2, verbose=0, sample_weight=np.zeros(150, "float32"))
    assert log.history["loss"] == [0.0, 0.0]
    log = model.fit(inputs, targets, verbose=0, validation_split=0.2)
    assert log.history["val_loss"][0] > 0
    log = model.fit(inputs, targets, epochs=3, initial_epoch=1, shuffle=False, verbose=0)
    assert len(log.history["loss"]) == 2
