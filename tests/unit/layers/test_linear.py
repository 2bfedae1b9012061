"""Products over packed weights: near torch's own, and left out where they would not be."""

import pytest
import torch
import torch.nn.functional as F

from dopd.layers import linear


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.3)])
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_product_is_that_of_torch(dtype: torch.dtype, tolerance: float, rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn((96, 72), generator=generator).to(dtype)
    x = torch.randn((rows, 72), generator=generator).to(dtype)
    product = linear.make_linear(weight)(x)
    assert product.dtype == dtype
    torch.testing.assert_close(product, F.linear(x, weight), rtol=0, atol=tolerance)


def test_dtype_without_a_packed_product_takes_the_plain_one() -> None:
    weight = torch.eye(4, dtype=torch.float64)
    multiply = linear.make_linear(weight)
    assert isinstance(multiply, linear.PlainLinear)
    assert torch.equal(multiply(weight), weight)


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, TypeError])
def test_other_torch_without_the_operators_takes_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(self: object, weight: torch.Tensor) -> None:
        raise error("no such operator")

    monkeypatch.setattr(linear.PackedLinear, "__init__", fail)
    monkeypatch.setattr(linear, "_can_pack", {})
    assert isinstance(linear.make_linear(torch.eye(4)), linear.PlainLinear)


def test_wrong_product_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    call = linear.PackedLinear.__call__
    monkeypatch.setattr(linear.PackedLinear, "__call__", lambda self, x: call(self, x) + 0.01)
    monkeypatch.setattr(linear, "_can_pack", {})
    assert not linear.can_pack(torch.float32)
