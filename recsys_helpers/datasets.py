"""One shape for interactions from anywhere: MovieLens by name, files, or data frames in memory.

What arrives is checked and converted here, once: ids become numbers from 1 without gaps, times
become seconds, and everything that is left out is counted and printed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from recsys_helpers import columns as col
from recsys_helpers import fetch, side_tables, tables

REPEATS = ("first", "last", "error", "keep")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Interactions of users with items, numbered from 1 without gaps (0 is padding).

    Attributes:
        name: what it was loaded as.
        interactions: one row per interaction, sorted by user and then time, ties in the order of
            the source. Columns `user_id`, `item_id` (int32), `position` (int32, 0-based rank in
            the user's history) and, where the source has them, `timestamp` (int64, seconds since
            1970) and `rating` (float32).
        users: indexed by `user_id` 1..num_users; `original_id` (int64, uint64 or str) and every
            column that the source has. `gender`, `age`, `occupation` and `zip_code` (str) come
            first. In MovieLens-1M ages and occupations are codes.
        items: indexed by `item_id` 1..num_items; `original_id` and every column that the source
            has; `title` (str), `year` (nullable integer) and `genres` (tuple of str) come first.
        repeats: whether a user may have the same item several times, and may do so again: then
            nothing that was seen is left out when items are ranked (`Split.seen`).
    """

    name: str
    interactions: pd.DataFrame
    users: pd.DataFrame
    items: pd.DataFrame
    repeats: bool = False

    @classmethod
    def from_tables(
        cls,
        interactions: pd.DataFrame,
        users: pd.DataFrame | None = None,
        items: pd.DataFrame | None = None,
        *,
        name: str = "tables",
        columns: dict[str, str] | None = None,
        repeats: str = "first",
        min_user_interactions: int = 3,
        min_item_interactions: int = 1,
        time_unit: str | None = None,
        separators: dict[str, str] | None = None,
        odd_values: str = "error",
        verbose: bool = True,
    ) -> Dataset:
        """Make a dataset of data frames (or of what has `to_pandas`, such as Arrow's tables).

        Args:
            interactions: one row per event, with the user's and the item's id and a time or a
                position (whole numbers that order a user's events; they decide if both are there),
                optionally a rating; other columns are not read. Ids are whole numbers or text of
                any kind. Times are numbers, datetimes or ISO 8601; without a zone they are UTC.
            users: one row per user with the user's id; every other column is kept.
            items: one row per item, likewise.
            name: what the dataset is called in tables and messages.
            columns: our name -> yours, for columns with names of their own, such as
                `{"user_id": "customer", "timestamp": "bought_at", "title": "name"}`. The usual
                other names (userId, user, movieId, ts, date, Title, genre, ...) are found if there
                is one candidate, and it is said which.
            repeats: of the events of a user with the same item, keep the "first" or the "last"
                one, call them an "error", or "keep" all, for domains where people come back.
            min_user_interactions: users with fewer are left out; three is one each to train,
                validate and test on.
            min_item_interactions: items with fewer are left out. Both are applied again until
                nothing changes; both at k make a k-core.
            time_unit: "s", "ms", "us" or "ns", of times that are numbers; None goes by magnitude.
            separators: column -> separator of columns of several values. Lists need none;
                `genres` are split at "|" (or at the one of ",;，；、" that stands there instead).
            odd_values: what is no number in `rating`, `year` or `age` ("n/a", "4,5", "25-34") is
                an "error", or taken as "missing" and counted.
            verbose: print what was guessed and what was left out.

        Returns:
            The dataset. Users and items are numbered by ascending original id.

        Raises:
            TypeError: what is no table, or no dict.
            ValueError: columns that are not there or could be several; empty tables; missing ids
                or times; values that can't be read. Rows are counted from 0.
        """
        for option, received, allowed in (
            ("repeats", repeats, REPEATS),
            ("odd_values", odd_values, ("error", "missing")),
            ("time_unit", time_unit, (None, *col.UNITS)),
        ):
            if received not in allowed:
                raise ValueError(f"{option} must be one of {allowed}, received {received!r}.")
        columns, separators = tables.dicts(columns=columns, separators=separators).values()
        say = fetch.sayer(name, verbose)
        interactions = tables.frame(interactions)
        users, items = (None if t is None else tables.frame(t) for t in (users, items))
        names = [n for table in (interactions, users, items) if table is not None for n in table]
        for what, used in (("columns", columns.values()), ("separators", separators)):
            if strange := [n for n in used if n not in names and n not in columns]:
                raise ValueError(f"{what} names {strange}, but the tables have {names}.")

        what = interactions.attrs.get("source", "interactions")
        found = tables.find_columns(list(interactions), tables.ROLES, columns, what, say=say)
        if not {"user_id", "item_id"} <= set(found) or not {"timestamp", "position"} & set(found):
            raise ValueError(
                f"{what}: interactions need the columns user_id, item_id and timestamp or "
                f"position, received {list(interactions)} (a file's first line must name them). "
                'Say which is which, for example columns={"user_id": "customer"}; if rows are in '
                "order of time already, add a column position that counts them."
            )
        if interactions.empty:
            raise ValueError(f"{what}: there are no interactions.")
        given = {ours: interactions[theirs] for ours, theirs in found.items()}
        user, user_ids = col.number(given["user_id"], f"{what}: user_id")
        item, item_ids = col.number(given["item_id"], f"{what}: item_id")
        table, order = {}, None
        if "timestamp" in given:
            table["timestamp"], order = col.times(
                given["timestamp"], time_unit, f"{what}: timestamp", say
            )
        if "position" in given:
            order = col.positions(given["position"], f"{what}: position")
        if "rating" in given:
            ratings = col.numbers(given["rating"], f"{what}: rating", odd_values, say)
            table["rating"] = ratings.astype(np.float32)
        rows = np.lexsort((order, user))  # stable: ties keep the order of the source
        del order
        table = {"user_id": user + 1, "item_id": item + 1, "position": user, **table}
        table = {column: values[rows] for column, values in table.items()}
        table["position"] = _ranks(table["user_id"])
        if {"timestamp", "position"} <= set(given):
            col.compare_orders(table["user_id"], table["timestamp"], f"{what}: position", say)
        options = (columns, separators, odd_values, say)
        dataset = cls(
            name,
            pd.DataFrame(table, copy=False),
            side_tables.side_table("user_id", users, items, user_ids, *options),
            side_tables.side_table("item_id", items, users, item_ids, *options),
            repeats == "keep",
        )
        dataset = _without_repeats(dataset, repeats, say)
        return dataset.core(min_user_interactions, min_item_interactions, verbose)

    @property
    def num_users(self) -> int:
        """Number of users; the largest user id."""
        return len(self.users)

    @property
    def num_items(self) -> int:
        """Number of items; the largest item id."""
        return len(self.items)

    @property
    def has_timestamps(self) -> bool:
        """Whether the times of the interactions are known, not only their order."""
        return "timestamp" in self.interactions

    def user_ids(self, original_ids) -> np.ndarray:
        """Our ids, int32 [n], of users by a list of original ids; ValueError if unknown."""
        return _ids_of(self.users, original_ids, "user")

    def item_ids(self, original_ids) -> np.ndarray:
        """Our ids, int32 [n], of items by a list of original ids; ValueError if unknown.

        The way back is `items.loc[item_ids, "original_id"]`.
        """
        return _ids_of(self.items, original_ids, "item")

    def titles(self, item_ids) -> np.ndarray | str:
        """Titles of items, an array of str of the ids' shape (a str for a single id).

        Where there is no title, the original id stands in for it.
        """
        ids = np.asarray(item_ids)
        if ids.dtype == object:  # such as a nullable column's
            ids = np.array(ids.tolist())
        whole = ids.dtype.kind in "iu"
        if ids.size and not (whole and 1 <= ids.min() <= ids.max() <= self.num_items):
            bad = (
                ids[(ids < 1) | (ids > self.num_items)].flat[0] if whole else f"{ids.dtype} values"
            )
            raise ValueError(f"item ids are integers from 1 to {self.num_items}, received {bad}.")
        rows = self.items.iloc[ids.reshape(-1).astype(np.intp) - 1]
        names = rows["original_id"].astype(str).astype(object)
        if "title" in rows:
            names = rows["title"].where(rows["title"].notna(), names)
        names = names.to_numpy(object).reshape(ids.shape)
        return names if ids.ndim else names.item()

    def where(self, kept: np.ndarray) -> Dataset:
        """The dataset of the interactions that bool [n] `kept` says, numbered from 1 again."""
        kept, n = np.asarray(kept), len(self.interactions)
        if kept.dtype != bool or kept.shape != (n,):
            raise ValueError(f"kept must be bool [{n}], received {kept.dtype} of {kept.shape}.")
        rows = self.interactions[kept].reset_index(drop=True)
        ours = {}
        for key, table in (("user_id", self.users), ("item_id", self.items)):
            here = np.bincount(rows[key], minlength=len(table) + 1) > 0
            rows[key] = np.cumsum(here, dtype=np.int32)[rows[key]]
            index = pd.RangeIndex(1, int(here.sum()) + 1, name=key)
            ours[key] = table[here[1:]].set_index(index)
        rows["position"] = _ranks(rows["user_id"].to_numpy())
        return replace(self, interactions=rows, users=ours["user_id"], items=ours["item_id"])

    def core(
        self, min_user_interactions: int, min_item_interactions: int, verbose: bool = True
    ) -> Dataset:
        """Leave out users and items with too few interactions, until all that stay have enough.

        Raises:
            ValueError: if nothing is left.
        """
        users = self.interactions["user_id"].to_numpy()
        items = self.interactions["item_id"].to_numpy()
        kept = None
        while True:
            u, i = (users, items) if kept is None else (users[kept], items[kept])
            few_users, few_items = np.bincount(u), np.bincount(i)
            few_users = (few_users < min_user_interactions) & (few_users > 0)
            few_items = (few_items < min_item_interactions) & (few_items > 0)
            if not few_users.any() and not few_items.any():
                break
            kept = np.ones(len(users), bool) if kept is None else kept
            kept[kept] = ~(few_users[u] | few_items[i])
        if kept is None:
            return self
        what = (
            f"users with fewer than {min_user_interactions} interactions and items with fewer than "
            f"{min_item_interactions}"
        )
        if not kept.any():
            raise ValueError(f"{self.name}: nothing is left without {what}.")
        less = self.where(kept)
        fetch.sayer(self.name, verbose)(
            f"left out {self.num_users - less.num_users:,} users, "
            f"{self.num_items - less.num_items:,} items, {(~kept).sum():,} interactions ({what})"
        )
        return less

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the interactions and the original ids.

        Computed from the values, so that it depends neither on the file format nor on the
        version of pandas. Titles and other features are not part of it.
        """
        digest = hashlib.sha256()
        dtypes = dict(user_id="<i4", item_id="<i4", position="<i4", timestamp="<i8", rating="<f4")
        for column, dtype in dtypes.items():
            if column in self.interactions:
                digest.update(column.encode())
                digest.update(self.interactions[column].to_numpy(dtype))
        for table in (self.users, self.items):
            digest.update(b"original_id")
            ids = table["original_id"].to_numpy()
            if ids.dtype == np.int64:
                digest.update(ids.astype("<i8"))
            else:  # text, or beyond 64 bits with a sign
                digest.update(json.dumps([str(ids.dtype), *ids.tolist()]).encode())
        if self.repeats:
            digest.update(b"repeats")
        return digest.hexdigest()


def load_dataset(
    name_or_path: str | os.PathLike,
    data_folder: str | os.PathLike | None = None,
    verbose: bool = True,
    encoding: str = "utf-8",
    **options,
) -> Dataset:
    """Load a dataset by name, or from a folder or file.

    A name is looked for in the data folders: `data_folder`, the one the environment variable
    `RECSYS_DATA` names, `data/` of a checkout of this project, the per-user cache. What is in none
    of them is downloaded, checked, and kept in the first folder that can be written.

    Args:
        name_or_path: "ml-100k", "ml-1m", "ml-1m-order", "ml-latest-small" or "ml-32m"; the name of
            another folder inside a data folder; or the path of a folder or of a file of
            interactions. A folder holds GroupLens's own files, RecBole's (`.inter`, `.user`,
            `.item`), or `interactions` with `users` and `items` where there are such, each a
            `.parquet` file or folder, or `.csv` or `.tsv` (also `.gz` or `.zip`) with a header,
            where quotes may enclose what stands between separators; or `part-*.parquet`, or such
            files in folders called `column=value`.
        data_folder: looked in before the other data folders.
        verbose: print every step.
        encoding: of text files; GroupLens's own may as well be in their latin-1.
        **options: see `Dataset.from_tables`.

    Returns:
        The dataset. "ml-1m-order" is MovieLens-1M as the literature on sequences has it: movies
        with at least five ratings, in the order of time (ties in the order of the file), without
        times and ratings; it is made from "ml-1m".

    Raises:
        TypeError: neither a name nor a path.
        ValueError: unknown name; what can't be read, see `Dataset.from_tables`.
        OSError: the dataset could be had from no source; the message says from where it can be
            fetched by hand.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        kind = type(name_or_path).__name__
        raise TypeError(f"expected a name or path, received a {kind}; see Dataset.from_tables.")
    folders = fetch.data_folders(data_folder)
    wanted, asked = str(name_or_path), dict(options)
    options |= tables.dicts(columns=options.get("columns"), separators=options.get("separators"))
    main, name, from_1m = fetch.locate(wanted, folders, verbose)
    say = fetch.sayer(name, verbose)
    (interactions, users, items), separators = tables.read_tables(
        main, options.get("columns"), encoding, say
    )
    files = []
    for table in (interactions, users, items):
        if table is not None:
            table.attrs["source"] = fetch.shown(Path(table.attrs["source"]), folders)
            files.append(table.attrs["source"])
    num_rows = len(interactions)
    if from_1m:
        say("made from ml-1m, in the order of time, of movies with at least five ratings")
        interactions = fetch.in_order(interactions)
    options["separators"] = separators | options["separators"]
    dataset = Dataset.from_tables(interactions, users, items, name=name, verbose=verbose, **options)
    del interactions, users, items, table
    tables.release_memory()

    span = ""
    if dataset.has_timestamps:
        times = dataset.interactions["timestamp"].agg(["min", "max"]).to_numpy("datetime64[s]")
        span = " from {} to {}".format(*times.astype("datetime64[D]"))
    beside = "".join(f", {Path(file).name}" for file in files[1:])
    say(
        f"{dataset.num_users:,} users, {dataset.num_items:,} items, "
        f"{len(dataset.interactions):,} interactions{span}, read from {files[0]}{beside}"
    )
    if not asked:
        fetch.compare(wanted, num_rows, dataset.fingerprint, say)
    return dataset


