"""The files of benchmarks: which are read, how a row becomes a question, and what a wrong row is told."""

import json
from pathlib import Path

import datasets
import pytest

from common.benchmarks import read_questions, rewardbench2, rmb
from common.conversation import DataError
from common.parquet import write_rows


def four(identifier: str, subset: str, **changed) -> dict:
    row = {"id": identifier, "prompt": "2+2?", "chosen": ["4"], "rejected": ["5", "6", "7"], "num_correct": 1}
    return row | {"num_incorrect": 3, "total_completions": 4, "subset": subset} | changed


def tied(identifier: str, chosen: list[str]) -> dict:
    return four(
        identifier,
        "Ties",
        prompt="A colour?",
        chosen=chosen,
        rejected=["a", "b"],
        num_correct=len(chosen),
        total_completions=len(chosen) + 2,
    )


REWARDBENCH2 = [four(str(n), subset) for n, subset in enumerate(rewardbench2.SUBSETS[:5])]
REWARDBENCH2 += [tied("ref:3", ["red"]), tied("tied:3", ["red", "blue", "green"])]
RM_BENCH = {"id": 8, "prompt": "Why?", "chosen": ["a", "bb", "ccc"], "rejected": ["x", "yy", "zzz"]}
JUDGEBENCH = {
    "pair_id": "p1",
    "original_id": 1,
    "source": "mmlu-pro-law",
    "question": "Who?",
    "response_model": "gpt-4o-2024-05-13",
    "response_A": "the first",
    "response_B": "the second",
    "label": "B>A",
}
TALK = [
    {"role": "user", "content": "Hi", "language": "English"},
    {"role": "assistant", "content": "Yes?", "language": "English"},
    {"role": "user", "content": "Why?", "language": "English"},
]
PAIR = {
    "pair_uid": "7",
    "conversation_input": TALK,
    "chosen": {"llm_name": "m", "answer": "good"},
    "reject": {"llm_name": "n", "answer": "bad"},
    "category_path": "Pairwise_set/Harmlessness/S1",
}
BEST = {
    "bon_uid": "7",
    "conversation_input": TALK,
    "bon_best": {"llm_name": "m", "answer": "best"},
    "loser_list": [{"llm_name": "n", "answer": text} for text in ("worse", "worst")],
    "category_path": "BoN_set/Helpfulness/Open QA/Factual",
}
LLMBAR = {"input": "Do it.", "output_1": "done", "output_2": "not done", "label": 2}


def save(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines) if path.suffix == ".jsonl" else json.dumps(rows))
    return path


def asked(prompt: str) -> list[dict]:
    return [{"role": "user", "content": prompt}]


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "json"])
def test_rewardbench_2_in_every_form(tmp_path, ending):
    questions = read_questions("rewardbench2", write_rows(tmp_path / f"rows.{ending}", REWARDBENCH2))
    assert [question.subset for question in questions] == [*rewardbench2.SUBSETS, "Ties"]
    assert [question.right for question in questions] == [1] * 6 + [3]
    assert questions[0].prompt == asked("2+2?") and questions[0].answers == ["4", "5", "6", "7"]
    assert questions[-1].id == "Ties/tied:3" and questions[-1].answers == ["red", "blue", "green", "a", "b"]


def test_rewardbench_2_from_the_hub(monkeypatch):
    """Rows of the same columns stand for the real ones."""
    named = []

    def load(home, split):
        named.append((home, split))
        return datasets.Dataset.from_list(REWARDBENCH2)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(read_questions("rewardbench2")) == 7
    assert named == [("allenai/reward-bench-2", "test")]


def test_judgebench_and_rm_bench_from_the_hub(monkeypatch):
    rows = {
        ("ScalerLab/JudgeBench", "gpt"): [JUDGEBENCH],
        ("ScalerLab/JudgeBench", "claude"): [JUDGEBENCH | {"response_model": "claude-3-5-sonnet-20240620"}],
        ("THU-KEG/RM-Bench", "train"): [RM_BENCH | {"domain": "safety-refuse"}],
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda home, split: datasets.Dataset.from_list(rows[home, split]))
    assert [question.subset for question in read_questions("judgebench")] == ["gpt/mmlu-pro", "claude/mmlu-pro"]
    assert [question.id for question in read_questions("rm_bench")] == ["safety-refuse/8"]


