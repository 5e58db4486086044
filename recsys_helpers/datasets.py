"""Load MovieLens by name, or a folder of your own interactions, into one shape.

A named dataset is looked for in the data folders first, then at GroupLens, and MovieLens-100K also
in a wheel on the Python package index. Each step is printed. Everything that arrives from elsewhere
is checked before it is kept.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pooch
import requests

GROUPLENS = "https://files.grouplens.org/datasets/movielens/"
# An unreachable host may cost this long, once: it is not tried again in the same process.
FIRST_BYTE_SECONDS = 9
RECBOLE_VERSION = "1.2.1"
RECBOLE_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"


class _Named(NamedTuple):
    md5: str | None  # of the zip archive, as GroupLens publishes it; None where it is still updated
    interactions: int
    main_files: tuple[str, ...]  # any one of them makes a folder this dataset
    other_files: tuple[str, ...]


_CSV = (("ratings.csv",), ("movies.csv", "README.txt"))
NAMED = {
    "ml-100k": _Named(
        "0e33842e24a9c977be4e0107933c0723",
        100_000,
        ("u.data", "ml-100k.inter"),
        ("u.item", "u.user", "u.genre", "README", "ml-100k.item", "ml-100k.user"),
    ),
    "ml-1m": _Named(
        "c4d9eecfca2ab87c1945afe126590906",
        1_000_209,
        ("ratings.dat",),
        ("movies.dat", "users.dat", "README"),
    ),
    "ml-latest-small": _Named(None, 100_836, *_CSV),
    "ml-25m": _Named("6b51fb2759a8657d3bfcbfc42b592ada", 25_000_095, *_CSV),
    "ml-32m": _Named("d472be332d4daa821edc399621853b57", 32_000_204, *_CSV),
}
ANY_MAIN_FILE = (
    "interactions.parquet",
    "interactions.csv",
    *dict.fromkeys(file for named in NAMED.values() for file in named.main_files),
)
# Files whose bytes are known, wherever they were found.
FILE_SHA256 = {
    "u.data": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
    "u.user": "f120e114da2e8cf314fd28f99417c94ae9ddf1cb6db8ce0e4b5995d40e90e62c",
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
}
RATING_COLUMNS = ["user_id", "item_id", "rating", "timestamp"]
USER_COLUMNS_100K = ["user_id", "age", "gender", "occupation", "zip_code"]
USER_COLUMNS_1M = ["user_id", "gender", "age", "occupation", "zip_code"]

_unreachable: dict[str, str] = {}  # host, or "pip" -> why, for the life of the process


@dataclass(frozen=True, eq=False)
class Dataset:
    """Interactions of users with items, numbered from 1 without gaps (0 is padding).

    Attributes:
        name: what it was loaded as.
        interactions: one row per interaction, sorted by user and then time, ties in the order of
            the source. Columns `user_id`, `item_id` (int32), `position` (int32, 0-based rank in
            the user's history) and, where the source has them, `timestamp` (int64, seconds since
            1970) and `rating` (float32).
        users: indexed by `user_id` 1..num_users; `original_id` and, where known, `gender`, `age`,
            `occupation` and `zip_code` (str). In MovieLens-1M ages and occupations are codes.
        items: indexed by `item_id` 1..num_items; `original_id` and, where known, `title` (str),
            `year` (nullable integer) and `genres` (tuple of str).
    """

    name: str
    interactions: pd.DataFrame
    users: pd.DataFrame
    items: pd.DataFrame

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

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the interactions and the original ids.

        Computed from the numbers, so that it depends neither on the file format nor on the
        version of pandas. Titles and demographics are not part of it.
        """
        digest = hashlib.sha256()
        dtypes = {"user_id": "<i4", "item_id": "<i4", "position": "<i4"}
        dtypes |= {"timestamp": "<i8", "rating": "<f4"}
        for column, dtype in dtypes.items():
            if column in self.interactions:
                digest.update(column.encode())
                digest.update(self.interactions[column].to_numpy(dtype).tobytes())
        for table in (self.users, self.items):
            digest.update(b"original_id")
            digest.update(table["original_id"].to_numpy("<i8").tobytes())
        return digest.hexdigest()


