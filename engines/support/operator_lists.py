"""Which ONNX operators the parsers of TensorRT's generations read, for machines that have none of them.

The operators, data types and restrictions that ``docs/operators.md`` of https://github.com/onnx/onnx-tensorrt states at
its releases 8.5-GA, 8.6-GA, 10.0-GA, 10.1-GA and 10.15 (for each of these but the last, the operators are those that
its importer has), and which release added what by its ``docs/Changelog.md``. Where a parser is installed it is asked
instead: it knows its version, and what depends on shapes.
"""

from __future__ import annotations

from dataclasses import dataclass

from engines.errors import Unavailable

OF_8_5 = frozenset({
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "AveragePool",
    "BatchNormalization", "Cast", "Ceil", "Celu", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv",
    "ConvTranspose", "Cos", "Cosh", "CumSum", "DepthToSpace", "DequantizeLinear", "Div", "Dropout", "Einsum", "Elu",
    "Equal", "Erf", "Exp", "Expand", "EyeLike", "Flatten", "Floor", "GRU", "Gather", "GatherElements", "GatherND",
    "Gemm", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GridSample",
    "HardSigmoid", "HardSwish", "Identity", "If", "ImageScaler", "InstanceNormalization", "IsNaN", "LRN", "LSTM",
    "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "Loop", "LpNormalization", "LpPool", "MatMul", "Max",
    "MaxPool", "Mean", "MeanVarianceNormalization", "Min", "Mod", "Mul", "Neg", "NonMaxSuppression", "NonZero", "Not",
    "OneHot", "Or", "PRelu", "Pad", "ParametricSoftplus", "Pow", "QuantizeLinear", "RNN", "RandomNormal",
    "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Range", "Reciprocal", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "Relu", "Reshape", "Resize", "ReverseSequence", "RoiAlign", "Round", "ScaledTanh", "Scan",
    "Scatter", "ScatterElements", "ScatterND", "Selu", "Shape", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Size",
    "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tan",
    "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Upsample", "Where", "Xor",
})  # fmt: skip
ADDED: dict[tuple[int, int], tuple[str, ...]] = {
    (8, 6): ("GroupNormalization", "IsInf", "LayerNormalization"),
    (10, 0): ("CastLike", "Gelu", "Hardmax", "Mish"),
    (10, 1): ("DeformConv",),
    (10, 4): ("BlackmanWindow", "HammingWindow", "HannWindow"),
    (10, 5): ("STFT",),
    (10, 14): ("Attention",),
    (10, 15): ("RMSNormalization", "RotaryEmbedding", "TensorScatter"),
}
"""By the release that was the first to read them."""
OLDEST, NEWEST = (8, 5), (10, 15)
RELEASES = ((8, 5), (8, 6), *((10, minor) for minor in range(NEWEST[1] + 1)))
LARGEST_OPSETS = {(8, 5): 17, (8, 6): 17, (10, 0): 20, (10, 15): 24}
"""As its page says it; of the releases between 10.0 and 10.15 no page was seen."""


@dataclass(frozen=True)
class TensorRtRelease:
    """One release of TensorRT."""

    release: tuple[int, int]

    @property
    def name(self) -> str:
        """As it is written: ``8.6``."""
        return f"{self.release[0]}.{self.release[1]}"

    def is_from(self, major: int, minor: int) -> bool:
        """Whether it is that release or a later one."""
        return self.release >= (major, minor)

    @property
    def operators(self) -> frozenset[str]:
        """All that its parser reads."""
        return OF_8_5.union(*(names for release, names in ADDED.items() if self.release >= release))

    def first_with(self, operator: str) -> str:
        """The first release that reads an operator; empty where none does."""
        return next((f"{major}.{minor}" for (major, minor), names in ADDED.items() if operator in names), "")

    @property
    def largest_opset(self) -> int:
        """The largest opset that it reads for certain: that of the last release whose page says it."""
        return max(opset for release, opset in LARGEST_OPSETS.items() if release <= self.release)

    @property
    def refused_opset(self) -> int:
        """The smallest that it does not read for certain: a later release's page has one more."""
        if self.release in LARGEST_OPSETS:
            return self.largest_opset + 1
        return 1 + min(opset for release, opset in LARGEST_OPSETS.items() if release >= self.release)


def release_nearest(version: str) -> TensorRtRelease:
    """That of a version; of one that is not listed the last that is."""
    try:
        return generation_named(version)
    except Unavailable:
        return TensorRtRelease(NEWEST)


def generation_named(text: str) -> TensorRtRelease:
    """The release of a version such as ``8.6`` or ``10.3.0.30``.

    Raises:
        Unavailable: there is no list of it.
    """
    parts = text.split(".")
    if len(parts) >= 2 and all(part.isascii() and part.isdigit() for part in parts):
        release = (int(parts[0]), int(parts[1]))
        if release in RELEASES:
            return TensorRtRelease(release)
    raise Unavailable(
        f"TensorRT '{text}': the operators of 8.5, 8.6 and 10.0 to 10.{NEWEST[1]} are listed here; choose one of these "
        f"(of a later release, 10.{NEWEST[1]}), or ask a parser: `trtforge support --backend tensorrt`"
    )
