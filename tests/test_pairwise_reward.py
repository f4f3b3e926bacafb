"""The pairwise reward: what is no well-formed verdict earns less than any verdict; verdicts earn by being right."""

import json
import re
import time

import numpy as np
import pytest
import torch
from conftest import REPO
from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage
from verl.trainer.ppo.reward import get_custom_reward_fn

from common.cluster import TrainingError
from generative_pairwise import prompt
from generative_pairwise.prompt import write
from generative_pairwise.reward import compute_score, preference_reward, weigh

PREFERENCES, LABELS = ("A", "B", "tie"), ["A", "B", "tie", None]
OPENED, CLOSED = "<think>\n", "<think>\n\n</think>\n\n"  # what some chat templates write of the answer
MALFORMED = {"score": -0.5, "acc": 0.0, "first": 0.0, "tie": 0.0, "parsed": 0.0}
END = "</think>\n\n<preference>tie</preference>"
THOUGHT = "<think>\nThe first one is mostly right.\n</think>\n\n"
PROMPT = prompt.ask([{"role": "user", "content": "Why?"}], "Say A, B or tie.", "The answer is A.")[0]["content"]
SCORES = [f"<think>\n\n</think>\n\n<score>{score}</score>" for score in range(5)]  # the pointwise judge's answers


def preference(value) -> str:
    return f"<preference>{value}</preference>"


def listed(texts: str, before: str = "") -> list[str]:
    """Texts that wide gaps part; ⏎ is a line break, § a verdict, {} a preference: then a text for each preference."""
    shapes = [part.replace("⏎", "\n").replace("§", preference("{}")) for part in re.split(r"\s{3,}", texts.strip())]
    return [before + shape.replace("{}", one) for shape in shapes for one in (PREFERENCES if "{}" in shape else [""])]


# ---- the trap table: each of these texts is without a verdict, by itself and behind a template's <think>

LETTERS = """
    a   b   c   C   AB   BA   AA   A.   B,   "A"   'B'   (A)   [A]   [[A]]   [[C]]   **A**   `B`   $A$   <b>A</b>   A>B
    A>>B   A=B   A/B   A|B|tie   A or B   A, B   A and B   not A   no B   A, B or tie   A?   A!   0   1   2   -1   0.5
    tie.   Tie   TIE   tIe   ties   tied   attie   necktie   t i e   ti   draw   equal   same   both   neither   none
    None   null   True   []   UNCLEAR   Answer B   answer a   Response A   response_b   activities   It is a tie   first
    Response B is better than Response A   A is better   second   Ａ   ｂ   А   В   а   Α   Β   ᴀ   𝐀   𝔸   🅰   Ⓐ   tіe
    ｔｉｅ   A\u0301   A\u200b   \u200bA   \ufeffB   B\u2060   \u00adA   A\0   \x01B   \x08B   A\x7f   \u202eA   &#65;
    <!-- -->A   §   <preference>A   A</preference>   A⏎B   tie A   A</preference><preference>A"""
ENDS = """
    <Preference>{}</Preference>   <PREFERENCE>{}</PREFERENCE>   <preference>{}</Preference>   <preference/>{}   <{}>
    <preference n="1">{}</preference>   <preference value="{}"/>   <preference >{}</preference >   <preference={}>
    < preference>{}</preference>   <preference>{}< /preference>   <preference>{}</ preference>   <preference>{}
    <preference>{}<preference>   {}</preference>   <preferred>{}</preferred>   <preferences>{}</preferences>
    <verdict>{}</verdict>   <answer>{}</answer>   <answer>§</answer>   [preference]{}[/preference]   <better>{}
    ＜preference＞{}＜/preference＞   <рreference>{}</рreference>   &lt;preference&gt;{}&lt;/preference&gt;
    §.   §!   § because   §⏎⏎It is better.   §</s>   §<|im_end|>   §\0   §\u200b   §<   §</preference>   Verdict: §
    \u200b§   \ufeff§   \0§   =§   Assistant:⏎§   .§   §⏎<|im_start|>user   </preference>§   ⏎user⏎§   A§   § tie"""
