"""One page of a run, `report.html`: its figures beside their baselines, its pictures, and its rows, worst first.

A reward model is not improved by looking at its accuracy, but by reading the rows that it gets most confidently wrong.
This file knows no method. A method hands over figures, pictures and rows; page.html.jinja lays them out, page.js shows
the rows. It differs from the usual report in three ways:

- One file without any request: style, script, pictures and rows are in it. Nothing is built or fetched.
- All text is untrusted, and nothing of it can run: jinja2 escapes it, the rows are JSON without `<`, and the page's
  content security policy lets only our own script and style run, by their hash.
- It stays small, whatever was measured: at most `MOST_ROWS` rows of a set and `MOST_BYTES` in all. What does not fit is
  said in the page, with the file that has it. The rows that stand first in some view are kept. Whether a row is right
  is kept of all rows, about 25 bytes each, so that two pages can be compared (compare.py).
"""

import base64
import hashlib
import inspect
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from common.card import without_folders
from common.files import write_text
from common.page.pictures import Picture, data_uri
from common.report import Curves, format_value

MOST_ROWS = 5000  # of one set; more would make the page slow to search
MOST_BYTES = 5_000_000  # of all rows, as JSON
LONGEST_TEXT = 50_000  # characters of one text

Value = float | int | str | None


@dataclass(frozen=True)
class Text:
    """A text with a heading. A folded one opens on a click, such as a judge's reasoning.

    `cut`: characters that stood behind it and are lost, if it was read from a page.
    """

    title: str
    text: str
    folded: bool = False
    cut: int = 0


@dataclass(frozen=True)
class Band:
    """Columns of texts beside each other, or one column.

    `marked`: the words in which the first texts of the first two columns differ are marked.
    """

    columns: list[list[Text]]
    marked: bool = False


@dataclass(frozen=True)
class Example:
    """One row that was measured.

    `values` has its figures by column; "source" says where the row stands, and "right" is "yes" or "no" if that can be
    said. `key` names the row by its text, so that it is found again in another report (see compare.py).
    """

    key: str
    values: dict[str, Value]
    bands: list[Band]


@dataclass(frozen=True)
class View:
    """A way to look at rows: those that have the values of `only`, sorted by a column."""

    title: str
    column: str
    falling: bool = False
    only: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Examples:
    """Rows of one kind, with the columns of the first of them.

    `views`: the first one is shown at the start. `choices`: columns that get a list to filter by. `tables`: pairs of
    columns that are counted against each other; a cell of the table filters the rows. `markable`: rows can be marked,
    and the list of their keys saved. `total`: how many rows there are, if only some are handed over: the first
    ones of `by_interest`.
    """

    title: str
    rows: list[Example]
    views: list[View]
    choices: tuple[str, ...] = ()
    tables: tuple[tuple[str, str], ...] = ()
    note: str = ""
    markable: bool = False
    total: int = 0


@dataclass(frozen=True)
class Page:
    """All that a page shows.

    Args:
        about: what the run is, in a few lines. Folders of this machine, and the user in an address, are not shown.
        figures: by split, what was measured there.
        baselines: the last part of a figure's name -> that of the figure below which it stands, to be compared with.
        left_out: by split, how many rows were left out or cut, by reason.
        rest: where rows and texts are that the page has no room for.
        meaning: what the figures are; see `explained`.
    """

    title: str
    about: dict[str, object]
    figures: dict[str, dict[str, object]]
    baselines: dict[str, str]
    left_out: dict[str, Counter]
    pictures: list[Picture]
    examples: list[Examples]
    rest: str
    meaning: list[str] = field(default_factory=list)


