"""What an adapter costs: real tensors of a real training step, against PEFT's LoRA."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lorasp.adapters import LoraSpConfig, selection_summary

TARGETS = ["0", "1", "2", "3"]


def stack(sizes: list[tuple[int, int]], dtype: torch.dtype) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(*size, bias=False, dtype=dtype) for size in sizes))


def cost(config: LoraConfig, sizes, dtype: torch.dtype, folder: Path) -> tuple[int, int, int]:
    """Bytes of parameters, gradients, moments, buffers after a step; of the file; trainable."""
    model = get_peft_model(stack(sizes, dtype), config, autocast_adapter_dtype=False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    x = torch.ones(2, sizes[0][0], dtype=dtype)
    model(x).sum().backward()
    optimizer.step()
    moments = [
        state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")
    ]
    tensors = [*trained, *(p.grad for p in trained), *moments]
    tensors += [b for n, b in model.named_buffers() if "lora_" in n]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    model.save_pretrained(folder)
    summary = selection_summary(model)
    if summary:
        assert summary["default"]["state_bytes"] == sum(t.nbytes for t in tensors)
    file = folder / "adapter_model.safetensors"
    return sum(storages.values()), file.stat().st_size, sum(p.numel() for p in trained)


SQUARE = [(768, 768)] * 4
MLP = [(768, 3072), (3072, 768)] * 2
DOWN = [(3072, 512), (512, 3072), (3072, 256), (256, 8)]  # mostly A, which keeps frozen values


# Upper bounds of the states in float32, the adapter's usual dtype, and in bfloat16, where masks and
# frozen bytes weigh twice as much.
SETTINGS = {
    "zero": (0.51, 0.52, {"unselected": "zero"}),
    "init": (0.55, 0.56, {"unselected": "init"}),
    "init-random-b": (0.55, 0.58, {"unselected": "init", "init_lora_weights": False}),
    "rank-zero": (0.50, 0.50, {"selection": "rank"}),
    "rank-init": (0.55, 0.56, {"selection": "rank", "unselected": "init"}),
}


@pytest.mark.parametrize("sizes", [SQUARE, MLP, DOWN], ids=["square", "mlp", "down"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SETTINGS)
def test_states_and_file_are_half_of_loras(sizes, dtype, name, tmp_path) -> None:
    *bounds, settings = SETTINGS[name]
    base = {"r": 8, "target_modules": TARGETS}
    lora = cost(LoraConfig(**base), sizes, dtype, tmp_path / "lora")
    ours = cost(LoraSpConfig(**base, **settings), sizes, dtype, tmp_path / "ours")
    states, file, trainable = (a / b for a, b in zip(ours, lora, strict=True))
    assert trainable == 0.5
    assert states <= bounds[dtype == torch.bfloat16]
    assert file <= 0.52


def test_whole_matrices_of_square_layers_cost_half_and_the_frozen_bytes(tmp_path) -> None:
    base = {"r": 16, "target_modules": TARGETS}
    lora = cost(LoraConfig(**base), SQUARE, torch.float32, tmp_path / "lora")
    config = LoraSpConfig(**base, selection="matrix", unselected="init")
    states, file, trainable = cost(config, SQUARE, torch.float32, tmp_path / "ours")
    assert trainable == lora[2] / 2
    assert states / lora[0] == pytest.approx(0.5 + 1 / 32)
    assert file / lora[1] <= 0.52


def test_nothing_dense_outlives_a_step() -> None:
    model = get_peft_model(stack(SQUARE, torch.float32), LoraSpConfig(target_modules=TARGETS))
    for _ in range(2):
        model(torch.ones(2, 768)).sum().backward()
    matrix = model.base_model.model[0].lora_A["default"]
    held = [*matrix.parameters(), *matrix.buffers(), matrix.values.grad]
    assert sum(t.nbytes for t in held) == 8 * 768 // 2 * (4 + 4) + 8 * 768 // 8
