"""What a training step costs as the catalogue grows: stock Keras against row-wise updates.

    python benchmarks/training_step.py              everything (about ten minutes, 12 GB)
    python benchmarks/training_step.py 10000 100000 these catalogue sizes only

The model is the smallest two-tower there is: one table, the user tower reads the row of the item
watched last, the item tower that of a candidate; sampled softmax with 1,024 negatives, 1,024
examples a step, 64 dimensions, through ordinary `compile` and `fit`.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from common import alternate, report  # noqa: E402

from recsys_helpers.rowwise import RowAdagrad, RowAdam, RowEmbedding, RowSGD  # noqa: E402
from recsys_helpers.sampled_softmax import UniformSampler  # noqa: E402
from recsys_helpers.two_tower import TwoTower  # noqa: E402

SIZES = (10_000, 100_000, 1_000_000, 5_000_000)
DIM, BATCH, NEGATIVES = 64, 1024, 1024
ROUNDS = 5
OPTIMIZERS = {
    "SGD": (keras.optimizers.SGD, RowSGD),
    "Adagrad": (keras.optimizers.Adagrad, RowAdagrad),
    "Adam": (keras.optimizers.Adam, RowAdam),
}
LAYERS = ("stock", "row-wise")


class StepSeconds(keras.callbacks.Callback):
    """How long each step took."""

    def on_train_begin(self, logs=None):
        self.seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds.append(time.perf_counter() - self.start)


def contender(items: int, layer: str, optimizer: str):
    """A function that trains for some steps and returns the median seconds of one."""
    row_wise = layer == "row-wise"
    table = (RowEmbedding if row_wise else keras.layers.Embedding)(items + 1, DIM)
    table.build(None)
    model = TwoTower(table, table, items, UniformSampler(items), NEGATIVES, temperature=1.0, seed=1)
    model.compile(optimizer=OPTIMIZERS[optimizer][row_wise](1e-3))
    rng = np.random.default_rng(1)
    steps = 20 if row_wise or items <= 100_000 else 3
    last, following = rng.integers(1, items + 1, (2, steps * BATCH)).astype("int32")
    clock = StepSeconds()

    def measure():
        model.fit(last, following, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[clock])
        return np.median(clock.seconds[1:])

    return measure


def peak_memory(items: int, layer: str, optimizer: str) -> float:
    """Peak memory of a process that does nothing but train, GiB (Linux)."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_train_and_look, (items, layer, optimizer))


def _train_and_look(items, layer, optimizer):
    contender(items, layer, optimizer)()
    # Not getrusage, whose peak begins with that of the process this one was forked from.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20


def main():
    sizes = [int(size) for size in sys.argv[1:]] or SIZES
    rows = []
    for optimizer in OPTIMIZERS:
        contenders = {
            (items, layer): contender(items, layer, optimizer)
            for items in sizes
            for layer in LAYERS
        }
        medians = alternate(contenders, ROUNDS)
        smallest = {layer: medians[sizes[0], layer] for layer in LAYERS}
        del contenders
        for (items, layer), seconds in medians.items():
            row = {"items": items, "layer": layer, "optimizer": optimizer}
            row["ms_per_step"] = 1000 * seconds
            row["times_smallest"] = seconds / smallest[layer]
            row["peak_memory_gib"] = peak_memory(items, layer, optimizer)
            rows.append(row)
            print(row, flush=True)
    report("training_step", rows)


if __name__ == "__main__":
    main()
