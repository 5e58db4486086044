"""Try other parameters of the chapters, and keep what the validation target says of each.

A trial is a chapter with other parameters, executed as `run.py` does it, but with stand-ins for the
test targets, so that no trial can know of them. `run.py` takes the best trial by validation
NDCG@10. Trials that are kept are not repeated, so this can be stopped and started at will, and run
several times at once, for as many cores, from a checkout that nobody edits meanwhile:

    python results/tune.py                  run what is missing
    python results/tune.py --list           say what that is
    python results/tune.py --chapter 04_dssm --dataset ml-100k      only these
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import run
from run import ROOT, depends

from recsys_helpers.results import write_run

BUDGET = 8  # trials for each model on each dataset, baselines included
LARGE_BUDGET = 2  # for a tower on MovieLens-1M, where a trial takes a quarter of an hour
SEED = 1


def around(start: dict, *changes: dict) -> list[dict]:
    """A start and what differs from it; each setting names everything that any of them changes."""
    return [start, *(start | change for change in changes)]


FM = {
    "dim": 64, "epochs": 7, "learning_rate": 8e-3, "dropout": 0.5, "history_dropout": 0.0,
    "decays": [0, 1], "last": 3,
}  # fmt: skip
DSSM = {
    "dim": 64, "epochs": 7, "learning_rate": 1e-3, "temperature": 0.15, "dropout": 0.2,
    "history_dropout": 0.0,
}  # fmt: skip
DEEP = {
    "dim": 64, "epochs": 7, "learning_rate": 2e-3, "temperature": 0.15, "dropout": 0.5,
    "history_dropout": 0.0, "recency": 1, "last": 3,
}  # fmt: skip
SMALL = {
    "item_knn": [
        {"knn_neighbours": k, "knn_shrinkage": s}
        for k, s in [(5, 0), (10, 0), (20, 0), (50, 0), (200, 0), (None, 0), (10, 10), (None, 10)]
    ],
    "markov": [{"markov_smoothing": s} for s in (0, 10, 100, 200, 300, 500, 1000, 3000)],
    "ease": [{"ease_penalty": p} for p in (20, 50, 100, 200, 500, 1000, 2000, 5000)],
    "ease_recency": [
        {"recent_penalty": p, "recent_memory": m}
        for p, m in [
            (100, 5), (200, 10), (500, 5), (500, 10), (1000, 3), (1000, 5), (1000, 10), (2000, 2)
        ]
    ],
    "fm": around(
        FM, {"dropout": 0.3}, {"dropout": 0.6}, {"epochs": 10},
        {"learning_rate": 5e-3, "epochs": 10}, {"history_dropout": 0.15},
        {"dropout": 0.6, "epochs": 10}, {"history_dropout": 0.15, "epochs": 10},
    ),
    "dssm": around(
        DSSM, {"temperature": 0.1}, {"temperature": 0.2}, {"dropout": 0.5}, {"epochs": 10},
        {"learning_rate": 2e-3}, {"history_dropout": 0.15},
        {"dropout": 0.5, "learning_rate": 2e-3, "epochs": 10},
    ),
    "youtubednn": around(
        DEEP, {"dropout": 0.3}, {"temperature": 0.1}, {"temperature": 0.2}, {"epochs": 10},
        {"learning_rate": 1e-3, "epochs": 10}, {"history_dropout": 0.15},
        {"history_dropout": 0.15, "epochs": 10},
    ),
    "self_attentive": around(
        DEEP, {"dropout": 0.3}, {"temperature": 0.1}, {"temperature": 0.2}, {"epochs": 10},
        {"learning_rate": 1e-3, "epochs": 10}, {"history_dropout": 0.15},
        {"history_dropout": 0.15, "epochs": 10},
    ),
}  # fmt: skip
WIDE = {"dim": 128, "hidden": 256, "temperature": 0.07, "epochs": 12, "learning_rate": 1e-3}
MANY = {"recency": 4, "last": 5, "dropout": 0.4, "history_dropout": 0.15, "average_over": 0}
LARGE_FM = FM | {
    "dim": 128, "learning_rate": 5e-3, "epochs": 5, "shrink": 0.4, "decays": [0, 0.5, 1, 2],
    "last": 5, "average_over": 0,
}  # fmt: skip
AVERAGED = {"average_over": 1}
# What is tried: by dataset and model, the settings. Where a chapter has several models, the first
# setting of each makes one trial, and so on; models that aren't named follow the others.
SEARCH: dict[str, dict[str, list[dict]]] = {
    "ml-100k": SMALL,
    "ml-latest-small": SMALL,
    "ml-1m-order": SMALL
    | {
        "fm": around(LARGE_FM, AVERAGED),
        "dssm": around(DSSM | WIDE | MANY, AVERAGED),
        "youtubednn": around(DEEP | WIDE | MANY, AVERAGED),
        "self_attentive": around(DEEP | WIDE | MANY, AVERAGED),
    },
}  # fmt: skip
CHAPTER = {
    "item_knn": "02_data_and_rules",
    "markov": "02_data_and_rules",
    "ease": "02_data_and_rules",
    "ease_recency": "02_data_and_rules",
    "fm": "03_factorization_machines",
    "dssm": "04_dssm",
    "youtubednn": "05_youtubednn",
    "self_attentive": "06_self_attention",
}
BLIND = "from recsys_helpers.trials import blind\n\nleave_last_out = blind(leave_last_out)"


def plan() -> list[tuple[str, str, dict[str, dict]]]:
    """Every trial: chapter, dataset, and the settings by model. First trials come first."""
    trials = []
    for number in range(BUDGET):
        for dataset, search in SEARCH.items():
            chapters: dict[str, dict[str, dict]] = {}
            for model, settings in search.items():
                if number < len(settings):
                    chapters.setdefault(CHAPTER[model], {})[model] = settings[number]
            trials += [(chapter, dataset, models) for chapter, models in chapters.items()]
    return trials


def parameters_of(chapter: str, dataset: str, models: dict, root: Path = ROOT) -> dict:
    """All parameters of a trial: those that are searched, and the notebook's for the others."""
    source = (root / "notebooks" / f"{chapter}.ipynb").read_text(encoding="utf-8")
    tried = {name: value for settings in models.values() for name, value in settings.items()}
    parameters = depends.defaults(source) | {"dataset": dataset, "seed": SEED} | tried
    return {name: value for name, value in parameters.items() if name != "record_to"}


