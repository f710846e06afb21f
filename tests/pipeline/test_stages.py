"""Each stage on its own: what it makes of its inputs, what it leaves beside the result, and what it refuses."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from calibration.data.batches import Samples, input_specs_from_onnx, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from calibration.histogram.histogram import histogram_from_values
from calibration.ranges.ranges import histograms_from_folder, ranges_from_folder
from engines import backend, reference
from engines.contract import ShapeRange
from pipeline import record
from pipeline.accuracy.comparison import Tolerance, read_outputs, write_outputs
from pipeline.artifact import Engine, OnnxModel, Outputs, Ranges, Timings
from pipeline.engine_runner import SIMULATION, runner_of, unpadded
from pipeline.errors import ConfigError, DataError, EngineError, ModelError, StageError, Unavailable
from pipeline.latency.protocol import Protocol
from pipeline.stages import build as build_stage
from pipeline.stages import quantize as quantize_stage
from pipeline.stages.benchmark import Benchmark, timings_from
from pipeline.stages.build import Build, Target
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.cast import Cast
from pipeline.stages.infer import Infer
from pipeline.stages.quantize import Quantize
from pipeline.stages.validate import Judge, Judged, LabelFile, Validate, agreement
from pipeline.store import Store

Array: TypeAlias = npt.NDArray[Any]

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 16, 6, 6] image) => (float[N, 3] scores, float[N, 16] pooled_flat)
<float[16, 16, 3, 3] kernel, float[16, 3] dense>
{
    [conv] features = Conv <pads = [1, 1, 1, 1]> (image, kernel)
    [relu] active = Relu (features)
    [pool] pooled = GlobalAveragePool (active)
    [flat] pooled_flat = Flatten (pooled)
    [dense] scores = MatMul (pooled_flat, dense)
}
"""
"""Two outputs, the batch open, a convolution and a matrix product to quantize."""


def save(text: str, path: Path, **weights: tuple[int, ...]) -> OnnxModel:
    """The ONNX text as a file, with weights drawn once and for all."""
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(5)
    for name, shape in weights.items():
        values = random.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return OnnxModel(path)


def samples_for(model: OnnxModel, num_samples: int = 10, scale: float = 1.0) -> Samples:
    """Normal noise for every input, in an ``.npz`` beside the model, with labels ``y``."""
    random = np.random.default_rng(6)
    specs = input_specs_from_onnx(model.path)
    arrays = {s.name: scale * random.normal(size=(num_samples, *s.shape[1:])).astype(np.float32) for s in specs}
    path = model.path.with_name(f"{model.path.stem}{num_samples}.npz")
    np.savez(path, y=np.arange(num_samples) % 3, **arrays)  # type: ignore[arg-type]
    return open_samples(DataSource(str(path), labels="y"), specs, Preprocess())


@pytest.fixture
def net(tmp_path: Path) -> OnnxModel:
    return save(NET, tmp_path / "net.onnx", kernel=(16, 16, 3, 3), dense=(16, 3))


@pytest.fixture
def out(tmp_path: Path) -> Callable[[], Path]:
    """A new, empty folder at each call, as the store hands one to a stage."""
    numbers = iter(range(100))

    def make() -> Path:
        folder = tmp_path / f"out{next(numbers)}"
        folder.mkdir()
        return folder

    return make


Out: TypeAlias = Callable[[], Path]


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor that onnx can infer."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}


def operators(model: OnnxModel) -> list[str]:
    return [node.op_type for node in onnx.load(model.path).graph.node]


# calibrate

ELEMENTWISE = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[BATCH, 5] x) => (float[BATCH, 5] y) { a = Relu (x) b = Add (a, x) y = Mul (b, b) }
"""


def test_the_ranges_do_not_depend_on_the_batch_size(tmp_path: Path, out: Out) -> None:
    model = save(ELEMENTWISE.replace("BATCH", "N"), tmp_path / "net.onnx")
    samples = samples_for(model, 11)
    files = [Calibrate(batch_size=size)(out(), model, samples).path / "ranges.json" for size in (1, 4, 11, 64)]
    assert len({file.read_bytes() for file in files}) == 1


def test_a_fixed_batch_with_a_remainder_counts_every_sample_once(tmp_path: Path, out: Out) -> None:
    free = save(ELEMENTWISE.replace("BATCH", "N"), tmp_path / "free.onnx")
    fixed = save(ELEMENTWISE.replace("BATCH", "4"), tmp_path / "fixed.onnx")
    found = [ranges_from_folder(Calibrate()(out(), model, samples_for(model, 10)).path) for model in (free, fixed)]
    assert found[0].tensors == found[1].tensors
    assert found[1].tensors["y"].num_values == 50


SCALAR = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[4, 5] x) => (float[4, 5] y) { largest = ReduceMax <keepdims = 0> (x) y = Div (x, largest) }
"""


