"""Figures of a language model and of a judge on cases counted by hand; verdicts found without knowing the judge."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import generative_pairwise.prompt as pairwise
import generative_pointwise.prompt as pointwise
from common.demo.transcripts import comparing, scoring
from common.demo.world import pairwise_rows, pointwise_rows
from common.report import Table
from sft import dataset, evaluate

find_judgements, split_answer = evaluate.find_judgements, evaluate.split_answer
confusion, token_metrics, verdict_metrics = evaluate.confusion, evaluate.token_metrics, evaluate.verdict_metrics


def talk(*turns: str) -> dict:
    """A row whose turns are the user's and the assistant's; its source is its last turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": turn} for number, turn in enumerate(turns)]
    return {"messages": messages, "source": turns[-1]}


def judged(*ends: str) -> list[dict]:
    """Rows whose last turns reason, each in other words, and then end so."""
    return [talk("Judge.", f"<think>\nHm, {number}.\n</think>\n\n{end}") for number, end in enumerate(ends)]


def verdicts_of(rows: list[dict]) -> dict[str, list[str]]:
    return {kind: [verdict for _, verdict in found] for kind, found in find_judgements(rows).items()}


def test_every_trained_token_weighs_the_same_in_whichever_conversation_it_lies():
    """By hand: losses 1, 1, 1 and 5: mean 2, where the mean of the conversations' means is 3; three of four correct."""
    metrics = token_metrics([np.array([[1.0, 1, 1], [1, 1, 1]]), np.array([[5.0], [0]])])
    assert metrics == {
        "conversations": 2,
        "trained_tokens": 4,
        "loss": 2.0,
        "perplexity": pytest.approx(math.exp(2)),
        "token_accuracy": 0.75,
    }


def test_many_small_fp32_losses_are_not_lost_beside_a_large_one():
    measured = [np.array([[1.0], [1]], dtype=np.float32), np.full((2, 1000), 1e-8, dtype=np.float32)]
    assert token_metrics(measured)["loss"] == pytest.approx((1 + 1e-5) / 1001, rel=1e-10)


# ---- what an answer ends with

ENDS = {
    "<think>\nHm.\n</think>\n\n<score>3</score>": ("score", "3"),
    "<think>\n\n</think>\n\n<score>0</score>": ("score", "0"),
    "<think>Hm.</think><preference>tie</preference>\n": ("preference", "tie"),
    "Hm.</think><label>not good</label>": ("label", "not good"),  # the prompt has written <think>
    "<think>Is it <score>4</score>?</think><score>2</score>": ("score", "2"),
    '<think>Hm.</think>\n{"score": 7}': ("verdict", '{"score": 7}'),
    "<think>Hm.</think> B ": ("verdict", "B"),
    # no tag around the whole end, so it is of the kind that has none
    "<think>Hm.</think><score>3</score> of 4": ("verdict", "<score>3</score> of 4"),
    "<think>Hm.</think><score>3</score><score>4</score>": ("verdict", "<score>3</score><score>4</score>"),
    "<think>Hm.</think><score>3</preference>": ("verdict", "<score>3</preference>"),
    "<think>Hm.</think><score></score>": ("verdict", "<score></score>"),
    "<think>Hm.</think>Hm.</think><score>3</score>": ("verdict", "Hm.</think><score>3</score>"),
}


@pytest.mark.parametrize("text", ENDS)
def test_an_answer_is_split_behind_its_closed_reasoning(text):
    assert split_answer(text) == ENDS[text]


def test_an_empty_think_block_of_the_templates_may_stand_before_the_reasoning():
    """Trap 37."""
    for empty in ("<think>\n\n</think>\n\n", "</think>"):
        assert split_answer(empty + "<think>Hm.</think>\n<score>3</score>") == ("score", "3")
        assert split_answer(empty + "<score>3</score>") == ("score", "3")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<score>3</score>",
        "<think>Hm. <score>3</score>",  # not closed
        "<score>3</score><think>Hm.</think>",  # before the reasoning
        "<score>3</score>\n<think>Hm.</think>\n<score>4</score>",
        "<think>Hm.<think>Hm.</think><score>3</score>",
        "<think></think><think>Hm. <score>3</score>",
    ],
)
def test_an_answer_without_one_closed_reasoning_in_front_has_no_end(text):
    assert split_answer(text) is None


@pytest.mark.parametrize(
    ("kind", "write", "verdicts"),
    [("score", pointwise.write, pointwise.VERDICTS), ("preference", pairwise.write, pairwise.VERDICTS)],
)
def test_what_the_judges_write_is_split_into_their_verdicts(kind, write, verdicts):
    for reasoning in ("", "Hm.", "<score>1</score>", "a </think> b <preference>A</preference>"):
        assert [split_answer(write(verdict, reasoning)) for verdict in verdicts] == [
            (kind, str(verdict)) for verdict in verdicts
        ]


