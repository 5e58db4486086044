"""The built pages, opened in a browser without a network.

Run by `make test` on what `make book` has built. Skipped where the book isn't built or no browser
is found; a browser is never downloaded.
"""

import contextlib
import functools
import http.server
import json
import math
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
    chapters = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    return [toc["root"], *(page["file"] for c in chapters for page in (c, *c.get("sections", [])))]


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
    assert "This page took" in text  # which the front page promises
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
                 .filter(e => e.offsetParent && !e.closest('details:not([open]), .toggle-hidden'));
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
def test_what_scrolls_sideways_on_a_phone_says_so(opened, document, mode):
    page = opened(document).page
    with at(page, 400):
        page.evaluate(f"document.documentElement.dataset.theme = '{mode}'")
        silent = page.evaluate(
            """() => [...document.querySelectorAll('article *')]
                 .filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 1)
                 .filter(e => /auto|scroll/.test(getComputedStyle(e).overflowX))
                 .filter(e => getComputedStyle(e).backgroundImage === 'none')
                 .map(e => [e.tagName, e.className, e.innerText.slice(0, 60)])"""
        )
        page.evaluate("document.documentElement.dataset.theme = 'light'")
    assert silent == []


@pytest.mark.parametrize("document", documents())
def test_formulas_and_messages_fit_a_wide_page(opened, document):
    cut = opened(document).page.evaluate(
        """() => [...document.querySelectorAll(
                 'article :is(mjx-container[display=true], .output.stream pre)')]
             .filter(e => e.scrollWidth > e.clientWidth + 1)
             .map(e => [e.tagName, e.parentElement.id, e.innerText.slice(0, 60)])"""
    )
    assert cut == []


@pytest.mark.parametrize("document", CHAPTERS)
def test_headings_have_one_number_and_bars_are_whole(opened, document):
    page = opened(document).page
    headings = page.locator("article :is(h1, h2, h3)").all_inner_texts()
    assert [text for text in headings if re.match(r"[\d.]+\s+\d+\.", text)] == []
    short = page.evaluate(
        """() => [...document.querySelectorAll('article .admonition > .admonition-title')]
             .map(e => e.parentElement.clientWidth - e.getBoundingClientRect().width)
             .filter(gap => gap > 4)"""
    )
    assert short == []


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("document", documents())
def test_everybody_can_read_and_reach_the_page(opened, document, mode):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = opened(document).page
    page.evaluate(f"document.documentElement.dataset.theme = '{mode}'")
    page.wait_for_timeout(500)  # the theme fades from one side to the other
    # Without this it also lists every element that is as it should be, in three times the time.
    options = {"resultTypes": ["violations"]}
    found = axe.Axe().run(page, options=options).response["violations"]
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
    # In the page itself, where the style sheet reaches their colours; the badge needs none.
    outside = page.locator("article img[src$='.svg']:not([alt='Open in Colab'])")
    assert outside.count() == 0
    for alt, in_figure in drawn:
        assert len(alt) >= 30 and "_images" not in alt and in_figure, (alt, in_figure)


@pytest.mark.parametrize("document", documents())
def test_a_page_says_what_it_is_about(opened, document):
    page = opened(document).page
    description = page.locator("meta[name=description]").get_attribute("content")
    assert len(description) > 40 and "Colab" not in description
    card = page.locator("meta[property='og:image']").get_attribute("content")
    assert (HTML / "_static" / card.rpartition("/")[2]).is_file()


def test_a_word_of_the_glossary_says_what_it_means(opened):
    links = opened("notebooks/04_dssm").page.locator("article a[href*='glossary.html#term-']")
    titles = links.evaluate_all("links => links.map(link => link.title)")
    assert len(titles) >= 3 and min(map(len, titles)) > 20


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


# What can be touched: opened from the folder, as somebody does who was sent it, and used.

FM = "notebooks/03_factorization_machines"


