"""Versions of cuDNN and cuBLAS, whose kernels TensorRT up to 10 may take: asked of the libraries themselves.

Which of several TensorRT would load is known to it alone, so that all are told.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any

SONAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "cudnn": ("libcudnn.so.8", "libcudnn.so.9"),
        "cublas": ("libcublas.so.11", "libcublas.so.12", "libcublas.so.13"),
    }
)
"""As TensorRT 8.5 to 10 ask for them."""

_FIRST_OF_CUDNN_9 = 90000
"""Its version counts the major one by ten thousands, cuDNN 8's by thousands (``cudnn_version.h``)."""


def kernel_libraries(sonames: Mapping[str, tuple[str, ...]] = SONAMES) -> dict[str, str]:
    """Of each library that is installed its version; of several versions all, as ``8.9.4, 9.3.0``."""
    asked = {
        name: ", ".join(version for soname in sonames[name] if (version := _version(soname, ask)))
        for name, ask in _ASK.items()
    }
    return {name: versions for name, versions in asked.items() if versions}


def _version(soname: str, ask: Callable[[Any], str]) -> str:
    with suppress(OSError, AttributeError):  # It is not installed, or another program's file of that name.
        return ask(ctypes.CDLL(soname))
    return ""


def _cudnn(library: Any) -> str:
    library.cudnnGetVersion.restype = ctypes.c_size_t
    number = int(library.cudnnGetVersion())
    thousands = 10000 if number >= _FIRST_OF_CUDNN_9 else 1000
    return f"{number // thousands}.{number % thousands // 100}.{number % 100}"


def _cublas(library: Any) -> str:
    parts = [ctypes.c_int(0) for _ in range(3)]  # libraryPropertyType: major, minor, patch
    if any(library.cublasGetProperty(kind, ctypes.byref(part)) for kind, part in enumerate(parts)):
        return ""
    return ".".join(str(part.value) for part in parts)


_ASK: Mapping[str, Callable[[Any], str]] = MappingProxyType({"cudnn": _cudnn, "cublas": _cublas})
