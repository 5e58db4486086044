"""The pages in Chinese: nothing is missing, and words can be found."""

import csv
import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHINESE = r"[\u3400-\u4dbf\u4e00-\u9fff]"


def text_of(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def glossary():
    """The headwords with their definitions, and the rows of the index: pinyin, term, English."""
    entries, index = (BOOK / "glossary.md").read_text("utf-8").split("(index-by-chinese-term)=")
    entries = re.search(r"```\{glossary\}\n(.*?)\n```", entries, re.DOTALL)[1]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| (.+) \|$", index, re.MULTILINE)
    return [entry.split("\n", 1) for entry in entries.split("\n\n")], rows[1:]


def terms_of(headword):
    """Chinese words in brackets, which a comma parts and a colon ends."""
    inner = re.search(r" \((.*)\)$", headword)
    parts = [part.split("：")[0] for part in inner[1].split(", ")] if inner else []
    return {part for part in parts if re.search(CHINESE, part)}


def test_every_chinese_term_of_the_glossary_is_in_its_index_and_the_reverse():
    entries, rows = glossary()
    terms = set().union(*(terms_of(headword) for headword, _ in entries))
    for _, definition in entries:
        terms |= set(re.findall(f"{CHINESE}+", definition))
    listed = [term for _, term, _ in rows]
    assert len(listed) == len(set(listed))
    assert set(listed) == terms
    headwords = {headword: terms_of(headword) for headword, _ in entries}
    for _, term, english in rows:
        for name, target in re.findall(r"\{term\}`([^`<]+) <([^`]+)>`", english):
            assert target.split(" (")[0] == name and target in headwords
            assert term in headwords[target] or term in dict(entries)[target], term


def test_the_index_is_in_the_order_of_pinyin():
    _, rows = glossary()
    keys = [(pinyin.replace("ü", "v").lower().split(), term) for pinyin, term, _ in rows]
    assert len(keys) > 90 and keys == sorted(keys)


def test_the_glossary_is_in_the_order_of_the_alphabet():
    words = [re.sub("[^a-z0-9 ]", "", h.lower().replace("-", " ")) for h, _ in glossary()[0]]
    assert words == sorted(words)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_chapter_has_its_summary_point_by_point(path):
    number = int(path.name[:2])
    sections = re.split(r"^## ", (BOOK / "summaries_zh.md").read_text("utf-8"), flags=re.MULTILINE)
    (section,) = [s for s in sections if f"<../notebooks/{path.stem}>" in s]
    assert section.startswith(f"{number} ")
    remember = text_of(path).split("## What to remember")[1].split("\n## ")[0]
    points = (re.findall(r"^- ", text, re.MULTILINE) for text in (remember, section))
    original, ours = map(len, points)
    assert ours == original > 3, "the summary in Chinese has other points than the chapter"
    front = (BOOK / "intro_zh.md").read_text("utf-8")
    assert f"{{doc}}`{number} " in front and f"<../notebooks/{path.stem}>" in front


def test_the_page_for_readers_of_fun_rec_shows_numbers_that_its_chapter_keeps():
    page = (BOOK / "from_fun_rec_zh.md").read_text("utf-8")
    code = (ROOT / "notebooks" / "13_from_fun_rec.ipynb").read_text("utf-8")
    kept = {"same-last", "seen-share", "zipf-share"}
    for model in ("fm", "dssm", "youtubednn"):
        steps = len(re.findall(rf'(?:rung|recorded)\(\\"{model}\\"', code))
        rows = {f"{model}-{step}" for step in range(1, steps + 1)}
        rows |= {f"{row}-popular" for row in rows}
        kept |= rows | {f"{row}-50" for row in rows}  # at ten, and at fifty
    with open(BOOK / "fun_rec.csv", encoding="utf-8", newline="") as file:
        quoted = list(csv.DictReader(file))
    kept |= {f"{row['edition']}-{row['model']}" for row in quoted}
    shown = re.findall(r"\{glue:text\}`\.\./notebooks/13_from_fun_rec\.ipynb::([\w-]+):", page)
    assert set(shown) == kept and len(shown) == len(set(shown))
    # No result is typed.
    prose = re.sub(r"\{[\w:]+\}`[^`]*`|`[^`]*`|\$[^$]*\$", "", page)
    assert re.findall(r"\b0\.\d+|\d+(?:\.\d+)? ?%", prose) == []


@pytest.mark.parametrize(("page", "language"), [("intro.md", "en"), ("intro_zh.md", "zh")])
def test_a_front_page_says_of_each_dataset_what_chapter_8_finds(page, language):
    code = (ROOT / "notebooks" / "08_results.ipynb").read_text("utf-8")
    assert 'glue(f\\"front-{language}-{name}\\", sentence)' in code
    text = (BOOK / page).read_text("utf-8")
    shown = re.findall(r"\{glue:text\}`\.\./notebooks/08_results\.ipynb::([\w-]+):s`", text)
    names = ("ml-100k", "ml-latest-small", "ml-1m-order")
    assert shown == [f"front-{language}-{name}" for name in names]


def test_what_fun_rec_printed_is_quoted_with_its_source():
    with open(BOOK / "fun_rec.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({(row["edition"], row["model"]) for row in rows}) == len(rows) == 9
    for row in rows:
        assert all(row.values()), row
        values = [float(row[m]) for m in ("NDCG@5", "HR@5", "NDCG@10", "HR@10")]
        assert 0 < values[0] < values[1] < values[3] < 1 and values[2] < values[3], row


@pytest.fixture
def split():
    pytest.importorskip("sphinx", reason="sphinx isn't installed")
    spec = importlib.util.spec_from_file_location("chinese", BOOK / "_ext" / "chinese.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EnglishAndChinese({}).split


def test_a_sentence_is_split_into_english_words_and_pairs_of_characters(split):
    assert split("two-tower (双塔模型)") == ["two", "tower", "双塔", "塔模", "模型"]
    assert split("logQ校正，塔") == ["logQ", "校正", "塔"]
    assert set(split("双塔")) <= set(split("这就是双塔模型。"))
    assert set(split("塔双")).isdisjoint(split("这就是双塔模型。"))
