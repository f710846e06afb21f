"""Which layers cost the metric most: each left out of INT8 by itself, on labelled calibration samples.

As Intel's "accuracy-aware quantization" and NNCF's accuracy control rank operations. Few samples tell few layers apart,
so that layers with the same metric stay in the order of the noise that they bring (``pipeline.accuracy.layer_noise``).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from calibration.graph.external_data import model_from_file
from calibration.ranges.ranges import spans_from_ranges
from calibration.ranges.ranges_file import ranges_from_folder
from pipeline.accuracy.layer_noise import FILE, InputNoise, PlacedWork, noises_from_file
from pipeline.accuracy.mixed_precision import HeldBound, MixPrecision, MixtureJudge, ranked
from pipeline.artifact import LayerNoises, OnnxModel, Ranges
from pipeline.machine.progress import counting

MOST_RANKED = 64
"""The noisiest layers are tried, so many at most; others follow in the order of their noise."""


@dataclass(frozen=True)
class MeasureSensitivity(PlacedWork):
    """Layers by what the metric gains without them in INT8."""

    def __call__(
        self, out: Path, model: OnnxModel, ranges: Ranges, noises: LayerNoises, held: HeldBound
    ) -> LayerNoises:
        """Write ``out/noise.json`` as ``MeasureLayers`` does; a share is of all that the metric gains, layer by layer.

        Where all in INT8 holds the bound, there is nothing to rank, and it is the noises that came.

        Raises:
            ConfigError, DataError, ModelError, EngineError: as of ``MixPrecision``.
        """
        record = ranges_from_folder(ranges.path).read_for(self.options.target)
        stage = MixPrecision(self.options, self.num_threads)
        judge = MixtureJudge(stage, model_from_file(model.path), spans_from_ranges(record), held)
        by_noise = noises_from_file(noises.path)
        rows = by_noise if judge.holds(()) else _by_metric(judge, by_noise)
        (out / FILE).write_text(json.dumps([asdict(row) for row in rows], indent=1))
        return LayerNoises(out / FILE)


def _by_metric(judge: MixtureJudge, noises: list[InputNoise]) -> list[InputNoise]:
    """Groups of nodes, those first without which the metric drops least."""
    names = {node: noise.name for noise in reversed(noises) for node in noise.nodes}
    groups, drop = ranked(noises), judge.point(()).metric_drop or 0.0
    gains: list[float] = []
    with counting("sensitivity of layers", min(len(groups), MOST_RANKED)) as on_group:
        for group in groups[:MOST_RANKED]:
            gains.append(drop - (judge.point(group).metric_drop or 0.0))
            on_group(len(gains))
    order = sorted(range(len(gains)), key=lambda index: -gains[index])
    total = sum(max(gain, 0.0) for gain in gains) or 1.0
    tried = [InputNoise(names[groups[i][0]], groups[i], max(gains[i], 0.0) / total) for i in order]
    return tried + [InputNoise(names[group[0]], group, 0.0) for group in groups[MOST_RANKED:]]
