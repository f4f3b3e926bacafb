"""Two pages of the same rows: which rows one checkpoint gets right and the other wrong."""

import sys

import pytest
from pages import pair_like, small_page
from scipy.stats import binom
from test_page import held_by

from common.conversation import DataError
from common.page import compare
from common.page.page import Band, Example, Examples, Text, View

FIRST = {0: 1.0, 1: -1.0, 2: 2.0, 3: -3.0, 4: 0.5}
SECOND = {4: -0.5, 3: -1.0, 2: 1.0, 1: 4.0, 0: -2.0, 9: 1.0}  # another order, and one row more


def rows(margins: dict[int, float]) -> list[Example]:
    return [pair_like(number, margin, "4", "five") for number, margin in margins.items()]


def one_set(rows: list[Example]) -> list[Examples]:
    return [Examples("test", rows, [View("all", "margin")])]


def test_outcomes_by_hand():
    figures, changed = compare.compare(compare.match_rows(one_set(rows(FIRST)), one_set(rows(SECOND))))
    assert figures == {
        "rows in both": 5,
        "both right": 1,
        "both wrong": 1,
        "first right only": 2,
        "second right only": 1,
        "p": pytest.approx(2 * binom.cdf(1, 3, 0.5)),
    }
    shown = [(row.values["source"], row.values["outcome"]) for row in changed.rows]
    assert shown == [
        ("test.parquet row 0", "first right only"),
        ("test.parquet row 1", "second right only"),
        ("test.parquet row 4", "first right only"),
    ]
    assert (changed.rows[0].values["first: margin"], changed.rows[0].values["second: margin"]) == (1.0, -2.0)


def test_equal_checkpoints_differ_nowhere():
    figures, changed = compare.compare(compare.match_rows(one_set(rows(FIRST)), one_set(rows(FIRST))))
    assert (figures["both right"], figures["both wrong"], changed.rows) == (3, 2, []) and "p" not in figures


def test_rows_of_equal_text_are_matched_one_to_one():
    twice, once = rows({0: 1.0}) * 2, rows({0: -1.0})
    assert len(compare.match_rows(one_set(twice), one_set(once))) == 1
    assert len(compare.match_rows(one_set(once), one_set(twice))) == 1


def test_training_rows_are_not_compared():
    marked = [Examples("train", rows(FIRST), [View("all", "margin")], markable=True)]
    assert compare.match_rows(marked, marked) == [] and len(compare.match_rows(one_set(rows(FIRST)), marked)) == 0


def test_texts_that_differ_are_shown_from_both():
    """A judge's rows: what was asked is equal, the answers are not."""
    asked = Band([[Text("user", "2+2?")]])
    values = {"source": "row", "right": "yes"}
    first = Example("key", values, [asked, Band([[Text("verdict", "A")]])])
    second = Example("key", values | {"right": "no"}, [asked, Band([[Text("verdict", "B")]])])
    (row,) = compare.compare([(first, second)])[1].rows
    texts = [(text.title, text.text) for band in row.bands for column in band.columns for text in column]
    assert texts == [("user", "2+2?"), ("first: verdict", "A"), ("second: verdict", "B")]


def test_rows_survive_a_page(tmp_path):
    (held,) = compare.read_page(small_page(tmp_path / "report.html", rows(FIRST)))
    assert held.rows == rows(FIRST) and held.total == 5


def test_the_command_writes_a_page_and_says_what_is_not_in_both(tmp_path, monkeypatch, capsys):
    first = small_page(tmp_path / "first.html", rows(FIRST))
    second = small_page(tmp_path / "second.html", rows(SECOND))
    monkeypatch.setattr(sys, "argv", ["compare.py", str(first), str(second), "--output", str(tmp_path / "c.html")])
    compare.main()
    printed = capsys.readouterr().out
    assert f"{'first right only':28} 2\n" in printed and f"rows of {tmp_path.name}/second.html alone 1\n" in printed
    (shown,) = held_by(tmp_path / "c.html")["sets"]
    assert shown["total"] == 3 and shown["views"][0] == [
        "first right only",
        "first: margin",
        False,
        {"outcome": "first right only"},
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "cannot be read"), ("<html>", "not a page of a run"), (b"\xff", "cannot be read")],
)
def test_what_is_not_a_page_is_refused(tmp_path, text, message):
    path = tmp_path / "page.html"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        compare.read_page(path)


def test_pages_of_other_rows_are_refused(tmp_path, monkeypatch):
    first, second = (small_page(tmp_path / f"{n}.html", rows({n: 1.0})) for n in (1, 2))
    monkeypatch.setattr(sys, "argv", ["compare.py", str(first), str(second)])
    with pytest.raises(DataError, match="no row that is right or wrong is in both"):
        compare.main()