FRAGMENTS = ["<think>", "</think>", "<score>", "</score>", "<preference>", "</preference>", "<SCORE>", "A", "tie"]
FRAGMENTS += ["0", "3", "5", "-3", "3.0", "３", "\n", " ", "Hm.", "<score>3</score>", "<preference>B</preference>"]


SOME = st.lists(st.sampled_from(FRAGMENTS), max_size=2).map("".join)
CLOSED, VERDICT = st.sampled_from(["</think>", "</think>\n\n", ""]), st.sampled_from(FRAGMENTS + FRAGMENTS[-2:] * 9)


@settings(max_examples=500)
@given(st.tuples(SOME, CLOSED, VERDICT, SOME).map("".join))
def test_an_end_is_one_of_a_judges_verdicts_exactly_where_its_own_parser_reads_one(text):
    """So the figures of sft are those of the judges, which are strict."""
    kind, verdict = split_answer(text) or ("none", "")
    for name, prompt in (("score", pointwise), ("preference", pairwise)):
        known = kind == name and verdict in map(str, prompt.VERDICTS)
        assert (verdict if known else "None") == str(prompt.parse(text))


# ---- which rows are a judge's


def test_verdicts_are_found_by_the_last_turn_alone_and_kept_apart_by_their_tag():
    scored, compared = talk("Judge.", pointwise.write(0)), talk("Judge.", pairwise.write("tie"))
    earlier = talk("Judge.", pointwise.write(2), "Why?", "Because.")
    later = talk("Hi", "Hello", "Judge.", pointwise.write(4))
    rows = [talk("Hi", "Hello"), scored, earlier, compared, later]
    assert find_judgements(rows) == {"score": [(scored, "0"), (later, "4")], "preference": [(compared, "tie")]}
    assert find_judgements([rows[0], earlier]) == find_judgements([]) == {}


def test_a_scale_and_words_that_nobody_knows_are_found_as_they_stand():
    scores, words = [str(score) for score in range(11)], ["good", "bad", "unclear"]
    rows = judged(*(f"<points>{score}</points>" for score in scores), *(f"<label>{word}</label>" for word in words))
    assert verdicts_of(rows) == {"points": scores, "label": words}


def test_numbers_between_tags_may_be_as_many_as_there_are_rows():
    scores = [str(score) for score in range(101)]
    assert verdicts_of(judged(*(f"<points>{score}</points>" for score in scores))) == {"points": scores}


def test_json_verdicts_are_found_because_each_comes_four_times_on_average():
    ends = [f'{{"score": {number % 5}}}' for number in range(20)]
    assert verdicts_of(judged(*ends)) == {"verdict": ends}
    assert verdicts_of(judged(*ends[:19])) == {}


def test_chat_data_with_reasoning_is_not_taken_for_a_judges():
    assert verdicts_of(judged(*(f"The answer is {number}." for number in range(40)))) == {}
    assert verdicts_of(judged(*(str(number) for number in range(40)))) == {}  # numbers, but without a tag
    long = "It depends on what you would like to cook, and on how much time you have for it."
    assert verdicts_of(judged(*[long] * 40)) == {}
    assert verdicts_of(judged(*(f"<answer>about {number}</answer>" for number in range(40)))) == {}
    assert verdicts_of([talk("Why?", "A"), talk("How?", "A")] * 20) == {}  # short, but they do not reason


def test_rows_of_chat_do_not_hide_a_judges_verdicts():
    scores = [f"<score>{number % 5}</score>" for number in range(20)]
    chat = [*(f"Answer {number}." for number in range(5)), "<score>" + "long " * 20 + "</score>"]
    assert verdicts_of(judged(*scores, *chat)) == {"score": [str(number % 5) for number in range(20)]}


def test_words_between_tags_have_at_most_60_characters_and_at_most_25_of_them_differ():
    def found(words: list[str]) -> dict:
        return verdicts_of(judged(*(f"<label>{word}</label>" for word in words)))

    words = [f"kind {number}" for number in range(26)]
    assert found(words[:25] * 2) == {"label": words[:25] * 2} and found(words * 2) == {}
    assert found(["a" * 60, "b"]) == {"label": ["a" * 60, "b"]} and found(["a" * 61, "b"]) == {"label": ["b"]}


# ---- a judge's figures


def test_figures_of_six_scores():
    """By hand: right 4 and 4; errors 0, 1, 3, 0, 2 over the five with a verdict; 0, 1, 0 within one, of six rows."""
    labels, verdicts = ["4", "4", "4", "4", "2", "0"], ["4", "3", "1", "4", "4", None]
    assert verdict_metrics(labels, verdicts) == {
        "rows": 6,
        "parse_rate": pytest.approx(5 / 6),
        "accuracy": pytest.approx(2 / 6),
        "majority_accuracy": pytest.approx(4 / 6),
        "within_one": pytest.approx(3 / 6),
        "mean_error": pytest.approx(6 / 5),
    }


