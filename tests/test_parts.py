"""Files cut into numbered parts: together they are the files, row for row, and a resumed run wants what is missing."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bradley_terry.parts import FilePlan, check_same_run, cut, part_path, part_size, plan_parts, read_parts, write_part
from common.conversation import DataError


def batch(rows: range) -> pa.RecordBatch:
    return pa.record_batch({"id": list(rows)}, pa.schema({"id": pa.int64()}))


def write_file(path, rows: int, row_group: int, first: int = 0) -> str:
    """A file of ids and of columns whose types are easily lost. A dictionary makes pyarrow's own batches too small."""
    ids = range(first, first + rows)
    columns = {
        "id": pa.array(ids, pa.int64()),
        "kind": pa.array([f"kind {number % 3}" for number in ids]).dictionary_encode(),
        "turns": pa.array([[{"role": "user", "content": str(number)}] * (number % 3) for number in ids]),
        "when": pa.array([None if number % 5 == 0 else number for number in ids], pa.timestamp("us", "UTC")),
    }
    pq.write_table(pa.table(columns), path, row_group_size=row_group)
    return str(path)


@pytest.fixture
def files(tmp_path) -> list[str]:
    """25 rows in row groups of 7, none, 10 in one group, 1 row, 24 in groups of 1."""
    sizes, first, written = [(25, 7), (0, 1), (10, 50), (1, 1), (24, 1)], 0, []
    for number, (rows, row_group) in enumerate(sizes):
        written.append(write_file(tmp_path / f"{number}.parquet", rows, row_group, first))
        first += rows
    return written


# ---- cut


@given(sizes=st.lists(st.integers(0, 30), max_size=12), size=st.integers(1, 40))
def test_cut_keeps_every_row_in_order_and_makes_parts_of_one_size(sizes, size):
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    batches = [batch(range(start, start + rows)) for start, rows in zip(starts, sizes)]
    parts = [table["id"].to_pylist() for table in cut(iter(batches), size) if table.num_rows]
    assert [row for part in parts for row in part] == list(range(sum(sizes)))
    whole, rest = divmod(sum(sizes), size)
    assert [len(part) for part in parts] == [size] * whole + [rest] * (rest > 0)


def test_cut_of_nothing_is_nothing():
    assert list(cut(iter([]), 5)) == []


# ---- plan_parts, read_parts


def test_a_plan_numbers_parts_through_all_files(files, tmp_path):
    assert plan_parts(files, 10, tmp_path / "out") == [
        FilePlan(files[0], 25, 0, (0, 1, 2)),
        FilePlan(files[1], 0, 3, ()),
        FilePlan(files[2], 10, 3, (3,)),
        FilePlan(files[3], 1, 4, (4,)),
        FilePlan(files[4], 24, 5, (5, 6, 7)),
    ]


@pytest.mark.parametrize("size", [1, 3, 7, 8, 24, 100])
def test_parts_together_are_the_file(files, tmp_path, size):
    for plan in plan_parts(files, size, tmp_path / "out"):
        numbers, tables = [], []
        for number, table in read_parts(plan, size):
            numbers.append(number)
            tables.append(table)
        assert numbers == list(range(plan.first, plan.first + len(plan.wanted)))
        assert [table.num_rows for table in tables[:-1]] == [size] * len(tables[:-1])
        if tables:
            assert pa.concat_tables(tables).equals(pq.read_table(plan.file))
        assert sum(table.num_rows for table in tables) == plan.rows == plan.left(size)


def test_a_resumed_plan_wants_and_reads_what_is_missing(files, tmp_path):
    for number, rows in ((0, 10), (2, 5), (3, 10), (6, 10)):
        write_part(tmp_path, number, pa.table({"id": [number] * rows}))
    plans = plan_parts(files, 10, tmp_path)
    assert [plan.wanted for plan in plans] == [(1,), (), (), (4,), (5, 7)]
    assert [plan.first for plan in plans] == [0, 3, 3, 4, 5]
    assert [plan.left(10) for plan in plans] == [10, 0, 0, 1, 10 + 4]
    read = {number: table["id"].to_pylist() for plan in plans for number, table in read_parts(plan, 10)}
    # the last file's ids start at 36
    assert read == {1: [*range(10, 20)], 4: [35], 5: [*range(36, 46)], 7: [*range(56, 60)]}


