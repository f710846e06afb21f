"""Weights of products rounded by what they are multiplied by on calibration samples (``calibration.weights.gptq``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.data.batches import Samples
from calibration.graph.editing import closed, opened
from calibration.graph.external_data import model_from_file
from calibration.graph.watched_outputs import watch_tensors
from calibration.precision.place import place
from calibration.ranges.moments import moments_of
from calibration.ranges.ranges import spans_from_ranges
from calibration.ranges.ranges_file import ranges_from_folder
from calibration.weights.gptq import RoundedProduct, parts_of, products_of, rounded_product
from calibration.weights.one_thread import one_blas_thread
from pipeline.accuracy.layer_noise import PlacedWork
from pipeline.artifact import OnnxModel, Ranges, WeightCodes
from pipeline.engine_runner import SIMULATOR, Sessions, few
from pipeline.machine.progress import counting

MOST_SAMPLES = 128
"""Evenly spread."""
MOST_MOMENTS = 2**26
"""Numbers of 8 bytes that are held at once; where a network has more, the samples are run again for the others."""


@dataclass(frozen=True)
class RoundWeights(PlacedWork):
    """Find the codes of weights."""

    @one_blas_thread()
    def __call__(self, out: Path, model: OnnxModel, ranges: Ranges, samples: Samples) -> WeightCodes:
        """Write ``out/codes``: ``codes.npz``, and ``rounding.json`` with what it gives.

        Raises:
            DataError: a tensor that is placed has no range.
            ModelError, EngineError: the model cannot be quantized, or not run.
        """
        spans = spans_from_ranges(ranges_from_folder(ranges.path).read_for(self.options.target))
        graph = opened(model_from_file(model.path))
        placement = place(graph.graph, spans, self.options)
        products = products_of(graph.graph, placement)
        inputs = {value.name for value in graph.graph.inputs}
        num_samples = min(samples.num_samples, MOST_SAMPLES)
        rounded: dict[str, RoundedProduct] = {}
        with counting("rounding", len(products)) as on_product:
            for part in parts_of(products, MOST_MOMENTS):
                windows = dict.fromkeys(product.window for product in part)
                names = dict.fromkeys(window.tensor for window in windows if window.tensor not in inputs)
                watched = watch_tensors(closed(graph), names)
                with ExitStack() as stack:
                    run = Sessions(stack, SIMULATOR, self.num_threads).opened(watched)
                    moments = moments_of(run, few(samples, num_samples), windows)
                for product in part:
                    if product.window in moments:
                        rounded[product.weight.reader.node] = rounded_product(product, moments[product.window])
                    on_product(len(rounded))
        operators = {node.name or "": node.op_type for node in graph.graph}
        weights = dict.fromkeys(weight.reader.node for weight in placement.weights)
        others = {name: operators[name] for name in weights if name not in rounded}
        return _written(out / "codes", rounded, num_samples, others)


def _written(
    folder: Path, rounded: dict[str, RoundedProduct], num_samples: int, others: Mapping[str, str]
) -> WeightCodes:
    """``others``: operators of the products that are not rounded so, by name."""
    folder.mkdir()
    arrays: dict[str, Any] = {}
    for number, product in enumerate(rounded.values()):
        arrays[f"codes_{number}"] = product.chosen.codes.astype(np.int8)
        arrays[f"scales_{number}"] = product.chosen.scales
    np.savez(folder / "codes.npz", **arrays)
    rows = [
        {"node": name, "error": product.error, "error_of_nearest": product.error_of_nearest}
        for name, product in rounded.items()
    ]
    left = [{"node": name, "operator": operator} for name, operator in others.items()]
    num_products = len(rows) + len(left)
    record = {"num_samples": num_samples, "num_products": num_products, "products": rows, "others": left}
    (folder / "rounding.json").write_text(json.dumps(record, indent=1, allow_nan=False), encoding="utf-8")
    return WeightCodes(folder)
