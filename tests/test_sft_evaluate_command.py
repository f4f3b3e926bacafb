"""evaluate.py as it is called: a judge that answers from the data reaches full marks, and what it leaves is whole."""

import json
import shutil
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard
from test_page import held_by

from common.conversation import DataError
from common.demo.world import pairwise_rows, pointwise_rows
from common.parquet import write_rows
from common.tokenizer import set_template_options
from generative_pairwise import prompt as pairwise
from generative_pointwise import prompt as pointwise
from sft import evaluate
from sft.dataset import Example
from sft.page import conversation_examples, judgement_values

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def judgements(reasoning: bool) -> list[list[dict]]:
    """Six scores and four preferences, as the judges' prepare_data.py writes them for SFT."""
    scored, compared = pointwise_rows("test", 6, seed=0), pairwise_rows("test", 4, seed=0)
    for row in [] if reasoning else scored + compared:
        del row["reasoning"]
    return [
        prompt.transcripts(prompt.read_row(row))[0]
        for prompt, rows in ((pointwise, scored), (pairwise, compared))
        for row in rows
    ]


@pytest.fixture
def run(tiny_model, tmp_path, monkeypatch, capsys):
    """Evaluate conversations; the answers come from `answer(prompt, room)` and not from the untrained model."""

    def evaluate_rows(conversations, answer, *options) -> tuple[dict, list[dict], str]:
        data = write_rows(tmp_path / "held_out.parquet", [{"messages": messages} for messages in conversations])
        monkeypatch.setattr(
            evaluate, "answer_prompts", lambda _, __, prompts, room, ___: [[answer(prompt, room)] for prompt in prompts]
        )
        arguments = ["--model", tiny_model, "--data", data, "--output", tmp_path / "figures", *options]
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
        evaluate.main()
        written = tmp_path / "figures"
        answers = written / "evaluation_held_out.parquet"
        rows = pq.read_table(answers).to_pylist() if answers.exists() else []
        return json.loads((written / "evaluation_held_out.json").read_text()), rows, capsys.readouterr().out

    return evaluate_rows


def from_the_data(conversations: list[list[dict]], tokenizer):
    """Answer as the labelled conversation goes on behind the prompt, as a model trained on it would."""
    rest = {}
    for messages in conversations:
        prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        assert whole.startswith(prompt)
        rest[prompt] = whole[len(prompt) :].removesuffix("<|im_end|>\n")
    return lambda prompt, room: rest[prompt]


@pytest.mark.parametrize("reasoning", [True, False])
def test_a_judge_that_answers_from_the_data_is_always_right(run, tiny_tokenizer, tmp_path, reasoning):
    conversations = [*judgements(reasoning), CHAT]
    metrics, rows, printed = run(conversations, from_the_data(conversations, tiny_tokenizer))
    for kind, count in (("score", 6), ("preference", 4)):
        assert metrics[f"{kind}/rows"] == count
        assert metrics[f"{kind}/parse_rate"] == metrics[f"{kind}/accuracy"] == 1.0
        assert f"{kind}/accuracy" in printed
    assert (metrics["conversations"], metrics["conversations_without_a_verdict"], metrics["set_aside"]) == (11, 1, {})
    assert [row["kind"] for row in rows] == ["score"] * 6 + ["preference"] * 4
    assert [row["source"] for row in rows] == [f"held_out.parquet row {number}" for number in range(10)]
    assert all(row["label"] == row["verdict"] for row in rows)
    assert [row["answer"] for row in rows] == [conversation[-1]["content"] for conversation in conversations[:10]]
    assert (tmp_path / "figures" / "evaluation_held_out.png").read_bytes().startswith(b"\x89PNG")


