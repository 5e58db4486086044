"""How long the end of an epoch takes: `keras.Model.fit` given arrays, and `TwoTower.fit`.

    python benchmarks/epoch_end.py      five minutes; keep the machine idle

The same model, YouTubeDNN on ml-100k, is trained for one epoch by one and by the other in turns,
with the examples several times over. Work done shows in the seconds of the processor, waiting only
in those of the clock. How long the wait is depends on where an epoch ends between two moments at
which TensorFlow's tuner wakes up, so epochs of several lengths are measured.
"""

from __future__ import annotations

import itertools
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from common import report  # noqa: E402

from recsys_helpers.datasets import load_dataset  # noqa: E402
from recsys_helpers.samples import training_samples  # noqa: E402
from recsys_helpers.splits import leave_last_out  # noqa: E402
from recsys_helpers.towers import ItemEmbeddingTower, YouTubeDNNUserTower  # noqa: E402
from recsys_helpers.two_tower import TwoTower  # noqa: E402

ROUNDS, DIM = 3, 64
TIMES = (3, 4, 5, 6, 8)  # how often an epoch goes through the examples


def main():
    keras.utils.set_random_seed(1)
    split = leave_last_out(load_dataset("ml-100k"))
    samples, items = training_samples(split, positions=16), split.dataset.num_items
    model = TwoTower(YouTubeDNNUserTower(samples.sizes, DIM), ItemEmbeddingTower(items, DIM), items)
    model.compile(optimizer=keras.optimizers.Adam(1e-3))
    contenders = {"keras.Model.fit": keras.Model.fit, "TwoTower.fit": TwoTower.fit}
    rows = []
    for turn, times in [(0, 1), *itertools.product(range(1, ROUNDS + 1), TIMES)]:
        inputs = {name: np.concatenate([value] * times) for name, value in samples.inputs.items()}
        targets = np.concatenate([samples.targets] * times)
        for name, fit in contenders.items():
            clock, processor = time.perf_counter(), time.process_time()
            fit(model, inputs, targets, batch_size=32, verbose=0)
            row = {
                "fit": name,
                "round": turn,
                "times": times,
                "seconds": time.perf_counter() - clock,
                "cpu_seconds": time.process_time() - processor,
            }
            if turn:  # the first compiles
                rows.append(row)
    report("epoch_end", rows)


if __name__ == "__main__":
    main()
