"""The towers against the equations they claim to be, each computed by numpy."""

import itertools
import json
from contextlib import contextmanager

import keras
import numpy as np
import pytest
from keras import ops

from recsys_helpers import towers
from recsys_helpers.layers import EmbeddingTable, ItemFeatures
from recsys_helpers.towers.fm import fm_interactions
from recsys_helpers.towers.self_attention import CausalAttention
from recsys_helpers.two_tower import TwoTower

NUM_ITEMS, DIM, LENGTH = 40, 8, 12
# Fields of MovieLens, and two of somebody's own, the last with several values a user.
CODES = {"user_id": 101, "gender": 3, "age": 8, "occupation": 5, "country": 100, "brands": 6}
SIZES = CODES | {"history": NUM_ITEMS + 1, "search": 7, "history_length": LENGTH}
PROFILE = tuple(CODES)
WITHOUT_ID = PROFILE[1:]
USER_TOWERS = {  # name -> what makes it, and what it says that it reads
    "fm": (towers.FMUserTower, {}, (*PROFILE, "history")),
    "fm_profile": (towers.FMUserTower, {"use_history": False}, PROFILE),
    "dssm": (towers.DSSMUserTower, {}, (*PROFILE, "history")),
    "youtubednn": (
        towers.YouTubeDNNUserTower,
        {"example_age_scale": 50.0},
        (*WITHOUT_ID, "history", "search", "example_age"),
    ),
    "self_attentive": (
        towers.SelfAttentiveUserTower,
        {"reach": LENGTH},
        (*WITHOUT_ID, "history", "search"),
    ),
}
each_tower = pytest.mark.parametrize("name", USER_TOWERS)
numpy, tensor = ops.convert_to_numpy, ops.convert_to_tensor


def make_user_tower(name, sizes=SIZES, dim=DIM, **kwargs):
    kind, own, _ = USER_TOWERS[name]
    if not name.startswith("fm"):
        own = {"hidden": (16, 9)} | own
    return kind(sizes, dim, **own | kwargs)


def user_inputs(rows=16, positions=3, length=LENGTH, seed=0):
    rng = np.random.default_rng(seed)
    steps = positions + length - 1
    history = rng.integers(1, NUM_ITEMS + 1, (rows, steps))
    lengths = rng.integers(0, steps + 1, rows)
    lengths[:2] = 0, steps  # nothing, and a full row
    history[np.arange(steps) < steps - lengths[:, None]] = 0
    shapes = {"brands": (rows, 3), "search": (rows, positions, 6)}
    inputs = {
        name: rng.integers(0, SIZES[name], shapes.get(name, rows)) for name in (*CODES, "search")
    }
    inputs = {
        name: codes.astype("int32") for name, codes in (inputs | {"history": history}).items()
    }
    inputs["example_age"] = rng.uniform(0, 300, (rows, positions)).astype("float32")
    return inputs


def make_features(seed=1):
    rng = np.random.default_rng(seed)
    sizes = {"genres": (6, 4), "brand": (5,), "price_band": (9,)}
    codes = {
        name: rng.integers(0, size, (NUM_ITEMS + 1, *shape[:1])).astype("int32")
        for name, (size, *shape) in sizes.items()
    }
    for name, (size, *_) in sizes.items():
        codes[name][0], codes[name][1] = 0, size - 1  # padding, and every code occurs
    return ItemFeatures(codes)


def make_item_tower(name, **kwargs):
    if name.startswith("fm"):
        return towers.FMItemTower(make_features(), DIM, **kwargs)
    if name == "dssm":
        return towers.DSSMItemTower(make_features(), DIM, **{"hidden": (16, 9)} | kwargs)
    return towers.ItemEmbeddingTower(NUM_ITEMS, DIM, **kwargs)


