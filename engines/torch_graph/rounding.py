"""INT8 in training: tensors and weights are rounded as the deployed Q/DQ file rounds them; gradients pass through.

Rounding has no slope of its own. Gradients pass it as if it were not there, within the range, and are 0 beyond (Jacob
et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018). The
scale of an activation is learned along: the slope of the rounded value by the scale is (Esser et al., "Learned Step
Size Quantization", ICLR 2020)

    round(x / s) - x / s within the range, and the bound beyond it.

What is learned is log(s), so that a step is relative to the scale. Zero points stay. The scales of weights follow the
weights, as ``calibration.precision.scale.weight_scales`` finds them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from engines.torch_graph.library import load_torch

NUM_LEVELS = 127
LARGEST_PAIR = 128
LARGEST_BIAS = 2**30
SMALLEST_SCALE = 2.0**-126
"""As ``calibration.precision.scale`` has them."""


@dataclass(frozen=True)
class TensorRounding:
    """One activation tensor in 8 bits."""

    scale: float
    zero_point: int
    low: int
    """The least code, such as -128."""
    high: int
    readers: tuple[tuple[str, int], ...]
    """Name of the node, and which of its inputs."""
    is_output: bool
    """The model gives out the rounded value."""
    scale_of: str
    """A name for the tensors that share this scale."""
    largest: float
    """Of the scale: beyond it codes would stand for values that never come."""
    is_fixed: bool
    """The scale is not learned."""


@dataclass(frozen=True)
class WeightRounding:
    """One weight in -127 to 127, or of 4 bits in -7 to 7."""

    axis: int | None
    """Of its channels, each of which has a scale; None: one for all."""
    in_pairs: bool
    """Two neighbours of one sign add up to 128 at most."""
    num_levels: int = NUM_LEVELS
    """The largest code: 127 of 8 bits, 7 of 4."""
    block: int = 0
    """Rows of a matrix (K, C) that share a scale in each column; 0: all."""


@dataclass(frozen=True)
class BiasRounding:
    """One bias in int32, whose scale is that of the data times those of the weight."""

    data: str
    """The tensor of the data, which is rounded too."""


class FakeQuantization:
    """The rounding of a whole placement, with the scales that are learned.

    Attributes:
        log_scales: by ``scale_of`` the natural logarithm of the scale: () float32 tensors that need gradients, but for
            those that are fixed.
    """

    def __init__(
        self,
        tensors: Mapping[str, TensorRounding],
        weights: Mapping[tuple[str, int], WeightRounding],
        biases: Mapping[tuple[str, int], BiasRounding],
        learns: bool,
    ) -> None:
        """``tensors`` by name, ``weights`` and ``biases`` by node and input; ``learns``: whether scales do."""
        torch = load_torch()
        self._torch, self._tensors, self._weights, self._biases = torch, tensors, weights, biases
        self._weight_scales: dict[str, Any] = {}
        self._by_reader = {reader: name for name, tensor in tensors.items() for reader in tensor.readers}
        self.log_scales: dict[str, Any] = {}
        for tensor in tensors.values():
            if tensor.scale_of not in self.log_scales:
                value = torch.tensor(math.log(tensor.scale), dtype=torch.float64)
                learned = learns and not tensor.is_fixed
                self.log_scales[tensor.scale_of] = value.requires_grad_() if learned else value
        self._zero_points = {t.zero_point: torch.tensor(t.zero_point, dtype=torch.int32) for t in tensors.values()}
        self._rounded: dict[tuple[object, ...], Any] = {}

    def begin(self) -> None:
        """Before each pass: what was rounded in the last one is forgotten."""
        self._rounded.clear()

    def read_inputs(self, node: str, values: Sequence[Any]) -> list[Any]:
        """What the inputs of a node get; None where there is none."""
        read: list[Any] = []
        for index, value in enumerate(values):
            bias = values[2] if (node, 2) in self._biases and index == 1 else None
            read.append(None if value is None else self.read(node, index, value, bias))
        return read

    def read(self, node: str, index: int, value: Any, bias_of_weight: Any = None) -> Any:
        """What an input of a node gets; a weight's scales leave room for the bias."""
        if (weight := self._weights.get((node, index))) is not None:
            least = (
                None if bias_of_weight is None else self._least_scales(bias_of_weight, self._biases[node, 2], weight)
            )
            key = (id(value), weight) if least is None else (id(value), weight, node)
            rounded, scales = self._remembered(key, lambda: rounded_weight(self._torch, value, weight, least))
            self._weight_scales[node] = scales
            return rounded
        if (bias := self._biases.get((node, index))) is not None:
            return self._rounded_bias(value, bias, self._weight_scales[node])
        if (name := self._by_reader.get((node, index))) is not None:
            return self._remembered((name,), lambda: self._rounded_tensor(name, value))
        return value

    def given_out(self, name: str, value: Any) -> Any:
        """What the model gives out."""
        if name in self._tensors and self._tensors[name].is_output:
            return self._remembered((name,), lambda: self._rounded_tensor(name, value))
        return value

    def _remembered(self, key: tuple[object, ...], compute: Callable[[], Any]) -> Any:
        if key not in self._rounded:
            self._rounded[key] = compute()
        return self._rounded[key]

    def _rounded_tensor(self, name: str, value: Any) -> Any:
        tensor = self._tensors[name]
        log_scale = self.log_scales[tensor.scale_of]
        codes = (self._zero_points[tensor.zero_point], tensor.low, tensor.high)
        return _rounding_function().apply(value, log_scale, codes)

    def _rounded_bias(self, value: Any, bias: BiasRounding, weight_scales: Any) -> Any:
        """A bias as int32 holds it; the weight of the node was read before."""
        torch = self._torch
        with torch.no_grad():
            data_scale = self.log_scales[self._tensors[bias.data].scale_of].exp().float()
            scales = weight_scales.float().reshape(-1) * data_scale
            values = torch.round(value.double() / scales.double()).float() * scales
        return value + (values - value).detach()

    def _least_scales(self, bias: Any, how: BiasRounding, weight: WeightRounding) -> Any:
        """The least scales of a weight, in a shape (C, ...) or (), with which its bias fits int32."""
        with self._torch.no_grad():
            data_scale = self.log_scales[self._tensors[how.data].scale_of].exp()
            needed = bias.abs().double() / (data_scale * LARGEST_BIAS)
            return needed if weight.axis is not None else needed.max()

    def keep_within(self) -> None:
        """After each step: no scale beyond what the data needs."""
        with self._torch.no_grad():
            for tensor in self._tensors.values():
                log_scale = self.log_scales[tensor.scale_of]
                if log_scale.requires_grad:
                    log_scale.clamp_(max=math.log(tensor.largest))

    def take(self, scales: Mapping[str, float]) -> None:
        """Have these scales, by tensor."""
        with self._torch.no_grad():
            for name, scale in scales.items():
                self.log_scales[self._tensors[name].scale_of].fill_(math.log(scale))

    def scales(self) -> dict[str, float]:
        """The scale of each tensor as it is now, exactly a float32; of those that share it the same."""
        return {name: _float32(self.log_scales[t.scale_of].exp().item()) for name, t in self._tensors.items()}


