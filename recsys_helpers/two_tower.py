"""The two-tower model: a user tower, an item tower, and a softmax over the catalogue.

A plain `keras.Model`: `compile`, `fit`, callbacks, `save`, `export` and `keras.models.load_model`
work as for any other. A new retrieval model is a new user tower and nothing else.
"""

from __future__ import annotations

import functools
import inspect

import keras
import numpy as np
from keras import ops

import recsys_helpers.towers  # noqa: F401  so that Keras knows the towers of a model it loads

# As modules: either may be half imported, the first to import Keras and with it this one.
from recsys_helpers import batches, sampled_softmax
from recsys_helpers.layers import at_least_float32, register
from recsys_helpers.samples import check_inputs

if keras.backend.backend() == "tensorflow":
    import recsys_helpers.rowwise  # noqa: F401  its tables, too


@register
class TwoTower(keras.Model):
    """Train two towers so that the user's vector points at the item watched next.

    Args:
        user_tower: layer, inputs -> [batch, T, d], one vector for each of a row's last T moments.
            Vectors of earlier moments, too, do no harm: the last T count.
        item_tower: layer, item ids [n] -> [n, d].
        num_items: size of the catalogue; ids run from 1, 0 is padding.
        sampler: where negatives come from (`recsys_helpers.sampled_softmax`); None computes the
            softmax over the whole catalogue.
        log_q_correction: subtract the log of each negative's expected count from its logit.
        temperature: logits are scores divided by it; small for normalised vectors.
        exclude_seen: leave the items of `inputs["history"]`, or of inputs that are a history and
            nothing else, out of the softmax, as what was seen is left out of a ranking. The model
            then needn't learn to push down what nobody will ask it about, right beside what it
            should bring up. A row of inputs knows the history it holds and nothing older.
        seed: of the negatives drawn.

    Raises:
        ValueError: if the sampler or a tower belongs to another catalogue, on a temperature that is
            not positive, and, once the towers are called, if their vectors do not fit.
    """

    def __init__(
        self,
        user_tower,
        item_tower,
        num_items,
        sampler=None,
        log_q_correction=True,
        temperature=1.0,
        exclude_seen=False,
        seed=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, received {temperature}.")
        read = getattr(user_tower, "sizes", {}).get("history", num_items + 1)
        sizes = {
            "the sampler draws from": getattr(sampler, "num_items", num_items),
            "the item tower has": getattr(item_tower, "num_items", num_items),
            "the user tower's history has": read - 1,
        }
        for what, size in sizes.items():
            if size != num_items:
                raise ValueError(
                    f"expected {num_items} items everywhere, but {what} {size}. Make all of them "
                    "for the dataset after the split, whose ids run from 1 to its num_items."
                )
        self.user_tower, self.item_tower, self.num_items = user_tower, item_tower, num_items
        self.sampler, self.log_q_correction = sampler, log_q_correction
        self.temperature, self.exclude_seen, self.seed = temperature, exclude_seen, seed
        # On TensorFlow, XLA made a training step three times slower on CPUs; JAX needs it.
        self.supports_jit = keras.backend.backend() != "tensorflow"
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.loss_mean = keras.metrics.Mean(name="loss")
        self.input_shapes = self.input_dtypes = None  # of the inputs it was first called with

    # Building, and what Keras asks of a model

    def __call__(self, inputs, *args, **kwargs):
        """As any Keras model, but what the inputs are is kept for `build` and `export`."""
        if self.input_dtypes is None:
            self.input_dtypes = keras.tree.map_structure(
                lambda value: keras.backend.standardize_dtype(value.dtype), inputs
            )
        return super().__call__(inputs, *args, **kwargs)

    def build(self, input_shape):
        """Make all weights, by calling both towers on placeholders."""
        towers_read = self._placeholders(input_shape), keras.Input((), dtype="int32")
        if keras.backend.backend() == "torch":
            # Keras would find the shapes there by running on ones; a table may have row 0 alone.
            towers_read = keras.tree.map_structure(
                lambda one: ops.zeros([size or 1 for size in one.shape], one.dtype), towers_read
            )
        users, items = self.user_tower(towers_read[0]), self.item_tower(towers_read[1])
        if len(users.shape) != 3 or len(items.shape) != 2 or users.shape[-1] != items.shape[-1]:
            raise ValueError(
                "expected a user tower that returns [batch, T, d] and an item tower that returns "
                f"[n, d], received {tuple(users.shape)} and {tuple(items.shape)}. A tower with one "
                "vector a row returns vectors[:, None]."
            )
        self.input_shapes = input_shape

    def _placeholders(self, shapes):
        if shapes is None:
            raise ValueError("build needs the shapes of the inputs; fit, or a call, finds them.")
        if not isinstance(shapes, dict):
            return keras.Input(batch_shape=(None, *shapes[1:]), dtype=self.input_dtypes or "int32")
        if self.input_dtypes is None:
            self.input_dtypes = {
                name: "float32" if name == "example_age" else "int32" for name in shapes
            }
        return {
            name: keras.Input(
                batch_shape=(None, *shape[1:]), dtype=self.input_dtypes[name], name=name
            )
            for name, shape in shapes.items()
        }

    def get_build_config(self):
        """Shapes and types of the inputs; None before the model was called."""
        if self.built:
            return {"input_shape": self.input_shapes, "input_dtypes": self.input_dtypes}

    def build_from_config(self, config):
        """Make all weights of a loaded model."""
        self.input_dtypes = config["input_dtypes"]
        self.build(config["input_shape"])

    def compile(self, optimizer="rmsprop", loss=None, metrics=None, **kwargs):
        """As in Keras, without `loss` and `metrics`: the loss is part of the model.

        Raises:
            ValueError: if either is given. A metric of classes would be shown the user's vector.
        """
        given = {"loss": loss, "metrics": metrics}
        given |= {name: kwargs.get(name) for name in ("weighted_metrics", "loss_weights")}
        if given := {k: v for k, v in given.items() if str(v) not in ("None", "[]", "{}")}:
            raise ValueError(
                "TwoTower computes its own loss, the softmax over the catalogue; leave out "
                f"{given}, and rank the validation target with the callback ValidationMetrics."
            )
        super().compile(optimizer=optimizer, **kwargs)

    def compile_from_config(self, config):
        """Compile a loaded model, and make its optimizer's state, into which files are read."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    @property
    def metrics(self):
        """The loss alone: its mean over the targets, not over batches of more or fewer of them."""
        return [self.loss_mean]

    def call(self, inputs, training=False):
        """Map the user's inputs to user vectors, [batch, T, d]."""
        return self.user_tower(inputs, training=training)

    # Training

    def fit(self, *args, **kwargs):
        """Train as `keras.Model.fit` does, with another order of the examples in each epoch.

        On TensorFlow, Keras's own `fit` repeats one order in all epochs once a seed has been set,
        so that the same examples share a batch, and each other's negatives, every time.

        Arguments are those of `keras.Model.fit`. `y` is [n, T], `sample_weight` [n] or [n, T];
        there are no classes to weigh.

        Raises:
            ValueError: on arrays that do not fit each other or the towers, and on batches of a
                single target whose negatives would be the others of its batch.
        """
        given = inspect.signature(super().fit).bind(*args, **kwargs).arguments
        if given.get("class_weight") is not None:
            raise ValueError("there are no classes: weigh the examples with sample_weight.")
        if given.get("y") is None:  # batches that the caller makes
            return super().fit(**given)
        arrays = self._checked(given.pop("x"), given.pop("y"), given.pop("sample_weight", None))
        if not self.built:  # on a real row; Keras would try one of its own making
            self(keras.tree.map_structure(lambda a: ops.convert_to_tensor(a[:1]), arrays[0]))
        share, held_out = given.pop("validation_split", None), given.get("validation_data")
        if isinstance(held_out, (tuple, list)) and len(held_out) > 1:
            given["validation_data"] = self._checked(*(*held_out, None)[:3])
        elif held_out is None and share:
            arrays, given["validation_data"] = batches.split_off(arrays, share)
        batch_size = batches.whole_size(given.pop("batch_size", None), 32)
        batches.check_negatives(self.sampler, arrays[1], batch_size)
        of_validation = given.get("validation_batch_size")
        given["validation_batch_size"] = batches.whole_size(of_validation, batch_size)
        if keras.backend.backend() != "tensorflow":
            x, y, weight = arrays
            return super().fit(x=x, y=y, sample_weight=weight, batch_size=batch_size, **given)
        x = batches.shuffled_batches(arrays, batch_size, given.pop("shuffle", True))
        return super().fit(x=x, shuffle=False, **given)

    def evaluate(self, *args, **kwargs):
        """The loss as in `keras.Model.evaluate`, with the checks of `fit`."""
        given = inspect.signature(super().evaluate).bind(*args, **kwargs).arguments
        own = given.pop("kwargs", {})
        if given.get("y") is not None:
            arrays = self._checked(given["x"], given["y"], given.get("sample_weight"))
            given["batch_size"] = batches.whole_size(given.get("batch_size"), 32)
            given |= dict(zip(("x", "y", "sample_weight"), arrays, strict=True))
        return super().evaluate(**given, **own)

    def train_on_batch(self, x, y=None, sample_weight=None, *args, **kwargs):
        """As `keras.Model.train_on_batch`, with the checks of `fit`."""
        return super().train_on_batch(*self._checked(x, y, sample_weight), *args, **kwargs)

    def test_on_batch(self, x, y=None, sample_weight=None, *args, **kwargs):
        """As `keras.Model.test_on_batch`, with the checks of `fit`."""
        return super().test_on_batch(*self._checked(x, y, sample_weight), *args, **kwargs)

    def _checked(self, x, y, weight):
        return batches.checked_arrays(self._checked_inputs(x), y, weight, self.num_items)

    def _checked_inputs(self, inputs):
        inputs, sizes = batches.as_arrays(inputs), getattr(self.user_tower, "sizes", None)
        if isinstance(inputs, dict) and sizes:
            names = dict.fromkeys([*self.user_tower.reads, "history", "example_age"])
            check_inputs(inputs, sizes, list(names))
        return inputs

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Cross-entropy of the next items `y` [batch, T], given user vectors `y_pred`.

        `y` is 0 where there is no target, and seen is what had been watched by then. With a
        sampler, training sees the sampled softmax; `evaluate` always the full one. What is returned
        is the sum over the targets, divided by batch * T: each target weighs the same, however many
        its batch has. What is reported is the mean over the targets.
        """
        if len(shape := getattr(y, "shape", ())) != 2:
            raise ValueError(f"expected targets [n, T], 0 for none, received {tuple(shape)}.")
        (rows, positions), width = ops.shape(y), y_pred.shape[-1]
        if None not in (y.shape[1], y_pred.shape[1]) and y.shape[1] > y_pred.shape[1]:
            raise ValueError(
                f"received {y.shape[1]} targets a row, but the user tower returned "
                f"{y_pred.shape[1]} vectors. It returns one for each moment of `example_age` or "
                "of the history."
            )
        targets = ops.cast(ops.reshape(y, (-1,)), "int32")
        y_pred = ops.reshape(y_pred[:, -positions:], (-1, width))  # (batch * T, d)
        loss = self.target_losses(x, y_pred, targets, positions, training)
        if sample_weight is not None:
            weight = ops.cast(ops.reshape(sample_weight, (rows, -1)), loss.dtype)
            loss = loss * ops.reshape(ops.broadcast_to(weight, (rows, positions)), (-1,))
        extra = sum((ops.sum(own) for own in self.losses), ops.zeros((), loss.dtype))
        real = ops.cast(targets > 0, loss.dtype)
        self.loss_mean.update_state(loss + extra, sample_weight=real)
        cells = ops.cast(rows * positions, loss.dtype)
        return (ops.sum(loss) / cells + extra) / batches.num_replicas()

    def target_losses(self, x, users, targets, positions, training):
        """The loss of each target, given user vectors [batch * T, d]; 0 where there is no target.

        Args:
            x: the inputs, of whose rows each has T = `positions` targets.
            users: user vectors, row after row.
            targets: item ids [batch * T], 0 where there is none.
            positions: T.
            training: whether the softmax may be sampled.
        """
        sampled = self.sampler is not None and training
        if sampled:
            # Of the whole batch, also where its rows are shared out among devices.
            others = batches.of_all_replicas(targets)
            ids, log_expected_count = self.sampler.sample(self.seed_generator, others)
        else:
            ids = ops.arange(1, self.num_items + 1, dtype="int32")
        left_out = None
        if self.exclude_seen:
            history = x["history"] if isinstance(x, dict) else x
            seen = sampled_softmax.seen_before(history, ids, positions)  # (batch, T, s)
            left_out = ops.reshape(seen, (-1, ops.shape(ids)[0]))
        items = functools.partial(self.item_tower, training=training)
        if sampled:
            log_q = log_expected_count if self.log_q_correction else None
            return sampled_softmax.sampled_softmax_loss(
                users, items(targets), items(ids), targets, ids, log_q, self.temperature, left_out
            )
        catalogue = items(ops.arange(self.num_items + 1, dtype="int32"))
        return sampled_softmax.full_softmax_loss(
            users, catalogue, targets, self.temperature, left_out
        )

    # Vectors

    def predict(self, x, *args, **kwargs):
        """As `keras.Model.predict`, the vectors of all moments, with the checks of `fit`."""
        return super().predict(self._checked_inputs(x), *args, **kwargs)

    def user_vectors(self, inputs, batch_size=1024):
        """The users' vectors after the last moment of each row, a numpy array [n, d].

        Raises:
            ValueError: on inputs that do not fit the user tower.
        """
        inputs, batch_size = self._checked_inputs(inputs), batches.whole_size(batch_size, 1024)
        vectors = []
        for start in range(0, len(keras.tree.flatten(inputs)[0]) or 1, batch_size):  # none: [0, d]
            rows = batches.rows_of(inputs, slice(start, start + batch_size))
            rows = keras.tree.map_structure(ops.convert_to_tensor, rows)
            vectors.append(_as_numpy(self(rows, training=False)[:, -1]))
        return np.concatenate(vectors)

    def item_vectors(self, ids=None, batch_size=65_536):
        """Vectors of the items `ids` [n] as a numpy array [n, d]; None: of all, from item 1 on.

        Raises:
            ValueError: if the ids aren't integers from 1 to num_items.
        """
        ids = np.arange(1, self.num_items + 1) if ids is None else np.asarray(ids)
        whole = ids.dtype.kind in "iu" and ids.ndim == 1
        if ids.size and not (whole and 1 <= ids.min() <= ids.max() <= self.num_items):
            received = f"{ids.min()} to {ids.max()}" if whole else f"{ids.dtype} {ids.shape}"
            raise ValueError(
                f"item ids must be integers [n] from 1 to {self.num_items}, received {received}."
            )
        batch_size = batches.whole_size(batch_size, 65_536)
        blocks = np.split(ids.astype("int32"), range(batch_size, len(ids), batch_size))
        vectors = [self.item_tower(ops.convert_to_tensor(b), training=False) for b in blocks]
        return np.concatenate([_as_numpy(block) for block in vectors])

    # Files

    def export(self, filepath, format="tf_saved_model", **kwargs):
        """Write both towers as a SavedModel, which TensorFlow alone can serve.

        Its endpoints: `serve`, inputs -> [batch, T, d]; `user_vectors`, inputs -> [batch, d], the
        last moment; `item_vectors`, item ids [n] -> [n, d].

        Args:
            filepath: the folder to write.
            format: "tf_saved_model".
            **kwargs: those of `keras.export.ExportArchive.write_out`.
        """
        backend = keras.backend.backend()
        if format != "tf_saved_model" or not self.built or backend == "torch":
            raise ValueError(
                'expected format="tf_saved_model", a model that was called once and not torch '
                "(save it, and load and export it with KERAS_BACKEND=tensorflow), received "
                f"{format!r}, {'one' if self.built else 'none'} and {backend}."
            )
        inputs = self._placeholders(self.input_shapes)
        named = inputs if isinstance(inputs, dict) else {"history": inputs}
        positions = named["example_age"].shape[1] if "example_age" in named else None

        def any_number(name, tensor):  # of moments and of steps, as training and serving differ
            shape = list(tensor.shape)
            if len(shape) > 1 and (name == "history" or shape[1] == positions):
                shape[1] = None
            return keras.InputSpec(shape=tuple(shape), dtype=tensor.dtype, name=name)

        named = {name: any_number(name, tensor) for name, tensor in named.items()}
        inputs = named if isinstance(inputs, dict) else named["history"]
        ids = keras.InputSpec(shape=(None,), dtype="int32", name="item_ids")
        archive = keras.export.ExportArchive()
        archive.track(self)
        for name, function, signature in (
            ("serve", lambda x: self(x, training=False), inputs),
            ("user_vectors", lambda x: self(x, training=False)[:, -1], inputs),
            ("item_vectors", lambda x: self.item_tower(x, training=False), ids),
        ):
            archive.add_endpoint(name, function, [signature])
        archive.write_out(filepath, **kwargs)

    def get_config(self):
        """Everything the constructor needs, so that a saved model can be loaded."""
        towers = {
            name: keras.saving.serialize_keras_object(getattr(self, name))
            for name in ("user_tower", "item_tower", "sampler")
        }
        for config in filter(None, towers.values()):
            config.pop("build_config", None)  # towers are built by being called
        names = ("num_items", "log_q_correction", "temperature", "exclude_seen", "seed")
        return {**super().get_config(), **towers, **{name: getattr(self, name) for name in names}}

    @classmethod
    def from_config(cls, config):
        """The model of a configuration, without its weights."""
        config = dict(config)
        for name in ("user_tower", "item_tower", "sampler"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)


def _as_numpy(vectors):
    return ops.convert_to_numpy(at_least_float32(vectors))  # numpy has no bfloat16
