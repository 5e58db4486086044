"""The parts that towers are made of, against numpy and small sums."""

import json

import keras
import numpy as np
import pytest
from keras import ops

from recsys_helpers.layers import (
    EmbeddingTable,
    HistoryDropout,
    HistoryFeatures,
    ItemFeatures,
    Tower,
    at_least_float32,
    checked_sizes,
    embedded,
    items_in,
    l2_normalize,
    masked_mean,
    most_recent,
    network,
    not_padding,
    num_positions,
    profile_fields,
    register,
    window_means,
)

numpy = ops.convert_to_numpy
tensor = ops.convert_to_tensor
tensorflow_only = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="about TensorFlow's gradients or tables"
)


def dtype_of(value):
    return keras.backend.standardize_dtype(value.dtype)


def again(layer):
    """The layer of the layer's configuration, by way of a file's text."""
    text = json.dumps(keras.saving.serialize_keras_object(layer))
    return keras.saving.deserialize_keras_object(json.loads(text))


# ------------------------------------------------------------------------------ small functions


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_means_and_lengths_are_computed_in_float32_at_least(dtype):
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has float32 unless it is told otherwise before it starts")
    wide = "float64" if dtype == "float64" else "float32"
    assert dtype_of(at_least_float32(ops.ones(2, dtype))) == wide
    # A thousand times 100 is more than float16 can hold, and so is the square of 300.
    ids = np.ones((2, 1000), "int32")
    ids[1, 1:] = 0
    mean = masked_mean(100 * ops.ones((2, 1000, 3), dtype), tensor(ids))
    assert dtype_of(mean) == dtype
    np.testing.assert_allclose(numpy(ops.cast(mean, "float32")), np.full((2, 3), 100.0), rtol=1e-6)
    unit = l2_normalize(tensor([[300.0, 0, 400], [0, 0, 0]], dtype))
    assert dtype_of(unit) == wide
    np.testing.assert_allclose(numpy(unit), [[0.6, 0, 0.8], [0, 0, 0]], rtol=1e-6)


def test_vectors_of_zeros_and_short_ones_are_scaled_as_keras_does_and_can_be_trained():
    vectors = np.random.default_rng(0).normal(size=(500, 7)).astype("float32")
    vectors *= 10.0 ** np.arange(-25, 25, 0.1, dtype="float32")[:, None]
    vectors[::9] = 0
    expected = numpy(ops.normalize(tensor(vectors), axis=-1, order=2))
    np.testing.assert_array_equal(numpy(l2_normalize(tensor(vectors))), expected)
    inputs = keras.Input((3,))
    model = keras.Model(inputs, l2_normalize(keras.layers.Dense(4)(inputs)))
    model.compile("adam", "mse")  # of a row of zeros the vector is one of zeros
    loss = model.fit(np.eye(4, 3), np.ones((4, 4)), epochs=2, verbose=0).history["loss"]
    assert np.isfinite(loss).all() and all(np.isfinite(w).all() for w in model.get_weights())


def test_the_mean_leaves_padding_out():
    embeddings = tensor([[[1.0, 2], [3, 4], [5, 6]], [[1, 2], [3, 4], [5, 6]]])
    ids = tensor([[7, 0, 9], [0, 0, 0]])
    np.testing.assert_array_equal(numpy(not_padding(ids)), [[1, 0, 1], [0, 0, 0]])
    assert dtype_of(not_padding(ids)) == "float32" and dtype_of(not_padding(ids, "int8")) == "int8"
    np.testing.assert_allclose(numpy(masked_mean(embeddings, ids)), [[3, 4], [0, 0]])


def test_the_number_of_moments_is_the_width_of_the_ages():
    assert num_positions({"example_age": np.zeros((3, 5)), "history": np.zeros((3, 9))}) == 5


def test_a_network_is_linear_at_its_end_only():
    net = network((5, 4), 3)
    x = np.random.default_rng(0).normal(size=(20, 6)).astype("float32")
    out = numpy(net(tensor(x)))
    for layer in net.layers[:2]:
        kernel, bias = layer.get_weights()
        x = np.maximum(x @ kernel + bias, 0)
    kernel, bias = net.layers[2].get_weights()
    assert [len(layer.get_weights()[1]) for layer in net.layers] == [5, 4, 3] and (out < 0).any()
    np.testing.assert_allclose(out, x @ kernel + bias, rtol=1e-4, atol=1e-6)


