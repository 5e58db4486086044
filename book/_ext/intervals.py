"""Sphinx extension: in tables, break "0.2047 [0.1803, 0.2312]" before its bracket only."""

import re

CELL = re.compile(r"(<td[^>]*>)([^<]*)(?=</td>)")
INTERVAL = re.compile(r"\[([+-]?[\d.]+), ([+-]?[\d.]+)\]")


def keep_together(app, page, template, context, doctree):
    """Put no-break spaces into the intervals and deviations of the page's tables."""

    def cell(match):
        text = INTERVAL.sub(r"[\1,&nbsp;\2]", match[2])
        return match[1] + text.replace(" ± ", "&nbsp;±&nbsp;")

    if "body" in context:
        context["body"] = CELL.sub(cell, context["body"])


def setup(app):
    """Register with Sphinx."""
    app.connect("html-page-context", keep_together)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
