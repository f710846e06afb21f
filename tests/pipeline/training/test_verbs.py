"""`trtforge tune` and `trtforge prune` on files, as a user calls them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from engines.torch_graph import library
from pipeline.command.cli import status_of

ROOT = Path(__file__).resolve().parents[3]


def call(*words: str) -> int:
    """The exit status."""
    return status_of(words)


def test_what_is_tuned_is_quantized_with_its_own_ranges(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model, data = str(place / "net.onnx"), str(place / "data.npz")
    tune = (
        "tune",
        model,
        "--data",
        data,
        "--target",
        "onnxruntime",
        "--epochs",
        "1",
        "--num-threads",
        "1",
        "-o",
        "tuned",
    )
    for _ in range(2):  # A folder of its own kind is replaced.
        assert call(*tune) == 0
    assert sorted(file.name for file in (tmp_path / "tuned").iterdir()) == ["model.onnx", "ranges", "training.json"]
    quantize = (
        "quantize",
        "tuned/model.onnx",
        "--ranges",
        "tuned/ranges",
        "--target",
        "onnxruntime",
        "-o",
        "int8.onnx",
    )
    assert call(*quantize) == 0
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load("int8.onnx").graph.node)
    words = ("quantize", "tuned/model.onnx", "--ranges", "tuned/ranges", "--target", "tensorrt", "-o", "other.onnx")
    is_tuned = '"method": "tuned"' in (tmp_path / "tuned" / "ranges" / "ranges.json").read_text()
    assert call(*words) == (2 if is_tuned else 0), "it was tuned for ONNX Runtime"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("kept")
    assert call(*tune[:-1], "notes") == 2
    assert "is a folder with other files in it" in capsys.readouterr().err


def test_what_is_pruned_is_a_file(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = (
        "prune",
        str(place / "net.onnx"),
        "--data",
        str(place / "data.npz"),
        "--share",
        "0.25",
        "-o",
        "pruned.onnx",
    )
    assert call(*words) == 0
    assert (tmp_path / "pruned.onnx").is_file()


def test_a_plan_without_the_table_and_a_machine_without_torch_or_gpu(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = tmp_path / "plan.toml"
    data = f'{{ path = "{place / "data.npz"}" }}'
    plan.write_text(f'[model]\nsource = "{place / "net.onnx"}"\n[data]\ncalibration = {data}\nevaluation = {data}\n')
    assert call("tune", str(plan)) == 2
    assert "plan.toml: has no table [tune]; add it, empty if its defaults will do" in capsys.readouterr().err
    words = ("tune", str(place / "net.onnx"), "--data", str(place / "data.npz"), "-o", "tuned")
    if not library.load_torch().cuda.is_available():
        assert call(*words, "--device", "cuda") == 3
        assert "torch finds no GPU that it can use here; take auto or cpu" in capsys.readouterr().err
    monkeypatch.setattr(library, "why_not", lambda: f"torch is not installed; {library.INSTALL}")
    assert call(*words) == 3
    assert "tune: torch is not installed; pip install 'trtforge[tune]'" in capsys.readouterr().err
    assert not (tmp_path / "tuned").exists()


def test_neither_torchs_compiler_nor_triton_is_loaded(place: Path, tmp_path: Path) -> None:
    """Triton's LLVM beside TensorFlow's ends the process; and nothing here is compiled."""
    code = """
import sys
from pipeline.command.cli import status_of
status = status_of(sys.argv[1:])
print(status, sorted({"torch._dynamo", "torch._inductor", "triton"} & set(sys.modules)))
"""
    words = ("tune", str(place / "net.onnx"), "--data", str(place / "data.npz"), "--epochs", "1", "-o", "tuned")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_weights_that_are_computed_are_named(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = onnx.load(place / "net.onnx")
    for name in ("first", "second", "last"):  # As of weights that are stored in FP16.
        (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        weight.name = f"{name}_stored"
        model.graph.node.insert(0, onnx.helper.make_node("Identity", [weight.name], [name]))
    onnx.save(model, "computed.onnx")
    words = ("--data", str(place / "data.npz"), "--target", "onnxruntime", "--method", "minmax", "-o", "tuned")
    assert call("tune", "computed.onnx", *words) == 4
    told = capsys.readouterr().err
    assert "nothing can be INT8, so that there is nothing to tune for; node 'Conv_a' (Conv) stays FP32: " in told
    assert "run `trtforge export` first" in told
