"""The GPU's device as it is: the real pycuda, on a driver made of C that runs nothing but copies."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from engines.cuda import device

CALLS, SOURCE = (Path(__file__).with_name(name) for name in ("device_calls.py", "pretended_driver.c"))
ROOT = Path(__file__).resolve().parents[3]

if device.why_no_pycuda() or not (shutil.which("gcc") and shutil.which("nm")):
    pytest.skip(device.why_no_pycuda() or "there is no gcc, or no nm", allow_module_level=True)


def symbols(library: str | Path, *options: str) -> set[str]:
    """Names of the driver's functions that a library asks for, or has."""
    done = subprocess.run(["nm", "-D", *options, str(library)], capture_output=True, text=True, check=True)
    return {name for line in done.stdout.splitlines() if (name := line.split()[-1]).startswith("cu")}


def driver_in(folder: Path) -> None:
    """The driver in pretence, and in the place of what pycuda asks for besides, functions that fail."""
    library = folder / "libcuda.so.1"
    build: list[str | Path] = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library]
    subprocess.run([*build, SOURCE], check=True)
    found = importlib.util.find_spec("pycuda")
    assert found is not None
    (module,) = Path(str(found.origin)).parent.glob("_driver*.so")
    lacking = symbols(module, "--undefined-only") - symbols(library, "--defined-only")
    (folder / "rest.c").write_text("\n".join(f"int {name}(void) {{ return 801; }}" for name in sorted(lacking)))
    subprocess.run([*build, SOURCE, folder / "rest.c"], check=True)


@functools.cache
def said() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        driver_in(Path(folder))
        environment = os.environ | {"LD_LIBRARY_PATH": folder, "PYTHONPATH": os.pathsep.join((str(ROOT), *sys.path))}
        done = subprocess.run([sys.executable, CALLS], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_memory_copies_and_events() -> None:
    found = said()["device"]
    assert found["back"] == [1, 2, 3, 4, 5, 6]
    assert found["ticks"] == 2, "the copy, and the second event"
    assert found["handle"] == 7
    assert found["free"] == pytest.approx(1 - 24 / 2**20)
    assert found["left"] == [0, 0], "memory and context are given back"
    assert {"gpu": "Pretended GPU", "compute_capability": "8.7", "cuda_driver": "12.8"}.items() <= found[
        "versions"
    ].items()


def test_what_goes_wrong_is_one_sentence() -> None:
    found = said()["device"]
    assert found["too much"] == "OutOfMemory: GPU: 1 MiB are requested, 0 of 1 MiB are free; use a smaller batch"
    assert found["too much pinned"] == (
        "OutOfMemory: GPU: 2 MiB of page-locked host memory cannot be had; use a smaller batch"
    )
    assert found["broken"].startswith("EngineError: GPU: cuStreamSynchronize failed: ")
    assert found["broken"].endswith("; nothing more runs in this process, start it again")


def test_the_whole_runner_with_a_graph() -> None:
    found = said()["runner"]
    assert found["right"] == [True] * 5
    assert found["launches"] == 3, "the first of four queries is queued, and the one of another shape"
    assert found["device_ms"] == 2
    assert found["memory"] == pytest.approx(64 / 2**20)
    assert found["notes"] == []
    assert found["left"] == [0, 0, 0, 0, 0], "no capture, graph, memory or context"


def test_the_whole_runner_where_nothing_can_be_captured() -> None:
    found = said()["cannot capture"]
    assert (found["right"], found["launches"]) == ([True] * 5, 0)
    assert found["notes"] == [
        "CUDA graph: not captured (cuStreamEndCapture gives CUDA_ERROR_STREAM_CAPTURE_INVALIDATED; it gave no reason); "
        "queries are run kernel by kernel."
    ]
    assert found["left"] == [0, 0, 0, 0, 0]


def test_several_queries_in_flight_each_with_a_graph_of_its_own() -> None:
    found = said()["in flight"]
    assert found["answers"] == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert found["left"] == [0, 0, 0, 0, 0]
