"""Sphinx extension: execute a chapter again when anything that it depends on has changed.

jupyter-cache knows a chapter by its code cells and its kernelspec, so an edited helper would leave
old outputs on the page. As a chapter is read (never on disk), this adds to its kernelspec a digest
of the rest: the helper modules that it imports, directly or not, requirements.txt, its dataset and,
if it reads them, the recorded results. Prose is not part of it. A chapter whose digest differs from
that of the last build is read again, whether its file changed or not.

Chapters don't need each other, and a second core is worth little to one of them. So those that have
to be executed are executed side by side, before the first is read, and found in the cache then.
Each computes in one thread: what a page shows doesn't depend on how many cores it had.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "recsys_helpers"
RESULTS_MODULE = "results"
ONE_THREAD = (
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
)
AT_ONCE = min(4, os.cpu_count() or 1)  # chapters; each needs about 1.5 GB


def parse(notebook: dict) -> list[ast.Module]:
    """The code cells of a notebook; magics and shell escapes become calls."""
    from IPython.core.inputtransformer2 import TransformerManager

    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [ast.parse(TransformerManager().transform_cell("".join(c["source"]))) for c in cells]


def imported_modules(tree: ast.AST, package: Path) -> set[str]:
    """Names of the package's modules that `tree` imports, wherever in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = [package.name] * (node.level > 0) + [node.module] * bool(node.module)
            dotted = [".".join([*start, alias.name]) for alias in node.names]
        else:
            continue
        names |= {name.split(".")[1] for name in dotted if name.startswith(f"{package.name}.")}
    return {name for name in names if (package / f"{name}.py").is_file()}


def all_modules(trees: list[ast.AST], package: Path) -> list[str]:
    """Names of the modules that `trees` import, and of those that these import, sorted."""
    found: set[str] = set()
    waiting = set().union(*(imported_modules(tree, package) for tree in trees))
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= imported_modules(ast.parse((package / f"{name}.py").read_bytes()), package)
        waiting -= found
    return sorted(found)


def datasets(trees: list[ast.AST]) -> list[str]:
    """What the cells load: `dataset = "..."` and `load_dataset("...")`."""
    found = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "dataset":
            value = node.value
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "load_dataset" and node.args:
            value = node.args[0]
        else:
            continue
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            found.add(value.value)
    return sorted(found)


@cache
def dataset_digest(name: str) -> str:
    """Digest of everything in a dataset: interactions, and what is known of users and items."""
    from recsys_helpers.datasets import load_dataset

    dataset = load_dataset(name, verbose=False)
    tables = dataset.users.to_csv() + dataset.items.to_csv()
    return hashlib.sha256((dataset.fingerprint + tables).encode()).hexdigest()


def digest(source: str, root: Path = ROOT) -> str:
    """Digest of what the notebook with this source depends on, its own cells excepted.

    Args:
        source: text of an .ipynb file.
        root: the checkout.
    """
    trees = parse(json.loads(source))
    package = root / PACKAGE
    modules = all_modules(trees, package)
    files = [package / "__init__.py", *(package / f"{name}.py" for name in modules)]
    files.append(root / "requirements.txt")
    if RESULTS_MODULE in modules:
        files += sorted((root / "results").rglob("*.json"))
    content = [[f.name, hashlib.sha256(f.read_bytes()).hexdigest()] for f in files]
    content += [["dataset", name, dataset_digest(name)] for name in datasets(trees)]
    content.append(["python", *sys.version_info[:2]])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


# What Sphinx calls


def _digests(env) -> dict[str, str]:
    if not hasattr(env, "execution_digests"):
        env.execution_digests = {}  # kept by Sphinx from one build to the next
    return env.execution_digests


def _is_notebook(env, document: str) -> bool:
    return env.doc2path(document).endswith(".ipynb")


def changed(app, env, added, changed, removed):
    """Documents to read again: chapters whose digest is not that of the last build."""
    known = _digests(env)
    paths = {d: Path(env.doc2path(d)) for d in env.found_docs - set(added) if _is_notebook(env, d)}
    return [d for d, path in paths.items() if known.get(d) != digest(path.read_text("utf-8"))]


def add_digest(app, document, content):
    """Make the digest part of what jupyter-cache compares."""
    if _is_notebook(app.env, document):
        notebook = json.loads(content[0])
        value = _digests(app.env)[document] = digest(content[0])
        notebook["metadata"].setdefault("kernelspec", {})["depends_on"] = value
        content[0] = json.dumps(notebook)


def execute(app, env, documents):
    """Execute what is about to be read and isn't in the cache, several chapters at a time.

    A chapter that fails isn't put into the cache. myst-nb will then execute it by itself, and
    report the failure as it always does.
    """
    import nbformat
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn
    from jupyter_cache.executors.utils import single_nb_execution
    from sphinx.util.logging import getLogger

    config = env.mystnb_config
    if config.execution_mode != "cache":
        return
    store = get_cache(config.execution_cache_path)
    waiting = {}
    for document in (d for d in documents if _is_notebook(env, d)):
        path = Path(env.doc2path(document))
        content = [path.read_text("utf-8")]
        add_digest(app, document, content)
        notebook = nbformat.reads(content[0], as_version=4)
        try:
            store.match_cache_notebook(notebook)
        except KeyError:
            waiting[path] = notebook

    def run(path):
        return single_nb_execution(
            waiting[path],
            cwd=str(path.parent),
            timeout=config.execution_timeout,
            allow_errors=config.execution_allow_errors,
        )

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for path, result in zip(waiting, pool.map(run, waiting), strict=True):
            if result.err is None:
                data = {"execution_seconds": result.time}
                bundle = CacheBundleIn(waiting[path], str(path), data=data)
                store.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
            outcome = "failed" if result.err else "executed"
            getLogger(__name__).info("%s: %s in %.0f seconds", path.name, outcome, result.time)


def setup(app):
    """Register with Sphinx."""
    # What TensorFlow says of drivers it did not find has no place on a page.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    app.connect("env-get-outdated", changed)
    app.connect("env-before-read-docs", execute)
    app.connect("source-read", add_digest)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
