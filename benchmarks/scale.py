"""What grows beyond one machine, measured on one: bytes, seconds, memory, and what a fault costs.

    python benchmarks/scale.py bytes       sent in a training step, four processes, three layouts
    python benchmarks/scale.py parts       a million users and items encoded, searched; a kill -9
    python benchmarks/scale.py engines     Milvus Lite beside exact search
    python benchmarks/scale.py split       leave-last-out by DuckDB and by the package
    python benchmarks/scale.py backends    seconds an epoch, TensorFlow and JAX in turns
    python benchmarks/scale.py installed   megabytes and seconds until an engine is ready

Each takes minutes on two cores and writes `results/benchmarks/scale_<what>.json`; `parts` wants
10 GB of memory, and so does `bytes`. They need the extra `scale` and an idle machine; `bytes` needs
no more than a loopback interface that nobody else uses, whose counter it reads (as root:
`unshare -n sh -c "ip link set lo up; python benchmarks/scale.py bytes"`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from common import in_fresh_process, peak_memory_so_far, report  # noqa: E402

DIM, LENGTH, POSITIONS, NEGATIVES, ROWS = 32, 50, 16, 1024, 32
PROCESSES = 4
SHARES_OF = {"data": 4, "rows": 1, "both": 2}  # of a batch; the tables into the rest
MILLION = 1_000_000


def in_child(function: str, *arguments, **environment) -> subprocess.Popen:
    """A process that prints what the function returns, as JSON."""
    command = [sys.executable, __file__, "--call", function, json.dumps(arguments)]
    return subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, text=True
    )


def said(*children: subprocess.Popen) -> list:
    """What they returned."""
    texts = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise RuntimeError(f"a child ended with {[child.returncode for child in children]}")
    return [json.loads(text.splitlines()[-1]) for text in texts]


# --- Bytes of a training step -----------------------------------------------------------------


def sent() -> int:
    """Bytes that the loopback interface has sent."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split()[9])
    raise RuntimeError("there is no loopback interface in /proc/net/dev")


def make_model(num_items: int, table=None):
    """Two towers, each with a table of all items, and a network too small to matter."""
    from recsys_helpers.layers import EmbeddingTable
    from recsys_helpers.sampled_softmax import PopularitySampler
    from recsys_helpers.towers.dssm import DSSMUserTower
    from recsys_helpers.towers.youtubednn import ItemEmbeddingTower
    from recsys_helpers.two_tower import TwoTower

    table = table or EmbeddingTable
    sizes = {"history": num_items + 1, "history_length": LENGTH}
    model = TwoTower(
        DSSMUserTower(sizes, DIM, fields=[], table=table),
        ItemEmbeddingTower(num_items, DIM, table=table),
        num_items,
        PopularitySampler(np.r_[0, np.ones(num_items)], NEGATIVES, 0.5),
        temperature=0.1,
        exclude_seen=True,
    )
    return model


def train(address: str, process: int, layout: str, num_items: int, first: int, last: int):
    """Bytes of a step from the first to the last, of the tables and of all other weights."""
    from recsys_helpers.scale import training

    training.start(address, PROCESSES, process)
    training.data_parallel() if layout == "data" else training.tables_sharded(SHARES_OF[layout])
    import keras

    rng = np.random.default_rng(0)
    history = rng.integers(1, num_items + 1, (ROWS * last, LENGTH + POSITIONS - 1))
    ages = np.zeros((ROWS * last, POSITIONS), "float32")
    inputs = {"history": history.astype("int32"), "example_age": ages}
    targets = rng.integers(1, num_items + 1, (ROWS * last, POSITIONS)).astype("int32")
    keras.utils.set_random_seed(1)
    model = make_model(num_items, training.SharedTable)
    model.compile("adam")
    model({name: value[:1] for name, value in inputs.items()})
    seen = {}

    def look(step, logs):
        if step + 1 in (first, last):
            float(logs["loss"])  # the step has ended here,
            training.agree(step=step)  # and everywhere
            seen[step + 1] = sent()

    batches = training.GlobalBatches(inputs, targets, num_items, ROWS)
    look = keras.callbacks.LambdaCallback(on_train_batch_end=look)
    training.fit(model, batches, callbacks=[look], verbose=0)
    sizes = {"tables": 0, "network": 0}
    for weight in model.trainable_weights:
        part = "tables" if weight.path.endswith("embeddings") else "network"
        sizes[part] += 4 * int(np.prod(weight.shape))
    return (seen[last] - seen[first]) / (last - first), sizes["tables"], sizes["network"]


