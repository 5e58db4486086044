"""The chapters as they are committed: without outputs, and agreeing with the configuration."""

import ast
import csv
import importlib.util
import json
import os
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest
import yaml

from recsys_helpers.plots import COLOURS

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))

spec = importlib.util.spec_from_file_location("repository", ROOT / "book" / "repository.py")
repository = importlib.util.module_from_spec(spec)
spec.loader.exec_module(repository)


def read(path):
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def tags(cell):
    return cell.metadata.get("tags", [])


each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_the_contents_list_every_chapter_in_reading_order():
    chapters = [chapter for part in TOC["parts"] for chapter in part["chapters"]]
    listed = [page["file"] for c in chapters for page in (c, *c.get("sections", []))]
    pages = [name.removeprefix("notebooks/") for name in listed if name.startswith("notebooks/")]
    assert pages == [path.stem for path in NOTEBOOKS]
    named = [c["file"] for c in chapters if c["file"].startswith("notebooks/")]
    assert [int(Path(name).name[:2]) for name in named] == list(range(1, len(named) + 1))
    for chapter in chapters:  # a page below a chapter has its number
        for page in chapter.get("sections", []):
            assert page["file"][: len("notebooks/00_")] == chapter["file"][: len("notebooks/00_")]
    # Sphinx numbers the chapters by the same order: those parts are numbered and come first.
    numbered = [
        c["file"] for part in TOC["parts"] if part.get("numbered") for c in part["chapters"]
    ]
    assert numbered == [c["file"] for c in chapters[: len(named)]] == named
    for page in [TOC["root"], *listed]:
        assert any((ROOT / f"{page}{suffix}").is_file() for suffix in (".md", ".ipynb")), page


@each
def test_format(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


@each
def test_no_outputs(path):
    for cell in read(path).cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.id
        assert "attachments" not in cell, cell.id
        assert set(cell.metadata) <= {"tags", "mystnb"}, cell.id


@each
def test_one_parameters_cell_of_plain_assignments(path):
    (cell,) = [cell for cell in read(path).cells if "parameters" in tags(cell)]
    statements = ast.parse(cell.source).body
    assert statements
    for statement in statements:
        assert isinstance(statement, ast.Assign), ast.unparse(statement)
        ast.literal_eval(statement.value)  # a constant, so that papermill can replace it


@each
def test_no_parameter_is_given_another_value_later(path):
    """What is trained below would have it, and nobody would notice."""
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    parameters, assigned = set(), set()
    for cell in cells:
        tree = ast.parse(re.sub(r"^( *)[%!].*$", r"\1pass", cell.source, flags=re.M))
        functions = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.ListComp, ast.SetComp)
        functions += (ast.DictComp, ast.GeneratorExp)

        def names(node, functions=functions):
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                    yield child.id
                if not isinstance(child, functions):  # these have names of their own
                    yield from names(child)

        found = set(names(tree))
        if "parameters" in tags(cell):
            parameters = found
        else:
            assigned |= found
    assert not parameters & assigned


@each
def test_at_most_one_record_cell_and_it_comes_after_the_parameters(path):
    order = [
        tag for cell in read(path).cells for tag in tags(cell) if tag in ("parameters", "record")
    ]
    assert order in (["parameters"], ["parameters", "record"])


@each
def test_badge_and_installation_agree_with_the_configuration(path):
    first, second = read(path).cells[:2]
    url = CONFIG["repository"]["url"]
    place = url.removeprefix("https://github.com/")
    title, empty, badge = first.source.split("\n")
    assert first.cell_type == "markdown" and title.startswith("# ") and not empty
    assert badge.endswith(
        f"](https://colab.research.google.com/github/{place}/blob/main/notebooks/{path.name})"
    )
    image = re.search(r"!\[[^]]+\]\(([^)]+)\)", badge)[1]
    assert (path.parent / image).is_file()
    assert second.cell_type == "code" and {"install", "hide-input"} <= set(tags(second))
    assert re.search(r"%pip install .*\bgit\+(\S+)", second.source)[1] == url
    assert CONFIG["repository"]["branch"] == repository.BRANCH


