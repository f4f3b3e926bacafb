"""`score.py` as a user starts it: every row once, in its order, with the rewards of its texts alone, after a crash too.

Ray's own processes are no part of the command's process group, so what is started here is remembered and seen to end.
"""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rewards import plain_rewards
from runs import kill_group, wait_for
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from common.demo.world import preference_pairs

pytestmark = pytest.mark.run

ROWS = 8_000
NO_CLUSTER = {"RAY_ADDRESS": "127.0.0.1:1"}  # whoever starts Ray fails


def start(model: Path, rows: object, output: Path, *more: str, **environment: str) -> subprocess.Popen:
    arguments = ["--model", str(model), "--input", str(rows), "--output", str(output), *more]
    with open(f"{output}.log", "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "bradley_terry.score", *arguments],
            cwd=output.parent,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def family_of(process: subprocess.Popen) -> list[psutil.Process]:
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def end_all(family: list[psutil.Process]) -> list[psutil.Process]:
    """Give processes half a minute to end, kill those that do not, and return them."""
    _, stayed = psutil.wait_procs(family, timeout=30)
    for process in stayed:
        process.kill()
    return stayed


def run(*arguments, timeout: float = 240, **environment: str) -> tuple[int, str]:
    process = start(*arguments, **environment)
    try:
        process.wait(timeout)
    finally:
        kill_group(process)
    return process.returncode, Path(f"{arguments[2]}.log").read_text(errors="replace")


def parts_of(output: Path) -> list[Path]:
    return sorted(output.glob("part-*.parquet"))


# ---- one run over two files


def labelled_rows(count: int, first: int) -> dict[str, list]:
    pairs = preference_pairs("test", count, seed=first)
    return {
        "id": list(range(first, first + count)),
        "chosen": [pair["chosen"] for pair in pairs],
        "rejected": [pair["rejected"] for pair in pairs],
    }


def native_file(path: Path) -> pa.Table:
    """230 rows of native lists beside columns whose types are easily lost; rows 5, 17 and 120 cannot be scored."""
    columns = labelled_rows(230, 0)
    columns["chosen"][5] = None
    columns["rejected"][17] = [*columns["rejected"][17][:1], {"role": "assistant", "content": " "}]
    columns["chosen"][120] = [*columns["chosen"][120][:1], {"role": "assistant", "content": "kettle " * 300}]
    arrays = {
        **columns,
        "source": pa.array(["one", "two"] * 115).dictionary_encode(),
        "when": pa.array([datetime(2024, 1, 1)] * 230, pa.timestamp("ms")),
        "price": pa.array([Decimal("1.50")] * 230, pa.decimal128(9, 2)),
        "votes": pa.array([[1, None]] * 230, pa.list_(pa.int8())),
    }
    table = pa.table(arrays)
    pq.write_table(table, path, row_group_size=7)
    return table


def text_file(path: Path) -> pa.Table:
    """90 rows of JSON text; rows 3 and 50 cannot be scored."""
    columns = labelled_rows(90, 230)
    for side in ("chosen", "rejected"):
        columns[side] = [json.dumps(messages) for messages in columns[side]]
    columns["rejected"][3] = columns["rejected"][3][:-5]
    columns["chosen"][50] = ""
    table = pa.table(columns)
    pq.write_table(table, path, row_group_size=50)
    return table


def bad_places(lines: list[dict]) -> list[tuple[str, int]]:
    return [(Path(line["file"]).name, line["row"]) for line in lines]


def conversations_of(rows: list[dict]) -> list:
    cells = [row[side] for row in rows for side in ("chosen", "rejected")]
    return [json.loads(cell) if isinstance(cell, str) else cell for cell in cells]


def test_every_row_comes_back_in_its_place_with_its_rewards_or_the_reason(tmp_path, reward_checkpoint):
    tables = [native_file(tmp_path / "a.parquet"), text_file(tmp_path / "b.parquet")]
    output = tmp_path / "scored"
    status, log = run(reward_checkpoint, tmp_path / "*.parquet", output, "--max-length", "250", "--workers", "1")
    assert status == 0, log[-4000:]
    assert "320 rows in 2 files, 0 of them scored already" in log
    assert "320 rows, 315 of them with rewards" in log
    assert "no reward, see _bad_rows.jsonl: 1 x column 'rejected': empty response" in log

    parts = [pq.read_table(path) for path in parts_of(output)]
    assert [part.num_rows for part in parts] == [100, 100, 30, 90]
    added = ["chosen_reward", "rejected_reward", "reward_error"]
    scored = [pa.concat_tables(parts[:3]), parts[3]]
    for table, original in zip(scored, tables):
        assert table.column_names == [*original.column_names, *added]
        assert table.drop_columns(added).schema.equals(original.schema)
        assert table.drop_columns(added).to_pylist() == original.to_pylist()
    rows = [row for table in scored for row in table.to_pylist()]
    assert [row["id"] for row in rows] == list(range(320))

    reasons = {row["id"]: row["reward_error"] for row in rows if row["reward_error"]}
    assert list(reasons) == [5, 17, 120, 233, 280]
    assert reasons[5].startswith("column 'chosen': expected a list of messages")
    assert reasons[17] == "column 'rejected': empty response (found ' ')"
    assert "longer than 250 tokens (found " in reasons[120]
    assert reasons[233].startswith("column 'rejected': JSON that cannot be parsed")
    assert reasons[280] == "column 'chosen': empty text"
    assert all(rows[number][name] is None for number in reasons for name in added[:2])
    lines = [json.loads(line) for line in (output / "_bad_rows.jsonl").read_text().splitlines()]
    a, b = "a.parquet", "b.parquet"
    assert bad_places(lines) == [(a, 5), (a, 17), (a, 120), (b, 3), (b, 50)]
    assert [line["reason"] for line in lines] == list(reasons.values())

    good = [row for row in rows if row["id"] not in reasons]
    rewards = np.array([[row["chosen_reward"], row["rejected_reward"]] for row in good])
    expected = plain_rewards(reward_checkpoint, conversations_of(good)).reshape(-1, 2)
    assert expected.std() > 0.05
    np.testing.assert_allclose(rewards, expected, atol=1e-5, rtol=0)


# ---- killed in the middle


@pytest.fixture(scope="module")
def many_rows(tmp_path_factory) -> Path:
    """Short rows with ids."""
    path = tmp_path_factory.mktemp("many") / "rows.parquet"
    columns = {
        "id": list(range(ROWS)),
        "query": [f"Name {number % 700} things." for number in range(ROWS)],
        "response": [f"A kettle, {number} bowls and a rake." for number in range(ROWS)],
    }
    pq.write_table(pa.table(columns), path, row_group_size=3333)
    return path


def assert_refused(message: str, *arguments) -> None:
    status, log = run(*arguments, **NO_CLUSTER)
    assert status == 1 and "Traceback" not in log
    assert message in log.splitlines()[-1]


def test_killed_in_the_middle_and_started_again_every_row_is_there_once(tmp_path, reward_checkpoint, many_rows):
    output = tmp_path / "scored"
    process = start(reward_checkpoint, many_rows, output)
    family = []
    try:
        wait_for(lambda: len(parts_of(output)) >= 5 or process.poll() is not None)
        family = family_of(process)
    finally:
        kill_group(process)
        stayed = end_all(family)
    assert process.returncode == -signal.SIGKILL
    assert not stayed, "the command's workers outlive it, and would write beside those of the next start"
    before = {path: path.stat().st_mtime_ns for path in parts_of(output)}
    assert 5 <= len(before) < 32
    assert {pq.read_metadata(path).num_rows for path in before} == {ROWS // 32}

    status, log = run(reward_checkpoint, many_rows, output)
    assert status == 0, log[-4000:]
    assert f"{ROWS} rows in 1 files, {len(before) * ROWS // 32} of them scored already" in log
    parts = parts_of(output)
    assert [path.name for path in parts] == [f"part-{number:06d}.parquet" for number in range(32)]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    table = pa.concat_tables(pq.read_table(path) for path in parts)
    assert table["id"].to_pylist() == list(range(ROWS))
    assert table["reward"].null_count == 0 and not list(output.glob(".part-*"))
    spread = table.take(list(range(0, ROWS, 997))).to_pylist()
    asked = [[("user", row["query"]), ("assistant", row["response"])] for row in spread]
    expected = plain_rewards(reward_checkpoint, [[{"role": r, "content": c} for r, c in turns] for turns in asked])
    np.testing.assert_allclose([row["reward"] for row in spread], expected, atol=1e-5, rtol=0)

    finished, started = {path: path.stat().st_mtime_ns for path in parts}, time.monotonic()
    status, log = run(reward_checkpoint, many_rows, output, **NO_CLUSTER)
    assert status == 0 and f"{ROWS} rows in 1 files, {ROWS} of them scored already" in log
    assert time.monotonic() - started < 60
    assert {path: path.stat().st_mtime_ns for path in parts_of(output)} == finished

    other_model, other_rows = tmp_path / "other", tmp_path / "rows.parquet"
    model = AutoModelForSequenceClassification.from_pretrained(reward_checkpoint)
    with torch.no_grad():
        model.score.weight.mul_(2)
    model.save_pretrained(other_model)
    AutoTokenizer.from_pretrained(reward_checkpoint).save_pretrained(other_model)
    assert_refused("holds another run, different in model: ", other_model, many_rows, output)
    pq.write_table(pq.read_table(many_rows).slice(1), other_rows)
    assert_refused("holds another run, different in files: [['rows.parquet', '", reward_checkpoint, other_rows, output)
    assert {path: path.stat().st_mtime_ns for path in parts_of(output)} == finished