def test_a_template_that_writes_the_empty_think_block_into_the_prompt_leaves_the_verdict_to_the_model(
    run, tiny_tokenizer, monkeypatch
):
    """Trap 23: the model then answers with the verdict alone, and its answer is read with what the prompt began."""
    conversations = judgements(reasoning=False)
    set_template_options(tiny_tokenizer, {"enable_thinking": False}, "data.template_options")
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: tiny_tokenizer)
    metrics, rows, _ = run(conversations, from_the_data(conversations, tiny_tokenizer))
    assert {row["answer"] for row in rows} <= {
        *(f"<score>{score}</score>" for score in range(5)),
        *(f"<preference>{preference}</preference>" for preference in ("A", "B", "tie")),
    }
    assert metrics["score/parse_rate"] == metrics["score/accuracy"] == metrics["preference/accuracy"] == 1.0


def test_a_judge_that_says_nothing_is_always_wrong_and_nothing_breaks(run):
    metrics, rows, printed = run(judgements(reasoning=True), lambda prompt, room: "I cannot say.")
    for kind in ("score", "preference"):
        assert metrics[f"{kind}/parse_rate"] == metrics[f"{kind}/accuracy"] == 0.0
        assert metrics[f"{kind}/majority_accuracy"] > 0
        assert f"{kind}: no answer of the model ends with a verdict. Train it for longer" in printed
    assert [row["verdict"] for row in rows] == [None] * 10
    assert "score/mean_error" not in metrics


def test_conversations_without_a_verdict_are_only_measured(run, tmp_path):
    metrics, rows, _ = run([CHAT, CHAT], lambda prompt, room: pytest.fail("nothing was to be judged"))
    assert metrics["conversations"] == 2 and not [name for name in metrics if "/" in name]
    left = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert left == ["evaluation_held_out.html", "evaluation_held_out.json"]


def test_reasoned_answers_that_are_not_a_judges_are_counted_and_not_judged(run):
    thoughtful = [[CHAT[0], {**CHAT[1], "content": f"<think>\nHm.\n</think>\n\nIt is {n}."}] for n in range(3)]
    metrics, rows, printed = run([*thoughtful, CHAT], lambda prompt, room: pytest.fail("nothing was to be judged"))
    assert metrics["conversations"] == 4 and rows == []
    assert "3 last turns reason, but do not end with one of a few verdicts: not judged\n" in printed


def test_an_answer_has_room_for_twice_the_longest_in_the_data_or_as_much_as_asked(run, tiny_tokenizer):
    conversations, rooms = judgements(reasoning=True)[:6], set()
    run(conversations, lambda prompt, room: rooms.add(room) or "")
    answers = [messages[-1]["content"] for messages in conversations]
    assert rooms == {2 * max(map(len, tiny_tokenizer(answers)["input_ids"]))}
    run(conversations, lambda prompt, room: rooms.add(room) or "", "--max-new-tokens", 7)
    assert 7 in rooms


def test_bad_and_long_conversations_are_refused_or_set_aside_and_never_judged(run, tiny_tokenizer):
    conversations = judgements(reasoning=True)[:6]
    long = [{"role": "user", "content": "long " * 500}, conversations[0][1]]
    broken = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " "}]
    answer = from_the_data(conversations, tiny_tokenizer)
    with pytest.raises(DataError, match="row 6, column 'messages'"):
        run([*conversations, broken], answer)
    with pytest.raises(DataError, match="row 6: "):
        run([*conversations, long], answer, "--max-length", 400)
    options = ("--max-length", 400, "--truncation", "drop", "--on-bad-row", "drop")
    metrics, rows, printed = run([long, *conversations, broken], answer, *options)
    assert metrics["score/rows"] == metrics["conversations"] == 6 and metrics["score/accuracy"] == 1.0
    assert sum(metrics["set_aside"].values()) == 2
    assert "set aside: 1 x longer than 400 tokens, dropped" in printed
    assert [row["source"] for row in rows] == [f"held_out.parquet row {number}" for number in range(1, 7)]


# ---- the options


