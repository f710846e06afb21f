"""`trtforge deliver --to cpp` for TensorRT: compiled against its headers where they are, and run on a stand-in for it.

The stand-in (``nvinfer_stand_in``) has the names of TensorRT that the program uses, a device of ordinary memory, and an
engine that doubles. It shows in which order the program calls what; what TensorRT makes of it needs a GPU.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.data.preprocess import Preprocess
from engines.contract import ShapeRange, TensorSpec
from pipeline.delivery.contents import Delivered
from pipeline.delivery.cpp import RUNTIME_SOURCES, SOURCES, cpp_program, deliver_to_cpp
from tests.pipeline.delivery.cpp_building import STAND_IN, WARNINGS, built, called, compiled, needs_compiler

HEADERS = "TRTFORGE_TENSORRT_INCLUDE"
"""The environment variable with folders of NvInfer.h, of any releases, with colons between them."""
STANDARD = (
    "/usr/include/x86_64-linux-gnu",
    "/usr/include/aarch64-linux-gnu",
    "/usr/include",
    "/usr/local/tensorrt/include",
)
CUDA = ("/usr/local/cuda/include", "/usr/local/cuda-13.0/include")
SPECS = {
    "inputs": (TensorSpec("x", "float32", (-1, 3)),),
    "outputs": (TensorSpec("twice", "float32", (-1, 3)),),
}
PLAN = "stand-in x twice 2\n 1 3  2 3  4 3\n 1 3  16 3  32 3\n"
PLUGIN = 'extern "C" void stand_in_register(); namespace { const bool registered = (stand_in_register(), true); }'


@dataclass(frozen=True)
class Bench:
    """A program for an engine that doubles, and the library that it takes for TensorRT."""

    folder: Path
    backend: str
    definitions: Sequence[str]

    def deliver(self, plan: str = PLAN, libraries: Sequence[Path] = (), **options: Any) -> Path:
        """The program, compiled."""
        file = self.folder / "engine"
        file.write_text(plan)
        ranges = {"x": ShapeRange((1, 3), (2, 3), (4, 3))}
        engine = Delivered(
            "double", file, self.backend, "fp16", SPECS["inputs"], SPECS["outputs"], (ranges,), "8.7", 4, options
        )
        deliver_to_cpp(cpp_program(engine, Preprocess(), libraries, ()), self.folder / "program")
        return built(self.folder / "program", self.folder / "build", *self.definitions)

    def answer(self, program: Path, batch: int, *arguments: object, **environment: str) -> tuple[int, str, list[str]]:
        """Status, what is said on stderr, and what was asked of the stand-in. A right answer is checked."""
        log, values = self.folder / "log", np.arange(batch * 3, dtype=np.float32).reshape(batch, 3)
        log.unlink(missing_ok=True)
        np.save(self.folder / "x.npy", values)
        (engine,) = (self.folder / "program").glob("engine.*plan")
        inputs = (engine, f"x={self.folder / 'x.npy'}", "--output", self.folder / "out", *arguments)
        done = called(program, *inputs, STAND_IN_LOG=str(log), **environment)
        if done.returncode == 0:
            assert np.array_equal(np.load(self.folder / "out" / "0-twice.npy"), values * 2)
        return done.returncode, done.stderr, log.read_text().splitlines() if log.exists() else []


def bench_in(folder: Path, backend: str, library: str, *flags: str) -> Bench:
    """With the stand-in compiled as that library."""
    needs_compiler()
    made = folder / library
    source = STAND_IN / "stand_in.cpp"
    command = ["g++", *WARNINGS, *flags, f"-I{STAND_IN}", "-shared", "-fPIC", str(source), "-o", str(made)]
    subprocess.run(command, check=True)
    definitions = (f"-DTENSORRT_INCLUDE={STAND_IN}", f"-DTENSORRT_LIBRARY={made}", f"-DCUDART_INCLUDE={STAND_IN}")
    lacking = ("-DTENSORRT_PLUGIN_LIBRARY=TENSORRT_PLUGIN_LIBRARY-NOTFOUND", f"-DCUDART_LIBRARY={made}")
    quick = "-DCMAKE_BUILD_TYPE=Debug"
    return Bench(folder, backend, (*definitions, *lacking, quick, f"-DCMAKE_CXX_FLAGS=-Werror {' '.join(flags)}"))


@pytest.fixture(scope="module")
def tensorrt(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return bench_in(tmp_path_factory.mktemp("tensorrt"), "tensorrt", "libnvinfer.so")


SET_UP = ["shape x 4 3", "profile 1", "shape x 32 3"]
"""Memory is taken for the largest shapes of both profiles."""


def test_queries_of_the_same_shapes_become_a_graph(tensorrt: Bench) -> None:
    program = tensorrt.deliver()
    quick = ("--runs", 2, "--warm-up", 1)
    usual = [*SET_UP, "profile 0", "shape x 2 3", "enqueued", "captured", "launched", "launched", "launched"]
    assert tensorrt.answer(program, 2, *quick) == (0, "", usual)
    kernels = [*SET_UP, "profile 0", "shape x 2 3", "enqueued", "enqueued", "enqueued", "enqueued"]
    assert tensorrt.answer(program, 2, *quick, "--no-cuda-graph") == (0, "", kernels)
    status, text, calls = tensorrt.answer(program, 2, *quick, STAND_IN_FAULT="capture")
    assert (status, calls) == (0, kernels)
    assert text == (
        "trtforge_model: CUDA graph: not captured (cudaErrorStreamCaptureUnsupported; the library gives no reason); "
        "queries are run kernel by kernel.\n"
    )
    assert tensorrt.answer(tensorrt.deliver(cuda_graph=False), 2, *quick) == (0, "", kernels)


@pytest.mark.parametrize(("batch", "profile"), [(1, 0), (4, 0), (5, 1), (16, 1), (32, 1)])
def test_a_batch_goes_to_the_profile_that_holds_it(batch: int, profile: int, tensorrt: Bench) -> None:
    status, _, calls = tensorrt.answer(tensorrt.deliver(), batch, "--runs", 1, "--warm-up", 0)
    change = ["profile 0"] if profile == 0 else []
    expected = [*SET_UP, *change, f"shape x {batch} 3", "enqueued", "captured", "launched"]
    assert (status, calls) == (0, expected)


def test_what_fails_is_one_sentence(tensorrt: Bench) -> None:
    program = tensorrt.deliver()
    faults = {
        "device": (3, "the GPU: no GPU (cudaErrorNoDevice)"),
        "memory": (3, "bytes of the GPU's memory: no GPU"),
        "enqueue": (4, "execution failed (the library gives no reason); build it again on this device"),
        "location": (4, "'x' lies in host memory"),
    }
    for fault, (status, words) in faults.items():
        answer = tensorrt.answer(program, 2, STAND_IN_FAULT=fault)
        assert (answer[0], words in answer[1], answer[1].count("\n")) == (status, True, 1), answer
    status, text, _ = tensorrt.answer(program, 33)
    assert status == 2
    assert "no optimization profile holds 'x' in shape (33, 3) (they go from (1, 3) to (4, 3) from (1, 3) to" in text
    status, text, _ = tensorrt.answer(tensorrt.deliver(plan="ftrt"), 2)
    assert (status, text.count("\n")) == (4, 1)
    assert "engine.plan: is refused (the magic tag does not match); build it again on this device" in text


def test_what_the_record_says_is_told_to_the_runtime(tensorrt: Bench) -> None:
    program = tensorrt.deliver(version_compatible=True, dla_core=1)
    assert tensorrt.answer(program, 1)[2][:2] == ["host code", "core 1"]
    status, text, _ = tensorrt.answer(tensorrt.deliver(dla_core=2), 1)
    assert (status, "was built for a DLA core that this machine does not have" in text) == (3, True)


def test_plugins_are_loaded_by_their_digest(tensorrt: Bench, tmp_path: Path) -> None:
    def entry(library: Path, is_inside: bool = False) -> Mapping[str, object]:
        digest = hashlib.sha256(library.read_bytes()).hexdigest()
        return {"name": library.name, "sha256": digest, "is_inside": is_inside}

    (tmp_path / "plugin.cpp").write_text(PLUGIN)
    good, silent = tmp_path / "libgood.so", tmp_path / "libsilent.so"
    for library, source in ((good, tmp_path / "plugin.cpp"), (silent, "/dev/null")):
        subprocess.run(["g++", "-shared", "-fPIC", "-x", "c++", str(source), "-o", str(library)], check=True)
    program = tensorrt.deliver(libraries=[good, silent], plugins=[entry(good), entry(silent, is_inside=True)])
    assert tensorrt.answer(program, 1)[0] == 0
    copy = tensorrt.folder / "program" / good.name
    assert not (tensorrt.folder / "program" / silent.name).exists()
    copy.write_bytes(copy.read_bytes() + b" ")
    status, text, calls = tensorrt.answer(program, 1)
    assert (status, calls) == (2, [])
    assert "libgood.so: is not the file that this program was written for (SHA-256 differs)" in text
    program = tensorrt.deliver(libraries=[silent], plugins=[entry(silent)])
    status, text, calls = tensorrt.answer(program, 1)
    assert (status, calls) == (3, ["asked a library for its plugins"])
    assert "libsilent.so: gives this TensorRT no plugins" in text


def test_tensorrt_for_rtx_captures_by_itself(tmp_path: Path) -> None:
    bench = bench_in(tmp_path, "tensorrt_rtx", "libtensorrt_rtx.so", "-DTRT_MAJOR_RTX=1")
    program = bench.deliver()
    status, text, calls = bench.answer(program, 2, "--runs", 2, "--warm-up", 0)
    usual = ["graph strategy 1", *SET_UP, "profile 0", "shape x 2 3", "enqueued", "enqueued", "enqueued"]
    assert (status, text, calls) == (0, "", usual)
    assert bench.answer(program, 2, "--no-cuda-graph")[2][0] == "graph strategy 0"


def test_the_real_headers_take_it() -> None:
    needs_compiler()
    named = [folder for folder in os.environ.get(HEADERS, "").split(os.pathsep) if folder]
    folders = named or [folder for folder in STANDARD if Path(folder, "NvInfer.h").is_file()]
    if not folders:
        pytest.skip(f"TensorRT's NvInfer.h is not here, name its folder in {HEADERS}: only the stand-in was compiled")
    cuda = next((folder for folder in CUDA if Path(folder, "cuda_runtime_api.h").is_file()), str(STAND_IN))
    for name in ("nvinfer_library.cpp", "runtime_nvinfer.cpp"):
        text = (RUNTIME_SOURCES / name).read_text()
        for folder in folders:
            flags = (f"-I{SOURCES}", f"-I{RUNTIME_SOURCES}", "-isystem", folder, "-isystem", cuda)
            assert compiled(text, *flags) == "", folder
            assert compiled(text, *flags, "-DHAS_NVINFER_PLUGIN") == "", folder
