"""The judges' two prompts, and the parsers that are their inverse: one text for SFT, GRPO, evaluation and serving.

- The judged text stays in its place. The prompt's own tags and models' special tokens in it are broken by a space, so
  an answer that says `</response>`, `<score>4</score>` or `<|im_end|>` ends nothing and opens nothing.
- The whole dialogue is shown: system message, every turn, also one that starts with the assistant.
- A verdict is read only where it stands alone behind the closed reasoning. Anything else is None, never a number: a
  parser that searches for digits or letters finds one in any garbage.
- What counts is an argument, `rubric`.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

from common.conversation import ROLES, Conversation

SCORES = range(5)
PREFERENCES = ("A", "B", "tie")
Preference = Literal["A", "B", "tie"]
SWAPPED: dict[Preference, Preference] = {"A": "B", "B": "A", "tie": "tie"}

HELPFULNESS = """\
Helpfulness: does the response do what the dialogue asks for?
4: all of it, correctly, completely and clearly
3: most of it; small gaps or flaws
2: part of it; something important is missing or wrong
1: little of it; mostly wrong, vague or beside the point
0: none of it"""
MORE_HELPFUL = """\
Helpfulness: does the response do what the dialogue asks for, correctly, completely and clearly?
Neither length nor order counts. It is a tie if neither response is better."""

POINTWISE_PROMPT = """\
Score how well the response answers the dialogue.

{rubric}

<dialogue>
{dialogue}
</dialogue>
<response>
{response}
</response>

Reason between <think> and </think>. Then write only the score, 0 to 4, between <score> and </score>."""
PAIRWISE_PROMPT = """\
Compare how well two responses answer the dialogue.

{rubric}

<dialogue>
{dialogue}
</dialogue>
<response_a>
{response_a}
</response_a>
<response_b>
{response_b}
</response_b>

