"""What a page or a record depends on: one rule for both.

It is the code of the package's modules that the cells import, directly or not, the data with all
that is known of users and items, and requirements.txt. Docstrings, comments and layout are no code,
and neither are the templates of a chapter's sentences. Titles concern a page alone.

A record also depends on its parameters and on its cells up to the one tagged `record`; not on what
writes it down, or fetches and reads the data: what was read counts, value by value. jupyter-cache
compares the cells of a page by itself; a page also depends on the records, and on what others have
published, if it reads records.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from functools import cache
from modulefinder import ModuleFinder
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "recsys_helpers"
RESULTS = f"{PACKAGE}/results.py"
# The code of these cannot change a record; what they import can, such as the metrics. Those of the
# second line read files: whatever they make of them is in the digest of the data.
OUTSIDE = "fetch machine bootstrap records results trials pages plots findings "
OUTSIDE += "tables delimited parquet columns several side_tables"
NOT_IN_A_RECORD = {f"{PACKAGE}/{name}.py" for name in OUTSIDE.split()}
# The order in which threads add numbers up changes their last digits. With one thread neither a
# page nor a record depends on the number of cores, and several don't get in each other's way.
ONE_THREAD = {
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def page(source: str, root: Path = ROOT) -> str:
    """Digest of what the page of a notebook depends on, its own cells excepted.

    Args:
        source: text of the .ipynb file.
        root: the checkout.
    """
    code = "\n".join(code for tags, code in cells(source) if "install" not in tags)
    data = {name: [dataset_digest(name), titles_digest(name)] for name in datasets(code)}
    content = _shared(code, data, root)
    if RESULTS in content["modules"]:
        records = [*sorted((root / "results").rglob("*.json")), *(root / "book").glob("*.csv")]
        content["records"] = [[path.name, _sha256(path.read_bytes())] for path in records]
    return _sha256([content, sys.version_info[:2]])


def record(source: str, parameters: dict, data: str, root: Path = ROOT) -> str:
    """Digest of everything that can change what a run of a notebook records.

    Args:
        source: text of the .ipynb file.
        parameters: of the run; they override those in the notebook's parameters cell.
        data: digest of the dataset, see `dataset_digest`.
        root: the checkout.

    Raises:
        ValueError: there is not exactly one cell tagged `record`; the parameters cell does more
            than assign, or doesn't have one of the parameters.
    """
    every = cells(source)
    tagged = [i for i, (tags, _) in enumerate(every) if "record" in tags]
    if len(tagged) != 1:
        raise ValueError(f"expected one cell tagged 'record', received {len(tagged)}.")
    every, effective = every[: tagged[0] + 1], defaults(source)
    if unknown := sorted(parameters.keys() - effective.keys()):
        raise ValueError(f"the chapter has no parameters {unknown}; it has {sorted(effective)}.")
    effective |= parameters | {"record_to": ""}
    code = "\n".join(code for tags, code in every if not {"parameters", "install"} & {*tags})
    content = _shared(code, {"dataset": data}, root, NOT_IN_A_RECORD)
    return _sha256([content, _code(code), effective])


def defaults(source: str) -> dict:
    """What a notebook's parameters cell assigns, by name.

    Raises:
        ValueError: the cell does more than assign.
    """
    found = {}
    code = "\n".join(code for tags, code in cells(source) if "parameters" in tags)
    for node in ast.parse(code).body:
        if not isinstance(node, ast.Assign):
            raise ValueError(
                f"a parameters cell holds assignments only, received {ast.unparse(node)!r}."
            )
        found[ast.unparse(node.targets[0])] = ast.literal_eval(node.value)
    return found


@cache
def dataset_digest(name: str) -> str:
    """Digest of a dataset: interactions, and what is known of users and items but for titles.

    Titles are for people. Two copies of one dataset may spell them in two ways.
    """
    from recsys_helpers.datasets import load_dataset

    dataset = load_dataset(name, verbose=False)
    items = dataset.items.drop(columns="title", errors="ignore")
    known = [
        # As Python writes it: a number and its text are two values, what is missing is one.
        {name: repr(column.astype(object).where(column.notna(), None).tolist())}
        for table in (dataset.users, items)
        for name, column in table.items()
    ]
    return _sha256([dataset.fingerprint, known])


@cache
def titles_digest(name: str) -> str:
    """Digest of the items' titles in a dataset."""
    from recsys_helpers.datasets import load_dataset

    return _sha256(load_dataset(name, verbose=False).items.filter(["title"]).to_csv())


