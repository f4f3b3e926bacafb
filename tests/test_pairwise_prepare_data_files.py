"""prepare_data.py of the pairwise judge as a command: files or the demo in, Parquet out, wrong calls named."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from shapes import assistant, user

from common.conversation import DataError
from common.demo.world import PREFERENCE_RUBRIC, pairwise_rows
from generative_pairwise import dataset, prepare_data
from generative_pairwise.prompt import RUBRIC, SWAPPED, ask, read_row, transcripts, write

SPLITS = ("train", "val", "test")
COLUMNS = ("input", "prompt", "prompt_swapped", "label", "rubric", "responses", "strength", "longer", "data_source")


def pairwise(number: int, preferred: str | None = None) -> dict:
    """Three pairs of answers to each question, the rows far apart: one with each label, the longer one right twice."""
    label, *texts = [("A", "It is so.", "No."), ("B", "It was so.", "No!"), ("tie", "Maybe.", "Surely")][number // 20]
    output = [{"answer": assistant(text)} for text in texts]
    metadata = {"preferred": preferred or label, "preference_strength": 2.5 if number < 20 else None}
    return {"input": [user(f"question {number % 20}")], "output": output, "metadata": metadata, "unique_id": "row"}


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """Run the command on rows, or on a file, without a way to the hub; return the rows written and what was printed."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    def run(source: str, rows, *options) -> tuple[dict[str, list[dict]], str]:
        path = rows
        if isinstance(rows, list):
            path = tmp_path / "rows.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        arguments = ["--source", source, *(["--path", path] if path else []), "--output", tmp_path, *options]
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, arguments)])
        prepare_data.main()
        splits = {split: pq.read_table(tmp_path / f"{split}.parquet").to_pylist() for split in SPLITS}
        return splits, capsys.readouterr().out

    return run


def dialogues(rows: list[dict]) -> set[str]:
    return {row["prompt"][0]["content"].partition("<response_a>")[0] for row in rows}


def shown(row: dict) -> tuple[str, str]:
    return row["prompt"][0]["content"], row["prompt_swapped"][0]["content"]


def both(dialogue: list[dict], first: str, second: str, *rubric: str) -> tuple[str, str]:
    texts = (ask(dialogue, *shown, *rubric)[0]["content"] for shown in ((first, second), (second, first)))
    return tuple(texts)


def texts_of(row: dict) -> list[str]:
    return [answer["answer"]["content"] for answer in row["output"]]


@pytest.mark.parametrize("form", [lambda cell: cell, json.dumps], ids=["native", "json"])
def test_labelled_rows_are_split_by_dialogue_and_rendered_in_both_orders_for_the_trainer(convert, tmp_path, form):
    """Traps 21 and 24."""
    rows = [pairwise(number) for number in range(60)]
    cells = [{**row, **{name: form(row[name]) for name in ("input", "output", "metadata")}} for row in rows]
    pq.write_table(pa.Table.from_pylist(cells), tmp_path / "pairs.parquet")
    splits, printed = convert("pairwise", tmp_path / "pairs.parquet", "--val-share", 0.1)
    written = sum(splits.values(), [])
    assert {shown(row): (row["label"], row["strength"], row["longer"]) for row in written} == {
        both(row["input"], *texts_of(row)): expected
        for row, expected in zip(rows, [("A", 2.5, "A")] * 20 + [("B", None, "A")] * 20 + [("tie", None, "tie")] * 20)
    }
    assert all(tuple(row) == COLUMNS and row["data_source"] == "pairwise" for row in written)
    assert {row["rubric"] for row in written} == {RUBRIC}
    assert all(shown(row)[0].count(f"\n{row['input'][0]['content']}\n") == 1 for row in written)
    assert [len(dialogues(splits[split])) for split in SPLITS] == [16, 2, 2] and len(dialogues(written)) == 20
    for split, n in (("train", 16), ("val", 2), ("test", 2)):
        counts = f"{tmp_path / split}.parquet: {3 * n} pairs, each in both orders; labels A: {n}, B: {n}, tie: {n}\n"
        shares = "  always tie: 33.3% right in both orders\n  always the longer response: 66.7% right in both orders\n"
        assert counts + shares in printed
    assert "left out" not in printed and "disagree" not in printed


