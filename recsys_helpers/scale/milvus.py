"""Vectors in Milvus: in a file of this process (Milvus Lite) or on a server, by one address."""

from __future__ import annotations

import os
import secrets
import time

import numpy as np

from recsys_helpers.index import excluded_by_row

MOST = 16_384  # results of one query, Milvus's own limit
ROWS = 5_000  # sent at a time


class MilvusIndex:
    """The interface of `recsys_helpers.index`, on an engine that many services keep vectors in.

    `build` writes a new collection and then switches the alias `name` to it, so a query sees the
    old catalogue or the new one. Vectors stay with the engine: who opens the same address and name
    later, in another process too, finds what was built last.

    Args:
        uri: a file, such as "vectors.db", for Milvus Lite, or a server's address, such as
            "http://localhost:19530".
        name: alias of the collection.
        metric: "dot" or "cosine"; of an index that is there already, its own.
        kind: the engine's index. "FLAT" compares with all vectors, "IVF_FLAT" and "HNSW" don't.
        build_params: of that index, by Milvus's names, such as {"nlist": 128}.
        search_params: the same for queries, such as {"nprobe": 16}; may be changed at any time.

    Raises:
        ImportError: without pymilvus.
        ValueError: on another metric.
    """

    def __init__(
        self,
        uri: str | os.PathLike,
        name: str = "items",
        metric: str = "dot",
        kind: str = "FLAT",
        build_params: dict | None = None,
        search_params: dict | None = None,
    ):
        try:
            from pymilvus import MilvusClient, MilvusException
        except ImportError as error:
            raise ImportError(
                "MilvusIndex needs pymilvus, and milvus-lite where there is no server: "
                '`pip install "recsys-helpers[scale]"`.'
            ) from error
        if metric not in ("dot", "cosine"):
            raise ValueError(f'metric must be "dot" or "cosine", received {metric!r}.')
        self.name, self.metric, self.kind = name, metric, kind
        self.build_params, self.search_params = build_params or {}, search_params or {}
        self.client, self.error = MilvusClient(os.fspath(uri)), MilvusException

    def build(self, vectors: np.ndarray, ids: np.ndarray, fields: dict | None = None):
        """Put a catalogue into a new collection, switch to it, and drop the one before.

        Args:
            vectors: [n, d], finite; kept as float32.
            ids: [n] distinct integers.
            fields: name -> [n] integers or texts, which `where` may ask for.

        Returns:
            The index.

        Raises:
            ValueError: on shapes that don't fit, NaN, infinity, repeated ids, other fields.
        """
        with np.errstate(over="ignore"):  # too large for float32 is infinite, and refused below
            vectors = np.asarray(vectors).astype(np.float32)
        ids, fields = np.asarray(ids), fields or {}
        lengths = {name: len(values) for name, values in fields.items()} | {"ids": len(ids)}
        if vectors.ndim != 2 or not vectors.size or set(lengths.values()) != {len(vectors)}:
            raise ValueError(
                f"expected vectors [n, d], and n ids and n values of each field; received shape "
                f"{vectors.shape} and {lengths}."
            )
        if ids.dtype.kind not in "iu" or len(np.unique(ids)) < len(ids):
            raise ValueError(f"expected distinct integers as ids, received {ids.dtype} {ids}.")
        if not np.isfinite(vectors).all():
            raise ValueError("the vectors have entries that are NaN or infinite as float32.")
        for name, values in fields.items():
            several = any(np.iterable(value) and not isinstance(value, str) for value in values)
            array = np.asarray(values, object if several else None)
            text = array.dtype.kind == "U" or all(isinstance(value, str) for value in array)
            if name in ("id", "vector") or not (array.dtype.kind in "iu" or text):
                raise ValueError(
                    f"expected fields of integers or texts, one an item, not named id or vector, "
                    f"received {name!r}: {array.dtype} {array!s:.40}."
                )
        before, new = self._collection(), f"{self.name}_{secrets.token_hex(4)}"
        try:
            self._create(new, vectors.shape[1], fields)
            for start in range(0, len(ids), ROWS):
                stop = start + ROWS
                columns = {"id": ids[start:stop].tolist()}
                columns |= {"vector": vectors[start:stop]}
                columns |= {
                    name: np.asarray(values[start:stop]).tolist() for name, values in fields.items()
                }
                rows = zip(*columns.values(), strict=True)
                self.client.insert(new, [dict(zip(columns, row, strict=True)) for row in rows])
            self._settle(new, len(ids))
        except BaseException:
            self.client.drop_collection(new)
            raise
        if before is None:
            self.client.create_alias(new, self.name)
        else:
            self.client.alter_alias(new, self.name)
            self.client.drop_collection(before)
        return self

    def query(
        self, vectors: np.ndarray, k: int, exclude=None, where: str = ""
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k items of the largest inner product (or cosine), best first.

        Args:
            vectors: one query [d], or a batch [b, d].
            k: how many items.
            exclude: ids that must not be returned: a collection of ids for one query, one such
                collection a row for a batch. So many more are asked for, and left out here.
            where: only these items, in Milvus's own words, such as 'genre == "Drama"'.

        Returns:
            ids (int64) and scores (float32), [k] or [b, k].

        Raises:
            ValueError: if nothing was built, on what does not fit, NaN or infinity, or if the
                engine has fewer than k items left; an approximate index with a narrow `where` may,
                though there are more.
        """
        queries = np.asarray(vectors, np.float32)
        one = queries.ndim == 1
        if queries.ndim not in (1, 2) or not np.isfinite(queries).all():
            raise ValueError(
                f"expected finite queries [d] or [b, d], received shape {queries.shape}."
            )
        queries = np.atleast_2d(queries)
        exclude = excluded_by_row([exclude] if one else exclude, len(queries))
        exclude = [set(ids) for ids in exclude]
        longest = max(map(len, exclude), default=0)
        if not isinstance(k, int | np.integer) or not 1 <= k <= MOST - longest:
            raise ValueError(
                f"k must be an integer from 1 to {MOST:,} less the longest exclusion, {longest:,}, "
                f"received {k!r}."
            )
        if not len(queries):  # which the engine doesn't take
            return np.empty((0, k), np.int64), np.empty((0, k), np.float32)
        try:
            found = self.client.search(
                self.name, list(queries), filter=where, limit=int(k) + longest,
                search_params={"params": self.search_params},
            )  # fmt: skip
        except self.error:  # looked into only then: each question to the engine takes its time
            dimension = self._dimension()
            if dimension == queries.shape[1]:
                raise
            raise ValueError(
                f"expected queries of length {dimension}, received shape {queries.shape}."
                if dimension
                else f"there is no collection {self.name!r}: build the index first."
            ) from None
        ids, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
        for row, (hits, left_out) in enumerate(zip(found, exclude, strict=True)):
            hits = [(hit["id"], hit["distance"]) for hit in hits if hit["id"] not in left_out][:k]
            if len(hits) < k:
                raise ValueError(f"asked for k = {k} items, the engine has {len(hits)} left.")
            ids[row], scores[row] = zip(*hits, strict=True)
        return (ids[0], scores[0]) if one else (ids, scores)

    def __len__(self) -> int:
        collection = self._collection()
        return (
            0 if collection is None else self.client.get_collection_stats(collection)["row_count"]
        )

    def close(self) -> None:
        """Let go of the file, or of the connection."""
        self.client.close()

    def _collection(self) -> str | None:
        """What the alias stands for."""
        if self.name not in self.client.list_aliases().get("aliases", []):
            return None
        return self.client.describe_alias(self.name)["collection_name"]

    def _dimension(self) -> int | None:
        """Length of the vectors; None before the first build."""
        if self._collection() is None:
            return None
        fields = self.client.describe_collection(self.name)["fields"]
        return next(int(f["params"]["dim"]) for f in fields if f["name"] == "vector")

    def _create(self, collection: str, dimension: int, fields: dict) -> None:
        from pymilvus import DataType

        schema = self.client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
        for name, values in fields.items():
            if np.asarray(values).dtype.kind in "iu":
                schema.add_field(name, DataType.INT64)
            else:
                schema.add_field(name, DataType.VARCHAR, max_length=1_000)
        index = self.client.prepare_index_params()
        index.add_index(
            "vector", index_type=self.kind, params=self.build_params,
            metric_type="IP" if self.metric == "dot" else "COSINE",
        )  # fmt: skip
        self.client.create_collection(collection, schema=schema, index_params=index)

    def _settle(self, collection: str, rows: int, seconds: float = 600) -> None:
        """Wait until every row is indexed: those that aren't are compared one by one, slowly.

        A server may call an index finished that has no row yet, so rows are counted.
        """
        self.client.flush(collection)
        deadline = time.monotonic() + seconds
        while True:
            state = self.client.describe_index(collection, "vector")
            waiting = rows - int(state.get("indexed_rows", rows))
            if waiting <= 0:
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"{waiting} of {rows} rows weren't indexed in {seconds:.0f} s.")
            time.sleep(0.2)
        self.client.load_collection(collection)
