"""What a user of a checkpoint gets without any of our code."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


@torch.inference_mode()
def plain_rewards(checkpoint: Path, conversations: list[list[dict]]) -> np.ndarray:
    """Return the rewards that transformers alone gives, one conversation at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in conversations]
    ids = [tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"] for text in texts]
    return np.array([model(input_ids=tokens).logits.item() for tokens in ids])
