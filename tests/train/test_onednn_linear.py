"""oneDNN's matrix products, compared with torch's in double precision."""

from __future__ import annotations

import pytest
import torch

from prefcli.packed_forward import onednn_linear
from prefcli.packed_forward.onednn_linear import Linear, better_by_onednn, install_onednn, times


@pytest.fixture(autouse=True)
def _on_any_processor(monkeypatch):
    monkeypatch.setattr(onednn_linear, "better_by_onednn", lambda: True)


@pytest.fixture
def counted(monkeypatch):
    """Record the shapes of what oneDNN multiplied."""
    shapes = []
    real = onednn_linear._product

    def product(a, b, bias=None):
        shapes.append((tuple(a.shape), tuple(b.shape)))
        return real(a, b, bias)

    monkeypatch.setattr(onednn_linear, "_product", product)
    return shapes


def _drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (_drawn(40, 24), _drawn(56, 24)),
        (_drawn(24, 40).T, _drawn(24, 56).T),
        (_drawn(1, 24).expand(40, 24), _drawn(56, 24)),
        (_drawn(40, 90)[:, 3:27], _drawn(56, 90)[:, ::2][:, :24]),
        (_drawn(40, 1), _drawn(56, 1)),
    ],
    ids=["plain", "transposed", "expanded", "cut out", "one column"],
)
def test_times_with_any_strides_equals_matmul(a, b, counted):
    expected = (a.double() @ b.double().T).float()
    assert torch.allclose(times(a, b), expected, rtol=1e-5, atol=1e-5)
    assert counted


def test_times_of_few_rows_or_other_dtypes_falls_back_to_torch(counted):
    few, some, empty = _drawn(3, 24), _drawn(40, 24), _drawn(40, 0)
    assert torch.equal(times(empty, empty), torch.zeros(40, 40))
    assert torch.equal(times(few, some), few @ some.T)
    assert torch.equal(times(some.bfloat16(), some.bfloat16()), some.bfloat16() @ some.T.bfloat16())
    assert counted == []


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("shape", [(40, 24), (2, 3, 8, 24)])
def test_linear_output_and_gradients_equal_float64(shape, frozen, bias, counted):
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(24, 56, bias=bias))
    layer.requires_grad_(not frozen)
    given, weights = _drawn(*shape), _drawn(*shape[:-1], 56)
    results = []
    for dtype in (torch.float64, torch.float32):
        layer.to(dtype)
        restore = install_onednn(layer) if dtype == torch.float32 else lambda: None
        inputs = given.to(dtype).requires_grad_()
        layer.zero_grad()
        result = layer(inputs)
        # The second term's gradient comes as one number, expanded.
        ((result * weights.to(dtype)).sum() + result.sum()).backward()
        grads = [None if p.grad is None else p.grad.float() for p in layer.parameters()]
        results.append([result.float(), inputs.grad.float(), *grads])
        restore()
    for expected, own in zip(*results, strict=True):
        assert (own is None) == (expected is None)
        if own is not None:
            assert torch.allclose(own, expected, rtol=1e-5, atol=1e-5)
    assert len(counted) == (2 if frozen else 3)


def test_linear_under_autocast_falls_back_to_torch(counted):
    layer = torch.nn.Linear(24, 56)
    expected = torch.nn.functional.linear(_drawn(40, 24).bfloat16(), layer.weight.bfloat16())
    install_onednn(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer.bias.data.zero_()
        assert torch.equal(layer(_drawn(40, 24)), expected)
    assert counted == []


def test_install_onednn_replaces_linear_layers_until_restored():
    class Own(torch.nn.Linear):
        pass

    model = torch.nn.Sequential(torch.nn.Linear(4, 4), Own(4, 4), torch.nn.Sequential())
    names = list(model.state_dict())
    restore = install_onednn(model)
    assert [type(module) for module in model[:2]] == [Linear, Own]
    assert isinstance(model[0], torch.nn.Linear)
    assert list(model.state_dict()) == names
    restore()
    assert type(model[0]) is torch.nn.Linear


@pytest.mark.parametrize(
    ("capability", "vendor", "expected"),
    [
        ("AVX512", "AuthenticAMD", True),
        ("AVX512", "GenuineIntel", False),
        ("AVX2", "AuthenticAMD", False),
        ("AVX512", None, False),
    ],
)
def test_better_by_onednn_is_true_for_avx512_not_by_intel(
    capability, vendor, expected, tmp_path, monkeypatch
):
    file = tmp_path / "cpuinfo"
    if vendor is not None:
        file.write_text(f"processor : 0\nvendor_id : {vendor}\n", encoding="utf-8")
    monkeypatch.setattr(onednn_linear, "_PROCESSOR", file)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert better_by_onednn.__wrapped__() is expected
