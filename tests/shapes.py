"""Kinds of chat template, each with a tokenizer of its own, and what a model has to write under each.

The templates are written here in the manner of the public ones: what they do to a conversation, not their text.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from common.demo.tiny_model import PRETOKEN_PATTERN, THINK_TOKENS
from common.demo.world import preference_pairs

NO_THINKING = "<think>\n\n</think>\n\n"

CHATML = """\
{%- for turn in messages -%}
    {{- '<|im_start|>' ~ turn.role ~ '\\n' ~ turn.content ~ '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
# Thinking stays in the turns after the last user's alone; the very last turn always has a think block.
QWEN3 = """\
{%- set query = namespace(last=messages | length - 1) -%}
{%- for turn in messages -%}
    {%- set query.last = loop.index0 if turn.role == 'user' else query.last -%}
{%- endfor -%}
{%- for turn in messages -%}
    {%- set thinks = turn.role == 'assistant' and '</think>' in turn.content -%}
    {%- set thought = turn.content.split('</think>')[0].split('<think>')[-1].strip('\\n') if thinks else '' -%}
    {%- set answer = turn.content.split('</think>')[-1].lstrip('\\n') if thinks else turn.content -%}
    {{- '<|im_start|>' ~ turn.role ~ '\\n' -}}
    {%- if turn.role == 'assistant' and loop.index0 > query.last and (loop.last or thought) -%}
        {{- '<think>\\n' ~ thought ~ '\\n</think>\\n\\n' ~ answer.lstrip('\\n') -}}
    {%- else -%}
        {{- answer -}}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
    {{- '<think>\\n\\n</think>\\n\\n' if enable_thinking is defined and not enable_thinking -}}
{%- endif -%}
"""
QWEN3_THINKING = QWEN3.replace("{{- '<|im_start|>assistant\\n' -}}", "{{- '<|im_start|>assistant\\n<think>\\n' -}}")
LLAMA3 = """\
{{- bos_token -}}
{%- for turn in messages -%}
    {{- '<|start_header_id|>' ~ turn.role ~ '<|end_header_id|>\\n\\n' ~ turn.content | trim ~ '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""
TAKE_TURNS = """
    {%- if turn.role != ['user', 'assistant'][loop.index0 % 2] -%}
        {{- raise_exception('user and assistant take turns, there is no place for: ' ~ turn.role) -}}
    {%- endif -%}"""
GEMMA = """\
{{- bos_token -}}
{%- for turn in messages -%} TAKE_TURNS
    {%- set role = 'model' if turn.role == 'assistant' else 'user' -%}
    {{- '<start_of_turn>' ~ role ~ '\\n' ~ turn.content | trim ~ '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<start_of_turn>model\\n' -}}
{%- endif -%}
""".replace(" TAKE_TURNS", TAKE_TURNS)
# As Llama 2's and Mistral's: no generation prompt, and the blank in front of an answer is the model's to write.
INST = """\
{%- set first = 1 if messages[0].role == 'system' else 0 -%}
{{- bos_token -}}
{%- for turn in messages[first:] -%} TAKE_TURNS
    {%- if turn.role == 'assistant' -%}
        {{- ' ' ~ turn.content | trim ~ eos_token -}}
    {%- else -%}
        {%- set before = messages[0].content ~ '\\n\\n' if first and loop.first else '' -%}
        {{- '[INST] ' ~ before ~ turn.content | trim ~ ' [/INST]' -}}
    {%- endif -%}
{%- endfor -%}
""".replace(" TAKE_TURNS", TAKE_TURNS)


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict:
    return {"role": "system", "content": text}


def answers(messages: list[dict]) -> list[str]:
    return [turn["content"] for turn in messages if turn["role"] == "assistant"]


def chatml_turns(messages: list[dict]) -> list[str]:
    return [answer + "<|im_end|>" for answer in answers(messages)]


def qwen3_turns(messages: list[dict], unasked: str = NO_THINKING) -> list[str]:
    """For turns without thinking; `unasked` is what the model writes in front of the last one by itself."""
    *earlier, last = answers(messages)
    return [*(answer + "<|im_end|>" for answer in earlier), unasked + last.lstrip("\n") + "<|im_end|>"]


@dataclass(frozen=True)
class Shape:
    template: str
    special: tuple[str, ...]
    turns: Callable[[list[dict]], list[str]]  # what the model has to write, turn by turn
    named: tuple[tuple[str, str], ...] = ()  # special tokens that the tokenizer also has a name for
    options: tuple[tuple[str, bool], ...] = ()
    takes_system: bool = True
    takes_any_order: bool = True


QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_NAMES = (("eos_token", "<|im_end|>"), ("pad_token", "<|endoftext|>"))
SHAPES = {
    "chatml": Shape(CHATML, QWEN_TOKENS, chatml_turns, QWEN_NAMES),
    "qwen3": Shape(QWEN3, QWEN_TOKENS, qwen3_turns, QWEN_NAMES),
    "qwen3, thinking switched off": Shape(
        QWEN3, QWEN_TOKENS, functools.partial(qwen3_turns, unasked=""), QWEN_NAMES, (("enable_thinking", False),)
    ),
    "llama3": Shape(
        LLAMA3,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        lambda messages: [answer.strip() + "<|eot_id|>" for answer in answers(messages)],
        (("bos_token", "<|begin_of_text|>"), ("eos_token", "<|end_of_text|>")),
    ),
    "gemma": Shape(
        GEMMA,
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        lambda messages: [answer.strip() + "<end_of_turn>" for answer in answers(messages)],
        (("bos_token", "<bos>"), ("eos_token", "<eos>"), ("pad_token", "<pad>")),
        takes_system=False,
        takes_any_order=False,
    ),
    "inst": Shape(
        INST,
        ("<s>", "</s>"),
        lambda messages: [f" {answer.strip()}</s>" for answer in answers(messages)],
        (("bos_token", "<s>"), ("eos_token", "</s>")),
        takes_any_order=False,
    ),
}


@functools.cache
def bpe_without_special_tokens() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKEN_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    conversations = [pair["chosen"] for pair in preference_pairs("train", 300, seed=0)]
    texts = [f"{turn['role']}\n\n{turn['content']}" for conversation in conversations for turn in conversation]
    tokenizer.train_from_iterator([*texts, *["system\n", "model\n"] * 100], trainer)
    return tokenizer.to_str()


def make_tokenizer(shape: Shape, **changes) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the shape's special tokens; one that has a bos token puts it before every text, if let."""
    tokenizer = Tokenizer.from_str(bpe_without_special_tokens())
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in shape.special])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in THINK_TOKENS])
    named = dict(shape.named)
    if bos := named.get("bos_token"):
        tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        **{"chat_template": shape.template, **named, **changes},
    )
