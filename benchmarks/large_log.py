"""What a large log costs before the first training step: seconds and memory.

    python benchmarks/large_log.py              25 million interactions (five minutes, 3 GB of disk)
    python benchmarks/large_log.py 1000000      fewer

The log is generated: users with lengths like MovieLens-25M's (lognormal, twenty at least), items by
Zipf's law, each user's events in sessions over the years. It is written as parquet with genres of
the items beside it, and read in a fresh process: load, split, samples in rows of 32 moments, and
YouTubeDNN's first step on them with 1,024 sampled negatives.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from common import in_fresh_process, peak_memory_so_far, report  # noqa: E402

EVENTS, EVENTS_PER_USER, ITEMS = 25_000_000, 156, 60_000
DAY, YEARS = 86_400, (900_000_000, 1_570_000_000)
DIM, POSITIONS, NEGATIVES, ROWS = 64, 32, 1024, 64


def write(folder: str, events: int) -> None:
    """The log and its items' genres, as a shop or a site would hand them over."""
    rng = np.random.default_rng(0)
    num_users = max(10, events // EVENTS_PER_USER)
    lengths = np.maximum(20, rng.lognormal(4.2, 1.15, num_users))
    lengths = np.minimum(lengths * 1.4 * events / lengths.sum(), ITEMS / 3).astype(int)
    users = np.repeat(np.arange(1, num_users + 1), lengths)
    popularity = np.cumsum(1 / (np.arange(1, ITEMS + 1) + 30) ** 0.95)
    draws = np.searchsorted(popularity, rng.random(len(users)) * popularity[-1])
    pairs = np.unique(users * ITEMS + draws)  # nobody has the same item twice
    pairs = pairs[np.sort(rng.permutation(len(pairs))[:events])]
    users, items = pairs // ITEMS, rng.permutation(ITEMS)[pairs % ITEMS] + 1
    sessions = rng.integers(*YEARS, num_users + 1)[users]
    sessions += rng.exponential(30 * DAY, len(users)).astype(int) // 3_600 * 3_600
    times = sessions + rng.integers(0, 3_600, len(users))
    table = pd.DataFrame({"user_id": users, "item_id": items, "timestamp": times})
    table.to_parquet(f"{folder}/interactions.parquet")
    genres = [list(rng.choice(19, int(n), replace=False)) for n in rng.integers(1, 7, ITEMS)]
    pd.DataFrame({"item_id": np.arange(1, ITEMS + 1), "genres": genres}).to_parquet(
        f"{folder}/items.parquet"
    )


def measure(folder: str) -> list[dict]:
    """Seconds and peak memory when each stage is done."""
    start, rows = time.perf_counter(), []

    def done(stage: str) -> None:
        seconds, peak = time.perf_counter() - start, peak_memory_so_far()
        rows.append({"stage": stage, "seconds": seconds, "peak_memory_gib": peak})

    from recsys_helpers.datasets import load_dataset
    from recsys_helpers.samples import training_samples
    from recsys_helpers.splits import leave_last_out

    dataset = load_dataset(folder, verbose=False)
    done("loaded")
    split = leave_last_out(dataset, verbose=False)
    del dataset
    done("split")
    samples, num_items = training_samples(split, positions=POSITIONS), split.dataset.num_items
    counts = np.bincount(samples.targets[samples.targets > 0], minlength=num_items + 1)
    done("samples")

    import keras

    from recsys_helpers.sampled_softmax import PopularitySampler
    from recsys_helpers.towers.youtubednn import ItemEmbeddingTower, YouTubeDNNUserTower
    from recsys_helpers.two_tower import TwoTower

    model = TwoTower(
        YouTubeDNNUserTower(samples.sizes, DIM),
        ItemEmbeddingTower(num_items, DIM),
        num_items,
        PopularitySampler(counts, NEGATIVES, alpha=0.5),
        temperature=0.1,
        exclude_seen=True,
    )
    model.compile(optimizer="adam")

    class FirstStep(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            done("first training step")
            self.model.stop_training = True

    model.fit(samples.inputs, samples.targets, ROWS, verbose=0, callbacks=[FirstStep()])
    return [{"interactions": len(split.train)} | row for row in rows]


def main():
    events = int(sys.argv[1]) if len(sys.argv) > 1 else EVENTS
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "log"
        folder.mkdir()
        in_fresh_process(write, str(folder), events)
        report("large_log", in_fresh_process(measure, str(folder)))


if __name__ == "__main__":
    main()