def in_processes(layout: str, num_items: int, first: int, last: int):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    return said(*(
        in_child("train", address, process, layout, num_items, first, last, **environment)
        for process in range(PROCESSES)
    ))[0]  # fmt: skip


def by_formula(layout: str, tables: float, network: float) -> float:
    """Bytes of a step of all processes: chapter 17's equation.

    A sum over n processes costs 2 (n - 1) times its length. The rows that are read are summed over
    the processes that share the tables, gradients over those that share the batch. What is left
    out: integers, by which seen items are left out, and matrices of the pooling's few weights.
    """
    shares = SHARES_OF[layout]
    holders, row = PROCESSES // shares, 4 * DIM
    of_batch = ROWS * (LENGTH + POSITIONS - 1 + POSITIONS)
    read = (of_batch + shares * NEGATIVES) * row
    gradients = tables + holders * (network + NEGATIVES * row)
    return 2 * (holders - 1) * read + 2 * (shares - 1) * gradients


def bytes_of_a_step() -> list[dict]:
    rows = []
    for num_items, first, last in ((10_000, 5, 25), (100_000, 3, 8), (MILLION, 2, 4)):
        for layout, shares in SHARES_OF.items():
            step, tables, network = in_processes(layout, num_items, first, last)
            rows.append({"items": num_items, "layout": layout, "known": "measured",
                         "processes": PROCESSES, "batch_shares": shares,
                         "tables_mb": tables / 1e6, "network_mb": network / 1e6,
                         "mb_a_step": step / 1e6,
                         "by_formula_mb": by_formula(layout, tables, network) / 1e6})  # fmt: skip
            print(rows[-1], flush=True)
    for num_items in (10 * MILLION, 100 * MILLION):
        for layout, shares in SHARES_OF.items():
            grown = tables + 2 * 4 * DIM * (num_items - MILLION)  # the network doesn't grow
            expected = by_formula(layout, grown, network) / 1e6
            rows.append({"items": num_items, "layout": layout, "known": "reasoned",
                         "processes": PROCESSES, "batch_shares": shares,
                         "tables_mb": grown / 1e6, "network_mb": network / 1e6,
                         "mb_a_step": expected, "by_formula_mb": expected})  # fmt: skip
    return rows


# --- Parts ------------------------------------------------------------------------------------


