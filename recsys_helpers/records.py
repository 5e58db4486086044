"""Files of records: JSON that is written whole or not at all, and named where it is damaged."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import tempfile
import zlib
from pathlib import Path, PureWindowsPath
from zipfile import BadZipFile

import numpy as np

from recsys_helpers.fetch import dataset_name


def write_run(path: Path, run: dict | list[dict]) -> Path:
    """Write `run` to `path`, see `writing`."""
    text = as_text(run) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as file:
        file.write(text.encode())
    return path


@contextlib.contextmanager
def writing(path: str | os.PathLike):
    """A temporary binary file that becomes `path` at the end, so that no reader sees half of it."""
    file = tempfile.NamedTemporaryFile(dir=Path(path).parent, delete=False, suffix=".tmp")
    try:
        with file:
            yield file
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
    finally:
        Path(file.name).unlink(missing_ok=True)


def as_text(record) -> str:
    """JSON, of numpy's numbers and arrays too.

    Raises:
        TypeError: on what JSON doesn't have, such as paths.
        ValueError: on NaN and infinity.
    """
    return json.dumps(record, indent=1, allow_nan=False, default=_plain)


def _plain(value):
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"JSON has no {type(value).__name__}.")


def folders_of(dataset: str | os.PathLike | None, folder: Path) -> list[Path]:
    """The folders in `folder` of one dataset, by its name or as `load_dataset` finds it, or all."""
    places = list(folder.glob("*/"))
    if dataset is None:
        return places
    named = [place for place in places if place.name == dataset]
    return named or [folder / dataset_name(dataset)]


def check_name(what: str, name: str) -> None:
    """Raise ValueError if it can't be the name of a file or folder, on any system."""
    if name in ("", "..") or PureWindowsPath(name).name != name:
        raise ValueError(
            f"{what} must be a name without / and \\, as of a file, received {name!r}."
        )


@contextlib.contextmanager
def reading(path: Path):
    """Give every error in what a file holds, or all files of a folder, their name.

    Raises:
        ValueError: if what is done within fails on what it reads.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}). Restore it, or remove it."
        ) from error


def pack(values: np.ndarray) -> dict:
    """Ids or ranks as text: the smallest of int16 and int32, deflated, base64."""
    values = np.asarray(values)
    dtype = "<i2" if values.max() <= np.iinfo(np.int16).max else "<i4"
    content = base64.b64encode(zlib.compress(values.astype(dtype).tobytes(), 9)).decode()
    return {"dtype": dtype, "shape": list(values.shape), "deflated": content}


def unpack(packed: dict | None) -> np.ndarray | None:
    """The array that `pack` was given, int64."""
    if packed is None:
        return None
    content = zlib.decompress(base64.b64decode(packed["deflated"]))
    return np.frombuffer(content, packed["dtype"]).reshape(packed["shape"]).astype(np.int64)
