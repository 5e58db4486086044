"""What full ranking costs: blocks of users against a loop over users, and the memory of blocks.

    python benchmarks/evaluation.py

Random vectors of 64 dimensions, since the cost does not depend on what they say. The interactions
are as many as MovieLens-1M's: 6,040 users, 3,416 items, 165 seen items a user. Where
scikit-learn is installed, a loop that does what the evaluator of fun-rec does takes part, too.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import pandas as pd
from common import alternate, peak_memory, report

try:
    from sklearn.metrics.pairwise import cosine_similarity
except ModuleNotFoundError:
    cosine_similarity = None

from recsys_helpers.metrics import KS, evaluate, metrics_from_ranks, ranks_from_vectors

DIM = 64
MOVIELENS = (6040, 3416, 165)
LARGE = (2000, 100_000, 165)  # a sample of the users; with more, only time grows


def problem(users: int, items: int, seen: int):
    """Random vectors, targets, and distinct seen items, none of which is the target."""
    rng = np.random.default_rng(1)
    user_vectors = rng.normal(size=(users, DIM)).astype("float32")
    item_vectors = rng.normal(size=(items, DIM)).astype("float32")
    # Steps around a circle of items: distinct, and never back at the target.
    targets = rng.integers(1, items + 1, users)
    steps = np.stack([rng.choice(items - 1, seen, replace=False) + 1 for _ in range(users)])
    known = (targets[:, None] - 1 + steps) % items + 1
    frame = pd.DataFrame({"user_id": np.repeat(np.arange(1, users + 1), seen)})
    return user_vectors, item_vectors, targets, frame.assign(item_id=known.ravel())


def in_blocks(user_vectors, item_vectors, targets, seen):
    """Ranks in blocks of users, every metric from the ranks."""
    return metrics_from_ranks(ranks_from_vectors(user_vectors, item_vectors, targets, seen))


def one_by_one(user_vectors, item_vectors, targets, seen):
    """The loop most tutorials write: score, sort and count for one user after the other."""
    seen_by = seen.groupby("user_id")["item_id"].apply(set).to_dict()
    totals: dict[str, list[float]] = {}
    for user, target in enumerate(targets, start=1):
        scores = item_vectors @ user_vectors[user - 1]
        ranking = [i for i in (np.argsort(-scores) + 1).tolist() if i not in seen_by[user]]
        rank = ranking.index(target) + 1
        totals.setdefault("mrr", []).append(1 / rank)
        for k in KS:
            hit = target in ranking[:k]
            totals.setdefault(f"hit_rate@{k}", []).append(float(hit))
            totals.setdefault(f"precision@{k}", []).append(hit / k)
            totals.setdefault(f"ndcg@{k}", []).append(1 / np.log2(rank + 1) if hit else 0.0)
    return {name: float(np.mean(values)) for name, values in totals.items()}


def as_in_fun_rec(user_vectors, item_vectors, targets, seen):
    """Cosines of one user after the other by scikit-learn, all of them sorted.

    This is what the evaluator of fun-rec does (datawhalechina/fun-rec, `evaluate_embedding_model`).
    Seen items are not left out there, so its metrics answer another question.
    """
    users, totals = np.arange(len(targets)), {}
    for user in np.unique(users):
        (found,) = np.where(users == user)
        relevant = list(targets[found])
        scores = cosine_similarity(user_vectors[found[:1]], item_vectors)[0]
        ranking = np.argsort(-scores) + 1
        for k in (5, 10):
            best = list(ranking[:k])
            hits = len(set(best) & set(relevant))
            gains = [1 / np.log2(place + 2) for place, item in enumerate(best) if item in relevant]
            ideal = sum(1 / np.log2(place + 2) for place in range(min(len(relevant), k)))
            totals.setdefault(f"hit_rate@{k}", []).append(float(hits > 0))
            totals.setdefault(f"precision@{k}", []).append(hits / k)
            totals.setdefault(f"ndcg@{k}", []).append(sum(gains) / ideal)
    return {name: float(np.mean(values)) for name, values in totals.items()}


def seconds(function, arguments):
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def large_in_blocks():
    in_blocks(*problem(*LARGE))


def main():
    arguments = problem(*MOVIELENS)
    fast, slow = in_blocks(*arguments), one_by_one(*arguments)
    if not all(np.isclose(fast[name], slow[name], atol=1e-6) for name in slow):
        sys.exit(f"The two disagree: {fast} and {slow}.")
    ranks = ranks_from_vectors(*arguments)
    contenders = {
        "blocks of users, all metrics": lambda: seconds(in_blocks, arguments),
        "loop over users, all metrics": lambda: seconds(one_by_one, arguments),
        "bootstrap intervals of all metrics": lambda: seconds(evaluate, (ranks,)),
    }
    if cosine_similarity is not None:
        contenders["loop over users, as in fun-rec"] = lambda: seconds(as_in_fun_rec, arguments)
    medians = alternate(contenders)
    rows = [
        {"users": MOVIELENS[0], "items": MOVIELENS[1], "what": name, "seconds": value}
        for name, value in medians.items()
    ]
    large = problem(*LARGE)
    rows.append(
        {
            "users": LARGE[0],
            "items": LARGE[1],
            "what": "blocks of users, all metrics",
            "seconds": alternate({"": lambda: seconds(in_blocks, large)})[""],
            "peak_memory_gib": peak_memory(large_in_blocks),
        }
    )
    report("evaluation", rows)


if __name__ == "__main__":
    main()
