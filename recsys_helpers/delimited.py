"""Delimited text, packed or not, as tables.

Such files have no types: they hold text, and a column of it becomes numbers only where every value
is one.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

TEXT = ("title", "movietitle", "zipcode")  # even where all of them look like numbers
WHOLE, FRACTION = r"^\s*-?\d+\s*$", r"^\s*(-?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?|nan|NaN)\s*$"
WITHIN = r'[^",;\t|\r\n]" *[^ ",;\t|\r\n]'  # a quote with text on both sides
BLOCK, LONGEST = 1 << 20, 1 << 24  # bytes of text at a time, and of the longest row

# What files raise that are none, damaged, encrypted, or in an encoding that isn't the one named.
UNREADABLE = (pa.ArrowException, OSError, EOFError, RuntimeError, LookupError, UnicodeError)
UNREADABLE += (zipfile.BadZipFile, zlib.error)


def _open(path: Path):
    if path.suffix.lower() == ".gz":
        return gzip.open(path)
    if path.suffix.lower() == ".zip":
        archive = zipfile.ZipFile(path)
        files = [f for f in archive.namelist() if not f.endswith("/") and "__MACOSX" not in f]
        files = [f for f in files if not re.match(r"(.*/)?\.(?!/)", f)] or files  # .DS_Store
        if len(files) > 1:  # a README beside it
            files = [f for f in files if f.lower().endswith((".csv", ".tsv"))] or files
        if len(files) != 1:
            raise ValueError(f"{path} must hold one table, received {files[:10]}. Unpack it.")
        return archive.open(files[0])
    return path.open("rb")


def read_delimited(
    path: Path,
    separator: str | None = None,
    names: list[str] | None = None,
    encoding: str = "utf-8",
    choose: Callable | None = None,
    keep_text: bool = False,
    text: Collection[str] = (),
) -> pd.DataFrame:
    """Read a delimited file, packed with gzip or zip or as it is, after blank lines and `sep=;`.

    Args:
        path: of the file.
        separator: None is the one of comma, tab, semicolon and bar that the header has most of, in
            a file where quotes enclose text; where the separator is given they are characters.
        names: of the columns, for files without a header; the file must have so many.
        encoding: of the text.
        choose: names -> (columns to be read, those of them that hold ids). None reads all, and
            finds ids under our own names.
        keep_text: text stays in Arrow's form, for long tables.
        text: more columns whose values stay text, whatever they look like.

    Raises:
        ValueError: another number of columns in some row, another encoding, an empty file, or one
            that is no delimited text.
    """
    header, skipped, quote = names or [], 0, '"' if separator is None else False
    try:
        with _open(path) as file:
            start = file.read(1 << 16)
        if start[:3] == codecs.BOM_UTF8:
            encoding = "utf-8"
        if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) and encoding == "utf-8":
            raise ValueError(
                f'{path} is in the encoding UTF-16, not UTF-8: pass encoding="utf-16".'
            )
        if names is None:
            begin = start.decode(encoding, "replace").lstrip("\ufeff")
            above = re.match(r'(?:\s*\n)?(?:"?sep=(.)"?\r?\n)?', begin)  # sep= is Excel's
            skipped, separator = above[0].count("\n"), separator or above[1]
            first = begin[above.end() :].partition("\n")[0].strip("\r")
            if re.match(r"\s*({|\[\s*[{[])", begin[above.end() :]):
                raise ValueError(
                    f"{path} is JSON: read it with pandas.read_json (lines=True if each line is a "
                    "record), and pass the table to Dataset.from_tables."
                )
            if odd := re.search(r"[\0-\x08\x0e-\x1f]", first):
                raise csv.Error(f"its first line holds {odd[0]!r}")
            if separator is None:
                bare = re.sub(r'"[^"]*"', "", first)
                separator = max(",\t;|", key=bare.count)
                if "\t" in bare and ".tsv" in path.name.lower():
                    separator = "\t"
                if first[:1] == "#" and separator not in bare:
                    raise ValueError(f"{path} begins with {first!r}, not with a header: remove it.")
            header = next(csv.reader([first], delimiter=separator), [])
        how = separator, quote, names, encoding, header, skipped, choose
        try:
            with _open(path) as raw:
                table = _read_text(file := _Counted(raw), *how)
        except pa.ArrowInvalid as error:
            if "straddling" not in str(error):
                raise
            with _open(path) as raw:  # a long row, or a quote that isn't closed
                table = _read_text(file := _Counted(raw), *how, block=LONGEST)
    except csv.Error as error:
        raise ValueError(
            f"{path} is not delimited text with lines that end in \\n ({error}). What is read is "
            ".csv and .tsv, both also packed as .gz or .zip, and .parquet."
        ) from error
    except UNREADABLE as error:
        if quote and "straddling" in str(error):  # a value that doesn't end
            _check_quotes(path, encoding, separator)
        if "UTF8" in str(error) or isinstance(error, (UnicodeError, LookupError)):
            what = f'is not in the encoding {encoding}: save it as UTF-8, or pass encoding="cp1252"'
        elif "Empty" in str(error):
            what = "is empty: it needs a header"
        elif isinstance(error, pa.ArrowException):
            what = f"is not a table of {len(header)} columns separated by {separator!r}"
        else:
            what = "cannot be read: is it damaged, encrypted, or not what its name says?"
        raise ValueError(f"{path} {what} ({error})") from error
    for i, name in enumerate(table.column_names):
        table = table.set_column(i, name, typed(table.column(i), name, text))
    # Of a long table, text is read in ids alone.
    texts = [f for f in table.schema if pa.types.is_dictionary(f.type) or not keep_text]
    texts = [f for f in texts if pa.string() in (f.type, getattr(f.type, "value_type", None))]
    within = file.within and bool(texts)
    if quote and (table.num_rows < file.lines - 1 - skipped or within):
        _check_quotes(path, encoding, separator, within)  # values of several lines, odd quotes
    return to_pandas(table, path, keep_text)


class _Counted:
    """A file whose lines are counted while it is read, and in which quotes within text are seen."""

    closed = False

    def __init__(self, file):
        self.file, self.lines, self.end, self.within = file, 0, b"\n", False

    def read(self, size=-1):
        part = self.file.read(size)
        self.end = part[-1:] or self.end
        self.lines += part.count(b"\n") + (not part and self.end != b"\n")
        if not self.within and b'"' in part:
            self.within = re.search(WITHIN.encode(), part) is not None
        return part


def _check_quotes(path: Path, encoding: str, separator: str, within: bool = False) -> None:
    """Refuse quotes that open and don't close, which would take other rows into their value.

    And those `within` a value, of which Arrow leaves some out.
    """
    csv.field_size_limit(max(LONGEST, csv.field_size_limit()))
    with io.TextIOWrapper(_open(path), encoding, "replace") as text:
        last = [""]

        def noted(line):
            last[0] = line
            return line

        rows = csv.reader(map(noted, text), delimiter=separator, strict=True)
        start, row = 1, []
        while row is not None:
            try:
                row = next(rows, None)
                # Between tabs or bars a quote may be just a character.
                odd = separator in "\t|" and any("\n" in v and separator in v for v in row or ())
            except csv.Error:  # something stands behind the closing quote, or there is none
                odd = True
            if odd and within and rows.line_num == start and re.search(WITHIN, last[0]):
                raise ValueError(
                    f"{path} has text behind a closing quote in line {start}. Double the quotes "
                    'within a value ("say ""hi"""), or remove them.'
                )
            if odd and rows.line_num > start:
                raise ValueError(
                    f"{path} has other rows inside a value: a quote in line {start} isn't closed. "
                    "Close or remove it; in .csv, quotes in texts are doubled."
                )
            start = rows.line_num + 1