@contextmanager
def in_precision(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def call(tower, inputs, **kwargs):
    vectors = tower({name: tensor(value) for name, value in inputs.items()}, **kwargs)
    return numpy(ops.cast(vectors, "float64"))


def item_vectors(tower, ids=None):
    ids = np.arange(NUM_ITEMS + 1, dtype="int32") if ids is None else ids
    return numpy(ops.cast(tower(tensor(ids)), "float64"))


def built(tower, inputs=None, seed=0):
    """The tower with weights, and these drawn at random: no start hides a part of it."""
    item_vectors(tower) if inputs is None else call(tower, inputs)
    rng = np.random.default_rng(seed)
    for weight in tower.trainable_variables:
        weight.assign(rng.normal(size=weight.shape))
    return tower


def with_weights_of(tower, other, inputs):
    call(tower, inputs)
    tower.set_weights(other.get_weights())
    return tower


# ------------------------------------------------------------------------------ what is read


@each_tower
def test_a_tower_reads_what_it_says_and_nothing_else(name):
    inputs, other = user_inputs(), user_inputs(seed=9)
    tower = built(make_user_tower(name), inputs)
    before = call(tower, inputs)
    changed = [
        key for key in inputs if not np.allclose(call(tower, inputs | {key: other[key]}), before)
    ]
    assert set(changed) == set(tower.reads) == set(USER_TOWERS[name][2])
    assert len(tower.reads) == len(changed)


@each_tower
def test_a_tower_may_be_told_which_fields_to_read(name):
    inputs = user_inputs()
    tower = built(make_user_tower(name, fields=("brands", "user_id")), inputs)
    own = {"brands", "user_id", *(set(USER_TOWERS[name][2]) - set(PROFILE))}
    before, other = call(tower, inputs), user_inputs(seed=9)
    del inputs["gender"], inputs["country"]  # nobody asks for them
    changed = {
        key for key in inputs if not np.allclose(call(tower, inputs | {key: other[key]}), before)
    }
    assert changed == set(tower.reads) == own


def test_the_age_of_an_example_is_read_where_a_scale_is_given():
    assert "example_age" not in make_user_tower("youtubednn", example_age_scale=None).reads
    assert "example_age" in make_user_tower("self_attentive", example_age_scale=3.0).reads


@pytest.mark.parametrize("name", ["fm", "dssm"])
def test_an_item_tower_reads_its_id_and_each_of_its_fields(name):
    tower = built(make_item_tower(name))
    codes = tower.item_features.tables
    before = item_vectors(tower, [3])
    assert not np.allclose(before, item_vectors(tower, [4]))
    for table in codes.values():
        values = numpy(table)
        other = values.copy()
        other[3] = (values[3] + 1) % (values.max() + 1)
        table.assign(other)
        assert not np.allclose(item_vectors(tower, [3]), before)
        table.assign(values)
        values = values.copy()
        values[4] = values[3]
        table.assign(values)
    # Two items of the same fields differ by their ids alone.
    assert not np.allclose(item_vectors(tower, [3]), item_vectors(tower, [4]))
    ids = [tower.ids] if name == "dssm" else [tower.factors["item_id"], tower.linear["item_id"]]
    for table in ids:
        values = numpy(table.embeddings).copy()
        values[4] = values[3]
        table.embeddings.assign(values)
    np.testing.assert_allclose(item_vectors(tower, [3]), item_vectors(tower, [4]), rtol=1e-6)


# ------------------------------------------------------------------- factorization machines


def test_linear_time_interactions_equal_the_double_sum():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 30)) * (rng.random((5, 30)) < 0.3)  # sparse and real-valued
    v = rng.normal(size=(30, DIM))
    double_sum = [
        sum(v[i] @ v[j] * row[i] * row[j] for i, j in itertools.combinations(range(30), 2))
        for row in x
    ]
    fast = fm_interactions(tensor(x[:, :, None] * v, "float64"))
    np.testing.assert_allclose(numpy(fast), double_sum, rtol=0, atol=1e-5)


def user_features_of(tower, inputs, row, t, positions):
    """x and v of every feature of a user at moment t, as the docstring of the tower has them."""
    found = []
    for name in tower.fields:
        codes = [c for c in np.atleast_1d(inputs[name][row]) if c]
        found += [(1 / len(codes), numpy(tower.profile[name].embeddings)[c]) for c in codes]
    steps = inputs["history"].shape[1]
    window = inputs["history"][row][: steps - positions + t + 1][-LENGTH:]
    ids = [i for i in window if i][::-1]  # the most recent first
    if tower.use_history:
        v = [numpy(table.embeddings) for table in tower.items]
        for decay, factors in zip(tower.decays, v, strict=False):
            total = sum(s**-decay for s in range(1, len(ids) + 1))
            found += [(s**-decay / total, factors[i]) for s, i in enumerate(ids, start=1)]
        apart = v[len(tower.decays) :]
        found += [(1.0, v_s[i]) for v_s, i in zip(apart, ids[: tower.last], strict=False)]
    return found


def item_features_of(tower, item):
    """w, x and v of every feature of an item."""
    found = []
    for name in tower.factors:
        codes = item if name == "item_id" else numpy(tower.item_features.tables[name])[item]
        v, w = (numpy(tables[name].embeddings) for tables in (tower.factors, tower.linear))
        found += [(w[c, 0], 1.0, v[c]) for c in np.atleast_1d(codes) if c]
    return found


