"""A bundle on a device: it builds, judges and times without the network's source, and damage is named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.bundle import open_bundle
from pipeline.errors import ConfigError, DataError
from pipeline.report.table import report_from_json
from tests.pipeline.bundles import unpacked

if TYPE_CHECKING:
    from tests.conftest import Command, Packed


@pytest.fixture
def device(packed_once: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An unpacked bundle on a device: the network, its data and the store are not there."""
    folder = unpacked(packed_once.bundle, tmp_path)
    monkeypatch.chdir(folder)
    return folder


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


def test_single_verbs_work_on_a_bundles_plan(command: Command, device: Path) -> None:
    plan = device / "plan.toml"
    plan.write_text(plan.read_text().replace('"tensorrt"', '"reference"'))
    said = command("validate", plan)
    assert said.status == 0, said.err
    lines = [line.split("\t") for line in said.out.splitlines()]
    assert [name for name, _ in lines] == ["fp32@reference", "int8@reference"]
    refused = command("quantize", plan)
    assert refused.status == 2
    assert "is the plan of a bundle, its models are already made: there is nothing to quantize" in refused.err


def test_a_backend_that_it_was_not_packed_for(command: Command, device: Path) -> None:
    said = command("run", "plan.toml", "--backend", "onnxruntime")
    assert said.status == 2
    assert "the bundle has no model 'int8.onnxruntime', only fp32, int8.tensorrt; pack it again with" in said.err
    typo = command("run", "plan.toml", "--backend", "tensort")
    assert typo.status == 2
    assert "--backend 'tensort': no such backend; did you mean 'tensorrt'?" in typo.err


def test_a_bundle_is_not_packed_again(command: Command, device: Path) -> None:
    said = command("pack", "plan.toml", "-o", "again.tar")
    assert said.status == 2
    assert "there is nothing to pack" in said.err


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
        ("", "manifest.json: is not JSON (.*); copy the bundle again"),
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


def test_a_manifest_is_read_strictly(device: Path) -> None:
    path = device / "manifest.json"
    whole = json.loads(path.read_text())
    for change, said in (
        ({"colour": "red"}, "extra fields found \\(colour\\)"),
        ({"notes": "abc"}, "notes: is 'abc', expected list"),
        ({"models": ["fp32"]}, "models: is no table of keys"),
        ({"ranges": 3}, "ranges: is 3, expected str"),
        ({"evaluation": {"path": "x"}}, "evaluation.num_samples: required field missing"),
    ):
        path.write_text(json.dumps(whole | change))
        with pytest.raises(ConfigError, match=rf"manifest\.json: {said}; copy the bundle again, or pack it again"):
            open_bundle(path)


def test_the_plan_may_be_changed(command: Command, device: Path) -> None:
    plan = device / "plan.toml"
    plan.write_text(plan.read_text().replace("min_queries = 8", "min_queries = 12"))
    assert command("run", "plan.toml", "--backend", "reference").status == 0


def test_a_file_that_was_not_packed_is_named(command: Command, device: Path) -> None:
    assert command("run", "plan.toml", "--backend", "reference").status == 0
    assert command("run", "plan.toml", "--backend", "reference").status == 0, "what runs write may be there"
    (device / "models" / "extra.py").write_text("print('extra')")
    said = command("run", "plan.toml", "--backend", "reference")
    assert said.status == 2
    assert "models/extra.py: was not packed, SHA256SUMS does not name it" in said.err


def test_a_link_is_no_file_of_a_bundle(device: Path) -> None:
    (device / "link").symlink_to("/etc")
    with pytest.raises(DataError, match="link: was not packed"):
        open_bundle(device / "manifest.json")


def test_sums_name_all_files(device: Path) -> None:
    (device / "SHA256SUMS").write_text("")
    with pytest.raises(DataError, match="was not packed"):
        open_bundle(device / "manifest.json")


@pytest.mark.parametrize("path", ["/etc/hostname", "../tiny.onnx", "models/nothing.onnx"])
def test_a_manifest_names_files_of_the_bundle_alone(path: str, device: Path) -> None:
    manifest = device / "manifest.json"
    record = json.loads(manifest.read_text())
    record["models"]["fp32"] = path
    manifest.write_text(json.dumps(record))
    sums = (device / "SHA256SUMS").read_text().splitlines()
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    changed = [f"{digest}  manifest.json" if line.endswith("  manifest.json") else line for line in sums]
    (device / "SHA256SUMS").write_text("\n".join(changed) + "\n")
    with pytest.raises(DataError, match=rf"manifest\.json: names '{path}', which is no file of the bundle"):
        open_bundle(manifest)