def test_what_is_on_no_hub_says_where_it_is():
    with pytest.raises(DataError, match="git clone https://github.com/Zhou-Zoey.* name its folder: rmb=FOLDER$"):
        read_questions("rmb")
    with pytest.raises(
        DataError, match="git clone https://github.com/princeton-nlp/LLMBar.* name its folder: llmbar=FOLDER$"
    ):
        read_questions("llmbar")


def test_rm_bench_takes_a_domain_from_the_files_name_and_the_whole_file_alone(tmp_path):
    save(tmp_path / "data" / "chat_filtered.json", [RM_BENCH])
    save(tmp_path / "data" / "safety-response_filtered.json", [RM_BENCH])
    save(tmp_path / "scripts" / "settings.json", [{"model": "x"}])
    (chat, safety) = read_questions("rm_bench", tmp_path)
    assert (chat.subset, safety.subset) == ("chat", "safety-response")
    assert chat.answers == ["a", "bb", "ccc", "x", "yy", "zzz"] and chat.right == 3
    save(tmp_path / "data" / "total_dataset.json", [RM_BENCH | {"domain": "math"}])
    assert [question.subset for question in read_questions("rm_bench", tmp_path)] == ["math"]


def test_judgebench_puts_the_right_answer_first_and_leaves_judges_answers_alone(tmp_path):
    save(tmp_path / "data" / "dataset=judgebench,response_model=gpt.jsonl", [JUDGEBENCH])
    save(tmp_path / "outputs" / "dataset=judgebench,response_model=gpt,judge_name=x.jsonl", [JUDGEBENCH])
    (question,) = read_questions("judgebench", tmp_path)
    assert question.answers == ["the second", "the first"] and question.subset == "gpt/mmlu-pro"


def test_a_line_of_jsonl_may_hold_any_separator_of_lines(tmp_path):
    odd = JUDGEBENCH | {"question": "one\u2028two\x85three"}
    (question,) = read_questions("judgebench", save(tmp_path / "rows.jsonl", [odd]))
    assert question.prompt == asked("one\u2028two\x85three")


def test_rmb_reads_pairs_and_best_of_n_and_no_results(tmp_path):
    save(tmp_path / "RMB_dataset" / "Pairwise_set" / "Harmlessness" / "S1.json", [PAIR])
    save(tmp_path / "RMB_dataset" / "BoN_set" / "Helpfulness" / "Open QA" / "Factual.json", [BEST])
    save(tmp_path / "eval" / "result" / "model.json", [{"pair_uid": 1}])
    best, pair = read_questions("rmb", tmp_path)
    assert pair.answers == ["good", "bad"] and best.answers == ["best", "worse", "worst"]
    assert [message["role"] for message in pair.prompt] == ["user", "assistant", "user"]
    assert pair.prompt[0] == {"role": "user", "content": "Hi"}
    assert rmb.BENCHMARK.section_of(best.subset) == "BoN_set/Helpfulness"
    assert len(rmb.SCENARIOS) == 49


def test_llmbar_reads_its_five_sets_alone(tmp_path):
    save(tmp_path / "Dataset" / "LLMBar" / "Natural" / "dataset.json", [LLMBAR, LLMBAR | {"label": 1}])
    save(tmp_path / "Dataset" / "LLMBar" / "Adversarial" / "GPTOut" / "dataset.json", [LLMBAR])
    save(tmp_path / "Dataset" / "CaseStudy" / "Negation" / "dataset.json", [LLMBAR])
    save(tmp_path / "Dataset" / "LLMBar" / "Natural" / "evaluators" / "result.json", [LLMBAR])
    questions = read_questions("llmbar", tmp_path)
    assert [question.id for question in questions] == ["GPTOut/0", "Natural/0", "Natural/1"]
    assert [question.answers[0] for question in questions] == ["not done", "not done", "done"]


