"""What a judge judges by: from a file of the user's, and in the folder of a judge that was trained by it.

Stands apart from prompts.py, which needs a tokenizer: who prepares data waits for no model's libraries.
"""

from pathlib import Path

from common.conversation import DataError
from common.files import write_text

RUBRIC_FILE = "rubric.txt"


def read_rubric(path: Path | None) -> str | None:
    """Return the text of a file that says what to judge by; None if there is no path.

    Raises:
        DataError: there is no such file, or it is empty.
    """
    if path is None:
        return None
    rubric = path.read_text("utf-8").strip() if path.is_file() else ""
    if not rubric:
        raise DataError(f"{path}: no such file, or nothing in it (looked in {Path.cwd()})")
    return rubric


def store_rubric(folders: list[Path], rows: list[dict]) -> None:
    """Leave in a judge's folders the rubric that it was trained by, if there was one, for those who ask it later."""
    rubrics = {row["rubric"] for row in rows}
    if len(rubrics) == 1 and None not in rubrics:
        rubric = rubrics.pop()
        for folder in folders:
            write_text(folder / RUBRIC_FILE, rubric)
        return
    why = "are of several rubrics" if len(rubrics) > 1 else "do not say by which rubric they were written"
    print(f"the training prompts {why}, so {folders[0].name} holds no rubric for graders: give them rubric=…")


def read_stored_rubric(folder: str | None) -> str | None:
    """Return the rubric that the judge in a checkpoint's folder was trained by, if its run left it there."""
    path = Path(folder) / RUBRIC_FILE if folder else None
    return path.read_bytes().decode() if path and path.is_file() else None
