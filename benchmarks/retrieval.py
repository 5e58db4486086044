"""Recall@10 against queries per second: exact search, Annoy, and what has come after Annoy.

    pip install -r benchmarks/requirements.txt      the others; whoever is missing is left out
    python benchmarks/retrieval_vectors.py vectors.npz
    python benchmarks/retrieval.py vectors.npz folder build         the indexes (half an hour, 8 GB)
    python benchmarks/retrieval.py vectors.npz folder trained-1000000       ask them; minutes each,
    python benchmarks/retrieval.py vectors.npz folder                       or all; keep it idle

Unit vectors of 64 dimensions, for which cosine and inner product are the same. "trained" ones are
the items of `retrieval_vectors.py`, and smaller catalogues are random parts of the million; the
queries are its users. "random" ones have a normal distribution in each coordinate before they are
scaled, queries as well. Builds may have all threads, but for `AnnoyIndex`, whose builds are
repeatable; their time is the processor's, all threads added up, since it may be shared. Each
setting's recall comes from all queries. Then all settings of all indexes take turns with one
thread, some milliseconds each, one query at a time and in batches of all; what is reported is the
median over the rounds, with the quartiles. Annoy has no call for a batch. Sizes are those of saved
files; ours hold the vectors a second time, for the scores.

A second table compares `AnnoyIndex.query` with Annoy's own call, on the same file and queries, by
the median over the queries of each one's best time: that of caches which know the query already,
in which what ours adds weighs most.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path

for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ[variable] = "1"  # of numpy, which reads it when it is imported

import annoy  # noqa: E402
import numpy as np  # noqa: E402
from common import FOLDER, report  # noqa: E402

from recsys_helpers.index import AnnoyIndex  # noqa: E402

CASES = ("trained-10000", "trained-100000", "trained-1000000", "random-100000")
DIM, K, SEED, QUERIES = 64, 10, 1, 500
ROUNDS, TURN = 7, 0.03  # seconds of a turn, in which the quick are asked several times
BATCH, SINGLE = 200, 40  # queries; the least of a turn one at a time is this many
THREADS = os.cpu_count()  # of builds
N_TREES, OUR_TREES = (10, 50, 100), 50  # ours: those of the chapters
MOST_NODES = 50_000_000  # items times trees; no larger forests
LOW, HIGH, LITTLE = 0.5, 0.99, 0.001  # recalls that are timed, and the least gain of a step
SEARCH_K = tuple(int(100 * 10 ** (step / 5)) for step in range(18))  # 100 to 250,000
EF = tuple(int(10 * 2 ** (step / 2)) for step in range(16))  # 10 to 1,810
NPROBE = tuple(sorted({int(2 ** (step / 2)) for step in range(17)}))  # 1 to 256
M, EF_CONSTRUCTION = 16, 100
OVERHEAD_ROUNDS, OVERHEAD_SEARCH_K = 7, (500, 1_000, 2_000, 5_000, 20_000)


class Contender:
    """An index with a knob for its queries: `build`, `save`, `load`, `turn`, `one` and `batch`."""

    name, build_text, knob, grid, library, batch = "", "", "", (0,), "numpy", None

    def turn(self, value):
        self.value = value


class Exact(Contender):
    """A matrix product, a partition, and a sort of the ten."""

    name, build_text = "exact (numpy)", "the vectors themselves"

    def build(self, vectors):
        self.vectors = vectors

    def save(self, path):
        np.save(path, self.vectors)

    def load(self, path):
        self.vectors = np.load(path)

    def one(self, query):
        scores = self.vectors @ query
        top = np.argpartition(scores, -K)[-K:]
        return top[np.argsort(-scores[top])]

    def batch(self, queries):
        step = max(1, 2**24 // len(self.vectors))  # 64 MiB of scores
        found = []
        for start in range(0, len(queries), step):
            scores = queries[start : start + step] @ self.vectors.T
            top = np.argpartition(scores, -K)[:, -K:]
            order = np.argsort(-np.take_along_axis(scores, top, 1))
            found.append(np.take_along_axis(top, order, 1))
        return np.concatenate(found)


class Ours(Contender):
    """The package's retriever, with the vectors' rows as ids."""

    name, knob, grid, library = "AnnoyIndex (ours)", "search_k", SEARCH_K, "annoy"
    build_text = f"n_trees={OUR_TREES}, one thread"

    def build(self, vectors):
        self.index = AnnoyIndex("cosine", n_trees=OUR_TREES, seed=SEED)
        self.index.build(vectors, np.arange(len(vectors)))

    def save(self, path):
        self.index.save(path)

    def load(self, path):
        self.index = AnnoyIndex.load(path)

    def turn(self, value):
        self.index.search_k = value

    def one(self, query):
        return self.index.query(query, K)[0]

    def batch(self, queries):
        return self.index.query(queries, K)[0]


class Annoy(Contender):
    """Annoy itself."""

    name, knob, grid, library = "Annoy", "search_k", SEARCH_K, "annoy"

    def __init__(self, n_trees):
        self.n_trees, self.build_text = n_trees, f"n_trees={n_trees}, all threads"

    def build(self, vectors):
        self.index = annoy.AnnoyIndex(DIM, "angular")
        self.index.set_seed(SEED)
        for row, vector in enumerate(vectors):
            self.index.add_item(row, vector)
        self.index.build(self.n_trees, n_jobs=-1)

    def save(self, path):
        self.index.save(str(path))

    def load(self, path):
        self.index = annoy.AnnoyIndex(DIM, "angular")
        self.index.load(str(path), prefault=True)

    def one(self, query):
        return self.index.get_nns_by_vector(query, K, self.value, include_distances=True)[0]


class FaissHNSW(Contender):
    name, knob, grid, library = "Faiss HNSW", "efSearch", EF, "faiss"
    build_text = f"M={M}, efConstruction={EF_CONSTRUCTION}, all threads"

    def build(self, vectors):
        faiss = import_module("faiss")
        faiss.omp_set_num_threads(THREADS)
        self.index = self._new(faiss, len(vectors))
        self.index.train(vectors)
        self.index.add(vectors)

    def _new(self, faiss, n):
        index = faiss.IndexHNSWFlat(DIM, M, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = EF_CONSTRUCTION
        return index

    def save(self, path):
        import_module("faiss").write_index(self.index, str(path))

    def load(self, path):
        faiss = import_module("faiss")
        faiss.omp_set_num_threads(1)
        self.index = faiss.read_index(str(path))

    def turn(self, value):
        self.index.hnsw.efSearch = value

    def one(self, query):
        return self.index.search(query[None], K)[1][0]

    def batch(self, queries):
        return self.index.search(queries, K)[1]


class FaissIVF(FaissHNSW):
    name, knob, grid = "Faiss IVF", "nprobe", NPROBE
    build_text = "IVFFlat, sqrt(items) lists, all threads"

    def _new(self, faiss, n):
        self.centres = faiss.IndexFlatIP(DIM)
        return faiss.IndexIVFFlat(self.centres, DIM, round(n**0.5), faiss.METRIC_INNER_PRODUCT)

    def turn(self, value):
        self.index.nprobe = value


class FaissPQ(FaissIVF):
    """Cells of vectors that are kept as 16 bytes instead of 256."""

    name, build_text = "Faiss IVF-PQ", "IVFPQ, sqrt(items) lists, 16 codes of 8 bits, all threads"

    def _new(self, faiss, n):
        self.centres = faiss.IndexFlatIP(DIM)
        lists = round(n**0.5)
        return faiss.IndexIVFPQ(self.centres, DIM, lists, 16, 8, faiss.METRIC_INNER_PRODUCT)


class Hnswlib(Contender):
    name, knob, grid, library = "hnswlib", "ef", EF, "hnswlib"
    build_text = f"M={M}, ef_construction={EF_CONSTRUCTION}, all threads"

    def build(self, vectors):
        self.index = import_module(self.library).Index("ip", DIM)
        settings = {"M": M, "ef_construction": EF_CONSTRUCTION, "random_seed": SEED}
        self.index.init_index(len(vectors), **settings)
        self.index.add_items(vectors, num_threads=THREADS)

    def save(self, path):
        self.index.save_index(str(path))

    def load(self, path):
        self.index = import_module(self.library).Index("ip", DIM)
        self.index.load_index(str(path))
        self.index.set_num_threads(1)

    def turn(self, value):
        self.index.set_ef(value)

    def one(self, query):
        return self.index.knn_query(query, K)[0][0]

    def batch(self, queries):
        return self.index.knn_query(queries, K)[0]


class Voyager(Contender):
    name, knob, grid, library = "Voyager", "query_ef", EF, "voyager"
    build_text = f"M={M}, ef_construction={EF_CONSTRUCTION}, float32, all threads"

    def build(self, vectors):
        voyager = import_module(self.library)
        settings = {"M": M, "ef_construction": EF_CONSTRUCTION, "random_seed": SEED}
        self.index = voyager.Index(voyager.Space.Cosine, DIM, **settings)
        self.index.add_items(vectors, num_threads=THREADS)

    def save(self, path):
        self.index.save(str(path))

    def load(self, path):
        self.index = import_module(self.library).Index.load(str(path))

    def one(self, query):
        return self.index.query(query, K, num_threads=1, query_ef=self.value)[0]

    batch = one


class Usearch(Contender):
    name, knob, grid, library = "USearch", "expansion_search", EF, "usearch.index"
    build_text = f"connectivity={M}, expansion_add={EF_CONSTRUCTION}, float32, all threads"

    def build(self, vectors):
        settings = {"connectivity": M, "expansion_add": EF_CONSTRUCTION, "dtype": "f32"}
        self.index = import_module(self.library).Index(ndim=DIM, metric="ip", **settings)
        self.index.add(np.arange(len(vectors)), vectors, threads=THREADS)

    def save(self, path):
        self.index.save(str(path))

    def load(self, path):
        self.index = import_module(self.library).Index.restore(str(path))

    def turn(self, value):
        self.index.expansion_search = value

    def one(self, query):
        return self.index.search(query, K, threads=1).keys

    batch = one


def contenders() -> list[Contender]:
    """Those whose libraries are installed."""
    found, forests = [], [Annoy(trees) for trees in N_TREES]
    others = [FaissHNSW(), FaissIVF(), FaissPQ(), Hnswlib(), Voyager(), Usearch()]
    for contender in (Exact(), Ours(), *forests, *others):
        try:
            import_module(contender.library)
            found.append(contender)
        except ImportError:
            print(f"{contender.library} is not installed, so it is left out", flush=True)
    return found


def vectors_of(case: str, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of the items, [n, DIM], and of the queries, [QUERIES, DIM]."""
    kind, n = case.split("-")
    rng = np.random.default_rng(SEED)
    if kind == "random":
        drawn = rng.standard_normal((int(n) + QUERIES, DIM), np.float32)
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        return drawn[QUERIES:], drawn[:QUERIES]
    with np.load(path) as file:
        items, users = file["items"], file["users"]
    return items[np.sort(rng.permutation(len(items))[: int(n)])], users[:QUERIES]