def _float32(value: float) -> float:
    torch = load_torch()
    return float(torch.tensor(value, dtype=torch.float32).item())


@lru_cache(maxsize=1)
def _rounding_function() -> Any:
    """The rounding of activations with its slopes, made when torch is there."""
    torch = load_torch()

    class Rounded(torch.autograd.Function):  # type: ignore[misc,name-defined]
        """x, log(scale) -> x rounded."""

        @staticmethod
        def forward(ctx: Any, x: Any, log_scale: Any, codes: tuple[Any, int, int]) -> Any:
            zero_point, low, high = codes
            scale = log_scale.exp().to(torch.float32)
            y = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)
            ctx.save_for_backward(x, y)
            ctx.bounds = ((low - int(zero_point)) * float(scale), (high - int(zero_point)) * float(scale))
            ctx.half = 0.5 * float(scale)
            return y

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            (gradient,) = gradients
            x, y = ctx.saved_tensors
            low, high = ctx.bounds
            within = (x >= low - ctx.half) & (x <= high + ctx.half)
            passed = gradient * within
            slope = None
            if ctx.needs_input_grad[1]:  # y is s times the code, so that its slope by log(s) is y, less x within.
                slope = ((gradient * y).sum() - (passed * x).sum()).to(torch.float64)
            return passed, slope, None

    return Rounded


