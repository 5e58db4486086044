"""Embedding tables whose training step costs what a batch reads, not what the catalogue holds.

Stock Keras pays for every row of a table in every step, twice: reading a table that is also
written to copies it, and the optimizers walk through all rows of the table and of their state.
Both halves are needed here: `RowEmbedding` reads rows from the variable itself, and `RowSGD`,
`RowAdagrad` and `RowAdam` update only the rows that a batch has touched.

This is the one module of the package that needs TensorFlow itself; the rest runs on any backend.
"""

from __future__ import annotations

import inspect

import keras
import tensorflow as tf

from recsys_helpers.layers import Tower, register


@register
class RowEmbedding(Tower):
    """An embedding table that is read row by row.

    Give it to a tower as `table=RowEmbedding`. Its gradient is a `tf.IndexedSlices` of the rows
    that were read. Train it with an optimizer of this module: those of Keras either walk through
    the whole table or, worse, square the gradient of each occurrence of a repeated id by itself.

    Args:
        rows: number of rows, padding included.
        dim: length of a row.
        stddev: of the normal distribution the rows start from.
    """

    def __init__(self, rows, dim, stddev=0.05, **kwargs):
        super().__init__(**kwargs)
        self.rows, self.dim, self.stddev = rows, dim, stddev
        self.embeddings = self.add_weight(shape=(rows, dim), initializer="zeros", name="embeddings")
        # Filled in place, by blocks: made elsewhere, a large table would need its memory again.
        seed = keras.random.SeedGenerator()
        for start in range(0, rows, 100_000):
            block = tf.range(start, min(start + 100_000, rows))
            values = keras.random.normal((len(block), dim), stddev=stddev, seed=seed)
            values = tf.cast(values, self.embeddings.dtype)
            self.embeddings.value.scatter_update(tf.IndexedSlices(values, block))
        self.built = True

    def call(self, ids):
        """Map ids of any shape to [..., dim]."""
        rows = tf.nn.embedding_lookup(self.embeddings.value, tf.cast(ids, "int32"))
        return tf.cast(rows, self.compute_dtype)


def summed_rows(gradient: tf.IndexedSlices) -> tuple[tf.Tensor, tf.Tensor]:
    """The distinct rows of a sparse gradient, and the sum of each row's occurrences.

    Args:
        gradient: indices [n] with repetitions, values [n, dim].

    Returns:
        Row numbers [m], each once, and summed gradients [m, dim].
    """
    rows, place = tf.unique(gradient.indices)
    return rows, tf.math.unsorted_segment_sum(gradient.values, place, tf.size(rows))


class _RowWise:
    """Send sparse gradients to `update_rows`, and dense ones where they always went."""

    def __init__(self, *args, **kwargs):
        given = inspect.signature(super().__init__).bind(*args, **kwargs).arguments
        for option in (
            *("weight_decay", "loss_scale_factor", "gradient_accumulation_steps"),
            *("momentum", "amsgrad", "use_ema"),
        ):
            if given.get(option):
                raise ValueError(
                    f"{type(self).__name__} has no {option}, received {given[option]}: it would "
                    "have to touch the rows that a batch does not."
                )
        super().__init__(*args, **kwargs)

    def build(self, variables):
        """As in Keras, but outside of the graph of the first step, in which `fit` builds it.

        There all of the state would be one array of zeros at first, and be copied when written to.
        """
        with tf.init_scope():
            super().build(variables)

    def update_step(self, gradient, variable, learning_rate):
        if not isinstance(gradient, tf.IndexedSlices):
            return super().update_step(gradient, variable, learning_rate)
        rows, values = summed_rows(gradient)
        rate = tf.cast(learning_rate, values.dtype)
        step = self.update_rows(rows, values, variable, rate)
        variable.scatter_sub(tf.IndexedSlices(step, rows))

    def _clip_gradients(self, grads):
        """As in Keras, but of whole rows: a row that was read twice has one gradient, the sum."""
        if not (self.clipnorm or self.global_clipnorm or self.clipvalue):
            return grads
        whole = []
        for gradient in grads:
            if isinstance(gradient, tf.IndexedSlices):
                rows, values = summed_rows(gradient)
                gradient = tf.IndexedSlices(values, rows, gradient.dense_shape)
            whole.append(gradient)
        return super()._clip_gradients(whole)

    def slot_rows(self, slots, variable, rows, update):
        """Replace `rows` of the optimizer's state of `variable` by `update` of what they were."""
        state = slots[self._get_variable_index(variable)].value
        values = update(tf.gather(state, rows))
        state.scatter_update(tf.IndexedSlices(values, rows))
        return values


@register
class RowSGD(_RowWise, keras.optimizers.SGD):
    """Gradient descent on the rows touched; equal to Keras's SGD on the dense gradient."""

    def update_rows(self, rows, gradient, variable, learning_rate):
        """Steps [m, dim] of the rows [m]."""
        return learning_rate * gradient


@register
class RowAdagrad(_RowWise, keras.optimizers.Adagrad):
    """Adagrad (Duchi et al. 2011) on the rows touched; equal to Keras's on the dense gradient."""

    def add_optimizer_variables(self, trainable_variables, name, initializer="zeros"):
        """As in Keras, but the state is made at once and not as a product, in memory of its own."""

        def start(shape, dtype=None):
            return tf.fill(shape, tf.cast(self.initial_accumulator_value, dtype))

        return super().add_optimizer_variables(trainable_variables, name, initializer=start)

    def update_rows(self, rows, gradient, variable, learning_rate):
        """Steps [m, dim] of the rows [m]."""
        total = self.slot_rows(self._accumulators, variable, rows, lambda a: a + gradient**2)
        return learning_rate * gradient / tf.sqrt(total + self.epsilon)


@register
class RowAdam(_RowWise, keras.optimizers.Adam):
    """Lazy Adam: the moments of a row change only in steps that touch it.

    Equal to Adam (Kingma and Ba 2015, algorithm 1) for rows that are in every batch. For others it
    differs by design: Adam goes on moving a row along its old momentum, and forgets its second
    moment, while nobody looks at it; here it rests.
    """

    def update_rows(self, rows, gradient, variable, learning_rate):
        """Steps [m, dim] of the rows [m]."""
        beta_1, beta_2 = self.beta_1, self.beta_2
        step = tf.cast(self.iterations + 1, gradient.dtype)
        mean = self.slot_rows(
            self._momentums, variable, rows, lambda m: beta_1 * m + (1 - beta_1) * gradient
        )
        square = self.slot_rows(
            self._velocities, variable, rows, lambda v: beta_2 * v + (1 - beta_2) * gradient**2
        )
        rate = learning_rate * tf.sqrt(1 - beta_2**step) / (1 - beta_1**step)
        return rate * mean / (tf.sqrt(square) + self.epsilon)
