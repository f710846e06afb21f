"""From a plan to a bundle, and from the bundle to engines, as on a device that has neither the network nor its data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from calibration.data.batches import InputSpec, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from calibration.ranges.trt_cache import cache_from_bytes
from pipeline.bundle import open_bundle
from pipeline.errors import ConfigError
from pipeline.plan import read_plan, tomllib
from pipeline.release.bundle_writer import toml_of, write_samples
from pipeline.report.table import report_from_json

if TYPE_CHECKING:
    from tests.conftest import Command

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "build_on_jetson"

FILES = {
    "SHA256SUMS", "manifest.json", "plan.toml", "samples.npz",
    "ranges/histograms.npz", "ranges/ranges.json", "ranges/settling.json",
    "reference/findings.json", "reference/outputs.json", "reference/verdict.json",
    "models/fp32/model.onnx", "models/fp32/names.json", "models/fp32/notes.json",
    "models/int8.tensorrt/model.onnx", "models/int8.tensorrt/notes.json",
}  # fmt: skip
"""Of the plan of `tests/conftest.py`: FP32 and INT8."""


def packed(command: Command, plan: Path, output: str = "bundle.tar", store: str = ".trtforge") -> Path:
    said = command("pack", plan, "-o", plan.parent / output, "--store", store)
    assert (said.status, said.out) == (0, f"{plan.parent / output}\n"), said.err
    return plan.parent / output


def unpacked(bundle: Path) -> Path:
    """The folder of an unpacked bundle, and nothing of what it was made from."""
    folder = bundle.parent / "device"
    with tarfile.open(bundle) as archive:
        archive.extractall(folder, filter="data")
    return folder / "trtforge-bundle"


@pytest.fixture
def device(command: Command, plan: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An unpacked bundle on a device: the network, its data and the store are gone."""
    folder = unpacked(packed(command, plan))
    for name in ("tiny.onnx", "data.npz"):
        (plan.parent / name).unlink()
    monkeypatch.chdir(folder)
    return folder


