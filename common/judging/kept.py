"""A judge's answers kept as they come, so that a command that was killed asks for none of them a second time.

A folder holds one file, answers.jsonl. Its first line says what the run is; every other line is an answer and its
number, and its tokens if they were counted. Lines are appended, and the file is closed after each. A kill leaves half a
line at most, which is cut off at the next start. After a power cut lines may be missing, and are asked for again.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from common.conversation import DataError
from common.files import write_text
from common.generation import Answer

FILE = "answers.jsonl"


@contextmanager
def kept_answers(folder: Path, run: dict) -> Iterator["KeptAnswers"]:
    """Yield the answers of a run in a folder, and keep other commands out of it meanwhile.

    Raises:
        DataError: another command is writing there, or the folder holds the answers of another run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    claim = FileLock(folder / ".claimed")
    try:
        claim.acquire(blocking=False)
    except Timeout:
        raise DataError(f"another command is writing to {folder}. Wait for it, or choose another --output.") from None
    with claim:
        yield KeptAnswers(folder, run)


class KeptAnswers:
    """The answers of a run in a folder: those that are known, by number, and a place for the next one."""

    def __init__(self, folder: Path, run: dict):
        """Open a folder. `run` is what must be equal for its answers to count: JSON's types.

        Raises:
            DataError: the folder holds the answers of another run.
        """
        self.path, self.known = folder / FILE, {}
        if not self.path.exists():
            write_text(self.path, json.dumps(run) + "\n")
        text = self.path.read_bytes()
        whole, _, _ = text.rpartition(b"\n")
        first, *lines = whole.split(b"\n")
        earlier = json.loads(first)
        changed = [name for name in run if earlier.get(name) != run[name]]
        if changed and not lines:  # a command that had to stop before its first answer
            write_text(self.path, json.dumps(run) + "\n")
            return
        if changed:
            found = "; ".join(f"{name}: {earlier.get(name)} there, {run[name]} here" for name in changed)
            raise DataError(f"{self.path} holds another run, different in {found}. Choose another --output.")
        if len(whole) + 1 < len(text):
            os.truncate(self.path, len(whole) + 1)
        for number, content, clipped, *usage in map(json.loads, lines):
            self.known[number] = Answer(content, clipped)
            self.known[number].usage = tuple(usage) or None

    def keep(self, number: int, answer: Answer) -> None:
        """Add an answer."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps([number, str(answer), answer.clipped, *(answer.usage or ())]) + "\n")
        self.known[number] = answer