def _read_text(
    file, separator, quote, names, encoding, header, skipped, choose, block=BLOCK
) -> pa.Table:
    """Everything as text, ids as dictionaries of it."""
    if separator == "::":  # Arrow has separators of one character only
        file, separator = io.BytesIO(file.read().replace(b"::", b"\t")), "\t"
    chosen, ids = choose(header) if choose else (header, [n for n in header if _is_id(n)])
    chosen = [name for name in chosen if name]  # without the row numbers that pandas writes
    return pa.csv.read_csv(
        file,
        pa.csv.ReadOptions(
            block_size=block,
            column_names=names,
            encoding=encoding,
            skip_rows=skipped,
            use_threads=False,
        ),
        pa.csv.ParseOptions(delimiter=separator, quote_char=quote, newlines_in_values=bool(quote)),
        pa.csv.ConvertOptions(
            column_types={name: pa.string() for name in chosen}
            | {name: pa.dictionary(pa.int32(), pa.string()) for name in ids},
            include_columns=chosen,
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
        ),
    )


def _is_id(name: str) -> bool:
    return name.partition(":")[0] in ("user_id", "item_id")


def plain_name(name: str) -> str:
    """A column's name in small letters and without signs."""
    return re.sub(r"\W|_", "", name.lower())


def typed(column: pa.ChunkedArray, name: str, text: Collection[str] = ()) -> pa.ChunkedArray:
    """A column of text as numbers, if every value of it is one as people write them.

    What stands for numbers in programs is text: 0xFF, 1e400, +49.
    """
    if pa.types.is_dictionary(column.type):
        column = column.unify_dictionaries().combine_chunks()
        texts = pc.utf8_trim_whitespace(column.dictionary)  # "1, 2" holds 1 and 2
        ids = untyped_ids(texts.to_numpy(zero_copy_only=False))
        ids, codes = np.unique(ids, return_inverse=True)
        if ids.dtype == object and texts.equals(column.dictionary):
            return pa.chunked_array([column])
        indices = pa.array(codes.astype(np.int32)).take(column.indices)
        return pa.chunked_array([pa.DictionaryArray.from_arrays(indices, pa.array(ids))])
    if plain_name(name.partition(":")[0]) in TEXT or name in text:
        return column
    if column.null_count == len(column):
        return column
    if pc.any(pc.match_substring_regex(column, r"^[-+]?0[\dxX]")).as_py():  # 007 is not 7
        return column
    with contextlib.suppress(pa.ArrowInvalid):
        return column.cast(pa.int64())
    if pc.all(pc.match_substring_regex(column, WHOLE)).as_py():
        return column  # too large, and floats would lose digits
    if pc.all(pc.match_substring_regex(column, FRACTION)).as_py():
        with contextlib.suppress(pa.ArrowInvalid):
            numbers = column.cast(pa.float64())
            return column if pc.any(pc.is_inf(numbers)).as_py() else numbers
    return column


