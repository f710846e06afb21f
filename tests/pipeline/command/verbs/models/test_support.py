"""The verb `support`: lines or JSON, and an exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import onnx.parser
import pytest

from engines.backends import tensorrt, tensorrt_rtx
from tests.tflite_files import save_linear

if TYPE_CHECKING:
    from tests.conftest import Command

WITH_DET = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 3] x) => (float[N] y)
{ [first] a = Relu(x) [norm] d = Det(a) [last] y = Neg(d) }"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with ``det.onnx``, an operator of which TensorRT lacks."""
    onnx.save(onnx.parser.parse_model(WITH_DET), tmp_path / "det.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_list_of_a_version(command: Command, folder: Path) -> None:
    said = command("support", "det.onnx", "--generation", "8.6", "--shape", "x:10x3x3")
    assert said.status == 4
    assert said.out == (
        "norm\tDet\tdoes not run\tTensorRT 8.6 does not read this operator; replace it in the network, or build for a "
        "backend that has it\n"
        "NVIDIA's list of the operators of TensorRT 8.6: 2 of 3 nodes run, 0 are folded, 1 do not run\n"
        "Plugins and what depends on shapes are not in the list: the parser of that version has the last word.\n"
        "partition: 2 segments, of 1, 1 nodes, with 90.9 % of the FLOPs; outside: 1 Det; tensors that cross: 2\n"
    )
    assert said.err == (
        "trtforge: det.onnx: NVIDIA's list of the operators of TensorRT 8.6 does not take it: node 'norm', Det\n"
    )


def test_every_node_and_json(command: Command, folder: Path) -> None:
    said = command("support", "det.onnx", "--generation", "8.6", "--all")
    assert [line.split("\t")[:3] for line in said.out.splitlines()[:3]] == [
        ["first", "Relu", "runs"],
        ["norm", "Det", "does not run"],
        ["last", "Neg", "runs"],
    ]
    said = command("support", "det.onnx", "--backend", "onnxruntime", "--json", "-o", "answer.json")
    assert said.status == 0
    (answer,) = json.loads(said.out)["answers"].values()
    assert answer["supported"] is True
    assert answer["partition"] == {"segments": [[0, 1, 2]], "outside": [], "num_crossings": 0, "flops_share": 1.0}
    written = json.loads((folder / "answer.json").read_text())
    assert {"supported": True, **written} == answer
    assert [(node["name"], node["flops"]) for node in written["nodes"]] == [("first", 9), ("norm", 1), ("last", 1)]


def test_a_parser_that_is_here_is_asked_without_being_named(command: Command, folder: Path) -> None:
    if tensorrt_rtx.why_not_ask():
        pytest.skip(tensorrt_rtx.why_not_ask())
    said = command("support", "det.onnx")
    assert said.status == 4
    assert "norm\tDet\tdoes not run\tTensorRT has no such operator; replace it in the network, or build" in said.out
    assert " does not take it: node 'norm', Det" in said.err


def test_a_tflite_file(command: Command, folder: Path) -> None:
    save_linear(folder / "linear.tflite")
    said = command("support", "linear.tflite", "--backend", "litert", "--all")
    assert said.status == 0
    assert said.out.startswith("y\tFULLY_CONNECTED\truns (XNNPACK)\n")
    said = command("support", "linear.tflite", "--backend", "onnxruntime")
    assert (said.status, said.out) == (2, "")
    assert "is in the format tflite, onnxruntime builds from onnx" in said.err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("missing.onnx",), 2, "missing.onnx: does not exist; give an ONNX or .tflite file"),
        (("det.onnx", "--generation", "11.2"), 2, "generation: TensorRT '11.2': the operators of 8.5, 8.6 and 10.0"),
        (("det.onnx", "--generation", "8.6", "--backend", "tensorrt"), 2, "has no effect beside --generation"),
        (("det.onnx", "--generation", "8.6", "--shape", "x:3xN"), 2, "--shape 'x:3xN': is not NAME:1x32x32x3"),
        (("det.onnx", "--generation", "8.6", "--shape", "x:0x3"), 2, "with positive sizes; write it so"),
        (("broken.onnx", "--generation", "8.6"), 4, "broken.onnx: "),
    ],
)
def test_what_is_wrong_is_one_sentence(
    command: Command, folder: Path, arguments: tuple[str, ...], status: int, words: str
) -> None:
    (folder / "broken.onnx").write_bytes(b"\x08\x08")
    said = command("support", *arguments)
    assert said.status == status
    assert words in said.err
    assert said.err.count("\n") == 1


def test_without_a_gpu_tensorrt_is_not_asked(command: Command, folder: Path) -> None:
    if not tensorrt.why_not_ask():
        pytest.skip("TensorRT and a GPU are here")
    said = command("support", "det.onnx", "--backend", "tensorrt")
    assert said.status == 3
    assert "the list of a version is asked with --generation" in said.err


def test_a_plan_asks_all_its_backends(command: Command, plan: Path) -> None:
    said = command("support", plan)
    assert said.status == 0
    assert "onnxruntime 1." in said.out
    assert " nodes run, 0 are folded, 0 do not run\n" in said.out
