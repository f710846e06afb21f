"""The network in INT8 with the steps of its tensors as inputs: one session for any ranges."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from calibration.analysis.rounding import placing_for, rounded_from_onnx
from calibration.graph.editing import opened
from calibration.precision.place import place
from calibration.precision.placement import PlacementOptions
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
        rounded = rounded_from_onnx(model, None, placing_for(spans, options))
        self.model, self._prefixes = rounded.model, tuple(rounded.steps)

    @property
    def num_tensors(self) -> int:
        """Tensors in INT8."""
        return len(self._prefixes)

    def steps(self, spans: Mapping[str, Span]) -> dict[str, Quantization]:
        """How each tensor is quantized with these ranges, by the prefix of its inputs; see ``steps_feed``."""
        tensors = place(self._graph, spans, self._options).tensors
        return {prefix: tensor.quantization for prefix, tensor in zip(self._prefixes, tensors, strict=True)}
