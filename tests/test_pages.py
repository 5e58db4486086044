"""What a chapter shows: code, sentences, tables, pictures that can be touched."""

import inspect
import json
import re
import sys
from html import unescape
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest

from recsys_helpers import plots
from recsys_helpers.metrics import recall
from recsys_helpers.pages import code_of, live, sentences, show_table, significant
from recsys_helpers.splits import Split

ROOT = Path(__file__).resolve().parent.parent


def test_code_is_shown_as_it_runs_without_its_docstring():
    shown = code_of(Split.targets, recall).data
    assert shown.startswith("```python\n# Split.targets\ndef targets(self, target: str)")
    assert "# recsys_helpers.metrics.recall\n" in shown and "Args:" not in shown
    source = inspect.getsource(Split.targets)
    for line in source[source.rindex('"""') + 3 :].split("\n"):
        assert line.removeprefix("    ") in shown


def test_a_sentence_is_filled_in_and_says_what_it_lacks():
    say = sentences(gain="It gains {gain:+.2f}\nof {of}.", list="All:\n\n- {a}\n- {b}")
    assert say("gain", gain=0.123, of="1").data == "It gains +0.12 of 1."
    assert say("list", a=1, b=2).data == "All:\n\n- 1\n- 2"  # paragraphs and lists stay
    with pytest.raises(KeyError, match="no sentence 'nope'; there are gain, list"):
        say("nope")
    with pytest.raises(KeyError, match="of"):
        say("gain", gain=1.0)
    assert sentences(who="{name}")("who", name="FM").data == "FM"


def rows_of(table):
    html = table.to_html()
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows], html


def test_a_value_and_its_interval_stand_apart_no_finer_than_the_interval():
    frame = pd.DataFrame(
        {
            "HR": [(0.123456, 0.1, 0.15), (0.2, 0.15, 0.25)],  # half-widths 0.025 and 0.05
            "NDCG": [(0.05, 0.0031), (0.04, 0.002)],
            "users": [1234567, 8],
            "share": [0.5, float("nan")],
        },
        index=pd.Index(["EASE", "FM"], name="model"),
    )
    rows, html = rows_of(show_table(frame, "A caption.", formats={"share": "{:.0%}"}))
    assert [cell.strip("\u200b") for cell in rows[0]] == [
        "model", "HR", "", "NDCG", "", "users", "share"]  # fmt: skip
    assert rows[1] == [
        "EASE", "0.123", "[0.100, 0.150]", "0.0500", "± 0.0031", "1,234,567", "50%"]  # fmt: skip
    assert rows[2] == ["FM", "0.200", "[0.150, 0.250]", "0.0400", "± 0.0020", "8", "–"]
    assert "<caption>A caption.</caption>" in html and 'class="book-table"' in html
    assert html == show_table(frame, "A caption.", formats={"share": "{:.0%}"}).to_html()


def test_numbers_of_all_sizes_have_as_many_digits():
    values = [0.08404, 2.3371, 51_200.82, 97.7, 9_765.6, -0.0, 1_000_000]
    shown = ["0.0840", "2.34", "51,200", "97.7", "9,770", "0", "1,000,000"]
    assert list(map(significant(), values)) == shown
    values = [9.999, 0.09999, 99.96, 999.6, -9.999, np.inf, -np.inf, np.nan]
    shown = ["10.0", "0.100", "100", "1,000", "-10.0", "inf", "-inf", "nan"]
    assert list(map(significant(), values)) == shown
    rows, _ = rows_of(
        show_table(pd.DataFrame({"s": [1555.1, float("nan")]}), formats=significant())
    )
    assert rows[1:] == [["1,560"], ["–"]]


def test_text_is_no_markup_and_what_is_missing_a_dash():
    title = """<b>x</b> & 'y' "z" $a < b$"""
    column = [title, None, np.nan, pd.NA, pd.NaT, np.float32("nan"), np.inf]
    rows, _ = rows_of(show_table(pd.DataFrame({"<i>": column}, dtype=object), formats="{:.1f}"))
    assert unescape(rows[0][0]) == "<i>" and "<" not in rows[0][0] + rows[1][0]
    assert unescape(rows[1][0]) == title and rows[2:-1] == [["–"]] * 5 and rows[-1] == ["inf"]
    rows, _ = rows_of(show_table(pd.DataFrame({"n": [(1.0, 0.0, np.inf)]})))
    assert rows[1:] == [["1.0000", "[0.0000, inf]"]]
    rows, _ = rows_of(show_table(pd.DataFrame({"n": [np.inf, 2000.0]})))
    assert rows[1:] == [["inf"], ["2,000"]]
    for nullable in (pd.array([1, None], "Int64"), pd.array(["a", None], "string")):
        rows, _ = rows_of(show_table(pd.DataFrame({"n": nullable})))
        assert rows[2] == ["–"]


