"""Judged text, quoted so that it stays in its place in a judge's prompt. This is security, so it stands once.

A blank breaks what could leave its place: "<|im_end|>" becomes "< |im_end|>". It closes nothing and opens nothing then,
and a judge still sees what was written. This happens twice.

- Here, when the prompt is written. The prompt's own tags are broken in judged text, such as `</response>` and
  `<score>4</score>`. No tokenizer is known yet, so what looks like a special token of any known model family is broken
  too. Other code and markup (<div>, vector<int>, a[MAX_SIZE]) stays as it is: a judge must see it unharmed.
- In `tokens.py`, when the prompt is rendered. There the tokenizer is known, and says itself which tokens are special.
"""

import re
from functools import cache

from common.conversation import ROLES, Conversation

OWN_TAGS = "think|score|preference|rubric|dialogue|response(?:_[ab])?|system|user|assistant|tool"

# What stands behind a "<" in special tokens of model families, by its look. A tokenizer finds only the exact token, so
# the closing bracket belongs to it. Lengths are bounded, or 100 kB of "<aaaa" would take minutes.
BEHIND_ANGLE = (
    r"[|｜](?![|｜]*>)[^\s<>]{1,80}>",  # <|im_end|>, <｜User｜>, <|turn>, <|"|>
    r"/?[A-Za-z_]{1,20}\|(?:LLM-jp)?>",  # <turn|>, <EOD|LLM-jp>
    r"(?i:/?(?:bos|eos|pad|unk|mask|cls|sep|sop|eop|eoc|eod|eot|eom|eoh|eoa|sys|end|role)(?:_token)?>)",
    r"/?(?:s|PRE|MID|SUF|human|bot|AI|用户|img|imgpad|image|video|audio|speech|ref|box|quad|filename|reponame|TOOLCALL)>",
    r"(?i:/?(?:start|end|begin|beginning)_of_[a-z]{1,20}>)",  # <start_of_turn>
    r"(?i:/?(?:im|img|image|audio|video|vision|speech|turn|think|tool|tool_calls?|code|role|action|channel|box|quad|ref)"
    r"_(?:start|end|begin|sep|pad|patch|col|token|soft_token|context|placeholder)>)",  # <image_soft_token>
    r"(?i:/?(?:tool_(?:calls?|responses?|results?|list|outputs?)|available_tools|arg_(?:key|value))>)",
    r"/?(?:[a-z]{1,15}:(?:think|tool_call)|seed:[a-z_]{1,20}|longcat_[a-z_]{1,20}|tts_[a-z_]{1,20})>",
    r"fim[_-](?:prefix|middle|suffix|pad|begin|hole|end)>",
    r"(?:gh_stars|issue_(?:start|comment|closed)|jupyter_(?:start|text|code|output|script|error)|empty_output)>",
    r"(?:commit_(?:before|msg|message|after)|(?:repo|file)_(?:name|sep|struct|content)|(?:add|delete|rename|edit)_file)>",
    r"(?:(?:empty_)?source_files?|filepath|pr_start|review_comment|code_(?:context|interpreter)|osagent_mode)>",
    r"/?(?:functions|function_calls?|SMILES|protein|dna|rna)>",
    r"_(?:start|end|user|bot|system|observation|pad|unk)>",  # <_user>
    r"[BCH]_(?:Q|A|SYS|USYS|FUNC|CODE|APE)>",
    r"(?i:(?:unused|reserved|reserved_token|reserved_special_token|extra|extra_id|tokens_unused|special|mask|loc)"
    r"[_:]?\d{1,6}>)",  # <unused12>, <reserved_106>, <SPECIAL_12>, <mask:0>
    r"\[(?:begin|end|fim|PLHD)[^\s\[\]<>]{1,40}\]>",  # <[begin▁of▁sentence]>
)
BEHIND_SQUARE = (
    r"/?(?:INST|SYS|SYSTEM|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS?|TOOL_RESULTS?|TOOL_CONTENT|MODEL_SETTINGS)\]",
    r"/?(?:THINK|ARGS|CALL_ID|IMG|IMG_BREAK|IMG_END|AUDIO|BEGIN_AUDIO|TRANSCRIBE|PREFIX|MIDDLE|SUFFIX)\]",
    r"(?:BOS|EOS|EOT|PAD|UNK|MASK|CLS|SEP|gMASK|sMASK|multimodal|@BOS@)\]",
    r"(?:BEGIN|END) (?:OF|FINAL) [A-Z]{1,20}\]",  # [BEGIN FINAL RESPONSE]
    r"(?:start|end)_header_id\]",
    r"(?:control_|unused|UNUSED_TOKEN_|extra_id_|REFERENCE_DOC_)\d{1,6}\]",
    r"\|[a-z]{3,20}\|\]",  # [|endofturn|]
    r"e~\[",
)
BEHIND_OTHERS = (
    r"\](?=~!?b[\[\]]|![a-z]~\[|<\][^\[\]<>]{1,30}\[>\[)",  # ]~b], ]!p~[, ]<]minimax[>[
    r">(?=>[A-Z][A-Z0-9_]{2,20}<<)",  # >>TITLE<<
    r"\|(?=\|\|[A-Z_]{3,20}\|\|\|)",  # |||EMAIL_ADDRESS|||
    r"◁(?=/?[a-z_]{1,20}▷)",  # ◁think▷
)


def quote(text: str, frame: str = "") -> str:
    """Return text in which nothing is a tag of ours, and nothing looks like a special token of a known model family.

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
    """Find what opens a tag. Case does not matter in tags of ours: a model reads <SCORE> as <score>."""
    in_angles, in_squares = own_names(frame)
    angle = "|".join([*BEHIND_ANGLE, rf"(?i:/?(?:{in_angles})\b)"])
    square = "|".join([*BEHIND_SQUARE, rf"(?i:/?(?:{in_squares})\])"])
    return re.compile("|".join([rf"<(?={angle})", rf"\[(?={square})", *BEHIND_OTHERS]))


def own_names(frame: str) -> tuple[str, str]:
    """Return the names of all tags that are the prompt's own, <…> and […], each as alternatives of a pattern."""
    in_angles, in_squares = (sorted(set(re.findall(tag, frame))) for tag in (r"</([\w:-]+)>", r"\[/([\w:-]+)\]"))
    return "|".join([OWN_TAGS, *in_angles]), "|".join(in_squares) or "(?!)"
