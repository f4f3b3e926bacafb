"""What the judge is asked, and how its answer is read: rubric, frame, scale, form of the verdict. **Edit it.**

All other files of this folder take them from here: the data, the reward, the evaluation and the grader. So another
rubric, a scale of 0 to 10 or a verdict as JSON is a change of a few lines on this page alone.

- The judge sees the whole dialogue (system message, every turn, also one that starts with the assistant), the response,
  and in which form to answer. Judged text is quoted: whatever it contains, it stays in its place.
- `parse` is the inverse of `write`. It reads a verdict only where it stands alone behind the closed reasoning. Anything
  else is None, never a score: a parser that searches for digits finds one in any garbage.
"""

import re
from collections import Counter
from dataclasses import dataclass

from common.conversation import BadRow, Conversation, check_unicode, read_dialogue, read_responses
from common.judging.quoting import quote, quote_dialogue

SCORES = range(5)  # the scale

# What a score means, by the names of HelpSteer2's five attributes (arXiv:2406.08673), each 0 to 4.
RUBRICS = {
    "helpfulness": """\
Helpfulness: does the response do what the dialogue asks for?
4: all of it, correctly, completely and clearly
3: most of it; small gaps or flaws
2: part of it; something important is missing or wrong
1: little of it; mostly wrong, vague or beside the point
0: none of it""",
    "correctness": """\
Correctness: are the response's facts right, and does it cover all that was asked for?
4: entirely correct and complete
3: mostly; small errors or omissions
2: a mixture of right and wrong, or important facts are missing
1: mostly wrong, or off what was asked
0: entirely wrong""",
    "coherence": """\
Coherence: is the response clear, well ordered and consistent with itself and the dialogue?
4: perfectly clear and consistent
3: mostly; a passage or two is unclear
2: a little unclear, or somewhat contradicting itself
1: mostly hard to follow
0: incomprehensible""",
    "complexity": """\
Complexity: how much expertise does it take to write the response? Quality does not count.
4: only an expert could have written it
3: deep knowledge of the subject
2: some knowledge of the subject, as from school or work
1: simple; most people who write the language could
0: basic; short words and sentences, anyone could""",
    "verbosity": """\
Verbosity: how much detail is in the response, relative to what was asked? Quality does not count.
4: far more than was asked for
3: more than was asked for
2: about as much as was asked for
1: little
0: as short as possible""",
}
RUBRIC = RUBRICS["helpfulness"]

VERDICT_FORM = f"write only the score, {SCORES[0]} to {SCORES[-1]}, between <score> and </score>."
PROMPT = """\
Score how well the response answers the dialogue.

{rubric}

<dialogue>
{dialogue}
</dialogue>
<response>
{response}
</response>

Reason between <think> and </think>. Then {verdict_form}"""
FRAME = PROMPT + VERDICT_FORM  # its tags are broken in judged text

COLUMNS = ("input", "output", "label")  # of labelled rows
VERDICTS = tuple(SCORES)


@dataclass(frozen=True)
class Judged:
    """A labelled row, read: a response to a dialogue, and its score."""

    dialogue: Conversation
    response: str
    label: int
    reasoning: str = ""  # why, if the row says so: what a judge should write before its verdict


def read_row(row: dict) -> Judged:
    """Read a labelled row; raise `BadRow` if it is not one. Any cell may be JSON text.

    `input` is the dialogue, or the query as text. `output` holds one response. `label` is a whole number of the scale,
    also as text or float. `reasoning` is optional.
    """
    (response,) = read_responses(row["output"], 1, 1)
    return Judged(read_dialogue(row["input"]), response, read_label(row["label"]), read_reasoning(row))


def read_label(value: object) -> int:
    """Return a label; raise `BadRow` if it is not a score of the scale. It is never moved to fit."""
    text = str(value).strip()
    if not re.fullmatch(r"-?[0-9]{1,6}(\.0{1,6})?", text) or (score := int(float(text))) not in SCORES:
        expected = f"expected a whole number from {SCORES[0]} to {SCORES[-1]}, the scale that SCORES sets"
        raise BadRow("label", expected, value)
    return score


def read_reasoning(row: dict) -> str:
    """Return the row's reasoning, or "" if it has none."""
    reasoning = row.get("reasoning")
    if reasoning is not None and not isinstance(reasoning, str):
        raise BadRow("reasoning", "expected text", reasoning)
    return check_unicode("reasoning", reasoning or "")


def ask(dialogue: Conversation, response: str, rubric: str = RUBRIC) -> Conversation:
    """Return the prompt, one turn of the user. The rubric is trusted text; dialogue and response are not."""
    text = PROMPT.format(
        rubric=rubric,
        dialogue=quote_dialogue(dialogue, FRAME),
        response=quote(response, FRAME),
        verdict_form=VERDICT_FORM,
    )
    return [{"role": "user", "content": text}]


def write(score: int, reasoning: str = "") -> str:
    """Return the answer that `parse` reads as `score`, whatever the reasoning holds."""
    if score not in SCORES:
        raise ValueError(f"score is {score!r}, expected {SCORES[0]} to {SCORES[-1]}")
    # the line breaks are Qwen3's own: its chat template would put them there
    return f"<think>\n{quote(reasoning, FRAME).strip()}\n</think>\n\n<score>{score}</score>"


def parse(text: str) -> int | None:
    """Read the score from a judge's answer.

    The answer is reasoning, closed by the one `</think>`, then `<score>N</score>` with N of the scale, then nothing.
    The opening `<think>` may be absent: some chat templates put it into the prompt. An empty think block before the
    reasoning does not count: a chat template writes it to switch the model's own thinking off, and the prompt still
    asks for a reasoning.

    Returns:
        The score, or None for anything else.
    """
    reasoning, closing, rest = text.partition("</think>")
    if reasoning.strip() in ("", "<think>") and rest.lstrip().startswith("<think>"):
        reasoning, closing, rest = rest.partition("</think>")
    if not closing or "<think>" in reasoning.lstrip().removeprefix("<think>"):
        return None
    verdict = re.fullmatch(rf"<score>({'|'.join(map(str, SCORES))})</score>", rest.strip())
    return int(verdict[1]) if verdict else None


def retell(score: int, answer: str) -> str:
    """Return a teacher's answer, which gives this score, in the form of `write`: what a student should answer."""
    reasoning, _, _ = answer.rpartition("</think>")
    return write(score, reasoning.rpartition("<think>")[2])


def decide(votes: list[int | None]) -> int | None:
    """Return the verdict of several votes on one row: the most frequent score among those that parsed.

    Of equally frequent scores the one nearest to the votes' mean counts, then the lower. None if fewer than half of
    the votes parsed: what is left would be the verdict of a few.
    """
    parsed = [vote for vote in votes if vote is not None]
    if not parsed or 2 * len(parsed) < len(votes):
        return None
    counts = Counter(parsed)
    frequent = [score for score in counts if counts[score] == max(counts.values())]
    return min(frequent, key=lambda score: (abs(len(parsed) * score - sum(parsed)), score))


def expected_score(probabilities: dict[int, float]) -> float:
    """Return the mean score over the probabilities of all scores: a number of the scale, with fractions."""
    return sum(score * share for score, share in probabilities.items())


def transcripts(judged: Judged, rubric: str = RUBRIC) -> list[Conversation]:
    """Return a labelled row as conversations for `sft`: the prompt, and the answer that the judge should give."""
    answer = {"role": "assistant", "content": write(judged.label, judged.reasoning)}
    return [[*ask(judged.dialogue, judged.response, rubric), answer]]
