"""Which rows does one checkpoint get right and the other wrong? Two pages of the same rows, compared.

    python -m common.page.compare first/evaluation_test.html second/evaluation_test.html --output compared.html

Two accuracies that differ by a point may be ten rows each way. Rows are matched by their key, a digest of their text,
so it does not matter in which order or file they stood. The figures are of all rows: a page knows of each whether it
is right. Shown are those that both pages have room for.
"""

import argparse
import json
import re
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from scipy.stats import binomtest

from common.conversation import DataError
from common.page.page import Band, Example, Examples, Page, Text, View, write_page
from common.parquet import short_names

NAMES = ("first", "second")
OUTCOMES = {
    ("yes", "yes"): "both right",
    ("no", "no"): "both wrong",
    ("yes", "no"): "first right only",
    ("no", "yes"): "second right only",
}


class Held(NamedTuple):
    """A set of rows as a page holds it.

    numbers: for each row that is held, its number among all. outcomes: of all rows that were held out, the key and
    "yes", "no" or None if it cannot be said whether the row is right.
    """

    examples: Examples
    numbers: list[int]
    outcomes: list[tuple[str, str | None]]


@dataclass(frozen=True)
class Measured:
    """A row that is right or wrong, with its set's title; `example` is None if its page has no room for it."""

    title: str
    key: str
    right: str
    example: Example | None


def read_page(path: Path) -> list[Held]:
    """Return the sets of rows that a page holds; a text that was cut stays cut.

    Raises:
        DataError: no such file, not a page of ours, or a page of an earlier version.
    """
    try:
        html = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    if not found:
        raise DataError(f"{path}: not a page of a run or of an evaluation: it holds no rows")
    held = json.loads(found[1])
    if any("outcomes" not in each for each in held["sets"]):
        raise DataError(f"{path}: a page of an earlier version, which does not say of all rows if they are right")
    return [unpack(each, held["texts"]) for each in held["sets"]]


def unpack(packed: dict, texts: list[str]) -> Held:
    """Return a set of rows as it was before `pack`, as far as the page has room for it."""
    rows = []
    for key, values, bands in packed["rows"]:
        columns_of = [
            Band(
                [
                    [Text(title, texts[number], bool(folded), cut) for title, number, folded, cut in column]
                    for column in columns
                ],
                marked,
            )
            for marked, columns in bands
        ]
        rows.append(Example(key, dict(zip(packed["columns"], values)), columns_of))
    views = [View(title, column, falling, only) for title, column, falling, only, _ in packed["views"]]
    examples = Examples(packed["title"], rows, views, total=packed["total"], markable=packed["markable"])
    return Held(examples, packed["numbers"], [(key, right) for key, right in packed["outcomes"]])


def match_rows(first: list[Held], second: list[Held]) -> list[tuple[Measured, Measured]]:
    """Return the rows that both have and that are right or wrong, in the order of the first.

    Rows of equal text are matched in their order.
    """
    waiting: dict[str, deque[Measured]] = defaultdict(deque)
    for row in rows_of(second):
        waiting[row.key].append(row)
    return [(row, waiting[row.key].popleft()) for row in rows_of(first) if waiting[row.key]]


def rows_of(sets: list[Held]) -> list[Measured]:
    """Return the rows that were held out and are right or wrong, also those that the page has no room for."""
    rows = []
    for examples, numbers, outcomes in sets:
        shown = dict(zip(numbers, examples.rows))
        rows += [
            Measured(examples.title, key, right, shown.get(number))
            for number, (key, right) in enumerate(outcomes)
            if right in ("yes", "no")
        ]
    return rows


def count_outcomes(pairs: list[tuple[Measured, Measured]]) -> dict[str, object]:
    """Compare two checkpoints row by row.

    Args:
        pairs: of `match_rows`, each row as the first and as the second measured it.

    Returns:
        How many rows are both right, both wrong, and right in one only; p, the chance that rows which one gets right
        and the other wrong would fall as unevenly if both were equally good (sign test; absent without such rows).
    """
    counts = Counter(OUTCOMES[first.right, second.right] for first, second in pairs)
    figures = {"rows in both": len(pairs)} | {outcome: counts[outcome] for outcome in OUTCOMES.values()}
    one, other = counts["first right only"], counts["second right only"]
    if one + other:
        figures["p"] = float(binomtest(one, one + other).pvalue)
    return figures


