"""The split of the book where one machine's memory ends: DuckDB, which spills to disk."""

from __future__ import annotations

import math
import os
import secrets
import shutil
from numbers import Real
from pathlib import Path

from recsys_helpers.columns import NONE
from recsys_helpers.scale.parts import parts_of

READ = dict.fromkeys(("user_id", "item_id"), "whole numbers below 2**53 or text")
READ["timestamp"] = "numbers or times"
ORDER = "timestamp, file, position"  # events of the same time keep the order of the source


def leave_last_out(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    min_item_interactions: int = 5,
    memory: str = "",
) -> dict[str, int]:
    """`splits.leave_last_out` of a folder of Parquet files, row for row, without a Dataset.

    Writes `train.parquet`, `validation.parquet` and `test.parquet` with `user_id`, `item_id` and
    `timestamp`, each user's events in their order, and `users.parquet` and `items.parquet` with the
    `original_id` of each number. The folder appears when all of it is there.

    Args:
        source: `*.parquet` with `user_id`, `item_id` and `timestamp`, in one unit, one row an
            event; of the events of a user with the same item the first counts.
        destination: a folder that doesn't exist yet.
        min_item_interactions: items with fewer are dropped, and users with fewer than three, until
            nothing changes.
        memory: how much DuckDB may hold, such as "2GB"; what is more goes to disk beside
            `destination`.

    Returns:
        Rows of each file.

    Raises:
        FileExistsError: if `destination` is there.
        FileNotFoundError: if there are no files.
        ValueError: if a column, a user, an item or a time is missing or can't be one, there are
            parts in folders within, or nothing is left.
    """
    import duckdb

    source, destination = Path(source), Path(destination)
    if not isinstance(min_item_interactions, Real) or not math.isfinite(min_item_interactions):
        raise ValueError(
            f"min_item_interactions must be a number, 0 to drop no item, received "
            f"{min_item_interactions!r}."
        )
    if destination.exists():
        raise FileExistsError(f"{destination} is there already: remove it, or name another folder.")
    unfinished = destination.with_name(f".{destination.name}-{secrets.token_hex(4)}")
    unfinished.mkdir(parents=True)
    try:
        with duckdb.connect(str(unfinished / "work.duckdb")) as engine:
            if memory:
                try:
                    engine.execute(f"SET memory_limit = '{memory}'")
                except duckdb.Error as error:
                    raise ValueError(
                        f'memory must be such as "2GB", received {memory!r}.'
                    ) from error
            engine.execute("SET preserve_insertion_order = false")
            try:
                _read(engine, source)
            except (duckdb.DataError, duckdb.ProgrammingError) as error:
                raise ValueError(
                    f"{source} must hold Parquet files with columns of one type each, received: "
                    f"{str(error).splitlines()[0]}"
                ) from error
            counts = _split(engine, unfinished, min_item_interactions)
        for path in unfinished.glob("work.duckdb*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        os.rename(unfinished, destination)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return counts


def _read(engine, source: Path) -> None:
    """Make the table `events`, of what a Dataset would take, too."""
    files = list(map(str, parts_of(source)))
    # By name, each column in a type that holds what any file has: else 1.4 may be rounded to 1.
    described = engine.execute(
        "DESCRIBE SELECT * FROM read_parquet(?, union_by_name = true)", [files]
    ).fetchall()
    kinds = {name.lower(): kind for name, kind, *_ in described}
    if not READ.keys() <= kinds.keys() or "file_row_number" in kinds:
        raise ValueError(
            f"expected the columns user_id, item_id and timestamp in {source}, and none named "
            f"file_row_number, received {', '.join(kinds)}. Rename them."
        )
    engine.execute(
        """CREATE TABLE events AS
           SELECT user_id, item_id, timestamp, _part AS file, file_row_number AS position
           FROM read_parquet(?, union_by_name = true, filename = '_part',
                             file_row_number = true)""",
        [files],
    )
    missing = engine.execute(
        "SELECT count(*) FROM events WHERE user_id IS NULL OR item_id IS NULL OR timestamp IS NULL"
    ).fetchone()[0]
    if missing:
        raise ValueError(f"{missing} events have no user_id, item_id or timestamp.")
    for name in READ:
        if kinds[name] == "HUGEINT":  # of int64 and uint64 parts; Parquet has no such type
            kinds[name] = _fitting(engine, name)
            engine.execute(f"ALTER TABLE events ALTER {name} TYPE {kinds[name]}")
        odd = _odd(name, kinds[name])
        found = engine.execute(
            f"SELECT {name} FROM events WHERE {odd} ORDER BY file, position LIMIT 1"
        ).fetchone()
        if found:
            raise ValueError(
                f"{name} must hold {READ[name]}, received {found[0]!r} ({kinds[name]}). Convert it."
            )


def _fitting(engine, name: str) -> str:
    """The type of 64 bits that holds a column of whole numbers."""
    low, high = engine.execute(f"SELECT min({name}), max({name}) FROM events").fetchone()
    if low < 0 and high >= 2**63:
        raise ValueError(
            f"{name} must hold whole numbers of 64 bits, with a sign or without, received {low} "
            f"and {high}. Convert it, for example to text."
        )
    return "BIGINT" if high < 2**63 else "UBIGINT"


def _odd(name: str, kind: str) -> str:
    """The condition of a value that a Dataset would refuse, in a column of the engine's `kind`."""
    if kind.endswith(("INT", "INTEGER")):
        return "false"
    if kind in ("FLOAT", "DOUBLE"):  # whose NaN is neither missing nor equal to anything
        fraction = f" OR {name} % 1 != 0 OR abs({name}) >= 2 ** 53" * (name != "timestamp")
        return f"NOT isfinite({name})" + fraction
    if name == "timestamp":
        return "false" if kind.startswith(("TIMESTAMP", "DATE")) else "true"
    if kind != "VARCHAR":
        return "true"
    words = "', '".join(NONE)
    none = f"lower(trim({name})) IN ('{words}')"
    text = rf"NOT {none} AND NOT regexp_full_match(trim({name}), '-?\d+(\.0*)?')"
    return f"{name} = '' OR {none} AND NOT EXISTS (FROM events WHERE {text})"


def _split(engine, folder: Path, min_item_interactions: int) -> dict[str, int]:
    engine.execute(
        f"""CREATE OR REPLACE TABLE events AS SELECT * FROM events
            QUALIFY row_number() OVER (PARTITION BY user_id, item_id ORDER BY {ORDER}) = 1"""
    )
    left = -1
    while left != (left := engine.execute("SELECT count(*) FROM events").fetchone()[0]):
        for who, least in (("item_id", min_item_interactions), ("user_id", 3)):
            engine.execute(
                f"""DELETE FROM events WHERE {who} IN
                    (SELECT {who} FROM events GROUP BY {who} HAVING count(*) < {least})"""
            )
    if not left:
        raise ValueError(
            f"no event is left of users with three and items with {min_item_interactions}."
        )
    for who in ("user", "item"):  # numbered by ascending original id, as a Dataset is
        engine.execute(
            f"""CREATE TABLE {who}s AS SELECT {who}_id AS original_id,
                CAST(row_number() OVER (ORDER BY {who}_id) AS INTEGER) AS {who}_id
                FROM (SELECT DISTINCT {who}_id FROM events)"""
        )
        _write(engine, f"SELECT {who}_id, original_id FROM {who}s ORDER BY {who}_id",
               folder / f"{who}s.parquet")  # fmt: skip
    engine.execute(
        f"""CREATE TABLE numbered AS
            SELECT users.user_id, items.item_id, timestamp, file, position,
                   row_number() OVER (PARTITION BY events.user_id ORDER BY {ORDER}) AS place,
                   count(*) OVER (PARTITION BY events.user_id) AS length
            FROM events JOIN users ON events.user_id = users.original_id
                        JOIN items ON events.item_id = items.original_id"""
    )
    counts = {}
    for name, chosen in (
        ("train", "place < length - 1"), ("validation", "place = length - 1"),
        ("test", "place = length"),
    ):  # fmt: skip
        counts[name] = _write(
            engine,
            f"""SELECT user_id, item_id, timestamp FROM numbered WHERE {chosen}
                ORDER BY user_id, place""",
            folder / f"{name}.parquet",
        )
    return counts


def _write(engine, query: str, path: Path) -> int:
    target = str(path).replace("'", "''")
    return engine.execute(f"COPY ({query}) TO '{target}' (FORMAT parquet)").fetchone()[0]
