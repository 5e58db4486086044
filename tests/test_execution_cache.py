"""Which chapters the book executes again: tried on a small book of its own."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "book" / "_ext" / "execution_cache.py"
spec = importlib.util.spec_from_file_location("execution_cache", SOURCE)
cache = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cache)

CONF = """
import sys
sys.path.insert(0, "book/_ext")
extensions = ["myst_nb", "execution_cache"]
nb_execution_mode = "cache"
exclude_patterns = ["_build"]
"""


@pytest.fixture
def book(tmp_path):
    """A checkout with a package `a <- b`, `c`, `results`, and a chapter that imports `b`."""
    package = tmp_path / "recsys_helpers"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("value = 1\n")
    (package / "b.py").write_text("def f():\n    from recsys_helpers.a import value\n")
    (package / "c.py").write_text("import recsys_helpers.a\n")
    (package / "results.py").write_text("")
    (tmp_path / "requirements.txt").write_text("numpy==1\n")
    (tmp_path / "results" / "x").mkdir(parents=True)
    (tmp_path / "results" / "x" / "fm-seed1.json").write_text("{}")
    (tmp_path / "notebooks").mkdir()
    write(tmp_path, "chapter", ["%matplotlib inline\nfrom recsys_helpers import (\n    b,\n)"])
    return tmp_path


def write(book, name, code, prose="# Title"):
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = new_notebook(metadata={"kernelspec": kernel})
    notebook.cells = [new_markdown_cell(prose, id="prose")]
    notebook.cells += [new_code_cell(source, id=f"code{i}") for i, source in enumerate(code)]
    path = book / "notebooks" / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def digest(book, name="chapter"):
    return cache.digest((book / "notebooks" / f"{name}.ipynb").read_text(), book)


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("recsys_helpers/__init__.py", True),
        ("recsys_helpers/b.py", True),
        ("recsys_helpers/a.py", True),  # imported by b, inside a function
        ("recsys_helpers/c.py", False),
        ("requirements.txt", True),
        ("results/x/fm-seed1.json", False),
    ],
)
def test_what_a_chapter_depends_on(book, file, counts):
    before = digest(book)
    assert digest(book) == before
    with (book / file).open("a") as appended:
        appended.write("\n# changed\n")
    assert (digest(book) != before) is counts


def test_a_chapter_that_reads_results_depends_on_all_of_them(book):
    write(book, "chapter", ["from recsys_helpers.results import load_runs"])
    before = digest(book)
    new = book / "results" / "x" / "fm-seed2.json"
    new.write_text("{}")
    added = digest(book)
    new.write_text("{ }")
    assert len({before, added, digest(book)}) == 3


def test_a_chapter_depends_on_the_data_that_it_loads(book, monkeypatch):
    sources = ['dataset = "mine"\nload_dataset(dataset)', 'load_dataset("other", verbose=False)']
    write(book, "chapter", sources)
    contents = {"mine": "1", "other": "2", "third": "3"}
    monkeypatch.setattr(cache, "dataset_digest", contents.__getitem__)
    seen = {digest(book)}
    for name, count in {"mine": 2, "other": 3, "third": 3}.items():
        contents[name] += "!"
        seen.add(digest(book))
        assert len(seen) == count


def test_the_digest_of_a_dataset_sees_times_and_titles(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = [f"{user},{item},{item}" for user in (1, 2) for item in (1, 2, 3)]
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows))
    (folder / "items.csv").write_text("item_id,title\n1,A\n2,B\n3,C\n")
    seen = {cache.dataset_digest.__wrapped__(str(folder))}
    (folder / "items.csv").write_text("item_id,title\n1,A\n2,B\n3,D\n")
    seen.add(cache.dataset_digest.__wrapped__(str(folder)))
    rows[2] = "1,3,4"
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows))
    seen.add(cache.dataset_digest.__wrapped__(str(folder)))
    assert len(seen) == 3


def test_the_chapters_of_this_book():
    package = ROOT / "recsys_helpers"
    used, loaded = {}, {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        trees = cache.parse(json.loads(path.read_text("utf-8")))
        used[path.stem], loaded[path.stem] = (
            cache.all_modules(trees, package),
            cache.datasets(trees),
        )
    assert {"two_tower", "towers", "sampled_softmax", "datasets"} <= set(used["04_dssm"])
    assert "towers" not in used["02_data_and_rules"]
    assert "results" in used["08_results"]
    assert loaded["04_dssm"] == ["ml-100k"]


@pytest.fixture
def buildable(book):
    """The checkout with a book of two chapters, `one` and `two`, still to be written."""
    pytest.importorskip("myst_nb", reason="the book's own packages are not installed here")
    (book / "conf.py").write_text(CONF)
    (book / "index.md").write_text("# Book\n\n```{toctree}\nnotebooks/one\nnotebooks/two\n```\n")
    (book / "notebooks" / "chapter.ipynb").unlink()
    (book / "book" / "_ext").mkdir(parents=True)
    shutil.copy(SOURCE, book / "book" / "_ext")
    return book


def build(book):
    """Build the small book; returns which chapters were executed."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-d", "_build/doctrees"]
    built = subprocess.run(
        [*command, ".", "_build/html"], cwd=book, capture_output=True, text=True, timeout=120
    )
    assert built.returncode == 0, built.stdout + built.stderr
    log = book / "executed.log"
    executed = sorted(log.read_text().split()) if log.exists() else []
    log.unlink(missing_ok=True)
    return executed