def changed_examples(pairs: list[tuple[Measured, Measured]]) -> Examples:
    """Return the rows that one gets right and the other wrong, with the figures of both where they differ.

    Those that a page has no room for are not among them; the title says of how many the rows are.
    """
    changed = [(first, second) for first, second in pairs if first.right != second.right]
    shown = [
        (first.example, second.example, OUTCOMES[first.right, second.right])
        for first, second in changed
        if first.example and second.example
    ]
    names = {name: None for *both, _ in shown for row in both for name in row.values}
    differing = [
        name for name in names if any(first.values.get(name) != second.values.get(name) for first, second, _ in shown)
    ]
    rows = [together(first, second, outcome, names, differing) for first, second, outcome in shown]
    by = next((f"first: {name}" for name in ("margin", "error", "loss") if name in differing), "source")
    views = [View(name, by, only={"outcome": name}) for name in ("first right only", "second right only")]
    title = f"{len(changed):,} rows that one gets right and the other wrong"
    if len(rows) < len(changed):
        title += f"; {len(rows):,} of them are in both pages"
    return Examples(title, rows, [*views, View("all", by)], ("outcome",))


def together(
    first: Example, second: Example, outcome: str, names: Iterable[str], differing: Collection[str]
) -> Example:
    """Return a row as both measured it: what is equal once, what differs in some row from both.

    Args:
        names: of all columns. differing: those of them that differ in some row.
    """
    values = {"source": first.values["source"], "outcome": outcome}
    for name in names:
        if name in differing:
            values |= {f"first: {name}": first.values.get(name), f"second: {name}": second.values.get(name)}
        elif name != "source":
            values[name] = first.values.get(name)
    bands = []
    for place, band in enumerate(first.bands):
        other = second.bands[place] if place < len(second.bands) else band
        bands += [band] if other == band else [named(band, NAMES[0]), named(other, NAMES[1])]
    return Example(first.key, values, bands)


def named(band: Band, name: str) -> Band:
    columns = [[Text(f"{name}: {text.title}", text.text, text.folded) for text in column] for column in band.columns]
    return Band(columns, band.marked)


def main() -> None:
    parser = argparse.ArgumentParser(description="Rows that one checkpoint gets right and the other wrong.")
    parser.add_argument("first", type=Path, help="page of an evaluation or a run: evaluation_*.html, report.html")
    parser.add_argument("second", type=Path, help="the same of the other checkpoint")
    parser.add_argument("--output", type=Path, default=Path("compared.html"), help="page to write")
    options = parser.parse_args()
    sets = [read_page(path) for path in (options.first, options.second)]
    pairs = match_rows(*sets)
    if not pairs:
        raise DataError("no row that is right or wrong is in both pages: are they of the same data?")
    about = dict(zip(("first", "second"), short_names([options.first, options.second]).values()))
    about |= {f"rows of the {name} alone": len(rows_of(held)) - len(pairs) for name, held in zip(NAMES, sets)}
    examples, figures = changed_examples(pairs), {}
    for title in dict.fromkeys(first.title for first, _ in pairs):
        figures[title] = count_outcomes([pair for pair in pairs if pair[0].title == title])
    for title, counts in figures.items():
        print(title)
        for name, value in counts.items():
            print(f"  {name:28} {value:.4g}" if isinstance(value, float) else f"  {name:28} {value}")
    for name in list(about)[2:]:
        print(f"{name:30} {about[name]}")
    print(examples.title)
    rest = "What both got the same, and rows that one of them has no room for, are not shown here."
    write_page(options.output, Page("Two checkpoints compared", about, figures, {}, {}, [], [examples], rest))
    print(f"written: {options.output}")


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        raise SystemExit(f"compare.py: {error}") from None
