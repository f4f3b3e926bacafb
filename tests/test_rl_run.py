"""Our reward in a whole RL run of verl, and of TRL where that is installed: two steps of a random policy."""

import importlib.util
import json
import math
import shutil
import subprocess
import sys

import pytest
from conftest import REPO

pytestmark = pytest.mark.run


@pytest.mark.parametrize("trainer", ["verl", "trl"])
def test_two_steps_with_the_reward_model(trainer, tiny_model, reward_checkpoint, tmp_path):
    if importlib.util.find_spec(trainer) is None:
        pytest.skip(f"needs {trainer}, which is not installed")
    shutil.copytree(tiny_model, tmp_path / "policy")
    command = [sys.executable, str(REPO / "tests" / "benchmarks" / f"rl_{trainer}.py"), "--reward", "bradley_terry"]
    command += ["--model", str(reward_checkpoint), "--reward-settings", '{"stand_in": -5}', "--steps", "2"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "run")], capture_output=True, text=True, timeout=600, cwd=REPO
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    steps = json.loads((tmp_path / "run" / "steps.json").read_text())
    assert len(steps) == 2
    for step in steps:
        assert math.isfinite(step["reward"]) and step["reward"] >= -5
        assert 0 <= step["unscored"] < 1 and 0 <= step["truth"] <= 4
