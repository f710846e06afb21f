"""What ONNX Runtime's own profile (a JSON trace, one event for each kernel and run) says of nodes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from engines.contract import LayerFacts

_TYPES = {"float": "FP32", "float16": "FP16", "bfloat16": "BF16", "int8": "INT8", "uint8": "INT8"}
US_PER_MS = 1000
BLOCKED = "_nchwc"
KERNEL = "_kernel_time"
FUSED = "fused "


def kernels_from_profile(
    text: str, makers: Mapping[str, str], num_untold: int
) -> tuple[tuple[LayerFacts, ...], dict[str, list[float]]]:
    """The kernels in the order in which they ran first; and of each one's name, the milliseconds of each run.

    Args:
        text: of the file that ``InferenceSession.end_profiling`` names. It counts whole microseconds.
        makers: of each tensor of the ONNX model, the name of the node that makes it.
        num_untold: so many runs at the beginning are left out.
    """
    layers: dict[str, LayerFacts] = {}
    times_ms: dict[str, list[float]] = defaultdict(list)
    for event in json.loads(text):
        if event["cat"] == "Node" and event["name"].endswith(KERNEL):
            layer = _kernel(event["name"][: -len(KERNEL)], event["args"], makers)
            layers.setdefault(layer.name, layer)
            times_ms[layer.name].append(event["dur"] / US_PER_MS)
    return tuple(layers.values()), {name: times[num_untold:] for name, times in times_ms.items()}


def providers_from_profile(text: str) -> dict[str, str]:
    """Of each kernel's name, as ``kernels_from_profile`` has it, which provider ran it; empty: not told."""
    return {
        _name(event["name"][: -len(KERNEL)], event["args"]): str(event["args"].get("provider", ""))
        for event in json.loads(text)
        if event["cat"] == "Node" and event["name"].endswith(KERNEL)
    }


def _name(name: str, facts: Mapping[str, Any]) -> str:
    return name or f"{facts['op_name']} {facts['node_index']}"


def _kernel(name: str, facts: Mapping[str, Any], makers: Mapping[str, str]) -> LayerFacts:
    kind, nodes = str(facts["op_name"]), set(makers.values())
    node_name = name[len(FUSED) :] if name.startswith(FUSED) else name
    # ``fc/MatMulAddFusion`` is named by the fusion that made it, with another ``/`` at the end before 1.20.
    source = node_name if node_name in nodes else node_name.rstrip("/").rpartition("/")[0]
    if source not in nodes:  # In the blocked layout, kernels are called after the tensor that they make.
        source = makers.get(node_name[: -len(BLOCKED)] if node_name.endswith(BLOCKED) else node_name, "")
    types = [kind for tensor in facts.get("input_type_shape", ()) for kind in tensor]
    precision = _TYPES.get(types[0], "") if types else ""
    return LayerFacts(_name(name, facts), kind, precision, (source,) if source else ())
