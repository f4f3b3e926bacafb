"""Evaluation cases become training data that each method's own reader takes, each query on one side of the split."""

import json

import pyarrow.parquet as pq
import pytest

import bradley_terry.dataset
import generative_pairwise.dataset
import generative_pointwise.dataset
from common.conversation import DataError
from common.parquet import export_data

SYSTEM = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a tree. \u2028 é 😀"}]
SCORED = {"query": "What is 2+2?", "responses": ["4", "four", "5"], "scores": [4, 4, 0]}
PREFERRED = {"query": SYSTEM, "responses": ["Oak", "A tree"], "preference": "A"}
TIE = {"query": "Hello", "responses": ["Hi", "Hey"], "preference": "tie"}
READERS = {
    "bradley_terry": bradley_terry.dataset.load_pairs,
    "generative_pointwise": generative_pointwise.dataset.load_rows,
    "generative_pairwise": generative_pairwise.dataset.load_rows,
}


def many_cases(count: int = 30) -> list[dict]:
    return [
        {**case, "query": f"{number}: {case['query']}"}
        for number, case in zip(range(count), (SCORED, PREFERRED, TIE) * count)
    ]


def export_one(tmp_path, case: dict) -> dict[str, list[dict]]:
    """Export one case of two copies whose queries differ, and return the rows of each kind for the first."""
    other = {**case, "query": "another query"}
    paths = export_data([case, other], tmp_path, split_ratio={"train": 0.5, "test": 0.5})
    rows = {}
    for kind, files in paths.items():
        parts = [pq.read_table(file).to_pylist() for (file,) in files.values()]
        rows[kind] = next(part for part in parts if "another query" not in json.dumps(part))
    return rows


def test_a_scored_case_makes_rows_of_every_kind(tmp_path):
    rows = export_one(tmp_path, SCORED)
    user = {"role": "user", "content": "What is 2+2?"}
    sides = [(row["chosen"], row["rejected"], row["margin"]) for row in rows["bradley_terry"]]
    assert sides == [
        ([user, {"role": "assistant", "content": better}], [user, {"role": "assistant", "content": "5"}], 4.0)
        for better in ("4", "four")
    ]
    scored = rows["generative_pointwise"]
    assert [(row["input"], row["output"][0]["answer"]["content"], row["label"]) for row in scored] == [
        ([user], "4", 4),
        ([user], "four", 4),
        ([user], "5", 0),
    ]
    assert [row["metadata"] for row in rows["generative_pairwise"]] == [
        {"preferred": "tie", "preference_strength": None},
        {"preferred": "A", "preference_strength": 4},
        {"preferred": "A", "preference_strength": 4},
    ]


@pytest.mark.parametrize(("scores", "margins"), [([10, 7, 0], [3.0, 10.0, 7.0]), ([-1, -1, -5], [4.0, 4.0])])
def test_scores_are_whole_numbers_of_any_scale(tmp_path, scores, margins):
    rows = export_one(tmp_path, {**SCORED, "scores": scores})
    assert [row["label"] for row in rows["generative_pointwise"]] == scores
    assert [row["margin"] for row in rows["bradley_terry"]] == margins


def test_a_preference_makes_no_scored_row_and_keeps_the_dialogue(tmp_path):
    rows = export_one(tmp_path, PREFERRED)
    assert sorted(rows) == ["bradley_terry", "generative_pairwise"]
    assert rows["bradley_terry"] == [
        {
            "chosen": [*SYSTEM, {"role": "assistant", "content": "Oak"}],
            "rejected": [*SYSTEM, {"role": "assistant", "content": "A tree"}],
            "margin": 0.0,
        }
    ]
    (compared,) = rows["generative_pairwise"]
    assert compared["input"] == SYSTEM
    assert [answer["answer"]["content"] for answer in compared["output"]] == ["Oak", "A tree"]
    assert compared["metadata"] == {"preferred": "A", "preference_strength": None}
    turned = export_one(tmp_path, {**PREFERRED, "preference": "B"})["bradley_terry"]
    assert [row["chosen"][-1]["content"] for row in turned] == ["A tree"]


def test_a_tie_makes_no_pair(tmp_path):
    rows = export_one(tmp_path, TIE)
    assert sorted(rows) == ["generative_pairwise"]
    assert [row["metadata"]["preferred"] for row in rows["generative_pairwise"]] == ["tie"]


def test_each_methods_own_reader_takes_what_is_written(tmp_path):
    paths = export_data(many_cases(), tmp_path)
    assert sorted(paths) == sorted(READERS)
    for kind, load in READERS.items():
        for (file,) in paths[kind].values():
            rows, bad = load(str(file))
            assert len({row["source"] for row in rows}) == pq.read_metadata(file).num_rows > 0 and not bad