@pytest.mark.parametrize(
    "name, last, decays",
    [("fm", 3, (0, 1)), ("fm", 0, (0, 1)), ("fm", 2, (0, 0.5, 2)), ("fm_profile", 3, (0, 1))],
)
def test_fm_towers_equal_the_fm_equation_up_to_a_constant_of_the_user(name, last, decays):
    """Score = full FM minus (w0 + the user's linear terms + interactions within the user)."""
    inputs, positions = user_inputs(rows=5, positions=2), 2
    user_tower = built(make_user_tower(name, last=last, decays=decays), inputs, 1)
    item_tower = built(make_item_tower("fm"), seed=2)
    assert len(user_tower.items) == (len(decays) + last if name == "fm" else 0)
    users, items = call(user_tower, inputs), item_vectors(item_tower)
    assert users.shape == (5, positions, 1 + DIM) and items.shape == (NUM_ITEMS + 1, 1 + DIM)
    rng = np.random.default_rng(3)

    def fm(features):  # Rendle 2010, equation 1, as it is written
        score = sum(w * x for w, x, _ in features)
        for (_, x_i, v_i), (_, x_j, v_j) in itertools.combinations(features, 2):
            score += v_i @ v_j * x_i * x_j
        return score

    for row, t in itertools.product(range(5), range(positions)):
        user = user_features_of(user_tower, inputs, row, t, positions)
        user = [(rng.normal(), x, v) for x, v in user]  # their weights change no order
        for item in (1, 7, 30):
            expected = fm(user + item_features_of(item_tower, item)) - fm(user)
            assert users[row, t] @ items[item] == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_fm_drops_from_each_fields_part_of_the_sum():
    inputs = user_inputs()
    tower = make_user_tower("fm", dropout=0.3)
    assert tower.drop.rate == 0.3
    tower.drop = Doubled()
    built(tower, inputs)
    served, trained = call(tower, inputs), call(tower, inputs, training=True)
    np.testing.assert_array_equal(trained[..., 0], 1)
    np.testing.assert_allclose(trained[..., 1:], 2 * served[..., 1:], rtol=1e-6)
    # One draw for each field, not one for their sum: with half of them gone, few sums are 0.
    tower = built(make_user_tower("fm", dropout=0.5, last=0), inputs)
    assert (call(tower, inputs, training=True) == 0).mean() < 0.1


# ---------------------------------------------------------------------------- deep towers


class Doubled(keras.layers.Layer):
    """In place of dropout: what it is given shows, and nothing is left to chance."""

    def call(self, x, training=False):
        return 2 * x if training else x


def mean_of(table, codes):
    """Of the rows of a table: [..., dim] for codes [..., several], the mean of those not 0."""
    values, present = numpy(table.embeddings)[codes], (codes > 0)[..., None]
    return (values * present).sum(-2) / np.maximum(present.sum(-2), 1)


def dense(x, *layers):
    for layer in layers[:-1]:
        kernel, bias = layer.get_weights()
        x = np.maximum(x @ kernel + bias, 0)
    kernel, bias = layers[-1].get_weights()
    return x @ kernel + bias


def history_by_numpy(layer, window):
    """[b, width] of windows [b, length]: mean, recency-weighted mean, the last apart."""
    values = numpy(layer.items.embeddings)[window] * (window > 0)[..., None]
    kinds = [np.ones(window.shape[1])]
    if layer.recency:
        kinds.extend(np.exp(numpy(layer.recency_logits)))
    means = [
        np.einsum("l,bld->bd", x, values) / np.maximum(((window > 0) @ x), 1e-12)[:, None]
        for x in kinds
    ]
    return np.hstack([*means, *(values[:, -1 - i] for i in range(layer.last))])


def norm_by_numpy(layer, x):
    gamma, beta = layer.get_weights()
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * gamma + beta


def attention_by_numpy(layer, x, present):
    """Step by step and head by head; steps of padding are left at 0."""
    out, width = np.zeros(x.shape), layer.dim // layer.heads
    (mix, mix_bias), (kernel, bias) = layer.mix.get_weights(), layer.out.get_weights()
    distance = numpy(layer.distance_logits)
    for row, i in zip(*np.nonzero(present), strict=True):
        q, k, v = np.split(x[row] @ mix + mix_bias, 3, axis=-1)
        seen = [j for j in range(i + 1) if present[row, j] and i - j < layer.length]
        found = []
        for head in range(layer.heads):
            own = slice(head * width, (head + 1) * width)
            logits = [q[i, own] @ k[j, own] / width**0.5 + distance[head, i - j] for j in seen]
            weights = np.exp(np.array(logits) - max(logits))
            found.append(weights / weights.sum() @ v[seen, own])
        out[row, i] = np.hstack(found) @ kernel + bias
    return out


