"""What the sampled softmax saves as the number of classes grows: full against sampled.

    python benchmarks/softmax.py                two minutes on an idle machine, up to 10 GB
    python benchmarks/softmax.py 10000 100000   these numbers of classes only

Loss and gradient of 256 examples of 64 dimensions, and no optimizer. Both losses start from the
same table, a variable, and the same given user vectors; both return the gradient of the user
vectors and that of the table.

- full: the logits of all classes, one matrix product; the gradient of the table is dense. So that
  its arrays fit into memory, the batch goes through in equal pieces, one after the other, with at
  most `LOGITS` logits each (all 256 examples at once up to a million classes, 64 at five million).
  Their gradients are not added up, which would come on top.
- sampled: 1,024 negatives, drawn anew each time from the log-uniform distribution, shared by the
  batch. Rows are looked up in the variable, and the gradient holds these rows only.
"""

from __future__ import annotations

import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from common import alternate, in_fresh_process, report  # noqa: E402

from recsys_helpers.rowwise import RowEmbedding  # noqa: E402
from recsys_helpers.sampled_softmax import (  # noqa: E402
    PopularitySampler,
    sampled_softmax_loss,
)

CLASSES = (10_000, 100_000, 1_000_000, 5_000_000)
BATCH, DIM, NEGATIVES = 256, 64, 1024
ROUNDS = 5
LOGITS = 2**29  # in one array, 2 GiB
CALLS = 20  # of the sampled loss in one measurement: a single one is short


def full_softmax_loss(users, table, targets):
    """Loss of each example, by TensorFlow's fused operation, which is faster than the package's."""
    # Row 0, padding, counts as a class: to leave it out would copy the table.
    logits = tf.matmul(users, table, transpose_b=True)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)


def examples_at_once(classes: int) -> int:
    """How many examples of the batch the full softmax takes at a time."""
    examples = BATCH
    while examples * (classes + 1) > LOGITS:
        examples //= 2
    return examples


def contenders(classes: int) -> dict:
    """Functions that return the seconds of one batch's loss and gradient, by name."""
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(1)
    table = RowEmbedding(classes + 1, DIM, stddev=1 / 8)
    users = tf.constant(rng.normal(size=(BATCH, DIM)).astype("float32"))
    targets = tf.constant(rng.integers(1, classes + 1, BATCH).astype("int32"))
    # Log-uniform: the class of rank r has log(1 + 1 / r), as in tf.nn.sampled_softmax_loss.
    weights = np.r_[0, np.log1p(1 / np.arange(1, classes + 1))]
    sampler, seeds = PopularitySampler(weights, NEGATIVES, 1.0), keras.random.SeedGenerator(1)

    def full(users, targets):
        return full_softmax_loss(users, table.embeddings.value, targets)

    def sampled(users, targets):
        ids, log_expected_count = sampler.sample(seeds)
        return sampled_softmax_loss(
            users, table(targets), table(ids), targets, ids, log_expected_count
        )

    def clock(loss_of, examples, calls):
        @tf.function
        def gradients(users, targets):
            with tf.GradientTape() as tape:
                tape.watch(users)
                loss = tf.reduce_sum(loss_of(users, targets)) / BATCH
            return tape.gradient(loss, [users, table.embeddings.value])

        pieces = [
            (users[start : start + examples], targets[start : start + examples])
            for start in range(0, BATCH, examples)
        ]

        def measure():
            begin = time.perf_counter()
            for _ in range(calls):
                for piece in pieces:
                    gradients(*piece)[0].numpy()
            return (time.perf_counter() - begin) / calls

        return measure

    return {
        "full": clock(full, examples_at_once(classes), 1),
        "sampled": clock(sampled, BATCH, CALLS),
    }


def compare(classes: int) -> dict:
    """Median seconds of both, measured in turns."""
    return alternate(contenders(classes), ROUNDS)


def main():
    rows = []
    for classes in [int(size) for size in sys.argv[1:]] or CLASSES:
        medians = in_fresh_process(compare, classes)
        rows.append(
            {
                "classes": classes,
                "full_ms": 1000 * medians["full"],
                "sampled_ms": 1000 * medians["sampled"],
                "ratio": medians["full"] / medians["sampled"],
                "full_examples_at_once": examples_at_once(classes),
            }
        )
        print(rows[-1], flush=True)
    report("softmax", rows)


if __name__ == "__main__":
    main()