def test_what_a_whole_batch_shares_is_found_of_each_sample_that_is_left_over(tmp_path: Path, out: Out) -> None:
    model = save(SCALAR, tmp_path / "net.onnx")
    found = ranges_from_folder(Calibrate()(out(), model, samples_for(model, 6)).path)
    assert found.tensors["largest"].num_values == 3


def test_only_what_was_padded_is_cut() -> None:
    four, scalar = np.arange(4.0), np.array(1.0)
    assert unpadded(four, 3, 4).tolist() == [0, 1, 2]
    assert unpadded(four, 4, 4) is four
    assert unpadded(four, 3, 8) is four, "its first dimension is not the batch"
    assert unpadded(scalar, 3, 4) is scalar


BATCH_IN_ANOTHER_AXIS = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[4, 6, 5] x) => (float[24, 5] y, float[6, 4, 5] z, float[4, 6, 5] x)
  <int64[2] rows = {-1, 5}> { y = Reshape (x, rows) t = Transpose <perm = [1, 0, 2]> (x) z = Exp (t) }
"""


@pytest.mark.parametrize("runner", ["onnxruntime", "reference"])
@pytest.mark.parametrize("num_samples", [4, 10, 11])
def test_a_fixed_batch_counts_every_value_once_whatever_axis_it_is_in(
    tmp_path: Path, out: Out, num_samples: int, runner: Literal["onnxruntime", "reference"]
) -> None:
    model = save(BATCH_IN_ANOTHER_AXIS, tmp_path / "net.onnx")
    samples = samples_for(model, num_samples)
    folder = Calibrate(watch="all", runner=runner)(out(), model, samples).path
    histograms = histograms_from_folder(folder)
    x = np.load(samples.source.path)["x"]
    for name, values in {"x": x, "y": x, "t": x, "z": np.exp(x)}.items():
        expected = histogram_from_values(values, name)
        assert histograms[name].num_values == values.size
        assert np.abs(histograms[name].counts - expected.counts).sum() <= 2  # Exp may round otherwise.


HALF = """<ir_version: 8, opset_import: ["" : 17]>
net (TYPE[N, 5] x) => (TYPE[N, 3] y) { a = Cast <to = 10> (x) b = MatMul (a, w) y = Cast <to = CODE> (b) }"""


@pytest.mark.parametrize(("dtype", "code"), [("float", "1"), ("float16", "10")])
def test_a_model_in_fp16_is_told(tmp_path: Path, out: Out, dtype: str, code: str) -> None:
    model = onnx.parser.parse_model(HALF.replace("TYPE", dtype).replace("CODE", code))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((5, 3), np.float16), "w"))
    onnx.save(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=np.ones((20, 5), np.float32 if dtype == "float" else np.float16))
    opened = OnnxModel(tmp_path / "net.onnx")
    samples = open_samples(DataSource(str(tmp_path / "x.npz")), input_specs_from_onnx(opened.path), Preprocess())
    if dtype == "float16":
        with pytest.raises(
            ModelError, match=r"net\.onnx: no FP32 tensor depends on its inputs, .*; give the FP32 model"
        ):
            Calibrate()(out(), opened, samples)
    else:
        notes = Calibrate()(out(), opened, samples).notes()
        assert notes[0] == "1 weights, the first 'w', are in half precision; INT8 is made of FP32: give the FP32 model"


def test_an_error_names_the_users_model(tmp_path: Path, out: Out) -> None:
    model = save(
        """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 5] x) => (float[M, 7] y) <int64[2] shape = {-1, 7}> { y = Reshape (x, shape) }""",
        tmp_path / "net.onnx",
    )
    with pytest.raises(EngineError, match=re.escape(f"{model.path}: ONNX Runtime failed (")):
        Calibrate()(out(), model, samples_for(model))


def test_the_reference_runner_finds_the_same_ranges(net: OnnxModel, out: Out) -> None:
    samples = samples_for(net)
    everything = Calibrate(method="minmax", watch="all")
    runners = [everything, replace(everything, runner="reference")]
    ours, theirs = (ranges_from_folder(stage(out(), net, samples).path).tensors for stage in runners)
    assert set(ours) == set(theirs) >= {"image", "active", "pooled_flat"}
    for name, tensor in ours.items():
        assert tensor.amax == pytest.approx(theirs[name].amax, rel=1e-5)
        assert tensor.num_values == theirs[name].num_values


def test_the_ranges_say_what_they_were_found_on(net: OnnxModel, out: Out) -> None:
    samples = samples_for(net)
    found = ranges_from_folder(Calibrate(method="percentile", percentile=99.0)(out(), net, samples).path)
    assert (found.method, found.percentile) == ("percentile", 99.0)
    assert found.origin.model_digest == net.digest()
    assert found.origin.data_digest == samples.digest()
    assert found.origin.num_samples == 10


def test_calibration_leaves_no_watched_model_behind(net: OnnxModel, out: Out) -> None:
    folder = out()
    Calibrate()(folder, net, samples_for(net))
    assert {path.name for path in folder.iterdir()} == {"ranges", "notes.json"}


def test_no_samples_are_an_error(net: OnnxModel) -> None:
    with pytest.raises(DataError, match=r"net0\.npz"):
        samples_for(net, 0)


def test_an_engine_that_cannot_take_the_samples_is_said(net: OnnxModel, out: Out, tmp_path: Path) -> None:
    other = save(ELEMENTWISE.replace("BATCH", "N"), tmp_path / "other.onnx")
    with pytest.raises(EngineError, match="'x'"):
        Calibrate()(out(), net, samples_for(other))


# cast

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


@pytest.mark.parametrize("stage", [Cast(), Quantize()])
def test_ranges_of_another_model_are_refused(
    stage: Callable[[Path, OnnxModel, Ranges], OnnxModel], net: OnnxModel, tmp_path: Path, out: Out
) -> None:
    other = save(WIDE, tmp_path / "other.onnx")
    ranges = Calibrate()(out(), other, samples_for(other))
    with pytest.raises(DataError, match=f"found on (another )?model .*{other.digest()[:12]}|{other.digest()[:12]}"):
        stage(out(), net, ranges)


# quantize


@pytest.fixture
def ranges(net: OnnxModel, out: Out) -> Ranges:
    return Calibrate(method="minmax")(out(), net, samples_for(net))


def zero_points(model: OnnxModel) -> set[tuple[int, bool]]:
    """Type of every zero point of an 8-bit tensor, and whether it is zero throughout."""
    graph = onnx.load(model.path).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    pairs = [weights[n.input[2]] for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    eight = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    return {(t.data_type, not numpy_helper.to_array(t).any()) for t in pairs if t.data_type in eight}


def test_for_tensorrt_int8_is_symmetric_and_weights_stay_float(net: OnnxModel, ranges: Ranges, out: Out) -> None:
    made = Quantize(target="tensorrt")(out(), net, ranges)
    assert zero_points(made) == {(onnx.TensorProto.INT8, True)}
    graph = onnx.load(made.path).graph
    assert {t.data_type for t in graph.initializer if t.name in ("kernel", "dense")} == {onnx.TensorProto.FLOAT}
    assert {value.name for value in graph.output} == {"scores", "pooled_flat"}


def test_for_onnxruntime_weights_are_stored_as_integers(net: OnnxModel, ranges: Ranges, out: Out) -> None:
    made = Quantize(target="onnxruntime", arithmetic="u8u8")(out(), net, ranges)
    assert (onnx.TensorProto.UINT8, False) in zero_points(made)
    stored = {tensor.data_type for tensor in onnx.load(made.path).graph.initializer if len(tensor.dims) == 4}
    assert stored == {onnx.TensorProto.UINT8}
    assert "arithmetic u8u8, as asked for" in made.notes()


def test_what_the_cpu_does_best_is_said(net: OnnxModel, ranges: Ranges, out: Out) -> None:
    stage = Quantize(target="onnxruntime")
    assert stage.chosen_arithmetic()[1] in stage(out(), net, ranges).notes()


def test_the_arithmetic_is_part_of_the_recipe(
    net: OnnxModel, ranges: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is carried to another CPU must not serve what this one chose."""
    store = Store(tmp_path / "store")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    chosen = {}
    for flags in (("avx2",), ("avx2", "avx512_vnni")):
        monkeypatch.setattr(quantize_stage, "cpu_flags", lambda flags=flags: frozenset(flags))
        recipes = [store.recipe(Quantize(target=target), net, ranges) for target in ("onnxruntime", "tensorrt")]
        chosen[flags] = [recipe["versions"].get("arithmetic") for recipe in recipes]
    assert list(chosen.values()) == [["u8s7", None], ["u8s8", None]]