def test_sizes_that_a_tower_lacks_are_named():
    sizes = {"user_id": 3, "history": 5, "history_length": 2, "search": 4, "country": 2}
    assert checked_sizes(sizes, "history", "country") == sizes
    assert checked_sizes(sizes) is not sizes
    with pytest.raises(ValueError, match="sizes lacks gender, age; it has user_id, history, "):
        checked_sizes(sizes, "history", "gender", "age")
    assert profile_fields(sizes) == ["user_id", "country"]


# --------------------------------------------------------------------------------------- tables


def test_an_embedding_looks_rows_up_and_starts_small():
    keras.utils.set_random_seed(1)
    table = EmbeddingTable(500, 40)
    values = numpy(table.embeddings)
    assert values.shape == (500, 40) and values.std() == pytest.approx(0.05, rel=0.02)
    assert numpy(EmbeddingTable(500, 40, stddev=0.2).embeddings).std() == pytest.approx(0.2, 0.02)
    assert not numpy(EmbeddingTable(3, 2, stddev=0.0).embeddings).any()
    for dtype in ("int8", "int32", "int64"):
        ids = np.array([[[3, 0], [7, 7]]], dtype)
        np.testing.assert_array_equal(numpy(table(tensor(ids))), values[ids])
        np.testing.assert_array_equal(numpy(table(tensor(ids), training=False)), values[ids])


@tensorflow_only
@pytest.mark.parametrize("training", [True, None, False])
def test_the_gradient_of_repeated_ids_is_summed_before_the_optimizer_sees_it(training):
    import tensorflow as tf

    table, ids = EmbeddingTable(6, 2), np.array([[4, 1], [4, 4]])
    weights = np.random.default_rng(0).normal(size=(2, 2, 2)).astype("float32")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(table(ids, training=training) * weights)
    gradient = tape.gradient(loss, table.embeddings.value)
    # Serving reads rows; it has no use for a copy of the table.
    assert isinstance(gradient, tf.IndexedSlices) == (training is False)
    expected = np.zeros((6, 2))
    np.add.at(expected, ids, weights)
    np.testing.assert_allclose(tf.convert_to_tensor(gradient), expected, rtol=1e-6)


def test_a_table_of_items_is_new_or_shared_and_then_of_the_right_size():
    new = items_in(EmbeddingTable, None, 7, 4)
    assert type(new) is EmbeddingTable and (new.rows, new.dim) == (7, 4)
    assert items_in(None, new, 7, 4) is new
    for rows, dim in ((6, 4), (7, 5)):
        message = f"of {rows} rows .* and {dim} columns, received one of 7 rows and 4 columns"
        with pytest.raises(ValueError, match=message):
            items_in(EmbeddingTable, new, rows, dim)


def test_one_field_is_a_row_and_several_values_are_their_mean():
    table = EmbeddingTable(5, 3)
    values = numpy(table.embeddings)
    np.testing.assert_array_equal(numpy(embedded(table, tensor([2, 0]))), values[[2, 0]])
    several = numpy(embedded(table, tensor([[1, 4, 0], [0, 0, 0]])))
    np.testing.assert_allclose(several[0], (values[1] + values[4]) / 2, rtol=1e-6)
    assert not several[1].any()


# --------------------------------------------------------------------------- the items' features


def some_features():
    return ItemFeatures({"genres": np.array([[0, 0], [2, 1], [4, 0]]), "year": np.array([0, 2, 1])})


def test_item_features_are_looked_up():
    features = some_features()
    assert features.num_items == 2 and features.sizes == {"genres": 5, "year": 3}
    assert not features.trainable_variables
    found = features(tensor([2, 0, 1, 2]))
    np.testing.assert_array_equal(numpy(found["genres"]), [[4, 0], [0, 0], [2, 1], [4, 0]])
    np.testing.assert_array_equal(numpy(found["year"]), [1, 0, 2, 1])
    for nothing in ({}, None):
        with pytest.raises(ValueError, match="at least one field"):
            ItemFeatures(nothing)


