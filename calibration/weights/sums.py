"""Quadratic forms of what errors of a product's weights bring to its sums, and weights changed one by one by them.

The mean square that errors e of one channel's weights bring to its sums over rows x is e H e, with H the mean of x x'
(``calibration.ranges.moments``). Where one weight is changed, the others can take back most of that: with U U' of the
inverse of H the next ones move by what its row says (Hassibi and Stork, "Second order derivatives for network pruning:
Optimal Brain Surgeon", NIPS 1993; in columns for all channels at once: Frantar et al., "GPTQ", ICLR 2023).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calibration.arrays import Floats
from calibration.graph.editing import attribute_int, attribute_ints, attribute_string, constant
from calibration.precision.placement import is_plain
from calibration.ranges.moments import SumWindow

DAMPING = 0.01
"""Of the mean of H's diagonal, added to it: what a few samples say of the data is not believed to the last."""
BLOCK = 128
"""Weights of a sum after which the others learn of it: many small steps of memory become one matrix product."""

Settle: TypeAlias = Callable[[Floats, int], Floats]
"""(G, M, K) weights, the first ``at`` of each sum changed and the others moved -> (G, M), what those at ``at`` become.

Those from the beginning of a block on are up to date when its first is asked for."""


def sum_window(node: ir.Node) -> SumWindow | None:
    """What a product with a constant weight sums over: of convolutions, and of matrix products with a matrix."""
    data, weight = node.inputs[0], constant(node.inputs[1])
    if data is None or weight is None:
        return None
    name = data.name or ""
    if node.op_type in ("MatMul", "Gemm"):
        return SumWindow(name) if weight.ndim == 2 and is_plain(node) else None
    num_groups = attribute_int(node, "group", 1)
    if node.op_type != "Conv" or weight.shape[0] % num_groups:
        return None
    kernel = weight.shape[2:]
    ones, auto_pad = (1,) * len(kernel), attribute_string(node, "auto_pad", "NOTSET")
    strides, dilations = (attribute_ints(node, each, ones) for each in ("strides", "dilations"))
    same = auto_pad if auto_pad.startswith("SAME") else ""
    return SumWindow(name, kernel, strides, dilations, attribute_ints(node, "pads"), same, num_groups)


def by_group(values: npt.NDArray[np.float32], axis: int, form: Floats) -> Floats:
    """(G, M, K) of an array in a weight's shape, whose ``axis`` counts output channels; ``form`` is (G, K, K)."""
    return np.moveaxis(values, axis, 0).reshape(len(form), -1, form.shape[-1]).astype(np.float64)


def as_weight(values: Floats, shape: tuple[int, ...], axis: int) -> Floats:
    """(G, M, K) in the weight's shape again."""
    moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    return np.moveaxis(values.reshape(moved), 0, axis)


def damped(form: Floats) -> Floats:
    """The form (G, K, K) with something on its diagonal, so that it has an inverse."""
    return np.asarray(form + damping(form)[:, None, None] * np.eye(form.shape[-1]))


def damping(form: Floats) -> Floats:
    """(G,): what ``damped`` adds."""
    mean = np.einsum("gkk->gk", form).mean(axis=-1)
    return np.asarray(np.maximum(DAMPING * mean, np.finfo(np.float32).tiny))


def upper_factor(form: Floats) -> Floats:
    """(G, K, K): U with U' U the inverse of a form that has one."""
    return np.swapaxes(np.linalg.cholesky(np.linalg.inv(form)), 1, 2)


def changed_in_turn(weights: Floats, factor: Floats, settle: Settle) -> Floats:
    """(G, M, K): weights changed one after another, after each the rest moved so that the form is least.

    Args:
        weights: (G, M, K), which are overwritten.
        factor: (G, K, K) as ``upper_factor`` makes it.
        settle: what each becomes.
    """
    changed, num = np.empty_like(weights), weights.shape[-1]
    for begin in range(0, num, BLOCK):
        end = min(begin + BLOCK, num)
        errors = np.zeros((*weights.shape[:2], end - begin))
        for at in range(begin, end):
            changed[:, :, at] = settle(weights, at)
            error = (weights[:, :, at] - changed[:, :, at]) / factor[:, at, at][:, None]
            weights[:, :, at:end] -= error[:, :, None] * factor[:, at, None, at:end]
            errors[:, :, at - begin] = error
        weights[:, :, end:] -= errors @ factor[:, begin:end, end:]
    return changed
