"""Each public preference set in its real format, row by row and as files; ties, repetitions and noise are counted."""

import gzip
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shapes import assistant, user

from bradley_terry import prepare_data
from bradley_terry.dataset import check_pair, digest_row, prompt_of
from common.conversation import BadRow, DataError
from common.demo.world import preference_pairs

SOURCES = prepare_data.SOURCES
SPLITS = ("train", "val", "test")


def helpsteer2(strength: int, prompt: str = "Why?", number: int = 0) -> dict:
    return {
        "split": "train",
        "prompt": prompt,
        "response_1": f"first {number}",
        "response_2": f"second {number}",
        "preference_strength": strength,
        "preference_statement": "@Response 2 is better.",
        "preference_elaboration": None,
    }


def helpsteer3(preference: int) -> dict:
    return {
        "domain": "general",
        "language": "english",
        "context": [user("Hi"), assistant("Hello"), user("Why?")],
        "response1": "first",
        "response2": "second",
        "overall_preference": preference,
        "individual_preference": [{"score": preference, "reasoning": "…", "feedback1": "…", "feedback2": "…"}],
    }


def ultrafeedback(score_chosen: float, score_rejected: float) -> dict:
    return {
        "prompt": "Why?",
        "prompt_id": "0f3a",
        "chosen": [{"content": "Why?", "role": "user"}, {"content": "good", "role": "assistant"}],
        "rejected": [{"content": "Why?", "role": "user"}, {"content": "bad", "role": "assistant"}],
        "messages": [],
        "score_chosen": score_chosen,
        "score_rejected": score_rejected,
    }


def hh_rlhf(number: int) -> dict:
    talk = f"\n\nHuman: Name {number} gifts.\n\nAssistant: For whom?\n\nHuman: For Ann: she\n\nlikes tea.\n\nAssistant:"
    return {"chosen": f"{talk} A kettle {number}.", "rejected": f"{talk} No."}


def pair(chosen, rejected, margin: float = 0.0) -> dict:
    return {"chosen": chosen, "rejected": rejected, "margin": margin}


def convert(source: str, rows: list[dict], on_bad_row: str = "error"):
    return prepare_data.convert_pairs(rows, SOURCES[source].convert, on_bad_row)


# ---- one row of each source


@pytest.mark.parametrize(("strength", "order"), [(-3, ("first 0", "second 0")), (2, ("second 0", "first 0"))])
def test_helpsteer2_prefers_the_second_response_where_the_strength_is_positive(strength, order):
    preference = prepare_data.from_helpsteer2(helpsteer2(strength))
    assert preference["chosen"] == [user("Why?"), assistant(order[0])]
    assert preference["rejected"] == [user("Why?"), assistant(order[1])]
    assert preference["margin"] == abs(strength)


def test_helpsteer2_prompts_of_several_turns_are_taken_apart_at_their_marks():
    prompt = "Hi\n\nthere\n<extra_id_1>Assistant\nHello\n1. x\n\n<extra_id_1>User\nWhy?"
    preference = prepare_data.from_helpsteer2(helpsteer2(1, prompt))
    assert preference["chosen"] == [user("Hi\n\nthere"), assistant("Hello\n1. x"), user("Why?"), assistant("second 0")]


@pytest.mark.parametrize(("strength", "order"), [(-1, ("first", "second")), (3, ("second", "first"))])
def test_helpsteer3_prefers_the_second_response_where_the_preference_is_positive(strength, order):
    preference = prepare_data.from_helpsteer3(helpsteer3(strength))
    context = [user("Hi"), assistant("Hello"), user("Why?")]
    assert preference == pair([*context, assistant(order[0])], [*context, assistant(order[1])], abs(strength))


def test_ultrafeedbacks_margin_is_the_difference_of_the_scores():
    row = ultrafeedback(8.5, 6.0)
    (converted,), left_out = convert("ultrafeedback", [row])
    assert (converted, left_out) == (pair([user("Why?"), assistant("good")], [user("Why?"), assistant("bad")], 2.5), {})


@pytest.mark.parametrize("source", ["ultrafeedback", "pairwise"])
def test_chosen_scored_below_rejected_is_a_fault_of_its_own_name(source):
    from generative_pairwise import prepare_data as pairwise

    rows = [ultrafeedback(6.0, 8.5), ultrafeedback(8.5, 6.0)]
    kind = "column 'score_chosen': chosen is scored below rejected"
    if source == "pairwise":
        converted, left_out = pairwise.convert_comparisons(rows, "ultrafeedback", None, "drop")
    else:
        converted, left_out = convert("ultrafeedback", rows, "drop")
        with pytest.raises(DataError, match=rf"row 0, {kind} \(found \[6.0, 8.5\]\)"):
            convert("ultrafeedback", rows)
    assert len(converted) == 1 and left_out[kind] == 1


