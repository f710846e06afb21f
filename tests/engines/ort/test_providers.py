"""Which wheel is there and what its providers link: the sentences, on made-up wheels with real libraries in them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines.cuda import device
from engines.ort import providers
from engines.ort.providers import CUDA, LIBRARIES, TENSORRT, library_of, provider_links, version_text, wheels, why_not
from tests.engines.test_elf import library


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that `import onnxruntime` would take, and no GPU missing; its ``capi`` is empty."""
    capi = tmp_path / "site-packages" / "onnxruntime" / "capi"
    capi.mkdir(parents=True)
    (capi.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setattr(providers, "wheels", lambda: ("onnxruntime-gpu 1.31.1",))
    monkeypatch.setattr(device, "why_no_gpu", lambda: "")
    return capi


@pytest.fixture
def linked(wheel: Path, tmp_path: Path) -> Path:
    """Both providers in it, which link libraries that are put where nothing looks; the folder of these."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    linked = [library(elsewhere, name) for name in ("libnvinfer.so.99", "libcudart.so.97", "libcudnn.so.98")]
    for provider in (TENSORRT, CUDA):
        made = library(elsewhere, LIBRARIES[provider], *(linked if provider == TENSORRT else linked[1:]))
        made.rename(wheel / made.name)
    return elsewhere


def test_the_wheel_that_is_installed() -> None:
    assert all(name.startswith("onnxruntime") and name.split(" ")[1][0].isdigit() for name in wheels())


def test_a_wheel_for_the_cpu_has_no_such_provider(wheel: Path) -> None:
    assert library_of(TENSORRT) is None
    assert why_not("theirs", (TENSORRT,)) == (
        "theirs: onnxruntime-gpu 1.31.1, which is installed here, has no TensorrtExecutionProvider; pip uninstall "
        "onnxruntime, and then pip install onnxruntime-gpu"
    )
    assert provider_links() == ()


def test_no_gpu_comes_before_what_is_not_installed(linked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "why_no_gpu", lambda: "no GPU: libcuda.so.1 is not there; run on a machine with one")
    assert why_not("theirs", (TENSORRT,)) == "theirs: no GPU: libcuda.so.1 is not there; run on a machine with one"


def test_what_is_linked_and_not_found(linked: Path) -> None:
    assert why_not("theirs", (TENSORRT, CUDA)) == (
        "theirs: TensorrtExecutionProvider: libnvinfer.so.99, libcudart.so.97, libcudnn.so.98, which onnxruntime-gpu "
        "1.31.1 links, are not found; pip install 'tensorrt-cu97==99.*' and pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )
    tensorrt, cuda = provider_links()
    assert tensorrt.links == tensorrt.missing == ("libnvinfer.so.99", "libcudart.so.97", "libcudnn.so.98")
    assert cuda.sentence() == (
        "CUDAExecutionProvider links libcudart.so.97, libcudnn.so.98 (not found here: libcudart.so.97, libcudnn.so.98)"
    )


def test_another_major_version_is_named(linked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (linked / "libnvinfer.so.99").rename(linked / "libnvinfer.so.96")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(linked))
    assert why_not("theirs", (TENSORRT,)) == (
        "theirs: TensorrtExecutionProvider: onnxruntime-gpu 1.31.1 links libnvinfer.so.99, this machine has "
        "libnvinfer.so.96; pip install 'tensorrt-cu97==99.*', or an onnxruntime-gpu that links libnvinfer.so.96"
    )


def test_where_all_is_there_nothing_is_said(linked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(linked))
    assert why_not("theirs", (TENSORRT, CUDA)) == ""
    assert [links.missing for links in provider_links()] == [(), ()]


def test_what_the_loader_would_not_find_is_loaded_first(linked: Path, wheel: Path) -> None:
    site = wheel.parent.parent
    (site / "tensorrt_libs").mkdir()
    for file in linked.glob("lib*.so.9?"):
        file.rename(site / "tensorrt_libs" / file.name)
    program = (
        "import ctypes; from engines.ort import providers as p; names = ('libnvinfer.so.99', 'libcudnn.so.98')\n"
        "print([p._loads(name) for name in names]); p.preload(p.TENSORRT); print([p._loads(name) for name in names])\n"
        "ctypes.CDLL(str(p.library_of(p.TENSORRT)))"
    )
    paths = os.pathsep.join((str(site), *sys.path))
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": paths})
    assert done.stdout == "[False, False]\n[True, True]\n"


def test_what_pip_installs_is_looked_at(linked: Path, wheel: Path) -> None:
    folder = wheel.parent.parent / "nvidia" / "cu97" / "lib"
    folder.mkdir(parents=True)
    (linked / "libcudart.so.97").rename(folder / "libcudart.so.97")
    (wheel.parent.parent / "tensorrt_libs").mkdir()
    (linked / "libnvinfer.so.99").rename(wheel.parent.parent / "tensorrt_libs" / "libnvinfer.so.99")
    assert provider_links()[0].missing == ("libcudnn.so.98",)


def test_a_provider_that_is_cut_short(wheel: Path) -> None:
    (wheel / LIBRARIES[CUDA]).write_bytes(b"\x7fELF")
    words = (
        "libonnxruntime_providers_cuda.so: is no shared library that can be read (it is no 64-bit ELF file); install"
    )
    assert words in why_not("theirs", (CUDA,))
    assert provider_links()[0].links == ()


@pytest.mark.parametrize(("number", "text"), [(8601, "8.6.1"), (101303, "10.13.3"), (110400, "11.4.0")])
def test_versions_as_the_library_counts_them(number: int, text: str) -> None:
    assert version_text(number) == text