def load_dataset(
    name_or_path: str | os.PathLike,
    data_folder: str | os.PathLike | None = None,
    verbose: bool = True,
) -> Dataset:
    """Load a dataset by name, or from a folder.

    A name is looked for in the data folders: `data_folder`, the one the environment variable
    `RECSYS_DATA` names, `data/` of a checkout of this project, the per-user cache. What is in none
    of them is downloaded, checked, and kept in the first folder that can be written.

    Args:
        name_or_path: "ml-100k", "ml-1m", "ml-latest-small", "ml-25m" or "ml-32m"; the name of
            another folder inside a data folder; or the path of a folder. A folder holds either
            GroupLens's own files or `interactions.parquet`/`interactions.csv` with the columns
            user_id, item_id and timestamp (seconds) or position, optionally rating, and optionally
            `users.csv` (user_id, gender, age, occupation, zip_code) and `items.csv` (item_id,
            title, year, genres separated by "|").
        data_folder: looked in before the other data folders.
        verbose: print every step.

    Returns:
        The dataset. Users and items are numbered by ascending original id; items that nobody
        interacted with are dropped.

    Raises:
        ValueError: unknown name; files with other columns, non-integer ids, duplicate (user, item)
            pairs, a user with fewer than three interactions, another checksum or number of rows
            than the named dataset has; a damaged archive.
        OSError: the dataset could be had from no source; the message says from where it can be
            fetched by hand.
    """

    def say(text: str) -> None:
        if verbose:
            print(f"{path.name}: {text}", flush=True)

    path = Path(name_or_path)
    folders = _data_folders(data_folder)
    if str(name_or_path) in NAMED:
        main = _find_or_fetch(path.name, folders, say)
    else:
        # A bare name means a folder inside a data folder before it means one next to the reader.
        bare = path.parts == (path.name,)
        places = [*(folder / path for folder in folders.values() if bare), path]
        main = next((main for main in map(_main_file, places) if main), None)
        if main is None:
            raise ValueError(_unknown(name_or_path, path, folders))
    dataset = _number(path.name, *_read(main))
    say(
        f"{dataset.num_users:,} users, {dataset.num_items:,} items, "
        f"{len(dataset.interactions):,} interactions, read from {_shown(main.parent, folders)}"
    )
    return dataset


# Where datasets are kept


def _data_folders(argument) -> dict[str, Path]:
    """The data folders, in order, by the name a reader knows them by."""
    folders = {}
    if argument is not None:
        folders[str(argument)] = Path(argument)
    if os.environ.get("RECSYS_DATA"):
        folders["$RECSYS_DATA"] = Path(os.environ["RECSYS_DATA"])
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "_config.yml").is_file() and (checkout / "data").is_dir():
        folders["data"] = checkout / "data"
    cache = Path(pooch.os_cache("recsys_helpers"))
    home = Path.home()
    shown = f"~/{cache.relative_to(home)}" if cache.is_relative_to(home) else str(cache)
    folders[shown] = cache
    return folders


def _shown(path: Path, folders: dict[str, Path]) -> str:
    """`path` as the pages of the book may show it: without the machine's own folders."""
    for name, folder in folders.items():
        if path == folder or folder in path.parents:
            return str(Path(name) / path.relative_to(folder))
    return str(path)


