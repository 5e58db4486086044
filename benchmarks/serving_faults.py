"""Versions published under full load, and publishers killed at random moments.

    python benchmarks/serving_faults.py      one minute; see benchmarks/serving.py

Number n is made of number 1 by noise on both sides, drawn with the seed n. So whoever checks an
answer can make the version that it names anew, also when its folder has long been removed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import report
from serving import SEED, Running, arguments, ask, bodies_of, prepared, with_others_share

from recsys_helpers.index import AnnoyIndex
from recsys_helpers.served_tower import NumpyTower
from recsys_helpers.serving import Query, Version
from recsys_helpers.versions import _number_in, load_newest, numbers, publish

VERSIONS, KILLS = 20, 50


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
        number = max([*numbers(folder), _number_in(folder / ".last")]) + 1
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
        newest = numbers(folder / "versions")[0]
        for _ in range(100):  # the last one may just have been published
            if (last := running.get("/version")["version"]) == newest:
                break
            time.sleep(0.1)
    expected = {base.number: base}
    wrong, by_version = 0, {}
    for number, status, text, *_ in done:
        if status != 200:
            continue
        answer = json.loads(text)
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
    row = {
        "what": "versions published under load",
        "times": versions,
        "requests": len(done),
        "failed": sum(status != 200 for _, status, *_ in done),
        "mixed": wrong,
        "versions_seen": len(by_version),
        "newest_seen": last == newest == base.number + versions,
        "requests_per_second": len(done) / took,
        **{f"p{p}_ms": float(np.percentile(times, p)) for p in (50, 95, 99)},
    }
    return [row]


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
    row = {
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
    return [row]


def main():
    given = arguments(__doc__.split("\n")[0]).parse_args()
    with tempfile.TemporaryDirectory(prefix="serving-") as temporary:
        folder = prepared(given.folder, temporary)
        with tempfile.TemporaryDirectory(prefix="versions-") as copies:
            for name, cause in (("publish", publish_under_load), ("kill", kill_publishers)):
                # A folder of its own, in which the trained version is number 1.
                publish(load_newest(folder / "versions"), f"{copies}/{name}/versions")
                report(f"serving_{name}", with_others_share(cause, Path(copies, name)))


if __name__ == "__main__":
    main()
