"""ONNX Runtime's profile: which kernels ran, on which ONNX nodes, for how long."""

from __future__ import annotations

import json
from typing import Any

from engines.contract import LayerFacts
from engines.ort.profile import kernels_from_profile


def event(name: str, kind: str, us: int, types: list[dict[str, Any]], index: str = "0") -> dict[str, Any]:
    facts = {"op_name": kind, "node_index": index, "input_type_shape": types, "provider": "CPUExecutionProvider"}
    return {"cat": "Node", "dur": us, "ts": 0, "ph": "X", "name": f"{name}_kernel_time", "args": facts}


FLOAT, BYTES = [{"float": [2, 3]}, {"float": [3]}], [{"uint8": [2, 3]}]
RUN = {"cat": "Session", "dur": 900, "ts": 0, "ph": "X", "name": "model_run", "args": {}}


def test_kernels_of_the_runs_that_count() -> None:
    """A matrix product fused with its bias, and a node without a name; the first run is not told."""
    events = [
        event("fused net/fc/MatMulAddFusion", "FusedGemm", 491, FLOAT),
        event("", "Relu", 90, FLOAT, "3"),
        RUN,
        event("fused net/fc/MatMulAddFusion", "FusedGemm", 14, FLOAT),
        event("", "Relu", 2, FLOAT, "3"),
        RUN,
    ]
    kernels, times_ms = kernels_from_profile(json.dumps(events), {"p": "net/fc", "y": "net/bias"}, 1)
    assert kernels == (
        LayerFacts("fused net/fc/MatMulAddFusion", "FusedGemm", "FP32", ("net/fc",)),
        LayerFacts("Relu 3", "Relu", "FP32", ()),
    )
    assert times_ms == {"fused net/fc/MatMulAddFusion": [0.014], "Relu 3": [0.002]}


def test_integers_and_nothing_at_all() -> None:
    ((layer,), _) = kernels_from_profile(json.dumps([event("conv_quant", "QLinearConv", 5, BYTES)]), {"c": "conv"}, 0)
    assert layer == LayerFacts("conv_quant", "QLinearConv", "INT8", ())
    ((layer,), _) = kernels_from_profile(json.dumps([event("made", "RandomNormal", 5, [])]), {"m": "made"}, 0)
    assert layer == LayerFacts("made", "RandomNormal", "", ("made",))
    assert kernels_from_profile("[]", {}, 0) == ((), {})


def test_a_kernel_in_the_blocked_layout_is_called_after_its_tensor() -> None:
    ((layer,), _) = kernels_from_profile(json.dumps([event("c_nchwc", "Conv", 5, FLOAT)]), {"c": "conv"}, 0)
    assert layer == LayerFacts("c_nchwc", "Conv", "FP32", ("conv",))
