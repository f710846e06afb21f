"""Where a model in reduced precision loses what the FP32 model computes: every node's SQNR, in a stream of samples.

Three models run side by side, with the tensors that they share as outputs: FP32; the candidate; and FP32 with a sound
rounding at the places where the candidate rounds (``calibration.analysis.rounding``, by the values seen), which tells
what any candidate loses there. Tensors are matched by name; what stands behind a Q, DQ or Cast is held to the tensor in
front of it. At each tensor the candidate's signal to quantization noise ratio is so much below the sound one's, its
gap; a node behind which the gap is far larger than before it is suspect. Noise that a network amplifies, as a Softmax
does, it amplifies in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir

from calibration.analysis.found_scales import found_scales_in, with_found_scales
from calibration.analysis.rounding import FP16, FP32, Rounded, rounded_from_onnx
from calibration.analysis.scale_check import quantization, scale_mismatches
from calibration.analysis.sqnr import sqnr_db
from calibration.arrays import AnyArray
from calibration.graph.watched_outputs import watchable
from calibration.histogram.collect import RunModel
from calibration.precision.placement import (
    PRODUCTS,
    NodeInput,
    QdqPlacement,
    QuantizedTensor,
    QuantizedWeight,
    is_float_weight,
    readers_of,
    span_in_model,
    weight_axis,
)
from calibration.precision.scale import Quantization, asymmetric, symmetric
from calibration.ranges.span import Span

PASSING = ("QuantizeLinear", "DequantizeLinear", "Cast")
"""Their output stands for their first input."""
CLEAR_DB = 6.0
"""A gap that grows by less, one bit, is within what rounding does by chance."""


@dataclass(frozen=True)
class Scale:
    """How a tensor is rounded to 8 bits, against what was seen of it in the FP32 model."""

    scale: float
    low: float
    high: float
    """The least and the largest number that it holds."""
    min: float
    max: float
    """The values seen."""
    amax: float | None
    """As calibration found it; None where that is not known."""
    fits: bool
    """False where the scale is not what calibration says."""

    def sentence(self) -> str:
        """Both, in words."""
        sentence = f"its scale {self.scale:.4g} holds {self.low:.4g} to {self.high:.4g}, "
        sentence += f"and {self.min:.4g} to {self.max:.4g} was seen"
        if self.amax is None:
            return sentence
        return f"{sentence}; calibration found ±{self.amax:.4g}{'' if self.fits else ', which is not its scale'}"


@dataclass(frozen=True)
class Suspect:
    """One node of the candidate (a Q and its DQ count as one), and what it costs."""

    node: str
    operator: str
    tensor: str
    """FP32's name for what the node computes."""
    sqnr_in_db: float
    """Of the worst of its inputs; inf where they are equal to FP32's."""
    sqnr_out_db: float
    sound_db: float
    """What a sound rounding leaves behind this node."""
    drop_db: float
    """By how much the gap to the sound rounding grows in this node; of a Q and DQ, if that is more, how far the noise
    of this one rounding is above the sound one's."""
    scale: Scale | None
    """None for a node that is no Q and DQ, or has more than one scale."""

    def is_clear(self) -> bool:
        """Whether the scale is wrong, or the drop more than chance."""
        return self.is_misfit() or self.drop_db >= CLEAR_DB

    def is_misfit(self) -> bool:
        """Whether it rounds by another scale than calibration found."""
        return self.scale is not None and not self.scale.fits

    def sentence(self) -> str:
        """Which node, and the SQNR before and after."""
        rounds = "DequantizeLinear" in self.operator
        what = f"the rounding of '{self.tensor}'" if rounds else f"'{self.tensor}'"
        sentence = f"node '{self.node}' ({self.operator}), {what}: SQNR {_db(self.sqnr_in_db)} before and "
        sentence += f"{_db(self.sqnr_out_db)} after it, "
        sentence += f"{self.drop_db:.1f} dB noisier than correct rounding" if self.drop_db else "as correct rounding"
        return f"{sentence}; {self.scale.sentence()}" if self.scale else sentence