def write_page(path: Path, page: Page) -> Path:
    """Write the page as one file, whole or not at all, and return its path."""
    here = Path(__file__).parent
    jinja = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script, style = ((here / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    policy = {
        "default-src": "'none'",
        "script-src": hash_of(script),
        "style-src": hash_of(style),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",  # no text becomes HTML by any call of the script
        "trusted-types": "'none'",
    }
    html = jinja.get_template("page.html.jinja").render(
        page=page,
        figures=figure_rows(page.figures, page.baselines),
        left_out=[(split, kind, count) for split, kinds in page.left_out.items() for kind, count in kinds.items()],
        pictures=[(picture, data_uri(picture.panel)) for picture in page.pictures],
        about={name: shareable(value) for name, value in page.about.items()},
        data=Markup(to_json(pack(page.examples, page.rest))),
        policy="; ".join(f"{name} {value}" for name, value in policy.items()),
        script=Markup(script),
        style=Markup(style),
        shown=format_value,
    )
    write_text(path, html)
    return path


def explained(*measures: Callable) -> list[str]:
    """Return what the figures of each function mean: what its docstring says that it returns.

    So the reader of a page and the reader of the code are told the same.
    """
    told = ((inspect.getdoc(measure) or "").partition("\nReturns:\n")[2] for measure in measures)
    meanings = (" ".join(re.split(r"\n\n(?=\w+:\n)", text)[0].split()) for text in told)
    return [meaning for meaning in meanings if meaning]  # a reward of your own need not have a docstring


def shareable(value: object) -> object:
    """Return a setting as a page may show it that is sent to others: without folders, and without an address's user."""
    text = without_folders(str(value) if isinstance(value, Path) else value) or value
    if not (isinstance(text, str) and "://" in text):
        return text
    address = urlsplit(text)
    return address._replace(netloc=address.netloc.rpartition("@")[2], query="", fragment="").geturl()


def by_split(figures: dict[str, object]) -> dict[str, dict[str, object]]:
    """Return a run's figures, named `test/accuracy` and so on, by split."""
    splits: dict[str, dict[str, object]] = {}
    for name, value in figures.items():
        split, _, figure = name.partition("/")
        splits.setdefault(split, {})[figure] = value
    return splits


def curve_pictures(curves: list[Curves]) -> list[Picture]:
    """Return a run's curves as pictures."""
    return [Picture(panel, f"{', '.join(panel.series)}, by step.") for panel in curves if panel.series]


def hash_of(text: str) -> str:
    """Return what a content security policy says to allow just this script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def figure_rows(
    figures: dict[str, dict[str, object]], baselines: dict[str, str]
) -> list[tuple[str, bool, list[object]]]:
    """Return the table of figures: name, whether it is a baseline, and its value in each split, None if it has none.

    A baseline follows the figure to which it belongs; one whose figure is not there stands alone.
    """
    names = list(dict.fromkeys(name for values in figures.values() for name in values))
    under: dict[str, list[str]] = {}
    for name in names:
        before, slash, last = name.rpartition("/")
        if last in baselines and (figure := f"{before}{slash}{baselines[last]}") in names:
            under.setdefault(figure, []).append(name)
    placed = {name for beside in under.values() for name in beside}
    ordered = [(each, each in placed) for name in names if name not in placed for each in (name, *under.get(name, ()))]
    return [(name, below, [values.get(name) for values in figures.values()]) for name, below in ordered]


def pack(sets: Iterable[Examples], rest: str) -> dict:
    """Return rows as page.js reads them. Equal texts, such as a prompt that many rows share, are there once.

    Returns:
        texts: all texts. sets: for each its title, note, columns, views, choices and tables; the rows that fit, and
        their numbers among all; how many rows there are in all; of each view also how many rows from its start have no
        gap between them; outcomes: of all rows that were held out, the key and what "right" says.
    """
    sets, texts = [each for each in sets if each.rows], {}
    room, packed = MOST_BYTES, []
    for left, each in zip(range(len(sets), 0, -1), sets):
        rows, used = pack_rows(each, texts, room // left)
        room -= used
        outcomes = [] if each.markable else [[row.key, row.values.get("right")] for row in each.rows]
        packed.append(
            {
                "title": each.title,
                "note": each.note,
                "columns": list(each.rows[0].values),
                "views": [
                    [view.title, view.column, view.falling, dict(view.only), unbroken(each, view, rows)]
                    for view in each.views
                ],
                "choices": list(each.choices),
                "tables": list(each.tables),
                "markable": each.markable,
                "total": each.total or len(each.rows),
                "rows": list(rows.values()),
                "numbers": list(rows),
                "outcomes": outcomes,
            }
        )
    return {"texts": list(texts), "sets": packed, "rest": rest}


def unbroken(examples: Examples, view: View, kept: Mapping[int, object]) -> int:
    """Return how many rows from the start of a view are kept, one behind the other.

    Of rows that were chosen before, it is at least each view's share of them: see `by_interest`.
    """
    order = in_view(examples.rows, view)
    count = next((place for place, index in enumerate(order) if index not in kept), len(order))
    return min(count, len(examples.rows) // len(examples.views)) if examples.total > len(examples.rows) else count


def pack_rows(examples: Examples, texts: dict[str, int], room: int) -> tuple[dict[int, list], int]:
    """Return a set's rows that fit, by number and in their order, and the bytes they take; `texts` gets new texts."""
    rows, used = {}, 0
    for index in by_interest(examples):
        example = examples.rows[index]
        cut = {
            text.text: text.text[:LONGEST_TEXT] for band in example.bands for column in band.columns for text in column
        }
        new = [text for text in dict.fromkeys(cut.values()) if text not in texts]
        # at least one row, however long its texts are
        cost = sum(map(json_bytes, (*new, *example.values.values()))) + 60 * (len(cut) + 1)
        if rows and (len(rows) == MOST_ROWS or used + cost > room):
            continue
        used += cost
        for text in new:
            texts[text] = len(texts)
        bands = [
            [band.marked, [[pack_text(text, texts[cut[text.text]]) for text in column] for column in band.columns]]
            for band in example.bands
        ]
        rows[index] = [example.key, [json_value(value) for value in example.values.values()], bands]
    return {index: rows[index] for index in sorted(rows)}, used


def pack_text(text: Text, number: int) -> list:
    return [text.title, number, int(text.folded), max(0, len(text.text) - LONGEST_TEXT) + text.cut]


def by_interest(examples: Examples) -> list[int]:
    """Return the rows' numbers, those first that stand first in some view."""
    orders = [in_view(examples.rows, view) for view in examples.views]
    turns = (index for turn in zip_longest(*orders) for index in turn if index is not None)
    return list(dict.fromkeys([*turns, *range(len(examples.rows))]))


def in_view(rows: list[Example], view: View) -> list[int]:
    """Return the numbers of the rows that a view has, in its order; rows without a value in the column come last."""
    kept = [
        index
        for index, row in enumerate(rows)
        if all(str(row.values[name]) == value for name, value in view.only.items())
    ]
    values = {index: rows[index].values[view.column] for index in kept}
    known = [index for index in kept if isinstance(values[index], int | float)]
    unknown = [index for index in kept if not isinstance(values[index], int | float)]
    return sorted(known, key=values.get, reverse=view.falling) + unknown


def to_json(value: object) -> str:
    """Return JSON that can stand in a page: `<` is escaped, so that no text ends the script, and halves of letters."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)


def json_bytes(value: Value) -> int:
    return len(to_json(json_value(value)).encode())


def json_value(value: Value) -> Value:
    """Return a value that JSON has; a number that is not finite is shown by its name."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
