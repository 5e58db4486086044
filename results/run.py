"""Run the chapters that have a cell tagged `record`, and keep what they record.

A reference run is a chapter with other parameters, executed in a fresh kernel up to and including
that cell; what comes after it are experiments that cannot change what was recorded. Runs that are
recorded for the same inputs are not repeated, so this can be stopped and started at will:

    python results/run.py                   run what is missing or out of date
    python results/run.py --list            say what that is
    python results/run.py --readme          rewrite the results table of the README
    python results/run.py --chapter 04_dssm --dataset ml-100k --seed 1      only these
"""

from __future__ import annotations

import argparse
import ast
import hashlib
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

from recsys_helpers.datasets import load_dataset  # noqa: E402
from recsys_helpers.results import load_runs, results_table, write_run  # noqa: E402

# What the book reports: every chapter below on each dataset with each of its seeds.
SEEDS = {name: (1, 2, 3) for name in ("ml-100k", "ml-latest-small", "ml-1m-order")}
CHAPTERS = (
    "02_data_and_rules",
    "03_factorization_machines",
    "04_dssm",
    "05_youtubednn",
    "06_self_attention",
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
}

RECORD = "record"
# The order in which threads add numbers up changes their last digits. With one thread a record does
# not depend on the number of cores, and several runs side by side don't get in each other's way.
ONE_THREAD = {
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# These write and draw what was computed; they cannot change it.
NOT_INPUTS = {"results", "plots"}
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


# What a run depends on


def recorded_cells(notebook: dict) -> list[dict]:
    """The code cells up to and including the one tagged `record`.

    Raises:
        ValueError: if there is not exactly one.
    """
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    tagged = [i for i, cell in enumerate(cells) if RECORD in _tags(cell)]
    if len(tagged) != 1:
        raise ValueError(f"expected one cell tagged {RECORD!r}, received {len(tagged)}.")
    return cells[: tagged[0] + 1]


def inputs_hash(notebook_path: Path, parameters: dict, fingerprint: str, package: Path) -> str:
    """SHA-256 over everything that can change what a chapter records.

    That is the code of its cells up to the record cell, the functions, classes and constants of
    the package that these use, directly or not, the parameters and the data. Comments, docstrings
    and layout are not part of it, nor is the cell that installs the package. So a new tower in
    `towers.py` leaves the records of the others as they are.

    Args:
        notebook_path: the chapter.
        parameters: of the run; they override those in the chapter's parameters cell.
        fingerprint: of the dataset.
        package: folder of the package `recsys_helpers`.

    Raises:
        ValueError: if the chapter doesn't have one of the parameters, or its parameters cell does
            more than assign.
    """
    cells = recorded_cells(json.loads(notebook_path.read_text(encoding="utf-8")))
    chapter, defaults = [], {}
    for cell in cells:
        tree = _parse("".join(cell["source"]))
        if "parameters" in _tags(cell):
            for node in tree.body:
                if not isinstance(node, ast.Assign):
                    raise ValueError(
                        "a parameters cell holds assignments only, received "
                        f"{ast.unparse(node)!r} in {notebook_path.name}."
                    )
                defaults[ast.unparse(node.targets[0])] = _canonical(node.value)
        elif "install" not in _tags(cell):
            chapter.append(tree)
    own = {
        name: _canonical(ast.parse(repr(value)).body[0].value) for name, value in parameters.items()
    }
    if own.keys() - defaults.keys():
        raise ValueError(
            f"{notebook_path.name} has no parameters {sorted(own.keys() - defaults.keys())}; "
            f"it has {sorted(defaults)}."
        )
    effective = defaults | own
    effective.pop("record_to", None)

    used = _definitions([name for tree in chapter for name in _imports(tree, package)], package)
    content = [
        [_canonical(_without_docstrings(tree)) for tree in chapter],
        sorted(used.items()),
        sorted(effective.items()),
        fingerprint,
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def _parse(source: str) -> ast.Module:
    """Parse a cell, line magics and shell escapes included."""
    from IPython.core.inputtransformer2 import TransformerManager

    return ast.parse(TransformerManager().transform_cell(source))


def _canonical(node):
    """A syntax tree as nested lists that do not depend on the version of Python.

    `ast.dump` does: newer versions add fields. An empty field says nothing, so it is left out, and
    so is the empty string that Python 3.12.1 puts into some f-strings.
    """
    if isinstance(node, ast.JoinedStr):
        node.values = [v for v in node.values if getattr(v, "value", None) != ""]
    if isinstance(node, ast.AST):
        silent = ("ctx", "kind", "type_comment", "type_ignores")
        return [type(node).__name__] + [
            [name, _canonical(value)]
            for name, value in ast.iter_fields(node)
            if name not in silent and value is not None and value != []
        ]
    return [_canonical(item) for item in node] if isinstance(node, list) else repr(node)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return tree


def _imports(tree: ast.AST, package: Path) -> list[tuple[str, str | None]]:
    """What `tree` imports from the package and can change a result: (module, name).

    The name is None for a module as a whole.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = [package.name] * (node.level > 0) + [node.module] * bool(node.module)
            dotted = [".".join([*module, alias.name]) for alias in node.names]
        else:
            continue
        for path in dotted:
            top, module, name = [*path.split("."), None, None][:3]
            if (
                top == package.name
                and module not in NOT_INPUTS
                and (package / f"{module}.py").is_file()
            ):
                found.append((module, name))
    return found


def _definitions(wanted: list[tuple[str, str | None]], package: Path) -> dict[str, list]:
    """The code of the package behind `wanted`: "module.name" -> its statements, canonical.

    Followed are names, through modules and their imports. Statements that bind no name, such as an
    `if` at the top of a module, belong to everything in it.
    """
    modules: dict[str, dict[str | None, list[ast.stmt]]] = {}
    found: dict[str, list] = {}
    waiting = list(wanted)
    while waiting:
        module, name = waiting.pop()
        if module not in modules:
            tree = _without_docstrings(
                ast.parse((package / f"{module}.py").read_text(encoding="utf-8"))
            )
            modules[module] = {}
            for node in tree.body:
                for bound in _bound(node) or [None]:
                    modules[module].setdefault(bound, []).append(node)
        names = modules[module]
        if name is None:
            waiting += [(module, every) for every in names if every is not None]
        for key in (name, None):
            if f"{module}.{key}" in found or key not in names:
                continue
            found[f"{module}.{key}"] = []
            for node in names[key]:
                from_package = _imports(node, package)
                if not isinstance(node, ast.ImportFrom) or not from_package:
                    found[f"{module}.{key}"].append(_canonical(node))
                waiting += [i for i in from_package if i[1] in (None, key) or key is None]
                waiting += [
                    (module, n.id) for n in ast.walk(node) if isinstance(n, ast.Name)
                    if n.id in names
                ]  # fmt: skip
    return found


def _bound(node: ast.stmt) -> list[str]:
    """The names that a statement at the top of a module binds."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [alias.asname or alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        return [n.id for n in ast.walk(node) if isinstance(n, ast.Name)
                and isinstance(n.ctx, ast.Store)]  # fmt: skip
    return []


# Running


def state(chapter: str, parameters: dict, results: Path, root: Path = ROOT) -> str:
    """What `results` knows of a run: "recorded", "out of date", "missing" or "no chapter"."""
    notebook = root / "notebooks" / f"{chapter}.ipynb"
    if not notebook.is_file():
        return "no chapter"
    runs = _recorded(chapter, parameters, results)
    if not runs:
        return "missing"
    fingerprint = load_dataset(parameters["dataset"], verbose=False).fingerprint
    inputs = inputs_hash(notebook, parameters, fingerprint, root / "recsys_helpers")
    return "recorded" if all(run["inputs"] == inputs for run in runs) else "out of date"


def _recorded(chapter: str, parameters: dict, results: Path) -> list[dict]:
    runs = load_runs(results, parameters["dataset"], EXPERIMENTS.get(chapter, ""))
    return [r for r in runs if (r["chapter"], r["seed"]) == (chapter, parameters["seed"])]


def run_chapter(chapter: str, parameters: dict, results: Path, root: Path = ROOT) -> list[Path]:
    """Execute a chapter up to its record cell in a fresh kernel, and keep what it recorded.

    Args:
        chapter: name of the notebook.
        parameters: override those of its parameters cell.
        results: folder to keep the records in.
        root: the checkout.

    Returns:
        The files written.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails; nothing is kept then.
        RuntimeError: if the chapter recorded nothing.
    """
    from nbclient import NotebookClient
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    path = root / "notebooks" / f"{chapter}.ipynb"
    fingerprint = load_dataset(parameters["dataset"], verbose=False).fingerprint
    inputs = inputs_hash(path, parameters, fingerprint, root / "recsys_helpers")
    with tempfile.TemporaryDirectory() as temporary:
        notebook = parameterize_notebook(
            load_notebook_node(str(path)), parameters | {"record_to": temporary}
        )
        record = next(i for i, cell in enumerate(notebook.cells) if RECORD in _tags(cell))
        notebook.cells = notebook.cells[: record + 1]
        client = NotebookClient(
            notebook,
            timeout=None,
            kernel_name="python3",
            resources={"metadata": {"path": path.parent}},
        )
        places = [str(root), os.environ.get("PYTHONPATH")]
        path_variable = {"PYTHONPATH": os.pathsep.join(filter(None, places))}
        client.execute(env=os.environ | ONE_THREAD | path_variable)
        found = sorted(Path(temporary).glob("**/*.json"))
        if not found:
            raise RuntimeError(f"{chapter} recorded nothing with {parameters}.")
        experiment = EXPERIMENTS.get(chapter, "")
        stale = {results / r["dataset"] / experiment / f"{r['model']}-seed{r['seed']}.json"
                 for r in _recorded(chapter, parameters, results)}  # fmt: skip
        written = []
        for file in found:
            run = json.loads(file.read_text())
            wrong = {k: run[k] for k in ("dataset", "seed") if run[k] != parameters[k]}
            if wrong:
                raise RuntimeError(f"{chapter} was run with {parameters} but recorded {wrong}.")
            run |= {"chapter": chapter, "parameters": parameters, "inputs": inputs}
            run |= {"dataset_fingerprint": fingerprint, "git_commit": _commit(root)}
            written.append(write_run(results / file.relative_to(temporary), run))
        for path in stale - set(written):  # models that the chapter no longer has
            path.unlink()
    return written


def _commit(root: Path) -> str | None:
    """The commit that is checked out, "-dirty" if code or chapters differ from it."""
    if not shutil.which("git"):
        return None

    def git(*arguments):
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "notebooks", "recsys_helpers", "results/run.py")
    commit = git("rev-parse", "--short=12", "HEAD")
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
        rows = [[name, *row] for name, row in zip(table.index, table.to_numpy(), strict=True)]
        lines = [header, ["---"] * len(header), *rows]
        run = load_runs(results, dataset)[0]
        spread = "mean ± standard deviation over seeds, or " if len(seeds) > 1 else ""
        parts.append(
            f"`{dataset}`, split {run['split']}, {run['num_users']:,} users, "
            f"{run['num_items']:,} items; {spread}value with its 95% bootstrap interval over "
            "users.\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
        )
    return "\n\n".join(parts) or "Nothing is recorded yet: `make results` does it."


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
    parser.add_argument("--readme", action="store_true", help="rewrite the README's table only")
    parser.add_argument("--dataset", choices=SEEDS)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--chapter", choices=(*CHAPTERS, *EXPERIMENTS))
    arguments = parser.parse_args()
    results, failed = ROOT / "results", 0

    if not arguments.readme:
        for chapter, parameters in plan():
            wanted = {"chapter": chapter} | parameters
            if any(
                getattr(arguments, k) not in (None, wanted[k])
                for k in ("dataset", "seed", "chapter")
            ):
                continue
            try:
                known = state(chapter, parameters, results)
            except (OSError, ValueError) as error:
                print(f"{chapter}, {parameters}: no data here\n  {error}", file=sys.stderr)
                failed += not arguments.list
                continue
            print(f"{chapter}, {parameters}: {known}", flush=True)
            if arguments.list or known in ("recorded", "no chapter"):
                continue
            start = time.perf_counter()
            try:
                files = run_chapter(chapter, parameters, results)
            except Exception as error:  # one chapter that fails must not cost the others
                print(f"  failed: {error}", file=sys.stderr, flush=True)
                failed += 1
                continue
            for file in files:
                metrics = json.loads(file.read_text())["metrics"]
                print(f"  {file.relative_to(ROOT)}: NDCG@10 {metrics['ndcg@10']:.4f}")
            print(f"  {time.perf_counter() - start:.0f} s", flush=True)
    readme = ROOT / "README.md"
    if not arguments.list and readme.is_file():
        text = readme_with_table(readme.read_text(encoding="utf-8"), results)
        readme.write_text(text, encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(min(main(), 1))
