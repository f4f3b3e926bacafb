"""Which families are packed, which are padded, and what is refused: told from a small copy, before Ray starts."""

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    Phi3Config,
    Qwen3Config,
)

from common import packing
from common.attention import SEGMENT_ATTENTION, self_test
from common.conversation import DataError
from common.packing import attention_of, check_company, check_repeatable, choose_packing, own_attention, small_copy

REWARD, LANGUAGE = AutoModelForSequenceClassification, AutoModelForCausalLM
PACKED = ["qwen2", "qwen3", "qwen3_moe", "llama", "mistral", "mixtral", "phi", "phi3", "gemma", "gemma3_text", "olmo2"]
PACKED += ["olmo3", "gpt2", "gpt_neox", "opt", "starcoder2", "smollm3", "glm4", "exaone4", "seed_oss", "deepseek_v3"]
PADDED = {
    "gemma2": "softcap",
    "gpt_oss": "s_aux",
    "stablelm": "takes no attention but its own",
    "bloom": "does not keep packed sequences apart",
    "mpt": "does not keep packed sequences apart",
    "gptj": "does not keep packed sequences apart",
    "falcon": "does not keep packed sequences apart",
    "jamba": "does not keep packed sequences apart",
    "qwen3_next": "does not keep packed sequences apart",
    "qwen3_5_text": "does not keep packed sequences apart",
    "minimax": "does not keep packed sequences apart",
}


FEW = {
    "qwen3",
    "llama",
    "gpt2",
    "gemma3_text",
    "deepseek_v3",
    "gemma2",
    "bloom",
    "qwen3_next",
    "jamba",
}  # the others are slower


def families(names) -> list:
    return [pytest.param(name, marks=() if name in FEW else pytest.mark.run) for name in names]


@pytest.mark.parametrize("family", families(PACKED))
def test_families_that_attend_through_the_interface_are_packed(family):
    config = CONFIG_MAPPING[family]()
    assert small_copy(config, REWARD) is not None
    assert choose_packing(config, REWARD, "auto", family) == "packed"
    assert attention_of("packed", config, REWARD) == SEGMENT_ATTENTION


@pytest.mark.parametrize("family", families(PADDED))
def test_hybrids_and_other_attentions_are_padded_and_it_is_said_why(family, capsys):
    config = CONFIG_MAPPING[family]()
    assert choose_packing(config, REWARD, "auto", family) == "padded"
    said = capsys.readouterr().out
    assert PADDED[family] in said and "one padded sequence per row, exact and slower" in said
    with pytest.raises(DataError, match="data.packing=packed: .*" + PADDED[family]):
        choose_packing(config, REWARD, "packed", family)


@pytest.mark.parametrize("task", [REWARD, LANGUAGE])
def test_a_model_that_was_saved_in_bf16_is_built_in_fp32(task):
    """A classifier asks for its backbone in the precision that the config names, and rounding would look like a leak.

    On all workers but the first the model is built so, from its config alone.
    """
    config = Qwen3Config(dtype="bfloat16")
    assert choose_packing(config, task, "auto", "qwen3") == "packed"
    with torch.device("meta"):
        model = task.from_config(packing.for_training(config), dtype=torch.float32)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert config.dtype == torch.bfloat16, "the user's config is not changed"


def test_what_is_wanted_is_done_or_refused():
    assert choose_packing(LlamaConfig(), LANGUAGE, "padded", "llama") == "padded"
    with pytest.raises(DataError, match="data.packing='no': expected one of auto, packed, padded"):
        choose_packing(LlamaConfig(), LANGUAGE, "no", "llama")


def test_attention_is_the_models_own_where_sdpa_would_leave_out_the_cap():
    for family, attention in (("gemma2", "eager"), ("gpt_oss", "eager"), ("qwen3", "sdpa"), ("bloom", "eager")):
        assert own_attention(CONFIG_MAPPING[family](), REWARD) == attention


# ---- randomness in training


@pytest.mark.parametrize("family", ["opt", "gpt2", "bloom", "phi", "phimoe", "gpt_neox", "falcon"])
def test_dropout_layer_drop_and_jitter_are_off_whatever_they_are_called(family):
    """Trap 32. Each of these families has a dropout of its own, some a function that no module shows."""
    config = CONFIG_MAPPING[family]()
    names = [name for name in vars(config) if packing.RANDOM_IN_TRAINING.fullmatch(name)]
    for name in names:
        if isinstance(getattr(config, name), float):
            setattr(config, name, 0.3)
    still_random = REWARD.from_config(
        type(config).from_dict(
            small_copy(config, REWARD).config.to_dict() | {name: getattr(config, name) for name in names}
        )
    )
    with pytest.raises(DataError, match="is random in training"):
        check_repeatable(still_random, family)
    check_repeatable(small_copy(config, REWARD), family)
    off = packing.for_training(config)
    assert all(getattr(off, name) in (0.0, None, False) or not isinstance(getattr(off, name), float) for name in names)
    assert any(getattr(config, name) == 0.3 for name in names), "the user's config is not changed"


def test_a_dropout_that_no_setting_reaches_is_refused():
    model = small_copy(LlamaConfig(), REWARD)
    layer = model.base_model.layers[0]
    forward = layer.mlp.forward
    layer.mlp.forward = lambda hidden: torch.nn.functional.dropout(forward(hidden), 0.1, layer.training)
    with pytest.raises(DataError, match="model.path=mine: LlamaForSequenceClassification is random in training"):
        check_repeatable(model, "mine")


# ---- the company of a text


def long_rope(limit: int) -> Phi3Config:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [4.0] * 48, "rope_theta": 1e4}
    return Phi3Config(rope_parameters=rope, max_position_embeddings=4096, original_max_position_embeddings=limit)


DYNAMIC = LlamaConfig(
    rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}, max_position_embeddings=128
)


@pytest.mark.parametrize(("config", "limit"), [(long_rope(64), 64), (DYNAMIC, 128)], ids=["longrope", "dynamic NTK"])
@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
def test_a_text_longer_than_the_first_length_changes_all_others_and_the_tests_see_it(config, limit, padded):
    """Traps 32 and 33: ten tokens alone show nothing."""
    for longest in (limit, 2 * limit):
        model = small_copy(config, REWARD)
        try:
            check_company(model, longest, "mine") if padded else self_test(model, longest)
            seen = ""
        except ValueError as error:
            seen = str(error)
        assert bool(seen) == (longest > limit), (longest, seen)
    assert choose_packing(config, REWARD, "auto", "mine") == "packed"
