"""Parquet: a file, or a folder of parts, whose columns needn't be the same in all of them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.dataset

from recsys_helpers.delimited import to_pandas, typed

PARQUET = (".parquet", ".pq")


def read_parquet(path: Path, choose: Callable, log: bool = False) -> pd.DataFrame:
    """Read a Parquet table.

    Args:
        path: of a file; of a folder called `*.parquet`; or of one that holds `part-*.parquet`, or
            such files in folders called `column=value`.
        choose: names -> (columns to be read, those of them that hold ids).
        log: a log, not what is known of items or users. Its text stays in Arrow's form, as it is
            long, and a single file of it may be a part of one, with a column in its folders' names.

    Raises:
        ValueError: no parts, damaged ones, or a column of two kinds of values.
    """
    try:
        # Old Spark's and Hive's times have nanoseconds, in which the year 9999 becomes 1816.
        kind = pa.dataset.ParquetFileFormat(coerce_int96_timestamp_unit="us")
        parts = _parts(path)
        data = pa.dataset.dataset(parts, format=kind)
        schema = _all_columns(data)
        # Folders called user_id=007 say it in text, where the files don't say it themselves. Those
        # above the table's own folder say nothing of its rows.
        first = Path(parts[0])
        below = first if log and path.is_file() else first.relative_to(path)
        keys = re.findall(r"(?<=/)([^/=]+)=[^/]*(?=/)", f"/{below.as_posix()}")
        keys = [key for key in dict.fromkeys(keys) if key not in schema.names]
        folders = pa.schema([(key, pa.string()) for key in keys])
        chosen, ids = choose(schema.names + keys)
        schema = _schema_of_parts(data, pa.schema([*schema, *folders]), chosen, path)
        hive = pa.dataset.HivePartitioning(folders)
        data = pa.dataset.dataset(parts, schema, format=kind, partitioning=hive)
        table = data.to_table(columns=chosen)
    except (pa.ArrowException, OSError) as error:
        what = "is no Parquet file or folder of them with equal columns"
        raise ValueError(f"{path} {what}: {error}") from error
    for i, field in enumerate(table.schema):  # text that isn't marked as such
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            with contextlib.suppress(pa.ArrowInvalid):
                table = table.set_column(i, field.name, table.column(i).cast(pa.string()))
    for name in ids:  # text takes a tenth of the memory when each id is held once
        i = table.schema.get_field_index(name)
        if table.schema.types[i] in (pa.string(), pa.large_string()):
            table = table.set_column(i, name, table.column(i).dictionary_encode())
    for name in set(keys) & set(chosen):
        i = table.schema.get_field_index(name)
        table = table.set_column(i, name, typed(table.column(i), name))
    return to_pandas(table, path, keep_text=log)


def _parts(path: Path) -> list[str]:
    """The files of a Parquet table: what else a folder of parts holds, such as items, is none."""
    if path.is_file():
        return [str(path)]
    if (path / "_delta_log").is_dir():
        raise ValueError(
            f"{path} is a Delta table, whose files may be of older versions: read it with the "
            "package deltalake, and pass the table to Dataset.from_tables."
        )
    forms = ["part-*.parquet", "*=*/**/*.parquet"]
    if path.suffix.lower() in PARQUET:
        forms = ["**/*"]  # whatever they are called
    for form in forms:
        found = (part for part in path.glob(form) if part.is_file())
        parts = [p for p in found if not re.search(r"(^|/)[._]", p.relative_to(path).as_posix())]
        if parts:
            return sorted(map(str, parts))
    raise ValueError(
        f"{path} holds no Parquet files, but {sorted(p.name for p in path.iterdir())}."
    )


def _all_columns(data: pa.dataset.Dataset) -> pa.Schema:
    """The schema of all parts together: Arrow's own is that of the first part."""
    schema = data.schema
    for part in data.get_fragments():
        for field in part.physical_schema:
            schema = schema if field.name in schema.names else schema.append(field)
    return schema


def _schema_of_parts(
    data: pa.dataset.Dataset, schema: pa.Schema, chosen: list[str], path: Path
) -> pa.Schema:
    """The `schema` with types that hold what any part has: Arrow's own are the first part's.

    Raises:
        ValueError: numbers or dates in one part, and something else in another.
    """
    t = pa.types
    for part in data.get_fragments():
        for name in set(part.physical_schema.names).intersection(chosen):
            i = schema.get_field_index(name)
            fields = schema.field(i), part.physical_schema.field(name)
            types = [field.type for field in fields if not t.is_null(field.type)]
            numbers = {t.is_integer(kind) or t.is_floating(kind) for kind in types}
            if len(numbers) > 1 or len(set(map(t.is_date, types))) > 1:
                raise ValueError(
                    f"{path}: {name} is {types[0]} in one part and {types[1]} in "
                    f"{Path(part.path).name}. Write all parts with one type."
                )
            with contextlib.suppress(pa.ArrowException):  # such as times with and without zones
                both = [pa.schema([field]) for field in fields]
                schema = schema.set(
                    i, pa.unify_schemas(both, promote_options="permissive").field(0)
                )
    return schema
