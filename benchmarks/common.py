"""What the benchmarks share: rows are printed as a table and written to `results/benchmarks/`."""

from __future__ import annotations

import multiprocessing
import os
import platform
import re
from pathlib import Path

import numpy as np
import pandas as pd

from recsys_helpers.results import write_run

FOLDER = Path(__file__).resolve().parent.parent / "results" / "benchmarks"


def report(name: str, rows: list[dict]) -> None:
    """Print `rows` as a table and write them to `results/benchmarks/<name>.json`."""
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3f}".format), flush=True)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}"
    print(
        "written to", write_run(FOLDER / f"{name}.json", [r | {"machine": machine} for r in rows])
    )


def alternate(contenders: dict, rounds: int = 5) -> dict:
    """Median seconds of each contender, a function that returns what it measured.

    They take turns, so that a busy minute of the machine hits all of them; the first round, in
    which caches fill and graphs are traced, does not count.
    """
    measured = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, measure in contenders.items():
            seconds = measure()
            if turn:
                measured[name].append(seconds)
    return {name: float(np.median(values)) for name, values in measured.items()}


def in_fresh_process(function, *arguments):
    """What `function(*arguments)` returns, from a process that ends and gives its memory back."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def peak_memory(function, *arguments) -> float:
    """Peak memory, GiB, of a process that does nothing but `function(*arguments)` (Linux)."""
    return in_fresh_process(_call_and_look, function, *arguments)


def peak_memory_so_far() -> float:
    """Peak memory, GiB, of this process (Linux)."""
    # Not getrusage, whose peak begins with that of the process this one was forked from.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20


def _call_and_look(function, *arguments):
    function(*arguments)
    return peak_memory_so_far()
