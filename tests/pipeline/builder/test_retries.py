"""Builds that die are tried with less, aloud; what a builder says of the model is raised at once."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engines import backend
from engines.contract import BuildOptions, EngineRecord, ShapeRange
from pipeline.artifact import OnnxModel
from pipeline.builder.retries import attempts, build_with_retries
from pipeline.errors import EngineError, OutOfMemory, ProcessDied, StageError, Unavailable
from pipeline.machine import child_process
from pipeline.stages import build as build_stage
from pipeline.stages.build import Build, BuildTarget

RECORD = EngineRecord(
    backend="tensorrt",
    precision="fp32",
    size_bytes=1,
    build_seconds=1.0,
    versions={},
    inputs=(),
    outputs=(),
    num_quantizable=0,
    num_int8=0,
    notes=("a note",),
)
ASKED = BuildOptions(workspace_mib=1024, optimization_level=3)


def takes_all(_options: BuildOptions) -> None:
    """A generation that has it all."""


def takes_no_level(options: BuildOptions) -> None:
    """As TensorRT 8.5."""
    if options.optimization_level != 3:
        raise Unavailable("no optimization levels")


def efforts(options: BuildOptions, refuse: Callable[[BuildOptions], None]) -> list[tuple[int, int]]:
    return [
        (attempt_options.workspace_mib, attempt_options.optimization_level)
        for attempt_options in attempts(options, refuse)
    ]


def died(words: str = "ended by SIGKILL") -> ProcessDied:
    error = ProcessDied(f"build: {words}\nIts last output:\n  tactic 42")
    error.may_be_memory = True
    return error


def test_the_rungs() -> None:
    assert efforts(ASKED, takes_all) == [(1024, 3), (256, 3), (256, 1), (64, 0)]
    assert efforts(replace(ASKED, workspace_mib=8192), takes_all) == [(8192, 3), (2048, 3), (2048, 1), (512, 0)]
    assert efforts(replace(ASKED, optimization_level=0), takes_all) == [(1024, 0), (256, 0), (64, 0)]
    assert efforts(ASKED, takes_no_level) == [(1024, 3), (256, 3), (64, 3)]
    assert efforts(replace(ASKED, workspace_mib=32, optimization_level=0), takes_all) == [(32, 0)]


def climbed(*errors: Exception | None, options: BuildOptions = ASKED) -> tuple[EngineRecord, list[BuildOptions]]:
    """The record when the attempts end in these errors, one after the other, and what was attempted."""
    tried: list[BuildOptions] = []

    def attempt(attempt_options: BuildOptions) -> EngineRecord:
        tried.append(attempt_options)
        if error := errors[len(tried) - 1]:
            raise error
        return RECORD

    return build_with_retries("build", attempt, attempts(options, takes_all)), tried


def test_what_goes_through_at_once_has_nothing_to_say() -> None:
    assert climbed(None) == (RECORD, [ASKED])


def test_each_rung_is_said_and_written_down(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        record, tried = climbed(died(), OutOfMemory("m.onnx: out of memory"), None)
    assert [attempt_options.optimization_level for attempt_options in tried] == [3, 3, 1]
    first = "ended by SIGKILL, with a workspace of 1024 MiB and optimization level 3"
    second = "m.onnx: out of memory, with a workspace of 256 MiB and optimization level 3"
    assert [line.getMessage() for line in caplog.records] == [
        f"{first}: trying again with a workspace of 256 MiB and optimization level 3",
        f"{second}: trying again with a workspace of 256 MiB and optimization level 1",
    ]
    assert record.notes == (
        "Built with a workspace of 256 MiB and optimization level 1 instead of the requested settings: before that, "
        f"{first}; {second}.",
        "a note",
    )


def test_the_end_of_the_ladder_tells_it_all() -> None:
    with pytest.raises(
        StageError, match=r"^build: failed 4 times, each with fewer resources: ended by SIGKILL, with"
    ) as caught:
        climbed(*[died()] * 4)
    assert isinstance(caught.value.__cause__, ProcessDied)
    assert "free memory (close what else runs, add swap)" in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [EngineError("m.onnx: no such operator"), Unavailable("no GPU"), ProcessDied("build: ended by SIGTERM")],
)
def test_other_errors_are_raised_at_once(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        climbed(died(), error, None)
    assert caught.value is error


def test_a_single_rung_raises_what_happened() -> None:
    error = died()
    with pytest.raises(ProcessDied) as caught:
        climbed(error, options=replace(ASKED, workspace_mib=32, optimization_level=0))
    assert caught.value is error


# With real processes.


def killed_above_256_mib(
    send_progress: child_process.SendProgress, model: Path, engine: Path, name: str, options: BuildOptions
) -> EngineRecord:
    """A builder that the system kills while it may take much."""
    if options.workspace_mib > 256:
        os.kill(os.getpid(), signal.SIGKILL)
    send_progress(("Building", 0, 2))
    return backend(name).build(model, engine, options)


def ended(*_args: object) -> None:
    """A builder that somebody ends."""
    os.kill(os.getpid(), signal.SIGTERM)


PROFILE = {"image": ShapeRange((1, 4, 8, 8), (2, 4, 8, 8), (4, 4, 8, 8))}


def test_a_real_build_after_a_real_kill(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := backend("tensorrt_rtx").why_not_build():
        pytest.skip(reason)
    monkeypatch.setattr(build_stage, "_build", killed_above_256_mib)
    (tiny / "out").mkdir()
    engine = Build()(tiny / "out", OnnxModel(tiny / "tiny.onnx"), BuildTarget("tensorrt_rtx", "fp32", PROFILE))
    assert engine.path.stat().st_size > 1000
    first = json.loads(engine.beside("record.json").read_text())["notes"][0]
    assert first == (
        "Built with a workspace of 256 MiB and optimization level 3 instead of the requested settings: before "
        "that, the "
        "process was ended by SIGKILL; the system kills a process like this when memory runs out, with a workspace of "
        "1024 MiB and optimization level 3."
    )
    assert engine.notes()[0] == first


def test_a_build_that_somebody_ends_is_not_tried_again(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := backend("tensorrt_rtx").why_not_build():
        pytest.skip(reason)
    monkeypatch.setattr(build_stage, "_build", ended)
    (tiny / "out").mkdir()
    with pytest.raises(ProcessDied, match=r"^build fp32 for tensorrt_rtx: the process was ended by SIGTERM$"):
        Build()(tiny / "out", OnnxModel(tiny / "tiny.onnx"), BuildTarget("tensorrt_rtx", "fp32", PROFILE))
