"""Turn a split's sequences into arrays that a tower can read.

Everything here is numpy: codes of the users' and items' fields, padded histories, next-item
targets, example age. There is one format. A row holds up to T consecutive moments of one user, each
with the item that came next; T = 1 is one window a row, and what is served.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pandas as pd

from recsys_helpers.datasets import Dataset
from recsys_helpers.records import reading, writing
from recsys_helpers.splits import Split, check_no_leakage

SECONDS_PER_DAY = 86_400
# Fields of MovieLens, read unless others are named; those that a dataset lacks are unknown.
USER_FIELDS = ("gender", "age", "occupation")
ITEM_FIELDS = ("genres", "year")
# The lower bounds of MovieLens-1M's age groups, used for datasets that give the age in years too.
AGE_BOUNDS = (18, 25, 35, 45, 50, 56)
# There is no search log: one field of this many most recent items stands in for it.
SEARCH_FIELD = "genres"
SEARCH_ITEMS = 3
# Inputs of ours, and a size: no field of the users may be called so.
TAKEN = ("history", "history_length", "search", "example_age")
SHAPES = {"history": "[n, length]", "example_age": "[n, T]", "search": "[n, T, tokens]"}
BLOCK_ROWS = 1 << 15  # made at a time, so that no index of all of them is ever held


class Encoder:
    """How users and histories become inputs, said once for training and for serving.

    Args:
        dataset: whose users and items there are.
        history_length: how many items a history holds; shorter ones are 0-padded on the left.
        positions: consecutive moments T of one user in a row.
        user_fields: names of columns of `dataset.users`; None: `USER_FIELDS`.
        search_field: name of a column of `dataset.items`; None: `SEARCH_FIELD`.

    Attributes:
        sizes: all that a tower must know of its inputs: the number of codes of each, padding
            included, and `history_length`.
        steps: items in a row of `history`, T + history_length - 1.

    Raises:
        ValueError: on sizes below one, names that are no columns, or names of inputs of ours.
    """

    def __init__(
        self, dataset: Dataset, history_length=50, positions=1, user_fields=None, search_field=None
    ):
        if history_length < 1 or positions < 1:
            raise ValueError(
                "history_length and positions must be at least 1, "
                f"received {history_length} and {positions}."
            )
        self.positions, self.steps = positions, positions + history_length - 1
        self.profile = user_features(dataset, user_fields)
        if taken := [name for name in self.profile if name in TAKEN]:
            raise ValueError(
                f"user_fields names {', '.join(map(repr, taken))}, but {', '.join(TAKEN)} are "
                "names of ours. Rename the users' column."
            )
        fields = None if search_field is None else (search_field,)
        tokens = item_features(dataset, fields)[search_field or SEARCH_FIELD]
        tokens = tokens.reshape(len(tokens), -1)
        self.tokens = tokens.astype(np.min_scalar_type(-int(tokens.max()) - 1))  # signed, small
        self.sizes = {"user_id": dataset.num_users + 1}
        self.sizes |= {name: int(codes.max()) + 1 for name, codes in self.profile.items()}
        self.sizes |= {"history": dataset.num_items + 1, "search": int(tokens.max()) + 1}
        self.sizes["history_length"] = history_length

    def save(self, path: str | os.PathLike) -> None:
        """Write it into a file, in numpy's .npz, for whoever serves without the dataset."""
        arrays = {f"profile/{name}": codes for name, codes in self.profile.items()}
        arrays |= {f"sizes/{name}": np.array(size) for name, size in self.sizes.items()}
        with writing(path) as file:
            np.savez(file, tokens=self.tokens, positions=np.array(self.positions), **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Encoder:
        """The encoder that `save` wrote; ValueError if the file is damaged, or another."""
        self = cls.__new__(cls)
        with reading(path), open(path, "rb") as file:
            arrays = dict(np.load(file))
            self.tokens, self.positions = arrays["tokens"], int(arrays["positions"])
            named = [(*name.split("/", 1), value) for name, value in arrays.items() if "/" in name]
            self.profile = {name: value for kind, name, value in named if kind == "profile"}
            self.sizes = {name: int(value) for kind, name, value in named if kind == "sizes"}
            self.steps = self.positions + self.sizes["history_length"] - 1
        return self

    def inputs(self, users, history, example_age) -> dict[str, np.ndarray]:
        """What a user tower reads.

        Args:
            users: ids [n].
            history: item ids int32 [n, steps], oldest first, 0-padded on the left.
            example_age: days [n, T].

        Returns:
            `user_id` [n] and each field of the profile [n] or [n, several]; `history` [n, steps];
            for each moment `example_age` [n, T] and `search` [n, T, tokens]. 0 is padding or
            unknown throughout.
        """
        width = self.tokens.shape[1]
        search = np.empty((*example_age.shape, SEARCH_ITEMS * width), self.tokens.dtype)
        for rows in _blocks(len(history)):
            padded = np.pad(history[rows], ((0, 0), (SEARCH_ITEMS - 1, 0)))
            recent = np.lib.stride_tricks.sliding_window_view(padded, SEARCH_ITEMS, axis=1)
            tokens = self.tokens[recent[:, -example_age.shape[1] :]]  # (rows, T, items, tokens)
            search[rows] = tokens.reshape(*tokens.shape[:2], -1)
        return {
            "user_id": np.asarray(users, np.int32),
            **{name: codes[users] for name, codes in self.profile.items()},
            "history": history,
            "example_age": np.asarray(example_age, np.float32),
            "search": search,
        }


@dataclass(frozen=True, eq=False)
class Samples:
    """Training examples, and the way in which users are served by what was trained on them.

    Attributes:
        inputs: see `Encoder.inputs`; n rows.
        targets: item ids int32 [n, T], what came after each of the last T items of the history;
            0, on the left only: none.
        encoder: made them.
        split: where they come from.
    """

    inputs: dict[str, np.ndarray]
    targets: np.ndarray
    encoder: Encoder
    split: Split

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def sizes(self) -> dict[str, int]:
        """All that a tower must know of its inputs, see `Encoder`."""
        return self.encoder.sizes

    def serving_inputs(self, target: str = "test") -> dict[str, np.ndarray]:
        """What the user tower sees when it is asked for recommendations now: one row per user.

        Args:
            target: "validation" (histories are the training interactions) or "test" (histories
                also hold the validation interaction) of the split.

        Returns:
            Inputs for users 1 to num_users, in this order, T = 1. Histories are as long as a row in
            training. The example age is zero: the question is what they will watch now (Covington
            et al. 2016, section 3.3).
        """
        known = self.split.known(target)
        items = known["item_id"].to_numpy()
        everyone = np.arange(1, self.split.dataset.num_users + 1)
        end = np.searchsorted(known["user_id"].to_numpy(), everyone, side="right")
        start = np.r_[0, end[:-1]]
        history = _gather(items, end, np.arange(-self.encoder.steps, 0), start, end)
        return self.encoder.inputs(everyone, history, np.zeros((len(everyone), 1)))


def user_features(dataset: Dataset, fields=None) -> dict[str, np.ndarray]:
    """Codes of the users' fields, looked up by user id.

    Args:
        dataset: any dataset.
        fields: names of columns of `dataset.users`, categories or tuples of them; None:
            `USER_FIELDS`, where a field that the dataset does not have is unknown for all.

    Returns:
        name -> int32 [num_users + 1], or [num_users + 1, most values of one user] for tuples; row 0
        belongs to no user, 0 is unknown. Ages in years become the seven groups of MovieLens-1M.

    Raises:
        ValueError: on a name that is no column.
    """
    return _codes(dataset.users, "users", fields, USER_FIELDS)


def item_features(dataset: Dataset, fields=None) -> dict[str, np.ndarray]:
    """Codes of the items' fields, looked up by item id.

    Args:
        dataset: any dataset.
        fields: as in `user_features`, columns of `dataset.items`; None: `ITEM_FIELDS`.

    Returns:
        As `user_features`, [num_items + 1] or [num_items + 1, most values of one item]. Years
        become five-year buckets.

    Raises:
        ValueError: on a name that is no column.
    """
    return _codes(dataset.items, "items", fields, ITEM_FIELDS)


def training_samples(
    split: Split,
    history_length: int = 50,
    positions: int = 1,
    max_per_user: int | None = None,
    context: str = "rollback",
    seed: int = 0,
    user_fields=None,
    search_field=None,
) -> Samples:
    """One example per training interaction that has something before it, `positions` to a row.

    Neighbouring targets share most of their histories. In a row of several a tower reads each item
    once instead of once for each window it is in: same targets, same histories, same vectors.

    Args:
        split: where the training interactions come from; no other interaction is read.
        history_length: how many items each target's history holds; 0-padded on the left.
        positions: consecutive targets T of one user that share a row.
        max_per_user: with one position, at most so many examples of each user, drawn without
            replacement, so that heavy users do not dominate the loss (Covington et al. 2016,
            section 3.4). None: all.
        context: "rollback" puts the items *before* the target into the history; "held_out", for one
            position, those around it, later ones included (Covington et al. 2016, figure 5: b, a).
        seed: of the draw that `max_per_user` makes.
        user_fields: see `Encoder`.
        search_field: see `Encoder`.

    Raises:
        ValueError: on an unknown context, a size below one, fields that `Encoder` refuses, or if
            nobody has two interactions.
        LeakageError: if a target is a validation or test interaction of its user.
    """
    if context not in ("rollback", "held_out"):
        raise ValueError(f"context must be 'rollback' or 'held_out', received {context!r}.")
    if positions != 1 and (context == "held_out" or max_per_user is not None):
        raise ValueError(
            f"context='held_out' and max_per_user need positions=1, received {positions}: a row of "
            "several shares its history."
        )
    if max_per_user is not None and max_per_user < 1:
        raise ValueError(f"max_per_user must be at least 1, received {max_per_user}.")
    encoder = Encoder(split.dataset, history_length, positions, user_fields, search_field)
    train = split.train
    users, items = train["user_id"].to_numpy(), train["item_id"].to_numpy()
    check_no_leakage(split, users, items)
    ends = np.cumsum(np.bincount(users, minlength=split.dataset.num_users + 1))
    starts = np.r_[0, ends[:-1]]  # user u's interactions are rows starts[u] to ends[u]
    # Rows end with a user's last target, and then every T targets before it. The first interaction
    # is none, unless later ones are its context.
    first = starts + (0 if context == "held_out" else 1)
    rows_of = np.where(ends - starts > 1, -(-(ends - first) // positions), 0)
    if not rows_of.sum():
        raise ValueError("no user has two training interactions, so there is nothing to learn.")
    owner = np.repeat(np.arange(len(ends)), rows_of)
    back = np.repeat(np.cumsum(rows_of), rows_of) - 1 - np.arange(len(owner))
    last = ends[owner] - 1 - positions * back
    if max_per_user is not None:
        order = np.random.default_rng(seed).random(len(last))
        kept = pd.Series(order).groupby(owner).rank().to_numpy() <= max_per_user
        owner, last = owner[kept], last[kept]

    offsets = np.arange(-encoder.steps, 0)
    if context == "held_out":
        offsets = np.arange(-(history_length // 2), history_length - history_length // 2 + 1)
        offsets = offsets[offsets != 0]
    history = _gather(items, last, offsets, starts[owner], ends[owner])
    targets = _gather(items, last, np.arange(1 - positions, 1), first[owner], ends[owner])
    example_age = np.zeros(targets.shape, np.float32)
    if split.dataset.has_timestamps:
        time = train["timestamp"].to_numpy()
        for rows in _blocks(len(last)):
            moments = np.maximum(last[rows, None] + np.arange(1 - positions, 1), 0)
            age = (time.max() - time[moments]) / SECONDS_PER_DAY
            example_age[rows] = np.where(targets[rows] > 0, age, 0)
    return Samples(encoder.inputs(owner, history, example_age), targets, encoder, split)


def check_inputs(inputs: dict, sizes: dict, names) -> None:
    """Refuse arrays that a tower with these sizes cannot read, before they reach it.

    Args:
        inputs: name -> array, one row per example.
        sizes: see `Encoder`.
        names: of the inputs that are read.

    Raises:
        ValueError: naming the input, and the row and the value of the first id that is unknown; on
            inputs of several lengths, of another rank or T, or an age that isn't finite.
    """
    missing = [name for name in names if name not in inputs]
    if missing:
        raise ValueError(
            f"the tower reads {', '.join(names)}; missing are {', '.join(missing)}, received "
            f"{', '.join(inputs) or 'nothing'}. `samples.inputs` and `samples.serving_inputs` have "
            "them all."
        )
    lengths = {name: num_rows(values) for name, values in inputs.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"expected equally many rows in all arrays, received {lengths}.")
    for name in names:
        codes = np.asarray(inputs[name])
        if name in SHAPES and codes.ndim != 1 + SHAPES[name].count(","):
            raise ValueError(
                f"{name} must be {SHAPES[name]}, received shape {codes.shape}; of one user it is "
                f"{name}[None]."
            )
        if name == "example_age" and not np.isfinite(codes).all():
            raise ValueError(f"{name} must be finite, received {codes[~np.isfinite(codes)][0]}.")
        if name not in sizes:
            continue
        if codes.dtype.kind not in "iu":
            raise ValueError(f"{name} must hold integer codes, received {codes.dtype}.")
        if codes.size and (codes.min() < 0 or codes.max() >= sizes[name]):
            place = tuple(np.argwhere((codes < 0) | (codes >= sizes[name]))[0])
            raise ValueError(
                f"{name} must hold codes from 0 (padding or unknown) to {sizes[name] - 1}, "
                f"received {codes[place]} in row {place[0]}. Were they numbered by another "
                "dataset? Unknown ones are 0."
            )
    moments = {
        name: np.shape(inputs[name])[1] for name in ("example_age", "search") if name in names
    }
    if len(set(moments.values())) > 1:
        raise ValueError(f"expected the same T of example_age and search, received {moments}.")


def num_rows(values) -> int | None:
    """Rows of an array or list; None of a single value."""
    return len(values) if np.ndim(values) else None


def _codes(table: pd.DataFrame, what: str, fields, defaults) -> dict[str, np.ndarray]:
    if fields is not None:
        unknown = [name for name in fields if name not in list(table)]
        if unknown:
            raise ValueError(
                f"the {what} have no column {', '.join(map(repr, unknown))}; they have "
                f"{', '.join(map(repr, table.columns))}."
            )
    return {name: _field(table, name) for name in (defaults if fields is None else fields)}


def _field(table: pd.DataFrame, name: str) -> np.ndarray:
    """Codes of one column, with row 0 for padding: int32 [n + 1] or [n + 1, several]."""
    if name not in table:
        several = name == SEARCH_FIELD
        return np.zeros((len(table) + 1, 1) if several else len(table) + 1, np.int32)
    column = table[name]
    values = column.array
    if any(isinstance(value, (tuple, list)) for value in values):
        lists = [tuple(v) if isinstance(v, (tuple, list)) else () for v in values]
        names = sorted({value for several in lists for value in several}, key=str)
        code = {value: i + 1 for i, value in enumerate(names)}
        codes = np.zeros((len(table) + 1, max(1, *map(len, lists))), np.int32)
        for row, several in enumerate(lists, start=1):
            codes[row, : len(several)] = [code[value] for value in several]
        return codes
    codes = np.zeros(len(table) + 1, np.int32)
    known = column.notna().to_numpy()
    number = pd.api.types.is_numeric_dtype(column.dtype)
    if name == "age" and number:
        found = np.digitize(column[known].to_numpy(float), AGE_BOUNDS) + 1
    elif name == "year" and number:
        lustrum = column[known].to_numpy(int) // 5
        found = lustrum - lustrum.min(initial=lustrum[0] if len(lustrum) else 0) + 1
    else:
        found = np.unique(column[known].astype(str), return_inverse=True)[1] + 1
    codes[1:][known] = found
    return codes


def _blocks(rows: int):
    return (slice(i, min(i + BLOCK_ROWS, rows)) for i in range(0, rows, BLOCK_ROWS))


def _gather(items, at, offsets, start, end) -> np.ndarray:
    """`items[at + offset]`, 0 where that is not from `start` to `end`, zeros moved to the left.

    `items` are those of all users, one after the other; `at`, `start` and `end` are rows of them
    [n], `offsets` ascend [m]. The result is int32 [n, m].
    """
    found = np.empty((len(at), len(offsets)), np.int32)
    for rows in _blocks(len(at)):
        place = at[rows, None] + offsets
        inside = (place >= start[rows, None]) & (place < end[rows, None])
        found[rows] = np.where(inside, items[np.clip(place, 0, len(items) - 1)], 0)
        if (inside[:, :-1] & ~inside[:, 1:]).any():  # padding after an item
            order = np.argsort(inside, axis=1, kind="stable")
            found[rows] = np.take_along_axis(found[rows], order, axis=1)
    return found
