"""Which layers' INT8 inputs bring the noise of the outputs: each rounded by itself, on a few samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from calibration.analysis.adjustable import AdjustableNetwork
from calibration.analysis.rounding import FloatFeed, steps_feed, unrounded_feed
from calibration.arrays import AnyArray, Floats
from calibration.data.batches import Samples
from calibration.graph.answers import answer_tensors
from calibration.graph.external_data import model_from_file
from calibration.graph.watched_outputs import watch_tensors
from calibration.precision.placement import PlacementOptions
from calibration.ranges.ranges import spans_from_ranges
from calibration.ranges.ranges_file import ranges_from_folder
from calibration.ranges.span import Span
from engines import module_of
from pipeline.artifact import LayerNoises, OnnxModel, Ranges
from pipeline.engine_runner import SIMULATOR, SampleRunner, Sessions, few, num_values_of_sample
from pipeline.machine.packages import distribution_versions
from pipeline.machine.progress import counting

FILE = "noise.json"
ROUNDED, EXACT = np.zeros((), np.float32), np.ones((), np.float32)
"""What switches are set to."""
MOST_SAMPLES = 8
"""Evenly spread; the order of layers differs little from sample to sample."""
MOST_VALUES = 1e9
"""Values that all runs together compute, unless a single sample takes more, as with networks of ImageNet size."""


@dataclass(frozen=True)
class InputNoise:
    """A tensor or a weight in INT8."""

    name: str
    """Of the tensor; of a weight, ``weight of`` its node."""
    nodes: tuple[str, ...]
    """Without which it is not in INT8; none where it always is."""
    share: float
    """Of the noise that all of them bring to the outputs, each rounded by itself: 0 to 1."""


@dataclass(frozen=True)
class PlacedWork:
    """What is found by running a network with INT8 where it is placed; the store can keep it."""

    options: PlacementOptions
    """Where INT8 is placed."""
    num_threads: int = 0
    """Of ONNX Runtime; 0: its default."""

    def versions(self, *_inputs: object) -> dict[str, str]:
        """Versions of the tools that the result depends on."""
        return distribution_versions("numpy", "onnx", "onnx-ir", "onnxruntime")

    def modules(self, *_inputs: object) -> tuple[str, ...]:
        """What is loaded by name."""
        return (module_of(SIMULATOR),)


@dataclass(frozen=True)
class MeasureLayers(PlacedWork):
    """Tensors and weights by their share of the noise.

    Each is rounded to INT8 while the others are not, and the noise that the outputs have then is counted relative to
    their signal. Outputs are read before a last Softmax or Sigmoid.
    """

    def __call__(self, out: Path, model: OnnxModel, ranges: Ranges, samples: Samples) -> LayerNoises:
        """Write ``out/noise.json``: an ``InputNoise`` each, the noisiest first; none where no output tells.

        Raises:
            DataError: a tensor that is placed has no range.
            ModelError, EngineError: the model cannot be rounded, or not run.
        """
        record = ranges_from_folder(ranges.path).read_for(self.options.target)
        proto, spans = model_from_file(model.path), spans_from_ranges(record)
        answers = answer_tensors(proto)
        network = AdjustableNetwork(watch_tensors(proto, answers), self.options, spans, inputs="switched")
        noises: list[InputNoise] = []
        if answers and network.num_tensors:
            with ExitStack() as stack:
                sessions = Sessions(stack, SIMULATOR, self.num_threads)
                num_values = num_values_of_sample(model.path, samples) * network.num_rounded
                feeds = list(few(samples, min(max(int(MOST_VALUES / num_values), 1), MOST_SAMPLES)))
                noises = _noises(network, spans, sessions.opened(network.model), (feeds, answers))
        (out / FILE).write_text(json.dumps([asdict(noise) for noise in noises], indent=1))
        return LayerNoises(out / FILE)


def noises_from_file(path: Path) -> list[InputNoise]:
    """What ``MeasureLayers`` wrote."""
    rows = json.loads(path.read_text())
    return [InputNoise(row["name"], tuple(row["nodes"]), row["share"]) for row in rows]


def noisiest_nodes(noises: Sequence[InputNoise], share: float) -> tuple[str, ...]:
    """Nodes whose inputs bring at least so large a share of the noise, those with the noisiest first."""
    names: dict[str, None] = {}
    for noise in noises:
        if sum(each.share for each in noises if each.nodes and names.keys() >= set(each.nodes)) >= share:
            break
        names |= dict.fromkeys(noise.nodes)
    return tuple(names)


Task: TypeAlias = tuple[Sequence[Mapping[str, AnyArray]], Sequence[str]]
"""Samples, and the names of the outputs to read."""


def _noises(network: AdjustableNetwork, spans: Mapping[str, Span], run: SampleRunner, task: Task) -> list[InputNoise]:
    (feeds, answers), placed = task, network.placed(spans)
    unrounded = unrounded_feed(placed) | dict.fromkeys(network.switches.values(), EXACT)
    changes: dict[str, tuple[tuple[str, ...], FloatFeed]] = {
        tensor.tensor: (network.nodes_rounding(tensor, spans), steps_feed({prefix: tensor.quantization}, None))
        for prefix, tensor in placed.items()
    }
    changes |= {f"weight of {node}": ((node,), {switch: ROUNDED}) for node, switch in network.switches.items()}

    def answered(feed: FloatFeed) -> list[list[Floats]]:
        outputs = [run({**sample, **feed}) for sample in feeds]
        return [[np.asarray(each[name], np.float64) for name in answers] for each in outputs]

    exact = answered(unrounded)
    powers: list[tuple[float, str, tuple[str, ...]]] = []
    with counting("noise of layers", len(changes)) as on_change:
        for name, (nodes, change) in changes.items():
            powers.append((sum(map(relative_noise, exact, answered(unrounded | change))), name, nodes))
            on_change(len(powers))
    total = sum(power for power, _, _ in powers)
    ordered = sorted(powers, key=lambda item: -item[0]) if total > 0 else []
    return [InputNoise(name, nodes, power / total) for power, name, nodes in ordered]


def relative_noise(expected: Sequence[Floats], actual: Sequence[Floats]) -> float:
    """Of a sample: relative to the signal of each output, summed; what is not finite is as loud as can be."""
    total = 0.0
    for exact, rounded in zip(expected, actual):
        with np.errstate(all="ignore"):
            noise, signal = float(np.square(rounded - exact).sum()), float(np.square(exact).sum())
        total += noise / signal if signal > 0 and np.isfinite(noise) else 1.0 if noise else 0.0
    return total