def _ids_of(table: pd.DataFrame, given: Iterable, what: str) -> np.ndarray:
    if not pd.api.types.is_list_like(given):  # the text "12" is no list of "1" and "2"
        raise ValueError(f"expected a list of ids, received {given!r}; write [{given!r}].")
    known, wanted = pd.Index(table["original_id"]), list(given)
    ids = known.get_indexer([str(i) for i in wanted] if known.dtype == object else wanted)
    if (ids < 0).any():
        raise ValueError(f"no {what} has the original id {wanted[int((ids < 0).argmax())]!r}.")
    return (ids + 1).astype(np.int32)


def _ranks(users: np.ndarray) -> np.ndarray:
    """0-based rank of each row within its user, int32 [n], of users in ascending order."""
    lengths = np.bincount(users)
    first = np.cumsum(lengths) - lengths
    return np.arange(len(users), dtype=np.int32) - np.repeat(first.astype(np.int32), lengths)


def _without_repeats(dataset: Dataset, repeats: str, say) -> Dataset:
    """Of each user's events with an item the first or last only; see `Dataset.from_tables`."""
    if repeats == "keep":
        return dataset
    table = dataset.interactions
    pairs = table["user_id"].to_numpy(np.int64) * (dataset.num_items + 1)
    pairs += table["item_id"].to_numpy()
    order = np.argsort(pairs, kind="stable")  # each pair in the order of time
    changes = np.diff(pairs[order]) != 0
    del pairs
    again = np.flatnonzero(~changes)  # an event, and the next one is of the same pair
    if not len(again):
        return dataset
    if repeats == "error":
        user, item = table.loc[order[again[0]], ["user_id", "item_id"]].astype(int)
        raise ValueError(
            f"{dataset.name}: {len(again):,} duplicate (user, item) pairs, such as user "
            f"{dataset.users['original_id'].loc[user]} with item "
            f"{dataset.items['original_id'].loc[item]}. Keep one row of each pair, or pass "
            'repeats="first", "last" or "keep".'
        )
    kept = np.ones(len(table), bool)
    kept[order[again + (repeats == "first")]] = False
    say(f"{len(again):,} repeated (user, item) events left out, the {repeats} of each pair stays")
    return dataset.where(kept)
