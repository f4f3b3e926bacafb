"""Can a model be trained on packed rows, and is it the same in training and scoring? Tried on a small copy of it.

A packed row holds many sequences (`common/attention.py`). A model whose layers let them see one another, recurrent or
convolutional ones above all, would train on a mixture, and nothing would say so. Such a model gets one padded sequence
per row instead: exact, and slower. What is refused: a model that stays random in training, and one whose answers depend
on the other texts of a batch in either way.

All this follows from the architecture, not from the weights. So a copy of a few narrow layers with random weights tells
it in seconds, before Ray starts, and when a reward model is loaded to score. The trainer's workers test the real
weights once more (`self_test`).
"""

import copy
import re

import torch
import torch.nn as nn
from transformers import PreTrainedConfig, PreTrainedModel

from common.attention import OF_RANDOM_WEIGHTS, SEGMENT_ATTENTION, self_test
from common.base_model import readable_tokens, rope_sets
from common.conversation import DataError

PACKED, PADDED = "packed", "padded"
PACKINGS = ("auto", PACKED, PADDED)
# attention_dropout, layerdrop, router_jitter_noise
RANDOM_IN_TRAINING = re.compile(r".*(drop|jitter).*", re.IGNORECASE)
NARROW = {  # sizes that do not change which tokens see which
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "ffn_dim": 64,
    "ffn_hidden_size": 64,
    "n_inner": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "num_experts": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 512,
}
LAYERS = 8  # of a model that does not say of what kind each is: attention may be in every eighth
FIRST, MOST = 64, 128  # positions of the copy: what a model reads before long rotary factors set in, and in all


def for_training(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config in fp32, with every dropout, layer drop and router jitter at 0, whatever its name.

    Noise that differs between the two answers of a pair, or between packed sequences, is no fair comparison. And a
    classifier builds its backbone in the precision that its config names, whatever `from_config` is asked for.
    """
    config = copy.deepcopy(config)
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        part.dtype = torch.float32
        for name, value in vars(part).items():
            if RANDOM_IN_TRAINING.fullmatch(name) and isinstance(value, float):
                setattr(part, name, 0.0)
    return config


def own_attention(config: PreTrainedConfig, auto_class: type) -> str:
    """Return transformers' attention that computes what the model says: sdpa leaves out a cap on the scores."""
    text = config.get_text_config()
    if getattr(text, "attn_logit_softcapping", None):
        return "eager"
    model_class = auto_class._model_mapping.get(type(config), None)
    return "sdpa" if model_class is None or model_class._supports_sdpa else "eager"


def choose_packing(config: PreTrainedConfig, auto_class: type, wanted: str, name: str) -> str:
    """Return "packed" or "padded": how the sequences of a batch are laid out.

    Args:
        wanted: "auto" finds it out; "padded" is never wrong.
        name: of the model, for messages.

    Raises:
        DataError: packed is wanted and mixes sequences up; the model is random in training; its values depend on the
            other texts of a batch.
    """
    if wanted not in PACKINGS:
        raise DataError(f"data.packing={wanted!r}: expected one of {', '.join(PACKINGS)}")
    model = small_copy(config, auto_class)
    if model is None:
        return PACKED if wanted == "auto" else wanted  # the workers test the model itself
    check_repeatable(model, name)
    long = readable_tokens(model.config) or MOST
    if wanted != PADDED:
        try:
            self_test(model, long, OF_RANDOM_WEIGHTS)
            return PACKED
        except (ValueError, ArithmeticError) as error:
            if wanted == PACKED:
                raise DataError(f"model.path={name}: data.packing=packed: {error}") from error
            print(f"{error}\nIts sequences are not packed: one padded sequence per row, exact and slower.")
    model.set_attn_implementation(own_attention(config, auto_class))
    check_company(model, long, name)
    return PADDED


def attention_of(packing: str, config: PreTrainedConfig, auto_class: type) -> str:
    """Return the name of the attention by which the workers know how a batch is laid out."""
    return SEGMENT_ATTENTION if packing == PACKED else own_attention(config, auto_class)


def small_copy(config: PreTrainedConfig, auto_class: type) -> PreTrainedModel | None:
    """Return a model of the same kinds of layers, few and narrow, with random weights; None if it cannot be built.

    The weights are larger than an initialisation's, so that attention is far from even and positions matter.
    """
    if type(config) not in auto_class._model_mapping:
        return None  # code of its own, which is run in the workers alone
    small = for_training(config)
    text = small.get_text_config()
    kinds = getattr(text, "layer_types", None)
    layers = max(2, 1 + max(map(kinds.index, set(kinds)))) if kinds else min(text.num_hidden_layers, LAYERS)
    for name, value in list(vars(text).items()):
        of_each = isinstance(value, list) or (isinstance(value, str) and name.endswith("pattern"))
        if of_each and len(value) == text.num_hidden_layers and layers < len(value):
            setattr(text, name, value[:layers])  # what kind each layer is
    text.num_hidden_layers = layers
    for name, most in NARROW.items():
        grouped = name.startswith("num_") and hasattr(text, "n_group")  # groups of experts must stay as they are
        if isinstance(size := getattr(text, name, None), int) and not grouped:
            setattr(text, name, min(size, most))
    for name, most in (("max_position_embeddings", MOST), ("original_max_position_embeddings", FIRST)):
        for part in (text, *rope_sets(text)):
            holder = part if isinstance(part, dict) else vars(part)
            name = getattr(text, "attribute_map", {}).get(name, name) if part is text else name
            if isinstance(size := holder.get(name), int):
                holder[name] = min(size, most)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, name, 0)
        setattr(small, name, 0)
    if "SequenceClassification" in auto_class.__name__:
        small.num_labels = 1
    try:
        with torch.random.fork_rng(devices=[]):  # others go on with the numbers that they had
            torch.default_generator.manual_seed(0)
            options = {"attn_implementation": own_attention(config, auto_class), "dtype": torch.float32}
            model = auto_class.from_config(_narrow_width(small), **options).eval()
            _spread_weights(model)
            _hidden(model, torch.tensor([[1, 2, 3]]))
    except (ValueError, TypeError, AttributeError, RuntimeError, LookupError, ArithmeticError, AssertionError):
        return None  # sizes that must fit together differ from family to family
    return model


