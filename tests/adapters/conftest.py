"""Tiny random models of the four families that the suite adapts, built from their configs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peft
import pytest
import torch
import transformers


@dataclass(frozen=True)
class Family:
    """How to build one tiny model, what to feed it, and what to adapt in it."""

    build: Callable[[], transformers.PreTrainedModel]
    task: str
    targets: tuple[str, ...]
    auto_class: type
    labels: bool = False  # labels are classes, not tokens

    def model(self, seed: int = 0) -> transformers.PreTrainedModel:
        torch.manual_seed(seed)
        return self.build().eval()

    def batch(self) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(5, 60, (3, 6), generator=generator)
        return {"input_ids": ids, "labels": torch.tensor([0, 1, 0]) if self.labels else ids}


SMALL: dict[str, Any] = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
FAMILIES = {
    "roberta": Family(
        lambda: transformers.RobertaForSequenceClassification(
            transformers.RobertaConfig(
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=20,
                **SMALL,
            )
        ),
        "SEQ_CLS",
        ("query", "value"),
        peft.AutoPeftModelForSequenceClassification,
        labels=True,
    ),
    "t5": Family(
        lambda: transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                d_model=16,
                d_kv=8,
                d_ff=32,
                num_layers=2,
                num_heads=2,
                decoder_start_token_id=0,
                **SMALL,
            )
        ),
        "SEQ_2_SEQ_LM",
        ("q", "v", "wo"),
        peft.AutoPeftModelForSeq2SeqLM,
    ),
    "llama": Family(
        lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                **SMALL,
            )
        ),
        "CAUSAL_LM",
        ("q_proj", "v_proj", "down_proj"),
        peft.AutoPeftModelForCausalLM,
    ),
    "gpt2": Family(
        lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=20, **SMALL)
        ),
        "CAUSAL_LM",
        ("c_attn", "c_fc"),
        peft.AutoPeftModelForCausalLM,
    ),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture
def roberta() -> Family:
    return FAMILIES["roberta"]


@pytest.fixture
def t5() -> Family:
    return FAMILIES["t5"]


@pytest.fixture
def llama() -> Family:
    return FAMILIES["llama"]