def _main_file(folder: Path, names: tuple[str, ...] = ANY_MAIN_FILE) -> Path | None:
    """The file of interactions in `folder`, if it has one (of these names)."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _unknown(name, path: Path, folders: dict[str, Path]) -> str:
    if path.is_dir():
        return (
            f"{path} holds no file of interactions: expected one of {', '.join(ANY_MAIN_FILE)}, "
            f"received {sorted(p.name for p in path.iterdir())[:10]}."
        )
    inside = [p for folder in folders.values() if folder.is_dir() for p in folder.iterdir()]
    own = sorted({p.name for p in inside if _main_file(p)} - set(NAMED))
    return (
        f"Unknown dataset {str(name)!r}. Known by name: {', '.join(NAMED)}. "
        f"Other folders of interactions in the data folders ({', '.join(folders)}): "
        f"{', '.join(own) or 'none'}. Or give the path of a folder of interactions."
    )


def _find_or_fetch(name: str, folders: dict[str, Path], say) -> Path:
    """The file of interactions of the named dataset, checked; downloaded if need be."""
    named = NAMED[name]
    for shown, folder in folders.items():
        if main := _main_file(folder / name, named.main_files):
            _verify(name, main)
            return main
        archive = folder / f"{name}.zip"
        if archive.is_file():
            received = pooch.file_hash(str(archive), alg="md5") if named.md5 else None
            if received != named.md5:
                raise ValueError(
                    f"{archive} is damaged or not GroupLens's archive: expected md5 {named.md5}, "
                    f"received {received}. Delete it and load {name} again, or replace it."
                )
            say(f"unpacking {_shown(archive, folders)}")
            return _keep(name, archive, folders)
        say(f"not in {shown}")

    failures = []
    sources = [(GROUPLENS + f"{name}.zip", _from_grouplens)]
    if name == "ml-100k":
        sources.append((f"the recbole=={RECBOLE_VERSION} wheel on pip's index", _from_recbole))
    for source, fetch in sources:
        say(f"fetching {source}")
        try:
            with tempfile.TemporaryDirectory() as temporary:
                main = _keep(name, fetch(name, Path(temporary)), folders)
        except (OSError, ValueError) as error:
            failures.append(f"{source}: {error}")
            say(f"no: {error}")
        else:
            say(f"checked, and kept in {_shown(main.parent, folders)}")
            return main
    raise OSError(
        f"{name} could be had from no source.\n- "
        + "\n- ".join(failures)
        + f"\nNothing was kept. By hand: fetch {GROUPLENS}{name}.zip and put it, as it is, into "
        f"one of these folders: {', '.join(map(str, folders.values()))}."
    )


def _from_grouplens(name: str, temporary: Path) -> Path:
    url = GROUPLENS + f"{name}.zip"
    host = urlsplit(url).hostname
    if host not in _unreachable:
        _probe(url, host)
    if host in _unreachable:
        raise OSError(_unreachable[host])
    pooch.get_logger().setLevel("WARNING")
    md5 = NAMED[name].md5
    try:
        path = pooch.retrieve(
            url,
            known_hash=f"md5:{md5}" if md5 else None,
            fname=f"{name}.zip",
            path=temporary,
            downloader=pooch.HTTPDownloader(progressbar=True, timeout=30),
        )
    except ValueError as error:  # pooch has removed the file
        raise ValueError(f"checksum mismatch, file removed ({error})") from error
    return Path(path)


def _probe(url: str, host: str) -> None:
    """Note `host` as unreachable unless the first byte of `url` arrives in time.

    In a thread, because no timeout of requests covers name resolution, several addresses and the
    handshake together. Certificates are always verified.
    """

    def read_first_byte():
        try:
            with requests.get(url, stream=True, timeout=FIRST_BYTE_SECONDS) as response:
                response.raise_for_status()
                next(response.iter_content(1))
            _unreachable.pop(host, None)
        except (OSError, StopIteration, ValueError) as error:  # requests' errors are OSErrors
            reason = str(error).rsplit("Caused by ", 1)[-1].rstrip(")")
            _unreachable[host] = f"{host} cannot be reached ({type(error).__name__}: {reason})"

    _unreachable[host] = f"{host} did not answer within {FIRST_BYTE_SECONDS} seconds"
    thread = threading.Thread(target=read_first_byte, daemon=True)
    thread.start()
    thread.join(FIRST_BYTE_SECONDS)


def _from_recbole(name: str, temporary: Path) -> Path:
    """MovieLens-100K as it travels in a wheel: for readers who reach only a package index."""
    if "pip" in _unreachable:
        raise OSError(_unreachable["pip"])
    command = [sys.executable, "-m", "pip", "download", f"recbole=={RECBOLE_VERSION}"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(temporary)]
    command += ["--retries=0", "--quiet", "--disable-pip-version-check"]
    if not {"PIP_DEFAULT_TIMEOUT", "PIP_TIMEOUT"} & set(os.environ):
        command += [f"--timeout={FIRST_BYTE_SECONDS}"]
    try:
        pip = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired as error:
        raise OSError("pip did not finish within ten minutes") from error
    wheels = list(temporary.glob("*.whl"))
    if pip.returncode or not wheels:
        reason = [line for line in pip.stderr.splitlines() if line.strip()][-1:]
        _unreachable["pip"] = f"pip failed: {reason[0] if reason else 'no message'}"
        raise OSError(_unreachable["pip"])
    received = pooch.file_hash(str(wheels[0]), alg="sha256")
    if received != RECBOLE_SHA256:
        raise ValueError(
            f"checksum mismatch, file removed: expected sha256 {RECBOLE_SHA256}, "
            f"received {received}"
        )
    return wheels[0]


def _keep(name: str, archive: Path, folders: dict[str, Path]) -> Path:
    """Unpack `archive` into the first data folder that can be written, whole or not at all."""
    for folder in folders.values():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            temporary = tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-")
        except OSError:  # read-only, or not a folder
            continue
        main_files = NAMED[name].main_files
        with temporary:
            unpacked = Path(temporary.name) / name
            unpacked.mkdir()
            _unpack(archive, unpacked, {*main_files, *NAMED[name].other_files})
            main = _main_file(unpacked, main_files)
            if not main:
                raise ValueError(f"{archive.name} holds none of {', '.join(main_files)}.")
            _verify(name, main)
            try:
                os.replace(unpacked, folder / name)
            except OSError:
                if not _main_file(folder / name, main_files):
                    raise  # else another process was faster, and has checked it too
        return folder / name / main.name
    raise OSError(f"none of the data folders can be written: {list(map(str, folders.values()))}")


def _unpack(archive: Path, folder: Path, wanted: set[str]) -> None:
    try:
        with zipfile.ZipFile(archive) as members:
            for member in members.namelist():
                path = PurePosixPath(member.replace("\\", "/"))
                if path.is_absolute() or ".." in path.parts or ":" in path.as_posix().split("/")[0]:
                    raise ValueError(
                        f"{archive.name} is refused: its member {member!r} leaves the folder."
                    )
            for member in members.infolist():
                name = PurePosixPath(member.filename).name
                if name in wanted and not member.is_dir() and not (folder / name).exists():
                    (folder / name).write_bytes(members.read(member))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{archive.name} is truncated or corrupt: {error}") from error


def _verify(name: str, main: Path) -> None:
    """Check what is known of a named dataset's files: bytes where pinned, rows always."""
    again = f"Delete {main.parent} and load {name} again."
    for file, expected in FILE_SHA256.items():
        path = main.parent / file
        if path.is_file() and (received := pooch.file_hash(str(path))) != expected:
            raise ValueError(
                f"{path} is not {name}'s: expected sha256 {expected}, received {received}. {again}"
            )
    rows, last = 0, b"\n"
    with main.open("rb") as file:
        while block := file.read(1 << 24):
            rows, last = rows + block.count(b"\n"), block[-1:]
    rows += (last != b"\n") - (main.suffix in (".csv", ".inter"))  # the header is no row
    if rows != NAMED[name].interactions:
        raise ValueError(
            f"{main} is not {name}'s: expected {NAMED[name].interactions:,} rows, "
            f"received {rows:,}. {again}"
        )


