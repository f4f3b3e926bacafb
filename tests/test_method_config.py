"""Every knob is real: set in the run script, known to the config, read by our code or by the pinned verl."""

import ast
import dataclasses
import importlib
import os
import re
import subprocess

import pytest
from conftest import REPO
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

SCRIPTS = {
    "bradley_terry": "run_bt.sh",
    "sft": "run_sft.sh",
    "generative_pointwise": "run_pointwise.sh",
    "generative_pairwise": "run_pairwise.sh",
}
LOSSES = {"bradley_terry": "pair_loss", "sft": "sft_loss"}


@pytest.fixture(params=LOSSES)
def method(request) -> str:
    return request.param


# notes what training is given; says who answers in a judge's run
PYTHON = """#!/bin/sh
case "$2" in
    train) shift 2; printf "%s\\n" "$@" > "$NOTE" ;;
    common.grpo.answering) echo "${CHOSEN:-${3:-hf}}" ;;
esac
"""


def run_script(method: str):
    return REPO / method / SCRIPTS[method]


def script_overrides(method: str, tmp_path, **environment: str) -> list[str]:
    """Run the script with a `python` that only notes its arguments."""
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    note = tmp_path / "overrides"
    settings = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTE": str(note), **environment}
    subprocess.run(["bash", run_script(method)], env=settings, check=True, timeout=30, cwd=tmp_path)
    return note.read_text().splitlines()


def compose_config(method: str, overrides: list[str]):
    with initialize_config_dir(str(REPO / method), version_base=None):
        return compose("config", overrides)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {
            "MODEL_PATH": "Qwen/Qwen3-8B",
            "TRAIN_FILES": "a b.parquet,c.parquet",
            "VAL_FILES": "v=1.parquet",
            "NNODES": "4",
        },
        {"N_GPUS_PER_NODE": "8", "OUTPUT": "my outputs (2)"},
    ],
)
def test_the_run_script_sets_every_number_and_only_known_keys(method, tmp_path, environment):
    config = compose_config(method, script_overrides(method, tmp_path, **environment))
    assert OmegaConf.missing_keys(config) == set()
    assert config.data.train_files == environment.get("TRAIN_FILES", "outputs/data/train.parquet").replace(
        "outputs", environment.get("OUTPUT", "outputs")
    )
    assert config.trainer.output == environment.get("OUTPUT", "outputs")


def test_an_unknown_key_is_refused(method, tmp_path):
    with pytest.raises(Exception, match="optim.typo"):
        compose_config(method, [*script_overrides(method, tmp_path), "optim.typo=1"])


def test_the_chat_templates_switches_reach_the_config(tmp_path):
    options = "data.template_options={enable_thinking: false, date_string: '26 Jul 2024'}"
    config = compose_config("sft", [*script_overrides("sft", tmp_path), options])
    assert config.data.template_options == {"enable_thinking": False, "date_string": "26 Jul 2024"}


def attributes_read(folder) -> set[tuple[str, str]]:
    """Every `section.key` that code reads as an attribute; text in strings and comments does not count."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
                owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
                found.add((owner, node.attr))
    return found


def test_every_key_is_read(method, tmp_path):
    config = compose_config(method, script_overrides(method, tmp_path))
    for section in ("model", "engine", "optim"):
        module, _, name = config[section]._target_.rpartition(".")
        fields = {field.name for field in dataclasses.fields(getattr(importlib.import_module(module), name))}
        assert set(config[section]) - {"_target_"} <= fields
    read = attributes_read(REPO / method) | attributes_read(REPO / "common")
    declared = {(section, key) for section in ("data", "trainer") for key in config[section]}
    assert declared - read == set()
    functions = ast.walk(ast.parse((REPO / method / "engine.py").read_text()))
    (loss,) = (node for node in functions if isinstance(node, ast.FunctionDef) and node.name == LOSSES[method])
    assert set(config.get("loss", {})) == {each.arg for each in loss.args.args} - {"model_output", "data", "dp_group"}


def test_a_number_is_set_in_one_place_only(method):
    """What the run script sets has no default of its own in the config."""
    text = run_script(method).read_text()
    set_there = set(re.findall(r"^    ((?:data|model|optim|loss|trainer)\.\w+)=", text, flags=re.M))
    config = OmegaConf.to_container(compose_config(method, []), resolve=False)
    null = {"data.val_files", "data.test_files", "trainer.n_gpus_per_node"}  # none, none, all
    assert {name for name in set_there if config[name.split(".")[0]][name.split(".")[1]] != "???"} == null


def test_a_failing_step_stops_the_script(method, tmp_path):
    """Nothing says "completed" after a failure."""
    (tmp_path / "python").write_text("#!/bin/sh\nexit 7\n")
    (tmp_path / "python").chmod(0o755)
    result = subprocess.run(
        ["bash", run_script(method)],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=30,
        cwd=tmp_path,
    )
    assert result.returncode == 7 and result.stdout == ""
