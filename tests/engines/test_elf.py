"""What a shared library asks for, of real ones: made here by the C compiler, and of this Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from engines.elf import needed_libraries
from engines.errors import EngineError


def library(folder: Path, name: str, *links: Path) -> Path:
    """A shared library of that name that links others; skips without a C compiler."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler (cc) is installed")
    source, file = folder / f"{name}.c", folder / name
    source.write_text(f"int of_{name.partition('.')[0].replace('-', '_')}(void) {{ return 1; }}\n")
    words = [compiler, "-shared", "-fPIC", "-Wl,--no-as-needed", f"-Wl,-soname,{name}", "-o", file, source, *links]
    subprocess.run(list(map(str, words)), check=True)
    return file


def test_in_the_order_in_which_they_were_linked(tmp_path: Path) -> None:
    first, second = library(tmp_path, "libnvinfer.so.10"), library(tmp_path, "libcudart.so.13")
    assert needed_libraries(library(tmp_path, "libprovider.so", first, second))[:2] == (first.name, second.name)


def test_of_a_library_that_others_built() -> None:
    (file,) = (Path(np.__file__).parent / "_core").glob("_multiarray_umath*.so")
    assert any(name.startswith("libc.so") for name in needed_libraries(file))


@pytest.mark.parametrize("content", [b"", b"MZ", b"\x7fELF\x02\x01", b"\x7fELF\x01\x01" + bytes(99)])
def test_of_what_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lib.so").write_bytes(content)
    with pytest.raises(EngineError, match=r"lib\.so: is no shared library that can be read"):
        needed_libraries(tmp_path / "lib.so")


def test_of_none_at_all(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"nowhere\.so: "):
        needed_libraries(tmp_path / "nowhere.so")
