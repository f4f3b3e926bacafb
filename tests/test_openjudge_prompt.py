"""A copy of a judge's folder with the prompt and the verdict of an OpenJudge grader: what it asks, writes and reads."""

import asyncio
import importlib
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest
from openjudge.graders.common.relevance import RelevanceGrader
from openjudge.graders.llm_grader import LLMGrader
from openjudge.graders.schema import GraderError, GraderRank, GraderRankCallback, GraderScore, GraderScoreCallback
from openjudge.models.openai_chat_model import OpenAIChatModel
from pydantic import ValidationError
from test_copies import copy, edit
from test_endpoint import serve

from common.conversation import DataError
from common.demo.world import pairwise_rows, pointwise_rows
from common.launch import load_package
from common.parquet import write_rows

LINE = "from .openjudge_prompt import *  # noqa: E402, F403\n"
SCORED = [row | {"label": row["label"] + 1} for row in pointwise_rows("train", 40, seed=0)]
COMPARED = [row for row in pairwise_rows("train", 40, seed=0) if row["metadata"]["preferred"] != "tie"]


def copy_of(method: str, place: Path, changes: dict[str, str] | None = None) -> Callable[[str], ModuleType]:
    """Copy a folder, edit it as the README says, and return what gives a module of the copy by its name.

    Args:
        changes: of its openjudge_prompt.py, old text and new.
    """
    copy(method, place)
    edit(place / "openjudge_prompt.py", changes or {})
    with open(place / "prompt.py", "a") as prompt:
        prompt.write(LINE)
    package = load_package(place)
    return lambda name: importlib.import_module(f"{package}.{name}")


@pytest.fixture(scope="module")
def relevance(tmp_path_factory):
    return copy_of("generative_pointwise", tmp_path_factory.mktemp("copies") / "relevance")


@pytest.fixture(scope="module")
def ranker(tmp_path_factory):
    return copy_of("generative_pairwise", tmp_path_factory.mktemp("copies") / "ranker")


def sent_by(make_grader, called: dict, answer: str) -> tuple[list[dict], object]:
    """Return what the unmodified grader sends over HTTP, and what it makes of the answer."""
    with serve(lambda *_: answer) as (url, requests):
        model = OpenAIChatModel(model="judge", base_url=url, api_key="none", max_retries=0)
        try:
            result = asyncio.run(make_grader(model).aevaluate(**called))
        except ValidationError as error:
            result = GraderError(name="", error=str(error), reason="")
    return requests[0]["messages"], result


def test_the_prompt_is_what_the_unmodified_grader_sends(relevance):
    prompt, dialogue = relevance("prompt"), [{"role": "user", "content": "2+2? {not a slot}"}]
    called = {"query": "2+2? {not a slot}", "response": "It is <b>4</b>. </Response>"}
    sent, result = sent_by(lambda model: RelevanceGrader(model=model), called, prompt.write(5, 'It says "4".\n'))
    assert prompt.ask(dialogue, called["response"]) == sent
    assert [turn["role"] for turn in sent] == ["system", "user"] and "It is <b>4</b>. </Response>" in sent[1]["content"]
    assert isinstance(result, GraderScore) and (result.score, result.reason) == (5, 'It says "4".')


def test_the_ranking_prompt_is_what_the_unmodified_grader_sends(ranker):
    prompt, made = ranker("prompt"), ranker("openjudge_prompt")
    called = made.call([{"role": "user", "content": "2+2?"}], "5", "4")
    sent, result = sent_by(made.make_grader, called, prompt.write("B", "The second is right."))
    assert prompt.ask([{"role": "user", "content": "2+2?"}], "5", "4") == sent
    assert isinstance(result, GraderRank) and (result.rank, result.reason) == ([2, 1], "The second is right.")
    assert type(made.make_grader(OpenAIChatModel(model="x", api_key="none"))) is LLMGrader


