"""What the judge is asked, and how its answer is read. **RUBRIC is the one thing to edit.**

The prompt's frame and its parser are `common/judge.py`'s, so that a judge warm-started by SFT, trained here and served
elsewhere reads one text: the whole dialogue (system message, every turn, also one that starts with the assistant), the
response, and the form of the answer. Judged text cannot leave its place, whatever it contains.
"""

from common.conversation import Conversation
from common.judge import HELPFULNESS, SCORES, parse_score, pointwise_prompt, write_score
from common.labelled import POINTWISE_COLUMNS, read_scored

# What a score means, by the names of HelpSteer2's five attributes (arXiv:2406.08673), each 0 to 4.
RUBRICS = {
    "helpfulness": HELPFULNESS,
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

COLUMNS = POINTWISE_COLUMNS  # of labelled rows: input, output, label
VERDICTS = tuple(SCORES)
parse, write = parse_score, write_score  # each other's inverse


def render(row: dict, rubric: str = RUBRIC) -> tuple[Conversation, int]:
    """Return a labelled row's prompt, as messages, and its label; raise `BadRow` where it is none."""
    dialogue, response, score = read_scored(row)
    return [{"role": "user", "content": pointwise_prompt(dialogue, response, rubric)}], score