def file_of(chapter: str, parameters: dict, results: Path) -> Path:
    """Where a trial is kept; other parameters, another file."""
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()
    return results / "trials" / parameters["dataset"] / f"{chapter}-{digest[:8]}.json"


def run_trial(
    chapter: str, parameters: dict, models: dict, results: Path, data: str, root: Path = ROOT
) -> Path:
    """Run a trial and keep it.

    Args:
        chapter: name of the notebook.
        parameters: all of them.
        models: which of them were searched, by the model they were searched for.
        results: folder of the records.
        data: digest of the dataset.
        root: the checkout.
    """
    source = (root / "notebooks" / f"{chapter}.ipynb").read_text(encoding="utf-8")
    started = time.perf_counter()
    trial = {
        "chapter": chapter,
        "dataset": parameters["dataset"],
        "parameters": parameters,
        "dataset_digest": data,
        "inputs": depends.record(source, parameters, data, root),
        "git_commit": run.commit(root, run.SOURCES),
    }
    recorded = run.execute(chapter, parameters, root, first=BLIND).values()
    # Of what was recorded only this is kept; the rest is about the stand-ins.
    trial["models"] = {
        of["model"]: {
            "settings": models.get(of["model"], {}),
            "validation_metrics": of["validation_metrics"],
            "configuration": of["configuration"],
            "seconds": of["wall_clock_seconds"],
        }
        for of in recorded
    }
    if lost := sorted(models.keys() - trial["models"].keys()):
        raise RuntimeError(f"{chapter} recorded no {', '.join(lost)}.")
    made_on = next(iter(recorded))
    trial |= {k: made_on[k] for k in ("machine", "numerics", "versions", "peak_memory_mib")}
    trial["seconds"] = round(time.perf_counter() - started, 1)
    return write_run(file_of(chapter, parameters, results), trial)


@contextmanager
def claimed(file: Path) -> Iterator[bool]:
    """Whether nobody else is at this trial; it's ours until the end of the block, or of us."""
    digest = hashlib.sha256(str(file.resolve()).encode()).hexdigest()
    with open(Path(tempfile.gettempdir()) / f"trial-{digest[:16]}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield not file.exists()


def said(file: Path) -> str:
    """A kept trial in a few words."""
    trial = json.loads(file.read_text())
    values = {m: of["validation_metrics"]["ndcg@10"] for m, of in trial["models"].items()}
    return ", ".join(f"{m} {v:.4f}" for m, v in values.items()) + f" in {trial['seconds']:.0f} s"


def main() -> int:
    """Command line; returns the number of trials that failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--list", action="store_true", help="say what is kept; run nothing")
    parser.add_argument("--dirty", action="store_true", help="try what no commit has, too")
    parser.add_argument("--dataset", choices=SEARCH)
    parser.add_argument("--chapter", choices=sorted(set(CHAPTER.values())))
    arguments = parser.parse_args()
    results, failed, planned = ROOT / "results", 0, set()
    for chapter, dataset, models in plan():
        parameters = parameters_of(chapter, dataset, models)
        file = file_of(chapter, parameters, results)
        planned.add(file)
        if arguments.dataset not in (None, dataset) or arguments.chapter not in (None, chapter):
            continue
        name = f"{dataset}, {chapter}, {' '.join(map(str, models.values()))}"
        if arguments.list or file.exists():
            print(f"{name}: {said(file) if file.exists() else 'missing'}", flush=True)
            continue
        run.check_clean(arguments.dirty, run.SOURCES)
        with claimed(file) as mine:
            if not mine:
                continue
            print(f"{name}: ", end="", flush=True)
            try:
                data = depends.dataset_digest(dataset)
                print(said(run_trial(chapter, parameters, models, results, data)), flush=True)
            except Exception as error:  # one trial that fails must not cost the others
                print(f"failed: {error}", file=sys.stderr, flush=True)
                failed += 1
    for file in sorted(set((results / "trials").glob("*/*.json")) - planned):
        print(f"{file.relative_to(ROOT)} is of no trial that is planned; it still counts.")
    return 0 if arguments.list else failed


if __name__ == "__main__":
    sys.exit(min(main(), 1))
