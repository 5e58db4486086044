"""A trained model as it is served: one version, which is made, saved, loaded and asked.

A version is the user tower, the item vectors with their index, the ids, titles and histories
together, because a user vector of one training means nothing to the index of another. `versions`
keeps them in folders, `service` answers requests. To answer, only a tower that was exported loads
TensorFlow, see `served_tower`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from recsys_helpers import index as indexes
from recsys_helpers.index import AnnoyIndex
from recsys_helpers.metrics import items_by_user
from recsys_helpers.queries import Answer, Query, listed
from recsys_helpers.records import as_text, reading
from recsys_helpers.samples import AGE_BOUNDS, ITEM_FIELDS, Encoder
from recsys_helpers.served_tower import load_tower, served_tower
from recsys_helpers.splits import check_order

ROWS_PER_CANDIDATE = 2  # of the catalogue are scored in the time of one of a forest's candidates
# Between a model's vectors and those that are served, as a share of the largest entry, by what the
# model computes in.
TOLERANCE = {"float64": 1e-4, "float32": 1e-4, "float16": 2e-3, "bfloat16": 2e-2}


@dataclass(eq=False)
class Version:
    """All that it takes to answer, of one training.

    Attributes:
        tower: with `user_vectors(inputs)`, see `served_tower`.
        index: of all items, whose ids are 1 to n.
        encoder: how histories become inputs.
        items: row i is item i + 1: `original_id`, `title`, `popularity` (its number of
            interactions) and the fields to filter by.
        users: original ids, an array [num_users]; entry i is user i + 1.
        known: item ids of all users' histories, int32, one user after the other, in order of time.
        offsets: int64 [num_users + 1]; user u's history is known[offsets[u - 1] : offsets[u]].
        about: what `version.json` holds: `repeats`, `codes` of the profile, `dataset`, `created`.
        number: 0 before it is published.
    """

    tower: object
    index: AnnoyIndex
    encoder: Encoder
    items: pd.DataFrame
    users: np.ndarray
    known: np.ndarray
    offsets: np.ndarray
    about: dict
    number: int = 0

    def __post_init__(self):
        self.item_rows = {_text(id): row for row, id in enumerate(self.items["original_id"])}
        self.user_ids = {_text(id): user for user, id in enumerate(self.users, start=1)}
        self.original_ids = self.items["original_id"].tolist()
        self.titles = self.items["title"].tolist()
        self.popularity = self.items["popularity"].to_numpy()
        self.rows_with = {}  # field -> value as text -> rows
        for name in self.items.columns.drop(["original_id", "title", "popularity"]):
            values = self.items[name].reset_index(drop=True).explode().dropna()
            groups = values.groupby(values.map(_text)).indices
            self.rows_with[name] = {v: values.index.to_numpy()[at] for v, at in groups.items()}

    # Files

    def save(self, path: str | os.PathLike, **about) -> None:
        """Write everything into a new folder, with more `about` it; see `versions.publish`."""
        path, about = Path(path), {**self.about, **about, "index": type(self.index).__name__}
        text = as_text(about) + "\n"  # before anything is there, in case JSON has no such thing
        path.mkdir()
        self.tower.save(path)
        self.index.save(path / "index")
        self.encoder.save(path / "encoder.npz")
        self.items.to_parquet(path / "items.parquet")
        pd.DataFrame({"original_id": self.users}).to_parquet(path / "users.parquet")
        np.savez(path / "known.npz", known=self.known, offsets=self.offsets)
        (path / "version.json").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike, number: int = 0) -> Version:
        """The version that `save` wrote.

        Raises:
            OSError: a file is missing.
            ValueError: a file is damaged; the message names the folder.
        """
        path = Path(path)
        with reading(path):
            about = json.loads((path / "version.json").read_text(encoding="utf-8"))
            with open(path / "known.npz", "rb") as file:
                known = dict(np.load(file))
            return cls(
                tower=load_tower(path),
                index=vars(indexes)[about["index"]].load(path / "index"),
                encoder=Encoder.load(path / "encoder.npz"),
                items=pd.read_parquet(path / "items.parquet"),
                users=pd.read_parquet(path / "users.parquet")["original_id"].to_numpy(),
                **known,
                about=about,
                number=number,
            )

    # Answers

    def recommend(self, query: Query) -> Answer:
        """The best items for one query, see `read` and `answer`."""
        return self.answer([self.read(query)])[0]

    def read(self, query: Query) -> dict:
        """What a query means here: ids become rows, filters a mask.

        Ids that the version doesn't know are left out and counted.

        Raises:
            ValueError: on a field, or a value to filter by, that doesn't exist; on what is no list,
                or no dict; if k is no integer from 1.
        """
        for what in ("filters", "profile"):
            if not isinstance(given := getattr(query, what) or {}, dict):
                raise ValueError(f"{what} must be a dict of fields and values, received {given!r}.")
        if not isinstance(query.k, int | np.integer) or query.k < 1:
            raise ValueError(f"k must be 1 or more items, received {query.k}.")
        start, unknown = time.perf_counter(), Counter()
        user = 0 if query.user_id is None else self.user_ids.get(_text(query.user_id), 0)
        unknown["users"] += query.user_id is not None and not user
        known = self.known[self.offsets[user - 1] : self.offsets[user]] if user else self.known[:0]
        history = known
        if query.history is not None:
            history = self._rows_of(query.history, unknown, "history") + 1
        profile = self._codes_of(query.profile or {}, unknown)
        read = time.perf_counter()

        allowed = np.ones(len(self.items), bool)
        if query.allow is not None:
            allowed[:] = False
            allowed[self._rows_of(query.allow, unknown, "allow")] = True
        for name, values in (query.filters or {}).items():
            allowed &= self._having(name, values)
        allowed[self._rows_of(query.exclude, unknown, "exclude")] = False
        if not self.about["repeats"]:  # else people come back
            allowed[known - 1] = allowed[history - 1] = False
        return {
            "user": user,
            "history": history,
            "profile": profile,
            "told": bool(user) or len(history) > 0 or any(np.any(c) for c in profile.values()),
            "allowed": allowed,
            "k": query.k,
            "unknown": unknown,
            "seconds": {"read": read - start, "filter": time.perf_counter() - read},
        }

    def answer(self, reads: list[dict]) -> list[Answer]:
        """Answer several queries, of which the user tower makes one batch."""
        start = time.perf_counter()
        told = [read for read in reads if read["told"]]
        vectors = iter(self.tower.user_vectors(self.inputs(told)) if told else ())
        share = (time.perf_counter() - start) / max(1, len(told))
        answers = []
        for read in reads:
            start, seconds = time.perf_counter(), read["seconds"]
            if read["told"]:
                source, (search, rows, scores) = "history", self._search(next(vectors), read)
                seconds["tower"] = share
            else:
                source, search = "popularity", "none"
                rows = np.flatnonzero(read["allowed"])
                rows = rows[np.argsort(-self.popularity[rows], kind="stable")[: read["k"]]]
                scores = self.popularity[rows].astype(np.float32)
            seconds["index"] = time.perf_counter() - start
            answers.append(
                Answer(self.number, source, search, rows, scores, read["unknown"], seconds)
            )
        return answers

    def inputs(self, reads: list[dict]) -> dict[str, np.ndarray]:
        """What the user tower reads, of what `read` has returned."""
        steps = self.encoder.steps
        history = np.zeros((len(reads), steps), np.int32)
        for row, read in enumerate(reads):
            recent = read["history"][-steps:]
            history[row, steps - len(recent) :] = recent
        users = np.array([read["user"] for read in reads])
        inputs = self.encoder.inputs(users, history, np.zeros((len(reads), 1)))
        for row, read in enumerate(reads):
            for name, codes in read["profile"].items():
                inputs[name][row] = codes
        return inputs

    def _search(self, vector, read) -> tuple[str, np.ndarray, np.ndarray]:
        """The k best allowed rows.

        The index is asked for more than k, in proportion to what is allowed, then for twice as
        many, until k are; scoring what is left, exactly, takes over as soon as it is cheaper.
        """
        allowed = read["allowed"]
        left = np.flatnonzero(allowed)
        k, wanted = min(read["k"], len(left)), len(self.items)
        if k:
            wanted = int(1.5 * k * len(self.items) / len(left)) + 10
        while isinstance(self.index, AnnoyIndex) and wanted < len(self.items):
            candidates = max(self.index.search_k or 0, self.index.n_trees * wanted)
            if ROWS_PER_CANDIDATE * candidates > len(left):
                break
            ids, scores = self.index.query(vector, wanted)
            fit = np.flatnonzero(allowed[ids - 1])[:k]
            if len(fit) == k:
                return "index", ids[fit] - 1, scores[fit]
            wanted *= 2
        query = vector.astype(np.float64)
        direction = self.index._direction(query)
        if 0 < k < len(left):  # as in ExactIndex: those, too, that rounding may have put below
            products = self.index.vectors[left] @ direction.astype(np.float32)
            rounding = 4 * len(query) * np.finfo(np.float32).eps * self.index._longest
            left = left[products >= np.partition(products, -k)[-k] - rounding]
        query = direction if self.index.metric == "cosine" else query
        ids, scores = self.index._ranked(left, query, k)
        return "exact", ids - 1, scores

    def _rows_of(self, original_ids, unknown: Counter, what: str) -> np.ndarray:
        found = [self.item_rows.get(_text(id)) for id in listed(original_ids, what, "item ids")]
        unknown[what] += found.count(None)
        return np.array([row for row in found if row is not None], np.int32)

    def _having(self, name: str, values) -> np.ndarray:
        if name not in self.rows_with:
            raise ValueError(
                f"there is no field {name!r} to filter by; there are "
                f"{', '.join(self.rows_with) or 'none'}."
            )
        mask = np.zeros(len(self.items), bool)
        for value in listed(values, f"filters[{name!r}]", "values"):
            if (rows := self.rows_with[name].get(_text(value))) is None:
                some = ", ".join(list(self.rows_with[name])[:30])
                raise ValueError(f"no item's {name} is {value!r}; there are {some}.")
            mask[rows] = True
        return mask

    def _codes_of(self, profile: dict, unknown: Counter) -> dict[str, np.ndarray]:
        codes = {}
        for name, value in profile.items():
            if name not in self.about["codes"]:
                there = ", ".join(self.about["codes"]) or "none"
                raise ValueError(f"the profile has no field {name!r}; its fields are {there}.")
            values = value if isinstance(value, list | tuple | np.ndarray) else [value]
            shape = self.encoder.profile[name].shape[1:]  # () or (most values of one user,)
            if len(values) > math.prod(shape):
                raise ValueError(f"{name} takes {math.prod(shape)} values at most.")
            found = [self.about["codes"][name].get(_text(value), 0) for value in values]
            unknown["profile"] += found.count(0)
            codes[name] = np.resize(found + [0] * math.prod(shape), shape)
        return codes


def make_version(model, samples, index, known=None, fields=None) -> Version:
    """What a trained model becomes, ready to be published.

    Args:
        model: `TwoTower`, trained.
        samples: what it was trained on.
        index: of its item vectors, all of them; the ids are 1 to num_items.
        known: interactions that have happened, of each user in the order of time; None: all of the
            dataset's. A request for a known user starts from them, and gets none of them back,
            unless the dataset keeps repeats.
        fields: columns of `dataset.items` to filter by; None: genres and year, where there are any.

    Raises:
        ValueError: if the index has other items or another training's vectors, the tower as served
            returns other vectors than the model, `known` has unknown ids or is out of order (see
            `splits.check_order`), or `fields` has what isn't there or can't be saved.
    """
    dataset = samples.split.dataset
    known = dataset.interactions if known is None else known
    if not isinstance(known, pd.DataFrame) or not {"user_id", "item_id"}.issubset(known):
        raise ValueError(
            f"known must be a table with user_id and item_id, received {known!r:.200}. Select rows "
            "of dataset.interactions."
        )
    everyone = np.arange(1, dataset.num_items + 1)
    if not (hasattr(index, "save") and np.array_equal(index.ids, everyone)):
        raise ValueError(
            f"expected an AnnoyIndex or ExactIndex of the ids 1 to {len(everyone)}, in this order, "
            f"received {index!r:.80}. Build it of model.item_vectors()."
        )
    vectors = model.item_vectors()
    if index.metric == "cosine":
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    if vectors.shape != index.vectors.shape or not _alike(vectors, index.vectors, model.item_tower):
        raise ValueError(
            f"the index holds {index.dimension} numbers an item that aren't this model's item "
            "vectors; those of another training mean nothing to its users. Build it from "
            "model.item_vectors()."
        )
    fields = [f for f in ITEM_FIELDS if f in dataset.items] if fields is None else list(fields)
    there = set(dataset.items) - {"original_id", "title", "popularity"}
    if not there.issuperset(fields) or len(set(fields)) < len(fields):
        raise ValueError(f"fields must be of {sorted(there)}, each once, received {fields}.")
    offsets, watched = items_by_user(known, dataset.num_users)
    check_order(known)
    if len(watched) and not (
        watched.dtype.kind in "iu" and 1 <= watched.min() <= watched.max() <= dataset.num_items
    ):
        raise ValueError(
            f"known: item ids must be integers from 1 to {dataset.num_items}, received "
            f"{watched.dtype} from {watched.min()} to {watched.max()}."
        )
    items = dataset.items[["original_id", *fields]].reset_index(drop=True)
    items.insert(1, "title", dataset.titles(everyone))
    items.insert(2, "popularity", np.bincount(watched, minlength=dataset.num_items + 1)[1:])
    try:
        pa.Table.from_pandas(items)
    except pa.ArrowException as error:  # which publishing would only meet later
        raise ValueError(
            f"fields must hold values of one kind each, received {'; '.join(error.args)}. Convert "
            "the column, for example with astype(str)."
        ) from error
    version = Version(
        tower=served_tower(model),
        index=index,
        encoder=samples.encoder,
        items=items,
        users=dataset.users["original_id"].to_numpy(),
        known=watched.astype(np.int32),
        offsets=offsets,
        about={
            "dataset": dataset.name,
            "fingerprint": dataset.fingerprint,
            "repeats": dataset.repeats,
            "codes": _profile_codes(dataset, samples.encoder),
        },
    )
    few = {name: values[:100] for name, values in samples.serving_inputs("test").items()}
    served, trained = version.tower.user_vectors(few), model.user_vectors(few)
    if not _alike(served, trained, model.user_tower):
        apart = np.abs(served - trained).max()
        raise ValueError(f"the served tower's vectors differ from the model's by up to {apart}.")
    return version


def _alike(vectors, others, tower) -> bool:
    """Whether they are the same but for the rounding of what a tower computes in."""
    tolerance = TOLERANCE[tower.compute_dtype] * max(1.0, np.abs(others).max())
    return np.abs(vectors - others).max() < tolerance


def _profile_codes(dataset, encoder: Encoder) -> dict[str, dict[str, int]]:
    """For each field of the profile, which code a value has, as text."""
    codes = {}
    for name, of_users in encoder.profile.items():
        codes[name] = {}
        if name not in dataset.users:
            continue
        column = dataset.users[name]
        if name == "age" and pd.api.types.is_numeric_dtype(column.dtype):
            # Also ages that no user has, but no group beyond those that the tower has vectors for.
            groups = enumerate((np.digitize(range(121), AGE_BOUNDS) + 1).tolist())
            codes[name] = {str(age): c for age, c in groups if c < encoder.sizes[name]}
            continue
        for value, code in zip(column, of_users[1:].tolist(), strict=True):
            several = isinstance(code, list)
            pairs = zip(value if several else [value], code if several else [code], strict=False)
            codes[name] |= {_text(v): c for v, c in pairs if c}
    return codes


def _text(value) -> str:
    """A value as it is looked up: 7, 7.0 and "7" are one."""
    whole = isinstance(value, (float, np.floating)) and value.is_integer()
    return str(int(value)) if whole else str(value)
