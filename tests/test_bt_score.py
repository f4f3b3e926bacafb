"""`score.py` as a user starts it: every row once, in its order, with the rewards of its texts alone, after a crash too.

Ray's own processes are no part of the command's process group, so what is started here is remembered and seen to end.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rewards import plain_rewards
from runs import kill_group, wait_for
from test_bt_score_few import native_file, parts_of, score, text_file

pytestmark = pytest.mark.run

ROWS = 4_000
IMPATIENT = {"RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "1"}
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


def test_actors_write_what_one_process_writes(tmp_path, reward_checkpoint, monkeypatch):
    """Of two files, with rows that cannot be scored and columns whose types are easily lost.

    Ray Data would end a command whose parts take longer than it allows; here it allows a second.
    """
    native_file(tmp_path / "a.parquet"), text_file(tmp_path / "b.parquet")
    rows, folders = tmp_path / "*.parquet", {name: tmp_path / name for name in ("here", "actors")}
    score(monkeypatch, reward_checkpoint, rows, folders["here"], "--max-length", "250")
    status, log = run(reward_checkpoint, rows, folders["actors"], "--max-length", "250", "--workers", "2", **IMPATIENT)
    assert status == 0, log[-4000:]
    for here, there in zip(parts_of(folders["here"]), parts_of(folders["actors"]), strict=True):
        here, there = pq.read_table(here), pq.read_table(there)
        assert here.schema.equals(there.schema)
        names = ("chosen_reward", "rejected_reward")
        assert here.drop_columns(names).to_pylist() == there.drop_columns(names).to_pylist()
        for name in names:
            rewards = [np.array(table[name].to_pylist(), dtype=float) for table in (here, there)]
            np.testing.assert_allclose(*rewards, atol=1e-5, rtol=0)
    assert len({(folder / "_bad_rows.jsonl").read_text() for folder in folders.values()}) == 1
