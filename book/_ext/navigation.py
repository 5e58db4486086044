"""Sphinx extension: what folds the pages below a chapter has a name for those who can't see it.

The theme's button is an arrow without words.
"""


def name_toggles(app, page, template, context, doctree):
    """Put a label on the buttons of the list of chapters."""
    made = context.get("generate_toctree_html")
    if made is None:
        return

    def named(*arguments, **options):
        html = str(made(*arguments, **options))
        return html.replace("<summary>", '<summary aria-label="Pages below this chapter">')

    context["generate_toctree_html"] = named


def setup(app):
    """Register with Sphinx."""
    app.connect("html-page-context", name_toggles, priority=900)  # after the theme
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
