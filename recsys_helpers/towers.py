"""The towers: three ways to turn a user, and three ways to turn an item, into one vector.

A user tower maps a dictionary of inputs (see `recsys_helpers.samples`) to `[batch, d]`; an item
tower maps item ids to `[n, d]` and looks the items' features up in a table it holds. The score of
a pair is always the dot product of the two vectors, so everything downstream sees only arrays.

A user tower can also be asked for the vectors of many moments at once: when `example_age` has the
shape `[batch, positions]` instead of `[batch]`, its output is `[batch, positions, d]`, the user
after each of the last `positions` items of the history. The weights, and the vectors, are the same
as those of one window for each moment; only the rows of a history are read once.

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
    """Mean of `embeddings` [..., n, k] over the places where `ids` [..., n] is not padding.

    A row that is all padding has mean zero.
    """
    mask = ops.cast(ops.not_equal(ids, 0), embeddings.dtype)[..., None]  # (..., n, 1)
    return ops.sum(embeddings * mask, -2) / ops.maximum(ops.sum(mask, -2), 1.0)


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


def num_positions(inputs):
    """How many vectors are asked for: None for [batch, d], else T for [batch, T, d]."""
    shape = inputs["example_age"].shape
    return None if len(shape) == 1 else shape[1]


def window_means(embeddings, present, weights, positions):
    """Weighted means over the windows that end at each of the last positions.

    All kinds of pooling and all positions are one matrix product: position t sees the same weights
    as position t - 1, moved along by one step.

    Args:
        embeddings: of a history [batch, steps, dim], zero where it is padding.
        present: 0.0 where the history is padding, else 1.0, [batch, steps].
        weights: [kinds, length], the last column for the most recent step of a window.
        positions: how many windows end at the last steps, one at each.

    Returns:
        [batch, positions, kinds, dim], normalised by the weights that are present; 0 if none is.
    """
    (kinds, length), steps = weights.shape, embeddings.shape[1]
    place = np.arange(steps) - np.arange(steps - positions, steps)[:, None] + length - 1
    place = np.where((place >= 0) & (place < length), place, length)  # (positions, steps)
    bands = ops.take(ops.pad(weights, ((0, 0), (0, 1))), place, axis=1)
    bands = ops.reshape(ops.swapaxes(bands, 0, 1), (positions * kinds, steps))
    total = ops.matmul(present, ops.transpose(bands))[..., None]  # (batch, positions * kinds, 1)
    means = ops.matmul(bands, embeddings) / ops.maximum(total, 1e-9)
    return ops.reshape(means, (-1, positions, kinds, embeddings.shape[2]))


@register
class HistoryFeatures(layers.Layer):
    """What a history says about its user: pooled embeddings, and the last few kept apart.

    The input is item ids `[batch, steps]`, 0-padded on the left. The output concatenates, for the
    window that ends at each of the last positions, the mean of its embeddings; with `recency`,
    their mean under learned weights that depend on how many steps ago an item was watched; and the
    embeddings of the `last` most recent items. Padding never changes the output.

    Args:
        num_items: size of the catalogue.
        dim: size of an item's embedding.
        recency: add the recency-weighted mean.
        last: how many of the most recent items are kept apart.
        length: items in a window.
    """

    def __init__(self, num_items, dim, recency=True, last=3, length=50, **kwargs):
        super().__init__(**kwargs)
        self.num_items, self.dim, self.recency, self.last = num_items, dim, recency, last
        self.length = length
        self.embedding = _embedding(num_items + 1, dim, "history")
        self.width = dim * (1 + int(recency) + last)

    def build(self, input_shape):
        self.embedding.build(None)
        if self.recency:
            # One logit for each step back in time; it starts as a gentle preference for the recent.
            start = -np.log1p(np.arange(self.length)[::-1])
            self.recency_logits = self.add_weight(
                shape=(self.length,),
                name="recency_logits",
                initializer=lambda _, dtype=None: ops.convert_to_tensor(start, dtype=dtype),
            )

    def call(self, history, positions=1):
        """Map `history` [batch, steps] to [batch, positions, width]."""
        rows = [ops.ones((self.length,), self.compute_dtype)]
        if self.recency:
            rows.append(ops.exp(self.recency_logits))
        rows += [
            ops.one_hot(self.length - 1 - i, self.length, dtype=rows[0].dtype)
            for i in range(self.last)
        ]
        present = ops.cast(ops.not_equal(history, 0), rows[0].dtype)
        embeddings = self.embedding(history) * present[..., None]  # (batch, steps, dim)
        pooled = window_means(embeddings, present, ops.stack(rows), positions)
        return ops.reshape(pooled, (-1, positions, self.width))


# --- Factorization machine --------------------------------------------------------------------


@register
class FMUserTower(layers.Layer):
    """The user's half of a factorization machine: `[1; sum_u x_u v_u]`, [batch, 1 + dim].

    The user's side of the feature vector x is the profile (one indicator a field), and, if
    `use_history`, the history as a bag of items twice, once with x = 1/(number of items) and once
    with x proportional to 1/s for the item s steps back, and one indicator field for each of the
    `last` most recent items. Every field has its own rows of one table, so this is still a
    factorization machine (Rendle 2010, equation 1).

    Args:
        sizes: number of codes of `user_id`, `gender`, `age` and `occupation`, padding included.
        num_items: size of the catalogue.
        dim: number of factors k.
        use_history: False gives the classical model, profile fields only.
        last: how many of the most recent items have a field of their own.
        length: how many items of a history are read.
        dropout: share of the numbers in each field's part of the sum that is dropped in training.
    """

    def __init__(
        self, sizes, num_items, dim, use_history=True, last=3, length=50, dropout=0.0, **kwargs
    ):
        super().__init__(**kwargs)
        self.sizes, self.num_items, self.dim = dict(sizes), num_items, dim
        self.use_history, self.last, self.length = use_history, last, length
        # x of each place in a window, before padding is left out: of the two bags of items.
        back = np.arange(length, 0, -1)
        self.bags = np.array([np.ones(length), 1 / back] if use_history else [], "float32")
        fields = len(self.bags) + (last if use_history else 0)
        blocks = [sizes[name] for name in PROFILE] + [num_items + 1] * fields
        self.offsets = [0, *np.cumsum(blocks).tolist()]  # where each field's rows begin
        self.factors = _embedding(self.offsets[-1], dim, "factors")
        self.drop = layers.Dropout(dropout)

    def build(self, input_shape):
        self.factors.build(None)

    def encode(self, inputs):
        """The sparse feature vector x of each user, as (feature ids, values), both [batch, n].

        `inputs["history"]` must be no longer than `length`.
        """
        history, one = inputs["history"], np.ones(1)
        steps = history.shape[1]
        fields = [(inputs[name][:, None], one) for name in PROFILE]
        fields += [(history, bag[-steps:]) for bag in self.bags]
        if self.use_history:
            fields += [(history[:, steps - 1 - i : steps - i], one) for i in range(self.last)]
        ids, values = [], []
        for offset, (field, x) in zip(self.offsets, fields, strict=False):
            x = ops.cast(x, self.compute_dtype) * ops.cast(
                ops.not_equal(field, 0), self.compute_dtype
            )
            ids.append(field + offset)
            values.append(x / ops.maximum(ops.sum(x, 1, keepdims=True), 1e-9))
        return ops.concatenate(ids, 1), ops.concatenate(values, 1)

    def call(self, inputs, training=False):
        """Map the inputs to user vectors, [batch, 1 + dim] or [batch, positions, 1 + dim]."""
        asked = num_positions(inputs)
        positions, history = asked or 1, inputs["history"]
        steps = history.shape[1]
        offset = iter(self.offsets)
        parts = [  # each field's part of the sum, (batch, 1 or positions, dim)
            self._factors(inputs[name][:, None], next(offset)) for name in PROFILE
        ]
        present = ops.cast(ops.not_equal(history, 0), self.compute_dtype)
        for bag in self.bags:
            weights = ops.cast(bag[None], self.compute_dtype)
            factors = self._factors(history, next(offset))
            parts.append(window_means(factors, present, weights, positions)[:, :, 0])
        padded = ops.pad(history, ((0, 0), (self.last, 0)))
        for back in range(self.last if self.use_history else 0):
            end = self.last + steps - back
            parts.append(self._factors(padded[:, end - positions : end], next(offset)))
        user = sum(self.drop(part, training=training) for part in parts)
        user = ops.broadcast_to(user, (ops.shape(history)[0], positions, self.dim))
        vectors = ops.concatenate([ops.ones_like(user[..., :1]), user], -1)
        return vectors if asked else vectors[:, 0]

    def _factors(self, ids, offset):
        """The factors of a field's ids [batch, n], zero for padding, [batch, n, dim]."""
        return (
            self.factors(ids + offset)
            * ops.cast(ops.not_equal(ids, 0), self.compute_dtype)[..., None]
        )


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


