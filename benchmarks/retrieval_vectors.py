"""Item and user vectors for `retrieval.py`: a million items, no two of them alike.

    python benchmarks/retrieval_vectors.py vectors.npz          a million items (half an hour, 9 GB)
    python benchmarks/retrieval_vectors.py vectors.npz 20000    fewer

No public log of a million items is small enough to come with a book, so the log is generated; the
model is this package's, chapter 4's DSSM with tables of rows, trained through `fit` on the next
item of every moment. An item has a value in each of six facets (think of a make, a style, a price),
and there are far more combinations than items. A user likes two values of each, and says so in the
profile. For a few events in a row a user asks for two of the facets and takes an item that has both
of the values that are liked, the popular ones more often. Item vectors come from the facets and
from a row of the item's own, which is learned from its own events, fifteen on average.

Beside the vectors goes what the model is worth: how often it has a test target among the first
hundred, and how close the nearest neighbours of an item are.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from common import report  # noqa: E402

ITEMS, SPARE = 1_000_000, 1.15  # some will have fewer than five events, and drop out
EVENTS_PER_ITEM, EVENTS_PER_USER = 15, 60
FACETS, VALUES, LIKED, RUN = 6, 40, 2, 6
DIM, POSITIONS, ROWS, NEGATIVES, SEED = 64, 32, 64, 1024, 1
ASKED = 500  # users


def log(items: int, events: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Events, nobody has an item twice; what users say that they like; the items' facets."""
    rng = np.random.default_rng(SEED)
    popular = 1 / np.arange(2, VALUES + 2) ** 0.6
    popular /= popular.sum()
    # The first facet bends the others: half of the time the value is usual for the first's.
    first = rng.choice(VALUES, items, p=popular)
    usual = np.array([rng.permutation(VALUES) for _ in range(FACETS * VALUES)])
    usual = usual.reshape(FACETS, VALUES, VALUES)
    own = np.empty((items, FACETS), np.int64)  # the items' values; items by falling popularity
    own[:, 0] = first
    for facet in range(1, FACETS):
        drawn = rng.choice(VALUES, items, p=popular)
        bent = usual[facet, first, rng.choice(VALUES, items, p=popular)]
        own[:, facet] = np.where(rng.random(items) < 0.5, bent, drawn)
    users = events // EVENTS_PER_USER
    liked = own[rng.integers(0, items, (users, LIKED))].transpose(0, 2, 1)  # those of some items
    user = np.repeat(np.arange(users), EVENTS_PER_USER)
    run = np.arange(len(user)) // RUN
    pairs = [(a, b) for a in range(FACETS) for b in range(a)]
    pair = rng.integers(0, len(pairs), run[-1] + 1)[run]
    chosen, skewed = np.full(len(user), -1), rng.random(len(user)) ** 1.6
    for number, (a, b) in enumerate(pairs):
        key = own[:, a] * VALUES + own[:, b]
        order = np.argsort(key, kind="stable")  # within a pair of values by popularity
        start = np.searchsorted(key[order], np.arange(VALUES**2 + 1))
        at = np.flatnonzero(pair == number)
        likes = rng.integers(0, LIKED, (run[-1] + 1, 2))[run[at]]  # the same in a run
        wanted = liked[user[at], a, likes[:, 0]] * VALUES + liked[user[at], b, likes[:, 1]]
        size = start[wanted + 1] - start[wanted]
        place = start[wanted] + (size * skewed[at]).astype(int)
        chosen[at[size > 0]] = order[place[size > 0]]
    table = pd.DataFrame({"user_id": user, "item_id": chosen})[chosen >= 0]
    table = table.drop_duplicates().reset_index(drop=True)
    facets = pd.DataFrame(own, columns=[f"facet_{facet}" for facet in range(FACETS)]).astype(str)
    facets.insert(0, "item_id", np.arange(items))
    named = {f"likes_{f}_{i}": liked[:, f, i] for f in range(FACETS) for i in range(LIKED)}
    tastes = pd.DataFrame(named).astype(str)
    tastes.insert(0, "user_id", np.arange(users))
    return table.assign(position=table.groupby("user_id").cumcount()), tastes, facets


