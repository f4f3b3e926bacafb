"""A tiny Qwen3 and its tokenizer, made on the spot for the demo world: no download, a few seconds on one CPU core.

- The tokenizer is a byte-level BPE trained on the demo world's own text, so a word of that world is one token and any
  other text still encodes, byte by byte, and decodes to itself.
- Special tokens and chat template are shaped as Qwen3's (ChatML; pad is not eos; <think> survives decoding), so code
  that works here meets nothing new in a real Qwen3. One difference: a last assistant turn that has no thinking gets no
  empty think block.
- The model is a Qwen3ForCausalLM with random weights. A reward model loads it as a sequence classifier and so draws
  its score head afresh, just as it would from a pretrained language model.

The same seed writes the same bytes.
"""

import argparse
import re
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from common.demo.transcripts import comparing, scoring
from common.demo.world import pairwise_rows, pointwise_rows, preference_pairs

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK_TOKENS = ["<think>", "</think>"]
VOCAB_SIZE = 1024  # at most: merging stops earlier when every word of the world is one token
# Qwen's rule for what may become one token: a word with the blank before it, a single digit, a run of punctuation.
PRETOKEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and not loop.last and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train the byte-level BPE on training conversations of the demo world, answers and judgements."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKEN_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(THINK_TOKENS),
        special_tokens=[PAD, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    conversations = [row[side] for row in preference_pairs("train", 2000, seed=0) for side in ("chosen", "rejected")]
    conversations += [scoring(row) for row in pointwise_rows("train", 1000, seed=0)]
    conversations += [comparing(row) for row in pairwise_rows("train", 1000, seed=0)]
    texts = [f"{turn['role']}\n{turn['content']}" for conversation in conversations for turn in conversation]
    texts = [re.sub("</?think>", "", text) for text in [*texts, *["system\n"] * 100]]
    tokenizer.train_from_iterator(texts, trainer)
    fast_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=TURN_END,
        additional_special_tokens=[TURN_START, TURN_END],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    fast_tokenizer.add_tokens(THINK_TOKENS)
    return fast_tokenizer


def save_tiny_model(path: str | Path, seed: int = 0) -> None:
    """Write a loadable checkpoint: weights, config, tokenizer and chat template."""
    tokenizer = make_tokenizer()
    config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},  # Qwen3's own value, not the library's default
        initializer_range=0.05,  # from 0.02, usual for wide models, a model this narrow leaves the plateau later
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    Qwen3ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the tiny demo model with random weights.")
    parser.add_argument("--output", required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    save_tiny_model(options.output, options.seed)
