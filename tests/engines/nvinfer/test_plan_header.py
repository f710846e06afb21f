"""Whether a plan can run here, before it is deserialized: headers as TensorRT writes them, records as ours."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from engines.backends import tensorrt, tensorrt_rtx
from engines.contract import BuildOptions, ShapeRange
from engines.errors import EngineError, Unavailable
from engines.nvinfer.plan_header import PlanHeader, check_plan_here, check_weights_inside, header_of, record_beside

ORIN = {"tensorrt": "10.3.0.30", "gpu": "Orin", "compute_capability": "8.7"}


def plan_file(folder: Path, tag: bytes = b"ftrt", version: tuple[int, ...] = (10, 3, 0, 30), form: int = 0) -> Path:
    """Tag, version of the format, 16 bytes of no matter, the library's version; then as much as you like."""
    path = folder / "model.plan"
    path.write_bytes(tag + form.to_bytes(4, "little") + b"\x77" * 16 + bytes(version) + b"weights" * 4)
    return path


def with_record(plan: Path, **change: Any) -> Path:
    record = {"backend": "tensorrt", "size_bytes": plan.stat().st_size, "versions": ORIN, "options": {}, **change}
    plan.with_name(f"{plan.name}.json").write_text(json.dumps(record))
    return plan


def checked(plan: Path, backend: str, here: dict[str, str]) -> dict[str, Any]:
    """The record beside a plan that runs there."""
    record = record_beside(plan)
    check_plan_here(plan, record, backend, here)
    return record


def refusal(plan: Path, here: dict[str, str] = ORIN, backend: str = "tensorrt") -> str:
    with pytest.raises(Unavailable) as caught:
        checked(plan, backend, here)
    said = str(caught.value)
    assert said.startswith(f"{plan}: ")
    return said.removeprefix(f"{plan}: ")


def test_the_header(tmp_path: Path) -> None:
    assert header_of(plan_file(tmp_path)) == PlanHeader("tensorrt", (10, 3, 0, 30))
    assert header_of(plan_file(tmp_path, b"vtrt", (1, 7, 1, 116))) == PlanHeader("tensorrt_rtx", (1, 7, 1, 116))
    assert header_of(plan_file(tmp_path, form=1)) == PlanHeader("tensorrt", ()), (
        "a format that is not known tells nothing"
    )


def test_a_tag_of_tensorrts_that_is_not_known_is_left_to_it(tmp_path: Path) -> None:
    plan = plan_file(tmp_path, b"ptrt")
    assert header_of(plan) == PlanHeader("", ())
    assert checked(plan, "tensorrt", ORIN) == {}
    xavier = ORIN | {"compute_capability": "7.2"}
    assert "was built on Orin with compute capability 8.7" in refusal(with_record(plan), xavier)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty; give an engine"),
        (b"trash" * 9, "is no engine of TensorRT's, which begin with ftrt or vtrt"),
        (b"\x08\x08onnx", "is no engine of TensorRT's"),
        (b"ftrt\0\0\0\0", "is cut short after 8 bytes; build or copy it again"),
    ],
)
def test_what_is_no_plan(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "x.plan").write_bytes(data)
    with pytest.raises(EngineError, match=rf"x\.plan: {words}"):
        checked(tmp_path / "x.plan", "tensorrt", ORIN)


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"x\.plan: cannot be read \(.*No such file"):
        header_of(tmp_path / "x.plan")


def test_a_plan_of_this_machine_passes_and_its_record_comes_back(tmp_path: Path) -> None:
    plan = with_record(plan_file(tmp_path), options={"version_compatible": True})
    assert checked(plan, "tensorrt", ORIN)["options"] == {"version_compatible": True}


def test_a_plan_of_others_passes_where_its_header_does(tmp_path: Path) -> None:
    assert checked(plan_file(tmp_path), "tensorrt", ORIN) == {}


def test_a_plan_that_was_cut(tmp_path: Path) -> None:
    plan = with_record(plan_file(tmp_path))
    plan.write_bytes(plan.read_bytes()[:-5])
    with pytest.raises(EngineError, match=r"has 51 bytes, 56 were built by its record; it is cut short or another eng"):
        checked(plan, "tensorrt", ORIN)


def test_an_engine_of_the_other_library(tmp_path: Path) -> None:
    assert refusal(plan_file(tmp_path, b"vtrt")) == (
        "is an engine of TensorRT for RTX, TensorRT is to run it; give --backend tensorrt_rtx, or build it again"
    )
    assert "give --backend tensorrt, or" in refusal(plan_file(tmp_path), {"tensorrt_rtx": "1.7.1"}, "tensorrt_rtx")