def attended_by_numpy(tower, history, positions, drop):
    present = history > 0
    x = drop * norm_by_numpy(tower.norms[0], numpy(tower.history.items.embeddings)[history])
    for norm, attention, norm2, feed_forward in tower.attention:
        x = x + drop * attention_by_numpy(attention, norm_by_numpy(norm, x), present)
        x = x + drop * dense(norm_by_numpy(norm2, x), *feed_forward.layers)
    return (norm_by_numpy(tower.norms[1], x) * present[..., None])[:, -positions:]


def vectors_by_numpy(tower, inputs, drop=1):
    """What the tower's figure says, one moment after the other; drop multiplies what is dropped."""
    history, positions = inputs["history"], inputs["example_age"].shape[1]
    steps, length = history.shape[1], tower.sizes["history_length"]
    padded = np.pad(history, ((0, 0), (length, 0)))
    if getattr(tower, "blocks", 0):
        attended = attended_by_numpy(tower, history, positions, drop)
    vectors = []
    for t in range(positions):
        end = length + steps - positions + 1 + t
        parts = []
        for name in tower.fields:
            codes = inputs[name] if inputs[name].ndim > 1 else None
            table = tower.profile[name]
            single = numpy(table.embeddings)[inputs[name]]
            parts.append(single if codes is None else mean_of(table, codes))
        parts.append(history_by_numpy(tower.history, padded[:, end - length : end]))
        if hasattr(tower, "search"):
            parts.append(mean_of(tower.search, inputs["search"][:, t]))
        if getattr(tower, "blocks", 0):
            parts.append(attended[:, t])
        wide = drop * np.hstack(parts)
        if getattr(tower, "example_age_scale", None):
            age = np.maximum(inputs["example_age"][:, t, None] / tower.example_age_scale, 0)
            wide = np.hstack([wide, age, age**0.5, age**2])
        vector = dense(wide, *tower.network.layers)
        if tower.normalize:
            vector = vector / np.linalg.norm(vector, axis=1, keepdims=True)
        vectors.append(vector)
    return np.stack(vectors, 1)


@pytest.mark.parametrize(
    "name, choice",
    [
        ("dssm", {}),
        ("dssm", {"recency": False, "last": 0, "normalize": False, "hidden": ()}),
        ("youtubednn", {}),
        ("youtubednn", {"normalize": False, "example_age_scale": None, "last": 1, "recency": 3}),
        ("self_attentive", {"reach": 4, "normalize": False}),
        ("self_attentive", {"blocks": 2, "heads": 4, "example_age_scale": 50.0}),
    ],
)
def test_deep_towers_are_what_numpy_computes(name, choice):
    inputs = user_inputs()
    inputs["example_age"][3] *= -0.1  # "slightly negative"
    tower = make_user_tower(name, dropout=0.3, **choice)
    assert tower.drop.rate == 0.3
    tower.drop = Doubled()  # shows what is dropped in training: all but the age
    built(tower, inputs)
    for weight in tower.network.weights:  # numbers of the size that training makes
        weight.assign(weight / 4)
    for training in (False, True):
        expected = vectors_by_numpy(tower, inputs, drop=1 + training)
        found = call(tower, inputs, training=training)
        assert found.shape == (16, 3, DIM)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found / scale, expected / scale, atol=2e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_item_towers_are_what_numpy_computes(normalize):
    tower = built(make_item_tower("youtubednn", normalize=normalize))
    rows = numpy(tower.items.embeddings)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(item_vectors(tower), rows / (lengths if normalize else 1), rtol=1e-5)
    if normalize:
        tower = built(make_item_tower("dssm"))
        codes = {name: numpy(table) for name, table in tower.item_features.tables.items()}
        parts = [numpy(tower.ids.embeddings), mean_of(tower.tables["genres"], codes["genres"])]
        for name in ("brand", "price_band"):
            parts.append(numpy(tower.tables[name].embeddings)[codes[name]])
        expected = dense(np.hstack(parts), *tower.network.layers)
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(item_vectors(tower), expected, atol=1e-5)


