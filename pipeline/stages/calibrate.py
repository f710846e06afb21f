"""Run representative samples through the FP32 model and find each tensor's range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx

from calibration.batches import Samples
from calibration.collect import collect, watch_tensors, watchable
from calibration.identity import tensor_digests
from calibration.observers import Method
from calibration.ranges import Origin, ranges_from_histograms, write_ranges
from engines import backend
from engines.contract import Array
from pipeline.artifact import OnnxModel, Ranges
from pipeline.option import check_bounds, option
from pipeline.progress import Bar
from pipeline.stages.infer import fixed_batch, padded, unpadded
from pipeline.store import distribution_versions


@dataclass(frozen=True)
class Calibrate:
    """Find the range of every tensor by running representative samples through the FP32 model.

    Streams the samples: memory does not grow with their number. One exact histogram of |x| per tensor, from which
    all methods are read; entropy is Migacz, "8-bit Inference with TensorRT" (GTC 2017), with TensorRT's threshold.
    """

    method: Method = option("entropy", "how the range is read from the histogram: entropy, minmax, percentile, mse")
    percentile: float = option(99.99, "share of |x| that `percentile` keeps, in percent")
    batch_size: int = option(8, "samples per run of the model; the result does not depend on it")
    runner: Literal["onnxruntime", "reference"] = option("onnxruntime", "what runs the FP32 model")
    num_threads: int = option(0, "threads of the runner; 0: its own choice")

    def __post_init__(self) -> None:
        """Check the bounds; ConfigError."""
        check_bounds(self, percentile=(1e-9, 100), batch_size=(1, math.inf), num_threads=(0, math.inf))

    def versions(self, *_inputs: object) -> dict[str, str]:
        """Versions of the tools that the result depends on."""
        return distribution_versions("numpy", "onnx", "onnxruntime")

    def __call__(self, out: Path, model: OnnxModel, samples: Samples) -> Ranges:
        """Write ``out/ranges.json`` and ``out/histograms.npz``.

        Raises:
            DataError: no samples, or samples that do not fit the model.
            Unavailable: the runner is not installed.
        """
        proto = onnx.load(model.path)
        watched = out / "watched.onnx"
        onnx.save(watch_tensors(proto, watchable(proto)), watched)
        bar = Bar("calibrate", samples.num_samples)
        try:
            with backend(self.runner).load(watched, num_threads=self.num_threads) as runner:
                fixed = fixed_batch(runner)

                def run(feed: Mapping[str, Array]) -> Mapping[str, Array]:
                    num_samples = len(next(iter(feed.values())))
                    found = runner.infer(padded(feed, fixed))
                    return {name: unpadded(array, num_samples, fixed) for name, array in found.items()}

                histograms = collect(run, samples.batches(fixed or self.batch_size), on_batch=bar.to)
        finally:
            bar.close()
            watched.unlink()
        origin = Origin(model.digest(), samples.digest(), samples.num_samples, self.versions(), tensor_digests(proto))
        ranges = ranges_from_histograms(histograms, self.method, self.percentile, origin)
        folder = out / "ranges"
        folder.mkdir()
        write_ranges(ranges, histograms, folder)
        return Ranges(folder)
