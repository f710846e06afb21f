"""Values that lie behind the flatbuffer, as in files of 256 KiB or more, come through every rewriting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines.backends import litert
from engines.litert.file_bytes import packed, unpacked
from engines.litert.in_float import with_operators_in_float
from engines.litert.names import with_short_names
from engines.litert.op_versions import with_int8_versions
from engines.litert.published import with_signature
from engines.litert.quantizer import TfliteFormat, quantized
from engines.precision import INT8
from tests.tflite_files import TfliteWriter

pytest.importorskip("ai_edge_quantizer", reason="ai-edge-quantizer is not installed")
SIZE = 512
"""A dense layer of so many outputs has 256 KiB of INT8 weights."""
REWRITINGS: dict[str, Callable[..., bytes]] = {
    "versions": with_int8_versions,
    "names": with_short_names,
    "signature": with_signature,
    "in float": lambda schema, flatbuffers, data: with_operators_in_float(schema, flatbuffers, data, ["y"]),
}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x -> MEAN over axis 1 -> a dense layer, in INT8 by the quantizer."""
    folder = tmp_path_factory.mktemp("large")
    writer = TfliteWriter()
    x, mean, y = writer.tensor("x", (1, 2, SIZE)), writer.tensor("mean", (1, SIZE)), writer.tensor("y", (1, SIZE))
    axes = writer.constant("axes", np.array([1], np.int32))
    w = writer.constant("w", np.random.default_rng(0).normal(size=(SIZE, SIZE)).astype(np.float32))
    b = writer.constant("b", np.zeros(SIZE, np.float32))
    writer.operator("MEAN", [x, axes], [mean], "ReducerOptions")
    writer.operator("FULLY_CONNECTED", [mean, w, b], [y], "FullyConnectedOptions")
    writer.save(folder / "float.tflite", [x], [y])
    data = quantized(folder / "float.tflite", TfliteFormat(INT8), {"x": (-1, 1), "mean": (-1, 1), "y": (-40, 40)})
    (folder / "int8.tflite").write_bytes(data)
    return folder / "int8.tflite"


def answer(path: Path) -> list[float]:
    """Of one sample, all outputs."""
    x = np.random.default_rng(1).uniform(-1, 1, (1, 2, SIZE)).astype(np.float32)
    with litert.load(path, num_threads=1) as runner:
        (values,) = runner.infer({"x": x}).values()
    return [float(value) for value in values.ravel()]


def test_the_quantizer_writes_values_behind_the_flatbuffer(large: Path) -> None:
    buffers = litert.schema().ModelT.InitFromObj(litert.schema().Model.GetRootAs(large.read_bytes(), 0)).buffers
    assert max(buffer.offset for buffer in buffers) > 1
    assert max(buffer.size for buffer in buffers) == SIZE * SIZE


@pytest.mark.parametrize("name", REWRITINGS)
def test_a_rewritten_file_answers_alike(name: str, large: Path, tmp_path: Path) -> None:
    import flatbuffers

    path = tmp_path / "rewritten.tflite"
    path.write_bytes(REWRITINGS[name](litert.schema(), flatbuffers, large.read_bytes()))
    assert answer(path) == answer(large)
    assert max(map(abs, answer(path))) > 1


def test_small_constants_are_read_where_they_lie(large: Path, tmp_path: Path) -> None:
    import flatbuffers

    within = tmp_path / "within.tflite"
    within.write_bytes(packed(flatbuffers, unpacked(litert.schema(), large.read_bytes())))
    for path in (large, within):
        (mean,) = (each for each in litert.tflite_facts(path).operators if each.kind == "MEAN")
        assert mean.inputs[1] is not None
        assert mean.inputs[1].values == (1,)
