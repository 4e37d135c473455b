"""What LoRA-SP holds, keeps and saves beside PEFT's LoRA: `lorasp bench states`."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lorasp.adapters import LoraSpConfig
from lorasp.adapters.layer import LoraSpLayer
from lorasp.adapters.registry import apply_method
from lorasp.bench.measure import exactly, result
from lorasp.bench.step import ALL_LINEAR, OURS, PEFT, RANK, VOCABULARY, encoder, loss_of
from lorasp.profiling.simulate import materialise, operators_of_cuda, skeleton, values_unseen
from lorasp.profiling.simulations import ask
from lorasp.profiling.step import adapter_prefix, moments

ROUNDS = 1
DROPOUT = 0.05
FROZEN, LIMIT = "frozen model", "frozen model, inputs, a bit an entry"
READINGS: dict[str, dict[str, Any]] = {
    PEFT: {},
    OURS: {},
    f"{OURS}, unselected=init": {"unselected": "init"},
}


def bench(
    rounds: int, cores: int, layers: int = 4, hidden: int = 768, shape: tuple[int, int] = (1, 512)
) -> dict[str, Any]:
    """Count bytes: of real tensors after a real step, of the file, and what LLaMA-7B keeps.

    The last is simulated: fake tensors, CUDA's operators, dropout 0.05, all linear layers. An
    adapter needs its inputs for the gradient of A; its own limit is what the frozen model keeps,
    these inputs and a bit an entry of them. `rounds` changes nothing.
    """
    torch.set_num_threads(cores)
    states, files = {}, {}
    for name, settings in READINGS.items():
        kind = LoraConfig if name == PEFT else LoraSpConfig
        config = kind(r=RANK, target_modules=ALL_LINEAR, **settings)
        states[name], files[name] = bytes_of(get_peft_model(encoder(layers, hidden, 16), config))
    kept = kept_by_llama(*shape)
    return result(
        "states",
        f"an adapter on all linear layers, rank {RANK}: of a RoBERTa-shaped model, {layers} layers "
        f"of hidden size {hidden}, float32, after one step; of LLaMA-7B in float16, simulated, "
        f"{shape[0]} x {shape[1]} tokens, dropout {DROPOUT}",
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
                ("kept for the backward pass of LLaMA-7B", kept),
            )
        ],
        {
            "states.bytes.peft": exactly(states[OURS] / states[PEFT]),
            "states.file.peft": exactly(files[OURS] / files[PEFT]),
            "states.kept.limit": exactly(kept[OURS] / kept[LIMIT]),
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


def kept_by_llama(batch: int, length: int) -> dict[str, int]:
    """Bytes that a simulated forward pass of LLaMA-7B leaves for its backward pass."""
    settings = {"rank": RANK, "targets": "all-linear", "dropout": DROPOUT}
    found = {}
    for name, method in ((FROZEN, "lora"), (PEFT, "lora"), (OURS, "lora-sp")):
        resolved, _ = ask("llama-7b", method, (batch, length), "float16", settings)
        resolved["runtime"]["device"] = "cpu"  # of fake tensors
        network: Any = skeleton(resolved, None).requires_grad_(False)
        if name != FROZEN:
            with torch.device("meta"):
                network = apply_method(network, resolved)
        with values_unseen(), operators_of_cuda():
            materialise(network)
            network.train().config.use_cache = False
            hidden = network.config.hidden_size
            embedded = torch.empty(batch, length, hidden, dtype=torch.float16).requires_grad_()
            inputs, entries = inputs_of_adapters(network)
            kept = kept_by(network, {"inputs_embeds": embedded})
        found[name] = sum(kept.values())
        if name == OURS:
            found[LIMIT] = found[FROZEN] + sum(inputs.values()) + sum(entries) // 8
    return found


def inputs_of_adapters(network: nn.Module) -> tuple[dict[int, int], list[int]]:
    """Two collections that a forward pass fills.

    Bytes of the adapted layers' inputs by storage, since several layers read the same one, and the
    number of entries of each layer's input.
    """
    storages: dict[int, int] = {}
    entries: list[int] = []

    def see(_: nn.Module, given: tuple[torch.Tensor]) -> None:
        storage = given[0].untyped_storage()
        storages[storage._cdata] = storage.nbytes()
        entries.append(given[0].numel())

    for layer in (m for m in network.modules() if isinstance(m, LoraSpLayer)):
        layer.register_forward_pre_hook(see)
    return storages, entries


def kept_by(network: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[int, int]:
    """Bytes that a forward pass keeps for the backward pass, by storage.

    Parameters, buffers and the inputs themselves are there anyway, and are left out.
    """
    storages: dict[int, int] = {}
    alive = []  # or a storage's address would be given to another

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alive.append(network(**inputs, use_cache=False).logits)
    for tensor in (*inputs.values(), *network.parameters(), *network.buffers()):
        storages.pop(tensor.untyped_storage()._cdata, None)
    return storages
