"""Which nodes stay in float by time: what is tried, what counts as quicker, and what the record says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from calibration.precision.placement import PlacementOptions
from calibration.ranges.span import Span
from engines.contract import TensorSpec
from engines.cpu import cpu_name
from pipeline.artifact import OnnxModel, Ranges
from pipeline.latency.placement_times import (
    NUM_BLOCKS,
    TimePlacement,
    feed_for,
    is_quicker,
    measured_placement,
    race,
)
from pipeline.machine.packages import cpu_versions
from pipeline.placing.decided import timing_for
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.quantize import Quantize
from tests.pipeline.stages.networks import samples_for, save

NET = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 16, 6, 6] image) => (float[N, 3] scores) {
    [wide] features = Conv <pads = [1, 1, 1, 1]> (image, kernel) [relu] active = Relu (features)
    [mix] mixed = Conv (active, point) [sum] added = Add (mixed, active)
    [pool] pooled = GlobalAveragePool (added) [flat] flattened = Flatten (pooled)
    [dense] scores = MatMul (flattened, weight)
}"""
WEIGHTS = {"kernel": (16, 16, 3, 3), "point": (16, 16, 1, 1), "weight": (16, 3)}
OPTIONS = PlacementOptions("onnxruntime")


def made(tmp_path: Path) -> tuple[OnnxModel, Ranges]:
    net = save(NET, tmp_path / "net.onnx", **WEIGHTS)
    (tmp_path / "calibrated").mkdir()
    return net, Calibrate(method="minmax")(tmp_path / "calibrated", net, samples_for(net))


def test_the_record_has_the_machine_what_was_tried_and_the_times(tmp_path: Path) -> None:
    record = TimePlacement(OPTIONS)(tmp_path, *made(tmp_path)).read()
    assert record["made_on"] == cpu_versions()
    assert record["made_on"]["cpu"] == cpu_name()
    assert min(record["fp32_ms"], record["static_ms"], record["ms"]) > 0
    tried = [each["group"] for each in record["tried"]]
    assert tried[:5] == [
        "nothing",
        "all but products",
        "all but other convolutions",
        "all but pointwise convolutions",
        "all but MatMul",
    ]
    assert sum(each["is_float"] for each in record["tried"][:5]) == 1
    assert set(record["in_float"]) < {"wide", "mix", "sum", "pool", "dense"}, "a product stays in INT8"
    assert not record["why_not"]


def test_the_cpu_is_part_of_the_recipe() -> None:
    assert TimePlacement(OPTIONS).versions().items() >= cpu_versions().items()
    assert {"cpu", "cpu_flags", "onnxruntime"} <= cpu_versions().keys()


@pytest.mark.parametrize(
    ("change", "why"),
    [("size", "an input has a size that neither the model nor samples tell"), ("exclude", "no product is in INT8")],
)
def test_what_cannot_be_measured_has_a_reason(tmp_path: Path, change: str, why: str) -> None:
    net, _ = made(tmp_path)
    model = onnx.load(net.path)
    options = OPTIONS
    if change == "size":
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    else:
        options = PlacementOptions("onnxruntime", exclude=("Conv", "MatMul"))
    names = ("image", "features", "active", "mixed", "added", "pooled", "flattened", "scores")
    measured = measured_placement(model, dict.fromkeys(names, Span(1.0, -1.0, 1.0)), options)
    assert measured.why_not == why
    assert measured.in_float == ()
    if change == "size":
        spans = dict.fromkeys(names, Span(1.0, -1.0, 1.0))
        assert not measured_placement(model, spans, options, {"image": (1, 16, 6, 6)}).why_not, "samples tell it"


@pytest.mark.parametrize(
    ("new", "quicker"),
    [
        ([0.9] * 15, True),
        ([0.99] * 15, False),  # Clear, but no gain to speak of.
        ([0.9] * 12 + [1.2] * 3, True),
        ([0.9] * 11 + [1.2] * 4, False),  # Too often slower.
        ([1.1] * 15, False),
    ],
)
def test_quicker_is_clearly_so(new: list[float], quicker: bool) -> None:
    assert is_quicker(np.ones(15), np.array(new)) is quicker


class Counting:
    """A runner that notes when it runs."""

    inputs = outputs = ()

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    def infer(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        if not self.notes or self.notes[-1] != self.name:
            self.notes.append(self.name)
        return {}


def test_models_run_in_turns_and_each_begins_as_often() -> None:
    notes: list[str] = []
    runners: list[Any] = [Counting(name, notes) for name in "abc"]
    times = race(runners, {})
    assert times.shape == (3, NUM_BLOCKS)
    assert (times >= 0).all()
    assert "".join(notes).startswith("abcabc" + "bca" + "cab")  # Once to warm up, then three blocks.


def test_a_sample_has_the_type_and_the_range_of_each_input() -> None:
    specs = [TensorSpec("x", "float32", (-1, 3, 8)), TensorSpec("ids", "int64", (-1, 5)), TensorSpec("n", "bool", (2,))]
    feed = feed_for(specs, {"x": Span(7.0, 5.0, 7.0)}, {})
    assert feed is not None
    assert {name: (array.shape, array.dtype.name) for name, array in feed.items()} == {
        "x": ((1, 3, 8), "float32"),
        "ids": ((1, 5), "int64"),
        "n": ((2,), "bool"),
    }
    assert 5.0 <= feed["x"].min() < feed["x"].max() <= 7.0
    assert not feed["ids"].any()


def test_sizes_that_the_model_leaves_open_are_those_of_the_first_sample(tmp_path: Path) -> None:
    timed = Quantize(target="onnxruntime", placement="timed")
    fixed = save(NET, tmp_path / "net.onnx", **WEIGHTS)
    wide = save(NET.replace("float[N, 16, 6, 6]", "float[N, 16, H, W]"), tmp_path / "open.onnx", **WEIGHTS)
    samples = samples_for(fixed)
    for model, shapes in ((fixed, {}), (wide, {"image": (1, 16, 6, 6)})):
        measure = timing_for(timed, model, samples)
        assert measure is not None
        assert measure.shapes == shapes
