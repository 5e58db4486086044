"""Sphinx extension: take off the pages what would come from another host.

Jupyter Book 1.x puts sphinx-thebe's scripts on every page, used or not. They would load thebe from
a CDN, and (0.3.1) stand there twice, which the browser reports as an error.
"""


def drop_thebe(app, page, template, context, doctree):
    """Remove sphinx-thebe's scripts from the page's context."""
    context["script_files"] = [
        script
        for script in context["script_files"]
        if "thebe" not in f"{script.filename} {script.attributes}".lower()
    ]


def setup(app):
    """Register with Sphinx."""
    app.connect("html-page-context", drop_thebe)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
