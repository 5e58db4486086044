"""Sphinx extension: what is read as one thing stays on one line.

An interval, a number and its deviation, "chapter 5" in a link, and a formula with the stop behind
it: a browser would break "[-0.02, +0.01]" after its comma, and put a stop at the start of a line.
"""

import re

VERBATIM = re.compile(r"(<(pre|script|style|svg)\b.*?</\2>)", re.DOTALL)
INTERVAL = re.compile(r"\[([+-]?[\d.]+), ([+-]?[\d.]+)\]")
# The text of a link, whatever element it is in: "chapter 5", "Fig. 2.2", "第 5 章".
REFERENCE = re.compile(r"(?<=>)([Cc]hapters?|Fig\.|第) (\d[\d.]*)(?: (章))?(?=<)")
STOP = re.compile(r'(<span class="math[^>]*>[^<]*</span>)([.,;:?!)\]]+|-\w+)')


def keep_together(app, page, template, context, doctree):
    """Put no-break spaces, and spans that don't break, into the text of the page."""

    def text(part):
        part = INTERVAL.sub(r"[\1,&nbsp;\2]", part).replace(" ± ", "&nbsp;±&nbsp;")
        part = REFERENCE.sub(lambda m: "&nbsp;".join(filter(None, m.groups())), part)
        return STOP.sub(r'<span class="unbroken">\1\2</span>', part)

    if "body" in context:
        parts = VERBATIM.split(context["body"])  # text, what is verbatim, its tag, text, ...
        parts[::3] = map(text, parts[::3])
        del parts[2::3]
        context["body"] = "".join(parts)


def setup(app):
    """Register with Sphinx."""
    app.connect("html-page-context", keep_together)
    return {"version": "2", "parallel_read_safe": True, "parallel_write_safe": True}
