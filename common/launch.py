"""Run one file of a method folder, wherever the folder lies and whatever it is called.

    python /path/to/my-reward-model.v2 train data.max_length=1024

starts the folder's __main__.py, which calls `main` here. The run scripts start every Python file in this way. It
differs from `python -m my_folder.train` in these points:

- The folder need not be on Python's path, and its name may hold a hyphen, a blank or a dot.
- Neither the folder's parent nor the working directory go on the path: a stray `random.py` or `common/` there replaces
  nobody's module. (`python -m` would put the working directory first.)
- The folder becomes a package with a name of its own, `recipe_…`, so a folder called `datasets` replaces no library.
  The name is the same in this process and in every Ray worker (`common/cluster.py`).
- It starts and ends sooner, by a second or two: while the file's imports are made, Python does not look for garbage
  in what torch and transformers have just made.
"""

import ast
import gc
import importlib.util
import re
import runpy
import sys
from pathlib import Path


def load_package(folder: Path) -> str:
    """Load a method folder as a package and return the package's name.

    Raises:
        SystemExit: the folder is not a package.
    """
    folder = folder.resolve()
    name, start = "recipe_" + re.sub(r"\W", "_", folder.name), folder / "__init__.py"
    if not start.is_file():
        raise SystemExit(f"{folder}: not a method folder, because it has no __init__.py. Copy that file too.")
    spec = importlib.util.spec_from_file_location(name, start, submodule_search_locations=[str(folder)])
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    spec.loader.exec_module(package)
    return name


def main(start: str) -> None:
    """Run the file that the command names, with the options behind it; or a module of common, `common.…`.

    Args:
        start: the folder's __main__.py.
    """
    folder = Path(start).resolve().parent
    files = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    named, arguments = sys.argv[1:2], sys.argv[2:]
    if named and named[0].startswith("common."):
        module = named[0]
    elif named and named[0] in files:
        module = f"{load_package(folder)}.{named[0]}"
    else:
        raise SystemExit(f"usage: python {folder} FILE options…; FILE is one of {', '.join(files)}, without .py")
    sys.argv = [f"{named[0]}.py", *arguments]
    _import_for(module)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _import_for(module: str) -> None:
    """Make the imports at the top of a file, without running it."""
    file = importlib.util.find_spec(module).origin
    lines = ast.parse(Path(file).read_bytes(), file).body
    imports = [line for line in lines if isinstance(line, ast.Import | ast.ImportFrom)]
    code = compile(ast.Module(imports, type_ignores=[]), file, "exec")
    gc.disable()
    try:
        exec(code, {"__name__": module, "__package__": module.rpartition(".")[0]})
        gc.freeze()  # it stays to the end, and is not looked through again
    finally:
        gc.enable()
