"""Times of nodes that several providers run: a real profile of a process of its own, and TensorRT's as it would be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.backends import onnxruntime, onnxruntime_cuda, onnxruntime_tensorrt
from engines.contract import BuildOptions, LayerFacts
from engines.errors import EngineError, Unavailable
from engines.ort.profile import kernels_from_profile, providers_from_profile
from engines.ort.providers import CUDA, TENSORRT, why_not
from engines.ort.session import CPU
from engines.ort.shared_times import EACH_WAITS, layer_times, with_providers
from engines.ort.sharing import DESCRIPTION, Sharing, build
from engines.provider_share import ProviderShare

if onnxruntime.why_not_build():
    pytest.skip(onnxruntime.why_not_build(), allow_module_level=True)

SaveModel = Callable[[str], Path]
TEXT = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 3] y, int64[2, K] where)
{ [first] a = Relu(x) y = Neg(a) [non] where = NonZero(y) }"""
FEED = {"x": np.array([[1, -2, 3]], np.float32)}


def by(*providers: str) -> Sharing:
    return Sharing("theirs", providers, "the first", False, False, lambda: {"onnxruntime": "1"})


@pytest.fixture
def engine(save_model: SaveModel, tmp_path: Path) -> Path:
    build(by(CPU), save_model(TEXT), tmp_path / "engine.session", BuildOptions())
    return tmp_path / "engine.session"


def test_each_node_is_timed_in_a_process_of_its_own(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(engine.rglob("*"))
    (first, second, third) = layer_times(by(CPU), engine, FEED, 5).layers
    assert first.layer == LayerFacts("first", "Relu on the CPU", "FP32", ("first",))
    assert second.layer == LayerFacts("node_of_y", "Neg on the CPU", "FP32", ("node_of_y",))
    assert third.layer == LayerFacts("non", "NonZero on the CPU", "FP32", ("non",))
    assert sum(each.share for each in (first, second, third)) == pytest.approx(1)
    assert sorted(engine.rglob("*")) == before
    assert EACH_WAITS == {"CUDA_LAUNCH_BLOCKING": "1"}


def test_what_goes_wrong_there_is_said_here(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match=r"'x' is float64|'x' .* float32"):
        layer_times(by(CPU), engine, {"x": FEED["x"].astype(np.float64)}, 1)
    if why_not("", (CUDA,)):
        with pytest.raises(Unavailable, match=r"CUDAExecutionProvider of onnxruntime .* does not load on this mach"):
            layer_times(by(CUDA, CPU), engine, FEED, 1)
    monkeypatch.setattr("engines.ort.shared_times.FIRST_STEPS", "raise SystemExit('out of luck')")
    with pytest.raises(EngineError, match=r"timed its nodes ended with status 1 \(out of luck\); benchmark with"):
        layer_times(by(CPU), engine, FEED, 1)
    (engine / DESCRIPTION).write_text("{")
    with pytest.raises(EngineError, match="is no engine that ONNX Runtime's providers share"):
        layer_times(by(CPU), engine, FEED, 1)


@pytest.mark.parametrize("module", [onnxruntime_tensorrt, onnxruntime_cuda])
def test_both_backends_time_their_nodes(module: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="is no engine that ONNX Runtime's providers share"):
        module.layer_times(tmp_path / "nothing", FEED, 1)


def event(name: str, kind: str, provider: str, us: int) -> dict[str, Any]:
    types = [{"float": [2, 3]}]
    facts = {"op_name": kind, "node_index": "0", "input_type_shape": types, "provider": provider}
    return {"cat": "Node", "dur": us, "ts": 0, "ph": "X", "name": f"{name}_kernel_time", "args": facts}


PART = "TensorrtExecutionProvider_TRTKernel_graph_g_1163447892624144653"
DIVIDED = [
    event(f"{PART}_1_1", "TRTKernel_graph_g_1163447892624144653_1", TENSORRT, 120),
    event("d", "NonZero", CPU, 3),
    event("f", "Gather", CUDA, 9),
    event(f"{PART}_0_0", "TRTKernel_graph_g_1163447892624144653_0", TENSORRT, 400),
]
SHARES = (
    ProviderShare(TENSORRT, ("a", "b", "c", "e"), {"Conv": 3, "Relu": 1}, (3, 1)),
    ProviderShare(CUDA, ("f",), {"Gather": 1}),
    ProviderShare(CPU, ("d",), {"NonZero": 1}),
)


def layers_of(events: list[dict[str, Any]], shares: tuple[ProviderShare, ...] = SHARES) -> tuple[LayerFacts, ...]:
    trace = json.dumps(events)
    kernels, _ = kernels_from_profile(trace, {"v": "d", "w": "f"}, 0)
    return with_providers(kernels, providers_from_profile(trace), shares)


def test_parts_that_were_compiled_have_the_nodes_that_were_handed_over_with_them() -> None:
    """In the order of their last number, whatever ran first."""
    assert layers_of(DIVIDED) == (
        LayerFacts(f"{PART}_1_1", "segment on Tensorrt", "", ("e",)),
        LayerFacts("d", "NonZero on the CPU", "FP32", ("d",)),
        LayerFacts("f", "Gather on CUDA", "FP32", ("f",)),
        LayerFacts(f"{PART}_0_0", "segment on Tensorrt", "", ("a", "b", "c")),
    )


def test_of_parts_of_which_not_all_ran_none_is_told_its_nodes() -> None:
    assert [layer.nodes for layer in layers_of(DIVIDED[:3])] == [(), ("d",), ("f",)]
    whole = (ProviderShare(TENSORRT, ("a", "b"), {"Conv": 2}, (2,)),)
    assert layers_of(DIVIDED[3:], whole)[0].nodes == ("a", "b")
