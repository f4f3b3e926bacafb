"""What goes wrong in a judge's run is said in the user's words, and stops it: bad input before anything starts."""

import json
import shutil
import sys

import pytest
import ray
from runs import POINTWISE_SCRIPT, finish, log_of, start
from test_pointwise_run import SETTINGS

from common.demo.world import pointwise_rows
from common.parquet import write_rows
from generative_pointwise import train

# ---- before anything starts, in this process


@pytest.fixture
def refused(tiny_model, tmp_path, monkeypatch):
    """Start train.py on rows with the settings that are read before Ray starts; return what it ends with."""

    def run(rows: list[dict], *settings: str) -> str:
        files = write_rows(tmp_path / "train.parquet", rows)
        given = [f"data.train_files={files}", "data.val_files=''", f"actor_rollout_ref.model.path={tiny_model}"]
        limits = ["data.max_prompt_length=3072", "data.filter_overlong_prompts=True"]
        output = tmp_path / "outputs"
        monkeypatch.setattr(sys, "argv", ["train.py", *given, *limits, f"trainer.output={output}", *settings])
        with pytest.raises(SystemExit) as caught:
            train.main()
        assert not output.exists() and not ray.is_initialized()
        return str(caught.value)

    return run


def demo_rows(count: int) -> list[dict]:
    return [{name: row[name] for name in ("input", "output", "label")} for row in pointwise_rows("train", count, 0)]


def test_bad_rows_are_listed_by_file_row_and_column(refused):
    rows = demo_rows(30)
    rows[3]["label"] = 7
    rows[11]["label"] = None
    rows = [{**row, "input": json.dumps(row["input"]), "output": json.dumps(row["output"])} for row in rows]
    rows[20]["output"] = rows[20]["output"][:-2]
    message = refused(rows)
    assert message.startswith("\ntrain.py: 3 of 30 rows cannot be used:")
    expected = "expected a whole number from 0 to 4, the scale that SCORES sets"
    for row, found in ((3, 7), (11, None)):
        assert f"train.parquet row {row}, column 'label': {expected} (found {found})" in message
    assert "train.parquet row 20, column 'output': JSON that cannot be parsed" in message
    assert "data.on_bad_row=drop" in message


def test_prompts_that_are_too_long_are_an_error_if_asked(refused):
    message = refused(demo_rows(96), "data.max_prompt_length=100", "data.filter_overlong_prompts=False")
    assert message.startswith("\ntrain.py: 96 of 96 prompts are longer than data.max_prompt_length=100 tokens:")
    assert "data.filter_overlong_prompts=True" in message


# ---- later, in a real run


@pytest.mark.run
def test_a_reward_function_that_raises_stops_the_run_and_names_the_row(tmp_path, small_judge_run):
    folder = tmp_path / "my_judge"
    shutil.copytree(POINTWISE_SCRIPT.parent, folder, ignore=shutil.ignore_patterns("outputs", "__pycache__"))
    reward = folder / "reward.py"
    reward.write_text(reward.read_text().replace("    known = ", "    assert label != 2, 'no twos'\n    known = "))
    process = start(tmp_path / "outputs", *SETTINGS, script=folder / POINTWISE_SCRIPT.name, **small_judge_run)
    assert finish(process, timeout=180) != 0
    message = log_of(tmp_path / "outputs").split("train.py: ")[-1]
    assert message.startswith("the reward of val.parquet row ")
    assert "the reward function raised AssertionError: no twos. The label was 2, the answer '<think>" in message


@pytest.mark.run
def test_a_policy_that_is_not_a_number_stops_the_run_and_names_the_rows(tmp_path, small_judge_run):
    settings = (*SETTINGS, "actor_rollout_ref.actor.optim.lr=1e38", "trainer.save_freq=-1")
    assert finish(start(tmp_path / "outputs", *settings, script=POINTWISE_SCRIPT, **small_judge_run), timeout=180) != 0
    message = log_of(tmp_path / "outputs").split("train.py: ")[-1]
    assert message.startswith("step 2: {'actor/pg_loss': nan") and "Lower actor_rollout_ref.actor.optim.lr" in message
    assert message.count("train.parquet row ") == 16
    assert not (tmp_path / "outputs" / "checkpoint_last").exists()
