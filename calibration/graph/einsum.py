"""Einsum of two tensors as a MatMul between Transposes and Reshapes, which runtimes have integer kernels for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from calibration.graph.editing import (
    add_initializer,
    attribute_string,
    dimensions,
    from_constants,
    rewritten,
    take_place,
    taken_names,
    unique,
)

TERMS = re.compile(r"([A-Za-z]+),([A-Za-z]+)->([A-Za-z]*)")
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
COPY, REST = 0, -1
"""Of a Reshape: the size that the input has there, and what is left over."""


def products_from_einsums(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Write each Einsum that is one product of two tensors, as Keras's attention and einsum layers are, as MatMul.

    Others stay: those of one tensor or of three, with an ellipsis, a diagonal or a sum over letters of one tensor, and
    those that would need sizes that are not known.

    Returns the model, and how many there were; the same model if none.

    Raises:
        ModelError: the result is not valid ONNX.
    """
    return rewritten(model, "Einsum", _write_products)


def _write_products(graph: ir.Graph) -> int:
    writer = _Writer(graph)
    num_written = 0
    for node in list(graph):
        contraction = _contraction(node, writer.fixed)
        if contraction is not None:
            writer.write(node, contraction)
            num_written += 1
    return num_written


@dataclass(frozen=True)
class _Contraction:
    """Letters by their part in the product; data before weights."""

    operands: tuple[ir.Value, ir.Value]
    terms: tuple[str, str]
    output: str
    sizes: Mapping[str, int | None]

    @property
    def batch(self) -> str:
        """In both terms and the output."""
        return "".join(letter for letter in self.output if letter in self.terms[0] and letter in self.terms[1])

    @property
    def summed(self) -> str:
        """In both terms alone."""
        return "".join(letter for letter in self.terms[0] if letter in self.terms[1] and letter not in self.output)

    def alone(self, index: int) -> str:
        """In one term and the output."""
        return "".join(letter for letter in self.output if letter in self.terms[index] and letter not in self.batch)

    @property
    def keeps_rows(self) -> bool:
        """A weight of two dimensions multiplies data of any rank."""
        return not self.batch and len(self.alone(0)) > 0

    def merged(self, letters: str, *groups: str) -> list[int] | None:
        """The Reshape that merges each group behind ``letters``; None where a size is needed that is not known."""
        unknown = [group for group in groups if len(group) > 1 and any(self.sizes[each] is None for each in group)]
        at = len(letters)
        shape = [COPY] * at
        for group in groups:
            if len(group) == 1 and at == len(shape):
                shape.append(COPY)
                at += 1
            elif len(group) == 1:
                shape.append(self.sizes[group] or REST)
            else:
                shape.append(REST if group in unknown else math.prod(self.sizes[each] or 0 for each in group))
        return shape if shape.count(REST) <= 1 else None

    def apart(self) -> list[int] | None:
        """The Reshape of the product to all letters of the output, in its order of batch, rows and columns."""
        shape = [COPY] * len(self.batch)
        rows, columns = self.alone(0), self.alone(1)
        if len(rows) == 1 or self.keeps_rows:
            shape += [COPY] * len(rows)
        else:
            shape += [self.sizes[each] or REST for each in rows]
        shape += [self.sizes[each] or REST for each in columns]
        return shape if shape.count(REST) <= 1 else None


def _contraction(node: ir.Node, fixed: frozenset[str]) -> _Contraction | None:
    """What an Einsum multiplies and sums; None if it is not one product."""
    if node.op_type != "Einsum" or node.domain not in ("", "ai.onnx") or len(node.inputs) != 2:
        return None
    match = TERMS.fullmatch(attribute_string(node, "equation", "").replace(" ", ""))
    values = [value for value in node.inputs if value is not None and value.dtype in FLOATS]
    if match is None or len(values) != 2 or not _have_all_dimensions(values, match.groups()):
        return None
    first, second, output = match.groups()
    order = (1, 0) if values[0].name in fixed and values[1].name not in fixed else (0, 1)
    terms, operands = [(first, second)[index] for index in order], [values[index] for index in order]
    letters = set(first) | set(second)
    is_product = set(first) & set(second) - set(output) and (set(first) ^ set(second)) <= set(output) <= letters
    if not is_product or any(len(set(term)) != len(term) for term in (first, second, output)):
        return None
    sizes = _sizes(terms, operands)
    if sizes is None:
        return None
    made = _Contraction((operands[0], operands[1]), (terms[0], terms[1]), output, sizes)
    return made if all(shape is not None for shape in _reshapes(made)) else None


