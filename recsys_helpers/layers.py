"""The kit that towers are made of: tables, pooled histories, networks.

A tower is a Keras layer with a constructor and a `call`; everything here may be used in one, and
nothing here has to be. `Tower` spares a layer its `get_config`: it keeps each argument of its
constructor as an attribute of the same name.

Written with `keras.ops` alone, so it runs on every Keras backend. Sums, means and lengths are
computed in float32 at least, also where a layer computes in float16 or bfloat16.
"""

from __future__ import annotations

import inspect

import keras
import numpy as np
from keras import layers, ops

register = keras.saving.register_keras_serializable(package="recsys_helpers")


class Tower(layers.Layer):
    """A layer whose configuration is the arguments of its constructor.

    Each argument must be kept as an attribute of its name. Arguments may be numbers, text, their
    lists and dicts, layers (a table that two towers share is one table again once it is loaded) and
    lists of them, and registered classes of layers.
    """

    def get_config(self):
        """The arguments of the constructor, as Keras can serialise them."""
        config = super().get_config()
        for name in self._arguments():
            config[name] = _plain(getattr(self, name))
        return config

    def get_build_config(self):
        """Nothing: towers are built by being called."""

    @classmethod
    def from_config(cls, config):
        """The layer of a configuration, without its weights."""
        return super().from_config({name: _restored(value) for name, value in config.items()})

    @classmethod
    def _arguments(cls):
        """Names of the constructor's arguments, those passed on to parent classes included."""
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return [
            parameter.name
            for kind in cls.__mro__[: cls.__mro__.index(Tower)]
            if "__init__" in vars(kind)
            for parameter in list(inspect.signature(kind.__init__).parameters.values())[1:]
            if parameter.kind in named
        ]


def _plain(value):
    if isinstance(value, type):
        return {"registered_class": keras.saving.get_registered_name(value)}
    if isinstance(value, dict):
        return dict(value)
    return list(value) if isinstance(value, (list, tuple)) else value


def _restored(value):
    if isinstance(value, dict) and "registered_class" in value:
        return keras.saving.get_registered_object(value["registered_class"])
    if isinstance(value, dict) and value.get("registered_name"):  # a layer, not a policy of dtypes
        return keras.saving.deserialize_keras_object(value)
    if isinstance(value, list):  # of layers, or of anything
        return [_restored(one) for one in value]
    return value


def at_least_float32(tensor):
    """The tensor in float32, or in float64 if that is what it is."""
    known = keras.backend.standardize_dtype(tensor.dtype)
    return ops.cast(tensor, "float64" if known == "float64" else "float32")


def not_padding(ids, dtype="float32"):
    """1.0 where there is an id, 0.0 for padding; of the same shape."""
    return ops.cast(ops.not_equal(ids, 0), dtype)


def masked_mean(embeddings, ids):
    """Mean of `embeddings` [..., n, k] where `ids` [..., n] is not padding; 0 if all is."""
    dtype = embeddings.dtype
    embeddings = at_least_float32(embeddings)
    mask = not_padding(ids, embeddings.dtype)[..., None]  # (..., n, 1)
    mean = ops.sum(embeddings * mask, -2) / ops.maximum(ops.sum(mask, -2), 1.0)
    return ops.cast(mean, dtype)


def l2_normalize(vectors):
    """Vectors of length one: their dot product is the cosine.

    What `ops.normalize` gives, whose gradient is NaN for a vector of zeros on JAX and PyTorch.
    """
    vectors = at_least_float32(vectors)
    squares = ops.sum(ops.square(vectors), axis=-1, keepdims=True)
    scale = ops.rsqrt(ops.maximum(squares, 1e-16))  # below that it's the next line's all the same
    return vectors * ops.minimum(scale, 1 / keras.config.epsilon())


def num_positions(inputs):
    """T, the number of moments whose vectors are asked for: the width of `example_age` [b, T]."""
    return ops.shape(inputs["example_age"])[1]


def network(hidden, dim):
    """ReLU layers of the sizes `hidden` below a linear one of size `dim`."""
    stack = [layers.Dense(units, activation="relu") for units in hidden]
    return keras.Sequential([*stack, layers.Dense(dim)])


@register
class EmbeddingTable(Tower):
    """An embedding whose gradient is summed over repeated ids before the optimizer sees it.

    On TensorFlow `keras.layers.Embedding` hands Adam and Adagrad one gradient for each occurrence
    of a row, and they square each by itself; a popular movie occurs many times in every batch, so
    its steps come out wrong. Reading the table through an (identity) operation makes the gradient
    one dense array, which is exact, and for catalogues of thousands of items also the faster way.
    Only training needs that copy of the table. Large catalogues: `recsys_helpers.rowwise`.

    Args:
        rows: number of rows, padding included.
        dim: length of a row.
        stddev: of the normal distribution that the rows start from.
    """

    def __init__(self, rows, dim, stddev=0.05, **kwargs):
        super().__init__(**kwargs)
        self.rows, self.dim, self.stddev = rows, dim, stddev
        start = keras.initializers.RandomNormal(stddev=stddev) if stddev else "zeros"
        self.embeddings = self.add_weight((rows, dim), start, name="embeddings")
        self.built = True

    def call(self, ids, training=None):
        """Map ids of any shape to [..., dim]."""
        table = self.embeddings if training is False else self.embeddings * 1.0
        return ops.take(table, ops.cast(ids, "int32"), axis=0)


