"""Sphinx extension: SVGs become part of the page, in the colours of its light or dark side.

An SVG in an <img> can't see the page's style sheet. Put into the HTML, it can: the colours that
`recsys_helpers.plots` and `book/figures` use are exchanged for CSS variables (see `book.css`), its
text takes the page's font, and its alt text is its label.
"""

import re
import sys
from hashlib import sha1
from html import escape, unescape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

IMAGE = re.compile(r'<img\b[^>]*\bsrc="(?:\.\./)*_images/([^"]+\.svg)"[^>]*/?>')
IDS = re.compile(r'(\bid="|url\(#|href="#)')
FONT = re.compile(r"(font(?:-family)?:[^;\"]*?)'DejaVu Sans'[^;\"]*")


def inline(svg: str, alt: str, style: str = "") -> str:
    """An SVG file's text as an element of a page."""
    from recsys_helpers.plots import for_the_page

    svg = for_the_page(svg)
    prefix = "s" + sha1(svg.encode()).hexdigest()[:8] + "-"
    svg = IDS.sub(rf"\g<1>{prefix}", svg)
    svg = FONT.sub(r"\1var(--figure-font)", svg)
    opening = re.match(r"<svg\b[^>]*>", svg)[0]
    width = re.search(r'\bwidth="([\d.]+)(pt|px)?"', opening)
    box = re.search(r'\bviewBox="[\d.-]+[ ,]+[\d.-]+[ ,]+([\d.]+)', opening)
    pixels = float(width[1]) * (4 / 3 if width[2] == "pt" else 1) if width else float(box[1])
    bare = re.sub(r'\s(?:width|height|role|aria-label)="[^"]*"', "", opening)
    label = f'role="img" aria-label="{escape(unescape(alt))}"' if alt else 'aria-hidden="true"'
    # On a phone a wide figure scrolls rather than become illegible.
    style = style or f"max-width: {pixels:.0f}px; min-width: {0.65 * pixels:.0f}px"
    return bare[:-1] + f' {label} class="figure-svg" style="{escape(style)}">' + svg[len(opening) :]


def into_the_page(app, page, template, context, doctree):
    """Exchange the page's <img>s of SVGs for the SVGs."""
    if "body" not in context or app.builder.format != "html":
        return
    sources = {name: source for source, name in app.builder.images.items()}

    def exchange(match):
        tag, source = match[0], sources.get(match[1])
        alt = unescape((re.search(r'\balt="([^"]*)"', tag) or [0, ""])[1])
        if source is None or alt == "Open in Colab":
            return tag
        path = Path(app.srcdir, source)
        wide = re.search(r"width: *(\d+)px", tag) or re.search(r'width="(\d+)"', tag)
        style = f"max-width: {wide[1]}px" if wide else ""
        return inline(path.read_text("utf-8"), alt, style)

    context["body"] = IMAGE.sub(exchange, context["body"])


def setup(app):
    """Register with Sphinx."""
    app.connect("html-page-context", into_the_page)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
