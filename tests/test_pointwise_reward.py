"""The pointwise reward: what is no well-formed verdict earns less than any verdict; verdicts earn by distance."""

import json
import re
import time

import numpy as np
import pytest
import torch
from conftest import REPO
from omegaconf import OmegaConf
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
from verl.trainer.ppo.reward import get_custom_reward_fn

from generative_pointwise import prompt, reward
from generative_pointwise.prompt import write
from generative_pointwise.reward import compute_score, score_reward

SCORES, LABELS = range(5), [0, 1, 2, 3, 4, None]
OPENED, CLOSED = "<think>\n", "<think>\n\n</think>\n\n"  # what some chat templates write of the answer
MALFORMED = {"score": -0.5, "acc": 0.0, "within_one": 0.0, "parsed": 0.0}
RIGHT = {"score": 1.0, "acc": 1.0, "within_one": 1.0, "parsed": 1.0}
THOUGHT = "<think>\nIt is mostly right.\n</think>\n\n"
PROMPT = prompt.ask([{"role": "user", "content": "Why?"}], "Score it from 0 to 4.")[0]["content"]


def score(value) -> str:
    return f"<score>{value}</score>"


def listed(texts: str, before: str = "") -> list[str]:
    """Texts that wide gaps part; ⏎ is a line break, § a verdict, {} a score: then one text for each score.

    A parser that lets such a text pass earns the reward of one label or another.
    """
    shapes = [part.replace("⏎", "\n").replace("§", score("{}")) for part in re.split(r"\s{3,}", texts.strip())]
    return [before + shape.replace("{}", str(n)) for shape in shapes for n in (SCORES if "{}" in shape else [0])]


def listed_behind_reasoning(texts: str) -> list[str]:
    return listed(texts, before=THOUGHT)


# ---- the trap table: each of these texts is without a verdict, by itself and behind a template's <think>

NUMBERS = """
    -2   -0   +3   3.7   3.0   4.   .5   11   5   10   00   04   44   3/4   3e0   0x3   3%   1-4   0-4   -1   9   99
    1,5   3,0   1_0   ∞   NaN   None   null   True   []   N   three   Four   zero   good   III   A   tie   3 or 4
    3 of 4   3?   0 to 4   ３   ４   ٣   ۳   ३   ³   ₃   Ⅲ   ③   三   𝟑   𝟛   3️⃣   ⑷   ౩   ➂   <b>3</b>   **3**   `3`
    $3$   "3"   [3]   <score>3</score>   <score>3   3</score>   <!-- -->3   &#51;   3\u200b   \u200b3   \u200d3
    \ufeff3   3\u2060   \u202e3   3\u0301   3\ufe0f   \u00ad3   3\0   \x013   \x073   \x083   \x1b3   \x7f3   \ufffd3"""