def options_of(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--model", "m", "--data", "d", *map(str, arguments)])
    return evaluate.read_options()


def test_a_runs_settings_hold_unless_the_command_says_otherwise(tmp_path, monkeypatch):
    data = {"max_length": 100, "truncation": "left", "on_bad_row": "drop", "turns": "last", "train_batch_size": 8}
    settings = {"data": data, "model": {"trust_remote_code": True}}
    (tmp_path / "settings.yaml").write_text(json.dumps(settings))
    given = ("--settings", tmp_path / "settings.yaml")

    def found(*arguments) -> tuple:
        options = options_of(monkeypatch, *arguments)
        return tuple(getattr(options, name) for name in (*list(data)[:4], "trust_remote_code"))

    assert found() == (None, "error", "error", "all", False)
    assert found(*given) == (100, "left", "drop", "last", True)
    # also where the command says what is usual
    assert found(*given, "--truncation", "error", "--turns", "all", "--max-length", 9) == (
        9,
        "error",
        "drop",
        "all",
        True,
    )


def test_figures_are_added_to_the_card_of_a_folder_only(monkeypatch, run, tiny_tokenizer, tiny_model, tmp_path):
    with pytest.raises(DataError, match="--card writes into the checkpoint's folder, and m is not a folder"):
        options_of(monkeypatch, "--card")
    conversations, checkpoint = judgements(reasoning=True), tmp_path / "checkpoint"
    shutil.copytree(tiny_model, checkpoint)
    (checkpoint / "README.md").write_text("# Judge\n")
    run(conversations, from_the_data(conversations, tiny_tokenizer), "--model", checkpoint, "--card")
    card = (checkpoint / "README.md").read_text()
    assert card.startswith("# Judge\n\n## Measured on held_out.parquet\n")
    assert "| score/accuracy | 1 |" in card and "![Measured on held_out.parquet](evaluation_held_out.png)" in card

    (checkpoint / "README.md").write_text("---\ntags: [reward-recipes]\n---\n# Judge\n")
    run(conversations, from_the_data(conversations, tiny_tokenizer), "--model", checkpoint, "--card")
    results = {
        each.metric_type: each.metric_value for each in ModelCard.load(checkpoint / "README.md").data.eval_results
    }
    assert results.keys() >= {"loss", "token_accuracy", "preference/accuracy", "preference/parse_rate"}
    assert results["score/accuracy"] == results["score/parse_rate"] == 1
    assert (checkpoint / "evaluation_held_out.png").read_bytes().startswith(b"\x89PNG")


# ---- the page


def test_the_page_shows_the_models_answer_beside_the_datas(run, tiny_tokenizer, tmp_path):
    conversations = [*judgements(True)[:6], CHAT]
    run(conversations, from_the_data(conversations, tiny_tokenizer))
    held = held_by(tmp_path / "figures" / "evaluation_held_out.html")
    (shown,) = held["sets"]
    rows = [dict(zip(shown["columns"], row[1])) for row in shown["rows"]]
    assert [row["right"] for row in rows] == ["yes"] * 6 + [None]
    assert all(row["label"] == row["verdict"] for row in rows) and shown["tables"] == [["label", "verdict"]]
    compared, columns = shown["rows"][0][2][1]
    titles = [[title for title, *_ in column] for column in columns]
    texts = [held["texts"][column[0][1]] for column in columns]
    assert compared and titles == [["assistant, in the data"], ["the model's answer"]]
    assert texts == [conversations[0][-1]["content"]] * 2


def test_conversations_without_a_judge_have_no_columns_of_verdicts():
    examples = [Example(np.arange(4, dtype=np.int32), np.array([False, False, True, True]), "a.parquet row 0")]
    shown = conversation_examples(
        "val", examples, [np.array([[1.0, 3.0], [1.0, 0.0]])], {"a.parquet row 0": {"messages": CHAT}}
    )
    assert shown.rows[0].values == {
        "source": "a.parquet row 0",
        "loss": 2.0,
        "tokens right": 0.5,
        "tokens": 4,
        "trained tokens": 2,
        "file": "a.parquet",
    }
    assert [view.title for view in shown.views] == ["worst predicted", "best predicted", "longest"]
    texts = [[text.text for column in band.columns for text in column] for band in shown.rows[0].bands]
    assert texts == [["Hi"], ["Hello"]]


def test_an_answer_without_a_verdict_is_wrong():
    said = {"kind": "score", "label": "3", "verdict": None}
    assert judgement_values(said) == {"right": "no", "kind": "score", "label": "3", "verdict": "no verdict"}
