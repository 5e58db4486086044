"""Turn a split's sequences into arrays that a tower can read.

Everything here is numpy: feature codes for users and items, padded histories, next-item targets,
example age, and a fixed number of examples per user.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from recsys_helpers.datasets import Dataset
from recsys_helpers.splits import Split, check_no_leakage

SECONDS_PER_DAY = 86_400
# The lower bounds of MovieLens-1M's age groups, used for datasets that give the age in years too.
AGE_BOUNDS = (18, 25, 35, 45, 50, 56)
# MovieLens has no search log: the genres of this many most recent movies stand in for one.
SEARCH_ITEMS = 3


@dataclass(frozen=True, eq=False)
class Samples:
    """Training examples: `inputs` maps each feature to an array with one row per target.

    Attributes:
        inputs: `user_id`, `gender`, `age`, `occupation` [n]; `history` [n, history_length];
            `example_age` [n] in days; `search` [n, tokens]. 0 is padding or unknown throughout.
        targets: item ids [n], the next item after each history.
    """

    inputs: dict[str, np.ndarray]
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)


def user_features(dataset: Dataset) -> dict[str, np.ndarray]:
    """Codes of the demographic fields, looked up by user id.

    Args:
        dataset: any dataset; a field it does not have is 0 (unknown) for every user.

    Returns:
        `gender`, `age`, `occupation`, each int32 [num_users + 1]; row 0 belongs to no user.
        Ages are the seven groups of MovieLens-1M.
    """
    users = dataset.users
    features = {}
    for name in ("gender", "age", "occupation"):
        codes = np.zeros(dataset.num_users + 1, np.int32)
        if name in users:
            column = users[name]
            known = column.notna().to_numpy()
            if name == "age":
                values = np.digitize(column[known].to_numpy(float), AGE_BOUNDS) + 1
            else:
                values = np.unique(column[known].astype(str), return_inverse=True)[1] + 1
            codes[1:][known] = values
        features[name] = codes
    return features


def item_features(dataset: Dataset) -> dict[str, np.ndarray]:
    """Codes of the content features, looked up by item id.

    Args:
        dataset: any dataset; a feature it does not have is 0 (unknown) for every item.

    Returns:
        `genres` int32 [num_items + 1, most genres of one item], 0-padded on the right, and `year`
        int32 [num_items + 1], five-year buckets of the release year. Row 0 belongs to no item.
    """
    items = dataset.items
    lists = [tuple(g) for g in items["genres"]] if "genres" in items else [()] * len(items)
    code = {name: i + 1 for i, name in enumerate(sorted({g for genres in lists for g in genres}))}
    genres = np.zeros((dataset.num_items + 1, max(1, *map(len, lists))), np.int32)
    for row, names in enumerate(lists, start=1):
        genres[row, : len(names)] = [code[name] for name in names]
    year = np.zeros(dataset.num_items + 1, np.int32)
    if "year" in items:
        known = items["year"].notna().to_numpy()
        lustrum = items["year"][known].to_numpy(int) // 5
        if len(lustrum):
            year[1:][known] = lustrum - lustrum.min() + 1
    return {"genres": genres, "year": year}


def vocabulary_sizes(features: dict[str, np.ndarray]) -> dict[str, int]:
    """Number of codes of each feature, padding included: what an embedding table needs."""
    return {name: int(codes.max()) + 1 for name, codes in features.items()}


def next_item_samples(
    split: Split,
    history_length: int = 50,
    max_per_user: int | None = None,
    context: str = "rollback",
    seed: int = 0,
) -> Samples:
    """One example per training interaction that has something before it.

    Args:
        split: where the training interactions come from; no other interaction is read.
        history_length: how many items a history holds; shorter ones are 0-padded on the left.
        max_per_user: at most so many examples of each user, drawn without replacement, so that
            heavy users do not dominate the loss (Covington et al. 2016, section 3.4). None: all.
        context: "rollback" puts the items *before* the target into the history; "held_out" those
            around it, later ones included (Covington et al. 2016, figure 5: b and a).
        seed: of the draw that `max_per_user` makes.

    Returns:
        The examples in the order of `split.train`.

    Raises:
        ValueError: on an unknown context, or a size below one.
        LeakageError: if a target is a validation or test interaction of its user.
    """
    if context not in ("rollback", "held_out"):
        raise ValueError(f"context must be 'rollback' or 'held_out', received {context!r}.")
    if history_length < 1 or (max_per_user is not None and max_per_user < 1):
        raise ValueError(
            "history_length and max_per_user must be at least 1, "
            f"received {history_length} and {max_per_user}."
        )
    train = split.train
    users, items = train["user_id"].to_numpy(), train["item_id"].to_numpy()
    check_no_leakage(split, users, items)
    start, end = _spans(users)
    row = np.arange(len(train))
    if context == "rollback":
        chosen = row[row > start]
    else:
        chosen = row[end - start > 1]
    if max_per_user is not None:
        order = np.random.default_rng(seed).random(len(chosen))
        shuffled = pd.Series(order).groupby(users[chosen]).rank().to_numpy()
        chosen = chosen[shuffled <= max_per_user]

    offsets = np.arange(-history_length, 0)
    if context == "held_out":
        offsets = np.arange(-(history_length // 2), history_length - history_length // 2 + 1)
        offsets = offsets[offsets != 0]
    history = _gather(items, chosen[:, None] + offsets, start[chosen], end[chosen])
    if split.dataset.has_timestamps:
        time = train["timestamp"].to_numpy()
        example_age = (time.max() - time[chosen]) / SECONDS_PER_DAY
    else:
        example_age = np.zeros(len(chosen))
    return Samples(
        _inputs(split.dataset, users[chosen], history, example_age), items[chosen].astype(np.int32)
    )


def sequence_samples(split: Split, history_length: int = 50, positions: int = 32) -> Samples:
    """The targets of `next_item_samples`, many of one user to a row.

    Neighbouring targets share most of their histories. Here a row holds the histories of
    `positions` consecutive targets as one sequence, so that a tower reads each item once instead
    of once for each window it is in. Same targets, same histories and, from a `history_length` of
    `SEARCH_ITEMS` on, same vectors.

    Args:
        split: where the training interactions come from; no other interaction is read.
        history_length: how many items each target's history holds.
        positions: targets in a row.

    Returns:
        Inputs as for windows, but `history` [n, positions + history_length - 1] and, for each
        position, `example_age` [n, positions] and `search` [n, positions, tokens]; targets
        [n, positions], the item after each of the last `positions` of the history, 0 for none.

    Raises:
        ValueError: on a size below one.
        LeakageError: if a target is a validation or test interaction of its user.
    """
    if history_length < 1 or positions < 1:
        raise ValueError(
            "history_length and positions must be at least 1, "
            f"received {history_length} and {positions}."
        )
    train = split.train
    users, items = train["user_id"].to_numpy(), train["item_id"].to_numpy()
    check_no_leakage(split, users, items)
    start, end = _spans(users)
    row = np.arange(len(train))
    last = row[(row > start) & ((end - 1 - row) % positions == 0)]  # the last target of each row
    targets_at = last[:, None] + np.arange(1 - positions, 1)
    real = targets_at > start[last][:, None]
    # Every history goes back to the user's first item, or to what its window can still see.
    history_at = last[:, None] + np.arange(-(positions + history_length - 1), 0)
    history = _gather(items, history_at, start[last], end[last])
    targets = np.where(real, items[np.maximum(targets_at, 0)], 0).astype(np.int32)
    example_age = np.zeros(targets.shape)
    if split.dataset.has_timestamps:
        time = train["timestamp"].to_numpy()
        example_age = np.where(real, time.max() - time[targets_at], 0) / SECONDS_PER_DAY
    return Samples(_inputs(split.dataset, users[last], history, example_age), targets)


def serving_inputs(
    split: Split, target: str = "test", history_length: int = 50
) -> dict[str, np.ndarray]:
    """What the user tower sees when it is asked for recommendations now: one row per user.

    Args:
        split: the split whose `validation` or `test` targets are to be predicted.
        target: "validation" (histories are the training interactions) or "test" (histories also
            hold the validation interaction).
        history_length: as in training.

    Returns:
        Inputs for users 1 to num_users, in this order. The example age is zero: the question is
        what they will watch now (Covington et al. 2016, section 3.3).
    """
    known = split.known(target)
    users, items = known["user_id"].to_numpy(), known["item_id"].to_numpy()
    everyone = np.arange(1, split.dataset.num_users + 1)
    start = np.searchsorted(users, everyone, side="left")
    end = np.searchsorted(users, everyone, side="right")
    history = _gather(items, end[:, None] + np.arange(-history_length, 0), start, end)
    return _inputs(split.dataset, everyone, history, np.zeros(len(everyone)))


def _spans(users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First row, and one past the last row, of the user of each row (rows are sorted by user)."""
    return np.searchsorted(users, users, "left"), np.searchsorted(users, users, "right")