@each_tower
def test_dropout_drops_in_training_only(name):
    inputs = user_inputs()
    tower = built(make_user_tower(name, dropout=0.5), inputs)
    served = call(tower, inputs)
    np.testing.assert_array_equal(call(tower, inputs, training=False), served)
    trained = [call(tower, inputs, training=True) for _ in range(2)]
    assert not np.allclose(*trained) and not np.allclose(trained[0], served)
    never = with_weights_of(make_user_tower(name, dropout=0.0), tower, inputs)
    np.testing.assert_allclose(call(never, inputs, training=True), served, rtol=1e-6)


class LastHidden(keras.layers.Layer):
    """In place of history dropout: the last item of every history is hidden in training."""

    def call(self, history, training=False):
        gone = ops.arange(ops.shape(history)[1]) == ops.shape(history)[1] - 1
        return ops.where(gone, 0, history) if training else history


@pytest.mark.parametrize("name", [n for n in USER_TOWERS if n != "fm_profile"])
def test_what_is_hidden_in_training_is_read_as_padding_by_every_part_of_a_tower(name):
    inputs = user_inputs()
    tower = built(make_user_tower(name, dropout=0.0, history_dropout=0.4), inputs)
    assert tower.hide.rate == 0.4
    served = call(tower, inputs)
    trained = [call(tower, inputs, training=True) for _ in range(2)]
    assert not np.allclose(*trained) and not np.allclose(trained[0], served)
    tower = make_user_tower(name, dropout=0.0)
    tower.hide = LastHidden()
    built(tower, inputs)
    history = inputs["history"].copy()
    history[:, -1] = 0
    hidden = call(tower, inputs | {"history": history})
    np.testing.assert_allclose(call(tower, inputs, training=True), hidden, rtol=1e-5, atol=1e-6)
    assert not np.allclose(call(tower, inputs), hidden)


def test_the_sizes_of_tables():
    tower = make_user_tower("dssm")
    assert {name: (t.rows, t.dim) for name, t in tower.profile.items()} == {
        name: (size, DIM if size > 100 else DIM // 4) for name, size in CODES.items()
    }
    assert (tower.history.items.rows, tower.history.items.dim) == (NUM_ITEMS + 1, DIM)
    tower = make_user_tower("youtubednn")
    assert (tower.search.rows, tower.search.dim) == (7, DIM // 4)
    small = make_user_tower("youtubednn", dim=2)
    assert {table.dim for table in (small.search, *small.profile.values())} == {1}
    assert {t.dim for t in towers.DSSMItemTower(make_features(), 2).tables.values()} == {1}
    tables = make_item_tower("dssm").tables
    assert {name: (t.rows, t.dim) for name, t in tables.items()} == {
        "genres": (6, 2), "brand": (5, 2), "price_band": (9, 2),
    }  # fmt: skip


def test_what_a_tower_is_unless_it_is_told():
    fm, deep = towers.FMUserTower(SIZES, DIM), towers.SelfAttentiveUserTower(SIZES, DIM)
    assert (fm.use_history, fm.last, fm.drop.rate, fm.table) == (True, 3, 0.0, EmbeddingTable)
    assert fm.decays == (0, 1) and fm.hide.rate == deep.hide.rate == 0
    assert (deep.recency, deep.last, deep.normalize, deep.table) == (True, 3, True, EmbeddingTable)
    assert (deep.drop.rate, deep.blocks, deep.heads, deep.reach) == (0.2, 1, 2, 100)
    assert deep.example_age_scale is None and towers.ItemEmbeddingTower(4, 2).normalize
    for tower in (deep, towers.DSSMItemTower(make_features(), DIM)):
        assert [layer.units for layer in tower.network.layers] == [256, DIM]
    assert [layer.units for layer in deep.attention[0][3].layers] == [DIM, DIM]


def test_an_item_starts_without_a_weight_of_its_own_but_with_factors():
    tower = make_item_tower("fm")
    for name in tower.factors:
        assert not numpy(tower.linear[name].embeddings).any()
        assert numpy(tower.factors[name].embeddings).any()


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_fm_sums_in_float32(policy):
    with in_precision(policy):
        tower = make_user_tower("fm_profile", fields=("brands", "gender"))
    for name, value in (("brands", 2048.0), ("gender", 1.0)):
        tower.profile[name].embeddings.assign(np.full((CODES[name], DIM), value))
    inputs = user_inputs() | {"brands": np.ones((16, 100), "int32"), "gender": np.ones(16, "int32")}
    # 100 * 2048 is more than float16 holds, and 2049 falls between two of its numbers.
    np.testing.assert_array_equal(call(tower, inputs)[..., 1:], 2049)


# ------------------------------------------------------------------------------ attention


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_is_what_numpy_computes(heads):
    """Each step's values weighted by q.k and by how far back they are."""
    layer = CausalAttention(4, heads=heads, length=3)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 6, 4)).astype("float32")
    present = np.array([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 0, 1]], bool)
    layer(tensor(x), tensor(present))
    for weight in layer.trainable_variables:
        weight.assign(rng.normal(size=weight.shape))
    found = numpy(layer(tensor(x), tensor(present)))
    expected = attention_by_numpy(layer, x.astype("float64"), present)
    np.testing.assert_allclose(found[present], expected[present], rtol=1e-4, atol=1e-5)
    assert np.isfinite(found).all()


