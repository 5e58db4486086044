"""Sphinx extension: what search engines and links say of a chapter is its question.

sphinxext-opengraph takes a page's first words, which are the Colab badge's alt text and a heading.
"""

FIRST = ("Open in Colab ", "The question this chapter answers. ")


def shorten(app, page, template, context, doctree):
    """Take the first words off the page's description."""
    for words in FIRST:
        context["metatags"] = context.get("metatags", "").replace(f'content="{words}', 'content="')


def setup(app):
    """Register with Sphinx."""
    app.connect("html-page-context", shorten, priority=900)  # after opengraph
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
