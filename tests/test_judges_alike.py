"""The two judges' folders are read by `diff`: what is the same in both is the same text, the rest is aligned.

Each folder is whole, so that a copy of it can be changed alone. What both need is therefore written twice, and these
tests keep the two from drifting apart. If one fails, make the same change in the other folder, or take the function off
the list and say why the judges differ there.
"""

import ast
import difflib
import importlib
import inspect
import textwrap

import pytest
from conftest import REPO

from common.demo.transcripts import comparing, scoring
from common.demo.world import PREFERENCE_RUBRIC, SCORE_RUBRIC, pairwise_rows, pointwise_rows
from generative_pairwise import prompt as pairwise
from generative_pointwise import prompt as pointwise

JUDGES = ("generative_pointwise", "generative_pairwise")
EQUAL = [
    "prompt.read_reasoning",
    "dataset.required_columns",
    "dataset.report_rows",
    "train.main",
    "train.show_first",
    "train.read_data",
    "train.identity",
]
EQUAL_BUT_FOR_THE_DOCSTRING = ["dataset.prompt_of"]
ALIGNED = {  # how many lines one has that the other lacks in this place, at most
    "prompt.parse": 12,  # score or preference, in words and in the tag
    "prompt.ask": 7,  # one response or two
    "dataset.load_rows": 8,  # a pair is two rows
    "dataset.write_for_verl": 7,  # its order and strength
    "benchmark.main": 4,  # its description; which answers are compared depends on the benchmark
    "train.train": 5,  # check_strength, the page's title, verdicts of the swapped order
    "train.write_report": 5,  # the card's words, and one panel more
}


def sources(name: str) -> list[str]:
    """A function's text in both folders."""
    module, function = name.split(".")
    return [inspect.getsource(getattr(importlib.import_module(f"{judge}.{module}"), function)) for judge in JUDGES]


def different_lines(first: list[str], second: list[str]) -> int:
    return sum(line[0] in "-+" for line in difflib.ndiff(first, second))


def code(source: str) -> str:
    """A function without its docstring."""
    function = ast.parse(textwrap.dedent(source)).body[0]
    assert ast.get_docstring(function)
    function.body = function.body[1:]
    return ast.dump(function)


@pytest.mark.parametrize("name", EQUAL)
def test_functions_that_must_be_equal_are(name):
    first, second = sources(name)
    assert first == second


@pytest.mark.parametrize("name", EQUAL_BUT_FOR_THE_DOCSTRING)
def test_functions_with_the_same_code_have_docstrings_of_their_own(name):
    first, second = sources(name)
    assert code(first) == code(second) and first != second


@pytest.mark.parametrize("name", ALIGNED)
def test_functions_that_differ_stay_line_aligned(name):
    first, second = (source.splitlines() for source in sources(name))
    assert different_lines(first, second) <= ALIGNED[name]


@pytest.mark.parametrize(
    ("names", "least"),
    [
        (("train.py", "train.py"), 0.9),
        (("run_pointwise.sh", "run_pairwise.sh"), 0.85),
        (("config.yaml", "config.yaml"), 0.9),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_whole_files_are_mostly_equal_lines_in_the_same_order(names, least):
    first, second = ((REPO / judge / name).read_text().splitlines() for judge, name in zip(JUDGES, names))
    assert difflib.SequenceMatcher(None, first, second, autojunk=False).ratio() > least


def test_all_modules_and_their_shared_functions_stand_in_the_same_order():
    """Functions that both have are in the same order in both files; only pairwise has files of its own."""
    files = [{path.name for path in (REPO / judge).glob("*.py")} for judge in JUDGES]
    assert files[1] - files[0] == {"rank.py", "win_rates.py"} and files[0] <= files[1]
    for file in files[0]:
        trees = [ast.parse((REPO / judge / file).read_text()) for judge in JUDGES]
        names = [[node.name for node in tree.body if isinstance(node, ast.FunctionDef)] for tree in trees]
        shared = set(names[0]) & set(names[1])
        assert [name for name in names[0] if name in shared] == [name for name in names[1] if name in shared], file


def test_the_demos_conversations_are_those_of_the_judges_prompts():
    """common/demo knows no method, so it has the two questions once more."""
    for row in pointwise_rows("train", 20, seed=0):
        assert [scoring(row)] == pointwise.transcripts(pointwise.read_row(row), SCORE_RUBRIC)
    for row in pairwise_rows("train", 20, seed=0):
        assert [comparing(row)] == pairwise.transcripts(pairwise.read_row(row), PREFERENCE_RUBRIC)