def write_parts(folder: str, users: int, parts: int = 40) -> None:
    """Inputs of users, ids of as many items, and a model that knows them, untrained."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from recsys_helpers.index import ExactIndex
    from recsys_helpers.scale.parts import lists

    rng, folder = np.random.default_rng(0), Path(folder)
    for name in ("users", "items"):
        (folder / name).mkdir()
    for part, ids in enumerate(np.array_split(np.arange(1, users + 1, dtype="int32"), parts)):
        history = rng.integers(1, users + 1, (len(ids), LENGTH)).astype("int32")
        ages = np.zeros((len(ids), 1), "float32")
        users_of = {"user_id": ids, "history": lists(history), "example_age": lists(ages)}
        tables = {"users": users_of, "items": {"item_id": ids}}
        for name, columns in tables.items():
            pq.write_table(pa.table(columns), folder / name / f"part-{part:03}.parquet")
    model = make_model(users)
    model({"history": history[:1], "example_age": ages[:1]})
    model.save(folder / "model.keras")
    vectors = rng.standard_normal((3_416, DIM), "float32")  # a catalogue like MovieLens-1M's
    ExactIndex().build(vectors, np.arange(1, 3_417)).save(folder / "index")


def work_on(what: str, folder: str):
    from recsys_helpers.index import ExactIndex
    from recsys_helpers.scale import parts

    model = str(Path(folder) / "model.keras")
    return {
        "users": parts.EncodeUsers(model),
        "items": parts.EncodeItems(model),
        "search": parts.Search(str(Path(folder) / "index"), ExactIndex, 10),
    }[what]


def by_loop(what: str, folder: str, source: str, destination: str):
    from recsys_helpers.scale.parts import over_parts

    report = over_parts(work_on(what, folder), source, destination)
    return report.seconds, peak_memory_so_far(), 1


def by_workers(what: str, folder: str, source: str, destination: str, kill: bool):
    """Seconds, peak memory of a worker, and how many worker processes there were."""
    from distributed import Client, LocalCluster

    from recsys_helpers.scale.parts import over_parts

    start = time.perf_counter()
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", memory_limit=0,
                     dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        pids = set(client.run(os.getpid).values())

        def kill_one():
            while len([*Path(destination).glob("*.parquet")]) < 16:
                time.sleep(0.02)
            os.kill(min(pids), signal.SIGKILL)

        if kill:
            thread = threading.Thread(target=kill_one, daemon=True)
            thread.start()
        over_parts(work_on(what, folder), source, destination, client)
        seconds = time.perf_counter() - start
        pids |= set(client.run(os.getpid).values())
        return seconds, max(client.run(peak_memory_so_far).values()), len(pids)


def complete(destination: Path, column: str, number: int) -> bool:
    """Every id from 1 on, once."""
    ids = pd.read_parquet(destination, columns=[column])[column].to_numpy()
    return len(ids) == number and np.array_equal(np.sort(ids), np.arange(1, number + 1))


def parts() -> list[dict]:
    users, rows = int(sys.argv[2]) if len(sys.argv) > 2 else MILLION, []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        in_fresh_process(write_parts, temporary, users)
        for what, column in (("users", "user_id"), ("items", "item_id"), ("search", "user_id")):
            source = folder / ("encoded users 0" if what == "search" else what)
            for number, how in enumerate(("a loop", "2 workers", "2 workers, one killed")):
                if what != "users" and "killed" in how:
                    continue
                to = folder / f"encoded {what} {number}"
                task = (what, temporary, str(source), str(to))
                if number:
                    seconds, peak, pids = said(in_child("by_workers", *task, "killed" in how))[0]
                else:
                    seconds, peak, pids = in_fresh_process(by_loop, *task)
                rows.append({"what": what, "rows": users, "how": how, "seconds": seconds,
                             "peak_memory_gib": peak, "processes": pids,
                             "complete": complete(to, column, users)})  # fmt: skip
                print(rows[-1], flush=True)
    return rows


# --- Engines ----------------------------------------------------------------------------------

NEIGHBOURS, QUERIES, NARROW = 100, 200, 100  # one item in 100 passes the narrow filter


def clustered(n: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around 200 centres, and queries around the same."""
    centres = rng.standard_normal((200, 64), "float32")
    items = centres[rng.integers(0, 200, n)] + rng.standard_normal((n, 64), "float32")
    queries = centres[rng.integers(0, 200, QUERIES)] + rng.standard_normal((QUERIES, 64), "float32")
    return tuple(v / np.linalg.norm(v, axis=1, keepdims=True) for v in (items, queries))


class Flat:
    """Faiss, where it is installed."""

    def build(self, vectors, ids):
        import faiss

        self.index, self.ids = faiss.IndexFlatIP(vectors.shape[1]), ids
        self.index.add(vectors)
        return self

    def query(self, vectors, k):
        scores, rows = self.index.search(np.atleast_2d(vectors), k)
        return self.ids[rows], scores


def recall(found, best) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, best, strict=True)]))


def judge(name: str, n: int) -> dict:
    """One engine on n vectors, in a process of its own."""
    from recsys_helpers.index import ExactIndex

    items, queries = clustered(n, np.random.default_rng(n))
    ids = np.arange(1, n + 1)
    best = ExactIndex().build(items, ids).query(queries, NEIGHBOURS)[0]
    group = ids % NARROW
    few = ExactIndex().build(items[group == 0], ids[group == 0])
    k = min(10, len(few))
    best_filtered = few.query(queries, k)[0]
    before, start, row = peak_memory_so_far(), time.perf_counter(), {"items": n, "engine": name}
    with tempfile.TemporaryDirectory() as folder:
        if name.startswith("Milvus"):
            from recsys_helpers.scale.milvus import MilvusIndex

            kind = name.split()[-1]
            build, search = {
                "FLAT": ({}, {}),
                "IVF_FLAT": ({"nlist": 256}, {"nprobe": 16}),
                "HNSW": ({"M": 32, "efConstruction": 200}, {"ef": 200}),
            }[kind]
            index = MilvusIndex(f"{folder}/vectors.db", kind=kind, build_params=build,
                                search_params=search)  # fmt: skip
            row["start_seconds"] = time.perf_counter() - start
            start = time.perf_counter()
            index.build(items, ids, {"group": group})
        else:
            index = {"ExactIndex": ExactIndex, "Faiss flat": Flat}[name]().build(items, ids)
        row["build_seconds"] = time.perf_counter() - start
        index.query(queries[0], NEIGHBOURS)  # what is done once is done
        start = time.perf_counter()
        one = [index.query(query, NEIGHBOURS)[0].ravel() for query in queries]
        row["ms_a_query"] = 1000 * (time.perf_counter() - start) / QUERIES
        start = time.perf_counter()
        index.query(queries, NEIGHBOURS)
        row["ms_batched"] = 1000 * (time.perf_counter() - start) / QUERIES
        row["recall"] = recall(one, best)
        if name.startswith("Milvus"):
            found = []
            for query in queries:  # the engine may find fewer than there are
                hits = index.client.search(
                    index.name, [query], filter="group == 0", limit=k,
                    search_params={"params": index.search_params},
                )  # fmt: skip
                found.append([hit["id"] for hit in hits[0]])
            row["filtered_recall"] = recall(found, best_filtered)
            row["disk_mb"] = sum(
                f.stat().st_size for f in Path(folder).rglob("*") if f.is_file()
            ) / 1e6  # fmt: skip
        row["more_memory_gib"] = peak_memory_so_far() - before
        if name.startswith("Milvus"):
            index.close()
    return row


