"""LiteRT: what of a file it refuses, what it says of one in its record, and int8 at inputs and outputs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from calibration.data.batches import DataSource, InputSpec, open_samples
from calibration.data.preprocess import Preprocess
from engines.backends import litert
from engines.contract import BuildOptions, Runner, ShapeRange
from engines.errors import EngineError, Unavailable
from engines.litert.facts import TfliteFacts
from pipeline.artifact import Engine
from pipeline.stages.infer import Infer
from pipeline.store import Store
from tests.tflite_files import TfliteWriter, save_cosine_in_int8, save_dense_in_int8, save_linear

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")


def refused(model: Path, precision: str = "fp32") -> str:
    """What building from it says."""
    with pytest.raises(EngineError) as error:
        litert.build(model, model.with_name("engine.tflite"), BuildOptions(precision))
    assert not model.with_name("engine.tflite").exists()
    return str(error.value).removeprefix(f"{model}: ")


def test_a_float_operator_in_full_integer_is_named(tmp_path: Path) -> None:
    """The converter leaves it there without a word."""
    assert refused(save_cosine_in_int8(tmp_path / "m.tflite"), "int8") == (
        "1 of 4 operators compute in floating point, COS 'turned'; in int8 all are expected to compute in integers: "
        "replace them in the network, name them in [ptq] exclude, or take dynamic"
    )


def test_a_file_in_another_precision(tmp_path: Path) -> None:
    assert refused(save_linear(tmp_path / "m.tflite"), "int8") == (
        "precision int8 is requested, the file is in fp32; ask for fp32, or write int8 with `trtforge ptq`"
    )
    assert "precision fp32 is requested, the file is in int8" in refused(save_dense_in_int8(tmp_path / "m.tflite"))


def test_a_dynamic_batch_is_refused(tmp_path: Path) -> None:
    assert refused(save_linear(tmp_path / "m.tflite", batch=-1)) == (
        "input 'x' is (?, 3), a fixed shape is expected; convert the network with `trtforge convert`, which fixes the "
        "batch"
    )


def test_shapes_that_the_fixed_one_is_not_within(tmp_path: Path) -> None:
    model = save_linear(tmp_path / "m.tflite")
    options = BuildOptions(shapes={"x": ShapeRange((2, 3), (2, 3), (8, 3))})
    with pytest.raises(EngineError, match=r"input 'x' is \(1, 3\), which is not within the shapes asked for, \(2, 3\)"):
        litert.build(model, tmp_path / "engine", options)


@pytest.mark.parametrize("kind", ["FlexErf", "TheirOwn"])
def test_custom_and_flex_operators(tmp_path: Path, kind: str) -> None:
    writer = TfliteWriter()
    x, y = writer.tensor("x", (1, 3)), writer.tensor("y", (1, 3))
    writer.operator(kind, [x], [y])
    assert refused(writer.save(tmp_path / "m.tflite", [x], [y])) == (
        f"{kind} 'y' is no operator of TensorFlow Lite's own, which alone LiteRT runs here; replace that in the network"
    )


def test_a_file_without_signature_and_one_of_another_schema(tmp_path: Path) -> None:
    writer = TfliteWriter()
    x, y = writer.tensor("x", (1, 3)), writer.tensor("y", (1, 3))
    writer.operator("RELU", [x], [y])
    bare = writer.save(tmp_path / "m.tflite", [x], [y], signature=False)
    assert "has no signature of its main graph, which names its inputs and outputs (it has none)" in refused(bare)
    writer.model.version = 2
    other = writer.save(tmp_path / "m.tflite", [x], [y])
    assert refused(other) == "is of version 2 of the format, 3 is expected; convert it again"


def test_every_cut_of_a_file_is_one_sentence(tmp_path: Path) -> None:
    whole = save_linear(tmp_path / "whole.tflite").read_bytes()
    for length in range(8, len(whole), 8):
        cut = tmp_path / "cut.tflite"
        cut.write_bytes(whole[:length])
        with suppress(EngineError):  # Of what is cut off behind the last of its tables, all can be read.
            assert isinstance(litert.tflite_facts(cut), TfliteFacts)


def test_a_runtime_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = save_linear(tmp_path / "m.tflite")
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(Unavailable, match=r"litert: cannot be imported .*; pip install 'trtforge\[litert\]'"):
        litert.build(model, tmp_path / "engine", BuildOptions())


def test_whose_kernels_run_is_in_the_record(tmp_path: Path) -> None:
    record = litert.build(save_linear(tmp_path / "m.tflite"), tmp_path / "engine", BuildOptions())
    assert record.versions["kernels"] in ("XNNPACK", "built-in")
    assert len(record.notes) == 1
    assert "of 1 operators run in kernels of XNNPACK" in record.notes[0]
    assert [(layer.name, layer.kind, layer.precision) for layer in record.layers] == [("y", "FULLY_CONNECTED", "FP32")]
    assert record.num_layers_by_precision == {"FP32": 1}


@pytest.fixture
def without_xnnpack(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A runtime as a board may have it: built without XNNPACK, so that its own kernels run."""
    lite = litert._import()
    kind = lite.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    litert._kernels.cache_clear()
    monkeypatch.setattr(lite, "Interpreter", partial(lite.Interpreter, experimental_op_resolver_type=kind))
    yield
    litert._kernels.cache_clear()


