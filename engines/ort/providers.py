"""Which wheel of ONNX Runtime is installed, which execution providers it has, and what each of them links.

`onnxruntime` and `onnxruntime-gpu` are the same import, so that one of them alone can be installed. Nothing of them is
loaded to tell.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from engines.cuda import device
from engines.elf import needed_libraries
from engines.errors import EngineError, Unavailable

TENSORRT, CUDA = "TensorrtExecutionProvider", "CUDAExecutionProvider"
LIBRARIES = {TENSORRT: "libonnxruntime_providers_tensorrt.so", CUDA: "libonnxruntime_providers_cuda.so"}
"""The file in the wheel that holds a provider; the CPU's is in none of its own."""
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
GPU_WHEEL = "pip uninstall onnxruntime, and then pip install onnxruntime-gpu"
OF_NVIDIA = re.compile(
    r"lib(?P<stem>nvinfer|nvonnxparser|cudart|cudnn|cublas|cublasLt|curand|cufft)\.so\.(?P<major>\d+)"
)
"""Libraries of NVIDIA's that must be of the very major version that was linked."""


@dataclass(frozen=True)
class ProviderLinks:
    """A provider of the installed wheel, and the libraries of NVIDIA's that it links."""

    provider: str
    links: tuple[str, ...]
    """Such as ``libnvinfer.so.10``."""
    missing: tuple[str, ...]
    """Those of them that are not found here."""

    def sentence(self) -> str:
        """As ``CUDAExecutionProvider links libcudart.so.13, … (not found here: libcudart.so.13)``."""
        missing = f" (not found here: {', '.join(self.missing)})" if self.missing else ""
        return f"{self.provider} links {', '.join(self.links)}{missing}"


def wheels() -> tuple[str, ...]:
    """The installed distributions that hold ONNX Runtime, with their versions, as ``onnxruntime-gpu 1.31.1``."""
    names = []
    for name in DISTRIBUTIONS:
        with suppress(metadata.PackageNotFoundError):
            names.append(f"{name} {metadata.version(name)}")
    return tuple(names)


def wheel() -> str:
    """The one that is installed, for sentences; what is imported where no distribution tells."""
    return " and ".join(wheels()) or "onnxruntime"


def library_of(provider: str) -> Path | None:
    """The file of the installed wheel that holds a provider; None where it has none, or nothing is installed."""
    spec = importlib.util.find_spec("onnxruntime")
    folders = [] if spec is None else [Path(folder) / "capi" for folder in spec.submodule_search_locations or ()]
    files = (folder / LIBRARIES[provider] for folder in folders)
    return next((file for file in files if file.is_file()), None)


def provider_links() -> tuple[ProviderLinks, ...]:
    """Of each provider of the installed wheel that computes on the GPU what it links, and what of it is not here."""
    files = {provider: library_of(provider) for provider in LIBRARIES}
    return tuple(_links(provider, library) for provider, library in files.items() if library is not None)


def _links(provider: str, library: Path) -> ProviderLinks:
    """Nothing where the file is damaged: that is told by whoever would load it."""
    links: tuple[str, ...] = ()
    with suppress(EngineError):
        links = nvidia_links(library)
    folders = tuple(library_folders())
    return ProviderLinks(provider, links, tuple(name for name in links if not _is_here(name, folders)))


def why_not(backend: str, providers: Sequence[str]) -> str:
    """Empty if ONNX Runtime with these providers, a GPU, and what they link are here; else one sentence."""
    if importlib.util.find_spec("onnxruntime") is None:
        return f"{backend}: onnxruntime is not installed; pip install onnxruntime-gpu"
    files = {provider: library_of(provider) for provider in providers}
    if lacks := [provider for provider, library in files.items() if library is None]:
        return f"{backend}: {wheel()}, which is installed here, has no {lacks[0]}; {GPU_WHEEL}"
    if reason := device.why_no_gpu():
        return f"{backend}: {reason}"
    folders = tuple(library_folders())
    for provider, library in files.items():
        assert library is not None, "else it has been told"
        if reason := why_not_linked(library, folders):
            return f"{backend}: {provider}: {reason}"
    return ""


def why_not_linked(library: Path, folders: Sequence[Path]) -> str:
    """Empty if the libraries of NVIDIA's that a provider's file links are here; else half a sentence, and what to do.

    ``folders``: where they are looked for; beside these the system's loader is asked.
    """
    try:
        links = nvidia_links(library)
    except EngineError as error:
        return str(error)
    missing = [name for name in links if not _is_here(name, folders)]
    return _missing_words(links, missing, folders) if missing else ""