def test_the_book_executes_what_has_to_be_executed(buildable):
    book = buildable
    code = (
        "import sys; sys.path.insert(0, '..')\n"
        "from recsys_helpers.{module} import value\n"
        "print(open('../executed.log', 'a').write('{name} '), value)"
    )
    (book / "recsys_helpers" / "c.py").write_text("value = 'old'\n")
    (book / "recsys_helpers" / "b.py").write_text("from recsys_helpers.a import value\n")
    write(book, "one", [code.format(module="b", name="one")])
    write(book, "two", [code.format(module="c", name="two")])
    page = book / "_build" / "html" / "notebooks" / "two.html"

    assert build(book) == ["one", "two"]
    assert build(book) == []
    assert "old" in page.read_text() and "new" not in page.read_text()

    (book / "recsys_helpers" / "c.py").write_text("value = 'new'\n")
    assert build(book) == ["two"]
    assert "new" in page.read_text()  # the page, not only the cache

    write(book, "two", [code.format(module="c", name="two")], prose="# Another title")
    assert build(book) == []
    assert "Another title" in page.read_text() and "new" in page.read_text()

    (book / "recsys_helpers" / "c.py").write_text("value = 'old'\n")
    assert build(book) == []  # executed before with exactly this, and kept
    assert "old" in page.read_text()

    (book / "requirements.txt").write_text("numpy==2\n")
    assert build(book) == ["one", "two"]


@pytest.mark.skipif(cache.AT_ONCE < 2, reason="one core executes one chapter at a time")
def test_chapters_are_executed_side_by_side_and_in_one_thread_each(buildable):
    code = """
import os, pathlib, time
pathlib.Path("{name}.started").touch(exist_ok=False)  # so a second attempt fails, too
end = time.monotonic() + 60
while not pathlib.Path("{other}.started").exists():
    assert time.monotonic() < end, "executed one after the other"
    time.sleep(0.05)
print("threads:", os.environ["TF_NUM_INTRAOP_THREADS"])
"""
    for name, other in (("one", "two"), ("two", "one")):
        write(buildable, name, [code.format(name=name, other=other)])
    build(buildable)
    for name in ("one", "two"):
        page = buildable / "_build" / "html" / "notebooks" / f"{name}.html"
        assert "threads: 1" in page.read_text()


def test_a_chapter_that_fails_is_reported_and_does_not_stop_the_others(buildable):
    write(buildable, "one", ["print(open('../executed.log', 'a').write('one '))", "1 / 0"])
    write(buildable, "two", ["print(open('../executed.log', 'a').write('two '))"])
    with pytest.raises(AssertionError, match="one.ipynb: WARNING: Executing notebook failed"):
        build(buildable)
    executed = (buildable / "executed.log").read_text().split()
    assert executed.count("two") == 1  # and it is in the cache
    write(buildable, "one", ["print(open('../executed.log', 'a').write('one '))"])
    (buildable / "executed.log").unlink()
    assert build(buildable) == ["one"]
