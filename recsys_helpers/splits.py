"""Divide interactions into training, validation and test, and keep time from flowing backwards.

The default is leave-last-out: every user's last interaction is the test target, the one before it
the validation target, and everything earlier is training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from recsys_helpers.datasets import Dataset


class LeakageError(ValueError):
    """Something that is fitted has seen a validation or test interaction."""


@dataclass(frozen=True, eq=False)
class Split:
    """Who learns from what, and who is judged by what.

    The three tables are rows of `dataset.interactions` with their index, so that putting them
    together in time order is sorting by index.

    Attributes:
        dataset: without the rare items; ids are contiguous again.
        train: in the order of `dataset.interactions`, by user and then time.
        validation: exactly one row per user; row i belongs to user i + 1.
        test: the same.
        name: what the split is called in tables.
    """

    dataset: Dataset
    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    name: str

    def known(self, target: str) -> pd.DataFrame:
        """What is known of the users when `target` is to be predicted, by user and then time.

        Args:
            target: "validation" (the training interactions are known) or "test" (the validation
                interactions have happened too).
        """
        if target == "validation":
            return self.train
        if target == "test":
            return pd.concat([self.train, self.validation]).sort_index()
        raise ValueError(f'target must be "validation" or "test", received {target!r}.')

    def seen(self, target: str) -> pd.DataFrame:
        """What is not ranked or recommended when `target` is to be predicted: see `known`."""
        return self.known(target)

    def targets(self, target: str) -> np.ndarray:
        """Item ids to be predicted, int32 [num_users]; entry i belongs to user i + 1."""
        rows = {"validation": self.validation, "test": self.test}.get(target)
        if rows is None:
            raise ValueError(f'target must be "validation" or "test", received {target!r}.')
        return rows["item_id"].to_numpy()


def five_core_items(dataset: Dataset, minimum: int = 5) -> Dataset:
    """Drop the items with fewer than `minimum` interactions, and number the others from 1 again.

    Users are not filtered, so one pass is enough. On MovieLens-1M this leaves the usual 6,040
    users, 3,416 items and 999,611 interactions.

    Raises:
        ValueError: if a user has fewer than three interactions left.
    """
    interactions = dataset.interactions
    counts = np.bincount(interactions["item_id"], minlength=dataset.num_items + 1)
    kept = counts >= minimum  # [num_items + 1]
    kept[0] = False
    if kept[1:].all():
        remaining = interactions
    else:
        new_id = np.cumsum(kept, dtype=np.int32)
        remaining = interactions[kept[interactions["item_id"]]].reset_index(drop=True)
        remaining = remaining.assign(item_id=new_id[remaining["item_id"]])

    lengths = np.bincount(remaining["user_id"], minlength=dataset.num_users + 1)[1:]
    if (lengths < 3).any():
        user = int(lengths.argmin()) + 1
        raise ValueError(
            f"{dataset.name}: user {user} (original id {dataset.users['original_id'].loc[user]}) "
            f"has {lengths[user - 1]} interactions with items that have at least {minimum}, "
            f"expected 3 or more (one each to train, validate and test on); so do "
            f"{int((lengths < 3).sum()) - 1} other users. Drop these users, or lower the minimum."
        )
    if remaining is interactions:
        return dataset
    first = np.cumsum(lengths) - lengths
    position = np.arange(len(remaining)) - np.repeat(first, lengths)
    items = dataset.items[kept[1:]]
    items = items.set_index(pd.RangeIndex(1, len(items) + 1, name="item_id"))
    return replace(
        dataset, interactions=remaining.assign(position=position.astype(np.int32)), items=items
    )


def leave_last_out(dataset: Dataset, min_item_interactions: int = 5) -> Split:
    """The split of this book: each user's last interaction is tested, the one before validates.

    Interactions with the same time keep the order of the source.

    Args:
        dataset: any dataset.
        min_item_interactions: items with fewer are dropped first, see `five_core_items`.

    Raises:
        ValueError: if a user has fewer than three interactions left.
    """
    dataset = five_core_items(dataset, min_item_interactions)
    last = np.cumsum(_lengths(dataset)) - 1
    return _split(dataset, last - 1, last, "leave-last-out")


def random_split(dataset: Dataset, seed: int, min_item_interactions: int = 5) -> Split:
    """A lesson in what not to do: any two interactions of each user are held out.

    A model that is judged by it has learnt from what users did after the target.

    Args:
        dataset: any dataset.
        seed: of the draw.
        min_item_interactions: items with fewer are dropped first, see `five_core_items`.

    Raises:
        ValueError: if a user has fewer than three interactions left.
    """
    dataset = five_core_items(dataset, min_item_interactions)
    lengths = _lengths(dataset)
    # In random order within each user, the first two rows are the held-out ones.
    key = np.random.default_rng(seed).random(len(dataset.interactions))
    order = np.lexsort((key, dataset.interactions["user_id"]))
    first = np.cumsum(lengths) - lengths
    return _split(dataset, order[first], order[first + 1], "random")


def check_no_leakage(split: Split, user_ids=None, item_ids=None, counts=None) -> None:
    """Raise if something that is about to be fitted has seen a held-out interaction.

    Args:
        split: whose validation and test interactions must stay unseen.
        user_ids: [n] with `item_ids` [n]: pairs that are learnt from, such as training targets.
        item_ids: see `user_ids`.
        counts: [num_items + 1], how often each item was counted (popularity, the frequencies of a
            sampler, a vocabulary); entry 0 is padding.

    Raises:
        LeakageError: if a pair is a validation or test interaction, or an item is counted more
            often than it occurs in training.
    """
    if user_ids is not None:
        users, items = np.asarray(user_ids), np.asarray(item_ids)
        for target in ("validation", "test"):
            leaked = np.flatnonzero(items == split.targets(target)[users - 1])
            if len(leaked):
                raise LeakageError(
                    f"{len(leaked)} of {len(items)} training pairs are {target} interactions, the "
                    f"first being user {users[leaked[0]]} with item {items[leaked[0]]}. Learn from "
                    "split.train only."
                )
    if counts is not None:
        allowed = np.bincount(split.train["item_id"], minlength=split.dataset.num_items + 1)
        counts = np.asarray(counts)
        if counts.shape != allowed.shape:
            raise ValueError(
                f"counts must have shape {allowed.shape} (one per item id and one for padding), "
                f"received {counts.shape}."
            )
        excess = counts - allowed
        if (excess > 0).any():
            item = int(excess.argmax())
            raise LeakageError(
                f"{int((excess > 0).sum())} items are counted more often than they occur in "
                f"training, such as item {item}: {counts[item]} times, expected at most "
                f"{allowed[item]}. Count in split.train only."
            )


def _lengths(dataset: Dataset) -> np.ndarray:
    return np.bincount(dataset.interactions["user_id"], minlength=dataset.num_users + 1)[1:]


def _split(dataset: Dataset, validation: np.ndarray, test: np.ndarray, name: str) -> Split:
    train = np.ones(len(dataset.interactions), bool)
    train[validation] = train[test] = False
    rows = dataset.interactions
    return Split(dataset, rows[train], rows.iloc[validation], rows.iloc[test], name)
