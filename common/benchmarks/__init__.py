"""The benchmarks that every reward model is asked for, by their authors' rules: `read_questions(name, path)`.

A benchmark's module knows its files and its rule; the rest of this room is what all of them share.
"""

from pathlib import Path

from common.conversation import DataError

from . import judgebench, llmbar, rewardbench2, rm_bench, rmb
from .questions import Question

BENCHMARKS = {
    "rewardbench2": rewardbench2,
    "rm_bench": rm_bench,
    "judgebench": judgebench,
    "rmb": rmb,
    "llmbar": llmbar,
}


def read_questions(name: str, path: str | Path | None = None) -> list[Question]:
    """Return all questions of a benchmark, those of a file or folder or by default of its public home.

    Raises:
        DataError: no such benchmark; no such path; the home cannot be reached, or has to be downloaded by hand; or
            rows that are not as the benchmark's authors publish them, all of them in one report.
    """
    if name not in BENCHMARKS:
        raise DataError(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name].read(path)
