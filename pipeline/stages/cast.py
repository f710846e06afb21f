"""Write FP16 into the ONNX model, except where the calibration data leaves FP16's range."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from calibration.graph.external_data import model_from_file, save_model
from calibration.graph.patterns import nodes_by_name, nodes_meant
from calibration.graph.tensor_digests import tensor_digests
from calibration.precision.fp16 import fp16_from_onnx, named, nodes_beyond_fp16
from calibration.ranges.ranges import listed, spans_from_ranges
from calibration.ranges.ranges_file import ranges_from_folder
from engines.precision import FP16
from pipeline.artifact import OnnxModel, Ranges
from pipeline.machine.packages import distribution_versions
from pipeline.option import option
from pipeline.stage import Stage


@dataclass(frozen=True)
class KeptNodes:
    """Nodes that stay FP32, in the words of ``[[quantize.override]]``."""

    nodes: str
    precision: Literal["fp32"] = "fp32"


@dataclass(frozen=True)
class Cast(Stage):
    """Write FP16 types into the ONNX model; inputs and outputs stay FP32.

    Nodes whose values leave FP16's range on the calibration data stay FP32, and the report names them: values that are
    too large, or so small that a logarithm, a root or a division would read 0.
    """

    WRITES: ClassVar[tuple[str, ...]] = (FP16.name,)
    RESULT: ClassVar[str] = "models"

    keep_fp32: tuple[str, ...] = option(
        (), "names, operator types or patterns (head/*) of additional nodes to keep in FP32"
    )
    override: tuple[KeptNodes, ...] = option(
        (), "the same as in [[quantize.override]]: nodes = 'head/*', precision = 'fp32'; can be repeated"
    )

    def versions(self, *_inputs: object) -> dict[str, str]:
        """Versions of the tools that the result depends on."""
        return distribution_versions("onnx", "onnx-ir", "numpy")

    def __call__(self, out: Path, model: OnnxModel, ranges: Ranges) -> OnnxModel:
        """Write ``out/model.onnx`` and ``out/notes.json``.

        Raises:
            DataError: the ranges are of another model, or a pattern matches no node of it.
            ModelError: the model cannot be rewritten.
        """
        proto = named(model_from_file(model.path))
        record = ranges_from_folder(ranges.path)
        record.check_model(model.digest(), lambda: tensor_digests(proto))
        record.check_measured("FP16")
        beyond = nodes_beyond_fp16(proto, spans_from_ranges(record))
        nodes = nodes_by_name(proto)
        meant = nodes_meant(nodes, (*self.keep_fp32, *(each.nodes for each in self.override)), "keep_fp32")
        excepted = [node.name for node in nodes.values() if node.name in meant or node.op_type in meant]
        typed = fp16_from_onnx(proto, keep_fp32={*beyond, *excepted})
        save_model(typed, out / "model.onnx")
        notes = [f"node '{name}' stays FP32: {reason}" for name, reason in beyond.items()]
        notes += [f"{listed(excepted)} nodes stay FP32, as the user wants"] * bool(excepted)
        (out / "notes.json").write_text(json.dumps(notes))
        return OnnxModel(out / "model.onnx")
