"""What several test files share: the modules of a method folder, a tiny model, and real data where it is at hand."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

# The same cases on every run, no time limit per case (a busy machine is no bug), no folder of past cases.
settings.register_profile("tests", derandomize=True, deadline=None, database=None)
settings.load_profile("tests")

REPO = Path(__file__).parents[1]
REAL_DATA = REPO.parent / "shared" / "data"


def method_modules(folder: str, *names: str) -> list[ModuleType]:
    """Import modules of a method folder: `dataset, loss = method_modules("bradley_terry", "dataset", "loss")`.

    A method folder is no package: it is copied out and run by itself, and its modules are called `dataset` or `loss`
    like those of every other folder. So the folder goes to the front of sys.path, and if any module of those names was
    loaded from elsewhere, all of them are forgotten first: modules that import each other stay of one folder. Modules
    that a test file already holds are not affected.
    """
    home = REPO / folder
    loaded = [file.stem for file in home.glob("*.py") if file.stem in sys.modules]
    if any(Path(str(getattr(sys.modules[name], "__file__", ""))).parent != home for name in loaded):
        for name in loaded:
            del sys.modules[name]
    sys.path[:] = [str(home), *(entry for entry in sys.path if entry != str(home))]
    return [importlib.import_module(name) for name in names]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A folder with the tiny demo model of seed 0, its tokenizer and its chat template."""
    from common.tiny_model import save_tiny_model

    path = tmp_path_factory.mktemp("tiny_model")
    save_tiny_model(path, seed=0)
    return path


@pytest.fixture
def tiny_tokenizer(tiny_model):
    """The tiny model's tokenizer, loaded anew for each test, so that a test may change it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def shared_data() -> Path:
    """The folder of real labelled data beside the repository; without it the test is skipped."""
    if not REAL_DATA.is_dir():
        pytest.skip("needs the real labelled data, which is not part of the repository: ../shared/data is missing")
    return REAL_DATA


@pytest.fixture(scope="session")
def small_run(tiny_model, tmp_path_factory) -> dict[str, str]:
    """The environment of a training run on the tiny model and 96 demo pairs, 19 of them for validation."""
    from common.demo import preference_pairs
    from common.parquet import write_rows

    folder = tmp_path_factory.mktemp("small_run")
    train, val = (preference_pairs(split, rows, seed=0) for split, rows in (("train", 96), ("val", 19)))
    return {
        "TRAIN_FILES": str(write_rows(folder / "train.parquet", train)),
        "VAL_FILES": str(write_rows(folder / "val.parquet", val)),
        "MODEL_PATH": str(tiny_model),
    }
