"""Files that appear whole or not at all, and digests to know them again: after a crash no half file is found."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a place beside `path` to write to, which then becomes `path`; after an error `path` is as it was."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with open(partial, "rb") as written:  # or a power cut may leave the name without the content
            os.fsync(written.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def said_of_earlier(file: Path) -> str:
    """Return what the user is told if an evaluation is about to replace an earlier one, else nothing."""
    return " in place of an earlier evaluation (--output FOLDER keeps both)" if file.is_file() else ""


def tails_digest(files: Iterable[Path]) -> str:
    """Hash the size and the last megabyte of each file: this tells trained models apart, and is cheap."""
    total = hashlib.sha256()
    for file in sorted(files):
        with file.open("rb") as content:
            content.seek(max(0, file.stat().st_size - 2**20))
            total.update(file.stat().st_size.to_bytes(8, "little") + content.read())
    return total.hexdigest()[:12]


def content_digest(file: Path) -> str:
    """Hash a whole file: tables may differ in any row."""
    total = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(2**20):
            total.update(block)
    return total.hexdigest()[:12]


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
