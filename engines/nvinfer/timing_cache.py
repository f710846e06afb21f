"""TensorRT's timing cache: kernels that were timed once are not timed again, by later builds on the same machine.

The file's name has all that a timing depends on (``timing_cache_path``). A cache that is damaged, or of another GPU or
version, is a warning and a fresh start; it never fails a build. TensorRT for RTX has none: there it does nothing.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.whole_file import write_whole

_LOG = logging.getLogger(__name__)

KEYS = (
    "tensorrt", "cuda_driver", "nvidia_driver", "l4t", "cudnn", "cublas", "gpu", "compute_capability", "power_mode",
)  # fmt: skip
"""What a timing depends on, as a backend's versions call it."""


def timing_cache_path(folder: Path, versions: Mapping[str, str]) -> Path:
    """The cache's file for this machine: named by the SHA-256 of what ``versions`` say of ``KEYS``."""
    text = "\n".join(f"{key} {versions.get(key, '')}" for key in KEYS)
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.timing"


def begin(config: Any, file: Path, warnings: deque[str]) -> str:
    """Give ``config`` the cache in ``file``, or an empty one.

    Args:
        config: an ``IBuilderConfig``.
        file: written by ``keep``; it need not be there.
        warnings: what the library has warned of, as it comes: it says there alone that it did not take a cache.

    Returns:
        Empty; or why the file's content is not used, for the record. It is logged as a warning.
    """
    data, problem = b"", ""
    try:
        data = file.read_bytes() if file.is_file() else b""
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    warnings.clear()
    is_taken = _set(config, data)
    if not is_taken or any("timing cache" in line.lower() for line in warnings):
        problem = "TensorRT does not take it: it is damaged, or of another version or GPU"
        _set(config, b"")
    if not problem:
        return ""
    sentence = f"timing cache {file.name}: {problem}; every kernel is timed again"
    _LOG.warning("%s", sentence)
    return sentence


def keep(config: Any, file: Path) -> None:
    """Write the cache, whole or not at all; the last of two builds at once wins. A full disk is a warning."""
    cache = config.get_timing_cache()
    if cache is None:  # It took none, not even an empty one; the engine is built all the same.
        _LOG.warning("timing cache %s: TensorRT keeps none; later builds time its kernels again", file)
        return
    try:
        write_whole(file, bytes(cache.serialize()))
    except OSError as error:
        _LOG.warning("timing cache %s: cannot be written (%s); later builds time its kernels again", file, error)


def _set(config: Any, data: bytes) -> bool:
    cache = config.create_timing_cache(data)
    return cache is not None and bool(config.set_timing_cache(cache, False))