def test_a_digit_of_another_script_is_not_a_number():
    """Trap 15: it would be 3 to `float`, and so count as within one."""
    assert not evaluate.are_numbers(["３"]) and not evaluate.are_numbers(["3", "٣"])


def test_numbers_may_be_negative_or_have_a_point():
    metrics = verdict_metrics(["-1.5", "2", "10"], ["-1", "-1.5", "10"])
    assert metrics["mean_error"] == pytest.approx((0.5 + 3.5 + 0) / 3)
    assert metrics["within_one"] == pytest.approx(2 / 3)


def test_figures_of_five_preferences():
    labels, verdicts = ["A", "B", "tie", "tie", "tie"], ["A", "A", "tie", None, "B"]
    assert verdict_metrics(labels, verdicts) == {
        "rows": 5,
        "parse_rate": 0.8,
        "accuracy": 0.4,
        "majority_accuracy": 0.6,
        "recall_A": 1.0,
        "recall_B": 0.0,
        "recall_tie": pytest.approx(1 / 3),
    }


def test_a_missing_verdict_is_wrong_whatever_the_label():
    """Trap 14: no label is 0 by being absent, and none is a tie."""
    for labels, zero in ((["0", "0", "2"], ("within_one",)), (["tie", "tie", "A"], ("recall_tie", "recall_A"))):
        metrics = verdict_metrics(labels, [None] * 3)
        assert (metrics["parse_rate"], metrics["accuracy"]) == (0, 0)
        assert metrics["majority_accuracy"] == pytest.approx(2 / 3)
        assert {metrics[name] for name in zero} == {0}
        assert "mean_error" not in metrics


def test_there_is_a_recall_of_the_labels_alone():
    metrics = verdict_metrics(["A", "B"], ["tie", "B"])
    assert [name for name in metrics if name.startswith("recall")] == ["recall_A", "recall_B"]


def test_the_confusion_has_a_row_a_label_and_a_column_for_no_verdict():
    labels, verdicts = ["A", "A", "B", "tie", "tie"], ["A", None, "A", "tie", None]
    rows = ["A", "B", "tie"]
    counts = [[1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 1, 1]]
    assert confusion(labels, verdicts, "right") == Table("right", rows, [*rows, "no verdict"], counts)


def test_the_confusion_of_numbers_is_in_their_order():
    table = confusion(["10", "2", "2"], ["10", None, "10"], "")
    assert (table.rows, table.columns) == (["2", "10"], ["2", "10", "no verdict"])
    assert table.counts == [[0, 1, 1], [0, 1, 0]]


def test_the_confusion_has_a_column_for_a_verdict_that_is_never_right():
    table = confusion(["10", "2"], ["9", "2"], "")
    assert (table.rows, table.columns) == (["2", "10"], ["2", "9", "10", "no verdict"])
    assert table.counts == [[1, 0, 0, 0], [0, 1, 0, 0]]


# ---- the model's own verdicts


@pytest.fixture
def judge(tiny_tokenizer, monkeypatch):
    """Have rows of one kind judged; the answers come from a list and not from a model."""

    def judge_rows(rows: list[dict], answers: list[str]) -> list[dict]:
        ((kind, judgements),) = find_judgements(rows).items()
        monkeypatch.setattr(evaluate, "answer_prompts", lambda *_: [[answer] for answer in answers])
        return evaluate.judge_rows(None, tiny_tokenizer, kind, judgements, None, 1000)

    return judge_rows


ANSWERS = {
    "<think>Hm.</think><score>2</score>": "2",
    "<think>Hm.</think>\n\n<score>3</score>\n": "3",
    "Hm.</think><score>2</score>": "2",
    "<think>Hm.</think><score>4</score>": "4",  # a number that no row has, among numbers: a wrong verdict
    "<think>Hm.</think><score>-2.5</score>": "-2.5",
    "<think>Hm.</think><score>two</score>": None,  # not a number
    "<think>Hm.</think><score>２</score>": None,
    "<think>Hm.</think><score> 2 </score>": None,
    "<think>Hm.</think><score></score>": None,
    "<think>Hm.</think><preference>2</preference>": None,  # another tag
    "<think>Hm.</think>2": None,
    "<think>Hm.</think><score>2</score> or <score>3</score>": None,
    "<think>Hm. <score>2</score>": None,  # not closed
    "<score>2</score>": None,  # no reasoning
    "<score>2</score><think>Hm.</think>": None,  # before the reasoning
    "<score>2</score> Hm.</think>": None,
    "<think>Hm.</think>": None,
    "": None,
}


