"""Operators of ONNX that move values, or compute with shapes, in torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import numpy_helper

from engines.torch_graph.elementwise import Attributes, Operator


def _reshape(_torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    shape = [int(size) for size in inputs[1].tolist()]
    if not attributes.get("allowzero", 0):
        shape = [inputs[0].shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    return inputs[0].reshape(shape)


def _flatten(_torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    x, axis = inputs[0], attributes.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    rows = int(np.prod(x.shape[:axis], dtype=np.int64))
    return x.reshape(rows, -1) if x.numel() else x.reshape(rows, int(np.prod(x.shape[axis:], dtype=np.int64)))


def _transpose(_torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    return inputs[0].permute(attributes.get("perm") or tuple(reversed(range(inputs[0].ndim))))


def _axes(inputs: Sequence[Any], attributes: Attributes) -> list[int] | None:
    if "axes" in attributes:
        return list(attributes["axes"])
    return [int(axis) for axis in inputs[1].tolist()] if len(inputs) > 1 and inputs[1] is not None else None


def _squeeze(_torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    x, axes = inputs[0], _axes(inputs, attributes)
    if axes is None:
        return x.squeeze()
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.squeeze(axis)
    return x


def _unsqueeze(_torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    x, axes = inputs[0], _axes(inputs, attributes) or []
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _concat(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    return torch.cat(tuple(inputs), attributes["axis"])


def _split(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    x, axis = inputs[0], attributes.get("axis", 0)
    if len(inputs) > 1 and inputs[1] is not None:
        return tuple(torch.split(x, [int(size) for size in inputs[1].tolist()], axis))
    num_parts = attributes.get("num_outputs") or attributes["num_results"]
    return tuple(torch.split(x, -(-x.shape[axis] // num_parts), axis))


def _slice(torch: Any, inputs: Sequence[Any], _attributes: Attributes) -> Any:
    x, starts, ends = inputs[0], inputs[1].tolist(), inputs[2].tolist()
    axes = inputs[3].tolist() if len(inputs) > 3 and inputs[3] is not None else range(len(starts))
    steps = inputs[4].tolist() if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps):
        indices = range(*slice(int(start), _end(int(end), x.shape[axis], step), int(step)).indices(x.shape[axis]))
        if step == 1:
            x = x.narrow(axis, indices.start if len(indices) else 0, len(indices))
        else:
            x = torch.index_select(x, axis, torch.tensor(list(indices), dtype=torch.int64, device=x.device))
    return x


def _end(end: int, size: int, step: int) -> int | None:
    """As Python's slices have it: backwards past the first value means to the very beginning."""
    return None if step < 0 and end < -size else end


def _gather(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    x, indices = inputs
    axis = attributes.get("axis", 0) % x.ndim
    size = x.shape[axis]
    flat = torch.where(indices < 0, indices + size, indices).reshape(-1).to(torch.int64)
    return torch.index_select(x, axis, flat).reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _gather_elements(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    x, indices = inputs
    axis = attributes.get("axis", 0)
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices).to(torch.int64))