@pytest.mark.parametrize("name", ["conv", "Conv"])
@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_what_is_excluded_by_name_or_type_stays_float(
    net: OnnxModel, ranges: Ranges, out: Out, name: str, target: Any
) -> None:
    made = Quantize(target=target, exclude=(name,))(out(), net, ranges)
    graph = onnx.load(made.path).graph
    conv = next(node for node in graph.node if node.op_type == "Conv")
    assert list(conv.input[:2]) == ["image", "kernel"]
    assert "DequantizeLinear" in operators(made), "the matrix product is quantized all the same"


def test_an_unknown_exclude_offers_the_nearest(net: OnnxModel, ranges: Ranges, out: Out) -> None:
    with pytest.raises(DataError, match=r"exclude: 'convv' .*the nearest is 'conv'"):
        Quantize(exclude=("convv",))(out(), net, ranges)


# build

PROFILE = {"image": ShapeRange((1, 16, 6, 6), (2, 16, 6, 6), (4, 16, 6, 6))}


def test_a_build_leaves_its_record_beside_the_engine(net: OnnxModel, out: Out) -> None:
    engine = Build()(out(), net, Target("onnxruntime", "fp32", PROFILE))
    assert (engine.backend, engine.min_batch, engine.max_batch) == ("onnxruntime", 1, 4)
    record = json.loads(engine.beside("record.json").read_text())
    assert record["precision"] == "fp32"
    assert record["size_bytes"] == engine.path.stat().st_size
    assert record["num_quantizable"] == 2
    assert record["num_int8"] == 0
    assert [spec["name"] for spec in record["inputs"]] == ["image"]
    assert record["inputs"][0]["shape"] == [-1, 16, 6, 6]
    assert record["versions"]["onnxruntime"] == backend("onnxruntime").versions()["onnxruntime"]
    assert record["made_from"] == {"model": net.digest(), "calibration": ""}


