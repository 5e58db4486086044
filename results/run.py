"""Run the chapters that have a cell tagged `record`, and keep what they record.

A reference run is a chapter with other parameters, executed in a fresh kernel up to and including
that cell; what comes after it are experiments that cannot change what was recorded. Runs that are
recorded for the same inputs (`book/depends.py`) are not repeated, so this can be stopped and
started at will. Parameters are those of the best trial of `tune.py`, by the validation target;
where nothing was tried, the notebook's. Nothing is recorded from a checkout with changes that are
in no commit, unless `--dirty`. Each call also writes to `stale.json` which records no longer are
what the code would record; the tables of the book say it of them:

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
from recsys_helpers.trials import chosen_parameters, load_trials  # noqa: E402

# What the book reports: every chapter below on each dataset with each of its seeds, but for those
# that say what they need, and those that take hours.
SEEDS = {"ml-100k": (1, 2, 3, 4, 5), "ml-latest-small": (1, 2, 3), "ml-1m-order": (1, 2, 3)}
OWN_SEEDS = {
    ("02_data_and_rules", "ml-100k"): (1,),  # it draws nothing: one seed says it all
    ("02_data_and_rules", "ml-latest-small"): (1,),
    ("02_data_and_rules", "ml-1m-order"): (1,),
    ("09_ablation", "ml-100k"): (1, 2, 3),
    ("09_ablation", "ml-latest-small"): (),
    ("09_ablation", "ml-1m-order"): (1,),
}
CHAPTERS = (
    "02_data_and_rules",
    "03_factorization_machines",
    "04_dssm",
    "05_youtubednn",
    "06_self_attention",
    "09_several_towers",
)
# Chapters that record an experiment: the folder for it.
EXPERIMENTS = {"09_ablation": "ablation"}
# An experiment has the parameters of this chapter, those that both have, but for its own ones.
LIKE = {"09_ablation": "05_youtubednn"}
# Its rungs that sample draw so many, whatever chapter 5 does; and on MovieLens-1M short vectors, so
# that all can be trained to their end.
OWN = {
    ("09_ablation", "ml-100k"): {"num_sampled": 256},
    ("09_ablation", "ml-1m-order"): {"num_sampled": 1024, "dim": 64},
}
OWN |= {("09_several_towers", name): {"effort": 1.0} for name in SEEDS}  # all epochs
# The members of a sum have the parameters of their own chapters.
MEMBERS = {
    "09_several_towers": {
        "fm": "03_factorization_machines",
        "dssm": "04_dssm",
        "youtubednn": "05_youtubednn",
        "self_attentive": "06_self_attention",
    }
}
# On MovieLens-1M the sum has the members that validation liked best, equal weights, seed 1.
SUMMED = {"ml-1m-order": ("dssm", "youtubednn")}
OF_A_TOWER = ("hidden", "recency", "last", "decays", "history_dropout", "blocks", "heads")

README_MARKERS = ("<!-- results:begin -->", "<!-- results:end -->")


def parameters_of(chapter: str, dataset: str, root: Path = ROOT) -> dict:
    """What a chapter is run with on a dataset, but for the seed: the best of its trials."""
    if not _notebook(chapter, root).is_file():
        return {}
    own = depends.defaults(_notebook(chapter, root).read_text(encoding="utf-8"))
    chosen = chosen_parameters(LIKE.get(chapter, chapter), dataset, root / "results")
    kept = {name: value for name, value in chosen.items() if name in own}
    if chapter in MEMBERS:
        kinds = SUMMED.get(dataset, MEMBERS[chapter])
        members = [m for m in own["members"] if m["kind"] in kinds]
        members = [_member(member, chapter, dataset, root) for member in members]
        kept |= {"members": members, "student": _member(own["student"], chapter, dataset, root)}
    return kept | OWN.get((chapter, dataset), {})


def _member(member: dict, chapter: str, dataset: str, root: Path) -> dict:
    """A member of a sum, trained as the best trial of its kind's chapter was."""
    chosen = chosen_parameters(MEMBERS[chapter][member["kind"]], dataset, root / "results")
    # Not the rows of a batch: a chapter's may be longer or shorter.
    same = {k: v for k, v in chosen.items() if k in member and k != "batch_size"}
    tower = {k: v for k, v in chosen.items() if k in OF_A_TOWER}
    if "hidden" in tower:
        tower["hidden"] = [tower["hidden"]]
    return member | same | {"tower": member.get("tower", {}) | tower}


