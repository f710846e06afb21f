"""What every backend promises, held to each of them. One that is unavailable here skips, and says why."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engines import BACKENDS, backend
from engines.contract import (
    DYNAMIC,
    Array,
    Backend,
    BuildOptions,
    Placement,
    Runner,
    ShapeRange,
    SharingBackend,
    TensorSpec,
)
from engines.errors import EngineError, Unavailable
from engines.torch_graph.exporter import program_from_module, traceable
from engines.torch_graph.library import load_torch
from engines.torch_graph.program import save_program
from tests.engines.python38 import backend_in_38
from tests.tflite_files import save_linear

SaveModel = Callable[[str], Path]


def assert_close(found: Array, wanted: list[list[float]]) -> None:
    np.testing.assert_allclose(found.astype(np.float64), np.array(wanted), rtol=1e-6)


OPTIONS = BuildOptions(shapes={"x": ShapeRange(min=(1, 3), opt=(2, 3), max=(8, 3))})


IN_38 = ("onnxruntime in 3.8", "reference in 3.8")
"""Through a process of Python 3.8, as TensorRT is called on JetPack 5."""


def named(name: str) -> Backend:
    base, _, version = name.partition(" in ")
    return backend_in_38(base) if version else backend(base)


@pytest.fixture(params=[*BACKENDS, *IN_38])
def any_backend(request: pytest.FixtureRequest) -> Backend:
    return named(request.param)


TRAINERS = ("tensorflow", "pytorch")
"""Build nowhere: they are where models come from."""


@pytest.fixture(params=[name for name in (*BACKENDS, *IN_38) if name not in TRAINERS])
def builder(request: pytest.FixtureRequest) -> Backend:
    """A backend that can build here."""
    module = named(request.param)
    if reason := module.why_not_build():
        pytest.skip(reason)
    return module


@pytest.fixture
def onnx_builder(builder: Backend) -> Backend:
    """One that builds from ONNX files."""
    if builder.TAKES != "onnx":
        pytest.skip(f"{builder.NAME} builds from {builder.TAKES} files")
    return builder


def made_for(some_backend: Backend, linear: Path) -> Path:
    """y = x w + b in the format that the backend takes: with a free batch, but in a .tflite file."""
    return save_linear(linear.with_suffix(".tflite")) if some_backend.TAKES == "tflite" else linear


def batch_of(some_backend: Backend) -> int:
    """The batch that ``made_for`` has."""
    return 1 if some_backend.TAKES == "tflite" else DYNAMIC


NO_FILE = {
    "onnx": (r"is not an ONNX model with outputs", r"cannot be read as an ONNX model \(.*No such file"),
    "tflite": (r"is not a .tflite file, bytes 4 to 8 are", r"cannot be read \(No such file"),
}
"""What is said of an empty file, and where there is none."""


@pytest.fixture
def runner(any_backend: Backend, linear: Path, tmp_path: Path) -> Iterator[Runner]:
    """y = x w + b, loaded by a backend that can run here."""
    if reason := any_backend.why_not_run():
        pytest.skip(reason)
    engine = tmp_path / f"engine{any_backend.SUFFIX}"
    if any_backend.NAME == "tensorflow":
        _save_linear_with_tensorflow(engine)
    elif any_backend.NAME == "pytorch":
        _save_linear_with_torch(engine)
    else:
        any_backend.build(made_for(any_backend, linear), engine, OPTIONS)
    with any_backend.load(engine, num_threads=0) as loaded:
        yield loaded


def size_of(engine: Path) -> int:
    """Of the file, or of all that is in the folder."""
    return sum(file.stat().st_size for file in [engine, *engine.rglob("*")] if file.is_file())


def run_rows(runner: Runner, rows: Array) -> Array:
    """The output for all rows; of an engine with a fixed batch one by one, after which the answers are looked at."""
    if runner.inputs[0].shape[0] == DYNAMIC:
        return runner.infer({"x": rows})["y"]
    return np.concatenate([runner.infer({"x": rows[n : n + 1]})["y"] for n in range(len(rows))])


def _save_linear_with_tensorflow(folder: Path) -> None:
    backend("tensorflow").versions()  # imports it quietly
    import tensorflow as tf

    module = tf.Module()
    module.w = tf.Variable([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    serve = tf.function(
        lambda x: {"y": x @ module.w + tf.constant([0.5, -0.5])},
        input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")],
    )
    tf.saved_model.save(module, str(folder), signatures={"serving_default": serve})


def _save_linear_with_torch(path: Path) -> None:
    torch = load_torch()

    class Linear(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return {"y": x @ torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]) + torch.tensor([0.5, -0.5])}

    save_program(program_from_module(traceable((Linear().eval(), torch.ones(2, 3)))[0]), path)


def test_names(any_backend: Backend) -> None:
    assert any_backend.NAME in BACKENDS
    assert any_backend.PLACEMENT in get_args(Placement)
    assert any_backend.SUFFIX == "" or any_backend.SUFFIX.startswith(".")
    assert "install" in any_backend.INSTALL
    assert "\n" not in any_backend.INSTALL


def test_unknown_backend_offers_the_known_ones() -> None:
    with pytest.raises(Unavailable, match=r"backend 'tensort': no such backend; choose one of litert, onnxruntime, "):
        backend("tensort")


def test_importing_loads_no_giant() -> None:
    program = (
        "import sys, engines.availability; from engines import BACKENDS, backend\n"
        "for name in BACKENDS: backend(name).why_not_build(), backend(name).why_not_run()\n"
        "print(sorted({'tensorflow', 'keras', 'tensorrt', 'tensorrt_rtx', 'pycuda', 'onnxruntime', 'tf2onnx', 'torch',"
        " 'ai_edge_litert', 'ai_edge_quantizer'}"
        " & {name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_reasons_are_one_sentence_that_names_the_backend(any_backend: Backend) -> None:
    for reason in (any_backend.why_not_build(), any_backend.why_not_run()):
        assert reason == "" or (reason.startswith(f"{any_backend.NAME}: ") and "\n" not in reason and "; " in reason)


def test_versions(any_backend: Backend) -> None:
    try:
        versions = any_backend.versions()
    except Unavailable as error:
        pytest.skip(str(error))
    assert all(isinstance(value, str) and value for value in versions.values())
    assert any(value[0].isdigit() for value in versions.values())


# Building


def test_record(builder: Backend, linear: Path, tmp_path: Path) -> None:
    engine = tmp_path / f"engine{builder.SUFFIX}"
    record = builder.build(made_for(builder, linear), engine, OPTIONS)
    assert (record.backend, record.precision) == (builder.NAME, "fp32")
    assert record.size_bytes == size_of(engine) > 0
    assert record.build_seconds > 0
    assert record.versions == builder.versions()
    batch = batch_of(builder)
    assert record.inputs == (TensorSpec("x", "float32", (batch, 3)),)
    assert record.outputs == (TensorSpec("y", "float32", (batch, 2)),)
    assert (record.num_quantizable, record.num_int8) == (1, 0)


def test_building_without_the_runtime_is_unavailable(any_backend: Backend, linear: Path, tmp_path: Path) -> None:
    reason = any_backend.why_not_build()
    if not reason:
        pytest.skip(f"{any_backend.NAME} can build here")
    with pytest.raises(Unavailable, match=any_backend.NAME):
        any_backend.build(linear, tmp_path / "engine", OPTIONS)
    assert not (tmp_path / "engine").exists()


def test_truncated_model(builder: Backend, linear: Path, tmp_path: Path) -> None:
    model = made_for(builder, linear)
    model.write_bytes(model.read_bytes()[:40])
    with pytest.raises(EngineError, match=r"model\.(onnx|tflite): .*; (export|copy or convert) it again"):
        builder.build(model, tmp_path / "engine", OPTIONS)
    assert not (tmp_path / "engine").exists()


def test_empty_and_missing_model(builder: Backend, tmp_path: Path) -> None:
    (tmp_path / "empty.model").touch()
    empty, missing = NO_FILE[builder.TAKES]
    with pytest.raises(EngineError, match=rf"empty\.model: {empty}"):
        builder.build(tmp_path / "empty.model", tmp_path / "engine", OPTIONS)
    with pytest.raises(EngineError, match=rf"nowhere\.model: {missing}"):
        builder.build(tmp_path / "nowhere.model", tmp_path / "engine", OPTIONS)


def test_operator_that_no_runtime_knows(onnx_builder: Backend, save_model: SaveModel, tmp_path: Path) -> None:
    model = save_model(
        '<ir_version: 8, opset_import: ["" : 17, "their.own" : 1]> '
        "g (float[N, 3] x) => (float[N, 3] y) { [odd] y = their.own.Frobnicate(x) }"
    )
    with pytest.raises(EngineError, match="Frobnicate"):
        onnx_builder.build(model, tmp_path / "engine", OPTIONS)
    assert not (tmp_path / "engine").exists()


def test_weights_in_another_file(onnx_builder: Backend, linear: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    model = onnx.load(linear)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((3, 2), np.float32), "w"))
    onnx.save_model(model, outside, save_as_external_data=True, location="weights.bin", size_threshold=0)
    folder = tmp_path / "engines"
    folder.mkdir()
    record = onnx_builder.build(outside, folder / f"engine{onnx_builder.SUFFIX}", OPTIONS)
    assert record.size_bytes == size_of(folder)
    (tmp_path / "weights.bin").rename(tmp_path / "engines" / "weights.bin")
    for location in ("weights.bin", f"{tmp_path}/engines/weights.bin", "we\0ights.bin"):
        model = onnx.load(outside, load_external_data=False)
        model.graph.initializer[0].external_data[0].value = location
        onnx.save(model, outside)
        with pytest.raises(EngineError, match=r"weights lie in '.*', a file in the model's folder is expected"):
            onnx_builder.build(outside, tmp_path / "engine", OPTIONS)


@pytest.mark.parametrize(
    ("precision", "words"),
    [("int8", "the model has no QuantizeLinear; quantize it"), ("fp16", "the model has no FP16 tensor; cast it first")],
)
def test_another_precision_than_the_file_was_written_for(
    onnx_builder: Backend, linear: Path, tmp_path: Path, precision: str, words: str
) -> None:
    with pytest.raises(EngineError, match=f"precision {precision} is requested, {words}"):
        onnx_builder.build(linear, tmp_path / "engine", BuildOptions(precision, OPTIONS.shapes))


def test_unknown_compute_capability_is_refused(builder: Backend, linear: Path, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"8\.7"):
        builder.build(
            made_for(builder, linear),
            tmp_path / "engine",
            BuildOptions(shapes=OPTIONS.shapes, compute_capabilities=("8.7",)),
        )


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("z", ShapeRange((1, 3), (2, 3), (8, 3)), "a shape range is given for 'z', the model's inputs are 'x'"),
        ("x", ShapeRange((4, 3), (2, 3), (8, 3)), "it must be min <= opt <= max in every dimension"),
        ("x", ShapeRange((1, 4), (2, 4), (8, 4)), r"input 'x' is \(\?, 3\), its min shape \(1, 4\) does not fit"),
        ("x", ShapeRange((1, 3), (2, 3), (8,)), r"its max shape \(8\) does not fit"),
        ("x", ShapeRange((0, 3), (2, 3), (8, 3)), r"its min shape \(0, 3\) does not fit"),
    ],
)
def test_shape_ranges_that_do_not_fit(
    builder: Backend, linear: Path, tmp_path: Path, name: str, shape: ShapeRange, words: str
) -> None:
    with pytest.raises(EngineError, match=words):
        builder.build(made_for(builder, linear), tmp_path / "engine", BuildOptions(shapes={name: shape}))


# Running


def test_specs_of_a_loaded_engine(runner: Runner, any_backend: Backend) -> None:
    batch = batch_of(any_backend)
    assert runner.inputs == (TensorSpec("x", "float32", (batch, 3)),)
    assert runner.outputs == (TensorSpec("y", "float32", (batch, 2)),)


def test_infer(runner: Runner) -> None:
    one = np.array([[1, 2, 3]], np.float32)
    three = np.array([[1, 0, 0], [0, 1, 0], [0, 0, -1]], np.float32)
    first = runner.infer({"x": one})
    second = run_rows(runner, three)
    assert set(first) == {"y"}
    assert first["y"].dtype == np.float32
    # Compared after the second run, so that an output which shares memory with the next one is found out.
    assert_close(first["y"], [[22.5, 27.5]])
    assert_close(second, [[1.5, 1.5], [3.5, 3.5], [-4.5, -6.5]])


def test_infer_takes_a_view_that_is_not_contiguous(runner: Runner) -> None:
    wide = np.arange(12, dtype=np.float32).reshape(2, 6)
    assert_close(run_rows(runner, wide[:, ::2]), [[26.5, 31.5], [80.5, 103.5]])


def test_device_time(runner: Runner) -> None:
    runner.infer({"x": np.zeros((1, 3), np.float32)})
    device_ms, times = runner.device_ms(), runner.facts().times
    assert device_ms is None or 0 < device_ms < 1000
    assert (times is None) is (device_ms is None)
    assert times is None or times.compute_ms == device_ms


def test_memory_and_what_could_not_be_done(runner: Runner) -> None:
    runner.infer({"x": np.zeros((1, 3), np.float32)})
    facts = runner.facts()
    assert facts.device_memory_mib is None or facts.device_memory_mib > 0
    assert not [note for note in facts.notes if "\n" in note or not note.endswith(".")]


def test_times_of_layers(any_backend: Backend, linear: Path, tmp_path: Path) -> None:
    if any_backend.NAME in TRAINERS or any_backend.why_not_run():
        pytest.skip(any_backend.why_not_run() or f"{any_backend.NAME} builds nowhere")
    engine = tmp_path / f"engine{any_backend.SUFFIX}"
    any_backend.build(made_for(any_backend, linear), engine, OPTIONS)
    batch = batch_of(any_backend)
    feed = {"x": np.ones((8 if batch == DYNAMIC else batch, 3), np.float32)}
    found = any_backend.layer_times(engine, feed, 5)
    assert found.allocated_mib is None or found.allocated_mib > 0
    if any_backend.NAME == "reference" or isinstance(any_backend, SharingBackend):
        assert found.layers == ()
        return
    assert found.layers
    assert all(layer.median_ms >= 0 for layer in found.layers)
    lasts = any(layer.median_ms for layer in found.layers)  # LiteRT counts whole microseconds, which this is below.
    assert sum(layer.share for layer in found.layers) == pytest.approx(1 if lasts else 0)
    if any_backend.TAKES == "onnx":
        assert {node for layer in found.layers for node in layer.layer.nodes} <= {"fc", "bias"}
        assert "fc" in found.layers[0].layer.nodes, "it is fused with the bias, or comes first"


@pytest.mark.parametrize(
    ("feed", "words"),
    [
        ({}, r"the feed does not name the inputs \(missing 'x'\), the engine takes 'x'"),
        ({"x": np.zeros((1, 3), np.float32), "k": np.zeros(1)}, r"\(unknown 'k'\), the engine takes 'x'"),
        ({"x": np.zeros((1, 3))}, r"input 'x' is float64 \(1, 3\), the engine takes float32; convert it"),
        ({"x": np.zeros((1, 3), ">f4")}, r"input 'x' is >f4 \(1, 3\), the engine takes float32"),
        ({"x": np.zeros((1, 4), np.float32)}, r"input 'x' has shape \(1, 4\), the engine takes \((\?|1), 3\)"),
        ({"x": np.zeros(3, np.float32)}, r"input 'x' has shape \(3\), the engine takes \((\?|1), 3\)"),
        ({"x": np.zeros((0, 3), np.float32)}, r"input 'x' has shape \(0, 3\), the engine takes \((\?|1), 3\)"),
        ({"x": [[1.0, 2.0, 3.0]]}, "input 'x' is a list, the engine takes a numpy array"),
    ],
)
def test_feeds_that_do_not_fit(runner: Runner, feed: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(EngineError, match=words):
        runner.infer(feed)
    assert_close(runner.infer({"x": np.zeros((1, 3), np.float32)})["y"], [[0.5, -0.5]])


def test_nothing_is_loaded_before_enter(any_backend: Backend, tmp_path: Path) -> None:
    runner = any_backend.load(tmp_path / "nowhere", num_threads=0)
    with pytest.raises((EngineError, Unavailable), match=rf"nowhere|{any_backend.NAME}|GPU"), runner:
        pytest.fail("there is no engine to load")