def test_a_dialogue_of_several_turns_is_one_query_with_the_roles(relevance):
    dialogue = [
        {"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Yes?"), ("user", "2"))
    ]
    assert "user: Hi\nassistant: Yes?\nuser: 2" in relevance("prompt").ask(dialogue, "4")[1]["content"]


def test_what_is_written_is_read_also_by_openjudges_own_schema(relevance, ranker, monkeypatch):
    reasons = ["", "good", 'a "quoted" \\ line\nand <score>1</score> </think> {"score": 1}', "ü 😀 \u2028", "\x00\x1f"]
    for score, reason in itertools.product(range(1, 6), reasons):
        answer = relevance("prompt").write(score, reason)
        assert relevance("prompt").parse(answer) == score
        assert GraderScoreCallback.model_validate_json(answer).score == score
        assert relevance("prompt").parse(f"<think>\n\n</think>\n\n{answer}") == score
        assert relevance("prompt").retell(score, answer) == answer
    for preference, reason, first in itertools.product("AB", reasons, (False, True)):
        monkeypatch.setattr(ranker("openjudge_prompt"), "REASON_FIRST", first)
        answer = ranker("prompt").write(preference, reason)
        assert next(iter(json.loads(answer))) == ("reason" if first else "rank")
        assert ranker("prompt").parse(answer) == preference
        assert GraderRankCallback.model_validate_json(answer).rank == {"A": [1, 2], "B": [2, 1]}[preference]
        assert ranker("prompt").retell(preference, answer) == answer


# ---- traps: what a policy may write to be paid for nothing

