"""The tables of interactions, users and items as they lie in files.

Files without types hold text; a column of it becomes numbers only where every value is one. What
the columns mean is decided later, see `Dataset.from_tables`.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset

ROLES = ("user_id", "item_id", "timestamp", "position", "rating")
# Other names of the columns we need, in small letters and without signs.
ALIASES = {
    "user_id": "userid user uid customerid customer visitorid memberid reviewerid".split(),
    "item_id": "itemid item iid movieid movie productid product sku asin trackid songid "
    "articleid bookid".split(),
    "timestamp": "timestamp ts time unixtime date datetime eventtime createdat".split(),
    "position": ["position"],
    "rating": ["rating"],
}
GROUPLENS_FILES = ("u.data", "ratings.dat", "ratings.csv")
DELIMITED = tuple(f".{kind}{packed}" for kind in ("csv", "tsv") for packed in ("", ".gz", ".zip"))
SUFFIXES = (".parquet", *DELIMITED)
ANY_MAIN_FILE = f"interactions{{{','.join(SUFFIXES)}}}, one *.inter, {', '.join(GROUPLENS_FILES)}"
TEXT = ("title", "movie_title", "zip_code")  # even where all of them look like numbers
RATING_COLUMNS = ["user_id", "item_id", "rating", "timestamp"]
USER_COLUMNS_100K = ["user_id", "age", "gender", "occupation", "zip_code"]
USER_COLUMNS_1M = ["user_id", "gender", "age", "occupation", "zip_code"]

Tables = tuple[pd.DataFrame, pd.DataFrame | None, pd.DataFrame | None]


def find_columns(
    names: list[str],
    wanted: Iterable[str],
    columns: dict[str, str],
    what: str,
    side: bool = False,
    say: Callable = lambda text: None,
) -> dict[str, str]:
    """Which of the columns `names` are the `wanted` ones: our name -> theirs.

    Args:
        names: of the table's columns.
        wanted: names of ours, of `ALIASES`.
        columns: our name -> theirs, as the caller knows it; it need not be in a side table.
        what: the table's name for messages.
        side: a table of users or items, where the id may also be called `id`.
        say: prints what was guessed.

    Raises:
        ValueError: if a column that was named is not there, or there are several candidates.
    """
    repeated = pd.Index(names).duplicated()
    if repeated.any():
        raise ValueError(f"{what} has two columns {names[int(repeated.argmax())]!r}; rename one.")
    found = {}
    for ours in wanted:
        theirs = columns.get(ours)
        if theirs in names:
            found[ours] = theirs
        elif theirs is not None and not side:
            raise ValueError(
                f"{what} has no column {theirs!r}, which was named for {ours}; received {names}."
            )
        elif ours in names:
            found[ours] = ours
        else:
            taken = {*columns.values(), *found.values()}
            known = [*ALIASES[ours], *(["id"] if side else [])]
            alike = [n for n in names if re.sub(r"\W|_", "", n.lower()) in known]
            alike = [n for n in alike if n not in taken]
            if len(alike) > 1:
                raise ValueError(
                    f"{what}: {ours} may be any of the columns {alike}. Say which, for example "
                    f"columns={{{ours!r}: {alike[0]!r}}}."
                )
            if alike:
                found[ours] = alike[0]
                say(f"{what}: {ours} is read from the column {alike[0]!r}")
    return found


def main_file(path: Path) -> Path | None:
    """The file (or Parquet folder) of interactions that `path` is or holds; None if there is none.

    Of several RecBole datasets in one folder it is the one that is called like the folder.
    """
    if path.is_file() or (path.is_dir() and _is_parquet_folder(path)):
        return path
    names = [f"interactions{suffix}" for suffix in SUFFIXES]
    names += [f"ratings{suffix}" for suffix in DELIMITED[1:]]
    names += [*GROUPLENS_FILES, f"{path.name}.inter"]
    for name in names:
        if (path / name).exists():
            return path / name
    atomic = list(path.glob("*.inter")) if path.is_dir() else []
    return atomic[0] if len(atomic) == 1 else None


def _is_parquet_folder(path: Path) -> bool:
    return path.suffix == ".parquet" or any(path.glob("part-*.parquet"))


def read_tables(
    main: Path, columns: dict[str, str] | None = None, encoding: str = "utf-8"
) -> tuple[Tables, dict[str, str]]:
    """Read the interactions in `main`, and the users and items that lie beside them.

    Args:
        main: GroupLens's `u.data`, `ratings.dat` or `ratings.csv`, a RecBole `.inter` file, or a
            table of any other name.
        columns: see `Dataset.from_tables`; other columns of interactions are not read.
        encoding: of text in files of the reader's own.

    Returns:
        Interactions, users and items (the last two or None), each with `attrs["source"]`, the
        file's path; and separators of fields of several values where the format has its own.

    Raises:
        ValueError: what is no table of that form; the message names the file.
    """
    separators = {}
    if main.suffix == ".inter":
        tables, separators = _read_recbole(main)
    elif main.name == "u.data":
        tables = _read_100k(main)
    elif main.name == "ratings.dat":
        tables = (
            read_delimited(main, "::", RATING_COLUMNS),
            _beside(main, "users.dat", "::", USER_COLUMNS_1M, "latin-1"),
            _beside(main, "movies.dat", "::", ["item_id", "title", "genres"], "latin-1"),
        )
    else:
        tables = _read_own(main, columns or {}, encoding)
    release_memory()
    return tables, separators


def release_memory() -> None:
    """Let go of what Arrow keeps after reading: gigabytes, after a long table."""
    pa.default_memory_pool().release_unused()


def _beside(main: Path, name: str, *arguments) -> pd.DataFrame | None:
    path = main.with_name(name)
    return read_delimited(path, *arguments) if path.is_file() else None


def _read_100k(main: Path) -> Tables:
    genres = _beside(main, "u.genre", "|", ["genre", "code"], "latin-1")
    names = [] if genres is None else list(genres["genre"])
    about = ["item_id", "title", "release_date", "video_date", "url"]
    items = None
    if names:
        items = _beside(main, "u.item", "|", about + names, "latin-1")
    if items is not None:
        flags = items[names].to_numpy() == 1
        items["genres"] = [tuple(np.array(names, object)[row]) for row in flags]
        items = items[["item_id", "title", "genres"]]
    users = _beside(main, "u.user", "|", USER_COLUMNS_100K, "latin-1")
    return read_delimited(main, "\t", RATING_COLUMNS), users, items


def _read_recbole(main: Path) -> tuple[Tables, dict[str, str]]:
    """RecBole's atomic files; their headers say `name:type`, and sequences are set with blanks."""
    tables, separators = [], {}
    for suffix in (".inter", ".user", ".item"):
        path = main.with_suffix(suffix)
        table = read_delimited(path, "\t") if path.is_file() else None
        if table is not None:
            typed = dict(name.partition(":")[::2] for name in table.columns)
            table.columns = list(typed)
            names = {"movie_title": "title", "release_year": "year", "class": "genres"}
            names = {a: b for a, b in (names | {"genre": "genres"}).items() if b not in typed}
            table = table.rename(columns=names)
            found = {names.get(name, name) for name, kind in typed.items() if kind == "token_seq"}
            separators |= dict.fromkeys(found - {"title"}, " ")
        tables.append(table)
    items = tables[2]
    if main.name == "ml-100k.inter" and items is not None:
        # Titles come without their years. Item 267, whose title and year are unknown, is misspelt.
        with_year = items["title"] + " (" + items["year"].astype(str) + ")"
        items["title"] = with_year.mask(items["title"] == "unkonwn", "unknown")
        items.drop(columns="year", inplace=True)
    return tuple(tables), separators


