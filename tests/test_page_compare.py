"""Two pages of the same rows: which rows one checkpoint gets right and the other wrong."""

import sys

import pytest
from pages import pair_like, small_page
from scipy.stats import binom
from test_page import held_by

from common.conversation import DataError
from common.page import compare
from common.page import page as pages
from common.page.page import Band, Example, Examples, Text, View, pack

FIRST = {0: 1.0, 1: -1.0, 2: 2.0, 3: -3.0, 4: 0.5}
SPLITS = {"val": {0: 1.0, 1: -1.0}, "test": {2: 2.0}}
SECOND = {4: -0.5, 3: -1.0, 2: 1.0, 1: 4.0, 0: -2.0, 9: 1.0}  # another order, and one row more


def rows(margins: dict[int, float]) -> list[Example]:
    return [pair_like(number, margin, "4", "five") for number, margin in margins.items()]


def one_set(rows: list[Example], **more) -> list[compare.Held]:
    """A set as a page holds it."""
    packed = pack([Examples("test", rows, [View("all", "margin")], **more)], "")
    return [compare.unpack(each, packed["texts"]) for each in packed["sets"]]


def test_outcomes_by_hand():
    pairs = compare.match_rows(one_set(rows(FIRST)), one_set(rows(SECOND)))
    changed = compare.changed_examples(pairs)
    assert compare.count_outcomes(pairs) == {
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
    pairs = compare.match_rows(one_set(rows(FIRST)), one_set(rows(FIRST)))
    figures = compare.count_outcomes(pairs)
    assert (figures["both right"], figures["both wrong"]) == (3, 2) and "p" not in figures
    assert compare.changed_examples(pairs).rows == []


def test_figures_are_of_all_rows_also_of_those_that_a_page_has_no_room_for(monkeypatch):
    """The first is right on 9 of 10, the second on none. A page with room for two shows its worst and its best row."""
    first = {number: -1.0 if number == 0 else 1.0 + number for number in range(10)}
    monkeypatch.setattr(pages, "MOST_ROWS", 2)
    pairs = compare.match_rows(
        one_set(rows(first)), one_set(rows({number: -1.0 - number for number in reversed(range(10))}))
    )
    figures = compare.count_outcomes(pairs)
    assert (figures["rows in both"], figures["first right only"], figures["both wrong"]) == (10, 9, 1)
    changed = compare.changed_examples(pairs)
    assert changed.title == "9 rows that one gets right and the other wrong; 0 of them are in both pages"


def test_a_cut_text_still_says_how_much_is_missing(monkeypatch):
    monkeypatch.setattr(pages, "LONGEST_TEXT", 10)
    (held,) = one_set([pair_like(0, 1.0, "0123456789abc", "b")])
    assert held.examples.rows[0].bands[1].columns[0][0] == Text("chosen", "0123456789", cut=3)
    (again,) = one_set(held.examples.rows)
    assert again.examples.rows == held.examples.rows


def test_a_column_of_the_second_alone_is_shown():
    first = one_set([pair_like(0, 1.0, "4", "five")])
    second = one_set([pair_like(0, -1.0, "4", "five", votes=3)])
    (row,) = compare.changed_examples(compare.match_rows(first, second)).rows
    assert (row.values["first: votes"], row.values["second: votes"]) == (None, 3)


def test_rows_of_equal_text_are_matched_one_to_one():
    twice, once = rows({0: 1.0}) * 2, rows({0: -1.0})
    assert len(compare.match_rows(one_set(twice), one_set(once))) == 1
    assert len(compare.match_rows(one_set(once), one_set(twice))) == 1


def test_training_rows_are_not_compared():
    marked = one_set(rows(FIRST), markable=True)
    assert compare.match_rows(marked, marked) == [] and len(compare.match_rows(one_set(rows(FIRST)), marked)) == 0


def test_texts_that_differ_are_shown_from_both():
    """A judge's rows: what was asked is equal, the answers are not."""
    asked = Band([[Text("user", "2+2?")]])
    values = {"source": "row", "right": "yes"}
    first = Example("key", values, [asked, Band([[Text("verdict", "A")]])])
    second = Example("key", values | {"right": "no"}, [asked, Band([[Text("verdict", "B")]])])
    measured = [compare.Measured("test", row.key, row.values["right"], row) for row in (first, second)]
    (row,) = compare.changed_examples([tuple(measured)]).rows
    texts = [(text.title, text.text) for band in row.bands for column in band.columns for text in column]
    assert texts == [("user", "2+2?"), ("first: verdict", "A"), ("second: verdict", "B")]


def test_rows_survive_a_page(tmp_path):
    (held,) = compare.read_page(small_page(tmp_path / "report.html", rows(FIRST)))
    assert held.examples.rows == rows(FIRST) and held.examples.total == 5


def test_the_command_writes_a_page_and_says_what_is_not_in_both(tmp_path, monkeypatch, capsys):
    folders = [tmp_path / name / "out" for name in ("one", "other")]
    for folder in folders:
        folder.mkdir(parents=True)
    first, second = (
        small_page(folder / "report.html", rows(margins)) for folder, margins in zip(folders, (FIRST, SECOND))
    )
    monkeypatch.setattr(sys, "argv", ["compare.py", str(first), str(second), "--output", str(tmp_path / "c.html")])
    compare.main()
    printed = capsys.readouterr().out
    assert f"  {'first right only':28} 2\n" in printed
    assert f"{'rows of the first alone':30} 0\n{'rows of the second alone':30} 1\n" in printed
    html = (tmp_path / "c.html").read_text()
    assert "one/out/report.html" in html and "other/out/report.html" in html and str(tmp_path) not in html
    (shown,) = held_by(tmp_path / "c.html")["sets"]
    assert shown["total"] == 3 and shown["views"][0] == [
        "first right only",
        "first: margin",
        False,
        {"outcome": "first right only"},
        2,
    ]


def test_splits_are_compared_apart(tmp_path, monkeypatch, capsys):
    sets = {name: Examples(name, rows(margins), [View("all", "margin")]) for name, margins in SPLITS.items()}
    path = small_page(tmp_path / "report.html", rows(FIRST), examples=list(sets.values()))
    monkeypatch.setattr(sys, "argv", ["compare.py", str(path), str(path), "--output", str(tmp_path / "c.html")])
    compare.main()
    counts = f"  {'rows in both':28} {{}}\n  {'both right':28} {{}}\n"
    printed = capsys.readouterr().out
    assert f"val\n{counts.format(2, 1)}" in printed and f"test\n{counts.format(1, 1)}" in printed
    assert held_by(tmp_path / "c.html")["sets"] == []


def test_a_page_of_an_earlier_version_is_refused(tmp_path):
    path = small_page(tmp_path / "report.html", rows(FIRST))
    path.write_text(path.read_text().replace('"outcomes":', '"other":'))
    with pytest.raises(DataError, match="a page of an earlier version"):
        compare.read_page(path)


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