# Formats. Each reader returns interactions, users, items with original ids; the last two or None


def _read(main: Path) -> tuple[pd.DataFrame, pd.DataFrame | None, pd.DataFrame | None]:
    readers = {
        "u.data": _read_100k,
        "ml-100k.inter": _read_recbole,
        "ratings.dat": _read_1m,
        "ratings.csv": _read_csv_release,
    }
    return readers.get(main.name, _read_own)(main)


def _read_100k(main: Path):
    users = _table(main.with_name("u.user"), "|", USER_COLUMNS_100K, "latin-1")
    genres = _table(main.with_name("u.genre"), "|", ["genre", "code"], "latin-1")["genre"]
    columns = ["item_id", "title", "release_date", "video_date", "url", *genres]
    items = _table(main.with_name("u.item"), "|", columns, "latin-1")
    items["genres"] = ["|".join(genres[row]) for row in items[list(genres)].to_numpy() == 1]
    return _table(main, "\t", RATING_COLUMNS), users, items


def _read_recbole(main: Path):
    interactions, users, items = (
        _table(main.with_suffix(suffix), "\t").rename(columns=lambda name: name.split(":")[0])
        for suffix in (".inter", ".user", ".item")
    )
    # Titles come without their years. Item 267, whose title and year are unknown, is misspelt.
    with_year = items["movie_title"] + " (" + items["release_year"].astype(str) + ")"
    items["title"] = with_year.mask(items["movie_title"] == "unkonwn", "unknown")
    items["genres"] = items["class"].str.replace(" ", "|")
    return interactions, users, items.drop(columns="release_year")


