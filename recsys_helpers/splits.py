"""Divide interactions into training, validation and test, and keep time from flowing backwards.

The default is leave-last-out: every user's last interaction is the test target, the one before it
the validation target, and everything earlier is training.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    Raises:
        ValueError: on tables that aren't so.
    """

    dataset: Dataset
    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    name: str

    def __post_init__(self):
        owners, everyone = (
            self.dataset.interactions["user_id"],
            range(1, self.dataset.num_users + 1),
        )
        for name in ("train", "validation", "test"):
            table = getattr(self, name)
            at, users = table.index.to_numpy(), table["user_id"].to_numpy()
            odd = owners.reindex(at).to_numpy() != users
            odd[1:] |= (at[1:] <= at[:-1]) | (users[1:] < users[:-1])
            if odd.any():
                row = int(odd.argmax())
                raise ValueError(
                    f"{name} must hold rows of dataset.interactions in their order and with their "
                    f"index, by user and then time; row {row}, of user {users[row]} with index "
                    f"{at[row]}, isn't in place. Keep the index, and sort by it (sort_index)."
                )
            if name != "train" and not np.array_equal(users, everyone):
                raise ValueError(
                    f"{name} must hold one row of each user from 1 to {len(everyone)}, received "
                    f"{len(users)} rows of {len(set(users))} users."
                )

    def known(self, target: str) -> pd.DataFrame:
        """What is known of the users when `target` is to be predicted, by user and then time.

        Args:
            target: "validation" (the training interactions are known) or "test" (the validation
                interactions have happened too).
        """
        if target == "validation":
            return self.train
        if target == "test":
            # Both are in order already: inserting is several times cheaper than sorting.
            train, more = self.train, self.validation
            at = np.searchsorted(train.index, more.index)
            return pd.DataFrame(
                {c: np.insert(train[c].to_numpy(), at, more[c].to_numpy()) for c in train},
                index=np.insert(train.index.to_numpy(), at, more.index.to_numpy()),
                copy=False,
            )
        raise ValueError(f'target must be "validation" or "test", received {target!r}.')

    def seen(self, target: str) -> pd.DataFrame:
        """What is not ranked when `target` is to be predicted: what is known, as `known` has it.

        Empty where the dataset keeps repeats: people come back there, so everything competes.
        """
        known = self.known(target)
        return known.iloc[:0] if self.dataset.repeats else known

    def targets(self, target: str) -> np.ndarray:
        """Item ids to be predicted, int32 [num_users]; entry i belongs to user i + 1."""
        rows = {"validation": self.validation, "test": self.test}.get(target)
        if rows is None:
            raise ValueError(f'target must be "validation" or "test", received {target!r}.')
        return rows["item_id"].to_numpy()


def five_core_items(dataset: Dataset, minimum: int = 5, verbose: bool = True) -> Dataset:
    """Drop the items with fewer than `minimum` interactions, and number the others from 1 again.

    Users who have fewer than three left (one each to train, validate and test on) go too, and so on
    until nothing changes; what was left out is printed. On MovieLens-1M this leaves the usual 6,040
    users, 3,416 items and 999,611 interactions.

    Raises:
        ValueError: if nothing is left.
    """
    return dataset.core(3, minimum, verbose)


def leave_last_out(dataset: Dataset, min_item_interactions: int = 5, verbose: bool = True) -> Split:
    """The split of this book: each user's last interaction is tested, the one before validates.

    Interactions with the same time keep the order of the source.

    Args:
        dataset: any dataset.
        min_item_interactions: items with fewer are dropped first, see `five_core_items`.
        verbose: print what was dropped.

    Raises:
        ValueError: if nothing is left.
    """
    dataset = five_core_items(dataset, min_item_interactions, verbose)
    last = np.cumsum(_lengths(dataset)) - 1
    return _split(dataset, last - 1, last, "leave-last-out")


