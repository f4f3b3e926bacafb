"""What the judge is asked, and how its answer is read. **RUBRIC is the one thing to edit.**

The prompt's frame and its parser are `common/judge.py`'s, so that a judge warm-started by SFT, trained here and served
elsewhere reads one text: the whole dialogue (system message, every turn, also one that starts with the assistant), the
two responses, and the form of the answer. Judged text cannot leave its place, whatever it contains.
"""

from common.conversation import Conversation
from common.judge import MORE_HELPFUL, PREFERENCES, Preference, pairwise_prompt, parse_preference, write_preference
from common.labelled import PAIRWISE_COLUMNS, read_comparison

RUBRIC = MORE_HELPFUL

COLUMNS = PAIRWISE_COLUMNS  # of labelled rows: input, output, metadata
VERDICTS = PREFERENCES
parse, write = parse_preference, write_preference  # each other's inverse


def render(row: dict, rubric: str = RUBRIC) -> list[tuple[Conversation, Preference]]:
    """Return a labelled row's prompt, as messages, and its label, in both orders; raise `BadRow` where it is none."""
    comparison = read_comparison(row)
    rendered = []
    for shown in (comparison, comparison.swap()):
        text = pairwise_prompt(shown.dialogue, shown.response_a, shown.response_b, rubric)
        rendered.append(([{"role": "user", "content": text}], shown.preferred))
    return rendered