def engines() -> list[dict]:
    names = [
        "ExactIndex",
        "Faiss flat",
        *(f"Milvus Lite {k}" for k in ("FLAT", "IVF_FLAT", "HNSW")),
    ]
    rows = []
    for n in (3_416, 100_000):
        for name in names:
            rows += said(in_child("judge", name, n))
            print(rows[-1], flush=True)
    return rows


# --- Split ------------------------------------------------------------------------------------


def split_by_package(folder: str, to: str):
    from recsys_helpers.datasets import load_dataset
    from recsys_helpers.splits import leave_last_out

    start = time.perf_counter()
    split = leave_last_out(load_dataset(folder, verbose=False), verbose=False)
    seconds, cpu, peak = time.perf_counter() - start, time.process_time(), peak_memory_so_far()
    Path(to).mkdir()
    for name in ("train", "validation", "test"):
        getattr(split, name).to_parquet(f"{to}/{name}.parquet")
    return seconds, cpu, peak


def split_by_duckdb(folder: str, to: str, memory: str):
    from recsys_helpers.scale.splitting import leave_last_out

    start = time.perf_counter()
    leave_last_out(folder, to, memory=memory)
    return time.perf_counter() - start, time.process_time(), peak_memory_so_far()


def same_rows(a: str, b: str) -> bool:
    columns = ["user_id", "item_id", "timestamp"]
    return all(
        np.array_equal(*(
            pd.read_parquet(f"{folder}/{name}.parquet", columns=columns).to_numpy("int64")
            for folder in (a, b)
        ))
        for name in ("train", "validation", "test")
    )  # fmt: skip


def split() -> list[dict]:
    import large_log

    events, rows = int(sys.argv[2]) if len(sys.argv) > 2 else 5 * MILLION, []
    with tempfile.TemporaryDirectory() as temporary:
        log = Path(temporary) / "log"
        log.mkdir()
        in_fresh_process(large_log.write, str(log), events)
        (log / "items.parquet").unlink()
        for how, function, task in (
            ("the package", split_by_package, ()),
            ("DuckDB", split_by_duckdb, ("",)),
            ("DuckDB, 1 GB allowed", split_by_duckdb, ("1GB",)),
        ):
            to = f"{temporary}/{how}"
            seconds, cpu, peak = in_fresh_process(function, str(log), to, *task)
            same = in_fresh_process(same_rows, f"{temporary}/the package", to)
            rows.append({"events": events, "how": how, "seconds": seconds, "cpu_seconds": cpu,
                         "peak_memory_gib": peak, "same_rows": same})  # fmt: skip
            print(rows[-1], flush=True)
    return rows


# --- Backends ---------------------------------------------------------------------------------