BLANKS = ["", " ", "\n", " 3", "3 ", "\n3\n", "\t3", "\u00a03", "\u30003", "\x0b3", "\x0c3", "\x1f3", "\x853"]
TRAPS = {
    "nothing": ["", " ", "\n\n", "\t", "\0", "\ufeff", "\u200b", ".", "<", ">", "</", "<>", "</>", "\ufffd" * 9],
    "garbage": [*"01234", "4" * 999, "01234", "asdf", "\0\1\2", "🙂🙂", "Ὀδυσσεύς", "%s %d {}", "\\0", "\x1b[1m4"],
    "words": listed("I cannot judge this.   It is good.   four   Three out of four.   N/A   As an AI, I   UNCLEAR"),
    "echoes of the prompt": [
        *(PROMPT, PROMPT.splitlines()[-1], prompt.PROMPT, prompt.RUBRIC, "score from 0 to 4", "0 to 4"),
        *("<think> and </think>", "between <score> and </score>", "4: all of it\n0: none", "Score it from 0 to 4."),
    ],
    "echoes, then a verdict": [
        *listed(f"{THOUGHT}§   ⏎⏎§   {{}}   </think>⏎§.", before=PROMPT),
        *listed(f"§   {THOUGHT}§   {{}}", before=PROMPT.splitlines()[-1]),
    ],
    "no score in the tag": [THOUGHT + score(value) for value in [*listed(NUMBERS), *BLANKS]],
    "another tag": listed_behind_reasoning("""
        <Score>{}</Score>   <SCORE>{}</SCORE>   <score>{}</Score>   <score n="1">{}</score>   <score value="{}"/>
        <score >{}</score >   < score>{}</score>   <score>{}< /score>   <score>{}</ score>   <score>{}</score\u200b>
        <score>{}<score>   <score>{}   {}</score>   </score>{}<score>   <score>{}</scores>   <rating>{}</rating>
        <preference>{}</preference>   [score]{}[/score]   {score}{}{/score}   ＜score＞{}＜/score＞   <ѕcore>{}</ѕcore>
        &lt;score&gt;{}&lt;/score&gt;   \\<score\\>{}\\</score\\>   <score/>{}   <score>§</score>   <score score={}>
        """),
    "another format": [
        *listed("{}   Score: {}   {}/4   **{}**   # {}   [[{}]]   \\boxed{{}}   <p>Score: <b>{}</b></p>   <i>{}</i>"),
        *listed('{}   Score: {}   [RESULT] {}   {"score": {}}   \\boxed{{}}   <answer>{}</answer>   score={}', THOUGHT),
        *listed('{"score": {}}   ```json⏎{"score": {}}⏎```   |score|{}|   &lt;think&gt;&lt;/think&gt;§   <xml>§</xml>'),
        *(json.dumps(write(value)) for value in SCORES),
    ],
    "fenced": [
        *listed("```⏎§⏎```   `§`   **§**   <b>§</b>   - §   <!-- § -->   (§)   <p>§</p>   $§$   > §   # §", THOUGHT),
        *listed(f'```⏎{THOUGHT}§⏎```   "{THOUGHT}§"   <answer>{THOUGHT}§</answer>   <!-- {THOUGHT}§ -->'),
    ],
    "two verdicts": [
        *listed("§<score>2</score>   §⏎<score>2</score>   § or <score>2</score>   <score>4</score>, §   §§", THOUGHT),
        *listed(f"{THOUGHT}§{THOUGHT}§   §{THOUGHT}§   {THOUGHT}§</think>§   {THOUGHT}§<think></think>§"),
    ],
    "within the reasoning or before it": listed("""
        <think>{}</think>   <think>§</think>   <think>⏎§⏎</think>⏎⏎   §<think>why</think>   §⏎⏎<think>⏎why⏎</think>⏎⏎
        §</think>   <score>{}<think>why</think></score>   x <think>why</think>§   <b><think>why</think>§   §</think>x§
        """),
    "reasoning that is not closed": listed("""
        <think>why §   <think>§   <think>⏎why⏎⏎§⏎<think>   <think>why<think>§   <think>why</think§
        <think>why</ think>§   <think>why</Think>§   <THINK>why</THINK>§   <think>why<\\think>§   [think]why[/think]§
        <thinking>why</thinking>§   ◁think▷why◁/think▷§   <think>why</think\u200b>§   <think>why</t\0hink>§
        why⏎⏎§   <think >why</think >§   <think/>§   <think>why</think/>§   <think>why＜/think＞§
        """),
    "nested or repeated reasoning": listed("""
        <think><think>why</think></think>§   <think>a<think>b</think>c</think>§   <think><think>why</think>§
        <think>a</think><think>b</think>§   <think>a</think>b</think>§   <think>a</think></think>§
        <think>a</think><think>§   <think>a</think>§</think>   <think>a</think><score></think>{}</score>
        """),
    "a verdict that does not stand alone": listed_behind_reasoning("""
        §.   §!   § because   §⏎⏎It is good.   §</s>   §<|im_end|>   §\0   §\u200b   §<   §</score>   §<score>   §/4
        §⏎<|im_start|>user   Score: §   So §   \u200b§   \ufeff§   \0§   =§   Assistant:⏎§   .§   </score>§   ⏎user⏎§
        """),
    "a verdict split from its reasoning": listed("§") + listed("§⏎", "\n\n") + listed("§⏎⏎", " "),
    "cut off": [write(3, "It is right.")[:length] for length in range(len(write(3, "It is right.")))],
    "floods": [
        before + unit * (100_000 // len(unit)) + "</score>!"
        for before in ("", "<think>", THOUGHT, THOUGHT + "<score>3")
        for unit in (score(4), "<score>", "<think>", "</think>", "<think></think>", "</", "<", "4", " ", "\n", "\u3000")
    ],
}
END = "</think>\n\n<score>3</score>"
SIGNS = [(place, sign) for place, sign in enumerate(END) if not sign.isspace()]
TRAPS["one character of the end lost, blank, doubled or in capitals"] = [
    *("<think>\nwhy" + END[:place] + other + END[place + 1 :] for place, _ in SIGNS for other in ("", " ", "\u200b")),
    *("<think>\nwhy" + END[:place] + 2 * sign + END[place + 1 :] for place, sign in SIGNS[1:]),  # "<</think>" is an end
    *("<think>\nwhy" + END[:place] + sign.upper() + END[place + 1 :] for place, sign in SIGNS if sign.isalpha()),
]
TEXTS = list(dict.fromkeys(text for texts in TRAPS.values() for text in texts))
BARE = set(TRAPS["a verdict split from its reasoning"])  # right answers where the template has closed the reasoning
INPUTS = [(begun, text) for begun in ("", OPENED, CLOSED) for text in TEXTS if not (begun == CLOSED and text in BARE)]


def earned(text: str, label, begun: str = "") -> dict:
    return compute_score(data_source="judge", solution_str=text, ground_truth=label, extra_info={"begun": begun})


PARSED = [earned(THOUGHT + score(value), label) for value in SCORES for label in LABELS]


@pytest.mark.parametrize("name", TRAPS)
def test_no_trap_earns_as_much_as_the_wrongest_verdict_whatever_the_label(name):
    """Traps 14, 15, 22, 23 and 28."""
    least = min(result["score"] for result in PARSED)
    tried = [(text, label, begun) for begun, text in INPUTS if text in set(TRAPS[name]) for label in LABELS]
    wrong = [case for case in tried if earned(*case)["score"] >= least or earned(*case) != MALFORMED]
    assert [(text[-200:], label, begun) for text, label, begun in wrong] == []


def test_of_a_thousand_texts_none_is_wrongly_rewarded_and_every_result_has_the_same_keys():
    """Trap 22."""
    results = [earned(text, label, begun) for begun, text in INPUTS for label in LABELS]
    assert len(TEXTS) >= 1000 and len(results) == 6 * (3 * len(TEXTS) - len(BARE))
    assert sum(result["score"] > MALFORMED["score"] for result in results) == 0
    assert {tuple(result) for result in [*results, *PARSED]} == {tuple(MALFORMED)}
    assert {type(value) for result in [*results, *PARSED] for value in result.values()} == {float}


@pytest.mark.parametrize("text", TRAPS["floods"], ids=lambda text: repr(text[:60]))
def test_a_hundred_kilobytes_are_graded_in_a_moment(text):
    started = time.perf_counter()
    assert earned(text, 4) == MALFORMED
    assert time.perf_counter() - started < 0.5


# ---- what does earn

TABLE = [[1, 0.75, 0.5, 0.25, 0], [0.75, 1, 0.75, 0.5, 0.25], [0.5, 0.75, 1, 0.75, 0.5]]
TABLE += [[0.25, 0.5, 0.75, 1, 0.75], [0, 0.25, 0.5, 0.75, 1]]


def test_golden_rewards():
    """Rows: the verdict, columns: the label. Change this table only with the reward: runs before and after differ."""
    assert [[score_reward(value, label) for label in SCORES] for value in SCORES] == TABLE
    assert [[earned(THOUGHT + score(value), label)["score"] for label in SCORES] for value in SCORES] == TABLE
    assert [score_reward(value, None) for value in [*SCORES, None]] == [0, 0, 0, 0, 0, -0.5]
    assert [score_reward(None, label) for label in SCORES] == [-0.5] * 5


def test_every_field_of_a_verdict():
    assert earned(THOUGHT + score(3), 3) == RIGHT
    assert earned(THOUGHT + score(3), 2) == {"score": 0.75, "acc": 0.0, "within_one": 1.0, "parsed": 1.0}
    assert earned(THOUGHT + score(0), 2) == {"score": 0.5, "acc": 0.0, "within_one": 0.0, "parsed": 1.0}


MISSING = [None, "", "three", 5, -1, 3.7, float("nan"), float("inf"), [3], [], {}, {"label": 3}, b"3", object()]


@pytest.mark.parametrize("label", MISSING, ids=lambda label: repr(label)[:20])
def test_a_label_that_is_none_earns_nothing_for_any_verdict_and_garbage_still_less(label):
    nothing = {"score": 0.0, "acc": 0.0, "within_one": 0.0, "parsed": 1.0}
    assert [earned(THOUGHT + score(value), label) for value in SCORES] == [nothing] * 5
    assert earned("4", label) == MALFORMED


NUMBER_TYPES = [3, 3.0, np.int64(3), np.float32(3), np.uint8(3)]


@pytest.mark.parametrize("label", NUMBER_TYPES, ids=repr)
def test_a_label_of_another_number_type_is_the_same_label(label):
    assert [earned(THOUGHT + score(value), label)["score"] for value in SCORES] == TABLE[3]


@pytest.mark.parametrize("value", SCORES)
def test_what_the_template_began_belongs_to_the_answer(value):
    """Traps 23, 28 and 37: a prefilled <think> or think block, and the reasoning that the prompt asks for behind it.

    An opening tag that was written twice is not mended.
    """
    answer = write(value, f"Not {score(4 - value)}.")
    assert earned(answer, value) == earned(answer.removeprefix(OPENED), value, OPENED) == RIGHT
    assert earned(score(value), value, CLOSED) == earned(f"\n{score(value)}\n", value, CLOSED) == RIGHT
    assert earned(answer, value, CLOSED) == earned(answer, value, "</think>") == RIGHT
    assert earned(answer, value, OPENED) == earned(answer, value, THOUGHT) == MALFORMED
    assert earned(answer, value, 2 * CLOSED) == earned(answer.removeprefix(OPENED), value, CLOSED) == MALFORMED
    assert [earned(score(value), value, begun) for begun in ("", OPENED)] == [MALFORMED] * 2
    assert [compute_score("judge", answer, value, others) for others in (None, {}, {"index": 7})] == [RIGHT] * 3


def test_a_begun_that_is_null_is_as_one_that_is_missing():
    assert earned(THOUGHT + score(3), 3, None) == RIGHT


# ---- as verl calls it


def test_verl_loads_the_function_that_the_settings_name_and_gets_a_reward_and_even_metrics_for_every_answer(
    tiny_tokenizer,
):
    declared = OmegaConf.load(REPO / "generative_pointwise" / "config.yaml").reward
    assert declared.custom_reward_function.reward_kwargs == {"module": ".reward"}  # train.py resolves it
    chosen = {"custom_reward_function": {"reward_kwargs": {"module": reward.__name__}}}
    config = OmegaConf.create({"reward": OmegaConf.merge(declared, chosen)})
    manager = NaiveRewardManager(config, tiny_tokenizer, get_custom_reward_fn(config))

    def graded(text: str, label, begun: str) -> dict:
        answer = [*tiny_tokenizer(text)["input_ids"], tiny_tokenizer.eos_token_id]
        ids = torch.tensor([[*answer, *[tiny_tokenizer.pad_token_id] * 5]])
        mask = torch.ones(1, 3 + ids.shape[1], dtype=torch.long)  # three tokens of a prompt, five of padding
        mask[0, -5:] = 0
        cells = {"data_source": "judge", "reward_model": {"style": "rule", "ground_truth": label}}
        cells["extra_info"] = {"index": 0, "source": "train.parquet row 0", "begun": begun}
        others = {name: np.array([cell], dtype=object) for name, cell in cells.items()}
        data = DataProto.from_dict({"responses": ids, "attention_mask": mask}, non_tensors=others)
        return manager.loop.run_until_complete(manager.run_single(data))

    written = write(3, "So.")
    answers = [(written, 3, ""), (written, 1, ""), (written.removeprefix(OPENED), 2, OPENED), (score(0), 4, CLOSED)]
    results = [graded(*answer) for answer in [*answers, (score(0), 0, ""), (written, None, ""), ("", 0, "")]]
    assert [result["reward_score"] for result in results] == [1.0, 0.5, 0.75, 0.0, -0.5, 0.0, -0.5]
    columns = {key: np.array([result["reward_extra_info"][key] for result in results]) for key in MALFORMED}
    assert {key: column.dtype for key, column in columns.items()} == dict.fromkeys(MALFORMED, np.dtype(float))
    assert columns["acc"].tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert columns["within_one"].tolist() == [1, 0, 1, 0, 0, 0, 0]
    assert columns["parsed"].tolist() == [1, 1, 1, 1, 0, 1, 0]
