"""What people have, and what becomes of it: works, or is refused for a reason that is said."""

import bz2
import gzip
import io
import uuid
import zipfile
from csv import QUOTE_NONNUMERIC
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from recsys_helpers.datasets import Dataset, load_dataset

DAY = 86_400
START = 1_600_000_000


def log(**changed):
    """Three users and four items, a day apart, as columns; `changed` replaces some of them."""
    table = pd.DataFrame(
        {
            "user_id": np.repeat([1, 2, 3], 4),
            "item_id": np.tile([10, 20, 30, 40], 3),
            "timestamp": START + DAY * np.tile(np.arange(4), 3),
        }
    )
    for column, values in changed.items():
        table[column] = values
    return table.dropna(axis=1, how="all")


def facts(dataset):
    """What the table below asks of a dataset; times are the first user's."""
    table = dataset.interactions
    return SimpleNamespace(
        users=dataset.users["original_id"].tolist(),
        items=dataset.items["original_id"].tolist(),
        rows=len(table),
        history=dataset.items["original_id"].loc[table.query("user_id == 1")["item_id"]].tolist(),
        times=table.get("timestamp", pd.Series(dtype=int))[table["user_id"] == 1].tolist(),
        ratings=table.get("rating", pd.Series(dtype=float)).tolist(),
        columns=[*dataset.users.columns[1:], *dataset.items.columns[1:]],
        genres=dataset.items["genres"].iloc[0] if "genres" in dataset.items else None,
        tags=dataset.items["tags"].iloc[0] if "tags" in dataset.items else None,
        years=dataset.items["year"].fillna(0).tolist() if "year" in dataset.items else None,
        ages=dataset.users["age"].fillna(0).tolist() if "age" in dataset.users else None,
        age_type=str(dataset.users["age"].dtype) if "age" in dataset.users else None,
        shelf=dataset.items["shelf"].tolist() if "shelf" in dataset.items else None,
        zips=dataset.users["zip_code"].fillna(0).tolist() if "zip_code" in dataset.users else None,
        titles=dataset.titles(dataset.items.index).tolist(),
        repeats=dataset.repeats,
    )


def judge(make, expected, match, capsys):
    if match is not None:
        with pytest.raises(ValueError, match=match):
            make()
        return
    made = facts(make())
    for fact, value in expected.items():
        if fact == "says":
            printed = capsys.readouterr().out
            assert value in printed, printed
        elif fact == "doesn't say":
            assert value not in capsys.readouterr().out
        else:
            assert getattr(made, fact) == value, fact


# Ids

USERS = log()["user_id"]
SMALL, LARGE = [1, 2, 3], [2**63 + 1, 2**63 + 2, 2**63 + 3]
UUIDS = [uuid.UUID(int=i) for i in SMALL]
LONG = [str(2**127 + i) for i in SMALL]


def ids(values, dtype=None):
    return log(user_id=pd.Series([values[i - 1] for i in USERS], dtype=dtype))


# fmt: off
IDS = {
    "int32": (ids(SMALL, "int32"), SMALL),
    "nullable": (ids(SMALL, "Int64"), SMALL),
    "descending": (ids([3, 2, 1]), SMALL),
    "negative": (ids([-5, 0, 7]), [-5, 0, 7]),
    "unsigned 64 bit": (ids(LARGE, "uint64"), LARGE),
    "small unsigned": (ids(SMALL, "uint8"), SMALL),
    "whole floats": (ids([1.0, 2.0, 3.0]), SMALL),
    "whole floats as objects": (ids([1.0, 2, 3], object), SMALL),
    "text": (ids(["b", "a", "C"]), ["C", "a", "b"]),
    "text beyond ASCII": (ids(["é", "z", "日"]), ["z", "é", "日"]),
    "a name that is a word for none": (ids(["b", "null", "C"]), ["C", "b", "null"]),
    "digits as text": (ids(["10", "9", "007"]), ["007", "10", "9"]),
    "UUIDs": (ids(UUIDS), [str(u) for u in UUIDS]),
    "128-bit digits": (ids(LONG), LONG),
    "128-bit integers": (ids([int(i) for i in LONG], object), LONG),
    "integers beside text": (ids([1, "x", 3], object), ["1", "3", "x"]),
    "categories of text": (ids(["b", "a", "c"], "category"), ["a", "b", "c"]),
    "categories of integers": (log(user_id=pd.Categorical(USERS, categories=[9, 3, 2, 1])), SMALL),
    "Arrow strings": (ids(["b", "a", "c"], "string[pyarrow]"), ["a", "b", "c"]),
    "Arrow integers": (ids(SMALL, "int64[pyarrow]"), SMALL),
    "whole decimals": (ids([Decimal(f"{i}.0") for i in SMALL]), SMALL),
    "small floats of 32 bits": (ids(SMALL, "float32"), SMALL),
}
# fmt: on
# fmt: off
ODD_IDS = {
    "missing integer": (ids([1, None, 3], "Int64"), r"user_id is missing in row 4 .*4 of 12 rows"),
    "missing float": (ids([1, np.nan, 3]), "user_id is missing in row 4"),
    "missing text": (ids(["a", None, "b"]), "user_id is missing in row 4"),
    "empty text": (ids(["a", "b", ""]), "user_id is missing in row 8"),
    "numbers and NULL": (ids(["1", "NULL", "3"]),
        r"user_id is missing in row 4 \(counted from 0; it says 'NULL'\), in 4 of 12 rows"),
    "floats as text, one of which was none": (ids(["1.0", "nan", "3.0"]), "in row 4 .*'nan'"),
    "integers beside None as text": (ids([1, 2, "None"], object), r"missing in row 8 .*'None'"),
    "numbers and two such words": (ids(["1", " \\N", "<NA>"], "category"), "4 .*, in 8 of 12 rows"),
    "missing category": (ids(["a", None, "b"], "category"), "user_id is missing in row 4"),
    "fractions": (ids([1, 2.5, 3]), r"user_id holds .*2\.5.* in row 4 .*whole numbers"),
    "floats that have lost digits": (ids([1.0, 2.0**53, 3.0]), "below 2.*53 or text"),
    "floats of 32 bits that have lost digits": (ids([2**24, 2**24 + 1, 2**24 + 4], "float32"),
        r"16777216.0 in row 0 .* below 2\*\*24 or text"),
    "decimals with fractions": (ids([Decimal(1), Decimal("2.5"), Decimal(3)]),
        r"Decimal\('2.5'\) \(Decimal\) among"),
    "numpy's fractions": (ids([np.float32(1), "x", np.float32(3)], object), r"\(float32\) among"),
    "what is no id": (ids([object(), object(), object()]), "ids must be whole numbers or text"),
    "floats beside text": (ids([1.5, "x", 3], object), r"1\.5 \(float\) among"),
    "bytes": (ids([b"a", b"b", b"c"]), "bytes"),
    "booleans": (log(user_id=USERS == 1), "received bool"),
    "lists": (log(user_id=pd.Series([[1]] * 12)), r"numbers or text, received \[1\] in row 0"),
    "Arrow lists": (ids([[1], [2], [3]], pd.ArrowDtype(pa.list_(pa.int64()))),
        "user_id must hold whole numbers or text, received .*1.* in row 0"),
    "dates as ids": (log(user_id=pd.to_datetime("2020-01-01")), "received datetime64"),
}
# fmt: on


@pytest.mark.parametrize("kind", IDS)
def test_ids(kind):
    table, expected = IDS[kind]
    before = table.copy()
    dataset = Dataset.from_tables(table)
    assert dataset.users["original_id"].tolist() == expected
    # Back and forth; and who had which row is still so.
    given = table["user_id"].tolist()
    assert dataset.user_ids(expected).tolist() == [1, 2, 3]
    rows = dataset.interactions.assign(index=np.arange(12))
    for ours in (1, 2, 3):
        theirs = [
            i for i, g in enumerate(given) if str(g).removesuffix(".0") == str(expected[ours - 1])
        ]
        items = dataset.items["original_id"].loc[rows.loc[rows["user_id"] == ours, "item_id"]]
        assert items.tolist() == table["item_id"].iloc[theirs].tolist()
    pd.testing.assert_frame_equal(table, before)
    assert dataset.fingerprint == Dataset.from_tables(table, verbose=False).fingerprint


@pytest.mark.parametrize("kind", ODD_IDS)
def test_ids_that_are_refused(kind):
    table, match = ODD_IDS[kind]
    with pytest.raises(ValueError, match=match):
        Dataset.from_tables(table)


# Times

TIMES = log()["timestamp"]
EXACT = TIMES[:4].tolist()
STAMPS = pd.to_datetime(TIMES, unit="s")
ISO = STAMPS.dt.strftime("%Y-%m-%dT%H:%M:%S")


def arrow(values, kind):
    return pd.Series(pd.array(values.tolist(), pd.ArrowDtype(kind)))


