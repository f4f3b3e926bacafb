"""A method folder copied out and made one's own: any name, any place, only its own files edited."""

import difflib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import runs
from conftest import REPO, warm_start

from common.demo.world import pairwise_rows, pointwise_rows
from common.parquet import write_rows

pytestmark = pytest.mark.run

JUDGE_STEPS = (
    "trainer.total_training_steps=2",
    "trainer.test_freq=2",
    "trainer.save_freq=2",
    "data.train_batch_size=8",
    "data.max_response_length=80",
    "actor_rollout_ref.actor.ppo_mini_batch_size=8",
)

ADAPTERS = (
    "actor_rollout_ref.model.lora_rank=8",
    "actor_rollout_ref.actor.optim.lr=3e-4",
    "actor_rollout_ref.actor.optim.lr_warmup_steps=1",
    "actor_rollout_ref.actor.use_kl_loss=True",
    "actor_rollout_ref.actor.kl_loss_coef=0.1",
)

# a judge on 0 to 10, whose verdict is JSON
ZERO_TO_TEN = {
    "SCORES = range(5)": "SCORES = range(11)",
    "4: all of it, correctly, completely and clearly": "10: all of it, correctly, completely and clearly",
    "3: most of it; small gaps or flaws": "8: most of it; small gaps or flaws",
    "2: part of it; something important is missing or wrong": "5: part of it; something important is missing or wrong",
    "1: little of it; mostly wrong, vague or beside the point": "3: little of it; mostly wrong, vague or beside it",
    'between <score> and </score>."': 'as JSON, like {{\\"score\\": 7}}."',
    '<score>{score}</score>"': "{json.dumps({'score': score})}\"",
    "rf\"<score>({'|'.join(map(str, SCORES))})</score>\"": 'rf\'{{"score": ({"|".join(map(str, SCORES))})}}\'',
    "import re\n": "import json\nimport re\n",
}
# a judge that has to choose
WITHOUT_TIES = {
    'Literal["A", "B", "tie"]': 'Literal["A", "B"]',
    '= ("A", "B", "tie")': '= ("A", "B")',
    '{"A": "B", "B": "A", "tie": "tie"}': '{"A": "B", "B": "A"}',
    " It is a tie if neither response is better.": "",
    "A, B or tie, between": "A or B, between",
}
HINGE = {"-F.logsigmoid(difference)": "F.relu(1 - difference)"}


def copy(method: str, place: Path) -> Path:
    return Path(shutil.copytree(REPO / method, place, ignore=shutil.ignore_patterns("outputs", "__pycache__")))


def edit(file: Path, changes: dict[str, str]) -> list[str]:
    """Make each change, exactly once, and return the lines of the diff."""
    before = after = file.read_text()
    for old, new in changes.items():
        assert after.count(old) == 1, (old, after.count(old))
        after = after.replace(old, new)
    file.write_text(after)
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return [line for line in lines if line[0] in "+-" and not line.startswith(("+++", "---"))]


def call(*command: str, cwd: Path, **environment: str) -> str:
    """Run a command of Python as a user does, expect success, and return what it printed."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture
def strange_place(tmp_path) -> Path:
    """A working directory with unrelated modules named like ours, and like one of Python's own."""
    place = tmp_path / "somewhere else"
    place.mkdir()
    for name in ("evaluate", "dataset", "train", "loss", "random", "common/__init__", "common/files"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / f"{name}.py").write_text("raise RuntimeError('an unrelated module was imported')\n")
    return place


