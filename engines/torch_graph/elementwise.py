"""Operators of ONNX that work value by value, along axes, or on truth values, in torch.

Each takes torch, the inputs (None where one is left out) and the attributes, and gives the output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx
from onnx import helper

Attributes = Mapping[str, Any]
Operator = Callable[[Any, Sequence[Any], Attributes], Any]


def torch_type(torch: Any, number: int) -> Any:
    """torch's type for a number of ``onnx.TensorProto``."""
    if number == onnx.TensorProto.BFLOAT16:
        return torch.bfloat16
    return torch.from_numpy(np.zeros(0, helper.tensor_dtype_to_np_dtype(number))).dtype


def _unary(name: str) -> Operator:
    def compute(torch: Any, inputs: Sequence[Any], _attributes: Attributes) -> Any:
        return getattr(torch, name)(inputs[0])

    return compute


def _binary(name: str) -> Operator:
    def compute(torch: Any, inputs: Sequence[Any], _attributes: Attributes) -> Any:
        return getattr(torch, name)(inputs[0], inputs[1])

    return compute


def _all_of(name: str) -> Operator:
    def compute(torch: Any, inputs: Sequence[Any], _attributes: Attributes) -> Any:
        return reduce(getattr(torch, name), inputs)

    return compute


def _identity(_torch: Any, inputs: Sequence[Any], _attributes: Attributes) -> Any:
    return inputs[0]


def _div(torch: Any, inputs: Sequence[Any], _attributes: Attributes) -> Any:
    first, second = inputs
    return first / second if first.is_floating_point() else torch.div(first, second, rounding_mode="trunc")


