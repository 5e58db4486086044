"""Sphinx extension: pages in Chinese, and a search that finds Chinese words, too.

Sphinx splits text at what is no letter, for the index and in the browser. Chinese has no blanks, so
a sentence would be one word, found by nobody. Here each run of Chinese characters becomes its pairs
of neighbours, in the index and in the query alike: 双塔模型 is 双塔, 塔模 and 模型, and the query
双塔 finds it, without a dictionary.
"""

import re
from pathlib import Path

from sphinx.search.en import SearchEnglish

CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]+")
# A line of Markdown holds a sentence; where two Chinese ones meet, a browser would show a blank. So
# it would after a bold one, which Markdown doesn't see to be bold unless a blank follows.
HAN = r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef”]"
LINE_ENDS = re.compile(
    rf"(?<={HAN})(</(?:a|em|strong)>)?\n(?=[^<\s]|<(?:a|code|em|span|strong)\b)"
    rf"|(?<={HAN})(</strong>) (?={HAN})"
)


class EnglishAndChinese(SearchEnglish):
    """English words, and pairs of Chinese characters."""

    lang = "en-zh"
    language_name = "English and Chinese"
    # The same in the browser: pairs() is split() below.
    js_splitter_code = r"""
var splitQuery = (query) => {
  const chinese = /[\u3400-\u4dbf\u4e00-\u9fff]+/g;
  const pairs = (run) =>
    run.length === 1 ? [run] : Array.from({length: run.length - 1}, (_, i) => run.slice(i, i + 2));
  const words = query.replace(chinese, " ")
    .split(/[^\p{Letter}\p{Number}_\p{Emoji_Presentation}]+/gu)
    .filter((term) => term);
  return words.concat((query.match(chinese) || []).flatMap(pairs));
};
"""

    def split(self, input):
        """Words of a text, as `SearchLanguage.split`."""
        words = super().split(CHINESE.sub(" ", input))
        for run in CHINESE.findall(input):
            words += [run[i : i + 2] for i in range(len(run) - 1)] or [run]
        return words


def in_chinese(app, page, template, context, doctree):
    """Set a page called *_zh as Chinese is set, and tell browsers and screen readers."""
    if page.endswith("_zh"):
        context["language"] = "zh-Hans"
        context["body"] = LINE_ENDS.sub(lambda match: match[1] or match[2] or "", context["body"])


def with_numbers_of_a_chapter(app, env, added, changed, removed):
    """Pages that show a chapter's numbers (`{glue:text}`) are read again whenever it may have run.

    myst-nb puts the numbers in as a page is written; Sphinx doesn't know of them.
    """
    return [
        page
        for page in env.found_docs - set(added)
        if (path := Path(env.doc2path(page))).suffix == ".md"
        and ".ipynb::" in path.read_text("utf-8")
    ]


def setup(app):
    """Register with Sphinx; `html_search_language: en-zh` chooses the search."""
    app.add_search_language(EnglishAndChinese)
    app.connect("html-page-context", in_chinese)
    app.connect("env-get-outdated", with_numbers_of_a_chapter)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
