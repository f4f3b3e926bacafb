"""A list of rows that a person reviewed, such as those with a wrong label: read, and left out of the data.

The list is text: on each line a row's digest, and behind it, for people, where the row stood. A digest is of the row's
text, so it names the row in every file and every split, whatever the order. A page of a run saves such a list.
"""

from collections.abc import Callable
from pathlib import Path

from common.conversation import DataError

SHOWN = 3


def read_row_list(path: Path) -> dict[str, str]:
    """Return the lines of a list, by the digest with which each begins; empty lines and `#` comments are passed over.

    Raises:
        DataError: no such file, not text, or a line that does not begin with a digest.
    """
    try:
        # "\n" alone ends a line: what stands behind a digest may hold the other characters that splitlines() cuts at
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a list of rows ({error})") from error
    if lines[0].lower().startswith("<!doctype html"):
        raise DataError(f"{path}: this is a page. Open it in a browser, mark rows, and give the list that it saves.")
    listed, faults = {}, []
    for number, line in enumerate(lines, start=1):
        digest = line.split(maxsplit=1)[0] if line.strip() else "#"
        if digest.startswith("#"):
            continue
        if len(digest) == 16 and set(digest) <= set("0123456789abcdef"):
            listed[digest] = line
        else:
            faults.append(f"  line {number}: {line[:80]!r}")
    if faults:
        head = f"{path}: {len(faults)} lines do not begin with a row's digest, 16 digits and letters a to f:"
        raise DataError("\n".join([head, *faults[:SHOWN]]))
    if not listed:
        raise DataError(f"{path}: a list without any row")
    return listed


def without_rows(
    splits: dict[str, list[dict]], path: Path, digest: Callable[[dict], str]
) -> tuple[dict[str, list[dict]], int]:
    """Return each split without the rows that a list names, and how many those are. Names that no row has are printed.

    The rows are split before: fewer rows would be split at other places, and a row that was held out could become a
    training row.

    Raises:
        DataError: see `read_row_list`; not one row is named; a split would have no row.
    """
    listed = read_row_list(path)
    kept, found = {}, set()
    for split, rows in splits.items():
        digests = [digest(row) for row in rows]
        found |= listed.keys() & set(digests)
        kept[split] = [row for row, name in zip(rows, digests) if name not in listed]
    unknown = [line for name, line in listed.items() if name not in found]
    if len(unknown) == len(listed):
        raise DataError(f"{path}: none of its {len(listed)} rows is in the data. Is it the list of another data set?")
    if unknown:
        print(f"{path}: {len(unknown)} of its {len(listed)} rows are not in the data, such as: {unknown[0]}")
    if empty := [split for split, rows in splits.items() if rows and not kept[split]]:
        raise DataError(f"{path}: it names every row of the split {empty[0]}, so none would be left there")
    return kept, sum(map(len, splits.values())) - sum(map(len, kept.values()))
