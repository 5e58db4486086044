"""What makes a record out of date and a page executed again, tried on a small checkout."""

import json
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from book import depends  # noqa: E402

PACKAGE = {
    "__init__": '"""Doc."""\n\n__version__ = "1"\n\ndef late():\n'
    "    import recsys_helpers.unused\n",
    "datasets": '"""Doc."""\n\nclass Dataset:\n    """Doc."""\n\n    size = 1\n',
    "metrics": "from recsys_helpers.datasets import Dataset\n\ndef evaluate(ranks):\n"
    '    """Doc."""\n    return f"{sum(ranks)/2:.4f} {ranks!r:>{9}}"\n',
    "results": "from recsys_helpers.metrics import evaluate\n\ndef record_run():\n    pass\n",
    "machine": "A = 1\n",
    "fetch": "RETRIES = 3\n",
    "columns": "UNITS = 4\n",
    "layers": "from . import columns, datasets, fetch\n\nclass Tower:\n    width = 1\n",
    "towers/__init__": '"""Doc."""\n',
    "towers/fm": "def tower():\n    from ..layers import Tower\n    return Tower()\n",
    "towers/dssm": "from recsys_helpers.layers import Tower\n",
    "unused": "A = 1\n",
}
IMPORTS = """\
from recsys_helpers.towers.fm import tower
from recsys_helpers.results import record_run
from recsys_helpers import machine
%time t = tower()
load_dataset(dataset)"""
DEFAULTS = 'dataset = "tiny"\nseed = 1\nrates = [0.1, 1]\nrecord_to = ""'
ITEMS = "item_id,title,genres\n1,A,x|y\n2,B,x\n3,C,\n"


