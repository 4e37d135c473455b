"""Fake tensors: shapes, strides and formats, dispatched as those of a CPU, without their values.

What an operator makes is asked of torch's own FakeTensorMode, once for each geometry of its inputs:
a training step then takes a fraction of the time, for its layers are alike.
"""

import functools
from typing import Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

CPU, META = torch.device("cpu"), torch.device("meta")
# Constants by whose value an operator's outputs may differ; other numbers also by their type.
PLAIN = (torch.Size, torch.dtype, torch.layout, torch.device, torch.memory_format, str, type(None))
OTHER = "neither new nor dense"
GEOMETRIES: dict[Any, Any] = {}  # all that has been asked in this process, by operator and inputs
Held = dict[int, "Fake"]  # by the identity of the meta tensor, which an operator may give back


class Fake(torch.Tensor):
    """A tensor that is a CPU's to all who ask, around one of torch's meta device."""

    meta: torch.Tensor
    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, meta: torch.Tensor) -> "Fake":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            meta.size(),
            strides=meta.stride(),
            storage_offset=meta.storage_offset(),
            dtype=meta.dtype,
            device=CPU,
        )
        made.meta = meta
        return cast(Fake, made)

    def untyped_storage(self) -> torch.UntypedStorage:
        """The meta tensor's: it has the size that a real one would have, and views share it."""
        return self.meta.untyped_storage()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]  # nothing else is to be told
        return f"Fake({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch calls it so
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func} met a fake tensor outside of its mode")


class FakeMode(TorchDispatchMode):
    """Inside it every operator makes fake tensors, of fake or of real ones."""

    def __init__(self) -> None:
        super().__init__()
        self._torch = FakeTensorMode()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler, and ask it about each operator

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        held: Held = {}
        inputs = [_bare(value, held) for value in args]
        named = {name: _bare(value, held) for name, value in kwargs.items()} if kwargs else {}
        makes_new, takes_device = _traits(func)
        if makes_new:
            key = (func, _key(inputs), _key(list(named.items())))
            if (geometry := GEOMETRIES.get(key)) is None:
                geometry = GEOMETRIES[key] = self._asked(func, inputs, named)
            if geometry != OTHER:
                return _made(geometry)
        if takes_device and (not held or named.get("device") is not None):
            named["device"] = META
        return _dressed(func(*inputs, **named), held)

    def _asked(self, func: Any, inputs: list[Any], named: dict[str, Any]) -> Any:
        """What `_made` makes the operator's outputs of, by torch's fake tensors; else OTHER."""

        def fake(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                alike = torch.empty_strided(
                    value.size(), value.stride(), dtype=value.dtype, device=META
                )
                storages.add(alike.untyped_storage()._cdata)
                return FakeTensor(self._torch, alike, CPU)
            return [fake(part) for part in value] if isinstance(value, list) else value

        storages: set[int] = set()
        with self._torch:
            out = func(*map(fake, inputs), **{name: fake(value) for name, value in named.items()})
        return _geometry(out, storages)


@functools.cache
def _traits(func: Any) -> tuple[bool, bool]:
    """Whether an operator, by its schema, leaves its inputs alone and takes a device."""
    schema = func._schema
    aliases = any(part.alias_info for part in (*schema.arguments, *schema.returns))
    return not aliases, any(argument.name == "device" for argument in schema.arguments)


def _bare(value: Any, held: Held) -> Any:
    """The argument with meta tensors in it; `held` learns which fake ones they are of."""
    if isinstance(value, Fake):
        held[id(value.meta)] = value
        return value.meta
    if isinstance(value, torch.Tensor):
        return value.to(META)
    if isinstance(value, (list, tuple)):
        return [_bare(part, held) for part in value]
    return value


def _dressed(out: Any, held: Held) -> Any:
    """The outputs as fake tensors: an input that was given back is the same one."""
    if isinstance(out, torch.Tensor):
        known = held.get(id(out))
        return Fake(out) if known is None else known
    if isinstance(out, (list, tuple)):
        return type(out)([_dressed(part, held) for part in out])
    return out


def _key(value: Any) -> Any:
    """What of an argument decides the geometry of the outputs, and can be hashed."""
    if isinstance(value, torch.Tensor):
        return value.size(), value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple([_key(part) for part in value])
    if isinstance(value, PLAIN):
        return value
    return type(value), value  # 1, 1.0 and True are equal, and make different formats


def _geometry(out: Any, storages: set[int]) -> Any:
    """Size, strides and dtype of each output; OTHER where one is no new and dense tensor."""
    if isinstance(out, torch.Tensor):
        size, stride, storage = out.size(), out.stride(), out.untyped_storage()
        dense = torch.empty_strided(size, stride, dtype=out.dtype, device=META)
        whole = dense.untyped_storage().nbytes() == storage.nbytes() and not out.storage_offset()
        if storage._cdata in storages or not whole:
            return OTHER
        storages.add(storage._cdata)
        return size, stride, out.dtype
    if isinstance(out, tuple):
        parts = [_geometry(part, storages) for part in out]
        return OTHER if OTHER in parts else parts
    return OTHER


def _made(geometry: Any) -> Any:
    if isinstance(geometry, list):
        return tuple([_made(part) for part in geometry])
    size, stride, dtype = geometry
    return Fake(torch.empty_strided(size, stride, dtype=dtype, device=META))
