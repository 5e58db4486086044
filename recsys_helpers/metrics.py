"""Rank every user's target among all items the user has not seen; everything else follows.

There is one target per user, so a rank says it all: the hit rate, NDCG, precision and reciprocal
rank are functions of it. Ranks are computed in blocks of users, so that no array is ever larger
than a block times the catalogue.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from recsys_helpers.bootstrap import interval
from recsys_helpers.splits import Split

KS = (5, 10, 50)
WIDE_KS = (100, 200, 500)  # for the hit rate: is the target among what a later stage would rank?
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
        seen: interactions (`user_id`, `item_id`, in any order) that are not ranked.
        block_size: users per block; None chooses.

    Returns:
        int64 [u], 1-based: 1 + the number of unseen other items that score at least as high.

    Raises:
        ValueError: shapes that do not fit, a block of no users, NaN, ids that are unknown, a target
            among the seen items of its user.
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
    if block_size is None:
        block_size = max(1, BLOCK_BYTES // (8 * len(items)))
    transposed = np.ascontiguousarray(items.T)
    longest = _lengths(items, "item").max()
    rounding = 2 * items.shape[1] * np.finfo(np.float64).eps * longest

    def block(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        vectors = users[rows].astype(np.float64)
        return vectors @ transposed, rounding * _lengths(vectors, "user", rows.start)

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
        seen: interactions (`user_id`, `item_id`, in any order) that are not ranked.
        block_size: users per block.

    Returns:
        int64 [u], see `ranks_from_vectors`. Only equal scores are ties.

    Raises:
        ValueError: shapes that do not fit, a block of no users, NaN, ids that are unknown, a target
            among the seen items of its user.
    """
    return _ranks(lambda rows: (np.asarray(score_block(rows)), 0), targets, seen, block_size)


def evaluate_vectors(
    split: Split, user_vectors: np.ndarray, item_vectors: np.ndarray, target: str = "test"
) -> np.ndarray:
    """Ranks of the "validation" or "test" targets of a split, [num_users].

    Args:
        split: gives the targets, and what the users have seen, which is not ranked.
        user_vectors: [num_users, d], from inputs that hold what `split.known(target)` holds.
        item_vectors: [num_items, d].
        target: "validation" or "test".
    """
    if len(item_vectors) != split.dataset.num_items:
        raise ValueError(
            f"expected one vector for each of the {split.dataset.num_items} items, received "
            f"{len(item_vectors)}. Row i must belong to item i + 1: leave the padding row out."
        )
    return ranks_from_vectors(user_vectors, item_vectors, split.targets(target), split.seen(target))


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
    ranks = ranks.astype(np.int64, copy=False)  # of int8 numpy would make float16
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


def metric_names(ks: tuple[int, ...] | None = None) -> list[str]:
    """Hit rate, NDCG and precision at each k, and MRR; None: at KS, and hit rates at WIDE_KS."""
    names = [f"{name}@{k}" for name in ("hit_rate", "ndcg", "precision") for k in ks or KS]
    return [*names, "mrr", *(f"hit_rate@{k}" for k in (() if ks else WIDE_KS))]


def metrics_from_ranks(ranks: np.ndarray, ks: tuple[int, ...] | None = None) -> dict[str, float]:
    """Means over the users of all metrics, see `metric_names`."""
    return {name: float(user_values(ranks, name).mean()) for name in metric_names(ks)}


def evaluate(ranks: np.ndarray) -> pd.DataFrame:
    """All metrics with their intervals.

    Returns:
        One row per metric; columns `mean`, `low` and `high`, the 95% bootstrap interval.
    """
    values = {name: user_values(ranks, name) for name in metric_names()}
    rows = [(v.mean(), *bootstrap_interval(v)) for v in values.values()]
    return pd.DataFrame(rows, index=list(values), columns=["mean", "low", "high"])


class Difference(NamedTuple):
    """A mean difference and its 95% interval; `f"{it:+.4f}"` reads "+0.0123 [+0.0100, +0.0145]"."""

    difference: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.difference:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def compare(ranks: np.ndarray, other_ranks: np.ndarray, metric: str) -> Difference:
    """How much larger a metric is than another model's, on the same users.

    Differences of the same user vary less than the two models do, so they tell models apart whose
    own intervals overlap.

    Args:
        ranks: [u], or [runs, u], such as one row a seed, whose mean is taken user by user.
        other_ranks: the same of the other model, for the same users in the same order.
        metric: see `user_values`.

    Raises:
        ValueError: if there are not as many users in both.
    """
    ours, theirs = (
        np.mean([user_values(run, metric) for run in np.atleast_2d(r)], axis=0)
        for r in (ranks, other_ranks)
    )
    if ours.shape != theirs.shape:
        raise ValueError(
            "expected ranks of the same users, received those of "
            f"{len(ours)} and of {len(theirs)} users."
        )
    return Difference(float((ours - theirs).mean()), *bootstrap_interval(ours - theirs))


