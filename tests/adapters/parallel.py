"""What two processes do in tests of DDP and FSDP2: one step each on half of a batch.

torchrun --nproc-per-node 2 tests/adapters/parallel.py ddp|fsdp2 FOLDER
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from peft import get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lorasp.adapters import LoraSpConfig


def small_llama() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=64,
    )
    settings = LoraSpConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(transformers.LlamaForCausalLM(config), settings)


def tokens() -> torch.Tensor:
    return torch.randint(3, 60, (4, 9), generator=torch.Generator().manual_seed(1))


def gradients_of_a_step(network: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The loss and the gradient of each trained parameter, whole, by name."""
    loss = network(input_ids=ids, labels=ids).loss
    loss.backward()
    named = {name.removeprefix("module."): p for name, p in network.named_parameters()}
    found = {name: p.grad for name, p in named.items() if p.requires_grad}
    whole = {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in found.items()}
    return {"loss": loss.detach(), **whole}


def main(kind: str, folder: Path) -> None:
    dist.init_process_group("gloo")
    network = small_llama()
    if kind == "ddp":
        network = DistributedDataParallel(network)
    else:
        mesh = init_device_mesh("cpu", (2,))
        for layer in network.base_model.model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(network, mesh=mesh)
    rank = dist.get_rank()
    found = gradients_of_a_step(network, tokens()[2 * rank : 2 * rank + 2])
    dist.all_reduce(found["loss"])
    found["loss"] /= 2
    if rank == 0:
        torch.save(found, folder / f"{kind}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    # The group is not destroyed, which now and then waits for ever for a thread of gloo's; for the
    # same reason the interpreter does not end by itself.
    os._exit(0)
