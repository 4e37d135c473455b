"""What the memory simulator needs: LLaMA-13B on the meta device, steps on fake tensors."""

import pytest
import torch
import transformers
from peft import get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode

from lorasp.adapters import LoraSpConfig, selection_summary


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"unselected": "init"},
        {"selection": "matrix", "unselected": "init"},
        {"resample": "step"},
    ],
    ids=["zero", "init", "matrix", "resampled"],
)
def test_a_training_step_on_fake_tensors(llama, settings) -> None:
    with torch.device("meta"):
        base = llama.build()
    config = LoraSpConfig(target_modules=list(llama.targets), r=4, **settings)
    model = get_peft_model(base, config, low_cpu_mem_usage=True, autocast_adapter_dtype=False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], foreach=False
        )
        for _ in range(2):
            model(input_ids=torch.zeros(2, 6, dtype=torch.long)).logits.sum().backward()
            optimizer.step()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained and all(p.grad.shape == p.shape for p in trained)


def test_llama_13b_has_half_of_loras_entries() -> None:
    config = transformers.LlamaConfig(
        hidden_size=5120, num_hidden_layers=40, num_attention_heads=40, intermediate_size=13824
    )
    with torch.device("meta"):
        base = transformers.LlamaForCausalLM(config)
    settings = LoraSpConfig(r=16, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(base, settings, low_cpu_mem_usage=True, autocast_adapter_dtype=False)
    lora = 80 * 2 * 16 * 5120
    assert model.get_nb_trainable_parameters()[0] == lora / 2 == 6_553_600
    summary = selection_summary(model)["default"]
    assert summary["entries"] == lora and summary["mask_bytes"] == lora / 8
