"""How programs of `trtforge deliver --to cpp` are built in tests: by CMake, with every warning an error."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ORT_HEADERS = "TRTFORGE_ONNXRUNTIME_INCLUDE"
"""The environment variable with the folder of onnxruntime_cxx_api.h, where `scripts/bindings` did not bring it."""
STAND_IN = Path(__file__).with_name("nvinfer_stand_in")
WARNINGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror")
SECONDS = 600


def needs_compiler() -> None:
    """Skip, and say why, where nothing can be compiled."""
    for tool, package in {"g++": "g++", "cmake": "cmake", "make": "make"}.items():
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: the programs in C++ are not compiled; apt-get install {package}")
    if compiled("#include <openssl/evp.h>\n") != "":
        pytest.skip("openssl/evp.h is not here: the programs in C++ are not compiled; apt-get install libssl-dev")


def compiled(text: str, *flags: str) -> str:
    """What the compiler says of a source."""
    command = ["g++", *WARNINGS, "-fsyntax-only", "-x", "c++", *flags, "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=SECONDS)
    return done.stderr


def onnxruntime_definitions(folder: Path) -> list[str]:
    """For CMake: the headers, and the library of the wheel under the name that programs ask the loader for."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    libraries = sorted(Path(spec.origin).parent.glob("capi/libonnxruntime.so.*"))
    if not libraries:
        pytest.skip("this wheel of onnxruntime has no libonnxruntime.so: programs in C++ are not run")
    headers = Path(os.environ.get(ORT_HEADERS) or ROOT / ".venv" / "bindings" / "onnxruntime-headers")
    if not (headers / "onnxruntime_cxx_api.h").is_file():
        pytest.skip(
            f"onnxruntime_cxx_api.h is not here: programs in C++ are not run; scripts/bindings, or {ORT_HEADERS}"
        )
    link = folder / "libonnxruntime.so.1"
    link.symlink_to(libraries[0])
    return [f"-DONNXRUNTIME_INCLUDE={headers}", f"-DONNXRUNTIME_LIBRARY={link}"]


def built(source: Path, build: Path, *definitions: str) -> Path:
    """Configure where that was not done, and compile; the program is returned."""
    if not (build / "Makefile").exists():
        flags = ["-DCMAKE_CXX_FLAGS=-Werror", *definitions]
        _checked("cmake", "-S", str(source), "-B", str(build), *flags)
    _checked("cmake", "--build", str(build), "--parallel", "2")
    return build / "trtforge_model"


def _checked(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr


def called(program: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a program answers."""
    return subprocess.run(
        [str(program), *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=SECONDS, env=os.environ | environment,
    )  # fmt: skip
