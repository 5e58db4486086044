"""Recall@10 against queries per second: exact search, Annoy, and what has come after Annoy.

    pip install -r benchmarks/requirements.txt      the others; whoever is missing is left out
    python benchmarks/retrieval.py                  everything (about twenty minutes, 6 GB)
    python benchmarks/retrieval.py 10000 100000     these catalogue sizes only

Unit vectors of 64 dimensions, for which cosine and inner product are the same, of two kinds:
"random" ones have a normal distribution in each coordinate before they are scaled; "trained" ones
are a YouTubeDNN's of ml-100k, its items tiled with noise half as large as the spread of each
coordinate, asked with its users. Queries get one thread, whoever answers them, and the contenders
take turns. Builds may have all threads, but for `AnnoyIndex`, whose builds are repeatable; one that
would take more than three minutes, by the seconds of the size before, is skipped. Annoy has no call
for a batch: its batch is the loop over single queries, measured once for both. The batch of
`AnnoyIndex` is such a loop as well, within its own call. Sizes are those of saved files; ours hold
the vectors a second time, for the scores.

A second table compares `AnnoyIndex.query` with Annoy's own call, on the same file and queries, by
the median over the queries of each one's best time: that of caches which know the query already,
in which what ours adds weighs most.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from functools import partial
from importlib import import_module
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ[variable] = "1"  # of numpy, which reads it when it is imported

import annoy  # noqa: E402
import numpy as np  # noqa: E402
from common import alternate, in_fresh_process, report  # noqa: E402

from recsys_helpers.index import AnnoyIndex  # noqa: E402

SIZES = (10_000, 100_000, 1_000_000)
DIM, K, SEED, QUERIES, EPOCHS = 64, 10, 1, 200, 4
ROUNDS = 5
TURN = 0.05  # seconds; the quick get all queries several times, the slow some, but ten at least
PATIENCE = 180  # seconds; a build that would take longer is skipped
THREADS = os.cpu_count()  # of builds
N_TREES, OUR_TREES = (10, 50, 100), 50  # ours: those of the chapters
MOST_NODES = 50_000_000  # items times trees; no larger forests
SEARCH_K = (200, 1_000, 5_000, 20_000, 80_000)
EF, NPROBE = (16, 64, 256, 1024), (1, 4, 16, 64)
M, EF_CONSTRUCTION = 16, 100
OVERHEAD_ROUNDS, OVERHEAD_SEARCH_K = 7, (500, 1_000, 2_000, 5_000, 20_000)


class Contender:
    """An index with a knob for its queries: `build`, `save`, `turn`, and then `one` or `batch`."""

    name, build_text, knob, grid, library, batch = "", "", "", (0,), "numpy", None

    def turn(self, value):
        self.value = value


class Exact(Contender):
    """A matrix product, a partition, and a sort of the ten."""

    name, build_text = "exact (numpy)", "the vectors themselves"

    def build(self, vectors):
        self.vectors = vectors

    def save(self, path):
        np.save(path.with_suffix(".npy"), self.vectors)

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
        (self.forest,) = path.glob("forest-*.ann")

    def turn(self, value):
        self.index.search_k = value

    def one(self, query):
        return self.index.query(query, K)[0]

    def batch(self, queries):
        return self.index.query(queries, K)[0]


class Annoy(Contender):
    """Annoy itself; given `ours`, it opens the forest that was built and saved there."""

    name, knob, grid, library = "Annoy", "search_k", SEARCH_K, "annoy"

    def __init__(self, n_trees, ours=None):
        self.n_trees, self.ours = n_trees, ours
        self.build_text = f"n_trees={n_trees}, {'one thread' if ours else 'all threads'}"

    def build(self, vectors):
        self.index = annoy.AnnoyIndex(DIM, "angular")
        if self.ours:
            self.index.load(str(self.ours.forest))
            return
        self.index.set_seed(SEED)
        for row, vector in enumerate(vectors):
            self.index.add_item(row, vector)
        self.index.build(self.n_trees, n_jobs=-1)

    def save(self, path):
        if self.ours:
            os.link(self.ours.forest, path)
        else:
            self.index.save(str(path))

    def one(self, query):
        return self.index.get_nns_by_vector(query, K, self.value, include_distances=True)[0]


class FaissHNSW(Contender):
    name, knob, grid, library = "Faiss HNSW", "efSearch", EF, "faiss"
    build_text = f"M={M}, efConstruction={EF_CONSTRUCTION}, all threads"

    def build(self, vectors):
        self.faiss = import_module(self.library)
        self.faiss.omp_set_num_threads(THREADS)
        self.index = self._new(len(vectors))
        self.index.train(vectors)
        self.index.add(vectors)
        self.faiss.omp_set_num_threads(1)

    def _new(self, n):
        index = self.faiss.IndexHNSWFlat(DIM, M, self.faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = EF_CONSTRUCTION
        return index

    def save(self, path):
        self.faiss.write_index(self.index, str(path))

    def turn(self, value):
        self.index.hnsw.efSearch = value

    def one(self, query):
        return self.index.search(query[None], K)[1][0]

    def batch(self, queries):
        return self.index.search(queries, K)[1]


class FaissIVF(FaissHNSW):
    name, knob, grid = "Faiss IVF", "nprobe", NPROBE
    build_text = "IVFFlat, sqrt(items) lists, all threads"

    def _new(self, n):
        self.centres = self.faiss.IndexFlatIP(DIM)
        lists, metric = round(n**0.5), self.faiss.METRIC_INNER_PRODUCT
        return self.faiss.IndexIVFFlat(self.centres, DIM, lists, metric)

    def turn(self, value):
        self.index.nprobe = value


class Hnswlib(Contender):
    name, knob, grid, library = "hnswlib", "ef", EF, "hnswlib"
    build_text = f"M={M}, ef_construction={EF_CONSTRUCTION}, all threads"

    def build(self, vectors):
        self.index = import_module(self.library).Index("ip", DIM)
        settings = {"M": M, "ef_construction": EF_CONSTRUCTION, "random_seed": SEED}
        self.index.init_index(len(vectors), **settings)
        self.index.add_items(vectors, num_threads=THREADS)
        self.index.set_num_threads(1)

    def save(self, path):
        self.index.save_index(str(path))

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

    def one(self, query):
        return self.index.query(query, K, num_threads=1, query_ef=self.value)[0]

    batch = one


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("float32")


def train():
    """Item and user vectors of chapter 5's model, after a few epochs."""
    import keras

    from recsys_helpers.datasets import load_dataset
    from recsys_helpers.samples import training_samples
    from recsys_helpers.splits import leave_last_out
    from recsys_helpers.towers import ItemEmbeddingTower, YouTubeDNNUserTower
    from recsys_helpers.two_tower import TwoTower

    keras.utils.set_random_seed(SEED)
    split = leave_last_out(load_dataset("ml-100k"))
    rows, items = training_samples(split, positions=16), split.dataset.num_items
    age = rows.inputs["example_age"][rows.targets > 0]
    settings = {"dropout": 0.5, "example_age_scale": float(age.mean())}
    user_tower = YouTubeDNNUserTower(rows.sizes, DIM, **settings)
    model = TwoTower(user_tower, ItemEmbeddingTower(items, DIM), items, temperature=0.15, seed=SEED)
    model.compile(optimizer=keras.optimizers.Adam(1e-3))
    model.fit(rows.inputs, rows.targets, batch_size=32, epochs=EPOCHS, verbose=0)
    return model.item_vectors(), model.user_vectors(rows.serving_inputs("test"))


