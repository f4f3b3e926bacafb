"""Who may import whom: layers only look down, and a method folder imports itself and common alone."""

import ast
from pathlib import Path

from conftest import REPO
from test_method_config import SCRIPTS

METHODS = tuple(SCRIPTS)
# the rooms of common/, and the other rooms that each may use
ROOMS = {
    "benchmarks": set(),
    "cpu": set(),
    "demo": set(),
    "grading": set(),
    "grpo": set(),
    "judging": {"grading", "page"},
    "page": set(),
}


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, also inside functions; relative imports as `.name`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # `from common import cluster` imports the module common.cluster
            found |= {f"{module}.{name.name}" for name in node.names} if module == "common" else {module}
    return found


def rooms_of(modules: set[str]) -> set[str]:
    """The rooms of common/ that modules lie in."""
    parts = [module.split(".") for module in modules if module.startswith("common.")]
    return {part[1] for part in parts if part[1] in ROOMS}


def test_the_rooms_are_the_folders_of_common():
    assert {path.name for path in (REPO / "common").iterdir() if (path / "__init__.py").is_file()} == set(ROOMS)


def test_the_ground_floor_knows_no_room():
    files = list((REPO / "common").glob("*.py"))
    assert len(files) > 10
    assert {path.name: rooms for path in files if (rooms := rooms_of(imports_of(path)))} == {}


def test_rooms_only_look_down():
    for room, below in ROOMS.items():
        for path in (REPO / "common" / room).rglob("*.py"):
            assert rooms_of(imports_of(path)) <= below | {room}, path


def test_common_knows_no_method():
    for path in (REPO / "common").rglob("*.py"):
        assert {module.split(".")[0] for module in imports_of(path)} & set(METHODS) == set(), path


def test_a_method_imports_itself_relatively_and_no_other_method():
    """So a copy of the folder, under any name, is whole."""
    for method in METHODS:
        files = list((REPO / method).glob("*.py"))
        siblings = {path.stem for path in files}
        for path in files:
            modules = imports_of(path)
            assert {module.split(".")[0] for module in modules} & set(METHODS) == set(), path
            assert {module for module in modules if module.startswith(".")} <= {f".{name}" for name in siblings}, path
            # nobody imports a sibling as if its folder were on the path
            assert modules & (siblings - {"evaluate"}) == set(), path


def reached(start: Path) -> set[Path]:
    """All files of the repository that a file imports, directly or not."""
    found, waiting = set(), [start]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for module in imports_of(path):
            if module.startswith("."):
                place = path.parent / f"{module[1:]}.py"
            else:
                place = REPO / f"{module.replace('.', '/')}.py"
            waiting += [place] if place.is_file() else []
    return found


def test_nothing_of_the_judges_reaches_bradley_terry_or_sft():
    for method in ("bradley_terry", "sft"):
        for file in (REPO / method).glob("*.py"):
            parts = {part for path in reached(file) for part in path.relative_to(REPO).parts}
            assert parts & {"judging", "grpo", "generative_pointwise", "generative_pairwise"} == set(), file


def test_reading_pairs_takes_a_few_files_only():
    """What `bradley_terry/dataset.py` needs of common: rows in and out, what is said of them, and their tokens."""
    used = {path.name for path in reached(REPO / "bradley_terry" / "dataset.py")}
    rows = {"conversation.py", "pairs.py", "parquet.py", "files.py", "cases.py"}
    assert used == {"dataset.py", "tokenizer.py", "data_report.py", "similar_texts.py"} | rows


def names_in(path: Path) -> set[str]:
    """What a module defines or imports at its top level."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(name.asname or name.name).split(".")[0] for name in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def test_what_benchmarks_import_is_there():
    """No test runs most of them, so a name that was taken away would be missed."""
    modules = {
        path.relative_to(REPO).with_suffix(""): path
        for part in (*METHODS, "common")
        for path in (REPO / part).rglob("*.py")
    }
    known = {str(module).replace("/", ".").removesuffix(".__init__"): path for module, path in modules.items()}
    files = [*(REPO / "tests" / "benchmarks").glob("*.py"), *(REPO / "tests" / "gpu").glob("*.py")]
    checked = 0
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (*METHODS, "common"):
                there = names_in(known[node.module]) | {
                    name.rpartition(".")[2] for name in known if name.startswith(f"{node.module}.")
                }
                missing = {name.name for name in node.names} - there
                assert not missing, f"{path}: {node.module} has no {missing}"
                checked += len(node.names)
    assert checked > 50