def recall(found, best) -> float:
    """Share of the exact best items that approximate search has found, the mean over queries.

    Args:
        found: for each of u queries the ids that were found, [u, k] or u collections.
        best: [u, k] the ids that `ExactIndex` gives for the same queries.

    Raises:
        ValueError: on another shape, on no ids, or if there are not as many in both.
    """
    best = np.asarray(best)
    if best.ndim != 2 or not best.size or len(found) != len(best) or any(map(np.isscalar, found)):
        raise ValueError(
            "expected exact ids [u, k] and as many lists found, received shape "
            f"{best.shape} and {len(found)}. Of one query it is ids[None]."
        )
    lists = [ids if isinstance(ids, np.ndarray) else list(ids) for ids in found]
    return float(np.mean([np.isin(b, f).mean() for b, f in zip(best, lists, strict=True)]))


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
        ValueError: on shapes that do not fit, ids outside the catalogue, an item that a list shows
            twice.
    """
    recommended, targets, counts = map(np.asarray, (recommended, targets, counts))
    if recommended.ndim != 2 or targets.shape != recommended.shape[:1] or not recommended.size:
        raise ValueError(
            "expected recommendations of shape [u, k] and one target for each row, received shapes "
            f"{recommended.shape} and {targets.shape}."
        )
    rows = np.arange(len(targets))
    _check_items(recommended, len(counts) - 1, "recommended items", rows)
    _check_items(targets, len(counts) - 1, "target", rows)
    ordered = np.sort(recommended, axis=1)
    twice = ordered[:, 1:] == ordered[:, :-1]  # [u, k - 1]
    if twice.any():
        row, place = np.argwhere(twice)[0]
        raise ValueError(f"user {row + 1} is recommended item {ordered[row, place]} twice.")
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
    per_user_values: np.ndarray, num_samples: int = 10_000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean, over users drawn with replacement (Efron 1993, chapter 13).

    How often each *distinct* value is drawn has a multinomial distribution, and metrics of ranks
    have few distinct values: drawing the counts is the same experiment, and quick. With many
    distinct values it is quicker to draw the users.

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
    counted = 16 * len(values) < users  # a count takes about as long as drawing 16 users
    everyone = np.repeat(values, counts)

    def means(size: int) -> np.ndarray:
        if counted:
            return generator.multinomial(users, counts / users, size) @ values / users
        return everyone[generator.integers(0, users, (size, users))].mean(axis=1)

    chunk = max(1, (1 << 21) // (len(values) if counted else users))
    drawn = [means(min(chunk, num_samples - done)) for done in range(0, num_samples, chunk)]
    return interval(np.concatenate(drawn), level)


def items_by_user(table: pd.DataFrame, num_users: int) -> tuple[np.ndarray, np.ndarray]:
    """Who has which items: user i + 1's are `items[offsets[i]:offsets[i + 1]]`.

    Args:
        table: `user_id` and `item_id`, in any order; what a user has keeps it.
        num_users: none may have a larger id.

    Returns:
        offsets [num_users + 1] and items [rows].
    """
    if not len(table):
        return np.zeros(num_users + 1, np.int64), np.zeros(0, np.int64)
    users, items = table["user_id"].to_numpy(), table["item_id"].to_numpy()
    if users.dtype.kind not in "iu" or users.min() < 1 or users.max() > num_users:
        raise ValueError(
            f"seen items: user_id must be integers from 1 to the number of targets, {num_users}, "
            f"received {users.dtype} from {users.min()} to {users.max()}."
        )
    if (users[1:] < users[:-1]).any():
        order = np.argsort(users, kind="stable")
        users, items = users[order], items[order]
    return np.searchsorted(users, np.arange(1, num_users + 2)), items


def _ranks(block, targets, seen, block_size) -> np.ndarray:
    """`block(rows)` gives scores [b, n], and what differences count as none ([b] or 0)."""
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, received {block_size}.")
    targets = np.asarray(targets)
    offsets, seen_items = items_by_user(seen, len(targets))
    ranks = np.empty(len(targets), np.int64)
    for start in range(0, len(targets), block_size):
        rows = slice(start, min(start + block_size, len(targets)))
        users = np.arange(rows.start, rows.stop)
        scores, slack = block(rows)
        if scores.ndim != 2 or len(scores) != len(users):
            raise ValueError(
                f"expected scores of shape [{len(users)}, number of items] for users {start + 1} "
                f"to {rows.stop}, received {scores.shape}."
            )
        if np.isnan(scores.min()):  # the minimum of anything with a NaN is NaN
            raise ValueError(
                f"the scores of user {users[np.isnan(scores).any(axis=1).argmax()] + 1} contain "
                "NaN, so they rank nothing. Has the training diverged, or was something divided by "
                "zero?"
            )
        lengths = np.diff(offsets[start : rows.stop + 1])
        items, owners = seen_items[offsets[start] : offsets[rows.stop]], np.repeat(users, lengths)
        _check_items(targets[rows], scores.shape[1], "target", users)
        _check_items(items, scores.shape[1], "seen items", owners)
        known = items == targets[owners]
        if known.any():
            user = owners[known.argmax()] + 1
            raise ValueError(
                f"user {user}'s target, item {targets[user - 1]}, is among the user's seen items; "
                "expected it not to be known yet."
            )
        own = scores[users - start, targets[rows] - 1]
        ahead = scores >= np.subtract(own, slack)[:, None]  # [b, n], the target included
        ahead[owners - start, items - 1] = False
        ranks[rows] = ahead.sum(axis=1)
    return ranks


def _check_items(items: np.ndarray, num_items: int, what: str, rows: np.ndarray) -> None:
    """Ids of items [m] or [m, k]; `rows` [m] says which row, user - 1, each belongs to."""
    if items.size and items.dtype.kind not in "iu":
        raise ValueError(f"{what}: expected integer ids, received {items.dtype}.")
    wrong = (items < 1) | (items > num_items)
    if wrong.any():
        user = rows[np.nonzero(wrong)[0][0]] + 1
        raise ValueError(
            f"{what} of user {user}: expected item ids from 1 to {num_items}, received "
            f"{items[wrong][0]}. Is it padding (0), or does it count from 0, or is it of another "
            "catalogue?"
        )


def _lengths(vectors: np.ndarray, whose: str, start: int = 0) -> np.ndarray:
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    if not np.isfinite(lengths).all():
        raise ValueError(
            f"the vector of {whose} {start + 1 + np.isfinite(lengths).argmin()} contains NaN or "
            "infinity, or is far too long. Has the training diverged?"
        )
    return lengths
