"""`.pt2` files that would run something when torch reads them: each is refused, or read without it."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.errors import Unavailable
from engines.torch_graph.archive import UnsafeArchive, check_archive, is_program
from engines.torch_graph.exporter import program_from_module, traceable
from engines.torch_graph.library import load_torch, load_torchvision
from engines.torch_graph.program import ProgramCall, load_program, save_program

Parts = dict[str, bytes]
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """Those of a program as torch writes it: tanh(x w + b), and x + 1."""
    torch = load_torch()

    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(3, 2)

        def forward(self, x: Any) -> Any:
            return {"y": torch.tanh(self.fc(x)), "twice": torch.cat([x, x])}

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("program") / "net.pt2"
    save_program(program_from_module(traceable((Net().eval(), torch.zeros(2, 3)))[0]), path)
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


class Forged:
    """What makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def pickled(mark: Path) -> bytes:
    """As torch.save writes it: a zip archive that holds a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Forged(mark)))
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def written(parts: Parts, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(f"net/{name}", content)
    return path


def with_model(parts: Parts, change: Callable[[dict[str, Any]], object]) -> Parts:
    model = json.loads(parts["models/model.json"])
    change(model)
    return parts | {"models/model.json": json.dumps(model).encode()}


def test_a_program_is_read_and_run(parts: Parts, tmp_path: Path) -> None:
    path = written(parts, tmp_path / "net.pt2")
    assert is_program(path)
    assert check_archive(path) == load_torch().__version__
    call = ProgramCall(load_program(path))
    x = np.ones((5, 3), np.float32)
    answers = call({"x": x})
    assert {name: array.shape for name, array in answers.items()} == {"y": (5, 2), "twice": (10, 3)}
    assert [(port.spec().name, port.spec().shape) for port in call.ports.inputs] == [("x", (-1, 3))]


def test_sample_inputs_are_not_unpickled(parts: Parts, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path = written(parts | {"data/sample_inputs/model.pt": pickled(mark)}, tmp_path / "net.pt2")
    assert ProgramCall(load_program(path))({"x": np.zeros((2, 3), np.float32)})["y"].shape == (2, 2)
    assert not mark.exists()


def test_guards_are_not_run(parts: Parts, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    guard = f"__import__('os').system('touch {mark}') == 0"
    path = written(with_model(parts, lambda m: m.update(guards_code=[guard])), tmp_path / "net.pt2")
    ProgramCall(load_program(path))({"x": np.zeros((2, 3), np.float32)})
    assert not mark.exists()


def _weight(parts: Parts, **changes: object) -> Parts:
    config = json.loads(parts[WEIGHTS])
    config["config"]["fc.weight"].update(changes)
    return parts | {WEIGHTS: json.dumps(config).encode()}


def _graph(model: dict[str, Any]) -> dict[str, Any]:
    return dict(model["graph_module"]["graph"])


def _shape(text: object) -> Callable[[dict[str, Any]], None]:
    def change(model: dict[str, Any]) -> None:
        size = _graph(model)["tensor_values"]["x"]["sizes"][0]
        size["as_expr"]["expr_str"] = text

    return change


def _target(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda model: _graph(model)["nodes"][0].update(target=name)


def _spec(text: str) -> Callable[[dict[str, Any]], None]:
    return lambda model: model["graph_module"]["module_call_graph"][0]["signature"].update(in_spec=text)


RUN = "__import__('os').system('true')"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: _weight(p, use_pickle=True), r"says that 'fc.weight' is a pickle, which runs code"),
        (lambda p: _weight(p, use_pickle=None), r"says that 'fc.weight' is a pickle"),
        (lambda p: _weight(p, path_name="../../x"), r"names the part '\.\./\.\./x', which is no tensor"),
        (
            lambda p: p | {CONSTANTS: b'{"config": {"c": {"path_name": "custom_obj_0", "use_pickle": false}}}'},
            r"names the part 'custom_obj_0', which is no tensor",
        ),
        (
            lambda p: p | {"data/constants/custom_obj_0": b""},
            r"holds a pickle or the like, 'data/constants/custom_obj_0'",
        ),
        (lambda p: p | {"data/weights/model.pt": b""}, r"holds a pickle or the like, 'data/weights/model.pt'"),
        (lambda p: p | {"data/aotinductor/model/x.so": b""}, r"holds compiled code, 'data/aotinductor/model/x.so'"),
        (lambda p: with_model(p, _shape(RUN)), r"a shape is .__import__.*, which is no expression of sizes"),
        (lambda p: with_model(p, _shape([RUN])), r"which is no expression of sizes"),
        (lambda p: with_model(p, _shape("Symbol('x').func.__class__")), r"which is no expression of sizes"),
        (lambda p: with_model(p, _shape(f"Integer({RUN!r})")), r"which is no expression of sizes"),
        (lambda p: with_model(p, _target("torch.os.system")), r"calls 'torch.os.system', operators of torch.ops.aten"),
        (lambda p: with_model(p, _target("torch.ops.aten.from_file.default")), r"calls 'torch.ops.aten.from_file"),
        (lambda p: with_model(p, _target("torch.ops.aten.__class__.__base__")), r"calls 'torch.ops.aten.__class__"),
        (
            lambda p: with_model(p, _target("torch.ops.torchvision._cuda_version.default")),
            r"calls 'torch.ops.torchvision",
        ),
        (lambda p: with_model(p, _target("_operator.methodcaller")), r"calls '_operator.methodcaller'"),
        (
            lambda p: with_model(
                p, _spec('[1, {"type": "collections.defaultdict", "context": "os.system", "children_spec": []}]')
            ),
            r"inputs or outputs are arranged in a type of its own",
        ),
        (
            lambda p: with_model(p, lambda m: m.update(range_constraints={"s0": {"min_val": RUN, "max_val": None}})),
            r"a bound of a size is .*, a number is expected",
        ),
        (lambda p: p | {"models/model.json": b"{"}, r"its part 'net/models/model.json' is damaged"),
        (lambda p: {n: c for n, c in p.items() if n != WEIGHTS}, r"has no 'data/weights/model_weights_config.json'"),
    ],
)
def test_what_would_run_is_refused(parts: Parts, tmp_path: Path, change: Callable[[Parts], Parts], words: str) -> None:
    path = written(change(parts), tmp_path / "net.pt2")
    with pytest.raises(UnsafeArchive, match=words) as refused:
        load_program(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_two_parts_of_one_name_are_refused(parts: Parts, tmp_path: Path) -> None:
    path = written(parts, tmp_path / "net.pt2")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("net/models/model.json", b"{}")
    with pytest.raises(UnsafeArchive, match="its parts are not in one folder, once each"):
        check_archive(path)


def test_a_file_of_a_newer_torch_is_told(parts: Parts, tmp_path: Path) -> None:
    def newer(model: dict[str, Any]) -> None:
        model.update(torch_version="99.1.0+cpu", schema_version={"major": 99, "minor": 1})

    path = written(with_model(parts, newer), tmp_path / "net.pt2")
    with pytest.raises(
        Unavailable, match=r"was saved by torch 99\.1\.0\+cpu, newer than 2\.\S+ here .*torch>=99\.1\.0'"
    ):
        load_program(path)


def test_operators_of_torchvision_are_no_danger(parts: Parts, tmp_path: Path) -> None:
    path = written(with_model(parts, _target("torch.ops.torchvision.nms.default")), tmp_path / "net.pt2")
    assert check_archive(path) == load_torch().__version__
    try:
        load_torchvision()
    except Unavailable:
        with pytest.raises(Unavailable, match=r"torchvision .*the network calls its operators; install the torchvisi"):
            load_program(path)
