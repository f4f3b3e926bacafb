"""Where labelled rows come from: local files, or sets on the Hugging Face hub."""

from collections.abc import Iterable
from pathlib import Path

from common.conversation import DataError

LOCAL_FORMS = {".parquet": "parquet", ".json": "json", ".jsonl": "json"}


def load_source(path: str, split: str, **options: str) -> Iterable[dict]:
    """Return the rows of a local .parquet, .json, .jsonl (also gzipped) file or of a set on the Hugging Face hub.

    Args:
        split, options: of a hub set; see `datasets.load_dataset`.

    Raises:
        DataError: the path does not exist, or the hub cannot be reached.
    """
    import datasets

    form = LOCAL_FORMS.get(Path(path.removesuffix(".gz")).suffix)
    is_file = Path(path).is_file()
    if is_file and not form:
        raise DataError(f"{path}: expected a .parquet, .json or .jsonl file")
    if not is_file and (form or path.startswith((".", "/"))):  # not a hub id: do not wait for the network
        raise DataError(f"{path}: no such file (looked in {Path.cwd()})")
    try:
        if is_file:
            return datasets.load_dataset(form, data_files=path, split="train")
        return datasets.load_dataset(path, split=split, **options)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise DataError(f"{path}: cannot be read: {error.__cause__ or error}") from error
