"""Whether a full-integer `.tflite` file is ready for an Edge TPU, by the published rules of its compiler.

The rules are those of "TensorFlow models on the Edge TPU" (coral.ai/docs/edgetpu/models-intro), edition of 2019, which
is what could be read; operators that later editions added are ``LATER``, and are let through with a sentence. Logs of
the compiler in issues of google-coral/edgetpu added what it says of QUANTIZE, DEQUANTIZE and TRANSPOSE (#317, #342,
#490). It takes one run of operators from the input on: what comes after the first that it does not take stays on the
CPU (#317, #461). Whether the compiler really takes the file only the compiler can tell: its own errors follow no rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

from engines.contract import DYNAMIC
from engines.litert.facts import TfliteFacts, TfliteOperator, TfliteTensor

INTEGERS = frozenset({"INT8", "UINT8"})
BIAS = "INT32"
PLAIN = frozenset({
    "ADD", "CONV_2D", "DEPTHWISE_CONV_2D", "L2_NORMALIZATION", "LOGISTIC", "MAXIMUM", "MINIMUM", "MUL", "QUANTIZE",
    "RELU", "RELU6", "RELU_N1_TO_1", "RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "SLICE",
    "SPACE_TO_DEPTH", "SPLIT", "SUB", "TANH",
})  # fmt: skip
"""Taken without a condition that the file shows."""
LATER = frozenset({
    "EXPAND_DIMS", "LEAKY_RELU", "PACK", "PRELU", "REDUCE_MAX", "REDUCE_MIN", "RSQRT", "SQUARED_DIFFERENCE", "SUM",
    "TRANSPOSE_CONV",
})  # fmt: skip
LARGEST_SOFTMAX = 16_000
CACHE_MIB = 8
"""About what its memory holds of weights; more are fetched at each run."""
INNERMOST = 3
"""So many dimensions may be larger than 1."""


@dataclass(frozen=True)
class OnCpu:
    """The first operator that would stay on the CPU."""

    index: int
    """Among the operators of the graph."""
    operator: TfliteOperator
    reason: str
    share: float
    """Of the multiplications and additions of the file, those from it on."""

    def sentence(self, num_operators: int) -> str:
        """What it means."""
        return (
            f"operator {self.index + 1} of {num_operators}, {self.operator.kind} '{self.operator.name}', would stay on "
            f"the CPU and all after it, {self.share:.0%} of the work: {self.reason}"
        )


def first_on_cpu(facts: TfliteFacts) -> OnCpu | None:
    """The first operator that the compiler does not take by its rules; None if it takes all of them."""
    operators = facts.main_operators
    for index, operator in enumerate(operators):
        if reason := why_on_cpu(operator):
            work = [num_products(each) for each in operators]
            share = sum(work[index:]) / sum(work) if sum(work) else 1 - index / len(operators)
            return OnCpu(index, operator, reason, share)
    return None


def why_on_cpu(operator: TfliteOperator) -> str:
    """Why an operator would stay on the CPU, in words; empty if it would not."""
    if operator.is_custom:
        return "it is no operator of TensorFlow Lite's own"
    if reason := next(_of_tensors(operator), ""):
        return reason
    if operator.kind in PLAIN or operator.kind in LATER:
        return ""
    if operator.kind not in CONDITIONS:
        return "the Edge TPU has no such operator"
    return CONDITIONS[operator.kind](operator)


def notes(facts: TfliteFacts, weights_mib: float) -> list[str]:
    """What is to be known of a file that is ready."""
    sentences = []
    if later := sorted({operator.kind for operator in facts.operators} & LATER):
        sentences.append(
            f"{', '.join(later)}: later editions of the Edge TPU's table have them, whose conditions are not checked "
            "here; compile the file to be sure."
        )
    if weights_mib > CACHE_MIB:
        sentences.append(
            f"The file has {weights_mib:.1f} MiB, the Edge TPU keeps about {CACHE_MIB} MiB of weights: the rest is "
            "fetched at each run."
        )
    return sentences


def _of_tensors(operator: TfliteOperator) -> Iterator[str]:
    for tensor in (*operator.inputs, *operator.outputs):
        if tensor is None:
            continue
        if DYNAMIC in tensor.shape:
            yield f"'{tensor.name}' has a dynamic shape"
        if tensor.type not in INTEGERS and not (tensor.constant and tensor.type == BIAS):
            yield f"'{tensor.name}' is {tensor.type}, INT8 is expected"
        if not tensor.constant and any(size > 1 for size in tensor.shape[:-INNERMOST]):
            yield f"'{tensor.name}' is {tensor.shape}: only its {INNERMOST} innermost dimensions may be larger than 1"


def num_products(operator: TfliteOperator) -> int:
    """Multiplications of a convolution or matrix product; of all else 0."""
    weights = operator.weights
    if weights is None or not operator.outputs:
        return 0
    values = prod(operator.outputs[0].shape)
    if operator.kind == "DEPTHWISE_CONV_2D":  # (1, H, W, C)
        return values * prod(weights.shape[1:3])
    return values * prod(weights.shape[1:])  # (C_out, H, W, C_in), and (C_out, C_in)


def _activation(operator: TfliteOperator) -> str:
    return "" if operator.activation in ("", "NONE") else f"it has the activation {operator.activation}, none is taken"


def _concatenation(operator: TfliteOperator) -> str:
    constants = [tensor for tensor in operator.inputs if tensor is not None and tensor.constant]
    if constants and len(operator.inputs) != 2:
        return f"it has a constant among {len(operator.inputs)} inputs, with one there may be 2"
    return _activation(operator)


def _dense(operator: TfliteOperator) -> str:
    weights = operator.weights
    if weights is None or not weights.constant:
        return "its weights are not constant"
    if len(weights.scales) != 1:
        return f"its weights have {len(weights.scales)} scales, one is expected"
    return _flat(operator)


def _flat(operator: TfliteOperator) -> str:
    shape = operator.outputs[0].shape
    return f"its output is {shape}, one dimension is expected" if any(size > 1 for size in shape[:-1]) else ""


def _mean(operator: TfliteOperator) -> str:
    data, axes = operator.data, operator.inputs[1].values if len(operator.inputs) > 1 and operator.inputs[1] else ()
    rank = 0 if data is None else len(data.shape)
    if not axes or any(axis % rank not in (1, 2) for axis in axes) or rank != 4:
        return f"it reduces axes {axes}, height and width are expected"
    return ""


def _pad(operator: TfliteOperator) -> str:
    """The amounts are (rank, 2)."""
    amounts = operator.inputs[1].values if len(operator.inputs) > 1 and operator.inputs[1] else ()
    padded = [index // 2 for index, amount in enumerate(amounts) if amount]
    return (
        ""
        if amounts and set(padded) <= {1, 2}
        else f"it pads axes {sorted(set(padded))}, height and width are expected"
    )


def _softmax(operator: TfliteOperator) -> str:
    size = operator.outputs[0].shape[-1:]
    if size and size[0] > LARGEST_SOFTMAX:
        return f"it has {size[0]} values, at most {LARGEST_SOFTMAX} are taken"
    return _flat(operator)


def _squeeze(operator: TfliteOperator) -> str:
    before, after = operator.data, operator.outputs[0].shape
    leading = before is not None and after == before.shape[len(before.shape) - len(after) :]
    return "" if leading else "it leaves out other dimensions than leading ones"


def _strided_slice(operator: TfliteOperator) -> str:
    steps: TfliteTensor | None = operator.inputs[3] if len(operator.inputs) > 3 else None
    return "" if steps is not None and set(steps.values) == {1} else "its strides are not all 1"


CONDITIONS: dict[str, Callable[[TfliteOperator], str]] = {
    "AVERAGE_POOL_2D": _activation,
    "CONCATENATION": _concatenation,
    "FULLY_CONNECTED": _dense,
    "MAX_POOL_2D": _activation,
    "MEAN": _mean,
    "PAD": _pad,
    "SOFTMAX": _softmax,
    "SQUEEZE": _squeeze,
    "STRIDED_SLICE": _strided_slice,
}
"""Operators that are taken on a condition: empty if it holds, else what does not."""
