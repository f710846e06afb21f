"""The oldest TensorRT for RTX, whose API is that of TensorRT 10: real builds by the same code, in its own process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CALLS = Path(__file__).with_name("rtx14_calls.py")
OLD = ROOT / ".venv" / "bindings" / "rtx-1.4.0.76"

HALF = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 2] y)
<float16[3, 2] w = {1, 2, 3, 4, 5, 6}> { h = Cast<to = 10>(x)  p = MatMul(h, w)  y = Cast<to = 1>(p) }"""


def test_what_it_builds_and_what_it_refuses(
    tmp_path: Path, save_model: Callable[[str], Path], linear: Path, save_quantized_conv: Callable[[int], Path]
) -> None:
    if not OLD.is_dir():
        pytest.skip("TensorRT for RTX 1.4 is not there; scripts/bindings gets it")
    shutil.copy(linear, tmp_path / "fp32.onnx")
    shutil.copy(save_model(HALF), tmp_path / "fp16.onnx")
    shutil.copy(save_quantized_conv(1), tmp_path / "int8.onnx")
    command = [sys.executable, str(CALLS), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": f"{OLD}:{ROOT}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said.pop("version") == "1.4.0.76"
    native, int8 = said.pop("native"), said.pop("int8")
    assert all(isinstance(size_bytes, int) and size_bytes > 10_000 for size_bytes in said.values()), said
    assert native == (
        'Unavailable: tensorrt_rtx: native INT8 is requested, version 1.4.0.76 has no calibrators; take int8 = "qdq", '
        "which writes INT8 into the model"
    )
    assert "this version has no INT8 convolutions (TensorRT for RTX 1.7 was the first with them); update it" in int8