def place_of(folder: Path, case: str, contender: Contender) -> Path:
    text = f"{contender.name} {contender.build_text}".replace("/", " ")
    return folder / case / f"{text}{'.npy' * isinstance(contender, Exact)}"


def build(case: str, path: str, folder: Path) -> None:
    """Every index of a case that isn't there yet, and what its build took."""
    vectors, _ = vectors_of(case, path)
    for contender in contenders():
        place = place_of(folder, case, contender)
        forest = getattr(contender, "n_trees", 0) * len(vectors)
        if place.with_suffix(".json").exists() or forest > MOST_NODES:
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        start = time.process_time()
        contender.build(vectors)
        took = {"build_cpu_seconds": time.process_time() - start}
        contender.save(place)
        parts = place.iterdir() if place.is_dir() else [place]
        took["index_mb"] = sum(part.stat().st_size for part in parts) / 1e6
        place.with_suffix(".json").write_text(json.dumps(took))
        print(case, contender.name, contender.build_text, took, flush=True)


def seconds(contender: Contender, value, queries, batch: bool, times: int = 1) -> float:
    """Of a query."""
    contender.turn(value)
    start = time.perf_counter()
    for _ in range(times):
        if batch:
            contender.batch(queries)
        else:
            for query in queries:
                contender.one(query)
    return (time.perf_counter() - start) / (times * len(queries))


