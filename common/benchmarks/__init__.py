"""The benchmarks that every reward model is asked for, by their authors' rules: `read_questions(name, path)`.

A benchmark's module knows its files and its rule; the rest of this room is what all of them share.
"""

from pathlib import Path

from common.benchmarks import judgebench, llmbar, rewardbench2, rm_bench, rmb
from common.benchmarks.benchmark import Benchmark
from common.benchmarks.questions import Question
from common.conversation import DataError

MODULES = (rewardbench2, rm_bench, judgebench, rmb, llmbar)
BENCHMARKS: dict[str, Benchmark] = {module.BENCHMARK.name: module.BENCHMARK for module in MODULES}


def read_questions(name: str, path: str | Path | None = None) -> list[Question]:
    """Return all questions of a benchmark, those of a file or folder or by default of its public home.

    Raises:
        DataError: no such benchmark; no such path; the home cannot be reached, or has to be downloaded by hand; or
            rows that are not as the benchmark's authors publish them, all of them in one report.
    """
    if name not in BENCHMARKS:
        raise DataError(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name].read(path)
