"""The service under load, while versions are published, while publishers are killed, and filtered.

    pip install faiss-cpu hnswlib          for the filters inside an index; left out if missing
    python benchmarks/serving.py           everything, about eight minutes; keep the machine idle
    python benchmarks/serving.py tower load publish kill filters      only these

YouTubeDNN with vectors of 64 on MovieLens-1M after one epoch, which is enough for speed, behind an
Annoy index of 50 trees. The service is a process of its own and so is the load, which comes from
httpx2 at given moments, whatever has been answered by then: a request's time counts from the moment
at which it was due, so that waiting for a busy client or service is part of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
for variable in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402
from common import alternate, in_fresh_process, report  # noqa: E402

from recsys_helpers.index import AnnoyIndex  # noqa: E402
from recsys_helpers.served_tower import ExportedTower, NumpyTower  # noqa: E402
from recsys_helpers.serving import Query, Version  # noqa: E402
from recsys_helpers.versions import load_newest, numbers, publish  # noqa: E402

DATASET, DIM, K, SEED, EPOCHS, N_TREES = "ml-1m-order", 64, 10, 1, 1, 50
RATES, LOAD_SECONDS, CONNECTIONS = (100, 300, 600), 10, 32
BATCHES, BATCH_SECONDS = (1, 8, 32, 128), 0.002
VERSIONS, KILLS = 20, 50
SHARES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002)
CATALOGUES, QUERIES = (3_416, 100_000), 200
STAGES = ("parsing", "read", "filter", "tower", "index", "answer")


def train(folder):
    """Publish a version, and keep the Keras model and its inputs beside."""
    import keras

    from recsys_helpers.datasets import load_dataset
    from recsys_helpers.samples import training_samples
    from recsys_helpers.serving import make_version
    from recsys_helpers.splits import leave_last_out
    from recsys_helpers.towers.youtubednn import ItemEmbeddingTower, YouTubeDNNUserTower
    from recsys_helpers.two_tower import TwoTower

    keras.utils.set_random_seed(SEED)
    split = leave_last_out(load_dataset(DATASET))
    samples, items = training_samples(split, positions=16), split.dataset.num_items
    user_tower = YouTubeDNNUserTower(samples.sizes, DIM, dropout=0.5)
    model = TwoTower(user_tower, ItemEmbeddingTower(items, DIM), items, temperature=0.15)
    model.compile(optimizer=keras.optimizers.Adam(1e-3))
    model.fit(samples.inputs, samples.targets, batch_size=32, epochs=EPOCHS, verbose=0)
    index = AnnoyIndex("cosine", n_trees=N_TREES, seed=SEED)
    index.build(model.item_vectors(), np.arange(1, items + 1))
    publish(make_version(model, samples, index), folder / "versions")
    model.save(folder / "model.keras")
    model.export(folder / "exported", verbose=False)


# The user tower, three ways


class KerasTower:
    """The model as it was trained, called as Keras calls it."""

    def __init__(self, path):
        import keras

        self.model = keras.models.load_model(path)

    def user_vectors(self, inputs):
        return self.model.user_vectors(inputs)


def tower_of(kind, folder, version):
    """The version's tower, served in another way."""
    if kind == "keras":
        return KerasTower(folder / "model.keras")
    return ExportedTower(folder / "exported") if kind == "exported" else version.tower


def measure_towers(folder):
    """Microseconds a user of each, by the size of the batch."""
    version, rows = load_newest(folder / "versions"), []
    towers = {kind: tower_of(kind, folder, version) for kind in ("keras", "exported", "numpy")}
    for size in BATCHES:
        reads = [version.read(Query(user_id=user)) for user in version.users[:size].tolist()]
        inputs = version.inputs(reads)
        contenders = {kind: partial(seconds_of, t, inputs) for kind, t in towers.items()}
        for kind, took in alternate(contenders).items():
            rows.append({"tower": kind, "batch": size, "us_per_user": 1e6 * took / size})
    return rows


def seconds_of(tower, inputs, times=30):
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        tower.user_vectors(inputs)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


# The service, and requests


