"""The service under load: requests a second and their times, by stage and way to run the tower.

    pip install -r benchmarks/requirements.txt      for HTTP read by compiled code; else left out
    python benchmarks/serving.py                    four minutes; keep the machine idle
    python benchmarks/serving_faults.py             one minute
    python benchmarks/serving_filters.py            two minutes

YouTubeDNN with vectors of 64 on MovieLens-1M after one epoch, which is enough for speed, behind an
Annoy index of 50 trees. The service is a process of its own and so is the load, which comes from
httpx2 at given moments, whatever has been answered by then: a request's time counts from the moment
at which it was due, so that waiting for a busy client or service is part of it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
for variable in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402
from common import alternate, in_fresh_process, report  # noqa: E402

from recsys_helpers.index import AnnoyIndex  # noqa: E402
from recsys_helpers.served_tower import ExportedTower  # noqa: E402
from recsys_helpers.serving import Query  # noqa: E402
from recsys_helpers.versions import load_newest, publish  # noqa: E402

DATASET, DIM, K, SEED, EPOCHS, N_TREES = "ml-1m-order", 64, 10, 1, 1, 50
RATES, ROUNDS, LOAD_SECONDS, CONNECTIONS = (300, 600, None), 3, 4, 32
BATCHES, BATCH_SECONDS = (1, 8, 32, 128), 0.002
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


def serve(folder, port, tower, batch_seconds, http):
    """The service, perhaps with another tower, in batches, or with HTTP read by compiled code."""
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
    loop = "uvloop" if http == "httptools" else "asyncio"
    options = {"http": http, "loop": loop, "log_level": "warning", "access_log": False}
    uvicorn.run(app, host="127.0.0.1", port=port, **options)


class Running:
    """A service in a process of its own, ended with the block."""

    def __init__(self, folder, tower="numpy", batch_seconds=0.0, http="h11"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        options = ["--serve", folder, self.port, tower, batch_seconds, http]
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


def load_once(running, bodies, rate, seconds):
    """By stage: the milliseconds of all requests; and what the run as a whole was like."""
    before, busy = running.cpu_seconds(), busy_seconds()
    done, took, client = in_fresh_process(ask, running.url, bodies, rate, seconds)
    served, busy = running.cpu_seconds() - before, busy_seconds() - busy
    stages = [stages_of(timing) for *_, timing in done]
    times = {stage: [of.get(stage, 0.0) for of in stages] for stage in STAGES}
    times["whole request"] = [ms for *_, ms, _ in done]
    parts = zip(times["whole request"], stages, strict=True)
    times["the rest"] = [whole - sum(of.values()) for whole, of in parts]
    return times, {
        "requests": len(done),
        "failed": sum(status != 200 for _, status, *_ in done),
        "requests_per_second": len(done) / took,
        "service_cpu_ms": 1000 * served / len(done),
        "client_cpu_ms": 1000 * client / len(done),
        # of the machine's; starting the client is among it, which takes about a second
        "others_share": (busy - served - client) / (took * os.cpu_count()),
    }


def busy_seconds():
    """Of all processors, whoever used them (Linux)."""
    fields = [int(ticks) for ticks in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def with_others_share(measure, *arguments) -> list[dict]:
    """Rows of `measure(*arguments)`, and with each what other programs used of the machine (Linux).

    Processes that are started for it have ended when it returns: only then they are counted as own.
    """
    start, busy, own = time.perf_counter(), busy_seconds(), sum(os.times()[:4])
    rows = measure(*arguments)
    own, busy = sum(os.times()[:4]) - own, busy_seconds() - busy
    share = max(0, busy - own) / ((time.perf_counter() - start) * os.cpu_count())
    return [row | {"others_share": share} for row in rows]


def measure_load(folder):
    """A row a stage of each way to serve, of the round whose p99 is the median."""
    bodies, ways = bodies_of(load_newest(folder / "versions")), []
    for tower in ("numpy", "exported", "keras"):
        for seconds in (0.0, BATCH_SECONDS):
            ways.append((tower, seconds, "h11"))
    if find_spec("httptools") and find_spec("uvloop"):
        ways.append(("numpy", 0.0, "httptools"))
    else:
        print("httptools and uvloop are not installed, so they are left out", flush=True)
    measured = {}
    with contextlib.ExitStack() as stack:
        running = {way: stack.enter_context(Running(folder, *way)) for way in ways}
        for turn in range(ROUNDS + 1):
            for way, service in running.items():
                for rate in RATES if way == ways[0] else (300, None):
                    seconds = LOAD_SECONDS if turn else 1  # the first round warms up
                    found = load_once(service, bodies, rate, seconds)
                    if turn:
                        measured.setdefault((*way, rate), []).append(found)
    rows = []
    for (tower, seconds, http, rate), runs in measured.items():
        batched = f"within {1000 * seconds:.0f} ms" if seconds else "one at a time"
        row = {"tower": tower, "batched": batched, "http": http, "rate": rate or 0}
        runs.sort(key=lambda run: np.percentile(run[0]["whole request"], 99))
        times, about = runs[len(runs) // 2]
        for stage in (*STAGES, "the rest", "whole request"):
            found = {"stage": stage, "mean_ms": float(np.mean(times[stage]))}
            found |= {f"p{p}_ms": float(np.percentile(times[stage], p)) for p in (50, 95, 99)}
            rows.append(row | about | found)
    return rows


def prepared(given: Path | None, temporary: str) -> Path:
    """A folder with a trained version, from an earlier run or made now."""
    folder = given or Path(temporary)
    if not (folder / "exported").exists():
        folder.mkdir(exist_ok=True)
        in_fresh_process(train, folder)
    return folder


def arguments(description: str) -> argparse.ArgumentParser:
    """What the three benchmarks of the service have in common."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--folder", type=Path, help="to keep the trained version in, or to find it")
    return parser


def main():
    parser = arguments(__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", help="tower, load; both if none is named")
    parser.add_argument("--serve", nargs=5, help="FOLDER PORT TOWER BATCH_SECONDS HTTP")
    given = parser.parse_args()
    if given.serve:
        folder, port, tower, seconds, http = given.serve
        return serve(Path(folder), int(port), tower, float(seconds), http)
    parts = given.parts or ["tower", "load"]
    with tempfile.TemporaryDirectory(prefix="serving-") as temporary:
        folder = prepared(given.folder, temporary)
        if "tower" in parts:
            rows = with_others_share(in_fresh_process, measure_towers, folder)
            report("serving_tower", rows)
        if "load" in parts:
            report("serving", measure_load(folder))


if __name__ == "__main__":
    main()