def plan() -> list[tuple[str, dict]]:
    """Every run the book reports: chapter and parameters."""
    chapters = (*CHAPTERS, *EXPERIMENTS)
    chosen = {(c, dataset): parameters_of(c, dataset) for dataset in SEEDS for c in chapters}
    return [
        (chapter, {"dataset": dataset, "seed": seed} | chosen[chapter, dataset])
        for dataset, seeds in SEEDS.items()
        for seed in seeds
        for chapter in chapters
        if seed in OWN_SEEDS.get((chapter, dataset), seeds)
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
    """Records and trials that the code and the plan of this checkout would not write as they are.

    Whether the data have changed isn't asked: the answer is the same on machines without them.
    """
    planned = {(chapter, p["dataset"], p["seed"]): p for chapter, p in plan()}
    files = []
    for experiment in ("", *EXPERIMENTS.values()):
        for run in load_runs(results, experiment=experiment):
            parameters = planned.get((run["chapter"], run["dataset"], run["seed"]))
            if parameters is None or not _is_current(run, parameters, None, root):
                files.append(run["file"])
    for trial in load_trials(results):
        if not _is_current(trial, trial["parameters"], None, root):
            files.append(trial["file"])
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
    if not notebook.is_file():
        return False
    try:
        inputs = depends.record(notebook.read_text(encoding="utf-8"), parameters, data, root)
    except ValueError:  # it no longer has such parameters
        return False
    return run["inputs"] == inputs


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
    more = {"chapter": chapter, "parameters": parameters, "dataset_digest": data}
    source = _notebook(chapter, root).read_text(encoding="utf-8")
    more |= {"inputs": depends.record(source, parameters, data, root), "git_commit": commit(root)}
    runs = execute(chapter, parameters, root)
    before = {results / run["file"] for run in _recorded(chapter, parameters, results)}
    written = [write_run(results / file, run | more) for file, run in runs.items()]
    for gone in before - set(written):  # models that the chapter no longer has
        gone.unlink()
    return written


def execute(chapter: str, parameters: dict, root: Path = ROOT, first: str = "") -> dict[Path, dict]:
    """What a chapter records in a fresh kernel, by the file it would be kept in.

    Args:
        chapter: name of the notebook.
        parameters: override those of its parameters cell.
        root: the checkout.
        first: code to be run right after the parameters.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
        RuntimeError: if the chapter recorded nothing, or something else than it was asked for.
    """
    from nbclient import NotebookClient
    from nbformat.v4 import new_code_cell
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    path = _notebook(chapter, root)
    with tempfile.TemporaryDirectory() as temporary:
        notebook = parameterize_notebook(
            load_notebook_node(str(path)), parameters | {"record_to": temporary}
        )
        tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
        last = ["record" in of for of in tags].index(True)
        after = ["injected-parameters" in of for of in tags].index(True)
        notebook.cells = notebook.cells[: last + 1]
        notebook.cells.insert(after + 1, new_code_cell(first))
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
        runs = {file.relative_to(temporary): json.loads(file.read_text()) for file in found}
    if not runs:
        raise RuntimeError(f"{chapter} recorded nothing with {parameters}.")
    for run in runs.values():
        wrong = {k: run[k] for k in ("dataset", "seed") if run[k] != parameters[k]}
        if wrong:
            raise RuntimeError(f"{chapter} was run with {parameters} but recorded {wrong}.")
    return runs


# What decides about a record, and about a trial.
SOURCES = ("notebooks", "recsys_helpers", "book/depends.py", "requirements.txt", "results/run.py")
CHOICES = ("results/trials",)


def commit(root: Path, sources: tuple[str, ...] = (*SOURCES, *CHOICES)) -> str | None:
    """The commit that is checked out, "-dirty" if `sources` differ from it; None without git."""
    if not shutil.which("git"):
        return None

    def git(*arguments):
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()

    name, changed = git("rev-parse", "--short=12", "HEAD"), git("status", "--porcelain", *sources)
    return (name + "-dirty" * bool(changed)) or None


def check_clean(dirty: bool, sources: tuple[str, ...] = (*SOURCES, *CHOICES)) -> None:
    """End the program if `sources` differ from the commit, unless that is wanted."""
    if not dirty and (commit(ROOT, sources) or "").endswith("-dirty"):
        sys.exit(
            f"Changes in {', '.join(sources)} are in no commit, so nobody could find out what was "
            "run. Commit them, or use --dirty, which marks what is written."
        )


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
    parser.add_argument("--dirty", action="store_true", help="record what no commit has, too")
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
            check_clean(arguments.dirty)
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
