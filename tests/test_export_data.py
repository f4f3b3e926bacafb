"""Evaluation cases become training data that each method's own reader takes, each query on one side of the split."""

import json

import pyarrow.parquet as pq
import pytest

from common.conversation import DataError, prompt_of
from common.parquet import export_data

SYSTEM = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a tree. \u2028 é 😀"}]
SCORED = {"query": "What is 2+2?", "responses": ["4", "four", "5"], "scores": [4, 4, 0]}
PREFERRED = {"query": SYSTEM, "responses": ["Oak", "A tree"], "preference": "A"}
TIE = {"query": "Hello", "responses": ["Hi", "Hey"], "preference": "tie"}
METHODS = ("bradley_terry", "sft", "generative_pointwise", "generative_pairwise")


def many_cases(count: int = 30) -> list[dict]:
    return [
        {**case, "query": f"{number}: {case['query']}"}
        for number, case in zip(range(count), (SCORED, PREFERRED, TIE) * count)
    ]


def export_one(tmp_path, case: dict) -> dict[str, list[dict]]:
    """Export one case of two copies whose queries differ, and return each method's rows for the first."""
    other = {**case, "query": "another query"}
    paths = export_data([case, other], tmp_path, split_ratio={"train": 0.5, "test": 0.5})
    rows = {}
    for method, files in paths.items():
        parts = [pq.read_table(file).to_pylist() for (file,) in files.values()]
        rows[method] = next(part for part in parts if "another query" not in json.dumps(part))
    return rows


def test_a_scored_case_feeds_all_methods(tmp_path):
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
    verdicts = [row["messages"][-1]["content"].partition("</think>")[2].strip() for row in rows["sft"]]
    assert verdicts[:3] == ["<score>4</score>", "<score>4</score>", "<score>0</score>"]
    assert verdicts[3:] == [f"<preference>{said}</preference>" for said in ("tie", "tie", "A", "B", "A", "B")]


def test_a_preference_feeds_all_but_pointwise_and_keeps_the_dialogue(tmp_path):
    rows = export_one(tmp_path, PREFERRED)
    assert sorted(rows) == ["bradley_terry", "generative_pairwise", "sft"]
    assert rows["bradley_terry"] == [
        {
            "chosen": [*SYSTEM, {"role": "assistant", "content": "Oak"}],
            "rejected": [*SYSTEM, {"role": "assistant", "content": "A tree"}],
            "margin": 0.0,
        }
    ]
    turned = export_one(tmp_path, {**PREFERRED, "preference": "B"})["bradley_terry"]
    assert [row["chosen"][-1]["content"] for row in turned] == ["A tree"]


def test_a_tie_is_no_pair(tmp_path):
    assert sorted(export_one(tmp_path, TIE)) == ["generative_pairwise", "sft"]


def test_each_methods_own_reader_takes_what_is_written(tmp_path):
    paths = export_data(many_cases(), tmp_path)
    for method, load in zip(METHODS, ("load_pairs", "load_rows", "load_rows", "load_rows")):
        (dataset,) = method_modules(method, "dataset")
        for (file,) in paths[method].values():
            rows, bad = getattr(dataset, load)(str(file))
            assert len(rows) >= pq.read_metadata(file).num_rows and not bad


def test_a_query_is_on_the_same_side_for_every_method(tmp_path):
    paths = export_data(many_cases(), tmp_path)
    asked = {"train": set(), "test": set()}
    for method in ("bradley_terry", "generative_pointwise", "generative_pairwise"):
        for split, (file,) in paths[method].items():
            asked[split] |= {
                prompt_of({"input": row["input"] if "input" in row else row["chosen"][:-1]})
                for row in pq.read_table(file).to_pylist()
            }
    assert not asked["train"] & asked["test"]
    assert (len(asked["train"]), len(asked["test"])) == (24, 6)


