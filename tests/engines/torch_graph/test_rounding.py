"""Fake quantization against what is deployed, and its slopes against differences."""

from __future__ import annotations

import math

import numpy as np
import pytest

from calibration.precision import scale
from engines.torch_graph.library import load_torch
from engines.torch_graph.rounding import (
    BiasRounding,
    FakeQuantization,
    TensorRounding,
    WeightRounding,
    rounded_weight,
    weight_scales,
)

torch = load_torch()


@pytest.mark.parametrize("in_pairs", [False, True])
@pytest.mark.parametrize(
    ("shape", "axis"), [((6, 5, 3, 3), 0), ((7, 4), 1), ((4, 7), 0), ((3, 5, 4), None), ((8, 3, 5), 1)]
)
def test_weights_are_rounded_as_quantize_rounds_them(shape: tuple[int, ...], axis: int | None, in_pairs: bool) -> None:
    weight = np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)
    weight[tuple(slice(0, 1) for _ in shape)] = 0.0
    how = WeightRounding(axis, in_pairs)
    ours = weight_scales(torch, torch.tensor(weight), how).numpy().reshape(-1)
    theirs = scale.weight_scales(weight, axis, in_pairs)
    np.testing.assert_array_equal(ours.astype(np.float32), np.atleast_1d(theirs))
    integers = scale.quantized(weight, theirs, axis)
    by_channel = theirs.reshape([-1 if at == axis else 1 for at in range(weight.ndim)] if axis is not None else [])
    rounded = rounded_weight(torch, torch.tensor(weight), how)[0].numpy()
    np.testing.assert_allclose(rounded, integers * by_channel, rtol=1e-6, atol=1e-7)


def test_a_channel_of_zeros_has_a_scale_of_one_and_stays_zero() -> None:
    weight = torch.zeros(2, 3)
    assert weight_scales(torch, weight, WeightRounding(0, False)).reshape(-1).tolist() == [1.0, 1.0]
    assert rounded_weight(torch, weight, WeightRounding(0, True))[0].abs().max() == 0.0


def rounding(readers: tuple[tuple[str, int], ...], *, is_fixed: bool = False) -> TensorRounding:
    return TensorRounding(0.1, 3, -128, 127, readers, False, "x", 0.2, is_fixed)


def test_the_slopes_are_those_of_learned_step_sizes() -> None:
    """Within the range a value passes its gradient on and tells the scale how far it was rounded; beyond, its bound."""
    fake = FakeQuantization({"x": rounding((("n", 0),))}, {}, {}, True)
    x = torch.tensor([0.234, -0.071, 100.0, -100.0], requires_grad=True)
    y = fake.read("n", 0, x)
    np.testing.assert_allclose(y.detach().numpy(), [0.2, -0.1, (127 - 3) * 0.1, (-128 - 3) * 0.1], rtol=1e-6)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    (y * weights).sum().backward()
    assert x.grad.tolist() == [1.0, 2.0, 0.0, 0.0]
    by_scale = 1 * (2 - 2.34) + 2 * (-1 + 0.71) + 3 * 124 + 4 * -131
    assert float(fake.log_scales["x"].grad) == pytest.approx(0.1 * by_scale, rel=1e-4)


def test_tensors_with_one_scale_learn_it_together() -> None:
    tensors = {"x": rounding((("n", 0),)), "z": rounding((("m", 0),))}
    fake = FakeQuantization(tensors, {}, {}, True)
    fake.read("n", 0, torch.ones(3)).sum().backward()
    fake.take({"x": 0.05})
    assert fake.scales() == {"x": pytest.approx(0.05), "z": pytest.approx(0.05)}
    with torch.no_grad():
        fake.log_scales["x"].fill_(math.log(5.0))
    fake.keep_within()
    assert fake.scales()["z"] == pytest.approx(0.2), "no further than the data goes"


def test_a_fixed_scale_is_not_learned_and_others_are_left_alone() -> None:
    fake = FakeQuantization({"x": rounding((("n", 0),), is_fixed=True)}, {}, {}, True)
    assert not fake.log_scales["x"].requires_grad
    x = torch.ones(2)
    assert fake.read("other", 0, x) is x
    assert fake.given_out("x", x) is x, "the model gives out the value itself"


def test_a_bias_is_rounded_in_steps_of_data_times_weight_and_its_gradient_passes() -> None:
    fake = FakeQuantization(
        {"x": rounding((("n", 0),))}, {("n", 1): WeightRounding(0, False)}, {("n", 2): BiasRounding("x")}, True
    )
    fake.read("n", 1, torch.tensor([[127.0, -63.5], [12.7, 0.0]]))  # Scales 1 and 0.1.
    bias = torch.tensor([0.8, 0.8], requires_grad=True)
    scale = fake.scales()["x"]
    rounded = fake.read("n", 2, bias)
    expected = [round(0.8 / step) * step for step in (scale, 0.1 * scale)]
    torch.testing.assert_close(rounded.detach(), torch.tensor(expected))
    rounded.sum().backward()
    assert bias.grad.tolist() == [1.0, 1.0]


def test_the_scales_of_a_weight_leave_room_for_its_bias() -> None:
    """As ``quantize`` writes it: of the one channel whose bias would not fit int32, and no other."""
    fake = FakeQuantization(
        {"x": rounding((("n", 0),))}, {("n", 1): WeightRounding(0, False)}, {("n", 2): BiasRounding("x")}, True
    )
    weight, bias = torch.tensor([[1e-9, 0.0], [0.0, 1.0]]), torch.tensor([5.0, 0.5])
    _, codes, rounded = fake.read_inputs("n", [torch.ones(2), weight, bias])
    np.testing.assert_allclose(rounded.detach().numpy(), [5.0, 0.5], rtol=1e-6)
    step = 5.0 / (0.1 * 2**30)
    np.testing.assert_allclose(codes.detach().numpy(), [[round(1e-9 / step) * step, 0.0], [0.0, 1.0]], atol=1e-12)
    fake.begin()
    assert float(fake.read("n", 1, weight)[0, 0]) == pytest.approx(1e-9), "a weight by itself keeps its own"
    assert fake.read_inputs("n", [None, weight, bias])[0] is None
