"""evaluate.py as it is called: a judge that answers from the data reaches full marks, and what it leaves is whole."""

import json
import sys

import pyarrow.parquet as pq
import pytest

from common.conversation import DataError
from common.demo.world import pairwise_rows, pointwise_rows
from common.labelled import pairwise_transcripts, pointwise_transcript
from common.parquet import write_rows
from common.tokenizer import set_template_options
from sft import evaluate

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def judgements(reasoning: bool) -> list[list[dict]]:
    """Six scores and four preferences, two of them comparisons in both orders where there is no reasoning."""
    scored, compared = pointwise_rows("test", 6, seed=0), pairwise_rows("test", 4, seed=0)
    for row in [] if reasoning else scored + compared:
        del row["reasoning"]
    return [*map(pointwise_transcript, scored), *(pairwise_transcripts(row)[0] for row in compared)]


@pytest.fixture
def run(tiny_model, tmp_path, monkeypatch, capsys):
    """Evaluate conversations; the answers come from `answer(prompt, room)` and not from the untrained model."""

    def evaluate_rows(conversations, answer, *options) -> tuple[dict, list[dict], str]:
        data = write_rows(tmp_path / "held_out.parquet", [{"messages": messages} for messages in conversations])
        monkeypatch.setattr(
            evaluate, "answer", lambda _, __, prompts, room, ___: [[answer(prompt, room)] for prompt in prompts]
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


PERFECT = {"parse_rate": 1.0, "accuracy": 1.0}


@pytest.mark.parametrize("reasoning", [True, False])
def test_a_judge_that_answers_from_the_data_is_always_right(run, tiny_tokenizer, tmp_path, reasoning):
    conversations = [*judgements(reasoning), CHAT]
    metrics, rows, printed = run(conversations, from_the_data(conversations, tiny_tokenizer))
    for kind, count in (("score", 6), ("preference", 4)):
        assert metrics[f"{kind}/rows"] == count
        assert metrics[f"{kind}/parse_rate"] == metrics[f"{kind}/accuracy"] == 1.0
        assert f"{kind}/accuracy" in printed
    assert metrics["conversations"] == 11 and metrics["set_aside"] == {}
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
    set_template_options(tiny_tokenizer, {"enable_thinking": False})
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
    assert [row["verdict"] for row in rows] == [None] * 10
    assert "score/mean_error" not in metrics


def test_conversations_that_are_no_judgements_are_only_measured(run, tmp_path):
    metrics, rows, _ = run([CHAT, CHAT], lambda prompt, room: pytest.fail("nothing was to be judged"))
    assert metrics["conversations"] == 2 and not [name for name in metrics if "/" in name]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["evaluation_held_out.json"]


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
