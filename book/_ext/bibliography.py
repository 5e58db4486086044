"""Sphinx extension: the bibliography's labels are what the text calls a work, "Rendle, 2010"."""

from collections import Counter

from pybtex.plugin import register_plugin
from pybtex.style.formatting.unsrt import Style
from pybtex.style.labels import BaseLabelStyle


def names(entry) -> str:
    """Last names as the citations give them: two at most, or the first and "et al."."""
    people = entry.persons.get("author", [])
    last = [" ".join(map(str, person.rich_last_names)) for person in people]
    return " and ".join(last) if len(last) < 3 else f"{last[0]} et al."


class AuthorYearLabels(BaseLabelStyle):
    """Labels by author and year, with a letter where two works share them."""

    def format_labels(self, entries):
        """One label for each of the sorted entries."""
        labels = [f"{names(entry)}, {entry.fields.get('year', 'n.d.')}" for entry in entries]
        shared, met = Counter(labels), Counter()
        for label in labels:
            met[label] += 1
            yield label + (chr(ord("a") + met[label] - 1) if shared[label] > 1 else "")


class AuthorYear(Style):
    """Sphinx's usual layout, sorted by author and labelled as cited."""

    default_sorting_style = "author_year_title"
    default_label_style = AuthorYearLabels


def no_list(app, page, template, context, doctree):
    """Sphinx calls the entries a list, which then has no items, as a screen reader sees it."""
    if "body" in context:
        context["body"] = context["body"].replace(
            '<div role="list" class="citation', '<div class="citation'
        )


def setup(app):
    """Register with Sphinx."""
    app.connect("html-page-context", no_list)
    register_plugin("pybtex.style.formatting", "author_year", AuthorYear)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
