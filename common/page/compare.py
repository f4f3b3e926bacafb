"""Which rows does one checkpoint get right and the other wrong? Two pages of the same rows, compared.

    python -m common.page.compare first/evaluation_test.html second/evaluation_test.html --output compared.html

Two accuracies that differ by a point may be ten rows each way. Rows are matched by their key, a digest of their text,
so it does not matter in which order or file they stood. What is compared is what the pages hold: a page that had no
room for all rows says so here as well.
"""

import argparse
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

from scipy.stats import binomtest

from common.conversation import DataError
from common.page.page import Band, Example, Examples, Page, Text, View, write_page

NAMES = ("first", "second")
OUTCOMES = {
    ("yes", "yes"): "both right",
    ("no", "no"): "both wrong",
    ("yes", "no"): "first right only",
    ("no", "yes"): "second right only",
}


def read_page(path: Path) -> list[Examples]:
    """Return the sets of rows that a page holds; a text that was cut stays cut.

    Raises:
        DataError: no such file, or not a page of ours.
    """
    try:
        html = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    if not found:
        raise DataError(f"{path}: not a page of a run or of an evaluation: it holds no rows")
    held = json.loads(found[1])
    return [unpack(each, held["texts"]) for each in held["sets"]]


def unpack(packed: dict, texts: list[str]) -> Examples:
    """Return a set of rows as it was before `pack`."""
    rows = []
    for key, values, bands in packed["rows"]:
        columns_of = [
            Band(
                [
                    [Text(title, texts[number], bool(folded)) for title, number, folded, _ in column]
                    for column in columns
                ],
                marked,
            )
            for marked, columns in bands
        ]
        rows.append(Example(key, dict(zip(packed["columns"], values)), columns_of))
    views = [View(title, column, falling, only) for title, column, falling, only in packed["views"]]
    return Examples(packed["title"], rows, views, total=packed["total"], markable=packed["markable"])


def match_rows(first: list[Examples], second: list[Examples]) -> list[tuple[Example, Example]]:
    """Return the rows that both have and that are right or wrong, in the order of the first.

    Rows of equal text are matched in their order.
    """
    waiting: dict[str, list[Example]] = defaultdict(list)
    for row in rows_of(second):
        waiting[row.key].append(row)
    return [(row, waiting[row.key].pop(0)) for row in rows_of(first) if waiting[row.key]]


def rows_of(sets: list[Examples]) -> list[Example]:
    """Return the rows that were held out and are right or wrong; those that can be marked are training rows."""
    held_out = [row for each in sets if not each.markable for row in each.rows]
    return [row for row in held_out if row.values.get("right") in ("yes", "no")]


def compare(pairs: list[tuple[Example, Example]]) -> tuple[dict[str, object], Examples]:
    """Compare two checkpoints row by row.

    Args:
        pairs: of `match_rows`, each row as the first and as the second measured it.

    Returns:
        How many rows are both right, both wrong, and right in one only; p, the chance that rows which one gets right
        and the other wrong would fall as unevenly if both were equally good (sign test; absent without such rows).
        And the rows whose outcome differs, with the figures of both where they differ.
    """
    outcomes = [OUTCOMES[first.values["right"], second.values["right"]] for first, second in pairs]
    counts = Counter(outcomes)
    figures = {"rows in both": len(pairs)} | {outcome: counts[outcome] for outcome in OUTCOMES.values()}
    one, other = counts["first right only"], counts["second right only"]
    if one + other:
        figures["p"] = float(binomtest(one, one + other).pvalue)
    changed = [(pair, outcome) for pair, outcome in zip(pairs, outcomes) if outcome.endswith("only")]
    names = list(changed[0][0][0].values) if changed else []
    differing = {
        name for name in names for (first, second), _ in changed if first.values[name] != second.values.get(name)
    }
    rows = [together(first, second, outcome, differing) for (first, second), outcome in changed]
    by = next((f"first: {name}" for name in ("margin", "error", "loss") if name in differing), "source")
    views = [View(name, by, only={"outcome": name}) for name in ("first right only", "second right only")]
    title = f"{len(rows):,} rows that one gets right and the other wrong"
    return figures, Examples(title, rows, [*views, View("all", by)], ("outcome",))


def together(first: Example, second: Example, outcome: str, differing: set[str]) -> Example:
    """Return a row as both measured it: what is equal once, what differs from both."""
    values = {"source": first.values["source"], "outcome": outcome}
    for name, value in first.values.items():
        if name in differing:
            values |= {f"first: {name}": value, f"second: {name}": second.values.get(name)}
        elif name != "source":
            values[name] = value
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
    figures, examples = compare(pairs)
    for path, held in zip((options.first, options.second), sets):
        figures[f"rows of {path.parent.name or '.'}/{path.name} alone"] = len(rows_of(held)) - len(pairs)
        for each in held:
            if each.total > len(each.rows) and not each.markable:
                print(f"{path}: {each.title}: the page holds {len(each.rows)} of them, only these are compared")
    for name, value in figures.items():
        print(f"{name:28} {value:.4g}" if isinstance(value, float) else f"{name:28} {value}")
    about = {"first": options.first, "second": options.second}
    rest = "All rows are in the two pages that were compared."
    write_page(options.output, Page("Two checkpoints compared", about, {"rows": figures}, {}, {}, [], [examples], rest))
    print(f"written: {options.output}")


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        raise SystemExit(f"compare.py: {error}") from None
