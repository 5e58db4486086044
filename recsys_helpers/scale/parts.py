"""Work through a folder of Parquet files, part by part, here or on the workers of a cluster.

Each part becomes one file of the same name, written whole or not at all. So nothing is lost and
nothing is there twice when a worker dies: its parts are done again by another, and a job that is
started again does only what is missing.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class EncodeUsers:
    """Inputs of users -> `user_id` and `vector`, float32 [d].

    Args:
        model: folder or file of a saved `TwoTower`; every process loads it once.
        batch_size: users at a time.
    """

    model: str
    batch_size: int = 1024

    def __call__(self, table: pa.Table) -> pa.Table:
        """Encode one part: `user_id`, and a column for each input that the model was trained with.

        An input with several numbers a user, such as the history, is a column of lists that are
        equally long (see `lists`). Other columns are ignored.
        """
        model = _model(self.model, os.stat(self.model).st_mtime_ns)
        names = [name for name in table.column_names if name in model.input_shapes]
        if len(table):
            inputs = {name: matrix(table[name]) for name in names}
        else:  # then lists don't say how long they are
            inputs = {name: np.zeros((0, *model.input_shapes[name][1:]), "i4") for name in names}
        vectors = model.user_vectors(inputs, self.batch_size)
        return pa.table({"user_id": table["user_id"], "vector": lists(vectors)})


@dataclass(frozen=True)
class EncodeItems:
    """`item_id` -> `item_id` and `vector`, float32 [d]; arguments as of `EncodeUsers`."""

    model: str
    batch_size: int = 65_536

    def __call__(self, table: pa.Table) -> pa.Table:
        """Encode one part: `item_id`, from 1 to the model's num_items."""
        model = _model(self.model, os.stat(self.model).st_mtime_ns)
        vectors = model.item_vectors(table["item_id"].to_numpy(), self.batch_size)
        return pa.table({"item_id": table["item_id"], "vector": lists(vectors)})


@dataclass(frozen=True)
class Search:
    """`user_id` and `vector` -> `user_id`, the k best `item_ids` and their `scores`.

    Args:
        index: folder of a saved index.
        kind: its class, `ExactIndex` or `AnnoyIndex`; every process maps it once.
        k: how many items.
    """

    index: str
    kind: type
    k: int = 10

    def __call__(self, table: pa.Table) -> pa.Table:
        """Search for one part; `exclude`, a column of lists of ids, may be there or not."""
        index = _index(self.index, self.kind, os.stat(self.index).st_mtime_ns)
        exclude = table["exclude"].to_pylist() if "exclude" in table.column_names else None
        vectors = matrix(table["vector"]) if len(table) else np.zeros((0, index.dimension))
        ids, scores = index.query(vectors, self.k, exclude)
        return pa.table(
            {"user_id": table["user_id"], "item_ids": lists(ids), "scores": lists(scores)}
        )


@dataclass(frozen=True)
class Report:
    """What `over_parts` did: names of the parts done and of those that were there, and seconds."""

    done: list[str]
    there: list[str]
    seconds: float