def test_attention_starts_with_a_preference_for_the_recent_and_small_beside_the_embeddings():
    tower = make_user_tower("self_attentive", blocks=2, reach=7)
    call(tower, user_inputs())
    for norm, attention, norm2, _ in tower.attention:
        logits = numpy(attention.distance_logits)
        np.testing.assert_allclose(np.exp(logits), [1 / np.arange(1, 8)] * 2, rtol=1e-6)
        np.testing.assert_array_equal(numpy(norm.gamma), np.ones(DIM))
        np.testing.assert_array_equal(numpy(norm2.gamma), np.ones(DIM))
    first, final = tower.norms
    np.testing.assert_array_equal(numpy(first.gamma), np.ones(DIM))
    np.testing.assert_allclose(numpy(final.gamma), np.full(DIM, 0.1))


def test_without_blocks_it_is_a_youtubednn():
    inputs = user_inputs()
    youtube = built(make_user_tower("youtubednn"), inputs)
    tower = make_user_tower("self_attentive", blocks=0, example_age_scale=50.0)
    with_weights_of(tower, youtube, inputs)
    np.testing.assert_array_equal(call(tower, inputs), call(youtube, inputs))


def test_heads_must_share_the_width_evenly():
    with pytest.raises(ValueError, match="dim must be a multiple of heads, received 8 and 3"):
        make_user_tower("self_attentive", heads=3)


# ------------------------------------------------------------- rows, windows, and padding


@each_tower
@pytest.mark.parametrize("length, longer", [(LENGTH, 0), (5, 6), (30, -20)])
def test_all_moments_at_once_are_the_windows_one_by_one(name, length, longer):
    """Whatever a window's length, and with more or fewer steps in the row than windows need."""
    positions, choice = 4, {"reach": 5} if name == "self_attentive" else {}
    inputs = user_inputs(rows=6, positions=positions, length=length + longer)
    tower = make_user_tower(name, SIZES | {"history_length": length}, **choice)
    built(tower, inputs)
    together = call(tower, inputs)
    assert together.shape[:2] == (6, positions)
    history = np.pad(inputs["history"], ((0, 0), (length, 0)))
    for t in range(positions):
        end = history.shape[1] - positions + 1 + t
        window = inputs | {
            "history": history[:, end - length : end],
            "example_age": inputs["example_age"][:, t : t + 1],
            "search": inputs["search"][:, t : t + 1],
        }
        alone = call(tower, window)
        np.testing.assert_allclose(together[:, t : t + 1], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("blocks", [1, 3])
def test_self_attention_of_all_moments_is_that_of_every_prefix(blocks):
    inputs = user_inputs(rows=6, positions=LENGTH, length=1)
    tower = built(make_user_tower("self_attentive", blocks=blocks, reach=5), inputs)
    together = call(tower, inputs)
    for t in (0, 4, 9):
        prefix = inputs | {
            "history": np.pad(inputs["history"][:, : t + 1], ((0, 0), (LENGTH - 1 - t, 0))),
            "example_age": inputs["example_age"][:, t : t + 1],
            "search": inputs["search"][:, t : t + 1],
        }
        np.testing.assert_allclose(together[:, t : t + 1], call(tower, prefix), atol=1e-4)


@each_tower
def test_padding_never_changes_a_vector(name):
    inputs = user_inputs(length=6)
    tower = built(make_user_tower(name), inputs)
    expected = call(tower, inputs)
    wider = {
        "history": ((0, 0), (9, 0)),
        "search": ((0, 0), (0, 0), (2, 3)),
        "brands": ((0, 0), (1, 2)),
    }
    for key, width in wider.items():
        padded = inputs | {key: np.pad(inputs[key], width)}
        np.testing.assert_allclose(call(tower, padded), expected, atol=1e-5)


@each_tower
def test_the_row_of_padding_is_never_read_where_something_may_be_missing(name):
    inputs = user_inputs()
    tower = built(make_user_tower(name), inputs)
    before = call(tower, inputs)
    tables = [tower.profile["brands"]]
    if name.startswith("fm"):  # a field that is unknown has no indicator
        tables += [*tower.profile.values(), *tower.items]
    else:
        tables += [tower.history.items]
    if hasattr(tower, "search"):
        tables += [tower.search]
    for table in tables:
        values = numpy(table.embeddings).copy()
        values[0] = 100
        table.embeddings.assign(values)
    np.testing.assert_allclose(call(tower, inputs), before, atol=1e-6)


def test_the_row_of_padding_is_never_read_for_an_item():
    for name, tables in (("dssm", "tables"), ("fm", "factors"), ("fm", "linear")):
        tower = built(make_item_tower(name))
        before = item_vectors(tower)
        for field, table in getattr(tower, tables).items():
            if field == "genres" or name == "fm":
                values = numpy(table.embeddings).copy()
                values[0] = 100
                table.embeddings.assign(values)
        np.testing.assert_allclose(item_vectors(tower), before, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in USER_TOWERS if name != "fm_profile"])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_vectors_in_each_precision(name, policy):
    """Near those of float32, and finite for a user of whom nothing is known."""
    inputs = user_inputs()
    for key in (*CODES, "history", "search", "example_age"):
        inputs[key][0] = 0
    inputs["example_age"][1] = -1
    tower = built(make_user_tower(name, dropout=0.0), inputs)
    for weight in tower.weights:
        weight.assign(weight / 4)
    expected = call(tower, inputs)
    with in_precision(policy):
        other = with_weights_of(make_user_tower(name, dropout=0.0), tower, inputs)
    tolerance = {"mixed_float16": 0.01, "mixed_bfloat16": 0.08}.get(policy, 1e-5)
    found = call(other, inputs)
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def test_an_age_below_zero_is_one_of_zero():
    inputs = user_inputs()
    tower = built(make_user_tower("youtubednn"), inputs)
    now, later = (inputs | {"example_age": np.full((16, 3), age, "float32")} for age in (0, -2))
    np.testing.assert_array_equal(call(tower, later), call(tower, now))