@pytest.mark.parametrize(
    ("codes", "received"),
    [
        ([0.0, 1.5, 2.0], r"'a' float64 of shape \(3,\)\."),
        ([0, -1, 2], r"'a' int64 of shape \(3,\) from -1"),
        ([0, 1], r"'a' int64 of shape \(2,\) from 0"),
        ([[[0], [1]]], r"'a' int64 of shape \(1, 2, 1\)"),
        (5, r"'a' int64 of shape \(\)"),
    ],
)
def test_item_features_that_are_no_codes_of_the_same_items_are_refused(codes, received):
    with pytest.raises(ValueError, match="expected codes from 0, .* received in " + received):
        ItemFeatures({"year": [0, 2, 1], "a": codes})
    if len(np.shape(codes)) != 1:  # by itself it's of the same items
        with pytest.raises(ValueError, match=received):
            ItemFeatures({"a": codes})


CODES = {"genres": np.array([[0, 0], [2, 1], [4, 0], [1, 3]]), "year": np.array([0, 2, 1, 1])}


def test_without_id_dropout_ids_are_read_as_they_are_and_nothing_is_kept_for_it():
    features = ItemFeatures(CODES)
    ids = tensor(np.array([3, 0, 1], "int32"))
    assert features.ids(ids, training=True) is ids
    assert [weight.name for weight in features.weights] == ["genres", "year"]


def test_an_id_that_is_not_known_is_read_as_unknown_at_all_times():
    features = ItemFeatures(CODES, id_dropout=1e-9, known=np.array([0, 5, 0, 1]))
    for training in (False, True):
        found = features.ids(tensor(np.array([1, 2, 3, 0, 2], "int32")), training)
        assert numpy(found).tolist() == [1, 0, 3, 0, 0]
    assert numpy(features(tensor(np.array([2], "int32")))["year"]).tolist() == [
        1
    ]  # fields are read


def test_id_dropout_hides_its_share_of_the_ids_in_training_only():
    features, ids = ItemFeatures(CODES, id_dropout=0.3), tensor(np.tile([1, 2, 3], 2000))
    assert numpy(features.ids(ids)).tolist() == numpy(ids).tolist()
    found = numpy(features.ids(ids, training=True))
    assert set(found[found > 0] - numpy(ids)[found > 0]) == {0}
    assert np.mean(found == 0) == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / 6000))
    assert (numpy(features.ids(ids, training=True)) != found).any()  # another draw each time


def test_with_id_dropout_of_one_no_id_is_ever_read():
    features = ItemFeatures(CODES, id_dropout=1)
    for training in (False, True):
        assert not numpy(features.ids(tensor(np.array([1, 2, 3], "int32")), training)).any()


def test_what_is_known_is_kept_with_the_weights():
    features = ItemFeatures(CODES, id_dropout=0.5, known=np.array([0, 1, 0, 1]))
    loaded = again(features)
    loaded.set_weights(features.get_weights())
    assert loaded.id_dropout == 0.5
    assert numpy(loaded.ids(tensor(np.array([1, 2, 3], "int32")))).tolist() == [1, 0, 3]


@pytest.mark.parametrize(
    "wrong", [{"id_dropout": -0.1}, {"id_dropout": 1.1}, {"known": np.ones(4)}]
)
def test_a_rate_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match="id_dropout must be from 0 to 1"):
        ItemFeatures(CODES, **wrong)


def test_item_features_are_saved_as_weights(tmp_path):
    features, ids = some_features(), tensor([1, 2, 0])
    copy = again(features)
    assert (copy.shapes, copy.num_items, copy.sizes) == (features.shapes, 2, features.sizes)
    assert copy.name == features.name
    assert "genres" in copy.get_config()["shapes"] and "features" not in copy.get_config()
    assert not numpy(copy(ids)["genres"]).any()  # the codes come with the weights
    placeholder = keras.Input((), dtype="int32")
    keras.Model(placeholder, features(placeholder)).save(tmp_path / "model.keras")
    found = keras.models.load_model(tmp_path / "model.keras")(ids)
    for name, codes in features(ids).items():
        np.testing.assert_array_equal(numpy(found[name]), numpy(codes))


# -------------------------------------------------------------------------------------- histories


def means_one_by_one(embeddings, present, weights, positions):
    (rows, steps, dim), (kinds, length) = embeddings.shape, weights.shape
    out = np.zeros((rows, positions, kinds, dim))
    for row, t, kind in np.ndindex(rows, positions, kinds):
        end = steps - positions + t  # the last step of the window
        total = 0.0
        for back in range(min(length, end + 1)):
            if present[row, end - back]:
                total += weights[kind, length - 1 - back]
                out[row, t, kind] += weights[kind, length - 1 - back] * embeddings[row, end - back]
        out[row, t, kind] /= total or 1.0
    return out


