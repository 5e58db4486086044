"""Find the items whose vectors score highest: exactly, or with Annoy, behind one interface.

Inner product is not a distance, so Annoy is never asked for it: every item gets one more
coordinate, sqrt(M^2 - |v|^2) with M the largest |v|, and every query a zero there. All items are
then equally long, and the smallest angle is the largest inner product (Bachrach et al. 2014,
section 3). Annoy's own "dot" is broken in 1.17.3, the newest release (spotify/annoy#619).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
from pathlib import Path

import annoy
import numpy as np
import pandas as pd

FORMAT = 1  # of saved folders
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
        self.metric = metric
        self.vectors = self.ids = None

    def build(self, vectors: np.ndarray, ids: np.ndarray):
        """Index a catalogue, in place of whatever was indexed before.

        Args:
            vectors: [n, d], finite; kept as float32. With "cosine", a vector of zeros has
                cosine 0 with everything.
            ids: [n] distinct integers; row i of `vectors` belongs to `ids[i]`.

        Returns:
            The index itself.

        Raises:
            ValueError: on an empty catalogue, shapes that do not fit, NaN, infinity, repeated ids.
        """
        vectors, ids = np.asarray(vectors), np.asarray(ids)
        if vectors.ndim != 2 or not vectors.size:
            raise ValueError(
                "expected vectors of shape [n, d] with at least one item and one dimension, "
                f"received shape {vectors.shape}."
            )
        if ids.shape != vectors.shape[:1] or ids.dtype.kind not in "iu":
            raise ValueError(
                f"expected {len(vectors)} integer ids, one per vector, received "
                f"{ids.dtype} ids of shape {ids.shape}."
            )
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and reported
            vectors = np.array(vectors, np.float32, order="C")  # a copy: later changes stay outside
        bad = ~np.isfinite(vectors).all(axis=1)
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(
                f"{int(bad.sum())} of {len(vectors)} vectors have entries that are NaN, infinite "
                f"or too large for float32, the first in row {row} (id {ids[row]}). Has the "
                "training diverged?"
            )
        ids = ids.astype(np.int64)
        values, occurrences = np.unique(ids, return_counts=True)
        if len(values) < len(ids):
            raise ValueError(
                f"ids must be distinct, but {values[occurrences.argmax()]} occurs "
                f"{occurrences.max()} times."
            )
        lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
        if self.metric == "cosine":
            vectors = (vectors / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32)
            lengths = np.ones(1)
        self._set(vectors, ids, float(lengths.max()))
        self._index_vectors()
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
            ValueError: on a wrong dimension, NaN or infinity, or if fewer than k items are left.
        """
        if self.ids is None:
            raise ValueError("the index is empty: call build(vectors, ids) or load(path) first.")
        queries = np.asarray(vectors, np.float64)
        if queries.ndim not in (1, 2) or queries.shape[-1] != self.dimension:
            raise ValueError(
                f"expected query vectors of shape [{self.dimension}] or [b, {self.dimension}], "
                f"received shape {queries.shape}."
            )
        if not 1 <= k <= len(self.ids):
            raise ValueError(f"k must be from 1 to the number of items, {len(self)}, received {k}.")
        if queries.ndim == 1:
            return self._query(queries, k, () if exclude is None else exclude)
        exclude = [()] * len(queries) if exclude is None else list(exclude)
        if len(exclude) != len(queries) or any(map(np.isscalar, exclude)):
            raise ValueError(
                f"for a batch of {len(queries)} queries, exclude must hold {len(queries)} lists of "
                f"ids, one for each row; received {len(exclude)} entries."
            )
        return self._query_batch(queries, k, exclude)

    def save(self, path: str | os.PathLike) -> None:
        """Write the index into a folder: its files, and `metadata.json`, which names them.

        Each file appears whole or not at all, and under a new name if its content is new. The
        metadata comes last, so that whoever loads gets the old index or the new one, never a mix;
        processes that use the old one keep it.

        Args:
            path: the folder; created if missing. An index in it is replaced.
        """
        if self.ids is None:
            raise ValueError("the index is empty: build it before saving.")
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            before = {file["name"] for file in _metadata(folder)["files"].values()}
        except (FileNotFoundError, ValueError):
            before = set()  # and nothing else in the folder is ours to delete
        files = {}
        for name, write in self._files().items():
            temporary = folder / f".{os.getpid()}-{name}"
            try:
                write(str(temporary))
                digest, size = _sha256(temporary), temporary.stat().st_size
                final = name.replace(".", f"-{digest[:16]}.")
                os.replace(temporary, folder / final)
            finally:
                temporary.unlink(missing_ok=True)
            files[name] = {"name": final, "bytes": size, "sha256": digest}
        metadata = {"format": FORMAT, "index": type(self).__name__, **self._config()}
        metadata |= {"count": len(self), "dimension": self.dimension}
        metadata |= {"longest": self._longest, "files": files}
        temporary = folder / f".{os.getpid()}-metadata.json"
        temporary.write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, folder / "metadata.json")
        for old in before - {file["name"] for file in files.values()}:
            (folder / Path(old).name).unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike, verify: bool = True):
        """Map a saved index into memory.

        Args:
            path: the folder that `save` wrote.
            verify: compare the files' checksums, which reads all of them once. Without it only
                their sizes are checked, and nothing is read before it is needed.

        Raises:
            FileNotFoundError: if there is no saved index, or one of its files is missing.
            ValueError: if the files are not those that were saved, or of another kind of index.
        """
        folder = Path(path)
        metadata = _metadata(folder)
        kind, version = metadata["index"], metadata["format"]
        if kind != cls.__name__ or version != FORMAT:
            raise ValueError(
                f"{folder} holds an {kind} of format {version}, expected {cls.__name__} of format "
                f"{FORMAT}. Load it with the class that saved it, or build it anew."
            )
        index = cls(**{name: metadata[name] for name in cls._parameters})
        paths = {}
        for name in index._files():
            file = metadata["files"][name]
            paths[name] = folder / Path(file["name"]).name  # never outside the folder
            size = paths[name].stat().st_size
            if size != file["bytes"] or (verify and _sha256(paths[name]) != file["sha256"]):
                raise ValueError(
                    f"{paths[name]} is not the file that was saved ({size:,} bytes, expected "
                    f"{file['bytes']:,} and another checksum): truncated, damaged or exchanged. "
                    "Copy the whole folder again, or build the index anew."
                )
        # asarray: a plain view of the mapped file, because numpy's memmap class is slow to index.
        vectors = np.asarray(np.load(paths["vectors.npy"], mmap_mode="r", allow_pickle=False))
        ids = np.load(paths["ids.npy"], allow_pickle=False)
        count, dimension = metadata["count"], metadata["dimension"]
        if vectors.shape != (count, dimension) or ids.shape != (count,):
            raise ValueError(
                f"{folder}: expected {count} vectors of dimension {dimension} with one id each, "
                f"received shapes {vectors.shape} and {ids.shape}."
            )
        index._set(vectors, ids, metadata["longest"])
        index._load_files(paths)
        return index

    @property
    def dimension(self) -> int:
        """Entries of a vector."""
        return self.vectors.shape[1]

    def __len__(self) -> int:
        return 0 if self.ids is None else len(self.ids)

    _parameters = ("metric",)  # of the constructor, kept in the metadata

    def _set(self, vectors: np.ndarray, ids: np.ndarray, longest: float) -> None:
        self.vectors, self.ids, self._longest = vectors, ids, longest
        self._by_id = np.argsort(ids)

    def _index_vectors(self) -> None:
        pass

    def _load_files(self, paths) -> None:
        pass

    def _config(self) -> dict:
        return {name: getattr(self, name) for name in self._parameters}

    def _files(self) -> dict:
        """What is saved: file name -> function that writes it to a path."""
        return {
            "ids.npy": lambda path: np.save(path, self.ids, allow_pickle=False),
            "vectors.npy": lambda path: np.save(path, self.vectors, allow_pickle=False),
        }

    def _rows(self, ids) -> np.ndarray:
        """Distinct rows of those ids that the catalogue has."""
        ids = np.array(sorted(set(map(int, ids))), np.int64)
        place = np.searchsorted(self.ids, ids, sorter=self._by_id)
        rows = self._by_id[np.minimum(place, len(self.ids) - 1)]
        return rows[self.ids[rows] == ids]

    def _direction(self, query: np.ndarray) -> np.ndarray:
        """The float64 query [d], scaled to length 1."""
        length = math.sqrt(query.dot(query))
        if not math.isfinite(length):
            raise ValueError("the query vector contains NaN or infinity, or is far too long.")
        return query / (length or 1)

    def _ranked(self, rows: np.ndarray, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best k of some rows, which must ascend, with their exact scores."""
        # Rounding float64 to float32 makes scores equal that differ by the order of summation.
        scores = self.vectors.take(rows, 0).dot(query).astype(np.float32)
        order = (-scores).argsort(kind="stable")[:k]
        return self.ids.take(rows.take(order)), scores.take(order)

    def _check_left(self, k: int, excluded: np.ndarray) -> None:
        left = len(self) - len(excluded)
        if left < k:
            raise ValueError(
                f"expected at least k = {k} items that are not excluded, but only {left} of the "
                f"{len(self)} items are left. Ask for fewer, or exclude fewer."
            )


class ExactIndex(_Index):
    """Compare the query with every item: the answer that approximate search is judged by.

    Args:
        metric: "dot" or "cosine".
    """

    def _query(self, query, k, exclude):
        ids, scores = self._query_batch(query[None], k, [exclude])
        return ids[0], scores[0]

    def _query_batch(self, queries, k, exclude):
        ids = np.empty((len(queries), k), np.int64)
        scores = np.empty((len(queries), k), np.float32)
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
                kth = np.partition(products, -k)[-k]
                candidates = np.flatnonzero(products >= kth - rounding)
                ids[row], scores[row] = self._ranked(candidates, exact[row], k)
        return ids, scores


class AnnoyIndex(_Index):
    """Annoy's forest of random splits (Bernhardsson 2013), for inner products and for cosines.

    Builds are repeatable: the seed is set before the first item, and one thread builds.

    Args:
        metric: "dot" or "cosine".
        n_trees: more trees find more, and need more memory and more time to build.
        search_k: how many candidates a query collects from the leaves, repetitions included; None:
            n_trees times the number of items asked for, Annoy's default. The attribute may be
            changed at any time.
        seed: of the splits.
    """

    _parameters = ("metric", "n_trees", "search_k", "seed")

    def __init__(
        self, metric: str = "dot", n_trees: int = 50, search_k: int | None = None, seed: int = 0
    ):
        super().__init__(metric)
        if n_trees < 1 or (search_k is not None and search_k < 1) or seed < 0:
            raise ValueError(
                "n_trees and search_k must be at least 1 (search_k may be None) and the seed not "
                f"negative, received {n_trees}, {search_k} and {seed}."
            )
        self.n_trees, self.search_k, self.seed = n_trees, search_k, seed

    def _index_vectors(self) -> None:
        self._forest = self._new_forest()
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

    def _new_forest(self):
        return annoy.AnnoyIndex(self.dimension + (self.metric == "dot"), "angular")

    def _files(self) -> dict:
        return super()._files() | {"forest.ann": lambda path: self._forest.save(path)}

    def _load_files(self, paths) -> None:
        self._forest = self._new_forest()
        self._forest.load(str(paths["forest.ann"]))
        if self._forest.get_n_items() != len(self):
            raise ValueError(
                f"{paths['forest.ann']} holds {self._forest.get_n_items()} items, expected "
                f"{len(self)}: it belongs to another index."
            )

    def _config(self) -> dict:
        return super()._config() | {"annoy": importlib.metadata.version("annoy")}

    def _query(self, query, k, exclude):
        # Called for every request, so each line's microseconds are counted. Annoy reads lists of
        # floats faster than arrays, and squares in float32: only long or short queries are scaled.
        if self.metric == "cosine":
            query = self._direction(query)
            asked = query.tolist()
        else:
            safe = 1e-20 < query.dot(query) < 1e20
            asked = (query if safe else self._direction(query)).tolist()
            asked.append(0.0)
        excluded = set(map(int, exclude))
        wanted = k + len(excluded)
        if wanted > len(self):
            self._check_left(k, self._rows(excluded))
            wanted = len(self)
        search_k = self.search_k or self.n_trees * wanted
        rows = self._search(asked, wanted, search_k, excluded)
        while len(rows) < k:  # the candidates were too few, or too often excluded
            if search_k > self.n_trees * len(self):
                raise RuntimeError("Annoy does not return all items of its index; is it damaged?")
            search_k *= 2
            rows = self._search(asked, wanted, search_k, excluded)
        return self._ranked(np.array(sorted(rows[:k])), query, k)

    def _search(self, asked: list, wanted: int, search_k: int, excluded: set) -> list:
        rows = self._forest.get_nns_by_vector(asked, wanted, search_k)
        if not excluded:
            return rows
        ids = self.ids.take(rows).tolist()
        return [row for row, id in zip(rows, ids, strict=True) if id not in excluded]

    def _query_batch(self, queries, k, exclude):
        ids = np.empty((len(queries), k), np.int64)
        scores = np.empty((len(queries), k), np.float32)
        for row, query in enumerate(queries):
            ids[row], scores[row] = self._query(query, k, exclude[row])
        return ids, scores


def recommend(index: _Index, user_vectors: np.ndarray, known: pd.DataFrame, k: int = 10):
    """Ids of the k best items of each user, the best first, without those the user knows.

    Args:
        index: of the items.
        user_vectors: [u, d]; row i belongs to user i + 1.
        known: interactions (`user_id`, `item_id`, sorted by user) that are not recommended, such
            as `split.known("test")`.
        k: how many items.

    Returns:
        int64 [u, k].
    """
    offsets = np.searchsorted(known["user_id"], np.arange(2, len(user_vectors) + 1))
    return index.query(user_vectors, k, exclude=np.split(known["item_id"].to_numpy(), offsets))[0]


def _sha256(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _metadata(folder: Path) -> dict:
    path = folder / "metadata.json"
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} holds no saved index: expected a folder with metadata.json in it, as "
            "written by save."
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}).") from None
    expected = {"format", "index", "metric", "count", "dimension", "longest", "files"}
    if not isinstance(metadata, dict) or not expected <= metadata.keys():
        raise ValueError(f"{path} does not describe an index; expected the keys {expected}.")
    return metadata