def train(items: int):
    """The split, the trained model, its samples, and its loss."""
    import keras

    from recsys_helpers.datasets import Dataset
    from recsys_helpers.layers import ItemFeatures
    from recsys_helpers.rowwise import RowAdam, RowEmbedding
    from recsys_helpers.sampled_softmax import PopularitySampler
    from recsys_helpers.samples import item_features, training_samples
    from recsys_helpers.splits import leave_last_out
    from recsys_helpers.towers.dssm import DSSMItemTower, DSSMUserTower
    from recsys_helpers.two_tower import TwoTower

    keras.utils.set_random_seed(SEED)
    generated = int(SPARE * items)
    events, tastes, facets = log(generated, generated * EVENTS_PER_ITEM)
    fields = {"users": [*tastes][1:], "items": [*facets][1:]}
    dataset = Dataset.from_tables(events, tastes, facets, name="generated", verbose=False)
    del events
    split = leave_last_out(dataset)
    samples = training_samples(split, positions=POSITIONS, user_fields=fields["users"])
    num_items, targets = split.dataset.num_items, samples.targets[samples.targets > 0]
    features = ItemFeatures(item_features(split.dataset, fields["items"]))
    kind = {"table": RowEmbedding, "hidden": ()}
    model = TwoTower(
        DSSMUserTower(samples.sizes, DIM, fields=fields["users"], last=1, **kind),
        DSSMItemTower(features, DIM, **kind),
        num_items,
        PopularitySampler(np.bincount(targets, minlength=num_items + 1), NEGATIVES, alpha=0.5),
        temperature=0.1,
        seed=SEED,
    )
    model.compile(optimizer=RowAdam(3e-3))
    history = model.fit(samples.inputs, samples.targets, ROWS, verbose=2)
    return split, model, samples, history.history["loss"][-1]


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def neighbours(vectors: np.ndarray) -> dict:
    """Median cosine of some items to their nearest and to their 32nd other item."""
    some = np.random.default_rng(SEED).choice(len(vectors), 200, replace=False)
    scores = vectors[some] @ vectors.T
    scores[np.arange(len(some)), some] = -1
    nearest = -np.partition(-scores, (0, 31), axis=1)
    return {"nearest": float(np.median(nearest[:, 0])), "32nd": float(np.median(nearest[:, 31]))}


def main():
    path, items = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else ITEMS
    split, model, samples, loss = train(items)
    vectors, users = unit(model.item_vectors()), model.user_vectors(samples.serving_inputs("test"))
    rng = np.random.default_rng(SEED)
    asked = rng.choice(len(users), ASKED, replace=False)
    queries, targets = unit(users[asked]), split.targets("test")[asked]
    counts = np.bincount(split.train["item_id"], minlength=len(vectors) + 1)[1:]

    def hits(scores):
        own = np.take_along_axis(scores, targets[:, None] - 1, 1)
        return float(np.mean((scores > own).sum(1) < 100))

    kept = np.sort(rng.permutation(len(vectors))[:items])
    random = unit(rng.normal(size=(len(kept), DIM)))
    facts = {
        "users": split.dataset.num_users,
        "items": split.dataset.num_items,
        "interactions": len(split.dataset.interactions),
        "kept": len(kept),
        "loss": loss,
        "hit_rate@100": hits(queries @ vectors.T),
        "popularity_hit_rate@100": hits(np.broadcast_to(counts, (ASKED, len(counts)))),
        "guessing_hit_rate@100": 100 / len(vectors),
    }
    facts |= {f"cosine_{name}": value for name, value in neighbours(vectors[kept]).items()}
    facts |= {f"random_cosine_{name}": value for name, value in neighbours(random).items()}
    np.savez(path, items=vectors[kept], users=queries)
    report("retrieval_vectors", [facts])


if __name__ == "__main__":
    main()
