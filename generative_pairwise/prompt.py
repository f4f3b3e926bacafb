"""What the judge is asked, and how its answer is read: rubric, frame, verdicts, form of the verdict. **Edit it.**

All other files of this folder take them from here: the data, the reward, the evaluation and the grader. So another
rubric, a judge that knows no tie or a verdict as JSON is a change of a few lines on this page alone.

- The judge sees the whole dialogue (system message, every turn, also one that starts with the assistant), the
  responses, and in which form to answer. Judged text is quoted: whatever it contains, it stays in its place.
- `parse` is the inverse of `write`. It reads a verdict only where it stands alone behind the closed reasoning. Anything
  else is None, never a preference: a parser that searches for letters finds an A in any garbage.
"""

import re
import sys
from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from common.conversation import BadRow, Conversation, check_unicode, read_dialogue, read_json, read_responses
from common.judging.quoting import quote, quote_dialogue

Preference = Literal["A", "B", "tie"]
PREFERENCES: tuple[Preference, ...] = ("A", "B", "tie")
SWAPPED: dict[Preference, Preference] = {"A": "B", "B": "A", "tie": "tie"}  # with the responses in the other order

RUBRIC = """\
Helpfulness: does the response do what the dialogue asks for, correctly, completely and clearly?
Neither length nor order counts. It is a tie if neither response is better."""

VERDICT_FORM = "write only the better one, A, B or tie, between <preference> and </preference>."
PROMPT = """\
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

Reason between <think> and </think>. Then {verdict_form}"""
FRAME = PROMPT + VERDICT_FORM  # its tags are broken in judged text

COLUMNS = ("input", "output", "metadata")  # of labelled rows
VERDICTS = PREFERENCES


@dataclass(frozen=True)
class Judged:
    """A labelled row, read: two responses to a dialogue, which is better, and by how much if that is known."""

    dialogue: Conversation
    response_a: str
    response_b: str
    label: Preference
    strength: float | None = None
    reasoning: str = ""  # why, if the row says so: what a judge should write before its verdict

    def swap(self) -> "Judged":
        """Return the same with the responses in the other order; a tie stays one."""
        return replace(self, response_a=self.response_b, response_b=self.response_a, label=SWAPPED[self.label])

    @property
    def longer(self) -> Preference:
        """The response with more characters."""
        difference = len(self.response_a) - len(self.response_b)
        return "A" if difference > 0 else "B" if difference < 0 else "tie"


def read_row(row: dict) -> Judged:
    """Read a labelled row; raise `BadRow` if it is not one. Any cell may be JSON text.

    `input` is the dialogue, or the query as text. `output` holds two responses, A and B. `metadata` holds `preferred`,
    and `preference_strength` if that is known. `reasoning` is optional.
    """
    response_a, response_b = read_responses(row["output"], 2, 2)
    metadata = read_json("metadata", row["metadata"])
    label = read_label(metadata)
    if response_a == response_b and label != "tie":
        raise BadRow("output", "equal responses, one of them preferred", response_a)
    strength = read_strength("metadata", metadata.get("preference_strength"), label)
    return Judged(read_dialogue(row["input"]), response_a, response_b, label, strength, read_reasoning(row))


def read_label(metadata: object) -> Preference:
    """Return which response is preferred; raise `BadRow` if that is not said. A missing label is never a tie."""
    preferred = metadata.get("preferred") if isinstance(metadata, dict) else None
    if preferred not in PREFERENCES:
        raise BadRow("metadata", f"`preferred` is not one of {', '.join(PREFERENCES)}", metadata)
    return preferred


def read_strength(column: str, strength: object, preferred: Preference) -> float | None:
    """Return how much better the better response is, in the source's own units; a tie has no strength.

    Raises:
        BadRow: it is not a strength.
    """
    if strength is None or preferred == "tie":
        return None
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 < strength <= sys.float_info.max:
        raise BadRow(column, "the strength of a preference is a number above 0; leave it out if unknown", strength)
    return float(strength)