def make_vectors(kind, n, trained):
    """Unit vectors of n items, and the queries."""
    rng = np.random.default_rng(SEED)
    if kind == "random":
        return unit(rng.standard_normal((n, DIM), "float32")), unit(rng.normal(size=(QUERIES, DIM)))
    items, users = trained
    noise = rng.standard_normal((n, DIM), "float32") * 0.5 * items.std(axis=0)
    noise[: len(items)] = 0  # the first are the real ones
    some = rng.permutation(len(users))[:QUERIES]
    return unit(items[np.arange(n) % len(items)] + noise), unit(users[some])


def available(contenders):
    """Those whose libraries are installed."""
    missing = set()
    for library in {contender.library for contender in contenders}:
        try:
            import_module(library)
        except ImportError:
            missing.add(library)
            print(f"{library} is not installed, so it is left out", flush=True)
    return [contender for contender in contenders if contender.library not in missing]


def seconds_each(contender, value, ask, queries, times=1):
    """Seconds of a query, when `ask` answers all of them."""
    contender.turn(value)
    start = time.perf_counter()
    for _ in range(times):
        ask(queries)
    return (time.perf_counter() - start) / (times * len(queries))


def each(one, queries):
    return [one(query) for query in queries]


def in_a_turn(seconds, queries):
    """As many queries as a turn has time for, and how often."""
    asked = queries[: max(10, int(TURN / seconds))]
    return asked, max(1, int(TURN / seconds / len(asked)))


