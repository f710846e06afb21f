"""TensorRT-RTX, for real: engines are built here, without a GPU, by the code that TensorRT is built with too.

Their bytes are not reproducible; sizes, counts and sentences are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engines.backends import tensorrt_rtx
from engines.contract import BuildOptions, GivenScales, LayerFacts, ShapeRange
from engines.errors import EngineError, Unavailable

if tensorrt_rtx.why_not_build():
    pytest.skip(tensorrt_rtx.why_not_build(), allow_module_level=True)

SaveModel = Callable[[str], Path]
SaveConv = Callable[[int], Path]

LINEAR = {"x": ShapeRange((1, 3), (2, 3), (8, 3))}
CONV = {"x": ShapeRange((1, 16, 8, 8), (2, 16, 8, 8), (4, 16, 8, 8))}


def test_int8_convolution(save_quantized_conv: SaveConv, tmp_path: Path) -> None:
    record = tensorrt_rtx.build(save_quantized_conv(1), tmp_path / "engine", BuildOptions("int8", CONV))
    assert (record.num_quantizable, record.num_int8) == (1, 1)
    assert not any("multiply" in note for note in record.notes)
    assert record.layers == (LayerFacts("conv", "product", "INT8", ("conv",)),)
    assert record.layers_from == "the plan's text, products alone"
    assert record.num_layers_by_precision == {"INT8": 1}
    assert (tmp_path / "engine").read_bytes()[:4] == b"vtrt"


def test_grouped_int8_convolutions_are_remarked_on(save_quantized_conv: SaveConv, tmp_path: Path) -> None:
    record = tensorrt_rtx.build(save_quantized_conv(16), tmp_path / "engine", BuildOptions("int8", CONV))
    assert any(
        note.startswith("1 quantized depthwise or grouped convolutions, such as 'conv'") for note in record.notes
    )


def test_fp16(save_model: SaveModel, tmp_path: Path) -> None:
    model = save_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 2] y)
        <float16[3, 2] w = {1, 2, 3, 4, 5, 6}> { h = Cast<to = 10>(x)  p = MatMul(h, w)  y = Cast<to = 1>(p) }"""
    )
    record = tensorrt_rtx.build(model, tmp_path / "engine", BuildOptions("fp16", LINEAR))
    assert (record.precision, record.num_quantizable, record.num_int8, record.notes) == ("fp16", 1, 0, ())


@pytest.mark.parametrize("operator", ["Det", "Wobble"])
def test_an_operator_that_tensorrt_lacks_is_named_with_its_node(
    save_model: SaveModel, tmp_path: Path, operator: str
) -> None:
    domain = "" if operator == "Det" else "my."
    model = save_model(
        f"""<ir_version: 8, opset_import: ["" : 17, "my" : 1]> g (float[3, 3] x) => (float[N] y)
        {{ [first] h = Relu(x)  [odd] y = {domain}{operator}(h) }}"""
    )
    words = rf"TensorRT has no such operator; replace it in the network, .* \(node 'odd', {operator}: "
    with pytest.raises(EngineError, match=words):
        tensorrt_rtx.build(model, tmp_path / "engine", BuildOptions())


def test_compute_capabilities_are_written_into_the_engine(linear: Path, tmp_path: Path) -> None:
    # Found by reading plans: a bit mask of targets at byte 0x20; 8.6 is bit 2, 8.9 is bit 3.
    options = BuildOptions(shapes=LINEAR, compute_capabilities=("8.6", "8.9"))
    tensorrt_rtx.build(linear, tmp_path / "engine", options)
    mask = int.from_bytes((tmp_path / "engine").read_bytes()[0x20:0x24], "little")
    assert mask & 0b111111 == 0b001100


@pytest.mark.parametrize("text", ["9.0", "8.7", "86", "sm_86", ""])
def test_unknown_compute_capabilities(linear: Path, tmp_path: Path, text: str) -> None:
    options = BuildOptions(shapes=LINEAR, compute_capabilities=(text,))
    with pytest.raises(
        Unavailable, match=rf"compute capability '{text}' is requested, version .* 8\.0, 8\.6, 8\.9, 12\.0"
    ):
        tensorrt_rtx.build(linear, tmp_path / "engine", options)


def test_one_compute_capability_twice(linear: Path, tmp_path: Path) -> None:
    options = BuildOptions(shapes=LINEAR, compute_capabilities=("8.6", "8.6"))
    with pytest.raises(EngineError, match=r"8\.6, 8\.6 name one twice"):
        tensorrt_rtx.build(linear, tmp_path / "engine", options)