def test_a_copy_is_trained_evaluated_scored_and_imported(small_run, strange_place, tmp_path):
    """With a loss of its own: the hinge. All of it by the copy, although the original is installed.

    It is trained from any working directory, with the name of a library; and the demo's tiny model is made on the way,
    as with nothing set. Then it is copied again, to be imported.
    """
    trained = copy("bradley_terry", tmp_path / "elsewhere v2" / "datasets")
    changed = edit(trained / "loss.py", HINGE)
    assert len(changed) == 2
    output, files = tmp_path / "run", {name: small_run[name] for name in ("TRAIN_FILES", "VAL_FILES")}
    settings = ("trainer.total_training_steps=2", "data.train_batch_size=16", "loss.centering=0")
    runs.run(output, *settings, script=trained / "run_bt.sh", on=["env", "-C", str(strange_place)], **files)
    # a new head gives margins near 0, where the hinge is near 1 and the usual loss near 0.69
    assert 0.8 < runs.metrics_of(output, "train/loss")[1] < 1.2
    folder = Path(shutil.copytree(trained, tmp_path / "my-rm", ignore=shutil.ignore_patterns("__pycache__")))

    model, val = str(output / "checkpoint"), small_run["VAL_FILES"]
    there = {"PYTHONPATH": f"{strange_place}{os.pathsep}{tmp_path}"}
    call("-m", "my-rm.evaluate", "--model", model, "--data", val, "--output", str(tmp_path / "e"), cwd=tmp_path)
    measured = json.loads((tmp_path / "e" / "evaluation_val.json").read_text())
    assert measured["pairs"] == 19
    scored = tmp_path / "scored"
    call("-m", "my-rm.score", "--model", model, "--input", val, "--output", str(scored), cwd=tmp_path)
    rewards = pq.read_table(scored / "part-000000.parquet").to_pylist()
    trained = pq.read_table(output / "val_rewards.parquet").to_pylist()
    assert [row["chosen_reward"] for row in rewards] == pytest.approx([row["chosen"] for row in trained], abs=1e-5)

    row = rewards[0]["chosen"]
    program = f"""
import asyncio, importlib, sys
grader = importlib.import_module("my-rm.grader").BradleyTerryGrader({model!r})
found = asyncio.run(grader.aevaluate(query={row[:-1]!r}, response={row[-1]["content"]!r}))
print(found.score, sys.modules["my-rm.grader"].__file__)
"""
    # unrelated modules named evaluate, dataset and train stay on the path; that of the standard library does not
    (strange_place / "random.py").unlink()
    shutil.rmtree(strange_place / "common")
    score, place = call("-c", program, cwd=tmp_path, **there).split(maxsplit=1)
    assert float(score) == pytest.approx(rewards[0]["chosen_reward"], abs=1e-5)
    assert Path(place.strip()) == folder / "grader.py"


def judge_of(folder: Path, rows: list[dict], tiny_model: Path, tmp_path: Path) -> str:
    """Have the copy write its transcripts, and teach the tiny model to judge by them."""
    labelled = write_rows(tmp_path / "labelled.parquet", rows)
    source = "pointwise" if "label" in rows[0] else "pairwise"
    options = ("--source", source, "--path", str(labelled), "--transcripts", "--output", str(tmp_path / "sft"))
    call(str(folder), "prepare_data", *options, cwd=tmp_path)
    written = pq.read_table(tmp_path / "sft" / "transcripts" / "train.parquet").to_pylist()
    return warm_start(tiny_model, [row["messages"] for row in written], tmp_path / "judge")


