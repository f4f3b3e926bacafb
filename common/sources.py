"""Where labelled rows come from: local files, or sets on the Hugging Face hub."""

import glob
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from common.conversation import DataError
from common.parquet import column_names, datasets_of, named_twice

LOCAL_FORMS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
LONGEST_ROW = 2**26  # bytes, in a .csv file
FORMS = ".parquet, .json, .jsonl or .csv"


def load_source(
    path: str, split: str, renamed: Iterable[str] = (), numbers: Iterable[str] = (), **options: str
) -> Iterable[dict]:
    """Return the rows of a local .parquet, .json, .jsonl, .csv (also gzipped) file or of a set on the Hugging Face hub.

    Args:
        path: a file, a folder of files of one form, or a hub id.
        renamed: "NAME=THEIRS": the column that the data calls THEIRS is called NAME in the rows.
        numbers: columns, by their names in the rows, that hold numbers in a .csv file. All others are text there: an
            answer may be "7", "NA" or "true".
        split, options: of a hub set; see `datasets.load_dataset`.

    Raises:
        DataError: the path does not exist, holds nothing or cannot be read, the hub cannot be reached, or `renamed`
            does not fit the columns.
    """
    import datasets

    theirs = read_names(renamed)
    try:
        files = local_files(path)
        if files and form_of(files[0]) == "csv":
            table = read_csv(files, {theirs.get(name, name) for name in numbers})
            return table.rename_columns(new_names(table.column_names, theirs, path)).to_pylist()
        if files:
            # a name with brackets would be taken for a pattern
            escaped = [glob.escape(str(file)) for file in files]
            rows = datasets.load_dataset(form_of(files[0]), data_files=escaped, split="train")
        else:
            rows = datasets.load_dataset(path, split=split, **options)
    except (OSError, ValueError, pa.ArrowException, datasets.exceptions.DatasetGenerationError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read: {error.__cause__ or error}") from error
    names = rows.column_names
    return rows.rename_columns(dict(zip(names, new_names(names, theirs, path))))


def sets_of(path: str) -> set[str]:
    """Return which sets of the hub the rows of `load_source` come from: itself, or what a Parquet file notes."""
    files = local_files(path)
    if not files:
        return {path}
    return datasets_of(files) if form_of(files[0]) == "parquet" else set()


def check_demo(source: str, path: str | None, renamed: Iterable[str], without: Iterable[str]) -> None:
    """Raise `DataError` if rows are named for the demo, which makes its own."""
    if source == "demo" and (path or renamed or without):
        raise DataError(
            "--source demo makes its own rows: leave out --path, --columns and --without, or choose another --source"
        )


def read_names(renamed: Iterable[str]) -> dict[str, str]:
    """Return what a column is called in the data, by its name in the rows, from words like "chosen=better"."""
    pairs = [word.partition("=") for word in renamed]
    if wrong := ["".join(parts) for parts in pairs if not all(parts)]:
        raise DataError(f"--columns {' '.join(wrong)}: expected NAME=THEIRS, such as chosen=better")
    for side in (0, 2):
        if twice := named_twice(parts[side] for parts in pairs):
            raise DataError(f"--columns names {', '.join(twice)} twice")
    return {name: called for name, _, called in pairs}


def new_names(names: list[str], theirs: dict[str, str], path: str) -> list[str]:
    """Return the columns' names in the rows; raise `DataError` if one to rename is missing, or its name is taken."""
    if missing := sorted(set(theirs.values()) - set(names)):
        raise DataError(f"--columns: {path} has no column {', '.join(missing)}; it has {', '.join(names)}")
    if taken := sorted(set(theirs) & set(names) - set(theirs.values())):
        raise DataError(f"--columns: {path} has a column {', '.join(taken)} already. Give that one another name too.")
    ours = {called: name for name, called in theirs.items()}
    return [ours.get(name, name) for name in names]


def read_csv(files: list[Path], numbers: set[str]) -> pa.Table:
    """Return the rows of comma-separated files with a header. Line breaks may stand in quotes; an empty cell is ""."""
    read, parse = pa.csv.ReadOptions(block_size=LONGEST_ROW), pa.csv.ParseOptions(newlines_in_values=True)
    tables = []
    for file in files:
        with pa.csv.open_csv(file, read, parse) as opened:
            text = [name for name in opened.schema.names if name not in numbers]
        convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(text, pa.string()), null_values=[""])
        tables.append(pa.csv.read_csv(file, read, parse, convert))
        if doubled := named_twice(tables[-1].column_names):
            raise DataError(
                f"{file}: more than one column is called {', '.join(doubled)}. Rename or take out the others."
            )
    return pa.concat_tables(tables, promote_options="permissive")


def form_of(file: Path) -> str | None:
    """Return what kind of file it is, by the ending of its name; None if it holds no rows."""
    return LOCAL_FORMS.get(Path(file.name.removesuffix(".gz")).suffix)


def local_files(path: str) -> list[Path]:
    """Return the files that a path names: itself, or those in a folder, at any depth. None of a hub id.

    Raises:
        DataError: no such file, another kind of file, files of several kinds, or an empty file.
    """
    place = Path(path)
    if place.is_dir():
        files = sorted(file for file in place.rglob("*") if form_of(file) and not file.name.startswith((".", "_")))
        if len(forms := {form_of(file) for file in files}) != 1:
            found = " and ".join(sorted(forms)) or "none"
            raise DataError(f"{path}: expected a folder of {FORMS} files of one kind; found {found}")
    elif place.is_file():
        files = [place]
        if not form_of(place):
            raise DataError(f"{path}: expected a {FORMS} file")
    elif form_of(place) or path.startswith((".", "/")):  # not a hub id: do not wait for the network
        raise DataError(f"{path}: no such file (looked in {Path.cwd()})")
    else:
        return []
    files = [file for file in files if file.stat().st_size]
    if not files:
        raise DataError(f"{path}: the file is empty")
    if form_of(files[0]) == "parquet":
        for file in files:
            column_names(file)
    return files
