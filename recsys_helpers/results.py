"""Record what a model reached, and read the records back; `tables.py` shows them.

One JSON file per run: `<folder>/<dataset>/<model>-seed<seed>.json`. It holds the metrics, where
they came from, every user's rank, so that two models can be compared user by user later on, and
what every user was shown. `<folder>/stale.json` lists the files that an earlier version of the code
wrote; `results/run.py` and the build of the book keep it, and tables say it.
"""

from __future__ import annotations

import base64
import importlib.metadata
import json
import os
import platform
import re
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from recsys_helpers.metrics import evaluate, recommendation_metrics
from recsys_helpers.splits import Split

# Names in the tables, in their order: the baselines first, then the models as the book meets them.
MODELS = {
    "popularity": "Popularity",
    "item_knn": "Item-kNN",
    "markov": "Markov chain",
    "ease": "EASE",
    "ease_recency": "EASE, recent history",
    "fm_profile": "FM, user id and profile",
    "fm": "FM",
    "dssm": "DSSM",
    "youtubednn": "YouTubeDNN",
    "self_attentive": "Self-attention",
}
PACKAGES = ("tensorflow", "keras", "numpy", "scipy", "pandas", "annoy")


def record_run(
    folder: str | os.PathLike,
    *,
    model: str,
    split: Split,
    seed: int,
    ranks: np.ndarray,
    validation_ranks: np.ndarray | None = None,
    recommended: np.ndarray | None = None,
    parameters: dict | None = None,
    seconds: float | None = None,
    experiment: str = "",
    target: str = "test",
) -> Path | None:
    """Write one run as JSON, whole or not at all.

    Args:
        folder: where results are kept; "" records nothing, which is how readers run a chapter.
        model: short name, as in `MODELS`.
        split: what the model was trained and judged on.
        seed: of everything random.
        ranks: [num_users] 1-based ranks of the test targets.
        validation_ranks: [num_users] the same for the validation targets.
        recommended: item ids [num_users, k], what each user is shown when the test target is asked
            for: for a two-tower model, what Annoy returns.
        parameters: what else was chosen (sizes, rates, epochs); must be expressible in JSON.
        seconds: that training took.
        experiment: keeps the run out of the tables of models, in a folder of this name.
        target: what `ranks` are the ranks of, "validation" for experiments that lead to a choice.

    Returns:
        The file, or None if nothing was recorded.

    Raises:
        ValueError: if there is not one rank for every user.
    """
    if not folder:
        return None
    for name, values in (("ranks", ranks), ("validation_ranks", validation_ranks)):
        if values is not None and np.shape(values) != (split.dataset.num_users,):
            raise ValueError(
                f"{name} must have one rank for each of the {split.dataset.num_users} users, "
                f"received shape {np.shape(values)}."
            )
    dataset = split.dataset
    run = {
        "dataset": dataset.name,
        "model": model,
        "seed": seed,
        "split": split.name,
        "target": target,
        **evaluated(ranks),
        "validation_metrics": None,
        "recommended": None,
        "recommended_items": None,
        "num_users": dataset.num_users,
        "num_items": dataset.num_items,
        "split_dataset_fingerprint": dataset.fingerprint,  # after the split dropped rare items
        "configuration": parameters or {},
        "wall_clock_seconds": None if seconds is None else round(seconds, 1),
        "peak_memory_mib": _peak_memory_mib(),
        "machine": _machine(),
        "numerics": _numerics(),
        "versions": {"python": platform.python_version()} | _versions(),
        "ranks": _pack(ranks),
    }
    if validation_ranks is not None:
        run["validation_metrics"] = evaluate(validation_ranks)["mean"].to_dict()
    if recommended is not None:
        counts = np.bincount(split.train["item_id"], minlength=dataset.num_items + 1)
        run["recommended"] = recommendation_metrics(recommended, split.targets("test"), counts)
        run["recommended_items"] = _pack(recommended)
    return write_run(_place(folder, dataset.name, experiment) / f"{model}-seed{seed}.json", run)


def evaluated(ranks: np.ndarray) -> dict[str, dict]:
    """Metrics and intervals of `ranks` [num_users], as a record holds them."""
    table = evaluate(ranks)
    intervals = {name: [row["low"], row["high"]] for name, row in table.iterrows()}
    return {"metrics": table["mean"].to_dict(), "intervals": intervals}


