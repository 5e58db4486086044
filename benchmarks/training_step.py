"""What a training step costs as the catalogue grows: stock Keras against row-wise updates.

    python benchmarks/training_step.py              everything (five minutes, over 12 GB)
    python benchmarks/training_step.py 10000 100000 these catalogue sizes only

The first model is the smallest two-tower there is: one table, the user tower reads the row of the
item watched last, the item tower that of a candidate; sampled softmax with 1,024 negatives, 1,024
examples a step, 64 dimensions, through ordinary `compile` and `fit`. The others are the book's own
YouTubeDNN and DSSM, with tables of rows and histories of 50 items, 32 examples a step: so few that
nearly all of the rows they read differ in the smallest catalogue, too. With more, a large catalogue
has a step read more rows than a small one, and that isn't the question.

Rows of a large table lie far apart, so finding them costs, too: memory comes in pages, and the
processor remembers where some thousands of them are. All contenders run with large pages, which
glibc asks Linux for when `GLIBC_TUNABLES=glibc.malloc.hugetlb=1`; a second, short table has the
row-wise steps without.
"""

from __future__ import annotations

import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from common import alternate, in_fresh_process, peak_memory, report  # noqa: E402

from recsys_helpers.layers import ItemFeatures  # noqa: E402
from recsys_helpers.rowwise import RowAdagrad, RowAdam, RowEmbedding, RowSGD  # noqa: E402
from recsys_helpers.sampled_softmax import UniformSampler  # noqa: E402
from recsys_helpers.towers import (  # noqa: E402
    DSSMItemTower,
    DSSMUserTower,
    ItemEmbeddingTower,
    YouTubeDNNUserTower,
)
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
TOWERS = ("YouTubeDNN", "DSSM")
TOWER_BATCH, HISTORY, PEOPLE = 32, 50, 100_000


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
    rng = np.random.default_rng(1)
    steps = 20 if row_wise or items <= 100_000 else 3
    last, following = rng.integers(1, items + 1, (2, steps * BATCH, 1)).astype("int32")
    return stepper(items, table, table, OPTIMIZERS[optimizer][row_wise], last, following, BATCH)


def tower_contender(items: int, name: str):
    """The same for the book's own towers, with tables of rows and Adam."""
    rng = np.random.default_rng(1)
    sizes = {"user_id": PEOPLE + 1, "gender": 3, "age": 8, "occupation": 22}
    sizes |= {"history": items + 1, "search": 20, "history_length": HISTORY}
    if name == "DSSM":
        features = {
            "genres": rng.integers(0, 20, (items + 1, 3)).astype("int32"),
            "year": rng.integers(0, 20, items + 1).astype("int32"),
        }
        user = DSSMUserTower(sizes, DIM, table=RowEmbedding)
        item = DSSMItemTower(ItemFeatures(features), DIM, table=RowEmbedding)
    else:
        user = YouTubeDNNUserTower(sizes, DIM, table=RowEmbedding)
        item = ItemEmbeddingTower(items, DIM, table=RowEmbedding)
    rows = 20 * TOWER_BATCH
    inputs = {name: rng.integers(0, sizes[name], rows).astype("int32") for name in [*sizes][:4]}
    inputs["history"] = rng.integers(1, items + 1, (rows, HISTORY)).astype("int32")
    inputs["search"] = rng.integers(0, 20, (rows, 1, 9)).astype("int8")
    inputs["example_age"] = np.zeros((rows, 1), "float32")
    targets = rng.integers(1, items + 1, (rows, 1)).astype("int32")
    return stepper(items, user, item, RowAdam, inputs, targets, TOWER_BATCH)


def stepper(items, user_tower, item_tower, optimizer, inputs, targets, batch_size):
    """A function that trains for some steps and returns the median seconds of one."""
    sampler = UniformSampler(items, NEGATIVES)
    model = TwoTower(user_tower, item_tower, items, sampler, temperature=1.0, seed=1)
    model.compile(optimizer=optimizer(1e-3))
    clock = StepSeconds()

    def measure():
        model.fit(
            inputs, targets, batch_size=batch_size, shuffle=False, verbose=0, callbacks=[clock]
        )
        return np.median(clock.seconds[1:])

    return measure


def train(items: int, layer: str, optimizer: str) -> None:
    contender(items, layer, optimizer)()


def compare(sizes: list[int], optimizer: str, layers: tuple = LAYERS) -> dict:
    """Median seconds of a step, (items, layer) -> seconds, all measured in turns."""
    contenders = {
        (items, layer): contender(items, layer, optimizer) for items in sizes for layer in layers
    }
    return alternate(contenders, ROUNDS)


def compare_towers(sizes: list[int], name: str) -> dict:
    """The same for one of the book's towers, items -> seconds."""
    return alternate({items: tower_contender(items, name) for items in sizes}, ROUNDS)


def main():
    sizes = [int(size) for size in sys.argv[1:]] or list(SIZES)
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"  # of the processes started below
    rows = []
    for optimizer in OPTIMIZERS:
        medians = in_fresh_process(compare, sizes, optimizer)
        for (items, layer), seconds in medians.items():
            rows.append(
                {
                    "items": items,
                    "layer": layer,
                    "optimizer": optimizer,
                    "ms_per_step": 1000 * seconds,
                    "times_smallest": seconds / medians[sizes[0], layer],
                    "peak_memory_gib": peak_memory(train, items, layer, optimizer),
                }
            )
            print(rows[-1], flush=True)
    report("training_step", rows)

    rows = []
    for name in TOWERS:
        medians = in_fresh_process(compare_towers, sizes, name)
        for items, seconds in medians.items():
            row = {"items": items, "towers": name, "ms_per_step": 1000 * seconds}
            rows.append(row | {"times_smallest": seconds / medians[sizes[0]]})
            print(rows[-1], flush=True)
    report("training_step_towers", rows)

    del os.environ["GLIBC_TUNABLES"]
    ends, rows = [sizes[0], sizes[-1]], []
    for optimizer in OPTIMIZERS:
        medians = in_fresh_process(compare, ends, optimizer, ("row-wise",))
        small, large = (1000 * medians[items, "row-wise"] for items in ends)
        row = {"optimizer": optimizer, "items": ends[-1], "ms_per_step": large}
        rows.append(row | {"times_smallest": large / small})
    report("training_step_small_pages", rows)


if __name__ == "__main__":
    main()
