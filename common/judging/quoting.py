"""Judged text, quoted so that it stays in its place in a judge's prompt. This is security, so it stands once.

The prompt's own tags and models' special tokens in judged text are broken by a blank. An answer that says
`</response>`, `<score>4</score>` or `<|im_end|>` then closes nothing and opens nothing. Other code and markup (<div>,
vector<int>, a[MAX]) stays as it is: a judge must see it unharmed.
"""

import re
from functools import cache

from common.conversation import ROLES, Conversation

# Tags of ours, and special tokens of model families. Tokens with a bar go by their look (<|im_end|>, <｜User｜>,
# <turn|>, [|endofturn|]), those with an underscore (<start_of_turn>) or a tilde (]~b]) too, the rest by name.
# Case does not matter: a token is only exact, but a model reads <SCORE> as <score>. Lengths are bounded, or 100 kB of
# "<aaaa" would take minutes.
OWN_TAGS = "think|score|preference|rubric|dialogue|response(?:_[ab])?|system|user|assistant|tool"
ANGLE_TOKENS = "s|bos|eos|pad|unk|mask|cls|sep|sop|eop|eod|eot|image|video|audio|system|human|bot|end|seed:[a-z]{1,9}"
SQUARE_TOKENS = (
    "inst|eot|sys|system|bos|eos|pad|unk|mask|cls|sep|gmask|smask|think|img|img_end|img_break|audio|transcribe"
)


def quote(text: str, frame: str = "") -> str:
    """Return text in which nothing is a tag of ours or a special token: "<|im_end|>" becomes "< |im_end|>".

    Args:
        frame: a prompt of your own; its tags are broken too.
    """
    return _opens_a_tag(frame).sub(lambda opening: opening[0] + " ", text)


def quote_dialogue(dialogue: Conversation, frame: str = "") -> str:
    """Return a whole dialogue, each turn quoted between tags of its role: system message and every turn.

    Raises:
        ValueError: a role that is not known; it could close the dialogue.
    """
    if unknown := {turn["role"] for turn in dialogue} - set(ROLES):
        raise ValueError(f"a turn's role is one of {', '.join(ROLES)}, found {unknown}")
    turns = [f"<{turn['role']}>\n{quote(turn['content'], frame)}\n</{turn['role']}>" for turn in dialogue]
    return "\n".join(turns)


@cache
def _opens_a_tag(frame: str) -> re.Pattern:
    tags = "|".join([OWN_TAGS, *sorted(set(re.findall(r"</([\w-]+)>", frame)))])
    return re.compile(
        rf"<(?=[|｜]|/?(?:{tags}|{ANGLE_TOKENS})\b|/?sys>>|/?role>|/?[a-z0-9]{{1,20}}_[a-z0-9_]{{1,30}}>|unused\d"
        r"|extra_id_\d|[a-z]{1,20}\|>)"
        rf"|\[(?=\||/?(?:{SQUARE_TOKENS})\]|/?[a-z]{{1,20}}_[a-z_]{{1,20}}\]|e~\[)"
        r"|\](?=~!?b[\[\]])",
        re.IGNORECASE,
    )
