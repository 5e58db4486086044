"""Rank every user's target among all items the user has not seen; everything else follows.

There is one target per user, so a rank says it all: the hit rate, NDCG, precision and reciprocal
rank are functions of it. Ranks are computed in blocks of users, so that no array is ever larger
than a block times the catalogue.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from recsys_helpers.splits import Split

KS = (5, 10, 50)
BLOCK_BYTES = 1 << 24  # of scores: large enough for a quick matrix product, small enough for caches


def ranks_from_vectors(
    user_vectors: np.ndarray,
    item_vectors: np.ndarray,
    targets: np.ndarray,
    seen: pd.DataFrame,
    block_size: int | None = None,
) -> np.ndarray:
    """Rank of each user's target by the dot product with the user's vector.

    The products are computed in float64, and scores that differ by no more than the rounding error
    of such a product count as equal: the same two vectors may have another last digit in another
    column of a matrix product, which would break ties at random.

    Args:
        user_vectors: [u, d]; row i belongs to user i + 1.
        item_vectors: [n, d]; row j belongs to item j + 1.
        targets: [u] item ids.
        seen: interactions (`user_id`, `item_id`, sorted by user) that are not ranked.
        block_size: users per block; None chooses.

    Returns:
        int64 [u], 1-based: 1 + the number of unseen other items that score at least as high.

    Raises:
        ValueError: shapes that do not fit, NaN, a target among the seen items of its user.
    """
    users, items = np.asarray(user_vectors), np.asarray(item_vectors, np.float64)
    if users.ndim != 2 or items.ndim != 2 or users.shape[1] != items.shape[1] or not items.size:
        raise ValueError(
            "user_vectors and item_vectors must have shapes [u, d] and [n, d], "
            f"received {users.shape} and {items.shape}."
        )
    if len(users) != len(targets):
        raise ValueError(
            f"expected one user vector per target, received {len(users)} vectors and "
            f"{len(targets)} targets."
        )
    block_size = block_size or max(1, BLOCK_BYTES // (8 * len(items)))
    transposed = np.ascontiguousarray(items.T)
    longest = np.sqrt(np.max(np.einsum("nd,nd->n", items, items)))
    rounding = 2 * items.shape[1] * np.finfo(np.float64).eps * longest

    def block(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        vectors = users[rows].astype(np.float64)
        return vectors @ transposed, rounding * np.linalg.norm(vectors, axis=1)

    return _ranks(block, targets, seen, block_size)


def ranks_from_scores(
    score_block: Callable[[slice], np.ndarray],
    targets: np.ndarray,
    seen: pd.DataFrame,
    block_size: int = 256,
) -> np.ndarray:
    """Rank of each user's target by scores that are not dot products of vectors.

    Args:
        score_block: for a slice of rows (user i + 1 is row i) the scores [b, n] of all items.
        targets: [u] item ids.
        seen: interactions (`user_id`, `item_id`, sorted by user) that are not ranked.
        block_size: users per block.

    Returns:
        int64 [u], see `ranks_from_vectors`. Only equal scores are ties.

    Raises:
        ValueError: shapes that do not fit, NaN, a target among the seen items of its user.
    """
    return _ranks(lambda rows: (np.asarray(score_block(rows)), 0), targets, seen, block_size)


def evaluate_vectors(
    split: Split, user_vectors: np.ndarray, item_vectors: np.ndarray, target: str = "test"
) -> np.ndarray:
    """Ranks of the "validation" or "test" targets of a split, [num_users].

    Args:
        split: gives the targets, and the seen items that are excluded: all that is known before.
        user_vectors: [num_users, d], from inputs that hold what `split.known(target)` holds.
        item_vectors: [num_items, d].
        target: "validation" or "test".
    """
    if len(item_vectors) != split.dataset.num_items:
        raise ValueError(
            f"expected one vector for each of the {split.dataset.num_items} items, received "
            f"{len(item_vectors)}. Row i must belong to item i + 1: leave the padding row out."
        )
    return ranks_from_vectors(
        user_vectors, item_vectors, split.targets(target), split.known(target)
    )


def user_values(ranks: np.ndarray, metric: str) -> np.ndarray:
    """One metric for every user, float64 [u].

    Args:
        ranks: [u] 1-based.
        metric: "hit_rate@k" (is the target among the first k?), "precision@k" (the share of the
            first k that is the target), "ndcg@k" (1 / log2(1 + rank) among the first k, else 0;
            Järvelin and Kekäläinen 2002, with one relevant item) or "mrr" (1 / rank).
    """
    ranks = np.asarray(ranks)
    if ranks.ndim != 1 or not len(ranks) or ranks.dtype.kind not in "iu" or ranks.min() < 1:
        raise ValueError(
            "ranks must be integers from 1, one per user, received "
            f"{ranks.dtype} {ranks.shape}, smallest {ranks.min() if ranks.size else 'none'}."
        )
    if metric == "mrr":
        return 1 / ranks
    name, _, k = metric.partition("@")
    if not k.isdecimal() or int(k) < 1 or name not in ("hit_rate", "precision", "ndcg"):
        raise ValueError(
            "metric must be hit_rate@k, precision@k, ndcg@k (k from 1) or mrr, "
            f"received {metric!r}."
        )
    hit = (ranks <= int(k)).astype(np.float64)
    if name == "ndcg":
        return hit / np.log2(1 + ranks)
    return hit / int(k) if name == "precision" else hit


def metric_names(ks: tuple[int, ...] = KS) -> list[str]:
    """The metrics of this book: hit rate, NDCG and precision at each k, and MRR."""
    return [f"{name}@{k}" for name in ("hit_rate", "ndcg", "precision") for k in ks] + ["mrr"]


def metrics_from_ranks(ranks: np.ndarray, ks: tuple[int, ...] = KS) -> dict[str, float]:
    """Means over the users of every metric, such as `ndcg@10`."""
    return {name: float(user_values(ranks, name).mean()) for name in metric_names(ks)}


def evaluate(ranks: np.ndarray, ks: tuple[int, ...] = KS) -> pd.DataFrame:
    """Every metric with its interval.

    Returns:
        One row per metric; columns `mean`, `low` and `high`, the 95% bootstrap interval.
    """
    rows = {}
    for name in metric_names(ks):
        values = user_values(ranks, name)
        rows[name] = (values.mean(), *bootstrap_interval(values))
    return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high"])


def recommendation_metrics(
    recommended: np.ndarray, targets: np.ndarray, counts: np.ndarray
) -> dict[str, float]:
    """What lists of recommendations are like: their hits, and how much of the catalogue they show.

    Args:
        recommended: item ids [u, k], the best first, none of them seen by its user.
        targets: [u] item ids.
        counts: [num_items + 1], how often each item occurs in training; entry 0 is padding.

    Returns:
        `hit_rate@k` and `ndcg@k` as in `user_values`; `coverage@k`, the share of the catalogue that
        is recommended to anybody; `popularity@k`, the mean count of a recommended item; and
        `gini@k`, the Gini coefficient of how often items are recommended (0: all equally often, 1:
        the same one always).

    Raises:
        ValueError: on shapes that do not fit, or ids outside the catalogue.
    """
    recommended, targets = np.asarray(recommended), np.asarray(targets)
    counts = np.asarray(counts)
    if recommended.ndim != 2 or targets.shape != recommended.shape[:1] or not recommended.size:
        raise ValueError(
            "expected recommendations of shape [u, k] and one target for each row, received shapes "
            f"{recommended.shape} and {targets.shape}."
        )
    if recommended.min() < 1 or recommended.max() >= len(counts):
        raise ValueError(
            f"expected item ids from 1 to {len(counts) - 1}, received ids from "
            f"{recommended.min()} to {recommended.max()}."
        )
    k = recommended.shape[1]
    hits = recommended == targets[:, None]  # [u, k]
    place = np.where(hits.any(1), hits.argmax(1) + 1, k + 1)
    shown = np.sort(np.bincount(recommended.ravel(), minlength=len(counts))[1:])
    n = len(shown)
    return {
        f"hit_rate@{k}": float(user_values(place, f"hit_rate@{k}").mean()),
        f"ndcg@{k}": float(user_values(place, f"ndcg@{k}").mean()),
        f"coverage@{k}": float((shown > 0).mean()),
        f"popularity@{k}": float(counts[recommended].mean()),
        f"gini@{k}": float(((2 * np.arange(1, n + 1) - n - 1) * shown).sum() / (n * shown.sum())),
    }


def bootstrap_interval(
    per_user_values: np.ndarray, num_samples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean, over users drawn with replacement (Efron 1993, chapter 13).

    How often each *distinct* value is drawn has a multinomial distribution, and metrics of ranks
    have few distinct values: drawing the counts is the same experiment, and quick.

    Args:
        per_user_values: [u], finite.
        num_samples: how many times the users are drawn.
        seed: of the draws.
        level: probability between the two ends.

    Returns:
        The low and the high end.
    """
    values, counts = np.unique(np.asarray(per_user_values, np.float64), return_counts=True)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError("bootstrap needs finite values, one per user, and at least one.")
    if not 0 < level < 1 or num_samples < 1:
        raise ValueError(
            f"level must lie between 0 and 1 and num_samples be at least 1, received {level} and "
            f"{num_samples}."
        )
    generator, users = np.random.default_rng(seed), counts.sum()
    chunk = max(1, (1 << 21) // len(values))
    means = [
        generator.multinomial(users, counts / users, size=min(chunk, num_samples - done)) @ values
        for done in range(0, num_samples, chunk)
    ]
    low, high = np.quantile(np.concatenate(means) / users, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _ranks(block, targets, seen, block_size) -> np.ndarray:
    """`block(rows)` gives scores [b, n], and what differences count as none ([b] or 0)."""
    targets = np.asarray(targets, np.int64)
    offsets, seen_items = _offsets(seen, len(targets))
    ranks = np.empty(len(targets), np.int64)
    for start in range(0, len(targets), block_size):
        rows = slice(start, min(start + block_size, len(targets)))
        scores, slack = block(rows)
        _check_block(scores, rows, targets[rows])
        own = scores[np.arange(len(scores)), targets[rows] - 1]
        ahead = scores >= np.subtract(own, slack)[:, None]  # [b, n], the target included

        lengths = np.diff(offsets[start : rows.stop + 1])
        items = seen_items[offsets[start] : offsets[rows.stop]]
        in_row = np.repeat(np.arange(len(scores)), lengths)
        if (items == targets[rows][in_row]).any():
            user = start + 1 + in_row[items == targets[rows][in_row]][0]
            raise ValueError(
                f"user {user}'s target, item {targets[user - 1]}, is among the user's seen items; "
                "expected it not to be known yet."
            )
        ahead[in_row, items - 1] = False
        ranks[rows] = ahead.sum(axis=1)
    return ranks


def _check_block(scores: np.ndarray, rows: slice, targets: np.ndarray) -> None:
    if scores.ndim != 2 or len(scores) != len(targets) or scores.shape[1] < targets.max():
        raise ValueError(
            f"expected scores of shape [{len(targets)}, number of items] for users "
            f"{rows.start + 1} to {rows.stop}, whose largest target is item {targets.max()}, "
            f"received {scores.shape}."
        )
    if targets.min() < 1:
        raise ValueError(f"targets are item ids from 1, received {targets.min()}.")
    if np.isnan(scores.min()):  # the minimum of anything with a NaN is NaN
        user = rows.start + 1 + int(np.isnan(scores).any(axis=1).argmax())
        raise ValueError(
            f"the scores of user {user} contain NaN, so they rank nothing. Has the training "
            "diverged, or was something divided by zero?"
        )


def _offsets(seen: pd.DataFrame, num_users: int) -> tuple[np.ndarray, np.ndarray]:
    """Row i + 1's items are `items[offsets[i]:offsets[i + 1]]`."""
    users, items = seen["user_id"].to_numpy(), seen["item_id"].to_numpy()
    if len(users) and (users[0] < 1 or users[-1] > num_users or (users[1:] < users[:-1]).any()):
        raise ValueError(
            f"seen must be sorted by user_id, from 1 to the number of targets ({num_users}); "
            f"received ids from {users.min()} to {users.max()}."
        )
    return np.searchsorted(users, np.arange(1, num_users + 2)), items