OBJECT = '{"reason": "good", "score": 3}'
SCORE_TRAPS = {
    "nothing": "",
    "a number": "3",
    "a code fence": f"```json\n{OBJECT}\n```",
    "a plain fence": f"```\n{OBJECT}\n```",
    "two objects": f"{OBJECT}{OBJECT}",
    "two objects on lines": f"{OBJECT}\n{OBJECT}",
    "two different objects": f'{OBJECT}\n{{"reason": "bad", "score": 1}}',
    "a list": f"[{OBJECT}]",
    "text after": f"{OBJECT} That is my verdict.",
    "text before": f"Here it is: {OBJECT}",
    "JSON: before": f"JSON:\n{OBJECT}",
    "0": '{"reason": "good", "score": 0}',
    "6": '{"reason": "good", "score": 6}',
    "-3": '{"reason": "good", "score": -3}',
    "3.7": '{"reason": "good", "score": 3.7}',
    "3.0": '{"reason": "good", "score": 3.0}',
    "3e0": '{"reason": "good", "score": 3e0}',
    "03": '{"reason": "good", "score": 03}',
    "+3": '{"reason": "good", "score": +3}',
    "a string": '{"reason": "good", "score": "3"}',
    "a word": '{"reason": "good", "score": "three"}',
    "true": '{"reason": "good", "score": true}',
    "null": '{"reason": "good", "score": null}',
    "NaN": '{"reason": "good", "score": NaN}',
    "Infinity": '{"reason": "good", "score": Infinity}',
    "a list of one": '{"reason": "good", "score": [3]}',
    "an object in it": '{"reason": "good", "score": {"score": 3}}',
    "1 to 5": '{"reason": "good", "score": 1-5}',
    "a full-width digit": '{"reason": "good", "score": ３}',
    "a long number": '{"reason": "good", "score": ' + "3" * 5000 + "}",
    "the key twice": '{"reason": "good", "score": 1, "score": 5}',
    "the reason twice": '{"reason": "good", "reason": "good", "score": 5}',
    "no reason": '{"score": 3}',
    "no score": '{"reason": "the score is 3"}',
    "a reason that is no text": '{"reason": 3, "score": 3}',
    "another key": '{"reason": "good", "score": 3, "sure": true}',
    "upper case": '{"REASON": "good", "SCORE": 3}',
    "single quotes": "{'reason': 'good', 'score': 3}",
    "a comma too many": '{"reason": "good", "score": 3,}',
    "a comment": '{"reason": "good", "score": 3} // sure',
    "no closing brace": '{"reason": "good", "score": 3',
    "no opening brace": '"reason": "good", "score": 3}',
    "a line break in the reason": '{"reason": "go\nod", "score": 3}',
    "half an emoji": '{"reason": "\\ud83d", "score": 3}',
    "nested deeply": '{"reason": ' + "[" * 100_000,
    "100 kB of braces": "{" * 100_000,
    "100 kB of objects": OBJECT * 3500,
    "an unclosed thought": f"<think>{OBJECT}",
    "a verdict in the thought alone": f"<think>{OBJECT}</think>",
    "two thoughts": f"<think>a</think><think>b</think>{OBJECT}",
    "a thought in a thought": f"<think>a<think>b</think>{OBJECT}",
    "our own tags": "<think>\ngood\n</think>\n\n<score>3</score>",
    "our own tags alone": "<score>3</score>",
    "the form of the other judge": '{"rank": [1, 2], "reason": "good"}',
    "the system prompt's form": '{"reason":"<brief explanation for the assigned score>","score":<integer>}',
}
# what stands behind `"score": ` and is no whole number from 1 to 5 as JSON writes one
NO_SCORES = ["", "''", "'3'", '""', '" "', '"3 "', '"3/5"', '"3.0"', '"III"', '"٣"', "3/5", "3 of 5", "3 3", "3 4"]
NO_SCORES += ["3-4", "3..4", "3~4", "2+1", "5 - 2", "max(1,3)", "3 if good", "3 or 4", "3,0", "3.", ".3e1", "3E0"]
NO_SCORES += ["30e-1", "0.3e1", "1e309", "-0", "--3", "0x3", "0b11", "0o3", "3L", "3n", "3_0", "1_", "٣", "３", "³"]
NO_SCORES += ["③", "Ⅲ", "三", "3️⃣", "★★★", "three", "None", "True", "False", "false", "undefined", "-Infinity"]
NO_SCORES += ["nan", "[]", "[3, 3]", "[1, 5]", "{}", '{"value": 3}', "(3)", "<3>", "**3**", "`3`", "$3", "3%", "3;"]
NO_SCORES += ["3\x00", "\u200b3", "3\u200b", "\u22123", "7", "10", "35", "4294967297", "18446744073709551617", "-5"]
NO_SCORES += ["5.0000000000000000001", "2.9999999999999999999", "/* 3 */ 4", "3 # 4"]
OTHER_FORMS = [
    "reason: good\nKEY: VALUE",
    "- reason: good\n- KEY: VALUE",
    "<reason>good</reason><KEY>VALUE</KEY>",
    "KEY: VALUE",
    "VALUE/5",
    "\\boxed{VALUE}",
    "[[VALUE]]",
    "Rating: [[VALUE]]",
    "five",
    "reason,KEY\ngood,VALUE",
    '["good", VALUE]',
    '[{"reason": "good"}, {"KEY": VALUE}]',
    '{"reason": "good"}{"KEY": VALUE}',
    '{"reason": "good"}\n{"KEY": VALUE}',
    '{"reason": "good", "KEY"}',
    '{"reason": "good", "KEY": VALUE "and": 4}',
    '{"reason": "good", "KEYs": [VALUE]}',
    '{"reason": "good", "KEY": VALUE, "KEY": VALUE}',
    '{"reason": "good", "KEY": VALUE, "": VALUE}',
]


