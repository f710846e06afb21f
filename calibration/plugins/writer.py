"""Nodes written one after the other: what each makes has a name of its own, and constants are made where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from calibration.arrays import AnyArray, Ints
from calibration.graph.editing import unique


class NodeWriter:
    """Nodes and constants that stand for one node, in the order in which they are computed."""

    def __init__(self, prefix: str, taken: set[str]) -> None:
        """``prefix``: of all names; ``taken``: names that there are already, to which what is written is added."""
        self._prefix, self._taken = prefix, taken
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def __call__(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Write a node with one output; the output's name."""
        name = output or self._new(operator)
        node_name = f"{self._prefix}/{operator}_{output}" if output else name
        self.nodes.append(helper.make_node(operator, inputs, [name], name=node_name))
        self.nodes[-1].attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        return name

    def top(self, values: str, num: int) -> tuple[str, str]:
        """The largest along the last of two axes, falling, and where they stand; equal ones in their order."""
        names = self._new("TopK"), self._new("TopK_at")
        node = helper.make_node("TopK", [values, self.ints([num])], names, name=names[0], axis=1)
        self.nodes.append(node)
        return names

    def floats(self, values: Sequence[float] | float) -> str:
        """A constant of type float."""
        return self._constant(np.asarray(values, dtype=np.float32))

    def ints(self, values: Ints | Sequence[int] | int) -> str:
        """A constant of type int64."""
        return self._constant(np.asarray(values, dtype=np.int64))

    def reshaped(self, value: str, shape: Sequence[int]) -> str:
        """A view; 0: as before, -1: the rest."""
        return self("Reshape", value, self.ints(shape))

    def cast(self, value: str, element_type: int, output: str = "") -> str:
        """As another type."""
        return self("Cast", value, output=output, to=element_type)

    def _constant(self, array: AnyArray) -> str:
        name = self._new("constant")
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def _new(self, stem: str) -> str:
        name = unique(f"{self._prefix}/{stem}", self._taken)
        self._taken.add(name)
        return name
