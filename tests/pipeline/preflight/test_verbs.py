"""Verbs on a plan whose model a backend does not take: one sentence, status 4, and nothing was calibrated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx.parser
import pytest

from engines.backends import tensorrt, tensorrt_rtx

if TYPE_CHECKING:
    from tests.conftest import Command

NETWORKS = {
    "an operator": """(float[N, 3, 3] x) => (float[N, 1] y) <int64[1] axes = {1}>
        { [first] a = Relu(x) [odd] d = Det(a) [last] y = Unsqueeze(d, axes) }""",
    "in a branch": """(float[N, 3] x) => (float[N, 3] y) <int64 zero = {0}>
        {
            [size] n = Shape(x) [batch] b = Gather(n, zero) [many] c = Greater(b, zero)
            [odd] h = If<then_branch = t () => (float[N, 3] u) { [deep] u = Hardmax(x) },
            else_branch = e () => (float[N, 3] v) { v = Relu(x) }>(c)
            [last] y = Neg(h)
        }""",
    "an attribute": """(float[N, 1, 6] x) => (float[N, 1, 2] y)
        { [odd] y = MaxPool<kernel_shape = [3], dilations = [2]>(x) }""",
}
PLAN = """
[model]
source = "net.onnx"
[data]
calibration = "data.npz"
evaluation = "more.npz"
[variants]
precisions = ["fp32", "int8"]
backends = ["tensorrt"]
[support]
generation = "8.6"
"""


@pytest.fixture(params=NETWORKS)
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a plan for TensorRT on a device that has 8.6."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> net {NETWORKS[request.param]}')
    onnx.save(model, tmp_path / "net.onnx")
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    for seed, name in enumerate(("data.npz", "more.npz")):
        np.savez(tmp_path / name, x=np.random.default_rng(seed).normal(size=(20, *shape)).astype(np.float32))
    (tmp_path / "plan.toml").write_text(PLAN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.skipif(not tensorrt.why_not_ask(), reason="TensorRT and a GPU are here, whose parser has the last word")
def test_pack_asks_for_the_device(command: Command, folder: Path) -> None:
    said = command("pack", "plan.toml", "-o", "bundle.tar")
    assert said.status == 4
    assert "tensorrt cannot take the model: node 'odd'" in said.err
    assert not (folder / "bundle.tar").exists()
    made = {path.name for path in (folder / ".trtforge").iterdir()}
    assert "support" in made
    assert not made & {"calibrate", "quantize", "infer"}


@pytest.mark.skipif(not tensorrt.why_not_ask(), reason="TensorRT and a GPU are here, whose parser has the last word")
def test_support_on_the_plan_says_it_too(command: Command, folder: Path) -> None:
    said = command("support", "plan.toml")
    assert said.status == 4
    assert said.out.startswith("odd\t")
    assert "\tdoes not run\t" in said.out
    assert "NVIDIA's list of the operators of TensorRT 8.6 does not take it: node 'odd'" in said.err


def test_another_backend_is_not_held_to_it(command: Command, folder: Path) -> None:
    said = command("support", "plan.toml", "--set", 'variants.backends = ["onnxruntime"]')
    assert said.status == 0
    assert " nodes run, " in said.out
    assert "0 do not run\n" in said.out


@pytest.mark.parametrize("folder", ["an operator"], indirect=True)
def test_build_asks_the_parser_first(command: Command, folder: Path) -> None:
    """TensorRT for RTX is newer than 8.6, and takes the other networks."""
    if tensorrt_rtx.why_not_ask():
        pytest.skip(tensorrt_rtx.why_not_ask())
    ranges = "model.inputs.x = { min = [1, 3, 3], opt = [2, 3, 3], max = [4, 3, 3] }"
    said = command("build", "plan.toml", "--set", 'variants.backends = ["tensorrt_rtx"]', "--set", ranges)
    assert said.status == 4
    assert "tensorrt_rtx cannot take the model: node 'odd', Det" in said.err
    assert not {path.name for path in (folder / ".trtforge").iterdir()} & {"calibrate", "quantize", "build"}