def _read_own(main: Path, columns: dict[str, str], encoding: str) -> Tables:
    interactions = read_table(main, columns, encoding, ROLES)
    folder = main.parent
    sides = []
    for stem, key, others in (("users", "user_id", ()), ("items", "item_id", ("movies.csv",))):
        names = [*(stem + suffix for suffix in SUFFIXES), *others]
        path = next((folder / name for name in names if (folder / name).exists()), None)
        sides.append(read_table(path, columns, encoding, (key,), side=True) if path else None)
    if main.name == "ratings.csv":  # GroupLens's names need no guess
        names = {"userId": "user_id", "movieId": "item_id"}
        names = {theirs: ours for theirs, ours in names.items() if ours not in columns}
        for table in (interactions, *sides):
            if table is not None:
                table.rename(columns=names, inplace=True)
    return interactions, *sides


def read_table(path: Path, columns, encoding: str, wanted, side: bool = False) -> pd.DataFrame:
    """A Parquet or delimited table: the `wanted` columns only, or all of a side table."""

    def choose(names: list[str]) -> tuple[list[str], list[str]]:
        found = find_columns(names, wanted, columns, str(path), side)
        ids = [found[key] for key in ("user_id", "item_id") if key in found]
        lacking = len(ids) < 2 or not {"timestamp", "position"} & set(found)  # then all is listed
        return (names if side or lacking else list(found.values())), ids

    if path.suffix != ".parquet" and not path.is_dir():
        return read_delimited(path, encoding=encoding, choose=choose, keep_text=not side)
    try:
        data = pa.dataset.dataset(path, format="parquet", partitioning="hive")
        chosen, ids = choose(data.schema.names)
        table = data.to_table(columns=chosen)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no Parquet file or folder of them: {error}") from error
    for name in ids:  # text takes a tenth of the memory when each id is held once
        i = table.schema.get_field_index(name)
        if table.schema.types[i] in (pa.string(), pa.large_string()):
            table = table.set_column(i, name, table.column(i).dictionary_encode())
    return _to_pandas(table, path, keep_text=not side)


def _to_pandas(table: pa.Table, path: Path, keep_text: bool = False) -> pd.DataFrame:
    """Text as Arrow holds it where `keep_text`: Python's strings take five times the memory."""
    text = {pa.string(): pd.ArrowDtype(pa.string())} if keep_text else {}
    table = table.unify_dictionaries()
    frame = table.to_pandas(
        types_mapper=text.get, ignore_metadata=True, split_blocks=True, self_destruct=True
    )
    frame.attrs["source"] = str(path)
    return frame


