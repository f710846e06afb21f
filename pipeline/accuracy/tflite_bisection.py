"""At which operator a `.tflite` file in reduced precision loses what the float file computes.

Both files and a third run side by side on LiteRT's own kernels, which can keep every tensor: the float file; the one
that is judged; and the float file quantized anew by the ranges that it takes on these very samples, which tells what
any such file loses there. Tensors are matched by name, those in integers restored by their scales.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from calibration.analysis.bisection import Power, Scale, Suspect
from calibration.analysis.sqnr import sqnr_db
from calibration.arrays import AnyArray
from calibration.histogram.collect import collect
from calibration.precision.scale import limits
from calibration.ranges.ranges import (
    AUTO,
    METHODS,
    Origin,
    RangesRecord,
    methods_of_tensors,
    ranges_from_histograms,
    spans_from_ranges,
)
from calibration.ranges.ranges_file import ranges_from_folder
from engines.backends import litert
from engines.litert.facts import BRIDGES, TfliteFacts, TfliteOperator, TfliteTensor
from engines.litert.quantizer import STORED, TfliteFormat, quantized
from engines.precision import precision_named
from pipeline.accuracy.bisection import BisectionResult, TfliteEvidence
from pipeline.artifact import Ranges
from pipeline.engine_runner import SampleFeeds, SampleRunner, few
from pipeline.errors import ConfigError

CLOSE = 1e-3
"""Scales that differ by no more than this share are equal."""
BITS = {"INT8": 8, "INT16": 16}
FIXED_SCALES = {
    "SOFTMAX": (1 / 256, 1 / 32768),
    "LOGISTIC": (1 / 256, 1 / 32768),
    "TANH": (1 / 128, 1 / 32768),
    "L2_NORMALIZATION": (1 / 128,),
    "LOG_SOFTMAX": (16 / 256,),
}
"""Those of what these make, by the format's specification, whatever was seen."""
SHARED = frozenset({"CONCATENATION", "PACK", "MAXIMUM", "MINIMUM", "SELECT_V2", "PADV2", "DYNAMIC_UPDATE_SLICE"})
"""What they read and make has one scale, the largest of them."""
TensorBounds = Mapping[str, tuple[float, float]]
"""Tensor of the float file -> least and largest value, 0 among them."""


def run_tflite_bisection(evidence: TfliteEvidence, num_samples: int) -> BisectionResult:
    """Run the files on so many samples, evenly spread, one at a time; memory is that of one sample's tensors.

    Raises:
        Unavailable: ai-edge-litert or ai-edge-quantizer is not installed.
        EngineError: LiteRT refuses one of the files.
        ConfigError: they have no tensor in common.
    """
    files = evidence.fp32.path, evidence.model.path
    float_facts, facts = (litert.tflite_facts(path) for path in files)
    stands_for = counterparts(float_facts, facts)
    if not stands_for:
        raise ConfigError(
            f"{files[1]}: has no tensor of {files[0]}, tensors are matched by name; give two files of one network"
        )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trtforge-")))
        runs = [_runner(stack, path) for path in files]
        seen: dict[str, tuple[float, float]] = {}
        num = 0
        for num, feed in enumerate(few(evidence.samples, num_samples), start=1):  # noqa: B007  # Counts them.
            for name, values in {**_floats(feed), **runs[0](feed)}.items():
                low, high = seen.get(name, (0.0, 0.0))
                seen[name] = min(low, float(values.min(initial=0.0))), max(high, float(values.max(initial=0.0)))
        sound_file = folder / f"sound{litert.SUFFIX}"
        sound_file.write_bytes(_quantized_anew(files[0], facts, seen))
        runs.append(_runner(stack, sound_file))
        powers = {name: Power() for name in stands_for}
        for feed in few(evidence.samples, num_samples):
            expected, actual, sound = ({**_floats(feed), **run(feed)} for run in runs)
            for name, other in stands_for.items():
                if name in actual and name in sound and other in expected:
                    powers[name].add(expected[other], actual[name], sound[name])
    suspects = list(_suspects(facts, stands_for, powers, (seen, bounds_of(evidence.ranges, facts))))
    suspects.sort(key=lambda suspect: (not suspect.is_misfit(), -suspect.drop_db))
    ratios = {
        name: sqnr_db(powers[tensor.name].signal, powers[tensor.name].noise)
        for name, tensor in facts.outputs
        if tensor.name in powers
    }
    return BisectionResult(tuple(suspects), ratios, num, is_integer=True, has_overrides=False)


