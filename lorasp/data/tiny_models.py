"""Small models with random weights and a tokenizer of their own, in the Hugging Face layout."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from lorasp.data import generated
from lorasp.data.tokens import prompt_text
from lorasp.errors import UsageError
from lorasp.tasks import load_task

# The order of the special tokens gives their ids; it is that of the published models.
SPECIAL = {
    "roberta": {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    },
    "t5": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    "llama": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
}
ROBERTA_ROLES = {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
# Text is `single` alone and `pair` with a second text.
TEMPLATES = {
    "roberta": ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
    "t5": ("$A </s>", "$A </s> $B </s>"),
    "llama": ("<s> $A", "<s> $A $B"),
}
SIZES: dict[str, dict[str, Any]] = {
    "roberta": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 258,  # RoBERTa's positions start at 2
        "type_vocab_size": 1,
    },
    "t5": {"d_model": 32, "d_kv": 16, "num_heads": 2, "num_layers": 2, "d_ff": 64},
    "llama": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 1024,
    },
}
CLASSES: dict[str, tuple[type[PretrainedConfig], type[PreTrainedModel]]] = {
    "roberta": (RobertaConfig, RobertaForMaskedLM),
    "t5": (T5Config, T5ForConditionalGeneration),
    "llama": (LlamaConfig, LlamaForCausalLM),
}
VOCABULARY = 640  # entries, 256 of them bytes


def write_model(
    folder: Path, shape: str, sizes: dict[str, Any], texts: list[str], size: int
) -> None:
    """Write a model of a shape (roberta, t5, llama) and its tokenizer, which is trained on `texts`.

    The weights are those that transformers initialises under seed 0.
    """
    config_class, model_class = CLASSES[shape]
    known = config_class().to_dict()
    if unknown := sorted(set(sizes) - set(known)):
        raise UsageError(
            f"source.config names {', '.join(unknown)}; a {shape} has {', '.join(sorted(known))}"
        )
    tokenizer = train_tokenizer(shape, texts, size)
    tokenizer.save_pretrained(folder)
    special = {role: getattr(tokenizer, f"{role}_id") for role in SPECIAL[shape]}
    ids = {f"{role}_id": value for role, value in special.items() if role != "unk_token"}
    if shape == "t5":
        ids["decoder_start_token_id"] = ids["pad_token_id"]
    values = SIZES[shape] | sizes | ids | {"vocab_size": len(tokenizer)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model_class(config_class(**values)).save_pretrained(folder)


def train_tokenizer(shape: str, texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most `size` entries: every text has ids, and decoding gives it back."""
    roles = SPECIAL[shape] | (ROBERTA_ROLES if shape == "roberta" else {})
    special = list(dict.fromkeys(roles.values()))
    tokenizer = Tokenizer(models.BPE())
    # T5 has one entry for a word whether or not it comes first.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=shape == "t5")
    tokenizer.decoder = (
        decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
        if shape == "t5"
        else decoders.ByteLevel()
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    single, pair = TEMPLATES[shape]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in special],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **roles,
    )


def generated_texts() -> list[str]:
    """Every text of every generated data set, prompts included."""
    return [
        text
        for task in (*generated.GLUE, "wmt16-en-ro", "alpaca-mmlu", "mmlu")
        for text in _texts(task)
    ]


def _texts(task: str) -> Iterator[str]:
    definition = load_task(task) if task != "mmlu" else {}
    for table in generated.tables(task).values():
        for row in table:
            if definition.get("family") == "instruction":
                yield prompt_text(definition, row)
            if definition.get("family") == "translation":
                yield definition["prefix"]
            for value in row.values():
                if isinstance(value, str):
                    yield value
                elif isinstance(value, list):
                    yield from value
