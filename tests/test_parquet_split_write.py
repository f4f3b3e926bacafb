"""Splitting by prompt and writing: no prompt on two sides, the same files for the same rows, no half-written file."""

import json

import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from common.conversation import DataError
from common.parquet import read_rows, split_by_prompt, write_rows

RATIOS = [{"train": 0.8, "test": 0.2}, {"train": 0.5, "test": 0.5}, {"train": 0.9, "val": 0.05, "test": 0.05}]


def prompt_of(row: dict) -> str:
    return row["prompt"]


def make_rows(prompts) -> list[dict]:
    """One row a prompt, all different; the same prompts may come again."""
    return [{"prompt": str(prompt), "answer": number} for number, prompt in enumerate(prompts)]


def split(rows: list[dict], ratio: dict[str, float], seed: int = 0) -> dict[str, list[dict]]:
    return split_by_prompt(rows, ratio, seed, prompt_of)


def as_sets(splits: dict[str, list[dict]]) -> dict[str, set[str]]:
    return {name: {json.dumps(row) for row in rows} for name, rows in splits.items()}


# ---- splits


@given(st.lists(st.integers(0, 12), min_size=3, max_size=60), st.sampled_from(RATIOS), st.integers(0, 5))
def test_each_row_is_in_one_split_each_prompt_too_and_no_split_is_empty(prompts, ratio, seed):
    assume(len(set(prompts)) >= len(ratio))
    rows = make_rows(prompts)
    splits = split(rows, ratio, seed)
    assert list(splits) == list(ratio)
    assert sorted(json.dumps(row) for part in splits.values() for row in part) == sorted(map(json.dumps, rows))
    sides = [{prompt_of(row) for row in part} for part in splits.values()]
    assert all(sides)
    assert sum(map(len, sides)) == len(set().union(*sides))
    largest_prompt = max(prompts.count(prompt) for prompt in prompts)
    for name, share in ratio.items():
        assert abs(len(splits[name]) - share * len(rows)) <= len(ratio) * largest_prompt


@given(st.lists(st.integers(0, 12), min_size=3, max_size=60), st.randoms(use_true_random=False))
def test_a_split_depends_on_the_rows_and_not_on_their_order(prompts, rng):
    assume(len(set(prompts)) >= 3)
    rows = make_rows(prompts)
    shuffled = rng.sample(rows, len(rows))
    assert as_sets(split(rows, RATIOS[2])) == as_sets(split(shuffled, RATIOS[2]))


@given(st.integers(20, 200), st.sampled_from(RATIOS), st.integers(0, 3))
def test_with_one_row_a_prompt_sizes_are_the_ratio_to_the_row(count, ratio, seed):
    splits = split(make_rows(range(count)), ratio, seed)
    assert all(abs(len(splits[name]) - share * count) <= 1 for name, share in ratio.items())


@settings(max_examples=300)
@given(st.lists(st.integers(1, 8), min_size=3, max_size=20), st.sampled_from(RATIOS[:2]))
def test_no_prompt_at_the_cut_would_bring_the_sizes_nearer_to_the_ratio(rows_of_prompt, ratio):
    """The docstring's "as nearly as whole prompts allow"; prompts stay in their hashed order."""
    rows = make_rows(prompt for prompt, count in enumerate(rows_of_prompt) for _ in range(count))
    train, test = split(rows, ratio).values()
    off_by = abs(len(train) - ratio["train"] * len(rows)) + 1e-9
    for side, sign, edge in ((train, -1, train[-1]), (test, 1, test[0])):
        at_edge = sum(prompt_of(row) == prompt_of(edge) for row in side)
        if at_edge < len(side):  # a split keeps one prompt at least
            assert abs(len(train) + sign * at_edge - ratio["train"] * len(rows)) >= off_by - 2e-9


def test_another_seed_is_another_split_and_the_same_seed_the_same():
    rows = make_rows(range(50))
    assert split(rows, RATIOS[0]) == split(rows, RATIOS[0])
    assert as_sets(split(rows, RATIOS[0])) != as_sets(split(rows, RATIOS[0], 1))


@pytest.mark.parametrize("ratio", [{"train": 0.8, "test": 0.1}, {"train": 1.2, "test": -0.2}, {"train": 1, "test": 0}])
def test_shares_that_do_not_sum_to_one_are_refused(ratio):
    with pytest.raises(DataError, match="expected positive shares that sum to 1"):
        split(make_rows(range(10)), ratio)


def test_fewer_prompts_than_splits_are_refused():
    with pytest.raises(DataError, match="1 different prompts cannot fill 2 splits"):
        split(make_rows([7, 7, 7]), RATIOS[0])


def test_a_split_is_the_same_on_every_machine():
    """Prompts stand in the order of their SHA-256, of "0:d" and so on: d, a, c, b, e."""
    splits = split(make_rows("abcde"), {"train": 0.6, "test": 0.4})
    assert {name: [row["prompt"] for row in part] for name, part in splits.items()} == {
        "train": ["d", "a", "c"],
        "test": ["b", "e"],
    }


# ---- files


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "json"])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, ending):
    path = write_rows(tmp_path / f"train.{ending}", make_rows([1, 2]))
    before = path.read_bytes()

    def fill_the_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("common.files.os.replace", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        write_rows(path, make_rows([3]))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "json"])
def test_a_row_that_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path, ending):
    path = write_rows(tmp_path / f"train.{ending}", [{"a": 1}])
    before = path.read_bytes()
    with pytest.raises((DataError, TypeError)):
        write_rows(path, [{"a": "fine"}, {"a": object()}])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


REFUSED = [
    ("a.parquet", [], "there is no row to write"),
    ("a.csv", [{"a": 1}], "unknown format '.csv', expected .parquet, .jsonl or .json"),
    ("a.parquet", [{"a": 1}, {"a": 1}, {"b": 1}], r"row 2 has columns \['b'\], row 0 has \['a'\]"),
    ("a.parquet", [{"a": 1}, {"a": "x"}], "the rows share no Parquet type"),
    ("a.parquet", [{"a": {}}], "the rows share no Parquet type"),
]


@pytest.mark.parametrize(("name", "rows", "message"), REFUSED)
def test_rows_that_make_no_table_are_refused_with_the_file_and_the_reason(tmp_path, name, rows, message):
    with pytest.raises(DataError, match=message) as caught:
        write_rows(tmp_path / name, rows)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert list(tmp_path.iterdir()) == []


def test_writing_makes_the_folder_and_replaces_an_older_file(tmp_path):
    path = tmp_path / "new" / "folder" / "train.parquet"
    assert write_rows(path, [{"a": 1}]) == path
    write_rows(path, [{"a": 2}])
    assert pq.read_table(path).to_pylist() == [{"a": 2}]


def test_rows_of_two_files_of_one_name_keep_their_folders_apart(tmp_path):
    paths = [write_rows(tmp_path / folder / "test.parquet", [{"text": folder}]) for folder in ("a", "b")]
    rows, _ = read_rows(paths, ("text",))
    assert [row["source"] for row in rows] == ["a/test.parquet row 0", "b/test.parquet row 0"]
