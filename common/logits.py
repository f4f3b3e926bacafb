"""What a method reads of a language model's logits, some tokens at a time: the numbers are kept, the logits are not.

A textbook loss has the logits of all tokens at once. For 24 answers of 1,024 tokens over a vocabulary of 152,000 they
are 14 GiB in fp32, and their softmax and its gradient as much again. Three things differ here.

- The backbone computes hidden states for the whole batch. Head, logits and what is read of them come after that, for
  `CHUNK` tokens at a time and only where they are wanted.
- The backward pass computes the logits of a chunk once more (torch's checkpointing), so that one chunk's are there at a
  time. The last chunk keeps its own: the backward pass begins with it. So a small batch, of one chunk, costs nothing.
  In bf16 the head's gradient is a sum of the chunks' rounded ones: 0.6 % off with 26 chunks, 0.4 % with one.
- What a family does to logits behind its head (Gemma caps them, Granite and Cohere scale them) is written nowhere here.
  The model's own forward runs for each chunk, with a backbone that returns the chunk's hidden states.
"""

import functools
from collections.abc import Callable
from inspect import signature

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from common.packing import is_packed

ROUNDING = 1e-3  # of the logits' spread: the head computes them from the same states, some tokens at a time
CHUNK = 1024  # tokens: 0.6 GiB of fp32 logits over a vocabulary of 152,000, and enough for a GPU to be busy

# takes logits, (tokens, vocabulary), and which of the wanted tokens they are of; gives named values, each (tokens,)
Read = Callable[[torch.Tensor, slice], dict[str, torch.Tensor]]
# takes the states of some tokens, (tokens, width); gives their logits, (tokens, vocabulary)
Head = Callable[[torch.Tensor], torch.Tensor]


def read_in_chunks(read: Read, head: Head, states: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what is read of all tokens' logits, each value (tokens,), with the logits of one chunk in memory.

    Args:
        read: looks at each token by itself, so that it does not matter which others share its chunk.
        states: (tokens, width).
    """

    def values(chunk: torch.Tensor, start: int) -> dict[str, torch.Tensor]:
        return read(head(chunk), slice(start, start + len(chunk)))

    *chunks, last = states.split(CHUNK)  # split, not slices: its backward joins gradients where theirs would add them
    again = {"use_reentrant": False, "preserve_rng_state": False}
    found = [checkpoint(values, chunk, number * CHUNK, **again) for number, chunk in enumerate(chunks)]
    found.append(values(last, len(chunks) * CHUNK))
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}


def split_model(model: PreTrainedModel, where: tuple, **inputs) -> tuple[Head, torch.Tensor]:
    """Run the backbone; return the rest of the model as a function, and the hidden states that it is wanted for.

    Args:
        where: an index into (rows, length).
        inputs: of the model.

    Returns:
        The function from hidden states to logits; (tokens, width).
    """
    own_forward = type(model).forward
    output = model.base_model(**inputs, use_cache=False)
    others = {name: value for name, value in output.items() if name != "last_hidden_state"}
    output_like_it = functools.partial(type(output), **others)

    def head(hidden: torch.Tensor) -> torch.Tensor:
        backbone = model.base_model
        before = vars(backbone).get("forward")
        backbone.forward = lambda *_, **__: output_like_it(last_hidden_state=hidden[None])
        try:
            return own_forward(model, use_cache=False).logits[0]
        finally:
            del backbone.forward  # now it is that of its class again
            if before:
                backbone.forward = before

    return head, output.last_hidden_state[where]


def run_whole(model: PreTrainedModel, where: tuple, **inputs) -> tuple[Head, torch.Tensor]:
    """As `split_model`, for a model that cannot be split: the states are its logits, the wanted ones all at once."""
    rows, places = where
    own_forward = type(model).forward
    if "logits_to_keep" in signature(own_forward).parameters:
        inputs["logits_to_keep"], places = places.unique(return_inverse=True)
    logits = own_forward(model, **inputs, use_cache=False).logits
    return (lambda chunk: chunk), logits[rows, places]


@torch.no_grad()
def can_be_split(model: PreTrainedModel) -> bool:
    """Return whether `split_model` gives the model's own logits. Tried on a few tokens."""
    ids = torch.arange(1, 8, device=model.device)[None] % model.config.get_text_config().vocab_size
    inputs = {"input_ids": ids} | ({"segments": None} if is_packed(model) else {})
    whole = model(**inputs, use_cache=False).logits[0].float()
    try:
        head, hidden = split_model(model, (0, torch.arange(ids.shape[1])), **inputs)
        parts = torch.cat([head(chunk) for chunk in hidden.split(4)]).float()
    except (AttributeError, TypeError, ValueError, RuntimeError, LookupError, AssertionError):
        return False  # it calls something else than its backbone, or wants more of it than hidden states
    return bool((parts - whole).abs().max() <= ROUNDING * whole.std())


def let_forward_read(model: PreTrainedModel, split: bool) -> None:
    """Let the model's forward take `read` and `where`; it then returns what is read of the logits there, and no logits.

    It has to be the forward: around it FSDP gathers the weights that belong to no layer, and without `read` it is the
    model's own, which generates.

    Args:
        split: whether the model can be split; else all logits are there at the same time.
    """
    own_forward = model.forward

    @functools.wraps(own_forward)  # transformers looks at its arguments before it generates
    def forward(*args, read: Read | None = None, where: tuple | None = None, **inputs):
        if read is None:
            return own_forward(*args, **inputs)
        inputs = {name: value for name, value in inputs.items() if value is not None and name != "use_cache"}
        run = split_model if split else run_whole
        return read_in_chunks(read, *run(model, where, **inputs))

    model.forward = forward