# fmt: off
KINDS_OF_TIMES = {
    "seconds": (TIMES, {}),
    "int32": (TIMES.astype("int32"), {}),
    "nullable": (TIMES.astype("Int64"), {}),
    "milliseconds": (TIMES * 10**3, {"says": "timestamp: taken for ms"}),
    "microseconds": (TIMES * 10**6, {"says": "timestamp: taken for us"}),
    "nanoseconds": (TIMES * 10**9, {"says": "timestamp: taken for ns"}),
    "fractions of seconds": (TIMES + 0.75, {}),
    "milliseconds as floats": (TIMES * 1e3 + 0.5, {"says": "taken for ms"}),
    "seconds as text": (TIMES.astype(str), {}),
    "milliseconds as Arrow strings": ((TIMES * 1000).astype("string[pyarrow]"), {}),
    "ISO": (ISO, {}),
    "ISO as Arrow strings": (ISO.astype("string[pyarrow]"), {}),
    "ISO, UTC": (ISO + "Z", {}),
    "ISO, another zone": (
        STAMPS.dt.tz_localize("UTC").dt.tz_convert("Asia/Kolkata").map(lambda t: t.isoformat()),
        {}),
    "a blank and UTC": (ISO.str.replace("T", " ") + " UTC", {}),
    "ISO with fractions": (ISO + ".987", {}),
    "dates as text": (ISO.str[:10], {"times": [t // DAY * DAY for t in EXACT]}),
    "dates": (STAMPS.dt.date, {"times": [t // DAY * DAY for t in EXACT]}),
    "datetimes": (STAMPS, {}),
    "datetimes in seconds": (STAMPS.astype("datetime64[s]"), {}),
    "datetimes with a zone": (STAMPS.dt.tz_localize("UTC").dt.tz_convert("Europe/Berlin"), {}),
    "datetime objects": (STAMPS.map(lambda t: t.to_pydatetime()).astype(object), {}),
    "Arrow timestamps": (arrow(STAMPS, pa.timestamp("us")), {}),
    "Arrow timestamps, zone": (
        arrow(STAMPS.dt.tz_localize("UTC"), pa.timestamp("ns", "Asia/Tokyo")), {}),
    "Arrow dates": (arrow(STAMPS.dt.date, pa.date32()), {"times": [t // DAY * DAY for t in EXACT]}),
    "milliseconds with small numbers for none": ((TIMES * 1000).where(TIMES > START, 1),
        {"times": [0, *EXACT[1:]], "says": "taken for ms"}),
    "milliseconds since some start": ((TIMES - START) * 10**6,
        {"times": [1000 * (t - START) for t in EXACT], "says": "taken for ms"}),
    "small numbers": ((TIMES - START) // DAY, {"times": [0, 1, 2, 3]}),
    "numbers that are no dates": ((TIMES - START) // DAY + 20_201_300,
        {"times": [20_201_300, 20_201_301, 20_201_302, 20_201_303]}),
    "six digits that are no months": ((TIMES - START) // DAY + 202_010,
        {"times": [202_010, 202_011, 202_012, 202_013]}),
    "a count that goes through the years": (1899 + TIMES // DAY - START // DAY,
        {"times": [1899, 1900, 1901, 1902]}),
    "seconds of the year 2033": (TIMES + 400_000_000, {"times": [t + 400_000_000 for t in EXACT]}),
    "twelve digits that are no minutes": ((TIMES - START) // DAY + 202_009_131_258,
        {"times": [202_009_131] * 4, "says": "taken for ms"}),
    "Python's integers": (TIMES.astype(object), {}),
    "Python's floats and integers": ((TIMES + 0.25).astype(object).where(TIMES > START, START), {}),
    "milliseconds as objects": ((TIMES * 1000).astype(object), {"says": "taken for ms"}),
    "categories of seconds": (TIMES.astype("category"), {}),
    "categories of dates": (STAMPS.astype("category"), {}),
    "categories of text": (ISO.astype("category"), {}),
    "before 1970, fractions": (TIMES - 2 * START + 0.75, {"times": [t - 2 * START for t in EXACT]}),
    "before 1970, milliseconds": ((TIMES - 2 * START) * 1000 + 1,
        {"times": [t - 2 * START for t in EXACT]}),
    "before 1970, datetimes": (pd.to_datetime((TIMES - 2 * START) * 1000 + 1, unit="ms"),
        {"times": [t - 2 * START for t in EXACT]}),
    "text with signs and exponents": ("+" + (TIMES / 1e9).astype(str) + "e9", {"times": EXACT}),
    "text, some with UTC": (ISO.where(TIMES.index % 2 == 0, STAMPS.astype(str) + " UTC"), {}),
    "periods": (STAMPS.dt.to_period("s"), {}),
    "dates as objects, text among them": (
        pd.Series([*STAMPS[:1].astype(object), *ISO[1:]], dtype=object), {}),
    "Arrow dates of the year 9999": (arrow(STAMPS.where(TIMES > START, None).astype("datetime64[s]")
        .fillna(np.datetime64("9999-12-31", "s")), pa.timestamp("s")),
        {"history": [20, 30, 40, 10], "times": [*EXACT[1:], 253402214400]}),
    "seconds of a day": (pd.Series(40_000 + 7 * np.arange(12)), {"times": [40_000 + 7 * i
        for i in range(4)]}),
    "nanoseconds as Arrow's": (
        arrow(pd.to_datetime(START * 10**9 + np.tile([4, 3, 2, 1], 3)), pa.timestamp("ns")),
        {"history": [40, 30, 20, 10], "times": [START] * 4}),
    "before 1970": (TIMES - 2 * START, {"times": [t - 2 * START for t in EXACT]}),
}
# fmt: on


@pytest.mark.parametrize("kind", KINDS_OF_TIMES)
def test_times(kind, capsys):
    times, expected = KINDS_OF_TIMES[kind]
    table = log(timestamp=times)
    expected = {"times": EXACT} | expected
    judge(lambda: Dataset.from_tables(table), expected, None, capsys)
    # Sorted by time, not by row.
    judge(lambda: Dataset.from_tables(table[::-1]), expected | {"says": ""}, None, capsys)


# fmt: off
ODD_TIMES = {
    "missing": (TIMES.where(TIMES > START), "timestamp is missing in row 0 .* 3 of 12"),
    "the word NaT": (STAMPS.astype(str).where(TIMES > START, "NaT"),
        r"timestamp is missing in row 0 \(counted from 0; it says 'NaT'\), in 3 of 12"),
    "the word nan among Arrow strings": (
        arrow(ISO.where(TIMES > START, "nan"), pa.string()), "row 0 .*'nan'.* 3 of 12"),
    **{f"NaT as a number of {unit}": (
        STAMPS.where(TIMES > START).astype("datetime64[ns]").astype("int64") // per,
        "timestamp is missing in row 0 .*it says -922.* 3 of 12")
       for unit, per in (("ns", 1), ("us", 10**3), ("ms", 10**6), ("s", 10**9))},
    "NaT as seconds in floats": (
        STAMPS.where(TIMES > START).astype("datetime64[ns]").astype("int64") / 1e9,
        "timestamp is missing in row 0 .*it says -922.* 3 of 12"),
    "NaT as seconds, rounded to zero": (TIMES.where(TIMES > START, -9223372036),
        "timestamp is missing in row 0 .*it says -9223372036"),
    "numbers as text, of which the first is none": (
        TIMES.astype(str).where(TIMES.index > 0, "NULL"),
        r"'NULL' in row 0 \(counted from 0\): not"),
    "numbers as text, one too large": (
        TIMES.astype(str).where(TIMES.index != 5, "9" * 20), "9{20}.* in row 5"),
    "days of a spreadsheet": (
        ((STAMPS - pd.Timestamp("1899-12-30")) // pd.Timedelta(days=1)).astype(int),
        "44087, which look like a spreadsheet's days"),
    "the computer's clock": (ISO.where(TIMES.index != 5, "now"), "'now' in row 5 .* ISO 8601"),
    "dates as objects, odd text among them": (
        pd.Series([*STAMPS[:1].astype(object), "02/04/2020", *ISO[2:]], dtype=object),
        "'02/04/2020' in row 1 .* ISO 8601"),
    "dates as objects, floats among them": (
        pd.Series([*STAMPS[:1].dt.date, 1.6e9, *STAMPS[2:].dt.date], dtype=object),
        "must hold times of one kind, received mixed"),
    "text of the year 9999": (ISO.where(TIMES.index != 5, "9999-12-31"),
        r"'9999-12-31' in row 5 \(.*\): not between the years 1678 and 2261"),
    "floats of 32 bits": (TIMES.astype("float32"), "holds float32, which can't tell such times"),
    ".NET's ticks": ((TIMES + 62135596800) * 10**7,
        r"look like \.NET's ticks, not like ns since 1970. .*- 621355968000000000\) // 10\)"),
    "Windows's file times": ((TIMES + 11644473600) * 10**7,
        r"look like Windows's file times.*- 116444736000000000\) // 10\), or pass time_unit=.ns"),
    "a browser's times": ((TIMES + 11644473600) * 10**6,
        r"look like a browser's .* since 1601.*\(column - 11644473600000000\)"),
    "days before months before years": (STAMPS.dt.strftime("%d%m%Y").astype(int),
        r'13092020, which look like dates, .*format="%d%m%Y"\)\)'),
    "months before days before years": (STAMPS.dt.strftime("%m%d%Y").astype(int),
        r'9132020, which look like dates, .*format="%m%d%Y"\)\)'),
    "missing date": (STAMPS.where(TIMES > START), "timestamp is missing in row 0"),
    "of two units": (TIMES.where(TIMES.index != 5, TIMES * 1000),
        r"most look like s, but 1600086400000 in row 5 .* like ms"),
    "of two units, few in the smaller one": ((TIMES * 1000).where(TIMES.index != 5, TIMES),
        r"most look like ms, but 1600086400 in row 5 .* like s, .* or pass time_unit"),
    "of two units, many in the smaller one": ((TIMES * 10**6).where(TIMES.index > 4, TIMES * 1000),
        r"most look like us, but 1600259200000 in row 3 .* like ms"),
    "numbers that are dates": (STAMPS.dt.strftime("%Y%m%d").astype(int),
        r'20200913, which look like dates, not like s\. .*format="%Y%m%d"\)\), .*time_unit="s"'),
    "numbers that are dates, but for a zero": (
        STAMPS.dt.strftime("%Y%m%d").astype(int).where(TIMES.index > 0, 0),
        r"20200914, which look like dates, not like s\."),
    "numbers that are dates, with zeros and a last day": (
        STAMPS.dt.strftime("%Y%m%d").astype(int).where(TIMES > START, 0)
            .where(TIMES.index != 5, 99991231), "20200914, which look like dates"),
    "numbers that are seconds of days, with the last one": (
        STAMPS.dt.strftime("%Y%m%d%H%M%S").astype(int).where(TIMES.index > 0, 99991231235959),
        "20200914122640, which look like dates"),
    "numbers that are minutes": (STAMPS.dt.strftime("%Y%m%d%H%M").astype(int),
        r'202009131226, which .* not like ms\. .*format="%Y%m%d%H%M"\)\), .*time_unit="ms"'),
    "numbers that are seconds of days": (STAMPS.dt.strftime("%Y%m%d%H%M%S").astype(int),
        r'20200913122640, which look like dates, .*format="%Y%m%d%H%M%S"\)\)'),
    "numbers that are years": (STAMPS.dt.year, r'2020, which .* s\. .*"%Y"\)\), .*time_unit="s"'),
    "numbers that are months": (STAMPS.dt.strftime("%Y%m").astype(int),
        r'202009, which look like dates, not like s\. .*format="%Y%m"\)\)'),
    "numbers that are hours": (STAMPS.dt.strftime("%Y%m%d%H").astype(int),
        r'2020091312, which look like dates, not like s\. .*format="%Y%m%d%H"\)\)'),
    "numbers that are milliseconds of days": (STAMPS.dt.strftime("%Y%m%d%H%M%S123").astype(int),
        r'20200913122640123, which .* not like us\. .*format="%Y%m%d%H%M%S%f"\)\)'),
    "a spreadsheet's days": ((STAMPS - pd.Timestamp("1899-12-30")) / pd.Timedelta(days=1),
        r'44087\.\d+, which look like a spreadsheet.s days, .*"1899-12-30"\)\), .*time_unit="s"'),
    "years as floats": (STAMPS.dt.year + 0.5, r"2020\.5, which look like dates"),
    "the first and the last second": (np.tile([19000101000000, 21001231235959], 6), "look like"),
    "text that is such numbers": (STAMPS.dt.strftime("%Y%m%d%H%M%S"), "20200913122640, which look"),
    "another form": (STAMPS.dt.strftime("%d.%m.%Y"), r"'13\.09\.2020' in row 0 .* ISO 8601"),
    "first seconds, then ISO": (ISO.where(TIMES.index != 0, "5"),
        r"'2020-\S*' in row 1 .* throughout"),
    "objects of several kinds": (STAMPS.astype(object).where(TIMES.index != 3, "x"),
        "'x' in row 3 "),
    "one odd text among Arrow strings": (
        arrow(TIMES.astype(str).where(TIMES.index != 5, "NULL"), pa.string()), "'NULL' in row 5"),
    "one odd text": (ISO.where(TIMES.index != 7, "soon"), r"'soon' in row 7"),
    "infinite": (TIMES.astype(float).where(TIMES.index != 2, np.inf),
        r"inf in row 2 \(counted from 0\): not a time"),
    "beyond 64 bits with a sign": (TIMES.astype("uint64") + 2**63,
        r"timestamp holds 9223372038454775808 in row 0 .* and 11 more: not a time"),
    "such floats": (TIMES * 1e12, "1.6e\\+21 in row 0 .* and 11 more: not a time"),
    "such text": (TIMES.astype(str) + "0" * 10, "in row 0 .* and 11 more: not a time"),
    "booleans": (TIMES > 0, "must hold times, received bool"),
    "durations": (pd.to_timedelta(TIMES, unit="s"), "must hold times, received timedelta64"),
    "Arrow durations": (arrow(pd.to_timedelta(TIMES, unit="s"), pa.duration("s")),
        r"must hold times, received duration\[s\]"),
    "Arrow times of day": (arrow(STAMPS.dt.time, pa.time32("s")),
        r"must hold times, received time32\[s\]"),
    "Arrow decimals": (arrow(TIMES.map(Decimal), pa.decimal128(20, 2)),
        r"must hold times, received decimal128\(20, 2\)"),
    "Arrow booleans": (arrow(TIMES > 0, pa.bool_()), "must hold times, received bool"),
    "Arrow bytes": (arrow(TIMES.astype(str).str.encode("ascii"), pa.binary()),
        "must hold times, received binary"),
    "complex numbers": (TIMES * 1j, "must hold times, received complex128"),
    "durations as objects": (pd.to_timedelta(TIMES, unit="s").astype(object),
        "must hold times of one kind, received timedelta"),
    "decimals": (TIMES.map(Decimal), "one kind, received decimal. Convert them to numbers or"),
    "numbers and dates": (TIMES.astype(object).where(TIMES.index != 3, "2020-09-13"),
        "must hold times of one kind, received mixed-integer"),
}
# fmt: on


@pytest.mark.parametrize("kind", ODD_TIMES)
def test_times_that_are_refused(kind):
    times, match = ODD_TIMES[kind]
    with pytest.raises(ValueError, match=match):
        Dataset.from_tables(log(timestamp=times))


def test_fractions_order_what_seconds_do_not_and_ties_keep_the_order():
    times = START * 1000 + np.tile([3, 1, 2, 1], 3)
    dataset = Dataset.from_tables(log(timestamp=times))
    assert facts(dataset).history == [20, 40, 30, 10]
    assert set(dataset.interactions["timestamp"]) == {START}


def test_a_unit_that_is_given_counts():
    dataset = Dataset.from_tables(log(timestamp=TIMES // 10), time_unit="ms")
    assert facts(dataset).times[0] == START // 10_000
    dates = STAMPS.dt.strftime("%Y%m%d").astype(int)
    assert facts(Dataset.from_tables(log(timestamp=dates), time_unit="s")).times[0] == 20200913


# Tables: columns, repeats, what is left out, features

PLAIN_TABLE = {"users": SMALL, "items": [10, 20, 30, 40], "times": EXACT}
BIG = [2**60 + 1, 2**60 + 2, 2**60 + 3]
HUGE = np.array([2**63 + 1, 2**64 - 1, 2**64 - 2, 0], np.uint64)
AGAIN = log(item_id=np.tile([10, 20, 10, 40], 3))
AGAIN = pd.concat([AGAIN, log(item_id=np.tile([50, 60, 70, 80], 3), timestamp=TIMES + 9 * DAY)])
SHORT = pd.concat([log(), log(user_id=9)[:2]])
ITEMS = pd.DataFrame({"item_id": [10, 20, 30, 40], "title": ["a", "b", " c ", None]})


def named(**names):
    return log().rename(columns=names)


def items(**columns):
    return ITEMS.assign(**columns)


def people(**columns):
    return pd.DataFrame({"user_id": SMALL, **columns})


ARROW_LISTS = pd.Series(
    pd.array([["x", "y"], [], None, ["z"]], pd.ArrowDtype(pa.list_(pa.string())))
)
# name: (tables, options, expected) or (tables, options, "what the error says")
# fmt: off
TABLES = {
    "a mapping": ([named(user_id="who", timestamp="when")],
        {"columns": {"user_id": "who", "timestamp": "when"}}, {"users": SMALL}),
    "usual names": ([named(user_id="userId", item_id="movieId", timestamp="ts")], {},
        {"rows": 12, "says": "item_id is read from the column 'movieId'"}),
    "other usual names": ([named(user_id="UID", item_id="Product ID", timestamp="Date")], {},
        {"rows": 12, "says": "timestamp is read from the column 'Date'"}),
    "exact before usual names": ([log(user=7, movie="x", date="y")], {}, {"users": SMALL}),
    "a mapping before exact names": ([log(customer=USERS + 10)],
        {"columns": {"user_id": "customer"}}, {"users": [11, 12, 13]}),
    "two usual names": ([named(timestamp="time").assign(date=1)], {},
        r"any of the columns \['time'"),
    "no such column": ([log()], {"columns": {"user_id": "who"}},
        r"columns names \['who'\], but the tables have"),
    "a role that is misspelt": ([log(stars=5)], {"columns": {"ratings": "stars"}},
        "columns names 'ratings', which is none of .* has 'stars'. Write 'rating'\\?"),
    "a title in the interactions": ([log(name="x"), people(), ITEMS[["item_id"]]],
        {"columns": {"title": "name"}}, "no table of users or items has 'name'"),
    "one column for two": ([log()], {"columns": {"user_id": "item_id", "item_id": "item_id"}},
        "user_id and item_id can't be one column, 'item_id'"),
    "a user that is the item": ([log()], {"columns": {"user_id": "item_id"}},
        "need the columns user_id, item_id"),
    "a time that is called position": ([named(timestamp="position")],
        {"columns": {"timestamp": "position"}}, PLAIN_TABLE),
    "items by their titles": (
        [named(item_id="title").astype({"title": str}), None,
         pd.DataFrame({"title": ["10", "20"], "price": [1, 2]})],
        {"columns": {"item_id": "title"}},
        {"items": ["10", "20", "30", "40"], "columns": ["price"]}),
    "features beyond 2**63, one missing": (
        [log(), None, pa.table({"item_id": [10, 20, 30],
                                "shelf": pa.array([2**63 + 1, None, 3], pa.uint64())})], {},
        {"shelf": [2**63 + 1, pd.NA, 3, pd.NA]}),
    "durations, one missing": (
        [log(), None, ITEMS[:3].assign(shelf=pd.to_timedelta([1, 2, 3], unit="s"))], {},
        {"columns": ["title", "shelf"]}),
    "ages that are small unsigned integers": (
        [log(), people(age=np.array([7, 8, 9], "uint8"))], {}, {"age_type": "uint8"}),
    "titles in bytes": ([log(), None, items(title=[b"a (1999)", b"b", None, b"d"])], {},
        {"titles": ["a (1999)", "b", "30", "d"], "years": [1999, 0, 0, 0]}),
    "options that are None": ([log(), None, items(genres="x|y")],
        {"separators": {"genres": None}, "columns": {"title": None}}, {"genres": ("x", "y")}),
    "a title that is the id": ([log(), None, ITEMS[["item_id"]]], {"columns": {"title": "item_id"}},
        "item_id and title can't be one column"),
    "columns by number": ([pd.DataFrame(log().values)],
        {"columns": {"user_id": 0, "item_id": 1, "timestamp": 2}}, PLAIN_TABLE),
    "empty columns, twice": (
        [pd.concat([log(), pd.DataFrame({"": [None] * 12}), pd.DataFrame({"": [None] * 12})],
                   axis=1)], {}, PLAIN_TABLE),
    "an id of another name in each table": (
        [named(user_id="cust"), people().rename(columns={"user_id": "no"}).assign(age=1)],
        {"columns": {"user_id": "cust"}}, "Rename the one that holds it to user_id or cust"),
    "features beyond 2**53, one missing": (
        [log(), None, pd.DataFrame({"item_id": [10, 20, 30], "shelf": BIG[:3]})], {},
        {"shelf": [*BIG[:3], pd.NA]}),
    "such an Arrow table": (
        [log(), None, pa.table({"item_id": [10, 20, 30, 40], "shelf": [*BIG[:3], None]})], {},
        {"shelf": [*BIG[:3], pd.NA]}),
    "titles that are floats": ([log(), None, items(title=[300.0, 1917.5, None, 8.0])], {},
        {"titles": ["300", "1917.5", "30", "8"]}),
    "titles that are categories": (
        [log(), None, items(title=pd.Categorical([" a", "b", None, "a"]))], {},
        {"titles": ["a", "b", "30", "a"]}),
    "titles that are nullable integers": (
        [log(), None, items(title=pd.array([300, None, 7, 8], "Int64"))], {},
        {"titles": ["300", "20", "7", "8"]}),
    "codes that are categories": ([log(), people(zip_code=pd.Categorical([1, 2, None]))], {},
        {"zips": ["1", "2", 0]}),
    "years that are no years": ([log(), None, items(year=[1e20, 1, 2, 3])], {},
        r"year must hold whole numbers, received 1e\+20 in row 0"),
    "no user": ([named(user_id="who")], {}, r"need the columns user_id.*received \['who'"),
    "neither time nor position": ([named(timestamp="x")], {}, "add a column position"),
    "no rows": ([log()[:0]], {}, "there are no interactions"),
    "a column twice": ([log().set_axis(["user_id", "item_id", "item_id"], axis=1)], {},
        "two columns"),
    "an index with a name": ([log().set_index("user_id")], {}, {"users": SMALL}),
    "an index with a column's name": ([log().set_index("user_id", drop=False)], {},
        "'user_id' is a column and the index: rename or drop"),
    "an Arrow table": ([pa.Table.from_pandas(log())], {}, {"users": SMALL}),
    "a dict of columns": ([log().to_dict("list")], {}, {"users": SMALL}),
    "positions decide": ([log(position=np.tile([4, 3, 2, 1], 3))], {},
        {"history": [40, 30, 20, 10], "times": EXACT[::-1],
         "says": "position decides, and isn't the order of timestamp for 3 of 3 users"}),
    "positions that are places on a page": ([log(position=[1, 2, 1, 3] + [5, 5, 6, 7] * 2)], {},
        {"history": [10, 30, 20, 40], "says": "the order of timestamp for 1 of 3 users (leave"}),
    "positions in the order of time": ([log(position=np.r_[10:22])[::-1]], {},
        {"history": [10, 20, 30, 40], "doesn't say": "position"}),
    "positions only": ([log(timestamp=None, position=np.tile([4, 3, 2, 1], 3))], {},
        {"history": [40, 30, 20, 10], "times": []}),
    "positions of 19 digits": ([log(timestamp=None, position=2**60 + np.tile([4, 3, 2, 1], 3))], {},
        {"history": [40, 30, 20, 10]}),
    "positions above 2**63": ([log(timestamp=None, position=HUGE[:4].tolist() * 3)], {},
        {"history": [40, 10, 30, 20]}),
    "positions above 2**63, nullable": (
        [log(timestamp=None, position=pd.array(HUGE[:4].tolist() * 3, "UInt64"))], {},
        {"history": [40, 10, 30, 20]}),
    "positions that are Python's integers": (
        [log(timestamp=None, position=[10**30 + i for i in (4, 3, 2, 1)] * 3)], {},
        {"history": [40, 30, 20, 10]}),
    "positions as Arrow strings": (
        [log(timestamp=None, position=pd.array([" 9", "8", "-3", "1"] * 3, "string[pyarrow]"))], {},
        {"history": [30, 40, 20, 10]}),
    "a missing position": ([log(position=np.tile([1, 2, np.nan, 4], 3))], {},
        "position is missing in row 2"),
    "positions that are ordinals": ([log(timestamp=None, position="1st")],
        {"odd_values": "missing"},
        r"position must hold numbers, .*'1st' in row 0 \(.*\) and 11 more\. Convert the column\.$"),
    "repeats, by default the first": ([AGAIN], {},
        {"history": [10, 20, 40, 50, 60, 70, 80], "says": "3 repeated (user, item) events"}),
    "repeats, the last": ([AGAIN], {"repeats": "last"}, {"history": [20, 10, 40, 50, 60, 70, 80]}),
    "repeats, all": ([AGAIN], {"repeats": "keep"},
        {"history": [10, 20, 10, 40, 50, 60, 70, 80], "repeats": True}),
    "repeats, an error": ([AGAIN], {"repeats": "error"},
        "3 duplicate .user, item. pairs, such as user 1 with item 10"),
    "repeats, a typo": ([AGAIN], {"repeats": "frist"}, "repeats must be one of .*'frist'"),
    "short users": ([SHORT], {}, {"users": SMALL, "says": "left out 1 users, 0 items, 2 inter"}),
    "short users stay if asked": ([SHORT], {"min_user_interactions": 2}, {"users": [1, 2, 3, 9]}),
    "rare items": ([log(item_id=np.r_[10:22])], {"min_item_interactions": 2},
        "nothing is left without users"),
    "a core is taken until nothing changes": (
        [log(user_id=[*"111222233333"], item_id=[*"123123412345"])],
        {"min_user_interactions": 3, "min_item_interactions": 3},
        {"items": ["1", "2", "3"], "rows": 9, "says": "left out 0 users, 2 items, 3 interactions"}),
    "ratings": ([log(rating=4)], {}, {"ratings": [4.0] * 12}),
    "ratings with a comma": ([log(rating="4,5")], {}, "rating must hold numbers, .*'4,5' in row 0"),
    "any feature": (
        [log(), people(country=["a", "b", None], brand=[1, 2, 3]), items(price=[1.5, 2, 3, 4])], {},
        {"columns": "country brand title price".split(), "titles": ["a", "b", "c", "40"]}),
    "a feature by another name": (
        [log(), None, ITEMS.rename(columns={"title": "name", "item_id": "id"})],
        {"columns": {"title": "name"}},
        {"titles": ["a", "b", "c", "40"], "says": "item_id is read from the column 'id'"}),
    "features in capitals": ([log(), people(Gender="F", AGE=7, **{"Zip Code": "01"}),
        items(Year=2000, Genre="x|y", Tags="x|y").rename(columns={"title": " Title"})], {},
        {"columns": "gender age zip_code title year genres Tags".split(), "ages": [7, 7, 7],
         "titles": ["a", "b", "c", "40"], "years": [2000] * 4, "genres": ("x", "y"),
         "says": "items: title is read from the column ' Title'"}),
    "features by exact names before capitals": ([log(), people(Age="x", age=7, ID=8), ITEMS], {},
        {"columns": ["age", "Age", "ID", "title"], "ages": [7, 7, 7]}),
    "features by a mapping before capitals": ([log(), None, items(Genres="x", kind="y")],
        {"columns": {"genres": "kind"}},
        {"columns": ["title", "genres", "Genres"], "genres": ("y",)}),
    "a feature in capitals that a mapping names": ([log(), None, items(Genre="x|y")],
        {"columns": {"tags": "Genre"}}, {"columns": ["title", "tags"], "tags": "x|y"}),
    "two features in capitals": ([log(), None, items(Genres="x", Genre="y")], {},
        r"genres may be any of the columns \['Genres', 'Genre'\]"),
    "a separator by a feature's own name": ([log(), None, items(Genre="x/y")],
        {"separators": {"Genre": "/"}}, {"genres": ("x", "y")}),
    "a separator by a name of a mapping": ([log(), None, items(kind="x/y")],
        {"columns": {"genres": "kind"}, "separators": {"kind": "/"}}, {"genres": ("x", "y")}),
    "one name in two tables": (
        [log(), people(name=["p", "q", "r"], title="Dr"), ITEMS.rename(columns={"title": "name"})],
        {"columns": {"title": "name"}},
        {"columns": ["title", "name", "title"], "titles": ["a", "b", "c", "40"]}),
    "one name in two tables, of the users": ([log(), people(kind=7), items(kind="x", age=[1] * 4)],
        {"columns": {"age": "kind"}},
        {"columns": ["age", "age", "title", "kind"], "ages": [7, 7, 7]}),
    "a users' title": ([log(), people(name=["p", "q", "r"]), ITEMS], {"columns": {"title": "name"}},
        {"columns": ["title", "title"]}),
    "titles that are numbers": ([log(), None, items(title=[300, 1917, 8, 9])], {},
        {"titles": ["300", "1917", "8", "9"]}),
    "genres with bars": ([log(), None, items(genres="x|y, z| ")], {}, {"genres": ("x", "y, z")}),
    "genres with commas": ([log(), None, items(genres="x, y")], {},
        {"genres": ("x", "y"), "says": "genres: taken to be separated by ','"}),
    "genres with Chinese commas": ([log(), None, items(genres="剧情、战争")], {},
        {"genres": ("剧情", "战争"), "says": "genres: taken to be separated by '、'"}),
    "genres with two Chinese commas": ([log(), None, items(genres="剧情、战争，喜剧")], {},
        "separators="),
    "genres with slashes": ([log(), None, items(genres=["x/y", "x", "y", "y"])], {},
        {"genres": ("x/y",), "says": "genres: not split at / (separators= says otherwise)"}),
    "genres with commas and slashes": ([log(), None, items(genres=["x/y, z", "x", "y", "y"])], {},
        {"genres": ("x/y", "z"), "says": "genres: not split at / (separators= says otherwise)"}),
    "genres with bars and commas": ([log(), None, items(genres=["x, y", "x|y", "z", "z"])], {},
        {"genres": ("x, y",), "says": "genres: not split at , (separators= says otherwise)"}),
    "genres with commas and semicolons": ([log(), None, items(genres="x, y; z")], {},
        "separators="),
    "genres by a separator that is given": ([log(), None, items(genres="x, y; z")],
        {"separators": {"genres": ";"}}, {"genres": ("x, y", "z")}),
    "genres as Python's lists": ([log(), None, items(genres="['x', 'y']")], {},
        {"genres": ("x", "y")}),
    "genres as broken lists": ([log(), None, items(genres="['x', y']")], {}, "which is not a list"),
    "genres as Python's tuples": ([log(), None, items(genres=["('x', 'y')", "('z',)", "()", "()"])],
        {}, {"genres": ("x", "y")}),
    "genres in round brackets that are no tuple": (
        [log(), None, items(genres=["(no genres)", "x|y", "x", "y"])], {},
        {"genres": ("(no genres)",)}),
    "genres as Python's sets": ([log(), None, items(genres=str(set("qwertyuiop")))], {},
        {"genres": tuple("eiopqrtuwy")}),
    "genres as numpy's arrays": ([log(), None, items(genres="['x' 'y']")], {},
        r"""holds "\['x' 'y'\]", which is not a list"""),
    "genres as Postgres's arrays": ([log(), None, items(genres="{x,y}")], {},
        "holds '{x,y}', which is not a list"),
    "genres as a list of records": ([log(), None, items(genres="[{'id': 1, 'name': 'x'}]")], {},
        "genres holds {'id': 1, 'name': 'x'} inside a list. Keep one text or number of each"),
    "genres as lists inside a list": ([log(), None, items(genres=[[["x"]], [], [], []])], {},
        r"genres holds \['x'\] inside a list"),
    "tags as Python's tuples": ([log(), None, items(tags=["('x',)", "()", "('y', 'z')", None])], {},
        {"tags": ("x",)}),
    "tags as tuples that end amidst": ([log(), None, items(tags=["('x',)", "(see y)", None, None])],
        {}, r"tags holds '\(see y\)', which is not a list"),
    "text in brackets": ([log(), None, items(tags="(live)")], {}, {"tags": "(live)"}),
    "records as text": ([log(), None, items(tags="{'x': 1}")], {}, {"tags": "{'x': 1}"}),
    "tags as lists": ([log(), None, items(tags=[["x", np.nan, 1, None], [], ["y"], None])], {},
        {"tags": ("x", "1")}),
    "tags as sets": ([log(), None, items(tags=[{*"qwertyuiop"}, set(), {*"a"}, None])], {},
        {"tags": tuple("eiopqrtuwy")}),
    "tags as frozen sets": ([log(), None, items(tags=[frozenset("qwertyuiop")] * 4)], {},
        {"tags": tuple("eiopqrtuwy")}),
    "tags as arrays": ([log(), None, items(tags=pd.Series([np.array(["x"]), None, None, None]))],
        {}, {"tags": ("x",)}),
    "tags as Arrow lists": ([log(), None, items(tags=ARROW_LISTS)], {}, {"tags": ("x", "y")}),
    "tags by a separator that is given": ([log(), None, items(tags="x;y")],
        {"separators": {"tags": ";"}}, {"tags": ("x", "y")}),
    "tags by none stay text": ([log(), None, items(tags="x;y")], {}, {"tags": "x;y"}),
    "a separator of no column": ([log(), None, ITEMS], {"separators": {"tag": ";"}},
        r"separators names \['tag'\]"),
    "years as text": ([log(), None, items(year="1995")], {}, {"years": [1995] * 4}),
    "an odd year": ([log(), None, items(year=["1", "n/a", "", "2"])], {}, "year .*'n/a' in row 1"),
    "an odd year, counted as in the source": (
        [log(), None, items(year=["1", "n/a", "", "2"])[::-1]], {}, "year .*'n/a' in row 2"),
    "an odd year, taken as missing": ([log(), None, items(year=["1", "n/a", "", "2"])],
        {"odd_values": "missing"},
        {"years": [1, 0, 0, 2], "says": "items: year: 1 odd values taken as missing"}),
    "half a year": ([log(), None, items(year=[1.5, 2, 3, 4])], {}, r"year .*1\.5 in row 0"),
    "an odd age": ([log(), people(age=["25-34", "1", "2"])], {}, "age .*'25-34' in row 0"),
    "a missing age": ([log(), people(age=[7, None, 9])], {}, {"ages": [7, 0, 9]}),
    "items without interactions": ([log(), None, pd.concat([ITEMS, ITEMS[:1].assign(item_id=99)])],
        {}, {"items": [10, 20, 30, 40], "says": "1 of 5 rows left out, without interactions"}),
    "interactions without items": ([log(), None, ITEMS[:3]], {}, {"says": "no row for 1 of 4 ids"}),
    "items of another catalogue": ([log(), None, items(item_id=[1, 2, 3, 4])], {},
        "none of its ids, such as 1, has interactions"),
    "an item twice": ([log(), None, items(item_id=[10, 20, 30, 30])], {},
        "item_id 30 occurs twice"),
    "items without rows": ([log(), None, ITEMS[:0]], {}, r"items is empty, of shape \(0, 2\)"),
    "users without anything": ([log(), pd.DataFrame()], {}, r"users is empty, of shape \(0, 0\)"),
    "items without ids": ([log(), None, ITEMS[["title"]]], {},
        r"needs the column item_id, .*'title'"),
    "a name of ours": ([log(), None, items(original_id=1)], {}, "original_id is a name of ours"),
    "ids that are text here and numbers there": ([ids(["1", "2", "3"]), people(age=[7, 8, 9])], {},
        {"users": ["1", "2", "3"], "ages": [7, 8, 9]}),
    "ids that are numbers here and text there": (
        [log(), None, items(item_id=["10", "20", "x", "40"])], {},
        {"titles": ["a", "b", "30", "40"]}),
}
# fmt: on


@pytest.mark.parametrize("kind", TABLES)
def test_tables(kind, capsys):
    given, options, expected = TABLES[kind]
    match = expected if isinstance(expected, str) else None
    judge(lambda: Dataset.from_tables(*given, **options), expected, match, capsys)


@pytest.mark.parametrize("table", [None, "log.csv", Path("log.csv")])
def test_what_is_no_table_is_named(table):
    match = r"expected a table, received .*(None|log\.csv).*; files are for load_dataset"
    with pytest.raises(TypeError, match=match):
        Dataset.from_tables(table)
    if table is not None:
        with pytest.raises(TypeError, match=match):
            Dataset.from_tables(log(), table)


@pytest.mark.parametrize("option", ["columns", "separators"])
@pytest.mark.parametrize("given", [["user_id", "item_id"], "user_id", ","])
def test_what_is_no_dict_of_columns_is_named(option, given, tmp_path):
    (tmp_path / "log.csv").write_text(CSV)
    for make in (lambda **o: Dataset.from_tables(log(), **o),
                 lambda **o: load_dataset(tmp_path / "log.csv", **o)):  # fmt: skip
        with pytest.raises(TypeError, match=rf"{option} must be a dict, .* received .*{given[0]}"):
            make(**{option: given})


# Files

CSV = log().to_csv(index=False)
NOTES = log(note="x").to_csv(index=False)
TABS = {"sep": "\t", "index": False}
PLAIN = PLAIN_TABLE
RECBOLE = CSV.replace(",", "\t").replace(
    "user_id\titem_id\ttimestamp", "user_id:token\titem_id:token\ttimestamp:float"
)


def packed(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name + ".csv" * ("." not in name), text)
    return buffer.getvalue()


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


def encrypted(archive):
    """Only its flags say so."""
    directory = archive.rindex(b"PK\1\2")
    content = bytearray(archive)
    content[6] |= 1
    content[directory + 8] |= 1
    return bytes(content)


def parquet(table):
    buffer = io.BytesIO()
    table.to_parquet(buffer)
    return buffer.getvalue()


def parts(**columns):
    """Two of them; each column has its values in the first one, and those in the second."""
    tables = [log(), log()]
    for name, values in columns.items():
        tables = [table.assign(**{name: v}) for table, v in zip(tables, values, strict=True)]
    return {f"x/part-{i}.parquet": parquet(table) for i, table in enumerate(tables)}


def old_spark():
    """Times in 96 bits, of which the first is none: the end of time."""
    ends = np.array(["9999-12-31", *STAMPS[1:3].astype(str)], "datetime64[us]")
    table = pa.table({"user_id": [1] * 3, "item_id": [10, 20, 30], "timestamp": pa.array(ends)})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, use_deprecated_int96_timestamps=True)
    return buffer.getvalue()


def lines(separator):
    """In GroupLens's older form."""
    return "".join(separator.join(map(str, row)) + "\n" for row in log(t=9).values)


def csv(**changed):
    return {"interactions.csv": log(**changed).to_csv(index=False)}


# name: (files, what is loaded of the folder, options, expected or what the error says)
# fmt: off
FILES = {
    "csv": (csv(), "", {}, PLAIN),
    "tsv": ({"interactions.tsv": CSV.replace(",", "\t")}, "", {}, PLAIN),
    "semicolons": ({"interactions.csv": CSV.replace(",", ";")}, "", {}, PLAIN),
    "tabs in a csv": ({"interactions.csv": CSV.replace(",", "\t")}, "", {}, PLAIN),
    "Windows' ends of lines and mark": (
        {"interactions.csv": b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode()}, "", {}, PLAIN),
    "blank lines before the header": ({"interactions.csv": "\n  \n\n" + CSV}, "", {}, PLAIN),
    "blank lines after a mark, Windows": (
        {"interactions.csv": "\ufeff\r\n\r\n" + CSV.replace("\n", "\r\n")}, "", {}, PLAIN),
    "blank lines, UTF-16": ({"interactions.csv": ("\n\n" + CSV).encode("utf-16")}, "",
        {"encoding": "utf-16"}, PLAIN),
    "blank lines before row numbers": (
        {"interactions.tsv": "\n" + log().to_csv(sep="\t")}, "", {}, PLAIN),
    "blank lines only": ({"interactions.csv": "\n\n"}, "", {}, "interactions.csv is empty"),
    "lines that end in \\r": ({"e.csv": CSV.replace("\n", "\r")}, "e.csv", {},
        r"e\.csv is not delimited text .*new-line character.* \.csv and \.tsv, .* \.parquet"),
    "bz2": ({"e.csv.bz2": bz2.compress(CSV.encode())}, "e.csv.bz2", {}, "bz2 is not delimited"),
    "Excel": ({"e.xlsx": packed(a=CSV)}, "e.xlsx", {}, r"e\.xlsx is not delimited text .*'\\x03'"),
    "SQLite": ({"e.db": b"SQLite format 3\0" + bytes(100) + b"\n"}, "e.db", {},
        r"e\.db is not delimited text .*'\\x00'"),
    "gzip": ({"interactions.csv.gz": gzip.compress(CSV.encode())}, "", {}, PLAIN),
    "no gzip": ({"interactions.csv.gz": CSV}, "", {}, r"csv\.gz cannot be read: is it damaged"),
    "damaged gzip": ({"interactions.csv.gz": flipped(gzip.compress(CSV.encode()), 40)}, "", {},
        r"csv\.gz cannot be read: is it damaged"),
    "quotes around names and text, as R writes them": (
        {"interactions.tsv": ids([*"abc"]).to_csv(**TABS, quoting=QUOTE_NONNUMERIC)}, "", {},
        PLAIN | {"users": [*"abc"]}),
    "quotes in ids, as pandas writes them, tabs": (
        {"interactions.tsv": ids(['a "0"', "b\nc", "d\te"]).to_csv(**TABS)}, "", {},
        PLAIN | {"users": ['a "0"', "b\nc", "d\te"]}),
    "quotes in ids, as pandas writes them, bars": (
        {"interactions.csv": ids(['a "0"', "b|c", "d"]).to_csv(sep="|", index=False)}, "", {},
        PLAIN | {"users": ['a "0"', "b|c", "d"]}),
    "a quote without another": ({"interactions.tsv": CSV.replace(",", "\t").replace("1", '"1', 1)},
        "", {}, r"interactions\.tsv is not a table of 3 columns separated by '\\t' .*Row #2"),
    "lines and semicolons in text, as spreadsheets write them": (
        {"interactions.csv": log(user_id=pd.Series([*"aaaabbbbcccc"]).map(
            {"a": "a;\n1", "b": "b", "c": "c"})).to_csv(sep=";", index=False)}, "", {},
        PLAIN | {"users": ["a;\n1", "b", "c"]}),
    "quotes that open titles and don't close": (
        {"interactions.csv": CSV, "items.tsv": 'item_id\ttitle\n10\t"a\n20\tb\n30\t"c\n40\td\n'},
        "", {}, r"items\.tsv has other rows inside a value: a quote in line 2 isn't closed"),
    "a quote in the last column that isn't read": (
        {"interactions.csv": NOTES.replace("x", '"x', 1)}, "", {},
        r"interactions\.csv has other rows inside a value: a quote in line 2 isn't closed"),
    "the same between tabs": (
        {"interactions.tsv": NOTES.replace("x", '"x', 1).replace(",", "\t")}, "", {},
        "a quote in line 2 isn't closed"),
    "such a quote, and another one later": (
        {"interactions.csv": NOTES.replace("x\n2", '"x\n2').replace("x\n3", '"x\n3')}, "", {},
        "a quote in line 5 isn't closed"),
    "two of them between bars": (
        {"interactions.csv": NOTES.replace("x\n2", '"x\n2').replace("x\n3", '"x\n3')
            .replace(",", "|")}, "", {}, "a quote in line 5 isn't closed"),
    "such a quote in the last column that is read": (
        {"interactions.csv": NOTES.replace("note", "rating").replace("x", '"x', 1)}, "",
        {"odd_values": "missing"}, "a quote in line 2 isn't closed"),
    "such a quote in a long log": (
        {"interactions.csv": NOTES.replace("x", '"x', 1) + 100_000 * "1,10,1600000000,x\n"}, "",
        {}, "a quote in line 2 isn't closed"),
    "such a quote, UTF-16": ({"interactions.csv": NOTES.replace("x", '"x', 1).encode("utf-16")}, "",
        {"encoding": "utf-16"}, "a quote in line 2 isn't closed"),
    "lines, commas and quotes in texts that aren't read": (
        csv(note='a "b",\n c') | {"items.csv": "item_id\n10\n\n\n"}, "", {}, PLAIN),
    "a long text of several lines": (csv(note="a\n" * 100_000), "", {}, PLAIN),
    "quotes inside texts, and a blank line at the end": (
        {"interactions.csv": NOTES.replace("x", '"x" y') + "\n"}, "", {}, PLAIN),
    "quotes in RecBole": (
        {"x.inter": RECBOLE, "x.item": 'item_id:token\ttitle:token_seq\n10\t"a" b\n20\t"c\n'}, "",
        {}, {"titles": ['"a" b', '"c', "30", "40"]}),
    "blanks around separators": ({"interactions.csv": CSV.replace(",", " , ")}, "", {}, PLAIN),
    "blanks around some ids": (csv(user_id=[" a", "a ", "a", "a", *"bbbbcccc"]), "", {},
        PLAIN | {"users": [*"abc"]}),
    "an id of blanks": (csv(user_id=["  ", *"abcdefghijk"]), "", {}, "user_id is missing in row 0"),
    "zip": ({"interactions.csv.zip": packed(a=CSV)}, "", {}, PLAIN),
    "damaged zip": ({"interactions.csv.zip": flipped(packed(a=CSV), 60)}, "", {},
        r"csv\.zip cannot be read: is it damaged"),
    "encrypted zip": ({"interactions.csv.zip": encrypted(packed(a=CSV))}, "", {},
        r"csv\.zip cannot be read: .* encrypted"),
    "zip of two": ({"interactions.csv.zip": packed(a=CSV, b=CSV)}, "", {}, "must hold one table"),
    "parquet": ({"interactions.parquet": parquet(log())}, "", {}, PLAIN),
    "parquet in parts": (
        {f"interactions.parquet/part-{i}.parquet": parquet(log()[i:][:6]) for i in (0, 6)},
        "", {}, PLAIN),
    "parts with small numbers first": (parts(user_id=[USERS.astype("int8"), USERS + 200]), "x", {},
        {"users": [1, 2, 3, 201, 202, 203]}),
    "parts with whole seconds first": (parts(timestamp=[TIMES, TIMES + 0.5]), "x", {}, PLAIN),
    "parts with coarse times first": (
        parts(timestamp=[STAMPS.astype("datetime64[s]"), STAMPS + pd.Timedelta("1ms")]), "x", {},
        PLAIN),
    "parts with no rating first": (parts(rating=[[None] * 12, [4.5] * 12]), "x",
        {"repeats": "last"}, {"ratings": [4.5] * 12}),
    "parts with numbers and times": (parts(timestamp=[TIMES, STAMPS]), "x", {},
        r"timestamp is int64 in one part and timestamp\[\w+\] in part-1\.parquet\. Write all"),
    "parts with times and numbers": (parts(timestamp=[STAMPS, TIMES]), "x", {},
        r"timestamp is timestamp\[\w+\] in one part and int64 in part-1\.parquet"),
    "parts with dates and times": (parts(timestamp=[STAMPS.dt.date, STAMPS]), "x", {},
        r"timestamp is date32\[day\] in one part and timestamp"),
    "parts with numbers and text": (parts(user_id=[USERS, "00" + USERS.astype(str)]), "x", {},
        "user_id is int64 in one part and string in part-1"),
    "parts with large numbers and fractions": (parts(timestamp=[TIMES * 10**9 + 1, TIMES + 0.5]),
        "x", {}, "no Parquet file or folder of them with equal columns: Integer value 16.* range"),
    "parts by path": ({"x/part-0.parquet": parquet(log()), "x/_SUCCESS": b""}, "x", {}, PLAIN),
    "parquet in capitals": ({"E.PARQUET": parquet(log())}, "E.PARQUET", {}, PLAIN),
    "parquet by its short suffix": ({"e.pq": parquet(log())}, "e.pq", {}, PLAIN),
    "gzip in capitals": ({"E.CSV.GZ": gzip.compress(CSV.encode())}, "E.CSV.GZ", {}, PLAIN),
    "zip in capitals": ({"E.ZIP": packed(a=CSV)}, "E.ZIP", {}, PLAIN),
    "no parquet": ({"interactions.parquet": b"oid sha256"}, "", {},
        r"interactions\.parquet is no Par"),
    "ids that are lists, in parquet": (
        {"interactions.parquet": parquet(log(user_id=pd.Series([[1, 2]] * 12)))}, "", {},
        r"user_id must hold whole numbers or text, received array\(\[1, 2\]\) in row 0"),
    "text ids in parquet": ({"interactions.parquet": parquet(ids(["b", "a", "c"]))}, "", {},
        {"users": ["a", "b", "c"]}),
    "text times in parquet": ({"interactions.parquet": parquet(log(timestamp=ISO))}, "", {}, PLAIN),
    "a file's own path": ({"events.csv": CSV}, "events.csv", {}, PLAIN),
    "a mapping": ({"e.csv": CSV.replace("user_id", "w").replace("timestamp", "when")}, "e.csv",
        {"columns": {"user_id": "w", "timestamp": "when"}}, PLAIN),
    "extra columns with quotes": (csv(text='a "b", \n c'), "", {}, PLAIN),
    "pandas' row numbers": ({"interactions.csv": log().to_csv()}, "", {}, PLAIN),
    "row numbers without a header": (
        {"interactions.csv": log().to_csv().replace(",user_id", "user_id", 1)}, "", {},
        "Expected 3 columns, got 4"),
    "no header": ({"interactions.csv": log().to_csv(index=False, header=False)}, "", {},
        "first line"),
    "no header, and a value twice": ({"interactions.csv": "1,1,4.0,964982703\n1,3,4.0,964981247\n"},
        "", {}, r"has two columns '1'; rename one \(a file's first line must name them"),
    "items without a header": (csv() | {"items.csv": "10,a\n20,b\n"}, "", {},
        r"items\.csv needs the column item_id, received \['10', 'a'\] \(a file's first line"),
    "JSON, a list of records": ({"e.json": log().to_json(orient="records")}, "e.json", {},
        r"e\.json is JSON: read it with pandas\.read_json"),
    "JSON over several lines": ({"e.json": log().to_json(orient="records", indent=1)}, "e.json", {},
        r"e\.json is JSON"),
    "JSON, a record a line": (
        {"interactions.csv": log().to_json(orient="records", lines=True)}, "", {},
        r"interactions\.csv is JSON"),
    "JSON, a list of rows": ({"e.json": log().to_json(orient="values")}, "e.json", {},
        r"e\.json is JSON"),
    "names in brackets": (
        {"interactions.csv": CSV.replace("user_id,item_id", "[user_id],[item_id]")}, "", {}, PLAIN),
    "Excel's line about separators": (
        {"interactions.csv": b"\xef\xbb\xbfsep=;\r\n" + CSV.replace(",", ";").encode()}, "", {},
        PLAIN),
    "Excel's line, another separator in the header": (
        {"interactions.csv": '\n"sep=|"\n' + CSV.replace(",", "|").replace("item", ",item,,")}, "",
        {"columns": {"item_id": ",item,,_id"}}, PLAIN),
    "one usual name among others": ({"interactions.csv":
        "customer,article,bought_at,channel\n1,2,3,web\n"}, "", {},
        r"received \['customer', 'article', 'bought_at', 'channel'\]"),
    "no time among others": ({"interactions.csv": "user_id,item_id,bought_at\n1,2,3\n"}, "", {},
        r"received \['user_id', 'item_id', 'bought_at'\]"),
    "one usual name in Parquet": ({"interactions.parquet":
        parquet(log().rename(columns={"item_id": "article"}))}, "", {},
        r"received \['user_id', 'article', 'timestamp'\]"),
    "a header only": ({"interactions.csv": CSV[: CSV.index("\n") + 1]}, "", {},
        "there are no interactions"),
    "users with a header only": (csv() | {"users.csv": "user_id,age\n"}, "", {},
        r"users\.csv is empty, of shape \(0, 2\). Leave it out"),
    "an empty file": ({"interactions.csv": ""}, "", {}, "interactions.csv is empty"),
    "a short line": ({"interactions.csv": CSV + "1,2\n"}, "", {}, "Expected 3 columns, got 2"),
    "UTF-16": ({"interactions.csv": CSV.encode("utf-16")}, "", {}, "UTF-16, not UTF-8"),
    "an encoding that nobody knows": (csv(), "", {"encoding": "bogus"},
        r"interactions\.csv is not in the encoding bogus: save it as UTF-8"),
    "UTF-16, named": ({"interactions.csv": CSV.encode("utf-16")}, "", {"encoding": "utf-16"},
        PLAIN),
    "cp1252": (csv() | {"items.csv": "item_id,title\n10,é\n".encode("cp1252")}, "", {},
        r"items\.csv is not in the encoding utf-8.*cp1252"),
    "cp1252, named": (csv() | {"items.csv": "item_id,title\n10,é\n".encode("cp1252")}, "",
        {"encoding": "cp1252"}, {"titles": ["é", "20", "30", "40"]}),
    "ids with leading zeros": (csv(user_id="00" + USERS.astype(str)), "", {},
        {"users": ["001", "002", "003"]}),
    "ids of 128 bit": (csv(user_id=[LONG[i - 1] for i in USERS]), "", {}, {"users": LONG}),
    "ids of 64 bit": (csv(user_id=[LARGE[i - 1] for i in USERS]), "", {}, {"users": LARGE}),
    "floats for ids": (csv(user_id=USERS.astype(float)), "", {}, PLAIN),
    "a missing id": (csv(user_id=USERS.where(USERS > 1)), "", {},
        r"csv: user_id is missing in row 0"),
    "an id that is written NULL": (csv(user_id=USERS.astype(object).where(USERS > 1, "NULL")), "",
        {}, r"csv: user_id is missing in row 0 \(counted from 0; it says 'NULL'\), in 4 of 12"),
    "positions of 20 digits": (
        csv(timestamp=None, position=[20240101123000000000 + i for i in (4, 3, 2, 1)] * 3), "", {},
        {"history": [40, 30, 20, 10]}),
    "features of 20 digits": (
        csv() | {"items.csv": f"item_id,shelf\n10,{2**64}\n20,{2**64 + 1}\n30,1\n40,1\n"}, "", {},
        {"shelf": [str(2**64), str(2**64 + 1), "1", "1"]}),
    "ISO times": (csv(timestamp=ISO + "+00:00"), "", {}, PLAIN),
    "an odd rating": (csv(rating=["x", *"12345678901"]), "", {},
        r"interactions\.csv: rating must hold numbers, received 'x' in row 0"),
    "items.parquet": (csv() | {"items.parquet": parquet(items(tags=[["x"], [], [], []]))}, "", {},
        {"titles": ["a", "b", "c", "40"], "tags": ("x",), "says": "items.parquet"}),
    **{f"{name}, which isn't read": (csv() | {name: "item_id,title\n10,a\n"}, "", {},
        PLAIN | {"columns": [], "says": f"{name} isn't read: users and items are read from files"})
        for name in "items.json Items.csv item.csv items.csv.bz2 users.txt movies.dat u.item"
        .split()
    },
    "items that a Parquet file outranks": (
        csv() | {"items.csv": "item_id\n10\n", "items.parquet": parquet(ITEMS)}, "", {},
        {"titles": ["a", "b", "c", "40"], "says": "items.csv isn't read"}),
    "items beside ratings.dat": ({"ratings.dat": lines("::"), "items.csv": "item_id\n"}, "", {},
        {"columns": [], "says": "items.csv isn't read: users and items are read from users.dat"}),
    "a column that the first part lacks": (
        {"x/part-0.parquet": parquet(log()),
         "x/part-1.parquet": parquet(log(user_id=USERS + 3, rating=5.0))}, "x", {},
        {"ratings": [pytest.approx(np.nan, nan_ok=True)] * 12 + [5.0] * 12}),
    "an order that the first part lacks": (
        {"x/part-0.parquet": parquet(log()),
         "x/part-1.parquet": parquet(log(user_id=USERS + 3, position=range(12)))}, "x", {},
        "position is missing in row 0"),
    "folders of one value each": (
        {f"x/user_id={user}/part-0.parquet": parquet(log()[:4].drop(columns="user_id"))
         for user in ("001", "1", "2")}, "x", {}, PLAIN | {"users": ["001", "1", "2"]}),
    "folders of one number each": (
        {f"x.parquet/user_id={user}/a.parquet": parquet(log()[:4].drop(columns="user_id"))
         for user in SMALL}, "x.parquet", {}, PLAIN),
    "folders of days": (
        {f"x/dt={day}/a.parquet": parquet(log()[i::4])
         for i, day in enumerate("abcd")}, "x", {}, PLAIN),
    "times of an old Spark, for ever": ({"x.parquet": old_spark()}, "x.parquet", {},
        {"history": [20, 30, 10], "times": [EXACT[1], EXACT[2], 253402214400]}),
    "interactions beside other Parquet folders": (
        csv() | {"run=1/preds.parquet": parquet(log(item_id=50))}, "", {}, PLAIN),
    "folders of days beside items": (
        {f"x/dt={day}/a.parquet": parquet(log()[i::4]) for i, day in enumerate("abcd")}
        | {"x/items.parquet": parquet(ITEMS)}, "x", {}, PLAIN),
    "folders of a column that the files have, too": (
        {f"x.parquet/y=202{u}/a.parquet": parquet(log(y=np.int32(2020 + u))[USERS == u])
         for u in SMALL}, "x.parquet", {}, PLAIN),
    "folders above the table": (
        {"run=1/interactions.parquet/part-0.parquet": parquet(log()),
         "run=1/items.parquet/part-0.parquet": parquet(ITEMS)}, "run=1", {},
        PLAIN | {"columns": ["title"]}),
    "folders above single files": (
        {"run=1/interactions.parquet": parquet(log()), "run=1/items.parquet": parquet(ITEMS)},
        "run=1", {}, PLAIN | {"columns": ["title"]}),
    "one file of a folder of one value": (
        {"user_id=5/a.parquet": parquet(log()[:4].drop(columns="user_id"))},
        "user_id=5/a.parquet", {}, {"users": [5]}),
    "a folder without parts": ({"interactions.parquet/_SUCCESS": b""}, "", {},
        r"holds no Parquet files, but \['_SUCCESS'\]"),
    "a Delta table": (
        {"x.parquet/_delta_log/0.json": "{}", "x.parquet/part-0.parquet": parquet(log())},
        "x.parquet", {}, "is a Delta table"),
    "text that isn't marked as such": (
        csv() | {"items.parquet": parquet(ITEMS.assign(title=[b"a", b"b", b"c", None]))}, "", {},
        {"titles": ["a", "b", "c", "40"]}),
    "interactions.pq": ({"interactions.pq": parquet(log())}, "", {}, PLAIN),
    "another matter beside a file": (
        {"may.csv": CSV, "users.csv": "login,pw\na,b\n"}, "may.csv", {},
        PLAIN | {"columns": [], "says": "users.csv isn't read: it has no column user_id"}),
    "another matter beside interactions": (csv() | {"users.csv": "login,pw\na,b\n"}, "", {},
        "users.csv needs the column user_id"),
    "a spreadsheet's empty columns": (
        {"interactions.csv": "".join(f"{line},,\n" for line in CSV.splitlines())}, "", {}, PLAIN),
    "zip of a table and what isn't one": (
        {"interactions.csv.zip": packed(**{"a": CSV, ".DS_Store": "x", "__MACOSX/._a": "x"})}, "",
        {}, PLAIN),
    "zip of ./a.csv": ({"interactions.csv.zip": packed(**{"./a.csv": CSV})}, "", {}, PLAIN),
    "zip of _out/a.csv": ({"interactions.csv.zip": packed(**{"_out/a.csv": CSV})}, "", {}, PLAIN),
    "another matter beside packed interactions": (
        {"interactions.csv.gz": gzip.compress(CSV.encode()), "users.csv": "client,age\na,b\n"}, "",
        {}, "users.csv needs the column user_id"),
    "another matter beside a file, said once": (
        {"may.csv": CSV, "users.csv": "login,pw\na,b\n"}, "may.csv", {},
        {"doesn't say": "are read from files called so"}),
    "blanks behind quotes": (
        csv() | {"items.csv": 'item_id,title,color\n10,"a" ,"red"\n20,"B" ,"x"\n'}, "", {},
        {"rows": 12}),
    "quotes within ids": ({"interactions.csv": 'user_id,item_id,timestamp\n"a"b,1,1\nab,2,2\n'}, "",
        {}, "has text behind a closing quote in line 2"),
    "a comment above": ({"interactions.csv": "# made by x\n" + CSV}, "", {},
        "begins with '# made by x', not with a header"),
    "a row of more than a megabyte": (csv(note="x" * (3 << 20)), "", {}, PLAIN),
    "commas in the header of a .tsv": (
        csv() | {"items.tsv": "item_id\ttitle (a, b, c)\n10\tx\n"}, "",
        {"columns": {"title": "title (a, b, c)"}}, {"titles": ["x", "20", "30", "40"]}),
    "commas in a quoted header": (
        csv() | {"items.csv": 'item_id;"title, in full, as it is"\n10;x\n'}, "",
        {"columns": {"title": "title, in full, as it is"}}, {"titles": ["x", "20", "30", "40"]}),
    "UTF-8 with a mark, beside cp1252": (
        {"interactions.csv": CSV.encode("utf-8-sig"),
         "items.csv": "item_id,title\n10,\xe9\n".encode("cp1252")}, "", {"encoding": "cp1252"},
        PLAIN | {"titles": ["\xe9", "20", "30", "40"]}),
    "UTF-16, and another spelling of UTF-8": ({"interactions.csv": CSV.encode("utf-16")}, "",
        {"encoding": "UTF-8"}, "is in the encoding UTF-16"),
    "a backslash before quotes": (
        csv() | {"items.csv": 'item_id,title\n10,a\n20,"Say \\"Hi\\" now"\n'}, "", {},
        r"items\.csv has text behind a closing quote in line 3\. Double the quotes"),
    "text behind a quoted word": (csv() | {"items.csv": 'item_id,title\n10,"Great" Gatsby\n'}, "",
        {}, "text behind a closing quote in line 2"),
    "quotes amidst text": (csv() | {"items.csv": 'item_id,title\n10,5" or 7" disks\n'}, "",
        {}, {"titles": ['5" or 7" disks', "20", "30", "40"]}),
    "doubled quotes": (csv() | {"items.csv": 'item_id,title\n10,"Say ""Hi"" now"\n'}, "",
        {}, {"titles": ['Say "Hi" now', "20", "30", "40"]}),
    "codes that programs read as numbers": (
        csv() | {"items.csv": "item_id,shelf\n10,0xFF00\n20,0x1\n30,0x2\n40,0x3\n"}, "", {},
        {"shelf": ["0xFF00", "0x1", "0x2", "0x3"]}),
    "codes with too large an exponent": (
        csv() | {"items.csv": "item_id,shelf\n10,12e45678\n20,98e10\n30,555\n40,1e400\n"}, "", {},
        {"shelf": ["12e45678", "98e10", "555", "1e400"]}),
    "names that mean infinity": (
        csv() | {"items.csv": "item_id,shelf\n10,inf\n20,1\n30,2\n40,3\n"}, "", {},
        {"shelf": ["inf", "1", "2", "3"]}),
    "telephone numbers": (
        csv() | {"items.csv": "item_id,shelf\n10,+491\n20,+492\n30,+493\n40,1\n"}, "", {},
        {"shelf": ["+491", "+492", "+493", "1"]}),
    "numbers beyond 2**53, one missing": (
        csv() | {"items.csv": "item_id,shelf\n" + "".join(
            f"{i},{v}\n" for i, v in zip((10, 20, 30, 40), (*BIG, ""), strict=True))}, "", {},
        {"shelf": [*BIG, pd.NA]}),
    "fractions and exponents": (
        csv() | {"items.csv": "item_id,shelf\n10,.5\n20,1e3\n30,-2.5E-1\n40,7.\n"}, "", {},
        {"shelf": [0.5, 1000, -0.25, 7]}),
    "titles of another name that look like numbers": (
        csv() | {"items.csv": "item_id,name\n10,1.50\n20,7\n"}, "",
        {"columns": {"title": "name"}}, {"titles": ["1.50", "7", "30", "40"]}),
    "codes of another name that look like numbers": (
        csv() | {"users.csv": "user_id,postal\n1,1234\n2,\n"}, "",
        {"columns": {"zip_code": "postal"}}, {"zips": ["1234", 0, 0]}),
    "RecBole, a column twice": (
        {"x.inter": RECBOLE, "x.item": "item_id:token\titem_id:float\n10\t1\n"}, "", {},
        "x.item has a column twice"),
    "items beside u.data": ({"u.data": lines("\t"), "items.csv": "item_id\n"}, "", {},
        {"columns": [], "says": "items.csv isn't read: users and items are read from u.user and"}),
    "items beside RecBole": ({"x.inter": RECBOLE, "items.csv": "item_id\n"}, "", {},
        {"columns": [], "says": "items.csv isn't read: users and items are read from x.user and"}),
    "users.tsv": (csv() | {"users.tsv": "user\tage\n1\t7\n3\t9\n"}, "", {}, {"ages": [7, 0, 9]}),
    "an empty text": (csv() | {"users.csv": "user_id,zip_code,age\n1,,1\n2,01,\n"}, "",
        {"odd_values": "missing"}, {"zips": [0, "01", 0], "ages": [1, 0, 0]}),
    "titles that look like numbers": (
        csv() | {"items.csv": "item_id,title\n10,1.50\n20,7\n"}, "", {},
        {"titles": ["1.50", "7", "30", "40"]}),
    "titles in capitals, and codes, that look like numbers": (
        csv() | {"items.csv": "item_id,TITLE\n10,1.50\n20,7\n",
                 "users.csv": "user_id,Zip Code\n1,7\n2,\n"}, "", {},
        {"titles": ["1.50", "7", "30", "40"], "zips": ["7", 0, 0]}),
    "a title that is written NA": (csv() | {"items.csv": "item_id,title\n10,NA\n20,007\n"}, "", {},
        {"titles": ["NA", "007", "30", "40"]}),
    "leading zeros of other columns than ids": (
        csv() | {"items.csv": "item_id,shelf\n10,1\n20,007\n30,0\n40,0.5\n"}, "", {},
        {"shelf": ["1", "007", "0", "0.5"]}),
    "leading zeros after signs": (
        csv() | {"items.csv": "item_id,shelf\n10,1\n20,-07\n30,2\n40,3\n"}, "", {},
        {"shelf": ["1", "-07", "2", "3"]}),
    "numbers without leading zeros": (
        csv() | {"items.csv": "item_id,shelf\n10,1\n20,7\n30,0\n40,0.5\n"}, "", {},
        {"shelf": [1, 7, 0, 0.5]}),
    "ratings.csv alone": ({"ratings.csv": CSV.replace("user_id,item_id", "userId,movieId")}, "", {},
        PLAIN),
    "ratings.dat alone": ({"ratings.dat": lines("::")}, "", {}, {"times": [9] * 4}),
    "u.data alone": ({"u.data": lines("\t")}, "", {}, {"times": [9] * 4}),
    "u.data with blanks": ({"u.data": "1 2 3 4\n"}, "", {}, r"u\.data is not a table of 4 columns"),
    "RecBole": (
        {"x.inter": RECBOLE,
         "x.item": "item_id:token\tcategories:token_seq\tprice:float\n10\tx y\t2\n"},
        "", {}, PLAIN | {"columns": ["categories", "price"]}),
    "RecBole in cp1252": ({"x.inter": RECBOLE, "x.item": "item_id:token\ttitle:token\n10\té\n"
        .encode("cp1252")}, "", {"encoding": "cp1252"}, {"titles": ["é", "20", "30", "40"]}),
    "RecBole, two of them": ({"x.inter": RECBOLE, "y.inter": RECBOLE}, "", {}, "expected one of"),
    "RecBole, one of two": ({"x.inter": RECBOLE, "y.inter": RECBOLE}, "y.inter", {}, PLAIN),
    "no interactions": ({"notes.txt": "x"}, "", {}, r"expected one of interactions.*'notes\.txt'"),
}
# fmt: on


@pytest.mark.parametrize("kind", FILES)
def test_files(kind, tmp_path, capsys):
    files, which, options, expected = FILES[kind]
    folder = tmp_path / "my shop"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    match = expected if isinstance(expected, str) else None
    judge(lambda: load_dataset(folder / which, **options), expected, match, capsys)


@pytest.mark.parametrize(
    ("which", "name"),
    [
        ("shop", "shop"),
        ("shop/interactions.csv", "shop"),
        ("shop/may.csv", "may"),
        ("shop/may.2024.csv", "may.2024"),
        ("shop/may.2025.csv.gz", "may.2025"),
        ("shop/may.2026.TXT", "may.2026"),
        ("shop/may.2027", "may.2027"),
        ("shop/may.2028.PQ", "may.2028"),
        ("v.2", "v.2"),
    ],
)
def test_what_a_dataset_is_called(which, name, tmp_path, monkeypatch):
    for file in ("shop/interactions.csv", "shop/may.csv", "v.2/interactions.csv"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(CSV)
    for file in ("may.2024.csv", "may.2026.TXT", "may.2027"):
        (tmp_path / "shop" / file).write_text(CSV)
    (tmp_path / "shop" / "may.2028.PQ").write_bytes(parquet(log()))
    (tmp_path / "shop" / "may.2025.csv.gz").write_bytes(gzip.compress(CSV.encode()))
    assert load_dataset(tmp_path / which).name == name
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_dataset(f"~/{which}").name == name
    monkeypatch.chdir(tmp_path)
    assert load_dataset(f"./{which}").name == load_dataset(which).name == name
