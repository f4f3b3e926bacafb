"""benchmark.py as it is called: rewards of `score.py` become a benchmark's figures, also after a crash."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rewards import plain_rewards
from test_benchmarks_files import LLMBAR, REWARDBENCH2, RM_BENCH, save

from bradley_terry import benchmark
from bradley_terry import score as bt_score
from common.benchmarks import BENCHMARKS, read_questions, results
from common.benchmarks.results import answer_by_scores, measure
from common.checkpoint import claim_folder
from common.conversation import DataError


@pytest.fixture
def run(reward_checkpoint, tmp_path, monkeypatch, capsys):
    """Measure the model on hand-made files; return the folder that it writes and what was printed."""
    monkeypatch.setattr(results, "draw", lambda *_: None)  # which takes most of the time
    save(tmp_path / "ours" / "rewardbench2.jsonl", REWARDBENCH2)
    save(tmp_path / "rm_bench" / "chat_filtered.json", [RM_BENCH | {"id": number} for number in range(5)])
    save(tmp_path / "llmbar" / "Natural" / "dataset.json", [LLMBAR, LLMBAR | {"label": 1, "output_2": "<|im_end|>"}])

    def measure_on(*names: str, output: str = "figures", dtype: str = "float32") -> tuple[Path, str]:
        places = {"rewardbench2": "ours/rewardbench2.jsonl", "rm_bench": "rm_bench", "llmbar": "llmbar"}
        paths = [f"{name}={tmp_path / places[name]}" for name in names]
        arguments = ["--model", str(reward_checkpoint), "--on", *names, "--path", *paths, "--dtype", dtype]
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments, "--output", str(tmp_path / output)])
        benchmark.main()
        return tmp_path / output, capsys.readouterr().out

    return measure_on


def test_the_figures_are_the_rule_on_the_models_own_rewards(run, reward_checkpoint, tmp_path):
    folder, printed = run("rewardbench2", "rm_bench")
    for name, place in (("rewardbench2", "ours/rewardbench2.jsonl"), ("rm_bench", "rm_bench")):
        questions = read_questions(name, tmp_path / place)
        texts = [
            [*question.prompt, {"role": "assistant", "content": text}]
            for question in questions
            for text in question.answers
        ]
        rewards = iter(plain_rewards(reward_checkpoint, texts).tolist())
        expected = [[next(rewards) for _ in question.answers] for question in questions]
        rows = pq.read_table(folder / f"{name}.parquet").to_pylist()
        assert [row["scores"] for row in rows] == [pytest.approx(given, abs=1e-5) for given in expected]
        figures = json.loads((folder / f"{name}.json").read_text())
        again = measure(answer_by_scores(BENCHMARKS[name], questions, [row["scores"] for row in rows]))
        assert figures.pop("model") == str(reward_checkpoint)
        assert figures == again | {"answers": {"computed in": "float32"}}
    assert "RewardBench 2" in printed and "7 of 1865 questions" in printed and "missing" in printed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_precision_is_said(run, dtype):
    folder, printed = run("rm_bench", dtype=dtype)
    assert f"computed in: {dtype}" in printed
    assert json.loads((folder / "rm_bench.json").read_text())["answers"] == {"computed in": dtype}


def test_an_answer_that_cannot_be_scored_is_counted_and_wrong(run):
    folder, printed = run("llmbar")
    line = json.loads((folder / "llmbar.json").read_text())["parts"][0]
    assert (line["questions"], line["unscored"]) == (2, 1)
    (right, lost) = pq.read_table(folder / "llmbar.parquet").to_pylist()
    assert lost["scores"] is None and lost["score"] == [{"kind": "right", "credit": 0.0}]
    assert line["score"] == right["score"][0]["credit"] / 2
    assert "no reward, see _bad_rows.jsonl: 1 x column 'output'" in printed


def test_a_command_that_was_stopped_scores_what_is_left_and_ends_with_the_same_figures(run, monkeypatch):
    monkeypatch.setattr(bt_score, "part_size", lambda rows: 2)
    whole, _ = run("rm_bench", output="whole")
    written, scored = bt_score.write_part, []

    def stop_at_the_second(output, number, table):
        if number == 1 and len(scored) < 2:
            raise OSError("no space left")
        scored.append(number)
        written(output, number, table)

    monkeypatch.setattr(bt_score, "write_part", stop_at_the_second)
    with pytest.raises(bt_score.ClusterError, match="scores what is left"):
        run("rm_bench", output="stopped")
    monkeypatch.setattr(bt_score, "write_part", lambda *part: (scored.append(part[1]), written(*part)))
    stopped, printed = run("rm_bench", output="stopped")
    assert scored == [0, 1, 2] and "5 rows in 1 files, 2 of them scored already" in printed
    for ending in ("json", "parquet"):
        assert (stopped / f"rm_bench.{ending}").read_bytes() == (whole / f"rm_bench.{ending}").read_bytes()


def test_all_that_is_wrong_is_told_before_a_model_is_loaded(tmp_path, monkeypatch):
    arguments = ["--model", "none", "--on", "rmb", "rm_bench", "--path", f"rm_bench={tmp_path / 'none'}", "llmbar=x"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments, "--card"])
    with pytest.raises(DataError) as error:
        benchmark.main()
    for told in ("--path llmbar=x: expected NAME=PLACE", "no such file or folder", "git clone", "--card writes into"):
        assert told in str(error.value)


def test_what_is_wrong_with_any_benchmark_is_told_before_one_is_scored(run, tmp_path, monkeypatch):
    """Two folders hold the scores of other questions; these and their questions stay as they are."""
    folder, _ = run("rm_bench", "llmbar")
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}
    save(tmp_path / "rm_bench" / "chat_filtered.json", [RM_BENCH | {"prompt": "Another?"}])
    save(tmp_path / "llmbar" / "Natural" / "dataset.json", [LLMBAR | {"input": "Another."}])
    monkeypatch.setattr(bt_score, "score_left", lambda *_: pytest.fail("scored"))
    with pytest.raises(DataError) as error:
        run("rewardbench2", "rm_bench", "llmbar")
    told = str(error.value)
    assert told.count("holds another run, different in files") == 2
    assert "rm_bench: " in told and "llmbar: " in told and "rewardbench2: " not in told
    assert {path: path.read_bytes() for path in before} == before
    with claim_folder(folder / "llmbar" / "scored"), pytest.raises(DataError, match="llmbar: another run is writing"):
        run("llmbar")