def ask(case: str, path: str, folder: Path) -> tuple[list[dict], list[dict]]:
    """Rows of all contenders, and of the overhead of ours."""
    vectors, queries = vectors_of(case, path)
    kind, n = case.split("-")
    exact = Exact()
    exact.build(vectors)
    best, rows, turns, loaded = exact.batch(queries), [], [], {}
    for contender in contenders():
        place = place_of(folder, case, contender)
        if not place.with_suffix(".json").exists():
            print(f"{contender.name}, {contender.build_text} isn't built, so it is left out")
            continue
        contender.load(place)
        loaded[contender.name, contender.build_text] = contender
        row = {"vectors": kind, "items": int(n), "index": contender.name}
        row |= {"build": contender.build_text} | json.loads(place.with_suffix(".json").read_text())
        before = 0.0
        for value in contender.grid:
            contender.turn(value)
            found = [contender.one(query) for query in queries]
            recall = np.mean([len({*a} & {*b}) / K for a, b in zip(found, best, strict=True)])
            if recall < LOW:
                continue
            row |= {"query": f"{contender.knob}={value}" if contender.knob else "all items"}
            for batch in (False, True) if contender.batch else (False,):
                asked = queries[: BATCH if batch else SINGLE]
                once = seconds(contender, value, asked, batch) * len(asked)
                turns.append((contender, value, asked, batch, max(1, int(TURN / once))))
                mode = "batch" if batch else "one at a time"
                rows.append(row | {"mode": mode, "recall@10": float(recall)})
            if recall >= HIGH or recall - before < LITTLE:  # the rest is time only
                break
            before = recall
    took = np.array([[seconds(*turn) for turn in turns] for _ in range(ROUNDS)])
    for row, quartiles in zip(
        rows, np.quantile(1 / took, [0.25, 0.5, 0.75], axis=0).T, strict=True
    ):
        names = ("low_quartile", "queries_per_second", "high_quartile")
        row |= dict(zip(names, map(float, quartiles), strict=True))
    ours, own = loaded["AnnoyIndex (ours)", Ours.build_text], Annoy(OUR_TREES)
    (forest,) = place_of(folder, case, ours).glob("forest-*.ann")
    own.load(forest)
    return rows, overhead(kind, int(n), ours, own, queries[:SINGLE])