@pytest.mark.usefixtures("without_xnnpack")
def test_a_runtime_without_xnnpack_says_so(tmp_path: Path) -> None:
    record = litert.build(save_linear(tmp_path / "m.tflite"), tmp_path / "engine.tflite", BuildOptions())
    assert record.versions["kernels"] == "built-in"
    assert record.notes == ("This runtime has no XNNPACK: all 1 operators run in LiteRT's own kernels.",)
    with litert.load(tmp_path / "engine.tflite", num_threads=1) as runner:
        assert values(runner, [1.0, 2.0, 3.0])["y"]
    feed = {"x": np.ones((1, 3), np.float32)}
    assert litert.layer_times(tmp_path / "engine.tflite", feed, 1).layers == (), "its profiler would run XNNPACK"


def test_what_one_runtime_answered_does_not_serve_for_the_other(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Nor does a verdict on it, which is of those answers."""
    engine = save_linear(tmp_path / "m.tflite")
    np.savez(tmp_path / "data.npz", x=np.ones((3, 3), np.float32))
    specs = (InputSpec("x", "float32", (1, 3)),)
    samples = open_samples(DataSource(str(tmp_path / "data.npz")), specs, Preprocess(), tmp_path)
    store, infer = Store(tmp_path / "store"), Infer()
    first = store.run(infer, Engine(engine, "litert"), samples)
    assert store.run(infer, Engine(engine, "litert"), samples) == first
    request.getfixturevalue("without_xnnpack")
    assert store.run(infer, Engine(engine, "litert"), samples) != first


def test_int8_at_input_and_output_is_fed_and_answered_in_floats(tmp_path: Path) -> None:
    model = save_dense_in_int8(tmp_path / "m.tflite")
    record = litert.build(model, tmp_path / "engine.tflite", BuildOptions("int8"))
    assert (record.num_quantizable, record.num_int8) == (1, 1)
    assert [spec.dtype for spec in (*record.inputs, *record.outputs)] == ["float32", "float32"]
    with litert.load(tmp_path / "engine.tflite", num_threads=1) as runner:
        # Weights are [[0.5, 1, 1.5], [2, 2.5, 3]]; the largest input is (127 - 10) / 2 = 58.5.
        answers = runner.infer({"x": np.array([[1.0, 2.0, 3.0]], np.float32)})["y"]
        clipped = runner.infer({"x": np.array([[1000.0, 0.0, 0.0]], np.float32)})["y"]
        with pytest.raises(EngineError, match=r"input 'x' is int8 \(1, 3\), the engine takes float32; convert it"):
            runner.infer({"x": np.zeros((1, 3), np.int8)})
    np.testing.assert_array_equal(answers, [[7.0, 16.0]])
    np.testing.assert_allclose(clipped.astype(np.float64), np.array([[29.25, 117.0]]), atol=0.51)


def values(runner: Runner, x: list[float]) -> dict[str, list[float]]:
    found = runner.infer({"x": np.array([x], np.float32)})
    return {name: array.ravel().tolist() for name, array in found.items()}


def test_values_of_every_tensor(tmp_path: Path) -> None:
    writer = TfliteWriter()
    x, a, y = writer.tensor("x", (1, 2)), writer.tensor("a", (1, 2)), writer.tensor("y", (1, 2))
    writer.operator("RELU", [x], [a])
    writer.operator("NEG", [a], [y], "NegOptions")
    model = writer.save(tmp_path / "m.tflite", [x], [y])
    with litert.load_values(model, num_threads=1) as runner:
        assert values(runner, [-1.0, 2.0]) == {"x": [-1.0, 2.0], "a": [0.0, 2.0], "y": [0.0, -2.0]}
        assert values(runner, [3.0, 0.5])["a"] == [3.0, 0.5]


def test_values_go_by_names_that_are_unique(tmp_path: Path) -> None:
    writer = TfliteWriter()
    x, y = writer.tensor("x", (1, 2)), writer.tensor("y", (1, 2))
    writer.operator("RELU", [x], [y])
    writer.graph.tensors[1].name = b"x"
    model = writer.save(tmp_path / "m.tflite", [x], [y])
    with pytest.raises(EngineError, match="two of its tensors have one name"), litert.load_values(model, num_threads=1):
        pytest.fail("its values cannot be told apart")


def test_it_is_quiet(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from engines.backends import litert\n"
        "litert.versions()\n"
        "with litert.load(Path(sys.argv[1]), num_threads=1) as runner: print(len(runner.inputs))"
    )
    model = save_linear(tmp_path / "m.tflite")
    done = subprocess.run([sys.executable, "-c", program, model], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("1\n", "")