def test_a_query_is_on_the_same_side_for_every_kind(tmp_path):
    asked = {"train": set(), "test": set()}
    for files in export_data(many_cases(), tmp_path).values():
        for split, (file,) in files.items():
            rows = pq.read_table(file).to_pylist()
            asked[split] |= {json.dumps(row["input"] if "input" in row else row["chosen"][:-1]) for row in rows}
    assert not asked["train"] & asked["test"]
    assert (len(asked["train"]), len(asked["test"])) == (24, 6)


def test_all_formats_hold_the_same_rows_and_the_same_cases_give_the_same_bytes(tmp_path):
    formats = ("parquet", "jsonl", "json")
    first, second = (export_data(many_cases(), tmp_path / name, formats, seed=3) for name in "ab")
    assert sorted(first) == sorted(READERS)
    for kind, splits in first.items():
        for split, (as_parquet, as_jsonl, as_json) in splits.items():
            rows = pq.read_table(as_parquet).to_pylist()
            assert rows == [json.loads(line) for line in as_jsonl.read_text("utf-8").split("\n") if line]
            assert rows == json.loads(as_json.read_text("utf-8"))
            for one, other in zip((as_parquet, as_jsonl, as_json), second[kind][split]):
                assert one.read_bytes() == other.read_bytes()
    other_seed = export_data(many_cases(), tmp_path / "c", formats, seed=4)
    assert other_seed["bradley_terry"]["test"][0].read_bytes() != first["bradley_terry"]["test"][0].read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": None}, "column 'query': expected a case"),
        ({"query": "  "}, "column 'query': empty text"),
        ({"responses": "4"}, "column 'responses': expected a list of texts"),
        ({"responses": ["4", 5, "x"]}, "column 'responses': expected texts"),
        ({"responses": ["4", " ", "x"]}, "column 'responses': empty response"),
        ({"scores": None}, "column 'scores': neither scores nor a preference"),
        ({"scores": [4, 4]}, "column 'scores': expected a whole number for each response"),
        ({"scores": [4, 4, "5"]}, "column 'scores': expected a whole number for each response"),
        ({"scores": [4, 4, True]}, "column 'scores': expected a whole number for each response"),
        ({"scores": [4, 4, 0.5]}, "column 'scores': expected a whole number for each response"),
        ({"preference": "A"}, "column 'preference': expected one of A, B, tie, for two responses"),
        (
            {"responses": ["4", "4", "5"], "scores": [4, 3, 0]},
            "column 'responses': equal responses, one of them preferred",
        ),
        ({"responses": ["4", "5"], "scores": [0, 4], "preference": "A"}, "column 'preference': contradicts the scores"),
        (
            {"responses": ["4", "5"], "scores": None, "preference": "C"},
            "column 'preference': expected one of A, B, tie",
        ),
    ],
)
def test_a_bad_case_is_named_and_nothing_is_written(tmp_path, capsys, change, message):
    cases = [*many_cases(4), {**SCORED, **change}]
    with pytest.raises(DataError, match=f"1 of 5 rows cannot be used:\n  eval_cases row 4, {message}"):
        export_data(cases, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="on_bad_row='Drop': expected 'error' or 'drop'"):
        export_data(cases, tmp_path / "out", on_bad_row="Drop")
    assert export_data(cases, tmp_path / "out", on_bad_row="drop")
    assert capsys.readouterr().out.startswith(f"dropped: 1 x {message.partition(' (found')[0]}")
    with pytest.raises(DataError, match="no usable case: all were dropped .1 x column"):
        export_data(cases[-1:], tmp_path / "out", on_bad_row="drop")


def test_what_is_not_a_case_at_all_is_named(tmp_path):
    with pytest.raises(DataError, match="eval_cases row 1, column 'case': expected a case of query, .*found None"):
        export_data([SCORED, None], tmp_path / "out")
    with pytest.raises(DataError, match="eval_cases: no usable case"):
        export_data([], tmp_path / "out")


def test_a_folder_with_what_another_export_wrote_of_other_kinds_is_refused(tmp_path):
    export_data(many_cases(), tmp_path / "out", "parquet")
    (tmp_path / "out" / "generative_pointwise" / "notes.txt").touch()
    preferred = [{"query": f"Query {number}", "responses": ["yes", "no"], "preference": "A"} for number in range(20)]
    with pytest.raises(DataError, match="generative_pointwise/.*parquet is of another export"):
        export_data(preferred, tmp_path / "out")
    assert export_data(many_cases(), tmp_path / "out", "jsonl")["bradley_terry"]["train"][0].name == "train.jsonl"


@pytest.mark.parametrize(
    ("cases", "formats", "message"),
    [
        (
            [SCORED, *({**TIE, "query": f"tie {number}"} for number in range(9))],
            ["parquet"],
            "no row of bradley_terry in",
        ),
        (many_cases(), ["parquet", "csv"], "formats: found csv, expected some of parquet, jsonl, json"),
    ],
)
def test_what_cannot_be_written_whole_is_not_begun(tmp_path, cases, formats, message):
    with pytest.raises(DataError, match=message):
        export_data(cases, tmp_path / "out", formats)
    assert not (tmp_path / "out").exists()