def chapter(imports=IMPORTS, record="record_run()", after="later()", parameters=DEFAULTS):
    tagged = [
        ("import recsys_helpers", "install"),
        (parameters, "parameters"),
        (imports, "imports"),
        (record, "record"),
        (after, "after"),
    ]
    cells = [new_code_cell(source, metadata={"tags": [tag]}) for source, tag in tagged]
    return nbformat.writes(new_notebook(cells=[new_markdown_cell("# Title"), *cells]))


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A package with two towers, one of which the chapter uses, and a dataset of two users."""
    root = tmp_path / "checkout"
    (root / "recsys_helpers" / "towers").mkdir(parents=True)
    for name, source in PACKAGE.items():
        (root / "recsys_helpers" / f"{name}.py").write_text(source)
    (root / "requirements.txt").write_text("# pinned\nnumpy==1\n")
    (root / "book").mkdir()
    (root / "book" / "published.csv").write_text("system,HR@10\n")
    (root / "results" / "tiny").mkdir(parents=True)
    (root / "results" / "tiny" / "fm-seed1.json").write_text("{}")
    folder = tmp_path / "data" / "tiny"
    folder.mkdir(parents=True)
    rows = [f"{user},{item},{item}" for user in (1, 2) for item in (1, 2, 3)]
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows))
    (folder / "items.csv").write_text(ITEMS)
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path / "data"))
    return root


def digests(root, source=None, parameters=None):
    """Digests of the page, its cells excepted, and of the record."""
    depends.dataset_digest.cache_clear()
    depends.titles_digest.cache_clear()
    given, data = {"seed": 1} | (parameters or {}), depends.dataset_digest("tiny")
    source = source or chapter()
    return depends.page(source, root), depends.record(source, given, data, root)


@pytest.mark.parametrize(
    ("file", "old", "new", "page", "record"),
    [
        ("recsys_helpers/towers/fm.py", "return Tower()", "return Tower", True, True),
        ("recsys_helpers/layers.py", "width = 1", "width = 2", True, True),
        ("recsys_helpers/metrics.py", "sum(ranks)/2", "sum(ranks)/3", True, True),
        ("recsys_helpers/metrics.py", ":.4f", ":.3f", True, True),  # in an f-string
        ("recsys_helpers/datasets.py", "size = 1", "size = 2", True, True),
        ("recsys_helpers/__init__.py", "def late", "X = 1\ndef late", True, True),
        ("requirements.txt", "numpy==1", "numpy==2", True, True),
        ("../data/tiny/items.csv", "2,B,x", "2,B,y", True, True),  # one genre
        ("../data/tiny/items.csv", "2,B,x", "2,Z,x", True, False),  # one title
        ("../data/tiny/interactions.csv", "1,3,3", "1,3,4", True, True),
        # These draw, write and fetch: a page shows it, a record doesn't hold it.
        ("recsys_helpers/results.py", "pass", "return", True, False),
        ("recsys_helpers/machine.py", "1", "2", True, False),
        ("recsys_helpers/fetch.py", "3", "4", True, False),
        # What it reads counts, see `../data/`.
        ("recsys_helpers/columns.py", "4", "5", True, False),
        ("results/tiny/fm-seed1.json", "{}", "{ }", True, False),
        ("book/published.csv", "HR@10", "HR@50", True, False),
        # A sister, what nobody imports, words and layout.
        ("recsys_helpers/towers/dssm.py", "Tower", "Tower as T", False, False),
        ("recsys_helpers/unused.py", "1", "2", False, False),
        ("recsys_helpers/datasets.py", "Doc.", "Other words.", False, False),
        ("recsys_helpers/metrics.py", '    """Doc."""\n', "    # a comment\n\n", False, False),
        ("recsys_helpers/__init__.py", '"1"', '"2"', False, False),
        ("requirements.txt", "# pinned", "# words", False, False),
    ],
)  # fmt: skip
def test_what_changes_a_page_and_a_record(checkout, file, old, new, page, record):
    before, path = digests(checkout), checkout / file
    text = path.read_text()
    assert old in text and digests(checkout) == before
    path.write_text(text.replace(old, new, 1))
    after = digests(checkout)
    assert [a != b for a, b in zip(after, before, strict=True)] == [page, record]


def test_a_number_and_its_text_are_two_values(checkout, monkeypatch):
    """Text is a category, a number has an order; as CSV they would be the same."""
    from recsys_helpers import datasets

    read = datasets.load_dataset("tiny", verbose=False)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: read)
    read.items["year"] = [1, 2, 3]
    numbers = digests(checkout)[1]
    assert digests(checkout)[1] == numbers
    read.items["year"] = ["1", "2", "3"]
    assert digests(checkout)[1] != numbers


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        ({"imports": IMPORTS.replace("%time t", "%time u")}, True),
        ({"record": "record_run(1)"}, True),
        ({"parameters": DEFAULTS.replace("0.1", "0.2")}, True),
        ({"parameters": DEFAULTS.replace("seed = 1", "seed = 7")}, False),  # the run has its own
        ({"parameters": DEFAULTS.replace('""', '"elsewhere"  # words')}, False),
        ({"imports": "# words\n\n" + IMPORTS}, False),
        ({"after": "something_else()"}, False),
    ],
)
def test_a_record_depends_on_the_cells_up_to_its_own(checkout, change, counts):
    assert (digests(checkout, chapter(**change))[1] != digests(checkout)[1]) is counts


def test_other_words_on_the_page_are_no_other_record(checkout):
    """Templates of sentences hold words alone; what else is called or assigned counts."""

    def with_words(line):
        return digests(checkout, chapter(imports=f"{IMPORTS}\n{line}"))[1]

    template = with_words('say = sentences(gain="It gains {x}.")')
    assert template == with_words('say = sentences(gain="It loses {x}.", more="And so on.")')
    for other in ('say = others(gain="It gains {x}.")', "say = sentences", 'sentences(gain="1")'):
        assert with_words(other) not in (template, digests(checkout)[1])


def test_a_record_depends_on_its_parameters(checkout):
    seen = {digests(checkout, parameters=p)[1] for p in ({}, {"seed": 2}, {"rates": [0.1, 2]})}
    assert len(seen) == 3
    assert digests(checkout, parameters={"rates": [0.1, 1]}) == digests(checkout)


@pytest.mark.parametrize(
    ("source", "parameters", "message"),
    [
        (chapter().replace('"record"', '"x"'), {}, "one cell tagged 'record', received 0"),
        (chapter(parameters="import os"), {}, "assignments only, received 'import os'"),
        (chapter(), {"seeds": 1}, r"no parameters \['seeds'\]; it has"),
    ],
)
def test_a_chapter_that_cannot_be_recorded_says_why(checkout, source, parameters, message):
    with pytest.raises(ValueError, match=message):
        depends.record(source, parameters, "x", checkout)


@pytest.mark.parametrize("name", ["recsys_helpers.towers", "recsys_helpers", "recsys_helpers.gone"])
def test_imports_that_cannot_be_followed_are_refused(checkout, name):
    with pytest.raises(ValueError, match="no module of the package, import from the one"):
        depends.modules(f"from {name} import FMUserTower", checkout)


def test_the_chapters_of_this_book():
    used, loaded = {}, {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        code = "\n".join(code for _, code in depends.cells(path.read_text("utf-8")))
        used[path.stem[:2]] = {file.stem for file in depends.modules(code)}
        loaded[path.stem[:2]] = depends.datasets(code)
    assert {"two_tower", "sampled_softmax", "datasets", "metrics"} <= used["04"]
    assert "two_tower" not in used["02"] and "results" in used["08"]
    assert loaded["04"] == ["ml-100k"]


def test_every_python_writes_the_same_digest(tmp_path):
    """Two fields of newer Pythons, and the empty part that 3.12.1 puts into some f-strings."""
    import ast

    tree = ast.parse("def f(x):\n    return f'{x}'\n")
    newer = ast.parse("def f(x):\n    return f'{x}'\n")
    newer.body[0].type_params = []
    newer.body[0]._fields = (*newer.body[0]._fields, "type_params")
    newer.body[0].body[0].value.values.insert(0, ast.Constant(""))
    assert json.dumps(depends._plain(newer)) == json.dumps(depends._plain(tree))
    empty = [ast.parse(source) for source in ("x = ['', 'a']", "x = ['a']")]
    assert depends._plain(empty[0]) != depends._plain(empty[1])