def test_what_a_bundle_holds(command: Command, plan: Path) -> None:
    folder = unpacked(packed(command, plan))
    found = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert found == FILES
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.count(": OK") == len(FILES) - 1
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["models"] == {
        "fp32": "models/fp32/model.onnx",
        "int8.tensorrt": "models/int8.tensorrt/model.onnx",
    }
    assert (manifest["calibration"]["num_samples"], manifest["evaluation"]["num_samples"]) == (12, 24)
    kinds = {node.op_type for node in onnx.load(folder / "models/int8.tensorrt/model.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds


def test_equal_inputs_give_equal_bytes(command: Command, plan: Path) -> None:
    first = packed(command, plan, "first.tar")
    elsewhere = plan.parent / "elsewhere"
    elsewhere.mkdir()
    for name in ("tiny.onnx", "data.npz", "plan.toml"):
        shutil.copy(plan.parent / name, elsewhere / name)
    again = packed(command, elsewhere / "plan.toml", "again.tar", store="another-store")
    assert first.read_bytes() == again.read_bytes()
    with tarfile.open(first) as archive:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in archive} == {(0, 0, 0, "", 0o644)}


def test_a_device_builds_judges_and_times_from_the_bundle(command: Command, device: Path) -> None:
    said = command("run", "plan.toml", "--backend", "reference")
    assert said.status == 0, said.err
    assert "calibrate" not in said.err
    record = report_from_json(device / "trtforge-report" / "report.json")
    assert [variant.name for variant in record.variants] == ["fp32@reference", "int8@reference"]
    assert record.model.source == "tiny.onnx", "as it was named where it was packed"
    assert record.data.calibration is not None
    assert (record.data.calibration.num_samples, record.data.evaluation.path) == (12, "data.npz")
    assert record.metric is not None
    assert record.metric.source_value is not None, "of the trained network, which is not here"
    assert record.variants[0].agreement == 1.0, "against the answers in the bundle"
    assert record.variants[0].latency_ms is not None
    found = {finding.code: finding.sentence for finding in record.lint}
    assert found["overlap"].startswith("12 of 12 calibration samples are evaluation samples too")
    assert found["few"].startswith("data.npz: "), "as the plan names it"


def test_derived_tolerances_come_along(command: Command, plan: Path) -> None:
    images = np.random.default_rng(9).normal(size=(64, 4, 8, 8)).astype(np.float32)
    np.savez(plan.parent / "many.npz", image=images, y=np.arange(64) % 3)
    plan.write_text(
        plan.read_text().replace('{ path = "data.npz", labels = "y" }', '{ path = "many.npz", labels = "y" }')
    )
    folder = unpacked(packed(command, plan))
    assert set(open_bundle(folder / "manifest.json").manifest.tolerances) == {"fp32.tensorrt", "int8.tensorrt"}
    own = folder / "plan.toml"
    own.write_text(own.read_text().replace('["tensorrt"]', '["reference"]'))
    said = command("validate", own)
    paths = [Path(line.split("\t")[1]) for line in said.out.splitlines()]
    assert all(json.loads(path.read_text())["derived"]["scores"]["min_sqnr_db"] > 0 for path in paths)


def test_single_verbs_work_on_a_bundles_plan(command: Command, device: Path) -> None:
    plan = device / "plan.toml"
    plan.write_text(plan.read_text().replace('["tensorrt"]', '["reference"]'))
    said = command("validate", plan)
    assert said.status == 0, said.err
    lines = [line.split("\t") for line in said.out.splitlines()]
    assert [name for name, _ in lines] == ["fp32@reference", "int8@reference"]
    refused = command("quantize", plan)
    assert refused.status == 2
    assert "is a bundle's plan, its models are made: nothing is left to quantize" in refused.err


def test_a_backend_that_it_was_not_packed_for(command: Command, device: Path) -> None:
    said = command("run", "plan.toml", "--backend", "onnxruntime")
    assert said.status == 2
    assert "the bundle has no model 'int8.onnxruntime', only fp32, int8.tensorrt; pack it again with" in said.err
    typo = command("run", "plan.toml", "--backend", "tensort")
    assert typo.status == 2
    assert "--backend 'tensort': no such backend; did you mean 'tensorrt'?" in typo.err


def test_packed_for_several_backends_with_a_cache_and_fewer_samples(command: Command, plan: Path) -> None:
    table = '\n[pack]\nbackends = ["onnxruntime", "tensorrt"]\ncaches = ["8.5.2", "10.3.0"]\nlimit = 8\n'
    plan.write_text(plan.read_text() + table)
    folder = unpacked(packed(command, plan))
    bundle = open_bundle(folder / "manifest.json")
    assert set(bundle.manifest.models) == {"fp32", "int8.onnxruntime", "int8.tensorrt"}
    caches = {v: cache_from_bytes((folder / path).read_bytes(), path) for v, path in bundle.manifest.caches.items()}
    assert {version: cache.header for version, cache in caches.items()} == {
        "8.5.2": "TRT-8502-EntropyCalibration2",
        "10.3.0": "TRT-100300-EntropyCalibration2",
    }
    assert caches["8.5.2"].scales == caches["10.3.0"].scales
    assert "image" in caches["8.5.2"].scales
    with np.load(folder / "samples.npz") as samples:
        assert (samples["image"].shape, samples["labels"].tolist()) == ((8, 4, 8, 8), [0, 0, 0, 0, 0, 0, 0, 0])
    assert read_plan(folder / "plan.toml").variants.backends == ("onnxruntime", "tensorrt")


def test_a_users_metric_comes_along(command: Command, plan: Path) -> None:
    (plan.parent / "counting.py").write_text("from scores import right\n\ndef metric(outputs, labels):\n"
                                             "    return right(outputs['scores'], labels)\n")  # fmt: skip
    (plan.parent / "scores.py").write_text(
        "def right(scores, labels):\n    return float((scores.argmax(1) == 0).sum())\n"
    )
    plan.write_text(plan.read_text().replace('"top1"', '"counting:metric"'))
    folder = unpacked(packed(command, plan))
    assert (folder / "counting.py").read_bytes() == (plan.parent / "counting.py").read_bytes()
    assert (folder / "scores.py").is_file()


def test_a_metric_from_elsewhere_is_refused(command: Command, plan: Path) -> None:
    plan.write_text(plan.read_text().replace('"top1"', '"json:dumps"'))
    said = command("pack", plan, "-o", "bundle.tar")
    assert said.status != 0
    assert not Path("bundle.tar").exists()


def test_a_failure_leaves_the_older_bundle(command: Command, plan: Path) -> None:
    bundle = packed(command, plan)
    before = bundle.read_bytes()
    plan.write_text(plan.read_text() + '\n[pack]\ncaches = ["11.0.0"]\n')
    said = command("pack", plan, "-o", bundle)
    assert said.status == 2
    assert "TensorRT version 11.0.0: reads no calibration caches" in said.err
    assert bundle.read_bytes() == before
    assert [path.name for path in plan.parent.iterdir() if path.name.startswith(".bundle")] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "-o is missing: name the bundle to write, such as bundle.tar"),
        (["-o", "."], ".: is a folder; give the path of a file with -o"),
    ],
)
def test_pack_on_a_wrong_command_line(command: Command, plan: Path, arguments: list[str], said: str) -> None:
    found = command("pack", plan, *arguments)
    assert (found.status, said in found.err) == (2, True), found.err


