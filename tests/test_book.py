"""The built pages, opened in a browser without a network.

Run by `make book` on what it has just built. Skipped where the book isn't built or no browser is
found; a browser is never downloaded.
"""

import contextlib
import functools
import http.server
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Nothing but what the test asks for may leave the browser.
FLAGS = (
    "--disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --no-sandbox"
).split()
# The host of the pages is on this machine; every other name resolves to nothing.
NO_NETWORK = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]


def documents() -> list[str]:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    chapters = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    return [toc["root"], *chapters]


MUCH_CODE = ("notebooks/07_annoy", "notebooks/11_performance")  # where the code is the matter
CHAPTERS = [name for name in documents() if name.startswith("notebooks/")]


@pytest.fixture(scope="module")
def site():
    """Address of a server on this machine that has the built pages."""
    if not (ROOT / "_build" / "finished").is_file():
        pytest.skip("the book isn't built: run `make book`")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=HTML)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(site):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    path = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)} is on the PATH")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=FLAGS + NO_NETWORK)
        yield chromium
        chromium.close()


class Seen:
    """What happened while a page was open."""

    def __init__(self, page):
        self.page = page
        self.errors = []
        self.requests = []
        page.on("console", lambda m: m.type == "error" and self.errors.append(m.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("requestfailed", lambda request: self.errors.append(f"failed: {request.url}"))
        page.on("response", lambda r: r.status >= 400 and self.errors.append(f"{r.status} {r.url}"))


@pytest.fixture(scope="module")
def opened(browser, site):
    """Open a page once, wide, and wait until its formulas and fonts are there."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})

    @functools.cache
    def open_page(document: str) -> Seen:
        page = context.new_page()
        seen = Seen(page)
        page.goto(f"{site}/{document}.html", wait_until="load")
        if page.locator(".math").count():
            page.wait_for_function("window.MathJax && MathJax.startup && MathJax.startup.promise")
            page.evaluate("MathJax.startup.promise")
        page.evaluate("document.fonts.ready")  # what is asked for after everything else
        return seen

    return open_page


def test_the_front_page_leads_to_the_introduction(browser, site):
    page = browser.new_page()
    page.goto(site, wait_until="load")
    page.wait_for_url(f"{site}/{documents()[0]}.html")


@pytest.mark.parametrize("document", documents())
def test_nothing_fails_and_nothing_comes_from_elsewhere(opened, site, document):
    seen = opened(document)
    assert [url for url in seen.requests if not url.startswith((f"{site}/", "data:"))] == []
    assert seen.errors == []
    assert len(seen.requests) > 5  # style sheets and scripts were asked for


@pytest.mark.parametrize("document", documents())
def test_no_script_style_or_image_names_another_host(opened, site, document):
    addresses = opened(document).page.evaluate(
        """() => [...document.querySelectorAll('script[src], img, iframe, link[rel=stylesheet]')]
                 .map(element => element.src || element.href)"""
    )
    assert addresses
    assert [a for a in addresses if not a.startswith((f"{site}/", "data:"))] == []


@pytest.mark.parametrize("document", documents())
def test_every_formula_is_typeset(opened, document):
    page = opened(document).page
    formulas = page.locator("article .math").count()
    typeset = page.locator("article .math mjx-container").count()
    assert typeset >= formulas
    assert page.locator("mjx-merror").all_inner_texts() == []
    if formulas:
        # Typeset with MathJax's own fonts, from the build: a fallback would have no size.
        assert page.evaluate("document.fonts.check('16px MJXTEX')")
        box = page.locator("article .math mjx-container").first.bounding_box()
        assert box["width"] > 3 and box["height"] > 5
    if document in CHAPTERS:
        assert formulas > 5


@pytest.mark.parametrize("document", documents())
def test_equations_are_numbered_and_references_found(opened, document):
    page = opened(document).page
    # Each equation with a label shows its number, and each reference leads to one on some page.
    assert page.locator("article div.math[id]").count() == page.locator("article .eqno").count()
    assert "??" not in page.locator("article").inner_text()
    broken = page.evaluate(
        """() => [...document.querySelectorAll('article a.internal[href^="#"]')]
                 .map(a => decodeURIComponent(a.getAttribute('href').slice(1)))
                 .filter(id => id && !document.getElementById(id))"""
    )
    assert broken == []


@pytest.mark.parametrize("document", documents())
def test_every_figure_is_there(opened, document):
    page = opened(document).page
    images = page.evaluate(
        """async () => {
             const images = [...document.querySelectorAll('article img')];
             images.forEach(image => { image.loading = 'eager'; });
             await Promise.all(images.map(image => image.decode().catch(() => null)));
             return images.map(i => [i.src, i.naturalWidth, i.alt]);
           }"""
    )
    assert [source for source, width, _ in images if not width] == []
    if document in CHAPTERS:
        drawn = [source for source, _, alt in images if alt != "Open in Colab"]
        assert len(drawn) + page.locator("article svg.figure-svg").count() >= 1


@pytest.mark.parametrize("document", CHAPTERS)
def test_chapters_show_tables_with_numbers(opened, document):
    tables = opened(document).page.locator("article .cell_output table")
    rows = [tables.nth(i).locator("tbody tr").count() for i in range(tables.count())]
    assert rows and max(rows) > 1
    assert any(character.isdigit() for character in tables.first.inner_text())


@pytest.mark.parametrize("document", CHAPTERS)
def test_chapters_show_no_error_and_no_noise(opened, document):
    article = opened(document).page.locator("article")
    assert article.locator(".output.traceback").count() == 0
    assert article.locator(".output.stderr").all_inner_texts() == []
    text = article.inner_text()
    for noise in (str(ROOT), str(Path.home()), "site-packages", "WARNING:"):
        assert noise not in text


@pytest.mark.parametrize("document", CHAPTERS)
def test_solutions_are_folded(opened, document):
    dropdowns = opened(document).page.locator("article details.sd-dropdown, article .toggle")
    assert dropdowns.count() >= 1
    assert dropdowns.first.evaluate("e => !e.open") is True


@pytest.mark.parametrize("document", documents())
def test_a_narrow_window_need_not_scroll_sideways(opened, document):
    page = opened(document).page
    wide = page.viewport_size
    page.set_viewport_size({"width": 420, "height": 900})
    try:
        assert page.evaluate("document.documentElement.scrollWidth") <= 420
    finally:
        page.set_viewport_size(wide)


def at(page, width, height=900):
    """The page in another width, for as long as a test needs it."""

    @contextlib.contextmanager
    def resized():
        wide = page.viewport_size
        page.set_viewport_size({"width": width, "height": height})
        try:
            yield
        finally:
            page.set_viewport_size(wide)

    return resized()


@pytest.mark.parametrize("document", CHAPTERS)
def test_a_page_is_more_than_its_code(opened, document):
    page = opened(document).page
    code, height = page.evaluate(
        """() => {
             const shown = [...document.querySelectorAll('article div.highlight')]
                 .filter(e => e.offsetParent && !e.closest('details:not([open])'));
             const heights = shown.map(e => e.getBoundingClientRect().height);
             return [heights.reduce((a, b) => a + b, 0),
                     document.querySelector('article').getBoundingClientRect().height];
           }"""
    )
    most = 1 / 5 if document in MUCH_CODE else 1 / 8
    assert code / height <= most, f"open code takes {code / height:.1%} of the page's height"


@pytest.mark.parametrize("width", [1400, 1100, 718])
@pytest.mark.parametrize("document", documents())
def test_no_table_is_cut(opened, document, width):
    page = opened(document).page
    with at(page, width):
        if width == 718:  # A4 with its margins
            page.emulate_media(media="print")
        cut = page.evaluate(
            """() => [...document.querySelectorAll('article table')]
                 .filter(t => t.offsetParent && !t.closest('details:not([open]), .highlight'))
                 .map(t => {
                     let box = t.parentElement;
                     const visible = e => getComputedStyle(e).overflowX === 'visible';
                     while (box.tagName !== 'ARTICLE' && visible(box)) box = box.parentElement;
                     const right = e => e.getBoundingClientRect().right;
                     return [Math.round(right(t) - right(box)), t.innerText.slice(0, 60)];
                 }).filter(([over]) => over > 1)"""
        )
        page.emulate_media(media="screen")
    assert cut == []


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("document", documents())
def test_everybody_can_read_and_reach_the_page(opened, document, mode):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = opened(document).page
    page.evaluate(f"document.documentElement.dataset.theme = '{mode}'")
    found = axe.Axe().run(page).response["violations"]
    page.evaluate("document.documentElement.dataset.theme = 'light'")
    grave = [f for f in found if f["impact"] in ("serious", "critical")]
    assert [(f["id"], [node["html"][:200] for node in f["nodes"]][:3]) for f in grave] == []


@pytest.mark.parametrize("document", documents())
def test_figures_say_what_is_to_be_seen(opened, document):
    page = opened(document).page
    drawn = page.evaluate(
        """() => [...document.querySelectorAll(
                 'article :is(figure img, svg.figure-svg, .cell_output img)')]
             .map(e => [e.getAttribute('aria-label') || e.alt || '', !!e.closest('figure')?.id])"""
    )
    for alt, in_figure in drawn:
        assert len(alt) >= 30 and "_images" not in alt and in_figure, (alt, in_figure)


@pytest.mark.parametrize("document", documents())
def test_a_page_says_what_it_is_about(opened, document):
    page = opened(document).page
    description = page.locator("meta[name=description]").get_attribute("content")
    assert len(description) > 40 and "Colab" not in description
    card = page.locator("meta[property='og:image']").get_attribute("content")
    assert (HTML / "_static" / card.rpartition("/")[2]).is_file()


def test_search_finds_a_word(browser, site):
    page = browser.new_page()
    page.goto(f"{site}/search.html?q=temperature", wait_until="load")
    page.wait_for_selector("#search-results li a", timeout=20_000)
    assert any("dssm" in a for a in page.locator("#search-results li a").evaluate_all(
        "links => links.map(a => a.href)"
    ))  # fmt: skip


@pytest.mark.parametrize("query", ["双塔", "双塔模型"])
def test_search_finds_chinese_words_typed_into_its_field(browser, site, query):
    page = browser.new_page()
    page.goto(f"{site}/search.html", wait_until="load")
    field = page.locator("input[name=q]:visible").first
    field.fill(query)
    field.press("Enter")
    page.wait_for_selector("#search-results li a", timeout=20_000)
    found = page.locator("#search-results li a").evaluate_all("links => links.map(a => a.href)")
    assert any("book/glossary" in link for link in found)
    page.goto(f"{site}/search.html?q=塔双", wait_until="load")
    page.wait_for_function("document.querySelector('.search-summary').innerText.length > 20")
    assert page.locator("#search-results li a").count() == 0  # nothing is called so


@pytest.mark.parametrize("document", [name for name in documents() if name.endswith("_zh")])
def test_pages_in_chinese_say_so_and_show_their_numbers(opened, document):
    page = opened(document).page
    assert page.evaluate("document.documentElement.lang") == "zh-Hans"
    text = page.locator("article").inner_text()
    assert not re.search(r"[\u4e00-\u9fff。，] [\u4e00-\u9fff]", text)  # lines that met
    if document == "book/from_fun_rec_zh":
        shown = page.locator("article .pasted-text").all_inner_texts()
        assert len(shown) > 50 and all(re.fullmatch(r"[\d.]+%?", number) for number in shown)


def test_badges_lead_to_the_notebooks(opened):
    for chapter in CHAPTERS:
        link = opened(chapter).page.locator("article a:has(img[alt='Open in Colab'])")
        assert link.count() == 1
        assert link.get_attribute("href").endswith(f"/blob/main/{chapter}.ipynb")