def _read_1m(main: Path):
    return (
        _table(main, "::", RATING_COLUMNS),
        _table(main.with_name("users.dat"), "::", USER_COLUMNS_1M, "latin-1"),
        _table(main.with_name("movies.dat"), "::", ["item_id", "title", "genres"], "latin-1"),
    )


def _read_csv_release(main: Path):
    names = {"userId": "user_id", "movieId": "item_id"}
    items = _table(main.with_name("movies.csv"), ",").rename(columns=names)
    return _table(main, ",").rename(columns=names), None, items


def _read_own(main: Path):
    users, items = main.with_name("users.csv"), main.with_name("items.csv")
    return (
        pd.read_parquet(main) if main.suffix == ".parquet" else _table(main, ","),
        _table(users, ",") if users.is_file() else None,
        _table(items, ",") if items.is_file() else None,
    )


def _table(path: Path, separator: str, columns=None, encoding="utf-8-sig") -> pd.DataFrame:
    """Read a delimited file; `columns` for files without a header, which must have so many."""
    source = path
    if separator == "::":  # pandas is fast with one-character separators only
        source, separator = io.BytesIO(path.read_bytes().replace(b"::", b"\t")), "\t"
    text = ("title", "movie_title:token_seq", "zip_code", "zip_code:token")
    try:
        table = pd.read_csv(
            source,
            sep=separator,
            header=None if columns else 0,
            index_col=False,
            encoding=encoding,
            quoting=csv.QUOTE_MINIMAL if separator == "," else csv.QUOTE_NONE,
            keep_default_na=False,  # a movie may be called "None"
            na_values=[""],
            dtype={columns.index(c): str for c in text if c in columns}
            if columns
            else dict.fromkeys(text, str),
            low_memory=False,
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a table separated by {separator!r}: {error}") from error
    if columns:
        if table.shape[1] != len(columns):
            raise ValueError(
                f"{path} has {table.shape[1]} columns separated by {separator!r}, "
                f"expected {len(columns)}: {columns}."
            )
        table.columns = columns
    return table


# From a source's tables to a Dataset


def _number(name: str, interactions, users, items) -> Dataset:
    """Check, sort and number the tables that a reader returned."""
    order = next((c for c in ("position", "timestamp") if c in interactions), None)
    missing = [c for c in ("user_id", "item_id") if c not in interactions]
    if missing or order is None:
        raise ValueError(
            f"{name}: interactions need the columns user_id, item_id and timestamp or position, "
            f"received {list(interactions.columns)}."
        )
    if interactions.empty:
        raise ValueError(f"{name}: there are no interactions.")
    original_users = _integers(interactions["user_id"], f"{name}: user_id")
    original_items = _integers(interactions["item_id"], f"{name}: item_id")
    user_ids, user = np.unique(original_users, return_inverse=True)
    item_ids, item = np.unique(original_items, return_inverse=True)

    pair = user.astype(np.int64) * len(item_ids) + item
    repeated = pd.Series(pair).duplicated()
    if repeated.any():
        row = int(np.flatnonzero(repeated)[0])
        raise ValueError(
            f"{name}: {int(repeated.sum())} duplicate (user, item) pairs, the first being user "
            f"{original_users[row]} with item {original_items[row]}. Keep one row of each pair."
        )
    counts = np.bincount(user)
    if counts.min() < 3:
        row = int(counts.argmin())
        raise ValueError(
            f"{name}: user {user_ids[row]} has {counts[row]} interactions; every user needs three "
            f"(one each to train, validate and test on). {int((counts < 3).sum())} users have "
            "fewer: drop their rows."
        )

    table = {"user_id": (user + 1).astype(np.int32), "item_id": (item + 1).astype(np.int32)}
    keys = _integers(interactions[order], f"{name}: {order}")
    rows = np.lexsort((keys, user))  # stable: ties keep the order of the file
    first = np.cumsum(counts) - counts
    table["position"] = np.empty(len(user), np.int32)
    table["position"][rows] = np.arange(len(user)) - np.repeat(first, counts)
    if "timestamp" in interactions:
        table["timestamp"] = _integers(interactions["timestamp"], f"{name}: timestamp")
    if "rating" in interactions:
        table["rating"] = pd.to_numeric(interactions["rating"]).to_numpy(np.float32)
    return Dataset(
        name=name,
        interactions=pd.DataFrame({column: values[rows] for column, values in table.items()}),
        users=_features(f"{name}: users", users, "user_id", user_ids),
        items=_features(f"{name}: items", items, "item_id", item_ids),
    )


def _integers(column: pd.Series, what: str) -> np.ndarray:
    if not pd.api.types.is_integer_dtype(column.dtype) or column.isna().any():
        odd = column[pd.to_numeric(column, errors="coerce").mod(1).ne(0)]
        raise ValueError(
            f"{what} must hold integers only, received {column.dtype} values such as "
            f"{(odd if len(odd) else column).iloc[0]!r}."
        )
    return column.to_numpy(np.int64)


def _features(what: str, table: pd.DataFrame | None, key: str, ids: np.ndarray) -> pd.DataFrame:
    """The rows of `table` that belong to `ids`, numbered; columns we know, in one form."""
    numbered = pd.DataFrame({"original_id": ids}, index=pd.RangeIndex(1, len(ids) + 1, name=key))
    if table is None:
        return numbered
    if key not in table:
        raise ValueError(f"{what} need the column {key}, received {list(table.columns)}.")
    table = table.set_index(pd.Index(_integers(table[key], f"{what}, {key}")))
    if not table.index.is_unique:
        raise ValueError(f"{what}: {key} {table.index[table.index.duplicated()][0]} occurs twice.")
    table = table.reindex(ids)
    if "title" in table:
        table["title"] = table["title"].str.strip()
        if "year" not in table:
            # "Toy Story (1995)", "Series (2006-2007)", "Series (2011- )", "Video (1995) (V)"
            pattern = r"\((\d{4})(?:[-\u2013]\s?(?:\d{4})?)?\)(?: \(V\))?$"
            year = table["title"].str.extract(pattern)[0]
            table["year"] = pd.to_numeric(year)
    if "year" in table:
        table["year"] = table["year"].astype("Int64")
    if "genres" in table:
        none = ("unknown", "(no genres listed)")
        table["genres"] = [
            tuple(g for g in text.split("|") if g and g not in none)
            for text in table["genres"].fillna("").astype(str)
        ]
    for column in ("gender", "age", "occupation", "zip_code", "title", "year", "genres"):
        if column in table:
            numbered[column] = table[column].array
    return numbered