Reason between <think> and </think>. Then write only the better one, A, B or tie, between <preference> and \
</preference>."""

# What would leave its place: the prompts' own tags, and the special tokens of model families. Those with a bar go by
# their look (<|im_end|>, <｜User｜>, <turn|>, [|endofturn|]), those with an underscore (<start_of_turn>) or a tilde
# (]~b]) too, the rest by name.
# Other code and markup (<div>, vector<int>, a[MAX]) stays as it is: a judge must see it unharmed. Case does not matter:
# a token is only exact, but a model reads <SCORE> as <score>. Lengths are bounded, or 100 kB of "<aaaa" take minutes.
OWN_TAGS = "think|score|preference|rubric|dialogue|response(?:_[ab])?|system|user|assistant|tool"
ANGLE_TOKENS = "s|bos|eos|pad|unk|mask|cls|sep|sop|eop|eod|eot|image|video|audio|system|human|bot|end|seed:[a-z]{1,9}"
SQUARE_TOKENS = (
    "inst|eot|sys|system|bos|eos|pad|unk|mask|cls|sep|gmask|smask|think|img|img_end|img_break|audio|transcribe"
)
OPENS_A_TAG = re.compile(
    rf"<(?=[|｜]|/?(?:{OWN_TAGS}|{ANGLE_TOKENS})\b|/?sys>>|/?role>|/?[a-z0-9]{{1,20}}_[a-z0-9_]{{1,30}}>|unused\d"
    r"|extra_id_\d|[a-z]{1,20}\|>)"
    rf"|\[(?=\||/?(?:{SQUARE_TOKENS})\]|/?[a-z]{{1,20}}_[a-z_]{{1,20}}\]|e~\[)"
    r"|\](?=~!?b[\[\]])",
    re.IGNORECASE,
)
BEGUN = re.compile(r"(<think>\s*(</think>\s*)?)?\Z")


@dataclass(frozen=True)
class Comparison:
    """Two responses to a dialogue, and which is better."""

    dialogue: Conversation
    response_a: str
    response_b: str
    preferred: Preference

    def swap(self) -> "Comparison":
        """The same comparison with the responses in the other order; a tie stays one."""
        return replace(self, response_a=self.response_b, response_b=self.response_a, preferred=SWAPPED[self.preferred])


def quote(text: str) -> str:
    """Return text in which nothing is a tag of ours or a special token: "<|im_end|>" becomes "< |im_end|>"."""
    return OPENS_A_TAG.sub(lambda opening: opening[0] + " ", text)


def _quote_dialogue(dialogue: Conversation) -> str:
    if unknown := {turn["role"] for turn in dialogue} - set(ROLES):
        raise ValueError(f"a turn's role is one of {', '.join(ROLES)}, found {unknown}")
    return "\n".join(f"<{turn['role']}>\n{quote(turn['content'])}\n</{turn['role']}>" for turn in dialogue)


def pointwise_prompt(dialogue: Conversation, response: str, rubric: str = HELPFULNESS) -> str:
    """Ask for a score of one response to a dialogue. The rubric is trusted text; dialogue and response are not."""
    return POINTWISE_PROMPT.format(rubric=rubric, dialogue=_quote_dialogue(dialogue), response=quote(response))


def pairwise_prompt(dialogue: Conversation, response_a: str, response_b: str, rubric: str = MORE_HELPFUL) -> str:
    """Ask which of two responses to a dialogue is better. The rubric is trusted text; the rest is not."""
    responses = {"response_a": quote(response_a), "response_b": quote(response_b)}
    return PAIRWISE_PROMPT.format(rubric=rubric, dialogue=_quote_dialogue(dialogue), **responses)


def rubric_of(prompt: str) -> str | None:
    """Return the rubric of a prompt that one of the two functions above wrote; None of any other text."""
    for template in (POINTWISE_PROMPT, PAIRWISE_PROMPT):
        before, after = template.partition("{dialogue}")[0].split("{rubric}")
        if prompt.startswith(before) and after in prompt:
            # the last place is ours: judged text is quoted, and cannot hold it
            return prompt.removeprefix(before).rpartition(after)[0]
    return None


def write_score(score: int, reasoning: str = "") -> str:
    """Return the answer that `parse_score` reads as `score`, whatever the reasoning holds."""
    if score not in SCORES:
        raise ValueError(f"score is {score!r}, expected {SCORES[0]} to {SCORES[-1]}")
    return _write_verdict("score", str(score), reasoning)


def write_preference(preference: Preference, reasoning: str = "") -> str:
    """Return the answer that `parse_preference` reads as `preference`, whatever the reasoning holds."""
    if preference not in PREFERENCES:
        raise ValueError(f"preference is {preference!r}, expected one of {', '.join(PREFERENCES)}")
    return _write_verdict("preference", preference, reasoning)


def _write_verdict(tag: str, verdict: str, reasoning: str) -> str:
    """The line breaks are Qwen3's own: its chat template would put them there."""
    return f"<think>\n{quote(reasoning).strip()}\n</think>\n\n<{tag}>{verdict}</{tag}>"


def begun_answer(prompt: str) -> str:
    """Return what a chat template wrote of the answer into the rendered prompt: `<think>`, a think block, nothing.

    It belongs in front of what the model writes before that is parsed, or the answer to a prompt that ends with a
    closed think block could never hold a verdict.
    """
    return BEGUN.search(prompt)[0]


def parse_score(text: str) -> int | None:
    """Read a score from a judge's answer.

    The answer is reasoning, closed by the one `</think>`, then `<score>N</score>` with N from 0 to 4, then nothing. The
    opening `<think>` may be absent: some chat templates put it into the prompt.

    Returns:
        0 to 4, or None for anything else.
    """
    verdict = _parse_verdict(text, r"<score>([0-4])</score>")
    return None if verdict is None else int(verdict)


def parse_preference(text: str) -> Preference | None:
    """Read "A", "B" or "tie" from `<preference>…</preference>`, with the same rules as `parse_score`."""
    return _parse_verdict(text, r"<preference>(A|B|tie)</preference>")


def _parse_verdict(text: str, pattern: str) -> str | None:
    reasoning, closing, rest = text.partition("</think>")
    if not closing or "<think>" in reasoning.lstrip().removeprefix("<think>"):
        return None
    verdict = re.fullmatch(pattern, rest.strip())
    return verdict[1] if verdict else None
