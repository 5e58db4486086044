"""New items between two builds: a small exact index beside a large one that cannot grow."""

from __future__ import annotations

import numpy as np

from recsys_helpers.index import ExactIndex, excluded_by_row


class DeltaIndex:
    """An index that was built, and what has changed since, searched as one.

    Annoy's forest takes no item once it is built. So what is new is kept in an `ExactIndex`, which
    is built in no time as long as it is small, and the two answers are merged by their scores.
    Build the large index anew, with everything in it, before the small one is no longer small.

    Args:
        index: built, `ExactIndex` or `AnnoyIndex`; it isn't changed.
    """

    def __init__(self, index):
        if index.ids is None:
            raise ValueError("the index is empty: build or load it first.")
        self.index, self.delta, self._replaced = index, None, ()

    @property
    def ids(self) -> np.ndarray:
        """Ids of all items, int64 [n], the new ones last."""
        kept = self.index.ids[~np.isin(self.index.ids, self._replaced)]
        return kept if self.delta is None else np.r_[kept, self.delta.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, vectors: np.ndarray, ids: np.ndarray) -> DeltaIndex:
        """Add items, or give them other vectors; what was said last holds. Returns the index.

        Args:
            vectors: [n, d], of the same two towers as those of the index.
            ids: [n] distinct integers.

        Raises:
            ValueError: as `build` of the index does.
        """
        new = ExactIndex(self.index.metric).build(vectors, ids)
        if new.dimension != self.index.dimension:
            raise ValueError(
                f"expected vectors of length {self.index.dimension}, as in the index, received "
                f"length {new.dimension}."
            )
        if self.delta is not None:
            kept = ~np.isin(self.delta.ids, new.ids)
            vectors = np.concatenate([self.delta.vectors[kept], vectors])
            new = ExactIndex(self.index.metric).build(vectors, np.r_[self.delta.ids[kept], new.ids])
        self.delta = new
        self._replaced = self.index.ids[self.index._rows(new.ids)]
        return self

    def query(self, vectors: np.ndarray, k: int, exclude=None) -> tuple[np.ndarray, np.ndarray]:
        """The k best of both; arguments, results and errors as in the index's own `query`.

        Among equal scores, an item of the large index comes before a new one.
        """
        queries, length = np.asarray(vectors), self.index.dimension
        if queries.ndim not in (1, 2) or queries.shape[-1] != length:
            raise ValueError(
                f"expected queries of shape [{length}] or [b, {length}], received shape "
                f"{queries.shape}."
            )
        if not (isinstance(k, (int, np.integer)) and 1 <= k <= len(self)):
            raise ValueError(f"k must be an integer, 1 to {len(self)} (all items), received {k!r}.")
        if queries.ndim == 2:
            exclude = excluded_by_row(exclude, len(queries))
            found = [self.query(query, k, ids) for query, ids in zip(queries, exclude, strict=True)]
            ids, scores = zip(*found, strict=True) if found else ((), ())
            return np.array(ids, np.int64).reshape(-1, k), np.array(scores, "f4").reshape(-1, k)
        (exclude,) = excluded_by_row([exclude], 1)
        parts, left = [], 0
        for index, hidden in ((self.index, [*exclude, *self._replaced]), (self.delta, exclude)):
            if index is not None:
                here = len(index) - len(index._rows(hidden))
                left += here
                if here:
                    parts.append(index.query(queries, min(k, here), hidden))
        if k > left:
            raise ValueError(
                f"k must be from 1 to the number of items that are not excluded, {left} of the "
                f"{len(self)} items, received {k}. Ask for fewer, or exclude fewer."
            )
        ids, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
        best = np.argsort(-scores, kind="stable")[:k]
        return ids[best], scores[best]
