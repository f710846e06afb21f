"""The network in INT8 with the steps of its tensors as inputs: one session for any ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import onnx

from calibration.analysis.rounding import Int8Inputs, integer_feed, placing_for, rounded_from_onnx, steps_feed
from calibration.arrays import AnyArray
from calibration.graph.editing import opened
from calibration.precision.place import place
from calibration.precision.placement import PlacementOptions, QuantizedTensor
from calibration.precision.placement_onnxruntime import ABSORBED
from calibration.precision.scale import Quantization
from calibration.ranges.span import Span


class AdjustableNetwork:
    """The network with INT8 where a placement has it, rounded in float (``calibration.analysis.rounding``).

    What the format around INT8 rounds is left out: it is 30 dB below.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        options: PlacementOptions,
        spans: Mapping[str, Span],
        *,
        inputs: Int8Inputs = "drawn",
    ) -> None:
        """``spans`` are any ranges of the model: where INT8 is placed does not depend on them.

        ``inputs`` beside the network's own; where the ranges are all that changes, ``integers`` are the quickest: a run
        takes 0.6 to 0.7 of the time.

        Raises:
            DataError: a tensor that must be quantized has no range.
            ModelError: the result is not valid ONNX.
        """
        self._options = options
        self._graph = opened(model).graph
        rounded = rounded_from_onnx(model, None, placing_for(spans, options), inputs=inputs)
        self._feed = integer_feed if inputs == "integers" else partial(steps_feed, random=None)
        self.model, self._prefixes = rounded.model, tuple(rounded.steps)
        self.switches = rounded.switches
        """Node -> the input, (), with which its weight is rounded, 0, or exact, 1."""

    @property
    def num_tensors(self) -> int:
        """Tensors in INT8."""
        return len(self._prefixes)

    @property
    def num_rounded(self) -> int:
        """Tensors in INT8, and weights that can be switched."""
        return len(self._prefixes) + len(self.switches)

    def placed(self, spans: Mapping[str, Span]) -> dict[str, QuantizedTensor]:
        """The tensors in INT8 with these ranges, by the prefix of their inputs."""
        tensors = place(self._graph, spans, self._options).tensors
        return dict(zip(self._prefixes, tensors, strict=True))

    def steps(self, spans: Mapping[str, Span]) -> dict[str, Quantization]:
        """How each tensor is quantized with these ranges, by the prefix of its inputs; see ``steps_feed``."""
        return {prefix: tensor.quantization for prefix, tensor in self.placed(spans).items()}

    def feed(self, spans: Mapping[str, Span]) -> dict[str, AnyArray]:
        """The network's inputs, beside its own, with these ranges."""
        return dict(self._feed(self.steps(spans)))

    def nodes_rounding(self, tensor: QuantizedTensor, spans: Mapping[str, Span]) -> tuple[str, ...]:
        """The nodes without which a tensor is not placed in INT8; none if it is placed whatever is excluded.

        They are those that read it, and where the target rounds what a node makes, the nodes above it.
        """
        nodes = dict.fromkeys(reader.node for reader in tensor.readers)
        above = next((node for node in self._graph if tensor.tensor in {each.name for each in node.outputs}), None)
        while self._is_placed(tensor.tensor, tuple(nodes), spans):
            if above is None:
                return ()
            nodes |= {} if above.op_type in ABSORBED else {above.name or "": None}
            above = next((value.producer() for value in above.inputs if value is not None), None)
        return tuple(nodes)

    def _is_placed(self, tensor: str, without: tuple[str, ...], spans: Mapping[str, Span]) -> bool:
        options = replace(self._options, exclude=(*self._options.exclude, *without))
        return tensor in {each.tensor for each in place(self._graph, spans, options).tensors}
