"""The towers: three ways to turn a user, and three ways to turn an item, into one vector.

A user tower maps a dictionary of inputs (see `recsys_helpers.samples`) to `[batch, d]`; an item
tower maps item ids to `[n, d]` and looks the items' features up in a table it holds. The score of
a pair is always the dot product of the two vectors, so everything downstream sees only arrays.

Written with `keras.ops` alone, so the towers run on every Keras backend.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops

PROFILE = ("user_id", "gender", "age", "occupation")
register = keras.saving.register_keras_serializable(package="recsys_helpers")


# --- Parts ----------------------------------------------------------------------------------


def fm_interactions(weighted: keras.KerasTensor) -> keras.KerasTensor:
    """All pairwise interactions of a factorization machine in O(kn).

    Args:
        weighted: `x_i v_i` of every feature, [..., n, k].

    Returns:
        `sum_{i<j} <v_i, v_j> x_i x_j`, [...], as half the square of the sum minus the sum of the
        squares (Rendle 2010, lemma 3.1).
    """
    return 0.5 * ops.sum(ops.sum(weighted, -2) ** 2 - ops.sum(weighted**2, -2), -1)


def masked_mean(embeddings, ids):
    """Mean of `embeddings` [batch, n, k] over the places where `ids` [batch, n] is not padding.

    A row that is all padding has mean zero.
    """
    mask = ops.cast(ops.not_equal(ids, 0), embeddings.dtype)[..., None]  # (batch, n, 1)
    return ops.sum(embeddings * mask, 1) / ops.maximum(ops.sum(mask, 1), 1.0)


def l2_normalize(vectors):
    """Vectors of length one: their dot product is the cosine."""
    return ops.normalize(vectors, axis=-1, order=2)


@register
class EmbeddingTable(layers.Embedding):
    """An embedding whose gradient is summed over repeated ids before the optimizer sees it.

    On TensorFlow the stock layer hands Adam and Adagrad one gradient for each occurrence of a row,
    and they square each by itself; a popular movie occurs many times in every batch, so its steps
    come out wrong. Reading the table through an (identity) operation makes the gradient one dense
    array, which is exact, and for catalogues of thousands of items also the faster way.
    """

    def call(self, inputs):
        """Map ids of any shape to [..., dim]."""
        return ops.take(self.embeddings * 1.0, inputs, axis=0)


def _embedding(rows, dim, name):
    normal = keras.initializers.RandomNormal(stddev=0.05)
    return EmbeddingTable(rows, dim, embeddings_initializer=normal, name=name)


@register
class ItemFeatures(layers.Layer):
    """A table of content features, held as weights so that it is saved with the tower.

    Args:
        features: name -> codes, int [num_items + 1, ...], 0 for padding; row 0 is padding.
        shapes: given instead of `features` when a saved tower is loaded.
    """

    def __init__(self, features=None, shapes=None, **kwargs):
        super().__init__(**kwargs)
        if features is not None:
            shapes = {k: [list(v.shape), int(v.max()) + 1] for k, v in features.items()}
        self.shapes = shapes
        self.tables = {}
        for name, (shape, _) in shapes.items():
            values = np.zeros(shape, "int32") if features is None else features[name]
            self.tables[name] = self.add_weight(
                shape=tuple(shape),
                dtype="int32",
                trainable=False,
                name=name,
                initializer=lambda _, dtype=None, values=values: ops.convert_to_tensor(
                    values, dtype="int32"
                ),
            )
        self.built = True

    @property
    def num_items(self):
        """Number of items, padding not counted."""
        return next(iter(self.shapes.values()))[0][0] - 1

    def vocabulary_size(self, name):
        """Number of codes of a feature, padding included."""
        return self.shapes[name][1]

    def call(self, item_ids):
        """Codes of every feature for `item_ids` [n]: name -> [n, ...]."""
        return {name: ops.take(table, item_ids, axis=0) for name, table in self.tables.items()}

    def get_config(self):
        return {**super().get_config(), "shapes": self.shapes}


@register
class HistoryFeatures(layers.Layer):
    """What a history says about its user: pooled embeddings, and the last few kept apart.

    The input is item ids `[batch, history_length]`, 0-padded on the left. The output concatenates
    the mean of all embeddings; with `recency`, their mean under learned weights that depend on how
    many steps ago an item was watched; and the embeddings of the `last` most recent items.
    Padding never changes the output.

    Args:
        num_items: size of the catalogue.
        dim: size of an item's embedding.
        recency: add the recency-weighted mean.
        last: how many of the most recent items are kept apart.
    """

    def __init__(self, num_items, dim, recency=True, last=3, **kwargs):
        super().__init__(**kwargs)
        self.num_items, self.dim, self.recency, self.last = num_items, dim, recency, last
        self.embedding = _embedding(num_items + 1, dim, "history")

    def build(self, input_shape):
        self.embedding.build(input_shape)
        if self.recency:
            # One logit for each step back in time; it starts as a gentle preference for the recent.
            steps_back = np.arange(input_shape[-1])[::-1]
            self.recency_logits = self.add_weight(
                shape=(input_shape[-1],),
                name="recency_logits",
                initializer=lambda _, dtype=None: ops.convert_to_tensor(
                    -np.log1p(steps_back), dtype=dtype
                ),
            )

    def call(self, history):
        """Map `history` [batch, history_length] to [batch, dim * (1 + recency + last)]."""
        present = ops.cast(ops.not_equal(history, 0), self.compute_dtype)
        length = history.shape[1]
        # Every kind of pooling is a row of weights over the steps, so all are one matrix product.
        weights = [present]
        if self.recency:
            weights.append(ops.exp(self.recency_logits[-length:]) * present)
        weights = [w / ops.maximum(ops.sum(w, 1, keepdims=True), 1e-9) for w in weights]
        weights += [
            present * ops.one_hot(length - step, length, dtype=present.dtype)
            for step in range(1, self.last + 1)
        ]
        pooled = ops.matmul(ops.stack(weights, 1), self.embedding(history))  # (batch, rows, dim)
        return ops.reshape(pooled, (-1, len(weights) * self.dim))

    def get_config(self):
        config = {"num_items": self.num_items, "dim": self.dim}
        return {**super().get_config(), **config, "recency": self.recency, "last": self.last}

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.dim * (1 + int(self.recency) + self.last))


# --- Factorization machine --------------------------------------------------------------------


@register
class FMUserTower(layers.Layer):
    """The user's half of a factorization machine: `[1; sum_u x_u v_u]`, [batch, 1 + dim].

    The user's side of the feature vector x is the profile (one indicator a field), and, if
    `use_history`, the history as a bag of items with x = 1/(number of items) and one indicator
    field for each of the `last` most recent items. Every field has its own rows of one table, so
    this is still a factorization machine (Rendle 2010, equation 1).

    Args:
        sizes: number of codes of `user_id`, `gender`, `age` and `occupation`, padding included.
        num_items: size of the catalogue.
        dim: number of factors k.
        use_history: False gives the classical model, profile fields only.
        last: how many of the most recent items have a field of their own.
    """

    def __init__(self, sizes, num_items, dim, use_history=True, last=3, **kwargs):
        super().__init__(**kwargs)
        self.sizes, self.num_items, self.dim = dict(sizes), num_items, dim
        self.use_history, self.last = use_history, last
        blocks = [sizes[name] for name in PROFILE]
        if use_history:
            blocks += [num_items + 1] * (1 + last)
        self.offsets = [0, *np.cumsum(blocks).tolist()]  # where each field's rows begin
        self.factors = _embedding(self.offsets[-1], dim, "factors")

    def build(self, input_shape):
        self.factors.build(None)

    def encode(self, inputs):
        """The sparse feature vector x of each user, as (feature ids, values), both [batch, n]."""
        fields = [inputs[name][:, None] for name in PROFILE]  # each (batch, 1)
        if self.use_history:
            history = inputs["history"]  # (batch, history_length)
            fields += [history] + [
                history[:, -i : history.shape[1] - i + 1] for i in range(1, self.last + 1)
            ]
        ids, values = [], []
        for offset, field in zip(self.offsets, fields, strict=False):
            present = ops.cast(ops.not_equal(field, 0), self.compute_dtype)
            ids.append(field + offset)
            values.append(present / ops.maximum(ops.sum(present, 1, keepdims=True), 1.0))
        return ops.concatenate(ids, 1), ops.concatenate(values, 1)

    def vector(self, ids, values):
        """User vectors [batch, 1 + dim] of any sparse x, given as ids and values [batch, n]."""
        factors = ops.matmul(values[:, None, :], self.factors(ids))[:, 0]  # (batch, dim)
        return ops.concatenate([ops.ones_like(factors[:, :1]), factors], 1)

    def call(self, inputs):
        """Map the inputs to user vectors, [batch, 1 + dim]."""
        return self.vector(*self.encode(inputs))

    def get_config(self):
        config = {"sizes": self.sizes, "num_items": self.num_items, "dim": self.dim}
        return {
            **super().get_config(),
            **config,
            "use_history": self.use_history,
            "last": self.last,
        }


@register
class FMItemTower(layers.Layer):
    """The item's half: `[sum_t w_t x_t + interactions within the item; sum_t x_t v_t]`.

    The item's features are its id, its genres and its release year, x = 1 each. What depends on
    the user alone is missing from the score: it cannot change an order (Rendle 2010, equation 1,
    split by side).

    Args:
        item_features: arrays from `samples.item_features`, or the `ItemFeatures` made of them.
        dim: number of factors k.
    """

    def __init__(self, item_features, dim, **kwargs):
        super().__init__(**kwargs)
        self.item_features, self.dim = _item_features(item_features), dim
        sizes = [self.item_features.num_items + 1]
        sizes += [self.item_features.vocabulary_size(name) for name in ("genres", "year")]
        self.offsets = [0, *np.cumsum(sizes).tolist()]
        self.factors = _embedding(self.offsets[-1], dim, "factors")
        self.linear = EmbeddingTable(self.offsets[-1], 1, embeddings_initializer="zeros")

    def build(self, input_shape):
        self.factors.build(None)
        self.linear.build(None)

    def encode(self, item_ids):
        """The sparse feature vector x of each item, as (feature ids, values), both [n, m]."""
        features = self.item_features(item_ids)
        fields = [item_ids[:, None], features["genres"], features["year"][:, None]]
        ids = [field + offset for field, offset in zip(fields, self.offsets, strict=False)]
        present = [ops.cast(ops.not_equal(field, 0), self.compute_dtype) for field in fields]
        return ops.concatenate(ids, 1), ops.concatenate(present, 1)

    def vector(self, ids, values):
        """Item vectors [n, 1 + dim] of any sparse x, given as ids and values [n, m]."""
        weighted = self.factors(ids) * values[..., None]  # (n, m, dim)
        linear = ops.sum(self.linear(ids)[..., 0] * values, 1)
        own_score = linear + fm_interactions(weighted)
        return ops.concatenate([own_score[:, None], ops.sum(weighted, 1)], 1)

    def call(self, item_ids):
        """Map item ids [n] to item vectors, [n, 1 + dim]."""
        return self.vector(*self.encode(item_ids))

    def get_config(self):
        return {
            **super().get_config(),
            "dim": self.dim,
            "item_features": keras.saving.serialize_keras_object(self.item_features),
        }


# --- DSSM -------------------------------------------------------------------------------------


@register
class DSSMUserTower(layers.Layer):
    """A deep tower over the user's profile and history, normalised to length one, [batch, dim].

    The history is seen as in `HistoryFeatures`. After Huang et al. 2013, figure 1, whose towers
    read bags of letter trigrams; here the sparse features are the fields of a recommender.

    Args:
        sizes: number of codes of `user_id`, `gender`, `age` and `occupation`, padding included.
        num_items: size of the catalogue.
        dim: size of the output, the same as the item tower's.
        hidden: sizes of the hidden layers.
        dropout: share of the tower's input that is dropped in training.
        recency, last: see `HistoryFeatures`.
    """

    def __init__(
        self, sizes, num_items, dim, hidden=(256,), dropout=0.2, recency=True, last=3, **kwargs
    ):
        super().__init__(**kwargs)
        self.sizes, self.num_items, self.dim = dict(sizes), num_items, dim
        self.hidden, self.dropout, self.recency, self.last = tuple(hidden), dropout, recency, last
        self.profile = {
            name: _embedding(sizes[name], _width(sizes[name], dim), name) for name in PROFILE
        }
        self.history = HistoryFeatures(num_items, dim, recency, last)
        self.drop = layers.Dropout(dropout)
        self.network = _network(hidden, dim)

    def build(self, input_shape):
        _build_user_tower(self, input_shape)

    def call(self, inputs, training=False):
        """Map the inputs to user vectors of length one, [batch, dim]."""
        parts = [self.profile[name](inputs[name]) for name in PROFILE]
        parts.append(self.history(inputs["history"]))
        wide = self.drop(ops.concatenate(parts, -1), training=training)
        return l2_normalize(self.network(wide))

    def get_config(self):
        config = {"sizes": self.sizes, "num_items": self.num_items, "dim": self.dim}
        return {
            **super().get_config(),
            **config,
            "hidden": self.hidden,
            "dropout": self.dropout,
            "recency": self.recency,
            "last": self.last,
        }


@register
class DSSMItemTower(layers.Layer):
    """A deep tower over the item's id, genres and release year, normalised to length one, [n, dim].

    Args:
        item_features: arrays from `samples.item_features`, or the `ItemFeatures` made of them.
        dim: size of the output, the same as the user tower's.
        hidden: sizes of the hidden layers.
    """

    def __init__(self, item_features, dim, hidden=(256,), **kwargs):
        super().__init__(**kwargs)
        self.item_features = _item_features(item_features)
        self.dim, self.hidden = dim, tuple(hidden)
        self.ids = _embedding(self.item_features.num_items + 1, dim, "item_id")
        self.genres, self.year = (
            _embedding(self.item_features.vocabulary_size(name), dim // 4, name)
            for name in ("genres", "year")
        )
        self.network = _network(hidden, dim)

    def build(self, input_shape):
        for table in (self.ids, self.genres, self.year):
            table.build(None)
        self.network.build((None, self.dim + 2 * (self.dim // 4)))

    def call(self, item_ids):
        """Map item ids [n] to item vectors of length one, [n, dim]."""
        features = self.item_features(item_ids)
        genres = masked_mean(self.genres(features["genres"]), features["genres"])
        parts = [self.ids(item_ids), genres, self.year(features["year"])]
        return l2_normalize(self.network(ops.concatenate(parts, -1)))

    def get_config(self):
        return {
            **super().get_config(),
            "dim": self.dim,
            "hidden": self.hidden,
            "item_features": keras.saving.serialize_keras_object(self.item_features),
        }


# --- YouTubeDNN -------------------------------------------------------------------------------


@register
class YouTubeDNNUserTower(layers.Layer):
    """The candidate generation network of YouTube (Covington et al. 2016, figure 3), [batch, dim].

    Watch history and search tokens are embedded and pooled, and concatenated with the
    demographics and the age of the training example. It does not read the user id: a user is what
    they watched.

    Args:
        sizes: number of codes of `gender`, `age` and `occupation`, padding included.
        num_items: size of the catalogue.
        num_tokens: number of codes of the search tokens, padding included.
        dim: size of the output and of an item's embedding.
        hidden: sizes of the ReLU layers below the output.
        dropout: share of the network's input that is dropped in training.
        recency, last: see `HistoryFeatures`; False and 0 give the paper's plain average.
        example_age_scale: days by which `example_age` is divided, such as its mean in training;
            None ignores the input.
        normalize: give the vectors length one; the paper leaves them as they are.
    """

    def __init__(
        self,
        sizes,
        num_items,
        num_tokens,
        dim,
        hidden=(256,),
        dropout=0.2,
        recency=True,
        last=3,
        example_age_scale=None,
        normalize=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.sizes, self.num_items, self.num_tokens, self.dim = (
            dict(sizes),
            num_items,
            num_tokens,
            dim,
        )
        self.hidden, self.dropout, self.recency, self.last = tuple(hidden), dropout, recency, last
        self.example_age_scale, self.normalize = example_age_scale, normalize
        self.profile = {
            name: _embedding(sizes[name], _width(sizes[name], dim), name) for name in PROFILE[1:]
        }
        self.history = HistoryFeatures(num_items, dim, recency, last)
        self.search = _embedding(num_tokens, dim // 4, "search")
        self.drop = layers.Dropout(dropout)
        self.network = _network(hidden, dim)

    def build(self, input_shape):
        self.search.build(None)
        ages = 0 if self.example_age_scale is None else 3
        _build_user_tower(self, input_shape, self.dim // 4 + ages)

    def call(self, inputs, training=False):
        """Map the inputs to user vectors, [batch, dim]."""
        parts = [self.profile[name](inputs[name]) for name in PROFILE[1:]]
        parts.append(self.history(inputs["history"]))
        parts.append(masked_mean(self.search(inputs["search"]), inputs["search"]))
        wide = self.drop(ops.concatenate(parts, -1), training=training)
        if self.example_age_scale is not None:
            # With its powers, as in section 4.2 of the paper; one number must not be dropped.
            age = ops.cast(inputs["example_age"], self.compute_dtype) / self.example_age_scale
            wide = ops.concatenate([wide, ops.stack([age, ops.sqrt(age), age**2], -1)], -1)
        vectors = self.network(wide)  # (batch, dim)
        return l2_normalize(vectors) if self.normalize else vectors

    def get_config(self):
        config = {
            "sizes": self.sizes,
            "num_items": self.num_items,
            "dim": self.dim,
            "num_tokens": self.num_tokens,
            "example_age_scale": self.example_age_scale,
        }
        return {
            **super().get_config(),
            **config,
            "hidden": self.hidden,
            "dropout": self.dropout,
            "recency": self.recency,
            "last": self.last,
            "normalize": self.normalize,
        }


@register
class ItemEmbeddingTower(layers.Layer):
    """YouTubeDNN's item side: one row of an embedding table for each item, [n, dim].

    Args:
        num_items: size of the catalogue.
        dim: size of an item's vector.
        normalize: give the vectors length one.
    """

    def __init__(self, num_items, dim, normalize=True, **kwargs):
        super().__init__(**kwargs)
        self.num_items, self.dim, self.normalize = num_items, dim, normalize
        self.embedding = _embedding(num_items + 1, dim, "items")

    def build(self, input_shape):
        self.embedding.build(None)

    def call(self, item_ids):
        """Map item ids [n] to item vectors, [n, dim]."""
        vectors = self.embedding(item_ids)
        return l2_normalize(vectors) if self.normalize else vectors

    def get_config(self):
        config = {"num_items": self.num_items, "dim": self.dim, "normalize": self.normalize}
        return {**super().get_config(), **config}


def _item_features(value):
    if isinstance(value, dict) and "class_name" in value:
        return keras.saving.deserialize_keras_object(value)
    return value if isinstance(value, ItemFeatures) else ItemFeatures(value)


def _width(size, dim):
    """Size of a profile field's embedding: small fields need no more than a few numbers."""
    return dim if size > 100 else dim // 4


def _network(hidden, dim):
    stack = [layers.Dense(units, activation="relu") for units in hidden]
    return keras.Sequential([*stack, layers.Dense(dim)])


def _build_user_tower(tower, input_shape, extra=0):
    """Build the sublayers of a deep user tower: Keras saves only what has been built."""
    for table in tower.profile.values():
        table.build(None)
    tower.history.build(input_shape["history"])
    width = sum(table.output_dim for table in tower.profile.values()) + extra
    tower.network.build((None, width + tower.history.compute_output_shape((None, 0))[1]))
