"""Where datasets live, and where the named ones come from.

They are looked for in the data folders first, then at GroupLens, and MovieLens-100K also in a
wheel on the Python package index. Each step is printed; what isn't whole is not kept.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pooch
import requests

from recsys_helpers.tables import ANY_MAIN_FILE, main_file

GROUPLENS = "https://files.grouplens.org/datasets/movielens/"
# An unreachable host may cost this long, once: it is not tried again in the same process.
ANSWER_SECONDS = 9
RECBOLE = "recbole==1.2.1"
RECBOLE_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"


class Named(NamedTuple):
    """What is known of a dataset that is fetched by name."""

    md5: str | None  # of the zip archive, as GroupLens publishes it; None where it is still updated
    interactions: int


NAMED = {
    "ml-100k": Named("0e33842e24a9c977be4e0107933c0723", 100_000),
    "ml-1m": Named("c4d9eecfca2ab87c1945afe126590906", 1_000_209),
    "ml-latest-small": Named(None, 100_836),
    "ml-32m": Named("d472be332d4daa821edc399621853b57", 32_000_204),
}
# Of the datasets that the book's records were made on, loaded without options.
FINGERPRINTS = {
    "ml-100k": "d443e728957e7b44e3adde87f2cba5ce10c70939136263d21118f73cd49de2cf",
    "ml-1m-order": "04839b903a6eea2163de095aae7e4ad19b57dd20425ebcb9f8f09d3c70b03526",
}
# What is unpacked of the archives and the wheel.
MEMBERS = {"u.data", "u.item", "u.user", "u.genre", "ratings.dat", "movies.dat", "users.dat"}
MEMBERS |= {"ratings.csv", "movies.csv", "README", "README.txt"}
MEMBERS |= {"ml-100k.inter", "ml-100k.item", "ml-100k.user"}
# Not part of a dataset's name: of events.2024.csv.gz that is events.2024.
FILE_SUFFIX = r"(\.(parquet|pq|csv|tsv|txt|inter|data|dat))?(\.(gz|zip))?$"


def data_folders(first: str | os.PathLike | None = None) -> dict[str, Path]:
    """The data folders, in order, by the name a reader knows them by."""
    folders = {}
    if first is not None:
        folders[str(first)] = Path(first).expanduser()
    if os.environ.get("RECSYS_DATA"):
        folders["$RECSYS_DATA"] = Path(os.environ["RECSYS_DATA"]).expanduser()
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "_config.yml").is_file() and (checkout / "data").is_dir():
        # A reader's own folder "data" keeps its name, and comes first.
        folders["data" if "data" not in folders else str(checkout / "data")] = checkout / "data"
    cache = Path(pooch.os_cache("recsys_helpers"))
    home = Path.home()
    shown = f"~/{cache.relative_to(home)}" if cache.is_relative_to(home) else str(cache)
    folders[shown] = cache
    return folders


def shown(path: Path, folders: dict[str, Path]) -> str:
    """`path` as the pages of the book may show it: without the machine's own folders."""
    for name, folder in folders.items():
        if path.is_relative_to(folder):
            return str(Path(name) / path.relative_to(folder))
    return str(path)


def dataset_name(place: str | os.PathLike) -> str:
    """The name of the dataset that a file or folder holds, which needn't be there any more."""
    place = Path(place).expanduser().resolve()
    if place.is_dir() and main_file(place) != place:
        return place.name
    # A file's name says what it holds, or else its folder's does.
    name = re.sub(FILE_SUFFIX, "", place.name, flags=re.IGNORECASE)
    return place.parent.name if name in ("interactions", "ratings", "u") else name


def locate(wanted: str, folders: dict[str, Path], verbose: bool) -> tuple[Path, str, bool]:
    """The file of interactions of a dataset by name or path, downloaded if need be.

    Returns:
        The file; the dataset's name; and whether `ml-1m-order` is still to be made of it, see
        `in_order`.

    Raises:
        ValueError: if there is no such name or path.
        OSError: if a named dataset could be had from no source.
    """
    if wanted in NAMED:
        return find_or_fetch(wanted, folders, sayer(wanted, verbose)), wanted, False
    path = Path(wanted).expanduser()
    # A bare name means something inside a data folder before it means something nearby.
    bare = path.parts == (path.name,)
    for place in [*(folder / path for folder in folders.values() if bare), path]:
        if main := main_file(place):
            return main, dataset_name(place), False
        if wanted == "ml-1m-order" and (
            main_file(place.with_name("ml-1m")) or place.with_name("ml-1m.zip").is_file()
        ):
            break
    if wanted == "ml-1m-order":
        return find_or_fetch("ml-1m", folders, sayer(wanted, verbose)), wanted, True
    raise ValueError(_unknown(wanted, path, folders))


