"""Sphinx extension: execute a chapter again when anything that it depends on has changed.

jupyter-cache knows a chapter by its code cells and its kernelspec, so an edited helper would leave
old outputs on the page. As a chapter is read (never on disk), this adds to its kernelspec a digest
of the rest, see `depends.py`. Prose is not part of it. A chapter whose digest differs from that of
the last build is read again, whether its file changed or not.

Chapters don't need each other, and a second core is worth little to one of them. So those that have
to be executed are executed side by side, before the first is read, and found in the cache then.
Each computes in one thread: what a page shows doesn't depend on how many cores it had.

A chapter that fails ends the build before any page is written, with or without `-W`. The others
have been executed by then and are kept.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the package and `depends`, installed or not

from book import depends  # noqa: E402

AT_ONCE = min(4, os.cpu_count() or 1)  # chapters; each needs about 1.5 GB


def _digests(env) -> dict[str, str]:
    if not hasattr(env, "execution_digests"):
        env.execution_digests = {}  # kept by Sphinx from one build to the next
    return env.execution_digests


def _is_notebook(env, document: str) -> bool:
    return env.doc2path(document).endswith(".ipynb")


def digest(source: str) -> str:
    from sphinx.errors import ExtensionError

    try:
        return depends.page(source)
    except (ImportError, OSError, ValueError) as error:  # no data, no package
        raise ExtensionError(f"a chapter cannot be executed here: {error}") from error


def note_stale_records(app):
    """Before pages show records, find out which of them an earlier version of the code wrote."""
    if (ROOT / "results" / "run.py").is_file():
        from results import run

        run.write_stale()


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

    Raises:
        ExtensionError: a chapter failed.
    """
    import nbformat
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn
    from sphinx.errors import ExtensionError
    from sphinx.util.logging import getLogger

    config = env.mystnb_config
    if config.execution_mode != "cache":
        return
    store = get_cache(config.execution_cache_path)
    waiting, failures = {}, []
    for document in (d for d in documents if _is_notebook(env, d)):
        path = Path(env.doc2path(document))
        content = [path.read_text("utf-8")]
        add_digest(app, document, content)
        notebook = nbformat.reads(content[0], as_version=4)
        try:
            store.match_cache_notebook(notebook)
        except KeyError:
            waiting[path] = notebook

    log = getLogger(__name__).info
    if waiting:
        log("chapters to execute: %d, up to %d at a time", len(waiting), AT_ONCE)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        started = {pool.submit(_execute, p, n, config): p for p, n in waiting.items()}
        for count, future in enumerate(as_completed(started), start=1):
            path, (seconds, error) = started[future], future.result()
            if error is None:
                data = {"execution_seconds": seconds}
                bundle = CacheBundleIn(waiting[path], str(path), data=data)
                store.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
            else:
                failures.append(f"{path.name} failed\n\n{error}")
            outcome = "failed" if error else "executed"
            log("[%d/%d] %s: %s in %.0f s", count, len(waiting), path.name, outcome, seconds)
    if failures:
        raise ExtensionError("\n\n".join(failures))


def _execute(path: Path, notebook, config) -> tuple[float, Exception | None]:
    """Execute a notebook in place; returns the seconds it took, and what ended it."""
    from nbclient import NotebookClient

    start = time.perf_counter()
    client = NotebookClient(
        notebook,
        timeout=config.execution_timeout,
        allow_errors=config.execution_allow_errors,
        record_timing=False,  # in the cells, where jupyter-cache would see another notebook
        resources={"metadata": {"path": str(path.parent)}},
    )
    try:
        # What a kernel and TensorFlow say as they start has no place in the terminal.
        client.execute(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except Exception as error:  # a cell that raises, takes too long, or ends the kernel
        return time.perf_counter() - start, error
    return time.perf_counter() - start, None


def setup(app):
    """Register with Sphinx."""
    # What TensorFlow says of drivers it did not find has no place on a page.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    places = [str(ROOT), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    os.environ.update(depends.ONE_THREAD)
    app.connect("builder-inited", note_stale_records)
    app.connect("env-get-outdated", changed)
    app.connect("env-before-read-docs", execute)
    app.connect("source-read", add_digest)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