def test_a_dynamic_input_without_a_shape_range(linear: Path, tmp_path: Path) -> None:
    words = (
        r"model\.onnx: input 'x' is \(\?, 3\), and no shape range is given for it; give its min, opt and max shape, "
        r"such as \(1, 3\), \(4, 3\) and \(16, 3\)"
    )
    with pytest.raises(EngineError, match=words):
        tensorrt_rtx.build(linear, tmp_path / "engine", BuildOptions())
    assert not (tmp_path / "engine").exists()


def test_a_model_with_fixed_shapes_needs_no_shape_range(save_model: SaveModel, tmp_path: Path) -> None:
    model = save_model('<ir_version: 8, opset_import: ["" : 17]> g (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }')
    assert tensorrt_rtx.build(model, tmp_path / "engine", BuildOptions()).size_bytes > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (BuildOptions(shapes=LINEAR, optimization_level=6), "optimization level 6 is requested, it goes from 0 to 5"),
        (BuildOptions(shapes=LINEAR, workspace_mib=0), "workspace is 0 MiB; give at least 1"),
    ],
)
def test_options_out_of_bounds(linear: Path, tmp_path: Path, options: BuildOptions, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        tensorrt_rtx.build(linear, tmp_path / "engine", options)


def test_asymmetric_quantization_is_refused_with_the_node(save_model: SaveModel, tmp_path: Path) -> None:
    model = save_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 3] y) <float s = {0.1}, int8 z = {3}>
        { [first] q = QuantizeLinear(x, s, z)  [second] y = DequantizeLinear(q, s, z) }"""
    )
    with pytest.raises(
        EngineError, match=r"zero point other than 0, .* \(node 'first', QuantizeLinear: .*Non-zero zero"
    ):
        tensorrt_rtx.build(model, tmp_path / "engine", BuildOptions("int8", LINEAR))


def test_a_quantized_bias_is_refused(save_model: SaveModel, tmp_path: Path) -> None:
    # What ONNX Runtime's own quantizer writes by default.
    model = save_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 3] y)
        <float s = {0.1}, int8 z = {0}, int32[3] b = {1, 2, 3}>
        { q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  f = DequantizeLinear(b, s)  y = Add(d, f) }"""
    )
    with pytest.raises(EngineError, match=r"dequantizes INT32, as of a quantized bias, .* has type Int32 but must"):
        tensorrt_rtx.build(model, tmp_path / "engine", BuildOptions("int8", LINEAR))


def test_a_failed_build_does_not_spoil_the_next_sentence(linear: Path, save_model: SaveModel, tmp_path: Path) -> None:
    linear_copy = tmp_path / "linear.onnx"
    linear_copy.write_bytes(linear.read_bytes())
    bad = save_model(
        '<ir_version: 8, opset_import: ["" : 17, "own" : 1]> g (float[3] x) => (float[3] y) { y = own.Odd(x) }'
    )
    with pytest.raises(EngineError, match=r"TensorRT has no such operator; .*Odd"):
        tensorrt_rtx.build(bad, tmp_path / "engine", BuildOptions())
    assert tensorrt_rtx.build(linear_copy, tmp_path / "engine", BuildOptions(shapes=LINEAR)).size_bytes > 0


def test_several_profiles(linear: Path, tmp_path: Path) -> None:
    large = {"x": ShapeRange((9, 3), (16, 3), (32, 3))}
    record = tensorrt_rtx.build(linear, tmp_path / "engine", BuildOptions(shapes=LINEAR, more_shapes=(large, large)))
    single = tensorrt_rtx.build(linear, tmp_path / "engine", BuildOptions(shapes=LINEAR))
    assert record.size_bytes > single.size_bytes


def test_each_profile_names_each_dynamic_input(linear: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"input 'x' is \(\?, 3\), and no shape range is given for it"):
        tensorrt_rtx.build(linear, tmp_path / "engine", BuildOptions(shapes=LINEAR, more_shapes=({},)))


def test_progress_is_told_step_by_step(linear: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    options = BuildOptions(shapes=LINEAR, progress=lambda *what: told.append(what))
    tensorrt_rtx.build(linear, tmp_path / "engine", options)
    assert told[0][1] == 0
    assert told[-1][1] == told[-1][2] > 1
    assert len({phase for phase, _, _ in told}) == 1, "inner phases are not told"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (BuildOptions("int8", LINEAR, native=GivenScales(b"")), 'has no calibrators; take int8 = "qdq"'),
        (BuildOptions(shapes=LINEAR, version_compatible=True), "a version-compatible engine is requested"),
        (BuildOptions("fp16", LINEAR, dla_core=0), "has no DLA; leave dla_core at -1"),
    ],
)
def test_what_it_does_not_have(linear: Path, tmp_path: Path, options: BuildOptions, words: str) -> None:
    with pytest.raises(Unavailable, match=words):
        tensorrt_rtx.build(linear, tmp_path / "engine", options)
    assert not (tmp_path / "engine").exists()
