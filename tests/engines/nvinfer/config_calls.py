"""Real configs of a real builder, set by our functions and read back: run by test_builder_config.py, prints JSON.

Usage: python config_calls.py FOLDER, with the TensorRT for RTX to be used on PYTHONPATH.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import tensorrt_rtx as trt

from engines.contract import BuildOptions
from engines.nvinfer import timing_cache
from engines.nvinfer.builder import logger
from engines.nvinfer.builder_config import configure, set_precision
from engines.nvinfer.capability import Capability, Platform, Typing, capability_of

LOG, TAIL = logger(trt)
BUILDER = trt.Builder(LOG)
ASKED = BuildOptions(workspace_mib=64, optimization_level=2)


def flags(config: Any) -> list[str]:
    """Flags that are set and were not by default; of several names for one flag the first in the alphabet."""
    before = BUILDER.create_builder_config()
    members = trt.BuilderFlag.__members__.items()
    found = {int(flag): name for name, flag in sorted(members, reverse=True)}
    return sorted(n for value, n in found.items() if _has(config, value) and not _has(before, value))


def _has(config: Any, value: int) -> bool:
    return bool(config.get_flag(trt.BuilderFlag(value)))


def configured(found: Capability, options: BuildOptions) -> Any:
    config = BUILDER.create_builder_config()
    configure(trt, found, config, options, TAIL.warnings)
    return config


def tactics(found: Capability, *, external_kernels: bool) -> list[str]:
    """Kinds of kernels that are tried, by a config that had them all."""
    config = BUILDER.create_builder_config()
    kinds = trt.TacticSource.__members__.items()
    config.set_tactic_sources(sum(1 << int(kind) for _, kind in kinds))
    configure(trt, found, config, replace(ASKED, external_kernels=external_kernels), TAIL.warnings)
    bits = config.get_tactic_sources()
    return sorted(name for name, kind in kinds if bits & 1 << int(kind))


def weak(precision: Any, typing: Typing = "weak", *, has_fp16: bool = True) -> tuple[list[str], int]:
    """The flags that are set, and the number of sentences."""
    config = BUILDER.create_builder_config()
    notes = set_precision(trt, config, BuildOptions(precision), typing, Platform(has_fp16=has_fp16))
    return flags(config), len(notes)


def timing_caches(folder: Path) -> dict[str, Any]:
    """Without a GPU no cache but an empty one is taken; the sentence is the one that a damaged one gets."""
    config = BUILDER.create_builder_config()
    seen: deque[str] = TAIL.warnings
    (folder / "damaged.timing").write_bytes(b"of another GPU" * 9)
    (folder / "folder").mkdir()
    said: dict[str, Any] = {"none": timing_cache.begin(config, folder / "none.timing", seen)}
    timing_cache.keep(config, folder / "kept.timing")
    said["kept"] = (folder / "kept.timing").stat().st_size > 0
    said["damaged"] = timing_cache.begin(config, folder / "damaged.timing", seen)
    timing_cache.keep(config, folder / "folder")
    said["left"] = sorted(path.name for path in folder.iterdir())
    return said


def main() -> None:
    warnings.simplefilter("ignore", DeprecationWarning)  # Of RTX's timing cache, which does nothing there.
    folder = Path(sys.argv[1])
    # By itself it has no DLA and no timing cache; its API has TensorRT's names for them all the same.
    has_libraries = hasattr(trt.TacticSource, "CUDNN")
    found = replace(capability_of(trt), ahead_of_time=False, timing_cache=True, external_kernels=has_libraries)
    plain = configured(found, ASKED)
    dla = configured(found, replace(ASKED, dla_core=0))
    print(
        json.dumps({
            "version": trt.__version__,
            "workspace_mib": plain.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) / 2**20,
            "level": plain.builder_optimization_level,
            "verbosity": plain.profiling_verbosity.name,
            "shares profiles": plain.get_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806)
            if hasattr(trt.PreviewFeature, "PROFILE_SHARING_0806")
            else None,
            "monitor": plain.progress_monitor is not None,
            "flags": {
                "refittable": flags(configured(found, replace(ASKED, weights="refittable"))),
                "stripped": flags(configured(found, replace(ASKED, weights="stripped"))),
                "dla": flags(dla),
                "sparse": flags(configured(found, replace(ASKED, sparse_weights=True))),
            },
            "device": dla.default_device_type.name,
            "kernels": [tactics(found, external_kernels=on) for on in (True, False)],
            "weak": {
                "fp32": weak("fp32"),
                "fp16": weak("fp16"),
                "int8": weak("int8"),
                "int8 without fp16": weak("int8", has_fp16=False),
                "int8, strong": weak("int8", "strong"),
            }
            if hasattr(trt.BuilderFlag, "FP16")
            else {},
            "timing cache": timing_caches(folder),
        })
    )  # fmt: skip


if __name__ == "__main__":
    main()
