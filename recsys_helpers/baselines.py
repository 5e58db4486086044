"""What any model has to beat: popularity, item-kNN, a Markov chain and EASE.

Nothing is trained by gradient here, and all of them share one form: a user's history, possibly
weighted by how recent it is, times a matrix that says what each item speaks for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from recsys_helpers.metrics import ranks_from_scores
from recsys_helpers.splits import Split


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
    return Baseline(np.bincount(interactions["item_id"], minlength=num_items + 1)[1:])


def item_knn(interactions: pd.DataFrame, num_items: int, neighbours: int | None = None) -> Baseline:
    """Sum of the cosines between an item and those in the history (Sarwar et al. 2001).

    Items are compared by who interacted with them: the cosine is the number of common users over
    the geometric mean of both items' numbers of users.

    Args:
        interactions: see `popularity`.
        num_items: size of the catalogue.
        neighbours: only so many most similar items speak for an item; None: all.
    """
    history = history_matrix(interactions, num_items)
    common = (history.T @ history).toarray()
    length = np.sqrt(np.maximum(common.diagonal(), 1))
    cosine = common / length[:, None] / length
    np.fill_diagonal(cosine, 0)
    if neighbours is not None and neighbours < num_items:
        cosine[cosine < np.partition(cosine, -neighbours, axis=0)[-neighbours]] = 0
    return Baseline(np.zeros(num_items), cosine)


def markov(interactions: pd.DataFrame, num_items: int) -> Baseline:
    """How often each item came directly after the last one (first-order Markov chain).

    Dividing by the number of times the last item occurs gives probabilities, and the same order.
    Equal counts are common; among them the item with the smaller id comes first.

    Args:
        interactions: see `popularity`.
        num_items: size of the catalogue.
    """
    users, items = interactions["user_id"].to_numpy(), interactions["item_id"].to_numpy() - 1
    same_user = users[1:] == users[:-1]
    pairs = items[:-1][same_user], items[1:][same_user]
    counts = sparse.csr_array((np.ones(same_user.sum()), pairs), shape=(num_items, num_items))
    return Baseline(-np.arange(num_items) / num_items, counts, tau=0)


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
    """
    history = history_matrix(interactions, num_items)
    inverse = np.linalg.inv((history.T @ history).toarray() + l2 * np.eye(num_items))
    weights = -inverse / inverse.diagonal()
    np.fill_diagonal(weights, 0)
    return Baseline(np.zeros(num_items), weights, tau)


def history_matrix(
    interactions: pd.DataFrame, num_items: int, tau: float = np.inf
) -> sparse.csr_array:
    """Users by items: exp(-age / tau) where the user has interacted with the item, else 0.

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
    users, items = interactions["user_id"].to_numpy(), interactions["item_id"].to_numpy()
    lengths = np.bincount(users)[1:]
    age = np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(len(users))
    weight = np.exp(-age / tau) if tau else (age == 0).astype(float)
    kept = weight > 1e-12  # what is as good as forgotten only costs time
    return sparse.csr_array(
        (weight[kept], (users[kept] - 1, items[kept] - 1)), shape=(len(lengths), num_items)
    )


def ranks_from_baseline(split: Split, baseline: Baseline, target: str = "test") -> np.ndarray:
    """Ranks of the "validation" or "test" targets, [num_users].

    The histories that are scored hold all that is known before the target; what the baseline was
    fitted on is another matter.
    """
    known = split.known(target)
    history = history_matrix(known, split.dataset.num_items, baseline.tau)
    return ranks_from_scores(
        lambda rows: baseline.scores(history[rows]), split.targets(target), known
    )


def recommend_from_baseline(
    split: Split, baseline: Baseline, target: str = "test", k: int = 10
) -> np.ndarray:
    """Ids of the k best unseen items of each user, the best first, [num_users, k].

    Among equal scores, the item with the smaller id comes first.
    """
    known = split.known(target)
    history = history_matrix(known, split.dataset.num_items, baseline.tau)
    seen = history_matrix(known, split.dataset.num_items)  # whatever the baseline has forgotten
    best = np.empty((split.dataset.num_users, k), np.int64)
    for start in range(0, len(best), 256):
        rows = slice(start, start + 256)
        scores = np.array(baseline.scores(history[rows]), np.float64)
        scores[seen[rows].nonzero()] = -np.inf
        best[rows] = np.argsort(-scores, axis=1, kind="stable")[:, :k] + 1
    return best