def test_a_bundle_is_not_packed_again(command: Command, device: Path) -> None:
    said = command("pack", "plan.toml", "-o", "again.tar")
    assert said.status == 2
    assert "nothing is left to pack" in said.err


def damage(folder: Path, name: str) -> None:
    file = folder / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    "name", ["samples.npz", "models/int8.tensorrt/model.onnx", "reference/outputs.json", "ranges/ranges.json"]
)
def test_a_damaged_file_is_named(command: Command, device: Path, name: str) -> None:
    damage(device, name)
    said = command("run", "plan.toml", "--backend", "reference")
    assert said.status == 2
    assert f"{name}: is not what was packed (SHA-256 differs); copy the bundle again" in said.err
    (device / name).unlink()
    assert f"{name}: is missing from the bundle" in command("run", "plan.toml", "--backend", "reference").err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read as a bundle's manifest"),
        ("[]", "format_version is None, this program reads 2"),
        ('{"format_version": 7}', "format_version is 7, this program reads 2"),
    ],
)
def test_a_manifest_that_is_none(device: Path, text: str, said: str) -> None:
    (device / "manifest.json").write_text(text)
    with pytest.raises(ConfigError, match=said):
        open_bundle(device / "manifest.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        open_bundle(device / "nothing.json")


def test_the_plan_may_be_changed(command: Command, device: Path) -> None:
    plan = device / "plan.toml"
    plan.write_text(plan.read_text().replace("min_queries = 8", "min_queries = 12"))
    assert command("run", "plan.toml", "--backend", "reference").status == 0


ODD: list[dict[str, Any]] = [
    {"a": 1, "b": 0.5, "c": True, "d": "x", "e": []},
    {"quoted key/with:0": 'a "quote", a \\ and\na line', "umlaut": "Größe"},
    {"inputs": {"image:0": {"min": [1, 3], "opt": [2, 3], "max": [4, 3]}}, "list": ["a", "b"], "far": float("inf")},
]


@pytest.mark.parametrize("table", ODD)
def test_a_table_as_toml(table: dict[str, Any]) -> None:
    assert tomllib.loads(toml_of(table)) == table


def written(tmp_path: Path, specs: tuple[InputSpec, ...], preprocess: Preprocess, labels: str = "") -> dict[str, Any]:
    samples = open_samples(DataSource(str(tmp_path / "in.npz"), labels=labels), specs, preprocess, tmp_path)
    write_samples(tmp_path / "out.npz", samples)
    again = open_samples(DataSource(str(tmp_path / "out.npz")), specs, Preprocess(), tmp_path)
    assert again.num_samples == samples.num_samples
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def test_samples_are_written_as_the_model_takes_them(tmp_path: Path) -> None:
    pictures = np.arange(70 * 2 * 2 * 3, dtype=np.uint8).reshape(70, 2, 2, 3)
    np.savez(tmp_path / "in.npz", image=pictures, y=np.arange(70, dtype=np.int32))
    specs = (InputSpec("image", "float32", (-1, 3, 2, 2)),)
    found = written(tmp_path, specs, Preprocess(scale=0.5, layout="nchw", dtype="float32"), "y")
    assert list(found) == ["image", "labels"]
    np.testing.assert_array_equal(found["image"], pictures.transpose(0, 3, 1, 2).astype(np.float32) / 2)
    np.testing.assert_array_equal(found["labels"], np.arange(70))


def test_samples_of_two_inputs_and_a_fixed_batch_without_labels(tmp_path: Path) -> None:
    arrays = {"a/b:0": np.arange(10, dtype=np.float32).reshape(5, 2), "ids": np.arange(5, dtype=np.int64).reshape(5, 1)}
    np.savez(tmp_path / "in.npz", **arrays)  # type: ignore[arg-type]  # Of this numpy's stub.
    found = written(tmp_path, (InputSpec("a/b:0", "float32", (2, 2)), InputSpec("ids", "int64", (2, 1))), Preprocess())
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_an_input_named_as_the_labels_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", labels=np.zeros((3, 2), dtype=np.float32))
    with pytest.raises(ConfigError, match="input 'labels' has the name of the labels in a bundle; rename it"):
        written(tmp_path, (InputSpec("labels", "float32", (-1, 2)),), Preprocess())


def on_jetson(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script with an interpreter that can run it, unless another is given."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [str(SCRIPT), *map(str, arguments)],
        env=clean | {"PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, "usage: "),
        (["b.tar", "reference"], 2, "usage: "),
        (["nowhere.tar"], 2, "nowhere.tar: does not exist; give the file that `trtforge pack` wrote"),
    ],
)
def test_the_script_on_a_wrong_command_line(arguments: list[str], status: int, said: str) -> None:
    done = on_jetson(*arguments)
    assert (done.returncode, said in done.stderr) == (status, True), done.stderr


def test_the_script_on_a_damaged_bundle(command: Command, plan: Path) -> None:
    bundle = packed(command, plan)
    data = bundle.read_bytes()
    bundle.write_bytes(data[: len(data) // 2])
    done = on_jetson(bundle, "--backend", "reference", VENV=str(plan.parent / "venv"))
    assert done.returncode == 2
    assert "cannot be unpacked; copy it again" in done.stderr
    at = data.index(b"QuantizeLinear")
    bundle.write_bytes(data[:at] + b"X" + data[at + 1 :])
    done = on_jetson(bundle, "--backend", "reference", VENV=str(plan.parent / "venv"))
    assert done.returncode == 2
    assert "models/int8.tensorrt/model.onnx: FAILED" in done.stdout
    assert "bundle.tar: is damaged; copy it again" in done.stderr
    assert not (plan.parent / "venv").exists()


def test_the_script_with_the_python_of_jetpack_5(tmp_path: Path) -> None:
    (tmp_path / "bundle.tar").write_bytes(b"")
    python = tmp_path / "python3.8"
    python.write_text('#!/bin/sh\ncase "$2" in *print*) echo 3.8;; *) exit 1;; esac\n')
    python.chmod(0o755)
    done = on_jetson(tmp_path / "bundle.tar", PYTHON=str(python))
    assert done.returncode == 3
    assert "is Python 3.8, 3.10 is the oldest that works; JetPack 5 makes its TensorRT for 3.8 alone: " in done.stderr
    assert "flash JetPack 6 (Orin), build bindings for 3.10, or build by trtexec, unchecked (docs/" in done.stderr
    done = on_jetson(tmp_path / "bundle.tar", PYTHON=str(tmp_path / "none"))
    assert done.returncode == 3
    assert done.stderr.endswith("none: is no Python that runs; name one with PYTHON=\n")


@pytest.mark.slow
def test_the_whole_script_in_a_fresh_environment(command: Command, plan: Path) -> None:
    bundle = packed(command, plan)
    for name in ("tiny.onnx", "data.npz", "plan.toml"):
        (plan.parent / name).unlink()
    venv = plan.parent / "venv"
    done = on_jetson(bundle, "--backend", "reference", VENV=str(venv))
    assert done.returncode == 0, done.stderr
    assert "int8@reference" in done.stdout
    record = report_from_json(plan.parent / "bundle" / "trtforge-report" / "report.json")
    assert [variant.failures for variant in record.variants] == [(), ()]
    assert not {"tensorflow", "onnxruntime", "tf2onnx"} & set(record.versions), "the core is all that was installed"
    again = on_jetson(bundle, "--backend", "reference", VENV=str(venv))
    assert again.returncode == 0, again.stderr
    assert "installing" not in again.stderr
    assert "served" in again.stderr