def _open(path: Path):
    if path.suffix == ".gz":
        return gzip.open(path)
    if path.suffix == ".zip":
        archive = zipfile.ZipFile(path)
        files = [f for f in archive.namelist() if not f.endswith("/") and "__MACOSX" not in f]
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
) -> pd.DataFrame:
    """Read a delimited file, packed with gzip or zip or as it is, after any blank lines.

    Args:
        path: of the file.
        separator: None is the one of comma, tab, semicolon and bar that the header has most of, in
            a file where quotes enclose text; where the separator is given they are characters.
        names: of the columns, for files without a header; the file must have so many.
        encoding: of the text.
        choose: names -> (columns to be read, those of them that hold ids). None reads all, and
            finds ids under our own names.
        keep_text: text stays in Arrow's form, for long tables.

    Raises:
        ValueError: another number of columns in some row, another encoding, an empty file, or one
            that is no delimited text.
    """
    header, skipped, quote = names or [], 0, '"' if separator is None else False
    try:
        with _open(path) as file:
            start = file.read(1 << 16)
        if start[:2] in (b"\xff\xfe", b"\xfe\xff") and encoding == "utf-8":
            raise ValueError(
                f'{path} is in the encoding UTF-16, not UTF-8: pass encoding="utf-16".'
            )
        if names is None:
            text = start.decode(encoding, "replace").lstrip("\ufeff")
            blank = re.match(r"(\s*\n)?", text)[0]
            skipped = blank.count("\n")
            first = text[len(blank) :].partition("\n")[0].strip("\r")
            if odd := re.search(r"[\0-\x08\x0e-\x1f]", first):
                raise csv.Error(f"its first line holds {odd[0]!r}")
            separator = separator or max(",\t;|", key=first.count)
            header = next(csv.reader([first], delimiter=separator), [])
        with _open(path) as file:
            table = _read_text(file, separator, quote, names, encoding, header, skipped, choose)
    except csv.Error as error:
        raise ValueError(
            f"{path} is not delimited text with lines that end in \\n ({error}). What is read is "
            ".csv and .tsv, both also packed as .gz or .zip, and .parquet."
        ) from error
    except (pa.ArrowException, OSError, EOFError, zipfile.BadZipFile, UnicodeError) as error:
        if "UTF8" in str(error) or isinstance(error, UnicodeError):
            what = f'is not in the encoding {encoding}: save it as UTF-8, or pass encoding="cp1252"'
        elif "Empty" in str(error):
            what = "is empty: it needs a header"
        else:
            what = f"is not a table of {len(header)} columns separated by {separator!r}"
        raise ValueError(f"{path} {what} ({error})") from error
    for i, name in enumerate(table.column_names):
        # Between tabs or bars a quote may be just a character.
        if quote and separator in "\t|" and _holds_rows(table.column(i), separator):
            raise ValueError(
                f"{path} has other rows inside a value of {name}: a quote isn't closed. Write the "
                "file as .csv, with quotes in texts doubled."
            )
        table = table.set_column(i, name, _typed(table.column(i), name))
    return _to_pandas(table, path, keep_text)


def _holds_rows(texts: pa.ChunkedArray, separator: str) -> bool:
    words = pa.chunked_array([getattr(c, "dictionary", c) for c in texts.chunks], pa.string())
    both = [pc.match_substring(words, part) for part in ("\n", separator)]
    return bool(pc.any(pc.and_(*both)).as_py())


def _read_text(file, separator, quote, names, encoding, header, skipped, choose) -> pa.Table:
    """Everything as text, ids as dictionaries of it."""
    if separator == "::":  # Arrow has separators of one character only
        file, separator = io.BytesIO(file.read().replace(b"::", b"\t")), "\t"
    chosen, ids = choose(header) if choose else (header, [n for n in header if _is_id(n)])
    chosen = [name for name in chosen if name]  # without the row numbers that pandas writes
    return pa.csv.read_csv(
        file,
        pa.csv.ReadOptions(
            column_names=names, encoding=encoding, skip_rows=skipped, use_threads=False
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


def _typed(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """A column of text as numbers, if every value of it is one."""
    if pa.types.is_dictionary(column.type):
        column = column.unify_dictionaries().combine_chunks()
        texts = pc.utf8_trim_whitespace(column.dictionary)  # "1, 2" holds 1 and 2
        ids = untyped_ids(texts.to_numpy(zero_copy_only=False))
        ids, codes = np.unique(ids, return_inverse=True)
        if ids.dtype == object and texts.equals(column.dictionary):
            return pa.chunked_array([column])
        indices = pa.array(codes.astype(np.int32)).take(column.indices)
        return pa.chunked_array([pa.DictionaryArray.from_arrays(indices, pa.array(ids))])
    if name.partition(":")[0] in TEXT or column.null_count == len(column):
        return column
    if pc.any(pc.match_substring_regex(column, r"^[-+]?0\d")).as_py():  # 007 is not 7
        return column
    for kind in (pa.int64(), pa.float64()):
        try:
            return column.cast(kind)
        except pa.ArrowInvalid:
            continue
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