def traps_of(key: str, value: str) -> dict[str, str]:
    """Return what is nearly the verdict `{"reason": "good", key: value}`, by name: with a wrong value or form."""
    good = f'{{"reason": "good", "{key}": {value}}}'
    forms = [
        "{}",
        "null",
        '"' + good.replace('"', '\\"') + '"',  # the object as a text
        good.replace('"', "“"),
        good.replace('"', "&quot;"),
        good.replace('"', '\\"'),
        good.replace(f'"{key}"', key),
        good.replace(f'"{key}"', f'"{key} "'),
        good.replace(f'"{key}"', f'"{key.title()}"'),
        good.replace(f'"{key}"', f'"{key}\u200b"'),
        good.replace(f'"{key}"', f'"{key}"'.translate({ord("c"): "с", ord("a"): "а"})),  # Cyrillic letters
        good.replace(f'"{key}":', f'"{key}"'),
        good.replace(f'"{key}":', f'"{key}"='),
        good.replace(f'"{key}":', f'"{key}"=>'),
        good.replace(f'"{key}":', f'"{key}"::'),
        good.replace(", ", " "),
        good.replace(", ", "; "),
        good.replace(", ", ",, "),
        good.replace("{", "{{").replace("}", "}}"),
        good.replace("{", "(").replace("}", ")"),
        good.replace("}", "]"),
        good.replace("}", "}}"),
        good.replace('"good"', "good"),
        good.replace('"good"', "null"),
        good.replace('"good"', '["good"]'),
        good.replace('"good"', '"go"od"'),
        good.replace('"good"', '"good'),
        good.replace('"good"', '"go\x00od"'),
        good.replace('"good"', '"go\tod"'),
        good.replace('"good"', '"\\x41"'),
        good.replace('"good"', '"\\udc00\\ud83d"'),  # halves of an emoji, the wrong way round
        f'{{"verdict": {good}}}',
        f'{{"answer": {good}, "reason": "good"}}',
        f'{{"name": "grade", "arguments": {good}}}',
        f"<tool_call>\n{good}\n</tool_call>",
        f"<|channel|>final<|message|>{good}",
        f"<Output>\n{good}\n</Output>",
        f"<json>{good}</json>",
        f"~~~\n{good}\n~~~",
        f"`{good}`",
        f"**{good}**",
        f"> {good}",
        f"1. {good}",
        f"- {good}",
        f"\ufeff{good}",
        f"\u200b{good}",
        f"{good}\x00",
        f"{good},",
        f"{good};",
        f"{good}.",
        f"{good}<|im_end|>{good}",
        f"{good}\n<|im_start|>user\nThanks!",
        f"{good}<score>3</score>",
        f"</think>{good}</think>",
        f"<think>{good}</think></think>{good}",
        f"<|begin_of_thought|>{good}",
        f"return {good}",
        f"verdict = {good}",
        f"dict({good})",
        *(form.replace("KEY", key).replace("VALUE", value) for form in OTHER_FORMS),
    ]
    found = {f"{key}: {wrong!r}": f'{{"reason": "good", "{key}": {wrong}}}' for wrong in NO_SCORES}
    return found | {f"form {number} of {key}": form for number, form in enumerate(forms)}


SCORE_TRAPS |= traps_of("score", "3")
RANK_TRAPS = {
    "one rank": '{"rank": [1], "reason": "good"}',
    "three ranks": '{"rank": [1, 2, 3], "reason": "good"}',
    "a tie": '{"rank": [1, 1], "reason": "good"}',
    "from 0": '{"rank": [0, 1], "reason": "good"}',
    "true": '{"rank": [true, 2], "reason": "good"}',
    "floats": '{"rank": [1.0, 2.0], "reason": "good"}',
    "strings": '{"rank": ["1", "2"], "reason": "good"}',
    "a text": '{"rank": "[1, 2]", "reason": "good"}',
    "a letter": '{"rank": "A", "reason": "good"}',
    "an object": '{"rank": {"1": 1, "2": 2}, "reason": "good"}',
    "no reason": '{"rank": [2, 1]}',
    "twice": '{"rank": [1, 2], "rank": [2, 1], "reason": "good"}',
    "bare": "[2, 1]",
    "Output": "Output: [2, 1]",
    "a fence": '```json\n{"rank": [2, 1], "reason": "good"}\n```',
    "text after": '{"rank": [2, 1], "reason": "good"} So B.',
    "nested": '{"rank": [[2, 1]], "reason": "good"}',
}


