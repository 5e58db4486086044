"""Columns as people have them, turned into columns that can be counted on.

Ids of any kind, times in any unit, numbers with odd values among them, fields of several values.
Everything that can't be read for certain is refused, with the place where it stands.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # per second
LARGEST = {"s": 1e11, "ms": 1e14, "us": 1e17}  # of each unit: the year 5138
PAIRS = ((1, 12), (1, 31), (0, 23), (0, 59), (0, 59))  # of digits after a year: month to second
EXCEL = 36_526, 54_789  # the years 2000 to 2049 in days since 1899-12-30
NONE = ("", "null", "nil", "none", "nan", "na", "n/a", "<na>", "\\n")  # as programs write it
SETS = (set, frozenset)
LISTS = (list, tuple, *SETS, np.ndarray)


def _first(mask: np.ndarray, column: pd.Series) -> str:
    """Where `mask` is first true and what stands there, for messages."""
    row = int(np.argmax(mask))
    more = int(np.sum(mask)) - 1
    others = f" and {more:,} more" if more > 0 else ""
    return f"{plain(column.iloc[row])} in row {row} (counted from 0){others}"


def plain(value) -> str:
    """A value for messages: 7 and not np.int64(7)."""
    return repr(value.item() if isinstance(value, np.generic) else value)


def _none_missing(column: pd.Series, what: str, missing: np.ndarray | None = None) -> None:
    missing = column.isna().to_numpy() if missing is None else missing
    if missing.any():
        row = int(missing.argmax())
        word = f"; it says {value!r}" if isinstance(value := column.iloc[row], str) else ""
        raise ValueError(
            f"{what} is missing in row {row} (counted from 0{word}), in {int(missing.sum()):,} of "
            f"{len(missing):,} rows in all. Drop these rows or fill them."
        )


def number(column: pd.Series, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Number ids of any kind from 0, in ascending order (text by code points).

    Whole numbers stay numbers, in whatever type they come; everything else is text.

    Returns:
        Numbers, int32 [n], and the ids they stand for, [num_ids]: int64, uint64 or objects (str).

    Raises:
        ValueError: ids that are missing, or neither whole numbers nor text.
    """
    try:
        codes, ids = pd.factorize(column)
    except (TypeError, NotImplementedError) as error:  # lists, which nothing can look up
        raise ValueError(
            f"{what} must hold whole numbers or text, received {plain(column.iloc[0])} in row 0."
        ) from error
    if (codes < 0).any():
        _none_missing(column, what)
    ids = np.asarray(ids)
    if ids.dtype.kind == "O" and {type(i) for i in ids} in ({float}, {float, int}):
        ids = ids.astype(float)
    if ids.dtype.kind == "f":
        odd = (ids % 1 != 0) | (np.abs(ids) >= 2**53)
        if odd.any():
            raise ValueError(
                f"{what} holds {_first(np.isin(column, ids[odd]), column)}: ids must be whole "
                "numbers below 2**53 or text. Read the column as text, or number them yourself."
            )
        ids = ids.astype(np.int64)
    elif ids.dtype.kind == "O":
        ids = _whole_or_text(ids, what)
        if ids.dtype == object:
            _none_missing(column, what, _stand_for_none(ids)[codes])
    elif ids.dtype.kind not in "iu":
        raise ValueError(
            f"{what} must hold whole numbers or text, received {column.dtype} values such as "
            f"{plain(ids[0])}. Convert them, for example with astype(str)."
        )
    if ids.dtype.kind in "iu":
        fits = ids.dtype.kind == "i" or not len(ids) or ids.max() < 2**63
        ids = ids.astype(np.int64 if fits else np.uint64)
    ids, rank = np.unique(ids, return_inverse=True)
    return rank.astype(np.int32)[codes], ids


def _stand_for_none(ids: np.ndarray) -> np.ndarray:
    """Which of the ids [n], text, are no ids, bool [n]: no text, or such a word among numbers."""
    words = np.array([i.strip().lower() in NONE for i in ids])
    numeric = words.any() and all(re.fullmatch(r"\s*-?\d+(\.0*)?\s*", i) for i in ids[~words])
    return words if numeric else ids == ""


