"""The Edge TPU's rules: each on a file that breaks it alone, what its compiler says, and what is written for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines.backends import litert
from engines.contract import BuildOptions
from engines.errors import EngineError
from engines.litert.edgetpu import first_on_cpu, notes, num_products
from engines.litert.edgetpu_compiler import compiled, compiler_version
from engines.litert.quantizer import TfliteFormat, quantized
from engines.precision import PRECISIONS
from pipeline.stages.ptq import _with_versions
from tests.engines.litert.test_quantizer import RANGES
from tests.tflite_files import TfliteWriter, save_dense_in_int8, save_residual

pytest.importorskip("ai_edge_quantizer", reason="ai-edge-quantizer is not installed")

FOR_EDGETPU = BuildOptions("int8", edgetpu=True)


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """The residual network as `ptq --edgetpu` writes it."""
    path = tmp_path / "ready.tflite"
    wanted = TfliteFormat(PRECISIONS["int8"], integer_io=True, per_dense_tensor=True)
    path.write_bytes(_with_versions(quantized(save_residual(tmp_path / "float.tflite"), wanted, RANGES)))
    return path


def test_what_is_written_for_it_is_ready_and_runs(ready: Path, tmp_path: Path) -> None:
    facts = litert.tflite_facts(ready)
    assert [len(each.weights.scales) for each in facts.products if each.weights is not None] == [1, 1, 1]
    assert {(each.kind, each.version) for each in facts.operators} == {("FULLY_CONNECTED", 4), ("RELU", 1), ("ADD", 2)}
    record = litert.build(ready, tmp_path / "engine.tflite", FOR_EDGETPU)
    assert record.notes[-1].startswith(
        "It is ready for the Edge TPU by the published rules, not compiled: `edgetpu_comp"
    )
    assert record.options == {"edgetpu": True}
    with litert.load(ready, num_threads=1) as runner, litert.load(tmp_path / "float.tflite", num_threads=1) as full:
        row = {"x": np.linspace(-1, 1, 8, dtype=np.float32)[None]}
        expected = full.infer(row)["y"].astype(np.float64)
        answered = runner.infer(row)["y"].astype(np.float64)
    assert np.abs(answered - expected).max() < 0.1 * np.abs(expected).max()


def test_one_that_is_not_is_refused_with_the_first_operator(tmp_path: Path) -> None:
    path = tmp_path / "int8.tflite"
    path.write_bytes(quantized(save_residual(tmp_path / "float.tflite"), TfliteFormat(PRECISIONS["int8"]), RANGES))
    with pytest.raises(
        EngineError, match=r"operator 1 of 7, QUANTIZE '.*', would stay on the CPU and all after it, 100%"
    ):
        litert.build(path, tmp_path / "engine.tflite", FOR_EDGETPU)
    assert litert.build(path, tmp_path / "engine.tflite", BuildOptions("int8")).options == {}


def test_other_precisions_are_built_for_the_cpu(tmp_path: Path) -> None:
    path = save_residual(tmp_path / "float.tflite")
    assert litert.build(path, tmp_path / "engine.tflite", BuildOptions("fp32", edgetpu=True)).options == {}


Fill = Callable[[TfliteWriter, str], str]
"""Adds an operator behind a tensor; what it makes."""


def behind(kind: str, shape: tuple[int, ...], options: str = "", **constants: list[int]) -> Fill:
    """One operator with INT32 constants as its further inputs."""

    def fill(writer: TfliteWriter, data: str) -> str:
        made = writer.tensor("made", shape, "INT8", 0.1)
        others = [writer.constant(name, np.array(values, np.int32)) for name, values in constants.items()]
        writer.operator(kind, [data, *others], [made], options)
        return made

    return fill


def dense(num_scales: int, rows: int = 1) -> Fill:
    def fill(writer: TfliteWriter, data: str) -> str:
        made = writer.tensor("made", (rows, 4), "INT8", 0.1)
        w = writer.constant("w", np.ones((4, 64), np.int8), 0.1)
        writer.graph.tensors[-1].quantization.scale = [0.1] * num_scales
        b = writer.constant("b", np.zeros(4, np.int32), 0.01)
        writer.operator("FULLY_CONNECTED", [data, w, b], [made], "FullyConnectedOptions")
        return made

    return fill


def pool(writer: TfliteWriter, data: str) -> str:
    made = behind("AVERAGE_POOL_2D", (1, 4, 4, 4), "Pool2DOptions")(writer, data)
    writer.graph.operators[-1].builtinOptions.fusedActivationFunction = writer.schema.ActivationFunctionType.RELU6
    return made


def concatenation(writer: TfliteWriter, data: str) -> str:
    made = writer.tensor("made", (1, 4, 4, 12), "INT8", 0.1)
    zeros = [writer.constant(name, np.zeros((1, 4, 4, 4), np.int8), 0.1) for name in ("first", "second")]
    writer.operator("CONCATENATION", [data, *zeros], [made], "ConcatenationOptions")
    return made


@pytest.mark.parametrize(
    ("fill", "words"),
    [
        (behind("MEAN", (1, 4), axis=[1, 2]), ""),
        (behind("MEAN", (1, 4, 4), axis=[3]), "it reduces axes (3,), height and width are expected"),
        (behind("PAD", (1, 6, 6, 4), amounts=[0, 0, 1, 1, 1, 1, 0, 0]), ""),
        (behind("PAD", (1, 4, 4, 6), amounts=[0] * 6 + [1, 1]), "it pads axes [3], height and width are expected"),
        (behind("SOFTMAX", (1, 1, 1, 20_000)), "it has 20000 values, at most 16000 are taken"),
        (behind("SOFTMAX", (1, 4, 4, 4)), "its output is (1, 4, 4, 4), one dimension is expected"),
        (behind("SQUEEZE", (4, 4, 4)), ""),
        (behind("SQUEEZE", (1, 4, 4)), "it leaves out other dimensions than leading ones"),
        (behind("STRIDED_SLICE", (1, 2, 2, 4), b=[0] * 4, e=[1, 2, 2, 4], s=[1] * 4), ""),
        (behind("STRIDED_SLICE", (1, 2, 2, 4), b=[0] * 4, e=[1, 4, 4, 4], s=[1, 2, 2, 1]), "its strides are not all 1"),
        (behind("TRANSPOSE", (1, 4, 4, 4), perm=[0, 2, 1, 3]), "the Edge TPU has no such operator"),
        (behind("FlexErf", (1, 4, 4, 4)), "it is no operator of TensorFlow Lite's own"),
        (behind("RELU", (4, 4, 4, 4)), "'made' is (4, 4, 4, 4): only its 3 innermost dimensions may be larger than 1"),
        (behind("RELU", (-1, 4, 4, 4)), "'made' has a dynamic shape"),
        (dense(1), ""),
        (dense(4), "its weights have 4 scales, one is expected"),
        (dense(1, rows=3), "its output is (3, 4), one dimension is expected"),
        (pool, "it has the activation RELU6, none is taken"),
        (concatenation, "it has a constant among 3 inputs, with one there may be 2"),
    ],
)  # fmt: skip
def test_each_rule(fill: Fill, words: str, tmp_path: Path) -> None:
    writer = TfliteWriter()
    x = writer.tensor("x", (1, 4, 4, 4), "INT8", 0.1)
    relu = writer.tensor("relu", (1, 4, 4, 4), "INT8", 0.1)
    writer.operator("RELU", [x], [relu])
    made = fill(writer, relu)
    left = first_on_cpu(litert.tflite_facts(writer.save(tmp_path / "m.tflite", [x], [made])))
    assert (left is None) == (not words)
    if left is not None:
        assert (left.index, left.reason) == (1, words)
        assert left.sentence(2).startswith(f"operator 2 of 2, {left.operator.kind} 'made', would stay on the CPU and ")


def test_how_much_of_the_work_comes_after_it(tmp_path: Path) -> None:
    """A convolution of 8·8·3·3·4·8 multiplications, one for each channel of 8·8·3·3·8, and a dense layer of 512·4."""
    writer = TfliteWriter()
    x = writer.tensor("x", (1, 8, 8, 4), "INT8", 0.1)
    shapes = {"CONV_2D": (8, 3, 3, 4), "DEPTHWISE_CONV_2D": (1, 3, 3, 8)}
    data = x
    for kind, shape in shapes.items():
        w = writer.constant(f"{kind}_w", np.ones(shape, np.int8), 0.1)
        data, before = writer.tensor(kind, (1, 8, 8, 8), "INT8", 0.1), data
        writer.operator(kind, [before, w], [data])
    flat = writer.tensor("flat", (1, 512), "INT8", 0.1)
    writer.operator("TRANSPOSE", [data], [flat])
    w, y = writer.constant("w", np.ones((4, 512), np.int8), 0.1), writer.tensor("y", (1, 4), "INT8", 0.1)
    writer.operator("FULLY_CONNECTED", [flat, w], [y])
    facts = litert.tflite_facts(writer.save(tmp_path / "m.tflite", [x], [y]))
    assert [num_products(each) for each in facts.operators] == [18_432, 4_608, 0, 2_048]
    left = first_on_cpu(facts)
    assert left is not None
    assert left.index == 2
    assert left.share == pytest.approx(2_048 / 25_088)


def test_what_is_to_be_known_of_one_that_is_ready(tmp_path: Path) -> None:
    writer = TfliteWriter()
    x = writer.tensor("x", (1, 4), "INT8", 0.1)
    made = behind("SUM", (1, 1), axis=[1])(writer, x)
    facts = litert.tflite_facts(writer.save(tmp_path / "m.tflite", [x], [made]))
    assert first_on_cpu(facts) is None
    assert notes(facts, 1.0)[0].startswith(
        "SUM: later editions of the Edge TPU's table have them, whose conditions are"
    )
    assert notes(facts, 20.04)[1].startswith("The file has 20.0 MiB, the Edge TPU keeps about 8 MiB of weights")


LOG = """Edge TPU Compiler version 16.0.384591198
Operator                       Count      Status