def test_tuples_of_texts_are_enumerated_and_no_intervals():
    genres = [("Drama", "War"), (), ("a", "b", "c", "d"), ["x", "y"]]
    rows, _ = rows_of(show_table(pd.DataFrame({"genres": genres})))
    assert rows[1:] == [["Drama, War"], [""], ["a, b, c, d"], ["x, y"]]
    numbers = [(np.float32(1), np.int64(2)), (1, 0.5, 1.5)]  # numpy's are numbers, too
    rows, _ = rows_of(show_table(pd.DataFrame({"x": numbers})))
    assert rows[1:] == [["1.00", "± 2.00"], ["1.00", "[0.50, 1.50]"]]


def test_intervals_that_a_figure_shows_still_decide_digits_and_what_is_bold():
    frame = pd.DataFrame({"x": [(0.51234, 0.4, 0.6), (0.41, 0.3, 0.5), (0.39, 0.3, 0.5)]})
    rows, html = rows_of(show_table(frame.rename_axis("m"), best=("x",), spread=False))
    assert rows[1:] == [["0", "0.51"], ["1", "0.41"], ["2", "0.39"]]
    assert html.count("best") - html.count("td.best") == 2


def test_the_best_is_bold_with_what_its_interval_contains():
    def bold(cells, **settings):
        frame = pd.DataFrame({"x": cells}, index=pd.Index(list("abc"[: len(cells)]), name="m"))
        _, html = rows_of(show_table(frame, best=("x",), **settings))
        return [name for name in "abc" if re.search(rf">{name}</td>\s*<td[^>]*best", html)]

    assert bold([(0.5, 0.4, 0.6), (0.41, 0.3, 0.5), (0.39, 0.3, 0.5)]) == ["a", "b"]
    assert bold([(0.5, 0.05), (0.44, 0.3), (0.46, 0.01)]) == ["a", "c"]
    assert bold([1.0, 3.0, 2.0]) == ["b"]
    for nothing in (None, np.nan, pd.NA, (np.nan, 0.0, 1.0)):  # wherever they stand
        assert bold([nothing, 3.0, 2.0]) == ["b"] and bold([2.0, nothing, 3.0]) == ["c"]
        assert bold([nothing, (0.5, 0.4, 0.6), (0.45, 0.1)]) == ["b", "c"]
        assert bold([nothing, nothing]) == []
    assert bold([(0.5, np.nan), 0.4]) == ["a"]
    with pytest.raises(ValueError, match=r"best must name columns of \['y'\], received \['x'\]"):
        show_table(pd.DataFrame({"y": [1]}), best=("x",))


def test_a_line_parts_the_baselines_from_the_towers_and_these_from_several():
    names = ["Popularity", "FM", "DSSM, this page", "Several towers, one index, this page"]
    frame = pd.DataFrame({"x": [1, 2, 3, 4]}, index=[*names[:3], "Several towers, distilled"])

    def ruled(frame):
        _, html = rows_of(show_table(frame.rename_axis("model")))
        return re.findall(r"<td[^>]*\brule\b[^>]*>([^<]*)</td>", html)

    assert ruled(frame) == ["FM", "2", "Several towers, distilled", "4"]
    assert ruled(frame.iloc[:3]) == ["FM", "2"]
    assert ruled(frame.iloc[[0, 3]]) == ["Several towers, distilled", "4"]
    assert ruled(frame.set_axis(names).iloc[2:]) == [names[3], "4"]
    assert ruled(frame.iloc[1:3]) == []  # nothing to part


def test_a_strip_plot_has_the_first_row_at_the_top_and_new_ones_filled():
    frame = pd.DataFrame({"mean": [1, 2], "low": [0, 1], "high": [2, 4]}, index=["EASE", "FM"])
    figure = plots.strip_plot({"HR": frame, "NDCG": frame}, ["ease", "fm"])
    for ax in figure.axes:
        lines = [(list(x.get_xdata()), list(x.get_ydata())) for x in ax.lines[::2]]
        assert lines == [([0, 2], [1, 1]), ([1, 4], [0, 0])]
        hollow, full = ax.lines[1::2]
        assert hollow.get_markerfacecolor() == "none"
        assert full.get_markerfacecolor() == plots.COLOURS["fm"]
    labels = figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["EASE", "FM"]
    assert [label.get_fontweight() for label in labels] == ["normal", "bold"]
    with pytest.raises(ValueError, match="needs the same rows and a key for each"):
        plots.strip_plot({"HR": frame, "NDCG": frame.iloc[:1]}, ["ease", "fm"])
    quoted = frame.assign(low=frame["mean"], high=frame["mean"])  # without an interval
    (ax,) = plots.strip_plot({"HR": quoted}, ["ease", "fm"]).axes
    assert [list(line.get_xdata()) for line in ax.lines] == [[1], [2]]


