"""The verb `build`: shapes, options that have no effect, and backends that are not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engines import backend
from tests.pipeline.command.verbs.calls import files, one_sentence

if TYPE_CHECKING:
    from tests.conftest import Command

PROFILE = ("--min-shapes", "image:1x4x8x8", "--opt-shapes", "image:4x4x8x8", "--max-shapes", "image:8x4x8x8")


def test_build_for_tensorrt_rtx(command: Command, ranges: Path) -> None:
    if reason := backend("tensorrt_rtx").why_not_build():
        pytest.skip(reason)
    assert command("quantize", "tiny.onnx", "--ranges", ranges, "-o", "int8.onnx").status == 0
    said = command("build", "int8.onnx", "--backend", "tensorrt_rtx", "--precision", "int8", *PROFILE, "-o", "e.rtx")
    assert (said.status, said.out) == (0, "e.rtx\n"), said.err
    record = json.loads(Path("e.rtx.json").read_text())
    assert (record["backend"], record["min_batch"], record["max_batch"]) == ("tensorrt_rtx", 1, 8)
    one_sentence(
        command("infer", "e.rtx", "--data", "data.npz", "-o", "o.json"),
        2,
        "e.rtx: was built by tensorrt_rtx, not onnxruntime; give --backend tensorrt_rtx",
    )
    if backend("tensorrt_rtx").why_not_run():
        said = command("infer", "e.rtx", "--backend", "tensorrt_rtx", "--data", "data.npz", "-o", "o.json")
        one_sentence(said, 3, "no GPU: ")
    simulated = command("validate", "tiny.onnx", "int8.onnx", "--simulate", "--precision", "int8", "--data", "data.npz")
    assert simulated.status == 0, simulated.err
    assert files(ranges.parent) == {"ranges", "int8.onnx", "e.rtx", "e.rtx.json"}


def test_tensorrt_rtx_needs_shapes_for_an_open_batch(command: Command, tiny: Path) -> None:
    if reason := backend("tensorrt_rtx").why_not_build():
        pytest.skip(reason)
    said = command("build", "tiny.onnx", "--backend", "tensorrt_rtx", "-o", "e.rtx")
    one_sentence(said, 4, "tiny.onnx: input 'image' is (?, 4, 8, 8), and no shape range is given for it; give its min")
    assert files(tiny) == set()


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (("--min-shapes", "image:1x4x8"), 2, "shapes of 'image': only min given; give min, opt and max"),
        (("--opt-shapes", "image1x4x8"), 2, "--opt-shapes 'image1x4x8': is not NAME:1x32x32x3"),
        (("--max-shapes", "image:1xAx8"), 2, "--max-shapes 'image:1xAx8': is not NAME:1x32x32x3"),
        (
            ("--min-shapes", "image:2x4x8x8", "--opt-shapes", "image:1x4x8x8", "--max-shapes", "image:1x4x8x8"),
            2,
            "shapes of 'image': min (2, 4, 8, 8), opt (1, 4, 8, 8), max (1, 4, 8, 8) are not positive and in order; ",
        ),
        (
            ("--min-shapes", "image:2x4x8x8", "--opt-shapes", "image:2x4x8", "--max-shapes", "image:2x4x8x8"),
            2,
            "shapes of 'image': min, opt and max have [3, 4] dimensions; give equally many",
        ),
    ],
)
def test_bad_shapes(command: Command, tiny: Path, options: tuple[str, ...], status: int, said: str) -> None:
    one_sentence(command("build", "tiny.onnx", *options, "-o", "e.onnx"), status, said)
    assert files(tiny) == set()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--backend", "onnxruntime", "--dla-core", 0),
            "--dla-core: has no effect on an engine for onnxruntime, it is for tensorrt and tensorrt_rtx; drop it",
        ),
        (
            ("--backend", "reference", "--no-timing-cache"),
            "--timing-cache: has no effect on an engine for reference, it is for onnxruntime_tensorrt and tensorrt",
        ),
        (
            ("--backend", "tensorrt", "--compute-capabilities", "8.6"),
            "--compute-capabilities: has no effect on an engine for tensorrt, it is for tensorrt_rtx; drop it",
        ),
        (
            ("--backend", "onnxruntime", "--int8", "native", "--precision", "int8"),
            "--int8: has no effect on an engine for onnxruntime, it is for tensorrt and tensorrt_rtx; drop it",
        ),
    ],
)
def test_options_of_the_builder_that_have_no_effect(
    command: Command, tiny: Path, options: tuple[object, ...], said: str
) -> None:
    one_sentence(command("build", "tiny.onnx", *options, "-o", "engine"), 2, said)
    assert files(tiny) == set()


def test_a_plan_with_what_none_of_its_backends_takes(command: Command, plan: Path) -> None:
    text = plan.read_text()
    plan.write_text(f"{text}\n[build]\ndla_core = 0\n")
    said = "[build] dla_core: has no effect on an engine for onnxruntime, it is for tensorrt and tensorrt_rtx; drop it"
    one_sentence(command("run", plan), 2, said)
    plan.write_text(f"{text}\n[build]\nworkspace_mib = 64\n")
    assert command("build", plan).status == 0


def test_a_backend_that_is_not_installed(command: Command, tiny: Path) -> None:
    reason = backend("tensorrt").why_not_build()
    if not reason:
        pytest.skip("tensorrt builds here")
    one_sentence(command("build", "tiny.onnx", "--backend", "tensorrt", *PROFILE, "-o", "x.engine"), 3, reason)
    assert files(tiny) == set()