def test_pairs_keep_what_else_is_of_their_prompt():
    row = {"chosen": [assistant("good")], "rejected": [assistant("bad")], "source": "x"}
    (converted,), _ = convert("skywork", [row | {"prompt": "Why?", "system": "Be kind."}])
    start = [{"role": "system", "content": "Be kind."}, user("Why?")]
    assert converted == pair([*start, assistant("good")], [*start, assistant("bad")])
    with pytest.raises(DataError, match="column 'question': looks like a part of the prompt"):
        convert("pairs", [{"chosen": "good", "rejected": "bad", "question": "Why?"}])
    (converted,), _ = convert("pairs", [{"prompt": "Why?", "chosen": "good", "rejected": "bad", "margin": 2}])
    assert converted == pair([user("Why?"), assistant("good")], [user("Why?"), assistant("bad")], 2.0)


def test_rows_of_a_pairwise_judge_are_pairs():
    def row(preferred, **metadata):
        output = [{"answer": {"role": "assistant", "content": text}} for text in ("good", "bad")]
        return {"input": "Why?", "output": json.dumps(output), "metadata": {"preferred": preferred, **metadata}}

    good, bad = ([user("Why?"), assistant(text)] for text in ("good", "bad"))
    converted, left_out = convert("pairwise", [row("A", preference_strength=2), row("B"), row("tie")])
    assert (converted, left_out) == ([pair(good, bad, 2.0), pair(bad, good)], {"ties": 1})
    with pytest.raises(DataError, match="`preferred` is not one of A, B, tie"):
        convert("pairwise", [row("C"), row("A")])


def test_hh_rlhf_transcripts_become_turns():
    talk = [user("Name 2 gifts."), assistant("For whom?"), user("For Ann: she\n\nlikes tea.")]
    preference = prepare_data.from_hh_rlhf(hh_rlhf(2))
    assert preference == {"chosen": [*talk, assistant("A kettle 2.")], "rejected": [*talk, assistant("No.")]}


TIES = {"helpsteer2": helpsteer2(0), "helpsteer3": helpsteer3(0), "ultrafeedback": ultrafeedback(7, 7)}


@pytest.mark.parametrize(("source", "row"), TIES.items(), ids=TIES)
def test_a_tie_is_counted_and_never_written_as_a_pair(source, row):
    """Trap 11."""
    assert SOURCES[source].convert(row) is None
    with pytest.raises(DataError, match="no usable row: 2 x ties. Is --source right"):
        convert(source, [row, row])
    other = {"helpsteer2": helpsteer2(1), "helpsteer3": helpsteer3(1), "ultrafeedback": ultrafeedback(7, 6)}[source]
    assert convert(source, [row, other, row])[1] == {"ties": 2}


def test_repeated_equal_and_empty_pairs_are_left_out_and_counted():
    def skywork(chosen, rejected):
        return {"chosen": [user("Why?"), assistant(chosen)], "rejected": [user("Why?"), assistant(rejected)]}

    answers = [("good", "bad"), ("same", "same"), ("good", "bad"), ("good", " "), ("a", "b")]
    rows = [skywork(*pair) for pair in answers]
    with pytest.raises(DataError, match="2 of 5 rows cannot be used"):
        convert("skywork", rows)
    pairs, left_out = convert("skywork", rows, "drop")
    assert pairs == [{**rows[0], "margin": 0.0}, {**rows[4], "margin": 0.0}]
    assert left_out == {
        "repeated pairs": 1,
        "column 'rejected': chosen and rejected are equal": 1,
        "column 'rejected': empty response": 1,
    }


def test_rows_of_another_source_are_refused_with_their_columns():
    with pytest.raises(DataError, match=r"row 0 has no column 'context'; it has \['chosen', .*Is --source right\?"):
        convert("helpsteer3", [ultrafeedback(8, 7)])


def test_hh_rlhf_reading_conversations_is_refused_and_does_not_break_off():
    with pytest.raises(
        DataError,
        match="column 'chosen': expected text(?s:.*)is this the right file\\? For prepare_data: is --source right",
    ):
        convert("hh-rlhf", [ultrafeedback(8, 7)] * 2)


def test_a_cell_of_another_kind_is_named_with_its_column():
    with pytest.raises(DataError, match="row 0, column 'preference_strength': expected a number .found 'much'."):
        convert("helpsteer2", [helpsteer2("much"), helpsteer2(1)])
    with pytest.raises(DataError, match="row 0, column 'context'"):
        convert("helpsteer3", [helpsteer3(1) | {"context": 3}, helpsteer3(1)])