def test_a_picture_that_can_be_touched_has_its_data_and_a_still_one():
    figure = matplotlib.figure.Figure()
    figure.add_subplot().plot([1, 2], color=plots.COLOURS["user"])
    html = live("map", {"text": "a</script>b", "numbers": [1.5]}, figure, "Still.", 'A "dot"').data
    data = re.search(r'<script type="application/json" class="live-data">(.*?)</script>', html)[1]
    assert json.loads(data) == {"text": "a</script>b", "numbers": [1.5]}
    assert 'role="img" aria-label="A &quot;dot&quot;"' in html
    assert 'data-live="map"' in html and "<svg" in html and "<?xml" not in html
    assert "var(--user, #1f6fb2)" in html  # the still picture has the page's colours
    with pytest.raises(ValueError):
        live("map", {"x": float("nan")}, figure)


def test_colours_are_the_pages_and_become_variables_once():
    style = (ROOT / "book" / "_static" / "book.css").read_text("utf-8")
    light, dark = (style.index(start) for start in ("html {", 'html[data-theme="dark"] {'))
    for name, colour in plots.COLOURS.items():
        variable = f"--{name.replace('_', '-')}: "
        assert f"{variable}{colour};" in style[light:dark], name
        assert variable in style[dark:], name
    once = plots.for_the_page(f'<!-- x --><svg fill="{plots.COLOURS["item"]}"/>')
    assert once == '<svg fill="var(--item, #b4540a)"/>' == plots.for_the_page(once)


def test_what_is_read_as_one_thing_stays_on_one_line():
    sys.path.insert(0, str(ROOT / "book" / "_ext"))
    from intervals import keep_together

    def kept(body):
        keep_together(None, None, None, context := {"body": body}, None)
        return context["body"]

    formula = r'<span class="math notranslate nohighlight">\(S\)</span>'
    assert kept("<p>by -0.02 [-0.03, +0.01].</p>") == "<p>by -0.02 [-0.03,&nbsp;+0.01].</p>"
    assert kept("<td>0.5 ± 0.1</td>") == "<td>0.5&nbsp;±&nbsp;0.1</td>"
    assert (
        kept("<a>chapter 5</a>, <a>Fig. 2.2</a>") == "<a>chapter&nbsp;5</a>, <a>Fig.&nbsp;2.2</a>"
    )
    assert kept("<a>第 5 章</a>") == "<a>第&nbsp;5&nbsp;章</a>"
    assert kept(f"{formula}. What") == f'<span class="unbroken">{formula}.</span> What'
    assert kept(f"the {formula}-th") == f'the <span class="unbroken">{formula}-th</span>'
    assert kept(f"{formula} is") == f"{formula} is"
    for verbatim in ("<pre>[1, 2]</pre>", '<script type="a">[1, 2]</script>'):
        assert kept(f"{verbatim}<p>[1, 2]</p>") == f"{verbatim}<p>[1,&nbsp;2]</p>"


def luminance(colour):
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return np.dot([0.2126, 0.7152, 0.0722], linear)


def test_text_in_the_houses_colours_can_be_read_on_both_pages():
    style = (ROOT / "book" / "_static" / "book.css").read_text("utf-8")
    start = style.index('html[data-theme="dark"] {')
    dark = dict(re.findall(r"--([a-z-]+): (#\w{6});", style[start : style.index("}", start)]))
    for name, colour in plots.COLOURS.items():
        if name != "grid":
            for text, page in ((colour, "#ffffff"), (dark[name.replace("_", "-")], "#121212")):
                low, high = sorted(map(luminance, (text, page)))
                assert (high + 0.05) / (low + 0.05) >= 4.5, name


def test_a_strip_plot_refuses_panels_that_do_not_match():
    frame = pd.DataFrame({"mean": [1], "low": [0], "high": [2]}, index=["FM"])
    assert len(plots.strip_plot({"a": frame, "b": frame}, ["fm"]).axes) == 2
    with pytest.raises(ValueError, match=r"expected \['FM'\] with 1 keys, received \['DSSM'\]"):
        plots.strip_plot({"a": frame, "b": frame.rename({"FM": "DSSM"})}, ["fm"])
    with pytest.raises(ValueError, match="expected at least one panel, received none"):
        plots.strip_plot({}, [])
