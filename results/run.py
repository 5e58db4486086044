"""Run the chapters that have a cell tagged `record`, and keep what they record.

A reference run is a chapter with other parameters, executed in a fresh kernel up to and including
that cell; what comes after it are experiments that cannot change what was recorded. Runs that are
recorded for the same inputs (`book/depends.py`) are not repeated, so this can be stopped and
started at will. Each call also writes to `stale.json` which records no longer are what the code
would record; the tables of the book say it of them:

    python results/run.py                   run what is missing or out of date
    python results/run.py --list            say what that is
    python results/run.py --readme          rewrite the results tables of the README
    python results/run.py --chapter 04_dssm --dataset ml-100k --seed 1      only these
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from book import depends  # noqa: E402
from recsys_helpers.results import load_runs, results_table, stale_note, write_run  # noqa: E402

# What the book reports: every chapter below on each dataset with each of its seeds.
SEEDS = {name: (1, 2, 3) for name in ("ml-100k", "ml-latest-small", "ml-1m-order")}
CHAPTERS = (
    "02_data_and_rules",
    "03_factorization_machines",
    "04_dssm",
    "05_youtubednn",
    "06_self_attention",
    "09_several_towers",
)
DETERMINISTIC = {"02_data_and_rules"}  # the first seed says it all
# Chapters that record an experiment: the folder for it, and the datasets it is run on, once each.
EXPERIMENTS = {"09_ablation": "ablation"}
EXPERIMENTS_ON = ("ml-1m-order",)
# Parameters of a chapter that differ from those in its notebook, by dataset.
LARGE = {"num_sampled": 1024, "temperature": 0.07}
PARAMETERS: dict[tuple[str, str], dict] = {
    ("03_factorization_machines", "ml-1m-order"): {"epochs": 6},
    ("04_dssm", "ml-1m-order"): {"temperature": 0.07, "epochs": 12},
    ("05_youtubednn", "ml-1m-order"): LARGE | {"dim": 96, "dropout": 0.3, "epochs": 12},
    ("06_self_attention", "ml-1m-order"): LARGE
    | {"dim": 96, "dropout": 0.3, "positions": 16, "batch_size": 32, "epochs": 12},
    ("09_ablation", "ml-1m-order"): LARGE | {"dropout": 0.2, "epochs": 3},
} | {("09_several_towers", name): {"effort": 1.0} for name in SEEDS}

README_MARKERS = ("<!-- results:begin -->", "<!-- results:end -->")


def plan() -> list[tuple[str, dict]]:
    """Every run the book reports: chapter and parameters."""
    return [
        (chapter, {"dataset": dataset, "seed": seed} | PARAMETERS.get((chapter, dataset), {}))
        for dataset, seeds in SEEDS.items()
        for seed in seeds
        for chapter in (*CHAPTERS, *EXPERIMENTS)
        if chapter not in DETERMINISTIC or seed == seeds[0]
        if chapter not in EXPERIMENTS or (dataset in EXPERIMENTS_ON and seed == seeds[0])
    ]


# Running


def state(
    chapter: str, parameters: dict, results: Path, data: str | None = None, root: Path = ROOT
) -> str:
    """What `results` knows of a run: "recorded", "out of date", "missing" or "no chapter".

    Args:
        chapter: name of the notebook.
        parameters: override those of its parameters cell.
        results: folder of the records.
        data: digest of the dataset; by default of the one that was recorded.
        root: the checkout.
    """
    if not _notebook(chapter, root).is_file():
        return "no chapter"
    runs = _recorded(chapter, parameters, results)
    if not runs:
        return "missing"
    current = all(_is_current(run, parameters, data, root) for run in runs)
    return "recorded" if current else "out of date"


def stale(results: Path, root: Path = ROOT) -> list[str]:
    """Files in `results` that the code and the plan of this checkout would not write as they are.

    Whether the data have changed isn't asked: the answer is the same on machines without them.
    """
    planned = {(chapter, p["dataset"], p["seed"]): p for chapter, p in plan()}
    files = []
    for experiment in ("", *EXPERIMENTS.values()):
        for run in load_runs(results, experiment=experiment):
            parameters = planned.get((run["chapter"], run["dataset"], run["seed"]))
            if parameters is None or not _is_current(run, parameters, None, root):
                files.append(run["file"])
    return sorted(files)


def write_stale() -> None:
    """Write `stale.json`, if it says something else."""
    path, files = ROOT / "results" / "stale.json", stale(ROOT / "results")
    if not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != files:
        write_run(path, files)


def _notebook(chapter: str, root: Path) -> Path:
    return root / "notebooks" / f"{chapter}.ipynb"


def _is_current(run: dict, parameters: dict, data: str | None, root: Path) -> bool:
    """Whether `run` is what its chapter would record now."""
    notebook, data = _notebook(run["chapter"], root), data or run.get("dataset_digest", "")
    return notebook.is_file() and run["inputs"] == depends.record(
        notebook.read_text(encoding="utf-8"), parameters, data, root
    )


def _recorded(chapter: str, parameters: dict, results: Path) -> list[dict]:
    runs = load_runs(results, parameters["dataset"], EXPERIMENTS.get(chapter, ""))
    return [r for r in runs if (r["chapter"], r["seed"]) == (chapter, parameters["seed"])]


def run_chapter(
    chapter: str, parameters: dict, results: Path, data: str, root: Path = ROOT
) -> list[Path]:
    """Execute a chapter up to its record cell in a fresh kernel, and keep what it recorded.

    Args:
        chapter: name of the notebook.
        parameters: override those of its parameters cell.
        results: folder to keep the records in.
        data: digest of the dataset.
        root: the checkout.

    Returns:
        The files written.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails; nothing is kept then.
        RuntimeError: if the chapter recorded nothing, or something else than it was asked for.
    """
    from nbclient import NotebookClient
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    path = _notebook(chapter, root)
    inputs = depends.record(path.read_text(encoding="utf-8"), parameters, data, root)
    with tempfile.TemporaryDirectory() as temporary:
        notebook = parameterize_notebook(
            load_notebook_node(str(path)), parameters | {"record_to": temporary}
        )
        tagged = ["record" in cell.metadata.get("tags", []) for cell in notebook.cells]
        notebook.cells = notebook.cells[: tagged.index(True) + 1]
        client = NotebookClient(
            notebook,
            timeout=None,
            kernel_name="python3",
            resources={"metadata": {"path": path.parent}},
        )
        places = [str(root), os.environ.get("PYTHONPATH")]
        path_variable = {"PYTHONPATH": os.pathsep.join(filter(None, places))}
        client.execute(env=os.environ | depends.ONE_THREAD | path_variable)
        found = sorted(Path(temporary).glob("**/*.json"))
        if not found:
            raise RuntimeError(f"{chapter} recorded nothing with {parameters}.")
        before = {results / run["file"] for run in _recorded(chapter, parameters, results)}
        written = []
        for file in found:
            run = json.loads(file.read_text())
            wrong = {k: run[k] for k in ("dataset", "seed") if run[k] != parameters[k]}
            if wrong:
                raise RuntimeError(f"{chapter} was run with {parameters} but recorded {wrong}.")
            run |= {"chapter": chapter, "parameters": parameters, "inputs": inputs}
            run |= {"dataset_digest": data, "git_commit": _commit(root)}
            written.append(write_run(results / file.relative_to(temporary), run))
        for gone in before - set(written):  # models that the chapter no longer has
            gone.unlink()
    return written


def _commit(root: Path) -> str | None:
    """The commit that is checked out, "-dirty" if what records depend on differs from it."""
    if not shutil.which("git"):
        return None

    def git(*arguments):
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()

    sources = ("notebooks", "recsys_helpers", "requirements.txt", "results/run.py")
    commit, changed = git("rev-parse", "--short=12", "HEAD"), git("status", "--porcelain", *sources)
    return (commit + "-dirty" * bool(changed)) or None


# The README's table


def readme_table(results: Path) -> str:
    """The results tables in Markdown, one for each dataset of the plan that has results."""
    parts = []
    for dataset, seeds in SEEDS.items():
        table = results_table(dataset, results)
        if table.empty:
            continue
        header = ["model", *table.columns]
        rows = [[_text(cell) for cell in row] for row in table.reset_index().to_numpy()]
        lines = [header, ["---"] * len(header), *rows]
        run = load_runs(results, dataset)[0]
        spread = "mean ± standard deviation over seeds, or " if len(seeds) > 1 else ""
        parts.append(
            f"`{dataset}`, split {run['split']}, {run['num_users']:,} users, "
            f"{run['num_items']:,} items; {spread}value with its 95% bootstrap interval over "
            "users.\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
        )
        parts += filter(None, [stale_note(dataset, results)])
    return "\n\n".join(parts) or "Nothing is recorded yet: `make results` does it."


def _text(cell) -> str:
    if not isinstance(cell, tuple):
        return cell
    mean, *spread = cell
    form = "{:.4f} ± {:.4f}" if len(spread) == 1 else "{:.4f} [{:.4f}, {:.4f}]"
    return form.format(mean, *spread)


def readme_with_table(text: str, results: Path) -> str:
    """`text` with what stands between the markers replaced by the tables.

    Raises:
        ValueError: if a marker is missing.
    """
    begin, end = README_MARKERS
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"the README needs one {begin} and one {end}.")
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{readme_table(results)}\n\n{end}{rest.split(end)[1]}"


def main() -> int:
    """Command line; returns the number of runs that failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--list", action="store_true", help="say what is recorded; run nothing")
    parser.add_argument("--readme", action="store_true", help="rewrite the README's tables only")
    parser.add_argument("--dataset", choices=SEEDS)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--chapter", choices=(*CHAPTERS, *EXPERIMENTS))
    arguments = parser.parse_args()
    results, failed = ROOT / "results", 0
    for chapter, parameters in [] if arguments.readme else plan():
        wanted = {"chapter": chapter} | parameters
        if any(
            getattr(arguments, k) not in (None, wanted[k]) for k in ("dataset", "seed", "chapter")
        ):
            continue
        print(f"{chapter}, {parameters}: ", end="", flush=True)
        start = time.perf_counter()
        try:
            data = depends.dataset_digest(parameters["dataset"])
            known = state(chapter, parameters, results, data)
            print(known, flush=True)
            if arguments.list or known in ("recorded", "no chapter"):
                continue
            files = run_chapter(chapter, parameters, results, data)
        except Exception as error:  # one run that fails must not cost the others
            print(f"failed: {error}", file=sys.stderr, flush=True)
            failed += 1
            continue
        for file in files:
            metrics = json.loads(file.read_text())["metrics"]
            print(f"  {file.relative_to(ROOT)}: NDCG@10 {metrics['ndcg@10']:.4f}")
        print(f"  {time.perf_counter() - start:.0f} s", flush=True)
    write_stale()
    if not arguments.list:
        readme = ROOT / "README.md"
        text = readme_with_table(readme.read_text(encoding="utf-8"), results)
        new = readme.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        new.replace(readme)
    return 0 if arguments.list else failed


if __name__ == "__main__":
    sys.exit(min(main(), 1))