# ------------------------------------------------------------------------------- contracts


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: make_user_tower("fm", {"history": 5}), "sizes lacks history_length; it has"),
        (lambda: make_user_tower("fm", fields=("planet",)), "sizes lacks planet; it has user_id"),
        (
            lambda: make_user_tower("fm_profile", {"gender": 3}),
            "sizes lacks history, history_length; it has gender",
        ),
        (lambda: make_user_tower("dssm", fields=("planet",)), "sizes lacks planet"),
        (lambda: make_user_tower("dssm", CODES), "sizes lacks history, history_length"),
        (
            lambda: make_user_tower("youtubednn", {"history": 5, "history_length": 3}),
            "sizes lacks search; it has history, history_length",
        ),
        (lambda: make_user_tower("fm", last=LENGTH + 1), "history's length 12, received 13"),
        (lambda: make_user_tower("dssm", last=LENGTH + 1), "history's length 12, received 13"),
        (lambda: make_user_tower("youtubednn", last=-1), "history's length 12, received -1"),
        (lambda: make_user_tower("youtubednn", example_age_scale=0), "be positive, received 0"),
        (lambda: make_user_tower("youtubednn", example_age_scale=-1.0), "be positive, received -1"),
        (
            lambda: make_user_tower("dssm", item_table=EmbeddingTable(NUM_ITEMS, DIM)),
            "of 41 rows .* and 8 columns, received one of 40 rows and 8",
        ),
        (
            lambda: make_item_tower("dssm", item_table=EmbeddingTable(NUM_ITEMS, DIM)),
            "of 41 rows .* received one of 40 rows",
        ),
        (
            lambda: make_item_tower("youtubednn", item_table=EmbeddingTable(NUM_ITEMS + 1, 3)),
            "and 8 columns, received one of 41 rows and 3 columns",
        ),
    ],
)
def test_towers_say_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_towers_of_all_items_say_how_many_there_are():
    assert {make_item_tower(name).num_items for name in ("fm", "dssm", "youtubednn")} == {NUM_ITEMS}


def arguments(tower):
    return {k: v for k, v in tower.get_config().items() if not isinstance(v, keras.layers.Layer)}


