"""Sphinx extension: a word of the glossary says what it means when one points at it."""

import re
from html import escape

from docutils import nodes

LINK = re.compile(r'<a class="reference internal" href="([^"]*glossary\.html)#([^"]+)">')


def keep(app, doctree):
    """Keep the first sentence of each definition, by the term's place on the page."""
    if app.env.docname != "book/glossary":
        return
    meanings = app.env.glossary_meanings = {}
    for item in doctree.findall(nodes.definition_list_item):
        meaning = item.next_node(nodes.definition).astext().split("\n")[0].strip()
        for term in item.findall(nodes.term):
            meanings |= dict.fromkeys(term["ids"], meaning)


def point_out(app, page, template, context, doctree):
    """Give the links of a page to the glossary the meaning as their title."""
    meanings = getattr(app.env, "glossary_meanings", {})

    def titled(match):
        if match[2] not in meanings:
            return match[0]
        return f'{match[0][:-1]} title="{escape(meanings[match[2]])}">'

    if "body" in context:
        context["body"] = LINK.sub(titled, context["body"])


def setup(app):
    """Register with Sphinx."""
    app.connect("doctree-read", keep)
    app.connect("html-page-context", point_out)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