def _mod(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    return (torch.fmod if attributes.get("fmod", 0) else torch.remainder)(inputs[0], inputs[1])


def _pow(torch: Any, inputs: Sequence[Any], _attributes: Attributes) -> Any:
    return torch.pow(inputs[0], inputs[1]).to(inputs[0].dtype)


def _mean(torch: Any, inputs: Sequence[Any], _attributes: Attributes) -> Any:
    return reduce(torch.add, inputs) / len(inputs)


def _clip(torch: Any, inputs: Sequence[Any], _attributes: Attributes) -> Any:
    low, high = (*inputs[1:], None, None)[:2]
    if low is None and high is None:
        return inputs[0]
    return torch.clamp(inputs[0], low, high)


def _where(torch: Any, inputs: Sequence[Any], _attributes: Attributes) -> Any:
    return torch.where(inputs[0], inputs[1], inputs[2])


def _leaky_relu(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    return torch.nn.functional.leaky_relu(inputs[0], attributes.get("alpha", 0.01))


def _prelu(torch: Any, inputs: Sequence[Any], _attributes: Attributes) -> Any:
    return torch.where(inputs[0] < 0, inputs[0] * inputs[1], inputs[0])


def _elu(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    return torch.nn.functional.elu(inputs[0], attributes.get("alpha", 1.0))


def _celu(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    return torch.nn.functional.celu(inputs[0], attributes.get("alpha", 1.0))


def _selu(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    alpha, gamma = (
        attributes.get("alpha", 1.67326319217681884765625),
        attributes.get("gamma", 1.05070102214813232421875),
    )
    x = inputs[0]
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x))


def _thresholded_relu(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    x = inputs[0]
    return torch.where(x > attributes.get("alpha", 1.0), x, torch.zeros_like(x))


def _softplus(torch: Any, inputs: Sequence[Any], _attributes: Attributes) -> Any:
    return torch.nn.functional.softplus(inputs[0])


def _softsign(_torch: Any, inputs: Sequence[Any], _attributes: Attributes) -> Any:
    return inputs[0] / (1 + inputs[0].abs())


def _gelu(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    return torch.nn.functional.gelu(inputs[0], approximate=attributes.get("approximate", "none"))


def _hard_sigmoid(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    return torch.clamp(inputs[0] * attributes.get("alpha", 0.2) + attributes.get("beta", 0.5), 0.0, 1.0)


def _hard_swish(torch: Any, inputs: Sequence[Any], _attributes: Attributes) -> Any:
    return inputs[0] * torch.clamp(inputs[0] / 6 + 0.5, 0.0, 1.0)


def _mish(torch: Any, inputs: Sequence[Any], _attributes: Attributes) -> Any:
    return torch.nn.functional.mish(inputs[0])


def _softmax(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    return torch.softmax(inputs[0], attributes.get("axis", -1))


def _log_softmax(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    return torch.log_softmax(inputs[0], attributes.get("axis", -1))


def _cast(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    return inputs[0].to(torch_type(torch, attributes["to"]))


def _cast_like(_torch: Any, inputs: Sequence[Any], _attributes: Attributes) -> Any:
    return inputs[0].to(inputs[1].dtype)


def _reduction(compute: Callable[[Any, Any, tuple[int, ...], bool], Any]) -> Operator:
    """A reduction over the axes of an attribute or of the second input; over all of them where there are none."""

    def reduced(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
        axes = attributes.get("axes")
        if axes is None and len(inputs) > 1 and inputs[1] is not None:
            axes = inputs[1].tolist()
        if not axes:
            if attributes.get("noop_with_empty_axes", 0):
                return inputs[0]
            axes = range(inputs[0].ndim)
        return compute(torch, inputs[0], tuple(int(axis) for axis in axes), bool(attributes.get("keepdims", 1)))

    return reduced


def _prod(torch: Any, x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keepdims)
    return x


REDUCTIONS: dict[str, Operator] = {
    "ReduceMean": _reduction(lambda torch, x, axes, keep: torch.mean(x, axes, keepdim=keep)),
    "ReduceSum": _reduction(lambda torch, x, axes, keep: torch.sum(x, axes, keepdim=keep)),
    "ReduceMax": _reduction(lambda torch, x, axes, keep: torch.amax(x, axes, keepdim=keep)),
    "ReduceMin": _reduction(lambda torch, x, axes, keep: torch.amin(x, axes, keepdim=keep)),
    "ReduceProd": _reduction(_prod),
    "ReduceL1": _reduction(lambda torch, x, axes, keep: torch.sum(x.abs(), axes, keepdim=keep)),
    "ReduceL2": _reduction(lambda torch, x, axes, keep: torch.sum(x * x, axes, keepdim=keep).sqrt()),
    "ReduceSumSquare": _reduction(lambda torch, x, axes, keep: torch.sum(x * x, axes, keepdim=keep)),
    "ReduceLogSum": _reduction(lambda torch, x, axes, keep: torch.sum(x, axes, keepdim=keep).log()),
    "ReduceLogSumExp": _reduction(lambda torch, x, axes, keep: torch.logsumexp(x, axes, keepdim=keep)),
}

UNARY = {
    "Abs": "abs", "Acos": "acos", "Asin": "asin", "Atan": "atan", "Ceil": "ceil", "Cos": "cos", "Cosh": "cosh",
    "Erf": "erf", "Exp": "exp", "Floor": "floor", "IsNaN": "isnan", "Log": "log", "Neg": "neg", "Not": "logical_not",
    "Reciprocal": "reciprocal", "Relu": "relu", "Round": "round", "Sigmoid": "sigmoid", "Sign": "sign", "Sin": "sin",
    "Sinh": "sinh", "Sqrt": "sqrt", "Tan": "tan", "Tanh": "tanh",
}  # fmt: skip
BINARY = {
    "Add": "add", "And": "logical_and", "Equal": "eq", "Greater": "gt", "GreaterOrEqual": "ge", "Less": "lt",
    "LessOrEqual": "le", "Mul": "mul", "Or": "logical_or", "Sub": "sub", "Xor": "logical_xor",
}  # fmt: skip

ELEMENTWISE: dict[str, Operator] = {
    **{name: _unary(function) for name, function in UNARY.items()},
    **{name: _binary(function) for name, function in BINARY.items()},
    **REDUCTIONS,
    "Max": _all_of("maximum"),
    "Min": _all_of("minimum"),
    "Sum": _all_of("add"),
    "Mean": _mean,
    "Div": _div,
    "Mod": _mod,
    "Pow": _pow,
    "Identity": _identity,
    "Dropout": _identity,
    "Clip": _clip,
    "Where": _where,
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "Elu": _elu,
    "Celu": _celu,
    "Selu": _selu,
    "ThresholdedRelu": _thresholded_relu,
    "Softplus": _softplus,
    "Softsign": _softsign,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Mish": _mish,
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
    "Cast": _cast,
    "CastLike": _cast_like,
}
"""By operator type, as of opset 13."""