@pytest.mark.parametrize("rows", [False, True])
@each_tower
def test_a_tower_is_made_again_from_its_configuration(name, rows):
    if rows and keras.backend.backend() != "tensorflow":
        pytest.skip("tables of rows need TensorFlow")
    table = EmbeddingTable
    if rows:
        from recsys_helpers.rowwise import RowEmbedding as table  # noqa: N813
    odd = {"fields": ["gender", "brands"], "dropout": 0.4, "last": 2, "table": table}
    odd |= {"history_dropout": 0.2}
    if name != "fm" and name != "fm_profile":
        odd |= {"hidden": (7, 6), "recency": 2, "normalize": False}
    else:
        odd |= {"decays": (0, 0.5, 3)}
    if name == "self_attentive":
        odd |= {"blocks": 2, "heads": 4, "reach": 6}
    inputs = user_inputs()
    tower, item_tower = make_user_tower(name, **odd), make_item_tower(name, table=table)
    for original in (built(tower, inputs), built(item_tower)):
        saved = json.loads(json.dumps(keras.saving.serialize_keras_object(original)))
        saved.pop("build_config", None)
        copy = keras.saving.deserialize_keras_object(saved)
        assert type(copy) is type(original) and arguments(copy) == arguments(original)
        vectors = item_vectors if original is item_tower else (lambda t: call(t, inputs))
        vectors(copy)
        copy.set_weights(original.get_weights())
        np.testing.assert_array_equal(vectors(copy), vectors(original))
        tables = [part for part in copy._flatten_layers() if isinstance(part, table)]
        assert len(tables) >= (1 if original is item_tower else 2)


@pytest.mark.parametrize("name", ["dssm", "youtubednn"])
def test_a_table_that_two_towers_share_is_one_table_once_it_is_loaded(name, tmp_path):
    table, inputs = EmbeddingTable(NUM_ITEMS + 1, DIM), user_inputs()
    users, items = make_user_tower(name, item_table=table), make_item_tower(name, item_table=table)
    own = users.history.items, items.ids if name == "dssm" else items.items
    assert own[0] is own[1] is table
    model = TwoTower(users, items, NUM_ITEMS)
    model.user_vectors(inputs)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    users, items = loaded.user_tower, loaded.item_tower
    assert users.history.items is (items.ids if name == "dssm" else items.items)
    np.testing.assert_array_equal(loaded.user_vectors(inputs), model.user_vectors(inputs))
    np.testing.assert_array_equal(loaded.item_vectors(), model.item_vectors())


@each_tower
def test_tables_are_told_whether_they_train(name):
    """Only training needs a copy of a table, so serving must say that it serves."""
    told = []

    class Onlooker(EmbeddingTable):
        def call(self, ids, training=None):
            told.append(training)
            return super().call(ids, training=training)

    inputs = user_inputs()
    for tower, ask in (
        (make_user_tower(name, table=Onlooker), {k: tensor(v) for k, v in inputs.items()}),
        (make_item_tower(name, table=Onlooker), tensor([1, 2])),
    ):
        tower(ask)  # makes the weights
        for training in (True, False):
            told.clear()
            tower(ask, training=training)
            assert told and set(told) == {training}


@pytest.mark.parametrize("kind", [towers.FMItemTower, towers.DSSMItemTower])
def test_an_unknown_item_is_served_by_its_fields_alone(kind):
    codes = {
        "year": np.array([0, 1, 2, 1, 2]),
        "genres": np.array([[0, 0], [1, 2], [3, 0]] * 2)[:5],
    }
    codes["genres"][3:] = codes["genres"][1:3]  # items 3 and 4 have the fields of 1 and 2
    features = ItemFeatures(codes, id_dropout=0.5, known=np.array([0, 1, 1, 0, 0]))
    tower, four = kind(features, DIM), tensor(np.array([1, 2, 3, 4], "int32"))
    tower(four)
    rng = np.random.default_rng(0)
    for weight in tower.trainable_variables:
        weight.assign(rng.normal(size=weight.shape))
    first, second, third, fourth = numpy(tower(four))
    assert np.abs(first - third).max() > 1e-3  # by its id
    features.known.assign(np.array([0, 0, 1, 0, 0]))
    unknown = numpy(tower(four))
    np.testing.assert_allclose(unknown, [third, second, third, fourth], atol=1e-6)
    # In training, ids are hidden: what is seen then is one of the two.
    seen = numpy(tower(tensor(np.array([2] * 40, "int32")), training=True))
    as_id = np.abs(seen - second).max(1) < 1e-5
    as_fields = np.abs(seen - fourth).max(1) < 1e-5
    assert (as_id | as_fields).all() and 5 < as_id.sum() < 35
