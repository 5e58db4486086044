"""What is known of users and items: side tables, in the order of the ids that have interactions."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

import numpy as np
import pandas as pd

from recsys_helpers.columns import number, numbers, plain
from recsys_helpers.several import is_several, several
from recsys_helpers.tables import ROLES, find_columns

USER_FEATURES = ("gender", "age", "occupation", "zip_code")
ITEM_FEATURES = ("title", "year", "genres")


def side_table(
    key: str,
    table: pd.DataFrame | None,
    other: pd.DataFrame | None,
    ids: np.ndarray,
    columns: dict[str, str],
    separators: dict[str, str],
    odd_values: str,
    say: Callable,
) -> pd.DataFrame:
    """All that is known of users or items, numbered from 1; the columns we know come first.

    Args:
        key: "user_id" or "item_id".
        table: one row per user or item, or None.
        other: the table of the items or users: what `columns` says of its features is meant for it.
        ids: original ids, [num_ids]; row i of the result belongs to `ids[i]`.
        columns: see `Dataset.from_tables`, as for the other options.
        separators: of columns of several values.
        odd_values: "error" or "missing".
        say: prints a line.

    Raises:
        ValueError: an empty table, an id that occurs twice, no id that occurs in `ids`, values that
            can't be read.
    """
    numbered = pd.DataFrame({"original_id": ids}, index=pd.RangeIndex(1, len(ids) + 1, name=key))
    tables = [t for t in (table, other) if t is not None]
    lost = [n for n in columns if n not in ROLES and not any(columns[n] in t for t in tables)]
    if lost:  # interactions have a column of that name, which isn't read
        known = (*ROLES, *USER_FEATURES, *ITEM_FEATURES)
        raise ValueError(
            f"columns names {lost[0]!r}, which is none of {ROLES}, and no table of users or items "
            f"has {columns[lost[0]]!r}. "
            + "".join(
                f"Write {n!r}? " for n in get_close_matches(lost[0], known, 1) if n != lost[0]
            )
            + "What is known of users or items belongs into a table of theirs."
        )
    if table is None:
        return numbered
    what = table.attrs.get("source", "users" if key == "user_id" else "items")
    if table.empty:
        raise ValueError(f"{what} is empty, of shape {table.shape}. Leave it out or fill it.")
    not_here = ITEM_FEATURES if key == "user_id" else USER_FEATURES
    not_here = [ours for ours in not_here if other is not None and columns.get(ours) in other]
    columns = {ours: name for ours, name in columns.items() if ours not in not_here}
    wanted = (key, *USER_FEATURES, *ITEM_FEATURES)
    found = find_columns(list(table), wanted, columns, what, side=True, say=say)
    if key not in found:
        raise ValueError(
            f"{what} needs the column {key}, received {list(table)} (a file's first line must "
            + (
                f"name them). Rename the one that holds it to {key} or {columns[key]}."
                if key in columns
                else f"name them). Name it, for example columns={{{key!r}: {table.columns[0]!r}}}."
            )
        )
    renamed = {name: ours for ours, name in columns.items() if ours not in ROLES}
    renamed |= {name: ours for ours, name in found.items()}
    table = table.rename(columns=renamed)
    separators = {renamed.get(name, name): mark for name, mark in separators.items()}
    if table.columns.has_duplicates or "original_id" in table:
        raise ValueError(
            f"{what} has the columns {list(table)}: each name may occur once, and original_id is a "
            "name of ours. Rename them."
        )
    table = _features(table, key, what, separators, odd_values, say)
    lists = [c for c in table if c != key and isinstance(table[c].iloc[0], tuple)]
    for column, values in _in_order_of(ids, table, key, what, say).items():
        if column in lists:
            values = pd.Series([v if isinstance(v, tuple) else () for v in values])
        numbered[column] = values.array
    return numbered


def _in_order_of(ids: np.ndarray, table: pd.DataFrame, key: str, what: str, say: Callable):
    """The rows of `table` that belong to `ids`, empty where it has none."""
    codes, own = number(table[key], f"{what}: {key}")
    if len(own) < len(codes):
        twice = own[np.bincount(codes) > 1][0]
        raise ValueError(f"{what}: {key} {twice} occurs twice. Keep one row of each.")
    if own.dtype != ids.dtype:  # 7 and "7" are one id when one file has types and the other none
        own, ids = own.astype(str).astype(object), ids.astype(str).astype(object)
    matched = int(np.isin(own, ids).sum())
    if not matched:
        raise ValueError(
            f"{what}: none of its ids, such as {plain(own[0])}, has interactions; those have ids "
            f"such as {plain(ids[0])}. Name the right column of ids with columns=."
        )
    if matched < len(own):
        say(f"{what}: {len(own) - matched:,} of {len(own):,} rows left out, without interactions")
    if matched < len(ids):
        say(f"{what}: no row for {len(ids) - matched:,} of {len(ids):,} ids")
        # Whole numbers beside missing ones stay whole: floats have no room for those beyond 2**53.
        whole = [n for n in table if isinstance(table[n].dtype, np.dtype)]
        kinds = {n: table[n].dtype.kind for n in whole if table[n].dtype.kind in "iu"}
        table = table.astype({n: "UInt64" if kind == "u" else "Int64" for n, kind in kinds.items()})
    return table.set_axis(pd.Index(own[codes])).reindex(ids).drop(columns=key)


def _as_text(column: pd.Series) -> pd.Series:
    """Text, and what is missing as it is; 300.0 is 300 beside a missing title."""

    def text(value) -> str:
        if isinstance(value, bytes):
            return value.decode(errors="replace").strip()
        whole = isinstance(value, float) and value.is_integer()
        return str(int(value) if whole else value).strip()

    pairs = zip(column.astype(object), column.isna(), strict=True)
    texts = [value if missing else text(value) for value, missing in pairs]
    return pd.Series(texts, column.index, object)


def _features(table, key: str, what: str, separators, odd_values: str, say) -> pd.DataFrame:
    """The columns we know, each in one form, and then the others."""
    if "title" in table:
        table["title"] = _as_text(table["title"])
        if "year" not in table:
            # "Toy Story (1995)", "Series (2006-2007)", "Series (2011- )", "Video (1995) (V)"
            pattern = r"\((\d{4})(?:[-\u2013]\s?(?:\d{4})?)?\)(?: \(V\))?$"
            years = table["title"].str.extract(pattern)[0]
            if years.notna().any():
                table["year"] = years
    for column in ("year", "age"):
        if column in table and not pd.api.types.is_integer_dtype(table[column].dtype):
            whole = column == "year"
            table[column] = numbers(table[column], f"{what}: {column}", odd_values, say, whole)
    if "year" in table:
        table["year"] = table["year"].astype("Int64")
    if "zip_code" in table:
        table["zip_code"] = _as_text(table["zip_code"])
    for column in table:
        one = column in (key, "title")
        if column in {"genres", *separators} or (not one and is_several(table[column])):
            name = f"{what}: {column}"
            table[column] = pd.Series(
                several(table[column], separators.get(column), name, say), table.index, object
            )
    if "genres" in table:
        none = ("unknown", "(no genres listed)")
        table["genres"] = [tuple(g for g in genres if g not in none) for genres in table["genres"]]
    known = [column for column in (key, *USER_FEATURES, *ITEM_FEATURES) if column in table]
    return table[known + [column for column in table if column not in known]]