def untyped_ids(ids: np.ndarray) -> np.ndarray:
    """Ids from a file without types, text [num_ids]: whole numbers if every one is such a number.

    "007" stays text, because 7 is another id; "7.0" is 7, as pandas writes 7 beside missing ones.
    """
    if all(re.fullmatch(r"(0|-?[1-9]\d*)(\.0+)?", i) for i in ids):
        whole = [int(i.partition(".")[0]) for i in ids]
        if all(-(2**63) <= i < 2**63 for i in whole):
            return np.array(whole, np.int64)
        if all(0 <= i < 2**64 for i in whole):
            return np.array(whole, np.uint64)
    return ids


def to_pandas(table: pa.Table, path: Path, keep_text: bool = False) -> pd.DataFrame:
    """Text as Arrow holds it where `keep_text`: Python's strings take five times the memory."""
    types = with_missing(table)
    if keep_text:
        types[pa.string()] = pd.ArrowDtype(pa.string())
    table = table.unify_dictionaries()
    frame = table.to_pandas(
        types_mapper=types.get, ignore_metadata=True, split_blocks=True, self_destruct=True
    )
    frame.attrs["source"] = str(path)
    return frame


def with_missing(table: pa.Table) -> dict[pa.DataType, pd.api.extensions.ExtensionDtype]:
    """Pandas's types for whole numbers some of which are missing: floats would lose digits."""
    types = {c.type for c in table.columns if c.null_count and pa.types.is_integer(c.type)}
    names = {kind: str(kind).replace("u", "U").replace("int", "Int") for kind in types}
    return {kind: pd.api.types.pandas_dtype(name) for kind, name in names.items()}