FULLY_CONNECTED                1          Mapped to Edge TPU
DEQUANTIZE                     2          Operation is working on an unsupported data type
"""
SAID = """Edge TPU Compiler version 16.0.384591198
Model compiled successfully in 42 ms.
Number of operations that will run on Edge TPU: 1
Number of operations that will run on CPU: 2
"""


def pretended_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, said: str, status: int = 0) -> None:
    """What the real one prints and writes, which is for x86-64 Debian and cannot be had here."""
    (folder / "log").write_text(LOG)
    (folder / "said").write_text(said)
    script = folder / "edgetpu_compiler"
    script.write_text(
        f'#!/bin/sh\n[ "$1" != -s ] || cp "{folder}/log" "$3/m_edgetpu.log"\ncat "{folder}/said"\nexit {status}\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_the_compiler_is_run_where_there_is_one(ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiler_version() == ""
    pretended_compiler(tmp_path, monkeypatch, SAID)
    assert compiler_version() == "16.0.384591198"
    assert compiled(ready).sentence() == (
        "edgetpu_compiler 16.0.384591198 compiles it: 1 of 3 operators run on the Edge TPU: 2 DEQUANTIZE (Operation is "
        "working on an unsupported data type)."
    )
    assert "compiles it: 1 of 3" in litert.build(ready, tmp_path / "engine.tflite", FOR_EDGETPU).notes[-1]


def test_what_the_compiler_refuses_is_refused(ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretended_compiler(tmp_path, monkeypatch, "Internal compiler error. Aborting!\n", 1)
    with pytest.raises(EngineError, match=r"ready\.tflite: edgetpu_compiler refuses it \(Internal compiler error"):
        litert.build(ready, tmp_path / "engine.tflite", FOR_EDGETPU)


def test_a_dense_layer_of_upstreams_file_is_as_expected(tmp_path: Path) -> None:
    assert first_on_cpu(litert.tflite_facts(save_dense_in_int8(tmp_path / "m.tflite"))) is None
