"""What a start waits for: the large libraries that a process needs, and no others; how a file is started; --help."""

import shutil
import subprocess
import sys

import pytest
from runs import PAIRWISE_SCRIPT, POINTWISE_SCRIPT, RUN_SCRIPT, SFT_SCRIPT

SCRIPTS = (RUN_SCRIPT, SFT_SCRIPT, POINTWISE_SCRIPT, PAIRWISE_SCRIPT)
LARGE = ("torch", "transformers", "ray", "verl", "pandas", "scipy", "sklearn", "matplotlib")


def imported(statements: str) -> list[str]:
    """Return which of the large libraries a new process has after some imports."""
    program = f"{statements}\nimport sys\nprint(*[name for name in {LARGE} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    return done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize(
    "module",
    [
        "generative_pointwise.prepare_data",
        "generative_pairwise.prepare_data",
        "common.grpo.answering",
        "common.parquet",
    ],
)
def test_without_a_model_no_models_library_is_waited_for(module):
    assert imported(f"import {module}") == []


def test_models_are_loaded_without_scikit_learn():
    """transformers is told that it is not there; whoever wants it has it."""
    models = "from common.generation import load_answering\nfrom transformers import Qwen3ForCausalLM"
    later = "from transformers.utils import is_sklearn_available\nassert is_sklearn_available()"
    found = imported(f"{models}\nimport sys\nassert 'sklearn' not in sys.modules\n{later}\nimport sklearn")
    assert "transformers" in found and "sklearn" in found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
@pytest.mark.parametrize("options", [["--help"], ["trainer.seed=1", "-h"]], ids=len)
def test_help_shows_what_can_be_set_and_starts_nothing(script, options, tmp_path):
    done = subprocess.run(["bash", script, *options], capture_output=True, text=True, timeout=30, cwd=tmp_path)
    assert done.returncode == 0 and not list(tmp_path.iterdir())
    first, *_, last = done.stdout.splitlines()
    assert first == script.read_text().splitlines()[1]
    assert last.endswith(f"bash {script.name} data.train_batch_size=32.")
    for name in ("MODEL_PATH", "TRAIN_FILES", "OUTPUT", "NNODES", "SEED"):
        assert f"\n{name}=${{{name}:-" in done.stdout
    assert "\n# RAY_ADDRESS=" in done.stdout and "RUN=(" not in done.stdout


def test_a_file_runs_once_and_its_imports_are_made_without_a_search_for_garbage(tmp_path):
    for name in ("__init__.py", "__main__.py"):
        shutil.copy(SFT_SCRIPT.parent / name, tmp_path)
    (tmp_path / "needed.py").write_text("import gc\nprint('searched', gc.isenabled())\n")
    shown = "sys.argv[1:], __package__, __name__, gc.isenabled(), gc.get_freeze_count() > 1000"
    (tmp_path / "show.py").write_text(f"import gc, sys\nfrom . import needed\nprint({shown})\n")
    done = subprocess.run([sys.executable, tmp_path, "show", "a=1"], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"searched False\n['a=1'] recipe_{tmp_path.name} __main__ True True\n", done.stderr


def test_a_file_that_a_run_script_starts_ends_with_one_line(tmp_path):
    command = [sys.executable, POINTWISE_SCRIPT.parent, "prepare_data", "--source", "pointwise", "--path", "no.jsonl"]
    command += ["--output", tmp_path / "data"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("prepare_data.py: no.jsonl: no such file")
    assert done.stderr.count("\n") == 1