def write_run(path: Path, run: dict | list[dict]) -> Path:
    """Write `run` to `path` through a temporary file, so that no reader ever sees half of it."""
    text = json.dumps(run, indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, suffix=".tmp")
    try:
        with file:
            file.write(text)
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
    finally:
        Path(file.name).unlink(missing_ok=True)
    return path


def load_runs(
    folder: str | os.PathLike | None = None,
    dataset: str | os.PathLike | None = None,
    experiment: str = "",
) -> list[dict]:
    """Read recorded runs, baselines first.

    Args:
        folder: where results are kept; by default `results/` of the checkout this package is in.
        dataset: only the runs on this dataset; of a path its last part counts, as in
            `load_dataset`.
        experiment: the runs of this experiment instead of those of the models.

    Returns:
        One dict a run, with `ranks` as an int array [num_users], `recommended_items` as one
        [num_users, k] or None, `file`, its path in the folder, and `stale`, whether an earlier
        version of the code wrote it. An empty list where nothing is recorded.
    """
    folder = _results_folder(folder)
    names = [d.name for d in folder.glob("*/")] if dataset is None else [dataset]
    listed = folder / "stale.json"
    stale = json.loads(listed.read_text()) if listed.is_file() else []
    runs = []
    for path in (p for n in names for p in _place(folder, n, experiment).glob("*-seed*.json")):
        run = json.loads(path.read_text())
        run["file"] = path.relative_to(folder).as_posix()
        run["stale"] = run["file"] in stale
        run["ranks"] = _unpack(run["ranks"])
        run["recommended_items"] = _unpack(run.get("recommended_items"))
        runs.append(run)
    order = list(MODELS)
    place = {model: order.index(model) if model in order else len(order) for model in
             {run["model"] for run in runs}}  # fmt: skip
    return sorted(runs, key=lambda r: (r["dataset"], place[r["model"]], r["model"], r["seed"]))


def load_benchmark(name: str, folder: str | os.PathLike | None = None) -> pd.DataFrame:
    """The rows that `benchmarks/<name>.py` wrote; an empty table where it has not been run.

    Args:
        name: of the benchmark, such as "training_step".
        folder: where results are kept; by default `results/` of the checkout this package is in.
    """
    path = _results_folder(folder) / "benchmarks" / f"{name}.json"
    return pd.DataFrame(json.loads(path.read_text())) if path.exists() else pd.DataFrame()


def _results_folder(folder: str | os.PathLike | None) -> Path:
    return Path(folder) if folder else Path(__file__).resolve().parent.parent / "results"


def _place(folder, dataset: str | os.PathLike, experiment: str) -> Path:
    return Path(folder) / Path(dataset).name / experiment


def _pack(values: np.ndarray) -> dict:
    """Ids or ranks as text: the smallest of int16 and int32, deflated, base64."""
    values = np.asarray(values)
    dtype = "<i2" if values.max() <= np.iinfo(np.int16).max else "<i4"
    content = base64.b64encode(zlib.compress(values.astype(dtype).tobytes(), 9)).decode()
    return {"dtype": dtype, "shape": list(values.shape), "deflated": content}


def _unpack(packed: dict | str | None) -> np.ndarray | None:
    if packed is None:
        return None
    if isinstance(packed, str):  # ranks, as they were recorded first
        packed = {"dtype": "<i4", "shape": -1, "deflated": packed}
    content = zlib.decompress(base64.b64decode(packed["deflated"]))
    return np.frombuffer(content, packed["dtype"]).reshape(packed["shape"]).astype(np.int64)


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _machine() -> str:
    threads = os.environ.get("TF_NUM_INTRAOP_THREADS")
    used = f"{threads} of " if threads else ""
    try:
        name = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):  # not Linux, or a processor that has no name there
        name = platform.processor() or "processor unknown"
    return f"{used}{os.cpu_count()} cores, {name}, {platform.machine()}, {platform.system()}"


def _numerics() -> dict[str, str]:
    """What decides about the last digits of a sum: libraries and instructions."""
    numpy = np.show_config(mode="dicts")
    simd, blas = numpy.get("SIMD Extensions", {}), numpy["Build Dependencies"].get("blas", {})
    return {
        "instructions": ", ".join(simd.get("baseline", []) + simd.get("found", [])),
        "blas": f"{blas.get('name')} {blas.get('version')}",
        "TF_ENABLE_ONEDNN_OPTS": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "not set"),
    }


def _peak_memory_mib() -> int | None:
    """Largest resident size of this process so far."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10))
