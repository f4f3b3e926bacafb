"""Labelled rows in and out of Parquet: read, check every row, split by prompt, write.

- Rows are checked before Ray or a model starts. One message reports all bad rows: the first few by file and row number,
  then a count of each kind. `on_bad_row="drop"` drops them and says how many.
- Files are read by pyarrow into plain Python. pandas would turn a native list into a numpy array, for which
  `isinstance(value, list)` is false, and a reader that asks so then trains on empty text.
- A split is made by prompt, never by row. Two answers to one prompt on two sides of a split leak the test.
- A file is written beside its place and then moved there, so a reader never sees half of one.
- What is in a file and is not read is named: a column `tools` that nobody looks at may be the point of the data.
"""

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from common.conversation import BadRow, DataError, unwrap
from common.files import write_text, written_whole

BAD_ROWS_SHOWN = 5
ROW_GROUP = 10_000  # rows; nested columns of more than 2 GB in one group cannot be read
DATASETS = b"reward_recipes.datasets"  # a note beside the columns
ROWS_LOOKED_THROUGH = 1000  # for fields of messages that are not read
Columns = tuple[str, ...] | Callable[[list[str]], tuple[str, ...]]


class Faults(list[str]):
    """All that is wrong with a run's input, so that one message says it, of all files and of every kind."""

    @contextmanager
    def gathered(self, place: str = "") -> Iterator[None]:
        """Gather an error that ends the reading of one file, so that the other files are read too.

        Args:
            place: stands before the error.
        """
        try:
            yield
        except DataError as error:
            self.append(f"{place}{error}")

    def raise_all(self) -> None:
        """Raise one `DataError`, if there is any fault."""
        if self:
            raise DataError("\n\n".join(self))


def report_fault(message: str, faults: Faults | None) -> None:
    """Gather a fault, or raise it as a `DataError` if nobody gathers."""
    if faults is None:
        raise DataError(message)
    faults.append(message)


def read_rows(
    files: str | Path | Iterable[str | Path],
    required: Columns,
    optional: Columns = (),
    check: Callable[[dict], dict] = lambda row: row,
    on_bad_row: str = "error",
    faults: Faults | None = None,
    message_fields: tuple[str, ...] = (),
) -> tuple[list[dict], Counter]:
    """Read Parquet files and pass every row through `check`. Columns that are not read are named.

    Args:
        files: a file or a folder of them, several, or a comma-separated string of these.
        required, optional: columns to read; a missing optional column is left out of the rows. Each may be a function
            of the file's columns.
        check: returns the cleaned row or raises `BadRow`.
        on_bad_row: "error" or "drop".
        faults: gathers bad rows, and the good ones are returned; None: bad rows are raised.
        message_fields: fields of messages that `check` reads beside role and content.

    Returns:
        The good rows in file order, each with its origin under "source" ("train.parquet row 17", counted from 0),
        and how many rows of each kind of fault were dropped.

    Raises:
        DataError: missing file, not Parquet, missing or doubled column, bad rows with on_bad_row="error", no usable
            row.
    """
    paths = expand_paths(files)
    names = short_names(paths)
    rows, unread = [], {}
    for path in paths:
        columns, left = _choose_columns(path, required, optional)
        read = _read_columns(path, columns)
        left += [f"{field} (of messages)" for field in unread_fields(read, columns, message_fields)]
        unread.setdefault(tuple(left), names[path])
        rows += [{**values, "source": f"{names[path]} row {number}"} for number, values in enumerate(read)]
    for left, name in unread.items():
        if left:
            print(f"{name}: not read, so no model sees it: {', '.join(left)}")
    rows, dropped = check_rows(rows, check, on_bad_row, faults)
    if not rows and not faults:
        raise DataError(f"{', '.join(map(str, paths))}: no usable row{fate_of(dropped)}")
    return rows, dropped


def check_rows(
    rows: list[dict], check: Callable[[dict], dict], on_bad_row: str, faults: Faults | None = None
) -> tuple[list[dict], Counter]:
    """Pass every row through `check`. Report all bad rows in one message, or drop and count them.

    Returns:
        The good rows, and how many rows of each kind of fault were dropped.

    Raises:
        DataError: bad rows with on_bad_row="error", unless `faults` gathers them.
    """
    if on_bad_row not in ("error", "drop"):
        raise DataError(f"data.on_bad_row={on_bad_row!r}: expected 'error' or 'drop'")
    good, bad = [], []
    for row in rows:
        try:
            good.append({**check(row), "source": row["source"]})
        except BadRow as fault:
            bad.append((row["source"], fault))
    kinds = Counter(f"column '{fault.column}': {fault.kind}" for _, fault in bad)
    if bad and on_bad_row == "error":
        report_fault(_report_bad_rows(len(rows), bad, kinds), faults)
        return good, Counter()
    return good, kinds