def test_without_shapes_nothing_bounds_the_batch(net: OnnxModel, out: Out) -> None:
    engine = Build()(out(), net, Target("onnxruntime", "fp32"))
    assert (engine.min_batch, engine.max_batch) == (0, 0)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (ShapeRange((2, 4), (1, 4), (3, 4)), r"min \(2, 4\), opt \(1, 4\), max \(3, 4\) are not positive and in order"),
        (ShapeRange((0, 4), (1, 4), (3, 4)), "every dimension needs 0 < min <= opt <= max"),
        (ShapeRange((1, 4), (4,), (8, 4)), r"min, opt and max have \[1, 2\] dimensions; give equally many"),
    ],
)
def test_shapes_out_of_order_are_refused(net: OnnxModel, out: Out, shape: ShapeRange, words: str) -> None:
    with pytest.raises(ConfigError, match=f"shapes of 'image': .*{words}"):
        Build()(out(), net, Target("onnxruntime", "fp32", {"image": shape}))


def test_shapes_that_do_not_fit_the_model_are_refused(net: OnnxModel, out: Out) -> None:
    wrong = {"image": ShapeRange((1, 3, 6, 6), (1, 3, 6, 6), (1, 3, 6, 6))}
    with pytest.raises(EngineError, match=r"input 'image' is \(\?, 16, 6, 6\), its min shape \(1, 3, 6, 6\)"):
        Build()(out(), net, Target("onnxruntime", "fp32", wrong))


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_model_of_another_precision_than_asked_is_refused(net: OnnxModel, out: Out, precision: Any) -> None:
    with pytest.raises(EngineError, match=f"precision {precision} is asked for"):
        Build()(out(), net, Target("onnxruntime", precision))


def crash(*_args: object) -> None:
    """What a builder's native code may do."""
    print("tactic 42", flush=True)
    ctypes.string_at(0)


def test_a_builder_that_crashes_is_one_sentence_and_leaves_nothing(
    net: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_stage, "_build", crash)
    store = Store(tmp_path / "store")
    with pytest.raises(StageError, match="build fp32 for onnxruntime: the process was ended by SIGSEGV") as caught:
        store.run(Build(), net, Target("onnxruntime", "fp32"))
    assert "tactic 42" in str(caught.value)
    assert [path for path in store.folder.rglob("*") if path.name != "tmp"] == []


def test_a_backend_that_is_not_there_is_unavailable(net: OnnxModel, out: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "why_not_build", lambda: "reference: is on holiday; call it back")
    with pytest.raises(Unavailable, match="is on holiday; call it back"):
        Build()(out(), net, Target("reference", "fp32"))


needs_rtx = pytest.mark.skipif(
    bool(backend("tensorrt_rtx").why_not_build()), reason=backend("tensorrt_rtx").why_not_build() or "it is there"
)