@dataclass
class Power:
    """Sums of squares over the samples of one tensor: FP32's values, and what two others differ from them."""

    signal: float = 0.0
    noise: float = 0.0
    sound: float = 0.0
    """The noise of the sound rounding."""
    own_noise: float = 0.0
    own_sound: float = 0.0
    """Of a Q and DQ: what it alone adds, to what comes in."""

    def add(self, expected: AnyArray, actual: AnyArray, sound: AnyArray) -> None:
        """The values of one batch."""
        if not expected.size == actual.size == sound.size:
            return
        self.signal += float(np.square(expected.astype(np.float64)).sum())
        self.noise += _squares(actual, expected)
        self.sound += _squares(sound, expected)

    def gap_db(self) -> float:
        """How far the candidate is below the sound rounding; 0 where it is not."""
        return _above_db(self.noise, self.sound)

    def own_gap_db(self) -> float:
        """The same of this one rounding."""
        return _above_db(self.own_noise, self.own_sound)


@dataclass
class Bisection:
    """Two models to run side by side with a third, and the sums so far; see the module.

    ``reference`` is FP32, ``candidate`` the same network in another precision; both whole. Call ``see`` on every batch,
    then ``rounded``, then ``add`` on every batch.
    """

    reference: onnx.ModelProto
    candidate: onnx.ModelProto
    spans: dict[str, Span] = field(default_factory=dict)
    """By tensor of the reference, as far as they were seen."""
    powers: dict[str, Power] = field(default_factory=dict)
    """By tensor of the candidate."""

    def __post_init__(self) -> None:
        """Find what can be compared."""
        self._inputs = {value.name for value in self.reference.graph.input}
        all_counterparts = counterparts(self.reference, self.candidate)
        floats = {*watchable(self.candidate, (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16))}
        self.counterparts = {name: other for name, other in all_counterparts.items() if name in floats}
        self._producers = {name: node for node in self.candidate.graph.node for name in node.output if name}
        self._arrays = {tensor.name: tensor for tensor in self.candidate.graph.initializer}
        self.is_integer = any(node.op_type == "DequantizeLinear" for node in self.candidate.graph.node)
        self._found_scales = found_scales_in(self.reference, self.candidate)
        self._makers = {name: node for node in self.reference.graph.node for name in node.output if name}

    @property
    def is_dynamic(self) -> bool:
        """Whether the candidate finds scales at each run, or has INT8 weights that are restored."""
        return bool(self._found_scales.weights)

    def watched(self) -> tuple[list[str], list[str]]:
        """The tensors that the reference and the candidate must hand out."""
        theirs = dict.fromkeys(name for name in self.counterparts.values() if name not in self._inputs)
        return list(theirs), [name for name in self.counterparts if name not in self._inputs]

    def see(self, feed: Mapping[str, AnyArray], run: RunModel) -> None:
        """Note the values that FP32 takes on one batch."""
        for name, values in {**feed, **run(feed)}.items():
            if values.size and values.dtype.kind == "f":
                low, high = float(values.min()), float(values.max())
                old = self.spans.get(name, Span(0.0, math.inf, -math.inf))
                low, high = min(low, old.min), max(high, old.max)
                self.spans[name] = Span(max(abs(low), abs(high)), low, high)

    def rounded(self) -> Rounded:
        """The FP32 model with a sound rounding where the candidate rounds; ``sound`` has what it must hand out."""
        if self.is_dynamic:
            self._rounded = with_found_scales(self.reference, self._found_scales)
            return self._rounded
        self._rounded = rounded_from_onnx(self.reference, FP32 if self.is_integer else FP16, self._placed)
        return self._rounded

    def sound(self) -> list[str]:
        """The tensors that the rounded model must hand out."""
        names = dict.fromkeys(self._sound(name) for name in self.counterparts)
        return [name for name in names if name not in self._inputs]

    def add(
        self, feed: Mapping[str, AnyArray], runs: tuple[RunModel, RunModel, RunModel], random: np.random.Generator
    ) -> None:
        """Run one batch through the reference, the candidate and the rounded model, which hand out what was asked."""
        theirs, ours = ({**feed, **run(feed)} for run in runs[:2])
        sound = {**feed, **runs[2]({**feed, **self._rounded.draw(random)})}
        for name, other in self.counterparts.items():
            power = self.powers.setdefault(name, Power())
            power.add(theirs[other], ours[name], sound[self._sound(name)])
            node = self._producers.get(name)
            if node is not None and node.op_type == "DequantizeLinear":
                for before in self._sources(node):
                    if self.counterparts[before] != self.counterparts[name]:
                        continue  # Of what its QuantizeLinear computes too.
                    power.own_noise += _squares(ours[name], ours[before])
                    power.own_sound += _squares(sound[self._sound(name)], sound[self._sound(before)])

    def sqnrs_db(self) -> dict[str, float]:
        """Output of the candidate -> its SQNR."""
        names = (value.name for value in self.candidate.graph.output)
        return {
            name: sqnr_db(self.powers[name].signal, self.powers[name].noise) for name in names if name in self.powers
        }

    def suspects(self, calibrated: Mapping[str, Span]) -> list[Suspect]:
        """Every node that could be compared: wrong scales first, then those with the largest drop.

        ``calibrated``: ranges of tensors, as far as they are known.
        """
        self._calibrated, suspects = calibrated, []
        self._odd = {mismatch.tensor for mismatch in scale_mismatches(self.candidate, calibrated)}
        for node in self.candidate.graph.node:
            for name in node.output:
                if name in self.powers and (sources := list(self._sources(node))):
                    suspects.append(self._suspect(node, name, sources))
        return sorted(suspects, key=lambda suspect: (not suspect.is_misfit(), -suspect.drop_db))

    def _sound(self, name: str) -> str:
        """The rounded model's tensor for one of the candidate's."""
        other = self.counterparts[name]
        if not self.is_integer:
            return self._rounded.cut[other]
        node = self._producers.get(name)
        is_placed = node is not None and node.op_type == "DequantizeLinear" and other in self._rounded.placed
        return (self._rounded.placed if is_placed else self._rounded.exact)[other]

    def _sources(self, node: onnx.NodeProto) -> Iterator[str]:
        """The compared tensors that a node computes from; what lies between is passed over."""
        for name in node.input:
            if name in self.counterparts:
                yield name
            elif name in self._producers:
                yield from self._sources(self._producers[name])

    def _suspect(self, node: onnx.NodeProto, name: str, sources: Iterable[str]) -> Suspect:
        power, before = self.powers[name], [self.powers[source] for source in sources]
        gap, old = power.gap_db(), max(source_power.gap_db() for source_power in before)
        rounds = node.op_type == "DequantizeLinear"
        drop = 0.0 if math.isinf(old) else gap - old
        if rounds and old < CLEAR_DB:  # Beyond that it is no wonder that values leave their range.
            drop = max(drop, power.own_gap_db())
        maker = self._makers.get(self.counterparts[name], node) if self.is_dynamic else node
        return Suspect(
            node=maker.name or f"{maker.op_type}_{name}",
            operator="QuantizeLinear and DequantizeLinear" if rounds else maker.op_type,
            tensor=self.counterparts[name],
            sqnr_in_db=min(sqnr_db(source_power.signal, source_power.noise) for source_power in before),
            sqnr_out_db=sqnr_db(power.signal, power.noise),
            sound_db=sqnr_db(power.signal, power.sound),
            drop_db=drop,
            scale=self._scale(node) if rounds else None,
        )

    def _scale(self, node: onnx.NodeProto) -> Scale | None:
        tensor, how = self.counterparts[node.output[0]], quantization(node, self._arrays)
        if how is None:
            return None
        limits, seen = np.iinfo(how.dtype), self.spans[tensor]
        low, high = ((int(limit) - how.zero_point) * how.scale for limit in (limits.min, limits.max))
        span = self._calibrated.get(tensor)
        amax = None if span is None else span.amax
        return Scale(how.scale, low, high, seen.min, seen.max, amax, fits=tensor not in self._odd)

    def _placed(self, graph: ir.Graph) -> QdqPlacement:
        """INT8 where the candidate has it, by the values seen."""
        values = {value.name: value for value in graph.inputs}
        values |= {value.name: value for node in graph for value in node.outputs}
        tensors: dict[str, QuantizedTensor] = {}
        weights = []
        for node in self.candidate.graph.node:
            if node.op_type == "DequantizeLinear" and node.output[0] in self.counterparts:
                name = self.counterparts[node.output[0]]
                how, span = quantization(node, self._arrays), self.spans.get(name)
                if how is None or span is None or name not in values:
                    continue
                span = span_in_model(values[name].producer(), span)
                one_sided = how.dtype == "uint8" or how.zero_point != 0
                best = asymmetric(span, how.dtype) if one_sided else symmetric(span)
                if best is not None:
                    value = values[name]
                    is_output = value.is_graph_output() and not value.is_graph_input()
                    tensors[name] = QuantizedTensor(name, best, readers_of(value), is_output)
            elif node.op_type in PRODUCTS and node.output[0] in self.counterparts and self._has_rounded_weight(node):
                producer = values[self.counterparts[node.output[0]]].producer()
                if producer is not None and producer.op_type in PRODUCTS and is_float_weight(producer.inputs[1]):
                    weight = producer.inputs[1].name or "" if producer.inputs[1] is not None else ""
                    reader = NodeInput(producer.name or "", 1)
                    weights.append(QuantizedWeight(weight, reader, weight_axis(producer), "int8"))
        return QdqPlacement("tensorrt", tuple(tensors.values()), tuple(weights), (), (), ())

    def _has_rounded_weight(self, node: onnx.NodeProto) -> bool:
        maker = self._producers.get(node.input[1])
        return maker is not None and maker.op_type == "DequantizeLinear" and node.input[1] not in self.counterparts


