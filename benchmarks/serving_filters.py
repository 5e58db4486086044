"""Recall and time of filtered search, by the share of the items that a filter leaves.

    pip install -r benchmarks/requirements.txt      for indexes that filter; left out if missing
    python benchmarks/serving_filters.py            two minutes; see benchmarks/serving.py

The vectors are the trained ones, and for the larger catalogue noisy copies of them, made up as in
`retrieval.py`; the queries are users of the dataset. "any" items are left at random; "disliked" are
those left at random of the half that scores less for the query.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace

import numpy as np
from common import in_fresh_process, report
from serving import N_TREES, SEED, K, arguments, prepared, with_others_share

from recsys_helpers.index import AnnoyIndex
from recsys_helpers.serving import Query
from recsys_helpers.versions import load_newest

SHARES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002)
CATALOGUES, QUERIES = (3_416, 100_000), 200


def measure_filters(folder):
    """Recall@10 and microseconds by the share of the items that a filter leaves."""
    version, rows = load_newest(folder / "versions"), []
    some = np.random.default_rng(SEED).permutation(len(version.users))[:QUERIES]
    reads = [version.read(Query(user_id=user)) for user in version.users[some].tolist()]
    queries = version.tower.user_vectors(version.inputs(reads))
    for n in CATALOGUES:
        rng, of_items = np.random.default_rng(SEED), version.index.vectors
        vectors = of_items[np.arange(n) % len(of_items)]
        noise = rng.normal(size=vectors.shape) * 0.5 * of_items.std(axis=0)
        noise[: len(of_items)] = 0  # the first are the real ones
        vectors = (vectors + noise).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        index = AnnoyIndex("cosine", n_trees=N_TREES, seed=SEED).build(vectors, np.arange(1, n + 1))
        rows += filters_of(version, index, queries)
    return rows


def filters_of(version, index, queries):
    n, rng, rows = len(index), np.random.default_rng(SEED), []
    contenders = {
        "over-fetching alone": over_fetched,
        "exact on what is left": exact_on_rest,
        "the service's rule": by_rule(version, index),
        **inside_an_index(index.vectors),
    }
    for kind in ("any", "disliked"):
        for share in SHARES:
            masks, best = [], []
            for query in queries:
                scores = index.vectors @ query
                mask = rng.random(n) < share * (2 if kind == "disliked" else 1)
                if kind == "disliked":  # of the half that the query likes less
                    mask &= scores < np.median(scores)
                left = np.flatnonzero(mask)
                masks.append(mask)
                best.append(left[np.argsort(-scores[left], kind="stable")[:K]])
            for name, search in contenders.items():
                times, recalls = [], []
                for query, mask, right in zip(queries, masks, best, strict=True):
                    if not len(right):
                        continue
                    start = time.perf_counter()
                    found = search(index, query, mask, share)
                    times.append(time.perf_counter() - start)
                    recalls.append(len(set(right) & set(np.asarray(found).tolist())) / len(right))
                row = {"items": n, "filter": kind, "share": share, "search": name}
                row |= {"recall@10": float(np.mean(recalls))}
                rows.append(row | {"median_us": 1e6 * float(np.median(times))})
    return rows


def over_fetched(index, query, mask, share):
    """Ask for as many as should do on average and half as many again; what fits, fits."""
    ids, _ = index.query(query, min(len(index), int(1.5 * K / share) + 10))
    rows = ids - 1
    return rows[mask[rows]][:K]


def exact_on_rest(index, query, mask, share):
    left = np.flatnonzero(mask)
    scores = index.vectors[left] @ query
    return left[np.argsort(-scores)[:K]]


def by_rule(version, index):
    items = version.items.iloc[np.arange(len(index)) % len(version.items)]
    served = replace(version, index=index, items=items)

    def search(index, query, mask, share):
        return served._search(query, {"allowed": mask, "k": K})[1]

    return search


def inside_an_index(vectors):
    """Searches of graphs that are told what is allowed, of whichever library is installed."""
    found = {}
    try:
        import faiss

        graph = faiss.IndexHNSWFlat(vectors.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = 100
        graph.add(vectors)

        def in_faiss(index, query, mask, share):
            packed = np.packbits(mask, bitorder="little")
            chosen = faiss.SearchParametersHNSW(sel=faiss.IDSelectorBitmap(packed), efSearch=128)
            rows = graph.search(query[None].astype(np.float32), K, params=chosen)[1][0]
            return rows[rows >= 0]

        found["Faiss HNSW, inside"] = in_faiss
    except ImportError:
        print("faiss-cpu is not installed, so it is left out", flush=True)
    try:
        import hnswlib

        other = hnswlib.Index("ip", vectors.shape[1])
        other.init_index(len(vectors), M=16, ef_construction=100, random_seed=SEED)
        other.add_items(vectors)
        other.set_ef(128)
        other.set_num_threads(1)

        def in_hnswlib(index, query, mask, share):
            try:
                return other.knn_query(query, K, filter=lambda row: mask[row])[0][0]
            except RuntimeError:  # it has found fewer than k
                return []

        found["hnswlib, inside"] = in_hnswlib
    except ImportError:
        print("hnswlib is not installed, so it is left out", flush=True)
    return found


def main():
    given = arguments(__doc__.split("\n")[0]).parse_args()
    with tempfile.TemporaryDirectory(prefix="serving-") as temporary:
        folder = prepared(given.folder, temporary)
        rows = with_others_share(in_fresh_process, measure_filters, folder)
        report("serving_filters", rows)


if __name__ == "__main__":
    main()