def test_a_pointwise_copy_judges_on_0_to_10_with_a_verdict_as_json(tiny_model, tmp_path):
    folder = copy("generative_pointwise", tmp_path / "ten-points")
    changed = edit(folder / "prompt.py", ZERO_TO_TEN)
    print("\n".join(changed))
    assert len(changed) <= 30
    scale = {0: 0, 1: 3, 2: 5, 3: 8, 4: 10}

    def rows(split: str, size: int, seed: int) -> list[dict]:
        return [{**row, "label": scale[row["label"]]} for row in pointwise_rows(split, size, seed)]

    judge = judge_of(folder, rows("train", 1600, 1), tiny_model, tmp_path)
    files = {
        name: str(write_rows(tmp_path / f"{name}.parquet", rows(split, size, 0)))
        for name, split, size in (("TRAIN_FILES", "train", 48), ("VAL_FILES", "val", 24), ("TEST_FILES", "test", 40))
    }
    script, output = folder / "run_pointwise.sh", tmp_path / "run"
    assert runs.finish(runs.start(tmp_path / "none", script=script, TRAIN_FILES=files["TRAIN_FILES"])) != 0
    assert "Set MODEL_PATH to a chat model or to a judge" in runs.log_of(tmp_path / "none")
    text = runs.run(output, *JUDGE_STEPS, *ADAPTERS, script=script, MODEL_PATH=judge, **files)
    assert re.search(r"^train: 48 prompts .* 0: \d+, .*, 10: \d+$", text, re.M)
    measured = json.loads((output / "evaluation_TEST_FILES.json").read_text())
    assert measured["rows"] == 40
    assert measured["parse_rate"] >= 0.9  # of answers such as {"score": 8}
    assert measured["accuracy"] > measured["majority_accuracy"]
    assert runs.metrics_of(output, "train/parsed")[2] > 0.5
    answers = [row["answers"][0] for row in pq.read_table(output / "evaluation_TEST_FILES.parquet").to_pylist()]
    assert all(json.loads(answer.partition("</think>")[2])["score"] in range(11) for answer in answers[:5])

    assert (output / "checkpoint_last_adapter" / "adapter_config.json").exists()
    divergence = runs.metrics_of(output, "actor/kl_loss")  # from the model without the adapter, which starts as nothing
    assert divergence[1] == pytest.approx(0, abs=1e-4) and divergence[2] > divergence[1]

    row = rows("test", 1, 0)[0]
    program = f"""
import asyncio, importlib
grader = importlib.import_module("ten-points.grader").PointwiseGrader({str(output / "checkpoint")!r}, max_new_tokens=80)
given = dict(query={row["input"]!r}, response={row["output"][0]["answer"]["content"]!r})
found = asyncio.run(grader.aevaluate(**given))
print(found.score)
"""
    verdicts = pq.read_table(output / "evaluation_TEST_FILES.parquet").to_pylist()
    assert float(call("-c", program, cwd=tmp_path)) == verdicts[0]["verdict"]


def test_a_pairwise_copy_judges_without_ties(tiny_model, tmp_path):
    folder = copy("generative_pairwise", tmp_path / "no_ties")
    changed = edit(folder / "prompt.py", WITHOUT_TIES)
    print("\n".join(changed))
    assert len(changed) <= 30

    def rows(split: str, size: int, seed: int) -> list[dict]:
        return [row for row in pairwise_rows(split, size, seed) if row["metadata"]["preferred"] != "tie"]

    judge = judge_of(folder, rows("train", 900, 1), tiny_model, tmp_path)
    files = {
        name: str(write_rows(tmp_path / f"{name}.parquet", rows(split, size, 0)))
        for name, split, size in (("TRAIN_FILES", "train", 48), ("VAL_FILES", "val", 24), ("TEST_FILES", "test", 40))
    }
    output = tmp_path / "run"
    runs.run(output, *JUDGE_STEPS, script=folder / "run_pairwise.sh", MODEL_PATH=judge, **files)
    measured = json.loads((output / "evaluation_TEST_FILES.json").read_text())
    assert measured["parse_rate"] >= 0.9
    assert measured["majority_both_right"] == 0 and "tie_recall" not in measured
    judged = pq.read_table(output / "evaluation_TEST_FILES.parquet").to_pylist()
    assert {row["verdict"] for row in judged} <= {"A", "B", None}

    a_tie = next(row for row in pairwise_rows("test", 40, 0) if row["metadata"]["preferred"] == "tie")
    program = f"""
import asyncio, importlib
from common.conversation import BadRow
prompt, grader = (importlib.import_module(f"no_ties.{{name}}") for name in ("prompt", "grader"))
try:
    prompt.read_row({a_tie!r})
except BadRow as fault:
    print(fault.kind)
asked = grader.PairwiseGrader({str(output / "checkpoint")!r}, both_orders=False, max_new_tokens=80)
a, b = (response["answer"]["content"] for response in {a_tie["output"]!r})
found = asyncio.run(asked.aevaluate(query={a_tie["input"]!r}, response_a=a, response_b=b))
print(found.score)
"""
    fault, score = call("-c", program, cwd=tmp_path).splitlines()
    assert fault == "`preferred` is not one of A, B"
    assert float(score) in (0.0, 1.0)