def _have_all_dimensions(values: Sequence[ir.Value], terms: Sequence[str]) -> bool:
    """Whether each value is known to have a dimension for each letter."""
    shapes = [dimensions(value) for value in values]
    return all(shape is not None and len(shape) == len(term) for shape, term in zip(shapes, terms))


def _sizes(terms: Sequence[str], operands: Sequence[ir.Value]) -> dict[str, int | None] | None:
    """Of each letter, where it is known; None if a letter may be 1 in one term and more in the other."""
    sizes: dict[str, int | None] = {}
    for term, value in zip(terms, operands):
        for letter, size in zip(term, dimensions(value) or ()):
            if letter in sizes and sizes[letter] != size and 1 in (sizes[letter], size):
                return None
            sizes[letter] = sizes.get(letter) or size
    return sizes


def _reshapes(made: _Contraction) -> tuple[list[int] | None, list[int] | None, list[int] | None]:
    """Of the data, of the weight and of the product; each may be what nothing has to be done for."""
    rows, columns = made.alone(0), made.alone(1)
    data = made.merged(rows, made.summed) if made.keeps_rows else made.merged(made.batch, rows, made.summed)
    return data, made.merged(made.batch, made.summed, columns), made.apart()


class _Writer:
    """Writes contractions into a graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._taken = taken_names(graph)
        self.fixed = from_constants(graph)

    def write(self, einsum: ir.Node, made: _Contraction) -> None:
        """Put Transposes, Reshapes and a MatMul in the place of an Einsum."""
        output = einsum.outputs[0]
        to_data, to_weight, to_output = _reshapes(made)
        rows, columns = made.alone(0), made.alone(1)
        nodes: list[ir.Node] = []
        data = self._moved(nodes, made.operands[0], made.terms[0], made.batch + rows + made.summed)
        weight = self._moved(nodes, made.operands[1], made.terms[1], made.batch + made.summed + columns)
        if len(made.summed) != 1 or (len(rows) != 1 and not made.keeps_rows):
            data = self._shaped(nodes, data, to_data)
        if len(made.summed) != 1 or len(columns) != 1:
            weight = self._shaped(nodes, weight, to_weight)
        product = self._add(nodes, ir.Node("", "MatMul", [data, weight], name=einsum.name), f"{output.name}_product")
        if len(columns) != 1 or (len(rows) != 1 and not made.keeps_rows):
            product = self._shaped(nodes, product, to_output)
        product = self._moved(nodes, product, made.batch + rows + columns, made.output)
        self._graph.insert_after(einsum, nodes)
        take_place(output, product)
        self._graph.remove(einsum, safe=True)

    def _moved(self, nodes: list[ir.Node], value: ir.Value, letters: str, wanted: str) -> ir.Value:
        if letters == wanted:
            return value
        axes = ir.AttrInt64s("perm", [letters.index(letter) for letter in wanted])
        return self._add(nodes, ir.Node("", "Transpose", [value], [axes]), f"{value.name}_transposed")

    def _shaped(self, nodes: list[ir.Node], value: ir.Value, shape: Sequence[int] | None) -> ir.Value:
        sizes = np.array(shape, np.int64)
        wanted = add_initializer(self._graph, unique(f"{value.name}_shape", self._taken), sizes, self._taken)
        self._taken.add(wanted.name or "")
        return self._add(nodes, ir.Node("", "Reshape", [value, wanted]), f"{value.name}_reshaped")

    def _add(self, nodes: list[ir.Node], node: ir.Node, name: str) -> ir.Value:
        made = node.outputs[0]
        made.name = unique(name, self._taken)
        self._taken.add(made.name)
        node.name = node.name or unique(f"{made.name}_{node.op_type}", self._taken)
        self._taken.add(node.name)
        data = node.inputs[0]
        made.type = None if data is None or data.dtype is None else ir.TensorType(data.dtype)
        nodes.append(node)
        return made