def test_whatever_names_the_repository_is_derived_from_the_configuration():
    for path, text in repository.derived().items():
        assert path.read_text("utf-8") == text, f"{path.name}: run `make set-repository`"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["repository-code"] == CONFIG["repository"]["url"]


@each
def test_one_title(path):
    titles = [
        line
        for cell in read(path).cells
        if cell.cell_type == "markdown"
        for line in re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL).splitlines()
        if line.startswith("# ")
    ]
    assert len(titles) == 1


@each
def test_links_to_files_lead_somewhere(path):
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\(([^)#\s]+)\)", text)
    targets += re.findall(r"```+\{(?:figure|image)\} (\S+)", text)
    targets += [f"{name}.*" for name in re.findall(r"\{doc\}`(?:[^`<]*<)?([^`>]+)>?`", text)]
    for target in targets:
        if "://" not in target:
            folder, name = (path.parent / target).parent, Path(target).name
            assert list(folder.glob(name)), target


@each
def test_no_result_is_typed_into_the_text(path):
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    text = text.split("## Exercises")[0]
    text = re.sub(r"```.*?```|`[^`\n]*`|\$\$.+?\$\$|\$[^$\n]+\$", "", text, flags=re.DOTALL)
    # An interval's level is no result.
    assert set(re.findall(r"\d+(?:\.\d+)? ?%|(?<!\.)\b\d\.\d\d+(?!\.)", text)) <= {"95%"}


@each
def test_no_local_paths(path):
    text = path.read_text("utf-8")
    for hint in ("/home/", "/Users/", "/root/", "/work/", "/tmp/", "C:\\\\", str(ROOT)):
        assert hint not in text, hint


# Figures

DRAWINGS = [
    path
    for path in sorted((ROOT / "book" / "figures").glob("*.svg"))
    if path.stem not in ("logo", "favicon", "colab-badge")
]
FIGURE = re.compile(
    r"^(`{3,})\{figure\} (\S+)\n((?::\w+:[^\n]*\n)*)\n?(.*?)\n\1$", re.DOTALL | re.MULTILINE
)


def pages_with_text():
    """Each page that has text, with that text and the metadata of its cells."""
    for path in NOTEBOOKS:
        cells = read(path).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        yield path, text, [cell.metadata.get("mystnb", {}) for cell in cells]
    for path in sorted((ROOT / "book").glob("*.md")):
        yield path, path.read_text("utf-8"), []


def test_every_figure_has_a_name_a_caption_and_says_what_is_to_be_seen():
    names = []
    for path, text, metadata in pages_with_text():
        figures = []
        for _, file, options, caption in FIGURE.findall(text):
            assert (path.parent / file).is_file(), f"{path.name}: {file}"
            figures.append((dict(re.findall(r"^:(\w+): *(.*)$", options, re.MULTILINE)), caption))
            assert f"{{numref}}`{figures[-1][0].get('name')}`" in text, f"{path.name}: {file}"
        assert len(figures) == text.count("{figure}"), path.name
        for cell in metadata:
            if "figure" in cell:
                figures.append(
                    ({**cell["figure"], **cell.get("image", {})}, cell["figure"]["caption"])
                )
        for options, caption in figures:
            name, alt = options.get("name"), options.get("alt", "")
            assert name and caption.strip(), f"{path.name}: {name}"
            assert len(alt) >= 30 and alt.strip() != " ".join(caption.split()), (
                f"{path.name}: {name}"
            )
            names.append(name)
    assert len(set(names)) == len(names)
    assert {path.name for path in DRAWINGS} <= set(
        re.findall(r"[\w-]+\.svg", "".join(text for _, text, _ in pages_with_text()))
    )


@pytest.mark.parametrize("path", DRAWINGS, ids=lambda path: path.stem)
def test_a_drawing_has_the_pages_colours_and_text_for_a_phone(path):
    root = ElementTree.fromstring(path.read_text("utf-8"))
    *_, width, height = map(float, root.get("viewBox").split())
    colours = {
        name: COLOURS.get(name, "#ffffff") for name in ("ink", "muted", "user", "item", "paper")
    }
    allowed = {f"var(--{name}, {colour})" for name, colour in colours.items()} | {"none"}
    for element in root.iter():
        kind = element.tag.split("}")[1]
        assert kind not in ("style", "title", "image") and not element.get("style"), kind
        for name in ("fill", "stroke", "color", "stop-color"):
            value = element.get(name)
            assert value is None or value in allowed or value.startswith("url(#"), value
        covers = (
            float(element.get("width", 0)) >= width and float(element.get("height", 0)) >= height
        )
        assert not (kind == "rect" and covers), "a background"
        # A phone of 400 pixels leaves 352 to a drawing; what is smaller is a subscript.
        if kind != "tspan" and element.get("font-size"):
            assert float(element.get("font-size")) * 352 / width >= 12
        if element.get("id"):
            assert element.get("id").startswith(path.stem.replace("_", "-"))
    assert float(root.get("font-size")) * 352 / width >= 12


# Notation

GREEK = re.compile(
    r"\\(alpha|beta|gamma|delta|epsilon|eta|theta|lambda|mu|pi|rho|sigma|tau|phi|ell|Sigma|Delta)\b"
)


def symbols(text):
    """Letters in the formulas of a text: Greek, bold and calligraphic ones as they are written."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    found = set()
    for formula in re.findall(r"\$\$.+?\$\$|(?<!\$)\$[^$\n]+?\$(?!\$)", text, re.DOTALL):
        formula = re.sub(r"\\(?:text|operatorname|begin|end)\{[^}]*\}", " ", formula)
        found |= set(re.findall(r"\\math(?:bf|cal|bb)\{\w\}", formula))
        formula = re.sub(r"\\math\w+\{[^}]*\}", " ", formula)
        found |= set(GREEK.findall(formula))
        found |= set(re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", " ", formula)))
    return found


@each
def test_the_notation_page_has_the_symbols_of_the_chapter(path):
    page = (ROOT / "book" / "notation.md").read_text("utf-8")
    common, *own = re.split(r"^### ", page, flags=re.MULTILINE)
    listed = symbols(common).union(
        *(symbols(s) for s in own if s.startswith(f"{int(path.name[:2])} "))
    )
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    assert symbols(text.split("## Exercises")[0]) - listed == set()


def test_what_others_have_published_is_quoted_with_its_source_and_protocol():
    with open(ROOT / "book" / "published.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows and len({(row["dataset"], row["system"]) for row in rows}) == len(rows)
    for row in rows:
        assert all(row.values()), row
        assert 0 < float(row["NDCG@10"]) < float(row["HR@10"]) < 1, row
        assert row["told the time"] in ("yes", "no"), row


# Exercises

SOLUTION = re.compile(r"^(`{3,})\{admonition\} Solution\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
# Chapters whose cells take seconds, with fewer things to choose from.
QUICK = {
    "01_from_matching_to_search": {"dims": [8, 16], "neighbours": [10]},
    "02_data_and_rules": {},
}


def solutions(path):
    """The code of each solution that has some, in order."""
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    found = (re.findall(r"```python\n(.*?)```", s, re.DOTALL) for _, s in SOLUTION.findall(text))
    return ["\n".join(code) for code in found if code]


@each
def test_every_exercise_has_a_solution(path):
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    exercises = re.findall(r"^\*\*\d+\. ", text.split("## Exercises")[1], re.MULTILINE)
    assert exercises and len(SOLUTION.findall(text)) == len(exercises)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else pytest.mark.slow)
        for path in NOTEBOOKS
        if solutions(path)
    ],
)
def test_solutions_run_after_the_cells_of_their_chapter(path, tmp_path, monkeypatch):
    client = pytest.importorskip("nbclient", reason="nbclient isn't installed")
    papermill = pytest.importorskip("papermill", reason="papermill isn't installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = papermill.iorw.load_notebook_node(str(path))
    parameters = QUICK.get(path.stem, {})
    notebook = papermill.parameterize.parameterize_notebook(notebook, parameters)
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in solutions(path)]
    resources = {"metadata": {"path": str(tmp_path)}}  # what a solution writes
    client.NotebookClient(notebook, timeout=900, resources=resources).execute()


def test_the_bibliography_has_what_is_cited_and_nothing_else():
    pages = [*NOTEBOOKS, *(ROOT / "book").glob("*.md")]
    cited = re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", "".join(p.read_text("utf-8") for p in pages))
    cited = {key.strip() for keys in cited for key in keys.split(",")}
    listed = re.findall(r"@\w+\{([^,]+),", (ROOT / "book" / "references.bib").read_text("utf-8"))
    assert sorted(cited) == sorted(listed)


def test_sentences_with_numbers_stand_in_one_place_and_are_all_used():
    for path in NOTEBOOKS:
        code = [c for c in json.loads(path.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
        tree = ast.parse("\n".join("".join(c["source"]).replace("%pip", "#") for c in code[1:]))
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and hasattr(n.func, "id")]
        for call in calls:
            if call.func.id == "Markdown":
                assert not isinstance(call.args[0], ast.JoinedStr), path.name
        templates = [k.arg for c in calls if c.func.id == "sentences" for k in c.keywords]
        assert len([c for c in calls if c.func.id == "sentences"]) <= 1, path.name
        names = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
        # A name may be put together, f"front_{language}_ideas": a word for each value.
        made = ["".join(re.escape(p.value) if isinstance(p, ast.Constant) else "[^_]+" for p in
                c.args[0].values) for c in calls if c.func.id == "say" and
                isinstance(c.args[0], ast.JoinedStr)]  # fmt: skip
        never = {t for t in {*templates} - names if not any(re.fullmatch(m, t) for m in made)}
        assert not never, f"{path.name}: {never} is never said"
        said = {c.args[0].value for c in calls if c.func.id == "say"
                if isinstance(c.args[0], ast.Constant)}  # fmt: skip
        assert said <= set(templates), f"{path.name}: {said - set(templates)} has no template"


# The tool


@pytest.fixture
def copy(tmp_path, monkeypatch):
    for name in ("_config.yml", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    monkeypatch.setattr(repository, "ROOT", tmp_path)
    monkeypatch.setattr(repository.derived, "__defaults__", (tmp_path,))
    return tmp_path


def test_setting_the_repository_changes_nothing_else(copy, capsys):
    repository.main(["https://github.com/some-body/some.book/"])
    assert repository.address(copy) == "https://github.com/some-body/some.book"
    assert repository.address(ROOT) == CONFIG["repository"]["url"]
    before, after = ((root / "_config.yml").read_text("utf-8").split("\n") for root in (ROOT, copy))
    assert [(a, b) for a, b in zip(before, after, strict=True) if a != b] == [
        (f"  url: {CONFIG['repository']['url']}", "  url: https://github.com/some-body/some.book"),
        (
            f"    ogp_site_url: {CONFIG['sphinx']['config']['ogp_site_url']}",
            "    ogp_site_url: https://some-body.github.io/some.book/",
        ),
    ]
    for path in NOTEBOOKS:
        old, new = json.loads(path.read_text("utf-8")), None
        new = json.loads((copy / "notebooks" / path.name).read_text("utf-8"))
        assert new["cells"][2:] == old["cells"][2:] and new["metadata"] == old["metadata"]
        assert new["cells"][0]["source"][0] == old["cells"][0]["source"][0]
        assert f"github/some-body/some.book/blob/main/notebooks/{path.name}" in str(new["cells"][0])
        assert "git+https://github.com/some-body/some.book" in str(new["cells"][1])
    assert "some-body/some.book" in (copy / "CITATION.cff").read_text("utf-8")
    assert capsys.readouterr().out.count("rewrote") == len(NOTEBOOKS) + 1
    repository.main([])
    assert capsys.readouterr().out == ""  # a second run finds nothing to do


@pytest.mark.parametrize(
    "url",
    [
        "github.com/a/b",
        "https://gitlab.com/a/b",
        "https://github.com/a",
        "https://github.com/a/b/c",
    ],
)
def test_an_address_that_colab_cannot_open_is_refused(copy, url):
    with pytest.raises(ValueError, match="expected https://github.com/OWNER/REPOSITORY, received"):
        repository.main([url])
    assert repository.address(copy) == CONFIG["repository"]["url"]
