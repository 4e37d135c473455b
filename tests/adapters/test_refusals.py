"""What is refused, in a sentence that names the setting, what was found, and what is allowed."""

import pytest
from peft import LoraConfig, get_peft_model
from torch import nn

from lorasp import LoraSpConfig
from lorasp.errors import UsageError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0}, r"density is 0; allowed: a number in \(0, 1\]"),
        ({"density": 1.5}, r"density is 1.5; allowed"),
        ({"density": float("nan")}, r"density is nan; allowed"),
        ({"density": "half"}, r"density is 'half'; allowed"),
        ({"density": True}, r"density is True; allowed"),
        ({"selection": "row"}, "selection is 'row'; allowed: element, rank, matrix, depth"),
        ({"unselected": "one"}, "unselected is 'one'; allowed: zero, init"),
        ({"resample": "always"}, "resample is 'always'; allowed: never, epoch, step"),
        ({"depth": "lower"}, "depth is 'lower'; allowed: upper, random"),
        ({"matrix_side": "C"}, "matrix_side is 'C'; allowed: balanced, A, B"),
        ({"selection_seed": 0.5}, "selection_seed is 0.5; allowed: an integer"),
        ({"r": -1}, "r is -1; allowed: a positive integer"),
        ({"r": 0}, "r is 0; allowed"),
        ({"rank_pattern": {"query": -2}}, r"rank_pattern\['query'\] is -2; allowed"),
        ({"lora_dropout": 1.0}, r"lora_dropout is 1.0; allowed: a number in \[0, 0.999\]"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'; allowed: True .* or False"),
        ({"init_lora_weights": "gaussian"}, "init_lora_weights is 'gaussian'; allowed"),
        ({"use_dora": True}, "use_dora does not work with LoRA-SP"),
        ({"lora_bias": True}, "lora_bias does not work"),
        ({"target_parameters": ["w"]}, "target_parameters does not work"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens does not work"),
        ({"layer_replication": [(0, 1)]}, "layer_replication does not work"),
        ({"selection": "matrix"}, "set unselected='init'"),
        ({"selection": "depth", "resample": "step"}, "set resample='never'"),
        (
            {"selection": "matrix", "unselected": "init", "resample": "epoch"},
            "resample='epoch' is defined for selection='element' and 'rank'",
        ),
    ],
)
def test_configuration(settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LoraSpConfig(**settings)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(16, 16)
        self.narrow = nn.Linear(16, 4)
        self.words = nn.Embedding(9, 16)


def test_rank_larger_than_the_matrix_names_the_module() -> None:
    net = Net()
    with pytest.raises(UsageError, match=r"rank 8 is larger than .* module narrow, which is 4x16"):
        get_peft_model(net, LoraSpConfig(r=8, target_modules=["wide", "narrow"]))
    assert type(net.wide) is nn.Linear  # nothing was changed before the refusal


def test_rank_pattern_makes_it_fit() -> None:
    config = LoraSpConfig(
        r=8,
        lora_alpha=4,
        target_modules=["wide", "narrow"],
        rank_pattern={"narrow": 3},
        alpha_pattern={"narrow": 6},
    )
    net = get_peft_model(Net(), config).base_model.model
    assert net.narrow.lora_A["default"].shape == (3, 16)
    assert net.narrow.scaling["default"] == 2 and net.wide.scaling["default"] == 0.5


def test_unsupported_layer_is_named() -> None:
    with pytest.raises(UsageError, match=r"target module words is a Embedding; LoRA-SP adapts .*"):
        get_peft_model(Net(), LoraSpConfig(r=2, target_modules=["wide", "words"]))


def test_weighted_sums_are_refused() -> None:
    model = get_peft_model(Net(), LoraSpConfig(r=2, target_modules=["wide"]))
    with pytest.raises(UsageError, match="cannot be added up"):
        model.add_weighted_adapter(["default"], [1.0], "sum")


def test_every_other_field_of_pefts_config_is_taken() -> None:
    """A field that a later PEFT adds must be decided on: supported, or refused."""
    from dataclasses import fields

    from lorasp.adapters.config import UNSUPPORTED

    supported = {
        *("r", "lora_alpha", "lora_dropout", "use_rslora", "init_lora_weights", "bias"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("rank_pattern", "alpha_pattern", "modules_to_save", "trainable_token_indices"),
        *("fan_in_fan_out", "megatron_core", "runtime_config", "qalora_group_size"),
        *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
        *("revision", "inference_mode"),
    }
    variants = {f.name for f in fields(LoraConfig) if f.metadata.get("is_lora_variant")}
    assert {f.name for f in fields(LoraConfig)} == supported | variants | set(UNSUPPORTED)