def test_versions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    newer, older = plan_file(tmp_path, version=(10, 16, 2, 10)), (8, 6, 2, 3)
    words = "was built by version 10.16.2, 10.3.0 is here, which is older; build it again here, or update"
    assert refusal(newer) == words
    assert refusal(with_record(newer, options={"version_compatible": True})) == words
    newer.with_name("model.plan.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert checked(plan_file(tmp_path, version=older), "tensorrt", ORIN) == {}
    assert "was built by version 8.6.2, 10.3.0 is here; it loads only if it was built to be comp" in caplog.text
    assert refusal(with_record(plan_file(tmp_path, version=older))) == (
        "was built by version 8.6.2, 10.3.0 is here; build it again here, or once and for all with "
        "version_compatible = true"
    )
    checked(with_record(plan_file(tmp_path, version=older), options={"version_compatible": True}), "tensorrt", ORIN)


def test_a_header_that_does_not_tell_the_version_leaves_it_to_the_record(tmp_path: Path) -> None:
    """As of TensorRT 8.5, JetPack 5's."""
    plan = plan_file(tmp_path, b"ptrt")
    with_record(plan, versions=ORIN | {"tensorrt": "8.5.2.2"})
    assert refusal(plan).startswith(
        "was built by version 8.5.2, 10.3.0 is here; build it again here, or once and for al"
    )
    checked(plan, "tensorrt", ORIN | {"tensorrt": "8.5.2.2"})


def test_gpus(tmp_path: Path) -> None:
    plan = plan_file(tmp_path)
    xavier = ORIN | {"gpu": "Xavier", "compute_capability": "7.2"}
    assert refusal(with_record(plan), xavier) == (
        "was built on Orin with compute capability 8.7 for its kind, the GPU here has 7.2; build it again here, or "
        'with hardware = "ampere_plus"'
    )
    ampere = with_record(plan, options={"hardware": "ampere_plus"})
    assert "for 8.0 and later, the GPU here has 7.2; build it again here" in refusal(ampere, xavier)
    checked(ampere, "tensorrt", ORIN | {"compute_capability": "12.0"})
    checked(with_record(plan), "tensorrt", {"tensorrt": "10.3.0.30"})


def test_targets_of_tensorrt_for_rtx(tmp_path: Path) -> None:
    plan = plan_file(tmp_path, b"vtrt", (1, 7, 1, 116))
    with_record(plan, backend="tensorrt_rtx", options={"compute_capabilities": ["8.6", "8.9"]})
    here = {"tensorrt_rtx": "1.7.1.116", "compute_capability": "7.5"}
    assert refusal(plan, here, "tensorrt_rtx") == (
        "was built for compute capability 8.6, 8.9, the GPU here has 7.5; build it for 7.5"
    )
    checked(plan, "tensorrt_rtx", here | {"compute_capability": "8.9"})


def test_a_plan_without_weights(tmp_path: Path) -> None:
    plan = with_record(plan_file(tmp_path), options={"weights": "stripped"})
    record = checked(plan, "tensorrt", ORIN)
    with pytest.raises(Unavailable) as caught:
        check_weights_inside(plan, record)
    assert str(caught.value) == (
        f"{plan}: has no weights; fill it with `trtforge refit {plan} MODEL -o FILE`, MODEL being the file that it was "
        'built from, or build it with weights = "fixed"'
    )
    for weights in ("fixed", "refittable"):
        check_weights_inside(plan, {"options": {"weights": weights}})
    check_weights_inside(plan, {})


def test_records_lie_beside_or_in_the_stores_folder(tmp_path: Path) -> None:
    plan = plan_file(tmp_path)
    assert record_beside(plan) == {}
    (tmp_path / "record.json").write_text('{"backend": "tensorrt", "size_bytes": 56}')
    assert record_beside(plan)["size_bytes"] == 56
    for other in ("[]", "{", '{"backend": "onnxruntime"}'):
        (tmp_path / "model.plan.json").write_text(other)
        assert record_beside(plan)["size_bytes"] == 56


def test_a_real_plan_and_the_runner_that_refuses_another(linear: Path, tmp_path: Path) -> None:
    if reason := tensorrt_rtx.why_not_build():
        pytest.skip(reason)
    shapes = {"x": ShapeRange((1, 3), (2, 3), (8, 3))}
    tensorrt_rtx.build(linear, tmp_path / "e.plan", BuildOptions(shapes=shapes))
    version = tensorrt_rtx.versions()["tensorrt_rtx"]
    assert header_of(tmp_path / "e.plan") == PlanHeader("tensorrt_rtx", tuple(map(int, version.split("."))))
    checked(tmp_path / "e.plan", "tensorrt_rtx", {"tensorrt_rtx": version})
    (tmp_path / "trash.plan").write_bytes(b"trash")
    runner = tensorrt_rtx.load(tmp_path / "trash.plan", num_threads=0)
    with pytest.raises(EngineError, match="is no engine of TensorRT's"), runner:
        pytest.fail("that is no engine")


def test_tensorrts_runner_looks_before_it_touches_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "versions", lambda: ORIN)
    runner = tensorrt.load(plan_file(tmp_path, version=(11, 4, 0, 1)), num_threads=0)
    with pytest.raises(Unavailable, match=r"was built by version 11\.4\.0, 10\.3\.0 is here, which is older"), runner:
        pytest.fail("it is of another generation")