def counterparts(float_facts: TfliteFacts, facts: TfliteFacts) -> dict[str, str]:
    """Tensor of a file -> the float file's that it stands for: of its name, or that which it was rounded from."""
    known = {tensor.name for _, tensor in float_facts.inputs}
    known |= {tensor.name for operator in float_facts.main_operators for tensor in operator.outputs}
    tensors = [*(t for _, t in facts.inputs), *(t for operator in facts.main_operators for t in operator.outputs)]
    stands_for = {tensor.name: tensor.name for tensor in tensors if tensor.name in known}
    bridges = [operator for operator in facts.main_operators if operator.kind in BRIDGES and operator.data is not None]
    for bridge in bridges:
        assert bridge.data is not None
        if bridge.data.name in stands_for:
            stands_for.setdefault(bridge.outputs[0].name, stands_for[bridge.data.name])
    for bridge in reversed(bridges):
        assert bridge.data is not None
        if bridge.outputs[0].name in stands_for and not bridge.data.constant:
            stands_for.setdefault(bridge.data.name, stands_for[bridge.outputs[0].name])
    return stands_for


def scale_mismatches(evidence: TfliteEvidence) -> Iterator[str]:
    """A sentence for each tensor whose scale is not that of its calibrated range, nor another's, nor fixed."""
    facts = litert.tflite_facts(evidence.model.path)
    stands_for = counterparts(litert.tflite_facts(evidence.fp32.path), facts)
    bounds = bounds_of(evidence.ranges, facts)
    for name, (operator, tensor) in _quantized_tensors(facts).items():
        expected = _expected(tensor, bounds.get(stands_for.get(name, "")))
        if expected is not None and not _fits(operator, tensor, facts, bounds, expected):
            yield (
                f"tensor '{stands_for[name]}' is quantized (operator '{operator.name}', {operator.kind}) with scale "
                f"{tensor.scales[0]:.6g}, {tensor.scales[0] / expected:.3g} times the {expected:.6g} of its calibrated "
                "range"
            )


def amaxes_on(evidence: TfliteEvidence, record: RangesRecord, indices: Sequence[int]) -> dict[str, float]:
    """Tensor of the float file -> its range on these of the samples, each read as in ``record``.

    None of ranges that came from elsewhere, which are not read from histograms.
    """
    if record.method not in (AUTO, *METHODS):
        return {}
    with SampleFeeds(litert.load_values(evidence.fp32.path, num_threads=0)) as runner:
        histograms = collect(SampleRunner(runner), evidence.samples.at(indices))
    seen = ranges_from_histograms(histograms, "entropy", record.percentile, Origin("", "", 0))
    return {name: tensor.amax for name, tensor in seen.read_by(AUTO, methods_of_tensors(record)).tensors.items()}


def bounds_of(ranges: Ranges | None, facts: TfliteFacts) -> TensorBounds:
    """What calibration found, as a file of that precision is written with it; empty where it is not known."""
    precision = precision_named(facts.precision())
    if ranges is None or not precision.is_static:
        return {}
    record = ranges_from_folder(ranges.path)
    if precision.has_many_levels:
        record = record.unclipped()
    return {name: limits(span) for name, span in spans_from_ranges(record).items()}


def _quantized_anew(model: Path, facts: TfliteFacts, seen: TensorBounds) -> bytes:
    """The float file in the precision of the judged one, by what was seen."""
    precision = precision_named(facts.precision())
    weights = [each for each in map(facts.file_weights, facts.products) if each is not None]
    channels = max((len(each.scales) for each in weights), default=1)
    bits, in_float = 4 if facts.num_4_bits() else 8, tuple(sorted(facts.meant_in_float))
    form = TfliteFormat(
        precision,
        per_channel=channels > 1,
        weight_bits=bits,
        in_float=in_float,
        rounds_all_data=any(each.kind == STORED for each in facts.with_integer_weights()),
    )
    return quantized(model, form, seen if precision.is_static else {})


