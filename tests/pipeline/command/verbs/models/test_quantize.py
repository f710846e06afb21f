"""The verb `quantize` on files: with ranges, or with data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest
from onnx.numpy_helper import from_array, to_array

from engines.cpu import cpu_name
from tests.pipeline.command.verbs.calls import files, one_sentence

if TYPE_CHECKING:
    from tests.conftest import Command


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_quantize_with_data_is_quantize_with_ranges(command: Command, ranges: Path, target: str) -> None:
    given = command("quantize", "tiny.onnx", "--ranges", ranges, "--target", target, "-o", "a.onnx")
    found = command(
        "quantize", "tiny.onnx", "--data", "data.npz", "--method", "minmax", "--target", target, "-o", "b.onnx"
    )
    assert (given.status, given.out) == (0, "a.onnx\n")
    assert (found.status, found.out) == (0, "b.onnx\n")
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    assert "DequantizeLinear" in operators(Path("a.onnx"))
    assert files(ranges.parent) == {"ranges", "a.onnx", "b.onnx"}


def test_quantize_says_on_stderr_what_the_arithmetic_is(command: Command, ranges: Path) -> None:
    said = command(
        "quantize", "tiny.onnx", "--ranges", ranges, "--target", "onnxruntime", "--arithmetic", "u8u8", "-o", "a.onnx"
    )
    assert said.status == 0
    assert "trtforge: a.onnx: arithmetic u8u8, as asked for" in said.err.splitlines()


def test_quantize_leaves_out_what_is_excluded(command: Command, ranges: Path) -> None:
    quantize = ("quantize", "tiny.onnx", "--ranges", ranges, "-o", "a.onnx")
    one_sentence(command(*quantize, "--exclude", "Gemm, Conv,GlobalAveragePool"), 4, "tiny: nothing can be INT8")
    assert not Path("a.onnx").exists()
    assert command(*quantize, "--exclude", "GlobalAveragePool, Gemm").status == 0
    assert operators(Path("a.onnx")).count("QuantizeLinear") == 2  # Of the convolution's data and weight.


def test_dynamic_takes_no_data(command: Command, tiny: Path, ranges: Path) -> None:
    quantize = ("quantize", "tiny.onnx", "--precision", "dynamic", "-o", "a.onnx")
    said = command(*quantize, "--target", "onnxruntime")
    assert (said.status, said.out) == (0, "a.onnx\n")
    assert "MatMulInteger" in operators(tiny / "a.onnx")
    assert command("build", "a.onnx", "--precision", "dynamic", "-o", "engine.onnx").status == 0
    one_sentence(command("build", "a.onnx", "--precision", "int8", "-o", "b.onnx"), 4, "a.onnx: precision int8 is req")
    one_sentence(command(*quantize), 2, "--precision dynamic: is for onnxruntime alone")
    for beside in (("--ranges", ranges), ("--data", "data.npz"), ("--override", "tensors = '*', range = [0, 1]")):
        one_sentence(command(*quantize, "--target", "onnxruntime", *beside), 2, beside[0])
    looked = command("bisect", "tiny.onnx", "a.onnx", "--data", "data.npz")
    assert looked.status == 0, looked.err
    assert "no single layer stands out on" in " ".join(looked.out.split())


def test_ranges_of_another_model(command: Command, ranges: Path, tiny: Path) -> None:
    other = onnx.load(tiny / "tiny.onnx")
    weight = other.graph.initializer[0]
    weight.CopyFrom(from_array(1 + to_array(weight), weight.name))
    onnx.save(other, "other.onnx")
    said = command("quantize", "other.onnx", "--ranges", ranges, "-o", "x.onnx")
    one_sentence(said, 2, "ranges: were found on model ")
    assert files(ranges.parent) == {"ranges", "other.onnx"}


def test_ranges_of_a_model_that_is_int8_already(command: Command, ranges: Path, int8: Path) -> None:
    said = command("quantize", int8, "--ranges", ranges, "-o", "x.onnx")
    one_sentence(said, 2, "--ranges: has no effect for ")
    assert command("quantize", int8, "--target", "onnxruntime", "-o", "as-it-is.onnx").status == 0
    assert operators(Path("as-it-is.onnx")) == operators(int8)


def test_another_reading_of_the_same_histograms_takes_no_samples(command: Command, tiny: Path, ranges: Path) -> None:
    assert command("quantize", "tiny.onnx", "--ranges", ranges, "--method", "minmax", "-o", "read.onnx").status == 0
    options = ("--data", "data.npz", "--method", "minmax")
    assert command("quantize", "tiny.onnx", *options, "-o", "anew.onnx").status == 0
    assert (tiny / "read.onnx").read_bytes() == (tiny / "anew.onnx").read_bytes()


def test_the_placement_by_time_is_said_with_the_cpu(command: Command, ranges: Path) -> None:
    quantize = ("quantize", "tiny.onnx", "--ranges", ranges, "--placement", "timed", "-o", "a.onnx")
    said = command(*quantize, "--target", "onnxruntime")
    assert said.status == 0
    assert "trtforge: a.onnx: placement by time: " in said.err
    assert f" in float on this CPU, {cpu_name()} (" in said.err
    assert "DequantizeLinear" in operators(Path("a.onnx"))
    assert "placement by time" not in command(*quantize, "--target", "tensorrt").err
