"""Run one module of a method folder, wherever the folder lies and whatever it is called.

    python -m common.launch /path/to/my-reward-model.v2 train data.max_length=1024

The run scripts start every Python file of their folder in this way. It differs from `python -m my_folder.train` in
three points:

- The folder need not be on Python's path, and its name may hold a hyphen, a blank or a dot.
- The folder's parent does not go on the path. A stray `random.py` there replaces nobody's module.
- The working directory does not either, so the folder's own `evaluate.py` replaces nobody's `evaluate`.

The folder becomes one package. Its name is the same in this process and in every Ray worker (`common/cluster.py`).
"""

import importlib.util
import os
import runpy
import sys
from pathlib import Path


def load_package(folder: Path) -> str:
    """Load a method folder as a package and return the package's name: the folder's, with `_` for each dot.

    Raises:
        SystemExit: the folder is not a package.
    """
    folder = folder.resolve()
    name, start = folder.name.replace(".", "_"), folder / "__init__.py"
    if not start.is_file():
        raise SystemExit(f"{folder}: not a method folder, because it has no __init__.py. Copy that file too.")
    spec = importlib.util.spec_from_file_location(name, start, submodule_search_locations=[str(folder)])
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    spec.loader.exec_module(package)
    return name


def main() -> None:
    folder, module, *arguments = sys.argv[1:]
    if sys.path[0] == os.getcwd():  # `python -m` puts it there
        del sys.path[0]
    sys.argv = [f"{module}.py", *arguments]
    runpy.run_module(f"{load_package(Path(folder))}.{module}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