def test_longer_wins_counts_characters_of_the_answers_and_equal_lengths_one_half():
    answers = [("long", "no"), ("no", "long"), ("same", "size"), ("longer", "no")]
    rows = [{"chosen": [user("x" * 99), assistant(left)], "rejected": [assistant(right)]} for left, right in answers]
    assert prepare_data.longer_wins(rows) == (1 + 0 + 0.5 + 1) / 4
    assert prepare_data.longer_wins([{"chosen": "Q: longer", "rejected": "Q: no"}]) == 1.0


# ---- the command, in this process


@pytest.fixture
def run_main(tmp_path, monkeypatch, capsys):
    """Run the command in this process, with a cache of its own and no way to the hub; return what it printed."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    def run(*options) -> str:
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, options)])
        prepare_data.main()
        return capsys.readouterr().out

    return run


def written(folder) -> dict[str, list[dict]]:
    return {split: pq.read_table(folder / f"{split}.parquet").to_pylist() for split in SPLITS}


def write_lines(path, rows) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


@pytest.mark.parametrize("name", ["preference.jsonl", "preference.jsonl.gz", "preference.json", "preference.v2.jsonl"])
def test_a_local_json_lines_file_becomes_three_files_without_a_shared_prompt(run_main, tmp_path, name):
    rows = [helpsteer2(number % 3, f"question {number // 2}", number) for number in range(120)]
    write_lines(tmp_path / name, rows)
    printed = run_main("--source", "helpsteer2", "--path", tmp_path / name, "--output", tmp_path, "--val-share", 0.1)
    splits = written(tmp_path)
    assert [len(splits[split]) for split in SPLITS] == pytest.approx([64, 8, 8], abs=2)
    assert "left out: 40 x ties" in printed
    assert f"{tmp_path / 'train.parquet'}: {len(splits['train'])} pairs, the longer answer is the" in printed
    pairs = [pair for split in SPLITS for pair in splits[split]]
    assert sorted(pair["chosen"][-1]["content"] for pair in pairs) == sorted(
        f"second {number}" for number in range(120) if number % 3
    )
    prompts = [{prompt_of(pair) for pair in splits[split]} for split in SPLITS]
    assert sum(map(len, prompts)) == len(set().union(*prompts))


def test_a_local_parquet_file_of_transcripts_becomes_conversations(run_main, tmp_path):
    pq.write_table(pa.Table.from_pylist([hh_rlhf(number) for number in range(40)]), tmp_path / "hh.parquet")
    run_main("--source", "hh-rlhf", "--path", tmp_path / "hh.parquet", "--output", tmp_path / "data")
    splits = written(tmp_path / "data")
    assert [len(splits[split]) for split in SPLITS] == [36, 2, 2]
    assert all(pair["margin"] == 0.0 and len(pair["chosen"]) == 4 for pair in splits["train"])


def test_rows_of_a_reviewed_list_are_left_out_whatever_split_they_were_in(run_main, tmp_path):
    """The list is of prepared rows, as the page of a run names them. They are found again where they came from."""
    write_lines(tmp_path / "rows.jsonl", [helpsteer2(1, f"question {number}", number) for number in range(40)])
    source = ("--source", "helpsteer2", "--path", tmp_path / "rows.jsonl", "--output")
    run_main(*source, tmp_path / "all")
    wrong = [pair for split in SPLITS for pair in written(tmp_path / "all")[split][:2]]
    (tmp_path / "wrong.txt").write_text("".join(f"{digest_row(check_pair(pair))}  seen\n" for pair in wrong))
    printed = run_main(*source, tmp_path / "rest", "--without-rows", tmp_path / "wrong.txt", "--seed", 1)
    left = [pair["chosen"] for split in SPLITS for pair in written(tmp_path / "rest")[split]]
    assert len(left) == 34 and not [pair for pair in wrong if pair["chosen"] in left]
    assert "left out: 6 x rows of --without-rows" in printed


def test_every_other_row_stays_in_its_split(run_main, tmp_path):
    """A row that was held out must not become a training row only because others are left out."""
    write_lines(tmp_path / "rows.jsonl", [helpsteer2(1, f"question {number}", number) for number in range(40)])
    source = ("--source", "helpsteer2", "--path", tmp_path / "rows.jsonl", "--val-share", 0.2, "--output")
    run_main(*source, tmp_path / "all")
    before = written(tmp_path / "all")
    named = "".join(f"{digest_row(check_pair(pair))}  seen\n" for pair in before["train"][:15])
    (tmp_path / "wrong.txt").write_text(named)
    run_main(*source, tmp_path / "rest", "--without-rows", tmp_path / "wrong.txt")
    assert written(tmp_path / "rest") == before | {"train": before["train"][15:]}


def test_a_subset_is_kept_as_text(run_main, tmp_path):
    rows = [{"chosen": f"Q: {number}\nA: good", "rejected": f"Q: {number}\nA: bad"} for number in range(40)]
    write_lines(tmp_path / "rows.jsonl", [row | {"subset": number % 2} for number, row in enumerate(rows)])
    printed = run_main("--source", "pairs", "--path", tmp_path / "rows.jsonl", "--output", tmp_path / "data")
    found = [(row["chosen"][3:-8], row["subset"]) for rows in written(tmp_path / "data").values() for row in rows]
    assert sorted(found) == sorted((str(number), str(number % 2)) for number in range(40)) and "not read" not in printed


@pytest.mark.parametrize("subset", [1.5, True, ["maths"]])
def test_a_subset_that_is_no_name_is_a_fault(subset):
    with pytest.raises(BadRow, match="expected the name of a part of the data"):
        check_pair({"chosen": "Q: 1\nA: good", "rejected": "Q: 1\nA: bad", "subset": subset})


def test_the_demos_rows_have_no_wrong_labels_to_leave_out(run_main, tmp_path):
    with pytest.raises(DataError, match="--without-rows is for data of your own"):
        run_main("--source", "demo", "--output", tmp_path, "--without-rows", tmp_path / "wrong.txt")


def test_a_damaged_local_file_is_refused_in_one_message(run_main, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"chosen": [{"role": "user"')
    with pytest.raises(DataError, match="bad.jsonl"):
        run_main("--source", "skywork", "--path", tmp_path / "bad.jsonl", "--output", tmp_path)


@pytest.mark.parametrize("name", ["rows.csv.bak", "rows"])
def test_a_local_file_of_another_format_is_refused_and_not_looked_up_on_the_hub(run_main, tmp_path, monkeypatch, name):
    (tmp_path / name).write_text("x")
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **_: pytest.fail(f"asked for {args}"))
    with pytest.raises(DataError, match=r"expected a \.parquet, \.json, \.jsonl or \.csv file"):
        run_main("--source", "skywork", "--path", tmp_path / name, "--output", tmp_path)


@pytest.mark.parametrize("path", ["missing.jsonl", "./missing.parquet", "/no/such/folder/rows.json.gz"])
def test_a_missing_local_file_is_refused_without_asking_the_hub(monkeypatch, path):
    """Away from the network the hub's client retries for half a minute, and calls the missing file a missing set."""
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **_: pytest.fail(f"asked for {args}"))
    with pytest.raises(DataError, match=f"{path}: no such file"):
        prepare_data.load_source(str(path), "train")