def test_what_is_written_is_what_the_trainer_reads_row_by_row_in_both_orders(convert, tmp_path):
    splits, _ = convert("pairwise", [pairwise(number) for number in range(60)], "--val-share", 0.1)
    loaded, dropped = dataset.load_rows(tmp_path / "train.parquet")
    assert not dropped and len(loaded) == 96
    for row, given, swapped in zip(splits["train"], loaded[::2], loaded[1::2]):
        assert (given["prompt"], swapped["prompt"]) == (row["prompt"], row["prompt_swapped"])
        for name in ("label", "longer"):
            assert (given[name], swapped[name]) == (row[name], SWAPPED[row[name]])
        for name in ("input", "rubric", "strength", "data_source"):
            assert given[name] == swapped[name] == row[name]


def test_a_question_as_text_and_as_messages_is_one_dialogue_and_stays_on_one_side(convert):
    rows = [{**pairwise(number), "input": json.dumps(pairwise(number)["input"])} for number in range(20)]
    rows += [{**pairwise(number), "input": f"question {number % 20}"} for number in range(20, 60)]
    splits, _ = convert("pairwise", rows, "--val-share", 0.1)
    assert [(len(splits[split]), len(dialogues(splits[split]))) for split in SPLITS] == [(48, 16), (6, 2), (6, 2)]


# ---- public sets, as they are published

SIDES = {"chosen": [user("Why?"), assistant("good")], "rejected": [user("Why?"), assistant("worse")]}
TALK = "\n\nHuman: Why?\n\nAssistant: "
SECOND = {"prompt": "Why?", "response_1": "good", "response_2": "worse"}
THIRD = {"context": [user("Why?")], "response1": "good", "response2": "worse"}
PUBLIC = {
    "helpsteer2": [{**SECOND, "preference_strength": strength} for strength in (-2, 0, 3)],
    "helpsteer3": [{**THIRD, "overall_preference": preference} for preference in (-2, 0, 3)],
    "ultrafeedback": [{**SIDES, "score_chosen": 8.5, "score_rejected": score} for score in (6.5, 8.5, 5.5)],
    "skywork": [{**SIDES, "source": "magpie"}] * 3,
    "hh-rlhf": [{"chosen": TALK + "good", "rejected": TALK + "worse"}] * 3,
}
EXPECTED = dict.fromkeys(("helpsteer2", "helpsteer3"), [("A", 2.0), ("tie", None), ("B", 3.0)])
EXPECTED |= {"ultrafeedback": [("A", 2.0), ("tie", None), ("A", 3.0)]}
EXPECTED |= dict.fromkeys(("skywork", "hh-rlhf"), [("A", None)] * 3)


@pytest.mark.parametrize("source", PUBLIC)
def test_a_public_set_is_written_with_its_labels_and_strengths_and_read_again(convert, tmp_path, source):
    """In either order, as pairs may be turned round: the label says which of "good" and "worse" is the better one."""
    rows = [json.loads(json.dumps(PUBLIC[source][n % 3]).replace("Why?", f"Why {n}?")) for n in range(30)]
    splits, _ = convert(source, rows, "--val-share", 0.1)
    assert [len(splits[split]) for split in SPLITS] == [24, 3, 3]
    found = {frozenset(shown(row)): row for row in sum(splits.values(), [])}
    for number in range(30):
        as_given = both([user(f"Why {number}?")], "good", "worse")
        row, (label, strength) = found[frozenset(as_given)], EXPECTED[source][number % 3]
        turned = shown(row) == as_given[::-1]
        assert row["label"] == (SWAPPED[label] if turned else label) and row["strength"] == strength
        assert row["longer"] == ("A" if turned else "B") and row["data_source"] == source
    assert len(dataset.load_rows(tmp_path / "train.parquet")[0]) == 48


def test_what_is_left_out_and_what_is_disputed_is_printed(convert):
    rows = [pairwise(number) for number in range(60)]
    rows += [rows[0], pairwise(1, "tie"), {**rows[2], "metadata": {"preferred": "neither"}}]
    splits, printed = convert("pairwise", rows, "--on-bad-row", "drop")
    assert sum(map(len, splits.values())) == 61
    assert "left out: 1 x column 'metadata': `preferred` is not one of A, B, tie\n" in printed
    assert "left out: 1 x repeated pairs with the same label\n" in printed
    assert printed.count("annotators disagree on 1 of the pairs: each of their labels is a row\n") == 1


