"""Sphinx extension: what is alive in a chapter stands on another page, too.

A page asks for it with `<div class="live-of" data-live="tryit" data-page="notebooks/03_..."></div>`
in raw HTML. The chapter's cell made it (`recsys_helpers.pages.live`), in this build or an earlier
one; a page that asks is written anew in every build. Where the chapter has no such cell (another
dataset, nothing executed) the place stays empty.
"""

import re

from docutils import nodes

PLACE = re.compile(r'<div class="live-of" data-live="([\w-]+)" data-page="([\w/-]+)">\s*</div>')


def asking(env) -> list[str]:
    """Documents that ask for something of another."""
    return [d for d in env.found_docs if d.startswith("book/") and _asks(env, d)]


def _asks(env, document: str) -> bool:
    with open(env.doc2path(document), encoding="utf-8") as file:
        return PLACE.search(file.read()) is not None


def write_anew(app, env):
    """Names of the pages that are written, changed or not."""
    return asking(env)


def put(app, page, template, context, doctree):
    """Exchange the places on a page for what they ask for."""

    def found(match):
        name, document = match.groups()
        if document not in app.env.found_docs:
            return match[0]
        start = f'<div class="live" data-live="{name}">'
        for raw in app.env.get_doctree(document).findall(nodes.raw):
            if raw.get("format") == "html" and raw.astext().startswith(start):
                return raw.astext()
        return match[0]

    if PLACE.search(context.get("body", "")):
        context["body"] = PLACE.sub(found, context["body"])


def setup(app):
    """Register with Sphinx."""
    app.connect("env-updated", write_anew)
    app.connect("html-page-context", put)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
