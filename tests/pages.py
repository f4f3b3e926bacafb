"""Pages in a real Chromium: found on this machine, driven by playwright, and what is asked of any page."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.page.page import Band, Example, Examples, Page, Text, View, write_page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@contextmanager
def chromium():
    """A headless Chromium of this machine; the test is skipped if it has none."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if not program:
        pytest.skip(f"needs Chromium, and none of {', '.join(NAMES)} is installed: apt install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page opened from its file, and all that it did which no page may do."""

    def __init__(self, browser, path: Path, width: int = 1400, height: int = 1000, scheme: str = "light"):
        self.context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            accept_downloads=True,
            permissions=["clipboard-read", "clipboard-write"],
        )
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("popup", lambda popup: self.wrong.append(f"popup: {popup.url}"))
        self.page.on("request", self.note_request)
        self.address = path.resolve().as_uri()
        self.page.goto(self.address)

    def note_request(self, request) -> None:
        if request.url != self.address and not request.url.startswith("data:"):
            self.wrong.append(f"request: {request.url}")

    def sources(self) -> list[str]:
        """The rows in the list, by their source, from top to bottom."""
        return self.page.eval_on_selector_all("#body .open span:first-child", "each => each.map(e => e.textContent)")

    def count(self) -> str:
        return self.page.inner_text("#count")

    def search(self, text: str) -> None:
        self.page.fill("#search", text)
        self.page.wait_for_timeout(250)

    def copied(self, selector: str) -> str:
        """What the clipboard has after a text was selected and copied by the keyboard."""
        self.page.evaluate("selector => getSelection().selectAllChildren(document.querySelector(selector))", selector)
        self.page.keyboard.press("Control+c")
        return self.page.evaluate("navigator.clipboard.readText()")


def pair_like(number: int, margin: float, chosen: str, rejected: str, **values) -> Example:
    """A row like one of Bradley-Terry's."""
    figures = {"source": f"test.parquet row {number}", "margin": margin, "right": "yes" if margin > 0 else "no"}
    asked = Band([[Text("user", f"question {number}")]])
    answers = Band([[Text("chosen", chosen)], [Text("rejected", rejected)]], marked=True)
    return Example(f"key{number}", figures | values, [asked, answers])


def small_page(path: Path, rows: list[Example], **changes) -> Path:
    """Write a page of these rows alone."""
    views = [View("wrong", "margin", only={"right": "no"}), View("all", "margin"), View("highest", "margin", True)]
    shown = {"title": "test", "views": views, "choices": ("right",), "tables": (("right", "kind"),)}
    if "kind" not in rows[0].values:
        shown["tables"] = ()
    markable = changes.pop("markable", False)
    fields = {
        "title": "A run",
        "about": {"model": "checkpoint"},
        "figures": {"test": {"accuracy": 0.5, "majority_accuracy": 0.25}},
        "baselines": {"majority_accuracy": "accuracy"},
        "left_out": {},
        "pictures": [],
        "examples": [Examples(rows=rows, markable=markable, **shown)],
        "rest": "All rows are in rows.parquet.",
    }
    return write_page(path, Page(**(fields | changes)))
