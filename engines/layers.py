"""What an engine's layers really run in, out of what TensorRT's ``EngineInspector`` says of a built engine (JSON).

Up to TensorRT 10 a tensor has ``"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"`` and the
engine ``Bindings``; from 11 on there are ``I/O Tensors``, and type and format may stand apart (NVIDIA, *Migrating
IEngineInspector Usage from TensorRT 10.x to 11.x*). Both are read, and mixtures. ONNX nodes stand in ``Metadata`` (8.6
and later), before that in the layer's name alone: ``weight + QuantizeLinear_8 + Conv_12 + PWN(Clip_16)``.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from statistics import median
from typing import Any

from engines.contract import LayerFacts, LayerTime
from engines.errors import EngineError

REFORMAT = "reformat"
"""Kind of a layer that changes a tensor's layout or type, and computes nothing."""

_TYPE_KEYS = ("Format/Datatype", "DataType", "Datatype", "Data Type", "Type", "Format")
_TYPES = (
    ("INT8", re.compile(r"\bint8\b", re.IGNORECASE)),
    ("BF16", re.compile(r"\b(bf16|bfloat16)\b", re.IGNORECASE)),
    ("FP8", re.compile(r"\bfp8", re.IGNORECASE)),
    ("FP16", re.compile(r"\b(half|fp16|float16)\b", re.IGNORECASE)),
    ("FP32", re.compile(r"\b(float|fp32|float32|tf32)\b", re.IGNORECASE)),
)
_INTEGER_TACTIC = re.compile(r"i8i8|int8x4|_int8_|imma", re.IGNORECASE)
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_PROFILE = re.compile(r" \[profile (\d+)\]")
_PARTS = re.compile(r" \+ |, |\|\||\bPWN\(|[(){}]")


def layers_from_inspector(text: str, nodes: Collection[str]) -> tuple[LayerFacts, ...]:
    """The layers of ``get_engine_information(JSON)``, in its order.

    Args:
        text: what the inspector gave.
        nodes: names of the ONNX model's nodes, to be found in layers' names where there is no metadata.

    Raises:
        EngineError: it is not the JSON of an inspector.
    """
    try:
        information = json.loads(text, strict=False)  # Metadata of fused layers has control characters between them.
        layers = information["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"EngineInspector: gave no JSON with Layers ({type(error).__name__}: {error})") from error
    known = frozenset(nodes)
    return tuple(_layer(layer if isinstance(layer, Mapping) else {"Name": str(layer)}, known) for layer in layers)


def layers_from_record(record: Mapping[str, Any]) -> tuple[LayerFacts, ...]:
    """The layers of a record as it stands in its file; none where it tells of none."""
    return tuple(LayerFacts(**{**layer, "nodes": tuple(layer["nodes"])}) for layer in record.get("layers", ()))


def num_layers_by_precision(layers: Iterable[LayerFacts]) -> dict[str, int]:
    """How many layers of the first profile run in each precision; those that only reformat, and those of unknown type,
    by these words."""
    counted = Counter(
        REFORMAT if layer.kind == REFORMAT else layer.precision or "unknown" for layer in layers if not layer.profile
    )
    return dict(sorted(counted.items()))


def layer_times_from(times_ms: Mapping[str, list[float]], known: Iterable[LayerFacts]) -> tuple[LayerTime, ...]:
    """The median of each layer, with what its engine's record knows of it, such as the ONNX nodes it comes from.

    Args:
        times_ms: of each layer's name, the milliseconds of each run.
        known: the record's layers; one that it does not have stands with its name alone.
    """
    facts = {layer.name: layer for layer in known}
    medians = {name: median(times) for name, times in times_ms.items()}
    total = sum(medians.values())
    return tuple(
        LayerTime(facts.get(name, LayerFacts(name, "", "", ())), time_ms, time_ms / total if total else 0.0)
        for name, time_ms in medians.items()
    )


def summary(layers: Collection[LayerFacts]) -> str:
    """One sentence: the share of layers of the first profile in each precision, and how many only reformat."""
    counts = num_layers_by_precision(layers)
    num_reformats = counts.pop(REFORMAT, 0)
    total = sum(counts.values())
    shares = ", ".join(f"{number} in {name} ({100 * number / total:.0f} %)" for name, number in counts.items())
    reformats = f"; {num_reformats} more only reformat" if num_reformats else ""
    return f"Of {total} layers that compute, {shares or 'none reports its precision'}{reformats}."


def _layer(layer: Mapping[str, Any], known: frozenset[str]) -> LayerFacts:
    name, kind = str(layer.get("Name", "")), str(layer.get("LayerType", ""))
    kind = REFORMAT if kind.lower() == REFORMAT or name.startswith("Reformatting CopyNode") else kind
    profile = int(match[1]) if (match := _PROFILE.search(name)) else 0
    return LayerFacts(name, kind, "" if kind == REFORMAT else _precision(layer), tuple(_nodes(layer, known)), profile)


def _precision(layer: Mapping[str, Any]) -> str:
    """The type that goes in: of the first input whose type is known, else of the weights, else by the kernel's name."""
    for tensor in (*layer.get("Inputs", ()), layer.get("Weights", {})):
        if type_name := _type_of(tensor):
            return type_name
    if _INTEGER_TACTIC.search(str(layer.get("TacticName", ""))):
        return "INT8"
    return next((type_name for tensor in layer.get("Outputs", ()) if (type_name := _type_of(tensor))), "")


def _type_of(tensor: Any) -> str:
    if not isinstance(tensor, Mapping):
        return ""
    type_texts = [str(tensor[key]) for key in _TYPE_KEYS if key in tensor]
    return next((name for text in type_texts for name, pattern in _TYPES if pattern.search(text)), "")


def _nodes(layer: Mapping[str, Any], known: frozenset[str]) -> Iterator[str]:
    metadata = _NODE.findall(str(layer.get("Metadata", "")))
    parts = metadata or [part.strip() for part in _PARTS.split(_PROFILE.sub("", str(layer.get("Name", ""))))]
    yield from dict.fromkeys(part for part in parts if metadata or part in known)
