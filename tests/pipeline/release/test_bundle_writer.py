"""A bundle's content: models, samples, what the plan needs of the user, and the same bytes each time."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
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
from pipeline.release import bundle_writer
from pipeline.release.bundle_writer import bundle_plan, write_samples
from tests.pipeline.bundles import packed, unpacked

if TYPE_CHECKING:
    from tests.conftest import Command, Packed

FILES = {
    "SHA256SUMS", "manifest.json", "plan.toml", "samples.npz",
    "ranges/histograms.npz", "ranges/ranges.json", "ranges/settling.json",
    "reference/findings.json", "reference/outputs.json", "reference/verdict.json",
    "models/fp32/model.onnx", "models/fp32/names.json", "models/fp32/notes.json",
    "models/int8.tensorrt/model.onnx", "models/int8.tensorrt/notes.json",
}  # fmt: skip
"""Of the plan of `tests/conftest.py`: FP32 and INT8."""


def test_what_a_bundle_holds(packed_once: Packed, tmp_path: Path) -> None:
    folder = unpacked(packed_once.bundle, tmp_path)
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


def test_equal_inputs_give_equal_bytes(packed_once: Packed, command: Command, plan: Path) -> None:
    """From another folder, into another store."""
    first = packed_once.bundle
    again = packed(command, plan, "again.tar", store="another-store")
    assert first.read_bytes() == again.read_bytes()
    with tarfile.open(first) as archive:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in archive} == {(0, 0, 0, "", 0o644)}


def test_derived_tolerances_come_along(command: Command, plan: Path, warm_store: Path) -> None:
    images = np.random.default_rng(9).normal(size=(64, 4, 8, 8)).astype(np.float32)
    np.savez(plan.parent / "many.npz", image=images, y=np.arange(64) % 3)
    plan.write_text(
        plan.read_text().replace('{ path = "data.npz", labels = "y" }', '{ path = "many.npz", labels = "y" }')
    )
    folder = unpacked(packed(command, plan, store=warm_store))
    tolerances = open_bundle(folder / "manifest.json").manifest.tolerances
    assert set(tolerances) == {"fp32.tensorrt", "int8.tensorrt"}
    corrected = {kind: json.loads((folder / path).read_text())["corrects_biases"] for kind, path in tolerances.items()}
    assert corrected == {"fp32.tensorrt": False, "int8.tensorrt": True}, "as the engines that are judged"
    own = folder / "plan.toml"
    own.write_text(own.read_text().replace('["tensorrt"]', '["reference"]'))
    said = command("validate", own)
    paths = [Path(line.split("\t")[1]) for line in said.out.splitlines()]
    assert all(json.loads(path.read_text())["derived"]["scores"]["min_sqnr_db"] > 0 for path in paths)


def test_packed_for_several_backends_with_a_cache_and_fewer_samples(
    command: Command, plan: Path, warm_store: Path
) -> None:
    table = '\n[pack]\nbackends = ["onnxruntime", "tensorrt"]\ncaches = ["8.5.2", "10.3.0"]\nlimit = 8\n'
    plan.write_text(plan.read_text() + table)
    folder = unpacked(packed(command, plan, store=warm_store))
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


def test_a_users_metric_comes_along(command: Command, plan: Path, warm_store: Path) -> None:
    (plan.parent / "counting.py").write_text("from scores import right\n\ndef metric(outputs, labels):\n"
                                             "    return right(outputs['scores'], labels)\n")  # fmt: skip
    (plan.parent / "scores.py").write_text(
        "def right(scores, labels):\n    return float((scores.argmax(1) == 0).sum())\n"
    )
    plan.write_text(plan.read_text().replace('"top1"', '"counting:metric"'))
    folder = unpacked(packed(command, plan, store=warm_store))
    assert (folder / "counting.py").read_bytes() == (plan.parent / "counting.py").read_bytes()
    assert (folder / "scores.py").is_file()


def test_a_metric_from_elsewhere_is_refused(command: Command, plan: Path) -> None:
    plan.write_text(plan.read_text().replace('"top1"', '"json:dumps"'))
    said = command("pack", plan, "-o", "bundle.tar")
    assert said.status != 0
    assert not Path("bundle.tar").exists()


def test_a_failure_leaves_the_older_bundle(
    command: Command, plan: Path, packed_once: Packed, warm_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copy(packed_once.bundle, plan.parent))
    before = bundle.read_bytes()

    def half(_folder: Path, path: Path) -> None:
        path.write_bytes(before[: len(before) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(bundle_writer, "write_tar", half)
    plan.write_text(plan.read_text() + "\n[pack]\nlimit = 8\n")
    said = command("pack", plan, "-o", bundle, "--store", warm_store)
    assert (said.status, "the disk is full" in said.err) == (3, True), said.err
    assert bundle.read_bytes() == before
    assert [path.name for path in plan.parent.iterdir() if path.name.startswith(".bundle")] == []


ODD = """
[model]
source = "net.onnx"

[model.inputs."picture/\U0001f4f7:0"]
min = [1, 3]
opt = [2, 3]
max = [4, 3]

[data]
calibration = "data.npz"
evaluation = "data.npz"
output = 'a "quoted" \\ Größe \U0001f600'

[benchmark]
batch_sizes = [1, 4]

[benchmark.protocol]
min_seconds = 0.5
"""
"""What TOML has to escape, and what it must not: a character beyond U+FFFF has no escape of two halves, as in JSON."""


def test_any_text_of_a_plan_survives_packing(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(ODD, encoding="utf-8")
    text = bundle_plan(read_plan(tmp_path / "plan.toml"), has_labels=False)
    assert text == bundle_plan(read_plan(tmp_path / "plan.toml"), has_labels=False)
    before, after = tomllib.loads(ODD), tomllib.loads(text)
    assert after["model"]["inputs"] == before["model"]["inputs"]
    assert after["data"]["output"] == before["data"]["output"]
    assert after["benchmark"] == before["benchmark"]


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
