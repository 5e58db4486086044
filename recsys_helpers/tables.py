"""The tables of interactions, users and items as they lie in files.

What the columns mean is decided later, see `Dataset.from_tables`; how delimited text and Parquet
are read, in `delimited` and `parquet`.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from recsys_helpers.delimited import plain_name, read_delimited, with_missing
from recsys_helpers.parquet import PARQUET, read_parquet

ROLES = ("user_id", "item_id", "timestamp", "position", "rating")
# Other names of the columns we know, in small letters and without signs.
ALIASES = {
    "user_id": "userid user uid customerid customer visitorid memberid reviewerid".split(),
    "item_id": "itemid item iid movieid movie productid product sku asin trackid songid "
    "articleid bookid".split(),
    "timestamp": "timestamp ts time unixtime date datetime eventtime createdat".split(),
    "genres": ["genres", "genre"],
    "zip_code": ["zipcode"],
}
GROUPLENS_FILES = ("u.data", "ratings.dat", "ratings.csv")
DELIMITED = tuple(f".{kind}{packed}" for kind in ("csv", "tsv") for packed in ("", ".gz", ".zip"))
SUFFIXES = (*PARQUET, *DELIMITED)
ANY_MAIN_FILE = f"interactions{{{','.join(SUFFIXES)}}}, one *.inter, {', '.join(GROUPLENS_FILES)}"
ANY_MAIN_FILE += ", or part-*.parquet"
# What looks as if it told of users and items, whether it is read or not.
SIDE_FILE = re.compile(r"(users?|items?|movies?|products?)\.|u\.(user|item)$", re.IGNORECASE)
RATING_COLUMNS = ["user_id", "item_id", "rating", "timestamp"]
USER_COLUMNS_100K = ["user_id", "age", "gender", "occupation", "zip_code"]
USER_COLUMNS_1M = ["user_id", "gender", "age", "occupation", "zip_code"]

Tables = tuple[pd.DataFrame, pd.DataFrame | None, pd.DataFrame | None]


def dicts(**options) -> dict[str, dict[str, str]]:
    """Options that are dicts of text or None, as dicts of the caller's own; 0 may name a column."""
    for name, given in options.items():
        if not isinstance(given, Mapping | None):
            raise TypeError(f"{name} must be a dict, column -> text, received {given!r}.")
        for key, value in (given or {}).items():
            if not isinstance(value, str | int | None) or value == "":
                raise TypeError(f"{name} must be column -> text, received {value!r} for {key!r}.")
    return {
        name: {k: str(v) for k, v in (given or {}).items() if v is not None}
        for name, given in options.items()
    }


