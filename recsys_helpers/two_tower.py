"""The two-tower model: a user tower, an item tower, and a softmax over the catalogue.

A plain `keras.Model`: `compile`, `fit`, callbacks, `save` and `keras.models.load_model` work as
for any other. A new retrieval model is a new user tower and nothing else.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from recsys_helpers.sampled_softmax import (
    full_softmax_loss,
    sampled_softmax_loss,
    seen_before,
)
from recsys_helpers.towers import register


@register
class TwoTower(keras.Model):
    """Train two towers so that the user's vector points at the item watched next.

    Args:
        user_tower: layer, inputs -> [batch, d].
        item_tower: layer, item ids [n] -> [n, d].
        num_items: size of the catalogue; ids run from 1, 0 is padding.
        sampler: where negatives come from (`recsys_helpers.sampled_softmax`); None computes the
            softmax over the whole catalogue.
        num_sampled: number of negatives, drawn once for each batch and shared by its examples;
            the in-batch sampler needs none.
        log_q_correction: subtract the log of each negative's expected count from its logit.
        temperature: logits are scores divided by it; small for normalised vectors.
        exclude_seen: leave the items of `inputs["history"]` out of the softmax, as they are left
            out when the catalogue is ranked. The model then needn't learn to push down what nobody
            will ask it about, right beside what it should bring up.
        seed: of the negatives drawn.
    """

    def __init__(
        self,
        user_tower,
        item_tower,
        num_items,
        sampler=None,
        num_sampled=None,
        log_q_correction=True,
        temperature=1.0,
        exclude_seen=False,
        seed=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, received {temperature}.")
        self.user_tower, self.item_tower, self.num_items = user_tower, item_tower, num_items
        self.sampler, self.num_sampled = sampler, num_sampled
        self.log_q_correction, self.temperature = log_q_correction, temperature
        self.exclude_seen, self.seed = exclude_seen, seed
        # On TensorFlow, XLA made a training step three times slower on CPUs; JAX needs it.
        self.supports_jit = keras.backend.backend() != "tensorflow"
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape):
        """Create all weights of both towers, given the shapes of the user's inputs."""
        for tower, shape in ((self.user_tower, input_shape), (self.item_tower, (None,))):
            if not tower.built:  # a loaded model's towers are
                tower.build(shape)
        self.built = True

    def fit(self, x=None, y=None, batch_size=None, *args, shuffle=True, **kwargs):
        """Train as `keras.Model.fit` does, but with another order of the examples in each epoch.

        On TensorFlow, Keras's own `fit` repeats one order in all epochs once a seed has been set,
        so that the same examples share a batch, and each other's negatives, every time; and the
        end of an epoch may have to be waited for.
        """
        others = {"sample_weight", "class_weight", "validation_split"} & kwargs.keys()
        if keras.backend.backend() == "tensorflow" and y is not None and not others:
            batches = _batches(x, y, batch_size or 32, shuffle)
            return super().fit(batches, None, None, *args, shuffle=False, **kwargs)
        return super().fit(x, y, batch_size, *args, shuffle=shuffle, **kwargs)

    def call(self, inputs, training=False):
        """Map the user's inputs to user vectors, [batch, d]."""
        return self.user_tower(inputs, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Mean cross-entropy of the next items `y` [batch], given user vectors `y_pred`.

        With one target for each of many positions, `y` is [batch, positions], 0 where there is
        none, and seen is what had been watched by then. With a sampler, training sees the sampled
        softmax; `evaluate` always the full one.
        """
        targets = ops.cast(ops.reshape(y, (-1,)), "int32")
        positions = 1 if len(y_pred.shape) == 2 else y_pred.shape[1]
        y_pred = ops.reshape(y_pred, (-1, y_pred.shape[-1]))  # (batch * positions, d)
        sampled = self.sampler is not None and training
        if sampled:
            ids, log_expected_count = self.sampler.sample(
                self.num_sampled, self.seed_generator, targets
            )
        else:
            ids = ops.arange(1, self.num_items + 1, dtype="int32")
        left_out = None
        if self.exclude_seen:
            seen = seen_before(x["history"], ids, positions)  # (batch, positions, s)
            left_out = ops.reshape(seen, (-1, ops.shape(ids)[0]))
        if sampled:
            loss = sampled_softmax_loss(
                y_pred,
                self.item_tower(targets),
                self.item_tower(ids),
                targets,
                ids,
                log_expected_count if self.log_q_correction else None,
                self.temperature,
                left_out,
            )
        else:
            catalogue = self.item_tower(ops.arange(self.num_items + 1, dtype="int32"))
            loss = full_softmax_loss(
                y_pred, catalogue, ops.maximum(targets, 1), self.temperature, left_out
            )
        real = ops.cast(ops.not_equal(targets, 0), loss.dtype)
        if sample_weight is not None:
            loss = loss * ops.cast(ops.reshape(sample_weight, (-1,)), loss.dtype)
        return ops.sum(loss * real) / ops.maximum(ops.sum(real), 1.0) + sum(self.losses)

    def user_vectors(self, inputs, batch_size=1024):
        """User vectors as a numpy array, one row per row of the inputs: [n, d] or [n, T, d]."""
        # Not `predict`, which cannot be asked for [n, d] now and [n, T, d] later.
        vectors = []
        for start in range(0, len(inputs["history"]), batch_size):
            rows = {name: value[start : start + batch_size] for name, value in inputs.items()}
            rows = {name: ops.convert_to_tensor(value) for name, value in rows.items()}
            vectors.append(ops.convert_to_numpy(self(rows, training=False)))
        return np.concatenate(vectors)

    def item_vectors(self, batch_size=65_536):
        """Item vectors as a numpy array [num_items, d]; row i is item i + 1."""
        ids = np.arange(1, self.num_items + 1, dtype="int32")
        blocks = range(0, self.num_items, batch_size)
        vectors = [self.item_tower(ops.convert_to_tensor(ids[i : i + batch_size])) for i in blocks]
        return np.concatenate([ops.convert_to_numpy(block) for block in vectors])

    def get_config(self):
        """Everything the constructor needs, so that a saved model can be loaded."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "user_tower": serialize(self.user_tower),
            "item_tower": serialize(self.item_tower),
            "num_items": self.num_items,
            "sampler": serialize(self.sampler),
            "num_sampled": self.num_sampled,
            "log_q_correction": self.log_q_correction,
            "temperature": self.temperature,
            "exclude_seen": self.exclude_seen,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config):
        """The model of a configuration, without its weights."""
        config = dict(config)
        for name in ("user_tower", "item_tower", "sampler"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)


def _batches(inputs, targets, batch_size, shuffle):
    """Batches of arrays as Keras makes them, but shuffled anew in each epoch, and not autotuned.

    Keras shuffles by an operation within the pipeline. With a seed set, that operation starts from
    the same state for each epoch, and so gives the same order.

    The thread that tunes an input pipeline sleeps longer and longer while an epoch lasts, and the
    end of the epoch may have to wait for it to wake up: an epoch can take twice its time, with
    nothing done in the second half. A pipeline of slices has nothing to tune.
    """
    import tensorflow as tf

    arrays = tf.nest.map_structure(tf.convert_to_tensor, (inputs, targets))
    rows = tf.data.Dataset.range(len(targets))
    if shuffle:
        rows = rows.shuffle(len(targets))
    batches = rows.batch(batch_size).map(
        lambda chosen: tf.nest.map_structure(lambda array: tf.gather(array, chosen), arrays)
    )
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.prefetch(2).with_options(options)
