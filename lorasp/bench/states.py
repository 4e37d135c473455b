"""What LoRA-SP holds and saves beside PEFT's LoRA: `lorasp bench states`."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from lorasp.adapters import LoraSpConfig
from lorasp.bench.measure import exactly, result
from lorasp.bench.step import ALL_LINEAR, OURS, PEFT, RANK, VOCABULARY, encoder, loss_of
from lorasp.profiling.step import adapter_prefix, moments

ROUNDS = 1
READINGS: dict[str, dict[str, Any]] = {
    PEFT: {},
    OURS: {},
    f"{OURS}, unselected=init": {"unselected": "init"},
}


def bench(rounds: int, cores: int, layers: int = 4, hidden: int = 768) -> dict[str, Any]:
    """Count bytes of real tensors after a real step, and of the file; `rounds` changes nothing."""
    torch.set_num_threads(cores)
    states, files = {}, {}
    for name, settings in READINGS.items():
        kind = LoraConfig if name == PEFT else LoraSpConfig
        config = kind(r=RANK, target_modules=ALL_LINEAR, **settings)
        states[name], files[name] = bytes_of(get_peft_model(encoder(layers, hidden, 16), config))
    return result(
        "states",
        f"an adapter on all linear layers of a RoBERTa-shaped model, {layers} layers of hidden "
        f"size {hidden}, float32, rank {RANK}, after one step",
        [
            {
                "case": case,
                "unit": "bytes",
                "peer": PEFT,
                "values": {name: exactly(count) for name, count in counted.items()},
            }
            for case, counted in (
                ("parameters, gradients, moments, masks", states),
                ("adapter file", files),
            )
        ],
        {
            "states.bytes.peft": exactly(states[OURS] / states[PEFT]),
            "states.file.peft": exactly(files[OURS] / files[PEFT]),
        },
        [],
    )


def bytes_of(model: Any) -> tuple[int, int]:
    """Bytes of parameters, gradients, AdamW's states and masks after a step, and of the file."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    ids = torch.randint(3, VOCABULARY, (1, 16))
    loss_of(model, ids).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    prefix = adapter_prefix(model) or ""
    masks = [buffer for name, buffer in model.named_buffers() if prefix in name]
    held: list[Any] = [*trained, *(p.grad for p in trained), *moments(optimizer), *masks]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        file = Path(folder, "adapter_model.safetensors").stat().st_size
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    return sum(storages.values()), file
