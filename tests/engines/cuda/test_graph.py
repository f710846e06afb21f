"""Capturing, with a driver made of C: the calls and their arguments as the C side gets them. It runs nothing."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines.cuda.graph import NotCaptured, captured

SOURCE = Path(__file__).with_name("pretended_driver.c")
STREAM = 7


@pytest.fixture
def driver(tmp_path: Path) -> Any:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler; install gcc")
    library = tmp_path / "libcuda.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, SOURCE], check=True)
    return ctypes.CDLL(str(library))


def counts(driver: Any) -> dict[str, int]:
    return {name: driver.state(i) for i, name in enumerate(("capturing", "graphs", "executables", "launches"))}


def test_captured_launched_and_given_back(driver: Any) -> None:
    seen = []

    def queue() -> bool:
        seen.append(driver.state(0))
        return True

    graph = captured(driver, STREAM, queue)
    assert seen == [1], "it is queued while the stream captures"
    assert counts(driver) == {"capturing": 0, "graphs": 0, "executables": 1, "launches": 0}
    assert [graph.launch() for _ in range(3)] == [True] * 3
    assert counts(driver)["launches"] == 3
    driver.fail_at(4)
    assert not graph.launch()
    graph.free()
    assert counts(driver)["executables"] == 0


@pytest.mark.parametrize(
    ("step", "is_queued", "words"),
    [
        (1, True, "cuStreamBeginCapture_v2 gives CUDA error 1"),
        (2, True, "cuStreamEndCapture gives CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"),
        (3, True, "cuGraphInstantiateWithFlags gives CUDA error 1"),
        (0, False, "the work cannot be queued while it is captured"),
    ],
)
def test_what_fails_leaves_no_capture_and_no_graph(driver: Any, step: int, is_queued: bool, words: str) -> None:
    driver.fail_at(step)
    with pytest.raises(NotCaptured, match=words):
        captured(driver, STREAM, lambda: is_queued)
    assert set(counts(driver).values()) == {0}


def test_an_error_while_it_is_queued_ends_the_capture_too(driver: Any) -> None:
    def queue() -> bool:
        raise OSError("from within")

    with pytest.raises(OSError, match="from within"):
        captured(driver, STREAM, queue)
    assert set(counts(driver).values()) == {0}


def test_a_driver_that_is_older_than_graphs(driver: Any) -> None:
    names = ("cuStreamBeginCapture_v2", "cuStreamEndCapture")
    old = SimpleNamespace(**{name: getattr(driver, name) for name in names})
    with pytest.raises(NotCaptured, match="the driver has no cuGraphInstantiateWithFlags, which came with CUDA 11"):
        captured(old, STREAM, lambda: True)
