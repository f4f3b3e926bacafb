"""The page in a real browser: it opens from its file, asks for nothing, and does what its readers ask."""

import pytest
from hostile_texts import HOSTILE
from pages import Opened, chromium, pair_like, small_page

from common.page.page import Band, Example, Text
from common.page.pictures import Boxes, Picture

pytestmark = pytest.mark.run

ANSWERS = {
    0: (-3.0, "It costs nine euros.", "It costs ten euros."),
    1: (2.0, "Paris", "Rome"),
    2: (-0.5, "a violet sky", "a blue sky"),
    3: (0.25, "yes", "no"),
}


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture
def opened(browser, tmp_path):
    """Open a page of the four rows above, or of others; at the end nothing may have gone wrong in it."""
    pages = []

    def open_page(rows=None, width=1400, scheme="light", height=1000, **changes) -> Opened:
        rows = rows or [pair_like(number, *row, kind="ab"[number % 2]) for number, row in ANSWERS.items()]
        pages.append(Opened(browser, small_page(tmp_path / "report.html", rows, **changes), width, height, scheme))
        return pages[-1]

    yield open_page
    for each in pages:
        assert each.wrong == []
        each.context.close()


def rows_named(*numbers: int) -> list[str]:
    return [f"test.parquet row {number}" for number in numbers]


def test_it_opens_with_the_most_confidently_wrong_row(opened):
    shown = opened()
    assert shown.sources() == rows_named(0, 2)
    assert shown.count() == "2 of 4 rows"
    assert shown.page.inner_text("#chosen h3") == "test.parquet row 0"
    texts = shown.page.eval_on_selector_all("#chosen .text", "each => each.map(e => e.textContent)")
    assert texts == ["question 0", "It costs nine euros.", "It costs ten euros."]


def test_the_words_that_differ_are_marked_on_both_sides(opened):
    shown = opened()
    assert shown.page.eval_on_selector_all("mark", "each => each.map(e => e.textContent)") == ["nine", "ten"]


def test_views_sorting_filters_and_search_choose_rows(opened):
    shown = opened()
    page = shown.page
    page.select_option("#view", label="highest")
    assert shown.sources() == rows_named(1, 3, 2, 0)
    page.click("#head button:text-is('source')")
    assert shown.sources() == rows_named(0, 1, 2, 3)
    page.click("#head button:text-is('source')")
    assert shown.sources() == rows_named(3, 2, 1, 0)
    assert page.get_attribute("#head th:first-child", "aria-sort") == "descending"
    page.select_option("#filters select", label="yes (2)")
    assert shown.sources() == rows_named(3, 1)
    page.click("#all")
    shown.search("SKY")
    assert shown.sources() == rows_named(2) and shown.count() == "1 of 4 rows"
    shown.search("not there")
    assert shown.sources() == [] and shown.count() == "0 of 4 rows"


def test_a_cell_of_the_counts_filters_the_rows_and_again_shows_all(opened):
    shown = opened()
    page = shown.page
    page.click("#tables summary")
    cells = page.eval_on_selector_all("#tables td", "each => each.map(e => e.textContent)")
    assert cells == ["2", "0", "0", "2"]  # wrong: rows 0 and 2, of kind a; right: 1 and 3, of kind b
    shown.search("no row has this")
    page.click("#tables button[aria-label='2 rows: right yes, kind b']")  # it shows as many rows as it counts
    assert shown.sources() == rows_named(3, 1)
    page.click("#tables button[aria-pressed='true']")
    assert len(shown.sources()) == 4


def test_the_keyboard_alone_is_enough(opened):
    shown = opened()
    page = shown.page
    page.keyboard.press("j")
    assert page.inner_text("#chosen h3") == "test.parquet row 2"
    assert page.evaluate("document.activeElement.closest('tr').rowIndex") == 2  # its focus can be seen
    page.keyboard.press("ArrowUp")
    assert page.inner_text("#chosen h3") == "test.parquet row 0"
    page.keyboard.press("k")  # nothing is above the first row
    page.keyboard.press("/")
    page.keyboard.type("jxk")  # letters are letters in the search
    assert page.input_value("#search") == "jxk"
    page.fill("#search", "")
    page.wait_for_timeout(250)
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "open"