class Batches:
    """What arrives within a few milliseconds is answered together."""

    def __init__(self, seconds):
        self.seconds, self.waiting = seconds, []

    async def answer(self, version, query):
        loop = asyncio.get_running_loop()
        future, read = loop.create_future(), version.read(query)
        if not self.waiting:
            loop.call_later(self.seconds, self.flush)
        self.waiting.append((version, read, future))
        return await future

    def flush(self):
        waiting, self.waiting = self.waiting, []
        for version in {id(v): v for v, _, _ in waiting}.values():
            mine = [(read, future) for v, read, future in waiting if v is version]
            answers = version.answer([read for read, _ in mine])
            for (_, future), answer in zip(mine, answers, strict=True):
                if not future.done():
                    future.set_result(answer)


def serve(folder, port, tower, batch_seconds):
    """The service with another tower, or in batches."""
    import uvicorn

    from recsys_helpers.service import create_app

    app = create_app(folder / "versions", poll_seconds=0.2)
    service = app.state.service
    if tower != "numpy":
        version, *rest = service.current
        service.current = replace(version, tower=tower_of(tower, folder, version)), *rest
        service.current[0].recommend(Query(user_id=version.users[0].item()))  # traced now
    if batch_seconds:
        service.answer = Batches(batch_seconds).answer
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