@needs_rtx
class TestTensorRTRTX:
    """Real ahead-of-time builds."""

    def test_it_builds_for_the_capability_asked_for(self, net: OnnxModel, out: Out) -> None:
        engine = Build(compute_capabilities=("8.6",))(out(), net, Target("tensorrt_rtx", "fp32", PROFILE))
        assert engine.path.suffixes == [".rtx", ".plan"]
        assert json.loads(engine.beside("record.json").read_text())["size_bytes"] > 1000

    def test_a_dynamic_input_without_shapes_is_refused_by_name(self, net: OnnxModel, out: Out) -> None:
        with pytest.raises(EngineError, match=r"'image'.*shape"):
            Build()(out(), net, Target("tensorrt_rtx", "fp32"))

    def test_an_unsupported_capability_lists_those_there_are(self, net: OnnxModel, out: Out) -> None:
        with pytest.raises(Unavailable, match=r"compute capability '9\.0' is asked for.*builds for 7\.5, 8\.0, 8\.6"):
            Build(compute_capabilities=("9.0",))(out(), net, Target("tensorrt_rtx", "fp32", PROFILE))

    def test_it_builds_int8_with_fp16_for_the_rest(self, net: OnnxModel, ranges: Ranges, out: Out) -> None:
        quantized = Quantize(target="tensorrt", rest="fp16")(out(), net, ranges)
        assert onnx.load(quantized.path).opset_import[0].version == 19
        halves = {name for name, kind in types(onnx.load(quantized.path)).items() if kind == onnx.TensorProto.FLOAT16}
        assert "active" in halves
        engine = Build(compute_capabilities=("8.9",))(out(), quantized, Target("tensorrt_rtx", "int8", PROFILE))
        record = json.loads(engine.beside("record.json").read_text())
        assert record["num_int8"] == record["num_quantizable"] == 2

    def test_fp32_for_turing_is_refused_in_words(self, net: OnnxModel, out: Out) -> None:
        """In a process of its own: the next build in one that failed so comes out different."""
        if not backend("tensorrt_rtx").versions()["tensorrt_rtx"].startswith("1.7"):
            pytest.skip("version 1.7 alone lacks FP32 products for 7.5")
        with pytest.raises(
            EngineError, match=r"no FP32 matrix products for compute capability 7\.5; build fp16 for it"
        ):
            Build(compute_capabilities=("7.5",))(out(), net, Target("tensorrt_rtx", "fp32", PROFILE))

    def test_it_builds_int8_from_the_tensorrt_placement(self, net: OnnxModel, ranges: Ranges, out: Out) -> None:
        quantized = Quantize(target="tensorrt")(out(), net, ranges)
        stage = Build(compute_capabilities=("8.9",))
        engine = stage(out(), quantized, Target("tensorrt_rtx", "int8", PROFILE))
        assert json.loads(engine.beside("record.json").read_text())["num_int8"] >= 1


def test_capabilities_are_for_ahead_of_time_builds_alone(net: OnnxModel, out: Out) -> None:
    """One plan serves several backends; the option is documented as one of ahead-of-time builds."""
    assert Build(compute_capabilities=("8.6",))(out(), net, Target("onnxruntime", "fp32")).path.is_file()


# infer


def fed(samples: Samples) -> Mapping[str, Array]:
    return next(samples.batches(samples.num_samples))


def test_the_answers_are_those_of_the_runner_by_name(net: OnnxModel, out: Out) -> None:
    samples = samples_for(net)
    outputs = read_outputs(Infer(batch_size=3)(out(), Engine(net.path), samples).path)
    with backend("reference").load(net.path, num_threads=0) as runner:
        expected = runner.infer(fed(samples))
    assert list(outputs) == ["scores", "pooled_flat"]
    for name, array in expected.items():
        np.testing.assert_allclose(outputs[name], array, rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]


def test_a_fixed_batch_is_filled_up_and_cut_again(tmp_path: Path, out: Out) -> None:
    model = save(ELEMENTWISE.replace("BATCH", "4"), tmp_path / "net.onnx")
    samples = samples_for(model, 10)
    outputs = read_outputs(Infer(batch_size=32)(out(), Engine(model.path), samples).path)["y"]
    path = save(ELEMENTWISE.replace("BATCH", "N"), tmp_path / "free.onnx").path
    with backend("onnxruntime").load(path, num_threads=1) as runner:
        expected = runner.infer({"x": np.load(samples.source.path)["x"]})["y"]
    np.testing.assert_array_equal(outputs, expected)


@pytest.mark.parametrize(("bounds", "batch_size"), [((4, 8), 32), ((4, 8), 1), ((0, 3), 32)])
def test_an_engines_batch_bounds_are_kept(net: OnnxModel, out: Out, bounds: tuple[int, int], batch_size: int) -> None:
    engine = Engine(net.path, min_batch=bounds[0], max_batch=bounds[1])
    outputs = read_outputs(Infer(batch_size=batch_size)(out(), engine, samples_for(net)).path)
    assert len(outputs["scores"]) == 10