def test_no_trap_is_a_score_and_none_is_paid(relevance):
    """The echo of the prompt, too: its own example of the form is not the form."""
    prompt, reward = relevance("prompt"), relevance("reward")
    echoes = {
        f"echo {n}": turn["content"] for n, turn in enumerate(prompt.ask([{"role": "user", "content": "2"}], "4"))
    }
    echoes["echo of the form"] = echoes["echo 1"].partition("JSON format:")[2].partition("</Output")[0]
    assert '"score"' in echoes["echo of the form"]
    tried = {**SCORE_TRAPS, **echoes}
    read = {name for name, text in tried.items() if prompt.parse(text) is not None}
    paid = [
        (name, label)
        for (name, text), label in itertools.product(tried.items(), [*prompt.SCORES, None])
        if reward.compute_score("judge", text, label)["score"] != reward.MALFORMED
    ]
    print(f"{len(tried)} outputs x {len(prompt.SCORES) + 1} labels tried, {len(paid)} wrongly paid")
    assert len(tried) > 150 and not read and not paid


def test_no_trap_is_a_rank_and_none_is_paid(ranker):
    prompt, reward = ranker("prompt"), ranker("reward")
    (turn,) = prompt.ask([{"role": "user", "content": "2"}], "4", "5")
    tried = {**RANK_TRAPS, **traps_of("rank", "[2, 1]"), "echo": turn["content"]}
    assert prompt.parse('{"reason": "good", "rank": [2, 1]}') == "B"  # which all of them are near to
    read = {name for name, text in tried.items() if prompt.parse(text) is not None}
    paid = [
        (name, label)
        for (name, text), label in itertools.product(tried.items(), ("A", "B", None))
        if reward.compute_score("judge", text, label)["score"] != reward.MALFORMED
    ]
    print(f"{len(tried)} outputs x 3 labels tried, {len(paid)} wrongly paid")
    assert len(tried) > 150 and not read and not paid


def test_what_is_read_as_a_score_openjudge_reads_as_the_same(relevance):
    """Stricter than OpenJudge, never looser: of the traps its own schema takes some for scores."""
    also_read = ["\n{}\n", "<think></think>{}"]
    for form in also_read:
        assert relevance("prompt").parse(form.format(OBJECT)) == 3
    assert relevance("prompt").parse('{"score": 3, "reason": "in the other order"}') == 3
    looser = []
    for name, text in SCORE_TRAPS.items():
        try:
            GraderScoreCallback.model_validate_json(text)
            looser.append(name)
        except ValidationError:
            pass
    assert {"NaN", "a string", "true", "6", "3.7", "the key twice", "another key"} <= set(looser)
    assert "a code fence" not in looser and "text after" not in looser


def test_the_reward_follows_the_graders_scale(relevance):
    prompt, compute_score = relevance("prompt"), relevance("reward").compute_score
    paid = [compute_score("judge", prompt.write(score, "so"), 5)["score"] for score in prompt.SCORES]
    assert paid == [0, 0.25, 0.5, 0.75, 1]


# ---- data


def prepare(module, path: Path, *options: object, monkeypatch) -> Path:
    output = path.parent / "prepared"
    source = "pointwise" if path.stem == "scores" else "pairwise"
    arguments = [
        "--source",
        source,
        "--path",
        path,
        "--transcripts",
        "--val-share",
        "0.1",
        "--output",
        output,
        *options,
    ]
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, arguments)])
    module.main()
    return output


def test_prepare_data_writes_transcripts_and_rows_in_the_graders_form(relevance, tmp_path, monkeypatch):
    path = write_rows(tmp_path / "scores.parquet", SCORED)
    output = prepare(relevance("prepare_data"), path, monkeypatch=monkeypatch)
    rows, lessons = [], []
    for split in ("train", "val", "test"):
        rows += pq.read_table(output / f"{split}.parquet").to_pylist()
        lessons += [row["messages"] for row in pq.read_table(output / "transcripts" / f"{split}.parquet").to_pylist()]
    assert len(rows) == len(lessons) == 40  # rows that differ in the user's turn alone are no repetitions
    known = {row["output"][0]["answer"]["content"]: row for row in SCORED}
    for system, user, answer in lessons:
        row = next(row for response, row in known.items() if response in user["content"])
        assert system["role"] == "system" and json.loads(answer["content"]) == {
            "reason": row["reasoning"],
            "score": row["label"],
        }
    checked, bad = relevance("dataset").load_rows(str(output / "train.parquet"))
    assert not bad and all(row["label"] in range(1, 6) and len(row["prompt"]) == 2 for row in checked)