class Running:
    """A service in a process of its own, ended with the block."""

    def __init__(self, folder, tower="numpy", batch_seconds=0.0):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        if tower == "numpy" and not batch_seconds:  # as anybody starts it
            self.command = ["-m", "recsys_helpers.service", folder / "versions"]
            self.command += ["--port", self.port, "--poll-seconds", 0.2]
        else:
            options = ["--serve", folder, self.port, tower, batch_seconds]
            self.command = [Path(__file__).resolve(), *options]

    def __enter__(self):
        command = [sys.executable, *map(str, self.command)]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        for _ in range(600):
            try:
                self.get("/health")
                return self
            except OSError:
                if self.process.poll() is not None:
                    raise RuntimeError(f"the service has ended: {' '.join(command)}") from None
                time.sleep(0.1)
        raise RuntimeError("the service doesn't answer")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return json.loads(answer.read())

    def cpu_seconds(self):
        """Of the service so far (Linux)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def bodies_of(version, n=2_000):
    """Requests of many kinds: known users, histories with and without profile, filters, nobody."""
    rng, bodies = np.random.default_rng(SEED), []
    users, items = version.users.tolist(), version.original_ids
    fields = [(name, list(values)) for name, values in version.rows_with.items()]
    codes = [(name, list(values)) for name, values in version.about["codes"].items() if values]
    for i in range(n):
        body = {"k": K}
        if i % 2:
            body["user_id"] = users[rng.integers(len(users))]
        elif i % 20:
            some = rng.choice(len(items), rng.integers(1, 50), replace=False)
            body["history"] = [items[row] for row in some]
        if i % 4 == 2 and codes:
            name, values = codes[rng.integers(len(codes))]
            body["profile"] = {name: values[rng.integers(len(values))]}
        if i % 5 == 0 and fields:
            name, values = fields[0]
            body["filters"] = {name: [values[rng.integers(len(values))]]}
        bodies.append(body)
    return bodies


def ask(url, bodies, rate, seconds):
    """Send requests at `rate` a second; None: as fast as a few connections are answered.

    Returns:
        For each: number of the body, status, the answer, milliseconds since it was due, and those
        of the service's stages; and the processor seconds of this client.
    """
    import httpx2

    texts = [json.dumps(body).encode() for body in bodies]
    done = []

    async def one(client, number, due):
        status, answer, timing = 0, None, ""
        try:
            response = await client.post(
                url + "/recommend",
                content=texts[number % len(texts)],
                headers={"content-type": "application/json"},
            )
            status, answer = response.status_code, response.content
            timing = response.headers.get("server-timing", "")
        except httpx2.HTTPError as error:
            answer = repr(error).encode()
        took = 1000 * (time.perf_counter() - due)
        done.append((number % len(texts), status, answer, took, timing))

    async def all_of_them():
        limits = httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
        async with httpx2.AsyncClient(limits=limits, timeout=10) as client:
            await asyncio.gather(*(one(client, i, time.perf_counter()) for i in range(CONNECTIONS)))
            done.clear()
            start, tasks = time.perf_counter(), []
            if rate is None:

                async def keep_asking(first):
                    number = first
                    while time.perf_counter() - start < seconds:
                        await one(client, number, time.perf_counter())
                        number += CONNECTIONS

                await asyncio.gather(*(keep_asking(i) for i in range(CONNECTIONS // 2)))
                return time.perf_counter() - start
            for number in range(int(rate * seconds)):
                due = start + number / rate
                if (wait := due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                tasks.append(asyncio.create_task(one(client, number, due)))
            await asyncio.gather(*tasks)
            return time.perf_counter() - start

    processor = time.process_time()
    took = asyncio.run(all_of_them())
    return done, took, time.process_time() - processor


def stages_of(timing):
    return {name: float(value) for name, value in re.findall(r"(\w+);dur=([\d.]+)", timing)}


def load_rows(running, bodies, rate, seconds, **row):
    """A row a stage: percentiles of the milliseconds, over all requests."""
    before = running.cpu_seconds()
    done, took, client = in_fresh_process(ask, running.url, bodies, rate, seconds)
    served = running.cpu_seconds() - before
    times = {"whole request": [ms for *_, ms, _ in done]}
    stages = [stages_of(timing) for *_, timing in done]
    for stage in STAGES:
        times[stage] = [of.get(stage, 0.0) for of in stages]
    parts = zip(times["whole request"], stages, strict=True)
    times["the rest"] = [whole - sum(of.values()) for whole, of in parts]
    row |= {
        "rate": rate or 0,
        "requests": len(done),
        "failed": sum(status != 200 for _, status, *_ in done),
        "requests_per_second": len(done) / took,
        "service_cpu_ms": 1000 * served / len(done),
        "client_cpu_ms": 1000 * client / len(done),
    }
    return [
        row
        | {"stage": stage, "mean_ms": float(np.mean(values))}
        | {f"p{p}_ms": float(np.percentile(values, p)) for p in (50, 95, 99)}
        for stage, values in times.items()
    ]


def measure_load(folder):
    bodies, rows = bodies_of(load_newest(folder / "versions")), []
    with Running(folder) as running:
        for rate in (*RATES, None):
            rows += load_rows(
                running, bodies, rate, LOAD_SECONDS, tower="numpy", batched="one at a time"
            )
    for tower in ("numpy", "exported", "keras"):
        for seconds in (0.0, BATCH_SECONDS):
            if tower == "numpy" and not seconds:
                continue
            batched = f"within {1000 * seconds:.0f} ms" if seconds else "one at a time"
            with Running(folder, tower, seconds) as running:
                for rate in (300, None):
                    rows += load_rows(running, bodies, rate, 6, tower=tower, batched=batched)
    return rows


# Faults


def other(version, seed):
    """A version of other vectors on both sides: what mixes it with another scores wrongly."""
    rng = np.random.default_rng(seed)
    weights = dict(version.tower.weights)
    last = f"kernels/{version.tower.layers - 1}"
    noise = rng.normal(size=weights[last].shape) * weights[last].std()
    weights[last] = (weights[last] + noise).astype(np.float32)
    vectors = version.index.vectors
    vectors = vectors + rng.normal(size=vectors.shape).astype(np.float32) * vectors.std()
    index = AnnoyIndex("cosine", n_trees=version.index.n_trees, seed=seed)
    index.build(vectors, version.index.ids)
    return replace(version, tower=NumpyTower(weights), index=index)


def keep_publishing(folder, base, times, pause):
    """Publish version after version; number n is `other(base, n)`."""
    for _ in range(times):
        number = max(numbers(folder), default=0) + 1
        assert publish(other(base, number), folder, keep=2) == number
        time.sleep(pause)


def publish_under_load(folder, versions=VERSIONS, rate=300, pause=0.5):
    """Publish versions while requests come in, and check each answer against the one it names."""
    base = load_newest(folder / "versions")
    bodies = bodies_of(base, 500)
    publisher = multiprocessing.get_context("spawn").Process(
        target=keep_publishing, args=(folder / "versions", base, versions, pause)
    )
    with Running(folder) as running, multiprocessing.get_context("spawn").Pool(1) as pool:
        client = pool.apply_async(ask, (running.url, bodies, rate, versions * (pause + 0.35) + 2))
        publisher.start()
        done, took, _ = client.get()
        publisher.join()
        last = running.get("/version")["version"]
    answers = [(number, status, json.loads(text)) for number, status, text, *_ in done]
    expected = {base.number: base}
    wrong, by_version = 0, {}
    for number, status, answer in answers:
        if status != 200:
            continue
        named = answer["version"]
        if named not in expected:
            expected[named] = replace(other(base, named), number=named)
        by_version[named] = by_version.get(named, 0) + 1
        right = expected[named].recommend(Query(**bodies[number]))
        ids = [expected[named].original_ids[row] for row in right.rows]
        same = ids == [item["item_id"] for item in answer["items"]]
        scores = [item["score"] for item in answer["items"]]
        wrong += not (same and np.allclose(scores, right.scores, atol=1e-5))
    times = [ms for *_, ms, _ in done]
    return {
        "what": "versions published under load",
        "times": versions,
        "requests": len(done),
        "failed": sum(status != 200 for _, status, _ in answers),
        "mixed": wrong,
        "versions_seen": len(by_version),
        "newest_seen": last == base.number + versions,
        "requests_per_second": len(done) / took,
        **{f"p{p}_ms": float(np.percentile(times, p)) for p in (50, 95, 99)},
    }


def kill_publishers(folder, times=KILLS, rate=50):
    """End publishers by SIGKILL at random moments; then look at what is there."""
    versions = folder / "versions"
    base, rng = load_newest(versions), np.random.default_rng(SEED)
    bodies, first = bodies_of(base, 500), base.number
    seconds, started = times * 0.3 + 1, time.perf_counter()
    begun = broken = left = 0
    with Running(folder) as running, multiprocessing.get_context("spawn").Pool(1) as pool:
        client = pool.apply_async(ask, (running.url, bodies, rate, seconds))
        for _ in range(times):
            process = multiprocessing.get_context("fork").Process(
                target=keep_publishing, args=(versions, base, 1_000, 0)
            )
            process.start()
            time.sleep(rng.uniform(0, 0.25))
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            left += any(versions.glob(".new-*"))
            for number in numbers(versions):
                begun += 1
                version = Version.load(versions / str(number), number)
                one = version.recommend(Query(**bodies[0]))
                right = base if number == first else other(base, number)
                broken += not np.array_equal(one.rows, right.recommend(Query(**bodies[0])).rows)
        done, _, _ = client.get()
        still = running.get("/health")["status"] == "ok"
    newest = numbers(versions)[0]
    with Running(folder) as running:
        found = running.get("/version")["version"]
    return {
        "what": "publishers killed",
        "times": times,
        "seconds": time.perf_counter() - started,
        "requests": len(done),
        "failed": sum(status != 200 for _, status, *_ in done),
        "killed_while_writing": left,
        "versions_published": newest - first,
        "versions_checked": begun,
        "broken": broken,
        "still_answers": still,
        "newest_found": found == newest,
    }


# Filters


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
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", help="tower, load, publish, kill, filters")
    parser.add_argument("--folder", type=Path, help="of `train`, kept from an earlier run")
    parser.add_argument("--serve", nargs=4, help="FOLDER PORT TOWER BATCH_SECONDS")
    given = parser.parse_args()
    if given.serve:
        folder, port, tower, seconds = given.serve
        return serve(Path(folder), int(port), tower, float(seconds))
    parts = given.parts or ["tower", "load", "publish", "kill", "filters"]
    with tempfile.TemporaryDirectory(prefix="serving-") as temporary:
        folder = given.folder or Path(temporary)
        if not (folder / "exported").exists():
            folder.mkdir(exist_ok=True)
            in_fresh_process(train, folder)
        if "tower" in parts:
            report("serving_tower", in_fresh_process(measure_towers, folder))
        if "load" in parts:
            report("serving", measure_load(folder))
        if "filters" in parts:
            report("serving_filters", in_fresh_process(measure_filters, folder))
        faults = {"publish": publish_under_load, "kill": kill_publishers}
        for part, cause in faults.items():
            if part in parts:
                report(f"serving_{part}", [cause(folder)])


if __name__ == "__main__":
    main()