def _gather(items: np.ndarray, rows: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """`items[rows]`, 0 where a row is not the user's own, zeros moved to the left."""
    inside = (rows >= start[:, None]) & (rows < end[:, None])
    history = np.where(inside, items[np.clip(rows, 0, len(items) - 1)], 0).astype(np.int32)
    if (history[:, :-1].astype(bool) & ~inside[:, 1:]).any():  # padding after an item
        order = np.argsort(inside, axis=1, kind="stable")
        history = np.take_along_axis(history, order, axis=1)
    return history


def _inputs(dataset, users, history, example_age) -> dict[str, np.ndarray]:
    positions = 1 if example_age.ndim == 1 else example_age.shape[1]
    padded = np.pad(history, ((0, 0), (SEARCH_ITEMS - 1, 0)))
    recent = np.lib.stride_tricks.sliding_window_view(padded, SEARCH_ITEMS, axis=1)
    tokens = item_features(dataset)["genres"][recent[:, -positions:]]  # (n, positions, 3, genres)
    search = tokens.reshape(*example_age.shape, -1)
    profile = {name: codes[users] for name, codes in user_features(dataset).items()}
    return {
        "user_id": users.astype(np.int32),
        **profile,
        "history": history,
        "example_age": example_age.astype(np.float32),
        "search": search,
    }