def _runner(stack: ExitStack, path: Path) -> SampleRunner:
    return SampleRunner(stack.enter_context(SampleFeeds(litert.load_values(path, num_threads=0))))


def _floats(feed: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    return {name: array for name, array in feed.items() if array.dtype.kind == "f"}


def _suspects(
    facts: TfliteFacts,
    stands_for: Mapping[str, str],
    powers: Mapping[str, Power],
    bounds: tuple[TensorBounds, TensorBounds],
) -> Iterator[Suspect]:
    """Each operator whose result could be compared; ``bounds``: what was seen, and what calibration found."""
    for operator in facts.main_operators:
        sources = [
            powers[t.name] for t in operator.inputs if t is not None and t.name in powers and powers[t.name].signal
        ]
        for tensor in operator.outputs:
            power = powers.get(tensor.name)
            if power is None or not power.signal or not sources:
                continue
            before = max(source.gap_db() for source in sources)
            yield Suspect(
                node=operator.name,
                operator=operator.kind,
                tensor=stands_for[tensor.name],
                sqnr_in_db=min(sqnr_db(source.signal, source.noise) for source in sources),
                sqnr_out_db=sqnr_db(power.signal, power.noise),
                sound_db=sqnr_db(power.signal, power.sound),
                drop_db=0.0 if math.isinf(before) else power.gap_db() - before,
                scale=_scale(operator, tensor, facts, stands_for[tensor.name], bounds),
            )


def _scale(
    operator: TfliteOperator,
    tensor: TfliteTensor,
    facts: TfliteFacts,
    name: str,
    bounds: tuple[TensorBounds, TensorBounds],
) -> Scale | None:
    if not _is_quantized(tensor):
        return None
    seen, calibrated = bounds
    low, high = seen.get(name, (0.0, 0.0))
    levels = np.iinfo(tensor.type.lower())
    zero = (tensor.zero_points or (0,))[0]
    expected = _expected(tensor, calibrated.get(name))
    amax = None if expected is None else max(map(abs, calibrated[name]))
    fits = expected is None or _fits(operator, tensor, facts, calibrated, expected)
    least, most = ((int(limit) - zero) * tensor.scales[0] for limit in (levels.min, levels.max))
    return Scale(tensor.scales[0], least, most, low, high, amax, fits)


def _expected(tensor: TfliteTensor, interval: tuple[float, float] | None) -> float | None:
    """The scale of a range for a tensor in integers: of 8 bits over all of it, of 16 about 0."""
    if interval is None:
        return None
    low, high = interval
    scale = (high - low) / 255 if BITS[tensor.type] == 8 else max(-low, high) / 32767
    return scale or None


def _fits(
    operator: TfliteOperator, tensor: TfliteTensor, facts: TfliteFacts, bounds: TensorBounds, expected: float
) -> bool:
    """Whether the scale is that of the range, or has a reason to be another."""
    scale = tensor.scales[0]
    if math.isclose(scale, expected, rel_tol=CLOSE):
        return True
    readers = [
        each for each in facts.main_operators if any(t is not None and t.name == tensor.name for t in each.inputs)
    ]
    if any(each.kind in SHARED for each in (operator, *readers)):
        return scale >= expected * (1 - CLOSE)
    others = [_expected(tensor, interval) for interval in bounds.values()]
    others += FIXED_SCALES.get(operator.kind, ())
    return any(other is not None and math.isclose(scale, other, rel_tol=CLOSE) for other in others)


def _quantized_tensors(facts: TfliteFacts) -> dict[str, tuple[TfliteOperator, TfliteTensor]]:
    """Those that operators make in integers, with who makes them."""
    return {
        tensor.name: (operator, tensor)
        for operator in facts.main_operators
        for tensor in operator.outputs
        if _is_quantized(tensor)
    }


def _is_quantized(tensor: TfliteTensor) -> bool:
    """Whether it is data in integers with a scale."""
    return tensor.type in BITS and len(tensor.scales) == 1
