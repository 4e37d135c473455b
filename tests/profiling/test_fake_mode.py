"""Fake tensors have the geometry that torch's own fake tensors and real ones have."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils.checkpoint import checkpoint

from lorasp.profiling import fake
from lorasp.profiling.fake import FakeMode

Geometry = tuple[torch.Size, tuple[int, ...], int, torch.dtype, torch.device, int]


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fake, "GEOMETRIES", {})
    yield


def geometry(tensor: torch.Tensor) -> Geometry:
    size, stride, offset = tensor.size(), tensor.stride(), tensor.storage_offset()
    return size, stride, offset, tensor.dtype, tensor.device, tensor.untyped_storage().nbytes()


def normed(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.native_layer_norm(x, (8,), torch.ones(8).to(x), torch.zeros(8).to(x), 1e-5)


CALLS: dict[str, Callable[[torch.Tensor], object]] = {
    "linear": lambda x: F.linear(x, torch.ones(5, 8, dtype=x.dtype)),
    "permuted": lambda x: x.transpose(0, 1) + 1,
    "a number's type": lambda x: (x.long() * 2, x.long() * 2.0, x.long() * True, x.long() + 1.0),
    "view": lambda x: x[1:, 2].unsqueeze(0).expand(3, 2, 8),
    "reshape": lambda x: (x.reshape(-1, 4), x.transpose(0, 1).reshape(-1)),
    "in place": lambda x: x.clone().mul_(2).add_(1),
    "pieces": lambda x: (*x.split(2), *x.unbind(1), *torch.topk(x, 2)),
    "joined": lambda x: torch.cat([x, x[:1]], dim=0),
    "of nothing": lambda x: torch.arange(x.shape[0], device=x.device).float(),
    "like it": lambda x: (x.new_zeros(2), torch.empty_like(x.transpose(0, 1)), x.to(torch.float64)),
    "real": lambda x: x + torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]).to(x),
    "statistics of a norm": normed,
    "attention": lambda x: F.scaled_dot_product_attention(*[x.reshape(1, 3, 4, 8)] * 3),
    "dropout": lambda x: torch.native_dropout(x, 0.1, True),
}


def geometries(found: object) -> list[Geometry]:
    parts = found if isinstance(found, (tuple, list)) else (found,)
    return [geometry(part) for part in parts]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_geometry_is_a_real_tensors(name: str, dtype: torch.dtype) -> None:
    real = geometries(CALLS[name](torch.ones(3, 4, 8, dtype=dtype)))
    with FakeTensorMode(allow_non_fake_inputs=True):
        theirs = geometries(CALLS[name](torch.empty(3, 4, 8, dtype=dtype)))
    for _ in range(2):  # asked for, then known
        with FakeMode():
            ours = geometries(CALLS[name](torch.empty(3, 4, 8, dtype=dtype)))
        assert ours == real == theirs


def test_what_is_known_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    ask = FakeMode._asked
    monkeypatch.setattr(FakeMode, "_asked", lambda *a: (asked.append(a[1]), ask(*a))[1])
    with FakeMode():
        x = torch.empty(3, 4)
        products = [x.mul(2), x.mul(2), x.mul(2.0), x.t().mul(2), x.double().mul(2)]
    assert asked.count(torch.ops.aten.mul.Tensor) == 4
    assert len({product.untyped_storage()._cdata for product in products}) == len(products)


def test_views_share_a_storage_and_an_operator_in_place_gives_its_input() -> None:
    with FakeMode():
        x = torch.empty(4, 4)
        assert x.view(2, 8).untyped_storage()._cdata == x.untyped_storage()._cdata
        assert x.add_(1) is x and (x + 1).untyped_storage()._cdata != x.untyped_storage()._cdata
        assert torch.ops.aten._unsafe_view(x, (16,)).untyped_storage()._cdata == (
            x.untyped_storage()._cdata
        )


def test_gradients_pass_with_autocast_and_recomputation() -> None:
    with FakeMode():
        weight = torch.nn.Parameter(torch.empty(6, 8))
        x = torch.empty(2, 8, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            out = checkpoint(
                lambda v: F.dropout(F.linear(v, weight)).relu(), x, use_reentrant=False
            )
        assert out.dtype == torch.bfloat16
        out.float().sum().backward()
    assert geometry(weight.grad)[:4] == ((6, 8), (8, 1), 0, torch.float32)
    assert geometry(x.grad)[:4] == ((2, 8), (8, 1), 0, torch.float32)


def test_a_value_is_refused() -> None:
    with FakeMode(), pytest.raises(DataDependentOutputException):
        bool(torch.empty(1) > 0)


def test_outside_of_the_mode_nothing_is_made() -> None:
    with FakeMode():
        x = torch.empty(2)
    with pytest.raises(RuntimeError, match="outside of its mode"):
        x + 1