def test_a_rubric_of_ones_own_takes_the_place_of_the_sources(convert, tmp_path):
    (tmp_path / "mine.txt").write_text("Which is shorter?\n")
    splits, _ = convert("demo", None, "--rubric", tmp_path / "mine.txt", "--demo-rows", 20, "--biased-transcripts", 20)
    prompts = [text for rows in splits.values() for row in rows for text in shown(row)]
    prompts += [turns[0]["content"] for turns in conversations(tmp_path / "warm_start.parquet")]
    assert len(prompts) == 2 * 320 + 20
    assert all("\n\nWhich is shorter?\n\n<dialogue>" in text and PREFERENCE_RUBRIC not in text for text in prompts)


WRONG_CALLS = {
    "none.txt: no such file, or nothing in it": ("demo", "--rubric", "none.txt"),
    "null: no such file, or nothing in it": ("demo", "--rubric", "/dev/null"),
    "--source pairwise needs --path: a local file or a hub id": ("pairwise",),
    "--biased-transcripts can be made of --source demo alone": ("helpsteer2", "--biased-transcripts", "5"),
}


@pytest.mark.parametrize("message", WRONG_CALLS)
def test_options_that_would_not_be_read_are_refused(convert, tmp_path, monkeypatch, message):
    """Trap 10."""
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **_: pytest.fail(f"asked for {args}"))
    source, *options = WRONG_CALLS[message]
    with pytest.raises(DataError, match=message):
        convert(source, None, *options)
    assert not list(tmp_path.glob("*.parquet"))


def test_a_hub_set_is_asked_for_by_its_own_name_part_and_split(convert, monkeypatch):
    asked, no_rows = [], Dataset.from_list([])
    monkeypatch.setattr("datasets.load_dataset", lambda *names, **options: asked.append((*names, options)) or no_rows)
    for source in [name for name, known in prepare_data.SOURCES.items() if known.hub]:
        with pytest.raises(DataError, match="no usable row"):
            convert(source, None)
    with pytest.raises(DataError, match="no usable row"):
        convert("ultrafeedback", None, "--path", "me/mine", "--split", "test_prefs")
    assert asked.pop() == ("me/mine", {"split": "test_prefs"})
    assert asked == [
        ("nvidia/HelpSteer2", {"split": "train", "data_dir": "preference"}),
        ("nvidia/HelpSteer3", {"split": "train", "name": "preference"}),
        ("HuggingFaceH4/ultrafeedback_binarized", {"split": "train_prefs"}),
        ("Skywork/Skywork-Reward-Preference-80K-v0.2", {"split": "train"}),
        ("Anthropic/hh-rlhf", {"split": "train"}),
    ]


# ---- transcripts for SFT


def conversations(path) -> list[list[dict]]:
    return pq.read_table(path)["messages"].to_pylist()


def test_transcripts_hold_the_prompts_of_each_split_with_the_right_answers(convert, tmp_path):
    """In both orders, unless a reasoning speaks of A and B as they stand."""
    reasons = {n: f"Because of {n}." if n % 2 else None for n in range(60)}
    rows = [{**pairwise(n), "reasoning": reason} for n, reason in reasons.items()]
    splits, _ = convert("pairwise", rows, "--val-share", 0.1, "--transcripts")
    reason_of = {both(row["input"], *texts_of(row)): row["reasoning"] for row in rows}
    for split in SPLITS:
        expected = []
        for row in splits[split]:
            reason = reason_of[shown(row)]
            expected.append([row["prompt"][0], assistant(write(row["label"], reason or ""))])
            if not reason:
                expected.append([row["prompt_swapped"][0], assistant(write(SWAPPED[row["label"]]))])
        assert conversations(tmp_path / "transcripts" / f"{split}.parquet") == expected
        assert all(tuple(row) == COLUMNS for row in splits[split])


def test_transcripts_of_pairs_that_were_turned_round_agree_with_their_rows(convert, tmp_path):
    rows = [json.loads(json.dumps(PUBLIC["skywork"][0]).replace("Why?", f"Why {n}?")) for n in range(20)]
    (tmp_path / "mine.txt").write_text("Which is shorter?\n")
    splits, _ = convert("skywork", rows, "--val-share", 0.1, "--transcripts", "--rubric", tmp_path / "mine.txt")
    assert {row["label"] for row in splits["train"]} == {"A", "B"}
    for split in SPLITS:
        expected = []
        for row in splits[split]:
            expected.append([row["prompt"][0], assistant(write(row["label"]))])
            expected.append([row["prompt_swapped"][0], assistant(write(SWAPPED[row["label"]]))])
        assert conversations(tmp_path / "transcripts" / f"{split}.parquet") == expected


