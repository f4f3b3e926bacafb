"""Where labelled rows come from: local files, or sets on the Hugging Face hub."""

import glob
from collections.abc import Iterable
from pathlib import Path

from common.conversation import DataError
from common.parquet import column_names

LOCAL_FORMS = {".parquet": "parquet", ".json": "json", ".jsonl": "json"}


def load_source(path: str, split: str, **options: str) -> Iterable[dict]:
    """Return the rows of a local .parquet, .json, .jsonl (also gzipped) file or of a set on the Hugging Face hub.

    Args:
        path: a file, a folder of files of one form, or a hub id.
        split, options: of a hub set; see `datasets.load_dataset`.

    Raises:
        DataError: the path does not exist, holds nothing or cannot be read, or the hub cannot be reached.
    """
    import datasets

    try:
        if files := local_files(path):
            # a name with brackets would be taken for a pattern
            escaped = [glob.escape(str(file)) for file in files]
            return datasets.load_dataset(form_of(files[0]), data_files=escaped, split="train")
        return datasets.load_dataset(path, split=split, **options)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read: {error.__cause__ or error}") from error


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
            raise DataError(f"{path}: expected a folder of .parquet, .json or .jsonl files of one kind; found {found}")
    elif place.is_file():
        files = [place]
        if not form_of(place):
            raise DataError(f"{path}: expected a .parquet, .json or .jsonl file")
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