def test_a_part_that_was_not_finished_is_wanted(files, tmp_path):
    part_path(tmp_path, 0).with_name(f".{part_path(tmp_path, 0).name}.partial").write_bytes(b"PAR1")
    part_path(tmp_path, 1).touch()
    write_part(tmp_path, 2, pa.table({"id": [1] * 4}))  # of five
    assert plan_parts(files[:1], 10, tmp_path)[0].wanted == (0, 1, 2)


def test_what_a_killed_worker_had_begun_is_cleared_away(tmp_path):
    begun, other = tmp_path / ".part-000003.parquet.77.partial", tmp_path / ".claimed"
    begun.write_bytes(b"PAR1")
    other.touch()
    check_same_run(tmp_path, {"model": "m"})
    assert not begun.exists() and other.exists()


@pytest.mark.parametrize(
    ("rows", "expected"), [(0, 100), (3199, 100), (3232, 101), (20_000, 625), (160_000, 5000), (10**8, 5000)]
)
def test_the_rows_of_a_part(rows, expected):
    assert part_size(rows) == expected


def test_names_of_parts_sort_like_their_numbers(tmp_path):
    names = [part_path(tmp_path, number).name for number in (0, 9, 10, 99_999, 100_000)]
    assert names == sorted(names) and names[1] == "part-000009.parquet"


def test_a_part_is_written_whole_and_leaves_nothing_beside_it(files, tmp_path):
    table = pq.read_table(files[0])
    out = tmp_path / "out"
    out.mkdir()
    write_part(out, 3, table)
    assert [path.name for path in out.iterdir()] == ["part-000003.parquet"]
    assert pq.read_table(part_path(out, 3)).equals(table)


def test_a_part_that_cannot_be_written_is_not_there(files, tmp_path):
    (tmp_path / f".part-000000.parquet.{os.getpid()}.partial").symlink_to("/dev/full")
    with pytest.raises(OSError):
        write_part(tmp_path, 0, pq.read_table(files[0]))
    assert not part_path(tmp_path, 0).exists()


# ---- check_same_run

RUN = {"model": "weights 1", "max_length": 4096, "files": [["a.parquet", 10], ["b.parquet", 20]]}


def test_a_run_is_noted_and_the_same_one_goes_on(tmp_path):
    check_same_run(tmp_path, RUN)
    assert json.loads((tmp_path / "_run.json").read_text()) == RUN
    check_same_run(tmp_path, RUN)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "weights 2"},
        {"max_length": 100},
        {"files": RUN["files"][:1]},
        {"files": RUN["files"][::-1]},
        {"files": [["a.parquet", 11], RUN["files"][1]]},
        {"model": "weights 2", "max_length": 100},
        {"dtype": "bfloat16"},
    ],
)
def test_another_run_is_refused_by_what_is_different_and_the_note_stays(tmp_path, changes):
    check_same_run(tmp_path, RUN)
    with pytest.raises(DataError, match="; ".join(f"{name}: .*" for name in changes)) as refused:
        check_same_run(tmp_path, RUN | changes)
    assert "holds another run, different in " in str(refused.value)
    assert all(f"{name}: " not in str(refused.value) for name in RUN.keys() - changes)
    assert json.loads((tmp_path / "_run.json").read_text()) == RUN


def test_parts_of_unknown_origin_are_not_taken_for_done(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), part_path(tmp_path, 0))
    with pytest.raises(DataError, match="holds part-000000.parquet, which this command did not write"):
        check_same_run(tmp_path, RUN)
    assert not (tmp_path / "_run.json").exists()