def test_all_formats_hold_the_same_rows_and_the_same_cases_give_the_same_bytes(tmp_path):
    formats = ("parquet", "jsonl", "json")
    first, second = (export_data(many_cases(), tmp_path / name, formats, seed=3) for name in "ab")
    assert sorted(first) == sorted(METHODS)
    for method, splits in first.items():
        for split, (as_parquet, as_jsonl, as_json) in splits.items():
            rows = pq.read_table(as_parquet).to_pylist()
            assert rows == [json.loads(line) for line in as_jsonl.read_text("utf-8").split("\n") if line]
            assert rows == json.loads(as_json.read_text("utf-8"))
            for one, other in zip((as_parquet, as_jsonl, as_json), second[method][split]):
                assert one.read_bytes() == other.read_bytes()
    other_seed = export_data(many_cases(), tmp_path / "c", formats, seed=4)
    assert other_seed["sft"]["test"][0].read_bytes() != first["sft"]["test"][0].read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": None}, "column 'query': expected a case"),
        ({"query": "  "}, "column 'query': empty text"),
        ({"responses": "4"}, "column 'responses': expected a list of texts"),
        ({"responses": ["4", 5, "x"]}, "column 'responses': expected texts"),
        ({"responses": ["4", " ", "x"]}, "column 'responses': empty response"),
        ({"scores": None}, "column 'scores': neither scores nor a preference"),
        ({"scores": [4, 4]}, "column 'scores': expected a whole number of 0 to 4 for each response"),
        ({"scores": [4, 4, 5]}, "column 'scores': expected a whole number of 0 to 4"),
        ({"scores": [4, 4, True]}, "column 'scores': expected a whole number of 0 to 4"),
        ({"scores": [4, 4, 0.5]}, "column 'scores': expected a whole number of 0 to 4"),
        ({"preference": "A"}, "column 'preference': expected one of A, B, tie, for two responses"),
        (
            {"responses": ["4", "4", "5"], "scores": [4, 3, 0]},
            "column 'output': equal responses",
        ),
        ({"responses": ["4", "5"], "scores": [0, 4], "preference": "A"}, "column 'preference': contradicts the scores"),
        (
            {"responses": ["4", "5"], "scores": None, "preference": "C"},
            "column 'preference': expected one of A, B, tie",
        ),
    ],
)
def test_a_case_that_is_none_is_named_and_nothing_is_written(tmp_path, capsys, change, message):
    cases = [*many_cases(4), {**SCORED, **change}]
    with pytest.raises(DataError, match=f"1 of 5 rows cannot be used:\n  eval_cases row 4, {message}"):
        export_data(cases, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="on_bad_row='Drop': expected 'error' or 'drop'"):
        export_data(cases, tmp_path / "out", on_bad_row="Drop")
    assert export_data(cases, tmp_path / "out", on_bad_row="drop")["sft"]
    assert capsys.readouterr().out.startswith(f"dropped: 1 x {message.partition(' (found')[0]}")
    with pytest.raises(DataError, match="no usable case: all were dropped .1 x column"):
        export_data(cases[-1:], tmp_path / "out", on_bad_row="drop")


def test_what_is_no_case_at_all_is_named(tmp_path):
    with pytest.raises(DataError, match="eval_cases row 1, column 'case': expected a case of query, .*found None"):
        export_data([SCORED, None], tmp_path / "out")
    with pytest.raises(DataError, match="eval_cases: no usable case"):
        export_data([], tmp_path / "out")


def test_a_folder_with_what_another_export_wrote_for_other_methods_is_refused(tmp_path):
    export_data(many_cases(), tmp_path / "out", "parquet")
    (tmp_path / "out" / "generative_pointwise" / "notes.txt").touch()
    preferred = [{"query": f"Query {number}", "responses": ["yes", "no"], "preference": "A"} for number in range(20)]
    with pytest.raises(DataError, match="generative_pointwise/.*parquet is of another export"):
        export_data(preferred, tmp_path / "out")
    assert export_data(many_cases(), tmp_path / "out", "jsonl")["sft"]["train"][0].name == "train.jsonl"


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