def _unknown(wanted: str, path: Path, folders: dict[str, Path]) -> str:
    if path.is_dir():
        return (
            f"{path} holds no file of interactions: expected one of {ANY_MAIN_FILE}, "
            f"received {sorted(p.name for p in path.iterdir())[:10]}."
        )
    inside = [p for folder in folders.values() if folder.is_dir() for p in folder.iterdir()]
    own = sorted({p.name for p in inside if p.is_dir() and main_file(p)} - set(NAMED))
    return (
        f"Unknown dataset {wanted!r}. Known by name: {', '.join([*NAMED, 'ml-1m-order'])}. "
        f"Other folders of interactions in the data folders ({', '.join(folders)}): "
        f"{', '.join(own) or 'none'}. Or give the path of a file or folder of interactions."
    )


def in_order(ratings: pd.DataFrame) -> pd.DataFrame:
    """MovieLens-1M's ratings as `ml-1m-order` has them.

    In the order of time, ties in the order of the file; without movies that have fewer than five
    ratings, and without times and ratings.
    """
    ratings = ratings.sort_values("timestamp", kind="stable")
    many = ratings.groupby("item_id", observed=True)["item_id"].transform("size") >= 5
    ordered = ratings.loc[many.to_numpy(), ["user_id", "item_id"]].reset_index(drop=True)
    return ordered.assign(position=np.arange(len(ordered)))


def compare(wanted: str, num_rows: int, fingerprint: str, say: Callable) -> None:
    """Say whether a named dataset is the one we know, and warn if it isn't."""
    recorded = FINGERPRINTS.get(wanted)
    if fingerprint == recorded:
        say("the fingerprint is the one of the book's records")
    elif recorded:
        warnings.warn(
            f"{wanted} has the fingerprint {fingerprint[:12]}, the book's records were made on "
            f"{recorded[:12]}: results will differ.",
            stacklevel=3,
        )
    elif wanted in NAMED and num_rows != NAMED[wanted].interactions:
        warnings.warn(
            f"{wanted} has {num_rows:,} interactions here, {NAMED[wanted].interactions:,} at "
            f"GroupLens. If this isn't on purpose, delete its folder and load {wanted} again.",
            stacklevel=3,
        )


def sayer(name: str, verbose: bool) -> Callable[[str], None]:
    """What prints a line about the dataset of that name, or doesn't."""
    return lambda text: print(f"{name}: {text}", flush=True) if verbose else None


def find_or_fetch(name: str, folders: dict[str, Path], say: Callable) -> Path:
    """The file of interactions of a named dataset, downloaded if need be.

    Raises:
        ValueError: if an archive that was put into a data folder by hand isn't GroupLens's.
        OSError: if the dataset could be had from no source.
    """
    for folder_name, folder in folders.items():
        if main := main_file(folder / name):
            return main
        archive = folder / f"{name}.zip"
        if archive.is_file():
            md5 = NAMED[name].md5
            received = pooch.file_hash(str(archive), alg="md5") if md5 else None
            if received != md5:
                raise ValueError(
                    f"{archive} is damaged or not GroupLens's archive: expected md5 {md5}, "
                    f"received {received}. Delete or replace it, and load {name} again."
                )
            say(f"unpacking {shown(archive, folders)}")
            return _keep(name, archive, folders)
        say(f"not in {folder_name}")

    url, failures = f"{GROUPLENS}{name}.zip", []
    sources = {url: _from_grouplens}
    if name == "ml-100k":
        sources[f"the {RECBOLE} wheel on pip's index"] = _from_pip
    for source, fetch in sources.items():
        say(f"fetching {source}")
        try:
            with tempfile.TemporaryDirectory() as temporary:
                main = _keep(name, fetch(name, Path(temporary)), folders)
        except (OSError, ValueError) as error:
            failures.append(f"{source}: {error}")
            say(f"no: {error}")
        else:
            say(f"checked, and kept in {shown(main.parent, folders)}")
            return main
    raise OSError(
        f"{name} could be had from no source.\n- "
        + "\n- ".join(failures)
        + f"\nNothing was kept. By hand: fetch {url} and put it, as it is, into one of these "
        f"folders: {', '.join(map(str, folders.values()))}."
    )


