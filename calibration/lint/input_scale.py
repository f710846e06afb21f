"""What a model does to its input before the first layer: its own memory of the scale that it was trained on.

A graph that begins with ``(x - mean) / std`` in whatever form (Sub, Div, Mul, Add by constants, or a batch norm) says
what its input looks like: the mean and the standard deviation of x, or at least their order of magnitude. Where the
graph begins with a layer it says nothing, as a scale that was folded into weights leaves no trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from calibration.arrays import Floats
from calibration.histogram.quantiles import median

PASSING = ("Identity", "Cast", "Dropout")
RESHAPING = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand")
"""One value for all elements survives these; one for each channel would have to be followed, and is not."""
LEAST_STEP = 16.0
"""A model that only divides, or only subtracts, less than this may do so for any reason: no evidence."""
LEAST_MEAN = 0.1
"""A mean below this share of the standard deviation is none: it may be the epsilon of a logarithm."""


@dataclass(frozen=True, eq=False)
class Rescaling:
    """The model reads ``(x - mean) / std``; arrays that broadcast against a batch of the input."""

    mean: Floats
    std: Floats
    """Above 0."""
    nodes: tuple[str, ...]
    """The operators that do it."""

    @property
    def rms(self) -> Floats:
        """What the root of the mean of x^2 is, if the model standardizes: sqrt(mean^2 + std^2)."""
        return np.sqrt(self.mean**2 + self.std**2)

    def describe(self) -> str:
        """Words for a message."""
        mean, std = median(self.mean), median(self.std)
        about = "about " if self.mean.size > 1 or self.std.size > 1 else ""
        done = f"divides by {about}{std:.4g}" if not mean else f"computes {about}(x − {mean:.4g}) ÷ {std:.4g}"
        return f"{done} first ({', '.join(self.nodes)})"


def rescalings(model: onnx.ModelProto) -> dict[str, Rescaling]:
    """By input name, for each input of the main graph that the model rescales before anything else reads it.

    An initializer without values (see ``calibration.graph.weightless``) ends the search, as a weight does.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in {*node.input} - {""}:
            readers.setdefault(name, []).append(node)
    by_input = {}
    for value in model.graph.input:
        rank = len(value.type.tensor_type.shape.dim)
        if value.name not in constants and rank:
            trace = _Trace(value.name, rank, {output.name for output in model.graph.output})
            rescaling = trace.follow(readers, constants)
            if rescaling is not None:
                by_input[value.name] = rescaling
    return by_input


class _Trace:
    """``x * scale + shift`` along a chain of nodes that nothing else reads from."""

    def __init__(self, name: str, rank: int, outputs: set[str]) -> None:
        self.name, self.rank, self.outputs = name, rank, outputs
        self.scale = self.shift = np.zeros((1,) * rank)
        self.scale = self.scale + 1.0
        self.axes = list(range(rank))
        """Which axis of the input each axis is now; empty once that is not known."""
        self.nodes: list[str] = []

    def follow(
        self, readers: Mapping[str, list[onnx.NodeProto]], constants: Mapping[str, onnx.TensorProto]
    ) -> Rescaling | None:
        """Go on while the map stays affine; what was found, if it tells anything."""
        while self.name not in self.outputs and len(readers.get(self.name, [])) == 1:
            node = readers[self.name][0]
            if not self._step(node, constants):
                break
            self.name = node.output[0]
        if not self.nodes or not (np.isfinite(self.scale).all() and np.all(self.scale != 0)):
            return None
        back = [self.axes.index(axis) for axis in range(self.rank)] if self._is_full() else None
        scale, shift = (array.transpose(back) if back else array for array in (self.scale, self.shift))
        rescaling = Rescaling(-shift / scale + 0.0, 1 / np.abs(scale), tuple(self.nodes))
        return rescaling if self._tells(rescaling) else None

    def _tells(self, rescaling: Rescaling) -> bool:
        """Whether arithmetic of this kind is there for the scale of the input."""
        mean, std = median(np.abs(rescaling.mean)), median(rescaling.std)
        if self.nodes == ["BatchNormalization"]:
            return bool(rescaling.mean.any())  # A trained one has seen a mean that is not 0.
        if std == 1.0 or mean < LEAST_MEAN * std:
            return max(std, mean) >= LEAST_STEP
        return True

    def _is_full(self) -> bool:
        return self.scale.ndim == self.shift.ndim == len(self.axes) == self.rank

    def _step(self, node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
        """Take one node in; False if it does not go on."""
        if node.domain not in ("", "ai.onnx"):
            return False
        if node.op_type in PASSING:
            return True
        if node.op_type == "Transpose":
            return self._transposed(node)
        if node.op_type in RESHAPING:
            self.axes = []  # No longer known.
            return node.input[0] == self.name and self.scale.size == self.shift.size == 1
        if node.op_type == "BatchNormalization" and node.input[0] == self.name and not self.nodes:
            self._normalized(node, [_values(constants, name) for name in node.input[3:5]])
            return False  # Its gamma and beta were learned: they tell nothing of the input.
        if node.op_type in ("Sub", "Add", "Mul", "Div") and len(node.input) == 2:
            first = node.input[0] == self.name
            operand = _values(constants, node.input[1 if first else 0])
            return operand is not None and self._combined(node.op_type, operand, first)
        return False

    def _transposed(self, node: onnx.NodeProto) -> bool:
        perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), list(range(self.rank))[::-1])
        if not self._is_full() or len(perm) != self.rank:
            return self.scale.size == self.shift.size == 1
        self.scale, self.shift = self.scale.transpose(perm), self.shift.transpose(perm)
        self.axes = [self.axes[axis] for axis in perm]
        return True

    def _normalized(self, node: onnx.NodeProto, stored: list[Floats | None]) -> None:
        mean, variance = stored
        if mean is None or variance is None or not self._is_full() or self.rank < 2:
            return
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        shape = (1, -1, *(1,) * (self.rank - 2))
        self.scale = (1 / np.sqrt(variance + epsilon)).reshape(shape)
        self.shift = -mean.reshape(shape) * self.scale
        self.nodes.append(node.op_type)

    def _combined(self, op_type: str, operand: Floats, first: bool) -> bool:
        if operand.size > 1 and (not self._is_full() or operand.ndim > self.rank):
            return False
        # Kept as its own shape where a Reshape may have changed the rank.
        operand = operand.reshape((1,) * (self.scale.ndim - operand.ndim) + operand.shape) if operand.size > 1 else (
            operand.reshape((1,) * self.scale.ndim)
        )  # fmt: skip
        if op_type == "Div" and not first:
            return False
        if op_type in ("Mul", "Div"):
            if op_type == "Div" and not np.all(operand):
                return False
            factor = operand if op_type == "Mul" else 1 / operand
            self.scale, self.shift = self.scale * factor, self.shift * factor
        elif op_type == "Sub" and not first:
            self.scale, self.shift = -self.scale, operand - self.shift
        else:
            self.shift = self.shift + (operand if op_type == "Add" else -operand)
        self.scale, self.shift = np.broadcast_arrays(self.scale, self.shift)
        self.nodes.append(op_type)
        return True


def _values(constants: Mapping[str, onnx.TensorProto], name: str) -> Floats | None:
    """The values of a constant; None for a name that is none, or whose values were not read."""
    tensor = constants.get(name)
    if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return None
    try:
        return onnx.numpy_helper.to_array(tensor).astype(np.float64)
    except (ValueError, TypeError):
        return None  # A skeleton's weight, or text.