BLANKS = ["", " ", "\n", " A", "B ", "\ntie", "tie\n", "\tA", "\u00a0A", "\u3000B", "\x0bB", "\x0ctie", "A\x1f"]
GARBAGE = ["", "\0", "\ufeff", ".", "</>", "asdf", "A" * 999, "Ὀδυσσεύς", "%s %d {}", "\x1b[1mA", "🙂", "a tie b"]
TRAPS = {
    "nothing, or garbage": [*BLANKS, *GARBAGE],
    "words": listed("""
        UNCLEAR   {}   a   b   Tie   TIE   Answer {}   Response B is better than Response A   activities   attie   N/A
        Both are fine.   Neither.   I cannot judge this.   As an AI, I   It is a tie.   The better one is {}.   [[{}]]
        """),
    "echoes of the prompt": [
        *(PROMPT, PROMPT.splitlines()[-1], prompt.PROMPT, prompt.RUBRIC, "A, B or tie", "Say A, B or tie."),
        *("between <preference> and </preference>", "<think> and </think> <preference> and </preference>"),
        *listed(f"{THOUGHT}§   ⏎⏎§   {{}}   </think>⏎§.", before=PROMPT),
        *listed(f"§   {THOUGHT}§   {{}}", before=PROMPT.splitlines()[-1]),
    ],
    "no preference in the tag": [THOUGHT + preference(value) for value in [*listed(LETTERS), *BLANKS]],
    "a score": ["3", *SCORES, *listed("<score>{}</score>   <score>3</score>§   Score: 3", THOUGHT)],
    "another tag, or a verdict that does not stand alone": listed(ENDS, THOUGHT),
    "another format": [
        *listed("{}   Preference: {}   [[{}]]   \\boxed{{}}   **{}**   # {}   {} is better   Response {}.", THOUGHT),
        *listed('{"preference": "{}"}   ```json⏎{"preference": "{}"}⏎```   preference={}   My verdict: {}   <p>{}</p>'),
        *listed("```⏎§⏎```   `§`   **§**   <b>§</b>   - §   <!-- § -->   (§)   <p>§</p>   $§$   > §   # §", THOUGHT),
        *listed(f'```⏎{THOUGHT}§⏎```   "{THOUGHT}§"   <answer>{THOUGHT}§</answer>   <!-- {THOUGHT}§ -->'),
        *map(json.dumps, map(write, PREFERENCES)),
    ],
    "two verdicts": [
        *listed(f"§{preference('B')}   §⏎{preference('A')}   § or {preference('tie')}   §§   §, §   §⏎⏎§", THOUGHT),
        *listed(f"{THOUGHT}§{THOUGHT}§   §{THOUGHT}§   {THOUGHT}§</think>§   {THOUGHT}§<think></think>§"),
    ],
    "within the reasoning or before it, which is not closed, or is repeated": listed("""
        <think>{}</think>   <think>§</think>   <think>⏎§⏎</think>⏎⏎   §<think>why</think>   §⏎⏎<think>⏎why⏎</think>⏎⏎
        §</think>   <preference>{}<think>why</think></preference>   x <think>why</think>§   <b><think>why</think>§
        <think>why §   <think>§   <think>⏎why⏎⏎§⏎<think>   <think>why<think>§   <think>why</think§   why⏎⏎§   <think/>§
        <think>why</ think>§   <think>why</Think>§   <THINK>why</THINK>§   <think>why<\\think>§   [think]why[/think]§
        <thinking>why</thinking>§   ◁think▷why◁/think▷§   <think>why</think\u200b>§   <think >why</think >§
        <think><think>why</think></think>§   <think>a<think>b</think>c</think>§   <think><think>why</think>§
        <think>a</think><think>b</think>§   <think>a</think>b</think>§   <think>a</think></think>§
        """),
    "a verdict split from its reasoning": [*listed("§"), *listed("§⏎", "\n\n"), *listed("§⏎⏎", " ")],
    "cut off": [write("tie", "Both.")[:length] for length in range(len(write("tie", "Both.")))],
    "one character of the end lost, blank or in capitals": [
        f"<think>\nwhy{END[:place]}{other}{END[place + 1 :]}"
        for place, sign in enumerate(END)
        for other in ("", " ", "\u200b", sign.upper())
        if not sign.isspace() and other != sign
    ],
    "floods": [
        before + unit * (100_000 // len(unit)) + "</preference>!"
        for before in ("", "<think>", THOUGHT, THOUGHT + "<preference>A")
        for unit in (preference("A"), "<preference>", "<think>", "</think>", "</", "<", "A", " ", "\n", "\u3000")
    ],
}
TEXTS = list(dict.fromkeys(text for texts in TRAPS.values() for text in texts))
BARE = set(TRAPS["a verdict split from its reasoning"])  # right answers where the template has closed the reasoning
INPUTS = [(begun, text) for begun in ("", OPENED, CLOSED) for text in TEXTS if not (begun == CLOSED and text in BARE)]
OPTIONS = [{}, {"tie_credit": 0.5, "by_strength": True}]


def earned(text: str, label, begun: str = "", strength: float | None = None, **options) -> dict:
    return compute_score("judge", text, label, {"begun": begun, "strength": strength}, **options)


def verdicts(strength: float | None = None, **options) -> list[dict]:
    answers = [THOUGHT + preference(value) for value in PREFERENCES]
    return [earned(answer, label, "", strength, **options) for answer in answers for label in LABELS]


def paid(*strength, **options) -> list[list[float]]:
    """The rewards of verdicts; rows: the verdict, columns: the label."""
    return np.reshape([result["score"] for result in verdicts(*strength, **options)], (3, 4)).tolist()


@pytest.mark.parametrize("options", OPTIONS, ids=["as set", "every option on"])
def test_none_of_750_texts_earns_as_much_as_the_wrongest_verdict_and_all_results_have_the_same_keys(options):
    """Traps 14, 16, 22, 23 and 28, whatever the label."""
    tried = [(text, label, begun) for begun, text in INPUTS for label in LABELS]
    results, right = [earned(*case, 0.3, **options) for case in tried], verdicts(0.3, **options)
    wrong = [case for case, result in zip(tried, results) if result != MALFORMED]
    assert [(text[-200:], label, begun) for text, label, begun in wrong] == []
    assert min(result["score"] for result in right) > MALFORMED["score"]
    assert len(TEXTS) >= 750 and len(tried) == 4 * (3 * len(TEXTS) - len(BARE))
    assert {tuple(result) for result in [*results, *right]} == {tuple(MALFORMED)}
    assert {type(value) for result in [*results, *right] for value in result.values()} == {float}


@pytest.mark.parametrize("text", TRAPS["floods"], ids=lambda text: repr(text[:60]))
def test_a_hundred_kilobytes_are_graded_in_a_moment(text):
    started = time.perf_counter()
    assert earned(text, "A") == MALFORMED
    assert time.perf_counter() - started < 0.5


# ---- what does earn


def test_golden_rewards():
    """Rows: the verdict, columns: the label. Change these tables only with the reward: runs before and after differ."""
    assert paid() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert paid(tie_credit=0.5) == [[1, 0, 0.5, 0], [0, 1, 0.5, 0], [0.5, 0.5, 1, 0]]
    for credit in (0.0, 0.5):
        found = [[preference_reward(value, label, credit) for label in LABELS] for value in [*PREFERENCES, None]]
        assert found == [*paid(tie_credit=credit), [-0.5] * 4]


def test_every_field_of_a_verdict():
    """A tie is called so whether or not it is right, and half a credit is not half right."""
    found = [[result[key] for result in verdicts(tie_credit=0.5)] for key in ("acc", "first", "tie", "parsed")]
    assert found[0] == [1, 0, 0, 0] + [0, 1, 0, 0] + [0, 0, 1, 0]
    assert found[1:] == [[1] * 4 + [0] * 8, [0] * 8 + [1] * 4, [1] * 12]


@pytest.mark.parametrize("credit", [1, 1.5, -0.1, float("nan"), float("inf"), True])
def test_a_tie_credit_outside_0_to_1_is_refused_whatever_the_answer(credit):
    for text in ("", THOUGHT + preference("A")):
        with pytest.raises(ValueError, match="tie_credit is .*; expected at least 0 and less than 1"):
            earned(text, "A", tie_credit=credit)
    assert paid(tie_credit=0.99)[2] == [0.99, 0.99, 1, 0]


MISSING = [None, "", "C", "a", "Tie", " A", "A ", 0, 1, True, float("nan"), ["A"], [], {}, {"A": 1}, b"A", object()]


@pytest.mark.parametrize("label", MISSING, ids=lambda label: repr(label)[:20])
def test_a_label_that_is_none_earns_nothing_for_any_verdict_and_is_never_a_tie(label):
    """Trap 16."""
    for options in OPTIONS:
        found = [earned(THOUGHT + preference(value), label, "", 3.0, **options) for value in PREFERENCES]
        assert [(result["score"], result["acc"], result["parsed"]) for result in found] == [(0, 0, 1)] * 3
        assert earned("A", label, "", 3.0, **options) == MALFORMED


@pytest.mark.parametrize("value", PREFERENCES)
def test_what_the_template_began_belongs_to_the_answer(value):
    """Traps 23, 28 and 37: a prefilled <think> or think block, and the reasoning that the prompt asks for behind it.

    An opening tag that was written twice is not mended.
    """
    answer, right = write(value, f"Not {preference('A')}."), earned(THOUGHT + preference(value), value)
    assert right["score"] == 1 and earned(answer, np.str_(value)) == right
    assert earned(answer, value) == earned(answer.removeprefix(OPENED), value, OPENED) == right
    assert earned(preference(value), value, CLOSED) == earned(f"\n{preference(value)}\n", value, CLOSED) == right
    assert earned(answer, value, CLOSED) == earned(answer, value, "</think>") == right
    assert earned(answer, value, OPENED) == earned(answer, value, THOUGHT) == MALFORMED
    assert earned(answer, value, 2 * CLOSED) == earned(answer.removeprefix(OPENED), value, CLOSED) == MALFORMED
    assert [earned(preference(value), value, begun) for begun in ("", OPENED)] == [MALFORMED] * 2
    assert [compute_score("judge", answer, value, others) for others in (None, {}, {"begun": None})] == [right] * 3


def test_a_strength_scales_what_a_verdict_earns_and_nothing_else():
    assert [weigh(earns, 3.0) for earns in (1.0, 0.5, 0.0, -0.5)] == [3, 1.5, 0, -0.5]
    assert [weigh(1.0, strength) for strength in (0.3, 1.0, 2, None)] == [0.3, 1, 2, 1]
    assert [earns[:2] for earns in paid(3.0, by_strength=True, tie_credit=0.5)] == [[3, 0], [0, 3], [1.5, 1.5]]
    assert paid(by_strength=True) == paid(3.0) == paid()  # not known, or not asked for
    assert [one | {"score": 0} for one in verdicts(3.0, by_strength=True)] == [one | {"score": 0} for one in verdicts()]


@pytest.mark.parametrize("by_spread", [True, False])
def test_a_groups_spread_takes_the_strength_out_and_without_it_the_strength_acts(by_spread):
    answers = [THOUGHT + preference(value) for value in ("A", "B", "A", "tie")]
    scores = [earned(answer, "A", "", by, by_strength=True)["score"] for by in (1.0, 2.0, 3.0) for answer in answers]
    rewards, groups = torch.zeros(12, 5), np.repeat(["x", "y", "z"], 4)
    rewards[:, -1] = torch.tensor(scores)
    options = {"norm_adv_by_std_in_grpo": by_spread}
    advantages, _ = compute_grpo_outcome_advantage(rewards, torch.ones(12, 5), groups, **options)
    size = [3**0.5 / 2] * 3 if by_spread else [0.5, 1.0, 1.5]  # 0.5 / sqrt(1 / 3), the spread of 1, 0, 1, 0
    expected = torch.tensor(size)[:, None] * torch.tensor([1.0, -1.0, 1.0, -1.0])
    torch.testing.assert_close(advantages[:, 0].reshape(3, 4), expected, rtol=0, atol=1e-5)


# ---- as verl calls it

NOTES = [{"source": "a.parquet row 7, swapped", "begun": begun, "strength": 2.0} for begun in ("", OPENED, CLOSED)]
A, TIE = write("A", "So."), write("tie", "So.")
ASKED = [(A, "A", NOTES[0]), (A, "B", NOTES[0]), (A.removeprefix(OPENED), "A", NOTES[1]), (TIE, "B", NOTES[0])]
ASKED += [(preference("tie"), "A", NOTES[2]), (TIE, None, NOTES[0]), ("Response A", "A", NOTES[0])]


def test_verl_loads_the_function_that_the_settings_name_and_passes_its_options_on():
    declared = OmegaConf.load(REPO / "generative_pairwise" / "config.yaml").reward
    assert declared.custom_reward_function.reward_kwargs.keys() == {"module", "tie_credit", "by_strength"}

    def rewards(**options) -> list[float]:
        options = {"module": "generative_pairwise.reward", "by_strength": False} | options
        chosen = {"reward": {"custom_reward_function": {"reward_kwargs": options}}}
        function = get_custom_reward_fn(OmegaConf.merge({"reward": declared}, chosen))
        calls = [dict(solution_str=text, ground_truth=label, extra_info=note) for text, label, note in ASKED]
        return [function(data_source="judge", **call)["score"] for call in calls]

    assert rewards(tie_credit=0.0) == [1, 0, 1, 0, 0, 0, -0.5]
    assert rewards(tie_credit=0.25) == [1, 0, 1, 0.25, 0.25, 0, -0.5]
    assert rewards(tie_credit=0.25, by_strength=True) == [2, 0, 2, 0.5, 0.5, 0, -0.5]
    for wrong, error in (({"tie_credit": 1}, "ValueError: tie_credit is 1"), ({"credit": 0}, "TypeError: .* 'credit'")):
        with pytest.raises(TrainingError, match=f"a.parquet row 7, swapped: the reward function raised {error}"):
            rewards(**{"tie_credit": 0.0} | wrong)
