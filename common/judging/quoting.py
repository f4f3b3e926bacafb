"""Judged text, quoted so that it stays in its place in a judge's prompt. This is security, so it stands once.

The prompt's own tags and models' special tokens in judged text are broken by a blank. An answer that says
`</response>`, `<score>4</score>` or `<|im_end|>` then closes nothing and opens nothing. Other code and markup (<div>,
vector<int>, a[MAX]) stays as it is: a judge must see it unharmed.
"""

import re
from functools import cache

from common.conversation import ROLES, Conversation

OWN_TAGS = "think|score|preference|rubric|dialogue|response(?:_[ab])?|system|user|assistant|tool"
# What stands behind a "<" or a "[" in special tokens of model families; a blank there breaks them. Lengths are bounded,
# or 100 kB of "<aaaa" would take minutes.
BEHIND_ANGLE = (
    r"[|｜]",  # <|im_end|>, <｜User｜>
    r"/?(?:s|bos|eos|pad|unk|mask|cls|sep|sop|eop|eod|eot|image|video|audio|system|human|bot|end|seed:[a-z]{1,9})\b",
    r"/?sys>>",  # <<SYS>>
    r"/?role>",
    r"/?[a-z0-9]{1,20}_[a-z0-9_]{1,30}>",  # <start_of_turn>
    r"unused\d",
    r"extra_id_\d",
    r"[a-z]{1,20}\|>",  # <turn|>
)
BEHIND_SQUARE = (
    r"\|",  # [|endofturn|]
    r"/?(?:inst|eot|sys|system|bos|eos|pad|unk|mask|cls|sep|gmask|smask|think|img|img_end|img_break|audio|transcribe)\]",
    r"/?[a-z]{1,20}_[a-z_]{1,20}\]",  # [AVAILABLE_TOOLS]
    r"e~\[",
)
BEHIND_CLOSING_SQUARE = r"~!?b[\[\]]"  # ]~b]


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
    """Find what opens a tag. Case does not matter: a token is only exact, but a model reads <SCORE> as <score>."""
    own = "|".join([OWN_TAGS, *sorted(set(re.findall(r"</([\w-]+)>", frame)))])
    angle = "|".join([*BEHIND_ANGLE, rf"/?(?:{own})\b"])
    square = "|".join(BEHIND_SQUARE)
    return re.compile(rf"<(?={angle})|\[(?={square})|\](?={BEHIND_CLOSING_SQUARE})", re.IGNORECASE)
