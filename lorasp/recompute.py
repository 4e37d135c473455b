"""Activation recomputation of a run: what the backward pass computes again."""

import functools
from typing import Any

import torch
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from lorasp.errors import UsageError

POLICIES = ("none", "full", "selective")
aten = torch.ops.aten
# Outputs that `selective` keeps: the matrix products and attention, dear to compute again.
KEPT = [
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
]


def recompute_activations(model: Any, resolved: dict[str, Any]) -> None:
    """Switch on the recomputation that the method's `recompute` setting names.

    `none` keeps every activation; `full` keeps the input of each layer and computes the rest again;
    `selective` also keeps matrix products and attention (the paper's section 3.3 names selective
    recomputation and defines none). Gradients are the same in all three. Raises UsageError for
    another name.
    """
    method = resolved["method"]
    policy = method.get("settings", {}).get("recompute", "none")
    if policy not in POLICIES:
        raise UsageError(
            f"methods.{method['name']}.settings.recompute is {policy!r}; "
            f"allowed are {', '.join(POLICIES)}"
        )
    if policy == "none":
        return
    checkpoint: dict[str, Any] = {"use_reentrant": False}
    if policy == "selective":
        checkpoint["context_fn"] = functools.partial(create_selective_checkpoint_contexts, KEPT)
    model.activation_checkpointing_enable(checkpoint)
