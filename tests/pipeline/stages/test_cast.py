"""The stage `cast`: what stays FP32, and ranges of another model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.parser
import pytest

from pipeline.artifact import OnnxModel, Ranges
from pipeline.errors import DataError
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.cast import Cast, KeptNodes
from pipeline.stages.quantize import Quantize
from tests.pipeline.stages.networks import Out, samples_for, save, types

WIDE = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 4] x) => (float[N, 4] y) <float k = {30000.0}>
{
    [grow] large = Mul (x, k)
    [shrink] back = Div (large, k)
    [tame] y = Relu (back)
}
"""


def test_nodes_that_leave_the_range_of_fp16_stay_fp32_and_are_named(tmp_path: Path, out: Out) -> None:
    model = save(WIDE, tmp_path / "net.onnx")
    ranges = Calibrate(method="minmax")(out(), model, samples_for(model, scale=3.0))
    made = Cast()(out(), model, ranges)
    found = types(onnx.load(made.path))
    assert found["large"] == onnx.TensorProto.FLOAT
    assert found["y"] == onnx.TensorProto.FLOAT, "outputs stay FP32"
    assert onnx.TensorProto.FLOAT16 in found.values(), "the rest is FP16"
    assert [note for note in made.notes() if note.startswith("node 'grow' stays FP32: ")]
    assert not [note for note in made.notes() if "'tame'" in note]


def test_within_the_range_of_fp16_nothing_stays(tmp_path: Path, out: Out) -> None:
    model = save(WIDE.replace("30000.0", "3.0"), tmp_path / "net.onnx")
    made = Cast()(out(), model, Calibrate(method="minmax")(out(), model, samples_for(model)))
    assert types(onnx.load(made.path))["large"] == onnx.TensorProto.FLOAT16
    assert made.notes() == []


def test_a_user_keeps_a_node_in_fp32(tmp_path: Path, out: Out) -> None:
    model = save(WIDE.replace("30000.0", "3.0"), tmp_path / "net.onnx")
    ranges = Calibrate()(out(), model, samples_for(model))
    made = Cast(keep_fp32=("grow",))(out(), model, ranges)
    assert types(onnx.load(made.path))["large"] == onnx.TensorProto.FLOAT
    with pytest.raises(DataError, match=r"'grew' is in the list, but the model has no such node .*'grow'"):
        Cast(keep_fp32=("grew",))(out(), model, ranges)


@pytest.mark.parametrize("pattern", ["grow", "gr*", "Mul"])
def test_nodes_are_kept_by_pattern_in_either_spelling(tmp_path: Path, out: Out, pattern: str) -> None:
    model = save(WIDE.replace("30000.0", "3.0"), tmp_path / "net.onnx")
    ranges = Calibrate(method="minmax")(out(), model, samples_for(model))
    made = [stage(out(), model, ranges) for stage in (Cast(keep_fp32=(pattern,)), Cast(override=(KeptNodes(pattern),)))]
    assert types(onnx.load(made[0].path))["large"] == onnx.TensorProto.FLOAT
    assert onnx.load(made[0].path) == onnx.load(made[1].path)
    assert made[0].notes() == ["1 ('grow') nodes stay FP32, as the user wants"]


@pytest.mark.parametrize("stage", [Cast(), Quantize()])
def test_ranges_of_another_model_are_refused(
    stage: Callable[[Path, OnnxModel, Ranges], OnnxModel], net: OnnxModel, tmp_path: Path, out: Out
) -> None:
    other = save(WIDE, tmp_path / "other.onnx")
    ranges = Calibrate()(out(), other, samples_for(other))
    with pytest.raises(DataError, match=f"found on (another )?model .*{other.digest()[:12]}|{other.digest()[:12]}"):
        stage(out(), net, ranges)