def nvidia_links(library: Path) -> tuple[str, ...]:
    """The libraries of NVIDIA's that a provider's file links, as ``libnvinfer.so.10``.

    Raises:
        EngineError: it is no shared library.
    """
    return tuple(name for name in needed_libraries(library) if OF_NVIDIA.fullmatch(name))


def preload(provider: str) -> None:
    """Load what a provider links and the system's loader would not find, such as what pip installed.

    Raises:
        Unavailable: one of them does not load.
    """
    library = library_of(provider)
    folders = tuple(library_folders())
    for name in () if library is None else nvidia_links(library):
        if _loads(name):
            continue
        file = next(_files(name, folders), None)
        try:
            ctypes.CDLL(name if file is None else str(file), ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise Unavailable(f"{provider}: {name} does not load ({error}); install it again") from error


def tensorrt_version() -> str:
    """Of the libnvinfer that the TensorRT provider links, as ``10.13.3``; empty where it does not load."""
    library = library_of(TENSORRT)
    names = [] if library is None else [name for name in needed_libraries(library) if name.startswith("libnvinfer.so")]
    for name in names:
        file = next(_files(name, tuple(library_folders())), None)
        with suppress(OSError, AttributeError):
            number = int(ctypes.CDLL(name if file is None else str(file), ctypes.RTLD_GLOBAL).getInferLibVersion())
            return version_text(number)
    return ""


def version_text(number: int) -> str:
    """A version that NvInferVersion.h counts by ten thousands from 10 on, and by thousands before: ``8.6.1``."""
    major = 10000 if number >= 100000 else 1000
    return f"{number // major}.{number % major // 100}.{number % 100}"


def library_folders() -> Iterator[Path]:
    """Where NVIDIA's libraries lie: the loader's path, what pip installed, and where the system's packages put them."""
    yield from (Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder)
    for folder in map(Path, sys.path):
        if folder.name in ("site-packages", "dist-packages"):
            yield folder / "tensorrt_libs"
            yield from sorted(folder.glob("nvidia/*/lib"))
    triple = f"{platform.machine()}-linux-gnu"
    yield from (Path("/usr/lib") / triple / name for name in ("", "nvidia", "tegra"))
    yield from map(
        Path, ("/usr/lib64", "/usr/lib", "/usr/local/lib", "/usr/local/cuda/lib64", "/usr/local/tensorrt/lib")
    )


def _files(name: str, folders: Sequence[Path]) -> Iterator[Path]:
    return (folder / name for folder in folders if (folder / name).is_file())


def _is_here(name: str, folders: Sequence[Path]) -> bool:
    return next(_files(name, folders), None) is not None or _loads(name)


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def _missing_words(links: Sequence[str], missing: Sequence[str], folders: Sequence[Path]) -> str:
    """Which libraries are not here, or are of another version, and what installs them."""
    first = next((name for name in missing if name.startswith("libnvinfer.so")), missing[0])
    match = OF_NVIDIA.fullmatch(first)
    assert match is not None, "they were chosen by it"
    files = (file.name for folder in folders for file in folder.glob(f"lib{match['stem']}.so.*"))
    others = sorted({name for name in files if OF_NVIDIA.fullmatch(name)})
    if others:
        return (
            f"{wheel()} links {first}, this machine has {', '.join(others)}; {_install(links, missing)}, or an "
            f"onnxruntime-gpu that links {others[-1]}"
        )
    return (
        f"{', '.join(missing)}, which {wheel()} links, {'is' if len(missing) == 1 else 'are'} not found; "
        + _install(links, missing)
    )


def _install(links: Sequence[str], missing: Sequence[str]) -> str:
    majors = {match["stem"]: match["major"] for name in links if (match := OF_NVIDIA.fullmatch(name))}
    commands = []
    if any(name.startswith(("libnvinfer.so", "libnvonnxparser.so")) for name in missing):
        commands.append(f"pip install 'tensorrt-cu{majors.get('cudart', '12')}=={majors['nvinfer']}.*'")
    if any(not name.startswith(("libnvinfer.so", "libnvonnxparser.so")) for name in missing):
        commands.append("pip install 'onnxruntime-gpu[cuda,cudnn]'")
    return " and ".join(commands)
