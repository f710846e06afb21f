"""What LiteRT answers, operator by operator."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.backends import litert
from tests.tflite_files import TfliteWriter, save_linear

if litert.why_not_build():
    pytest.skip(litert.why_not_build(), allow_module_level=True)


def test_whose_kernels_each_operator_runs_in(tmp_path: Path) -> None:
    answer = litert.ask(save_linear(tmp_path / "linear.tflite"), {})
    assert [(node.operator, node.state, node.runs_on, node.flops) for node in answer.nodes] == [
        ("FULLY_CONNECTED", "runs", "XNNPACK", 12)
    ]
    assert answer.is_whole
    writer = TfliteWriter()
    x, a, y = (writer.tensor(name, (1, 3)) for name in ("x", "a", "y"))
    writer.operator("RELU", [x], [a])
    writer.operator("ZEROS_LIKE", [a], [y])
    mixed = litert.ask(writer.save(tmp_path / "mixed.tflite", [x], [y]), {})
    assert [node.runs_on for node in mixed.nodes] == ["XNNPACK", "built-in"]
    assert mixed.is_whole


def test_a_custom_operator_does_not_run(tmp_path: Path) -> None:
    writer = TfliteWriter()
    x, a, y = (writer.tensor(name, (1, 3)) for name in ("x", "a", "y"))
    writer.operator("RELU", [x], [a])
    writer.operator("FlexErf", [a], [y])
    answer = litert.ask(writer.save(tmp_path / "flex.tflite", [x], [y]), {})
    assert [(node.name, node.operator) for node in answer.unsupported] == [("y", "FlexErf")]
    assert answer.unsupported[0].reason.startswith("it is no operator of TensorFlow Lite's own")
    assert answer.partition.segments == ((0,),)