def _narrow_width(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config with four heads and the width that follows, where a config says such things."""
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", 0)
    if not isinstance(heads, int) or heads <= 4:
        return config
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    kv_heads = getattr(text, "num_key_value_heads", None)
    text.num_attention_heads, text.hidden_size = 4, 4 * head
    if isinstance(kv_heads, int):
        text.num_key_value_heads = 4 if kv_heads == heads else min(kv_heads, 2)
    return config


def _spread_weights(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(std=1.5 / module.in_features**0.5, generator=generator)
        elif isinstance(module, nn.Embedding):
            module.weight.data.normal_(generator=generator)


@torch.no_grad()
def _hidden(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    return model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.float()


@torch.no_grad()
def check_repeatable(model: PreTrainedModel, name: str) -> None:
    """Raise `DataError` if one batch, computed twice in training mode, gives two results."""
    known = model.config.get_text_config().vocab_size
    ids = (torch.arange(1, 25) % known).view(2, 12)
    model.train()
    torch.manual_seed(1)
    first, second = _hidden(model, ids), _hidden(model, ids)
    model.eval()
    asked = _hidden(model, ids)
    if not torch.equal(first, second) or (first - asked).abs().max() > OF_RANDOM_WEIGHTS * asked.std():
        raise DataError(
            f"model.path={name}: {type(model).__name__} is random in training, although every setting that is called "
            "dropout or jitter is 0: one batch gives two results. Choose another model."
        )


@torch.no_grad()
def check_company(model: PreTrainedModel, longest: int, name: str) -> None:
    """Raise `DataError` if a padded text has other values beside a text of `longest` tokens than alone."""
    generator = torch.Generator().manual_seed(0)
    known = model.config.get_text_config().vocab_size
    short, long = (torch.randint(1, known, (length,), generator=generator) for length in (10, longest))
    both = pad([short, long])
    model.eval()
    alone, beside = _hidden(model, short[None])[0], _hidden(model, *both.values())[0, : len(short)]
    if (alone - beside).abs().max() > OF_RANDOM_WEIGHTS * alone.std():
        raise DataError(
            f"model.path={name}: {type(model).__name__} gives a text other values beside a longer text than alone, so "
            "rewards would depend on the batch. Choose another model."
        )


def pad(sequences: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return sequences one in a row, padded on the right: input_ids and attention_mask, both (sequences, longest)."""
    lengths = torch.tensor([len(ids) for ids in sequences], device=sequences[0].device)
    ids = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True)
    mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    return {"input_ids": ids, "attention_mask": mask.long()}


def find_in_rows(places: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the index (rows, places) of each row's places, one row's after another's."""
    rows = torch.arange(len(places), device=places[0].device)
    counts = torch.tensor([len(of_row) for of_row in places], device=rows.device)
    return rows.repeat_interleave(counts), torch.cat(places)


def is_packed(model: PreTrainedModel) -> bool:
    """Return whether the model attends by segments."""
    return model.config._attn_implementation == SEGMENT_ATTENTION
