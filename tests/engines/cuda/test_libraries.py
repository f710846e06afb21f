"""Versions of cuDNN and cuBLAS, of libraries made of C that answer as theirs do."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from engines.cuda.libraries import SONAMES, kernel_libraries

CUDNN = "#include <stddef.h>\nsize_t cudnnGetVersion(void) {{ return {number}; }}"
CUBLAS = """int cublasGetProperty(int kind, int *value) {
  int parts[] = {12, 2, 5};
  *value = kind < 3 ? parts[kind] : 0;
  return kind < 3 ? 0 : 7;
}"""


def library(folder: Path, name: str, source: str) -> str:
    if not shutil.which("gcc"):
        pytest.skip("there is no gcc")
    (folder / f"{name}.c").write_text(source)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / name, folder / f"{name}.c"], check=True)
    return str(folder / name)


def test_versions_are_asked_of_the_libraries(tmp_path: Path) -> None:
    eight, nine = (library(tmp_path, f"cudnn{number}.so", CUDNN.format(number=number)) for number in ("8904", "90300"))
    sonames = {"cudnn": (eight, nine), "cublas": (library(tmp_path, "cublas.so", CUBLAS), "libabsent.so.1")}
    assert kernel_libraries(sonames) == {"cudnn": "8.9.4, 9.3.0", "cublas": "12.2.5"}


def test_what_is_not_there_or_is_another_library_has_no_version(tmp_path: Path) -> None:
    other = library(tmp_path, "other.so", "int other;")
    assert kernel_libraries({"cudnn": ("libabsent.so.1",), "cublas": (other,)}) == {}
    assert set(kernel_libraries()) <= set(SONAMES)
