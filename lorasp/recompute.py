"""Activation recomputation of a run: what the backward pass computes again."""

from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from lorasp.errors import UsageError

POLICIES = ("none", "full", "selective")
aten = torch.ops.aten
# Matrix products, with the place of their left factor among the arguments.
PRODUCTS = {
    aten.mm.default: 0,
    aten.bmm.default: 0,
    aten.addmm.default: 1,
    aten.baddbmm.default: 1,
}
# What `selective` keeps besides: fused attention, and products with quantised weights.
KEPT = {
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
}
with suppress(ImportError):
    import bitsandbytes  # noqa: F401  # defines the operators

    ops = torch.ops.bitsandbytes
    KEPT |= {ops.gemm_4bit.default, ops.int8_scaled_mm.default, ops.int8_mixed_scaled_mm.default}


def recompute_activations(model: Any, resolved: dict[str, Any]) -> None:
    """Switch on the recomputation that the method's `recompute` setting names.

    `none` keeps every activation; `full` keeps the input of each layer and computes the rest again;
    `selective` also keeps what is dear to compute again for its size: fused attention, and each
    matrix product whose entries are sums over at least half of the model's hidden size. The base
    model's products are among these, and an adapter's A x, which is small. An adapter's B (A x)
    is not, nor are attention scores, dropout masks and all that is computed entry by entry (the
    paper's section 3.3 names selective recomputation and defines none; keeping scores out is that
    of arXiv 2205.05198). Gradients are the same in all three, and dropout draws the same masks.
    Raises UsageError for another name.
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
        dear = partial(_keep_what_is_dear, model.config.hidden_size / 2)
        checkpoint["context_fn"] = partial(create_selective_checkpoint_contexts, dear)
    model.activation_checkpointing_enable(checkpoint)
    # It lets the embeddings require gradients, for reentrant checkpoints alone: the backward pass
    # would go below the lowest adapter, and need what selection='depth' spares.
    model.disable_input_require_grads()


def _keep_what_is_dear(
    shortest: float, _: Any, operator: Any, *args: Any, **kwargs: Any
) -> CheckpointPolicy:
    """Whether to keep an operator's output: a product's, if its sums have `shortest` terms."""
    left = PRODUCTS.get(operator)
    dear = operator in KEPT if left is None else args[left].shape[-1] >= shortest
    return CheckpointPolicy.MUST_SAVE if dear else CheckpointPolicy.PREFER_RECOMPUTE
