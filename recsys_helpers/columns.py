"""Columns as people have them, turned into columns that can be counted on.

Ids of any kind, times in any unit, numbers with odd values among them; fields of several values are
in `several`. Everything that can't be read for certain is refused, with the place where it stands.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from decimal import Decimal
from functools import partial

import numpy as np
import pandas as pd

UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # per second
LARGEST = {"s": 1e11, "ms": 1e14, "us": 1e17}  # of each unit: the year 5138
PAIRS = ((1, 12), (1, 31), (0, 23), (0, 59), (0, 59))  # of digits after a year: month to second
# Nobody's times since 1970 are these, but others' of our years: from, to, what, how to convert.
OTHER_STARTS = (
    (
        36_526,
        54_789,
        "a spreadsheet's days",
        'pandas.to_datetime(column, unit="D", origin="1899-12-30")',
    ),
    (1.25e16, 1.4e16, "a browser's microseconds since 1601", "column - 11644473600000000"),
    (1.25e17, 1.4e17, "Windows's file times", "(column - 116444736000000000) // 10"),
    (6.2e17, 6.6e17, ".NET's ticks", "(column - 621355968000000000) // 10"),
)
# NaT as a number, in any unit, rounded down or towards 0.
NO_TIMES = [n for per in UNITS.values() for n in (-(2**63) // per, -(2**63 // per))]
NO_IDS = (float, np.floating, bool, np.bool_, bytes, tuple, Decimal)
NONE = ("", "null", "nil", "none", "nan", "na", "n/a", "<na>", "\\n")  # as programs write it


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
        word = "" if pd.isna(value := column.iloc[row]) else f"; it says {plain(value)}"
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
        digits = _digits(ids.dtype)  # with more, two ids may have become one
        odd = (ids % 1 != 0) | (np.abs(ids) >= 2**digits)
        if odd.any():
            raise ValueError(
                f"{what} holds {_first(np.isin(column, ids[odd]), column)}: ids must be whole "
                f"numbers below 2**{digits} or text. Read the column as text or "
                "integers, or number them yourself."
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


def _digits(dtype: np.dtype) -> int:
    """Binary digits of floats: below 2**digits they tell every whole number from the next."""
    return np.finfo(dtype).nmant + 1


def _stand_for_none(ids: np.ndarray) -> np.ndarray:
    """Which of the ids [n], text, are no ids, bool [n]: no text, or such a word among numbers."""
    words = np.array([i.strip().lower() in NONE for i in ids])
    numeric = words.any() and all(re.fullmatch(r"\s*-?\d+(\.0*)?\s*", i) for i in ids[~words])
    return words if numeric else ids == ""


def _whole_or_text(ids: np.ndarray, what: str) -> np.ndarray:
    """Objects as int64, as uint64, or all as text."""
    if all(isinstance(i, Decimal) and i.is_finite() and i == int(i) for i in ids):
        ids = np.array([int(i) for i in ids], object)  # a database's NUMERIC keys
    if all(isinstance(i, int | np.integer) and not isinstance(i, bool) for i in ids):
        for dtype in (np.int64, np.uint64):
            info = np.iinfo(dtype)
            if all(info.min <= i <= info.max for i in ids):
                return ids.astype(dtype)
    unnamed = object.__str__, object.__repr__  # of what is written as its place in memory
    odd = [
        i for i in ids if isinstance(i, NO_IDS) or (type(i).__str__, type(i).__repr__) == unnamed
    ]
    if odd:
        i = next((i for i in odd if not isinstance(i, Decimal) or i % 1), odd[0])
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
    kind, given = column.dtype, column
    if not isinstance(column.dtype, np.dtype | pd.DatetimeTZDtype) or column.dtype.kind == "O":
        column = _parsed_times(column, what)
        _none_missing(given, what, column.isna().to_numpy())  # pandas reads the word "NaT"
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
    if keys.min() < -9e9:
        _none_missing(given, what, np.isin(np.floor(keys), NO_TIMES))
    if keys.dtype.kind == "f" and np.abs(keys).max() >= 2 ** _digits(keys.dtype) < 2**53:
        raise ValueError(
            f"{what} holds {keys.dtype}, which can't tell such times apart, received "
            f"{plain(keys[np.abs(keys).argmax()])}. Read the column as integers or float64."
        )
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
    forms = [(like, remedy, [(keys, *ends)]) for *ends, like, remedy in OTHER_STARTS]
    for form, *ends in (("%d%m%Y", (1, 31), (1, 12)), ("%m%d%Y", (1, 12), (1, 31))):
        if 1e6 <= middle < 1e8:
            parts = [(keys // 10**n % 100, *end) for n, end in zip((6, 4), ends, strict=True)]
            parts = [(keys, 1e6, 1e8), *parts, (keys % 10_000, 1900, 2100)]
            forms.append(("dates", f'pandas.to_datetime(column, format="{form}")', parts))
    for like, remedy, parts in forms:
        _, low, high = parts[0]
        if not low <= middle < high:  # most times are passed over here
            continue
        if high < 1e5 and not (keys % 1).any() and len(np.unique(keys)) > len(keys) / 2:
            continue  # so many days, and no two events on one: these are seconds of something
        valid = _all_within(parts)
        if np.mean(valid | (keys == 0)) > 0.9:  # others stand for none
            raise ValueError(
                f"{what} holds numbers such as {keys[valid.argmax()]}, which look like {like}, not "
                f'like {usual} since 1970. Convert them ({remedy}), or pass time_unit="{usual}".'
            )
    for n in range(7):  # pairs after the year, up to the second; then milliseconds, too
        n, per_date = (n, 1) if n < 6 else (5, 1000)
        if not 1900 <= middle // (100**n * per_date) <= 2100:
            continue
        dates = keys // per_date
        parts = [(dates // 100**n, 1900, 2100)]
        parts += [(dates // 100**i % 100, *PAIRS[n - 1 - i]) for i in range(n)]
        valid = _all_within(parts)
        if np.mean(valid | (keys == 0)) > 0.9:  # others stand for none, or for ever
            form = "%Y%m%d%H%M%S"[: 2 + 2 * n] + "%f" * (per_date > 1)
            raise ValueError(
                f"{what} holds numbers such as {keys[valid.argmax()]}, which look like dates, not "
                f'like {usual}. Convert them (pandas.to_datetime(column, format="{form}")), or '
                f'pass time_unit="{usual}".'
            )
    return usual


def _all_within(parts: list[tuple]) -> np.ndarray:
    """Where all of the arrays are within their bounds, bool [n]."""
    return np.logical_and.reduce([(part >= low) & (part <= high) for part, low, high in parts])


def _parsed_times(column: pd.Series, what: str) -> pd.Series:
    """Text, objects, and the types that are Arrow's or pandas's own, as numbers or datetimes."""
    if pd.api.types.is_numeric_dtype(column.dtype):
        return pd.Series(column.to_numpy())
    if isinstance(column.dtype, pd.CategoricalDtype):
        return _parsed_times(column.astype(column.cat.categories.dtype), what)
    if isinstance(column.dtype, pd.PeriodDtype):
        return column.dt.to_timestamp()
    read = partial(pd.to_datetime, utc=True, format="ISO8601")
    kind = pd.api.types.infer_dtype(column) if column.dtype == object else ""
    if kind in ("integer", "floating", "mixed-integer-float"):  # Python's own numbers
        read = pd.to_numeric
    elif kind in ("mixed-integer", "timedelta", "decimal") or (
        kind == "mixed" and any(isinstance(v, float | np.number) for v in column)
    ):
        raise ValueError(
            f"{what} must hold times of one kind, received {kind}. Convert them to numbers or "
            "datetimes."
        )
    elif isinstance(column.iloc[0], str):
        first = next((v for v in column if str(v).strip().lower() not in NONE), "")
        if re.fullmatch(r"\s*[-+]?\d+(\.\d*)?([eE][-+]?\d+)?\s*", str(first)):
            read = pd.to_numeric
        elif kind in ("", "string"):
            column = column.str.removesuffix(" UTC")
    elif isinstance(column.dtype, pd.ArrowDtype):
        unit = getattr(column.dtype.pyarrow_dtype, "unit", "s")  # dates have none
        with contextlib.suppress(TypeError):  # of durations and the like, which are refused
            return column.astype(f"datetime64[{unit}, UTC]")
        return column
    clock = np.zeros(1, bool)
    try:
        if kind or isinstance(column.iloc[0], str):  # pandas would read it off its own
            clock = column.isin(("now", "today")).to_numpy()
        if clock.any():
            raise ValueError
        steps = range(0, len(column), 1 << 20)  # a million at a time, to bound the memory
        times = pd.concat([read(column.iloc[i : i + (1 << 20)]) for i in steps])
    except (ValueError, TypeError, OverflowError) as error:
        bad = clock if clock.any() else pd.isna(read(column, errors="coerce").to_numpy())
        if not bad.any():  # a number, but no time
            bad = pd.to_numeric(column, errors="coerce").to_numpy(float) >= 2**63
        if isinstance(error, pd.errors.OutOfBoundsDatetime):
            raise ValueError(
                f"{what} holds {_first(bad, column)}: not between the years 1678 and 2261. If it "
                "stands for none or for ever, drop these rows or replace it."
            ) from error
        raise ValueError(
            f"{what} holds {_first(bad, column)}: not a time in ISO 8601 such as "
            "2024-05-31T17:00:00Z, nor seconds since 1970 throughout. Convert it with "
            "pandas.to_datetime(column, format=...) beforehand."
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
        odd |= ~np.isnan(values) & ((values != np.floor(values)) | (np.abs(values) >= 2**53))
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
