"""PyTorch as a source: what a function returns, a `.pt2` file, and what is refused without being read."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from engines.torch_graph.archive import SAVE
from engines.torch_graph.exporter import program_from_module, traceable
from engines.torch_graph.program import save_program
from pipeline.engine_runner import runner_of
from pipeline.errors import ConfigError, DataError, StageError, Unavailable, exit_status
from pipeline.sources.contract import source_from_path, source_kind
from pipeline.sources.pytorch import TorchFunction, TorchProgram
from pipeline.stages.export import Export

CODE = """
import torch
from torch import nn
from layers import Head

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 4, 3, padding=1), Head()

    def forward(self, image):
        return {"scores": self.head(torch.relu(self.body(image)).mean((2, 3)))}

def network():
    torch.manual_seed(3)
    return Net().eval(), torch.zeros(1, 1, 8, 8)

def unseeded():
    return Net().eval(), torch.zeros(1, 1, 8, 8)

def no_weights():
    net = Net()
    net.load_state_dict(torch.load("missing.pt", weights_only=True))
    return net, torch.zeros(1, 1, 8, 8)

def nothing():
    return None

class Branches(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x - 1

def branching():
    return Branches(), torch.ones(2, 3)
"""
LAYERS = """
from torch import nn

class Head(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with code."""
    (tmp_path / "net_code.py").write_text(CODE)
    (tmp_path / "layers.py").write_text(LAYERS)
    return tmp_path


def source(path: Path) -> Any:
    return source_from_path(path, "serving_default")


def test_a_function_is_exported_and_answers_as_in_torch(folder: Path) -> None:
    out = folder / "out"
    out.mkdir()
    network = source(folder / "net_code:network")
    assert isinstance(network, TorchFunction)
    model = Export()(out, network)
    proto = onnx.load(model.path)
    assert [node.op_type for node in proto.graph.node] == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    assert json.loads((out / "notes.json").read_text()) == [
        "export: means over all positions are written as GlobalAveragePool: 1"
    ]
    engine = source_kind(network.KIND).trained(network, model, "onnxruntime")
    assert engine.path == out / "trained.pt2"
    feed = {"image": np.random.default_rng(0).standard_normal((5, 1, 8, 8)).astype(np.float32)}
    with runner_of(engine, 1) as trained:
        expected = trained.infer(feed)["scores"].astype(np.float32)
    engine = source_kind("onnx").trained(model, model, "onnxruntime")
    with runner_of(engine, 1) as runner:
        np.testing.assert_allclose(runner.infer(feed)["scores"].astype(np.float32), expected, rtol=1e-4, atol=1e-5)


def test_the_digest_is_of_the_code_it_imports_and_of_the_weights(folder: Path, tmp_path_factory: Any) -> None:
    before = source(folder / "net_code:network")
    other = tmp_path_factory.mktemp("other")
    for name in ("net_code.py", "layers.py"):
        (other / name).write_text((folder / name).read_text())
    assert source(other / "net_code:network").digest() == before.digest(), "where it lies does not matter"
    (folder / "layers.py").write_text(LAYERS + "# A change.\n")
    assert source(folder / "net_code:network").digest() != before.digest()


def test_weights_that_change_from_call_to_call_are_refused(folder: Path) -> None:
    network = source(folder / "net_code:unseeded")
    network.digest()
    with pytest.raises(ConfigError, match=r"unseeded: returns other weights or inputs each time; .*torch.manual_seed"):
        Export()(folder, network)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("nothing", ConfigError, r"^net_code:nothing: returns a NoneType, \(module, example inputs\) is expected"),
        ("no_weights", DataError, r"^net_code:no_weights: raised FileNotFoundError \(.*missing.pt'\); fix it"),
        ("netwrk", DataError, r"the module .*net_code.py has no 'netwrk'; did you mean 'network'\?"),
        ("branching", StageError, r"^net_code:branching: torch cannot export it: .*at net_code.py:\d+: return x \+ 1"),
    ],
)
def test_a_function_that_gives_no_network(folder: Path, name: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as refused:
        Export()(folder, source(folder / f"net_code:{name}"))
    assert exit_status(refused.value) == (4 if kind is StageError else 2)
    assert "\n" not in str(refused.value)


def test_without_torch_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.torch_graph.library.EXPORTER", "no_such_package")
    with pytest.raises(Unavailable, match=r"no_such_package: not installed, .*pip install 'trtforge\[torch\]'"):
        Export()(folder, source(folder / "net_code:network"))


class Above(torch.nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return torch.relu(x) * 2


def test_a_program_file_is_exported(tmp_path: Path) -> None:
    save_program(program_from_module(traceable((Above().eval(), torch.ones(2, 3)))[0]), tmp_path / "net.pt2")
    program = source(tmp_path / "net.pt2")
    assert isinstance(program, TorchProgram)
    model = Export(opset=18)(tmp_path, program)
    (value,) = onnx.load(model.path).graph.input
    assert (value.name, value.type.tensor_type.shape.dim[0].dim_param) == ("x", "batch")
    engine = source_kind(program.KIND).trained(program, model, "onnxruntime")
    with runner_of(engine, 1) as trained:
        assert trained.infer({"x": np.ones((4, 3), np.float32)})["output"].tolist() == [[2.0] * 3] * 4


def test_pickles_are_told_apart_and_not_read(tmp_path: Path) -> None:
    net = torch.nn.Linear(3, 2)
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    torch.save(net, tmp_path / "whole.pth")
    torch.save({"net": net, "epoch": 3}, tmp_path / "checkpoint.pt")
    torch.save(net.state_dict(), tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(net, tmp_path / "legacy_whole.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "legacy.pth").read_bytes()[:40])
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(print))
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:  # As torch.jit.save writes it.
        for name in ("data.pkl", "code/__torch__.py", "constants.pkl"):
            archive.writestr(f"script/{name}", b"")
    (tmp_path / "broken.pt2").write_bytes(b"PK\x03\x04")
    (tmp_path / "renamed.pt2").write_bytes((tmp_path / "weights.pt").read_bytes())
    weights = (
        r"holds weights \(a state_dict\) and no network; .*load_state_dict\(torch.load\('weights.pt', weights_only="
    )
    pickled = r"is a pickle, which runs code when it is read, .*torch.export.save\("
    for name, words in {
        "weights.pt": weights,
        "renamed.pt2": weights.replace("weights.pt'", "renamed.pt2'"),
        "whole.pth": pickled,
        "checkpoint.pt": pickled,
        "plain.pt": pickled,
        "legacy.pth": weights.replace("weights.pt'", "legacy.pth'"),
        "legacy_whole.pt": pickled,
        "cut.pt": pickled,
        "script.pt": r"is TorchScript, which torch's exporter does not take; .*my_model:network",
        "broken.pt2": r"is no program that torch.export.save wrote with torch 2.9 or later; save it again: torch",
    }.items():
        with pytest.raises(ConfigError, match=words) as refused:
            source(tmp_path / name)
        assert str(refused.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(refused.value)


def test_the_line_that_is_advised_makes_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(SAVE, {"torch": torch, "model": torch.nn.Linear(3, 2), "example": torch.ones(2, 3)})
    assert isinstance(source(tmp_path / "model.pt2"), TorchProgram)


def test_an_operator_that_older_opsets_lack_is_named(tmp_path: Path) -> None:
    class Normalized(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return torch.nn.functional.layer_norm(x, (3,))

    save_program(program_from_module(traceable((Normalized().eval(), torch.ones(2, 3)))[0]), tmp_path / "net.pt2")
    words = r"net.pt2: node '\S+' \(LayerNormalization\) cannot be brought from opset 18 to 16 .*--opset 18"
    with pytest.raises(StageError, match=words):
        Export(opset=16)(tmp_path, source(tmp_path / "net.pt2"))
