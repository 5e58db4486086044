"""What any model has to beat: popularity, item-kNN, a Markov chain and EASE.

Nothing is trained by gradient here, and all of them share one form: a user's history, possibly
weighted by how recent it is, times a matrix that says what each item speaks for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import linalg, sparse

from recsys_helpers.metrics import items_by_user, ranks_from_scores
from recsys_helpers.splits import Split, check_order

LARGEST = 4 << 30  # bytes of a dense matrix; fitting takes two to three times as much
BLOCK_BYTES = 1 << 26  # of similarities or scores that are computed at once
BLOCK_USERS = 256  # that are scored at once, if their scores fit


@dataclass(frozen=True, eq=False)
class Baseline:
    """Scores are `bias + history @ weights`.

    Attributes:
        bias: [num_items], the same for everybody.
        weights: [num_items, num_items], dense or sparse: row i is what item i + 1 in a history adds
            to the score of every item. None: histories do not matter.
        tau: how fast histories are forgotten, see `history_matrix`.
    """

    bias: np.ndarray
    weights: np.ndarray | sparse.csr_array | None = None
    tau: float = np.inf

    def scores(self, history: sparse.csr_array) -> np.ndarray:
        """Scores [b, num_items] of all items for histories [b, num_items]."""
        if self.weights is None:
            return np.broadcast_to(self.bias, history.shape)
        scores = history @ self.weights
        return (scores.toarray() if sparse.issparse(scores) else scores) + self.bias


def popularity(interactions: pd.DataFrame, num_items: int) -> Baseline:
    """How often each item occurs.

    Args:
        interactions: what may be learnt from, `split.train` for one; by user and then time.
        num_items: size of the catalogue.
    """
    _, items = _columns(interactions, num_items)
    return Baseline(np.bincount(items, minlength=num_items + 1)[1:])


def item_knn(
    interactions: pd.DataFrame,
    num_items: int,
    neighbours: int | None = None,
    shrinkage: float = 0,
) -> Baseline:
    """Sum of the cosines between an item and those in the history (Sarwar et al. 2001).

    Items are compared by who interacted with them: the cosine is the number of common users over
    the geometric mean of both items' numbers of users, and here of that plus the shrinkage.

    Args:
        interactions: see `popularity`.
        num_items: size of the catalogue.
        neighbours: only so many most similar items speak for an item, which keeps the weights
            sparse, and all those that are as similar as the last of them; None: all.
        shrinkage: added to the denominator, in users: it takes the more from a cosine, the fewer
            users it is made of.

    Raises:
        ValueError: on neighbours below 1, a shrinkage below 0, or if all neighbours do not fit into
            `LARGEST` bytes.
    """
    if neighbours is not None and neighbours < 1:
        raise ValueError(f"neighbours must be at least 1, or None for all, received {neighbours}.")
    if not shrinkage >= 0:
        raise ValueError(f"shrinkage must not be negative, received {shrinkage}.")
    if neighbours is None:
        _check_dense(num_items, "Give a number of neighbours, which keeps the weights sparse")
    history = history_matrix(interactions, num_items)
    by_item = history.tocsc()
    length = np.sqrt(np.maximum(by_item.sum(axis=0), 1))
    dense = np.empty((num_items, num_items)) if neighbours is None else None
    blocks, step = [], max(1, BLOCK_BYTES // (12 * num_items))
    for start in range(0, num_items, step):
        columns = slice(start, min(start + step, num_items))
        cosine = history.T @ by_item[:, columns]  # sparse [n, b]: the numbers of common users
        item = np.repeat(np.arange(columns.start, columns.stop), np.diff(cosine.indptr))
        cosine.data /= length[cosine.indices] * length[item] + shrinkage
        cosine.data[cosine.indices == item] = 0
        if neighbours is None:
            dense[:, columns] = cosine.toarray()
            continue
        for values in np.split(cosine.data, cosine.indptr[1:-1]):  # views, one per item
            if len(values) > neighbours:
                values[values < np.partition(values, -neighbours)[-neighbours]] = 0
        cosine.eliminate_zeros()
        blocks.append(cosine)
    weights = dense if neighbours is None else sparse.hstack(blocks, format="csr")
    return Baseline(np.zeros(num_items), weights)


def markov(interactions: pd.DataFrame, num_items: int, smoothing: float = 0) -> Baseline:
    """How often each item came directly after the last one (first-order Markov chain).

    Dividing by the number of times the last item occurs, plus the smoothing, gives probabilities,
    and the same order. Without smoothing equal counts are common; among them the item with the
    smaller id comes first.

    Args:
        interactions: see `popularity`.
        num_items: size of the catalogue.
        smoothing: so many more steps, spread over the items by their popularity, are added to those
            from each item (a Dirichlet prior).

    Raises:
        ValueError: on a negative smoothing.
    """
    if not smoothing >= 0:
        raise ValueError(f"smoothing must not be negative, received {smoothing}.")
    users, items = _columns(interactions, num_items)
    items = items - 1
    same_user = users[1:] == users[:-1]
    pairs = items[:-1][same_user], items[1:][same_user]
    counts = sparse.csr_array((np.ones(same_user.sum()), pairs), shape=(num_items, num_items))
    bias = -np.arange(num_items) / num_items
    if smoothing:
        bias = smoothing * np.bincount(items, minlength=num_items) / len(items)
    return Baseline(bias, counts, tau=0)


def ease(
    interactions: pd.DataFrame, num_items: int, l2: float = 500, tau: float = np.inf
) -> Baseline:
    """Linear regression of every item on all others, with ridge penalty (EASE, Steck 2019).

    With P = (X'X + l2 I)^-1 the weights are B_ij = -P_ij / P_jj and B_jj = 0 (equation 8).

    Args:
        interactions: see `popularity`.
        num_items: size of the catalogue.
        l2: the penalty lambda.
        tau: weights histories by how recent they are when scoring, see `history_matrix`; in the
            fit all interactions weigh the same.

    Raises:
        ValueError: if l2 is not positive, or the inverse does not fit into `LARGEST` bytes.
    """
    if not l2 > 0:
        raise ValueError(f"l2 must be positive, or P may not exist, received {l2}.")
    _check_dense(num_items, "Drop rare items, or use `item_knn` with a number of neighbours")
    history = history_matrix(interactions, num_items)
    gram = (history.T @ history).toarray(order="F")
    np.fill_diagonal(gram, gram.diagonal() + l2)
    weights = linalg.inv(gram, overwrite_a=True)  # in place: it may be most of the memory
    weights /= -weights.diagonal()
    np.fill_diagonal(weights, 0)
    return Baseline(np.zeros(num_items), weights, tau)


def history_matrix(
    interactions: pd.DataFrame, num_items: int, tau: float = np.inf
) -> sparse.csr_array:
    """Users by items: exp(-age / tau) where the user has interacted with the item, else 0.

    Of several interactions of a user with an item, the last one counts.

    Args:
        interactions: at least one of every user, by user and then time.
        num_items: size of the catalogue.
        tau: the age, the number of the user's interactions since, at which the weight has fallen
            to 1/e. Infinite: all weigh 1. 0: the last one weighs 1, all others nothing.

    Returns:
        float64 [num_users, num_items].
    """
    if not tau >= 0:
        raise ValueError(f"tau must not be negative, received {tau}.")
    users, items = _columns(interactions, num_items)
    lengths = np.bincount(users)[1:]
    age = np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(len(users))
    weight = np.exp(-age / tau) if tau else (age == 0).astype(float)
    kept = weight > 1e-12  # what is as good as forgotten only costs time
    kept &= ~interactions.duplicated(["user_id", "item_id"], keep="last").to_numpy()
    return sparse.csr_array(
        (weight[kept], (users[kept] - 1, items[kept] - 1)), shape=(len(lengths), num_items)
    )


def ranks_from_baseline(split: Split, baseline: Baseline, target: str = "test") -> np.ndarray:
    """Ranks of the "validation" or "test" targets, [num_users].

    The histories that are scored hold all that is known before the target; what the baseline was
    fitted on is another matter.
    """
    num_items = split.dataset.num_items
    history = history_matrix(split.known(target), num_items, baseline.tau)
    return ranks_from_scores(
        lambda rows: baseline.scores(history[rows]),
        split.targets(target),
        split.seen(target),
        _block_users(num_items),
    )


def recommend_from_baseline(
    split: Split, baseline: Baseline, target: str = "test", k: int = 10
) -> np.ndarray:
    """Ids of the k best unseen items of each user, the best first, [num_users, k].

    Among equal scores, the item with the smaller id comes first.

    Raises:
        ValueError: if a user has fewer than k unseen items.
    """
    num_users, num_items = split.dataset.num_users, split.dataset.num_items
    history = history_matrix(split.known(target), num_items, baseline.tau)
    offsets, seen = items_by_user(split.seen(target), num_users)
    best, step = np.empty((num_users, k), np.int64), _block_users(num_items)
    for start in range(0, num_users, step):
        rows = slice(start, min(start + step, num_users))
        scores = np.array(baseline.scores(history[rows]), np.float64)
        lengths = np.diff(offsets[start : rows.stop + 1])
        owners = np.repeat(np.arange(len(scores)), lengths)
        scores[owners, seen[offsets[start] : offsets[rows.stop]] - 1] = -np.inf
        unseen = np.count_nonzero(scores > -np.inf, axis=1)
        if unseen.min() < k:
            raise ValueError(
                f"user {start + unseen.argmin() + 1} has {unseen.min()} unseen items of "
                f"{num_items}, expected at least k = {k}. Ask for fewer."
            )
        best[rows] = np.argsort(-scores, axis=1, kind="stable")[:, :k] + 1
    return best


def _columns(interactions: pd.DataFrame, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """User and item ids, checked."""
    users, items = interactions["user_id"].to_numpy(), interactions["item_id"].to_numpy()
    for ids in (users, items):
        if len(ids) and ids.dtype.kind not in "iu":
            raise ValueError(f"expected ids that are integers, received {ids.dtype}.")
    if len(items) and (items.min() < 1 or items.max() > num_items):
        row = int(((items < 1) | (items > num_items)).argmax())
        raise ValueError(
            f"user {users[row]} has item {items[row]}, expected item ids from 1 to {num_items}."
        )
    if len(users) and (users[0] < 1 or (users[1:] < users[:-1]).any()):
        row = 1 + int((users[1:] < users[:-1]).argmax()) if users[0] >= 1 else 0
        raise ValueError(
            "expected interactions sorted by user (from 1) and then time, received user "
            f"{users[row]} in row {row}, after user {users[max(row - 1, 0)]}. Sort them first."
        )
    check_order(interactions)
    return users, items


def _block_users(num_items: int) -> int:
    return min(BLOCK_USERS, max(1, BLOCK_BYTES // (8 * num_items)))


def _check_dense(num_items: int, remedy: str) -> None:
    size = 8 * num_items**2
    if size > LARGEST:
        raise ValueError(
            f"the weights of {num_items:,} items by {num_items:,} take {size / 2**30:.1f} GiB as a "
            f"dense matrix, expected at most {LARGEST / 2**30:.1f}. {remedy}, or raise "
            "`recsys_helpers.baselines.LARGEST` on a machine with several times that memory."
        )