def test_shares_that_leave_nothing_to_train_on_are_refused(run_main, tmp_path):
    write_lines(tmp_path / "rows.jsonl", [helpsteer2(1, f"question {number}") for number in range(9)])
    with pytest.raises(DataError, match="expected positive shares that sum to 1"):
        run_main("--source", "helpsteer2", "--path", tmp_path / "rows.jsonl", "--output", tmp_path, "--val-share", 0.5)


def test_the_demo_is_the_worlds_pairs_and_others_for_another_seed(run_main, tmp_path):
    for seed in (3, 4):
        run_main("--source", "demo", "--output", tmp_path / str(seed), "--demo-pairs", 600, "--seed", seed)
    for split, count in (("train", 600), ("val", 500), ("test", 1000)):
        path, other = (tmp_path / str(seed) / f"{split}.parquet" for seed in (3, 4))
        assert pq.read_table(path).to_pylist() == preference_pairs(split, count, 3)
        assert path.read_bytes() != other.read_bytes()


def test_an_unknown_source_is_refused_with_the_known_ones(run_main, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run_main("--source", "hellaswag", "--output", tmp_path)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert all(source in message for source in ["demo", *prepare_data.SOURCES])


# ---- the command as it is called


def run_command(folder, *options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "bradley_terry.prepare_data", *options, "--output", str(folder)],
        cwd=folder.parent,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache"), "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.mark.run
def test_a_missing_file_ends_the_command_with_one_line_and_an_error_code(tmp_path):
    command = run_command(tmp_path / "out", "--source", "skywork", "--path", "missing.jsonl")
    assert command.returncode == 1
    assert command.stderr.startswith("prepare_data.py: missing.jsonl: ")
    assert command.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*.parquet"))
