"""The network in INT8 with the steps of its tensors as inputs: one session for any ranges."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from calibration.analysis.rounding import placing_for, rounded_from_onnx
from calibration.graph.editing import from_constants, opened
from calibration.graph.fold import join_bias
from calibration.precision import placement_onnxruntime, placement_tensorrt
from calibration.precision.placement import PlacementContext, PlacementOptions
from calibration.precision.scale import Quantization
from calibration.ranges.span import Span


class AdjustableNetwork:
    """The network with INT8 where a placement has it, rounded in float (``calibration.analysis.rounding``).

    What the format around INT8 rounds is left out: it is 30 dB below.
    """

    def __init__(self, model: onnx.ModelProto, options: PlacementOptions, spans: Mapping[str, Span]) -> None:
        """``spans`` are any ranges of the model: where INT8 is placed does not depend on them.

        Raises:
            DataError: a tensor that must be quantized has no range.
            ModelError: the result is not valid ONNX.
        """
        self._options = options
        self._graph = opened(model).graph
        if options.target == "onnxruntime":
            join_bias(self._graph, options.exclude)
        rounded = rounded_from_onnx(model, None, placing_for(spans, options))
        self.model, self._prefixes = rounded.model, tuple(rounded.steps)

    @property
    def num_tensors(self) -> int:
        """Tensors in INT8."""
        return len(self._prefixes)

    def steps(self, spans: Mapping[str, Span]) -> dict[str, Quantization]:
        """How each tensor is quantized with these ranges, by the prefix of its inputs; see ``steps_feed``."""
        place = placement_tensorrt.place if self._options.target == "tensorrt" else placement_onnxruntime.place
        context = PlacementContext(self._graph, spans, self._options, from_constants(self._graph))
        tensors = place(context).tensors
        return {prefix: tensor.quantization for prefix, tensor in zip(self._prefixes, tensors, strict=True)}