class _DeepUserTower(layers.Layer):
    """What the deep user towers share: profile fields, history, and a network above them."""

    def __init__(
        self, fields, sizes, num_items, dim, hidden, dropout, recency, last, length, kwargs
    ):
        super().__init__(**kwargs)
        self.profile = {
            name: _embedding(sizes[name], _width(sizes[name], dim), name) for name in fields
        }
        self.history = HistoryFeatures(num_items, dim, recency, last, length)
        self.drop = layers.Dropout(dropout)
        self.network = _network(hidden, dim)

    extra_width = 0  # of what a tower adds to the parts below

    def build(self, input_shape):
        for part in (*self.profile.values(), self.history):
            part.build(None)
        profile_width = sum(table.output_dim for table in self.profile.values())
        self.network.build((None, None, profile_width + self.history.width + self.extra_width))

    def parts(self, inputs):
        """Embedded profile and pooled history, each [batch, positions, width]."""
        positions = num_positions(inputs) or 1
        profile = [
            ops.repeat(table(inputs[name])[:, None], positions, axis=1)
            for name, table in self.profile.items()
        ]
        return [*profile, self.history(inputs["history"], positions=positions)]


@register
class DSSMUserTower(_DeepUserTower):
    """A deep tower over the user's profile and history, normalised to length one, [batch, dim].

    The history is seen as in `HistoryFeatures`. After Huang et al. 2013, figure 1, whose towers
    read bags of letter trigrams; here the sparse features are the fields of a recommender.

    Args:
        sizes: number of codes of `user_id`, `gender`, `age` and `occupation`, padding included.
        num_items: size of the catalogue.
        dim: size of the output, the same as the item tower's.
        hidden: sizes of the hidden layers.
        dropout: share of the tower's input that is dropped in training.
        recency, last, length: see `HistoryFeatures`.
    """

    def __init__(
        self,
        sizes,
        num_items,
        dim,
        hidden=(256,),
        dropout=0.2,
        recency=True,
        last=3,
        length=50,
        **kwargs,
    ):
        super().__init__(
            PROFILE, sizes, num_items, dim, hidden, dropout, recency, last, length, kwargs
        )

    def call(self, inputs, training=False):
        """Map the inputs to unit vectors, [batch, dim] or [batch, positions, dim]."""
        wide = self.drop(ops.concatenate(self.parts(inputs), -1), training=training)
        vectors = l2_normalize(self.network(wide))  # (batch, positions, dim)
        return vectors if num_positions(inputs) else vectors[:, 0]


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
class YouTubeDNNUserTower(_DeepUserTower):
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
        recency, last, length: see `HistoryFeatures`; False and 0 give the paper's plain average.
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
        length=50,
        example_age_scale=None,
        normalize=True,
        **kwargs,
    ):
        super().__init__(
            PROFILE[1:], sizes, num_items, dim, hidden, dropout, recency, last, length, kwargs
        )
        self.example_age_scale, self.normalize = example_age_scale, normalize
        self.search = _embedding(num_tokens, dim // 4, "search")

    def build(self, input_shape):
        self.search.build(None)
        self.extra_width = self.search.output_dim + (0 if self.example_age_scale is None else 3)
        super().build(input_shape)

    def call(self, inputs, training=False):
        """Map the inputs to user vectors, [batch, dim] or [batch, positions, dim]."""
        positions = num_positions(inputs)
        search, age = inputs["search"], inputs["example_age"]
        if positions is None:
            search, age = search[:, None], age[:, None]
        parts = [*self.parts(inputs), masked_mean(self.search(search), search)]
        wide = self.drop(ops.concatenate(parts, -1), training=training)
        if self.example_age_scale is not None:
            # With its powers, as in section 4.1 of the paper; one number must not be dropped.
            age = ops.cast(age, self.compute_dtype) / self.example_age_scale
            wide = ops.concatenate([wide, ops.stack([age, ops.sqrt(age), age**2], -1)], -1)
        vectors = self.network(wide)  # (batch, positions, dim)
        vectors = l2_normalize(vectors) if self.normalize else vectors
        return vectors if positions else vectors[:, 0]


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


# --- One step further: self-attention -----------------------------------------------------------


@register
class CausalAttention(layers.Layer):
    """Multi-head attention of each step to itself and to the steps before it.

    What a step gives to another is `softmax(q_i k_j / sqrt(w) + b_(i-j))` (Vaswani et al. 2017,
    equation 1), with one learned number `b` for each head and distance instead of an embedding of
    absolute positions (Shaw et al. 2018): a moment then looks the same wherever it is in a row.

    Args:
        dim: size of the input and of the output.
        heads: number of heads, each `dim / heads` wide.
        length: distances told apart; what is further away is not seen.
    """

    def __init__(self, dim, heads, length, **kwargs):
        super().__init__(**kwargs)
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, received {dim} and {heads}.")
        self.dim, self.heads, self.length = dim, heads, length
        self.mix, self.out = layers.Dense(3 * dim), layers.Dense(dim)

    def build(self, input_shape):
        self.mix.build((None, None, self.dim))
        self.out.build((None, None, self.dim))
        # It starts as a gentle preference for the recent, like the weights of `HistoryFeatures`.
        start = np.tile(-np.log1p(np.arange(self.length)), (self.heads, 1))
        self.distance_logits = self.add_weight(
            shape=start.shape,
            name="distance_logits",
            initializer=lambda _, dtype=None: ops.convert_to_tensor(start, dtype=dtype),
        )

    def call(self, x, present):
        """Map `x` [batch, steps, dim] to the same shape; `present` [batch, steps] is no padding."""
        steps, width = x.shape[1], self.dim // self.heads
        queries, keys, values = (
            ops.swapaxes(ops.reshape(part, (-1, steps, self.heads, width)), 1, 2)
            for part in ops.split(self.mix(x), 3, axis=-1)
        )  # each (batch, heads, steps, width)
        logits = ops.matmul(queries * width**-0.5, ops.swapaxes(keys, 2, 3))
        distance = np.arange(steps)[:, None] - np.arange(steps)
        seen = (distance >= 0) & (distance < self.length)
        bias = ops.take(self.distance_logits, np.where(seen, distance, 0), axis=1)
        bias = ops.where(seen, bias, -1e9)  # (heads, steps, steps)
        padding = ops.where(present, 0.0, -1e9)[:, None, None, :]
        weights = ops.softmax(logits + (bias + padding), -1)
        found = ops.swapaxes(ops.matmul(weights, values), 1, 2)  # (batch, steps, heads, width)
        return self.out(ops.reshape(found, (-1, steps, self.dim)))


@register
class SelfAttentiveUserTower(_DeepUserTower):
    """A user tower that also reads the history by causal self-attention, [batch, dim].

    The attention blocks are those of SASRec (Kang and McAuley 2018), but with layer normalisation
    before each sublayer and with relative positions (see `CausalAttention`). What they make of the
    last step joins what a `YouTubeDNNUserTower` reads, but for the example age, and a network above
    all of it makes the vector. Every step attends to what came before it only, so the vectors of
    all positions come out of one pass over the history.

    Args:
        sizes: number of codes of `gender`, `age` and `occupation`, padding included.
        num_items: size of the catalogue.
        num_tokens: number of codes of the search tokens, padding included.
        dim: size of the item embeddings and of the output.
        hidden: sizes of the ReLU layers below the output.
        blocks: number of attention blocks; 0 leaves attention out.
        heads: attention heads of a block.
        dropout: share dropped of the embeddings, of the sublayers' outputs and of the network's
            input.
        reach: how many steps back a step may look.
        recency, last, length: see `HistoryFeatures`.
        normalize: give the vectors length one.
    """

    def __init__(
        self,
        sizes,
        num_items,
        num_tokens,
        dim,
        hidden=(256,),
        blocks=1,
        heads=2,
        dropout=0.2,
        reach=100,
        recency=True,
        last=3,
        length=50,
        normalize=True,
        **kwargs,
    ):
        super().__init__(
            PROFILE[1:], sizes, num_items, dim, hidden, dropout, recency, last, length, kwargs
        )
        self.dim, self.normalize = dim, normalize
        self.search = _embedding(num_tokens, dim // 4, "search")
        self.blocks = [
            (
                layers.LayerNormalization(epsilon=1e-6),
                CausalAttention(dim, heads, reach),
                layers.LayerNormalization(epsilon=1e-6),
                _network((dim,), dim),
            )
            for _ in range(blocks)
        ]
        # The last one starts small, like the embeddings beside its output, so as not to drown them.
        self.norms = [
            layers.LayerNormalization(
                epsilon=1e-6, gamma_initializer=keras.initializers.Constant(g)
            )
            for g in ((1.0, 0.1) if blocks else ())
        ]

    def build(self, input_shape):
        self.search.build(None)
        for part in (*self.norms, *(part for block in self.blocks for part in block)):
            part.build((None, None, self.dim))
        self.extra_width = self.search.output_dim + (self.dim if self.blocks else 0)
        super().build(input_shape)

    def attended(self, history, positions, training):
        """What attention makes of the last `positions` steps, 0 for padding, [batch, T, dim]."""
        first, final = self.norms
        present = ops.not_equal(history, 0)
        x = first(self.history.embedding(history))  # (batch, steps, dim)
        x = self.drop(x, training=training)
        for norm, attention, norm2, network in self.blocks:
            x = x + self.drop(attention(norm(x), present), training=training)
            x = x + self.drop(network(norm2(x)), training=training)
        return final(x[:, -positions:]) * ops.cast(present, x.dtype)[:, -positions:, None]

    def call(self, inputs, training=False):
        """Map the inputs to user vectors, [batch, dim] or [batch, positions, dim]."""
        positions, search = num_positions(inputs), inputs["search"]
        search = search if positions else search[:, None]
        parts = [*self.parts(inputs), masked_mean(self.search(search), search)]
        if self.blocks:
            parts.append(self.attended(inputs["history"], positions or 1, training))
        wide = self.drop(ops.concatenate(parts, -1), training=training)
        vectors = self.network(wide)  # (batch, positions, dim)
        vectors = l2_normalize(vectors) if self.normalize else vectors
        return vectors if positions else vectors[:, 0]


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