def overhead(kind: str, n: int, ours: Ours, own: Annoy, queries: np.ndarray) -> list[dict]:
    """Our query against Annoy's own, which is given the array, or, faster, a list of floats."""
    rows = []
    compared = {"ours": (ours, queries), "array": (own, queries), "list": (own, queries.tolist())}
    for search_k in OVERHEAD_SEARCH_K:
        best = {name: np.full(len(queries), np.inf) for name in compared}
        for _ in range(OVERHEAD_ROUNDS):
            for name, (contender, given) in compared.items():
                contender.turn(search_k)
                for i in range(len(queries)):
                    start = time.perf_counter()
                    contender.one(given[i])
                    best[name][i] = min(best[name][i], time.perf_counter() - start)
        micro = {name: 1e6 * float(np.median(values)) for name, values in best.items()}
        row = {"vectors": kind, "items": n, "n_trees": OUR_TREES, "search_k": search_k}
        row |= {f"{name}_us": value for name, value in micro.items()}
        row |= {f"ours/{name}": micro["ours"] / micro[name] for name in ("array", "list")}
        rows.append(row)
    return rows


def main():
    path, folder, *cases = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
    if cases[:1] == ["build"]:
        for case in cases[1:] or CASES:
            build(case, path, folder)
        return
    for case in cases or CASES:
        for name, rows in zip(
            ("retrieval", "retriever_overhead"), ask(case, path, folder), strict=True
        ):
            file = FOLDER / f"{name}.json"
            kept = [
                {key: value for key, value in row.items() if key != "machine"}
                for row in (json.loads(file.read_text()) if file.exists() else [])
                if f"{row['vectors']}-{row['items']}" != case
            ]
            report(name, kept + rows)


if __name__ == "__main__":
    main()