def named_paths(files: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return paths that are named by one, by several with commas between them, or by a list."""
    if isinstance(files, str):
        files = [files] if os.path.exists(files) else [part.strip() for part in files.split(",")]
    return [files] if isinstance(files, Path) else [*map(Path, files)]


def expand_paths(files: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return the paths that are named; a folder stands for all Parquet files in it, at any depth.

    Raises:
        DataError: a folder without a Parquet file.
    """
    paths = []
    for path in named_paths(files):
        if path.is_dir():
            inside = sorted(found for found in path.rglob("*.parquet") if not found.name.startswith((".", "_")))
            if not inside:
                raise DataError(f"{path}: a folder without any .parquet file. Name the folder that holds the files.")
            paths += inside
        else:
            paths.append(path)
    return paths


def short_names(paths: Iterable[Path]) -> dict[Path, str]:
    """Return how rows of these files are told apart: by the file's name, and as many folders as that needs."""
    distinct = list(dict.fromkeys(paths))
    for kept in range(1, max((len(path.parts) for path in distinct), default=1)):
        names = {path: "/".join(path.parts[-kept:]) for path in distinct}
        if not named_twice(names.values()):  # a/test.parquet and b/test.parquet need one folder
            return names
    return {path: str(path) for path in distinct}


def datasets_of(files: str | Path | Iterable[str | Path]) -> set[str]:
    """Return which sets of the Hugging Face hub Parquet files were made from, as far as `write_rows` noted it."""
    notes = [(pq.read_schema(path).metadata or {}).get(DATASETS, b"[]") for path in expand_paths(files)]
    return {name for note in notes for name in json.loads(note)}


def column_names(path: Path) -> list[str]:
    """Return the names of a Parquet file's columns.

    Raises:
        DataError: no such file, not Parquet, or two columns of one name.
    """
    if not path.is_file():
        raise DataError(
            f"{path}: no such file (looked in {Path.cwd()}). Make one with prepare_data.py, or correct the path."
        )
    try:
        names = pq.read_schema(path).names
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a Parquet file ({error}). Convert it with prepare_data.py.") from error
    if doubled := named_twice(names):
        called = ", ".join(map(repr, doubled))
        raise DataError(f"{path}: more than one column is called {called}. Rename or take out the others.")
    return names


def named_twice(names: Iterable[str]) -> list[str]:
    """Return the names that come more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def _choose_columns(path: Path, required: Columns, optional: Columns) -> tuple[list[str], list[str]]:
    """Return which columns of a file are read, and which are not."""
    names = column_names(path)
    required, optional = (columns(names) if callable(columns) else columns for columns in (required, optional))
    missing = [name for name in required if name not in names]
    if missing:
        raise DataError(
            f"{path}: column {', '.join(map(repr, missing))} is missing; the file has "
            f"{', '.join(map(repr, names))}. Rename the column or convert the file with prepare_data.py."
        )
    return [name for name in names if name in required or name in optional], [
        name for name in names if name not in required and name not in optional
    ]


def _read_columns(path: Path, columns: list[str]) -> list[dict]:
    try:  # the file alone: pq.read_table would add what the names of its folders say (lang=de/)
        return pq.ParquetFile(path).read(columns).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read to its end ({error}). Write it again.") from error


def report_unread(rows: list[dict], read: Iterable[str], message_fields: Iterable[str] = ()) -> None:
    """Name the columns of rows, and the fields of their messages, that are neither read nor written anywhere.

    Args:
        read: columns that are read.
        message_fields: fields of messages that are read beside role and content.
    """
    columns = {name: None for row in rows[:ROWS_LOOKED_THROUGH] for name in row}
    left = [name for name in columns if name not in read]
    fields = unread_fields(rows, [name for name in columns if name in read], message_fields)
    if left := left + [f"{field} (of messages)" for field in fields]:
        print(f"not read, so no model sees it: {', '.join(left)}")


def unread_fields(rows: list[dict], columns: Iterable[str], read: Iterable[str]) -> list[str]:
    """Return the fields of messages, beside role, content and those read, that say something in the first rows."""
    found = set()
    for row in rows[:ROWS_LOOKED_THROUGH]:
        for column in columns:
            try:
                messages = unwrap(column, row.get(column))
            except BadRow:  # reported when the row is checked
                continue
            for message in messages if isinstance(messages, list) else ():
                if isinstance(message, dict) and "role" in message:
                    found |= {field for field, value in message.items() if value not in (None, "", [], {})}
    return sorted(found - {"role", "content", *read})


def _report_bad_rows(total: int, bad: list[tuple[str, BadRow]], kinds: Counter) -> str:
    shown = [f"  {source}, {fault.in_column}" for source, fault in bad[:BAD_ROWS_SHOWN]]
    more = [f"  … and {len(bad) - BAD_ROWS_SHOWN} more"] if len(bad) > BAD_ROWS_SHOWN else []
    head, counts = f"{len(bad)} of {total} rows cannot be used:", f"In all: {list_counts(kinds)}."
    remedy = "Fix these rows, or drop them with data.on_bad_row=drop (--on-bad-row drop, on_bad_row='drop')."
    if len(bad) == total > 1:
        remedy = "Not one row can be used: is this the right file? For prepare_data: is --source right?"
    return "\n".join([head, *shown, *more, counts, remedy])


def fate_of(dropped: Counter) -> str:
    """Return how a message ends that no row is left: what was dropped, if anything."""
    return f": all were dropped ({list_counts(dropped)})" if dropped else " in it"


def list_counts(kinds: Counter) -> str:
    """Return counts as text, the largest first: "3 x ties; 1 x empty response"."""
    return "; ".join(f"{count} x {kind}" for kind, count in kinds.most_common())


def left_out_figures(left_out_of: dict[str, Counter]) -> dict[str, str]:
    """Return what stands beside the figures of held-out rows if some of these were left out: of how many they are."""
    return {
        f"{name}/left_out_or_cut": f"{counts.total()} rows: {list_counts(counts)}"
        for name, counts in left_out_of.items()
        if counts and name != "train"
    }


def split_by_prompt(
    rows: list[dict], split_ratio: dict[str, float], seed: int, prompt_of: Callable[[dict], str]
) -> dict[str, list[dict]]:
    """Divide rows so that no prompt is in two splits. Sizes follow `split_ratio` as nearly as whole prompts allow.

    Args:
        prompt_of: what a row answers, as text; rows of the same text stay together.

    Raises:
        DataError: ratios that do not sum to 1, or fewer prompts than splits.
    """
    if any(share <= 0 for share in split_ratio.values()) or abs(sum(split_ratio.values()) - 1) > 1e-6:
        raise DataError(f"split_ratio {split_ratio}: expected positive shares that sum to 1")
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(prompt_of(row), []).append(row)
    if len(groups) < len(split_ratio):
        raise DataError(f"{len(groups)} different prompts cannot fill {len(split_ratio)} splits")

    # 1. Shuffle the prompts. A hash is the same in every run, whatever the order of the rows.
    waiting = deque(sorted(groups, key=lambda prompt: hashlib.sha256(f"{seed}:{prompt}".encode()).digest()))

    # 2. Fill one split after another.
    splits: dict[str, list[dict]] = {name: [] for name in split_ratio}
    placed, wanted, splits_after = 0, 0.0, len(split_ratio)
    for name, share in split_ratio.items():
        wanted += share * len(rows)
        splits_after -= 1
        while len(waiting) > splits_after:  # each later split gets one prompt at least
            group = groups[waiting[0]]
            is_full = placed + len(group) / 2 >= wanted  # half of the next group or more would be too much
            if is_full and splits[name] and splits_after:
                break
            splits[name] += groups[waiting.popleft()]
            placed += len(group)
    return splits


def write_rows(path: str | Path, rows: list[dict], datasets: Iterable[str] = ()) -> Path:
    """Write rows as .parquet, .jsonl or .json, by the path's ending; the file appears whole or not at all.

    Args:
        datasets: sets of the hub that the rows come from, noted in Parquet for the model card.

    Raises:
        DataError: no rows, rows with different columns, values that share no Parquet type, an unknown ending.
    """
    path = Path(path)
    if not rows:
        raise DataError(f"{path}: there is no row to write")
    odd = next((number for number, row in enumerate(rows) if row.keys() != rows[0].keys()), None)
    if odd is not None:
        raise DataError(f"{path}: row {odd} has columns {list(rows[odd])}, row 0 has {list(rows[0])}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        try:
            table = pa.Table.from_pylist(rows)
            if datasets:
                table = table.replace_schema_metadata({DATASETS: json.dumps(sorted(datasets))})
            with written_whole(path) as partial:
                pq.write_table(table, partial, row_group_size=ROW_GROUP)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
            raise DataError(f"{path}: the rows share no Parquet type: {error}") from error
    elif path.suffix == ".jsonl":
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    elif path.suffix == ".json":
        write_text(path, json.dumps(rows, ensure_ascii=False, indent=1))
    else:
        raise DataError(f"{path}: unknown format {path.suffix!r}, expected .parquet, .jsonl or .json")
    return path


def export_data(
    eval_cases: list[dict],
    output_dir: str | Path,
    formats: Iterable[str] = ("parquet",),
    split_ratio: dict[str, float] | None = None,
    seed: int = 0,
    on_bad_row: str = "error",
) -> dict[str, dict[str, list[Path]]]:
    """Write evaluation cases as training data of every kind that they can make. See `common.cases.export_cases`."""
    from common.cases import export_cases  # only here: who reads rows does not need it

    return export_cases(eval_cases, output_dir, formats, split_ratio, seed, on_bad_row)