def epochs(kind: str, dataset: str, number: int = 3) -> list[float]:
    """Seconds of each epoch after the first, in which graphs are traced."""
    import keras

    from recsys_helpers.datasets import load_dataset
    from recsys_helpers.layers import ItemFeatures
    from recsys_helpers.sampled_softmax import PopularitySampler
    from recsys_helpers.samples import item_features, training_samples
    from recsys_helpers.splits import leave_last_out
    from recsys_helpers.towers.fm import FMItemTower, FMUserTower
    from recsys_helpers.towers.youtubednn import ItemEmbeddingTower, YouTubeDNNUserTower
    from recsys_helpers.two_tower import TwoTower

    keras.utils.set_random_seed(1)
    split = leave_last_out(load_dataset(dataset, verbose=False), verbose=False)
    samples, num_items = training_samples(split, positions=POSITIONS), split.dataset.num_items
    counts = np.bincount(samples.targets[samples.targets > 0], minlength=num_items + 1)
    if kind == "FM":
        features = ItemFeatures(item_features(split.dataset))
        towers = FMUserTower(samples.sizes, DIM), FMItemTower(features, DIM)
    else:
        towers = YouTubeDNNUserTower(samples.sizes, 64), ItemEmbeddingTower(num_items, 64)
    sampler = PopularitySampler(counts, NEGATIVES, 0.5)
    model = TwoTower(*towers, num_items, sampler, temperature=0.1, exclude_seen=True)
    model.compile(keras.optimizers.Adam(1e-3))
    seconds = []
    for _ in range(number + 1):
        start = time.perf_counter()
        model.fit(samples.inputs, samples.targets, batch_size=ROWS, verbose=0)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def backends() -> list[dict]:
    dataset, rounds, found = sys.argv[2] if len(sys.argv) > 2 else "ml-100k", 3, {}
    for _ in range(rounds):
        for kind in ("FM", "YouTubeDNN"):
            for backend in ("tensorflow", "jax"):
                child = in_child("epochs", kind, dataset, KERAS_BACKEND=backend)
                found.setdefault((kind, backend), []).extend(said(child)[0])
    return [
        {"dataset": dataset, "model": kind, "backend": backend, "epochs": len(seconds),
         "seconds": float(np.median(seconds)), "fastest": min(seconds), "slowest": max(seconds)}
        for (kind, backend), seconds in found.items()
    ]  # fmt: skip


# --- Packages ---------------------------------------------------------------------------------

CORE = "tensorflow keras pandas pyarrow annoy matplotlib pooch scipy tqdm jinja2 requests".split()
STARTS = {
    "jax": "import jax; jax.devices()",
    "distributed": """
        from distributed import Client, LocalCluster
        cluster = LocalCluster(n_workers=2, host="127.0.0.1", dashboard_address=None)
        Client(cluster).wait_for_workers(2)""",
    "pymilvus": """
        from pymilvus import MilvusClient
        MilvusClient(folder + "/vectors.db").list_collections()""",
    "duckdb": "import duckdb; duckdb.connect(folder + '/work.duckdb').execute('SELECT 1')",
}


def needed_by(*names: str) -> set[str]:
    """Installed distributions that these bring, themselves included."""
    from importlib import metadata

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found, todo = set(), [canonicalize_name(name) for name in names]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                todo.append(canonicalize_name(needed.name))
    return found


def start(name: str) -> float:
    """Seconds until the engine can be asked for something, its import included."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        exec(textwrap.dedent(STARTS[name]), {"folder": folder})
        return time.perf_counter() - begin


def installed() -> list[dict]:
    from importlib import metadata

    core, rows = needed_by(*CORE), []
    for name in STARTS:
        more = needed_by(name, *(["milvus-lite"] if name == "pymilvus" else [])) - core
        files = [f for package in more for f in metadata.distribution(package).files or []]
        size = sum(f.locate().stat().st_size for f in files if f.locate().is_file())
        seconds = float(np.median([said(in_child("start", name))[0] for _ in range(3)]))
        rows.append({"engine": name, "version": metadata.version(name), "mb": size / 1e6,
                     "start_seconds": seconds, "packages": " ".join(sorted(more))})  # fmt: skip
    return rows


PARTS = {"bytes": bytes_of_a_step, "parts": parts, "engines": engines, "split": split,
         "backends": backends, "installed": installed}  # fmt: skip

if __name__ == "__main__":
    if sys.argv[1:2] == ["--call"]:
        print(json.dumps(globals()[sys.argv[2]](*json.loads(sys.argv[3]))))
    elif len(sys.argv) < 2 or sys.argv[1] not in PARTS:
        sys.exit(f"{__doc__}\nexpected one of {', '.join(PARTS)}")
    else:
        report(f"scale_{sys.argv[1]}", PARTS[sys.argv[1]]())
