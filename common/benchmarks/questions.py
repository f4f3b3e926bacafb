"""The questions of benchmarks: one form for all of them, and their files read and checked.

A question is a dialogue, its answers and how many of these are right; the right ones come first. What a file calls
things is known by the benchmark's own module, which gives `check_questions` a function from a row to a question. All
faults are in one report. A question is never left out: every published figure is over all of them.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from common.conversation import BadRow, Conversation, DataError, check_unicode, is_blank, read_response
from common.parquet import Faults, list_counts
from common.sources import load_source

FORMS = (".json", ".jsonl", ".parquet")
SHOWN = 5  # faults of rows in a report


@dataclass(frozen=True)
class Question:
    """A question of a benchmark.

    id: unique within the benchmark. subset: the part of the benchmark it belongs to, by the benchmark's own name.
    prompt: what is answered, ending with the user's turn. answers: their texts; the first `right` of them are right.
    """

    id: str
    subset: str
    prompt: Conversation
    answers: list[str]
    right: int = 1


Row = tuple[str, dict]  # where it stands, for people, and what it holds


def read_files(path: str | Path, wanted: Callable[[Path], bool] = lambda file: True) -> Iterator[tuple[Path, list]]:
    """Yield each file of rows that a path names, itself or those at any depth in a folder, and its rows.

    Args:
        wanted: of the files in a folder, which are the benchmark's. A file that is named itself is read in any case.

    Raises:
        DataError: no such path, no wanted file in it, or files that cannot be read; all of them in one report.
    """
    place, faults, found = Path(path), Faults(), []
    if not place.exists():
        raise DataError(f"{place}: no such file or folder (looked in {Path.cwd()})")
    files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.suffix in FORMS)
    files = [file for file in files if file == place or wanted(file)]
    if not files:
        raise DataError(f"{place}: no file of this benchmark in it. Name the folder that its authors publish.")
    for file in files:
        with faults.gathered():
            found.append((file, read_file(file)))
    faults.raise_all()
    yield from found


def read_file(file: Path) -> list[dict]:
    """Return the rows of a .json file (a list of objects), of .jsonl or .parquet; raise `DataError` if it has none."""
    try:
        if file.suffix == ".parquet":
            rows = pq.ParquetFile(file).read().to_pylist()
        elif file.suffix == ".jsonl":
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
        elif file.suffix == ".json":
            rows = json.loads(file.read_text(encoding="utf-8"))
        else:
            raise DataError(f"{file}: expected one of {', '.join(FORMS)}")
    except (pa.ArrowInvalid, OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}). Download it again.") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{file}: expected a list of rows, at least one, each an object with named values")
    return rows


def numbered(name: str, rows: Iterable[dict]) -> Iterator[Row]:
    """Yield rows with where they stand: "chat.json row 17", counted from 0."""
    for number, row in enumerate(rows):
        yield f"{name} row {number}", row


def hub_rows(home: str, split: str) -> Iterator[Row]:
    """Yield the rows of a set on the Hugging Face hub; raise `DataError` if it cannot be reached."""
    yield from numbered(f"{home} ({split})", load_source(home, split))


def check_questions(rows: Iterable[Row], to_question: Callable[[dict], Question]) -> list[Question]:
    """Return the questions that rows hold.

    Args:
        to_question: raises `BadRow` if a row is none.

    Raises:
        DataError: bad rows, or an id that comes twice; all of them in one report.
    """
    questions, bad, places = [], [], {}
    for place, row in rows:
        try:
            question = to_question(row)
            if question.id in places:
                raise BadRow("id", "an id that comes twice", f"{question.id}, first in {places[question.id]}")
        except BadRow as fault:
            bad.append((place, fault))
            continue
        places[question.id] = place
        questions.append(question)
    if bad:
        shown = [f"  {place}, {fault.in_column}" for place, fault in bad[:SHOWN]]
        more = [f"  … and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
        kinds = Counter(f"column '{fault.column}': {fault.kind}" for _, fault in bad)
        head = f"{len(bad)} of {len(bad) + len(questions)} rows are not as the benchmark's authors publish them:"
        remedy = "No row is left out, or the figure would not be the benchmark's. Download the files again."
        if not questions:
            remedy = f"Are these the benchmark's files? The last row has the columns {', '.join(map(str, row))}."
        raise DataError("\n".join([head, *shown, *more, f"In all: {list_counts(kinds)}.", remedy]))
    return questions


def cell(row: dict, column: str) -> object:
    """Return a value of a row; raise `BadRow` if the column is missing or empty."""
    if row.get(column) is None:
        raise BadRow(column, "the column is missing" if column not in row else "the value is missing")
    return row[column]


def text_of(row: dict, column: str) -> str:
    """Return a text that may not be empty: a prompt, a label, an id."""
    value = cell(row, column)
    if not isinstance(value, str) or is_blank(value):
        raise BadRow(column, "expected text", value)
    return check_unicode(column, value)


def id_of(row: dict, column: str) -> str:
    """Return an id, a number or text, as text."""
    value = cell(row, column)
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
        raise BadRow(column, "expected a number or text", value)
    return str(value)


def answers_of(row: dict, column: str, count: int | None = None) -> list[str]:
    """Return a list of answers, `count` of them or at least one. An answer may be empty: that is a bad answer."""
    value = cell(row, column)
    if not isinstance(value, list) or not value or len(value) != (count or len(value)):
        raise BadRow(column, f"expected a list of {count or 'one or more'} answers", value)
    return [read_response(answer, column) for answer in value]


def user_turn(text: str) -> Conversation:
    return [{"role": "user", "content": text}]