@pytest.fixture
def touch(browser):
    """Open a page of the folder, and one live picture on it: its element and its data."""
    contexts, errors = [], []

    def open_page(document, name, **options):
        contexts.append(
            browser.new_context(**{"viewport": {"width": 1400, "height": 900}} | options)
        )
        page = contexts[-1].new_page()
        page.on("console", lambda m: m.type == "error" and errors.append(m.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((HTML / f"{document}.html").as_uri(), wait_until="load")
        place = page.locator(f'.live[data-live="{name}"]')
        place.scroll_into_view_if_needed()
        return place, json.loads(place.locator("script.live-data").text_content())

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


DSSM, ANNOY = "notebooks/04_dssm", "notebooks/07_annoy"
HONEST = "notebooks/10_honest_evaluation"
LIVE = [
    (FM, "tryit"),
    ("book/intro", "tryit"),
    (FM, "fold"),
    (DSSM, "fates"),
    (DSSM, "softmax"),
    (ANNOY, "map"),
    (HONEST, "sampled"),
]


@pytest.mark.parametrize(("document", "name"), LIVE)
def test_a_picture_is_still_without_scripts_and_fits_a_phone(touch, document, name):
    place, _ = touch(document, name, java_script_enabled=False)
    assert place.locator(".live-still svg").is_visible()
    phone = {"width": 380, "height": 800}
    place, _ = touch(document, name, viewport=phone, has_touch=True, color_scheme="dark")
    assert not place.locator(".live-still").is_visible()
    assert place.locator(".live-stage").evaluate("e => e.scrollWidth <= e.clientWidth")
    assert place.evaluate("() => document.documentElement.scrollWidth") <= 380


def ten_best(place):
    """Rows and scores of the movies that the picture recommends."""
    return place.locator(".tryit-best > li").evaluate_all(
        "rows => rows.map(r => [Number(r.dataset.item), Number(r.dataset.score)])"
    )


@pytest.mark.parametrize("document", [FM, "book/intro"])
def test_the_recommender_in_the_browser_has_the_scores_of_the_package(touch, document):
    place, data = touch(document, "tryit")
    size = place.locator("script.live-data, .live-still").evaluate_all(
        "parts => parts.map(p => new Blob([p.outerHTML]).size).reduce((a, b) => a + b)"
    )
    scripts = [HTML / "_static" / name for name in ("live.js", "live-tryit.js")]
    assert size + sum(path.stat().st_size for path in scripts) <= 300_000
    assert data["examples"]
    search, keyboard = place.get_by_role("combobox", name="You watched"), place.page.keyboard
    for example in data["examples"]:
        place.get_by_role("button", name="nothing").click()
        assert place.locator(".tryit-watched button").count() == 0
        for item in example["history"]:
            title = data["titles"][item]
            search.press_sequentially(title)
            options = place.get_by_role("option").all_inner_texts()
            for _ in range(options.index(title)):
                keyboard.press("ArrowDown")
            keyboard.press("Enter")
            assert search.evaluate("e => e === document.activeElement && !e.value")
        for select, code in zip(place.locator("select").all(), example["codes"], strict=True):
            select.select_option(str(code))
        shown = ten_best(place)
        assert [item for item, _ in shown] == example["best"]
        assert [score for _, score in shown] == pytest.approx(example["scores"], abs=1e-3)
        # What a score is said to be the sum of is that.
        row = place.locator(".tryit-best > li").nth(3)
        row.locator(".tryit-score").click()
        parts = row.locator("td").all_inner_texts()
        parts = [float(text.replace("\N{MINUS SIGN}", "-")) for text in parts]
        told = any(example["codes"])
        assert len(parts) == len(example["history"]) + told + 2  # the own score, and the sum
        assert sum(parts[:-1]) == pytest.approx(parts[-1], abs=5e-3)
        assert parts[-1] == pytest.approx(example["scores"][3], abs=1e-3)


def test_a_recommended_movie_is_watched_and_taken_away_again(touch):
    place, data = touch(FM, "tryit", has_touch=True)
    before = ten_best(place)
    place.locator(".tryit-title").nth(2).tap()
    after, taken = ten_best(place), before[2][0]
    assert taken not in [item for item, _ in after] and after != before
    assert place.locator(".tryit-watched li span").first.inner_text() == data["titles"][taken]
    assert data["titles"][after[0][0]] in place.get_by_role("status").inner_text()
    # By keyboard: focus stays where one can go on.
    assert place.locator(".tryit-title").nth(2).evaluate("e => e === document.activeElement")
    remove = place.get_by_role("button", name=f"Remove {data['titles'][taken]}")
    remove.focus()
    assert place.locator(".tryit-part.lit").count() == 10
    place.page.keyboard.press("Enter")
    assert ten_best(place) == before
    assert place.locator(".tryit-watched button").first.evaluate(
        "e => e === document.activeElement"
    )


def test_the_fold_ends_in_two_vectors_with_the_score_of_the_machine(touch):
    place, data = touch(FM, "fold")
    slider, total = place.get_by_role("slider", name="Fold"), place.locator(".fold-total")
    parts = [
        float(place.locator(f".fold-term.{name} .fold-number").inner_text().replace("\u2212", "-"))
        for name in ("user", "item", "both")
    ]
    assert parts[1] + parts[2] == pytest.approx(data["score"], abs=0.011)  # as they are rounded
    user, rectangle = place.locator("g.fold-region.user"), place.locator("g.fold-region.both")
    bars = place.get_by_role("img", name="vector")
    assert "for every movie alike" in total.inner_text()
    assert user.is_visible() and not bars.first.is_visible()
    slider.focus()
    place.page.keyboard.press("End")
    assert total.inner_text().endswith("one dot product of two vectors")
    dot = float(total.get_attribute("data-score"))
    assert dot == pytest.approx(data["score"], abs=1e-3)
    assert f"= {dot:.2f}".replace("-", "\u2212") in total.inner_text()
    assert bars.count() == 2 and bars.first.is_visible() and bars.last.is_visible()
    assert not user.is_visible() and not rectangle.is_visible()
    # Dragged to the middle: the user's pairs are gone, the rectangle isn't.
    box = slider.bounding_box()
    mouse = place.page.mouse
    mouse.move(box["x"] + box["width"] - 8, box["y"] + box["height"] / 2)
    mouse.down()
    mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=5)
    mouse.up()
    assert 40 <= int(slider.input_value()) <= 60
    assert total.inner_text().startswith("score =") and rectangle.is_visible()
    # A region lights its term, and a term its region.
    rectangle.locator("rect").nth(4).hover()
    assert place.locator(".fold-term.lit").get_attribute("data-part") == "both"
    place.locator(".fold-term.item").focus()
    assert place.locator(".fold-region.lit").get_attribute("data-part") == "item"
    assert "dim" in rectangle.get_attribute("class")


def test_with_few_negatives_models_change_places(touch):
    place, data = touch(HONEST, "sampled")
    slider, models = place.get_by_role("slider", name="Negatives"), data["models"]
    slider.focus()
    for key, column in (("Home", 0), ("ArrowRight", 1), ("End", -1)):
        place.page.keyboard.press(key)
        hits = [model["hits"][column] for model in models]
        order = sorted(range(len(models)), key=lambda i: -hits[i])
        names = place.locator(".sampled-name").all_inner_texts()
        assert names == [models[i]["name"] for i in order]
        boxes = [row.bounding_box()["y"] for row in place.locator(".sampled-models li").all()]
        assert boxes == sorted(boxes)
        truth = [model["full"] for model in models]
        swapped = sum(
            (hits[a] - hits[b]) * (truth[a] - truth[b]) < 0
            for a in range(len(models))
            for b in range(a)
        )
        assert int(place.locator(".sampled-facts").get_attribute("data-swapped")) == swapped
    assert hits == pytest.approx(truth, abs=1e-5)  # all negatives are the full ranking
    assert "full ranking" in place.locator(".sampled-facts").inner_text()


def test_popularity_rises_with_the_share_of_the_correction(touch):
    place, data = touch(DSSM, "fates")
    slider = place.get_by_role("slider")
    slopes, medians = [], []
    place.get_by_label("Scores of").select_option("1")
    user = data["users"][1]
    slider.focus()
    place.page.keyboard.press("Home")
    for share, best in zip(data["shares"], user["best"], strict=True):
        assert slider.get_attribute("aria-valuetext") == f"\u03b2 = {share:g}"
        rows = place.locator(".fates-best li")
        assert [int(i) for i in rows.evaluate_all("r => r.map(e => e.dataset.item)")] == best
        assert user["titles"][str(best[0])] in rows.first.inner_text()
        assert place.locator("circle.best").count() == len(best)
        facts = place.locator(".fates-facts").inner_text().replace("\u2212", "-")
        slopes.append(float(re.search(r"line: (-?[\d.]+)\.", facts)[1]))
        medians.append(int(re.search(r"least (\d+) times", facts)[1]))
        place.page.keyboard.press("ArrowRight")
    assert slopes == sorted(slopes) and medians[0] < medians[-1]


def test_a_small_temperature_lets_the_softmax_be_sharp(touch):
    place, data = touch(DSSM, "softmax")
    slider, facts = place.get_by_role("slider"), place.locator(".softmax-facts")
    box, mouse = slider.bounding_box(), place.page.mouse
    found = []
    for at in (0.1, 0.5, 0.95):
        mouse.click(box["x"] + at * box["width"], box["y"] + box["height"] / 2)
        tau = 10 ** float(slider.input_value())
        others = sum(math.exp((c - data["target"]) / tau) for c in data["cosines"])
        found.append(float(facts.get_attribute("data-target")))
        assert found[-1] == pytest.approx(1 / (1 + others), rel=1e-6)
        height = place.locator(".softmax-bar.target").bounding_box()["height"]
        highest = place.locator(".live-stage svg").bounding_box()["height"]
        assert height == pytest.approx(found[-1] * highest * 174 / 220, abs=1.5)
    assert found[0] > 0.9 > found[1] > found[2]


def test_the_map_opens_leaves_in_the_order_of_the_queue(touch):
    place, data = touch(ANNOY, "map")
    watched, opened = (
        place.get_by_role("slider", name=name) for name in ("Movies watched", "Leaves opened")
    )
    facts, keyboard = place.locator(".map-facts"), place.page.keyboard
    arrows = []
    for key, count, leaves, nearest in zip(
        ("Home", "End"), (0, len(data["history"])), *data["expected"].values(), strict=True
    ):
        watched.focus()
        keyboard.press(key)
        opened.focus()
        keyboard.press("Home")
        for number in range(1, len(leaves) + 1):
            assert json.loads(facts.get_attribute("data-leaves")) == leaves[:number]
            assert place.locator('.map-leaf[style*="fill-opacity"]').count() == number
            assert place.locator(".map-numbers text").all_text_contents()[-1:] == [str(number)]
            found = set(nearest) & set(sum(leaves[:number], []))
            assert f": {len(found)} of the ten" in facts.inner_text()
            keyboard.press("ArrowRight")
        rows = place.locator(".map-nearest li")
        assert rows.evaluate_all("rows => rows.map(r => Number(r.dataset.item))") == nearest
        assert place.locator(".map-stops circle").count() == count
        arrows.append([place.locator(".map-arrow").get_attribute(end) for end in ("x2", "y2")])
    assert arrows[0] != arrows[1]
    assert data["titles"][str(data["history"][-1])] in facts.inner_text()