def random_split(
    dataset: Dataset, seed: int, min_item_interactions: int = 5, verbose: bool = True
) -> Split:
    """A lesson in what not to do: any two interactions of each user are held out.

    A model that is judged by it has learnt from what users did after the target.

    Args:
        dataset: any dataset.
        seed: of the draw.
        min_item_interactions: items with fewer are dropped first, see `five_core_items`.
        verbose: print what was dropped.

    Raises:
        ValueError: if nothing is left.
    """
    dataset = five_core_items(dataset, min_item_interactions, verbose)
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
        LeakageError: if a pair is a validation or test interaction (and no other interaction, where
            the dataset keeps repeats), or an item is counted more often than it occurs in training.
        ValueError: one of `user_ids` and `item_ids` without the other, other shapes, unknown ids.
    """
    if (user_ids is None) != (item_ids is None):
        raise ValueError("user_ids and item_ids are pairs: give both or none of them.")
    if user_ids is not None:
        users, items = np.asarray(user_ids), np.asarray(item_ids)
        if users.shape != items.shape or users.ndim != 1:
            raise ValueError(
                f"user_ids and item_ids must have one shape [n], received {users.shape} and "
                f"{items.shape}."
            )
        _check_ids(users, split.dataset.num_users, "user_ids")
        _check_ids(items, split.dataset.num_items, "item_ids")
        for target in ("validation", "test"):
            leaked = np.flatnonzero(items == split.targets(target)[users - 1])
            if len(leaked) and split.dataset.repeats:
                leaked = leaked[~_had_before(split, target)[users[leaked] - 1]]
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
        excess = ~(counts <= allowed)  # NaN is no count either
        if excess.any():
            item = int(excess.argmax())
            raise LeakageError(
                f"{int(excess.sum())} items are counted more often than they occur in "
                f"training, such as item {item}: {counts[item]} times, expected at most "
                f"{allowed[item]}. Count in split.train only."
            )


def check_order(interactions: pd.DataFrame) -> None:
    """Raise ValueError if a user's rows are out of the order of time; of equal times any is right.

    Args:
        interactions: `user_id`, in any order, and what tells a user's moments: `position`, or else
            `timestamp`; without either, the rows are taken at their word.
    """
    name = next((name for name in ("position", "timestamp") if name in interactions), "user_id")
    users, moments = interactions["user_id"].to_numpy(), interactions[name].to_numpy()
    if moments.dtype.kind not in "iufM":
        return
    if (users[1:] < users[:-1]).any():
        order = np.argsort(users, kind="stable")
        users, moments = users[order], moments[order]
    late = (users[1:] == users[:-1]) & (moments[1:] < moments[:-1])
    if late.any():
        row = int(late.argmax())
        raise ValueError(
            f"expected each user's interactions in the order of time, received {name} "
            f"{moments[row + 1]} of user {users[row]} after {moments[row]}. Sort by user_id and "
            f"{name}."
        )


def _check_ids(ids: np.ndarray, largest: int, what: str) -> None:
    if ids.size and ids.dtype.kind not in "iu":
        raise ValueError(f"{what} must be integers, received {ids.dtype}.")
    if ids.size and (ids.min() < 1 or ids.max() > largest):
        row = int(((ids < 1) | (ids > largest)).argmax())
        raise ValueError(f"{what} must be 1 to {largest}, received {ids[row]} in row {row}.")


def _had_before(split: Split, target: str) -> np.ndarray:
    """Whether a user's target is also an interaction that isn't held out, bool [num_users]."""
    free = np.ones(len(split.dataset.interactions), bool)
    free[split.validation.index] = free[split.test.index] = False
    users, items = (split.dataset.interactions[c].to_numpy()[free] for c in ("user_id", "item_id"))
    had = np.zeros(split.dataset.num_users, bool)
    had[users[items == split.targets(target)[users - 1]] - 1] = True
    return had


def _lengths(dataset: Dataset) -> np.ndarray:
    return np.bincount(dataset.interactions["user_id"], minlength=dataset.num_users + 1)[1:]


def _split(dataset: Dataset, validation: np.ndarray, test: np.ndarray, name: str) -> Split:
    train = np.ones(len(dataset.interactions), bool)
    train[validation] = train[test] = False
    rows = dataset.interactions
    return Split(dataset, rows[train], rows.iloc[validation], rows.iloc[test], name)
