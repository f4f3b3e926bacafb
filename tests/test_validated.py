"""Answers of a judge's training, brought back to their rows by the prompt that verl wrote down."""

import json

from pages import small_page
from test_page import held_by

from common.judging.prompts import measure_rows
from common.judging.validated import beside_baseline, validated_examples
from generative_pairwise import prompt as pairwise
from generative_pointwise.dataset import write_prompt
from generative_pointwise.prompt import Judged, parse, write


def rows_of(tokenizer, *labels: int) -> list[dict]:
    dialogue = [{"role": "user", "content": "Name two tools."}]
    rows = [write_prompt(Judged(dialogue, f"1. rake {label}", label)) for label in labels]
    rows = [{**row, "source": f"val.parquet row {number}", "data_source": "judge"} for number, row in enumerate(rows)]
    return measure_rows(rows, tokenizer, 10_000, False)[0]


def written(path, tokenizer, rows: list[dict], answers: dict[int, str]):
    """A record as verl writes it: prompts decoded without special tokens, in an order of its own."""
    entries = []
    for number, answer in answers.items():
        ids = tokenizer.apply_chat_template(rows[number]["prompt"], add_generation_prompt=True)["input_ids"]
        prompt = tokenizer.decode(ids, skip_special_tokens=True)
        entries.append({"input": prompt, "output": answer, "gts": rows[number]["label"], "score": 1.0, "step": 4})
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_answers_find_their_rows_and_stand_in_the_rows_order(tiny_tokenizer, tmp_path):
    rows = rows_of(tiny_tokenizer, 3, 1, 1)  # the last two have equal prompts
    answers = {2: write(1), 0: write(0, "no"), 1: "<think>\nHm"}
    record = written(tmp_path / "4.jsonl", tiny_tokenizer, rows, answers)
    shown = validated_examples("val", record, rows, tiny_tokenizer, parse, 5)
    found = [[row.values[name] for name in ("source", "right", "verdict")] for row in shown.rows]
    assert found == [
        ["val.parquet row 0", "no", "0"],
        ["val.parquet row 1", "yes", "1"],
        ["val.parquet row 2", "no", "no verdict"],
    ]
    assert shown.rows[2].values["why no verdict"].startswith("no reasoning came")
    assert shown.rows[0].bands[1].columns[0][0].text == "1. rake 3"


def test_beside_a_validations_figures_stands_what_the_most_frequent_label_reaches(tiny_tokenizer):
    found = beside_baseline({"acc": 0.5}, rows_of(tiny_tokenizer, 3, 1, 1, 4))
    assert found == {"acc": 0.5, "majority_acc": 0.5}


def test_an_answer_that_used_up_its_tokens_says_so(tiny_tokenizer, tmp_path):
    rows = rows_of(tiny_tokenizer, 3)
    record = written(tmp_path / "4.jsonl", tiny_tokenizer, rows, {0: "<think>\nrake rake rake"})
    for longest, reason in (
        (3, "its tokens ran out, probably: raise data.max_response_length"),
        (99, "no reasoning came"),
    ):
        (row,) = validated_examples("val", record, rows, tiny_tokenizer, parse, longest).rows
        assert row.values["why no verdict"].startswith(reason)


def test_an_answer_to_an_unknown_prompt_is_not_lost(tiny_tokenizer, tmp_path):
    rows = rows_of(tiny_tokenizer, 3, 1)
    record = written(tmp_path / "4.jsonl", tiny_tokenizer, rows, {0: write(3), 1: write(1)})
    shown = validated_examples("val", record, rows[:1], tiny_tokenizer, parse, 99)
    assert [row.values["source"] for row in shown.rows] == ["val.parquet row 0", "answer 1"]
    assert shown.rows[1].values["label"] == "1" and "rake 1" in shown.rows[1].bands[0].columns[0][0].text


