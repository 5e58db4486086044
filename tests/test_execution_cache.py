"""Which chapters the book executes, and how a build ends: tried on a small book of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent

CONF = """
import sys
sys.path.insert(0, "book/_ext")
extensions = ["myst_nb", "execution_cache"]
nb_execution_mode = "cache"
exclude_patterns = ["_build"]
"""
RUN = """
from pathlib import Path
def write_stale():
    Path(__file__).with_name("stale.json").write_text("[]")
"""
MEET = """
import pathlib, time
pathlib.Path("{name}.started").touch()
end = time.monotonic() + 60
while not pathlib.Path("{other}.started").exists():
    assert time.monotonic() < end, "executed one after the other"
    time.sleep(0.02)
"""
CODE = """
import os
from recsys_helpers.{module} import value
open("../executed.log", "a").write("{name} ")
os.write(2, b"noise of a library")
print("value:", value, "threads:", os.environ["TF_NUM_INTRAOP_THREADS"])
"""


@pytest.fixture
def book(tmp_path):
    """A checkout with a package, and a book of two chapters, `one` and `two`."""
    pytest.importorskip("myst_nb", reason="the book's own packages are not installed here")
    package = tmp_path / "recsys_helpers"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one_of_mine.py").write_text("value = 'first'\n")
    (package / "two_of_mine.py").write_text("value = 'old'\n")
    (tmp_path / "requirements.txt").write_text("numpy==1\n")
    (tmp_path / "conf.py").write_text(CONF)
    (tmp_path / "index.md").write_text(
        "# Book\n\n```{toctree}\nnotebooks/one\nnotebooks/two\n```\n"
    )
    for folder in ("notebooks", "results", "book/_ext"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "results" / "run.py").write_text(RUN)
    shutil.copy(ROOT / "book" / "depends.py", tmp_path / "book")
    shutil.copy(ROOT / "book" / "_ext" / "execution_cache.py", tmp_path / "book" / "_ext")
    write(tmp_path, "one")
    write(tmp_path, "two")
    return tmp_path


def write(book, name, more="", prose="# Title"):
    code = [CODE.format(name=name, module=f"{name}_of_mine"), *([more] if more else [])]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = new_notebook(metadata={"kernelspec": kernel})
    notebook.cells = [new_markdown_cell(prose, id="prose")]
    notebook.cells += [new_code_cell(source, id=f"code{i}") for i, source in enumerate(code)]
    nbformat.write(notebook, book / "notebooks" / f"{name}.ipynb")


def build(book):
    """Build the small book, without `-W`; returns status, log and which chapters were executed."""
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-d", "_build/doctrees", ".", "_build/html"],
        env=os.environ | {"TF_NUM_INTRAOP_THREADS": "2"},
        cwd=book, text=True, timeout=120, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    log = book / "executed.log"
    executed = sorted(log.read_text().split()) if log.exists() else []
    log.unlink(missing_ok=True)
    return built.returncode, built.stdout, executed


def page(book, name):
    return (book / "_build" / "html" / "notebooks" / f"{name}.html").read_text()


def test_a_book_is_built_changed_broken_and_mended(book):
    meet = {"one": "", "two": ""}
    if (os.cpu_count() or 1) > 1:  # side by side: each waits for the other
        pairs = (("one", "two"), ("two", "one"))
        meet = {name: MEET.format(name=name, other=other) for name, other in pairs}
    for name, code in meet.items():
        write(book, name, code)
    status, log, executed = build(book)
    assert (status, executed) == (0, ["one", "two"]), log
    assert "[1/2] " in log and "[2/2] " in log and "noise" not in log
    assert "value: old threads: 1" in page(book, "two")
    assert (book / "results" / "stale.json").is_file()

    # A failure ends the build, without -W, and not the other chapters.
    (book / "recsys_helpers" / "two_of_mine.py").write_text("value = 'new'\n")
    write(book, "one", "1 / 0")
    status, log, executed = build(book)
    assert status != 0 and executed == ["one", "two"]
    assert "one.ipynb failed" in log and "ZeroDivisionError" in log
    assert "two.ipynb failed" not in log
    assert "Traceback" not in page(book, "one") and "value: old" in page(book, "two")
    status, log, executed = build(book)  # a second try is no success, and `two` has been kept
    assert status != 0 and executed == ["one"]

    # Both have been executed before with exactly this, and a title is no code.
    write(book, "one", meet["one"], prose="# Another title")
    status, log, executed = build(book)
    assert (status, executed) == (0, []), log
    assert "Another title" in page(book, "one")
    assert "value: new" in page(book, "two")  # the page, not only the cache


def test_without_data_or_package_there_is_no_book(book):
    write(book, "one", 'load_dataset("nowhere")')
    status, log, executed = build(book)
    assert status != 0 and executed == []
    assert "a chapter cannot be executed here: " in log
    assert not (book / "_build" / "html" / "notebooks").exists()