@pytest.mark.parametrize(
    "steps, length, positions", [(5, 8, 2), (12, 5, 7), (9, 3, 7), (6, 6, 6), (4, 4, 1), (9, 2, 1)]
)
def test_means_of_all_windows_at_once_are_those_of_each_by_itself(steps, length, positions):
    rng = np.random.default_rng(0)
    present = (rng.random((4, steps)) < 0.7).astype("float32")
    present[0] = 0  # nothing in its windows
    embeddings = rng.normal(size=(4, steps, 3)).astype("float32") * present[..., None]
    weights = rng.uniform(0.5, 2, (2, length)).astype("float32")
    weights[1, : length // 2] = 0  # a kind that sees the recent half only
    found = window_means(tensor(embeddings), tensor(present), tensor(weights), positions)
    expected = means_one_by_one(embeddings, present, weights, positions)
    np.testing.assert_allclose(numpy(found), expected, rtol=1e-4, atol=1e-5)


def test_the_last_few_of_a_window_are_kept_apart():
    np.testing.assert_array_equal(most_recent(2, 4), [[0, 0, 0, 1], [0, 0, 1, 0]])
    np.testing.assert_array_equal(most_recent(2, 2), [[0, 1], [1, 0]])
    assert most_recent(0, 3).shape == (0, 3)
    for last in (4, -1):
        with pytest.raises(ValueError, match=f"length 3, received {last}"):
            most_recent(last, 3)
    with pytest.raises(ValueError, match="length 2, received 3"):
        HistoryFeatures(EmbeddingTable(3, 2), length=2)
    with pytest.raises(ValueError, match="0 or more, received -1"):
        HistoryFeatures(EmbeddingTable(3, 2), recency=-1)


def hand_history(**kwargs):
    layer = HistoryFeatures(EmbeddingTable(9, 2), length=4, **kwargs)
    table = np.zeros((9, 2), "float32")
    table[0], table[3], table[4], table[5] = 100, [1, 0], [0, 1], [1, 1]  # padding is never read
    layer.items.embeddings.assign(table)
    return layer


def test_recency_weights_depend_on_steps_back_only():
    layer = hand_history(last=1)
    layer.recency_logits.assign(np.log([[1.0, 1.0, 1.0, 3.0]]))  # oldest first
    out = numpy(layer(tensor([[0, 0, 3, 4], [0, 0, 0, 4], [0, 0, 0, 0]]), positions=1))
    # mean, recency-weighted mean (1/4 and 3/4), last item
    expected = [[0.5, 0.5, 0.25, 0.75, 0, 1], [0, 1, 0, 1, 0, 1], [0] * 6]
    np.testing.assert_allclose(out[:, 0], expected, rtol=1e-6)


def test_history_dropout_hides_items_in_training_only_and_each_by_itself():
    history = np.tile(np.arange(1, 501, dtype="int32"), (40, 1))
    history[:, :100] = 0
    layer = HistoryDropout(0.3)
    for served in (layer(tensor(history)), layer(tensor(history), training=False)):
        np.testing.assert_array_equal(numpy(served), history)
    first, second = (numpy(layer(tensor(history), training=True)) for _ in range(2))
    for hidden in (first, second):
        assert set(np.unique(hidden - history)) <= {0} | set(-np.arange(1, 501))
        gone = (hidden == 0)[:, 100:]
        assert gone.mean() == pytest.approx(0.3, abs=0.02)  # 16,000 of them: 0.0036 a deviation
        assert gone.mean(0).std() > 0.03 and gone.mean(1).std() > 0.01  # no whole row or column
        assert gone.mean(0).max() < 0.8 and gone.mean(1).max() < 0.5
    assert (first != second).any()
    assert numpy(HistoryDropout(0)(tensor(history), training=True)).tolist() == history.tolist()
    for rate in (1, -0.1):
        with pytest.raises(ValueError, match=f"less than 1, received {rate}"):
            HistoryDropout(rate)


def test_what_a_history_says_is_a_choice():
    history = tensor([[3, 3, 5, 5, 4]])  # the window of the first moment is 3, 3, 5, 5
    for recency, last, width in ((False, 0, 1), (True, 0, 2), (0, 2, 3), (1, 3, 5), (3, 1, 5)):
        layer = hand_history(recency=recency, last=last)
        out = numpy(layer(history, positions=2))
        assert out.shape == (1, 2, 2 * width)
        assert len(layer.trainable_variables) == 1 + bool(recency)
        np.testing.assert_allclose(out[0, :, :2], [[1, 0.5], [0.75, 0.75]], rtol=1e-6)
        if last:
            recent = np.array([[1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1]])[:, : 2 * last]
            np.testing.assert_allclose(out[0, :, -2 * last :], recent, rtol=1e-6)


def test_recency_starts_as_one_over_the_steps_back():
    logits = numpy(HistoryFeatures(EmbeddingTable(3, 2)).recency_logits)
    steps = np.arange(50, 0, -1)
    np.testing.assert_allclose(np.exp(logits), [1 / steps], rtol=1e-6)
    several = numpy(HistoryFeatures(EmbeddingTable(3, 2), recency=3).recency_logits)
    np.testing.assert_allclose(np.exp(several), [steps**-0.5, 1 / steps, steps**-1.5], rtol=1e-5)
    layer = HistoryFeatures(EmbeddingTable(3, 2))
    assert layer(tensor([[1, 2]]), positions=1).shape == (1, 1, 10)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_long_history_is_summed_in_float32(policy):
    table = EmbeddingTable(3, 2, dtype=policy)
    table.embeddings.assign(np.full((3, 2), 100.0))
    layer = HistoryFeatures(table, length=1000, dtype=policy)
    out = layer(ops.ones((1, 1000), "int32"), positions=1)
    assert dtype_of(out) == policy.removeprefix("mixed_")
    np.testing.assert_allclose(numpy(ops.cast(out, "float32")), np.full((1, 1, 10), 100), rtol=0.01)


# ------------------------------------------------------------------------- layers that are saved


@register
class Base(Tower):
    def __init__(self, size, names=("a",), **kwargs):
        super().__init__(**kwargs)
        self.size, self.names = size, tuple(names)


@register
class Derived(Base):
    def __init__(self, inner, *rest, table=EmbeddingTable, options=None, **kwargs):
        super().__init__(kwargs.pop("size"), **kwargs)
        self.inner, self.table, self.options = inner, table, options
        self.rows = table(3, 2)


@register
class Silent(Derived):
    """A class that adds no argument."""


def test_a_layers_configuration_is_the_arguments_of_its_constructor():
    layer = Silent(
        EmbeddingTable(4, 2), size=5, names=("x", "y"), options={"k": 1}, dtype="float16"
    )
    config = layer.get_config()
    own = {"inner", "table", "options", "size", "names"}
    assert set(config) == own | {"name", "trainable", "dtype"}
    assert config["names"] == ["x", "y"] and config["options"] == {"k": 1}
    assert config["options"] is not layer.options
    copy = again(layer)
    assert type(copy) is Silent and (copy.size, copy.names) == (5, ("x", "y"))
    assert copy.table is EmbeddingTable and copy.options == {"k": 1} and copy.name == layer.name
    assert type(copy.inner) is EmbeddingTable and (copy.inner.rows, copy.inner.dim) == (4, 2)
    assert copy.dtype_policy.name == "float16"
    direct = Silent.from_config(config)
    assert (direct.size, direct.names, direct.options) == (5, ("x", "y"), {"k": 1})


def test_the_parts_are_saved_with_all_that_they_were_made_with():
    table = again(EmbeddingTable(4, 3, stddev=0.5, name="t"))
    assert (table.rows, table.dim, table.stddev, table.name) == (4, 3, 0.5, "t")
    history = again(HistoryFeatures(table, length=7, recency=False, last=2))
    assert (history.length, history.recency, history.last) == (7, False, 2)
    assert (history.items.rows, history.items.dim) == (4, 3)


@tensorflow_only
def test_tables_of_rows_are_saved_by_their_class():
    from recsys_helpers.rowwise import RowEmbedding

    layer = Derived(RowEmbedding(4, 2, stddev=0.5), size=1, table=RowEmbedding)
    copy = again(layer)
    assert copy.table is RowEmbedding and type(copy.rows) is RowEmbedding
    assert type(copy.inner) is RowEmbedding and copy.inner.stddev == 0.5