def rounded_weight(torch: Any, weight: Any, how: WeightRounding, least: Any = None) -> tuple[Any, Any]:
    """A weight, rounded to the nearest, whose gradient passes as if it were not; and its scales, at least ``least``."""
    with torch.no_grad():
        scales = weight_scales(torch, weight, how)
        if least is not None:
            shape = [-1 if axis == how.axis else 1 for axis in range(weight.ndim)] if least.ndim else []
            scales = torch.maximum(scales, least.reshape(shape).float().double())
        codes = torch.clamp(torch.round(weight.double() / scales), -how.num_levels, how.num_levels)
        values = (codes * scales).to(weight.dtype)
    return weight + (values - weight).detach(), scales


def weight_scales(torch: Any, weight: Any, how: WeightRounding) -> Any:
    """As ``calibration.precision.scale`` finds them, each in float32, in a shape that multiplies the weight."""
    axes = [axis for axis in range(weight.ndim) if axis != how.axis]
    if how.block:
        amax = _block_amax(torch, weight, how.block)
    else:
        amax = weight.abs().amax(axes, keepdim=True).double() if axes else weight.abs().double()
    steps = amax / how.num_levels
    if how.in_pairs:
        steps = torch.maximum(steps, _largest_pairs(torch, weight, how.axis) / (LARGEST_PAIR - 1))
    scales = torch.where(amax > 0, steps.clamp(min=SMALLEST_SCALE), torch.ones_like(steps))
    return scales.float().double()


def _block_amax(torch: Any, weight: Any, block: int) -> Any:
    """(K, C): the largest magnitude of each one's block."""
    missing = -len(weight) % block
    padded = torch.nn.functional.pad(weight.abs().double(), (0, 0, 0, missing))
    amax = padded.reshape(-1, block, weight.shape[1]).amax(1)
    return amax.repeat_interleave(block, 0)[: len(weight)]


def _largest_pairs(torch: Any, weight: Any, axis: int | None) -> Any:
    """The largest sum of two neighbours of one sign, in a shape that multiplies the weight."""
    if axis is None:
        return _pairs(torch, weight.transpose(-1, -2) if weight.ndim > 1 else weight).max().double()
    channels = weight.movedim(axis, 0)
    channels = channels.movedim(1, -1) if channels.ndim > 1 else channels.unsqueeze(-1)
    num = len(channels)
    largest = torch.zeros(num, dtype=torch.float64)
    for pairs in (_pairs(torch, channels), _pairs(torch, channels.reshape(num, -1))):
        largest = torch.maximum(largest, pairs.reshape(num, -1).amax(1))
    return largest.reshape([num if at == axis else 1 for at in range(weight.ndim)])


def _pairs(torch: Any, rows: Any) -> Any:
    rows = rows.double()
    if rows.shape[-1] % 2:
        rows = torch.nn.functional.pad(rows, (0, 1))
    pairs = rows.reshape(*rows.shape[:-1], -1, 2)
    return torch.maximum(pairs.clamp(min=0).sum(-1), (-pairs).clamp(min=0).sum(-1))


def parameters_of(rounding: FakeQuantization | None) -> Sequence[Any]:
    """The scales that are learned."""
    return [] if rounding is None else [each for each in rounding.log_scales.values() if each.requires_grad]