def test_a_screen_reader_finds_names_for_all_parts(opened):
    page = opened().page
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('input, select, button, section[aria-labelledby], [role=region], img')]
        .filter(e => !e.labels?.length && !e.textContent.trim() && !e.ariaLabel && !e.alt)
        .map(e => e.outerHTML)"""
    )
    assert unnamed == []
    for landmark in ("header", "nav", "main", "footer", "[role=search]", "[aria-live=polite]"):
        assert page.locator(landmark).count() == 1, landmark
    assert page.locator("th:not([scope])").count() == 0


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1400, "dark")])
def test_it_fits_a_phone_and_both_colour_schemes(opened, width, scheme):
    long = "word " * 400 + "W" * 3000
    columns = {f"column {number}": "x" * 200 for number in range(9)}
    shown = opened([pair_like(0, -1.0, long, long[::-1], **columns)], width, scheme)
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
    dark = shown.page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")


def test_five_thousand_rows_load_at_once_and_a_window_of_them_is_in_the_list(opened):
    rows = [pair_like(number, number / 5000 - 1, "a few words " * 10, "other words " * 10) for number in range(5000)]
    shown = opened(rows)
    page = shown.page
    loaded = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    assert loaded < 3000  # milliseconds; about 200 on a quiet machine
    assert shown.count() == "5,000 of 5,000 rows" and page.locator("#body tr").count() == 100
    page.evaluate("document.getElementById('list').scrollTop = 1e6")
    page.locator("#body tr:nth-child(200)").wait_for()
    assert page.locator("#body tr").count() == 200
    spent = page.evaluate(
        """() => { const start = performance.now(); document.getElementById('search').value = 'row 4999'; update();
        return performance.now() - start }"""
    )
    assert spent < 2000 and shown.count() == "1 of 5,000 rows"


def test_marked_rows_are_saved_as_a_list_of_their_keys(opened):
    shown = opened(markable=True)
    page = shown.page
    page.keyboard.press("j")
    page.keyboard.press("x")
    assert page.get_attribute("#chosen [aria-pressed]", "aria-pressed") == "true"
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.path().read_text() == "key2  test.parquet row 2\n"
    page.click("#mark-shown")
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.path().read_text().split()[::4] == ["key2", "key0"]


# ---- untrusted text


def test_there_are_sixty_hostile_texts():
    assert len(set(HOSTILE)) == len(HOSTILE) == 60


@pytest.fixture(scope="module")
def hostile(browser, tmp_path_factory):
    """A page whose every text is hostile: each in turn as a prompt, an answer, a reasoning, a file name and so on."""
    rows = []
    for number, text in enumerate(HOSTILE):
        row = pair_like(number, -1.0, f"before {text} after", text, **{"kind": text})
        asked, answers = row.bands
        folded = Band([[Text(text, text, folded=True)]])
        values = row.values | {"source": f"{number} {text}", HOSTILE[0]: 1.0}
        rows.append(Example(text, values, [Band([[Text(text, text)]]), answers, folded]))
    every = {text: text for text in HOSTILE}
    boxes = Boxes("<b>&\u202e$x$", {text: [1.0, 2.0] for text in HOSTILE}, "$\\frac{")
    page = small_page(
        tmp_path_factory.mktemp("hostile") / "<b>&'\u202e report.html",
        rows,
        title="".join(HOSTILE[:30]),
        about=every,
        figures={text: {text: 1.0} for text in HOSTILE[:9]},
        left_out={text: {text: 1} for text in HOSTILE},
        pictures=[Picture(boxes, HOSTILE[6])],
        rest=HOSTILE[0],
    )
    opened = Opened(browser, page)
    opened.page.select_option("#view", label="all")
    yield opened
    opened.context.close()


def test_no_hostile_text_runs_or_asks_for_anything(hostile):
    page = hostile.page
    assert page.evaluate("window.hacked") is None
    foreign = "iframe, object, embed, base, video, math, svg, form:not(.controls), link:not([rel=icon])"
    assert page.locator(foreign).count() == 0
    assert page.locator("script").count() == 2 and page.locator("style").count() == 1
    assert hostile.count() == "60 of 60 rows"
    assert hostile.wrong == []


def test_every_hostile_text_is_shown_stays_in_its_box_and_is_copied_as_it_is(hostile):
    page = hostile.page
    for number, text in enumerate(HOSTILE):
        page.evaluate("place => { state.order = state.set.rows.map((_, n) => n); choose(place, false) }", number)
        page.eval_on_selector("#chosen details", "each => { each.open = true }")
        texts = page.eval_on_selector_all("#chosen .text", "each => each.map(e => e.textContent)")
        assert texts == [text, f"before {text} after", text, text], number
        assert page.inner_text("#chosen h3") or not text.strip()
        assert hostile.copied("#chosen .text") == text, number
        page.evaluate("document.getElementById('said').textContent = ''")
        page.click("#chosen .band:last-child .heading button")
        page.locator("#said", has_text="Copied.").wait_for(state="attached")
        assert page.evaluate("navigator.clipboard.readText()") == text, number
        outside = page.evaluate(
            """() => { const edge = document.getElementById('chosen').getBoundingClientRect().right;
            return [...document.querySelectorAll('#chosen .column > *, #chosen dd, #chosen dt, #chosen h3, #chosen h4')]
            .filter(e => e.getBoundingClientRect().right > edge).map(e => e.outerHTML.slice(0, 200)) }"""
        )
        assert outside == [], number
    assert page.evaluate("document.documentElement.scrollWidth") <= 1400
    assert hostile.wrong == []


def test_what_cannot_be_seen_is_shown_by_its_number_and_turns_nothing_round(hostile):
    page = hostile.page
    page.evaluate("place => choose(place, false)", HOSTILE.index("\u202egpj.exe\u202c safe"))
    shown = page.eval_on_selector("#chosen .text", "e => [...e.querySelectorAll('.hidden')].map(e => e.dataset.name)")
    assert shown == ["U+202E", "U+202C"]
    left_to_right = page.evaluate(
        """() => { const node = document.querySelector('#chosen .text').childNodes[1];
        const left = (place) => { const range = new Range(); range.setStart(node, place); range.setEnd(node, place + 1);
        return range.getBoundingClientRect().left };
        return left(0) < left(6) }"""
    )
    assert left_to_right