def test_without_the_option_no_transcripts_are_written(convert, tmp_path):
    convert("demo", None, "--demo-rows", 20)
    assert not (tmp_path / "transcripts").exists()


# ---- the demo


DEMO = ("--demo-rows", "300", "--seed", "3", "--biased-transcripts", "200")


def test_the_demo_is_made_of_the_worlds_pairs_and_its_warm_start_of_a_biased_annotators(convert, tmp_path):
    splits, printed = convert("demo", None, *DEMO)
    assert [len(splits[split]) for split in SPLITS] == [300, 100, 200]
    for row, made in zip(splits["test"], pairwise_rows("test", 200, 3)):
        assert shown(row) == both(made["input"], *texts_of(made), PREFERENCE_RUBRIC)
        assert row["input"] == made["input"]
        assert (row["label"], row["data_source"]) == (made["metadata"]["preferred"], "demo")
    biased, right = (pairwise_rows("train", 200, 4, bias) for bias in (0.65, 0.0))
    messages = conversations(tmp_path / "warm_start.parquet")
    assert messages == [turns for row in biased for turns in transcripts(read_row(row), PREFERENCE_RUBRIC)]
    assert not {turns[0]["content"] for turns in messages} & {text for row in splits["train"] for text in shown(row)}
    called, labels = ([row["metadata"]["preferred"] for row in rows] for rows in (biased, right))
    called_a, ties = called.count("A") - labels.count("A"), labels.count("tie")
    assert f"200 conversations of a biased annotator; {called_a} of {ties} ties are called A" in printed


def test_a_warm_start_so_small_that_no_tie_is_in_it_is_written_all_the_same(convert, tmp_path):
    assert {row["metadata"]["preferred"] for row in pairwise_rows("train", 2, 1)} <= {"A", "B"}
    convert("demo", None, "--demo-rows", 20, "--biased-transcripts", 2)
    assert pq.read_table(tmp_path / "warm_start.parquet").num_rows == 2


# ---- real files


@pytest.mark.parametrize(("name", "rows"), [("pairwise_train", 2202), ("pairwise_multiturn_train_json", 630)])
def test_real_files_are_converted_whole_but_for_repetitions(convert, shared_data, name, rows):
    splits, printed = convert("pairwise", shared_data / f"{name}.parquet")
    written = sum(splits.values(), [])
    repeated = sum(int(line.split()[2]) for line in printed.splitlines() if line.startswith("left out: "))
    assert len(written) == rows == pq.read_metadata(shared_data / f"{name}.parquet").num_rows - repeated
    assert [len(splits[split]) / rows for split in SPLITS] == pytest.approx([0.9, 0.05, 0.05], abs=0.01)
    assert len(dialogues(written)) == sum(len(dialogues(splits[split])) for split in SPLITS)


# ---- as a command of its own


def command(monkeypatch, tmp_path, *options: str) -> subprocess.CompletedProcess:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    called = [sys.executable, "-m", "generative_pairwise.prepare_data", *options]
    return subprocess.run(called, capture_output=True, text=True, cwd=tmp_path)


@pytest.mark.run
def test_the_demo_is_the_same_in_another_process(convert, tmp_path, monkeypatch):
    run = command(monkeypatch, tmp_path, "--source", "demo", *DEMO, "--output", str(tmp_path / "a"))
    assert (run.returncode, run.stderr) == (0, "")
    _, printed = convert("demo", None, *DEMO)
    assert printed == run.stdout.replace(str(tmp_path / "a"), str(tmp_path))
    for name in (*SPLITS, "warm_start"):
        assert (tmp_path / "a" / f"{name}.parquet").read_bytes() == (tmp_path / f"{name}.parquet").read_bytes()


@pytest.mark.run
def test_a_bad_row_ends_the_command_with_its_number_and_an_error_code(tmp_path, monkeypatch):
    pq.write_table(pa.Table.from_pylist([pairwise(0), pairwise(1, "neither")]), tmp_path / "pairs.parquet")
    paths = ["--path", str(tmp_path / "pairs.parquet"), "--output", str(tmp_path / "data")]
    run = command(monkeypatch, tmp_path, "--source", "pairwise", *paths)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    expected = "row 1, column 'metadata': `preferred` is not one of A, B, tie (found {'preferred': 'neither', "
    assert f"prepare_data.py: 1 of 2 rows cannot be used:\n  {expected}" in run.stderr
    assert not (tmp_path / "data").exists()