BAD = [
    ("rewardbench2", four("1", "Math") | {"chosen": None}, "column 'chosen': the value is missing"),
    ("rewardbench2", four("1", "Math", num_correct=2), "expected the number of answers in the row, 1 (found 2)"),
    ("rewardbench2", four("1", "Math", rejected=["5"]), "expected the number of answers in the row, 2 (found 4)"),
    (
        "rewardbench2",
        four("1", "Math", chosen=["4", "four"], rejected=["5", "6"], num_correct=2),
        "expected one chosen",
    ),
    ("rewardbench2", four("1", "Maths"), "expected one of Factuality, Precise IF"),
    ("rewardbench2", four("3", "Ties"), "expected ref:NUMBER or tied:NUMBER"),
    ("rewardbench2", tied("tied:4", ["red"]), "two or more right answers"),
    ("rm_bench", RM_BENCH | {"domain": "chat", "chosen": ["a"]}, "expected a list of 3 answers"),
    ("rm_bench", RM_BENCH | {"domain": "cooking"}, "expected one of chat, math"),
    ("judgebench", JUDGEBENCH | {"label": "A=B"}, "expected A>B or B>A (found 'A=B')"),
    ("judgebench", JUDGEBENCH | {"source": "cooking"}, "a name that starts with one of mmlu-pro"),
    ("judgebench", JUDGEBENCH | {"response_model": "me"}, "expected one of gpt-4o-2024-05-13"),
    ("judgebench", JUDGEBENCH | {"response_B": None}, "column 'response_B': the value is missing"),
    ("rmb", PAIR | {"category_path": "Pairwise_set/Cooking"}, "then a scenario of the benchmark"),
    ("rmb", PAIR | {"reject": "bad"}, 'expected an answer as {"llm_name": name, "answer": text}'),
    ("rmb", BEST | {"loser_list": []}, "expected a list of one or more answers"),
    ("rmb", {name: value for name, value in PAIR.items() if name != "chosen"}, "'chosen': the column is missing"),
    ("rmb", PAIR | {"pair_uid": True}, "expected a number or text (found True)"),
    ("llmbar", LLMBAR | {"label": 3}, "expected 1 or 2 (found 3)"),
    ("llmbar", LLMBAR | {"input": " "}, "column 'input': expected text"),
]
PLACES = {"rmb": "Pairwise_set/rows.json", "llmbar": "Natural/dataset.json"}


@pytest.mark.parametrize(("name", "row", "told"), BAD)
def test_a_row_that_is_none_is_told_where_and_why(tmp_path, name, row, told):
    path = save(tmp_path / PLACES.get(name, "rows.json"), [row])
    with pytest.raises(DataError) as error:
        read_questions(name, path)
    assert told in str(error.value) and f"{path.name} row 0" in str(error.value)


def test_all_faults_of_all_rows_are_in_one_report(tmp_path):
    rows = [JUDGEBENCH, JUDGEBENCH, JUDGEBENCH | {"pair_id": "p2", "label": "A"}]
    rows += [{**JUDGEBENCH, "pair_id": f"q{number}", "question": ""} for number in range(6)]
    with pytest.raises(DataError) as error:
        read_questions("judgebench", save(tmp_path / "rows.jsonl", rows))
    report = str(error.value)
    assert "8 of 9 rows are not as the benchmark's authors publish them" in report
    assert "an id that comes twice (found 'gpt/mmlu-pro/p1, first in rows.jsonl row 0')" in report
    assert "row 2, column 'label': expected A>B or B>A (found 'A')" in report
    assert "… and 3 more" in report and "6 x column 'question': expected text" in report


def test_a_file_of_another_kind_is_told_by_its_columns(tmp_path):
    with pytest.raises(
        DataError, match=r"Are these the benchmark's files\? The last row has the columns chosen, rejected"
    ):
        read_questions("judgebench", save(tmp_path / "mine.jsonl", [{"chosen": "a", "rejected": "b"}] * 3))


def test_all_files_that_cannot_be_read_are_in_one_report(tmp_path):
    (tmp_path / "chat_filtered.json").write_text("[{")
    (tmp_path / "code_filtered.json").write_text("{}")
    with pytest.raises(DataError) as error:
        read_questions("rm_bench", tmp_path)
    assert "chat_filtered.json: cannot be read" in str(error.value)
    assert "code_filtered.json: expected a list of rows" in str(error.value)


def test_ties_without_a_prompt_that_has_both_rows_are_an_error(tmp_path):
    rows = [tied("ref:1", ["red"]), tied("tied:2", ["red", "blue"])]
    with pytest.raises(DataError, match="no prompt with both of its rows"):
        read_questions("rewardbench2", save(tmp_path / "rows.json", rows))


def test_no_file_no_benchmark(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        read_questions("rm_bench", tmp_path / "none")
    with pytest.raises(DataError, match="no file of this benchmark in it"):
        read_questions("rm_bench", tmp_path)
    with pytest.raises(DataError, match="no benchmark 'mmlu'; there are rewardbench2"):
        read_questions("mmlu", tmp_path)