def counterparts(reference: onnx.ModelProto, candidate: onnx.ModelProto) -> dict[str, str]:
    """Tensor of the candidate -> the FP32 tensor of the reference that it stands for."""
    known = {*watchable(reference)}
    reference_of = {value.name: value.name for value in candidate.graph.input if value.name in known}
    reference_of |= {name: name for node in candidate.graph.node for name in node.output if name in known}
    arrays = {tensor.name: tensor for tensor in candidate.graph.initializer}
    steps = {n.input[0]: quantization(n, arrays) for n in candidate.graph.node if n.op_type == "DequantizeLinear"}
    passing = [node for node in candidate.graph.node if node.op_type in PASSING and not _computes(node, arrays, steps)]
    for node in passing:
        if node.input[0] in reference_of:
            reference_of.setdefault(node.output[0], reference_of[node.input[0]])
    for node in reversed(passing):
        if node.output[0] in reference_of:
            reference_of.setdefault(node.input[0], reference_of[node.output[0]])
    return {name: other for name, other in reference_of.items() if name not in arrays}


def _computes(
    node: onnx.NodeProto, arrays: Mapping[str, onnx.TensorProto], steps: Mapping[str, Quantization | None]
) -> bool:
    """Whether a QuantizeLinear has another scale or zero point than the DequantizeLinear behind it."""
    if node.op_type != "QuantizeLinear" or node.output[0] not in steps:
        return False
    return quantization(node, arrays) != steps[node.output[0]]


def _above_db(noise: float, sound: float) -> float:
    """How far one noise is above another, dB; 0 where it is not."""
    if noise <= sound:
        return 0.0
    return math.inf if sound == 0.0 or math.isinf(noise) else 10 * math.log10(noise / sound)


def _squares(actual: AnyArray, expected: AnyArray) -> float:
    """Sum of squares of the difference; infinite if it is no number."""
    with np.errstate(all="ignore"):
        total = float(np.square(actual.astype(np.float64).ravel() - expected.astype(np.float64).ravel()).sum())
    return total if math.isfinite(total) else math.inf


def _db(ratio_db: float) -> str:
    if math.isinf(ratio_db):
        return "no noise" if ratio_db > 0 else "nothing left of it"
    return f"{ratio_db:.1f} dB"
