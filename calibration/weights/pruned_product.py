"""One product whose weight gets zeros, and what is left of it made good for them and for all that changed before it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from calibration.arrays import AnyArray, Floats
from calibration.graph.editing import change_constant, closed, constant, opened, unique, value_names
from calibration.precision.weights import bias_of
from calibration.ranges.moments import RowPairs, SumWindow
from calibration.weights.masks import Pattern, Prunable
from calibration.weights.sums import as_weight, by_group, damped, damping, sum_window
from calibration.weights.surgeon import ZeroRule, with_zeros

ChangedArrays = dict[str, npt.NDArray[np.float32]]
"""Initializer -> its new values."""


@dataclass(frozen=True)
class PrunedProduct:
    """A product whose weight, and bias if there is one, belong to it alone."""

    node: str
    weight: str
    """The initializer's name."""
    bias: str
    """The same of its bias; empty: it has none."""
    axis: int
    """Of the weight, that counts output channels."""
    window: SumWindow

    def pruned(self, arrays: Mapping[str, AnyArray], pairs: RowPairs, rule: tuple[float, Pattern]) -> ChangedArrays:
        """The weight with zeros, nearest to the sums of the network as it was on the data of the network as it is.

        Args:
            arrays: initializers of the network as it was.
            pairs: centred where there is a bias, which takes the means back.
            rule: share of zeros, and their pattern.
        """
        array = arrays[self.weight].astype(np.float32)
        form, held = damped(pairs.second), damping(pairs.second)
        before = by_group(array, self.axis, form)
        made = np.empty_like(before)
        positions = int(np.prod(self.window.kernel, dtype=np.int64))
        for group, weights in enumerate(before):
            # Least of |weights y - made x|^2 and of the damping times |weights - made|^2.
            right = weights @ pairs.cross[group] + held[group] * weights
            best = np.linalg.solve(form[group], right.T).T
            made[group] = with_zeros(best, form[group], ZeroRule(*rule, positions))
        changed: ChangedArrays = {self.weight: as_weight(made, array.shape, self.axis).astype(np.float32)}
        if self.bias:
            shift = _sums(before, pairs.mean_before) - _sums(made, pairs.mean)
            bias = arrays[self.bias].astype(np.float64)
            changed[self.bias] = np.asarray(bias + shift.reshape(bias.shape), np.float32)
        return changed


def _sums(weights: Floats, means: Floats) -> Floats:
    return np.asarray(np.einsum("gmk,gk->gm", weights, means)).reshape(-1)


def pruned_products(model: onnx.ModelProto, weights: Iterable[Prunable]) -> tuple[onnx.ModelProto, list[PrunedProduct]]:
    """The products that can be pruned so, in the order of the graph; and the model, where each has a bias of its own.

    Left out are weights that several nodes read, and what is scaled or turned beside its product.
    """
    opened_model = opened(model)
    graph = opened_model.graph
    meant = {weight.tensor: weight for weight in weights}
    taken = value_names(graph)
    products = []
    for node in list(graph):
        value = node.inputs[1] if len(node.inputs) > 1 else None
        how = None if value is None else meant.get(value.name or "")
        window = sum_window(node) if how is not None and how.node == node.name else None
        if how is None or window is None or value is None or len(value.uses()) != 1 or value.is_graph_output():
            continue
        array = constant(value)
        assert array is not None
        bias = _own_bias(graph, node, array.shape[how.output_axis], taken)
        products.append(PrunedProduct(how.node, how.tensor, bias, how.output_axis, window))
    return closed(opened_model), products


def _own_bias(graph: ir.Graph, node: ir.Node, num_channels: int, taken: set[str]) -> str:
    """The name of the bias's initializer, which nothing else reads; empty where there is no place for one."""
    bias = bias_of(node, num_channels)
    if bias is None:
        return ""
    name = unique(f"{node.name}_bias", taken)
    change_constant(graph, bias.node, bias.index, np.asarray(bias.array, np.float32), name)
    value = bias.node.inputs[bias.index]
    assert value is not None
    taken.add(value.name or "")
    return value.name or ""
