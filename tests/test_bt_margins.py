"""Margins of training pairs: kept over all starts of a run, and listed for those who look for wrong labels."""

import json
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from bradley_terry import page
from bradley_terry.dataset import Pair, check_pair, digest_row
from bradley_terry.margins import StepRewards, read_margins, save_train_rewards
from bradley_terry.page import FROM_FINISHED, FROM_TRAINING, suspect_examples
from common.cluster import TrainingError
from common.conversation import DataError
from common.row_list import read_row_list, without_rows

TOKENS = np.zeros(3, dtype=np.int32)


def pairs_of(count: int) -> list[Pair]:
    return [Pair(TOKENS, TOKENS[:1], TOKENS[:2], 1.0, f"train.parquet row {number}") for number in range(count)]


def rows_of(count: int) -> dict[str, dict]:
    rows = {}
    for number in range(count):
        sides = ([{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": side}] for side in "ab")
        row = check_pair(dict(zip(("chosen", "rejected"), sides)))
        rows[f"train.parquet row {number}"] = row | {"source": f"train.parquet row {number}"}
    return rows


def test_rewards_find_their_pairs_in_whatever_order_the_workers_report_them(tmp_path):
    pairs = pairs_of(4)
    log = StepRewards(tmp_path, pairs, 0)
    log.note(1, [pairs[2], pairs[0]], [[1, 5.0, 1.0], [0, 3.0, 4.0]])
    log.note(2, [pairs[3], pairs[2]], [[0, 0.5, 0.0], [1, 2.0, 1.0]])
    log.close()
    assert read_margins(tmp_path, 4) == [[(1, 4.0)], [], [(1, -1.0), (2, 1.0)], [(2, 0.5)]]


def test_a_killed_and_resumed_run_keeps_the_same_margins(tmp_path):
    """Killed in step 3 while writing, resumed after step 1: steps 2 and 3 count as they were repeated."""
    pairs = pairs_of(2)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    steps = {1: [[0, 1.0, 0.0]], 2: [[0, 2.0, 0.0]], 3: [[0, 3.0, 0.0]]}
    for folder, start, told in ((whole, 0, (1, 2, 3)), (cut, 0, (1, 2)), (cut, 1, (2, 3))):
        log = StepRewards(folder, pairs, start)
        for step in told:
            log.note(step, [pairs[step % 2]], steps[step])
        log.close()
    first = cut / "metrics" / "rewards_from_step_000000.jsonl"
    first.write_text(first.read_text() + '{"step": 3, "data": {"pai')
    assert read_margins(cut, 2) == read_margins(whole, 2) == [[(2, 2.0)], [(1, 1.0), (3, 3.0)]]


def test_a_step_is_on_disk_as_soon_as_it_is_over(tmp_path):
    pairs = pairs_of(1)
    log = StepRewards(tmp_path, pairs, 0)
    log.note(1, pairs, [[0, 1.0, 0.0]])
    assert read_margins(tmp_path, 1) == [[(1, 1.0)]]  # not closed: a killed process does not close


def test_the_file_has_a_row_for_each_pair(tmp_path):
    pairs = pairs_of(2)
    digests = {pair.source: f"digest {number}" for number, pair in enumerate(pairs)}
    margins = [[(1, 0.5), (7, -0.5)], []]
    save_train_rewards(tmp_path / "a.parquet", pairs, digests, margins, None)
    first, second = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert first == {
        "source": "train.parquet row 0",
        "digest": "digest 0",
        "steps": [1, 7],
        "margins": [0.5, -0.5],
        "final_margin": None,
    }
    assert (second["steps"], second["margins"]) == ([], [])
    save_train_rewards(tmp_path / "b.parquet", pairs, digests, margins, np.array([[2.0, 0.5], [0.0, 1.0]]))
    assert [row["final_margin"] for row in pq.read_table(tmp_path / "b.parquet").to_pylist()] == [1.5, -1.0]


def test_a_reward_that_is_not_finite_is_refused(tmp_path):
    final = np.array([[0.0, 1.0], [np.nan, 1.0]])
    with pytest.raises(TrainingError, match="1 train rewards are not finite, the first for train.parquet row 1"):
        save_train_rewards(tmp_path / "a.parquet", pairs_of(2), {}, [[], []], final)
    assert not (tmp_path / "a.parquet").exists()


def test_the_pairs_that_the_model_agrees_with_least_come_first():
    rows, pairs = rows_of(3), pairs_of(3)
    margins = [[(1, 0.5)], [(2, -2.0)], [(3, -0.1)]]
    shown = suspect_examples(pairs, margins, None, rows)
    assert [row.values["source"] for row in shown.rows] == [f"train.parquet row {number}" for number in (1, 2, 0)]
    assert [(row.values["right"], row.values["step"]) for row in shown.rows] == [("no", 2), ("no", 3), ("yes", 1)]
    assert shown.markable and shown.note == FROM_TRAINING and shown.rows[0].key == digest_row(rows[pairs[1].source])


def test_the_finished_model_decides_if_it_was_asked():
    final = np.array([[0.0, 1.0], [3.0, 1.0], [1.0, 0.5]], dtype=np.float32)
    shown = suspect_examples(pairs_of(3), [[(1, 0.5)], [(2, -2.0)], []], final, rows_of(3))
    found = [[row.values[name] for name in ("right", "margin", "when trained on", "step")] for row in shown.rows]
    assert found == [["no", -1.0, 0.5, 1], ["yes", 0.5, None, None], ["yes", 2.0, -2.0, 2]]
    assert shown.note == FROM_FINISHED


def test_with_two_epochs_it_is_said_how_a_pair_moved():
    shown = suspect_examples(pairs_of(2), [[(1, -3.0), (9, -1.0)], [(2, 1.0), (8, -2.0)]], None, rows_of(2))
    names = ("ever right", "first", "mean", "spread", "change")
    assert [[row.values[name] for name in names] for row in shown.rows] == [
        ["yes", 1.0, -0.5, 1.5, -3.0],
        ["no", -3.0, -2.0, 1.0, 2.0],
    ]
    assert shown.views[0].only == {"ever right": "no"}


def test_the_listed_pairs_stand_first_in_some_view_over_all_pairs(monkeypatch):
    """The pair that moved most has the highest margin: it is listed all the same."""
    monkeypatch.setattr(page, "MOST_ROWS", 3)
    margins = [[(1, -2.0), (9, -1.0 - number)] for number in range(9)] + [[(1, -90.0), (9, 5.0)]]
    shown = suspect_examples(pairs_of(10), margins, None, rows_of(10))
    assert [row.values["source"] for row in shown.rows] == [f"train.parquet row {number}" for number in (8, 7, 9)]
    assert shown.total == 10


def test_a_column_without_any_value_is_left_out():
    rows = rows_of(2)
    unnamed = suspect_examples(pairs_of(2), [[(1, 1.0)], [(1, 2.0)]], None, rows)
    assert "subset" not in unnamed.rows[0].values and unnamed.rows[0].values["label strength"] == 1.0
    rows["train.parquet row 0"]["subset"] = "maths"
    named = suspect_examples(pairs_of(2), [[(1, 1.0)], [(1, 2.0)]], None, rows)
    assert [row.values["subset"] for row in named.rows] == ["maths", None]


def test_a_pair_that_was_never_in_a_batch_is_not_listed():
    shown = suspect_examples(pairs_of(2), [[(1, -3.0)], []], None, rows_of(2))
    assert len(shown.rows) == shown.total == 1


# ---- the reviewed list


def test_a_row_has_the_same_digest_in_every_file_and_another_one_turned_round():
    row = rows_of(1)["train.parquet row 0"]
    as_text = check_pair({side: json.dumps(row[side]) for side in ("chosen", "rejected")} | {"margin": 3})
    assert digest_row(row) == digest_row(as_text) and len(digest_row(row)) == 16
    assert digest_row({"chosen": row["rejected"], "rejected": row["chosen"]}) != digest_row(row)


def test_listed_rows_are_left_out(tmp_path, capsys):
    rows = list(rows_of(4).values())
    listed = tmp_path / "wrong.txt"
    named = "".join(f"{digest_row(rows[number])}  {rows[number]['source']}\n" for number in (1, 3))
    listed.write_text(f"# reviewed by hand\n\n{named}{'0' * 16}  another.parquet row 9\n")
    kept, count = without_rows({"train": rows[:2], "test": rows[2:]}, listed, digest_row)
    assert kept == {"train": rows[:1], "test": rows[2:3]} and count == 2
    assert "1 of its 3 rows are not in the data, such as: 0000000000000000  another" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read as a list of rows"),
        ("", "a list without any row"),
        ("train.parquet row 7\nABCDEF0123456789  x\n", "2 lines do not begin with a row's digest.*\n.*line 1: 'train"),
        ("0123456789abcdef\n", "none of its 1 rows is in the data"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(tmp_path, text, message):
    path = tmp_path / "wrong.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        without_rows({"train": list(rows_of(2).values())}, path, digest_row)


def test_a_list_that_would_empty_a_split_is_refused(tmp_path):
    rows, path = list(rows_of(2).values()), tmp_path / "wrong.txt"
    path.write_text(digest_row(rows[1]))
    with pytest.raises(DataError, match="it names every row of the split val"):
        without_rows({"train": rows[:1], "val": rows[1:]}, path, digest_row)


@pytest.mark.parametrize("letter", ["\u2028", "\u0085", "\x0c", "\x1c"])
def test_only_a_line_feed_ends_a_line_and_a_byte_order_mark_is_passed_over(tmp_path, letter):
    path = tmp_path / "wrong.txt"
    path.write_text(f"\ufeff{'a' * 16}  my{letter}file.parquet row 3\r\n{'b' * 16}\n", encoding="utf-8")
    assert list(read_row_list(path)) == ["a" * 16, "b" * 16]


def test_a_long_list_is_read_once(tmp_path):
    """20,000 lines and as many rows: once quadratic, which took minutes."""
    names, path = [f"{number:016x}" for number in range(20_000)], tmp_path / "wrong.txt"
    path.write_text("\n".join(names[1:]))
    started = time.process_time()
    kept, count = without_rows({"train": [{"name": name} for name in names]}, path, lambda row: row["name"])
    assert (kept, count) == ({"train": [{"name": names[0]}]}, 19_999) and time.process_time() - started < 2


def test_a_list_of_bytes_is_refused(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"PAR1\xff\xfe")
    with pytest.raises(DataError, match="cannot be read as a list of rows"):
        read_row_list(tmp_path / "rows.parquet")


def test_a_page_given_in_place_of_its_list_is_told_so(tmp_path):
    page = tmp_path / "report.html"
    page.write_text("<!doctype html>\n<html></html>\n")
    with pytest.raises(DataError, match="this is a page. Open it in a browser, mark rows, and give the list"):
        read_row_list(page)
