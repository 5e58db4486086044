"""What `TwoTower.fit` does with arrays: check them, split them, deal them out in batches."""

from __future__ import annotations

import random

import keras
import numpy as np

from recsys_helpers.samples import num_rows


def whole_size(batch_size, default):
    """The batch size, `default` where it is None.

    Raises:
        ValueError: if it is no whole number from 1.
    """
    size = default if batch_size is None else batch_size
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
        raise ValueError(f"batch_size must be a whole number from 1, received {batch_size!r}.")
    return int(size)


def as_arrays(inputs):
    """Inputs by name as they are, but lists as arrays; ValueError if those have uneven rows."""
    if not isinstance(inputs, dict):
        return inputs
    return {k: _array(v, k) if isinstance(v, (list, tuple)) else v for k, v in inputs.items()}


def _array(values, name):
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"{name} must have rows of one length, received others. Fill them with 0 on the left."
        ) from error


def checked_arrays(x, y, weight, num_items):
    """The arrays of `fit` and `evaluate`, if they fit each other and the catalogue.

    Args:
        x: inputs, an array or name -> array, n rows.
        y: item ids [n, T], 0 for none, on the left of a row only.
        weight: None, or of each row [n] or each target [n, T].
        num_items: size of the catalogue.

    Returns:
        x, y int32 [n, T] and weight, None or float32 [n, T].

    Raises:
        ValueError: naming what differs, or the first row whose targets are none.
    """
    x = keras.tree.map_structure(np.asarray, as_arrays(x))
    y = _array(y, "targets")
    rows = {"targets": num_rows(y)}
    rows |= {name: num_rows(v) for name, v in (x.items() if isinstance(x, dict) else [("x", x)])}
    if weight is not None:
        weight = np.asarray(weight, "float32")
        rows["sample_weight"] = num_rows(weight)
    if len(set(rows.values())) > 1 or not y.size:
        raise ValueError(f"expected equally many rows in all arrays, received {rows}.")
    if y.ndim != 2 or y.dtype.kind not in "iu":
        raise ValueError(
            f"expected targets of item ids [n, T], received {y.dtype} of shape {y.shape}. One "
            "target a row is targets[:, None]."
        )
    gap = (y[:, -1] == 0) | ((y[:, :-1] > 0) & (y[:, 1:] == 0)).any(1)
    outside = (y < 0) | (y > num_items)
    if outside.any() or gap.any():
        row = int(np.argmax(outside.any(1) | gap))
        raise ValueError(
            f"expected targets from 1 to {num_items}, with 0 for none on the left of a row only, "
            f"received {y[row].tolist()} in row {row}. Do ids count from 0, or belong to another "
            "numbering?"
        )
    if weight is not None:
        if weight.shape not in ((len(y),), y.shape):
            raise ValueError(
                f"expected sample_weight of shape {(len(y),)} or {y.shape}, received "
                f"{weight.shape}."
            )
        if odd := weight[~((weight >= 0) & (weight < np.inf))].tolist():
            raise ValueError(f"sample_weight must be finite and not negative, received {odd[0]}.")
        weight = np.broadcast_to(weight.reshape(len(y), -1), y.shape)
    return [x, y.astype("int32", copy=False), weight]


def check_negatives(sampler, y, batch_size):
    """Refuse batches of one target, which would have no negatives where they are the others.

    Raises:
        ValueError: if the sampler takes a batch's own targets, and no batch of y [n, T] has two.
    """
    if getattr(sampler, "num_sampled", 0) is None and min(batch_size, len(y)) * y.shape[1] < 2:
        raise ValueError(
            f"{type(sampler).__name__}: the negatives of a target are the others of its batch, but "
            f"received {len(y)} rows of one target, in batches of {batch_size}. Make the batch "
            "larger, or use a sampler that draws."
        )


def split_off(arrays, share):
    """The first rows to train on, and the last `share` of them, as Keras splits arrays."""
    rows = len(arrays[1])
    first = int(rows * (1 - share))
    if not 0 < first < rows:
        raise ValueError(f"validation_split={share} leaves no rows on one side of {rows}.")
    return rows_of(arrays, slice(None, first)), rows_of(arrays, slice(first, None))


def rows_of(arrays, rows):
    """The same rows, a slice or numbers, of all arrays; what is None stays so."""
    return keras.tree.map_structure(lambda a: None if a is None else a[rows], arrays)


def shuffled_batches(arrays, batch_size, shuffle):
    """Batches of arrays as Keras makes them, but shuffled anew in each epoch, and not autotuned.

    Rows are gathered by numpy when they are needed, so the arrays are held once. Keras shuffles by
    an operation within the pipeline; with a seed set, that operation starts from the same state for
    each epoch, and so gives the same order.

    The thread that tunes an input pipeline sleeps longer and longer while an epoch lasts, and the
    end of the epoch may have to wait for it to wake up: an epoch can take twice its time, with
    nothing done in the second half. A pipeline of slices has nothing to tune.
    """
    import tensorflow as tf

    x, y, weight = arrays
    arrays = (x, y) if weight is None else (x, y, weight)
    generator = np.random.default_rng(random.getrandbits(32))  # as set_random_seed says

    def epoch():
        order = np.arange(len(y))
        if shuffle:
            generator.shuffle(order)
        for start in range(0, len(y), batch_size):
            yield rows_of(arrays, order[start : start + batch_size])

    signature = keras.tree.map_structure(
        lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype), arrays
    )
    batches = tf.data.Dataset.from_generator(epoch, output_signature=signature)
    steps = -(-len(y) // batch_size)
    batches = batches.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.with_options(options)


def num_replicas():
    """Devices that a batch is shared out to by a strategy of TensorFlow, whose gradients add up."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def of_all_replicas(values):
    """The values [b] of every device that a batch is shared out to, one after the other."""
    if num_replicas() == 1:
        return values
    import tensorflow as tf

    return tf.distribute.get_replica_context().all_gather(values, axis=0)