def _gather_nd(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    x, indices = inputs[0], inputs[1].to(torch.int64)
    num_batch = attributes.get("batch_dims", 0)
    batch = [torch.arange(size).reshape([-1 if k == axis else 1 for k in range(indices.ndim - 1)])
             for axis, size in enumerate(x.shape[:num_batch])]  # fmt: skip
    return x[(*batch, *indices.unbind(-1))]


def _scatter_nd(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    x, indices, updates = inputs
    how = attributes.get("reduction", "none")
    if how not in ("none", "add"):
        raise NotImplementedError(f"reduction '{how}'")
    return x.index_put(tuple(indices.to(torch.int64).unbind(-1)), updates, accumulate=how == "add")


def _expand(torch: Any, inputs: Sequence[Any], _attributes: Attributes) -> Any:
    shape = torch.broadcast_shapes(tuple(inputs[0].shape), tuple(int(size) for size in inputs[1].tolist()))
    return inputs[0].expand(shape)


def _tile(_torch: Any, inputs: Sequence[Any], _attributes: Attributes) -> Any:
    return inputs[0].repeat([int(times) for times in inputs[1].tolist()])


def _shape(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    shape = inputs[0].shape[slice(attributes.get("start", 0), attributes.get("end"))]
    return torch.tensor(tuple(shape), dtype=torch.int64)


def _size(torch: Any, inputs: Sequence[Any], _attributes: Attributes) -> Any:
    return torch.tensor(inputs[0].numel(), dtype=torch.int64)


def _constant_of_shape(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    value = attributes.get("value")
    fill = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    return torch.tensor(fill.copy()).reshape(()).expand([int(size) for size in inputs[0].tolist()]).clone()


def _range(torch: Any, inputs: Sequence[Any], _attributes: Attributes) -> Any:
    start, limit, delta = (each.item() for each in inputs)
    return torch.arange(start, limit, delta, dtype=inputs[0].dtype)


def _pad(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    x, pads = inputs[0], [int(pad) for pad in inputs[1].tolist()]
    axes = inputs[3].tolist() if len(inputs) > 3 and inputs[3] is not None else list(range(x.ndim))
    around = [[0, 0] for _ in range(x.ndim)]
    for place, axis in enumerate(axes):
        around[axis] = [pads[place], pads[len(axes) + place]]
    mode = attributes.get("mode", "constant")
    if mode == "constant":
        fill = 0.0 if len(inputs) < 3 or inputs[2] is None else inputs[2].item()
        return torch.nn.functional.pad(x, [pad for both in reversed(around) for pad in both], value=fill)
    for axis, (before, after) in enumerate(around):
        if before or after:
            x = torch.index_select(x, axis, torch.tensor(_padded_indices(x.shape[axis], before, after, mode)))
    return x


def _padded_indices(size: int, before: int, after: int, mode: str) -> Any:
    how = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}[mode]
    return np.pad(
        np.arange(size), (max(before, 0), max(after, 0)), mode=how
    )[  # type: ignore[call-overload]
        max(-before, 0) : None if after >= 0 else after
    ]


def _depth_to_space(_torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    n, c, h, w = inputs[0].shape
    block = attributes["blocksize"]
    if attributes.get("mode", "DCR") == "DCR":
        parts = inputs[0].reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = inputs[0].reshape(n, c // block**2, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(_torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    n, c, h, w = inputs[0].shape
    block = attributes["blocksize"]
    order = (0, 3, 5, 1, 2, 4) if attributes.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    parts = inputs[0].reshape(n, c, h // block, block, w // block, block).permute(order)
    return parts.reshape(n, c * block**2, h // block, w // block)


def _trilu(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    diagonal = int(inputs[1].item()) if len(inputs) > 1 and inputs[1] is not None else 0
    return (torch.triu if attributes.get("upper", 1) else torch.tril)(inputs[0], diagonal)


def _top_k(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    # Of equal values the first counts, which torch.topk does not promise.
    axis, num = attributes.get("axis", -1), int(inputs[1].item())
    values, indices = torch.sort(inputs[0], dim=axis, descending=bool(attributes.get("largest", 1)), stable=True)
    return values.narrow(axis, 0, num), indices.narrow(axis, 0, num)


def _arg_max(_torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    if attributes.get("select_last_index", 0):
        raise NotImplementedError("select_last_index")
    return inputs[0].argmax(attributes.get("axis", 0), keepdim=bool(attributes.get("keepdims", 1)))


def _arg_min(_torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    if attributes.get("select_last_index", 0):
        raise NotImplementedError("select_last_index")
    return inputs[0].argmin(attributes.get("axis", 0), keepdim=bool(attributes.get("keepdims", 1)))


def _cum_sum(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    axis = int(inputs[1].item())
    x = inputs[0].flip(axis) if attributes.get("reverse", 0) else inputs[0]
    summed = torch.cumsum(x, axis, dtype=x.dtype)
    summed = summed - x if attributes.get("exclusive", 0) else summed
    return summed.flip(axis) if attributes.get("reverse", 0) else summed


SHAPES: dict[str, Operator] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterND": _scatter_nd,
    "Expand": _expand,
    "Tile": _tile,
    "Shape": _shape,
    "Size": _size,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Trilu": _trilu,
    "TopK": _top_k,
    "ArgMax": _arg_max,
    "ArgMin": _arg_min,
    "CumSum": _cum_sum,
}
"""By operator type, as of opset 13."""