WITHOUT_BATCH = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 5] x) => (float total) { total = ReduceSum <keepdims = 0> (x) }
"""


def test_an_output_without_the_batch_is_refused_by_name(tmp_path: Path, out: Out) -> None:
    model = save(WITHOUT_BATCH, tmp_path / "net.onnx")
    with pytest.raises(EngineError, match=r"output 'total' is \(\) for a batch of 10; its first dimension must be"):
        Infer()(out(), Engine(model.path), samples_for(model))


def test_a_simulated_engine_is_said_to_be_one(net: OnnxModel, ranges: Ranges, out: Out) -> None:
    quantized = Quantize(target="tensorrt")(out(), net, ranges)
    engine = Engine(quantized.path, simulated=True)
    outputs = Infer()(out(), engine, samples_for(net))
    assert SIMULATION in outputs.path.read_text()
    assert record.SIMULATION == SIMULATION, "the report says it in the same words"
    assert engine.digest() != Engine(quantized.path).digest(), "never mistaken for the engine itself"
    with runner_of(engine, 1) as simulation, backend("reference").load(quantized.path, num_threads=1) as right:
        feed = fed(samples_for(net))
        for name, array in right.infer(feed).items():
            np.testing.assert_allclose(simulation.infer(feed)[name], array, rtol=1e-4, atol=1e-4)  # type: ignore[arg-type]


def test_an_engine_that_cannot_run_here_is_unavailable(net: OnnxModel, out: Out, monkeypatch: Any) -> None:
    monkeypatch.setattr(reference, "why_not_run", lambda: "reference: is asleep; wake it")
    with pytest.raises(Unavailable, match="is asleep; wake it"):
        Infer()(out(), Engine(net.path, "reference"), samples_for(net))


# validate

LABELS = np.array([0, 1, 2, 0])
RIGHT = np.eye(3, dtype=np.float32)[LABELS]


def outputs_of(folder: Path, **arrays: Array) -> Outputs:
    write_outputs(folder / "outputs.json", "test", [arrays])
    return Outputs(folder / "outputs.json")


@pytest.fixture
def labelled(tmp_path: Path) -> LabelFile:
    np.save(tmp_path / "labels.npy", LABELS)
    return LabelFile(tmp_path / "labels.npy", "")


def judged(name: str, precision: Any = "int8", folder: Path = Path()) -> Judged:
    return Judged(Judge(name, "", folder), precision)


def test_a_good_engine_passes(out: Out, labelled: LabelFile) -> None:
    verdict = Validate()(
        out(), outputs_of(out(), s=RIGHT), outputs_of(out(), s=RIGHT * 0.9), labelled, judged("top1")
    ).read()
    assert verdict["passed"]
    assert (verdict["metric"], verdict["reference_metric"], verdict["metric_drop"]) == (1.0, 1.0, 0.0)
    assert verdict["agreement"] == 1.0
    assert verdict["comparison"]["s"]["max_abs"] == pytest.approx(0.1)


@pytest.mark.parametrize(("precision", "passes"), [("fp32", False), ("fp16", False), ("int8", True)])
def test_each_precision_has_its_own_tolerances(out: Out, precision: Any, passes: bool) -> None:
    noisy = RIGHT + np.float32(0.1) * np.roll(RIGHT, 1, axis=1)
    verdict = Validate()(out(), outputs_of(out(), s=RIGHT), outputs_of(out(), s=noisy), None, judged("", precision))
    assert verdict.read()["passed"] is passes
    assert verdict.read()["metric"] is None


def test_other_tolerances_judge_saved_outputs_again(out: Out) -> None:
    ours, theirs = outputs_of(out(), s=RIGHT * 0.5), outputs_of(out(), s=RIGHT)
    strict = Validate().with_tolerance("fp16", Tolerance(atol=0.1))
    assert strict.int8 == Validate().int8
    failures = strict(out(), theirs, ours, None, judged("", "fp16")).read()["failures"]
    (failure,) = failures
    assert failure.startswith(
        "output 's' differs by up to 0.5, but atol 0.1 and rtol 0 are allowed; at [0, 0] it is 0.5"
    )


def test_a_drop_is_positive_where_more_is_better(out: Out, labelled: LabelFile) -> None:
    worse = RIGHT.copy()
    worse[0] = [0, 1, 0]
    stage = Validate(int8=Tolerance(max_metric_drop=0.1))
    verdict = stage(out(), outputs_of(out(), s=RIGHT), outputs_of(out(), s=worse), labelled, judged("top1")).read()
    assert verdict["metric_drop"] == 0.25
    assert verdict["failures"] == ["top1 is 0.7500 against 1.0000 of FP32, a drop of 0.2500, above max_metric_drop 0.1"]
    assert verdict["agreement"] == 0.75


@pytest.mark.parametrize(("shift", "drop"), [(0.5, 0.5), (0.0, 0.0), (-0.25, 0.25)])
def test_a_drop_is_positive_where_less_is_better(out: Out, labelled: LabelFile, shift: float, drop: float) -> None:
    exact, ours = LABELS.astype(np.float32), (LABELS + shift).astype(np.float32)
    stage = Validate(int8=Tolerance(max_metric_drop=0.3))
    verdict = stage(out(), outputs_of(out(), s=exact), outputs_of(out(), s=ours), labelled, judged("mae")).read()
    assert verdict["metric_drop"] == pytest.approx(drop)
    assert verdict["passed"] is (drop <= 0.3)


def test_better_than_fp32_is_a_negative_drop(out: Out, labelled: LabelFile) -> None:
    exact, off = LABELS.astype(np.float32), (LABELS + 0.5).astype(np.float32)
    stage = Validate(int8=Tolerance())
    verdict = stage(out(), outputs_of(out(), s=off), outputs_of(out(), s=exact), labelled, judged("mae")).read()
    assert verdict["metric_drop"] == -0.5
    assert verdict["passed"]


@pytest.mark.parametrize("metric", ["", "top1"])
def test_nan_in_the_outputs_fails_in_a_sentence(out: Out, labelled: LabelFile, metric: str) -> None:
    broken = RIGHT.copy()
    broken[2, 1] = np.nan
    verdict = Validate(int8=Tolerance())(
        out(), outputs_of(out(), s=RIGHT), outputs_of(out(), s=broken), labelled, judged(metric)
    ).read()
    assert not verdict["passed"]
    assert "output 's' has NaN or infinity; at [2, 1] it is nan, and 0 of the reference" in verdict["failures"]
    assert verdict["agreement"] == 0.75


def test_a_metric_that_is_nan_is_out_of_any_bound(out: Out, labelled: LabelFile) -> None:
    broken = np.array([0, 1, np.nan, 0], np.float32)
    exact = LABELS.astype(np.float32)
    verdict = Validate(int8=Tolerance())(
        out(), outputs_of(out(), s=exact), outputs_of(out(), s=broken), labelled, judged("mae")
    ).read()
    assert any(failure.startswith("mae is nan against 0.0000 of FP32") for failure in verdict["failures"])


def test_agreement_is_for_class_scores_alone() -> None:
    scores = np.eye(3)
    assert agreement({"s": scores}, {"s": scores}, "") == 1.0
    assert agreement({"s": scores}, {"s": np.roll(scores, 1, axis=0)}, "") == 0.0
    assert agreement({"s": scores, "t": scores}, {"s": scores, "t": scores}, "") is None, "which of the two?"
    assert agreement({"s": scores, "t": scores}, {"s": scores, "t": scores}, "t") == 1.0
    assert agreement({"s": scores[:, 0]}, {"s": scores[:, 0]}, "") is None
    assert agreement({"s": scores[:, :1]}, {"s": scores[:, :1]}, "") is None


def test_a_users_metric_is_found_beside_the_plan_and_its_file_counts(
    tmp_path: Path, out: Out, labelled: LabelFile
) -> None:
    file = tmp_path / "own_metric_of_test_stages.py"
    file.write_text("def low(outputs, labels):\n    return float(outputs['s'][0, 0])\nlow.higher_is_better = False\n")
    name = "own_metric_of_test_stages:low"
    verdict = Validate(int8=Tolerance())(
        out(), outputs_of(out(), s=RIGHT), outputs_of(out(), s=RIGHT * 3), labelled, judged(name, folder=tmp_path)
    ).read()
    assert (verdict["metric"], verdict["reference_metric"], verdict["metric_drop"]) == (3.0, 1.0, 2.0)
    before = Judge(name, "", tmp_path).digest()
    file.write_text(file.read_text() + "# another thought\n")
    assert Judge(name, "", tmp_path).digest() != before
    assert Judge("top1", "", tmp_path).digest() == Judge("top1", "", tmp_path / "elsewhere").digest()
    assert Judge("top1", "", tmp_path).digest() != Judge("top1", "s", tmp_path).digest()


def test_labels_come_from_a_file_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", y=LABELS)
    np.save(tmp_path / "labels.npy", LABELS)
    found = [LabelFile(tmp_path / "data.npz", "y"), LabelFile(tmp_path / "labels.npy", "")]
    assert [file.labels().tolist() for file in found] == [[0, 1, 2, 0]] * 2
    assert len({file.digest() for file in found}) == 2
    for wrong in (LabelFile(tmp_path / "data.npz", "z"), LabelFile(tmp_path / "none.npy", "")):
        with pytest.raises(ConfigError, match=r"has no labels .*name an \.npy file, or an \.npz and --labels KEY"):
            wrong.labels()


# benchmark

QUICK = Protocol(warmup_queries=1, warmup_seconds=0.0, min_queries=8, min_seconds=0.0, num_blocks=4)


def test_a_benchmark_keeps_every_query_and_can_be_read_back(net: OnnxModel, out: Out) -> None:
    stage = Benchmark(batch_sizes=(1, 4), num_threads=1, protocol=QUICK)
    engines = {"a": Engine(net.path), "b": Engine(net.path, simulated=True)}
    timings = stage(out(), engines, samples_for(net))
    record = timings.read()
    assert record["protocol"] == QUICK.describe()
    assert record["num_threads"] == 1
    assert record["machine"]["num_cores"] >= 1
    assert [(row["name"], row["batch_size"]) for row in record["timings"]] == [("a", 1), ("a", 4), ("b", 1), ("b", 4)]
    assert record["timings"][0]["engine"] == engines["a"].digest()
    for timing, row in zip(timings_from(timings), record["timings"], strict=True):
        assert timing.num_queries == len(timing.queries.latency_ms) >= 8
        assert timing.latency_ms.p50 == row["latency_ms"]["p50"] > 0
        assert timing.latency_ms.p50 in timing.queries.latency_ms
        assert timing.device_ms is None
        assert (timing.name, timing.batch_size, timing.stable) == (row["name"], row["batch_size"], row["stable"])


def test_lost_raw_samples_are_said(net: OnnxModel, out: Out) -> None:
    timings = Benchmark(protocol=QUICK)(out(), {"a": Engine(net.path)}, samples_for(net))
    timings.beside("a-batch1.npz").unlink()
    with pytest.raises(ConfigError, match=r"a-batch1\.npz"):
        timings_from(timings)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((1, 11), r"batch_sizes has 11, but there are 10 samples to time with; give sizes from 1 to 10"),
        ((0,), "batch_sizes is 0, but must be at least 1"),
        ((1, -1), "batch_sizes is -1, but must be at least 1"),
        ((), "batch_sizes is empty; name at least one"),
    ],
)
def test_batch_sizes_must_be_had(net: OnnxModel, out: Out, sizes: tuple[int, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Benchmark(batch_sizes=sizes, protocol=QUICK)(out(), {"a": Engine(net.path)}, samples_for(net))


def test_batch_sizes_beyond_an_engines_bounds_are_refused(net: OnnxModel, out: Out) -> None:
    engine = Engine(net.path, min_batch=2, max_batch=4)
    with pytest.raises(ConfigError, match=r"a: takes batches from 2 to 4, but \[benchmark\] batch_sizes has 8"):
        Benchmark(batch_sizes=(4, 8), protocol=QUICK)(out(), {"a": engine}, samples_for(net))


def test_a_fixed_batch_takes_that_batch_alone(tmp_path: Path, out: Out) -> None:
    model = save(ELEMENTWISE.replace("BATCH", "4"), tmp_path / "net.onnx")
    with pytest.raises(ConfigError, match=r"batch_sizes has 1, but the model's batch is fixed at 4; write"):
        Benchmark(protocol=QUICK)(out(), {"a": Engine(model.path)}, samples_for(model))


def test_an_engine_that_cannot_run_here_is_not_timed(net: OnnxModel, out: Out, monkeypatch: Any) -> None:
    monkeypatch.setattr(reference, "why_not_run", lambda: "reference: is asleep; wake it")
    with pytest.raises(Unavailable, match="is asleep; wake it"):
        Benchmark(protocol=QUICK)(out(), {"a": Engine(net.path), "b": Engine(net.path, "reference")}, samples_for(net))


def test_a_measurement_is_never_served(net: OnnxModel, tmp_path: Path) -> None:
    store, samples = Store(tmp_path / "store"), samples_for(net)
    first, second = (store.measure(Benchmark(protocol=QUICK), {"a": Engine(net.path)}, samples) for _ in range(2))
    assert isinstance(first, Timings)
    assert first.path != second.path
    assert first.path.is_file()


def test_stages_are_records_that_cannot_change() -> None:
    for stage in (Benchmark(), Build(), Calibrate(), Cast(), Infer(), Quantize(), Validate()):
        name = dataclasses.fields(stage)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(stage, name, None)


def test_a_benchmark_offline_goes_through_the_samples(net: OnnxModel, out: Out) -> None:
    stage = Benchmark(batch_sizes=(4,), num_threads=1, protocol=replace(QUICK, scenario="offline"))
    record = stage(out(), {"a": Engine(net.path)}, samples_for(net)).read()
    assert "LoadGen's Offline scenario" in record["protocol"]
    row = record["timings"][0]
    assert 0 < row["throughput_per_s"] <= 4e3 / row["latency_ms"]["mean"]


def test_a_benchmark_of_a_camera_leaves_a_trace(net: OnnxModel, out: Out) -> None:
    camera = replace(QUICK, scenario="server", queries_per_s=50.0, arrivals="fixed")
    stage = Benchmark(num_threads=1, trace_seconds=0.1, monitor_ms=20, protocol=camera)
    timings = stage(out(), {"a": Engine(net.path)}, samples_for(net))
    record = timings.read()
    assert "50 queries per second arrive evenly spaced" in record["protocol"]
    assert record["timings"][0]["throughput_per_s"] == 50.0
    (found,) = record["traces"]
    assert sum(window["num_queries"] for window in found["windows"]) == 8
    assert found["sentence"].startswith("a at batch 1: p50 ")
    started_ms = timings_from(timings)[0].queries.started_ms
    assert np.diff(started_ms)[0] == pytest.approx(20.0, abs=1e-3)
