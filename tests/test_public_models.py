"""The public models on the meta device have the parameter counts that are known of them."""

import pytest

from lorasp.errors import UsageError
from lorasp.public_models import meta_model, public_models

COUNTS = {
    "roberta-base": 124_647_170,
    "roberta-large": 355_361_794,
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "minilm-l6": 22_713_986,
    "smollm2-135m": 134_515_008,
}
LORA = {  # PEFT's own count: model, rank and targets, with the classification head of an encoder
    ("roberta-base", 8, ("query", "value")): 887_042,
    ("roberta-large", 8, ("query", "value")): 1_838_082,
    ("t5-base", 8, ("q", "v")): 884_736,
    ("t5-large", 8, ("q", "v")): 2_359_296,
    ("llama-7b", 64, "all-linear"): 159_907_840,
    ("llama-13b", 64, "all-linear"): 250_347_520,
}


def test_every_model_has_a_known_count() -> None:
    assert set(COUNTS) == set(public_models())


@pytest.mark.parametrize("name", COUNTS)
def test_the_exact_count_without_a_byte_of_weights(name: str) -> None:
    model = meta_model(name)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name]


def test_the_head_follows_its_labels() -> None:
    sizes = [sum(p.numel() for p in meta_model("roberta-base", n).parameters()) for n in (1, 2)]
    assert sizes[1] - sizes[0] == 768 + 1


@pytest.mark.parametrize(("model", "rank", "targets"), LORA)
def test_peft_counts_lora_on_them(model: str, rank: int, targets: str) -> None:
    from peft import LoraConfig, get_peft_model

    task = "SEQ_CLS" if model.startswith("roberta") else None
    chosen = targets if isinstance(targets, str) else list(targets)
    adapted = get_peft_model(
        meta_model(model),
        LoraConfig(r=rank, target_modules=chosen, task_type=task),
        low_cpu_mem_usage=True,
    )
    assert adapted.get_nb_trainable_parameters()[0] == LORA[model, rank, targets]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'gpt-5' is not in public_models\.yaml; known are llama"):
        meta_model("gpt-5")