def compare(kind, vectors, queries, folder, known):
    """Rows of all contenders on these vectors, and of the overhead of ours.

    `known` holds (contender, parameters) -> (items, seconds) of the builds so far, from which a
    build that would take too long is noticed before it begins.
    """
    n, rows, contenders = len(vectors), [], {}
    best = Exact()
    best.build(vectors)
    best = best.batch(queries)
    ours = Ours()
    forests = [
        Annoy(trees, ours if trees == OUR_TREES else None)
        for trees in N_TREES
        if trees * n <= MOST_NODES
    ]
    others = [FaissHNSW(), FaissIVF(), Hnswlib(), Voyager()]
    for number, contender in enumerate(available([Exact(), ours, *forests, *others])):
        row = {"vectors": kind, "items": n, "index": contender.name, "build": contender.build_text}
        shared = isinstance(contender, Annoy) and contender.ours
        name = (kind, (ours if shared else contender).name, contender.build_text)
        items, seconds = known.get(name, (n, 0.0))
        # Half as much again, because the cache holds less of what is larger.
        forecast = seconds * n / items * (1.5 if n > items else 1)
        if forecast > PATIENCE and not (shared and hasattr(ours, "forest")):
            reason = (
                f"the build would take about {forecast:.0f} s: {seconds:.0f} s for {items:,} items"
            )
            rows.append(row | {"skipped": reason})
            print(rows[-1], flush=True)
            continue
        path = folder / str(number)
        start = time.perf_counter()
        contender.build(vectors)
        if not shared:
            known[name] = n, time.perf_counter() - start
        contender.save(path)
        row |= {"build_seconds": known[name][1], "index_mb": size_of(path) / 1e6}
        print(row, flush=True)
        for value in contender.grid:
            if contender.knob == "search_k" and value > 2 * n:
                continue
            contender.turn(value)
            start = time.perf_counter()
            found = each(contender.one, queries)  # recall, and how many queries fit into a turn
            asked = in_a_turn((time.perf_counter() - start) / len(queries), queries)
            row |= {"query": f"{contender.knob}={value}" if contender.knob else "all items"}
            recall = np.mean([len(set(a) & set(b)) / K for a, b in zip(found, best, strict=True)])
            for mode, ask in (
                ("one at a time", partial(each, contender.one)),
                ("batch", contender.batch),
            ):
                key = len(rows)
                rows.append(row | {"mode": mode, "recall@10": float(recall)})
                if ask is None:  # the loop is the batch
                    continue
                contenders[key] = partial(seconds_each, contender, value, ask, *asked)
    for key, seconds in alternate(contenders, ROUNDS).items():
        rows[key]["queries_per_second"] = 1 / seconds
    for before, row in zip(rows, rows[1:], strict=False):
        if "mode" in row and "queries_per_second" not in row:
            row["queries_per_second"] = before["queries_per_second"]
    return rows, overhead(kind, n, ours, queries) if hasattr(ours, "forest") else []


def size_of(path):
    """Bytes of a saved index, be it a file, a folder, or an array that numpy gave its own name."""
    path = path if path.exists() else path.with_suffix(".npy")
    return sum(f.stat().st_size for f in (path.iterdir() if path.is_dir() else [path]))


def overhead(kind, n, ours, queries):
    """Our query against Annoy's own, which is given the array, or, faster, a list of floats."""
    rows, own = [], Annoy(OUR_TREES, ours)
    own.build(None)
    contenders = {"ours": (ours, queries), "array": (own, queries), "list": (own, queries.tolist())}
    for search_k in OVERHEAD_SEARCH_K:
        asked, _ = in_a_turn(seconds_each(own, search_k, partial(each, own.one), queries), queries)
        best = {name: np.full(len(asked), np.inf) for name in contenders}
        for _ in range(OVERHEAD_ROUNDS):
            for name, (contender, given) in contenders.items():
                contender.turn(search_k)
                for i in range(len(asked)):
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
    sizes = sorted(int(size) for size in sys.argv[1:]) or list(SIZES)
    trained = in_fresh_process(train)  # TensorFlow and its threads stay there
    rows, overhead_rows, known = [], [], {}
    for n in sizes:
        for kind in ("trained", "random"):
            vectors, queries = make_vectors(kind, n, trained)
            with tempfile.TemporaryDirectory(prefix="retrieval-") as folder:
                more, of_ours = compare(kind, vectors, queries, Path(folder), known)
            rows += more
            overhead_rows += of_ours
        report("retrieval", rows)  # after each size: the largest takes the longest
        report("retriever_overhead", overhead_rows)


if __name__ == "__main__":
    main()
