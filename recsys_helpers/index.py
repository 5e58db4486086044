"""Find the items whose vectors score highest: exactly, or with Annoy, behind one interface.

Inner product is not a distance, so Annoy is never asked for it: every item gets one more
coordinate, sqrt(M^2 - |v|^2) with M the largest |v|, and every query a zero there. All items are
then equally long, and the smallest angle is the largest inner product (Bachrach et al. 2014,
section 3). Annoy's own "dot" is broken in 1.17.3, the newest release (spotify/annoy#619).
"""

from __future__ import annotations

import contextlib
import json
import math
import operator
import os
import secrets
import zlib
from pathlib import Path

import annoy
import numpy as np
import pandas as pd

BLOCK_BYTES = 1 << 24  # of scores in one block of exact search


class _Index:
    """What both indexes share: checked vectors and ids, exact scores, files.

    Attributes:
        vectors: float32 [n, d], scaled to length 1 for "cosine".
        ids: int64 [n].
    """

    def __init__(self, metric: str = "dot"):
        if metric not in ("dot", "cosine"):
            raise ValueError(f'metric must be "dot" or "cosine", received {metric!r}.')
        self.metric, self.vectors, self.ids = metric, None, None

    def build(self, vectors: np.ndarray, ids: np.ndarray):
        """Index a catalogue, in place of whatever was indexed before, and return the index.

        Args:
            vectors: [n, d], finite; kept as float32. With "cosine", a vector of zeros has
                cosine 0 with everything.
            ids: [n] distinct integers; row i of `vectors` belongs to `ids[i]`.

        Raises:
            ValueError: on no items, shapes that do not fit, NaN, infinity, ids twice or over int64.
        """
        vectors, ids = np.asarray(vectors), np.asarray(ids)
        fits = vectors.ndim == 2 and vectors.size and ids.shape == vectors.shape[:1]
        if not fits or ids.dtype.kind not in "iu":
            raise ValueError(
                "expected vectors of shape [n, d] with at least one item and one dimension, and n "
                f"integer ids, received shape {vectors.shape} and {ids.dtype} ids of {ids.shape}."
            )
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and reported
            vectors = np.array(vectors, np.float32, order="C")  # a copy: later changes stay outside
        bad = ~np.isfinite(vectors).all(axis=1)
        if bad.any():
            raise ValueError(
                f"{bad.sum()} of {len(vectors)} vectors are NaN, infinite or too large (float32), "
                f"first row {(row := bad.argmax())} (id {ids[row]}). Has the training diverged?"
            )
        if (id := int(ids.max())) >= 2**63:
            raise ValueError(f"ids must fit into int64, received {id}: number the items anew.")
        ids = ids.astype(np.int64)
        values, occurrences = np.unique(ids, return_counts=True)
        if (often := occurrences.max()) > 1:
            id = values[occurrences.argmax()]
            raise ValueError(f"ids must be distinct, but {id} occurs {often} times.")
        lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
        if self.metric == "cosine":
            vectors = (vectors / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32)
            lengths = np.ones(1)
        self.vectors, self.ids, self._longest = vectors, ids, float(lengths.max())
        self._prepare()
        return self

    def query(self, vectors: np.ndarray, k: int, exclude=None) -> tuple[np.ndarray, np.ndarray]:
        """The k items of the largest inner product (or cosine), best first.

        Args:
            vectors: one query [d], or a batch [b, d].
            k: how many items.
            exclude: ids that must not be returned (unknown ones do no harm): for one query a
                collection of ids, for a batch one such collection for each row.

        Returns:
            ids (int64) and scores (float32), [k] or [b, k]. The scores are the true inner products
            or cosines with the stored float32 vectors, computed in float64 and rounded; among
            equal scores, the item that came first in `build` is first.

        Raises:
            ValueError: on what does not fit, NaN or infinity, or if fewer than k items are left.
        """
        if self.ids is None:
            raise ValueError("the index is empty: build or load it first.")
        queries = np.asarray(vectors, np.float64)
        if queries.ndim not in (1, 2) or queries.shape[-1] != self.dimension:
            raise ValueError(
                f"expected queries of shape [{self.dimension}] or [b, {self.dimension}], received "
                f"shape {queries.shape}."
            )
        if not (isinstance(k, (int, np.integer)) and 1 <= k <= len(self)):
            raise ValueError(f"k must be an integer, 1 to {len(self)} (all items), received {k!r}.")
        one, queries = queries.ndim == 1, queries.reshape(-1, self.dimension)
        exclude = excluded_by_row([exclude] if one else exclude, len(queries))
        ids, scores = (np.empty((len(queries), k), dtype) for dtype in (np.int64, np.float32))
        self._search(queries, exclude, ids, scores)
        return (ids[0], scores[0]) if one else (ids, scores)

    def save(self, path: str | os.PathLike) -> None:
        """Write the index into a folder, which is made if missing, in place of the one in there.

        Files get new names with every save, and `metadata.json`, which names them, is replaced
        last: whoever loads gets the old index or the new one, never a mix. Then the old files are
        deleted; processes that have mapped them keep them. (Of two saves at the very same moment,
        files of the earlier one may stay behind.)
        """
        if self.ids is None:
            raise ValueError("the index is empty: build it before saving.")
        folder, token, old = Path(path), secrets.token_hex(4), {}
        folder.mkdir(parents=True, exist_ok=True)
        metadata = {"index": type(self).__name__, "longest": self._longest, "files": {}}
        metadata |= {name: getattr(self, name) for name in self._parameters}
        try:
            for name, write in self._writers.items():
                file = folder / name.replace(".", f"-{token}.")
                write(self, str(file))
                metadata["files"][name] = _seal(file)
            new = folder / f"metadata-{token}.json"
            new.write_text(json.dumps(metadata, indent=1, default=int) + "\n", encoding="utf-8")
            with contextlib.suppress(FileNotFoundError):
                old = _metadata(folder)["files"]  # nothing else in the folder is ours to delete
            os.replace(new, folder / "metadata.json")
        except BaseException:
            for file in folder.glob(f"*-{token}.*"):
                file.unlink()
            raise
        for file in old.values():
            with contextlib.suppress(OSError):  # gone, or mapped on Windows
                (folder / file["name"]).unlink()

    @classmethod
    def load(cls, path: str | os.PathLike):
        """Map the index that `save` wrote into memory; what is never asked for is not read.

        Raises:
            FileNotFoundError: if there is no saved index, or one of its files is missing.
            ValueError: if a file is truncated or foreign (its size and a checksum of its two ends
                tell), or the index is of another kind, or something isn't said of it.
        """
        folder, metadata = Path(path), _metadata(Path(path))
        if (kind := metadata["index"]) != cls.__name__:
            raise ValueError(f"{folder} holds an {kind}, expected {cls.__name__}: use that class.")
        expected = {*cls._parameters, "longest", *cls._writers}
        if missing := sorted(expected - {*metadata, *metadata["files"]}):
            raise ValueError(f"{folder}'s metadata.json lacks {missing}. Build the index anew.")
        index = cls(**{name: metadata[name] for name in cls._parameters})
        paths = {name: folder / file["name"] for name, file in metadata["files"].items()}
        try:
            for name, file in paths.items():
                if (found := _seal(file)) != metadata["files"][name]:
                    raise ValueError(
                        f"{file} is not what was saved: expected {metadata['files'][name]}, "
                        f"received {found}. Copy the whole folder again, or build the index anew."
                    )
            # asarray: a plain view of the file, because numpy's memmap class is slow to index.
            index.vectors = np.asarray(np.load(paths["vectors.npy"], mmap_mode="r"))
            index.ids, index._longest = np.load(paths["ids.npy"]), metadata["longest"]
            index._prepare(paths.get("forest.ann"))
        except OSError:
            if _metadata(folder) == metadata:  # else it was replaced, and these files deleted
                raise
            return cls.load(path)
        return index

    def __getstate__(self) -> dict:  # for pickle and copy
        return {name: value for name, value in vars(self).items() if name != "_forest"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        if self.ids is not None:
            self._prepare()  # Annoy cannot be pickled, but the seed gives the same forest

    def __len__(self) -> int:
        return 0 if self.ids is None else len(self.ids)

    @property
    def dimension(self) -> int:
        """Entries of a vector."""
        return self.vectors.shape[1]

    _parameters = ("metric",)  # of the constructor, kept in the metadata

    def _prepare(self, forest: Path | None = None) -> None:
        """What queries need besides the vectors; the forest from a file where one was saved."""
        self._by_id = np.argsort(self.ids)

    _writers = {  # what is saved: file name -> function that writes it to a path
        "ids.npy": lambda self, path: np.save(path, self.ids),
        "vectors.npy": lambda self, path: np.save(path, self.vectors),
    }

    def _rows(self, ids) -> np.ndarray:
        """Distinct rows of those ids that the catalogue has."""
        ids = np.array(sorted(i for i in set(ids) if -(2**63) <= i < 2**63), np.int64)
        place = np.searchsorted(self.ids, ids, sorter=self._by_id)
        rows = self._by_id[np.minimum(place, len(self.ids) - 1)]
        return rows[self.ids[rows] == ids]

    def _direction(self, query: np.ndarray) -> np.ndarray:
        """The float64 query [d], scaled to length 1."""
        if not math.isfinite(length := math.sqrt(query.dot(query))):
            raise ValueError("the query vector contains NaN or infinity, or is far too long.")
        return query / (length or 1)

    def _ranked(self, rows: np.ndarray, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best k of some rows, which must ascend, with their exact scores."""
        # Rounding float64 to float32 makes scores equal that differ by the order of summation.
        scores = self.vectors.take(rows, 0).dot(query).astype(np.float32)
        order = (-scores).argsort(kind="stable")[:k]
        return self.ids.take(rows.take(order)), scores.take(order)

    def _check_left(self, k: int, excluded: np.ndarray) -> None:
        if (left := len(self) - len(excluded)) < k:
            raise ValueError(
                f"expected at least k = {k} items that are not excluded, but only {left} of the "
                f"{len(self)} items are left. Ask for fewer, or exclude fewer."
            )


class ExactIndex(_Index):
    """Compare the query with every item, by "dot" or "cosine": what approximate search aims at."""

    def _search(self, queries, exclude, ids, scores):
        k = ids.shape[1]
        directions = np.array([self._direction(query) for query in queries]).reshape(queries.shape)
        exact = queries if self.metric == "dot" else directions
        # A float32 product with a direction is off by half of this at most, and so is the k-th.
        rounding = 4 * self.dimension * np.finfo(np.float32).eps * self._longest
        step = max(1, BLOCK_BYTES // (4 * len(self)))
        for start in range(0, len(queries), step):
            block = directions[start : start + step].astype(np.float32) @ self.vectors.T  # (b, n)
            for row, products in enumerate(block, start):
                excluded = self._rows(exclude[row])
                self._check_left(k, excluded)
                products[excluded] = -np.inf
                candidates = np.flatnonzero(products >= np.partition(products, -k)[-k] - rounding)
                ids[row], scores[row] = self._ranked(candidates, exact[row], k)


class AnnoyIndex(_Index):
    """Annoy's forest of random splits (Bernhardsson 2013), for inner products and for cosines.

    Builds are repeatable: the seed is set before the first item, and one thread builds.

    Args:
        metric: "dot" or "cosine".
        n_trees: more trees find more, and need more memory and more time to build.
        search_k: how many candidates a query collects from the leaves, repetitions included; None:
            n_trees times the number of items asked for, Annoy's default. May change at any time.
        seed: of the splits, from 0 and below 2**31.
    """

    _parameters = ("metric", "n_trees", "search_k", "seed")
    _writers = _Index._writers | {"forest.ann": lambda self, path: self._forest.save(path)}

    def __init__(self, metric="dot", n_trees: int = 50, search_k: int | None = None, seed: int = 0):
        super().__init__(metric)
        if n_trees < 1 or (search_k is not None and search_k < 1) or not 0 <= seed < 2**31:
            raise ValueError(
                "n_trees and search_k must be at least 1 (search_k may be None) and the seed from "
                f"0 to 2**31 - 1, received {n_trees}, {search_k} and {seed}."
            )
        self.n_trees, self.search_k, self.seed = n_trees, search_k, seed

    def _prepare(self, forest: Path | None = None) -> None:
        super()._prepare()
        self._forest = annoy.AnnoyIndex(self.dimension + (self.metric == "dot"), "angular")
        if forest:
            self._forest.load(str(forest))
            return
        self._forest.set_seed(self.seed)  # before the first item, as its documentation asks
        for start in range(0, len(self), 10_000):  # blocks, because Python floats are large
            for row, vector in enumerate(self._lifted(start, start + 10_000).tolist(), start):
                self._forest.add_item(row, vector)
        self._forest.build(self.n_trees, n_jobs=1)

    def _lifted(self, start: int, stop: int) -> np.ndarray:
        """What Annoy gets: for inner products [rows, d + 1], all of length 1."""
        if self.metric == "cosine":
            return self.vectors[start:stop]
        vectors = self.vectors[start:stop].astype(np.float64) / (self._longest or 1)
        missing = 1 - np.einsum("nd,nd->n", vectors, vectors)
        return np.column_stack([vectors, np.sqrt(np.maximum(missing, 0))])

    def _search(self, queries, exclude, ids, scores):
        # Called for every request, so each line's microseconds are counted. Annoy reads lists of
        # floats faster than arrays, and squares in float32: only long or short queries are scaled.
        k = ids.shape[1]
        for row, query in enumerate(queries):
            if self.metric == "cosine":
                query = self._direction(query)
                asked = query.tolist()
            else:
                safe = 1e-20 < query.dot(query) < 1e20
                asked = [*(query if safe else self._direction(query)).tolist(), 0.0]
            excluded = set(exclude[row])
            wanted = k + len(excluded)
            if wanted > len(self):
                self._check_left(k, self._rows(excluded))
                wanted = len(self)
            search_k = self.search_k or self.n_trees * wanted
            while True:
                found = self._forest.get_nns_by_vector(asked, wanted, search_k)
                if excluded:
                    named = zip(found, self.ids.take(found).tolist(), strict=True)
                    found = [place for place, id in named if id not in excluded]
                if len(found) >= k:
                    break
                if search_k > self.n_trees * len(self):
                    raise RuntimeError("Annoy does not return all its items; is it damaged?")
                search_k *= 2  # the candidates were too few, or too often excluded
            ids[row], scores[row] = self._ranked(np.array(sorted(found[:k])), query, k)


def recommend(index: _Index, user_vectors, known: pd.DataFrame, k=10, users=None) -> np.ndarray:
    """Ids [u, k] of the k best items of each user, the best first, without those the user knows.

    Args:
        index: of the items.
        user_vectors: [u, d], finite.
        known: interactions (`user_id`, `item_id`, in any order) that are not recommended, such as
            `split.seen("test")`; whoever has none may be shown everything.
        k: how many items.
        users: [u] whose vectors these are. None: users 1 to u, the last one in `known`.

    Raises:
        ValueError: naming the user, if vectors and users do not fit, ids are no integers from 1, a
            vector is not finite, or fewer than k items are left.
    """
    items, rows = known["item_id"].to_numpy(), known.groupby("user_id").indices
    if rows and not {known[name].dtype.kind for name in ("user_id", "item_id")} <= set("iu"):
        raise ValueError(f"known must hold integers, received {known.dtypes.to_dict()}.")
    count = len(user_vectors)
    if users is None and rows and (min(rows) < 1 or max(rows) != count):
        raise ValueError(
            f"expected one vector for each user, received {count} vectors, and in known users "
            f"{min(rows)} to {max(rows)}. Say with `users` whose vectors these are."
        )
    users = np.arange(1, count + 1) if users is None else np.asarray(users)
    if users.shape != (count,) or (count and (users.dtype.kind not in "iu" or users.min() < 1)):
        raise ValueError(f"users must be {count} ids from 1, one per vector, received {users}.")
    exclude = [items[rows[user]] if user in rows else () for user in users.tolist()]
    try:
        return index.query(user_vectors, k, exclude)[0]
    except ValueError:  # whose fault is it?
        for user, vector, seen in zip(users, user_vectors, exclude, strict=True):
            try:
                index.query(vector, k, seen)
            except ValueError as error:
                raise ValueError(f"user {user}: {error}") from None
        raise


def excluded_by_row(exclude, rows: int) -> list:
    """The `exclude` of a batch of queries as a collection of ids for each of its rows."""
    exclude = [None] * rows if exclude is None else exclude
    lists = [exclude] if np.isscalar(exclude) else list(exclude)
    if len(lists) != rows or any(map(np.isscalar, lists)):
        raise ValueError(
            f"exclude needs {rows} lists of ids, one a row; received {len(lists)}: {lists!s:.40}."
        )
    try:
        return [[] if ids is None else list(map(operator.index, ids)) for ids in lists]
    except TypeError as error:
        raise ValueError(f"exclude must hold integer ids: {error}.") from None


def _seal(path: Path) -> dict:
    """What a file is known by without reading all of it: size, and a checksum of its two ends."""
    with open(path, "rb") as file:
        ends = file.read(1 << 16)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - (1 << 16)))
        return {"name": path.name, "bytes": size, "crc32": zlib.crc32(ends + file.read())}


def _metadata(folder: Path) -> dict:
    path = folder / "metadata.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no saved index: it has no metadata.json.")
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        return metadata | {"index": metadata["index"], "files": metadata["files"]}
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{path} is not of an index: build anew, in another folder.") from None