def test_several_answers_to_a_prompt_are_rows_of_their_own(tiny_tokenizer, tmp_path):
    """As `val_kwargs.n=2` makes them; the last two rows have equal prompts."""
    rows = rows_of(tiny_tokenizer, 3, 1, 1)
    once = written(tmp_path / "once.jsonl", tiny_tokenizer, rows, {0: write(3), 1: write(1), 2: write(1)})
    record = tmp_path / "4.jsonl"
    record.write_text(once.read_text() * 2)
    shown = validated_examples("val", record, rows, tiny_tokenizer, parse, 99)
    sources = [f"val.parquet row {number}{answer}" for number in range(3) for answer in ("", ", answer 2")]
    assert [row.values["source"] for row in shown.rows] == sources
    assert all(row.values["right"] == "yes" for row in shown.rows)


def test_a_missing_record_makes_no_rows_and_says_so(tiny_tokenizer, tmp_path, capsys):
    assert validated_examples("val", tmp_path / "4.jsonl", [], tiny_tokenizer, parse, 5).rows == []
    assert "4.jsonl: no such file" in capsys.readouterr().out


def test_a_pair_whose_other_order_is_not_found_stands_beside_whole_pairs(tiny_tokenizer, tmp_path):
    from generative_pairwise.dataset import both_orders, write_prompts

    rows = []
    for number in range(2):
        judged = pairwise.Judged([{"role": "user", "content": f"{number}+2?"}], "4", "five", "A")
        pair = {**write_prompts(judged), "source": f"val.parquet row {number}", "data_source": "judge"}
        rows += measure_rows(both_orders(pair), tiny_tokenizer, 10_000, False)[0]
    given = {number: pairwise.write("AB"[number % 2]) for number in range(4)}
    record = written(tmp_path / "0.jsonl", tiny_tokenizer, rows, given)
    shown = validated_examples("val", record, rows[1:], tiny_tokenizer, pairwise.parse, 99, pairwise.SWAPPED.get)
    names = ("source", "verdict as given", "verdict swapped", "same in both orders")
    assert [[row.values[name] for name in names] for row in shown.rows] == [
        ["val.parquet row 0", "B", "not known", "not known"],
        ["val.parquet row 1", "A", "A", "yes"],
        ["answer 0", "A", "not known", "not known"],
    ]
    assert len({tuple(row.values) for row in shown.rows}) == 1
    written_page = small_page(tmp_path / "report.html", shown.rows, examples=[shown])
    assert [len(row[1]) for row in held_by(written_page)["sets"][0]["rows"]] == [len(shown.rows[0].values)] * 3


def test_both_orders_of_a_pair_come_together(tiny_tokenizer, tmp_path):
    from generative_pairwise.dataset import both_orders, write_prompts

    judged = pairwise.Judged([{"role": "user", "content": "2+2?"}], "4", "five", "A")
    pair = {**write_prompts(judged), "source": "val.parquet row 0", "data_source": "judge"}
    rows = measure_rows(both_orders(pair), tiny_tokenizer, 10_000, False)[0]
    record = written(tmp_path / "0.jsonl", tiny_tokenizer, rows, {1: pairwise.write("B"), 0: pairwise.write("A")})
    (row,) = validated_examples("val", record, rows, tiny_tokenizer, pairwise.parse, 99, pairwise.SWAPPED.get).rows
    values = {name: row.values[name] for name in ("right", "verdict as given", "verdict swapped")}
    assert values == {"right": "yes", "verdict as given": "A", "verdict swapped": "A"}


def test_a_record_that_found_another_verdict_is_told(tiny_tokenizer, tmp_path, capsys):
    """The reward function read the answer with its special tokens, the record has it without."""
    rows = rows_of(tiny_tokenizer, 3, 1)
    record = written(tmp_path / "4.jsonl", tiny_tokenizer, rows, {0: write(3), 1: write(1)})
    for parsed, told in ((1.0, 0), (0.0, 2)):
        lines = [json.dumps(json.loads(line) | {"parsed": parsed}) for line in record.read_text().splitlines()]
        record.write_text("\n".join(lines))
        shown = validated_examples("val", record, rows, tiny_tokenizer, parse, 99)
        assert (f"{told} answers had a verdict for" in shown.note) == bool(told)
        assert ("4.jsonl: 2 answers had" in capsys.readouterr().out) == bool(told)
