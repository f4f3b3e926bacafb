"""`score.py` on a few rows, which it scores in its own process: each comes back with its rewards, or the reason."""

import json
import sys
from collections import Counter
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rewards import plain_rewards

from bradley_terry import score as bt_score
from common.demo.world import preference_pairs


def score(monkeypatch, model: Path, rows: Path, output: Path, *more: str) -> None:
    arguments = ["--model", str(model), "--input", str(rows), "--output", str(output), *more]
    monkeypatch.setattr(sys, "argv", ["score.py", *arguments])
    bt_score.main()


def parts_of(output: Path) -> list[Path]:
    return sorted(output.glob("part-*.parquet"))


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


def test_every_row_comes_back_in_its_place_with_its_rewards_or_the_reason(
    tmp_path, monkeypatch, capsys, reward_checkpoint
):
    tables = [native_file(tmp_path / "a.parquet"), text_file(tmp_path / "b.parquet")]
    output = tmp_path / "scored"
    monkeypatch.setattr(bt_score, "start_ray", lambda options: pytest.fail("Ray was started"))
    score(monkeypatch, reward_checkpoint, tmp_path / "*.parquet", output, "--max-length", "250")
    log = capsys.readouterr().out
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


@pytest.mark.parametrize(
    ("rows", "more", "address", "asked"),
    [
        (100, [], "", "here"),
        (100, ["--workers", "1"], "", "here"),
        (100, ["--workers", "2"], "", "actors"),
        (100, [], "head:6379", "actors"),
        (bt_score.FEW + 1, [], "", "actors"),
    ],
)
def test_few_rows_are_scored_here_unless_something_else_was_asked_for(
    tmp_path, monkeypatch, reward_checkpoint, rows, more, address, asked
):
    def note(name: str):
        return lambda plans, *_: called.append(name) or [sum(plan.rows for plan in plans)]

    called, file = [], tmp_path / "rows.parquet"
    pq.write_table(pa.table({"query": ["Name a thing."] * rows, "response": ["A kettle."] * rows}), file)
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(bt_score, "score_here", note("here"))
    monkeypatch.setattr(bt_score, "score_by_actors", note("actors"))
    monkeypatch.setattr(bt_score, "list_bad_rows", lambda *_: Counter())
    score(monkeypatch, reward_checkpoint, file, tmp_path / "scored", *more)
    assert called == [asked]


@pytest.mark.parametrize(
    ("free", "models", "room"), [(10.0, 1, 5), (3.9, 1, 1), (0.5, 1, 1), (100.0, 1, 8), (10.0, 2, 2)]
)
def test_no_more_models_than_free_memory_holds(tmp_path, monkeypatch, free, models, room):
    """A model takes twice the size of its file; a worker has all models."""
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    (tmp_path / "tokenizer.json").write_bytes(bytes(1000))
    monkeypatch.setattr(bt_score.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(bt_score.torch.cuda, "device_count", lambda: 0)
    memory = SimpleNamespace(available=int(1000 * free))
    monkeypatch.setattr(bt_score.psutil, "virtual_memory", lambda: memory)
    assert bt_score.room_here([str(tmp_path)] * models) == room