def _whole_or_text(ids: np.ndarray, what: str) -> np.ndarray:
    """Objects as int64, as uint64, or all as text."""
    if all(isinstance(i, int | np.integer) and not isinstance(i, bool) for i in ids):
        for dtype in (np.int64, np.uint64):
            info = np.iinfo(dtype)
            if all(info.min <= i <= info.max for i in ids):
                return ids.astype(dtype)
    for i in ids:
        if isinstance(i, float | bool | bytes | tuple):
            raise ValueError(
                f"{what} holds {i!r} ({type(i).__name__}) among ids of other kinds: ids must be "
                "whole numbers or text. Convert the column, for example with astype(str)."
            )
    return np.array([str(i) for i in ids], object)


def times(
    column: pd.Series, unit: str | None, what: str, say: Callable
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds since 1970 of times of any kind; without a zone they are UTC.

    Args:
        column: integers or floats, datetimes, or text in ISO 8601 (or holding such numbers).
        unit: "s", "ms", "us" or "ns" of numbers; None takes it from their magnitude.
        what: the column's name for messages.
        say: prints a line.

    Returns:
        Seconds, int64 [n], rounded down; and what to sort by, [n], as fine as the source is.

    Raises:
        ValueError: missing or unreadable times, or numbers whose unit isn't clear.
    """
    _none_missing(column, what)
    kind = column.dtype
    if not isinstance(column.dtype, np.dtype | pd.DatetimeTZDtype) or column.dtype.kind == "O":
        column = _parsed_times(column, what)
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    if column.dtype.kind == "M":
        per_second = UNITS[np.datetime_data(column.dtype)[0]]
        keys = column.to_numpy().view(np.int64)
        return keys // per_second, keys
    if column.dtype.kind not in "iuf":
        raise ValueError(
            f"{what} must hold times, received {kind}. Convert them to numbers or datetimes."
        )
    keys = column.to_numpy()
    if (odd := ~np.isfinite(keys) | (keys >= 2**63)).any():
        raise ValueError(f"{what} holds {_first(odd, column)}: not a time.")
    if keys.dtype.kind in "iu":
        keys = keys.astype(np.int64, copy=False)
    if unit is None:
        unit = _unit(keys, what)
        if unit != "s":
            say(f"{what}: taken for {unit}, by their magnitude (time_unit= says otherwise)")
    seconds = keys if unit == "s" and keys.dtype == np.int64 else keys // UNITS[unit]
    return seconds.astype(np.int64, copy=False), keys


def _unit(keys: np.ndarray, what: str) -> str:
    sizes = np.abs(keys)

    def unit_of(size) -> str:
        return next((unit for unit, limit in LARGEST.items() if size < limit), "ns")

    middle = np.median(sizes)
    usual = unit_of(middle)
    # Times since some start have all magnitudes; another unit is far below, but no small number.
    limit = max((limit for limit in LARGEST.values() if limit <= middle), default=0)
    below = np.where(sizes < limit, sizes, 0)
    row = int(below.argmax())
    if not 1e8 < below[row] < limit / 20:
        row = int(sizes.argmax())
    if (other := unit_of(sizes[row])) != usual:
        raise ValueError(
            f"{what} holds numbers of several magnitudes: most look like {usual}, but "
            f"{keys[row]} in row {row} (counted from 0) like {other}, for example seconds and "
            "milliseconds. Convert them, or pass time_unit."
        )
    days = (keys >= EXCEL[0]) & (keys < EXCEL[1])
    if days.any() and np.mean(days | (keys == 0)) > 0.9:
        raise ValueError(
            f"{what} holds numbers such as {keys[days.argmax()]}, which look like a spreadsheet's "
            'days, not like s. Convert them (pandas.to_datetime(column, unit="D", '
            'origin="1899-12-30")), or pass time_unit="s".'
        )
    for n in range(7):  # pairs after the year, up to the second; then milliseconds, too
        n, per_date = (n, 1) if n < 6 else (5, 1000)
        if not 1900 <= middle // (100**n * per_date) <= 2100:
            continue
        dates = keys // per_date
        parts = [(dates // 100**n, 1900, 2100)]
        parts += [(dates // 100**i % 100, *PAIRS[n - 1 - i]) for i in range(n)]
        valid = np.logical_and.reduce([(part >= a) & (part <= b) for part, a, b in parts])
        if np.mean(valid | (keys == 0)) > 0.9:  # others stand for none, or for ever
            form = "%Y%m%d%H%M%S"[: 2 + 2 * n] + "%f" * (per_date > 1)
            raise ValueError(
                f"{what} holds numbers such as {keys[valid.argmax()]}, which look like dates, not "
                f'like {usual}. Convert them (pandas.to_datetime(column, format="{form}")), or '
                f'pass time_unit="{usual}".'
            )
    return usual


def _parsed_times(column: pd.Series, what: str) -> pd.Series:
    """Text, objects, and the types that are Arrow's or pandas's own, as numbers or datetimes."""
    if pd.api.types.is_numeric_dtype(column.dtype):
        return pd.Series(column.to_numpy())
    if isinstance(column.dtype, pd.CategoricalDtype):
        return _parsed_times(column.astype(column.cat.categories.dtype), what)
    read = partial(pd.to_datetime, utc=True)
    kind = pd.api.types.infer_dtype(column) if column.dtype == object else ""
    if kind in ("integer", "floating", "mixed-integer-float"):  # Python's own numbers
        read = pd.to_numeric
    elif kind in ("mixed-integer", "timedelta", "decimal"):
        raise ValueError(
            f"{what} must hold times of one kind, received {kind}. Convert them to numbers or "
            "datetimes."
        )
    elif isinstance(column.iloc[0], str):
        read = partial(read, format="ISO8601")
        if re.fullmatch(r"\s*-?\d+(\.\d*)?\s*", column.iloc[0]):
            read = pd.to_numeric
        elif column.iloc[0].endswith(" UTC"):
            column = column.str.removesuffix(" UTC")
    elif isinstance(column.dtype, pd.ArrowDtype):
        with contextlib.suppress(TypeError):  # of durations and the like, which are refused
            return column.astype("datetime64[ns, UTC]")
        return column
    try:
        steps = range(0, len(column), 1 << 20)  # a million at a time, to bound the memory
        times = pd.concat([read(column.iloc[i : i + (1 << 20)]) for i in steps])
    except (ValueError, TypeError, OverflowError) as error:
        bad = pd.isna(read(column, errors="coerce").to_numpy())
        raise ValueError(
            f"{what} holds {_first(bad, column)}: not a time in ISO 8601 such as "
            "2024-05-31T17:00:00Z, nor seconds since 1970 throughout. Convert it with "
            f"pandas.to_datetime(column, format=...) beforehand. ({error})"
        ) from error
    return pd.Series(times.to_numpy()) if read is pd.to_numeric else times


def positions(column: pd.Series, what: str) -> np.ndarray:
    """What says in which order a user's events came, [n]: integers, or other numbers."""
    _none_missing(column, what)
    if pd.api.types.is_integer_dtype(column.dtype):
        unsigned = pd.api.types.is_unsigned_integer_dtype(column.dtype)
        return column.to_numpy(np.uint64 if unsigned else np.int64)
    if not pd.api.types.is_numeric_dtype(column.dtype):
        texts = column.astype(str).str.strip()
        if texts.str.fullmatch(r"[-+]?\d+").all():  # of any length, where floats lose digits
            return np.unique(texts.map(int).to_numpy(object), return_inverse=True)[1]
    return numbers(column, what, None, print)


def compare_orders(users: np.ndarray, times: np.ndarray, what: str, say: Callable) -> None:
    """Say of how many users, whose rows are sorted by `what`, time goes back from row to row."""
    back = (np.diff(users) == 0) & (np.diff(times) < 0)
    if back.any():
        count = len(np.unique(users[1:][back]))
        say(
            f"{what} decides, and isn't the order of timestamp for {count:,} of {users[-1]:,} users"
            " (leave it out if it is another position, such as one on a page)"
        )


def numbers(
    column: pd.Series, what: str, odd_values: str | None, say: Callable, whole: bool = False
) -> np.ndarray:
    """Floats [n], NaN where nothing stands; see `Dataset.from_tables` for `odd_values`.

    None is an error, too, where they can't be missing.
    """
    blank = column.isna().to_numpy().copy()
    if not pd.api.types.is_numeric_dtype(column.dtype):
        column = column.astype(object)
        blank |= (column == "").to_numpy(bool)
    values = pd.to_numeric(column, errors="coerce").to_numpy(float, na_value=np.nan)
    odd = (np.isnan(values) & ~blank) | np.isinf(values)
    if whole:
        odd |= ~np.isnan(values) & (values != np.floor(values))
    if odd.any():
        if odd_values != "missing":
            remedy = ', or take such values as missing with odd_values="missing"'
            raise ValueError(
                f"{what} must hold {'whole ' * whole}numbers, received {_first(odd, column)}. "
                f"Convert the column{remedy if odd_values else ''}."
            )
        say(f"{what}: {odd.sum():,} odd values taken as missing, such as {_first(odd, column)}")
        values[odd] = np.nan
    return values


def _listed(text: str):
    """What a Python list, tuple or set that `text` writes down holds; None of other text."""
    # Of numpy's ['a' 'b'] Python would make one text.
    if _in_brackets(text) and not re.search(r"""['"]\s+['"]""", text):
        with contextlib.suppress(ValueError, SyntaxError, TypeError):
            parts = ast.literal_eval(text)
            return parts if isinstance(parts, LISTS) else None


def _in_brackets(text: str) -> bool:
    return text[:1] + text[-1:] in ("[]", "()", "{}")


def is_several(column: pd.Series) -> bool:
    """Whether the column holds lists, or text that is written like Python's lists."""
    known = column[column.notna()]
    if known.empty or pd.api.types.is_numeric_dtype(column.dtype):
        return False
    first = known.iloc[0]
    if isinstance(first, str):  # "(live)" and "{x: 1}" are text as any other
        listed = first[:1] == "[" or _listed(first) is not None
        return listed and all(_in_brackets(str(v)) for v in known)
    return isinstance(first, LISTS)


def several(column: pd.Series, separator: str | None, what: str, say: Callable) -> list[tuple]:
    """Tuples of str [n]: of lists, sets (sorted), text written like lists, or separated text.

    Args:
        column: () where nothing stands.
        separator: of text; None is "|", or the one of ",;，；、" that occurs where "|" doesn't.
        what: the column's name for messages.
        say: prints a line.
    """
    texts = [v for v in column if isinstance(v, str)]
    if separator is None and texts and not is_several(column):
        marks = [mark for mark in "|,;，；、/" if any(mark in text for text in texts)]
        others = [mark for mark in marks if mark not in "|/"]  # "Sci-Fi/Fantasy" may be one
        if "|" in marks or not others:
            separator = "|"
        elif len(others) == 1:
            separator = others[0]
            say(f"{what}: taken to be separated by {separator!r} (separators= says otherwise)")
        else:
            raise ValueError(
                f"{what} holds neither lists nor text separated by '|': {texts[0]!r}. Name the "
                f"separator, for example separators={{{what.rsplit(': ')[-1]!r}: ','}}."
            )
        if inside := [mark for mark in marks if mark != separator]:
            say(f"{what}: not split at {' '.join(inside)} (separators= says otherwise)")

    def split(value) -> tuple:
        parts = value
        if isinstance(value, str) and (parts := _listed(value)) is None:
            if separator is None or value[:1] + value[-1:] in ("[]", "{}"):
                raise ValueError(f"{what} holds {value!r}, which is not a list such as ['x', 'y'].")
            parts = value.split(separator)
        elif not isinstance(parts, LISTS):
            parts = () if pd.isna(parts) else (parts,)
        if isinstance(parts, SETS):
            parts = sorted(parts, key=str)
        if inner := [part for part in parts if isinstance(part, (dict, *LISTS))]:
            raise ValueError(
                f"{what} holds {inner[0]!r} inside a list. Keep one text or number of each, such "
                "as its name, or leave the column out."
            )
        return tuple(t for part in parts if not pd.isna(part) and (t := str(part).strip()))

    return [split(value) for value in column]
