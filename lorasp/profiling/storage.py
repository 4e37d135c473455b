"""Count the bytes of the live tensor storages of a block of code, by kind, and its operations."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, register_flop_formula, sdpa_flop_count
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

# What a byte can be there for. Weights, masks (with the frozen entries of an adapter) and optimizer
# states rest between two steps. Copies are weights in another number format: autocast's, or
# dequantised. Activations are what the forward pass makes; temporaries all else that the backward
# pass and the optimizer make, recomputed activations among it.
KINDS = ("weights", "masks", "optimizer", "gradients", "copies", "activations", "temporaries")
PHASES = ("forward", "backward", "optimizer")
aten = torch.ops.aten
COPIES = {aten._to_copy.default}
# Bytes that an operator takes and gives back inside, where no mode sees them.
SCRATCH: dict[Any, Callable[..., int]] = {}


def dense_parts(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors that a sparse one (of PEFT's SHiRA) is made of, or itself: what has a storage."""
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), tensor._values()
    return (tensor,)


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the distinct storages behind the tensors: a tied weight or a view counts once."""
    # by identity: storages of fake tensors have no address
    storages = WeakIdKeyDictionary({tensor.untyped_storage(): None for tensor in tensors})
    return sum(storage.nbytes() for storage in storages)


class LiveStorage(TorchDispatchMode):
    """Counts what torch operations inside a `with` block allocate, free and compute.

    `live` and `peak` are bytes: each operator's output storage is added when it first appears and
    taken away when the last reference to it dies, so that `peak` is the largest sum of live
    storages between two operators (within one: with its `SCRATCH`). `kinds` splits `live`. The
    user says which phase of a step comes next by `enter`; `peaks` and `flops` are by phase, and
    a peak is the split at that moment. FLOPs are those of matrix products and attention, a
    multiplication and an addition each, as torch's own counter has them.

    Args:
        tensors: what is there from the start, by kind; a storage counts where it comes first.
    """

    def __init__(self, tensors: Mapping[str, Iterable[torch.Tensor]] | None = None) -> None:
        super().__init__()
        self.live = 0
        self.kinds: Counter[str] = Counter()
        self.peaks: dict[str, dict[str, int]] = {}
        self.flops: Counter[str] = Counter()
        self.phase = "forward"
        self._known: dict[int, tuple[weakref.ref[Any], list[Any]]] = {}
        for kind, held in (tensors or {}).items():
            for tensor in held:
                self._add(tensor, kind)
        self._look()

    @property
    def peak(self) -> int:
        """The largest of the phases' peaks, in bytes."""
        return max(sum(peak.values()) for peak in self.peaks.values())

    def enter(self, phase: str) -> None:
        """What follows belongs to this phase."""
        self.phase = phase
        self._look()

    def gradients_of(self, weights: Iterable[torch.Tensor]) -> list[RemovableHandle]:
        """Count the gradients of these weights as such, from when they are accumulated."""

        def tell(weight: torch.Tensor) -> None:
            if weight.grad is not None:
                self._add(weight.grad, "gradients")

        return [weight.register_post_accumulate_grad_hook(tell) for weight in weights]

    def _entry(self, storage: Any) -> list[Any] | None:
        reference, entry = self._known.get(storage._cdata, (None, None))
        return entry if reference is not None and reference() is storage else None

    def _add(self, tensor: torch.Tensor, kind: str) -> None:
        """Count the tensor's storage under `kind`, or move it there."""
        storage = tensor.untyped_storage()
        if (entry := self._entry(storage)) is not None:
            self.kinds[entry[0]] -= entry[1]
            self.kinds[kind] += entry[1]
            entry[0] = kind
            return
        entry = [kind, storage.nbytes()]
        self.kinds[kind] += entry[1]
        self.live += entry[1]

        def remove(_: Any, entry: list[Any] = entry) -> None:
            self.kinds[entry[0]] -= entry[1]
            self.live -= entry[1]

        self._known[storage._cdata] = weakref.ref(storage, remove), entry

    def _look(self, scratch: int = 0) -> None:
        """Keep the split of this moment if it is the phase's largest so far."""
        peak = self.peaks.get(self.phase)
        if peak is None or self.live + scratch > sum(peak.values()):
            self.peaks[self.phase] = dict(self.kinds)
            self.peaks[self.phase]["temporaries"] = self.kinds["temporaries"] + scratch

    def _kind(self, func: Any, args: tuple[Any, ...]) -> str:
        if func in COPIES:
            source = self._entry(dense_parts(args[0])[-1].untyped_storage())
            if source is not None and source[0] in ("weights", "copies"):
                return "copies"
        return "activations" if self.phase == "forward" else "temporaries"

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in FakeMode

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flops[self.phase] += formula(*args, **kwargs, out_val=out)
        for value in (out,) if isinstance(out, torch.Tensor) else tree_iter(out):
            for part in dense_parts(value) if isinstance(value, torch.Tensor) else ():
                if self._entry(part.untyped_storage()) is None:
                    self._add(part, self._kind(func, args))
        self._look(SCRATCH[func](*args, **kwargs) if func in SCRATCH else 0)
        return out


@register_flop_formula(aten._scaled_dot_product_flash_attention_for_cpu)
def _attention(q: Any, k: Any, v: Any, p: float = 0.0, causal: bool = False, **kwargs: Any) -> int:
    """Both products; of a causal mask the kernel computes half."""
    return int(sdpa_flop_count(q, k, v)) // (2 if causal else 1)


@register_flop_formula(aten._scaled_dot_product_flash_attention_for_cpu_backward)
def _attention_backward(
    grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, p: float, causal: bool, **kwargs: Any
) -> int:
    """Five products in place of two: the scores again, and the gradients of v, scores, q and k."""
    return _attention(q, k, v, p, causal) * 5 // 2


with suppress(ImportError):
    import bitsandbytes  # noqa: F401  # defines the operators

    ops = torch.ops.bitsandbytes
    COPIES |= {ops.dequantize_4bit.default, ops.int8_vectorwise_dequant.default}

    @register_flop_formula(ops.gemm_4bit)
    def _gemm_4bit(a: Any, b: Any, shape: Any, *rest: Any, **kwargs: Any) -> int:
        """A product with a 4-bit weight of `shape` (out, in); unpacking it is not counted."""
        return 2 * prod(a) * shape[0]

    # for more than a few rows bitsandbytes unpacks the whole weight, whatever the device
    SCRATCH[ops.gemm_4bit.default] = lambda a, b, shape, *rest, **kwargs: (
        prod(shape) * a.element_size()
    )