def over_parts(
    work, source: str | os.PathLike, destination: str | os.PathLike, client=None
) -> Report:
    """Do `work` on every part of a folder, and write each result under the part's name.

    Args:
        work: what maps one `pyarrow.Table` to another, such as `EncodeUsers(model)`; must be
            picklable.
        source: folder of `*.parquet` files, which every worker can read.
        destination: folder for the results, made if missing, which every worker can write.
            Parts that are there already are not done again, so it can't be the source; parts that
            the source doesn't have are refused, since whoever reads the folder would take them in.
        client: a `dask.distributed.Client`, of this machine or of a scheduler's address; None works
            through the parts here, one after the other.

    Raises:
        FileNotFoundError: if there are no parts.
        ValueError: if source and destination are one folder, there are parts in folders within, or
            the destination has parts that the source doesn't have.
        Exception: whatever `work` raised on a part, with a note that names it, or dask's
            `KilledWorker` if a part ended several workers; other parts are finished first and stay.
    """
    source, destination, start = Path(source), Path(destination), time.perf_counter()
    parts = [path.name for path in parts_of(source, destination)]
    destination.mkdir(parents=True, exist_ok=True)
    if destination.samefile(source):
        raise ValueError(f"expected another folder than the source for the results: {source}.")
    left_over = sorted({path.name for path in destination.glob("*.parquet")}.difference(parts))
    if left_over:
        raise ValueError(
            f"expected in {destination} results of parts of {source} only, received "
            f"{', '.join(left_over)}. Remove them, or name another folder."
        )
    there = [name for name in parts if (destination / name).is_file()]
    todo = [name for name in parts if name not in set(there)]
    jobs = [(work, str(source / name), str(destination / name)) for name in todo]
    if client is None:
        for job in jobs:
            one_part(*job)
    elif jobs:
        # Keys of this call's own: a scheduler remembers what came of those it has met before.
        token = secrets.token_hex(4)
        keys = [f"{name}-{token}" for name in todo]
        futures = client.map(one_part, *zip(*jobs, strict=True), pure=False, key=keys)
        failures = []
        for future in futures:
            with contextlib.suppress(BaseException):
                future.result()
            if future.status != "finished":
                failures.append(future)
        if failures:
            failures[0].result()  # raises
    return Report(todo, there, time.perf_counter() - start)


def parts_of(source: Path, results: Path | None = None) -> list[Path]:
    """The `*.parquet` files of a folder, in the order of their names.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if there are more in folders within, `results` excepted: nobody would miss them.
    """
    parts = sorted(source.glob("*.parquet"))
    if not parts:
        raise FileNotFoundError(f"expected *.parquet files in {source}, found none.")
    deeper = (p for p in source.glob("*/**/*.parquet") if results not in p.parents)
    for path in (p.relative_to(source) for p in deeper):
        if not any(name.startswith((".", "_")) for name in path.parts):  # as Arrow leaves out
            raise ValueError(
                f"expected all parts in {source} itself, received {path}, too. Move it."
            )
    return parts


def one_part(work, source: str, destination: str) -> None:
    """Do one part, and write it whole or not at all."""
    path = Path(destination)
    unfinished = path.with_name(f".{path.name}-{secrets.token_hex(4)}.unfinished")
    try:
        pq.write_table(work(pq.read_table(source)), unfinished)
        os.replace(unfinished, path)
    except Exception as error:
        error.add_note(f"in {source}")
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def matrix(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column of numbers as [n], one of lists that are equally long as [n, width], and so on.

    Raises:
        ValueError: if the lists aren't equally long, or values are missing.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(is_kind(array.type) for is_kind in kinds):
        if array.null_count:
            raise ValueError(f"expected no missing values, received {array.null_count} of them.")
        return array.to_numpy(zero_copy_only=False)
    values = matrix(array.flatten())
    fixed = pa.types.is_fixed_size_list(array.type)  # its width is known without rows, too
    width = array.type.list_size if fixed else len(values) // max(1, len(array))
    lengths = array.drop_null().value_lengths().to_numpy(zero_copy_only=False)
    if array.null_count or not np.all(lengths == width):
        raise ValueError(
            f"expected lists that are equally long in every row, received lengths "
            f"{np.unique(lengths).tolist()[:10]} and {array.null_count} missing."
        )
    return values.reshape(len(array), width, *values.shape[1:])


def lists(rows: np.ndarray) -> pa.Array:
    """An array [n, width, ...] as a column of lists, of lists of lists, and so on."""
    if rows.ndim == 1:
        return pa.array(rows)
    return pa.FixedSizeListArray.from_arrays(
        lists(rows.reshape(-1, *rows.shape[2:])), rows.shape[1]
    )


@cache
def _model(path: str, changed: int):
    import keras

    import recsys_helpers.two_tower  # noqa: F401  Keras is told of the towers

    return keras.models.load_model(path, compile=False)  # the optimizer is twice as large


@cache
def _index(path: str, kind: type, changed: int):
    return kind.load(path)