def datasets(code: str) -> list[str]:
    """What the cells load: `dataset = "..."` and `load_dataset("...")`."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "dataset":
            value = node.value
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "load_dataset" and node.args:
            value = node.args[0]
        else:
            continue
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            found.add(value.value)
    return sorted(found)


def modules(code: str, root: Path = ROOT) -> list[Path]:
    """Files of the package that `code` imports, directly or not, and the `__init__`s above them.

    What an `__init__` imports is not followed, or each tower would depend on all others.

    Raises:
        ValueError: something is imported from an `__init__`, or from a module that isn't there.
    """
    package = sorted((root / PACKAGE).rglob("*.py"))
    return _modules(code, root, tuple((path, path.read_bytes()) for path in package))


@cache
def _modules(code: str, root: Path, contents: tuple) -> list[Path]:
    finder = _Finder(path=[str(root)])
    finder.scan_code(compile(code, "cells", "exec"), finder.add_module("__main__"))
    if lost := sorted(name for name in finder.badmodules if name.split(".")[0] == PACKAGE):
        raise ValueError(f"no module of the package, import from the one that defines it: {lost}.")
    return sorted(Path(m.__file__) for m in finder.modules.values() if m.__file__)


class _Finder(ModuleFinder):
    def scan_code(self, co, m):
        if not m.__path__:
            super().scan_code(co, m)


def _shared(
    code: str, data: dict[str, str | list[str]], root: Path, without: set[str] = frozenset()
) -> dict:
    files = {path.relative_to(root).as_posix(): path for path in modules(code, root)}
    lines = (root / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return {
        "modules": {
            name: _code(path.read_text(encoding="utf-8"))
            for name, path in files.items()
            if name not in without
        },
        "data": data,
        "requirements": [line for line in lines if line.strip() and not line.startswith("#")],
    }


def _sha256(content) -> str:
    content = (
        content if isinstance(content, bytes) else json.dumps(content, sort_keys=True).encode()
    )
    return hashlib.sha256(content).hexdigest()


@cache
def cells(source: str) -> list[tuple[list[str], str]]:
    """Tags and code of a notebook's code cells; magics and shell escapes become calls."""
    from IPython.core.inputtransformer2 import TransformerManager

    plain = TransformerManager().transform_cell
    return [
        (cell["metadata"].get("tags", []), plain("".join(cell["source"])))
        for cell in json.loads(source)["cells"]
        if cell["cell_type"] == "code"
    ]


@cache
def _code(source: str) -> str:
    """Digest of the code in a module or cell; a new `__version__` alone isn't new code.

    Nor are other words in `say = sentences(...)`.
    """
    body = [
        node
        for node in ast.parse(source).body
        if not ast.unparse(node).startswith("__version__") and not _holds_sentences(node)
    ]
    return _sha256(_plain(ast.Module(body, [])))


def _holds_sentences(node: ast.stmt) -> bool:
    called = node.value.func if isinstance(getattr(node, "value", None), ast.Call) else None
    return isinstance(node, ast.Assign) and ast.unparse(called or node) == "sentences"


def _plain(node):
    """A syntax tree without docstrings, as nested lists that are the same on every Python.

    `ast.dump` isn't: newer versions add fields. An empty field says nothing, so it is left out, and
    so is the empty string that Python 3.12.1 puts into some f-strings. Nor is `ast.unparse`, which
    writes f-strings with other quotes.
    """
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = node.body[1:]
    if isinstance(node, ast.JoinedStr):
        fields["values"] = [part for part in node.values if getattr(part, "value", None) != ""]
    kept = [[name, _plain(value)] for name, value in fields.items() if value not in (None, [])]
    return [type(node).__name__, *kept]
