"""What goes back of a run on another machine, whether by ssh or from a worker: what its record names, and no more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.signing import trust
from pipeline.remote.device_files import GATE_FOLDER, REPORT_FOLDER, files_made
from pipeline.stages import gate, report


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """With an engine in a store, an unpacked bundle, and a log; beside it a file that is none of ours."""
    for name in ("home/store/build/a/model.plan", "home/store/build/a/record.json", "home/store/build/a/result.json",
                 "home/store/baselines/last/model.plan", "home/work/bundle/trtforge-report/samples/a.npz",
                 "home/work/log", "outside/model.plan"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "home/work/bundle/trtforge-report/link").symlink_to("/etc/passwd")
    return tmp_path / "home"


def made(home: Path, folder: str) -> dict[str, str]:
    """Name -> where it lies in the home."""
    files = files_made(home / "work/bundle", folder, home / "work/log", home)
    return {name: path.relative_to(home).as_posix() for name, path in files}


def test_of_a_run(home: Path) -> None:
    rows = [
        {"name": "int8@tensorrt", "artifact": "../../store/build/a/model.plan"},
        {"name": "fp16@tensorrt", "artifact": "../../../outside/model.plan"},
        {"name": "fp32@tensorrt", "artifact": "../../store/build/gone/model.plan"},
    ]
    (home / "work/bundle/trtforge-report/report.json").write_text(json.dumps({"variants": rows}))
    assert made(home, REPORT_FOLDER) == {
        "log.txt": "work/log",
        "report/report.json": "work/bundle/trtforge-report/report.json",
        "report/samples/a.npz": "work/bundle/trtforge-report/samples/a.npz",
        "engines/int8@tensorrt/model.plan": "store/build/a/model.plan",
        "engines/int8@tensorrt/record.json": "store/build/a/record.json",
    }


def test_of_a_gate_the_last_good_engine_stays(home: Path) -> None:
    rows = [
        {"name": "int8@tensorrt", "path": "../../store/build/a/model.plan"},
        {"name": "last", "path": "../../store/baselines/last/model.plan"},
    ]
    (home / "work/bundle/trtforge-gate").mkdir()
    (home / "work/bundle/trtforge-gate/gate.json").write_text(json.dumps({"engines": rows}))
    engines = [name for name in made(home, GATE_FOLDER) if name.startswith("engines/")]
    assert engines == ["engines/int8@tensorrt/model.plan", "engines/int8@tensorrt/record.json"]


def test_a_signature_of_the_store_goes_beside_its_engine(home: Path) -> None:
    rows = [{"name": "int8@tensorrt", "path": "../../store/build/a/model.plan"}]
    (home / "work/bundle/trtforge-gate").mkdir()
    (home / "work/bundle/trtforge-gate/gate.json").write_text(json.dumps({"engines": rows}))
    signed = trust.sha256_of(home / "store/build/a/model.plan")
    (home / "store" / trust.IN_STORE).mkdir()
    assert len(made(home, GATE_FOLDER)) == 4, "it was not signed"
    file = home / "store" / trust.IN_STORE / f"{signed}{trust.ENDING}"
    file.touch()
    beside = trust.beside_of(Path("engines/int8@tensorrt/model.plan")).as_posix()
    assert made(home, GATE_FOLDER)[beside] == file.relative_to(home).as_posix()


def test_an_engine_that_is_a_folder_goes_as_a_whole(home: Path) -> None:
    """As those of onnxruntime_tensorrt."""
    engine = home / "store/build/b/model.ort"
    for name in ("a/model.onnx", "a-b", "a.txt"):
        (engine / name).parent.mkdir(parents=True, exist_ok=True)
        (engine / name).write_text(name)
    (home / "store" / trust.IN_STORE).mkdir()
    (home / "store" / trust.IN_STORE / f"{trust.sha256_of(engine)}{trust.ENDING}").touch()
    rows = [{"name": "fp16@x", "artifact": "../../store/build/b/model.ort"}, {"name": "int8@x", "artifact": ""}]
    (home / "work/bundle/trtforge-report/report.json").write_text(json.dumps({"variants": rows}))
    names = [name.partition("engines/fp16@x/")[2] for name in made(home, REPORT_FOLDER) if name.startswith("engines/")]
    assert names == ["model.ort/a/model.onnx", "model.ort/a-b", "model.ort/a.txt", f"model.ort{trust.ENDING}"]


def test_of_a_run_that_wrote_nothing_the_log(home: Path) -> None:
    assert made(home, GATE_FOLDER) == {"log.txt": "work/log"}


def test_the_folders_are_those_that_the_verbs_write() -> None:
    assert (REPORT_FOLDER, GATE_FOLDER) == (report.DEFAULT_FOLDER, gate.DEFAULT_FOLDER)