def read_reasoning(row: dict) -> str:
    """Return the row's reasoning, or "" if it has none."""
    reasoning = row.get("reasoning")
    if reasoning is not None and not isinstance(reasoning, str):
        raise BadRow("reasoning", "expected text", reasoning)
    return check_unicode("reasoning", reasoning or "")


def ask(dialogue: Conversation, response_a: str, response_b: str, rubric: str = RUBRIC) -> Conversation:
    """Return the prompt, one turn of the user. The rubric is trusted text; dialogue and responses are not."""
    text = PROMPT.format(
        rubric=rubric,
        dialogue=quote_dialogue(dialogue, FRAME),
        response_a=quote(response_a, FRAME),
        response_b=quote(response_b, FRAME),
        verdict_form=VERDICT_FORM,
    )
    return [{"role": "user", "content": text}]


def write(preference: Preference, reasoning: str = "") -> str:
    """Return the answer that `parse` reads as `preference`, whatever the reasoning holds."""
    if preference not in PREFERENCES:
        raise ValueError(f"preference is {preference!r}, expected one of {', '.join(PREFERENCES)}")
    # the line breaks are Qwen3's own: its chat template would put them there
    return f"<think>\n{quote(reasoning, FRAME).strip()}\n</think>\n\n<preference>{preference}</preference>"


def parse(text: str) -> Preference | None:
    """Read the preference from a judge's answer.

    The answer is reasoning, closed by the one `</think>`, then `<preference>A</preference>`, B or tie, then nothing.
    The opening `<think>` may be absent: some chat templates put it into the prompt. An empty think block before the
    reasoning does not count: a chat template writes it to switch the model's own thinking off, and the prompt still
    asks for a reasoning.

    Returns:
        The preference, or None for anything else.
    """
    reasoning, closing, rest = text.partition("</think>")
    if reasoning.strip() in ("", "<think>") and rest.lstrip().startswith("<think>"):
        reasoning, closing, rest = rest.partition("</think>")
    if not closing or "<think>" in reasoning.lstrip().removeprefix("<think>"):
        return None
    verdict = re.fullmatch(rf"<preference>({'|'.join(PREFERENCES)})</preference>", rest.strip())
    return verdict[1] if verdict else None


def retell(preference: Preference, answer: str) -> str:
    """Return a teacher's answer, which gives this preference, in the form of `write`: what a student should answer."""
    reasoning, _, _ = answer.rpartition("</think>")
    return write(preference, reasoning.rpartition("<think>")[2])


def decide(votes: list[Preference | None]) -> Preference | None:
    """Return the verdict of several votes on one row: the most frequent preference among those that parsed.

    Of equally frequent ones "tie" counts. Without it, A as often as B, there is no verdict; nor if fewer than half of
    the votes parsed: what is left would be the verdict of a few.
    """
    parsed = [vote for vote in votes if vote is not None]
    if not parsed or 2 * len(parsed) < len(votes):
        return None
    counts = Counter(parsed)
    frequent = [verdict for verdict in counts if counts[verdict] == max(counts.values())]
    if len(frequent) == 1:
        return frequent[0]
    return "tie" if "tie" in frequent else None


def transcripts(judged: Judged, rubric: str = RUBRIC) -> list[Conversation]:
    """Return a labelled row as conversations for `sft`: the prompt, and the answer that the judge should give.

    A reasoning speaks of A and B as they stand, so there is one conversation. Without a reasoning there are two, in
    both orders, so that no position is favoured.
    """
    conversations = []
    for shown in [judged] if judged.reasoning else [judged, judged.swap()]:
        answer = {"role": "assistant", "content": write(shown.label, shown.reasoning)}
        conversations.append([*ask(shown.dialogue, shown.response_a, shown.response_b, rubric), answer])
    return conversations
