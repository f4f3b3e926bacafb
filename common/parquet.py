"""Labelled rows in and out of Parquet: read, check every row, split by prompt, write.

- Rows are checked before Ray or a model starts. One message reports all bad rows: the first few by file and row number,
  then a count of each kind. `on_bad_row="drop"` drops them and says how many.
- Files are read by pyarrow into plain Python. pandas would turn a native list into a numpy array, for which
  `isinstance(value, list)` is false, and a reader that asks so then trains on empty text.
- A split is made by prompt, never by row. Two answers to one prompt on two sides of a split leak the test.
- A file is written beside its place and then moved there, so a reader never sees half of one.
"""

import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from common.conversation import BadRow, DataError
from common.files import write_text, written_whole

BAD_ROWS_SHOWN = 5
ROW_GROUP = 10_000  # rows; nested columns of more than 2 GB in one group cannot be read


def read_rows(
    files: str | Path | Iterable[str | Path],
    required: tuple[str, ...] | Callable[[list[str]], tuple[str, ...]],
    optional: tuple[str, ...] = (),
    check: Callable[[dict], dict] = lambda row: row,
    on_bad_row: str = "error",
) -> tuple[list[dict], Counter]:
    """Read Parquet files and pass every row through `check`.

    Args:
        files: one path, several, or a comma-separated string of paths.
        required, optional: columns to read; a missing optional column is left out of the rows. What is required may
            be a function of the file's columns.
        check: returns the cleaned row or raises `BadRow`.
        on_bad_row: "error" or "drop".

    Returns:
        The good rows in file order, each with its origin under "source" ("train.parquet row 17", counted from 0),
        and how many rows of each kind of fault were dropped.

    Raises:
        DataError: missing file, not Parquet, missing column, bad rows with on_bad_row="error", no usable row.
    """
    paths = [Path(path) for path in _as_list(files)]
    names = {path: path.name for path in paths}
    if len(set(names.values())) < len(paths):  # a/test.parquet and b/test.parquet
        names = {path: str(path) for path in paths}
    rows = [
        {**values, "source": f"{names[path]} row {number}"}
        for path in paths
        for number, values in enumerate(_read_columns(path, required, optional))
    ]
    rows, dropped = check_rows(rows, check, on_bad_row)
    if not rows:
        raise DataError(f"{', '.join(map(str, paths))}: no usable row{fate_of(dropped)}")
    return rows, dropped


def check_rows(rows: list[dict], check: Callable[[dict], dict], on_bad_row: str) -> tuple[list[dict], Counter]:
    """Pass every row through `check`; raise one `DataError` for all bad rows, or drop and count them."""
    if on_bad_row not in ("error", "drop"):
        raise DataError(f"data.on_bad_row={on_bad_row!r}: expected 'error' or 'drop'")
    good, faults = [], []
    for row in rows:
        try:
            good.append({**check(row), "source": row["source"]})
        except BadRow as fault:
            faults.append((row["source"], fault))
    kinds = Counter(f"column '{fault.column}': {fault.kind}" for _, fault in faults)
    if faults and on_bad_row == "error":
        raise DataError(_report_bad_rows(len(rows), faults, kinds))
    return good, kinds


def _as_list(files) -> list:
    if isinstance(files, str):
        return [part.strip() for part in files.split(",")]
    return [files] if isinstance(files, Path) else list(files)


def column_names(path: Path) -> list[str]:
    """Return the names of a Parquet file's columns; raise `DataError` if it is not one."""
    if not path.is_file():
        raise DataError(
            f"{path}: no such file (looked in {Path.cwd()}). Make one with prepare_data.py, or correct the path."
        )
    try:
        return pq.read_schema(path).names
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a Parquet file ({error}). Convert it with prepare_data.py.") from error


def _read_columns(path: Path, required, optional: tuple[str, ...]) -> list[dict]:
    names = column_names(path)
    required = required(names) if callable(required) else required
    missing = [name for name in required if name not in names]
    if missing:
        raise DataError(
            f"{path}: column {', '.join(map(repr, missing))} is missing; the file has "
            f"{', '.join(map(repr, names))}. Rename the column or convert the file with prepare_data.py."
        )
    try:
        return pq.read_table(path, columns=[name for name in (*required, *optional) if name in names]).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read to its end ({error}). Write it again.") from error


def _report_bad_rows(total: int, faults: list[tuple[str, BadRow]], kinds: Counter) -> str:
    shown = [
        f"  {source}, column '{fault.column}': {fault.kind}{fault.found}" for source, fault in faults[:BAD_ROWS_SHOWN]
    ]
    more = [f"  … and {len(faults) - BAD_ROWS_SHOWN} more"] if len(faults) > BAD_ROWS_SHOWN else []
    head, counts = f"{len(faults)} of {total} rows cannot be used:", f"In all: {list_counts(kinds)}."
    remedy = "Fix these rows, or drop them with data.on_bad_row=drop (--on-bad-row drop, on_bad_row='drop')."
    return "\n".join([head, *shown, *more, counts, remedy])


def fate_of(dropped: Counter) -> str:
    """Return how a message ends that no row is left: what was dropped, if anything."""
    return f": all were dropped ({list_counts(dropped)})" if dropped else " in it"


def list_counts(kinds: Counter) -> str:
    """Return counts as text, the largest first: "3 x ties; 1 x empty response"."""
    return "; ".join(f"{count} x {kind}" for kind, count in kinds.most_common())


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


def report_leak(
    train_rows: list[dict], name: str, rows: list[dict], unit: str, prompt_of: Callable[[dict], str]
) -> None:
    """Print a warning if a held-out prompt is also a training prompt; `unit` is what the method calls a row."""
    seen = {prompt_of(row) for row in train_rows}
    leaked = sum(prompt_of(row) in seen for row in rows)
    if leaked:
        print(f"  warning: the prompts of {leaked} {name} {unit} are also in train; {name} figures flatter the model")


def write_rows(path: str | Path, rows: list[dict]) -> Path:
    """Write rows as .parquet, .jsonl or .json, by the path's ending; the file appears whole or not at all.

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