def _from_grouplens(name: str, folder: Path) -> Path:
    if reason := _unreachable(GROUPLENS):
        raise OSError(reason)
    pooch.get_logger().setLevel("WARNING")
    md5 = NAMED[name].md5
    return Path(
        pooch.retrieve(
            f"{GROUPLENS}{name}.zip",
            known_hash=f"md5:{md5}" if md5 else None,
            fname=f"{name}.zip",
            path=folder,
            downloader=pooch.HTTPDownloader(progressbar=True, timeout=30),
        )
    )


@functools.cache
def _unreachable(url: str) -> str | None:
    """Why the host of `url` doesn't answer, or None.

    Asked in a thread, because no timeout of requests covers name resolution, several addresses and
    the handshake together.
    """
    host = urlsplit(url).hostname
    reason = [f"{host} did not answer within {ANSWER_SECONDS} seconds"]

    def ask():
        try:
            requests.get(url, stream=True, timeout=ANSWER_SECONDS).close()
            reason[0] = None
        except requests.RequestException as error:
            reason[0] = f"{host} cannot be reached ({error})"

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return reason[0]


def _from_pip(name: str, folder: Path) -> Path:
    """MovieLens-100K as it travels in a wheel: for readers who reach only a package index."""
    wheel = _pip_download()
    if isinstance(wheel, str):
        raise OSError(wheel)
    if (received := hashlib.sha256(wheel).hexdigest()) != RECBOLE_SHA256:
        raise ValueError(f"expected sha256 {RECBOLE_SHA256}, received {received}")
    path = folder / "recbole.whl"
    path.write_bytes(wheel)
    return path


@functools.cache
def _pip_download() -> bytes | str:
    """The wheel, or why pip has none."""
    command = [sys.executable, "-m", "pip", "download", RECBOLE, "--no-deps", "--retries=0"]
    command += ["--only-binary=:all:", "--quiet", "--disable-pip-version-check"]
    if not {"PIP_DEFAULT_TIMEOUT", "PIP_TIMEOUT"} & set(os.environ):
        command += [f"--timeout={ANSWER_SECONDS}"]
    with tempfile.TemporaryDirectory() as folder:
        pip = subprocess.run([*command, "--dest", folder], capture_output=True, text=True)
        for wheel in Path(folder).glob("*.whl"):
            return wheel.read_bytes()
    return f"pip failed: {(pip.stderr.strip() or 'no message').splitlines()[-1]}"


def _keep(name: str, archive: Path, folders: dict[str, Path]) -> Path:
    """Unpack `archive` into the first data folder that can be written, whole or not at all."""
    for folder in folders.values():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            temporary = tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-")
        except OSError:  # read-only, or not a folder
            continue
        with temporary:
            unpacked = Path(temporary.name) / name
            unpacked.mkdir()
            try:
                with zipfile.ZipFile(archive) as members:
                    for member in members.namelist():
                        base = PurePosixPath(member).name
                        if base in MEMBERS:
                            with members.open(member) as file, (unpacked / base).open("wb") as out:
                                shutil.copyfileobj(file, out)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise ValueError(f"{archive.name} is truncated or corrupt: {error}") from error
            if not main_file(unpacked):
                raise ValueError(f"{archive.name} holds no interactions that we know.")
            try:
                os.replace(unpacked, folder / name)
            except OSError as error:
                if not main_file(folder / name):  # else another process was faster
                    raise OSError(
                        f"{folder / name} is in the way, without interactions: move or delete it, "
                        f"and load {name} again ({error})."
                    ) from error
        return main_file(folder / name)
    raise OSError(f"none of the data folders can be written: {list(map(str, folders.values()))}")
