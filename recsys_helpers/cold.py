"""Items that nobody has had yet: a split that has some, the alarm for it, and ranks apart.

Which items compete with which is part of the question. A new item among all others is what a
service asks: would the new one be shown? A new item among the new ones asks less: does the model
order them at all, though nothing was ever learnt of their ids?
"""

from __future__ import annotations

import numpy as np

from recsys_helpers import fetch
from recsys_helpers.datasets import Dataset
from recsys_helpers.metrics import evaluate_vectors, ranks_from_vectors
from recsys_helpers.splits import LeakageError, Split, five_core_items


def cold_split(
    dataset: Dataset, share: float = 0.1, min_item_interactions: int = 5, verbose: bool = True
) -> Split:
    """The newest items are in no training interaction, as though the catalogue had just got them.

    Items are ordered by the first time that anybody had them, and the last `share` of them are
    new. Who had one is tested on the last new one, with nothing after it; everybody else on their
    last interaction. Nobody's other interactions with new items are in any part; of the rest, the
    last one before the target validates, and everything earlier is training.

    Args:
        dataset: any dataset. Without times nobody knows what came first, and the order is drawn.
        share: of the items that are new.
        min_item_interactions: items with fewer are dropped first, see `five_core_items`.
        verbose: print what was dropped, users with fewer than two interactions before the target
            among it.

    Returns:
        The split. `cold_items` says which items are new: those chosen here, and any other that had
        all of its interactions after somebody's target.

    Raises:
        ValueError: on a share that leaves no new or no other items, or if nothing is left.
    """
    dataset = five_core_items(dataset, min_item_interactions, verbose)
    new = round(share * dataset.num_items)
    if not 0 < new < dataset.num_items:
        raise ValueError(
            "expected a share that leaves new items and others, received "
            f"share={share} of {dataset.num_items} items."
        )
    rows = dataset.interactions
    first_seen = np.random.default_rng(0).random(dataset.num_items)
    if dataset.has_timestamps:
        first_seen = rows.groupby("item_id")["timestamp"].min().to_numpy()
    items = np.argsort(first_seen, kind="stable")[-new:] + 1
    users, place = rows["user_id"].to_numpy(), np.arange(len(rows))
    is_new = np.isin(rows["item_id"], items)
    start = np.searchsorted(users, np.arange(1, dataset.num_users + 1))

    def last(of: np.ndarray) -> np.ndarray:  # place of each user's last such row; -1: none
        found = np.full(dataset.num_users, -1)
        np.maximum.at(found, users[of] - 1, place[of])
        return found

    others = np.r_[0, np.cumsum(~is_new)]  # in the rows before each
    test = last(is_new & (others[place] - others[start][users - 1] >= 2))
    test = np.where(test >= 0, test, last(~is_new))
    known = ~is_new & (place < test[users - 1])
    validation = last(known)
    known[validation[validation >= 0]] = False
    few = np.bincount(users[known], minlength=dataset.num_users + 1)[1:] == 0
    if few.any():
        fetch.sayer(dataset.name, verbose)(
            f"left out {few.sum():,} users (with fewer than two interactions with other items "
            "before the target)"
        )
        return cold_split(dataset.where(~few[users - 1]), share, min_item_interactions, verbose)
    split = Split(dataset, rows[known], rows.iloc[validation], rows.iloc[test], "cold items")
    check_cold(split, items)
    return split


def cold_items(split: Split) -> np.ndarray:
    """Ids of the items that nobody is known to have had before the test, ascending."""
    counts = np.bincount(split.known("test")["item_id"], minlength=split.dataset.num_items + 1)
    return np.flatnonzero(counts[1:] == 0) + 1


def check_cold(split: Split, items) -> None:
    """Raise if something is known of items that are to be new, or of what came after a target.

    Args:
        split: whose training and validation interactions are looked at.
        items: ids of the items that are to be new.

    Raises:
        LeakageError: naming the first interaction with one of them, or after its user's target.
    """
    known = split.known("test")
    leaked = np.flatnonzero(np.isin(known["item_id"], items))
    what = "with items that are to be new"
    if not len(leaked):
        moment = split.test["position"].to_numpy()[known["user_id"].to_numpy() - 1]
        leaked = np.flatnonzero(known["position"].to_numpy() >= moment)
        what = "that are not before the target of their user"
    if len(leaked):
        user, item = known[["user_id", "item_id"]].iloc[leaked[0]]
        raise LeakageError(
            f"{len(leaked)} of {len(known)} known interactions are {what}, the first being user "
            f"{user} with item {item}. Leave them out of train and validation."
        )


def ranks_apart(
    split: Split, user_vectors: np.ndarray, item_vectors: np.ndarray
) -> dict[str, np.ndarray]:
    """Ranks of the test targets, those that are new items apart from the others.

    Args:
        split: of `cold_split`.
        user_vectors: [num_users, d].
        item_vectors: [num_items, d].

    Returns:
        "new, among all" and "other, among all": ranks as in `evaluate_vectors`, of the users whose
        target is a new item, and of the others. "new, among new": the first again, where only
        `cold_items` compete.

    Raises:
        ValueError: if no target is a new item, or all are.
    """
    ranks = evaluate_vectors(split, user_vectors, item_vectors)
    new, targets = cold_items(split), split.targets("test")
    tested = np.isin(targets, new)
    if not 0 < tested.sum() < len(tested):
        raise ValueError(
            f"{tested.sum()} of {len(tested)} users have a new item for a target, expected some "
            "and not all. Make the split by `cold_split`, with another share."
        )
    among_new = ranks_from_vectors(
        user_vectors[tested],
        item_vectors[new - 1],
        np.searchsorted(new, targets[tested]) + 1,
        split.test.iloc[:0],
    )
    return {
        "new, among all": ranks[tested],
        "new, among new": among_new,
        "other, among all": ranks[~tested],
    }