def test_the_ranker_gets_every_pair_in_both_orders(ranker, tmp_path, monkeypatch):
    path = write_rows(tmp_path / "pairs.parquet", COMPARED)
    output = prepare(ranker("prepare_data"), path, monkeypatch=monkeypatch)
    rows = pq.read_table(output / "train.parquet").to_pylist()
    assert rows[0]["prompt"] != rows[0]["prompt_swapped"] and {row["label"] for row in rows} == {"A", "B"}


def test_labels_of_another_scale_and_rubrics_that_have_no_place_are_refused(relevance, tmp_path, monkeypatch):
    path = write_rows(tmp_path / "scores.parquet", [SCORED[0] | {"label": 0}])
    with pytest.raises(DataError, match="expected a whole number from 1 to 5"):
        prepare(relevance("prepare_data"), path, monkeypatch=monkeypatch)
    path, rubric = write_rows(tmp_path / "scores.parquet", SCORED), tmp_path / "rubric.txt"
    rubric.write_text("Is it kind?")
    with pytest.raises(DataError, match="no place for this one: 'Is it kind[?]'"):
        prepare(relevance("prepare_data"), path, "--rubric", rubric, monkeypatch=monkeypatch)


def test_an_api_judge_is_distilled_with_its_own_prompt_and_verdict(relevance, tmp_path, monkeypatch):
    """What the teacher is asked is what the grader sends; a wrong score and a fenced one teach nothing."""
    prompt, rows = relevance("prompt"), SCORED[:6]
    answers = {}
    for number, judged in enumerate(map(prompt.read_row, rows)):
        answer = f'{{"reason": "because", "score": {judged.label}}}'
        answer = f"```json\n{answer}\n```" if number == 0 else prompt.write(6 - judged.label) if number == 1 else answer
        answers[prompt.ask(judged.dialogue, judged.response)[-1]["content"]] = answer
    assert rows[1]["label"] != 3
    data, output = write_rows(tmp_path / "scores.parquet", rows), tmp_path / "out"
    with serve(lambda request, _: answers[request["messages"][-1]["content"]]) as (url, requests):
        arguments = ["--teacher", url, "--teacher-model", "big", "--data", str(data), "--output", str(output)]
        monkeypatch.setattr(sys, "argv", ["distil.py", *arguments])
        relevance("distil").main()
    assert len(requests) == 6 and all(request["messages"][0]["role"] == "system" for request in requests)
    wrong, fenced = json.loads((output / "teacher_scores.json").read_text())["not_kept"].items()
    assert sorted([wrong[1], fenced[1]]) == [1, 1] and "it looks like JSON" in wrong[0] + fenced[0]
    lessons = [row["messages"] for row in pq.read_table(output / "transcripts" / "scores.parquet").to_pylist()]
    assert [lesson[-1]["content"] for lesson in lessons] == [prompt.write(row["label"], "because") for row in rows[2:]]
    assert [row["label"] for row in pq.read_table(output / "scores.parquet").to_pylist()] == [r["label"] for r in rows]


def test_a_grader_that_asks_nothing_or_waits_is_refused():
    from common.judging.openjudge_prompts import messages_of

    class Silent:
        def __init__(self, model):
            self.model = model

        async def aevaluate(self, query):
            return None

    class Waiting(Silent):
        async def aevaluate(self, query):
            await Never()

    class Never:
        def __await__(self):
            yield

    with pytest.raises(DataError, match="Silent asked its model nothing when it was called with .'query'.$"):
        messages_of(Silent, query="Hi")
    with pytest.raises(DataError, match="Waiting waits for something else than its model"):
        messages_of(Waiting, query="Hi")
