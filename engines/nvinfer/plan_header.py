"""Whether a plan can run here, said before it is deserialized: by its header, and by the record that was built with it.

A plan of TensorRT begins with ``ftrt``, one of TensorRT for RTX with ``vtrt``; byte 4 has a version of the format, 0 in
all that were seen, and bytes 24 to 27 the library's version (NVIDIA's trtexec reads the same bytes for
``--getPlanVersionOnly`` from TensorRT 10 on, samples/common/sampleEngines.cpp). Plans of 8.5 have another header, which
does not tell it: their record does. GPU and compatibility stand in the record alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import EngineError, Unavailable

_LOG = logging.getLogger(__name__)

NUM_HEADER_BYTES = 28
KINDS = {b"ftrt": "tensorrt", b"vtrt": "tensorrt_rtx"}
FAMILY = b"trt"
"""What all tags end in; one that begins otherwise may be of a version that nobody here has seen."""
WORDS = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}
FIRST_OF_AMPERE = (8, 0)


@dataclass(frozen=True)
class PlanHeader:
    """What a plan's first bytes say."""

    backend: str
    """``tensorrt`` or ``tensorrt_rtx``; empty for a tag that is not known."""
    version: tuple[int, ...]
    """Of the library, four numbers; empty for a format whose header is not known."""


def header_of(plan: Path) -> PlanHeader:
    """The header of a plan file.

    Raises:
        EngineError: it cannot be read, is shorter than a header, or is no plan.
    """
    try:
        with plan.open("rb") as stream:
            data = stream.read(NUM_HEADER_BYTES)
    except OSError as error:
        raise EngineError(f"{plan}: cannot be read ({error}); build it again") from error
    backend = KINDS.get(data[:4], "")
    if not backend and data[1:4] != FAMILY:
        what = "is empty" if not data else "is no engine of TensorRT's, which begin with ftrt or vtrt"
        raise EngineError(f"{plan}: {what}; give an engine that `trtforge build` or trtexec wrote")
    if len(data) < NUM_HEADER_BYTES:
        raise EngineError(f"{plan}: is cut short after {len(data)} bytes; build or copy it again")
    return PlanHeader(backend, tuple(data[24:28]) if backend and not any(data[4:8]) else ())


def record_beside(plan: Path) -> dict[str, Any]:
    """The record that was written with the engine: ``<name>.json``, or ``record.json`` in its folder; else empty."""
    for file in (plan.with_name(f"{plan.name}.json"), plan.with_name("record.json")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(record, dict) and record.get("backend") in WORDS:
            return record
    return {}


def check_plan_here(plan: Path, record: Mapping[str, Any], backend: str, here: Mapping[str, str]) -> None:
    """Compare a plan with this machine.

    Args:
        plan: the engine's file.
        record: that beside it, empty for a plan of others.
        backend: ``tensorrt`` or ``tensorrt_rtx``, which is to run it.
        here: the backend's ``versions()``.

    Raises:
        EngineError: the file is no plan, or not the whole of what was built.
        Unavailable: it is another library's, generation's or GPU's; the sentence says what to do.
    """
    header = header_of(plan)
    size = plan.stat().st_size
    if record and record.get("size_bytes") not in (None, size):
        raise EngineError(
            f"{plan}: has {size} bytes, {record['size_bytes']} were built by its record; it is cut short or another "
            "engine: build or copy it again"
        )
    if header.backend not in ("", backend):
        raise Unavailable(
            f"{plan}: is an engine of {WORDS[header.backend]}, {WORDS[backend]} is to run it; give --backend "
            f"{header.backend}, or build it again"
        )
    built = header.version or _numbers(record.get("versions", {}).get(backend, ""))
    version = _version(built[:3], _numbers(here.get(backend, ""))[:3], backend, record, plan)
    for reason in (version, _gpu(record, here, backend)):
        if reason:
            raise Unavailable(f"{plan}: {reason}")


def is_stripped(record: Mapping[str, Any]) -> bool:
    """Whether a plan was built without weights, by its record."""
    return bool(record.get("options", {}).get("weights") == "stripped")


def check_weights_inside(plan: Path, record: Mapping[str, Any]) -> None:
    """That an engine can run as it is.

    Raises:
        Unavailable: it was built without weights.
    """
    if is_stripped(record):
        raise Unavailable(
            f"{plan}: has no weights; fill it with `trtforge refit {plan} MODEL -o FILE`, MODEL being the file that it "
            'was built from, or build it with weights = "fixed"'
        )


def _version(built: tuple[int, ...], ours: tuple[int, ...], backend: str, record: Mapping[str, Any], plan: Path) -> str:
    if not built or not ours or built == ours:
        return ""
    words = f"was built by version {_text(built)}, {_text(ours)} is here"
    if built > ours:
        return f"{words}, which is older; build it again here, or update"
    if backend == "tensorrt_rtx" or not record:  # Whether it is compatible only the library can tell.
        _LOG.warning("%s: %s; it loads only if it was built to be compatible with later versions", plan, words)
        return ""
    if record.get("options", {}).get("version_compatible"):
        return ""
    return f"{words}; build it again here, or once and for all with version_compatible = true"


def _gpu(record: Mapping[str, Any], here: Mapping[str, str], backend: str) -> str:
    """Why the GPU at hand is not one that it was built for; empty where that is not known."""
    ours = here.get("compute_capability", "")
    if not ours:
        return ""
    if backend == "tensorrt_rtx":
        targets = record.get("options", {}).get("compute_capabilities") or ()
        if targets and ours not in targets:
            return (
                f"was built for compute capability {', '.join(targets)}, the GPU here has {ours}; build it for {ours}"
            )
        return ""
    versions = record.get("versions", {})
    built = versions.get("compute_capability", "")
    if not built or built == ours:
        return ""
    words = f"was built on {versions.get('gpu', 'a GPU')} with compute capability {built}"
    if record.get("options", {}).get("hardware") == "ampere_plus":
        if _numbers(ours) >= FIRST_OF_AMPERE:
            return ""
        return f"{words} for 8.0 and later, the GPU here has {ours}; build it again here"
    return f'{words} for its kind, the GPU here has {ours}; build it again here, or with hardware = "ampere_plus"'


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
