"""The towers against the equations they claim to be."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

from recsys_helpers import towers

NUM_ITEMS, NUM_TOKENS, DIM, LENGTH = 40, 7, 8, 12
SIZES = {"user_id": 20, "gender": 3, "age": 8, "occupation": 5}


@pytest.fixture
def float64():
    if keras.backend.backend() == "jax":
        pytest.skip("JAX computes in float32 unless it is told otherwise before it starts")
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before)
    keras.config.set_dtype_policy(before)


@pytest.fixture
def item_features():
    rng = np.random.default_rng(1)
    genres = rng.integers(0, NUM_TOKENS, (NUM_ITEMS + 1, 4)).astype("int32")
    year = rng.integers(0, 9, NUM_ITEMS + 1).astype("int32")
    genres[0] = year[0] = 0
    genres[1], year[1] = NUM_TOKENS - 1, 8  # every code occurs
    return {"genres": genres, "year": year}


def user_inputs(rows=16, length=LENGTH, seed=0):
    rng = np.random.default_rng(seed)
    history = rng.integers(1, NUM_ITEMS + 1, (rows, length))
    lengths = rng.integers(0, length + 1, rows)
    history[np.arange(length) < length - lengths[:, None]] = 0
    inputs = {name: rng.integers(0, size, rows) for name, size in SIZES.items()}
    inputs |= {"history": history, "search": rng.integers(0, NUM_TOKENS, (rows, 6))}
    inputs = {name: value.astype("int32") for name, value in inputs.items()}
    inputs["example_age"] = rng.uniform(0, 300, rows).astype("float32")
    return inputs


def make_user_towers(length=LENGTH):
    return {
        "fm": towers.FMUserTower(SIZES, NUM_ITEMS, DIM, length=length),
        "fm_profile": towers.FMUserTower(SIZES, NUM_ITEMS, DIM, use_history=False, length=length),
        "dssm": towers.DSSMUserTower(SIZES, NUM_ITEMS, DIM, hidden=(16,), length=length),
        "youtubednn": towers.YouTubeDNNUserTower(
            SIZES, NUM_ITEMS, NUM_TOKENS, DIM, hidden=(16,), example_age_scale=50.0, length=length
        ),
        "self_attentive": towers.SelfAttentiveUserTower(
            SIZES, NUM_ITEMS, NUM_TOKENS, DIM, hidden=(16,), reach=LENGTH, length=length
        ),
    }


def call(tower, inputs, **kwargs):
    tensors = {name: ops.convert_to_tensor(value) for name, value in inputs.items()}
    return ops.convert_to_numpy(tower(tensors, **kwargs))


def randomize(layer, seed=0):
    rng = np.random.default_rng(seed)
    for weight in layer.trainable_variables:
        weight.assign(rng.normal(size=weight.shape))
    return layer


def test_linear_time_interactions_equal_the_double_sum(float64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 30)) * (rng.random((5, 30)) < 0.3)  # sparse and real-valued
    v = rng.normal(size=(30, DIM))
    double_sum = [
        sum(v[i] @ v[j] * row[i] * row[j] for i, j in itertools.combinations(range(30), 2))
        for row in x
    ]
    fast = towers.fm_interactions(ops.convert_to_tensor(x[:, :, None] * v))
    np.testing.assert_allclose(ops.convert_to_numpy(fast), double_sum, rtol=0, atol=1e-10)


def test_fm_towers_equal_the_fm_equation_up_to_a_constant_of_the_user(float64, item_features):
    """Score = full FM minus (w0 + the user's linear terms + interactions within the user)."""
    rng = np.random.default_rng(3)
    user_tower = towers.FMUserTower(SIZES, NUM_ITEMS, DIM, length=LENGTH)
    item_tower = towers.FMItemTower(item_features, DIM)
    user_tower.build(None)
    item_tower.build(None)
    randomize(user_tower, 1)
    randomize(item_tower, 2)
    v_user, v_item = (ops.convert_to_numpy(t.factors.embeddings) for t in (user_tower, item_tower))
    w_item = ops.convert_to_numpy(item_tower.linear.embeddings)[:, 0]
    w_0, w_user = rng.normal(), rng.normal(size=len(v_user))
    v, w = np.concatenate([v_user, v_item]), np.concatenate([w_user, w_item])

    def sparse(size, rows, nonzero):
        ids = np.stack([rng.choice(size, nonzero, replace=False) for _ in range(rows)])
        return ids.astype("int32"), rng.normal(size=(rows, nonzero))

    def fm(ids, values):  # Rendle 2010, equation 1, as it is written
        score = w_0 + w[ids] @ values
        for (i, x_i), (j, x_j) in itertools.combinations(zip(ids, values, strict=True), 2):
            score += v[i] @ v[j] * x_i * x_j
        return score

    inputs, items = user_inputs(rows=4), sparse(len(v_item), 5, 3)
    users = [ops.convert_to_numpy(array) for array in user_tower.encode(inputs)]
    user_vectors = call(user_tower, inputs)
    item_vectors = ops.convert_to_numpy(item_tower.vector(*map(ops.convert_to_tensor, items)))
    for user_ids, user_x, vector in zip(*users, user_vectors, strict=True):
        constant = fm(user_ids, user_x)
        full = [
            fm(np.r_[user_ids, item_ids + len(v_user)], np.r_[user_x, item_x])
            for item_ids, item_x in zip(*items, strict=True)
        ]
        np.testing.assert_allclose(item_vectors @ vector, np.array(full) - constant, atol=1e-9)


def test_fm_reads_fields_as_indicators_and_the_history_as_weighted_means():
    tower = randomize(built(towers.FMUserTower(SIZES, NUM_ITEMS, DIM, last=2), user_inputs()))
    inputs = {k: v[:1] for k, v in user_inputs().items()}
    inputs |= {name: np.array([1], "int32") for name in SIZES}
    inputs["history"] = np.array([[0] * (LENGTH - 3) + [5, 9, 7]], "int32")
    v, at = ops.convert_to_numpy(tower.factors.embeddings), tower.offsets
    expected = sum(v[at[field] + 1] for field in range(4))
    expected = expected + (v[at[4] + 5] + v[at[4] + 9] + v[at[4] + 7]) / 3
    recent = v[at[5] + 5] / 3 + v[at[5] + 9] / 2 + v[at[5] + 7]
    expected = expected + recent / (1 / 3 + 1 / 2 + 1) + v[at[6] + 7] + v[at[7] + 9]
    np.testing.assert_allclose(call(tower, inputs)[0], np.r_[1, expected], rtol=1e-5)


def built(tower, inputs):
    call(tower, inputs)
    return tower


@pytest.mark.parametrize("name", ["fm", "fm_profile", "dssm", "youtubednn", "self_attentive"])
def test_padding_never_changes_a_vector(name):
    inputs = user_inputs()
    tower = randomize(built(make_user_towers()[name], inputs))
    rows = np.flatnonzero((inputs["history"] != 0).sum(1) <= LENGTH // 2)
    assert len(rows) > 3
    padded = {key: value[rows] for key, value in inputs.items()}
    shorter = padded | {"history": padded["history"][:, LENGTH // 2 :]}
    longer_search = np.pad(padded["search"], ((0, 0), (0, 5)))
    expected = call(tower, padded)
    np.testing.assert_allclose(call(tower, shorter), expected, atol=1e-6)
    np.testing.assert_allclose(call(tower, padded | {"search": longer_search}), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["dssm", "youtubednn", "self_attentive"])
def test_the_embedding_of_padding_is_never_read_from_a_history(name):
    inputs = user_inputs()
    tower = randomize(built(make_user_towers()[name], inputs))
    before = call(tower, inputs)
    table = tower.history.embedding.embeddings
    table.assign(ops.concatenate([100.0 * ops.ones((1, DIM)), table[1:]]))
    np.testing.assert_array_equal(call(tower, inputs), before)


def test_recency_weights_depend_on_steps_back_only():
    layer = towers.HistoryFeatures(NUM_ITEMS, 2, recency=True, last=1, length=4)
    history = np.array([[0, 0, 3, 4], [0, 0, 0, 4]], "int32")
    layer(ops.convert_to_tensor(history))
    table = np.zeros((NUM_ITEMS + 1, 2))
    table[3], table[4] = [1, 0], [0, 1]
    layer.embedding.embeddings.assign(table)
    layer.recency_logits.assign(np.log([1.0, 1.0, 1.0, 3.0]))  # oldest first
    out = ops.convert_to_numpy(layer(ops.convert_to_tensor(history)))[:, 0]
    # mean, recency-weighted mean (1/4 and 3/4), last item
    np.testing.assert_allclose(out[0], [0.5, 0.5, 0.25, 0.75, 0, 1], rtol=1e-6)
    np.testing.assert_allclose(out[1], [0, 1, 0, 1, 0, 1], rtol=1e-6)


def test_an_empty_history_gives_finite_vectors():
    inputs = user_inputs()
    inputs["history"][:] = 0
    inputs["search"][:] = 0
    for name, tower in make_user_towers().items():
        assert np.isfinite(call(tower, inputs)).all(), name


def test_deep_towers_give_unit_vectors_of_one_size(item_features):
    for name in ("dssm", "youtubednn"):
        vectors = call(make_user_towers()[name], user_inputs())
        assert vectors.shape == (16, DIM)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    ids = ops.arange(1, NUM_ITEMS + 1, dtype="int32")
    for tower in (
        towers.DSSMItemTower(item_features, DIM, hidden=(16,)),
        towers.ItemEmbeddingTower(NUM_ITEMS, DIM),
    ):
        vectors = ops.convert_to_numpy(tower(ids))
        assert vectors.shape == (NUM_ITEMS, DIM)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_example_age_is_read_only_where_asked_for():
    inputs = user_inputs()
    older = inputs | {"example_age": inputs["example_age"] + 100}
    for scale, reads in ((50.0, True), (None, False)):
        tower = towers.YouTubeDNNUserTower(
            SIZES, NUM_ITEMS, NUM_TOKENS, DIM, hidden=(16,), example_age_scale=scale
        )
        randomize(built(tower, inputs))
        assert np.allclose(call(tower, inputs), call(tower, older)) is not reads


def test_item_towers_look_up_their_own_features(item_features):
    """Two items that share every feature but the id differ only through the id's embedding."""
    item_features["genres"][3], item_features["year"][3] = item_features["genres"][2], 4
    item_features["year"][2] = 4
    for tower in (
        towers.FMItemTower(item_features, DIM),
        towers.DSSMItemTower(item_features, DIM, hidden=(16,)),
    ):
        tower(ops.arange(3, dtype="int32"))
        randomize(tower)
        table = tower.factors.embeddings if hasattr(tower, "factors") else tower.ids.embeddings
        before = ops.convert_to_numpy(tower(ops.convert_to_tensor([2, 3])))
        assert not np.allclose(before[0], before[1])
        values = ops.convert_to_numpy(table).copy()
        values[3] = values[2]
        if hasattr(tower, "linear"):
            tower.linear.embeddings.assign(np.zeros(tower.linear.embeddings.shape))
        table.assign(values)
        after = ops.convert_to_numpy(tower(ops.convert_to_tensor([2, 3])))
        np.testing.assert_allclose(after[0], after[1], rtol=1e-5)


@pytest.mark.parametrize("name", ["fm", "fm_profile", "dssm", "youtubednn"])
@pytest.mark.parametrize("length", [LENGTH, 5])
def test_all_positions_at_once_are_the_windows_one_by_one(name, length):
    positions = 7
    tower = make_user_towers(length=length)[name]
    sequence = user_inputs(rows=6, length=positions + length - 1)
    rng = np.random.default_rng(5)
    sequence["example_age"] = rng.uniform(0, 300, (6, positions)).astype("float32")
    sequence["search"] = rng.integers(0, NUM_TOKENS, (6, positions, 4)).astype("int32")
    randomize(built(tower, sequence))
    together = call(tower, sequence)
    assert together.shape[:2] == (6, positions)
    for t in range(positions):
        window = sequence | {
            "history": sequence["history"][:, t : t + length],
            "example_age": sequence["example_age"][:, t],
            "search": sequence["search"][:, t],
        }
        np.testing.assert_allclose(together[:, t], call(tower, window), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("blocks", [1, 3])
def test_self_attention_of_all_positions_is_that_of_every_prefix(blocks):
    tower = towers.SelfAttentiveUserTower(
        SIZES, NUM_ITEMS, NUM_TOKENS, DIM, blocks=blocks, length=4
    )
    inputs = user_inputs(rows=6)
    everywhere = inputs | {
        "example_age": np.zeros((6, LENGTH), "float32"),
        "search": np.repeat(inputs["search"][:, None], LENGTH, axis=1),
    }
    randomize(built(tower, everywhere))
    together = call(tower, everywhere)
    assert together.shape == (6, LENGTH, DIM)
    for t in range(LENGTH):
        prefix = np.zeros_like(inputs["history"])
        prefix[:, LENGTH - 1 - t :] = inputs["history"][:, : t + 1]
        alone = call(tower, inputs | {"history": prefix})
        some = prefix.any(axis=1)
        np.testing.assert_allclose(together[some, t], alone[some], atol=1e-5)
        assert np.isfinite(alone).all()


def test_a_network_that_ignores_attention_is_a_tower_without_it():
    inputs = user_inputs()
    make = dict(
        sizes=SIZES, num_items=NUM_ITEMS, num_tokens=NUM_TOKENS, dim=DIM, hidden=(16,),
        length=LENGTH,
    )  # fmt: skip
    full = randomize(built(towers.SelfAttentiveUserTower(**make), inputs))
    kernel, *rest = full.network.get_weights()
    kernel[-DIM:] = 0  # the rows that read what attention found
    full.network.set_weights([kernel, *rest])
    plain = built(towers.SelfAttentiveUserTower(blocks=0, **make), inputs)
    plain.history.set_weights(full.history.get_weights())
    plain.search.set_weights(full.search.get_weights())
    for name in plain.profile:
        plain.profile[name].set_weights(full.profile[name].get_weights())
    plain.network.set_weights([kernel[:-DIM], *rest])
    np.testing.assert_allclose(call(full, inputs), call(plain, inputs), atol=1e-6)


def test_attention_by_hand():
    """One head, no network: each step's values weighted by q.k and by how far back they are."""
    layer = towers.CausalAttention(4, heads=1, length=3)
    x = np.random.default_rng(0).normal(size=(1, 5, 4)).astype("float32")
    present = np.array([[False, True, True, True, True]])
    layer(ops.convert_to_tensor(x), ops.convert_to_tensor(present))
    randomize(layer)
    found = ops.convert_to_numpy(layer(ops.convert_to_tensor(x), ops.convert_to_tensor(present)))[0]
    (mix, mix_bias, out, out_bias, distance) = map(
        ops.convert_to_numpy, (*layer.mix.weights, *layer.out.weights, layer.distance_logits)
    )
    q, k, v = np.split(x[0] @ mix + mix_bias, 3, axis=1)
    for i in range(1, 5):
        seen = [j for j in range(1, i + 1) if i - j < 3]
        logits = np.array([q[i] @ k[j] / 2 + distance[0, i - j] for j in seen])
        weights = np.exp(logits - logits.max())
        expected = weights / weights.sum() @ v[seen] @ out + out_bias
        np.testing.assert_allclose(found[i], expected, rtol=1e-4)


def test_heads_must_share_the_width_evenly():
    with pytest.raises(ValueError, match="dim must be a multiple of heads, received 8 and 3"):
        towers.SelfAttentiveUserTower(SIZES, NUM_ITEMS, 5, 8, heads=3)
