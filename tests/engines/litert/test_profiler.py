"""LiteRT's own profiler: what each kernel took, and which operators of the file they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.backends import litert
from engines.contract import LayerFacts
from engines.errors import EngineError
from engines.litert.profiler import LIBRARY, KernelTime, is_known, kernel_times, layers_of
from tests.tflite_files import TfliteWriter, save_linear

lite = pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
DENSE = KernelTime("Fully Connected (NC, F32) GEMM", None, (0.002, 0.004))


def test_only_libraries_whose_calls_are_known() -> None:
    assert is_known("2.3.0")
    assert not is_known("2.4.0")
    assert not is_known("1.2.3")


def test_a_kernel_of_the_runtimes_own_is_an_operator_of_the_file(tmp_path: Path) -> None:
    """XNNPACK has no FLOOR_MOD; it runs what stands before it."""
    writer = TfliteWriter()
    x, positive, rest = (writer.tensor(name, (1, 3)) for name in ("x", "positive", "rest"))
    writer.operator("RELU", [x], [positive])
    writer.operator("FLOOR_MOD", [positive, x], [rest])
    engine = writer.save(tmp_path / "m.tflite", [x], [rest])
    found = litert.layer_times(engine, {"x": np.ones((1, 3), np.float32)}, 3)
    assert found.layers[-1].layer == LayerFacts("rest", "FLOOR_MOD", "FP32", ("rest",))
    assert "FLOOR_MOD" not in [each.layer.kind for each in found.layers[:-1]]
    assert all(each.median_ms >= 0 for each in found.layers)


def test_products_are_put_to_those_of_the_file_in_their_order(tmp_path: Path) -> None:
    facts = litert.tflite_facts(save_linear(tmp_path / "m.tflite"))
    (product,) = facts.products
    reshape = KernelTime("Static Reshape (NC)", None, (0.0, 0.001))
    times_ms, layers = layers_of((reshape, DENSE, reshape), facts)
    assert times_ms == {
        "Static Reshape (NC)": [0.0, 0.001],
        product.name: [0.002, 0.004],
        "Static Reshape (NC) 2": [0.0, 0.001],
    }
    assert layers[1] == LayerFacts(product.name, DENSE.name, "FP32", (product.name,))
    _, unlike = layers_of((DENSE, DENSE), facts)  # More than the file has: nobody knows which is which.
    assert [layer.nodes for layer in unlike] == [(), ()]


def test_inputs_are_written_and_all_is_given_back(tmp_path: Path) -> None:
    """In a loop, since what is not given back shows in none."""
    engine = save_linear(tmp_path / "m.tflite")
    library = Path(str(lite.__file__)).with_name(LIBRARY)
    for _ in range(20):
        times = kernel_times(library, engine, [np.ones((1, 3), np.float32)], 2)
    assert len(times) >= 1
    assert all(len(time.times_ms) == 2 for time in times)


def test_what_the_library_refuses_is_one_sentence(tmp_path: Path) -> None:
    writer = TfliteWriter()
    x, y = writer.tensor("x", (1, 3)), writer.tensor("y", (1, 3))
    writer.operator("TheirOwn", [x], [y])
    engine = writer.save(tmp_path / "m.tflite", [x], [y])
    library = Path(str(lite.__file__)).with_name(LIBRARY)
    with pytest.raises(EngineError, match=r"m\.tflite: LiteRT's profiler failed \(LiteRt\w+: status \d"):
        kernel_times(library, engine, [np.ones((1, 3), np.float32)], 1)


def test_a_version_that_is_not_known_tells_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = save_linear(tmp_path / "m.tflite")
    monkeypatch.setattr("engines.litert.profiler.KNOWN", ("9.",))
    assert litert.layer_times(engine, {"x": np.ones((1, 3), np.float32)}, 1).layers == ()
