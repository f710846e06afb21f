"""torch itself, and torchvision: this is the only file that imports them."""

from __future__ import annotations

import importlib.util
import sys
from functools import lru_cache
from typing import Any

from engines.errors import Unavailable

INSTALL = "pip install 'trtforge[tune]'"
INSTALL_EXPORTER = "pip install 'trtforge[torch]'"
DISTRIBUTION, EXPORTER = "torch", "onnxscript"


def why_not() -> str:
    """Why nothing can be trained here; empty if it can."""
    return "" if importlib.util.find_spec("torch") else f"torch is not installed; {INSTALL}"


def why_not_export() -> str:
    """Why nothing can be exported to ONNX here; empty if it can."""
    missing = [name for name in (DISTRIBUTION, EXPORTER) if importlib.util.find_spec(name) is None]
    return (
        f"{' and '.join(missing)}: not installed, which exports PyTorch networks; {INSTALL_EXPORTER}" if missing else ""
    )


@lru_cache(maxsize=1)
def load_torch() -> Any:
    """The module.

    Raises:
        Unavailable: it is not installed.
    """
    if reason := why_not():
        raise Unavailable(reason)
    if "tensorflow" in sys.modules:  # Triton's LLVM beside TensorFlow's ends the process, and nothing here compiles.
        sys.modules.setdefault("triton", None)  # type: ignore[arg-type]  # `import` raises ModuleNotFoundError.
    import torch

    return torch


def load_torchvision() -> None:
    """Let torch know torchvision's operators.

    Raises:
        Unavailable: it is not installed, or is of another release than torch.
    """
    release = load_torch().__version__.partition("+")[0]
    do = f"the network calls its operators; install the torchvision that belongs to torch {release}"
    try:
        import torchvision  # noqa: F401
    except ImportError as error:
        raise Unavailable(f"torchvision is not installed; {do}") from error
    except Exception as error:  # RuntimeError where its library cannot be loaded.
        raise Unavailable(f"torchvision cannot be imported ({error!s:.200}); {do}") from error


def set_threads(num_threads: int) -> None:
    """Threads of one operator; 0: torch's default."""
    if num_threads:
        load_torch().set_num_threads(num_threads)