def items_in(table, item_table, rows, dim):
    """The table of items: a new one of class `table`, or `item_table`, if another tower shares it.

    Raises:
        ValueError: if the shared one has another size.
    """
    if item_table is None:
        return table(rows, dim, name="items")
    if (item_table.rows, item_table.dim) != (rows, dim):
        raise ValueError(
            f"expected an item_table of {rows} rows (one for padding) and {dim} columns, received "
            f"one of {item_table.rows} rows and {item_table.dim} columns. Share a table between "
            "towers of one catalogue and one dim."
        )
    return item_table


@register
class ItemFeatures(Tower):
    """Codes of the items' fields, held as weights so that they are saved with the tower.

    Args:
        features: name -> codes from `samples.item_features`, int [num_items + 1] or, where an item
            may have several, [num_items + 1, most of one item]; row 0 is padding.
        shapes: given instead of `features` when a saved tower is loaded: name -> [shape, number of
            codes].
        id_dropout: share of the ids that a tower reads as 0, unknown, in training, so that it
            learns what an item is worth by its fields alone (DropoutNet: Volkovs et al. 2017). At
            1 it never reads an id.
        known: [num_items + 1], not 0 for items that are trained on; with id dropout, all others are
            read as unknown at all times. None: all are.
    """

    def __init__(self, features=None, shapes=None, id_dropout=0.0, known=None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= id_dropout <= 1 or (known is not None and not id_dropout):
            raise ValueError(
                "id_dropout must be from 0 to 1, and above 0 for `known` to be of use: an unknown "
                f"id that was never trained says nothing. Received {id_dropout}."
            )
        features = {name: np.asarray(codes) for name, codes in (features or {}).items()}
        for name, codes in features.items():
            rows = next(iter(features.values())).shape[:1]
            whole = codes.dtype.kind in "iu" and codes.ndim in (1, 2) and codes.size
            if not whole or codes.min() < 0 or codes.shape[:1] != rows:
                raise ValueError(
                    "expected codes from 0, [num_items + 1] or [num_items + 1, several], of as "
                    f"many items in each field, received in {name!r} {codes.dtype} of shape "
                    f"{codes.shape}{f' from {codes.min()}' if whole else ''}."
                )
        if features:
            shapes = {k: [list(v.shape), int(v.max()) + 1] for k, v in features.items()}
        if not shapes:
            raise ValueError("ItemFeatures needs at least one field of codes, received none.")
        self.shapes = shapes
        self.tables = {
            name: self.add_weight(tuple(shape), "zeros", "int32", trainable=False, name=name)
            for name, (shape, _) in shapes.items()
        }
        for name, codes in features.items():
            self.tables[name].assign(codes)
        self.id_dropout = id_dropout
        if id_dropout:
            size = (self.num_items + 1,)
            self.known = self.add_weight(size, "ones", "int32", trainable=False, name="known")
            if known is not None:
                self.known.assign(np.asarray(known) != 0)
            self.seed_generator = keras.random.SeedGenerator()
        self.built = True

    @property
    def num_items(self):
        """Number of items, padding not counted."""
        return next(iter(self.shapes.values()))[0][0] - 1

    @property
    def sizes(self):
        """Number of codes of each field, padding included: what an embedding table needs."""
        return {name: size for name, (_, size) in self.shapes.items()}

    def call(self, item_ids):
        """Codes of every field for `item_ids` [n]: name -> [n] or [n, several]."""
        return {name: ops.take(table, item_ids, axis=0) for name, table in self.tables.items()}

    def ids(self, item_ids, training=False):
        """The ids [n] as a tower's table of ids reads them: 0 where the item is unknown to it."""
        if not self.id_dropout:
            return item_ids
        read = ops.take(self.known, item_ids, axis=0) * (0 if self.id_dropout == 1 else 1)
        if training:
            coin = keras.random.uniform(ops.shape(item_ids), seed=self.seed_generator)
            read = ops.where(coin < self.id_dropout, 0, read)
        return ops.cast(item_ids, "int32") * read

    def get_config(self):
        """Shapes and the rate: the codes, and what is known, are weights."""
        own = {"shapes": dict(self.shapes), "id_dropout": self.id_dropout}
        return {**layers.Layer.get_config(self), **own}


def embedded(table, codes):
    """Embeddings [b, dim] of one field: codes [b], or [b, several], whose mean it is."""
    return masked_mean(table(codes), codes) if len(codes.shape) > 1 else table(codes)


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
    (kinds, length), steps = weights.shape, ops.shape(embeddings)[1]
    place = ops.arange(steps) - ops.arange(steps - positions, steps)[:, None] + length - 1
    place = ops.where((place >= 0) & (place < length), place, length)  # (positions, steps)
    bands = ops.take(ops.pad(weights, ((0, 0), (0, 1))), place, axis=1)
    bands = ops.reshape(ops.swapaxes(bands, 0, 1), (-1, steps))  # (positions * kinds, steps)
    total = ops.matmul(present, ops.transpose(bands))[..., None]  # (batch, positions * kinds, 1)
    means = ops.matmul(bands, embeddings) / ops.maximum(total, 1e-9)
    return ops.reshape(means, (-1, positions, kinds, embeddings.shape[2]))


def most_recent(last, length):
    """Weights [last, length] that keep each of the most recent steps of a window apart.

    Raises:
        ValueError: if a window has fewer steps than that.
    """
    if not 0 <= last <= length:
        raise ValueError(
            f"expected last, the movies kept apart, to be from 0 to the history's length {length}, "
            f"received {last}."
        )
    return np.eye(length, dtype="float32")[::-1][:last]


@register
class HistoryDropout(Tower):
    """Reads items of a history as padding, in training, so that none becomes indispensable.

    The noise of a denoising autoencoder that masks (Wu et al. 2016). What is left is a history with
    fewer items, whose means are means, so nothing is scaled up to make good for it.

    Args:
        rate: share of the items that are hidden, each by itself, from 0 to less than 1.

    Raises:
        ValueError: if the rate is out of range.
    """

    def __init__(self, rate, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"history_dropout must be from 0 to less than 1, received {rate}.")
        self.rate = rate
        if rate:
            self.seed_generator = keras.random.SeedGenerator()
        self.built = True

    def call(self, history, training=False):
        """Map item ids [batch, steps] to the ids that are read, 0 where one is hidden."""
        if not (training and self.rate):
            return history
        coin = keras.random.uniform(ops.shape(history), seed=self.seed_generator)
        return ops.where(coin < self.rate, 0, history)


@register
class HistoryFeatures(Tower):
    """What a history says about its user: pooled embeddings, and the last few kept apart.

    The input is item ids `[batch, steps]`, 0-padded on the left. The output concatenates, for the
    window that ends at each of the last positions, the mean of its embeddings; `recency` means of
    them, each under learned weights of its own that depend on how many steps ago an item was
    watched; and the embeddings of the `last` most recent items. Padding never changes the output.

    Args:
        items: the table of the items' embeddings.
        length: items in a window.
        recency: number of recency-weighted means; True is 1, False 0.
        last: how many of the most recent items are kept apart.

    Raises:
        ValueError: if `recency` is negative, or a window has fewer than `last` steps.
    """

    def __init__(self, items, length=50, recency=True, last=3, **kwargs):
        super().__init__(**kwargs)
        if recency < 0:
            raise ValueError(f"recency, a number of means, must be 0 or more, received {recency}.")
        self.items, self.length, self.recency, self.last = items, length, int(recency), last
        self.apart = most_recent(last, length)
        if recency:
            # A logit for each step back in time; they start as preferences for the recent, one as
            # 1/s for the item s steps back, several as powers of it from gentle to strong.
            slopes = 2 * np.arange(1, recency + 1) / (recency + 1)
            self.recency_logits = self.add_weight((recency, length), "zeros", name="recency_logits")
            self.recency_logits.assign(-slopes[:, None] * np.log(np.arange(length, 0, -1)))
        self.built = True

    def call(self, history, positions):
        """Map `history` [batch, steps] to [batch, positions, width]."""
        embeddings = at_least_float32(self.items(history))  # (batch, steps, dim)
        dtype = embeddings.dtype
        kinds = [ops.ones((1, self.length), dtype), ops.cast(self.apart, dtype)]
        if self.recency:
            kinds.insert(1, ops.exp(ops.cast(self.recency_logits, dtype)))
        weights, present = ops.concatenate(kinds), not_padding(history, dtype)
        pooled = window_means(embeddings * present[..., None], present, weights, positions)
        pooled = ops.reshape(pooled, (-1, positions, weights.shape[0] * embeddings.shape[2]))
        return ops.cast(pooled, self.compute_dtype)


def checked_sizes(sizes, *names):
    """The sizes, if they have everything that a tower needs.

    Raises:
        ValueError: naming what is missing.
    """
    missing = [name for name in names if name not in sizes]
    if missing:
        raise ValueError(
            f"sizes lacks {', '.join(missing)}; it has {', '.join(sizes)}. Pass `samples.sizes`, "
            "which has the number of codes of every input and the history's length."
        )
    return dict(sizes)


def profile_fields(sizes):
    """Names of the profile's fields among the sizes of `samples.sizes`: all but the history's."""
    return [name for name in sizes if name not in ("history", "history_length", "search")]