def test_a_score_counts_only_as_a_number_between_the_datas_tags(judge):
    rows = judged(*["<score>2</score>", "<score>3</score>"] * 9)
    found = judge(rows, list(ANSWERS))
    assert {row["answer"]: row["verdict"] for row in found} == ANSWERS
    assert [row["label"] for row in found] == [str(2 + number % 2) for number in range(len(ANSWERS))]
    assert {row["kind"] for row in found} == {"score"}
    assert [row["source"] for row in found] == [row["source"] for row in rows]
    prompt = "<|im_start|>user\nJudge.<|im_end|>\n<|im_start|>assistant\n"
    assert {row["prompt"] for row in found} == {prompt}


def test_a_word_that_no_row_has_is_not_a_verdict(judge):
    rows = judged("<preference>A</preference>", "<preference>B</preference>", "<preference>A</preference>")
    answers = [f"<think>Hm.</think><preference>{said}</preference>" for said in ("B", "tie", "a")]
    assert [row["verdict"] for row in judge(rows, answers)] == ["B", None, None]


def test_a_json_verdict_counts_only_as_the_data_writes_it(judge):
    rows = judged(*['{"score": 7}', '{"score": 9}'] * 4)
    answers = ['{"score": 7}', '{"score": 9}', '{"score":7}', '{"score": 8}', '```json\n{"score": 7}\n```', "7"]
    answers += ["<score>7</score>", '<verdict>{"score": 7}</verdict> or so']
    found = judge(rows, [f"<think>\nHm.\n</think>\n\n{answer}" for answer in answers])
    assert [row["verdict"] for row in found] == ['{"score": 7}', '{"score": 9}', *[None] * 6]
    assert {row["kind"] for row in found} == {"verdict"}


@pytest.mark.parametrize(
    ("begun", "answer", "verdict"),
    [
        ("<think>\n", "Hm.\n</think>\n\n<score>2</score>", "2"),
        ("<think>\n\n</think>\n\n", "<score>2</score>", "2"),
        ("<think>\n\n</think>\n\n", "Hm. <score>2</score>", None),
        ("<think>\n", "<score>2</score>", None),
    ],
)
def test_an_answer_is_read_behind_what_the_chat_template_has_begun(judge, tiny_tokenizer, begun, answer, verdict):
    """Trap 23."""
    header = "'<|im_start|>assistant\\n'"
    assert header in tiny_tokenizer.chat_template
    written = header + f" ~ {begun!r}"
    tiny_tokenizer.chat_template = tiny_tokenizer.chat_template.replace(header, written)
    (found,) = judge(judged("<score>2</score>"), [answer])
    assert found["prompt"].endswith(begun) and found["verdict"] == verdict


# ---- measuring


@pytest.fixture(scope="module")
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


@torch.inference_mode()
def measured_alone(model, example) -> np.ndarray:
    """One conversation without padding, -log softmax in float64."""
    ids = torch.from_numpy(example.ids).long()
    logits = model(input_ids=ids[None]).logits[0].double()
    places = [place for place in range(1, len(ids)) if example.mask[place]]
    losses = [-logits[place - 1].log_softmax(0)[ids[place]].item() for place in places]
    correct = [float(logits[place - 1].argmax() == ids[place]) for place in places]
    return np.array([losses, correct])


def test_tokens_are_measured_as_in_each_conversation_alone_whatever_the_batch(model, tiny_tokenizer, monkeypatch):
    """Trap 12."""
    monkeypatch.setattr(evaluate, "CHUNK", 16)  # tokens whose losses are computed at a time
    chats = [scoring(row) for row in pointwise_rows("test", 4, seed=0)]
    chats += [comparing(row) for row in pairwise_rows("test", 2, seed=0)]
    chats.append([{"role": role, "content": "Hi " * 30} for role in ("user", "assistant", "user", "assistant")])
    rows = [{"messages": messages, "source": str(number)} for number, messages in enumerate([*chats, chats[-1][2:]])]
    examples, _ = dataset.encode_conversations(rows, tiny_tokenizer, 4096, "error")
    alone = [measured_alone(model, example) for example in examples]
    for max_tokens in (1, 900, 10**6):
        measured = evaluate.measure_tokens(model, examples, tiny_tokenizer.pad_token_id, max_tokens)
        assert len(measured) == len(examples) == 8
        for example, values, expected in zip(examples, measured, alone):
            assert values.shape == (2, example.mask.sum())
            assert expected[0].std() > 0.01  # the losses differ by far more than the tolerance
            np.testing.assert_allclose(values[0], expected[0], atol=1e-5)
            np.testing.assert_array_equal(values[1], expected[1])