def frame(table) -> pd.DataFrame:
    """A data frame whose ids are columns and whose columns have text for names."""
    if isinstance(table, str | os.PathLike | None):
        raise TypeError(f"expected a table, received {table!r}; files are for load_dataset.")
    if isinstance(table, pa.Table):
        table = table.to_pandas(types_mapper=with_missing(table).get)
    elif not isinstance(table, pd.DataFrame):
        try:
            table = table.to_pandas() if hasattr(table, "to_pandas") else pd.DataFrame(table)
        except (TypeError, ValueError) as error:
            raise TypeError(
                "expected a table (a data frame, an Arrow table, a dict of columns), received "
                f"{str(table)[:100]} ({type(table).__name__}): {error}"
            ) from error
    if any(table.index.names):
        if twice := [name for name in table.index.names if name in table]:
            raise ValueError(f"{twice[0]!r} is a column and the index: rename or drop one of them.")
        table = table.reset_index()
    names = [str(column) for column in table]
    return table if names == list(table) else table.set_axis(names, axis=1)


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
        wanted: names of ours.
        columns: our name -> theirs, as the caller knows it; it need not be in a side table.
        what: the table's name for messages.
        side: a table of users or items, where the id may also be called `id`.
        say: prints what was guessed.

    Raises:
        ValueError: if a column that was named is not there, there are several candidates, or one
            column is named for two.
    """
    names = [name for name in names if name]  # a spreadsheet's empty columns
    repeated = pd.Index(names).duplicated()
    if repeated.any():
        raise ValueError(
            f"{what} has two columns {names[int(repeated.argmax())]!r}; rename one (a file's first "
            "line must name them)."
        )
    found = {}
    for ours in wanted:
        theirs = columns.get(ours)
        given_away = {columns[role] for role in ROLES if role in columns and role != ours}
        if theirs in names:
            found[ours] = theirs
        elif theirs is not None and not side:
            raise ValueError(
                f"{what} has no column {theirs!r}, which was named for {ours}; received {names}."
            )
        elif ours in names and ours not in given_away:
            found[ours] = ours
        else:
            taken = {*columns.values(), *found.values()}
            known = ALIASES.get(ours, [ours]) + ["id"] * (side and ours in ROLES)
            alike = [n for n in names if plain_name(n) in known and n not in taken]
            if len(alike) > 1:
                raise ValueError(
                    f"{what}: {ours} may be any of the columns {alike}. Say which, for example "
                    f"columns={{{ours!r}: {alike[0]!r}}}."
                )
            if alike:
                found[ours] = alike[0]
                say(f"{what}: {ours} is read from the column {alike[0]!r}")
    both = [ours for ours, theirs in found.items() if list(found.values()).count(theirs) > 1]
    if both:
        raise ValueError(f"{what}: {' and '.join(both)} can't be one column, {found[both[0]]!r}.")
    return found


def main_file(path: Path) -> Path | None:
    """The file (or Parquet folder) of interactions that `path` is or holds; None if there is none.

    Of several RecBole datasets in one folder it is the one that is called like the folder.
    """
    if path.is_file() or path.suffix.lower() in PARQUET and path.is_dir():
        return path
    if any(path.glob("part-*.parquet")):
        return path
    names = [f"interactions{suffix}" for suffix in SUFFIXES]
    names += [f"ratings{suffix}" for suffix in DELIMITED[1:]]
    names += [*GROUPLENS_FILES, f"{path.name}.inter"]
    for name in names:
        if (path / name).exists():
            return path / name
    atomic = list(path.glob("*.inter")) if path.is_dir() else []
    if not atomic and any(path.glob("*=*/**/*.parquet")):
        return path
    return atomic[0] if len(atomic) == 1 else None


def read_tables(
    main: Path,
    columns: dict[str, str] | None = None,
    encoding: str = "utf-8",
    say: Callable = lambda text: None,
) -> tuple[Tables, dict[str, str]]:
    """Read the interactions in `main`, and the users and items that lie beside them.

    Args:
        main: GroupLens's `u.data`, `ratings.dat` or `ratings.csv`, a RecBole `.inter` file, or a
            table of any other name.
        columns: see `Dataset.from_tables`; other columns of interactions are not read.
        encoding: of text; "utf-8" takes text beside `u.data` and `ratings.dat` that is none for
            GroupLens's latin-1.
        say: prints what isn't read.

    Returns:
        Interactions, users and items (the last two or None), each with `attrs["source"]`, the
        file's path; and separators of fields of several values where the format has its own.

    Raises:
        ValueError: what is no table of that form; the message names the file.
    """
    if not isinstance(encoding, str):
        raise TypeError(f'encoding must be a name such as "cp1252", received {encoding!r}.')
    with contextlib.suppress(LookupError):  # reading says which file needs it
        encoding = codecs.lookup(encoding).name
    separators = {}
    if main.suffix == ".inter":
        tables, separators = _read_recbole(main, encoding)
        beside = f"{main.stem}.user and {main.stem}.item"
    elif main.name == "u.data":
        tables = _read_100k(main, encoding, say)
        beside = "u.user and u.item"
    elif main.name == "ratings.dat":
        tables = (
            read_delimited(main, "::", RATING_COLUMNS),
            _beside(main, "users.dat", "::", USER_COLUMNS_1M, encoding),
            _beside(main, "movies.dat", "::", ["item_id", "title", "genres"], encoding),
        )
        beside = "users.dat and movies.dat"
    else:
        tables = _read_own(main, columns or {}, encoding, say)
        beside = f"files called so, with the first there is of {', '.join(SUFFIXES)}"
    release_memory()
    known = {table.attrs["source"].lower() for table in tables if table is not None}
    known |= {*tables[0].attrs.pop("not_read", ())}
    for path in sorted(main.parent.glob("*")):
        if SIDE_FILE.match(path.name) and str(path).lower() not in known:
            say(f"{path.name} isn't read: users and items are read from {beside}")
    return tables, separators


def release_memory() -> None:
    """Let go of what Arrow keeps after reading: gigabytes, after a long table."""
    pa.default_memory_pool().release_unused()


def _beside(main: Path, name: str, separator: str, names, encoding) -> pd.DataFrame | None:
    path = main.with_name(name)
    if not path.is_file():
        return None
    if encoding == "utf-8":
        try:
            path.read_text(encoding)
        except UnicodeDecodeError:
            encoding = "latin-1"
    return read_delimited(path, separator, names, encoding)


def _read_100k(main: Path, encoding: str, say: Callable) -> Tables:
    genres = _beside(main, "u.genre", "|", ["genre", "code"], encoding)
    about = ["item_id", "title", "release_date", "video_date", "url"]
    items, kept = None, ["item_id", "title"]
    if (path := main.with_name("u.item")).is_file():
        with path.open("rb") as file:
            flags = range(len(about), file.readline().count(b"|") + 1)
        names = [f"flag {i}" for i in flags] if genres is None else list(genres["genre"])
        items = _beside(main, "u.item", "|", about + names, encoding)
        if genres is None:
            say("u.item is read without genres: their names are in u.genre, which isn't there")
        else:
            flags = items[names].to_numpy() == 1
            items["genres"] = [tuple(np.array(names, object)[row]) for row in flags]
            kept.append("genres")
        items = items[kept]
    users = _beside(main, "u.user", "|", USER_COLUMNS_100K, encoding)
    return read_delimited(main, "\t", RATING_COLUMNS), users, items


def _read_recbole(main: Path, encoding: str) -> tuple[Tables, dict[str, str]]:
    """RecBole's atomic files; their headers say `name:type`, and sequences are set with blanks."""
    tables, separators = [], {}
    for suffix in (".inter", ".user", ".item"):
        path = main.with_suffix(suffix)
        table = read_delimited(path, "\t", encoding=encoding) if path.is_file() else None
        if table is not None:
            kinds = dict(name.partition(":")[::2] for name in table.columns)
            if len(kinds) < len(table.columns):
                raise ValueError(f"{path} has a column twice: {list(table.columns)}. Rename one.")
            table.columns = list(kinds)
            names = {"movie_title": "title", "release_year": "year", "class": "genres"}
            names = {a: b for a, b in (names | {"genre": "genres"}).items() if b not in kinds}
            table = table.rename(columns=names)
            found = {names.get(name, name) for name, kind in kinds.items() if kind == "token_seq"}
            separators |= dict.fromkeys(found - {"title"}, " ")
        tables.append(table)
    items = tables[2]
    if main.name == "ml-100k.inter" and items is not None:
        # Titles come without their years. Item 267, whose title and year are unknown, is misspelt.
        with_year = items["title"] + " (" + items["year"].astype(str) + ")"
        items["title"] = with_year.mask(items["title"] == "unkonwn", "unknown")
        items.drop(columns="year", inplace=True)
    return tuple(tables), separators


def _read_own(main: Path, columns: dict[str, str], encoding: str, say: Callable) -> Tables:
    interactions = read_table(main, columns, encoding, ROLES)
    folder = main.parent
    sides = []
    for stem, key, others in (("users", "user_id", ()), ("items", "item_id", ("movies.csv",))):
        names = [*(stem + suffix for suffix in SUFFIXES), *others]
        path = next((folder / name for name in names if (folder / name).exists()), None)
        side = read_table(path, columns, encoding, (key,), side=True) if path else None
        if side is not None and main.name.partition(".")[0] not in ("interactions", "ratings"):
            if not find_columns(list(side), (key,), columns, str(path), side=True):
                say(f"{path.name} isn't read: it has no column {key}")  # another matter's
                interactions.attrs.setdefault("not_read", []).append(str(path).lower())
                side = None
        sides.append(side)
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

    if path.suffix.lower() not in PARQUET and not path.is_dir():
        text = {columns[name] for name in ("title", "zip_code") if name in columns}
        return read_delimited(path, None, None, encoding, choose, not side, text)
    return read_parquet(path, choose, log=not side)
