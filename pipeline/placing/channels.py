"""The channels that depthwise convolutions read are scaled by what calibration samples have in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from calibration.arrays import AnyArray
from calibration.data.batches import Samples
from calibration.graph.external_data import model_from_file, save_model
from calibration.graph.watched_outputs import watch_tensors
from calibration.weights.channels import largest_by_channel, scale_channels, tensors_to_scale
from engines import module_of
from pipeline.artifact import OnnxModel
from pipeline.engine_runner import SIMULATOR, Sessions, few
from pipeline.machine.packages import distribution_versions
from pipeline.machine.progress import counting

MOST_SAMPLES = 64
"""Evenly spread, by which the largest value of a channel is known; a factor is a power of two and needs no more."""

SCALED = "export: channels that depthwise convolutions read are scaled to be alike, number of tensors: {num}"


@dataclass(frozen=True)
class ScaleChannels:
    """The same function in FP32, whose channels between convolutions are alike; the store can keep it."""

    num_threads: int = 0
    """Of ONNX Runtime; 0: its default."""

    def versions(self, *_inputs: object) -> dict[str, str]:
        """Versions of the tools that the result depends on."""
        return distribution_versions("numpy", "onnx", "onnx-ir", "onnxruntime")

    def modules(self, *_inputs: object) -> tuple[str, ...]:
        """What is loaded by name."""
        return (module_of(SIMULATOR),)

    def __call__(self, out: Path, model: OnnxModel, samples: Samples) -> OnnxModel:
        """Write ``out/model.onnx``, and ``notes.json`` with what was done.

        Raises:
            ModelError, EngineError: the model cannot be rewritten, or not run.
        """
        proto = model_from_file(model.path)
        names, num_scaled = tensors_to_scale(proto), 0
        if names:
            watched = watch_tensors(proto, names)
            num_samples = min(samples.num_samples, MOST_SAMPLES)
            with ExitStack() as stack, counting("channels", num_samples) as on_sample:
                run = Sessions(stack, SIMULATOR, self.num_threads).opened(watched)

                def answers() -> Iterator[dict[str, AnyArray]]:
                    for number, feed in enumerate(few(samples, num_samples)):
                        yield run(feed)
                        on_sample(number + 1)

                proto, num_scaled = scale_channels(proto, largest_by_channel(answers(), names))
        save_model(proto, out / "model.onnx")
        notes = [*model.notes(), *[SCALED.format(num=num_scaled)] * bool(num_scaled)]
        (out / "notes.json").write_text(json.dumps(notes))
        return OnnxModel(out / "model.onnx")
