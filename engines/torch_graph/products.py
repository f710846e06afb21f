"""Convolutions, matrix products, pools, norms and resizing of ONNX, in torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engines.torch_graph.elementwise import Attributes, Operator


def _pads(attributes: Attributes, sizes: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
    """What is added before and after, along each axis of the positions."""
    num = len(kernel)
    strides, dilations = attributes.get("strides") or [1] * num, attributes.get("dilations") or [1] * num
    how = attributes.get("auto_pad", "NOTSET")
    if how in ("NOTSET", ""):
        pads = attributes.get("pads") or [0] * 2 * num
        return [(pads[axis], pads[num + axis]) for axis in range(num)]
    if how == "VALID":
        return [(0, 0)] * num
    around = []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations):
        total = max(0, (-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size)
        less, more = total // 2, total - total // 2
        around.append((less, more) if how == "SAME_UPPER" else (more, less))
    return around


def _padded(torch: Any, x: Any, around: Sequence[tuple[int, int]], fill: float = 0.0) -> Any:
    if all(pair == (0, 0) for pair in around):
        return x
    return torch.nn.functional.pad(x, [pad for pair in reversed(around) for pad in pair], value=fill)


def _conv(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    x, weight, bias = (*inputs, None)[:3]
    num = weight.ndim - 2
    around = _pads(attributes, x.shape[2:], weight.shape[2:])
    if all(before == after for before, after in around):
        padding = [before for before, _ in around]
    else:
        x, padding = _padded(torch, x, around), [0] * num
    function = (torch.conv1d, torch.conv2d, torch.conv3d)[num - 1]
    strides, dilations = attributes.get("strides") or [1] * num, attributes.get("dilations") or [1] * num
    return function(x, weight, bias, strides, padding, dilations, attributes.get("group", 1))


def _conv_transpose(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    x, weight, bias = (*inputs, None)[:3]
    num = weight.ndim - 2
    strides, dilations = attributes.get("strides") or [1] * num, attributes.get("dilations") or [1] * num
    more = attributes.get("output_padding") or [0] * num
    function = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[num - 1]
    whole = function(x, weight, bias, strides, [0] * num, more, attributes.get("group", 1), dilations)
    for axis, (before, size) in enumerate(_cut(attributes, x, weight, whole), 2):
        if size > whole.shape[axis] - before:
            raise NotImplementedError("an output beyond what the kernels reach")
        whole = whole.narrow(axis, before, size)
    return whole


def _cut(attributes: Attributes, x: Any, weight: Any, whole: Any) -> list[tuple[int, int]]:
    """Of each axis of the positions: what is cut off before, and the size that is left."""
    num = weight.ndim - 2
    strides = attributes.get("strides") or [1] * num
    how, shape = attributes.get("auto_pad", "NOTSET"), attributes.get("output_shape")
    if shape is None and how in ("SAME_UPPER", "SAME_LOWER"):
        shape = [size * stride for size, stride in zip(x.shape[2:], strides)]
    if shape is None:
        pads = [0] * 2 * num if how == "VALID" else attributes.get("pads") or [0] * 2 * num
        return [(pads[a], whole.shape[2 + a] - pads[a] - pads[num + a]) for a in range(num)]
    cuts = []
    for axis, size in enumerate(shape[-num:]):
        total = whole.shape[2 + axis] - size
        # As onnx's reference: what is odd is cut in front unless SAME_UPPER is asked for.
        cuts.append((total // 2 if how == "SAME_UPPER" else total - total // 2, size))
    return cuts


def _mat_mul(torch: Any, inputs: Sequence[Any], _attributes: Attributes) -> Any:
    return torch.matmul(inputs[0], inputs[1])


def _gemm(_torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    first, second, bias = (*inputs, None)[:3]
    first = first.T if attributes.get("transA", 0) else first
    second = second.T if attributes.get("transB", 0) else second
    product = first @ second
    if (alpha := attributes.get("alpha", 1.0)) != 1.0:
        product = alpha * product
    if bias is None:
        return product
    return product + (bias if (beta := attributes.get("beta", 1.0)) == 1.0 else beta * bias)


def _einsum(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    return torch.einsum(attributes["equation"], *inputs)


def _max_pool(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    x, kernel = inputs[0], attributes["kernel_shape"]
    num = len(kernel)
    x = _padded(torch, x, _pads(attributes, x.shape[2:], kernel), -np.inf)
    functions = (torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)
    strides, dilations = attributes.get("strides") or [1] * num, attributes.get("dilations") or [1] * num
    return functions[num - 1](x, kernel, strides, [0] * num, dilations, bool(attributes.get("ceil_mode", 0)))


def _average_pool(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    x, kernel = inputs[0], attributes["kernel_shape"]
    num = len(kernel)
    if any(dilation != 1 for dilation in attributes.get("dilations") or ()):
        raise NotImplementedError("dilations")
    functional = torch.nn.functional
    function = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[num - 1]
    around, counts_pads = _pads(attributes, x.shape[2:], kernel), bool(attributes.get("count_include_pad", 0))
    strides, ceil = attributes.get("strides") or [1] * num, bool(attributes.get("ceil_mode", 0))
    if ceil and counts_pads and any(pair != (0, 0) for pair in around):
        raise NotImplementedError("ceil_mode with count_include_pad")
    mean = function(_padded(torch, x, around), kernel, strides, 0, ceil)
    if counts_pads or all(pair == (0, 0) for pair in around):
        return mean
    ones = _padded(torch, torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype), around)
    return mean / function(ones, kernel, strides, 0, ceil)


def _global_average_pool(_torch: Any, inputs: Sequence[Any], _attributes: Attributes) -> Any:
    return inputs[0].mean(tuple(range(2, inputs[0].ndim)), keepdim=True)


def _global_max_pool(_torch: Any, inputs: Sequence[Any], _attributes: Attributes) -> Any:
    return inputs[0].amax(tuple(range(2, inputs[0].ndim)), keepdim=True)


def _batch_normalization(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    x, scale, bias, mean, variance = inputs[:5]
    if attributes.get("training_mode", 0):
        raise NotImplementedError("training mode")
    return torch.nn.functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, attributes.get("epsilon", 1e-5))


def _layer_normalization(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    x, scale, bias = (*inputs, None)[:3]
    axis = attributes.get("axis", -1) % x.ndim
    shape = tuple(x.shape[axis:])
    epsilon = attributes.get("epsilon", 1e-5)
    normal = torch.nn.functional.layer_norm(x, shape, None, None, epsilon)
    y = normal * scale if bias is None else normal * scale + bias
    if attributes.get("num_results", 1) == 1:
        return y
    axes = tuple(range(axis, x.ndim))
    return y, x.mean(axes, keepdim=True), torch.rsqrt(x.var(axes, correction=0, keepdim=True) + epsilon)


def _instance_normalization(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    x, scale, bias = inputs
    return torch.nn.functional.instance_norm(x, None, None, scale, bias, True, 0.0, attributes.get("epsilon", 1e-5))


def _group_normalization(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    x, scale, bias = inputs
    if scale.numel() != x.shape[1]:
        raise NotImplementedError("a scale for each group, as of opset 18")
    return torch.nn.functional.group_norm(x, attributes["num_groups"], scale, bias, attributes.get("epsilon", 1e-5))


def _lp_normalization(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    axis, power = attributes.get("axis", -1), attributes.get("p", 2)
    norm = torch.linalg.vector_norm(inputs[0], power, axis, keepdim=True)
    return inputs[0] / torch.where(norm == 0, torch.ones_like(norm), norm)


def _lrn(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    alpha, beta, k = attributes.get("alpha", 1e-4), attributes.get("beta", 0.75), attributes.get("bias", 1.0)
    x, size = inputs[0], attributes["size"]
    low = (size - 1) // 2
    square = torch.nn.functional.pad((x * x).transpose(1, -1), (low, size - 1 - low)).transpose(1, -1)
    summed = sum(square.narrow(1, at, x.shape[1]) for at in range(size))
    return x / (k + alpha / size * summed) ** beta


def _resize(torch: Any, inputs: Sequence[Any], attributes: Attributes) -> Any:
    x, _, scales, sizes = (*inputs, None, None, None)[:4]
    if attributes.get("antialias", 0) or attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NotImplementedError("antialias, or a policy of the aspect ratio")
    axes = attributes.get("axes") or list(range(x.ndim))
    wanted = sizes if sizes is not None and sizes.numel() else scales
    for axis, number in zip(axes, wanted.tolist()):
        size = x.shape[axis]
        if wanted is sizes:
            length, scale = int(number), number / size
        else:
            length, scale = int(np.floor(size * number)), number
        if (length, scale) != (size, 1.0):
            x = _resized(torch, x, axis, _positions(attributes, size, length, scale), attributes)
    return x


def _positions(attributes: Attributes, size: int, length: int, scale: float) -> Any:
    """(length,): where along the axis each value comes from."""
    at = np.arange(length, dtype=np.float64)
    how = attributes.get("coordinate_transformation_mode", "half_pixel")
    if how == "asymmetric":
        return at / scale
    if how == "align_corners":
        return at * (size - 1) / (size * scale - 1) if size * scale != 1 else at * 0.0
    if how == "half_pixel" or (how == "pytorch_half_pixel" and length > 1):
        return (at + 0.5) / scale - 0.5
    if how == "pytorch_half_pixel":
        return at * 0.0
    raise NotImplementedError(f"coordinate_transformation_mode '{how}'")


def _resized(torch: Any, x: Any, axis: int, positions: Any, attributes: Attributes) -> Any:
    mode, last = attributes.get("mode", "nearest"), x.shape[axis] - 1
    if mode == "nearest":
        rounded = {
            "round_prefer_floor": np.ceil(positions - 0.5),
            "round_prefer_ceil": np.floor(positions + 0.5),
            "floor": np.floor(positions),
            "ceil": np.ceil(positions),
        }[attributes.get("nearest_mode", "round_prefer_floor")]
        return torch.index_select(x, axis, torch.tensor(np.clip(rounded, 0, last).astype(np.int64)))
    if mode != "linear":
        raise NotImplementedError(f"mode '{mode}'")
    low = np.floor(positions)
    share = torch.tensor((positions - low).astype(np.float32)).reshape([-1] + [1] * (x.ndim - 1 - axis)).to(x.dtype)
    first, second = (np.clip(each, 0, last).astype(np.int64) for each in (low, low + 1))
    before = torch.index_select(x, axis, torch.tensor(first))
    return before + share * (torch.index_select(x, axis, torch.tensor(second)) - before)


PRODUCTS: dict[str, Operator] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _mat_mul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
    "BatchNormalization": _batch_normalization,
    "LayerNormalization": _layer_normalization,
    "InstanceNormalization": _instance_normalization,
    "GroupNormalization": _group_normalization,
    "LpNormalization": _lp_normalization,
    "LRN": _lrn,
    "Resize": _resize,
}
"""By operator type, as of opset 13."""
